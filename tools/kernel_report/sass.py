"""Reads nvdisasm's listings: which instructions a kernel has, its loops, and how many instructions a warp issues.

The dynamic count is an estimate. It follows the longest path through the program, loop bodies times their trips, so of
two sides of a branch only the longer one counts, and a side that no program takes may be that one. Trips are given by
hand, in the order in which loops begin: where Triton pipelines a loop in software or ptxas unrolls it, first and last
iterations stand outside of it or a body holds several, and the trips must say so to be exact. Bodies of called
functions (slow paths of divisions and the like) and of ``BRA.DIV`` (threads apart) do not count.
"""

from __future__ import annotations

import re
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

_INSTRUCTION = re.compile(r"/\*[0-9a-f]{4,}\*/\s+(?:(@!?U?P\w+)\s+)?([A-Z][\w.]*)\s*([^;]*);")
_LABEL = re.compile(r"^(\.L_[\w.$]+):")
_SECTION = re.compile(r"^\s*\.section\s+\.text\.([^\s,]+)")
_TARGET = re.compile(r"`\((\.L_[\w.$]+)\)")
_ENDS = ("EXIT", "RET", "BPT", "KILL", "RTT", "BRX", "JMX")
_WAITS = ("SYNCS", "UTCATOMSWS")  # barriers in shared memory, tensor memory allocation


class Instruction(NamedTuple):
    """One line of a listing; ``opcode`` has its modifiers, ``target`` is the index that a jump leads to, or -1."""

    guard: str
    opcode: str
    operands: str
    target: int


class Counts(NamedTuple):
    """Instructions in a kernel's text, however often they run."""

    instructions: int
    hgmma: int
    hmma: int
    tcgen05: int
    matrix: int
    ldg: int
    ldg_128: int
    ldgsts_128: int
    ex2: int
    local: int
    local_bytes: int


class Estimate(NamedTuple):
    """Instructions that a warp issues, and how many loops were found in the program."""

    instructions: int
    loops: int


def disassemble(tool: Path, cubin: Path) -> dict[str, list[Instruction]]:
    """The kernels of a cubin by their (mangled) names."""
    result = subprocess.run([str(tool), "-c", str(cubin)], capture_output=True, text=True)
    if result.returncode:
        raise RuntimeError(f"{tool} does not read {cubin.name}: {result.stderr.strip()}")
    return parse(result.stdout)


def parse(listing: str) -> dict[str, list[Instruction]]:
    """The kernels of an ``nvdisasm -c`` listing."""
    kernels: dict[str, tuple[list[tuple[str, str, str]], dict[str, int]]] = {}
    rows: list[tuple[str, str, str]] = []
    labels: dict[str, int] = {}
    for line in listing.splitlines():
        if section := _SECTION.match(line):
            rows, labels = kernels.setdefault(section[1], ([], {}))
        elif label := _LABEL.match(line):
            labels[label[1]] = len(rows)
        elif found := _INSTRUCTION.search(line):
            rows.append((found[1] or "", found[2], found[3].strip()))
    return {name: [_resolve(row, labels) for row in rows] for name, (rows, labels) in kernels.items()}


def _resolve(row: tuple[str, str, str], labels: dict[str, int]) -> Instruction:
    guard, opcode, operands = row
    # On sm_80 a far jump may be a CALL to a label of the same kernel that never returns.
    jumps = opcode.split(".")[0] in ("BRA", "CALL", "JMP") and ".DIV" not in opcode
    target = _TARGET.search(operands) if jumps else None
    return Instruction(guard, opcode, operands, labels[target[1]] if target else -1)


def _is(instruction: Instruction, base: str, *modifiers: str) -> bool:
    parts = instruction.opcode.split(".")
    return parts[0] == base and (not modifiers or any(part in modifiers for part in parts[1:]))


def local_bytes(instruction: Instruction) -> int:
    """Bytes of local memory a thread moves: what ``ptxas -v`` counts as spill stores and loads."""
    if not (_is(instruction, "LDL") or _is(instruction, "STL")):
        return 0
    widths = {"128": 16, "64": 8, "U16": 2, "S16": 2, "U8": 1, "S8": 1}
    return next((widths[part] for part in instruction.opcode.split(".") if part in widths), 4)


def count(program: Sequence[Instruction]) -> Counts:
    """The instructions that the report lists."""

    def number(test: Callable[[Instruction], bool]) -> int:
        return sum(test(one) for one in program)

    bases = [one.opcode.split(".")[0] for one in program]
    return Counts(
        instructions=number(lambda one: not _is(one, "NOP")),
        hgmma=bases.count("HGMMA"),
        hmma=bases.count("HMMA"),
        tcgen05=sum(base.startswith("UTC") and base.endswith("MMA") for base in bases),
        matrix=sum(base.endswith("MMA") for base in bases),
        ldg=bases.count("LDG"),
        ldg_128=number(lambda one: _is(one, "LDG", "128", "256")),
        ldgsts_128=number(lambda one: _is(one, "LDGSTS", "128")),
        ex2=number(lambda one: _is(one, "MUFU", "EX2")),
        local=number(lambda one: local_bytes(one) > 0),
        local_bytes=sum(map(local_bytes, program)),
    )


