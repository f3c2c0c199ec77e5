"""Plans for converting register layouts: each is carried out on numbers and compared with the target."""

from __future__ import annotations

import pytest
from hypothesis import strategies as st

from tests.layout.strategies import law, register_layouts
from tilus.layout import (
    Digit,
    LayoutError,
    NoConversion,
    RegisterConversion,
    RegisterLayout,
    SharedConversion,
    ShuffleConversion,
    bank_conflicts,
    coalesced,
    column_local,
    column_spatial,
    local,
    plan_conversion,
    plan_shared,
    replicated,
    spatial,
    vector_width,
)

MMA_A = column_local(2, 2).spatial(8, 4).local(1, 2)
MMA_C = local(2, 1).spatial(8, 4).local(1, 2)

Registers = list[list[tuple[int, ...]]]


def filled(layout: RegisterLayout) -> Registers:
    """Registers that hold, for each element, its index."""
    return [[layout.index(t, e) for e in range(layout.elements)] for t in range(layout.threads)]


def carry_out(plan, source: RegisterLayout, target: RegisterLayout) -> Registers:
    """Move values as a plan says, warp by warp."""
    registers = filled(source)
    if isinstance(plan, NoConversion):
        return registers
    if isinstance(plan, RegisterConversion):
        return [[row[e] for e in plan.sources] for row in registers]
    if isinstance(plan, ShuffleConversion):
        result: Registers = []
        for thread in range(target.threads):
            row = []
            for step in plan.steps:
                holder, word = step.thread(thread), step.element(thread)
                assert holder // 32 == thread // 32, "a shuffle stays within a warp"
                assert word in step.candidates
                assert not step.is_local or holder == thread
                row += registers[holder][word * plan.pack : (word + 1) * plan.pack]
            result.append(row)
        return result
    assert isinstance(plan, SharedConversion)
    memory: dict[int, tuple[int, ...]] = {}
    for row in registers:
        for index in row:
            offset = plan.layout.offset(index)
            assert memory.setdefault(offset, index) == index
            assert offset < plan.layout.size
    return [
        [memory[plan.layout.offset(target.index(t, e))] for e in range(target.elements)]
        for t in range(target.threads)
    ]


@st.composite
def pairs(draw: st.DrawFn) -> tuple[RegisterLayout, RegisterLayout]:
    """Two layouts of one shape over one number of threads: the digits of one, dealt out anew."""
    source = draw(register_layouts(max_threads=48, max_elements=12))
    if draw(st.booleans()):
        digits = list(source.local_digits)
        return source, RegisterLayout(
            source.shape, source.spatial_digits, tuple(draw(st.permutations(digits)))
        )
    threads, elements = [], []
    left = source.threads
    digits = [digit for digit in source.spatial_digits + source.local_digits if digit.dim is not None]
    for digit in draw(st.permutations(digits)):
        if left % digit.size == 0 and draw(st.booleans()):
            threads.append(digit)
            left //= digit.size
        else:
            elements.append(digit)
    threads.insert(draw(st.integers(0, len(threads))), Digit(left, None, 0))
    return source, RegisterLayout(source.shape, tuple(threads), tuple(elements))


@law(pairs(), st.sampled_from([8, 16, 32]), st.sampled_from([1, 2, 4]), examples=150)
def test_a_plan_brings_every_element_to_its_place(pair, element_bits: int, max_pack: int) -> None:
    source, target = pair
    plan = plan_conversion(source, target, element_bits, max_pack=max_pack)
    assert carry_out(plan, source, target) == filled(target)
    assert (plan.kind == "none") == (source == target)


@law(pairs(), examples=150)
def test_registers_suffice_exactly_when_each_thread_has_what_it_needs(pair) -> None:
    source, target = pair
    have, want = filled(source), filled(target)
    # For each element of the target, the source elements that serve every thread.
    choices = [
        {e for e in range(source.elements) if all(have[t][e] == want[t][d] for t in range(target.threads))}
        for d in range(target.elements)
    ]
    plan = plan_conversion(source, target)
    assert (plan.kind in ("none", "registers")) == all(choices)


