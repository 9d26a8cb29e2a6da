"""An accelerated vision transformer computes what it did, holds what it held, and says what was left alone."""

from __future__ import annotations

import copy
import io
import pickle
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import motarfuse
from tests.acceleration_cases import DEPTH, OPERATORS, check_same, count_calls, images, model_of, results, scale_of
from tests.tolerance import assert_close
from tests.vit_copies import MODELS, timm_like, torch_like


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> dict[str, int]:
    return count_calls(monkeypatch)


@pytest.fixture
def operators_on_a_cpu() -> Iterator[None]:
    with motarfuse.use_backend("reference"):
        yield


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("name", MODELS)
@pytest.mark.usefixtures("operators_on_a_cpu")
def test_outputs_and_gradients_are_the_models(name: str, training: bool, calls: dict[str, int]) -> None:
    report = check_same(model_of(name).train(training), calls)
    assert report.left == []
    assert len(report.replaced) == 3 * DEPTH
    attention = "motion_attention" if name.startswith("hf") else "motion_attention_packed"
    assert calls == dict.fromkeys(OPERATORS, 0) | {attention: DEPTH, "add_layer_norm": DEPTH, "bias_gelu": DEPTH}


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("timm", {"drop_path_rate": 0.4, "init_values": 0.5}),
        ("timm", {"init_values": 0.5, "proj_drop": 0.3}),
        ("timm", {"fused": False, "act_layer": torch_like.QuickGELU}),
        ("transreid", {"drop_path_rate": 0.4}),
        ("open_clip", {"ls_init_value": 0.5}),
        ("hf_clip", {"implementation": "eager"}),
        ("hf_dinov2", {"drop_path_rate": 0.4}),
        ("hf_dinov2_v5", {"drop_path_rate": 0.4}),
    ],
)
@pytest.mark.usefixtures("operators_on_a_cpu")
def test_dropout_stochastic_depth_and_layer_scale_are_honoured(
    name: str, options: dict[str, Any], calls: dict[str, int]
) -> None:
    for training in (True, False):
        model = model_of(name, **options).train(training)
        torch.manual_seed(7)
        own = model(images())
        assert len(check_same(model, calls).replaced) == 3 * DEPTH
        assert calls["add_layer_norm"] == calls["bias_gelu"] == DEPTH
        if training and (options.keys() & {"drop_path_rate", "dropout", "proj_drop"}):
            assert not torch.allclose(model.eval()(images()), own)  # the dropout did drop


@pytest.mark.parametrize(
    ("name", "options", "first"),
    [
        ("torchvision", {"dropout": 0.3}, "encoder.layers.encoder_layer_0"),
        ("hf_vit_v5", {"hidden_dropout": 0.3}, "layers.0"),
    ],
)
@pytest.mark.usefixtures("operators_on_a_cpu")
def test_a_blocks_dropout_is_honoured(name: str, options: dict[str, Any], first: str) -> None:
    # Which elements of a tensor are dropped depends on its strides, and torch's attention returns transposed tokens.
    model = model_of(name, **options).train()
    expected = results(copy.deepcopy(model).double(), torch.float64)
    eager = results(model)
    assert len(motarfuse.accelerate(model, attention=False).replaced) == 2 * DEPTH
    for key, value in results(model).items():
        assert_close(key, value, eager[key], expected[key], scale=scale_of(key, expected))
    motarfuse.accelerate(model)
    torch.manual_seed(0)
    block: Any = model.get_submodule(first)
    dropped = []
    block.dropout.register_forward_hook(lambda _, given, out: dropped.append((out == 0).float().mean().item()))
    for _ in range(20):
        model(images())
    assert sum(dropped) / len(dropped) == pytest.approx(0.3, abs=0.03)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", ["timm", "openai_clip", "hf_dinov2"])
@pytest.mark.usefixtures("operators_on_a_cpu")
def test_half_models_stay_half(name: str, dtype: torch.dtype) -> None:
    model = model_of(name).to(dtype).eval()
    for module in model.modules():
        if isinstance(module, torch_like.LayerNorm):
            module.float()  # as CLIP keeps them
    with torch.no_grad():
        expected = copy.deepcopy(model).double()(images(dtype).double())
        eager = model(images(dtype))
        motarfuse.accelerate(model)
        assert_close("output", model(images(dtype)), eager, expected)


