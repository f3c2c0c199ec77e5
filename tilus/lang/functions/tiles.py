"""Shapes, products, reductions and scans of tiles."""

from __future__ import annotations

import builtins
from collections.abc import Iterable, Sequence
from typing import Any

from tilus.dtypes import DType
from tilus.lang.stub import only_in_kernel
from tilus.lang.types import Tile
from tilus.layout import RegisterLayout


def dot(a: Tile, b: Tile, acc: Tile | None = None, *, out_dtype: DType | None = None) -> Tile:
    """Multiply matrices on tensor cores: `a @ b + acc`.

    Parameters
    ----------
    a : Tile
        [m, k], of float16, bfloat16, tfloat32, float64, float8_e4m3, float8_e5m2, int8 or uint8.
    b : Tile
        [k, n], of the same dtype; int8 and uint8 go together, and so do both float8 types.
    acc : Tile, optional
        [m, n], of the accumulator's dtype; zero unless given.
    out_dtype : DType, optional
        The accumulator's dtype where there is no `acc`: unless given, float64 for float64, int32 for integers, else
        float32.

    Returns
    -------
    Tile
        [m, n].
    """
    raise only_in_kernel("tilus.dot")


def broadcast_to(x: Any, shape: int | Sequence[int]) -> Tile:
    """Repeat a tile or a scalar to a shape, as NumPy does.

    Parameters
    ----------
    x : Tile, Scalar or number
        What to repeat.
    shape : int or sequence of int
        Known at compile time.

    Returns
    -------
    Tile
    """
    raise only_in_kernel("tilus.broadcast_to")


def expand_dims(x: Tile, axis: int) -> Tile:
    """Insert a dimension of size 1; `x[:, None]` does the same.

    Parameters
    ----------
    x : Tile
    axis : int
        Where the new dimension is in the result.

    Returns
    -------
    Tile
    """
    raise only_in_kernel("tilus.expand_dims")


def squeeze(x: Tile, axis: int) -> Tile:
    """Remove a dimension of size 1.

    Parameters
    ----------
    x : Tile
    axis : int
        Which dimension.

    Returns
    -------
    Tile
    """
    raise only_in_kernel("tilus.squeeze")


def reshape(x: Any, shape: int | Sequence[int]) -> Any:
    """Return the elements of a tile, or of a tensor in shared memory (where no data moves), under another shape.

    Parameters
    ----------
    x : Tile or Shared
        Elements keep their row-major order.
    shape : int or sequence of int
        Known at compile time; one extent may be -1.

    Returns
    -------
    Tile or Shared
    """
    raise only_in_kernel("tilus.reshape")


def transpose(x: Any, perm: Sequence[int] | None = None) -> Any:
    """Permute the dimensions of a tile, or of a tensor in shared memory (where no data moves).

    Parameters
    ----------
    x : Tile or Shared
    perm : sequence of int, optional
        Dimension `i` of the result is `perm[i]` of `x`; reversed unless given.

    Returns
    -------
    Tile or Shared
    """
    raise only_in_kernel("tilus.transpose")


def concat(parts: Sequence[Tile], axis: int = 0) -> Tile:
    """Join tiles of one dtype and shape along an axis.

    Parameters
    ----------
    parts : sequence of Tile
    axis : int
        Which dimension grows.

    Returns
    -------
    Tile
    """
    raise only_in_kernel("tilus.concat")


def annotate_layout(x: Tile, layout: RegisterLayout) -> Tile:
    """Say which thread holds which element of a tile; use the result.

    Parameters
    ----------
    x : Tile
    layout : RegisterLayout
        Of the tile's shape.

    Returns
    -------
    Tile
    """
    raise only_in_kernel("tilus.annotate_layout")


def item(x: Tile) -> Any:
    """Return the only element of a tile as a scalar.

    Parameters
    ----------
    x : Tile
        Of one element.

    Returns
    -------
    Scalar
    """
    raise only_in_kernel("tilus.item")


