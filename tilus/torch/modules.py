"""Modules whose weights are quantised."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn

from tilus.dtypes import DType
from tilus.dtypes import dtype as find_dtype
from tilus.errors import ShapeMismatch, TilusError, TypeMismatch
from tilus.ops import QuantizedWeight, quantize

TENSORS = ("packed", "scale", "zero", "order", "bias")
CONFIG = "config"
"""Key of a state dict under which a layer says, as JSON in bytes, what its tensors mean."""
SCALE_DTYPES = (torch.float16, torch.bfloat16)


class QuantizedLinear(nn.Module):
    """A linear layer with a quantised weight: ``x @ weight + bias``.

    Its state dict holds plain tensors and says itself of which type the weight is, so it can be saved by `torch.save`
    and by safetensors. Loading takes over the type, the group size and the zero points of what is loaded.

    Parameters
    ----------
    weight : QuantizedWeight
        Of shape (in_features, out_features).
    bias : Tensor, optional
        Of shape (out_features,).
    """

    packed: torch.Tensor
    scale: torch.Tensor
    zero: torch.Tensor | None
    order: torch.Tensor | None
    bias: torch.Tensor | None

    def __init__(self, weight: QuantizedWeight, bias: torch.Tensor | None = None) -> None:
        super().__init__()
        self.in_features, self.out_features = weight.shape
        if bias is not None and tuple(bias.shape) != (self.out_features,):
            raise ShapeMismatch(
                f"bias has shape {tuple(bias.shape)}, expected {(self.out_features,)} for a weight of "
                f"{self.in_features} x {self.out_features}"
            )
        if weight.gated:
            raise TypeMismatch(
                "a linear layer has no gate",
                hint="call tilus.ops.quantized_matmul with a gated pair and an activation",
            )
        self.weight_dtype = weight.dtype.name
        self.activations = weight.activations
        self.group_size = weight.group_size
        self.alpha = weight.alpha
        self.register_buffer("packed", weight.packed)
        self.register_buffer("scale", weight.scale)
        self.register_buffer("zero", weight.zero)
        self.register_buffer("order", weight.order)
        self.register_buffer("bias", None if bias is None else bias.detach().to(weight.scale))

    @classmethod
    def from_linear(
        cls, linear: nn.Linear, dtype: DType | str, group_size: int = 128, *, zero_point: bool = False,
        scale_dtype: torch.dtype = torch.float16, activations: torch.dtype | None = None,
    ) -> QuantizedLinear:  # fmt: skip
        """Quantise a linear layer; see `tilus.ops.quantize` for the arguments."""
        weight = quantize(
            linear.weight.detach().t(), dtype, group_size, zero_point=zero_point, scale_dtype=scale_dtype,
            activations=activations,
        )  # fmt: skip
        return cls(weight.to(linear.weight.device), linear.bias)

    @classmethod
    def from_state_dict(cls, state_dict: Mapping[str, torch.Tensor], prefix: str = "") -> QuantizedLinear:
        """Make a layer of what `state_dict()` of one gave.

        Parameters
        ----------
        state_dict : mapping
            With the layer's tensors, and perhaps others.
        prefix : str
            What the layer's keys begin with, with the dot.
        """
        missing = [prefix + name for name in ("packed", "scale", CONFIG) if prefix + name not in state_dict]
        if missing:
            raise ShapeMismatch("the state dict holds no quantised layer: it lacks " + ", ".join(missing))
        found = {name: state_dict.get(prefix + name) for name in TENSORS}
        config = read_config(state_dict[prefix + CONFIG])
        packed, scale = state_dict[prefix + "packed"], state_dict[prefix + "scale"]
        weight = QuantizedWeight(
            find_dtype(config["dtype"]), (config["in_features"], config["out_features"]), config["group_size"],
            packed, scale, found["zero"], config["alpha"], found["order"], activations_named(config),
        )  # fmt: skip
        return cls(weight, found["bias"])

    @property
    def weight(self) -> QuantizedWeight:
        """The quantised weight."""
        return QuantizedWeight(
            find_dtype(self.weight_dtype), (self.in_features, self.out_features), self.group_size, self.packed,
            self.scale, self.zero, self.alpha, self.order, self.activations,
        )  # fmt: skip

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the layer's output in x's dtype; x of another float dtype is converted to that of the scales."""
        if x.ndim == 0 or x.shape[-1] != self.in_features:
            raise ShapeMismatch(
                f"the layer takes {self.in_features} features, but its input has shape {tuple(x.shape)}"
            )
        given = x.to(self.scale.dtype)
        if self.activations in (torch.int8, torch.float8_e4m3fn):
            return self._with_bytes(given).to(x.dtype)
        out = torch.ops.tilus.quantized_matmul(
            given, self.packed, self.scale, self.zero, self.weight_dtype, self.in_features,
            self.out_features, self.group_size, self.alpha, self.order, self.bias,
        )  # fmt: skip
        return out.to(x.dtype)

    def _with_bytes(self, x: torch.Tensor) -> torch.Tensor:
        """Return the output with activations rounded to 8 bits, each token with a scale of its own."""
        rows = x if self.order is None else x.index_select(-1, self.order)
        values, factors = torch.ops.tilus.quantize_tokens(rows, self.activations, False)
        out: torch.Tensor = torch.ops.tilus.quantized_matmul_bytes(
            values, factors, self.packed, self.scale, self.zero, self.weight_dtype, self.in_features,
            self.out_features, self.group_size, self.alpha, self.bias,
        )  # fmt: skip
        return out.reshape(*x.shape[:-1], self.out_features)

    def extra_repr(self) -> str:
        """Say what the layer is."""
        return (
            f"in_features={self.in_features}, out_features={self.out_features}, dtype={self.weight_dtype}, "
            f"group_size={self.group_size}, zero_point={self.zero is not None}, bias={self.bias is not None}"
        )

    def _apply(self, fn: Callable[[torch.Tensor], torch.Tensor], recurse: bool = True) -> QuantizedLinear:
        """Move, or convert between the 16-bit floats; `float()` of a model leaves quantised layers as they are."""
        before = {name: getattr(self, name) for name in ("scale", "zero", "bias")}
        super()._apply(fn, recurse)
        if self.scale.dtype not in SCALE_DTYPES:
            for name, tensor in before.items():
                if tensor is not None:
                    setattr(self, name, tensor.to(self.scale.device))
        return self

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        config = {
            "dtype": self.weight_dtype, "in_features": self.in_features, "out_features": self.out_features,
            "group_size": self.group_size, "alpha": self.alpha,
            "activations": "" if self.activations is None else str(self.activations).removeprefix("torch."),
        }  # fmt: skip
        destination[prefix + CONFIG] = torch.tensor(list(json.dumps(config).encode()), dtype=torch.uint8)

    def _load_from_state_dict(
        self, state_dict: dict[str, Any], prefix: str, local_metadata: Any, strict: bool, missing_keys: list[str],
        unexpected_keys: list[str], error_msgs: list[str],
    ) -> None:  # fmt: skip
        stored = state_dict.pop(prefix + CONFIG, None)
        if stored is None:
            missing_keys.append(prefix + CONFIG)
        else:
            config = read_config(stored)
            shape = config["in_features"], config["out_features"]
            if shape != (self.in_features, self.out_features):
                error_msgs.append(
                    f"{prefix[:-1] or 'the layer'} is {self.in_features} x {self.out_features}, but the state dict's "
                    f"weight is {shape[0]} x {shape[1]}"
                )
                return
            self.weight_dtype, self.group_size = config["dtype"], config["group_size"]
            self.alpha, self.activations = config["alpha"], activations_named(config)
            for name in TENSORS:
                found = state_dict.get(prefix + name)
                setattr(
                    self, name, None if found is None else torch.empty_like(found, device=self.scale.device)
                )
        super()._load_from_state_dict(
            state_dict, prefix, local_metadata, strict, missing_keys, unexpected_keys, error_msgs
        )


