"""Makes tiles in registers, tensors in shared memory, tensors of pointers, and barriers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tilus.dtypes import DType, float32, int32
from tilus.lang.stub import only_in_kernel
from tilus.lang.types import Barrier, Shared, Tile
from tilus.layout import RegisterLayout, SharedLayout


def registers(
    dtype: DType, shape: int | Sequence[int], *, fill: Any = 0, layout: RegisterLayout | None = None
) -> Tile:
    """Make a tile in registers.

    Parameters
    ----------
    dtype : DType
        Any dtype of 1 to 64 bits.
    shape : int or sequence of int
        Known at compile time.
    fill : number or Scalar
        The value of each element.
    layout : RegisterLayout, optional
        Which thread holds which element; inferred unless given.

    Returns
    -------
    Tile
    """
    raise only_in_kernel("tilus.registers")


def zeros(
    shape: int | Sequence[int], dtype: DType = float32, *, layout: RegisterLayout | None = None
) -> Tile:
    """Make a tile of zeros in registers.

    Parameters
    ----------
    shape : int or sequence of int
        Known at compile time.
    dtype : DType
        float32 unless given.
    layout : RegisterLayout, optional
        Which thread holds which element; inferred unless given.

    Returns
    -------
    Tile
    """
    raise only_in_kernel("tilus.zeros")


def zeros_like(x: Any) -> Tile:
    """Make a tile of zeros of another one's shape and dtype.

    Parameters
    ----------
    x : Tile

    Returns
    -------
    Tile
    """
    raise only_in_kernel("tilus.zeros_like")


def full(
    shape: int | Sequence[int], fill: Any, dtype: DType | None = None, *, layout: RegisterLayout | None = None
) -> Tile:
    """Make a tile whose elements are all one number.

    Parameters
    ----------
    shape : int or sequence of int
        Known at compile time.
    fill : number or Scalar
        The value of each element.
    dtype : DType, optional
        The dtype of `fill` unless given: int32 for an int, float32 for a float, boolean for a bool.
    layout : RegisterLayout, optional
        Which thread holds which element; inferred unless given.

    Returns
    -------
    Tile
    """
    raise only_in_kernel("tilus.full")


def arange(
    start: Any, stop: Any = None, *, dtype: DType = int32, layout: RegisterLayout | None = None
) -> Tile:
    """Make the tile `[start, start + 1, ..., stop - 1]` of one dimension; `arange(n)` starts at 0.

    Parameters
    ----------
    start, stop : int
        Bounds as for `range`, known at compile time.
    dtype : DType
        An integer dtype; int32 unless given.
    layout : RegisterLayout, optional
        Which thread holds which element; inferred unless given.

    Returns
    -------
    Tile
    """
    raise only_in_kernel("tilus.arange")


def iota(
    shape: int | Sequence[int], axis: int = 0, *, dtype: DType = int32, layout: RegisterLayout | None = None
) -> Tile:
    """Make a tile whose elements are their own index along an axis.

    Parameters
    ----------
    shape : int or sequence of int
        Known at compile time.
    axis : int
        The axis whose index is taken.
    dtype : DType
        An integer dtype; int32 unless given.
    layout : RegisterLayout, optional
        Which thread holds which element; inferred unless given.

    Returns
    -------
    Tile
    """
    raise only_in_kernel("tilus.iota")


def shared(dtype: DType, shape: int | Sequence[int], *, layout: SharedLayout | None = None) -> Shared:
    """Make a tensor in shared memory; what it holds at first is undefined.

    Parameters
    ----------
    dtype : DType
        Any dtype of 1 to 64 bits.
    shape : int or sequence of int
        Known at compile time.
    layout : SharedLayout, optional
        Where each element lies; chosen to be free of bank conflicts unless given. A layout of one dimension less
        than `shape` is that of each stage.

    Returns
    -------
    Shared
    """
    raise only_in_kernel("tilus.shared")


def view(
    source: Any,
    dtype: DType,
    shape: Any = None,
    strides: Any = None,
    *,
    layout: RegisterLayout | None = None,
) -> Any:
    """See a pointer as a tensor in global memory, or a tile's bits as another dtype, shape and layout.

    With a layout, the bits of a tile are, for each thread, the little-endian concatenation of the elements that it
    holds, in the layout that was said for the tile; seeing them otherwise costs nothing. Without one, they are those of
    each row in memory, as NumPy has it: 8 numbers of 4 bits are 4 bytes, whichever threads hold them.

    Parameters
    ----------
    source : Pointer or Tile
        What is seen in another way.
    dtype : DType
        The dtype of the result.
    shape : sequence of int or Scalar, optional
        For a pointer, the extents. For a tile, known at compile time; unless given, the last dimension grows or
        shrinks with the width of the dtype.
    strides : sequence of int or Scalar, optional
        For a pointer, in elements; row-major unless given.
    layout : RegisterLayout, optional
        For a tile, the layout of the result.

    Returns
    -------
    Tensor or Tile
    """
    raise only_in_kernel("tilus.view")


def barrier(count: int = 1, *, arrivals: int = 1) -> Barrier:
    """Make an array of mbarriers in shared memory.

    Parameters
    ----------
    count : int
        How many barriers.
    arrivals : int
        Arrivals that complete a phase.

    Returns
    -------
    Barrier
    """
    raise only_in_kernel("tilus.barrier")


__all__ = ["arange", "barrier", "full", "iota", "registers", "shared", "view", "zeros"]
