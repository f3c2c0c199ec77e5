"""Attention without its matrix of scores, for GPUs since sm_80: one pass over the keys, with a running softmax.

A block of threads keeps a tile of queries in registers and goes over the keys, a tile at a time. It holds the largest
score so far, the sum of powers relative to it, and the sum of values weighted by these powers; when a larger score
turns up, both sums shrink (Dao et al., FlashAttention, 2022). Scores exist a tile at a time, in registers only.

Sequences of any lengths lie one behind the other: the queries of sequence i are rows q_starts[i] to q_starts[i + 1],
its keys and values rows k_starts[i] to k_starts[i + 1]. Several query heads may share a head of keys and values.

Run it with ``python examples/flash_attention.py``. Without a GPU the same PTX runs on the simulator.
"""

from __future__ import annotations

import itertools

import torch

import tilus
from tilus import Tensor, constexpr, float32, int32

LOG2_E = 1.4426950408889634
TARGET = "sm_80"


@tilus.kernel
def flash_attention(
    q: Tensor["dtype", "heads queries d"],
    k: Tensor["dtype", "kv_heads keys d"],
    v: Tensor["dtype", "kv_heads keys d"],
    q_starts: Tensor[int32, "bounds"],
    k_starts: Tensor[int32, "bounds"],
    longest: int32,
    scale: float32,
    lse: Tensor[float32, "heads _"],
    out: Tensor["dtype", "heads queries d"],
    *,
    dtype: constexpr,
    d: constexpr,
    causal: constexpr = False,
    with_lse: constexpr = True,
    warps: constexpr = 4,
    block_n: constexpr = 64,
    stages: constexpr = 2,
):
    """`longest` is the number of queries of the longest sequence; `lse` gets the logarithms of the softmax's sums."""
    block_m = 16 * warps
    heads, kv_heads = q.shape[0], k.shape[0]
    tilus.grid(tilus.cdiv(longest, block_m), heads, q_starts.shape[0] - 1, warps=warps)
    # Blocks start in order. With a causal mask the last queries see the most keys, so they come first.
    block = tilus.grid_dim(0) - 1 - tilus.block_id(0)
    head, sequence = tilus.block_id(1), tilus.block_id(2)
    q_end, k_end = tilus.load(q_starts, sequence + 1), tilus.load(k_starts, sequence + 1)
    first = tilus.load(q_starts, sequence) + block * block_m
    if first >= q_end:
        return
    kv_head = head // (heads // kv_heads)
    # Seen so, tensors end where the sequence does: what is read beyond is zero, and nothing is written there.
    keys_seen = tilus.view(k.ptr, dtype, (kv_heads, k_end, d), k.strides)
    values_seen = tilus.view(v.ptr, dtype, (kv_heads, k_end, d), v.strides)

    staged = tilus.shared(dtype, (block_m, d))
    tilus.copy_async(staged, q, (head, first, 0))
    tilus.copy_async_commit()
    tilus.copy_async_wait(0)
    queries = tilus.load(staged)

    # With a causal mask, query i sees key j where j <= i + shift: the last query sees the last key. No query of this
    # tile sees a key from `end` on, and all of them see those before `whole`.
    shift = k_end - q_end
    end = tilus.min(k_end, first + block_m + shift) if causal else k_end
    whole = tilus.min(k_end, first + 1 + shift) if causal else k_end

    # A large finite number instead of minus infinity: infinity minus infinity would be NaN.
    largest = tilus.full(block_m, -1.0e30)
    total = tilus.zeros(block_m)
    acc = tilus.zeros((block_m, d))
    # The hardware has powers of two only; the factor costs nothing where it is part of a multiply-add.
    factor = scale * LOG2_E
    for j in tilus.pipeline(range(tilus.load(k_starts, sequence), end, block_n), stages=stages):
        keys, values = tilus.shared(dtype, (block_n, d)), tilus.shared(dtype, (block_n, d))
        tilus.copy_async(keys, keys_seen, (kv_head, j, 0))
        tilus.copy_async(values, values_seen, (kv_head, j, 0))
        scores = tilus.dot(queries, tilus.load(keys.transpose()))
        # Only the last tiles need a mask; the others skip its instructions.
        if j + block_n > whole:
            until = k_end
            if causal:
                until = tilus.minimum(k_end, first + shift + 1 + tilus.iota(scores.shape, 0))
            scores = tilus.where(j + tilus.iota(scores.shape, 1) < until, scores, float("-inf"))
        now = tilus.maximum(largest, tilus.max(scores, axis=1))
        weights = tilus.exp2(scores * factor - (now * factor)[:, None], fast=True)
        shrink = tilus.exp2((largest - now) * factor, fast=True)
        total = total * shrink + tilus.sum(weights, axis=1)
        acc = tilus.dot(weights.to(dtype), tilus.load(values), acc * shrink[:, None])
        largest = now

    # A query that sees no key at all gets zeros.
    found = acc * tilus.where(total > 0.0, tilus.rcp(total), 0.0)[:, None]
    tilus.store(tilus.view(out.ptr, dtype, (heads, q_end, d), out.strides), found.to(dtype), (head, first, 0))
    if with_lse:
        sums = tilus.view(lse.ptr, float32, (heads, q_end), lse.strides)
        tilus.store(sums, largest * scale + tilus.log(total), (head, first))


