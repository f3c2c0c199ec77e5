"""Attributes and subscripts of run-time values, and of compile-time ones."""

from __future__ import annotations

import ast
from collections.abc import Callable
from typing import Any

from tilus.errors import NameNotFound, ShapeMismatch, SyntaxNotSupported, TypeMismatch
from tilus.ir import BarrierType, GlobalType, PointerType, RegisterType, ScalarType, SharedType, Value, ops
from tilus.lang import functions
from tilus.lang.diagnostics import describe, nearest
from tilus.lang.frontend.calls import BoundMethod, plain_range
from tilus.lang.frontend.expressions import python
from tilus.lang.frontend.tracer import Tracer, expression, is_runtime
from tilus.lang.semantics.memory import extent_of
from tilus.lang.semantics.registry import implements
from tilus.lang.semantics.tiles import transpose
from tilus.lang.types import Barrier, Pointer, Scalar, Shared, Tensor, Tile

CLASSES: dict[type, type] = {
    ScalarType: Scalar, RegisterType: Tile, SharedType: Shared, GlobalType: Tensor, PointerType: Pointer,
    BarrierType: Barrier,
}  # fmt: skip
METHODS: dict[type, dict[str, Callable[..., Any]]] = {
    Scalar: {"to": functions.cast},
    Tile: {
        "to": functions.cast, "view": Tile.view, "reshape": functions.reshape, "transpose": functions.transpose,
        "item": functions.item, "sum": functions.sum, "max": Tile.max, "min": Tile.min,
        "any": functions.any, "all": functions.all,
    },
    Shared: {"transpose": functions.transpose, "permute": Shared.permute, "reshape": functions.reshape},
    Tensor: {},
    Pointer: {},
    Barrier: {"arrive": Barrier.arrive, "wait": Barrier.wait},
}  # fmt: skip


@implements(Tile.max)
def tile_max(t: Tracer, self: Any, axis: Any, keepdims: Any) -> Any:
    from tilus.lang.semantics.tiles import reduce

    return reduce(t, "max", self, axis, keepdims)


@implements(Tile.min)
def tile_min(t: Tracer, self: Any, axis: Any, keepdims: Any) -> Any:
    from tilus.lang.semantics.tiles import reduce

    return reduce(t, "min", self, axis, keepdims)


@implements(Tile.view)
def tile_view(t: Tracer, self: Any, dtype: Any, shape: Any, layout: Any) -> Any:
    from tilus.lang.semantics.memory import view

    return view(t, self, dtype, shape, None, layout)


@implements(Shared.permute)
def shared_permute(t: Tracer, self: Any, perm: Any) -> Any:
    return transpose(t, self, perm)


@implements(Barrier.arrive)
def barrier_arrive(t: Tracer, self: Any, index: Any, bytes: Any, rank: Any, scope: Any) -> None:
    from tilus.lang.semantics.memory import arrive

    arrive(t, self, index, bytes, rank, scope)


@implements(Barrier.wait)
def barrier_wait(t: Tracer, self: Any, phase: Any, index: Any) -> None:
    from tilus.lang.semantics.memory import wait

    wait(t, self, phase, index)


def stub_class(value: Value) -> type:
    """Return the class of the language that a run-time value is of."""
    return CLASSES[type(value.type)]


def property_of(t: Tracer, value: Value, name: str) -> Any:
    """Return a property of a run-time value."""
    type = value.type
    if name == "dtype":
        return type.dtype  # type: ignore[attr-defined]
    if name == "count":
        return type.count  # type: ignore[attr-defined]
    if isinstance(type, GlobalType):
        if name == "ndim":
            return type.rank
        if name == "ptr":
            return t.value(ops.PointerOf, value)
        return tuple(extent(t, value, name, axis) for axis in range(type.rank))
    assert isinstance(type, (RegisterType, SharedType))
    if name == "shape":
        return type.shape
    if name == "ndim":
        return len(type.shape)
    assert name == "T", name
    return transpose(t, value, None)


def extent(t: Tracer, tensor: Value, name: str, axis: int) -> Any:
    """Return an extent or stride of a tensor: an int where it is known at compile time."""
    assert isinstance(tensor.type, GlobalType)
    known = (tensor.type.dims if name == "shape" else tensor.type.strides)[axis]
    if isinstance(known, int):
        return known
    return extent_of(t, tensor, axis) if name == "shape" else t.value(ops.Stride, tensor, axis)


