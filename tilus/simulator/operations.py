"""The executable form of an instruction: element-wise maps, lane operations and control operations.

A decoded instruction is one of these objects. ``bind`` makes a call without arguments for a run of whole warps,
with every array view resolved; ``run`` executes for any selection of lanes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np

from .operands import Register
from .selection import Selection


class Operation:
    """Base class. ``sync`` operations need every (named) lane of a warp to be present.

    An access of memory is ``collective`` where all lanes of a warp begin it together, and ``asynchronous`` where the
    asynchronous proxy does it.
    """

    sync = False
    collective = False
    asynchronous = False
    control = False
    copies = False
    reads: tuple[Any, ...] = ()
    writes: tuple[Any, ...] = ()
    lenient: tuple[Any, ...] = ()

    def __init__(self) -> None:
        self.guard: Any = None
        self.instruction: Any = None

    def bind(self, state: Any, lo: int, hi: int) -> Callable[[], Any]:
        """A call that executes the operation for whole warps ``lo`` to ``hi``."""
        raise TypeError(f"{type(self).__name__} cannot be bound")

    def run(self, state: Any, sel: Selection) -> None:
        """Execute for a selection."""
        raise TypeError(f"{type(self).__name__} cannot run")

    def required(self, state: Any, sel: Selection) -> Any:
        """``[warps, 32]``: the lanes that a warp-wide operation waits for (all, if no lane mask says otherwise)."""
        return True

    @property
    def guard_registers(self) -> list[Register]:
        """The register of the guard."""
        return registers_of([self.guard]) if self.guard is not None else []


class Map(Operation):
    """``destinations = function(*sources)``, lane by lane, with no effect besides."""

    # Whether this is a choice between the first two sources by the third.
    selects = False
    # How many of the first sources the function only moves bits of, unless it is none.
    moves = 0
    # Whether each bit of the result depends on the same bit of the sources alone.
    bitwise = False
    # Width of the elements of packed operands that are computed apart, unless it is none.
    packed = 0
    # How many elements are converted apart: one of each source, or equal parts of the only one; from the top.
    converts = 0

    def __init__(
        self, function: Callable[..., Any], destinations: Sequence[Any], sources: Sequence[Any]
    ) -> None:
        super().__init__()
        self.function = function
        self.writes = tuple(destinations)
        self.reads = tuple(sources)
        self._in_place: bool | None = None

    def bind(self, state: Any, lo: int, hi: int) -> Callable[[], Any]:
        lanes = slice(lo * 32, hi * 32)
        if any(source.dynamic for source in self.reads) or len(self.writes) != 1 or self.guard is not None:
            return partial(self._full, state, Selection(lo, hi))
        sources = []
        for source in self.reads:
            array = source.row_array(state)
            sources.append(array[lanes] if isinstance(array, np.ndarray) and array.ndim else array)
        target = self.writes[0].target_array(state)[lanes]
        function = self.function
        if self._in_place is None:
            self._in_place = isinstance(function, np.ufunc) and _writes_in_place(function, sources, target)
        if self._in_place:
            return partial(function, *sources, out=target)

        def step() -> None:
            target[...] = function(*sources)

        return step

    def _full(self, state: Any, sel: Selection) -> None:
        values = self.function(*[source.get(state, sel) for source in self.reads])
        if len(self.writes) == 1:
            values = (values,)
        if self.guard is None:
            for target, value in zip(self.writes, values):
                target.put(state, sel, value)
            return
        where = self.guard.get(state, sel)
        for target, value in zip(self.writes, values):
            array = target.target_array(state)[sel.lanes]
            if array.ndim > 1:
                where = where[:, None]
            np.copyto(array, value, where=where, casting="unsafe")

    def run(self, state: Any, sel: Selection) -> None:
        if self.guard is not None:
            if sel.whole:
                self._full(state, sel)
                return
            keep = self.guard.get(state, sel)
            if not keep.all():
                sel = sel.subset(keep)
                if sel.n == 0:
                    return
        values = self.function(*[source.get(state, sel) for source in self.reads])
        if len(self.writes) == 1:
            values = (values,)
        for target, value in zip(self.writes, values):
            target.put(state, sel, value)


def _writes_in_place(function: Any, sources: list[Any], target: Any) -> bool:
    """Whether a ufunc computes in the target's own type, so that it may write there directly."""
    types = [s.dtype for s in sources]
    if not any(isinstance(s, np.ndarray) for s in sources):
        return False
    try:
        result = function.resolve_dtypes((*types, None))[-1]
    except (TypeError, AttributeError):
        return False
    return bool(result == target.dtype)


class Lane(Operation):
    """An operation with effects (memory, warp exchange): ``execute(state, selection)`` does the work."""

    def execute(self, state: Any, sel: Selection) -> None:
        """Do the work for a selection that the guard has already narrowed."""
        raise TypeError(f"{type(self).__name__} has no execute")

    def bind(self, state: Any, lo: int, hi: int) -> Callable[[], Any]:
        sel = Selection(lo, hi)
        if self.guard is None:
            return partial(self.execute, state, sel)
        return partial(self.run, state, sel)

    def run(self, state: Any, sel: Selection) -> None:
        if self.guard is not None:
            keep = self.guard.get(state, sel)
            if not keep.all():
                sel = sel.subset(keep)
                if sel.n == 0:
                    return
        self.execute(state, sel)


class Warp(Lane):
    """A warp-wide operation: ``function(*sources as [warps, 32]) -> [warps, 32] results``."""

    sync = True

    def __init__(
        self, function: Callable[..., Any], destinations: Sequence[Any], sources: Sequence[Any]
    ) -> None:
        super().__init__()
        self.function = function
        self.writes = tuple(destinations)
        self.reads = tuple(sources)

    def execute(self, state: Any, sel: Selection) -> None:
        values = self.function(sel.mask, *[source.warp(state, sel) for source in self.reads])
        if len(self.writes) == 1:
            values = (values,)
        for target, value in zip(self.writes, values):
            target.put_warp(state, sel, value)


class Control(Operation):
    """An operation that ends a basic block: ``step(engine, group)`` says where the group's lanes go."""

    control = True

    def step(self, engine: Any, group: Any) -> None:
        """Move the group on, split it, or park it."""
        raise TypeError(f"{type(self).__name__} has no step")


class Nothing(Lane):
    """An instruction without effect here: hints, prefetches, cache policies."""

    def execute(self, state: Any, sel: Selection) -> None:
        """Nothing."""


def registers_of(items: Sequence[Any]) -> list[Register]:
    """The registers among operands, also below negations."""
    found = []
    for item in items:
        item = getattr(item, "item", item)
        if isinstance(item, Register):
            found.append(item)
    return found
