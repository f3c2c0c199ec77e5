"""Arithmetic of all dtypes in NumPy, rounded to the dtype after each operation: what the interpreter computes with.

An array of a dtype is held as NumPy's own type where it has one with the same bits, else as an array of codes
(`DType.code_numpy`). Integers wrap; floats are computed in float64 and rounded once, which for addition,
multiplication, division and square root is the correctly rounded result in every narrower format.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from tilus.dtypes import DType, boolean, decode, encode, pack, unpack
from tilus.layout import Digit, RegisterLayout

Array = npt.NDArray[Any]


def storage(dtype: DType) -> np.dtype[Any]:
    """Return the NumPy type in which an array of `dtype` is held."""
    return dtype.numpy or dtype.code_numpy


def to_values(array: Array, dtype: DType) -> Array:
    """Return the values of an array of `dtype`: float64, int64 or uint64, or bool; exact."""
    if dtype.numpy is None:
        return decode(array, dtype)
    if dtype.is_float:
        return array.astype(np.float64)
    if dtype.is_integer:
        return array.astype(np.int64 if dtype.is_signed else np.uint64)
    return array


def from_values(values: npt.ArrayLike, dtype: DType) -> Array:
    """Return values as an array of `dtype`: integers keep their low bits, floats are rounded once."""
    given = np.asarray(values)
    if dtype.is_integer and given.dtype.kind in "iub":
        if given.dtype.kind == "b":
            given = given.astype(np.uint8)
        if dtype.numpy is not None:
            return np.asarray(given.astype(dtype.numpy))
        return np.asarray(given.astype(np.int64) & dtype.code_mask, dtype.code_numpy)
    if dtype == boolean:
        return np.asarray(given != 0)
    return from_codes(encode(given, dtype), dtype)


def to_codes(array: Array, dtype: DType) -> Array:
    """Return the bit patterns of an array of `dtype`."""
    if dtype.numpy is None:
        return array
    return np.ascontiguousarray(array).view(dtype.code_numpy).reshape(array.shape)


def from_codes(codes: Array, dtype: DType) -> Array:
    """Return the array of `dtype` with these bit patterns."""
    if dtype.numpy is None:
        return codes
    if dtype == boolean:
        return np.asarray(codes != 0)
    return np.asarray(np.ascontiguousarray(codes).view(dtype.numpy).reshape(codes.shape))


def cast(array: Array, source: DType, target: DType) -> Array:
    """Return an array of `source` as one of `target`.

    Integers keep their low bits as integers; floats are truncated to integers, saturating, and NaN becomes 0. All
    else is rounded by `encode`, which saturates for types of at most 8 bits.
    """
    if source == target:
        return array
    values = to_values(array, source)
    if target.is_integer and values.dtype.kind == "f":
        return from_codes(encode(np.trunc(values), target), target)
    return from_values(values, target)


def cast_at_random(array: Array, source: DType, target: DType, random: Array) -> Array:
    """Return floats rounded to the next number of `target` with the probability of their distance from the one before.

    Up for integers, away from zero for floats; beyond the ends they saturate. Each has 32 random bits.
    """
    values = to_values(array, source)
    chance = random.astype(np.float64) / 2.0**32
    if target.is_integer:
        # Of the random bits as many count as a float32 holds.
        chance = np.floor(chance * 2.0**24) / 2.0**24
        finite = np.nan_to_num(values, nan=0.0, posinf=float(target.max), neginf=float(target.min))
        below = np.floor(finite)
        return from_codes(encode(below + (chance < finite - below), target), target)
    numbers = decode(np.arange(target.max_code + 1), target).astype(np.float64)
    size = np.minimum(np.abs(values), numbers[-1])
    code = np.clip(np.searchsorted(numbers, np.nan_to_num(size), side="right") - 1, 0, target.max_code)
    above = np.minimum(code + 1, target.max_code)
    gap = np.where(above > code, numbers[above] - numbers[code], 1.0)
    code = np.where(chance < (size - numbers[code]) / gap, above, code)
    signed = code | np.signbit(values).astype(np.int64) << (target.exponent_bits + target.mantissa_bits)
    nan = target.nan_code if target.has_nan else target.max_code
    return from_codes(np.where(np.isnan(values), nan, signed).astype(target.code_numpy), target)


def _bits(codes: Array) -> Array:
    """Return the 64 bits of each code along a new last axis, the lowest first."""
    words = np.ascontiguousarray(codes.astype("<u8")).reshape(codes.shape + (1,))
    return np.unpackbits(words.view(np.uint8), axis=-1, bitorder="little")


def _popcount(bits: Array, width: int) -> Array:
    return np.asarray(bits.sum(-1, dtype=np.int64))


def _leading_zeros(bits: Array, width: int) -> Array:
    found = bits[..., :width][..., ::-1]
    return np.where(found.any(-1), found.argmax(-1), width)


def _trailing_zeros(bits: Array, width: int) -> Array:
    found = bits[..., :width]
    return np.where(found.any(-1), found.argmax(-1), width)


_COUNTS: dict[str, Callable[[Array, int], Array]] = {
    "popcount": _popcount,
    "clz": _leading_zeros,
    "ctz": _trailing_zeros,
}

_erf: Any = np.vectorize(math.erf, otypes=[np.float64])

_FUNCTIONS: dict[str, Any] = {
    "neg": np.negative, "abs": np.abs, "exp": np.exp, "exp2": np.exp2, "log": np.log, "log2": np.log2,
    "sin": np.sin, "cos": np.cos, "tanh": np.tanh, "sqrt": np.sqrt, "rsqrt": lambda x: 1.0 / np.sqrt(x),
    "rcp": lambda x: 1.0 / x, "erf": _erf, "floor": np.floor, "ceil": np.ceil, "round": np.rint, "trunc": np.trunc,
    "isnan": np.isnan, "isinf": np.isinf, "fast_exp": np.exp, "fast_exp2": np.exp2, "fast_rcp": lambda x: 1.0 / x,
}  # fmt: skip


def unary(kind: str, array: Array, dtype: DType) -> Array:
    """Return a function of each element, in the dtype that `Unary` gives."""
    if kind in _COUNTS:
        return _COUNTS[kind](_bits(to_codes(array, dtype)), dtype.bits).astype(np.int32)
    if kind == "brev":
        turned = _bits(to_codes(array, dtype))[..., : dtype.bits][..., ::-1].astype(np.uint64)
        weights = np.uint64(1) << np.arange(dtype.bits, dtype=np.uint64)
        return from_codes((turned * weights).sum(-1, dtype=np.uint64).astype(dtype.code_numpy), dtype)
    values = to_values(array, dtype)
    if kind == "not":
        return from_values(np.logical_not(values) if dtype == boolean else np.invert(values), dtype)
    made = np.asarray(_FUNCTIONS[kind](values))
    return made if kind in ("isnan", "isinf") else from_values(made, dtype)


def _divide(function: Any, a: Array, b: Array) -> Array:
    """Integer division or remainder; by zero it gives 0, for the device's result is unspecified."""
    safe = np.where(b == 0, np.ones_like(b), b)
    return np.where(b == 0, np.zeros_like(a), function(a, safe))


