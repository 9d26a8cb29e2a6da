"""What the tests of Triton kernels share. Where Triton cannot run, importing it skips the module that does so."""

from __future__ import annotations

import importlib.util

import pytest
import torch

if importlib.util.find_spec("triton") is None:
    pytest.skip("Triton is not installed", allow_module_level=True)

from motarfuse.kernels._runtime import reasons_against_triton

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
if reasons := reasons_against_triton(DEVICE):
    pytest.skip("; ".join(reasons), allow_module_level=True)

Backend = tuple[str, str]
# With a GPU nothing is interpreted.
INTERPRETER = pytest.param(
    ("triton", "cpu"), id="interpreter", marks=pytest.mark.skipif(DEVICE == "cuda", reason="Triton finds a GPU here")
)
GPU = pytest.param(("triton", "cuda"), id="cuda", marks=pytest.mark.gpu)
backends = pytest.mark.parametrize("backend", [INTERPRETER, GPU])
BACKEND: Backend = ("triton", DEVICE)
here = pytest.mark.gpu if DEVICE == "cuda" else pytest.mark.filterwarnings()
BFLOAT16 = pytest.param(torch.bfloat16, marks=pytest.mark.gpu, id="bfloat16")  # interpreted it is wrong
