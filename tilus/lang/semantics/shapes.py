"""Arguments that are known at compile time: shapes, axes, dtypes; and NumPy's rule for broadcasting."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tilus.dtypes import DType
from tilus.dtypes import dtype as dtype_named
from tilus.errors import ShapeMismatch, TypeMismatch
from tilus.ir import RegisterType, ScalarType, Value, ops
from tilus.lang.diagnostics import describe, shape_text
from tilus.lang.promotion import is_number, number_dtype

if TYPE_CHECKING:
    from tilus.lang.frontend.tracer import Tracer

Shape = tuple[int, ...]


def static_int(what: str, value: object, minimum: int | None = None) -> int:
    """Check an integer that is known at compile time."""
    if isinstance(value, bool) or not isinstance(value, int):
        found = (
            f"{describe(value)}, which is known at run time only"
            if isinstance(value, Value)
            else describe(value)
        )
        raise TypeMismatch(
            f"{what} is an int known at compile time, not {found}", hint="a literal or a constexpr parameter"
        )
    if minimum is not None and value < minimum:
        raise TypeMismatch(f"{what} is {minimum} or more, not {value}", hint=f"{minimum} or more")
    return value


def static_bool(what: str, value: object) -> bool:
    """Check a truth value that is known at compile time."""
    if not isinstance(value, bool):
        raise TypeMismatch(f"{what} is True or False, not {describe(value)}", hint="True or False")
    return value


def static_choice(what: str, value: object, choices: tuple[str, ...]) -> str:
    """Check a word from a list."""
    if not isinstance(value, str) or value not in choices:
        words = ", ".join(map(repr, choices))
        raise TypeMismatch(f"{what} takes a word of a list, not {describe(value)}", hint=f"one of {words}")
    return value


def dtype_hint(value: object) -> str:
    """Return which dtype to write for a text, or for a type of torch or NumPy."""
    name = str(getattr(value, "__name__", value)).removeprefix("torch.")
    try:
        return f"tilus.{dtype_named(name)}"
    except ValueError:
        return "a dtype such as tilus.float16"


def static_dtype(what: str, value: object) -> DType:
    """Check a dtype."""
    if not isinstance(value, DType):
        raise TypeMismatch(f"{what} takes a dtype, not {describe(value)}", hint=dtype_hint(value))
    return value


def static_shape(what: str, value: object) -> Shape:
    """Check a shape; an int is a shape of one dimension."""
    parts = list(value) if isinstance(value, (tuple, list)) else [value]
    shape = tuple(static_int(f"each extent of the shape of {what}", part) for part in parts)
    if not shape:
        raise ShapeMismatch(f"{what} takes a shape of one dimension or more", hint="(1,)")
    if any(extent < 1 for extent in shape):
        raise ShapeMismatch(
            f"{what} takes extents of 1 or more, not {shape_text(shape)}", hint="extents of 1 or more"
        )
    return shape


def static_axis(what: str, value: object, rank: int) -> int:
    """Check an axis; a negative one counts from the end."""
    axis = static_int(f"the axis of {what}", value)
    if not -rank <= axis < rank:
        raise ShapeMismatch(
            f"{what} along axis {axis} of a tile of {rank} dimension{'s' if rank != 1 else ''}",
            hint=f"an axis from {-rank} to {rank - 1}",
        )
    return axis % rank


def as_sequence(value: object) -> tuple[Any, ...]:
    """Return a tuple or list as a tuple, and anything else as a tuple of one."""
    return tuple(value) if isinstance(value, (tuple, list)) else (value,)


def tile_type(what: str, value: object) -> RegisterType:
    """Return the type of a tile, or say what was found instead."""
    if isinstance(value, Value) and isinstance(value.type, RegisterType):
        return value.type
    hint = "tilus.full(shape, x) to make a tile of a scalar" if is_number(value) or is_scalar(value) else None
    if isinstance(value, Value) and hint is None:
        hint = "tilus.load(...) to bring it into registers"
    raise TypeMismatch(f"{what} takes a tile, not {describe(value)}", hint=hint)


def is_scalar(value: object) -> bool:
    """Tell whether a value is a run-time scalar."""
    return isinstance(value, Value) and isinstance(value.type, ScalarType)


def is_tile(value: object) -> bool:
    """Tell whether a value is a tile."""
    return isinstance(value, Value) and isinstance(value.type, RegisterType)


def operand_dtype(what: str, value: object) -> DType:
    """Return the dtype of a number, scalar or tile."""
    if is_number(value):
        return number_dtype(value)  # type: ignore[arg-type]
    if isinstance(value, Value) and isinstance(value.type, (ScalarType, RegisterType)):
        return value.type.dtype
    hint = "tilus.load(...) to bring it into registers" if isinstance(value, Value) else "a number"
    if type(value).__module__.partition(".")[0] in ("torch", "numpy"):
        hint = "a parameter of the kernel for what is computed elsewhere, such as x: Tensor[float32, 'n']"
    raise TypeMismatch(f"{what} takes tiles, scalars and numbers, not {describe(value)}", hint=hint)


def operand_shape(value: object) -> Shape | None:
    """Return the shape of a tile, and None for scalars and numbers."""
    return value.type.shape if isinstance(value, Value) and isinstance(value.type, RegisterType) else None


def broadcast_shape(what: str, shapes: list[Shape]) -> Shape:
    """Return the common shape of NumPy's broadcasting."""
    rank = max(map(len, shapes))
    result = []
    for axis in range(-rank, 0):
        extents = {shape[axis] for shape in shapes if -axis <= len(shape)} - {1}
        if len(extents) > 1:
            texts = " and ".join(shape_text(s) for s in shapes)
            raise ShapeMismatch(
                f"{what} takes tiles whose shapes agree, not {texts}, which differ in dimension {axis}",
                hint="extents that are equal, or 1; x[:, None] and x[None, :] insert a dimension of 1",
            )
        result.append(extents.pop() if extents else 1)
    return tuple(result)


def broadcast(t: Tracer, value: Value, shape: Shape | None) -> Value:
    """Repeat a scalar or tile to a shape that fits."""
    if shape is None:
        return value
    if isinstance(value.type, ScalarType):
        return t.value(ops.Splat, value, shape)
    assert isinstance(value.type, RegisterType)
    own = value.type.shape
    for _ in range(len(shape) - len(own)):
        value, own = t.value(ops.ExpandDims, value, 0), (1, *own)
    return value if own == shape else t.value(ops.Broadcast, value, shape)


def as_tile(t: Tracer, what: str, value: object, shape: Shape, dtype: DType) -> Value:
    """Return a number, scalar or tile as a tile of a shape and a dtype; run-time values are not converted."""
    found = operand_dtype(what, value)
    if is_number(value):
        return t.value(ops.Splat, t.constant(value, dtype), shape)  # type: ignore[arg-type]
    assert isinstance(value, Value)
    if found != dtype:
        hint = "a comparison, such as i < n" if dtype.is_boolean else f"x.to(tilus.{dtype})"
        raise TypeMismatch(f"{what} takes {dtype}, not {describe(value)}", hint=hint)
    own = operand_shape(value)
    if own is not None and broadcast_shape(what, [own, shape]) != shape:
        raise ShapeMismatch(
            f"{what} takes a tile of shape {shape_text(shape)}, not {shape_text(own)}",
            hint="tilus.reshape or a slice",
        )
    return broadcast(t, value, shape)
