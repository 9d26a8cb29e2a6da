"""Which kernel, tiles, warps and stages motion attention takes: a table for each architecture, with the reasons.

Entries are chosen by what the compiler says of them (docs/kernels/motion_attention.md): no spilled registers for half
types, then the most programs on a multiprocessor, then the fewest instructions. None has been timed on a GPU yet.
`override` replaces entries for a while; `python -m benchmarks.tune_motion_attention` times others with it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import NamedTuple

ARCHITECTURES = (80, 90, 100)


class Tiles(NamedTuple):
    """Queries and keys of a tile, and how the kernel is compiled.

    ``passes`` of the kernel over keys: 2 is one for dvalue and one for the rest, where one would not fit in registers.
    """

    block_m: int
    block_n: int
    num_warps: int
    num_stages: int
    maxnreg: int | None = None
    passes: int = 1


class Entry(NamedTuple):
    """What a table is asked by.

    Attributes:
        architecture: 80, 90 or 100.
        kernel: ``"forward"``, ``"backward_query"`` or ``"backward_key"``.
        half: float16 and bfloat16, as opposed to float32.
        block_d: Head dim padded to a power of two: 16, 32 (both asked as 32), 64 or 128.
    """

    architecture: int
    kernel: str
    half: bool
    block_d: int


def _rows(architecture: int, half: bool, **kernels: tuple[Tiles, Tiles, Tiles]) -> dict[Entry, Tiles]:
    """Entries for head dims up to 32, 64 and 128."""
    return {
        Entry(architecture, kernel, half, block_d): tiles
        for kernel, entries in kernels.items()
        for block_d, tiles in zip((32, 64, 128), entries, strict=True)
    }


# Behind each row: registers of the three entries as ptxas gives them (R = 10 or 12, all gradients) and what decided.
# No entry has spills with half types; for float32 the kernels hold three TF32 products a number, and the entries are
# those with the fewest spills of 2 to 4 tried.
TABLE: dict[Entry, Tiles] = {
    # mma.sync, at most 99 KB, which 8.6 and 8.9 have. Accumulators and operands live in registers: smaller tiles.
    **_rows(
        80, True,
        # 166, 230, 254: 128 queries of 64 channels spill, and 32 keys of 128 beside 16 channels of motion.
        forward=(Tiles(64, 64, 4, 3), Tiles(64, 64, 4, 3), Tiles(128, 16, 8, 2)),
        # 190, 255, 255: 64 keys of 64 channels spill, and so do 32 keys of 128.
        backward_query=(Tiles(128, 64, 8, 2), Tiles(64, 32, 4, 2), Tiles(64, 16, 4, 2)),
        # 248, 247, 208 and 255: with 128 channels dkey and dvalue together spill in all tiles tried.
        backward_key=(Tiles(64, 64, 4, 2), Tiles(32, 64, 4, 2), Tiles(16, 32, 4, 2, passes=2)),
    ),
    **_rows(
        80, False,
        forward=(Tiles(64, 32, 4, 2), Tiles(64, 16, 4, 2), Tiles(16, 32, 4, 1)),
        backward_query=(Tiles(32, 32, 4, 1), Tiles(64, 16, 4, 1), Tiles(32, 16, 4, 1)),
        backward_key=(Tiles(32, 64, 8, 1), Tiles(16, 64, 8, 1), Tiles(16, 32, 8, 1, passes=2)),
    ),
    # wgmma: accumulators in registers, operands in shared memory.
    **_rows(
        90, True,
        # 102, 114, 230: 4, 2 and 1 programs a multiprocessor; 128 queries halve the traffic of keys to shared memory.
        # Without the limit 64 channels take 144 registers, one program; with it a third stage spills.
        forward=(Tiles(64, 64, 4, 3), Tiles(128, 64, 8, 2, maxnreg=128), Tiles(128, 64, 8, 2)),
        # 150, 175, 251: 3, 2 and 2 programs.
        backward_query=(Tiles(64, 64, 4, 2), Tiles(64, 64, 4, 2), Tiles(64, 32, 4, 2)),
        # 156, 240, 238: 3, 2 and 1 programs; with 128 channels four warps spill when they prefetch.
        backward_key=(Tiles(64, 64, 4, 2), Tiles(64, 64, 4, 2), Tiles(64, 64, 8, 2)),
    ),
    **_rows(
        90, False,
        forward=(Tiles(64, 32, 4, 2), Tiles(64, 16, 4, 2), Tiles(64, 32, 8, 1)),
        backward_query=(Tiles(64, 32, 8, 1), Tiles(64, 16, 4, 1), Tiles(64, 16, 8, 1)),
        backward_key=(Tiles(32, 64, 8, 1), Tiles(16, 64, 4, 1), Tiles(16, 64, 8, 1)),
    ),
    # tcgen05: accumulators in tensor memory, whose 512 columns a multiprocessor's programs share.
    **_rows(
        100, True,
        # 120, 152, 216: 256, 256 and 512 columns.
        forward=(Tiles(64, 64, 4, 3), Tiles(64, 64, 4, 2), Tiles(128, 64, 8, 2)),
        # 108, 128, 154: at most 256 columns; prefetched tiles of 64 keys spill 8 and 16 bytes.
        backward_query=(Tiles(64, 32, 4, 2), Tiles(64, 64, 4, 1), Tiles(64, 32, 4, 2)),
        # 150, 130, 126: 256 columns; with 32 channels 64 queries spill beside 16 channels of motion.
        backward_key=(Tiles(32, 64, 4, 2), Tiles(32, 64, 4, 2), Tiles(32, 64, 4, 1)),
    ),
    **_rows(
        100, False,
        forward=(Tiles(64, 32, 4, 2), Tiles(64, 16, 4, 2), Tiles(64, 32, 8, 1)),
        backward_query=(Tiles(64, 32, 8, 1), Tiles(64, 16, 8, 1), Tiles(64, 16, 8, 1)),
        backward_key=(Tiles(32, 64, 8, 1), Tiles(16, 64, 8, 1), Tiles(16, 32, 8, 1, passes=2)),
    ),
}  # fmt: skip


class ShortPlan(NamedTuple):
    """How a head that fits on chip is cut.

    Attributes:
        block_m: Queries of a tile.
        rest: Width of the narrow tile for the queries that are left over, 0 for none.
        keys: Up to three tiles of keys, 0 for none.
        programs: Programs that share the queries of a head.
        num_warps, num_stages, maxnreg: Of the compilation.
    """

    block_m: int
    rest: int
    keys: tuple[int, int, int]
    programs: int
    num_warps: int
    num_stages: int
    maxnreg: int | None = None


class ShortEntry(NamedTuple):
    """What `SHORT` is asked by.

    Attributes:
        architecture: 80, 90 or 100.
        block_d: Head dim padded to a power of two: 16, 32 (both asked as 32) or 64.
        keys: That the tiles of keys hold: the limits of `_KEY_TILES`.
    """

    architecture: int
    block_d: int
    keys: int


class ShortOptions(NamedTuple):
    """What of a `ShortPlan` does not follow from lengths.

    Attributes:
        num_warps, num_stages, maxnreg: Of the compilation.
        busy: Programs of a launch that keep a large GPU busy: the queries of a head are shared by as many programs as
            that takes. Two on each of 132 multiprocessors.
    """

    num_warps: int = 4
    num_stages: int = 1
    maxnreg: int | None = None
    busy: int = 264


# Entries with other options than the defaults; none so far.
SHORT: dict[ShortEntry, ShortOptions] = {}

# Tiles of keys that hold up to so many: whole K and V of a head on chip, with little beside them.
_KEY_TILES = (
    (16, (16, 0, 0)), (32, (32, 0, 0)), (64, (64, 0, 0)), (80, (64, 16, 0)), (96, (64, 32, 0)), (128, (128, 0, 0)),
    (144, (128, 16, 0)), (160, (128, 32, 0)), (192, (128, 64, 0)), (208, (128, 64, 16)), (224, (128, 64, 32)),
    (256, (128, 64, 64)),
)  # fmt: skip
# The most keys of each row.
SHORT_LENGTHS = tuple(limit for limit, _ in _KEY_TILES)
# Longest sequence of the short path; tcgen05's tensor memory holds no more tiles of scores.
_SHORT_KEYS = {80: 144, 90: 256, 100: 144}
# The same with 32 extra channels (R >= 14), where more, and some shorter ones on the other architectures, spill.
_WIDE_SHORT_KEYS = {80: 0, 90: 224, 100: 0}
# Registers for the narrow tile are there with at most so many keys.
_REST_KEYS = 144


def tiles(architecture: int, kernel: str, half: bool, block_d: int) -> Tiles:
    """The table's entry; of tiles that `override` put there, those."""
    entry = Entry(architecture, kernel, half, max(32, block_d))
    return _OVERRIDES.get(entry) or TABLE[entry]


