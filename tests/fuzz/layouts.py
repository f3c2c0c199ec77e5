"""Random register layouts from a `random.Random`, for programs that say layouts themselves."""

from __future__ import annotations

import random

from tests.codegen.random_layouts import prime_factors
from tilus.layout import Digit, RegisterLayout


def random_layout(
    rng: random.Random, shape: tuple[int, ...], threads: int, copies: bool = True, most: int = 64
) -> RegisterLayout:
    """Return a layout of a tile over threads; without `copies` each thread holds other elements."""
    digits = []
    for dim, extent in enumerate(shape):
        stride = 1
        factors = prime_factors(extent)
        rng.shuffle(factors)
        for size in factors:
            digits.append(Digit(size, dim, stride))
            stride *= size
    rng.shuffle(digits)
    spatial: list[Digit] = []
    local: list[Digit] = []
    left, elements = threads, 1
    for digit in digits:
        wanted = not copies or rng.randrange(4) > 0 or elements * digit.size > most
        if left % digit.size == 0 and wanted:
            spatial.append(digit)
            left //= digit.size
        else:
            local.append(digit)
            elements *= digit.size
    while left > 1:
        size = rng.choice([n for n in range(2, left + 1) if left % n == 0])
        spatial.insert(rng.randint(0, len(spatial)), Digit(size, None, 0))
        left //= size
    return RegisterLayout(shape, tuple(spatial), tuple(local))