@law(pairs(), st.sampled_from([8, 16, 32]), examples=40)
def test_the_shared_plan_says_what_it_costs(pair, element_bits: int) -> None:
    source, target = pair
    plan = plan_shared(source, target, element_bits)
    assert carry_out(plan, source, target) == filled(target)
    assert plan.layout.is_injective
    assert plan.store_vector == vector_width(source, plan.layout, 128 // element_bits)
    assert plan.load_vector == vector_width(target, plan.layout, 128 // element_bits)
    assert plan.store == bank_conflicts(source, plan.layout, element_bits, plan.store_vector)
    assert plan.load == bank_conflicts(target, plan.layout, element_bits, plan.load_vector)
    warps = -(-source.threads // 32)
    accesses = plan.store.accesses // warps + plan.load.accesses // warps
    assert plan.cost == (plan.store.count + plan.load.count) // warps + accesses + 40


def test_equal_layouts_need_nothing() -> None:
    assert plan_conversion(spatial(8, 4).local(1, 2), spatial(8, 4) * local(1, 2)) == NoConversion()


def test_an_accumulator_becomes_the_next_operand_in_registers() -> None:
    plan = plan_conversion(local(1, 2) * MMA_C, MMA_A)
    assert isinstance(plan, NoConversion)
    plan = plan_conversion(column_local(2, 2) * MMA_C, local(2, 1) * MMA_A)
    assert isinstance(plan, RegisterConversion)


def test_digits_that_cut_each_other_within_a_thread_move_in_registers() -> None:
    source = RegisterLayout((6,), (Digit(2, None, 0),), (Digit(2, 0, 1), Digit(3, 0, 2)))
    target = RegisterLayout((6,), (Digit(2, None, 0),), (Digit(3, 0, 1), Digit(2, 0, 3)))
    plan = plan_conversion(source, target)
    assert isinstance(plan, RegisterConversion)
    assert carry_out(plan, source, target) == filled(target)


def test_lanes_are_permuted_by_one_shuffle_for_each_element() -> None:
    plan = plan_conversion(spatial(8, 4).local(1, 3), column_spatial(8, 4).local(1, 3))
    assert isinstance(plan, ShuffleConversion)
    assert [len(step.candidates) for step in plan.steps] == [1, 1, 1]
    assert plan.cost == 6


def test_neighbours_that_stay_together_share_a_shuffle() -> None:
    # The accumulators of m16n8 as the A operand of an 8-bit m16n8k32, whose threads hold four neighbours.
    source = local(1, 2) * MMA_C
    target = local(2, 1).spatial(8, 4).local(1, 4)
    plain = plan_conversion(source, target, 8)
    packed = plan_conversion(source, target, 8, max_pack=4)
    assert isinstance(plain, ShuffleConversion)
    assert isinstance(packed, ShuffleConversion)
    assert (plain.pack, packed.pack) == (1, 2)
    assert packed.cost * 2 == plain.cost
    assert carry_out(packed, source, target) == filled(target)


def test_wide_elements_cost_a_shuffle_for_each_register() -> None:
    narrow = plan_conversion(spatial(8, 4), column_spatial(8, 4), 32)
    wide = plan_conversion(spatial(8, 4), column_spatial(8, 4), 64)
    assert isinstance(narrow, ShuffleConversion)
    assert isinstance(wide, ShuffleConversion)
    assert wide.cost == 2 * narrow.cost


def test_a_copy_that_threads_already_hold_is_selected_and_not_shuffled() -> None:
    # Every thread holds all four; each then keeps its own.
    plan = plan_conversion(local(4).with_replication(4), spatial(4))
    assert isinstance(plan, ShuffleConversion)
    assert all(step.is_local for step in plan.steps)
    assert plan.cost == 3


def test_a_spread_row_is_gathered_by_shuffles() -> None:
    plan = plan_conversion(spatial(4), local(4).with_replication(4))
    assert isinstance(plan, ShuffleConversion)
    assert [step.thread(2) for step in plan.steps] == [0, 1, 2, 3]


def test_elements_that_cross_warps_go_through_shared_memory() -> None:
    swapped = RegisterLayout((64, 2), (Digit(2, 0, 1), Digit(32, 0, 2)), (Digit(2, 1, 1),))
    plan = plan_conversion(spatial(64, 1).local(1, 2), swapped)
    assert isinstance(plan, SharedConversion)


def test_shuffles_can_be_forbidden() -> None:
    plan = plan_conversion(spatial(8, 4), column_spatial(8, 4), allow_shuffle=False)
    assert isinstance(plan, SharedConversion)


@pytest.mark.parametrize(
    ("source", "target", "bits"),
    [
        (coalesced((64, 64), 128, 8), spatial(4, 1).local(1, 8) * MMA_C, 16),
        (spatial(4, 1).local(1, 8) * MMA_C, coalesced((64, 64), 128, 8), 16),
        (coalesced((64, 64), 128, 8), coalesced((64, 64), 128, 8, order=(0, 1)), 16),
        (spatial(2, 2).local(2, 4) * MMA_C, coalesced((64, 64), 128, 4), 32),
        (replicated(2).spatial(2, 1).local(2, 4) * MMA_C, coalesced((64, 32), 128, 8), 16),
    ],
)
def test_the_tile_passes_shared_memory_without_conflicts(source, target, bits: int) -> None:
    plan = plan_shared(source, target, bits)
    assert plan.store.is_free, plan
    assert plan.load.is_free, plan


def test_a_shape_that_is_no_power_of_two_is_padded_or_swizzled_well() -> None:
    plan = plan_shared(coalesced((96, 80), 128, 8), coalesced((96, 80), 128, 8, order=(0, 1)), 16)
    assert plan.store.ratio + plan.load.ratio < 2.5


def test_different_shapes_or_threads_cannot_be_converted() -> None:
    with pytest.raises(
        LayoutError, match="a 4 tile over 4 threads into a 4 tile over 2; shapes and threads must"
    ):
        plan_conversion(spatial(4), spatial(2).local(2))
