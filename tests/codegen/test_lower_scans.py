"""Scans within threads, warps and blocks, along every axis, for any extents."""

from __future__ import annotations

import numpy as np
import pytest

import tilus.lang as tilus
from tests.codegen import differential as d
from tilus.dtypes import bfloat16, float16, float32, float64, int16, int32, int64, uint16, uint32, uint64
from tilus.lang import Tensor, constexpr
from tilus.layout import parse

RTOL = {"float16": 2e-3, "bfloat16": 1.6e-2, "float32": 1e-5, "float64": 1e-12}


def one(
    a: Tensor["dtype", "n"], out: Tensor["dtype", "k n"], *,
    dtype: constexpr, shape: constexpr, axis: constexpr, warps: constexpr, kinds: constexpr, layout: constexpr = None,
):  # fmt: skip
    tilus.grid(1, warps=warps)
    x = tilus.load(a, 0, shape, layout=layout)
    for row, (kind, exclusive) in enumerate(kinds):
        tilus.store(out, tilus.scan(x, axis, kind, exclusive=exclusive), (row, 0))


def two(
    a: Tensor["dtype", "m n"], out: Tensor["dtype", "k m n"], *,
    dtype: constexpr, shape: constexpr, axis: constexpr, warps: constexpr, kinds: constexpr, layout: constexpr = None,
):  # fmt: skip
    tilus.grid(1, warps=warps)
    x = tilus.load(a, (0, 0), shape, layout=layout)
    for row, (kind, exclusive) in enumerate(kinds):
        tilus.store(out, tilus.scan(x, axis, kind, exclusive=exclusive), (row, 0, 0))


def three(
    a: Tensor["dtype", "l m n"], out: Tensor["dtype", "k l m n"], *,
    dtype: constexpr, shape: constexpr, axis: constexpr, warps: constexpr, kinds: constexpr, layout: constexpr = None,
):  # fmt: skip
    tilus.grid(1, warps=warps)
    x = tilus.load(a, (0, 0, 0), shape, layout=layout)
    for row, (kind, exclusive) in enumerate(kinds):
        tilus.store(out, tilus.scan(x, axis, kind, exclusive=exclusive), (row, 0, 0, 0))


FLOAT_KINDS = tuple(
    (kind, exclusive) for kind in ("sum", "prod", "max", "min") for exclusive in (False, True)
)
BIT_KINDS = tuple((kind, exclusive) for kind in ("and", "or", "xor") for exclusive in (False, True))


def scan(
    shape, axis, warps, dtype=float32, kinds=(("sum", False), ("max", True)), layout=None, a=None
) -> d.Outcome:
    if a is None:
        a = d.random(dtype, *shape, low=-300, high=300)
    tolerance = {"rtol": RTOL[dtype.name], "atol": 10 * RTOL[dtype.name]} if dtype.is_float else {}
    return d.run(
        {1: one, 2: two, 3: three}[len(shape)], a, np.zeros((len(kinds), *shape), a.dtype),
        dtype=dtype, shape=shape, axis=axis, warps=warps, kinds=kinds, layout=layout, **tolerance,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("shape", "warps"),
    [
        ((7,), 1), ((96,), 1), ((256,), 4), ((160,), 8), ((2048,), 4), ((5, 7), 1), ((48, 80), 4), ((3, 128), 8),
        ((128, 2), 2), ((1, 96), 3), ((4, 6, 10), 3), ((2, 64, 3), 2),
    ],
    ids=str,
)  # fmt: skip
def test_every_axis_of_any_shape(shape, warps):
    for axis in range(len(shape)):
        made = scan(shape, axis, warps)
        a = made.arrays[0].astype(np.float64)
        np.testing.assert_allclose(made.arrays[1][0], np.cumsum(a, axis), rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize(
    "dtype", [float16, bfloat16, float32, float64, int16, uint16, int32, uint32, int64, uint64], ids=str
)
def test_every_kind_of_every_dtype(dtype):
    kinds = FLOAT_KINDS if dtype.is_float else FLOAT_KINDS + BIT_KINDS
    a = d.random(dtype, 96, low=-300, high=300)
    if dtype.is_float:
        a = d.array(np.exp2(d.random(float64, 96) / 8) * np.where(np.arange(96) % 5, 1, -1), dtype)
    scan((96,), 0, 3, dtype, kinds, a=a)


def test_not_a_number_spreads_to_what_follows():
    a = d.random(float32, 4, 64)
    a[1, 40] = np.nan
    made = scan((4, 64), 1, 2, kinds=FLOAT_KINDS, a=a)
    assert np.isnan(made.arrays[1][4, 1, 40:]).all()
    assert not np.isnan(made.arrays[1][4, 1, :40]).any()


def test_lanes_need_no_shared_memory_and_warps_need_words_only():
    assert scan((8, 64), 1, 2).compiled.shared_bytes == 0
    # Two rows of partial sums for each of 128 threads at most, not the tile.
    assert 0 < scan((2048,), 0, 4).compiled.shared_bytes <= 1024


def test_a_layout_that_the_user_says_is_kept_where_it_scans():
    scan((8, 64), 1, 1, layout=parse("spatial(2, 16).local(4, 4)"))


def test_any_layout_of_the_operand_is_brought_into_order():
    # Columns interleaved among threads: no thread holds a run of the axis.
    scan((8, 64), 1, 1, layout=parse("local(4, 4).spatial(2, 16)"))
    scan((64, 8), 0, 2, layout=parse("local(2, 1).spatial(32, 2).local(1, 4)"))
