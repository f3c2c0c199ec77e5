"""All ops of which calls are drawn, and how one call is: `python -m tests.fuzz --ops` and the tests share it."""

from __future__ import annotations

from collections.abc import Callable

from tests.fuzz import conversions, experts, products, weights
from tests.fuzz.operands import Draw
from tests.fuzz.operators import Case, check

OPS: dict[str, Callable[[Draw], Case]] = {
    "matmul": products.of_matmul,
    "matmul_block_scaled": products.of_block_scaled,
    "quantized_matmul": weights.of_quantized,
    "grouped_matmul": experts.of_grouped,
    "grouped_quantized_matmul": experts.of_grouped_quantized,
    "grouped_matmul_block_scaled": experts.of_grouped_block_scaled,
    "routing": experts.of_routing,
    "quantize_tokens": conversions.of_tokens,
    "quantize_blocks": conversions.of_blocks,
    "packing": conversions.of_packing,
    "quantize": conversions.of_quantize,
}


def finding(name: str, seed: int) -> str:
    """Return what is wrong with the call of an op that a seed gives, with the call; nothing if nothing is."""
    case = OPS[name](Draw(seed))
    said = check(case)
    return f"{said}\n  {case}" if said else ""
