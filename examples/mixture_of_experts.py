"""A quantised mixture-of-experts layer: route, sort, two grouped products, combine, and no wait for the device.

Each token goes to 2 of 8 experts. The example runs the steps one by one, prints what each is for, and compares the
result with float64. Without a GPU the kernels run as PTX on the simulator.

    python examples/mixture_of_experts.py [dtype] [tokens]
"""

from __future__ import annotations

import sys

import torch

from tilus import ops
from tilus.errors import TilusError
from tilus.torch import QuantizedMoE

HIDDEN, INNER, EXPERTS, TOP_K, GROUP, BLOCK = 256, 384, 8, 2, 64, 16


def run(dtype: str, tokens: int) -> None:
    """Run a layer step by step, and as a module."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    generator = torch.Generator().manual_seed(0)

    def matrices(k: int, n: int) -> list[torch.Tensor]:
        return [torch.randn(k, n, generator=generator) / k**0.5 for _ in range(EXPERTS)]

    gates, ups, downs = matrices(HIDDEN, INNER), matrices(HIDDEN, INNER), matrices(INNER, HIDDEN)
    router = (torch.randn(HIDDEN, EXPERTS, generator=generator) / HIDDEN**0.5).half().to(device)
    x = torch.randn(tokens, HIDDEN, generator=generator).half().to(device)

    # Gate and up share a weight: the kernel multiplies both at once, and writes silu(gate) * up.
    quantized = [[ops.quantize(m, dtype, GROUP) for m in kind] for kind in (gates, ups, downs)]
    gate_up = ops.stack_experts([ops.gated_pair(g, u) for g, u in zip(*quantized[:2], strict=True)]).to(
        device
    )
    down = ops.stack_experts(quantized[2]).to(device)

    weights, ids = ops.route(x @ router, TOP_K)
    routing = ops.sort_by_expert(ids, EXPERTS, BLOCK)
    rows = ops.gather_rows(x, routing, TOP_K)
    inner = ops.grouped_quantized_matmul(rows, gate_up, routing, activation="silu")
    found = ops.combine(ops.grouped_quantized_matmul(inner, down, routing), weights, routing)

    used = int(routing.offsets[-1]) // BLOCK
    print(f"{tokens} tokens, {TOP_K} of {EXPERTS} experts each, {dtype} weights, on {device}")
    print(f"rows of each expert   {routing.counts.tolist()}")
    print(
        f"blocks of {BLOCK} rows     {used} used of {len(routing.block_expert)} that the shapes make room for"
    )
    stored = sum(t.numel() * t.element_size() for e in (gate_up, down) for t in (e.packed, e.scale))
    dense = EXPERTS * 3 * HIDDEN * INNER * 2
    print(f"weights               {stored / 2**20:.2f} MiB, {dense / stored:.1f} times less than in float16")

    exact = reference(x.cpu(), weights.cpu().double(), ids.cpu(), quantized)
    error = ((found.cpu().double() - exact).abs().max() / exact.abs().max()).item()
    # Two products in a row with a gate between them, each rounded to float16.
    allowed = 4 * torch.finfo(torch.float16).eps
    print(f"largest error         {error:.1e} of the largest value, where rounding explains {allowed:.1e}")
    if not error <= allowed:
        sys.exit("the result is wrong")

    layer = QuantizedMoE(router, gate_up, down, TOP_K)
    same = torch.equal(torch.compile(layer, fullgraph=True, backend="aot_eager")(x), layer(x))
    print(f"as a module           {layer}")
    print(f"under torch.compile   {'one graph, the same numbers' if same else 'other numbers'}")
    if not same:
        sys.exit("the compiled layer differs")


def reference(
    x: torch.Tensor, weights: torch.Tensor, ids: torch.Tensor, quantized: list[list[ops.QuantizedWeight]]
) -> torch.Tensor:
    """Return the layer's output in float64."""
    out = torch.zeros(x.shape, dtype=torch.float64)
    for expert, matrices in enumerate(zip(*quantized, strict=True)):
        gate, up, down = (m.dequantize() for m in matrices)
        inner = torch.nn.functional.silu(x.double() @ gate) * (x.double() @ up)
        out += inner @ down * (weights * (ids == expert)).sum(dim=1)[:, None]
    return out


if __name__ == "__main__":
    try:
        run(sys.argv[1] if len(sys.argv) > 1 else "uint4", int(sys.argv[2]) if len(sys.argv) > 2 else 40)
    except (TilusError, ValueError) as error:
        sys.exit(str(error))
