"""Control flow that is decided at run time: `if`, loops, early exits, and groups of warps."""

from __future__ import annotations

import ast
from collections.abc import Callable, Sequence
from typing import Any

from tilus.errors import NameNotFound, SyntaxNotSupported, TypeMismatch
from tilus.ir import Operation, RegisterType, ScalarType, Value, ops
from tilus.lang.frontend.carry import (
    Fixed,
    Group,
    Part,
    Slot,
    carriable,
    describe_part,
    put_together,
    shape_of_merge,
    shape_of_start,
    slots,
    take_apart,
)
from tilus.lang.frontend.liveness import assigned, loads
from tilus.lang.frontend.tracer import Flow, Scope, Tracer, Undefined
from tilus.lang.promotion import promote
from tilus.lang.semantics.arithmetic import convert, truth
from tilus.lang.semantics.launch import LoopRange, WarpsContext

MISSING = object()
Branch = tuple[list[Operation], dict[str, object], Flow]


def trace_branch(t: Tracer, run: Callable[[], Flow]) -> Branch:
    """Trace into a region of its own; names are as before afterwards."""
    frame = t.frame
    before = dict(frame.names)
    with t.region() as block:
        flow = run()
    names, frame.names = frame.names, before
    return block, names, flow


def runtime_if(t: Tracer, node: ast.If, cond: Value, then: list[ast.stmt], orelse: list[ast.stmt]) -> Flow:
    """Trace an `if` whose condition is known at run time only."""
    first = trace_branch(t, lambda: t.execute(then))
    second = trace_branch(t, lambda: t.execute(orelse))
    before = t.frame.names
    open_branches = [branch for branch in (first, second) if branch[2] is Flow.NEXT]
    merged: dict[str, Part] = {}
    live = t.frame.source.liveness.after[node]
    names = list(dict.fromkeys([*assigned(then), *assigned(orelse)]))
    after: dict[str, object] = {}
    for name in names:
        if name not in live:
            after[name] = Undefined(f"it is assigned under the condition in line {node.lineno}")
            continue
        found = [branch[1].get(name, MISSING) for branch in open_branches]
        if len(found) == 2 and (MISSING in found or any(isinstance(v, Undefined) for v in found)):
            after[name] = undefined_on_a_path(name, node, found)
        elif len(found) == 2:
            merged[name] = shape_of_merge(name, found[0], found[1], node.lineno)
        elif len(found) == 1:
            merged[name] = leaving_shape(found[0], before.get(name, MISSING), node)
    for block, branch_names, flow in (first, second):
        if flow is Flow.NEXT:
            with t.region(block):
                t.emit(ops.Yield, yielded(t, merged, branch_names))
        else:
            assert flow is Flow.ENDED, flow
    made = t.emit(ops.If, cond, t.close(first[0]), t.close(second[0]))
    rest = list(made.results)
    for name, part in merged.items():
        count = len(slots(part))
        after[name] = rename(put_together(part, rest[:count]), name)
        rest = rest[count:]
    t.frame.names.update(after)
    if open_branches:
        return Flow.NEXT
    t.emit(ops.Return)
    return Flow.ENDED


def yielded(t: Tracer, merged: dict[str, Part], names: dict[str, object]) -> tuple[Value, ...]:
    """Return the SSA values that a branch yields for names."""
    values: list[Value] = []
    for name, part in merged.items():
        if not isinstance(part, Fixed):
            values += take_apart(t, part, names[name], disagree)
    return tuple(values)


def disagree(expected: object, found: object) -> TypeMismatch:
    """Return the error for branches that differ, which the merge of their values has excluded."""
    return TypeMismatch(f"one branch gives {describe_part(expected)}, the other {describe_part(found)}")


def rename(value: object, name: str) -> object:
    """Give an unnamed SSA value the name of the variable that holds it."""
    if isinstance(value, Value) and not value.name:
        value.name = name
    return value


def undefined_on_a_path(name: str, node: ast.If, found: Sequence[object]) -> Undefined:
    """Say why a name has no value after an `if`."""
    for value in found:
        if isinstance(value, Undefined):
            return value
    holds = "holds" if found[0] is not MISSING else "does not hold"
    return Undefined(f"it is assigned only if the condition in line {node.lineno} {holds}")


