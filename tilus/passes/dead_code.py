"""Removes operations, and values carried by loops and branches, that nothing with an effect needs."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

from tilus.ir import ops
from tilus.ir.core import Operation, Region, Value
from tilus.ir.kernel import Kernel

# Not pure, but without effect where nobody uses the result: promises, and reads that cannot fail.
_ONLY_FOR_RESULT = (
    ops.AllocShared, ops.Assume, ops.BarrierAlloc, ops.Gather, ops.LoadGlobal, ops.LoadShared,
)  # fmt: skip
_Structured = ops.For | ops.Loop | ops.If | ops.WarpGroup


def only_for_result(operation: Operation) -> bool:
    """Tell whether an operation without regions may go where its results are not used."""
    if isinstance(operation, ops.InlinePtx):
        return not operation.volatile and bool(operation.results)
    return operation.pure or isinstance(operation, _ONLY_FOR_RESULT)


def eliminate_dead_code(kernel: Kernel) -> Kernel:
    """Return the kernel without what nothing needs; the kernel itself if there is nothing of the kind.

    A `for`, or a `loop` that only computes, is taken to end. A `loop` that reads memory may wait for another block
    and stays.
    """
    regions = [_Liveness(region).swept() for region in (kernel.grid, kernel.body)]
    if regions[0] is kernel.grid and regions[1] is kernel.body:
        return kernel
    return dataclasses.replace(kernel, grid=regions[0], body=regions[1])


def keep_only(region: Region, wanted: Callable[[Operation], bool]) -> Region:
    """Return a region with the operations that are wanted and what they depend on, as if no other had an effect."""
    return _Liveness(region, wanted).swept()


class _Liveness:
    """Marks what is needed, from effects backwards, then sweeps the rest."""

    def __init__(self, region: Region, wanted: Callable[[Operation], bool] | None = None) -> None:
        self.root = region
        self.wanted = wanted
        self.parent: dict[Operation, _Structured | None] = {}
        # An operation's result, or a loop's argument, by its place among the results (-1 for the index of a for).
        self.source: dict[Value, tuple[Operation, int]] = {}
        # For each loop, the terminators that hand values to it.
        self.hands: dict[Operation, list[Operation]] = {}
        self.live: set[Operation] = set()
        self.needed: set[tuple[Operation, int]] = set()
        self.work: list[Value] = []
        roots: list[Operation] = []
        self.collect(region, None, None, roots)
        for operation in roots:
            self.mark(operation)
        while self.work:
            self.need(self.work.pop())

    def collect(
        self, region: Region, parent: _Structured | None, loop: Operation | None, roots: list[Operation]
    ) -> None:
        for operation in region.ops:
            self.parent[operation] = parent
            for place, value in enumerate(operation.results):
                self.source[value] = (operation, place)
            if isinstance(operation, (ops.For, ops.Loop)):
                skip = 1 if isinstance(operation, ops.For) else 0
                for place, value in enumerate(operation.body.args):
                    self.source[value] = (operation, place - skip)
                self.hands[operation] = []
                before = len(roots)
                self.collect(operation.body, operation, operation, roots)
                waits = self.wanted is None and reads(operation.body)
                if isinstance(operation, ops.Loop) and (len(roots) > before or waits):
                    roots.append(operation)
            elif isinstance(operation, (ops.If, ops.WarpGroup)):
                for inner in operation.regions():
                    self.collect(inner, operation, loop, roots)
            elif isinstance(operation, ops.Yield):
                if isinstance(parent, (ops.For, ops.Loop)):
                    self.hands[parent].append(operation)
                elif parent is None:
                    roots.append(operation)
            elif isinstance(operation, (ops.Break, ops.Continue)):
                assert loop is not None
                self.hands[loop].append(operation)
            elif not only_for_result(operation) if self.wanted is None else self.wanted(operation):
                roots.append(operation)

    def mark(self, operation: Operation) -> None:
        """Keep an operation, all around it, and what decides how they run; not the values that they carry."""
        while operation not in self.live:
            self.live.add(operation)
            if isinstance(operation, ops.For):
                self.work += (operation.start, operation.stop, operation.step)
            elif isinstance(operation, ops.If):
                self.work.append(operation.cond)
            elif self.parent[operation] is None or not isinstance(
                operation, (ops.Yield, ops.Break, ops.Continue)
            ):
                if not isinstance(operation, (ops.Loop, ops.WarpGroup)):
                    self.work += operation.inputs()
            for hand in self.hands.get(operation, ()):
                self.mark(hand)
            parent = self.parent[operation]
            if parent is None:
                return
            operation = parent

    def need(self, value: Value) -> None:
        found = self.source.get(value)
        if found is None or found in self.needed:
            return
        self.needed.add(found)
        operation, place = found
        self.mark(operation)
        if isinstance(operation, ops.If):
            for region in (operation.then, operation.orelse):
                if isinstance(region.terminator, ops.Yield):
                    self.work.append(region.terminator.values[place])
        elif isinstance(operation, (ops.For, ops.Loop)) and place >= 0:
            self.work.append(operation.inits[place])
            self.work += (hand.values[place] for hand in self.hands[operation])  # type: ignore[attr-defined]

    def swept(self) -> Region:
        """Return the root region without what is not marked."""
        return self.sweep(self.root, None, None)

    def sweep(self, region: Region, holder: Operation | None, loop: Operation | None) -> Region:
        """Return a region whose last yield hands values to `holder`, and whose breaks go to `loop`."""
        kept: list[Operation] = []
        for operation in region.ops:
            if isinstance(operation, (ops.Yield, ops.Break, ops.Continue)):
                receiver = holder if isinstance(operation, ops.Yield) else loop
                kept.append(self.handed(operation, receiver))
            elif operation.terminator:
                kept.append(operation)
            elif operation in self.live:
                kept.append(self.structured(operation, loop))
        args = region.args
        if isinstance(holder, (ops.For, ops.Loop)):
            args = tuple(a for a in args if self.source[a][1] < 0 or self.source[a] in self.needed)
        if args == region.args and len(kept) == len(region.ops) and all(map(_same, kept, region.ops)):
            return region
        return Region(args, tuple(kept))

    def handed(self, operation: Operation, receiver: Operation | None) -> Operation:
        values = tuple(operation.inputs())
        if receiver is None or isinstance(receiver, ops.WarpGroup):
            return operation
        left = tuple(v for place, v in enumerate(values) if (receiver, place) in self.needed)
        return operation if len(left) == len(values) else operation.replace(values=left)

    def structured(self, operation: Operation, loop: Operation | None) -> Operation:
        changes: dict[str, object] = {}
        if isinstance(operation, (ops.For, ops.Loop)):
            changes["body"] = self.sweep(operation.body, operation, operation)
            changes["inits"] = tuple(
                v for place, v in enumerate(operation.inits) if (operation, place) in self.needed
            )
        elif isinstance(operation, ops.If):
            changes["then"] = self.sweep(operation.then, operation, loop)
            changes["orelse"] = self.sweep(operation.orelse, operation, loop)
        elif isinstance(operation, ops.WarpGroup):
            changes["body"] = self.sweep(operation.body, operation, loop)
        else:
            return operation
        results = tuple(v for place, v in enumerate(operation.results) if (operation, place) in self.needed)
        if len(results) == len(operation.results) and all(
            getattr(operation, name) is value or name == "inits" for name, value in changes.items()
        ):
            return operation
        return operation.replace(results=results, **changes)


def _same(a: Operation, b: Operation) -> bool:
    return a is b


def reads(region: Region) -> bool:
    """Tell whether a region holds an operation that is not pure."""
    return any(
        any(map(reads, o.regions()))
        if isinstance(o, (ops.For, ops.Loop, ops.If, ops.WarpGroup))
        else not o.pure
        for o in region.ops
        if not o.terminator
    )
