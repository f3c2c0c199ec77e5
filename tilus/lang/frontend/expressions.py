"""Expressions: names, operators, displays, and what a kernel may not write."""

from __future__ import annotations

import ast
import operator
from collections.abc import Callable
from typing import Any

from tilus.errors import SyntaxNotSupported, TilusError, TypeMismatch
from tilus.ir import Operation, RegisterType, ScalarType, Value, ops
from tilus.lang.diagnostics import describe
from tilus.lang.frontend.control import choose
from tilus.lang.frontend.tracer import Tracer, expression, is_runtime
from tilus.lang.promotion import is_number
from tilus.lang.semantics.arithmetic import binary, compare, invert, negate, truth
from tilus.lang.semantics.debug import FormattedText
from tilus.lang.semantics.launch import LoopRange
from tilus.lang.semantics.tiles import dot
from tilus.layout import LayoutError

REFUSED: dict[type[ast.expr], tuple[str, str]] = {
    ast.Lambda: ("lambda", "a function marked @tilus.inline at the top of the module"),
    ast.NamedExpr: (":=", "an assignment in a line of its own"),
    ast.Await: ("await", "a plain call"),
    ast.Yield: ("yield", "tilus.store for results"),
    ast.YieldFrom: ("yield", "tilus.store for results"),
    ast.GeneratorExp: ("a generator expression", "a list, as in [f(i) for i in ...]"),
}


@expression(*REFUSED)
def refuse(t: Tracer, node: ast.expr) -> None:
    word, hint = REFUSED[type(node)]
    raise SyntaxNotSupported(f"a kernel may not contain {word}", hint=hint)


@expression(ast.Constant)
def constant(t: Tracer, node: ast.Constant) -> object:
    return node.value


@expression(ast.Name)
def name(t: Tracer, node: ast.Name) -> object:
    return t.lookup(node.id)


@expression(ast.Tuple)
def tuple_(t: Tracer, node: ast.Tuple) -> tuple[object, ...]:
    return tuple(parts(t, node.elts))


@expression(ast.List)
def list_(t: Tracer, node: ast.List) -> list[object]:
    return parts(t, node.elts)


def parts(t: Tracer, elements: list[ast.expr]) -> list[object]:
    """Evaluate the parts of a display or of a call's arguments, with `*` for sequences."""
    from tilus.lang.frontend.statements import iterate, storable

    values: list[object] = []
    for element in elements:
        if isinstance(element, ast.Starred):
            values += iterate(t.evaluate(element.value), "*")
        else:
            values.append(storable(t.evaluate(element)))
    return values


@expression(ast.Starred)
def starred(t: Tracer, node: ast.Starred) -> None:
    raise SyntaxNotSupported("* stands here for no list of values", hint="* in a tuple, a list or a call")


@expression(ast.Set)
def set_(t: Tracer, node: ast.Set) -> set[object]:
    values = parts(t, node.elts)
    if is_runtime(values):
        raise TypeMismatch("a set holds values known at compile time", hint="a tuple or a list")
    return set(values)


@expression(ast.Dict)
def dict_(t: Tracer, node: ast.Dict) -> dict[object, object]:
    made: dict[object, object] = {}
    for key, value in zip(node.keys, node.values):
        if key is None:
            other = t.evaluate(value)
            if not isinstance(other, dict):
                raise TypeMismatch(f"** takes a dict, not {describe(other)}", hint="a dict")
            made.update(other)
            continue
        chosen = t.evaluate(key)
        if is_runtime(chosen):
            raise TypeMismatch(
                f"a key is known at compile time, but this is {describe(chosen)}",
                hint="a number or a text as key",
            )
        made[chosen] = t.evaluate(value)
    return made


# Operators.

