"""Tilus in torch models: quantised modules, and a backend for `torch.compile`."""

from tilus.torch.backend import Replaced, backend
from tilus.torch.modules import QuantizedLinear, load_quantized, quantize_linears

__all__ = ["QuantizedLinear", "Replaced", "backend", "load_quantized", "quantize_linears"]
