"""When the quantised matmul runs on warpgroups, and with what tiles: an estimate of cycles chooses, without a GPU."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from types import MappingProxyType
from typing import Any

import torch

from tilus.codegen import Target
from tilus.codegen.casts import cast_cost, stored_arrangement, stored_exponent
from tilus.codegen.figures import figures
from tilus.dtypes import dtype as dtype_of
from tilus.ops.prepack import UNIT_K, UNIT_N, unit_bytes
from tilus.ops.quantized_schedule import PERIOD, WeightForm
from tilus.ops.quantized_wgmma_kernel import ROW
from tilus.ops.weights import QuantizedWeight

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
# Part of the L2 cache's rate that is counted on.
CACHE_SHARE = 0.7
# Cycles until a tile's first bytes are there, and elements of the result that leave in one.
TILE_CYCLES, OUT_PER_CYCLE = 1500, 64


# Up to as many rows mma.sync keeps up with memory.
MOST_ROWS_OF_MMA = 16
# Rows of a tile; and its columns, blocks of a multiprocessor, and blocks that share rows.
HEIGHTS, BETWEEN = (16, 32, 64, 128), (48, 96)
ARRANGEMENTS = ((256, 1, 1), (128, 1, 1), (128, 2, 1), (256, 1, 2))
FEWEST_ROWS_TO_SHARE = 64


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
    cluster : int
        Blocks with columns side by side that read the rows of activations together: 1 or 2.
    """

    block_m: int = 128
    block_n: int = 256
    stages: int = 3
    pieces: int = 1
    splits: int = 1
    resident: int = 1
    cluster: int = 1

    @property
    def warps(self) -> int:
        """Warps of a block."""
        return self.block_n // UNIT_N

    def tiles(self, m: int, n: int) -> int:
        """Return how many tiles of a cluster cover a result."""
        return -(-m // self.block_m) * -(-n // (self.cluster * self.block_n))

    def workers(self, processors: int) -> int:
        """Return how many clusters run at once."""
        return max(1, processors * self.resident // self.cluster)


@lru_cache(maxsize=4096)
def wgmma_schedule(
    m: int, n: int, k: int, form: WeightForm, target: Target, processors: int, gated: bool = False
) -> WgmmaSchedule | None:
    """Return the tiles for a product of m x k by k x n that is estimated to take the fewest cycles.

    None where the target has no wgmma, where a form's stages do not fit, or where there are so few rows that mma.sync
    is as good.
    """
    if not target.has("wgmma") or form.activations.bits != 16 or m <= MOST_ROWS_OF_MMA:
        return None
    found = list(candidates(m, n, k, form, target, processors, gated))
    return min(found, key=lambda s: estimate(s, m, n, k, form, target, processors), default=None)


def candidates(
    m: int, n: int, k: int, form: WeightForm, target: Target, processors: int, gated: bool = False
) -> Iterator[WgmmaSchedule]:
    """Return the schedules to choose from."""
    units = -(-k // UNIT_K)
    for block_m in heights(m):
        for block_n, resident, cluster in ARRANGEMENTS:
            if cluster > 1 and (n <= block_n or block_m < FEWEST_ROWS_TO_SHARE):
                continue
            tile = WgmmaSchedule(block_m, block_n, resident=resident, cluster=cluster)
            tiles, workers = tile.tiles(m, n), tile.workers(processors)
            splits = 1
            while splits == 1 or (
                splits <= MOST_SPLITS and tiles * splits <= workers and units >= 2 * splits
            ):
                # Parts of equal length leave none empty.
                parts = -(-units // -(-units // splits))
                made = fitting(replace(tile, splits=parts), form, target, gated)
                if made is not None:
                    yield made
                splits *= 2


def heights(m: int) -> list[int]:
    """Return the rows of tiles to try: powers of two, and others where they leave fewer rows empty than those do."""

    def padded(height: int) -> int:
        return -(-m // height) * height

    found = [h for h in HEIGHTS if h < 2 * m or h == HEIGHTS[0]]
    return found + [
        h for h in BETWEEN if padded(h) < min(padded(other) for other in HEIGHTS if h < 2 * other)
    ]


def fitting(
    schedule: WgmmaSchedule, form: WeightForm, target: Target, gated: bool = False
) -> WgmmaSchedule | None:
    """Return the schedule with as many stages as shared memory holds, a tile going out in pieces if need be."""
    have = (target.shared_bytes + RESERVED_BYTES) // schedule.resident - RESERVED_BYTES
    best: WgmmaSchedule | None = None
    for pieces in (p for p in (1, 2, 4, 8) if schedule.block_m // p >= HEIGHTS[0]):
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
    block_m, columns = schedule.block_m, schedule.cluster * schedule.block_n
    tiles_m, tiles_n = -(-m // block_m), -(-n // columns)
    tiles = tiles_m * tiles_n * schedule.splits
    units = -(-k // UNIT_K)
    steps = -(-units // schedule.splits)
    workers = schedule.workers(processors)
    busy = min(tiles, workers)
    here = -(-busy * schedule.cluster // processors)
    products = 2 * UNIT_K * schedule.block_n * max(FEWEST_COLUMNS, block_m)
    tensor = here * products / CARD.tensor_ops("f16", asynchronous=True)
    decoding = UNIT_K * decode_instructions(form, target) + STEP_INSTRUCTIONS
    issue = here * schedule.warps / CARD.issue_per_clock * decoding
    weights, rows = schedule.warps * unit_bytes(form.dtype.bits), block_m * UNIT_K * 2
    # Blocks that run at once read each unit of the weight, and each row, from memory once.
    bandwidth = CARD.clock_bytes * processors / CARD.processors
    memory = busy * (schedule.cluster * weights / min(tiles_m, busy) + rows / min(tiles_n, busy)) / bandwidth
    cached = CACHE_SHARE * CARD.l2_bytes_per_clock / CARD.processors
    cache = here * (weights + rows / schedule.cluster) / cached
    step = max(tensor, issue, memory, cache)
    waves = -(-tiles // workers)
    out = 2 * schedule.splits * m * n * 4 / bandwidth if schedule.splits > 1 else 0.0
    return waves * (steps * step + TILE_CYCLES + here * block_m * schedule.block_n / OUT_PER_CYCLE) + out


def bulk_readable(rows: torch.Tensor) -> bool:
    """Tell whether bulk copies can read activations: they begin, and their rows follow, at multiples of 16 bytes."""
    pitch = rows.stride(0) * rows.element_size()
    return rows.stride(1) == 1 and pitch % BULK_ALIGN == 0 and rows.data_ptr() % BULK_ALIGN == 0


def wgmma_call(
    rows: torch.Tensor,
    weight: QuantizedWeight,
    schedule: WgmmaSchedule,
    target: Target,
    processors: int,
    *,
    out: torch.Tensor,
    bias: torch.Tensor | None = None,
    activation: str = "",
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Return the arguments and the options of `quantized_wgmma_kernel` for a product.

    Parameters
    ----------
    rows : Tensor of float16 or bfloat16, shape (m, k)
        Readable by bulk copies.
    weight : QuantizedWeight
    schedule : WgmmaSchedule
    target : Target
    processors : int
        Multiprocessors of the device.
    out : Tensor, shape (splits, m, columns)
        Of float32 with several parts of k, which are left as they are, else of the dtype of the weight's scales.
    bias : Tensor, shape (n,), optional
        In the order of packed columns.
    activation : str
        relu, gelu, silu or none.
    """
    k, n = weight.shape
    scale, zero = weight.scale, weight.zero
    form = WeightForm(weight.dtype, dtype_of(rows.dtype), weight.group_size, zero is not None)
    # A part's rows of bytes are those of its units along n: a bulk copy takes a tile's in one box.
    units = weight.packed.view(weight.packed.shape[0], -1, ROW)
    arguments = (
        rows, units, scale, scale if zero is None else zero, scale[0] if bias is None else bias, out, weight.alpha, n,
    )  # fmt: skip
    options = {
        **_fixed_options(schedule, form, target, k, processors),
        "c_dtype": dtype_of(out.dtype),
        "bulk_store": out.shape[2] * out.element_size() % BULK_ALIGN == 0,
    }
    if schedule.splits == 1:
        options |= {"has_bias": bias is not None, "activation": activation, "gated": weight.gated}
    return arguments, options


@lru_cache(maxsize=4096)
def _fixed_options(
    schedule: WgmmaSchedule, form: WeightForm, target: Target, k: int, processors: int
) -> Mapping[str, Any]:
    """Return the options that follow from a schedule: each call of an op asks for them."""
    return MappingProxyType(
        {
            "a_dtype": form.activations,
            "b_dtype": form.dtype,
            "group": form.rows_of_scale(k),
            "has_zero": form.has_zero,
            "exponent": stored_exponent(form.dtype, form.activations, target),
            "block_m": schedule.block_m,
            "block_n": schedule.block_n,
            "stages": schedule.stages,
            "pieces": schedule.pieces,
            "cluster": schedule.cluster,
            "clusters": schedule.workers(processors),
        }
    )
