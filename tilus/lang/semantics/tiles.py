"""Translations of the functions that make tiles and change their shape, and of `dot`."""

from __future__ import annotations

from collections.abc import Callable
from math import prod
from typing import TYPE_CHECKING, Any

from tilus.dtypes import DType, boolean, float32, float64, int32
from tilus.errors import LayoutConflict, ShapeMismatch, TypeMismatch
from tilus.ir import RegisterType, ScalarType, SharedType, Value, ops
from tilus.lang import functions
from tilus.lang.diagnostics import describe, shape_text
from tilus.lang.inline import InlineFunction
from tilus.lang.promotion import is_number, number_dtype, require_arithmetic, require_float, require_integer
from tilus.lang.semantics.arithmetic import binary
from tilus.lang.semantics.combining import combined
from tilus.lang.semantics.registry import implements
from tilus.lang.semantics.shapes import (
    Shape,
    broadcast,
    broadcast_shape,
    is_scalar,
    operand_dtype,
    operand_shape,
    static_axis,
    static_choice,
    static_dtype,
    static_int,
    static_shape,
    tile_type,
)
from tilus.lang.semantics.sort import through_shared
from tilus.layout import RegisterLayout

if TYPE_CHECKING:
    from tilus.lang.frontend.tracer import Tracer


def register_layout(t: Tracer, what: str, layout: object, shape: Shape) -> RegisterLayout | None:
    """Check a register layout that the user gives for a shape."""
    if layout is None:
        return None
    if not isinstance(layout, RegisterLayout):
        raise TypeMismatch(
            f"layout of {what} is a register layout, not {describe(layout)}",
            hint="tilus.spatial(8, 4).local(1, 2)",
        )
    if layout.shape != shape:
        raise ShapeMismatch(
            f"{what} of shape {shape_text(shape)} with a layout of shape {shape_text(layout.shape)}",
            hint="a layout of the tile's shape",
        )
    threads = 32 * (t.warp_groups[-1][1] if t.warp_groups else t.warps)
    if t.grid is not None and layout.threads != threads:
        copies = threads // layout.threads if threads % layout.threads == 0 else 0
        raise LayoutConflict(
            f"{what} with a layout of {layout.threads} threads in a group of {threads}",
            hint=f"layout.with_replication({copies}), or a layout of {threads} threads"
            if copies
            else f"a layout of {threads} threads",
        )
    return layout


@implements(functions.registers)
def registers(t: Tracer, dtype: Any, shape: Any, fill: Any, layout: Any) -> Value:
    return filled(
        t, "registers", static_dtype("registers", dtype), static_shape("registers", shape), fill, layout
    )


@implements(functions.zeros_like)
def zeros_like(t: Tracer, x: Any) -> Value:
    type = tile_type("zeros_like", x)
    return filled(t, "zeros_like", type.dtype, type.shape, 0, None)


@implements(functions.zeros)
def zeros(t: Tracer, shape: Any, dtype: Any, layout: Any) -> Value:
    return filled(t, "zeros", static_dtype("zeros", dtype), static_shape("zeros", shape), 0, layout)


@implements(functions.full)
def full(t: Tracer, shape: Any, fill: Any, dtype: Any, layout: Any) -> Value:
    if dtype is None:
        dtype = operand_dtype("full", fill) if not is_number(fill) else number_dtype(fill)
    return filled(t, "full", static_dtype("full", dtype), static_shape("full", shape), fill, layout)


def filled(t: Tracer, what: str, dtype: DType, shape: Shape, fill: object, layout: object) -> Value:
    """Emit a tile of one number."""
    if is_number(fill):
        if dtype.is_boolean:
            fill = bool(fill)
        scalar = t.constant(fill, dtype)  # type: ignore[arg-type]
    elif isinstance(fill, Value) and isinstance(fill.type, ScalarType):
        scalar = fill
        if fill.type.dtype != dtype:
            raise TypeMismatch(
                f"{what} of {dtype} is filled with a {dtype} scalar, not {describe(fill)}",
                hint=f"x.to(tilus.{dtype})",
            )
    else:
        raise TypeMismatch(
            f"{what} is filled with a number or a scalar, not {describe(fill)}",
            hint="a number, a scalar, or tilus.broadcast_to(x, shape) for a tile",
        )
    return t.value(ops.Splat, scalar, shape, register_layout(t, what, layout, shape))


