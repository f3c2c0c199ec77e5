"""Random layouts for property tests: the digits of every dimension, dealt out and shuffled."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from tilus.layout import (
    Digit,
    RegisterLayout,
    SharedLayout,
    Swizzle,
    column_local,
    column_spatial,
    local,
    spatial,
)
from tilus.layout import replicated as replicated_atom

SIZES = st.sampled_from([1, 2, 2, 2, 3, 4, 5])
POWERS = st.sampled_from([1, 2, 2, 2, 4, 4, 8])


def law(*strategies: st.SearchStrategy[Any], examples: int = 60) -> Callable[[Callable[..., None]], Any]:
    """Like `given`, for tests that compare with tables: few examples, and no deadline on a slow machine."""
    return lambda test: settings(deadline=None, max_examples=examples)(given(*strategies)(test))


@st.composite
def register_layouts(
    draw: st.DrawFn,
    rank: int | None = None,
    max_digits: int = 3,
    replication: bool = True,
    sizes: st.SearchStrategy[int] = SIZES,
    max_threads: int = 24,
    max_elements: int = 24,
) -> RegisterLayout:
    """Layouts of up to a few thousand cells, with digits of any small size in any order."""
    rank = draw(st.integers(1, 3)) if rank is None else rank
    shape, digits, cells = [], [], 1
    for dim in range(rank):
        stride = 1
        for size in draw(st.lists(sizes, max_size=max_digits)):
            if cells * size > max_threads * max_elements:
                # Many large digits would fill the machine's memory with the tables of a product.
                continue
            cells *= size
            digits.append(Digit(size, dim, stride))
            stride *= size
        shape.append(stride)
    if replication and draw(st.booleans()):
        digits.append(Digit(draw(st.sampled_from([2, 3, 4])), None, 0))
    digits = draw(st.permutations(digits))
    spatial_digits, local_digits = [], []
    threads = elements = 1
    for digit in digits:
        to_thread = digit.dim is None or draw(st.booleans())
        if digit.dim is not None and (elements if not to_thread else threads) * digit.size > (
            max_elements if not to_thread else max_threads
        ):
            to_thread = not to_thread
        if to_thread:
            spatial_digits.append(digit)
            threads *= digit.size
        else:
            local_digits.append(digit)
            elements *= digit.size
    return RegisterLayout(tuple(shape), tuple(spatial_digits), tuple(local_digits))


@st.composite
def atoms(draw: st.DrawFn, rank: int) -> RegisterLayout:
    """One of the named constructors."""
    if draw(st.integers(0, 4)) == 0:
        return replicated_atom(draw(st.integers(1, 3)), rank=rank)
    make = draw(st.sampled_from([spatial, local, column_spatial, column_local]))
    return make(*(draw(st.integers(1, 3)) for _ in range(rank)))


@st.composite
def products(draw: st.DrawFn, rank: int, length: int = 3) -> RegisterLayout:
    """Products of a few atoms."""
    result = draw(atoms(rank))
    for _ in range(draw(st.integers(0, length - 1))):
        result = result * draw(atoms(rank))
    return result


@st.composite
def shared_layouts(
    draw: st.DrawFn, shape: tuple[int, ...], swizzles: bool = True, padding: bool = True
) -> SharedLayout:
    """Layouts of a tile in any order of its digits, perhaps padded and swizzled; no two elements share a place."""
    pieces: list[tuple[int, int, int]] = []  # (size, dim, rank of the digit within its dimension)
    for dim, extent in enumerate(shape):
        factors = []
        while extent > 1:
            factor = draw(st.sampled_from([d for d in range(2, extent + 1) if extent % d == 0]))
            factors.append(factor)
            extent //= factor
        pieces += [(size, dim, place) for place, size in enumerate(factors)]
    digits = []
    stride = 1
    for size, dim, place in draw(st.permutations(pieces)):
        digits.append((place, Digit(size, dim, stride)))
        stride *= size
        if padding and draw(st.integers(0, 4)) == 0:
            stride += draw(st.integers(1, 8))
    ordered = tuple(digit for _, digit in sorted(digits, key=lambda pair: pair[0]))
    swizzle = None
    if swizzles and draw(st.booleans()):
        bits = draw(st.integers(1, 3))
        swizzle = Swizzle(bits, draw(st.integers(0, 3)), draw(st.integers(bits, bits + 3)))
    return SharedLayout(shape, ordered, swizzle)
