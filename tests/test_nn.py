"""Layers and losses: compared with brute force, with PyTorch's own, and with finite differences."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from motarfuse.nn import Block, BNNeck, DropPath, IdLoss, TripletLoss


def gradient(tensor: Tensor) -> Tensor:
    """The gradient that a backward pass has left."""
    assert tensor.grad is not None
    return tensor.grad


def brute_force_triplet(features: Tensor, labels: Tensor, margin: float | None, metric: str) -> tuple[float, int]:
    """The definition, anchor by anchor."""
    terms, skipped = [], 0
    rows = features.double()

    def distance(a: Tensor, b: Tensor) -> float:
        if metric == "cosine":
            return 1 - float(F.cosine_similarity(a, b, dim=0))
        return math.sqrt(max(float((a - b).square().sum()), 1e-12))

    for i in range(len(rows)):
        others = [j for j in range(len(rows)) if j != i]
        positives = [distance(rows[i], rows[j]) for j in others if labels[j] == labels[i]]
        negatives = [distance(rows[i], rows[j]) for j in others if labels[j] != labels[i]]
        if not positives or not negatives:
            skipped += 1
            continue
        gap = max(positives) - min(negatives)
        terms.append(math.log1p(math.exp(gap)) if margin is None else max(0.0, gap + margin))
    return (sum(terms) / len(terms) if terms else 0.0), skipped


@pytest.mark.parametrize("metric", ["euclidean", "cosine"])
@pytest.mark.parametrize("margin", [None, 0.0, 0.3])
@pytest.mark.parametrize("labels", [[0, 0, 1, 1, 2, 2], [0, 0, 0, 1, 2, 2], [3, 3, 3, 3, 3, 9]])
def test_triplet_loss_equals_the_definition(metric: str, margin: float | None, labels: list[int]) -> None:
    features = torch.randn(6, 5, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    loss = TripletLoss(margin, metric)
    value = loss(features, torch.tensor(labels))
    expected, skipped = brute_force_triplet(features, torch.tensor(labels), margin, metric)
    assert value.item() == pytest.approx(expected, rel=1e-12)
    assert loss.skipped.item() == skipped


@pytest.mark.parametrize("labels", [[1, 1, 1, 1], [0, 1, 2, 3], [5]])
def test_triplet_loss_without_any_pair_is_zero_with_zero_gradients(labels: list[int]) -> None:
    features = torch.randn(len(labels), 3, requires_grad=True)
    loss = TripletLoss()
    value = loss(features, torch.tensor(labels))
    value.backward()
    assert value.item() == 0
    assert loss.skipped.item() == len(labels)
    assert torch.equal(gradient(features), torch.zeros_like(features))


def test_triplet_loss_of_an_empty_batch_is_zero() -> None:
    features = torch.empty(0, 3, requires_grad=True)
    value = TripletLoss()(features, torch.empty(0, dtype=torch.int64))
    value.backward()
    assert value.item() == 0


@pytest.mark.parametrize("metric", ["euclidean", "cosine"])
def test_triplet_gradient_is_finite_and_zero_for_identical_features(metric: str) -> None:
    features = torch.ones(4, 3, requires_grad=True)
    value = TripletLoss(metric=metric)(features, torch.tensor([0, 0, 1, 1]))
    value.backward()
    assert value.item() == pytest.approx(math.log(2))
    assert torch.isfinite(gradient(features)).all()
    if metric == "euclidean":
        assert torch.equal(gradient(features), torch.zeros_like(features))


def test_triplet_ties_take_the_lowest_index() -> None:
    # Negatives 1 and 2 are equally near to anchor 0: only the first of them may be pushed away.
    features = torch.tensor([[0.0, 0.0], [1.0, 0.0], [-1.0, 0.0], [0.0, 3.0]], requires_grad=True)
    TripletLoss(margin=10.0)(features, torch.tensor([0, 1, 2, 0])).backward()
    alone = torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.0, 3.0]], requires_grad=True)
    TripletLoss(margin=10.0)(alone, torch.tensor([0, 1, 0])).backward()
    assert torch.equal(gradient(features)[2], torch.zeros(2))
    torch.testing.assert_close(gradient(features)[1], gradient(alone)[1])


def test_triplet_loss_is_fp32_inside_autocast_and_for_half_features() -> None:
    features = 300 * torch.randn(6, 64, generator=torch.Generator().manual_seed(2))
    labels = torch.tensor([0, 0, 1, 1, 2, 2])
    expected = TripletLoss()(features.half().float(), labels)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(TripletLoss()(features.half().float(), labels), expected)
    value = TripletLoss()(features.half(), labels)  # squares of these differences overflow fp16
    assert value.dtype == torch.float32
    assert torch.equal(value, expected)


@pytest.mark.parametrize("metric", ["euclidean", "cosine"])
@pytest.mark.parametrize("margin", [None, 0.3])
def test_triplet_gradcheck(metric: str, margin: float | None) -> None:
    features = torch.randn(6, 4, generator=torch.Generator().manual_seed(3), dtype=torch.float64, requires_grad=True)
    labels = torch.tensor([0, 0, 1, 1, 1, 2])
    assert torch.autograd.gradcheck(lambda x: TripletLoss(margin, metric)(x, labels), features)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [({"metric": "manhattan"}, "euclidean, cosine"), ({"margin": -0.1}, "-0.1"), ({"margin": math.nan}, "nan")],
)
def test_triplet_refuses_what_it_does_not_know(arguments: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TripletLoss(**arguments)


def test_triplet_refuses_labels_of_another_length() -> None:
    with pytest.raises(ValueError, match=r"labels must be \(B,\) = \(4,\) to fit features; got shape \(5,\)"):
        TripletLoss()(torch.zeros(4, 3), torch.zeros(5, dtype=torch.int64))


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_id_loss_equals_cross_entropy_and_skips_ignored_labels(smoothing: float) -> None:
    torch.manual_seed(0)
    loss = IdLoss(8, 5, smoothing).double()
    with torch.no_grad():
        loss.weight.normal_()
    features = torch.randn(7, 8, dtype=torch.float64)
    labels = torch.tensor([0, 4, -100, 2, 2, -100, 1])
    kept = labels != -100
    expected = F.cross_entropy(features[kept] @ loss.weight.T, labels[kept], label_smoothing=smoothing)
    torch.testing.assert_close(loss(features, labels), expected)


def test_id_loss_with_nothing_to_count_is_zero_with_zero_gradients() -> None:
    loss = IdLoss(3, 4)
    features = torch.randn(2, 3, requires_grad=True)
    value = loss(features, torch.full((2,), -100))
    value.backward()
    assert value.item() == 0
    assert torch.equal(gradient(features), torch.zeros(2, 3))
    assert loss(torch.empty(0, 3), torch.empty(0, dtype=torch.int64)).item() == 0


def test_id_loss_gradcheck() -> None:
    torch.manual_seed(0)
    loss = IdLoss(4, 3).double()
    with torch.no_grad():
        loss.weight.normal_()
    features = torch.randn(5, 4, dtype=torch.float64, requires_grad=True)
    labels = torch.tensor([0, 2, 1, 1, -100])

    def value(x: Tensor, weight: Tensor) -> Tensor:
        return torch.func.functional_call(loss, {"weight": weight}, (x, labels))

    assert torch.autograd.gradcheck(value, (features, loss.weight))


def test_id_loss_starts_near_the_uniform_distribution() -> None:
    torch.manual_seed(0)
    loss = IdLoss(64, 100)
    assert loss(torch.randn(32, 64), torch.arange(32)).item() == pytest.approx(math.log(100), rel=0.01)
    assert [name for name, _ in loss.named_parameters()] == ["weight"]


def test_bnneck_is_batch_norm_whose_bias_never_moves() -> None:
    neck = BNNeck(4)
    features = torch.randn(6, 4)
    expected = (features - features.mean(0)) / (features.var(0, unbiased=False) + neck.eps).sqrt()
    torch.testing.assert_close(neck(features), expected)
    assert set(neck.state_dict()) == set(torch.nn.BatchNorm1d(4).state_dict())
    optimizer = torch.optim.SGD([p for p in neck.parameters() if p.requires_grad], lr=1.0)
    neck(features).square().sum().backward()
    optimizer.step()
    assert torch.equal(neck.bias, torch.zeros(4))
    assert not torch.equal(neck.weight, torch.ones(4))


def test_bnneck_names_the_reason_for_a_single_training_sample() -> None:
    with pytest.raises(ValueError, match="at least 2 samples"):
        BNNeck(4)(torch.randn(1, 4))
    assert BNNeck(4).eval()(torch.randn(1, 4)).shape == (1, 4)


def explicit_block(block: Block, tokens: Tensor, heads: int) -> Tensor:
    """The block's formula with an explicit N x N softmax."""
    batch, length, dim = tokens.shape
    width = dim // heads
    normed = F.layer_norm(tokens, (dim,), block.norm1.weight, block.norm1.bias, 1e-6)
    q, k, v = (normed @ block.attn.qkv.weight.T + block.attn.qkv.bias).split(dim, -1)
    q, k, v = (part.reshape(batch, length, heads, width).permute(0, 2, 1, 3) for part in (q, k, v))
    weights = torch.softmax(q @ k.mT / math.sqrt(width), -1)
    mixed = (weights @ v).permute(0, 2, 1, 3).reshape(batch, length, dim)
    tokens = tokens + mixed @ block.attn.proj.weight.T + block.attn.proj.bias
    normed = F.layer_norm(tokens, (dim,), block.norm2.weight, block.norm2.bias, 1e-6)
    hidden = normed @ block.mlp.fc1.weight.T + block.mlp.fc1.bias
    hidden = hidden * 0.5 * (1 + torch.erf(hidden / math.sqrt(2)))
    return tokens + hidden @ block.mlp.fc2.weight.T + block.mlp.fc2.bias


