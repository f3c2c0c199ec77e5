"""When the quantised matmul runs on warpgroups, and with what tiles: an estimate of cycles chooses, without a GPU."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace

import torch

from tilus.codegen import Target
from tilus.codegen.casts import cast_cost, stored_arrangement, stored_exponent
from tilus.codegen.figures import figures
from tilus.ops.prepack import UNIT_K, UNIT_N, unit_bytes
from tilus.ops.quantized_schedule import PERIOD, WeightForm
from tilus.ops.quantized_wgmma_kernel import ROW

BULK_ALIGN = 16
FEWEST_STAGES, ENOUGH_STAGES, MOST_STAGES = 2, 3, 8
MOST_SPLITS = 8
# Of a stage's two barriers.
BARRIER_BYTES = 16
# What the runtime keeps of each resident block's shared memory (CUDA programming guide, compute capability 9.0).
RESERVED_BYTES = 1024

# The card of the estimate; shipped Hopper cards differ in memory bandwidth alone.
CARD = figures("H200")
# An instruction of few columns takes as long as one of this many.
FEWEST_COLUMNS = 32
# Instructions of a warp in a step of k besides the decoding: barriers, descriptors, loads and copies.
STEP_INSTRUCTIONS = 120
# Cycles until a tile's first bytes are there, and elements of the result that leave in one.
TILE_CYCLES, OUT_PER_CYCLE = 1500, 64


@dataclass(frozen=True)
class WgmmaSchedule:
    """The tiles of `tilus.ops.quantized_wgmma_kernel`.

    Attributes
    ----------
    block_m, block_n : int
        Rows of activations and columns of the weight of a tile; each 128 columns have a warpgroup.
    stages : int
        Units of k that are under way at once.
    pieces : int
        Parts in which a tile goes out through shared memory.
    splits : int
        Parts of k that are tiles of their own.
    resident : int
        Blocks of a multiprocessor.
    """

    block_m: int = 128
    block_n: int = 256
    stages: int = 3
    pieces: int = 1
    splits: int = 1
    resident: int = 1

    @property
    def warps(self) -> int:
        """Warps of a block."""
        return self.block_n // UNIT_N

    def options(self, processors: int, n_out: int, itemsize: int) -> dict[str, object]:
        """Return what the kernel takes, for a device and the extent and the element's bytes of its result."""
        chosen = asdict(self)
        del chosen["splits"], chosen["resident"]
        whole_rows = n_out * itemsize % BULK_ALIGN == 0
        return {**chosen, "blocks": processors * self.resident, "bulk_store": whole_rows}


def wgmma_schedule(
    m: int, n: int, k: int, form: WeightForm, target: Target, processors: int, gated: bool = False
) -> WgmmaSchedule | None:
    """Return the tiles for a product of m x k by k x n that is estimated to take the fewest cycles.

    None where the target has no wgmma, or where a form's stages do not fit.
    """
    if not target.has("wgmma") or form.activations.bits != 16:
        return None
    found = list(candidates(m, n, k, form, target, processors, gated))
    return min(found, key=lambda s: estimate(s, m, n, k, form, target, processors), default=None)


