"""Shared memory: stores and loads in any layout, parts and views of a tensor, single elements, and asynchronous copies."""

from __future__ import annotations

import re

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
    float8_e4m3,
    float16,
    float32,
    float64,
    int8,
    int16,
    int32,
    int64,
    uint8,
)
from tilus.lang import Tensor, constexpr
from tilus.layout import padded, parse, row_major, swizzled_row_major

COPY = re.compile(r"cp\.async\.(c[ag])\.shared\.global \[[^]]*\], \[[^]]*\], (\d+)")
ANY = [int8, uint8, int16, float16, bfloat16, float32, int32, float64, int64, boolean, float8_e4m3]


def through1(
    a: Tensor["dtype", "n"], out: Tensor["dtype", "n"], *,
    dtype: constexpr, shape: constexpr, first: constexpr, second: constexpr, warps: constexpr,
):  # fmt: skip
    tilus.grid(1, warps=warps)
    s = tilus.shared(dtype, shape)
    tilus.store(s, tilus.load(a, 0, shape, layout=first))
    tilus.store(out, tilus.load(s, layout=second), 0)


def through2(
    a: Tensor["dtype", "m n"], out: Tensor["dtype", "m n"], *,
    dtype: constexpr, shape: constexpr, first: constexpr, second: constexpr, warps: constexpr, place: constexpr = None,
):  # fmt: skip
    tilus.grid(1, warps=warps)
    s = tilus.shared(dtype, shape, layout=place)
    tilus.store(s, tilus.load(a, (0, 0), shape, layout=first))
    tilus.store(out, tilus.load(s, layout=second), (0, 0))


@pytest.mark.parametrize("dtype", ANY, ids=str)
def test_every_dtype_lies_in_shared_memory(dtype):
    for shape in ((16, 48), (5, 7), (33, 16)):
        a = d.random(dtype, *shape)
        d.run(through2, a, np.zeros_like(a), dtype=dtype, shape=shape, first=None, second=None, warps=2)


@st.composite
def ways(draw: st.DrawFn):
    warps = draw(st.sampled_from((1, 2, 3, 4)))
    shape = draw(shapes(ranks=(1, 2), most=2048))
    first, second = (draw(layouts(shape, 32 * warps)) for _ in range(2))
    return draw(st.sampled_from(ANY)), shape, first, second, warps


