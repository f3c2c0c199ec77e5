"""Clusters: ``mapa``, ``getctarank``, ``st.async``, ``red.async``; also ``st.bulk`` and ``tensormap``."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from . import tma
from .atomics import apply_atomically, combine
from .bulk_copy import PendingLoad, _Bulk
from .decoder import AddressSource, Decoder
from .mbarrier import shared_operand
from .memory import Store, memory_order, take_hints, take_space
from .operands import Special
from .operations import Lane, Map, Operation
from .selection import Selection
from .spaces import CLUSTER_SHIFT, NAMED, SHARED_WINDOW, rank_named
from .types import TYPES, ScalarType

_OFFSET = (1 << CLUSTER_SHIFT) - 1
_MAP_FIELDS = (
    "global_address",
    "rank",
    "box_dim",
    "global_dim",
    "global_stride",
    "element_stride",
    "elemtype",
    "interleave_layout",
    "swizzle_mode",
    "swizzle_atomicity",
    "fill_mode",
)


def _decode_mapa(d: Decoder) -> Operation:
    type = d.type("u32", "u64")
    space = d.take("shared::cluster")
    d.count(3)
    word = type.dtype.type
    window = 0 if space else SHARED_WINDOW

    def apply(address: Any, rank: Any) -> Any:
        offset = (np.asarray(address) - word(window)) & word(_OFFSET)
        block = np.minimum(rank, NAMED - 1).astype(type.dtype) + word(NAMED)
        return (block << word(CLUSTER_SHIFT)) + offset + word(window)

    sources = [d.source(d.operands[1], type), d.source(d.operands[2], TYPES["u32"])]
    return Map(apply, [d.target(d.operands[0], type)], sources)


def _decode_rank(d: Decoder) -> Operation:
    type = d.type("u32", "u64")
    space = d.take("shared::cluster")
    d.count(2)
    window = 0 if space else SHARED_WINDOW
    own = Special("%cluster_ctarank", np.dtype(np.uint32), False)

    def apply(address: Any, mine: Any) -> Any:
        rank = rank_named(np.asarray(address).astype(np.int64) - window, mine)
        return np.where(rank < 0, mine, rank).astype(np.uint32)

    return Map(apply, [d.target(d.operands[0], TYPES["u32"])], [d.source(d.operands[1], type), own])


class AsyncStore(_Bulk):
    """``st.async`` and ``red.async``: data and completion go to another block's shared memory and mbarrier."""

    def __init__(
        self,
        type: ScalarType,
        address: AddressSource,
        sources: list[Any],
        barrier: AddressSource,
        generic: bool,
        reduction: Any,
    ) -> None:
        super().__init__()
        self.element, self.address, self.sources, self.barrier, self.generic = (
            type,
            address,
            sources,
            barrier,
            generic,
        )
        self.reduction = reduction
        self.width = type.bytes * len(sources)
        self.reads = (address, barrier, *sources)
        self.type = type
        self.count = len(sources)

    @property
    def touches(self) -> tuple[str, ...]:  # type: ignore[override]
        """Shared memory."""
        return ("shared",)

    def execute(self, state: Any, sel: Selection) -> None:
        index = shared_operand(self, state, sel, self.address.get(state, sel), self.generic, self.width)
        barrier = shared_operand(self, state, sel, self.barrier.get(state, sel), self.generic, 8)
        slots = state.mbarriers.find(self, sel.index, barrier)
        values = np.empty((sel.n, self.count), self.element.dtype)
        for position, source in enumerate(self.sources):
            values[:, position] = source.get(state, sel)
        entry = PendingLoad(self, state, sel.index, index, values, slots, np.full(sel.n, self.width))
        if state.races is not None:
            state.races.async_words(self, sel.index, index, slots, self.width)
        state.mbarriers.copies.append(entry)

    def arrive(self, state: Any, index: Any, values: Any) -> None:
        """Write what arrived."""
        view = state.memory.shared_view(np.dtype(self.element.dtype), 1)
        places = (index // self.element.bytes)[:, None] + np.arange(self.count)
        if self.reduction is None:
            view[places] = values
        else:
            apply_atomically(view, places.reshape(-1), values.reshape(-1), None, self.reduction, state.engine)


def decode_store_async(d: Decoder) -> Operation:
    """``st.async`` (to an mbarrier's block, or released to global memory) and ``st.bulk``."""
    if d.flag("bulk"):
        return _decode_bulk_store(d)
    d.flag("async")
    count = int((d.take("v2", "v4") or "v1")[1:])
    completion = d.flag("mbarrier::complete_tx::bytes")
    type = TYPES[f"b{d.type().bits}"]
    if not completion:
        space = take_space(d)
        store = Store(
            space, type, count, d.address(d.operands[0]), d.sources(d.operands[1], type, relaxed=True)
        )
        memory_order(d, store)
        take_hints(d)
        return store
    d.take("weak")
    d.take("cluster")
    generic = d.take("shared::cluster") is None
    d.count(3)
    sources = d.sources(d.operands[1], type)
    if len(sources) != count:
        raise d.fail(f"{len(sources)} registers for .v{count}")
    return AsyncStore(type, d.address(d.operands[0]), sources, d.address(d.operands[2]), generic, None)


def decode_red_async(d: Decoder) -> Operation:
    """``red.async`` with completion at an mbarrier, or released to global memory."""
    from .atomics import Atomic

    type = d.type("u32", "s32", "u64", "s64", "b32")
    operation = d.take("inc", "dec", "min", "max", "and", "or", "xor", "add")
    order = d.take("relaxed", "release")
    scope = d.take("cluster", "gpu", "sys")
    completion = d.flag("mbarrier::complete_tx::bytes")
    if operation is None:
        raise d.fail("no reduction operation")
    if not completion:
        atomic = Atomic(
            take_space(d),
            type,
            1,
            d.address(d.operands[0]),
            operation,
            [],
            [d.source(d.operands[1], type)],
            None,
        )
        atomic.order, atomic.scope = order or "relaxed", scope or "gpu"
        take_hints(d)
        return atomic
    generic = d.take("shared::cluster") is None
    d.count(3)
    source = d.source(d.operands[1], type)
    return AsyncStore(
        type,
        d.address(d.operands[0]),
        [source],
        d.address(d.operands[2]),
        generic,
        combine(operation, type, "shared"),
    )


class _BulkZero(_Bulk):
    """``st.bulk``: zeroes a range of shared memory."""

    def __init__(self, address: AddressSource, size: Any, generic: bool) -> None:
        super().__init__()
        self.address, self.size, self.generic = address, size, generic
        self.reads = (address, size)
        self.type = TYPES["b8"]
        self.count = 8
        self.width = 8

    def execute(self, state: Any, sel: Selection) -> None:
        sizes = np.broadcast_to(self.size.get(state, sel), (sel.n,)).astype(np.int64)
        address = self.address.get(state, sel)
        view = state.memory.shared_view(np.dtype(np.uint8), 8)
        for position in range(sel.n):
            one = sel.subset(np.arange(sel.n) == position)
            start = address[position : position + 1]
            if sizes[position] % 8:
                self.fail(
                    state,
                    int(sel.index[position]),
                    "misaligned",
                    f"size {int(sizes[position])} is no multiple of 8",
                )
            if sizes[position] == 0:
                continue
            ends = np.concatenate([start, start + sizes[position] - 8])
            both: Any = _Twice(one)
            first = int(shared_operand(self, state, both, ends, self.generic, 8)[0])
            index = np.arange(first, first + int(sizes[position]), 8)
            if state.races is not None:
                lanes = _Repeated(int(sel.index[position]), len(index))
                state.races.write(
                    self, lanes, index, 8, view, index >> 3, np.zeros((len(index), 8), np.uint8)
                )
            view[index >> 3] = 0
        state.engine.progress += 1


class _Repeated:
    """One lane, many times: for the race checks of an instruction that touches many places."""

    whole = False

    def __init__(self, lane: int, count: int) -> None:
        self.lanes = self.index = np.full(count, lane)
        self.n = count

    @property
    def warp_slice(self) -> Any:
        """The one warp."""
        return self.index[:1] >> 5


class _Twice(_Repeated):
    def __init__(self, sel: Selection) -> None:
        super().__init__(int(sel.index[0]), 2)


def _decode_bulk_store(d: Decoder) -> Operation:
    d.take("weak")
    generic = d.take("shared::cta", "shared") is None
    d.count(3)
    if d.immediate(d.operands[2]) != 0:
        raise d.fail("st.bulk writes zero only")
    return _BulkZero(d.address(d.operands[0]), d.source(d.operands[1], TYPES["u64"]), generic)


class _ReplaceField(Lane):
    """``tensormap.replace``."""

    def __init__(
        self, field: str, address: AddressSource, ordinal: Any, value: Any, space: str | None
    ) -> None:
        super().__init__()
        self.field, self.address, self.ordinal, self.value, self.space = field, address, ordinal, value, space
        self.reads = tuple(s for s in (address, value) if s is not None)

    def execute(self, state: Any, sel: Selection) -> None:
        address = self.address.get(state, sel)
        values = np.broadcast_to(self.value.get(state, sel), (sel.n,))
        for position, lane in enumerate(sel.index):
            target = map_bytes(self, state, int(lane), int(address[position]), self.space)
            try:
                blob = tma.replace_field(target.tobytes(), self.field, int(values[position]), self.ordinal)
            except ValueError as error:
                state.hazard("illegal-descriptor", str(error), self.instruction, int(lane))
                state.stop()
            target[:] = np.frombuffer(blob, np.uint8)
        state.engine.progress += 1


def map_bytes(operation: Any, state: Any, lane: int, address: int, space: str | None) -> Any:
    """The 128 bytes of a tensor map in global or shared memory, as a view through which it is changed."""
    if space is None:
        space, _, local = state.memory.split_generic(np.array([address], np.int64))[0]
        address = int(local[0])
    if space == "shared":
        start = int(state.shared_base[lane]) + address
        return state.memory.shared[start : start + tma.TENSOR_MAP_BYTES]
    engine = state.engine
    allocation = engine.globals.find(address)
    if allocation is None or address + tma.TENSOR_MAP_BYTES > allocation.end:
        state.hazard("out-of-bounds", f"no tensor map at {address:#x}", operation.instruction, lane, address)
        state.stop()
    engine.changed_maps[address] = engine.tick(operation.instruction)
    start = address - allocation.base
    return allocation.data[start : start + tma.TENSOR_MAP_BYTES]


class _CopyMap(Lane):
    """``tensormap.cp_fenceproxy``: copies a map from shared to global memory and fences the tensor-map proxy."""

    def __init__(self, target: AddressSource, source: AddressSource) -> None:
        super().__init__()
        self.target, self.source = target, source
        self.reads = (target, source)

    def execute(self, state: Any, sel: Selection) -> None:
        target, source = self.target.get(state, sel), self.source.get(state, sel)
        for position, lane in enumerate(sel.index):
            copied = map_bytes(self, state, int(lane), int(source[position]), "shared").copy()
            map_bytes(self, state, int(lane), int(target[position]), "global")[:] = copied
        state.engine.progress += 1


def _decode_tensormap(d: Decoder) -> Operation:
    if d.flag("cp_fenceproxy"):
        d.mods.clear()
        d.count(3)
        return _CopyMap(d.address(d.operands[0]), d.address(d.operands[1]))
    if not d.flag("replace"):
        raise d.fail("unsupported tensormap operation")
    d.flag("tile")
    field = d.take(*_MAP_FIELDS)
    d.flag("b1024")
    type = d.type("b32", "b64")
    space = take_space(d)
    if field is None:
        raise d.fail("no tensor-map field")
    ordinal = 0
    operands = d.operands[1:]
    if field in ("box_dim", "global_dim", "global_stride", "element_stride"):
        ordinal = d.immediate(operands[0])
        operands = operands[1:]
    return _ReplaceField(field, d.address(d.operands[0]), ordinal, d.source(operands[0], type), space)


INSTRUCTIONS: dict[str, Callable[[Decoder], Operation]] = {
    "mapa": _decode_mapa,
    "getctarank": _decode_rank,
    "tensormap": _decode_tensormap,
}
