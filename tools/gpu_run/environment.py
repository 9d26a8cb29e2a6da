"""The GPU, and a Python whose torch sees it and which finds this checkout whole; nothing is installed for that."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tools import bootstrap

REPOSITORY = Path(__file__).resolve().parent.parent.parent

PROBE = """
import importlib.util, json
import torch
try:
    kernels = importlib.util.find_spec("motarfuse.kernels")
except ModuleNotFoundError:
    kernels = None
print(json.dumps({"cuda": torch.cuda.is_available(), "kernels": kernels.origin if kernels else ""}))
"""
FINDER = '''"""Finds motarfuse in a checkout, where motarfuse.kernels is the folder kernels/."""

import importlib.util
import pathlib
import sys

ROOT = pathlib.Path({root!r})
FOLDERS = {{"motarfuse": ROOT / "motarfuse", "motarfuse.kernels": ROOT / "kernels"}}


class Finder:
    @staticmethod
    def find_spec(name, path=None, target=None):
        folder = FOLDERS.get(name)
        if folder is None:
            return None
        file = folder / "__init__.py"
        return importlib.util.spec_from_file_location(name, file, submodule_search_locations=[str(folder)])


sys.meta_path.append(Finder)
'''


@dataclass(frozen=True)
class Gpu:
    """The first GPU, as nvidia-smi tells it."""

    name: str
    capability: str
    driver: str

    @property
    def architecture(self) -> str:
        """For TORCH_CUDA_ARCH_LIST; Hopper's own instructions need the suffix."""
        return self.capability + ("a" if self.capability == "9.0" else "")


def find_gpu() -> Gpu | None:
    """None where nvidia-smi or a GPU is missing."""
    if shutil.which("nvidia-smi") is None:
        return None
    query = ["nvidia-smi", "--query-gpu=name,compute_cap,driver_version", "--format=csv,noheader"]
    result = subprocess.run(query, capture_output=True, text=True, check=False)
    fields = [word.strip() for word in result.stdout.split("\n")[0].split(",")]
    return Gpu(*fields) if result.returncode == 0 and len(fields) == 3 else None


def find_python(folder: Path) -> tuple[str, str]:
    """A Python for the run, and "" or why there is none.

    The environment of `make`, or the Python that runs this, where torch sees the GPU and motarfuse is this checkout;
    else a new environment in ``folder`` that sees this Python's packages, without pip and without a network.
    """
    candidates = (str(REPOSITORY / ".venv" / "bin" / "python"), sys.executable)
    answers = {python: _probe(python) for python in candidates}
    for python, answer in answers.items():
        if answer.get("cuda") and _is_this_checkout(answer):
            return python, ""
    if not answers[sys.executable]:
        return "", f"{sys.executable} cannot import torch; run this with a Python that can, or `make build` first"
    if not answers[sys.executable]["cuda"]:
        return "", f"the torch of {sys.executable} sees no GPU; run this with a Python whose torch does"
    return linked_python(folder)


def linked_python(folder: Path) -> tuple[str, str]:
    """A virtual environment in ``folder``: this Python's packages, and this checkout as if it were installed in place.

    Returns:
        Its Python, and "" or why it does not work.
    """
    python = bootstrap.create(folder)
    site = bootstrap.ask(python, "import sysconfig; print(sysconfig.get_path('purelib'))")
    if site is None:
        return "", f"{python} does not run; remove {folder} and try again"
    # A line of a .pth file that begins with `import` is run when Python starts; PYTHONPATH could name no module.
    Path(site, "motarfuse_checkout.py").write_text(FINDER.format(root=str(REPOSITORY)))
    Path(site, "motarfuse-checkout.pth").write_text("import motarfuse_checkout\n")
    if not _is_this_checkout(_probe(str(python))):
        return "", f"{python} does not find motarfuse; remove {folder} and try again"
    return str(python), ""


def _probe(python: str) -> dict[str, Any]:
    answer = bootstrap.ask(python, PROBE) if Path(python).exists() else None
    return dict(json.loads(answer.splitlines()[-1])) if answer else {}


def _is_this_checkout(answer: dict[str, Any]) -> bool:
    kernels = answer.get("kernels")
    return bool(kernels) and Path(str(kernels)).resolve().parent == REPOSITORY / "kernels"
