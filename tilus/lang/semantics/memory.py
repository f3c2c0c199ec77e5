"""Translations of the functions that move tiles, and of those that make tensors in shared and global memory."""

from __future__ import annotations

from math import prod
from typing import TYPE_CHECKING, Any

from tilus.dtypes import DType, boolean, int64, uint32, uint64
from tilus.errors import ShapeMismatch, TypeMismatch
from tilus.ir import BarrierType, GlobalType, PointerType, RegisterType, ScalarType, SharedType, Value, ops
from tilus.lang import functions
from tilus.lang.diagnostics import describe, shape_text
from tilus.lang.promotion import is_number
from tilus.lang.semantics.arithmetic import binary, compare, convert
from tilus.lang.semantics.ranks import mask_value, rank_value
from tilus.lang.semantics.registry import implements
from tilus.lang.semantics.shapes import (
    Shape,
    as_sequence,
    as_tile,
    broadcast,
    broadcast_shape,
    operand_dtype,
    operand_shape,
    static_choice,
    static_dtype,
    static_int,
    static_shape,
    tile_type,
)
from tilus.lang.semantics.tiles import register_layout
from tilus.layout import SharedLayout

if TYPE_CHECKING:
    from tilus.lang.frontend.tracer import Tracer

CACHES = ("", "streaming", "persistent")


def memory_type(what: str, value: object) -> GlobalType | SharedType:
    """Return the type of a tensor in global or shared memory, or say what was found instead."""
    if isinstance(value, Value):
        if isinstance(value.type, (GlobalType, SharedType)):
            return value.type
        if isinstance(value.type, PointerType):
            raise TypeMismatch(
                f"{what} takes a tensor, not {describe(value)}",
                hint="tilus.view(p, dtype, shape, strides) makes a tensor of it",
            )
    raise TypeMismatch(
        f"{what} takes a tensor in global or shared memory, not {describe(value)}",
        hint="a parameter of the kernel, tilus.view(p, ...) or tilus.shared(...)",
    )


def global_type(what: str, value: object) -> GlobalType:
    """Return the type of a tensor in global memory."""
    type = memory_type(what, value)
    if not isinstance(type, GlobalType):
        raise TypeMismatch(
            f"{what} takes a tensor in global memory, not {describe(value)}",
            hint="a parameter of the kernel, or tilus.view(p, ...)",
        )
    return type


def shared_type(what: str, value: object) -> SharedType:
    """Return the type of a tensor in shared memory."""
    type = value.type if isinstance(value, Value) else None
    if not isinstance(type, SharedType):
        raise TypeMismatch(
            f"{what} takes a tensor in shared memory, not {describe(value)}",
            hint="tilus.shared(dtype, shape)",
        )
    if type.remote:
        raise TypeMismatch(
            f"{what} takes a tensor in the block's own shared memory, not {describe(value)}",
            hint="the tensor that was given to tilus.remote, or tilus.load and tilus.store",
        )
    return type


def integers(t: Tracer, what: str, values: object) -> tuple[Value, ...]:
    """Return a list of integers as scalars."""
    made = []
    for value in as_sequence(values):
        scalar = t.integer(value)
        if scalar is None:
            raise TypeMismatch(
                f"{what} takes integers, not {describe(value)}",
                hint="ints, or scalars such as tilus.block_id(0) * 64",
            )
        # Places are compared and added as signed numbers.
        assert isinstance(scalar.type, ScalarType)
        made.append(convert(t, scalar, int64) if scalar.type.dtype == uint32 else scalar)
    return tuple(made)


def offsets_for(t: Tracer, what: str, tensor: GlobalType, offsets: object) -> tuple[Value, ...]:
    """Return one offset for each dimension of a tensor."""
    made = integers(t, f"offsets of {what}", offsets)
    if len(made) != tensor.rank:
        raise ShapeMismatch(
            f"{what} takes an offset for each of {tensor.rank} dimensions, not {len(made)}",
            hint="offsets=(i, j), of which 0 is one",
        )
    return made


def checks(what: str, checked: object, rank: int) -> tuple[bool, ...]:
    """Return for each dimension whether its bounds are tested."""
    if isinstance(checked, bool):
        return (checked,) * rank
    parts = as_sequence(checked)
    if len(parts) != rank or not all(isinstance(part, bool) for part in parts):
        raise TypeMismatch(f"checked of {what} is True, False, or one of these for each of {rank} dimensions")
    return parts


def mask_for(t: Tracer, what: str, mask: object, shape: Shape) -> Value | None:
    """Return a mask as a boolean tile of a shape."""
    if mask is None:
        return None
    return as_tile(t, f"mask of {what}", mask, shape, boolean)