@pytest.mark.parametrize("name", ["timm", "torchvision", "open_clip", "hf_clip"])
@pytest.mark.usefixtures("operators_on_a_cpu")
def test_autocast_gives_what_it_gave(name: str) -> None:
    options = {"init_values": 0.5} if name == "timm" else {}
    model = model_of(name, **options)
    expected = results(copy.deepcopy(model).double(), torch.float64)
    with torch.autocast("cpu", torch.bfloat16):
        eager = results(model)
        motarfuse.accelerate(model)
        found = results(model)
    for key, value in found.items():
        scale = scale_of(key, expected)
        assert_close(key, value, eager[key], expected[key], dtype=torch.bfloat16, scale=scale)


@pytest.mark.parametrize("name", MODELS)
def test_what_the_model_holds_is_what_it_held(name: str) -> None:
    model = model_of(name)
    state = {key: value.clone() for key, value in model.state_dict().items()}
    parameters = dict(model.named_parameters())
    attributes = {key: set(vars(module)) for key, module in model.named_modules()}
    kinds = {key: type(module) for key, module in model.named_modules()}
    motarfuse.accelerate(model)
    assert list(model.state_dict()) == list(state)
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())
    assert all(parameter is parameters[key] for key, parameter in model.named_parameters())
    assert list(parameters) == [key for key, _ in model.named_parameters()]
    assert {key: set(vars(module)) for key, module in model.named_modules()} == attributes
    assert all(isinstance(module, kinds[key]) for key, module in model.named_modules())
    assert any(type(module) is not kinds[key] for key, module in model.named_modules())
    doubled = {key: 2 * value for key, value in state.items()}
    assert str(model.load_state_dict(doubled)) == "<All keys matched successfully>"
    assert all(torch.equal(parameters[key], 2 * state[key]) for key in parameters)


@pytest.mark.parametrize("name", MODELS)
def test_restore_gives_every_module_its_class_back(name: str) -> None:
    model = model_of(name)
    kinds = {key: type(module) for key, module in model.named_modules()}
    own = model(images())
    report = motarfuse.accelerate(model)
    assert motarfuse.restore(model) == [one.name for one in report.replaced]
    assert {key: type(module) for key, module in model.named_modules()} == kinds
    assert torch.equal(model(images()), own)
    assert motarfuse.restore(model) == []


@pytest.mark.usefixtures("operators_on_a_cpu")
def test_an_optimizer_made_before_goes_on_training_the_model() -> None:
    losses: dict[bool, list[float]] = {}
    for accelerated in (False, True):
        model = model_of("timm", drop_path_rate=0.2, init_values=0.1)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
        if accelerated:
            motarfuse.accelerate(model)
        torch.manual_seed(3)
        losses[accelerated] = []
        for _ in range(4):
            optimizer.zero_grad()
            loss = model(images())[:, 0].square().mean()
            loss.backward()
            optimizer.step()
            losses[accelerated].append(loss.item())
    assert losses[True] == pytest.approx(losses[False], rel=1e-4)
    assert losses[True][-1] < 0.9 * losses[True][0]


def copied(model: nn.Module) -> nn.Module:
    return copy.deepcopy(model)


def pickled(model: nn.Module) -> nn.Module:
    return pickle.loads(pickle.dumps(model))


def pickled_as_of_old(model: nn.Module) -> nn.Module:
    return pickle.loads(pickle.dumps(model, protocol=1))


def saved(model: nn.Module) -> nn.Module:
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


@pytest.mark.parametrize("way", [copied, pickled, pickled_as_of_old, saved])
@pytest.mark.parametrize("name", MODELS)
@pytest.mark.usefixtures("operators_on_a_cpu")
def test_copies_are_accelerated_by_themselves(
    name: str, way: Callable[[nn.Module], nn.Module], calls: dict[str, int]
) -> None:
    model = model_of(name).eval()
    motarfuse.accelerate(model)
    calls.update(dict.fromkeys(OPERATORS, 0))
    other = way(model)
    out = model(images())
    count = dict(calls)
    assert torch.equal(other(images()), out)
    assert calls == {key: 2 * value for key, value in count.items()}
    with torch.no_grad():
        next(other.parameters()).zero_()
    assert torch.equal(model(images()), out)
    motarfuse.restore(model)
    calls.update(dict.fromkeys(OPERATORS, 0))
    other(images())
    assert calls == count
    motarfuse.restore(other)
    assert {type(module) for module in other.modules()} == {type(module) for module in model.modules()}


