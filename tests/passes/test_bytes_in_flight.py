"""Bytes of shared memory are not given on while asynchronous work still reads or writes them."""

from __future__ import annotations

import pytest
import torch

import tilus
from tests.codegen import differential as d
from tests.passes.test_barriers import COLUMNS, ROWS, placed
from tilus import Tensor, constexpr, float16, float32

HOPPER = "sm_90a"
TILE = 64 * 32 * 4


@tilus.kernel
def prefetching(
    a: Tensor[float32, "m n"],
    out: Tensor[float32, "p q"],
    *,
    turns: constexpr,
    how: constexpr,
    wait: constexpr,
):
    """Each turn starts the copy of the next one, and the last turn's reaches beyond the tensor."""
    tilus.grid(1, warps=2)
    s = tilus.shared(float32, (2, 64, 16))
    tilus.copy_async(s[0], a, (0, 0))
    tilus.copy_async_commit()
    total = tilus.full((64, 16), 0.0, float32, layout=COLUMNS)
    for k in range(turns):
        tilus.copy_async(s[(k + 1) % 2], a, (64 * (k + 1), 0))
        tilus.copy_async_commit()
        tilus.copy_async_wait(1)
        total += tilus.load(s[k % 2], layout=COLUMNS)
        tilus.sync()
    if wait:
        tilus.copy_async_wait(0)
    if how == "tile":
        t = tilus.shared(float32, (64, 16))
        tilus.store(t, total)
        tilus.store(out, tilus.load(t, layout=ROWS), (0, 0))
    elif how == "copy":
        t = tilus.shared(float32, (64, 16))
        tilus.copy_async(t, a, (64, 0))
        tilus.copy_async_commit()
        tilus.copy_async_wait(0)
        tilus.store(out, total + tilus.load(t, layout=COLUMNS), (0, 0))
    elif how == "convert":
        tilus.store(out, total + tilus.load(a, (0, 0), (64, 16), layout=ROWS), (0, 0))
    else:
        tilus.store(out, total - tilus.sum(total, 0, keepdims=True), (0, 0))


@pytest.mark.parametrize("turns", [3, 4])
@pytest.mark.parametrize("how", ["tile", "copy", "convert", "reduce"])
def test_a_copy_that_outlives_its_loop_lands_before_its_place_is_used(how: str, turns: int):
    a, out = torch.randn(64 * turns, 16), torch.zeros(64, 16)
    for wait in (False, True):
        run = prefetching.simulate(a, out, turns=turns, how=how, wait=wait, target="sm_80")
        run.raise_if_hazards()
        total = a.view(turns, 64, 16).sum(0)
        added = {"tile": 0, "copy": a[64:128], "convert": a[:64], "reduce": -total.sum(0)}[how]
        torch.testing.assert_close(out, total + added, rtol=1e-4, atol=1e-4)


@tilus.kernel
def copied_in_bulk(a: Tensor[float32, "m n"], out: Tensor[float32, "m n"]):
    tilus.grid(1, warps=4)
    s = tilus.shared(float32, (64, 32))
    full = tilus.barrier()
    tilus.store(s, tilus.load(a, (0, 0), (64, 32)))
    x = tilus.load(s).T
    t = tilus.shared(float32, (64, 32))
    with tilus.warps(0, 1):
        tilus.arrive(full, bytes=TILE)
        tilus.copy_bulk(t, a, (0, 0), barrier=full)
    tilus.wait(full, 0)
    tilus.store(out, x.T + tilus.load(t), (0, 0))


def test_a_bulk_copy_goes_where_nothing_was_before():
    a, out = torch.randn(64, 32), torch.zeros(64, 32)
    copied_in_bulk.simulate(a, out, target=HOPPER).raise_if_hazards()
    assert torch.equal(out, 2 * a)


@tilus.kernel
def made_late(a: Tensor[float32, "m n"], out: Tensor[float32, "m n"]):
    """The barrier is made where other warps still read."""
    tilus.grid(1, warps=4)
    t = tilus.shared(float32, (8, 32))
    s = tilus.shared(float32, (64, 32))
    tilus.store(s, tilus.load(a, (0, 0), (64, 32)))
    x = tilus.load(s) + tilus.load(s[0:1, 0:32])
    full = tilus.barrier()
    with tilus.warps(0, 1):
        tilus.arrive(full, bytes=8 * 32 * 4)
        tilus.copy_bulk(t, a, (0, 0), barrier=full)
    tilus.wait(full, 0)
    tilus.store(out, x, (0, 0))
    tilus.store(out, tilus.load(t) * 2.0, (64, 0))


def test_a_barrier_is_made_where_nothing_was_before():
    a, out = torch.randn(64, 32), torch.zeros(72, 32)
    made_late.simulate(torch.cat([a, a[:8]]), out, target=HOPPER).raise_if_hazards()
    assert torch.equal(out, torch.cat([a + a[:1], 2 * a[:8]]))


@tilus.kernel
def stored_in_bulk(
    a: Tensor[float32, "m n"],
    first: Tensor[float32, "m n"],
    second: Tensor[float32, "m n"],
    *,
    early: constexpr,
):
    tilus.grid(1, warps=4)
    s = tilus.shared(float32, (64, 32))
    x = tilus.load(a, (0, 0), (64, 32))
    tilus.store(s, x)
    tilus.store_bulk(first, s, (0, 0))
    tilus.bulk_commit()
    if early:
        tilus.bulk_wait(0)
        tilus.sync()
    t = tilus.shared(float32, (64, 32))
    tilus.store(t, x * 2.0)
    tilus.store_bulk(second, t, (0, 0))
    tilus.bulk_commit()
    if a.shape[0] > 0:
        tilus.bulk_wait(0)


