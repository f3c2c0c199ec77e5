"""What is multiplied with a quantised weight, and the tiles of a kernel for it."""

from __future__ import annotations

from dataclasses import dataclass

from tilus.codegen import Target
from tilus.codegen.casts import cast_cost, stored_arrangement, stored_exponent
from tilus.dtypes import DType, int8, uint8
from tilus.ops.prepack import UNIT_K, UNIT_N, unit_bytes

FEWEST_STAGES = 2
MOST_SPLITS = 16
# Buffers begin at multiples of the longest swizzle's period.
PERIOD = 1024
# Of a table of all pairs of 4-bit codes, which is looked up with few rows: 32 bits for each lane.
TABLE_BYTES = 256 * 32 * 4
# Of the pairs' numbers, which threads exchange when they make it.
TABLE_SCRATCH = 256 * 32
MOST_ROWS_OF_TABLE = 16


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
        Parts of k of each tile that blocks of their own sum up.
    blocks : int
        Blocks that have an equal part each of the steps of all tiles, instead of a tile or a part of it; 0 is off.
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
    blocks: int = 0
    swap: bool = False
    late: bool = False


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
    if form.has_zero:
        # As many multiplications either way are 64 rows, where both a span's sums and zero points find no registers.
        return form.group >= k or sums < weights
    return form.group >= k or sums <= weights


def operand_of(form: WeightForm) -> DType:
    """Return the type that weights are decoded to."""
    return uint8 if form.activations == int8 and form.dtype.kind == "uint" else form.activations


def packed_cost(form: WeightForm, target: Target) -> float | None:
    """Return the instructions of the cast of one weight; None where each element takes the general way."""
    source, dest = form.dtype, operand_of(form)
    if source == dest:
        return 0.0
    order = stored_arrangement(source, dest)
    return cast_cost(target, source, dest, order, scaled=stored_exponent(source, dest, target) != 0)


def fits_deep(group: int, k: int, deep: int) -> bool:
    """Tell whether each step of `deep` units has one row of scales, or whole rows of them for each unit."""
    return group >= k or UNIT_K % group == 0 or group % (deep * UNIT_K) == 0


def stage_bytes(schedule: Schedule, form: WeightForm) -> int:
    """Return the shared memory that one step of k takes at most."""
    return sum(-(-size // PERIOD) * PERIOD for size in buffers_of(schedule, form))


def buffers_of(schedule: Schedule, form: WeightForm) -> list[int]:
    """Return the bytes of each buffer for one step of k."""
    depth = schedule.deep * UNIT_K
    groups = max(1, depth // form.group)
    values = groups * schedule.block_n
    units = schedule.deep * (schedule.block_n // UNIT_N)
    buffers = [schedule.block_m * depth * form.activations.bits // 8, unit_bytes(form.dtype.bits) * units]
    buffers += [values * (2 if form.scale is None else 1), values * 2 if form.has_zero else 0]
    if form.activations.bits == 8:
        spans = schedule.deep * max(1, UNIT_K // form.group)
        buffers += [spans * schedule.block_m * 4, schedule.deep * schedule.block_m * 4]
    return buffers


def table_bytes(form: WeightForm) -> int:
    """Return the shared memory of the table that decodes codes of a codebook, 0 where there is none.

    Byte permutations take 2.6 instructions for each, all of units that issue two warps in a clock; to look up a pair
    takes three for both.
    """
    return TABLE_BYTES if form.dtype.is_table and form.dtype.bits == 4 and form.activations.bits == 16 else 0


def looks_up(schedule: Schedule, form: WeightForm, target: Target) -> bool:
    """Tell whether codes are looked up: with few rows, where there is room."""
    table = table_bytes(form)
    room = target.shared_bytes - schedule.stages * stage_bytes(schedule, form)
    return 0 < table <= room and schedule.block_m <= MOST_ROWS_OF_TABLE
