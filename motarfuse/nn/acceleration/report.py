"""What ``motarfuse.accelerate`` did to a model, and what it left alone."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple


class Replaced(NamedTuple):
    """A module whose forward runs operators now.

    Attributes:
        name: Its qualified name in the model, "" for the model itself.
        module: The name of its class.
        by: The operator.
        note: When its own forward runs nevertheless, beside what holds for all; empty if never.
    """

    name: str
    module: str
    by: str
    note: str = ""


class Kept(NamedTuple):
    """A module that looks like one to replace and was left alone.

    Attributes:
        name: Its qualified name in the model, "" for the model itself.
        module: The name of its class.
        why: The reason.
    """

    name: str
    module: str
    why: str


@dataclass(frozen=True)
class AccelerateReport:
    """What was replaced and what was left, in the order of ``model.named_modules()``.

    Attributes:
        replaced: With what each runs now.
        left: With the reason for each.
    """

    replaced: list[Replaced]
    left: list[Kept]

    def __str__(self) -> str:
        """Modules that differ only by a number in their names share a line."""
        if not self.replaced and not self.left:
            return "nothing replaced: no attention, MLP or block of a known structure"
        lines = [f"{len(self.replaced)} modules replaced"]
        for (module, by, note), names in _grouped((one.name, one[1:]) for one in self.replaced):
            lines.append(f"  {names} ({module}): {by}" + (f"; {note}" if note else ""))
        if self.left:
            lines.append(f"{len(self.left)} left alone")
            for (module, why), names in _grouped((one.name, one[1:]) for one in self.left):
                lines.append(f"  {names} ({module}): {why}")
        return "\n".join(lines)


def _grouped(entries: Iterable[tuple[str, tuple[str, ...]]]) -> list[tuple[tuple[str, ...], str]]:
    groups: dict[tuple[str, tuple[str, ...]], list[str]] = {}
    for name, details in entries:
        groups.setdefault((re.sub(r"\d+", "*", name), details), []).append(name)
    return [
        (details, f"{pattern} x {len(names)}" if len(names) > 1 else names[0] or "the model itself")
        for (pattern, details), names in groups.items()
    ]
