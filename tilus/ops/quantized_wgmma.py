"""When the quantised matmul runs on warpgroups, and with what tiles: an estimate of cycles chooses, without a GPU."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import lru_cache
from math import ceil, prod

from tilus.codegen import Target
from tilus.codegen.figures import figures
from tilus.ops.prepack import UNIT_K, UNIT_N, unit_bytes
from tilus.ops.quantized_tiles import PERIOD, WeightForm, packed_cost
from tilus.ops.quantized_wgmma_sums_kernel import FEWEST_FACTORS

FEWEST_STAGES, ENOUGH_STAGES, MOST_STAGES = 2, 3, 8
# Rows of tiles that are shared: registers are left for adding up; and rows of these that are added up at once.
MOST_STREAMED, MOST_SUMMED = 64, 32
# Shares of a tile, and units of k of a share.
MOST_SHARES, FEWEST_UNITS = 8, 2
# Of a stage's two barriers.
BARRIER_BYTES = 16
# What the runtime keeps of each resident block's shared memory (CUDA programming guide, compute capability 9.0).
RESERVED_BYTES = 1024

# The card of the estimate; shipped Hopper cards differ in memory bandwidth alone.
CARD = figures("H200")
# An instruction of few columns takes as long as one of this many.
FEWEST_COLUMNS = 32
# And as many columns' time passes between two.
BETWEEN_PRODUCTS = 4
# Instructions for a weight by zero points of long groups, which go with the cast.
LONG_ZERO = 0.15
# Instructions for a weight without a packed cast.
GENERAL_CAST = 16.0
# Instructions of a warp in a step of k besides the decoding: barriers, descriptors, loads and copies.
STEP_INSTRUCTIONS = 120
# Of these for each block of a cluster.
ARRIVAL = 10
# Part of the L2 cache's rate that is counted on.
CACHE_SHARE = 0.7
# Cycles until a tile's first bytes are there, and elements of the result that leave in one.
TILE_CYCLES, OUT_PER_CYCLE = 1500, 64


# Up to as many rows mma.sync keeps up with memory.
MOST_ROWS_OF_MMA = 16
# Rows of a tile; and its columns, blocks of a multiprocessor, and blocks that share weights, and rows.
HEIGHTS, BETWEEN = (16, 32, 64, 128), (48, 96)
ARRANGEMENTS = (
    (256, 1, 1, 1), (128, 1, 1, 1), (128, 2, 1, 1), (256, 1, 1, 2), (256, 1, 2, 1), (256, 1, 2, 2), (128, 1, 1, 2),
    (128, 1, 1, 4), (128, 1, 2, 2), (256, 1, 4, 1),
)  # fmt: skip
FEWEST_ROWS_TO_SHARE = 32
# Multiprocessors come in groups of this many or some more, of which a cluster is in one.
TOGETHER = 16


@dataclass(frozen=True)
class WgmmaSchedule:
    """The tiles of the kernels of `tilus.ops.quantized_wgmma_kernel` and `tilus.ops.quantized_wgmma_sums_kernel`.

    Attributes
    ----------
    block_m, block_n : int
        Rows of activations and columns of the weight of a tile; each 128 columns have a warpgroup.
    stages : int
        Units of k that are under way at once.
    pieces : int
        Parts in which a tile goes out through shared memory.
    stream : bool
        Whether the last tiles are cut along k into a share for each cluster.
    resident : int
        Blocks of a multiprocessor.
    cluster_m, cluster_n : int
        Blocks that work together: those side by side share rows of activations, those one below the other the weight.
    """

    block_m: int = 128
    block_n: int = 256
    stages: int = 3
    pieces: int = 1
    stream: bool = False
    resident: int = 1
    cluster_m: int = 1
    cluster_n: int = 1

    @property
    def splits(self) -> int:
        """Parts of k whose sums the kernel leaves: none, it adds them up."""
        return 1

    @property
    def warps(self) -> int:
        """Warps of a block."""
        return self.block_n // UNIT_N

    @property
    def cluster(self) -> int:
        """Blocks of a cluster."""
        return self.cluster_m * self.cluster_n

    def grid(self, m: int, n: int) -> tuple[int, int]:
        """Return how many tiles of a cluster, below and beside each other, cover a result."""
        return -(-m // (self.cluster_m * self.block_m)), -(-n // (self.cluster_n * self.block_n))

    def tiles(self, m: int, n: int) -> int:
        """Return how many tiles of a cluster cover a result."""
        return prod(self.grid(m, n))

    def workers(self, processors: int) -> int:
        """Return how many clusters run at once: larger ones may leave some multiprocessors of each part of the chip."""
        if self.cluster > 2 and processors > TOGETHER:
            processors -= processors % TOGETHER
        return max(1, processors * self.resident // self.cluster)

    def division(self, m: int, n: int, k: int, processors: int) -> Division:
        """Return how a product's tiles are divided among clusters."""
        tiles, workers = self.tiles(m, n), self.workers(processors)
        if not self.stream or tiles % workers == 0:
            return Division(0, min(tiles, workers))
        if tiles > workers:
            # Each share has a whole tile's work, or more: few clusters then share one tile.
            return Division(workers + tiles % workers, workers)
        shares = max(tiles * -(-k // UNIT_K) // FEWEST_UNITS, tiles)
        return Division(tiles, min(workers, MOST_SHARES * tiles, shares))


@dataclass(frozen=True)
class Division:
    """How many of the last tiles are cut along k into a share for each cluster, and how many clusters there are."""

    shared_tiles: int
    clusters: int


@lru_cache(maxsize=4096)
def wgmma_schedule(
    m: int,
    n: int,
    k: int,
    form: WeightForm,
    target: Target,
    processors: int,
    gated: bool = False,
    by_block: bool = False,
) -> WgmmaSchedule | None:
    """Return the tiles for a product of m x k by k x n that is estimated to take the fewest cycles.

    None where the target has no wgmma, where a form's stages do not fit, or where there are so few rows that mma.sync
    is as good.
    """
    if not target.has("wgmma") or m <= MOST_ROWS_OF_MMA:
        return None
    found = list(candidates(m, n, k, form, target, processors, gated, by_block))
    return min(found, key=lambda s: estimate(s, m, n, k, form, target, processors, by_block), default=None)


def candidates(
    m: int,
    n: int,
    k: int,
    form: WeightForm,
    target: Target,
    processors: int,
    gated: bool = False,
    by_block: bool = False,
) -> Iterator[WgmmaSchedule]:
    """Return the schedules to choose from."""
    shared = most_shared(form, k, target, by_block)
    for block_m in heights(m, most_rows(form, k, target, by_block)):
        for block_n, resident, cluster_m, cluster_n in ARRANGEMENTS:
            if (cluster_n > 1 and (n <= block_n * (cluster_n - 1) or block_m < FEWEST_ROWS_TO_SHARE)) or (
                cluster_m > 1 and m <= block_m * (cluster_m - 1)
            ):
                continue
            for stream in (False, True):
                tile = WgmmaSchedule(
                    block_m,
                    block_n,
                    resident=resident,
                    cluster_m=cluster_m,
                    cluster_n=cluster_n,
                    stream=stream,
                )
                if stream and (block_m > shared or not tile.division(m, n, k, processors).shared_tiles):
                    continue
                made = fitting(tile, form, target, gated)
                if made is not None:
                    yield made


def heights(m: int, most: int = HEIGHTS[-1]) -> list[int]:
    """Return the rows of tiles to try: powers of two, and others where they leave fewer rows empty than those do."""

    def padded(height: int) -> int:
        return -(-m // height) * height

    usual = [h for h in HEIGHTS if h <= most]
    found = [h for h in usual if h < 2 * m or h == HEIGHTS[0]]
    for height in BETWEEN:
        fuller = padded(height) < min(padded(h) for h in usual if height < 2 * h)
        if height <= most and (fuller or height == most <= m):
            found.append(height)
    return found


def span_of(form: WeightForm, k: int, by_block: bool = False) -> int:
    """Return after how many elements of k sums leave the tensor core to be scaled; 0 is all, or no sums are scaled.

    Those of float8 leave it after 128 in any case: it adds them up with fewer bits than float32 has.
    """
    if form.activations.bits == 16 or (form.activations.is_integer and form.group >= k and not by_block):
        return 0
    return min(form.group, UNIT_K) if form.group < k else UNIT_K


def most_rows(form: WeightForm, k: int, target: Target, by_block: bool = False) -> int:
    """Return the rows of the largest tile whose sums registers hold, with what scales them and what decodes weights."""
    span = span_of(form, k, by_block)
    if not span:
        return HEIGHTS[-1]
    crowded = span < UNIT_K or form.has_zero or by_block or packed_cost(form, target) is None
    return 64 if crowded else 96


def most_shared(form: WeightForm, k: int, target: Target, by_block: bool = False) -> int:
    """Return the rows of the largest tile for which registers are left to add up what clusters share, 0 for none."""
    span = span_of(form, k, by_block)
    if span and packed_cost(form, target) is None:
        return 0
    crowded = span and (span < UNIT_K or (form.has_zero and by_block))
    return MOST_STREAMED // 2 if crowded else MOST_STREAMED


def fitting(
    schedule: WgmmaSchedule, form: WeightForm, target: Target, gated: bool = False
) -> WgmmaSchedule | None:
    """Return the schedule with as many stages as shared memory holds, a tile going out in pieces if need be."""
    have = (target.shared_bytes + RESERVED_BYTES) // schedule.resident - RESERVED_BYTES
    best: WgmmaSchedule | None = None
    for pieces in (p for p in (1, 2, 4, 8) if schedule.block_m // p >= HEIGHTS[0]):
        if schedule.stream and schedule.block_m // pieces > MOST_SUMMED:
            continue
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
    scales = groups * schedule.block_n * ((2 if form.scale is None else 1) + (2 if form.has_zero else 0))
    operands = schedule.block_m * UNIT_K * form.activations.bits // 8 + schedule.warps * unit_bytes(
        form.dtype.bits
    )
    # With activations of 8 bits factors of the rows may come, and their sums.
    factors = (1 + groups) * max(schedule.block_m, FEWEST_FACTORS) * 4 if form.activations.bits == 8 else 0
    return operands + scales + factors


def out_bytes(schedule: WgmmaSchedule, gated: bool) -> int:
    """Return the shared memory through which the result goes, and what is lost between buffers."""
    columns = schedule.block_n // 2 if gated else schedule.block_n
    return schedule.block_m // schedule.pieces * columns * 2 + PERIOD


def decode_instructions(form: WeightForm, target: Target) -> float:
    """Return a thread's instructions for one weight: the cast and, for activations of 16 bits, what scales it."""
    found = packed_cost(form, target)
    cast = GENERAL_CAST if found is None else found
    if form.activations.bits == 8:
        return cast
    zero = 0.0 if not form.has_zero else LONG_ZERO if form.group >= UNIT_K else 0.5
    return cast + 0.5 + zero


def sum_instructions(form: WeightForm, k: int, by_block: bool) -> float:
    """Return a thread's instructions for one sum of a unit of k that leaves the tensor core."""
    span = span_of(form, k, by_block)
    if not span:
        return 0.0
    each = 1 + (1 if form.activations.is_integer else 0) + (1 if by_block else 0)
    if form.has_zero and (form.group < k or by_block):
        each += 1
    return UNIT_K // span * each


def estimate(
    schedule: WgmmaSchedule,
    m: int,
    n: int,
    k: int,
    form: WeightForm,
    target: Target,
    processors: int,
    by_block: bool = False,
) -> float:
    """Return the cycles that a product takes by the limits of tensor cores, issue, memory and cache."""
    block_m, steps = schedule.block_m, -(-k // UNIT_K)
    tiles_m, tiles_n = schedule.grid(m, n)
    tiles = tiles_m * tiles_n
    division = schedule.division(m, n, k, processors)
    busy = division.clusters
    here = -(-busy * schedule.cluster // processors)
    products = 2 * UNIT_K * schedule.block_n * (max(FEWEST_COLUMNS, block_m) + BETWEEN_PRODUCTS)
    tensor = here * products / CARD.tensor_ops(form.activations.name, asynchronous=True)
    decoding = UNIT_K * decode_instructions(form, target) + STEP_INSTRUCTIONS + ARRIVAL * schedule.cluster
    decoding += block_m * sum_instructions(form, k, by_block)
    issue = here * schedule.warps / CARD.issue_per_clock * decoding
    weights, rows = (
        schedule.warps * unit_bytes(form.dtype.bits),
        block_m * UNIT_K * form.activations.bits // 8,
    )
    # Blocks that run at once read each unit of the weight, and each row, from memory once.
    bandwidth = CARD.clock_bytes * processors / CARD.processors
    read = schedule.cluster_n * weights / min(tiles_m, busy) + schedule.cluster_m * rows / min(tiles_n, busy)
    memory = busy * read / bandwidth
    cached = CACHE_SHARE * CARD.l2_bytes_per_clock / CARD.processors
    cache = here * (weights / schedule.cluster_m + rows / schedule.cluster_n) / cached
    step = max(tensor, issue, memory, cache)
    whole = tiles - division.shared_tiles
    share = division.shared_tiles * steps / busy
    ends = -(-whole // busy) + (2 if share else 0)
    out = here * block_m * schedule.block_n
    # A share's sums are written once, and read once by the block that ends their tile.
    moved = min(2.0, busy / max(division.shared_tiles, 1)) * 4 * out / cached if share else 0.0
    units = -(-whole // busy) * steps + ceil(share)
    return units * step + ends * (TILE_CYCLES + out / OUT_PER_CYCLE) + moved
