"""Translations of assertions, promises, printing and PTX by hand."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tilus.dtypes import boolean
from tilus.errors import TilusError, TypeMismatch
from tilus.ir import PointerType, RegisterType, ScalarType, Value, ops
from tilus.lang import functions
from tilus.lang.diagnostics import describe
from tilus.lang.promotion import is_number
from tilus.lang.semantics.registry import implements
from tilus.lang.semantics.shapes import (
    as_sequence,
    broadcast,
    broadcast_shape,
    operand_dtype,
    operand_shape,
    static_bool,
    static_dtype,
    static_int,
)

if TYPE_CHECKING:
    from tilus.lang.frontend.tracer import Tracer


class StaticAssertionFailed(TilusError):
    """A `static_assert` whose condition does not hold."""


@dataclass(frozen=True)
class FormattedText:
    """An f-string with run-time values: a format with `{}` for each of them."""

    format: str
    values: tuple[Value, ...]


@implements(functions.static_assert)
def static_assert(t: Tracer, condition: Any, message: Any) -> None:
    if isinstance(condition, Value):
        raise TypeMismatch(
            "static_assert takes a condition known at compile time",
            hint="tilus.device_assert(condition, message)",
        )
    if not condition:
        raise StaticAssertionFailed(f"static_assert failed: {message}" if message else "static_assert failed")


@implements(functions.static_print)
def static_print(t: Tracer, values: Any) -> None:
    print(*(describe(value) if isinstance(value, Value) else value for value in values))


@implements(functions.assume)
def assume(t: Tracer, condition: Any, divisor: Any) -> Any:
    if divisor is None:
        raise TypeMismatch(
            "assume takes a comparison of the form name % divisor == 0",
            hint="tilus.assume(m % 16 == 0), or m = tilus.assume(m, 16)",
        )
    amount = static_int("the divisor of assume", divisor, 1)
    if isinstance(condition, int) and not isinstance(condition, bool):
        if condition % amount:
            raise StaticAssertionFailed(f"assume: {condition} is no multiple of {amount}")
        return condition
    type = condition.type if isinstance(condition, Value) else None
    if not isinstance(type, PointerType) and not (isinstance(type, ScalarType) and type.dtype.is_integer):
        raise TypeMismatch(
            f"assume is about an integer scalar or a pointer, not {describe(condition)}",
            hint="m = a.shape[0], then m = tilus.assume(m, 16)",
        )
    return t.value(ops.Assume, condition, amount)


PLACEHOLDER = re.compile(r"\{\{|\}\}|\{([^{}]*)\}|[{}]")


def count_placeholders(text: str) -> int:
    """Count the `{}` of a format; anything else in braces is refused."""
    count = 0
    for match in PLACEHOLDER.finditer(text):
        if match.group() in ("{{", "}}"):
            continue
        if match.group() != "{}":
            raise TypeMismatch(
                f"device_print takes {{}} for each value, not {match.group()}",
                hint="{} without a name or a format, {{ for a brace",
            )
        count += 1
    return count


@implements(functions.device_print)
def device_print(t: Tracer, format: Any, values: tuple[Any, ...]) -> None:
    if isinstance(format, FormattedText):
        if values:
            raise TypeMismatch("device_print takes an f-string or a format with values, not both")
        format, values = format.format, format.values
    if not isinstance(format, str):
        raise TypeMismatch(
            f"device_print takes a format, not {describe(format)}", hint='tilus.device_print("x = {}", x)'
        )
    if count_placeholders(format) != len(values):
        raise TypeMismatch(
            f"device_print takes a value for each {{}} of its format, not {len(values)} for "
            f"{count_placeholders(format)}",
            hint='tilus.device_print("{} {}", x, y), or an f-string',
        )
    made = []
    for value in values:
        operand_dtype("device_print", value)
        made.append(t.constant(value) if is_number(value) else value)
    if any(isinstance(v.type, RegisterType) for v in made) and len(made) > 1:
        raise TypeMismatch("device_print takes scalars, or one tile", hint="one device_print for each tile")
    t.emit(ops.Print, format, tuple(made))


@implements(functions.device_assert)
def device_assert(t: Tracer, condition: Any, message: Any) -> None:
    if not isinstance(message, str):
        raise TypeMismatch(
            "device_assert takes a message known at compile time",
            hint="tilus.device_print for values at run time",
        )
    if isinstance(condition, bool):
        if not condition:
            raise StaticAssertionFailed(
                f"device_assert always fails: {message}" if message else "device_assert always fails"
            )
        return
    if operand_dtype("device_assert", condition) != boolean:
        raise TypeMismatch(
            f"device_assert takes a boolean, not {describe(condition)}", hint="a comparison, such as x > 0"
        )
    t.emit(ops.Assert, condition, message)


@implements(functions.inline_ptx)
def inline_ptx(t: Tracer, template: Any, args: Any, dtypes: Any, volatile: Any) -> Any:
    if not isinstance(template, str):
        raise TypeMismatch(
            f"inline_ptx takes PTX as a str, not {describe(template)}",
            hint="tilus.inline_ptx('add.s32 $0, $1, $2;', [x, y], tilus.int32)",
        )
    results = tuple(static_dtype("inline_ptx", d) for d in as_sequence(dtypes))
    operands = as_sequence(args)
    for operand in operands:
        operand_dtype("inline_ptx", operand)
        if is_number(operand):
            raise TypeMismatch(
                f"inline_ptx takes scalars and tiles, not {describe(operand)}",
                hint=f"tilus.cast({operand}, tilus.int32), or the number in the PTX",
            )
    known = len(results) + len(operands)
    for match in re.finditer(r"\$(\d+)", template):
        if int(match.group(1)) >= known:
            raise TypeMismatch(
                f"inline_ptx names ${match.group(1)}, but there are {known} operands, from $0 on",
                hint="$0 for the first result, then the arguments",
            )
    shapes = [s for s in map(operand_shape, operands) if s is not None]
    shape = broadcast_shape("inline_ptx", shapes) if shapes else None
    made = t.emit(
        ops.InlinePtx, template, tuple(broadcast(t, operand, shape) for operand in operands), results, shape,
        static_bool("volatile of inline_ptx", volatile),
    )  # fmt: skip
    if not isinstance(dtypes, (tuple, list)):
        return made.result
    return made.results if results else None
