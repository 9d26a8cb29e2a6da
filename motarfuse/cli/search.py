"""``motarfuse search``: finds the person of one image among extracted features."""

from __future__ import annotations

import argparse
import io
import json
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from rich import box
from rich.markup import escape
from rich.table import Table

from motarfuse.cli.arguments import add_score
from motarfuse.console import console, info, warn
from motarfuse.data.images import read_image
from motarfuse.engine.checkpoint import describe_checkpoint, find_checkpoint, load_model, locate_checkpoint
from motarfuse.engine.device import choose_device
from motarfuse.engine.extractor import encode
from motarfuse.engine.outputs import make_folder, write_bytes
from motarfuse.errors import CheckpointError, ConfigError, OutputError
from motarfuse.retrieval import METRICS, SCORES, Labels, PersonFeatures, Where, choose_score, search
from motarfuse.retrieval.feature_folder import FeatureFolder, read_features
from motarfuse.retrieval.tiles import ScoreTiles
from motarfuse.viz.crops import load_crop
from motarfuse.viz.rank_list import RankEntry, draw_rank_list

DEFAULT_K = 10
DEFAULT_OUT = Path("rank.png")

EPILOG = """\
The query is encoded by the model that made the features; it is found through the features' manifest and recognised by
its SHA-256. Features of a network with body parts are compared by the cosine of the whole person's feature, by the
parts weighted with their visibility, and by the sum of both; --score says by which the results are ordered. Where the
query itself is one of the images, its identity is known and right and wrong results are marked.

examples:
  motarfuse extract runs/demo/run crops/ features/
  motarfuse search somebody.jpg features/ -k 5 --out somebody.png
  motarfuse search somebody.jpg features/ --not-camera 2
"""


def configure(parser: argparse.ArgumentParser) -> None:
    parser.epilog = EPILOG
    parser.add_argument("query", metavar="QUERY_IMAGE", type=Path, help="an image of one person, cropped")
    parser.add_argument("features", metavar="FEATURES_DIR", type=Path, help="a folder that `motarfuse extract` wrote")
    parser.add_argument("-k", type=int, metavar="N", help=f"how many results (default {DEFAULT_K}, or all if fewer)")
    parser.add_argument(
        "--metric", choices=METRICS, default="cosine", help="how features are compared (default cosine)"
    )
    add_score(parser)
    cameras = parser.add_mutually_exclusive_group()
    cameras.add_argument("--camera", type=int, nargs="+", metavar="N", help="only images of these cameras")
    cameras.add_argument("--not-camera", type=int, nargs="+", metavar="N", help="no images of these cameras")
    parser.add_argument(
        "--checkpoint",
        type=Path,
        metavar="PATH",
        help="where the model is now, if it has moved: a run, a checkpoint or a packaged network's name",
    )
    parser.add_argument(
        "--out", type=Path, metavar="FILE", help=f"the picture (default {DEFAULT_OUT}; with --json none unless given)"
    )
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N (default auto)")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of a table")


def run(args: argparse.Namespace) -> int:
    picture = args.out if args.out is not None or args.json else DEFAULT_OUT
    # Everything that can be wrong is looked at before the model is loaded.
    if picture is not None:
        _check_suffix(picture)
    query = Image.fromarray(read_image(args.query))
    gallery = read_features(args.features)
    size = len(gallery.paths)
    k = min(DEFAULT_K, size) if args.k is None else args.k
    if not 1 <= k <= size:
        raise ConfigError(f"-k {k}: {gallery.path} holds {size} images, supported are 1 to {size}")
    where = Where(camids=args.camera, not_camids=args.not_camera)
    _check_cameras(where, gallery)
    score = _score_of(args.score, args.metric, gallery)
    results = find(
        args.query,
        gallery,
        k,
        metric=args.metric,
        score=score,
        where=where,
        checkpoint=args.checkpoint,
        device=args.device,
        announce=not args.json,
    )
    if args.json:
        answer = {"query": str(args.query), "metric": args.metric, "score": score, "results": results}
        print(json.dumps(answer, indent=2))
    else:
        console.print(_table(results, args.metric, score))
    if picture is not None:
        _draw(query, results, picture, f"{args.query.name} in {size:,} images")
        if not args.json:
            info(f"picture: {picture}")
    return 0


def _score_of(score: str, metric: str, gallery: FeatureFolder) -> str:
    """The score that is asked for, or the one that ``auto`` stands for.

    Raises:
        ConfigError: The features do not allow it.
    """
    parts = gallery.features.has_parts
    if score in ("parts", "sum") and not parts:
        raise ConfigError(
            f"--score {score}: {gallery.path} holds no parts; use --score feature, or extract with a network "
            "that has parts"
        )
    try:
        return choose_score(score, metric, query_parts=parts, gallery_parts=parts)
    except ValueError as error:
        raise ConfigError(f"--score {score}: {error}") from error


def _check_cameras(where: Where, gallery: FeatureFolder) -> None:
    """A camera that no image is from is a slip of the hand.

    Raises:
        ConfigError: Such a camera, or none that is left.
    """
    found = {camid for camid in gallery.camids if camid != -1}
    named = {"--camera": where.camids, "--not-camera": where.not_camids}
    for option, camids in named.items():
        unknown = sorted(set(camids or ()) - found)
        if unknown:
            known = ", ".join(map(str, sorted(found))) or "none"
            raise ConfigError(f"{option} {unknown[0]}: {gallery.path} holds no image of it; its cameras: {known}")
    if where.not_camids is not None and set(gallery.camids) <= set(where.not_camids):
        raise ConfigError(f"--not-camera: {gallery.path} holds images of these cameras only")


