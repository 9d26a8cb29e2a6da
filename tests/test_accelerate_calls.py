"""Calls that an accelerated module leaves to its own forward: masks, other sequences, dropped weights."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import motarfuse
from tests.acceleration_cases import DEPTH, OPERATORS, check_same, count_calls, model_of


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> dict[str, int]:
    return count_calls(monkeypatch)


@pytest.fixture
def operators_on_a_cpu() -> Iterator[None]:
    with motarfuse.use_backend("reference"):
        yield


@pytest.mark.usefixtures("operators_on_a_cpu")
def test_calls_with_masks_run_the_modules_own_forward(calls: dict[str, int]) -> None:
    tokens = torch.randn(2, 17, 24)
    mask = torch.zeros(17, 17).masked_fill(torch.ones(17, 17).triu(1).bool(), -torch.inf)
    heads = torch.tensor([1.0, 0.0, 1.0])[:, None, None]
    asked: list[tuple[str, dict[str, Any]]] = [
        ("timm", {"attn_mask": mask}),
        ("open_clip", {"attn_mask": mask}),
        ("hf_clip", {"attention_mask": mask, "causal_attention_mask": None}),
        ("hf_vit", {"head_mask": heads}),
        ("hf_vit", {"output_attentions": True}),
        ("hf_clip", {"attention_mask": None, "causal_attention_mask": None, "output_attentions": True}),
    ]
    for name, arguments in asked:
        model: Any = model_of(name).eval()
        block = next(
            each for each in model.modules() if type(each).__name__.endswith(("Block", "Layer", "EncoderLayer"))
        )
        expected = block(tokens, **arguments)
        motarfuse.accelerate(model)
        calls.update(dict.fromkeys(OPERATORS, 0))
        found = block(tokens, **arguments)
        assert calls["motion_attention"] == calls["motion_attention_packed"] == calls["add_layer_norm"] == 0, name
        for one, other in zip(found, expected, strict=True):
            torch.testing.assert_close(one, other)


@pytest.mark.usefixtures("operators_on_a_cpu")
def test_a_blocks_own_mask_reaches_its_attention(calls: dict[str, int]) -> None:
    mask = torch.zeros(17, 17).masked_fill(torch.ones(17, 17).triu(1).bool(), -torch.inf)
    check_same(model_of("openai_clip", attn_mask=mask).eval(), calls)
    assert calls["motion_attention_packed"] == 0
    assert calls["bias_gelu"] == DEPTH


@pytest.mark.usefixtures("operators_on_a_cpu")
@pytest.mark.parametrize("batch_first", [True, False])
def test_torchs_attention_of_anything_but_one_sequence_is_its_own(batch_first: bool, calls: dict[str, int]) -> None:
    torch.manual_seed(0)
    attention = nn.MultiheadAttention(24, 3, batch_first=batch_first)
    x, y = torch.randn(2, 7, 24), torch.randn(2, 7, 24)
    hidden = torch.zeros((2, 7) if batch_first else (7, 2), dtype=torch.bool)
    hidden[0, 0] = True
    asked: list[tuple[tuple[Tensor, ...], dict[str, Any]]] = [
        ((x, y, y), {"need_weights": False}),
        ((x, x, y), {"need_weights": False}),
        ((x, x, x), {}),
        ((x, x, x), {"average_attn_weights": False}),
        ((x, x, x), {"need_weights": False, "key_padding_mask": hidden}),
        ((x[0], x[0], x[0]), {"need_weights": False}),
    ]
    expected = [attention(*args, **kwargs) for args, kwargs in asked]
    assert len(motarfuse.accelerate(attention).replaced) == 1
    calls.update(dict.fromkeys(OPERATORS, 0))
    for (args, kwargs), (out, weights) in zip(asked, expected, strict=True):
        found, found_weights = attention(*args, **kwargs)
        assert torch.equal(found, out)
        assert (found_weights is None) == (weights is None)
    assert calls["motion_attention_packed"] == 0
    attention(x, x, x, need_weights=False)
    assert calls["motion_attention_packed"] == 1


@pytest.mark.usefixtures("operators_on_a_cpu")
@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("timm", {"attn_drop": 0.3}),
        ("transreid", {"attn_drop": 0.3}),
        ("torchvision", {"attention_dropout": 0.3}),
        ("hf_clip", {"attention_dropout": 0.3}),
        ("hf_vit", {"attention_dropout": 0.3}),
        ("hf_vit_v5", {"attention_dropout": 0.3}),
    ],
)
def test_dropped_weights_are_the_modules_own_while_training(
    name: str, options: dict[str, Any], calls: dict[str, int]
) -> None:
    report = check_same(model_of(name, **options).train(), calls)
    assert calls["motion_attention"] == calls["motion_attention_packed"] == 0
    assert calls["bias_gelu"] == DEPTH
    assert sum("dropout of 0.3" in one.note for one in report.replaced) == DEPTH
    check_same(model_of(name, **options).eval(), calls)
    assert calls["motion_attention"] + calls["motion_attention_packed"] == DEPTH
