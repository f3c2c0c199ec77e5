"""Kernels for the routing of tokens to experts. Their results are the same each time: no order depends on timing."""

from __future__ import annotations

import tilus
from tilus import Tensor, constexpr, float32, int32

CHUNK = 256
"""Rows that a block of `count_kernel` and `place_kernel` looks at."""
EXPERTS_AT_ONCE = 32
CHUNKS_AT_ONCE = 32
BLOCKS_AT_ONCE = 16


@tilus.kernel
def route_kernel(
    logits: Tensor["dtype", "tokens experts"],
    weights: Tensor[float32, "tokens top_k"],
    ids: Tensor[int32, "tokens top_k"],
    *,
    dtype: constexpr,
    softmax: constexpr,
    renormalise: constexpr,
    width: constexpr,
    rows: constexpr = 4,
):
    """The top_k largest logits of each row, the first of equal ones first, and their scores."""
    tokens, experts = logits.shape
    top_k = ids.shape[1]
    tilus.grid(tilus.cdiv(tokens, rows), warps=4)
    first = tilus.block_id() * rows
    x = tilus.cast(tilus.load(logits, (first, 0), (rows, width)), float32)
    column = tilus.iota((rows, width), 1)
    infinity = tilus.full((rows, width), -float("inf"), float32)
    # Of what is outside of the matrix nothing is chosen; a NaN counts as the smallest number.
    left = tilus.where(tilus.isnan(x), -3.0e38, tilus.maximum(x, -3.0e38))
    left = tilus.where(column < experts, left, infinity)
    largest = tilus.max(left, axis=1)
    if softmax:
        sums = tilus.sum(tilus.exp(left - largest[:, None]), axis=1)
    chosen = tilus.zeros(rows, float32)
    for _ in range(top_k):
        top = tilus.max(left, axis=1)
        chosen = chosen + score(top, largest, softmax)
        left = tilus.where(column == tilus.argmax(left, axis=1)[:, None], infinity, left)
    left = tilus.where(tilus.isnan(x), -3.0e38, tilus.maximum(x, -3.0e38))
    left = tilus.where(column < experts, left, infinity)
    for j in range(top_k):
        top, place = tilus.max(left, axis=1), tilus.argmax(left, axis=1)
        share = score(top, largest, softmax)
        if renormalise:
            share = share / chosen
        elif softmax:
            share = share / sums
        tilus.store(weights, share[:, None], (first, j))
        tilus.store(ids, place[:, None], (first, j))
        left = tilus.where(column == place[:, None], infinity, left)


@tilus.inline
def score(x, largest, softmax):
    """Return the score of a logit; for softmax up to the factor that all of a row have."""
    if softmax:
        return tilus.exp(x - largest)
    return 1.0 / (1.0 + tilus.exp(-x))


@tilus.kernel
def count_kernel(
    ids: Tensor[int32, "slots"],
    ranks: Tensor[int32, "slots"],
    counts: Tensor[int32, "chunks experts"],
    *,
    width: constexpr,
    chunk: constexpr = CHUNK,
):
    """How many rows of each chunk go to each expert, and how many of them come before each row."""
    experts = counts.shape[1]
    tilus.grid(counts.shape[0], warps=4)
    start = tilus.block_id() * chunk
    found = tilus.shared(int32, width)
    tilus.store(found, tilus.zeros(width, int32))
    for at in range(0, chunk, 64):
        mine = tilus.load(ids, start + at, 64, other=-1)
        valid = (mine >= 0) & (mine < experts)
        mine = tilus.where(valid, mine, -1)
        equal = (mine[:, None] == mine[None, :]) & (tilus.iota((64, 64), 1) < tilus.iota((64, 64), 0))
        before = tilus.sum(tilus.cast(equal, int32), axis=1)
        place = tilus.maximum(mine, 0)
        before = before + tilus.load(found, indices=place)
        tilus.store(ranks, before, start + at)
        tilus.atomic_add(found, tilus.full(64, 1, int32), indices=place, mask=valid, scope="block")
    tilus.store(counts, tilus.load(found)[None, :], (tilus.block_id(), 0))


@tilus.kernel
def scan_kernel(
    counts: Tensor[int32, "chunks experts"],
    totals: Tensor[int32, "experts"],
    *,
    wide: constexpr = EXPERTS_AT_ONCE,
    high: constexpr = CHUNKS_AT_ONCE,
):
    """Replace the counts of each chunk by the sum of those of the chunks before it, and say all chunks' sums."""
    chunks, experts = counts.shape
    tilus.grid(tilus.cdiv(experts, wide), warps=4)
    column = tilus.block_id() * wide
    carry = tilus.zeros(wide, int32)
    for chunk in range(0, chunks, high):
        here = tilus.load(counts, (chunk, column), (high, wide))
        tilus.store(counts, tilus.scan(here, 0, "sum", exclusive=True) + carry[None, :], (chunk, column))
        carry = carry + tilus.sum(here, axis=0)
    tilus.store(totals, carry, column)


