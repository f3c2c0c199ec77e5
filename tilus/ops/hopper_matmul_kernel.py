"""The kernel behind `matmul` on targets with wgmma: persistent blocks of a TMA producer and wgmma consumers.

A block has one or two warpgroups that multiply and one whose first warp copies. Two consumers either work on one tile
(cooperative), or each on a tile of its own (ping-pong), where one multiplies while the other stores. The blocks of a
cluster work on neighbouring tiles: each copies its part of what they share to all of them.
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
    scales: constexpr = "",
    activation: constexpr = "",
    block_m: constexpr = 128,
    block_n: constexpr = 128,
    block_k: constexpr = 64,
    stages: constexpr = 4,
    consumers: constexpr = 2,
    pingpong: constexpr = False,
    stream: constexpr = False,
    bulk_store: constexpr = True,
    bulk_residual: constexpr = False,
    cluster_m: constexpr = 1,
    cluster_n: constexpr = 1,
    group: constexpr = 8,
):
    """c = activation(alpha * a @ b + bias) + beta * residual; a turned operand is given as its transpose.

    A cluster has cluster_m x cluster_n tiles at a time. With `stream`, the last `shared_tiles` of these groups of
    tiles are cut along k into one piece for each cluster. Sums of a part of k go to `partial`, and `stream_k_kernel`
    adds them up. With `bulk_residual`, more warps copy the residual's tile to where the result's will be stored from,
    while its products are summed.
    """
    m, n = c.shape[1], c.shape[2]
    k = a.shape[1] if a_turned else a.shape[2]
    warps, size = 4 * consumers, cluster_m * cluster_n
    tilus.grid(blocks, warps=warps + 4, cluster=size)
    team, teams = tilus.block_id(0) // size, tilus.grid_dim(0) // size
    rank = tilus.cluster_rank() if size > 1 else 0
    rank_m, rank_n = rank // cluster_n, rank % cluster_n
    row_mask, column_mask = masks(rank, cluster_m, cluster_n)
    rows, columns = tilus.cdiv(m, block_m * cluster_m), tilus.cdiv(n, block_n * cluster_n)
    steps = tilus.cdiv(k, block_k)
    whole = c.shape[0] * rows * columns - shared_tiles if stream else c.shape[0] * rows * columns
    own = tilus.cdiv(tilus.max(whole - team, 0), teams)
    pieces = pieces_of(team, teams, shared_tiles, steps) if stream else 0

    # Two consumers that share a tile have half of its rows each.
    shares = 1 if pingpong else consumers
    height = block_m // shares
    sa = tilus.shared(
        dtype, (stages, shares, block_k, height) if a_turned else (stages, shares, height, block_k)
    )
    sb = tilus.shared(b_dtype, (stages, block_n, block_k) if b_turned else (stages, block_k, block_n))
    full = tilus.barrier(stages)
    # A stage is free when all blocks that copy into it, and are copied to from it, have read theirs.
    empty = tilus.barrier(stages, arrivals=size * (4 if pingpong else warps))
    # Each of two ping-pong consumers lets the other one multiply. The first of two that share a tile lets the other one
    # begin, so that it is a step ahead when it comes to its epilogue. (A tile of no more steps than stages might be
    # over before the other one looks.)
    turn = tilus.barrier(2, arrivals=4)
    # Each consumer stores its own rows at its own pace: while it does, the other one multiplies, if only a few steps
    # of the same tile. The tensor memory accelerator writes rows of 128 bytes of the output.
    width = gcd(block_n, 1024 // out_dtype.bits)
    parts, every = block_n // width, 2 if pingpong else 1
    buffers = parts if bulk_residual else 2
    sc = tilus.shared(out_dtype, (consumers, buffers, height, width))
    given = tilus.barrier(consumers * buffers)
    taken = tilus.barrier(consumers * buffers, arrivals=4)
    budget = consumers > 1
    if stream:
        # The kernel that adds up the parts is launched while this one runs.
        tilus.launch_next()

    with tilus.warps(warps, 4, registers=40 if budget else 0):
        with tilus.warps(warps, 1):
            stage, phase = 0, 1
            for unit in range(own + pieces):
                tile, first, length = work_of(unit, own, whole, team, teams, shared_tiles, steps, stream)
                batch, i, j = place(tile, rows, columns, group)
                row = (i * cluster_m + rank_m) * block_m
                column = (j * cluster_n + rank_n) * block_n
                b_batch = batch if batched_b else 0
                for step in range(first, first + length):
                    tilus.wait(empty, phase, index=stage)
                    tilus.arrive(full, index=stage, bytes=(block_m + block_n) * block_k * dtype.bits // 8)
                    at = step * block_k
                    fetch_shares(
                        sa[stage], a, batch, row, at, not a_turned, full, stage, rank_n, cluster_n, row_mask
                    )
                    fetch(
                        sb[stage],
                        b,
                        b_batch,
                        column,
                        at,
                        b_turned,
                        full,
                        stage,
                        rank_m,
                        cluster_m,
                        column_mask,
                    )
                    stage, phase = following(stage, phase, stages)

        for lane in tilus.static_range(consumers if bulk_residual else 0):
            with tilus.warps(warps + 1 + lane, 1):
                done = 0
                for unit in range(lane if pingpong else 0, own + pieces, every):
                    tile, first, length = work_of(unit, own, whole, team, teams, shared_tiles, steps, stream)
                    batch, i, j = place(tile, rows, columns, group)
                    row = (i * cluster_m + rank_m) * block_m + (0 if pingpong else lane * height)
                    column = (j * cluster_n + rank_n) * block_n
                    if length == steps:
                        for part in tilus.static_range(parts):
                            at = lane * buffers + part
                            tilus.wait(taken, done + 1, index=at)
                            tilus.arrive(given, index=at, bytes=height * width * out_dtype.bits // 8)
                            offsets = (batch, row, column + part * width)
                            tilus.copy_bulk(sc[lane][part], residual, offsets, given, index=at)
                        done += 1

    for consumer in tilus.static_range(consumers):
        with tilus.warps(4 * consumer, 4, registers=232 if budget else 0):
            share = 0 if pingpong else consumer
            above = share * height
            # Read from memory, alpha keeps the arithmetic of a part behind the barriers of the part before: else the
            # assembler computes all parts at once, and has no registers for that.
            factor = tilus.shared(float32, 1)
            tilus.store(factor, tilus.full(1, alpha))
            tilus.sync()
            stage, phase, done, owed = 0, 0, 0, 0
            start, begun = consumer if pingpong else 0, 0
            tile, _, _ = work_of(start, own, whole, team, teams, shared_tiles, steps, stream)
            batch, i, j = place(tile, rows, columns, group)
            for unit in range(start, own + pieces, every):
                _, first, length = work_of(unit, own, whole, team, teams, shared_tiles, steps, stream)
                if pingpong:
                    past = steps_before(unit, own, team, teams, shared_tiles, steps, stream)
                    stage, phase = past % stages, past // stages
                    tilus.wait(turn, unit // 2 + 1 - consumer, index=consumer)
                elif consumer == 1 and length > stages:
                    tilus.wait(turn, begun, index=1)
                    begun += 1
                tilus.wait(full, phase, index=stage)
                acc = tilus.dot_async(
                    operand(sa[stage][share], a_turned), operand(sb[stage], b_turned), out_dtype=acc_dtype
                )
                if not pingpong and consumer == 0 and consumers > 1 and length > stages:
                    tilus.arrive(turn, index=1)
                # Where the next tile lies is computed while the tensor cores are busy.
                next_tile, _, _ = work_of(unit + every, own, whole, team, teams, shared_tiles, steps, stream)
                next_batch, next_i, next_j = place_here(next_tile, rows, columns, group)
                if bulk_residual:
                    if owed > 0:
                        # The result before this one has left shared memory.
                        tilus.bulk_wait(0)
                        for part in tilus.static_range(parts):
                            tilus.arrive(taken, index=consumer * buffers + part)
                    owed = 0
                read = stage
                stage, phase = following(stage, phase, stages)
                # One product stays in flight while the next one is started.
                for _ in range(1, length):
                    tilus.wait(full, phase, index=stage)
                    acc = tilus.dot_async(
                        operand(sa[stage][share], a_turned), operand(sb[stage], b_turned), acc
                    )
                    tilus.dot_wait(pending=1)
                    release(empty, read, size)
                    read = stage
                    stage, phase = following(stage, phase, stages)
                if pingpong:
                    tilus.arrive(turn, index=1 - consumer)
                acc = tilus.dot_wait(acc)
                release(empty, read, size)
                row = (i * cluster_m + rank_m) * block_m + above
                column = (j * cluster_n + rank_n) * block_n
                if stream and length < steps:
                    slot = 2 * team + (0 if unit == own else 1)
                    tilus.store(partial, acc, (slot * size + rank, above, 0))
                else:
                    layout = sums_layout(height, width, 4)
                    for part in tilus.static_range(parts):
                        at = column + part * width
                        more = None
                        if bulk_residual:
                            tilus.wait(given, done, index=consumer * buffers + part)
                            more = tilus.load(sc[consumer][part], layout=layout)
                        out = finish(
                            acc[:, part * width : (part + 1) * width], bias, residual, a_scale, b_scale,
                            tilus.load(factor, indices=0), beta, batch, row, at, out_dtype, has_bias, has_residual,
                            scales, activation, layout, more,
                        )  # fmt: skip
                        if bulk_residual:
                            put_back(c, sc[consumer][part], out, batch, row, at)
                        else:
                            send(c, sc[consumer], out, batch, row, at, part, parts, bulk_store)
                    done, owed = done + 1, 1
                batch, i, j = next_batch, next_i, next_j
            if bulk_store:
                tilus.bulk_wait(0, read=False)


@tilus.inline
def masks(rank, cluster_m, cluster_n):
    """Return the blocks of one row of a cluster, which share a's tile, and those of one column, which share b's."""
    row = ((1 << cluster_n) - 1) << rank // cluster_n * cluster_n
    column = sum([1 << i * cluster_n for i in range(cluster_m)]) << rank % cluster_n
    return row, column


@tilus.inline
def fetch(target, source, batch, first, at, k_last, full, stage, part, parts, mask):
    """Copy a tile of an operand that begins at `first` and, along k, at `at`.

    Where several blocks of a cluster share the tile, each copies one part of it to all in `mask`.
    """
    if parts == 1:
        tilus.copy_bulk(
            target, source, (batch, first, at) if k_last else (batch, at, first), full, index=stage
        )
    for number in tilus.static_range(parts if parts > 1 else 0):
        size = target.shape[0 if k_last else 1] // parts
        low, high = number * size, (number + 1) * size
        if part == number:
            here = target[low:high, :] if k_last else target[:, low:high]
            offsets = (batch, first + low, at) if k_last else (batch, at, first + low)
            tilus.copy_bulk(here, source, offsets, full, index=stage, multicast=mask)


@tilus.inline
def fetch_shares(target, source, batch, first, at, k_last, full, stage, part, parts, mask):
    """Copy an operand's tile whose rows two consumers share: each block of a cluster a share, or a part of each."""
    shares = target.shape[0]
    for share in tilus.static_range(shares):
        size = target.shape[1 if k_last else 2]
        here = first + share * size
        if shares == parts and parts > 1:
            if part == share:
                offsets = (batch, here, at) if k_last else (batch, at, here)
                tilus.copy_bulk(target[share], source, offsets, full, index=stage, multicast=mask)
        else:
            fetch(target[share], source, batch, here, at, k_last, full, stage, part, parts, mask)


