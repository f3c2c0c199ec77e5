"""Operands resolved once: where a value comes from and where a result goes, for any selection of lanes."""

from __future__ import annotations

from typing import Any

import numpy as np

from .selection import LANES, Selection


class Register:
    """A register read or written as a type; a wider register is read truncated and written extended."""

    __slots__ = ("bank", "dtype", "row", "step", "store")
    dynamic = False

    def __init__(self, bank: int, row: int, dtype: Any, step: int = 1, store: Any = None) -> None:
        self.bank = bank
        self.row = row
        self.dtype = dtype
        self.step = step
        self.store = store if store is not None else dtype

    def row_array(self, state: Any) -> Any:
        """All lanes, as the type of reads."""
        raw = state.banks[self.bank][self.row]
        if self.bank == 128:
            return raw
        raw = raw.view(self.dtype)
        return raw[:: self.step] if self.step > 1 else raw

    def target_array(self, state: Any) -> Any:
        """All lanes, as the type of writes (the whole register)."""
        raw = state.banks[self.bank][self.row]
        return raw if self.bank == 128 else raw.view(self.store)

    def get(self, state: Any, sel: Selection) -> Any:
        """The active lanes' values."""
        return self.row_array(state)[sel.lanes]

    def put(self, state: Any, sel: Selection, values: Any) -> None:
        """Write the active lanes."""
        self.target_array(state)[sel.lanes] = values

    def warp(self, state: Any, sel: Selection) -> Any:
        """``[warps, 32]`` values of every warp with an active lane; inactive lanes hold what their register holds."""
        full = self.row_array(state)
        return full.reshape((-1, LANES, *full.shape[1:]))[sel.warp_slice]

    def put_warp(self, state: Any, sel: Selection, values: Any) -> None:
        """Write ``[warps, 32]`` values to the active lanes."""
        full = self.target_array(state)
        if sel.whole:
            full.reshape((-1, LANES, *full.shape[1:]))[sel.lo : sel.hi] = values
        else:
            full[sel.lanes] = values[sel.mask]


class Constant:
    """An immediate or an address known at load time."""

    __slots__ = ("value",)
    dynamic = False

    def __init__(self, value: Any) -> None:
        self.value = value

    def row_array(self, state: Any) -> Any:
        """The value (the same for all lanes)."""
        return self.value

    def get(self, state: Any, sel: Selection) -> Any:
        """The value, which broadcasts."""
        return self.value

    def warp(self, state: Any, sel: Selection) -> Any:
        """``[warps, 32]`` copies."""
        return np.full((len(sel.warps), LANES), self.value)


class Special:
    """A special register; ``dynamic`` ones (clocks) are read anew each time."""

    __slots__ = ("dtype", "dynamic", "name")

    def __init__(self, name: str, dtype: Any, dynamic: bool) -> None:
        self.name = name
        self.dtype = dtype
        self.dynamic = dynamic

    def row_array(self, state: Any) -> Any:
        """All lanes."""
        return state.special(self.name).view(self.dtype)

    def get(self, state: Any, sel: Selection) -> Any:
        """The active lanes' values."""
        if self.name == "%activemask":
            return self._active(sel)
        return self.row_array(state)[sel.lanes]

    def warp(self, state: Any, sel: Selection) -> Any:
        """``[warps, 32]`` values."""
        return self.row_array(state).reshape(-1, LANES)[sel.warp_slice]

    @staticmethod
    def _active(sel: Selection) -> Any:
        bits = (sel.mask.astype(np.uint64) << np.arange(LANES, dtype=np.uint64)).sum(axis=1).astype(np.uint32)
        return bits[sel.row]


class Symbol:
    """The address of a variable whose place is known when the launch begins."""

    __slots__ = ("dtype", "name", "offset")
    dynamic = False

    def __init__(self, name: str, offset: int, dtype: Any) -> None:
        self.name = name
        self.offset = offset
        self.dtype = dtype

    def row_array(self, state: Any) -> Any:
        """The address (the same for all lanes)."""
        return np.array(state.symbol_address(self.name) + self.offset).astype(self.dtype)[()]

    def get(self, state: Any, sel: Selection) -> Any:
        """The address, which broadcasts."""
        return self.row_array(state)

    def warp(self, state: Any, sel: Selection) -> Any:
        """``[warps, 32]`` copies."""
        return np.full((len(sel.warps), LANES), self.row_array(state))


class Not:
    """A predicate read negated."""

    __slots__ = ("item",)
    dynamic = True

    def __init__(self, item: Any) -> None:
        self.item = item

    def row_array(self, state: Any) -> Any:
        """All lanes."""
        return ~self.item.row_array(state)

    def get(self, state: Any, sel: Selection) -> Any:
        """The active lanes' values."""
        return ~self.item.get(state, sel)

    def warp(self, state: Any, sel: Selection) -> Any:
        """``[warps, 32]`` values."""
        return ~self.item.warp(state, sel)


class Sink:
    """A result that nobody wants (``_``)."""

    __slots__ = ()

    def put(self, state: Any, sel: Selection, values: Any) -> None:
        """Drop it."""

    def put_warp(self, state: Any, sel: Selection, values: Any) -> None:
        """Drop it."""

    def target_array(self, state: Any) -> Any:
        """A scratch row."""
        return np.empty(state.lane_count, np.uint64)


Source = (Register, Constant, Special, Symbol, Not)
