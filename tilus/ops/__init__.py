"""The kernel library: functions on torch tensors, which are torch ops too."""

from tilus.ops.block_scaled import matmul_block_scaled, quantize_blocks
from tilus.ops.matmul import matmul
from tilus.ops.quantized_matmul import quantized_matmul
from tilus.ops.weights import QuantizedWeight, from_codes, quantize

__all__ = [
    "QuantizedWeight", "from_codes", "matmul", "matmul_block_scaled", "quantize", "quantize_blocks", "quantized_matmul",
]  # fmt: skip
