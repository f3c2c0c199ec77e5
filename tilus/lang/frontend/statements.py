"""Statements: assignments, what compile-time values decide at once, and what a kernel may not write."""

from __future__ import annotations

import ast
from collections.abc import Iterable

from tilus.dtypes import DType
from tilus.errors import ShapeMismatch, SyntaxNotSupported, TypeMismatch
from tilus.ir import GlobalType, RegisterType, ScalarType, SharedType, Value, ops
from tilus.lang import functions
from tilus.lang.diagnostics import describe
from tilus.lang.frontend.control import (
    for_range,
    inline_return_if,
    leave_loop,
    runtime_if,
    warp_group,
    while_loop,
)
from tilus.lang.frontend.expressions import OPERATORS, apply_binary
from tilus.lang.frontend.tracer import Flow, Scope, Tracer, is_runtime, statement
from tilus.lang.promotion import is_number
from tilus.lang.semantics.arithmetic import truth
from tilus.lang.semantics.debug import FormattedText
from tilus.lang.semantics.launch import LoopRange, WarpsContext

REFUSED: dict[type[ast.stmt], tuple[str, str]] = {
    ast.FunctionDef: (
        "a function",
        "a function marked @tilus.inline at the top of the module",
    ),
    ast.AsyncFunctionDef: ("a coroutine", "a function marked @tilus.inline"),
    ast.ClassDef: ("a class", "a class at the top of the module, passed as a constexpr"),
    ast.Try: ("try", "conditions that exclude the error, or tilus.device_assert"),
    ast.Raise: (
        "raise",
        'tilus.static_assert(False, "message"), or tilus.device_assert(condition, "message")',
    ),
    ast.Assert: (
        "assert",
        "tilus.static_assert(condition, message) at compile time, tilus.device_assert(condition, message) at run time",
    ),
    ast.Import: ("import", "import at the top of the module"),
    ast.ImportFrom: ("import", "import at the top of the module"),
    ast.Global: (
        "global",
        "constexpr parameters for values that the kernel reads, and tensors for those it writes",
    ),
    ast.Nonlocal: ("nonlocal", "constexpr parameters for values that the kernel reads"),
    ast.Delete: ("del", "no del: a name that is not read again costs nothing"),
    ast.AsyncFor: ("async for", "for"),
    ast.AsyncWith: ("async with", "with"),
}
LATER_NODES = {"Match": ("match", "if and elif"), "TryStar": ("try", "conditions that exclude the error"),
               "TypeAlias": ("type", "a type alias at the top of the module")}  # fmt: skip
# Python 3.10 has no TryStar, and 3.11 no TypeAlias.
REFUSED.update({getattr(ast, name): words for name, words in LATER_NODES.items() if hasattr(ast, name)})


@statement(*REFUSED)
def refuse(t: Tracer, node: ast.stmt, rest: list[ast.stmt]) -> Flow:
    word, hint = REFUSED[type(node)]
    raise SyntaxNotSupported(f"a kernel may not contain {word}", hint=hint)


@statement(ast.Pass)
def pass_(t: Tracer, node: ast.Pass, rest: list[ast.stmt]) -> Flow:
    return Flow.NEXT


@statement(ast.Expr)
def expression_statement(t: Tracer, node: ast.Expr, rest: list[ast.stmt]) -> Flow:
    value = node.value
    if isinstance(value, ast.Constant):
        return Flow.NEXT
    if isinstance(value, ast.Call) and is_promise(t, value):
        make_promise(t, value)
        return Flow.NEXT
    result = t.evaluate(value)
    made = t.defined.get(result) if isinstance(result, Value) else None
    if isinstance(made, (ops.AnnotateLayout, ops.Assume)):
        raise TypeMismatch(
            "the result is not used, and names keep their values",
            hint=f"x = {ast.unparse(value)}, with x read further down",
        )
    return Flow.NEXT


def is_promise(t: Tracer, node: ast.Call) -> bool:
    """Tell whether a call is `tilus.assume(name % divisor == 0)`."""
    return len(node.args) == 1 and not node.keywords and isinstance(node.args[0], ast.Compare) and (
        t.evaluate(node.func) is functions.assume
    )  # fmt: skip


