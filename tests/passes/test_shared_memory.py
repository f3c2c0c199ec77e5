"""Shared memory is planned: phases share bytes, layouts are free of conflicts, and what lives is kept apart."""

from __future__ import annotations

import numpy as np
import pytest

import tilus.lang as tilus
from tests.codegen import differential as d
from tilus.codegen import compile_kernel
from tilus.codegen.compiler import prepare
from tilus.codegen.target import target
from tilus.dtypes import float16, float32, int32
from tilus.errors import LayoutConflict, ResourceExceeded
from tilus.ir import ops, walk
from tilus.lang import Tensor, constexpr
from tilus.layout import parse, row_major, swizzled_row_major

SIZE = 64 * 32 * 4


def phases(a: Tensor[float32, "m n"], out: Tensor[float32, "m n"], *, overlap: constexpr):
    tilus.grid(1, warps=4)
    s = tilus.shared(float32, (64, 32))
    tilus.store(s, tilus.load(a, (0, 0), (64, 32)))
    x = tilus.load(s)
    t = tilus.shared(float32, (64, 32))
    tilus.store(t, x + 1.0)
    y = tilus.load(t)
    if overlap:
        y += tilus.load(s)
    tilus.store(out, y, (0, 0))


def test_tiles_of_different_phases_share_bytes():
    a = d.random(float32, 64, 32)
    assert d.run(phases, a, np.zeros_like(a), overlap=False, rtol=1e-6).compiled.shared_bytes == SIZE
    assert d.run(phases, a, np.zeros_like(a), overlap=True, rtol=1e-6).compiled.shared_bytes == 2 * SIZE


def in_loop(a: Tensor[float32, "m n"], out: Tensor[float32, "m n"], n: int32):
    tilus.grid(1, warps=4)
    table = tilus.shared(float32, (64, 32))
    tilus.store(table, tilus.load(a, (0, 0), (64, 32)))
    total = tilus.zeros((64, 32))
    for i in range(n):
        s = tilus.shared(float32, (64, 32))
        tilus.store(s, total * 0.5)
        # The table lives through all turns, also where a turn reads it first.
        total = tilus.load(table) + tilus.load(s)
        t = tilus.shared(float32, (64, 32))
        tilus.store(t, total)
        total = tilus.load(t) * 0.25
    tilus.store(out, total, (0, 0))


def test_what_a_loop_reads_outlives_its_turns():
    a = d.random(float32, 64, 32)
    made = d.run(in_loop, a, np.zeros_like(a), 3, rtol=1e-5, atol=1e-6)
    assert made.compiled.shared_bytes == 2 * SIZE


def scratch(a: Tensor[float32, "m n"], out: Tensor[float32, "m n"], sums: Tensor[float32, "m"]):
    tilus.grid(1, warps=4)
    s = tilus.shared(float32, (64, 32))
    x = tilus.load(a, (0, 0), (64, 32), layout=parse("spatial(1, 32).spatial(4, 1).local(16, 1)"))
    tilus.store(s, x)
    total = tilus.sum(x, 0)
    y = tilus.annotate_layout(x, parse("spatial(4, 32).local(16, 1)")) + total
    tilus.store(out, y + tilus.load(s), (0, 0))
    tilus.store(sums, tilus.sum(y, 1), 0)


def test_scratch_memory_of_exchanges_keeps_off_what_lives():
    a = d.random(float32, 64, 32)
    d.run(scratch, a, np.zeros_like(a), np.zeros(64, np.float32), rtol=1e-4, atol=1e-4)


def turned(
    a: Tensor["dtype", "m n"], out: Tensor["dtype", "n m"], *, dtype: constexpr, place: constexpr = None
):
    tilus.grid(1, warps=4)
    s = tilus.shared(dtype, (64, 64), layout=place)
    tilus.store(s, tilus.load(a, (0, 0), (64, 64)))
    tilus.store(out, tilus.load(s.T), (0, 0))


def test_a_swizzle_is_chosen_where_rows_would_conflict():
    a = d.random(float32, 64, 64)
    chosen = d.run(turned, a, np.zeros_like(a), dtype=float32)
    plain = d.run(turned, a, np.zeros_like(a), dtype=float32, place=row_major(64, 64))
    tile = next(op for op in walk(chosen.compiled.kernel.body) if isinstance(op, ops.AllocShared))
    assert tile.layout.swizzle is not None
    assert chosen.report.counters["shared_wavefronts"] < plain.report.counters["shared_wavefronts"]


def part(a: Tensor[float16, "m n"], out: Tensor[float16, "k l"], *, place: constexpr):
    tilus.grid(1, warps=1)
    s = tilus.shared(float16, (64, 64), layout=place)
    tilus.store(s, tilus.load(a, (0, 0), (64, 64)))
    tilus.store(out, tilus.load(s[4:12, :]), (0, 0))


def test_a_part_that_cuts_a_swizzle_is_refused_with_a_reason():
    a, out = d.random(float16, 64, 64), np.zeros((8, 64), np.float16)
    d.run(part, a, out, place=row_major(64, 64))
    # Chosen by the compiler, the layout lets the slice be.
    d.run(part, a, out, place=None)
    with pytest.raises(LayoutConflict, match="not a multiple of the swizzle's period"):
        prepare(d.trace(part, a, out, place=swizzled_row_major((64, 64), 16, 128)), target("sm_80"))


def large(a: Tensor[float32, "m n"], n: int32):
    tilus.grid(1, warps=4)
    s = tilus.shared(float32, (4, 64, 128))
    tilus.store(s[0], tilus.load(a, (0, 0), (64, 128)))
    tilus.store(a, tilus.load(s[n]), (0, 0))