def read_config(stored: torch.Tensor) -> dict[str, Any]:
    """Return what a layer's state dict says about its tensors."""
    config: dict[str, Any] = json.loads(bytes(stored.cpu().tolist()))
    return config


def activations_named(config: Mapping[str, Any]) -> torch.dtype | None:
    """Return the dtype of activations that a layer's weight was packed for."""
    name = config.get("activations", "")
    return getattr(torch, name) if name else None


def quantize_linears(
    model: nn.Module,
    dtype: DType | str,
    group_size: int = 128,
    *,
    zero_point: bool = False,
    scale_dtype: torch.dtype = torch.float16,
    activations: torch.dtype | None = None,
    select: Callable[[str, nn.Linear], bool] = lambda name, linear: True,
    progress: Callable[[str], None] = lambda name: None,
) -> list[str]:
    """Replace linear layers of a model by quantised ones, in place.

    Parameters
    ----------
    model : Module
        Changed in place.
    dtype, group_size, zero_point, scale_dtype, activations
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
        try:
            made = QuantizedLinear.from_linear(
                linear,
                dtype,
                group_size,
                zero_point=zero_point,
                scale_dtype=scale_dtype,
                activations=activations,
            )
        except TilusError as error:
            raise type(error)(f"{name}: {error.message}", error.location, hint=error.hint) from error
        _replace(model, name, made)
        progress(name)
    return [name for name, _ in chosen]


def load_quantized(model: nn.Module, state_dict: Mapping[str, torch.Tensor]) -> list[str]:
    """Load the state dict of a model whose linear layers are quantised into one whose layers are not, in place.

    Parameters
    ----------
    model : Module
        Changed in place: linear layers that the state dict holds quantised are replaced.
    state_dict : mapping
        Of the whole model.

    Returns
    -------
    list of str
        Names of the layers that were replaced.
    """
    chosen = [
        (n, m) for n, m in model.named_modules() if isinstance(m, nn.Linear) and f"{n}.{CONFIG}" in state_dict
    ]
    for name, linear in chosen:
        made = QuantizedLinear.from_state_dict(state_dict, f"{name}.")
        if (made.in_features, made.out_features) != (linear.in_features, linear.out_features):
            raise ShapeMismatch(
                f"{name} is {linear.in_features} x {linear.out_features}, but the state dict's weight is "
                f"{made.in_features} x {made.out_features}"
            )
        _replace(model, name, made.to(linear.weight.device))
    model.load_state_dict(state_dict)
    return [name for name, _ in chosen]


def _replace(model: nn.Module, name: str, made: nn.Module) -> None:
    parent, _, leaf = name.rpartition(".")
    setattr(model.get_submodule(parent), leaf, made)