def make_promise(t: Tracer, node: ast.Call) -> None:
    """Give a name its own value with the promise that it is a multiple of another."""
    from tilus.lang.frontend.calls import call

    test = node.args[0]
    assert isinstance(test, ast.Compare)
    remainder = test.left
    is_remainder = (
        isinstance(remainder, ast.BinOp)
        and isinstance(remainder.op, ast.Mod)
        and isinstance(remainder.left, ast.Name)
        and len(test.ops) == 1
        and isinstance(test.ops[0], ast.Eq)
    )
    zero = t.evaluate(test.comparators[0]) if is_remainder else None
    if not is_remainder or isinstance(zero, Value) or isinstance(zero, bool) or zero != 0:
        raise TypeMismatch(
            "assume takes a comparison of the form name % divisor == 0",
            hint="m = a.shape[0], then tilus.assume(m % 16 == 0)",
        )
    assert isinstance(remainder, ast.BinOp)
    assert isinstance(remainder.left, ast.Name)
    name = remainder.left.id
    value = call(t, functions.assume, [t.lookup(name), t.evaluate(remainder.right)], {})
    if name in t.frame.source.local_names:
        t.bind(name, value)


# Assignments.


@statement(ast.Assign)
def assign(t: Tracer, node: ast.Assign, rest: list[ast.stmt]) -> Flow:
    value = storable(t.evaluate(node.value))
    for target in node.targets:
        with t.at(target):
            bind_target(t, target, value)
    return Flow.NEXT


def storable(value: object) -> object:
    """Refuse values that have no meaning under a name."""
    if isinstance(value, FormattedText):
        raise TypeMismatch(
            "an f-string of run-time values is known on the device only",
            hint="the f-string inside of tilus.device_print(...)",
        )
    return value


def bind_target(t: Tracer, target: ast.expr, value: object) -> None:
    """Bind the names of an assignment's target."""
    if isinstance(target, ast.Name):
        t.bind(target.id, value)
    elif isinstance(target, (ast.Tuple, ast.List)):
        unpack(t, target.elts, value)
    elif isinstance(target, ast.Subscript):
        refuse_item_assignment(t, target)
    else:
        raise SyntaxNotSupported("a kernel assigns to names only", hint="a name for each value")


def refuse_item_assignment(t: Tracer, target: ast.Subscript) -> None:
    """Say what to write instead of an assignment to a part of something."""
    base = t.evaluate(target.value)
    type = base.type if isinstance(base, Value) else None
    if isinstance(type, RegisterType):
        raise SyntaxNotSupported(
            "a tile is a value, and no part of it is assigned",
            hint="x = tilus.where(mask, new, x), with a mask from tilus.iota",
        )
    if isinstance(type, GlobalType):
        raise SyntaxNotSupported(
            "a tensor in global memory takes no assignment", hint="tilus.store(a, x, offsets=(i, j))"
        )
    if isinstance(type, SharedType):
        raise SyntaxNotSupported("a shared tensor takes no assignment", hint="tilus.store(s[i], x)")
    if isinstance(base, (list, dict)):
        raise SyntaxNotSupported(
            f"a kernel does not change a {type_name(base)}, which may have other names",
            hint="xs = [new if i == k else x for i, x in enumerate(xs)]",
        )
    raise SyntaxNotSupported(f"no part of {describe(base)} is assigned", hint="a name for each value")


def type_name(value: object) -> str:
    """Return the name of a value's class."""
    return type(value).__name__


def unpack(t: Tracer, targets: list[ast.expr], value: object) -> None:
    """Bind several targets to the parts of a value."""
    parts = iterate(value, "an assignment to several names")
    starred = [i for i, target in enumerate(targets) if isinstance(target, ast.Starred)]
    if not starred:
        if len(parts) != len(targets):
            raise ShapeMismatch(f"{len(targets)} names for {len(parts)} values", hint=f"{len(parts)} names")
        pairs: Iterable[tuple[ast.expr, object]] = zip(targets, parts)
    else:
        at = starred[0]
        after = len(targets) - at - 1
        if len(parts) < len(targets) - 1:
            raise ShapeMismatch(
                f"{len(targets) - 1} names or more for {len(parts)} values", hint="fewer names"
            )
        middle = targets[at].value  # type: ignore[attr-defined]
        end = len(parts) - after
        pairs = [
            *zip(targets[:at], parts[:at]),
            (middle, parts[at:end]),
            *zip(targets[at + 1 :], parts[end:]),
        ]
    for target, part in pairs:
        with t.at(target):
            bind_target(t, target, part)


