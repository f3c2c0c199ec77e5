"""Parts of the kernels with quantised weights, for kernels of other shapes to be made of too.

A step of such a kernel takes `deep` units of k: with more than one, warps that share columns take a unit each, and the
block adds up at its end what they found. Each warp then has activations of its own in registers that the dot sees as
copies of one tile.
"""

from __future__ import annotations

import tilus
from tilus import bfloat16, float8_e8m0, float16, float32, int8, int32, uint8, uint16, uint32
from tilus.layout import local, spatial
from tilus.ops.matmul_kernel import activate
from tilus.ops.prepack import (
    ROW,
    THREADS,
    UNIT_K,
    UNIT_N,
    box_layout,
    byte_layout,
    code_layout,
    halved_codes,
    halved_rows,
    row_layout,
    store_layout,
    sum_layout,
)


@tilus.inline
def decoded(sb, b_dtype, w_dtype, exponent, block_n, warps, deep, biased=False, table=None):
    """Return a step's weights over 2**exponent, 128 x (deep * block_n), from packed units in shared memory.

    With `biased` they have the offsets of `offsets_of`; they come from the table of `pair_table` if there is one.
    """
    n = deep * block_n
    lie = box_layout if sb.shape[2] == ROW else byte_layout
    codes = tilus.load(sb, layout=lie(UNIT_K, n, b_dtype.bits, warps, deep=deep))
    layout = code_layout(UNIT_K, n, warps, operand_bits=w_dtype.bits)
    if table is not None:
        threads = THREADS * warps
        held = UNIT_K * n // (8 * threads)
        words = tilus.view(codes, uint32, (threads, held), layout=spatial(threads, 1) * local(1, held))
        lanes = (tilus.arange(threads) % THREADS)[:, None]
        places = [place_of_pair(words, lanes, 0)]
        for byte in tilus.static_range(1, 4):
            places = [*places, place_of_pair(words, lanes, byte)]
        at = tilus.reshape(tilus.concat(places, axis=2), (threads, 4 * held))
        at = tilus.annotate_layout(at, spatial(threads, 1) * local(1, 4 * held))
        return tilus.view(tilus.load(table, indices=at, checked=False), w_dtype, (UNIT_K, n), layout=layout)
    low = tilus.view(codes, b_dtype, (UNIT_K, n), layout=layout)
    return tilus.cast(low, w_dtype, arranged=True, exponent=exponent, biased=biased)


@tilus.inline
def place_of_pair(words, lanes, byte):
    """Return where the pair of codes in a byte of words is in `pair_table`, for the lanes that ask.

    The compiler would take the byte out by a shift and a mask.
    """
    text = f"{{ .reg .b32 t; prmt.b32 t, $1, 0, 0x444{byte}; mad.lo.u32 $0, t, {THREADS}, $2; }}"
    return tilus.inline_ptx(text, (words, lanes), int32)[:, :, None]


