"""Tilus in torch models: quantised modules, and a backend for `torch.compile`."""

import tilus.ops  # noqa: F401  says what to install where torch is missing
from tilus.torch.backend import Replaced, backend
from tilus.torch.checkpoints import load_checkpoint
from tilus.torch.modules import QuantizedLinear, load_quantized, quantize_linears
from tilus.torch.moe import QuantizedMoE

__all__ = [
    "QuantizedLinear", "QuantizedMoE", "Replaced", "backend", "load_checkpoint", "load_quantized", "quantize_linears",
]  # fmt: skip