@tilus.inline
def release(empty, stage, size):
    """Tell all blocks that copy into a stage that it has been read."""
    if size == 1:
        tilus.arrive(empty, index=stage)
    for rank in tilus.static_range(size if size > 1 else 0):
        tilus.arrive(empty, index=stage, rank=rank, scope="block")


@tilus.inline
def send(c, sc, out, batch, row, column, part, parts, bulk_store):
    """Store one of several parts of a tile, where it goes in bulk through one of two buffers, or the one there is."""
    if bulk_store:
        buffers = sc.shape[0]
        # The store before the last one, or the last, has left the buffer.
        tilus.bulk_wait(0 if buffers == 1 or (part == 0 and parts % 2) else 1)
        tilus.sync()
        tilus.store(sc[part % buffers], out)
        tilus.fence("async")
        tilus.sync()
        tilus.store_bulk(c, sc[part % buffers], (batch, row, column))
        tilus.bulk_commit()
    else:
        tilus.store(c, out, (batch, row, column))


@tilus.inline
def put_back(c, sc, out, batch, row, column):
    """Store a part of a tile from where its residual was."""
    tilus.sync()
    tilus.store(sc, out)
    tilus.fence("async")
    tilus.sync()
    tilus.store_bulk(c, sc, (batch, row, column))
    tilus.bulk_commit()