@tilus.inline
def pair_table(b_dtype, w_dtype, warps):
    """Return the values of all pairs of 4-bit codes in shared memory: for each lane, all in a bank of its own."""
    table = tilus.shared(uint32, (256 * THREADS,))
    rows = local(256 // warps, 1) * spatial(warps, THREADS)
    number = tilus.broadcast_to(tilus.cast(tilus.arange(256), uint8)[:, None], (256, THREADS))
    codes = tilus.view(
        tilus.annotate_layout(number, rows), b_dtype, (256, THREADS, 2),
        layout=local(256 // warps, 1, 1) * spatial(warps, THREADS, 1) * local(1, 1, 2),
    )  # fmt: skip
    words = tilus.view(tilus.cast(codes, w_dtype), uint32, (256, THREADS), layout=rows)
    tilus.store(table, tilus.reshape(words, (256 * THREADS,)))
    tilus.sync()
    return table


@tilus.inline
def offsets_of(b_dtype, w_dtype, warps):
    """Return what the codes of a unit have in excess when their cast leaves offsets, the same in all columns."""
    layout = code_layout(UNIT_K, UNIT_N * warps, warps, operand_bits=w_dtype.bits)
    # As weights are stored, the highest bit of an int8 is inverted: a zero has the bits of -128.
    zero = -128 if b_dtype == int8 else 0
    nothing = tilus.full((UNIT_K, UNIT_N * warps), zero, b_dtype, layout=layout)
    return tilus.cast(nothing, w_dtype, arranged=True, biased=True)


@tilus.inline
def own_rows(sa, block_m, warps, deep, turned, halves=False):
    """Return a step's activations, block_m x 128 or turned: of each warp those of its part of k."""
    if deep == 1 and not halves:
        return tilus.load(sa.transpose()) if turned else tilus.load(sa)
    shared = row_layout(block_m, UNIT_K, warps, deep, sa.dtype.bits, turned)
    own = row_layout(block_m, UNIT_K, warps, 1, sa.dtype.bits, turned)
    if turned:
        return tilus.view(tilus.load(sa.transpose(), layout=shared), sa.dtype, (UNIT_K, block_m), layout=own)
    return tilus.view(tilus.load(sa, layout=shared), sa.dtype, (block_m, UNIT_K), layout=own)


@tilus.inline
def by_column(rows, deep):
    """Return a step's values of each group and column, groups x (deep * columns), one row if there is one."""
    count, columns = rows.shape
    if deep == 1:
        return rows
    if count == 1:
        wide = tilus.broadcast_to(rows[:, None, :], (1, deep, columns))
        return tilus.reshape(wide, (1, deep * columns))
    parts = tilus.reshape(rows, (deep, count // deep, columns))
    return tilus.reshape(tilus.transpose(parts, (1, 0, 2)), (count // deep, deep * columns))


@tilus.inline
def across(columns, group, swap):
    """Return a group's row of `by_column`, to be broadcast with the accumulator."""
    row = columns[group : group + 1, :]
    return tilus.transpose(row) if swap else row


@tilus.inline
def by_row(values, deep, block_n, swap):
    """Return what a step has for each of its units of k and each row of a, to be broadcast with the accumulator."""
    rows = values.shape[1]
    if deep == 1:
        return values if swap else tilus.transpose(values)
    if swap:
        wide = tilus.broadcast_to(values[:, None, :], (deep, block_n, rows))
        return tilus.reshape(wide, (deep * block_n, rows))
    wide = tilus.broadcast_to(tilus.transpose(values)[:, :, None], (rows, deep, block_n))
    return tilus.reshape(wide, (rows, deep * block_n))


@tilus.inline
def spread(rows):
    """Repeat each row of a tile of values of groups so that there is one for each k."""
    groups, columns = rows.shape
    if groups == 1:
        return rows
    wide = tilus.broadcast_to(rows[:, None, :], (groups, UNIT_K // groups, columns))
    return tilus.reshape(wide, (UNIT_K, columns))


@tilus.inline
def scales_of(ss, dtype, exponent, deep):
    """Return a step's scales times 2**exponent in a type, as `by_column` gives them, from shared memory."""
    codes = tilus.load(ss)
    if ss.dtype == float8_e8m0:
        return by_column(power_of_two(codes, dtype, exponent), deep)
    return by_column(tilus.cast(codes, dtype), deep) * 2.0**exponent


@tilus.inline
def power_of_two(codes, dtype, exponent):
    """Return 2**(codes - 127 + exponent) by placing codes as exponents, for codes of weights (`tilus.ops.scales`).

    The code 0 stands for what is not there: any finite number does.
    """
    bits = tilus.cast(tilus.view(codes, uint8), uint32)
    if dtype == float32:
        return tilus.view(bits << 23, float32) * 2.0**exponent
    if dtype == bfloat16:
        return tilus.view(tilus.cast((bits + exponent) << 7, uint16), bfloat16)
    # Codes from 113 - 14 on become normal numbers; a small float's exponent of 8 or 12 does for its own smallest scale.
    near = exponent if 0 < exponent < 15 else 14
    if exponent > near:
        # The code 0 would become 2**15, which the factor makes infinite.
        bits = tilus.maximum(bits, 112 - near)
    made = tilus.view(tilus.cast((bits - (112 - near)) << 10, uint16), float16)
    return made if near == exponent else made * 2.0 ** (exponent - near)


@tilus.inline
def scaled(weight, scale, zero, has_zero, exponent):
    """Return (codes - zero) * scale of codes over 2**exponent, with scale times 2**exponent and zero of each column."""
    if has_zero:
        weight = weight - spread(zero * 2.0**-exponent)
    return weight * spread(scale)


@tilus.inline
def product(rows, weight, acc, swap):
    """Add a product to the accumulator; with `swap` of rows that are turned, and the result is turned too."""
    if swap:
        return tilus.dot(weight.transpose(), rows, acc)
    return tilus.dot(rows, weight, acc)


@tilus.inline
def halved(rows, weight, swap, warps):
    """Return operands of float8 as float16, for targets without instructions for float8."""
    k, n = weight.shape
    block_m = rows.shape[1] if swap else rows.shape[0]
    wide = tilus.cast(rows, float16), tilus.cast(weight, float16, arranged=True)
    return (
        tilus.view(wide[0], float16, rows.shape, layout=halved_rows(block_m, k, warps, swap)),
        tilus.view(wide[1], float16, (k, n), layout=halved_codes(k, n, warps)),
    )


@tilus.inline
def row_sums(rows, sum_dtype, swap, warps):
    """Return the sums along k of each row of activations, in float32, to be broadcast with the accumulator.

    The tensor core multiplies them with ones: then each thread has the sums of the rows that it accumulates, and of
    each warp those of its own part of k.
    """
    one = 1 if rows.dtype.is_integer else 1.0
    if swap:
        k, block_m = rows.shape
        ones = tilus.full((16 * warps, k), one, rows.dtype)
        found = tilus.dot(ones, rows, tilus.zeros((16 * warps, block_m), sum_dtype))
        first = tilus.reshape(found, (warps, 2, 8, block_m))[:, 0, :, :]
        sums = tilus.view(first, sum_dtype, (1, block_m), layout=sum_layout(block_m, warps, True))
    else:
        block_m, k = rows.shape
        ones = tilus.full((k, 8 * warps), one, rows.dtype)
        found = tilus.dot(rows, ones, tilus.zeros((block_m, 8 * warps), sum_dtype))
        first = tilus.reshape(found, (block_m, warps, 4, 2))[:, :, :, 0]
        sums = tilus.view(first, sum_dtype, (block_m, 1), layout=sum_layout(block_m, warps, False))
    return tilus.cast(sums, float32)


@tilus.inline
def excess_of(rows, offsets, n, swap, warps):
    """Return what products of rows with weights that have offsets are too small by: to be the accumulator's start.

    The tensor core multiplies the rows with the offsets of one tile of columns, or of weights as rows, and all other
    tiles have the same: their accumulators can begin in the same registers.
    """
    if swap:
        k, block_m = rows.shape
        own = tilus.reshape(tilus.reshape(-offsets, (k, warps, 2, 16))[:, :, 0, :], (k, 16 * warps))
        found = tilus.dot(own.transpose(), rows, tilus.zeros((16 * warps, block_m), float32))
        wide = tilus.reshape(found, (warps, 1, 16, block_m))
        return tilus.reshape(tilus.broadcast_to(wide, (warps, n // warps // 16, 16, block_m)), (n, block_m))
    block_m, k = rows.shape
    own = tilus.reshape(tilus.reshape(-offsets, (k, warps, 4, 8))[:, :, 0, :], (k, 8 * warps))
    found = tilus.dot(rows, own, tilus.zeros((block_m, 8 * warps), float32))
    wide = tilus.reshape(found, (block_m, warps, 1, 8))
    return tilus.reshape(tilus.broadcast_to(wide, (block_m, warps, n // warps // 8, 8)), (block_m, n))


@tilus.inline
def collected(acc, deep, swap):
    """Return the accumulator as rows x columns, the parts of k of the block's warps added up."""
    if swap:
        if deep > 1:
            acc = tilus.sum(tilus.reshape(acc, (deep, acc.shape[0] // deep, acc.shape[1])), axis=0)
        return tilus.transpose(acc)
    if deep > 1:
        return tilus.sum(tilus.reshape(acc, (acc.shape[0], deep, acc.shape[1] // deep)), axis=1)
    return acc


@tilus.inline
def finished(total, bias, column, has_bias, activation, gated):
    """Return activation(total + bias), or of columns of a gated pair activation(gate) * up, half as wide."""
    block_m, block_n = total.shape
    if has_bias:
        total = total + tilus.cast(tilus.load(bias, column, block_n), float32)[None, :]
    if gated:
        # Eight columns of the gate are followed by the eight columns that they go with.
        pairs = tilus.reshape(total, (block_m, block_n // 16, 2, 8))
        gate = tilus.reshape(pairs[:, :, 0, :], (block_m, block_n // 2))
        return activate(gate, activation) * tilus.reshape(pairs[:, :, 1, :], (block_m, block_n // 2))
    return activate(total, activation)


@tilus.inline
def stored(c, out, part, row, column, warps, deep):
    """Write a tile of the result; where warps shared columns it is small, and not all threads have a part of it."""
    made = tilus.cast(out, c.dtype)
    if deep > 1:
        layout = store_layout(made.shape[0], made.shape[1], c.dtype.bits, warps)
        made = tilus.annotate_layout(made, layout)
    tilus.store(c, made, (part, row, column))
