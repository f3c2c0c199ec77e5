"""Division by an instruction's layout, up to the order of each thread's elements."""

from __future__ import annotations

import pytest
from hypothesis import strategies as st

from tests.layout.strategies import law, register_layouts
from tilus.layout import (
    Digit,
    LayoutError,
    RegisterLayout,
    Tiling,
    column_local,
    column_spatial,
    explain_tile_by,
    local,
    replicated,
    spatial,
    tile_by,
)

# PTX ISA, mma.m16n8k16 with 16-bit operands.
MMA_A = column_local(2, 2).spatial(8, 4).local(1, 2)
MMA_B = local(2, 1).column_spatial(4, 8).local(2, 1)
MMA_C = local(2, 1).spatial(8, 4).local(1, 2)


def check(layout: RegisterLayout, atom: RegisterLayout, tiling: Tiling) -> None:
    """The tiling's promise, over all threads and elements."""
    whole = tiling.quotient * atom
    assert whole.shape == layout.shape
    used = set()
    for thread in range(layout.threads):
        for q in range(tiling.quotient.elements):
            for a in range(atom.elements):
                element = tiling.element(q, a)
                used.add(element)
                assert layout.index(thread, element) == whole.index(thread, q * atom.elements + a)
    assert sorted(used) == list(range(layout.elements))
    for q in range(tiling.quotient.elements):
        assert tiling.elements(q) == [tiling.element(q, a) for a in range(atom.elements)]


def shuffled(layout: RegisterLayout, data: st.DataObject) -> RegisterLayout:
    """The layout with its local digits split and in another order."""
    pieces: list[Digit] = []
    for digit in layout.local_digits:
        factor = data.draw(st.sampled_from([d for d in range(1, digit.size + 1) if digit.size % d == 0]))
        pieces.append(Digit(digit.size // factor, digit.dim, digit.stride * factor))
        pieces.append(Digit(factor, digit.dim, digit.stride))
    return RegisterLayout(layout.shape, layout.spatial_digits, tuple(data.draw(st.permutations(pieces))))


@law(st.data(), st.integers(1, 2), examples=150)
def test_a_product_tiles_whatever_the_order_of_its_elements(data: st.DataObject, rank: int) -> None:
    quotient = data.draw(register_layouts(rank=rank, max_threads=8, max_elements=8, max_digits=2))
    atom = data.draw(register_layouts(rank=rank, max_threads=8, max_elements=8, max_digits=2))
    layout = shuffled(quotient * atom, data)
    tiling = tile_by(layout, atom)
    assert tiling is not None
    assert tiling.quotient.spatial_digits == quotient.spatial_digits
    check(layout, atom, tiling)


@law(st.data(), st.integers(1, 2), examples=200)
def test_a_tiling_is_found_whenever_there_is_one(data: st.DataObject, rank: int) -> None:
    layout = data.draw(register_layouts(rank=rank, max_threads=12, max_elements=12))
    atom = data.draw(register_layouts(rank=rank, max_threads=6, max_elements=6, max_digits=1))
    tiling = tile_by(layout, atom)
    if tiling is not None:
        check(layout, atom, tiling)
    else:
        assert not tiles_by_brute_force(layout, atom)


def tiles_by_brute_force(layout: RegisterLayout, atom: RegisterLayout) -> bool:
    """Whether each group of threads holds whole, aligned tiles of the atom, each thread in its place."""
    if any(n % m for n, m in zip(layout.shape, atom.shape, strict=True)):
        return False
    if layout.threads % atom.threads or layout.elements % atom.elements:
        return False
    tiles_of_groups = []
    for group in range(layout.threads // atom.threads):
        held: dict[tuple[int, ...], set[tuple[int, tuple[int, ...]]]] = {}
        for thread in range(atom.threads):
            for element in range(layout.elements):
                index = layout.index(group * atom.threads + thread, element)
                tile = tuple(i // n for i, n in zip(index, atom.shape, strict=True))
                inner = tuple(i % n for i, n in zip(index, atom.shape, strict=True))
                held.setdefault(tile, set()).add((thread, inner))
        wanted = {(thread, index) for thread, _, index in atom.items()}
        if any(found != wanted for found in held.values()):
            return False
        tiles_of_groups.append(set(held))
    return True


def test_the_accumulators_of_a_warp_are_instances_of_the_instruction() -> None:
    accumulators = spatial(2, 2).local(2, 4) * MMA_C
    tiling = tile_by(accumulators, MMA_C)
    assert tiling is not None
    assert tiling.quotient == spatial(2, 2).local(2, 4)
    assert tiling.elements(1) == [4, 5, 6, 7]


def test_elements_of_an_instance_are_found_where_they_are() -> None:
    # All rows of the upper halves first, then the lower ones: not a product, but made of the same instances.
    layout = RegisterLayout(
        (16, 16),
        MMA_C.spatial_digits,
        (Digit(2, 0, 8), Digit(2, 1, 8), Digit(2, 1, 1)),
    )
    tiling = tile_by(layout, MMA_C)
    assert tiling is not None
    assert tiling.quotient == local(1, 2)
    assert tiling.elements(0) == [0, 1, 4, 5]
    assert tiling.elements(1) == [2, 3, 6, 7]


def test_operands_replicated_over_warps_still_tile() -> None:
    a = replicated(2).spatial(2, 1).local(1, 4) * MMA_A
    tiling = tile_by(a, MMA_A)
    assert tiling is not None
    assert tiling.quotient == replicated(2).spatial(2, 1).local(1, 4)


def test_an_accumulator_is_the_next_products_operand() -> None:
    # Two neighbouring accumulators of m16n8 hold what one A operand of m16n8k16 needs.
    accumulators = local(1, 4) * MMA_C
    tiling = tile_by(accumulators, MMA_A)
    assert tiling is not None
    assert tiling.quotient == local(1, 2)
    assert tiling.elements(0) == list(range(8))


def test_b_operand_is_made_of_columns() -> None:
    assert tile_by(local(2, 1) * MMA_B, MMA_B) is not None
    assert tile_by(spatial(8, 4).local(2, 2), MMA_B) is None


@pytest.mark.parametrize(
    ("layout", "atom", "message"),
    [
        (spatial(8, 4), MMA_C, "dimension 0 of size 8 is not divisible by 16"),
        (
            local(2, 1).column_spatial(8, 4).local(1, 2),
            MMA_C,
            "thread digit 4@1:2 of the divisor is expected",
        ),
        (
            spatial(16, 4).local(1, 2),
            MMA_C,
            "digit 2@0:8 of the layout steps inside the 16 indices of dimension 0",
        ),
        (
            column_spatial(4, 1).spatial(8, 4).local(1, 2),
            MMA_C,
            "digit 4@0:8 of the layout steps inside the 16 indices of dimension 0",
        ),
        (local(2).local(2), spatial(2), "thread digit 2@0:1 of the divisor is expected"),
        (spatial(2), spatial(2, 1), "rank 1 and one of rank 2"),
    ],
)
def test_a_layout_that_does_not_tile_is_explained(layout, atom, message: str) -> None:
    assert layout.rank != atom.rank or tile_by(layout, atom) is None
    with pytest.raises(LayoutError, match=message):
        explain_tile_by(layout, atom)


def test_different_spatial_order_does_not_tile() -> None:
    assert tile_by(column_spatial(4, 8).local(2, 2), spatial(2, 2).local(1, 1)) is None
