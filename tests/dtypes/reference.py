"""A second definition of the scalar types, in exact fractions and one value at a time, to test the first against.

It reads a type's fields from its name alone and shares no code with tilus.
"""

from __future__ import annotations

import bisect
import math
import re
from fractions import Fraction
from functools import cache

# What the standards say of the codes that are not numbers; a float that is not here has numbers only.
IEEE = {"float64", "float32", "float16", "bfloat16", "tfloat32", "float8_e5m2", "float8_e3m4"}
ONE_NAN = {"float8_e4m3"}
WIDE_FIELDS = {
    "float64": (11, 52),
    "float32": (8, 23),
    "float16": (5, 10),
    "bfloat16": (8, 7),
    "tfloat32": (8, 10),
}


def fields(name: str) -> tuple[int, int]:
    """Return the exponent and mantissa bits of a float."""
    if name in WIDE_FIELDS:
        return WIDE_FIELDS[name]
    matched = re.fullmatch(r"float(\d)_e(\d)m(\d)", name)
    assert matched is not None
    width, exponent, mantissa = map(int, matched.groups())
    assert width == 1 + exponent + mantissa
    return exponent, mantissa


def magnitude(code: int, exponent_bits: int, mantissa_bits: int) -> Fraction:
    """Return the value of an exponent and a mantissa field, every exponent being a finite number's."""
    bias = 2 ** (exponent_bits - 1) - 1
    exponent, mantissa = divmod(code, 2**mantissa_bits)
    significand = Fraction(mantissa, 2**mantissa_bits)
    if exponent == 0:
        return significand * Fraction(2) ** (1 - bias)
    return (1 + significand) * Fraction(2) ** (exponent - bias)


def largest_code(name: str) -> int:
    """Return the magnitude code of the largest finite value."""
    exponent_bits, mantissa_bits = fields(name)
    if name in IEEE:
        return (2**exponent_bits - 1) * 2**mantissa_bits - 1
    return 2 ** (exponent_bits + mantissa_bits) - (2 if name in ONE_NAN else 1)


def decode_float(name: str, code: int) -> float:
    """Return the value of one code of a float of at most 16 bits."""
    exponent_bits, mantissa_bits = fields(name)
    sign, rest = divmod(code, 2 ** (exponent_bits + mantissa_bits))
    if rest <= largest_code(name):
        value = float(magnitude(rest, exponent_bits, mantissa_bits))
    elif name in IEEE and rest == largest_code(name) + 1:
        value = math.inf
    else:
        value = math.nan
    return math.copysign(value, -1.0 if sign else 1.0)


@cache
def magnitudes(name: str) -> list[Fraction]:
    """Return the finite values of a small float that are not negative, and the one that would come next."""
    exponent_bits, mantissa_bits = fields(name)
    return [magnitude(code, exponent_bits, mantissa_bits) for code in range(largest_code(name) + 2)]


def encode_float(name: str, value: float, saturate: bool) -> int:
    """Round one value to a small float by searching all of its values."""
    exponent_bits, mantissa_bits = fields(name)
    largest = largest_code(name)
    if math.isnan(value):
        if name in IEEE:
            return (2**exponent_bits - 1) * 2**mantissa_bits + 2 ** (mantissa_bits - 1)
        return (
            2 ** (exponent_bits + mantissa_bits) - 1
        )  # e4m3's NaN, or the largest value of a type without NaN
    sign = 2 ** (exponent_bits + mantissa_bits) if math.copysign(1.0, value) < 0 else 0
    overflowed = largest if saturate else largest + 1  # infinity, or e4m3's NaN
    if math.isinf(value):
        return sign | overflowed
    code = nearest(magnitudes(name), abs(Fraction(value)))
    return sign | (overflowed if code > largest else code)


def nearest(ascending: list[Fraction], value: Fraction) -> int:
    """Return the index of the nearest of ascending values, the even index of two that are equally near."""
    above = bisect.bisect_left(ascending, value)
    if above == len(ascending):
        return above - 1
    if above == 0 or ascending[above] == value:
        return above
    below = above - 1
    to_below, to_above = value - ascending[below], ascending[above] - value
    if to_below == to_above:
        return below if below % 2 == 0 else above
    return below if to_below < to_above else above


def encode_integer(bits: int, signed: bool, value: float | int) -> int:
    """Round one value to an integer type in two's complement."""
    low, high = (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if signed else (0, 2**bits - 1)
    if isinstance(value, float) and math.isnan(value):
        rounded = 0
    elif isinstance(value, float) and math.isinf(value):
        rounded = high if value > 0 else low
    else:
        rounded = min(max(round(Fraction(value)), low), high)  # Python rounds a fraction's halves to even
    return rounded % 2**bits


def pack_row(codes: list[int], bits: int) -> bytes:
    """Pack one row of codes by way of one large integer."""
    total = sum(code << (bits * index) for index, code in enumerate(codes))
    return total.to_bytes(-(-len(codes) * bits // 8), "little")
