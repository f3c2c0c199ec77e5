"""From float32 and float64 to codes of narrow floats, scales and tables: to nearest, ties to even, saturating."""

from __future__ import annotations

import math
import struct
from fractions import Fraction
from itertools import pairwise

from tilus.codegen.llvm_text import V, Writer, floating, integer
from tilus.dtypes import DType, TableType
from tilus.errors import TypeMismatch


def encode(w: Writer, dtype: DType, x: V, random: V | None = None) -> V:
    """Return the code of a value, as `tilus.dtypes.encode` gives it.

    Parameters
    ----------
    w : Writer
    dtype : DType
        A float of at most 8 bits, the scale type, or a table type.
    x : V
        A float32, or a float64 (which costs more).
    random : V, optional
        32 random bits (an i32) for stochastic rounding to a float: a value that lies a fraction f of the way
        to the next code is rounded away from zero with probability f.
    """
    if isinstance(dtype, TableType):
        if random is not None:
            raise TypeMismatch(f"{dtype} has no stochastic rounding here", hint="leave out the random bits")
        return _encode_table(w, dtype, x)
    if x.type == "double":
        x = round_to_odd(w, x)
    if dtype.kind == "scale":
        if random is not None:
            raise TypeMismatch(f"{dtype} has no stochastic rounding here", hint="leave out the random bits")
        return _encode_scale(w, x)
    mantissa, bias, width = dtype.mantissa_bits, dtype.bias, dtype.exponent_bits + dtype.mantissa_bits
    bits = w.convert("bitcast", x, "i32")
    magnitude = w.binary("and", bits, integer(0x7FFFFFFF))
    nan = w.icmp("ugt", magnitude, integer(0x7F800000))
    limit = w.convert("bitcast", floating(float(dtype.max), "float"), "i32")
    clamped = w.call("i32", "llvm.umin.i32", magnitude, limit)
    if random is not None:
        code = _round_at_random(w, dtype, clamped, random)
    else:
        # Normal values: round the float's own bits at the last kept mantissa bit, then change the bias.
        drop = 23 - mantissa
        odd = w.binary("and", w.binary("lshr", clamped, integer(drop)), integer(1))
        rounded = w.add(clamped, w.add(odd, integer((1 << (drop - 1)) - 1)))
        normal = w.binary("sub", w.binary("lshr", rounded, integer(drop)), integer((127 - bias) << mantissa))
        # Subnormal values: adding a power of two whose last place is theirs rounds them to it.
        anchor = floating(2.0 ** (23 + 1 - bias - mantissa), "float")
        total = w.value("float", f"fadd {w.convert('bitcast', clamped, 'float')}, {anchor.name}")
        offset = w.convert("bitcast", anchor, "i32")
        subnormal = w.binary("sub", w.convert("bitcast", total, "i32"), offset)
        smallest = w.convert("bitcast", floating(2.0 ** (1 - bias), "float"), "i32")
        code = w.select(w.icmp("ult", clamped, smallest), subnormal, normal)
    code = w.call("i32", "llvm.umin.i32", code, integer(dtype.max_code))
    sign = w.binary("shl", w.binary("lshr", bits, integer(31)), integer(width))
    code = w.binary("or", code, sign)
    return w.select(nan, integer(dtype.nan_code if dtype.has_nan else dtype.max_code), code)


def _round_at_random(w: Writer, dtype: DType, magnitude: V, random: V) -> V:
    """Round a float32's magnitude to a code: up where the bits cut off exceed as many random bits."""
    mantissa, bias = dtype.mantissa_bits, dtype.bias
    exponent = w.binary("lshr", magnitude, integer(23))
    fraction = w.binary("and", magnitude, integer(0x7FFFFF))
    implicit = w.select(w.icmp("ne", exponent, integer(0)), integer(1 << 23), integer(0))
    significand = w.binary("or", fraction, implicit)
    # Below the smallest normal value the spacing stays: one more bit is cut off for each power of two.
    below = w.call("i32", "llvm.smax.i32", w.binary("sub", integer(128 - bias), exponent), integer(0))
    # 64 bits hold the significand and what is compared with the random bits; what does not fit is less than they tell.
    most = integer(mantissa + 8)
    excess = w.call("i32", "llvm.usub.sat.i32", below, most)
    excess = w.call("i32", "llvm.umin.i32", excess, integer(63))
    wide = w.binary("shl", w.convert("zext", significand, "i64"), integer(32, 64))
    wide = w.binary("lshr", wide, w.convert("zext", excess, "i64"))
    drop = w.add(w.call("i32", "llvm.umin.i32", below, most), integer(32 + 23 - mantissa))
    places = w.convert("zext", drop, "i64")
    ones = w.binary("sub", w.binary("shl", integer(1, 64), places), integer(1, 64))
    # The random bits as the upper bits of a number below 2**drop: adding its complement carries where it is less.
    shift = w.convert("zext", w.binary("sub", drop, integer(32)), "i64")
    number = w.binary("shl", w.convert("zext", random, "i64"), shift)
    carried = w.binary("lshr", w.add(wide, w.binary("sub", ones, number)), places)
    kept = w.convert("trunc", carried, "i32")
    # The implicit one of a normal value adds itself to the exponent field.
    steps = w.call("i32", "llvm.smax.i32", w.binary("sub", exponent, integer(128 - bias)), integer(0))
    return w.add(kept, w.binary("shl", steps, integer(mantissa)))


