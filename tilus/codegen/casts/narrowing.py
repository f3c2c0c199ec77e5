"""Packed casts from float32 to types of at most 8 bits, by the hardware's own conversions."""

from __future__ import annotations

from collections.abc import Sequence

from tilus import dtypes
from tilus.codegen.casts.fast import Emit
from tilus.codegen.llvm_text import V, Writer, integer
from tilus.dtypes import DType


def to_integers(dest: DType) -> Emit:
    """Integers of 2, 4 or 8 bits: truncate each, then saturate and pack two at a time below those packed before."""
    kind = f"{'s' if dest.is_signed else 'u'}{dest.bits}"

    def emit(w: Writer, values: Sequence[V]) -> list[V]:
        whole = [w.call("i32", "llvm.fptosi.sat.i32.f32", value) for value in values]
        packed = integer(0)
        for low in range(len(whole) - 2, -1, -2):
            text = f"cvt.pack.sat.{kind}.s32.b32 $0, $1, $2, $3;"
            packed = w.asm("i32", text, "=r,r,r,r", whole[low + 1], whole[low], packed)
        return [packed]

    return emit


def to_float8(w: Writer, values: Sequence[V], kind: str) -> V:
    """Return a word of four float8."""
    # One text, for LLVM would take halves of it where one float8 is enough, and read others that nothing wrote.
    text = (
        f"{{ .reg .b16 low, high; cvt.rn.satfinite.{kind}x2.f32 low, $2, $1; "
        f"cvt.rn.satfinite.{kind}x2.f32 high, $4, $3; mov.b32 $0, {{low, high}}; }}"
    )
    return w.asm("i32", text, "=r,f,f,f,f", *values)


def to_e4m3(w: Writer, values: Sequence[V]) -> list[V]:
    """float8_e4m3, four to a word."""
    return [to_float8(w, values, "e4m3")]


def to_e5m2(w: Writer, values: Sequence[V]) -> list[V]:
    """float8_e5m2, four to a word; the hardware's NaN has all its bits set, ours the upper one of the mantissa."""
    word = to_float8(w, values, "e5m2")
    carried = w.add(w.binary("and", word, integer(0x7F7F7F7F)), integer(0x01010101))
    nan = w.binary("and", w.binary("lshr", carried, integer(7)), integer(0x01010101))
    return [w.binary("sub", word, nan)]


def to_e2m1(w: Writer, values: Sequence[V]) -> list[V]:
    """float4_e2m1, eight to a word."""
    text = (
        "{ .reg .b8 one, two, three, four; cvt.rn.satfinite.e2m1x2.f32 one, $2, $1; "
        "cvt.rn.satfinite.e2m1x2.f32 two, $4, $3; cvt.rn.satfinite.e2m1x2.f32 three, $6, $5; "
        "cvt.rn.satfinite.e2m1x2.f32 four, $8, $7; mov.b32 $0, {one, two, three, four}; }"
    )
    return [w.asm("i32", text, "=r,f,f,f,f,f,f,f,f", *values)]


NARROWING: tuple[tuple[DType, str, float, Emit], ...] = (
    *((dtypes.dtype(f"{kind}{bits}"), "", 1.5, to_integers(dtypes.dtype(f"{kind}{bits}")))
      for kind in ("int", "uint") for bits in (2, 4, 8)),
    (dtypes.float8_e4m3, "cvt_fp8", 0.75, to_e4m3),
    (dtypes.float8_e5m2, "cvt_fp8", 1.75, to_e5m2),
    (dtypes.float4_e2m1, "cvt_fp4", 0.75, to_e2m1),
)  # fmt: skip
"""Destination, feature, instructions per element, and how."""