def test_block_equals_its_formula() -> None:
    torch.manual_seed(0)
    block = Block(12, 3).double()
    tokens = torch.randn(2, 5, 12, dtype=torch.float64)
    torch.testing.assert_close(block(tokens), explicit_block(block, tokens, 3))


@pytest.mark.parametrize("num_outputs", [1, 3, 5])
@pytest.mark.parametrize("qkv_bias", [True, False])
def test_block_of_leading_tokens_is_the_start_of_the_whole(num_outputs: int, qkv_bias: bool) -> None:
    torch.manual_seed(0)
    block = Block(12, 3, qkv_bias=qkv_bias).double()
    tokens = torch.randn(2, 5, 12, dtype=torch.float64)
    part, whole = block(tokens, num_outputs), block(tokens)[:, :num_outputs]
    torch.testing.assert_close(part, whole)
    for ours, expected in zip(
        torch.autograd.grad(part.square().sum(), list(block.parameters())),
        torch.autograd.grad(whole.square().sum(), list(block.parameters())),
        strict=True,
    ):
        torch.testing.assert_close(ours, expected)


def test_block_gradcheck() -> None:
    torch.manual_seed(0)
    block = Block(4, 2, mlp_ratio=2).double()
    assert torch.autograd.gradcheck(block, torch.randn(1, 3, 4, dtype=torch.float64, requires_grad=True))


