"""Maps the folders to packages and compiles the native parts; pyproject.toml holds everything else.

`pip install` shows this output with `-v`; `motarfuse doctor` tells the outcome afterwards.
"""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

from setuptools import Extension, find_packages, setup
from setuptools.command.build import build
from setuptools.command.build_ext import build_ext

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))  # a PEP 517 build does not have the source folder on its path

from motarfuse import _build  # noqa: E402

OPERATORS = "motarfuse._C"
HOST = "motarfuse._host"
WEIGHTS = "motarfuse.models.weights"  # a folder without modules


class CleanBuild(build):
    """Starts from an empty staging folder: setuptools would ship modules that the sources no longer have."""

    def run(self) -> None:
        shutil.rmtree(self.build_lib, ignore_errors=True)
        super().run()


class BuildNative(build_ext):
    """Lets ninja compile; a part that could not be built is left out of the package, and said so."""

    def get_ext_filename(self, fullname: str) -> str:
        # Loaded by torch.ops.load_library and free of Python's ABI, so its name carries no Python version.
        return "motarfuse/_C.so" if fullname == OPERATORS else super().get_ext_filename(fullname)

    def run(self) -> None:
        self.into_source_tree = bool(self.inplace)  # reset by setuptools while it builds
        super().run()

    def build_extensions(self) -> None:
        destination = Path(self.build_lib) / "motarfuse"
        try:
            outcomes = _build.build(destination)
        except _build.BuildError as error:
            wanted = os.environ.get("MOTARFUSE_BUILD_CUDA", "")
            raise SystemExit(f"\nmotarfuse: not built, MOTARFUSE_BUILD_CUDA is {wanted!r}: {error}\n") from None
        built = {f"motarfuse.{outcome.name}" for outcome in outcomes if outcome.path is not None}
        if self.into_source_tree:
            # Removed first: setuptools writes over a file that a running process may have mapped, and one that was not
            # built this time would not belong to these sources.
            for extension in self.extensions:
                (HERE / self.get_ext_filename(extension.name)).unlink(missing_ok=True)
        self.extensions = [extension for extension in self.extensions if extension.name in built]
        for outcome in outcomes:
            report(outcome)


def report(outcome: _build.Outcome) -> None:
    """Says what was built; what was not stands between lines that cannot be overlooked."""
    if outcome.path is not None and not outcome.warning:
        print(f"motarfuse.{outcome.name}: built", flush=True)
        return
    what = "is NOT built" if outcome.path is None else "is built, but in part"
    print(
        f"{'=' * 100}\nWARNING: motarfuse.{outcome.name} {what}: {outcome.reason or outcome.warning}\n{'=' * 100}",
        flush=True,
    )


# The sources travel with the package, so that `motarfuse build` compiles an installed one too.
sources = {f"motarfuse.{folder.replace('/', '.')}": folder for folder in ("csrc", "csrc/cpu", "csrc/cuda", "csrc/host")}
setup(
    packages=[*find_packages(include=["motarfuse", "motarfuse.*"]), "motarfuse.kernels", WEIGHTS, *sources],
    package_dir={"motarfuse": "motarfuse", "motarfuse.kernels": "kernels", **sources},
    package_data={
        **{package: ["*.h", "*.cuh", "*.cpp", "*.cu"] for package in sources},
        WEIGHTS: ["*.safetensors", "*.json", "*.md"],
    },
    ext_modules=[Extension(name, sources=[], optional=True) for name in (HOST, OPERATORS)],
    cmdclass={"build": CleanBuild, "build_ext": BuildNative},
)