@tilus.inline
def place(tile, rows, columns, group):
    """Return a tile's batch, row and column; `group` rows of tiles at a time, so that neighbours share operands."""
    batch, number = tile // (rows * columns), tile % (rows * columns)
    first = number // (group * columns) * group
    height = tilus.min(rows - first, group)
    within = number % (group * columns)
    return batch, first + within % height, within // height


@tilus.inline
def place_here(tile, rows, columns, group):
    """Do what `place` does, with its divisions where this stands."""
    batch, row, column = place(here(tile), rows, columns, group)
    return batch, row, here(column)


@tilus.inline
def here(x):
    """Return x, computed where this stands: the compiler would move it out of a loop, or behind a wait to its use."""
    return tilus.inline_ptx("mov.b32 $0, $1;", (x,), x.dtype, volatile=True)


@tilus.inline
def pieces_of(team, teams, shared_tiles, steps):
    """Return how many tiles a team's share of the shared tiles' steps touches."""
    total = shared_tiles * steps
    start, stop = team * total // teams, (team + 1) * total // teams
    return tilus.cdiv(stop, steps) - start // steps if stop > start else 0


@tilus.inline
def work_of(unit, own, whole, team, teams, shared_tiles, steps, stream):
    """Return the tile, the first step and the number of steps of a team's unit of work: whole tiles come first."""
    tile = team + unit * teams
    if not stream:
        return tile, 0, steps
    total = shared_tiles * steps
    start, stop = team * total // teams, (team + 1) * total // teams
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
def steps_before(unit, own, team, teams, shared_tiles, steps, stream):
    """Return how many steps a team's units of work before one have."""
    if not stream:
        return unit * steps
    start = team * (shared_tiles * steps) // teams
    piece = start // steps + unit - own
    return tilus.min(unit, own) * steps + tilus.max(piece * steps - start, 0)


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