def round_to_odd(w: Writer, x: V) -> V:
    """Return a float32 from which rounding once more to fewer bits gives what rounding the float64 gives.

    The last bit is set where the conversion was not exact (Boldo and Melquiond, Emulation of FMA and correctly
    rounded sums, 2008).
    """
    near = w.value("float", f"fptrunc {x} to float")
    back = w.value("double", f"fpext {near} to double")
    size = w.call("double", "llvm.fabs.f64", x)
    back_size = w.call("double", "llvm.fabs.f64", back)
    bits = w.convert("bitcast", near, "i32")
    above = w.value("i1", f"fcmp ogt {back_size}, {size.name}")
    truncated = w.add(bits, w.convert("sext", above, "i32"))
    inexact = w.value("i1", f"fcmp one {back}, {x.name}")
    odd = w.binary("or", truncated, w.convert("zext", inexact, "i32"))
    return w.convert("bitcast", odd, "float")


def _encode_scale(w: Writer, x: V) -> V:
    """float8_e8m0: the nearest power of two, saturating; negative values and NaN give NaN."""
    bits = w.convert("bitcast", x, "i32")
    magnitude = w.binary("and", bits, integer(0x7FFFFFFF))
    # Half way between two powers of two the even code is taken.
    odd = w.binary("and", w.binary("lshr", bits, integer(23)), integer(1))
    rounded = w.binary("lshr", w.add(bits, w.add(odd, integer((1 << 22) - 1))), integer(23))
    code = w.call("i32", "llvm.umin.i32", rounded, integer(254))
    # Subnormal float32 lie between 0 and 2**-126: the codes 0 (2**-127) and 1 (2**-126) meet at 1.5 * 2**-127.
    small = w.convert("zext", w.icmp("ugt", magnitude, integer(0x00600000)), "i32")
    code = w.select(w.icmp("ult", magnitude, integer(0x00800000)), small, code)
    zero = w.icmp("eq", magnitude, integer(0))
    nan = w.icmp("ugt", magnitude, integer(0x7F800000))
    negative = w.binary("and", w.icmp("slt", bits, integer(0)), w.icmp("ne", magnitude, integer(0)))
    return w.select(w.binary("or", nan, negative), integer(255), w.select(zero, integer(0), code))


def _encode_table(w: Writer, dtype: TableType, x: V) -> V:
    """The nearest entry; the smallest code where entries are equal or equally near."""
    first: dict[float, int] = {}
    for number, value in enumerate(dtype.values):
        first.setdefault(value, number)
    ordered = sorted(first)
    code = integer(first[ordered[0]])
    for below, above in pairwise(ordered):
        limit = _last_of_lower(below, above, first[below] < first[above], x.type)
        over = w.value("i1", f"fcmp ogt {x}, {floating(limit, x.type).name}")
        code = w.select(over, integer(first[above]), code)
    nearest_zero = min(range(len(dtype.values)), key=lambda c: (abs(dtype.values[c]), c))
    return w.select(w.value("i1", f"fcmp uno {x}, {x.name}"), integer(nearest_zero), code)


def _last_of_lower(below: float, above: float, tie_below: bool, type: str) -> float:
    """Return the largest number of an LLVM type that is nearer to `below` than to `above`."""
    middle = (Fraction(below) + Fraction(above)) / 2
    number = float(middle)
    if type == "float":
        number = struct.unpack("<f", struct.pack("<f", number))[0]
    while Fraction(number) > middle or (Fraction(number) == middle and not tie_below):
        number = math.nextafter(number, -math.inf) if type == "double" else _next_float32_below(number)
    return number


def _next_float32_below(number: float) -> float:
    (bits,) = struct.unpack("<i", struct.pack("<f", number))
    if number == 0:
        bits = -0x7FFFFFFF  # the negative float32 nearest to zero
    else:
        bits += -1 if number > 0 else 1
    (below,) = struct.unpack("<f", struct.pack("<i", bits))
    return float(below)