def sum(x: Any, axis: int | None = None, keepdims: bool = False) -> Any:
    """Sum a tile along an axis, or all of it; or sum a list of values, as Python's own `sum` does.

    Parameters
    ----------
    x : Tile
        Of 16 bits or more; its dtype is that of the sum.
    axis : int, optional
        Which dimension; all unless given.
    keepdims : bool
        Whether the dimension stays, with size 1.

    Returns
    -------
    Tile or Scalar
        A scalar where no dimension is left.
    """
    if is_plain(x):
        return builtins.sum(x)
    raise only_in_kernel("tilus.sum")


def max(x: Any, *others: Any, axis: int | None = None, keepdims: bool = False) -> Any:
    """Return the maximum of a tile along an axis, or the largest of several values, element by element.

    Parameters
    ----------
    x : Tile, Scalar or number
    *others : Tile, Scalar or number
        With them, `max(a, b)` is `maximum(a, b)`.
    axis : int, optional
        Which dimension of `x`; all unless given.
    keepdims : bool
        Whether the dimension stays, with size 1.

    Returns
    -------
    Tile, Scalar or number
    """
    if others and all_numbers(x, *others):
        return builtins.max(x, *others)
    if not others and is_plain(x):
        return builtins.max(x)
    raise only_in_kernel("tilus.max of run-time values")


def min(x: Any, *others: Any, axis: int | None = None, keepdims: bool = False) -> Any:
    """Return the minimum of a tile along an axis, or the smallest of several values, element by element.

    Parameters
    ----------
    x : Tile, Scalar or number
    *others : Tile, Scalar or number
        With them, `min(a, b)` is `minimum(a, b)`.
    axis : int, optional
        Which dimension of `x`; all unless given.
    keepdims : bool
        Whether the dimension stays, with size 1.

    Returns
    -------
    Tile, Scalar or number
    """
    if others and all_numbers(x, *others):
        return builtins.min(x, *others)
    if not others and is_plain(x):
        return builtins.min(x)
    raise only_in_kernel("tilus.min of run-time values")


def is_plain(value: Any) -> bool:
    """Tell whether a value is a Python sequence, so that `from tilus import *` leaves Python's functions usable."""
    return isinstance(value, Iterable) and not isinstance(value, Tile)


def all_numbers(*values: Any) -> bool:
    """Tell whether all values are Python numbers."""
    return builtins.all(isinstance(value, (int, float)) for value in values)


def any(x: Any, axis: int | None = None, keepdims: bool = False) -> Any:
    """Tell whether any element of a boolean tile is true, along an axis or of all.

    Parameters
    ----------
    x : Tile
        boolean.
    axis : int, optional
        Which dimension; all unless given.
    keepdims : bool
        Whether the dimension stays, with size 1.

    Returns
    -------
    Tile or Scalar
    """
    if is_plain(x):
        return builtins.any(x)
    raise only_in_kernel("tilus.any")


def all(x: Any, axis: int | None = None, keepdims: bool = False) -> Any:
    """Tell whether all elements of a boolean tile are true, along an axis or of all.

    Parameters
    ----------
    x : Tile
        boolean.
    axis : int, optional
        Which dimension; all unless given.
    keepdims : bool
        Whether the dimension stays, with size 1.

    Returns
    -------
    Tile or Scalar
    """
    if is_plain(x):
        return builtins.all(x)
    raise only_in_kernel("tilus.all")


def argmax(x: Tile, axis: int | None = None, keepdims: bool = False) -> Any:
    """Return the index of the first largest element along an axis.

    Parameters
    ----------
    x : Tile
    axis : int, optional
        Which dimension; may be left out for a tile of one dimension.
    keepdims : bool
        Whether the dimension stays, with size 1.

    Returns
    -------
    Tile or Scalar
        int32.
    """
    raise only_in_kernel("tilus.argmax")


