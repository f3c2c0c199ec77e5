"""Translations of the functions of order: a bitonic network of exchanges, on integers in the order of the elements."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tilus import dtypes
from tilus.dtypes import DType, int32
from tilus.errors import ShapeMismatch, TypeMismatch
from tilus.ir import Value, ops
from tilus.lang import functions
from tilus.lang.promotion import require_number
from tilus.lang.semantics.arithmetic import binary, compare, convert, invert, select
from tilus.lang.semantics.registry import implements
from tilus.lang.semantics.shapes import static_axis, static_bool, static_int, tile_type

if TYPE_CHECKING:
    from tilus.lang.frontend.tracer import Tracer

MOST_INDEXED = 1 << 16
"""Elements along an axis whose index fits beside an element of 16 bits."""


@implements(functions.sort)
def sort(t: Tracer, x: Any, axis: Any, descending: Any) -> Value:
    axis = axis_of("sort", x, axis)
    down = static_bool("descending of sort", descending)
    keys = ordered(t, "sort", x, down)
    return restored(t, network(t, keys, axis), tile_type("sort", x).dtype, down)


@implements(functions.argsort)
def argsort(t: Tracer, x: Any, axis: Any, descending: Any) -> Value:
    axis = axis_of("argsort", x, axis)
    down = static_bool("descending of argsort", descending)
    return sorted_with_indices(t, "argsort", x, axis, down)[1]


@implements(functions.topk)
def topk(t: Tracer, x: Any, k: Any, axis: Any, largest: Any) -> tuple[Value, Value]:
    axis = axis_of("topk", x, axis)
    shape = tile_type("topk", x).shape
    count = static_int("k of topk", k, 1)
    if count > shape[axis]:
        raise ShapeMismatch(
            f"topk of {count} elements along an axis of {shape[axis]}", hint=f"k from 1 to {shape[axis]}"
        )
    found = sorted_with_indices(t, "topk", x, axis, static_bool("largest of topk", largest))
    return narrowed(t, found[0], axis, count), narrowed(t, found[1], axis, count)


@implements(functions.flip)
def flip(t: Tracer, x: Any, axis: Any) -> Value:
    axis = axis_of("flip", x, axis)
    shape = tile_type("flip", x).shape
    last = shape[axis] - 1
    if is_power_of_2(shape[axis]):
        return t.value(ops.Exchange, x, axis, last)
    return through_shared(t, x, axis, binary(t, "-", last, t.value(ops.Iota, shape, axis, int32)))


def axis_of(what: str, x: Any, axis: Any) -> int:
    """Check the axis of a tile."""
    return static_axis(what, axis, len(tile_type(what, x).shape))


def is_power_of_2(number: int) -> bool:
    """Tell whether a positive number is a power of two."""
    return not number & (number - 1)


def through_shared(t: Tracer, x: Value, axis: int, places: Value) -> Value:
    """Return the elements at some places along an axis, 0 where there are none."""
    own, wanted = tile_type("gather", x), tile_type("gather", places).shape
    kept = t.value(ops.AllocShared, own.dtype, own.shape)
    t.emit(ops.StoreShared, kept, x)
    indices = [places if dim == axis else t.value(ops.Iota, wanted, dim) for dim in range(len(wanted))]
    return t.value(ops.Gather, kept, tuple(indices))


def widened(t: Tracer, x: Value, axis: int, fill: int | float | None = None) -> Value:
    """Return a tile whose extent is a power of two, which exchanges ask for, filled up at the end."""
    shape = tile_type("sort", x).shape
    extent = shape[axis]
    if is_power_of_2(extent):
        return x
    wide = tuple(1 << (n - 1).bit_length() if dim == axis else n for dim, n in enumerate(shape))
    place = t.value(ops.Iota, wide, axis, int32)
    found = through_shared(t, x, axis, place)
    return found if fill is None else select(t, compare(t, "<", place, extent), found, fill)


def narrowed(t: Tracer, x: Value, axis: int, extent: int) -> Value:
    """Return the first elements of a tile along an axis."""
    shape = tile_type("sort", x).shape
    part = tuple(extent if dim == axis else n for dim, n in enumerate(shape))
    return x if part == shape else t.value(ops.SliceTile, x, (0,) * len(shape), part)


def ordered(t: Tracer, what: str, x: Value, descending: bool, alike: bool = False) -> Value:
    """Return integers in the order of a tile's elements; with `alike`, both zeros are the same."""
    dtype = tile_type(what, x).dtype
    require_number(what, dtype)
    if dtype.is_float:
        keys = ordered_floats(t, x, alike)
    else:
        keys = convert(t, x, int32) if dtype.bits < 16 else x
    return invert(t, keys) if descending else keys


