"""Register layouts: what they mean, their products and quotients, and changes of shape."""

from __future__ import annotations

from itertools import product

import pytest
from hypothesis import strategies as st

from tests.layout.strategies import atoms, law, products, register_layouts
from tilus.layout import (
    Digit,
    LayoutError,
    RegisterLayout,
    coalesced,
    column_local,
    column_spatial,
    local,
    replicated,
    spatial,
)


def table(layout: RegisterLayout) -> dict[tuple[int, int], tuple[int, ...]]:
    """The layout as a plain table, computed from the definition."""
    result = {}
    for thread in range(layout.threads):
        for element in range(layout.elements):
            index = [0] * layout.rank
            for digits, number in ((layout.spatial_digits, thread), (layout.local_digits, element)):
                for digit in reversed(digits):
                    if digit.dim is not None:
                        index[digit.dim] += number % digit.size * digit.stride
                    number //= digit.size
            result[thread, element] = tuple(index)
    return result


def product_table(a: RegisterLayout, b: RegisterLayout) -> dict[tuple[int, int], tuple[int, ...]]:
    """The Kronecker product from its definition: tiles of b where a has elements."""
    result = {}
    for (ta, ea), ia in table(a).items():
        for (tb, eb), ib in table(b).items():
            key = ta * b.threads + tb, ea * b.elements + eb
            result[key] = tuple(i * n + j for i, n, j in zip(ia, b.shape, ib, strict=True))
    return result


def row_major_number(index: tuple[int, ...], shape: tuple[int, ...]) -> int:
    number = 0
    for i, n in zip(index, shape, strict=True):
        number = number * n + i
    return number


# What a layout is.


def test_spatial_counts_threads_in_row_major_order() -> None:
    layout = spatial(2, 3)
    assert [layout.index(thread, 0) for thread in range(6)] == list(product(range(2), range(3)))


def test_column_spatial_counts_threads_in_column_major_order() -> None:
    layout = column_spatial(2, 3)
    assert [layout.index(t, 0) for t in range(6)] == [(0, 0), (1, 0), (0, 1), (1, 1), (0, 2), (1, 2)]


def test_local_and_column_local_count_elements() -> None:
    assert [local(2, 3).index(0, e) for e in range(6)] == list(product(range(2), range(3)))
    assert [column_local(2, 2).index(0, e) for e in range(4)] == [(0, 0), (1, 0), (0, 1), (1, 1)]


