"""Barriers stand where threads meet in memory: none is missing, by the simulator's races, and none is doubled."""

from __future__ import annotations

import numpy as np
import pytest

import tilus.lang as tilus
from tests.codegen import differential as d
from tilus.codegen.compiler import prepare
from tilus.codegen.target import target
from tilus.dtypes import float16, float32, int32
from tilus.errors import HazardFound
from tilus.ir import Kernel, Region, ops
from tilus.lang import Tensor, constexpr
from tilus.layout import parse

SHOWN = {
    ops.Sync: "sync", ops.LoadShared: "load", ops.StoreShared: "store", ops.CopyAsync: "copy", ops.CopyAsyncWait: "wait",
    ops.For: "for", ops.If: "if", ops.WarpGroup: "warps", ops.LoadGlobal: "read", ops.StoreGlobal: "write",
    ops.Reduce: "reduce", ops.Loop: "loop", ops.ConvertLayout: "convert",
}  # fmt: skip


def outline(region: Region, shown: tuple[str, ...]) -> str:
    """Return what a region does to memory, on one line."""
    words = []
    for op in region.ops:
        word = SHOWN.get(type(op))
        inner = [outline(nested, shown) for nested in op.regions()]
        if inner:
            words.append(f"{word}({' | '.join(inner)})")
        elif word in shown:
            words.append(word)
    return " ".join(words)


def placed(kernel: Kernel, *more: str) -> str:
    """Return the outline of a kernel after all passes."""
    final = prepare(kernel, target("sm_80"))
    return outline(final.body, ("sync", "load", "store", "copy", "wait", *more))


def check(function, expected: str, *args, more: tuple[str, ...] = (), **constexprs) -> d.Outcome:
    """Check where barriers stand, and that the simulator finds no race."""
    assert placed(d.trace(function, *args, **constexprs), *more) == expected
    return d.run(function, *args, **constexprs)


ROWS, COLUMNS = parse("spatial(64, 1).local(1, 16)"), parse("spatial(4, 16).local(16, 1)")


def once(a: Tensor[float32, "m n"], out: Tensor[float32, "m n"]):
    tilus.grid(1, warps=2)
    s = tilus.shared(float32, (64, 16))
    tilus.store(s, tilus.load(a, (0, 0), (64, 16), layout=ROWS))
    tilus.store(out, tilus.load(s, layout=COLUMNS), (0, 0))


def test_between_a_store_and_a_load():
    a = d.random(float32, 64, 16)
    made = check(once, "store sync load", a, np.zeros_like(a))
    assert made.compiled.kernel.notes == (
        f"barrier at line {once.__code__.co_firstlineno + 4}: store_shared before load_shared of the same shared memory",
    )


def written(a: Tensor[float32, "m n"], out: Tensor[float32, "m n"]):
    tilus.grid(1, warps=2)
    s = tilus.shared(float32, (64, 16))
    tilus.store(s, tilus.load(a, (0, 0), (64, 16), layout=ROWS))
    tilus.sync()
    tilus.store(out, tilus.load(s, layout=COLUMNS), (0, 0))
    tilus.store(out, tilus.load(s, layout=ROWS), (64, 0))


def test_the_users_own_is_not_doubled_and_loads_need_none_between_them():
    a = d.random(float32, 128, 16)
    check(written, "store sync load load", a, np.zeros_like(a))


def two(a: Tensor[float32, "m n"], out: Tensor[float32, "m n"]):
    tilus.grid(1, warps=2)
    s, t = tilus.shared(float32, (64, 16)), tilus.shared(float32, (64, 16))
    x = tilus.load(a, (0, 0), (64, 16), layout=ROWS)
    tilus.store(s, x)
    tilus.store(t, x + 1.0)
    tilus.store(out, tilus.load(s, layout=COLUMNS) + tilus.load(t, layout=COLUMNS), (0, 0))


def test_one_barrier_serves_two_tensors():
    a = d.random(float32, 64, 16)
    check(two, "store store sync load load", a, np.zeros_like(a))


def turns(a: Tensor[float32, "m n"], out: Tensor[float32, "m n"], n: int32):
    tilus.grid(1, warps=2)
    s = tilus.shared(float32, (64, 16))
    total = tilus.zeros((64, 16), layout=COLUMNS)
    for i in range(n):
        tilus.store(s, tilus.load(a, (64 * i, 0), (64, 16), layout=ROWS))
        total += tilus.load(s, layout=COLUMNS)
    tilus.store(out, total, (0, 0))


