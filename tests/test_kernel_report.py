"""The static kernel report: what it reads from listings, what fails it, and what the compiler makes of a small kernel.

Nothing here needs a GPU. The kernel in tests/toy_kernels.py is compiled in a process of its own, as the report does it.
"""

from __future__ import annotations

import importlib
import importlib.util
import multiprocessing
import shutil
import textwrap
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from motarfuse import _toolchain
from motarfuse._toolchain import BuildError
from tools.kernel_report import __main__ as tool
from tools.kernel_report import cuda_sources, sass, table, triton_cases


def listing(*lines: str, name: str = "kernel") -> str:
    """nvdisasm's form of instructions and labels."""
    text = [f'\t.section\t.text.{name},"ax",@progbits', f"{name}:", f".text.{name}:"]
    for index, line in enumerate(lines):
        text.append(line if line.endswith(":") else f"        /*{16 * index:04x}*/                   {line} ;")
    return "\n".join(text)


def program(*lines: str) -> list[sass.Instruction]:
    return sass.parse(listing(*lines))["kernel"]


def issued(*lines: str, trips: tuple[int, ...] = ()) -> tuple[int, int]:
    """(instructions a warp issues, loops)."""
    return tuple(sass.estimate(program(*lines), trips))  # type: ignore[return-value]


class TestListing:
    def test_instructions_are_counted_by_kind(self) -> None:
        counts = sass.count(
            program(
                "LDG.E.128 R20, desc[UR18][R20.64]",
                "@!P0 LDG.E R4, desc[UR18][R2.64]",
                "LDG.E.ENL2.256 R4, R8, desc[UR18][R2.64]",
                "LDGSTS.E.BYPASS.LTC128B.128 [R3], desc[UR18][R20.64], !P0",
                "LDGSTS.E.LTC128B [R3], desc[UR18][R20.64]",
                "HGMMA.64x64x16.F32.BF16 R24, gdesc[UR12], RZ, !UPT",
                "HMMA.16816.F32.BF16 R4, R8, R12, R4",
                "UTCHMMA gdesc[UR6], gdesc[UR14], tmem[UR27], tmem[UR34], idesc[UR35], !UPT",
                "UTCATOMSWS.AND URZ, UR4",
                "DMMA.884 R4, R8, R12, R4",
                "MUFU.EX2 R3, R3",
                "MUFU.RCP R3, R3",
                "NOP",
            )
        )
        assert counts == sass.Counts(
            instructions=12, hgmma=1, hmma=1, tcgen05=1, matrix=4, ldg=3, ldg_128=2, ldgsts_128=1, ex2=1,
            local=0, local_bytes=0,
        )  # fmt: skip

    def test_local_memory_is_counted_in_bytes_of_a_thread(self) -> None:
        counts = sass.count(
            program("STL [R1], R2", "STL.64 [R1+0x8], R4", "LDL.LU.128 R4, [R1]", "LDL.U8 R4, [R1]", "LDS R4, [R1]")
        )
        assert (counts.local, counts.local_bytes) == (4, 4 + 8 + 16 + 1)

    def test_kernels_of_one_file_are_told_apart_also_with_equal_labels(self) -> None:
        first = listing("MOV R1, R2", ".L_x_0:", "@P0 BRA `(.L_x_0)", "EXIT", name="first")
        second = listing(".L_x_0:", "MOV R1, R2", "@P0 BRA `(.L_x_0)", "EXIT", name="_Z6secondv")
        kernels = sass.parse(f"{first}\n{second}")
        assert {name: rows[-2].target for name, rows in kernels.items()} == {"first": 1, "_Z6secondv": 0}


