"""Modules whose weights are quantised."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn

from tilus.dtypes import DType, dtype
from tilus.ops import QuantizedWeight, quantize


class QuantizedLinear(nn.Module):
    """A linear layer with a quantised weight: ``x @ weight + bias``.

    Parameters
    ----------
    weight : QuantizedWeight
        Of shape (in_features, out_features).
    bias : Tensor, optional
        Of shape (out_features,).
    """

    def __init__(self, weight: QuantizedWeight, bias: torch.Tensor | None = None) -> None:
        super().__init__()
        self.in_features, self.out_features = weight.shape
        self.weight_dtype = weight.dtype.name
        self.group_size = weight.group_size
        self.register_buffer("packed", weight.packed)
        self.register_buffer("scale", weight.scale)
        self.register_buffer("zero", weight.zero)
        self.register_buffer("bias", None if bias is None else bias.detach().to(weight.scale.dtype))

    @classmethod
    def from_linear(
        cls, linear: nn.Linear, dtype: DType | str, group_size: int = 128, *, zero_point: bool = False,
        scale_dtype: torch.dtype = torch.float16,
    ) -> QuantizedLinear:  # fmt: skip
        """Quantise a linear layer; see `tilus.ops.quantize` for the arguments."""
        weight = quantize(
            linear.weight.detach().t(), dtype, group_size, zero_point=zero_point, scale_dtype=scale_dtype
        )
        return cls(weight, linear.bias)

    @property
    def weight(self) -> QuantizedWeight:
        """The quantised weight."""
        return QuantizedWeight(
            dtype(self.weight_dtype),
            (self.in_features, self.out_features),
            self.group_size,
            self.packed,
            self.scale,
            self.zero,
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the layer's output in x's dtype; x of another float dtype is converted to that of the scales."""
        out = torch.ops.tilus.quantized_matmul(
            x.to(self.scale.dtype), self.packed, self.scale, self.zero, self.weight_dtype, self.in_features,
            self.out_features, self.group_size,
        )  # fmt: skip
        if self.bias is not None:
            out = out + self.bias
        return out.to(x.dtype)

    def extra_repr(self) -> str:
        """Say what the layer is."""
        return (
            f"in_features={self.in_features}, out_features={self.out_features}, dtype={self.weight_dtype}, "
            f"group_size={self.group_size}, bias={self.bias is not None}"
        )


def quantize_linears(
    model: nn.Module,
    dtype: DType | str,
    group_size: int = 128,
    *,
    zero_point: bool = False,
    scale_dtype: torch.dtype = torch.float16,
    select: Callable[[str, nn.Linear], bool] = lambda name, linear: True,
    progress: Callable[[str], None] = lambda name: None,
) -> list[str]:
    """Replace linear layers of a model by quantised ones, in place.

    Parameters
    ----------
    model : Module
        Changed in place.
    dtype, group_size, zero_point, scale_dtype
        As for `tilus.ops.quantize`.
    select : callable
        From a layer's name and the layer to whether it is replaced.
    progress : callable
        Called with the name of each layer after it was replaced.

    Returns
    -------
    list of str
        Names of the layers that were replaced.
    """
    chosen = [(n, m) for n, m in model.named_modules() if isinstance(m, nn.Linear) and select(n, m)]
    for name, linear in chosen:
        made = QuantizedLinear.from_linear(
            linear, dtype, group_size, zero_point=zero_point, scale_dtype=scale_dtype
        )
        parent, _, leaf = name.rpartition(".")
        setattr(model.get_submodule(parent), leaf, made)
        progress(name)
    return [name for name, _ in chosen]