@pytest.mark.parametrize(
    ("name", "preferred"),
    [
        ("timm", "reference"),
        ("torchvision", "reference"),
        ("openai_clip", "reference"),
        ("hf_clip", "reference"),
        ("hf_dinov2", "reference"),
        ("hf_vit_v5", "reference"),
        ("timm", "auto"),
        ("transreid", "auto"),
        ("hf_vit", "auto"),
    ],
)
def test_the_whole_model_compiles_into_one_graph(name: str, preferred: str) -> None:
    model = model_of(name).eval()
    motarfuse.accelerate(model)
    with motarfuse.use_backend(preferred):
        own = results(model)
        torch.compiler.reset()
        compiled = results(torch.compile(model, fullgraph=True, backend="aot_eager"))
    expected = results(copy.deepcopy(model).double(), torch.float64)
    for key, value in compiled.items():
        name = key.removeprefix("_orig_mod.")
        assert_close(name, value, own[name], expected[name], scale=scale_of(name, expected))


@pytest.mark.usefixtures("operators_on_a_cpu")
def test_compiled_training_drops_paths_in_one_graph() -> None:
    model = model_of("timm", drop_path_rate=0.4, init_values=0.5)
    motarfuse.accelerate(model)
    torch.compiler.reset()
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    torch.manual_seed(5)
    expected = model(images())
    torch.manual_seed(5)
    torch.testing.assert_close(compiled(images()), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.usefixtures("operators_on_a_cpu")
def test_a_subclass_that_computes_the_same_is_replaced() -> None:
    class Renamed(timm_like.Block):
        def forward(self, x: Tensor, attn_mask: Tensor | None = None) -> Tensor:
            y = x.add(self.attn(self.norm1(x)))
            return y.add(self.mlp(self.norm2(y)))

    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 24, 8, 8), nn.Flatten(2), nn.Linear(16, 24), Renamed(24, 3))
    assert len(check_same(model).replaced) == 3


@pytest.mark.usefixtures("operators_on_a_cpu")
@pytest.mark.parametrize("name", ["transreid", "hf_clip"])
def test_a_scale_of_its_own_is_the_scores_scale(name: str, calls: dict[str, int]) -> None:
    model = model_of(name, **({"implementation": "eager"} if name == "hf_clip" else {}))
    module: Any
    for module in model.modules():
        if hasattr(module, "scale"):
            module.scale = 0.7
    assert check_same(model, calls).left == []
    assert calls["motion_attention"] + calls["motion_attention_packed"] == DEPTH


@pytest.mark.usefixtures("operators_on_a_cpu")
def test_a_slice_of_an_accelerated_sequential_and_a_longer_one_compute_what_they_hold() -> None:
    torch.manual_seed(0)
    mlp = torch_like.clip_mlp(24, nn.GELU)
    x = torch.randn(2, 5, 24)
    motarfuse.accelerate(mlp)
    torch.testing.assert_close(mlp[:2](x), F.gelu(mlp[0](x)))
    torch.testing.assert_close(mlp[1:](torch.ones(2, 96)), mlp[2](F.gelu(torch.ones(2, 96))))
    before = mlp(x)
    mlp.append(nn.ReLU())
    torch.testing.assert_close(mlp(x), before.relu())


@pytest.mark.parametrize("name", ["timm", "transreid", "hf_clip"])
def test_on_a_cpu_the_own_forward_runs_as_it_is_faster(name: str, calls: dict[str, int]) -> None:
    model = model_of(name).eval()
    own = model(images())
    motarfuse.accelerate(model)
    calls.update(dict.fromkeys(OPERATORS, 0))
    with torch.no_grad():
        assert torch.equal(model(images()), own)
    assert torch.equal(model(images()), own)
    assert calls == dict.fromkeys(OPERATORS, 0)


@pytest.mark.parametrize(
    ("flag", "kinds"),
    [("attention", {"Attention"}), ("norms", {"Block"}), ("mlp", {"Mlp"})],
)
def test_each_part_can_be_had_alone(flag: str, kinds: set[str]) -> None:
    model = model_of("timm")
    flags = {"attention": False, "norms": False, "mlp": False, flag: True}
    report = motarfuse.accelerate(model, **flags)
    assert {one.module for one in report.replaced} == kinds
    assert motarfuse.restore(model) == [one.name for one in report.replaced]


def test_asking_changes_nothing_but_classes() -> None:
    model = model_of("timm", drop_path_rate=0.3).eval()
    model.blocks[0].train()  # type: ignore[index, union-attr]
    modes = [module.training for module in model.modules()]
    state, numbers = torch.random.get_rng_state(), {key: value.clone() for key, value in model.state_dict().items()}
    motarfuse.accelerate(model)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert [module.training for module in model.modules()] == modes
    assert all(torch.equal(value, numbers[key]) for key, value in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())