def test_block_has_timms_parameter_names() -> None:
    layers = ("norm1", "attn.qkv", "attn.proj", "norm2", "mlp.fc1", "mlp.fc2")
    assert set(Block(8, 2).state_dict()) == {f"{layer}.{kind}" for layer in layers for kind in ("weight", "bias")}


def test_block_refuses_heads_that_do_not_divide_the_width() -> None:
    with pytest.raises(ValueError, match="dim 10 and heads 3"):
        Block(10, 3)


def test_drop_path_drops_whole_samples_and_keeps_the_mean() -> None:
    torch.manual_seed(0)
    drop = DropPath(0.25)
    out = drop(torch.ones(4000, 3, 2))
    per_sample = out.flatten(1)
    assert torch.equal(per_sample.min(1).values, per_sample.max(1).values)
    assert sorted(set(per_sample[:, 0].tolist())) == pytest.approx([0, 4 / 3])
    # 4,000 draws of Bernoulli(0.75): four standard deviations of the mean are 0.036.
    assert out.mean().item() == pytest.approx(1, abs=0.04)
    assert torch.equal(drop.eval()(torch.ones(2, 3)), torch.ones(2, 3))


def test_drop_path_refuses_probability_one() -> None:
    with pytest.raises(ValueError, match=r"\[0, 1\)"):
        DropPath(1.0)