@pytest.mark.parametrize(("early", "tiles"), [(False, 2), (True, 1)])
def test_a_tile_that_a_bulk_store_reads_lives_until_the_wait(early: bool, tiles: int):
    a, first, second = torch.randn(64, 32), torch.zeros(64, 32), torch.zeros(64, 32)
    run = stored_in_bulk.simulate(a, first, second, early=early, target=HOPPER)
    run.raise_if_hazards()
    assert torch.equal(first, a)
    assert torch.equal(second, 2 * a)
    made = stored_in_bulk.compile(first=first, second=second, a=a, early=early, target=HOPPER)
    assert made.shared_bytes == tiles * TILE


@tilus.kernel
def multiplied(
    a: Tensor[float16, "m k"],
    b: Tensor[float16, "n k"],
    c: Tensor[float32, "m n"],
    d: Tensor[float16, "m k"],
    *,
    how: constexpr,
):
    """Something is exchanged between threads while the product runs."""
    tilus.grid(1, warps=4)
    sa, sb = tilus.shared(float16, (64, 64)), tilus.shared(float16, (32, 64))
    tilus.store(sa, tilus.load(a, (0, 0), (64, 64)))
    tilus.store(sb, tilus.load(b, (0, 0), (32, 64)))
    acc = tilus.dot_async(sa, sb.transpose())
    if how == "after":
        acc = tilus.dot_wait(acc)
    x = tilus.load(d, (0, 0), (64, 64))
    if how == "reduce":
        x = x + tilus.max(x, axis=0, keepdims=True)
    else:
        t = tilus.shared(float16, (64, 64))
        tilus.store(t, x)
        x = x + tilus.load(t.transpose())
    if how != "after":
        acc = tilus.dot_wait(acc)
    tilus.store(d, x, (0, 0))
    tilus.store(c, acc, (0, 0))


@pytest.mark.parametrize("how", ["reduce", "tile", "after"])
def test_operands_of_a_product_that_runs_live_until_the_wait(how: str):
    a, b, d = torch.randn(64, 64).half(), torch.randn(32, 64).half(), torch.randn(64, 64).half()
    c, found = torch.zeros(64, 32), d.clone()
    multiplied.simulate(a, b, c, found, how=how, target=HOPPER).raise_if_hazards()
    torch.testing.assert_close(c, a.float() @ b.float().T, rtol=1e-5, atol=1e-4)
    assert torch.equal(found, d + (d.max(0, keepdim=True).values if how == "reduce" else d.T))
    operands = (64 + 32) * 64 * 2
    made = multiplied.compile(a, b, c, d, how=how, target=HOPPER)
    assert (made.shared_bytes == operands) == (how == "after")


@tilus.kernel
def stored_in_turns(a: Tensor[float32, "m n"], first: Tensor[float32, "m n"], second: Tensor[float32, "p n"]):
    """Each turn waits for the store of the turn before; nothing waits for the last one's."""
    tilus.grid(1, warps=4)
    s = tilus.shared(float32, (64, 32))
    for i in range(0, a.shape[0], 64):
        tilus.bulk_wait(0)
        tilus.sync()
        tilus.store(s, tilus.load(a, (i, 0), (64, 32)))
        tilus.store_bulk(first, s, (i, 0))
        tilus.bulk_commit()
    t = tilus.shared(float32, (64, 32))
    tilus.store(t, tilus.load(a, (0, 0), (64, 32)) * 2.0)
    tilus.store_bulk(second, t, (0, 0))
    tilus.bulk_commit()
    tilus.bulk_wait(0)


def test_a_bulk_store_of_the_last_turn_is_still_running_behind_the_loop():
    a, first, second = torch.randn(128, 32), torch.zeros(128, 32), torch.zeros(64, 32)
    stored_in_turns.simulate(a, first, second, target=HOPPER).raise_if_hazards()
    assert torch.equal(first, a)
    assert torch.equal(second, 2 * a[:64])


def beside(a: Tensor[float32, "m n"], out: Tensor[float32, "m n"]):
    tilus.grid(1, warps=2)
    s, t = tilus.shared(float32, (64, 16)), tilus.shared(float32, (64, 16))
    tilus.copy_async(s, a, (0, 0))
    tilus.copy_async_commit()
    tilus.store(t, tilus.load(a, (0, 0), (64, 16), layout=ROWS))
    x = tilus.load(t, layout=COLUMNS)
    tilus.copy_async_wait(0)
    tilus.store(out, x + tilus.load(s, layout=COLUMNS), (0, 0))


def test_a_copy_runs_on_while_another_tile_is_used():
    a = d.random(float32, 64, 16)
    assert placed(d.trace(beside, a, a * 0)) == "copy store sync load wait sync load"
    d.run(beside, a, a * 0)


def abandoned(a: Tensor[float32, "m n"], out: Tensor[float32, "p q"]):
    """A copy that nothing uses or waits for."""
    tilus.grid(1, warps=2)
    s = tilus.shared(float32, (64, 16))
    tilus.copy_async(s, a, (0, 0))
    x = tilus.load(a, (0, 0), (64, 16), layout=ROWS)
    tilus.store(out, tilus.sum(x, 0, keepdims=True), (0, 0))


def test_a_copy_that_nobody_waits_for_lands_before_an_exchange():
    a, out = d.random(float32, 64, 16), d.random(float32, 1, 16)
    made = d.run(abandoned, a, out, rtol=1e-4, atol=1e-4)
    assert placed(made.compiled.kernel, "reduce") == "copy wait reduce"
