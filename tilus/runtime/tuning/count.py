"""Counts what a launch has to do from the final tile IR: bytes, tensor-core operations, instructions, loop trips.

The scalars of the IR (block ids, offsets, loop bounds) are computed with NumPy for many blocks at once, and for some
iterations of each loop, which stand for the others. Values that come from memory are unknown: a loop bound that is
unknown counts as one trip, and `Work.exact` says so. Blocks that run at the same time and read the same tile read it
from device memory once.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from math import ceil, log2, prod
from typing import Any

import numpy as np

from tilus.codegen.casts import biased_cast, cast_cost, stored_arrangement
from tilus.codegen.target import Target
from tilus.ir import (
    GlobalType,
    Kernel,
    Operation,
    Region,
    RegisterType,
    ScalarType,
    SharedType,
    Symbol,
    Value,
    ops,
)
from tilus.runtime.host_expression import evaluator, grid_of
from tilus.runtime.tuning.work import Traffic, Work

SAMPLE = 512
"""Blocks whose scalars are computed."""
# Instructions of each warp beside the work itself, as they stand in PTX that the compiler makes.
START = 150
"""At a block's start and end: parameters, block ids, addresses of the threads."""
LOOP = 8
"""In each iteration: the index, the stage, the test."""
COPY, COPY_VECTOR = 6, 6
"""For an asynchronous copy, and each vector of it: addresses and tests of bounds."""
WAIT = 5
"""For a wait on a barrier in shared memory."""
PRODUCT, PRODUCT_STEP = 10, 6
"""For an asynchronous matrix product, and each instruction of it: descriptors, fences."""
STORE_VECTOR = 5
"""For each vector that goes to or comes from global memory."""
SHORT_LOOP = 8
"""Iterations of a loop that are all looked at."""
OPERAND_REGISTERS = 32
"""Registers of a thread that hold operands at a time: of larger tiles only a part is there."""
PLACES = 1 << 21
"""More than offsets differ by within what runs together, mostly: three of them make a 64-bit number."""
WARP = 32
VECTOR = 16


_Scalar = Any
"""An integer or an array with one for each sampled block; None where it is unknown."""

_BINARY: dict[str, Callable[[Any, Any], Any]] = {
    "add": np.add, "sub": np.subtract, "mul": np.multiply, "min": np.minimum, "max": np.maximum,
    "and": np.bitwise_and, "or": np.bitwise_or, "xor": np.bitwise_xor, "shl": np.left_shift, "shr": np.right_shift,
    "eq": np.equal, "ne": np.not_equal, "lt": np.less, "le": np.less_equal, "gt": np.greater, "ge": np.greater_equal,
}  # fmt: skip

# Instructions of one result beside the one that a plain operation takes, by unit (see `LaneRates`).
_COSTLY: dict[str, tuple[tuple[str, float], ...]] = {
    "exp": (("special", 1), ("fma", 1)), "exp2": (("special", 1),), "log": (("special", 1), ("fma", 1)),
    "log2": (("special", 1),), "sin": (("special", 1), ("fma", 1)), "cos": (("special", 1), ("fma", 1)),
    "tanh": (("special", 1),), "sqrt": (("special", 1), ("fma", 2)), "rsqrt": (("special", 1),),
    "rcp": (("special", 1),), "div": (("special", 1), ("fma", 7)),
    "fast_exp": (("special", 1),), "fast_exp2": (("special", 1),), "fast_rcp": (("special", 1),),
    "erf": (("special", 1), ("fma", 18)), "pow": (("special", 2), ("fma", 12)),
    "floordiv": (("special", 1), ("alu", 18)), "mod": (("special", 1), ("alu", 20)),
    "popcount": (("special", 1),), "clz": (("special", 1),), "ctz": (("special", 1), ("alu", 1)),
    "floor": (("convert", 1),), "ceil": (("convert", 1),), "round": (("convert", 1),), "trunc": (("convert", 1),),
}  # fmt: skip


