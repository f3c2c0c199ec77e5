"""Moves tiles between registers, shared and global memory."""

from __future__ import annotations

from typing import Any

from tilus.lang.stub import only_in_kernel
from tilus.lang.types import Barrier, Shared, Tile
from tilus.layout import RegisterLayout


def load(
    source: Any,
    offsets: Any = None,
    shape: Any = None,
    *,
    indices: Any = None,
    mask: Tile | None = None,
    other: Any = None,
    layout: RegisterLayout | None = None,
    cache: str = "",
    checked: Any = True,
) -> Any:
    """Load a tile from global or shared memory into registers.

    `load(tensor, offsets, shape)` takes the tile of `shape` at `offsets` of a tensor in global memory; the tile's
    dimensions are the last ones of the tensor. Without `shape` it gives the one element at `offsets` as a scalar.
    `load(shared)` takes all of a tensor in shared memory. `load(source, indices=(i, j))` gathers the elements at
    index tiles, one for each dimension, which are broadcast together.

    Parameters
    ----------
    source : Tensor or Shared
        Where to load from.
    offsets : int, Scalar or sequence of these, optional
        One offset for each dimension of a tensor in global memory.
    shape : int or sequence of int, optional
        The tile's shape, known at compile time.
    indices : Tile or sequence of Tile, optional
        Integer index tiles, one for each dimension.
    mask : Tile, optional
        A boolean tile: elements where it is false are not read.
    other : number or Scalar, optional
        What elements outside of the tensor, or masked, are; 0 unless given.
    layout : RegisterLayout, optional
        Which thread holds which element; inferred unless given.
    cache : str
        "", "streaming" (leaves the cache first) or "persistent" (leaves it last).
    checked : bool or sequence of bool
        Whether bounds are tested, for all dimensions or for each. False is a promise that the tile lies inside.

    Returns
    -------
    Tile or Scalar
    """
    raise only_in_kernel("tilus.load")


def store(
    target: Any,
    value: Any,
    offsets: Any = None,
    *,
    indices: Any = None,
    mask: Tile | None = None,
    cache: str = "",
    checked: Any = True,
) -> None:
    """Store a tile from registers to global or shared memory.

    `store(tensor, tile, offsets)` stores at `offsets` of a tensor in global memory; elements outside of it are left
    alone. `store(shared, tile)` stores over all of a tensor in shared memory. `store(target, tile, indices=(i, j))`
    scatters the elements to index tiles, one for each dimension.

    Parameters
    ----------
    target : Tensor or Shared
        Where to store.
    value : Tile or Scalar
        Of the target's dtype.
    offsets : int, Scalar or sequence of these, optional
        One offset for each dimension of a tensor in global memory.
    indices : Tile or sequence of Tile, optional
        Integer index tiles, one for each dimension.
    mask : Tile, optional
        A boolean tile: elements where it is false are not stored.
    cache : str
        "", "streaming" (leaves the cache first) or "persistent" (leaves it last).
    checked : bool or sequence of bool
        Whether bounds are tested, for all dimensions or for each. False is a promise that the tile lies inside.
    """
    raise only_in_kernel("tilus.store")


def copy_async(target: Shared, source: Any, offsets: Any, *, cache: str = "", checked: Any = True) -> None:
    """Start copying a tile from global to shared memory; elements outside of the tensor become 0.

    The data is there after `copy_async_commit`, a `copy_async_wait` that covers the group, and, for other threads
    than the one that copied, `sync`.

    Parameters
    ----------
    target : Shared
        Its shape is the tile's.
    source : Tensor
        A tensor in global memory of the same dtype.
    offsets : int, Scalar or sequence of these
        One offset for each dimension of `source`.
    cache : str
        "", "streaming" or "persistent".
    checked : bool or sequence of bool
        Whether bounds are tested, for all dimensions or for each.
    """
    raise only_in_kernel("tilus.copy_async")


def copy_async_commit() -> None:
    """Close the group of the copies that were started since the last call."""
    raise only_in_kernel("tilus.copy_async_commit")


def copy_async_wait(pending: int = 0) -> None:
    """Wait until at most `pending` of the newest groups of copies are unfinished.

    Parameters
    ----------
    pending : int
        Known at compile time.
    """
    raise only_in_kernel("tilus.copy_async_wait")


def copy_bulk(
    target: Shared, source: Any, offsets: Any, barrier: Barrier, *, index: Any = None, multicast: Any = None
) -> None:
    """Start a bulk (TMA) copy of a tile from global to shared memory, which completes on a barrier.

    Parameters
    ----------
    target : Shared
        Its shape is the tile's.
    source : Tensor
        A tensor in global memory of the same dtype, a parameter of the kernel.
    offsets : int, Scalar or sequence of these
        One offset for each dimension of `source`.
    barrier : Barrier
        The barrier that counts the copied bytes.
    index : int or Scalar, optional
        Which barrier of the array.
    multicast : int or Scalar, optional
        A mask of ranks: bit `r` for the block of rank `r` in the cluster. The tile lands in the same place in the
        shared memory of each of these blocks and completes on the barrier in the same place there, where an `arrive`
        of that block announces its bytes.
    """
    raise only_in_kernel("tilus.copy_bulk")


def arrive(barrier: Barrier, *, index: Any = None, bytes: int = 0, rank: Any = None, scope: str = "") -> None:
    """Arrive at a barrier, once for each warp of the current group.

    Parameters
    ----------
    barrier : Barrier
        An array of barriers.
    index : int or Scalar, optional
        Which barrier of the array.
    bytes : int
        Bytes of bulk copies that the phase waits for besides.
    rank : int or Scalar, optional
        Arrive at the barrier that lies in the same place in the block of this rank of the cluster.
    scope : str
        With `rank`, who sees after the wait what was written before: "block" or "cluster". "block" is fast, and
        enough to say that a stage has been read. Unless given it is "cluster" where blocks may read what others
        write: in kernels that use `remote`, or that read and write the same tensor in global memory.
    """
    raise only_in_kernel("tilus.arrive")


def wait(barrier: Barrier, phase: Any, *, index: Any = None) -> None:
    """Wait until the phase of parity `phase` of a barrier is complete.

    Parameters
    ----------
    barrier : Barrier
        An array of barriers.
    phase : int or Scalar
        0 for the first phase, 1 for the second, and so on; only the lowest bit counts. A fresh barrier takes the phase
        before its first, of parity 1, as complete.
    index : int or Scalar, optional
        Which barrier of the array.
    """
    raise only_in_kernel("tilus.wait")


__all__ = [
    "arrive", "copy_async", "copy_async_commit", "copy_async_wait", "copy_bulk", "load", "store", "wait",
]  # fmt: skip
