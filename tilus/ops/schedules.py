"""Which schedule a matrix product on wgmma gets: a plain function of its sizes, its types and the processor.

A schedule is data: a tuner lists schedules (`hopper_candidates`) and measures them, and `hopper_schedule` takes the
one with the least `estimated_cycles`. The estimate counts, for each k step, what limits a multiprocessor (tensor
cores or the bytes that come from the L2 cache), and adds what a tile costs besides.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import product
from math import gcd

import torch

from tilus.codegen import Target

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
FILL_CYCLES = 1500
"""From a block's start to its first product: launch, tensor map, and the way to device memory and back."""
LAUNCH_CYCLES = 4000
"""A second kernel after the first: its launch and its own way to memory and back."""
STORED_PER_CYCLE = 24
"""Elements of a result that a multiprocessor casts, moves to shared memory and stores in a cycle."""
RESERVED_BYTES = 1024
"""Shared memory for barriers, each array at a multiple of 128 bytes."""
LARGEST_NUMBER = (1 << 31) - 1
"""The kernels count steps in 32 bits."""
MOST_STAGES = 8
MOST_ACCUMULATORS = 128
"""32-bit sums of a thread: with more, the 168 registers that each of 384 threads has do not hold the rest."""
FEWER_ACCUMULATORS = 96
"""The same where the epilogue needs many registers: one with a residual, or with a bias and scales."""


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


