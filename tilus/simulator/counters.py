"""What a launch did: instructions, memory requests against their ideal, tensor-core work, barriers, divergence."""

from __future__ import annotations

import itertools
from collections import defaultdict
from typing import Any

import numpy as np

from .selection import LANES, Selection

SECTOR = 32
WAVEFRONT = 128
MAX_WARPS = 32


class Counters:
    """Collected while a launch runs; per instruction where that tells more than a sum."""

    def __init__(self, kernel: Any, memory: Any) -> None:
        self.kernel = kernel
        self.memory = memory
        count = len(kernel.instructions) + 1
        self.enter_warps = [0] * (count + 1)
        self.enter_lanes = [0] * (count + 1)
        # Per instruction: requests, actual, ideal, bytes.
        self.global_loads: dict[Any, list[int]] = defaultdict(lambda: [0, 0, 0, 0])
        self.global_stores: dict[Any, list[int]] = defaultdict(lambda: [0, 0, 0, 0])
        self.shared: dict[Any, list[int]] = defaultdict(lambda: [0, 0, 0, 0])
        self.atomics: dict[Any, list[int]] = defaultdict(lambda: [0, 0, 0])
        # By instruction, its name and the kind of its operands: executions and operations.
        self.tensor: dict[tuple[int, str, str], list[int]] = defaultdict(lambda: [0, 0])
        self.barrier_waits: dict[Any, int] = defaultdict(int)
        self.divergence: dict[Any, int] = defaultdict(int)
        self.local_bytes = 0
        self.async_bytes = 0
        self._patterns: dict[Any, tuple[int, int]] = {}
        self._sums: dict[Any, tuple[int, int]] = {}
        self._by_rows: dict[tuple[int, int, int], int] = defaultdict(int)
        self._by_warp: Any = np.zeros(MAX_WARPS, np.int64)
        self._read: dict[int, Any] = {}
        self._written: dict[int, Any] = {}

    # -- execution ---------------------------------------------------------------------------------------------

    def executed(self, start: int, end: int, sel: Selection, control: bool, blocks: int) -> None:
        """Instructions ``start`` to ``end`` (and the control one behind) ran once for some lanes."""
        stop = end + 1 if control else end
        if sel.whole:
            warps = sel.hi - sel.lo
            self._by_rows[blocks, sel.lo, sel.hi] += stop - start
        else:
            warps = len(sel.warps)
            self._by_warp += (stop - start) * np.bincount(sel.warps // blocks, minlength=MAX_WARPS)
        self.enter_warps[start] += warps
        self.enter_warps[stop] -= warps
        self.enter_lanes[start] += sel.n
        self.enter_lanes[stop] -= sel.n

    def divergent(self, instruction: Any, warps: int) -> None:
        """A branch split so many warps."""
        self.divergence[instruction.index] += warps

    def barrier(self, instruction: Any, warps: int) -> None:
        """Warps came to a barrier."""
        self.barrier_waits[instruction.index] += warps

    def tensor_core(self, instruction: Any, name: str, warps: int, op: Any) -> None:
        """A tensor-core instruction ran."""
        entry = self.tensor_entry(instruction, name, op)
        entry[0] += warps
        entry[1] += warps * op.flops

    def tensor_entry(self, instruction: Any, name: str, op: Any) -> list[int]:
        """Executions and operations of a tensor-core instruction."""
        return self.tensor[instruction.index, name, tensor_kind(op)]

    # -- memory ------------------------------------------------------------------------------------------------

    def global_access(self, access: Any, sel: Selection, address: Any, width: int, write: bool) -> None:
        """A request to global memory by each warp."""
        entry = (self.global_stores if write else self.global_loads)[access.instruction.index]
        entry[0] += len(sel.warps) if not sel.whole else sel.hi - sel.lo
        entry[3] += sel.n * width
        actual, ideal = self._by_pattern(sel, address, width, SECTOR, _sectors)
        entry[1] += actual
        entry[2] += ideal
        self._touch(self._written if write else self._read, address)

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
        actual, ideal = self._sum_over_warps(rows, 16, WAVEFRONT, _matrix_wavefronts)
        entry[1] += actual
        entry[2] += ideal

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
        if len(copies):
            self._touch(self._written if write else self._read, addresses)

    def _touch(self, maps: dict[int, Any], address: Any) -> None:
        """Mark the sectors of global addresses; no access is wider than a sector."""
        low, high = int(address.min()), int(address.max())
        allocation = self.memory.find(low)
        while allocation is not None:
            marks = maps.get(allocation.base)
            if marks is None:
                marks = maps[allocation.base] = np.zeros(allocation.size // SECTOR + 1, bool)
            if high < allocation.end:
                marks[(address - allocation.base) >> 5] = True
                return
            inside = address < allocation.end
            marks[(address[inside] - allocation.base) >> 5] = True
            address = address[~inside]
            allocation = self.memory.find(int(address.min()))

    def _by_pattern(
        self, sel: Selection, address: Any, width: int, period: int, function: Any
    ) -> tuple[int, int]:
        """Sum a function of each warp's addresses, which depends on differences and the first address's residue."""
        if sel.whole:
            return self._sum_over_warps(address.reshape(-1, LANES), width, period, function)
        if len(sel.warps) == sel.n:
            single = max(1, width // period) if period == SECTOR else 1
            return single * sel.n, single * sel.n
        actual = ideal = 0
        bounds = [0, *(np.flatnonzero(np.diff(sel.row)) + 1).tolist(), sel.n]
        for start, end in itertools.pairwise(bounds):
            part = address[start:end]
            key = ((part - part[0]).tobytes(), int(part[0]) % period, width, function)
            found = self._patterns.get(key)
            if found is None:
                found = function(part - part[0] + int(part[0]) % period, width)
                if len(self._patterns) < 100000:
                    self._patterns[key] = found
            actual += found[0]
            ideal += found[1]
        return actual, ideal

    def _sum_over_warps(self, rows: Any, width: int, period: int, function: Any) -> tuple[int, int]:
        """Sum a function of each row of addresses; loops come with the same differences again and again."""
        first = int(rows[0, 0])
        whole = ((rows - first).tobytes(), first % period, width, function)
        known = self._sums.get(whole)
        if known is not None:
            return known
        delta = rows - rows[:, :1]
        residue = rows[:, 0] % period
        same = len(rows) == 1 or bool((delta == delta[0]).all() and (residue == residue[0]).all())
        actual = ideal = 0
        for row in range(1 if same else len(rows)):
            key = (delta[row].tobytes(), int(residue[row]), width, function)
            found = self._patterns.get(key)
            if found is None:
                found = function(delta[row] + int(residue[row]), width)
                if len(self._patterns) < 100000:
                    self._patterns[key] = found
            actual += found[0]
            ideal += found[1]
        if same:
            actual, ideal = actual * len(rows), ideal * len(rows)
        if len(self._sums) < 500:
            self._sums[whole] = actual, ideal
        return actual, ideal

    # -- results -----------------------------------------------------------------------------------------------

    def per_instruction(self) -> tuple[Any, Any]:
        """How many warps and lanes executed each instruction."""
        return np.cumsum(self.enter_warps)[:-1], np.cumsum(self.enter_lanes)[:-1]

    def per_warp(self) -> dict[int, int]:
        """Instructions of each warp number, summed over blocks."""
        total = self._by_warp.copy()
        for (blocks, low, high), count in self._by_rows.items():
            for warp in range(low // blocks, (high - 1) // blocks + 1):
                total[warp] += count * (min(high, (warp + 1) * blocks) - max(low, warp * blocks))
        return {warp: int(count) for warp, count in enumerate(total) if count}

    def distinct_bytes(self) -> tuple[int, int]:
        """Bytes of the different sectors of global memory that were read, and that were written."""
        read, written = (
            SECTOR * sum(int(marks.sum()) for marks in maps.values()) for maps in (self._read, self._written)
        )
        return read, written


def tensor_kind(op: Any) -> str:
    """Operands as far as they decide how fast a tensor core is: ``f16``, ``f8 in f16``, ``int8 sparse``, ..."""
    if getattr(op, "kind", None) in ("mxf4", "mxf4nvf4"):
        kind = "f4"
    elif op.a_type.startswith("e"):
        kind = "f8"
    else:
        kind = {"s8": "int8", "u8": "int8", "s4": "int4", "u4": "int4"}.get(op.a_type, op.a_type)
    if op.d_type == "f16":
        kind += " in f16"
    return kind + " sparse" if getattr(op, "sparse", False) else kind


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


def _matrix_wavefronts(rows: Any, _: int) -> tuple[int, int]:
    """Passes of a matrix access: one for each eight rows that fall into different banks."""
    phases = rows.reshape(-1, 8)
    words = (phases[:, :, None] // 4 + np.arange(4)).reshape(len(phases), -1)
    return int(_bank_degree(words).sum()), len(phases)
