"""The cost model: from what a launch does, and what a card can do, to an estimated time.

It orders candidates before anything is measured. A block takes the time of its busiest unit, and a part of the others';
it cannot be faster than its chain of dependent iterations, whose loads are started as many iterations ahead as the
pipeline is deep. Blocks share a multiprocessor as far as registers, shared memory and threads allow, and the chip's
memory; what a wave of blocks reads in common comes from device memory once.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil

from tilus.codegen.assemble import Resources
from tilus.codegen.figures import Figures
from tilus.runtime.tuning.work import Work

WARP = 32
SHARED_RESERVED = 1024
"""Bytes of shared memory that each resident block takes beside its own, from compute capability 8.0 on."""
OVERLAP = 0.15
"""Part of the less busy units' time that is not hidden behind the busiest."""
JITTER = 0.05
"""Part of a load's latency that shows although the pipeline hides it, because some loads take longer than others."""
SYNC_CLOCKS = 25.0
"""Clocks that a barrier costs a block."""
BASE_REGISTERS = 40
"""Registers of addresses, indices and constants, where the assembler has not said how many there are."""
MOST_REGISTERS = 255
"""Registers that a thread can have."""
REGISTER_UNIT = 256
"""Registers are given to a warp in such lots, and to as many warps as there are schedulers."""
SCHEDULERS = 4
SATURATING_WARPS = 8
"""Warps of a multiprocessor that keep its schedulers busy with the independent instructions that tiles have."""
SPILL_FACTOR = 2.0
L2_SHARE = 0.25
"""Part of the L2 cache in which a tensor stays while others pass through it."""


@dataclass(frozen=True)
class Estimate:
    """What the model says of a candidate.

    Attributes
    ----------
    seconds : float
        Time of the launch; infinite where no block fits on a multiprocessor.
    bound : str
        What limits it: "tensor", "issue", "shared", a unit of `LaneRates`, "latency", "memory" or "l2".
    blocks_per_processor : int
        Blocks that are resident at once.
    waves : float
        Blocks by those that run at once.
    device_bytes : float
        Bytes from and to device memory.
    parts : tuple of (str, float)
        Seconds of each resource.
    """

    seconds: float
    bound: str
    blocks_per_processor: int
    waves: float
    device_bytes: float
    parts: tuple[tuple[str, float], ...]


def blocks_per_processor(threads: int, registers: int, shared_bytes: int, figures: Figures) -> int:
    """Return how many blocks one multiprocessor holds."""
    warps = ceil(threads / WARP)
    per_warp = ceil(registers * WARP / REGISTER_UNIT) * REGISTER_UNIT
    by_registers = figures.registers // (per_warp * ceil(warps / SCHEDULERS) * SCHEDULERS)
    by_shared = figures.shared_bytes // (shared_bytes + SHARED_RESERVED)
    return max(0, min(figures.blocks, figures.threads // (warps * WARP), by_registers, by_shared))


def device_bytes(work: Work, figures: Figures) -> float:
    """Return the bytes that go through device memory: each tensor once, and again what the L2 cache cannot keep."""
    total = 0.0
    everything = sum(t.footprint for t in work.traffic)
    for t in work.traffic:
        once = min(t.footprint, t.read)
        if everything <= figures.l2_bytes or t.footprint <= L2_SHARE * figures.l2_bytes:
            total += once
        else:
            total += max(once, t.distinct * t.read)
        total += min(t.written, t.footprint) if work.blocks else 0.0
    return total


def estimate(work: Work, figures: Figures, resources: Resources | None = None) -> Estimate:
    """Estimate the time of a launch.

    Parameters
    ----------
    work : Work
        What it does.
    figures : Figures
        The card.
    resources : Resources, optional
        What the assembler says of the candidate; without, registers are estimated from its tiles.
    """
    needed = BASE_REGISTERS + work.tile_registers
    # The assembler gives no thread more than its block can have; groups of warps share them out later.
    most = min(MOST_REGISTERS, figures.registers // (ceil(work.threads / WARP) * WARP))
    registers = resources.registers if resources is not None else min(most, needed)
    static = resources.shared_static if resources is not None else 0
    resident = blocks_per_processor(work.threads, registers, work.shared_bytes + static, figures)
    if not work.blocks:
        return Estimate(0.0, "nothing", resident, 0.0, 0.0, ())
    if not resident:
        return Estimate(float("inf"), "registers or shared memory", 0, float("inf"), 0.0, ())
    on_busiest = ceil(work.blocks / figures.processors)
    together = min(resident, on_busiest)
    clocks = _unit_clocks(work, figures, together * work.threads // WARP)
    spilled = (
        resources.spill_loads + resources.spill_stores if resources is not None else needed - MOST_REGISTERS
    )
    busiest = max(clocks, key=lambda name: clocks[name])
    busy = (1 - OVERLAP) * clocks[busiest] + OVERLAP * sum(clocks.values())
    if spilled > 0:
        busy *= SPILL_FACTOR
    latency = float(figures.global_latency)
    if work.depth:
        path = work.trips * max(busy / work.trips, latency / work.depth)
    else:
        path = busy + work.trips * latency
    path += work.syncs * SYNC_CLOCKS
    waits = JITTER * work.trips * latency / max(1, work.depth) / together
    throughput = on_busiest * (busy + waits) + latency
    rounds = ceil(on_busiest / resident)
    # A block's way to its first bytes and its last stores is hidden where others are resident.
    chain = rounds * path + 2 * latency * (rounds if resident == 1 else 1)
    processor = max(throughput, chain) / figures.clock

    moved = work.bytes_read + work.bytes_written
    through = device_bytes(work, figures)
    active = min(work.blocks, resident * figures.processors)
    ahead = work.bytes_read / work.blocks / work.trips * max(1, work.depth)
    flight = active * ahead / (latency / figures.clock)
    rate = figures.global_bandwidth * figures.global_share
    # Where few bytes are on their way, latency limits the rate; writes are not waited for.
    reached = min(rate, flight) if work.bytes_read else rate
    parts = {
        busiest: throughput / figures.clock,
        "latency": chain / figures.clock,
        "memory": through / reached,
        "l2": moved / (figures.l2_bytes_per_clock * figures.clock),
    }
    bound = max(parts, key=lambda name: parts[name])
    whole = max(processor, parts["memory"], parts["l2"])
    rest = sum(sorted((processor, parts["memory"], parts["l2"]))[:2])
    seconds = figures.launch_seconds + whole + OVERLAP * rest
    waves = work.blocks / (resident * figures.processors)
    return Estimate(seconds, bound, resident, waves, through, tuple(parts.items()))


def _unit_clocks(work: Work, figures: Figures, warps: int) -> dict[str, float]:
    """Return the clocks for which one block occupies each unit of its multiprocessor."""
    clocks: dict[str, float] = {"tensor": 0.0}
    for dtype, asynchronous, amount in work.tensor_ops:
        rate = figures.tensor_ops(dtype, asynchronous)
        clocks["tensor"] += amount / rate if rate else float("inf")
    # Each scheduler has a tensor core, which only its own warps use.
    clocks["tensor"] /= min(1.0, warps / SCHEDULERS)
    clocks["issue"] = work.issue / figures.issue_per_clock / min(1.0, warps / SATURATING_WARPS)
    clocks["shared"] = work.shared_bytes_moved / figures.shared_bytes_per_clock
    for unit, amount in work.lanes:
        clocks[unit] = amount / getattr(figures.lanes, unit)
    return clocks