@implements(functions.arange)
def arange(t: Tracer, start: Any, stop: Any, dtype: Any, layout: Any) -> Value:
    first = static_int("the start of arange", start)
    if stop is None:
        first, last = 0, first
    else:
        last = static_int("the stop of arange", stop)
    if last <= first:
        raise ShapeMismatch(f"arange from {first} to {last} is empty", hint="a stop above the start")
    tile = iota(t, (last - first,), 0, dtype, layout)
    return binary(t, "+", tile, first) if first else tile


@implements(functions.iota)
def iota(t: Tracer, shape: Any, axis: Any, dtype: Any, layout: Any) -> Value:
    chosen, extents = static_dtype("iota", dtype), static_shape("iota", shape)
    if not chosen.is_integer:
        raise TypeMismatch(
            f"iota is of an integer dtype, not {chosen}", hint=f"tilus.iota(shape, axis).to(tilus.{chosen})"
        )
    axis = static_axis("iota", axis, len(extents))
    return t.value(ops.Iota, extents, axis, chosen, register_layout(t, "iota", layout, extents))


@implements(functions.broadcast_to)
def broadcast_to(t: Tracer, x: Any, shape: Any) -> Value:
    target = static_shape("broadcast_to", shape)
    operand_dtype("broadcast_to", x)
    if is_number(x):
        x = t.constant(x)
    own = operand_shape(x)
    if own is not None and broadcast_shape("broadcast_to", [own, target]) != target:
        raise ShapeMismatch(
            f"a tile of shape {shape_text(own)} does not broadcast to {shape_text(target)}",
            hint="extents that are equal, or 1",
        )
    return broadcast(t, x, target)


@implements(functions.expand_dims)
def expand_dims(t: Tracer, x: Any, axis: Any) -> Value:
    rank = len(tile_type("expand_dims", x).shape)
    return t.value(ops.ExpandDims, x, static_axis("expand_dims", axis, rank + 1))


@implements(functions.squeeze)
def squeeze(t: Tracer, x: Any, axis: Any) -> Any:
    type = tile_type("squeeze", x)
    axis = static_axis("squeeze", axis, len(type.shape))
    if type.shape[axis] != 1:
        raise ShapeMismatch(
            f"squeeze removes a dimension of size 1, not dimension {axis} of shape {shape_text(type.shape)}"
        )
    return without_axis(t, x, axis)


def without_axis(t: Tracer, x: Value, axis: int) -> Value:
    """Remove a dimension of size 1; the last one gives a scalar."""
    if len(tile_type("squeeze", x).shape) == 1:
        return t.value(ops.Extract, x)
    return t.value(ops.Squeeze, x, axis)


@implements(functions.reshape)
def reshape(t: Tracer, x: Any, shape: Any) -> Value:
    if isinstance(x, Value) and isinstance(x.type, SharedType):
        return t.value(ops.SharedReshape, x, reshaped(x.type.shape, shape))
    return t.value(ops.Reshape, x, reshaped(tile_type("reshape", x).shape, shape))


def reshaped(own: Shape, shape: Any) -> Shape:
    """Check a shape for the elements of another one; one extent may be -1."""
    size = prod(own)
    parts = list(shape) if isinstance(shape, (tuple, list)) else [shape]
    if parts.count(-1) == 1:
        rest = prod(static_int("each extent of the shape of reshape", p) for p in parts if p != -1)
        if rest <= 0 or size % rest:
            raise ShapeMismatch(
                f"reshape from {shape_text(own)} to {shape_text(parts)}: {size} is no multiple of {rest}"
            )
        parts[parts.index(-1)] = size // rest
    target = static_shape("reshape", parts)
    if prod(target) != size:
        raise ShapeMismatch(
            f"reshape from {shape_text(own)}, which has {size} elements, to {shape_text(target)}, "
            f"which has {prod(target)}",
            hint="a shape of as many elements; -1 stands for the extent that makes it so",
        )
    return target


