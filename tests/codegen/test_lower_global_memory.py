"""Loads and stores of tiles in global memory: bounds, masks, strides, and how wide the accesses are."""

from __future__ import annotations

import numpy as np
import pytest

import tilus.lang as tilus
from tests.codegen import differential as d
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
    uint16,
)
from tilus.lang import Pointer, Tensor, constexpr

ANY = (int8, uint8, int16, uint16, float16, bfloat16, float32, int32, float64, int64, boolean, float8_e4m3)


def guarded(shape: tuple[int, ...], dtype, rows: int = 2):
    """Return a view of an array with room around it, so that a store beyond its bounds is seen."""
    room = tuple(n + 2 * rows for n in shape)
    base = np.ascontiguousarray(d.random(dtype, *room, seed=9))
    return base[tuple(slice(rows, rows + n) for n in shape)]


def copy1(
    a: Tensor["dtype", "n"], out: Tensor["dtype", "n"], at: int32, *, dtype: constexpr, shape: constexpr
):
    tilus.grid(1, warps=2)
    tilus.store(out, tilus.load(a, at, shape), at)


def copy2(
    a: Tensor["dtype", "m n"], out: Tensor["dtype", "m n"], i: int32, j: int32, *, dtype: constexpr, shape: constexpr,
):  # fmt: skip
    tilus.grid(1, warps=2)
    tilus.store(out, tilus.load(a, (i, j), shape), (i, j))


def copy3(
    a: Tensor["dtype", "l m n"], out: Tensor["dtype", "l m n"], i: int32, j: int32, *,
    dtype: constexpr, shape: constexpr,
):  # fmt: skip
    tilus.grid(3, warps=1)
    at = (tilus.block_id(0), i, j)
    tilus.store(out, tilus.load(a, at, shape), at)


def copy4(
    a: Tensor["dtype", "k l m n"], out: Tensor["dtype", "k l m n"], *, dtype: constexpr, shape: constexpr
):
    tilus.grid(2, 3, warps=1)
    i, j = tilus.block_id(0), tilus.block_id(1)
    tilus.store(out, tilus.load(a, (i, j, 0, -1), shape), (i, j, 0, -1))


@pytest.mark.parametrize("dtype", ANY, ids=str)
@pytest.mark.parametrize(("size", "tile", "at"), [(100, 128, 0), (96, 64, -16), (37, 64, 0), (64, 7, 60)])
def test_elements_outside_are_neither_read_nor_written(dtype, size, tile, at):
    a = d.random(dtype, size, seed=1)
    made = d.run(copy1, a, np.zeros_like(a), at, dtype=dtype, shape=tile)
    inside = slice(max(at, 0), max(at + tile, 0))
    np.testing.assert_array_equal(made.arrays[1][inside], a[inside])


@pytest.mark.parametrize("dtype", [uint8, float16, float32, int64], ids=str)
@pytest.mark.parametrize(
    ("shape", "at"), [((16, 64), (0, 0)), ((50, 70), (32, 48)), ((33, 48), (-5, -16)), ((20, 20), (40, 0))]
)
def test_matrices_with_ragged_edges(dtype, shape, at):
    a = d.random(dtype, *shape, seed=2)
    out = guarded(shape, dtype)
    d.run(copy2, a, out, *at, dtype=dtype, shape=(32, 32))
    # A view into a larger array: rows are far apart, and start at any address.
    d.run(copy2, guarded(shape, dtype), out, *at, dtype=dtype, shape=(32, 32))


@pytest.mark.parametrize("dtype", [uint8, float16, float32, int64], ids=str)
def test_tensors_of_three_and_four_dimensions(dtype):
    a = d.random(dtype, 3, 20, 36)
    d.run(copy3, a, np.zeros_like(a), 3, -2, dtype=dtype, shape=(16, 32))
    d.run(copy3, a, np.zeros_like(a), 0, 8, dtype=dtype, shape=(24,))
    d.run(copy3, a, np.zeros_like(a), 0, 0, dtype=dtype, shape=(2, 4, 8))
    b = d.random(dtype, 2, 3, 5, 9)
    d.run(copy4, b, np.zeros_like(b), dtype=dtype, shape=(8, 8))


@pytest.mark.parametrize("dtype", [uint8, float16, float32, int64], ids=str)
def test_transposed_and_strided_tensors(dtype):
    a, b = d.random(dtype, 48, 40), d.random(dtype, 40, 48)
    d.run(copy2, b.T, np.zeros_like(a), 0, 0, dtype=dtype, shape=(32, 64))
    d.run(copy2, a, np.zeros_like(b).T, 16, 8, dtype=dtype, shape=(32, 64))
    d.run(copy2, d.random(dtype, 48, 120)[:, ::3], np.zeros_like(a), 0, 0, dtype=dtype, shape=(32, 64))
    d.run(copy2, np.broadcast_to(a[0], a.shape), np.zeros_like(a), 0, 0, dtype=dtype, shape=(32, 64))


