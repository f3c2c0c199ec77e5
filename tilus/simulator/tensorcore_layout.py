"""Where the elements of a warp's matrices are in its registers, as index arrays.

A fragment ``[W, registers, 32]`` is first flattened to elements, ``[W, registers * 32 * per_register]`` in
the order register, lane, element (low to high). The index arrays here have the shape of a matrix and hold
positions in that order, so ``elements(fragment).take(index, axis=1)`` is the matrix. They are computed from
the formulas of the PTX ISA, "Matrix Fragments for mma...".
"""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]

ELEMENT_BITS = {
    "f64": 64, "tf32": 32, "f16": 16, "bf16": 16, "s8": 8, "u8": 8, "e4m3": 8, "e5m2": 8, "e3m2": 8,
    "e2m3": 8, "s4": 4, "u4": 4, "e2m1": 4, "b1": 1,
}  # fmt: skip


def elements(fragment: Array, bits: int) -> Array:
    """Elements of a fragment: ``[W, registers * 32 * per_register]``."""
    warps = len(fragment)
    words = np.ascontiguousarray(fragment)
    if bits >= 32:
        return words.reshape(warps, -1)
    if bits == 16:
        return words.view(np.uint16).reshape(warps, -1)
    octets = words.view(np.uint8).reshape(warps, -1)
    if bits == 8:
        return octets
    if bits == 4:
        nibbles = np.empty((warps, octets.shape[1], 2), dtype=np.uint8)
        np.bitwise_and(octets, 15, out=nibbles[:, :, 0])
        np.right_shift(octets, 4, out=nibbles[:, :, 1])
        return nibbles.reshape(warps, -1)
    return np.unpackbits(octets, axis=1, bitorder="little")


def _frozen(index: Array) -> Array:
    index = np.ascontiguousarray(index, dtype=np.intp)
    index.flags.writeable = False
    return index


@cache
def dense_a_index(m: int, k: int, bits: int) -> Array:
    """Positions of A, ``[m, k]``.

    With p elements per register, register r of thread t of group g holds row g (g + 8 for odd r) and the p
    columns from ``p * t + 4 * p * (r // 2)``; with 8 rows, r counts the column blocks alone.
    """
    per = max(1, 32 // bits)
    row, col = np.indices((m, k))
    block = col // (4 * per)
    register = block * (m // 8) + row // 8
    lane = (row % 8) * 4 + (col // per) % 4
    return _frozen((register * 32 + lane) * per + col % per)


@cache
def dense_b_index(k: int, bits: int) -> Array:
    """Positions of B, transposed: ``[8, k]``, indexed by column and row of B.

    Register r of thread t of group g holds column g and the p rows from ``p * t + 4 * p * r``.
    """
    per = max(1, 32 // bits)
    col, row = np.indices((8, k))
    lane = col * 4 + (row // per) % 4
    return _frozen((row // (4 * per) * 32 + lane) * per + row % per)


@cache
def accumulator_index(m: int) -> Array:
    """For element i of lane l, the position in the ``m x 8`` result, ``[m / 4, 32]``.

    Row g (g + 8 for i >= 2), column ``2 * t + i % 2``.
    """
    i, lane = np.indices((m // 4, 32))
    row = lane // 4 + 8 * (i // 2)
    col = (lane % 4) * 2 + i % 2
    return _frozen(row * 8 + col)


@cache
def quad_pair_index(operand: str, layout: str) -> Array:
    """The f16 ``m8n8k4``, four products by lanes {4q..4q+3, 4q+16..4q+19}.

    For ``"a"`` and ``"b"`` positions ``[4, 8, 4]`` (product, row of A or column of B, k); for ``"f16"`` and
    ``"f32"`` accumulators the position in ``[4, 8, 8]`` of element i of a lane, ``[8, 32]``.
    """
    if operand in ("a", "b"):
        product, outer, inner = np.indices((4, 8, 4))
        # A by rows and B by columns: a thread holds all of k. Otherwise it holds one k of four rows.
        along_k = (operand, layout) in (("a", "row"), ("b", "col"))
        thread = outer % 4 if along_k else inner
        i = inner if along_k else outer % 4
        lane = 16 * (outer // 4) + 4 * product + thread
        return _frozen((i // 2 * 32 + lane) * 2 + i % 2)
    i, lane = np.indices((8, 32))
    product = lane % 16 // 4
    high = 4 * (lane // 16)
    if operand == "f16":
        row, col = lane % 4 + high, i
    else:
        row = (lane & 1) + (i & 2) + high
        col = (i & 4) + (lane & 2) + (i & 1)
    return _frozen(product * 64 + row * 8 + col)
