"""Builds a wheel, installs it in a clean virtual environment and calls an operator, the command line and a build there.

The environment sees the packages of the Python that runs this, but not an editable motarfuse among them.
"""

from __future__ import annotations

import argparse
import os
import shlex
import subprocess
import sys
import sysconfig
import tempfile
import zipfile
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parent.parent
EXPECTED = [
    "motarfuse/_C.so",
    "motarfuse/kernels/__init__.py",
    "motarfuse/csrc/library.cpp",
    "motarfuse/csrc/part_moments.h",
    "motarfuse/csrc/cpu/part_moments.cpp",
    "motarfuse/csrc/cuda/part_moments.cu",
    "motarfuse/csrc/host/module.cpp",
]
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


def visible_packages() -> list[str]:
    """The site-packages folders that this Python sees; a plain path in a .pth file follows none of their .pth files."""
    return [path for path in sys.path if path.endswith(("site-packages", "dist-packages"))]


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
    (site / "packages.pth").write_text("\n".join(visible_packages()) + "\n")
    # Ignored: the editable installation that the link shows is not the clean environment's own.
    run(python, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--ignore-installed", wheel, cwd=folder)
    run(python, "-c", CALL, cwd=folder)
    run(venv / "bin" / "motarfuse", "doctor", "--brief", cwd=folder)
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
