"""Compiles the Triton kernels' static cases and measures them. Only worker processes get here: Triton reads its
environment when it is imported."""

from __future__ import annotations

import contextlib
import importlib
import io
import os
import re
import subprocess
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

from motarfuse.kernels._static import DEMANDS, StaticCase

from tools.kernel_report import sass, table


class Reference(NamedTuple):
    """Where a case is found: it cannot travel between processes itself."""

    module: str
    place: int
    name: str
    architecture: int


class Found(NamedTuple):
    """The cases of some modules, and what is wrong with them as sentences."""

    cases: list[Reference]
    problems: list[str]


class Measured(NamedTuple):
    """A case's numbers; ``failures`` are demands not met, or why it does not compile (then there is no row)."""

    row: table.Row | None
    failures: list[str]


def start(cache: str) -> None:
    """Prepares a worker process, before Triton is imported."""
    os.environ.pop("TRITON_INTERPRET", None)
    os.environ["TRITON_CACHE_DIR"] = cache


def find(modules: list[str]) -> Found:
    """The cases of all modules, and kernels that have none."""
    from triton.runtime.jit import JITFunction

    cases: list[Reference] = []
    problems: list[str] = []
    covered: set[int] = set()
    kernels: dict[int, str] = {}
    seen: set[tuple[str, int]] = set()
    for name in modules:
        module = importlib.import_module(name)
        for value in vars(module).values():
            kernel = getattr(value, "fn", None) if not isinstance(value, JITFunction) else value  # autotuned ones
            if isinstance(kernel, JITFunction) and kernel.__name__.endswith("_kernel"):
                kernels.setdefault(id(kernel), f"{kernel.fn.__module__}.{kernel.__name__}")
        for index, case in enumerate(module.static_cases() if hasattr(module, "static_cases") else []):
            covered.add(id(case.kernel))
            problems += [f"{case.name} (sm_{case.architecture}) {one}" for one in _wrong(case)]
            if (case.name, case.architecture) in seen:
                problems.append(f"two cases are called {case.name} (sm_{case.architecture})")
            seen.add((case.name, case.architecture))
            cases.append(Reference(name, index, case.name, case.architecture))
    problems += [f"{kernels[key]} has no static case" for key in kernels if key not in covered]
    return Found(cases, problems)


def _wrong(case: StaticCase) -> list[str]:
    names = case.kernel.arg_names
    given = set(case.signature) | set(case.constants)
    wrong = [f"has no type of {name}" for name in names if name not in given]
    wrong += [
        f"has a type, value or divisibility of {name}, which {case.kernel.__name__} does not take"
        for name in sorted({*given, *case.divisible, *(case.twin or {})} - set(names))
    ]
    wrong += [
        f"has no value of {name}"
        for name, kind in case.signature.items()
        if kind == "constexpr" and name not in case.constants
    ]
    wrong += [f"demands {one}, which is none of {', '.join(sorted(DEMANDS))}" for one in sorted(case.expects - DEMANDS)]
    if case.architecture not in table.ARCHITECTURES:
        wrong.append(f"is for an architecture that is none of {', '.join(map(str, table.ARCHITECTURES))}")
    if "tf32x3" in case.expects and case.twin is None:
        wrong.append("demands tf32x3 and has no twin")
    return wrong


def measure(reference: Reference) -> Measured:
    """Compiles one case, or takes it from the cache where nothing changed."""
    case: StaticCase = importlib.import_module(reference.module).static_cases()[reference.place]
    words = io.StringIO()  # Triton prints the whole program when ptxas fails
    try:
        with contextlib.redirect_stdout(words):
            row, twin = _row(case), _twin(case)
    except Exception as error:  # noqa: BLE001 (whatever the compiler raises is this case's failure, not the report's)
        text = str(error).strip() or "no reason given"
        return Measured(
            None, [f"{case.name} (sm_{case.architecture}) does not compile: {type(error).__name__}: {text}"]
        )
    found = table.failures(row, case.expects - {"tf32x3"})
    if twin is not None:
        found += table.failures(row._replace(matrix=twin[0]), {"tf32x3"}, twin[1])
    return Measured(row, found)


