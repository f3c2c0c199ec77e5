"""Operators on scalars, tiles and numbers: promotion, broadcasting, and what each operator takes."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from tilus.dtypes import DType, boolean, int32, int64
from tilus.errors import ShapeMismatch, TypeMismatch
from tilus.ir import PointerType, RegisterType, ScalarType, Value, ops
from tilus.lang.diagnostics import describe
from tilus.lang.promotion import (
    Number,
    fits,
    is_number,
    promote,
    promote_number,
    require_arithmetic,
    require_float,
    require_integer,
    require_number,
)
from tilus.lang.semantics.shapes import broadcast, broadcast_shape, is_tile, operand_dtype, operand_shape

if TYPE_CHECKING:
    from tilus.lang.frontend.tracer import Tracer

INTEGER_POWERS = 64
"""The largest constant integer exponent that becomes multiplications."""


def convert(t: Tracer, value: Value, dtype: DType) -> Value:
    """Convert a scalar or tile unless it has the dtype."""
    if operand_dtype("a conversion", value) == dtype:
        return value
    return t.value(ops.Cast, value, dtype)


def common_dtype(symbol: str, values: list[object]) -> DType:
    """Return the dtype in which operands meet; at least one is a run-time value, or all are numbers."""
    runtime = [v for v in values if not is_number(v)]
    dtypes = [operand_dtype(symbol, v) for v in (runtime or values)]
    common = dtypes[0]
    for dtype in dtypes[1:]:
        common = promote(symbol, common, dtype)
    scalars_only = not any(is_tile(v) for v in runtime)
    for value in values:
        if runtime and is_number(value):
            number: Number = value  # type: ignore[assignment]
            common = promote_number(symbol, number, common)
            # A scalar is an address or a count as likely as data, and grows rather than refusing a literal.
            wider = scalars_only and common == int32 and isinstance(number, int) and not fits(number, int32)
            if wider and fits(number, int64):
                common = int64
    return common


def meet(t: Tracer, symbol: str, values: list[object], check: Callable[[str, DType], None]) -> list[Value]:
    """Bring operands to one dtype and one shape."""
    dtype = common_dtype(symbol, values)
    check(symbol, dtype)
    for value in values:
        if not is_number(value):
            check(symbol, operand_dtype(symbol, value))
    return unify(t, symbol, values, dtype)


def unify(t: Tracer, symbol: str, values: list[object], dtype: DType) -> list[Value]:
    """Convert operands to a dtype and broadcast them together."""
    shapes = [s for s in map(operand_shape, values) if s is not None]
    shape = broadcast_shape(symbol, shapes) if shapes else None
    made = []
    for value in values:
        if is_number(value):
            scalar = t.constant(value, dtype)  # type: ignore[arg-type]
        else:
            assert isinstance(value, Value)
            scalar = convert(t, value, dtype)
        made.append(broadcast(t, scalar, shape))
    return made


# The operators, by the symbol that the user writes.

ARITHMETIC = {"+": "add", "-": "sub", "*": "mul", "%": "mod"}
BITS = {"&": "and", "|": "or", "^": "xor"}
COMPARISONS = {"==": "eq", "!=": "ne", "<": "lt", "<=": "le", ">": "gt", ">=": "ge"}


def binary(t: Tracer, symbol: str, a: object, b: object) -> Value:
    """Emit a binary operator of which one operand at least is a run-time value."""
    if isinstance(a, Value) and isinstance(a.type, PointerType):
        return pointer_arithmetic(t, symbol, a, b)
    if isinstance(b, Value) and isinstance(b.type, PointerType):
        if symbol == "+":
            return pointer_arithmetic(t, symbol, b, a)
        raise TypeMismatch(f"{symbol} takes a pointer on its left only", hint="p + n or p - n")
    if symbol in ARITHMETIC:
        x, y = meet(t, symbol, [a, b], require_arithmetic)
        return t.value(ops.Binary, ARITHMETIC[symbol], x, y)
    if symbol in BITS:
        x, y = meet(t, symbol, [a, b], require_bits)
        return t.value(ops.Binary, BITS[symbol], x, y)
    if symbol == "/":
        return true_divide(t, a, b)
    if symbol == "//":
        return floor_divide(t, a, b)
    if symbol in ("<<", ">>"):
        return shift(t, symbol, a, b)
    if symbol == "**":
        return power(t, a, b)
    raise TypeMismatch(f"there is no operator {symbol} for {describe(a)} and {describe(b)}")


def require_bits(symbol: str, dtype: DType) -> None:
    """Allow booleans and integers."""
    if not dtype.is_boolean:
        require_integer(symbol, dtype)


def true_divide(t: Tracer, a: object, b: object) -> Value:
    """Emit `a / b` of floats."""
    if not common_dtype("/", [a, b]).is_float:
        raise TypeMismatch(
            f"/ divides floats, not {describe(a)} by {describe(b)}",
            hint="a // b for the quotient rounded down, or a.to(tilus.float32) / b",
        )
    x, y = meet(
        t, "/", [a, b], lambda symbol, dtype: None if dtype.is_integer else require_float(symbol, dtype)
    )
    return t.value(ops.Binary, "div", x, y)


def floor_divide(t: Tracer, a: object, b: object) -> Value:
    """Emit `a // b` of integers, rounded down as in Python."""
    if common_dtype("//", [a, b]).is_float:
        raise TypeMismatch(
            f"// divides integers, not {describe(a)} by {describe(b)}", hint="tilus.floor(a / b)"
        )
    if is_number(b) and b == 0:
        raise TypeMismatch("// divides by zero", hint="a divisor that is not zero")
    x, y = meet(t, "//", [a, b], require_arithmetic)
    return t.value(ops.Binary, "floordiv", x, y)


def shift(t: Tracer, symbol: str, a: object, b: object) -> Value:
    """Emit a shift; the result has the dtype of the left operand."""
    dtype = operand_dtype(symbol, a) if not is_number(a) else common_dtype(symbol, [a, b])
    require_integer(symbol, dtype)
    require_integer(symbol, operand_dtype(symbol, b))
    if is_number(b) and not 0 <= b < dtype.bits:  # type: ignore[operator]
        raise TypeMismatch(
            f"{symbol} by {b} of {dtype}, which has {dtype.bits} bits", hint=f"0 to {dtype.bits - 1}"
        )
    x, y = unify(t, symbol, [a, b], dtype)
    return t.value(ops.Binary, "shl" if symbol == "<<" else "shr", x, y)


def power(t: Tracer, a: object, b: object) -> Value:
    """Emit `a ** b` for a constant exponent, or for base 2 and a float exponent."""
    if is_number(a) and isinstance(b, Value):
        if a == 2 and operand_dtype("**", b).is_float:
            require_float("**", operand_dtype("**", b))
            return t.value(ops.Unary, "exp2", b)
        raise TypeMismatch(
            f"** takes an exponent known at compile time, not {describe(b)}",
            hint="tilus.exp2(x * math.log2(base)), or 1 << n for powers of two",
        )
    if not is_number(b) or isinstance(b, bool):
        raise TypeMismatch(
            f"** takes an exponent known at compile time, not {describe(b)}",
            hint="tilus.exp2(tilus.log2(a) * b)",
        )
    assert isinstance(a, Value)
    dtype = operand_dtype("**", a)
    require_arithmetic("**", dtype)
    if isinstance(b, float) and b.is_integer():
        b = int(b)
    if isinstance(b, int) and 0 <= b <= INTEGER_POWERS:
        return repeated_product(t, a, b)
    if not dtype.is_float:
        raise TypeMismatch(
            f"** of {describe(a)} takes an exponent from 0 to {INTEGER_POWERS}, not {b}",
            hint="x.to(tilus.float32) ** n",
        )
    if isinstance(b, int) and -INTEGER_POWERS <= b < 0:
        return binary(t, "/", 1.0, repeated_product(t, a, -b))
    if b in (0.5, -0.5):
        return t.value(ops.Unary, "sqrt" if b == 0.5 else "rsqrt", a)
    x, y = unify(t, "**", [a, b], dtype)
    return t.value(ops.Binary, "pow", x, y)


def repeated_product(t: Tracer, x: Value, exponent: int) -> Value:
    """Emit a power by squaring."""
    if exponent == 0:
        one = t.constant(1, operand_dtype("**", x))
        return broadcast(t, one, operand_shape(x))
    result: Value | None = None
    while True:
        if exponent & 1:
            result = x if result is None else t.value(ops.Binary, "mul", result, x)
        exponent >>= 1
        if not exponent:
            assert result is not None
            return result
        x = t.value(ops.Binary, "mul", x, x)


def pointer_arithmetic(t: Tracer, symbol: str, pointer: Value, offset: object) -> Value:
    """Emit a pointer moved by a number of elements."""
    number = t.integer(offset)
    if symbol not in ("+", "-") or number is None:
        raise TypeMismatch(
            f"a pointer takes + and - with an integer, not {symbol} with {describe(offset)}",
            hint="p + n; tilus.view(p, dtype, shape, strides) makes a tensor of a pointer",
        )
    if symbol == "-":
        number = t.value(ops.Unary, "neg", number)
    return t.value(ops.PointerAdd, pointer, number)


def compare(t: Tracer, symbol: str, a: object, b: object) -> Value:
    """Emit a comparison of which one operand at least is a run-time value."""
    x, y = meet(t, symbol, [a, b], require_number)
    return t.value(ops.Compare, COMPARISONS[symbol], x, y)


def negate(t: Tracer, x: Value) -> Value:
    """Emit `-x`."""
    require_arithmetic("-", operand_dtype("-", x))
    return t.value(ops.Unary, "neg", x)


def invert(t: Tracer, x: Value) -> Value:
    """Emit `~x`: the complement of an integer's bits, or of a boolean."""
    require_bits("~", operand_dtype("~", x))
    return t.value(ops.Unary, "not", x)


