"""Evaluation of a network on named datasets under a retrieval protocol."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import nn

from motarfuse import __version__
from motarfuse.data import ClipSampling, ClipStore, ImageStore, Tracklet, TrackletDataset
from motarfuse.data.any_dataset import AnyDataset, load_any_dataset
from motarfuse.engine.checkpoint import find_checkpoint, load_model
from motarfuse.engine.config import DataConfig, EvaluationConfig, check_set_name
from motarfuse.engine.device import choose_device
from motarfuse.engine.evaluation_details import Details, describe
from motarfuse.engine.evaluation_record import per_query, rank_list_records
from motarfuse.engine.extractor import encode, encode_tracklets
from motarfuse.engine.outputs import make_folder, write_json
from motarfuse.engine.protocol_choice import AUTO, choose_protocol, compare_with_published
from motarfuse.engine.settings import require_positive
from motarfuse.engine.sources import open_store
from motarfuse.errors import ConfigError, DataError, TrainingError
from motarfuse.retrieval import (
    METRICS,
    PROTOCOLS,
    SCORES,
    EvaluationResult,
    choose_score,
    evaluate,
    rank_lists,
    select_queries,
)
from motarfuse.retrieval.protocols import get_protocol, protocol_name

TOP_K = 10


@dataclass(frozen=True)
class Evaluation:
    """The outcome of one evaluation.

    Attributes:
        name: Name of the evaluation set.
        metrics: mAP, mINP, rank1, rank5, rank10 as fractions; num_valid, num_query, num_gallery.
        record: Everything, as it is written to ``evaluations/<name>.json``. Its ``metrics``, ``cmc``, ``manifest`` and
            ``rank_lists`` are of ``score``; ``scores`` holds metrics and ``cmc`` of every score that the network
            gives, by name, ``queries`` their ``pid``, ``average_precision``, ``inp`` and ``first_rank``: lists over the
            valid queries in order.
    """

    name: str
    metrics: dict[str, float | int]
    record: dict[str, Any]

    @property
    def score(self) -> str:
        """What ``metrics`` is of: feature, parts or sum."""
        return str(self.record["score"])

    @property
    def protocol(self) -> str:
        """What was counted."""
        return str(self.record["manifest"]["protocol"]["name"])

    @property
    def scores(self) -> dict[str, dict[str, Any]]:
        """Metrics by score, that of ``metrics`` first."""
        found: dict[str, dict[str, Any]] = self.record["scores"]
        return {self.score: found[self.score], **found}

    def __str__(self) -> str:
        numbers = self.metrics
        by = f" by {self.score}" if len(self.scores) > 1 else ""
        what = "tracklets" if "clips" in self.record["manifest"]["features"] else "images"
        return (
            f"{self.name}{by}: mAP {100 * numbers['mAP']:.1f}, Rank-1 {100 * numbers['rank1']:.1f}, "
            f"Rank-5 {100 * numbers['rank5']:.1f}, mINP {100 * numbers['mINP']:.1f} "
            f"({numbers['num_valid']} queries, {numbers['num_gallery']} gallery {what})"
        )


class EvaluationSet:
    """A dataset's query and gallery, checked when it is made, read when it is first evaluated and kept.

    Args:
        name: Name of the set.
        dataset: The dataset.
        size: (height, width) in pixels.
        data: How images are read.
        sampling: Which frames of tracklets are evaluated.

    Raises:
        DataError: Query or gallery is empty, or no query has a match.
    """

    def __init__(
        self,
        name: str,
        dataset: AnyDataset,
        size: tuple[int, int],
        data: DataConfig,
        sampling: ClipSampling | None = None,
    ) -> None:
        dataset.require_evaluation()
        self.name = name
        self.dataset = dataset
        self.sampling = ClipSampling() if sampling is None else sampling
        self._size = size
        self._data = data
        self._stores: tuple[ImageStore | ClipStore, ImageStore | ClipStore] | None = None

    @property
    def has_tracklets(self) -> bool:
        """Whether query and gallery are tracklets."""
        return isinstance(self.dataset.query[0], Tracklet)

    @property
    def stores(self) -> tuple[ImageStore | ClipStore, ImageStore | ClipStore]:
        """Query and gallery images."""
        if self._stores is None:
            query, gallery = self.dataset.query, self.dataset.gallery
            self._stores = (
                open_store(query, self._size, self._data, verify=False),
                open_store(gallery, self._size, self._data, verify=False),
            )
        return self._stores

    def close(self) -> None:
        """Ends the reading threads."""
        for store in self._stores or ():
            store.close()


def evaluate_model(
    model: nn.Module,
    subject: EvaluationSet,
    config: EvaluationConfig,
    *,
    step: int,
    device: torch.device,
    precision: str = "fp32",
    details: Details | None = None,
) -> Evaluation:
    """Encodes query and gallery and scores them, by each score that the network gives.

    Args:
        model: The network; its mode is kept.
        subject: Query and gallery.
        config: Protocol, metric, score, batch size, flip.
        step: Training step of the weights, for the record.
        device: Where to compute.
        precision: Autocast type.
        details: What else to find out; None: nothing.

    Raises:
        ConfigError: A score of parts is wanted of a network that has none.
        DataError: Images cannot be read, or no query has a match among those that can.
        TrainingError: Features are not finite.
    """
    check_evaluation(config)
    details = Details() if details is None else details
    protocol = choose_protocol(config.protocol, subject.dataset)
    query_store, gallery_store = subject.stores
    sides = []
    for title, store in (("query", query_store), ("gallery", gallery_store)):
        encoding: dict[str, Any] = {
            "batch_size": config.batch_size,
            "device": device,
            "precision": precision,
            "flip": config.flip,
            "description": f"{subject.name}: {title}",
        }
        if isinstance(store, ClipStore):
            features, kept = encode_tracklets(model, store, subject.sampling, **encoding)
        else:
            features, kept = encode(model, store, **encoding)
        if config.score in ("parts", "sum") and not features.has_parts:
            raise ConfigError(
                f"evaluation.score is {config.score}, but this network has no parts; supported are auto and feature"
            )
        if not features.is_finite():
            raise TrainingError(f"{subject.name}: the network's features are not finite; the training has diverged")
        sides.append((features, [store.records[index] for index in kept]))
    (query, query_records), (gallery, gallery_records) = sides
    pids, camids = (
        [np.array([getattr(record, name) for record in records]) for records in (query_records, gallery_records)]
        for name in ("pid", "camid")
    )
    has_parts = query.has_parts
    chosen = choose_score(config.score, config.metric, query_parts=has_parts, gallery_parts=has_parts)
    given = SCORES if has_parts and config.metric == "cosine" else ("feature",)
    results: dict[str, EvaluationResult] = {}
    try:
        for score in given:
            results[score] = evaluate(
                query,
                gallery,
                *pids,
                *camids,
                protocol=protocol,
                metric=config.metric,
                score=score,
                average_precision=details.average_precision,
            )
    except ValueError as error:
        raise DataError(f"{subject.dataset.root}: {error}") from error
    result = results[chosen]
    options: dict[str, Any] = {"protocol": protocol, "metric": config.metric, "score": chosen}
    lists = rank_lists(
        query,
        gallery,
        *pids,
        *camids,
        k=TOP_K,
        queries=select_queries(result.average_precision),
        **options,
    )
    root = _base(subject)

    unreadable = [item for store in subject.stores for item in store.skipped]
    found = result.to_dict()
    record = {
        "name": subject.name,
        "dataset": subject.dataset.name,
        "root": str(root.resolve()),
        "step": step,
        "score": chosen,
        "metrics": found["metrics"],
        "cmc": found["cmc"],
        "scores": {score: {**one.metrics, "cmc": one.to_dict()["cmc"]} for score, one in results.items()},
        "queries": {score: per_query(one) for score, one in results.items()},
        "manifest": {
            **found["manifest"],
            "motarfuse": __version__,
            "dataset": {
                "kind": subject.dataset.kind,
                "layout": subject.dataset.variant,
                "protocol": _splits_of(subject),
                "unreadable": [str(item.path) for item in unreadable],
            },
            "features": {
                "image_size": list(query_store.size),
                "flip": config.flip,
                "precision": precision,
                **({"clips": subject.sampling.to_dict()} if subject.has_tracklets else {}),
            },
        },
        "rank_lists": rank_list_records(lists, result, query_records, gallery_records, root),
        "notes": compare_with_published(result, subject.dataset),
        **describe(details, result, (query, gallery, *pids, *camids), options, subject.dataset, query_records),
    }
    return Evaluation(subject.name, found["metrics"], record)


def check_evaluation(config: EvaluationConfig) -> None:
    """Checks the names that the retrieval room owns.

    Raises:
        ConfigError: An unknown protocol, metric or score, or a score of parts under a metric but cosine.
    """
    for key, value, known in (
        ("protocol", protocol_name(config.protocol), (AUTO, *sorted(PROTOCOLS))),
        ("metric", config.metric, METRICS),
        ("score", config.score, ("auto", *SCORES)),
    ):
        if value not in known:
            raise ConfigError(f"evaluation.{key} must be one of {', '.join(known)}, got {value!r}")
    if config.metric != "cosine" and config.score in ("parts", "sum"):
        raise ConfigError(
            f"evaluation.score is {config.score} and evaluation.metric {config.metric}; parts are compared by "
            "cosine only"
        )


def write_evaluation(evaluation: Evaluation, run_dir: Path) -> Path:
    """Writes ``run_dir/evaluations/<name>.json`` atomically.

    Raises:
        OutputError: It cannot be written.
    """
    path = make_folder(run_dir / "evaluations") / f"{evaluation.name}.json"
    write_json(path, evaluation.record)
    return path


def read_evaluation(run_dir: Path, subject: EvaluationSet, config: EvaluationConfig, step: int) -> Evaluation | None:
    """The evaluation that a run holds, if it is of this step, dataset, protocol and score; None otherwise."""
    path = run_dir / "evaluations" / f"{subject.name}.json"
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        manifest = record["manifest"]
        found = (
            record["step"],
            record["root"],
            (manifest["protocol"]["name"], manifest["protocol"]["average_precision"]),
            manifest["metric"],
            manifest["features"]["flip"],
            manifest["features"].get("clips"),
            manifest["dataset"]["layout"],
            manifest["dataset"].get("protocol", ""),
            record["score"],
        )
        # Which score `auto` is depends on the network, and the record tells which scores that has.
        best = "sum" if "sum" in record["scores"] else "feature"
        metrics = record["metrics"]
    except (OSError, ValueError, KeyError, TypeError):
        return None  # absent, or not ours: it is made anew
    score = best if config.score == "auto" else config.score
    clips = subject.sampling.to_dict() if subject.has_tracklets else None
    layout = (subject.dataset.variant, _splits_of(subject))
    rules = get_protocol(choose_protocol(config.protocol, subject.dataset))
    protocol = (rules.name, rules.average_precision)
    wanted = (step, str(_base(subject).resolve()), protocol, config.metric, config.flip, clips, *layout, score)
    return Evaluation(subject.name, metrics, record) if found == wanted else None


def _splits_of(subject: EvaluationSet) -> str:
    """Which of a dataset's protocols its splits follow, in words; empty where it has one only."""
    dataset = subject.dataset
    return dataset.protocol if isinstance(dataset, TrackletDataset) else ""


