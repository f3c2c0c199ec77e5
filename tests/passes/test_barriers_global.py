"""Barriers between loads from a tensor in global memory and stores to it: in turns of a loop, and through views."""

from __future__ import annotations

import numpy as np
import pytest

import tilus.lang as tilus
from tests.codegen import differential as d
from tests.passes.test_barriers import placed
from tilus.dtypes import float32, int32
from tilus.lang import Tensor, constexpr


def windows(a: Tensor[float32, "m n"], turns: int, *, rows: constexpr, columns: constexpr, step: constexpr):
    tilus.grid(1, warps=4)
    for i in range(0, turns, step):
        x = tilus.load(a, (i * rows, 32 + i * columns), (8, 16))
        tilus.store(a, x * 0.5 + 1.0, (i * rows, 32 + i * columns))


BARRIER, NONE = "for(sync read write)", "for(read write)"


@pytest.mark.parametrize(
    ("rows", "columns", "step", "expected"),
    [
        (1, 0, 1, BARRIER),
        (7, 0, 1, BARRIER),
        (8, 0, 1, NONE),
        (0, 1, 1, BARRIER),
        (0, 15, 1, BARRIER),
        (0, 16, 1, NONE),
        (0, -15, 1, BARRIER),
        (0, -16, 1, NONE),
        (4, 0, 2, NONE),
        (3, 4, 2, BARRIER),
        (3, 8, 2, NONE),
        (0, 0, 1, NONE),
    ],
)
def test_windows_that_overlap_from_turn_to_turn(rows: int, columns: int, step: int, expected: str):
    a = d.random(float32, 32, 80)
    constants = {"rows": rows, "columns": columns, "step": step}
    assert placed(d.trace(windows, a, 3, **constants), "read", "write") == expected
    d.run(windows, a, 3, **constants)


def counted(a: Tensor[float32, "m n"], turns: int):
    tilus.grid(1, warps=4)
    i = 0
    while i < turns:
        x = tilus.load(a, (i, 0), (8, 16))
        tilus.store(a, x * 0.5 + 1.0, (i, 0))
        i += 2


def test_an_offset_that_is_carried_may_be_anywhere():
    a = d.random(float32, 32, 16)
    assert placed(d.trace(counted, a, 6), "read", "write").count("sync read write") == 1
    d.run(counted, a, 6)


def nested(a: Tensor[float32, "m n"], *, step: constexpr):
    tilus.grid(1, warps=4)
    for i in range(0, 2 * step, step):
        row = i + 8
        for j in range(0, 32, 16):
            x = tilus.load(a, (row - 8, j), (8, 16))
            tilus.store(a, x * 0.5 + 1.0, (row - 8, j))


@pytest.mark.parametrize(
    ("step", "expected"), [(8, "for(for(read write))"), (4, "for(for(sync read write))")]
)
def test_the_outer_loop_counts_too(step: int, expected: str):
    a = d.random(float32, 16, 32)
    assert placed(d.trace(nested, a, step=step), "read", "write") == expected
    d.run(nested, a, step=step)


def through_view(a: Tensor[float32, "m n"], *, moved: constexpr):
    tilus.grid(1, warps=4)
    pointer = tilus.assume(a.ptr + 1, 4) if moved else a.ptr
    other = tilus.view(pointer, float32, (16, 16), (16, 1))
    x = tilus.load(other, (0, 0), (16, 16))
    tilus.store(a, x * 0.5 + 1.0, (0, 1))


@pytest.mark.parametrize("moved", [False, True])
def test_a_view_of_a_tensors_pointer_is_the_same_memory(moved: bool):
    a = d.random(float32, 18, 16)
    assert placed(d.trace(through_view, a, moved=moved), "read", "write") == "read sync write"
    d.run(through_view, a, moved=moved)


def moving_view(a: Tensor[float32, "m n"]):
    tilus.grid(1, warps=4)
    for i in range(3):
        window = tilus.view(a.ptr + i, float32, (8, 16), (16, 1))
        tilus.store(window, tilus.load(window, (0, 0), (8, 16)) * 0.5, (0, 0))


def test_a_view_that_moves_from_turn_to_turn():
    a = d.random(float32, 16, 16)
    assert placed(d.trace(moving_view, a), "read", "write") == BARRIER
    d.run(moving_view, a)


def twice(a: Tensor[float32, "m n"], out: Tensor[float32, "p q"], *, row: constexpr, column: constexpr):
    tilus.grid(1, warps=4)
    at = a.shape[0]
    tilus.store(out, tilus.full((16, 64), 0.0, float32), (at + 4, 8))
    tilus.store(out, tilus.load(a, (0, 0), (8, 32)), (at + row, column))


@pytest.mark.parametrize(
    ("row", "column", "expected"),
    [
        (4, 9, "write sync write"),
        (19, 71, "write sync write"),
        (20, 9, "write write"),
        (4, 72, "write write"),
        (-3, -23, "write sync write"),
        (-4, 9, "write write"),
        (4, -24, "write write"),
    ],
)
def test_what_is_written_twice_keeps_the_second_value(row: int, column: int, expected: str):
    a, out = d.random(float32, 8, 32), d.random(float32, 40, 128)
    constants = {"row": row, "column": column}
    assert placed(d.trace(twice, a, out, **constants), "write") == expected
    d.run(twice, a, out, **constants)