@tilus.kernel
def lay_out_kernel(
    totals: Tensor[int32, "experts"],
    offsets: Tensor[int32, "experts_and_one"],
    block_expert: Tensor[int32, "blocks"],
    rows: Tensor[int32, "capacity"],
    *,
    block: constexpr,
    width: constexpr,
    at_once: constexpr = BLOCKS_AT_ONCE,
):
    """Give each expert whole blocks of rows, and mark the rows that fill them up."""
    (experts,) = totals.shape
    (blocks,) = block_expert.shape
    tilus.grid(tilus.max(tilus.cdiv(blocks, at_once), 1), warps=4)
    count = tilus.load(totals, 0, width)
    ends = tilus.cumsum(blocks_of(count, block), 0)
    if tilus.block_id() == 0:
        tilus.store(offsets, tilus.zeros(1, int32), 0)
        tilus.store(offsets, ends * block, 1)
    first = tilus.block_id() * at_once
    number = first + tilus.arange(0, at_once)
    # The expert of a block is the number of experts whose blocks all come before it.
    passed = (ends[None, :] <= number[:, None]) & (tilus.iota((at_once, width), 1) < experts)
    expert = tilus.sum(tilus.cast(passed, int32), axis=1)
    tilus.store(block_expert, tilus.where(expert < experts, expert, -1), first)
    starts = tilus.shared(int32, width)
    sizes = tilus.shared(int32, width)
    tilus.store(starts, (ends - blocks_of(count, block)) * block)
    tilus.store(sizes, count)
    known = tilus.minimum(expert, width - 1)
    used = tilus.load(starts, indices=known) + tilus.load(sizes, indices=known)
    ends_of_rows = tilus.shared(int32, at_once)
    tilus.store(ends_of_rows, tilus.where(expert < experts, used, 0))
    within = tilus.arange(0, at_once * block)
    place = first * block + within
    filling = place >= tilus.load(ends_of_rows, indices=within // block)
    tilus.store(rows, tilus.full(at_once * block, -1, int32), first * block, mask=filling)


@tilus.inline
def blocks_of(count, block):
    """Return how many blocks hold so many rows."""
    return (count + (block - 1)) // block


@tilus.kernel
def place_kernel(
    ids: Tensor[int32, "slots"],
    ranks: Tensor[int32, "slots"],
    counts: Tensor[int32, "chunks experts"],
    offsets: Tensor[int32, "experts_and_one"],
    rows: Tensor[int32, "capacity"],
    places: Tensor[int32, "slots"],
    *,
    chunk: constexpr = CHUNK,
):
    """Write where each row goes, and from where each row comes; an id that names no expert goes nowhere."""
    experts = counts.shape[1]
    tilus.grid(counts.shape[0], warps=4)
    start = tilus.block_id() * chunk
    expert = tilus.load(ids, start, chunk, other=-1)
    valid = (expert >= 0) & (expert < experts)
    known = tilus.where(valid, expert, 0)
    number = start + tilus.arange(0, chunk)
    before = tilus.load(counts, indices=(tilus.block_id(), known), mask=valid)
    place = tilus.load(offsets, indices=known) + before + tilus.load(ranks, start, chunk)
    tilus.store(places, tilus.where(valid, place, -1), start)
    tilus.store(rows, number, indices=tilus.where(valid, place, 0), mask=valid)


@tilus.kernel
def gather_kernel(
    x: Tensor["dtype", "tokens n"],
    rows: Tensor[int32, "capacity"],
    out: Tensor["dtype", "capacity n"],
    top_k: int32,
    *,
    dtype: constexpr,
    high: constexpr = 4,
    wide: constexpr = 1024,
):
    """out[i] = x[rows[i] // top_k], or zeros where rows[i] < 0."""
    capacity, n = out.shape
    tilus.grid(tilus.cdiv(capacity, high), tilus.cdiv(n, wide), warps=4)
    first, column = tilus.block_id(0) * high, tilus.block_id(1) * wide
    for i in tilus.static_range(high):
        if first + i < capacity:
            source = tilus.load(rows, first + i)
            # A row before the first one reads as zeros.
            token = source // top_k if source >= 0 else -1
            tilus.store(out, tilus.load(x, (token, column), (1, wide)), (first + i, column))


@tilus.kernel
def combine_kernel(
    y: Tensor["dtype", "capacity n"],
    weights: Tensor[float32, "tokens top_k"],
    places: Tensor[int32, "tokens top_k"],
    out: Tensor["dtype", "tokens n"],
    *,
    dtype: constexpr,
    wide: constexpr = 1024,
):
    """out[t] = sum over j of weights[t, j] * y[places[t, j]], in the order of j, in float32."""
    tokens, n = out.shape
    top_k = places.shape[1]
    tilus.grid(tokens, tilus.cdiv(n, wide), warps=4)
    token, column = tilus.block_id(0), tilus.block_id(1) * wide
    total = tilus.zeros((1, wide), float32)
    for j in range(top_k):
        place = tilus.load(places, (token, j))
        row = tilus.load(y, (place, column), (1, wide))
        total = total + tilus.cast(row, float32) * tilus.load(weights, (token, j))
    tilus.store(out, tilus.cast(total, dtype), (token, column))
