"""Warp specialisation: pipelined loops of matrix products become a TMA producer and wgmma consumers.

A pipelined loop whose dots read tiles that `copy_async` brings is split for targets with TMA and wgmma. One more
warpgroup is added, of which one warp starts the bulk copies; the kernel's own warps wait for them, multiply straight
from shared memory, and run all the rest of the kernel. For each stage, a `full` barrier says that the bytes have
arrived and an `empty` one that all consumers have read them. A loop that does not qualify is left to software
pipelining.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from tilus.dtypes import int32
from tilus.errors import LayoutConflict, Location, TilusError
from tilus.ir import ops
from tilus.ir.core import Operation, Region, Value, walk
from tilus.ir.kernel import Kernel
from tilus.ir.rewrite import Rewriter
from tilus.ir.types import GlobalType, RegisterType, ScalarType, SharedType, Symbol
from tilus.passes.select import Selector
from tilus.passes.turns import index_of_turn, turn_count

WARPGROUP = 4
TMA_ALIGN = 16
PRODUCER_REGISTERS = 40
CONSUMER_REGISTERS = 232


@dataclass(frozen=True)
class Loop:
    """A loop that qualifies: its shared tiles, the copies into them, and its dots."""

    op: ops.For
    buffers: tuple[ops.AllocShared, ...]
    copies: tuple[ops.CopyAsync, ...]
    dots: tuple[ops.Dot, ...]


def specialise_warps(kernel: Kernel, selector: Selector) -> Kernel:
    """Split the kernel into a producer and consumers if all its pipelined loops qualify."""
    pipelined = [op for op in walk(kernel.body) if isinstance(op, ops.For) and op.stages]
    if (
        not pipelined
        or kernel.warps % WARPGROUP
        or any(isinstance(op, ops.WarpGroup) for op in walk(kernel.body))
    ):
        return kernel
    loops = [qualify(op, kernel, selector) for op in pipelined]
    if any(loop is None for loop in loops) or any(op not in kernel.body.ops for op in pipelined):
        return kernel
    found = {id(loop.op): loop for loop in loops if loop is not None}
    return Specialiser(kernel, found).build()


def qualify(op: ops.For, kernel: Kernel, selector: Selector) -> Loop | None:
    """Return what a loop is made of, if TMA can feed it and wgmma can run its dots."""
    buffers = tuple(x for x in op.body.ops if isinstance(x, ops.AllocShared))
    copies = tuple(x for x in op.body.ops if isinstance(x, ops.CopyAsync))
    dots = tuple(x for x in op.body.ops if isinstance(x, ops.Dot))
    inside = list(walk(op.body))
    if not dots or not copies or op.stages < 2:
        return None
    own = {b.result for b in buffers}
    made = {value: x for x in inside for value in x.results}
    targets = [c.shared for c in copies]
    if set(targets) != own or len(targets) != len(own) or any(b.layout is not None for b in buffers):
        return None
    if any(isinstance(x, ops.CopyAsync) and x not in copies for x in inside):
        return None
    if not all(_bulk_copyable(c, kernel) for c in copies):
        return None
    reads = [x for x in inside if not isinstance(x, ops.CopyAsync) and own.intersection(x.inputs())]
    if not all(isinstance(x, (ops.LoadShared, ops.SharedPermute)) for x in reads):
        return None
    for dot in dots:
        a, b, c = dot.a.type, dot.b.type, dot.c.type
        assert isinstance(a, RegisterType)
        assert isinstance(b, RegisterType)
        assert isinstance(c, RegisterType)
        for operand, fast in ((dot.a, 1), (dot.b, 0)):
            major = _contiguous(operand, made, own)
            if major is None or (major != fast and a.dtype.bits != 16):
                return None
        try:
            shape = (a.shape[0], b.shape[1], a.shape[1])
            selector.choose_dot_async(shape, (a.dtype, b.dtype, c.dtype), kernel.warps)
        except TilusError:
            return None
    return Loop(op, buffers, copies, dots)


def _contiguous(operand: Value, made: dict[Value, Operation], own: set[Value]) -> int | None:
    """Return which dimension of a dot's operand is contiguous in the shared tile that it is loaded from."""
    load = made.get(operand)
    if not isinstance(load, ops.LoadShared) or load.layout is not None:
        return None
    source = load.tensor
    if source in own:
        return 1
    view = made.get(source)
    if isinstance(view, ops.SharedPermute) and view.tensor in own and view.perm == (1, 0):
        return 0
    return None


