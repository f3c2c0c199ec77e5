"""Loads and stores of every state space, and what all memory accesses share: bounds, alignment, gathering."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from .decoder import AddressSource, Decoder
from .operations import Lane, Operation
from .selection import Selection
from .spaces import LOCAL_WINDOW, PARAM_WINDOW, SHARED_WINDOW, WINDOW_SIZE
from .types import TYPES, ScalarType

_SPACES = (
    "const",
    "global",
    "local",
    "param",
    "param::entry",
    "param::func",
    "shared",
    "shared::cta",
    "shared::cluster",
)
_CACHE = ("ca", "cg", "cs", "lu", "cv", "wb", "wt", "nc")
_SCOPES = ("cta", "cluster", "gpu", "sys")


def take_hints(d: Decoder) -> None:
    """Consume what only hints at caching."""
    for mod in list(d.mods):
        if mod in _CACHE or mod in (
            "L1::evict_normal",
            "L1::evict_unchanged",
            "L1::evict_first",
            "L1::evict_last",
            "L1::no_allocate",
            "L2::evict_normal",
            "L2::evict_first",
            "L2::evict_last",
            "L2::cache_hint",
            "L2::64B",
            "L2::128B",
            "L2::256B",
            "unified",
            "mmio",
        ):
            d.mods.remove(mod)
    # `L2::evict_first` and its like are split at the dot only, so they arrive whole.


class Access(Lane):
    """A load or store: where, how wide, and with which memory order."""

    memory = True

    def __init__(self, space: str | None, type: ScalarType, count: int, address: AddressSource) -> None:
        super().__init__()
        self.space = space
        self.type = type
        self.count = count
        self.address = address
        self.width = type.bytes * count
        self.order = "weak"
        self.scope: str | None = None
        self.strong = False
        self.whole_word = False

    @property
    def touches(self) -> tuple[str, ...]:
        """The checked state spaces that it may reach."""
        return ("shared", "global") if self.space is None else (self.space,)


class Load(Access):
    """``ld``: registers from memory."""

    def __init__(
        self, space: str | None, type: ScalarType, count: int, address: AddressSource, targets: list[Any]
    ) -> None:
        super().__init__(space, type, count, address)
        self.writes = tuple(targets)
        self.reads = (address,)

    def execute(self, state: Any, sel: Selection) -> None:
        space = self.space
        if self.strong:
            state.poll(sel)
        if space == "param":
            values = self._parameter(state, sel)
        else:
            values = state.memory.load(self, sel, self.address.get(state, sel), space)
        if self.count == 1:
            self.writes[0].put(state, sel, values)
            return
        for index, target in enumerate(self.writes):
            target.put(state, sel, values[:, index])

    def _parameter(self, state: Any, sel: Selection) -> Any:
        fixed = self.address.constant(state)
        buffer = state.engine.parameters
        dtype = np.uint8 if self.type.bits < 8 else self.type.dtype
        if fixed is not None:
            if fixed < 0 or fixed + self.width > len(buffer):
                state.hazard(
                    "out-of-bounds",
                    f"read of {self.width} bytes at offset {fixed} of {len(buffer)} bytes of kernel "
                    "parameters",
                    self.instruction,
                    int(sel.index[0]),
                    fixed,
                )
                state.stop()
            if self.type.bits == 128:
                return np.frombuffer(buffer, np.uint64, 2, fixed)
            row = np.frombuffer(buffer, dtype, self.count, fixed)
            return row[0] if self.count == 1 else row[None, :]
        return state.memory.load(self, sel, self.address.get(state, sel) + PARAM_WINDOW, None)


class Store(Access):
    """``st``: registers to memory."""

    def __init__(
        self, space: str | None, type: ScalarType, count: int, address: AddressSource, sources: list[Any]
    ) -> None:
        super().__init__(space, type, count, address)
        self.values = tuple(sources)
        self.reads = (address, *sources)

    def execute(self, state: Any, sel: Selection) -> None:
        if self.count == 1:
            values = self.values[0].get(state, sel)
        else:
            values = np.empty((sel.n, self.count), self.type.dtype)
            for index, source in enumerate(self.values):
                values[:, index] = source.get(state, sel)
        state.memory.store(self, sel, self.address.get(state, sel), self.space, values)


class _FrameLoad(Lane):
    def __init__(self, offset: int, type: ScalarType, target: Any) -> None:
        super().__init__()
        self.offset, self.type = offset, type
        self.writes = (target,)

    def execute(self, state: Any, sel: Selection) -> None:
        frame = state.local[:, self.offset : self.offset + self.type.bytes]
        values = np.ascontiguousarray(frame[sel.lanes]).view(self.type.dtype)[:, 0]
        self.writes[0].put(state, sel, values)


class _FrameStore(Lane):
    def __init__(self, offset: int, type: ScalarType, source: Any) -> None:
        super().__init__()
        self.offset, self.type = offset, type
        self.reads = (source,)

    def execute(self, state: Any, sel: Selection) -> None:
        values = np.empty((sel.n, 1), self.type.dtype)
        values[:, 0] = self.reads[0].get(state, sel)
        state.local[sel.lanes, self.offset : self.offset + self.type.bytes] = values.view(np.uint8)


def frame_load(offset: int, type: ScalarType, target: Any) -> Operation:
    """Read a call's parameter from the lane's frame."""
    return _FrameLoad(offset, type, target)


def frame_store(offset: int, type: ScalarType, source: Any) -> Operation:
    """Write a call's parameter to the lane's frame."""
    return _FrameStore(offset, type, source)


def memory_order(d: Decoder, operation: Access) -> None:
    """Consume ``.weak``, ``.volatile``, ``.relaxed``, ``.acquire``, ``.release`` and the scope."""
    order = d.take("weak", "volatile", "relaxed", "acquire", "release")
    operation.order = order or "weak"
    operation.strong = operation.order != "weak"
    operation.scope = d.take(*_SCOPES)


def take_space(d: Decoder) -> str | None:
    """Consume the state space; None is generic."""
    space = d.take(*_SPACES)
    if space is None:
        return None
    return str(space.split("::")[0])


def resolve_space(d: Decoder, space: str | None, address: AddressSource) -> tuple[str | None, AddressSource]:
    """Constant variables are global allocations; a call's parameters lie in the lane's frame."""
    if space == "const":
        return "global", address
    if space == "param":
        place = d.scope.builder.symbols.get(address.symbol) if address.symbol is not None else None
        if place is not None and place.space == "local":
            return "local", address
    return space, address


def _element_type(d: Decoder) -> ScalarType:
    type = d.type()
    if type.kind == "p":
        raise d.fail("predicates can't be loaded or stored")
    if type.bits == 128:
        return type
    # Only bits move; signedness alone matters, where a register is wider.
    return type if type.kind == "s" else TYPES[f"b{type.bits}"]


def _decode_load(d: Decoder) -> Operation:
    count = int((d.take("v2", "v4", "v8") or "v1")[1:])
    type = _element_type(d)
    space = take_space(d)
    address = d.address(d.operands[1])
    space, address = resolve_space(d, space, address)
    target = d.operands[0]
    targets = d.targets(target, type, relaxed=True)
    if len(targets) != count:
        raise d.fail(f"{len(targets)} registers for .v{count}")
    operation = Load(space, type, count, address, targets)
    memory_order(d, operation)
    take_hints(d)
    return operation


def _decode_store(d: Decoder) -> Operation:
    if "async" in d.mods or "bulk" in d.mods:
        from .cluster import decode_store_async

        return decode_store_async(d)
    count = int((d.take("v2", "v4", "v8") or "v1")[1:])
    type = _element_type(d)
    space = take_space(d)
    address = d.address(d.operands[0])
    space, address = resolve_space(d, space, address)
    sources = d.sources(d.operands[1], type, relaxed=True)
    if len(sources) != count:
        raise d.fail(f"{len(sources)} registers for .v{count}")
    operation = Store(space, type, count, address, sources)
    memory_order(d, operation)
    take_hints(d)
    return operation


def _decode_isspacep(d: Decoder) -> Operation:
    from .operations import Map

    space = (d.take(*_SPACES) or "").split("::")[0]
    source = d.source(d.operands[1], TYPES["u64"])
    windows = {"shared": SHARED_WINDOW, "local": LOCAL_WINDOW, "param": PARAM_WINDOW}

    def apply(a: Any) -> Any:
        if space in windows:
            low = np.uint64(windows[space])
            return (a >= low) & (a < low + np.uint64(WINDOW_SIZE))
        return np.less(a, np.uint64(PARAM_WINDOW))

    return Map(apply, [d.target(d.operands[0], TYPES["pred"])], [source])


INSTRUCTIONS: dict[str, Callable[[Decoder], Operation]] = {
    "ld": _decode_load,
    "ldu": _decode_load,
    "st": _decode_store,
    "isspacep": _decode_isspacep,
}