OPERATORS: dict[type[ast.operator], str] = {
    ast.Add: "+", ast.Sub: "-", ast.Mult: "*", ast.Div: "/", ast.FloorDiv: "//", ast.Mod: "%", ast.Pow: "**",
    ast.LShift: "<<", ast.RShift: ">>", ast.BitOr: "|", ast.BitXor: "^", ast.BitAnd: "&", ast.MatMult: "@",
}  # fmt: skip
PYTHON: dict[str, Callable[..., Any]] = {
    "+": operator.add, "-": operator.sub, "*": operator.mul, "/": operator.truediv, "//": operator.floordiv,
    "%": operator.mod, "**": operator.pow, "<<": operator.lshift, ">>": operator.rshift, "|": operator.or_,
    "^": operator.xor, "&": operator.and_, "@": operator.matmul, "==": operator.eq, "!=": operator.ne,
    "<": operator.lt, "<=": operator.le, ">": operator.gt, ">=": operator.ge,
}  # fmt: skip
SIGN_OF: dict[type[ast.unaryop], tuple[str, Callable[..., Any]]] = {
    ast.USub: ("-", operator.neg), ast.UAdd: ("+", operator.pos), ast.Invert: ("~", operator.invert),
}  # fmt: skip
SIGNS: dict[type[ast.cmpop], str] = {
    ast.Eq: "==", ast.NotEq: "!=", ast.Lt: "<", ast.LtE: "<=", ast.Gt: ">", ast.GtE: ">=",
}  # fmt: skip


def python(symbol: str, function: Callable[..., Any], *values: object) -> Any:
    """Compute at compile time, by Python."""
    try:
        return function(*values)
    except (TilusError, LayoutError):
        raise
    except Exception as error:
        raise TypeMismatch(f"{symbol} at compile time raised {type(error).__name__}: {error}") from None


def apply_binary(t: Tracer, symbol: str, a: object, b: object) -> Any:
    """Apply a binary operator."""
    if isinstance(a, Value) or isinstance(b, Value):
        if symbol == "@":
            return dot(t, a, b, None, None)
        if isinstance(a, (tuple, list)) or isinstance(b, (tuple, list)):
            raise TypeMismatch(
                f"{symbol} takes tiles, scalars and numbers, not {describe(a)} and {describe(b)}"
            )
        return binary(t, symbol, a, b)
    if symbol not in ("+", "*") and (is_runtime(a) or is_runtime(b)):
        raise TypeMismatch(
            f"{symbol} does not take sequences of run-time values", hint="a loop over their parts"
        )
    return python(symbol, PYTHON[symbol], a, b)


@expression(ast.BinOp)
def binary_operator(t: Tracer, node: ast.BinOp) -> Any:
    return apply_binary(t, OPERATORS[type(node.op)], t.evaluate(node.left), t.evaluate(node.right))


@expression(ast.UnaryOp)
def unary_operator(t: Tracer, node: ast.UnaryOp) -> Any:
    value = t.evaluate(node.operand)
    if isinstance(node.op, ast.Not):
        if isinstance(value, Value):
            return t.value(ops.Unary, "not", truth(t, "not", value))
        return not value
    if not isinstance(value, Value):
        if isinstance(value, bool) and isinstance(node.op, ast.Invert):
            raise TypeMismatch("~ of a bool is an int in Python", hint="not x")
        symbol, function = SIGN_OF[type(node.op)]
        return python(symbol, function, value)
    if isinstance(node.op, ast.USub):
        return negate(t, value)
    if isinstance(node.op, ast.Invert):
        return invert(t, value)
    if not isinstance(value.type, (ScalarType, RegisterType)):
        raise TypeMismatch(
            f"+ takes tiles, scalars and numbers, not {describe(value)}", hint="a tile, a scalar or a number"
        )
    return value


