"""The transformer block and an encoder of twelve beside the same in plain PyTorch, eager and compiled.

The block is `motarfuse.nn.Block`; its peers take the same weights. An encoder ends in a layer norm, and its blocks are
chained, so that the last addition of one and the first layer norm of the next are one step. Modes: ``fwd``, without
gradients; ``full``, forward and backward with the gradients of tokens and weights. Results and gradients are compared
before anything is timed. The ceiling is the matrix rate that this run measures, for the products of the block alone.

Run: python -m benchmarks.bench_block [--device cpu] [--threads 2 | --cpu-time] [--dtypes float32] [--csv FILE]
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.timing import Call, Ceilings, Clock, Timing, append_rows, ceilings, environment, measure, row
from motarfuse.nn import Block, add_norm

FUSED, EAGER = "fused", "eager"
COMPILED = "{}, compiled"
PEERS = (EAGER, COMPILED.format(EAGER))
MODES = ("fwd", "full")

Function = Callable[[Tensor], Tensor]


class BlockShape(NamedTuple):
    """What is measured: ``depth`` blocks, with a last layer norm where there are several."""

    size: str
    depth: int
    batch: int
    length: int
    dim: int
    heads: int

    def __str__(self) -> str:
        what = "block" if self.depth == 1 else f"{self.depth} blocks"
        return f"{self.size} {what} B{self.batch} N{self.length}"

    @property
    def flops(self) -> int:
        """Of the matrix products of a forward."""
        tokens = self.depth * self.batch * self.length
        return tokens * (24 * self.dim**2 + 4 * self.length * self.dim)


SHAPES = tuple(
    BlockShape(size, depth, 8, 129, dim, heads)
    for size, dim, heads in (("tiny", 192, 3), ("small", 384, 6))
    for depth in (1, 12)
)
GPU_SHAPES = (
    *(BlockShape("base", depth, 64, 129, 768, 12) for depth in (1, 12)),
    BlockShape("base", 1, 64, 211, 768, 12),
    BlockShape("small", 12, 64, 129, 384, 6),
)


class Encoder(nn.Module):
    """Blocks, and a layer norm behind several."""

    def __init__(self, shape: BlockShape, *, layer_scale: float | None = None) -> None:
        super().__init__()
        made = (Block(shape.dim, shape.heads, layer_scale=layer_scale) for _ in range(shape.depth))
        self.blocks = nn.ModuleList(made)
        self.norm = nn.LayerNorm(shape.dim, eps=1e-6) if shape.depth > 1 else None

    def forward(self, tokens: Tensor) -> Tensor:
        if self.norm is None:
            return self.blocks[0](tokens)
        stream = tokens
        for block in self.blocks:
            stream = block(stream, chained=True)
        return add_norm(stream, self.norm, wide=True)[0]


def plain_block(block: Block, tokens: Tensor) -> Tensor:
    """A block's formula as one writes it in PyTorch, with its weights; no stochastic depth."""
    batch, length, dim = tokens.shape
    heads = block.attn.heads
    # (B, N, 3, H, d), and (B, H, N, d) each
    packed = block.attn.qkv(block.norm1(tokens)).view(batch, length, 3, heads, dim // heads)
    query, key, value = (one.transpose(1, 2) for one in packed.unbind(2))
    attended = block.attn.proj(F.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2))
    tokens = tokens + (attended if block.ls1 is None else block.ls1(attended))
    hidden = block.mlp.fc1(block.norm2(tokens))
    if block.mlp.activation == "quick_gelu":
        hidden = hidden * torch.sigmoid(1.702 * hidden)
    else:
        hidden = F.gelu(hidden, approximate="tanh" if block.mlp.activation == "gelu_tanh" else "none")
    branch = block.mlp.fc2(hidden)
    return tokens + (branch if block.ls2 is None else block.ls2(branch))


def plain_encoder(encoder: Encoder, tokens: Tensor) -> Tensor:
    """`Encoder` of plain blocks."""
    for block in encoder.blocks:
        assert isinstance(block, Block)
        tokens = plain_block(block, tokens)
    return tokens if encoder.norm is None else encoder.norm(tokens)


