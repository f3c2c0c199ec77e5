"""The loop over k of the kernels with quantised weights: what it copies, and what it adds up."""

from __future__ import annotations

from dataclasses import dataclass

import tilus
from tilus import float32, int32, uint8
from tilus.codegen.casts import biased_cast
from tilus.dtypes import DType
from tilus.ops.prepack import ROW, UNIT_K, UNIT_N, sum_layout, unit_bytes
from tilus.ops.quantized_parts import (
    across,
    by_column,
    by_row,
    decoded,
    excess_of,
    halved,
    offsets_of,
    own_rows,
    pair_table,
    product,
    row_sums,
    scaled,
    scales_of,
)

# The tensor core takes off first what a cheaper cast leaves in weights, so registers hold all of a step's activations.
MOST_BIASED_ROWS = 32


@dataclass(frozen=True)
class Steps:
    """What the steps of a kernel along k are like; a step is `deep` units of k of a tile.

    Attributes
    ----------
    a_dtype, b_dtype, w_dtype, s_dtype, z_dtype : DType
        Of the activations, the codes, what these are cast to, scales as stored, and zero points.
    group, span : int
        Elements of k that share a scale, and that are added up before they are scaled: 0 is all of them.
    has_zero, by_block, halves : bool
        Whether there are zero points, whether activations have a scale for each row and unit of k, and whether operands
        of float8 are multiplied as float16.
    late : bool
        Whether scales multiply sums over spans instead of weights.
    exponent, s_exponent : int
        Decoded weights, and scales that multiply weights, are values over these powers of two.
    swap : bool
        Whether weights are the tensor core's first operand.
    deep, block_m, block_n, stages, warps : int
        As in `tilus.ops.quantized_schedule.Schedule`.
    bulk : bool
        Whether TMA copies, which takes few instructions of one warp.
    lookup : bool
        Whether codes of 4 bits are looked up in shared memory, two at a time.
    """

    a_dtype: DType
    b_dtype: DType
    w_dtype: DType
    s_dtype: DType
    z_dtype: DType
    group: int
    span: int
    has_zero: bool
    late: bool
    exponent: int
    swap: bool
    deep: int
    block_m: int
    block_n: int
    stages: int
    warps: int
    bulk: bool
    s_exponent: int = 0
    by_block: bool = False
    halves: bool = False
    lookup: bool = False

    @property
    def block_k(self) -> int:
        """Elements of k of a step."""
        return self.deep * UNIT_K

    @property
    def groups(self) -> int:
        """Rows of scales of a step."""
        return max(self.block_k // self.group, 1)

    @property
    def rows(self) -> int:
        """Rows of ROW bytes of a step's codes at one k."""
        return self.block_n // UNIT_N * unit_bytes(self.b_dtype.bits) // ROW

    @property
    def shape(self) -> tuple[int, int]:
        """Shape of the accumulator."""
        columns = self.deep * self.block_n
        return (columns, self.block_m) if self.swap else (self.block_m, columns)

    @property
    def sum_dtype(self) -> DType:
        """What the tensor core adds up in."""
        return int32 if self.a_dtype.is_integer else float32

    @property
    def biased(self) -> bool:
        """Whether the cast of codes leaves offsets in them."""
        few = self.late and self.block_m <= MOST_BIASED_ROWS
        return few and self.a_dtype.bits == 16 and biased_cast(self.b_dtype, self.w_dtype) is not None

    @property
    def bytes(self) -> int:
        """Bytes that a step copies."""
        copied = self.block_m * self.block_k * self.a_dtype.nbytes + self.deep * self.rows * ROW
        if self.span:
            each = self.s_dtype.nbytes + (self.z_dtype.nbytes if self.has_zero else 0)
            copied += self.groups * self.block_n * each
        return copied + (self.deep * self.block_m * 4 if self.by_block else 0)


@tilus.inline
def stage_buffers(how):
    """Return shared memory for the stages of bulk copies, the barriers that tell when they have come, and a table."""
    table = pair_table(how.b_dtype, how.w_dtype, how.warps) if how.lookup else None
    if not how.bulk:
        return None, None, None, None, None, None, table
    sa = tilus.shared(how.a_dtype, (how.stages, how.block_m, how.block_k))
    sb = tilus.shared(uint8, (how.stages, how.deep, how.rows, ROW))
    ss = tilus.shared(how.s_dtype, (how.stages, how.groups, how.block_n)) if how.span else None
    sz = (
        tilus.shared(how.z_dtype, (how.stages, how.groups, how.block_n))
        if how.span and how.has_zero
        else None
    )
    sr = tilus.shared(float32, (how.stages, how.deep, how.block_m)) if how.by_block else None
    return sa, sb, ss, sz, sr, tilus.barrier(how.stages), table


@tilus.inline
def place_of(tile, tiles_m, how):
    """Return the first row and column of a tile: tiles with the same columns follow one another."""
    return tile % tiles_m * how.block_m, tile // tiles_m * how.block_n


@tilus.inline
def prefetch(sources, buffers, tile, step, count, steps, tiles_m, how):
    """Start the copies of the first stages of `count` steps, from a step of a tile on; each tile has `steps` of them.

    Return what `sums_over` goes on from: the next one's step, first row and first column, and how many are left.
    """
    row, column = place_of(tile, tiles_m, how)
    if how.bulk:
        for stage in range(tilus.min(how.stages - 1, count)):
            with tilus.warps(0, 1):
                fetch(sources, buffers, stage, row, column, step, how)
            step, row, column = next_step(step, row, column, steps, tiles_m, how)
    return step, row, column, count - (how.stages - 1)


@tilus.inline
def group_of(step, how):
    """Return the first row of scales of a step."""
    if how.group % how.block_k == 0:
        return step // (how.group // how.block_k)
    if how.block_k % how.group == 0:
        return step * (how.block_k // how.group)
    return step * how.block_k // how.group


@tilus.inline
def next_step(step, row, column, steps, tiles_m, how):
    """Return the step after one, and its tile's first row and column."""
    step += 1
    if step == steps:
        step, row = 0, row + how.block_m
        if row == tiles_m * how.block_m:
            row, column = 0, column + how.block_n
    return step, row, column


@tilus.inline
def fetch(sources, buffers, stage, row, column, step, how):
    """Start to copy what a step needs to a stage."""
    a, b, scale, zero, row_scale = sources
    sa, sb, ss, sz, sr, full, _ = buffers
    tilus.arrive(full, index=stage, bytes=how.bytes)
    tilus.copy_bulk(sa[stage], a, (row, step * how.block_k), full, index=stage)
    units = column // UNIT_N * (unit_bytes(how.b_dtype.bits) // ROW)
    tilus.copy_bulk(sb[stage], b, (step * how.deep, units, 0), full, index=stage)
    if how.span:
        tilus.copy_bulk(ss[stage], scale, (group_of(step, how), column), full, index=stage)
        if how.has_zero:
            tilus.copy_bulk(sz[stage], zero, (group_of(step, how), column), full, index=stage)
    if how.by_block:
        tilus.copy_bulk(sr[stage], row_scale, (step * how.deep, row), full, index=stage)


@tilus.inline
def sums_over(sources, buffers, ahead, stage, phase, row, column, first, last, steps, tiles_m, how):
    """Return a tile's sums over its steps from `first` to before `last`, and what the next tile's go on from.

    The first result is as `tilus.ops.quantized_parts.collected` takes it, with scales and zero points applied if there
    are spans. The second one is the sums of the rows of a, if there are zero points but no spans. Then come `ahead`, as
    `prefetch` returns it, stage and phase. Copies run on into the steps of the next tile.
    """
    a, b, scale, zero, row_scale = sources
    sum_shape = (1, how.block_m) if how.swap else (how.block_m, 1)
    acc = tilus.zeros(how.shape, float32 if how.span else how.sum_dtype)
    total = tilus.zeros(sum_shape, float32, layout=sum_layout(how.block_m, how.warps, how.swap))
    offsets = offsets_of(how.b_dtype, how.w_dtype, how.warps) if how.biased else None
    step_ahead, next_row, next_column, left = ahead
    sa, sb, ss, sz, sr, full, table = buffers
    if how.bulk:
        for _ in range(first, last):
            tilus.wait(full, phase, index=stage)
            # By now all warps are done with the stage before.
            tilus.sync()
            if left > 0:
                with tilus.warps(0, 1):
                    before = how.stages - 1 if stage == 0 else stage - 1
                    fetch(sources, buffers, before, next_row, next_column, step_ahead, how)
                step_ahead, next_row, next_column = next_step(
                    step_ahead, next_row, next_column, steps, tiles_m, how
                )
            left -= 1
            acc, total = add_step(
                acc, total, sa[stage], sb[stage], None if ss is None else ss[stage], None if sz is None else sz[stage],
                None if sr is None else sr[stage], offsets, table, how,
            )  # fmt: skip
            phase = 1 - phase if stage == how.stages - 1 else phase
            stage = 0 if stage == how.stages - 1 else stage + 1
    else:
        for step in tilus.pipeline(range(first, last), stages=how.stages):
            sa = tilus.shared(how.a_dtype, (how.block_m, how.block_k))
            sb = tilus.shared(uint8, (how.deep, how.rows, ROW))
            tilus.copy_async(sa, a, (row, step * how.block_k))
            units = column // UNIT_N * (unit_bytes(how.b_dtype.bits) // ROW)
            tilus.copy_async(sb, b, (step * how.deep, units, 0), cache="streaming")
            ss, sz, sr = None, None, None
            if how.span:
                ss = tilus.shared(how.s_dtype, (how.groups, how.block_n))
                tilus.copy_async(ss, scale, (group_of(step, how), column))
                if how.has_zero:
                    sz = tilus.shared(how.z_dtype, (how.groups, how.block_n))
                    tilus.copy_async(sz, zero, (group_of(step, how), column))
            if how.by_block:
                sr = tilus.shared(float32, (how.deep, how.block_m))
                tilus.copy_async(sr, row_scale, (step * how.deep, row))
            acc, total = add_step(acc, total, sa, sb, ss, sz, sr, offsets, table, how)
    return acc, total, (step_ahead, next_row, next_column, left), stage, phase


@tilus.inline
def add_step(acc, total, sa, sb, ss, sz, sr, offsets, table, how):
    """Return the sums of `sums_over` with those of a step in shared memory."""
    swap, warps, deep, span = how.swap, how.warps, how.deep, how.span
    weight = decoded(sb, how.b_dtype, how.w_dtype, how.exponent, how.block_n, warps, deep, how.biased, table)
    rows = own_rows(sa, how.block_m, warps, deep, swap, how.halves)
    if how.halves:
        rows, weight = halved(rows, weight, swap, warps)
    if not how.late:
        scales = scales_of(ss, how.w_dtype, how.exponent - how.s_exponent, deep)
        zeros = by_column(tilus.load(sz), deep) if how.has_zero else scales
        acc = product(rows, scaled(weight, scales, zeros, how.has_zero, how.exponent), acc, swap)
    elif span:
        scales = scales_of(ss, float32, 0, deep)
        if how.has_zero:
            zeros = tilus.cast(by_column(tilus.load(sz), deep), float32) * 2.0**-how.exponent
        if how.by_block:
            factors = by_row(tilus.load(sr), deep, how.block_n, swap)
        for p in tilus.static_range(UNIT_K // span):
            own = rows[p * span : (p + 1) * span, :] if swap else rows[:, p * span : (p + 1) * span]
            codes = weight[p * span : (p + 1) * span, :]
            start = tilus.zeros(how.shape, how.sum_dtype)
            if how.biased:
                start = excess_of(own, offsets[p * span : (p + 1) * span, :], deep * how.block_n, swap, warps)
            value = tilus.cast(product(own, codes, start, swap), float32)
            of_group = p if how.group < UNIT_K else 0
            if how.has_zero:
                value = value - across(zeros, of_group, swap) * row_sums(own, how.sum_dtype, swap, warps)
            if how.by_block:
                value = value * factors
            acc = acc + value * across(scales, of_group, swap)
    else:
        if how.biased:
            start = excess_of(rows, offsets, deep * how.block_n, swap, warps)
            acc = acc + product(rows, weight, start, swap)
        else:
            acc = product(rows, weight, acc, swap)
        if how.has_zero:
            total = total + row_sums(rows, how.sum_dtype, swap, warps)
    return acc, total
