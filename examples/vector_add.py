"""Vector addition: the smallest kernel, and what every kernel has.

A kernel is written for one **thread block** and for **tiles**, as in Triton; there are no thread indices.
What a CUDA programmer computes by hand (which thread takes which element, how wide a load is, where the
bounds are tested) follows from the tile's shape.

Run it with ``python examples/vector_add.py``. Without a GPU the same PTX runs on the simulator.
"""

from __future__ import annotations

import torch

import tilus
from tilus import Tensor, constexpr, float32


# Parameters are typed: a dtype, and names for the dimensions. A launch checks them, and that dimensions of
# one name are equal. What stands behind `*` and is annotated `constexpr` is known when the kernel is
# compiled.
@tilus.kernel
def vector_add(
    x: Tensor[float32, "n"],
    y: Tensor[float32, "n"],
    out: Tensor[float32, "n"],
    *,
    block: constexpr = 1024,
):
    (n,) = x.shape
    # The grid belongs to the kernel: it is computed on the host, from shapes. 4 warps are 128 threads a
    # block.
    tilus.grid(tilus.cdiv(n, block), warps=4)
    start = tilus.block_id() * block
    # `load` takes the tile at an offset. Elements outside of the tensor are not read and are 0, and `store`
    # leaves them alone, so the last block needs no mask of its own.
    a = tilus.load(x, start, block)
    b = tilus.load(y, start, block)
    tilus.store(out, a + b, start)


def main(n: int = 5000) -> None:
    """Add two vectors and check the sum."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.manual_seed(0)
    x, y = torch.randn(n, device=device), torch.randn(n, device=device)
    out = torch.empty_like(x)

    vector_add(x, y, out)

    # One addition, rounded once: exactly what torch does.
    assert torch.equal(out, x + y)
    print(f"vector_add: {n} elements on {device}, equal to torch's sum")

    # The simulator counts what decides the speed of a kernel that does nothing but move data: the 32-byte
    # sectors of global memory that it asks for, against the fewest that would do. The compiler widens
    # accesses as far as it can prove: to 16 bytes where the length is a multiple of 4, while otherwise the
    # last vector may stand half outside.
    for length in (n // 4 * 4, n // 4 * 4 + 1):
        x, y, out = torch.randn(length), torch.randn(length), torch.empty(length)
        counters = vector_add.simulate(x, y, out).counters
        print(
            f"  n = {length}: {counters['global_load_requests']} load requests of a warp, "
            f"{counters['global_load_sectors']} sectors (fewest {counters['global_load_sectors_ideal']}); "
            f"{counters['global_store_sectors']} sectors stored (fewest {counters['global_store_sectors_ideal']})"
        )


if __name__ == "__main__":
    main()
