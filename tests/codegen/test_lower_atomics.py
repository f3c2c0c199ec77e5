"""Atomic updates of every kind and type, in global and in shared memory, with many threads on one place."""

from __future__ import annotations

import numpy as np
import pytest

import tilus.lang as tilus
from tests.codegen import differential as d
from tilus.dtypes import bfloat16, float16, float32, float64, int32, int64, uint32, uint64
from tilus.errors import TargetNotSupported
from tilus.lang import Tensor, constexpr

WORDS = [int32, uint32, int64, uint64]
FUNCTIONS = {
    "add": tilus.atomic_add, "min": tilus.atomic_min, "max": tilus.atomic_max, "and": tilus.atomic_and,
    "or": tilus.atomic_or, "xor": tilus.atomic_xor,
}  # fmt: skip


def update(
    a: Tensor["dtype", "n"], places: Tensor[int32, "n"], keep: Tensor[tilus.boolean, "n"], c: Tensor["dtype", "m"],
    out: Tensor["dtype", "k m"], *,
    dtype: constexpr, change: constexpr, shared: constexpr, order: constexpr = "relaxed", scope: constexpr = "device",
):  # fmt: skip
    tilus.grid(2, warps=2)
    at = tilus.block_id(0) * 80
    x, i, mask = tilus.load(a, at, 80), tilus.load(places, at, 80), tilus.load(keep, at, 80)
    if shared:
        s = tilus.shared(dtype, (16,))
        tilus.store(s, tilus.load(c, 0, 16))
        change(s, x, indices=i, mask=mask, order=order, scope=scope)
        tilus.store(out, tilus.load(s), (tilus.block_id(0), 0))
    else:
        change(c, x, indices=i, mask=mask, order=order, scope=scope)


@pytest.mark.parametrize("shared", [False, True], ids=["global", "shared"])
@pytest.mark.parametrize("dtype", WORDS, ids=str)
@pytest.mark.parametrize("kind", FUNCTIONS)
def test_every_kind_on_few_places(kind, dtype, shared):
    rng = np.random.default_rng(1)
    a = d.random(dtype, 160, low=-(2**24), high=2**24)
    places, keep = rng.integers(-2, 18, 160).astype(np.int32), rng.random(160) < 0.8
    c = d.random(dtype, 16, seed=2, low=-(2**24), high=2**24)
    if shared:
        d.run(
            update,
            a,
            places,
            keep,
            c,
            np.zeros((2, 16), c.dtype),
            dtype=dtype,
            change=FUNCTIONS[kind],
            shared=True,
        )
    else:
        made = d.run(
            update,
            a,
            places,
            keep,
            c,
            np.zeros((2, 16), c.dtype),
            dtype=dtype,
            change=FUNCTIONS[kind],
            shared=False,
        )
        expected = c.copy()
        operation = {
            "add": np.add, "min": np.minimum, "max": np.maximum, "and": np.bitwise_and, "or": np.bitwise_or,
            "xor": np.bitwise_xor,
        }[kind]  # fmt: skip
        for place, value in zip(places[keep], a[keep], strict=True):
            if 0 <= place < 16:
                expected[place] = operation(expected[place], value)
        np.testing.assert_array_equal(made.arrays[3], expected)


@pytest.mark.parametrize(
    ("dtype", "target"),
    [(float16, "sm_80"), (bfloat16, "sm_90a"), (float32, "sm_75"), (float64, "sm_80")],
    ids=str,
)
def test_sums_of_floats(dtype, target):
    # Small integers, so that any order of additions gives the same.
    rng = np.random.default_rng(3)
    a, c = d.array(rng.integers(-3, 4, 160), dtype), d.array(rng.integers(-3, 4, 16), dtype)
    places, keep = rng.integers(0, 16, 160).astype(np.int32), np.ones(160, bool)
    for shared in (False, True):
        d.run(
            update,
            a,
            places,
            keep,
            c,
            np.zeros((2, 16), c.dtype),
            dtype=dtype,
            change=tilus.atomic_add,
            shared=shared,
            target=target,
        )


@pytest.mark.parametrize("order", ["relaxed", "acquire", "release", "acq_rel"])
@pytest.mark.parametrize("scope", ["block", "device", "system"])
def test_orders_and_scopes(order, scope):
    a, places = np.ones(160, np.int32), np.arange(160, dtype=np.int32) % 16
    keep = np.arange(160) < 80
    made = d.run(
        update, a, places, keep, np.zeros(16, np.int32), np.zeros((2, 16), np.int32), dtype=int32, change=tilus.atomic_add, shared=False, order=order, scope=scope,
    )  # fmt: skip
    assert (
        made.count(
            f"atom.{order}.{ {'block': 'cta', 'device': 'gpu', 'system': 'sys'}[scope] }.global.add.s32"
        )
        > 0
    )


