"""Tilus in torch models: quantised modules, and a backend for `torch.compile`."""

from tilus.torch.backend import Replaced, backend, replacements
from tilus.torch.modules import QuantizedLinear, quantize_linears

__all__ = ["QuantizedLinear", "Replaced", "backend", "quantize_linears", "replacements"]