def work_of(
    kernel: Kernel, sizes: Mapping[str, int], scalars: Mapping[str, Any], target: Target, wave: int
) -> Work:
    """Count what a launch does.

    Parameters
    ----------
    kernel : Kernel
        The tile IR after all passes (`Compiled.kernel`).
    sizes : mapping
        Values of the sizes that the launch passes, by symbol.
    scalars : mapping
        Scalar parameters, by name.
    target : Target
        Whose casts are counted.
    wave : int
        Blocks that run at the same time, such as the multiprocessors of the chip.
    """
    environment = {("size", name): value for name, value in sizes.items()}
    environment |= {("scalar", name): value for name, value in scalars.items() if isinstance(value, int)}
    grid = [evaluator(extent)(environment) for extent in grid_of(kernel)]
    walker = _Walker(kernel, grid, sizes, scalars, target, wave)
    if walker.blocks:
        walker.instructions(walker.one, START, "alu", START)
        walker.region(kernel.body, walker.one)
    return walker.result()


class _Walker:
    """Adds up what the operations of a kernel do, with the scalars of many blocks at once."""

    def __init__(
        self,
        kernel: Kernel,
        grid: list[int],
        sizes: Mapping[str, int],
        scalars: Mapping[str, Any],
        target: Target,
        wave: int,
    ) -> None:
        self.kernel, self.grid, self.sizes, self.target = kernel, grid, sizes, target
        self.blocks = prod(grid)
        self.wave = min(wave, self.blocks)
        spread = np.linspace(0, max(self.blocks - 1, 0), min(self.blocks, SAMPLE)).astype(np.int64)
        self.ids = np.concatenate([np.arange(self.wave), spread])
        self.one = np.ones(len(self.ids))
        self.warps = kernel.warps
        self.known: dict[Value, _Scalar] = {}
        for param in kernel.params:
            if isinstance(param.type, ScalarType):
                self.known[param] = scalars.get(param.name)
        self.views: dict[Value, tuple[_Scalar, ...]] = {}
        self.roots: dict[Value, str] = {}
        self.moved: dict[str, list[float]] = {}
        self.unique: dict[str, list[float]] = {}
        self.footprints: dict[str, float] = {}
        self.tensor: dict[tuple[str, bool], float] = {}
        self.lanes: dict[str, float] = {}
        self.issue = self.shared = self.syncs = self.trips = 0.0
        self.depth = self.carried = self.largest = self.operand = self.loops = self.dot_pending = 0
        self.exact = True
        self.weighed: tuple[Any, float] = (None, 0.0)

    # Sums.

    def mean(self, weight: Any) -> float:
        """Mean over the blocks of the launch; the first ones, which run together, are sampled beside them."""
        if weight is not self.weighed[0]:
            # The operations of a region have one weight.
            rest = weight[self.wave :]
            self.weighed = (weight, float(rest.sum()) / len(rest) if len(rest) else 0.0)
        return self.weighed[1]

    def instructions(self, weight: Any, each: float, unit: str = "", lanes: float = 0.0) -> None:
        """Count so many instructions of each warp, and results of a unit by each thread."""
        amount = self.mean(weight)
        self.issue += amount * each * self.warps
        if unit:
            self.lanes[unit] = self.lanes.get(unit, 0.0) + amount * lanes * self.warps * WARP

    def shared_access(self, weight: Any, type: RegisterType, passes: int = 1) -> None:
        """Count a tile that goes between registers and shared memory."""
        size = self.per_thread(type) * type.dtype.bits / 8
        self.shared += self.mean(weight) * passes * size * self.warps * WARP
        self.instructions(weight, passes * (ceil(size / VECTOR) + 1))

    def per_thread(self, type: RegisterType) -> int:
        """Elements of a tile that one thread holds."""
        if type.layout is not None:
            return type.layout.elements
        return -(-type.size // (WARP * self.warps))

    # Global memory.

    def extents(self, tensor: Value) -> tuple[_Scalar, ...]:
        if tensor in self.views:
            return self.views[tensor]
        assert isinstance(tensor.type, GlobalType)
        return tuple(self.sizes.get(d.name) if isinstance(d, Symbol) else d for d in tensor.type.dims)

    def view(self, operation: ops.GlobalView, weight: Any) -> None:
        dims = operation.dims or (None,) * len(operation.shape)
        self.views[operation.result] = tuple(
            dim if dim is not None else self.known.get(value) for dim, value in zip(dims, operation.shape)
        )
        self.roots[operation.result] = self.name(operation.pointer)

    def name(self, tensor: Value) -> str:
        """Return the parameter through which a tensor or a pointer came."""
        return self.roots.get(tensor, tensor.name)

    def global_tile(
        self,
        weight: Any,
        tensor: Value,
        offsets: tuple[Value, ...],
        shape: tuple[int, ...],
        write: bool = False,
    ) -> None:
        """Count a tile that each block moves, and how much of it others that run at the same time do not."""
        assert isinstance(tensor.type, GlobalType)
        extents, bits = self.extents(tensor), tensor.type.dtype.bits
        # A tile of lower rank lies along the last dimensions.
        shape = (1,) * (len(extents) - len(shape)) + tuple(shape)
        places = [self.known.get(value) for value in offsets]
        inside: Any = self.one * bits / 8
        for place, extent, size in zip(places, extents, shape, strict=True):
            if place is None or extent is None:
                inside = inside * size
            else:
                inside = inside * np.clip(extent - place, 0, size)
        name = self.name(tensor)
        total = inside * weight
        read_written = self.moved.setdefault(name, [0.0, 0.0])
        read_written[write] += self.mean(total) * self.blocks
        if not write:
            self.add_distinct(name, total, places)
        known = [extent for extent in extents if extent is not None]
        whole = prod(int(np.max(e)) for e in known) * bits / 8 if len(known) == len(extents) else float("inf")
        self.footprints[name] = max(self.footprints.get(name, 0.0), whole)

    def add_distinct(self, name: str, total: Any, places: list[_Scalar]) -> None:
        first = total[: self.wave]
        sums = self.unique.setdefault(name, [0.0, 0.0])
        sums[1] += float(first.sum())
        if any(place is None for place in places):
            sums[0] += float(first.sum())
            return
        # One number for each place, so that equal places are equal numbers.
        number: Any = 0
        for place in places:
            number = number * PLACES + place
        _, at = np.unique(np.broadcast_to(number, (len(self.ids),))[: self.wave], return_index=True)
        sums[0] += float(first[at].sum())

    # Control flow.

    def region(self, region: Region, weight: Any) -> tuple[Value, ...]:
        """Count a region that runs `weight` times, and return what it yields."""
        for operation in region.ops:
            if isinstance(operation, ops.Yield):
                return operation.values
            self.operation(operation, weight)
        return ()

    def operation(self, operation: Operation, weight: Any) -> None:
        handler = _HANDLERS.get(type(operation))
        if (
            len(operation.results) == 1
            and isinstance(operation.results[0].type, ScalarType)
            and handler not in _CONTROL
        ):
            self.known[operation.results[0]] = self.scalar(operation)
            if not isinstance(operation, _FREE):
                self.instructions(weight, 1, "alu", 1)
            return
        for result in operation.results:
            if isinstance(result.type, RegisterType):
                registers = self.registers_of(result.type)
                self.largest = max(self.largest, registers)
                if self.loops and not isinstance(operation, (ops.Dot, ops.DotAsync, ops.DotWait, ops.For)):
                    self.operand = max(self.operand, registers)
        if handler is not None:
            handler(self, operation, weight)

    def unknown_loop(self, loop: ops.Loop, weight: Any) -> None:
        # Nobody knows here how often; once is the least.
        self.exact = False
        for argument, value in zip(loop.body.args, loop.inits):
            self.known[argument] = self.known.get(value)
        self.region(loop.body, weight)

    def group(self, group: ops.WarpGroup, weight: Any) -> None:
        before, self.warps = self.warps, group.count
        self.region(group.body, weight)
        self.warps = before

    def pointer(self, operation: Any, weight: Any) -> None:
        self.roots[operation.result] = self.name(operation.pointer)

    def loop(self, loop: ops.For, weight: Any) -> None:
        start, stop, step = (self.known.get(v) for v in (loop.start, loop.stop, loop.step))
        if start is None or stop is None or step is None:
            self.exact = False
            rounds = [(start, self.one)]
        else:
            step = np.where(np.asarray(step) == 0, 1, step)
            trips = np.maximum(0, -((np.asarray(start) - stop) // step)) * self.one.astype(np.int64)
            rounds = [(start + at * step, times) for at, times in sampled_iterations(trips, self.loops > 0)]
        registers = 0
        carried = loop.body.args[1:]
        for argument, value in zip(carried, loop.inits):
            self.known[argument] = self.known.get(value)
            if isinstance(argument.type, RegisterType):
                registers += self.registers_of(argument.type)
        self.carried = max(self.carried, registers)
        if any(_is_step(operation) for operation in loop.body.ops):
            self.trips = max(self.trips, sum(self.mean(weight * times) for _, times in rounds))
        yielded: tuple[Value, ...] = loop.inits
        self.loops += 1
        for index, times in rounds:
            self.known[loop.body.args[0]] = index
            yielded = self.region(loop.body, weight * times)
            self.instructions(weight * times, LOOP, "alu", LOOP)
            for argument, next_value in zip(carried, [self.known.get(value) for value in yielded]):
                self.known[argument] = next_value
        self.loops -= 1
        for result, value in zip(loop.results, yielded):
            self.known[result] = self.known.get(value)

    def branch(self, branch: ops.If, weight: Any) -> None:
        condition = self.known.get(branch.cond)
        share = self.one * (0.5 if condition is None else np.asarray(condition, dtype=float))
        yielded = []
        for region, part in ((branch.then, share), (branch.orelse, 1.0 - share)):
            yielded.append(self.region(region, weight * part))
        for result, first, second in zip(branch.results, *yielded):
            a, b = self.known.get(first), self.known.get(second)
            self.known[result] = (
                None if condition is None or a is None or b is None else np.where(condition, a, b)
            )

    # Scalars.

    def scalar(self, operation: Operation) -> _Scalar:
        if isinstance(operation, ops.Constant):
            return operation.value if isinstance(operation.value, int) else None
        if isinstance(operation, ops.BlockId):
            x, y = max(self.grid[0], 1), max(self.grid[1], 1)
            return (self.ids % x, self.ids // x % y, self.ids // (x * y))[operation.axis]
        if isinstance(operation, ops.GridDim):
            return self.grid[operation.axis]
        if isinstance(operation, ops.Dim):
            return self.extents(operation.tensor)[operation.axis]
        if isinstance(operation, ops.ClusterRank):
            return self.ids % prod(self.kernel.cluster)
        inputs: list[Any] = [self.known.get(value) for value in operation.inputs()]
        if any(value is None for value in inputs):
            return None
        if isinstance(operation, ops.Assume):
            return inputs[0]
        if isinstance(operation, ops.Cast):
            return inputs[0] if operation.dtype.is_integer else None
        if isinstance(operation, ops.Select):
            return np.where(*inputs)
        if isinstance(operation, ops.Unary):
            return {"neg": np.negative, "abs": np.abs, "not": np.logical_not}.get(operation.kind, _nothing)(
                inputs[0]
            )
        if isinstance(operation, (ops.Binary, ops.Compare)):
            if operation.kind in ("floordiv", "mod"):
                divisor = np.where(np.asarray(inputs[1]) == 0, 1, inputs[1])
                return (np.floor_divide if operation.kind == "floordiv" else np.mod)(inputs[0], divisor)
            function = _BINARY.get(operation.kind)
            return function(*inputs) if function is not None else None
        return None

    # Tiles.

    def registers_of(self, type: RegisterType) -> int:
        return -(-self.per_thread(type) * type.dtype.bits // 32)

    def elementwise(self, operation: Any, weight: Any) -> None:
        result = operation.result.type
        operand = next(operation.inputs()).type
        count: float = self.per_thread(result)
        dtype = operand.dtype if isinstance(operand, RegisterType) else result.dtype
        unit = "fma" if dtype.is_float else "alu"
        if dtype.is_float and dtype.bits == 16:
            count, unit = count / 2, "half2"
        elif dtype.bits == 64:
            count *= 2
        costly = _COSTLY.get(getattr(operation, "kind", "")) or ((unit, 1.0),)
        for which, amount in costly:
            self.instructions(weight, count * amount, which, count * amount)

    def inline_ptx(self, operation: ops.InlinePtx, weight: Any) -> None:
        types = [value.type for value in (*operation.results, *operation.args)]
        elements = max((self.per_thread(type) for type in types if isinstance(type, RegisterType)), default=1)
        count = elements * max(1, operation.template.count(";"))
        self.instructions(weight, count, "alu", count)

    def cast(self, operation: ops.Cast, weight: Any) -> None:
        result, source = operation.result.type, operation.x.type
        if not isinstance(result, RegisterType) or not isinstance(source, RegisterType):
            return
        order = stored_arrangement(source.dtype, result.dtype) if operation.arranged else None
        biased = biased_cast(source.dtype, result.dtype) if operation.biased else None
        each = cast_cost(self.target, source.dtype, result.dtype, order, scaled=operation.exponent != 0)
        each = each if biased is None else biased.cost
        if each is None:
            each = 0.5 if source.dtype.bits == 32 and result.dtype.bits == 16 else 2.0
        count = self.per_thread(result) * each
        self.instructions(weight, count)
        # Codes are spread by logic, and about as many instructions finish them as halves.
        units = ("alu", "half2") if source.dtype.bits <= 8 and result.dtype.bits == 16 else ("convert",)
        for unit in units:
            self.instructions(weight, 0, unit, count / len(units))

    def dot(self, operation: ops.Dot, weight: Any) -> None:
        a, b, c = (value.type for value in (operation.a, operation.b, operation.c))
        assert isinstance(a, RegisterType) and isinstance(b, RegisterType) and isinstance(c, RegisterType)
        products = prod(a.shape) * b.shape[-1] * (c.layout.replication if c.layout is not None else 1)
        found = re.search(r"m(\d+)n(\d+)k(\d+)", operation.atom or "")
        if found is None:
            self.instructions(weight, products / WARP / self.warps, "fma", products / WARP / self.warps)
            return
        key = (a.dtype.name, False)
        self.tensor[key] = self.tensor.get(key, 0.0) + self.mean(weight) * 2 * products
        self.instructions(weight, products / prod(map(int, found.groups())) / self.warps)

    def dot_async(self, operation: ops.DotAsync, weight: Any) -> None:
        a, b = operation.a.type, operation.b.type
        assert isinstance(a, (RegisterType, SharedType)) and isinstance(b, SharedType)
        found = re.search(r"m(\d+)n(\d+)k(\d+)", operation.atom or "")
        m, n, k = map(int, found.groups()) if found is not None else (64, b.shape[1], 16)
        products = prod(a.shape) * b.shape[1]
        key = (a.dtype.name, True)
        self.tensor[key] = self.tensor.get(key, 0.0) + self.mean(weight) * 2 * products
        count = products / (m * n * k)
        tiles = n * k * b.dtype.bits / 8 + (m * k * a.dtype.bits / 8 if isinstance(a, SharedType) else 0)
        self.shared += self.mean(weight) * count * tiles
        self.instructions(weight, PRODUCT + 4 * count / self.warps * PRODUCT_STEP)

    def load_global(self, operation: ops.LoadGlobal, weight: Any) -> None:
        self.global_tile(weight, operation.tensor, operation.offsets, operation.shape)
        self.global_vectors(operation.result.type, weight)

    def store_global(self, operation: ops.StoreGlobal, weight: Any) -> None:
        value = operation.value.type
        assert isinstance(value, RegisterType)
        self.global_tile(weight, operation.tensor, operation.offsets, value.shape, write=True)
        self.global_vectors(value, weight)

    def global_vectors(self, type: Any, weight: Any) -> None:
        size = self.per_thread(type) * type.dtype.bits / 8
        vectors = ceil(size / VECTOR)
        self.instructions(weight, STORE_VECTOR * vectors, "alu", (STORE_VECTOR - 1) * vectors)

    def elements(self, operation: Any, weight: Any) -> None:
        """Gather, scatter and atomics: an access for each element."""
        value = operation.value.type if hasattr(operation, "value") else operation.result.type
        assert isinstance(value, RegisterType)
        count = self.per_thread(value)
        self.instructions(weight, 4 * count, "alu", 3 * count)
        tensor = operation.tensor.type
        amount = self.mean(weight) * value.size * value.dtype.bits / 8
        if isinstance(tensor, SharedType):
            self.shared += amount
            return
        name = self.name(operation.tensor)
        read_written = self.moved.setdefault(name, [0.0, 0.0])
        if not isinstance(operation, ops.Scatter):
            read_written[0] += amount * self.blocks
        if not isinstance(operation, ops.Gather):
            read_written[1] += amount * self.blocks

    def copy_async(self, operation: ops.CopyAsync, weight: Any) -> None:
        shared = operation.shared.type
        assert isinstance(shared, SharedType)
        self.global_tile(weight, operation.tensor, operation.offsets, shared.shape)
        size = shared.size * shared.dtype.bits / 8
        self.shared += self.mean(weight) * size
        vectors = ceil(size / VECTOR / (WARP * self.warps))
        each = COPY + COPY_VECTOR * vectors
        self.instructions(weight, each, "alu", each - vectors)
        self.depth = max(self.depth, 1)

    def copy_bulk(self, operation: ops.CopyBulk, weight: Any) -> None:
        shared = operation.shared.type
        assert isinstance(shared, SharedType)
        self.global_tile(weight, operation.tensor, operation.offsets, shared.shape)
        mask = self.known.get(operation.multicast) if operation.multicast is not None else 1
        receivers = 1 if mask is None else bin(int(np.ravel(mask)[0])).count("1")
        self.shared += self.mean(weight) * receivers * shared.size * shared.dtype.bits / 8
        self.instructions(weight, 2)
        self.depth = max(self.depth, 1)

    def store_bulk(self, operation: ops.StoreBulk, weight: Any) -> None:
        shared = operation.shared.type
        assert isinstance(shared, SharedType)
        self.global_tile(weight, operation.tensor, operation.offsets, shared.shape, write=True)
        self.shared += self.mean(weight) * shared.size * shared.dtype.bits / 8
        self.instructions(weight, 2)

    def wait(self, operation: ops.CopyAsyncWait, weight: Any) -> None:
        self.depth = max(self.depth, operation.pending + 1)
        self.instructions(weight, 1)

    def barriers(self, operation: ops.BarrierAlloc, weight: Any) -> None:
        self.depth = max(self.depth, operation.count)

    def dot_wait(self, operation: ops.DotWait, weight: Any) -> None:
        self.dot_pending = max(self.dot_pending, operation.pending)
        self.instructions(weight, 1)

    def sync(self, operation: Operation, weight: Any) -> None:
        if not isinstance(operation, ops.BarrierArrive):
            self.syncs += self.mean(weight)
        self.instructions(weight, WAIT if isinstance(operation, ops.BarrierWait) else 1)

    def shared_load(self, operation: Any, weight: Any) -> None:
        value: Any = operation.result.type if isinstance(operation, ops.LoadShared) else operation.value.type
        self.shared_access(weight, value)

    def convert_layout(self, operation: ops.ConvertLayout, weight: Any) -> None:
        result = operation.result.type
        assert isinstance(result, RegisterType)
        if operation.scratch is not None:
            self.shared_access(weight, result, passes=2)
            self.syncs += self.mean(weight)
        else:
            self.instructions(weight, self.registers_of(result), "alu", self.registers_of(result))

    def reduce(self, operation: Any, weight: Any) -> None:
        source, result = operation.x.type, operation.result.type
        assert isinstance(source, RegisterType)
        count = self.per_thread(source)
        unit = "fma" if source.dtype.is_float else "alu"
        self.instructions(weight, count, unit, count)
        if isinstance(result, RegisterType):
            steps = self.per_thread(result) * log2(WARP)
            self.instructions(weight, 2 * steps, "shuffle", steps)
        if getattr(operation, "scratch", None) is not None:
            self.syncs += 2 * self.mean(weight)

    def exchange(self, operation: ops.Exchange, weight: Any) -> None:
        result = operation.result.type
        assert isinstance(result, RegisterType)
        if operation.scratch is not None:
            self.shared_access(weight, result, passes=2)
            self.syncs += 2 * self.mean(weight)
        else:
            count = self.per_thread(result)
            self.instructions(weight, count, "shuffle", count)

    def random(self, operation: ops.Random, weight: Any) -> None:
        result = operation.results[0].type
        assert isinstance(result, RegisterType)
        # Philox: ten rounds of two wide products and a few other instructions, for four numbers.
        self.instructions(weight, 25 * self.per_thread(result), "alu", 25 * self.per_thread(result))

    # The result.

    def result(self) -> Work:
        traffic = []
        for name, (read, written) in self.moved.items():
            distinct, total = self.unique.get(name, (0.0, 0.0))
            traffic.append(
                Traffic(
                    name,
                    read,
                    written,
                    self.footprints.get(name, float("inf")),
                    distinct / total if total else 1.0,
                )
            )
        depth = self.depth
        if self.kernel_has_bulk_barriers():
            # One stage is being read, and those of matrix products that are not waited for yet.
            depth = max(1, depth - 1 - self.dot_pending)
        return Work(
            blocks=self.blocks,
            threads=self.kernel.threads,
            traffic=tuple(traffic),
            tensor_ops=tuple((dtype, bulk, amount) for (dtype, bulk), amount in self.tensor.items()),
            issue=self.issue,
            lanes=tuple(sorted(self.lanes.items())),
            shared_bytes_moved=self.shared,
            trips=max(self.trips, 1.0),
            depth=depth,
            syncs=self.syncs,
            shared_bytes=self.kernel.shared_bytes,
            tile_registers=max(self.carried + min(self.operand, OPERAND_REGISTERS), self.largest),
            exact=self.exact,
        )

    def kernel_has_bulk_barriers(self) -> bool:
        from tilus.ir.core import walk

        return any(isinstance(operation, ops.BarrierAlloc) for operation in walk(self.kernel.body))


def sampled_iterations(trips: Any, nested: bool = False) -> list[tuple[Any, Any]]:
    """Return iterations that stand for a loop: which (for each block), and how many each stands for.

    All of a short loop; of a long one the first two, the last two, and the middle one for all others, so that what
    the first and the last iterations leave out is left out here too. Of a loop in another only one first and last.
    """
    most = int(trips.max()) if trips.size else 0
    if most <= SHORT_LOOP:
        return [(i, (trips > i).astype(float)) for i in range(most)]
    first = [(0, (trips > 0).astype(float))]
    last = [(trips - 1, (trips > 1).astype(float))]
    if not nested:
        first.append((1, (trips > 1).astype(float)))
        last = [(trips - 2, (trips > 3).astype(float)), (trips - 1, (trips > 2).astype(float))]
    return [*first, (trips // 2, np.maximum(trips - float(len(first) + len(last)), 0.0)), *last]


def _nothing(value: Any) -> None:
    return None


def _is_step(operation: Operation) -> bool:
    """Tell whether an operation makes its loop one that moves or multiplies tiles."""
    steps = (
        ops.LoadGlobal, ops.CopyAsyncWait, ops.CopyBulk, ops.BarrierWait, ops.Dot, ops.DotAsync, ops.LoadShared,
        ops.Gather,
    )  # fmt: skip
    return isinstance(operation, steps)


_HANDLERS: dict[type[Operation], Callable[[_Walker, Any, Any], None]] = {
    ops.For: _Walker.loop,
    ops.Loop: _Walker.unknown_loop,
    ops.If: _Walker.branch,
    ops.WarpGroup: _Walker.group,
    ops.GlobalView: _Walker.view,
    ops.PointerAdd: _Walker.pointer,
    ops.PointerCast: _Walker.pointer,
    ops.Binary: _Walker.elementwise,
    ops.Unary: _Walker.elementwise,
    ops.Compare: _Walker.elementwise,
    ops.Select: _Walker.elementwise,
    ops.InlinePtx: _Walker.inline_ptx,
    ops.Table: _Walker.elementwise,
    ops.Cast: _Walker.cast,
    ops.Dot: _Walker.dot,
    ops.DotAsync: _Walker.dot_async,
    ops.DotWait: _Walker.dot_wait,
    ops.LoadGlobal: _Walker.load_global,
    ops.StoreGlobal: _Walker.store_global,
    ops.Gather: _Walker.elements,
    ops.Scatter: _Walker.elements,
    ops.Atomic: _Walker.elements,
    ops.CopyAsync: _Walker.copy_async,
    ops.CopyAsyncWait: _Walker.wait,
    ops.CopyBulk: _Walker.copy_bulk,
    ops.StoreBulk: _Walker.store_bulk,
    ops.BarrierAlloc: _Walker.barriers,
    ops.BarrierWait: _Walker.sync,
    ops.BarrierArrive: _Walker.sync,
    ops.Sync: _Walker.sync,
    ops.LoadShared: _Walker.shared_load,
    ops.StoreShared: _Walker.shared_load,
    ops.ConvertLayout: _Walker.convert_layout,
    ops.Reduce: _Walker.reduce,
    ops.Scan: _Walker.reduce,
    ops.Exchange: _Walker.exchange,
    ops.Random: _Walker.random,
}
_CONTROL = (_Walker.loop, _Walker.unknown_loop, _Walker.branch)
_FREE = (ops.Constant, ops.Dim, ops.Stride, ops.BlockId, ops.Assume)