def _base(subject: EvaluationSet) -> Path:
    """The folder that a dataset's paths start from."""
    root = subject.dataset.root
    return root if root.is_dir() else root.parent


def evaluate_checkpoint(
    checkpoint: str | Path,
    root: str | Path,
    *,
    kind: str = "auto",
    name: str = "test",
    protocol: str = AUTO,
    metric: Literal["cosine", "euclidean"] = "cosine",
    score: Literal["auto", "feature", "parts", "sum"] = "auto",
    batch_size: int = 128,
    flip: bool = False,
    device: str = "auto",
    precision: str = "fp32",
    workers: int = 2,
    sampling: ClipSampling | None = None,
    details: Details | None = None,
    out: str | Path | None = None,
) -> Evaluation:
    """Evaluates a checkpoint on a dataset.

    Args:
        checkpoint: A run's folder, a checkpoint's, or the name of a packaged network.
        root, kind: The dataset.
        name: Name of the evaluation, and of the file it is written to.
        protocol, metric, score: What is counted (``auto``: as is usual for the dataset's kind), how features are
            compared, and which score the results are of.
        batch_size, flip, device, precision, workers: How images are encoded.
        sampling: Which frames of tracklets are seen; None: all, in clips of 8.
        details: What else to find out: breakdowns, intervals, ROC.
        out: Run folder in which ``evaluations/<name>.json`` is written; None writes nothing.

    Raises:
        CheckpointError, DataError, ConfigError, OutputError: What cannot be read, scored or written, and why.
    """
    check_set_name("name", name)
    require_positive(batch_size=batch_size, workers=workers)
    config = EvaluationConfig(protocol=protocol, metric=metric, score=score, batch_size=batch_size, flip=flip)
    check_evaluation(config)
    target = choose_device(device)
    folder = find_checkpoint(checkpoint)
    model, metadata = load_model(folder, device=target)
    data = DataConfig(workers=workers, cache="disk")
    subject = EvaluationSet(name, load_any_dataset(root, kind), model.image_size, data, sampling)  # type: ignore[arg-type]
    try:
        evaluation = evaluate_model(
            model, subject, config, step=metadata["step"], device=target, precision=precision, details=details
        )
    finally:
        subject.close()
    if out is not None:
        write_evaluation(evaluation, Path(out))
    return evaluation
