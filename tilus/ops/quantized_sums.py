"""The loop over k of the kernels with quantised weights: what it copies, and what it adds up."""

from __future__ import annotations

import tilus
from tilus import float32, int32, uint8
from tilus.codegen.casts import biased_cast
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
    product,
    row_sums,
    scaled,
    scales_of,
)

MOST_BIASED_ROWS = 32


@tilus.inline
def sums_over(
    a, b, scale, zero, row_scale, row, column, first, last, *,
    b_dtype, w_dtype, s_dtype, group, span, has_zero, late, by_block, halves, exponent, s_exponent, swap, deep, block_m,
    block_n, stages, warps, bulk,
):  # fmt: skip
    """Return a tile's sums over the steps of `deep` units of k from `first` to before `last`.

    The first result is as `tilus.ops.quantized_parts.collected` takes it, with scales and zero points applied if there
    are spans: to weights, or `late` to sums over spans. The second one is the sums of the rows of a, if there are zero
    points but no spans. `bulk` copies with TMA, which takes few instructions of one warp.
    """
    a_dtype = a.dtype
    block_k = deep * UNIT_K
    groups = tilus.max(block_k // group, 1)
    rows = block_n // UNIT_N * unit_bytes(b_dtype.bits) // ROW
    sum_dtype = int32 if a_dtype.is_integer else float32
    shape = (deep * block_n, block_m) if swap else (block_m, deep * block_n)
    sum_shape = (1, block_m) if swap else (block_m, 1)
    acc = tilus.zeros(shape, float32 if span else sum_dtype)
    total = tilus.zeros(sum_shape, float32, layout=sum_layout(block_m, warps, swap))
    # With activations of 16 bits the tensor core takes off what a cheaper cast leaves in the weights. It does so first,
    # so that registers must hold all of a step's activations.
    few = late and block_m <= MOST_BIASED_ROWS
    biased = few and a_dtype.bits == 16 and biased_cast(b_dtype, w_dtype) is not None
    offsets = offsets_of(b_dtype, w_dtype, warps) if biased else None
    if bulk:
        sa = tilus.shared(a_dtype, (stages, block_m, block_k))
        sb = tilus.shared(uint8, (stages, deep, rows, ROW))
        ss = tilus.shared(s_dtype, (stages, groups, block_n)) if span else None
        sz = tilus.shared(zero.dtype, (stages, groups, block_n)) if span and has_zero else None
        sr = tilus.shared(float32, (stages, deep, block_m)) if by_block else None
        size = block_m * block_k * a_dtype.nbytes + deep * rows * ROW
        if span:
            size += groups * block_n * (s_dtype.nbytes + (zero.dtype.nbytes if has_zero else 0))
        if by_block:
            size += deep * block_m * 4
        full = tilus.barrier(stages)
        for ahead in range(tilus.min(stages - 1, last - first)):
            with tilus.warps(0, 1):
                tilus.arrive(full, index=ahead, bytes=size)
                fetch(
                    a, b, scale, zero, row_scale, sa, sb, ss, sz, sr, full, ahead, row, column, first + ahead,
                    bits=b_dtype.bits, group=group, deep=deep,
                )  # fmt: skip
        stage, before, phase = 0, stages - 1, 0
        for step in range(first, last):
            tilus.wait(full, phase, index=stage)
            # By now all warps are done with the stage before.
            tilus.sync()
            if step + stages - 1 < last:
                with tilus.warps(0, 1):
                    tilus.arrive(full, index=before, bytes=size)
                    fetch(
                        a, b, scale, zero, row_scale, sa, sb, ss, sz, sr, full, before, row, column, step + stages - 1,
                        bits=b_dtype.bits, group=group, deep=deep,
                    )  # fmt: skip
            acc, total = add_step(
                acc, total, sa[stage], sb[stage], ss[stage] if span else None, sz[stage] if sz is not None else None,
                sr[stage] if by_block else None, offsets, b_dtype=b_dtype, w_dtype=w_dtype, group=group, span=span,
                has_zero=has_zero, late=late, halves=halves, exponent=exponent, s_exponent=s_exponent, swap=swap,
                deep=deep, block_n=block_n, warps=warps,
            )  # fmt: skip
            before = stage
            phase = 1 - phase if stage == stages - 1 else phase
            stage = 0 if stage == stages - 1 else stage + 1
    else:
        for step in tilus.pipeline(range(first, last), stages=stages):
            sa = tilus.shared(a_dtype, (block_m, block_k))
            sb = tilus.shared(uint8, (deep, rows, ROW))
            ss = tilus.shared(s_dtype, (groups, block_n)) if span else None
            sz = tilus.shared(zero.dtype, (groups, block_n)) if span and has_zero else None
            sr = tilus.shared(float32, (deep, block_m)) if by_block else None
            tilus.copy_async(sa, a, (row, step * block_k))
            tilus.copy_async(sb, b, (step * deep, column // UNIT_N * unit_bytes(b_dtype.bits) // ROW, 0), cache="streaming")
            if span:
                tilus.copy_async(ss, scale, (group_of(step, group, block_k), column))
                if has_zero:
                    tilus.copy_async(sz, zero, (group_of(step, group, block_k), column))
            if by_block:
                tilus.copy_async(sr, row_scale, (step * deep, row))
            acc, total = add_step(
                acc, total, sa, sb, ss, sz, sr, offsets, b_dtype=b_dtype, w_dtype=w_dtype, group=group, span=span,
                has_zero=has_zero, late=late, halves=halves, exponent=exponent, s_exponent=s_exponent, swap=swap,
                deep=deep, block_n=block_n, warps=warps,
            )  # fmt: skip
    return acc, total


@tilus.inline
def group_of(step, group, block_k):
    """Return the row of scales of a step."""
    if group % block_k == 0:
        return step // (group // block_k)
    return step * (block_k // group) if block_k % group == 0 else step * block_k // group


@tilus.inline
def fetch(
    a, b, scale, zero, row_scale, sa, sb, ss, sz, sr, full, stage, row, column, step, *, bits, group, deep,
):  # fmt: skip
    """Start to copy what a step needs to a stage."""
    block_k = sa.shape[2]
    tilus.copy_bulk(sa[stage], a, (row, step * block_k), full, index=stage)
    rows = column // UNIT_N * unit_bytes(bits) // ROW
    tilus.copy_bulk(sb[stage], b, (step * deep, rows, 0), full, index=stage)
    if ss is not None:
        tilus.copy_bulk(ss[stage], scale, (group_of(step, group, block_k), column), full, index=stage)
    if sz is not None:
        tilus.copy_bulk(sz[stage], zero, (group_of(step, group, block_k), column), full, index=stage)
    if sr is not None:
        tilus.copy_bulk(sr[stage], row_scale, (step * deep, row), full, index=stage)


@tilus.inline
def add_step(
    acc, total, sa, sb, ss, sz, sr, offsets, *,
    b_dtype, w_dtype, group, span, has_zero, late, halves, exponent, s_exponent, swap, deep, block_n, warps,
):  # fmt: skip
    """Return the sums of `sums_over` with those of a step in shared memory."""
    block_m = sa.shape[0]
    biased = offsets is not None
    sum_dtype = int32 if sa.dtype.is_integer else float32
    shape = (deep * block_n, block_m) if swap else (block_m, deep * block_n)
    weight = decoded(sb, b_dtype, w_dtype, exponent, block_n, warps, deep, biased)
    rows = own_rows(sa, block_m, warps, deep, swap, halves)
    if halves:
        rows, weight = halved(rows, weight, swap, warps)
    if not late:
        scales = scales_of(ss, w_dtype, exponent - s_exponent, deep)
        zeros = by_column(tilus.load(sz), deep) if has_zero else scales
        acc = product(rows, scaled(weight, scales, zeros, has_zero, exponent), acc, swap)
    elif span:
        scales = scales_of(ss, float32, 0, deep)
        if has_zero:
            zeros = tilus.cast(by_column(tilus.load(sz), deep), float32) * 2.0**-exponent
        for p in tilus.static_range(UNIT_K // span):
            own = rows[p * span : (p + 1) * span, :] if swap else rows[:, p * span : (p + 1) * span]
            codes = weight[p * span : (p + 1) * span, :]
            start = tilus.zeros(shape, sum_dtype)
            if biased:
                start = excess_of(own, offsets[p * span : (p + 1) * span, :], deep * block_n, swap, warps)
            value = tilus.cast(product(own, codes, start, swap), float32)
            of_group = p if group < UNIT_K else 0
            if has_zero:
                value = value - across(zeros, of_group, swap) * row_sums(own, sum_dtype, swap, warps)
            if sr is not None:
                value = value * by_row(tilus.load(sr), deep, block_n, swap)
            acc = acc + value * across(scales, of_group, swap)
    else:
        if biased:
            start = excess_of(rows, offsets, deep * block_n, swap, warps)
            acc = acc + product(rows, weight, start, swap)
        else:
            acc = product(rows, weight, acc, swap)
        if has_zero:
            total = total + row_sums(rows, sum_dtype, swap, warps)
    return acc, total
