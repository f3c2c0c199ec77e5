"""Pipelined loops copy ahead, and give what the plain loop gives for any number of turns."""

from __future__ import annotations

import numpy as np
import pytest

import tilus.lang as tilus
from tests.codegen import differential as d
from tilus.codegen import compile_kernel
from tilus.dtypes import float16, float32, int32, int64
from tilus.errors import HazardFound, SyntaxNotSupported
from tilus.ir import ops, walk
from tilus.ir.printer import print_kernel
from tilus.lang import Tensor, constexpr
from tilus.passes.pipelining import pipeline_loops


def product(
    a: Tensor[float16, "m k"], b: Tensor[float16, "k n"], c: Tensor[float32, "m n"], *, stages: constexpr
):
    tilus.grid(1, warps=4)
    acc = tilus.zeros((32, 64))
    for at in tilus.pipeline(range(0, a.shape[1], 32), stages=stages):
        s, t = tilus.shared(float16, (32, 32)), tilus.shared(float16, (32, 64))
        tilus.copy_async(s, a, (0, at))
        tilus.copy_async(t, b, (at, 0))
        acc = tilus.dot(tilus.load(s), tilus.load(t), acc)
    tilus.store(c, acc, (0, 0))


@pytest.mark.parametrize("stages", [2, 3, 4, 5])
@pytest.mark.parametrize("k", [0, 8, 32, 72, 96, 200])
def test_any_number_of_turns_and_a_ragged_end(stages, k):
    a, b = d.random(float16, 32, max(k, 1), seed=k)[:, :k], d.random(float16, max(k, 1), 64, seed=1)[:k]
    made = d.run(product, np.ascontiguousarray(a), b, np.ones((32, 64), np.float32), stages=stages, atol=1e-4)
    np.testing.assert_allclose(made.arrays[2], a.astype(float) @ b, atol=1e-4)


@pytest.mark.parametrize("target", ["sm_75", "sm_90a"])
def test_targets_without_and_with_more_than_these_copies(target):
    a, b = d.random(float16, 32, 96), d.random(float16, 96, 64)
    made = d.run(product, a, b, np.zeros((32, 64), np.float32), stages=3, atol=1e-4, target=target)
    assert (made.count("cp.async") > 0) == (target != "sm_75")


def test_one_barrier_in_each_turn_and_all_accesses_wide():
    a, b = d.random(float16, 32, 192), d.random(float16, 192, 64)
    made = d.run(product, a, b, np.zeros((32, 64), np.float32), stages=3, atol=1e-4)
    loop = next(op for op in walk(made.compiled.kernel.body) if isinstance(op, ops.For))
    assert sum(isinstance(op, ops.Sync) for op in loop.body.ops) == 1
    assert made.count("cp.async.cg.shared.global") > 0
    assert made.count("cp.async.ca") == 0
    assert made.count(".local") == 0
    assert made.report.counters["shared_wavefronts"] == made.report.counters["shared_wavefronts_ideal"]


def counted(
    a: Tensor[float32, "m n"], out: Tensor[float32, "k n"], start: int32, stop: int32, *, step: constexpr
):
    tilus.grid(1, warps=1)
    total = tilus.zeros((4, 32))
    last = -1
    for i in tilus.pipeline(range(start, stop, step), stages=3):
        s = tilus.shared(float32, (4, 32))
        tilus.copy_async(s, a, (4 * i, 0))
        total = total * 2.0 + tilus.load(s)
        last = i
    tilus.store(out, total, (0, 0))
    tilus.store(out, tilus.cast(last, float32), (4, 0))


@pytest.mark.parametrize("step", [1, 3, -1, -2])
def test_ranges_of_any_step(step):
    a = d.random(float32, 40, 32)
    for start, stop in ((0, 9), (9, 0), (2, 3), (3, 2), (4, 4), (7, -1)):
        made = d.run(counted, a, np.zeros((5, 32), np.float32), start, stop, step=step, rtol=1e-6)
        turns = range(start, stop, step)
        assert made.arrays[1][4, 0] == (turns[-1] if len(turns) else -1)


