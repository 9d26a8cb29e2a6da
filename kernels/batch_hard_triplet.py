"""batch_hard_triplet in Triton: what a call launches, with which tiles.

The kernels are in batch_hard_triplet_kernels.py.

Tiles are chosen by what the compiler says of them: 16-byte loads, no spilled registers, fewest instructions for a
column of a pair (docs/kernels/static_report.csv). None has been timed on a GPU yet.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import triton
from motarfuse.kernels._launch import TYPES, Launch, device_of
from motarfuse.kernels._runtime import reasons_against_call
from motarfuse.kernels.batch_hard_triplet_kernels import (
    batch_hard_triplet_bwd_kernel,
    batch_hard_triplet_loss_kernel,
    batch_hard_triplet_mine_kernel,
    batch_hard_triplet_norm_kernel,
)

# Tiles that are enough for a large GPU: two on each of 132 multiprocessors.
BUSY = 264
# Programs of the mining that even out the last wave, and the most shares of the others that the loss has to read.
PROGRAMS, MAX_SPLITS = 2112, 32
# Anchors times shares that the loss holds at once.
LOSS_TILE = 2048


def not_supported_reasons(request: Any) -> list[str]:
    """Every reason against a request (``motarfuse.ops.Request``) of batch_hard_triplet."""
    return reasons_against_call(request, "features")


class MiningTiles(NamedTuple):
    """Anchors, others and columns of a tile, two warps; columns are copied ahead of their use."""

    block_m: int
    block_n: int
    block_d: int


def mining_tiles(batch: int) -> MiningTiles:
    """The larger takes 3.5 instructions for a column of a pair, the smaller 4.9 but leaves four times the programs."""
    large = MiningTiles(16, 16, 32)
    return large if (-(-batch // large.block_m)) ** 2 >= BUSY else MiningTiles(8, 8, 64)


def splits(batch: int, tiles: MiningTiles) -> tuple[int, int]:
    """Shares into which an anchor's others are cut, and tiles of a share."""
    blocks, others = -(-batch // tiles.block_m), -(-batch // tiles.block_n)
    each = -(-others // min(others, MAX_SPLITS, -(-PROGRAMS // blocks)))
    return -(-others // each), each


class BackwardTiles(NamedTuple):
    """Columns of a program, anchors that are searched at a glance, and those that are worked on at once."""

    block_d: int
    chunk: int
    window: int
    num_warps: int


def backward_tiles(dim: int) -> BackwardTiles:
    """No spills on any architecture; with windows of 8 anchors half types spill."""
    return BackwardTiles(256, 512, 4, 1) if dim <= 1024 else BackwardTiles(1024, 256, 4, 4)


class Lengths(NamedTuple):
    """Of the cosine alone, (B,) each: 1 / max(|x|, 1e-12), and 1 - |y|^2 of rows that are shorter than 1e-12."""

    inverse: torch.Tensor | None = None
    short: torch.Tensor | None = None


class Pairs(NamedTuple):
    """What a backward needs, (2, B) each: the positives' and the negatives' indices, distances and weights."""

    chosen: torch.Tensor | None = None
    distances: torch.Tensor | None = None
    weights: torch.Tensor | None = None


class Problem:
    """A call's features and what its kernels want to know of them."""

    def __init__(self, features: torch.Tensor, metric: str) -> None:
        self.features = features
        self.batch, self.dim = features.shape
        self.cosine = metric == "cosine"
        self.compute = torch.float64 if features.dtype == torch.float64 else torch.float32
        self.features_b, self.features_d = features.stride()

    def launch(
        self, kernel: Any, programs: int, arguments: dict[str, Any], constants: dict[str, Any], num_warps: int
    ) -> Launch:
        """A launch of a kernel that finds by name what every kernel may take."""
        known = {
            "p_features": self.features, "batch": self.batch,
            "features_b": self.features_b, "features_d": self.features_d, **arguments,
        }  # fmt: skip
        known_constants = {"DIM": self.dim, "COMPUTE": TYPES[self.compute], **constants}
        names = kernel.arg_names
        return Launch(
            kernel,
            (programs,),
            {name: known[name] for name in names if name in known},
            {name: known_constants[name] for name in names if name in known_constants},
            {"num_warps": num_warps},
        )


def norm_launch(p: Problem, lengths: Lengths) -> Launch:
    """The lengths of the rows."""
    arguments = {"p_inverse": lengths.inverse, "p_short": lengths.short}
    return p.launch(batch_hard_triplet_norm_kernel, p.batch, arguments, {"BLOCK_D": 1024}, 4)


def mine_launch(
    p: Problem, labels: torch.Tensor, lengths: Lengths, keys: torch.Tensor, indices: torch.Tensor, tiles: MiningTiles,
    tiles_each: int,
) -> Launch:  # fmt: skip
    """The best of each anchor in each share of the others; keys and indices are (2, shares, B)."""
    num_splits = keys.shape[1]
    arguments = {
        "p_labels": labels, "p_inverse": lengths.inverse, "p_short": lengths.short, "p_keys": keys,
        "p_indices": indices, "num_splits": num_splits, "tiles_each": tiles_each, "labels_b": labels.stride(0),
    }  # fmt: skip
    constants = {"BLOCK_M": tiles.block_m, "BLOCK_N": tiles.block_n, "BLOCK_D": tiles.block_d}
    return p.launch(batch_hard_triplet_mine_kernel, -(-p.batch // tiles.block_m) * num_splits, arguments, constants, 2)


def loss_launch(
    p: Problem, keys: torch.Tensor, indices: torch.Tensor, loss: torch.Tensor, skipped: torch.Tensor, pairs: Pairs,
    margin: float | None,
) -> Launch:  # fmt: skip
    """The best of all shares, and what follows from it."""
    num_splits = keys.shape[1]
    padded = triton.next_power_of_2(num_splits)
    arguments = {
        "p_keys": keys, "p_indices": indices, "p_loss": loss, "p_skipped": skipped, "p_chosen": pairs.chosen,
        "p_distances": pairs.distances, "p_weights": pairs.weights, "num_splits": num_splits,
        "margin": 0.0 if margin is None else float(margin),
    }  # fmt: skip
    constants = {
        "SOFT": margin is None, "COSINE": p.cosine, "SPLITS": padded,
        "BLOCK_M": min(LOSS_TILE // padded, max(16, triton.next_power_of_2(p.batch))),
    }  # fmt: skip
    return p.launch(batch_hard_triplet_loss_kernel, 1, arguments, constants, 8)


def forward(
    features: torch.Tensor, labels: torch.Tensor, margin: float | None, metric: str, save_statistics: bool
) -> tuple[torch.Tensor, ...]:
    """The loss, the anchors skipped, and for the backward: chosen, distances, weights (2, B), inverse and short (B,).

    (0,) what is not wanted.
    """
    p = Problem(features, metric)

    def empty(*shape: int, dtype: torch.dtype = p.compute) -> torch.Tensor:
        return features.new_empty(shape, dtype=dtype)

    loss, skipped = empty(), empty(dtype=torch.int64)
    kept = (2, p.batch) if save_statistics else (0,)
    chosen, distances, weights = empty(*kept, dtype=torch.int32), empty(*kept), empty(*kept)
    rows = (p.batch,) if p.cosine else (0,)
    inverse, short = empty(*rows), empty(*rows)
    if p.batch == 0:
        return loss.zero_(), skipped.zero_(), chosen, distances, weights, inverse, short
    tiles = mining_tiles(p.batch)
    num_splits, tiles_each = splits(p.batch, tiles)
    keys, indices = empty(2, num_splits, p.batch), empty(2, num_splits, p.batch, dtype=torch.int32)
    lengths = Lengths(inverse, short) if p.cosine else Lengths()
    pairs = Pairs(chosen, distances, weights) if save_statistics else Pairs()
    with device_of(features):
        if p.cosine:
            norm_launch(p, lengths).run()
        mine_launch(p, labels, lengths, keys, indices, tiles, tiles_each).run()
        loss_launch(p, keys, indices, loss, skipped, pairs, margin).run()
    return loss, skipped, chosen, distances, weights, inverse, short


def backward_launch(
    p: Problem, grad_loss: torch.Tensor, skipped: torch.Tensor, pairs: Pairs, lengths: Lengths,
    grad_features: torch.Tensor,
) -> Launch:  # fmt: skip
    """What a backward launches."""
    tiles = backward_tiles(p.dim)
    grad_b, grad_d = grad_features.stride()
    arguments = {
        "p_grad_loss": grad_loss, "p_skipped": skipped, "p_chosen": pairs.chosen, "p_distances": pairs.distances,
        "p_weights": pairs.weights, "p_inverse": lengths.inverse, "p_short": lengths.short,
        "p_grad_features": grad_features, "grad_features_b": grad_b, "grad_features_d": grad_d,
    }  # fmt: skip
    constants = {"BLOCK_D": tiles.block_d, "CHUNK": tiles.chunk, "WINDOW": tiles.window}
    programs = p.batch * -(-p.dim // tiles.block_d)
    return p.launch(batch_hard_triplet_bwd_kernel, programs, arguments, constants, tiles.num_warps)


def backward(
    grad_loss: torch.Tensor,
    features: torch.Tensor,
    skipped: torch.Tensor,
    chosen: torch.Tensor,
    distances: torch.Tensor,
    weights: torch.Tensor,
    inverse: torch.Tensor,
    short: torch.Tensor,
    metric: str,
) -> torch.Tensor:
    """Gradient of the features."""
    p = Problem(features, metric)
    grad_features = torch.empty_like(features)
    if grad_features.numel() == 0:
        return grad_features
    pairs, lengths = Pairs(chosen, distances, weights), Lengths(inverse, short) if p.cosine else Lengths()
    with device_of(features):
        backward_launch(p, grad_loss, skipped, pairs, lengths, grad_features).run()
    return grad_features
