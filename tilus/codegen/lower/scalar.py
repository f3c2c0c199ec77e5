"""Lowering of constants, indices, sizes and pointers."""

from __future__ import annotations

from tilus import dtypes
from tilus.codegen.llvm_text import V, floating, integer
from tilus.codegen.lower.context import Context, GlobalTensor, lowers
from tilus.codegen.registers import Tile, elements_of, llvm_type
from tilus.dtypes import DType
from tilus.errors import TypeMismatch
from tilus.ir import ops
from tilus.ir.types import PointerType


def constant(value: int | float | bool, dtype: DType) -> V:
    """Return a constant in the LLVM type in which elements of a dtype are computed."""
    if dtype is dtypes.boolean:
        return integer(int(bool(value)), 1)
    if dtype.is_integer:
        return integer(int(value), 64 if dtype.bits == 64 else 32)
    type = llvm_type(dtype)
    if type == "i32":
        return integer(int(dtypes.encode([float(value)], dtype)[0]))
    return floating(float(value), type)


@lowers(ops.Constant)
def lower_constant(ctx: Context, op: ops.Constant) -> None:
    ctx.values[op.result] = constant(op.value, op.dtype)


@lowers(ops.BlockId)
def lower_block_id(ctx: Context, op: ops.BlockId) -> None:
    with ctx.w.at_entry():
        ctx.values[op.result] = ctx.w.call("i32", f"llvm.nvvm.read.ptx.sreg.ctaid.{'xyz'[op.axis]}")


@lowers(ops.GridDim)
def lower_grid_dim(ctx: Context, op: ops.GridDim) -> None:
    with ctx.w.at_entry():
        ctx.values[op.result] = ctx.w.call("i32", f"llvm.nvvm.read.ptx.sreg.nctaid.{'xyz'[op.axis]}")


@lowers(ops.ClusterRank)
def lower_cluster_rank(ctx: Context, op: ops.ClusterRank) -> None:
    with ctx.w.at_entry():
        ctx.values[op.result] = ctx.w.call("i32", "llvm.nvvm.read.ptx.sreg.cluster.ctarank")


@lowers(ops.Dim)
def lower_dim(ctx: Context, op: ops.Dim) -> None:
    ctx.values[op.result] = ctx.w.convert("trunc", ctx.tensor(op.tensor).dims[op.axis], "i32")


@lowers(ops.Stride)
def lower_stride(ctx: Context, op: ops.Stride) -> None:
    ctx.values[op.result] = ctx.tensor(op.tensor).strides[op.axis]


@lowers(ops.PointerOf)
def lower_pointer_of(ctx: Context, op: ops.PointerOf) -> None:
    ctx.values[op.result] = ctx.tensor(op.tensor).pointer


@lowers(ops.PointerAdd)
def lower_pointer_add(ctx: Context, op: ops.PointerAdd) -> None:
    assert isinstance(op.pointer.type, PointerType)
    bits = op.pointer.type.dtype.bits
    if bits % 8:
        raise TypeMismatch(
            f"a pointer to {op.pointer.type.dtype} cannot be moved by elements, which are not whole bytes",
            hint="use a pointer to uint8",
        )
    offset = ctx.w.convert("sext", ctx.scalar(op.offset), "i64")
    ctx.values[op.result] = ctx.w.gep(ctx.scalar(op.pointer), ctx.w.mul(offset, integer(bits // 8, 64)))


@lowers(ops.PointerCast)
def lower_pointer_cast(ctx: Context, op: ops.PointerCast) -> None:
    ctx.values[op.result] = ctx.scalar(op.pointer)


@lowers(ops.GlobalView)
def lower_global_view(ctx: Context, op: ops.GlobalView) -> None:
    w = ctx.w
    type = ctx.facts.tensor(op.result)
    dims = [
        integer(known, 32 if known < 1 << 31 else 64) if isinstance(known, int) else ctx.scalar(value)
        for value, known in zip(op.shape, type.dims, strict=True)
    ]
    strides = [
        integer(known, 64) if isinstance(known, int) else w.convert("sext", ctx.scalar(value), "i64")
        for value, known in zip(op.strides, type.strides, strict=True)
    ]
    ctx.values[op.result] = GlobalTensor(type, ctx.scalar(op.pointer), tuple(dims), tuple(strides))


@lowers(ops.Assume)
def lower_assume(ctx: Context, op: ops.Assume) -> None:
    ctx.values[op.result] = ctx.scalar(op.value)


@lowers(ops.Extract)
def lower_extract(ctx: Context, op: ops.Extract) -> None:
    tile = ctx.values[op.tile]
    assert isinstance(tile, Tile)
    if tile.layout.replication != tile.layout.threads:
        raise AssertionError("a tile of one element is held by all threads")
    ctx.values[op.result] = elements_of(ctx.w, tile)[0]