def iterate(value: object, what: str) -> list[object]:
    """Return the parts of a value that is known to be a sequence at compile time."""
    if isinstance(value, LoopRange):
        static = value.static()
        if static is None:
            raise TypeMismatch(f"{what} takes a range known at compile time", hint="tilus.static_range(n)")
        return list(static)
    if isinstance(value, Value):
        raise TypeMismatch(
            f"{what} takes a sequence known at compile time, not {describe(value)}",
            hint="its parts, each by its slice",
        )
    if isinstance(value, FormattedText) or not isinstance(value, Iterable):
        raise TypeMismatch(
            f"{what} takes a sequence, not {describe(value)}", hint="a tuple, a list or tilus.static_range(n)"
        )
    return list(value)


@statement(ast.AnnAssign)
def annotated_assign(t: Tracer, node: ast.AnnAssign, rest: list[ast.stmt]) -> Flow:
    if node.value is None:
        raise SyntaxNotSupported("a declaration without a value", hint="x: tilus.int64 = 0")
    if not isinstance(node.target, ast.Name):
        raise SyntaxNotSupported("a kernel assigns to names only", hint="a name for each value")
    dtype = t.evaluate(node.annotation)
    value = storable(t.evaluate(node.value))
    dtype = {int: None, float: None, bool: None}.get(dtype, dtype) if isinstance(dtype, type) else dtype
    if isinstance(dtype, DType):
        if is_number(value):
            value = t.constant(value, dtype)  # type: ignore[arg-type]
        found = (
            value.type.dtype
            if isinstance(value, Value) and isinstance(value.type, (ScalarType, RegisterType))
            else None
        )
        if found != dtype:
            raise TypeMismatch(
                f"{node.target.id} is declared as {dtype}, but is {describe(value)}", hint="x.to(...)"
            )
    elif dtype is not None:
        raise SyntaxNotSupported(
            "an annotation in a kernel is a dtype", hint="x: tilus.int64 = 0, or no annotation"
        )
    t.bind(node.target.id, value)
    return Flow.NEXT


@statement(ast.AugAssign)
def augmented_assign(t: Tracer, node: ast.AugAssign, rest: list[ast.stmt]) -> Flow:
    if isinstance(node.target, ast.Subscript):
        refuse_item_assignment(t, node.target)
    if not isinstance(node.target, ast.Name):
        raise SyntaxNotSupported("a kernel assigns to names only", hint="a name for each value")
    old = t.lookup(node.target.id)
    if isinstance(old, (list, dict, set)):
        raise SyntaxNotSupported(
            f"a kernel does not change a {type_name(old)}, which may have other names", hint="xs = [*xs, x]"
        )
    t.bind(node.target.id, apply_binary(t, OPERATORS[type(node.op)], old, t.evaluate(node.value)))
    return Flow.NEXT


# Control flow.


def contains_return(statements: Iterable[ast.stmt]) -> bool:
    """Tell whether statements return somewhere."""
    return any(isinstance(node, ast.Return) for s in statements for node in ast.walk(s))


@statement(ast.If)
def if_(t: Tracer, node: ast.If, rest: list[ast.stmt]) -> Flow:
    cond = condition(t, "if", node.test)
    returns = t.frame.inline and contains_return([node])
    if not isinstance(cond, Value):
        chosen = node.body if cond else node.orelse
        if returns and not t.frame.scopes and contains_return(chosen):
            if t.execute([*chosen, *rest]) is Flow.NEXT:
                t.frame.result = None
            return Flow.RETURN
        return t.execute(chosen)
    if returns:
        if t.frame.scopes:
            raise SyntaxNotSupported(
                "an inline function returns from inside of a loop by a run-time condition",
                hint="a variable for the result, and break",
            )
        return inline_return_if(t, node, cond, [*node.body, *rest], [*node.orelse, *rest])
    return runtime_if(t, node, cond, node.body, node.orelse)