@expression(ast.Compare)
def comparison(t: Tracer, node: ast.Compare) -> Any:
    # `a < b < c` evaluates b once and means `a < b and b < c`.
    left = t.evaluate(node.left)
    if len(node.ops) == 1:
        return compare_pair(t, node.ops[0], left, t.evaluate(node.comparators[0]))
    results: list[Any] = []
    for sign, right_node in zip(node.ops, node.comparators):
        with t.region() as block:
            right = t.evaluate(right_node)
        if results and not all(harmless(made) for made in block):
            with t.at(right_node):
                raise SyntaxNotSupported(
                    "Python evaluates this operand only if the comparison before it holds, and it has an effect",
                    hint="a < b and b < c, with b in a variable",
                )
        for made in block:
            t.builder.append(made)
        result = compare_pair(t, sign, left, right)
        if not isinstance(result, Value) and not result:
            return False
        results.append(result)
        left = right
    runtime = [r for r in results if isinstance(r, Value)]
    if not runtime:
        return True
    joined = runtime[0]
    for result in runtime[1:]:
        joined = binary(t, "&", joined, result)
    return joined


def compare_pair(t: Tracer, sign: ast.cmpop, a: object, b: object) -> Any:
    """Compare two values."""
    if isinstance(sign, (ast.Is, ast.IsNot)):
        if is_runtime(a) and is_runtime(b):
            raise TypeMismatch("is compares values known at compile time", hint="==")
        return (a is b) == isinstance(sign, ast.Is)
    if isinstance(sign, (ast.In, ast.NotIn)):
        if is_runtime(a) or is_runtime(b) or isinstance(b, LoopRange) and b.static() is None:
            raise TypeMismatch("in takes values known at compile time", hint="comparisons joined by or")
        container = b.static() if isinstance(b, LoopRange) else b
        return python("in", lambda: a in container) == isinstance(sign, ast.In)  # type: ignore[operator]
    symbol = SIGNS[type(sign)]
    if isinstance(a, Value) or isinstance(b, Value):
        if (a is None or b is None) and symbol in ("==", "!="):
            raise TypeMismatch(f"{symbol} does not compare with None", hint="is None")
        return compare(t, symbol, a, b)
    if is_runtime(a) or is_runtime(b):
        raise TypeMismatch(
            f"{symbol} does not take sequences of run-time values", hint="a comparison of each part"
        )
    return python(symbol, PYTHON[symbol], a, b)


@expression(ast.BoolOp)
def logic(t: Tracer, node: ast.BoolOp) -> Any:
    word = "and" if isinstance(node.op, ast.And) else "or"
    return logic_chain(t, word, node.values)


def logic_chain(t: Tracer, word: str, nodes: list[ast.expr]) -> Any:
    """Evaluate `a and b and ...`: what is known at compile time decides at once, the rest becomes a boolean scalar."""
    left = t.evaluate(nodes[0])
    if len(nodes) == 1:
        return left
    if not isinstance(left, Value):
        return left if bool(left) == (word == "or") else logic_chain(t, word, nodes[1:])
    with t.at(nodes[0]):
        cond = truth(t, word, left)
    with t.region() as block:
        right = logic_chain(t, word, nodes[1:])
        if not isinstance(right, Value) and not is_number(right):
            raise TypeMismatch(f"{word} takes conditions, not {describe(right)}", hint="a comparison")
        with t.at(nodes[1]):
            right = truth(t, word, right) if isinstance(right, Value) else t.constant(bool(right))
    if all(harmless(made) for made in block):
        for made in block:
            t.builder.append(made)
        return t.value(ops.Binary, word, cond, right)
    # The right side has an effect, which Python skips where the left side decides.
    with t.region(block):
        t.emit(ops.Yield, (right,))
    with t.region() as other:
        t.emit(ops.Yield, (t.constant(word == "or"),))
    first, second = (block, other) if word == "and" else (other, block)
    return t.value(ops.If, cond, t.close(first), t.close(second))


def harmless(made: Operation) -> bool:
    """Tell whether an operation may run where Python would not run it."""
    return made.pure or isinstance(made, (ops.LoadGlobal, ops.LoadShared, ops.Gather))


