"""An accelerated MLP whose activation is no longer what it was: another function, another setting, another class's."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import motarfuse
from tests.acceleration_cases import OPERATORS, count_calls
from tests.vit_copies import hugging_face, timm_like


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> dict[str, int]:
    return count_calls(monkeypatch)


@pytest.fixture(autouse=True)
def _operators_on_a_cpu() -> Iterator[None]:
    with motarfuse.use_backend("reference"):
        yield


class FunctionMlp(nn.Module):
    """Whose activation is a function."""

    activation: Callable[[Tensor], Tensor]

    def __init__(self, activation: Callable[[Tensor], Tensor] | None = None) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(24, 96), nn.Linear(96, 24)
        if activation is not None:
            self.activation = activation

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.fc2(self.activation(self.fc1(x)))
        return out


class ClassMlp(FunctionMlp):
    """Its class's, which cannot be pickled."""

    activation = staticmethod(lambda x: F.gelu(x))


class MethodMlp(FunctionMlp):
    """A method of its own."""

    def activation(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(1.702 * x)


class OwnGelu(nn.Module):
    """As one of transformers', which calls a method of its own by an attribute."""

    def __init__(self) -> None:
        super().__init__()
        self.beta = 1.702
        self.act: Callable[[Tensor], Tensor] = self.quick

    def quick(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(self.beta * x)

    def forward(self, x: Tensor) -> Tensor:
        return self.act(x)


def make(kind: str) -> nn.Module:
    torch.manual_seed(0)
    made: dict[str, Callable[[], nn.Module]] = {
        "function": lambda: FunctionMlp(F.gelu),
        "partial": lambda: FunctionMlp(partial(F.gelu, approximate="tanh")),
        "class": ClassMlp,
        "method": MethodMlp,
        "gelu": lambda: timm_like.Mlp(24, 96),
        "own": lambda: timm_like.Mlp(24, 96, OwnGelu),
        "hugging_face": lambda: hugging_face.CLIPMLP(hugging_face.Config()),
    }
    return made[kind]()


KINDS = ["function", "partial", "class", "method", "gelu", "own", "hugging_face"]
CHANGES: list[tuple[str, Callable[[Any], None]]] = [
    ("function", lambda mlp: setattr(mlp, "activation", F.silu)),
    ("function", lambda mlp: setattr(mlp, "activation", partial(F.gelu, approximate="tanh"))),
    ("function", lambda mlp: setattr(mlp, "activation", nn.SiLU())),
    ("partial", lambda mlp: setattr(mlp, "activation", partial(F.gelu, approximate="none"))),
    ("partial", lambda mlp: mlp.activation.keywords.update(approximate="none")),
    ("class", lambda mlp: setattr(mlp, "activation", F.silu)),
    ("method", lambda mlp: setattr(mlp, "activation", F.silu)),
    ("gelu", lambda mlp: setattr(mlp, "act", nn.SiLU())),
    ("gelu", lambda mlp: setattr(mlp.act, "approximate", "tanh")),
    ("own", lambda mlp: setattr(mlp.act, "beta", 1.0)),
    ("own", lambda mlp: setattr(mlp.act, "act", F.silu)),
    ("hugging_face", lambda mlp: setattr(mlp.activation_fn, "act", F.silu)),
]


@pytest.mark.parametrize(("kind", "change"), CHANGES)
def test_an_activation_that_is_changed_later_is_honoured(
    kind: str, change: Callable[[Any], None], calls: dict[str, int]
) -> None:
    mlp, x = make(kind), torch.randn(2, 5, 24)
    assert len(motarfuse.accelerate(mlp).replaced) == 1
    calls.update(dict.fromkeys(OPERATORS, 0))
    mlp(x)
    assert calls["bias_gelu"] == 1
    change(mlp)
    found = mlp(x)
    assert calls["bias_gelu"] == 1
    motarfuse.restore(mlp)
    assert torch.equal(found, mlp(x))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("way", [copy.deepcopy, lambda module: pickle.loads(pickle.dumps(module))])
def test_copies_have_the_activation_that_was_found(
    kind: str, way: Callable[[nn.Module], nn.Module], calls: dict[str, int]
) -> None:
    mlp, x = make(kind), torch.randn(2, 5, 24)
    motarfuse.accelerate(mlp)
    other = way(mlp)
    calls.update(dict.fromkeys(OPERATORS, 0))
    assert torch.equal(other(x), mlp(x))
    assert calls["bias_gelu"] == 2
    assert type(other) is type(mlp)


@pytest.mark.parametrize("kind", KINDS)
def test_a_compiled_graph_is_made_again_for_another_activation(kind: str) -> None:
    mlp, x = make(kind), torch.randn(2, 5, 24)
    motarfuse.accelerate(mlp)
    torch.compiler.reset()
    compiled = torch.compile(mlp, fullgraph=True, backend="eager")
    assert torch.equal(compiled(x), mlp(x))
    for of_kind, change in CHANGES:
        if of_kind == kind:
            change(mlp)
            changed = compiled(x)
            motarfuse.restore(mlp)
            assert torch.equal(changed, mlp(x))
            return


class Unhashable:
    __hash__ = None  # type: ignore[assignment]

    def __call__(self, x: Tensor) -> Tensor:
        return F.gelu(x)


def test_an_activation_that_cannot_be_told_from_another_is_left_alone() -> None:
    (left,) = motarfuse.accelerate(FunctionMlp(Unhashable())).left
    assert left.why == "its activation could not be told from another later: TypeError: unhashable type: 'Unhashable'"


@pytest.mark.parametrize("activation", [F.silu, F.relu, torch.tanh, partial(F.leaky_relu, negative_slope=0.1)])
def test_a_function_that_was_set_before_is_told_by_its_values(activation: Callable[[Tensor], Tensor]) -> None:
    mlp: Any = timm_like.Mlp(24, 96)
    del mlp.act
    mlp.act = activation
    (left,) = motarfuse.accelerate(mlp).left
    assert left.why.startswith("its activation, ")
    assert left.why.endswith("is none of gelu, gelu_tanh and quick_gelu")