def _bulk_copyable(copy: ops.CopyAsync, kernel: Kernel) -> bool:
    """Tell whether TMA can make a copy."""
    type, shared = copy.tensor.type, copy.shared.type
    assert isinstance(type, GlobalType)
    assert isinstance(shared, SharedType)
    bits = type.dtype.bits
    if (
        copy.tensor not in kernel.params
        or bits % 8
        or type.align % TMA_ALIGN
        or type.rank > 5
        or not all(copy.checked)
    ):
        return False
    if len(shared.shape) != 2 or type.strides[-1] != 1 or shared.shape[1] * bits // 8 % TMA_ALIGN:
        return False
    steps = [s.divisor if isinstance(s, Symbol) else s for s in type.strides[:-1]]
    return all(step * bits // 8 % TMA_ALIGN == 0 for step in steps)


class Specialiser(Rewriter):
    """Builds the two programs."""

    def __init__(self, kernel: Kernel, loops: dict[int, Loop]) -> None:
        super().__init__()
        self.kernel, self.loops = kernel, loops
        self.staged: dict[Value, Value] = {}
        self.full: dict[int, Value] = {}
        self.empty: dict[int, Value] = {}
        self.producing = False

    def build(self) -> Kernel:
        """Return the kernel of producer and consumers."""
        warps = self.kernel.warps
        for param in self.kernel.params:
            self.mapping[param] = param
        grid = self.region(self.kernel.grid)
        self.blocks.append([])
        for loop in self.loops.values():
            self._allocate(loop)
        budget = warps == 2 * WARPGROUP
        outside = dict(self.mapping)
        consumer = self._program(self.kernel.body.ops)
        self.emit(
            ops.WarpGroup(
                0, warps, CONSUMER_REGISTERS if budget else 0, Region((), consumer), loc=self.kernel.loc
            )
        )
        self.mapping = outside
        self.producing = True
        needed = _needed(self.kernel.body.ops, self.loops)
        producer = self._program(tuple(op for op in self.kernel.body.ops if id(op) in needed))
        inner = ops.WarpGroup(warps, 1, 0, Region((), producer), loc=self.kernel.loc)
        body = Region((), (inner, ops.Yield(loc=self.kernel.loc)))
        self.emit(
            ops.WarpGroup(warps, WARPGROUP, PRODUCER_REGISTERS if budget else 0, body, loc=self.kernel.loc)
        )
        self.emit(ops.Return(loc=self.kernel.loc))
        made = Region((), tuple(self.blocks.pop()))
        return replace(self.kernel, grid=grid, body=made, warps=warps + WARPGROUP)

    def _program(self, operations: tuple[Operation, ...]) -> tuple[Operation, ...]:
        self.blocks.append([])
        for op in operations:
            if isinstance(op, ops.Return):
                continue
            self.visit(op)
        self.emit(ops.Yield(loc=self.kernel.loc))
        return tuple(self.blocks.pop())

    def _allocate(self, loop: Loop) -> None:
        loc = loop.op.loc
        for buffer in loop.buffers:
            shape = (loop.op.stages, *buffer.shape)
            made = ops.AllocShared(buffer.dtype, shape, streamed=True, loc=buffer.loc)
            self.emit(made)
            made.result.name = buffer.result.name
            self.staged[buffer.result] = made.result
        self.full[id(loop.op)] = self.emit(ops.BarrierAlloc(loop.op.stages, 1, loc=loc)).result
        self.empty[id(loop.op)] = self.emit(
            ops.BarrierAlloc(loop.op.stages, self.kernel.warps, loc=loc)
        ).result

    def visit(self, op: Operation) -> None:
        loop = self.loops.get(id(op))
        if loop is None:
            self.copy(op)
        elif self.producing:
            self._produce(loop)
        else:
            self._consume(loop)

    # Pieces of loops.

    def constant(self, value: int, loc: Location | None) -> Value:
        """Emit an int32 constant."""
        return self.emit(ops.Constant(value, int32, loc=loc)).result

    def binary(self, kind: str, a: Value, b: Value, loc: Location | None) -> Value:
        """Emit scalar arithmetic."""
        return self.emit(ops.Binary(kind, a, b, loc=loc)).result

    def _stage(self, op: ops.For, number: Value, turn: int) -> tuple[Value, Value]:
        """Return the stage of an iteration and the parity of the phase to wait for."""
        stages = self.constant(op.stages, op.loc)
        stage = self.binary("mod", number, stages, op.loc)
        round_ = self.binary("floordiv", number, stages, op.loc)
        if turn:
            round_ = self.binary("add", round_, self.constant(turn, op.loc), op.loc)
        return stage, self.binary("mod", round_, self.constant(2, op.loc), op.loc)

    def _index(self, op: ops.For, number: Value) -> None:
        self.mapping[op.body.args[0]] = index_of_turn(self, op, number)

    def _produce(self, loop: Loop) -> None:
        """The producer's loop: wait until a stage is free, announce its bytes, start its copies."""
        op, loc = loop.op, loop.op.loc
        count, zero, one = turn_count(self, op), self.constant(0, loc), self.constant(1, loc)
        number = Value(ScalarType(int32), "iteration")
        needed = _copy_slice(loop)
        self.blocks.append([])
        # The first round finds all stages free: it waits for the phase before the first.
        stage, parity = self._stage(op, number, 1)
        self.emit(ops.BarrierWait(self.empty[id(op)], parity, stage, loc=loc))
        size = sum(_bytes(b) for b in loop.buffers)
        self.emit(ops.BarrierArrive(self.full[id(op)], stage, size, loc=loc))
        self._index(op, number)
        for inner in op.body.ops:
            if isinstance(inner, ops.CopyAsync):
                tile = self.emit(ops.SharedIndex(self.staged[inner.shared], stage, loc=inner.loc)).result
                offsets = tuple(self.value(o) for o in inner.offsets)
                self.emit(
                    ops.CopyBulk(
                        tile, self.value(inner.tensor), offsets, self.full[id(op)], stage, loc=inner.loc
                    )
                )
            elif id(inner) in needed:
                self.copy(inner)
        self.emit(ops.Yield(loc=loc))
        body = Region((number,), tuple(self.blocks.pop()))
        self.emit(ops.For(zero, count, one, (), 0, 1, body, loc=loc))

    def _consume(self, loop: Loop) -> None:
        """The consumers' loop: wait for a stage, multiply, and free the stage once the products have read it."""
        op, loc = loop.op, loop.op.loc
        count, zero, one = turn_count(self, op), self.constant(0, loc), self.constant(1, loc)
        number = Value(ScalarType(int32), "iteration")
        carried = tuple(self.argument(a) for a in op.body.args[1:])
        late = self._runs_late(loop)
        self.blocks.append([])
        stage, parity = self._stage(op, number, 0)
        self.emit(ops.BarrierWait(self.full[id(op)], parity, stage, loc=loc))
        self._index(op, number)
        for buffer in loop.buffers:
            self.mapping[buffer.result] = self.emit(
                ops.SharedIndex(self.staged[buffer.result], stage, loc=buffer.loc)
            ).result
        skipped = {id(x) for x in (*loop.buffers, *loop.copies)} | _operand_loads(loop)
        terminator = op.body.terminator
        for inner in op.body.ops:
            if inner is terminator:
                break
            if id(inner) in skipped:
                continue
            if isinstance(inner, ops.Dot):
                self._start(loop, inner, late)
            else:
                self.visit(inner)
        if late:
            # One product stays in flight; the stage before it has been read.
            self.emit(ops.DotWait((), 1, loc=loc))
            self.blocks.append([])
            before = self.binary("sub", number, one, loc)
            freed = self.binary("mod", before, self.constant(op.stages, loc), loc)
            self.emit(ops.BarrierArrive(self.empty[id(op)], freed, loc=loc))
            self.emit(ops.Yield(loc=loc))
            then = Region((), tuple(self.blocks.pop()))
            positive = self.emit(ops.Compare("gt", number, zero, loc=loc)).result
            self.emit(ops.If(positive, then, Region((), (ops.Yield(loc=loc),)), loc=loc))
        else:
            self.emit(ops.BarrierArrive(self.empty[id(op)], stage, loc=loc))
        self.visit(terminator)
        body = Region((number, *carried), tuple(self.blocks.pop()))
        inits = tuple(self.value(v) for v in op.inits)
        made = ops.For(zero, count, one, inits, 0, 1, body, loc=loc)
        self.emit(made)
        results = list(made.results)
        if late:
            places = [i for i, r in enumerate(results) if isinstance(r.type, RegisterType)]
            ready = self.emit(ops.DotWait(tuple(results[i] for i in places), 0, loc=loc)).results
            for place, value in zip(places, ready, strict=True):
                results[place] = value
        self.replace(op, results)

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


def _copy_slice(loop: Loop) -> set[int]:
    """Return the operations of the body that the copies' places depend on."""
    needed = {value for copy in loop.copies for value in copy.offsets}
    chosen: set[int] = set()
    for op in reversed(loop.op.body.ops):
        if needed.intersection(op.results):
            if not op.pure or any(True for _ in op.regions()):
                raise LayoutConflict(
                    f"the place that copy_async reads from depends on {op.opcode}, which cannot run ahead of its "
                    "iteration",
                    op.loc,
                    hint="compute it from the loop's index with arithmetic alone, or use a plain range",
                )
            chosen.add(id(op))
            needed.update(op.inputs())
    return chosen


def _needed(operations: tuple[Operation, ...], loops: dict[int, Loop]) -> set[int]:
    """Return the top-level operations that the producer runs: its loops and the scalars that they need."""
    chosen: set[int] = set()
    needed: set[Value] = set()
    for op in reversed(operations):
        loop = loops.get(id(op))
        if loop is not None:
            chosen.add(id(op))
            needed.update((loop.op.start, loop.op.stop, loop.op.step))
            inner = _copy_slice(loop)
            for x in loop.op.body.ops:
                if id(x) in inner or isinstance(x, ops.CopyAsync):
                    needed.update(v for v in x.inputs() if v is not loop.op.body.args[0])
        elif needed.intersection(op.results):
            chosen.add(id(op))
            needed.update(op.inputs())
            for nested in op.regions():
                for x in walk(nested):
                    needed.update(x.inputs())
    return chosen


def _bytes(buffer: ops.AllocShared) -> int:
    type = buffer.result.type
    assert isinstance(type, SharedType)
    return type.size * type.dtype.bits // 8
