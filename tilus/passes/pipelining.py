"""Software pipelining: in a loop with `stages`, asynchronous copies run ahead of their use.

Shared tiles that are allocated in the loop's body and filled there by `copy_async` get `stages` copies. The loop
first starts the copies of `stages - 1` iterations; then each iteration waits for its own copies, starts those of
the iteration `stages - 1` further on, and computes. A group is committed in each iteration, with or without
copies, so that a constant number of groups is pending at each wait.
"""

from __future__ import annotations

from tilus.dtypes import int32
from tilus.errors import Location, SyntaxNotSupported
from tilus.ir import ops
from tilus.ir.core import Operation, Region, Value, walk
from tilus.ir.kernel import Kernel
from tilus.ir.rewrite import Rewriter
from tilus.ir.types import GlobalType, ScalarType, SharedType
from tilus.passes.provenance import definitions, never_written, shared_tile, written_memory
from tilus.passes.turns import index_of_turn, turn_count


def pipeline_loops(kernel: Kernel) -> Kernel:
    """Rewrite all loops that ask for stages."""
    if not any(isinstance(op, ops.For) and op.stages for op in walk(kernel.body)):
        return kernel
    return Pipeliner(kernel).run(kernel)


class Pipeliner(Rewriter):
    """Rewrites loops with stages."""

    def __init__(self, kernel: Kernel) -> None:
        super().__init__()
        self.kernel, self.made = kernel, definitions(kernel)

    def visit(self, op: Operation) -> None:
        if isinstance(op, ops.For) and op.stages:
            self.pipeline(op)
        else:
            self.copy(op)

    def constant(self, value: int, loc: Location | None) -> Value:
        """Emit an int32 constant."""
        return self.emit(ops.Constant(value, int32, loc=loc)).result

    def binary(self, kind: str, a: Value, b: Value, loc: Location | None) -> Value:
        """Emit scalar arithmetic."""
        return self.emit(ops.Binary(kind, a, b, loc=loc)).result

    def pipeline(self, op: ops.For) -> None:
        """Replace a loop by prologue, steady loop and drain."""
        loc, stages = op.loc, op.stages
        buffers = [x for x in op.body.ops if isinstance(x, ops.AllocShared)]
        copies = [x for x in op.body.ops if isinstance(x, ops.CopyAsync)]
        self._check(op, buffers, copies)
        if not copies:
            raise SyntaxNotSupported(
                "this pipelined loop copies nothing into shared memory of its own, so there is nothing to overlap",
                loc,
                hint="allocate tiles with tilus.shared inside the loop and fill them with tilus.copy_async",
            )
        produced = self._slice(op.body, copies)
        staged: dict[Value, Value] = {}
        for buffer in buffers:
            made = ops.AllocShared(
                buffer.dtype, (stages, *buffer.shape), _staged_layout(buffer, stages), loc=buffer.loc
            )
            self.emit(made)
            made.result.name = buffer.result.name
            staged[buffer.result] = made.result
        zero = self.constant(0, loc)
        one = self.constant(1, loc)
        depth = self.constant(stages, loc)
        count = turn_count(self, op)
        for ahead in range(stages - 1):
            number = self.constant(ahead, loc)
            self._issue(op, produced, staged, number, number, count, loc)
        # The steady loop counts iterations from zero; the user's index follows from that.
        number = Value(ScalarType(int32), "iteration")
        carried = tuple(self.argument(a) for a in op.body.args[1:])
        self.blocks.append([])
        self.emit(ops.CopyAsyncWait(stages - 2, loc=loc))
        later = self.binary("add", number, self.constant(stages - 1, loc), loc)
        self._issue(op, produced, staged, later, self.binary("mod", later, depth, loc), count, loc)
        current = self.binary("mod", number, depth, loc)
        self.mapping[op.body.args[0]] = index_of_turn(self, op, number)
        for buffer in buffers:
            self.mapping[buffer.result] = self.emit(
                ops.SharedIndex(staged[buffer.result], current, loc=buffer.loc)
            ).result
        skipped = {id(x) for x in (*buffers, *copies)}
        for inner in op.body.ops:
            if id(inner) not in skipped:
                self.visit(inner)
        body = Region((number, *carried), tuple(self.blocks.pop()))
        inits = tuple(self.value(v) for v in op.inits)
        loop = ops.For(zero, count, one, inits, 0, op.unroll, body, loc=loc)
        self.emit(loop)
        self.emit(ops.CopyAsyncWait(0, loc=loc))
        self.replace(op, loop.results)

    def _issue(
        self,
        op: ops.For,
        produced: list[Operation],
        staged: dict[Value, Value],
        number: Value,
        stage: Value,
        count: Value,
        loc: Location | None,
    ) -> None:
        """Start the copies of an iteration, if there is one, and close their group."""
        saved = dict(self.mapping)
        inside = self.emit(ops.Compare("lt", number, count, loc=loc)).result
        self.blocks.append([])
        self.mapping[op.body.args[0]] = index_of_turn(self, op, number)
        for inner in produced:
            for buffer in staged.keys() & set(inner.inputs()):
                made = self.emit(ops.SharedIndex(staged[buffer], stage, loc=inner.loc))
                self.mapping[buffer] = made.result
            self.copy(inner)
        self.emit(ops.Yield(loc=loc))
        then = Region((), tuple(self.blocks.pop()))
        self.mapping = saved
        self.emit(ops.If(inside, then, Region((), (ops.Yield(loc=loc),)), loc=loc))
        self.emit(ops.CopyAsyncCommit(loc=loc))

    def _check(self, op: ops.For, buffers: list[ops.AllocShared], copies: list[ops.CopyAsync]) -> None:
        own = {b.result for b in buffers}
        for copy in copies:
            if shared_tile(copy.shared, self.made) not in own:
                raise SyntaxNotSupported(
                    "in a pipelined loop, copy_async fills shared tiles that are allocated in the loop's body",
                    copy.loc,
                    hint="move tilus.shared(...) into the loop, or write a plain loop with copy_async_commit and "
                    "copy_async_wait",
                )
        for inner in walk(op.body):
            if isinstance(inner, (ops.CopyAsyncCommit, ops.CopyAsyncWait)):
                raise SyntaxNotSupported(
                    "a pipelined loop commits and waits by itself",
                    inner.loc,
                    hint="leave out copy_async_commit and copy_async_wait, or use a plain range",
                )
            if isinstance(inner, ops.CopyAsync) and inner not in copies:
                raise SyntaxNotSupported(
                    "in a pipelined loop, copy_async stands in the loop's body itself, not under an if or a loop",
                    inner.loc,
                    hint="copy in every iteration, or use a plain range",
                )
            if isinstance(inner, ops.StoreShared) and shared_tile(inner.tensor, self.made) in own:
                raise SyntaxNotSupported(
                    "a pipelined loop's shared tiles are filled by copy_async only",
                    inner.loc,
                    hint="allocate a tile that is stored to outside the loop",
                )
        if op.stages < 2:
            raise SyntaxNotSupported(
                f"a pipeline of {op.stages} stage overlaps nothing",
                op.loc,
                hint="use stages=2 or more, or a plain range",
            )

    def _slice(self, body: Region, copies: list[ops.CopyAsync]) -> list[Operation]:
        """Return the copies and the operations of the body that they depend on, in order.

        Those are pure, or read what the loop does not write to, such as a table of pages.
        """
        written = written_memory(body, self.made)
        needed: set[Value] = set()
        for copy in copies:
            if not never_written(copy.tensor, written, self.kernel, self.made):
                raise SyntaxNotSupported(
                    f"the loop may write to {copy.tensor.name or 'the tensor'}, from which its copies run ahead",
                    copy.loc,
                    hint="store to another tensor, or use a plain range",
                )
            needed.update((*copy.offsets, copy.tensor, copy.shared))
        chosen: set[int] = {id(c) for c in copies}
        for op in reversed(body.ops):
            if not needed.intersection(op.results) or isinstance(op, ops.AllocShared):
                continue
            table = op.tensor if isinstance(op, (ops.LoadGlobal, ops.Gather)) else None
            reads = table is not None and isinstance(table.type, GlobalType)
            if table is not None and reads and not never_written(table, written, self.kernel, self.made):
                raise SyntaxNotSupported(
                    "the place that copy_async reads from is loaded from memory that the loop may write to, so it "
                    "cannot be loaded ahead of its iteration",
                    op.loc,
                    hint="store to another tensor, or use a plain range",
                )
            if not (op.pure or reads or isinstance(op, ops.Assume)) or any(True for _ in op.regions()):
                raise SyntaxNotSupported(
                    f"the place that copy_async reads from depends on {op.opcode}, which cannot run ahead of its "
                    "iteration",
                    op.loc,
                    hint="compute it from the loop's index by arithmetic and loads, or use a plain range",
                )
            chosen.add(id(op))
            needed.update(op.inputs())
        carried = [value for value in body.args[1:] if value in needed]
        if carried:
            raise SyntaxNotSupported(
                f"the place that copy_async reads from depends on {carried[0].name or 'a value'}, which the loop "
                "carries from one iteration to the next",
                copies[0].loc,
                hint="compute it from the loop's index, or use a plain range",
            )
        return [op for op in body.ops if id(op) in chosen]


def _staged_layout(buffer: ops.AllocShared, stages: int) -> object:
    layout = buffer.layout
    if layout is None:
        return None
    assert isinstance(buffer.result.type, SharedType)
    return layout.prepend(stages, max(1, 1024 * 8 // max(1, buffer.dtype.bits)))
