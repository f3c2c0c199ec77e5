"""Integer expressions over the sizes and scalars of a launch: what the host computes, such as the grid.

An expression is plain data: an int is itself, ``("size", name)`` is an extent or stride that the launch passes,
``("scalar", name)`` is a scalar parameter, and ``(operation, operand, ...)`` is one of `OPERATIONS`. It comes from
the grid of a kernel, is kept as JSON, becomes a Python closure for launches, and C for ahead-of-time output.
Integers are exact; division and remainder round to minus infinity.
"""

from __future__ import annotations

import ast
import operator
from collections.abc import Callable, Mapping
from typing import Any

from tilus.errors import LaunchError, SyntaxNotSupported, TypeMismatch
from tilus.ir import GlobalType, Kernel, Operation, Region, ScalarType, Symbol, Value, ops

Expression = int | tuple[Any, ...]
Environment = Mapping[tuple[str, str], int]
"""Values of `("size", name)` and `("scalar", name)`."""
Evaluator = Callable[[Environment], int]

OPERATIONS: dict[str, tuple[Callable[..., int], str]] = {
    # The Python function, and the C text with {0}, {1}, ... for the operands.
    "add": (operator.add, "({0} + {1})"),
    "sub": (operator.sub, "({0} - {1})"),
    "mul": (operator.mul, "({0} * {1})"),
    "floordiv": (operator.floordiv, "tilus_floor_divide({0}, {1}, &invalid)"),
    "mod": (operator.mod, "tilus_floor_modulo({0}, {1}, &invalid)"),
    "min": (min, "tilus_minimum({0}, {1})"),
    "max": (max, "tilus_maximum({0}, {1})"),
    "neg": (operator.neg, "(-{0})"),
    "abs": (abs, "tilus_maximum({0}, -{0})"),
    "eq": (lambda a, b: int(a == b), "({0} == {1})"),
    "ne": (lambda a, b: int(a != b), "({0} != {1})"),
    "lt": (lambda a, b: int(a < b), "({0} < {1})"),
    "le": (lambda a, b: int(a <= b), "({0} <= {1})"),
    "gt": (lambda a, b: int(a > b), "({0} > {1})"),
    "ge": (lambda a, b: int(a >= b), "({0} >= {1})"),
    "and": (lambda a, b: int(bool(a) and bool(b)), "({0} && {1})"),
    "or": (lambda a, b: int(bool(a) or bool(b)), "({0} || {1})"),
    "not": (lambda a: int(not a), "(!{0})"),
    "select": (lambda c, a, b: a if c else b, "({0} ? {1} : {2})"),
}
_ARITY = {"neg": 1, "abs": 1, "not": 1, "select": 3}
LEAVES = ("size", "scalar")


def simplify(name: str, *operands: Expression) -> Expression:
    """Return an operation on expressions, computed at once where all operands are known."""
    function = OPERATIONS[name][0]
    known = [operand for operand in operands if isinstance(operand, int)]
    if len(known) == len(operands) and not (name in ("floordiv", "mod") and known[1] == 0):
        return int(function(*known))
    if name == "select" and isinstance(operands[0], int):
        return operands[1] if operands[0] else operands[2]
    if name in ("mul", "floordiv") and operands[1] == 1:
        return operands[0]
    return (name, *operands)


def grid_of(kernel: Kernel) -> tuple[Expression, Expression, Expression]:
    """Return the three grid extents of a kernel as expressions."""
    values = _evaluate_region(kernel.grid, {p: ("scalar", p.name) for p in kernel.params}, set(kernel.params))
    if len(values) != 3:
        raise TypeMismatch(
            f"the grid of {kernel.name} has {len(values)} extents, where a kernel has three", kernel.loc
        )
    return values[0], values[1], values[2]


def _evaluate_region(
    region: Region, known: dict[Value, Expression], params: set[Value]
) -> tuple[Expression, ...]:
    for operation in region.ops:
        if isinstance(operation, ops.Yield):
            for value in operation.values:
                _check_integer(value, operation)
            return tuple(known[value] for value in operation.values)
        known[operation.result] = _evaluate(operation, known, params)
    raise TypeMismatch("the grid of a kernel ends without a yield")