def leaving_shape(value: object, before: object, node: ast.If) -> Part:
    """Return what leaves the only branch of an `if` that goes on."""
    if value is before or value is MISSING or isinstance(value, Undefined):
        return Fixed(Undefined("it is not assigned on this path") if value is MISSING else value)
    if isinstance(value, Value) and not carriable(value):
        return Fixed(
            Undefined(f"{name_of_kind(value)} made under the condition in line {node.lineno} stays there")
        )
    part = shape_of_start(value) if contains_value(value) else Fixed(value)
    return part


def name_of_kind(value: Value) -> str:
    """Say what kind of thing a tensor or barrier is."""
    return {"SharedType": "the shared tensor", "GlobalType": "the tensor"}.get(
        type(value.type).__name__, "the value"
    )


def contains_value(value: object) -> bool:
    """Tell whether a value or a part of it is an SSA value."""
    return isinstance(value, Value) or (isinstance(value, (tuple, list)) and any(map(contains_value, value)))


# Loops.


class Carried:
    """The names that a loop carries, and how their values pass through its region."""

    def __init__(self, t: Tracer, node: ast.For | ast.While, names: Sequence[str]) -> None:
        self.t = t
        self.node = node
        before = t.frame.names
        self.parts = {n: shape_of_start(before[n]) for n in names if not isinstance(before[n], Undefined)}
        self.inits = self.collect(before)
        self.args: list[Value] = []

    def complaint(self, name: str) -> Callable[[object, object], TypeMismatch]:
        """Return what makes the error for a name whose type the loop changes."""

        def complain(expected: object, found: object) -> TypeMismatch:
            where = f"before the loop in line {self.node.lineno}"
            if isinstance(expected, Value) and not carriable(expected):
                return TypeMismatch(
                    f"{name} is {describe_part(expected)} {where}, and the loop gives it another",
                    hint="one tensor with a leading dimension for its stages, and an index that the loop changes",
                )
            hint = carry_hint(name, expected, found)
            return TypeMismatch(
                f"{name} is {describe_part(expected)} {where}, and {describe_part(found)} after an iteration",
                hint=hint,
            )

        return complain

    def collect(self, names: dict[str, object]) -> tuple[Value, ...]:
        """Return the SSA values that the names have now."""
        values: list[Value] = []
        for name, part in self.parts.items():
            value = names.get(name, MISSING)
            if isinstance(value, Undefined) or value is MISSING:
                reason = value.reason if isinstance(value, Undefined) else "it is not assigned"
                raise NameNotFound(
                    f"{name} has a value before the loop in line {self.node.lineno}, but none after it: {reason}",
                    hint=f"a value for {name} on every path",
                )
            values += take_apart(self.t, part, value, self.complaint(name))
        return tuple(values)

    def enter(self) -> None:
        """Give the names the arguments of the region."""
        for name, part in self.parts.items():
            args = [Value(type, name) for type in slots(part)]
            self.args += args
            self.t.frame.names[name] = put_together(part, args)

    def leave(self, results: Sequence[Value]) -> None:
        """Give the names the results of the loop."""
        rest = list(results)
        for name, part in self.parts.items():
            count = len(slots(part))
            self.t.frame.names[name] = rename(put_together(part, rest[:count]), name)
            rest = rest[count:]


def carry_hint(name: str, expected: object, found: object) -> str:
    """Say what to write for a name whose type a loop changes."""
    if not isinstance(expected, (Slot, Group)):
        return "for ... in tilus.static_range(...), where values known at compile time may change"
    before, after = getattr(expected, "type", None), getattr(found, "type", None)
    if isinstance(after, ScalarType) and isinstance(before, ScalarType):
        return f"{name}: tilus.{after.dtype} = ... before the loop, or {name}.to(tilus.{before.dtype}) in it"
    if isinstance(after, RegisterType) and isinstance(before, RegisterType) and after.shape == before.shape:
        return f"{name}.to(tilus.{before.dtype}) in the loop, or a first value of {after.dtype}"
    if isinstance(after, RegisterType) and isinstance(before, ScalarType):
        return f"{name} = tilus.zeros({after.shape}, tilus.{after.dtype}) before the loop, or tilus.full"
    return "one type and shape for all iterations, or tilus.static_range, which unrolls the loop"


def carried_names(t: Tracer, node: ast.For | ast.While, names: Sequence[str]) -> list[str]:
    """Return the names that a loop binds, that have a value before, and whose value is read later."""
    live = t.frame.source.liveness.head[node]
    return [name for name in names if name in live and name in t.frame.names]


