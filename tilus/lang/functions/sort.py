"""Order: sorting, the largest elements, and the same elements the other way round."""

from __future__ import annotations

from typing import Any

from tilus.lang.stub import only_in_kernel
from tilus.lang.types import Tile


def sort(x: Tile, axis: int = -1, *, descending: bool = False) -> Tile:
    """Sort along an axis, NaN as the largest.

    A bitonic network in registers: what threads of a warp exchange goes by shuffles, what warps exchange through shared
    memory. It is best at extents that are powers of two; others are filled up.

    Parameters
    ----------
    x : Tile
        Of numbers or booleans.
    axis : int
        Which dimension.
    descending : bool
        Whether the largest comes first.

    Returns
    -------
    Tile
    """
    raise only_in_kernel("tilus.sort")


def argsort(x: Tile, axis: int = -1, *, descending: bool = False) -> Tile:
    """Return which element comes first, second and so on along an axis, NaN as the largest.

    Parameters
    ----------
    x : Tile
        Of numbers or booleans of 32 bits at most.
    axis : int
        Which dimension, of up to 65536 elements.
    descending : bool
        Whether the largest comes first.

    Returns
    -------
    Tile
        int32. Of equal elements the one with the lower index comes first.
    """
    raise only_in_kernel("tilus.argsort")


def topk(x: Tile, k: int, axis: int = -1, *, largest: bool = True) -> tuple[Any, Any]:
    """Return the `k` largest elements along an axis, and where they are, NaN as the largest.

    Parameters
    ----------
    x : Tile
        Of numbers or booleans of 32 bits at most.
    k : int
        Known at compile time.
    axis : int
        Which dimension, of up to 65536 elements.
    largest : bool
        Whether the largest elements are wanted, or the smallest.

    Returns
    -------
    values : Tile
        The largest first; zeros have the sign of +0.
    indices : Tile
        int32. Of equal elements the one with the lower index comes first.
    """
    raise only_in_kernel("tilus.topk")


def flip(x: Tile, axis: int = -1) -> Tile:
    """Return the elements in the opposite order along an axis.

    Parameters
    ----------
    x : Tile
    axis : int
        Which dimension.

    Returns
    -------
    Tile
    """
    raise only_in_kernel("tilus.flip")


__all__ = ["argsort", "flip", "sort", "topk"]
