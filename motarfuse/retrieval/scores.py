"""Similarity scores of queries against a gallery, a block of queries at a time.

Everything that ranks goes through :class:`ScoreBlocks`, so that search and evaluation cannot disagree about an order.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor

METRICS = ("cosine", "euclidean")
FLOAT_DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)

# Rows of one product: from 1 on, libraries switch to matrix-vector code whose sums depend on a row's place, and equal
# gallery entries would get unequal scores.
MIN_BLOCK = 8
# 32 MiB of scores: large enough for the matrix product to run at full rate, small beside the features themselves.
BLOCK_BYTES = 32 << 20
_HASHED_ROWS = 4096


@contextmanager
def exact_products(device: torch.device) -> Iterator[None]:
    """Matrix products in full precision, whatever autocast or reduced-precision setting the caller is under."""
    backends = (torch.backends.cuda.matmul, torch.backends.mkldnn.matmul)  # type: ignore[attr-defined]
    before = [backend.fp32_precision for backend in backends]
    try:
        for backend in backends:
            backend.fp32_precision = "ieee"
        with torch.no_grad(), torch.autocast(device.type, enabled=False):
            yield
    finally:
        for backend, precision in zip(backends, before, strict=True):
            backend.fp32_precision = precision


def as_features(features: Any, name: str) -> Tensor:
    """Validates type and shape of features.

    Args:
        features: Tensor or array of fp16, bf16, fp32 or fp64 values, shape (n, d), n and d at least 1.
        name: What to call them in an error.

    Raises:
        TypeError: Not a tensor or array, or of another dtype.
        ValueError: Another rank, or empty.
    """
    if isinstance(features, np.ndarray):
        if features.dtype.kind != "f" or features.dtype.itemsize > 8:
            raise TypeError(f"{name}: got an array of {features.dtype}, supported are float16, float32 and float64")
        # A read-only or negatively strided array cannot be shared with a tensor.
        shareable = features.flags.writeable and all(stride >= 0 for stride in features.strides)
        features = torch.from_numpy(features if shareable else features.copy())
    if not isinstance(features, Tensor):
        raise TypeError(f"{name}: got {type(features).__name__}, supported are torch tensors and numpy arrays")
    if features.dtype not in FLOAT_DTYPES:
        names = ", ".join(str(dtype).removeprefix("torch.") for dtype in FLOAT_DTYPES)
        raise TypeError(f"{name}: got {str(features.dtype).removeprefix('torch.')}, supported are {names}")
    if features.dim() != 2:
        raise ValueError(f"{name}: got shape {tuple(features.shape)}, supported is (n, d), one row an image")
    if features.shape[0] == 0 or features.shape[1] == 0:
        raise ValueError(
            f"{name}: got shape {tuple(features.shape)}, which is empty; at least one row and column is needed"
        )
    return features.detach()


def check_finite(features: Tensor, name: str) -> None:
    """Raises ``ValueError`` with the rows that hold NaN or infinite values."""
    bad = (~torch.isfinite(features)).any(dim=1).nonzero().flatten().tolist()
    if bad:
        rows = ", ".join(map(str, bad[:8])) + (", ..." if len(bad) > 8 else "")
        raise ValueError(
            f"{name}: {len(bad)} of {features.shape[0]} rows hold NaN or infinite values (row {rows}); "
            "such features cannot be ranked: leave these rows out, or find out why the model produced them"
        )


def unit_rows(features: Tensor) -> Tensor:
    """Rows divided by their length; a zero row stays zero. Scaled by the largest value first: no square overflows."""
    largest = features.abs().amax(dim=1, keepdim=True)
    scaled = features / torch.where(largest > 0, largest, 1.0)
    norm = torch.linalg.vector_norm(scaled, dim=1, keepdim=True)
    return scaled / torch.where(norm > 0, norm, 1.0)


def later_copies(rows: Tensor) -> tuple[Tensor, Tensor]:
    """Rows that equal an earlier one, and the first row that each equals: two index tensors of one length.

    Rows are compared by a 64-bit hash first, so that the cost is one pass over them and a sort of the hashes.
    """
    integers = torch.int64 if rows.dtype == torch.float64 else torch.int32
    generator = torch.Generator().manual_seed(0)
    factors = torch.randint(-(2**62), 2**62, (rows.shape[1],), generator=generator).to(rows.device) | 1
    # Adding 0 turns -0 into 0, which are equal; products wrap around, which is what a hash wants.
    parts = [((part + 0.0).view(integers).long() * factors).sum(1) for part in rows.contiguous().split(_HASHED_ROWS)]
    order = torch.cat(parts).argsort(stable=True)
    hashes = torch.cat(parts)[order]
    starts = torch.cat((hashes.new_ones(1, dtype=torch.bool), hashes[1:] != hashes[:-1]))
    first = order[starts][starts.cumsum(0) - 1]
    later, first = order[~starts], first[~starts]
    same = (rows[later] == rows[first]).all(dim=1)
    return later[same], first[same]


class ScoreBlocks:
    """Scores of query rows against the whole gallery, larger is better.

    ``cosine``: q.g / (|q| |g|), 0 where either vector is zero; in fp32 for half and single features, fp64 for double.
    ``euclidean``: -|q - g| from |q|^2 + |g|^2 - 2 q.g in fp64, because that sum cancels for vectors far from the
    origin; rounded to fp32 for half and single features. Its error stays below 1e-7 max(|q|, |g|): the resolution of
    an fp32 input.

    Equal gallery rows get equal scores, bit for bit, whatever the library's products depend on. The features are
    converted once (one copy of each); a block holds ``block`` x gallery scores.

    Args:
        query: (Q, d) features.
        gallery: (G, d) features of the same dtype and device.
        metric: ``cosine`` or ``euclidean``.
        block: Queries a block; None takes about 32 MiB of scores.

    Raises:
        TypeError: Different or unsupported dtypes.
        ValueError: Wrong rank, unequal widths, an empty or non-finite input, different devices, an unknown metric.
    """

    def __init__(self, query: Any, gallery: Any, *, metric: str = "cosine", block: int | None = None) -> None:
        if metric not in METRICS:
            raise ValueError(f"metric: got {metric!r}, supported are {', '.join(METRICS)}")
        if block is not None and (isinstance(block, bool) or not isinstance(block, int) or block < 1):
            raise ValueError(f"block: got {block!r}, supported is None or a number of queries of at least 1")
        query, gallery = as_features(query, "query"), as_features(gallery, "gallery")
        if query.shape[1] != gallery.shape[1]:
            raise ValueError(
                f"query and gallery: got {query.shape[1]} and {gallery.shape[1]} columns; both need the same width"
            )
        if query.dtype != gallery.dtype:
            raise TypeError(f"query and gallery: got {query.dtype} and {gallery.dtype}; convert one of them")
        if query.device != gallery.device:
            raise ValueError(f"query and gallery: got devices {query.device} and {gallery.device}; move one of them")
        check_finite(query, "query")
        check_finite(gallery, "gallery")
        self.metric = metric
        self.dtype = torch.float64 if query.dtype == torch.float64 else torch.float32
        self.width = query.shape[1]
        product_dtype = torch.float64 if metric == "euclidean" else self.dtype
        if product_dtype == torch.float64 and query.device.type == "mps":
            query, gallery = query.cpu(), gallery.cpu()  # Apple's GPUs have no double precision
        self.device = query.device
        with torch.no_grad(), torch.autocast(self.device.type, enabled=False):
            query, gallery = query.to(product_dtype), gallery.to(product_dtype)
            if metric == "cosine":
                self._query, self._gallery = unit_rows(query), unit_rows(gallery)
            else:
                self._query, self._gallery = query, gallery
                self._query_squares = query.square().sum(dim=1, keepdim=True)  # (Q, 1)
                self._gallery_squares = gallery.square().sum(dim=1)  # (G,)
                if not (self._query_squares.isfinite().all() and self._gallery_squares.isfinite().all()):
                    raise ValueError(
                        "query or gallery: squared lengths overflow double precision; scale the features down"
                    )
        automatic = BLOCK_BYTES // (len(self._gallery) * product_dtype.itemsize)
        self._copies: tuple[Tensor, Tensor] | None = None
        self.rows = min(len(self._query), block if block is not None else max(MIN_BLOCK, automatic))

    def select_gallery(self, kept: Tensor) -> None:
        """Keeps these gallery rows only; ``kept`` holds increasing indices."""
        if len(kept) == len(self._gallery):
            return
        kept = kept.to(self.device)
        self._gallery = self._gallery[kept]
        self._copies = None
        if self.metric == "euclidean":
            self._gallery_squares = self._gallery_squares[kept]

    @property
    def shape(self) -> tuple[int, int]:
        """(queries, gallery entries)."""
        return len(self._query), len(self._gallery)

    def scores(self, rows: Tensor) -> Tensor:
        """Scores (n, G) of the query rows with these indices (n,)."""
        query = self._query[rows.to(self.device)]
        count = len(query)
        if count < MIN_BLOCK:
            query = torch.cat([query, query.new_zeros(MIN_BLOCK - count, self.width)])
        with exact_products(self.device):
            product = (query @ self._gallery.T)[:count]
            if self._copies is None:
                self._copies = later_copies(self._gallery)
            later, first = self._copies
            if len(later):
                product[:, later] = product[:, first]
            if self.metric == "cosine":
                return product
            squares = product.mul_(-2).add_(self._query_squares[rows.to(self.device)]).add_(self._gallery_squares)
            return squares.clamp_(min=0).sqrt_().neg_().to(self.dtype)

    def blocks(self, queries: Tensor | None = None) -> Iterator[tuple[Tensor, Tensor]]:
        """Yields (query indices, scores) until all queries, or the given ones, have been seen."""
        chosen = torch.arange(len(self._query)) if queries is None else queries
        for rows in chosen.split(self.rows):
            yield rows, self.scores(rows)

    def public(self, scores: Tensor) -> Tensor:
        """Scores as users read them: cosine similarities, or distances (smaller is better)."""
        return scores if self.metric == "cosine" else scores.neg()