@settings(max_examples=30, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
@given(ways())
def test_any_layout_meets_any_other_in_shared_memory(way):
    dtype, shape, first, second, warps = way
    a = d.random(dtype, *shape)
    kernel = through1 if len(shape) == 1 else through2
    d.run(kernel, a, np.zeros_like(a), dtype=dtype, shape=shape, first=first, second=second, warps=warps)


@pytest.mark.parametrize("dtype", [uint8, float16, float32, float64], ids=str)
@pytest.mark.parametrize("kind", ["rows", "padded", "swizzled"])
def test_a_layout_that_the_user_says(dtype, kind):
    shape = (32, 64)
    places = {
        "rows": row_major(*shape), "padded": padded(shape, 16 * 8 // dtype.bits),
        "swizzled": swizzled_row_major(shape, dtype.bits, 64),
    }  # fmt: skip
    a = d.random(dtype, *shape)
    d.run(
        through2, a, np.zeros_like(a), dtype=dtype, shape=shape, warps=1, place=places[kind],
        first=parse("spatial(32, 1).local(1, 64)"), second=parse("spatial(1, 32).local(32, 2)"),
    )  # fmt: skip


def parts(
    a: Tensor["dtype", "m n"],
    out: Tensor["dtype", "m n"],
    turned: Tensor["dtype", "n m"],
    k: int32,
    *,
    dtype: constexpr,
):
    tilus.grid(1, warps=2)
    s = tilus.shared(dtype, (32, 64))
    for i in tilus.static_range(2):
        tilus.store(s[16 * i : 16 * i + 16, :], tilus.load(a, (16 * i, 0), (16, 64)))
    tilus.store(out, tilus.load(s[0:16, 32:64]), (16, 0))
    tilus.store(out, tilus.load(s[16:32, 0:32]), (0, 32))
    tilus.store(out, tilus.load(s[16:32, 32:64]), (0, 0))
    tilus.store(out, tilus.load(s[0:16, 0:32]), (16, 32))
    tilus.store(turned, tilus.load(s.T), (0, 0))


@pytest.mark.parametrize("dtype", [uint8, float16, float32, int64], ids=str)
def test_parts_and_the_transpose_of_a_shared_tensor(dtype):
    a = d.random(dtype, 32, 64)
    made = d.run(parts, a, np.zeros_like(a), np.zeros((64, 32), a.dtype), 3, dtype=dtype)
    np.testing.assert_array_equal(made.arrays[2], a.T)
    np.testing.assert_array_equal(made.arrays[1][:16, :32], a[16:, 32:])


def rows(a: Tensor["dtype", "m n"], out: Tensor["dtype", "m n"], k: int32, *, dtype: constexpr):
    tilus.grid(1, warps=2)
    s = tilus.shared(dtype, (16, 64))
    t = tilus.shared(dtype, (3, 16, 64))
    tilus.store(s, tilus.load(a, (0, 0), (16, 64)))
    for i in range(16):
        tilus.store(out, tilus.load(s[15 - i]), (i, 0))
    for i in range(3):
        tilus.store(t[i], tilus.load(a, (16 * i, 0), (16, 64)))
    tilus.store(out, tilus.load(t[(k + 1) % 3]), (16, 0))
    tilus.store(out, tilus.load(t[k, 4:8]), (32, 0))


@pytest.mark.parametrize("dtype", [uint8, float16, float32, int64], ids=str)
def test_rows_and_stages_by_a_run_time_index(dtype):
    a = d.random(dtype, 48, 64)
    made = d.run(rows, a, np.zeros_like(a), 1, dtype=dtype)
    np.testing.assert_array_equal(made.arrays[1][:16], a[15::-1])
    np.testing.assert_array_equal(made.arrays[1][16:32], a[32:48])
    np.testing.assert_array_equal(made.arrays[1][32:36], a[20:24])


def elements(
    a: Tensor["dtype", "m n"], i: Tensor[int32, "k"], j: Tensor[int32, "k"], out: Tensor["dtype", "k"],
    back: Tensor["dtype", "m n"], *, dtype: constexpr,
):  # fmt: skip
    tilus.grid(1, warps=2)
    s, t = tilus.shared(dtype, (24, 40)), tilus.shared(dtype, (24, 40))
    tilus.store(s, tilus.load(a, (0, 0), (24, 40)))
    tilus.store(t, tilus.zeros((24, 40), dtype))
    rows, columns = tilus.load(i, 0, 80), tilus.load(j, 0, 80)
    x = tilus.load(s, indices=(rows, columns))
    tilus.store(out, x, 0)
    tilus.store(t, x, indices=(rows, columns), mask=rows < 20)
    tilus.store(back, tilus.load(t), (0, 0))


@pytest.mark.parametrize("dtype", [uint8, float16, float32, int64, boolean], ids=str)
def test_gather_and_scatter(dtype):
    places = np.random.default_rng(4).permutation(24 * 40)[:80]
    i, j = (places // 40).astype(np.int32), (places % 40).astype(np.int32)
    i[:3], j[3:6] = [-1, 24, 2**31 - 1], [-1, 40, -(2**31)]
    a = d.random(dtype, 24, 40)
    made = d.run(elements, a, i, j, np.zeros(80, a.dtype), np.zeros_like(a), dtype=dtype)
    inside = (i >= 0) & (i < 24) & (j >= 0) & (j < 40)
    np.testing.assert_array_equal(made.arrays[3], np.where(inside, a[i % 24, j % 40], np.zeros(1, a.dtype)))


def copied(
    a: Tensor["dtype", "m n"],
    out: Tensor["dtype", "m n"],
    i: int32,
    j: int32,
    *,
    dtype: constexpr,
    step: constexpr,
):
    tilus.grid(1, warps=2)
    s = tilus.shared(dtype, (24, 64))
    column = tilus.assume(j, step) if step > 1 else j
    tilus.copy_async(s, a, (i, column))
    tilus.copy_async_commit()
    tilus.copy_async_wait(0)
    tilus.sync()
    tilus.store(out, tilus.load(s), (i, column))


@pytest.mark.parametrize("dtype", [uint8, float16, float32, float64], ids=str)
@pytest.mark.parametrize("target", ["sm_75", "sm_80"])
def test_asynchronous_copies_with_ragged_edges_and_any_alignment(dtype, target):
    sizes = set()
    for shape, at, step in (
        ((40, 96), (0, 0), 16),
        ((30, 90), (16, 64), 16),
        ((24, 65), (-3, 8), 8),
        ((24, 68), (2, 7), 1),
    ):
        a = d.random(dtype, *shape)
        made = d.run(copied, a, np.full_like(a, 1), *at, dtype=dtype, step=step, target=target)
        sizes |= {size for _, size in COPY.findall(made.ptx)}
    if target == "sm_75":
        assert not sizes
    else:
        assert "16" in sizes


def test_the_bytes_of_an_asynchronous_copy_follow_the_alignment():
    for columns, step, size in ((96, 16, 16), (96, 4, 8), (96, 2, 4), (98, 16, 4), (96, 1, 0), (97, 16, 0)):
        a = d.random(float16, 40, columns)
        made = d.run(copied, a, np.zeros_like(a), 0, 16, dtype=float16, step=step)
        found = set(COPY.findall(made.ptx))
        assert found == ({("cg" if size == 16 else "ca", str(size))} if size else set()), (columns, step)


def copied_by_few(a: Tensor[float32, "m n"], out: Tensor[float32, "m n"]):
    tilus.grid(1, warps=4)
    s = tilus.shared(float32, (8, 16))
    tilus.copy_async(s, a, (0, 0))
    tilus.copy_async_commit()
    tilus.copy_async_wait(0)
    tilus.sync()
    tilus.store(out, tilus.load(s, layout=parse("replicated(2).spatial(8, 8).local(1, 2)")), (0, 0))


def test_each_part_of_a_small_tile_is_copied_once():
    a = d.random(float32, 8, 16)
    made = d.run(copied_by_few, a, np.zeros_like(a))
    assert re.search(r"@%p\d+ cp\.async", made.ptx)


def matrices(a: Tensor["dtype", "m n"], out: Tensor["dtype", "m n"], *, dtype: constexpr, layout: constexpr):
    tilus.grid(1, warps=1)
    s = tilus.shared(dtype, (32, 64))
    tilus.store(s, tilus.load(a, (0, 0), (32, 64)))
    tilus.store(out, tilus.load(s, layout=layout), (0, 0))


@pytest.mark.parametrize(
    ("dtype", "layout", "text"),
    [
        (
            float16,
            "local(2, 4).column_local(2, 2).spatial(8, 4).local(1, 2)",
            "ldmatrix.sync.aligned.m8n8.x4.shared.b16",
        ),
        (
            float16,
            "local(4, 8).column_spatial(4, 8).local(2, 1)",
            "ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16",
        ),
        (uint8, "local(4, 4).spatial(8, 4).local(1, 4)", "ldmatrix.sync.aligned.m8n8.x4.shared.b16"),
        (float32, "local(4, 16).spatial(8, 4)", "ldmatrix.sync.aligned.m8n8.x4.shared.b16"),
        (float32, "local(8, 8).spatial(4, 8)", None),
    ],
)
def test_matrices_are_loaded_by_the_instruction_that_fits(dtype, layout, text):
    a = d.random(dtype, 32, 64)
    made = d.run(matrices, a, np.zeros_like(a), dtype=dtype, layout=parse(layout))
    assert made.count("ldmatrix") == (0 if text is None else 32 * 64 * dtype.bits // 32 // 32 // 4)
    if text is not None:
        assert made.count(text) == made.count("ldmatrix")
        assert made.report.counters["shared_wavefronts"] >= made.report.counters["shared_wavefronts_ideal"]


def copies(a: Tensor[float32, "n"], out: Tensor[float32, "n"]):
    tilus.grid(1, warps=4)
    s = tilus.shared(float32, (16,))
    tilus.store(s, tilus.load(a, 0, 16) * 2.0)
    tilus.store(out, tilus.load(s) + 1.0, 0)


def test_of_copies_among_threads_one_stores():
    a = d.random(float32, 16)
    made = d.run(copies, a, np.zeros_like(a), rtol=1e-6)
    np.testing.assert_allclose(made.arrays[1], 2 * a + 1, rtol=1e-6)


def far_index(indices: Tensor[int64, "n"], out: Tensor[int32, "n"]):
    tilus.grid(1, warps=1)
    s = tilus.shared(int32, (32,))
    tilus.store(s, tilus.arange(32) + 1)
    tilus.sync()
    at = tilus.load(indices, (0,), (32,))
    tilus.store(out, tilus.load(s, indices=at), (0,))


def test_an_index_of_64_bits_is_not_cut_to_32():
    indices = np.arange(32) + np.where(np.arange(32) % 2, 1 << 32, 0)
    made = d.run(far_index, indices, np.zeros(32, np.int32))
    np.testing.assert_array_equal(made.arrays[1], np.where(np.arange(32) % 2, 0, np.arange(32) + 1))