@expression(ast.Attribute)
def attribute(t: Tracer, node: ast.Attribute) -> Any:
    base = t.evaluate(node.value)
    name = node.attr
    if isinstance(base, Value):
        cls = stub_class(base)
        if name in METHODS[cls]:
            return BoundMethod(name, METHODS[cls][name], base)
        known = [k for k, v in vars(cls).items() if not k.startswith("_") and isinstance(v, property)]
        if name in known:
            return property_of(t, base, name)
        raise NameNotFound(
            f"{describe(base)} has no attribute {name!r}",
            hint=said_otherwise(cls, name) or nearest(name, [*known, *METHODS[cls]]),
        )
    try:
        return getattr(base, name)
    except AttributeError:
        other = (
            NAMED_OTHERWISE.get(name) if getattr(base, "__name__", "") in ("tilus", "tilus.lang") else None
        )
        raise NameNotFound(
            f"{describe(base)} has no attribute {name!r}", hint=other or nearest(name, dir(base))
        ) from None


def said_otherwise(cls: type, name: str) -> str | None:
    """Return how the language says what is an attribute elsewhere."""
    if name in SAID_OTHERWISE:
        return SAID_OTHERWISE[name]
    if cls in (Tile, Scalar) and name in functions.__all__:
        return f"tilus.{name}(x, ...)"
    return None


SAID_OTHERWISE = {
    "size": "x.shape", "data_ptr": "a.ptr", "astype": "x.to(dtype)", "numel": "x.shape", "stride": "a.strides",
    "float": "x.to(tilus.float32)", "half": "x.to(tilus.float16)", "exp": "tilus.exp(x)",
    "load": "tilus.load(a, ...)", "store": "tilus.store(a, x, ...)", "mean": "tilus.sum(x, axis) / n",
    "cast": "x.to(dtype)", "cast_to": "x.to(dtype)", "type": "x.to(dtype)", "int": "x.to(tilus.int32)",
    "bfloat16": "x.to(tilus.bfloat16)", "pow": "x ** y", "permute": "x.transpose(perm)", "flatten": "x.reshape(-1)",
    "clone": "x itself: tiles never change", "unsqueeze": "tilus.expand_dims(x, axis)",
    "expand": "tilus.broadcast_to(x, shape)",
}  # fmt: skip
NAMED_OTHERWISE = {
    "program_id": "tilus.block_id(axis)", "num_programs": "tilus.grid_dim(axis)", "debug_barrier": "tilus.sync()",
    "syncthreads": "tilus.sync()", "permute": "tilus.transpose(x, perm)", "trans": "tilus.transpose(x)",
    "cat": "tilus.concat([x, y])", "mean": "tilus.sum(x, axis) / n", "pow": "x ** y", "fdiv": "x / y",
    "ravel": "tilus.reshape(x, -1)", "ones": "tilus.full(shape, 1.0)",
    "full_like": "tilus.full(x.shape, value, x.dtype)", "xor_sum": 'tilus.reduce(x, axis, "xor")',
    "associative_scan": "tilus.scan(x, axis, function)", "relu": "tilus.maximum(x, 0.0)",
    "silu": "x * tilus.sigmoid(x)", "bitcast": "tilus.view(x, dtype, shape)", "print": "tilus.device_print(...)",
    "shared_tensor": "tilus.shared(dtype, shape)", "to": "tilus.cast(x, dtype)",
    "register_tensor": "tilus.registers(dtype, shape)", "global_view": "tilus.view(pointer, dtype, shape)",
    "mma": "tilus.dot(a, b, acc)", "matmul": "tilus.dot(a, b)", "make_tensor_descriptor": "a Tensor parameter",
    "make_block_ptr": "tilus.load(tensor, offsets, shape) of a Tensor parameter",
    "thread_id": "tiles: threads are implied", "umulhi": "tilus.mulhi(a, b)",
    "range": "range(n), or tilus.pipeline(range(n), stages=3)",
}  # fmt: skip
"""How the language says what has another name in languages like it."""


# Subscripts.


