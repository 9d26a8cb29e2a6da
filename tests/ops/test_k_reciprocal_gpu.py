"""The k-reciprocal CUDA kernels have the definitions' bits: on a GPU, and compiled for the host."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import torch

from motarfuse.ops.k_reciprocal import SCHEMAS, Functions
from tests.ops import emulation
from tests.ops.k_reciprocal_cases import Samples, run, samples
from tests.ops.kernel_cases import needs_native
from tests.ops.test_k_reciprocal import REFERENCE, cases

NAMES = ("neighbors", "expand", "normalize", "average", "overlap")


class Emulated:
    """The functions compiled for the host."""

    def __init__(self) -> None:
        for name in NAMES:
            setattr(self, name, getattr(torch.ops.motarfuse, f"k_reciprocal_{name}_emulated").default)


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory, repository: Path) -> ctypes.CDLL:
    for name in NAMES:
        torch.library.define(f"motarfuse::k_reciprocal_{name}_emulated", SCHEMAS[f"k_reciprocal_{name}"])
    entries = emulation.registration("k_reciprocal", *NAMES)
    return emulation.load("k_reciprocal", repository / "csrc", tmp_path_factory.mktemp("emulation"), entries)


# None: a single block walks over everything.
@pytest.fixture(params=[132, 0])
def emulated(request: pytest.FixtureRequest, library: ctypes.CDLL) -> Iterator[Any]:
    library.set_multiprocessors(request.param)
    yield Emulated()
    library.set_multiprocessors(132)


@cases
@pytest.mark.parametrize("hub", [False, True])
def test_emulated_kernels_have_the_definitions_bits(
    emulated: Any, seed: int, k: int, h: int, averaged: int, queries: int, hub: bool
) -> None:
    for count in (60, 300):
        case = samples(seed, count, hub=hub)
        for one, other in zip(
            run(emulated, case, k, h, averaged, queries), run(REFERENCE, case, k, h, averaged, queries), strict=True
        ):
            assert torch.equal(one, other)


@pytest.mark.gpu
@needs_native
@cases
@pytest.mark.parametrize("hub", [False, True])
def test_a_gpu_has_the_definitions_bits(seed: int, k: int, h: int, averaged: int, queries: int, hub: bool) -> None:
    native = Functions(list(SCHEMAS))
    for count in (60, 300, 3000):
        case = samples(seed, count, hub=hub)
        there = Samples(*(getattr(case, field.name).cuda() for field in fields(case)))
        for one, other in zip(
            run(native, there, k, h, averaged, queries), run(REFERENCE, case, k, h, averaged, queries), strict=True
        ):
            assert torch.equal(one.cpu(), other)
