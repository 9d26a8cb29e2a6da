"""The temporal adapter that stands behind the MLP of a block."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from motarfuse.nn.fused_steps import PendingSum, add_norm
from motarfuse.ops import temporal_conv


class VisualAdapter(nn.Module):
    """A bottleneck that lets each token see the same place of the neighbouring frames.

    U = X + W_up GELU(DWConv_t(W_down LN(X))), the convolution depthwise over time. A neighbour that is not there reads
    as the frame itself. W_up starts at zero, so that a network with adapters starts as the one without; the taps of
    neighbours start at zero and the middle one at 1, so that training on images leaves no random taps.

    Args:
        dim: Width D of the tokens.
        bottleneck: Width between; None: D / 4.
        kernel_size: Frames that the convolution spans, odd.
        eps: Epsilon of the layer norm.

    Shapes: (B, T, N, D) or, for images, (B, N, D); the same out. About 4 N D bottleneck FLOPs a frame.

    Source: Pan et al. 2022 (ST-Adapter); where it stands and how it starts is this project's reading of MOTAR-FUSE.
    """

    def __init__(self, dim: int, bottleneck: int | None = None, *, kernel_size: int = 3, eps: float = 1e-6) -> None:
        super().__init__()
        if kernel_size < 1 or kernel_size % 2 == 0:
            raise ValueError(f"kernel_size must be odd and positive, got {kernel_size}")
        width = max(dim // 4, 1) if bottleneck is None else bottleneck
        if width < 1:
            raise ValueError(f"bottleneck must be positive, got {bottleneck}")
        self.norm = nn.LayerNorm(dim, eps=eps)
        self.down = nn.Linear(dim, width)
        self.conv_weight = nn.Parameter(torch.zeros(width, kernel_size))
        self.conv_bias = nn.Parameter(torch.zeros(width))
        self.up = nn.Linear(width, dim)
        with torch.no_grad():
            self.conv_weight[:, kernel_size // 2] = 1.0
        nn.init.zeros_(self.up.weight)
        nn.init.zeros_(self.up.bias)

    def forward(
        self, tokens: Tensor | PendingSum, frame_mask: Tensor | None = None, *, chained: bool = False
    ) -> Tensor | PendingSum:
        """Adds what the frames around say.

        Args:
            tokens: (B, T, N, D) or (B, N, D); in a chain of blocks (`Block`) the sum that is left open, of frames one
                clip after the other, (F, N, D).
            frame_mask: (B, T) booleans, False for frames that are padding; their tokens come out as they went in, plus
                a constant. In a chain it also tells the clips, B T = F; None: images by themselves.
            chained: Whether to leave the addition to whoever normalises the result.

        Returns:
            The shape of tokens; with ``chained`` a `PendingSum`.
        """
        normed, residual = add_norm(tokens, self.norm)
        if normed.ndim == 3:
            clips = frame_mask is not None and isinstance(tokens, PendingSum)
            normed = normed.unflatten(0, frame_mask.shape) if clips and frame_mask is not None else normed[:, None]
        hidden = temporal_conv(self.down(normed), self.conv_weight, self.conv_bias, frame_mask)
        out = PendingSum(residual, self.up(hidden).reshape(residual.shape))
        return out if chained else out.tokens()

    def extra_repr(self) -> str:
        width, kernel_size = self.conv_weight.shape
        return f"bottleneck={width}, kernel_size={kernel_size}"
