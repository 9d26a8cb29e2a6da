"""Prepares a virtual environment for this checkout: torch first, then the package with its native parts.

Where the Python that runs this already has a working torch >= 2.10 (a CUDA image, say), the environment sees that one
instead of downloading another, and needs no network at all when the other packages are there too. Needs nothing but the
standard library. Example:

    python3 tools/bootstrap.py --venv .venv --extra test --torch "torch==2.13.0"
"""

from __future__ import annotations

import argparse
import importlib.util
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parent.parent
BASE_LINK = "motarfuse-base.pth"
# Import names of what must be there; the other packages of an extra only make some tests skip.
ESSENTIAL = {
    "": ["numpy", "PIL", "yaml", "rich", "safetensors"],
    "test": ["pytest"],
    "dev": ["pytest", "mypy", "ruff"],
}
TORCH_PROBE = """
import torch
assert tuple(int(part) for part in torch.__version__.split(".")[:2]) >= (2, 10), "older than 2.10"
assert float(torch.ones(2).sum()) == 2.0
print(torch.__version__)
"""
BUILD_PROBE = """
import importlib.metadata, ninja
assert int(importlib.metadata.version("setuptools").split(".")[0]) >= 77
"""


def run(*command: str | Path) -> None:
    print("+", shlex.join(map(str, command)), flush=True)
    subprocess.run([str(word) for word in command], check=True, cwd=REPOSITORY)


def ask(python: str | Path, code: str) -> str | None:
    """What ``code`` prints under that Python, None when it fails."""
    result = subprocess.run([str(python), "-c", code], capture_output=True, text=True, cwd="/")
    return result.stdout.strip() if result.returncode == 0 else None


def missing_imports(python: Path, names: list[str]) -> list[str]:
    code = f"import importlib.util as u; print(*[n for n in {names!r} if u.find_spec(n) is None])"
    answer = ask(python, code)
    return names if answer is None else answer.split()


def create(venv: Path) -> Path:
    """The environment's Python; made new when there is none that runs."""
    python = venv / "bin" / "python"
    if ask(python, "") is not None if python.exists() else False:
        return python
    if venv.exists():
        shutil.rmtree(venv)
    base_torch = ask(sys.executable, TORCH_PROBE)
    if base_torch and importlib.util.find_spec("pip") is not None:
        # The base's pip and setuptools are seen through the link below; those that a venv brings may be too old.
        run(sys.executable, "-m", "venv", "--without-pip", venv)
    elif importlib.util.find_spec("ensurepip") is not None:
        run(sys.executable, "-m", "venv", venv)
    else:
        sys.exit(f"{sys.executable} cannot make virtual environments; install its venv module (python3-venv)")
    if base_torch:
        # A link to the base's packages rather than --system-site-packages: where the base is a virtual environment
        # itself, that flag would show the packages of the base's base. Its own .pth files are not followed.
        folders = [path for path in sys.path if path.endswith(("site-packages", "dist-packages"))]
        target = ask(python, "import sysconfig; print(sysconfig.get_path('purelib'))")
        if target is None:
            sys.exit(f"{python} does not run; remove {venv} and try again")
        Path(target, BASE_LINK).write_text("\n".join(folders) + "\n")
        print(f"using torch {base_torch} of {sys.executable}")
    return python


def install(python: Path, venv: Path, extra: str, torch: str) -> None:
    """Installs torch where there is none that works, then the package in place."""
    pip = [str(python), "-m", "pip", "--disable-pip-version-check"]
    target = f".[{extra}]" if extra else "."
    linked = bool(list(venv.glob(f"lib/python*/site-packages/{BASE_LINK}")))
    if ask(python, TORCH_PROBE) is None:
        run(*pip, "install", *shlex.split(torch))
    missing = missing_imports(python, ESSENTIAL[""] + ESSENTIAL.get(extra, []))
    if linked and ask(python, BUILD_PROBE) is not None:
        local = [*pip, "install", "--quiet", "--no-build-isolation"]
        attempt = [*local, "--retries", "0", "--timeout", "10", "-e", target]
        print("+", shlex.join(attempt), flush=True)
        result = subprocess.run(attempt, cwd=REPOSITORY, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        if result.returncode == 0:
            return
        if not missing:
            reason = next((line for line in reversed(result.stdout.splitlines()) if "ERROR" in line), "")
            print(
                f"{reason}\nnot every package of {target} can be had here; what needs the others is skipped", flush=True
            )
            run(*local, "--no-deps", "-e", ".")
            return
        print(result.stdout, end="", flush=True)
    run(*pip, "install", "-e", target)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--venv", type=Path, default=REPOSITORY / ".venv", help="folder of the environment")
    parser.add_argument("--extra", default="", help="extra of pyproject.toml to install as well")
    parser.add_argument("--torch", default="torch>=2.10", help="what pip is given to install torch, options included")
    args = parser.parse_args()
    if sys.version_info < (3, 10):  # noqa: UP036 (the only file that runs before pip has checked the version)
        sys.exit(f"motarfuse needs Python 3.10 or later, {sys.executable} is {sys.version.split()[0]}; set PYTHON")
    venv = args.venv.resolve()
    try:
        python = create(venv)
        install(python, venv, args.extra, args.torch)
    except subprocess.CalledProcessError as error:
        sys.exit(f"failed ({error.returncode}): {shlex.join(error.cmd)}")
    run(python, "-m", "motarfuse", "doctor", "--brief")
    if "is not built" in (ask(python, "from motarfuse import _native; print(_native.status())") or ""):
        # Everything works without it, but pip has hidden why; this says it.
        subprocess.run([str(python), "-m", "motarfuse", "build"], cwd=REPOSITORY)


if __name__ == "__main__":
    main()
