"""An accelerated model under what others do to it: hooks, other modules, other forwards, other classes, copies."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

import motarfuse
from motarfuse import _native
from motarfuse.nn.acceleration import plan
from tests.acceleration_cases import DEPTH, OPERATORS, count_calls, images, model_of
from tests.vit_copies import timm_like


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> dict[str, int]:
    return count_calls(monkeypatch)


@pytest.fixture
def operators_on_a_cpu() -> Iterator[None]:
    with motarfuse.use_backend("reference"):
        yield


@pytest.mark.usefixtures("operators_on_a_cpu")
def test_hooks_and_modules_that_come_later_are_honoured(calls: dict[str, int]) -> None:
    model: Any = model_of("timm").eval()
    motarfuse.accelerate(model)
    calls.update(dict.fromkeys(OPERATORS, 0))
    model(images())
    assert calls["bias_gelu"] == calls["motion_attention_packed"] == calls["add_layer_norm"] == DEPTH
    seen = []

    def note(module: nn.Module, *_: Any) -> None:
        seen.append(module)

    block = model.blocks[0]
    watched = [block, block.attn, block.attn.qkv, block.attn.attn_drop, block.norm2, block.mlp.act, block.mlp.fc2]
    handles = [each.register_forward_hook(note) for each in watched]
    calls.update(dict.fromkeys(OPERATORS, 0))
    model(images())
    # Fused attention never calls its dropout, accelerated or not.
    assert {id(each) for each in seen} == {id(each) for each in watched if each is not block.attn.attn_drop}
    assert calls["bias_gelu"] == calls["motion_attention_packed"] == calls["add_layer_norm"] == DEPTH - 1
    for handle in handles:
        handle.remove()
    model(images())
    assert calls["bias_gelu"] == 2 * DEPTH - 1

    class Shifted(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) + 1

    torch.manual_seed(9)
    block.mlp.fc1 = Shifted(24, 96)
    block.attn.qkv = Shifted(24, 72)
    block.ls1, block.ls2, block.drop_path2 = nn.Identity(), timm_like.LayerScale(24, 0.3), Doubled()
    found = model(images())
    motarfuse.restore(model)
    torch.testing.assert_close(found, model(images()), rtol=1e-4, atol=1e-5)


class Doubled(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return 2 * x


@pytest.mark.usefixtures("operators_on_a_cpu")
def test_hooks_on_all_modules_see_each_call(calls: dict[str, int]) -> None:
    model: Any = model_of("timm").eval()
    seen: list[nn.Module] = []

    def note(module: nn.Module, *_: Any) -> None:
        seen.append(module)

    for register in (
        nn.modules.module.register_module_forward_hook, nn.modules.module.register_module_forward_pre_hook,
        nn.modules.module.register_module_full_backward_hook, nn.modules.module.register_module_full_backward_pre_hook,
    ):  # fmt: skip
        counts = []
        for change in (motarfuse.restore, motarfuse.accelerate):
            change(model)
            calls.update(dict.fromkeys(OPERATORS, 0))
            handle = register(note)
            model(images().requires_grad_()).sum().backward()
            handle.remove()
            counts.append(len(seen))
            seen.clear()
        assert counts[0] == counts[1]
        assert sum(calls.values()) == 0
    model(images())
    assert calls["bias_gelu"] == DEPTH


@pytest.mark.usefixtures("operators_on_a_cpu")
def test_ragged_sequences_take_the_way_that_they_took() -> None:
    attention = nn.MultiheadAttention(24, 2, batch_first=True).eval()
    ragged = torch.nested.nested_tensor([torch.randn(4, 24), torch.randn(6, 24)])
    with torch.no_grad():
        own = attention(ragged, ragged, ragged, need_weights=False)[0]
        motarfuse.accelerate(attention)
        found = attention(ragged, ragged, ragged, need_weights=False)[0]
    for one, other in zip(own.unbind(), found.unbind(), strict=True):
        assert torch.equal(one, other)


def test_a_forward_that_was_put_back_on_an_instance_is_none(calls: dict[str, int]) -> None:
    # What records outputs replaces the forward of an instance for a call, and sets it back to the bound method.
    model: Any = model_of("timm").eval()
    own = model(images())
    for module in model.modules():
        module.forward = module.forward
    report = motarfuse.accelerate(model)
    assert len(report.replaced) == 3 * DEPTH
    for module in model.modules():
        module.forward = module.forward
        module._kept_forward = module.forward
    with motarfuse.use_backend("reference"):
        calls.update(dict.fromkeys(OPERATORS, 0))
        model(images())
        assert calls["bias_gelu"] == DEPTH
        assert len(motarfuse.restore(model)) == 3 * DEPTH
        calls.update(dict.fromkeys(OPERATORS, 0))
        assert torch.equal(model(images()), own)
        tokens = torch.randn(2, 5, 24)
        assert torch.equal(model.blocks[0].mlp._kept_forward(tokens), model.blocks[0].mlp(tokens))
    assert calls == dict.fromkeys(OPERATORS, 0)


class Scaled(nn.Module):
    def forward(self, weight: Tensor) -> Tensor:
        return 2 * weight


@pytest.mark.usefixtures("operators_on_a_cpu")
def test_a_class_that_others_derived_is_not_taken_away(calls: dict[str, int]) -> None:
    torch.manual_seed(0)
    model: Any = nn.Sequential(timm_like.Mlp(24, 96), timm_like.Mlp(24, 96)).eval()
    x = torch.randn(2, 5, 24)
    motarfuse.accelerate(model)
    kinds = [type(module) for module in model]
    parametrize.register_parametrization(model[1].fc2, "weight", Scaled())
    model[1].register_parameter("gain", nn.Parameter(torch.ones(())))
    parametrize.register_parametrization(model[1], "gain", Scaled())
    own = model(x)
    with pytest.raises(RuntimeError, match="1 cannot be restored: it got another class, ParametrizedAcceleratedMlp"):
        motarfuse.restore(model)
    assert type(model[0]) is kinds[0]
    assert torch.equal(model(x), own)
    assert {one.why for one in motarfuse.accelerate(model).left} == {"it is accelerated already"}
    parametrize.remove_parametrizations(model[1], "gain")
    assert motarfuse.restore(model) == ["0", "1"]
    torch.testing.assert_close(model(x), own)
    calls.update(dict.fromkeys(OPERATORS, 0))
    model(x)
    assert calls["bias_gelu"] == 0


def test_a_class_derived_from_an_accelerated_one_is_copied() -> None:
    block: Any = timm_like.Block(24, 3)
    motarfuse.accelerate(block)
    block.__class__ = type("Wrapped", (type(block),), {})
    other = copy.deepcopy(block)
    assert type(other) is type(block)
    assert torch.equal(other(torch.ones(1, 5, 24)), block(torch.ones(1, 5, 24)))


@pytest.mark.skipif(not torch.distributed.is_available(), reason="torch was built without distributed")
def test_sharded_blocks_are_named_before_and_after(tmp_path: Path) -> None:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path / 'meet'}", rank=0, world_size=1)
    try:
        mesh = init_device_mesh("cpu", (1,))
        model = nn.Sequential(timm_like.Block(24, 3), timm_like.Block(24, 3))
        fully_shard(model[0], mesh=mesh)
        report = motarfuse.accelerate(model)
        assert "cannot be copied" in {one.name: one.why for one in report.left}["0"]
        assert "1" in {one.name for one in report.replaced}
        fully_shard(model[1], mesh=mesh)
        with pytest.raises(RuntimeError, match="1 cannot be restored: it got another class, FSDPAcceleratedBlock"):
            motarfuse.restore(model)
        assert model(torch.ones(1, 5, 24)).shape == (1, 5, 24)
    finally:
        torch.distributed.destroy_process_group()


def test_inference_mode_is_no_obstacle() -> None:
    with torch.inference_mode():
        assert len(motarfuse.accelerate(model_of("timm")).replaced) == 3 * DEPTH


def test_kernels_are_looked_for_where_the_model_runs(monkeypatch: pytest.MonkeyPatch, calls: dict[str, int]) -> None:
    class OnDevice:
        is_cuda = True
        is_nested = False
        device = torch.device("cuda")

    mlp = timm_like.Mlp(24, 96)
    motarfuse.accelerate(mlp)
    other: Any = pickle.loads(pickle.dumps(mlp))
    for has in (False, True):
        monkeypatch.setattr(plan, "_HAS_KERNEL", {("bias_gelu", torch.device("cuda")): has})
        assert plan.operators_serve(type(other).motarfuse_plan, OnDevice()) is has  # type: ignore[arg-type]
    monkeypatch.setattr(plan, "_HAS_KERNEL", {})
    assert plan.operator_has_kernel("bias_gelu", torch.device("cpu")) is _native.load_operators()
    assert list(plan._HAS_KERNEL) == [("bias_gelu", torch.device("cpu"))]


def test_the_search_for_kernels_is_no_part_of_a_compiled_graph(monkeypatch: pytest.MonkeyPatch) -> None:
    known = plan.operators()

    def asked() -> Any:
        torch._dynamo.graph_break()  # nothing where it is not compiled, an error in one graph
        return known

    monkeypatch.setattr(plan, "_HAS_KERNEL", {})
    monkeypatch.setattr(plan, "operators", asked)
    torch.compiler.reset()

    @torch.compile(fullgraph=True, backend="eager")
    def ask(x: Tensor) -> Tensor:
        return x + 1 if plan.operator_has_kernel("motion_attention", x.device) else x - 1

    assert torch.equal(ask(torch.ones(2)), torch.zeros(2))
