"""``atom`` and ``red``: every operation and type, in global and shared memory, scalar, packed and vector."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import numpy as np

from . import rounding
from .decoder import AddressSource, Decoder
from .floating import canonical, join_pair, split_pair
from .memory import Access, take_hints, take_space
from .operations import Operation
from .selection import Selection
from .syntax import Vector
from .types import ScalarType

_OPERATIONS = ("and", "or", "xor", "cas", "exch", "add", "inc", "dec", "min", "max")


def _bfloat_add(a: Any, b: Any) -> Any:
    return rounding.single_to_bfloat(rounding.bfloat_to_single(a) + rounding.bfloat_to_single(b))


def _bfloat_extreme(smaller: bool) -> Callable[[Any, Any], Any]:
    pick = np.fmin if smaller else np.fmax
    return lambda a, b: rounding.single_to_bfloat(
        pick(rounding.bfloat_to_single(a), rounding.bfloat_to_single(b))
    )


def _in_pairs(function: Callable[[Any, Any], Any], dtype: Any) -> Callable[[Any, Any], Any]:
    return lambda a, b: join_pair(function(split_pair(a, dtype), split_pair(b, dtype)))


def _increment(old: Any, limit: Any) -> Any:
    return np.where(old >= limit, np.uint32(0), old + np.uint32(1))


def _decrement(old: Any, limit: Any) -> Any:
    return np.where((old == 0) | (old > limit), limit, old - np.uint32(1))


def _float_add(flush: bool) -> Callable[[Any, Any], Any]:
    if not flush:
        return lambda a, b: canonical(a + b)
    return lambda a, b: canonical(rounding.flush(rounding.flush(a) + rounding.flush(b)))


def combine(operation: str, type: ScalarType, space: str | None) -> Callable[..., Any]:
    """The function from the old value and the operand to the new value."""
    if operation == "exch":
        return lambda old, b: b
    if operation in ("and", "or", "xor"):
        return {"and": np.bitwise_and, "or": np.bitwise_or, "xor": np.bitwise_xor}[operation]
    if operation == "inc":
        return _increment
    if operation == "dec":
        return _decrement
    name = type.name
    if operation == "add":
        if name == "f32":
            # On global memory atom.add.f32 flushes subnormal numbers.
            return _float_add(space != "shared")
        if name in ("f16", "f64"):
            return _float_add(False)
        if name == "bf16":
            return _bfloat_add
        if name == "f16x2":
            return _in_pairs(_float_add(False), np.float16)
        if name == "bf16x2":
            return _in_pairs(_bfloat_add, np.uint16)
        return np.add
    smaller = operation == "min"
    if name == "f16":
        return np.fmin if smaller else np.fmax
    if name == "f16x2":
        return _in_pairs(np.fmin if smaller else np.fmax, np.float16)
    if name == "bf16":
        return _bfloat_extreme(smaller)
    if name == "bf16x2":
        return _in_pairs(_bfloat_extreme(smaller), np.uint16)
    return np.minimum if smaller else np.maximum


class Atomic(Access):
    """One ``atom`` (or ``red``, which has no result)."""

    def __init__(
        self,
        space: str | None,
        type: ScalarType,
        count: int,
        address: AddressSource,
        operation: str,
        targets: list[Any],
        sources: list[Any],
        compare: Any,
    ) -> None:
        super().__init__(space, type, count, address)
        self.operation = operation
        self.writes = tuple(targets)
        self.sources = sources
        self.compare = compare
        self.reads = (address, *sources, *([compare] if compare is not None else []))
        self.strong = True
        self.order = "relaxed"

    def execute(self, state: Any, sel: Selection) -> None:
        engine = state.engine
        state.poll(sel)
        address = self.address.get(state, sel)
        shape = (sel.n, 2) if self.type.bits == 128 else (sel.n,)
        values = np.stack([np.broadcast_to(s.get(state, sel), shape) for s in self.sources], axis=1)
        compare = None
        if self.compare is not None:
            compare = np.broadcast_to(self.compare.get(state, sel), shape)
        old = np.empty_like(values)
        parts = [(self.space, None, address)] if self.space else state.memory.split_generic(address)
        for space, mask, local in parts:
            some = sel if mask is None else sel.subset(mask)
            keep = slice(None) if mask is None else mask
            for view, index, inner, allocation in self._places(state, some, local, space):
                chosen = np.arange(sel.n)[keep]
                if inner is not None:
                    chosen = chosen[inner]
                self._count(engine, some if inner is None else some.subset(inner), index)
                function = combine(self.operation, self.type, space)
                for j in range(self.count):
                    place = index * self.count + j if self.count > 1 else index
                    picked = None if compare is None else compare[chosen]
                    old[chosen, j] = apply_atomically(
                        view, place, values[chosen, j], picked, function, engine
                    )
                if allocation is not None and allocation.tail:
                    self._leave_tail(state, sel, address, allocation)
        for j, target in enumerate(self.writes):
            target.put(state, sel, old[:, j])

    def _places(
        self, state: Any, sel: Selection, address: Any, space: str | None
    ) -> list[tuple[Any, Any, Any, Any]]:
        memory = state.memory
        dtype = np.dtype(np.uint64) if self.type.bits == 128 else self.type.dtype
        rows = 2 if self.type.bits == 128 else 1
        if space == "shared":
            index = memory.shared_index(self, sel, address, self.width)
            state.engine.counters.shared_access(self, sel, address, self.width)
            if state.races is not None:
                state.races.atomic(self, sel, index, self.width)
            return [(memory.shared_view(dtype, rows), index // self.width, None, None)]
        if space != "global":
            memory._fail(
                self,
                sel,
                address,
                np.ones(sel.n, bool),
                "out-of-bounds",
                f"atomic operation on {space} memory",
            )
        result = []
        parts = memory.locate(self, sel, address, self.width, True)
        state.engine.counters.global_access(self, sel, address, self.width, True)
        for allocation, mask, offset in parts:
            if allocation.readonly:
                memory._fail(
                    self,
                    sel,
                    address,
                    np.ones(sel.n, bool),
                    "out-of-bounds",
                    f"atomic operation on {allocation.name}, which is constant",
                )
            if state.engine.races is not None:
                state.engine.races.atomic(
                    state, self, sel if mask is None else sel.subset(mask), allocation, offset
                )
            result.append((allocation.view(dtype, rows), offset // self.width, mask, allocation))
        return result

    def _leave_tail(self, state: Any, sel: Selection, address: Any, allocation: Any) -> None:
        """A swap of a word must leave the bytes behind an allocation as they are."""
        tail = allocation.data[allocation.size :]
        if tail.any():
            tail[:] = 0
            bad = address + self.width > allocation.end
            where = f"past the end of {allocation.name} ({allocation.size} bytes)"
            text = f"{self.width}-byte write of global memory, {where}"
            state.memory._fail(self, sel, address, bad, "out-of-bounds", text)

    def _count(self, engine: Any, sel: Selection, index: Any) -> None:
        entry = engine.counters.atomics[self.instruction.index]
        entry[0] += len(sel.warps)
        entry[1] += sel.n
        # Lanes of a warp that hit the same place serialise.
        pairs = sel.row.astype(np.int64) * (1 << 44) + index
        entry[2] += sel.n - len(np.unique(pairs))


def apply_atomically(view: Any, index: Any, values: Any, compare: Any, function: Any, engine: Any) -> Any:
    """Read-modify-write one lane after the other; returns the old values."""
    if len(index) == 0:
        return values
    order = np.argsort(index, kind="stable")
    places = index[order]
    first = np.ones(len(places), bool)
    first[1:] = places[1:] != places[:-1]
    old = np.empty_like(values)
    if first.all():
        before = view[index].copy()
        after = _new_value(before, values, compare, function)
        view[index] = after
        if not np.array_equal(_raw(before), _raw(np.asarray(after, before.dtype))):
            engine.progress += 1
        return before
    starts = np.flatnonzero(first)
    if (
        compare is None
        and function in (np.add, np.minimum, np.maximum, np.bitwise_and, np.bitwise_or, np.bitwise_xor)
        and len(starts) < 64
    ):
        # Few places, many lanes: a running reduction per place.
        for start, end in zip(starts, np.append(starts[1:], len(places))):
            lanes = order[start:end]
            # Sums of integers wrap at their own width.
            chain = function.accumulate(
                np.concatenate([view[places[start] : places[start] + 1], values[lanes]]), dtype=view.dtype
            )
            old[lanes] = chain[:-1]
            if chain[-1] != chain[0]:
                engine.progress += 1
            view[places[start]] = chain[-1]
        return old
    rank = np.arange(len(places)) - np.repeat(starts, np.diff(np.append(starts, len(places))))
    by_rank = np.argsort(rank, kind="stable")
    bounds = np.append(np.flatnonzero(np.diff(rank[by_rank], prepend=-1)), len(places))
    for low, high in itertools.pairwise(bounds):
        lanes = order[by_rank[low:high]]
        before = view[index[lanes]].copy()
        after = _new_value(before, values[lanes], None if compare is None else compare[lanes], function)
        old[lanes] = before
        if not np.array_equal(_raw(before), _raw(np.asarray(after, before.dtype))):
            engine.progress += 1
        view[index[lanes]] = after
    return old


def _raw(values: Any) -> Any:
    return np.ascontiguousarray(values).view(np.uint8)


def _new_value(old: Any, values: Any, compare: Any, function: Any) -> Any:
    if compare is None:
        return function(old, values)
    equal = old == compare
    if old.ndim > 1:
        equal = equal.all(axis=1)[:, None]
    return np.where(equal, values, old)


def _decode_atomic(d: Decoder) -> Operation:
    reduction = d.name == "red"
    count = int((d.take("v2", "v4", "v8") or "v1")[1:])
    if d.flag("async"):
        from .cluster import decode_red_async

        return decode_red_async(d)
    type = d.type(
        "b16",
        "b32",
        "b64",
        "b128",
        "u32",
        "u64",
        "s32",
        "s64",
        "f16",
        "f32",
        "f64",
        "bf16",
        "f16x2",
        "bf16x2",
    )
    d.flag("noftz")
    operation = d.take(*_OPERATIONS)
    order = d.take("relaxed", "acquire", "release", "acq_rel")
    scope = d.take("cta", "cluster", "gpu", "sys")
    space = take_space(d)
    take_hints(d)
    if operation is None:
        raise d.fail("no atomic operation")
    if space not in (None, "global", "shared"):
        raise d.fail(f"atomic operations on .{space} are not in the ISA")
    operands = list(d.operands)
    targets = [] if reduction else d.targets(operands.pop(0), type)
    address = d.address(operands[0])
    sources = d.sources(operands[1], type)
    compare = None
    if operation == "cas":
        compare, sources = sources[0], [d.source(operands[2], type)]
    if isinstance(operands[1], Vector) and len(sources) != count:
        raise d.fail(f"{len(sources)} values for .v{count}")
    atomic = Atomic(space, type, count, address, operation, targets, sources, compare)
    atomic.order = order or "relaxed"
    atomic.scope = scope or "gpu"
    return atomic


INSTRUCTIONS: dict[str, Callable[[Decoder], Operation]] = {"atom": _decode_atomic, "red": _decode_atomic}
