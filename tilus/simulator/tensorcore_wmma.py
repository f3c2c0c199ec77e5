"""``wmma.load``, ``wmma.mma`` and ``wmma.store``.

PTX leaves open which element of a matrix a register holds, so the simulator is free to choose: the elements of
A by rows, of B by columns and of C and D by rows follow each other through element, lane and register. Where
a fragment has more places than the matrix has elements (f16) it holds the matrix repeatedly.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np

from tilus.simulator.tensorcore_layout import ELEMENT_BITS, elements
from tilus.simulator.tensorcore_mma import bit_products, fma_chain, numbers, to_f16_bits, to_f32_bits

Array = np.ndarray[Any, Any]

_WIDE = ((16, 16, 16), (8, 32, 16), (32, 8, 16))
_SHAPES: dict[str, tuple[tuple[int, int, int], ...]] = {
    "f16": _WIDE, "bf16": _WIDE, "s8": _WIDE, "u8": _WIDE, "tf32": ((16, 16, 8),), "f64": ((8, 8, 4),),
    "s4": ((8, 8, 32),), "u4": ((8, 8, 32),), "b1": ((8, 8, 128),),
}  # fmt: skip
_ACCUMULATORS = {
    "f16": ("f16", "f32"), "bf16": ("f32",), "tf32": ("f32",), "f64": ("f64",), "s8": ("s32",), "u8": ("s32",),
    "s4": ("s32",), "u4": ("s32",), "b1": ("s32",),
}  # fmt: skip
_BITS = {**ELEMENT_BITS, "f32": 32, "s32": 32}


@dataclass(frozen=True)
class WmmaMemory:
    """One decoded ``wmma.load`` or ``wmma.store``.

    Attributes
    ----------
    role : str
        ``"a"``, ``"b"``, ``"c"`` or ``"d"``; a store has ``"d"``.
    shape : tuple of int
        m, n and k.
    dtype : str
        Element type.
    layout : str
        ``"row"`` or ``"col"``: how memory holds the matrix.
    """

    role: str
    shape: tuple[int, int, int]
    dtype: str
    layout: str

    @property
    def store(self) -> bool:
        """Whether this is a store."""
        return self.role == "d"

    @property
    def size(self) -> tuple[int, int]:
        """Rows and columns of the matrix."""
        m, n, k = self.shape
        return {"a": (m, k), "b": (k, n)}.get(self.role, (m, n))

    @property
    def per_register(self) -> int:
        """Elements per register."""
        return max(1, 32 // _BITS[self.dtype])

    @property
    def registers(self) -> int:
        """Registers per thread (64-bit ones for f64)."""
        rows, columns = self.size
        if self.dtype == "f16" and self.role in "ab":
            return 8
        return rows * columns // 32 // self.per_register

    @property
    def default_stride(self) -> int:
        """Elements between rows (columns) where the instruction names no stride."""
        rows, columns = self.size
        return columns if self.layout == "row" else rows

    @property
    def _along(self) -> bool:
        """Whether consecutive elements of a register are neighbours in memory."""
        return (self.layout == "col") == (self.role == "b")

    @property
    def unit_bytes(self) -> int:
        """Bytes of one memory access: a register where its elements are neighbours, else an element."""
        if self.dtype == "f64":
            return 8
        return 4 if self._along else _BITS[self.dtype] // 8

    @property
    def units(self) -> int:
        """Memory accesses per thread."""
        return self.registers * (1 if self._along else self.per_register)

    def addresses(self, base: Array, stride: int | Array | None = None) -> Array:
        """Byte addresses of the units, int64 ``[W, units, 32]``.

        Parameters
        ----------
        base : array
            Address operand of each warp, ``[W]``.
        stride : int or array, optional
            Stride operand in elements, for all warps or ``[W]``; default `default_stride`.
        """
        outer, inner = self._places()
        step = np.asarray(self.default_stride if stride is None else stride, dtype=np.int64).reshape(-1, 1, 1)
        bits = _BITS[self.dtype]
        place: Array = np.asarray(base, dtype=np.int64).reshape(-1, 1, 1) + (outer * step + inner) * bits // 8
        return place

    def _places(self) -> tuple[Array, Array]:
        """Row and column in memory (slow and fast dimension) of the first element of each unit."""
        rows, columns = self.size
        unit, lane = np.indices((self.units, 32))
        if self._along:
            index = (unit * 32 + lane) * self.per_register
        else:
            per = self.per_register
            index = (unit // per * 32 + lane) * per + unit % per
        index = index % (rows * columns)
        width = rows if self.role == "b" else columns  # B follows its columns
        slow, fast = index // width, index % width
        return (slow, fast) if self._along else (fast, slow)

    def to_registers(self, values: Array) -> Array:
        """Loaded units ``[W, units, 32]`` -> registers ``[W, registers, 32]``."""
        kind = np.uint64 if self.dtype == "f64" else np.uint32
        if self._along or self.per_register == 1:
            return values.astype(kind, copy=False)
        per = self.per_register
        parts = values.astype(np.uint32).reshape(len(values), self.registers, per, 32)
        shifts = (np.arange(per, dtype=np.uint32) * np.uint32(32 // per))[:, None]
        registers: Array = np.bitwise_or.reduce(parts << shifts, axis=2)
        return registers

    def from_registers(self, registers: Array) -> Array:
        """Registers -> units to store, unsigned integers of `unit_bytes` bytes."""
        if self._along or self.per_register == 1:
            return registers
        per = self.per_register
        shifts = (np.arange(per, dtype=np.uint32) * np.uint32(32 // per))[:, None]
        parts = (registers[:, :, None, :] >> shifts) & np.uint32((1 << (32 // per)) - 1)
        units: Array = parts.reshape(len(registers), self.units, 32)
        return units.astype({1: np.uint8, 2: np.uint16}[self.unit_bytes])


@dataclass(frozen=True)
class WmmaMultiply:
    """One decoded ``wmma.mma``; call it with the fragments of A, B and C."""

    shape: tuple[int, int, int]
    d_type: str
    a_type: str
    b_type: str
    c_type: str
    satfinite: bool = False
    bit_op: str | None = None
    rounding: str = "rn"

    @property
    def a_registers(self) -> int:
        """Registers of A per thread."""
        return WmmaMemory("a", self.shape, self.a_type, "row").registers

    @property
    def b_registers(self) -> int:
        """Registers of B per thread."""
        return WmmaMemory("b", self.shape, self.b_type, "col").registers

    @property
    def c_registers(self) -> int:
        """Registers of C per thread."""
        return WmmaMemory("c", self.shape, self.c_type, "row").registers

    @property
    def d_registers(self) -> int:
        """Registers of D per thread."""
        return WmmaMemory("d", self.shape, self.d_type, "row").registers

    @property
    def flops(self) -> int:
        """Multiplications and additions per warp."""
        m, n, k = self.shape
        return 2 * m * n * k

    def __call__(self, a: Array, b: Array, c: Array) -> Array:
        """Fragment of D, ``[W, d_registers, 32]``."""
        m, n, k = self.shape
        warps = len(a)
        left = elements(a, ELEMENT_BITS[self.a_type])[:, : m * k].reshape(warps, m, k)
        right = elements(b, ELEMENT_BITS[self.b_type])[:, : n * k].reshape(warps, n, k)
        if self.bit_op is not None:
            return self._integers(bit_products(left, right, self.bit_op), c)
        left = numbers(left, self.a_type)
        right = numbers(right, self.b_type)
        if self.a_type == "f64":
            at = np.arange(m * n).reshape(-1, 32)
            return fma_chain(left, right, c, at, self.rounding)
        with np.errstate(invalid="ignore", over="ignore"):
            product = left @ right.swapaxes(-1, -2)
            if self.d_type == "s32":
                return self._integers(product.astype(np.int64), c)
            old = np.float16 if self.c_type == "f16" else np.float32
            total = product.reshape(warps, -1) + np.ascontiguousarray(c).view(old).reshape(warps, -1)
        bits = to_f16_bits(total).view(np.uint32) if self.d_type == "f16" else to_f32_bits(total)
        return bits.reshape(warps, self.d_registers, 32)

    def _integers(self, product: Array, c: Array) -> Array:
        total = product.reshape(c.shape) + c.view(np.int32)
        if self.satfinite:
            total = np.clip(total, -(2**31), 2**31 - 1)
        return total.astype(np.int32).view(np.uint32)


@cache
def wmma_instruction(opcode: str) -> WmmaMemory | WmmaMultiply:
    """Decode the opcode of a ``wmma.load``, ``wmma.store`` or ``wmma.mma``.

    Parameters
    ----------
    opcode : str
        For example ``"wmma.load.a.sync.aligned.row.m16n16k16.global.f16"``.
    """
    words = opcode.split(".")
    if words[0] != "wmma" or len(words) < 3:
        raise ValueError(f"expected a wmma instruction, found {opcode!r}")
    found = next(
        (re.fullmatch(r"m(\d+)n(\d+)k(\d+)", w) for w in words if re.fullmatch(r"m\d+n\d+k\d+", w)), None
    )
    layouts = [w for w in words if w in ("row", "col")]
    types = [w for w in words if w in _BITS]
    if found is None or not types or not layouts:
        raise ValueError(f"expected a layout, a shape and a type, found {opcode!r}")
    shape = (int(found[1]), int(found[2]), int(found[3]))
    if words[1] in ("load", "store"):
        role, dtype = words[2], types[0]
        legal = any(
            shape in shapes and (dtype == element if role in "ab" else dtype in _ACCUMULATORS[element])
            for element, shapes in _SHAPES.items()
        )
        if (
            role not in ("a", "b", "c")
            and words[1] == "load"
            or role != "d"
            and words[1] == "store"
            or not legal
        ):
            raise ValueError(f"wmma has no {words[1]} of matrix {role} with this shape and type: {opcode!r}")
        memory = WmmaMemory(role, shape, dtype, layouts[0])
        if _BITS[dtype] < 8 and not memory._along:
            raise ValueError(f"wmma loads {dtype} matrices only as A.row and B.col, found {opcode!r}")
        return memory
    if words[1] != "mma" and "mma" not in words:
        raise ValueError(f"expected wmma.load, wmma.store or wmma.mma, found {opcode!r}")
    if len(types) == 2:
        types = [types[0], "f16", "f16", types[1]]
    if len(types) != 4 or len(layouts) != 2:
        raise ValueError(f"expected two layouts and the types of D, A, B and C, found {opcode!r}")
    d_type, a_type, b_type, c_type = types
    if a_type != b_type or shape not in _SHAPES.get(a_type, ()):
        raise ValueError(f"wmma cannot multiply {a_type} by {b_type} in this shape: {opcode!r}")
    if d_type not in _ACCUMULATORS[a_type] or c_type not in _ACCUMULATORS[a_type]:
        allowed = " or ".join(_ACCUMULATORS[a_type])
        raise ValueError(f"wmma of {a_type} accumulates in {allowed}, found D {d_type} and C {c_type}")
    return WmmaMultiply(
        shape,
        d_type,
        a_type,
        b_type,
        c_type,
        satfinite="satfinite" in words,
        bit_op=next((w for w in words if w in ("xor", "and")), None) if a_type == "b1" else None,
        rounding=next((w for w in words if w in ("rn", "rz", "rm", "rp")), "rn"),
    )
