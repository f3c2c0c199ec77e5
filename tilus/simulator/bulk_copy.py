"""``cp.async.bulk``, its tensor, reduction, multicast and prefetch forms: copies by the asynchronous proxy.

A load arrives when somebody waits for its mbarrier; a store reaches global memory when its bulk group is waited for.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from . import tma
from .atomics import apply_atomically, combine
from .decoder import AddressSource, Decoder
from .hazards import place_of
from .mbarrier import shared_operand
from .memory import take_hints
from .memory_unit import gather, scatter
from .operations import Lane, Nothing, Operation
from .selection import Selection
from .spaces import CLUSTER_SHIFT, PARAM_WINDOW, rank_named
from .syntax import Address, Vector
from .types import BITS_OF_WIDTH, TYPES

CHUNK = 16
_OFFSET = (1 << CLUSTER_SHIFT) - 1
_REDUCTIONS = ("add", "min", "max", "inc", "dec", "and", "or", "xor")


class Chunks:
    """Global chunks of 16 bytes, ``[G, n]``, of which bytes ``first`` to ``last`` count."""

    __slots__ = ("address", "first", "last", "whole")

    def __init__(self, address: Any, first: Any, last: Any) -> None:
        self.address = address
        self.first = first
        self.last = last
        full = first is None or bool((first == 0).all() and (last == CHUNK).all())
        self.whole = full and int(np.bitwise_or.reduce(address, axis=None)) & (CHUNK - 1) == 0

    def mask(self) -> Any:
        """``[G, n, 16]``: which bytes count."""
        at = np.arange(CHUNK)
        if self.first is None:
            return np.ones((*self.address.shape, CHUNK), bool)
        return (at >= self.first[..., None]) & (at < self.last[..., None])

    def some(self, keep: Any) -> Chunks:
        """The chunks of some of the G copies."""
        if self.first is None:
            return Chunks(self.address[keep], None, None)
        return Chunks(self.address[keep], self.first[keep], self.last[keep])


class _View:
    """An access of one width, as the race checks want it."""

    order, scope, strong = "weak", "gpu", False
    asynchronous = True

    def __init__(self, instruction: Any, width: int, strong: bool = False) -> None:
        self.instruction = instruction
        self.width = width
        self.type = BITS_OF_WIDTH[8]
        self.count = width
        self.strong = strong


def touched(chunks: Chunks) -> tuple[Any, Any]:
    """Byte addresses (or chunk addresses) that count, with the copy each belongs to."""
    if chunks.whole:
        copies = np.repeat(np.arange(len(chunks.address)), chunks.address.shape[1])
        return chunks.address.reshape(-1), copies
    mask = chunks.mask()
    copies = np.nonzero(mask)[0]
    return (chunks.address[..., None] + np.arange(CHUNK))[mask], copies


def find_allocation(operation: Any, state: Any, lanes: Any, addresses: Any, copies: Any, width: int) -> Any:
    """The one allocation that holds all addresses; ends the launch where there is none."""
    if len(addresses) == 0:
        return None
    low, high = int(addresses.min()), int(addresses.max()) + width
    allocation = state.engine.globals.find(low)
    if allocation is None or high > allocation.end:
        bad = addresses == low if allocation is None else addresses + width > allocation.end
        position = int(np.flatnonzero(bad)[0])
        at = int(addresses[position])
        state.hazard(
            "out-of-bounds",
            f"bulk copy touches global memory {state.engine.globals.nearest(at)}: address {at:#x}",
            operation.instruction,
            int(lanes[copies[position]]),
            at,
        )
        state.stop()
    return allocation


def read_chunks(operation: Any, state: Any, lanes: Any, chunks: Chunks) -> Any:
    """The bytes of global chunks, uint8 ``[G, n, 16]``, zero where a byte does not count."""
    addresses, copies = touched(chunks)
    width = CHUNK if chunks.whole else 1
    out = np.zeros((*chunks.address.shape, CHUNK), np.uint8)
    allocation = find_allocation(operation, state, lanes, addresses, copies, width)
    if allocation is None:
        return out
    offset = addresses - allocation.base
    engine = state.engine
    if engine.races is not None:
        engine.races.read(
            state, _View(operation.instruction, width), _Lanes(lanes[copies]), allocation, offset
        )
    if chunks.whole:
        out[:] = gather(allocation.view(np.dtype(np.uint8), CHUNK), offset >> 4).reshape(out.shape)
    else:
        out[chunks.mask()] = allocation.data[offset]
    engine.counters.bulk_global(operation.instruction, copies, len(addresses) * width, addresses, False)
    return out


class _Lanes:
    """Lanes with repetitions, for the race checks: one entry per chunk."""

    whole = False

    def __init__(self, lanes: Any) -> None:
        self.lanes = self.index = lanes
        self.n = len(lanes)

    @property
    def warps(self) -> Any:
        """The warps."""
        return np.unique(self.index >> 5)


def write_chunks(operation: Any, state: Any, lanes: Any, chunks: Chunks, values: Any, reduction: Any) -> None:
    """Write (or reduce into) global chunks."""
    addresses, copies = touched(chunks)
    width = CHUNK if chunks.whole else 1
    allocation = find_allocation(operation, state, lanes, addresses, copies, width)
    if allocation is None:
        return
    offset = addresses - allocation.base
    engine = state.engine
    engine.progress += 1
    engine.counters.bulk_global(operation.instruction, copies, len(addresses) * width, addresses, True)
    flat = values.reshape(-1, CHUNK) if chunks.whole else values[chunks.mask()]
    if reduction is None:
        if engine.races is not None:
            engine.races.write(
                state, _View(operation.instruction, width), _Lanes(lanes[copies]), allocation, offset, flat
            )
        if chunks.whole:
            scatter(allocation.view(np.dtype(np.uint8), CHUNK), offset >> 4, flat)
        else:
            allocation.data[offset] = flat
        return
    if engine.races is not None:
        engine.races.atomic(
            state, _View(operation.instruction, width, True), _Lanes(lanes[copies]), allocation, offset
        )
    function, dtype = reduction
    size = np.dtype(dtype).itemsize
    raw = np.ascontiguousarray(flat).reshape(-1).view(dtype)
    if chunks.whole:
        places = (offset[:, None] + np.arange(0, CHUNK, size)).reshape(-1)
    else:
        places = offset[::size]
    apply_atomically(allocation.view(np.dtype(dtype)), places // size, raw, None, function, engine)


class PendingLoad:
    """Copies into shared memory on their way: one entry per destination."""

    def __init__(
        self, operation: Any, state: Any, lanes: Any, index: Any, values: Any, slots: Any, size: Any
    ) -> None:
        self.operation, self.state = operation, state
        self.lanes, self.index, self.values, self.slots, self.size = lanes, index, values, slots, size
        self.left = np.ones(len(lanes), bool)

    def deliver(self, ready: Any) -> None:
        """The data of some destinations arrives, and their barriers count it."""
        state, table = self.state, self.state.mbarriers
        index, values, slots = self.index[ready], self.values[ready], self.slots[ready]
        self.operation.arrive(state, index, values)
        self.left &= ~ready
        if state.races is not None:
            state.races.async_arrived(self.operation, index)
        np.subtract.at(table.transactions, table.at(slots), self.size[ready])
        if state.order is not None:
            state.order.channel_completed(table, slots)
        state.engine.progress += 1
        table.complete(slots)


class _Bulk(Lane):
    """What bulk operations share."""

    width = CHUNK
    memory = True
    order, scope, strong = "weak", "cta", False
    type = BITS_OF_WIDTH[64]
    count = 2
    touches = ("shared", "global")

    def fail(self, state: Any, lane: int, kind: str, message: str) -> None:
        """Report and end the launch."""
        state.hazard(kind, message, self.instruction, int(lane))
        state.stop()


class BulkLoad(_Bulk):
    """Global (or own shared) memory to shared memory, completing at an mbarrier."""

    def __init__(
        self, target: AddressSource, barrier: AddressSource, mask: Any, source: Any, generic: bool
    ) -> None:
        super().__init__()
        self.target, self.barrier, self.mask, self.source = target, barrier, mask, source
        self.generic = generic
        self.reads = tuple(s for s in (target, barrier, mask, *source.reads) if s is not None)
        self.reduction: Any = None

    def execute(self, state: Any, sel: Selection) -> None:
        lanes = sel.index
        engine = state.engine
        target = self._shared_addresses(state, sel, self.target.get(state, sel))
        barrier = self._shared_addresses(state, sel, self.barrier.get(state, sel))
        own = state.block_of_lane[lanes]
        if self.mask is None:
            blocks = self._blocks(state, sel, target)
            barrier_blocks = self._blocks(state, sel, barrier)
            which = np.arange(sel.n)
            apart = blocks != barrier_blocks
            if isinstance(self.source, TensorSource) and apart.any():
                self.fail(
                    state,
                    lanes[np.flatnonzero(apart)[0]],
                    "mbarrier-misuse",
                    "the mbarrier of a tensor copy lies in another block than the copy's destination",
                )
        else:
            masks = np.broadcast_to(self.mask.get(state, sel), (sel.n,)).astype(np.int64)
            size = engine.cluster_size
            bits = (masks[:, None] >> np.arange(size)) & 1
            if (masks >> size).any() or (masks == 0).any():
                self.fail(
                    state,
                    lanes[0],
                    "illegal-descriptor",
                    f"multicast mask {int(masks[0]):#x} names blocks beyond the cluster's {size}",
                )
            which, rank = np.nonzero(bits)
            blocks = own[which] // size * size + rank
            barrier_blocks = blocks
        state.check_running(self.instruction, lanes[which], blocks)
        stride = state.memory.stride
        slots = state.mbarriers.find(self, lanes[which], barrier_blocks * stride + (barrier & _OFFSET)[which])
        values, offsets, sizes = self.source.fetch(self, state, sel, target & _OFFSET)
        if int(offsets.max(initial=0)) + CHUNK > state.memory.shared_bytes:
            self.fail(
                state,
                lanes[0],
                "out-of-bounds",
                f"bulk copy to shared offset {int(offsets.max()):#x} ends past the "
                f"{state.memory.shared_bytes} bytes of "
                "the block",
            )
        index = offsets[which] + (blocks * stride)[:, None]
        entry = PendingLoad(self, state, lanes[which], index, values[which], slots, sizes[which])
        engine.counters.bulk_shared(self.instruction, int(sizes[which].sum()))
        if state.races is not None:
            state.races.async_write(self, lanes[which], index, slots)
        state.mbarriers.copies.append(entry)

    def _shared_addresses(self, state: Any, sel: Selection, address: Any) -> Any:
        if self.generic:
            return state.memory.split_generic(address)[0][2]
        return address

    def _blocks(self, state: Any, sel: Selection, address: Any) -> Any:
        """The blocks in which shared addresses lie."""
        size = state.engine.cluster_size
        own = state.block_of_lane[sel.index]
        rank = rank_named(address, own % size)
        bad = rank >= size
        if bad.any():
            position = int(np.flatnonzero(bad)[0])
            self.fail(
                state,
                sel.index[position],
                "out-of-bounds",
                f"shared address {int(address[position]):#x} names no block of the cluster",
            )
        return np.where(rank >= 0, own // size * size + rank, own)

    def arrive(self, state: Any, index: Any, values: Any) -> None:
        """Put arrived bytes into shared memory."""
        rows, values = index.reshape(-1) >> 4, values.reshape(-1, CHUNK)
        if self.reduction is None:
            scatter(state.memory.shared_view(np.dtype(np.uint8), CHUNK), rows, values)
            return
        function, dtype = self.reduction
        size = np.dtype(dtype).itemsize
        places = (rows[:, None] * (CHUNK // size) + np.arange(CHUNK // size)).reshape(-1)
        raw = np.ascontiguousarray(values).reshape(-1).view(dtype)
        apply_atomically(
            state.memory.shared_view(np.dtype(dtype), 1), places, raw, None, function, state.engine
        )


class LinearSource:
    """``size`` contiguous bytes of global or shared memory."""

    def __init__(self, address: AddressSource, size: Any, shared: bool) -> None:
        self.address, self.size, self.shared = address, size, shared
        self.reads = (address, size)

    def fetch(self, operation: Any, state: Any, sel: Selection, target: Any) -> Any:
        """Values ``[G, n, 16]``, shared offsets ``[G, n]``, sizes ``[G]``."""
        sizes = np.broadcast_to(self.size.get(state, sel), (sel.n,)).astype(np.int64)
        address = self.address.get(state, sel)
        check_linear(operation, state, sel, address, target, sizes)
        most = int(sizes.max())
        steps = np.arange(0, most, CHUNK)
        if not (sizes == most).all():
            operation.fail(
                state,
                sel.index[0],
                "illegal-instruction",
                "threads of one bulk copy instruction differ in size",
            )
        if self.shared:
            index = shared_operand(operation, state, sel, address, False, 1)[:, None] + steps
            if state.races is not None:
                state.races.async_read(operation, sel.index, index, False)
            values = gather(state.memory.shared_view(np.dtype(np.uint8), CHUNK), index >> 4)
        else:
            values = read_chunks(operation, state, sel.index, Chunks(address[:, None] + steps, None, None))
        return values, target[:, None] + steps, sizes


def check_linear(operation: Any, state: Any, sel: Selection, first: Any, second: Any, sizes: Any) -> None:
    """Addresses and size of a linear bulk copy are multiples of 16."""
    for what, value in (("address", first), ("address", second), ("size", sizes)):
        bad = (value & (CHUNK - 1)) != 0
        if bad.any():
            position = int(np.flatnonzero(bad)[0])
            operation.fail(
                state,
                sel.index[position],
                "misaligned",
                f"{what} {int(value[position]):#x} of a bulk copy is no multiple of 16",
            )
    if (sizes <= 0).any():
        operation.fail(state, sel.index[0], "illegal-instruction", "a bulk copy of no bytes")


class TensorSource:
    """A box of a tensor map."""

    def __init__(self, tensor_map: AddressSource, coordinates: list[Any], generic_space: bool) -> None:
        self.map, self.coordinates = tensor_map, coordinates
        self.reads = (tensor_map, *coordinates)
        del generic_space

    def descriptors(self, operation: Any, state: Any, sel: Selection) -> Any:
        """The tensor map, which all lanes share, and the coordinates ``[G, rank]``."""
        if isinstance(getattr(self.map.base, "name", None), str):
            place = state.kernel.symbols.get(self.map.base.name)
            window = PARAM_WINDOW if place is not None and place.space == "param" else 0
            address = self.map.get(state, sel) + window
        else:
            address = self.map.get(state, sel)
        maps = []
        for value in np.unique(address):
            blob = self._blob(operation, state, sel, int(value))
            mine = address == value
            self._check_acquired(operation, state, sel.subset(mine), int(value))
            try:
                maps.append((tma.TensorMap.decode(blob), mine))
            except ValueError as error:
                operation.fail(state, sel.index[0], "illegal-descriptor", str(error))
        for tensor_map, _ in maps:
            if tensor_map.rank != len(self.coordinates):
                operation.fail(
                    state,
                    sel.index[0],
                    "illegal-descriptor",
                    f"a tensor map of rank {tensor_map.rank} is used with {len(self.coordinates)} coordinates",
                )
        coordinates = np.stack(
            [np.broadcast_to(c.get(state, sel), (sel.n,)).astype(np.int64) for c in self.coordinates], axis=1
        )
        return maps, coordinates

    def _check_acquired(self, operation: Any, state: Any, sel: Selection, address: int) -> None:
        """A map that was changed since the launch began must have been acquired by the block that uses it."""
        engine = state.engine
        changed = engine.changed_maps.get(address)
        if changed is None or state.order is None:
            return
        for lane in sel.index.tolist():
            block = int(state.blocks[state.block_of_lane[lane]])
            if engine.acquired_maps.get((block, address), 0) < changed:
                state.hazard(
                    "missing-proxy-fence",
                    "uses a tensor map that was changed"
                    f"{place_of(engine.instruction_at(changed))}, with no fence.proxy.tensormap::generic.acquire of it "
                    "by the block after the change",
                    operation.instruction,
                    lane,
                    address,
                )
                return

    def _blob(self, operation: Any, state: Any, sel: Selection, address: int) -> bytes:
        if address % 64:
            operation.fail(
                state, sel.index[0], "misaligned", f"tensor map at {address:#x} is not 64-byte aligned"
            )
        if address >= PARAM_WINDOW:
            start = address - PARAM_WINDOW
            return bytes(state.engine.parameters[start : start + tma.TENSOR_MAP_BYTES])
        allocation = state.engine.globals.find(address)
        if allocation is None or address + tma.TENSOR_MAP_BYTES > allocation.end:
            operation.fail(state, sel.index[0], "illegal-descriptor", f"no tensor map at {address:#x}")
        start = address - allocation.base
        return allocation.data[start : start + tma.TENSOR_MAP_BYTES].tobytes()

    def access(self, operation: Any, state: Any, sel: Selection, target: Any) -> Any:
        """``(map, which, TileAccess)`` of the copies."""
        maps, coordinates = self.descriptors(operation, state, sel)
        parts = []
        for tensor_map, mine in maps:
            bad = (target[mine] & (tensor_map.shared_alignment - 1)) != 0
            if bad.any():
                operation.fail(
                    state,
                    sel.index[0],
                    "misaligned",
                    f"shared address {int(target[mine][bad][0]):#x} of a tensor copy is not "
                    f"{tensor_map.shared_alignment}-byte aligned",
                )
            parts.append(
                (
                    tensor_map,
                    np.flatnonzero(mine),
                    tma.tile_access(tensor_map, coordinates[mine], target[mine]),
                )
            )
        return parts

    def fetch(self, operation: Any, state: Any, sel: Selection, target: Any) -> Any:
        """Values ``[G, n, 16]``, shared offsets ``[G, n]``, sizes ``[G]``."""
        parts = self.access(operation, state, sel, target)
        if len({p[2].shared_address.shape[1] for p in parts}) > 1:
            operation.fail(
                state, sel.index[0], "illegal-instruction", "threads of one tensor copy differ in box size"
            )
        count = parts[0][2].shared_address.shape[1]
        values = np.empty((sel.n, count, CHUNK), np.uint8)
        offsets = np.empty((sel.n, count), np.int64)
        sizes = np.empty(sel.n, np.int64)
        for tensor_map, which, access in parts:
            chunks = Chunks(access.global_address, access.first, access.last)
            loaded = read_chunks(operation, state, sel.index[which], chunks)
            if not chunks.whole and tensor_map.fill != "zero":
                pattern = np.frombuffer(tensor_map.fill_pattern(), np.uint8)
                pattern = np.tile(pattern, CHUNK // len(pattern)) if len(pattern) < CHUNK else pattern[:CHUNK]
                loaded = np.where(chunks.mask(), loaded, pattern)
            values[which] = tensor_map.convert_loaded(loaded)
            offsets[which] = access.shared_address
            sizes[which] = tensor_map.tile_bytes
        return values, offsets, sizes


class PendingStore:
    """Global writes of a bulk group on their way."""

    def __init__(
        self, operation: Any, lanes: Any, chunks: Chunks, values: Any, group: Any, token: Any, reduction: Any
    ) -> None:
        self.operation, self.lanes, self.chunks, self.values = operation, lanes, chunks, values
        self.group, self.token, self.reduction = group, token, reduction
        self.left = np.ones(len(lanes), bool)
        self.unread = np.ones(len(lanes), bool)


class BulkGroups:
    """The bulk groups of a batch."""

    def __init__(self, state: Any) -> None:
        self.state = state
        self.pending: list[PendingStore] = []
        self.committed = np.zeros(state.lane_count, np.int64)

    def wait(self, sel: Selection, keep: int, read_only: bool) -> None:
        """Groups but the newest ``keep`` have read their sources (or are complete)."""
        limit = np.full(self.state.lane_count, -1, np.int64)
        limit[sel.lanes] = self.committed[sel.lanes] - keep
        kept = []
        for entry in self.pending:
            ready = entry.group < limit[entry.lanes]
            self._read_done(entry, ready & entry.unread)
            if not read_only:
                self.finish(entry, ready & entry.left)
            if entry.left.any():
                kept.append(entry)
        self.pending = kept

    def _read_done(self, entry: PendingStore, ready: Any) -> None:
        if ready.any():
            entry.unread &= ~ready
            if self.state.races is not None and entry.token is not None:
                self.state.races.async_read_done(entry.operation, entry.token, ready)

    def finish(self, entry: PendingStore, ready: Any) -> None:
        """The bytes of some lanes reach global memory."""
        if ready.any():
            entry.left &= ~ready
            write_chunks(
                entry.operation,
                self.state,
                entry.lanes[ready],
                entry.chunks.some(ready),
                entry.values[ready],
                entry.reduction,
            )

    def flush(self, lanes: Any) -> None:
        """Lanes end: what is on its way arrives, and sources not read yet are reported."""
        ended = np.zeros(self.state.lane_count, bool)
        ended[lanes] = True
        kept = []
        for entry in self.pending:
            ready = ended[entry.lanes] & entry.left
            late = ready & entry.unread
            if late.any():
                self.state.hazard(
                    "async-pending",
                    "the thread ends while a bulk store may still read shared memory; wait "
                    "with cp.async.bulk.wait_group.read",
                    entry.operation.instruction,
                    int(entry.lanes[np.flatnonzero(late)[0]]),
                )
                self._read_done(entry, late)
            self.finish(entry, ready)
            if entry.left.any():
                kept.append(entry)
        self.pending = kept


class BulkStore(_Bulk):
    """Shared memory to global memory, plain or reducing, completing by bulk group."""

    def __init__(
        self, source: AddressSource, target: Any, reduction: Any, generic: bool, mask: Any = None
    ) -> None:
        super().__init__()
        self.source, self.target, self.reduction, self.generic, self.mask = (
            source,
            target,
            reduction,
            generic,
            mask,
        )
        self.reads = tuple(s for s in (source, mask, *target.reads) if s is not None)

    def execute(self, state: Any, sel: Selection) -> None:
        address = self.source.get(state, sel)
        if self.generic:
            address = state.memory.split_generic(address)[0][2]
        base = state.block_of_lane[sel.lanes] * state.memory.stride
        if isinstance(self.target, TensorSource):
            for tensor_map, which, access in self.target.access(self, state, sel, address):
                reduction = self.reduction
                if reduction is not None:
                    reduction = tensor_reduction(self, state, sel, reduction, tensor_map)
                self._start(
                    state,
                    sel,
                    which,
                    access.shared_address,
                    base[which],
                    Chunks(access.global_address, access.first, access.last),
                    reduction,
                )
            return
        sizes = np.broadcast_to(self.target.size.get(state, sel), (sel.n,)).astype(np.int64)
        target = self.target.address.get(state, sel)
        check_linear(self, state, sel, address, target, sizes)
        if not (sizes == sizes[0]).all():
            self.fail(
                state,
                sel.index[0],
                "illegal-instruction",
                "threads of one bulk copy instruction differ in size",
            )
        steps = np.arange(0, int(sizes[0]), CHUNK)
        chunks = Chunks(target[:, None] + steps, None, None)
        self._start(state, sel, np.arange(sel.n), address[:, None] + steps, base, chunks, self.reduction)

    def _start(
        self, state: Any, sel: Selection, which: Any, offsets: Any, base: Any, chunks: Chunks, reduction: Any
    ) -> None:
        if int(offsets.max()) + CHUNK > state.memory.shared_bytes or int(offsets.min()) < 0:
            self.fail(
                state,
                sel.index[0],
                "out-of-bounds",
                f"bulk copy from shared offset {int(offsets.max()):#x} reads past the "
                f"{state.memory.shared_bytes} bytes of "
                "the block",
            )
        index = offsets + base[:, None]
        lanes = sel.index[which]
        token = None
        if state.races is not None:
            token = state.races.async_read(self, lanes, index, True)
        values = gather(state.memory.shared_view(np.dtype(np.uint8), CHUNK), index >> 4)
        state.engine.counters.bulk_shared(self.instruction, index.size * CHUNK)
        group = state.bulk_groups.committed[lanes].copy()
        state.bulk_groups.pending.append(PendingStore(self, lanes, chunks, values, group, token, reduction))


def tensor_reduction(operation: Any, state: Any, sel: Selection, name: str, tensor_map: Any) -> Any:
    """The reduction of a tensor map's element type."""
    kind = tensor_map.element_type.split(".")[0]
    names = {
        "u8": "u32",
        "u16": "u32",
        "f16": "f16",
        "bf16": "bf16",
        "u32": "u32",
        "s32": "s32",
        "u64": "u64",
        "s64": "s64",
        "f32": "f32",
        "f64": "f64",
        "tf32": "f32",
    }
    if kind in ("u8", "u16"):
        operation.fail(state, sel.index[0], "illegal-descriptor", f"a reduction into elements of type {kind}")
    return reduction_of(name, names[kind])


