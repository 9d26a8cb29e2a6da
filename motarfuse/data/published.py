"""The counts that the authors of public datasets published, to compare a folder on disk with."""

from __future__ import annotations

import re
from collections.abc import Sequence

from motarfuse.data.records import SPLITS, PublishedCounts, ReIDDataset

# Market-1501: Zheng et al. 2015, 19,732 test files of which 3,819 are junk. DukeMTMC-reID: Zheng et al. 2017.
# Occluded-Duke: Miao et al. 2019. CUHK03-NP: the new protocol of Zhong et al. 2017. MSMT17: Wei et al. 2018, 30,248
# training and 2,373 validation images of the same 1,041 people. Occluded-REID: Zhuo et al. 2018. Partial-REID and
# Partial-iLIDS: Zheng et al. 2015. P-DukeMTMC-reID: 24,143 images of 1,299 people, 665 of them for training.
MARKET1501 = PublishedCounts(
    "Market-1501",
    images={"train": 12_936, "query": 3_368, "gallery": 15_913},
    identities={"train": 751, "query": 750, "gallery": 750},
    cameras=6,
)
DUKE = PublishedCounts(
    "DukeMTMC-reID",
    images={"train": 16_522, "query": 2_228, "gallery": 17_661},
    identities={"train": 702, "query": 702, "gallery": 1_110},
    cameras=8,
)
OCCLUDED_DUKE = PublishedCounts(
    "Occluded-Duke",
    images={"train": 15_618, "query": 2_210, "gallery": 17_661},
    identities={"train": 702, "query": 519, "gallery": 1_110},
    cameras=8,
)
CUHK03_DETECTED = PublishedCounts(
    "CUHK03-NP detected",
    images={"train": 7_365, "query": 1_400, "gallery": 5_332},
    identities={"train": 767, "query": 700, "gallery": 700},
    cameras=2,
)
CUHK03_LABELED = PublishedCounts(
    "CUHK03-NP labeled",
    images={"train": 7_368, "query": 1_400, "gallery": 5_328},
    identities={"train": 767, "query": 700, "gallery": 700},
    cameras=2,
)
MSMT17 = PublishedCounts(
    "MSMT17",
    images={"train": 30_248, "query": 11_659, "gallery": 82_161},
    identities={"train": 1_041, "query": 3_060, "gallery": 3_060},
    cameras=15,
)
MSMT17_TRAIN_VAL = PublishedCounts(
    "MSMT17 train+val",
    images={"train": 32_621, "query": 11_659, "gallery": 82_161},
    identities={"train": 1_041, "query": 3_060, "gallery": 3_060},
    cameras=15,
)
OCCLUDED_REID = PublishedCounts(
    "Occluded-REID",
    images={"train": 0, "query": 1_000, "gallery": 1_000},
    identities={"train": 0, "query": 200, "gallery": 200},
    cameras=2,
)
PARTIAL_REID = PublishedCounts(
    "Partial-REID",
    images={"train": 0, "query": 300, "gallery": 300},
    identities={"train": 0, "query": 60, "gallery": 60},
    cameras=2,
)
PARTIAL_ILIDS = PublishedCounts(
    "Partial-iLIDS",
    images={"train": 0, "query": 119, "gallery": 119},
    identities={"train": 0, "query": 119, "gallery": 119},
    cameras=2,
)
P_DUKE = PublishedCounts(
    "P-DukeMTMC-reID",
    images={"train": 12_927, "query": 2_163, "gallery": 9_053},
    identities={"train": 665, "query": 634, "gallery": 634},
    cameras=2,
)
PUBLISHED = (
    MARKET1501,
    DUKE,
    OCCLUDED_DUKE,
    CUHK03_DETECTED,
    CUHK03_LABELED,
    MSMT17,
    MSMT17_TRAIN_VAL,
    OCCLUDED_REID,
    PARTIAL_REID,
    PARTIAL_ILIDS,
    P_DUKE,
)


def find_published(parts: Sequence[str], images: dict[str, int]) -> PublishedCounts | None:
    """The published dataset that a folder looks like: by its counts, else by its folders' names, innermost first.

    Args:
        parts: Names of the folder and its parents, outermost first.
        images: Number of images of each split.
    """
    for known in PUBLISHED:
        if known.images == images:
            return known
    plain = [re.sub(r"[^a-z0-9]", "", part.lower()) for part in parts]
    for name in reversed(plain):
        if "occludedduke" in name:
            return OCCLUDED_DUKE
        if "dukemtmc" in name:
            return DUKE
        if "msmt17" in name:
            return MSMT17
        if "market1501" in name:
            return MARKET1501
        if "cuhk03" in name:
            return CUHK03_LABELED if any("label" in part for part in plain) else CUHK03_DETECTED
    return None


def compare_with_published(dataset: ReIDDataset) -> list[str]:
    """One sentence for each count that differs from the published one, or a single one when all agree."""
    known = dataset.published
    if known is None:
        return []
    differences = []
    cameras = 0
    for name in SPLITS:
        counts = dataset.counts(name)
        cameras = max(cameras, counts.cameras)
        for what, found, expected in (
            ("images", counts.images, known.images[name]),
            ("identities", counts.identities, known.identities[name]),
        ):
            if found != expected:
                differences.append(f"{name}: {found:,} {what}, {known.name} was published with {expected:,}")
    if known.cameras is not None and cameras != known.cameras:
        differences.append(f"{cameras} cameras, {known.name} was published with {known.cameras}")
    return differences or [f"images, identities and cameras of every split equal those published for {known.name}"]
