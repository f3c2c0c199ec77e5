"""Attention of one new token for each sequence, over keys and values in pages and of 1 to 16 bits.

When a model writes, each step reads all keys and values there are, and each only once: what counts is bytes, so they
are kept in few bits, with a scale for each token. They lie in pages anywhere in memory, and a table says which pages a
sequence has. The heads of queries that share keys are the rows of one product. A sequence is cut into parts, so that
all multiprocessors have work, and a second kernel, which may start while the first one ends, joins the parts.

A code's width is nothing to the kernel. It moves **bytes**, 16 at a time, and `view` says what they are (as in
`quantized_matmul.py`); but here no weight is brought into a tensor core's order beforehand. Instead the product's
inner dimension is counted as threads find it in memory: a sum has no order, if only both operands have the same.

Run it with ``python examples/paged_attention.py``. Without a GPU the same PTX runs on the simulator.
"""

from __future__ import annotations

import numpy as np
import torch

import tilus
from tilus import Tensor, constexpr, float16, float32, int32, uint8
from tilus.dtypes import DType, decode, dtype, encode, pack
from tilus.layout import RegisterLayout, local

LOG2_E = 1.4426950408889634
TARGET = "sm_80"
ROWS = 16  # of a tensor core's first operand: query heads that share keys


def piece(columns: int, sharers: int, bits: int, most: int) -> int:
    """Return how many codes that lie together a thread takes of a row which some threads share.

    They are `most` bytes where that comes out even, or else its whole share: the compiler finds a swizzle in which
    threads read 32 bytes of keys, and 16 of values, without bank conflicts.
    """
    share = columns // sharers
    even = share * bits % (8 * most) == 0 and 8 * most % bits == 0
    return 8 * most // bits if even else share


