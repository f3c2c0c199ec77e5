"""Atomic updates of global and shared memory."""

from __future__ import annotations

from typing import Any

from tilus.lang.stub import only_in_kernel
from tilus.lang.types import Tile


def histogram(x: Tile, bins: int, mask: Tile | None = None) -> Tile:
    """Count how often each number from 0 to `bins` - 1 stands in a tile, by atomic updates of shared memory.

    Parameters
    ----------
    x : Tile
        Integers; others than those are not counted.
    bins : int
        Known at compile time.
    mask : Tile, optional
        A boolean tile: elements where it is false are not counted.

    Returns
    -------
    Tile
        int32, of shape [bins].
    """
    raise only_in_kernel("tilus.histogram")


def atomic_add(
    target: Any,
    value: Any,
    offsets: Any = None,
    *,
    indices: Any = None,
    mask: Tile | None = None,
    order: str = "relaxed",
    scope: str = "device",
) -> Any:
    """Add to each element: integers of 32 and 64 bits, float16, bfloat16, float32 and float64.

    Parameters
    ----------
    target : Tensor or Shared
        What is updated.
    value : Tile, Scalar or number
        One operand for each element.
    offsets : int, Scalar or sequence of these, optional
        Where the tile `value` lies in `target`, as for `store`.
    indices : Tile or sequence of Tile, optional
        Integer index tiles, one for each dimension.
    mask : Tile, optional
        A boolean tile: elements where it is false are left alone.
    order : str
        "relaxed", "acquire", "release" or "acq_rel".
    scope : str
        Who sees the update as one step: "block", "cluster", "device" or "system".

    Returns
    -------
    Tile or Scalar
        The old values.
    """
    raise only_in_kernel("tilus.atomic_add")


def atomic_min(
    target: Any,
    value: Any,
    offsets: Any = None,
    *,
    indices: Any = None,
    mask: Tile | None = None,
    order: str = "relaxed",
    scope: str = "device",
) -> Any:
    """Replace each element by the smaller of it and the operand: integers of 32 and 64 bits.

    Parameters
    ----------
    target : Tensor or Shared
        What is updated.
    value : Tile, Scalar or number
        One operand for each element.
    offsets : int, Scalar or sequence of these, optional
        Where the tile `value` lies in `target`, as for `store`.
    indices : Tile or sequence of Tile, optional
        Integer index tiles, one for each dimension.
    mask : Tile, optional
        A boolean tile: elements where it is false are left alone.
    order : str
        "relaxed", "acquire", "release" or "acq_rel".
    scope : str
        Who sees the update as one step: "block", "cluster", "device" or "system".

    Returns
    -------
    Tile or Scalar
        The old values.
    """
    raise only_in_kernel("tilus.atomic_min")


def atomic_max(
    target: Any,
    value: Any,
    offsets: Any = None,
    *,
    indices: Any = None,
    mask: Tile | None = None,
    order: str = "relaxed",
    scope: str = "device",
) -> Any:
    """Replace each element by the larger of it and the operand: integers of 32 and 64 bits.

    Parameters
    ----------
    target : Tensor or Shared
        What is updated.
    value : Tile, Scalar or number
        One operand for each element.
    offsets : int, Scalar or sequence of these, optional
        Where the tile `value` lies in `target`, as for `store`.
    indices : Tile or sequence of Tile, optional
        Integer index tiles, one for each dimension.
    mask : Tile, optional
        A boolean tile: elements where it is false are left alone.
    order : str
        "relaxed", "acquire", "release" or "acq_rel".
    scope : str
        Who sees the update as one step: "block", "cluster", "device" or "system".

    Returns
    -------
    Tile or Scalar
        The old values.
    """
    raise only_in_kernel("tilus.atomic_max")


def atomic_and(
    target: Any,
    value: Any,
    offsets: Any = None,
    *,
    indices: Any = None,
    mask: Tile | None = None,
    order: str = "relaxed",
    scope: str = "device",
) -> Any:
    """Combine the bits of each element and the operand by and: integers of 32 and 64 bits.

    Parameters
    ----------
    target : Tensor or Shared
        What is updated.
    value : Tile, Scalar or number
        One operand for each element.
    offsets : int, Scalar or sequence of these, optional
        Where the tile `value` lies in `target`, as for `store`.
    indices : Tile or sequence of Tile, optional
        Integer index tiles, one for each dimension.
    mask : Tile, optional
        A boolean tile: elements where it is false are left alone.
    order : str
        "relaxed", "acquire", "release" or "acq_rel".
    scope : str
        Who sees the update as one step: "block", "cluster", "device" or "system".

    Returns
    -------
    Tile or Scalar
        The old values.
    """
    raise only_in_kernel("tilus.atomic_and")


