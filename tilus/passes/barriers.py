"""Barrier placement: the barriers that shared-memory effects need and the user did not write.

The pass walks the program with the accesses that other threads may not have seen yet. A new access that conflicts
with one of them gets a barrier before it. Loops are walked until nothing changes. Asynchronous copies count as
writes from the wait that covers them; reading or overwriting their target before is an error where it is certain.
Where other things have since taken the place of their target, a wait for all copies is inserted.
Accesses to different stages of one buffer, `(index + a) % n` and `(index + b) % n`, do not conflict. A load from a
tensor in global memory and a store or an atomic update conflict, unless the same threads hold the same elements of
the same tile; so do those of two iterations, unless their tiles are the same one or have nothing in common. Two
stores conflict where their tiles overlap for certain.

Nothing is placed between warp groups: there the user says what he means with barriers. Where wgmma or a bulk
store reads what threads wrote, a proxy fence stands before the barrier.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

from tilus.errors import HazardFound
from tilus.ir import ops
from tilus.ir.core import Operation, Region, Value
from tilus.ir.kernel import Kernel
from tilus.ir.rewrite import Rewriter
from tilus.ir.types import GlobalType, RegisterType, SharedType
from tilus.passes.shared_memory import scratch_bytes, shared_bytes

MAX_AGE = 16
WARP = 32
GLOBAL = (ops.LoadGlobal, ops.StoreGlobal, ops.Gather, ops.Scatter, ops.Atomic)


@dataclass(frozen=True)
class Stage:
    """A stage index `(base + offset) % modulus`; base None is a constant."""

    base: Value | None
    offset: int
    modulus: int | None

    def differs(self, other: Stage) -> bool:
        """Tell whether two indices differ for certain."""
        if self.base is not other.base:
            return False
        distance = self.offset - other.offset
        if self.modulus is None or other.modulus is None:
            return distance != 0 and self.modulus == other.modulus
        return self.modulus == other.modulus and distance % self.modulus != 0


@dataclass(frozen=True)
class Tile:
    """A tile of a tensor in global memory, and which thread has which element; owners None is a tile anywhere."""

    tensor: Value
    offsets: tuple[Stage, ...]
    shape: tuple[int, ...]
    owners: object

    @property
    def extents(self) -> tuple[int, ...]:
        """Its extent along each dimension of the tensor."""
        return (1,) * (len(self.offsets) - len(self.shape)) + self.shape

    def overlaps(self, other: Tile) -> bool:
        """Tell whether two tiles have elements in common for certain."""
        if self.tensor is not other.tensor or self.owners is None or other.owners is None:
            return False
        return all(
            a.base is b.base and a.modulus == b.modulus and -m < a.offset - b.offset < n
            for a, b, m, n in zip(self.offsets, other.offsets, self.extents, other.extents)
        )


@dataclass(frozen=True)
class Access:
    """Bytes [low, high) of shared memory, at a stage if one is known, read or written."""

    low: int
    high: int
    stage: Stage | None
    write: bool
    buffer: Value | None
    what: str
    proxy: str = "generic"
    group: tuple[int, ...] = ()
    # For a tensor in global memory.
    tile: Tile | None = None

    def conflicts(self, other: Access) -> bool:
        """Tell whether two accesses of different threads must be ordered.

        Those of two warp groups beside each other are the user's to order.
        """
        shorter, longer = sorted((self.group, other.group), key=len)
        if longer[: len(shorter)] != shorter:
            return False
        if self.tile is not None or other.tile is not None:
            if self.buffer is not other.buffer or self.tile is None or other.tile is None:
                return False
            if not (self.write or other.write) or (self.tile == other.tile and self.tile.owners is not None):
                return False
            if self.write != other.write or (self.what == "atomic") != (other.what == "atomic"):
                return True
            return self.tile.overlaps(other.tile)
        if not (self.write or other.write) or self.high <= other.low or other.high <= self.low:
            return False
        if self.buffer is other.buffer and self.stage is not None and other.stage is not None:
            return not self.stage.differs(other.stage)
        return True


@dataclass(frozen=True)
class State:
    """What is not ordered yet: accesses since the last barrier, and copies in flight with their groups' age.

    Age -1 means not committed yet.
    """

    accesses: frozenset[Access] = frozenset()
    flying: frozenset[tuple[Access, int]] = frozenset()
    # Of the accesses, those before the arrival at the cluster's barrier for which no wait has come.
    arrived: frozenset[Access] = frozenset()

    def join(self, other: State) -> State:
        """Return what may be unordered after either of two ways."""
        flying = self.flying | other.flying
        return State(self.accesses | other.accesses, flying, self.arrived & other.arrived)

    def add(self, found: Iterable[Access]) -> State:
        """Return the state after more accesses."""
        made = frozenset(found)
        return State(self.accesses | made, self.flying, self.arrived - made)


def place_barriers(kernel: Kernel) -> Kernel:
    """Insert the barriers that are needed."""
    analysis = Analysis(kernel)
    while True:
        try:
            analysis.start()
            break
        except _Again:
            continue
    if not (analysis.wanted or analysis.landings):
        return kernel
    placed = Insert(analysis.wanted, analysis.fences, analysis.landings).run(kernel)
    return replace(placed, notes=kernel.notes + tuple(sorted(set(analysis.report.values()))))


class _Again(Exception):
    """A barrier was added: what the walk knows is out of date."""


class Analysis:
    """Walks a kernel and collects the operations before which a barrier is wanted."""

    def __init__(self, kernel: Kernel) -> None:
        self.kernel = kernel
        self.wanted: dict[int, str] = {}
        self.report: dict[int, str] = {}
        self.made: dict[Value, Operation] = {}
        self.place: dict[Value, tuple[int, int, Value, Stage | None]] = {}
        self.threads = kernel.threads
        self.loops: list[list[State]] = []
        self.branches: list[tuple[Operation, State]] = []
        self.group: tuple[int, ...] = ()
        self.fences: set[int] = set()
        # The operations before which all copies must have landed.
        self.landings: set[int] = set()
        # How many loops without a count are around: warps that wait with atomic updates leave them one by one.
        self.waiting = 0
        self._index(kernel.body)

    def _index(self, region: Region) -> None:
        for op in region.ops:
            for value in op.results:
                self.made[value] = op
            if isinstance(op, ops.AllocShared):
                assert isinstance(op.result.type, SharedType) and op.offset is not None
                low = op.offset
                self.place[op.result] = (low, low + shared_bytes(op.result.type), op.result, None)
            elif isinstance(op, ops.SharedIndex) and op.tensor in self.place:
                low, high, root, stage = self.place[op.tensor]
                self.place[op.result] = (low, high, root, self.stage(op.index) if stage is None else stage)
            elif (
                isinstance(op, (ops.SharedSlice, ops.SharedPermute, ops.SharedReshape))
                and op.tensor in self.place
            ):
                self.place[op.result] = self.place[op.tensor]
            for nested in op.regions():
                self._index(nested)

    def stage(self, index: Value) -> Stage:
        """Return the normal form of a stage index."""
        modulus = None
        made = self.made.get(index)
        if isinstance(made, ops.Binary) and made.kind == "mod":
            divisor = self.constant(made.b)
            if divisor is not None:
                modulus, index = divisor, made.a
        offset = 0
        while True:
            made = self.made.get(index)
            if isinstance(made, ops.Binary) and made.kind in ("add", "sub"):
                right, left = self.constant(made.b), self.constant(made.a)
                if right is not None:
                    offset += right if made.kind == "add" else -right
                    index = made.a
                    continue
                if left is not None and made.kind == "add":
                    offset += left
                    index = made.b
                    continue
            break
        value = self.constant(index)
        if value is not None:
            total = offset + value
            return Stage(None, total % modulus if modulus else total, None)
        return Stage(index, offset, modulus)

    def constant(self, value: Value) -> int | None:
        """Return the value of an integer constant."""
        made = self.made.get(value)
        return int(made.value) if isinstance(made, ops.Constant) else None

    def start(self) -> None:
        """Walk the kernel from its beginning; raises _Again where a barrier was added."""
        self.loops, self.branches, self.threads, self.group = [], [], self.kernel.threads, ()
        self.waiting = 0
        self.region(self.kernel.body, State())

    # Effects.

    def accesses(self, op: Operation) -> list[Access]:
        """Return the accesses to shared memory of an operation that barriers order.

        Bulk copies into shared memory are not among them: mbarriers say when they arrive.
        """
        out = []
        if isinstance(op, GLOBAL) and isinstance(op.tensor.type, GlobalType) and self.threads > WARP:
            out.append(self.global_access(op))
        for effect in op.effects():
            if effect.space != "shared" or effect.kind == "sync" or effect.value not in self.place:
                continue
            if effect.proxy == "generic" or (effect.proxy == "async" and effect.kind == "read"):
                assert effect.value is not None
                made = self.access(effect.value, effect.kind == "write", op.opcode)
                out.append(replace(made, proxy=effect.proxy))
        return out

    def global_access(self, op: Any) -> Access:
        """Return an access to a tensor in global memory; without copies, a thread meets its own elements again."""
        write = not isinstance(op, (ops.LoadGlobal, ops.Gather))
        tile = Tile(op.tensor, (), (), None)
        if isinstance(op, (ops.LoadGlobal, ops.StoreGlobal)):
            type = (op.value if isinstance(op, ops.StoreGlobal) else op.result).type
            assert isinstance(type, RegisterType) and type.layout is not None
            own: object = type.layout if type.layout.replication == 1 else (op.opcode, type.layout)
            tile = Tile(op.tensor, tuple(self.stage(offset) for offset in op.offsets), type.shape, own)
        return Access(0, 0, None, write, self.memory(op.tensor), op.opcode, group=self.group, tile=tile)

    def memory(self, tensor: Value) -> Value:
        """Return the tensor or the pointer that a tensor, such as a view of another one's pointer, is a part of."""
        made = self.made.get(tensor)
        if isinstance(made, (ops.GlobalView, ops.PointerAdd, ops.PointerCast)):
            return self.memory(made.pointer)
        if isinstance(made, (ops.PointerOf, ops.Assume)):
            return self.memory(made.tensor if isinstance(made, ops.PointerOf) else made.value)
        return tensor

    def access(self, tensor: Value, write: bool, what: str) -> Access:
        """Return an access to a whole shared tensor."""
        low, high, root, stage = self.place[tensor]
        return Access(low, high, stage, write, root, what, group=self.group)

    def region(self, region: Region, state: State) -> State | None:
        """Walk a region; return the state after it, or None if its end is not reached."""
        for op in region.ops:
            after = self.operation(op, state)
            if after is None:
                return None
            state = after
        return state

    def operation(self, op: Operation, state: State) -> State | None:
        """Walk one operation."""
        if id(op) in self.landings:
            state = replace(state, flying=frozenset()).add(access for access, _ in state.flying)
        if id(op) in self.wanted:
            state = self.synced(state)
        if isinstance(op, ops.Sync):
            return self.synced(state)
        if isinstance(op, ops.CopyAsyncCommit):
            return replace(state, flying=frozenset((a, min(age + 1, MAX_AGE)) for a, age in state.flying))
        if isinstance(op, ops.CopyAsyncWait):
            landed = frozenset(a for a, age in state.flying if age >= op.pending)
            rest = frozenset((a, age) for a, age in state.flying if age < op.pending)
            return replace(state, flying=rest).add(landed)
        if isinstance(op, ops.ClusterArrive):
            return replace(state, arrived=frozenset() if op.relaxed else state.accesses)
        if isinstance(op, ops.ClusterWait):
            ordered = state.arrived - self.synced(state).accesses
            return State(state.accesses - ordered, state.flying)
        if isinstance(op, ops.CopyAsync) and op.shared in self.place:
            made = self.access(op.shared, True, op.opcode)
            state = self._check(op, [made], state)
            return replace(state, flying=state.flying | {(made, -1)})
        if isinstance(op, ops.For):
            return self._loop(op, op.body, state, True)
        if isinstance(op, ops.Loop):
            self.waiting += 1
            left = self._loop(op, op.body, state, False)
            self.waiting -= 1
            return left
        if isinstance(op, ops.If):
            self.branches.append((op, state))
            ways = [self.region(op.then, state), self.region(op.orelse, state)]
            self.branches.pop()
            reached = [w for w in ways if w is not None]
            if not reached:
                return None
            return reached[0] if len(reached) == 1 else reached[0].join(reached[1])
        if isinstance(op, ops.WarpGroup):
            threads, self.threads = self.threads, 32 * op.count
            self.branches.append((op, state))
            self.group = (*self.group, id(op))
            inner = self.region(op.body, state)
            self.group = self.group[:-1]
            self.branches.pop()
            self.threads = threads
            return state if inner is None else state.join(inner)
        if isinstance(op, (ops.Break, ops.Continue)):
            if self.loops:
                self.loops[-1].append(state)
            return None
        if isinstance(op, ops.Return):
            return None
        found = self.accesses(op)
        if found:
            state = self._check(op, found, state)
        scratch = scratch_bytes(op, self.threads)
        if scratch:
            # The exchange begins and ends its writes with barriers of its own, then reads.
            low = getattr(op, "scratch", None) or 0
            made = Access(low, low + scratch, None, False, None, op.opcode, group=self.group)
            self._check_landed(op, made, state)
            return self.synced(state).add([made])
        return state.add(found) if found else state

    def synced(self, state: State) -> State:
        """Return the state after a barrier of the current group of warps: what others did stays unordered."""
        depth = len(self.group)
        return replace(state, accesses=frozenset(a for a in state.accesses if a.group[:depth] != self.group))

    def _check(self, op: Operation, found: list[Access], state: State) -> State:
        for access in found:
            for flying, _ in state.flying:
                certain = flying.stage == access.stage and flying.buffer is access.buffer
                if certain and not (isinstance(op, ops.CopyAsync)):
                    raise HazardFound(
                        f"this {op.opcode} touches shared memory that an asynchronous copy may still be writing",
                        op.loc,
                        hint="call tilus.copy_async_commit() and tilus.copy_async_wait(0) before",
                    )
            self._check_landed(op, access, state)
        if isinstance(op, ops.Atomic) and self.waiting:
            found = [access for access in found if access.tile is None]
        for access in found:
            for earlier in state.accesses:
                if access.conflicts(earlier):
                    reason = f"{earlier.what} before {op.opcode}"
                    # Before the outermost branch that is enough, so that both ways share the barrier.
                    place = next((branch for branch, entry in self.branches if earlier in entry.accesses), op)
                    self.wanted[id(place)] = reason
                    if access.proxy == "async" and earlier.write:
                        # What threads wrote is read through another proxy.
                        self.fences.add(id(place))
                    space = "shared" if access.tile is None else "global"
                    where = f" at line {op.loc.line}" if op.loc is not None else ""
                    self.report[id(place)] = f"barrier{where}: {reason} of the same {space} memory"
                    raise _Again
        return state

    def _check_landed(self, op: Operation, access: Access, state: State) -> None:
        """See to it that no copy is in flight into what another tile, or an exchange, now has for itself."""
        for copy in state.flying:
            made, _ = copy
            if made.buffer is not access.buffer and made.low < access.high and access.low < made.high:
                place = next((branch for branch, entry in self.branches if copy in entry.flying), op)
                self.landings.add(id(place))
                where = f" at line {op.loc.line}" if op.loc is not None else ""
                self.report[-id(place)] = (
                    f"wait{where}: {made.what} before {op.opcode} of the same shared memory"
                )
                raise _Again

    def _loop(self, op: Operation, body: Region, state: State, may_skip: bool) -> State:
        entry = state
        leaving = state if may_skip else None
        # A barrier before a branch outside of the loop would not stand in every iteration; one before a warp group
        # orders what all warps did before it.
        branches = self.branches
        self.branches = [b for b in branches if isinstance(b[0], ops.WarpGroup)]
        while True:
            self.loops.append([])
            end = self.region(body, entry)
            jumps = self.loops.pop()
            around = [*([end] if end is not None else []), *jumps]
            joined = entry
            for way in around:
                joined = joined.join(self._shift(op, body, way))
            if joined == entry:
                break
            entry = joined
        self.branches = branches
        for way in around:
            leaving = way if leaving is None else leaving.join(way)
        out = leaving if leaving is not None else entry
        return self._forget(body, out)

    def _shift(self, op: Operation, body: Region, state: State) -> State:
        """Say what was done at the index of the last iteration in terms of this one's."""
        step = self.constant(op.step) if isinstance(op, ops.For) else None
        index = body.args[0] if isinstance(op, ops.For) else None
        inside = _defined(body)

        @cache
        def moved(value: Value) -> int | None:
            """Return by how much a value is larger in the next iteration, if that is known."""
            if value is index:
                return step
            if value not in inside:
                return 0
            made = self.made.get(value)
            if made is None or not made.pure:
                return None
            if isinstance(made, ops.Binary) and made.kind in ("add", "sub", "mul"):
                a, b = moved(made.a), moved(made.b)
                if a is not None and b is not None and made.kind != "mul":
                    return a + b if made.kind == "add" else a - b
                for by, other in ((a, made.b), (b, made.a)):
                    factor = self.constant(other)
                    if by is not None and factor is not None:
                        return by * factor
            return 0 if all(moved(x) == 0 for x in made.inputs()) else None

        def apart(tile: Tile) -> bool:
            """Tell whether the tiles of all iterations are the same one, or have nothing in common."""
            moves = [moved(o.base) if o.base is not None else 0 for o in tile.offsets]
            moves = [by if o.modulus is None or by == 0 else None for by, o in zip(moves, tile.offsets)]
            away = any(by is not None and abs(by) >= extent for by, extent in zip(moves, tile.extents))
            return moved(tile.tensor) == 0 and (away or all(by == 0 for by in moves))

        def move(access: Access) -> Access:
            if access.tile is not None:
                return (
                    access if apart(access.tile) else replace(access, tile=replace(access.tile, owners=None))
                )
            stage = access.stage
            if stage is None or stage.base is None:
                return access
            if stage.base is index and step is not None:
                if stage.modulus is None:
                    return replace(access, stage=None)
                return replace(access, stage=replace(stage, offset=(stage.offset - step) % stage.modulus))
            return replace(access, stage=None) if stage.base in inside else access

        return State(
            frozenset(move(a) for a in state.accesses), frozenset((move(a), age) for a, age in state.flying)
        )

    def _forget(self, body: Region, state: State) -> State:
        """Drop stages that are known by values of the loop only."""
        inside = _defined(body)

        def move(access: Access) -> Access:
            stage = access.stage
            if stage is not None and stage.base is not None and stage.base in inside:
                return replace(access, stage=None)
            return access

        return State(
            frozenset(move(a) for a in state.accesses), frozenset((move(a), age) for a, age in state.flying)
        )


def _defined(region: Region) -> set[Value]:
    out = set(region.args)
    for op in region.ops:
        out.update(op.results)
        for nested in op.regions():
            out |= _defined(nested)
    return out


class Insert(Rewriter):
    """Puts barriers before the operations that want one."""

    def __init__(self, wanted: dict[int, str], fences: set[int], landings: set[int]) -> None:
        super().__init__()
        self.wanted, self.fences, self.landings = wanted, fences, landings

    def visit(self, op: Operation) -> None:
        if id(op) in self.landings:
            self.emit(ops.CopyAsyncCommit(loc=op.loc))
            self.emit(ops.CopyAsyncWait(0, loc=op.loc))
        if id(op) in self.fences:
            self.emit(ops.Fence("async", loc=op.loc))
        if id(op) in self.wanted:
            self.emit(ops.Sync(self.wanted[id(op)], loc=op.loc))
        keep = tuple(Value(r.type, r.name) for r in op.results)
        new = op.with_operands(self.value, self.region, keep)
        self.emit(new)
        self.replace(op, new.results)
