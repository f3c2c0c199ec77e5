"""Values that pass through run-time control flow: what a name may hold before, inside and after it.

A name's value is taken apart into slots (scalars, tiles and pointers, which SSA values carry) and what is fixed at
compile time. Python numbers become scalars where control flow makes them run-time values.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from tilus.dtypes import DType
from tilus.errors import TypeMismatch
from tilus.ir import PointerType, RegisterType, ScalarType, Type, Value, ops
from tilus.lang.diagnostics import describe
from tilus.lang.frontend.tracer import Tracer
from tilus.lang.promotion import Number, fits, is_number, number_dtype


@dataclass(frozen=True)
class Slot:
    """A run-time value of a type, without layout."""

    type: Type


@dataclass(frozen=True)
class Fixed:
    """A value that control flow may not change."""

    value: object


@dataclass(frozen=True)
class Group:
    """A tuple or list of parts."""

    kind: type
    parts: tuple[Part, ...]


Part = Slot | Fixed | Group


def carriable(value: object) -> bool:
    """Tell whether an SSA value can stand for a value after a loop or an `if`."""
    return isinstance(value, Value) and isinstance(value.type, (ScalarType, RegisterType, PointerType))


def plain_type(type: Type) -> Type:
    """Return a type without what control flow may lose: a tile's layout, a pointer's alignment."""
    if isinstance(type, RegisterType):
        return replace(type, layout=None)
    if isinstance(type, PointerType):
        return PointerType(type.dtype)
    return type


def same_constant(a: object, b: object) -> bool:
    """Tell whether two compile-time values are one and the same."""
    if a is b:
        return True
    if isinstance(a, Value) or isinstance(b, Value) or type(a) is not type(b):
        return False
    try:
        return bool(a == b)
    except Exception:
        return False


def shape_of_start(value: object) -> Part:
    """Return what a loop carries for a name that has this value before it."""
    if is_number(value):
        return Slot(ScalarType(number_dtype(value)))  # type: ignore[arg-type]
    if carriable(value):
        assert isinstance(value, Value)
        return Slot(plain_type(value.type))
    if isinstance(value, (tuple, list)):
        return Group(type(value), tuple(shape_of_start(part) for part in value))
    return Fixed(value)


def shape_of_merge(name: str, a: object, b: object, line: int) -> Part:
    """Return what an `if` at a line gives for a name that its branches leave with two values."""
    if same_constant(a, b):
        return Fixed(a)
    if isinstance(a, (tuple, list)) and type(a) is type(b) and len(a) == len(b):
        pairs = zip(a, b, strict=True)
        return Group(type(a), tuple(shape_of_merge(name, x, y, line) for x, y in pairs))
    dtype = merged_dtype(a, b)
    if dtype is not None:
        return Slot(ScalarType(dtype))
    if carriable(a) and carriable(b):
        assert isinstance(a, Value)
        assert isinstance(b, Value)
        if plain_type(a.type) == plain_type(b.type):
            return Slot(plain_type(a.type))
    raise merge_error(name, a, b, line)


def merged_dtype(a: object, b: object) -> DType | None:
    """Return the dtype of a scalar that is one of two numbers or scalars, if they agree."""
    dtypes = [v.type.dtype for v in (a, b) if isinstance(v, Value) and isinstance(v.type, ScalarType)]
    numbers: list[Number] = [v for v in (a, b) if is_number(v)]  # type: ignore[misc]
    if len(dtypes) + len(numbers) < 2:
        return None
    if not dtypes:
        kinds = {type(number) for number in numbers}
        if bool in kinds and len(kinds) > 1:
            return None
        dtypes = [max(map(number_dtype, numbers), key=lambda d: (d.is_float, d.bits))]
    if len(set(dtypes)) > 1:
        return None
    (dtype,) = set(dtypes)
    whole = all(isinstance(n, bool) == dtype.is_boolean and fits(n, dtype) for n in numbers)
    return dtype if whole else None


def merge_error(name: str, a: object, b: object, line: int) -> TypeMismatch:
    """Return the error for a name that an `if` leaves with two values that one SSA value cannot be."""
    if isinstance(a, Value) and isinstance(b, Value) and not (carriable(a) and carriable(b)):
        return TypeMismatch(
            f"{name} would be one of two tensors, {describe(a)} or {describe(b)}, which the condition in line {line} "
            "decides at run time",
            hint="an index computed by the condition, as in s[tilus.where(c, 0, 1)], or the use in both branches",
        )
    hint = "a value of one type in both branches, with x.to(...) where the dtypes differ"
    if not isinstance(a, Value) and not isinstance(b, Value):
        hint = "a condition known at compile time, or numbers"
    return TypeMismatch(
        f"{name} is {describe(a)} where the condition in line {line} holds, and {describe(b)} where it does not",
        hint=hint,
    )


def take_apart(t: Tracer, part: Part, value: object, complain: Any) -> list[Value]:
    """Return the SSA values of the slots of a value; `complain(expected, found)` makes the error if it differs."""
    if isinstance(part, Fixed):
        if not same_constant(part.value, value):
            raise complain(part.value, value)
        return []
    if isinstance(part, Group):
        if type(value) is not part.kind or len(value) != len(part.parts):  # type: ignore[arg-type]
            raise complain(part, value)
        values = zip(part.parts, value, strict=True)  # type: ignore[call-overload]
        return [v for p, x in values for v in take_apart(t, p, x, complain)]
    if is_number(value) and isinstance(part.type, ScalarType):
        dtype = part.type.dtype
        if isinstance(value, bool) != dtype.is_boolean or not fits(value, dtype):  # type: ignore[arg-type]
            raise complain(part, value)
        return [t.constant(value, dtype)]  # type: ignore[arg-type]
    if not isinstance(value, Value) or plain_type(value.type) != part.type:
        raise complain(part, value)
    if isinstance(value.type, PointerType) and value.type != part.type:
        return [t.value(ops.PointerAdd, value, t.constant(0))]
    return [value]


def put_together(part: Part, values: Sequence[Value]) -> object:
    """Return the value of a part from the SSA values of its slots."""
    rest = list(values)

    def build(part: Part) -> object:
        if isinstance(part, Fixed):
            return part.value
        if isinstance(part, Slot):
            return rest.pop(0)
        return part.kind(build(p) for p in part.parts)

    return build(part)


def slots(part: Part) -> list[Type]:
    """Return the types of the slots of a part."""
    if isinstance(part, Slot):
        return [part.type]
    if isinstance(part, Group):
        return [type for p in part.parts for type in slots(p)]
    return []


def describe_part(part: object) -> str:
    """Say what a part stands for."""
    if isinstance(part, Slot):
        return describe(Value(part.type))
    if isinstance(part, Fixed):
        return describe(part.value)
    if isinstance(part, Group):
        return f"a {part.kind.__name__} of {len(part.parts)}"
    return describe(part)
