"""Argument types and arguments that more than one verb uses."""

from __future__ import annotations

import argparse
from typing import Any

from motarfuse.data.clips import EVAL_POLICIES, ClipSampling
from motarfuse.retrieval import SCORES


def positive_integer(text: str) -> int:
    """An integer of at least 1; argparse turns the error into a usage message."""
    try:
        value = int(text)
    except ValueError:
        value = 0
    if value < 1:
        raise argparse.ArgumentTypeError(f"expected a whole number of at least 1, got {text!r}")
    return value


def add_checkpoint(parser: argparse.ArgumentParser) -> None:
    """The checkpoint whose network is to be used."""
    parser.add_argument(
        "checkpoint",
        metavar="RUN_OR_CHECKPOINT",
        help="a run's folder (its latest checkpoint), a checkpoint's, or a packaged network's name (nano-synthped)",
    )


def add_score(parser: argparse.ArgumentParser) -> None:
    """Which of a network's scores counts."""
    parser.add_argument(
        "--score",
        choices=("auto", *SCORES),
        default="auto",
        help="what is compared: feature, body parts, or the sum of both scores (auto, default: sum if there are parts)",
    )


def add_encoding(parser: argparse.ArgumentParser) -> None:
    """How images become features: where, how many at once and in which precision."""
    parser.add_argument(
        "--flip", action="store_true", help="average features (not parts) of each image and its mirror image"
    )
    parser.add_argument(
        "--batch-size", type=positive_integer, default=128, metavar="N", help="images a forward pass (default: 128)"
    )
    parser.add_argument(
        "--workers", type=positive_integer, default=2, metavar="N", help="decoding threads (default: 2)"
    )
    parser.add_argument("--device", default="auto", help="auto (default), cpu, cuda or cuda:N")
    parser.add_argument("--precision", default="fp32", choices=("fp32", "bf16", "fp16"), help="default: fp32")


def encoding(args: argparse.Namespace) -> dict[str, Any]:
    """The values of `add_encoding`, as `extract` and `evaluate_checkpoint` take them."""
    return {name: getattr(args, name) for name in ("flip", "batch_size", "workers", "device", "precision")}


def add_clips(parser: argparse.ArgumentParser) -> None:
    """Which frames of tracklets the network sees."""
    default = ClipSampling()
    parser.add_argument(
        "--frames",
        choices=EVAL_POLICIES,
        default=default.policy,
        help="of tracklets: all frames (default), some spread evenly, or consecutive ones from the middle (dense)",
    )
    parser.add_argument(
        "--clip-length",
        type=positive_integer,
        default=default.frames,
        metavar="T",
        help=f"of tracklets: frames that the network sees together; 1 for single frames (default: {default.frames})",
    )


def clips(args: argparse.Namespace) -> ClipSampling:
    """The policy of `add_clips`."""
    return ClipSampling(args.frames, args.clip_length)