@expression(ast.Slice)
def slice_(t: Tracer, node: ast.Slice) -> slice:
    return slice(
        *(t.evaluate(part) if part is not None else None for part in (node.lower, node.upper, node.step))
    )


@expression(ast.Subscript)
def subscript(t: Tracer, node: ast.Subscript) -> Any:
    if isinstance(node.value, ast.Attribute) and node.value.attr in ("shape", "strides"):
        # One extent, without those beside it.
        owner = t.evaluate(node.value.value)
        if isinstance(owner, Value) and isinstance(owner.type, GlobalType):
            axis = t.evaluate(node.slice)
            if isinstance(axis, int) and -owner.type.rank <= axis < owner.type.rank:
                return extent(t, owner, node.value.attr, axis % owner.type.rank)
    base = plain_range(t.evaluate(node.value))
    index = t.evaluate(node.slice)
    if isinstance(base, Value):
        return part_of_value(t, base, index)
    if is_runtime(index) or (isinstance(index, slice) and is_runtime((index.start, index.stop, index.step))):
        raise TypeMismatch(
            f"{describe(base)} takes an index known at compile time, not {describe(index)}",
            hint="for i in tilus.static_range(n), where i is an int",
        )
    if isinstance(base, (tuple, list)) and isinstance(index, int) and not -len(base) <= index < len(base):
        raise ShapeMismatch(f"index {index} of {describe(base)}", hint=f"an index from 0 to {len(base) - 1}")
    return python("a subscript", lambda: base[index])


def part_of_value(t: Tracer, value: Value, index: object) -> Value:
    """Return a part of a tile or of a shared tensor."""
    if isinstance(value.type, RegisterType):
        return tile_part(t, value, index)
    if isinstance(value.type, SharedType):
        return shared_part(t, value, index)
    if isinstance(value.type, GlobalType):
        raise SyntaxNotSupported(
            "a tensor in global memory has no subscript", hint="tilus.load(a, offsets=(i, j), shape=(bm, bn))"
        )
    hint = (
        "tilus.view(p, dtype, shape, strides), and tilus.load"
        if isinstance(value.type, PointerType)
        else None
    )
    raise SyntaxNotSupported(f"{describe(value)} has no subscript", hint=hint)


def full_index(index: object, rank: int, value: Value, new_axes: bool) -> list[object]:
    """Return an index with one entry for each dimension, besides None for new ones."""
    entries = list(index) if isinstance(index, tuple) else [index]
    counted = [e for e in entries if e is not None and e is not Ellipsis]
    if not new_axes and any(e is None for e in entries):
        raise SyntaxNotSupported(
            "None in the index of a shared tensor", hint="None in the index of the loaded tile"
        )
    if len(counted) > rank:
        raise ShapeMismatch(f"{len(counted)} indices of {describe(value)}", hint=f"{rank} indices or less")
    if entries.count(Ellipsis) > 1:
        raise ShapeMismatch("an index has one ... at most")
    fill: list[object] = [slice(None)] * (rank - len(counted))
    if Ellipsis in entries:
        at = entries.index(Ellipsis)
        return [*entries[:at], *fill, *entries[at + 1 :]]
    return [*entries, *fill]


def bounds(entry: slice, extent: int, value: Value) -> tuple[int, int]:
    """Return the offset and size of a slice with constant bounds and step 1."""
    ends = (entry.start, entry.stop, entry.step)
    if any(isinstance(end, Value) for end in ends):
        what = (
            "indices"
            if isinstance(value.type, RegisterType)
            else "a first dimension that an integer picks from, as in s[i]"
        )
        hint = "tilus.store it to shared memory and load the part by indices" if what == "indices" else what
        raise SyntaxNotSupported(f"a slice of {describe(value)} has bounds known at compile time", hint=hint)
    for end in ends:
        if end is not None and (isinstance(end, bool) or not isinstance(end, int)):
            raise TypeMismatch(
                f"a slice has ints as bounds, not {describe(end)}", hint="ints known at compile time"
            )
    start, stop, step = entry.indices(extent)
    if step != 1:
        raise SyntaxNotSupported(
            f"a slice with step {step}", hint="a step of 1, or tilus.reshape and a slice of the rest"
        )
    if stop <= start:
        raise ShapeMismatch(
            f"a slice from {start} to {stop} of a dimension of {extent} is empty",
            hint="bounds with one element between them at least",
        )
    return start, stop - start


