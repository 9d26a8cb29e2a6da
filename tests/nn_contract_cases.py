"""The table of all layers for tests/test_nn_contract.py: how each is made and called, and what its state dict holds."""

from __future__ import annotations

from collections.abc import Callable
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from motarfuse import nn as layers
from motarfuse.nn import CopyPair, FramePair, PartState, TokenMotion
from tests.test_nn_motion_consistency import Affine

BATCH, FRAMES, DIM, HEADS, GRID, CELLS, PARTS, CLASSES = 4, 2, 12, 3, (4, 2), 8, 3, 4

Call = Callable[..., Any]
Arguments = tuple[Any, ...]


@dataclass(frozen=True)
class Layer:
    """One layer of the contract.

    Attributes:
        make: Builds it, on whatever device is the default.
        arguments: Draws what it is called with, float64.
        keys: Its state dict, ``prefix: names`` a line.
        call: How it is used, by ``call(module, *arguments)``.
        exports: Whether `torch.export` takes it: everything is a tensor.
        moves: Whether training moves statistics that the same forward reads, so that a second forward differs.
        joined: Whether processes that each train on a part of a batch learn what one does from the whole: not so where
            something is drawn, or is a function of the process's own part.
        compiles_quickly: By torch's default backend; the others take 7 to 65 s of one core, and
            are made of what the rest is made of.
    """

    make: Callable[[], nn.Module]
    arguments: Callable[[], Arguments]
    keys: str
    call: Call = lambda module, *arguments: module(*arguments)
    exports: bool = True
    moves: bool = False
    joined: bool = True
    compiles_quickly: bool = True


# Whose numbers are drawn, of processes that each have their own.
PROCESS: ContextVar[int] = ContextVar("process", default=0)


def draw(*sizes: int, seed: int = 0) -> Tensor:
    return torch.randn(*sizes, generator=torch.Generator().manual_seed(seed + 100 * PROCESS.get()), dtype=torch.float64)


def tokens() -> Tensor:
    return draw(BATCH, CELLS, DIM)


def clip() -> Tensor:
    return draw(BATCH, FRAMES, CELLS, DIM)


def share(*sizes: int) -> Tensor:
    return draw(*sizes, seed=3).sigmoid()


def labels() -> Tensor:
    return torch.tensor([0, 0, 1, 1])


def anchors() -> Tensor:
    return torch.tensor([[0.0, -0.5], [-0.3, 0.4], [0.3, 0.4]])


def motion() -> TokenMotion:
    moving = torch.ones(BATCH, CELLS, dtype=torch.float64)
    moving[:, 0] = 0
    return TokenMotion(draw(BATCH, CELLS, 8, seed=2), moving, share(BATCH, CELLS))


def states(frames: int = BATCH, seed: int = 0) -> tuple[PartState, ...]:
    """Of a decoder with fixed weights."""
    before = torch.get_rng_state()
    torch.manual_seed(7)
    with torch.device("cpu"):
        decoder = layers.PartDecoder(DIM, HEADS, GRID, PARTS).double().eval()
        torch.set_rng_state(before)
        with torch.no_grad():
            return tuple(decoder(draw(frames, 1, CELLS, DIM, seed=seed))[1])


def consistency() -> Arguments:
    warp = Affine(torch.eye(2).double() + 0.2 * draw(BATCH, 2, 2, seed=5), 0.2 * draw(BATCH, 2, seed=6))
    copies = CopyPair(states(), states(seed=1), warp, share(BATCH, CELLS), draw(BATCH, DIM), draw(BATCH, DIM, seed=1))
    frames = FramePair(draw(BATCH, 3, 16, 8), draw(BATCH, 3, 16, 8, seed=1), copies.states[-1], copies.copy_states[-1])
    return copies, frames, draw(BATCH, PARTS, DIM), draw(BATCH, PARTS, DIM, seed=1), share(BATCH, PARTS), labels()


def call_consistency(module: nn.Module, copies: CopyPair, frames: FramePair, *parts: Tensor) -> Any:
    names = ("part_embeddings", "part_features", "part_visibility", "labels")
    found = dict(zip(names, parts, strict=True))
    return module(copies.states, GRID, copies=copies, frames=frames, **found)[0]