def _shift(kind: str, a: Array, b: Array, dtype: DType) -> Array:
    # A negative amount is a large one, as the device reads it as unsigned.
    far = (b < 0) | (b >= dtype.bits)
    amount = np.where(far, np.zeros_like(b), b)
    if kind == "shl":
        return np.where(far, np.zeros_like(a), np.left_shift(a, amount))
    sign = np.where(a < 0, np.full_like(a, -1), np.zeros_like(a)) if dtype.is_signed else np.zeros_like(a)
    return np.where(far, sign, np.right_shift(a, amount))


def _high_product(a: Array, b: Array, dtype: DType) -> Array:
    exact = np.asarray((a.astype(object) * b.astype(object)) >> dtype.bits)
    return exact.astype(np.int64 if dtype.is_signed else np.uint64)


def _minimum(a: Array, b: Array) -> Array:
    """The smaller value; -0 is smaller than 0, as IEEE 754-2019's minimum and PTX's min have it."""
    return np.where(a == b, np.where(np.signbit(a), a, b), np.minimum(a, b))


def _maximum(a: Array, b: Array) -> Array:
    return np.where(a == b, np.where(np.signbit(a), b, a), np.maximum(a, b))


_FLOAT_EXTREMES: dict[str, Any] = {"min": _minimum, "max": _maximum}

