"""Which schedule a matrix product on wgmma gets: a plain function of its sizes, its types and the processor.

A schedule is data: a tuner lists schedules (`hopper_candidates`) and measures them, and `hopper_schedule` takes the
one with the least `estimated_cycles`. The estimate counts, for each k step, what limits a multiprocessor (tensor
cores or the bytes that come from the L2 cache), and adds what a tile costs besides.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import product
from math import gcd

import torch

from tilus.codegen import Target
from tilus.codegen.assemble import ptxas_path

BULK_BYTES = 16
"""Rows and addresses of what the tensor memory accelerator copies are multiples of so many bytes."""
STEP_BYTES = 128
"""Depth of a tile along k: one row of the widest swizzle."""
PRODUCTS_PER_CYCLE = 32 * STEP_BYTES
"""Bytes of a row times rows times columns that the tensor cores of a multiprocessor take in a cycle, for every type:
wgmma m64n256k16 of float16 takes 128 cycles (CUDA programming guide, throughput of dense tensor operations)."""
L2_BYTES_PER_CYCLE = 38
"""Of one multiprocessor when all read: 5120 bytes a cycle (H100 white paper) over 132 multiprocessors."""
DEVICE_BYTES_PER_CYCLE = 19
"""The same for device memory: 4.8 TB/s at 1.9 GHz over 132 multiprocessors (H200)."""
DEVICE_BYTES_ALONE = 23
"""What a multiprocessor gets of device memory where some have no work: little more, for nearly all are needed to keep
this memory busy."""
FILL_CYCLES = 1500
"""From a block's start to its first product: launch, tensor map, and the way to device memory and back."""
LATENCY_CYCLES = 1200
"""From asking for a stage of operands to having it, when all multiprocessors read: what has to be under way meanwhile
is the stages' number (H200 under load, about 600 ns)."""
TURN_CYCLES = 100
"""The least that a step takes: a wait, the start of a product, and the way to the next one."""
LAUNCH_CYCLES = 4000
"""A second kernel after the first: its launch and its own way to memory and back."""
STORED_PER_CYCLE = 24
"""Elements of a result that a multiprocessor casts, moves to shared memory and stores in a cycle."""
PART_CYCLES = 100
"""What each of a result's parts costs besides, between the barriers around its store."""
PIECE_STAGES = 4
"""How many times as many steps as stages a piece of a tile has, for its sums in float32 are stored and read again."""
RESERVED_BYTES = 1024
"""Shared memory for barriers, each array at a multiple of 128 bytes."""
LARGEST_NUMBER = (1 << 31) - 1
"""The kernels count steps in 32 bits."""
MOST_STAGES = 24
MOST_ACCUMULATORS = 128
"""32-bit sums of a thread: with more, the 168 registers that each of 384 threads has do not hold the rest."""
FEWER_ACCUMULATORS = 96
"""The same where the epilogue needs many registers: one with a residual, or with a bias and scales."""
FEWEST_PROMOTED = 64
"""The same for sums that are scaled and added to others, where warps cannot change how many registers they have."""
SCALE_BYTES = 4
"""Of a row's scale in each step."""
PROMOTION_CYCLES = 150
"""Of a lone consumer, between a product of a block and the next one: the wait, the scales and its way back, without
the additions themselves."""


@dataclass(frozen=True)
class HopperSchedule:
    """How `hopper_matmul_kernel` runs: its constexpr parameters of the same names.

    Attributes
    ----------
    block_m, block_n, block_k : int
        A tile of the result, and its depth.
    stages : int
        Tiles of operands in shared memory.
    consumers : int
        Warpgroups that multiply.
    pingpong : bool
        Whether each of two consumers has a tile of its own; else both share one.
    stream : bool
        Whether tiles that do not fill all multiprocessors are cut along k.
    cluster_m, cluster_n : int
        Blocks of a cluster that lie below one another and share tiles of b, and beside one another, sharing a's.
    group : int
        Rows of clusters' tiles that are worked on together, so that operands are found in the L2 cache.
    """

    block_m: int
    block_n: int
    block_k: int
    stages: int
    consumers: int = 2
    pingpong: bool = False
    stream: bool = False
    cluster_m: int = 1
    cluster_n: int = 1
    group: int = 8

    @property
    def cluster(self) -> int:
        """Blocks of a cluster."""
        return self.cluster_m * self.cluster_n


