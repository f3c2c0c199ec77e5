"""Bit-compact arrays of codes: element ``i`` takes the bits from ``i * bits`` up, the lowest first."""

from __future__ import annotations

from math import gcd
from typing import Any

import numpy as np
import numpy.typing as npt

from tilus.errors import InvalidValue, TypeMismatch

from .codec import as_codes
from .lookup import dtype as find_dtype
from .scalar import DType

# Groups of elements that are worked on at once, so that the strided passes over them stay in the cache.
_BLOCK = 1 << 12


def pack(codes: npt.ArrayLike, dtype: DType | str) -> npt.NDArray[np.uint8]:
    """Pack codes bit-compactly along the last axis.

    Bit ``j`` of element ``i`` becomes bit ``i * bits + j`` of the row, and bit ``b`` of a row is bit
    ``b % 8`` of its byte ``b // 8``. So types of whole bytes are little-endian, and two 4-bit elements share
    a byte with the first in its lower half.

    Parameters
    ----------
    codes : array_like of int
        Codes of the type, with one axis at least.
    dtype : DType or str
        The type that the codes are of.

    Returns
    -------
    ndarray of uint8
        A new array of the same shape but for the last axis, which has ``dtype.packed_nbytes(n)`` bytes. The
        bits after the last element are zero.
    """
    source = find_dtype(dtype)
    checked = as_codes(codes, source)
    _require_axis(checked, "codes")
    count = checked.shape[-1]
    if not source.is_subbyte:
        return checked.astype(source.code_numpy.newbyteorder("<"), order="C").view(np.uint8)
    elements, nbytes = _group(source.bits)
    groups = -(-count // elements)
    rows = _padded(checked, groups * elements).reshape(-1, elements)
    packed = np.empty((rows.shape[0], nbytes), np.uint8)
    for start in range(0, rows.shape[0], _BLOCK):
        block, out = rows[start : start + _BLOCK], packed[start : start + _BLOCK]
        for byte in range(nbytes):
            out[:, byte] = _gather(block, byte * 8, 8, source.bits)
    shape = (*checked.shape[:-1], groups * nbytes)
    return packed.reshape(shape)[..., : source.packed_nbytes(count)]


def unpack(packed: npt.ArrayLike, dtype: DType | str, count: int) -> npt.NDArray[Any]:
    """Return the codes that `pack` packed.

    Parameters
    ----------
    packed : array_like of uint8
        Packed rows along the last axis, of ``dtype.packed_nbytes(count)`` bytes each.
    dtype : DType or str
        The type that the codes are of.
    count : int
        Elements in a row. Bits after the last one are ignored.

    Returns
    -------
    ndarray
        A new array of codes, in the smallest of uint8, uint16, uint32 and uint64 that holds them.
    """
    target = find_dtype(dtype)
    rows = np.asarray(packed)
    if rows.dtype != np.uint8:
        raise TypeMismatch(
            f"packed {target} must be an array of uint8, not of {rows.dtype}: use .view(numpy.uint8)"
        )
    _require_axis(rows, "packed bytes")
    expected = target.packed_nbytes(count)
    if count < 0 or rows.shape[-1] != expected:
        raise InvalidValue(
            f"{count} elements of {target} take {expected} bytes, but the last axis has {rows.shape[-1]}: "
            "check count, or slice the array"
        )
    if not target.is_subbyte:
        little = np.ascontiguousarray(rows).view(target.code_numpy.newbyteorder("<"))
        return little.astype(target.code_numpy)
    elements, nbytes = _group(target.bits)
    groups = -(-count // elements)
    grouped = _padded(rows, groups * nbytes).reshape(-1, nbytes)
    codes = np.empty((grouped.shape[0], elements), np.uint8)
    for start in range(0, grouped.shape[0], _BLOCK):
        block, out = grouped[start : start + _BLOCK], codes[start : start + _BLOCK]
        for element in range(elements):
            out[:, element] = _gather(block, element * target.bits, target.bits, 8)
    return codes.reshape(*rows.shape[:-1], groups * elements)[..., :count]


def _group(bits: int) -> tuple[int, int]:
    """The fewest elements of `bits` bits that fill whole bytes, and how many bytes these are."""
    return 8 // gcd(bits, 8), bits // gcd(bits, 8)


def _gather(
    columns: npt.NDArray[np.uint8], first: int, width: int, column_width: int
) -> npt.NDArray[np.uint8]:
    """Return bits ``[first, first + width)`` of each row, whose columns hold `column_width` bits each."""
    begin, end = first // column_width, (first + width - 1) // column_width
    shift = first - begin * column_width
    result = columns[:, begin] >> np.uint8(shift)
    for column in range(begin + 1, end + 1):
        shift = column * column_width - first
        # Bits beyond the eighth fall off.
        result |= columns[:, column] << np.uint8(shift)
    return result & np.uint8((1 << width) - 1) if width < 8 else result


def _padded(array: npt.NDArray[Any], length: int) -> npt.NDArray[Any]:
    """Return the array with zeros up to `length` along the last axis."""
    if array.shape[-1] == length:
        return np.ascontiguousarray(array)
    padded = np.zeros((*array.shape[:-1], length), array.dtype)
    padded[..., : array.shape[-1]] = array
    return padded


def _require_axis(array: npt.NDArray[Any], what: str) -> None:
    if array.ndim == 0:
        raise InvalidValue(f"{what} must have one axis at least, not be a single number: wrap it in a list")
