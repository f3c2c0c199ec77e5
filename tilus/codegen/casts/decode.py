"""From codes of narrow floats, scales and tables to float32: exact for every code."""

from __future__ import annotations

from collections.abc import Sequence

from tilus import dtypes
from tilus.codegen.llvm_text import V, Writer, floating, integer
from tilus.dtypes import DType, TableType


def decode(w: Writer, dtype: DType, x: V) -> V:
    """Return the value of a float, scale or table element as a float32 (float64 stays what it is).

    Parameters
    ----------
    w : Writer
    dtype : DType
        The element's type: any float, scale or table type.
    x : V
        The element in the LLVM type in which it is computed; narrow codes as i32 without upper bits.
    """
    if dtype in (dtypes.float32, dtypes.tfloat32, dtypes.float64):
        return x
    if dtype in (dtypes.float16, dtypes.bfloat16):
        return w.convert("fpext", x, "float")
    if isinstance(dtype, TableType):
        return lookup(w, tuple(floating(value, "float") for value in dtype.values), x)
    if dtype.kind == "scale":
        return _decode_scale(w, x)
    width = dtype.exponent_bits + dtype.mantissa_bits
    magnitude = w.binary("and", x, integer((1 << width) - 1))
    # The code as the low exponent and upper mantissa bits of a float32 is the value up to a power of two,
    # for subnormal codes too.
    shifted = w.binary("shl", magnitude, integer(23 - dtype.mantissa_bits))
    scale = floating(2.0 ** (127 - dtype.bias), "float")
    value = w.value("float", f"fmul {w.convert('bitcast', shifted, 'float')}, {scale.name}")
    bits = w.convert("bitcast", value, "i32")
    if dtype.has_inf:
        special = w.icmp("uge", magnitude, integer(dtype.inf_code))
        bits = w.select(special, w.binary("or", bits, integer(0x7F800000)), bits)
    elif dtype.has_nan:
        special = w.icmp("eq", magnitude, integer(dtype.nan_code & ((1 << width) - 1)))
        bits = w.select(special, integer(0x7FC00000), bits)
    sign = w.binary("shl", w.binary("lshr", x, integer(width)), integer(31))
    return w.convert("bitcast", w.binary("or", bits, sign), "float")


def _decode_scale(w: Writer, x: V) -> V:
    """float8_e8m0: code c is ``2**(c - 127)``, 255 is NaN."""
    shifted = w.binary("shl", x, integer(23))
    smallest = integer(0x00400000)  # 2**-127, a subnormal float32
    nan = w.icmp("eq", x, integer(255))
    bits = w.select(w.icmp("eq", x, integer(0)), smallest, w.select(nan, integer(0x7FC00000), shifted))
    return w.convert("bitcast", bits, "float")


def lookup(w: Writer, values: Sequence[V], index: V) -> V:
    """Return `values[index]` by a tree of selections.

    Parameters
    ----------
    w : Writer
    values : sequence of V
        Values of one type.
    index : V
        An integer below their number.
    """
    level = list(values)
    bits = int(index.type[1:])
    bit = 0
    while len(level) > 1:
        odd = w.icmp("ne", w.binary("and", index, integer(1 << bit, bits)), integer(0, bits))
        if len(level) % 2:
            level.append(level[-1])
        level = [
            above if above == below else w.select(odd, above, below)
            for below, above in zip(level[::2], level[1::2], strict=True)
        ]
        bit += 1
    return level[0]