def shared_bytes(chosen: HopperSchedule, out_bits: int) -> int:
    """Return the shared memory that a schedule needs."""
    operands = chosen.stages * (chosen.block_m + chosen.block_n) * STEP_BYTES
    width = gcd(chosen.block_n, 8 * STEP_BYTES // out_bits)
    stores = (2 if chosen.pingpong else 1) * 2 * chosen.block_m * width * out_bits // 8
    return operands + stores + RESERVED_BYTES


def accumulators(chosen: HopperSchedule) -> int:
    """Return how many 32-bit sums each thread of a consumer holds."""
    warpgroups = 1 if chosen.pingpong else chosen.consumers
    return chosen.block_m * chosen.block_n // (128 * warpgroups)


def deepest(chosen: HopperSchedule, out_bits: int, target: Target) -> int:
    """Return the most stages that fit, 0 if not even two do."""
    for stages in range(MOST_STAGES, 1, -1):
        if shared_bytes(replace(chosen, stages=stages), out_bits) <= target.shared_bytes:
            return stages
    return 0


CLUSTERS = ((1, 1), (2, 1), (1, 2))
"""Blocks of a cluster below and beside one another."""
TILES = (
    # Rows, columns, consumers, ping-pong.
    (128, 256, 2, False),
    (128, 192, 2, False),
    (128, 128, 2, False),
    (128, 128, 2, True),
    (64, 256, 2, True),
    (64, 128, 2, True),
    (64, 256, 1, False),
    (64, 128, 1, False),
    (64, 64, 1, False),
)


def hopper_candidates(
    bits: int, out_bits: int, target: Target, most: int = MOST_ACCUMULATORS
) -> Iterator[HopperSchedule]:
    """Yield every schedule that a target has room for, with as many stages as fit, and `most` sums of a thread."""
    depth = 8 * STEP_BYTES // bits
    for (block_m, block_n, consumers, pingpong), stream, cluster in product(TILES, (False, True), CLUSTERS):
        plain = HopperSchedule(block_m, block_n, depth, 2, consumers, pingpong, stream, *cluster)
        # Of two ping-pong consumers each would have to know how many steps the other one takes.
        if (stream and pingpong) or not shares_whole_spans(plain):
            continue
        stages = deepest(plain, out_bits, target)
        # One consumer and its producer have registers to spare.
        if stages and (consumers == 1 or accumulators(plain) <= most):
            yield replace(plain, stages=stages)


def shares_whole_spans(chosen: HopperSchedule) -> bool:
    """Tell whether the part of a shared tile that each block of a cluster copies is made of whole swizzle spans."""
    span = 8 * STEP_BYTES // 16
    return chosen.block_m // chosen.cluster_n % span == chosen.block_n // chosen.cluster_m % span == 0


def tile_count(chosen: HopperSchedule, m: int, n: int, batches: int) -> int:
    """Return how many tiles, or with clusters groups of tiles, a result has."""
    return (
        -(-m // (chosen.block_m * chosen.cluster_m)) * -(-n // (chosen.block_n * chosen.cluster_n)) * batches
    )


def work_of(chosen: HopperSchedule, m: int, n: int, k: int, batches: int, processors: int) -> Work:
    """Return the blocks of a launch, and how many tiles (with clusters: groups of tiles) they share.

    Whole waves of tiles stay whole; of what is left, and of one wave more so that no piece is short, each cluster
    gets an equal share.
    """
    tiles = tile_count(chosen, m, n, batches)
    teams = max(1, processors // chosen.cluster)
    left = tiles % teams
    if not chosen.stream or not left:
        return Work(min(tiles, teams) * chosen.cluster, 0)
    shared = left if tiles < teams else left + teams
    steps = -(-k // chosen.block_k)
    # No cluster is without work, and pieces are as long as the pipeline where they can be.
    sharing = max(1, min(teams, shared * steps // min(steps, chosen.stages)))
    if sharing == 1 or sharing * shared * steps > LARGEST_NUMBER:
        return Work(min(tiles, teams) * chosen.cluster, 0)
    return Work(sharing * chosen.cluster, shared)


def estimated_cycles(
    chosen: HopperSchedule, m: int, n: int, k: int, batches: int, bits: int, processors: int
) -> float:
    """Return about how many cycles a product takes."""
    steps = -(-k // chosen.block_k)
    work = work_of(chosen, m, n, k, batches, processors)
    teams = work.blocks // chosen.cluster
    whole = tile_count(chosen, m, n, batches) - work.shared_tiles
    tensor = chosen.block_m * chosen.block_n * STEP_BYTES / PRODUCTS_PER_CYCLE
    # What the blocks of a cluster share is read once for all of them.
    lines = min(chosen.block_m, m) / chosen.cluster_n + min(chosen.block_n, n) / chosen.cluster_m
    fetched = lines * STEP_BYTES / L2_BYTES_PER_CYCLE
    step = max(tensor, fetched)
    store = chosen.block_m * chosen.block_n / STORED_PER_CYCLE
    waves = -(-whole // teams)
    # Of two ping-pong consumers one stores while the other multiplies: only the last store is seen.
    seen = 1 if chosen.pingpong else waves
    cycles = FILL_CYCLES + waves * steps * step + seen * store
    if work.shared_tiles:
        # Each block leaves up to two sums of parts in float32, which a second kernel reads again.
        parts = 2 * min(chosen.block_m, m) * chosen.block_n * 4 / DEVICE_BYTES_PER_CYCLE
        cycles += work.shared_tiles * steps / teams * step + 2 * parts + LAUNCH_CYCLES
    moved = batches * (m * k + n * k) * bits / 8 + batches * m * n * 2
    return max(cycles, moved / (DEVICE_BYTES_PER_CYCLE * processors))


@lru_cache(maxsize=4096)
def hopper_schedule(
    m: int, n: int, k: int, batches: int, bits: int, out_bits: int, target: Target, processors: int,
    most: int = MOST_ACCUMULATORS,
) -> HopperSchedule:  # fmt: skip
    """Return the schedule with the least estimated time; of equals the first, which has the larger tile."""
    return min(
        (chosen for chosen in hopper_candidates(bits, out_bits, target, most) if suits(chosen, m, n)),
        key=lambda chosen: estimated_cycles(chosen, m, n, k, batches, bits, processors),
    )


BLOCK_SCALED_TILES = ((128, 128, 2), (64, 128, 1), (64, 64, 1))
"""Rows, columns and consumers: half of the sums that `TILES` have, for each thread holds them twice."""


def block_scaled_candidates(out_bits: int, target: Target) -> Iterator[HopperSchedule]:
    """Yield every schedule for a product of float8 matrices scaled by blocks."""
    for (block_m, block_n, consumers), stream, cluster in product(
        BLOCK_SCALED_TILES, (False, True), CLUSTERS
    ):
        plain = HopperSchedule(block_m, block_n, STEP_BYTES, 2, consumers, False, stream, *cluster)
        if shares_whole_spans(plain):
            # The scales of all stages take less than one stage of operands.
            yield replace(plain, stages=deepest(plain, out_bits, target) - 1)


@lru_cache(maxsize=4096)
def block_scaled_schedule(
    m: int, n: int, k: int, out_bits: int, target: Target, processors: int
) -> HopperSchedule:
    """Return the schedule with the least estimated time for a product of float8 matrices scaled by blocks."""
    return min(
        (chosen for chosen in block_scaled_candidates(out_bits, target) if suits(chosen, m, n)),
        key=lambda chosen: estimated_cycles(chosen, m, n, k, 1, 8, processors),
    )


def suits(chosen: HopperSchedule, m: int, n: int) -> bool:
    """Tell whether tiles lie in the result by more than half; others only read more for each of their products."""
    return (chosen.block_m <= 64 or chosen.block_m < 2 * m) and (
        chosen.block_n <= 64 or chosen.block_n < 2 * n
    )


def fits_bulk_copies(x: torch.Tensor) -> bool:
    """Tell whether the tensor memory accelerator can copy tiles of a tensor with contiguous rows."""
    whole = all(step > 0 and step * x.itemsize % BULK_BYTES == 0 for step in x.stride()[:-1])
    return whole and x.stride(-1) == 1 and x.data_ptr() % BULK_BYTES == 0
