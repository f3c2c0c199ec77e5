"""Shared layouts and swizzles: offsets, products, slices and changes of shape."""

from __future__ import annotations

from itertools import pairwise, product
from math import prod

import pytest
from hypothesis import strategies as st

from tests.layout.strategies import law, shared_layouts
from tilus.layout import (
    Digit,
    LayoutError,
    SharedLayout,
    Swizzle,
    column_major,
    padded,
    row_major,
    strided,
    swizzled_row_major,
    wavefronts,
)

SHAPES = st.lists(st.sampled_from([1, 2, 3, 4, 6, 8]), min_size=1, max_size=3).map(tuple)


def offset_by_definition(layout: SharedLayout, index: tuple[int, ...]) -> int:
    total = 0
    for dim, position in enumerate(index):
        for digit in reversed([d for d in layout.digits if d.dim == dim]):
            total += position % digit.size * digit.stride
            position //= digit.size
    if layout.swizzle is not None:
        mask = ((1 << layout.swizzle.bits) - 1) << layout.swizzle.base
        total ^= (total >> layout.swizzle.shift) & mask
    return total


def table(layout: SharedLayout) -> dict[tuple[int, ...], int]:
    return {index: offset_by_definition(layout, index) for index in layout.indices()}


@law(st.data(), SHAPES)
def test_offsets_follow_the_definition(data: st.DataObject, shape: tuple[int, ...]) -> None:
    layout = data.draw(shared_layouts(shape))
    expected = table(layout)
    assert {index: layout.offset(index) for index in product(*(range(n) for n in shape))} == expected
    assert max(expected.values()) < layout.size
    assert layout.is_injective
    assert len(set(expected.values())) == layout.elements


@law(st.data(), SHAPES)
def test_equality_is_equality_of_functions(data: st.DataObject, shape: tuple[int, ...]) -> None:
    a = data.draw(shared_layouts(shape, swizzles=False, padding=False))
    b = data.draw(shared_layouts(shape, swizzles=False, padding=False))
    assert (a == b) == (table(a) == table(b))


def test_row_and_column_major() -> None:
    assert [row_major(2, 3).offset((i, j)) for i in range(2) for j in range(3)] == [0, 1, 2, 3, 4, 5]
    assert [column_major(2, 3).offset((i, j)) for i in range(2) for j in range(3)] == [0, 2, 4, 1, 3, 5]
    assert column_major(2, 3) == row_major(3, 2).transpose()
    assert row_major().offset(()) == 0


def test_padding_lengthens_every_row() -> None:
    layout = padded((2, 3, 4), 1)
    assert layout.strides() == (15, 5, 1)
    assert layout.size == 15 + 10 + 4


def test_overlapping_strides_are_seen() -> None:
    assert not strided((4, 4), (1, 2)).is_injective
    assert strided((4, 3), (3, 4)).is_injective
    assert not strided((2, 2), (0, 1)).is_injective


def test_strides_are_known_only_where_they_tell_all() -> None:
    assert strided((4, 6), (7, 1)).strides() == (7, 1)
    assert (row_major(2, 2) * row_major(2, 2)).strides() is None
    assert row_major(8, 8).with_swizzle(Swizzle(1, 1, 2)).strides() is None


# Swizzles.


@law(st.integers(1, 4), st.integers(0, 4), st.integers(0, 4))
def test_a_swizzle_is_its_own_inverse_and_stays_in_its_block(bits: int, base: int, extra: int) -> None:
    swizzle = Swizzle(bits, base, bits + extra)
    for offset in range(4 * swizzle.period):
        moved = swizzle(offset)
        assert swizzle(moved) == offset
        assert moved // swizzle.block == offset // swizzle.block
        assert moved % swizzle.run == offset % swizzle.run
        assert swizzle(offset % swizzle.period) + offset // swizzle.period * swizzle.period == moved


def test_the_128_byte_swizzle_moves_chunks_by_the_row() -> None:
    swizzle = Swizzle(3, 4, 3)
    for row, chunk in product(range(16), range(8)):
        assert swizzle(row * 128 + chunk * 16) == row * 128 + (chunk ^ row % 8) * 16


def test_a_swizzle_counts_smaller_units() -> None:
    small, large = Swizzle(3, 4, 3), Swizzle(3, 3, 3)
    assert large.rescaled(1) == small
    assert all(small(2 * offset) == 2 * large(offset) for offset in range(2048))


