"""Attention on Hopper, as FlashAttention-3 does it: `flash_attention.py` with a job for each group of warps.

- A producer warp copies queries, keys and values by TMA, as far ahead as shared memory has room.
- Two groups of four warps have 64 queries each. Scores are a `wgmma` of two tiles in shared memory; the weights that a
  group makes of them stay in its registers, which are the first operand of the second `wgmma`.
- Powers take half as long as products, so products of one group run while the other computes powers: the groups take
  turns to start them (*ping-pong*). And within a group, the values of the step before are multiplied meanwhile.

Arguments are those of `flash_attention.py`, where the mathematics is explained.

Without `ptxas`, which alone lets the producer's registers go to the groups, use `block_n=64` for heads of 128.

Run it with ``python examples/hopper_attention.py``. Without a Hopper GPU the PTX runs on the simulator.
"""

from __future__ import annotations

import itertools

import torch

import tilus
from tilus import Tensor, constexpr, float32, int32

LOG2_E = 1.4426950408889634
TARGET = "sm_90a"
ROWS = 64  # of one group of warps


@tilus.inline
def soften(scores, largest, total, factor, row, column, shift, k_end, dtype: constexpr, causal: constexpr):
    """Return a tile's weights, the largest score and the sum so far, and by how much what came before shrinks."""
    whole = tilus.min(k_end, row + shift + 1) if causal else k_end
    if column + scores.shape[1] > whole:
        until = k_end
        if causal:
            until = tilus.minimum(k_end, row + shift + 1 + tilus.iota(scores.shape, 0))
        scores = tilus.where(column + tilus.iota(scores.shape, 1) < until, scores, float("-inf"))
    now = tilus.maximum(largest, tilus.max(scores, axis=1))
    weights = tilus.exp2(scores * factor - (now * factor)[:, None], fast=True)
    shrink = tilus.exp2((largest - now) * factor, fast=True)
    return weights.to(dtype), now, total * shrink + tilus.sum(weights, axis=1), shrink