def test_a_loop_waits_for_those_who_still_read():
    a = d.random(float32, 192, 16)
    check(turns, "for(sync store sync load)", a, np.zeros_like(a), 3)


def alternating(a: Tensor[float32, "m n"], out: Tensor[float32, "m n"], n: int32):
    tilus.grid(1, warps=2)
    s = tilus.shared(float32, (2, 64, 16))
    total = tilus.zeros((64, 16), layout=COLUMNS)
    for i in range(n):
        tilus.store(s[i % 2], tilus.load(a, (64 * i, 0), (64, 16), layout=ROWS))
        total += tilus.load(s[i % 2], layout=COLUMNS)
    tilus.store(out, total, (0, 0))


def test_two_stages_need_one_barrier_in_each_turn():
    a = d.random(float32, 320, 16)
    check(alternating, "for(store sync load)", a, np.zeros_like(a), 5)


def branches(a: Tensor[float32, "m n"], out: Tensor[float32, "m n"], n: int32):
    tilus.grid(1, warps=2)
    s = tilus.shared(float32, (64, 16))
    tilus.store(s, tilus.load(a, (0, 0), (64, 16), layout=ROWS))
    x = tilus.zeros((64, 16), layout=COLUMNS)
    if n > 3:
        x = tilus.load(s, layout=COLUMNS)
    else:
        x = tilus.load(s, layout=COLUMNS) * 2.0
    tilus.store(out, x, (0, 0))


def test_both_ways_of_a_branch_share_a_barrier():
    a = d.random(float32, 64, 16)
    for n in (2, 5):
        check(branches, "store sync if(load | load)", a, np.zeros_like(a), n)


def leaving(a: Tensor[float32, "m n"], out: Tensor[float32, "m n"], n: int32):
    tilus.grid(1, warps=2)
    s = tilus.shared(float32, (64, 16))
    total = tilus.zeros((64, 16), layout=COLUMNS)
    i = 0
    while True:
        tilus.store(s, tilus.load(a, (64 * i, 0), (64, 16), layout=ROWS))
        if i == n:
            break
        total += tilus.load(s, layout=COLUMNS)
        i += 1
    tilus.store(out, total + tilus.load(s, layout=COLUMNS), (0, 0))


def test_a_loop_that_is_left_in_the_middle():
    a = d.random(float32, 256, 16)
    made = d.run(leaving, a, np.zeros_like(a), 2)
    np.testing.assert_allclose(made.arrays[1][:64], a[:64] + a[64:128] + a[128:192], rtol=1e-6, atol=1e-6)
    assert placed(made.compiled.kernel).count("sync") == 3


def phases(a: Tensor[float32, "m n"], out: Tensor[float32, "m n"]):
    tilus.grid(1, warps=2)
    s = tilus.shared(float32, (64, 16))
    tilus.store(s, tilus.load(a, (0, 0), (64, 16), layout=ROWS))
    x = tilus.load(s, layout=COLUMNS)
    t = tilus.shared(float32, (64, 16))
    tilus.store(t, x * 2.0)
    tilus.store(out, tilus.load(t, layout=ROWS), (0, 0))


def test_what_shares_bytes_is_kept_apart():
    a = d.random(float32, 64, 16)
    made = check(phases, "store sync load sync store sync load", a, np.zeros_like(a))
    assert made.compiled.shared_bytes == 64 * 16 * 4


def exchanged(a: Tensor[float32, "m n"], out: Tensor[float32, "m n"]):
    tilus.grid(1, warps=2)
    s = tilus.shared(float32, (64, 16))
    x = tilus.load(a, (0, 0), (64, 16), layout=ROWS)
    tilus.store(s, x)
    # A reduction across warps has barriers of its own, which serve the store as well.
    total = tilus.sum(x, 0)
    tilus.store(out, tilus.load(s, layout=COLUMNS) + total, (0, 0))


def test_the_barriers_of_an_exchange_count():
    a = d.random(float32, 64, 16)
    made = d.run(exchanged, a, np.zeros_like(a), rtol=1e-4, atol=1e-5)
    text = placed(made.compiled.kernel, "reduce")
    assert text.split("reduce")[1].split("load")[0].strip() == ""


def in_place(a: Tensor[float32, "m n"], *, shape: constexpr, turned: constexpr):
    tilus.grid(1, warps=4)
    x = tilus.load(a, (0, 0), shape)
    tilus.store(a, x.T if turned else x * 2.0, (0, 0))


