"""Makes a kernel simpler without changing what it computes.

Constants are folded (integers wrap at their width), operations that change nothing disappear, equal pure operations
become one, branches and loops whose course is known dissolve, and what nothing needs is removed.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import TypeVar, cast

from tilus.dtypes import DType
from tilus.errors import Location
from tilus.ir import ops
from tilus.ir.core import Operation, Region, Value, schema
from tilus.ir.kernel import Kernel
from tilus.ir.types import ScalarType
from tilus.passes.dead_code import eliminate_dead_code
from tilus.passes.folding import Number
from tilus.passes.rules import RULES

# Each round may open the way for another; a kernel that needs more is left a little longer than it could be.
_ROUNDS = 8

_O = TypeVar("_O", bound=Operation)
Key = tuple[object, ...]


def canonicalise(kernel: Kernel) -> Kernel:
    """Return an equivalent kernel in simpler form.

    Results keep their types, layouts included, so that the pass may stand anywhere among the others. The old kernel
    and the new one share what did not change.
    """
    for _ in range(_ROUNDS):
        before = kernel
        grid, body = (_Simplifier().run(region) for region in (kernel.grid, kernel.body))
        if grid is not kernel.grid or body is not kernel.body:
            kernel = dataclasses.replace(kernel, grid=grid, body=body)
        kernel = eliminate_dead_code(kernel)
        if kernel is before:
            break
    return kernel


class _Simplifier:
    """Walks a region once, in program order."""

    def __init__(self) -> None:
        # What values became; values that are not here stayed.
        self.mapping: dict[Value, Value] = {}
        # Constants: scalars, and tiles all of whose elements are one.
        self.constants: dict[Value, Number] = {}
        self.definitions: dict[Value, Operation] = {}
        # Pure operations in scope, by what makes two equal.
        self.available: dict[Key, Operation] = {}
        self.block: list[Operation] = []
        # Which carried values the loop around keeps; None for all.
        self.kept: list[tuple[int, ...] | None] = []

    def run(self, region: Region) -> Region:
        """Return the simplified region; the region itself if nothing changed."""
        return self.region(region)

    def value(self, value: Value) -> Value:
        return self.mapping.get(value, value)

    # Regions.

    def region(self, region: Region, args: tuple[Value, ...] | None = None, isolated: bool = False) -> Region:
        """Simplify a region; what it computes is not available after it."""
        outer, available = self.block, self.available
        self.block = []
        self.available = {} if isolated else dict(available)
        self.walk(region.ops)
        made = tuple(self.block)
        self.block, self.available = outer, available
        kept = region.args if args is None else args
        if (
            len(made) == len(region.ops)
            and kept == region.args
            and all(a is b for a, b in zip(made, region.ops))
        ):
            return region
        return Region(kept, made)

    def walk(self, operations: Sequence[Operation]) -> None:
        """Simplify operations into the current block; what follows a terminator is never reached."""
        for operation in operations:
            self.visit(operation)
            if self.block and self.block[-1].terminator:
                return

    def visit(self, operation: Operation) -> None:
        if operation.terminator:
            self.terminator(operation)
        elif isinstance(operation, ops.If):
            self.branch(operation)
        elif isinstance(operation, (ops.For, ops.Loop)):
            self.loop(operation)
        elif isinstance(operation, ops.WarpGroup):
            # A group of warps does not hold the tiles of the others.
            body = self.region(operation.body, isolated=True)
            self.emit(operation if body is operation.body else operation.replace(body=body))
        else:
            self.plain(self.mapped(operation))

    def mapped(self, operation: _O) -> _O:
        """Return the operation with its operands as they are now, and the same results."""
        mapping = self.mapping
        if mapping and any(value in mapping for value in operation.inputs()):
            return cast(_O, operation.with_operands(self.value, results=operation.results))
        return operation

    def emit(self, operation: Operation) -> None:
        self.block.append(operation)
        for value in operation.results:
            self.definitions[value] = operation

    def constant(self, value: Number, dtype: DType, loc: Location | None, name: str = "") -> Value:
        """Return a constant, one that is there already if there is."""
        operation = ops.Constant(value, dtype, loc=loc)
        key = key_of(operation)
        found = self.available.get(key)
        if found is None:
            self.available[key] = found = operation
            operation.result.name = name
            self.emit(operation)
            self.constants[operation.result] = value
        return found.result

    # Operations without regions.

    def plain(self, operation: Operation) -> None:
        rule = RULES.get(type(operation))
        if rule is not None:
            found = rule(self, operation)
            if isinstance(found, Value):
                # A pointer's alignment or a tile's layout may not be lost on the way.
                if found.type == operation.result.type:
                    self.mapping[operation.result] = found
                    return
            elif isinstance(found, Operation):
                operation = found
            elif found is not None:
                result = operation.result
                if isinstance(result.type, ScalarType):
                    made = self.constant(found, result.type.dtype, operation.loc, result.name)
                    self.mapping[result] = made
                    return
        if operation.pure:
            key = key_of(operation)
            earlier = self.available.get(key)
            if earlier is not None:
                self.mapping.update(zip(operation.results, earlier.results, strict=True))
                return
            self.available[key] = operation
        self.emit(operation)

    # Control flow.

    def terminator(self, operation: Operation) -> None:
        operation = self.mapped(operation)
        if isinstance(operation, (ops.Break, ops.Continue)):
            kept = self.kept[-1]
            if kept is not None:
                operation = operation.replace(values=tuple(operation.values[i] for i in kept))
        self.emit(operation)

    def branch(self, operation: ops.If) -> None:
        operation = self.mapped(operation)
        known = self.constants.get(operation.cond)
        if known is not None:
            taken = operation.then if known else operation.orelse
            self.inline(taken, operation.results)
            return
        then, orelse = self.region(operation.then), self.region(operation.orelse)
        if then is not operation.then or orelse is not operation.orelse:
            operation = operation.replace(then=then, orelse=orelse)
        ends = then.terminator, orelse.terminator
        if isinstance(ends[0], ops.Yield) and isinstance(ends[1], ops.Yield):
            # What both branches yield was there before.
            for result, a, b in zip(operation.results, ends[0].values, ends[1].values, strict=True):
                if a is b and a.type == result.type:
                    self.mapping[result] = a
        self.emit(operation)

    def inline(self, region: Region, results: tuple[Value, ...]) -> None:
        """Put a region's operations in place; what its yield hands on becomes `results`."""
        *operations, last = region.ops
        self.walk(operations)
        if self.block and self.block[-1].terminator:
            return
        if isinstance(last, ops.Yield):
            self.mapping.update(zip(results, map(self.value, last.values), strict=True))
        else:
            self.visit(last)

    def loop(self, operation: ops.For | ops.Loop) -> None:
        operation = self.mapped(operation)
        if isinstance(operation, ops.For):
            turns = self.turns(operation)
            if turns is not None and len(turns) == 0:
                self.hand(operation.results, operation.inits)
                return
            if turns is not None and len(turns) == 1 and self.once(operation, turns[0]):
                return
        skip = 1 if isinstance(operation, ops.For) else 0
        carried = operation.body.args[skip:]
        hands = handed_on(operation.body)
        kept = []
        for place, (argument, init, result) in enumerate(
            zip(carried, operation.inits, operation.results, strict=True)
        ):
            if argument.type == init.type == result.type and all(
                self.value(values[place]) in (argument, init) for values in hands
            ):
                self.mapping[argument] = self.mapping[result] = init
            else:
                kept.append(place)
        if len(kept) == len(carried):
            self.kept.append(None)
            body = self.region(operation.body)
            self.kept.pop()
            if body is not operation.body:
                operation = operation.replace(body=body)
            self.emit(operation)
            return
        self.kept.append(tuple(kept))
        body = self.region(operation.body, operation.body.args[:skip] + tuple(carried[i] for i in kept))
        self.kept.pop()
        last = body.terminator
        if isinstance(last, ops.Yield):
            left = last.replace(values=tuple(last.values[i] for i in kept))
            body = Region(body.args, (*body.ops[:-1], left))
        inits = tuple(operation.inits[i] for i in kept)
        results = tuple(operation.results[i] for i in kept)
        self.emit(operation.replace(inits=inits, body=body, results=results))

    def hand(self, results: tuple[Value, ...], values: tuple[Value, ...]) -> None:
        for result, value in zip(results, values, strict=True):
            self.mapping[result] = value

    def turns(self, operation: ops.For) -> range | None:
        """Return the indices of a loop, if they are known."""
        bounds = [self.constants.get(v) for v in (operation.start, operation.stop, operation.step)]
        if any(b is None for b in bounds) or bounds[2] == 0:
            return None
        start, stop, step = (int(b) for b in bounds if b is not None)
        return range(start, stop, step)

    def once(self, operation: ops.For, index: int) -> bool:
        """Put the body of a loop that turns once in its place, unless it may leave early."""
        last = operation.body.terminator
        # The copies of a pipelined loop need waits elsewhere.
        if operation.stages or len(handed_on(operation.body)) != 1 or isinstance(last, ops.Return):
            return False
        first, *carried = operation.body.args
        if any(a.type != b.type for a, b in zip(carried, operation.inits, strict=True)):
            return False
        assert isinstance(first.type, ScalarType)
        self.mapping[first] = self.constant(index, first.type.dtype, operation.loc, first.name)
        self.mapping.update(zip(carried, operation.inits, strict=True))
        self.walk(operation.body.ops[:-1])
        if not (self.block and self.block[-1].terminator):
            self.hand(operation.results, tuple(map(self.value, last.inputs())))
        return True


def handed_on(body: Region) -> list[tuple[Value, ...]]:
    """Return what the terminators of a loop's body, at any depth, hand to the loop."""
    found: list[tuple[Value, ...]] = []

    def search(region: Region, own: bool) -> None:
        for operation in region.ops:
            if isinstance(operation, ops.If):
                search(operation.then, False)
                search(operation.orelse, False)
            elif isinstance(operation, (ops.Break, ops.Continue)) or (
                own and isinstance(operation, ops.Yield)
            ):
                found.append(operation.values)

    search(body, True)
    return found


def key_of(operation: Operation) -> Key:
    """Return what two pure operations have in common that compute the same."""
    parts: list[object] = [type(operation)]
    for name, role in schema(type(operation)):
        value = getattr(operation, name)
        # 1, 1.0 and True are equal in Python, as are 0.0 and -0.0.
        parts.append(repr(value) if name in ("value", "values") and role == "attribute" else value)
    parts += (value.type for value in operation.results)
    return tuple(parts)
