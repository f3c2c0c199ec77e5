"""Matrix multiplication, step 2: tiles in shared memory.

Run it with ``python examples/matmul/shared_memory.py``. Without a GPU the same PTX runs on the simulator.

In step 1 the compiler had to bring each tile from the layout in which global memory is read well into the
layout of the tensor cores, and did it through shared memory. Here the kernel says so itself: `shared` makes a
tensor in shared memory, `store` and `load` move tiles in and out. Now each tile is written once, and read by
each warp as often as it needs it, with `ldmatrix`, which hands a row of 16 bytes to the four threads that
want it.

There is no `sync` in this kernel, although there could be: the compiler knows who reads and writes what, and
places the barriers that are missing (`TILUS_DUMP=folder` shows where and why).
"""

from __future__ import annotations

import torch

import tilus
from tilus import Tensor, constexpr, float16, float32


@tilus.kernel
def matmul_shared(
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
    shared_a = tilus.shared(float16, (block_m, block_k))
    shared_b = tilus.shared(float16, (block_k, block_n))
    acc = tilus.zeros((block_m, block_n), float32)
    for k0 in range(0, k, block_k):
        tilus.store(shared_a, tilus.load(a, (row, k0), (block_m, block_k)))
        tilus.store(shared_b, tilus.load(b, (k0, column), (block_k, block_n)))
        # Between these lines: a barrier, so that all has been written, and one after the dot, so that all has
        # been read before the next tiles come.
        acc = tilus.dot(tilus.load(shared_a), tilus.load(shared_b), acc)
    tilus.store(c, tilus.cast(acc, float16), (row, column))


def main(m: int = 100, n: int = 136, k: int = 96) -> None:
    """Multiply, check, and print what the simulator counts."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.manual_seed(0)
    a = torch.randn(m, k, device=device).half()
    b = torch.randn(k, n, device=device).half()
    c = torch.empty(m, n, device=device).half()
    matmul_shared(a, b, c)

    exact = a.double() @ b.double()
    error, allowed = (
        (c.double() - exact).abs().max().item(),
        2 * ((a @ b).double() - exact).abs().max().item(),
    )
    assert error <= allowed, f"off by {error:.1e}, allowed {allowed:.1e}"
    print(f"matmul_shared: {m} x {k} x {n} on {device}, error {error:.1e} (allowed {allowed:.1e})")

    counters = matmul_shared.simulate(a.cpu(), b.cpu(), c.cpu()).counters
    kinds = counters["instructions_by_kind"]
    print(f"  shared memory  {counters['shared_requests']} requests (ldmatrix: {kinds['ldmatrix']})")
    print(f"  wavefronts     {counters['shared_wavefronts']} (fewest {counters['shared_wavefronts_ideal']})")
    print(f"  barrier waits  {counters['barrier_waits']}, of one warp each")


if __name__ == "__main__":
    main()
