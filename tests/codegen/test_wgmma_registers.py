"""wgmma with its first operand in registers: any assignment of rows to warps, and what does not fit is refused."""

from __future__ import annotations

import re

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import tilus
from tilus import Tensor, constexpr, float16, float32
from tilus.codegen import target
from tilus.codegen.atoms.wgmma import (
    WARP_ROWS,
    c_atom,
    rows_in_order,
    rows_of,
    warp_a_atom,
    warp_c_atom,
)
from tilus.codegen.lower.hopper import check_rows
from tilus.codegen.selection import Mma
from tilus.errors import LayoutConflict, TilusError
from tilus.layout import Digit, LayoutError, RegisterLayout, column_spatial, local, replicated, spatial

TARGET = "sm_90a"
SELECT = Mma(target(TARGET))
HALVES = (tilus.float16, tilus.float16, tilus.float32)


def rows(*digits: Digit, local_digits: tuple[Digit, ...] = ()) -> RegisterLayout:
    """Return a layout of rows of tiles of 16, of as many tiles as the digits make."""
    count = 1
    for digit in (*digits, *local_digits):
        count *= digit.size
    return RegisterLayout((count, 1), digits, local_digits)


# Which 16 rows of the tile are with which warp. All are for two tiles to a warp, or one.
ROWS = {
    "as the instruction has them": (4, rows(Digit(4, 0, 1))),
    "two instructions one below the other": (4, rows(Digit(4, 0, 1), local_digits=(Digit(2, 0, 4),))),
    "neighbouring rows with each warp": (4, rows(Digit(4, 0, 2), local_digits=(Digit(2, 0, 1),))),
    "warps the other way round": (4, rows(Digit(2, 0, 1), Digit(2, 0, 2))),
    "two warpgroups, neighbouring rows": (8, rows(Digit(8, 0, 2), local_digits=(Digit(2, 0, 1),))),
    "two warpgroups in turns": (8, rows(Digit(2, 0, 1), Digit(4, 0, 2))),
    "three tiles to a warp": (4, rows(Digit(4, 0, 3), local_digits=(Digit(3, 0, 1),))),
}


@tilus.kernel
def from_registers(
    a: Tensor[float16, "m k"],
    b: Tensor[float16, "n k"],
    c: Tensor[float32, "m n"],
    *,
    m: constexpr,
    n: constexpr,
    warps: constexpr,
    layout: constexpr,
    out: constexpr = None,
):
    """c = a @ b.T with a in registers of a layout, and the sum of two products."""
    tilus.grid(1, warps=warps)
    sb = tilus.shared(float16, (n, 64))
    tilus.store(sb, tilus.load(b, (0, 0), (n, 64)))
    tilus.fence("async")
    tilus.sync()
    left = tilus.load(a, (0, 0), (m, 64), layout=layout)
    acc = tilus.zeros((m, n), float32, layout=out)
    acc = tilus.dot_async(left, sb.transpose(), acc)
    acc = tilus.dot_wait(tilus.dot_async(left, sb.transpose(), acc))
    tilus.store(c, acc, (0, 0))


def run(layout: RegisterLayout, warps: int, n: int = 24, out: RegisterLayout | None = None) -> str:
    """Run the kernel with every check on, compare, and return its PTX."""
    m = layout.shape[0]
    generator = torch.Generator().manual_seed(m + n)
    a, b = (torch.randn(extent, 64, generator=generator).half() for extent in (m, n))
    c = torch.zeros(m, n)
    options = dict(m=m, n=n, warps=warps, layout=layout, out=out)
    from_registers.simulate(a, b, c, target=TARGET, **options).raise_if_hazards()
    # Products of halves are exact in float32; only the sum rounds.
    torch.testing.assert_close(c.double(), 2 * (a.double() @ b.double().t()), rtol=0, atol=128 * 2.0**-20)
    return from_registers.compile(a, b, c, target=TARGET, **options).ptx


