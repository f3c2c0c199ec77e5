"""From values to codes and back, in NumPy: the definition that every cast on the device is tested against.

Values are rounded once, from what they are: float64 inputs are not first rounded to float32, and 64-bit
integers are not first rounded to float64.
"""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction
from functools import cache, lru_cache
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt

from tilus.errors import InvalidValue, TypeMismatch

from .lookup import dtype as find_dtype
from .scalar import DType
from .table import TableType

# Elements that are worked on at once, so that the intermediate arrays stay in the processor's cache.
_BLOCK = 1 << 15

_Array = npt.NDArray[Any]


def encode(
    values: npt.ArrayLike,
    dtype: DType | str,
    *,
    saturate: bool | None = None,
    random: npt.ArrayLike | None = None,
) -> _Array:
    """Round values to a type and return their codes.

    Rounding is to nearest, ties to the even code, or stochastic where `random` is given.

    - **Integers**: values beyond the range become its ends, infinities too, and NaN becomes 0.
    - **boolean**: 1 for whatever is not zero (NaN too), else 0.
    - **Floats** keep the sign of zero. With `saturate`, values that round beyond the largest finite value
      become that, and so do infinities; without, they become infinity, or NaN in a type that has only that.
      NaN becomes the type's `nan_code`, or the largest positive value in a type without NaN (as PTX's ``cvt``
      has it).
    - **float8_e8m0** has no zero and no sign: with `saturate`, zero and what rounds below ``2**-127`` become
      ``2**-127``, and what rounds beyond ``2**127`` becomes that; without, these become NaN. Negative values
      become NaN.
    - **Table types**: the nearest entry, and the smallest code where entries are equal or equally near. NaN
      becomes the code of the entry nearest to zero.

    Parameters
    ----------
    values : array_like
        Booleans, integers, or floats of at most 64 bits (the types of ml_dtypes too).
    dtype : DType or str
        The type to encode to.
    saturate : bool, optional
        What floats do with values that are too large. By default, types of at most 8 bits saturate and wider
        ones follow IEEE 754. Types that have neither infinity nor NaN, integers and table types always
        saturate.
    random : array_like, optional
        Numbers in [0, 1) that broadcast to the shape of `values`. A value that lies a fraction ``f`` of the
        way from one representable value to the next is rounded away from zero (floats) or up (integers) if
        its number is less than ``f``, so that the mean of the results is the value.

    Returns
    -------
    ndarray
        Codes of the same shape, in the smallest of uint8, uint16, uint32 and uint64 that holds them.
    """
    target = find_dtype(dtype)
    source = _as_numbers(values)
    if saturate is None:
        saturate = target.bits <= 8 or not target.is_float
    elif not saturate and not target.has_nan:
        raise InvalidValue(
            f"{target} has neither infinity nor NaN and always saturates: leave out saturate=False"
        )
    round_block = _encoder(target, saturate)
    flat = np.ascontiguousarray(source).reshape(-1)
    codes = np.empty(flat.size, target.code_numpy)
    numbers = None if random is None else _as_random(random, source.shape, target)
    for start in range(0, flat.size, _BLOCK):
        part = slice(start, start + _BLOCK)
        codes[part] = round_block(flat[part], None if numbers is None else numbers[part])
    return codes.reshape(source.shape)