@implements(functions.load)
def load(
    t: Tracer,
    source: Any,
    offsets: Any,
    shape: Any,
    indices: Any,
    mask: Any,
    other: Any,
    layout: Any,
    cache: Any,
    checked: Any,
) -> Value:
    type = memory_type("load", source)
    if indices is not None:
        for name, value in (("offsets", offsets), ("shape", shape), ("layout", layout)):
            if value is not None:
                raise TypeMismatch(
                    f"load takes indices or {name}, not both",
                    hint="tilus.load(a, indices=(i, j)), whose shape is that of the index tiles",
                )
        return gather(t, source, indices, mask, other, checked)
    if isinstance(type, SharedType):
        return load_shared(t, source, type, offsets, shape, mask, other, layout)
    if offsets is None:
        raise TypeMismatch(
            "load from global memory takes offsets", hint="tilus.load(a, offsets=(i, j), shape=(64, 32))"
        )
    static_choice("cache of load", cache, CACHES)
    starts = offsets_for(t, "load", type, offsets)
    extents = (1,) if shape is None else static_shape("load", shape)
    if len(extents) > type.rank:
        raise ShapeMismatch(
            f"load of a tile of shape {shape_text(extents)} from a tensor of {type.rank} dimensions",
            hint="a tile of as many dimensions or less",
        )
    fill = scalar_of(t, "other of load", other, type.dtype)
    where = mask_for(t, "load", mask, extents)
    place = register_layout(t, "load", layout, extents)
    tile = t.value(
        ops.LoadGlobal, source, starts, where, fill,
        shape=extents, checked=checks("load", checked, type.rank), cache=cache, layout=place,
    )  # fmt: skip
    return tile if shape is not None else t.value(ops.Extract, tile)


def load_shared(
    t: Tracer,
    source: Value,
    type: SharedType,
    offsets: object,
    shape: object,
    mask: object,
    other: object,
    layout: object,
) -> Value:
    """Emit a load of all of a shared tensor."""
    if offsets is not None or shape is not None:
        raise TypeMismatch(
            "load from shared memory takes all of a tensor, and no offsets",
            hint="tilus.load(s[i]) for a stage, tilus.load(s[0:16, :]) for a part with constant bounds",
        )
    if mask is not None or other is not None:
        raise TypeMismatch(
            "load of all of a shared tensor has no mask",
            hint="tilus.where(mask, tilus.load(s), other), or indices=",
        )
    return t.value(ops.LoadShared, source, register_layout(t, "load", layout, type.shape))


def scalar_of(t: Tracer, what: str, value: object, dtype: DType) -> Value | None:
    """Return a number or scalar as a scalar of a dtype."""
    if value is None:
        return None
    if is_number(value):
        return t.constant(value, dtype)  # type: ignore[arg-type]
    if isinstance(value, Value) and isinstance(value.type, ScalarType) and value.type.dtype == dtype:
        return value
    raise TypeMismatch(
        f"{what} is a {dtype} scalar, not {describe(value)}", hint=f"a number, or x.to(tilus.{dtype})"
    )


def index_tiles(
    t: Tracer, what: str, tensor: GlobalType | SharedType, indices: object
) -> tuple[tuple[Value, ...], Shape]:
    """Return index tiles of one shape, one for each dimension, and the shape."""
    parts = as_sequence(indices)
    rank = tensor.rank if isinstance(tensor, GlobalType) else len(tensor.shape)
    if len(parts) != rank:
        raise ShapeMismatch(
            f"{what} takes {rank} index tile{'s' if rank != 1 else ''}, one for each dimension, not {len(parts)}",
            hint="indices=(i, j), index tiles that are broadcast together",
        )
    for part in parts:
        if not operand_dtype(f"indices of {what}", part).is_integer:
            raise TypeMismatch(
                f"{what} takes integer index tiles, not {describe(part)}", hint="x.to(tilus.int32)"
            )
    shapes = [s for s in map(operand_shape, parts) if s is not None]
    shape = broadcast_shape(f"indices of {what}", shapes) if shapes else (1,)
    scalars = [t.constant(part) if is_number(part) else part for part in parts]
    return tuple(broadcast(t, scalar, shape) for scalar in scalars), shape