class TestEstimate:
    def test_a_straight_program_counts_once_without_the_padding_behind_its_end(self) -> None:
        assert issued("MOV R1, R2", "FADD R1, R1, R1", "EXIT", ".L_x_9:", "BRA `(.L_x_9)", "NOP", "NOP") == (3, 0)

    def test_a_loop_counts_as_often_as_its_trips_say(self) -> None:
        loop = ("MOV R1, R2", ".L_x_1:", "FADD R1, R1, R1", "@!P0 BRA `(.L_x_1)", "EXIT")
        assert issued(*loop, trips=(5,)) == (2 + 5 * 2, 1)
        assert issued(*loop) == (2 + 2, 1)  # without a number: once
        assert issued(*loop, trips=(0,)) == (2, 1)

    def test_a_loop_that_tests_at_its_head_counts_its_whole_body(self) -> None:
        loop = (".L_x_1:", "ISETP P0", "@P0 BRA `(.L_x_2)", "FADD R1", "FADD R2", "BRA `(.L_x_1)", ".L_x_2:", "EXIT")
        assert issued(*loop, trips=(4,)) == (4 * 5 + 1, 1)

    def test_nested_loops_multiply_and_take_trips_in_the_order_of_the_program(self) -> None:
        nest = (
            "MOV R1, R2",
            ".L_x_1:", "MOV R3, R4",
            ".L_x_2:", "FADD R1, R1, R1", "BRA.U !UP0, `(.L_x_2)",
            "MOV R5, R6", "@P1 BRA `(.L_x_1)",
            ".L_x_3:", "FMUL R1, R1, R1", "@P1 BRA `(.L_x_3)",
            "EXIT",
        )  # fmt: skip
        assert issued(*nest, trips=(3, 10, 7)) == (1 + 3 * (1 + 10 * 2 + 2) + 7 * 2 + 1, 3)

    def test_of_two_sides_of_a_branch_the_longer_counts(self) -> None:
        branch = (
            "@P0 BRA `(.L_x_1)",
            "MOV R1, R1", "MOV R1, R1", "MOV R1, R1", "BRA `(.L_x_2)",
            ".L_x_1:", "FADD R1, R1, R1",
            ".L_x_2:", "EXIT",
        )  # fmt: skip
        assert issued(*branch) == (6, 0)

    def test_a_far_jump_of_sm_80_is_a_jump_and_the_loop_around_it_a_loop(self) -> None:
        loop = (".L_x_2:", "FADD R1, R1, R1", "@P2 CALL.REL.NOINC `(.L_x_1)", "BRA `(.L_x_2)", ".L_x_1:", "EXIT")
        assert issued(*loop, trips=(4,)) == (4 * 3 + 1, 1)

    def test_waiting_makes_no_loop_even_out_of_line(self) -> None:
        lines = (
            ".L_x_0:", "FADD R1, R1, R1", "SYNCS.PHASECHK.TRYWAIT P4, [UR4], R2", "@!P4 BRA `(.L_x_8)",
            ".L_x_7:", "FADD R1, R1, R1", "@P0 BRA `(.L_x_0)",
            "EXIT",
            ".L_x_8:", "SYNCS.PHASECHK.TRYWAIT P4, [UR4], R2", "@!P4 BRA `(.L_x_8)", "BRA `(.L_x_7)",
        )  # fmt: skip
        assert issued(*lines, trips=(3,)) == (3 * (3 + 3 + 2) + 1, 1)

    def test_functions_that_are_called_do_not_count(self) -> None:
        lines = ("CALL.REL.NOINC `($__internal_0_$division)", "EXIT", "$kernel$division:", "MOV R1, R2", "RET.REL R2")
        assert issued(*lines) == (2, 0)


def row(**changes: Any) -> table.Row:
    made = table.Row(
        "attend", "sm_90", "bf16", "B1", "triton 3.7.1, ptxas 12.8", 4, 2, registers=128, shared=40000, stack=0,
        spill_bytes=0, local=0, hgmma=8, hmma=0, tcgen05=0, matrix=8, instructions=1000, issue_us=9.5,
    )  # fmt: skip
    return made._replace(**changes)