def leaving(a: Tensor[float32, "m n"], out: Tensor[float32, "k n"], n: int32, enough: int32):
    tilus.grid(1, warps=2)
    total = tilus.zeros((8, 32))
    for i in tilus.pipeline(range(n), stages=3):
        s = tilus.shared(float32, (8, 32))
        tilus.copy_async(s, a, (8 * i, 0))
        if i % 2 == 1:
            continue
        x = tilus.load(s)
        if i >= enough:
            break
        total += x
    tilus.store(out, total, (0, 0))
    # The bytes of the stages serve again after the loop.
    t = tilus.shared(float32, (3, 8, 32))
    tilus.store(t[0], total + 1.0)
    tilus.store(t[1], total + 2.0)
    tilus.store(out, tilus.load(t[0]) + tilus.load(t[1]), (8, 0))


def test_turns_may_be_cut_short():
    a = d.random(float32, 80, 32)
    for n, enough in ((10, 100), (10, 4), (10, 0), (1, 3), (0, 0)):
        d.run(leaving, a, np.zeros((16, 32), np.float32), n, enough, rtol=1e-6)


def nested(a: Tensor[float16, "m k"], b: Tensor[float16, "k n"], c: Tensor[float32, "m n"], tiles: int32):
    tilus.grid(1, warps=2)
    for tile in range(tiles):
        acc = tilus.zeros((16, 32))
        for at in tilus.pipeline(range(0, a.shape[1], 16), stages=3):
            s, t = tilus.shared(float16, (16, 16)), tilus.shared(float16, (16, 32))
            tilus.copy_async(s, a, (16 * tile, at))
            tilus.copy_async(t, b, (at, 0))
            acc = tilus.dot(tilus.load(s), tilus.load(t), acc)
        tilus.store(c, acc, (16 * tile, 0))


def test_a_pipelined_loop_in_a_loop():
    a, b = d.random(float16, 48, 80), d.random(float16, 80, 32)
    made = d.run(nested, a, b, np.zeros((48, 32), np.float32), 3, atol=1e-4)
    np.testing.assert_allclose(made.arrays[2], a.astype(float) @ b, atol=1e-4)


def by_hand(
    a: Tensor[float16, "m k"], b: Tensor[float16, "k n"], c: Tensor[float32, "m n"], *, stages: constexpr
):
    tilus.grid(1, warps=4)
    k = a.shape[1]
    s, t = tilus.shared(float16, (stages, 32, 32)), tilus.shared(float16, (stages, 32, 64))
    for i in tilus.static_range(stages - 1):
        tilus.copy_async(s[i], a, (0, 32 * i))
        tilus.copy_async(t[i], b, (32 * i, 0))
        tilus.copy_async_commit()
    acc = tilus.zeros((32, 64))
    stage = 0
    for i in range(tilus.cdiv(k, 32)):
        tilus.copy_async_wait(stages - 2)
        tilus.sync()
        ahead = i + stages - 1
        tilus.copy_async(s[ahead % stages], a, (0, 32 * ahead))
        tilus.copy_async(t[ahead % stages], b, (32 * ahead, 0))
        tilus.copy_async_commit()
        acc = tilus.dot(tilus.load(s[i % stages]), tilus.load(t[i % stages]), acc)
    tilus.copy_async_wait(0)
    tilus.store(c, acc, (0, 0))


@pytest.mark.parametrize("stages", [2, 3, 4])
def test_a_pipeline_written_by_hand_gets_no_further_barrier(stages):
    for k in (32, 72, 160):
        a, b = d.random(float16, 32, k), d.random(float16, k, 64)
        made = d.run(by_hand, a, b, np.zeros((32, 64), np.float32), stages=stages, atol=1e-4)
    loop = next(op for op in walk(made.compiled.kernel.body) if isinstance(op, ops.For))
    assert sum(isinstance(op, ops.Sync) for op in loop.body.ops) == 1


