"""How weights lie in memory: in the order in which the threads of a tensor-core multiplication hold them.

A weight of k x n codes of `bits` bits is cut into units of 128 x 32. In a unit each of 32 threads holds 128
codes, which are `16 * bits` bytes, whatever the width: `bits` loads of 16 bytes. The units lie one after the other
as bytes, so that a kernel moves them without knowing the type, and only `view` gives them their meaning.

The layout of a unit is derived, not chosen: it is the second operand's layout of the tensor-core instruction for the
activations, repeated, and its bytes are the little-endian concatenation of each thread's codes. Transposed it is also
the first operand's layout: its 16 rows are two neighbouring tiles of 8 columns.
"""

from __future__ import annotations

import hashlib
from functools import lru_cache
from typing import Any

import numpy as np

from tilus.codegen.atoms.mma import BY_NAME
from tilus.codegen.casts import stored_arrangement
from tilus.dtypes import DType, pack, unpack
from tilus.layout import Digit, RegisterLayout, local, spatial

UNIT_K, UNIT_N = 128, 32
THREADS = 32
# A unit's bytes as rows of a tensor map's longest box, so that one box brings several units along n.
ROW = 256
# The instruction for operands of so many bits.
ATOMS = {16: BY_NAME["m16n8k16.f16.f16.f32"], 8: BY_NAME["m16n8k32.s8.s8.s32"]}
ATOM = ATOMS[16].b


