"""Assertions, promises to the compiler, printing, and PTX by hand."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tilus.dtypes import DType
from tilus.lang.stub import only_in_kernel


def static_assert(condition: bool, message: str = "") -> None:
    """Stop the compilation unless a condition, known at compile time, holds.

    Parameters
    ----------
    condition : bool
    message : str, optional
    """
    assert condition, message


def static_print(*values: Any) -> None:
    """Print values when the kernel is compiled: numbers as they are, and of tiles their dtype and shape.

    Parameters
    ----------
    *values : anything
    """
    raise only_in_kernel("tilus.static_print")


def assume(condition: Any, divisor: int | None = None) -> Any:
    """Promise that an integer is a multiple of another, or that a pointer is aligned to a number of bytes.

    `tilus.assume(m % 16 == 0)` is a promise about the name `m`, from here on; `m = tilus.assume(m, 16)` is the same.
    `p = tilus.assume(p, 16)` says of a pointer that its address is a multiple of 16 bytes, so that a tensor made of
    it moves 16 bytes at once.

    Parameters
    ----------
    condition : Scalar or Pointer
        A comparison of that form, or the integer or the pointer itself.
    divisor : int, optional
        Known at compile time; in bytes for a pointer.

    Returns
    -------
    Scalar or Pointer
        The value, with the promise.
    """
    raise only_in_kernel("tilus.assume")


def device_print(format: str, *values: Any) -> None:
    """Print from the device: scalars once for each thread block, or one tile in full.

    Parameters
    ----------
    format : str
        With `{}` for each value; an f-string does as well.
    *values : Scalar or Tile
        Scalars, or one tile.
    """
    raise only_in_kernel("tilus.device_print")


def device_assert(condition: Any, message: str = "") -> None:
    """Stop the launch with a message unless a condition, or each element of it, is true on the device.

    Parameters
    ----------
    condition : Scalar or Tile
        boolean.
    message : str, optional
        Known at compile time.
    """
    raise only_in_kernel("tilus.device_assert")


def inline_ptx(
    template: str, args: Sequence[Any], dtypes: DType | Sequence[DType] = (), *, volatile: bool = False
) -> Any:
    """Write PTX by hand, which is executed once for each element.

    Parameters
    ----------
    template : str
        Instructions with operands $0, $1, ...: the results first, then the arguments.
    args : sequence of Scalar or Tile
        Tiles are broadcast together.
    dtypes : DType or sequence of DType
        Those of the results.
    volatile : bool
        Whether the instructions have an effect besides their results.

    Returns
    -------
    Tile, Scalar, or a tuple of these
        One result for each of `dtypes`; one alone if `dtypes` is no sequence.
    """
    raise only_in_kernel("tilus.inline_ptx")


__all__ = ["assume", "device_assert", "device_print", "inline_ptx", "static_assert"]