_BINARY: dict[str, Any] = {
    "add": np.add, "sub": np.subtract, "mul": np.multiply, "min": np.minimum, "max": np.maximum,
    "pow": np.power, "div": np.divide, "and": np.bitwise_and, "or": np.bitwise_or, "xor": np.bitwise_xor,
}  # fmt: skip


def binary(kind: str, a: Array, b: Array, dtype: DType) -> Array:
    """Return a function of two arrays of `dtype`. A NaN makes the minimum and the maximum NaN."""
    x, y = to_values(a, dtype), to_values(b, dtype)
    if dtype.is_integer:
        if kind == "floordiv":
            return from_values(_divide(np.floor_divide, x, y), dtype)
        if kind == "mod":
            return from_values(_divide(np.mod, x, y), dtype)
        if kind in ("shl", "shr"):
            return from_values(_shift(kind, x, y, dtype), dtype)
        if kind == "mulhi":
            return from_values(_high_product(x, y, dtype), dtype)
        if kind == "pow":
            return from_values(_integer_power(x, y, dtype), dtype)
    if dtype.is_float and kind in _FLOAT_EXTREMES:
        return from_values(_FLOAT_EXTREMES[kind](x, y), dtype)
    function = np.mod if kind == "mod" else _BINARY[kind]
    return from_values(function(x, y), dtype)


def _integer_power(a: Array, b: Array, dtype: DType) -> Array:
    """Powers that wrap; a negative exponent truncates 1 / a**-b towards zero."""

    def power(base: int, exponent: int) -> int:
        if exponent >= 0:
            return pow(base, exponent, 1 << 64)
        return 1 if base == 1 else (-1) ** (exponent & 1) % (1 << 64) if base == -1 else 0

    made: Any = np.vectorize(power, otypes=[np.uint64])
    return np.asarray(made(a.astype(object), b.astype(object)))


_COMPARE: dict[str, Any] = {
    "eq": np.equal, "ne": np.not_equal, "lt": np.less, "le": np.less_equal, "gt": np.greater, "ge": np.greater_equal,
}  # fmt: skip


def compare(kind: str, a: Array, b: Array, dtype: DType) -> Array:
    """Return a comparison of two arrays of `dtype`."""
    return np.asarray(_COMPARE[kind](to_values(a, dtype), to_values(b, dtype)))


_REDUCE: dict[str, Any] = {
    "sum": np.sum, "prod": np.prod, "max": np.max, "min": np.min, "any": np.any, "all": np.all,
    "and": np.bitwise_and.reduce, "or": np.bitwise_or.reduce, "xor": np.bitwise_xor.reduce, "argmax": np.argmax,
    "argmin": np.argmin,
}  # fmt: skip


def reduce(kind: str, array: Array, axis: int, dtype: DType) -> Array:
    """Return a reduction that keeps its axis, with size 1. A sum is rounded once, at its end."""
    values = to_values(array, dtype)
    if dtype.is_float and kind in _FLOAT_EXTREMES:
        made = values.take([0], axis=axis)
        for place in range(1, values.shape[axis]):
            made = _FLOAT_EXTREMES[kind](made, values.take([place], axis=axis))
        return from_values(made, dtype)
    made = np.expand_dims(_REDUCE[kind](values, axis=axis), axis)
    return made.astype(np.int32) if kind in ("argmax", "argmin") else from_values(made, dtype)


_ACCUMULATE: dict[str, Any] = {
    "sum": np.add, "prod": np.multiply, "max": np.maximum, "min": np.minimum, "and": np.bitwise_and,
    "or": np.bitwise_or, "xor": np.bitwise_xor,
}  # fmt: skip


