"""Canonical layouts, matrix descriptors and boxes, against the PTX ISA's tables and examples."""

from __future__ import annotations

from itertools import pairwise, product

import pytest

from tilus.layout import (
    Digit,
    LayoutError,
    SharedLayout,
    Swizzle,
    canonical,
    column_major,
    describe_matrix,
    padded,
    row_major,
    run_stride,
    strided,
    swizzled_row_major,
    tma_boxes,
)

CASES = [
    (major, span, bits)
    for major, span, bits in product(["k", "mn"], [0, 32, 64, 128], [8, 16, 32])
    if major == "k" or bits == 16
]


def stated(leading: int, stride: int, major: str, span: int, bits: int, mn: int, k: int) -> int:
    """Where the ISA's table of canonical layouts puts an element, in bytes, from the offsets of a descriptor."""
    t = 128 // bits
    c = max(span // 16, 1)
    size = bits // 8
    lbo, sbo = leading // size, stride // size
    if major == "k" and not span:  # ((8,m),(T,2k)):((1T,SBO),(1,LBO))
        linear = mn % 8 * t + mn // 8 * sbo + k % t + k // t * lbo
    elif major == "k":  # ((8,m),(T,2k)):((cT,SBO),(1,T))
        linear = mn % 8 * c * t + mn // 8 * sbo + k
    elif not span:  # ((T,1,m),(8,k)):((1,T,SBO),(1T,LBO))
        linear = mn % t + mn // t * sbo + k % 8 * t + k // 8 * lbo
    else:  # ((T,c,m),(8,k)):((1,T,LBO),(cT,SBO))
        linear = mn % (c * t) + mn // (c * t) * lbo + k % 8 * c * t + k // 8 * sbo
    return linear * size


def swizzled(address: int, span: int) -> int:
    """Swizzle<bits, 4, 3> of the ISA, on bytes."""
    bits = {0: 0, 32: 1, 64: 2, 128: 3}[span]
    return address ^ ((address >> 3) & (((1 << bits) - 1) << 4))


@pytest.mark.parametrize(("major", "span", "bits"), CASES)
@pytest.mark.parametrize("shape", [(64, 128), (128, 256), (192, 128)])
def test_an_instruction_finds_every_element(major, span: int, bits: int, shape: tuple[int, int]) -> None:
    layout = canonical(shape, major, span, bits)
    assert layout.is_injective
    found = describe_matrix(layout, bits, rows=64)
    assert (found.major, found.swizzle_bytes) == (major, span)
    step = 256 // bits
    for block in range(0, shape[0], 64):
        for number, start in enumerate(found.step_bytes):
            base = start + layout.linear_offset((block, 0)) * bits // 8
            for mn, k in product(range(64), range(step)):
                linear = base + stated(found.leading_bytes, found.stride_bytes, major, span, bits, mn, k)
                index = block + mn, number * step + k
                assert swizzled(linear, span) == layout.offset(index) * bits // 8


@pytest.mark.parametrize(
    ("shape", "strides", "major", "span", "bits", "leading", "stride"),
    [
        # ((8,2),(4,4)):((4,32),(1,64)), tf32
        ((16, 16), [(0, 2, 32), (0, 8, 4), (1, 4, 64), (1, 4, 1)], "k", 0, 32, 64 * 4, 32 * 4),
        # ((8,2),(4,2)):((8,64),(1,4)), tf32: one step of the K-major example with 32-byte swizzle
        ((16, 8), [(0, 2, 64), (0, 8, 8), (1, 2, 4), (1, 4, 1)], "k", 32, 32, 16, 64 * 4),
        # ((8,1,2),(8,2)):((1,8,64),(8,128)), bf16
        ((16, 16), [(0, 2, 64), (0, 8, 1), (1, 2, 128), (1, 8, 8)], "mn", 0, 16, 128 * 2, 64 * 2),
        # ((8,2,2),(8,2)):((1,8,128),(16,256)), bf16
        ((32, 16), [(0, 2, 128), (0, 2, 8), (0, 8, 1), (1, 2, 256), (1, 8, 16)], "mn", 32, 16, 256, 512),
        # ((8,4,2),(8,2)):((1,8,256),(32,512)), bf16
        ((64, 16), [(0, 2, 256), (0, 4, 8), (0, 8, 1), (1, 2, 512), (1, 8, 32)], "mn", 64, 16, 512, 1024),
    ],
)
def test_the_isas_examples_are_recognised(shape, strides, major, span, bits, leading, stride) -> None:
    digits = tuple(Digit(size, dim, step) for dim, size, step in strides)
    exponent = {32: 2, 16: 3}[bits]
    swizzle = Swizzle({32: 1, 64: 2, 128: 3}[span], exponent, 3) if span else None
    found = describe_matrix(SharedLayout(shape, digits, swizzle), bits)
    assert (found.major, found.swizzle_bytes) == (major, span)
    assert (found.leading_bytes, found.stride_bytes) == (leading, stride)


@pytest.mark.parametrize(
    ("span", "alignment"), [(128, 1024), (64, 512), (32, 256)], ids=lambda value: str(value)
)
def test_tiles_start_where_the_pattern_repeats(span: int, alignment: int) -> None:
    layout = canonical((64, 64), "k", span, 16)
    assert describe_matrix(layout, 16).alignment_bytes == alignment
    assert layout.alignment * 2 == alignment


@pytest.mark.parametrize(("span", "stride"), [(0, 128), (32, 256), (64, 512), (128, 1024)])
def test_a_single_group_of_rows_states_the_usual_stride(span: int, stride: int) -> None:
    assert describe_matrix(canonical((8, 64), "k", span, 16), 16).stride_bytes == stride


def test_a_swizzled_row_major_tile_is_a_k_major_operand() -> None:
    for span in (32, 64, 128):
        assert swizzled_row_major((64, 128), 16, span) == canonical((64, 128), "k", span, 16)


def test_stages_are_operands_after_slicing() -> None:
    stages = canonical((128, 64), "k", 128, 16).prepend(4)
    start, tile = stages.slice(0, 3)
    assert start * 2 == 3 * 128 * 128
    assert describe_matrix(tile, 16).stride_bytes == 1024
    with pytest.raises(
        LayoutError, match="has two dimensions, found a 4x128x64 layout; slice the stages off"
    ):
        describe_matrix(stages, 16)


@pytest.mark.parametrize(
    ("layout", "bits", "message"),
    [
        (row_major(64, 64), 16, "8 rows of an atom along M or N have a stride of 64, but a stride of 8"),
        (padded((64, 64), 8), 16, "8 rows of an atom along M or N have a stride of 72"),
        (column_major(64, 64), 16, "8 rows of an atom along K have a stride of 64"),
        (strided((64, 64), (128, 2)), 16, "8 neighbours of a span along M or N have a stride of 128"),
        (
            row_major(64, 64).with_swizzle(Swizzle(3, 2, 3)),
            16,
            r"Swizzle\(3, 2, 3\) is none of the hardware's",
        ),
        (
            row_major(64, 16).with_swizzle(Swizzle(3, 3, 3)),
            16,
            "8 rows of an atom along M or N have a stride of 16",
        ),
        (canonical((64, 64), "mn", 64, 8), 8, "only 16-bit elements can be MN-major, and these are 8-bit"),
        (canonical((64, 24), "k", 0, 16), 16, "depth 24 is not made of steps of 16 elements"),
        (row_major(60, 64), 16, "60 indices of M or N are not a multiple of 8"),
        (row_major(64, 64), 6, "16 bytes do not hold a whole number of 6-bit elements"),
    ],
)
def test_a_layout_that_no_descriptor_states_is_explained(layout, bits: int, message: str) -> None:
    with pytest.raises(LayoutError, match=message):
        describe_matrix(layout, bits)


def test_atoms_must_be_evenly_spaced() -> None:
    digits = (
        Digit(2, 0, 1024),
        Digit(2, 0, 256),
        Digit(2, 0, 2048),
        Digit(8, 0, 8),
        Digit(2, 1, 64),
        Digit(8, 1, 1),
    )
    with pytest.raises(LayoutError, match="its atoms along M or N are not evenly spaced"):
        describe_matrix(SharedLayout((64, 16), digits), 16)
    # One instruction that reads 16 rows does not see it.
    assert describe_matrix(SharedLayout((64, 16), digits), 16, rows=16).stride_bytes == 2 * 2048


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: canonical((64, 64), "k", 16, 16), "expected a swizzle of 0, 32, 64 or 128 bytes, found 16"),
        (lambda: canonical((64, 32), "k", 128, 16), "not made of atoms of 8 rows of 64 elements"),
        (lambda: canonical((64, 64, 1), "k", 0, 16), r"expected a shape \(mn, k\), found 64x64x1"),
        (lambda: canonical((64, 64), "m", 0, 16), "expected the major dimension 'k' or 'mn', found 'm'"),
    ],
)
def test_impossible_operands_are_explained(call, message: str) -> None:
    with pytest.raises(LayoutError, match=message):
        call()


