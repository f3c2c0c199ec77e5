"""Random numbers by Philox 4x32-10: a function of a seed and a counter, without state."""

from __future__ import annotations

from typing import Any

from tilus.lang.stub import only_in_kernel
from tilus.lang.types import Tile


def random_bits(seed: Any, counter: Tile) -> tuple[Tile, Tile, Tile, Tile]:
    """Return four tiles of uniform 32-bit integers.

    Parameters
    ----------
    seed : int or Scalar
        One seed for all elements.
    counter : Tile
        Integers that differ from element to element and from call to call.

    Returns
    -------
    tuple of Tile
        uint32.
    """
    raise only_in_kernel("tilus.random_bits")


def randint(seed: Any, counter: Tile) -> Tile:
    """Return uniform 32-bit integers, the first of `random_bits`.

    Parameters
    ----------
    seed : int or Scalar
        One seed for all elements.
    counter : Tile
        Integers that differ from element to element and from call to call.

    Returns
    -------
    Tile
        uint32.
    """
    raise only_in_kernel("tilus.randint")


def rand(seed: Any, counter: Tile) -> Tile:
    """Return uniform numbers in [0, 1), multiples of 2**-24.

    Parameters
    ----------
    seed : int or Scalar
        One seed for all elements.
    counter : Tile
        Integers that differ from element to element and from call to call.

    Returns
    -------
    Tile
        float32.
    """
    raise only_in_kernel("tilus.rand")


def randn(seed: Any, counter: Tile) -> Tile:
    """Return normally distributed numbers of mean 0 and variance 1, by the Box-Muller transform.

    Parameters
    ----------
    seed : int or Scalar
        One seed for all elements.
    counter : Tile
        Integers that differ from element to element and from call to call.

    Returns
    -------
    Tile
        float32.
    """
    raise only_in_kernel("tilus.randn")


__all__ = ["rand", "randint", "randn", "random_bits"]
