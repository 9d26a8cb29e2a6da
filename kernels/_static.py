"""What a module with Triton kernels tells `tools.kernel_report`, which compiles them without a GPU.

Such a module has a function ``static_cases() -> list[StaticCase]``; every kernel named ``*_kernel`` needs a case.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

ARCHITECTURES = (80, 90, 100)
# Shapes and dtypes that matter less are compiled for this one alone: the report compiles hundreds of programs.
SOLE_ARCHITECTURE = 90
DEMANDS = frozenset({"no_spills", "matrix", "wgmma", "tf32x3", "ieee"})
_TYPES = {
    "float16": "fp16", "bfloat16": "bf16", "float32": "fp32", "float64": "fp64",
    "bool": "i1", "uint8": "u8", "int8": "i8", "int16": "i16", "int32": "i32", "int64": "i64",
}  # fmt: skip


class StaticCase(NamedTuple):
    """One specialisation of a kernel for one architecture, as a launch would make it; `of_call` takes it from one.

    Attributes:
        name: Readable, and unique together with the architecture.
        kernel: The ``triton.jit`` function.
        architecture: 80, 90 or 100.
        signature: Triton's type of every argument, such as ``*bf16``, ``i32`` or ``fp32``; arguments in ``constants``
            may be left out or be ``constexpr``.
        constants: Values of the ``constexpr`` arguments, and of those that a launch specialises to None or 1.
        divisible: Arguments that a launch finds divisible by 16: pointers to aligned memory, strides.
        num_warps, num_stages, maxnreg: Options of the launch.
        expects: Demands that fail the report, of `DEMANDS`. ``no_spills``: no local memory.
            ``matrix``: matrix instructions of any kind, which a program that cannot run, such as one with more tensor
            memory than there is, is compiled without. ``wgmma``: Hopper's matrix
            instructions, for architecture 90. ``tf32x3``: three times the matrix instructions of ``twin``. ``ieee``: no
            matrix instructions at all.
        trips: How often each loop runs when it is reached, in the order of their beginnings in the program. They
            belong to the compiled program, in which loops may be unrolled, peeled or split.
        programs: Programs of a launch at ``shape``, for the issue-time floor; 0 leaves it out.
        shape: The shape that ``trips`` and ``programs`` belong to.
        twin: Constants in which the same kernel with TF32 products differs, for ``tf32x3``.
    """

    name: str
    kernel: Any
    architecture: int
    signature: Mapping[str, str]
    constants: Mapping[str, Any]
    divisible: tuple[str, ...] = ()
    num_warps: int = 4
    num_stages: int = 1
    maxnreg: int | None = None
    expects: frozenset[str] = frozenset()
    trips: tuple[int, ...] = ()
    programs: int = 0
    shape: str = ""
    twin: Mapping[str, Any] | None = None

    @property
    def program(self) -> str:
        """What tells compiled programs apart: equal where two cases compile to the same."""
        parts = (self.kernel.__module__, self.kernel.__name__, self.architecture)
        signature, constants = sorted(self.signature.items()), sorted(self.constants.items())
        return repr((*parts, signature, constants, self.divisible, self.num_warps, self.num_stages, self.maxnreg))

    @classmethod
    def of_call(
        cls, name: str, kernel: Any, architecture: int, arguments: Mapping[str, Any], **fields: Any
    ) -> StaticCase:
        """The case of ``kernel[grid](**arguments)``: types, constants and divisibility as Triton would find them.

        Args:
            name, kernel, architecture: As they are.
            arguments: Values of every argument, ``constexpr`` ones included. Tensors may be on any device, ``meta`` for
                example; they count as aligned to 16 bytes.
            fields: Any other attribute.
        """
        signature: dict[str, str] = {}
        constants: dict[str, Any] = {}
        divisible = []
        for parameter in kernel.params:
            value, free = arguments[parameter.name], not parameter.do_not_specialize
            aligned = free and not parameter.do_not_specialize_on_alignment
            kind = str(getattr(value, "dtype", "")).removeprefix("torch.")
            if parameter.is_constexpr or value is None:
                constants[parameter.name] = value
            elif kind in _TYPES and hasattr(value, "data_ptr"):
                signature[parameter.name] = f"*{_TYPES[kind]}"
                divisible += [parameter.name] if aligned else []
            elif isinstance(value, bool):
                signature[parameter.name] = "u1"
            elif isinstance(value, int):
                if value == 1 and free:
                    constants[parameter.name] = 1
                    continue
                signature[parameter.name] = "i32" if -(2**31) <= value < 2**31 else "i64"
                divisible += [parameter.name] if aligned and value % 16 == 0 else []
            elif isinstance(value, float):
                signature[parameter.name] = "fp32"
            else:
                raise TypeError(f"{kernel.__name__}: {parameter.name} is {value!r}, no tensor, number or None")
        return cls(name, kernel, architecture, signature, constants, tuple(divisible), **fields)


def distinct(cases: Iterable[StaticCase]) -> list[StaticCase]:
    """The cases without those that compile to the program of an earlier one."""
    found: dict[str, StaticCase] = {}
    for case in cases:
        found.setdefault(case.program, case)
    return list(found.values())