class TestDemands:
    def test_a_kernel_that_meets_them_passes(self) -> None:
        assert table.failures(row(), {"no_spills", "matrix", "wgmma"}) == []
        assert table.failures(row(matrix=24), {"tf32x3"}, 8) == []
        assert table.failures(row(matrix=0), {"ieee"}) == []

    @pytest.mark.parametrize(
        ("changes", "demand", "words"),
        [
            ({"spill_bytes": 8}, "no_spills", "8 bytes of local memory"),
            ({"local": 1}, "no_spills", "local memory"),
            ({"hgmma": 0}, "wgmma", "no HGMMA (8 other"),
            ({"matrix": 0}, "matrix", "no matrix instruction at all"),
            ({}, "ieee", "8 matrix instructions, which are not exact"),
            ({"matrix": 16}, "tf32x3", "not three times the 8"),
            ({"matrix": 8}, "tf32x3", "not three times the 8"),
            ({"shared": 233000}, "no_spills", "sm_90 has 232448"),
            ({"shared": 233000, "architecture": "sm_100"}, "no_spills", "sm_100 has 232448"),
            ({"shared": 170000, "architecture": "sm_80"}, "no_spills", "sm_80 has 166912"),
        ],
    )
    def test_each_is_checked(self, changes: dict[str, Any], demand: str, words: str) -> None:
        (found,) = table.failures(row(**changes), {demand}, 8)
        assert words in found
        assert found.startswith("attend (sm_")

    def test_a_twin_without_matrix_instructions_proves_nothing(self) -> None:
        assert table.failures(row(matrix=0), {"tf32x3"}, 0)

    def test_hopper_s_instructions_are_demanded_of_hopper_only(self) -> None:
        assert table.failures(row(hgmma=0, architecture="sm_80"), {"wgmma"}) == []


class TestRegressions:
    @pytest.mark.parametrize(
        ("changes", "words"),
        [
            ({"registers": 137}, "registers 128 -> 137"),
            ({"shared": 42001}, "shared 40000 -> 42001"),
            ({"spill_bytes": 4, "local": 1}, "spill_bytes 0 -> 4, local 0 -> 1"),
            ({"instructions": 1101}, "instructions 1000 -> 1101"),
        ],
    )
    def test_growth_beyond_the_margin_fails(self, changes: dict[str, Any], words: str) -> None:
        regressions, differences = table.compare([row(**changes)], [row()])
        assert regressions == [f"attend (sm_90): {words}"]
        assert differences == []

    @pytest.mark.parametrize("changes", [{"registers": 136}, {"shared": 42000}, {"registers": 90}, {"issue_us": 12.0}])
    def test_other_changes_are_listed(self, changes: dict[str, Any]) -> None:
        regressions, differences = table.compare([row(**changes)], [row()])
        assert regressions == []
        assert len(differences) == 1

    def test_numbers_of_another_compiler_are_listed(self) -> None:
        regressions, differences = table.compare([row(registers=200, ldg=1, compiler="triton 4")], [row()])
        assert regressions == []
        assert differences == [
            "made with triton 4, the table with triton 3.7.1, ptxas 12.8",
            "attend (sm_90): registers 128 -> 200",
        ]

    def test_new_and_vanished_kernels_fail(self) -> None:
        regressions, _ = table.compare([row(name="new")], [row()])
        assert regressions == ["attend (sm_90) is gone", "new (sm_90) is new"]

    def test_a_number_that_is_not_known_is_not_compared(self) -> None:
        assert table.compare([row(instructions=None)], [row()]) == ([], [])

    def test_the_table_comes_back_as_it_was_written(self, tmp_path: Path) -> None:
        rows = [row(note="one, two", ctas_per_sm=3), row(architecture="sm_100", warps=None, issue_us=None)]
        rows.append(row(name="later", architecture="sm_80"))
        table.write(tmp_path / "table.csv", reversed(rows))
        assert table.read(tmp_path / "table.csv") == rows
        assert table.read(tmp_path / "none.csv") == []


