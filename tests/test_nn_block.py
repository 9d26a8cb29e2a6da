"""The fused block: against float64 under every backend, chained and alone, with layer scale and stochastic depth."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.bench_block import BlockShape, Encoder, plain_block, plain_encoder
from motarfuse import _native
from motarfuse.nn import Block, DropPath, LayerScale, Mlp, PendingSum, VisualAdapter, add_norm, fused_steps
from motarfuse.ops import Request, operators, use_backend
from tests.ops.kernel_cases import count_runs
from tests.tolerance import assert_close

SMALL = BlockShape("small", 3, 2, 7, 12, 3)
BACKENDS = ("auto", "reference", "sdpa", "triton")
# Whether Triton takes tensors of a CPU: it interprets them, unless there is a GPU.
REQUEST = Request(torch.device("cpu"), {"x": torch.zeros(1, 1), "bias": None}, {"activation": "gelu"})


def trained(module: nn.Module, seed: int = 0) -> nn.Module:
    """With biases, norms and scales that matter."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            if parameter.ndim == 1:
                parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator).to(parameter))
    return module


def results(function: Callable[[Tensor], Tensor], module: nn.Module, tokens: Tensor) -> dict[str, Tensor]:
    """The output and all gradients, by name."""
    tokens = tokens.detach().requires_grad_()
    out = function(tokens)
    incoming = torch.randn(out.shape, generator=torch.Generator().manual_seed(5), dtype=torch.float64).to(out)
    names, parameters = zip(*module.named_parameters(), strict=True)
    gradients = torch.autograd.grad(out, (tokens, *parameters), incoming)
    return {"out": out.detach(), **dict(zip(("tokens", *names), gradients, strict=True))}


@pytest.fixture
def served(monkeypatch: pytest.MonkeyPatch) -> Counter[tuple[str, str]]:
    """Which backend ran for which operator."""
    return count_runs(monkeypatch)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("layer_scale", [None, 0.5])
def test_encoder_of_base_width_keeps_the_tolerance_rule(
    backend: str, layer_scale: float | None, served: Counter[tuple[str, str]]
) -> None:
    """Two blocks 768 wide with 12 heads; what is right is the plain formula in float64."""
    # Triton's interpreter takes a few ms a row; a length that is no power of two meets every mask.
    if backend == "triton" and (reasons := operators()["bias_gelu"].backends["triton"].not_supported_reasons(REQUEST)):
        pytest.skip("; ".join(reasons))
    check_encoder(BlockShape("base", 2, 1, 3 if backend == "triton" else 33, 768, 12), layer_scale, backend)
    steps = {one for operator, one in served if operator in ("add_layer_norm", "bias_gelu")}
    # The norms are too small here for their kernel to be worth its overhead.
    on_a_cpu = {"cpu", "reference"} if _native.load_operators() else {"reference"}
    assert steps == {"auto": set(), "sdpa": on_a_cpu}.get(backend, {backend})


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("layer_scale", [None, 0.5])
def test_encoder_of_base_width_keeps_the_tolerance_rule_on_a_gpu(
    layer_scale: float | None, dtype: torch.dtype, served: Counter[tuple[str, str]]
) -> None:
    check_encoder(BlockShape("base", 2, 2, 129, 768, 12), layer_scale, "auto", torch.device("cuda"), dtype)
    steps = ("add_layer_norm", "bias_gelu", "motion_attention")
    assert {backend for operator, backend in served if operator in steps} == {"triton"}


