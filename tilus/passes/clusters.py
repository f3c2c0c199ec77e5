"""Cluster barriers that the user did not write: no block is reached by others before it is ready, or after its end.

Another block's shared memory and barriers may be used when that block has started and made its barriers, and until it
ends. So a kernel in which blocks reach one another gets a cluster barrier before the first operation that does so,
whose arrival stands right after the barriers are made, and one before it ends. Where the user wrote a barrier of the
cluster there, none is added. Data that blocks exchange are the user's to order, by barriers of his own.

Arrivals at another block's barrier are ordered at the scope of the block where no block reads what another one's
threads wrote: at the scope of the cluster, each waits until all earlier stores of its thread are done.
"""

from __future__ import annotations

from dataclasses import replace

from tilus.errors import LayoutConflict, Location
from tilus.ir import ops
from tilus.ir.core import Operation, Value, walk
from tilus.ir.kernel import Kernel
from tilus.ir.rewrite import Rewriter
from tilus.passes.provenance import definitions, memory_of

READY = "other blocks use this one's barriers and shared memory"
ENDED = "other blocks may still use this one's barriers and shared memory"


def synchronise_clusters(kernel: Kernel) -> Kernel:
    """Insert the cluster barriers that are needed before blocks reach one another and before they end."""
    body = kernel.body.ops
    if not any(reaches_others(op) for op in body):
        return kernel
    for op in body:
        for nested in op.regions():
            if any(isinstance(inner, ops.BarrierAlloc) for inner in walk(nested)):
                raise LayoutConflict(
                    "a barrier is made in a branch or loop of a kernel whose blocks use one another's barriers",
                    op.loc,
                    hint="call tilus.barrier at the top level of the kernel",
                )
    placed = Place(kernel)
    made = placed.run(kernel)
    return replace(made, notes=kernel.notes + tuple(placed.notes))


def reaches_others(op: Operation) -> bool:
    """Tell whether an operation, or one inside of it, uses barriers or shared memory of other blocks."""
    if isinstance(op, ops.Remote):
        return True
    if isinstance(op, ops.BarrierArrive) and op.rank is not None:
        return True
    if isinstance(op, ops.CopyBulk) and op.multicast is not None:
        return True
    return any(reaches_others(inner) for region in op.regions() for inner in region.ops)


def synchronises(op: Operation) -> bool:
    """Tell whether an operation, or one inside of it, is a part of a cluster barrier."""
    if isinstance(op, (ops.ClusterArrive, ops.ClusterWait)):
        return True
    return any(synchronises(inner) for region in op.regions() for inner in region.ops)


def publishes(kernel: Kernel) -> bool:
    """Tell whether a block may read what threads of another block wrote.

    It may where blocks use one another's shared memory, or read a tensor in global memory that they also write.
    """
    made = definitions(kernel)
    touched: dict[str, set[Value]] = {"read": set(), "write": set()}
    for op in walk(kernel.body):
        if isinstance(op, ops.Remote) or (isinstance(op, ops.InlinePtx) and op.volatile):
            return True
        for effect in op.effects():
            if effect.space == "global" and effect.kind in touched and effect.value is not None:
                touched[effect.kind].add(memory_of(effect.value, made))
    unknown = touched["write"].difference(kernel.params)
    return bool(touched["read"] & touched["write"] or (unknown and touched["read"]))


class Place(Rewriter):
    """Puts cluster barriers where they are missing."""

    def __init__(self, kernel: Kernel) -> None:
        super().__init__()
        self.arrive: set[int] = set()
        self.wait: set[int] = set()
        self.body = kernel.body.ops
        self.notes: list[str] = []
        chosen = "cluster" if publishes(kernel) else "block"
        self.scopes: dict[int, str] = {}
        far = set()
        for op in walk(kernel.body):
            if isinstance(op, ops.BarrierArrive) and op.rank is not None:
                self.scopes[id(op)] = op.scope or chosen
                if self.scopes[id(op)] == "cluster":
                    far.add(op.barrier)
        for op in walk(kernel.body):
            if isinstance(op, ops.BarrierWait) and op.barrier in far:
                self.scopes[id(op)] = op.scope or "cluster"
        self.reaching = [number for number, op in enumerate(self.body) if reaches_others(op)]
        self.number = -1
        self.places = {id(op): number for number, op in enumerate(self.body)}
        self._starts()

    def _starts(self) -> None:
        """Find the places before and at which barriers at the start are wanted, by numbers of the body's operations."""
        ready = -1
        for first in self.reaching:
            made = max((i for i in range(first) if isinstance(self.body[i], ops.BarrierAlloc)), default=-1)
            if made < ready:
                continue
            ready = first
            arrives = [i for i in range(made + 1, first) if isinstance(self.body[i], ops.ClusterArrive)]
            if arrives and any(isinstance(self.body[i], ops.ClusterWait) for i in range(arrives[0], first)):
                continue
            self.arrive.add(made + 1)
            # A barrier of the user in between would be taken for the other half of this one.
            between = any(synchronises(self.body[i]) for i in range(made + 1, first))
            self.wait.add(made + 1 if between else first)
            self._note(self.body[first].loc, READY)

    def ended(self) -> bool:
        """Tell whether the user's own barrier stands after all that reaches other blocks."""
        last = self.reaching[-1]
        arrives = [i for i in range(last + 1, len(self.body)) if isinstance(self.body[i], ops.ClusterArrive)]
        return bool(arrives) and any(isinstance(op, ops.ClusterWait) for op in self.body[arrives[-1] :])

    def _note(self, loc: Location | None, reason: str) -> None:
        where = f" at line {loc.line}" if loc is not None else ""
        note = f"cluster barrier{where}: {reason}"
        if note not in self.notes:
            self.notes.append(note)

    def visit(self, operation: Operation) -> None:
        place = self.places.get(id(operation))
        if place is not None:
            self.number = place
            if place in self.arrive:
                self.emit(ops.ClusterArrive(True, READY, loc=operation.loc))
            if place in self.wait:
                self.emit(ops.ClusterWait(READY, loc=operation.loc))
        at_end = isinstance(operation, ops.Return) and self.number >= self.reaching[0]
        if at_end and not (place is not None and self.ended()):
            self.emit(ops.ClusterArrive(False, ENDED, loc=operation.loc))
            self.emit(ops.ClusterWait(ENDED, loc=operation.loc))
            self._note(operation.loc, ENDED)
        keep = tuple(Value(r.type, r.name) for r in operation.results)
        new = operation.with_operands(self.value, self.region, keep)
        if id(operation) in self.scopes:
            new = replace(new, scope=self.scopes[id(operation)])  # type: ignore[call-arg]
        self.emit(new)
        self.replace(operation, new.results)