def posture() -> Arguments:
    state = states()[-1]
    return state.keypoints, state.affines, state.visibility, state.part_logits


def call_posture(module: Any, keypoints: Tensor, affines: Tensor, visibility: Tensor, part_logits: Tensor) -> Any:
    module.update(keypoints, affines, visibility)
    aligned = module.align(keypoints, affines, visibility)
    return module.displacement(part_logits, keypoints, affines, aligned, grid=GRID), aligned.keypoints


def call_scale(module: Any, descriptor: Tensor) -> Tensor:
    module.update(descriptor, torch.ones(descriptor.shape[0], 8, dtype=torch.bool))
    return module(descriptor)


BLOCK = """
    norm1: weight bias
    attn.qkv: weight bias
    attn.proj: weight bias
    ls1: gamma
    norm2: weight bias
    mlp.fc1: weight bias
    mlp.fc2: weight bias
    ls2: gamma
"""
DECODER = """
    : queries
    layers.0.norm1: weight bias
    layers.0.norm2: weight bias
    layers.0.norm3: weight bias
    layers.0.self_attention.qkv: weight bias
    layers.0.self_attention.proj: weight bias
    layers.0.cross_attention.q: weight bias
    layers.0.cross_attention.kv: weight bias
    layers.0.cross_attention.proj: weight bias
    layers.0.mlp.fc1: weight bias
    layers.0.mlp.fc2: weight bias
    layers.1.norm1: weight bias
    layers.1.norm2: weight bias
    layers.1.norm3: weight bias
    layers.1.self_attention.qkv: weight bias
    layers.1.self_attention.proj: weight bias
    layers.1.self_attention.motion_bias: raw_affinity raw_damping
    layers.1.cross_attention.q: weight bias
    layers.1.cross_attention.kv: weight bias
    layers.1.cross_attention.proj: weight bias
    layers.1.cross_attention.motion_bias: raw_affinity raw_damping
    layers.1.mlp.fc1: weight bias
    layers.1.mlp.fc2: weight bias
    norm: weight bias
    token_norm: weight bias
    heads: background anchors raw_beta raw_eta
    heads.part_of_keypoint: weight
    heads.token_of_keypoint: weight
    heads.part_of_mask: weight
    heads.token_of_mask: weight
    heads.affine: weight bias
    canonical: keypoints affines
    scale: batches mean square
"""
FUSION = """
    : hybrid types
    gate.embed: weight bias
    gate.gate: weight bias
    gate.motion: weight bias
    gate.norm: weight bias
    blocks.0.norm1: weight bias
    blocks.0.attn.qkv: weight bias
    blocks.0.attn.proj: weight bias
    blocks.0.attn.motion_bias: raw_affinity raw_damping raw_time
    blocks.0.norm2: weight bias
    blocks.0.mlp.fc1: weight bias
    blocks.0.mlp.fc2: weight bias
    last.norm1: weight bias
    last.attn.q: weight bias
    last.attn.kv: weight bias
    last.attn.proj: weight bias
    last.attn.motion_bias: raw_affinity raw_damping raw_time
    last.norm2: weight bias
    last.mlp.fc1: weight bias
    last.mlp.fc2: weight bias
    norm: weight bias
"""
HEADS_KEYS = """
    : background anchors raw_beta raw_eta
    part_of_keypoint: weight
    token_of_keypoint: weight
    part_of_mask: weight
    token_of_mask: weight
    affine: weight bias
"""