def check_encoder(
    shape: BlockShape, layer_scale: float | None, backend: str, device: torch.device | None = None,
    dtype: torch.dtype = torch.float32,
) -> None:  # fmt: skip
    """The rule for output and gradients, an encoder of blocks against the plain formula."""
    torch.manual_seed(0)
    encoder = trained(Encoder(shape, layer_scale=layer_scale)).to(device, dtype)
    assert isinstance(encoder, Encoder)
    tokens = torch.randn(shape.batch, shape.length, shape.dim).to(device, dtype)
    eager = results(lambda x: plain_encoder(encoder, x), encoder, tokens)
    double = copy.deepcopy(encoder).double()
    exact = results(lambda x: plain_encoder(double, x), double, tokens.double())
    with use_backend(backend):
        fused = results(encoder, encoder, tokens)
    largest = max(exact[name].abs().max().item() for name in exact if name.endswith("qkv.bias"))
    for name, wanted in exact.items():
        # Part of the gradient of qkv's bias, that of the keys, is zero but for rounding.
        assert_close(name, fused[name], eager[name], wanted, scale=largest if name.endswith("qkv.bias") else None)


@pytest.mark.parametrize("backend", ["auto", "reference"])
@pytest.mark.parametrize("num_outputs", [None, 1, 4])
@pytest.mark.parametrize("layer_scale", [None, 0.5])
@pytest.mark.parametrize("activation", ["gelu", "gelu_tanh", "quick_gelu"])
def test_block_equals_its_formula(
    backend: str, num_outputs: int | None, layer_scale: float | None, activation: Any
) -> None:
    torch.manual_seed(0)
    block = trained(Block(12, 3, layer_scale=layer_scale, activation=activation).double())
    assert isinstance(block, Block)
    tokens = torch.randn(2, 7, 12, dtype=torch.float64)
    expected = results(lambda x: plain_block(block, x)[:, :num_outputs], block, tokens)
    with use_backend(backend):
        got = results(lambda x: block(x, num_outputs), block, tokens)
        chained = results(lambda x: block(x, num_outputs, chained=True).tokens(), block, tokens)
    for name, wanted in expected.items():
        torch.testing.assert_close(got[name], wanted, msg=name)
        assert torch.equal(chained[name], got[name])