def decode(codes: npt.ArrayLike, dtype: DType | str, *, float32: bool = False) -> _Array:
    """Return the values of codes.

    The low 13 bits of a tfloat32 code are ignored, and a boolean is true if any of its bits is set.

    Parameters
    ----------
    codes : array_like of int
        Codes of the type, in any integer type.
    dtype : DType or str
        The type that the codes are of.
    float32 : bool
        Return float32 in place of the types below. Each value of a type of at most 16 bits is exact in it.

    Returns
    -------
    ndarray
        float64 for floats, scales and table types, int64 or uint64 for integers, bool for the boolean; always
        exact.
    """
    source = find_dtype(dtype)
    checked = as_codes(codes, source)
    if source.bits <= 8:
        values = _value_table(source)[checked]
    elif source.is_integer:
        signed = checked.view(f"int{source.bits}") if source.is_signed else checked
        values = signed.astype(np.int64 if source.is_signed else np.uint64)
    elif source.numpy is not None:
        with np.errstate(invalid="ignore"):
            values = checked.view(source.numpy).astype(np.float64)
    else:
        # bfloat16 is the upper half of a float32, tfloat32 a float32 with a shorter mantissa.
        shift = 32 - source.bits
        wide = (checked.astype(np.uint32) << shift) & np.uint32(0xFFFFFFFF << source.unused_bits & 0xFFFFFFFF)
        with np.errstate(invalid="ignore"):
            values = wide.view(np.float32).astype(np.float64)
    with np.errstate(over="ignore", invalid="ignore"):
        return values.astype(np.float32) if float32 else values


def as_codes(codes: npt.ArrayLike, dtype: DType) -> _Array:
    """Check that an array holds codes of a type and return it in the type's `code_numpy`."""
    array = np.asarray(codes)
    if array.dtype.kind not in "iub" and array.size:
        raise TypeMismatch(f"codes of {dtype} must be integers, not {array.dtype}: encode the values first")
    if array.dtype != dtype.code_numpy and array.size:
        if array.dtype.kind == "i" and array.min() < 0:
            raise InvalidValue(
                f"codes of {dtype} are bit patterns and not negative, but one is {array.min()}: encode values"
            )
        if array.max() > dtype.code_mask:
            raise InvalidValue(
                f"codes of {dtype} have {dtype.bits} bits, but one is {array.max()}: encode the values first"
            )
        return array.astype(dtype.code_numpy)
    if dtype.is_subbyte and array.size and array.max() > dtype.code_mask:
        raise InvalidValue(
            f"codes of {dtype} have {dtype.bits} bits, but one is {array.max()}: encode the values first"
        )
    return array.astype(dtype.code_numpy, copy=False)


def _as_numbers(values: npt.ArrayLike) -> _Array:
    """Return an array of bool, int64, uint64 or float64 or of narrower types of the same kinds."""
    array = np.asarray(values)
    if array.dtype.kind in "iub" or (array.dtype.kind == "f" and array.dtype.itemsize <= 8):
        return array
    if array.dtype.type.__module__.partition(".")[0] == "ml_dtypes":
        return array.astype(np.float64)
    if array.size == 0:
        return array.astype(np.float64)
    raise TypeMismatch(
        f"values to encode must be booleans, integers or floats of at most 64 bits, not {array.dtype}"
    )


def _as_random(random: npt.ArrayLike, shape: tuple[int, ...], target: DType) -> _Array:
    if target.is_table or target.is_boolean or target.name == "float64":
        raise InvalidValue(
            f"stochastic rounding is for integers and for floats below float64, not for {target}: "
            "leave out random="
        )
    numbers = np.asarray(random, np.float64)
    if numbers.size and not (numbers.min() >= 0 and numbers.max() < 1):
        raise InvalidValue("random= must hold numbers in [0, 1), as numpy.random.Generator.random makes them")
    return np.broadcast_to(numbers, shape).reshape(-1)


def _encoder(target: DType, saturate: bool) -> Callable[[_Array, _Array | None], _Array]:
    """Return the function from a block of values and random numbers to codes."""
    if isinstance(target, TableType):
        entries, limits, at_nan = _nearest_table(target)

        def nearest(values: _Array, random: _Array | None) -> _Array:
            wide = _to_float64(values)
            indices = np.searchsorted(limits, wide, side="left")
            return np.where(np.isnan(wide), at_nan, entries[indices])

        return nearest
    if target.is_boolean:
        return lambda values, random: values != 0
    if target.is_integer:
        return lambda values, random: _integer_codes(values, target, random)
    if target.kind == "scale":
        return lambda values, random: _scale_codes(_to_float64(values), target, saturate, random)
    if target.numpy is not None:
        return lambda values, random: (
            _numpy_float_codes(values, target, saturate)
            if random is None
            else _float_codes(_to_float64(values), target, saturate, random)
        )
    return lambda values, random: _float_codes(_to_float64(values), target, saturate, random)


