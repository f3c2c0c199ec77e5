"""Which kernel multiplies with a quantised weight, and with what tiles, from shapes, types and the target."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache

from tilus.codegen import Target
from tilus.dtypes import DType
from tilus.ops.prepack import UNIT_K, UNIT_N, unit_bytes

FEWEST_STAGES = 2
MOST_SPLITS = 16
MOST_DEEP = 8
# Buffers begin at multiples of the longest swizzle's period.
PERIOD = 1024


@dataclass(frozen=True)
class WeightForm:
    """What matters of a quantised weight besides its shape.

    Attributes
    ----------
    dtype : DType
        Of the codes.
    activations : DType
        Of the activations, as the kernel reads them.
    group : int
        Elements along k that share a scale.
    has_zero : bool
        Whether there are zero points.
    scale : DType or None
        Of scales of 8 bits; None for those of 16 bits.
    """

    dtype: DType
    activations: DType
    group: int
    has_zero: bool
    scale: DType | None = None

    def rows_of_scale(self, k: int) -> int:
        """Return the group as kernels take it: the one group of a weight with few rows counts as a whole unit."""
        return UNIT_K if self.group >= k and self.group < UNIT_K else self.group


@dataclass(frozen=True)
class Schedule:
    """The tiles of a kernel of `tilus.ops.quantized_kernel`.

    Attributes
    ----------
    block_m, block_n : int
        Rows of activations and columns of the weight of a block.
    warps : int
        Warps of a block.
    deep : int
        Warps that share columns and take a unit of k each.
    stages : int
        Steps of k that are under way at once.
    splits : int
        Parts of k that blocks of their own sum up.
    swap : bool
        Whether the weights are the tensor core's first operand.
    late : bool
        Whether scales multiply sums of products, instead of weights.
    """

    block_m: int = 16
    block_n: int = 128
    warps: int = 4
    deep: int = 1
    stages: int = 4
    splits: int = 1
    swap: bool = False
    late: bool = False


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
    schedule = deepened(widened(by_rows(m), n, form, processors), n, k, form, processors)
    schedule = fitting(schedule, form, target)
    schedule = replace(schedule, late=scales_late(schedule, k, form))
    return Choice("mma", replace(schedule, splits=split_count(m, n, k, schedule, processors)))


def by_rows(m: int) -> Schedule:
    """Return the tiles for a number of rows."""
    if m <= 8:
        return Schedule(block_m=8, swap=True)
    if m <= 16:
        return Schedule()
    if m <= 32:
        return Schedule(block_m=32, stages=3)
    return Schedule(block_m=64, stages=3)


def widened(schedule: Schedule, n: int, form: WeightForm, processors: int) -> Schedule:
    """Give each warp more columns where there are enough: with narrow weights a loop's own instructions count."""
    wide = replace(schedule, block_n=2 * schedule.block_n)
    if schedule.block_m > 16 or form.dtype.bits > 4 or -(-n // wide.block_n) < processors:
        return schedule
    return wide


def deepened(schedule: Schedule, n: int, k: int, form: WeightForm, processors: int) -> Schedule:
    """Let warps share columns where there are too few of them for all multiprocessors."""
    if schedule.block_m > 16:
        return schedule
    while (
        schedule.block_n > UNIT_N
        and -(-n // schedule.block_n) < processors
        and schedule.deep < MOST_DEEP
        and k >= 2 * FEWEST_STAGES * schedule.deep * UNIT_K
        and fits_deep(form.group, k, 2 * schedule.deep)
    ):
        schedule = replace(schedule, block_n=schedule.block_n // 2, deep=2 * schedule.deep)
    return schedule


def scales_late(schedule: Schedule, k: int, form: WeightForm) -> bool:
    """Tell whether scaling sums is cheaper than scaling weights, or the only way.

    Small floats are scaled as weights: a scale makes up for the exponent that their cast leaves out, without which they
    may be subnormal, and of those a tensor core may make what it likes (PTX ISA, mma).
    """
    if form.activations.bits == 8:
        return True
    if form.dtype.kind == "float":
        return False
    # A multiplication for two weights, or for each sum; zero points double both.
    weights = UNIT_N * (UNIT_K if form.group >= k else min(form.group, UNIT_K)) / 2
    sums = schedule.block_m * UNIT_N
    return form.group >= k or sums <= weights


def fits_deep(group: int, k: int, deep: int) -> bool:
    """Tell whether each step of `deep` units has one row of scales, or whole rows of them for each unit."""
    return group >= k or UNIT_K % group == 0 or group % (deep * UNIT_K) == 0


def stage_bytes(schedule: Schedule, form: WeightForm) -> int:
    """Return the shared memory of one step of k."""
    depth = schedule.deep * UNIT_K
    groups = max(1, depth // form.group)
    values = groups * schedule.block_n
    units = schedule.deep * (schedule.block_n // UNIT_N)
    buffers = [schedule.block_m * depth * form.activations.bits // 8, unit_bytes(form.dtype.bits) * units]
    buffers += [values * (2 if form.scale is None else 1), values * 2 if form.has_zero else 0]
    if form.activations.bits == 8:
        spans = schedule.deep * max(1, UNIT_K // form.group)
        buffers += [spans * schedule.block_m * 4, schedule.deep * schedule.block_m * 4]
    return sum(-(-size // PERIOD) * PERIOD for size in buffers)


def fitting(schedule: Schedule, form: WeightForm, target: Target) -> Schedule:
    """Return the schedule with as few stages, and as small a tile, as the target's shared memory asks for."""
    stages = min(schedule.stages, target.shared_bytes // stage_bytes(schedule, form))
    if stages < FEWEST_STAGES and schedule.block_m > 16:
        return fitting(replace(schedule, block_m=schedule.block_m // 2), form, target)
    if stages < FEWEST_STAGES and schedule.deep > 1:
        shallower = replace(schedule, deep=schedule.deep // 2, block_n=2 * schedule.block_n)
        return fitting(shallower, form, target)
    return replace(schedule, stages=max(stages, FEWEST_STAGES))


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