LAYERS: dict[str, Layer] = {
    "Attention": Layer(
        lambda: layers.Attention(DIM, HEADS), lambda: (tokens(),), "qkv: weight bias\n proj: weight bias"
    ),
    "BNNeck": Layer(
        lambda: layers.BNNeck(DIM),
        lambda: (draw(BATCH, DIM),),
        ": weight bias running_mean running_var num_batches_tracked",
        joined=False,
    ),
    "Block": Layer(
        lambda: layers.Block(DIM, HEADS, layer_scale=0.5, drop_path=0.4), lambda: (tokens(),), BLOCK, joined=False
    ),
    "CanonicalPosture": Layer(
        lambda: layers.CanonicalPosture(anchors()),
        posture,
        ": keypoints affines",
        call_posture,
        moves=True,
        compiles_quickly=False,
    ),
    "DropPath": Layer(lambda: layers.DropPath(0.4), lambda: (tokens(),), "", joined=False),
    "FusionEncoder": Layer(
        lambda: layers.FusionEncoder(DIM, HEADS, scope="clip"),
        lambda: (clip(), draw(BATCH, FRAMES, DIM), draw(BATCH, FRAMES, PARTS, DIM), states(BATCH * FRAMES)[-1]),
        FUSION,
        compiles_quickly=False,
    ),
    "GatedFusion": Layer(
        lambda: layers.GatedFusion(DIM),
        lambda: (tokens(), draw(BATCH, CELLS, 8)),
        "embed: weight bias\n gate: weight bias\n motion: weight bias\n norm: weight bias",
    ),
    "IdLoss": Layer(lambda: layers.IdLoss(DIM, CLASSES), lambda: (draw(BATCH, DIM), labels()), ": weight"),
    "LayerScale": Layer(lambda: layers.LayerScale(DIM, 0.5), lambda: (tokens(),), ": gamma"),
    "LocalAppearance": Layer(
        lambda: layers.LocalAppearance(DIM, GRID),
        lambda: (tokens(),),
        "norm1: weight bias\n norm2: weight bias\n conv1: weight bias\n conv2: weight bias",
    ),
    "Mlp": Layer(lambda: layers.Mlp(DIM, 20), lambda: (tokens(),), "fc1: weight bias\n fc2: weight bias"),
    "MotionAttention": Layer(
        lambda: layers.MotionAttention(DIM, HEADS),
        lambda: (tokens(), motion()),
        "qkv: weight bias\n proj: weight bias\n motion_bias: raw_affinity raw_damping",
    ),
    "MotionConsistencyLoss": Layer(
        lambda: layers.MotionConsistencyLoss(DIM, PARTS, CLASSES, inv=1.0),
        consistency,
        "part.identity: weight",
        call_consistency,
        exports=False,  # a warp is any function
        joined=False,
        compiles_quickly=False,
    ),
    "MotionCrossAttention": Layer(
        lambda: layers.MotionCrossAttention(DIM, HEADS),
        lambda: (draw(BATCH, CELLS, DIM, seed=4), tokens(), motion(), motion()),
        "q: weight bias\n kv: weight bias\n proj: weight bias\n motion_bias: raw_affinity raw_damping",
        compiles_quickly=False,
    ),
    "MotionScale": Layer(
        lambda: layers.MotionScale(), lambda: (draw(BATCH, CELLS, 8),), ": batches mean square", call_scale, moves=True
    ),
    "PartDecoder": Layer(
        lambda: layers.PartDecoder(DIM, HEADS, GRID, PARTS),
        lambda: (clip(), torch.tensor([[True, True], [True, False]] * 2)),
        DECODER,
        moves=True,  # its first heads read statistics that the last heads move
        compiles_quickly=False,
    ),
    "PartHeads": Layer(
        lambda: layers.PartHeads(DIM, GRID, PARTS),
        lambda: (draw(BATCH, PARTS, DIM), tokens()),
        HEADS_KEYS,
        compiles_quickly=False,
    ),
    "PartLoss": Layer(
        lambda: layers.PartLoss(DIM, PARTS, CLASSES),
        lambda: (draw(BATCH, PARTS, DIM), draw(BATCH, PARTS, DIM, seed=1), share(BATCH, PARTS), labels()),
        "identity: weight",
        joined=False,
    ),
    "PartPool": Layer(lambda: layers.PartPool(), lambda: (tokens(), draw(BATCH, PARTS + 1, CELLS)), ""),
    "TripletLoss": Layer(lambda: layers.TripletLoss(gather=True), lambda: (draw(BATCH, DIM), labels()), ""),
    "VisualAdapter": Layer(
        lambda: layers.VisualAdapter(DIM),
        lambda: (clip(), torch.tensor([[True, True], [True, False]] * 2)),
        ": conv_weight conv_bias\n norm: weight bias\n down: weight bias\n up: weight bias",
    ),
}
