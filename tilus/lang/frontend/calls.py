"""Calls: functions of the language, inline functions, and Python functions of compile-time values."""

from __future__ import annotations

import ast
import builtins
from collections.abc import Callable
from typing import Any

from tilus.dtypes import DType, float32, int32
from tilus.errors import SyntaxNotSupported, TilusError, TypeMismatch
from tilus.ir import Value
from tilus.lang import functions
from tilus.lang.diagnostics import describe
from tilus.lang.frontend.expressions import apply_binary, parts
from tilus.lang.frontend.statements import iterate
from tilus.lang.frontend.tracer import Flow, Frame, Tracer, expression, is_runtime
from tilus.lang.inline import InlineFunction
from tilus.lang.semantics import (  # noqa: F401
    atomics,
    cluster,
    debug,
    elementwise,
    hopper,
    launch,
    memory,
    random,
    sort,
    tiles,
)
from tilus.lang.semantics.arithmetic import truth
from tilus.lang.semantics.debug import FormattedText
from tilus.lang.semantics.elementwise import extreme
from tilus.lang.semantics.launch import LoopRange
from tilus.lang.semantics.registry import FUNCTIONS
from tilus.lang.semantics.shapes import is_tile, operand_shape
from tilus.lang.types import constexpr
from tilus.layout import LayoutError


class BoundMethod:
    """A method of a run-time value: a function of the language and its first argument."""

    def __init__(self, name: str, function: Callable[..., Any], value: Value) -> None:
        self.name = name
        self.function = function
        self.value = value


@expression(ast.Call)
def call_expression(t: Tracer, node: ast.Call) -> Any:
    with t.at(node.func):
        callee = t.evaluate(node.func)
    if callee is functions.grid:
        # The host computes the arguments, so that nothing of them stays in the kernel.
        with t.region():
            return call_with(t, callee, node)
    return call_with(t, callee, node)


def call_with(t: Tracer, callee: Any, node: ast.Call) -> Any:
    """Evaluate the arguments of a call, and call."""
    args = call_arguments(t, node.args)
    kwargs: dict[str, Any] = {}
    for keyword in node.keywords:
        if keyword.arg is None:
            more = t.evaluate(keyword.value)
            if not isinstance(more, dict):
                raise TypeMismatch(f"** takes a dict, not {describe(more)}", hint="a dict")
            kwargs.update(more)
        else:
            kwargs[keyword.arg] = t.evaluate(keyword.value)
    return call(t, callee, args, kwargs)


def call_arguments(t: Tracer, nodes: list[ast.expr]) -> list[Any]:
    """Evaluate positional arguments; ranges and f-strings may only stand here."""
    values: list[Any] = []
    for node in nodes:
        if isinstance(node, ast.Starred):
            values += parts(t, [node])
        else:
            values.append(t.evaluate(node))
    return values


def call(t: Tracer, callee: Any, args: list[Any], kwargs: dict[str, Any]) -> Any:
    """Call what a kernel may call."""
    if isinstance(callee, BoundMethod):
        return call_stub(t, callee.function, [callee.value, *args], kwargs)
    if isinstance(callee, InlineFunction):
        return call_inline(t, callee, args, kwargs)
    if callee is range:
        if kwargs:
            raise TypeMismatch("range takes no keywords")
        return launch.range_(t, tuple(args))
    if is_hashable(callee) and callee in FUNCTIONS:
        return call_stub(t, callee, args, kwargs)
    if is_hashable(callee) and callee in BUILTINS:
        return BUILTINS[callee](t, args, kwargs)
    if isinstance(callee, Value) or not callable(callee):
        hint = f"tilus.cast(x, tilus.{callee})" if isinstance(callee, DType) else None
        raise TypeMismatch(f"{describe(callee)} cannot be called", hint=hint or "the name of a function")
    return call_python(t, callee, args, kwargs)


def is_hashable(value: object) -> bool:
    """Tell whether a value may be looked up in a table."""
    try:
        hash(value)
    except TypeError:
        return False
    return True


def call_stub(t: Tracer, stub: Callable[..., Any], args: list[Any], kwargs: dict[str, Any]) -> Any:
    """Call a function of the language."""
    function = FUNCTIONS[stub]
    name = stub.__name__
    for value in [*args, *kwargs.values()]:
        if isinstance(value, FormattedText) and stub is not functions.device_print:
            raise TypeMismatch(
                f"{name} does not take an f-string of run-time values, which only device_print does",
                hint="text known at compile time, and tilus.device_print(...) for the values",
            )
    try:
        bound = function.signature.bind(*args, **kwargs)
    except TypeError as error:
        raise TypeMismatch(f"{name}: {error}", hint=f"{name}{function.signature_text}") from None
    bound.apply_defaults()
    return function.implementation(t, **bound.arguments)


