"""Rebuilds control flow so that state which some loops inside change is carried through all that is around them."""

from __future__ import annotations

from dataclasses import dataclass

from tilus.ir import ops
from tilus.ir.core import Operation, Region, Value, walk
from tilus.ir.rewrite import Rewriter

Key = int
State = tuple[Value, ...]


@dataclass(frozen=True)
class Frame:
    """Control flow being rebuilt: what it carries beside its own values."""

    is_loop: bool
    keys: tuple[Key, ...]


class Carrier(Rewriter):
    """A rewriter with state for each of some operations, which `visit` of a subclass reads and changes.

    `holders` names, for the `for`, `loop` and `if` around these operations, whose state is changed inside.
    """

    def __init__(self, holders: dict[int, tuple[Key, ...]]) -> None:
        super().__init__()
        self.holders = holders
        self.state: dict[Key, State] = {}
        self.frames: list[Frame] = []

    def visit(self, operation: Operation) -> None:
        if isinstance(operation, (ops.For, ops.Loop, ops.If)):
            self.structured(operation)
        elif isinstance(operation, (ops.Yield, ops.Break, ops.Continue)):
            self.hand(operation)
        else:
            self.copy(operation)

    def hand(self, operation: ops.Yield | ops.Break | ops.Continue) -> None:
        """Hand the state on with the values of a terminator."""
        frame = next(f for f in reversed(self.frames) if f.is_loop or isinstance(operation, ops.Yield))
        values = (*map(self.value, operation.values), *self._flat(frame.keys))
        self.emit(type(operation)(values, loc=operation.loc))

    def structured(self, operation: ops.For | ops.Loop | ops.If) -> None:
        """Rebuild a loop or a branch."""
        keys = self.holders.get(id(operation), ())
        before = dict(self.state)
        made: Operation
        if isinstance(operation, ops.If):
            cond = self.value(operation.cond)
            regions = []
            for branch in (operation.then, operation.orelse):
                self.state = dict(before)
                regions.append(self.inside(branch, Frame(False, keys)))
            made = ops.If(cond, *regions, loc=operation.loc)
        else:
            inits = (*map(self.value, operation.inits), *self._flat(keys))
            if isinstance(operation, ops.For):
                bounds = tuple(map(self.value, (operation.start, operation.stop, operation.step)))
                body = self.inside(operation.body, Frame(True, keys))
                made = ops.For(*bounds, inits, operation.stages, operation.unroll, body, loc=operation.loc)
            else:
                made = ops.Loop(inits, self.inside(operation.body, Frame(True, keys)), loc=operation.loc)
        self.state = before
        self.emit(made)
        own = len(operation.results)
        self.replace(operation, made.results[:own])
        # A branch that never reaches its end has no results, and nothing after it is run.
        if len(made.results) > own:
            self._unflatten(keys, made.results[own:])

    def inside(self, region: Region, frame: Frame) -> Region:
        """Rebuild a region of a loop or a branch; a loop's has the state as arguments."""
        args = [self.argument(a) for a in region.args]
        if frame.is_loop:
            fresh = [Value(v.type, v.name) for v in self._flat(frame.keys)]
            args += fresh
            self._unflatten(frame.keys, tuple(fresh))
        self.frames.append(frame)
        self.blocks.append([])
        for operation in region.ops:
            self.visit(operation)
        self.frames.pop()
        return Region(tuple(args), tuple(self.blocks.pop()))

    def _flat(self, keys: tuple[Key, ...]) -> tuple[Value, ...]:
        return tuple(value for key in keys for value in self.state[key])

    def _unflatten(self, keys: tuple[Key, ...], values: tuple[Value, ...]) -> None:
        at = 0
        for key in keys:
            size = len(self.state[key])
            self.state[key] = values[at : at + size]
            at += size


def holders_of(region: Region, marked: set[Key]) -> dict[int, tuple[Key, ...]]:
    """Return which marked operations (by identity) stand inside each loop and branch around one."""
    found: dict[int, tuple[Key, ...]] = {}
    for operation in walk(region):
        if isinstance(operation, (ops.For, ops.Loop, ops.If)) and id(operation) not in marked:
            inner = [id(x) for nested in operation.regions() for x in walk(nested) if id(x) in marked]
            if inner:
                found[id(operation)] = tuple(inner)
    return found
