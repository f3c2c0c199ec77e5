"""The tiles of a product of few rows with a quantised weight, which the time that its bytes take should bound.

Each schedule that fits is given an estimate in cycles: of the memory, of the cache that brings each block the rows of
activations, of the instructions that decode weights, and of what work that is not shared evenly, sums in parts and the
start of a pipeline cost besides.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import lru_cache

from tilus.codegen import Target
from tilus.codegen.casts import biased_cast
from tilus.codegen.figures import Figures, figures
from tilus.ops.prepack import UNIT_K, UNIT_N, unit_bytes
from tilus.ops.quantized_tiles import (
    FEWEST_STAGES,
    MOST_SPLITS,
    PERIOD,
    TABLE_SCRATCH,
    Schedule,
    WeightForm,
    buffers_of,
    fits_deep,
    operand_of,
    packed_cost,
    scales_late,
    stage_bytes,
    table_bytes,
)

MOST_ROWS = 16
"""With more, blocks need other tiles: `tilus.ops.quantized_schedule`."""
CARDS = {"sm_90a": "H200"}
"""Whose figures to take where a target's usual card has less bandwidth."""
WARPS = 4
COLUMNS = (32, 64)
"""Of a warp."""
MOST_STAGES = 8
MOST_RESIDENT = 3
"""Blocks of one multiprocessor: more than these find no registers."""
RESERVED_BYTES = 1024
"""Of shared memory, for each resident block."""
STAGE_ALIGNMENT = 128
"""Bytes of shared memory, at multiples of which the parts of a buffer begin."""
BARRIER_BYTES = 128
"""Of shared memory, for the barriers of the stages."""
FIXED = 60
"""Instructions of a warp in a step that do not depend on its columns: copies, waits, the loop."""
FOR_ROWS = 70
"""The same for loading and adding up rows of activations of 16 bits."""
ISSUED = 0.75
"""The part of the issue slots that several warps fill."""
ALONE = 0.55
"""The part of its own issue slots that one warp fills."""
WAIT = 150
"""Cycles of a step in which a warp waits for the others, for shared memory and for the tensor core."""
LATENCY = 1000
"""Cycles from asking the memory to having it when all multiprocessors ask."""
FILL = 1500
"""Cycles from the start of a block to its first product."""
ENDING = 600
"""Cycles of a tile's end."""
JOINING = 1500
"""Cycles in which a part is written and counted, before the last block adds up what there is."""
JOINED_PER_CYCLE = 32
"""Bytes of parts that a block reads in a cycle."""
DISTURBANCE = 0.05
"""The part of a step's other limits that the tightest one does not hide."""
LOOKUP = 1.5
"""Instructions for a code that is looked up with another one: a shift, a selection of bits, a load for both."""
CACHE_SHARE = 0.7
"""The part of the cache's rate that many blocks reach."""


@lru_cache(maxsize=16)
def _card(name: str) -> Figures:
    return figures(CARDS.get(name, name))


@lru_cache(maxsize=4096)
def few_rows_schedule(m: int, n: int, k: int, form: WeightForm, target: Target, processors: int) -> Schedule:
    """Return the schedule with the least estimate for a product of m x k by k x n, m up to `MOST_ROWS`.

    Parameters
    ----------
    m, n, k : int
    form : WeightForm
    target : Target
    processors : int
        Multiprocessors of the device.
    """
    found = list(candidates(m, n, k, form, target, processors))
    return min(found, key=lambda s: estimate(s, m, n, k, form, target, processors))


