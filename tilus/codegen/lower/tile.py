"""Lowering of what makes and reshapes tiles: mostly a new name for the same registers."""

from __future__ import annotations

from collections.abc import Callable

from tilus.codegen.casts import lookup
from tilus.codegen.llvm_text import V, integer
from tilus.codegen.lower.context import Context, lowers, scalar_type_of
from tilus.codegen.lower.scalar import constant
from tilus.codegen.registers import Tile, codes_of, elements_of, permute, tile_of, tile_of_codes
from tilus.errors import LayoutConflict
from tilus.ir import ops
from tilus.layout import LayoutError, RegisterLayout

Index = tuple[int, ...]


@lowers(ops.Splat)
def lower_splat(ctx: Context, op: ops.Splat) -> None:
    layout = ctx.layout(op.result)
    element = ctx.scalar(op.scalar)
    ctx.values[op.result] = tile_of(ctx.w, scalar_type_of(op.scalar), layout, [element] * layout.elements)


@lowers(ops.Iota)
def lower_iota(ctx: Context, op: ops.Iota) -> None:
    layout = ctx.layout(op.result)
    w = ctx.w
    thread = ctx.coordinates(layout)[op.axis]
    elements = []
    for element in range(layout.elements):
        value = w.add(thread, integer(layout.element_index(element)[op.axis]))
        elements.append(w.convert("zext", value, "i64") if op.dtype.bits == 64 else value)
    ctx.values[op.result] = tile_of(w, op.dtype, layout, elements)


def relabel(
    ctx: Context, tile: Tile, seen: RegisterLayout, layout: RegisterLayout, source: Callable[[Index], Index]
) -> Tile:
    """Return the tile of `layout` whose element at an index is the old tile's at `source(index)`.

    `seen` is the old layout as the operation makes it appear; its threads must hold what `layout` asks of them.
    """
    if seen.spatial_digits != layout.spatial_digits:
        raise LayoutConflict(f"the operation makes {seen} of its operand, where {layout} is wanted")
    place: dict[Index, int] = {}
    for element in range(tile.layout.elements):
        place[tile.layout.element_index(element)] = element
    return permute(
        ctx.w, tile, layout, [place[source(layout.element_index(e))] for e in range(layout.elements)]
    )


@lowers(ops.ExpandDims)
def lower_expand_dims(ctx: Context, op: ops.ExpandDims) -> None:
    tile = ctx.tile(op.x)
    axis = op.axis
    seen = tile.layout.unsqueeze(axis)
    ctx.values[op.result] = relabel(
        ctx, tile, seen, ctx.layout(op.result), lambda i: i[:axis] + i[axis + 1 :]
    )


@lowers(ops.Squeeze)
def lower_squeeze(ctx: Context, op: ops.Squeeze) -> None:
    tile = ctx.tile(op.x)
    axis = op.axis
    ctx.values[op.result] = relabel(
        ctx, tile, tile.layout.squeeze(axis), ctx.layout(op.result), lambda i: (*i[:axis], 0, *i[axis:])
    )


@lowers(ops.Transpose)
def lower_transpose(ctx: Context, op: ops.Transpose) -> None:
    tile = ctx.tile(op.x)

    def source(index: Index) -> Index:
        old = [0] * len(index)
        for position, dim in enumerate(op.perm):
            old[dim] = index[position]
        return tuple(old)

    ctx.values[op.result] = relabel(ctx, tile, tile.layout.transpose(op.perm), ctx.layout(op.result), source)


@lowers(ops.Broadcast)
def lower_broadcast(ctx: Context, op: ops.Broadcast) -> None:
    tile = ctx.tile(op.x)
    layout = ctx.layout(op.result)
    old = tile.layout.shape
    narrow = layout
    for dim, extent in enumerate(old):
        if extent != layout.shape[dim]:
            narrow = narrow.reduce(dim, keepdim=True)
    if narrow.spatial_digits != tile.layout.spatial_digits:
        raise LayoutConflict(f"a tile in {tile.layout} does not broadcast to {layout}")
    place = {tile.layout.element_index(e): e for e in range(tile.count)}
    order = [
        place[tuple(0 if n == 1 else p for p, n in zip(layout.element_index(e), old, strict=True))]
        for e in range(layout.elements)
    ]
    ctx.values[op.result] = permute(ctx.w, tile, layout, order)