def atomic_or(
    target: Any,
    value: Any,
    offsets: Any = None,
    *,
    indices: Any = None,
    mask: Tile | None = None,
    order: str = "relaxed",
    scope: str = "device",
) -> Any:
    """Combine the bits of each element and the operand by or: integers of 32 and 64 bits.

    Parameters
    ----------
    target : Tensor or Shared
        What is updated.
    value : Tile, Scalar or number
        One operand for each element.
    offsets : int, Scalar or sequence of these, optional
        Where the tile `value` lies in `target`, as for `store`.
    indices : Tile or sequence of Tile, optional
        Integer index tiles, one for each dimension.
    mask : Tile, optional
        A boolean tile: elements where it is false are left alone.
    order : str
        "relaxed", "acquire", "release" or "acq_rel".
    scope : str
        Who sees the update as one step: "block", "cluster", "device" or "system".

    Returns
    -------
    Tile or Scalar
        The old values.
    """
    raise only_in_kernel("tilus.atomic_or")


def atomic_xor(
    target: Any,
    value: Any,
    offsets: Any = None,
    *,
    indices: Any = None,
    mask: Tile | None = None,
    order: str = "relaxed",
    scope: str = "device",
) -> Any:
    """Combine the bits of each element and the operand by exclusive or: integers of 32 and 64 bits.

    Parameters
    ----------
    target : Tensor or Shared
        What is updated.
    value : Tile, Scalar or number
        One operand for each element.
    offsets : int, Scalar or sequence of these, optional
        Where the tile `value` lies in `target`, as for `store`.
    indices : Tile or sequence of Tile, optional
        Integer index tiles, one for each dimension.
    mask : Tile, optional
        A boolean tile: elements where it is false are left alone.
    order : str
        "relaxed", "acquire", "release" or "acq_rel".
    scope : str
        Who sees the update as one step: "block", "cluster", "device" or "system".

    Returns
    -------
    Tile or Scalar
        The old values.
    """
    raise only_in_kernel("tilus.atomic_xor")


def atomic_exch(
    target: Any,
    value: Any,
    offsets: Any = None,
    *,
    indices: Any = None,
    mask: Tile | None = None,
    order: str = "relaxed",
    scope: str = "device",
) -> Any:
    """Replace each element: dtypes of 32 and 64 bits.

    Parameters
    ----------
    target : Tensor or Shared
        What is updated.
    value : Tile, Scalar or number
        One operand for each element.
    offsets : int, Scalar or sequence of these, optional
        Where the tile `value` lies in `target`, as for `store`.
    indices : Tile or sequence of Tile, optional
        Integer index tiles, one for each dimension.
    mask : Tile, optional
        A boolean tile: elements where it is false are left alone.
    order : str
        "relaxed", "acquire", "release" or "acq_rel".
    scope : str
        Who sees the update as one step: "block", "cluster", "device" or "system".

    Returns
    -------
    Tile or Scalar
        The old values.
    """
    raise only_in_kernel("tilus.atomic_exch")


def atomic_cas(
    target: Any,
    compare: Any,
    value: Any,
    offsets: Any = None,
    *,
    indices: Any = None,
    mask: Tile | None = None,
    order: str = "relaxed",
    scope: str = "device",
) -> Any:
    """Replace each element that has the expected value: dtypes of 32 and 64 bits.

    Parameters
    ----------
    target : Tensor or Shared
        What is updated.
    compare : Tile, Scalar or number
        The expected value of each element.
    value : Tile, Scalar or number
        What each element becomes if it is as expected.
    offsets : int, Scalar or sequence of these, optional
        Where the tile `value` lies in `target`, as for `store`.
    indices : Tile or sequence of Tile, optional
        Integer index tiles, one for each dimension.
    mask : Tile, optional
        A boolean tile: elements where it is false are left alone.
    order : str
        "relaxed", "acquire", "release" or "acq_rel".
    scope : str
        Who sees the update as one step: "block", "cluster", "device" or "system".

    Returns
    -------
    Tile or Scalar
        The old values.
    """
    raise only_in_kernel("tilus.atomic_cas")


__all__ = [
    "atomic_add", "atomic_and", "atomic_cas", "atomic_exch", "atomic_max", "atomic_min", "atomic_or", "atomic_xor",
]  # fmt: skip