def call_inline(t: Tracer, callee: InlineFunction, args: list[Any], kwargs: dict[str, Any]) -> Any:
    """Trace the body of an inline function at this place."""
    from tilus.lang.frontend.statements import storable

    source = callee.source
    try:
        bound = source.signature.bind(*args, **kwargs)
    except TypeError as error:
        raise TypeMismatch(f"{source.name}: {error}", hint=f"{source.name}{source.signature}") from None
    bound.apply_defaults()
    names = {name: storable(value) for name, value in bound.arguments.items()}
    for name, parameter in source.signature.parameters.items():
        annotated = parameter.annotation is constexpr or parameter.annotation == "constexpr"
        if annotated and is_runtime(names[name]):
            raise TypeMismatch(
                f"{name} of {source.name} is a constexpr, but is given {describe(names[name])}",
                hint="a value known at compile time, or a parameter without that annotation",
            )
    frame = Frame(source, names, t.loc, inline=True)
    with t.entered(frame):
        flow = t.execute(source.tree.body)
    return frame.result if flow is Flow.RETURN else None


MUTATORS = frozenset(
    "append extend insert pop remove clear sort reverse update add discard setdefault popitem __setitem__".split()
)
REFUSED: dict[Any, tuple[str, str]] = {
    print: ("print", "tilus.device_print(...)"),
    input: ("input", "a parameter of the kernel"),
    open: ("open", "a constexpr parameter, for what the host reads"),
    exec: ("exec", "the code itself"),
    eval: ("eval", "the expression itself"),
    setattr: ("setattr", "a name for each value"),
    globals: ("globals", "the names themselves"),
    locals: ("locals", "the names themselves"),
}


def call_python(t: Tracer, callee: Callable[..., Any], args: list[Any], kwargs: dict[str, Any]) -> Any:
    """Call a Python function of compile-time values, now."""
    name = getattr(callee, "__name__", None) or type(callee).__name__
    if is_hashable(callee) and callee in REFUSED:
        word, hint = REFUSED[callee]
        raise SyntaxNotSupported(f"a kernel may not call {word}", hint=hint)
    owner = getattr(callee, "__self__", None)
    if isinstance(owner, (list, dict, set, bytearray)) and name in MUTATORS:
        raise SyntaxNotSupported(
            f"a kernel does not change a {type(owner).__name__}, which may have other names",
            hint="xs = [*xs, x]",
        )
    if is_kernel(callee):
        raise SyntaxNotSupported(
            f"a kernel does not call the kernel {name}", hint="a function marked @tilus.inline"
        )
    args = [plain_range(value) for value in args]
    kwargs = {key: plain_range(value) for key, value in kwargs.items()}
    for value in [*args, *kwargs.values()]:
        if is_runtime(value) or isinstance(value, (LoopRange, FormattedText)):
            raise TypeMismatch(
                f"{name} is a Python function, which runs at compile time, but is given {describe(value)}",
                hint=f"tilus.{name}(...)"
                if name in functions.__all__
                else f"@tilus.inline above the definition of {name}, if it is written in the language of kernels",
            )
    try:
        return callee(*args, **kwargs)
    except (TilusError, LayoutError):
        raise
    except Exception as error:
        raise TypeMismatch(f"{name} at compile time raised {type(error).__name__}: {error}") from None


def is_kernel(callee: object) -> bool:
    """Tell whether something is a kernel, which the layers above wrap."""
    from tilus.lang.source import KernelSource

    return isinstance(getattr(callee, "source", None), KernelSource)


def plain_range(value: Any) -> Any:
    """Return a range that is known at compile time as Python's own."""
    if isinstance(value, LoopRange):
        static = value.static()
        return value if static is None else static
    return value


# Python's own functions that take run-time values, or sequences of them.

Builtin = Callable[[Tracer, list[Any], dict[str, Any]], Any]


def builtin_number(name: str, dtype: DType | None) -> Builtin:
    """Make the translation of `int`, `float` and `bool`."""

    def convert(t: Tracer, args: list[Any], kwargs: dict[str, Any]) -> Any:
        if len(args) == 1 and isinstance(args[0], Value) and not kwargs:
            if is_tile(args[0]):
                raise TypeMismatch(
                    f"{name} takes a scalar, not {describe(args[0])}", hint="x.to(dtype) for a tile"
                )
            return (
                truth(t, name, args[0])
                if dtype is None
                else call_stub(t, functions.cast, [args[0], dtype], {})
            )
        return call_python(t, getattr(builtins, name), args, kwargs)

    return convert


