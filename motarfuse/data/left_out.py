"""What was left out while something was read or written: counted by reason, and named."""

from __future__ import annotations

from typing import Any

MOST_NAMED = 1000
"""Places that are named for one reason; all are counted."""


class LeftOut:
    """Things left out, by reason.

    A reason is a fixed text, so that equal cases are counted together; the place says which one it was.
    """

    def __init__(self) -> None:
        self._counts: dict[str, int] = {}
        self._places: dict[str, list[str]] = {}

    def add(self, reason: str, place: str) -> None:
        """Counts one case.

        Args:
            reason: Why, in words that are the same for all such cases.
            place: Which one: a line of a file, a frame.
        """
        self._counts[reason] = self._counts.get(reason, 0) + 1
        places = self._places.setdefault(reason, [])
        if len(places) < MOST_NAMED:
            places.append(place)

    def update(self, other: LeftOut) -> None:
        """Adds the cases of another one."""
        for reason, count in other._counts.items():
            self._counts[reason] = self._counts.get(reason, 0) + count
            places = self._places.setdefault(reason, [])
            places.extend(other._places[reason][: MOST_NAMED - len(places)])

    def __len__(self) -> int:
        """All cases."""
        return sum(self._counts.values())

    @property
    def counts(self) -> dict[str, int]:
        """Cases of each reason, in the order in which the reasons were met."""
        return dict(self._counts)

    def places(self, reason: str) -> list[str]:
        """The first `MOST_NAMED` cases of a reason."""
        return list(self._places.get(reason, []))

    def lines(self, named: int = 3) -> list[str]:
        """A line a reason: its count, the reason and the first few places."""
        lines = []
        for reason, count in self._counts.items():
            more = ", ..." if count > named else ""
            lines.append(f"{count:,} x {reason}: {', '.join(self._places[reason][:named])}{more}")
        return lines

    def to_list(self) -> list[dict[str, Any]]:
        """For a manifest: reason, count and places; where more were counted than named, ``not_named`` says how many."""
        entries = []
        for reason, count in self._counts.items():
            places = self._places[reason]
            entry: dict[str, Any] = {"reason": reason, "count": count, "where": places}
            if count > len(places):
                entry["not_named"] = count - len(places)
            entries.append(entry)
        return entries
