"""Entry point of ``motarfuse``: finds the verb, imports only that verb's module and runs it."""

from __future__ import annotations

import argparse
import errno
import importlib
import os
import signal
import sys
from collections.abc import Sequence

from motarfuse import __version__
from motarfuse.errors import MotarfuseError

VERBS = {
    "demo": "draw people, train, evaluate, report: the whole job in a few minutes",
    "train": "train a model from a config",
    "evaluate": "mAP, CMC and mINP of a checkpoint on a dataset",
    "extract": "features of a folder of person crops",
    "search": "find a query image in extracted features",
    "parts": "the learned body parts against the drawn ones of SynthPed",
    "report": "one self-contained HTML page of a run",
    "compare": "train rows over seeds and data sets; tables, intervals and a page of what differs",
    "data": "synth, check, stats, convert: draw, examine, count and rewrite datasets",
    "tracklets": "cut the people of a video out, by boxes or before a fixed camera",
    "build": "compile the native parts in place",
    "doctor": "what works here, what does not, why, and what to do",
}

EPILOG = """
examples:
  motarfuse demo                                the whole job on drawn people
  motarfuse extract runs/demo/run crops/ features/
  motarfuse search somebody.jpg features/       the most similar crops
  motarfuse VERB --help                         explains a verb, with examples
"""
# What takes long and can be given again after an interrupt.
RESUMED = ("demo", "train", "compare")


def build_parser(verb: str | None) -> argparse.ArgumentParser:
    """The argument parser; only ``verb``'s own arguments are declared, so that other verbs' imports cannot fail it."""
    parser = argparse.ArgumentParser(
        prog="motarfuse",
        description="Person re-identification with motion-aware fusion.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"motarfuse {__version__}")
    verbs = parser.add_subparsers(dest="verb", metavar="VERB", required=True)
    for name, summary in VERBS.items():
        child = verbs.add_parser(
            name, help=summary, description=summary, formatter_class=argparse.RawDescriptionHelpFormatter
        )
        if name == verb:
            importlib.import_module(f"motarfuse.cli.{name}").configure(child)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one verb.

    Returns:
        0 on success, 2 for an error that the user can mend (printed as one line), 130 when interrupted.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    if argv is None:
        # As after an interrupt, nothing half-written is left.
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    verb = next((word for word in arguments if word in VERBS), None)
    try:
        args = build_parser(verb).parse_args(arguments)
        status = int(importlib.import_module(f"motarfuse.cli.{args.verb}").run(args))
        sys.stdout.flush()
        return status
    except ImportError as error:
        name = (error.name or "").partition(".")[0]
        if name in ("", "motarfuse"):
            raise
        print(f"motarfuse {verb}: {name} cannot be imported ({error}); see motarfuse doctor", file=sys.stderr)
        return 2
    except BrokenPipeError:  # the reader, `head` say, has seen enough
        _silence_output()
        return 1
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        # What writes files says which of them; this is the output itself, sent to a file.
        _silence_output()
        print(f"motarfuse {verb}: cannot write the output: {error.strerror}", file=sys.stderr)
        return 2
    except MotarfuseError as error:
        print(f"motarfuse {verb}: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        hint = "; the same command goes on from the last checkpoint" if verb in RESUMED else ""
        print(f"motarfuse {verb}: interrupted{hint}", file=sys.stderr)
        return 130


def _silence_output() -> None:
    """Python's own flush at exit must not fail again."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


if __name__ == "__main__":
    sys.exit(main())
