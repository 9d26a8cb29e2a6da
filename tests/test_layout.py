"""The import rules between the rooms: arrows point one way, and a kernel never imports a reference."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

FOUNDATION = {"_native", "console", "errors"}
# What each room may import of motarfuse besides itself and the foundation, which imports none of them.
ROOMS: dict[str, set[str]] = {
    "reference": set(),
    "kernels": set(),
    "ops": {"reference", "kernels"},
    "nn": {"ops"},
    "models": {"nn", "ops"},
    "data": set(),
    "retrieval": {"ops"},
    "engine": {"ops", "nn", "models", "data", "retrieval"},
    "viz": {"ops", "nn", "models", "data", "retrieval", "engine"},
}
# Rooms that depend on nothing but these besides the standard library.
PACKAGES = {"reference": {"torch"}, "kernels": {"torch", "triton"}}


def room_folder(repository: Path, room: str) -> Path:
    return repository / "kernels" if room == "kernels" else repository / "motarfuse" / room


def imported(path: Path, package: str) -> Iterator[tuple[int, str]]:
    """(line, absolute module name) of every import in a file, those inside functions too."""
    for node in ast.walk(ast.parse(path.read_text(), str(path))):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield node.lineno, alias.name
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parents = package.split(".")[: len(package.split(".")) - node.level + 1]
                base = ".".join([*parents, *([base] if base else [])])
            # `from motarfuse import ops` imports motarfuse.ops
            yield from ((node.lineno, f"{base}.{alias.name}") for alias in node.names)


def files(folder: Path, package: str) -> Iterator[tuple[Path, str]]:
    for path in sorted(folder.rglob("*.py")):
        yield path, ".".join([package, *path.relative_to(folder).parent.parts])


def violations(folder: Path, room: str, allowed: set[str]) -> list[str]:
    found = []
    for path, package in files(folder, f"motarfuse.{room}"):
        for line, name in imported(path, package):
            top, _, rest = name.partition(".")
            target = rest.split(".")[0]
            place = f"{path.name}:{line} imports {name}"
            if top in ("motarfuse", "kernels"):
                target = "kernels" if top == "kernels" else target
                if target not in allowed | FOUNDATION | {room, "__version__"}:
                    found.append(place)
            elif room in PACKAGES and top not in PACKAGES[room] and top not in sys.stdlib_module_names:
                found.append(place)
    return found


@pytest.mark.parametrize("room", ROOMS)
def test_a_room_imports_only_rooms_below_it(repository: Path, room: str) -> None:
    folder = room_folder(repository, room)
    assert any(folder.glob("*.py")), f"{folder} holds no Python"
    assert violations(folder, room, ROOMS[room]) == []


def test_reference_and_kernels_import_nothing_else_of_motarfuse_not_even_the_foundation(repository: Path) -> None:
    for room in ("reference", "kernels"):
        for path, package in files(room_folder(repository, room), f"motarfuse.{room}"):
            names = [name for _, name in imported(path, package) if name.startswith(("motarfuse.", "kernels."))]
            assert all(name.startswith((f"motarfuse.{room}", "kernels.")) for name in names), (path, names)


def test_the_foundation_imports_no_room(repository: Path) -> None:
    for name in [*FOUNDATION, "_build", "_toolchain", "__init__"]:
        tree = ast.parse((repository / "motarfuse" / f"{name}.py").read_text())
        for node in tree.body:  # at import time; `if TYPE_CHECKING` and functions are not
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            assert not [one for one in names if one.split(".")[:2] in [["motarfuse", room] for room in ROOMS]], name
            assert "torch" not in names, name


def test_a_forbidden_import_is_found(tmp_path: Path) -> None:
    (tmp_path / "kernel.py").write_text("import numpy\nfrom motarfuse import reference\n")
    (tmp_path / "relative.py").write_text("def late():\n    from ..reference.part_moments import part_moments\n")
    found = violations(tmp_path, "kernels", set())
    assert found == [
        "kernel.py:1 imports numpy",
        "kernel.py:2 imports motarfuse.reference",
        "relative.py:2 imports motarfuse.reference.part_moments.part_moments",
    ]


def test_an_operator_has_the_same_file_name_in_every_room(repository: Path) -> None:
    from motarfuse import ops

    for name, operator in ops.operators().items():
        for place in (f"motarfuse/reference/{name}.py", f"motarfuse/ops/{name}.py", f"tests/ops/test_{name}.py"):
            assert (repository / place).is_file(), place
        if set(operator.backends) != {"reference"}:
            bench = {"ranking": "retrieval"}.get(name, name)  # what ranks is measured as its users call it
            assert (repository / f"benchmarks/bench_{bench}.py").is_file()
