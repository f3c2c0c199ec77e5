"""The address map: where each state space lies in generic addressing, and the allocations of global memory."""

from __future__ import annotations

import bisect
from typing import Any

import numpy as np

SHARED_WINDOW = 0x7E00_0000_0000
LOCAL_WINDOW = 0x7D00_0000_0000
PARAM_WINDOW = 0x7C00_0000_0000
WINDOW_SIZE = 0x100_0000_0000
# Constant variables and kernel arguments' arrays are ordinary allocations: their addresses are generic addresses.
WINDOWS = {"global": 0, "const": 0, "shared": SHARED_WINDOW, "local": LOCAL_WINDOW, "param": PARAM_WINDOW}

# A shared::cluster address names a block of the cluster in the bits from here on: `mapa` gives NAMED + rank. Without
# NAMED they are what tells the block's rank from one's own, as exclusive or; so 0 is one's own block. Compilers make
# such addresses, which on hardware have the rank in these bits.
CLUSTER_SHIFT = 24
NAMED = 64

FIRST_ADDRESS = 0x10_0000_0000
_GAP = 4096


def rank_named(address: Any, own: Any) -> Any:
    """The rank of the block that shared::cluster addresses name; -1 where they are one's own block's."""
    bits = address >> CLUSTER_SHIFT
    return np.where(bits > 0, np.where(bits < NAMED, own ^ bits, bits - NAMED), -1)


class Allocation:
    """A piece of global memory: the bytes of a NumPy array (or torch storage) at a device address.

    Behind them ``data`` may have a ``tail``, which fills the last word: swaps of words stand for atomics of parts.
    """

    __slots__ = ("base", "data", "name", "owner", "readonly", "size", "tail", "views")

    def __init__(
        self, base: int, data: Any, name: str, owner: Any = None, readonly: bool = False, tail: int = 0
    ) -> None:
        self.base = base
        self.data = data
        self.size = len(data) - tail
        self.tail = tail
        self.name = name
        self.owner = owner
        self.readonly = readonly
        self.views: dict[Any, Any] = {}

    def view(self, dtype: Any, count: int = 1) -> Any:
        """The bytes as elements (rows of ``count`` elements); a tail that is no whole row is left out."""
        key = (dtype, count)
        found = self.views.get(key)
        if found is None:
            size = np.dtype(dtype).itemsize * count
            found = self.data[: len(self.data) // size * size].view(dtype)
            if count > 1:
                found = found.reshape(-1, count)
            self.views[key] = found
        return found

    @property
    def end(self) -> int:
        """The address after the last byte."""
        return self.base + self.size


class GlobalMemory:
    """The allocations that a launch can reach, by address."""

    def __init__(self) -> None:
        self.allocations: list[Allocation] = []
        self.bases: list[int] = []

    def add(self, allocation: Allocation) -> None:
        """Make an allocation reachable."""
        at = bisect.bisect_left(self.bases, allocation.base)
        if at < len(self.bases) and self.bases[at] == allocation.base:
            return
        self.bases.insert(at, allocation.base)
        self.allocations.insert(at, allocation)

    def find(self, address: int) -> Allocation | None:
        """The allocation that holds an address."""
        at = bisect.bisect_right(self.bases, address) - 1
        if at < 0:
            return None
        allocation = self.allocations[at]
        return allocation if address < allocation.end else None

    def nearest(self, address: int) -> str:
        """Words for where an address lies."""
        best, distance = None, None
        for allocation in self.allocations:
            gap = allocation.base - address if address < allocation.base else address - allocation.end
            if distance is None or gap < distance:
                best, distance = allocation, gap
        if best is None or distance is None:
            return "no global memory is allocated"
        if distance < 0:
            return f"inside {best.name} ({best.size} bytes)"
        if address < best.base:
            return f"{distance} bytes before {best.name} ({best.size} bytes)"
        return f"{distance} bytes past the end of {best.name} ({best.size} bytes)"


class AddressSpace:
    """Hands out device addresses; one for the process, so that persistent arrays never overlap."""

    def __init__(self) -> None:
        self.next = FIRST_ADDRESS

    def reserve(self, size: int) -> int:
        """An address for ``size`` bytes, 4096-aligned, with an unmapped gap behind."""
        base = self.next
        self.next += (size + 2 * _GAP - 1) // _GAP * _GAP
        return base