def test_a_target_without_the_type_says_so():
    a, places, keep = d.random(bfloat16, 160), np.zeros(160, np.int32), np.ones(160, bool)
    with pytest.raises(TargetNotSupported, match="sm_80 has no atomic add of bfloat16"):
        d.run(
            update,
            a,
            places,
            keep,
            d.random(bfloat16, 16),
            d.random(bfloat16, 2, 16),
            dtype=bfloat16,
            change=tilus.atomic_add,
            shared=False,
        )


def exchange(c: Tensor["dtype", "m n"], old: Tensor["dtype", "k m n"], *, dtype: constexpr):
    tilus.grid(1, warps=2)
    x = tilus.iota((4, 24), 1).to(dtype)
    tilus.store(old, tilus.atomic_exch(c, x, (2, 8)), (0, 2, 8))
    tilus.sync()
    tilus.store(old, tilus.atomic_cas(c, tilus.full((4, 24), 5, dtype), x + x, (2, 8)), (1, 2, 8))
    tilus.sync()
    tilus.store(old, tilus.load(c, (2, 8), (4, 24)), (2, 2, 8))


@pytest.mark.parametrize("dtype", [*WORDS, float32, float64], ids=str)
def test_exchange_and_compare_and_swap(dtype):
    c = d.random(dtype, 8, 40, low=-9, high=9)
    made = d.run(exchange, c, np.zeros((3, 8, 40), c.dtype), dtype=dtype)
    np.testing.assert_array_equal(made.arrays[1][0, 2:6, 8:32], c[2:6, 8:32])
    assert (made.arrays[0][2:6, 8 + 5] == 10).all()


def ticket(
    counter: Tensor[int32, "k"], out: Tensor[int32, "n m"], seen: Tensor[int32, "n"], *, warps: constexpr
):
    tilus.grid(4, warps=warps)
    mine = tilus.atomic_add(counter, 1, 0)
    tilus.store(out, tilus.full((64,), mine), (mine, 0))
    if mine == 3:
        tilus.atomic_add(seen, 1, 0)


@pytest.mark.parametrize("warps", [1, 4])
def test_every_thread_has_the_old_value_of_a_single_update(warps):
    made = d.run(
        ticket, np.zeros(1, np.int32), np.zeros((4, 64), np.int32), np.zeros(4, np.int32), warps=warps
    )
    np.testing.assert_array_equal(made.arrays[1], np.arange(4)[:, None] + np.zeros((1, 64), int))
    np.testing.assert_array_equal(made.arrays[2], [1, 0, 0, 0])


def copies(
    counter: Tensor[int32, "k"], out: Tensor[int32, "m n"], halves: Tensor[float16, "k"], *, warps: constexpr
):
    tilus.grid(1, warps=warps)
    old = tilus.atomic_add(counter, tilus.arange(12) + 1, 0)
    tilus.store(out, old[None, :] + tilus.iota((96, 12), 0), (0, 0))
    was = tilus.atomic_add(halves, tilus.full((12,), 2.0, float16), 0)
    tilus.store(out, tilus.full((12,), tilus.sum(was).to(int32)), (96, 0))


@pytest.mark.parametrize("warps", [1, 2, 3])
def test_copies_among_threads_have_the_old_value_too(warps):
    counter, halves = np.arange(12, dtype=np.int32) * 100, np.arange(12).astype(np.float16)
    made = d.run(copies, counter, np.zeros((97, 12), np.int32), halves, warps=warps)
    np.testing.assert_array_equal(made.arrays[0], counter + np.arange(12) + 1)
    np.testing.assert_array_equal(made.arrays[1][:96], counter + np.arange(96)[:, None])


def histogram(a: Tensor[uint32, "n"], out: Tensor[int32, "b"]):
    tilus.grid(tilus.cdiv(a.shape[0], 256), warps=2)
    s = tilus.shared(int32, (32,))
    tilus.store(s, tilus.zeros((32,), int32))
    at = tilus.block_id(0) * 256
    x = tilus.load(a, at, 256)
    tilus.atomic_add(
        s, 1, indices=(x % 32).to(int32), mask=at + tilus.arange(256) < a.shape[0], scope="block"
    )
    tilus.atomic_add(out, tilus.load(s), 0)


def test_a_histogram():
    a = np.random.default_rng(5).integers(0, 2**32, 700, dtype=np.uint32)
    made = d.run(histogram, a, np.zeros(32, np.int32))
    np.testing.assert_array_equal(made.arrays[1], np.bincount(a % 32, minlength=32))