def candidates(
    m: int, n: int, k: int, form: WeightForm, target: Target, processors: int, gated: bool = False
) -> Iterator[WgmmaSchedule]:
    """Return the schedules to choose from."""
    units = -(-k // UNIT_K)
    heights = [h for h in (16, 32, 64, 128) if h < 2 * m or h == 16]
    for block_m in heights:
        for block_n in (256, 128):
            tiles = -(-m // block_m) * -(-n // block_n)
            for resident in (1, 2) if block_n == 128 else (1,):
                splits = 1
                while splits == 1 or (splits <= MOST_SPLITS and tiles * splits <= processors * resident):
                    # Parts of equal length leave none empty.
                    parts = -(-units // -(-units // splits))
                    made = fitting(
                        WgmmaSchedule(block_m, block_n, splits=parts, resident=resident), form, target, gated
                    )
                    if made is not None and (splits == 1 or units >= 2 * splits):
                        yield made
                    splits *= 2


def fitting(
    schedule: WgmmaSchedule, form: WeightForm, target: Target, gated: bool = False
) -> WgmmaSchedule | None:
    """Return the schedule with as many stages as shared memory holds, a tile going out in pieces if need be."""
    have = (target.shared_bytes + RESERVED_BYTES) // schedule.resident - RESERVED_BYTES
    best: WgmmaSchedule | None = None
    for pieces in (1, 2, 4):
        left = have - out_bytes(replace(schedule, pieces=pieces), gated)
        stages = min(MOST_STAGES, left // (stage_bytes(schedule, form) + BARRIER_BYTES))
        if stages >= FEWEST_STAGES and (best is None or stages > best.stages):
            best = replace(schedule, stages=stages, pieces=pieces)
        if stages >= ENOUGH_STAGES:
            break
    return best


def stage_bytes(schedule: WgmmaSchedule, form: WeightForm) -> int:
    """Return the shared memory of one unit of k."""
    groups = max(1, UNIT_K // form.group)
    scales = groups * schedule.block_n * 2 * (2 if form.has_zero else 1)
    return schedule.block_m * UNIT_K * 2 + schedule.warps * unit_bytes(form.dtype.bits) + scales


def out_bytes(schedule: WgmmaSchedule, gated: bool) -> int:
    """Return the shared memory through which the result goes, and what is lost between buffers."""
    itemsize = 4 if schedule.splits > 1 else 2
    columns = schedule.block_n // 2 if gated and schedule.splits == 1 else schedule.block_n
    return schedule.block_m // schedule.pieces * columns * itemsize + PERIOD


def decode_instructions(form: WeightForm, target: Target) -> float:
    """Return a thread's instructions for one weight: the cast, the zero point and the scale."""
    source, dest = form.dtype, form.activations
    order = stored_arrangement(source, dest)
    found = cast_cost(target, source, dest, order, scaled=stored_exponent(source, dest, target) != 0)
    # Without a packed cast each element takes the general way.
    cast = 8.0 if found is None else found
    return cast + 0.5 + (0.5 if form.has_zero else 0.0)


def estimate(
    schedule: WgmmaSchedule, m: int, n: int, k: int, form: WeightForm, target: Target, processors: int
) -> float:
    """Return the cycles that a product takes by the limits of tensor cores, issue, memory and cache."""
    block_m, block_n = schedule.block_m, schedule.block_n
    tiles_m, tiles_n = -(-m // block_m), -(-n // block_n)
    tiles = tiles_m * tiles_n * schedule.splits
    steps = -(-(-(-k // UNIT_K)) // schedule.splits)
    busy = min(tiles, processors * schedule.resident)
    here = -(-busy // processors)
    tensor = here * 2 * UNIT_K * block_n * max(FEWEST_COLUMNS, block_m) / CARD.tensor_ops("f16", asynchronous=True)
    issue = here * (schedule.warps // CARD.issue_per_clock) * (UNIT_K * decode_instructions(form, target) + STEP_INSTRUCTIONS)
    weights, rows = schedule.warps * unit_bytes(form.dtype.bits), block_m * UNIT_K * 2
    # Blocks that run at once read each unit of the weight, and each row, from memory once.
    bandwidth = CARD.clock_bytes * processors / CARD.processors
    memory = (busy * weights / min(tiles_m, busy) + busy * rows / min(tiles_n, busy)) / bandwidth
    cache = here * (weights + rows) * CARD.processors / CARD.l2_bytes_per_clock
    step = max(tensor, issue, memory, cache)
    waves = -(-tiles // (processors * schedule.resident))
    out = 2 * schedule.splits * m * n * 4 / bandwidth if schedule.splits > 1 else 0.0
    return waves * (steps * step + TILE_CYCLES + here * block_m * block_n / OUT_PER_CYCLE) + out


def bulk_readable(rows: torch.Tensor) -> bool:
    """Tell whether bulk copies can read activations: they begin, and their rows follow, at multiples of 16 bytes."""
    pitch = rows.stride(0) * rows.element_size()
    return rows.stride(1) == 1 and pitch % BULK_ALIGN == 0 and rows.data_ptr() % BULK_ALIGN == 0


def as_rows(packed: torch.Tensor) -> torch.Tensor:
    """Return packed units, those of each 128 elements of k, as rows of bytes that a bulk copy takes in one box."""
    return packed.view(packed.shape[0], -1, ROW)
