"""Loops unrolled by a factor: against the interpreter, with bounds that are not known and bodies in which threads meet."""

from __future__ import annotations

import numpy as np
import pytest

import tilus.lang as tilus
from tests.codegen import differential as d
from tilus.dtypes import float16, float32, int32, int64
from tilus.errors import SyntaxNotSupported
from tilus.lang import Tensor, constexpr


def product(
    a: Tensor[float16, "m k"], b: Tensor[float16, "k n"], c: Tensor[float32, "m n"], *, factor: constexpr
):
    tilus.grid(1, warps=1)
    acc = tilus.zeros((16, 8))
    for k in tilus.unroll(range(0, a.shape[1], 16), factor):
        acc = tilus.dot(tilus.load(a, (0, k), (16, 16)), tilus.load(b, (k, 0), (16, 8)), acc)
    tilus.store(c, acc, (0, 0))


@pytest.mark.parametrize("k", [0, 16, 60, 64, 70])
def test_a_product_has_a_body_for_each_copy_and_one_for_what_is_left(k, capfd):
    a, b = d.random(float16, 16, k), d.random(float16, k, 8)
    made = d.run(product, a, b, np.zeros((16, 8), np.float32), factor=3, rtol=1e-3, atol=1e-3)
    assert made.count("mma.sync") == 3 + 1
    assert capfd.readouterr().err == ""


def ranges(out: Tensor[int32, "n"], start: int32, stop: int32, far: int64, *, step: constexpr):
    tilus.grid(1, warps=2)
    a, b, c = 0, 0, 0
    for i in tilus.unroll(range(start, stop, step), 4):
        a = a * 3 + tilus.sum(tilus.arange(64) + i)
    for i in tilus.unroll(range(far, far + stop, tilus.grid_dim(0) * 2), 2):
        b = b * 3 + (i - far).to(int32)
    for i in tilus.unroll(range(start, stop), 2):
        for j in tilus.unroll(range(i), 3):
            if j == 5:
                break
            c = c * 3 + tilus.sum(tilus.arange(64) * j)
    for place, value in enumerate((a, b, c)):
        tilus.store(out, value, place)


@pytest.mark.parametrize(
    ("start", "stop", "step"), [(0, 9, 1), (0, 8, 2), (9, -8, -3), (5, 5, 1), (7, 2, 1), (-3, -2, 1)]
)
def test_every_turn_is_taken_once_and_in_order(start, stop, step):
    made = d.run(ranges, np.zeros(3, np.int32), start, stop, 2**40, step=step)
    expected = np.int32(0)
    with np.errstate(over="ignore"):
        for i in range(start, stop, step):
            expected = np.int32(expected * np.int32(3) + np.int32(2016 + 64 * i))
    assert made.arrays[0][0] == expected


def in_full(out: Tensor[int32, "n"]):
    tilus.grid(1, warps=1)
    count = 0
    for i in tilus.unroll(range(out.shape[0])):
        count += i
    tilus.store(out, count, 0)


def test_unrolling_in_full_takes_bounds_known_at_compile_time():
    with pytest.raises(SyntaxNotSupported, match="unrolled in full are known at compile time") as error:
        d.run(in_full, np.zeros(4, np.int32))
    assert error.value.hint == "tilus.unroll(range(...), 4), which copies the body as often"
    assert error.value.location is not None
