"""How weights lie in memory: in the order in which the threads of a tensor-core multiplication hold them.

A weight of k x n codes of `bits` bits is cut into units of 128 x 32. In a unit each of 32 threads holds 128
codes, which are `16 * bits` bytes, whatever the width: `bits` loads of 16 bytes. The units lie one after the other
as bytes, so that a kernel moves them without knowing the type, and only `view` gives them their meaning.

The layout of a unit is derived, not chosen: it is the second operand's layout of the tensor-core instruction,
repeated, and its bytes are the little-endian concatenation of each thread's codes.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np

from tilus.codegen.casts import stored_arrangement
from tilus.dtypes import DType, pack, unpack
from tilus.layout import Digit, RegisterLayout, column_spatial, local, spatial

UNIT_K, UNIT_N = 128, 32
THREADS = 32
# The second operand of m16n8k16 for 16-bit types (PTX ISA, mma.m16n8k16), repeated over a unit: the steps along k
# outermost, so that the codes of one step lie together.
ATOM = local(2, 1) * column_spatial(4, 8) * local(2, 1)
UNIT = local(UNIT_K // 16, UNIT_N // 8) * ATOM
CODES = UNIT.elements


def code_layout(k: int, n: int, warps: int, copies: int = 1) -> RegisterLayout:
    """Return the layout of a k x n tile of codes over `warps` warps side by side along n, `copies` times."""
    units = local(k // UNIT_K, n // UNIT_N // warps)
    outer = RegisterLayout((1, warps), (Digit(copies, None, 0), Digit(warps, 1, 1)), ())
    return outer * units * UNIT


def byte_layout(k: int, n: int, bits: int, warps: int, copies: int = 1) -> RegisterLayout:
    """Return the layout of the same tile as bytes, of shape (k // 128, n // 32, 512 * bits)."""
    units = local(k // UNIT_K, n // UNIT_N // warps, 1)
    outer = RegisterLayout((1, warps, 1), (Digit(copies, None, 0), Digit(warps, 1, 1)), ())
    return outer * units * local(1, 1, bits) * spatial(1, 1, THREADS) * local(1, 1, 16)


def unit_bytes(bits: int) -> int:
    """Return the bytes of a unit."""
    return UNIT_K * UNIT_N * bits // 8


def padded(k: int, n: int) -> tuple[int, int]:
    """Return the extents of a weight in whole units."""
    return -(-k // UNIT_K) * UNIT_K, -(-n // UNIT_N) * UNIT_N


@lru_cache(maxsize=1)
def _unit_indices() -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """Row and column of each (thread, element) of a unit."""
    index = np.array([[UNIT.index(t, e) for e in range(CODES)] for t in range(THREADS)])
    return index[..., 0], index[..., 1]


def pack_weight(codes: np.ndarray[Any, Any], dtype: DType, dest: DType | None = None) -> np.ndarray[Any, Any]:
    """Lay out weights as the kernels read them.

    Parameters
    ----------
    codes : ndarray of unsigned integers, shape (k, n)
        Codes of `dtype`; k and n are filled up to whole units with the code 0.
    dtype : DType
        Of 1 to 8 bits.
    dest : DType, optional
        What the kernel casts codes to, whose cast decides the order of bits within each thread's codes; natural
        order unless given.

    Returns
    -------
    ndarray of uint8, shape (k // 128, n // 32, 512 * bits)
        With k and n rounded up.
    """
    k, n = codes.shape
    kp, np_ = padded(k, n)
    full = np.zeros((kp, np_), np.uint8)
    full[:k, :n] = codes
    rows, columns = _unit_indices()
    units = full.reshape(kp // UNIT_K, UNIT_K, np_ // UNIT_N, UNIT_N).transpose(0, 2, 1, 3)
    held = units[:, :, rows, columns]
    bytes_ = pack(held, dtype)  # [..., thread, 16 * bits]
    arrangement = None if dest is None else stored_arrangement(dtype, dest)
    if arrangement is not None:
        bytes_ = arrangement.store(bytes_.view("<u4")).view(np.uint8)
    chunks = bytes_.reshape(*bytes_.shape[:-1], dtype.bits, 16)
    return np.ascontiguousarray(chunks.transpose(0, 1, 3, 2, 4)).reshape(
        kp // UNIT_K, np_ // UNIT_N, unit_bytes(dtype.bits)
    )


def unpack_weight(
    packed: np.ndarray[Any, Any], dtype: DType, k: int, n: int, dest: DType | None = None
) -> np.ndarray[Any, Any]:
    """Return the codes of a packed weight: the inverse of `pack_weight`."""
    rows_of_units, columns_of_units, _ = packed.shape
    chunks = packed.reshape(rows_of_units, columns_of_units, dtype.bits, THREADS, 16).transpose(0, 1, 3, 2, 4)
    bytes_ = np.ascontiguousarray(chunks).reshape(rows_of_units, columns_of_units, THREADS, -1)
    arrangement = None if dest is None else stored_arrangement(dtype, dest)
    if arrangement is not None:
        bytes_ = arrangement.load(bytes_.view("<u4")).view(np.uint8)
    held = unpack(bytes_, dtype, CODES)
    units = np.zeros((rows_of_units, columns_of_units, UNIT_K, UNIT_N), np.uint8)
    rows, columns = _unit_indices()
    units[:, :, rows, columns] = held
    full = units.transpose(0, 2, 1, 3).reshape(rows_of_units * UNIT_K, columns_of_units * UNIT_N)
    return full[:k, :n]