def _compile(case: StaticCase) -> Any:
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    places = {name: (index,) for index, name in enumerate(case.kernel.arg_names)}
    source = ASTSource(
        fn=case.kernel,
        signature={name: "constexpr" if name in case.constants else case.signature[name] for name in places},
        constexprs={places[name]: value for name, value in case.constants.items()},
        attrs={places[name]: [["tt.divisibility", 16]] for name in case.divisible if name not in case.constants},
    )
    options = {"num_warps": case.num_warps, "num_stages": case.num_stages, "maxnreg": case.maxnreg}
    return triton.compile(source, target=GPUTarget("cuda", case.architecture, 32), options=options)


def _tool(name: str, architecture: int = 0) -> Any:
    from triton import knobs

    return getattr(knobs.nvidia, f"{name}_blackwell" if architecture >= 100 else name)


def nvdisasm() -> str:
    """The path of Triton's nvdisasm, for the cubins of others."""
    return str(_tool("nvdisasm").path)


def _inspect(compiled: Any) -> tuple[list[sass.Instruction], dict[str, int]]:
    """A kernel's program, and ptxas' numbers."""
    with tempfile.TemporaryDirectory() as folder:
        cubin = Path(folder) / "kernel.cubin"
        cubin.write_bytes(compiled.asm["cubin"])
        programs = sass.disassemble(Path(_tool("nvdisasm").path), cubin)
        command = [_tool("cuobjdump").path, "--dump-resource-usage", str(cubin)]
        usage = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    name = compiled.metadata.name
    numbers = re.search(rf"Function {re.escape(name)}:\s*REG:(\d+) STACK:(\d+)", usage)
    if numbers is None:
        raise RuntimeError(f"cuobjdump says nothing of {name}: {usage}")
    return programs[name], {"registers": int(numbers[1]), "stack": int(numbers[2])}


def _row(case: StaticCase) -> table.Row:
    import triton

    compiled = _compile(case)
    program, numbers = _inspect(compiled)
    counts = sass.count(program)._asdict()
    path = sass.estimate(program, case.trips)
    spills = counts.pop("local_bytes")
    shared = compiled.metadata.shared
    issued = path.instructions * case.num_warps
    notes = []
    if path.loops > len(case.trips):
        notes.append(f"{path.loops - len(case.trips)} of {path.loops} loops without trips count once")
    elif path.loops < len(case.trips):
        notes.append(f"{len(case.trips)} trips for {path.loops} loops")
    ctas = table.ctas_per_sm(
        numbers["registers"], shared, case.num_warps, case.architecture, getattr(compiled.metadata, "tmem_size", 0) or 0
    )
    ptxas = _tool("ptxas", case.architecture).version
    floor = round(table.issue_us(issued, case.programs), 2) if case.programs and case.architecture == 90 else None
    pointers = [kind[1:] for name, kind in case.signature.items() if kind[0] == "*" and name not in case.constants]
    return table.Row(
        name=case.name,
        architecture=f"sm_{case.architecture}",
        dtype=pointers[0] if pointers else "",
        shape=case.shape,
        compiler=f"triton {triton.__version__}, ptxas {ptxas}",
        warps=case.num_warps,
        stages=case.num_stages,
        shared=shared,
        spill_bytes=spills,
        loops=path.loops,
        issued=issued,
        issue_us=floor,
        ctas_per_sm=ctas,
        note="; ".join(notes),
        **numbers,
        **counts,
    )


def _twin(case: StaticCase) -> tuple[int, int] | None:
    """Matrix instructions of a tf32x3 case and of its TF32 twin.

    Both without software pipelining, which copies products into prologues, and not the same number of times in both.
    """
    if "tf32x3" not in case.expects:
        return None
    plain = case._replace(num_stages=1, maxnreg=None)
    twin = plain._replace(constants={**case.constants, **(case.twin or {})})
    counts = [sass.count(_inspect(_compile(one))[0]).matrix for one in (plain, twin)]
    return counts[0], counts[1]