def trace_loop(
    t: Tracer,
    node: ast.For | ast.While,
    names: Sequence[str],
    head: Callable[[Carried], None],
) -> tuple[Carried, list[Operation]]:
    """Trace the body of a run-time loop into a region; `head` runs first inside of it."""
    frame = t.frame
    carried = Carried(t, node, carried_names(t, node, names))
    before = dict(frame.names)
    with t.region() as block:
        carried.enter()

        def terminate(cls: type[Operation]) -> None:
            t.emit(cls, carried.collect(frame.names))

        frame.scopes.append(Scope("loop", t.open_regions, terminate))
        head(carried)
        flow = t.execute(node.body)
        if flow is Flow.NEXT:
            t.emit(ops.Yield, carried.collect(frame.names))
        frame.scopes.pop()
    frame.names = before
    for name in names:
        if name not in carried.parts:
            frame.names[name] = Undefined(
                f"it is assigned in the loop in line {node.lineno}, which may not run"
            )
    return carried, block


def for_range(t: Tracer, node: ast.For, loop: LoopRange) -> Flow:
    """Trace a run-time loop over a range."""
    if not isinstance(node.target, ast.Name):
        raise SyntaxNotSupported("a loop over a range has one index", hint="for i in range(n)")
    target = node.target.id
    start, stop, step = (t.integer(part) for part in (loop.start, loop.stop, loop.step))
    assert start is not None
    assert stop is not None
    assert step is not None
    require_known_sign(t, step)
    dtype = start.type.dtype  # type: ignore[attr-defined]
    for bound in (stop, step):
        dtype = promote("range", dtype, bound.type.dtype)  # type: ignore[attr-defined]
    start, stop, step = (convert(t, bound, dtype) for bound in (start, stop, step))
    index = Value(ScalarType(dtype), target)

    def head(carried: Carried) -> None:
        t.frame.names[target] = index

    names = list(dict.fromkeys([target, *assigned(node.body)]))
    carried, block = trace_loop(t, node, names, head)
    made = t.emit(
        ops.For, start, stop, step, carried.inits, stages=loop.stages, unroll=loop.unroll,
        body=t.close(block, (index, *carried.args)),
    )  # fmt: skip
    carried.leave(made.results)
    return Flow.NEXT


def require_known_sign(t: Tracer, step: Value) -> None:
    """Refuse a step that might be zero or negative."""
    number = t.known(step)
    if number is None and not is_positive(t, step):
        raise TypeMismatch(
            "range takes a step known at compile time, or one that is positive for certain, such as tilus.grid_dim(0)",
            hint="range(start, stop, tilus.max(step, 1))",
        )


def is_positive(t: Tracer, value: Value) -> bool:
    """Tell whether a scalar is positive by the way it is computed."""
    made = t.defined.get(value)
    if isinstance(made, ops.Constant):
        return made.value > 0
    if isinstance(made, ops.GridDim):
        return True
    if isinstance(made, ops.Cast):
        return is_positive(t, made.x)
    if isinstance(made, ops.Binary):
        sides = [is_positive(t, side) for side in (made.a, made.b)]
        if made.kind == "max":
            return any(sides)
        return made.kind in ("add", "mul", "min") and all(sides)
    return False


def while_loop(t: Tracer, node: ast.While) -> Flow:
    """Trace a run-time `while`."""
    names = assigned(node.body)
    constant = constant_condition(t, node, names)
    if constant is False:
        return Flow.NEXT
    endless = constant is True

    def head(carried: Carried) -> None:
        if endless:
            return
        cond = t.evaluate(node.test)
        if not isinstance(cond, Value):
            if not cond:
                raise SyntaxNotSupported(
                    "the condition of this while is false at compile time",
                    hint="if, for a body that may be left out",
                )
            return
        cond = truth(t, "while", cond)
        with t.region() as go_on:
            t.emit(ops.Yield)
        with t.region() as leave:
            t.emit(ops.Break, carried.collect(t.frame.names))
        t.emit(ops.If, cond, t.close(go_on), t.close(leave))

    carried, block = trace_loop(t, node, names, head)
    if endless and not may_end(block):
        raise SyntaxNotSupported(
            "this while never ends: its condition is always true, and there is no break and no return",
            hint="a condition, or a break in an if",
        )
    made = t.emit(ops.Loop, carried.inits, body=t.close(block, tuple(carried.args)))
    carried.leave(made.results)
    return Flow.NEXT


def may_end(block: Sequence[Operation], inner: bool = False) -> bool:
    """Tell whether a loop's body may leave it; with `inner`, by a return out of a loop inside of it."""
    for op in block:
        if isinstance(op, ops.Return) or (isinstance(op, ops.Break) and not inner):
            return True
        within = inner or isinstance(op, (ops.For, ops.Loop))
        if any(may_end(region.ops, within) for region in op.regions()):
            return True
    return False


