"""Printing, assertions and random numbers from the device."""

from __future__ import annotations

import numpy as np
import pytest

import tilus.lang as tilus
from tests.codegen import differential as d
from tilus.dtypes import boolean, float16, float32, float64, int8, int16, int32, int64, uint8, uint32, uint64
from tilus.errors import HazardFound
from tilus.ir import numerics
from tilus.lang import Tensor, constexpr
from tilus.simulator.errors import HazardError


def scalars(
    a: Tensor[float32, "n"],
    i: int32,
    wide: int64,
    big: uint64,
    small: int16,
    x: float32,
    y: float16,
    flag: boolean,
):
    tilus.grid(2, warps=2)
    tilus.device_print("100% of block {}", tilus.block_id(0))
    if tilus.block_id(0) == 1:
        tilus.device_print("{} {} {} {} | {} {} {}", i, wide, big, small, x, y, flag)
        tilus.device_print("nothing")


def test_scalars_are_printed_once_for_each_block():
    made = d.run(scalars, np.zeros(1, np.float32), -5, -(2**40), 2**63 + 1, -300, 1.5, -0.25, True)
    lines = sorted(made.report.printed.splitlines())
    assert lines == sorted(
        [
            "100% of block 0", "100% of block 1", "nothing",
            f"-5 {-(2**40)} {2**63 + 1} -300 | 1.5 -0.25 1",
        ]
    )  # fmt: skip


def tile(a: Tensor["dtype", "m n"], *, dtype: constexpr):
    tilus.grid(1, warps=2)
    tilus.device_print("x{}", tilus.load(a, (0, 0), (2, 3)))


@pytest.mark.parametrize(
    "dtype", [int8, uint8, int32, uint32, int64, float16, float32, float64, boolean], ids=str
)
def test_each_element_of_a_tile_is_printed_once_with_its_place(dtype):
    a = d.array(
        np.arange(6).reshape(2, 3) % 2
        if dtype.is_boolean
        else np.arange(6).reshape(2, 3) - 2 * dtype.is_signed,
        dtype,
    )
    made = d.run(tile, a, dtype=dtype)
    expected = [f"x[{i}, {j}] = {int(a[i, j])}" for i in range(2) for j in range(3)]
    assert sorted(made.report.printed.splitlines()) == expected


def asserted(a: Tensor[int32, "n"], out: Tensor[int32, "n"], limit: int32):
    tilus.grid(1, warps=2)
    x = tilus.load(a, 0, 96)
    tilus.device_assert(limit >= 0, "the limit is negative")
    tilus.device_assert(x < limit, "an element is beyond the limit")
    tilus.store(out, x + 1, 0)


def test_assertions_hold_or_stop_the_launch():
    a = np.arange(96, dtype=np.int32)
    made = d.run(asserted, a, np.zeros_like(a), 96)
    assert made.count("__assertfail") > 0
    kernel = d.trace(asserted, a, np.zeros_like(a), 95)
    for limit, message in ((95, "an element is beyond the limit"), (-1, "the limit is negative")):
        with pytest.raises(HazardError, match=message) as caught:
            d.launch(kernel, [a, np.zeros_like(a), limit])
        assert "test_lower_debug.py" in str(caught.value)
        with pytest.raises(HazardFound):
            d.run_kernel(kernel, a, np.zeros_like(a), limit)


def bits32(counters: Tensor["counter", "n"], out: Tensor[uint32, "k n"], seed: int32, *, counter: constexpr):
    tilus.grid(1, warps=2)
    for row, words in enumerate(tilus.random_bits(seed, tilus.load(counters, 0, 96))):
        tilus.store(out, words, (row, 0))


def bits64(counters: Tensor["counter", "n"], out: Tensor[uint32, "k n"], seed: uint64, *, counter: constexpr):
    tilus.grid(1, warps=2)
    for row, words in enumerate(tilus.random_bits(seed, tilus.load(counters, 0, 96))):
        tilus.store(out, words, (row, 0))


@pytest.mark.parametrize("counter", [uint32, int32, uint64, int64], ids=str)
def test_random_bits_are_those_of_philox(counter):
    counters = d.random(counter, 96, low=0, high=min(counter.max, 2**62))
    out = np.zeros((4, 96), np.uint32)
    made = d.run(bits64, counters, out, 0xFEDCBA9876543210, counter=counter)
    expected = numerics.philox(0xFEDCBA9876543210, counters)
    np.testing.assert_array_equal(made.arrays[1], np.stack(expected))
    d.run(bits32, counters, out, 1234, counter=counter)


def test_philox_gives_the_published_words():
    # Random123, kat_vectors: philox4x32 10, counter and key of zeros.
    made = d.run(bits64, np.zeros(96, np.uint64), np.zeros((4, 96), np.uint32), 0, counter=uint64)
    assert [int(x) for x in made.arrays[1][:, 0]] == [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]


def numbers(out: Tensor[float32, "k n"], seed: int32):
    tilus.grid(1, warps=2)
    counters = tilus.arange(512)
    tilus.store(out, tilus.rand(seed, counters), (0, 0))
    tilus.store(out, tilus.randn(seed, counters), (1, 0))


def test_uniform_and_normal_numbers():
    made = d.run(numbers, np.zeros((2, 512), np.float32), 7, rtol=1e-4, atol=1e-4)
    uniform, normal = made.arrays[0]
    assert 0 <= uniform.min() < uniform.max() < 1
    assert abs(uniform.mean() - 0.5) < 0.05
    assert abs(normal.mean()) < 0.15
    assert abs(normal.std() - 1) < 0.15
