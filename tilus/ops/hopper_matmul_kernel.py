"""The kernel behind `matmul` on targets with wgmma: persistent blocks of a TMA producer and wgmma consumers.

A block has one or two warpgroups that multiply and one whose first warp copies. Two consumers either work on one tile
(cooperative), or each on a tile of its own (ping-pong), where one multiplies while the other stores.
"""

from __future__ import annotations

from math import gcd

import tilus
from tilus import Tensor, constexpr, float32, int32
from tilus.layout import RegisterLayout, local, spatial
from tilus.ops.matmul_kernel import finish


@tilus.kernel
def hopper_matmul_kernel(
    a: Tensor["dtype", "a_batch a_rows a_columns"],
    b: Tensor["b_dtype", "b_batch b_rows b_columns"],
    c: Tensor["out_dtype", "batch m n"],
    bias: Tensor["out_dtype", "bias_n"],
    residual: Tensor["out_dtype", "residual_batch residual_m residual_n"],
    a_scale: Tensor[float32, "scale_m"],
    b_scale: Tensor[float32, "scale_n"],
    partial: Tensor["acc_dtype", "slots slot_m slot_n"],
    alpha: float32,
    beta: float32,
    blocks: int32,
    shared_tiles: int32,
    *,
    dtype: constexpr,
    b_dtype: constexpr,
    out_dtype: constexpr,
    acc_dtype: constexpr = float32,
    a_turned: constexpr = False,
    b_turned: constexpr = False,
    batched_b: constexpr = False,
    has_bias: constexpr = False,
    has_residual: constexpr = False,
    has_scales: constexpr = False,
    activation: constexpr = "",
    block_m: constexpr = 128,
    block_n: constexpr = 128,
    block_k: constexpr = 64,
    stages: constexpr = 4,
    consumers: constexpr = 2,
    pingpong: constexpr = False,
    stream: constexpr = False,
    bulk_store: constexpr = True,
    group: constexpr = 8,
):
    """c = activation(alpha * a @ b + bias) + beta * residual; a turned operand is given as its transpose.

    With `stream`, the last `shared_tiles` tiles are cut along k into one piece for each block. Sums of a part of k go
    to `partial`, and `stream_k_kernel` adds them up.
    """
    m, n = c.shape[1], c.shape[2]
    k = a.shape[1] if a_turned else a.shape[2]
    warps = 4 * consumers
    tilus.grid(blocks, warps=warps + 4)
    rows, columns, steps = tilus.cdiv(m, block_m), tilus.cdiv(n, block_n), tilus.cdiv(k, block_k)
    tiles = c.shape[0] * rows * columns
    block, count = tilus.block_id(0), tilus.grid_dim(0)
    whole = tiles - shared_tiles if stream else tiles
    own = tilus.cdiv(tilus.max(whole - block, 0), count)
    pieces = pieces_of(block, count, shared_tiles, steps) if stream else 0

    sa = tilus.shared(dtype, (stages, block_k, block_m) if a_turned else (stages, block_m, block_k))
    sb = tilus.shared(b_dtype, (stages, block_n, block_k) if b_turned else (stages, block_k, block_n))
    full = tilus.barrier(stages)
    empty = tilus.barrier(stages, arrivals=4 if pingpong else warps)
    # Each of two ping-pong consumers lets the other one multiply.
    turn = tilus.barrier(2, arrivals=4)
    budget = consumers > 1

    with tilus.warps(warps, 4, registers=40 if budget else 0):
        with tilus.warps(warps, 1):
            stage, phase = 0, 1
            for unit in range(own + pieces):
                tile, first, length = work_of(unit, own, whole, shared_tiles, steps, stream)
                batch, i, j = place(tile, rows, columns, group)
                row, column = i * block_m, j * block_n
                for step in range(first, first + length):
                    tilus.wait(empty, phase, index=stage)
                    tilus.arrive(full, index=stage, bytes=(block_m + block_n) * block_k * dtype.bits // 8)
                    at, b_batch = step * block_k, batch if batched_b else 0
                    a_place = (batch, at, row) if a_turned else (batch, row, at)
                    b_place = (b_batch, column, at) if b_turned else (b_batch, at, column)
                    tilus.copy_bulk(sa[stage], a, a_place, full, index=stage)
                    tilus.copy_bulk(sb[stage], b, b_place, full, index=stage)
                    stage, phase = following(stage, phase, stages)

    for consumer in tilus.static_range(2 if pingpong else 1):
        with tilus.warps(4 * consumer, 4 if pingpong else warps, registers=232 if budget else 0):
            # The tensor memory accelerator writes rows of 128 bytes of the output.
            width = gcd(block_n, 1024 // out_dtype.bits)
            sc = tilus.shared(out_dtype, (2, block_m, width))
            stage, phase = 0, 0
            for unit in range(consumer, own + pieces, 2 if pingpong else 1):
                tile, first, length = work_of(unit, own, whole, shared_tiles, steps, stream)
                batch, i, j = place(tile, rows, columns, group)
                row, column = i * block_m, j * block_n
                if pingpong:
                    stage, phase = unit * steps % stages, unit * steps // stages
                    tilus.wait(turn, unit // 2 + 1 - consumer, index=consumer)
                tilus.wait(full, phase, index=stage)
                acc = tilus.dot_async(
                    operand(sa[stage], a_turned), operand(sb[stage], b_turned), out_dtype=acc_dtype
                )
                read = stage
                stage, phase = following(stage, phase, stages)
                # One product stays in flight while the next one is started.
                for _ in range(1, length):
                    tilus.wait(full, phase, index=stage)
                    acc = tilus.dot_async(operand(sa[stage], a_turned), operand(sb[stage], b_turned), acc)
                    tilus.dot_wait(pending=1)
                    tilus.arrive(empty, index=read)
                    read = stage
                    stage, phase = following(stage, phase, stages)
                if pingpong:
                    tilus.arrive(turn, index=1 - consumer)
                acc = tilus.dot_wait(acc)
                tilus.arrive(empty, index=read)
                if stream and length < steps:
                    slot = 2 * block + (0 if unit == own else 1)
                    tilus.store(partial, acc, (slot, 0, 0))
                else:
                    parts = block_n // width
                    for part in tilus.static_range(parts):
                        at = column + part * width
                        out = finish(
                            acc[:, part * width : (part + 1) * width], bias, residual, a_scale, b_scale, alpha, beta,
                            batch, row, at, out_dtype, has_bias, has_residual, has_scales, activation,
                            sums_layout(block_m, width, 4 if pingpong else warps),
                        )  # fmt: skip
                        send(c, sc, out, batch, row, at, part, parts, bulk_store)
            if bulk_store:
                tilus.bulk_wait(0, read=False)


@tilus.inline
def send(c, sc, out, batch, row, column, part, parts, bulk_store):
    """Store one of several parts of a tile, through one of two buffers in shared memory where it goes in bulk."""
    if bulk_store:
        # The store before the last one, or the last, has left the buffer.
        tilus.bulk_wait(0 if part == 0 and parts % 2 else 1)
        tilus.sync()
        tilus.store(sc[part % 2], out)
        tilus.fence("async")
        tilus.sync()
        tilus.store_bulk(c, sc[part % 2], (batch, row, column))
        tilus.bulk_commit()
    else:
        tilus.store(c, out, (batch, row, column))


@tilus.inline
def place(tile, rows, columns, group):
    """Return a tile's batch, row and column; `group` rows of tiles at a time, so that neighbours share operands."""
    batch, number = tile // (rows * columns), tile % (rows * columns)
    first = number // (group * columns) * group
    height = tilus.min(rows - first, group)
    within = number % (group * columns)
    return batch, first + within % height, within // height


@tilus.inline
def pieces_of(block, count, shared_tiles, steps):
    """Return how many tiles a block's share of the shared tiles' steps touches."""
    total = shared_tiles * steps
    start, stop = block * total // count, (block + 1) * total // count
    return tilus.cdiv(stop, steps) - start // steps if stop > start else 0


@tilus.inline
def work_of(unit, own, whole, shared_tiles, steps, stream):
    """Return the tile, the first step and the number of steps of a block's unit of work: whole tiles come first."""
    block, count = tilus.block_id(0), tilus.grid_dim(0)
    tile = block + unit * count
    if not stream:
        return tile, 0, steps
    total = shared_tiles * steps
    start, stop = block * total // count, (block + 1) * total // count
    piece = start // steps + unit - own
    first = tilus.max(start - piece * steps, 0)
    last = tilus.min(stop - piece * steps, steps)
    shared = unit >= own
    return (
        whole + piece if shared else tile,
        first if shared else 0,
        last - first if shared else steps,
    )


@tilus.inline
def following(stage, phase, stages):
    """Return the stage after one, and the phase to wait for there."""
    last = stage == stages - 1
    return 0 if last else stage + 1, phase ^ 1 if last else phase


@tilus.inline
def operand(tile, turned):
    """Return an operand as the product takes it."""
    return tile.transpose() if turned else tile


def sums_layout(height: int, width: int, warps: int) -> RegisterLayout:
    """Return which thread holds which sum of a part of a wgmma result (PTX ISA, wgmma register fragments).

    What is added to the sums is loaded so, for an exchange of elements would need shared memory.
    """
    rows = local(height // (16 * warps), 1) * spatial(warps, 1)
    return rows * local(1, width // 8) * local(2, 1) * spatial(8, 4) * local(1, 2)