def masked(
    a: Tensor["dtype", "m n"], mask: Tensor[boolean, "m n"], out: Tensor["dtype", "m n"], other: Tensor["dtype", "k"],
    *, dtype: constexpr, number: constexpr,
):  # fmt: skip
    tilus.grid(1, warps=2)
    keep = tilus.load(mask, (0, 0), (16, 32))
    fill = tilus.load(other, 0)
    x = tilus.load(a, (0, 0), (16, 32), mask=keep, other=fill)
    y = tilus.load(a, (8, 16), (16, 32), other=number)
    tilus.store(out, x, (0, 0))
    tilus.store(out, y, (16, 0), mask=keep)


@pytest.mark.parametrize("dtype", ANY, ids=str)
def test_masked_elements_and_those_outside_are_what_is_said(dtype):
    a = d.random(dtype, 32, 40)
    mask = np.random.default_rng(3).random((32, 40)) < 0.5
    number = True if dtype.is_boolean else 3 if dtype.is_integer else 1.5
    other = d.array([True if dtype.is_boolean else 5 if dtype.is_integer else 2.5], dtype)
    made = d.run(masked, a, mask, np.zeros_like(a), other, dtype=dtype, number=number)
    np.testing.assert_array_equal(made.arrays[2][:16, :32], np.where(mask[:16, :32], a[:16, :32], other[0]))


def wide(
    a: Tensor["dtype", "m n"], out: Tensor["dtype", "m n"], at: int32, *, dtype: constexpr, checked: constexpr, step: constexpr,
):  # fmt: skip
    tilus.grid(1, warps=1)
    i = tilus.assume(at, step) if step > 1 else at
    tilus.store(out, tilus.load(a, (0, i), (8, 64), checked=checked), (0, i), checked=checked)


WIDTHS = {16: "v4", 8: "v2", 4: "32", 2: "16", 1: "8"}