def ordered_floats(t: Tracer, x: Value, alike: bool) -> Value:
    """Return the bits of floats, the negative ones with all but the sign inverted, and the largest number for NaN."""
    type = tile_type("sort", x)
    integer, last = signed(type.dtype), (1 << (type.dtype.bits - 1)) - 1
    bits = t.value(ops.View, x, integer, type.shape)
    keys = binary(t, "^", bits, binary(t, "&", binary(t, ">>", bits, type.dtype.bits - 1), last))
    if alike:
        keys = select(t, compare(t, "==", x, 0.0), 0, keys)
    return select(t, compare(t, "==", x, x), keys, last)


def signed(dtype: DType) -> DType:
    """Return the signed integer type of a type's width."""
    return {16: dtypes.int16, 32: int32, 64: dtypes.int64}[dtype.bits]


def restored(t: Tracer, keys: Value, dtype: DType, descending: bool) -> Value:
    """Return the elements that integers of `ordered` stand for."""
    if descending:
        keys = invert(t, keys)
    if not dtype.is_float:
        return convert(t, keys, dtype)
    type = tile_type("sort", keys)
    last = (1 << (type.dtype.bits - 1)) - 1
    bits = binary(t, "^", keys, binary(t, "&", binary(t, ">>", keys, type.dtype.bits - 1), last))
    return t.value(ops.View, bits, dtype, type.shape)


def sorted_with_indices(t: Tracer, what: str, x: Value, axis: int, descending: bool) -> tuple[Value, Value]:
    """Sort elements with their indices below them in one integer, so that no two are equal."""
    type = tile_type(what, x)
    if type.dtype.bits > 32:
        raise TypeMismatch(
            f"{what} takes elements of 32 bits at most, not {type.dtype}",
            hint="x.to(tilus.float32), or tilus.sort",
        )
    if type.shape[axis] > MOST_INDEXED:
        raise ShapeMismatch(
            f"{what} along an axis of {type.shape[axis]} elements, of which it takes {MOST_INDEXED}"
        )
    keys = ordered(t, what, x, descending, alike=True)
    own = tile_type(what, keys).dtype
    half, wide = (16, int32) if own.bits == 16 else (32, dtypes.int64)
    if not own.is_signed:
        wide = dtypes.uint32 if half == 16 else dtypes.uint64
    indices = convert(t, t.value(ops.Iota, type.shape, axis, int32), wide)
    both = binary(t, "|", binary(t, "<<", convert(t, keys, wide), half), indices)
    both = network(t, both, axis)
    found = convert(t, binary(t, "&", both, (1 << half) - 1), int32)
    return restored(t, convert(t, binary(t, ">>", both, half), own), type.dtype, descending), found


def network(t: Tracer, x: Value, axis: int) -> Value:
    """Sort integers by a bitonic network in which the smaller one of two goes to the lower index, always.

    Runs of `size` elements are made of two sorted halves: the second half is met from its end, then each half of the
    result is sorted by exchanges over ever shorter distances.
    """
    extent = tile_type("sort", x).shape[axis]
    # What is filled up is the largest, and stays at the end.
    x = widened(t, x, axis, int(tile_type("sort", x).dtype.max))
    type = tile_type("sort", x)
    place = t.value(ops.Iota, type.shape, axis, int32)
    size = 2
    while size <= type.shape[axis]:
        mask, bit = size - 1, size >> 1
        while bit:
            other = t.value(ops.Exchange, x, axis, mask)
            lower = compare(t, "==", binary(t, "&", place, bit), 0)
            smaller, larger = (t.value(ops.Binary, kind, x, other) for kind in ("min", "max"))
            x = select(t, lower, smaller, larger)
            bit >>= 1
            mask = bit
        size *= 2
    return narrowed(t, x, axis, extent)