class TestOccupancy:
    @pytest.mark.parametrize(
        ("registers", "shared", "warps", "architecture", "ctas"),
        [
            (168, 71 * 1024, 4, 90, 3),
            (204, 53 * 1024, 4, 90, 2),
            (128, 53 * 1024, 4, 90, 4),
            (255, 54 * 1024, 8, 90, 1),
            (32, 0, 4, 80, 16),
            (24, 0, 1, 90, 32),
            (64, 100 * 1024, 4, 80, 1),
        ],
    )
    def test_ctas_by_registers_shared_memory_and_warps(
        self, registers: int, shared: int, warps: int, architecture: int, ctas: int
    ) -> None:
        assert table.ctas_per_sm(registers, shared, warps, architecture) == ctas

    def test_tensor_memory_limits_as_well(self) -> None:
        assert table.ctas_per_sm(64, 0, 4, 100, columns=256) == 2

    def test_issue_time_is_that_of_132_sms_with_four_schedulers(self) -> None:
        assert table.issue_us(21720, 768) == pytest.approx(18.0, abs=0.05)


class TestPtxasReport:
    REPORT = textwrap.dedent(
        """
        ptxas info    : 0 bytes gmem
        ptxas info    : Compiling entry function '_Z2kkPf' for 'sm_80'
        ptxas info    : Function properties for _Z2kkPf
            568 bytes stack frame, 652 bytes spill stores, 700 bytes spill loads
        ptxas info    : Used 32 registers, used 1 barriers, 4096 bytes smem, 360 bytes cmem[0]
        """
    )

    def test_registers_shared_memory_and_spills_are_read(self) -> None:
        (kernel,) = cuda_sources.parse_report(self.REPORT, "part.cu")
        assert kernel == cuda_sources.Kernel("_Z2kkPf", registers=32, shared=4096, stack=568, spills=1352)

    def test_a_kernel_without_numbers_is_an_error(self) -> None:
        lines = [line for line in self.REPORT.splitlines() if "spill" not in line]
        with pytest.raises(BuildError, match="no spills for _Z2kkPf"):
            cuda_sources.parse_report("\n".join(lines), "part.cu")

    def test_a_report_without_kernels_is_an_error(self) -> None:
        with pytest.raises(BuildError, match="no kernel at all"):
            cuda_sources.parse_report("ptxas info    : 0 bytes gmem", "part.cu")

    @pytest.mark.skipif(shutil.which("c++filt") is None, reason="needs c++filt")
    def test_names_lose_their_parameters_and_keep_their_types(self) -> None:
        names = ["_ZN9motarfuse12_GLOBAL__N_16kernelIfLb1EEEvPT_", "_Z5otherIXcv4Kindi1EEEvPf", "plain"]
        assert cuda_sources.demangle(names)[names[0]] == "kernel<float, true>"
        assert cuda_sources._without_parameters("void kernel<(Kind)1, (int)4>(float*)") == "kernel<(Kind)1, (int)4>"


