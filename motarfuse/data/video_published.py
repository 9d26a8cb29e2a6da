"""The counts that the authors of public tracklet sets published, to compare a folder on disk with."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from motarfuse.data.records import SPLITS, PublishedCounts
from motarfuse.data.tracklets import TrackletDataset


@dataclass(frozen=True)
class VideoCounts:
    """What a tracklet set holds according to its authors; a split without an entry was not published.

    Attributes:
        name: Of the dataset.
        tracklets: Number of each split, junk left out.
        identities: Number of each split, distractors left out.
        cameras: Number over all splits, or None.
    """

    name: str
    tracklets: dict[str, int]
    identities: dict[str, int]
    cameras: int | None = None

    def complete(self) -> PublishedCounts | None:
        """The same as `PublishedCounts`, whose images are the tracklets; None where a count is not known."""
        known = all(split in counts for counts in (self.tracklets, self.identities) for split in SPLITS)
        if self.cameras is None or not known:
            return None
        return PublishedCounts(self.name, self.tracklets, self.identities, self.cameras)


# MARS: Zheng et al. 2016; counted in the authors' label files, 870 junk tracklets left out, 3,248 distractors included.
MARS = VideoCounts(
    "MARS",
    tracklets={"train": 8_298, "query": 1_980, "gallery": 11_310},
    identities={"train": 625, "query": 626, "gallery": 634},
    cameras=6,
)
MARS_WITHOUT_QUERIES = VideoCounts(
    "MARS (queries not in the gallery)",
    tracklets={"train": 8_298, "query": 1_980, "gallery": 9_330},
    identities={"train": 625, "query": 626, "gallery": 620},
    cameras=6,
)
# iLIDS-VID: Wang et al. 2014, half of the 300 people in each of ten splits.
ILIDS_VID = VideoCounts(
    "iLIDS-VID",
    tracklets={"train": 300, "query": 150, "gallery": 150},
    identities={"train": 150, "query": 150, "gallery": 150},
    cameras=2,
)
# PRID2011: Hirzer et al. 2011; the 178 people and ten splits of Wang et al. 2014.
PRID2011 = VideoCounts(
    "PRID2011",
    tracklets={"train": 178, "query": 89, "gallery": 89},
    identities={"train": 89, "query": 89, "gallery": 89},
    cameras=2,
)
# DukeMTMC-VideoReID: Wu et al. 2018. How many people its gallery shows besides the 702 is not stated there.
DUKE_VIDEO = VideoCounts(
    "DukeMTMC-VideoReID",
    tracklets={"train": 2_196, "query": 702, "gallery": 2_636},
    identities={"train": 702, "query": 702},
    cameras=8,
)
# LS-VID: Li et al. 2019: 3,772 people, of whom 842 train, 200 validate and 2,730 test; 11,333 test tracklets.
LS_VID = VideoCounts(
    "LS-VID",
    tracklets={"train": 2_831, "query": 3_504, "gallery": 11_333},
    identities={"train": 842, "gallery": 2_730},
    cameras=15,
)
LS_VID_WITHOUT_QUERIES = VideoCounts(
    "LS-VID (queries not in the gallery)",
    tracklets={"train": 2_831, "query": 3_504, "gallery": 7_829},
    identities={"train": 842},
    cameras=15,
)
# CCVID: Gu et al. 2022: 2,856 tracklets of 226 people.
CCVID = VideoCounts(
    "CCVID",
    tracklets={"train": 948, "query": 834, "gallery": 1_074},
    identities={"train": 75, "query": 151, "gallery": 151},
)


def looks_like(dataset: TrackletDataset, known: VideoCounts, parts: Sequence[str], *words: str) -> bool:
    """Whether a set is that dataset: by its numbers of tracklets, or by the names of its folder and the folder above.

    Args:
        dataset: What was read.
        known: What it may be.
        parts: Names of folders.
        words: Any of these in a name, letters and digits only, tells.
    """
    if all(len(dataset.subset(split)) == count for split, count in known.tracklets.items()):
        return True
    plain = [re.sub(r"[^a-z0-9]", "", part.lower()) for part in parts]
    return any(word in part for word in words for part in plain)


def compare_with_published(dataset: TrackletDataset, known: VideoCounts) -> None:
    """Names the dataset and notes each count that differs from the published one, or that all agree."""
    dataset.name = known.name
    dataset.published = known.complete()
    differences = []
    for split in SPLITS:
        counts = dataset.counts(split)
        for what, found, published in (
            ("tracklets", counts.images, known.tracklets),
            ("identities", counts.identities, known.identities),
        ):
            if split in published and found != published[split]:
                differences.append(f"{split}: {found:,} {what}, {known.name} was published with {published[split]:,}")
    cameras = len({tracklet.camid for split in SPLITS for tracklet in dataset.subset(split)} - {-1})
    if known.cameras is not None and cameras != known.cameras:
        differences.append(f"{cameras} cameras, {known.name} was published with {known.cameras}")
    dataset.notes.extend(differences or [f"every published count of {known.name} is met"])


def note_frames(dataset: TrackletDataset) -> None:
    """Notes the frames of each split."""
    frames = {split: sum(map(len, dataset.subset(split))) for split in SPLITS if dataset.subset(split)}
    dataset.notes.append("frames: " + ", ".join(f"{split} {count:,}" for split, count in frames.items()))