@implements(functions.transpose)
def transpose(t: Tracer, x: Any, perm: Any) -> Value:
    if not isinstance(x, Value) or not isinstance(x.type, (RegisterType, SharedType)):
        raise TypeMismatch(
            f"transpose takes a tile or a shared tensor, not {describe(x)}", hint="x.T of a loaded tile"
        )
    rank = len(x.type.shape)
    order = (
        tuple(reversed(range(rank)))
        if perm is None
        else tuple(static_axis("transpose", p, rank) for p in perm)
    )
    if sorted(order) != list(range(rank)):
        raise ShapeMismatch(
            f"transpose takes each of the {rank} dimensions once, not {shape_text(order)}",
            hint="tilus.transpose(x, (1, 0))",
        )
    return t.value(ops.Transpose if isinstance(x.type, RegisterType) else ops.SharedPermute, x, order)


@implements(functions.concat)
def concat(t: Tracer, parts: Any, axis: Any) -> Value:
    if not isinstance(parts, (tuple, list)) or not parts:
        raise TypeMismatch(
            f"concat takes a list of tiles, not {describe(parts)}", hint="tilus.concat([a, b], axis=0)"
        )
    first = tile_type("concat", parts[0])
    for part in parts[1:]:
        type = tile_type("concat", part)
        if (type.dtype, type.shape) != (first.dtype, first.shape):
            raise ShapeMismatch(
                f"concat takes tiles of one dtype and shape, not {describe(parts[0])} and {describe(part)}",
                hint="x.to(...) or tilus.reshape before concat",
            )
    return t.value(ops.Concat, tuple(parts), static_axis("concat", axis, len(first.shape)))


@implements(functions.annotate_layout)
def annotate_layout(t: Tracer, x: Any, layout: Any) -> Value:
    chosen = register_layout(t, "annotate_layout", layout, tile_type("annotate_layout", x).shape)
    if chosen is None:
        raise TypeMismatch("annotate_layout takes a layout, not None", hint="tilus.spatial(8, 4).local(1, 2)")
    return t.value(ops.AnnotateLayout, x, chosen)


@implements(functions.item)
def item(t: Tracer, x: Any) -> Value:
    type = tile_type("item", x)
    if type.size != 1:
        raise ShapeMismatch(
            f"item takes a tile of one element, not {describe(x)}",
            hint="x[0, 0], or a reduction such as tilus.sum(x)",
        )
    return t.value(ops.Extract, x)


DOT_FLOATS = ("float16", "bfloat16", "tfloat32", "float64", "float8_e4m3", "float8_e5m2")
DOT_INTEGERS = ("int8", "uint8")
# Instructions multiply these by one another.
DOT_MIXED = (set(DOT_INTEGERS), {"float8_e4m3", "float8_e5m2"})


@implements(functions.dot)
def dot(t: Tracer, a: Any, b: Any, acc: Any, out_dtype: Any) -> Value:
    left, right = tile_type("dot", a), tile_type("dot", b)
    for type in (left, right):
        if type.dtype.name not in (*DOT_FLOATS, *DOT_INTEGERS):
            cast_to = "tfloat32" if type.dtype == float32 else "float16"
            raise TypeMismatch(
                f"dot multiplies {', '.join((*DOT_FLOATS, *DOT_INTEGERS))}, not {type.dtype}",
                hint=f"x.to(tilus.{cast_to}) before dot",
            )
    names = {left.dtype.name, right.dtype.name}
    if left.dtype != right.dtype and not any(names <= mixed for mixed in DOT_MIXED):
        raise TypeMismatch(
            f"dot multiplies tiles of one dtype, not {left.dtype} and {right.dtype}",
            hint="x.to(...) before dot",
        )
    if len(left.shape) != 2 or len(right.shape) != 2 or left.shape[1] != right.shape[0]:
        raise ShapeMismatch(
            f"dot multiplies [m, k] by [k, n], not {shape_text(left.shape)} by {shape_text(right.shape)}",
            hint="x.T for a transposed operand",
        )
    shape = (left.shape[0], right.shape[1])
    if out_dtype is not None:
        static_dtype("out_dtype of dot", out_dtype)
    if acc is None:
        chosen = out_dtype or accumulator_dtype(left.dtype)
        acc = t.value(ops.Splat, t.constant(0, chosen), shape)
    type = tile_type("acc of dot", acc)
    if type.shape != shape:
        raise ShapeMismatch(
            f"dot of {shape_text(left.shape)} and {shape_text(right.shape)} adds to a tile of shape "
            f"{shape_text(shape)}, not {shape_text(type.shape)}"
        )
    if out_dtype is not None and type.dtype != out_dtype:
        raise TypeMismatch(
            f"dot with an accumulator of {type.dtype} gives {type.dtype}, not {out_dtype}",
            hint="no out_dtype beside acc",
        )
    allowed = (
        ("float32", "float16") if left.dtype.name == "float16" else (accumulator_dtype(left.dtype).name,)
    )
    if type.dtype.name not in allowed:
        raise TypeMismatch(
            f"dot of {left.dtype} accumulates in {' or '.join(allowed)}, not {type.dtype}",
            hint=f"tilus.zeros(shape, tilus.{allowed[0]}) as the accumulator, and a cast after the loop",
        )
    return t.value(ops.Dot, a, b, acc)