def builtin_extreme(kind: str) -> Builtin:
    """Make the translation of `min` and `max`."""

    def compute(t: Tracer, args: list[Any], kwargs: dict[str, Any]) -> Any:
        values = iterate(args[0], kind) if len(args) == 1 and not isinstance(args[0], Value) else args
        if not is_runtime(values) or kwargs:
            return call_python(t, getattr(builtins, kind), args, kwargs)
        if len(args) == 1 and isinstance(args[0], Value):
            raise TypeMismatch(
                f"{kind} of one value takes a sequence, not {describe(args[0])}",
                hint=f"tilus.{kind}(x, axis=0)",
            )
        result = values[0]
        for value in values[1:]:
            result = extreme(t, kind, result, value)
        return result

    return compute


def builtin_abs(t: Tracer, args: list[Any], kwargs: dict[str, Any]) -> Any:
    """Translate `abs`."""
    return call_stub(t, functions.abs, args, kwargs)


def builtin_round(t: Tracer, args: list[Any], kwargs: dict[str, Any]) -> Any:
    """Translate `round`, which gives an int in Python."""
    if is_runtime(args):
        raise TypeMismatch(
            "round of a run-time value",
            hint="tilus.round(x), which keeps the dtype, or tilus.round(x).to(tilus.int32)",
        )
    return call_python(t, round, args, kwargs)


def builtin_pow(t: Tracer, args: list[Any], kwargs: dict[str, Any]) -> Any:
    """Translate `pow` of two values."""
    if is_runtime(args) and len(args) == 2:
        return apply_binary(t, "**", args[0], args[1])
    return call_python(t, pow, args, kwargs)


def builtin_divmod(t: Tracer, args: list[Any], kwargs: dict[str, Any]) -> Any:
    """Translate `divmod`."""
    if is_runtime(args) and len(args) == 2:
        return apply_binary(t, "//", *args), apply_binary(t, "%", *args)
    return call_python(t, divmod, args, kwargs)


def builtin_sum(t: Tracer, args: list[Any], kwargs: dict[str, Any]) -> Any:
    """Translate `sum` of a sequence."""
    if args and isinstance(args[0], Value):
        raise TypeMismatch(f"sum takes a sequence, not {describe(args[0])}", hint="tilus.sum(x, axis=0)")
    if not is_runtime(args) or kwargs:
        return call_python(t, sum, args, kwargs)
    values = iterate(args[0], "sum")
    total = args[1] if len(args) > 1 else None
    for value in values:
        total = value if total is None else apply_binary(t, "+", total, value)
    return total


def builtin_len(t: Tracer, args: list[Any], kwargs: dict[str, Any]) -> Any:
    """Translate `len`, which counts parts and does not look into them."""
    if len(args) == 1 and isinstance(args[0], Value):
        shape = operand_shape(args[0])
        raise TypeMismatch(
            f"len takes a sequence, not {describe(args[0])}", hint="x.shape[0]" if shape else None
        )
    return on_parts(len)(t, args, kwargs)


def on_parts(function: Callable[..., Any]) -> Builtin:
    """Make the translation of a function that moves the parts of sequences without looking into them."""

    def run(t: Tracer, args: list[Any], kwargs: dict[str, Any]) -> Any:
        sequences = [
            iterate(value, function.__name__) if isinstance(value, LoopRange) else value for value in args
        ]
        for value in sequences:
            if isinstance(value, Value):
                raise TypeMismatch(
                    f"{function.__name__} takes a sequence known at compile time, not {describe(value)}"
                )
        try:
            result = function(*sequences, **kwargs)
        except Exception as error:
            raise TypeMismatch(
                f"{function.__name__} at compile time raised {type(error).__name__}: {error}"
            ) from None
        return list(result) if function in (zip, enumerate, reversed) else result

    return run


def builtin_isinstance(t: Tracer, args: list[Any], kwargs: dict[str, Any]) -> Any:
    """Translate `isinstance`, where run-time values are of the classes of `tilus.lang.types`."""
    from tilus.lang.frontend.attributes import stub_class

    if len(args) == 2 and isinstance(args[0], Value):
        classes = args[1] if isinstance(args[1], tuple) else (args[1],)
        return stub_class(args[0]) in classes
    return call_python(t, isinstance, args, kwargs) if not is_runtime(args) else isinstance(*args)


BUILTINS: dict[Any, Builtin] = {
    int: builtin_number("int", int32),
    float: builtin_number("float", float32),
    bool: builtin_number("bool", None),
    min: builtin_extreme("min"),
    max: builtin_extreme("max"),
    abs: builtin_abs,
    round: builtin_round,
    pow: builtin_pow,
    divmod: builtin_divmod,
    sum: builtin_sum,
    len: builtin_len,
    zip: on_parts(zip),
    enumerate: on_parts(enumerate),
    reversed: on_parts(reversed),
    list: on_parts(list),
    tuple: on_parts(tuple),
    isinstance: builtin_isinstance,
}