def short_plan(
    architecture: int, half: bool, block_d: int, heads: int, queries: int, keys: int, block_r: int = 16
) -> ShortPlan | None:
    """How the short path takes ``heads`` (batch times heads) of these lengths; None where it does not."""
    longest = (_SHORT_KEYS if block_r == 16 else _WIDE_SHORT_KEYS)[architecture]
    if not half or block_d > 64 or not 0 < keys <= longest or queries > 256:
        return None
    key_tiles = next(found for limit, found in _KEY_TILES if keys <= limit)
    left_over = queries % 64
    rest = 0
    if sum(key_tiles) <= _REST_KEYS and 0 < left_over <= 32:
        rest = 16 if left_over <= 16 else 32
    options = short_options(ShortEntry(architecture, max(32, block_d), sum(key_tiles)))
    programs = max(1, min(-(-queries // 64), -(-options.busy // max(heads, 1))))
    return ShortPlan(64, rest, key_tiles, programs, options.num_warps, options.num_stages, options.maxnreg)


def short_options(entry: ShortEntry) -> ShortOptions:
    """Of `SHORT`, the defaults where it has none; of options that `override` put there, those."""
    return _SHORT_OVERRIDES.get(entry) or SHORT.get(entry) or ShortOptions()


_OVERRIDES: dict[Entry, Tiles] = {}
_SHORT_OVERRIDES: dict[ShortEntry, ShortOptions] = {}


@contextmanager
def override(entries: Mapping[Entry, Tiles], short: Mapping[ShortEntry, ShortOptions] | None = None) -> Iterator[None]:
    """Within the block, launches take these tiles, and the short path these options.

    Not for compiled or captured code, which keeps what it has.
    """
    previous, previous_short = dict(_OVERRIDES), dict(_SHORT_OVERRIDES)
    _OVERRIDES.update(entries)
    _SHORT_OVERRIDES.update(short or {})
    try:
        yield
    finally:
        _OVERRIDES.clear()
        _OVERRIDES.update(previous)
        _SHORT_OVERRIDES.clear()
        _SHORT_OVERRIDES.update(previous_short)