def carried(a: Tensor[float16, "m k"], out: Tensor[float16, "m k"], *, stages: constexpr):
    tilus.grid(1, warps=2)
    k = a.shape[1]
    s = tilus.shared(float16, (stages, 16, 32))
    for i in tilus.static_range(stages - 1):
        tilus.copy_async(s[i], a, (0, 32 * i))
        tilus.copy_async_commit()
    fill, use = stages - 1, 0
    for at in range(0, k, 32):
        tilus.copy_async_wait(stages - 2)
        tilus.sync()
        tilus.copy_async(s[fill], a, (0, at + 32 * (stages - 1)))
        tilus.copy_async_commit()
        tilus.store(out, tilus.load(s[use]) * 2.0, (0, at))
        fill = 0 if fill == stages - 1 else fill + 1
        use = 0 if use == stages - 1 else use + 1
    tilus.copy_async_wait(0)


def test_stages_that_are_counted_in_variables():
    a = d.random(float16, 16, 200)
    made = d.run(carried, a, np.zeros_like(a), stages=3)
    np.testing.assert_array_equal(made.arrays[1], a * 2)


def short(a: Tensor[float16, "m k"], out: Tensor[float16, "m k"]):
    tilus.grid(1, warps=2)
    s = tilus.shared(float16, (2, 16, 32))
    for i in range(4):
        tilus.copy_async(s[i % 2], a, (0, 32 * i))
        tilus.copy_async_commit()
        # One group too many may be unfinished.
        tilus.copy_async_wait(1)
        tilus.store(out, tilus.load(s[i % 2]), (0, 32 * i))


def test_a_wait_for_too_few_is_an_error():
    a = d.random(float16, 16, 128)
    with pytest.raises(HazardFound, match="may still be writing"):
        compile_kernel(d.trace(short, a, np.zeros_like(a)), "sm_80", assemble=False)


def wide_index(a: Tensor[float32, "m n"], out: Tensor[float32, "k n"], n: int64):
    tilus.grid(1, warps=1)
    total = tilus.zeros((4, 32))
    for i in tilus.pipeline(range(n), stages=2):
        s = tilus.shared(float32, (4, 32))
        tilus.copy_async(s, a, (4 * i, 0))
        total += tilus.load(s)
    tilus.store(out, total, (0, 0))


def test_a_loop_over_wide_integers():
    a = d.random(float32, 20, 32)
    d.run(wide_index, a, np.zeros((4, 32), np.float32), 5, rtol=1e-6)


def one_stage(a: Tensor[float32, "m n"], out: Tensor[float32, "m n"], *, fault: constexpr):
    tilus.grid(1, warps=1)
    outside = tilus.shared(float32, (4, 32))
    either = a.ptr
    if out.shape[0] > 8:
        either = out.ptr
    for i in tilus.pipeline(range(4), stages=2):
        s = tilus.shared(float32, (4, 32))
        if fault == "store":
            tilus.copy_async(s, a, (4 * i, 0))
            tilus.store(s, tilus.zeros((4, 32)))
        elif fault == "commit":
            tilus.copy_async(s, a, (4 * i, 0))
            tilus.copy_async_commit()
        elif fault == "outside":
            tilus.copy_async(outside, a, (4 * i, 0))
        elif fault == "branch":
            if i > 1:
                tilus.copy_async(s, a, (4 * i, 0))
        elif fault == "memory":
            tilus.copy_async(s, a, (tilus.cast(tilus.load(out, (i, 0)), int32), 0))
        elif fault == "alias":
            same = tilus.view(out.ptr + 64, float32, (4, 32))
            tilus.copy_async(s, a, (tilus.cast(tilus.load(same, (i, 0)), int32), 0))
        elif fault == "source":
            tilus.copy_async(s, out, (4 * i, 0))
        elif fault == "any target":
            tilus.copy_async(s, a, (4 * i, 0))
            tilus.store(tilus.view(either, float32, (16, 32)), tilus.load(s), (0, 0))
        elif fault == "either source":
            tilus.copy_async(s, tilus.view(either, float32, (16, 32)), (4 * i, 0))
        elif fault == "moved source":
            tilus.copy_async(s, tilus.view(tilus.assume(out.ptr + 32, 16), float32, (15, 32)), (4 * i, 0))
        elif fault == "shared":
            tilus.copy_async(s, a, (tilus.cast(tilus.max(tilus.load(outside)), int32), 0))
        tilus.store(out, tilus.load(s), (0, 0))


