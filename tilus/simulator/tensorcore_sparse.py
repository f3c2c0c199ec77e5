"""Sparse A of ``mma.sp``: reading the metadata operand and putting the zeros back.

PTX ISA, "Sparse matrix storage" and "Matrix fragments for multiply-accumulate operation with sparse matrix
A". Four bits of metadata belong to a chunk of A; they hold the places of its two stored units.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]


def chunk_of(a_type: str, kind: str | None) -> tuple[int, int]:
    """Columns of A per chunk of four bits of metadata, and columns per unit that is zero or not as a whole.

    2:4 for 16-bit and 8-bit elements, 1:2 for tf32 (described as two of four half-elements), and pairs of
    4:8 for 4-bit elements that are not in 8-bit containers.
    """
    if a_type == "tf32":
        return 2, 1
    if a_type in ("s4", "u4") or (a_type == "e2m1" and kind in ("mxf4", "mxf4nvf4")):
        return 8, 2
    return 4, 1


@cache
def _nibble_index(k: int, chunk: int, bits16: bool, selector: int) -> Array:
    """Position of the four bits of each row and chunk in the nibbles of 32 lanes, ``[16, k / chunk]``."""
    row, at = np.indices((16, k // chunk))
    group = row % 8
    high = row // 8
    if bits16:
        # f16, bf16 and tf32: a lane holds four chunks of row g in its low half and of row g + 8 in its high
        # half; one lane for 4 chunks, two for 8.
        lanes = max(1, (k // chunk) // 4)
        lane = group * 4 + selector * lanes + at // 4
        nibble = high * 4 + at % 4
    else:
        # 8-bit and 4-bit elements: a lane holds eight chunks of one row, row g and g + 8 in turns.
        lane = group * 4 + selector * 2 + at // 8 * 2 + high
        nibble = at % 8
    index = np.ascontiguousarray(lane * 8 + nibble, dtype=np.intp)
    index.flags.writeable = False
    return index


def selectors_of(k: int, a_type: str, kind: str | None) -> int:
    """Number of legal values of the sparsity selector: 4, 2 or 1."""
    chunk, _ = chunk_of(a_type, kind)
    lanes = 16 * (k // chunk) * 4 // 32 // 8
    return 4 // max(1, lanes)


def sparse_metadata_index(
    shape: tuple[int, int, int], a_type: str, kind: str | None, metadata: Array, selector: int
) -> Array:
    """Column of A of each stored element, int ``[W, 16, k / 2]``.

    Parameters
    ----------
    metadata : array
        uint32 ``[W, 32]``.
    selector : int
        The sparsity selector, which names the lanes of a quad that hold the metadata.
    """
    k = shape[2]
    legal = selectors_of(k, a_type, kind)
    if not 0 <= selector < legal:
        raise ValueError(f"the sparsity selector of this mma.sp is 0 to {legal - 1}, found {selector}")
    chunk, unit = chunk_of(a_type, kind)
    warps = len(metadata)
    octets = np.ascontiguousarray(metadata).view(np.uint8).reshape(warps, 128)
    nibbles = np.empty((warps, 128, 2), dtype=np.uint8)
    np.bitwise_and(octets, 15, out=nibbles[:, :, 0])
    np.right_shift(octets, 4, out=nibbles[:, :, 1])
    bits16 = a_type in ("f16", "bf16", "tf32")
    codes = nibbles.reshape(warps, 256).take(_nibble_index(k, chunk, bits16, selector), axis=1)
    base = np.arange(0, k, chunk, dtype=np.intp)
    if a_type == "tf32":
        # 0b0100: halves 0 and 1, the first element; 0b1110: halves 2 and 3, the second.
        return base + (codes >> 3)
    first = (codes & 3).astype(np.intp)
    second = (codes >> 2).astype(np.intp)
    places = np.stack([first, second], axis=-1)  # [W, 16, chunks, 2]
    columns = base[:, None] + places * unit
    if unit == 2:
        columns = np.stack([columns, columns + 1], axis=-1)
    return columns.reshape(warps, 16, k // 2)


def expand_sparse(values: Array, columns: Array, k: int) -> Array:
    """Put ``[W, 16, k / 2]`` stored values at their columns of ``[W, 16, k]``; the rest is zero."""
    full = np.zeros((*values.shape[:-1], k), dtype=values.dtype)
    np.put_along_axis(full, columns, values, axis=-1)
    return full