class TestCudaSources:
    """What becomes of rows and errors, without a compiler."""

    NVCC = _toolchain.Nvcc(Path("nvcc"), Path("toolkit"), "13.0", frozenset({80, 90}))

    @pytest.fixture
    def measured(self, monkeypatch: pytest.MonkeyPatch) -> list[table.Row]:
        """What compiling gives; the table has been written with the same."""
        rows = [row(name="part.cu forward<float>", architecture="sm_80", compiler="nvcc 13.0", issue_us=None)]
        monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
        monkeypatch.setattr(_toolchain, "find_nvcc", lambda: self.NVCC)
        monkeypatch.setattr(cuda_sources, "sources", lambda: [Path("part.cu")])
        monkeypatch.setattr(cuda_sources, "measure", lambda *_: rows)
        return rows

    def run(self, tmp_path: Path, *more: str) -> int:
        return tool.main(["--table", str(tmp_path / "table.csv"), "--arch", "80", *more])

    def test_new_rows_fail_until_the_table_has_them(
        self, tmp_path: Path, measured: list[table.Row], capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert self.run(tmp_path) == 1
        assert "part.cu forward<float> (sm_80) is new" in capsys.readouterr().out
        assert self.run(tmp_path, "--update") == 0
        assert self.run(tmp_path) == 0
        assert table.read(tmp_path / "table.csv") == measured

    def test_a_table_with_fewer_registers_fails(self, tmp_path: Path, measured: list[table.Row]) -> None:
        table.write(tmp_path / "table.csv", [measured[0]._replace(registers=119)])
        assert self.run(tmp_path) == 1
        table.write(tmp_path / "table.csv", [measured[0]._replace(registers=120)])
        assert self.run(tmp_path) == 0

    def test_a_spill_fails_even_when_the_table_has_it(
        self, tmp_path: Path, measured: list[table.Row], capsys: pytest.CaptureFixture[str]
    ) -> None:
        measured[0] = measured[0]._replace(spill_bytes=1352)
        assert self.run(tmp_path, "--update") == 1
        assert "spills: 1352 bytes" in capsys.readouterr().out

    def test_a_file_that_does_not_compile_fails_and_its_rows_stay(
        self,
        tmp_path: Path,
        measured: list[table.Row],
        monkeypatch: pytest.MonkeyPatch,
        capsys: pytest.CaptureFixture[str],
    ) -> None:
        self.run(tmp_path, "--update")

        def fails(*_: object) -> list[table.Row]:
            raise BuildError("part.cu does not compile for sm_80: a reason")

        monkeypatch.setattr(cuda_sources, "measure", fails)
        assert self.run(tmp_path, "--update") == 1
        said = capsys.readouterr().out
        assert "a reason" in said
        assert "is gone" not in said
        assert table.read(tmp_path / "table.csv") == measured

    def test_rows_outside_the_selection_stay_and_are_not_missed(
        self, tmp_path: Path, measured: list[table.Row]
    ) -> None:
        others = [
            row(),
            measured[0]._replace(architecture="sm_90a"),
            measured[0]._replace(name="other.cu forward<float>"),
        ]
        table.write(tmp_path / "table.csv", [*others, *measured])
        assert self.run(tmp_path, "--only", "part.cu") == 0
        assert self.run(tmp_path, "--only", "part.cu", "--update") == 0
        assert len(table.read(tmp_path / "table.csv")) == 4
        assert self.run(tmp_path) == 1  # other.cu is gone

    def test_without_compilers_it_says_so_and_passes(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        def none() -> _toolchain.Nvcc:
            raise BuildError("no nvcc on PATH")

        monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
        monkeypatch.setattr(_toolchain, "find_nvcc", none)
        table.write(tmp_path / "table.csv", [row()])
        assert self.run(tmp_path) == 0
        said = capsys.readouterr().out
        assert "Triton is not installed" in said
        assert "no nvcc on PATH" in said


def specialised() -> list[str]:
    """Where ``StaticCase.of_call`` and Triton do not agree; for a process that may import Triton."""
    import torch
    import triton
    from motarfuse.kernels._static import StaticCase
    from triton.backends.compiler import GPUTarget
    from triton.compiler import make_backend
    from triton.runtime.jit import create_function_from_signature

    from tests.toy_kernels import POINTERS, toy_kernel

    free = triton.jit(toy_kernel.fn)
    bound = triton.jit(toy_kernel.fn, do_not_specialize=["keys", "stride"])
    tensors = {name: torch.empty(64, dtype=torch.bfloat16) for name in POINTERS}
    assert all(tensor.data_ptr() % 16 == 0 for tensor in tensors.values())
    wrong = []
    for kernel in (free, bound):
        for keys, stride, bias in ((129, 64, None), (1, 16, tensors["p_key"]), (2**40, 1, None), (2**40 + 1, 3, None)):
            arguments: dict[str, Any] = {**tensors, "p_bias": bias, "keys": keys, "stride": stride, "scale": 0.5}
            arguments |= {"TILE": 64, "HEAD_DIM": 64, "PRECISION": "tf32"}
            backend = make_backend(GPUTarget("cuda", 90, 32))
            bind = create_function_from_signature(kernel.signature, kernel.params, backend)
            found = dict(zip(kernel.arg_names, bind(**arguments)[1], strict=True))
            case = StaticCase.of_call("call", kernel, 90, arguments)
            for name, (kind, alignment) in found.items():
                own = "constexpr" if name in case.constants else case.signature[name]
                if own != kind or (own != "constexpr" and (name in case.divisible) != ("D" in (alignment or ""))):
                    wrong.append(
                        f"{name} (keys {keys}, stride {stride}): {kind} {alignment}, not {own} {name in case.divisible}"
                    )
    return wrong


def chosen() -> tuple[list[str], list[str]]:
    """Cases that compile to the program of another one, and kernels that an architecture lacks; as `specialised`."""
    from motarfuse.kernels._static import distinct

    again, missing = [], []
    for name in tool.kernel_modules():
        module = importlib.import_module(name)
        cases = module.static_cases() if hasattr(module, "static_cases") else []
        kept = {id(case) for case in distinct(cases)}
        again += [f"{case.name} (sm_{case.architecture})" for case in cases if id(case) not in kept]
        compiled = {(case.kernel.__name__, case.architecture) for case in cases}
        missing += [
            f"{kernel} (sm_{architecture})"
            for kernel in sorted({kernel for kernel, _ in compiled})
            for architecture in table.ARCHITECTURES
            if (kernel, architecture) not in compiled
        ]
    return again, missing


def distinct_toys() -> list[str]:
    """Names of the toys that `distinct` keeps; as `specialised`."""
    from motarfuse.kernels._static import distinct

    from tests.toy_kernels import case

    toy = case("toy bf16", 90, "bf16", "tf32")
    others = [
        toy._replace(name="again", shape="another", trips=(), programs=1),
        toy._replace(name="other", constants={**toy.constants, "TILE": 128}),
        toy._replace(name="capped", maxnreg=72),
        toy._replace(name="divisible", divisible=()),
        toy._replace(name="older", architecture=80),
        toy._replace(name="once more", constants=dict(reversed(toy.constants.items()))),
    ]
    return [case.name for case in distinct([toy, *others])]


def table_and_cases(modules: list[str]) -> tuple[list[str], list[str]]:
    """Rows of the committed table that are no case, and cases that have no row; as `specialised`."""
    cases = {(case.name, f"sm_{case.architecture}") for case in triton_cases.find(modules).cases}
    rows = {row.key for row in table.read(tool.TABLE) if row.compiler.startswith("triton")}
    return sorted(map(str, rows - cases)), sorted(map(str, cases - rows))


@pytest.fixture(scope="module")
def pool(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ProcessPoolExecutor]:
    """The report's worker process with an empty cache."""
    context = multiprocessing.get_context("spawn")
    folder = str(tmp_path_factory.mktemp("triton"))
    with ProcessPoolExecutor(1, context, triton_cases.start, (folder,)) as pool:
        yield pool


@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="needs Triton")
class TestCases:
    """What the report compiles of the project's kernels; nothing is compiled here."""

    def test_no_program_is_compiled_twice_and_every_architecture_has_every_kernel(
        self, pool: ProcessPoolExecutor
    ) -> None:
        again, missing = pool.submit(chosen).result()
        assert again == []
        assert missing == []

    def test_the_committed_table_has_a_row_for_every_case_and_no_other(self, pool: ProcessPoolExecutor) -> None:
        assert pool.submit(table_and_cases, tool.kernel_modules()).result() == ([], [])

    def test_distinct_keeps_the_first_case_of_each_program(self, pool: ProcessPoolExecutor) -> None:
        assert pool.submit(distinct_toys).result() == ["toy bf16", "other", "capped", "divisible", "older"]


@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="needs Triton")
class TestToyKernel:
    """A real kernel, compiled for three architectures."""

    def measure(self, pool: ProcessPoolExecutor, name: str, architecture: int) -> triton_cases.Measured:
        found = pool.submit(triton_cases.find, ["tests.toy_kernels"]).result()
        (place,) = [case for case in found.cases if (case.name, case.architecture) == (name, architecture)]
        return pool.submit(triton_cases.measure, place).result()

    @pytest.mark.parametrize("architecture", [80, 90, 100])
    def test_half_products_are_those_of_the_architecture_without_spills(
        self, pool: ProcessPoolExecutor, architecture: int
    ) -> None:
        made, failures = self.measure(pool, "toy bf16", architecture)
        assert failures == []
        assert made is not None
        kinds = {"hmma": made.hmma, "hgmma": made.hgmma, "tcgen05": made.tcgen05}
        used = {80: "hmma", 90: "hgmma", 100: "tcgen05"}[architecture]
        # Two products of 64^3 in tiles of 16x8x16, 64x64x16 or 64x64x16.
        assert kinds == {**dict.fromkeys(kinds, 0), used: 64 if architecture == 80 else 8}
        assert (made.spill_bytes, made.loops, made.ldg, made.ldg_128, made.note) == (0, 1, 12, 12, "")
        assert made.registers <= 255
        assert (made.issue_us is not None) == (architecture == 90)
        assert made.instructions is not None
        assert made.issued is not None
        # Two iterations of four warps: more than the program, less than twice as much.
        assert 4 * made.instructions < made.issued < 8 * made.instructions

    @pytest.mark.parametrize("architecture", [80, 90, 100])
    def test_tf32x3_is_proved_by_three_times_the_instructions(
        self, pool: ProcessPoolExecutor, architecture: int
    ) -> None:
        assert self.measure(pool, "toy tf32x3", architecture).failures == []

    @pytest.mark.parametrize(
        ("name", "words"),
        [
            ("toy tf32 for tf32x3", "not three times the"),
            ("toy tf32 for ieee", "matrix instructions, which are not exact"),
            ("toy capped", "spills"),
            ("toy too large", "of shared memory, sm_90 has"),
            ("toy with a wrong option", "does not compile"),
        ],
    )
    def test_a_kernel_that_is_not_what_it_should_be_fails(
        self, pool: ProcessPoolExecutor, name: str, words: str
    ) -> None:
        failures = self.measure(pool, name, 90).failures
        assert len(failures) == 1
        assert f"{name} (sm_90)" in failures[0]
        assert words in failures[0]

    def test_a_call_gives_the_case_that_triton_would_compile(self, pool: ProcessPoolExecutor) -> None:
        assert pool.submit(specialised).result() == []

    def test_loops_without_trips_are_said(self, pool: ProcessPoolExecutor) -> None:
        made = self.measure(pool, "toy capped", 90).row
        assert made is not None
        assert made.note == "1 of 1 loops without trips count once"

    def test_wrong_cases_and_kernels_without_one_are_found(self, pool: ProcessPoolExecutor) -> None:
        found = pool.submit(triton_cases.find, ["tests.toy_kernels", "tests.toy_kernels_wrong"]).result()
        assert found.problems == [
            "no type (sm_90) has no type of scale",
            "unknown (sm_90) has a type, value or divisibility of bias, which toy_kernel does not take",
            "no value (sm_90) has no value of TILE",
            "demand (sm_90) demands fast, which is none of ieee, matrix, no_spills, tf32x3, wgmma",
            "old (sm_75) is for an architecture that is none of 80, 90, 100",
            "no twin (sm_90) demands tf32x3 and has no twin",
            "two cases are called toy bf16 (sm_90)",
            "tests.toy_kernels_wrong.lonely_kernel has no static case",
        ]

    def test_the_report_runs_from_end_to_end(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        monkeypatch.setenv("TRITON_INTERPRET", "1")  # which the report does not hand on
        monkeypatch.setattr(tool, "kernel_modules", lambda: ["tests.toy_kernels"])
        monkeypatch.setattr(cuda_sources, "sources", list)
        command = ["--table", str(tmp_path / "table.csv"), "--cache", str(tmp_path / "cache"), "--jobs", "1"]
        command += ["--arch", "90", "--only", "toy bf16"]
        assert tool.main([*command, "--update"]) == 0
        assert tool.main(command) == 0
        (made,) = table.read(tmp_path / "table.csv")
        table.write(tmp_path / "table.csv", [made._replace(registers=made.registers - 9)])
        capsys.readouterr()
        assert tool.main(command) == 1
        assert f"toy bf16 (sm_90): registers {made.registers - 9} -> {made.registers}" in capsys.readouterr().out
