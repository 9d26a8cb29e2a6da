"""How numbers are spread: what is told of tracklets' lengths, images an identity, heights and widths."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, slots=True)
class Distribution:
    """Order statistics of numbers; quantiles are values that occur (the lower of two), so that counts stay whole.

    Attributes:
        count: How many numbers.
        least: Smallest.
        tenth: A tenth is at most this.
        quarter: A quarter is at most this.
        median: Half are at most this.
        three_quarters: Three quarters are at most this.
        nine_tenths: Nine tenths are at most this.
        most: Largest.
        mean: Their mean.
    """

    count: int
    least: int
    tenth: int
    quarter: int
    median: int
    three_quarters: int
    nine_tenths: int
    most: int
    mean: float

    @classmethod
    def of(cls, values: Iterable[int]) -> Distribution | None:
        """The distribution of whole numbers, None of no numbers."""
        array = np.fromiter(values, dtype=np.int64)
        if not len(array):
            return None
        shares = (0, 0.1, 0.25, 0.5, 0.75, 0.9, 1)
        q = [int(value) for value in np.quantile(array, shares, method="inverted_cdf")]
        return cls(len(array), q[0], q[1], q[2], q[3], q[4], q[5], q[6], round(float(array.mean()), 2))

    @property
    def quantiles(self) -> tuple[int, ...]:
        """From the least to the most."""
        inner = (self.tenth, self.quarter, self.median, self.three_quarters, self.nine_tenths)
        return (self.least, *inner, self.most)

    def __str__(self) -> str:
        if self.least == self.most:
            return f"{self.least:,}"
        quantiles = " ".join(f"{value:,}" for value in self.quantiles[1:-1])
        return f"{self.least:,} | {quantiles} | {self.most:,}, mean {self.mean:,.1f}"


QUANTILES = "least | 10 25 50 75 90 % | most"
"""What the numbers of ``str(Distribution)`` are."""