def condition(t: Tracer, what: str, node: ast.expr) -> object:
    """Evaluate a condition: a boolean scalar, or a Python value by its truth."""
    value = t.evaluate(node)
    if isinstance(value, Value):
        with t.at(node):
            return truth(t, what, value)
    if is_runtime(value):
        return len(value) > 0
    return bool(value)


@statement(ast.For)
def for_(t: Tracer, node: ast.For, rest: list[ast.stmt]) -> Flow:
    if node.orelse:
        with t.at(node.orelse[0]):
            raise SyntaxNotSupported(
                "a kernel may not contain the else of a loop",
                hint="a variable that the loop sets before break",
            )
    over = t.evaluate(node.iter)
    if isinstance(over, LoopRange):
        return for_range(t, node, over)
    if isinstance(over, Value):
        raise TypeMismatch(
            f"for runs over a range or a sequence, not {describe(over)}", hint="for i in range(n)"
        )
    return unrolled(t, node, iterate(over, "for"))


def unrolled(t: Tracer, node: ast.For, parts: list[object]) -> Flow:
    """Trace a loop over a sequence that is known at compile time, once for each part."""
    frame = t.frame
    frame.scopes.append(Scope("unrolled", t.open_regions))
    flow = Flow.NEXT
    for part in parts:
        with t.at(node.target):
            bind_target(t, node.target, part)
        flow = t.execute(node.body)
        if flow is Flow.CONTINUE:
            flow = Flow.NEXT
        if flow is not Flow.NEXT:
            break
    frame.scopes.pop()
    return Flow.NEXT if flow is Flow.BREAK else flow


@statement(ast.While)
def while_(t: Tracer, node: ast.While, rest: list[ast.stmt]) -> Flow:
    if node.orelse:
        with t.at(node.orelse[0]):
            raise SyntaxNotSupported(
                "a kernel may not contain the else of a loop",
                hint="a variable that the loop sets before break",
            )
    return while_loop(t, node)


@statement(ast.Break)
def break_(t: Tracer, node: ast.Break, rest: list[ast.stmt]) -> Flow:
    return leave_loop(t, "break")


@statement(ast.Continue)
def continue_(t: Tracer, node: ast.Continue, rest: list[ast.stmt]) -> Flow:
    return leave_loop(t, "continue")


@statement(ast.Return)
def return_(t: Tracer, node: ast.Return, rest: list[ast.stmt]) -> Flow:
    frame = t.frame
    if frame.inline:
        kinds = [scope.kind for scope in frame.scopes]
        if "loop" in kinds or "warps" in kinds:
            place = "a run-time loop" if "loop" in kinds else "a group of warps"
            raise SyntaxNotSupported(
                f"an inline function returns from inside of {place}",
                hint="a variable for the result, and return after the loop",
            )
        frame.result = storable(t.evaluate(node.value)) if node.value is not None else None
        return Flow.RETURN
    if node.value is not None and not (isinstance(node.value, ast.Constant) and node.value.value is None):
        raise SyntaxNotSupported("a kernel returns nothing", hint="tilus.store(out, x, offsets), and return")
    t.emit(ops.Return)
    return Flow.ENDED


@statement(ast.With)
def with_(t: Tracer, node: ast.With, rest: list[ast.stmt]) -> Flow:
    if len(node.items) != 1:
        raise SyntaxNotSupported("with takes one group of warps", hint="with tilus.warps(first, count):")
    context_node = node.items[0].context_expr
    # Nothing else is called: a file would be opened by the compiler.
    is_call = isinstance(context_node, ast.Call) and t.evaluate(context_node.func) is functions.warps
    if not is_call:
        raise SyntaxNotSupported("with takes a group of warps", hint="with tilus.warps(first, count):")
    context = t.evaluate(context_node)
    assert isinstance(context, WarpsContext)
    if node.items[0].optional_vars is not None:
        raise SyntaxNotSupported("a group of warps has no name", hint="with tilus.warps(first, count):")
    return warp_group(t, node, context)