def test_more_than_a_block_may_have_is_refused():
    a = d.random(float32, 64, 128)
    with pytest.raises(ResourceExceeded, match="131072 bytes of shared memory, but sm_86 has 101376"):
        compile_kernel(d.trace(large, a, 0), "sm_86", assemble=False)


def barriers_and_groups(a: Tensor[float32, "m n"], out: Tensor[float32, "m n"], n: int32):
    tilus.grid(1, warps=4)
    with tilus.warps(0, 2):
        s = tilus.shared(float32, (32, 32))
        tilus.store(s, tilus.load(a, (0, 0), (32, 32)))
        tilus.store(out, tilus.load(s.T), (0, 0))
    with tilus.warps(2, 2):
        # At the same time as the other group: neither shares bytes with it.
        t = tilus.shared(float32, (32, 32))
        tilus.store(t, tilus.load(a, (32, 0), (32, 32)))
        tilus.store(out, tilus.load(t.T), (32, 0))


def test_groups_of_warps_share_no_bytes():
    a = d.random(float32, 64, 32)
    made = d.run(barriers_and_groups, a, np.zeros_like(a), 1)
    assert made.compiled.shared_bytes == 2 * 32 * 32 * 4
    np.testing.assert_array_equal(made.arrays[1][32:], a[32:].T)


def rows_and_parts(
    a: Tensor[float16, "16 16"], b: Tensor[float16, "16 64"], out: Tensor[float32, "k"], rest: Tensor[float32, "m n"],
    i: int32, *, part: constexpr,
):  # fmt: skip
    tilus.grid(1, warps=1)
    x = tilus.dot(tilus.load(a, (0, 0), (16, 16)), tilus.load(b, (0, 0), (16, 64)))
    s = tilus.shared(float32, (16, 64))
    tilus.store(s, x)
    if part:
        tilus.store(rest, tilus.load(s[1:14, 28:41]), (0, 0))
    else:
        tilus.store(out, tilus.load(s[i]), 0)


@pytest.mark.parametrize("part", [False, True])
def test_a_layout_is_chosen_that_allows_what_is_seen_of_the_tile(part):
    a, b = (d.random(float16, *shape, seed=1) for shape in ((16, 16), (16, 64)))
    x = a.astype(np.float32) @ b.astype(np.float32)
    made = d.run(
        rows_and_parts,
        a,
        b,
        np.zeros(64, np.float32),
        np.zeros((13, 13), np.float32),
        5,
        part=part,
        atol=1e-4,
    )
    found, expected = (made.arrays[3], x[1:14, 28:41]) if part else (made.arrays[2], x[5])
    np.testing.assert_allclose(found, expected, atol=1e-4)


def in_parts(
    a: Tensor[float16, "64 64"], b: Tensor[float16, "16 16"], out: Tensor[float32, "16 64"], *, how: constexpr
):
    tilus.grid(1, warps=1)
    s = tilus.shared(float16, (64, 64))
    tilus.copy_async(s, a, (0, 0))
    tilus.copy_async_commit()
    tilus.copy_async_wait(0)
    x = tilus.load(b, (0, 0), (16, 16))
    total = tilus.zeros((16, 64))
    for c in tilus.static_range(4):
        if how == "slice":
            rows = s[16 * c : 16 * c + 16, :]
        else:
            rows = s.reshape((4, 16, 64))[c]
        total = tilus.dot(x, tilus.load(rows), total)
    tilus.store(out, total, (0, 0))


@pytest.mark.parametrize("how", ["slice", "reshape"])
def test_a_tile_that_is_read_in_parts_is_free_of_conflicts(how):
    a, b = d.random(float16, 64, 64), d.random(float16, 16, 16)
    made = d.run(in_parts, a, b, np.zeros((16, 64), np.float32), how=how, atol=1e-3)
    tile = next(op for op in walk(made.compiled.kernel.body) if isinstance(op, ops.AllocShared))
    assert tile.layout.swizzle is not None
    assert made.count("ldmatrix") > 0
    assert made.report.counters["shared_wavefronts"] == made.report.counters["shared_wavefronts_ideal"]
    wanted = sum(b.astype(np.float64) @ a[16 * c : 16 * c + 16] for c in range(4))
    np.testing.assert_allclose(made.arrays[2], wanted, atol=1e-3)


def halves(a: Tensor[float16, "128 64"], b: Tensor[float16, "64 64"], out: Tensor[float32, "128 64"]):
    tilus.grid(1, warps=8)
    s, t = tilus.shared(float16, (128, 64)), tilus.shared(float16, (64, 64))
    tilus.store(s, tilus.load(a, (0, 0), (128, 64)))
    tilus.store(t, tilus.load(b, (0, 0), (64, 64)))
    tilus.fence("async")
    tilus.sync()
    for half in tilus.static_range(2):
        with tilus.warps(4 * half, 4):
            x = tilus.dot_wait(tilus.dot_async(s[64 * half : 64 * half + 64, :], t))
            tilus.store(out, x, (64 * half, 0))


def test_two_warpgroups_multiply_the_halves_of_a_tile():
    a, b = d.random(float16, 128, 64), d.random(float16, 64, 64)
    made = d.run(halves, a, b, np.zeros((128, 64), np.float32), target="sm_90a", atol=1e-3)
    assert made.count("wgmma.mma_async") > 0
    np.testing.assert_allclose(made.arrays[2], a.astype(np.float64) @ b, atol=1e-3)
