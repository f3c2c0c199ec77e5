"""What accesses cost: vector width, addresses, bank conflicts and coalescing, against brute force."""

from __future__ import annotations

from itertools import pairwise
from math import gcd

import pytest
from hypothesis import strategies as st

from tests.layout.strategies import POWERS, law, register_layouts, shared_layouts
from tilus.layout import (
    Digit,
    GlobalLayout,
    LayoutError,
    RegisterLayout,
    SharedLayout,
    Swizzle,
    affine_offsets,
    bank_conflicts,
    coalesced,
    coalescing,
    column_major,
    column_spatial,
    contiguity,
    decompose,
    local,
    offsets,
    padded,
    row_major,
    spatial,
    strided,
    swizzled_row_major,
    vector_width,
    wavefronts,
)

MMA_C = local(2, 1).spatial(8, 4).local(1, 2)


def offset_table(layout: RegisterLayout, memory: SharedLayout) -> list[list[int]]:
    return [
        [memory.offset(layout.index(thread, element)) for element in range(layout.elements)]
        for thread in range(layout.threads)
    ]


def groups_by_brute_force(table: list[list[int]], width: int) -> set[tuple[int, ...]] | None:
    """The groups of elements that fill aligned vectors, if they are the same in every thread."""
    found: set[tuple[int, ...]] | None = None
    for row in table:
        vectors: dict[int, dict[int, int]] = {}
        for element, offset in enumerate(row):
            vectors.setdefault(offset // width, {})[offset % width] = element
        if any(len(vector) != width for vector in vectors.values()):
            return None
        here = {tuple(vector[place] for place in range(width)) for vector in vectors.values()}
        if found is not None and here != found:
            return None
        found = here
    return found


# Contiguity.


@law(st.data(), register_layouts(), examples=200)
def test_vectors_are_aligned_and_adjacent_in_every_thread(
    data: st.DataObject, layout: RegisterLayout
) -> None:
    memory = data.draw(shared_layouts(layout.shape))
    found = contiguity(layout, memory)
    assert groups_by_brute_force(offset_table(layout, memory), found.vector) == set(found.groups)
    assert list(found.groups) == sorted(found.groups)
    assert vector_width(layout, memory) == found.vector


@law(st.data(), register_layouts(), st.sampled_from([None, 1, 2, 3, 4, 6, 8, 16]), examples=200)
def test_no_wider_vectors_exist_without_swizzle(data: st.DataObject, layout: RegisterLayout, limit) -> None:
    memory = data.draw(shared_layouts(layout.shape, swizzles=False))
    if decompose(layout, memory) is None:
        return
    table = offset_table(layout, memory)
    widths = [w for w in range(1, layout.elements + 1) if limit is None or limit % w == 0]
    widest = max(w for w in widths if groups_by_brute_force(table, w) is not None)
    assert contiguity(layout, memory, limit).vector == widest


@law(st.data(), register_layouts(sizes=POWERS), examples=200)
def test_no_wider_vectors_exist_in_swizzled_powers_of_two(
    data: st.DataObject, layout: RegisterLayout
) -> None:
    memory = data.draw(shared_layouts(layout.shape, padding=False))
    if decompose(layout, memory) is None:
        return
    table = offset_table(layout, memory)
    widest = max(w for w in range(1, layout.elements + 1) if groups_by_brute_force(table, w) is not None)
    assert contiguity(layout, memory).vector == widest


def test_a_vector_may_take_part_of_a_digit() -> None:
    found = contiguity(local(2, 6), strided((2, 6), (12, 1)), limit=4)
    assert found.vector == 2
    assert found.groups == ((0, 1), (2, 3), (4, 5), (6, 7), (8, 9), (10, 11))
    assert contiguity(local(2, 6), strided((2, 6), (12, 1)), limit=3).vector == 3


def test_groups_follow_memory_and_not_the_element_numbers() -> None:
    layout = local(1, 2).spatial(4, 1).column_local(2, 2)
    assert contiguity(layout, row_major(8, 4), limit=2).groups == ((0, 2), (1, 3), (4, 6), (5, 7))
    assert contiguity(layout, column_major(8, 4)).groups == ((0, 1), (2, 3), (4, 5), (6, 7))


def test_the_swizzle_bounds_the_vector() -> None:
    layout = spatial(8, 1).local(1, 64)
    assert contiguity(layout, row_major(8, 64)).vector == 64
    assert contiguity(layout, swizzled_row_major((8, 64), 16)).vector == 8
    # In one row the swizzle has nothing to do.
    assert contiguity(local(1, 64), swizzled_row_major((1, 64), 16)).vector == 64


def test_vectors_in_global_memory_depend_on_what_is_known_of_the_strides() -> None:
    layout = coalesced((16, 64), 32, 8)
    assert contiguity(layout, (4096, 1), limit=8).vector == 8
    assert contiguity(layout, (4100, 1), limit=8).vector == 4
    symbolic = GlobalLayout(("m", "k"), ("k", 1))
    assert contiguity(layout, symbolic, limit=8).vector == 1
    assert contiguity(layout, symbolic, limit=8, multiples={"k": 2}).vector == 2
    assert contiguity(layout, symbolic, limit=8, multiples={"k": 64}).vector == 8
    assert contiguity(layout, GlobalLayout(("m", "k"), (1, "m")), multiples={"m": 64}).vector == 1


def test_sides_of_different_shape_are_refused() -> None:
    with pytest.raises(LayoutError, match="a 4x4 tile does not fit a shared layout of a 4x8 tile"):
        contiguity(local(4, 4), row_major(4, 8))
    with pytest.raises(LayoutError, match="rank 2 does not fit memory with 1 strides"):
        contiguity(local(4, 4), (1,))


# Offsets.


@law(st.data(), register_layouts(), examples=150)
def test_offsets_are_those_of_the_two_layouts_together(data: st.DataObject, layout: RegisterLayout) -> None:
    memory = data.draw(shared_layouts(layout.shape))
    expected = offset_table(layout, memory)
    assert offsets(layout, memory) == expected
    threads, elements = range(0, layout.threads, 2), range(layout.elements - 1, -1, -1)
    assert offsets(layout, memory, threads, elements) == [[expected[t][e] for e in elements] for t in threads]


@law(st.data(), register_layouts(), examples=300)
def test_affine_offsets_are_exact(data: st.DataObject, layout: RegisterLayout) -> None:
    memory = data.draw(shared_layouts(layout.shape))
    parts = affine_offsets(layout, memory)
    if parts is None:
        return
    table = offset_table(layout, memory)
    assert [[parts.offset(t, e) for e in range(layout.elements)] for t in range(layout.threads)] == table


@law(st.data(), register_layouts(), examples=200)
def test_offsets_without_swizzle_separate_unless_digits_do_not_fit(data, layout: RegisterLayout) -> None:
    memory = data.draw(shared_layouts(layout.shape, swizzles=False))
    table = offset_table(layout, memory)
    separable = all(
        row[e] - row[0] == table[0][e] - table[0][0] for row in table for e in range(layout.elements)
    )
    parts = affine_offsets(layout, memory)
    if parts is not None:
        assert separable
        assert set(parts.xors) == {0}
    elif separable:
        # Only digits that cut each other unevenly, such as 2 x 3 and 3 x 2, may be given up.
        assert not _fits(layout, memory)


def _fits(layout: RegisterLayout, memory: SharedLayout) -> bool:
    for dim, chain in enumerate(memory.chains):
        cuts, place = {1}, 1
        for digit in reversed(chain):
            place *= digit.size
            cuts.add(place)
        cuts |= {digit.stride for digit in layout.chain(dim)}
        if any(high % low for low, high in pairwise(sorted(cuts))):
            return False
    return True


@law(st.data(), register_layouts(sizes=POWERS), examples=200)
def test_powers_of_two_always_separate(data: st.DataObject, layout: RegisterLayout) -> None:
    memory = data.draw(shared_layouts(layout.shape, padding=False))
    parts = affine_offsets(layout, memory)
    assert parts is not None
    # An XOR is used only where the thread's share has bits that it could meet.
    for element, xor in enumerate(parts.xors):
        if xor:
            plain = {parts.offset(t, element) - parts.thread_offset(t) for t in range(layout.threads)}
            assert len(plain) > 1, f"element {element} could be reached by adding"


def test_the_tensor_cores_view_of_a_swizzled_tile_needs_few_xors() -> None:
    layout = spatial(4, 1).local(1, 8) * MMA_C
    parts = affine_offsets(layout, swizzled_row_major((64, 64), 16))
    assert parts is not None
    assert sorted(set(parts.xors)) == [0, 8, 16, 24, 32, 40, 48, 56]
    assert sorted(set(parts.adds)) == [0, 1, 512, 513]


def test_offsets_of_chosen_elements_only() -> None:
    layout = coalesced((64, 64), 128, 8)
    parts = affine_offsets(layout, row_major(64, 64), elements=[0, 8, 16, 24])
    assert parts is not None
    assert parts.adds == (0, 1024, 2048, 3072)
    assert parts.swizzle is None


def test_a_swizzle_that_threads_do_not_feel_is_left_out() -> None:
    parts = affine_offsets(spatial(1, 8).local(8, 8), swizzled_row_major((8, 64), 16))
    assert parts is not None
    assert parts.swizzle is None
    assert set(parts.xors) == {0, 8, 16, 24, 32, 40, 48, 56}


def test_a_carry_is_harmless_where_every_thread_moves_alike() -> None:
    memory = strided((2, 2, 4), (24, 8, 128)).with_swizzle(Swizzle(1, 2, 5))
    parts = affine_offsets(spatial(2, 1, 1).local(1, 2, 4), memory, elements=[5])
    assert parts is not None
    assert (parts.xors, parts.adds) == ((0,), (140,))
    assert parts.offset(1, 0) == memory.offset((1, 1, 1))


def test_a_carry_into_the_swizzle_does_not_separate() -> None:
    memory = strided((4, 3), (3, 1)).with_swizzle(Swizzle(1, 0, 3))
    assert affine_offsets(spatial(4, 1).local(1, 3), memory) is None


def test_a_carry_out_of_the_swizzles_run_is_not_overlooked() -> None:
    memory = strided((2, 4, 3), (32, 3, 1)).with_swizzle(Swizzle(1, 2, 3))
    assert affine_offsets(spatial(2, 4, 1).local(1, 1, 3), memory) is None


def test_digits_that_cut_each_other_do_not_separate() -> None:
    layout = local(3).spatial(2)
    memory = SharedLayout((6,), (Digit(2, 0, 1), Digit(3, 0, 2)))
    assert affine_offsets(layout, memory) is None
    assert offsets(layout, memory) == offset_table(layout, memory)
    assert contiguity(layout, memory).vector == 1


# Bank conflicts.


def test_lanes_that_share_a_word_share_a_wavefront() -> None:
    assert wavefronts([0] * 32, 32) == 1
    assert wavefronts([lane * 8 for lane in range(32)], 8) == 1
    assert wavefronts([lane * 16 for lane in range(32)], 16) == 1


def test_lanes_in_one_bank_take_turns() -> None:
    assert wavefronts([lane * 32 * 32 for lane in range(32)], 32) == 32
    assert wavefronts([lane * 2 * 32 for lane in range(32)], 32) == 2
    assert wavefronts([lane * 33 * 32 for lane in range(32)], 32) == 1


@pytest.mark.parametrize(("bits", "passes"), [(8, 1), (32, 1), (64, 2), (128, 4)])
def test_wide_accesses_go_in_groups_of_lanes(bits: int, passes: int) -> None:
    assert wavefronts([lane * bits for lane in range(32)], bits) == passes


def wavefronts_by_brute_force(layout, memory: SharedLayout, element_bits: int, groups) -> list[int]:
    """Each access of each warp by the definition: distinct words of the fullest bank, group by group."""
    vector_bits = element_bits * len(groups[0])
    lanes = min(32, 1024 // max(32, vector_bits))
    costs = []
    for warp in range(0, layout.threads, 32):
        for group in groups:
            cost = 0
            for first in range(warp, min(warp + 32, layout.threads), lanes):
                banks: dict[int, set[int]] = {}
                for thread in range(first, min(first + lanes, layout.threads)):
                    for element in group:
                        start = memory.offset(layout.index(thread, element)) * element_bits
                        for word in {start // 32, (start + element_bits - 1) // 32}:
                            banks.setdefault(word % 32, set()).add(word)
                cost += max(len(words) for words in banks.values())
            costs.append(cost)
    return costs


@law(
    st.data(),
    register_layouts(max_threads=80, max_elements=8, sizes=st.sampled_from([2, 2, 3, 4, 8])),
    st.sampled_from([8, 16, 32]),
    examples=40,
)
def test_bank_conflicts_are_counted(data: st.DataObject, layout: RegisterLayout, element_bits: int) -> None:
    memory = data.draw(shared_layouts(layout.shape))
    found = contiguity(layout, memory, limit=128 // element_bits)
    cost = bank_conflicts(layout, memory, element_bits, found.vector)
    expected = wavefronts_by_brute_force(layout, memory, element_bits, found.groups)
    assert cost.count == sum(expected)
    assert cost.worst == max(expected)
    assert cost.accesses == len(expected)
    assert cost.ideal <= cost.count
    assert cost.is_free == (cost.ideal == cost.count)


def test_row_major_columns_conflict_and_padding_cures_it() -> None:
    layout = spatial(4, 1).local(1, 8) * MMA_C
    assert bank_conflicts(layout, row_major(64, 64), 16, 2).ratio == 8
    assert bank_conflicts(layout, padded((64, 64), 8), 16, 2).is_free
    assert bank_conflicts(layout, swizzled_row_major((64, 64), 16), 16, 2).is_free


def test_a_sample_looks_at_the_first_accesses_only() -> None:
    layout = spatial(4, 1).local(1, 8) * MMA_C
    few = bank_conflicts(layout, row_major(64, 64), 16, 2, sample=3)
    assert (few.accesses, few.count) == (3, 24)


def test_vectors_that_are_not_there_cannot_be_counted() -> None:
    with pytest.raises(LayoutError, match="in groups of 2, so they cannot be moved 4 at a time"):
        bank_conflicts(MMA_C, row_major(16, 8), 16, 4)


# Coalescing.


@law(
    register_layouts(rank=2, max_threads=64, max_elements=8),
    st.integers(0, 9),
    st.sampled_from([4, 8, 16, 32]),
    examples=60,
)
def test_sectors_are_counted(layout: RegisterLayout, padding: int, element_bits: int) -> None:
    strides = (layout.shape[1] + padding, 1)
    found = contiguity(layout, strides, limit=128 // element_bits)
    cost = coalescing(layout, strides, element_bits, found.vector)
    count = ideal = worst = 0
    for warp in range(0, layout.threads, 32):
        for group in found.groups:
            bits = set()
            for thread in range(warp, min(warp + 32, layout.threads)):
                for element in group:
                    i, j = layout.index(thread, element)
                    start = (i * strides[0] + j) * element_bits
                    bits.update(range(start, start + element_bits))
            sectors = {bit // 256 for bit in bits}
            count += len(sectors)
            worst = max(worst, len(sectors))
            ideal += -(-len(bits) // 256)
    assert (cost.count, cost.ideal, cost.worst) == (count, ideal, worst)


def test_coalesced_layouts_touch_no_sector_in_vain() -> None:
    for shape in [(64, 64), (128, 32), (16, 256), (48, 96)]:
        layout = coalesced(shape, 128, 8)
        vector = contiguity(layout, (4096, 1), limit=8).vector
        assert coalescing(layout, (4096, 1), 16, vector).is_free, shape


def test_column_order_wastes_sectors() -> None:
    assert coalescing(column_spatial(32, 1).local(1, 4), (1024, 1), 32, 1).ratio == 8


def test_a_swizzle_of_three_bits_needs_the_run_of_sixteen_bytes() -> None:
    layout = spatial(8, 1).local(1, 16)
    assert contiguity(layout, row_major(8, 16).with_swizzle(Swizzle(1, 2, 3))).vector == gcd(16, 4)
