"""Matrix multiplication, step 1: tensor cores fed from global memory.

Run it with ``python examples/matmul/naive.py``. Without a GPU the same PTX runs on the simulator.

`dot` multiplies tiles on tensor cores, which take their operands in a layout of their own (which thread holds
which element; see `docs/layouts.md`). In that layout a thread's elements do not lie together in memory. So
the compiler loads each tile with 16 bytes for each thread, and then exchanges it among the threads through
shared memory: you wrote neither, and the counters show both. The exchange costs two barriers for each tile,
and the tensor cores wait while it lasts.
"""

from __future__ import annotations

import torch

import tilus
from tilus import Tensor, constexpr, float16, float32


@tilus.kernel
def matmul_naive(
    a: Tensor[float16, "m k"],
    b: Tensor[float16, "k n"],
    c: Tensor[float16, "m n"],
    *,
    block_m: constexpr = 64,
    block_n: constexpr = 64,
    block_k: constexpr = 32,
):
    m, k = a.shape
    n = b.shape[1]
    tilus.grid(tilus.cdiv(m, block_m), tilus.cdiv(n, block_n), warps=4)
    block_row, block_column = tilus.block_id()
    row, column = block_row * block_m, block_column * block_n
    # The accumulator stays in registers; its layout is that of the tensor cores' result.
    acc = tilus.zeros((block_m, block_n), float32)
    for k0 in range(0, k, block_k):
        # Elements outside of a matrix are 0, so m, n and k may be anything.
        at = tilus.load(a, (row, k0), (block_m, block_k))
        bt = tilus.load(b, (k0, column), (block_k, block_n))
        acc = tilus.dot(at, bt, acc)
    tilus.store(c, tilus.cast(acc, float16), (row, column))


def main(m: int = 100, n: int = 136, k: int = 96) -> None:
    """Multiply, check, and print what the simulator counts."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.manual_seed(0)
    a = torch.randn(m, k, device=device).half()
    b = torch.randn(k, n, device=device).half()
    c = torch.empty(m, n, device=device).half()
    matmul_naive(a, b, c)

    exact = a.double() @ b.double()
    # Sums are kept in float32 and rounded once; torch does the same.
    error, allowed = (
        (c.double() - exact).abs().max().item(),
        2 * ((a @ b).double() - exact).abs().max().item(),
    )
    assert error <= allowed, f"off by {error:.1e}, allowed {allowed:.1e}"
    print(f"matmul_naive: {m} x {k} x {n} on {device}, error {error:.1e} (allowed {allowed:.1e})")

    counters = matmul_naive.simulate(a.cpu(), b.cpu(), c.cpu()).counters
    print(f"  load requests  {counters['global_load_requests']}")
    print(f"  bytes asked    {counters['global_bytes_read']}; the matrices have {2 * (m * k + k * n)}")
    print(
        f"  shared memory  {counters['shared_requests']} requests, {counters['barrier_waits']} barrier waits"
    )
    print(f"  tensor cores   {counters['tensor_core_instructions']}")


if __name__ == "__main__":
    main()
