"""Control flow: loops, branches, early exits, and what they carry; groups of warps; all on the simulator."""

from __future__ import annotations

import numpy as np
import pytest

import tilus.lang as tilus
from tests.codegen import differential as d
from tilus.dtypes import (
    bfloat16,
    boolean,
    float16,
    float32,
    float64,
    int8,
    int16,
    int32,
    int64,
    uint4,
    uint32,
)
from tilus.errors import ResourceExceeded
from tilus.lang import Tensor, constexpr


def exits(out: Tensor[int32, "k n"], x: int32, y: int32):
    tilus.grid(1, warps=2)
    count, last = 0, -1
    for i in range(x):
        if i == 5:
            continue
        for j in range(y):
            if j > i:
                break
            if (i + j) % 3 == 0:
                continue
            count += 10 * i + j
            last = j
        if count > 200:
            break
    tilus.store(out, tilus.full((8,), count), (0, 0))
    tilus.store(out, tilus.full((8,), last), (1, 0))
    n = 0
    while x > 0 and n < 50:
        x = x // 2 if x % 2 == 0 else 3 * x + 1
        n += 1
        if x == 1:
            break
    tilus.store(out, tilus.full((8,), n), (2, 0))
    if y == 3:
        return
    tilus.store(out, tilus.full((8,), 77), (3, 0))


def test_loops_that_are_left_and_shortened():
    for x, y in ((0, 0), (4, 9), (9, 4), (27, 3), (12, 12), (-5, 2)):
        made = d.run(exits, np.zeros((4, 8), np.int32), x, y)
        assert made.arrays[0][3, 0] == (0 if y == 3 else 77)


def ranges(out: Tensor[int32, "n"], start: int32, stop: int32, *, step: constexpr):
    tilus.grid(1, warps=1)
    a = b = c = e = 0
    for i in range(start, stop):
        a = a * 3 + i
    for i in range(stop, start, -1):
        b = b * 3 + i
    for i in range(start, stop, step):
        c = c * 3 + i
    for i in tilus.unroll(range(start, stop), 3):
        e = e * 3 + i
    for place, value in enumerate((a, b, c, e)):
        tilus.store(out, value, place)


@pytest.mark.parametrize("step", [1, 4, -1, -3])
def test_ranges_up_and_down(step):
    for start, stop in ((0, 7), (7, 0), (-3, 4), (5, 5)):
        made = d.run(ranges, np.zeros(4, np.int32), start, stop, step=step)
        expected = 0
        for i in range(start, stop, step):
            expected = expected * 3 + i
        assert made.arrays[0][2] == expected


def far(out: Tensor[int32, "n"], start: int32, stop: int32, *, step: constexpr):
    tilus.grid(1, warps=1)
    count = 0
    for i in range(start, stop, step):
        count += 1 + i % 2
    tilus.store(out, count, 0)
    if start == 0:
        count = 0
        for i in range(0, stop, step):
            count += 1 + i % 2
        tilus.store(out, count, 1)
    count = 0
    for i in range(start, stop, tilus.grid_dim(0) * step):
        count += 1 + i % 2
    tilus.store(out, count, 2)


@pytest.mark.parametrize(
    ("start", "stop", "step"),
    [
        (0, 2**31 - 1, 2**28),
        (0, 2**31 - 1, 2**29 + 1),
        (-5, 2**31 - 3, 2**28 + 3),
        (2**31 - 100, 2**31 - 1, 30),
        (0, -7, 5),
        (9, -7, 5),
    ],
)
def test_a_loop_ends_where_a_step_leads_beyond_the_largest_number(start, stop, step):
    made = d.run(far, np.zeros(3, np.int32), start, stop, step=step)
    count = sum(1 + i % 2 for i in range(start, stop, step))
    assert made.arrays[0].tolist() == [count, count if start == 0 else 0, count]


def without_sign(out: Tensor[int32, "n"], stop: uint32):
    tilus.grid(1, warps=1)
    count = 0
    for i in range(tilus.cast(7, uint32), stop, tilus.cast(2**28, uint32)):
        count += (i % 2).to(int32)
    tilus.store(out, count, 0)


def test_ranges_of_unsigned_integers_go_beyond_the_largest_signed_one():
    made = d.run(without_sign, np.zeros(1, np.int32), 3_000_000_000)
    assert made.arrays[0].tolist() == [len(range(7, 3_000_000_000, 2**28))]


def carried(a: Tensor["dtype", "m n"], out: Tensor["dtype", "k n"], steps: int32, *, dtype: constexpr):
    tilus.grid(1, warps=2)
    x, y = tilus.load(a, (0, 0), (16, 24)), tilus.load(a, (16, 0), (16, 24))
    for i in range(steps):
        x, y = y, x
        if i % 3 == 1:
            y = tilus.where(x == y, x, y)
        elif i % 3 == 2:
            x = tilus.load(a, (i, 0), (16, 24))
            continue
        if i == 7:
            break
    tilus.store(out, x, (0, 0))
    tilus.store(out, y, (16, 0))