def scan(kind: str, array: Array, axis: int, exclusive: bool, dtype: DType) -> Array:
    """Return a running reduction, each element rounded once. An exclusive one starts with the neutral element."""
    values = to_values(array, dtype)
    made = np.asarray(_ACCUMULATE[kind].accumulate(values, axis=axis))
    if exclusive:
        first = np.full_like(made.take([0], axis=axis), neutral(kind, dtype))
        made = np.concatenate([first, made.take(range(made.shape[axis] - 1), axis=axis)], axis=axis)
    return from_values(made, dtype)


def neutral(kind: str, dtype: DType) -> int | float:
    """Return the value that changes nothing when it is combined with another."""
    if kind == "prod":
        return 1
    if kind == "and":
        return -1 if dtype.is_signed else dtype.code_mask
    if kind in ("max", "min"):
        if dtype.is_float and dtype.has_inf:
            return -math.inf if kind == "max" else math.inf
        return dtype.min if kind == "max" else dtype.max
    return 0


def dot(a: Array, b: Array, c: Array, dtypes: tuple[DType, DType, DType]) -> Array:
    """Return a @ b + c: summed in float64, or int64, and rounded once to the accumulator's dtype."""
    x, y, z = (to_values(v, d) for v, d in zip((a, b, c), dtypes, strict=True))
    if z.dtype.kind != "f":
        x, y, z = x.astype(np.int64), y.astype(np.int64), z.astype(np.int64)
    return from_values(x @ y + z, dtypes[2])


def philox(seed: int, counter: Array) -> tuple[Array, Array, Array, Array]:
    """Return four arrays of uint32 by Philox 4x32-10, for a 64-bit seed as key and counters of at most 64 bits.

    Source: Salmon et al., Parallel random numbers: as easy as 1, 2, 3 (SC 2011), section 3.3.
    """
    low = np.uint64(0xFFFFFFFF)
    half = np.uint64(32)
    wide = counter.astype(np.uint64)
    c0, c1 = wide & low, wide >> half
    c2, c3 = np.zeros_like(wide), np.zeros_like(wide)
    k0, k1 = seed & 0xFFFFFFFF, (seed >> 32) & 0xFFFFFFFF
    for _ in range(10):
        first, second = c0 * np.uint64(0xD2511F53), c2 * np.uint64(0xCD9E8D57)
        c0, c1, c2, c3 = (
            (second >> half) ^ c1 ^ np.uint64(k0),
            second & low,
            (first >> half) ^ c3 ^ np.uint64(k1),
            first & low,
        )
        k0, k1 = (k0 + 0x9E3779B9) & 0xFFFFFFFF, (k1 + 0xBB67AE85) & 0xFFFFFFFF
    words = tuple(c.astype(np.uint32) for c in (c0, c1, c2, c3))
    return words[0], words[1], words[2], words[3]


def _digit_offsets(digits: tuple[Digit, ...], strides: list[int]) -> Array:
    """Return, for each number over the digits, the offset in a row-major tile."""
    offsets = np.zeros(1, np.int64)
    for digit in digits:
        step = 0 if digit.dim is None else digit.stride * strides[digit.dim]
        offsets = (offsets[:, None] + np.arange(digit.size) * step).reshape(-1)
    return offsets


def layout_offsets(layout: RegisterLayout) -> Array:
    """Return the row-major offset in the tile of each thread's elements, as [threads, elements]."""
    strides = [math.prod(layout.shape[dim + 1 :]) for dim in range(layout.rank)]
    threads = _digit_offsets(layout.spatial_digits, strides)
    return threads[:, None] + _digit_offsets(layout.local_digits, strides)


def reinterpret(
    array: Array, source: DType, layout: RegisterLayout, target: DType, new_layout: RegisterLayout
) -> Array | None:
    """Return the tile that each thread's bits are in another dtype and layout; None where copies would differ.

    A thread's bits are the little-endian concatenation of its elements in the order of the layout.
    """
    local = to_codes(array, source).reshape(-1)[layout_offsets(layout)]
    codes = unpack(pack(local, source), target, new_layout.elements)
    offsets = layout_offsets(new_layout)
    made = np.zeros(new_layout.size, target.code_numpy)
    made[offsets] = codes
    if not np.array_equal(made[offsets], codes):
        return None
    return from_codes(made.reshape(new_layout.shape), target)
