"""Warpgroup matrix multiplication and bulk stores, for targets that have them (sm_90a)."""

from __future__ import annotations

from typing import Any

from tilus.dtypes import DType
from tilus.lang.stub import only_in_kernel
from tilus.lang.types import Shared, Tile


def dot_async(
    a: Any,
    b: Shared,
    acc: Tile | None = None,
    *,
    out_dtype: DType | None = None,
    over: Tile | None = None,
) -> Tile:
    """Start ``a @ b + acc`` on the tensor cores of whole warpgroups; the result is there after `dot_wait`.

    Each call is one group for `dot_wait`. Until then, the accumulator may only be passed to further `dot_async`.
    Shared memory written by `store` needs `fence("async")` and `sync` before.

    Parameters
    ----------
    a : Tile or Shared, [m, k]
        64 rows, or a multiple, for each 4 warps of the group. Of a tile each warp multiplies the rows that it holds,
        whichever they are, 16 at a time: the result's rows are with the same warps. Until the product is done, the
        tile's registers are in use.
    b : Shared, [k, n]
        ``s.transpose()`` of an [n, k] tensor for an operand that is contiguous along k.
    acc : Tile, [m, n], optional
        What to add to; nothing is added without.
    out_dtype : DType, optional
        Of the accumulator without `acc`: float32, float16 or int32.
    over : Tile, [m, n], optional
        A tile whose registers the product takes, in place of `acc`; nothing is added. It says that no more is needed
        of them, and what is computed with the tile before comes before this product: where a thread has not the
        registers for two products.

    Returns
    -------
    Tile, [m, n]
        In flight.
    """
    raise only_in_kernel("tilus.dot_async")


def dot_wait(*tiles: Tile, pending: int = 0) -> Any:
    """Wait until at most `pending` of the newest `dot_async` are unfinished.

    Parameters
    ----------
    tiles : Tile
        The accumulators that are used after the wait.
    pending : int
        Known at compile time.

    Returns
    -------
    Tile, or tuple of Tile
        The accumulators, ready.
    """
    raise only_in_kernel("tilus.dot_wait")


def store_bulk(target: Any, source: Shared, offsets: Any, *, reduction: str = "") -> None:
    """Start copying a tile from shared to global memory with the tensor memory accelerator.

    Elements outside of the tensor are left alone. What `store` wrote to shared memory needs `fence("async")` and
    `sync` before. Closes with `bulk_commit`, ends with `bulk_wait`.

    Parameters
    ----------
    target : Tensor
        A parameter of the kernel.
    source : Shared
        Of the same dtype.
    offsets : int, Scalar or sequence of these
        One offset for each dimension of `target`.
    reduction : str
        "" to overwrite, or add, min, max, and, or, xor.
    """
    raise only_in_kernel("tilus.store_bulk")


def bulk_commit() -> None:
    """Close the group of the bulk stores that were started since the last call."""
    raise only_in_kernel("tilus.bulk_commit")


def bulk_wait(pending: int = 0, *, read: bool = True) -> None:
    """Wait until at most `pending` of the newest groups of bulk stores are unfinished.

    Parameters
    ----------
    pending : int
        Known at compile time.
    read : bool
        Wait only until shared memory has been read and may be overwritten; False: until all is written.
    """
    raise only_in_kernel("tilus.bulk_wait")
