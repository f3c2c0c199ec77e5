"""Fences, and the instructions that only steer the machine: nanosleep, griddepcontrol, setmaxnreg, cache policies."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from .decoder import AddressSource, Decoder
from .operations import Lane, Map, Nothing, Operation
from .selection import Selection
from .types import TYPES


class Fence(Lane):
    """``fence``, ``membar``: ``scope`` is cta, cluster, gpu or sys; ``proxy`` names a proxy fence."""

    def __init__(self, scope: str, proxy: str | None, semantics: str) -> None:
        super().__init__()
        self.scope, self.proxy, self.semantics = scope, proxy, semantics

    def execute(self, state: Any, sel: Selection) -> None:
        if state.order is None:
            return
        if self.proxy is not None:
            state.order.proxy_fence(sel, self.proxy)
        elif self.semantics == "mbarrier_init":
            state.order.initialisation_fence(sel)
        else:
            state.order.fence(sel, self.scope)


class MapFence(Lane):
    """``fence.proxy.tensormap::generic.acquire``: copies of the block may use the tensor map as it is now."""

    def __init__(self, address: AddressSource) -> None:
        super().__init__()
        self.address = address
        self.reads = (address,)

    def execute(self, state: Any, sel: Selection) -> None:
        now = state.engine.tick()
        blocks = state.blocks[state.block_of_lane[sel.lanes]]
        for block, address in zip(blocks.tolist(), self.address.get(state, sel).tolist()):
            state.engine.acquired_maps[block, address] = now


def _decode_fence(d: Decoder) -> Operation:
    if d.name == "membar":
        if d.flag("proxy"):
            return _proxy(d)
        level = d.take("cta", "gl", "sys", "gpu")
        return Fence({"gl": "gpu"}.get(level or "gpu", level or "gpu"), None, "sc")
    if d.flag("proxy"):
        return _proxy(d)
    if d.flag("mbarrier_init"):
        d.take("release")
        return Fence(d.take("cluster", default="cluster"), None, "mbarrier_init")
    semantics = d.take("sc", "acq_rel", "acquire", "release")
    d.take("sync_restrict::shared::cta", "sync_restrict::shared::cluster")
    scope = d.take("cta", "cluster", "gpu", "sys")
    if scope is None:
        raise d.fail("a fence needs a scope")
    return Fence(scope, None, semantics or "acq_rel")


def _proxy(d: Decoder) -> Operation:
    kind = d.take("alias", "async", "async.global", "async::generic", "tensormap::generic")
    if kind is None:
        raise d.fail("unknown proxy")
    space = d.take("global", "shared::cta", "shared::cluster", "shared")
    semantics = d.take("acquire", "release")
    d.take("sync_restrict::shared::cta", "sync_restrict::shared::cluster")
    scope = d.take("cta", "cluster", "gpu", "sys")
    if kind == "tensormap::generic" and semantics == "acquire":
        d.count(2)
        return MapFence(d.address(d.operands[0]))
    return Fence(scope or "cta", f"{kind}{'.' + space.split('::')[0] if space else ''}", semantics or "both")


class _Sleep(Lane):
    def execute(self, state: Any, sel: Selection) -> None:
        state.poll(sel)


def _decode_sleep(d: Decoder) -> Operation:
    d.flag("u32")
    return _Sleep()


def _decode_grid_dependency(d: Decoder) -> Operation:
    if d.take("launch_dependents", "wait") is None:
        raise d.fail("griddepcontrol needs .launch_dependents or .wait")
    return Nothing()


def _decode_policy(d: Decoder) -> Operation:
    """Cache policies are opaque numbers that only hint."""
    d.mods.clear()
    return Map(lambda: np.uint64(0), [d.target(d.operands[0], TYPES["b64"])], [])


INSTRUCTIONS: dict[str, Callable[[Decoder], Operation]] = {
    "fence": _decode_fence,
    "membar": _decode_fence,
    "nanosleep": _decode_sleep,
    "griddepcontrol": _decode_grid_dependency,
    "createpolicy": _decode_policy,
}
