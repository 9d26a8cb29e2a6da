"""The formulas that go by the name of k-reciprocal re-ranking, as data: the published one, and four of toolkits."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from motarfuse.ops.ranking import rounded_sqrt


@dataclass(frozen=True)
class RerankVariant:
    """How a formula differs from the others; D is the squared Euclidean distance of two samples.

    Attributes:
        name: What ``rerank`` calls it.
        description: One sentence for people.
        source: Where the formula is from.
        unit: Features are divided by their lengths first.
        relative: The distance d is (D / the sample's largest D) ** power, else D / 2, which is 1 - cosine.
        power: Of the relative distance.
        weight: Weights are exp(-weight d).
        more_k1: Neighbours of a list are k1 + more_k1, the sample itself among them.
        more_k2: Averaged are the rows of k2 + more_k2 neighbours; k2 = 1 without more averages nothing.
        clamped: A Jaccard distance that rounding makes negative is 0.
    """

    name: str
    description: str
    source: str
    unit: bool = False
    relative: bool = True
    power: int = 1
    weight: float = 1.0
    more_k1: int = 1
    more_k2: int = 0
    clamped: bool = False

    def distance(self, squared: Tensor, largest: Tensor) -> Tensor:
        """d of squared Euclidean distances and each one's sample's largest; 0 where all samples are equal."""
        if not self.relative:
            return squared / 2
        relative = squared / largest.masked_fill(largest == 0, 1.0)
        return relative if self.power == 1 else relative.square()

    def earlier(self, squared: Tensor, largest: Tensor, by: Tensor) -> Tensor:
        """The squared distance (negative ones exist) at which d is smaller by ``by``; not above ``squared``."""
        if not self.relative:
            return squared - 2 * by
        if self.power == 1:
            return squared - largest * by
        moved = squared.square() - largest.square() * by
        return torch.minimum(rounded_sqrt(moved.abs()).copysign(moved), squared)


VARIANTS: dict[str, RerankVariant] = {
    variant.name: variant
    for variant in (
        RerankVariant(
            "zhong2017",
            "The published formula: squared Euclidean distances of the features as given, by each sample's largest.",
            "Zhong et al. 2017, Re-ranking Person Re-identification with k-reciprocal Encoding; "
            "github.com/zhunzhong07/person-re-ranking",
        ),
        RerankVariant(
            "torchreid",
            "Squared Euclidean distances are squared once more before they are divided by the largest.",
            "github.com/KaiyangZhou/deep-person-reid, torchreid/utils/rerank.py",
            power=2,
        ),
        RerankVariant(
            "fastreid",
            "Unit features; k1 counts the sample itself, weights are a softmax of squared distances, and 1 - cosine is "
            "mixed in as it is.",
            "github.com/JDAI-CV/fast-reid, fastreid/utils/compute_dist.py and fastreid/evaluation/reid_evaluation.py",
            unit=True,
            relative=False,
            weight=2.0,
            more_k1=0,
            clamped=True,
        ),
        RerankVariant(
            "boxmot",
            "Unit features; 1 - cosine as it is throughout, and one neighbour more is averaged.",
            "github.com/mikel-brostrom/boxmot, boxmot/reid/training/evaluator.py",
            unit=True,
            relative=False,
            more_k2=1,
        ),
        RerankVariant(
            "transreid",
            "Unit features, otherwise the published formula; TransReID calls it with k1 = 50 and k2 = 15 and rounds "
            "weights and Jaccard distances to float16, which is left out here.",
            "github.com/damo-cv/TransReID, utils/reranking.py and utils/metrics.py",
            unit=True,
        ),
    )
}


def get_variant(name: str) -> RerankVariant:
    """The variant of that name.

    Raises:
        TypeError: It is no name.
        ValueError: There is none.
    """
    if not isinstance(name, str):
        raise TypeError(f"variant: got {type(name).__name__}, supported is a name: {', '.join(VARIANTS)}")
    if name not in VARIANTS:
        raise ValueError(f"variant: got {name!r}, known are {', '.join(VARIANTS)}")
    return VARIANTS[name]
