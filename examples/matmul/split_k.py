"""Matrix multiplication, step 5: split-k, for few rows and columns and a long k.

Run it with ``python examples/matmul/split_k.py``. Without a GPU the same PTX runs on the simulator.

A product of 16 x 4096 by 4096 x 128 is one or two tiles of output, which keep one or two of a hundred
multiprocessors busy. So k is cut into parts that are multiplied by different blocks, and the partial sums are
added afterwards.

Adding them with `atomic_add` would take one kernel less, but then the order of the additions, and so the last
bits of the result, would change from run to run. Here each part writes its own slice of a workspace, and a
second kernel adds the slices in a fixed order: the same input gives the same bits.
"""

from __future__ import annotations

import torch

import tilus
from tilus import Tensor, constexpr, float16, float32


@tilus.kernel
def matmul_parts(
    a: Tensor[float16, "m k"],
    b: Tensor[float16, "k n"],
    parts: Tensor[float32, "splits m n"],
    *,
    block_m: constexpr = 16,
    block_n: constexpr = 64,
    block_k: constexpr = 64,
    stages: constexpr = 3,
):
    m, k = a.shape
    splits, _, n = parts.shape
    # The third dimension of the grid says which part of k.
    tilus.grid(tilus.cdiv(m, block_m), tilus.cdiv(n, block_n), splits, warps=4)
    block_row, block_column, part = tilus.block_id()
    row, column = block_row * block_m, block_column * block_n
    # Whole steps of block_k for each part, the last one shorter. Blocks without a step write zeros.
    steps = tilus.cdiv(tilus.cdiv(k, block_k), splits)
    first = part * steps * block_k
    last = tilus.min(first + steps * block_k, k)
    acc = tilus.zeros((block_m, block_n), float32)
    for k0 in tilus.pipeline(range(first, last, block_k), stages=stages):
        shared_a = tilus.shared(float16, (block_m, block_k))
        shared_b = tilus.shared(float16, (block_k, block_n))
        tilus.copy_async(shared_a, a, (row, k0))
        tilus.copy_async(shared_b, b, (k0, column))
        acc = tilus.dot(tilus.load(shared_a), tilus.load(shared_b), acc)
    # A tile's dimensions are the last ones of the tensor; the first offset picks the slice.
    tilus.store(parts, acc, (part, row, column))


@tilus.kernel
def add_parts(
    parts: Tensor[float32, "splits m n"],
    c: Tensor[float16, "m n"],
    *,
    block_m: constexpr = 4,
    block_n: constexpr = 128,
):
    splits, m, n = parts.shape
    tilus.grid(tilus.cdiv(m, block_m), tilus.cdiv(n, block_n), warps=4)
    block_row, block_column = tilus.block_id()
    row, column = block_row * block_m, block_column * block_n
    total = tilus.zeros((block_m, block_n), float32)
    for part in range(splits):
        total += tilus.load(parts, (part, row, column), (block_m, block_n))
    tilus.store(c, tilus.cast(total, float16), (row, column))


def matmul_split_k(a: torch.Tensor, b: torch.Tensor, splits: int) -> torch.Tensor:
    """Multiply two float16 matrices with k cut into `splits` parts."""
    (m, _), n = a.shape, b.shape[1]
    parts = torch.empty(splits, m, n, dtype=torch.float32, device=a.device)
    c = torch.empty(m, n, dtype=torch.float16, device=a.device)
    matmul_parts(a, b, parts)
    add_parts(parts, c)
    return c


def main(m: int = 10, n: int = 120, k: int = 2000) -> None:
    """Multiply with 1 and 8 parts, check, and compare how the work is spread."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.manual_seed(0)
    a = torch.randn(m, k, device=device).half()
    b = torch.randn(k, n, device=device).half()
    exact = a.double() @ b.double()
    allowed = 2 * ((a @ b).double() - exact).abs().max().item()
    for splits in (1, 8):
        c = matmul_split_k(a, b, splits)
        error = (c.double() - exact).abs().max().item()
        assert error <= allowed, f"off by {error:.1e}, allowed {allowed:.1e}"
        assert torch.equal(c, matmul_split_k(a, b, splits)), "two runs differ"
        print(f"{m} x {k} x {n} in {splits} parts on {device}: error {error:.1e} (allowed {allowed:.1e})")

        parts = torch.empty(splits, m, n)
        report = matmul_parts.simulate(a.cpu(), b.cpu(), parts)
        blocks = report.grid[0] * report.grid[1] * report.grid[2]
        each = report.counters["tensor_core_flops"] // blocks
        extra = add_parts.simulate(parts, c.cpu()).counters["global_bytes_read"] if splits > 1 else 0
        print(
            f"  {blocks} blocks of {each} tensor-core operations each; {extra} bytes of partial sums are read again"
        )


if __name__ == "__main__":
    main()