def gather(t: Tracer, source: Value, indices: object, mask: object, other: object, checked: object) -> Value:
    """Emit a load at index tiles."""
    type = memory_type("load", source)
    tiles, shape = index_tiles(t, "load", type, indices)
    if not isinstance(checked, bool):
        raise TypeMismatch(f"checked of a load with indices is True or False, not {describe(checked)}")
    where = mask_for(t, "load", mask, shape)
    tile = t.value(ops.Gather, source, tiles, where, checked)
    if other is not None and not (is_number(other) and other == 0):
        fill = scalar_of(t, "other of load", other, type.dtype)
        assert fill is not None
        read = inside(t, source, tiles, where) if checked else where
        if read is not None:
            tile = t.value(ops.Select, read, tile, broadcast(t, fill, shape))
    runs_over_scalars = not any(operand_shape(part) for part in as_sequence(indices))
    return t.value(ops.Extract, tile) if runs_over_scalars else tile


def inside(t: Tracer, source: Value, tiles: tuple[Value, ...], mask: Value | None) -> Value:
    """Emit the tile that says where index tiles lie inside of a tensor, and a mask is true."""
    type = memory_type("load", source)
    extents: tuple[object, ...] = type.shape if isinstance(type, SharedType) else type.dims
    for axis, (tile, extent) in enumerate(zip(tiles, extents, strict=True)):
        size = extent if isinstance(extent, int) else extent_of(t, source, axis)
        if operand_dtype("load", tile) in (uint32, uint64):
            # Extents are signed; what is beyond them as an unsigned number is negative here.
            tile = convert(t, tile, int64)
        for part in (compare(t, ">=", tile, 0), compare(t, "<", tile, size)):
            mask = part if mask is None else t.value(ops.Binary, "and", mask, part)
    assert mask is not None
    return mask


def extent_of(t: Tracer, tensor: Value, axis: int) -> Value:
    """Return an extent of a tensor in global memory that is known at run time: in 64 bits if a view was given it so."""
    made = t.defined.get(tensor)
    given = made.shape[axis] if isinstance(made, ops.GlobalView) else None
    if given is not None and operand_dtype("view", given) in (int64, uint64):
        return convert(t, given, int64)
    return t.value(ops.Dim, tensor, axis)


@implements(functions.store)
def store(
    t: Tracer, target: Any, value: Any, offsets: Any, indices: Any, mask: Any, cache: Any, checked: Any
) -> None:
    type = memory_type("store", target)
    if indices is not None:
        if offsets is not None:
            raise TypeMismatch(
                "store takes indices or offsets, not both", hint="tilus.store(a, x, indices=(i, j))"
            )
        scatter(t, target, value, indices, mask, checked)
        return
    if isinstance(type, SharedType):
        if offsets is not None or mask is not None:
            raise TypeMismatch(
                "store to shared memory covers all of a tensor, and takes neither offsets nor a mask",
                hint="tilus.store(s[i], x) for a stage, tilus.store(s[0:16, :], x) for a part, or indices=",
            )
        t.emit(ops.StoreShared, target, stored(t, value, type.dtype, type.shape))
        return
    if offsets is None:
        raise TypeMismatch("store to global memory takes offsets", hint="tilus.store(c, x, offsets=(i, j))")
    static_choice("cache of store", cache, CACHES)
    if operand_shape(offsets) is not None and operand_shape(value) is None:
        raise TypeMismatch(
            f"store takes a tile and then offsets, not {describe(offsets)} for these",
            hint="tilus.store(c, x, (i, j))",
        )
    starts = offsets_for(t, "store", type, offsets)
    tile = stored(t, value, type.dtype, operand_shape(value) or (1,))
    shape = tile_type("store", tile).shape
    if len(shape) > type.rank:
        raise ShapeMismatch(
            f"store of a tile of shape {shape_text(shape)} into a tensor of {type.rank} dimensions",
            hint="a tile of as many dimensions or less",
        )
    where = mask_for(t, "store", mask, shape)
    t.emit(
        ops.StoreGlobal, target, tile, starts, where, checked=checks("store", checked, type.rank), cache=cache
    )


def stored(t: Tracer, value: object, dtype: DType, shape: Shape) -> Value:
    """Return what is stored as a tile of the target's dtype."""
    found = operand_dtype("store", value)
    if not is_number(value) and found != dtype:
        raise TypeMismatch(
            f"store of {describe(value)} into a tensor of {dtype}", hint=f"x.to(tilus.{dtype}) before store"
        )
    own = operand_shape(value)
    if own is not None and own != shape:
        raise ShapeMismatch(
            f"store of a tile of shape {shape_text(own)} into a tensor of shape {shape_text(shape)}",
            hint=f"tilus.broadcast_to(x, {tuple(shape)}) if it is to be repeated",
        )
    return as_tile(t, "store", value, shape, dtype)