def select(t: Tracer, condition: object, a: object, b: object) -> Value:
    """Emit `where(condition, a, b)`."""
    dtype = common_dtype("where", [a, b])
    if isinstance(condition, bool):
        chosen = unify(t, "where", [a, b], dtype)
        return chosen[0 if condition else 1]
    if not isinstance(condition, Value) or operand_dtype("where", condition) != boolean:
        raise TypeMismatch(
            f"where takes a boolean condition, not {describe(condition)}", hint="a comparison, such as x > 0"
        )
    shapes = [s for s in map(operand_shape, (condition, a, b)) if s is not None]
    shape = broadcast_shape("where", shapes) if shapes else None
    x, y = (broadcast(t, v, shape) for v in unify(t, "where", [a, b], dtype))
    return t.value(ops.Select, broadcast(t, condition, shape), x, y)


def truth(t: Tracer, what: str, x: Value) -> Value:
    """Return a scalar as a condition: true where it is not zero, as in Python."""
    if isinstance(x.type, RegisterType):
        raise ShapeMismatch(
            f"{what} takes one condition, not {describe(x)}",
            hint="tilus.where(x, a, b) to choose for each element, tilus.any(x) or tilus.all(x) to make one condition, "
            "& | ~ for logic on each element",
        )
    if not isinstance(x.type, ScalarType):
        raise TypeMismatch(f"{what} takes a condition, not {describe(x)}", hint="a comparison of scalars")
    if x.type.dtype.is_boolean:
        return x
    return compare(t, "!=", x, 0)