def find(
    query: Path,
    gallery: FeatureFolder,
    k: int,
    *,
    metric: str,
    score: str,
    where: Where | None = None,
    checkpoint: Path | None,
    device: str,
    announce: bool = True,
) -> list[dict[str, Any]]:
    """The best images for a query image, k or as many as there are: rank, scores, path, labels, match, is_query.

    Raises:
        CheckpointError: The model is not there, is another one, or the features are damaged.
        DataError: The query cannot be read.
    """
    target = choose_device(device)
    model, _ = load_model(_model_of(gallery, checkpoint), device=target, announce=announce)
    manifest = gallery.manifest
    person, _ = encode(
        model,
        [query],
        device=target,
        precision=str(manifest.get("precision", "fp32")),
        flip=bool(manifest.get("flip", False)),
        workers=1,
    )
    try:
        labels = Labels(camids=gallery.camids)
        values, indices = search(
            person, gallery.features, k, metric=metric, score=score, where=where, gallery_labels=labels
        )
        values, indices = (found[:, indices[0] >= 0] for found in (values, indices))
        others = _other_scores(person, gallery.features.select(indices[0]), score) if metric == "cosine" else {}
    except ValueError as error:
        raise CheckpointError(f"{gallery.path}: {error}") from error
    resolved = query.resolve()
    own = next((pid for path, pid in zip(gallery.paths, gallery.pids, strict=True) if path.resolve() == resolved), -1)
    return [
        {
            "rank": rank,
            "score": value,
            "scores": {score: value, **{name: other[rank - 1] for name, other in others.items()}},
            "pid": gallery.pids[index],
            "camid": gallery.camids[index],
            "match": gallery.pids[index] == own if own != -1 and gallery.pids[index] != -1 else None,
            "is_query": gallery.paths[index].resolve() == resolved,
            "path": str(gallery.paths[index]),
        }
        for rank, (value, index) in enumerate(zip(values[0].tolist(), indices[0].tolist(), strict=True), start=1)
    ]


def _other_scores(person: PersonFeatures, found: PersonFeatures, score: str) -> dict[str, list[float]]:
    """What the other scores say of results that were ordered by ``score``."""
    names = [name for name in SCORES if name != score] if found.has_parts else []
    rows, columns = torch.zeros(len(found), dtype=torch.int64), torch.arange(len(found))
    tiles = {name: ScoreTiles(person, found, score=name) for name in names}
    return {name: one.public(one.pair_scores(rows, columns)).tolist() for name, one in tiles.items()}


def _model_of(gallery: FeatureFolder, checkpoint: Path | None) -> Path:
    """The checkpoint that made the features; features of another model have nothing to do with this one's."""
    try:
        noted = gallery.manifest["checkpoint"]
        folder = find_checkpoint(checkpoint) if checkpoint is not None else locate_checkpoint(noted)
        found = describe_checkpoint(folder, noted.get("step", 0))["sha256"]
    except CheckpointError as error:
        if checkpoint is not None:
            raise
        raise CheckpointError(
            f"the model that made {gallery.path} is not at {gallery.checkpoint_path} any more ({error}); "
            "say where it is with --checkpoint, or extract again"
        ) from error
    if found != gallery.checkpoint_sha256:
        raise CheckpointError(
            f"{gallery.path} holds features of another model than {folder} (SHA-256 {gallery.checkpoint_sha256[:12]} "
            f"and {found[:12]}...); extract again with this one, or give the right one with --checkpoint"
        )
    return folder


def _table(results: list[dict[str, Any]], metric: str, score: str) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("rank", justify="right")
    several = len(results[0]["scores"]) > 1
    table.add_column("distance" if metric == "euclidean" else score if several else "score", justify="right")
    others = [name for name in results[0]["scores"] if name != score]
    for name in others:
        table.add_column(name, justify="right")
    table.add_column("pid", justify="right")
    table.add_column("camid", justify="right")
    marked = any(result["match"] is not None for result in results)
    if marked:
        table.add_column("match")
    # A path is there to be copied: it is never folded, rather the terminal breaks the line.
    table.add_column("path", min_width=max(len(result["path"]) for result in results))
    for result in results:
        match = {True: "[green]right[/]", False: "[red]wrong[/]", None: "-"}[result["match"]]
        if result["is_query"]:
            match = "the query"
        scores = [f"{result['scores'][name]:.4f}" for name in (score, *others)]
        cells = [str(result["rank"]), *scores, *(_known(result[key]) for key in ("pid", "camid"))]
        table.add_row(*cells, *([match] if marked else []), escape(result["path"]))
    return table


def _known(label: int) -> str:
    return "-" if label == -1 else str(label)


def _check_suffix(picture: Path) -> None:
    """The picture's format is chosen by its name, so that the name has to be one."""
    Image.init()
    if Image.EXTENSION.get(picture.suffix.lower()) not in Image.SAVE:
        raise OutputError(f"cannot write {picture}: the name's ending chooses the format; use .png, .jpg or .webp")


def _draw(query: Image.Image, results: list[dict[str, Any]], target: Path, title: str) -> None:
    entries = []
    for result in results:
        image, reason = load_crop(result["path"])
        if image is None:
            warn(f"{result['path']}: {reason}; drawn as a grey card")
        entries.append(RankEntry(image, result["score"], result["pid"], result["camid"], result["match"]))
    buffer = io.BytesIO()
    draw_rank_list(query, entries, title=title).save(buffer, Image.EXTENSION[target.suffix.lower()])
    make_folder(target.parent)
    write_bytes(target, buffer.getvalue())
