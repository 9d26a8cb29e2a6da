"""Builds a wheel, installs it in a clean virtual environment and calls an operator, the command line and a build there.

Of the packages of the Python that runs this, the environment sees torch and what else the wheel's metadata name as core
dependencies, with what these need, and nothing else: a dependency that nobody declared is missing there.
"""

from __future__ import annotations

import argparse
import email
import importlib.metadata
import os
import re
import shlex
import subprocess
import sys
import sysconfig
import tempfile
import zipfile
from collections.abc import Iterable
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

REPOSITORY = Path(__file__).resolve().parent.parent
EXPECTED = [
    "motarfuse/_C.so",
    "motarfuse/kernels/__init__.py",
    "motarfuse/csrc/library.cpp",
    "motarfuse/csrc/motion_warp.h",
    "motarfuse/csrc/part_moments.h",
    "motarfuse/csrc/part_pool.h",
    "motarfuse/csrc/cpu/batch_hard_triplet.cpp",
    "motarfuse/csrc/cpu/motion_warp.cpp",
    "motarfuse/csrc/cpu/part_moments.cpp",
    "motarfuse/csrc/cpu/part_pool.cpp",
    "motarfuse/csrc/cuda/mma.cuh",
    "motarfuse/csrc/cuda/motion_attention_backward.cu",
    "motarfuse/csrc/cuda/motion_warp.cu",
    "motarfuse/csrc/cuda/motion_warp_backward.cu",
    "motarfuse/csrc/cuda/motion_warp_backward.cuh",
    "motarfuse/csrc/cuda/part_moments.cu",
    "motarfuse/csrc/cuda/part_pool.cu",
    "motarfuse/csrc/host/module.cpp",
    "motarfuse/models/weights/README.md",
    "motarfuse/models/weights/nano-synthped.json",
    "motarfuse/models/weights/nano-synthped.safetensors",
]
IMPORT_ALL = """
import importlib, pkgutil, motarfuse

def fail(name):
    raise

names = [module.name for module in pkgutil.walk_packages(motarfuse.__path__, "motarfuse.", onerror=fail)]
# Kernels and the backends made of them need Triton, which torch brings where there is CUDA; _C is no Python module.
left_out = ("motarfuse.kernels.", "motarfuse._C", "motarfuse.__main__")
names = [name for name in names if not name.startswith(left_out) and not name.endswith("_triton")]
for name in names:
    importlib.import_module(name)
print(f"{len(names)} modules import with the core dependencies alone")
"""
CALL = """
import sys, torch, motarfuse, motarfuse.kernels
from motarfuse import _native, ops
from motarfuse.reference.part_moments import part_moments as reference

assert motarfuse.__file__.startswith(sys.prefix), motarfuse.__file__
status = _native.status()
assert status.operators_loaded, status.operators_error
assert status.host_loaded, status.host_error
logits = torch.randn(2, 3, 4 * 5, generator=torch.Generator().manual_seed(0), requires_grad=True)
result = ops.part_moments(logits, grid=(4, 5), impl="cpu")
for name, got, wanted in zip(("keypoints", "affines", "confidence"), result, reference(logits, grid=(4, 5))):
    torch.testing.assert_close(got, wanted, msg=lambda text: f"{name}: {text}")
sum(part.sum() for part in result).backward()
assert logits.grad.isfinite().all()
print(f"motarfuse {motarfuse.__version__}: part_moments of the wheel's _C equals the reference")
"""


def run(*command: str | Path, cwd: Path | None = None) -> None:
    words = [str(word) for word in command]
    print("+", shlex.join(words if len(words[-1]) < 200 else [*words[:-1], "..."]), flush=True)
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    subprocess.run(words, check=True, cwd=cwd, env=environment)


def closure(requirements: Iterable[str]) -> list[importlib.metadata.Distribution]:
    """The installed distributions that the requirements need, and those that these need, without extras."""
    found: dict[str, importlib.metadata.Distribution] = {}
    waiting = [Requirement(text) for text in requirements]
    while waiting:
        requirement = waiting.pop()
        name = canonicalize_name(requirement.name)
        if name in found or (requirement.marker and not requirement.marker.evaluate({"extra": ""})):
            continue
        found[name] = importlib.metadata.distribution(name)
        waiting += [Requirement(text) for text in found[name].requires or []]
    return list(found.values())


def link(distributions: Iterable[importlib.metadata.Distribution], site: Path) -> None:
    """Shows these distributions, and nothing else that lies beside them, to the environment of ``site``."""
    for distribution in distributions:
        for top in {file.parts[0] for file in distribution.files or [] if file.parts[0] not in ("..", "__pycache__")}:
            if not (site / top).exists():
                (site / top).symlink_to(Path(str(distribution.locate_file(top))))


def core_requirements(wheel: Path) -> list[str]:
    """What the wheel says it needs, without its extras."""
    with zipfile.ZipFile(wheel) as archive:
        (name,) = [name for name in archive.namelist() if name.endswith(".dist-info/METADATA")]
        metadata = email.message_from_bytes(archive.read(name))
    return [text for text in metadata.get_all("Requires-Dist", []) if "extra ==" not in text]


def build_requirements() -> list[str]:
    text = (REPOSITORY / "pyproject.toml").read_text(encoding="utf-8")
    return re.findall(r'"([^"]+)"', next(line for line in text.splitlines() if line.startswith("requires = ")))


def check(wheel: Path, folder: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    suffix = sysconfig.get_config_var("EXT_SUFFIX")
    missing = [name for name in [*EXPECTED, f"motarfuse/_host{suffix}"] if name not in names]
    if missing:
        sys.exit(f"{wheel.name} lacks {', '.join(missing)}")
    venv = folder / "venv"
    run(sys.executable, "-m", "venv", "--without-pip", venv)
    python = venv / "bin" / "python"
    query = [str(python), "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"]
    site = Path(subprocess.run(query, check=True, capture_output=True, text=True).stdout.strip())
    link(closure(core_requirements(wheel)), site)
    run(sys.executable, "-m", "pip", "--python", python, "install", "--quiet", "--no-deps", "--no-index", wheel)
    run(python, "-c", IMPORT_ALL, cwd=folder)
    run(python, "-c", CALL, cwd=folder)
    run(venv / "bin" / "motarfuse", "doctor", "--brief", cwd=folder)
    link(closure(build_requirements()), site)
    run(venv / "bin" / "motarfuse", "build", "--cuda", "0", cwd=folder)
    run(python, "-c", CALL, cwd=folder)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, help="folder that keeps the wheel (default: none does)")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="motarfuse-wheel-") as name:
        folder = Path(name)
        out = args.out.resolve() if args.out else folder / "dist"
        built = folder / "built"
        try:
            pip_wheel = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation"]
            run(*pip_wheel, "-w", built, REPOSITORY)
            (wheel,) = built.glob("motarfuse-*.whl")
            check(wheel, folder)
        except subprocess.CalledProcessError as error:
            sys.exit(f"failed ({error.returncode}): {error.cmd[:3]}")
        out.mkdir(parents=True, exist_ok=True)
        (out / wheel.name).write_bytes(wheel.read_bytes())
        print(f"{wheel.name}: {len(zipfile.ZipFile(wheel).namelist())} files, works in a clean environment")


if __name__ == "__main__":
    main()
