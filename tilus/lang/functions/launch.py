"""The grid, the place of a thread block in it, groups of warps, barriers, and the loops that a kernel may write."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Any, TypeVar

from tilus.lang.stub import only_in_kernel

_T = TypeVar("_T")


def grid(*extents: Any, warps: int = 4, cluster: int | Sequence[int] | None = None) -> None:
    """Say how many thread blocks a launch has, and how many warps a block has.

    A kernel calls it once, at its top level. The extents are computed on the host, from shapes and strides of
    parameters, scalar parameters and compile-time values, by `+ - * // %`, `cdiv`, `min` and `max`.

    Parameters
    ----------
    *extents : int or Scalar
        One to three extents: along x, y and z.
    warps : int
        Warps of 32 threads in a thread block, 1 to 32.
    cluster : int or sequence of int, optional
        Thread blocks in a cluster, along x, y and z; the extents of the grid are multiples of these. 16 together at
        most, and 8 on every device that has clusters.
    """
    raise only_in_kernel("tilus.grid")


def block_id(axis: int | None = None) -> Any:
    """Return the index of the thread block in the grid.

    Parameters
    ----------
    axis : int, optional
        0, 1 or 2 for x, y or z.

    Returns
    -------
    Scalar or tuple of Scalar
        int32. Without `axis`, as many as `grid` was given extents: a scalar for one, else a tuple.
    """
    raise only_in_kernel("tilus.block_id")


def grid_dim(axis: int | None = None) -> Any:
    """Return the number of thread blocks along an axis of the grid, or along all of them as `block_id` does.

    Parameters
    ----------
    axis : int, optional
        0, 1 or 2 for x, y or z.

    Returns
    -------
    Scalar or tuple of Scalar
    """
    raise only_in_kernel("tilus.grid_dim")


def warps(first: int, count: int, *, registers: int = 0) -> AbstractContextManager[None]:
    """Restrict a `with` block to some warps of the thread block.

    Tiles made inside are held by those warps alone. Values pass between groups of warps through memory, so a name
    assigned inside has no value after the block.

    Parameters
    ----------
    first : int
        The first warp, known at compile time.
    count : int
        How many warps.
    registers : int, optional
        Registers for each thread of these warps; 0 leaves the number to the assembler.
    """
    raise only_in_kernel("tilus.warps")


def sync() -> None:
    """Wait until all threads of the current group of warps (outside of `warps`, the thread block) are here."""
    raise only_in_kernel("tilus.sync")


def fence(kind: str = "device") -> None:
    """Order the memory accesses before it with those after it.

    Parameters
    ----------
    kind : str
        Who sees the order: "block", "device" or "system"; or "async", which orders ordinary accesses to shared
        memory with those of asynchronous copies and tensor cores.
    """
    raise only_in_kernel("tilus.fence")


def static_range(start: int, stop: int | None = None, step: int = 1) -> range:
    """Return a range over which a `for` loop is unrolled at compile time; its index is a Python int.

    Parameters
    ----------
    start, stop, step : int
        As for `range`, all known at compile time.

    Returns
    -------
    range
    """
    return range(start) if stop is None else range(start, stop, step)


def pipeline(loop: _T, *, stages: int) -> _T:
    """Ask that the copies from global memory in a loop run ahead of their use.

    A loop that may write to what it copies from is refused.

    Parameters
    ----------
    loop : range
        `range(...)` of a `for` loop.
    stages : int
        Tiles in flight, 2 or more.

    Returns
    -------
    range
    """
    raise only_in_kernel("tilus.pipeline")


def unroll(loop: _T, factor: int | None = None) -> _T:
    """Ask that a loop is unrolled by the compiler; its index stays a run-time value.

    Parameters
    ----------
    loop : range
        `range(...)` of a `for` loop.
    factor : int, optional
        Copies of the body in a turn; the turns that are left have a loop of their own. A body with `break` or
        `continue` is not copied. Unless given, the loop is unrolled in full, and its bounds are known at compile time.

    Returns
    -------
    range
    """
    raise only_in_kernel("tilus.unroll")


__all__ = [
    "block_id", "fence", "grid", "grid_dim", "pipeline", "static_range", "sync", "unroll", "warps",
]  # fmt: skip
