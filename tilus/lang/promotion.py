"""Which dtype an operation computes in, and whether a Python number fits a dtype.

Run-time scalars and tiles follow one rule: of two floats or two integers the wider wins (float16 with bfloat16
gives float32), an integer with a float gives the float. Integers of different sign mix only where the signed one is
wider. A Python number takes the dtype of its partner, so that `x * 0.5` stays float16; only an integer tile with a
Python float becomes float32. Types of 8 bits and less are for storage: they are cast before arithmetic.
"""

from __future__ import annotations

import math

from tilus.dtypes import DType, TableType, boolean, float32, int32, int64
from tilus.errors import TypeMismatch

Number = int | float | bool

STORAGE_HINT = "cast it first, as in x.to(tilus.float16) or x.to(tilus.int32)"


def is_number(value: object) -> bool:
    """Tell whether a value is a Python number that may meet run-time values."""
    return isinstance(value, (int, float))


def number_dtype(value: Number) -> DType:
    """Return the dtype that a Python number gets where nothing else decides."""
    if isinstance(value, bool):
        return boolean
    if isinstance(value, float):
        return float32
    if int32.min <= value <= int32.max:
        return int32
    if int64.min <= value <= int64.max:
        return int64
    raise TypeMismatch(f"the int {value} does not fit into 64 bits", hint="a number of 64 bits, or a float")


def fits(value: Number, dtype: DType) -> bool:
    """Tell whether a Python number can be a constant of a dtype; a float may be rounded, but not overflow."""
    if isinstance(value, bool):
        return True if dtype.is_boolean else fits(int(value), dtype)
    if dtype.is_boolean:
        return False
    if dtype.is_integer:
        return isinstance(value, int) and dtype.min <= value <= dtype.max
    if isinstance(dtype, TableType):
        return float(value) in dtype.values
    if isinstance(value, float) and math.isnan(value):
        return dtype.has_nan
    if isinstance(value, float) and math.isinf(value):
        return dtype.has_inf
    if dtype.kind == "scale":
        return value > 0 and dtype.min <= value <= dtype.max and math.frexp(value)[0] == 0.5
    return dtype.min <= value <= dtype.max


def as_constant(value: Number, dtype: DType) -> Number:
    """Return a Python number as a constant of a dtype holds it."""
    if not fits(value, dtype):
        range_text = (
            f"which holds {dtype.min} to {dtype.max}" if not dtype.is_table else "whose table lacks it"
        )
        raise TypeMismatch(
            f"the {type(value).__name__} {value} is no {dtype}, {range_text}",
            hint="a number of that dtype, or cast the other operand to a dtype that holds the number",
        )
    if dtype.is_boolean:
        return bool(value)
    return int(value) if dtype.is_integer else float(value)


def require_arithmetic(symbol: str, dtype: DType) -> None:
    """Refuse dtypes that are for storage only."""
    if dtype.is_boolean:
        raise TypeMismatch(
            f"{symbol} does not take a boolean",
            hint="x.to(tilus.int32), or & | ^ ~ for logic on each element",
        )
    require_number(symbol, dtype)
    if dtype.bits <= 8:
        raise TypeMismatch(f"{symbol} does not take {dtype}, which is for storage", hint=STORAGE_HINT)


def require_number(symbol: str, dtype: DType) -> None:
    """Refuse dtypes on which no operation but a cast is defined; bytes pass."""
    storage = dtype.bits < 8 or (dtype.bits == 8 and not (dtype.is_integer or dtype.is_boolean))
    if storage or dtype.is_table:
        raise TypeMismatch(f"{symbol} does not take {dtype}, which is for storage", hint=STORAGE_HINT)
    if dtype.name == "tfloat32":
        raise TypeMismatch(
            f"{symbol} does not take tfloat32, which only dot does", hint="x.to(tilus.float32)"
        )


def require_integer(symbol: str, dtype: DType) -> None:
    """Refuse all but integers of 8 bits and more."""
    if not dtype.is_integer:
        raise TypeMismatch(
            f"{symbol} takes integers, not {dtype}",
            hint="x.to(tilus.int32), or tilus.view to see the bits of a float",
        )
    require_number(symbol, dtype)


def require_float(symbol: str, dtype: DType) -> None:
    """Refuse all but floats of 16 bits and more."""
    if not dtype.is_float:
        raise TypeMismatch(f"{symbol} takes a float, not {dtype}", hint=f"{symbol}(x.to(tilus.float32))")
    require_arithmetic(symbol, dtype)


def promote(symbol: str, a: DType, b: DType) -> DType:
    """Return the common dtype of two run-time operands."""
    if a == b:
        return a
    if a.is_boolean or b.is_boolean or not all(d.is_float or d.is_integer for d in (a, b)):
        raise TypeMismatch(
            f"{symbol} takes operands of one dtype, not {a} and {b}", hint="cast one of them with .to(...)"
        )
    if a.is_float != b.is_float:
        return a if a.is_float else b
    if a.is_float:
        return max(a, b, key=lambda d: d.bits) if a.bits != b.bits else float32
    if a.is_signed == b.is_signed:
        return max(a, b, key=lambda d: d.bits)
    signed, unsigned = (a, b) if a.is_signed else (b, a)
    if signed.bits > unsigned.bits:
        return signed
    raise TypeMismatch(
        f"{symbol} takes integers of one sign, not {a} and {b}: {signed} does not hold all values of {unsigned}",
        hint=f"cast one of them, as in x.to(tilus.{signed})",
    )


def promote_number(symbol: str, value: Number, other: DType) -> DType:
    """Return the dtype in which a Python number meets a run-time operand."""
    if isinstance(value, bool):
        if not other.is_boolean:
            raise TypeMismatch(
                f"{symbol} takes operands of one dtype, not {other} and the bool {value}",
                hint=f"{int(value)}",
            )
        return other
    if other.is_boolean:
        raise TypeMismatch(
            f"{symbol} takes operands of one dtype, not boolean and the {type(value).__name__} {value}",
            hint="cast the boolean first, as in x.to(tilus.int32)",
        )
    if isinstance(value, float) and other.is_integer:
        return other if other.bits < 8 else float32
    return other
