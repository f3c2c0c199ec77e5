"""The result of a launch: hazards, counters, and tables for people."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from .errors import HazardError
from .hazards import Hazard


@dataclass(frozen=True)
class LineCounters:
    """Counters of one source line (or PTX line where there is no line table)."""

    source: tuple[str, int] | None
    ptx_line: int
    warp_instructions: int = 0
    thread_instructions: int = 0
    global_sectors: int = 0
    global_sectors_ideal: int = 0
    global_bytes: int = 0
    shared_wavefronts: int = 0
    shared_wavefronts_ideal: int = 0
    shared_bytes: int = 0


@dataclass(frozen=True)
class Report:
    """What a launch showed.

    Attributes
    ----------
    hazards : list of Hazard
        Empty for a launch with nothing to report.
    counters : mapping
        Sums over the launch; see `table` for the same by line.
    lines : list of LineCounters
        Counters by source line.
    printed : str
        What the kernel printed.
    unchecked : list of str
        Allocations too large for the shadow that finds races in global memory.
    """

    kernel: str
    grid: tuple[int, int, int]
    block: tuple[int, int, int]
    hazards: list[Hazard]
    counters: Mapping[str, Any]
    lines: list[LineCounters] = field(default_factory=list)
    printed: str = ""
    unchecked: list[str] = field(default_factory=list)

    def raise_if_hazards(self) -> None:
        """Raise `HazardError` with all hazards if there is one."""
        if self.hazards:
            raise HazardError("\n".join(str(h) for h in self.hazards))

    def table(self) -> str:
        """Totals and the lines that cost most, as text."""
        rows = [f"kernel {self.kernel}, grid {self.grid}, block {self.block}"]
        for name, value in self.counters.items():
            if isinstance(value, (int, float)):
                rows.append(f"  {name:32} {value:>16,}")
            elif value:
                for key, inner in value.items():
                    rows.append(f"  {name + '.' + str(key):48} {inner!s:>16}")
        rows.append("")
        rows.append(
            f"{'line':40} {'warp instr.':>12} {'sectors':>12} {'ideal':>12} {'wavefronts':>12} {'ideal':>12}"
        )
        for line in self.lines:
            where = (
                f"{line.source[0].rsplit('/', 1)[-1]}:{line.source[1]}"
                if line.source
                else f"PTX {line.ptx_line}"
            )
            rows.append(
                f"{where[-40:]:40} {line.warp_instructions:>12,} {line.global_sectors:>12,} "
                f"{line.global_sectors_ideal:>12,} "
                f"{line.shared_wavefronts:>12,} {line.shared_wavefronts_ideal:>12,}"
            )
        for hazard in self.hazards:
            rows.append(str(hazard))
        return "\n".join(rows)

    def roofline(self, figures: Mapping[str, float]) -> dict[str, float]:
        """Seconds that each resource needs at least, the largest first.

        Parameters
        ----------
        figures : mapping
            What the target does per second: any of ``global_bytes`` (sectors count 32 bytes each),
            ``shared_wavefronts``, ``tensor_core_flops`` and ``warp_instructions``, for the whole chip.

        Returns
        -------
        dict
            Resource to seconds; the first entry limits the kernel.
        """
        sectors = self.counters["global_load_sectors"] + self.counters["global_store_sectors"]
        work = {
            "global_bytes": 32 * sectors,
            "shared_wavefronts": self.counters["shared_wavefronts"],
            "tensor_core_flops": self.counters["tensor_core_flops"],
            "warp_instructions": self.counters["warp_instructions"],
        }
        unknown = set(figures) - set(work)
        if unknown:
            raise ValueError(f"unknown resource {sorted(unknown)[0]!r}; use some of {', '.join(work)}")
        seconds = {name: work[name] / rate for name, rate in figures.items()}
        return dict(sorted(seconds.items(), key=lambda item: -item[1]))

    def to_json(self) -> str:
        """The report as JSON."""
        return json.dumps(
            {
                "kernel": self.kernel,
                "grid": self.grid,
                "block": self.block,
                "hazards": [h.to_dict() for h in self.hazards],
                "counters": dict(self.counters),
                "lines": [vars(line) for line in self.lines],
                "printed": self.printed,
                "unchecked": self.unchecked,
            },
            default=int,
        )


def summarise(engine: Any) -> tuple[dict[str, Any], list[LineCounters]]:
    """Sum an engine's counters over the launch and by line."""
    counters = engine.counters
    warps, lanes = counters.per_instruction()
    instructions = engine.kernel.instructions
    kinds: dict[str, int] = {}
    lines: dict[Any, dict[str, Any]] = {}
    for instruction in instructions:
        executed = int(warps[instruction.index])
        if executed == 0:
            continue
        kind = instruction.opcode.split(".", 1)[0]
        kinds[kind] = kinds.get(kind, 0) + executed
        key = instruction.source if instruction.source is not None else instruction.line
        entry = lines.setdefault(key, {"source": instruction.source, "ptx_line": instruction.line})
        entry["warp_instructions"] = entry.get("warp_instructions", 0) + executed
        entry["thread_instructions"] = entry.get("thread_instructions", 0) + int(lanes[instruction.index])
        for table, prefix, actual in (
            (counters.global_loads, "global", "sectors"),
            (counters.global_stores, "global", "sectors"),
            (counters.shared, "shared", "wavefronts"),
        ):
            if instruction.index in table:
                _, sum_actual, sum_ideal, size = table[instruction.index]
                for name, value in (
                    (f"{prefix}_{actual}", sum_actual),
                    (f"{prefix}_{actual}_ideal", sum_ideal),
                    (f"{prefix}_bytes", size),
                ):
                    entry[name] = entry.get(name, 0) + value
    loads, stores, shared = (
        _column_sums(t) for t in (counters.global_loads, counters.global_stores, counters.shared)
    )
    total = {
        "warp_instructions": int(warps.sum()),
        "thread_instructions": int(lanes.sum()),
        "global_load_requests": loads[0],
        "global_load_sectors": loads[1],
        "global_load_sectors_ideal": loads[2],
        "global_store_requests": stores[0],
        "global_store_sectors": stores[1],
        "global_store_sectors_ideal": stores[2],
        "global_bytes_read": loads[3],
        "global_bytes_written": stores[3],
        "shared_requests": shared[0],
        "shared_wavefronts": shared[1],
        "shared_wavefronts_ideal": shared[2],
        "shared_bytes": shared[3],
        "local_bytes": counters.local_bytes,
        "async_bytes": counters.async_bytes,
        "tensor_core_flops": sum(v[1] for v in counters.tensor.values()),
        "barrier_waits": sum(counters.barrier_waits.values()),
        "divergent_branches": sum(counters.divergence.values()),
        "atomic_requests": sum(v[0] for v in counters.atomics.values()),
        "atomic_lanes": sum(v[1] for v in counters.atomics.values()),
        "atomic_conflicts": sum(v[2] for v in counters.atomics.values()),
        "instructions_by_kind": dict(sorted(kinds.items(), key=lambda item: -item[1])),
        "tensor_core_instructions": {name: v[0] for name, v in counters.tensor.items()},
    }
    rows = [LineCounters(**entry) for entry in lines.values()]
    rows.sort(key=lambda row: (row.source or ("", row.ptx_line), row.ptx_line))
    return total, rows


def _column_sums(table: Any) -> list[int]:
    sums = [0, 0, 0, 0]
    for row in table.values():
        for i, value in enumerate(row):
            sums[i] += value
    return sums