@pytest.mark.parametrize(("bits", "base", "shift"), [(0, 3, 3), (3, 3, 2), (1, -1, 3)])
def test_impossible_swizzles_are_refused(bits: int, base: int, shift: int) -> None:
    with pytest.raises(LayoutError, match="expected bits of at least 1"):
        Swizzle(bits, base, shift)


@pytest.mark.parametrize("element_bits", [4, 8, 16, 32])
@pytest.mark.parametrize("span", [32, 64, 128])
@pytest.mark.parametrize("rows_of_spans", [1, 3])
def test_swizzled_rows_are_free_of_conflicts(element_bits: int, span: int, rows_of_spans: int) -> None:
    columns = span * 8 // element_bits * rows_of_spans
    layout = swizzled_row_major((24, columns), element_bits, span)
    chunk = 128 // element_bits
    # ldmatrix: 8 rows of 16 bytes at any column.
    for row, column in product(range(0, 24, 8), range(0, columns, chunk)):
        addresses = [layout.offset((row + i, column)) * element_bits for i in range(8)]
        assert wavefronts(addresses, 128) == 1
    # Copies: neighbouring 16-byte pieces of whole spans.
    pieces = [
        layout.offset((row, span_start + column)) * element_bits
        for span_start in range(0, columns, span * 8 // element_bits)
        for row in range(24)
        for column in range(0, span * 8 // element_bits, chunk)
    ]
    for start in range(0, len(pieces), 8):
        assert wavefronts(pieces[start : start + 8], 128) == 1


def test_swizzled_rows_explain_what_does_not_fit() -> None:
    with pytest.raises(LayoutError, match=r"not made of 128-byte spans \(64 elements\)"):
        swizzled_row_major((64, 48), 16)
    with pytest.raises(LayoutError, match="16 bytes do not hold a whole number of 6-bit elements"):
        swizzled_row_major((64, 64), 6)
    with pytest.raises(LayoutError, match="expected a swizzle span of 32, 64 or 128 bytes, found 256"):
        swizzled_row_major((64, 256), 8, 256)


# Products, slices and changes of shape.


@law(st.data(), st.integers(1, 2))
def test_a_product_keeps_tiles_in_one_piece(data: st.DataObject, rank: int) -> None:
    sizes = st.tuples(*[st.sampled_from([1, 2, 3, 4])] * rank)
    outer = data.draw(shared_layouts(data.draw(sizes), swizzles=False))
    inner = data.draw(shared_layouts(data.draw(sizes), swizzles=False))
    whole = outer * inner
    assert whole.size == outer.size * inner.size
    for a, b in product(outer.indices(), inner.indices()):
        index = tuple(i * n + j for i, n, j in zip(a, inner.shape, b, strict=True))
        assert whole.offset(index) == outer.offset(a) * inner.size + inner.offset(b)


def test_a_swizzled_atom_is_repeated() -> None:
    atom = row_major(8, 64).with_swizzle(Swizzle(3, 3, 3))
    whole = column_major(4, 2) * atom
    for a, b in product(column_major(4, 2).indices(), atom.indices()):
        index = a[0] * 8 + b[0], a[1] * 64 + b[1]
        assert whole.offset(index) == column_major(4, 2).offset(a) * 512 + atom.offset(b)


def test_a_single_tile_keeps_its_swizzle_whatever_its_size() -> None:
    atom = row_major(4, 64).with_swizzle(Swizzle(3, 3, 3))
    assert row_major(1, 1) * atom == atom


def test_stages_follow_each_other_closely() -> None:
    assert row_major(3, 5).prepend(2) == strided((2, 3, 5), (15, 5, 1))


def test_a_swizzle_of_tiles_moves_whole_tiles() -> None:
    outer = row_major(4, 4).with_swizzle(Swizzle(2, 0, 2))
    whole = outer * row_major(2, 4)
    for a, b in product(outer.indices(), row_major(2, 4).indices()):
        index = a[0] * 2 + b[0], a[1] * 4 + b[1]
        assert whole.offset(index) == outer.offset(a) * 8 + row_major(2, 4).offset(b)


@pytest.mark.parametrize(
    ("outer", "inner", "message"),
    [
        (
            row_major(2, 2),
            row_major(4, 64).with_swizzle(Swizzle(3, 3, 3)),
            "not a multiple of the period of 512",
        ),
        (row_major(2, 8).with_swizzle(Swizzle(1, 0, 3)), row_major(3, 1), "a power of two, found 3 elements"),
        (
            row_major(8, 8).with_swizzle(Swizzle(1, 0, 3)),
            row_major(8, 8).with_swizzle(Swizzle(1, 0, 3)),
            "cannot multiply two swizzled",
        ),
        (row_major(2), row_major(2, 2), "rank 1 and 2; give both the same rank with unsqueeze"),
    ],
)
def test_impossible_products_are_explained(outer, inner, message: str) -> None:
    with pytest.raises(LayoutError, match=message):
        outer * inner


@law(st.data(), SHAPES, st.integers(1, 4), st.sampled_from([1, 3, 8, 128]))
def test_stages_are_slices(data: st.DataObject, shape: tuple[int, ...], count: int, alignment: int) -> None:
    layout = data.draw(shared_layouts(shape))
    stages = layout.prepend(count, alignment)
    assert stages.shape == (count, *shape)
    starts = []
    for stage in range(count):
        offset, tile = stages.slice(0, stage)
        starts.append(offset)
        assert table(tile) == table(layout)
        assert all(stages.offset((stage, *i)) == offset + tile.offset(i) for i in layout.indices())
        assert offset % alignment == 0
        assert offset % layout.alignment == 0
    assert all(b - a >= layout.size for a, b in pairwise(starts))
    assert stages.size >= starts[-1] + layout.size


@law(st.data(), SHAPES, examples=200)
def test_a_window_is_a_tile_of_its_own_or_is_impossible(data: st.DataObject, shape: tuple[int, ...]) -> None:
    layout = data.draw(shared_layouts(shape))
    start = tuple(data.draw(st.integers(0, n - 1)) for n in shape)
    extents = tuple(data.draw(st.integers(1, n - i)) for n, i in zip(shape, start, strict=True))
    try:
        base, window = layout.window(start, extents)
    except LayoutError:
        aligned = all(i % e == 0 and n % e == 0 for i, e, n in zip(start, extents, shape, strict=True))
        assert layout.swizzle is not None or not aligned or any(len(chain) > 1 for chain in layout.chains)
        return
    for index in window.indices():
        whole = tuple(i + j for i, j in zip(start, index, strict=True))
        assert base + window.offset(index) == layout.offset(whole)


def test_windows_of_row_major_tiles_may_start_anywhere() -> None:
    assert row_major(8, 8).window((3, 2), (5, 3)) == (26, strided((5, 3), (8, 1)))


def test_windows_of_tiles_follow_the_tiles() -> None:
    layout = row_major(2, 2) * row_major(4, 4)
    assert layout.window((4, 4), (4, 4)) == (48, row_major(4, 4))
    assert layout.window((0, 4), (8, 2)) == (16, layout.window((0, 0), (8, 2))[1])
    assert layout.window((5, 0), (3, 4)) == (36, strided((3, 4), (4, 1)))
    with pytest.raises(LayoutError, match=r"a window of 3 at 2 along dimension 0 cuts the digits"):
        layout.window((2, 0), (3, 4))
    with pytest.raises(LayoutError, match=r"a window of 6 at 0 along dimension 0 cuts the digits"):
        layout.window((0, 0), (6, 4))
    with pytest.raises(LayoutError, match=r"a window of 4 at 2 along dimension 0 cuts the digits"):
        layout.window((2, 0), (4, 4))


def test_a_window_may_take_any_number_of_spans_of_a_swizzled_tile() -> None:
    """As the 512 values among the 576 numbers of a key of latent attention."""
    layout = swizzled_row_major((32, 576), 16)
    base, window = layout.window((0, 64), (32, 448))
    assert base == 32 * 64
    assert window.swizzle == layout.swizzle
    assert all(
        base + window.offset((i, j)) == layout.offset((i, j + 64)) for i in range(32) for j in range(448)
    )


@pytest.mark.parametrize(
    ("start", "shape", "message"),
    [
        ((1, 0), (1, 64), "starts at element 64, which is not a multiple of the swizzle's period of 512"),
        ((0, 60), (8, 8), "a window of 8 at 60 is outside dimension 1 of size 64"),
        ((0,), (8,), "a layout of rank 2 needs as many starts and sizes"),
    ],
)
def test_impossible_windows_are_explained(start, shape, message: str) -> None:
    with pytest.raises(LayoutError, match=message):
        swizzled_row_major((16, 64), 16).window(start, shape)


def test_a_slice_inside_the_swizzle_has_no_layout() -> None:
    layout = swizzled_row_major((8, 64), 16)
    with pytest.raises(
        LayoutError, match="starts at element 64, which is not a multiple of the swizzle's period"
    ):
        layout.slice(0, 1)
    with pytest.raises(LayoutError, match="index 8 is outside dimension 0"):
        layout.slice(0, 8)


@law(st.data(), SHAPES)
def test_transpose_permutes_the_index(data: st.DataObject, shape: tuple[int, ...]) -> None:
    layout = data.draw(shared_layouts(shape))
    perm = data.draw(st.permutations(range(layout.rank)))
    turned = layout.transpose(perm)
    assert all(turned.offset(tuple(i[old] for old in perm)) == layout.offset(i) for i in layout.indices())
    assert layout.transpose().transpose() == layout


@law(st.data(), SHAPES)
def test_reshape_keeps_the_row_major_order_or_is_impossible(
    data: st.DataObject, shape: tuple[int, ...]
) -> None:
    layout = data.draw(shared_layouts(shape))
    left, new = prod(shape), []
    while left > 1 and len(new) < 3:
        new.append(data.draw(st.sampled_from([d for d in range(1, left + 1) if left % d == 0])))
        left //= new[-1]
    new.append(left)
    in_order = [layout.offset(index) for index in layout.indices()]
    try:
        result = layout.reshape(new)
    except LayoutError:
        assert not _regular(layout, tuple(new))
        return
    assert [result.offset(index) for index in result.indices()] == in_order


def _regular(layout: SharedLayout, shape: tuple[int, ...]) -> bool:
    """Whether every boundary of the new shape falls on a digit's boundary, or divides a digit evenly."""
    place, bounds = 1, []
    flat = SharedLayout((layout.elements,), tuple(Digit(d.size, 0, d.stride) for d in layout.digits))
    for digit in reversed(flat.digits):
        bounds.append((place, place * digit.size))
        place *= digit.size
    cut = 1
    for extent in reversed(shape):
        cut *= extent
        for low, high in bounds:
            if low < cut < high and (cut % low or high % cut):
                return False
    return True


def test_reshape_follows_row_major_order() -> None:
    assert row_major(12).reshape((3, 4)) == row_major(3, 4)
    assert row_major(3, 4).reshape((2, 6)) == row_major(2, 6)
    assert strided((12,), (5,)).reshape((3, 4)) == strided((3, 4), (20, 5))


def test_a_digit_across_a_boundary_cannot_be_reshaped() -> None:
    layout = SharedLayout((12,), (Digit(3, 0, 1), Digit(4, 0, 3)))
    assert layout.reshape((3, 4)) == strided((3, 4), (1, 3))
    with pytest.raises(LayoutError, match="digit 4@0:3 would be split across a boundary of dimension 1"):
        layout.reshape((4, 3))
    with pytest.raises(LayoutError, match="has 12 elements and cannot be reshaped to 5x2, which has 10"):
        layout.reshape((5, 2))


@law(st.data(), SHAPES)
def test_unsqueeze_and_squeeze_are_inverse(data: st.DataObject, shape: tuple[int, ...]) -> None:
    layout = data.draw(shared_layouts(shape))
    for dim in range(layout.rank + 1):
        assert layout.unsqueeze(dim).squeeze(dim) == layout


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: SharedLayout((4,), (Digit(2, 0, 1),)),
            "dimension 0 of a shared layout cover 2 indices, not 4",
        ),
        (lambda: SharedLayout((2,), (Digit(2, None, 0),)), "names no dimension"),
        (lambda: SharedLayout((2,), (Digit(2, 0, -1),)), "negative stride"),
        (lambda: SharedLayout((4,), (Digit(4, 0, 1),), size=3), "reach 4 elements, but its size is 3"),
        (lambda: strided((2, 2), (1,)), "2 dimensions needs as many strides, found 1"),
        (lambda: row_major(2, 2).offset((2, 0)), r"index \(2, 0\) is outside a 2x2 tile"),
        (lambda: row_major(2, 2).squeeze(0), "only a dimension of size 1 can be squeezed"),
        (lambda: row_major(2, 2).transpose((1, 1)), "does not name each of the 2 dimensions once"),
    ],
)
def test_impossible_layouts_are_explained(make, message: str) -> None:
    with pytest.raises(LayoutError, match=message):
        make()