def gathered(
    a: Tensor[float32, "m n"], order: Tensor[int32, "m"], out: Tensor[float32, "m n"], *, scattered: constexpr
):
    tilus.grid(1, warps=4)
    rows, columns = tilus.load(order, (0,), (64,)), tilus.arange(16)
    x = tilus.load(a, (0, 0), (64, 16))
    if scattered:
        tilus.store(a, x, indices=(rows[:, None], columns[None, :]))
        tilus.store(out, tilus.load(a, (0, 0), (64, 16)), (0, 0))
    else:
        tilus.store(a, x * 2.0, (0, 0))
        tilus.store(out, tilus.load(a, indices=(rows[:, None], columns[None, :])), (0, 0))


@pytest.mark.parametrize(
    ("scattered", "expected"),
    [(False, "read read write sync write"), (True, "read read sync sync read write")],
)
def test_elements_at_index_tiles_may_be_anywhere(scattered: bool, expected: str):
    a, order = d.random(float32, 64, 16), np.random.default_rng(0).permutation(64).astype(np.int32)
    assert placed(d.trace(gathered, a, order, a * 0, scattered=scattered), "read", "write") == expected
    d.run(gathered, a, order, a * 0, scattered=scattered)


def counted_apart(chosen: Tensor[int32, "m"], counts: Tensor[int32, "n"], out: Tensor[int32, "n"]):
    tilus.grid(1, warps=4)
    for i in range(0, chosen.shape[0], 64):
        places = tilus.load(chosen, (i,), (64,))
        tilus.atomic_add(counts, places * 0 + 1, indices=(places,))
    tilus.store(out, tilus.load(counts, (0,), (64,)), (0,))


def test_atomic_updates_wait_for_none_of_their_kind_and_loads_wait_for_them():
    chosen, counts = np.random.default_rng(0).integers(0, 64, 256).astype(np.int32), np.zeros(64, np.int32)
    assert (
        placed(d.trace(counted_apart, chosen, counts, counts), "read", "write") == "for(read) sync read write"
    )
    d.run(counted_apart, chosen, counts, counts.copy())


def set_and_counted(counts: Tensor[int32, "n"], out: Tensor[int32, "n"], *, waiting: constexpr):
    tilus.grid(1, warps=4)
    place = tilus.arange(128)
    tilus.store(counts, tilus.full((128,), 3, int32), indices=(127 - place,))
    if waiting:
        while tilus.max(tilus.atomic_add(counts, place * 0, indices=(place,))) != 3:
            pass
    else:
        tilus.atomic_add(counts, place, indices=(place,))
    tilus.store(out, place, (0,))


def test_no_barrier_stands_in_a_loop_that_waits():
    counts = np.zeros(128, np.int32)
    made = d.run(set_and_counted, counts, counts.copy(), waiting=False)
    np.testing.assert_array_equal(made.arrays[0], np.arange(128) + 3)
    kernel = d.trace(set_and_counted, counts, counts, waiting=True)
    assert "sync" not in placed(kernel, "read", "write")


def placed_by(a: Tensor[float32, "m n"], first: int, *, wrapped: constexpr):
    tilus.grid(1, warps=4)
    for i in range(3):
        row = (16 * i) % 24 if wrapped else first // 3 * 8
        x = tilus.load(a, (row, 0), (16, 16))
        tilus.store(a, x * 0.5 + 1.0, (row, 0))


@pytest.mark.parametrize(("wrapped", "expected"), [(True, BARRIER), (False, NONE)])
def test_windows_that_wrap_around_meet_those_of_earlier_turns(wrapped: bool, expected: str):
    a = d.random(float32, 40, 16)
    assert placed(d.trace(placed_by, a, 7, wrapped=wrapped), "read", "write") == expected
    d.run(placed_by, a, 7, wrapped=wrapped)


def other_bits(a: Tensor[float32, "m n"]):
    tilus.grid(1, warps=4)
    whole = tilus.view(a.ptr, int32, (16, 16), (16, 1))
    x = tilus.load(whole, (0, 0), (16, 16))
    tilus.store(a, (x & 1).to(float32), (0, 1))


def test_a_view_as_another_type_is_the_same_memory():
    a = d.random(float32, 18, 16)
    assert placed(d.trace(other_bits, a), "read", "write") == "read sync write"
    d.run(other_bits, a)


def reordered(
    a: Tensor[float32, "m n"], order: Tensor[int32, "m"], out: Tensor[float32, "m n"], *, back: constexpr
):
    """Rows by index, which are stored at other indices of the same tensor, or added to the rows in their order."""
    tilus.grid(1, warps=4)
    rows, columns = tilus.load(order, (0,), (64,)), tilus.arange(16)
    x = tilus.load(a, indices=(rows[:, None], columns[None, :]))
    if back:
        tilus.store(a, x, indices=((63 - rows)[:, None], columns[None, :]))
    else:
        tilus.store(out, x + tilus.load(a, (0, 0), (64, 16)), (0, 0))


@pytest.mark.parametrize(("back", "expected"), [(True, "read sync"), (False, "read read write")])
def test_rows_by_index_are_ordered_with_stores_by_index_and_not_with_loads(back: bool, expected: str):
    a, order = d.random(float32, 64, 16), np.random.default_rng(0).permutation(64).astype(np.int32)
    assert placed(d.trace(reordered, a, order, a * 0, back=back), "read", "write") == expected
    d.run(reordered, a, order, a * 0, back=back)


def stored_twice(out: Tensor[float32, "m n"], first: int, second: int):
    tilus.grid(1, warps=4)
    tilus.store(out, tilus.full((8, 16), 1.0, float32), (first, 0))
    tilus.store(out, tilus.full((8, 64), 2.0, float32), (second, 0))


def test_stores_wait_only_where_they_overlap_for_certain():
    out = d.random(float32, 16, 64)
    assert placed(d.trace(stored_twice, out, 0, 8), "write") == "write write"
    d.run(stored_twice, out, 0, 8)