def reference(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    q_starts: torch.Tensor,
    k_starts: torch.Tensor,
    causal: bool,
    dtype: torch.dtype,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the result and the logarithms of the sums, computed by torch in a dtype."""
    out, lse = torch.zeros(q.shape, dtype=dtype), torch.zeros(q.shape[:2], dtype=dtype)
    shared_by = len(q) // len(k)
    bounds = zip(itertools.pairwise(q_starts.tolist()), itertools.pairwise(k_starts.tolist()), strict=True)
    for (q0, q1), (k0, k1) in bounds:
        keys, values = (x[:, k0:k1].to(dtype).repeat_interleave(shared_by, dim=0) for x in (k, v))
        scores = q[:, q0:q1].to(dtype) @ keys.transpose(1, 2) * q.shape[2] ** -0.5
        if causal:
            seen = torch.ones(q1 - q0, k1 - k0, dtype=torch.bool).tril(k1 - k0 - q1 + q0)
            scores = scores.masked_fill(~seen, float("-inf"))
        out[:, q0:q1] = torch.softmax(scores, dim=2).nan_to_num(0.0) @ values
        lse[:, q0:q1] = torch.logsumexp(scores, dim=2)
    return out, lse


def run(
    lengths: tuple[tuple[int, int], ...], heads: int, kv_heads: int, d: int, dtype: torch.dtype, causal: bool
) -> None:
    """Attend in sequences with these numbers of queries and keys, and compare with float64."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    q_starts, k_starts = (
        torch.tensor([0, *itertools.accumulate(x)], dtype=torch.int32) for x in zip(*lengths, strict=True)
    )
    # Heads of one token lie side by side, as a projection makes them; the kernel takes any strides.
    q, k, v = (
        torch.randn(int(starts[-1]), n, d).to(dtype).transpose(0, 1)
        for starts, n in ((q_starts, heads), (k_starts, kv_heads), (k_starts, kv_heads))
    )
    exact, exact_lse = reference(q, k, v, q_starts, k_starts, causal, torch.float64)
    allowed = 2 * (reference(q, k, v, q_starts, k_starts, causal, dtype)[0] - exact).abs().max().item()
    q, k, v, q_starts, k_starts = (x.to(device) for x in (q, k, v, q_starts, k_starts))
    out, lse = torch.empty_like(q), torch.empty(q.shape[:2], device=device)
    arguments = (q, k, v, q_starts, k_starts, max(x for x, _ in lengths), d**-0.5, lse, out)
    print(f"{dtype} d={d} {'causal' if causal else 'full'} on {device}: ", end="")
    if device == "cuda":
        flash_attention(*arguments, d=d, causal=causal)
    else:
        report = flash_attention.simulate(*arguments, d=d, causal=causal, target=TARGET)
        report.raise_if_hazards()
        counted = report.counters
        print(
            f"{sum(counted['tensor_core_instructions'].values())} mma, "
            f"{counted['instructions_by_kind']['ldmatrix']} ldmatrix, "
            f"{counted['shared_wavefronts']} wavefronts (at best {counted['shared_wavefronts_ideal']}), "
            f"{counted['global_load_sectors']} sectors (at best {counted['global_load_sectors_ideal']}), ",
            end="",
        )
    error = (out.cpu().double() - exact).abs().max().item()
    assert error <= allowed, f"off by {error:.1e}, allowed {allowed:.1e}"
    assert torch.allclose(lse.cpu().double(), exact_lse, rtol=1e-5, atol=1e-5), "the logarithms are wrong"
    print(f"error {error:.1e} (allowed {allowed:.1e})")


def main(
    lengths: tuple[tuple[int, int], ...] = ((1, 70), (99, 230), (0, 10), (80, 70)),
    sizes: tuple[int, ...] = (64, 128),
) -> None:
    """Check head sizes, types and masks on ragged sequences, and say what the assembler made of them."""
    torch.manual_seed(0)
    for dtype, d, causal in itertools.product((torch.float16, torch.bfloat16), sizes, (False, True)):
        run(lengths, 4, 2, d, dtype, causal)
    for d in sizes:
        resources = flash_attention.compile(target=TARGET, dtype=tilus.float16, d=d, causal=True).resources
        if resources is not None:  # where NVIDIA's assembler is installed
            print(f"d={d}: {resources.registers} registers, {resources.spill_stores} bytes spilled")


if __name__ == "__main__":
    main()
