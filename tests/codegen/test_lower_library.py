"""Functions that are made of others: reductions and scans by a function, histograms, and tensors seen otherwise."""

from __future__ import annotations

import numpy as np
import pytest

import tilus.lang as tilus
from tests.codegen import differential as d
from tests.lang.support import error_of
from tilus.dtypes import bfloat16, float16, float32, int8, int32, int64, uint8
from tilus.errors import LayoutConflict, ShapeMismatch, TilusError, TypeMismatch
from tilus.lang import Tensor, constexpr
from tilus.layout import column_major, parse


@tilus.inline
def linear(first, second):
    """Compose x -> a x + b."""
    return first[0] * second[0], first[1] * second[0] + second[1]


@tilus.inline
def first_of_two(a, b):
    return tilus.where(a == 0, b, a)


@tilus.inline
def moments(a, b):
    """Join the mean, the sum of squares around it, and the count of two samples (Chan, Golub, LeVeque 1979)."""
    count = a[2] + b[2]
    apart = b[0] - a[0]
    share = b[2] / count
    return a[0] + apart * share, a[1] + b[1] + apart * apart * (a[2] * share), count


def recurrence(a: Tensor[float32, "m n"], b: Tensor[float32, "m n"], out: Tensor[float32, "m n"], *, shape: constexpr, axis: constexpr, warps: constexpr, layout: constexpr = None):  # fmt: skip
    tilus.grid(1, warps=warps)
    factors = tilus.load(a, (0, 0), shape, layout=layout)
    _, sums = tilus.scan((factors, tilus.load(b, (0, 0), shape)), axis, linear)
    tilus.store(out, sums, (0, 0))


@pytest.mark.parametrize(
    ("shape", "axis", "warps", "layout"),
    [
        ((3, 50), 1, 1, None), ((6, 3), 0, 2, None), ((1, 300), 1, 4, None),
        ((3, 64), 1, 1, None), ((1, 512), 1, 4, None), ((16, 5), 0, 3, None), ((2, 1), 1, 1, None),
        ((8, 32), 1, 1, "local(4, 1).spatial(2, 16).local(1, 2)"),
    ],
    ids=str,
)  # fmt: skip
def test_a_scan_by_a_function_is_a_recurrence(shape, axis, warps, layout):
    a, b = np.abs(d.random(float32, *shape)) % 1, d.random(float32, *shape, seed=1)
    chosen = None if layout is None else parse(layout)
    made = d.run(
        recurrence,
        a,
        b,
        np.zeros_like(a),
        shape=shape,
        axis=axis,
        warps=warps,
        layout=chosen,
        rtol=1e-5,
        atol=1e-6,
    )
    x, y = np.moveaxis(a.astype(np.float64), axis, 0), np.moveaxis(b.astype(np.float64), axis, 0)
    state, steps = np.zeros(x.shape[1:]), []
    for factor, term in zip(x, y, strict=True):
        state = state * factor + term
        steps.append(state)
    np.testing.assert_allclose(made.arrays[2], np.moveaxis(np.stack(steps), 0, axis), rtol=1e-5, atol=1e-5)


def sampled(a: Tensor[float32, "m n"], out: Tensor[float32, "three m"], first: Tensor[int32, "m"], *, shape: constexpr, warps: constexpr):  # fmt: skip
    tilus.grid(1, warps=warps)
    x = tilus.load(a, (0, 0), shape)
    mean, squares, count = tilus.reduce((x, tilus.zeros_like(x), tilus.full(shape, 1.0)), 1, moments)
    for row, part in enumerate((mean, squares, count)):
        tilus.store(out, part[None, :], (row, 0))
    tilus.store(first, tilus.reduce(tilus.cast(x, int32), 1, first_of_two), 0)