@dataclass(frozen=True)
class Work:
    """How the tiles of one launch are shared out: how many blocks there are, and the tiles that all of them share."""

    blocks: int
    shared_tiles: int


def shared_bytes(chosen: HopperSchedule, out_bits: int, scale_bytes: int = 0) -> int:
    """Return the shared memory that a schedule needs, with `scale_bytes` of each row's scale in each stage."""
    operands = chosen.stages * ((chosen.block_m + chosen.block_n) * STEP_BYTES + chosen.block_m * scale_bytes)
    width = part_width(chosen, out_bits)
    stores = (2 if chosen.pingpong else 1) * 2 * chosen.block_m * width * out_bits // 8
    return operands + stores + RESERVED_BYTES


def part_width(chosen: HopperSchedule, out_bits: int) -> int:
    """Return how many columns of a result are stored at once: whole rows of the bulk store's widest swizzle or less."""
    return gcd(chosen.block_n, 8 * STEP_BYTES // out_bits)


def accumulators(chosen: HopperSchedule) -> int:
    """Return how many 32-bit sums each thread of a consumer holds."""
    warpgroups = 1 if chosen.pingpong else chosen.consumers
    return chosen.block_m * chosen.block_n // (128 * warpgroups)


def deepest(chosen: HopperSchedule, out_bits: int, target: Target, scale_bytes: int = 0) -> int:
    """Return the most stages that fit, 0 if not even two do."""
    for stages in range(MOST_STAGES, 1, -1):
        if shared_bytes(replace(chosen, stages=stages), out_bits, scale_bytes) <= target.shared_bytes:
            return stages
    return 0


WIDE_SPAN = 64
"""Elements of 16 bits in a swizzle's 128 bytes: what an operand that is not contiguous along k is made of."""
ROW_SPAN = 8
"""What one is made of that is: each row or column is 128 bytes of a tile, and the swizzle repeats every 8."""


def with_residual(chosen: HopperSchedule, out_bits: int, target: Target) -> HopperSchedule | None:
    """Return a schedule with as many stages as leave room for all of a residual's tile, None if not two do.

    A tile of 16-bit numbers as wide as two parts takes no more than the buffers that there are anyway.
    """
    tiles = (2 if chosen.pingpong else 1) * chosen.block_m * chosen.block_n * out_bits // 8
    stage = (chosen.block_m + chosen.block_n) * STEP_BYTES
    stages = min(chosen.stages, (target.shared_bytes - RESERVED_BYTES - tiles) // stage)
    return replace(chosen, stages=stages) if stages > 1 else None


CLUSTERS = ((1, 1), (2, 1), (1, 2))
"""Blocks of a cluster below and beside one another."""
TILES = (
    # Rows, columns, consumers, ping-pong.
    (128, 256, 2, False),
    (128, 192, 2, False),
    (128, 128, 2, False),
    (128, 64, 2, False),
    (128, 128, 2, True),
    (64, 256, 2, True),
    (64, 128, 2, True),
    (64, 256, 1, False),
    (64, 128, 1, False),
    (64, 64, 1, False),
)
NARROW = (16, 32, 48)
"""Columns of tiles of 64 rows where a result has so few that wider ones leave multiprocessors without work."""
WIDTHS = (80, 96, 112, 144, 160, 176, 208, 224, 240)
"""Columns of more tiles, of 64 rows and one consumer or of 128 and two: with few rows, that of which whole waves cover
the result. The instruction takes multiples of 8, the bulk store rows of 32 bytes."""


@lru_cache(maxsize=64)
def hopper_candidates(
    bits: int, out_bits: int, target: Target, most: int = MOST_ACCUMULATORS, span: int = WIDE_SPAN
) -> tuple[HopperSchedule, ...]:
    """Return every schedule that a target has room for, with as many stages as fit.

    A thread of two consumers has `most` sums. The parts of a tile that a cluster's blocks copy for one another are made
    of `span` of its rows or columns.
    """
    depth = 8 * STEP_BYTES // bits
    plain = [
        HopperSchedule(block_m, block_n, depth, 2, consumers, pingpong, stream, *cluster)
        for (block_m, block_n, consumers, pingpong), stream, cluster in product(
            TILES, (False, True), CLUSTERS
        )
    ]
    plain += [HopperSchedule(64, width, depth, 2, 1) for width in WIDTHS]
    plain += [
        HopperSchedule(64, width, depth, 2, 1, False, False, 1, beside)
        for width, beside in product(NARROW, (1, 2))
    ]
    plain += [
        HopperSchedule(128, width, depth, 2, 2, False, False, *cluster)
        for width, cluster in product(WIDTHS, CLUSTERS)
    ]
    found = []
    for chosen in plain:
        stages = deepest(chosen, out_bits, target)
        # One consumer and its producer have registers to spare.
        fits = chosen.consumers == 1 or accumulators(chosen) <= most
        if stages and fits and shares_whole_spans(chosen, span):
            found.append(replace(chosen, stages=stages))
    return tuple(found)


def shares_whole_spans(chosen: HopperSchedule, span: int) -> bool:
    """Tell whether the part of a shared tile that each block of a cluster copies is made of whole swizzle spans."""
    return chosen.block_m // chosen.cluster_n % span == chosen.block_n // chosen.cluster_m % span == 0


def tile_count(chosen: HopperSchedule, m: int, n: int, batches: int) -> int:
    """Return how many tiles, or with clusters groups of tiles, a result has."""
    return (
        -(-m // (chosen.block_m * chosen.cluster_m)) * -(-n // (chosen.block_n * chosen.cluster_n)) * batches
    )


def work_of(chosen: HopperSchedule, m: int, n: int, k: int, batches: int, processors: int) -> Work:
    """Return the blocks of a launch, and how many tiles (with clusters: groups of tiles) they share.

    Whole waves of tiles stay whole; of what is left, and of one wave more where pieces would be short else, each
    cluster gets an equal share.
    """
    tiles = tile_count(chosen, m, n, batches)
    teams = max(1, processors // chosen.cluster)
    left = tiles % teams
    if not chosen.stream or not left:
        return Work(min(tiles, teams) * chosen.cluster, 0)
    steps = -(-k // chosen.block_k)
    long = left * steps >= teams * PIECE_STAGES * chosen.stages
    shared = left if tiles < teams or long else left + teams
    # No cluster is without work, and pieces are as long as the pipeline where they can be.
    sharing = max(1, min(teams, shared * steps // min(steps, chosen.stages)))
    if sharing == 1 or sharing * shared * steps > LARGEST_NUMBER:
        return Work(min(tiles, teams) * chosen.cluster, 0)
    return Work(sharing * chosen.cluster, shared)


def estimated_cycles(
    chosen: HopperSchedule, m: int, n: int, k: int, batches: int, bits: int, processors: int,
    promoted: bool = False,
) -> float:  # fmt: skip
    """Return about how many cycles a product takes; one whose sums over each step are `promoted`, or a plain one."""
    steps = -(-k // chosen.block_k)
    work = work_of(chosen, m, n, k, batches, processors)
    teams = work.blocks // chosen.cluster
    tiles = tile_count(chosen, m, n, batches)
    whole = tiles - work.shared_tiles
    tensor = chosen.block_m * chosen.block_n * STEP_BYTES / PRODUCTS_PER_CYCLE
    if promoted and chosen.consumers == 1:
        # Nobody else multiplies meanwhile.
        tensor += PROMOTION_CYCLES + chosen.block_n / 2
    # What the blocks of a cluster share is read once for all of them.
    lines = min(chosen.block_m, m) / chosen.cluster_n + min(chosen.block_n, n) / chosen.cluster_m
    fetched = lines * STEP_BYTES / L2_BYTES_PER_CYCLE
    main = steps * max(tensor, fetched, LATENCY_CYCLES / chosen.stages, TURN_CYCLES)
    moved = (batches * (m * k + n * k) * bits / 8 + batches * m * n * 2) / tiles
    brought = moved / (DEVICE_BYTES_PER_CYCLE * processors)
    main = max(main, moved / (DEVICE_BYTES_ALONE * chosen.cluster))
    # Each consumer stores its own rows.
    pair = chosen.consumers == 2 and not chosen.pingpong
    store = chosen.block_m * chosen.block_n / STORED_PER_CYCLE / (2 if pair else 1)
    store += PART_CYCLES * chosen.block_n // part_width(chosen, 16)
    full, left = divmod(whole, teams)
    cycles = FILL_CYCLES + full * max(main, teams * brought)
    if left:
        cycles += max(main, left * brought)
    # While one of two ping-pong consumers stores the other multiplies a tile, and of two that share one, a step: only
    # the last store is seen in full.
    hidden = store if chosen.pingpong else min(store, tensor / 2) if pair else 0.0
    cycles += store + max(0, -(-whole // teams) - 1) * (store - hidden)
    if work.shared_tiles:
        # Each block leaves up to two sums of parts in float32, which a second kernel reads again: none where it has
        # whole tiles, and fewer where its piece is shorter than a tile, so that not all hold a tile's end.
        sums = 1 + min(1.0, work.shared_tiles / teams) if work.shared_tiles % teams else 0.0
        parts = sums * min(chosen.block_m, m) * chosen.block_n * 4 / DEVICE_BYTES_PER_CYCLE
        cycles += work.shared_tiles * max(main / teams, brought) + 2 * parts + LAUNCH_CYCLES
    return cycles


@lru_cache(maxsize=4096)
def hopper_schedule(
    m: int, n: int, k: int, batches: int, bits: int, out_bits: int, target: Target, processors: int,
    most: int = MOST_ACCUMULATORS, span: int = WIDE_SPAN,
) -> HopperSchedule:  # fmt: skip
    """Return the schedule with the least estimated time; of equals the first, which has the larger tile."""
    return min(
        (chosen for chosen in hopper_candidates(bits, out_bits, target, most, span) if suits(chosen, m, n)),
        key=lambda chosen: estimated_cycles(chosen, m, n, k, batches, bits, processors),
    )


BLOCK_SCALED_TILES = (
    # Rows, columns and consumers. Wherever a tile begins, it lies in two blocks of 128 columns at most. That of two
    # whole ones has two products a step, one after the other: a thread has not the registers for both.
    (128, 256, 2),
    (128, 192, 2),
    (128, 160, 2),
    (128, 144, 2),
    (128, 128, 2),
    (128, 112, 2),
    (128, 96, 2),
    (128, 80, 2),
    (128, 64, 2),
    (64, 128, 1),
    (64, 112, 1),
    (64, 96, 1),
    (64, 80, 1),
    (64, 64, 1),
    (64, 48, 1),
    (64, 32, 1),
    (64, 16, 1),
)


@lru_cache(maxsize=64)
def block_scaled_candidates(out_bits: int, target: Target, most: int) -> tuple[HopperSchedule, ...]:
    """Return every schedule for a product of float8 matrices scaled by blocks, with `most` sums of a thread."""
    found = []
    for (block_m, block_n, consumers), stream, cluster in product(
        BLOCK_SCALED_TILES, (False, True), CLUSTERS
    ):
        plain = HopperSchedule(block_m, block_n, STEP_BYTES, 2, consumers, False, stream, *cluster)
        fits = consumers == 1 or accumulators(plain) <= most
        if fits and shares_whole_spans(plain, ROW_SPAN):
            found.append(replace(plain, stages=deepest(plain, out_bits, target, SCALE_BYTES)))
    return tuple(found)


def most_promoted() -> int:
    """Return how many sums a thread of two consumers may have beside the same number that they are added to.

    Only ptxas lets warps change how many registers they have (`tilus.codegen.assemble`).
    """
    return MOST_ACCUMULATORS if ptxas_path() is not None else FEWEST_PROMOTED


def block_scaled_schedule(
    m: int, n: int, k: int, out_bits: int, target: Target, processors: int
) -> HopperSchedule:
    """Return the schedule with the least estimated time for a product of float8 matrices scaled by blocks."""
    return _block_scaled_schedule(m, n, k, out_bits, target, processors, most_promoted())


@lru_cache(maxsize=4096)
def _block_scaled_schedule(
    m: int, n: int, k: int, out_bits: int, target: Target, processors: int, most: int
) -> HopperSchedule:
    return min(
        (chosen for chosen in block_scaled_candidates(out_bits, target, most) if suits(chosen, m, n)),
        key=lambda chosen: estimated_cycles(chosen, m, n, k, 1, 8, processors, promoted=True),
    )


@dataclass(frozen=True)
class GroupedSchedule:
    """How `grouped_hopper_kernel` runs: its constexpr parameters of the same names."""

    block_m: int
    block_n: int
    block_k: int
    stages: int
    consumers: int
    swap: bool = False
    cluster_n: int = 1


MOST_SWAPPED = 64
"""Rows of a tile up to which the columns of the result are the tensor core's first operand."""


@lru_cache(maxsize=4096)
def grouped_schedule(
    block_m: int, rows: int, n: int, bits: int, out_bits: int, target: Target, processors: int,
    widest: int = 256, scale_bytes: int = 0,
) -> GroupedSchedule:  # fmt: skip
    """Return tiles for `block_m` rows of one expert at a time, of `rows` in all at most, and a matrix of n columns.

    They have at most `widest` columns, and each row has a scale of so many bytes in each stage.
    """
    swap = block_m <= MOST_SWAPPED
    # Wide tiles read less, if there are enough of them to keep all multiprocessors busy.
    most = min(widest, 128 if block_m < MOST_SWAPPED else 256)
    down = -(-rows // block_m)
    widths = [w for w in (256, 128, 64) if w <= most and (w == 64 or n > w // 2)]
    width = next((w for w in widths if down * -(-n // w) >= 2 * processors), 128 if n > 64 else 64)
    # Of small tiles of rows there is little to share.
    pairs = not swap and n > width and down * -(-n // width) >= 2 * processors
    for stages in range(MOST_STAGES, 1, -1):
        operands = stages * ((block_m + width) * STEP_BYTES + max(block_m, 32) * scale_bytes)
        stored = block_m * width if swap else 2 * block_m * gcd(width, 8 * STEP_BYTES // out_bits)
        if operands + stored * out_bits // 8 + RESERVED_BYTES <= target.shared_bytes:
            return GroupedSchedule(
                block_m, width, 8 * STEP_BYTES // bits, stages, 1 if swap and width == 64 else 2, swap,
                2 if pairs else 1,
            )  # fmt: skip
    raise AssertionError("two stages of any such tile fit into the shared memory of a target with wgmma")


def grouped_blocks(
    chosen: GroupedSchedule | HopperSchedule, groups: int, rows: int, n: int, processors: int
) -> int:
    """Return the blocks of a launch for groups of so many rows each: no more than may find a tile."""
    size = chosen.cluster_n
    tiles = groups * -(-rows // chosen.block_m) * -(-n // (chosen.block_n * size))
    return min(tiles, max(1, processors // size)) * size


def suits(chosen: HopperSchedule, m: int, n: int) -> bool:
    """Tell whether tiles lie in the result by more than half, and of a cluster's tiles at least a part.

    Others only read more for each of their products, or do nothing.
    """
    inside = chosen.block_m * (chosen.cluster_m - 1) < m and chosen.block_n * (chosen.cluster_n - 1) < n
    whole = (chosen.block_m <= 64 or chosen.block_m < 2 * m) and (
        chosen.block_n <= 64 or chosen.block_n < 2 * n
    )
    return inside and whole


def fits_bulk_copies(x: torch.Tensor) -> bool:
    """Tell whether the tensor memory accelerator can copy tiles of a tensor with contiguous rows."""
    whole = all(step > 0 and step * x.itemsize % BULK_BYTES == 0 for step in x.stride()[:-1])
    return whole and x.stride(-1) == 1 and x.data_ptr() % BULK_BYTES == 0
