"""Evaluation protocols: which gallery entries a query is compared with, and how its ranks become numbers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Protocol:
    """What an evaluation counts; plain data, so that it can be stored beside the numbers it produced.

    Attributes:
        name: The name under which ``evaluate`` knows it.
        description: One sentence for people.
        remove_same_camera: Leaves out gallery entries with the query's identity *and* camera. An unknown camera (-1)
            equals no camera, so that nothing is left out on its account.
        ignored_pids: Gallery identities that are dropped before anything is ranked (false detections).
        average_precision: ``step`` is the mean over positives of (positives so far / rank).
        source: Where the rules come from.
        gallery_draws: 0 ranks the whole gallery. n > 0: CMC and ``first_rank`` are of n random galleries of one entry
            an identity for each query, drawn from those that count; average precision and INP of the whole gallery.
    """

    name: str
    description: str
    remove_same_camera: bool
    ignored_pids: tuple[int, ...]
    average_precision: Literal["step"]
    source: str
    gallery_draws: int = 0


PROTOCOLS: dict[str, Protocol] = {
    protocol.name: protocol
    for protocol in (
        Protocol(
            name="market1501",
            description="Cross-camera retrieval: same identity seen by the same camera does not count, junk detections "
            "(pid -1) are dropped, distractors (pid 0) stay as wrong answers.",
            remove_same_camera=True,
            ignored_pids=(-1,),
            average_precision="step",
            source="Zheng et al. 2015, Scalable Person Re-identification: A Benchmark",
        ),
        Protocol(
            name="cuhk03_classic",
            description="Single gallery shot: CMC over 10 random galleries of one image an identity for each query, "
            "same identity seen by the same camera left out; mAP and mINP over the whole gallery, as toolkits print "
            "them. Of one split; the published numbers are means over 20.",
            remove_same_camera=True,
            ignored_pids=(-1,),
            average_precision="step",
            source="Li et al. 2014, DeepReID: Deep Filter Pairing Neural Network for Person Re-identification",
            gallery_draws=10,
        ),
    )
}


def get_protocol(protocol: str | Protocol) -> Protocol:
    """The protocol of that name; a ``Protocol`` is passed through."""
    if isinstance(protocol, Protocol):
        return protocol
    if protocol not in PROTOCOLS:
        raise ValueError(f"protocol: got {protocol!r}, known are {', '.join(sorted(PROTOCOLS))}")
    return PROTOCOLS[protocol]
