"""Matrix multiplication, step 3: asynchronous copies that run ahead.

Run it with ``python examples/matmul/pipelined.py``. Without a GPU the same PTX runs on the simulator.

In step 2 the tensor cores wait for memory, then memory waits for the tensor cores. `copy_async` (cp.async in
PTX) copies from global to shared memory without passing through registers, and without waiting: while tile i
is multiplied, tiles i + 1 and i + 2 are on their way. `tilus.pipeline` turns a loop that copies and computes
into that; below it stands the same kernel with all its parts written by hand.

Asynchronous copies that are read too early work on most days. Here the compiler follows which copies may be
unfinished at each read and refuses the kernel: `main` shows what it says. (What it cannot see, such as copies
in PTX of your own, the simulator finds, because it delivers copies as late as the waits in the program
allow.)
"""

from __future__ import annotations

import torch

import tilus
from tilus import Tensor, constexpr, float16, float32


@tilus.kernel
def matmul_pipelined(
    a: Tensor[float16, "m k"],
    b: Tensor[float16, "k n"],
    c: Tensor[float16, "m n"],
    *,
    block_m: constexpr = 64,
    block_n: constexpr = 64,
    block_k: constexpr = 32,
    stages: constexpr = 3,
):
    m, k = a.shape
    n = b.shape[1]
    tilus.grid(tilus.cdiv(m, block_m), tilus.cdiv(n, block_n), warps=4)
    block_row, block_column = tilus.block_id()
    row, column = block_row * block_m, block_column * block_n
    acc = tilus.zeros((block_m, block_n), float32)
    for k0 in tilus.pipeline(range(0, k, block_k), stages=stages):
        # Allocated inside of the loop: each stage of the pipeline gets its own.
        shared_a = tilus.shared(float16, (block_m, block_k))
        shared_b = tilus.shared(float16, (block_k, block_n))
        tilus.copy_async(shared_a, a, (row, k0))
        tilus.copy_async(shared_b, b, (k0, column))
        acc = tilus.dot(tilus.load(shared_a), tilus.load(shared_b), acc)
    tilus.store(c, tilus.cast(acc, float16), (row, column))


@tilus.kernel
def matmul_by_hand(
    a: Tensor[float16, "m k"],
    b: Tensor[float16, "k n"],
    c: Tensor[float16, "m n"],
    *,
    block_m: constexpr = 64,
    block_n: constexpr = 64,
    block_k: constexpr = 32,
    stages: constexpr = 3,
    pending: constexpr = None,
):
    m, k = a.shape
    n = b.shape[1]
    tilus.grid(tilus.cdiv(m, block_m), tilus.cdiv(n, block_n), warps=4)
    block_row, block_column = tilus.block_id()
    row, column = block_row * block_m, block_column * block_n
    shared_a = tilus.shared(float16, (stages, block_m, block_k))
    shared_b = tilus.shared(float16, (stages, block_k, block_n))
    # Fill all stages but one. This loop is unrolled: `static_range` runs at compile time.
    for stage in tilus.static_range(stages - 1):
        tilus.copy_async(shared_a[stage], a, (row, stage * block_k))
        tilus.copy_async(shared_b[stage], b, (stage * block_k, column))
        tilus.copy_async_commit()
    acc = tilus.zeros((block_m, block_n), float32)
    for i in range(tilus.cdiv(k, block_k)):
        # At most `stages - 2` groups of copies may be unfinished: the oldest, which is read now, is complete.
        tilus.copy_async_wait(stages - 2 if pending is None else pending)
        tilus.sync()
        # Start the copy into the stage that was read in the last iteration, then compute. Past the end of k
        # there is nothing inside of the matrices, so zeros arrive that nobody reads.
        ahead = i + stages - 1
        tilus.copy_async(shared_a[ahead % stages], a, (row, ahead * block_k))
        tilus.copy_async(shared_b[ahead % stages], b, (ahead * block_k, column))
        tilus.copy_async_commit()
        acc = tilus.dot(tilus.load(shared_a[i % stages]), tilus.load(shared_b[i % stages]), acc)
    # Copies must not be under way when the block ends.
    tilus.copy_async_wait(0)
    tilus.store(c, tilus.cast(acc, float16), (row, column))


def main(m: int = 100, n: int = 136, k: int = 160) -> None:
    """Multiply, check, print what the simulator counts, and show what it says of a missing wait."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.manual_seed(0)
    a = torch.randn(m, k, device=device).half()
    b = torch.randn(k, n, device=device).half()
    c = torch.empty(m, n, device=device).half()
    exact = a.double() @ b.double()
    allowed = 2 * ((a @ b).double() - exact).abs().max().item()
    for kernel in (matmul_pipelined, matmul_by_hand):
        c.fill_(float("nan"))
        kernel(a, b, c)
        error = (c.double() - exact).abs().max().item()
        assert error <= allowed, f"off by {error:.1e}, allowed {allowed:.1e}"
        print(f"{kernel.__name__}: {m} x {k} x {n} on {device}, error {error:.1e} (allowed {allowed:.1e})")

        # The report is for sm_80: cp.async is how that generation copies.
        counters = kernel.simulate(a.cpu(), b.cpu(), c.cpu(), target="sm_80").counters
        kinds = counters["instructions_by_kind"]
        print(f"  cp.async       {kinds['cp']}, commits and waits included")
        print(f"  barrier waits  {counters['barrier_waits']}, of one warp each")

    try:
        matmul_by_hand.compile(a, b, c, pending=2)
    except tilus.errors.HazardFound as error:
        print(f"\nWith one more group of copies allowed to be unfinished, the compiler says:\n\n{error}")
    else:
        raise AssertionError("a missing wait was not found")


if __name__ == "__main__":
    main()
