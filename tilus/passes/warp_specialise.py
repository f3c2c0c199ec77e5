"""Warp specialisation: pipelined loops of matrix products become a TMA producer and wgmma consumers.

A pipelined loop whose dots read tiles that `copy_async` brings is split for targets with TMA and wgmma. One more
warpgroup is added, of which one warp starts the bulk copies; the kernel's own warps wait for them, multiply straight
from shared memory, and run all the rest of the kernel. For each stage, a `full` barrier says that the bytes have
arrived and an `empty` one that all consumers have read them.

The loops may stand in other loops and branches, such as one over the tiles of a persistent kernel. Both programs
follow that control flow, each with its own count of the stages, so that the producer runs on into the next tile while
the consumers still store this one. A kernel with a loop that does not qualify is left to software pipelining.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from tilus.dtypes import float16, float32, int32
from tilus.errors import Location, TargetNotSupported, TilusError
from tilus.ir import ops
from tilus.ir.core import Operation, Region, Value, walk
from tilus.ir.kernel import Kernel
from tilus.ir.types import GlobalType, RegisterType, ScalarType, SharedType, divisor_of
from tilus.passes.canonicalise import handed_on
from tilus.passes.carrying import Carrier, holders_of
from tilus.passes.dead_code import keep_only
from tilus.passes.layouts import memory_order
from tilus.passes.provenance import definitions, never_written, written_memory
from tilus.passes.select import Selector

WARPGROUP = 4
TMA_ALIGN = 16
# For each number of consumer warps, the registers of a producer's and of a consumer's thread (multiples of 8): what
# the block has at launch, 65536 registers over its threads, is shared out anew. Four warps have enough at launch.
REGISTERS = {8: (40, 232), 12: (32, 160)}


@dataclass(frozen=True)
class Loop:
    """A loop that qualifies: its shared tiles, the copies into them, and its dots."""

    op: ops.For
    buffers: tuple[ops.AllocShared, ...]
    copies: tuple[ops.CopyAsync, ...]
    dots: tuple[ops.Dot, ...]


class NotFit(Exception):
    """Why a kernel is left to software pipelining, as a clause."""

    def __init__(self, reason: str, loc: Location | None) -> None:
        super().__init__(reason.rstrip("."))
        self.loc = loc


def specialise_warps(kernel: Kernel, selector: Selector) -> Kernel:
    """Split the kernel into a producer and consumers if all its pipelined loops qualify; if not, note why."""
    pipelined = [op for op in walk(kernel.body) if isinstance(op, ops.For) and op.stages]
    products = any(isinstance(x, ops.Dot) for op in pipelined for x in op.body.ops)
    if not products or not _multiplies_from_shared(selector):
        return kernel
    try:
        return _specialised(kernel, pipelined, selector)
    except NotFit as unfit:
        where = f" at line {unfit.loc.line}" if unfit.loc is not None else ""
        note = f"copies and products{where} stay with the same warps: {unfit}"
        return replace(kernel, notes=(*kernel.notes, note))


def _multiplies_from_shared(selector: Selector) -> bool:
    """Tell whether the target has wgmma."""
    try:
        selector.choose_dot_async((64, 8, 16), (float16, float16, float32), WARPGROUP)
    except TargetNotSupported:
        return False
    return True


def _specialised(kernel: Kernel, pipelined: list[ops.For], selector: Selector) -> Kernel:
    if kernel.warps % WARPGROUP:
        raise NotFit(f"{kernel.warps} warps are not whole warpgroups of {WARPGROUP}", kernel.loc)
    for op in walk(kernel.body):
        if isinstance(op, UNFIT):
            raise NotFit(f"the kernel has {op.opcode}, and so divides the work itself", op.loc)
        if isinstance(op, ops.BarrierAlloc) and op not in kernel.body.ops:
            raise NotFit("a barrier is made in a loop or a branch", op.loc)
    defined = definitions(kernel)
    written = written_memory(kernel.body, defined)
    fixed = {
        op.tensor
        for op in walk(kernel.body)
        if isinstance(op, (ops.LoadGlobal, ops.Gather, ops.CopyAsync))
        and never_written(op.tensor, written, kernel, defined)
    }
    found: dict[int, Loop] = {}
    for op in pipelined:
        loop = qualify(op, kernel, selector)
        for copy in loop.copies:
            if copy.tensor not in fixed:
                raise NotFit(
                    f"the kernel also writes to {copy.tensor.name or 'a tensor'} that it copies", copy.loc
                )
        found[id(op)] = loop
    made = Builder(kernel, found)
    producer = made.producer()
    for op in walk(producer):
        if id(op) not in made.started and not _may_run_twice(op, fixed):
            raise NotFit(
                f"where copies read from depends on {op.opcode}, which only one program may run", op.loc
            )
    return made.build(producer)


# Programs of several warp groups or blocks are the user's to divide.
UNFIT = (ops.WarpGroup, ops.ClusterArrive, ops.ClusterWait, ops.Remote)


def _may_run_twice(op: Operation, fixed: set[Value]) -> bool:
    """Tell whether the producer may do what the consumers do too: what always gives the same and touches nothing."""
    if isinstance(op, (ops.LoadGlobal, ops.Gather)):
        return op.tensor in fixed
    if isinstance(op, (ops.Dot, ops.ConvertLayout)) or not (op.pure or op.terminator):
        return isinstance(op, (ops.For, ops.Loop, ops.If, ops.Assume, ops.WaitForPrevious))
    return True


def qualify(op: ops.For, kernel: Kernel, selector: Selector) -> Loop:
    """Return what a loop is made of; raise NotFit if TMA cannot feed it or wgmma cannot run its dots."""
    buffers = tuple(x for x in op.body.ops if isinstance(x, ops.AllocShared))
    copies = tuple(x for x in op.body.ops if isinstance(x, ops.CopyAsync))
    dots = tuple(x for x in op.body.ops if isinstance(x, ops.Dot))
    inside = list(walk(op.body))
    if not dots or not copies or op.stages < 2:
        raise NotFit("the loop has no dot of tiles that it copies, or a single stage", op.loc)
    # Each turn that copies must be one that reads, so none is cut short.
    if len(handed_on(op.body)) != 1 or any(isinstance(x, ops.Return) for x in inside):
        raise NotFit("a turn of the loop may be cut short by break, continue or return", op.loc)
    own = {b.result for b in buffers}
    made = {value: x for x in inside for value in x.results}
    targets = [c.shared for c in copies]
    if set(targets) != own or len(targets) != len(own) or any(b.layout is not None for b in buffers):
        raise NotFit(
            "not each of the loop's shared tiles is filled by one copy, in a layout of our choice", op.loc
        )
    if any(isinstance(x, ops.CopyAsync) and x not in copies for x in inside):
        raise NotFit("a copy stands under an if or a loop", op.loc)
    # Which dimension of each tile is contiguous, in shared memory as in the tensor.
    runs = {copy.shared: _check_bulk_copy(copy, kernel) for copy in copies}
    for x in inside:
        reads = own.intersection(x.inputs())
        if reads and not isinstance(x, (ops.CopyAsync, ops.LoadShared, ops.SharedPermute)):
            raise NotFit(f"{x.opcode} takes a shared tile of the loop", x.loc)
    for dot in dots:
        a, b, c = dot.a.type, dot.b.type, dot.c.type
        assert isinstance(a, RegisterType)
        assert isinstance(b, RegisterType)
        assert isinstance(c, RegisterType)
        for operand, fast in ((dot.a, 1), (dot.b, 0)):
            major = _contiguous(operand, made, runs)
            if major is None:
                raise NotFit("an operand of dot is not what a load of a shared tile gives", dot.loc)
            if major != fast and a.dtype.bits != 16:
                raise NotFit(f"wgmma reads {a.dtype} along k only", dot.loc)
        try:
            shape = (a.shape[0], b.shape[1], a.shape[1])
            selector.choose_dot_async(shape, (a.dtype, b.dtype, c.dtype), kernel.warps)
        except TilusError as error:
            raise NotFit(error.message, dot.loc) from None
    return Loop(op, buffers, copies, dots)


def _contiguous(operand: Value, made: dict[Value, Operation], runs: dict[Value, int]) -> int | None:
    """Return which dimension of a dot's operand is contiguous in the shared tile that it is loaded from."""
    load = made.get(operand)
    if not isinstance(load, ops.LoadShared) or load.layout is not None:
        return None
    source = load.tensor
    if source in runs:
        return runs[source]
    view = made.get(source)
    if isinstance(view, ops.SharedPermute) and view.tensor in runs and view.perm == (1, 0):
        return 1 - runs[view.tensor]
    return None