def argmin(x: Tile, axis: int | None = None, keepdims: bool = False) -> Any:
    """Return the index of the first smallest element along an axis.

    Parameters
    ----------
    x : Tile
    axis : int, optional
        Which dimension; may be left out for a tile of one dimension.
    keepdims : bool
        Whether the dimension stays, with size 1.

    Returns
    -------
    Tile or Scalar
        int32.
    """
    raise only_in_kernel("tilus.argmin")


def reduce(x: Any, axis: int, kind: Any, keepdims: bool = False) -> Any:
    """Combine all elements along an axis.

    Parameters
    ----------
    x : Tile, or tuple of Tile
        Several tiles of one shape only with a function.
    axis : int
        Which dimension.
    kind : str or inline function
        "sum", "prod", "max", "min", "and", "or", "xor", "any", "all", "argmax" or "argmin"; or an associative function
        of two tiles, of which the first comes before the second, or of two tuples of tiles.
    keepdims : bool
        Whether the dimension stays, with size 1.

    Returns
    -------
    Tile or Scalar, or tuple of these
    """
    raise only_in_kernel("tilus.reduce")


def prod(x: Tile, axis: int | None = None, keepdims: bool = False) -> Any:
    """Multiply the elements of a tile along an axis, or all of them.

    Parameters
    ----------
    x : Tile
        Of 16 bits or more; its dtype is that of the product.
    axis : int, optional
        Which dimension; all unless given.
    keepdims : bool
        Whether the dimension stays, with size 1.

    Returns
    -------
    Tile or Scalar
    """
    raise only_in_kernel("tilus.prod")


def softmax(x: Tile, axis: int = -1) -> Tile:
    """Return ``exp(x) / sum(exp(x))`` along an axis, without overflow.

    Parameters
    ----------
    x : Tile
        A float.
    axis : int
        Which dimension.

    Returns
    -------
    Tile
    """
    raise only_in_kernel("tilus.softmax")


def gather(x: Tile, indices: Tile, axis: int = -1) -> Tile:
    """Take elements of a tile by their index along an axis, through shared memory.

    Parameters
    ----------
    x : Tile
    indices : Tile
        Integers; of x's shape but for the axis. An index that is not in the tile gives 0.
    axis : int
        Which dimension.

    Returns
    -------
    Tile
        Of the shape of `indices`.
    """
    raise only_in_kernel("tilus.gather")


def scan(x: Any, axis: int, kind: Any, *, exclusive: bool = False) -> Any:
    """Combine each element with all before it along an axis.

    Parameters
    ----------
    x : Tile, or tuple of Tile
        Several tiles of one shape only with a function.
    axis : int
        Which dimension.
    kind : str or inline function
        "sum", "prod", "max", "min", "and", "or" or "xor"; or an associative function of two tiles, of which the first
        comes before the second, or of two tuples of tiles.
    exclusive : bool
        Whether the element itself is left out; not with a function.

    Returns
    -------
    Tile, or tuple of Tile
    """
    raise only_in_kernel("tilus.scan")


def cumsum(x: Tile, axis: int) -> Tile:
    """Return the running sum along an axis.

    Parameters
    ----------
    x : Tile
    axis : int
        Which dimension.

    Returns
    -------
    Tile
    """
    raise only_in_kernel("tilus.cumsum")


def cumprod(x: Tile, axis: int) -> Tile:
    """Return the running product along an axis.

    Parameters
    ----------
    x : Tile
    axis : int
        Which dimension.

    Returns
    -------
    Tile
    """
    raise only_in_kernel("tilus.cumprod")


__all__ = [
    "all", "annotate_layout", "any", "argmax", "argmin", "broadcast_to", "concat", "cumprod", "cumsum", "dot",
    "expand_dims", "gather", "item", "max", "min", "prod", "reduce", "reshape", "scan", "softmax", "squeeze", "sum",
    "transpose",
]  # fmt: skip
