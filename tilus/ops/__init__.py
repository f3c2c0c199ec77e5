"""The kernel library: functions on torch tensors, which are torch ops too."""

from tilus.ops.matmul import matmul
from tilus.ops.quantized_matmul import quantized_matmul
from tilus.ops.weights import QuantizedWeight, from_codes, quantize

__all__ = ["QuantizedWeight", "from_codes", "matmul", "quantize", "quantized_matmul"]
