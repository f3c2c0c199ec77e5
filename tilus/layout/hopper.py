"""Shared layouts that warpgroup matrix instructions and the tensor memory accelerator read and write.

The facts are from the PTX ISA, "Asynchronous Warpgroup Level Matrix Shared Memory Layout" (swizzle atoms,
strides, canonical layouts, matrix descriptor), and, for the sizes of a box, from the driver's
``cuTensorMapEncodeTiled``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from typing import Literal

from tilus.layout.errors import LayoutError
from tilus.layout.register import Digit, format_shape
from tilus.layout.shared import SharedLayout, chunk_elements, span_swizzle

Major = Literal["k", "mn"]

# Rows of a swizzle atom; the repeating pattern is this many rows of the span.
ATOM_ROWS = 8
# One instruction takes this many bits along K of each row.
STEP_BITS = 256
# No side of a box is longer, and its rows are whole multiples of 16 bytes.
MAX_BOX = 256
# A box starts at a multiple of this in shared memory (CUDA programming guide, tensor memory accelerator).
BOX_ALIGNMENT = 128
SPANS = (0, 32, 64, 128)


@dataclass(frozen=True)
class MatrixLayout:
    """A shared layout as a matrix descriptor states it.

    Parameters
    ----------
    major : {"k", "mn"}
        The dimension that is contiguous.
    swizzle_bytes : {0, 32, 64, 128}
        The swizzle.
    leading_bytes, stride_bytes : int
        The descriptor's leading and stride dimension byte offsets. The leading one is 16 where the ISA says
        that it is not used.
    step_bytes : tuple of int
        For each step of one instruction along K, how far the start address moves.
    alignment_bytes : int
        The tile's start is a multiple of this, so that the descriptor's base offset is zero.
    """

    major: Major
    swizzle_bytes: int
    leading_bytes: int
    stride_bytes: int
    step_bytes: tuple[int, ...]
    alignment_bytes: int


@dataclass(frozen=True)
class BoxSplit:
    """The boxes in which one tile is copied by the tensor memory accelerator.

    Parameters
    ----------
    shape : tuple of int
        A box's size along each dimension of the tile.
    order : tuple of int
        The tile's dimensions from the fastest in memory to the slowest, as a tensor map lists them.
    swizzle_bytes : {0, 32, 64, 128}
        The tensor map's swizzle.
    boxes : tuple of (index, offset)
        For each box, the index of its first element in the tile and that element's offset in shared memory,
        in elements.
    """

    shape: tuple[int, ...]
    order: tuple[int, ...]
    swizzle_bytes: int
    boxes: tuple[tuple[tuple[int, ...], int], ...]


def canonical(shape: Sequence[int], major: Major, swizzle_bytes: int, element_bits: int) -> SharedLayout:
    """Return the canonical layout of a matrix operand of a warpgroup matrix instruction.

    Parameters
    ----------
    shape : (int, int)
        The sizes along M (or N) and K, in this order.
    major : {"k", "mn"}
        The dimension that is contiguous.
    swizzle_bytes : {0, 32, 64, 128}
        The swizzle; 0 for none.
    element_bits : int
        The width of an element.

    Returns
    -------
    SharedLayout
        Columns one swizzle span (16 bytes without a swizzle) wide, one after another, each holding all rows:
        the form that boxes of the tensor memory accelerator write.
    """
    if swizzle_bytes not in SPANS:
        raise LayoutError(f"expected a swizzle of 0, 32, 64 or 128 bytes, found {swizzle_bytes}")
    if len(shape) != 2:
        raise LayoutError(f"expected a shape (mn, k), found {format_shape(shape)}")
    if major not in ("k", "mn"):
        raise LayoutError(f"expected the major dimension 'k' or 'mn', found {major!r}")
    span = max(swizzle_bytes // 16, 1) * chunk_elements(element_bits)
    fast = 1 if major == "k" else 0
    rows, length = shape[1 - fast], shape[fast]
    if length % span or rows % ATOM_ROWS:
        raise LayoutError(
            f"a {format_shape(shape)} tile of {element_bits}-bit elements, {major}-major, is not made of atoms of "
            f"{ATOM_ROWS} rows of {span} elements; use another swizzle or tile size"
        )
    digits = (
        Digit(rows, 1 - fast, span),
        Digit(length // span, fast, rows * span),
        Digit(span, fast, 1),
    )
    return SharedLayout(
        tuple(shape), digits, span_swizzle(swizzle_bytes, element_bits) if swizzle_bytes else None
    )


def swizzle_span(layout: SharedLayout, element_bits: int) -> int:
    """Return the span in bytes of a layout's swizzle, 0 for none; raise where hardware has no such swizzle."""
    if layout.swizzle is None:
        return 0
    for span in SPANS[1:]:
        if layout.swizzle == span_swizzle(span, element_bits):
            return span
    raise LayoutError(
        f"{layout.swizzle} is none of the hardware's swizzles of 32, 64 and 128 bytes for {element_bits}-bit "
        f"elements; make the layout with canonical or swizzled_row_major"
    )


