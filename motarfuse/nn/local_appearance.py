"""What a cell looks like together with its neighbours, wherever it is."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class LocalAppearance(nn.Module):
    """Describes each cell by the patches around it and not by its place: LN(conv(GELU(conv(LN(e))))).

    e are patch embeddings without position; both convolutions are 3 x 3 with replicated borders, so that what is said
    of a cell moves with the image by whole cells, but for two cells at the border. Heads that look for parts in tokens
    with positions find the same places in every image before they find people; these descriptions have no places.

    Args:
        dim: Width D.
        grid: (h, w) of the cells, N = h w.
        eps: Epsilon of the layer norms.

    Shapes: (F, N, D) -> (F, N, D).
    """

    def __init__(self, dim: int, grid: tuple[int, int], *, eps: float = 1e-6) -> None:
        super().__init__()
        self.grid = grid
        self.norm1, self.norm2 = nn.LayerNorm(dim, eps=eps), nn.LayerNorm(dim, eps=eps)
        self.conv1, self.conv2 = nn.Conv2d(dim, dim, 3), nn.Conv2d(dim, dim, 3)

    def forward(self, patches: Tensor) -> Tensor:
        """Args: patches, (F, N, D) embeddings. Returns (F, N, D)."""
        rows, columns = self.grid
        if patches.ndim != 3 or patches.shape[1] != rows * columns:
            raise ValueError(f"patches must be (F, {rows * columns}, D), grid {self.grid}; got {tuple(patches.shape)}")
        cells = self.norm1(patches).transpose(1, 2).unflatten(2, self.grid)
        cells = self.conv2(_replicated(F.gelu(self.conv1(_replicated(cells)))))
        return self.norm2(cells.flatten(2).transpose(1, 2))

    def extra_repr(self) -> str:
        return f"grid={self.grid}"


def _replicated(cells: Tensor) -> Tensor:
    """(F, D, h, w) -> (F, D, h + 2, w + 2), of slices: CUDA sums the gradient of replicate padding in no order."""
    cells = torch.cat((cells[:, :, :1], cells, cells[:, :, -1:]), 2)
    return torch.cat((cells[..., :1], cells, cells[..., -1:]), 3)
