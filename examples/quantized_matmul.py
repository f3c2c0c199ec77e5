"""Multiplication with weights of any width from 1 to 8 bits: bytes -> view -> cast -> dot.

Weights of 3 or 6 bits do not end at bytes, so no instruction loads one. This kernel never loads one: it loads
**bytes**, and then says that the bits which a thread holds are something else. `view` relabels bits, and
costs nothing.

- `load`: a tile of bytes, each thread holding 16 * bits of them, 16 bytes at a time;
- `view`: the same bits as a tile of `uint3`, each thread holding 128 weights: those that the tensor core
  wants from it;
- `cast`: a tile of `float16` in the same layout, by a few logic instructions;
- `dot`: the result.

For that, the weights must lie in memory in the order in which threads will hold them. They do not change, so
this is done once, on the host, by the same layouts that the kernel uses: nothing is written down twice.
`tilus.ops.quantized_matmul` is this idea with scales in groups, zero points and ragged shapes.

Run it with ``python examples/quantized_matmul.py``. Without a GPU the same PTX runs on the simulator.
"""

from __future__ import annotations

import numpy as np
import torch

import tilus
from tilus import Tensor, constexpr, float16, float32, uint8
from tilus.dtypes import DType, decode, dtype, encode, pack
from tilus.layout import RegisterLayout, column_spatial, local, spatial

# The second operand of mma.m16n8k16, 16 x 8: thread t holds column t / 4, and of the 16 rows those with
# (row / 2) % 4 == t % 4. Four elements for each thread.
OPERAND = local(2, 1) * column_spatial(4, 8) * local(2, 1)
# 8 of them below each other and 4 side by side: a unit of 128 x 32 weights, 128 for each thread, which are
# 16 * bits bytes: `bits` loads of 16 bytes, whatever the width.
UNIT = local(8, 4) * OPERAND
UNIT_K, UNIT_N = UNIT.shape


def code_layout(units_n: int) -> RegisterLayout:
    """Return which thread of which warp holds which weight: the warps stand side by side along n."""
    return spatial(1, units_n) * UNIT


def byte_layout(units_n: int, bits: int) -> RegisterLayout:
    """Return the layout of the same bits as bytes: (unit, byte of the unit).

    A unit of memory is `bits` runs of 32 x 16 bytes. In a run, the threads' 16 bytes follow one another, so that a warp
    loads 512 bytes without a gap.
    """
    return spatial(units_n, 1) * local(1, bits) * spatial(1, 32) * local(1, 16)


def prepack(codes: np.ndarray, weight_type: DType) -> np.ndarray:
    """Bring k x n codes into the order in which the kernel loads them: (k / 128, n / 32, 512 * bits) bytes."""
    k, n = codes.shape
    units = codes.reshape(k // UNIT_K, UNIT_K, n // UNIT_N, UNIT_N).transpose(0, 2, 1, 3)
    # Ask the layout where each element of each thread is ...
    index = np.array(
        [[UNIT.index(thread, element) for element in range(UNIT.elements)] for thread in range(32)]
    )
    held = units[:, :, index[..., 0], index[..., 1]]  # ..., thread, element
    # ... put each thread's codes together bit by bit, and deal the bytes out in runs of 16 for each thread.
    runs = pack(held, weight_type).reshape(*held.shape[:3], weight_type.bits, 16)
    return np.ascontiguousarray(runs.swapaxes(2, 3)).reshape(k // UNIT_K, n // UNIT_N, 512 * weight_type.bits)


@tilus.kernel
def quantized_matmul(
    a: Tensor[float16, "m k"],
    b: Tensor[uint8, "k_units n_units unit_bytes"],
    scale: Tensor[float16, "n"],
    c: Tensor[float16, "m n"],
    *,
    weight_type: constexpr,
    zero: constexpr = 0,
    block_m: constexpr = 16,
    warps: constexpr = 2,
    stages: constexpr = 3,
):
    m, k = a.shape
    n = c.shape[1]
    # Each warp multiplies with its own column of units.
    block_n = warps * UNIT_N
    tilus.grid(tilus.cdiv(m, block_m), tilus.cdiv(n, block_n), warps=warps)
    block_row, block_column = tilus.block_id()
    row, column = block_row * block_m, block_column * block_n
    unit_bytes = 512 * weight_type.bits
    acc = tilus.zeros((block_m, block_n), float32)
    for i in tilus.pipeline(range(k // UNIT_K), stages=stages):
        shared_a = tilus.shared(float16, (block_m, UNIT_K))
        shared_b = tilus.shared(uint8, (1, warps, unit_bytes))
        tilus.copy_async(shared_a, a, (row, i * UNIT_K))
        tilus.copy_async(shared_b, b, (i, block_column * warps, 0))
        in_bytes = tilus.load(shared_b[0], layout=byte_layout(warps, weight_type.bits))
        codes = tilus.view(in_bytes, weight_type, (UNIT_K, block_n), layout=code_layout(warps))
        weight = tilus.cast(codes, float16)
        # `zero` is known when the kernel is compiled, so this is a Python condition.
        if zero:
            weight = weight - zero
        acc = tilus.dot(tilus.load(shared_a), weight, acc)
    # One scale for each column: it may wait until the sum is done.
    result = acc * tilus.cast(tilus.load(scale, column, block_n), float32)
    tilus.store(c, tilus.cast(result, float16), (row, column))


def main(
    m: int = 10, n: int = 128, k: int = 256, names: str = "uint3 int5 float6_e3m2 float4_e2m1 uint8"
) -> None:
    """Multiply with weights of several types and check against float64 products of the decoded weights."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.manual_seed(0)
    a = torch.randn(m, k, device=device).half()
    weight = torch.randn(k, n)
    for name in names.split():
        weight_type = dtype(name)
        # Round to nearest, one scale for each column. Unsigned types have no negative values: the middle of
        # their range stands for zero.
        zero = 2 ** (weight_type.bits - 1) if weight_type.kind == "uint" else 0
        scale = (weight.abs().amax(0) / (float(weight_type.max) - zero)).half()
        codes = encode((weight / scale + zero).numpy(), weight_type)
        packed = torch.from_numpy(prepack(codes, weight_type)).to(device)
        c = torch.empty(m, n, device=device).half()
        quantized_matmul(a, packed, scale.to(device), c, weight_type=weight_type, zero=zero)

        values = torch.from_numpy(decode(codes, weight_type)).double().to(device) - zero
        exact = a.double() @ values * scale.double().to(device)
        # What rounding the exact result once costs, doubled.
        error, allowed = (
            (c.double() - exact).abs().max().item(),
            2 * (exact.half() - exact).abs().max().item(),
        )
        assert error <= allowed, f"{name}: off by {error:.1e}, allowed {allowed:.1e}"
        counters = quantized_matmul.simulate(
            a.cpu(), packed.cpu(), scale, c.cpu(), weight_type=weight_type, zero=zero, target="sm_80"
        ).counters
        print(
            f"{name:12} {packed.numel()} bytes of weights, {counters['global_bytes_read']} bytes read in all; "
            f"shared wavefronts {counters['shared_wavefronts']} (fewest {counters['shared_wavefronts_ideal']}); "
            f"error {error:.1e} (allowed {allowed:.1e})"
        )


if __name__ == "__main__":
    main()