def scatter(t: Tracer, target: Value, value: object, indices: object, mask: object, checked: object) -> None:
    """Emit a store at index tiles."""
    type = memory_type("store", target)
    tiles, shape = index_tiles(t, "store", type, indices)
    if not isinstance(checked, bool):
        raise TypeMismatch(f"checked of a store with indices is True or False, not {describe(checked)}")
    tile = as_tile(t, "store", value, shape, type.dtype)
    t.emit(ops.Scatter, target, tile, tiles, mask_for(t, "store", mask, shape), checked)


@implements(functions.copy_async)
def copy_async(t: Tracer, target: Any, source: Any, offsets: Any, cache: Any, checked: Any) -> None:
    _, tensor = copy_types("copy_async", target, source)
    static_choice("cache of copy_async", cache, CACHES)
    starts = offsets_for(t, "copy_async", tensor, offsets)
    t.emit(ops.CopyAsync, target, source, starts, checks("copy_async", checked, tensor.rank), cache)


def copy_types(what: str, target: object, source: object) -> tuple[SharedType, GlobalType]:
    """Check the two ends of a copy from global to shared memory."""
    if isinstance(target, Value) and isinstance(target.type, GlobalType):
        raise TypeMismatch(
            f"{what} copies from global to shared memory, and names the shared tensor first",
            hint=f"tilus.{what}(shared, tensor, offsets)",
        )
    to, tensor = shared_type(what, target), global_type(what, source)
    if to.dtype != tensor.dtype:
        raise TypeMismatch(
            f"{what} from a tensor of {tensor.dtype} into a shared tensor of {to.dtype}",
            hint=f"tilus.shared(tilus.{tensor.dtype}, shape), and a cast of the loaded tile",
        )
    if len(to.shape) > tensor.rank:
        raise ShapeMismatch(
            f"{what} of a tile of shape {shape_text(to.shape)} from a tensor of {tensor.rank} dimensions",
            hint="a shared tensor of as many dimensions or less",
        )
    return to, tensor


@implements(functions.copy_async_commit)
def copy_async_commit(t: Tracer) -> None:
    t.emit(ops.CopyAsyncCommit)


@implements(functions.copy_async_wait)
def copy_async_wait(t: Tracer, pending: Any) -> None:
    t.emit(ops.CopyAsyncWait, static_int("the count of copy_async_wait", pending, 0))


@implements(functions.shared)
def shared(t: Tracer, dtype: Any, shape: Any, layout: Any) -> Value:
    chosen, extents = static_dtype("shared", dtype), static_shape("shared", shape)
    if layout is not None and not isinstance(layout, SharedLayout):
        raise TypeMismatch(
            f"layout of shared is a shared layout, not {describe(layout)}", hint="tilus.row_major(64, 32)"
        )
    if layout is not None and layout.shape == extents[1:]:
        layout = layout.prepend(extents[0])
    if layout is not None and layout.shape != extents:
        raise ShapeMismatch(
            f"shared of shape {shape_text(extents)} with a layout of shape {shape_text(layout.shape)}"
        )
    return t.value(ops.AllocShared, chosen, extents, layout)