def accesses(made: d.Outcome, kind: str) -> set[int]:
    """Return how many bytes the loads or the stores of global memory move."""
    found = set()
    for line in made.ptx.splitlines():
        words = line.replace("@", " ").split()
        for word in words:
            parts = word.split(".")
            if parts[0] == kind and "global" in parts:
                vector = next((int(p[1:]) for p in parts if p in ("v2", "v4")), 1)
                found.add(vector * int("".join(c for c in parts[-1] if c.isdigit())) // 8)
    return found


@pytest.mark.parametrize("checked", [True, False])
@pytest.mark.parametrize("dtype", [uint8, float16, float32, float64], ids=str)
def test_accesses_are_as_wide_as_rows_and_offsets_allow(dtype, checked):
    size = dtype.bits // 8
    # The rows' length, the offset's divisor, and the bytes of an access that they allow.
    for columns, step, width in (
        (96, 16, 16),
        (96, 8, 8 * size),
        (96, 2, 2 * size),
        (98, 16, 2 * size),
        (97, 16, size),
        (96, 1, size),
    ):
        width = min(width, 16)
        a = d.random(dtype, 8, columns)
        made = d.run(wide, a, np.zeros_like(a), 16, dtype=dtype, checked=checked, step=step)
        assert accesses(made, "ld") == {width}, (columns, step)
        assert accesses(made, "st") == {width}, (columns, step)


def ends(a: Tensor["dtype", "n"], out: Tensor["dtype", "n"], *, dtype: constexpr):
    tilus.grid(1, warps=1)
    tilus.store(out, tilus.load(a, 0, 256, layout=tilus.spatial(32).local(8)), 0)


def test_the_end_of_a_vector_narrows_the_accesses():
    for size, width in ((128, 16), (100, 8), (98, 4), (99, 2)):
        # Room behind the end that a wide access would touch.
        a, out = d.random(float16, 160)[:size], d.random(float16, 160, seed=1)[:size]
        made = d.run(ends, a, out, dtype=float16)
        np.testing.assert_array_equal(made.arrays[1], a)
        np.testing.assert_array_equal(made.arrays[1].base[size:], out.base[size:])
        assert accesses(made, "ld") == accesses(made, "st") == {width}


def test_a_pointer_that_is_not_aligned_narrows_the_accesses():
    for start, width in ((0, 16), (2, 8), (1, 4)):
        base = d.random(float32, 8 * 96 + 4)
        a = base[start : start + 8 * 96].reshape(8, 96)
        made = d.run(wide, a, np.zeros((8, 96), np.float32), 16, dtype=float32, checked=True, step=16)
        assert accesses(made, "ld") == {width}


def across(a: Tensor["dtype", "m n"], out: Tensor["dtype", "m n"], *, dtype: constexpr):
    tilus.grid(1, warps=2)
    tilus.store(out, tilus.load(a, (8, 3), (32, 32)), (8, 3))


def test_the_fastest_dimension_is_accessed_in_vectors_wherever_it_stands():
    a = d.random(float16, 64, 48).T
    made = d.run(across, a, np.zeros((64, 48), np.float16).T, dtype=float16)
    assert accesses(made, "ld") == {16}
    assert accesses(made, "st") == {16}


def points(
    a: Tensor["dtype", "m n"], rows: Tensor[int32, "k"], columns: Tensor[int64, "k"], keep: Tensor[boolean, "k"],
    out: Tensor["dtype", "k"], plain: Tensor["dtype", "k"], back: Tensor["dtype", "m n"], *, dtype: constexpr,
):  # fmt: skip
    tilus.grid(1, warps=2)
    i, j, mask = tilus.load(rows, 0, 80), tilus.load(columns, 0, 80), tilus.load(keep, 0, 80)
    x = tilus.load(a, indices=(i, j.to(int32)), mask=mask)
    tilus.store(out, x, 0)
    tilus.store(plain, tilus.load(a, indices=(i, j.to(int32))), 0)
    tilus.store(back, x, indices=(i, j.to(int32)), mask=mask)


@pytest.mark.parametrize("dtype", ANY, ids=str)
def test_gather_and_scatter(dtype):
    rng = np.random.default_rng(4)
    places = rng.permutation(30 * 20)[:80]
    rows, columns = (places // 20).astype(np.int32), (places % 20).astype(np.int64)
    rows[:4], columns[4:8] = [-1, 30, 2**31 - 1, -(2**31)], [-1, 20, 2**30, -5]
    a = d.random(dtype, 30, 20)
    keep = rng.random(80) < 0.7
    zeros = np.zeros(80, a.dtype)
    made = d.run(points, a, rows, columns, keep, zeros, zeros.copy(), np.zeros_like(a), dtype=dtype)
    inside = (rows >= 0) & (rows < 30) & (columns >= 0) & (columns < 20)
    expected = np.where(inside, a[rows % 30, columns % 20], np.zeros(1, a.dtype))
    np.testing.assert_array_equal(made.arrays[5], expected)


def rows_by_index(
    a: Tensor["dtype", "m n"], rows: Tensor[int64, "k"], out: Tensor["dtype", "k n"], back: Tensor["dtype", "m n"],
    shift: int32, *, dtype: constexpr, by_shift: constexpr,
):  # fmt: skip
    (k,) = rows.shape
    tilus.grid(tilus.cdiv(k, 8), warps=2)
    start = tilus.block_id() * 8
    i = tilus.load(rows, start, 8)[:, None]
    j = tilus.arange(128)[None, :] + (shift if by_shift else 16 * shift)
    known = (start + tilus.arange(8) < k)[:, None]
    x = tilus.load(a, indices=(i, j), mask=known)
    tilus.store(out, x, indices=((start + tilus.arange(8))[:, None], j))
    tilus.store(back, x, indices=(i, j), mask=known)


@pytest.mark.parametrize(
    ("dtype", "columns", "shift", "by_shift", "width"),
    [
        (float16, 112, 0, False, 16),
        (float16, 112, 1, False, 16),
        (float16, 112, -1, False, 16),
        (float16, 112, 8, True, 2),
        (float16, 100, 0, False, 8),
        (float32, 128, 0, False, 16),
        (int8, 128, 0, False, 16),
        (int64, 33, 0, False, 8),
        (boolean, 128, 1, False, 16),
    ],
)
def test_rows_by_their_index_move_in_vectors_side_by_side(dtype, columns, shift, by_shift, width):
    a = d.random(dtype, 20, columns)
    rows = np.array([3, 19, 0, -1, 7, 20, 2**33 + 1, 11, 5, 6, 18], np.int64)
    zeros = np.zeros((11, columns), a.dtype)
    made = d.run(
        rows_by_index, a, rows, zeros, np.zeros_like(a), shift, dtype=dtype, by_shift=by_shift, target="sm_80"
    )
    inside = (rows >= 0) & (rows < 20)
    expected = np.where(inside[:, None], a[rows % 20], np.zeros(1, a.dtype))
    first = shift if by_shift else 16 * shift
    expected[:, : max(0, first)] = 0
    expected[:, max(0, 128 + first) :] = 0
    np.testing.assert_array_equal(made.arrays[2], expected)
    assert width in accesses(made, "ld")
    assert accesses(made, "st") == {width}
    counters = made.report.counters
    # Threads side by side take what lies side by side.
    assert counters["global_store_sectors"] <= 1.5 * counters["global_store_sectors_ideal"]


def bags(a: Tensor[float16, "m 64"], rows: Tensor[int32, "k"], out: Tensor[float32, "bags 64"]):
    tilus.grid(1, warps=4)
    i, j = tilus.load(rows, 0, 16)[:, None], tilus.arange(64)[None, :]
    tilus.atomic_add(out, tilus.load(a, indices=(i, j)).to(float32), indices=(i // 4, j))


def test_atomics_by_index_are_spread_over_the_threads_as_memory_is():
    rows = np.random.default_rng(3).permutation(16).astype(np.int32)
    made = d.run(bags, d.random(float16, 16, 64), rows, np.zeros((4, 64), np.float32), target="sm_80")
    assert made.count("atom.relaxed") == 16 * 64 // 128


def raw(p: Pointer[float32], q: Pointer[float32], n: int32, stride: int64):
    tilus.grid(tilus.cdiv(n, 32), warps=1)
    i = tilus.block_id(0) * 32
    a = tilus.view(p + 4, float32, (n, 8), (stride, 1))
    b = tilus.view(q, float32, (n, 8), (8, 1))
    tilus.store(b, tilus.load(a, (i, 0), (32, 8)), (i, 0))


def test_a_tensor_of_a_pointer_with_run_time_extents():
    p, q = d.random(float32, 4 + 50 * 12), np.zeros(50 * 8, np.float32)
    made = d.run(raw, p, q, 50, 12)
    np.testing.assert_array_equal(made.arrays[1].reshape(50, 8), p[4:].reshape(50, 12)[:, :8])


def once(out: Tensor[int32, "n"], grid: Tensor[int32, "k n"]):
    tilus.grid(2, warps=4)
    x = tilus.arange(8)
    tilus.store(grid, x * 3, (tilus.block_id(0), 0))
    if tilus.block_id(0) == 0:
        tilus.store(out, x + 1, 0)


def test_of_copies_among_threads_one_stores():
    made = d.run(once, np.zeros(8, np.int32), np.zeros((2, 8), np.int32))
    # Eight lanes of one warp, thrice: two rows and one vector.
    assert made.report.counters["global_bytes_written"] == 3 * 8 * 4


def cached(a: Tensor[float32, "n"], out: Tensor[float32, "n"]):
    tilus.grid(1, warps=1)
    x = tilus.load(a, 0, 128, cache="streaming") + tilus.load(a, 128, 128, cache="persistent")
    tilus.store(out, x, 0, cache="streaming")


def test_cache_hints():
    made = d.run(cached, d.random(float32, 256), np.zeros(256, np.float32))
    assert made.count("ld.global.cs.v4") == 1
    assert made.count("st.global.cs.v4") == 1


def far(a: Tensor[int32, "n"], out: Tensor[int32, "m"], at: int64):
    tilus.grid(1, warps=1)
    tilus.store(out, tilus.load(a, (at,), (32,)), (0,))


@pytest.mark.parametrize("at", [1 << 32, -(1 << 32), (1 << 33) + 8, (1 << 32) - 8, 8])
def test_offsets_of_64_bits_are_not_cut_to_32(at):
    a = d.random(int32, 64, low=1)
    made = d.run(far, a, np.zeros(32, np.int32), at)
    assert bool(made.arrays[1].any()) == (at == 8)


def part_of_many(
    bytes: Pointer[uint8], out: Tensor[uint8, "m"], indices: Tensor[int64, "m"], count: int64, at: int64
):
    tilus.grid(1, warps=1)
    whole = tilus.view(bytes + -(1 << 33), uint8, (count,))
    loaded = tilus.load(whole, (at,), (32,)).to(int32)
    picked = tilus.load(whole, indices=tilus.load(indices, (0,), (32,))).to(int32)
    tilus.store(out, (loaded + picked).to(uint8), (0,))


def test_a_view_of_more_elements_than_32_bits_count():
    """The elements beyond 2**33 are there, and those beyond 2**33 + 24 are not."""
    a, first = d.random(uint8, 64, low=1, high=100), 1 << 33
    indices = np.arange(first, first + 32)
    made = d.run(part_of_many, a, np.zeros(32, np.uint8), indices, first + 24, first + 8)
    np.testing.assert_array_equal(made.arrays[1][:16], a[8:24] + a[:16])
    np.testing.assert_array_equal(made.arrays[1][16:24], a[16:24])
    assert not made.arrays[1][24:].any()
