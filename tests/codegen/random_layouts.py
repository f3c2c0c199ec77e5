"""Random register layouts that cover a tile with the threads of some warps."""

from __future__ import annotations

from hypothesis import strategies as st

from tilus.layout import Digit, RegisterLayout

EXTENTS = st.sampled_from((1, 2, 3, 4, 5, 6, 7, 8, 12, 16, 24, 32, 40, 48, 64, 80, 96, 128))


def prime_factors(number: int) -> list[int]:
    """Return the prime factors of a number."""
    found, factor = [], 2
    while number > 1:
        while number % factor == 0:
            found.append(factor)
            number //= factor
        factor += 1
    return found


@st.composite
def shapes(draw: st.DrawFn, ranks: tuple[int, int] = (1, 3), most: int = 4096) -> tuple[int, ...]:
    """Tile shapes of up to some elements."""
    shape: list[int] = []
    size = 1
    for _ in range(draw(st.integers(*ranks))):
        extent = draw(EXTENTS)
        if size * extent > most:
            extent = 1
        shape.append(extent)
        size *= extent
    return tuple(shape)


@st.composite
def layouts(draw: st.DrawFn, shape: tuple[int, ...], threads: int, most: int = 64) -> RegisterLayout:
    """Layouts of a tile over threads: digits in any order, threads to spare hold copies."""
    digits = []
    for dim, extent in enumerate(shape):
        stride = 1
        for size in draw(st.permutations(prime_factors(extent))):
            digits.append(Digit(size, dim, stride))
            stride *= size
    spatial: list[Digit] = []
    local: list[Digit] = []
    left, elements = threads, 1
    for digit in draw(st.permutations(digits)):
        to_thread = left % digit.size == 0 and (draw(st.integers(0, 3)) > 0 or elements * digit.size > most)
        if to_thread:
            spatial.append(digit)
            left //= digit.size
        else:
            local.append(digit)
            elements *= digit.size
    while left > 1:
        size = draw(st.sampled_from([n for n in range(2, left + 1) if left % n == 0]))
        spatial.insert(draw(st.integers(0, len(spatial))), Digit(size, None, 0))
        left //= size
    return RegisterLayout(shape, tuple(spatial), tuple(local))
