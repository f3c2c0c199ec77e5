"""Matrix multiplication, step 4: layouts said out loud, and bank conflicts counted.

Run it with ``python examples/matmul/swizzle.py``. Without a GPU the same PTX runs on the simulator.

Until here the compiler chose all layouts. This kernel takes them as parameters, so that you can see what they
do.

**Registers.** `mma.m16n8k16` wants its operands spread over the 32 lanes of a warp as the PTX ISA says. In
the layout algebra (`a * b` puts a tile of `b` in the place of each element of `a`; `x.spatial(...)` is `x *
spatial(...)`):

- its result, 16 x 8: `local(2, 1).spatial(8, 4).local(1, 2)`: 8 rows of 4 threads with 2 neighbouring
  elements each, and that twice, one below the other;
- its first operand, 16 x 16: `column_local(2, 2).spatial(8, 4).local(1, 2)`;
- its second operand, 16 x 8: `local(2, 1).column_spatial(4, 8).local(2, 1)`.

Around these stand the repetitions in each warp, and around those the warps: 2 x 2, where the warps of a row
hold the same part of the first operand (`replicated`).

**Shared memory.** A warp reads rows of 16 bytes with `ldmatrix`, 8 rows at once. Shared memory has 32 banks
of 4 bytes, so 8 rows go at once only if they start in 8 different groups of 4 banks. In a plain row-major
tile whose rows are 128 bytes, all rows start in the same bank, and each read takes 8 turns. Padding the rows
helps, and takes memory. A swizzle helps for nothing: it permutes the 16-byte pieces of row r by XOR with r.
"""

from __future__ import annotations

import torch

import tilus
from tilus import Tensor, constexpr, float16, float32
from tilus.layout import (
    RegisterLayout,
    SharedLayout,
    column_local,
    draw_text,
    local,
    padded,
    replicated,
    row_major,
    spatial,
    swizzled_row_major,
)

MMA_A = column_local(2, 2).spatial(8, 4).local(1, 2)
MMA_B = local(2, 1).column_spatial(4, 8).local(2, 1)
MMA_C = local(2, 1).spatial(8, 4).local(1, 2)


def operand_layouts(m: int, n: int, k: int) -> tuple[RegisterLayout, RegisterLayout, RegisterLayout]:
    """Return the layouts of a, b and c for 2 x 2 warps."""
    a = spatial(2, 1) * replicated(2) * local(m // 32, k // 16) * MMA_A
    b = replicated(2) * spatial(1, 2) * local(k // 16, n // 16) * MMA_B
    c = spatial(2, 2) * local(m // 32, n // 16) * MMA_C
    return a, b, c


@tilus.kernel
def matmul_with_layouts(
    a: Tensor[float16, "m k"],
    b: Tensor[float16, "k n"],
    c: Tensor[float16, "m n"],
    *,
    block_m: constexpr,
    block_n: constexpr,
    block_k: constexpr,
    shared_a_layout: constexpr,
    shared_b_layout: constexpr,
):
    m, k = a.shape
    n = b.shape[1]
    tilus.grid(tilus.cdiv(m, block_m), tilus.cdiv(n, block_n), warps=4)
    block_row, block_column = tilus.block_id()
    row, column = block_row * block_m, block_column * block_n
    # Layouts are Python values: functions that make them are called at compile time.
    a_layout, b_layout, c_layout = operand_layouts(block_m, block_n, block_k)
    acc = tilus.zeros((block_m, block_n), float32, layout=c_layout)
    for k0 in tilus.pipeline(range(0, k, block_k), stages=3):
        shared_a = tilus.shared(float16, (block_m, block_k), layout=shared_a_layout)
        shared_b = tilus.shared(float16, (block_k, block_n), layout=shared_b_layout)
        tilus.copy_async(shared_a, a, (row, k0))
        tilus.copy_async(shared_b, b, (k0, column))
        at = tilus.load(shared_a, layout=a_layout)
        bt = tilus.load(shared_b, layout=b_layout)
        acc = tilus.dot(at, bt, acc)
    tilus.store(c, tilus.cast(acc, float16), (row, column))


def main(m: int = 64, n: int = 128, k: int = 128) -> None:
    """Run the kernel with three layouts of shared memory and compare the counters."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.manual_seed(0)
    a = torch.randn(m, k, device=device).half()
    b = torch.randn(k, n, device=device).half()
    c = torch.empty(m, n, device=device).half()
    exact = a.double() @ b.double()
    allowed = 2 * ((a @ b).double() - exact).abs().max().item()
    block = dict(block_m=64, block_n=64, block_k=64)
    ta, tb = (64, 64), (64, 64)

    print("Which thread holds which element of the result of mma.m16n8k16:\n")
    print(draw_text(MMA_C))
    layouts: dict[str, tuple[SharedLayout, SharedLayout]] = {
        "row-major": (row_major(*ta), row_major(*tb)),
        "padded": (padded(ta, 8), padded(tb, 8)),
        "swizzled": (swizzled_row_major(ta, 16), swizzled_row_major(tb, 16)),
    }
    print(f"\n{m} x {k} x {n} on {device}; shared memory is read in wavefronts of up to 128 bytes:")
    for name, (layout_a, layout_b) in layouts.items():
        kernel = matmul_with_layouts.bind(shared_a_layout=layout_a, shared_b_layout=layout_b, **block)
        c.fill_(float("nan"))
        kernel(a, b, c)
        error = (c.double() - exact).abs().max().item()
        assert error <= allowed, f"{name}: off by {error:.1e}, allowed {allowed:.1e}"
        counters = kernel.simulate(a.cpu(), b.cpu(), c.cpu(), target="sm_80").counters
        compiled = kernel.compile(a, b, c, target="sm_80")
        wavefronts, fewest = counters["shared_wavefronts"], counters["shared_wavefronts_ideal"]
        print(
            f"  {name:9}  {wavefronts:6} wavefronts (fewest {fewest}), {compiled.shared_bytes} bytes of shared memory, "
            f"error {error:.1e} (allowed {allowed:.1e})"
        )
        # The fewest is not a matter of opinion: without conflicts each wavefront moves what it can.
        assert (wavefronts == fewest) == (name != "row-major"), name


if __name__ == "__main__":
    main()