def _evaluate(operation: Operation, known: dict[Value, Expression], params: set[Value]) -> Expression:
    for value in operation.inputs():
        if value not in params:
            _check_integer(value, operation)
    if isinstance(operation, ops.Constant):
        if not isinstance(operation.value, int):
            raise TypeMismatch(f"the grid is computed from integers, not {operation.value}", operation.loc)
        return int(operation.value)
    if isinstance(operation, (ops.Dim, ops.Stride)):
        tensor = operation.tensor.type
        assert isinstance(tensor, GlobalType)
        extents = tensor.dims if isinstance(operation, ops.Dim) else tensor.strides
        extent = extents[operation.axis]
        return ("size", extent.name) if isinstance(extent, Symbol) else extent
    inputs = [known[value] for value in operation.inputs()]
    if isinstance(operation, (ops.Cast, ops.Assume)):
        _check_integer(operation.result, operation)
        _check_integer(next(operation.inputs()), operation)
        return inputs[0]
    if isinstance(operation, ops.Select):
        return simplify("select", *inputs)
    if isinstance(operation, (ops.Binary, ops.Compare, ops.Unary)) and operation.kind in OPERATIONS:
        logic = operation.kind in ("and", "or", "not")
        booleans = all(isinstance(v.type, ScalarType) and v.type.dtype.is_boolean for v in operation.inputs())
        if not logic or booleans:
            return simplify(operation.kind, *inputs)
    what = getattr(operation, "kind", operation.opcode)
    raise TypeMismatch(
        f"the grid is computed on the host, which does not know {what}",
        operation.loc,
        "+ - * // %, cdiv, min, max and comparisons of sizes and integers",
    )


def _check_integer(value: Value, operation: Operation) -> None:
    kind = value.type
    if not (isinstance(kind, ScalarType) and (kind.dtype.is_integer or kind.dtype.is_boolean)):
        raise TypeMismatch(f"the grid is computed from integers, not from {kind}", operation.loc)


def evaluator(expression: Expression) -> Evaluator:
    """Return a function that computes an expression."""
    if isinstance(expression, int):
        constant = expression
        return lambda environment: constant
    if expression[0] in LEAVES:
        return operator.itemgetter(expression)
    function = OPERATIONS[expression[0]][0]
    operands = [evaluator(operand) for operand in expression[1:]]
    if expression[0] == "select":
        condition, a, b = operands
        # Only the branch that is taken may divide by zero.
        return lambda environment: a(environment) if condition(environment) else b(environment)
    if len(operands) == 1:
        (only,) = operands
        return lambda environment: function(only(environment))
    first, second = operands
    # As in C, the second operand is computed only where it matters; it may divide by zero.
    if expression[0] == "and":
        return lambda environment: int(bool(first(environment) and second(environment)))
    if expression[0] == "or":
        return lambda environment: int(bool(first(environment) or second(environment)))
    return lambda environment: function(first(environment), second(environment))


def leaves(expression: Expression) -> set[tuple[str, str]]:
    """Return the sizes and scalars that an expression reads."""
    if isinstance(expression, int):
        return set()
    if expression[0] in LEAVES:
        return {(expression[0], expression[1])}
    return set().union(*(leaves(operand) for operand in expression[1:]))


def to_c(expression: Expression, names: Mapping[tuple[str, str], str]) -> str:
    """Return an expression as C on 64-bit integers; `names` says what the sizes and scalars are called there."""
    if isinstance(expression, int):
        if expression == -(2**63):
            return "INT64_MIN"
        return f"INT64_C({expression})" if expression >= 0 else f"(-INT64_C({-expression}))"
    if expression[0] in LEAVES:
        return names[expression[0], expression[1]]
    return OPERATIONS[expression[0]][1].format(*(to_c(operand, names) for operand in expression[1:]))