@implements(functions.view)
def view(t: Tracer, source: Any, dtype: Any, shape: Any, strides: Any, layout: Any) -> Value:
    chosen = static_dtype("view", dtype)
    if isinstance(source, Value) and isinstance(source.type, PointerType):
        if layout is not None:
            raise TypeMismatch("view of a pointer has strides, and no layout")
        return view_pointer(t, source, chosen, shape, strides)
    if not isinstance(source, Value) or not isinstance(source.type, RegisterType):
        raise TypeMismatch(
            f"view takes a tile or a pointer, not {describe(source)}",
            hint="tilus.view(a.ptr, dtype, shape, strides) for a tensor",
        )
    if strides is not None:
        raise TypeMismatch("view of a tile has a layout, and no strides")
    old = source.type
    if layout is not None:
        extents = static_shape("view", layout.shape if shape is None and hasattr(layout, "shape") else shape)
        return t.value(ops.View, source, chosen, extents, register_layout(t, "view", layout, extents))
    bits = old.shape[-1] * old.dtype.bits
    if shape is not None:
        extents = static_shape("view", shape)
        if bits % chosen.bits and prod(extents) * chosen.bits == old.size * old.dtype.bits:
            source, bits = t.value(ops.Reshape, source, (old.size,)), old.size * old.dtype.bits
    elif bits % chosen.bits:
        raise ShapeMismatch(
            f"view of {describe(source)} as {chosen}: the {bits} bits of a row are no multiple of {chosen.bits}",
            hint="a shape for the view",
        )
    rows = tile_type("view", source).shape[:-1]
    natural = (*rows, bits // chosen.bits)
    if shape is None or extents == natural or prod(natural) != prod(extents):
        # The operation says what is wrong with a shape of other bits.
        return t.value(ops.View, source, chosen, natural if shape is None else extents, None)
    return t.value(ops.Reshape, t.value(ops.View, source, chosen, natural, None), extents)


def view_pointer(t: Tracer, pointer: Value, dtype: DType, shape: object, strides: object) -> Value:
    """Emit a tensor made of a pointer."""
    assert isinstance(pointer.type, PointerType)
    if pointer.type.dtype != dtype:
        pointer = t.value(ops.PointerCast, pointer, dtype)
    if shape is None:
        raise TypeMismatch("view of a pointer takes a shape", hint="tilus.view(p, dtype, shape=(m, n))")
    sizes = as_sequence(shape)
    extents = integers(t, "shape of view", sizes)
    dims = tuple(size if isinstance(size, int) else None for size in sizes)
    steps: tuple[int | None, ...]
    if strides is None:
        given = row_major_strides(t, sizes)
    else:
        given = as_sequence(strides)
        if len(given) != len(sizes):
            raise ShapeMismatch(
                f"view takes as many strides as extents, not {len(given)} and {len(sizes)}",
                hint="one stride for each extent, or none for a dense tensor",
            )
    steps = tuple(step if isinstance(step, int) else None for step in given)
    return t.value(ops.GlobalView, pointer, extents, integers(t, "strides of view", given), dims, steps)


def row_major_strides(t: Tracer, sizes: tuple[Any, ...]) -> tuple[Any, ...]:
    """Return the strides of a dense tensor, computed in 64 bits where they are known at run time only."""
    step: Any = 1
    strides = []
    for size in reversed(sizes):
        strides.append(step)
        if isinstance(step, int) and isinstance(size, int):
            step *= size
        else:
            factors = [convert(t, v, int64) if isinstance(v, Value) else v for v in (step, size)]
            step = factors[1] if factors[0] == 1 else binary(t, "*", *factors)
    return tuple(reversed(strides))


# Barriers and bulk copies.


def barrier_type(what: str, value: object) -> BarrierType:
    """Return the type of a barrier, or say what was found instead."""
    if isinstance(value, Value) and isinstance(value.type, BarrierType):
        return value.type
    raise TypeMismatch(
        f"{what} takes a barrier, not {describe(value)}", hint="tilus.barrier(count, arrivals=...)"
    )


def barrier_index(t: Tracer, what: str, barrier: object, index: object) -> Value | None:
    """Return which barrier of an array is meant."""
    type = barrier_type(what, barrier)
    if index is None:
        if type.count != 1:
            raise TypeMismatch(f"{what} takes an index for an array of {type.count} barriers", hint="index=i")
        return None
    if isinstance(index, int) and not 0 <= index < type.count:
        raise ShapeMismatch(
            f"{what} with index {index} of an array of {type.count} barriers",
            hint=f"an index from 0 to {type.count - 1}",
        )
    (scalar,) = integers(t, f"index of {what}", index)
    return scalar


@implements(functions.barrier)
def barrier(t: Tracer, count: Any, arrivals: Any) -> Value:
    return t.value(
        ops.BarrierAlloc,
        static_int("the count of barrier", count, 1),
        static_int("arrivals of barrier", arrivals, 1),
    )


@implements(functions.arrive)
def arrive(t: Tracer, barrier: Any, index: Any, bytes: Any, rank: Any, scope: Any) -> None:
    which = barrier_index(t, "arrive", barrier, index)
    size = static_int("bytes of arrive", bytes, 0)
    block = None if rank is None else rank_value(t, "arrive", rank)
    static_choice("scope of arrive", scope, ("", "block", "cluster"))
    t.emit(ops.BarrierArrive, barrier, which, size, block, scope)


@implements(functions.wait)
def wait(t: Tracer, barrier: Any, phase: Any, index: Any) -> None:
    which = barrier_index(t, "wait", barrier, index)
    (parity,) = integers(t, "phase of wait", phase)
    t.emit(ops.BarrierWait, barrier, parity, which)


@implements(functions.copy_bulk)
def copy_bulk(
    t: Tracer, target: Any, source: Any, offsets: Any, barrier: Any, index: Any, multicast: Any
) -> None:
    _, tensor = copy_types("copy_bulk", target, source)
    which = barrier_index(t, "copy_bulk", barrier, index)
    places = offsets_for(t, "copy_bulk", tensor, offsets)
    mask = None if multicast is None else mask_value(t, "copy_bulk", multicast)
    t.emit(ops.CopyBulk, target, source, places, barrier, which, mask)