def exchanges(ptx: str) -> int:
    """Count what moves elements between threads."""
    return len(re.findall(r"\b(shfl|ldmatrix|stmatrix|ld\.shared)\b", ptx))


@pytest.mark.parametrize("name", list(ROWS))
def test_rows_stay_with_the_warps_that_hold_them(name: str) -> None:
    warps, which = ROWS[name]
    ptx = run(which * local(1, 4) * warp_a_atom(16, 16), warps)
    assert exchanges(ptx) == 0
    assert ptx.count("wgmma.mma_async") == 2 * 4 * (which.elements)


def test_the_order_of_a_threads_own_elements_is_free() -> None:
    """Steps along k outside of rows, and what a thread holds of one step in another order."""
    which = rows(Digit(4, 0, 2), local_digits=(Digit(2, 0, 1),))
    atom = RegisterLayout(
        (WARP_ROWS, 16), (Digit(8, 0, 1), Digit(4, 1, 2)), (Digit(2, 0, 8), Digit(2, 1, 8), Digit(2, 1, 1))
    )
    assert exchanges(run(local(1, 4) * which * atom, 4)) == 0


def test_packed_weights_turned_are_a_first_operand() -> None:
    """The second operand of mma.sync, as weights are packed for it, is wgmma's first one, its registers permuted."""
    unit = local(4, 4) * local(2, 1) * column_spatial(4, 8) * local(2, 1)
    tile = RegisterLayout((1, 4), (Digit(4, 1, 1),), ()) * unit
    assert exchanges(run(tile.transpose(), 4)) == 0


def test_an_accumulator_with_a_layout_decides() -> None:
    which = rows(Digit(4, 0, 2), local_digits=(Digit(2, 0, 1),))
    ordered = rows_in_order(128, 4) * local(1, 4) * warp_a_atom(16, 16)
    ptx = run(ordered, 4, out=which * warp_c_atom(24))
    # The first operand had to move.
    assert exchanges(ptx) > 0


def test_a_first_operand_that_fits_no_instruction_is_converted() -> None:
    assert exchanges(run(spatial(16, 8) * local(4, 8), 4)) > 0


# Of m64nNk16 with halves (PTX ISA, register fragments for wgmma.mma_async.m64nNk16).
OWN_A = RegisterLayout(
    (64, 16),
    (Digit(4, 0, 16), Digit(8, 0, 1), Digit(4, 1, 2)),
    (Digit(2, 1, 8), Digit(2, 0, 8), Digit(2, 1, 1)),
)
OWN_C = RegisterLayout(
    (64, 48),
    (Digit(4, 0, 16), Digit(8, 0, 1), Digit(4, 1, 2)),
    (Digit(6, 1, 8), Digit(2, 0, 8), Digit(2, 1, 1)),
)


def test_the_layouts_are_the_instructions_own_by_default() -> None:
    assert c_atom(48) == OWN_C
    for groups, again in ((1, 1), (1, 3), (2, 2)):
        choice = SELECT.choose_dot_async((64 * groups * again, 48, 32), HALVES, 4 * groups)
        outer = RegisterLayout((groups, 1), (Digit(groups, 0, 1),), ())
        assert choice.c == outer * local(again, 1) * OWN_C
        assert choice.a == outer * local(again, 2) * OWN_A


def test_rows_of_a_layout() -> None:
    for warps, which in ROWS.values():
        found = rows_of(which * local(1, 3) * warp_a_atom(16, 16), warp_a_atom(16, 16))
        assert found == which
        assert found.threads == warps


