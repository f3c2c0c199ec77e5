"""Reductions within threads, warps and blocks, along every axis, for any extents and layouts."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import tilus.lang as tilus
from tests.codegen import differential as d
from tests.codegen.random_layouts import layouts, shapes
from tilus.dtypes import (
    bfloat16,
    boolean,
    float16,
    float32,
    float64,
    int16,
    int32,
    int64,
    uint16,
    uint32,
    uint64,
)
from tilus.ir import Builder, GlobalType, Kernel, Value, make_region, ops
from tilus.lang import Tensor, constexpr
from tilus.layout import parse

RTOL = {"float16": 1e-3, "bfloat16": 8e-3, "float32": 1e-5, "float64": 1e-13}


def kernel_for(rank: int):
    """Return the kernel for tiles of a rank, whose tensors name their dimensions."""
    if rank == 1:

        def reduced(
            a: Tensor["dtype", "i"], sums: Tensor["dtype", "p"], largest: Tensor["dtype", "p"],
            smallest: Tensor["dtype", "p"], first: Tensor[int32, "p"], last: Tensor[int32, "p"],
            some: Tensor[boolean, "p"], every: Tensor[boolean, "p"], *,
            dtype: constexpr, shape: constexpr, axis: constexpr, warps: constexpr, layout: constexpr = None,
        ):  # fmt: skip
            tilus.grid(1, warps=warps)
            x = tilus.load(a, 0, shape, layout=layout)
            at = 0
            store_all(x, at, axis, (sums, largest, smallest, first, last, some, every))

    elif rank == 2:

        def reduced(
            a: Tensor["dtype", "i j"], sums: Tensor["dtype", "p q"], largest: Tensor["dtype", "p q"],
            smallest: Tensor["dtype", "p q"], first: Tensor[int32, "p q"], last: Tensor[int32, "p q"],
            some: Tensor[boolean, "p q"], every: Tensor[boolean, "p q"], *,
            dtype: constexpr, shape: constexpr, axis: constexpr, warps: constexpr, layout: constexpr = None,
        ):  # fmt: skip
            tilus.grid(1, warps=warps)
            x = tilus.load(a, (0, 0), shape, layout=layout)
            at = (0, 0)
            store_all(x, at, axis, (sums, largest, smallest, first, last, some, every))

    else:

        def reduced(
            a: Tensor["dtype", "i j k"], sums: Tensor["dtype", "p q r"], largest: Tensor["dtype", "p q r"],
            smallest: Tensor["dtype", "p q r"], first: Tensor[int32, "p q r"], last: Tensor[int32, "p q r"],
            some: Tensor[boolean, "p q r"], every: Tensor[boolean, "p q r"], *,
            dtype: constexpr, shape: constexpr, axis: constexpr, warps: constexpr, layout: constexpr = None,
        ):  # fmt: skip
            tilus.grid(1, warps=warps)
            x = tilus.load(a, (0, 0, 0), shape, layout=layout)
            at = (0, 0, 0)
            store_all(x, at, axis, (sums, largest, smallest, first, last, some, every))

    return reduced


@tilus.inline
def store_all(x, at, axis, targets):
    sums, largest, smallest, first, last, some, every = targets
    tilus.store(sums, tilus.sum(x, axis, keepdims=True), at)
    tilus.store(largest, tilus.max(x, axis=axis, keepdims=True), at)
    tilus.store(smallest, tilus.min(x, axis=axis, keepdims=True), at)
    tilus.store(first, tilus.argmax(x, axis, keepdims=True), at)
    tilus.store(last, tilus.argmin(x, axis, keepdims=True), at)
    tilus.store(some, tilus.any(x > 1, axis, keepdims=True), at)
    tilus.store(every, tilus.all(x != 2, axis, keepdims=True), at)


def reduce(shape, axis, warps, dtype=float32, layout=None, a=None) -> d.Outcome:
    """Reduce a tile in every way; small integers, so that many elements are alike."""
    if a is None:
        a = d.array(
            np.random.default_rng(1).integers(-2 if dtype.is_float or dtype.is_signed else 0, 3, shape), dtype
        )
    rest = tuple(1 if i == axis else n for i, n in enumerate(shape))
    outputs = [np.zeros(rest, t) for t in (a.dtype, a.dtype, a.dtype, np.int32, np.int32, np.bool_, np.bool_)]
    tolerance = {"rtol": RTOL[dtype.name], "atol": RTOL[dtype.name]} if dtype.is_float else {}
    return d.run(
        kernel_for(len(shape)),
        a,
        *outputs,
        dtype=dtype,
        shape=shape,
        axis=axis,
        warps=warps,
        layout=layout,
        **tolerance,
    )


@pytest.mark.parametrize(
    ("shape", "warps"),
    [
        ((7,), 1), ((64,), 2), ((96,), 3), ((80,), 8), ((5, 7), 1), ((48, 80), 4), ((3, 128), 8), ((128, 2), 2),
        ((1, 96), 3), ((4, 6, 10), 3), ((16, 1, 33), 2),
    ],
    ids=str,
)  # fmt: skip
def test_every_axis_of_any_shape(shape, warps):
    for axis in range(len(shape)):
        made = reduce(shape, axis, warps)
        a = made.arrays[0].astype(np.float64)
        np.testing.assert_array_equal(made.arrays[1], a.sum(axis, keepdims=True))
        np.testing.assert_array_equal(made.arrays[4], np.expand_dims(a.argmax(axis), axis))


@pytest.mark.parametrize(
    "dtype", [float16, bfloat16, float32, float64, int16, uint16, int32, uint32, int64, uint64], ids=str
)
def test_every_dtype(dtype):
    a = d.random(dtype, 8, 96, low=-300, high=300)
    reduce((8, 96), 0, 4, dtype)
    reduce((8, 96), 1, 4, dtype, a=a)


@pytest.mark.parametrize("dtype", [float16, float32, float64], ids=str)
def test_nan_is_the_extreme_and_its_first_place_is_found(dtype):
    a = d.random(dtype, 8, 64)
    a[1, 40] = a[2, 7] = a[2, 50] = a[3, 0] = np.nan
    a[4, 5], a[4, 9] = np.inf, -np.inf
    for axis in (0, 1):
        reduce((8, 64), axis, 2, dtype, a=a)


@st.composite
def cases(draw: st.DrawFn):
    warps = draw(st.sampled_from((1, 2, 3, 4)))
    shape = draw(shapes(most=1024))
    return (
        shape,
        draw(st.integers(0, len(shape) - 1)),
        warps,
        float32,
        draw(layouts(shape, 32 * warps, most=16)),
    )


@settings(max_examples=20, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
@given(cases())
def test_any_layout(case):
    reduce(*case)


def test_lanes_need_no_shared_memory_and_warps_do():
    within = reduce((64, 32), 1, 2, layout=parse("spatial(8, 8).local(8, 4)"))
    assert within.count("bar") == 0
    assert within.compiled.shared_bytes == 0
    across = reduce((64, 32), 0, 2, layout=parse("spatial(8, 8).local(8, 4)"))
    # Each of seven reductions: one barrier before its partial results are written, one after.
    assert across.count("barrier.cta.sync") + across.count("bar.sync") == 14


def exclusive_or(shape: tuple[int, ...]) -> Kernel:
    """Return a kernel that combines rows by exclusive or, which the language has no word for."""
    b = Builder()
    source = Value(GlobalType(int32, shape, (shape[1], 1), 16), "a")
    target = Value(GlobalType(int32, (shape[0], 1), (1, 1), 16), "out")
    with b.region() as grid:
        one = b.constant(1)
        b.emit(ops.Yield, (one, one, one))
    with b.region() as body:
        at = (b.constant(0), b.constant(0))
        tile = b.emit(ops.LoadGlobal, source, at, shape=shape, checked=(True, True)).result
        b.emit(ops.StoreGlobal, target, b.emit(ops.Reduce, tile, 1, "xor").result, at, checked=(True, True))
        b.emit(ops.Return)
    return Kernel("exclusive_or", (source, target), make_region((), grid), make_region((), body), 2)


def test_exclusive_or():
    a = d.random(int32, 6, 96, low=-(2**31), high=2**31 - 1)
    made = d.run_kernel(exclusive_or((6, 96)), a, np.zeros((6, 1), np.int32))
    np.testing.assert_array_equal(made.arrays[1][:, 0], np.bitwise_xor.reduce(a, 1))


def whole(a: Tensor[float32, "m n"], out: Tensor[float32, "k"], places: Tensor[int32, "k"]):
    tilus.grid(1, warps=4)
    x = tilus.load(a, (0, 0), (24, 40))
    total, most = tilus.sum(x), tilus.max(x)
    y = x - most
    tilus.store(out, total, 0)
    tilus.store(out, most, 1)
    tilus.store(out, tilus.max(y), 2)
    if total > 0.0:
        tilus.store(out, tilus.min(x), 3)
    row = tilus.sum(x, 0)
    tilus.store(places, tilus.argmax(row), 0)


def test_reductions_to_a_scalar_that_all_threads_have():
    a = np.abs(d.random(float32, 24, 40))
    made = d.run(whole, a, np.zeros(4, np.float32), np.zeros(4, np.int32), rtol=1e-5, atol=1e-6)
    assert made.arrays[1][2] == 0
    assert made.arrays[2][0] == a.sum(0).argmax()
