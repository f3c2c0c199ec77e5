"""Translations of the functions of each element."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from tilus.dtypes import DType, int32
from tilus.errors import TypeMismatch
from tilus.ir import Value, ops
from tilus.lang import functions
from tilus.lang.diagnostics import describe
from tilus.lang.promotion import is_number, require_arithmetic, require_float, require_integer, require_number
from tilus.lang.semantics.arithmetic import binary, convert, meet, select
from tilus.lang.semantics.registry import implements
from tilus.lang.semantics.shapes import operand_dtype, static_bool, static_dtype, static_int, tile_type

if TYPE_CHECKING:
    from tilus.lang.frontend.tracer import Tracer


@implements(functions.cdiv)
def cdiv(t: Tracer, a: Any, b: Any) -> Any:
    if isinstance(a, int) and isinstance(b, int):
        return functions.cdiv(a, b)
    for value in (a, b):
        require_integer("cdiv", operand_dtype("cdiv", value))
    if isinstance(b, int):
        return binary(t, "//", binary(t, "+", a, b - 1) if b != 1 else a, b)
    return binary(t, "//", binary(t, "-", binary(t, "+", a, b), 1), b)


@implements(functions.next_power_of_2)
def next_power_of_2(t: Tracer, n: Any) -> int:
    return functions.next_power_of_2(static_int("the argument of next_power_of_2", n, 1))


@implements(functions.cast)
def cast(t: Tracer, x: Any, dtype: Any, arranged: Any, exponent: Any, biased: Any, random: Any) -> Value:
    chosen = static_dtype("cast", dtype)
    if random is not None:
        tile_type("a cast at random", x)
        tile_type("the random bits of a cast", random)
        return t.value(ops.CastRandom, x, random, chosen)
    power = exponent if exponent == 0 else static_int("the exponent of a cast", exponent)
    if arranged:
        tile_type("an arranged cast", x)
        return t.value(ops.Cast, x, chosen, True, power, bool(biased))
    if power:
        raise TypeMismatch(
            "only a cast of arranged codes leaves a power of two out", hint="arranged=True, or exponent=0"
        )
    if biased:
        raise TypeMismatch(
            "only a cast of arranged codes leaves an offset", hint="arranged=True, or biased=False"
        )
    if is_number(x):
        if isinstance(x, float) and chosen.is_integer:
            x = int(x)
        if isinstance(x, bool) and not chosen.is_boolean:
            x = int(x)
        return t.constant(bool(x) if chosen.is_boolean else x, chosen)
    operand_dtype("cast", x)
    return convert(t, x, chosen)


@implements(functions.where)
def where(t: Tracer, condition: Any, a: Any, b: Any) -> Value:
    return select(t, condition, a, b)


def extreme(t: Tracer, kind: str, a: Any, b: Any) -> Any:
    """Emit the larger or smaller of two values."""
    if is_number(a) and is_number(b):
        return max(a, b) if kind == "max" else min(a, b)

    def check(symbol: str, dtype: DType) -> None:
        if dtype.is_boolean:
            require_arithmetic(symbol, dtype)
        require_number(symbol, dtype)

    x, y = meet(t, kind, [a, b], check)
    return t.value(ops.Binary, kind, x, y)


@implements(functions.maximum)
def maximum(t: Tracer, a: Any, b: Any) -> Any:
    return extreme(t, "max", a, b)


@implements(functions.minimum)
def minimum(t: Tracer, a: Any, b: Any) -> Any:
    return extreme(t, "min", a, b)


@implements(functions.clamp)
def clamp(t: Tracer, x: Any, low: Any, high: Any) -> Any:
    return extreme(t, "min", extreme(t, "max", x, low), high)


@implements(functions.sigmoid)
def sigmoid(t: Tracer, x: Any) -> Any:
    if is_number(x):
        return functions.sigmoid(x)
    require_float("sigmoid", operand_dtype("sigmoid", x))
    decay = t.value(ops.Unary, "exp", t.value(ops.Unary, "neg", x))
    return t.value(ops.Unary, "rcp", binary(t, "+", decay, 1.0))


@implements(functions.abs)
def absolute(t: Tracer, x: Any) -> Any:
    if is_number(x):
        return abs(x)
    require_arithmetic("abs", operand_dtype("abs", x))
    return t.value(ops.Unary, "abs", x)


def declare_unary(stub: Callable[..., Any], require: Callable[[str, DType], None]) -> None:
    """Declare a function of one operand that is an operation of the IR under its own name."""
    name = stub.__name__

    @implements(stub)
    def unary(t: Tracer, x: Any) -> Any:
        if is_number(x) and require is require_float:
            return stub(x)
        require(name, operand_dtype(name, x))
        if not isinstance(x, Value):
            raise TypeMismatch(
                f"{name} takes a run-time value, not {describe(x)}", hint=f"tilus.cast({x}, tilus.int32)"
            )
        return t.value(ops.Unary, name, x)


def declare_fast(stub: Callable[..., Any]) -> None:
    """Declare a function of a float that has a form of fewer instructions."""
    name = stub.__name__

    @implements(stub)
    def unary(t: Tracer, x: Any, fast: Any) -> Any:
        if is_number(x):
            return stub(x)
        require_float(name, operand_dtype(name, x))
        return t.value(ops.Unary, f"fast_{name}" if static_bool("fast", fast) else name, x)


def require_word(symbol: str, dtype: DType) -> None:
    """Allow integers of 32 and 64 bits."""
    require_integer(symbol, dtype)
    if dtype.bits < 32:
        raise TypeMismatch(
            f"{symbol} takes integers of 32 and 64 bits, not {dtype}", hint="x.to(tilus.uint32)"
        )


for _stub in (
    functions.log, functions.log2, functions.sin, functions.cos, functions.tanh,
    functions.erf, functions.sqrt, functions.rsqrt, functions.floor, functions.ceil, functions.round,
    functions.trunc, functions.isnan, functions.isinf,
):  # fmt: skip
    declare_unary(_stub, require_float)
for _stub in (functions.exp, functions.exp2, functions.rcp):
    declare_fast(_stub)
for _stub in (functions.popcount, functions.clz, functions.ctz, functions.brev):
    declare_unary(_stub, require_word)


@implements(functions.mulhi)
def mulhi(t: Tracer, a: Any, b: Any) -> Value:
    x, y = meet(t, "mulhi", [a, b], require_word)
    return t.value(ops.Binary, "mulhi", x, y)


@implements(functions.lookup)
def lookup(t: Tracer, table: Any, index: Any, dtype: Any) -> Value:
    chosen = static_dtype("lookup", dtype)
    if not isinstance(table, (tuple, list)) or not all(map(is_number, table)) or not table:
        raise TypeMismatch(
            f"lookup takes a sequence of numbers known at compile time, not {describe(table)}",
            hint="tilus.lookup((0.0, 0.5, 1.0, 2.0), codes, tilus.float16)",
        )
    require_integer("lookup", operand_dtype("lookup", index))
    if is_number(index):
        index = t.constant(index, int32)
    return t.value(ops.Table, tuple(table), chosen, index)
