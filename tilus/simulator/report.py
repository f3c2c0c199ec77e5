"""The result of a launch: hazards, counters, estimates, and tables for people."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from .errors import HazardError
from .hazards import Hazard
from .roofline import seconds_by_resource


@dataclass(frozen=True)
class LineCounters:
    """Counters of one source line (of a PTX line where there is no line table), or of one instruction.

    ``source`` is the (file, line) of the line table, ``instruction`` the text of a single instruction, else empty.
    """

    source: tuple[str, int] | None
    ptx_line: int
    instruction: str = ""
    warp_instructions: int = 0
    thread_instructions: int = 0
    global_requests: int = 0
    global_sectors: int = 0
    global_sectors_ideal: int = 0
    global_bytes: int = 0
    shared_requests: int = 0
    shared_wavefronts: int = 0
    shared_wavefronts_ideal: int = 0
    shared_bytes: int = 0
    tensor_core_instructions: int = 0
    tensor_core_flops: int = 0
    barrier_waits: int = 0
    divergent_branches: int = 0
    atomic_requests: int = 0
    atomic_conflicts: int = 0

    @property
    def global_efficiency(self) -> float:
        """Fewest sectors that could do over those that were touched; 1 where none were."""
        return self.global_sectors_ideal / self.global_sectors if self.global_sectors else 1.0

    @property
    def shared_efficiency(self) -> float:
        """Fewest wavefronts that could do over those that were taken; 1 where none were."""
        return self.shared_wavefronts_ideal / self.shared_wavefronts if self.shared_wavefronts else 1.0

    @property
    def lane_efficiency(self) -> float:
        """Active lanes over all lanes of the warps that executed."""
        return self.thread_instructions / (32 * self.warp_instructions) if self.warp_instructions else 1.0


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
    instructions : list of LineCounters
        Counters of each PTX instruction that was executed.
    """

    kernel: str
    grid: tuple[int, int, int]
    block: tuple[int, int, int]
    hazards: list[Hazard]
    counters: Mapping[str, Any]
    lines: list[LineCounters] = field(default_factory=list)
    printed: str = ""
    unchecked: list[str] = field(default_factory=list)
    instructions: list[LineCounters] = field(default_factory=list)

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
            What the whole chip does per second, any of ``dram_bytes`` (each sector that is read or written counts
            once), ``global_bytes`` (32 bytes for every sector of every request), ``shared_wavefronts``,
            ``warp_instructions``, ``special_functions`` (of a warp) and ``tensor_core_flops``; the latter also for
            kinds of operands, as ``tensor_core_flops.f16``. With ``sm_count`` a grid that does not fill all
            multiprocessors evenly is charged for the fullest.

        Returns
        -------
        dict
            Resource to seconds; the first entry limits the kernel.
        """
        blocks = self.grid[0] * self.grid[1] * self.grid[2]
        return seconds_by_resource(self.counters, figures, blocks)

    def to_json(self) -> str:
        """The report as JSON."""
        return json.dumps(
            {
                "kernel": self.kernel,
                "grid": self.grid,
                "block": self.block,
                "hazards": [h.to_dict() for h in self.hazards],
                "counters": dict(self.counters),
                "lines": [asdict(line) for line in self.lines],
                "instructions": [asdict(line) for line in self.instructions],
                "printed": self.printed,
                "unchecked": self.unchecked,
            },
            default=int,
        )


def summarise(engine: Any) -> tuple[dict[str, Any], list[LineCounters], list[LineCounters]]:
    """Sum an engine's counters over the launch, by line and by instruction."""
    counters = engine.counters
    warps, lanes = counters.per_instruction()
    kinds: dict[str, int] = {}
    lines: dict[Any, dict[str, Any]] = {}
    single: list[LineCounters] = []
    details = _details(counters)
    for instruction in engine.kernel.instructions:
        executed = int(warps[instruction.index])
        if executed == 0:
            continue
        kind = instruction.opcode.split(".", 1)[0]
        kinds[kind] = kinds.get(kind, 0) + executed
        found = {
            "warp_instructions": executed,
            "thread_instructions": int(lanes[instruction.index]),
            **details.get(instruction.index, {}),
        }
        single.append(LineCounters(instruction.source, instruction.line, instruction.text, **found))
        key = instruction.source if instruction.source is not None else instruction.line
        entry = lines.setdefault(key, {"source": instruction.source, "ptx_line": instruction.line})
        for name, value in found.items():
            entry[name] = entry.get(name, 0) + value
    rows = [LineCounters(**entry) for entry in lines.values()]
    rows.sort(key=lambda row: (row.source or ("", row.ptx_line), row.ptx_line))
    total = _totals(counters, int(warps.sum()), int(lanes.sum()))
    total["instructions_by_kind"] = dict(sorted(kinds.items(), key=lambda item: -item[1]))
    return total, rows, single