@tilus.kernel
def hopper_attention(
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
    block_n: constexpr = 128,
    stages: constexpr = 2,
):
    """`longest` is the number of queries of the longest sequence; `lse` gets the logarithms of the softmax's sums."""
    tilus.static_assert(stages >= 2, "the keys of the next step are waited for before values are released")
    block_m = 2 * ROWS
    heads, kv_heads = q.shape[0], k.shape[0]
    tilus.grid(tilus.cdiv(longest, block_m), heads, q_starts.shape[0] - 1, warps=12)
    # Blocks start in order. With a causal mask the last queries see the most keys, so they come first.
    block = tilus.grid_dim(0) - 1 - tilus.block_id(0)
    head, sequence = tilus.block_id(1), tilus.block_id(2)
    q_end, k_end = tilus.load(q_starts, sequence + 1), tilus.load(k_starts, sequence + 1)
    k_start = tilus.load(k_starts, sequence)
    first = tilus.load(q_starts, sequence) + block * block_m
    if first >= q_end:
        return
    kv_head, factor = head // (heads // kv_heads), scale * LOG2_E
    # With a causal mask, query i sees key j where j <= i + shift: tiles beyond are not even copied.
    shift = k_end - q_end
    end = tilus.min(k_end, first + block_m + shift) if causal else k_end
    steps = tilus.max(tilus.cdiv(end - k_start, block_n), 1)

    sq = tilus.shared(dtype, (block_m, d))
    sk, sv = tilus.shared(dtype, (stages, block_n, d)), tilus.shared(dtype, (stages, block_n, d))
    q_full = tilus.barrier()
    k_full, v_full = tilus.barrier(stages), tilus.barrier(stages)
    k_empty, v_empty = tilus.barrier(stages, arrivals=8), tilus.barrier(stages, arrivals=8)
    turn = tilus.barrier(2, arrivals=4)

    with tilus.warps(8, 4, registers=24):
        with tilus.warps(8, 1):
            tilus.arrive(q_full, bytes=block_m * d * 2)
            tilus.copy_bulk(sq, q, (head, first, 0), q_full)
            for step in range(steps):
                stage, at = step % stages, (kv_head, k_start + step * block_n, 0)
                tilus.wait(k_empty, step // stages + 1, index=stage)
                tilus.arrive(k_full, index=stage, bytes=block_n * d * 2)
                tilus.copy_bulk(sk[stage], k, at, k_full, index=stage)
                tilus.wait(v_empty, step // stages + 1, index=stage)
                tilus.arrive(v_full, index=stage, bytes=block_n * d * 2)
                tilus.copy_bulk(sv[stage], v, at, v_full, index=stage)

    for g in tilus.static_range(2):
        with tilus.warps(4 * g, 4, registers=240):
            row, queries = first + ROWS * g, sq[ROWS * g : ROWS * g + ROWS]
            # The first step has no values to multiply yet.
            tilus.wait(q_full, 0)
            tilus.wait(k_full, 0, index=0)
            tilus.wait(turn, 1 - g, index=g)
            scores = tilus.dot_async(queries, sk[0].transpose())
            tilus.arrive(turn, index=1 - g)
            scores = tilus.dot_wait(scores)
            tilus.arrive(k_empty, index=0)
            largest, total = tilus.full(ROWS, -1.0e30), tilus.zeros(ROWS)
            weights, largest, total, _ = soften(
                scores, largest, total, factor, row, k_start, shift, k_end, dtype, causal
            )
            acc = tilus.zeros((ROWS, d))
            if steps > 1:
                tilus.wait(k_full, 1 // stages, index=1 % stages)
            for step in range(1, steps):
                stage, before = step % stages, (step - 1) % stages
                tilus.wait(turn, step + 1 - g, index=g)  # group 0 begins
                scores = tilus.dot_async(queries, sk[stage].transpose())
                tilus.wait(v_full, (step - 1) // stages, index=before)
                acc = tilus.dot_async(weights, sv[before], acc)
                tilus.arrive(turn, index=1 - g)
                scores = tilus.dot_wait(scores, pending=1)
                tilus.arrive(k_empty, index=stage)
                column = k_start + step * block_n
                later, largest, total, shrink = soften(
                    scores, largest, total, factor, row, column, shift, k_end, dtype, causal
                )
                # The assembler moves a wait for products up as far as there is no branch, here before the powers that
                # are to run meanwhile. This wait, for keys that are needed next in any case, is a branch.
                if step + 1 < steps:
                    tilus.wait(k_full, (step + 1) // stages, index=(step + 1) % stages)
                acc = tilus.dot_wait(acc)
                tilus.arrive(v_empty, index=before)
                acc = acc * shrink[:, None]
                weights = later
            last = (steps - 1) % stages
            tilus.wait(v_full, (steps - 1) // stages, index=last)
            acc = tilus.dot_wait(tilus.dot_async(weights, sv[last], acc))
            # Seen so, the tensors end where the sequence does, and nothing is written beyond.
            found = acc * tilus.where(total > 0.0, tilus.rcp(total, fast=True), 0.0)[:, None]
            rows_seen = tilus.view(out.ptr, dtype, (heads, q_end, d), out.strides)
            tilus.store(rows_seen, found.to(dtype), (head, row, 0))
            if with_lse:
                sums_seen = tilus.view(lse.ptr, float32, (heads, q_end), lse.strides)
                tilus.store(sums_seen, largest * scale + tilus.log(total), (head, row))


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
    hopper = torch.cuda.is_available() and torch.cuda.get_device_capability() == (9, 0)
    device = "cuda" if hopper else "cpu"
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
        hopper_attention(*arguments, d=d, causal=causal)
    else:
        report = hopper_attention.simulate(*arguments, d=d, causal=causal, target=TARGET)
        report.raise_if_hazards()
        counted = report.counters
        print(
            f"{sum(counted['tensor_core_instructions'].values())} wgmma, "
            f"{counted['instructions_by_kind']['cp']} copies, "
            f"{counted['shared_wavefronts']} wavefronts (at best {counted['shared_wavefronts_ideal']}), ",
            end="",
        )
    error = (out.cpu().double() - exact).abs().max().item()
    assert error <= allowed, f"off by {error:.1e}, allowed {allowed:.1e}"
    assert torch.allclose(lse.cpu().double(), exact_lse, rtol=1e-5, atol=1e-5), "the logarithms are wrong"
    print(f"error {error:.1e} (allowed {allowed:.1e})")


def main(
    lengths: tuple[tuple[int, int], ...] = ((1, 70), (150, 500), (0, 10), (80, 70)),
    sizes: tuple[int, ...] = (64, 128),
) -> None:
    """Check head sizes, types and masks on ragged sequences, and say what the assembler made of them."""
    torch.manual_seed(0)
    for dtype, d, causal in itertools.product((torch.float16, torch.bfloat16), sizes, (False, True)):
        run(lengths, 4, 2, d, dtype, causal)
    for d in sizes:
        resources = hopper_attention.compile(target=TARGET, dtype=tilus.float16, d=d, causal=True).resources
        if resources is not None:  # where NVIDIA's assembler is installed
            print(f"d={d}: {resources.registers} registers, {resources.spill_stores} bytes spilled")


if __name__ == "__main__":
    main()
