"""Translations of atomic updates."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from tilus.dtypes import DType, int32
from tilus.errors import ShapeMismatch, TypeMismatch
from tilus.ir import GlobalType, SharedType, Value, ops
from tilus.lang import functions
from tilus.lang.promotion import is_number, require_integer
from tilus.lang.semantics.arithmetic import binary, compare, convert
from tilus.lang.semantics.memory import index_tiles, integers, mask_for, memory_type
from tilus.lang.semantics.registry import implements
from tilus.lang.semantics.shapes import (
    Shape,
    as_tile,
    broadcast,
    operand_shape,
    static_choice,
    static_int,
    tile_type,
)

if TYPE_CHECKING:
    from tilus.lang.frontend.tracer import Tracer

ORDERS = ("relaxed", "acquire", "release", "acq_rel")
SCOPES = ("block", "cluster", "device", "system")
# PTX ISA, atom: what each operation takes.
WORDS = ("int32", "uint32", "int64", "uint64")
DTYPES = {
    "add": (*WORDS, "float16", "bfloat16", "float32", "float64"),
    "min": WORDS, "max": WORDS, "and": WORDS, "or": WORDS, "xor": WORDS,
    "exch": (*WORDS, "float32", "float64"), "cas": (*WORDS, "float32", "float64"),
}  # fmt: skip


def atomic(
    t: Tracer,
    kind: str,
    target: object,
    value: object,
    compare: object,
    offsets: object,
    indices: object,
    mask: object,
    order: object,
    scope: object,
) -> Value:
    """Emit an atomic update at index tiles, or of the tile at offsets."""
    what = f"atomic_{kind}"
    type = memory_type(what, target)
    assert isinstance(target, Value)
    if type.dtype.name not in DTYPES[kind]:
        names = ", ".join(DTYPES[kind])
        raise TypeMismatch(f"{what} updates {names}, not {type.dtype}", hint=f"a tensor of {DTYPES[kind][0]}")
    static_choice(f"order of {what}", order, ORDERS)
    static_choice(f"scope of {what}", scope, SCOPES)
    if scope == "cluster" and t.cluster == (1, 1, 1):
        scope = "block"
    if (offsets is None) == (indices is None):
        raise TypeMismatch(
            f"{what} takes either offsets or indices", hint=f"tilus.{what}(c, x, offsets=(i, j))"
        )
    if indices is not None:
        tiles, shape = index_tiles(t, what, type, indices)
        scalar = not any(
            operand_shape(part) for part in (indices if isinstance(indices, (tuple, list)) else (indices,))
        )
    else:
        own = operand_shape(value)
        shape, scalar = own or (1,), own is None
        tiles = tiles_at(t, what, type, offsets, shape)
    operand = number_or_tile(t, what, value, shape, type.dtype)
    expected = None if compare is None else number_or_tile(t, what, compare, shape, type.dtype)
    old = t.value(
        ops.Atomic,
        kind,
        target,
        operand,
        tiles,
        expected,
        mask_for(t, what, mask, shape),
        order=order,
        scope=scope,
    )
    return t.value(ops.Extract, old) if scalar else old


@implements(functions.histogram)
def histogram(t: Tracer, x: Any, bins: Any, mask: Any) -> Value:
    type = tile_type("histogram", x)
    require_integer("histogram", type.dtype)
    count = static_int("bins of histogram", bins, 1)
    places = convert(t, x, int32) if type.dtype.bits < 32 else x
    inside = t.value(ops.Binary, "and", compare(t, ">=", places, 0), compare(t, "<", places, count))
    wanted = mask_for(t, "histogram", mask, type.shape)
    if wanted is not None:
        inside = t.value(ops.Binary, "and", inside, wanted)
    counts = t.value(ops.AllocShared, int32, (count,))
    t.emit(ops.StoreShared, counts, t.value(ops.Splat, t.constant(0, int32), (count,)))
    atomic(t, "add", counts, 1, None, None, convert(t, places, int32), inside, "relaxed", "block")
    return t.value(ops.LoadShared, counts)


def number_or_tile(t: Tracer, what: str, value: object, shape: Shape, dtype: DType) -> Value:
    """Return an operand as a tile of the target's dtype."""
    if is_number(value):
        return broadcast(t, t.constant(value, dtype), shape)  # type: ignore[arg-type]
    return as_tile(t, what, value, shape, dtype)


def tiles_at(
    t: Tracer, what: str, tensor: GlobalType | SharedType, offsets: object, shape: Shape
) -> tuple[Value, ...]:
    """Return the index tiles of the tile of a shape at offsets; its dimensions are the tensor's last."""
    starts = integers(t, f"offsets of {what}", offsets)
    rank = tensor.rank if isinstance(tensor, GlobalType) else len(tensor.shape)
    if len(starts) != rank:
        raise ShapeMismatch(
            f"{what} takes {rank} offset{'s' if rank != 1 else ''}, one for each dimension, not {len(starts)}"
        )
    if len(shape) > rank:
        raise ShapeMismatch(
            f"{what} of a tile of {len(shape)} dimensions on a tensor of {rank}",
            hint="a tile of as many dimensions or less",
        )
    tiles = []
    for dimension, start in enumerate(starts):
        axis = dimension - (rank - len(shape))
        if axis < 0:
            tiles.append(t.value(ops.Splat, start, shape))
        else:
            tiles.append(binary(t, "+", start, t.value(ops.Iota, shape, axis)))
    return tuple(tiles)


def declare(stub: Callable[..., Any], kind: str) -> None:
    """Declare one atomic function."""

    @implements(stub)
    def implementation(
        t: Tracer, target: Any, value: Any, offsets: Any, indices: Any, mask: Any, order: Any, scope: Any
    ) -> Value:
        return atomic(t, kind, target, value, None, offsets, indices, mask, order, scope)


for _stub in (
    functions.atomic_add, functions.atomic_min, functions.atomic_max, functions.atomic_and, functions.atomic_or,
    functions.atomic_xor, functions.atomic_exch,
):  # fmt: skip
    declare(_stub, _stub.__name__.removeprefix("atomic_"))


@implements(functions.atomic_cas)
def atomic_cas(
    t: Tracer,
    target: Any,
    compare: Any,
    value: Any,
    offsets: Any,
    indices: Any,
    mask: Any,
    order: Any,
    scope: Any,
) -> Value:
    return atomic(t, "cas", target, value, compare, offsets, indices, mask, order, scope)
