"""The memory system of a batch of blocks: resolves addresses, checks them, moves the bytes, counts and orders."""

from __future__ import annotations

from typing import Any

import numpy as np

from .selection import Selection
from .spaces import LOCAL_WINDOW, PARAM_WINDOW, SHARED_WINDOW, WINDOW_SIZE

# From so many yields on, a store counts as progress only if it changes memory: a spinning loop may store too.
_CAREFUL = 64


class Memory:
    """Access to all state spaces for one batch."""

    def __init__(self, state: Any, shared_bytes: int, local_bytes: int) -> None:
        self.state = state
        self.engine = state.engine
        self.globals = state.engine.globals
        self.shared_bytes = shared_bytes
        self.stride = max((shared_bytes + 127) // 128 * 128, 128)
        self.shared = np.zeros(self.stride * state.block_count, np.uint8)
        self.shared_views: dict[Any, Any] = {}
        self.local_bytes = local_bytes
        self._shared_base: Any = None

    # -- entry points ------------------------------------------------------------------------------------------

    def load(self, access: Any, sel: Selection, address: Any, space: str | None) -> Any:
        """Values of the active lanes: ``[n]`` or ``[n, count]``."""
        if space is None:
            return self._generic(access, sel, address, None)
        if space == "global":
            return self.load_global(access, sel, address)
        if space == "shared":
            return self.load_shared(access, sel, address)
        if space == "local":
            return self.load_local(access, sel, address)
        return self._load_parameter(access, sel, address)

    def store(self, access: Any, sel: Selection, address: Any, space: str | None, values: Any) -> None:
        """Write the active lanes' values."""
        if space is None:
            self._generic(access, sel, address, values)
        elif space == "global":
            self.store_global(access, sel, address, values)
        elif space == "shared":
            self.store_shared(access, sel, address, values)
        elif space == "local":
            self.store_local(access, sel, address, values)
        else:
            self._fail(
                access, sel, address, np.ones(sel.n, bool), "out-of-bounds", "store to kernel parameters"
            )

    def split_generic(self, address: Any) -> list[tuple[str, Any, Any]]:
        """``(space, mask or None, address in the space)`` of generic addresses; None: all lanes."""
        low, high = int(address.min()), int(address.max())
        for name, window in (("shared", SHARED_WINDOW), ("local", LOCAL_WINDOW), ("param", PARAM_WINDOW)):
            if low >= window and high < window + WINDOW_SIZE:
                return [(name, None, address - window)]
        if high < PARAM_WINDOW:
            return [("global", None, address)]
        parts = []
        left = np.ones(len(address), bool)
        for name, window in (("shared", SHARED_WINDOW), ("local", LOCAL_WINDOW), ("param", PARAM_WINDOW)):
            inside = (address >= window) & (address < window + WINDOW_SIZE)
            if inside.any():
                parts.append((name, inside, address[inside] - window))
                left &= ~inside
        if left.any():
            parts.append(("global", left, address[left]))
        return parts

    def _generic(self, access: Any, sel: Selection, address: Any, values: Any) -> Any:
        parts = self.split_generic(address)
        if parts[0][1] is None:
            name, _, local = parts[0]
            if values is None:
                return self.load(access, sel, local, name)
            self.store(access, sel, local, name, values)
            return None
        result = None
        for name, mask, local in parts:
            some = sel.subset(mask)
            if values is None:
                part = self.load(access, some, local, name)
                if result is None:
                    result = np.zeros((sel.n, *part.shape[1:]), part.dtype)
                result[mask] = part
            else:
                self.store(access, some, local, name, values[mask] if np.ndim(values) else values)
        return result

    # -- global ------------------------------------------------------------------------------------------------

    def locate(
        self, access: Any, sel: Selection, address: Any, width: int, write: bool
    ) -> list[tuple[Any, Any, Any]]:
        """``(allocation, mask or None, offset)`` of global addresses; ends the launch where one has none."""
        low, high = int(address.min()), int(address.max())
        if int(np.bitwise_or.reduce(address)) & (width - 1):
            bad = (address & (width - 1)) != 0
            self._fail(
                access, sel, address, bad, "misaligned", f"{width}-byte access is not {width}-byte aligned"
            )
        allocation = self.globals.find(low)
        if allocation is not None and high + width <= allocation.end:
            return [(allocation, None, address - allocation.base)]
        parts = []
        left = np.ones(len(address), bool)
        inside: Any
        while left.any():
            first = int(address[left].min())
            allocation = self.globals.find(first)
            inside = None
            if allocation is not None:
                end = allocation.end + (allocation.tail if access.whole_word else 0)
                inside = left & (address >= allocation.base) & (address + width <= end)
            if inside is None or not inside.any():
                bad = left & (address == first)
                verb = "write" if write else "read"
                self._fail(
                    access,
                    sel,
                    address,
                    bad,
                    "out-of-bounds",
                    f"{width}-byte {verb} of global memory, {self.globals.nearest(first)}",
                )
            parts.append((allocation, inside, address[inside] - allocation.base))
            left &= ~inside
        return parts

    def _fail(self, access: Any, sel: Selection, address: Any, bad: Any, kind: str, message: str) -> None:
        where = int(np.flatnonzero(bad)[0])
        at = int(address[where])
        self.state.hazard(kind, f"{message}: address {at:#x}", access.instruction, int(sel.index[where]), at)
        self.state.stop()

    def load_global(self, access: Any, sel: Selection, address: Any) -> Any:
        """Gather from global memory."""
        width = access.width
        parts = self.locate(access, sel, address, width, False)
        self.engine.counters.global_access(access, sel, address, width, False)
        if parts[0][1] is None:
            allocation, _, offset = parts[0]
            if self.engine.check_global:
                self.engine.races.read(self.state, access, sel, allocation, offset)
            return _gather(allocation, access, offset)
        result = None
        for allocation, mask, offset in parts:
            if self.engine.check_global:
                self.engine.races.read(self.state, access, sel.subset(mask), allocation, offset)
            part = _gather(allocation, access, offset)
            if result is None:
                result = np.zeros((sel.n, *part.shape[1:]), part.dtype)
            result[mask] = part
        return result

    def store_global(self, access: Any, sel: Selection, address: Any, values: Any) -> None:
        """Scatter to global memory."""
        width = access.width
        parts = self.locate(access, sel, address, width, True)
        self.engine.counters.global_access(access, sel, address, width, True)
        for allocation, mask, offset in parts:
            part = values if mask is None or np.ndim(values) == 0 else values[mask]
            some = sel if mask is None else sel.subset(mask)
            if allocation.readonly:
                self._fail(
                    access,
                    sel,
                    address,
                    np.ones(sel.n, bool) if mask is None else mask,
                    "out-of-bounds",
                    f"write to {allocation.name}, which is constant",
                )
            if self.engine.check_global:
                self.engine.races.write(self.state, access, some, allocation, offset, part)
            if self.engine.total_yields < _CAREFUL or _changes(_gather(allocation, access, offset), part):
                self.engine.progress += 1
            _scatter(allocation, access, offset, part)

    # -- shared ------------------------------------------------------------------------------------------------

    def shared_index(self, access: Any, sel: Selection, address: Any, width: int) -> Any:
        """Shared addresses to byte indices into ``shared``; ends the launch where one is illegal."""
        low, high = int(address.min()), int(address.max())
        if int(np.bitwise_or.reduce(address)) & (width - 1):
            bad = (address & (width - 1)) != 0
            self._fail(
                access,
                sel,
                address,
                bad,
                "misaligned",
                f"{width}-byte shared access is not {width}-byte aligned",
            )
        base = self.state.shared_base[sel.lanes]
        if low >= 0 and high + width <= self.shared_bytes:
            return address + base
        return self.state.cluster_index(access, sel, address, width, base)

    def shared_view(self, dtype: Any, count: int = 1) -> Any:
        """All shared memory of the batch as elements or rows."""
        key = (dtype, count)
        view = self.shared_views.get(key)
        if view is None:
            view = self.shared.view(dtype)
            if count > 1:
                view = view.reshape(-1, count)
            self.shared_views[key] = view
        return view

    def load_shared(self, access: Any, sel: Selection, address: Any) -> Any:
        """Gather from shared memory."""
        width = access.width
        index = self.shared_index(access, sel, address, width)
        if self.engine.check_shared:
            self.state.races.read(access, sel, index, width)
        self.engine.counters.shared_access(access, sel, address, width)
        if access.type.bits == 128:
            return gather(self.shared_view(np.dtype(np.uint64), 2), index >> 4)
        return gather(self.shared_view(access.type.dtype, access.count), index // width)

    def store_shared(self, access: Any, sel: Selection, address: Any, values: Any) -> None:
        """Scatter to shared memory."""
        width = access.width
        index = self.shared_index(access, sel, address, width)
        self.engine.counters.shared_access(access, sel, address, width)
        if access.type.bits == 128:
            view, place = self.shared_view(np.dtype(np.uint64), 2), index >> 4
        else:
            view, place = self.shared_view(access.type.dtype, access.count), index // width
        if self.engine.check_shared:
            self.state.races.write(access, sel, index, width, view, place, values)
        if self.engine.total_yields < _CAREFUL or _changes(view[place], values):
            self.engine.progress += 1
        scatter(view, place, values)

    # -- local and parameters ----------------------------------------------------------------------------------

    def _local_index(self, access: Any, sel: Selection, address: Any) -> Any:
        width = access.width
        if int(np.bitwise_or.reduce(address)) & (width - 1):
            self._fail(
                access,
                sel,
                address,
                (address & (width - 1)) != 0,
                "misaligned",
                f"{width}-byte local access is not {width}-byte aligned",
            )
        bad = (address < 0) | (address + width > self.local_bytes)
        if bad.any():
            self._fail(
                access,
                sel,
                address,
                bad,
                "out-of-bounds",
                f"{width}-byte access beyond the {self.local_bytes} bytes of local memory",
            )
        return address + sel.index * self.state.local_stride

    def load_local(self, access: Any, sel: Selection, address: Any) -> Any:
        """Gather from each lane's local memory."""
        index = self._local_index(access, sel, address)
        flat = self.state.local.reshape(-1)
        self.engine.counters.local_bytes += sel.n * access.width
        if access.type.bits == 128:
            return gather(flat.view(np.uint64).reshape(-1, 2), index >> 4)
        view = flat.view(access.type.dtype)
        if access.count > 1:
            view = view.reshape(-1, access.count)
        return gather(view, index // access.width)

    def store_local(self, access: Any, sel: Selection, address: Any, values: Any) -> None:
        """Scatter to each lane's local memory."""
        index = self._local_index(access, sel, address)
        flat = self.state.local.reshape(-1)
        self.engine.counters.local_bytes += sel.n * access.width
        if access.type.bits == 128:
            scatter(flat.view(np.uint64).reshape(-1, 2), index >> 4, values)
            return
        view = flat.view(access.type.dtype)
        if access.count > 1:
            view = view.reshape(-1, access.count)
        scatter(view, index // access.width, values)

    def _load_parameter(self, access: Any, sel: Selection, address: Any) -> Any:
        buffer = np.frombuffer(self.engine.parameters, np.uint8)
        bad = (address < 0) | (address + access.width > len(buffer))
        if bad.any():
            self._fail(
                access,
                sel,
                address,
                bad,
                "out-of-bounds",
                f"{access.width}-byte read beyond the {len(buffer)} bytes of kernel parameters",
            )
        bytes_ = buffer[address[:, None] + np.arange(access.width)]
        values = np.ascontiguousarray(bytes_).view(
            access.type.dtype if access.type.bits != 128 else np.uint64
        )
        return values[:, 0] if access.count == 1 and access.type.bits != 128 else values


def gather(view: Any, place: Any) -> Any:
    """Elements or rows of a view; ``take`` copies a row at once, where indexing goes element by element."""
    return view.take(place, axis=0)


def scatter(view: Any, place: Any, values: Any) -> None:
    """Write elements or rows of a view, a row at once."""
    if view.ndim == 1 or np.ndim(values) < 2:
        view[place] = values
        return
    row = np.dtype((np.void, view.shape[1] * view.itemsize))
    view.view(row)[:, 0][place] = np.ascontiguousarray(values, view.dtype).view(row)[:, 0]


def _changes(old: Any, new: Any) -> bool:
    return bool((old != new).any())


def _gather(allocation: Any, access: Any, offset: Any) -> Any:
    if access.type.bits == 128:
        return gather(allocation.view(np.dtype(np.uint64), 2), offset >> 4)
    return gather(allocation.view(access.type.dtype, access.count), offset // access.width)


def _scatter(allocation: Any, access: Any, offset: Any, values: Any) -> None:
    if access.type.bits == 128:
        scatter(allocation.view(np.dtype(np.uint64), 2), offset >> 4, values)
    else:
        scatter(allocation.view(access.type.dtype, access.count), offset // access.width, values)