def describe_matrix(
    layout: SharedLayout, element_bits: int, rows: int | None = None, major: Major | None = None
) -> MatrixLayout:
    """Find how a matrix descriptor states a shared layout.

    Parameters
    ----------
    layout : SharedLayout
        The layout of an operand, with dimensions (M or N, K).
    element_bits : int
        The width of an element.
    rows : int, optional
        How many indices of M or N one instruction reads, from a multiple of it on; by default all.
    major : {"k", "mn"}, optional
        The dimension to take for the contiguous one; by default found from the layout.

    Raises
    ------
    LayoutError
        Where no descriptor states the layout; the message says what does not fit.
    """
    if layout.rank != 2:
        raise LayoutError(
            f"a matrix operand has two dimensions, found a {format_shape(layout.shape)} layout; "
            f"slice the stages off first"
        )
    chunk = chunk_elements(element_bits)
    span_bytes = swizzle_span(layout, element_bits)
    height, depth = layout.shape
    extent = height if rows is None else rows
    step = STEP_BITS // element_bits
    if extent % ATOM_ROWS or height % extent:
        raise LayoutError(
            f"{extent} indices of M or N are not a multiple of {ATOM_ROWS} that divides the tile's {height}"
        )
    if depth % step:
        raise LayoutError(
            f"a tile of depth {depth} is not made of steps of {step} elements (32 bytes) along K"
        )
    if major is None:
        major = "k" if run_stride(layout, 1, 1, chunk) == 1 else "mn"
    if major == "mn" and element_bits != 16:
        raise LayoutError(
            f"only 16-bit elements can be MN-major, and these are {element_bits}-bit; make the tile K-major"
        )
    finder = _describe_k_major if major == "k" else _describe_mn_major
    leading, stride = finder(layout, chunk, span_bytes, extent)
    bytes_of = element_bits // 8
    steps = tuple(layout.linear_offset((0, k)) * bytes_of for k in range(0, depth, step))
    for name, value in (("leading", leading), ("stride", stride)):
        if value * bytes_of % 16:
            raise LayoutError(
                f"the {name} dimension offset of {value * bytes_of} bytes is not a multiple of 16 bytes"
            )
    misplaced = [offset for offset in steps if offset % 16]
    if misplaced:
        raise LayoutError(f"a step along K starts at byte {misplaced[0]}, which is not a multiple of 16")
    pattern = ATOM_ROWS * span_bytes if span_bytes else 16
    return MatrixLayout(major, span_bytes, leading * bytes_of, stride * bytes_of, steps, pattern)