@settings(max_examples=25, deadline=None)
@given(st.data())
def test_each_warp_has_the_rows_of_its_results(data: st.DataObject) -> None:
    """For any assignment: every row is with one warp, and that warp's accumulator is of its rows."""
    factors = data.draw(st.lists(st.sampled_from([2, 2, 2, 3]), max_size=3)) + [2, 2]
    order = data.draw(st.permutations(range(len(factors))))
    warps = {len(factors) - 1, len(factors) - 2}
    strides, reach = {}, 1
    for place in order:
        strides[place], reach = reach, reach * factors[place]
    digits = [Digit(factor, 0, strides[i]) for i, factor in enumerate(factors)]
    which = RegisterLayout(
        (reach, 1),
        tuple(d for i, d in enumerate(digits) if i in warps),
        tuple(d for i, d in enumerate(digits) if i not in warps),
    )
    a = which * local(1, 2) * warp_a_atom(16, 16)
    choice = SELECT.choose_dot_async((16 * reach, 8, 32), HALVES, 4, a)
    assert choice.a == a

    def rows_of_threads(layout: RegisterLayout) -> list[set[int]]:
        return [{layout.index(t, e)[0] for e in range(layout.elements)} for t in range(128)]

    assert rows_of_threads(choice.c) == rows_of_threads(a)
    assert sorted(set.union(*rows_of_threads(choice.c))) == list(range(16 * reach))


@pytest.mark.parametrize(
    ("layout", "words"),
    [
        (rows(Digit(4, 0, 1)).transpose() * local(4, 1) * warp_a_atom(16, 16), "something else than rows"),
        (
            replicated(2) * rows(Digit(4, 0, 1)) * local(1, 4) * warp_a_atom(16, 16),
            "something else than rows",
        ),
        (spatial(16, 8) * local(4, 8), "16x16"),
    ],
    ids=["warps along k", "copies", "another order of threads"],
)
def test_layouts_that_are_not_made_of_rows_are_told_why(layout: RegisterLayout, words: str) -> None:
    with pytest.raises(LayoutError, match=words):
        rows_of(layout, warp_a_atom(16, 16))


def test_an_accumulator_of_other_rows_is_refused_by_code_generation() -> None:
    """Layout inference gives both the same rows; text of the IR may say anything."""
    here, there = ROWS["two instructions one below the other"][1], ROWS["neighbouring rows with each warp"][1]
    a, c = warp_a_atom(16, 16), warp_c_atom(24)
    check_rows(here * local(1, 4) * a, here * c, a, c)
    with pytest.raises(LayoutConflict, match="are not with the warps that hold them in its accumulator"):
        check_rows(here * local(1, 4) * a, there * c, a, c)
    with pytest.raises(LayoutConflict, match=r"dot_async from registers: .* something else than rows"):
        check_rows(replicated(2) * here * local(1, 4) * a, here * c, a, c)


def test_an_accumulator_that_fits_no_instruction_is_refused() -> None:
    which = ROWS["as the instruction has them"][1]
    with pytest.raises(LayoutConflict, match="the accumulator of dot_async is in") as error:
        run(which * local(1, 4) * warp_a_atom(16, 16), 4, out=spatial(16, 8) * local(4, 3))
    assert error.value.hint == "leave its layout to inference"


def test_a_first_operand_in_shared_memory_leaves_no_choice() -> None:
    """The instruction reads its rows from memory in their order, so the accumulator's are fixed."""

    @tilus.kernel
    def from_shared(b: Tensor[float16, "n k"], c: Tensor[float32, "m n"], *, out: constexpr):
        tilus.grid(1, warps=4)
        sb = tilus.shared(float16, (128, 64))
        acc = tilus.zeros((128, 128), float32, layout=out)
        tilus.store(c, tilus.dot_wait(tilus.dot_async(sb, sb.transpose(), acc)), (0, 0))

    b, c = torch.zeros(128, 64).half(), torch.zeros(128, 128)
    turned = rows(Digit(4, 0, 2), local_digits=(Digit(2, 0, 1),)) * warp_c_atom(128)
    with pytest.raises(TilusError, match="the accumulator of dot_async is in"):
        from_shared.compile(b, c, target=TARGET, out=turned)
