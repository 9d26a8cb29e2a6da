"""Evaluation protocols: which gallery entries a query is compared with, and how its ranks become numbers."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import Any, Literal, get_args

AveragePrecision = Literal["step", "trapezoid"]
Ties = Literal["stable", "pessimistic", "optimistic"]


@dataclass(frozen=True)
class PublishedSizes:
    """What an evaluation of a public dataset counts; None where nobody published it.

    Attributes:
        name: Of the dataset, as loaders name it.
        num_query: Queries.
        num_gallery: Gallery entries that take part, distractors included.
        num_valid: Queries with a match that counts.
    """

    name: str
    num_query: int
    num_gallery: int
    num_valid: int | None = None


@dataclass(frozen=True)
class Protocol:
    """What an evaluation counts; plain data, so that it can be stored beside the numbers it produced.

    Attributes:
        name: The name under which ``evaluate`` knows it.
        description: One sentence for people.
        remove_same_camera: Leaves out gallery entries with the query's identity *and* camera. An unknown camera (-1)
            equals no camera, so that nothing is left out on its account.
        ignored_pids: Gallery identities that are dropped before anything is ranked (false detections).
        average_precision: ``step`` is the mean over positives of (positives so far / rank); ``trapezoid`` what the
            MATLAB evaluators compute (``motarfuse.retrieval.measures``).
        source: Where the rules come from.
        gallery_draws: 0 ranks the whole gallery. n > 0: CMC and ``first_rank`` are of n random galleries of one entry
            an identity for each query, drawn from those that count; average precision and INP of the whole gallery.
        gallery_is_query: The gallery is the query set, row by row, and a sample is left out of its own ranking.
        queries_in_gallery: The gallery has to hold the queries beside its other entries: a query without an entry of
            its own identity and camera is an error.
        splits: Random divisions of the people that published numbers are means over.
        published: Counts to compare with; no rule, and not part of a result's hash.
    """

    name: str
    description: str
    remove_same_camera: bool
    ignored_pids: tuple[int, ...]
    average_precision: AveragePrecision
    source: str
    gallery_draws: int = 0
    gallery_is_query: bool = False
    queries_in_gallery: bool = False
    splits: int = 1
    published: tuple[PublishedSizes, ...] = ()

    @property
    def rules(self) -> dict[str, Any]:
        """All rules as plain JSON values; those that are off where most protocols have none are not named.

        So hashes of results from before there was such a rule stay what they are.
        """
        rules = {**asdict(self), "ignored_pids": list(self.ignored_pids)}
        del rules["published"]
        for name, absent in (
            ("gallery_draws", 0),
            ("gallery_is_query", False),
            ("queries_in_gallery", False),
            ("splits", 1),
        ):
            if rules[name] == absent:
                del rules[name]
        return rules


def _across_cameras(name: str, description: str, source: str, **more: Any) -> Protocol:
    """A protocol with the rule of Market-1501."""
    return Protocol(name, description, True, (-1,), "step", source, **more)


PROTOCOLS: dict[str, Protocol] = {
    protocol.name: protocol
    for protocol in (
        _across_cameras(
            "market1501",
            "Cross-camera retrieval: same identity seen by the same camera does not count, junk detections (pid -1) "
            "are dropped, distractors (pid 0) stay as wrong answers.",
            "Zheng et al. 2015, Scalable Person Re-identification: A Benchmark",
            published=(
                PublishedSizes("Market-1501", 3_368, 15_913, 3_368),
                PublishedSizes("DukeMTMC-reID", 2_228, 17_661),
            ),
        ),
        _across_cameras(
            "cuhk03-np",
            "The new protocol of CUHK03: 700 test people under two cameras, ranked as Market-1501 is.",
            "Zhong et al. 2017, Re-ranking Person Re-identification with k-reciprocal Encoding",
            published=(
                PublishedSizes("CUHK03-NP detected", 1_400, 5_332, 1_400),
                PublishedSizes("CUHK03-NP labeled", 1_400, 5_328, 1_400),
            ),
        ),
        _across_cameras(
            "cuhk03-classic",
            "Single gallery shot: CMC over 10 random galleries of one image an identity for each query, same identity "
            "seen by the same camera left out; mAP and mINP over the whole gallery, as toolkits print them. Of one "
            "split; the published numbers are means over 20.",
            "Li et al. 2014, DeepReID: Deep Filter Pairing Neural Network for Person Re-identification",
            gallery_draws=10,
            splits=20,
        ),
        _across_cameras(
            "msmt17",
            "MSMT17: cross-camera retrieval among 15 cameras, ranked as Market-1501 is.",
            "Wei et al. 2018, Person Transfer GAN to Bridge Domain Gap for Person Re-identification",
            published=(
                PublishedSizes("MSMT17", 11_659, 82_161),
                PublishedSizes("MSMT17 train+val", 11_659, 82_161),
            ),
        ),
        _across_cameras(
            "occluded-duke",
            "Occluded queries of DukeMTMC-reID among holistic and occluded entries; most queries lie in the gallery "
            "too, and are left out of their own ranking by their camera.",
            "Miao et al. 2019, Pose-Guided Feature Alignment for Occluded Person Re-identification",
            published=(PublishedSizes("Occluded-Duke", 2_210, 17_661, 2_210),),
        ),
        _across_cameras(
            "occluded-reid",
            "Occluded queries against whole bodies. The sets count as two cameras, so that every image of the person "
            "is an answer; labels taken from file names give other numbers (option cameras=names).",
            "Zhuo et al. 2018, Occluded Person Re-identification",
            published=(PublishedSizes("Occluded-REID", 1_000, 1_000, 1_000),),
        ),
        _across_cameras(
            "partial-reid",
            "Partial queries against whole bodies, which count as two cameras: every image of the person is an answer.",
            "Zheng et al. 2015, Partial Person Re-identification",
            published=(
                PublishedSizes("Partial-REID", 300, 300, 300),
                PublishedSizes("Partial-iLIDS", 119, 119, 119),
            ),
        ),
        _across_cameras(
            "mars-official",
            "MARS: the gallery holds the queries, and each is left out of its own ranking by its camera, so that all "
            "1,980 have a match.",
            "Zheng et al. 2016, MARS: A Video Benchmark for Large-Scale Person Re-identification",
            queries_in_gallery=True,
            published=(PublishedSizes("MARS", 1_980, 11_310, 1_980),),
        ),
        _across_cameras(
            "mars-torchreid",
            "MARS without the queries in the gallery, as several toolkits take it: 140 queries have no match and are "
            "not scored.",
            "Zhou and Xiang 2019, Torchreid: A Library for Deep Learning Person Re-identification in PyTorch",
            published=(PublishedSizes("MARS (queries not in the gallery)", 1_980, 9_330, 1_840),),
        ),
        _across_cameras(
            "ilids-vid",
            "iLIDS-VID: 150 people, query from one camera and gallery from the other; of one split, the published "
            "numbers are means over 10.",
            "Wang et al. 2014, Person Re-identification by Video Ranking",
            splits=10,
            published=(PublishedSizes("iLIDS-VID", 150, 150, 150),),
        ),
        _across_cameras(
            "prid2011",
            "PRID2011, multi-shot: 89 people, query from camera A and gallery from camera B; of one split, the "
            "published numbers are means over 10.",
            "Hirzer et al. 2011, Person Re-identification by Descriptive and Discriminative Classification; splits: "
            "Wang et al. 2014",
            splits=10,
            published=(PublishedSizes("PRID2011", 89, 89, 89),),
        ),
        Protocol(
            "all-vs-all",
            "Every sample against all others, without a rule of cameras: query and gallery are the same rows, and a "
            "sample is left out of its own ranking.",
            remove_same_camera=False,
            ignored_pids=(-1,),
            average_precision="step",
            source="Song et al. 2016, Deep Metric Learning via Lifted Structured Feature Embedding",
            gallery_is_query=True,
        ),
    )
}


def protocol_name(name: str) -> str:
    """The name as ``PROTOCOLS`` spells it: underscores and hyphens are one, capitals do not matter."""
    return name.lower().replace("_", "-")


def get_protocol(protocol: str | Protocol, average_precision: str | None = None) -> Protocol:
    """The protocol of that name; a ``Protocol`` is passed through.

    Args:
        protocol: A name in ``PROTOCOLS``, hyphens or underscores, or a ``Protocol``.
        average_precision: ``step`` or ``trapezoid`` in place of the protocol's own.

    Raises:
        TypeError: Neither a name nor a protocol.
        ValueError: An unknown protocol, or another average precision.
    """
    if not isinstance(protocol, Protocol):
        if not isinstance(protocol, str):
            raise TypeError(f"protocol: got {type(protocol).__name__}, supported are a name and a Protocol")
        found = PROTOCOLS.get(protocol_name(protocol))
        if found is None:
            raise ValueError(f"protocol: got {protocol!r}, known are {', '.join(sorted(PROTOCOLS))}")
        protocol = found
    if average_precision is None:
        return protocol
    for known in get_args(AveragePrecision):
        if known == average_precision:
            return replace(protocol, average_precision=known)
    raise ValueError(
        f"average_precision: got {average_precision!r}, supported are {', '.join(get_args(AveragePrecision))}"
    )
