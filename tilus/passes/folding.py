"""Arithmetic on scalar constants, as the device does it: integers wrap, floats are rounded to nearest even.

Each function returns None where the result is not certain: a division by zero, a float that is not finite, a dtype
whose rounding is not done here, or a function that the device approximates.
"""

from __future__ import annotations

import math
import operator
import struct
from collections.abc import Callable
from typing import Any

from tilus.dtypes import DType, boolean

Number = int | float | bool

# The widths of floats that `struct` rounds to.
_FORMATS = {"float64": "<d", "float32": "<f", "float16": "<e"}


def wrap(value: int, dtype: DType) -> int:
    """Return the integer of `dtype` with the same low bits."""
    value &= dtype.code_mask
    return value - dtype.code_mask - 1 if dtype.is_signed and value >> (dtype.bits - 1) else value


def round_to(value: float, dtype: DType) -> float | None:
    """Return a finite float rounded to `dtype`, or None."""
    format = _FORMATS.get(dtype.name)
    if format is None or not math.isfinite(value):
        return None
    try:
        rounded: float = struct.unpack(format, struct.pack(format, value))[0]
    except OverflowError:
        return None
    return rounded


def canonical(value: Number, dtype: DType) -> Number | None:
    """Return the value that a constant of `dtype` has on the device."""
    if dtype == boolean:
        return bool(value)
    if dtype.is_integer:
        return wrap(int(value), dtype)
    if dtype.name in ("bfloat16", "tfloat32") and value in (0.0, 1.0):
        return float(value)
    return round_to(float(value), dtype)


def _shift_left(a: int, b: int, dtype: DType) -> int:
    return a << b if 0 <= b < dtype.bits else 0


def _shift_right(a: int, b: int, dtype: DType) -> int:
    return a >> (b if 0 <= b < dtype.bits else dtype.bits)


_INTEGER: dict[str, Callable[[int, int, DType], int | None]] = {
    "add": lambda a, b, t: a + b,
    "sub": lambda a, b, t: a - b,
    "mul": lambda a, b, t: a * b,
    "min": lambda a, b, t: min(a, b),
    "max": lambda a, b, t: max(a, b),
    "floordiv": lambda a, b, t: a // b if b else None,
    "mod": lambda a, b, t: a % b if b else None,
    "pow": lambda a, b, t: pow(a, b, 1 << t.bits) if b >= 0 else None,
    "mulhi": lambda a, b, t: a * b >> t.bits,
    "shl": _shift_left,
    "shr": _shift_right,
    "and": lambda a, b, t: a & b,
    "or": lambda a, b, t: a | b,
    "xor": lambda a, b, t: a ^ b,
}

# In float64 first: for these four the second rounding changes nothing in a format of at most half the precision.
_FLOAT: dict[str, Callable[[float, float], float | None]] = {
    "add": operator.add,
    "sub": operator.sub,
    "mul": operator.mul,
    "div": lambda a, b: a / b if b else None,
    "min": lambda a, b: None if a == b else min(a, b),
    "max": lambda a, b: None if a == b else max(a, b),
}


def fold_binary(kind: str, a: Number, b: Number, dtype: DType) -> Number | None:
    """Return the constant that a binary operation on canonical constants gives, or None."""
    if dtype == boolean:
        return bool(_INTEGER[kind](int(a), int(b), dtype)) if kind in ("and", "or", "xor") else None
    if dtype.is_integer:
        made = _INTEGER[kind](int(a), int(b), dtype)
        return None if made is None else wrap(made, dtype)
    if kind not in _FLOAT or dtype.name not in _FORMATS:
        return None
    try:
        exact = _FLOAT[kind](a, b)
    except OverflowError:
        return None
    return None if exact is None else round_to(exact, dtype)


def _count_leading(a: int, dtype: DType) -> int:
    return dtype.bits - (a & dtype.code_mask).bit_length()


def _count_trailing(a: int, dtype: DType) -> int:
    code = a & dtype.code_mask
    return (code & -code).bit_length() - 1 if code else dtype.bits


_INTEGER_UNARY: dict[str, Callable[[int, DType], int]] = {
    "neg": lambda a, t: wrap(-a, t),
    "abs": lambda a, t: wrap(abs(a), t),
    "not": lambda a, t: wrap(~a, t),
    "popcount": lambda a, t: (a & t.code_mask).bit_count(),
    "clz": _count_leading,
    "ctz": _count_trailing,
    "brev": lambda a, t: wrap(int(f"{a & t.code_mask:0{t.bits}b}"[::-1], 2), t),
}

_FLOAT_UNARY: dict[str, Callable[[float], float]] = {
    "neg": operator.neg,
    "abs": abs,
    "floor": lambda a: math.copysign(math.floor(a), a),
    "ceil": lambda a: math.copysign(math.ceil(a), a),
    "trunc": lambda a: math.copysign(math.trunc(a), a),
    "round": lambda a: math.copysign(round(a), a),
}


def fold_unary(kind: str, a: Number, dtype: DType) -> Number | None:
    """Return the constant that a unary operation on a canonical constant gives, or None."""
    if dtype == boolean:
        return not a if kind == "not" else None
    if dtype.is_integer:
        return _INTEGER_UNARY[kind](int(a), dtype)
    if kind not in _FLOAT_UNARY or dtype.name not in _FORMATS:
        return None
    return round_to(_FLOAT_UNARY[kind](a), dtype)


_COMPARE: dict[str, Callable[[Any, Any], bool]] = {
    "eq": operator.eq, "ne": operator.ne, "lt": operator.lt, "le": operator.le, "gt": operator.gt, "ge": operator.ge,
}  # fmt: skip


def fold_compare(kind: str, a: Number, b: Number) -> bool:
    """Return the result of a comparison of canonical constants."""
    return _COMPARE[kind](a, b)


def fold_cast(a: Number, source: DType, target: DType) -> Number | None:
    """Return a canonical constant converted by value, or None."""
    if target == boolean:
        return a != 0
    if target.is_integer:
        if source.is_float:
            return max(int(target.min), min(int(target.max), math.trunc(a)))
        return wrap(int(a), target)
    # Beyond 2**53 the conversion to float64 would be a first rounding.
    if not source.is_float and abs(int(a)) > 1 << 53:
        return None
    return round_to(float(a), target)
