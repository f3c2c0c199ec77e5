"""Translations of warpgroup matrix multiplication and bulk stores."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tilus.dtypes import DType, float32, int32
from tilus.errors import ShapeMismatch, TypeMismatch
from tilus.ir import RegisterType, SharedType, Value, ops
from tilus.lang import functions
from tilus.lang.diagnostics import describe, shape_text
from tilus.lang.semantics.memory import global_type, offsets_for, shared_type
from tilus.lang.semantics.registry import implements
from tilus.lang.semantics.shapes import static_choice, static_dtype, static_int, tile_type

if TYPE_CHECKING:
    from tilus.lang.frontend.tracer import Tracer


def accumulator(dtype: DType) -> DType:
    """Return the dtype in which products are accumulated."""
    return int32 if dtype.is_integer else float32


@implements(functions.dot_async)
def dot_async(t: Tracer, a: Any, b: Any, acc: Any, out_dtype: Any, over: Any) -> Value:
    right = shared_type("dot_async", b)
    if not isinstance(a, Value) or not isinstance(a.type, (RegisterType, SharedType)):
        raise TypeMismatch(
            f"dot_async takes a tile or a tensor in shared memory first, not {describe(a)}",
            hint="tilus.shared(...)",
        )
    left = a.type if isinstance(a.type, RegisterType) else shared_type("dot_async", a)
    if len(left.shape) != 2 or len(right.shape) != 2 or left.shape[1] != right.shape[0]:
        raise ShapeMismatch(
            f"dot_async multiplies [m, k] by [k, n], not {shape_text(left.shape)} by {shape_text(right.shape)}",
            hint="s.transpose() for a transposed operand",
        )
    fresh = acc is None
    if out_dtype is not None:
        static_dtype("out_dtype of dot_async", out_dtype)
    if over is not None:
        if not fresh:
            raise TypeMismatch(
                "dot_async takes an accumulator or a tile whose registers it may take, not both",
                hint="acc, to which the product is added, or over=, to which it is not",
            )
        acc = over
    elif fresh:
        chosen = out_dtype or accumulator(left.dtype)
        acc = t.value(ops.Splat, t.constant(0, chosen), (left.shape[0], right.shape[1]))
    name = "acc" if over is None else "over"
    type = tile_type(f"{name} of dot_async", acc)
    if out_dtype is not None and type.dtype != out_dtype:
        raise TypeMismatch(
            f"dot_async with an accumulator of {type.dtype} gives {type.dtype}, not {out_dtype}",
            hint=f"no out_dtype beside {name}",
        )
    return t.value(ops.DotAsync, a, b, acc, fresh)


@implements(functions.dot_wait)
def dot_wait(t: Tracer, tiles: Any, pending: Any) -> Any:
    for tile in tiles:
        tile_type("dot_wait", tile)
    made = t.emit(ops.DotWait, tuple(tiles), static_int("pending of dot_wait", pending, 0)).results
    return made[0] if len(made) == 1 else tuple(made)


@implements(functions.store_bulk)
def store_bulk(t: Tracer, target: Any, source: Any, offsets: Any, reduction: Any) -> None:
    tensor, shared = global_type("store_bulk", target), shared_type("store_bulk", source)
    if shared.dtype != tensor.dtype:
        raise TypeMismatch(
            f"store_bulk of a shared tensor of {shared.dtype} into a tensor of {tensor.dtype}",
            hint=f"tilus.shared(tilus.{tensor.dtype}, shape)",
        )
    static_choice("reduction of store_bulk", reduction, ("", "add", "min", "max", "and", "or", "xor"))
    t.emit(ops.StoreBulk, target, source, offsets_for(t, "store_bulk", tensor, offsets), reduction)


@implements(functions.bulk_commit)
def bulk_commit(t: Tracer) -> None:
    t.emit(ops.BulkCommit)


@implements(functions.bulk_wait)
def bulk_wait(t: Tracer, pending: Any, read: Any) -> None:
    t.emit(ops.BulkWait, static_int("pending of bulk_wait", pending, 0), bool(read))