@pytest.mark.parametrize(
    ("shape", "warps"), [((4, 64), 1), ((2, 256), 4), ((5, 8), 3), ((3, 50), 2), ((2, 7), 1)], ids=str
)
def test_a_reduction_by_a_function_keeps_the_order(shape, warps):
    a = d.random(float32, *shape) * 2
    a[:, :2] = 0.25
    made = d.run(
        sampled, a, np.zeros((3, shape[0]), np.float32), np.zeros(shape[0], np.int32), shape=shape, warps=warps,
        rtol=1e-5, atol=1e-5,
    )  # fmt: skip
    exact = a.astype(np.float64)
    np.testing.assert_allclose(made.arrays[1][0], exact.mean(1), rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(made.arrays[1][1], exact.var(1) * shape[1], rtol=1e-4)
    np.testing.assert_array_equal(made.arrays[1][2], shape[1])
    whole = a.astype(np.int32)
    expected = [next((v for v in row if v), 0) for row in whole.tolist()]
    assert made.arrays[2].tolist() == expected


def kinds(a: Tensor["dtype", "m n"], out: Tensor["dtype", "k m"], *, dtype: constexpr, shape: constexpr, which: constexpr):  # fmt: skip
    tilus.grid(1, warps=2)
    x = tilus.load(a, (0, 0), shape)
    for row, kind in enumerate(which):
        tilus.store(out, tilus.reduce(x, 1, kind)[None, :], (row, 0))


@pytest.mark.parametrize("dtype", [int32, int64], ids=str)
def test_reductions_of_bits_and_products(dtype):
    a = d.random(dtype, 4, 48, low=-3, high=3)
    which = ("prod", "and", "or", "xor")
    made = d.run(kinds, a, np.zeros((4, 4), a.dtype), dtype=dtype, shape=a.shape, which=which).arrays[1]
    for row, function in enumerate((np.multiply, np.bitwise_and, np.bitwise_or, np.bitwise_xor)):
        np.testing.assert_array_equal(made[row], function.reduce(a, 1))


@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(float16, 2e-3), (bfloat16, 1.6e-2), (float32, 1e-5)], ids=str
)
def test_products_of_narrow_floats_are_rounded_once(dtype, tolerance):
    a = d.array(np.exp2(d.random(float32, 3, 40) / 4), dtype)
    d.run(
        kinds,
        a,
        np.zeros((1, 3), a.dtype),
        dtype=dtype,
        shape=(3, 40),
        which=("prod",),
        rtol=tolerance,
        atol=1e-6,
    )


def counted(x: Tensor["dtype", "n"], out: Tensor[int32, "bins"], some: Tensor[int32, "bins"], *, dtype: constexpr, n: constexpr, bins: constexpr):  # fmt: skip
    tilus.grid(1, warps=2)
    tile = tilus.load(x, 0, n)
    tilus.store(out, tilus.histogram(tile, bins), 0)
    tilus.store(some, tilus.histogram(tile, bins, tilus.arange(0, n) < 20), 0)


@pytest.mark.parametrize("dtype", [uint8, int8, int32, int64], ids=str)
@pytest.mark.parametrize(("n", "bins"), [(100, 7), (256, 40)])
def test_a_histogram_counts_what_is_in_a_bin(n, bins, dtype):
    x = d.random(dtype, n, low=-5, high=50)
    if dtype.bits == 64:
        x[3] = 1 << 33
    made = d.run(
        counted, x, np.zeros(bins, np.int32), np.zeros(bins, np.int32), dtype=dtype, n=n, bins=bins
    ).arrays
    for found, counted_ones in ((made[1], x), (made[2], x[:20])):
        inside = counted_ones[(counted_ones >= 0) & (counted_ones < bins)].astype(np.int64)
        np.testing.assert_array_equal(found, np.bincount(inside, minlength=bins))


def taken(x: Tensor["dtype", "m n"], index: Tensor[int32, "i j"], out: Tensor["dtype", "i j"], *, dtype: constexpr, shape: constexpr, wanted: constexpr, axis: constexpr):  # fmt: skip
    tilus.grid(1, warps=2)
    tile, places = tilus.load(x, (0, 0), shape), tilus.load(index, (0, 0), wanted)
    tilus.store(out, tilus.gather(tile, places, axis), (0, 0))


@pytest.mark.parametrize("dtype", [uint8, float16, float32], ids=str)
@pytest.mark.parametrize(("wanted", "axis"), [((6, 40), 1), ((9, 20), 0)])
def test_gather_takes_elements_by_their_index(wanted, axis, dtype):
    x = d.random(dtype, 6, 20, low=0, high=99)
    index = d.random(int32, *wanted, low=-2, high=x.shape[axis] + 1)
    made = d.run(
        taken, x, index, np.zeros(wanted, x.dtype), dtype=dtype, shape=x.shape, wanted=wanted, axis=axis
    ).arrays[2]
    inside = (index >= 0) & (index < x.shape[axis])
    expected = np.take_along_axis(x, np.clip(index, 0, x.shape[axis] - 1), axis)
    np.testing.assert_array_equal(made, np.where(inside, expected, 0))


def pointwise(x: Tensor[float32, "m n"], out: Tensor[float32, "k m n"], *, shape: constexpr):
    tilus.grid(1, warps=2)
    tile = tilus.load(x, (0, 0), shape)
    made = (tilus.clamp(tile, -0.5, 1), tilus.sigmoid(tile), tilus.softmax(tile), tilus.softmax(tile, 0))
    for row, part in enumerate(made):
        tilus.store(out, part[None, :, :], (row, 0, 0))


def test_clamp_sigmoid_and_softmax():
    x = d.random(float32, 6, 24) * 8
    x[0, 0], x[1, 1] = np.nan, 300.0
    made = d.run(pointwise, x, np.zeros((4, 6, 24), np.float32), shape=x.shape, rtol=1e-5, atol=1e-7).arrays[
        1
    ]
    exact = x.astype(np.float64)
    np.testing.assert_array_equal(made[0], np.clip(x, -0.5, 1))
    np.testing.assert_allclose(made[1], 1 / (1 + np.exp(-exact)), rtol=1e-5)
    for row, axis in ((2, 1), (3, 0)):
        powers = np.exp(exact - exact.max(axis, keepdims=True))
        np.testing.assert_allclose(made[row], powers / powers.sum(axis, keepdims=True), rtol=1e-5, atol=1e-7)


