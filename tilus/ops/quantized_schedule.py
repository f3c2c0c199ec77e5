"""Which kernel multiplies with a quantised weight, and with what tiles, from shapes, types and the target."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache

from tilus.codegen import Target
from tilus.ops.few_rows import MOST_ROWS, few_rows_schedule
from tilus.ops.prepack import UNIT_K
from tilus.ops.quantized_tiles import (
    FEWEST_STAGES,
    MOST_SPLITS,
    PERIOD,
    Schedule,
    WeightForm,
    fits_deep,
    scales_late,
    stage_bytes,
)

# Of equal shares: blocks of a multiprocessor, the fewest steps, the steps that adding up parts is counted as, and the
# part of the time of whole tiles below which they are worth that.
RESIDENT, FEWEST_SHARED, FIX_UP, WORTH_SHARING = 2, 4, 2, 0.9


@dataclass(frozen=True)
class Choice:
    """A kernel by its name (`mma`: `tilus.ops.quantized_kernel`), and its schedule."""

    kernel: str
    schedule: Schedule


@lru_cache(maxsize=4096)
def choose(m: int, n: int, k: int, form: WeightForm, target: Target, processors: int) -> Choice:
    """Return the kernel and the schedule for a product of m x k by k x n.

    Parameters
    ----------
    m, n, k : int
    form : WeightForm
    target : Target
    processors : int
        Multiprocessors of the device.
    """
    if m <= MOST_ROWS:
        return Choice("mma", few_rows_schedule(m, n, k, form, target, processors))
    schedule = fitting(by_rows(m, form), form, target)
    schedule = replace(schedule, late=scales_late(schedule, k, form))
    schedule = replace(schedule, splits=split_count(m, n, k, schedule, processors))
    return Choice("mma", shared(schedule, m, n, k, processors))


def by_rows(m: int, form: WeightForm) -> Schedule:
    """Return the tiles for a number of rows.

    With activations of 8 bits sums of short spans are converted and scaled one span after another, which takes most of
    the instructions: with 64 rows these find no registers beside the others, and 32 decode weights but twice as often.
    """
    short = form.activations.bits == 8 and form.group < UNIT_K
    return Schedule(block_m=32 if m <= 32 or short else 64, stages=3)


def fitting(schedule: Schedule, form: WeightForm, target: Target) -> Schedule:
    """Return the schedule with as few stages, and as small a tile, as the target's shared memory asks for."""
    stages = min(schedule.stages, target.shared_bytes // stage_bytes(schedule, form))
    if stages < FEWEST_STAGES and schedule.block_m > 16:
        return fitting(replace(schedule, block_m=schedule.block_m // 2), form, target)
    return replace(schedule, stages=max(stages, FEWEST_STAGES))


def shared(schedule: Schedule, m: int, n: int, k: int, processors: int) -> Schedule:
    """Return a schedule with equal shares of all work where tiles, or parts of them, leave multiprocessors idle.

    Time is counted in steps of the busiest multiprocessor, of which two blocks at once take turns.
    """
    tiles = -(-m // schedule.block_m) * -(-n // schedule.block_n)
    steps = -(-k // (schedule.deep * UNIT_K))
    whole = -(-tiles * schedule.splits // processors) * -(-steps // schedule.splits)
    for resident in (RESIDENT, 1):
        blocks = processors * resident
        share = -(-tiles * steps // blocks)
        if share >= FEWEST_SHARED and share * resident + FIX_UP <= WORTH_SHARING * whole:
            return replace(schedule, splits=1, blocks=blocks)
    return schedule


def split_count(m: int, n: int, k: int, schedule: Schedule, processors: int) -> int:
    """Return into how many parts k is cut, so that a small problem keeps all multiprocessors busy."""
    tiles = -(-m // schedule.block_m) * -(-n // schedule.block_n)
    steps = -(-k // (schedule.deep * UNIT_K))
    # Each part is long enough for copies to run ahead.
    most = max(1, min(MOST_SPLITS, steps // FEWEST_STAGES))
    wanted = max(1, processors // tiles) if tiles < processors else 1
    splits = min(wanted, most)
    # Parts of equal length leave none empty.
    return -(-steps // -(-steps // splits))


__all__ = [
    "PERIOD", "Choice", "Schedule", "WeightForm", "choose", "fits_deep", "fitting", "scales_late", "stage_bytes",
]  # fmt: skip
