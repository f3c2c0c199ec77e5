"""wgmma: which instruction multiplies which types, and who holds which element (PTX ISA, warpgroup-level matrix)."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

from tilus import dtypes
from tilus.dtypes import DType
from tilus.layout import Digit, LayoutError, RegisterLayout
from tilus.layout.tiling import explain_tile_by

M = 64
MAX_N = 256
STEP_BITS = 256


@dataclass(frozen=True)
class WgmmaType:
    """A combination of types: the accumulator's, and how PTX names the three."""

    a_dtype: DType
    b_dtype: DType
    c_dtype: DType
    names: tuple[str, str, str]

    @property
    def k(self) -> int:
        """Elements along k of one instruction."""
        return STEP_BITS // self.a_dtype.bits

    @property
    def transposes(self) -> bool:
        """Whether operands may be MN-major."""
        return self.a_dtype.bits == 16

    @property
    def scales(self) -> bool:
        """Whether the instruction takes the factors of a and b."""
        return self.c_dtype is not dtypes.int32

    def valid_n(self, n: int) -> bool:
        """Tell whether an instruction has n columns."""
        if n % 8 or not 8 <= n <= MAX_N:
            return False
        return self.c_dtype is not dtypes.int32 or n <= 32 or n % 16 == 0

    def name(self, n: int) -> str:
        """Return the name of the instruction in the IR."""
        return f"wgmma.m64n{n}k{self.k}.{'.'.join(self.names)}"


def _table() -> tuple[WgmmaType, ...]:
    f16, bf16, f32, i32, tf32 = (
        dtypes.float16, dtypes.bfloat16, dtypes.float32, dtypes.int32, dtypes.tfloat32,
    )  # fmt: skip
    rows = [
        WgmmaType(f16, f16, f32, ("f32", "f16", "f16")),
        WgmmaType(f16, f16, f16, ("f16", "f16", "f16")),
        WgmmaType(bf16, bf16, f32, ("f32", "bf16", "bf16")),
        WgmmaType(tf32, tf32, f32, ("f32", "tf32", "tf32")),
    ]
    fp8 = {dtypes.float8_e4m3: "e4m3", dtypes.float8_e5m2: "e5m2"}
    for a, a_name in fp8.items():
        for b, b_name in fp8.items():
            rows.append(WgmmaType(a, b, f32, ("f32", a_name, b_name)))
            rows.append(WgmmaType(a, b, f16, ("f16", a_name, b_name)))
    int8 = {dtypes.int8: "s8", dtypes.uint8: "u8"}
    for a, a_name in int8.items():
        for b, b_name in int8.items():
            rows.append(WgmmaType(a, b, i32, ("s32", a_name, b_name)))
    return tuple(rows)


TYPES: tuple[WgmmaType, ...] = _table()


@lru_cache(maxsize=64)
def wgmma_type(a: DType, b: DType, c: DType) -> WgmmaType | None:
    """Return the combination of types, if wgmma has it."""
    return next((t for t in TYPES if (t.a_dtype, t.b_dtype, t.c_dtype) == (a, b, c)), None)


WARPS = 4
WARP_ROWS = M // WARPS


def warp_a_atom(k: int, bits: int) -> RegisterLayout:
    """Return who holds which element of the 16 rows of a first operand in registers that one warp brings."""
    per = 32 // bits
    return RegisterLayout(
        (WARP_ROWS, k),
        (Digit(8, 0, 1), Digit(4, 1, per)),
        (Digit(2, 1, 4 * per), Digit(2, 0, 8), Digit(per, 1, 1)),
    )


def warp_c_atom(n: int) -> RegisterLayout:
    """Return who holds which element of the 16 rows of a result of n columns that belong to one warp."""
    return RegisterLayout(
        (WARP_ROWS, n),
        (Digit(8, 0, 1), Digit(4, 1, 2)),
        (Digit(n // 8, 1, 8), Digit(2, 0, 8), Digit(2, 1, 1)),
    )


def c_atom(n: int) -> RegisterLayout:
    """Return who holds which element of the 64 x n result where a warpgroup's warps lie one below the other."""
    return RegisterLayout((WARPS, 1), (Digit(WARPS, 0, 1),), ()) * warp_c_atom(n)


def rows_in_order(rows: int, warps: int) -> RegisterLayout:
    """Return which 16 rows each warp holds where instructions lie one below the other, a part for each warpgroup."""
    groups = warps // WARPS
    again = rows // M // groups
    return RegisterLayout(
        (rows // WARP_ROWS, 1),
        (Digit(groups, 0, WARPS * again), Digit(WARPS, 0, 1)),
        (Digit(again, 0, WARPS),),
    )


def rows_of(layout: RegisterLayout, atom: RegisterLayout) -> RegisterLayout:
    """Return which 16 rows each warp holds in a layout that is made of a warp's part of an instruction.

    Which warp brings which rows to an instruction is free: the rows of the result are with the same warps. Raises a
    `LayoutError` that says why where the layout is not so made.
    """
    quotient = explain_tile_by(layout, atom).quotient
    spread = [digit for digit in quotient.spatial_digits if digit.dim != 0]
    if spread:
        raise LayoutError(
            f"{layout} spreads warps over something else than rows, but each warp holds whole rows of its own"
        )
    local_digits = tuple(digit for digit in quotient.local_digits if digit.dim == 0)
    return RegisterLayout((quotient.shape[0], 1), quotient.spatial_digits, local_digits)


def columns(n: int, type: WgmmaType) -> int:
    """Return the columns of one instruction for a tile of n columns, 0 if there is none."""
    return next((size for size in range(min(n, MAX_N), 7, -1) if n % size == 0 and type.valid_n(size)), 0)