# Runs of indices.


def test_the_stride_of_a_run_is_found_across_digits() -> None:
    for sizes, strides in product([(3, 4, 2), (2, 2, 6), (24,)], [(100, 2, 1), (40, 10, 5), (3, 50, 7)]):
        digits = tuple(Digit(n, 0, s) for n, s in zip(sizes, strides, strict=False))
        layout = SharedLayout((24,), digits)
        cuts = [2 * 4, 2] if len(sizes) == 3 and sizes[2] == 2 else [6, 12]
        for unit, count in product(range(1, 25), range(2, 25)):
            if unit * count > 24:
                continue
            offsets = [layout.linear_offset((unit * i,)) for i in range(count)]
            steps = {b - a for a, b in pairwise(offsets)}
            found = run_stride(layout, 0, unit, count)
            if found is not None:
                assert steps == {found}
            elif len(steps) == 1:
                # Only runs that cut a digit unevenly may be given up.
                ends = unit, unit * count
                assert any(cut % end and end % cut for cut, end in product(cuts, ends))


# Boxes.


def memory_of_boxes(split, bits: int) -> dict[tuple[int, ...], int]:
    """Where boxes put each element, in bytes: rows of the fastest dimension, densely, swizzled by address."""
    places = {}
    for start, offset in split.boxes:
        for inner in product(*(range(n) for n in split.shape)):
            linear, scale = 0, 1
            for dim in split.order:
                linear += inner[dim] * scale
                scale *= split.shape[dim]
            address = (offset + linear) * bits // 8
            places[tuple(a + b for a, b in zip(start, inner, strict=True))] = swizzled(
                address, split.swizzle_bytes
            )
    return places