def unit(operand_bits: int = 16) -> RegisterLayout:
    """Return the layout of a unit: the steps along k outermost, so that the codes of one step lie together."""
    atom = ATOMS[operand_bits]
    _, n, k = atom.shape
    return local(UNIT_K // k, UNIT_N // n) * atom.b


UNIT = unit()
CODES = UNIT.elements


def code_layout(k: int, n: int, warps: int, copies: int = 1, operand_bits: int = 16) -> RegisterLayout:
    """Return the layout of a k x n tile of codes over `warps` warps side by side along n, `copies` times."""
    units = local(k // UNIT_K, n // UNIT_N // warps)
    outer = RegisterLayout((1, warps), (Digit(copies, None, 0), Digit(warps, 1, 1)), ())
    return outer * units * unit(operand_bits)


def byte_layout(k: int, n: int, bits: int, warps: int, copies: int = 1, deep: int = 1) -> RegisterLayout:
    """Return the layout of the same tile as bytes, of shape (deep * k // 128, n // deep // 32, 512 * bits).

    With `deep` the first 1 / deep of the tile's columns, and of its warps, hold the first k rows of a part of the
    weight, the next ones the next k rows of the same columns, and so on.
    """
    across = warps // deep
    units = local(k // UNIT_K, n // UNIT_N // warps, 1)
    outer = RegisterLayout(
        (deep, across, 1), (Digit(copies, None, 0), Digit(deep, 0, 1), Digit(across, 1, 1)), ()
    )
    return outer * units * local(1, 1, bits) * spatial(1, 1, THREADS) * local(1, 1, 16)


def box_layout(k: int, n: int, bits: int, warps: int, deep: int = 1) -> RegisterLayout:
    """Return `byte_layout` of bytes of shape (deep * k // 128, rows of ROW bytes, ROW)."""
    across = warps // deep
    units = local(k // UNIT_K, n // UNIT_N // warps, 1)
    outer = RegisterLayout((deep, across, 1), (Digit(deep, 0, 1), Digit(across, 1, 1)), ())
    above = THREADS * 16 // ROW
    return outer * units * local(1, bits, 1) * spatial(1, above, THREADS // above) * local(1, 1, 16)


def row_layout(rows: int, k: int, warps: int, deep: int, operand_bits: int, turned: bool) -> RegisterLayout:
    """Return the layout in which warps hold activations of rows x (deep * k) as the instruction wants them.

    Warps that are `deep` along k hold a part of it each, and those beside them the same. As the first operand, or
    turned, of shape (deep * k) x rows, as the second one.
    """
    atom = ATOMS[operand_bits]
    m, n, step = atom.shape
    digits = Digit(deep, 0 if turned else 1, 1), Digit(warps // deep, None, 0)
    if turned:
        return RegisterLayout((deep, 1), digits, ()) * local(k // step, rows // n) * atom.b
    return RegisterLayout((1, deep), digits, ()) * local(rows // m, k // step) * atom.a


# What a thread holds of an instruction for 8 bits, cast to 16 bits, as operands of the instruction for 16: its four
# neighbours along k become two pairs that lie 8 apart. Both operands change alike, so the product is the same.
HALVED_ROWS = RegisterLayout(
    (16, 32),
    (Digit(8, 0, 1), Digit(4, 1, 2)),
    (Digit(2, 1, 16), Digit(2, 0, 8), Digit(2, 1, 8), Digit(2, 1, 1)),
)
HALVED_COLUMNS = local(2, 1) * ATOMS[16].b


def halved_codes(k: int, n: int, warps: int) -> RegisterLayout:
    """Return the layout for 16 bits of a k x n tile, k up to 128, that was in `code_layout` for 8 bits."""
    outer = RegisterLayout((1, warps), (Digit(warps, 1, 1),), ())
    return outer * local(1, n // UNIT_N // warps) * local(k // 32, UNIT_N // 8) * HALVED_COLUMNS


def halved_rows(rows: int, k: int, warps: int, turned: bool) -> RegisterLayout:
    """Return the layout for 16 bits of activations that were in `row_layout` for 8 bits."""
    outer = RegisterLayout((1, 1), (Digit(warps, None, 0),), ())
    if turned:
        return outer * local(k // 32, rows // 8) * HALVED_COLUMNS
    return outer * local(rows // 16, k // 32) * HALVED_ROWS


def sum_layout(rows: int, warps: int, turned: bool) -> RegisterLayout:
    """Return the layout of a value for each row of activations, as threads have the rows of their accumulators."""
    if turned:
        threads = Digit(warps, None, 0), Digit(8, None, 0), Digit(4, 1, 2)
        return RegisterLayout((1, rows), threads, (Digit(rows // 8, 1, 8), Digit(2, 1, 1)))
    threads = Digit(warps, None, 0), Digit(8, 0, 1), Digit(4, None, 0)
    return RegisterLayout((rows, 1), threads, (Digit(rows // 16, 0, 16), Digit(2, 0, 8)))


def store_layout(rows: int, columns: int, bits: int, warps: int) -> RegisterLayout:
    """Return a layout in which threads store 16 bytes each of a tile that may be smaller than the threads are many."""
    run = 128 // bits
    below = max(1, rows * columns // run // (THREADS * warps))
    tile = local(below, 1) * spatial(rows // below, columns // run) * local(1, run)
    return tile.with_replication(THREADS * warps // tile.threads)


def unit_bytes(bits: int) -> int:
    """Return the bytes of a unit."""
    return UNIT_K * UNIT_N * bits // 8


def padded(k: int, n: int) -> tuple[int, int]:
    """Return the extents of a weight in whole units."""
    return -(-k // UNIT_K) * UNIT_K, -(-n // UNIT_N) * UNIT_N


@lru_cache(maxsize=2)
def _unit_indices(operand_bits: int) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """Row and column of each (thread, element) of a unit."""
    layout = unit(operand_bits)
    index = np.array([[layout.index(t, e) for e in range(CODES)] for t in range(THREADS)])
    return index[..., 0], index[..., 1]


def _operand_bits(dest: DType | None) -> int:
    return 16 if dest is None else dest.bits


def pack_weight(codes: np.ndarray[Any, Any], dtype: DType, dest: DType | None = None) -> np.ndarray[Any, Any]:
    """Lay out weights as the kernels read them.

    Parameters
    ----------
    codes : ndarray of unsigned integers, shape (k, n)
        Codes of `dtype`; k and n are filled up to whole units with the code 0.
    dtype : DType
        Of 1 to 8 bits.
    dest : DType, optional
        What the kernel casts codes to: of 16 bits (the default), or of 8 for activations of 8 bits. Its tensor-core
        instruction decides the layout of a unit, and its cast the order of bits within each thread's codes, which is
        natural order unless it is given.

    Returns
    -------
    ndarray of uint8, shape (k // 128, n // 32, 512 * bits)
        With k and n rounded up.
    """
    k, n = codes.shape
    kp, np_ = padded(k, n)
    full = np.zeros((kp, np_), np.uint8)
    full[:k, :n] = codes
    rows, columns = _unit_indices(_operand_bits(dest))
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
    rows, columns = _unit_indices(_operand_bits(dest))
    units[:, :, rows, columns] = held
    full = units.transpose(0, 2, 1, 3).reshape(rows_of_units * UNIT_K, columns_of_units * UNIT_N)
    return full[:k, :n]


@lru_cache(maxsize=256)
def order_name(dtype: DType, dest: DType) -> str:
    """Return a name of the order in which `pack_weight` lays out codes, another one for each order.

    Stored weights have it beside them: those of another version may lie in another order.
    """
    codes = np.arange(UNIT_K * UNIT_N, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15) >> np.uint64(40)
    unit = pack_weight((codes & np.uint64((1 << dtype.bits) - 1)).reshape(UNIT_K, UNIT_N), dtype, dest)
    return hashlib.sha256(unit.tobytes()).hexdigest()[:8]