@expression(ast.IfExp)
def conditional(t: Tracer, node: ast.IfExp) -> Any:
    from tilus.lang.frontend.statements import condition

    cond = condition(t, "a conditional expression", node.test)
    if not isinstance(cond, Value):
        return t.evaluate(node.body if cond else node.orelse)
    return choose(
        t, "the expression", cond, node.lineno, lambda: t.evaluate(node.body), lambda: t.evaluate(node.orelse)
    )


# Text and comprehensions.


@expression(ast.JoinedStr)
def formatted(t: Tracer, node: ast.JoinedStr) -> str | FormattedText:
    text, values = "", []
    constant_text = ""
    for part in node.values:
        if isinstance(part, ast.Constant):
            text += str(part.value).replace("{", "{{").replace("}", "}}")
            constant_text += str(part.value)
            continue
        assert isinstance(part, ast.FormattedValue)
        value = t.evaluate(part.value)
        if isinstance(value, Value):
            if part.format_spec is not None or part.conversion != -1:
                raise SyntaxNotSupported("a run-time value in an f-string has no format", hint="{x}")
            text += "{}"
            values.append(value)
            continue
        if is_runtime(value):
            raise TypeMismatch(
                f"an f-string takes numbers and scalars, not {describe(value)}",
                hint="a part for each value, as in {x[0]}",
            )
        shown = format_value(t, part, value)
        text += shown.replace("{", "{{").replace("}", "}}")
        constant_text += shown
    return FormattedText(text, tuple(values)) if values else constant_text


def format_value(t: Tracer, part: ast.FormattedValue, value: object) -> str:
    """Format a compile-time value as Python does."""
    conversions: dict[int, Callable[[object], object]] = {-1: lambda v: v, 115: str, 114: repr, 97: ascii}
    spec = t.evaluate(part.format_spec) if part.format_spec is not None else ""
    return str(python("an f-string", format, conversions[part.conversion](value), spec))


@expression(ast.ListComp)
def list_comprehension(t: Tracer, node: ast.ListComp) -> list[object]:
    made: list[object] = []
    comprehend(t, node.generators, lambda: made.append(t.evaluate(node.elt)))
    return made


@expression(ast.SetComp)
def set_comprehension(t: Tracer, node: ast.SetComp) -> set[object]:
    made: list[object] = []
    comprehend(t, node.generators, lambda: made.append(t.evaluate(node.elt)))
    if is_runtime(made):
        raise TypeMismatch("a set holds values known at compile time", hint="a list")
    return set(made)


@expression(ast.DictComp)
def dict_comprehension(t: Tracer, node: ast.DictComp) -> dict[object, object]:
    made: dict[object, object] = {}

    def add() -> None:
        key = t.evaluate(node.key)
        if is_runtime(key):
            raise TypeMismatch(
                f"a key is known at compile time, but this is {describe(key)}",
                hint="a number or a text as key",
            )
        made[key] = t.evaluate(node.value)

    comprehend(t, node.generators, add)
    return made


def comprehend(t: Tracer, generators: list[ast.comprehension], add: Callable[[], None]) -> None:
    """Run a comprehension over sequences known at compile time; its names are gone afterwards."""
    from tilus.lang.frontend.statements import bind_target, condition, iterate

    frame = t.frame
    before = dict(frame.names)

    def run(level: int) -> None:
        if level == len(generators):
            add()
            return
        generator = generators[level]
        if generator.is_async:
            raise SyntaxNotSupported("a kernel may not contain an async comprehension", hint="a plain for")
        for part in iterate(t.evaluate(generator.iter), "a comprehension"):
            bind_target(t, generator.target, part)
            kept = [condition(t, "the if of a comprehension", test) for test in generator.ifs]
            if any(isinstance(test, Value) for test in kept):
                raise TypeMismatch(
                    "the if of a comprehension is known at compile time",
                    hint="tilus.where for values chosen at run time",
                )
            if all(kept):
                run(level + 1)

    run(0)
    frame.names = before
