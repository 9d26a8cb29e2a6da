"""One checkpoint on every random split of a dataset, and the means that papers print."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from motarfuse.data.any_dataset import load_any_dataset
from motarfuse.engine.config import check_set_name
from motarfuse.engine.evaluator import Evaluation, evaluate_checkpoint
from motarfuse.engine.outputs import make_folder, write_json
from motarfuse.engine.protocol_choice import AUTO, choose_protocol
from motarfuse.errors import ConfigError
from motarfuse.retrieval.protocols import PROTOCOLS
from motarfuse.retrieval.splits import SplitsResult, mean_of_splits


@dataclass(frozen=True)
class SplitEvaluations:
    """The evaluations of all splits.

    Attributes:
        name: Name of the whole.
        evaluations: One a split, named ``<name>-split00`` and so on.
        means: Of their metrics.
    """

    name: str
    evaluations: tuple[Evaluation, ...]
    means: SplitsResult

    @property
    def record(self) -> dict[str, Any]:
        """As it is written to ``evaluations/<name>.json``: means in place of one split's numbers."""
        first = self.evaluations[0].record
        means = self.means.to_dict()
        manifest = first["manifest"]
        return {
            **{key: first[key] for key in ("dataset", "root", "step", "score")},
            "name": self.name,
            "metrics": means["mean"],
            "deviation": means["deviation"],
            "cmc": means["cmc"],
            "cmc_deviation": means["cmc_deviation"],
            "splits": {one.name: one.metrics for one in self.evaluations},
            "manifest": {
                **{key: manifest[key] for key in ("protocol", "ties", "metric", "motarfuse", "features")},
                "num_splits": self.means.num_splits,
                "sha256": means["sha256"],
            },
        }


def with_split(kind: str, split: int) -> str:
    """A kind as text with the option ``split``: ``cuhk03:protocol=classic,split=3``."""
    return f"{kind}{',' if ':' in kind else ':'}split={split}"


def evaluate_splits(
    checkpoint: str | Path,
    root: str | Path,
    *,
    kind: str = AUTO,
    name: str = "test",
    out: str | Path | None = None,
    **options: Any,
) -> SplitEvaluations:
    """Evaluates a checkpoint on every split of iLIDS-VID, PRID2011 or CUHK03 by its classic protocol.

    The published numbers are means over splits with a network trained on *each split's own* people. One checkpoint on
    all splits is that only where it was trained on other data: of the people of another split, half are test people.

    Args:
        checkpoint, root, kind: As of ``evaluate_checkpoint``; ``kind`` without a split.
        name: Of the whole; a split's evaluation gets ``-split00`` and so on behind it.
        out: Run folder for ``evaluations/<name>.json`` with the means and one file a split; None writes nothing.
        options: The rest of what ``evaluate_checkpoint`` takes.

    Raises:
        ConfigError: The dataset has one division of its people only.
        CheckpointError, DataError, OutputError: As of ``evaluate_checkpoint``.
    """
    check_set_name("name", name)
    dataset = load_any_dataset(root, kind)
    protocol = PROTOCOLS[choose_protocol(AUTO, dataset)]
    if protocol.splits == 1:
        raise ConfigError(
            f"{root}: read as kind {dataset.kind} ({dataset.variant}), which has one division of its people; those "
            "with several are ilids-vid, prid2011 and cuhk03:protocol=classic"
        )
    evaluations = tuple(
        evaluate_checkpoint(
            checkpoint, root, kind=with_split(kind, split), name=f"{name}-split{split:02d}", out=out, **options
        )
        for split in range(protocol.splits)
    )
    found = SplitEvaluations(name, evaluations, mean_of_splits([one.record for one in evaluations]))
    if out is not None:
        write_json(make_folder(Path(out) / "evaluations") / f"{name}.json", found.record)
    return found