def _to_float64(values: _Array) -> _Array:
    """Convert to float64 so that one more rounding to a narrower float gives what a single one would."""
    if values.dtype.kind not in "iu" or values.dtype.itemsize < 8:
        return values.astype(np.float64)
    # Round to odd: 53 bits whose last one tells whether anything was cut off.
    negative = values < 0
    magnitude = values.astype(np.uint64)
    magnitude[negative] = ~magnitude[negative] + np.uint64(1)
    odd = (magnitude >> np.uint64(11)) | ((magnitude & np.uint64(0x7FF)) != 0)
    exact = magnitude < np.uint64(1 << 53)
    wide = np.where(exact, magnitude.astype(np.float64), odd.astype(np.float64) * 2048.0)
    return np.where(negative, -wide, wide)


def _integer_codes(values: _Array, target: DType, random: _Array | None) -> _Array:
    low, high = int(target.min), int(target.max)
    if values.dtype.kind == "b":
        values = values.astype(np.uint8)
    if values.dtype.kind in "iu":
        # Python integers as bounds, clipped to what the input's own type can hold.
        own = np.iinfo(values.dtype)
        clipped = np.clip(values, max(low, int(own.min)), min(high, int(own.max)))
        return _masked(clipped, target)
    wide = values.astype(np.float64)
    if random is None:
        rounded = np.rint(wide)
    else:
        with np.errstate(invalid="ignore"):
            below = np.floor(wide)
            rounded = below + (random < wide - below)
    # 2.0**63 and 2.0**64 are no values of int64 and uint64, so the upper end is set after the conversion.
    above = rounded >= float(high + 1)
    inside = np.where(above | np.isnan(rounded), 0.0, np.maximum(rounded, float(low)))
    codes = inside.astype(np.int64 if target.is_signed else np.uint64)
    codes[above] = high
    return _masked(codes, target)


def _masked(integers: _Array, target: DType) -> _Array:
    """Return the low bits of integers in two's complement."""
    codes: _Array = integers.astype(target.code_numpy)
    codes &= target.code_numpy.type(target.code_mask)
    return codes


def _numpy_float_codes(values: _Array, target: DType, saturate: bool) -> _Array:
    """Encode to a float that NumPy has, which rounds to nearest even from each of its own types."""
    assert target.numpy is not None
    wide = _to_float64(values) if target.bits < 64 else values
    with np.errstate(over="ignore", invalid="ignore"):
        if saturate:
            wide = np.clip(wide.astype(np.float64), target.min, target.max)
        rounded = wide.astype(target.numpy)
    codes = rounded.view(target.code_numpy)
    return np.where(np.isnan(rounded), target.code_numpy.type(target.nan_code), codes)


def _float_codes(values: _Array, target: DType, saturate: bool, random: _Array | None) -> _Array:
    """Encode float64 values to a float with fields."""
    magnitude = np.abs(values)
    finite = np.isfinite(values)
    codes = _round_magnitude(np.where(finite, magnitude, 0.0), target, random, 1 - target.bias)
    # In the places of a code without the unused bits.
    top = target.max_code >> target.unused_bits
    overflow = (codes > top) | (magnitude == np.inf)
    if saturate:
        beyond = top
    else:
        beyond = (target.inf_code if target.has_inf else target.nan_code) >> target.unused_bits
    codes = np.where(overflow, beyond, codes) << target.unused_bits
    codes = np.where(np.signbit(values), codes | target.sign_code, codes)
    return np.where(np.isnan(values), target.nan_code if target.has_nan else target.max_code, codes)


