"""Clusters of thread blocks, the shared memory of their blocks, and launches that overlap (sm_90a and later).

A kernel has clusters if its grid says `cluster=`. With one block in each, all of this means the block alone, so that
the same source runs without clusters.
"""

from __future__ import annotations

from typing import Any

from tilus.lang.stub import only_in_kernel
from tilus.lang.types import Shared


def cluster_id(axis: int | None = None) -> Any:
    """Return the index of the cluster among those of the grid.

    Parameters
    ----------
    axis : int, optional
        0, 1 or 2 for x, y or z.

    Returns
    -------
    Scalar or tuple of Scalar
        int32. Without `axis`, as many as `grid` was given extents: a scalar for one, else a tuple.
    """
    raise only_in_kernel("tilus.cluster_id")


def cluster_dim(axis: int | None = None) -> Any:
    """Return the number of thread blocks of a cluster along an axis, or along all of them as `cluster_id` does.

    Parameters
    ----------
    axis : int, optional
        0, 1 or 2 for x, y or z.

    Returns
    -------
    int or tuple of int
        Known at compile time.
    """
    raise only_in_kernel("tilus.cluster_dim")


def block_id_in_cluster(axis: int | None = None) -> Any:
    """Return the index of the thread block in its cluster.

    Parameters
    ----------
    axis : int, optional
        0, 1 or 2 for x, y or z.

    Returns
    -------
    Scalar or tuple of Scalar
        int32. Without `axis`, as many as `grid` was given extents: a scalar for one, else a tuple.
    """
    raise only_in_kernel("tilus.block_id_in_cluster")


def cluster_rank() -> Any:
    """Return the rank of the thread block in its cluster: its number, counted along x first, then y and z.

    Returns
    -------
    Scalar
        int32.
    """
    raise only_in_kernel("tilus.cluster_rank")


def cluster_mask(axis: int | None = None) -> Any:
    """Return the mask, for `copy_bulk`, of the blocks of the cluster that differ from this one along an axis alone.

    Parameters
    ----------
    axis : int, optional
        0, 1 or 2 for x, y or z; all blocks of the cluster unless given.

    Returns
    -------
    int or Scalar
        Bit `r` is set for the block of rank `r`, this one's too. Known at compile time if it is that of all blocks.
    """
    raise only_in_kernel("tilus.cluster_mask")


def cluster_sync() -> None:
    """Wait until all threads of all blocks of the cluster are here; what they did before is seen after.

    Inside of `warps`, the threads of other warps must come to a `cluster_sync` of their own, or end.
    """
    raise only_in_kernel("tilus.cluster_sync")


def cluster_arrive(*, relaxed: bool = False) -> None:
    """Say that the thread block is here, without waiting; `cluster_wait` waits for the other blocks.

    Parameters
    ----------
    relaxed : bool
        Only say it: what was done before need not be seen by other blocks after their `cluster_wait`.
    """
    raise only_in_kernel("tilus.cluster_arrive")


def cluster_wait() -> None:
    """Wait until all blocks of the cluster have come to their last `cluster_arrive`."""
    raise only_in_kernel("tilus.cluster_wait")


def remote(tensor: Shared, rank: Any) -> Shared:
    """Return the tensor that lies where `tensor` does, in the shared memory of another block of the cluster.

    `load`, `store` and atomic updates take it. What other blocks stored is there after `cluster_sync`, and they may
    store again after another one.

    Parameters
    ----------
    tensor : Shared
        A tensor in the block's own shared memory, or a part of one.
    rank : int or Scalar
        Which block, by its `cluster_rank`; the own rank is allowed.

    Returns
    -------
    Shared
    """
    raise only_in_kernel("tilus.remote")


def wait_for_previous() -> None:
    """Wait until the kernel before this one in the stream has ended, and see what it wrote.

    A kernel that calls it is launched while the one before still runs, if that one allows it by `launch_next`. Call
    it before the first access to memory that the kernel before writes, and before the first store to memory that
    the kernel before uses; in each group of warps that accesses such memory.
    """
    raise only_in_kernel("tilus.wait_for_previous")


def launch_next() -> None:
    """Allow the next kernel in the stream to start, once all blocks have called this or ended.

    It starts early only if it calls `wait_for_previous`, which still waits for the end of this one. The best place is
    where the block has no more large pieces of work to start.
    """
    raise only_in_kernel("tilus.launch_next")


__all__ = [
    "block_id_in_cluster", "cluster_arrive", "cluster_dim", "cluster_id", "cluster_mask", "cluster_rank",
    "cluster_sync", "cluster_wait", "launch_next", "remote", "wait_for_previous",
]  # fmt: skip