def _check_bulk_copy(copy: ops.CopyAsync, kernel: Kernel) -> int:
    """Return which dimension of a tile TMA copies in runs; raise NotFit if it cannot make the copy."""
    type, shared = copy.tensor.type, copy.shared.type
    assert isinstance(type, GlobalType)
    assert isinstance(shared, SharedType)
    bits = type.dtype.bits
    if copy.tensor not in kernel.params or type.rank > 5:
        raise NotFit("TMA copies from parameters of the kernel, of rank 5 at most", copy.loc)
    if bits % 8 or type.align % TMA_ALIGN:
        raise NotFit(f"TMA takes whole bytes, from tensors aligned to {TMA_ALIGN} bytes", copy.loc)
    fast = 0 if memory_order(type, 2) == (0, 1) else 1
    run = type.strides[fast - 2] if type.rank > 1 else 0
    if len(shared.shape) != 2 or run != 1 or shared.shape[fast] * bits // 8 % TMA_ALIGN:
        raise NotFit(f"the copy is not one of rows of whole {TMA_ALIGN} bytes", copy.loc)
    others = type.strides[: fast - 2] + type.strides[type.rank + fast - 1 :]
    if any(divisor_of(step) * bits // 8 % TMA_ALIGN for step in others):
        raise NotFit(f"rows of the tensor are not known to begin at multiples of {TMA_ALIGN} bytes", copy.loc)
    return fast


class Builder:
    """Builds the two programs."""

    def __init__(self, kernel: Kernel, loops: dict[int, Loop]) -> None:
        self.kernel, self.loops = kernel, loops
        self.shared: list[Operation] = []
        self.rings = {key: self._ring(loop) for key, loop in loops.items()}
        self.holders = holders_of(kernel.body, set(loops))
        self.started: set[int] = set()
        # The user's own barriers are made by the whole block.
        self.outside = {x.result: x.result for x in kernel.body.ops if isinstance(x, ops.BarrierAlloc)}
        self.shared += [x for x in kernel.body.ops if isinstance(x, ops.BarrierAlloc)]

    def _ring(self, loop: Loop) -> Ring:
        loc, stages = loop.op.loc, loop.op.stages
        tiles: dict[Value, Value] = {}
        for buffer in loop.buffers:
            made = ops.AllocShared(buffer.dtype, (stages, *buffer.shape), streamed=True, loc=buffer.loc)
            made.result.name = buffer.result.name
            tiles[buffer.result] = made.result
            self.shared.append(made)
        full = ops.BarrierAlloc(stages, 1, loc=loc)
        empty = ops.BarrierAlloc(stages, self.kernel.warps, loc=loc)
        self.shared += [full, empty]
        return Ring(stages, tiles, full.result, empty.result)

    def producer(self) -> Region:
        """Return the program that starts copies and does nothing else."""
        made = Producer(self)
        region = made.program()
        self.started = made.started
        wanted = (ops.Return, ops.WaitForPrevious)
        return keep_only(region, lambda op: id(op) in made.started or isinstance(op, wanted))

    def build(self, producer: Region) -> Kernel:
        """Return the kernel of producer and consumers."""
        kernel, loc = self.kernel, self.kernel.loc
        warps = kernel.warps
        few, many = REGISTERS.get(warps, (0, 0))
        one = ops.WarpGroup(warps, 1, 0, producer, loc=loc)
        body = (
            *self.shared,
            ops.WarpGroup(0, warps, many, Consumer(self).program(), loc=loc),
            ops.WarpGroup(warps, WARPGROUP, few, Region((), (one, ops.Yield(loc=loc))), loc=loc),
            ops.Return(loc=loc),
        )
        return replace(kernel, body=Region((), body), warps=warps + WARPGROUP)


@dataclass(frozen=True)
class Ring:
    """The stages of a loop: for each of its tiles a shared tensor of all stages, and the barriers of the stages."""

    stages: int
    tiles: dict[Value, Value]
    full: Value
    empty: Value


class Program(Carrier):
    """One of the two programs. The state of a loop is the stage that is next and the parity of its phase."""

    # The parity of the phase that the first wait for a stage waits for.
    first_parity = 0

    def __init__(self, builder: Builder) -> None:
        super().__init__(builder.holders)
        self.builder = builder
        self.mapping.update({p: p for p in builder.kernel.params})
        self.mapping.update(builder.outside)

    def program(self) -> Region:
        """Return the program of one warp group."""
        body, loc = self.builder.kernel.body, self.builder.kernel.loc
        self.blocks.append([])
        for key in self.builder.loops:
            self.state[key] = (self.constant(0, loc), self.constant(self.first_parity, loc))
        for op in body.ops:
            if not isinstance(op, ops.Return) and op not in self.builder.shared:
                self.visit(op)
        self.emit(ops.Yield(loc=loc))
        return Region((), tuple(self.blocks.pop()))

    def visit(self, operation: Operation) -> None:
        loop = self.builder.loops.get(id(operation))
        if loop is None:
            super().visit(operation)
        else:
            self.pipelined(loop, self.builder.rings[id(operation)])

    def pipelined(self, loop: Loop, ring: Ring) -> None:
        """Emit this program's part of a loop."""
        raise TypeError("a program says what becomes of a pipelined loop")

    # Pieces of loops.

    def constant(self, value: int, loc: Location | None) -> Value:
        """Emit an int32 constant."""
        return self.emit(ops.Constant(value, int32, loc=loc)).result

    def binary(self, kind: str, a: Value, b: Value, loc: Location | None) -> Value:
        """Emit scalar arithmetic."""
        return self.emit(ops.Binary(kind, a, b, loc=loc)).result

    def advanced(self, ring: Ring, stage: Value, parity: Value, loc: Location | None) -> tuple[Value, Value]:
        """Return the stage after one, and the parity of its phase: without a division, which would cost more."""
        one = self.constant(1, loc)
        following = self.binary("add", stage, one, loc)
        wraps = self.emit(ops.Compare("eq", following, self.constant(ring.stages, loc), loc=loc)).result
        flipped = self.binary("xor", parity, one, loc)
        return (
            self.emit(ops.Select(wraps, self.constant(0, loc), following, loc=loc)).result,
            self.emit(ops.Select(wraps, flipped, parity, loc=loc)).result,
        )

    def arguments(self, op: ops.For, names: tuple[str, ...]) -> tuple[tuple[Value, ...], tuple[Value, ...]]:
        """Return the arguments of a loop's body and int32 ones beside them."""
        own = tuple(self.argument(a) for a in op.body.args)
        return own, tuple(Value(ScalarType(int32), name) for name in names)

    def tiles(self, loop: Loop, ring: Ring, stage: Value) -> None:
        """Let the loop's tiles be those of a stage."""
        for buffer in loop.buffers:
            part = ops.SharedIndex(ring.tiles[buffer.result], stage, loc=buffer.loc)
            self.mapping[buffer.result] = self.emit(part).result

    def bounds(self, op: ops.For) -> tuple[Value, Value, Value]:
        """Return a loop's start, stop and step."""
        return self.value(op.start), self.value(op.stop), self.value(op.step)


class Producer(Program):
    """Waits until a stage is free, announces its bytes, and starts its copies; what needs no copy is swept later."""

    # All stages are free at first: the phase before the first counts as complete.
    first_parity = 1

    def __init__(self, builder: Builder) -> None:
        super().__init__(builder)
        self.started: set[int] = set()

    def start(self, operation: Operation) -> None:
        """Emit an operation for whose sake the producer is there."""
        self.started.add(id(self.emit(operation)))

    def pipelined(self, loop: Loop, ring: Ring) -> None:
        op, loc = loop.op, loop.op.loc
        inits = (*map(self.value, op.inits), *self.state[id(op)])
        own, (stage, parity) = self.arguments(op, ("stage", "parity"))
        self.blocks.append([])
        self.start(ops.BarrierWait(ring.empty, parity, stage, loc=loc))
        size = sum(_bytes(b) for b in loop.buffers)
        self.start(ops.BarrierArrive(ring.full, stage, bytes=size, loc=loc))
        self.tiles(loop, ring, stage)
        *inner, last = op.body.ops
        for x in inner:
            if isinstance(x, ops.CopyAsync):
                at = tuple(map(self.value, x.offsets))
                tile, tensor = self.value(x.shared), self.value(x.tensor)
                self.start(ops.CopyBulk(tile, tensor, at, ring.full, stage, loc=x.loc))
            elif not isinstance(x, ops.AllocShared):
                self.visit(x)
        values = (*map(self.value, last.inputs()), *self.advanced(ring, stage, parity, loc))
        self.emit(ops.Yield(values, loc=loc))
        body = Region((*own, stage, parity), tuple(self.blocks.pop()))
        made = self.emit(ops.For(*self.bounds(op), inits, 0, 1, body, loc=loc))
        *results, stage, parity = made.results
        self.state[id(op)] = (stage, parity)
        self.replace(op, results)


class Consumer(Program):
    """Waits for a stage, multiplies, and frees the stage once the products have read it."""

    def pipelined(self, loop: Loop, ring: Ring) -> None:
        op, loc = loop.op, loop.op.loc
        late = self._runs_late(loop)
        inits = [*map(self.value, op.inits), *self.state[id(op)]]
        names: tuple[str, ...] = ("stage", "parity")
        if late:
            # The stage that the product in flight reads; none at first.
            inits.append(self.constant(-1, loc))
            names = ("stage", "parity", "read")
        own, extra = self.arguments(op, names)
        stage, parity = extra[:2]
        self.blocks.append([])
        self.emit(ops.BarrierWait(ring.full, parity, stage, loc=loc))
        self.tiles(loop, ring, stage)
        skipped = {id(x) for x in (*loop.buffers, *loop.copies)} | _operand_loads(loop)
        *inner, last = op.body.ops
        for x in inner:
            if isinstance(x, ops.Dot):
                self._start(loop, x, late)
            elif id(x) not in skipped:
                self.visit(x)
        if late:
            # One product stays in flight; the stage before it has been read.
            self.emit(ops.DotWait((), 1, loc=loc))
            self._free(ring, extra[2], loc)
        else:
            self.emit(ops.BarrierArrive(ring.empty, stage, loc=loc))
        values = (*map(self.value, last.inputs()), *self.advanced(ring, stage, parity, loc))
        self.emit(ops.Yield((*values, stage) if late else values, loc=loc))
        body = Region((*own, *extra), tuple(self.blocks.pop()))
        made = self.emit(ops.For(*self.bounds(op), tuple(inits), 0, 1, body, loc=loc))
        results = list(made.results)
        if late:
            places = [i for i, r in enumerate(results) if isinstance(r.type, RegisterType)]
            ready = self.emit(ops.DotWait(tuple(results[i] for i in places), 0, loc=loc)).results
            for place, value in zip(places, ready, strict=True):
                results[place] = value
            self._free(ring, results.pop(), loc)
        self.state[id(op)] = (results[-2], results[-1])
        self.replace(op, results[:-2])

    def _free(self, ring: Ring, stage: Value, loc: Location | None) -> None:
        """Say that a stage, if it is one, has been read."""
        self.blocks.append([])
        self.emit(ops.BarrierArrive(ring.empty, stage, loc=loc))
        self.emit(ops.Yield(loc=loc))
        then = Region((), tuple(self.blocks.pop()))
        there = self.emit(ops.Compare("ge", stage, self.constant(0, loc), loc=loc)).result
        self.emit(ops.If(there, then, Region((), (ops.Yield(loc=loc),)), loc=loc))

    def _start(self, loop: Loop, dot: ops.Dot, late: bool) -> None:
        made = {value: x for x in loop.op.body.ops for value in x.results}
        operands = []
        for value in (dot.a, dot.b):
            load = made[value]
            assert isinstance(load, ops.LoadShared)
            operands.append(self._shared(load.tensor, made))
        started = self.emit(ops.DotAsync(operands[0], operands[1], self.value(dot.c), loc=dot.loc))
        result = started.result
        if not late:
            result = self.emit(ops.DotWait((result,), 0, loc=dot.loc)).results[0]
        self.mapping[dot.result] = result

    def _shared(self, tensor: Value, made: dict[Value, Operation]) -> Value:
        view = made.get(tensor)
        if isinstance(view, ops.SharedPermute):
            return self.emit(ops.SharedPermute(self.value(view.tensor), view.perm, loc=view.loc)).result
        return self.value(tensor)

    def _runs_late(self, loop: Loop) -> bool:
        """Tell whether the loop's one product goes straight to the next iteration, so that it may stay in flight."""
        body = loop.op.body
        if len(loop.dots) != 1 or not isinstance(body.terminator, ops.Yield):
            return False
        dot = loop.dots[0]
        uses = [x for x in walk(body) if dot.result in x.inputs()]
        others = [
            x for x in walk(body)
            if isinstance(x, ops.LoadShared) and id(x) not in _operand_loads(loop)
        ]  # fmt: skip
        position = body.terminator.values.index(dot.result) if dot.result in body.terminator.values else -1
        chained = position >= 0 and dot.c is body.args[1 + position]
        return uses == [body.terminator] and chained and not others and loop.op.stages > 2


def _operand_loads(loop: Loop) -> set[int]:
    """Return the loads (and views) that only feed dots, which read shared memory themselves."""
    body = list(walk(loop.op.body))
    made = {value: x for x in body for value in x.results}
    operands = {value for dot in loop.dots for value in (dot.a, dot.b)}
    out: set[int] = set()
    for value in operands:
        if all(isinstance(x, ops.Dot) for x in body if value in x.inputs()):
            load = made[value]
            out.add(id(load))
            assert isinstance(load, ops.LoadShared)
            view = made.get(load.tensor)
            if isinstance(view, ops.SharedPermute):
                out.add(id(view))
    return out


def _bytes(buffer: ops.AllocShared) -> int:
    type = buffer.result.type
    assert isinstance(type, SharedType)
    return type.size * type.dtype.bits // 8
