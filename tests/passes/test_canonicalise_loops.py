"""A loop that carries what never changes keeps its meaning around another loop that carries what does."""

from __future__ import annotations

import numpy as np

import tilus.lang as tilus
from tests.codegen import differential as d
from tilus.dtypes import int32
from tilus.lang import Tensor


def nested(out: Tensor[int32, "n"], turns: int, given: int):
    tilus.grid(1, warps=1)
    step, i, total = given, 0, 0
    while i < turns:
        old = step
        step = given
        for j in range(turns):
            total += j
        i += 1
        if i == 2:
            continue
        for j in range(turns):
            total += old
    tilus.store(out, tilus.full((32,), total, int32), (0,))


def test_an_inner_loop_that_keeps_all_it_carries():
    made = d.run(nested, np.zeros(32, np.int32), 5, 3)
    assert (made.arrays[0] == 5 * 10 + 4 * 5 * 3).all()