def constant_index(entry: object, extent: int, value: Value) -> int:
    """Check a constant index into a dimension."""
    assert isinstance(entry, int)
    if not -extent <= entry < extent:
        raise ShapeMismatch(
            f"index {entry} of a dimension of {extent} of {describe(value)}",
            hint=f"an index from 0 to {extent - 1}",
        )
    return entry % extent


def tile_part(t: Tracer, value: Value, index: object) -> Value:
    """Return what NumPy gives for a tile with an index of ints, slices, None and `...`."""
    assert isinstance(value.type, RegisterType)
    shape = value.type.shape
    entries = full_index(index, len(shape), value, new_axes=True)
    offsets, sizes, dropped, inserted = [], [], [], []
    position = axis = 0
    for entry in entries:
        if entry is None:
            inserted.append(position)
            position += 1
            continue
        if isinstance(entry, slice):
            offset, size = bounds(entry, shape[axis], value)
            position += 1
        elif isinstance(entry, int) and not isinstance(entry, bool):
            offset, size = constant_index(entry, shape[axis], value), 1
            dropped.append(axis)
        else:
            raise_tile_index(value, entry)
        offsets.append(offset)
        sizes.append(size)
        axis += 1
    if tuple(sizes) != shape:
        value = t.value(ops.SliceTile, value, tuple(offsets), tuple(sizes))
    for axis in reversed(dropped):
        if len(value.type.shape) == 1:  # type: ignore[attr-defined]
            if inserted:
                return t.value(ops.Reshape, value, (1,) * len(inserted))
            return t.value(ops.Extract, value)
        value = t.value(ops.Squeeze, value, axis)
    for position in inserted:
        value = t.value(ops.ExpandDims, value, position)
    return value


def raise_tile_index(value: Value, entry: object) -> None:
    """Say why an index of a tile is refused."""
    if isinstance(entry, Value) and isinstance(entry.type, RegisterType) and entry.type.dtype.is_boolean:
        raise SyntaxNotSupported("a tile is not indexed by a mask", hint="tilus.where(mask, x, other)")
    if isinstance(entry, Value):
        raise SyntaxNotSupported(
            f"a tile is indexed by ints known at compile time, not {describe(entry)}",
            hint="tilus.store it to a shared tensor s, and tilus.load(s, indices=(i, j))",
        )
    raise TypeMismatch(
        f"a tile is indexed by ints, slices, None and ..., not {describe(entry)}", hint="x[0:8, None]"
    )


def shared_part(t: Tracer, value: Value, index: object) -> Value:
    """Return the part of a shared tensor for an index of integers, known at run time or not, and constant slices."""
    assert isinstance(value.type, SharedType)
    entries = full_index(index, len(value.type.shape), value, new_axes=False)
    shape = value.type.shape
    offsets, sizes = [], []
    for axis, entry in enumerate(entries):
        if isinstance(entry, slice):
            offset, size = bounds(entry, shape[axis], value)
        else:
            offset, size = 0, shape[axis]
        offsets.append(offset)
        sizes.append(size)
    if tuple(sizes) != shape:
        value = t.value(ops.SharedSlice, value, tuple(offsets), tuple(sizes))
    picked = [axis for axis, entry in enumerate(entries) if not isinstance(entry, slice)]
    if len(picked) == len(shape):
        raise ShapeMismatch(
            f"an index of one element of {describe(value)}",
            hint="tilus.load(s, indices=(i, j)) for a scalar",
        )
    if picked and picked != list(range(len(picked))):
        rest = [axis for axis in range(len(shape)) if axis not in picked]
        value = t.value(ops.SharedPermute, value, (*picked, *rest))
    for axis in picked:
        entry = entries[axis]
        if isinstance(entry, int) and not isinstance(entry, bool):
            entry = constant_index(entry, shape[axis], value)
        scalar = t.integer(entry)
        if scalar is None:
            raise TypeMismatch(
                f"a shared tensor is indexed by integers and slices, not {describe(entry)}",
                hint="s[i], or s[0:16, :]",
            )
        value = t.value(ops.SharedIndex, value, scalar)
    return value