def successors(program: Sequence[Instruction]) -> list[list[int]]:
    """Which instructions may follow each one."""
    following: list[list[int]] = []
    for index, one in enumerate(program):
        base = one.opcode.split(".")[0]
        # BRA.U has its condition among the operands.
        conditional = one.guard or (one.target >= 0 and not one.operands.startswith("`"))
        targets = [one.target] if one.target >= 0 else []
        if conditional or (one.target < 0 and base not in _ENDS):
            targets.append(index + 1)
        following.append([target for target in dict.fromkeys(targets) if target < len(program)])
    return following


class Block(NamedTuple):
    """Instructions ``start`` to ``stop``, entered at the first and left at the last only."""

    start: int
    stop: int
    following: tuple[int, ...]


def blocks(program: Sequence[Instruction]) -> dict[int, Block]:
    """Those that can be reached from the first instruction, by their starts."""
    following = successors(program)
    starts = {0}
    for index, targets in enumerate(following):
        if targets != [index + 1]:
            starts.update([*targets, index + 1])
    found: dict[int, Block] = {}
    pending = [0] if program else []
    while pending:
        start = pending.pop()
        if start not in found:
            stop = start + 1
            while stop < len(program) and stop not in starts:
                stop += 1
            found[start] = Block(start, stop, tuple(following[stop - 1]))
            pending.extend(following[stop - 1])
    return found


def _postorder(graph: dict[int, Block]) -> list[int]:
    seen, order, stack = {0}, [], [(0, iter(graph[0].following))]
    while stack:
        node, targets = stack[-1]
        fresh = next((target for target in targets if target not in seen), None)
        if fresh is None:
            order.append(node)
            stack.pop()
        else:
            seen.add(fresh)
            stack.append((fresh, iter(graph[fresh].following)))
    return order


def _dominators(graph: dict[int, Block], order: list[int]) -> dict[int, set[int]]:
    entering: dict[int, list[int]] = {node: [] for node in graph}
    for node, block in graph.items():
        for target in block.following:
            entering[target].append(node)
    dominators = {node: set(graph) for node in graph}
    dominators[0] = {0}
    changed = True
    while changed:
        changed = False
        for node in reversed(order):
            if node == 0:
                continue
            fresh = set.intersection(*(dominators[one] for one in entering[node])) | {node}
            changed |= fresh != dominators[node]
            dominators[node] = fresh
    return dominators


def loops(graph: dict[int, Block]) -> dict[int, set[int]]:
    """Blocks of every natural loop by the start of its first block, in the order of the program.

    A block placed out of line that jumps back into the middle of the program makes no loop: the program can get there
    without it.
    """
    if not graph:
        return {}
    dominators = _dominators(graph, _postorder(graph))
    found: dict[int, set[int]] = {}
    for node, block in graph.items():
        for head in block.following:
            if head in dominators[node]:
                body = found.setdefault(head, {head})
                pending = [node]
                while pending:
                    one = pending.pop()
                    if one not in body:
                        body.add(one)
                        pending.extend(other for other, before in graph.items() if one in before.following)
    return dict(sorted(found.items()))


def estimate(program: Sequence[Instruction], trips: Sequence[int]) -> Estimate:
    """Instructions on the longest path of a warp; loops without a trip count run once, and so do those that wait."""
    graph = blocks(program)
    if not graph:
        return Estimate(0, 0)
    found = {head: body for head, body in loops(graph).items() if not _waits(program, graph, body)}
    times = dict(zip(found, trips, strict=False))
    weight = {
        start: sum(not _is(program[index], "NOP") for index in range(start, block.stop))
        for start, block in graph.items()
    }
    owner = {start: start for start in graph}  # the collapsed loop that a block is part of by now, by its head
    edges = {start: set(block.following) for start, block in graph.items()}
    for head, body in sorted(found.items(), key=lambda item: len(item[1])):
        inside = {owner[one] for one in body}
        weight[head] = _longest(head, inside, edges, weight) * times.get(head, 1)
        leaving = set().union(*(edges[one] for one in inside))
        for one, other in owner.items():
            if other in inside:
                owner[one] = head
        edges = {one: {owner[target] for target in targets} for one, targets in edges.items() if owner[one] == one}
        edges[head] = {owner[target] for target in leaving} - {head}
    return Estimate(_longest(0, set(edges), edges, weight), len(found))


def _longest(first: int, inside: set[int], edges: dict[int, set[int]], weight: dict[int, int]) -> int:
    """The heaviest path from ``first`` that stays inside and enters no block twice."""
    best: dict[int, int] = {}
    stack: list[tuple[int, bool]] = [(first, False)]
    path: set[int] = set()
    while stack:
        node, done = stack.pop()
        if done:
            path.discard(node)
            best[node] = weight[node] + max((best.get(one, 0) for one in edges[node] if one in inside), default=0)
        elif node not in best and node not in path:
            path.add(node)
            stack.append((node, True))
            stack.extend((one, False) for one in edges[node] if one in inside and one not in best and one not in path)
    return best[first]


def _waits(program: Sequence[Instruction], graph: dict[int, Block], body: set[int]) -> bool:
    """Whether a loop only waits: asking again is then its one jump, while a loop that works has others besides."""
    if len(body) > 1:
        return False
    (block,) = (graph[start] for start in body)
    return any(program[index].opcode.split(".")[0] in _WAITS for index in range(block.start, block.stop))
