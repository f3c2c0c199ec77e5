"""Reductions and scans by a function of the user, which exchange elements over distances of powers of two."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tilus.dtypes import int32
from tilus.errors import ShapeMismatch, TypeMismatch
from tilus.ir import RegisterType, Value, ops
from tilus.lang.diagnostics import describe, shape_text
from tilus.lang.inline import InlineFunction
from tilus.lang.semantics.arithmetic import binary, compare, select
from tilus.lang.semantics.shapes import tile_type
from tilus.lang.semantics.sort import axis_of, narrowed, widened

if TYPE_CHECKING:
    from tilus.lang.frontend.tracer import Tracer

Tiles = tuple[Value, ...]


def combined(t: Tracer, what: str, x: Any, axis: Any, function: InlineFunction, running: bool) -> Any:
    """Combine all elements along an axis, or with `running` each one with all before it.

    After the step over distance d, the elements of a block of 2 d all have the block's total, and each has the running
    one of its part of the block: an element of the upper half has the total of the lower half before it.
    """
    tiles = tuple(x) if isinstance(x, (tuple, list)) else (x,)
    along = axis_of(what, tiles[0], axis)
    extent = shape_of(what, tiles)[along]
    # What is filled up comes last, so that no element before it sees it.
    tiles = tuple(widened(t, tile, along) for tile in tiles)
    shape = shape_of(what, tiles)
    total_at_end = not running and extent == shape[along]
    place = t.value(ops.Iota, shape, along, int32)
    totals = found = tiles
    distance = 1
    while distance < shape[along]:
        others = tuple(t.value(ops.Exchange, tile, along, distance) for tile in totals)
        upper = compare(t, "!=", binary(t, "&", place, distance), 0)
        first, second = choose(t, upper, others, totals), choose(t, upper, totals, others)
        if not total_at_end:
            found = choose(t, upper, applied(t, what, function, others, found), found)
        if total_at_end or 2 * distance < shape[along]:
            totals = applied(t, what, function, first, second)
        distance *= 2
    if running:
        made = tuple(narrowed(t, tile, along, extent) for tile in found)
    elif total_at_end:
        made = tuple(element(t, tile, along, 0) for tile in totals)
    else:
        made = tuple(element(t, tile, along, extent - 1) for tile in found)
    return made if isinstance(x, (tuple, list)) else made[0]


def shape_of(what: str, tiles: Tiles) -> tuple[int, ...]:
    """Return the shape that all tiles have."""
    shapes = {tile_type(what, tile).shape for tile in tiles}
    if len(shapes) != 1:
        raise ShapeMismatch(
            f"{what} takes tiles of one shape, not " + " and ".join(shape_text(s) for s in sorted(shapes)),
            hint="tilus.broadcast_to(x, shape)",
        )
    return shapes.pop()


def choose(t: Tracer, condition: Value, chosen: Tiles, others: Tiles) -> Tiles:
    """Return elements of some tiles where a condition holds, and of others elsewhere."""
    return tuple(select(t, condition, a, b) for a, b in zip(chosen, others, strict=True))


def element(t: Tracer, tile: Value, axis: int, index: int) -> Value:
    """Return the part of a tile at one index along an axis."""
    shape = tile_type("reduce", tile).shape
    start = tuple(index if dim == axis else 0 for dim in range(len(shape)))
    part = tuple(1 if dim == axis else extent for dim, extent in enumerate(shape))
    return t.value(ops.SliceTile, tile, start, part)


def applied(t: Tracer, what: str, function: InlineFunction, a: Tiles, b: Tiles) -> Tiles:
    """Return what the function makes of two elements, which must be of the same kind."""
    from tilus.lang.frontend.calls import call_inline

    single = len(a) == 1
    made = call_inline(t, function, [a[0], b[0]] if single else [a, b], {})
    parts = (made,) if single else tuple(made) if isinstance(made, (tuple, list)) else ()
    expected = [tile.type for tile in a]
    kinds = [part.type if isinstance(part, Value) else None for part in parts]
    same = len(kinds) == len(expected) and all(
        isinstance(kind, RegisterType)
        and isinstance(own, RegisterType)
        and (kind.dtype, kind.shape) == (own.dtype, own.shape)
        for kind, own in zip(kinds, expected)
    )
    if not same:
        found = describe(made) if single or not parts else ", ".join(map(describe, parts))
        raise TypeMismatch(
            f"{function.source.name}, by which {what} combines elements, gives {found}, expected "
            + ", ".join(map(describe, a)),
            hint="return what the arguments are: as many tiles, of their dtypes and shapes",
        )
    return parts
