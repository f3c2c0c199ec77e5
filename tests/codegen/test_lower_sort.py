"""Exchanges and what is made of them: sorting, the largest elements, the opposite order; in any layout."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import tilus.lang as tilus
from tests.codegen import differential as d
from tests.codegen.random_layouts import layouts
from tests.lang.support import error_of
from tilus import dtypes
from tilus.dtypes import (
    bfloat16,
    boolean,
    float8_e4m3,
    float16,
    float32,
    float64,
    int8,
    int16,
    int32,
    int64,
    uint8,
    uint32,
    uint64,
)
from tilus.errors import ShapeMismatch, TypeMismatch
from tilus.ir import Builder, GlobalType, Kernel, Value, make_region, ops
from tilus.lang import Tensor, constexpr

SLOW = settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow], derandomize=True
)


def sorting(
    a: Tensor["dtype", "m n"], out: Tensor["dtype", "k m n"], places: Tensor[int32, "k m n"], *,
    dtype: constexpr, shape: constexpr, axis: constexpr, warps: constexpr, indexed: constexpr,
    layout: constexpr = None,
):  # fmt: skip
    tilus.grid(1, warps=warps)
    x = tilus.load(a, (0, 0), shape, layout=layout)
    for row, descending in enumerate((False, True)):
        tilus.store(out, tilus.sort(x, axis, descending=descending), (row, 0, 0))
        if indexed:
            tilus.store(places, tilus.argsort(x, axis, descending=descending), (row, 0, 0))


def ordered(a: np.ndarray, axis: int, descending: bool) -> np.ndarray:
    """Return the stable order of values, NaN as the largest."""
    ranks = np.unique(np.where(a == 0, np.zeros_like(a), a), return_inverse=True, equal_nan=True)[1].reshape(
        a.shape
    )
    return np.argsort(-ranks if descending else ranks, axis=axis, kind="stable")


def check_sorting(a: np.ndarray, dtype: dtypes.DType, axis: int, warps: int, layout=None) -> d.Outcome:
    indexed = dtype.bits <= 32
    made = d.run(
        sorting, a, np.zeros((2, *a.shape), a.dtype), np.zeros((2, *a.shape), np.int32),
        dtype=dtype, shape=a.shape, axis=axis, warps=warps, indexed=indexed, layout=layout,
    )  # fmt: skip
    values = d.values(a, dtype)
    for row, descending in enumerate((False, True)):
        order = ordered(values, axis, descending)
        found = d.values(made.arrays[1][row], dtype)
        np.testing.assert_array_equal(found, np.take_along_axis(values, order, axis))
        if indexed:
            np.testing.assert_array_equal(made.arrays[2][row], order)
    return made


@pytest.mark.parametrize(
    "dtype",
    [
        float16,
        bfloat16,
        float32,
        float64,
        int16,
        int32,
        int64,
        uint32,
        uint64,
        int8,
        uint8,
        boolean,
    ],
    ids=str,
)
def test_every_dtype(dtype):
    a = d.random(dtype, 2, 16, low=-20, high=20)
    if dtype.is_float:
        special = [0.0, -0.0, float("nan"), float("nan")]
        special += [float("inf"), float("-inf")] if dtype.has_inf else []
        a[0, : len(special)] = d.array(special, dtype)
        a[1, 5:9] = d.array([0.0, -0.0, 0.0, -1.0], dtype)
    elif dtype.bits >= 32:
        a[0, :2] = [dtype.max, dtype.min]
    check_sorting(a, dtype, 1, 1)


@pytest.mark.parametrize(
    ("shape", "axis", "warps"),
    [
        ((1, 1), 1, 1),
        ((1, 256), 1, 4),
        ((2, 128), 1, 8),
        ((64, 3), 0, 1),
        ((5, 16), 1, 3),
        ((4, 8), 0, 2),
        ((2, 100), 1, 4),
        ((7, 3), 0, 1),
        ((3, 5), 1, 2),
    ],
    ids=str,
)
def test_every_shape(shape, axis, warps):
    check_sorting(d.random(int32, *shape, low=-9, high=9), int32, axis, warps)


@st.composite
def problems(draw, axes):
    shape = tuple(draw(st.sampled_from(e)) for e in draw(st.permutations([(1, 2, 3, 5, 8), (2, 4, 8, 32)])))
    axis = draw(st.sampled_from(axes(shape)))
    warps = draw(st.sampled_from((1, 2, 3, 4)))
    return shape, axis, warps, draw(layouts(shape, 32 * warps)), draw(st.integers(0, 1000))


@settings(SLOW, max_examples=12)
@given(problems(lambda shape: [0, 1]))
def test_any_layout(problem):
    shape, axis, warps, layout, seed = problem
    check_sorting(d.random(float16, *shape, seed=seed), float16, axis, warps, layout)


@SLOW
@given(
    problems(lambda shape: [i for i, n in enumerate(shape) if not n & (n - 1)]),
    st.integers(0, 63),
    st.sampled_from((int8, float16, float32, int64, dtypes.boolean)),
)
def test_exchange_in_any_layout(problem, mask, dtype):
    shape, axis, warps, layout, seed = problem
    mask %= shape[axis]
    x = d.random(dtype, *shape, seed=seed)
    found = d.run_kernel(exchanged(dtype, shape, axis, mask, warps, layout), x, np.zeros_like(x)).arrays[1]
    np.testing.assert_array_equal(found, np.take(x, np.arange(shape[axis]) ^ mask, axis))


def exchanged(dtype, shape, axis, mask, warps, layout) -> Kernel:
    """Return a kernel of one exchange."""
    b = Builder()
    source, target = (Value(GlobalType(dtype, shape, (shape[1], 1), 16), name) for name in ("a", "out"))
    with b.region() as grid:
        one = b.constant(1)
        b.emit(ops.Yield, (one, one, one))
    with b.region() as body:
        at = (b.constant(0), b.constant(0))
        tile = b.emit(ops.LoadGlobal, source, at, shape=shape, checked=(True, True), layout=layout).result
        made = b.emit(ops.Exchange, tile, axis, mask).result
        b.emit(ops.StoreGlobal, target, made, at, checked=(True, True))
        b.emit(ops.Return)
    return Kernel("exchanged", (source, target), make_region((), grid), make_region((), body), warps)


def test_lanes_need_no_shared_memory_and_no_barrier():
    made = check_sorting(d.random(float32, 8, 64), float32, 1, 2)
    assert made.compiled.shared_bytes == 0
    assert made.count("bar.sync") == 0
    assert made.count("shfl.sync.bfly") > 0


def largest(
    a: Tensor["dtype", "m n"], values: Tensor["dtype", "m k"], places: Tensor[int32, "m k"],
    least: Tensor["dtype", "m k"], turned: Tensor["dtype", "m n"], *, dtype: constexpr, shape: constexpr, k: constexpr,
):  # fmt: skip
    tilus.grid(1, warps=1)
    x = tilus.load(a, (0, 0), shape)
    found, at = tilus.topk(x, k)
    tilus.store(values, found, (0, 0))
    tilus.store(places, at, (0, 0))
    found, at = tilus.topk(x, k, 1, largest=False)
    tilus.store(least, found, (0, 0))
    tilus.store(turned, tilus.flip(x), (0, 0))


@pytest.mark.parametrize(("k", "n"), [(1, 64), (3, 64), (64, 64), (8, 50), (50, 50)])
def test_the_largest_and_the_opposite_order(k, n):
    a = d.random(float32, 3, n)
    a[1] = np.round(a[1])
    made = d.run(
        largest, a, np.zeros((3, k), np.float32), np.zeros((3, k), np.int32), np.zeros((3, k), np.float32),
        np.zeros_like(a), dtype=float32, shape=a.shape, k=k,
    ).arrays  # fmt: skip
    order = ordered(a, 1, True)[:, :k]
    np.testing.assert_array_equal(made[2], order)
    np.testing.assert_array_equal(made[1], np.take_along_axis(a, order, 1))
    np.testing.assert_array_equal(made[3], np.sort(a, 1)[:, :k])
    np.testing.assert_array_equal(made[4], a[:, ::-1])


@tilus.inline
def too_many(x):
    tilus.topk(x, 65)


@tilus.inline
def other_axis(x):
    tilus.sort(x, 1)


def refused(x: Tensor["dtype", "n"], *, dtype: constexpr, n: constexpr, what: constexpr):
    tilus.grid(1, warps=1)
    what(tilus.load(x, 0, n))


@pytest.mark.parametrize(
    ("what", "dtype", "n", "error", "text"),
    [
        (tilus.argsort, float64, 32, TypeMismatch, "argsort takes elements of 32 bits at most, not float64"),
        (too_many, float32, 64, ShapeMismatch, "topk of 65 elements along an axis of 64"),
        (tilus.sort, float8_e4m3, 64, TypeMismatch, "sort does not take float8_e4m3, which is for storage"),
        (other_axis, float32, 64, ShapeMismatch, "sort along axis 1"),
    ],
)  # fmt: skip
def test_what_cannot_be_sorted(what, dtype, n, error, text):
    assert text in str(error_of(refused, error, dtype=dtype, n=n, what=what))
