"""Layout inference: every register tile gets a layout, and conversions stand where two uses want different ones.

Tiles that must agree (operands and results of elementwise operations, values carried by loops) form a class.
Anchors give classes their layouts, strongest first: the user's annotations, accumulators of dots, operands of
dots, accesses to global memory, accesses to shared memory. Between anchors, layouts follow operations that
change a tile's shape in both directions. Then each operation that wants another layout than its class has gets
a conversion.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from functools import cached_property
from math import gcd, prod

from tilus.errors import LayoutConflict, Location, TilusError
from tilus.ir import ops
from tilus.ir.core import Operation, Region, Value
from tilus.ir.kernel import Kernel
from tilus.ir.rewrite import Rewriter
from tilus.ir.types import GlobalType, RegisterType, SharedType, Type, divisor_of
from tilus.layout import Digit, RegisterLayout, coalesced, local
from tilus.passes.constancy import Runs, constancy, neighbours
from tilus.passes.divisibility import facts
from tilus.passes.operands import load_operands_apart
from tilus.passes.reshaping import Mapped, attempt, mapped, narrow, plain_result, plain_source
from tilus.passes.select import DotChoice, Selector

# Operations whose register operands and results all share one layout.
UNIFORM = (
    ops.Unary, ops.Binary, ops.Compare, ops.Select, ops.Cast, ops.CastRandom, ops.InlinePtx, ops.Gather, ops.Scatter,
    ops.Atomic, ops.Random, ops.Table, ops.Exchange,
)  # fmt: skip

BY_INDEX = (ops.Gather, ops.Scatter, ops.Atomic)

# What makes a tile of scalars and of tiles made so, and how many of them are done again in place of a conversion.
AGAIN = (ops.Iota, ops.Splat, ops.Unary, ops.Binary, ops.Compare, ops.Select, ops.Cast)
REPEATS = 4

WARP = 32

# A conversion pays where it makes accesses to global memory at least this many times wider.
WORTHWHILE = 4


def infer_layouts(kernel: Kernel, selector: Selector) -> Kernel:
    """Give every register tile a layout and make conversions explicit."""
    kernel = load_operands_apart(kernel)
    inference = Inference(kernel, selector)
    inference.solve()
    return Assign(inference).run(kernel)


class Inference:
    """The classes of tiles, and the layouts found for them."""

    def __init__(self, kernel: Kernel, selector: Selector) -> None:
        self.kernel, self.selector = kernel, selector
        self.parent: dict[Value, Value] = {}
        self.layout: dict[Value, RegisterLayout] = {}
        self.origin: dict[Value, tuple[str, Location | None]] = {}
        self.threads: dict[Value, int] = {}
        self.group_of: dict[int, int] = {}
        self.operations: list[Operation] = []
        self.dots: dict[int, DotChoice] = {}
        self.mapped: list[Mapped] = []
        self.facts = facts(kernel)
        self._collect(kernel.body, kernel.threads)

    # Classes.

    def find(self, value: Value) -> Value:
        """Return the representative of a tile's class."""
        root = value
        while self.parent[root] is not root:
            root = self.parent[root]
        while self.parent[value] is not root:
            self.parent[value], value = root, self.parent[value]
        return root

    def of(self, value: Value) -> RegisterLayout | None:
        """Return the layout of a tile's class."""
        return self.layout.get(self.find(value))

    def unite(self, values: Iterable[Value]) -> None:
        """Put tiles into one class."""
        tiles = [v for v in values if isinstance(v.type, RegisterType)]
        for value in tiles[1:]:
            a, b = self.find(tiles[0]), self.find(value)
            if a is not b:
                self.parent[b] = a

    def give(self, value: Value, layout: RegisterLayout, why: str, loc: Location | None) -> None:
        """Give a class its layout, unless it has one."""
        root = self.find(value)
        if root in self.layout:
            return
        threads = self.threads[value]
        if layout.threads != threads:
            if threads % layout.threads:
                raise LayoutConflict(
                    f"a layout over {layout.threads} threads in a group of {threads}",
                    loc,
                    hint="use a layout whose threads divide those of the group",
                )
            layout = layout.with_replication(threads // layout.threads)
        self.layout[root] = layout
        self.origin[root] = (why, loc)

    def _collect(self, region: Region, threads: int) -> None:
        for value in region.args:
            self._register(value, threads)
        for operation in region.ops:
            inner = 32 * operation.count if isinstance(operation, ops.WarpGroup) else threads
            self.group_of[id(operation)] = threads
            for value in operation.results:
                self._register(value, threads)
            for nested in operation.regions():
                self._collect(nested, inner)
            self.operations.append(operation)

    def _register(self, value: Value, threads: int) -> None:
        if isinstance(value.type, RegisterType):
            self.parent[value] = value
            self.threads[value] = threads

    # Solving.

    def solve(self) -> None:
        """Find all layouts."""
        frames: list[Operation] = []
        self._edges(self.kernel.body, frames)
        self._annotations()
        self._propagate()
        self._choose_dots()
        self._propagate()
        for op in self.operations:
            if isinstance(op, (ops.Scan, ops.Exchange)):
                assert isinstance(op.x.type, RegisterType)
                layout = scan_layout(op.x.type.shape, self.threads[op.x], op.axis)
                self.give(op.x, layout, f"{op.opcode} of its tile", op.loc)
                self._propagate()
        self._memory()
        self._propagate(repeat=True)
        for value in self.parent:
            if self.find(value) not in self.layout:
                assert isinstance(value.type, RegisterType)
                self.give(value, coalesced(value.type.shape, self.threads[value]), "default", None)
                self._propagate(repeat=True)

    def _edges(self, region: Region, frames: list[Operation]) -> None:
        for op in region.ops:
            if isinstance(op, UNIFORM):
                self.unite((*op.inputs(), *op.results))
            elif isinstance(op, ops.Scan):
                self.unite((op.x, op.result))
            elif isinstance(op, (ops.Dot, ops.DotAsync)):
                self.unite((op.c, op.result))
            elif isinstance(op, ops.DotWait):
                for before, after in zip(op.tiles, op.results, strict=True):
                    self.unite((before, after))
            elif isinstance(op, (ops.LoadGlobal, ops.StoreGlobal)) and op.mask is not None:
                self.unite((op.mask, op.result if isinstance(op, ops.LoadGlobal) else op.value))
            elif isinstance(op, ops.For):
                for init, arg, result in zip(op.inits, op.body.args[1:], op.results, strict=True):
                    self.unite((init, arg, result))
            elif isinstance(op, ops.Loop):
                for init, arg, result in zip(op.inits, op.body.args, op.results, strict=True):
                    self.unite((init, arg, result))
            elif isinstance(op, ops.View) and op.layout is None:
                assert isinstance(op.x.type, RegisterType)
                if op.x.type.shape == op.shape and op.x.type.dtype.bits == op.dtype.bits:
                    self.unite((op.x, op.result))
            elif isinstance(op, (ops.Yield, ops.Continue, ops.Break)) and op.values:
                outer = frames[-1]
                if not isinstance(op, ops.Yield):
                    outer = next(f for f in reversed(frames) if isinstance(f, (ops.For, ops.Loop)))
                for value, result in zip(op.values, outer.results, strict=True):
                    self.unite((value, result))
            self.mapped += mapped(op)
            for nested in op.regions():
                self._edges(nested, [*frames, op])

    def _annotations(self) -> None:
        for op in self.operations:
            said = getattr(op, "layout", None)
            if isinstance(said, RegisterLayout) and op.results and isinstance(op.result.type, RegisterType):
                if said.shape != op.result.type.shape:
                    raise LayoutConflict(
                        f"a layout of shape {said.shape} for a tile of shape {op.result.type.shape}", op.loc
                    )
                self.give(op.result, said, "the layout said", op.loc)

    def _propagate(self, repeat: bool = False) -> None:
        """Let layouts follow operations that change shapes until nothing changes."""
        changed = True
        while changed:
            changed = False
            for edge in self.mapped:
                source, result = self.of(edge.source), self.of(edge.result)
                if source is not None and result is None:
                    if edge.repeats and not repeat:
                        continue
                    made = attempt(edge.forward, source)
                    if made is not None:
                        self.give(
                            edge.result, made, f"{edge.operation.opcode} of its operand", edge.operation.loc
                        )
                        changed = True
                elif result is not None and source is None and edge.backward is not None:
                    made = attempt(edge.backward, result)
                    if made is not None:
                        self.give(
                            edge.source, made, f"{edge.operation.opcode} of its result", edge.operation.loc
                        )
                        changed = True

    def _choose_dots(self) -> None:
        chained = self._chained()
        for op in self.operations:
            if isinstance(op, ops.DotAsync):
                self._choose_dot_async(op)
            if not isinstance(op, ops.Dot):
                continue
            a, b, c = op.a.type, op.b.type, op.c.type
            assert isinstance(a, RegisterType) and isinstance(b, RegisterType) and isinstance(c, RegisterType)
            try:
                choice = self.selector.choose_dot(
                    (a.shape[0], b.shape[1], a.shape[1]),
                    (a.dtype, b.dtype, c.dtype),
                    self.threads[op.c] // 32,
                    self.of(op.a),
                    self.of(op.b),
                    self.of(op.c),
                    id(op) in chained,
                )
            except TilusError as error:
                raise error.at(op.loc) from None
            self.dots[id(op)] = choice
            self.give(op.c, choice.c, "accumulator of dot", op.loc)
            self.give(op.a, choice.a, "first operand of dot", op.loc)
            self.give(op.b, choice.b, "second operand of dot", op.loc)
            self._propagate()

    def _chained(self) -> set[int]:
        """Return which dots make another's first operand or take one that a dot made.

        With all warps along the rows, a row of the result stays in its warp on the way to the next product.
        """
        dots = [op for op in self.operations if isinstance(op, ops.Dot)]
        makers: dict[Value, list[Operation]] = {}
        for op in dots:
            makers.setdefault(self.find(op.result), []).append(op)
        pairs = [
            (before, op) for op in dots for before in makers.get(self.find(op.a), ()) if before is not op
        ]
        return {id(op) for pair in pairs for op in pair}

    def _choose_dot_async(self, op: ops.DotAsync) -> None:
        a, b, c = op.a.type, op.b.type, op.c.type
        assert isinstance(a, (RegisterType, SharedType))
        assert isinstance(b, SharedType)
        assert isinstance(c, RegisterType)
        # Rows of a first operand in shared memory are where the instruction has them; in registers, where they are.
        given = (self.of(op.a), self.of(op.c)) if isinstance(a, RegisterType) else (None, None)
        try:
            choice = self.selector.choose_dot_async(
                (a.shape[0], b.shape[1], a.shape[1]),
                (a.dtype, b.dtype, c.dtype),
                self.threads[op.c] // WARP,
                *given,
            )
        except TilusError as error:
            raise error.at(op.loc) from None
        self.dots[id(op)] = choice
        self.give(op.c, choice.c, "accumulator of dot_async", op.loc)
        if isinstance(a, RegisterType):
            self.give(op.a, choice.a, "first operand of dot_async", op.loc)
        if self.of(op.c) != choice.c:
            raise LayoutConflict(
                f"the accumulator of dot_async is in {self.of(op.c)}, but {choice.atom} needs {choice.c}",
                op.loc,
                hint="leave its layout to inference",
            )
        self._propagate()

    def _memory(self) -> None:
        """Give classes without an anchor the layout that their largest memory access prefers."""
        accesses: list[tuple[int, int, int, int, Operation, Value]] = []
        for op in self.operations:
            value: Value | None = None
            # Of accesses of one size those by index tiles come last, and of these atomics first: they cost most.
            order = 0
            if isinstance(op, (ops.LoadGlobal, ops.LoadShared)):
                value, space = op.result, 0 if isinstance(op, ops.LoadGlobal) else 1
            elif isinstance(op, (ops.StoreGlobal, ops.StoreShared)):
                value, space = op.value, 0 if isinstance(op, ops.StoreGlobal) else 1
            elif isinstance(op, BY_INDEX) and isinstance(op.tensor.type, GlobalType):
                value, space, order = op.indices[0], 0, 1 if isinstance(op, ops.Atomic) else 2
            if value is not None:
                assert isinstance(value.type, RegisterType)
                accesses.append((space, -value.type.size, order, len(accesses), op, value))
        for *_, op, value in sorted(accesses, key=lambda entry: entry[:4]):
            if self.of(value) is None:
                self.give(value, self.preferred(op, value), f"{op.opcode} of its tile", op.loc)
                self._propagate()

    def preferred(self, op: Operation, value: Value) -> RegisterLayout:
        """Return the layout in which a memory access is widest."""
        assert isinstance(value.type, RegisterType)
        if isinstance(op, BY_INDEX):
            return self.spread(op, value.type.shape, self.threads[value])
        order = None
        vector = max(1, 128 // value.type.dtype.bits)
        if isinstance(op, (ops.LoadGlobal, ops.StoreGlobal)):
            order = memory_order(self.facts.tensor(op.tensor), len(value.type.shape))
            vector = gcd(vector, self.provable_vector(op))
        made = coalesced(value.type.shape, self.threads[value], vector, order)
        fast = made.rank - 1 if order is None else order[0]
        unit = byte_unit(value.type)
        if unit == 1 or run_length(made, fast) % unit == 0 or made.shape[fast] % unit:
            return made
        # Fewer threads move whole bytes.
        whole = tuple(unit if dim == fast else 1 for dim in range(made.rank))
        outer = tuple(n // w for n, w in zip(made.shape, whole, strict=True))
        return coalesced(outer, self.threads[value], 1, order) * local(*whole)

    def spread(
        self, op: ops.Gather | ops.Scatter | ops.Atomic, shape: tuple[int, ...], threads: int
    ) -> RegisterLayout:
        """Return the layout of an access by index tiles in which threads take what lies side by side in memory."""
        tensor = self.facts.tensor(op.tensor)
        dim, count = neighbours(op, tensor, self.runs)
        vector = 1 if isinstance(op, ops.Atomic) else gcd(count, max(1, 128 // tensor.dtype.bits))
        rank = len(shape)
        order = (dim % rank, *(d for d in reversed(range(rank)) if d != dim % rank)) if rank else None
        return coalesced(shape, threads, vector, order)

    def accessed(self, op: Operation, value: Value) -> RegisterLayout:
        """Return the layout in which a tile is loaded from or stored to global memory."""
        own = self.of(value)
        assert own is not None
        if isinstance(getattr(op, "layout", None), RegisterLayout) or getattr(op, "mask", None) is not None:
            return own
        assert isinstance(op, (ops.LoadGlobal, ops.StoreGlobal))
        best = self.preferred(op, value)
        order = memory_order(self.facts.tensor(op.tensor), own.rank)
        if own.rank and order is None and run_length(best) >= WORTHWHILE * run_length(own):
            return best
        unit, fast = byte_unit(value.type), own.rank - 1 if order is None else order[0]
        bytes_only_there = own.rank and run_length(best, fast) % unit == 0 and run_length(own, fast) % unit
        return best if bytes_only_there else own

    @cached_property
    def runs(self) -> dict[Value, Runs]:
        """For each tile, how its elements vary along each dimension."""
        return constancy(self.kernel, self.facts.divisors)

    def provable_vector(self, op: ops.LoadGlobal | ops.StoreGlobal) -> int:
        """Return a bound on the elements that one instruction may move, as far as is known of the tensor and the mask.

        Where vectors cannot be used, neighbouring threads had better take neighbouring elements.
        """
        type = self.facts.tensor(op.tensor)
        bound = max(1, type.align * 8 // type.dtype.bits)
        if not type.rank:
            return bound
        fast = type.strides.index(1) if 1 in type.strides and type.strides[-1] != 1 else type.rank - 1
        if op.mask is not None:
            along = self.runs[op.mask].along
            inner = fast - (type.rank - len(along))
            bound = gcd(bound, along[inner].constant if inner >= 0 else 1)
        for axis, stride in enumerate(type.strides):
            if axis != fast:
                bound = gcd(bound, divisor_of(stride))
        if op.checked[fast]:
            bound = gcd(bound, divisor_of(type.dims[fast]))
        return bound


def scan_layout(shape: tuple[int, ...], threads: int, axis: int) -> RegisterLayout:
    """Return a layout to scan in: along the axis a run in each thread, then lanes, then warps where need be."""
    others = [d for d in range(len(shape)) if d != axis]
    rows = prod(shape[d] for d in others)
    along = gcd(threads if rows < threads // WARP else WARP, shape[axis])
    left = threads // along
    counts = {axis: along}
    for dim in reversed(others):
        counts[dim] = gcd(left, shape[dim])
        left //= counts[dim]
    run = shape[axis] // along
    spatial = [Digit(left, None, 0), *(Digit(counts[d], d, 1) for d in others), Digit(along, axis, run)]
    locals_ = [*(Digit(shape[d] // counts[d], d, counts[d]) for d in others), Digit(run, axis, 1)]
    return RegisterLayout(shape, tuple(spatial), tuple(locals_))


def scans_in(layout: RegisterLayout, axis: int) -> bool:
    """Tell whether each thread holds one run along an axis."""
    run = layout.shape[axis] // prod(d.size for d in layout.spatial_digits if d.dim == axis)
    ordered = sorted((d for d in layout.spatial_digits if d.dim == axis), key=lambda d: -d.stride)
    inner_first = [d for d in layout.spatial_digits if d.dim == axis] == ordered
    return inner_first and all(d.stride >= run for d in ordered)


def memory_order(tensor: GlobalType, rank: int) -> tuple[int, ...] | None:
    """Return a tile's dimensions from the fastest in memory, or None for the usual order."""
    strides = tensor.strides[tensor.rank - rank :]
    if not strides or strides[-1] == 1 or 1 not in strides:
        return None
    fastest = strides.index(1)
    return (fastest, *(d for d in reversed(range(rank)) if d != fastest))


def layout_of(value: Value) -> RegisterLayout:
    """Return the layout of a tile that has one."""
    assert isinstance(value.type, RegisterType)
    assert value.type.layout is not None
    return value.type.layout


def run_length(layout: RegisterLayout, dim: int = -1) -> int:
    """Return how many elements of a thread follow one another along a dimension, by default the last."""
    reach = 1
    rest = [d for d in layout.local_digits if d.dim == dim % layout.rank]
    while True:
        found = next((d for d in rest if d.stride == reach), None)
        if found is None:
            return reach
        rest.remove(found)
        reach *= found.size


def byte_unit(type: Type) -> int:
    """Return how many elements of a tile fill a byte in memory; 1 where no number of them does."""
    assert isinstance(type, (RegisterType, SharedType))
    return 1 if type.dtype.is_boolean or 8 % type.dtype.bits else 8 // type.dtype.bits


class Assign(Rewriter):
    """Writes the layouts into the IR and adds conversions."""

    def __init__(self, inference: Inference) -> None:
        super().__init__()
        self.found = inference
        self.used = {value for op in inference.operations for value in op.inputs()}
        self.made: dict[Value, Operation] = {}

    def emit(self, operation: Operation) -> Operation:
        if len(operation.results) == 1 and isinstance(operation, AGAIN):
            self.made[operation.result] = operation
        return super().emit(operation)

    def argument(self, old: Value) -> Value:
        new = Value(old.type, old.name)
        if isinstance(old.type, RegisterType):
            new.type = dataclasses.replace(old.type, layout=self.found.of(old))
        self.mapping[old] = new
        return new

    def typed(self, value: Value, layout: RegisterLayout | None = None) -> Value:
        """Return a new value for an old result, with its layout."""
        if not isinstance(value.type, RegisterType):
            return Value(value.type, value.name)
        chosen = layout if layout is not None else self.found.of(value)
        return Value(dataclasses.replace(value.type, layout=chosen), value.name)

    def convert(self, value: Value, layout: RegisterLayout, loc: Location | None) -> Value:
        """Return a new value in another layout, converting if need be."""
        assert isinstance(value.type, RegisterType)
        if value.type.layout == layout:
            return value
        if self.moves(value, REPEATS) is not None:
            return self.again(value, layout)
        return self.emit(ops.ConvertLayout(value, layout, loc=loc)).result

    def moves(self, value: Value, most: int) -> int | None:
        """Return how many operations make a tile of nothing but scalars; None if not so, or if they are too many."""
        op = self.made.get(value)
        if op is None:
            return None
        count = 1
        for source in op.inputs():
            if isinstance(source.type, RegisterType):
                found = self.moves(source, most - count) if most > count else None
                if found is None:
                    return None
                count += found
        return count

    def again(self, value: Value, layout: RegisterLayout) -> Value:
        """Make a tile of scalars once more, in another layout: cheaper than to exchange its elements."""
        op = self.made[value]
        if isinstance(op, (ops.Iota, ops.Splat)):
            return self.emit(op.replace(layout=layout, results=())).result

        def source(v: Value) -> Value:
            return self.again(v, layout) if isinstance(v.type, RegisterType) else v

        return self.emit(op.with_operands(source)).result

    def operand(self, old: Value, layout: RegisterLayout, loc: Location | None) -> Value:
        """Return an old operand in the layout wanted."""
        return self.convert(self.value(old), layout, loc)

    def visit(self, op: Operation) -> None:
        if isinstance(op, ops.AnnotateLayout):
            layout = self.found.of(op.result)
            assert layout is not None
            self.mapping[op.result] = self.operand(op.x, layout, op.loc)
            return
        if isinstance(op, ops.Dot):
            choice = self.found.dots[id(op)]
            layout = self.found.of(op.c)
            assert layout is not None
            made = ops.Dot(
                self.operand(op.a, choice.a, op.loc),
                self.operand(op.b, choice.b, op.loc),
                self.operand(op.c, choice.c, op.loc),
                choice.atom,
                loc=op.loc,
            )
            self.emit(made)
            self.replace(op, (self.convert(made.result, layout, op.loc),))
            return
        if isinstance(op, ops.DotAsync):
            choice = self.found.dots[id(op)]
            a = self.value(op.a)
            if isinstance(a.type, RegisterType):
                a = self.convert(a, choice.a, op.loc)
            started = ops.DotAsync(a, self.value(op.b), self.value(op.c), op.fresh, choice.atom, loc=op.loc)
            self.emit(started)
            self.replace(op, started.results)
            return
        if isinstance(op, (ops.LoadGlobal, ops.StoreGlobal)):
            self._global(op)
            return
        if isinstance(op, (ops.LoadShared, ops.StoreShared)) and self._shared(op):
            return
        if isinstance(op, ops.Scan):
            wanted = self.found.of(op.x)
            assert wanted is not None
            layout = wanted
            if not scans_in(wanted, op.axis):
                layout = scan_layout(wanted.shape, wanted.threads, op.axis)
            scanned = ops.Scan(self.operand(op.x, layout, op.loc), op.axis, op.kind, op.exclusive, loc=op.loc)
            self.emit(scanned)
            self.mapping[op.result] = self.convert(scanned.result, wanted, op.loc)
            return
        edges = [e for e in self.found.mapped if e.operation is op]
        if edges:
            self._mapped(op, edges)
            return
        if isinstance(op, ops.View):
            self._view(op)
            return
        new_results = tuple(self.typed(r) for r in op.results)
        new = op.with_operands(self.value, self.region, new_results)
        if isinstance(getattr(new, "layout", None), RegisterLayout) and new.results:
            new = self._annotated(op, new)
            return
        if isinstance(new, (ops.Splat, ops.Iota, ops.LoadShared)):
            new = new.replace(layout=layout_of(new.result))
        if isinstance(new, ops.Atomic) and op.result in self.used:
            new = new.replace(spread=layout_of(new.result).replication > 1)
        self.emit(new)
        self.replace(op, new.results)

    def _annotated(self, op: Operation, new: Operation) -> Operation:
        """An operation whose layout the user said, in a class that may have another."""
        if not isinstance(new.result.type, RegisterType):
            self.emit(new)
            self.replace(op, new.results)
            return new
        type = new.result.type
        own = new.layout  # type: ignore[attr-defined]
        threads = self.found.threads[op.result]
        if own.threads != threads:
            own = own.with_replication(threads // own.threads)
        wanted = self.found.of(op.result)
        assert wanted is not None
        if isinstance(new, ops.LoadGlobal) and new.mask is not None:
            new = new.replace(mask=self.convert(new.mask, own, op.loc))
        made = new.replace(
            layout=own,
            results=(Value(dataclasses.replace(type, layout=own), op.result.name),),
        )
        self.emit(made)
        self.replace(op, (self.convert(made.result, wanted, op.loc),))
        return made

    def _global(self, op: ops.LoadGlobal | ops.StoreGlobal) -> None:
        if isinstance(op, ops.LoadGlobal):
            if op.layout is not None:
                self._annotated(
                    op, op.with_operands(self.value, None, tuple(self.typed(r) for r in op.results))
                )
                return
            layout = self.found.accessed(op, op.result)
            wanted = self.found.of(op.result)
            assert wanted is not None
            new = op.with_operands(self.value, None, (self.typed(op.result, layout),))
            self.emit(new.replace(layout=layout))
            self.mapping[op.result] = self.convert(new.results[0], wanted, op.loc)
            return
        layout = self.found.accessed(op, op.value)
        value = self.operand(op.value, layout, op.loc)
        new = op.with_operands(lambda v: value if v is op.value else self.value(v))
        self.emit(new)

    def _shared(self, op: ops.LoadShared | ops.StoreShared) -> bool:
        """Move elements of less than a byte in whole bytes; tell whether that takes another layout."""
        value = op.result if isinstance(op, ops.LoadShared) else op.value
        unit = byte_unit(value.type)
        if unit == 1 or getattr(op, "layout", None) is not None:
            return False
        wanted, best = self.found.of(value), self.found.preferred(op, value)
        assert wanted is not None
        if not wanted.rank or run_length(wanted) % unit == 0 or run_length(best) % unit:
            return False
        if isinstance(op, ops.StoreShared):
            self.emit(op.replace(tensor=self.value(op.tensor), value=self.operand(value, best, op.loc)))
            return True
        new = op.with_operands(self.value, None, (self.typed(value, best),)).replace(layout=best)
        self.emit(new)
        self.mapping[value] = self.convert(new.result, wanted, op.loc)
        return True

    def _mapped(self, op: Operation, edges: list[Mapped]) -> None:
        """Bring operands into the layout from which the result's follows at no cost."""
        wanted = self.found.of(op.result)
        assert wanted is not None
        natural = attempt(edges[0].forward, self.value(edges[0].source).type.layout)  # type: ignore[attr-defined]
        if len(edges) == 1 and edges[0].backward is None:
            # A reduction: its result lies as its operand says, and is converted where others want it.
            assert natural is not None
            new = op.with_operands(self.value, None, (self.typed(op.result, natural),))
            self.emit(new)
            self.mapping[op.result] = self.convert(new.result, wanted, op.loc)
            return
        layout = wanted
        places = [self._place(op, edge, wanted) for edge in edges]
        if any(place is None for place in places):
            # No operand can be brought where the result is wanted: take a way that always works, and convert.
            places = [plain_source(op, self.found.threads[edge.source]) for edge in edges]
            layout = plain_result(op, self.found.threads[op.result])
        if not hasattr(op, "layout") and places[0] is not None:
            # The result's layout follows from the operand's to the order of each thread's elements.
            layout = edges[0].forward(places[0])
        sources: dict[Value, Value] = {}
        for edge, place in zip(edges, places, strict=True):
            assert place is not None
            sources[edge.source] = self.operand(edge.source, place, op.loc)
        new = op.with_operands(
            lambda v: sources.get(v) or self.value(v), None, (self.typed(op.result, layout),)
        )
        self._emit_with_layout(new, layout)
        self.mapping[op.result] = self.convert(new.result, wanted, op.loc)

    def _place(self, op: Operation, edge: Mapped, wanted: RegisterLayout) -> RegisterLayout | None:
        """Return the layout in which an operand gives the result's layout at no cost, its own if that does."""
        here = self.value(edge.source).type
        assert isinstance(here, RegisterType) and here.layout is not None and edge.backward is not None
        if isinstance(op, ops.Broadcast):
            fits = narrow(wanted, here.shape).spatial_digits == here.layout.spatial_digits
        else:
            followed = attempt(edge.forward, here.layout)
            fits = followed is not None and followed.spatial_digits == wanted.spatial_digits
        return here.layout if fits else attempt(edge.backward, wanted)

    def _emit_with_layout(self, op: Operation, layout: RegisterLayout) -> None:
        if any(f.name == "layout" for f in dataclasses.fields(op)):
            op = op.replace(layout=layout)
        self.emit(op)

    def _view(self, op: ops.View) -> None:
        wanted = self.found.of(op.result)
        assert wanted is not None
        own = op.layout if op.layout is not None else wanted
        threads = self.found.threads[op.result]
        if own.threads != threads:
            own = own.with_replication(threads // own.threads)
        new = op.with_operands(self.value, None, (self.typed(op.result, own),))
        new = new.replace(x=self._as_said(op), layout=own)
        self.emit(new)
        self.mapping[op.result] = self.convert(new.result, wanted, op.loc)

    def _as_said(self, op: ops.View) -> Value:
        """Return the operand of a view in the layout that the user said for it: other bits would be other values."""
        x = self.value(op.x)
        assert isinstance(op.x.type, RegisterType)
        said = op.x.type.layout
        if op.layout is None or said is None:
            return x
        copies, rest = divmod(self.found.threads[op.x], said.threads)
        return x if rest else self.convert(x, said.with_replication(copies), op.loc)