@pytest.mark.parametrize(("major", "span", "bits"), CASES)
def test_boxes_write_every_element_where_the_layout_has_it(major, span: int, bits: int) -> None:
    layout = canonical((64, 128), major, span, bits)
    split = tma_boxes(layout, bits, order=(1, 0) if major == "k" else (0, 1))
    assert split.swizzle_bytes == span
    expected = {index: layout.offset(index) * bits // 8 for index in layout.indices()}
    assert memory_of_boxes(split, bits) == expected


@pytest.mark.parametrize(
    ("layout", "bits", "shape", "count"),
    [
        (row_major(64, 64), 16, (64, 64), 1),
        (row_major(64, 512), 8, (1, 256), 128),
        (row_major(512, 16), 8, (256, 16), 2),
        (row_major(4, 16, 32), 16, (4, 16, 32), 1),
        (row_major(512), 16, (256,), 2),
        (row_major(3 * 128), 8, (128,), 3),
        (row_major(3 * 128), 16, (192,), 2),
        (row_major(2, 2, 2, 2, 64), 8, (2, 2, 2, 2, 64), 1),
        (row_major(96, 80), 8, (96, 80), 1),
        (canonical((128, 64), "k", 128, 16), 16, (128, 64), 1),
        (canonical((128, 128), "k", 128, 16), 16, (128, 64), 2),
        (canonical((128, 64), "k", 0, 16), 16, (128, 8), 8),
        (canonical((128, 64), "k", 64, 16).prepend(3), 16, (1, 128, 32), 6),
    ],
)
def test_the_fewest_boxes_are_taken(layout, bits: int, shape: tuple[int, ...], count: int) -> None:
    split = tma_boxes(layout, bits)
    assert (split.shape, len(split.boxes)) == (shape, count)
    assert memory_of_boxes(split, bits) == {i: layout.offset(i) * bits // 8 for i in layout.indices()}


def test_boxes_have_one_to_five_dimensions() -> None:
    with pytest.raises(LayoutError, match=r"order of the 1 to 5 dimensions of the tile, found \(0, 0\)"):
        tma_boxes(row_major(64, 64), 16, order=(0, 0))
    with pytest.raises(LayoutError, match="order of the 1 to 5 dimensions"):
        tma_boxes(row_major(1, 1, 1, 1, 1, 64), 16)


@pytest.mark.parametrize(
    ("layout", "bits", "message"),
    [
        (column_major(64, 64), 16, "only 1 neighbours along dimension 1, the fastest in global memory"),
        (row_major(64, 4), 16, "only 4 neighbours along dimension 1"),
        (row_major(64, 64).with_swizzle(Swizzle(2, 4, 3)), 16, "is none of the hardware's swizzles"),
        (
            row_major(64, 32).with_swizzle(Swizzle(3, 3, 3)),
            16,
            "rows of 64 bytes do not fill its swizzle of 128",
        ),
        (padded((64, 64), 4), 16, "would start at byte 136, which is not a multiple of 128"),
    ],
)
def test_a_layout_that_boxes_cannot_fill_is_explained(layout, bits: int, message: str) -> None:
    with pytest.raises(LayoutError, match=message):
        tma_boxes(layout, bits)