def relabelled(x: Tensor[float16, "n"], square: Tensor[float16, "a b"], turned: Tensor[float16, "c d"], staged: Tensor[float16, "e f"]):  # fmt: skip
    tilus.grid(1, warps=4)
    s = tilus.shared(float16, (2048,))
    tilus.store(s, tilus.load(x, 0, 2048))
    matrix = s.reshape((32, -1))
    tilus.store(square, tilus.load(matrix), (0, 0))
    tilus.store(turned, tilus.load(tilus.reshape(matrix, (64, 32)).T), (0, 0))
    ring = tilus.shared(float16, (2, 16, 64))
    for stage in tilus.static_range(2):
        tilus.store(ring[stage].reshape((32, 32)), tilus.load(x, stage * 1024, 1024).reshape((32, 32)))
    tilus.store(staged, tilus.load(ring.reshape((32, 64))), (0, 0))


def test_a_shared_tensor_is_seen_in_another_shape():
    x = d.random(float16, 2048)
    shapes = [(32, 64), (32, 64), (32, 64)]
    made = d.run(relabelled, x, *(np.zeros(shape, np.float16) for shape in shapes)).arrays
    np.testing.assert_array_equal(made[1], x.reshape(32, 64))
    np.testing.assert_array_equal(made[2], x.reshape(64, 32).T)
    np.testing.assert_array_equal(made[3], x.reshape(32, 64))


@tilus.inline
def shorter(a, b):
    return (a + b)[0:1, :]


@tilus.inline
def one_of_two(a, b):
    return a[0]


@tilus.inline
def wider(a, b):
    return tilus.cast(a, float32) + tilus.cast(b, float32)


@tilus.inline
def scan_by_shorter(x):
    tilus.scan(x, 1, shorter)


@tilus.inline
def reduce_by_one_of_two(x):
    tilus.reduce((x, x), 1, one_of_two)


@tilus.inline
def reduce_by_wider(x):
    tilus.reduce(x, 1, wider)


@tilus.inline
def exclusive(x):
    tilus.scan(x, 1, linear, exclusive=True)


@tilus.inline
def no_kind(x):
    tilus.reduce(x, 0, "mean")


@tilus.inline
def floats_by_bits(x):
    tilus.reduce(x, 0, "and")


@tilus.inline
def two_shapes(x):
    tilus.scan((x, x[0:1, :]), 1, linear)


@tilus.inline
def gathered(x):
    tilus.gather(x, tilus.iota((4, 32), 0), 1)


@tilus.inline
def odd_view(x):
    s = tilus.shared(float16, (3, 32))
    tilus.store(s, x)
    tilus.load(s.reshape((2, 47)))


@tilus.inline
def swizzled_view(x):
    s = tilus.shared(float16, (3, 32), layout=column_major(3, 32))
    tilus.store(s, x)
    tilus.load(s.reshape((2, 48)))


def refused(x: Tensor[float16, "m n"], *, what: constexpr):
    tilus.grid(1, warps=1)
    what(tilus.load(x, (0, 0), (3, 32)))


REFUSED = {
    "shorter": (scan_by_shorter, TypeMismatch, "shorter, by which scan combines elements, gives a float16 tile of shape [1, 32]"),
    "one of two": (reduce_by_one_of_two, TypeMismatch, "as many tiles, of their dtypes and shapes"),
    "wider": (reduce_by_wider, TypeMismatch, "gives a float32 tile of shape [3, 32], expected a float16 tile"),
    "exclusive": (exclusive, TypeMismatch, "a scan by a function leaves no element out"),
    "no kind": (no_kind, TilusError, "'mean'"),
    "floats by bits": (floats_by_bits, TypeMismatch, "float16"),
    "two shapes": (two_shapes, ShapeMismatch, "scan takes tiles of one shape, not [1, 32] and [3, 32]"),
    "gathered": (gathered, ShapeMismatch, "indices of the tile's shape but for the axis"),
    "odd view": (odd_view, ShapeMismatch, "reshape from [3, 32], which has 96 elements, to [2, 47]"),
    "swizzled view": (swizzled_view, LayoutConflict, "cannot be seen as (2, 48) where it lies"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_does_not_fit_is_refused(name):
    what, error, text = REFUSED[name]
    found = error_of(refused, error, what=what)
    assert text in str(found)
    assert found.location is not None


def test_static_print_shows_values_when_the_kernel_is_compiled(capsys):
    def shown(x: Tensor[float32, "n"], *, n: constexpr):
        tilus.grid(1, warps=1)
        tilus.static_print("n is", n, "and the tile", tilus.load(x, 0, n))

    d.trace(shown, np.zeros(8, np.float32), n=32)
    assert capsys.readouterr().out == "n is 32 and the tile a float32 tile of shape [32]\n"
