"""``motarfuse build``: compiles the native parts in place."""

from __future__ import annotations

import argparse

from motarfuse import _build
from motarfuse.console import info, warn
from motarfuse.errors import OutputError

EPILOG = """\
example:
  motarfuse build               what changed, CUDA where nvcc is found
  motarfuse build --cuda 1      fail when the CUDA part cannot be built
  TORCH_CUDA_ARCH_LIST="9.0a" motarfuse build
                                for one GPU generation only

Two parts are compiled: motarfuse._C, the operators for the CPU and for CUDA, and motarfuse._host, the drawing of
synthetic people. No GPU is needed for either. Without them everything runs too, on slower paths; `motarfuse doctor`
says what is there.

variables:
  MOTARFUSE_BUILD_CUDA   auto, 0 or 1: what --cuda does, for pip install
  TORCH_CUDA_ARCH_LIST   compute capabilities, default "8.0;9.0a;10.0+PTX"
  MAX_JOBS               compilations at once, default: all cores
  CXX, CUDA_HOME         the compiler and the CUDA toolkit to use
"""


def configure(parser: argparse.ArgumentParser) -> None:
    parser.epilog = EPILOG
    parser.add_argument(
        "--cuda",
        choices=("auto", "0", "1"),
        help="auto: CUDA sources too where nvcc is found (default); 0: C++ only; 1: insist on CUDA",
    )
    parser.add_argument("--verbose", action="store_true", help="print every command and the compilers' whole output")


def run(args: argparse.Namespace) -> int:
    info(f"compiling {_build.source_folder()} (a minute or two the first time, with nvcc four)")
    try:
        outcomes = _build.build(_build.PACKAGE, cuda=args.cuda, verbose=args.verbose)
    except PermissionError as error:
        raise OutputError(f"cannot write {error.filename}; run it as the owner of that folder") from error
    for outcome in outcomes:
        if outcome.path is None:
            continue
        info(f"motarfuse.{outcome.name}: {outcome.path}")
        for key, value in (outcome.info or {}).items():
            if key != "sources":
                info(f"  {key}: {', '.join(value) or 'none' if isinstance(value, list) else value or 'none'}")
        if outcome.warning:
            warn(f"motarfuse.{outcome.name} is built {outcome.warning}")
    missing = [f"motarfuse.{outcome.name} is not built: {outcome.reason}" for outcome in outcomes if not outcome.path]
    if missing:
        raise _build.BuildError("\n".join(missing))
    return 0