@pytest.mark.parametrize("dtype", [int8, int16, float16, bfloat16, float32, int64, float64, boolean], ids=str)
def test_tiles_that_loops_and_branches_carry(dtype):
    a = d.random(dtype, 40, 24)
    for steps in (0, 1, 3, 10):
        d.run(carried, a, np.zeros((32, 24), a.dtype), steps, dtype=dtype)


def narrow(a: Tensor[int32, "n"], out: Tensor[int32, "n"], steps: int32):
    tilus.grid(1, warps=1)
    x = tilus.load(a, 0, 96)
    small = (x % 16).to(uint4)
    for i in range(steps):
        if i % 2 == 0:
            small = ((small.to(int32) + i) % 16).to(uint4)
    tilus.store(out, small.to(int32), 0)


def test_tiles_of_less_than_a_byte_are_carried_packed():
    a = d.random(int32, 96, low=0, high=1000)
    made = d.run(narrow, a, np.zeros(96, np.int32), 5)
    np.testing.assert_array_equal(made.arrays[1], (a + 0 + 2 + 4) % 16)


def layouts(a: Tensor[float32, "m n"], out: Tensor[float32, "m n"], n: int32):
    tilus.grid(1, warps=2)
    x = tilus.load(a, (0, 0), (32, 16))
    for i in range(n):
        # The tile comes back transposed twice, and meets a sum along either axis.
        y = tilus.reshape(x.T + tilus.sum(x, 1)[None, :], (32, 16))
        x = y * 0.25 - tilus.max(x, axis=0)[None, :]
    tilus.store(out, x, (0, 0))


def test_a_loop_whose_body_wants_other_layouts():
    a = d.random(float32, 32, 16)
    for n in (0, 1, 3):
        d.run(layouts, a, np.zeros_like(a), n, rtol=1e-4, atol=1e-4)


def forever(out: Tensor[int32, "n"], n: int32):
    tilus.grid(1, warps=1)
    i = 0
    while True:
        i += 1
        if i * i > n:
            tilus.store(out, i, 0)
            return


def test_a_loop_without_an_end_but_a_return():
    made = d.run(forever, np.zeros(1, np.int32), 50)
    assert made.arrays[0][0] == 8


def rows(a: Tensor[float32, "m n"], out: Tensor[float32, "m n"]):
    m, n = a.shape
    tilus.grid(3, warps=4)
    for i in range(tilus.block_id(0), m, tilus.grid_dim(0)):
        x = tilus.load(a, (i, 0), (128,), other=-1e30)
        y = tilus.exp(x - tilus.max(x))
        tilus.store(out, y / tilus.sum(y), (i, 0))


def test_blocks_that_take_rows_in_turn():
    a = d.random(float32, 10, 100)
    made = d.run(rows, a, np.zeros_like(a), rtol=1e-5, atol=1e-7)
    y = np.exp(a.astype(np.float64))
    np.testing.assert_allclose(made.arrays[1], y / y.sum(1, keepdims=True), rtol=1e-5, atol=1e-7)


def groups(a: Tensor[float32, "m n"], out: Tensor[float32, "k"]):
    tilus.grid(1, warps=7)
    with tilus.warps(0, 1):
        tilus.store(out, tilus.sum(tilus.load(a, (0, 0), (16, 32))), 0)
    with tilus.warps(1, 2):
        tilus.store(out, tilus.sum(tilus.load(a, (16, 0), (16, 32))), 1)
    with tilus.warps(3, 4):
        x = tilus.load(a, (32, 0), (16, 32))
        for i in range(3):
            x = x * 0.5 + tilus.sum(x, 0)[None, :]
        tilus.store(out, tilus.max(x), 2)


def test_groups_of_warps_reduce_by_themselves():
    a = d.random(float32, 48, 32)
    made = d.run(groups, a, np.zeros(3, np.float32), rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(made.arrays[1][0], a[:16].sum(dtype=np.float64), rtol=1e-5)
    # One barrier for each group of more than one warp, none for a single warp.
    assert "bar.sync 1, 64" not in made.ptx.replace("\t", " ") or made.count("bar.sync") > 0
    assert made.count("bar.warp.sync") > 0 or made.count("shfl") > 0


def many(out: Tensor[int32, "n"]):
    tilus.grid(1, warps=20)
    for i in tilus.static_range(17):
        with tilus.warps(i, 3):
            tilus.sync()
            tilus.store(out, i, i)


def test_more_groups_than_barriers_are_refused():
    with pytest.raises(ResourceExceeded, match="a block has 16 barriers"):
        d.run(many, np.zeros(17, np.int32))