def candidates(
    m: int, n: int, k: int, form: WeightForm, target: Target, processors: int
) -> Iterator[Schedule]:
    """Return the schedules to choose from: tiles, and for each the ways to share its work out."""
    plain = Schedule(block_m=8, swap=True) if m <= 8 else Schedule()
    units = -(-k // UNIT_K)
    # A cast of single elements keeps so much at hand that only few columns find registers.
    few = COLUMNS[:1] if packed_cost(form, target) is None else COLUMNS
    for columns in few:
        for deep in (1, 2, 4):
            block_n = WARPS * columns // deep
            if deep > 1 and (deep > units or not fits_deep(form.group, k, deep)):
                continue
            if block_n >= 2 * max(n, UNIT_N) and (columns, deep) != (COLUMNS[0], 1):
                continue
            tile = replace(plain, block_n=block_n, deep=deep, warps=WARPS)
            tile = replace(tile, late=scales_late(tile, k, form))
            tiles, steps = -(-n // block_n), -(-units // deep)
            for resident in range(1, MOST_RESIDENT + 1):
                made = with_stages(tile, form, target, resident)
                if made is None:
                    continue
                yield made
                blocks = resident * processors
                most = min(MOST_SPLITS, steps // FEWEST_STAGES, blocks // tiles)
                for wanted in dict.fromkeys((most, most // 2)):
                    # Parts of equal length leave none empty.
                    if wanted > 1:
                        yield replace(made, splits=-(-steps // -(-steps // wanted)))
                if tiles * steps >= 2 * blocks and tiles % blocks:
                    yield replace(made, blocks=blocks)


def with_stages(schedule: Schedule, form: WeightForm, target: Target, resident: int) -> Schedule | None:
    """Return the schedule with as many stages as shared memory has room for beside other blocks, None for too few."""
    have = (target.shared_bytes + RESERVED_BYTES) // resident - RESERVED_BYTES
    stages = MOST_STAGES
    while stages and block_bytes(replace(schedule, stages=stages), form, target) > have:
        stages -= 1
    if stages < (FEWEST_STAGES if resident == 1 else FEWEST_STAGES + 1):
        return None
    return replace(schedule, stages=stages)


def block_bytes(schedule: Schedule, form: WeightForm, target: Target) -> int:
    """Return the shared memory of a block.

    Into the buffers of bulk copies nothing else is written, so that the exchange of sums between warps, or of a result
    between threads, has memory of its own; after other copies the buffers have room for it.
    """
    if not target.has("tma"):
        return schedule.stages * stage_bytes(schedule, form) + table_bytes(form)
    stages = sum(
        -(-schedule.stages * (-(-size // STAGE_ALIGNMENT) * STAGE_ALIGNMENT) // PERIOD) * PERIOD
        for size in buffers_of(schedule, form)
    )
    exchanged = schedule.block_m * schedule.block_n * (2 if schedule.deep == 1 else 4 * schedule.deep)
    if table_bytes(form):
        exchanged = max(exchanged, TABLE_SCRATCH)
    return stages + table_bytes(form) + -(-exchanged // PERIOD) * PERIOD + BARRIER_BYTES


def estimate(
    schedule: Schedule, m: int, n: int, k: int, form: WeightForm, target: Target, processors: int
) -> float:
    """Return the cycles that a product takes."""
    card = _card(target.name)
    weights, rows = step_bytes(schedule, m, form)
    steps, most, resident = shares(schedule, n, k, form, target, processors)
    # What one multiprocessor gets of the memory and of the cache when all ask.
    memory = weights / (card.clock_bytes / processors)
    under_way = resident * (schedule.stages - 1) * weights
    memory = max(memory, weights * LATENCY / under_way)
    cache = (weights + rows) / (CACHE_SHARE * card.l2_bytes_per_clock / card.processors)
    columns = schedule.deep * schedule.block_n // schedule.warps
    instructions = step_instructions(schedule.block_m, columns, schedule.late, form.group >= k, form, target)
    issue = schedule.warps * instructions / (ISSUED * card.issue_per_clock)
    alone = (instructions / ALONE + WAIT) / resident
    tensor = tensor_cycles(schedule, form, card)
    parts = parts_of(schedule, n, k)
    joining = 0.0
    if parts > 1:
        joining = JOINING + parts * schedule.block_m * schedule.block_n * 4 / JOINED_PER_CYCLE
    tiles = -(-most // steps)
    limits = memory, cache, issue, alone, tensor
    step = max(limits) + DISTURBANCE * (sum(limits) - max(limits))
    return most * step + FILL + tiles * ENDING / resident + joining


def step_bytes(schedule: Schedule, m: int, form: WeightForm) -> tuple[int, int]:
    """Return the bytes of a step's weights with their scales, and of its activations."""
    depth = schedule.deep * UNIT_K
    weights = schedule.deep * schedule.block_n // UNIT_N * unit_bytes(form.dtype.bits)
    each = (1 if form.scale else 2) + (2 if form.has_zero else 0)
    return weights + each * schedule.block_n * depth // min(
        form.group, 1 << 20
    ), m * depth * form.activations.bits // 8


def shares(
    schedule: Schedule, n: int, k: int, form: WeightForm, target: Target, processors: int
) -> tuple[int, int, int]:
    """Return the steps of a tile, the most that a multiprocessor takes, and how many blocks it has at once."""
    tiles, steps = -(-n // schedule.block_n), -(-k // (schedule.deep * UNIT_K))
    room = (target.shared_bytes + RESERVED_BYTES) // (block_bytes(schedule, form, target) + RESERVED_BYTES)
    room = max(1, min(room, MOST_RESIDENT))
    if schedule.blocks:
        here = -(-schedule.blocks // processors)
        return steps, here * -(-tiles * steps // schedule.blocks), min(room, here)
    here = -(-tiles * schedule.splits // processors)
    return steps, here * -(-steps // schedule.splits), min(room, here)


def parts_of(schedule: Schedule, n: int, k: int) -> int:
    """Return how many parts of a tile are added up."""
    if not schedule.blocks:
        return schedule.splits
    tiles, steps = -(-n // schedule.block_n), -(-k // (schedule.deep * UNIT_K))
    share = -(-tiles * steps // schedule.blocks)
    return -(-steps // share) + (1 if steps % share else 0)


@lru_cache(maxsize=1024)
def step_instructions(
    block_m: int, columns: int, late: bool, whole: bool, form: WeightForm, target: Target
) -> float:
    """Return the instructions of a warp in a step for its columns; `whole` ones have one scale each."""
    weights = UNIT_K * columns / 32
    span = min(form.group, UNIT_K)
    zeros = 2 if form.has_zero else 1
    source, dest = form.dtype, operand_of(form)
    kept = biased_cast(source, dest) if late and form.activations.bits == 16 else None
    found = packed_cost(form, target)
    # Without a packed cast each element takes the general way.
    cast = kept.cost if kept is not None else 8.0 if found is None else found
    if table_bytes(form):
        cast = LOOKUP
    if late and whole:
        scaling = columns / 32 * block_m if form.activations.bits == 16 else 0.0
    elif late:
        # A sum is multiplied and added, and each column's scale is widened.
        scaling = UNIT_K / span * columns / 32 * (block_m + 8) * zeros
    else:
        scaling = 0.5 * weights * zeros
    products = columns * UNIT_K / 128 * (block_m / 16) * form.activations.bits / 16
    fixed = FIXED + FOR_ROWS * form.activations.bits / 16
    return fixed + weights * cast + scaling + products


def tensor_cycles(schedule: Schedule, form: WeightForm, card: Figures) -> float:
    """Return the cycles of the tensor core in a step."""
    products = 2 * schedule.block_m * schedule.deep * UNIT_K * schedule.block_n
    return products / max(card.tensor_ops(form.activations.name), card.tensor_ops("float16"))