def test_the_accumulator_of_m16n8_is_a_product_of_atoms() -> None:
    # PTX ISA, mma.m16n8k16: row = lane / 4 (+ 8 for c2, c3), column = lane % 4 * 2 + (i & 1).
    layout = local(2, 1).spatial(8, 4).local(1, 2)
    for lane in range(32):
        for i in range(4):
            assert layout.index(lane, i) == (lane // 4 + 8 * (i // 2), lane % 4 * 2 + (i & 1))


def test_replicated_threads_hold_the_same_element() -> None:
    layout = replicated(3).spatial(2, 1)
    assert layout.replication == 3
    assert layout.locate((1, 0)) == [(1, 0), (3, 0), (5, 0)]
    assert [layout.is_first_copy(thread) for thread in range(6)] == [True, True] + [False] * 4


def test_chaining_is_multiplication() -> None:
    assert spatial(8, 4).local(1, 2) == spatial(8, 4) * local(1, 2)
    assert spatial(2, 1).column_spatial(2, 3).column_local(3, 2) == (
        spatial(2, 1) * column_spatial(2, 3) * column_local(3, 2)
    )
    assert spatial(2).replicated(4) == spatial(2) * replicated(4, rank=1)
    assert spatial(2).with_replication(4) == replicated(4, rank=1) * spatial(2)


@law(register_layouts())
def test_index_follows_the_definition(layout: RegisterLayout) -> None:
    expected = table(layout)
    assert {(t, e): layout.index(t, e) for t, e in expected} == expected
    assert {(t, e): index for t, e, index in layout.items()} == expected


@law(register_layouts())
def test_every_index_is_held_as_often_as_the_replication_says(layout: RegisterLayout) -> None:
    holders: dict[tuple[int, ...], list[tuple[int, int]]] = {}
    for key, index in table(layout).items():
        holders.setdefault(index, []).append(key)
    assert sorted(holders) == list(product(*(range(n) for n in layout.shape)))
    for index, keys in holders.items():
        assert len(keys) == layout.replication
        assert layout.locate(index) == sorted(keys)
        assert sum(layout.is_first_copy(thread) for thread, _ in keys) == 1


@law(register_layouts(), st.randoms(use_true_random=False))
def test_equality_is_equality_of_functions(layout: RegisterLayout, random) -> None:
    # Split every digit where it can be, and add digits of size one: still the same layout.
    def split(digits: tuple[Digit, ...]) -> tuple[Digit, ...]:
        result: list[Digit] = []
        for digit in digits:
            factor = random.choice([d for d in range(1, digit.size + 1) if digit.size % d == 0])
            result += [
                Digit(digit.size // factor, digit.dim, digit.stride * factor),
                Digit(factor, digit.dim, digit.stride),
                Digit(1, 0, 7),
            ]
        return tuple(result)

    other = RegisterLayout(layout.shape, split(layout.spatial_digits), split(layout.local_digits))
    assert other == layout
    assert hash(other) == hash(layout)


@law(register_layouts(rank=1), register_layouts(rank=1))
def test_different_functions_are_different_layouts(a: RegisterLayout, b: RegisterLayout) -> None:
    same = (a.shape, a.threads, a.elements) == (b.shape, b.threads, b.elements) and table(a) == table(b)
    assert (a == b) == same


@law(register_layouts())
def test_weights_tell_the_place_of_each_digit(layout: RegisterLayout) -> None:
    for thread in range(layout.threads):
        index = [0] * layout.rank
        for digit, weight in zip(layout.spatial_digits, layout.spatial_weights, strict=True):
            if digit.dim is not None:
                index[digit.dim] += thread // weight % digit.size * digit.stride
        assert tuple(index) == layout.thread_index(thread)
    assert len(layout.local_weights) == len(layout.local_digits)


@pytest.mark.parametrize(
    ("shape", "spatial_digits", "local_digits", "message"),
    [
        ((4,), [Digit(2, 0, 1)], [], r"\[2@0:1\] of dimension 0 cover 2 indices, but its size is 4"),
        ((4,), [Digit(2, 0, 1)], [Digit(2, 0, 1)], "2@0:1 has stride 1 where 2 was expected"),
        ((4, 6), [Digit(4, 0, 1), Digit(2, 1, 4)], [Digit(3, 1, 1)], "dimension 1 do not cover 0..5"),
        ((2,), [Digit(2, 1, 1)], [], "is of dimension 1, but the layout has 1"),
        ((2,), [Digit(2, 0, 1)], [Digit(2, None, 0)], "only thread digits can replicate"),
        ((1,), [Digit(2, None, 3)], [], "replication has stride 0"),
        ((0,), [], [], "dimension 0 of a layout has size 0"),
        ((2,), [Digit(0, 0, 1)], [], "sizes are at least 1"),
    ],
)
def test_impossible_layouts_are_explained(shape, spatial_digits, local_digits, message: str) -> None:
    with pytest.raises(LayoutError, match=message):
        RegisterLayout(shape, tuple(spatial_digits), tuple(local_digits))


def test_numbers_outside_the_layout_are_refused() -> None:
    layout = spatial(4).local(2)
    with pytest.raises(LayoutError, match="thread 4 is outside a layout over 4 threads"):
        layout.index(4, 0)
    with pytest.raises(LayoutError, match="element 2 is outside a layout with 2 elements"):
        layout.index(0, 2)
    with pytest.raises(LayoutError, match=r"index \(8,\) is outside a 8 tile"):
        layout.locate((8,))


# Products and quotients.


@law(st.data(), st.integers(1, 3))
def test_the_product_follows_its_definition(data: st.DataObject, rank: int) -> None:
    a = data.draw(register_layouts(rank=rank, max_threads=12, max_elements=12, max_digits=2))
    b = data.draw(register_layouts(rank=rank, max_threads=12, max_elements=12, max_digits=2))
    assert table(a * b) == product_table(a, b)


@law(st.data(), st.integers(1, 3))
def test_the_product_is_associative(data: st.DataObject, rank: int) -> None:
    a, b, c = (data.draw(atoms(rank)) for _ in range(3))
    assert (a * b) * c == a * (b * c)


@law(st.data(), st.integers(1, 3))
def test_division_undoes_multiplication(data: st.DataObject, rank: int) -> None:
    a = data.draw(register_layouts(rank=rank))
    b = data.draw(register_layouts(rank=rank))
    assert (a * b) / b == a
    assert (a * b).left_divide(a) == b


@law(st.data(), st.integers(1, 2))
def test_division_finds_a_quotient_whenever_there_is_one(data: st.DataObject, rank: int) -> None:
    a, b = data.draw(products(rank)), data.draw(products(rank, length=2))
    try:
        quotient = a / b
    except LayoutError:
        # By brute force: a quotient would have to be this table, if it is a layout at all.
        if any(n % m for n, m in zip(a.shape, b.shape, strict=True)):
            return
        if a.threads % b.threads or a.elements % b.elements:
            return
        outer = {}
        for thread in range(a.threads // b.threads):
            for element in range(a.elements // b.elements):
                index = a.index(thread * b.threads, element * b.elements)
                outer[thread, element] = tuple(i // n for i, n in zip(index, b.shape, strict=True))
        whole = {}
        for (ta, ea), ia in outer.items():
            for (tb, eb), ib in table(b).items():
                key = ta * b.threads + tb, ea * b.elements + eb
                whole[key] = tuple(i * n + j for i, n, j in zip(ia, b.shape, ib, strict=True))
        assert whole != table(a)
    else:
        assert quotient * b == a


def test_digits_are_split_by_division() -> None:
    assert spatial(6) / spatial(3) == spatial(2)
    assert spatial(6).left_divide(spatial(2)) == spatial(3)
    assert local(12) / local(4) == local(3)
    assert spatial(8, 4).local(2, 2) / local(1, 2) == spatial(8, 4).local(2, 1)


@pytest.mark.parametrize(
    ("dividend", "divisor", "message"),
    [
        (spatial(6), spatial(4), "dimension 0 of size 6 is not divisible by 4"),
        (
            spatial(8),
            local(2),
            "element digit 2@0:1 of the divisor is expected at this place, but there is none",
        ),
        (spatial(4, 4), column_spatial(2, 2), "thread digit 2@0:1 of the divisor .* the layout has 4@1:1"),
        (spatial(2, 2), spatial(2), "rank 2 and one of rank 1"),
        (local(2).spatial(2), local(2), "element digit 2@0:1 of the divisor .* the layout has 2@0:2"),
        (spatial(2, 1).local(2, 2), local(1, 4), "dimension 1 of size 2 is not divisible by 4"),
    ],
)
def test_division_says_which_digit_fails(dividend, divisor, message: str) -> None:
    with pytest.raises(LayoutError, match=message):
        dividend / divisor


def test_left_division_says_which_digit_fails() -> None:
    with pytest.raises(LayoutError, match=r"thread digit 2@0:4 is expected at this place, but there is none"):
        local(8).left_divide(spatial(2))


# Changes of shape.


@law(register_layouts(), st.data())
def test_transpose_permutes_the_index(layout: RegisterLayout, data: st.DataObject) -> None:
    perm = data.draw(st.permutations(range(layout.rank)))
    expected = {key: tuple(index[old] for old in perm) for key, index in table(layout).items()}
    assert table(layout.transpose(perm)) == expected
    assert layout.transpose().transpose() == layout


@law(register_layouts(rank=1))
def test_unsqueeze_and_squeeze_are_inverse(layout: RegisterLayout) -> None:
    assert layout.unsqueeze(0).shape == (1, *layout.shape)
    for dim in range(2):
        wider = layout.unsqueeze(dim)
        assert wider.squeeze(dim) == layout
        assert table(wider) == {k: i[:dim] + (0,) + i[dim:] for k, i in table(layout).items()}


@law(register_layouts())
def test_flatten_counts_in_row_major_order(layout: RegisterLayout) -> None:
    flat = layout.flatten()
    assert table(flat) == {k: (row_major_number(i, layout.shape),) for k, i in table(layout).items()}
    assert flat.reshape(layout.shape) == layout


@law(register_layouts(), st.data())
def test_reshape_keeps_row_major_numbers_or_is_impossible(
    layout: RegisterLayout, data: st.DataObject
) -> None:
    left, shape = layout.size, []
    for _ in range(data.draw(st.integers(0, 2))):
        shape.append(data.draw(st.sampled_from([d for d in range(1, left + 1) if left % d == 0])))
        left //= shape[-1]
    shape.append(left)
    new = tuple(data.draw(st.permutations(shape)))
    try:
        result = layout.reshape(new)
    except LayoutError:
        # A digit lies across a boundary: its steps are no longer evenly spaced along each dimension.
        assert not _is_digit_map(layout, new)
        return
    assert {k: row_major_number(i, new) for k, i in table(result).items()} == {
        k: row_major_number(i, layout.shape) for k, i in table(layout).items()
    }


def _is_digit_map(layout: RegisterLayout, shape: tuple[int, ...]) -> bool:
    """Whether the row-major numbers, read in ``shape``, are sums of a part of each digit's finest factors."""
    flat = layout.flatten()
    bounds = {1}
    for extent in reversed(shape):
        bounds.add(max(bounds) * extent)
    for digit in flat.spatial_digits + flat.local_digits:
        if digit.dim is None:
            continue
        inside = [b for b in bounds if digit.stride < b < digit.stride * digit.size]
        for bound in inside:
            if bound % digit.stride or digit.size % (bound // digit.stride):
                return False
    return True


def test_reshape_splits_and_merges_digits() -> None:
    assert spatial(12).reshape((3, 4)) == spatial(3, 4)
    assert spatial(3, 4).reshape((12,)) == spatial(12)
    assert spatial(4, 8).reshape((2, 16)) == spatial(2, 16)
    assert local(2, 3, 4).reshape((6, 4)) == local(6, 4)


def test_reshape_names_the_digit_that_cannot_be_split() -> None:
    layout = local(3, 1).spatial(2, 1).reshape((6,))
    with pytest.raises(LayoutError, match="takes 3 steps of 2 elements would be split"):
        layout.reshape((2, 3))
    with pytest.raises(LayoutError, match="has 6 elements and cannot be reshaped to 4, which has 4"):
        layout.reshape((4,))


@law(register_layouts(), st.data())
def test_reduce_keeps_for_each_thread_what_is_left(layout: RegisterLayout, data: st.DataObject) -> None:
    dim = data.draw(st.integers(0, layout.rank - 1))
    kept, dropped = layout.reduce(dim, keepdim=True), layout.reduce(dim)
    assert kept.shape == layout.shape[:dim] + (1,) + layout.shape[dim + 1 :]
    assert kept.squeeze(dim) == dropped
    assert kept.threads == layout.threads
    assert layout.slice(dim) == dropped
    for thread in range(layout.threads):
        before = [index for t, _, index in layout.items() if t == thread]
        after = [index for t, _, index in dropped.items() if t == thread]
        left = [index[:dim] + index[dim + 1 :] for index in before]
        assert after == list(dict.fromkeys(left)), "each once, in the order of first appearance"


@law(register_layouts(), st.data(), st.integers(1, 4))
def test_concat_lays_tiles_side_by_side(layout: RegisterLayout, data: st.DataObject, count: int) -> None:
    dim = data.draw(st.integers(0, layout.rank - 1))
    result = layout.concat(dim, count)
    for thread, element, index in result.items():
        copy, inner = divmod(element, layout.elements)
        expected = list(layout.index(thread, inner))
        expected[dim] += copy * layout.shape[dim]
        assert index == tuple(expected)


def test_expand_gives_each_thread_the_whole_dimension() -> None:
    layout = spatial(4, 1).expand(1, 3)
    assert layout == spatial(4, 1).local(1, 3)
    with pytest.raises(LayoutError, match="only a dimension of size 1 can be expanded"):
        layout.expand(1, 6)


@pytest.mark.parametrize(
    ("act", "message"),
    [
        (lambda a: a.squeeze(0), "only a dimension of size 1 can be squeezed"),
        (lambda a: a.squeeze(5), "dimension 5 is outside a layout of rank 2"),
        (lambda a: a.unsqueeze(3), "cannot insert a dimension at 3"),
        (lambda a: a.transpose((0, 0)), "does not name each of the 2 dimensions once"),
        (lambda a: a.concat(0, 0), "the count is at least 1"),
        (lambda a: a * spatial(2), "rank 2 and one of rank 1; give both the same rank with unsqueeze"),
        (lambda a: replicated(0), "the count is at least 1"),
    ],
)
def test_impossible_changes_are_explained(act, message: str) -> None:
    with pytest.raises(LayoutError, match=message):
        act(spatial(2, 4))


# Layouts for memory.


@law(
    st.lists(st.sampled_from([1, 2, 3, 5, 7, 8, 16, 48, 80, 96]), min_size=1, max_size=3),
    st.sampled_from([1, 32, 96, 128, 256]),
    st.sampled_from([1, 2, 4, 8, 16]),
    st.data(),
)
def test_coalesced_covers_any_shape(shape, threads: int, vector: int, data: st.DataObject) -> None:
    order = data.draw(st.permutations(range(len(shape))))
    layout = coalesced(shape, threads, vector, order)
    assert layout.shape == tuple(shape)
    assert layout.threads == threads
    assert layout.elements * threads == layout.size * layout.replication


@pytest.mark.parametrize(
    ("shape", "threads", "vector", "expected"),
    [
        ((64, 64), 128, 8, local(4, 1).spatial(16, 8).local(1, 8)),
        ((128, 32), 128, 8, local(4, 1).spatial(32, 4).local(1, 8)),
        ((5, 7), 32, 4, local(5, 7).with_replication(32)),
        ((8, 8), 32, 8, spatial(8, 4).local(1, 2)),
        ((80, 48), 128, 8, local(5, 3).spatial(16, 8).local(1, 2)),
    ],
)
def test_coalesced_puts_neighbours_in_neighbouring_threads(shape, threads, vector, expected) -> None:
    assert coalesced(shape, threads, vector) == expected


def test_coalesced_follows_the_order_of_memory() -> None:
    assert coalesced((64, 32), 64, 4, order=(0, 1)) == coalesced((32, 64), 64, 4).transpose()


def test_coalesced_explains_bad_arguments() -> None:
    with pytest.raises(LayoutError, match="does not name each of the 2 dimensions once"):
        coalesced((4, 4), 4, order=(0, 0))
    with pytest.raises(LayoutError, match="at least one thread and a vector of at least 1, found 0 and 1"):
        coalesced((4, 4), 0)


def test_tiles_without_dimensions_have_layouts() -> None:
    assert coalesced((), 32).replication == 32
    assert local().index(0, 0) == ()