def run_stride(layout: SharedLayout, dim: int, unit: int, count: int) -> int | None:
    """Return the stride, before the swizzle, of ``count`` indices ``unit`` apart along ``dim``; None if not one.

    0 where there is only one index.
    """
    if count == 1:
        return 0
    strides: list[int] = []
    place = 1
    end = unit * count
    for digit in reversed(layout.chains[dim]):
        low, high = max(place, unit), min(place * digit.size, end)
        if low < high:
            if low % place:
                return None
            strides.append(low // place * digit.stride)
            expected = strides[0] * (low // unit)
            if strides[-1] != expected:
                return None
        place *= digit.size
    return strides[0]


def _describe_k_major(layout: SharedLayout, chunk: int, span_bytes: int, extent: int) -> tuple[int, int]:
    """Match ``((8,m),(T,2k)):((cT,SBO),(1,T))``, or without swizzle ``((8,m),(T,2k)):((T,SBO),(1,LBO))``."""
    span = max(span_bytes // 16, 1) * chunk
    _expect(layout, "K", run_stride(layout, 1, 1, chunk), 1, f"{chunk} neighbours (16 bytes)")
    _expect(layout, "M or N", run_stride(layout, 0, 1, ATOM_ROWS), span, f"{ATOM_ROWS} rows of an atom")
    stride = _uniform(layout, "M or N", run_stride(layout, 0, ATOM_ROWS, extent // ATOM_ROWS))
    if span_bytes:
        _expect(
            layout, "K", run_stride(layout, 1, 1, span), 1, f"the {span} elements of a {span_bytes}-byte span"
        )
        return chunk, stride or ATOM_ROWS * span
    leading = run_stride(layout, 1, chunk, 2)
    return _uniform(layout, "K", leading), stride or ATOM_ROWS * span


def _describe_mn_major(layout: SharedLayout, chunk: int, span_bytes: int, extent: int) -> tuple[int, int]:
    """Match ``((T,c,m),(8,k)):((1,T,LBO),(cT,SBO))``, or without swizzle ``((T,1,m),(8,k)):((1,T,SBO),(T,LBO))``."""
    span = max(span_bytes // 16, 1) * chunk
    width = min(span, extent)
    _expect(layout, "M or N", run_stride(layout, 0, 1, width), 1, f"{width} neighbours of a span")
    _expect(layout, "K", run_stride(layout, 1, 1, ATOM_ROWS), span, f"{ATOM_ROWS} rows of an atom")
    if extent % width:
        raise LayoutError(f"{extent} indices of M or N are not made of spans of {span} elements")
    across = _uniform(layout, "M or N", run_stride(layout, 0, width, extent // width)) or ATOM_ROWS * span
    along = _uniform(layout, "K", run_stride(layout, 1, ATOM_ROWS, 2))
    return (across, along) if span_bytes else (along, across)


def _expect(layout: SharedLayout, dim: str, found: int | None, expected: int, what: str) -> None:
    if found != expected:
        shown = "no single stride" if found is None else f"a stride of {found}"
        raise LayoutError(
            f"{layout} is no operand of a warpgroup matrix instruction: {what} along {dim} have {shown}, "
            f"but a stride of {expected} elements was expected"
        )


def _uniform(layout: SharedLayout, dim: str, found: int | None) -> int:
    if found is None:
        raise LayoutError(
            f"{layout} is no operand of a warpgroup matrix instruction: its atoms along {dim} are not evenly spaced"
        )
    return found


def tma_boxes(layout: SharedLayout, element_bits: int, order: Sequence[int] | None = None) -> BoxSplit:
    """Split a shared tile into the fewest boxes that the tensor memory accelerator can copy.

    Parameters
    ----------
    layout : SharedLayout
        Where the tile lies.
    element_bits : int
        The width of an element.
    order : sequence of int, optional
        The dimensions from the fastest in global memory to the slowest; by default the last one is the
        fastest.
    """
    dims = tuple(reversed(range(layout.rank))) if order is None else tuple(order)
    if sorted(dims) != list(range(layout.rank)) or not 1 <= layout.rank <= 5:
        raise LayoutError(f"expected an order of the 1 to 5 dimensions of the tile, found {dims}")
    span_bytes = swizzle_span(layout, element_bits)
    fast = dims[0]
    limit = MAX_BOX if not span_bytes else span_bytes * 8 // element_bits
    align = (ATOM_ROWS * span_bytes if span_bytes else BOX_ALIGNMENT) * 8
    shape = [1] * layout.rank
    dense = 1
    for dim in dims:
        extent = layout.shape[dim]
        for count in range(min(limit if dim == fast else MAX_BOX, extent), 0, -1):
            following = tuple(count if d == dim else 0 for d in range(layout.rank))
            starts_well = count == extent or layout.linear_offset(following) * element_bits % align == 0
            if extent % count == 0 and starts_well and run_stride(layout, dim, 1, count) in (dense, 0):
                shape[dim] = count
                break
        dense *= shape[dim]
    row_bits = shape[fast] * element_bits
    if row_bits % 128:
        raise LayoutError(
            f"{layout} cannot be copied in boxes: only {shape[fast]} neighbours along dimension {fast}, the fastest in "
            f"global memory, lie next to each other, and a multiple of 16 bytes is needed"
        )
    if span_bytes and row_bits != span_bytes * 8:
        raise LayoutError(
            f"{layout} cannot be copied in boxes: rows of {row_bits // 8} bytes do not fill its swizzle of "
            f"{span_bytes} bytes"
        )
    starts = product(*(range(0, n, side) for n, side in zip(layout.shape, shape, strict=True)))
    boxes = tuple((start, layout.linear_offset(start)) for start in starts)
    for start, offset in boxes:
        if offset * element_bits % align:
            raise LayoutError(
                f"{layout} cannot be copied in boxes: the box at {start} would start at byte "
                f"{offset * element_bits // 8}, which is not a multiple of {align // 8}"
            )
    return BoxSplit(tuple(shape), dims, span_bytes, boxes)