def in_memory(rows: int, columns: int, size: int) -> RegisterLayout:
    """Return a layout in which four threads share a row, in pieces of some size."""
    return local(rows // 8, columns // (4 * size)).spatial(8, 4).local(1, size)


def as_operand(rows: int, columns: int) -> RegisterLayout:
    """Return the layout of operands whose columns are summed over (PTX ISA, fragments of mma.m16n8k16).

    A thread holds as much in it as in `in_memory`, of the same rows, but of other columns. Seeing the one as the other
    renumbers the columns, of queries and keys alike.
    """
    return local(rows // 8, columns // 8).spatial(8, 4).local(1, 2)


def values_in_memory(columns: int, size: int) -> RegisterLayout:
    """Return a layout of 16 values in which a thread has pieces of four rows: those that it has weights for."""
    return local(2, columns // (8 * size)).spatial(1, 8).spatial(4, 1).local(2, size)


def values_turned(columns: int, size: int) -> RegisterLayout:
    """Return who holds what as `values_in_memory` does, but with a column's elements side by side in a register."""
    return local(1, columns // (8 * size)).spatial(1, 8).local(1, size).local(2, 1).spatial(4, 1).local(2, 1)


def values_as_operand(columns: int) -> RegisterLayout:
    """Return the layout of the operand whose rows are summed over; its columns are renumbered, too."""
    return local(1, columns // 8).local(2, 1).spatial(1, 8).spatial(4, 1).local(2, 1)


@tilus.inline
def page_of(cache, at, kv_head, rows):
    """Return a page of one head as a matrix that ends after `rows` rows: what is read beyond is zero."""
    start = cache.ptr + at * cache.strides[0] + kv_head * cache.strides[1]
    return tilus.view(start, cache.dtype, (rows, *cache.shape[3:]), cache.strides[2:])


@tilus.kernel
def attend_to_parts(
    q: Tensor[float16, "batch heads d"],
    k_cache: Tensor[uint8, "pages kv_heads page bytes"],
    v_cache: Tensor[uint8, "pages kv_heads page bytes"],
    k_scale: Tensor[float16, "pages kv_heads page"],
    v_scale: Tensor[float16, "pages kv_heads page"],
    table: Tensor[int32, "batch _"],
    lengths: Tensor[int32, "batch"],
    scale: float32,
    lse: Tensor[float32, "batch parts heads"],
    found: Tensor[float32, "batch parts heads d"],
    *,
    kv_dtype: constexpr,
    d: constexpr,
    page: constexpr,
    stages: constexpr = 3,
):
    """One warp goes over the pages of a part. `lse` gets the logarithm, to base 2, of each part's sum."""
    batch, heads, _ = q.shape
    kv_heads, parts = k_cache.shape[1], lse.shape[1]
    tilus.grid(parts, kv_heads, batch, warps=1)
    part, kv_head, sequence = tilus.block_id()
    tilus.static_assert(page % 16 == 0 and d % 16 == 0, "tensor cores multiply 16 rows and columns at once")
    group, factor = heads // kv_heads, scale * LOG2_E
    tilus.device_assert(group <= ROWS, "at most 16 query heads share keys")
    # Codes and bytes of a row, of a thread's piece of keys, and of values.
    bits, width = kv_dtype.bits, d * kv_dtype.bits // 8
    of_k, of_v = piece(d, 4, bits, 32), piece(d, 8, bits, 16)
    length = tilus.load(lengths, sequence)
    pages = tilus.cdiv(length, page)
    each = tilus.cdiv(pages, parts)
    begin, end = part * each, tilus.min(part * each + each, pages)

    # Rows beyond the group are other heads' queries; their results are not stored.
    queries = tilus.load(q, (sequence, kv_head * group, 0), (ROWS, d), layout=in_memory(ROWS, d, of_k))
    queries = tilus.view(queries, float16, layout=as_operand(ROWS, d))
    largest, total = tilus.full(ROWS, -1.0e30), tilus.zeros(ROWS)
    acc = tilus.zeros((ROWS, d))
    for i in tilus.pipeline(range(begin, end), stages=stages):
        at, rows = tilus.load(table, (sequence, i)), length - i * page
        sk, sv = tilus.shared(uint8, (page, width)), tilus.shared(uint8, (page, width))
        tilus.copy_async(sk, page_of(k_cache, at, kv_head, rows), (0, 0))
        tilus.copy_async(sv, page_of(v_cache, at, kv_head, rows), (0, 0))

        keys = tilus.load(sk, layout=in_memory(page, width, of_k * bits // 8))
        keys = tilus.view(keys, kv_dtype, (page, d), layout=as_operand(page, d)).to(float16)
        scores = tilus.dot(queries, keys.T)
        # A token's scale is a factor of its score, and of its weight: codes are multiplied as they are.
        if bits < 16:
            scores *= tilus.load(page_of(k_scale, at, kv_head, rows), 0, page).to(float32)[None, :]
        if rows < page:
            scores = tilus.where(tilus.iota((ROWS, page), 1) < rows, scores, float("-inf"))
        now = tilus.maximum(largest, tilus.max(scores, axis=1))
        weights = tilus.exp2(scores * factor - (now * factor)[:, None], fast=True)
        shrink = tilus.exp2((largest - now) * factor, fast=True)
        total = total * shrink + tilus.sum(weights, axis=1)
        if bits < 16:
            weights *= tilus.load(page_of(v_scale, at, kv_head, rows), 0, page).to(float32)[None, :]
        weights, acc, largest = weights.to(float16), acc * shrink[:, None], now
        for c in tilus.static_range(page // 16):
            values = tilus.load(sv[16 * c : 16 * c + 16], layout=values_in_memory(width, of_v * bits // 8))
            values = tilus.view(values, kv_dtype, (16, d), layout=values_in_memory(d, of_v)).to(float16)
            values = tilus.annotate_layout(values, values_turned(d, of_v))
            values = tilus.view(values, float16, layout=values_as_operand(d))
            acc = tilus.dot(weights[:, 16 * c : 16 * c + 16], values, acc)

    tilus.launch_next()
    acc *= tilus.where(total > 0.0, tilus.rcp(total), 0.0)[:, None]
    # Seen so, the tensors end with the group's last head.
    extents = (batch, parts, (kv_head + 1) * group)
    own_lse = tilus.view(lse.ptr, float32, extents, lse.strides)
    own_found = tilus.view(found.ptr, float32, (*extents, d), found.strides)
    tilus.store(own_lse, largest * factor + tilus.log2(total), (sequence, part, kv_head * group))
    tilus.store(own_found, acc, (sequence, part, kv_head * group, 0))


@tilus.kernel
def join_parts(
    lse: Tensor[float32, "batch parts heads"],
    found: Tensor[float32, "batch parts heads d"],
    out: Tensor[float16, "batch heads d"],
    *,
    parts: constexpr,
    d: constexpr,
    size: constexpr,
):
    """A part's result counts as much as its sum of powers; and columns get their own numbers again.

    `size` is that of a thread's piece of values.
    """
    batch, heads, _ = out.shape
    tilus.grid(heads, batch, warps=1)
    head, sequence = tilus.block_id()
    tilus.wait_for_previous()
    sums = tilus.load(lse, (sequence, 0, head), (parts, 1))
    share = tilus.exp2(sums - tilus.maximum(tilus.max(sums), -1.0e30))
    share /= tilus.maximum(tilus.sum(share), 1.0e-30)
    rows = tilus.load(found, (sequence, 0, head, 0), (parts, 1, d)).reshape((parts, d))
    joined = tilus.sum(rows * share, axis=0).to(float16)
    # The operand's columns are counted by piece, place in the piece, and thread; in memory a thread's piece is whole.
    joined = joined.reshape((d // (8 * size), size, 8)).transpose((0, 2, 1)).reshape((1, d))
    tilus.store(out, joined, (sequence, head, 0))


def quantized(x: torch.Tensor, kind: DType) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return rows as packed bytes, their scales, and what these mean, in float64."""
    if kind.bits == 16:
        return x.half().view(torch.uint8), torch.ones(x.shape[:-1]).half(), x.half().double()
    every = np.abs(decode(np.arange(2**kind.bits), kind))
    largest = float(every[np.isfinite(every)].max())
    scale = (x.abs().amax(dim=-1) / largest).half()
    codes = encode((x / scale[..., None]).numpy(), kind)
    meant = torch.from_numpy(decode(codes, kind).astype(np.float64)) * scale[..., None].double()
    return torch.from_numpy(pack(codes, kind)).reshape(*x.shape[:-1], -1), scale, meant


def run(
    lengths: tuple[int, ...], heads: int, kv_heads: int, d: int, page: int, parts: int, name: str
) -> None:
    """Attend with caches in a type, and compare with float64."""
    device, kind, batch = "cuda" if torch.cuda.is_available() else "cpu", dtype(name), len(lengths)
    needed = [-(-n // page) for n in lengths]
    order = torch.randperm(sum(needed) + 2)[: sum(needed)].to(torch.int32)
    table = torch.zeros(batch, max(needed), dtype=torch.int32)
    q = torch.randn(batch, heads, d).half()
    k, v = (torch.randn(sum(needed) + 2, kv_heads, page, d) for _ in range(2))
    (k_bytes, k_scale, k_meant), (v_bytes, v_scale, v_meant) = quantized(k, kind), quantized(v, kind)
    exact, rounded = torch.empty(batch, heads, d).double(), torch.empty(batch, heads, d).double()
    for i, (length, pages) in enumerate(zip(lengths, order.split(needed), strict=True)):
        table[i, : len(pages)] = pages
        rows = [
            x[pages.long()].transpose(0, 1).reshape(kv_heads, -1, d)[:, :length] for x in (k_meant, v_meant)
        ]
        keys, values = (x.repeat_interleave(heads // kv_heads, dim=0) for x in rows)
        for kept, form in ((exact, torch.float64), (rounded, torch.float16)):
            scores = q[i, :, None].to(form) @ keys.to(form).mT * d**-0.5
            kept[i] = (torch.softmax(scores, dim=2) @ values.to(form))[:, 0].double()
        # What lies beyond the end of a sequence is no one's business.
        if length % page:
            for x in (k_bytes, v_bytes):
                x[pages[-1], :, length % page :] = 255  # float16: not a number
            for x in (k_scale, v_scale):
                x[pages[-1], :, length % page :] = float("nan")
    allowed = 2 * (rounded - exact).abs().max().item()
    caches = [x.to(device) for x in (k_bytes, v_bytes, k_scale, v_scale)]
    inputs = (
        q.to(device),
        *caches,
        table.to(device),
        torch.tensor(lengths, dtype=torch.int32, device=device),
    )
    lse, found = (
        torch.empty(batch, parts, heads, device=device),
        torch.empty(batch, parts, heads, d, device=device),
    )
    out = torch.empty_like(inputs[0])
    attend = (*inputs, d**-0.5, lse, found)
    print(f"{name} on {device}: ", end="")
    if device == "cuda":
        attend_to_parts(*attend, kv_dtype=kind, d=d, page=page)
    else:
        report = attend_to_parts.simulate(*attend, kv_dtype=kind, d=d, page=page, target=TARGET)
        report.raise_if_hazards()
        kinds = report.counters["instructions_by_kind"]
        print(
            f"{kinds['cp']} copies, {kinds['mma']} mma, {report.counters['shared_wavefronts']} wavefronts ",
            end="",
        )
        print(f"(at best {report.counters['shared_wavefronts_ideal']}), ", end="")
    join_parts(lse, found, out, parts=parts, d=d, size=piece(d, 8, kind.bits, 16))
    error = (out.cpu().double() - exact).abs().max().item()
    assert error <= allowed, f"{name}: off by {error:.1e}, allowed {allowed:.1e}"
    print(f"error {error:.1e} (allowed {allowed:.1e})")


def main(
    lengths: tuple[int, ...] = (300, 64, 1, 190), names: str = "float16 int8 int4 uint3 float8_e4m3 nf4"
) -> None:
    """Check caches of several types on ragged lengths, with four query heads to a head of keys."""
    torch.manual_seed(0)
    for name in names.split():
        run(lengths, 8, 2, 128, 64, 3, name)


if __name__ == "__main__":
    main()