def accumulator_dtype(dtype: DType) -> DType:
    """Return the dtype in which products of a dtype are summed."""
    if dtype.is_integer:
        return int32
    return float64 if dtype == float64 else float32


# Reductions and scans.


def reduce(t: Tracer, kind: str, x: Any, axis: Any, keepdims: Any) -> Any:
    """Emit a reduction along one axis, or along all."""
    type = tile_type(kind, x)
    if kind in ("any", "all"):
        if type.dtype != boolean:
            raise TypeMismatch(
                f"{kind} takes a boolean tile, not {describe(x)}", hint="a comparison, such as x > 0"
            )
    elif kind in ("and", "or", "xor"):
        require_integer(f"a reduction by {kind}", type.dtype)
    else:
        require_arithmetic(kind, type.dtype)
    rank = len(type.shape)
    if axis is None and kind in ("argmax", "argmin") and rank != 1:
        raise ShapeMismatch(
            f"{kind} of a tile of {rank} dimensions takes an axis", hint=f"tilus.{kind}(x, axis={rank - 1})"
        )
    axes = range(rank) if axis is None else [static_axis(kind, axis, rank)]
    for along in axes:
        x = t.value(ops.Reduce, x, along, kind)
    if keepdims:
        return x
    for along in reversed(axes):
        x = without_axis(t, x, along)
    return x


def of_sequence(t: Tracer, x: Any, join: Callable[[Any, Any], Any]) -> Any:
    """Join the parts of a list from left to right, as Python's own functions do."""
    parts = list(x)
    if not parts:
        raise ShapeMismatch("an empty list", hint="a list of one value at least")
    result = parts[0]
    for part in parts[1:]:
        result = join(result, part)
    return result


@implements(functions.sum)
def sum_(t: Tracer, x: Any, axis: Any, keepdims: Any) -> Any:
    if isinstance(x, (tuple, list)):
        return of_sequence(
            t, x, lambda a, b: a + b if is_number(a) and is_number(b) else binary(t, "+", a, b)
        )
    return reduce(t, "sum", x, axis, keepdims)


@implements(functions.any)
def any_(t: Tracer, x: Any, axis: Any, keepdims: Any) -> Any:
    if isinstance(x, (tuple, list)) and not any(isinstance(part, Value) for part in x):
        return any(x)
    return reduce(t, "any", x, axis, keepdims)


@implements(functions.all)
def all_(t: Tracer, x: Any, axis: Any, keepdims: Any) -> Any:
    if isinstance(x, (tuple, list)) and not any(isinstance(part, Value) for part in x):
        return all(x)
    return reduce(t, "all", x, axis, keepdims)


@implements(functions.argmax)
def argmax(t: Tracer, x: Any, axis: Any, keepdims: Any) -> Any:
    return reduce(t, "argmax", x, axis, keepdims)


@implements(functions.argmin)
def argmin(t: Tracer, x: Any, axis: Any, keepdims: Any) -> Any:
    return reduce(t, "argmin", x, axis, keepdims)


