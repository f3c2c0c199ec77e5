"""``wgmma.mma_async``: operands in shared memory through matrix descriptors, and the arithmetic.

PTX ISA, "Asynchronous Warpgroup Level Matrix Multiply-Accumulate Operation using wgmma.mma_async
instruction", in particular "Shared Memory Matrix Layout", "Canonical Layouts" and "Matrix Descriptor Format".
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cache, lru_cache
from typing import Any

import numpy as np

from tilus.simulator.tensorcore_layout import ELEMENT_BITS, dense_a_index, elements
from tilus.simulator.tensorcore_mma import bit_products, numbers, to_f16_bits, to_f32_bits
from tilus.simulator.tensorcore_sparse import expand_sparse, sparse_metadata_index
from tilus.simulator.tma import swizzle_address

Array = np.ndarray[Any, Any]

CHUNK_BYTES = 16
_SWIZZLE_BYTES = {0: 0, 1: 128, 2: 64, 3: 32}
_FLOAT_K = {"f16": 16, "bf16": 16, "tf32": 8, "e4m3": 32, "e5m2": 32}
_RESERVED = ((1 << 64) - 1) ^ (
    0x3FFF | 0x3FFF << 16 | 0x3FFF << 32 | 7 << 49 | 3 << 62
)  # bits that no field uses


@dataclass(frozen=True)
class MatrixDescriptor:
    """Fields of a matrix descriptor, in bytes.

    Attributes
    ----------
    start : int
        Shared address of the matrix.
    leading, stride : int
        Leading and stride dimension byte offsets.
    base_offset : int
        Phase, in rows of 128 bytes, at which the swizzle pattern begins.
    swizzle : int
        0, 32, 64 or 128.
    reserved : int
        The bits that no field uses; they must be zero.
    """

    start: int
    leading: int
    stride: int
    base_offset: int
    swizzle: int
    reserved: int = 0

    def encode(self) -> int:
        """The 64-bit descriptor."""
        mode = {bytes_: code for code, bytes_ in _SWIZZLE_BYTES.items()}[self.swizzle]

        def field(x: int) -> int:
            return (x & 0x3FFFF) >> 4

        return (
            field(self.start)
            | field(self.leading) << 16
            | field(self.stride) << 32
            | self.base_offset << 49
            | mode << 62
        )


def decode_descriptor(value: int) -> MatrixDescriptor:
    """Split a 64-bit matrix descriptor into its fields."""
    value = int(value)
    return MatrixDescriptor(
        start=(value & 0x3FFF) << 4,
        leading=(value >> 16 & 0x3FFF) << 4,
        stride=(value >> 32 & 0x3FFF) << 4,
        base_offset=value >> 49 & 7,
        swizzle=_SWIZZLE_BYTES[value >> 62 & 3],
        reserved=value & _RESERVED,
    )


@lru_cache(maxsize=4096)
def _chunk_offsets(
    extent: int,
    depth_bytes: int,
    mn_major: bool,
    leading: int,
    stride: int,
    base_offset: int,
    swizzle: int,
    phase: int,
) -> Array:
    """Offsets of the 16-byte chunks from the 1024-byte boundary below the start address.

    K-major: ``extent`` rows of ``depth_bytes`` along k, chunks ordered by row. MN-major: ``depth_bytes`` is
    the number of k and the chunks are ordered by k, each with consecutive elements along MN, whose bytes
    number ``extent``.
    """
    wide = swizzle // CHUNK_BYTES  # chunks per row of the swizzle atom
    if mn_major:
        depth, chunk = np.indices((depth_bytes, extent // CHUNK_BYTES))
        if swizzle:
            offset = (
                chunk % wide * CHUNK_BYTES
                + chunk // wide * leading
                + depth % 8 * swizzle
                + depth // 8 * stride
            )
        else:
            offset = chunk * stride + depth % 8 * CHUNK_BYTES + depth // 8 * leading
    else:
        row, chunk = np.indices((extent, depth_bytes // CHUNK_BYTES))
        if swizzle:
            offset = row % 8 * swizzle + row // 8 * stride + chunk * CHUNK_BYTES
        else:
            offset = row % 8 * CHUNK_BYTES + row // 8 * stride + chunk * leading
    # The pattern is anchored at addresses, not at the start of the matrix; a base offset moves the anchor.
    anchor = base_offset * 128
    offsets = swizzle_address(offset.reshape(-1) + phase - anchor, swizzle) + anchor
    offsets = np.ascontiguousarray(offsets, dtype=np.int64)
    offsets.flags.writeable = False
    return offsets


@dataclass(frozen=True)
class Wgmma:
    """One decoded ``wgmma.mma_async`` with its immediate operands; see `tilus.simulator.tensorcore`.

    Attributes
    ----------
    shape : tuple of int
        m (64), n and k; k counts the zeros of a sparse A.
    scale_a, scale_b : int
        -1 negates the operand.
    trans_a, trans_b : bool
        Whether the matrix is MN-major in shared memory.
    """

    shape: tuple[int, int, int]
    d_type: str
    a_type: str
    b_type: str
    satfinite: bool
    bit_op: str | None
    sparse: bool
    a_in_registers: bool
    trans_a: bool
    trans_b: bool
    scale_a: int
    scale_b: int

    @property
    def flops(self) -> int:
        """Multiplications and additions per warpgroup."""
        m, n, k = self.shape
        return 2 * m * n * k

    @property
    def stored_k(self) -> int:
        """Columns of A that are stored."""
        return self.shape[2] // 2 if self.sparse else self.shape[2]

    @property
    def a_registers(self) -> int:
        """Registers of A per thread where it comes from registers."""
        return 16 * self.stored_k * ELEMENT_BITS[self.a_type] // 1024

    @property
    def d_registers(self) -> int:
        """Registers of D per thread."""
        return self.shape[1] // (4 if self.d_type == "f16" else 2)

    def a_chunks(self, descriptors: Array) -> Array:
        """Shared addresses of the 16-byte chunks of A, int64 ``[G, n]`` for descriptors ``[G]``."""
        return _chunks(descriptors, 64, self.stored_k, ELEMENT_BITS[self.a_type], self.trans_a, "A")

    def b_chunks(self, descriptors: Array) -> Array:
        """Shared addresses of the 16-byte chunks of B, int64 ``[G, n]`` for descriptors ``[G]``."""
        _, n, k = self.shape
        return _chunks(descriptors, n, k, ELEMENT_BITS[self.b_type], self.trans_b, "B")

    def __call__(
        self,
        a: Array,
        b: Array,
        c: Array,
        scale_d: bool | Array = True,
        *,
        metadata: Array | None = None,
        selector: int = 0,
    ) -> Array:
        """New D for the operands; see `tilus.simulator.tensorcore` for their shapes."""
        product = self.product(a, b, metadata=metadata, selector=selector)
        if self.d_type == "s32":
            return self._accumulate_integers(product.astype(np.int64), c, scale_d)
        with np.errstate(invalid="ignore", over="ignore"):
            return self._accumulate_floats(product, c, scale_d)

    def product(self, a: Array, b: Array, *, metadata: Array | None = None, selector: int = 0) -> Array:
        """The product of the multiplicands as numbers, ``[G, 64, n]``."""
        m, n, k = self.shape
        groups = len(b)
        bits = ELEMENT_BITS[self.a_type]
        if self.a_in_registers:
            left = elements(a, bits).take(dense_a_index(16, self.stored_k, bits), axis=1)
            left = left.reshape(groups, m, self.stored_k)
        else:
            left = _matrix(a, m, self.stored_k, bits, self.trans_a)
        right = _matrix(b, n, k, bits, self.trans_b)
        if self.bit_op is not None:
            return bit_products(left, right, self.bit_op)
        left = numbers(left, self.a_type)
        right = numbers(right, self.b_type)
        if self.sparse:
            if metadata is None:
                raise ValueError("wgmma.mma_async.sp needs its metadata operand")
            shape = (16, 8, k)
            where = sparse_metadata_index(shape, self.a_type, None, metadata, selector)
            left = expand_sparse(left, where.reshape(groups, m, self.stored_k), k)
        with np.errstate(invalid="ignore", over="ignore"):
            product = left @ right.swapaxes(-1, -2)
        if self.d_type != "s32" and self.scale_a * self.scale_b < 0:
            np.negative(product, out=product)
        return product

    def _register_order(self, product: Array) -> Array:
        """``[G, 64, n]`` -> ``[4G, n / 2, 32]``.

        Element i of thread t of group g in warp w: row ``16w + g + 8 * (i // 2 % 2)``, column
        ``8 * (i // 4) + 2t + i % 2``.
        """
        groups, _, n = product.shape
        split = product.reshape(groups, 4, 2, 8, n // 8, 4, 2)  # w, upper half, g, i // 4, t, i % 2
        return split.transpose(0, 1, 4, 2, 6, 3, 5).reshape(4 * groups, n // 2, 32)

    def _accumulate_integers(self, product: Array, c: Array, scale_d: bool | Array) -> Array:
        old = np.where(_per_warp(scale_d, len(c)), c.view(np.int32), 0)
        total = self._register_order(product) + old.astype(np.int64)
        if self.satfinite:
            total = np.clip(total, -(2**31), 2**31 - 1)
        return total.astype(np.int32).view(np.uint32)

    def _accumulate_floats(self, product: Array, c: Array, scale_d: bool | Array) -> Array:
        product = self._register_order(product)
        keep = _per_warp(scale_d, len(c))
        if self.d_type == "f32":
            old = c.view(np.float32)
            return to_f32_bits(product + (old if keep is True else np.where(keep, old, np.float32(0))))
        warps, registers, _ = c.shape
        halves = np.ascontiguousarray(c).view(np.float16).reshape(warps, registers, 32, 2)
        old = halves.transpose(0, 1, 3, 2).reshape(warps, 2 * registers, 32).astype(np.float64)
        total = to_f16_bits(product + (old if keep is True else np.where(keep, old, 0.0)))
        pairs = total.reshape(warps, registers, 2, 32).transpose(0, 1, 3, 2)
        return np.ascontiguousarray(pairs).view(np.uint32)[..., 0]


def _per_warp(scale_d: bool | Array, warps: int) -> bool | Array:
    """True, or a condition that broadcasts over ``[W, registers, 32]``."""
    flags = np.asarray(scale_d, dtype=bool)
    if flags.all():
        return True
    return np.repeat(np.broadcast_to(flags, (warps // 4,)), 4)[:, None, None]


def _chunks(descriptors: Array, extent: int, k: int, bits: int, mn_major: bool, operand: str) -> Array:
    values = np.asarray(descriptors, dtype=np.uint64).tolist()
    if values.count(values[0]) == len(values):
        table = _chunks_of(values[0], extent, k, bits, mn_major, operand)
        return np.broadcast_to(table, (len(values), len(table)))
    return np.stack([_chunks_of(value, extent, k, bits, mn_major, operand) for value in values])


@lru_cache(maxsize=4096)
def _chunks_of(value: int, extent: int, k: int, bits: int, mn_major: bool, operand: str) -> Array:
    """Addresses of the chunks of one matrix ``extent x k`` for one descriptor."""
    d = decode_descriptor(value)
    depth_bytes = k * bits // 8
    if not mn_major and d.swizzle and depth_bytes > d.swizzle:
        raise ValueError(
            f"matrix {operand} of this wgmma has {depth_bytes} bytes along k, wider than its {d.swizzle}-byte "
            f"swizzle; use a swizzle of at least {depth_bytes} bytes"
        )
    phase = d.start % 1024
    first, second = (extent * bits // 8, k) if mn_major else (extent, depth_bytes)
    offsets = _chunk_offsets(first, second, mn_major, d.leading, d.stride, d.base_offset, d.swizzle, phase)
    chunks = offsets + (d.start - phase)
    chunks.flags.writeable = False
    return chunks


def _matrix(chunks: Array, extent: int, k: int, bits: int, mn_major: bool) -> Array:
    """Bytes of the chunks ``[G, n, 16]`` -> codes ``[G, extent, k]``."""
    groups = len(chunks)
    octets = np.ascontiguousarray(chunks).reshape(groups, -1)
    if bits == 1:
        return np.unpackbits(octets, axis=1, bitorder="little").reshape(groups, extent, k)
    codes = octets.view({8: np.uint8, 16: np.uint16, 32: np.uint32}[bits])
    if mn_major:
        return codes.reshape(groups, k, extent).swapaxes(1, 2)
    return codes.reshape(groups, extent, k)


@cache
def wgmma_instruction(
    opcode: str,
    a_in_registers: bool = False,
    trans_a: int = 0,
    trans_b: int = 0,
    scale_a: int = 1,
    scale_b: int = 1,
) -> Wgmma:
    """Decode the opcode and the immediate operands of a ``wgmma.mma_async``.

    Parameters
    ----------
    opcode : str
        For example ``"wgmma.mma_async.sync.aligned.m64n128k16.f32.bf16.bf16"``.
    a_in_registers : bool
        Whether operand a is a vector of registers rather than a descriptor.
    trans_a, trans_b, scale_a, scale_b : int
        The immediates imm-trans and imm-scale.
    """
    words = opcode.split(".")
    if words[:2] != ["wgmma", "mma_async"]:
        raise ValueError(f"expected wgmma.mma_async, found {opcode!r}")
    shape: tuple[int, int, int] | None = None
    types: list[str] = []
    sparse = satfinite = False
    bit_op: str | None = None
    for word in words[2:]:
        dimensions = re.fullmatch(r"m(\d+)n(\d+)k(\d+)", word)
        if dimensions:
            shape = (int(dimensions[1]), int(dimensions[2]), int(dimensions[3]))
        elif word == "sp":
            sparse = True
        elif word == "satfinite":
            satfinite = True
        elif word == "and":
            bit_op = word
        elif word in ("sync", "aligned", "popc"):
            continue
        elif word in ELEMENT_BITS or word in ("f32", "s32"):
            types.append(word)
        else:
            raise ValueError(f"unknown modifier .{word} in {opcode!r}")
    if shape is None or len(types) != 3:
        raise ValueError(f"expected a shape and the types of D, A and B, found {opcode!r}")
    d_type, a_type, b_type = types
    _check(opcode, shape, d_type, a_type, b_type, sparse, satfinite, bit_op)
    if (trans_a or trans_b) and a_type not in ("f16", "bf16"):
        raise ValueError(f"only f16 and bf16 can be transposed by wgmma, found {a_type}; store it K-major")
    if trans_a and a_in_registers:
        raise ValueError("imm-trans-a needs A in shared memory, found A in registers")
    for value in (trans_a, trans_b):
        if value not in (0, 1):
            raise ValueError(f"imm-trans of wgmma is 0 or 1, found {value}")
    for value in (scale_a, scale_b):
        if value not in (1, -1):
            raise ValueError(f"imm-scale of wgmma is 1 or -1, found {value}")
    return Wgmma(
        shape, d_type, a_type, b_type, satfinite, bit_op, sparse, a_in_registers, bool(trans_a),
        bool(trans_b), scale_a, scale_b,
    )  # fmt: skip


def _check(
    opcode: str,
    shape: tuple[int, int, int],
    d_type: str,
    a_type: str,
    b_type: str,
    sparse: bool,
    satfinite: bool,
    bit_op: str | None,
) -> None:
    m, n, k = shape
    pair = (a_type, b_type)
    integer = False
    accumulators: tuple[str, ...]
    if all(t in ("s8", "u8") for t in pair):
        accumulators, dense_k, integer = ("s32",), 32, True
    elif pair == ("b1", "b1") and bit_op == "and" and not sparse:
        accumulators, dense_k, integer = ("s32",), 256, True
    elif all(t in ("e4m3", "e5m2") for t in pair) or pair == ("f16", "f16"):
        accumulators, dense_k = ("f32", "f16"), _FLOAT_K[a_type]
    elif a_type == b_type and a_type in ("bf16", "tf32"):
        accumulators, dense_k = ("f32",), _FLOAT_K[a_type]
    else:
        raise ValueError(f"wgmma cannot multiply {a_type} by {b_type} in {opcode!r}")
    if d_type not in accumulators:
        raise ValueError(
            f"wgmma of {a_type} x {b_type} accumulates in {' or '.join(accumulators)}, found {d_type}"
        )
    expected = dense_k * 2 if sparse else dense_k
    step = 16 if integer and n > 32 else 8
    if m != 64 or k != expected or n % step or not 8 <= n <= 256:
        raise ValueError(
            f"wgmma of {a_type} x {b_type} has shape m64nNk{expected} with N a multiple of {step} up to 256, "
            f"found m{m}n{n}k{k}"
        )
    if satfinite and (not integer or a_type == "b1"):
        raise ValueError(f"wgmma takes .satfinite for 8-bit integers only, found it with {a_type}")
