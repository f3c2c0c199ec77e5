"""Translations of clusters, of the shared memory of other blocks, and of launches that overlap.

A cluster of one block is the block: its rank is 0, and other ranks' memory and barriers are its own.
"""

from __future__ import annotations

from collections.abc import Callable
from math import prod
from typing import TYPE_CHECKING, Any

from tilus.errors import ShapeMismatch
from tilus.ir import Value, ops
from tilus.lang import functions
from tilus.lang.semantics.arithmetic import binary
from tilus.lang.semantics.memory import shared_type
from tilus.lang.semantics.ranks import cluster_of, rank_value
from tilus.lang.semantics.registry import implements
from tilus.lang.semantics.shapes import static_bool, static_int

if TYPE_CHECKING:
    from tilus.lang.frontend.tracer import Tracer


def along_axes(t: Tracer, what: str, axis: object, value: Callable[[int], Any]) -> Any:
    """Return what belongs to an axis, or to all axes that the grid has."""
    cluster_of(t, what)
    if axis is not None:
        if static_int(f"the axis of {what}", axis) not in (0, 1, 2):
            raise ShapeMismatch(f"{what} along axis {axis}", hint="0, 1 or 2 for x, y or z")
        return value(static_int(f"the axis of {what}", axis))
    values = tuple(value(a) for a in range(t.grid_rank))
    return values[0] if t.grid_rank == 1 else values


@implements(functions.cluster_id)
def cluster_id(t: Tracer, axis: Any) -> Any:
    def index(a: int) -> Any:
        return binary(t, "//", t.value(ops.BlockId, a), cluster_of(t, "cluster_id")[a])

    return along_axes(t, "cluster_id", axis, index)


@implements(functions.cluster_dim)
def cluster_dim(t: Tracer, axis: Any) -> Any:
    return along_axes(t, "cluster_dim", axis, lambda a: cluster_of(t, "cluster_dim")[a])


@implements(functions.block_id_in_cluster)
def block_id_in_cluster(t: Tracer, axis: Any) -> Any:
    def index(a: int) -> Any:
        return binary(t, "%", t.value(ops.BlockId, a), cluster_of(t, "block_id_in_cluster")[a])

    return along_axes(t, "block_id_in_cluster", axis, index)


@implements(functions.cluster_rank)
def cluster_rank(t: Tracer) -> Value:
    if prod(cluster_of(t, "cluster_rank")) == 1:
        return t.constant(0)
    return t.value(ops.ClusterRank)


@implements(functions.cluster_mask)
def cluster_mask(t: Tracer, axis: Any) -> Any:
    cluster = cluster_of(t, "cluster_mask")
    if axis is None:
        return (1 << prod(cluster)) - 1

    def line(a: int) -> Any:
        step = prod(cluster[:a])
        mask = sum(1 << step * i for i in range(cluster[a]))
        if cluster[a] == prod(cluster):
            return mask
        # The rank of the line's first block is this block's own, less its steps along the axis.
        steps = binary(t, "*", binary(t, "%", t.value(ops.BlockId, a), cluster[a]), step)
        return binary(t, "<<", mask, binary(t, "-", cluster_rank(t), steps))

    return along_axes(t, "cluster_mask", axis, line)


@implements(functions.cluster_sync)
def cluster_sync(t: Tracer) -> None:
    if prod(cluster_of(t, "cluster_sync")) == 1:
        t.emit(ops.Sync)
    else:
        t.emit(ops.ClusterArrive)
        t.emit(ops.ClusterWait)


@implements(functions.cluster_arrive)
def cluster_arrive(t: Tracer, relaxed: Any) -> None:
    static_bool("relaxed of cluster_arrive", relaxed)
    if prod(cluster_of(t, "cluster_arrive")) > 1:
        t.emit(ops.ClusterArrive, relaxed)


@implements(functions.cluster_wait)
def cluster_wait(t: Tracer) -> None:
    t.emit(ops.Sync if prod(cluster_of(t, "cluster_wait")) == 1 else ops.ClusterWait)


@implements(functions.remote)
def remote(t: Tracer, tensor: Any, rank: Any) -> Value:
    shared_type("remote", tensor)
    which = rank_value(t, "remote", rank)
    return tensor if which is None else t.value(ops.Remote, tensor, which)


@implements(functions.wait_for_previous)
def wait_for_previous(t: Tracer) -> None:
    t.emit(ops.WaitForPrevious)


@implements(functions.launch_next)
def launch_next(t: Tracer) -> None:
    t.emit(ops.LaunchNext)