@lowers(ops.Reshape)
def lower_reshape(ctx: Context, op: ops.Reshape) -> None:
    """Threads must hold the same elements, counted in row-major order, before and after."""
    tile = ctx.tile(op.x)
    layout = ctx.layout(op.result)
    if not same_reshaped(tile.layout, layout):
        raise LayoutConflict(f"reshape of a tile in {tile.layout} does not give {layout}")
    place = {row_major_number(tile.layout, tile.layout.element_index(e)): e for e in range(tile.count)}
    order = [place[row_major_number(layout, layout.element_index(e))] for e in range(layout.elements)]
    ctx.values[op.result] = permute(ctx.w, tile, layout, order)


def same_reshaped(old: RegisterLayout, new: RegisterLayout) -> bool:
    """Tell whether each thread holds the same elements of two shapes in row-major order."""
    if old.threads != new.threads or old.elements != new.elements:
        return False
    try:
        if old.reshape(new.shape).spatial_digits == new.spatial_digits:
            return True
    except LayoutError:
        pass
    return all(
        row_major_number(old, old.thread_index(t)) == row_major_number(new, new.thread_index(t))
        for t in range(old.threads)
    )


def row_major_number(layout: RegisterLayout, index: Index) -> int:
    """Return the number of an index in row-major order."""
    number = 0
    for position, extent in zip(index, layout.shape, strict=True):
        number = number * extent + position
    return number


@lowers(ops.SliceTile)
def lower_slice(ctx: Context, op: ops.SliceTile) -> None:
    tile = ctx.tile(op.x)
    layout = ctx.layout(op.result)
    place = {tile.layout.element_index(e): e for e in range(tile.count)}
    order = []
    for element in range(layout.elements):
        index = tuple(p + o for p, o in zip(layout.element_index(element), op.offsets, strict=True))
        if index not in place:
            raise LayoutConflict(f"a slice at {op.offsets} of a tile in {tile.layout} crosses threads")
        order.append(place[index])
    ctx.values[op.result] = permute(ctx.w, tile, layout, order)


@lowers(ops.Concat)
def lower_concat(ctx: Context, op: ops.Concat) -> None:
    tiles = [ctx.tile(p) for p in op.parts]
    layout = ctx.layout(op.result)
    extent = tiles[0].layout.shape[op.axis]
    columns = [codes_of(ctx.w, t) for t in tiles]
    places = [{t.layout.element_index(e): e for e in range(t.count)} for t in tiles]
    elements = []
    for element in range(layout.elements):
        index = list(layout.element_index(element))
        part, index[op.axis] = divmod(index[op.axis], extent)
        elements.append(columns[part][places[part][tuple(index)]])
    ctx.values[op.result] = tile_of_codes(ctx.w, tiles[0].dtype, layout, elements)


@lowers(ops.AnnotateLayout)
def lower_annotation(ctx: Context, op: ops.AnnotateLayout) -> None:
    tile = ctx.tile(op.x)
    if tile.layout != op.layout:
        raise LayoutConflict(f"the tile is in {tile.layout}, but {op.layout} is asked for")
    ctx.values[op.result] = tile


@lowers(ops.Table)
def lower_table(ctx: Context, op: ops.Table) -> None:
    w = ctx.w
    values = tuple(constant(v, op.dtype) for v in op.values)
    index = ctx.values[op.index]
    if isinstance(index, V):
        ctx.values[op.result] = lookup(w, values, index)
        return
    tile = ctx.tile(op.index)
    elements = [lookup(w, values, e) for e in elements_of(w, tile)]
    ctx.values[op.result] = tile_of(w, op.dtype, tile.layout, elements)