def _details(counters: Any) -> dict[int, dict[str, int]]:
    """Everything that is counted by instruction, by `LineCounters`' names."""
    details: dict[int, dict[str, int]] = {}

    def add(index: int, names: str, values: Any) -> None:
        entry = details.setdefault(index, {})
        for name, value in zip(names.split(), values):
            entry[name] = entry.get(name, 0) + int(value)

    for table, names in (
        (counters.global_loads, "global_requests global_sectors global_sectors_ideal global_bytes"),
        (counters.global_stores, "global_requests global_sectors global_sectors_ideal global_bytes"),
        (counters.shared, "shared_requests shared_wavefronts shared_wavefronts_ideal shared_bytes"),
    ):
        for index, values in table.items():
            add(index, names, values)
    for index, (requests, _, conflicts) in counters.atomics.items():
        add(index, "atomic_requests atomic_conflicts", (requests, conflicts))
    for (index, _, _), values in counters.tensor.items():
        add(index, "tensor_core_instructions tensor_core_flops", values)
    for index, value in counters.barrier_waits.items():
        add(index, "barrier_waits", (value,))
    for index, value in counters.divergence.items():
        add(index, "divergent_branches", (value,))
    return details


def _totals(counters: Any, warp_instructions: int, thread_instructions: int) -> dict[str, Any]:
    loads, stores, shared = (
        _column_sums(t) for t in (counters.global_loads, counters.global_stores, counters.shared)
    )
    read, written = counters.distinct_bytes()
    by_name: dict[str, int] = {}
    flops_by_kind: dict[str, int] = {}
    for (_, name, kind), (count, flops) in counters.tensor.items():
        by_name[name] = by_name.get(name, 0) + count
        flops_by_kind[kind] = flops_by_kind.get(kind, 0) + flops
    return {
        "warp_instructions": warp_instructions,
        "thread_instructions": thread_instructions,
        "global_load_requests": loads[0],
        "global_load_sectors": loads[1],
        "global_load_sectors_ideal": loads[2],
        "global_store_requests": stores[0],
        "global_store_sectors": stores[1],
        "global_store_sectors_ideal": stores[2],
        "global_bytes_read": loads[3],
        "global_bytes_written": stores[3],
        "global_distinct_bytes_read": read,
        "global_distinct_bytes_written": written,
        "shared_requests": shared[0],
        "shared_wavefronts": shared[1],
        "shared_wavefronts_ideal": shared[2],
        "shared_bytes": shared[3],
        "local_bytes": counters.local_bytes,
        "async_bytes": counters.async_bytes,
        "tensor_core_flops": sum(flops_by_kind.values()),
        "barrier_waits": sum(counters.barrier_waits.values()),
        "divergent_branches": sum(counters.divergence.values()),
        "atomic_requests": sum(v[0] for v in counters.atomics.values()),
        "atomic_lanes": sum(v[1] for v in counters.atomics.values()),
        "atomic_conflicts": sum(v[2] for v in counters.atomics.values()),
        "instructions_by_warp": counters.per_warp(),
        "bytes_by_space": {
            "global": loads[3] + stores[3],
            "shared": shared[3] + counters.async_bytes,
            "local": counters.local_bytes,
        },
        "tensor_core_instructions": by_name,
        "tensor_core_flops_by_kind": flops_by_kind,
    }


def _column_sums(table: Any) -> list[int]:
    sums = [0, 0, 0, 0]
    for row in table.values():
        for i, value in enumerate(row):
            sums[i] += value
    return sums
