"""What a launch did: instructions, memory requests against their ideal, tensor-core work, barriers, divergence."""

from __future__ import annotations

import itertools
from collections import defaultdict
from typing import Any

import numpy as np

from .selection import LANES, Selection

SECTOR = 32
WAVEFRONT = 128


class Counters:
    """Collected while a launch runs; per instruction where that tells more than a sum."""

    def __init__(self, kernel: Any) -> None:
        self.kernel = kernel
        count = len(kernel.instructions) + 1
        self.enter_warps = [0] * (count + 1)
        self.enter_lanes = [0] * (count + 1)
        # Per instruction: requests, actual, ideal, bytes.
        self.global_loads: dict[Any, list[int]] = defaultdict(lambda: [0, 0, 0, 0])
        self.global_stores: dict[Any, list[int]] = defaultdict(lambda: [0, 0, 0, 0])
        self.shared: dict[Any, list[int]] = defaultdict(lambda: [0, 0, 0, 0])
        self.atomics: dict[Any, list[int]] = defaultdict(lambda: [0, 0, 0])
        self.tensor: dict[str, list[int]] = defaultdict(lambda: [0, 0])
        self.barrier_waits: dict[Any, int] = defaultdict(int)
        self.divergence: dict[Any, int] = defaultdict(int)
        self.local_bytes = 0
        self.async_bytes = 0
        self._patterns: dict[Any, tuple[int, int]] = {}

    # -- execution ---------------------------------------------------------------------------------------------

    def executed(self, start: int, end: int, warps: int, lanes: int, control: bool) -> None:
        """Instructions ``start`` to ``end`` (and the control one behind) ran once for some warps."""
        stop = end + 1 if control else end
        self.enter_warps[start] += warps
        self.enter_warps[stop] -= warps
        self.enter_lanes[start] += lanes
        self.enter_lanes[stop] -= lanes

    def divergent(self, instruction: Any, warps: int) -> None:
        """A branch split so many warps."""
        self.divergence[instruction.index] += warps

    def barrier(self, instruction: Any, warps: int) -> None:
        """Warps came to a barrier."""
        self.barrier_waits[instruction.index] += warps

    def tensor_core(self, name: str, warps: int, flops: int) -> None:
        """A tensor-core instruction ran."""
        entry = self.tensor[name]
        entry[0] += warps
        entry[1] += warps * flops

    # -- memory ------------------------------------------------------------------------------------------------

    def global_access(self, access: Any, sel: Selection, address: Any, width: int, write: bool) -> None:
        """A request to global memory by each warp."""
        entry = (self.global_stores if write else self.global_loads)[access.instruction.index]
        entry[0] += len(sel.warps) if not sel.whole else sel.hi - sel.lo
        entry[3] += sel.n * width
        actual, ideal = self._by_pattern(sel, address, width, SECTOR, _sectors)
        entry[1] += actual
        entry[2] += ideal

    def shared_access(self, access: Any, sel: Selection, address: Any, width: int) -> None:
        """A request to shared memory by each warp."""
        entry = self.shared[access.instruction.index]
        entry[0] += len(sel.warps) if not sel.whole else sel.hi - sel.lo
        entry[3] += sel.n * width
        actual, ideal = self._by_pattern(sel, address, width, WAVEFRONT, _wavefronts)
        entry[1] += actual
        entry[2] += ideal

    def matrix_rows(self, instruction: Any, rows: Any) -> None:
        """``ldmatrix`` and ``stmatrix``: each warp's row addresses; eight rows of 16 bytes go in one pass."""
        entry = self.shared[instruction.index]
        entry[0] += len(rows)
        entry[3] += rows.size * 16
        delta = rows - rows[:, :1]
        residue = rows[:, 0] % WAVEFRONT
        same = len(rows) == 1 or bool((delta == delta[0]).all() and (residue == residue[0]).all())
        for row in range(1 if same else len(rows)):
            key = (delta[row].tobytes(), int(residue[row]), 16, -1)
            found = self._patterns.get(key)
            if found is None:
                found = self._patterns[key] = _matrix_wavefronts(delta[row] + int(residue[row]))
            entry[1] += found[0] * (len(rows) if same else 1)
            entry[2] += found[1] * (len(rows) if same else 1)

    def bulk_shared(self, instruction: Any, size: int) -> None:
        """Bytes that an asynchronous copy moved."""
        self.async_bytes += size

    def bulk_global(self, instruction: Any, copies: Any, size: int, addresses: Any, write: bool) -> None:
        """A bulk copy's traffic with global memory; ``copies`` says to which copy each address belongs."""
        entry = (self.global_stores if write else self.global_loads)[instruction.index]
        entry[0] += int(copies[-1]) + 1 if len(copies) else 0
        sectors = len(np.unique((copies << 44) | (addresses // SECTOR)))
        entry[1] += sectors
        entry[2] += min(sectors, -(-size // SECTOR))
        entry[3] += size

    def _by_pattern(
        self, sel: Selection, address: Any, width: int, period: int, function: Any
    ) -> tuple[int, int]:
        """Sum a function of each warp's addresses, which depends on differences and the first address's residue."""
        if sel.whole:
            rows = address.reshape(-1, LANES)
            delta = rows - rows[:, :1]
            residue = rows[:, 0] % period
            patterns = self._patterns
            if len(rows) == 1 or ((delta == delta[0]).all() and (residue == residue[0]).all()):
                key = (delta[0].tobytes(), int(residue[0]), width, period)
                found = patterns.get(key)
                if found is None:
                    found = patterns[key] = function(delta[0] + int(residue[0]), width)
                return found[0] * len(rows), found[1] * len(rows)
            actual = ideal = 0
            for row in range(len(rows)):
                key = (delta[row].tobytes(), int(residue[row]), width, period)
                found = patterns.get(key)
                if found is None:
                    found = function(delta[row] + int(residue[row]), width)
                    if len(patterns) < 100000:
                        patterns[key] = found
                actual += found[0]
                ideal += found[1]
            return actual, ideal
        if len(sel.warps) == sel.n:
            single = max(1, width // period) if period == SECTOR else 1
            return single * sel.n, single * sel.n
        actual = ideal = 0
        bounds = [0, *(np.flatnonzero(np.diff(sel.row)) + 1).tolist(), sel.n]
        for start, end in itertools.pairwise(bounds):
            part = address[start:end]
            key = ((part - part[0]).tobytes(), int(part[0]) % period, width, period)
            found = self._patterns.get(key)
            if found is None:
                found = function(part - part[0] + int(part[0]) % period, width)
                if len(self._patterns) < 100000:
                    self._patterns[key] = found
            actual += found[0]
            ideal += found[1]
        return actual, ideal

    # -- results -----------------------------------------------------------------------------------------------

    def per_instruction(self) -> tuple[Any, Any]:
        """How many warps and lanes executed each instruction."""
        return np.cumsum(self.enter_warps)[:-1], np.cumsum(self.enter_lanes)[:-1]


def _sectors(addresses: Any, width: int) -> tuple[int, int]:
    """Sectors that a warp touches, and the fewest that could hold its distinct bytes."""
    starts = np.unique(addresses)
    if width > SECTOR:
        starts = np.unique((starts[:, None] + np.arange(0, width, SECTOR)).ravel())
    actual = len(np.unique(starts // SECTOR))
    return actual, min(actual, -(-len(np.unique(addresses)) * width // SECTOR))


def _bank_degree(words: Any) -> Any:
    """For each row of word addresses: the most distinct words that fall into one bank."""
    degree = []
    for row in words:
        distinct = np.unique(row)
        degree.append(int(np.bincount(distinct % 32, minlength=32).max()))
    return np.array(degree)


def _wavefronts(addresses: Any, width: int) -> tuple[int, int]:
    """Passes that a warp's shared access takes; 8- and 16-byte accesses go by half and quarter warps."""
    distinct = np.unique(addresses)
    ideal = max(1, -(-len(distinct) * max(width, 1) // WAVEFRONT))
    if len(distinct) == 1:
        return 1, 1
    lanes = LANES if width <= 4 else LANES * 4 // width
    total = 0
    for start in range(0, len(addresses), lanes):
        part = addresses[start : start + lanes]
        words = part // 4 if width <= 4 else (part[:, None] // 4 + np.arange(width // 4)).ravel()
        total += int(_bank_degree([words])[0])
    return max(total, ideal), ideal


def _matrix_wavefronts(rows: Any) -> tuple[int, int]:
    """Passes of a matrix access: one for each eight rows that fall into different banks."""
    phases = rows.reshape(-1, 8)
    words = (phases[:, :, None] // 4 + np.arange(4)).reshape(len(phases), -1)
    return int(_bank_degree(words).sum()), len(phases)
