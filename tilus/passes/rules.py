"""What canonicalisation knows about single operations: constants, and operations that change nothing.

A rule returns a value that is there already, another operation with the same results, a constant, or None.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Protocol

from tilus.dtypes import DType, boolean
from tilus.errors import Location
from tilus.ir import ops
from tilus.ir.core import Operation, Value
from tilus.ir.types import GlobalType, RegisterType, ScalarType
from tilus.passes.folding import Number, canonical, fold_binary, fold_cast, fold_compare, fold_unary

_COMMUTATIVE = ("add", "mul", "min", "max", "and", "or", "xor")
# Of integers; regrouping floats would round differently.
_ASSOCIATIVE = ("add", "mul", "min", "max", "and", "or", "xor")


class Facts(Protocol):
    """What a rule may ask about the program before its operation."""

    constants: dict[Value, Number]
    definitions: dict[Value, Operation]

    def constant(self, value: Number, dtype: DType, loc: Location | None) -> Value:
        """Return a scalar constant."""
        ...


Found = Value | Operation | int | float | bool | None
Rule = Callable[[Facts, Any], Found]

RULES: dict[type[Operation], Rule] = {}


def rule(*classes: type[Operation]) -> Callable[[Rule], Rule]:
    """Declare the rule of some operations."""

    def declare(function: Rule) -> Rule:
        RULES.update(dict.fromkeys(classes, function))
        return function

    return declare


def _dtype(value: Value) -> DType:
    assert isinstance(value.type, (ScalarType, RegisterType))
    return value.type.dtype


@rule(ops.Constant)
def _constant(facts: Facts, op: ops.Constant) -> Found:
    value = canonical(op.value, op.dtype)
    if value is not None:
        facts.constants[op.result] = value
    return None


@rule(ops.Splat)
def _splat(facts: Facts, op: ops.Splat) -> Found:
    value = facts.constants.get(op.scalar)
    if value is not None:
        facts.constants[op.result] = value
    return None


@rule(ops.Extract)
def _extract(facts: Facts, op: ops.Extract) -> Found:
    made = facts.definitions.get(op.tile)
    return made.scalar if isinstance(made, ops.Splat) else facts.constants.get(op.tile)


@rule(ops.Unary)
def _unary(facts: Facts, op: ops.Unary) -> Found:
    dtype = _dtype(op.x)
    known = facts.constants.get(op.x)
    if known is not None:
        return fold_unary(op.kind, known, dtype)
    inner = facts.definitions.get(op.x)
    if isinstance(inner, ops.Unary) and inner.kind == op.kind and op.kind in ("neg", "not", "brev"):
        return inner.x
    if isinstance(inner, ops.Unary) and op.kind == "abs" and inner.kind in ("abs", "neg"):
        return op.x if inner.kind == "abs" else op.replace(x=inner.x)
    return None


@rule(ops.Binary)
def _binary(facts: Facts, op: ops.Binary) -> Found:
    dtype = _dtype(op.a)
    a, b = facts.constants.get(op.a), facts.constants.get(op.b)
    if a is not None and b is not None:
        return fold_binary(op.kind, a, b, dtype)
    swapped = a is not None and op.kind in _COMMUTATIVE
    if swapped:
        op, b = op.replace(a=op.b, b=op.a), a
    if b is None:
        return _same_operands(op, dtype) if op.a is op.b else None
    found = _with_float(op, b) if dtype.is_float else _with_integer(op, b, dtype)
    if found is None and dtype.is_integer and op.kind in _ASSOCIATIVE:
        found = _regroup(facts, op, b, dtype)
    return op if found is None and swapped else found


def _same_operands(op: ops.Binary, dtype: DType) -> Found:
    if op.kind in ("min", "max", "and", "or"):
        return op.a
    if op.kind in ("sub", "xor") and not dtype.is_float:
        return False if dtype == boolean else 0
    return None


def _with_float(op: ops.Binary, b: Number) -> Found:
    """x * 1, x / 1, x - 0 and x + -0 are exact, x + 0 is not: it turns -0 into 0."""
    one = op.kind in ("mul", "div") and b == 1
    zero = (
        op.kind in ("add", "sub") and b == 0 and math.copysign(1.0, b) == (1.0 if op.kind == "sub" else -1.0)
    )
    return op.a if one or zero else None


def _with_integer(op: ops.Binary, b: Number, dtype: DType) -> Found:
    ones = True if dtype == boolean else -1 if dtype.is_signed else dtype.code_mask
    if b == 0:
        if op.kind in ("add", "sub", "shl", "shr", "or", "xor"):
            return op.a
        if op.kind in ("mul", "and"):
            return b
    if b == 1:
        if op.kind in ("mul", "floordiv"):
            return op.a
        if op.kind == "mod":
            return 0
    if b == ones:
        if op.kind == "and":
            return op.a
        if op.kind == "or":
            return b
    return None


def _regroup(facts: Facts, op: ops.Binary, b: Number, dtype: DType) -> Found:
    """(x + 1) + 2 is x + 3, also where it wraps."""
    inner = facts.definitions.get(op.a)
    if not (
        isinstance(inner, ops.Binary) and inner.kind == op.kind and isinstance(op.result.type, ScalarType)
    ):
        return None
    first = facts.constants.get(inner.b)
    joined = None if first is None else fold_binary(op.kind, first, b, dtype)
    if joined is None:
        return None
    return op.replace(a=inner.a, b=facts.constant(joined, dtype, op.loc))


@rule(ops.Compare)
def _compare(facts: Facts, op: ops.Compare) -> Found:
    a, b = facts.constants.get(op.a), facts.constants.get(op.b)
    if a is not None and b is not None:
        return fold_compare(op.kind, a, b)
    if op.a is op.b and not _dtype(op.a).is_float:
        return op.kind in ("eq", "le", "ge")
    return None


@rule(ops.Select)
def _select(facts: Facts, op: ops.Select) -> Found:
    known = facts.constants.get(op.cond)
    if known is not None:
        return op.a if known else op.b
    return op.a if op.a is op.b else None


@rule(ops.Cast)
def _cast(facts: Facts, op: ops.Cast) -> Found:
    if op.arranged:
        return None
    source = _dtype(op.x)
    if source == op.dtype:
        return op.x
    known = facts.constants.get(op.x)
    return None if known is None else fold_cast(known, source, op.dtype)


@rule(ops.Assume)
def _assume(facts: Facts, op: ops.Assume) -> Found:
    known = facts.constants.get(op.value)
    if op.divisor == 1 or (known is not None and known % op.divisor == 0):
        return op.value
    return None


@rule(ops.Dim)
def _dim(facts: Facts, op: ops.Dim) -> Found:
    assert isinstance(op.tensor.type, GlobalType)
    extent = op.tensor.type.dims[op.axis]
    if isinstance(extent, int):
        return extent
    made = facts.definitions.get(op.tensor)
    return made.shape[op.axis] if isinstance(made, ops.GlobalView) else None


@rule(ops.Stride)
def _stride(facts: Facts, op: ops.Stride) -> Found:
    assert isinstance(op.tensor.type, GlobalType)
    extent = op.tensor.type.strides[op.axis]
    if isinstance(extent, int):
        return extent
    made = facts.definitions.get(op.tensor)
    return made.strides[op.axis] if isinstance(made, ops.GlobalView) else None


@rule(ops.PointerOf)
def _pointer_of(facts: Facts, op: ops.PointerOf) -> Found:
    made = facts.definitions.get(op.tensor)
    return made.pointer if isinstance(made, ops.GlobalView) else None


@rule(ops.ConvertLayout)
def _convert_layout(facts: Facts, op: ops.ConvertLayout) -> Found:
    inner = facts.definitions.get(op.x)
    # Planned scratch memory is made for the conversion that stands here.
    if isinstance(inner, ops.ConvertLayout) and op.scratch is None:
        op = op.replace(x=inner.x)
    return op.x if op.x.type == op.result.type else op


@rule(ops.Broadcast, ops.Reshape, ops.View, ops.SliceTile)
def _same_type(facts: Facts, op: ops.Broadcast | ops.Reshape | ops.View | ops.SliceTile) -> Found:
    # Equal types, layouts included; before layout inference a new layout could still come out of it.
    return op.x


@rule(ops.Transpose)
def _transpose(facts: Facts, op: ops.Transpose) -> Found:
    return op.x if op.perm == tuple(range(len(op.perm))) else None


@rule(ops.Concat)
def _concat(facts: Facts, op: ops.Concat) -> Found:
    return op.parts[0] if len(op.parts) == 1 else None
