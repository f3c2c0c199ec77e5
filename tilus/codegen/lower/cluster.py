"""Lowering of clusters: their barrier, the shared memory of other blocks, and launches that overlap."""

from __future__ import annotations

from dataclasses import replace

from tilus.codegen.llvm_text import SHARED, V
from tilus.codegen.lower.context import Context, lowers, require
from tilus.ir import ops
from tilus.ir.core import Value


def rank_of(ctx: Context, rank: Value) -> V:
    """Return the rank of a block as an i32."""
    return ctx.w.convert("trunc", ctx.scalar(rank), "i32")


def in_block(ctx: Context, address: V, rank: Value) -> V:
    """Return the address, in the cluster's shared memory, of what lies at an own shared address in another block."""
    return ctx.w.asm("i32", "mapa.shared::cluster.u32 $0, $1, $2;", "=r,r,r", address, rank_of(ctx, rank))


@lowers(ops.Remote)
def lower_remote(ctx: Context, op: ops.Remote) -> None:
    require(ctx, "cluster", "shared memory of other blocks", "use global memory")
    w = ctx.w
    tensor = ctx.shared(op.tensor)
    address = in_block(ctx, w.convert("ptrtoint", tensor.base, "i32"), op.rank)
    # A pointer for its arithmetic alone: what lies there is accessed as shared::cluster, by its address.
    base = w.convert("inttoptr", address, SHARED)
    ctx.values[op.result] = replace(tensor, base=base, remote=True, unit=None)


@lowers(ops.ClusterArrive)
def lower_cluster_arrive(ctx: Context, op: ops.ClusterArrive) -> None:
    require(ctx, "cluster", "thread-block clusters", "leave out cluster=")
    order = "relaxed" if op.relaxed else "release"
    text = f"barrier.cluster.arrive.{order}.aligned;"
    ctx.w.asm("void", text, "~{memory}", effects=True, convergent=True)


@lowers(ops.ClusterWait)
def lower_cluster_wait(ctx: Context, op: ops.ClusterWait) -> None:
    require(ctx, "cluster", "thread-block clusters", "leave out cluster=")
    text = "barrier.cluster.wait.acquire.aligned;"
    ctx.w.asm("void", text, "~{memory}", effects=True, convergent=True)


@lowers(ops.WaitForPrevious)
def lower_wait_for_previous(ctx: Context, op: ops.WaitForPrevious) -> None:
    # Elsewhere launches follow one another in any case.
    if ctx.target.has("dependent_launch"):
        ctx.w.asm("void", "griddepcontrol.wait;", "~{memory}", effects=True)


@lowers(ops.LaunchNext)
def lower_launch_next(ctx: Context, op: ops.LaunchNext) -> None:
    if ctx.target.has("dependent_launch"):
        ctx.w.asm("void", "griddepcontrol.launch_dependents;", "~{memory}", effects=True)