def _scale_codes(values: _Array, target: DType, saturate: bool, random: _Array | None) -> _Array:
    """Encode float64 values to a power of two."""
    positive = np.isfinite(values) & (values > 0)
    codes = _round_magnitude(np.where(positive, values, 1.0), target, random, None)
    codes = np.where(values == 0, -1, np.where(values == np.inf, target.max_code + 1, codes))
    if saturate:
        codes = np.clip(codes, 0, target.max_code)
    outside = (codes < 0) | (codes > target.max_code) | (values < 0) | np.isnan(values)
    return np.where(outside, target.nan_code, codes)


def _round_magnitude(
    magnitude: _Array, target: DType, random: _Array | None, smallest_exponent: int | None
) -> _Array:
    """Round finite values that are not negative to codes of exponent and mantissa, which may overflow.

    Below ``2**smallest_exponent`` the spacing stays the same, which makes the subnormals.
    """
    # int32 is what ldexp takes on every platform.
    exponent = np.frexp(magnitude)[1].astype(np.int32) - np.int32(1)
    if smallest_exponent is not None:
        smallest = np.int32(smallest_exponent)
        exponent = np.where(magnitude == 0, smallest, np.maximum(exponent, smallest))
    # Each step is exact: a power of two, a whole part, and what is left.
    scaled = np.ldexp(magnitude, np.int32(target.mantissa_bits) - exponent)
    whole = np.floor(scaled)
    left = scaled - whole
    # `whole` holds the implicit one of a normal value, which adds itself to the exponent field.
    codes = ((exponent.astype(np.int64) + (target.bias - 1)) << target.mantissa_bits) + whole.astype(np.int64)
    up = (left > 0.5) | ((left == 0.5) & (codes & 1 == 1)) if random is None else random < left
    rounded: _Array = codes + up
    return rounded


@cache
def _value_table(source: DType) -> _Array:
    """The values of all codes of a type of at most 8 bits, for codes in any uint8."""
    codes = np.arange(256)
    if isinstance(source, TableType):
        table: _Array = np.array(source.values, np.float64)[codes & source.code_mask]
    elif source.is_boolean:
        table = codes != 0
    elif source.is_integer:
        signed = codes & source.code_mask
        if source.is_signed:
            table = np.where(signed > source.max, signed - (1 << source.bits), signed).astype(np.int64)
        else:
            table = signed.astype(np.uint64)
    else:
        table = np.array([_float_value(int(code) & source.code_mask, source) for code in codes], np.float64)
    table.setflags(write=False)
    return table


def _float_value(code: int, source: DType) -> float:
    """The value of one code of a float or scale of at most 8 bits."""
    negative = source.kind == "float" and bool(code & source.sign_code)
    magnitude = code & (source.sign_code - 1) if source.kind == "float" else code
    if magnitude <= source.max_code:
        value = source.magnitude(magnitude)
    else:
        value = np.inf if source.has_inf and magnitude == source.inf_code else np.nan
    return -value if negative else value


@lru_cache(maxsize=64)
def _nearest_table(target: TableType) -> tuple[_Array, _Array, int]:
    """Return the codes of the distinct values in ascending order, the last float64 of each, NaN's code."""
    first: dict[float, int] = {}
    for code, value in enumerate(target.values):
        first.setdefault(value, code)
    ordered = sorted(first)
    limits = []
    for lower, upper in pairwise(ordered):
        middle = (Fraction(lower) + Fraction(upper)) / 2
        limit = float(middle)
        to_lower = first[lower] < first[upper]
        # float(middle) is rounded: step down to the last number that belongs to the lower value.
        while Fraction(limit) > middle or (Fraction(limit) == middle and not to_lower):
            limit = float(np.nextafter(limit, -np.inf))
        limits.append(limit)
    entries = np.array([first[value] for value in ordered], np.uint8)
    at_nan = min(range(len(target.values)), key=lambda code: (abs(target.values[code]), code))
    return entries, np.array(limits, np.float64), at_nan
