"""Rows of the report: the committed table, what fails a kernel, and what changed."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

KB = 1024
SMS, ISSUES_PER_CLOCK, CLOCK_MHZ = 132, 4, 1755  # an H100 SXM
REGISTERS_PER_PARTITION, PARTITIONS, WARPS_PER_SM, CTAS_PER_SM = 16384, 4, 64, 32
TENSOR_MEMORY_COLUMNS = 512


class Architecture(NamedTuple):
    """Shared memory in bytes: what one CTA may have, and what an SM has; each CTA takes 1 KB more than it asks for."""

    shared_per_cta: int
    shared_per_sm: int


ARCHITECTURES = {
    80: Architecture(163 * KB, 164 * KB),
    90: Architecture(227 * KB, 228 * KB),
    100: Architecture(227 * KB, 228 * KB),
}


class Row(NamedTuple):
    """A kernel on an architecture; sizes in bytes, None where a number is not known.

    Attributes:
        name: Of a Triton case, or ``file.cu kernel<types>``.
        architecture: ``sm_90`` or ``sm_90a``.
        compiler: What made it; numbers of other versions are listed, but fail nothing.
        stack, spill_bytes: A thread's local memory, and what it stores to and loads from it.
        local: Instructions that do so.
        matrix: Matrix instructions of any kind; hgmma, hmma and tcgen05 are some of them.
        ldg, ldg_128, ldgsts_128: Loads from global memory, those of 16 bytes or more, and those into shared memory.
        instructions: Instructions of the program.
        loops: Loops in it.
        issued: Warp-instructions that a program issues, by `sass.estimate`.
        issue_us: The time in which an H100 can issue them at best, for all programs of ``shape``; sm_90 only.
        ctas_per_sm: CTAs that fit an SM by registers, shared memory, warps and tensor memory.
        note: What to know about the numbers.
    """

    name: str
    architecture: str
    dtype: str
    shape: str
    compiler: str
    warps: int | None
    stages: int | None
    registers: int
    shared: int
    stack: int
    spill_bytes: int
    local: int | None = None
    hgmma: int | None = None
    hmma: int | None = None
    tcgen05: int | None = None
    matrix: int | None = None
    ldg: int | None = None
    ldg_128: int | None = None
    ldgsts_128: int | None = None
    ex2: int | None = None
    instructions: int | None = None
    loops: int | None = None
    issued: int | None = None
    issue_us: float | None = None
    ctas_per_sm: int | None = None
    note: str = ""

    @property
    def key(self) -> tuple[str, str]:
        return self.name, self.architecture

    @property
    def title(self) -> str:
        return f"{self.name} ({self.architecture})"


class Margin(NamedTuple):
    """How much a number may grow: the larger of a part of it and an amount."""

    part: float
    amount: int


# Other versions of the same kernel differ this much for no reason; instructions grow more when wide accesses are lost.
MARGINS = {
    "registers": Margin(0, 8),
    "shared": Margin(0.05, 0),
    "spill_bytes": Margin(0, 0),
    "local": Margin(0, 0),
    "instructions": Margin(0.10, 16),
}
_TEXTS = ("name", "architecture", "dtype", "shape", "compiler", "note")
_NUMBERS = [name for name in Row._fields if name not in _TEXTS]


def ctas_per_sm(registers: int, shared: int, warps: int, architecture: int, columns: int = 0) -> int:
    """CTAs that an SM holds; ``columns`` of tensor memory."""
    per_warp = -(-registers * 32 // 256) * 256  # given out in units of 256
    by_registers = REGISTERS_PER_PARTITION // per_warp * PARTITIONS // warps
    by_shared = ARCHITECTURES[architecture].shared_per_sm // (shared + KB)
    by_columns = TENSOR_MEMORY_COLUMNS // columns if columns else CTAS_PER_SM
    return min(by_registers, by_shared, WARPS_PER_SM // warps, CTAS_PER_SM, by_columns)


def issue_us(issued: int, programs: int) -> float:
    """Microseconds in which an H100 issues that many warp-instructions a program."""
    return issued * programs / (SMS * ISSUES_PER_CLOCK * CLOCK_MHZ)


def _number(architecture: str) -> int:
    return int("".join(filter(str.isdigit, architecture)))


def failures(row: Row, expects: Iterable[str], twin: int | None = None) -> list[str]:
    """What a kernel should be and is not, as sentences.

    Args:
        row: Its numbers.
        expects: Its demands, see ``StaticCase``.
        twin: For ``tf32x3``, a third of the matrix instructions it should have.
    """
    found = []
    limit = ARCHITECTURES[_number(row.architecture)].shared_per_cta
    if row.shared > limit:
        found.append(f"{row.shared} bytes of shared memory, {row.architecture} has {limit}")
    for demand in sorted(expects):
        if demand == "no_spills" and (row.spill_bytes or row.local):
            found.append(f"spills: {row.spill_bytes} bytes of local memory moved, {row.registers} registers")
        elif demand == "matrix" and row.matrix == 0:
            found.append("has no matrix instruction at all")
        elif demand == "wgmma" and not row.hgmma and row.architecture.startswith("sm_90"):
            found.append(f"has no HGMMA ({row.matrix} other matrix instructions)")
        elif demand == "ieee" and row.matrix:
            found.append(f"has {row.matrix} matrix instructions, which are not exact in fp32")
        elif demand == "tf32x3" and (not twin or row.matrix is None or row.matrix != 3 * twin):
            found.append(f"has not three times the {twin} matrix instructions of its tf32 twin")
    return [f"{row.title} {one}" for one in found]


def compare(rows: Sequence[Row], table: Sequence[Row]) -> tuple[list[str], list[str]]:
    """(regressions, other differences) from the committed rows of the same selection, as sentences.

    Of rows that another compiler made, what would be a regression is a difference, and the rest is left out.
    """
    before = {row.key: row for row in table}
    now = {row.key: row for row in rows}
    regressions = [f"{row.title} is gone" for key, row in before.items() if key not in now]
    regressions += [f"{row.title} is new" for key, row in now.items() if key not in before]
    differences = []
    others = {(before[key].compiler, row.compiler) for key, row in now.items() if key in before}
    differences += [f"made with {new}, the table with {old}" for old, new in sorted(others) if old != new]
    for key, row in now.items():
        old = before.get(key, row)
        changed = {name for name in _NUMBERS if None not in (getattr(old, name), getattr(row, name))}
        changed = {name for name in changed if getattr(old, name) != getattr(row, name)}
        grown = {name for name in changed & set(MARGINS) if _grown(name, getattr(old, name), getattr(row, name))}
        same = row.compiler == old.compiler
        if same and grown:
            regressions.append(_change(row, old, grown))
        rest = changed - grown if same else grown
        if rest:
            differences.append(_change(row, old, rest))
    return regressions, differences


def _grown(name: str, old: float, new: float) -> bool:
    return new > old + max(MARGINS[name].part * old, MARGINS[name].amount)


def _change(row: Row, old: Row, names: set[str]) -> str:
    parts = [f"{name} {getattr(old, name)} -> {getattr(row, name)}" for name in _NUMBERS if name in names]
    return f"{row.title}: {', '.join(parts)}"


def read(path: Path) -> list[Row]:
    """The rows of the committed table; none where there is none yet."""
    if not path.is_file():
        return []
    with path.open(newline="") as file:
        return [_from_text(line) for line in csv.DictReader(file)]


def _from_text(line: dict[str, str]) -> Row:
    fields: dict[str, object] = {}
    for name in Row._fields:
        text = line[name]
        if name not in _NUMBERS:
            fields[name] = text
        elif text:
            fields[name] = float(text) if name == "issue_us" else int(text)
        else:
            fields[name] = None
    return Row(**fields)  # type: ignore[arg-type]


def write(path: Path, rows: Iterable[Row]) -> None:
    with path.open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(Row._fields)
        for row in sorted(rows, key=lambda row: (row.name, _number(row.architecture))):
            writer.writerow(["" if value is None else value for value in row])


SHOWN = {
    "architecture": "arch",
    "warps": "warps",
    "stages": "stages",
    "registers": "regs",
    "shared": "shared",
    "spill_bytes": "spills",
    "hgmma": "HGMMA",
    "hmma": "HMMA",
    "tcgen05": "UTCMMA",
    "ldg": "LDG",
    "ldg_128": "LDG128",
    "ldgsts_128": "LDGSTS128",
    "ex2": "EX2",
    "instructions": "instr",
    "issued": "issued",
    "issue_us": "us",
    "ctas_per_sm": "CTAs",
}


def text(rows: Sequence[Row]) -> str:
    """The rows for a terminal; names last, for they are long."""
    lines = [[*SHOWN.values(), "name"]]
    for row in rows:
        values = [getattr(row, name) for name in SHOWN]
        name = row.name + (f"  [{row.note}]" if row.note else "")
        lines.append([*("-" if value is None else str(value) for value in values), name])
    widths = [max(len(line[column]) for line in lines) for column in range(len(SHOWN))]
    return "\n".join(
        " ".join([*(cell.rjust(width) for cell, width in zip(line, widths, strict=False)), " " + line[-1]])
        for line in lines
    )
