"""Exchange within a warp: shuffles, votes, matches, reductions, election, the active mask."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from .barriers import lanes_of_mask
from .decoder import Decoder
from .operands import Sink
from .operations import Lane, Operation, Warp
from .selection import LANES, Selection
from .types import TYPES

U32, B32, PRED = TYPES["u32"], TYPES["b32"], TYPES["pred"]
_LANE = np.arange(LANES)
_BIT = np.uint32(1) << np.arange(LANES, dtype=np.uint32)


class Synchronised(Warp):
    """A warp operation with a lane mask: waits for the lanes it names, and refuses a mask without the lane itself."""

    def __init__(self, function: Callable[..., Any], destinations: Any, sources: Any, mask: Any) -> None:
        super().__init__(function, destinations, sources)
        self.mask = mask
        self.reads = (*self.reads, mask)
        self.inputs = tuple(sources)

    def required(self, state: Any, sel: Selection) -> Any:
        return lanes_of_mask(self.mask, state, sel)

    def execute(self, state: Any, sel: Selection) -> None:
        masks = self.mask.warp(state, sel).astype(np.uint32)
        own = (masks & _BIT) != 0
        active = sel.mask
        stray = active & ~own
        if stray.any():
            row, lane = np.argwhere(stray)[0]
            at = int(sel.warps[row]) * LANES + int(lane)
            state.hazard(
                "illegal-instruction",
                f"lane {lane} executes with lane mask {int(masks[row, lane]):#x}, which does not name it",
                self.instruction,
                at,
            )
            active = active & own
        if state.order is not None:
            state.order.warp_sync(sel)
        # Lanes of one warp may execute with different masks (sub-groups); each sees the lanes its own mask names.
        first = np.where(active, masks, np.uint32(0))
        lead = first.max(axis=1)
        inputs = [source.warp(state, sel) for source in self.inputs]
        if not ((first == lead[:, None]) | ~active).all():
            self._by_mask(state, sel, first, active, inputs)
            return
        members = (lead[:, None] & _BIT) != 0
        self._write(state, sel, self.function(members & active, *inputs), None)

    def _by_mask(self, state: Any, sel: Selection, masks: Any, active: Any, inputs: list[Any]) -> None:
        done = ~active
        results: list[Any] = []
        while not done.all():
            lead = np.where(done, np.uint32(0), masks).max(axis=1)
            group = (masks == lead[:, None]) & ~done
            values = self.function(group, *inputs)
            values = (values,) if len(self.writes) == 1 else values
            results = [np.where(group, v, r) for v, r in zip(values, results)] if results else list(values)
            done |= group
        self._write(state, sel, tuple(results) if len(results) > 1 else results[0], None)

    def _write(self, state: Any, sel: Selection, values: Any, _: Any) -> None:
        if len(self.writes) == 1:
            values = (values,)
        for target, value in zip(self.writes, values):
            target.put_warp(state, sel, value)


def _decode_shfl(d: Decoder) -> Operation:
    d.type("b32")
    if not d.flag("sync"):
        raise d.fail("shfl without .sync is not in the ISA from sm_70 on")
    mode = d.take("up", "down", "bfly", "idx")
    d.count(5)
    first, second = d.pair(d.operands[0])
    sources = [d.source(d.operands[1], B32), d.source(d.operands[2], U32), d.source(d.operands[3], U32)]
    mask = d.source(d.operands[4], U32)
    targets = [d.target(first, B32), d.target(second, PRED) if second is not None else Sink()]

    def exchange(members: Any, a: Any, b: Any, c: Any) -> Any:
        b, c = b.astype(np.int64) & 31, c.astype(np.int64)
        clamp, segment = c & 31, (c >> 8) & 31
        highest = (_LANE & segment) | (clamp & ~segment)
        lowest = _LANE & segment
        if mode == "up":
            source = _LANE - b
            valid = source >= highest
        elif mode == "down":
            source = _LANE + b
            valid = source <= highest
        elif mode == "bfly":
            source = _LANE ^ b
            valid = source <= highest
        else:
            source = lowest | (b & ~segment)
            valid = source <= highest
        source = np.where(valid, source, _LANE) & 31
        return np.take_along_axis(a, source, axis=1), valid

    operation = Synchronised(exchange, targets, sources, mask)
    # A lane whose value nobody fetches need not have one.
    operation.lenient = (sources[0],)
    return operation


def _ballot(members: Any, flags: Any) -> Any:
    bits = np.where(members & flags, _BIT, np.uint32(0)).sum(axis=1, dtype=np.uint32)
    return np.broadcast_to(bits[:, None], members.shape)


def _decode_vote(d: Decoder) -> Operation:
    if not d.flag("sync"):
        raise d.fail("vote without .sync is not in the ISA from sm_70 on")
    mode = d.take("all", "any", "uni", "ballot")
    d.type("b32" if mode == "ballot" else "pred")
    d.count(3)
    source, mask = d.source(d.operands[1], PRED), d.source(d.operands[2], U32)

    def vote(members: Any, flags: Any) -> Any:
        if mode == "ballot":
            return _ballot(members, flags)
        everyone = (flags | ~members).all(axis=1, keepdims=True)
        someone = (flags & members).any(axis=1, keepdims=True)
        result = {"all": everyone, "any": someone, "uni": everyone | ~someone}[mode]
        return np.broadcast_to(result, members.shape)

    return Synchronised(vote, [d.target(d.operands[0], B32 if mode == "ballot" else PRED)], [source], mask)


def _decode_match(d: Decoder) -> Operation:
    type = d.type("b32", "b64")
    d.flag("sync")
    mode = d.take("any", "all")
    d.count(3)
    first, second = d.pair(d.operands[0])
    source, mask = d.source(d.operands[1], type), d.source(d.operands[2], U32)

    def match(members: Any, values: Any) -> Any:
        equal = (values[:, :, None] == values[:, None, :]) & members[:, None, :]
        bits = np.where(equal, _BIT, np.uint32(0)).sum(axis=2, dtype=np.uint32)
        if mode == "any":
            return bits
        whole = np.where(members, _BIT, np.uint32(0)).sum(axis=1, dtype=np.uint32)[:, None]
        same = bits == whole
        result = np.where(same, whole, np.uint32(0))
        return (result, same)

    targets = [d.target(first, B32)]
    if mode == "all":
        targets.append(d.target(second, PRED) if second is not None else Sink())
    return Synchronised(match, targets, [source], mask)


def _decode_redux(d: Decoder) -> Operation:
    type = d.type("u32", "s32", "b32", "f32")
    d.flag("sync")
    nan, absolute = d.flag("NaN"), d.flag("abs")
    mode = d.take("add", "min", "max", "and", "or", "xor")
    d.count(3)
    source, mask = d.source(d.operands[1], type), d.source(d.operands[2], U32)

    def reduce(members: Any, values: Any) -> Any:
        if type.name == "f32":
            result = _reduce_float(members, values, mode, nan, absolute)
        elif mode == "add":
            result = np.where(members, values, values.dtype.type(0)).sum(axis=1, dtype=values.dtype)
        elif mode in ("min", "max"):
            info = np.iinfo(values.dtype)
            neutral = values.dtype.type(info.max if mode == "min" else info.min)
            chosen = np.where(members, values, neutral)
            result = chosen.min(axis=1) if mode == "min" else chosen.max(axis=1)
        else:
            operation = {"and": np.bitwise_and, "or": np.bitwise_or, "xor": np.bitwise_xor}[mode]
            neutral = values.dtype.type(0xFFFFFFFF if mode == "and" else 0)
            result = operation.reduce(np.where(members, values, neutral), axis=1)
        return np.broadcast_to(result[:, None], members.shape)

    return Synchronised(reduce, [d.target(d.operands[0], type)], [source], mask)


def _reduce_float(members: Any, values: Any, mode: str, nan: bool, absolute: bool) -> Any:
    from .floating import _pick_two, canonical

    values = np.abs(values) if absolute else values
    result = np.full(len(values), np.nan, np.float32)
    seen = np.zeros(len(values), bool)
    for lane in range(LANES):
        here = members[:, lane]
        merged = _pick_two(result, values[:, lane], mode == "min", nan, False)
        result = np.where(here, np.where(seen, merged, values[:, lane]), result)
        seen |= here
    return canonical(result)


class _ActiveMask(Lane):
    def __init__(self, target: Any) -> None:
        super().__init__()
        self.writes = (target,)

    def execute(self, state: Any, sel: Selection) -> None:
        bits = np.where(sel.mask, _BIT, np.uint32(0)).sum(axis=1, dtype=np.uint32)
        self.writes[0].put(state, sel, bits[sel.row])


def _decode_activemask(d: Decoder) -> Operation:
    d.type("b32")
    d.count(1)
    return _ActiveMask(d.target(d.operands[0], B32))


def _decode_elect(d: Decoder) -> Operation:
    d.flag("sync")
    d.count(2)
    first, second = d.pair(d.operands[0])
    mask = d.source(d.operands[1], U32)

    def elect(members: Any) -> Any:
        leader = members.argmax(axis=1)
        chosen = _LANE == leader[:, None]
        return np.broadcast_to(leader[:, None].astype(np.uint32), members.shape), chosen

    return Synchronised(
        elect, [d.target(first, B32), d.target(second, PRED) if second is not None else Sink()], [], mask
    )


INSTRUCTIONS: dict[str, Callable[[Decoder], Operation]] = {
    "shfl": _decode_shfl,
    "vote": _decode_vote,
    "match": _decode_match,
    "redux": _decode_redux,
    "activemask": _decode_activemask,
    "elect": _decode_elect,
}
