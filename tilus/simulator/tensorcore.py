"""Semantics of the tensor-core instructions: the entry that the rest of the simulator imports.

Everything here is NumPy and written from the PTX ISA alone: no table is shared with the compiler, so that
each checks the other. ``tensorcore_native`` does the same for the commonest types in machine code.

**Registers.** A fragment is a ``uint32`` array of shape ``[W, registers, 32]``: warp, register of the
vector operand, lane. Double precision fragments are ``uint64``. ``wgmma`` takes the four warps of a
warpgroup next to each other: ``W = 4 * G``. All functions work on all ``W`` warps at once.

**An instruction is decoded once and then called often**::

    op = mma_instruction("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32")     # cached
    op.a_registers, op.b_registers, op.c_registers, op.d_registers, op.flops
    d = op(a, b, c)                                          # dense
    d = op(a, b, c, metadata=e, selector=f)                  # mma.sp; e: uint32 [W, 32], f: int
    d = op(a, b, c, scale_a=sa, byte_id_a=0, thread_id_a=1,  # block scaling; sa: uint32 [W, 32];
           scale_b=sb, byte_id_b=0, thread_id_b=3)           # selectors: int, or integer array [W]
    mma(shape=(16, 8, 16), d_type="f32", a_type="f16", b_type="f16", c_type="f32", ...)  # by modifiers

    op = ldmatrix_instruction("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16")
    words = op.word_addresses(rows)      # rows: int64 [W, 32] the address operand of each lane
                                         # -> int64 [W, op.words, 32], addresses of 4-byte words to load
    r = op.arrange(values)               # uint32 [W, op.words, 32] loaded there -> [W, op.registers, 32]
    op.row_bytes, op.rows                # alignment of a row address; lanes 0..rows-1 give addresses
    op = stmatrix_instruction("stmatrix.sync.aligned.m8n8.x4.shared.b16")
    values = op.arrange(r)               # [W, op.registers, 32] -> uint32 [W, op.words, 32] to store at
    words = op.word_addresses(rows)      # ... these addresses
    d = movmatrix(a)                     # uint32 [W, 32] -> [W, 32]

    op = wgmma_instruction("wgmma.mma_async.sync.aligned.m64n256k16.f32.f16.f16",
                           a_in_registers=False, trans_a=0, trans_b=0, scale_a=1, scale_b=1)
    op.a_registers, op.d_registers, op.flops
    chunks = op.a_chunks(descriptors)    # uint64 [G] -> int64 [G, n] shared addresses of the 16-byte chunks
    chunks = op.b_chunks(descriptors)    # that the instruction reads (each chunk: 16 consecutive bytes)
    d = op(a, b, c, scale_d)             # a: uint32 [W, registers, 32], or the bytes at a_chunks:
                                         # uint8 [G, n, 16]; b: uint8 [G, n, 16]; c: old d, uint32
                                         # [W, d_registers, 32]; scale_d: bool or bool [G] -> new d
    d = op(a, b, c, scale_d, metadata=e, selector=f)         # wgmma.mma_async.sp; e: uint32 [W, 32]
    op = wmma_instruction("wmma.load.a.sync.aligned.row.m16n16k16.global.f16")   # or wmma.store.d...
    op.store, op.registers, op.units, op.unit_bytes
    at = op.addresses(base, stride)      # base: [W]; stride in elements: int, [W] or None -> byte addresses
                                         # int64 [W, op.units, 32] of units of op.unit_bytes bytes
    r = op.to_registers(values)          # loaded units, unsigned [W, units, 32] -> [W, op.registers, 32]
    values = op.from_registers(r)        # the units to store
    op = wmma_instruction("wmma.mma.sync.aligned.row.col.m16n16k16.f32.f32"); d = op(a, b, c)
    decode_descriptor(value) -> MatrixDescriptor(start, leading, stride, base_offset, swizzle)

Unsupported or illegal modifiers raise ``ValueError`` with one sentence when the instruction is decoded.

**Numerics.** Products are exact; the products of one instruction and the accumulator are summed in
float64 and rounded once to the destination type (the ISA asks for at least single precision and leaves the
order open). Double precision is a chain of fused multiply-adds in the order of k. Integers are exact, then
wrap or saturate. NaN results are the canonical NaN (0x7fffffff, 0x7fff).
"""

from __future__ import annotations

from tilus.simulator.tensorcore_matrix import (
    MatrixLoad,
    MatrixStore,
    ldmatrix_instruction,
    movmatrix,
    stmatrix_instruction,
)
from tilus.simulator.tensorcore_mma import Mma, mma, mma_instruction
from tilus.simulator.tensorcore_wgmma import MatrixDescriptor, Wgmma, decode_descriptor, wgmma_instruction
from tilus.simulator.tensorcore_wmma import WmmaMemory, WmmaMultiply, wmma_instruction

__all__ = [
    "MatrixDescriptor",
    "MatrixLoad",
    "MatrixStore",
    "Mma",
    "Wgmma",
    "WmmaMemory",
    "WmmaMultiply",
    "decode_descriptor",
    "ldmatrix_instruction",
    "mma",
    "mma_instruction",
    "movmatrix",
    "stmatrix_instruction",
    "wgmma_instruction",
    "wmma_instruction",
]