def test_every_memory_bound_step_is_an_operator_where_a_backend_is_preferred(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[str] = []
    for name in ("add_layer_norm", "bias_gelu", "motion_attention", "motion_attention_packed"):
        original = getattr(fused_steps, name)

        def watched(*args: Any, original: Any = original, name: str = name, **options: Any) -> Any:
            seen.append(name)
            return original(*args, **options)

        monkeypatch.setattr(fused_steps, name, watched)
    block, tokens = Block(12, 3), torch.randn(2, 7, 12)
    block(tokens)
    assert seen == []  # on a CPU, PyTorch's functions: calling operators would make a narrow block slower
    with use_backend("reference"):
        middle = block(tokens, chained=True)
        # norm1 has no addition before it, and the last addition waits for whoever normalises.
        assert seen == ["motion_attention_packed", "add_layer_norm", "bias_gelu"]
        block(middle, 2)
        assert seen[3:] == ["add_layer_norm", "motion_attention", "add_layer_norm", "bias_gelu"]


@pytest.mark.parametrize("backend", ["auto", "reference"])
def test_chained_blocks_and_adapters_equal_one_after_the_other(backend: str) -> None:
    torch.manual_seed(0)
    blocks = nn.ModuleList(Block(12, 3, layer_scale=0.5, drop_path=0.4) for _ in range(3)).double()
    adapters = nn.ModuleList(VisualAdapter(12) for _ in range(3)).double()
    norm = nn.LayerNorm(12).double()
    for module in (blocks, adapters, norm):
        trained(module)
    with torch.no_grad():
        for adapter in adapters:
            adapter.get_submodule("up").get_parameter("weight").normal_()
    mask = torch.tensor([[True, True, False], [True, True, True]])
    tokens = torch.randn(6, 7, 12, dtype=torch.float64)  # frames of two clips

    def apart() -> Tensor:
        out = tokens
        for block, adapter in zip(blocks, adapters, strict=True):
            out = adapter(block(out).unflatten(0, mask.shape), mask).flatten(0, 1)
        return norm(out)

    def chained() -> Tensor:
        out: Tensor | PendingSum = tokens
        for block, adapter in zip(blocks, adapters, strict=True):
            out = adapter(block(out, chained=True), mask, chained=True)
        return add_norm(out, norm)[0]

    torch.manual_seed(1)
    expected = apart()
    torch.manual_seed(1)
    with use_backend(backend):
        torch.testing.assert_close(chained(), expected)


@pytest.mark.parametrize("backend", ["auto", "reference"])
def test_stochastic_depth_draws_once_a_branch_and_drops_the_same_samples_in_every_precision(backend: str) -> None:
    torch.manual_seed(0)
    block = Block(12, 3, drop_path=0.5)
    tokens = torch.randn(64, 4, 12)
    drop = DropPath(0.5)
    torch.manual_seed(2)
    kept = [drop(torch.ones(64, 1)).bool()[:, 0] for _ in range(2)]
    double = copy.deepcopy(block).double()
    for module, cast in ((block, False), (block, True), (double, False)):
        torch.manual_seed(2)
        dtype = module.norm1.weight.dtype
        with use_backend(backend), torch.autocast("cpu", dtype=torch.bfloat16, enabled=cast):
            out = module(tokens.to(dtype))
        untouched = (out == tokens.to(dtype)).flatten(1).all(1)
        assert torch.equal(untouched, ~(kept[0] | kept[1]))
    assert 10 < untouched.sum() < 22  # a quarter of 64
    torch.testing.assert_close(block.eval()(tokens)[:1], block(tokens[:1]))


def test_sample_scale_is_what_drop_path_multiplies_with() -> None:
    drop, branch = DropPath(0.3), torch.randn(9, 4, 5)
    torch.manual_seed(3)
    expected = drop(branch)
    torch.manual_seed(3)
    scale = drop.sample_scale(branch)
    assert scale is not None
    assert scale.dtype == torch.float32
    assert torch.equal(PendingSum(torch.zeros_like(branch), branch, None, scale).tokens(), expected)
    assert drop.sample_scale(branch.bfloat16()).dtype == torch.float32  # type: ignore[union-attr]
    assert drop.eval().sample_scale(branch) is None


def test_layer_scale_has_timms_names_and_starts_where_it_is_told() -> None:
    block = Block(8, 2, layer_scale=1e-5)
    assert {name for name in block.state_dict() if name.startswith("ls")} == {"ls1.gamma", "ls2.gamma"}
    assert torch.equal(block.state_dict()["ls2.gamma"], torch.full((8,), 1e-5))
    assert not any(name.startswith("ls") for name in Block(8, 2).state_dict())
    branch = torch.randn(2, 8)
    assert torch.equal(LayerScale(8, 0.25)(branch), 0.25 * branch)


@pytest.mark.parametrize("backend", ["auto", "reference"])
def test_what_leaves_a_chain_is_float32_under_autocast(backend: str) -> None:
    """A last layer norm rounded to half would cost the features half their digits."""
    torch.manual_seed(0)
    encoder = Encoder(SMALL)
    tokens = torch.randn(SMALL.batch, SMALL.length, SMALL.dim)
    with use_backend(backend), torch.autocast("cpu", dtype=torch.bfloat16):
        out = encoder(tokens)
        pending = encoder.blocks[0](tokens, chained=True)
        narrow = add_norm(pending, encoder.blocks[1].get_submodule("norm1"))[0]
    assert out.dtype == torch.float32
    assert not torch.equal(out, out.bfloat16().float())
    assert (pending.residual.dtype, pending.branch.dtype) == (torch.float32, torch.bfloat16)
    if backend == "reference":
        assert narrow.dtype == torch.bfloat16  # what the next product takes, written once


class Doubled(nn.Linear):
    """Stands for an adapted or quantised layer."""

    def forward(self, input: Tensor) -> Tensor:
        return 2 * super().forward(input)


@pytest.mark.parametrize("backend", ["auto", "reference"])
def test_other_modules_in_place_of_norms_and_layers_are_called(backend: str) -> None:
    torch.manual_seed(0)
    block, tokens = Block(8, 2), torch.randn(2, 3, 8)
    block.mlp.fc1 = Doubled(8, 32)
    block.norm2 = nn.RMSNorm(8)  # type: ignore[assignment]
    with torch.no_grad():
        middle = tokens + block.attn(block.norm1(tokens))
        hidden = F.gelu(2 * F.linear(block.norm2(middle), block.mlp.fc1.weight, block.mlp.fc1.bias))
        expected = middle + block.mlp.fc2(hidden)
        with use_backend(backend):
            torch.testing.assert_close(block(tokens), expected)


@pytest.mark.parametrize("backend", ["auto", "reference"])
def test_hooks_of_norms_and_layers_run(backend: str) -> None:
    torch.manual_seed(0)
    block, tokens = Block(8, 2, layer_scale=0.5, drop_path=0.2).eval(), torch.randn(2, 3, 8)
    expected, seen = block(tokens), []
    names = ["norm1", "ls1", "norm2", "mlp.fc1", "ls2"]
    for name in names:
        hook = block.get_submodule(name).register_forward_hook(lambda *_, name=name: seen.append(name))
        with use_backend(backend):
            torch.testing.assert_close(block(tokens), expected)
        hook.remove()
    hook = block.drop_path.register_forward_hook(lambda *_: seen.append("drop"))
    torch.testing.assert_close(block(tokens), expected)
    hook.remove()
    assert seen == [*names, "drop", "drop"]


@pytest.mark.parametrize("backend", ["auto", "reference"])
def test_what_stands_in_place_of_scale_and_depth_or_of_a_forward_is_called(backend: str) -> None:
    torch.manual_seed(0)
    block, tokens = Block(8, 2, layer_scale=0.5, drop_path=0.4), torch.randn(2, 3, 8)
    block.drop_path = nn.Identity()  # type: ignore[assignment]
    scale = nn.Linear(8, 8)
    block.ls1 = scale  # type: ignore[assignment]
    original = block.mlp.fc1.forward
    vars(block.mlp.fc1)["forward"] = lambda x: 3 * original(x)
    with torch.no_grad():
        middle = tokens + scale(block.attn(block.norm1(tokens)))
        expected = middle + 0.5 * block.mlp.fc2(F.gelu(3 * original(block.norm2(middle))))
        with use_backend(backend):
            torch.testing.assert_close(block(tokens), expected)


def test_forward_hooks_of_chained_blocks_run_and_see_the_sum() -> None:
    encoder = Encoder(SMALL)
    tokens = torch.randn(SMALL.batch, SMALL.length, SMALL.dim)
    seen: list[Tensor] = []
    hook = encoder.blocks[1].register_forward_hook(lambda _module, _args, out: seen.append(out.tokens()))
    encoder(tokens)
    hook.remove()
    torch.testing.assert_close(seen[0], encoder.blocks[1](encoder.blocks[0](tokens)))


def test_unknown_activation_is_refused() -> None:
    with pytest.raises(ValueError, match="gelu, gelu_tanh, quick_gelu, got 'relu'"):
        Mlp(4, 8, activation="relu")  # type: ignore[arg-type]


@pytest.mark.parametrize("backend", ["auto", "reference"])
def test_empty_batch(backend: str) -> None:
    encoder, tokens = Encoder(SMALL), torch.empty(0, SMALL.length, SMALL.dim, requires_grad=True)
    with use_backend(backend):
        out = encoder(tokens)
        out.sum().backward()
    assert out.shape == tokens.shape
    assert all(torch.equal(one.grad, torch.zeros_like(one)) for one in encoder.parameters() if one.grad is not None)
