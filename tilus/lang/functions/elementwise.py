"""Functions of each element, of tiles and of scalars; on Python numbers they compute at compile time."""

from __future__ import annotations

import builtins
import math
from typing import Any

from tilus.dtypes import DType
from tilus.lang.stub import only_in_kernel

_NUMBERS = (int, float)


def cdiv(a: Any, b: Any) -> Any:
    """Divide integers and round up.

    Parameters
    ----------
    a, b : int, Scalar or Tile
        Not negative, `b` not zero.

    Returns
    -------
    int, Scalar or Tile
    """
    if isinstance(a, int) and isinstance(b, int):
        return -(-a // b)
    raise only_in_kernel("tilus.cdiv of run-time values")


def next_power_of_2(n: int) -> int:
    """Return the smallest power of two that is not below `n`, which is known at compile time.

    Parameters
    ----------
    n : int
        1 or more.

    Returns
    -------
    int
    """
    if n < 1:
        raise ValueError(f"next_power_of_2 takes an integer from 1 on, not {n}")
    return 1 << (n - 1).bit_length()


def cast(
    x: Any,
    dtype: DType,
    *,
    arranged: bool = False,
    exponent: int = 0,
    biased: bool = False,
    random: Any = None,
) -> Any:
    """Convert by value: to the nearest, ties to even; float to integer rounds towards zero.

    A conversion to a type without infinity saturates.

    Parameters
    ----------
    x : number, Scalar or Tile
        What to convert.
    dtype : DType
        Any dtype.
    arranged : bool
        Whether each thread's codes lie in the order of bits that the cast prefers, as `tilus.ops.prepack` stores
        weights for `dtype`, and none is infinite or NaN.
    exponent : int
        Of an arranged cast: the result is the value divided by ``2**exponent``, which a scale can make up for.
        `tilus.codegen.casts.stored_exponent` tells which one costs least.
    biased : bool
        Of an arranged cast: the result is the value plus what the code of zero becomes at the same place among the
        thread's codes. It costs half as much, and a product with zeros that are cast so tells what to take off.
        `tilus.codegen.casts.biased_cast` tells for which types there is one.
    random : Tile of uint32, optional
        Random bits for each element (see `tilus.randint`): a float16, bfloat16 or float32 that lies a fraction f of the
        way from one number of an integer type, or of a float of at most 8 bits, to the next is rounded to that one with
        probability f. So rounding is right on average.

    Returns
    -------
    Scalar or Tile
    """
    raise only_in_kernel("tilus.cast")


def where(condition: Any, a: Any, b: Any) -> Any:
    """Take `a` where the condition is true and `b` elsewhere, with NumPy's broadcasting.

    Parameters
    ----------
    condition : bool, Scalar or Tile
        boolean.
    a, b : number, Scalar or Tile
        Converted to a common dtype as for `+`.

    Returns
    -------
    Scalar or Tile
    """
    raise only_in_kernel("tilus.where")


def maximum(a: Any, b: Any) -> Any:
    """Return the larger of two values, element by element; with NaN it is NaN.

    Parameters
    ----------
    a, b : number, Scalar or Tile
        Converted to a common dtype as for `+`.

    Returns
    -------
    number, Scalar or Tile
    """
    if isinstance(a, _NUMBERS) and isinstance(b, _NUMBERS):
        return builtins.max(a, b)
    raise only_in_kernel("tilus.maximum of run-time values")


def minimum(a: Any, b: Any) -> Any:
    """Return the smaller of two values, element by element; with NaN it is NaN.

    Parameters
    ----------
    a, b : number, Scalar or Tile
        Converted to a common dtype as for `+`.

    Returns
    -------
    number, Scalar or Tile
    """
    if isinstance(a, _NUMBERS) and isinstance(b, _NUMBERS):
        return builtins.min(a, b)
    raise only_in_kernel("tilus.minimum of run-time values")


def clamp(x: Any, low: Any, high: Any) -> Any:
    """Return the nearest value from `low` to `high`; NaN stays NaN.

    Parameters
    ----------
    x : number, Scalar or Tile
    low, high : number, Scalar or Tile
        Converted to a common dtype as for `+`.

    Returns
    -------
    number, Scalar or Tile
    """
    return minimum(maximum(x, low), high)


def sigmoid(x: Any) -> Any:
    """Return ``1 / (1 + exp(-x))`` of each element.

    Parameters
    ----------
    x : number, Scalar or Tile
        A float.

    Returns
    -------
    number, Scalar or Tile
    """
    return 1.0 / (1.0 + math.exp(-_number("sigmoid", x)))


def abs(x: Any) -> Any:
    """Return the absolute value of each element.

    Parameters
    ----------
    x : number, Scalar or Tile

    Returns
    -------
    number, Scalar or Tile
    """
    if isinstance(x, _NUMBERS):
        return builtins.abs(x)
    raise only_in_kernel("tilus.abs of run-time values")


def _number(name: str, x: Any) -> float:
    if isinstance(x, _NUMBERS):
        return float(x)
    raise only_in_kernel(f"tilus.{name} of run-time values")


def exp(x: Any, fast: bool = False) -> Any:
    """Return e to the power of each element.

    Parameters
    ----------
    x : number, Scalar or Tile
        A float.
    fast : bool
        Whether fewer instructions are worth an error of about 70 units in the last place for large x, and
        zero for numbers below 2**-126, given or found.

    Returns
    -------
    number, Scalar or Tile
    """
    return math.exp(_number("exp", x))


def exp2(x: Any, fast: bool = False) -> Any:
    """Return 2 to the power of each element.

    Parameters
    ----------
    x : number, Scalar or Tile
        A float.
    fast : bool
        Whether fewer instructions are worth an error of 2 units in the last place, and
        zero for numbers below 2**-126, given or found.

    Returns
    -------
    number, Scalar or Tile
    """
    return 2.0 ** _number("exp2", x)


def log(x: Any) -> Any:
    """Return the natural logarithm of each element.

    Parameters
    ----------
    x : number, Scalar or Tile
        A float.

    Returns
    -------
    number, Scalar or Tile
    """
    return math.log(_number("log", x))


def log2(x: Any) -> Any:
    """Return the logarithm to base 2 of each element.

    Parameters
    ----------
    x : number, Scalar or Tile
        A float.

    Returns
    -------
    number, Scalar or Tile
    """
    return math.log2(_number("log2", x))


def sin(x: Any) -> Any:
    """Return the sine of each element, in radians.

    Parameters
    ----------
    x : number, Scalar or Tile
        A float.

    Returns
    -------
    number, Scalar or Tile
    """
    return math.sin(_number("sin", x))


def cos(x: Any) -> Any:
    """Return the cosine of each element, in radians.

    Parameters
    ----------
    x : number, Scalar or Tile
        A float.

    Returns
    -------
    number, Scalar or Tile
    """
    return math.cos(_number("cos", x))


def tanh(x: Any) -> Any:
    """Return the hyperbolic tangent of each element.

    Parameters
    ----------
    x : number, Scalar or Tile
        A float.

    Returns
    -------
    number, Scalar or Tile
    """
    return math.tanh(_number("tanh", x))


def erf(x: Any) -> Any:
    """Return the error function of each element.

    Parameters
    ----------
    x : number, Scalar or Tile
        A float.

    Returns
    -------
    number, Scalar or Tile
    """
    return math.erf(_number("erf", x))


def sqrt(x: Any) -> Any:
    """Return the square root of each element.

    Parameters
    ----------
    x : number, Scalar or Tile
        A float.

    Returns
    -------
    number, Scalar or Tile
    """
    return math.sqrt(_number("sqrt", x))


def rsqrt(x: Any) -> Any:
    """Return one over the square root of each element.

    Parameters
    ----------
    x : number, Scalar or Tile
        A float.

    Returns
    -------
    number, Scalar or Tile
    """
    return 1.0 / math.sqrt(_number("rsqrt", x))


def rcp(x: Any, fast: bool = False) -> Any:
    """Return one over each element.

    Parameters
    ----------
    x : number, Scalar or Tile
        A float.
    fast : bool
        Whether fewer instructions are worth an error of 1 unit in the last place, and
        zero for numbers below 2**-126, given or found.

    Returns
    -------
    number, Scalar or Tile
    """
    return 1.0 / _number("rcp", x)


def floor(x: Any) -> Any:
    """Round each element down to an integer; the dtype stays.

    Parameters
    ----------
    x : number, Scalar or Tile
        A float.

    Returns
    -------
    number, Scalar or Tile
    """
    return float(math.floor(_number("floor", x)))


def ceil(x: Any) -> Any:
    """Round each element up to an integer; the dtype stays.

    Parameters
    ----------
    x : number, Scalar or Tile
        A float.

    Returns
    -------
    number, Scalar or Tile
    """
    return float(math.ceil(_number("ceil", x)))


def round(x: Any) -> Any:
    """Round each element to the nearest integer, ties to even; the dtype stays.

    Parameters
    ----------
    x : number, Scalar or Tile
        A float.

    Returns
    -------
    number, Scalar or Tile
    """
    return float(builtins.round(_number("round", x)))


def trunc(x: Any) -> Any:
    """Round each element towards zero to an integer; the dtype stays.

    Parameters
    ----------
    x : number, Scalar or Tile
        A float.

    Returns
    -------
    number, Scalar or Tile
    """
    return float(math.trunc(_number("trunc", x)))


def isnan(x: Any) -> Any:
    """Tell for each element whether it is NaN.

    Parameters
    ----------
    x : number, Scalar or Tile
        A float.

    Returns
    -------
    bool, Scalar or Tile
    """
    return math.isnan(_number("isnan", x))


def isinf(x: Any) -> Any:
    """Tell for each element whether it is an infinity.

    Parameters
    ----------
    x : number, Scalar or Tile
        A float.

    Returns
    -------
    bool, Scalar or Tile
    """
    return math.isinf(_number("isinf", x))


def popcount(x: Any) -> Any:
    """Count the bits that are set in each element.

    Parameters
    ----------
    x : Scalar or Tile
        An integer of 32 or 64 bits.

    Returns
    -------
    Scalar or Tile
        int32.
    """
    raise only_in_kernel("tilus.popcount")


def clz(x: Any) -> Any:
    """Count the zero bits above the topmost set bit of each element.

    Parameters
    ----------
    x : Scalar or Tile
        An integer of 32 or 64 bits.

    Returns
    -------
    Scalar or Tile
        int32.
    """
    raise only_in_kernel("tilus.clz")


def ctz(x: Any) -> Any:
    """Count the zero bits below the lowest set bit of each element.

    Parameters
    ----------
    x : Scalar or Tile
        An integer of 32 or 64 bits.

    Returns
    -------
    Scalar or Tile
        int32.
    """
    raise only_in_kernel("tilus.ctz")


def brev(x: Any) -> Any:
    """Reverse the order of the bits of each element.

    Parameters
    ----------
    x : Scalar or Tile
        An integer of 32 or 64 bits.

    Returns
    -------
    Scalar or Tile
    """
    raise only_in_kernel("tilus.brev")


def mulhi(a: Any, b: Any) -> Any:
    """Return the upper half of the product of integers.

    Parameters
    ----------
    a, b : int, Scalar or Tile
        Integers of 32 or 64 bits.

    Returns
    -------
    Scalar or Tile
    """
    raise only_in_kernel("tilus.mulhi")


def lookup(table: Any, index: Any, dtype: DType) -> Any:
    """Look up each element of an integer tile in a small constant table.

    Parameters
    ----------
    table : sequence of number
        Known at compile time.
    index : Scalar or Tile
        Integers from 0 up to the table's length.
    dtype : DType
        The dtype of the result.

    Returns
    -------
    Scalar or Tile
    """
    raise only_in_kernel("tilus.lookup")


__all__ = [
    "abs", "brev", "cast", "cdiv", "ceil", "clz", "cos", "ctz", "erf", "exp", "exp2", "floor", "isinf", "isnan", "log",
    "log2", "lookup", "maximum", "minimum", "mulhi", "next_power_of_2", "popcount", "rcp", "round", "rsqrt", "sin",
    "sqrt", "tanh", "trunc", "where",
]  # fmt: skip