def to_text(expression: Expression) -> str:
    """Return an expression for people."""
    if isinstance(expression, int):
        return str(expression)
    if expression[0] in LEAVES:
        return str(expression[1])
    name, operands = expression[0], [to_text(operand) for operand in expression[1:]]
    signs = {
        "add": "+", "sub": "-", "mul": "*", "floordiv": "//", "mod": "%", "eq": "==", "ne": "!=", "lt": "<",
        "le": "<=", "gt": ">", "ge": ">=", "and": "and", "or": "or",
    }  # fmt: skip
    if name in signs:
        return f"({operands[0]} {signs[name]} {operands[1]})"
    if name == "select":
        return f"({operands[1]} if {operands[0]} else {operands[2]})"
    return f"{name}({', '.join(operands)})"


def to_json(expression: Expression) -> Any:
    """Return an expression as JSON values."""
    if isinstance(expression, int) or expression[0] in LEAVES:
        return expression if isinstance(expression, int) else list(expression)
    return [expression[0], *(to_json(operand) for operand in expression[1:])]


def from_json(data: Any) -> Expression:
    """Return the expression that JSON values stand for, having checked each part of it."""
    if isinstance(data, int) and not isinstance(data, bool):
        return data
    if isinstance(data, list) and data and isinstance(data[0], str):
        name, operands = data[0], data[1:]
        if name in LEAVES and len(operands) == 1 and isinstance(operands[0], str):
            return (name, operands[0])
        if name in OPERATIONS and len(operands) == _ARITY.get(name, 2):
            return (name, *(from_json(operand) for operand in operands))
    raise LaunchError(f"{data!r} is no expression of sizes and scalars")


_PYTHON: dict[type[ast.AST], str] = {
    ast.Add: "add", ast.Sub: "sub", ast.Mult: "mul", ast.FloorDiv: "floordiv", ast.Mod: "mod", ast.Eq: "eq",
    ast.NotEq: "ne", ast.Lt: "lt", ast.LtE: "le", ast.Gt: "gt", ast.GtE: "ge", ast.And: "and", ast.Or: "or",
    ast.USub: "neg", ast.Not: "not",
}  # fmt: skip


def parse(text: str, names: Mapping[str, tuple[str, str]]) -> Expression:
    """Return the expression that Python text stands for, such as ``m <= 16 and k % 64 == 0``.

    Parameters
    ----------
    text : str
        Integers, names, ``+ - * // %``, comparisons, ``and``, ``or``, ``not``, ``min`` and ``max``.
    names : mapping
        What each name is: ``("size", name)`` or ``("scalar", name)``.
    """
    try:
        tree = ast.parse(text.strip(), mode="eval")
    except SyntaxError:
        raise SyntaxNotSupported(
            f"{text!r} is no expression", hint="such as m <= 16 and k % 64 == 0"
        ) from None

    def convert(node: ast.AST) -> Expression:
        if isinstance(node, ast.Constant) and isinstance(node.value, int):
            return int(node.value)
        if isinstance(node, ast.Name) and node.id in names:
            return names[node.id]
        if isinstance(node, ast.BinOp) and type(node.op) in _PYTHON:
            return simplify(_PYTHON[type(node.op)], convert(node.left), convert(node.right))
        if isinstance(node, ast.UnaryOp) and type(node.op) in _PYTHON:
            return simplify(_PYTHON[type(node.op)], convert(node.operand))
        if isinstance(node, ast.BoolOp):
            return _fold(_PYTHON[type(node.op)], [convert(value) for value in node.values])
        if isinstance(node, ast.Compare) and all(type(op) in _PYTHON for op in node.ops):
            values = [convert(value) for value in (node.left, *node.comparators)]
            pairs = zip(node.ops, values, values[1:])
            return _fold("and", [simplify(_PYTHON[type(op)], a, b) for op, a, b in pairs])
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in ("min", "max"):
            if node.args and not node.keywords:
                return _fold(node.func.id, [convert(argument) for argument in node.args])
        known = ", ".join(names) or "none"
        raise SyntaxNotSupported(
            f"{ast.unparse(node)} in {text!r} is not known here; the sizes and scalars are {known}",
            hint="integers, sizes and scalars with + - * // %, comparisons, and, or, not, min and max",
        )

    return convert(tree.body)


def _fold(name: str, parts: list[Expression]) -> Expression:
    result = parts[0]
    for part in parts[1:]:
        result = simplify(name, result, part)
    return result
