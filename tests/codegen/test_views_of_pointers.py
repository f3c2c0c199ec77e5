"""Tensors made of moved pointers, and masks, keep accesses wide where that is provable and only there."""

from __future__ import annotations

import numpy as np
import pytest

import tilus.lang as tilus
from tests.codegen import differential as d
from tilus.dtypes import float16, int32
from tilus.errors import HazardFound
from tilus.ir import ops, walk
from tilus.ir.interpreter import run as interpret
from tilus.lang import Pointer, Tensor, constexpr


def moved(
    x: Tensor[float16, "a b 64"],
    out: Tensor[float16, "a 16 64"],
    starts: Tensor[int32, "a"],
    *,
    form: constexpr,
):
    tilus.grid(x.shape[0], warps=4)
    i = tilus.block_id()
    start = tilus.load(starts, i)
    if form == "steps":
        rows = tilus.view(
            x.ptr + i * x.strides[0] + start * x.strides[1], float16, (16, 64), (x.strides[1], 1)
        )
    elif form == "bytes":
        rows = tilus.view(x.ptr + (i * x.shape[1] + start) * 64, float16, (16, 64))
    elif form == "extent":
        whole = tilus.view(x.ptr, float16, (x.shape[0], start + 16, 64), x.strides)
        tilus.store(out, tilus.load(whole, (i, start, 0), (16, 64)), (i, 0, 0))
    elif form == "odd":
        rows = tilus.view(x.ptr + (i * x.shape[1] + start) * 64 - i, float16, (16, 64))
    if form != "extent":
        tilus.store(out, tilus.load(rows, (0, 0), (16, 64)), (i, 0, 0))


@pytest.mark.parametrize(
    ("form", "load"), [("steps", "v4"), ("bytes", "v4"), ("extent", "v4"), ("odd", "u16")]
)
def test_a_moved_pointer_keeps_its_alignment(form, load):
    x, starts = d.random(float16, 3, 48, 64), np.array([0, 7, 32], np.int32)
    made = d.run(moved, x, np.zeros((3, 16, 64), np.float16), starts, form=form)
    wide = made.count("ld.global.v4.b32") + made.count("ld.global.v4.u32")
    assert (wide > 0) == (load == "v4")
    flat = x.reshape(-1)
    for i, start in enumerate(starts):
        first = (i * 48 + start) * 64 - (i if form == "odd" else 0)
        np.testing.assert_array_equal(made.arrays[1][i].reshape(-1), flat[first : first + 1024])


def pointed(
    p: Pointer[float16], offsets: Tensor[int32, "n"], out: Tensor[float16, "n 64"], *, promise: constexpr
):
    tilus.grid(offsets.shape[0], warps=1)
    i = tilus.block_id()
    row = p + tilus.load(offsets, i)
    if promise:
        row = tilus.assume(row, 16)
    tilus.store(out, tilus.load(tilus.view(row, float16, (64,)), 0, 64), (i, 0))


@pytest.mark.parametrize("promise", [False, True])
def test_a_promise_about_a_pointer_makes_loads_wide(promise):
    data, offsets = d.random(float16, 512), np.array([8, 256, 64], np.int32)
    made = d.run(pointed, data, offsets, np.zeros((3, 64), np.float16), promise=promise)
    # 64 elements over 32 lanes: a pair each, where pairs are known to be aligned.
    assert (made.count("ld.global.u16") == 0) == promise
    np.testing.assert_array_equal(made.arrays[2], np.stack([data[o : o + 64] for o in offsets]))


def test_a_false_promise_about_a_pointer_is_found():
    data, offsets = d.random(float16, 512), np.array([9], np.int32)
    kernel = d.trace(pointed, data, offsets, np.zeros((1, 64), np.float16), promise=True)
    with pytest.raises(HazardFound, match="aligned to 16 bytes"):
        interpret(kernel, [data, offsets, np.zeros((1, 64), np.float16)])


def masked(
    x: Tensor[float16, "m n"], out: Tensor[float16, "m n"], rows: int32, columns: int32, *, form: constexpr
):
    tilus.grid(1, warps=4)
    mask = (tilus.arange(64) < rows)[:, None]
    if form == "promised":
        columns = tilus.assume(columns, 8)
    if form != "rows":
        mask = mask & (tilus.arange(64) < columns)[None, :]
    tile = tilus.load(x, (0, 0), (64, 64), mask=mask, other=1.0)
    tilus.store(out, tile * 2, (0, 0), mask=mask)


@pytest.mark.parametrize(("form", "wide"), [("rows", True), ("promised", True), ("columns", False)])
def test_a_mask_that_is_equal_along_a_vector_leaves_it_whole(form, wide):
    x = d.random(float16, 64, 64)
    made = d.run(masked, x, np.full((64, 64), 5, np.float16), 37, 24, form=form)
    assert (made.count("ld.global.v4") > 0) == wide
    assert (made.count("st.global.v4") > 0) == wide
    wanted = np.full((64, 64), 5, np.float16)
    columns = 64 if form == "rows" else 24
    wanted[:37, :columns] = x[:37, :columns] * 2
    np.testing.assert_array_equal(made.arrays[1], wanted)


def causal(x: Tensor[float16, "m n"], out: Tensor[float16, "m n"], end: int32):
    tilus.grid(1, warps=4)
    tile = tilus.load(x, (0, 0), (64, 64))
    place = tilus.arange(64)
    kept = (place[None, :] <= place[:, None] + end) & (place[None, :] < end)
    tilus.store(out, tilus.where(kept, tile, 0), (0, 0))


def test_an_index_that_two_dimensions_use_is_made_twice_and_not_moved():
    x = d.random(float16, 64, 64)
    made = d.run(causal, x, np.zeros((64, 64), np.float16), 9)
    assert not any(isinstance(op, ops.ConvertLayout) for op in walk(made.compiled.kernel.body))
    row, column = np.indices((64, 64))
    np.testing.assert_array_equal(made.arrays[1], np.where((column <= row + 9) & (column < 9), x, 0))