def paged(pages: Tensor[int32, "p 16 32"], table: Tensor[int32, "s n"], out: Tensor[int32, "s 16 32"]):
    tilus.grid(table.shape[0], warps=1)
    sequence = tilus.block_id()
    total = tilus.zeros((16, 32), int32)
    for i in tilus.pipeline(range(table.shape[1]), stages=3):
        page = tilus.load(table, (sequence, i))
        s = tilus.shared(int32, (16, 32))
        tilus.copy_async(s, pages, (page, 0, 0))
        total += tilus.load(s) * page
    tilus.store(out, total, (sequence, 0, 0))


@pytest.mark.parametrize("length", [1, 2, 5])
def test_a_table_says_where_copies_read(length):
    pages = d.random(int32, 7, 16, 32)
    table = np.random.default_rng(length).integers(0, 7, (3, length)).astype(np.int32)
    made = d.run(paged, pages, table, np.zeros((3, 16, 32), np.int32))
    assert made.count("cp.async.cg.shared.global") > 0
    np.testing.assert_array_equal(made.arrays[2], (pages[table] * table[:, :, None, None]).sum(axis=1))


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("store", "filled by copy_async only"),
        ("commit", "commits and waits by itself"),
        ("outside", "fills shared tiles that are allocated in the loop's body"),
        ("branch", "not under an if or a loop"),
        ("memory", "loaded from memory that the loop may write to"),
        ("alias", "loaded from memory that the loop may write to"),
        ("source", "the loop may write to out, from which its copies run ahead"),
        ("any target", "the loop may write to a, from which its copies run ahead"),
        ("moved source", "the loop may write to the tensor, from which its copies run ahead"),
        ("either source", "the loop may write to the tensor, from which its copies run ahead"),
        ("shared", "depends on load_shared, which cannot run ahead of its iteration"),
        ("nothing", "nothing to overlap"),
    ],
)
def test_what_cannot_run_ahead_is_refused(fault, message):
    a = d.random(float32, 16, 32)
    with pytest.raises(SyntaxNotSupported, match=message):
        pipeline_loops(d.trace(one_stage, a, a, fault=fault))


def moved(
    a: Tensor[float32, "m n"], b: Tensor[float32, "m n"], out: Tensor[float32, "k m n"], *, storing: constexpr
):
    tilus.grid(1, warps=1)
    source = tilus.assume(a.ptr, 16)
    if not storing:
        if out.shape[0] > 1:
            source = b.ptr
    total = tilus.zeros((4, 32))
    for i in tilus.pipeline(range(4), stages=2):
        s = tilus.shared(float32, (4, 32))
        tilus.copy_async(s, tilus.view(source, float32, (16, 32)), (4 * i, 0))
        total += tilus.load(s)
        if storing:
            tilus.store(out, tilus.load(s)[None], (0, 4 * i, 0))
    tilus.store(out, total[None], (1, 0, 0))


@pytest.mark.parametrize("storing", [False, True])
def test_copies_run_ahead_from_pointers_where_the_loop_writes_to_other_memory_or_to_none(storing):
    a, b = d.random(float32, 16, 32), d.random(float32, 16, 32)
    out = d.run(moved, a, b, np.zeros((2, 16, 32), np.float32), storing=storing).arrays[2]
    expected = a if storing else b
    np.testing.assert_allclose(out[1, :4], expected.reshape(4, 4, 32).sum(axis=0), rtol=1e-6)
    assert not storing or np.array_equal(out[0], a)


def test_a_kernel_without_stages_stays_as_it_is():
    kernel = d.trace(
        by_hand,
        *(np.zeros(s, np.float16) for s in ((32, 32), (32, 64))),
        np.zeros((32, 64), np.float32),
        stages=2,
    )
    assert print_kernel(pipeline_loops(kernel)) == print_kernel(kernel)
