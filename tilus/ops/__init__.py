"""The kernel library: functions on torch tensors, which are torch ops too."""

try:
    import torch as _torch  # noqa: F401
except ModuleNotFoundError as error:
    if error.name != "torch":
        raise
    raise ModuleNotFoundError(
        "tilus.ops and tilus.torch need torch: pip install 'tilus[torch]'", name="torch"
    ) from None

from tilus.ops.block_scaled import matmul_block_scaled, quantize_blocks
from tilus.ops.gradients import refuse_gradient
from tilus.ops.grouped import QuantizedExperts, grouped_matmul, grouped_quantized_matmul, stack_experts
from tilus.ops.grouped_block_scaled import grouped_matmul_block_scaled
from tilus.ops.matmul import matmul
from tilus.ops.matmul_gradient import define_matmul_gradient
from tilus.ops.quantized_gradient import define_quantized_gradient
from tilus.ops.quantized_matmul import quantized_matmul
from tilus.ops.routing import Routing, combine, gather_rows, route, sort_by_expert
from tilus.ops.tokens import QuantizedTokens, quantize_tokens
from tilus.ops.weights import QuantizedWeight, from_codes, gated_pair, quantize

__all__ = [
    "QuantizedExperts", "QuantizedTokens", "QuantizedWeight", "Routing", "combine", "from_codes", "gated_pair",
    "gather_rows", "grouped_matmul", "grouped_matmul_block_scaled", "grouped_quantized_matmul", "matmul",
    "matmul_block_scaled", "quantize", "quantize_blocks", "quantize_tokens", "quantized_matmul", "route",
    "sort_by_expert", "stack_experts",
]  # fmt: skip

define_matmul_gradient()
define_quantized_gradient()
refuse_gradient(
    "combine", "gather_rows", "grouped_matmul", "grouped_matmul_block_scaled", "grouped_quantized_matmul",
    "matmul_block_scaled", "quantize_blocks", "quantize_tokens", "quantized_matmul_bytes", "route",
)  # fmt: skip