def test_models_without_memory_are_recognised() -> None:
    with torch.device("meta"):
        model = timm_like.VisionTransformer()
        assert len(motarfuse.accelerate(model).replaced) == 3 * DEPTH


def test_the_report_reads_as_a_summary() -> None:
    model: Any = model_of("timm", depth=4, attn_drop=0.1)
    model.blocks[2].attn.q_norm = nn.LayerNorm(8)
    text = str(motarfuse.accelerate(model))
    assert text.splitlines() == [
        "11 modules replaced",
        "  blocks.* x 4 (Block): add_layer_norm (norm2)",
        "  blocks.*.attn x 3 (Attention): motion_attention_packed; its own forward while training, for its dropout of "
        "0.1",
        "  blocks.*.mlp x 4 (Mlp): bias_gelu (gelu)",
        "1 left alone",
        "  blocks.2.attn (Attention): it has a query norm (q_norm is LayerNorm)",
    ]
    again = motarfuse.accelerate(model)
    assert again.replaced == []
    assert sum(one.why == "it is accelerated already" for one in again.left) == 11
    assert str(motarfuse.accelerate(nn.Linear(2, 2))).startswith("nothing replaced")


def test_anything_but_a_module_is_refused() -> None:
    with pytest.raises(TypeError, match=r"torch\.nn\.Module, got dict"):
        motarfuse.accelerate({})  # type: ignore[arg-type]


def test_this_projects_own_layers_run_operators_by_themselves() -> None:
    layer = motarfuse.nn.Block(24, 3)
    report = motarfuse.accelerate(layer)
    assert report.replaced == []
    assert {one.why for one in report.left if one.module in ("Block", "Attention")} == {"it runs operators by itself"}


def check_library(model: nn.Module, given: Tensor, read: Callable[[Any], Tensor]) -> None:
    model = model.eval()
    with torch.no_grad(), motarfuse.use_backend("reference"):
        expected = read(copy.deepcopy(model).double()(given.double()))
        eager = read(model(given))
        report = motarfuse.accelerate(model)
        assert report.left == [], str(report)
        assert {one.by.split(" ")[0].removesuffix("_packed") for one in report.replaced} == {
            "motion_attention", "add_layer_norm", "bias_gelu"
        }  # fmt: skip
        assert_close("output", read(model(given)), eager, expected)


def test_timm_itself() -> None:
    timm = pytest.importorskip("timm")
    model = timm.create_model("vit_tiny_patch16_224", pretrained=False, img_size=64, num_classes=0)
    check_library(model, torch.randn(2, 3, 64, 64), lambda out: out)


def test_torchvision_itself() -> None:
    models = pytest.importorskip("torchvision.models")
    model = models.VisionTransformer(32, 8, 2, 3, 24, 96)
    check_library(model, torch.randn(2, 3, 32, 32), lambda out: out)


@pytest.mark.parametrize(
    ("kind", "config"),
    [("CLIPVisionModel", "CLIPVisionConfig"), ("ViTModel", "ViTConfig"), ("Dinov2Model", "Dinov2Config")],
)
def test_transformers_itself(kind: str, config: str) -> None:
    transformers = pytest.importorskip("transformers")
    sizes = {"hidden_size": 24, "num_attention_heads": 3, "num_hidden_layers": 2, "image_size": 32, "patch_size": 8}
    hidden = {"mlp_ratio": 4} if kind == "Dinov2Model" else {"intermediate_size": 96}
    model = getattr(transformers, kind)(getattr(transformers, config)(**sizes, **hidden))
    check_library(model, torch.randn(2, 3, 32, 32), lambda out: out.last_hidden_state)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", MODELS)
def test_on_a_gpu_the_operators_serve(name: str, dtype: torch.dtype, calls: dict[str, int]) -> None:
    model = model_of(name, dim=96) if not name.startswith("hf") else model_of(name, hidden_size=96)
    model = model.cuda().to(dtype).eval()
    given = images(dtype).cuda()
    with torch.no_grad():
        expected = copy.deepcopy(model).double()(given.double())
        eager = model(given)
        motarfuse.accelerate(model)
        calls.update(dict.fromkeys(OPERATORS, 0))
        assert_close("output", model(given), eager, expected)
    assert calls["motion_attention"] + calls["motion_attention_packed"] == DEPTH