def reduction_of(name: str, type_name: str) -> Any:
    """Function and NumPy type of a bulk reduction."""
    type = TYPES[type_name]
    return combine(name, type, "shared"), type.dtype


class _BulkGroup(Lane):
    def __init__(self, keep: int | None, read: bool) -> None:
        super().__init__()
        self.keep, self.read = keep, read

    def execute(self, state: Any, sel: Selection) -> None:
        if self.keep is None:
            state.bulk_groups.committed[sel.lanes] += 1
        else:
            state.bulk_groups.wait(sel, self.keep, self.read)


def decode_bulk(d: Decoder) -> Operation:
    """``cp.async.bulk...`` after ``cp.async`` has been consumed."""
    d.flag("bulk")
    if d.flag("commit_group"):
        return _BulkGroup(None, False)
    if d.flag("wait_group"):
        read = d.flag("read")
        d.count(1)
        return _BulkGroup(d.immediate(d.operands[0]), read)
    if d.flag("prefetch"):
        d.mods.clear()
        return Nothing()
    return _decode_copy(d, None)


def decode_reduce(d: Decoder) -> Operation:
    """``cp.reduce.async.bulk...``."""
    d.flag("async")
    d.flag("bulk")
    return _decode_copy(d, "reduce")


def _decode_copy(d: Decoder, reducing: str | None) -> Operation:
    tensor = d.flag("tensor")
    dimension = d.take("1d", "2d", "3d", "4d", "5d")
    mode = d.take(
        "tile", "tile::gather4", "tile::scatter4", "im2col", "im2col::w", "im2col::w::128", "im2col_no_offs"
    )
    if mode not in (None, "tile"):
        raise d.fail(f"load mode .{mode} is not supported; use .tile")
    hinted = "L2::cache_hint" in d.mods
    take_hints(d)
    d.take("cta_group::1")
    if d.flag("cp_mask"):
        raise d.fail("byte masks of bulk stores are not supported")
    target = d.take("shared::cluster", "shared::cta", "global")
    source = d.take("global", "shared::cta")
    completion = d.take("mbarrier::complete_tx::bytes", "bulk_group")
    multicast = d.flag("multicast::cluster")
    reduction: Any = None
    if reducing:
        name = d.take(*_REDUCTIONS)
        if name is None:
            raise d.fail("no reduction operation")
        d.flag("noftz")
        reduction = name if tensor else reduction_of(name, d.type().name)
    operands = list(d.operands)
    if hinted:
        operands.pop()
    # `.shared::cta.global` lists the destination first: take() found whichever stands first in `d.mods` order.
    if target == "global" or (target in ("shared::cta", "shared::cluster") and completion == "bulk_group"):
        return _decode_store(d, tensor, dimension, operands, reduction)
    if completion != "mbarrier::complete_tx::bytes" or target is None or source is None:
        raise d.fail("a bulk copy to shared memory completes at an mbarrier")
    mask = d.source(operands.pop(), TYPES["u16"]) if multicast else None
    destination = d.address(operands[0])
    if tensor:
        origin: Any = _tensor_operand(d, operands[1], dimension)
        barrier = d.address(operands[2])
        expected = 3
    else:
        origin = LinearSource(
            d.address(operands[1]), d.source(operands[2], TYPES["u32"]), source == "shared::cta"
        )
        barrier = d.address(operands[3])
        expected = 4
    if len(operands) != expected:
        raise d.fail(f"{len(operands)} operands where {expected} are expected")
    load = BulkLoad(destination, barrier, mask, origin, False)
    load.reduction = reduction
    return load


def _decode_store(
    d: Decoder, tensor: bool, dimension: str | None, operands: list[Any], reduction: Any
) -> Operation:
    if tensor:
        if len(operands) != 2:
            raise d.fail(f"{len(operands)} operands where 2 are expected")
        return BulkStore(d.address(operands[1]), _tensor_operand(d, operands[0], dimension), reduction, False)
    if len(operands) != 3:
        raise d.fail(f"{len(operands)} operands where 3 are expected")
    target = LinearSource(d.address(operands[0]), d.source(operands[2], TYPES["u32"]), False)
    return BulkStore(d.address(operands[1]), target, reduction, False)


def _tensor_operand(d: Decoder, operand: Any, dimension: str | None) -> TensorSource:
    if not isinstance(operand, Address) or len(operand.extra) != 1:
        raise d.fail("a tensor operand is [map, {coordinates}]")
    coordinates = operand.extra[0]
    items = coordinates.items if isinstance(coordinates, Vector) else (coordinates,)
    if dimension is not None and len(items) != int(dimension[0]):
        raise d.fail(f"{len(items)} coordinates for .{dimension}")
    return TensorSource(
        d.address(operand._replace(extra=())), [d.source(c, TYPES["s32"]) for c in items], True
    )
