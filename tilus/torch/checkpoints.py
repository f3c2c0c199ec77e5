"""A quantised checkpoint of another project, loaded into a model of plain linear layers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from operator import attrgetter
from typing import Any

import torch
from torch import nn

from tilus.errors import ShapeMismatch
from tilus.ops.checkpoint_layers import STATE, from_layer
from tilus.ops.checks import checked
from tilus.torch.modules import QuantizedLinear, linears, named_errors, replace_module

MARKS = ("qweight", "weight_packed", "weight_scale", "weight_scale_inv", "SCB", "W_q")
"""Tensors that quantised layers have and others have not."""


@checked
def load_checkpoint(
    model: nn.Module,
    state_dict: Mapping[str, torch.Tensor],
    quantization_config: Mapping[str, Any],
    *,
    dtype: torch.dtype = torch.bfloat16,
    activations: torch.dtype | None = None,
) -> list[str]:
    """Load a checkpoint with quantised layers into a model, in place.

    What of the model is on the meta device becomes the checkpoint's tensors themselves; the rest is copied into.
    Parameters that several modules share stay shared.

    Parameters
    ----------
    model : Module
        With linear layers where the checkpoint's are quantised, under the same names.
    state_dict : mapping
        All tensors of the checkpoint.
    quantization_config : mapping
        What the model's config.json holds under this name.
    dtype, activations : torch.dtype
        As for `tilus.ops.checkpoint_layers.from_layer`.

    Returns
    -------
    list of str
        Names of the layers that were replaced.

    Raises
    ------
    ShapeMismatch
        Where the checkpoint lacks something of the model, or a layer has another size. The model stays as it was.
    """
    named = {name: linear for linear, names in linears(model).items() for name in names}
    layers: dict[str, dict[str, torch.Tensor]] = {}
    rest: dict[str, torch.Tensor] = {}
    for key, tensor in state_dict.items():
        name = _layer_of(key, named)
        if name is None:
            rest[key] = tensor
        else:
            layers.setdefault(name, {})[key[len(name) + 1 :]] = tensor
    made: dict[nn.Linear, QuantizedLinear] = {}
    chosen: dict[str, QuantizedLinear] = {}
    for name, tensors in layers.items():
        if not any(key in MARKS or key.startswith(STATE) for key in tensors):
            rest |= {f"{name}.{key}": tensor for key, tensor in tensors.items()}
            continue
        linear = named[name]
        if linear not in made:
            made[linear] = _imported(name, linear, tensors, quantization_config, dtype, activations)
        chosen[name] = made[linear]
    # A model of which something is missing or wrong stays as it was.
    names = _names_of_rest(model, rest, chosen)
    for name, layer in chosen.items():
        replace_module(model, name, layer)
    _load_rest(model, rest, names)
    return list(chosen)


def _layer_of(key: str, named: Mapping[str, nn.Linear]) -> str | None:
    """Return the linear layer to which a tensor belongs."""
    name = key
    while "." in name:
        name = name.rpartition(".")[0]
        if name in named:
            return name
    return None


def _imported(
    name: str, linear: nn.Linear, tensors: Mapping[str, torch.Tensor], config: Mapping[str, Any],
    dtype: torch.dtype, activations: torch.dtype | None,
) -> QuantizedLinear:  # fmt: skip
    with named_errors(name):
        weight = from_layer(tensors, config, dtype=dtype, activations=activations)
    if weight.shape != (linear.in_features, linear.out_features):
        raise ShapeMismatch(
            f"{name} is {linear.in_features} x {linear.out_features}, but the checkpoint's weight is "
            f"{weight.shape[0]} x {weight.shape[1]}"
        )
    bias = tensors.get("bias")
    if bias is None and linear.bias is not None:
        raise ShapeMismatch(f"the checkpoint lacks {name}.bias of the model")
    if bias is not None and linear.bias is None and not bias.any():
        # Some writers store zeros for layers without a bias.
        bias = None
    made = QuantizedLinear(weight, None if bias is None else bias.to(weight.device))
    device = linear.weight.device
    return (made if device.type == "meta" else made.to(device)).train(linear.training)


def _names_of_rest(
    model: nn.Module, state_dict: Mapping[str, torch.Tensor], replaced: Mapping[str, nn.Module]
) -> list[list[str]]:
    """Return the names of each tensor that is not of a replaced layer; refuse a checkpoint that lacks some."""
    names: dict[int, list[str]] = {}
    for key, tensor in model.state_dict(keep_vars=True).items():
        if key.rpartition(".")[0] not in replaced:
            names.setdefault(id(tensor), []).append(key)
    lacking = sorted(key for keys in names.values() if state_dict.keys().isdisjoint(keys) for key in keys)
    if lacking:
        raise ShapeMismatch(
            f"the checkpoint lacks {', '.join(lacking[:4])}{' and others' if lacking[4:] else ''} of the model"
        )
    return list(names.values())


def _load_rest(
    model: nn.Module, state_dict: Mapping[str, torch.Tensor], names: Sequence[Sequence[str]]
) -> None:
    """Load what is not quantised; what modules share stays shared."""
    on_meta = any(tensor.is_meta for tensor in (*model.parameters(), *model.buffers()))
    model.load_state_dict(state_dict, strict=False, assign=on_meta)
    for shared in names:
        if len(shared) > 1:
            loaded = attrgetter(next(name for name in shared if name in state_dict))(model)
            for name in shared:
                parent, _, leaf = name.rpartition(".")
                setattr(model.get_submodule(parent), leaf, loaded)
