"""``ldmatrix``, ``stmatrix`` and ``movmatrix``: which words they touch and how lanes exchange them.

Memory is the caller's: an operation gives the addresses of 4-byte words and rearranges their contents.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class _MatrixAccess:
    """What loads and stores share.

    Attributes
    ----------
    shape : tuple of int
        Rows and columns of one matrix.
    count : int
        Matrices: 1, 2 or 4.
    transposed : bool
        Whether memory holds the matrix by columns.
    element_bits : int
        Width of an element in the registers, 16 or 8.
    source_bits : int
        Width of an element in memory: less than 8 for the packed formats.
    """

    shape: tuple[int, int]
    count: int
    transposed: bool
    element_bits: int
    source_bits: int

    @property
    def memory_rows(self) -> int:
        """Rows of 16 bytes of one matrix in memory."""
        rows, columns = self.shape
        return columns if self.transposed else rows

    @property
    def rows(self) -> int:
        """Lanes 0 to ``rows - 1`` give the address of a row of 16 bytes each."""
        return self.memory_rows * self.count

    @property
    def row_bytes(self) -> int:
        """Length, and required alignment, of a row in memory."""
        return 16

    @property
    def words(self) -> int:
        """Words per lane in memory."""
        return self.rows * 4 // 32

    @property
    def registers(self) -> int:
        """Registers per lane."""
        rows, columns = self.shape
        return rows * columns * self.element_bits // 1024 * self.count

    def word_addresses(self, rows: Array) -> Array:
        """Addresses of the 4-byte words read or written.

        Parameters
        ----------
        rows : array
            The address operand of each lane, ``[W, 32]``.

        Returns
        -------
        array
            ``[W, words, 32]``; the words of one row stand in four neighbouring lanes.
        """
        starts = rows[:, : self.rows].astype(np.int64)
        words = starts[:, :, None] + np.arange(0, 16, 4)
        return words.reshape(len(rows), self.words, 32)


@dataclass(frozen=True)
class MatrixLoad(_MatrixAccess):
    """One decoded ``ldmatrix``; see `tilus.simulator.tensorcore` for its use."""

    def arrange(self, values: Array) -> Array:
        """Words loaded from `word_addresses` -> the destination registers, ``[W, registers, 32]``."""
        if self.element_bits == 16 and not self.transposed:
            return values
        warps = len(values)
        if self.element_bits == 16:
            halves = np.ascontiguousarray(values).view(np.uint16).reshape(warps, self.count, 8, 8)
            turned = np.ascontiguousarray(halves.swapaxes(2, 3))
            return turned.reshape(warps, self.count, 64).view(np.uint32)
        octets = np.ascontiguousarray(values).view(np.uint8).reshape(warps, self.count, self.memory_rows, 16)
        if self.source_bits < 8:
            octets = unpack_to_octets(octets, self.source_bits)
        if not self.transposed:
            return np.ascontiguousarray(octets).reshape(warps, self.count, 128).view(np.uint32)
        flat = octets.reshape(warps, self.count * 256)
        taken = flat.take(_octet_index(self.count), axis=1)  # [W, registers, 32, 4]
        return np.ascontiguousarray(taken).view(np.uint32)[..., 0]


@dataclass(frozen=True)
class MatrixStore(_MatrixAccess):
    """One decoded ``stmatrix``; see `tilus.simulator.tensorcore` for its use."""

    def arrange(self, values: Array) -> Array:
        """Source registers ``[W, registers, 32]`` -> the words to store at `word_addresses`."""
        if self.element_bits == 16 and not self.transposed:
            return values
        warps = len(values)
        if self.element_bits == 16:
            halves = np.ascontiguousarray(values).view(np.uint16).reshape(warps, self.count, 8, 8)
            turned = np.ascontiguousarray(halves.swapaxes(2, 3))
            return turned.reshape(warps, self.count, 64).view(np.uint32)
        # m16n8: element e of lane 4g + t is row g + 8 * (e // 2), column 2t + e % 2; memory has the columns.
        octets = np.ascontiguousarray(values).view(np.uint8).reshape(warps, self.count, 8, 4, 2, 2)
        columns = octets.transpose(0, 1, 3, 5, 4, 2)  # matrix, t, parity, upper half, g
        return np.ascontiguousarray(columns).reshape(warps, self.count, 128).view(np.uint32)


def unpack_to_octets(rows: Array, bits: int) -> Array:
    """Rows of 16 packed 4-bit or 6-bit elements, in 16 bytes each -> one element per byte.

    An element goes to the low bits of its byte (PTX ISA, ``ldmatrix``, formats ``b4x16_p64`` and
    ``b6x16_p32``; ``mma`` wants 4-bit elements two bits higher, which is left to a shift).
    """
    if bits == 4:
        packed = rows[..., :8]
        return np.stack([packed & 15, packed >> 4], axis=-1).reshape(*rows.shape[:-1], 16)
    three = rows[..., :12].reshape(*rows.shape[:-1], 4, 3).astype(np.uint32)
    word = three[..., 0] | (three[..., 1] << 8) | (three[..., 2] << 16)
    out = np.stack([(word >> shift) & 63 for shift in (0, 6, 12, 18)], axis=-1)
    return out.astype(np.uint8).reshape(*rows.shape[:-1], 16)


@cache
def _octet_index(count: int) -> Array:
    """Byte of memory for ``[register, lane, byte]`` of the transposed 16 x 16 load."""
    register, lane, byte = np.indices((2 * count, 32, 4))
    matrix = register // 2
    column = (lane % 4) * 4 + byte
    row = lane // 4 + 8 * (register % 2)
    index = np.ascontiguousarray(matrix * 256 + column * 16 + row, dtype=np.intp)
    index.flags.writeable = False
    return index


def movmatrix(a: Array) -> Array:
    """``movmatrix.sync.aligned.m8n8.trans.b16``: transpose an 8 x 8 matrix of 16-bit elements.

    Parameters
    ----------
    a : array
        uint32 ``[W, 32]``.
    """
    halves = np.ascontiguousarray(a).view(np.uint16).reshape(len(a), 8, 8)
    return np.ascontiguousarray(halves.swapaxes(1, 2)).reshape(len(a), 64).view(np.uint32)


@cache
def ldmatrix_instruction(opcode: str) -> MatrixLoad:
    """Decode the opcode of an ``ldmatrix``, for example ``"ldmatrix.sync.aligned.m8n8.x4.shared.b16"``."""
    shape, count, trans, words = _modifiers(opcode, "ldmatrix")
    source = next((w for w in words if w in ("b6x16_p32", "b4x16_p64")), None)
    if shape == "m8n8" and "b16" in words and source is None:
        return MatrixLoad((8, 8), count, trans, 16, 16)
    packed = source is not None and "b8x16" in words
    if shape == "m16n16" and trans and count <= 2 and (packed or "b8" in words):
        return MatrixLoad((16, 16), count, True, 8, int(source[1]) if source else 8)
    if shape == "m8n16" and not trans and packed:
        assert source is not None
        return MatrixLoad((8, 16), count, False, 8, int(source[1]))
    raise ValueError(
        "ldmatrix is m8n8 with b16, m16n16.trans (x1 or x2) with b8 or b8x16 and a packed source, or m8n16 "
        f"with b8x16 and a packed source; found {opcode!r}"
    )


@cache
def stmatrix_instruction(opcode: str) -> MatrixStore:
    """Decode the opcode of an ``stmatrix``, for example ``"stmatrix.sync.aligned.m8n8.x4.shared.b16"``."""
    shape, count, trans, words = _modifiers(opcode, "stmatrix")
    if shape == "m8n8" and "b16" in words:
        return MatrixStore((8, 8), count, trans, 16, 16)
    if shape == "m16n8" and trans and "b8" in words:
        return MatrixStore((16, 8), count, True, 8, 8)
    raise ValueError(f"stmatrix is m8n8 with b16 or m16n8.trans with b8; found {opcode!r}")


def _modifiers(opcode: str, name: str) -> tuple[str, int, bool, list[str]]:
    words = opcode.split(".")
    count = next((int(w[1:]) for w in words if w in ("x1", "x2", "x4")), 0)
    shape = next((w for w in words if w in ("m8n8", "m16n16", "m8n16", "m16n8")), "")
    if words[0] != name or not count or not shape:
        raise ValueError(f"expected {name} with a shape and .x1, .x2 or .x4, found {opcode!r}")
    return shape, count, "trans" in words, words