def test_a_tile_is_changed_in_place():
    # No thread holds what another stores.
    check(
        in_place,
        "read write",
        d.random(float32, 64, 64),
        shape=(64, 64),
        turned=False,
        more=("read", "write"),
    )
    # Copies of eight elements among all threads, of which one stores; the others must have read.
    check(
        in_place,
        "read sync write",
        d.random(float32, 1, 8),
        shape=(1, 8),
        turned=False,
        more=("read", "write"),
    )
    a = d.random(float32, 64, 64)
    # The barriers of the conversion of the transposed tile serve.
    made = check(
        in_place, "read convert write", a, shape=(64, 64), turned=True, more=("read", "write", "convert")
    )
    np.testing.assert_array_equal(made.arrays[0], a.T)


def rows_in_place(a: Tensor[float32, "m n"]):
    tilus.grid(1, warps=4)
    for i in range(0, a.shape[0], 8):
        x = tilus.load(a, (i, 0), (8, 64))
        tilus.store(a, x / tilus.sum(x * x, 1, keepdims=True), (i, 0))


def test_rows_in_place_need_no_barrier_in_each_turn():
    a = d.random(float32, 30, 64)
    assert placed(d.trace(rows_in_place, a), "read", "write") == "for(read write)"
    d.run(rows_in_place, a, rtol=1e-5)


def in_group(a: Tensor[float32, "m n"], out: Tensor[float32, "m n"]):
    tilus.grid(1, warps=4)
    s = tilus.shared(float32, (64, 16))
    tilus.store(s, tilus.load(a, (0, 0), (64, 16)))
    with tilus.warps(0, 2):
        # Of these two warps alone: the barrier of all stands before the group.
        tilus.sync()
        tilus.store(out, tilus.load(s), (0, 0))


def test_a_barrier_of_a_group_does_not_order_what_others_did():
    a = d.random(float32, 64, 16)
    check(in_group, "store sync warps(sync load)", a, np.zeros_like(a))


def named(a: Tensor[float32, "m n"], out: Tensor[float32, "m n"]):
    tilus.grid(1, warps=5)
    for i in tilus.static_range(9):
        with tilus.warps(0, 2):
            s = tilus.shared(float32, (64, 16))
            tilus.store(s, tilus.load(a, (64 * i, 0), (64, 16), layout=ROWS))
            tilus.store(out, tilus.load(s, layout=COLUMNS), (64 * i, 0))
        with tilus.warps(2, 2):
            t = tilus.shared(float32, (64, 16))
            tilus.store(t, tilus.load(a, (64 * i + 576, 0), (64, 16), layout=ROWS))
            tilus.store(out, tilus.load(t, layout=COLUMNS), (64 * i + 576, 0))
        with tilus.warps(4, 1):
            tilus.store(out, tilus.load(a, (64 * i + 1152, 0), (64, 16)), (64 * i + 1152, 0))


def test_groups_of_warps_have_barriers_of_their_own_as_often_as_they_come():
    a = d.random(float32, 27 * 64, 16)
    made = d.run(named, a, np.zeros_like(a))
    np.testing.assert_array_equal(made.arrays[1], a)
    assert made.count("bar.sync \t1, 64") + made.count("bar.sync 1, 64") > 0
    assert "bar.sync 3" not in made.ptx


def early(a: Tensor[float16, "m n"], out: Tensor[float16, "m n"]):
    tilus.grid(1, warps=2)
    s = tilus.shared(float16, (64, 16))
    tilus.copy_async(s, a, (0, 0))
    tilus.store(out, tilus.load(s), (0, 0))


def test_a_copy_that_nobody_waited_for_is_an_error():
    a = d.random(float16, 64, 16)
    with pytest.raises(HazardFound, match="an asynchronous copy may still be writing"):
        prepare(d.trace(early, a, np.zeros_like(a)), target("sm_80"))


def waited(a: Tensor[float16, "m n"], out: Tensor[float16, "m n"]):
    tilus.grid(1, warps=2)
    s = tilus.shared(float16, (64, 16))
    tilus.copy_async(s, a, (0, 0))
    tilus.copy_async_commit()
    tilus.copy_async_wait(0)
    tilus.store(out, tilus.load(s), (0, 0))


def test_a_wait_is_followed_by_a_barrier():
    a = d.random(float16, 64, 16)
    check(waited, "copy wait sync load", a, np.zeros_like(a))