def extremum(t: Tracer, kind: str, x: Any, others: tuple[Any, ...], axis: Any, keepdims: Any) -> Any:
    """Emit `max` or `min`, which reduce one tile or compare several values."""
    from tilus.lang.semantics.elementwise import extreme

    if isinstance(x, (tuple, list)) and not others:
        return of_sequence(t, x, lambda a, b: extreme(t, kind, a, b))
    if others:
        if axis is not None or keepdims:
            raise TypeMismatch(
                f"{kind} of several values has no axis", hint=f"tilus.{kind}(x, axis=0) to reduce one tile"
            )
        for other in others:
            x = extreme(t, kind, x, other)
        return x
    if is_number(x) or is_scalar(x):
        raise TypeMismatch(f"{kind} of one value takes a tile, not {describe(x)}", hint=f"tilus.{kind}(a, b)")
    return reduce(t, kind, x, axis, keepdims)


@implements(functions.max)
def max_(t: Tracer, x: Any, others: Any, axis: Any, keepdims: Any) -> Any:
    return extremum(t, "max", x, others, axis, keepdims)


@implements(functions.min)
def min_(t: Tracer, x: Any, others: Any, axis: Any, keepdims: Any) -> Any:
    return extremum(t, "min", x, others, axis, keepdims)


@implements(functions.reduce)
def reduce_by(t: Tracer, x: Any, axis: Any, kind: Any, keepdims: Any) -> Any:
    if isinstance(kind, InlineFunction):
        made = combined(t, "reduce", x, axis, kind, False)
        if keepdims:
            return made
        if isinstance(made, tuple):
            return tuple(
                without_axis(t, part, static_axis("reduce", axis, len(part.type.shape))) for part in made
            )
        return without_axis(t, made, static_axis("reduce", axis, len(made.type.shape)))
    static_choice("the kind of reduce", kind, ops.tile.REDUCTIONS)
    return reduce(t, kind, x, axis, keepdims)


@implements(functions.prod)
def product(t: Tracer, x: Any, axis: Any, keepdims: Any) -> Any:
    return reduce(t, "prod", x, axis, keepdims)


@implements(functions.softmax)
def softmax(t: Tracer, x: Any, axis: Any) -> Value:
    type = tile_type("softmax", x)
    require_float("softmax", type.dtype)
    along = static_axis("softmax", axis, len(type.shape))
    largest = t.value(ops.Reduce, x, along, "max")
    powers = t.value(ops.Unary, "exp", binary(t, "-", x, largest))
    return binary(t, "/", powers, t.value(ops.Reduce, powers, along, "sum"))


@implements(functions.gather)
def gather(t: Tracer, x: Any, indices: Any, axis: Any) -> Value:
    own, wanted = tile_type("gather", x), tile_type("the indices of gather", indices)
    along = static_axis("gather", axis, len(own.shape))
    require_integer("the indices of gather", wanted.dtype)
    expected = tuple(w if dim == along else n for dim, (n, w) in enumerate(zip(own.shape, wanted.shape)))
    if len(wanted.shape) != len(own.shape) or wanted.shape != expected:
        raise ShapeMismatch(
            f"gather from {shape_text(own.shape)} along axis {along} by indices of shape {shape_text(wanted.shape)}",
            hint="indices of the tile's shape but for the axis",
        )
    return through_shared(t, x, along, indices)


@implements(functions.scan)
def scan(t: Tracer, x: Any, axis: Any, kind: Any, exclusive: Any) -> Any:
    if isinstance(kind, InlineFunction):
        if exclusive:
            raise TypeMismatch("a scan by a function leaves no element out", hint="exclusive=False")
        return combined(t, "scan", x, axis, kind, True)
    type = tile_type("scan", x)
    if kind not in ops.tile.SCANS:
        raise TypeMismatch(
            f"scan is one of {', '.join(ops.tile.SCANS)}, not {describe(kind)}",
            hint="tilus.scan(x, 0, 'sum')",
        )
    if kind in ("and", "or", "xor"):
        if not type.dtype.is_integer:
            raise TypeMismatch(
                f"scan by {kind} takes an integer tile, not {describe(x)}", hint="x.to(tilus.int32)"
            )
    require_arithmetic("scan", type.dtype)
    return t.value(ops.Scan, x, static_axis("scan", axis, len(type.shape)), kind, bool(exclusive))


@implements(functions.cumsum)
def cumsum(t: Tracer, x: Any, axis: Any) -> Value:
    return scan(t, x, axis, "sum", False)


@implements(functions.cumprod)
def cumprod(t: Tracer, x: Any, axis: Any) -> Value:
    return scan(t, x, axis, "prod", False)