class Bench:
    """The variants of one shape, compared.

    Args:
        shape: What.
        dtype: Of tokens and weights.
        device: Where.
        compiled: Whether ``torch.compile`` is among the peers.
    """

    def __init__(self, shape: BlockShape, dtype: torch.dtype, device: torch.device, *, compiled: bool = True) -> None:
        self.shape, self.dtype, self.device = shape, dtype, device
        torch.manual_seed(0)
        self.encoder = Encoder(shape).to(device, dtype)
        sizes = (shape.batch, shape.length, shape.dim)
        self.tokens = torch.randn(sizes).to(device, dtype).requires_grad_()
        self.incoming = torch.randn(sizes).to(device, dtype)
        eager = partial(plain_encoder, self.encoder)
        # The first one twice, which shows the noise.
        self.functions: dict[str, Function] = {FUSED: self.encoder, f"{FUSED}, again": self.encoder, EAGER: eager}
        if compiled:
            for name, function in ((EAGER, eager), (FUSED, self.encoder)):
                self.functions[COMPILED.format(name)] = torch.compile(function, fullgraph=True, dynamic=False)
        self._compare()

    def gradients(self, name: str) -> tuple[Tensor, ...]:
        """Of tokens and weights, by one variant."""
        out = self.functions[name](self.tokens)
        return torch.autograd.grad(out, (self.tokens, *self.encoder.parameters()), self.incoming)

    def _compare(self) -> None:
        """Raises AssertionError unless all variants compute the same, results and gradients."""
        tolerance = 100 * torch.finfo(self.dtype).eps  # sums of many numbers, in other orders
        expected = [self.functions[EAGER](self.tokens), *self.gradients(EAGER)]
        largest = max(_size(wanted) for wanted in expected[1:])
        for name, function in self.functions.items():
            for index, (value, wanted) in enumerate(
                zip((function(self.tokens), *self.gradients(name)), expected, strict=True)
            ):
                # The gradient of the keys' bias is zero but for rounding: it has no size of its own.
                scale = _size(wanted) if index == 0 else max(_size(wanted), 1e-3 * largest)
                if not _size(value - wanted) <= tolerance * scale:
                    raise AssertionError(f"{name} differs from {EAGER} by {_size(value - wanted):.1e} of {scale:.1e}")

    def call(self, name: str, mode: str) -> Call:
        """Variant ``name`` as one call, for the timer."""

        def forward(_: int) -> object:
            with torch.no_grad():
                return self.functions[name](self.tokens)

        return forward if mode == "fwd" else lambda _: self.gradients(name)

    def timings(self, mode: str, *, turns: int = 31, clock: Clock = time.perf_counter) -> dict[str, Timing]:
        """Seconds by variant."""
        return measure({name: self.call(name, mode) for name in self.functions}, self.device, turns=turns, clock=clock)

    def ratio(self, found: dict[str, Timing], name: str) -> float:
        """The best peer's time over that of ``name``."""
        return min(found[peer].median for peer in PEERS if peer in found) / found[name].median

    def fraction(self, mode: str, timing: Timing, ceiling: Ceilings) -> float | None:
        """Of the ceiling, which is measured in one dtype a device; a backward does each product twice."""
        if self.dtype != (torch.bfloat16 if self.device.type == "cuda" else torch.float32):
            return None
        return ceiling.least_seconds(0, self.shape.flops * (1 if mode == "fwd" else 3)) / timing.median

    def rows(self, mode: str, ceiling: Ceilings, clock: Clock, turns: int) -> list[dict[str, str]]:
        """Prints and returns the rows of a mode, without the columns of the environment."""
        found = self.timings(mode, turns=turns, clock=clock)
        rows = []
        for name, timing in found.items():
            scaled, fraction = timing.scaled(1e6), self.fraction(mode, timing, ceiling)
            against = [f"{found[peer].median / timing.median:5.2f} x {peer}" for peer in PEERS if peer in found]
            print(
                f"{self.shape!s:26} {mode:5} {self.dtype!s:15} {name:15} {scaled.median:10.1f} us "
                f"[{scaled.p20:.1f}, {scaled.p80:.1f}]  {'  '.join(against)}"
                + ("" if fraction is None else f"  {fraction:.2f} of the matrix rate"),
                flush=True,
            )
            ratio = self.ratio(found, name)
            rows.append(row("block", name, mode, str(self.shape), self.dtype, scaled, fraction=fraction, ratio=ratio))
        return rows


def _size(tensor: Tensor) -> float:
    return tensor.detach().double().square().mean().sqrt().item()


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.bench_block", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)  # fmt: skip
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--threads", type=int, default=2, help="of the CPU")
    parser.add_argument("--dtypes", help="comma-separated (default: float32 on a CPU, bfloat16 on a GPU)")
    parser.add_argument("--turns", type=int, default=31, help="samples of each variant")
    parser.add_argument(
        "--cpu-time", action="store_true", help="one thread by its CPU time, on a machine that is shared"
    )
    parser.add_argument("--no-compile", action="store_true", help="leave torch.compile out")
    parser.add_argument("--csv", type=Path, help="append rows to this file")
    args = parser.parse_args(arguments)
    torch.set_num_threads(1 if args.cpu_time else args.threads)
    clock = time.thread_time if args.cpu_time else time.perf_counter
    device = torch.device(args.device)
    gpu = device.type == "cuda"
    ceiling, where = ceilings(device, clock), environment(device, clock)
    print(f"{where['device']}; {ceiling}")
    for name in (args.dtypes or ("bfloat16" if gpu else "float32")).split(","):
        for shape in GPU_SHAPES if gpu else SHAPES:
            bench = Bench(shape, getattr(torch, name), device, compiled=not args.no_compile)
            for mode in MODES:
                rows = bench.rows(mode, ceiling, clock, args.turns)
                if args.csv:
                    append_rows(args.csv, [{**one, **where} for one in rows])
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