def constant_condition(t: Tracer, node: ast.While, names: Sequence[str]) -> bool | None:
    """Return the condition of a `while` if it is known at compile time, before the first iteration and ever after."""
    if loads(node.test) & frozenset(names):
        return None
    with t.region():
        cond = t.evaluate(node.test)
    return None if isinstance(cond, Value) else bool(cond)


def leave_loop(t: Tracer, word: str) -> Flow:
    """Trace `break` or `continue`."""
    scopes = t.frame.scopes
    # Python refuses a break outside of a loop.
    assert scopes
    scope = scopes[-1]
    if scope.kind == "warps":
        raise SyntaxNotSupported(
            f"{word} leaves a group of warps",
            hint=f"the loop inside of `with tilus.warps(...)`, or {word} after it",
        )
    if scope.kind == "loop":
        assert scope.terminate is not None
        scope.terminate(ops.Break if word == "break" else ops.Continue)
        return Flow.ENDED
    if t.open_regions != scope.regions:
        raise SyntaxNotSupported(
            f"{word} of a loop that is unrolled at compile time depends on a run-time condition",
            hint="for i in range(...), which is a run-time loop",
        )
    return Flow.BREAK if word == "break" else Flow.CONTINUE


def warp_group(t: Tracer, node: ast.With, group: WarpsContext) -> Flow:
    """Trace `with tilus.warps(first, count):`."""
    if t.warp_groups:
        first, count = t.warp_groups[-1]
        if not first <= group.first <= group.first + group.count <= first + count:
            raise TypeMismatch(
                f"warps {group.first} to {group.first + group.count - 1} are not among warps {first} to "
                f"{first + count - 1}, which the code around is for",
                hint="warps of the group around, or one `with tilus.warps(...)` after the other",
            )
    if group.first + group.count > t.warps:
        raise TypeMismatch(
            f"warps {group.first} to {group.first + group.count - 1} of a thread block of {t.warps} warps",
            hint="tilus.grid(..., warps=...) above, with as many warps as the groups take",
        )
    frame = t.frame
    before = dict(frame.names)
    t.warp_groups.append((group.first, group.count))
    frame.scopes.append(Scope("warps", t.open_regions + 1))
    with t.region() as block:
        flow = t.execute(node.body)
        if flow is Flow.NEXT:
            t.emit(ops.Yield)
    frame.scopes.pop()
    t.warp_groups.pop()
    frame.names = before
    for name in assigned(node.body):
        frame.names[name] = Undefined(
            f"it is assigned by the warps of line {node.lineno} alone, and values pass between groups through memory",
            f"tilus.store of {name} to a shared tensor by these warps, tilus.sync() after them, and tilus.load",
        )
    t.emit(ops.WarpGroup, group.first, group.count, group.registers, t.close(block))
    return Flow.NEXT


def inline_return_if(
    t: Tracer, node: ast.If, cond: Value, then: list[ast.stmt], orelse: list[ast.stmt]
) -> Flow:
    """Trace a run-time `if` of an inline function that returns in a branch; both branches run to the end."""
    frame = t.frame

    def branch(body: list[ast.stmt]) -> tuple[list[Operation], object]:
        frame.result = None
        block, _, flow = trace_branch(t, lambda: t.execute(body))
        assert flow in (Flow.NEXT, Flow.RETURN), flow
        return block, frame.result

    first, a = branch(then)
    second, b = branch(orelse)
    part = shape_of_merge(f"the result of {frame.source.name}", a, b, node.lineno)
    for block, result in ((first, a), (second, b)):
        with t.region(block):
            t.emit(ops.Yield, tuple(take_apart(t, part, result, disagree)))
    made = t.emit(ops.If, cond, t.close(first), t.close(second))
    frame.result = put_together(part, made.results)
    return Flow.RETURN


def choose(
    t: Tracer, what: str, cond: Value, line: int, first: Callable[[], Any], second: Callable[[], Any]
) -> Any:
    """Trace an expression that is one of two by a run-time condition."""
    with t.region() as then:
        a = first()
    with t.region() as orelse:
        b = second()
    part = shape_of_merge(what, a, b, line)
    for block, result in ((then, a), (orelse, b)):
        with t.region(block):
            t.emit(ops.Yield, tuple(take_apart(t, part, result, disagree)))
    made = t.emit(ops.If, cond, t.close(then), t.close(orelse))
    return put_together(part, made.results)
