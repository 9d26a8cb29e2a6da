"""The whole network at base width: forward and backward in float32, by operators, against float64 definitions."""

from __future__ import annotations

import copy
import re
from collections import defaultdict

import pytest
import torch
from torch import Tensor

from motarfuse import use_backend
from motarfuse.models import MotarFuse, MotarFuseConfig
from tests.ops.kernel_cases import needs_native
from tests.tolerance import assert_close

IMAGES = 2


def drawn(seed: int, *sizes: int) -> Tensor:
    return torch.randn(*sizes, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def results(model: MotarFuse, dtype: torch.dtype, backend: str) -> dict[str, Tensor]:
    """What the network returns, and the gradients of all parameters, those of a block or another part as one vector."""
    model = copy.deepcopy(model).to(dtype)
    with use_backend(backend):
        output = model(drawn(1, IMAGES, 3, 256, 128).to(dtype))
        found = {"feature": output.feature, "part_features": output.part_features, "keypoints": output.keypoints,
                 "motion": output.motion, "part_visibility": output.part_visibility}  # fmt: skip
        loss = sum((drawn(2, *value.shape).to(dtype) * value).mean() for value in found.values())
        assert isinstance(loss, Tensor)
        loss.backward()
    gradients: dict[str, list[Tensor]] = defaultdict(list)
    for name, parameter in model.named_parameters():
        if parameter.grad is not None:
            numbered = re.match(r".*?\.\d+", name)
            gradients[numbered[0] if numbered else name.split(".")[0]].append(parameter.grad)
    joined = {f"grad {name}": torch.cat([one.flatten() for one in parts]) for name, parts in gradients.items()}
    return {**{name: value.detach() for name, value in found.items()}, **joined}


@needs_native
@pytest.mark.slow
def test_operators_at_base_width_are_as_accurate_as_the_definitions() -> None:
    torch.manual_seed(0)
    model = MotarFuse(MotarFuseConfig(size="base", num_parts=8)).train()
    with torch.no_grad():  # what starts at zero passes on no gradient
        for parameter in model.parameters():
            if not parameter.any():
                parameter.normal_(std=0.02)
    exact = results(model, torch.float64, "reference")
    eager = results(model, torch.float32, "reference")
    assert len(exact) > 30
    for backend in ("auto", "cpu"):
        found = results(model, torch.float32, backend)
        assert list(found) == list(exact)
        for name, value in found.items():
            assert_close(f"{backend}: {name}", value, eager[name], exact[name])
