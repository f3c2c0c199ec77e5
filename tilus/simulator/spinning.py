"""Loops that wait for others: they give way at each turn, and a launch in which only they are left ends."""

from __future__ import annotations

from typing import Any

import numpy as np

# A prime, so that the turns at which loops are looked at soon fall on every place of a nest of loops.
_LOOK_EVERY = 509
_TURNS_BEFORE_YIELD = 4096
_WATCH_FROM = 1000
_MOST_WINDOWS = 50


def turn_back(group: Any, target: int) -> None:
    """A group is about to go back to ``target``: it gives way if it waits for something, or has had its share."""
    state = group.state
    group.loops += 1
    if (
        state.take_polled(group.sel)
        or group.loops > _TURNS_BEFORE_YIELD
        or _stands_still(state, group, target)
    ):
        group.round += 1
        group.loops = 0
        state.engine.yielded(group)


def _stands_still(state: Any, group: Any, target: int) -> bool:
    """Whether nothing of the group's own changed in a turn: such a loop waits for memory, with plain loads even."""
    standing = state.standing
    if standing and target in standing:
        if same(standing[target], snapshot(state, group.sel)):
            return True
        del standing[target]
    if group.loops % _LOOK_EVERY == 0:
        standing[target] = snapshot(state, group.sel)
    return False


def snapshot(state: Any, sel: Any) -> list[Any]:
    """Copies of everything that is a group's own: which lanes, their registers and their local memory."""
    parts = [sel.index, *(bank[:, sel.lanes].copy() for bank in state.banks.values())]
    if state.kernel.local_bytes:
        parts.append(state.local[sel.lanes].copy())
    return parts


def same(first: list[Any], second: list[Any]) -> bool:
    """Whether two snapshots are equal."""
    return all(np.array_equal(a, b) for a, b in zip(first, second))


class Patience:
    """How long to watch loops that wait while nothing else happens.

    Registers that change, of a loop that gives up after some number of turns for instance, earn more time.
    """

    def __init__(self) -> None:
        self.windows = 0
        self.moving = False
        self.seen: dict[tuple[int, int], list[Any]] = {}

    def reset(self) -> None:
        """Something happened."""
        self.windows = 0
        self.moving = False
        self.seen.clear()

    def watch(self, group: Any, turns: int) -> None:
        """A group went round a loop; ``turns`` have been made in this window."""
        if turns <= _WATCH_FROM or self.moving:
            return
        key = (id(group.state), group.pc)
        now = snapshot(group.state, group.sel)
        before = self.seen.setdefault(key, now)
        self.moving = before is not now and not same(before, now)

    def exhausted(self) -> bool:
        """At the end of a window: whether it is time to call it a deadlock."""
        if self.moving and self.windows < _MOST_WINDOWS:
            self.windows += 1
            self.moving = False
            self.seen.clear()
            return False
        return True
