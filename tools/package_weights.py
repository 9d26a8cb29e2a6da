"""Makes the weights of a run or a checkpoint a packaged network, known by name to extract, search and from_pretrained.

python tools/package_weights.py runs/synthped nano-synthped

Writes NAME.safetensors (fp16) and NAME.json (its card, with the metrics of the run's evaluations at that step) to
motarfuse/models/weights, and checks that features of the packaged network point where those of the checkpoint do.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors.torch import load

from motarfuse.engine.checkpoint import find_checkpoint, load_model
from motarfuse.engine.outputs import make_folder, write_bytes
from motarfuse.errors import ConfigError, MotarfuseError
from motarfuse.models import packaged

SYNTHPED = "drawn people only (SynthPed)"
SYNTHPED_ADVICE = "on photographs expect less: fine-tune or train your own"
# Rounding 2^-11 of each weight turns features by less; anything above is a tensor that fp16 does not suit.
SMALLEST_COSINE = 0.9999


def saw_synthped_only(config: dict[str, Any] | None) -> bool:
    """Whether a run started from random weights and its training data still lies there and is a SynthPed benchmark."""
    config = config or {}
    root = config.get("data", {}).get("root")
    train = config.get("train", {})
    if root is None or train.get("pretrained") is not None or train.get("initial") is not None:
        return False
    for folder in (Path(root), Path(root).parent):  # the benchmark, or one of its protocols
        try:
            manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
        except (OSError, ValueError):
            continue
        if isinstance(manifest, dict) and manifest.get("dataset") == "SynthPed":
            return True
    return False


def run_metrics(folder: Path, step: int) -> dict[str, Any]:
    """Metrics of the evaluations that a checkpoint's run holds of this very step, by name; no paths."""
    found = {}
    for path in sorted((folder.parent.parent / "evaluations").glob("*.json")):
        record = json.loads(path.read_text(encoding="utf-8"))
        if record.get("step") == step:
            score = {"score": record["score"]} if "score" in record else {}
            found[record["name"]] = {"dataset": record["dataset"], **score, **record["metrics"]}
    return found


def package(
    source: Path,
    name: str,
    out: Path,
    *,
    training_data: str | None = None,
    advice: str | None = None,
    licence: str = "Apache-2.0",
) -> tuple[Path, float]:
    """Writes the two files; returns the weights' and the smallest cosine of features before and after."""
    folder = find_checkpoint(source)
    model, metadata = load_model(folder)
    if training_data is None:
        if not saw_synthped_only(metadata.get("config")):
            raise ConfigError(
                f"{folder} does not show that it was trained on SynthPed alone (data.root must lie there, and "
                "train.pretrained and train.initial be none); say with --training-data what it has seen"
            )
        training_data, advice = SYNTHPED, SYNTHPED_ADVICE if advice is None else advice
    weights, card = packaged.pack(
        model,
        name,
        model_name=metadata["model"]["name"],
        model_config=metadata["model"]["config"],
        step=metadata["step"],
        training_data=training_data,
        advice=advice or "",
        licence=licence,
        metrics=run_metrics(folder, metadata["step"]),
    )
    cosine = smallest_cosine(model, weights)
    if cosine < SMALLEST_COSINE:
        raise ConfigError(f"{folder} loses too much in fp16: the cosine of features falls to {cosine:.5f}")
    path = make_folder(out) / f"{name}.safetensors"
    write_bytes(path, weights)
    write_bytes(path.with_suffix(".json"), card)
    return path, cosine


@torch.no_grad()
def smallest_cosine(model: torch.nn.Module, weights: bytes) -> float:
    """Of features, and part features, of 16 random images before and after rounding, which the model keeps."""
    images = torch.randn(16, 3, *model.image_size, generator=torch.Generator().manual_seed(0))  # type: ignore[misc]
    before = model(images)
    model.load_state_dict(load(weights))
    after = model(images)
    names = [name for name in ("feature", "part_features") if getattr(before, name, None) is not None]
    return min(
        F.cosine_similarity(getattr(before, name), getattr(after, name), dim=-1).min().item()
        for name in names
        if getattr(before, name).numel()
    )


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "source", metavar="RUN_OR_CHECKPOINT", type=Path, help="a run's folder or one of its checkpoints"
    )
    parser.add_argument("name", metavar="NAME", help="lower-case letters, digits, - and _")
    parser.add_argument("--training-data", help="what it has seen, after 'was trained on' (default: SynthPed, if so)")
    parser.add_argument("--advice", help="what that means for its user")
    parser.add_argument("--licence", default="Apache-2.0", help="of the weights (default: Apache-2.0)")
    parser.add_argument("--out", type=Path, default=packaged.WEIGHTS, help="folder (default: the package's)")
    args = parser.parse_args(arguments)
    try:
        path, cosine = package(
            args.source, args.name, args.out, training_data=args.training_data, advice=args.advice, licence=args.licence
        )
    except MotarfuseError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    size = (path.stat().st_size + path.with_suffix(".json").stat().st_size) / 1e6
    print(f"{path}: {size:.2f} MB with its card, cosine of features to the checkpoint's at least {cosine:.6f}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
