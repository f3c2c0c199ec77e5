"""How layouts follow operations that change a tile's shape, forwards and backwards."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import gcd, prod

from tilus.errors import LayoutConflict
from tilus.ir import ops
from tilus.ir.core import Operation, Value
from tilus.ir.types import RegisterType
from tilus.layout import Digit, LayoutError, RegisterLayout, coalesced, local

# Elements of one thread up to which a reshape may gather what has no common factor.
MOST_ELEMENTS = 256


@dataclass(frozen=True)
class Mapped:
    """An operation that changes a tile's shape: layouts follow it forwards and, where possible, backwards.

    Forwards through one that repeats elements a layout follows last, where nothing else decides: a thread that holds
    a row's one value would otherwise hold the whole row.
    """

    operation: Operation
    source: Value
    result: Value
    forward: Callable[[RegisterLayout], RegisterLayout]
    backward: Callable[[RegisterLayout], RegisterLayout] | None
    repeats: bool = False


def mapped(op: Operation) -> list[Mapped]:
    """Return how layouts follow an operation from each of its operands; nothing where it changes no shape."""
    if isinstance(op, ops.ExpandDims):
        axis = op.axis
        return [Mapped(op, op.x, op.result, lambda l: l.unsqueeze(axis), lambda l: l.squeeze(axis))]
    if isinstance(op, ops.Squeeze):
        axis = op.axis
        return [Mapped(op, op.x, op.result, lambda l: l.squeeze(axis), lambda l: l.unsqueeze(axis))]
    if isinstance(op, ops.Transpose):
        perm = op.perm
        inverse = tuple(perm.index(i) for i in range(len(perm)))
        return [Mapped(op, op.x, op.result, lambda l: l.transpose(perm), lambda l: l.transpose(inverse))]
    if isinstance(op, ops.Reshape):
        assert isinstance(op.x.type, RegisterType)
        old, new = op.x.type.shape, op.shape
        return [Mapped(op, op.x, op.result, lambda l: l.reshape(new), lambda l: l.reshape(old))]
    if isinstance(op, ops.Broadcast):
        assert isinstance(op.x.type, RegisterType)
        old, new = op.x.type.shape, op.shape
        return [Mapped(op, op.x, op.result, lambda l: expand(l, new), lambda l: narrow(l, old), True)]
    if isinstance(op, ops.Reduce):
        axis = op.axis
        return [Mapped(op, op.x, op.result, lambda l: l.reduce(axis, keepdim=True), None)]
    if isinstance(op, ops.SliceTile):
        assert isinstance(op.x.type, RegisterType)
        chunk = slice_chunk(op)
        whole = local(*(n // c for n, c in zip(op.x.type.shape, chunk, strict=True)))
        part = local(*(n // c for n, c in zip(op.shape, chunk, strict=True)))
        return [
            Mapped(
                op,
                op.x,
                op.result,
                lambda l: part * block_of(l, chunk),
                lambda l: whole * block_of(l, chunk),
            )
        ]
    if isinstance(op, ops.Concat):
        count, axis = len(op.parts), op.axis
        rank = len(op.result.type.shape)  # type: ignore[attr-defined]
        outer = local(*(count if d == axis else 1 for d in range(rank)))
        return [
            Mapped(op, p, op.result, lambda l: outer * l, lambda l: l.left_divide(outer)) for p in op.parts
        ]
    if isinstance(op, ops.View) and op.layout is None and rows_of_bits(op):
        return [Mapped(op, op.x, op.result, lambda l: seen_forward(op, l), lambda l: seen_backward(op, l))]
    return []


def rows_of_bits(op: ops.View) -> bool:
    """Tell whether a view sees the bits of each row as elements of another width."""
    assert isinstance(op.x.type, RegisterType)
    old, new = op.x.type, op.shape
    return (
        old.dtype.bits != op.dtype.bits
        and old.shape[:-1] == new[:-1]
        and old.shape[-1] * old.dtype.bits == new[-1] * op.dtype.bits
    )


def runs(op: ops.View) -> tuple[RegisterLayout, RegisterLayout]:
    """Return the fewest neighbours of a row, before and after a view, that have the same bits."""
    assert isinstance(op.x.type, RegisterType)
    old, new = op.x.type.dtype.bits, op.dtype.bits
    outer = (1,) * (len(op.shape) - 1)
    return local(*outer, new // gcd(old, new)), local(*outer, old // gcd(old, new))


def seen_forward(op: ops.View, layout: RegisterLayout) -> RegisterLayout:
    """Return the layout of a view of rows whose operand lies in `layout`."""
    before, after = runs(op)
    return layout / before * after


def seen_backward(op: ops.View, layout: RegisterLayout) -> RegisterLayout:
    """Return the layout of the operand of a view of rows that lies in `layout`."""
    before, after = runs(op)
    return layout / after * before


def attempt(
    function: Callable[[RegisterLayout], RegisterLayout], layout: RegisterLayout
) -> RegisterLayout | None:
    """Return the layout that a function makes, or None where it makes none."""
    try:
        return function(layout)
    except LayoutError:
        return None


def expand(layout: RegisterLayout, shape: tuple[int, ...]) -> RegisterLayout:
    """Return the layout with its dimensions of size 1 repeated in each thread."""
    for dim, extent in enumerate(shape):
        if layout.shape[dim] != extent:
            layout = layout.expand(dim, extent)
    return layout


def narrow(layout: RegisterLayout, shape: tuple[int, ...]) -> RegisterLayout:
    """Return the layout of a tile whose broadcast to `layout` costs nothing."""
    for dim, extent in enumerate(shape):
        if layout.shape[dim] != extent:
            layout = layout.reduce(dim, keepdim=True)
    return layout


def block_of(layout: RegisterLayout, block: tuple[int, ...]) -> RegisterLayout:
    """Return the layout of one block of a tile, where each thread holds its part of every block."""
    for d in layout.spatial_digits:
        if d.dim is not None and d.stride * d.size > block[d.dim]:
            raise LayoutError(f"threads of {layout} hold different blocks of {block}")
    inside = [
        Digit(min(d.size, block[d.dim] // d.stride), d.dim, d.stride)
        for d in layout.local_digits
        if d.dim is not None and d.stride < block[d.dim]
    ]
    return RegisterLayout(block, layout.spatial_digits, tuple(inside))


def slice_chunk(op: ops.SliceTile) -> tuple[int, ...]:
    """Return the largest blocks of which a tile and its slice are both made."""
    assert isinstance(op.x.type, RegisterType)
    return tuple(gcd(o, n, d) for o, n, d in zip(op.offsets, op.shape, op.x.type.shape, strict=True))


def plain_source(op: Operation, threads: int) -> RegisterLayout:
    """Return a layout of an operand that the operation can always take."""
    if isinstance(op, ops.Reshape):
        assert isinstance(op.x.type, RegisterType)
        return reshape_pair(op, op.x.type.shape, threads)[0]
    if isinstance(op, ops.SliceTile):
        assert isinstance(op.x.type, RegisterType)
        chunk = slice_chunk(op)
        return local(*(n // c for n, c in zip(op.x.type.shape, chunk, strict=True))) * coalesced(
            chunk, threads
        )
    source = next(op.inputs()).type
    assert isinstance(source, RegisterType)
    if isinstance(op, ops.View):
        run = runs(op)[0]
        return coalesced(tuple(n // r for n, r in zip(source.shape, run.shape, strict=True)), threads) * run
    return coalesced(source.shape, threads)


def plain_result(op: Operation, threads: int) -> RegisterLayout:
    """Return the layout of the result for an operand in `plain_source`."""
    if isinstance(op, ops.Reshape):
        assert isinstance(op.x.type, RegisterType)
        return reshape_pair(op, op.x.type.shape, threads)[1]
    return mapped(op)[0].forward(plain_source(op, threads))


def reshape_pair(
    op: ops.Reshape, old: tuple[int, ...], threads: int
) -> tuple[RegisterLayout, RegisterLayout]:
    """Return layouts of two shapes in which each thread holds the same elements, in row-major order.

    Threads take factors that the innermost or the outermost dimensions of both shapes have in common.
    """
    new = op.shape
    common: list[tuple[int, int]] = []  # (size, stride in row-major order)
    low, high, left = 1, prod(old), threads
    while low < high:
        size = gcd(_inner_room(old, low), _inner_room(new, low), high // low, left)
        if size == 1:
            break
        common.append((size, low))
        low, left = low * size, left // size
    while low < high:
        size = gcd(_outer_room(old, high), _outer_room(new, high), high // low, left)
        if size == 1:
            break
        high, left = high // size, left // size
        common.append((size, high))
    if high // low > MOST_ELEMENTS:
        raise LayoutConflict(
            f"reshape from {old} to {new} leaves {high // low} elements to each thread, for the shapes have few "
            "factors in common",
            op.loc,
            hint="store the tile in shared memory and load it with indices=, or choose extents with common factors",
        )
    return _with_threads(old, common, left), _with_threads(new, common, left)


def _inner_room(shape: tuple[int, ...], stride: int) -> int:
    """Return how far a digit that starts at a row-major stride may reach within its dimension; 1 for not at all."""
    step = 1
    for extent in reversed(shape):
        if stride < step * extent:
            return step * extent // stride if stride % step == 0 and (step * extent) % stride == 0 else 1
        step *= extent
    return 1


def _outer_room(shape: tuple[int, ...], end: int) -> int:
    """Return how far a digit that ends at a row-major stride may begin before it within its dimension."""
    step = 1
    for extent in reversed(shape):
        if step < end <= step * extent:
            return end // step if end % step == 0 and (step * extent) % end == 0 else 1
        step *= extent
    return 1


def _with_threads(shape: tuple[int, ...], common: list[tuple[int, int]], copies: int) -> RegisterLayout:
    """Return the layout whose threads hold digits given by row-major strides, and each thread all the rest."""
    spatial = [Digit(copies, None, 0)] if copies > 1 else []
    local_digits: list[Digit] = []
    step = 1
    for dim in reversed(range(len(shape))):
        extent, here = shape[dim], []
        for size, stride in common:
            if step <= stride < step * extent:
                here.append(Digit(size, dim, stride // step))
        spatial += here
        at = 1
        for digit in [*sorted(here, key=lambda d: d.stride), Digit(1, dim, extent)]:
            if digit.stride > at:
                local_digits.insert(0, Digit(digit.stride // at, dim, at))
            at = digit.stride * digit.size
        step *= extent
    order = sorted(spatial, key=lambda d: (d.dim is not None, -_row_major(shape, d)))
    return RegisterLayout(shape, tuple(order), tuple(local_digits))


def _row_major(shape: tuple[int, ...], digit: Digit) -> int:
    """Return a digit's stride in row-major order."""
    return 0 if digit.dim is None else digit.stride * prod(shape[digit.dim + 1 :])
