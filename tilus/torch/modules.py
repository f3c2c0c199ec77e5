"""Modules whose weights are quantised."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from operator import attrgetter
from typing import Any

import torch
from torch import nn
from torch.nn.modules.linear import NonDynamicallyQuantizableLinear
from torch.nn.parameter import UninitializedParameter

from tilus.dtypes import DType
from tilus.dtypes import dtype as find_dtype
from tilus.errors import InvalidValue, ShapeMismatch, TilusError, TypeMismatch
from tilus.ops import QuantizedWeight, quantize
from tilus.ops.checks import checked, checked_values
from tilus.ops.gradients import operator
from tilus.ops.prepack import UNIT_K, UNIT_N, order_name, padded, unit_bytes
from tilus.ops.weights import check_group

TENSORS = ("packed", "scale", "zero", "order", "bias")
CONFIG = "config"
"""Key of a state dict under which a layer says, as JSON in bytes, what its tensors mean."""
KEYS = ("dtype", "in_features", "out_features", "group_size", "alpha", "tensors", "order")
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

    @checked
    def __init__(self, weight: QuantizedWeight, bias: torch.Tensor | None = None) -> None:
        super().__init__()
        self.in_features, self.out_features = weight.shape
        if bias is not None and tuple(bias.shape) != (self.out_features,):
            raise ShapeMismatch(
                f"bias has shape {tuple(bias.shape)}, expected {(self.out_features,)} for a weight of "
                f"{self.in_features} x {self.out_features}"
            )
        if bias is not None and not bias.is_floating_point():
            raise TypeMismatch(f"bias is {bias.dtype}, expected a float type", hint="bias.float()")
        if weight.gated:
            raise TypeMismatch(
                "a linear layer has no gate",
                hint="call tilus.ops.quantized_matmul with a gated pair and an activation",
            )
        self.weight_dtype = weight.dtype.name
        self.activations = weight.activations
        self.group_size = weight.group_size
        self.alpha = weight.alpha
        self.scale_type, self.out_dtype = weight.scale_type, weight.out_dtype
        self.register_buffer("packed", weight.packed)
        self.register_buffer("scale", weight.scale)
        self.register_buffer("zero", weight.zero)
        self.register_buffer("order", weight.order)
        self.register_buffer(
            "bias", None if bias is None else bias.detach().to(weight.packed.device, weight.result)
        )

    @classmethod
    @checked_values
    def from_linear(
        cls, linear: nn.Linear, dtype: DType | str, group_size: int = 128, *, zero_point: bool = False,
        scale_dtype: torch.dtype | DType | str | None = None, activations: torch.dtype | None = None,
        out_dtype: torch.dtype | None = None,
    ) -> QuantizedLinear:  # fmt: skip
        """Quantise a linear layer; see `tilus.ops.quantize` for the arguments.

        Unless given, `scale_dtype` is bfloat16 for a weight of bfloat16, so that activations keep their type and range,
        and float16 for others.
        """
        if isinstance(linear.weight, UninitializedParameter):
            raise TypeMismatch(
                "a lazy linear layer has no weight before its first call", hint="call the model once"
            )
        weight = quantize(
            linear.weight.detach().t(), dtype, group_size, zero_point=zero_point,
            scale_dtype=scale_dtype or default_scale(linear.weight),
            activations=activations, out_dtype=out_dtype,
        )  # fmt: skip
        return cls(weight.to(linear.weight.device), linear.bias)

    @classmethod
    @checked
    def from_state_dict(cls, state_dict: Mapping[str, torch.Tensor], prefix: str = "") -> QuantizedLinear:
        """Make a layer of what `state_dict()` of one gave.

        Parameters
        ----------
        state_dict : mapping
            With the layer's tensors, and perhaps others.
        prefix : str
            What the layer's keys begin with, with the dot.
        """
        config = read_config(state_dict[prefix + CONFIG]) if prefix + CONFIG in state_dict else {}
        missing = [prefix + name for name in needed(config) if prefix + name not in state_dict]
        if missing:
            raise ShapeMismatch("the state dict holds no quantised layer: it lacks " + ", ".join(missing))
        found = {name: state_dict.get(prefix + name) for name in TENSORS}
        return cls(stored_weight(prefix, config, found), found["bias"])

    @property
    def weight(self) -> QuantizedWeight:
        """The quantised weight."""
        return QuantizedWeight(
            find_dtype(self.weight_dtype), (self.in_features, self.out_features), self.group_size, self.packed,
            self.scale, self.zero, self.alpha, self.order, self.activations, scale_type=self.scale_type,
            out_dtype=self.out_dtype,
        )  # fmt: skip

    @checked
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the layer's output in x's dtype; x of another float dtype is converted to that of the weight."""
        if not x.is_floating_point():
            raise TypeMismatch(
                f"the layer takes floats, but its input is {x.dtype}", hint="x.to(torch.float16)"
            )
        if x.device != self.packed.device:
            raise TypeMismatch(
                f"the layer is on {self.packed.device}, but its input on {x.device}",
                hint=f"x.to({str(self.packed.device)!r})",
            )
        if x.ndim == 0 or x.shape[-1] != self.in_features:
            raise ShapeMismatch(
                f"the layer takes {self.in_features} features, but its input has shape {tuple(x.shape)}"
            )
        given = x.to(self.out_dtype or self.scale.dtype)
        if self.activations in (torch.int8, torch.float8_e4m3fn):
            return self._with_bytes(given).to(x.dtype)
        out = operator("quantized_matmul", given)(
            given, self.packed, self.scale, self.zero, self.weight_dtype, self.in_features,
            self.out_features, self.group_size, self.alpha, self.order, self.bias, scale_type=self._scale_name(),
        )  # fmt: skip
        return out.to(x.dtype)

    def _with_bytes(self, x: torch.Tensor) -> torch.Tensor:
        """Return the output with activations rounded to 8 bits, each token with a scale of its own."""
        rows = x if self.order is None else x.index_select(-1, self.order)
        values, factors = operator("quantize_tokens", rows)(rows, self.activations, False)
        out: torch.Tensor = operator("quantized_matmul_bytes", factors)(
            values, factors, self.packed, self.scale, self.zero, self.weight_dtype, self.in_features,
            self.out_features, self.group_size, self.alpha, self.bias, scale_type=self._scale_name(),
            out_dtype=self.out_dtype,
        )  # fmt: skip
        return out.reshape(*x.shape[:-1], self.out_features)

    def _scale_name(self) -> str:
        return "" if self.scale_type is None else self.scale_type.name

    def extra_repr(self) -> str:
        """Say what the layer is."""
        return (
            f"in_features={self.in_features}, out_features={self.out_features}, dtype={self.weight_dtype}, "
            f"group_size={self.group_size}, zero_point={self.zero is not None}, bias={self.bias is not None}"
        )

    def _apply(self, fn: Callable[[torch.Tensor], torch.Tensor], recurse: bool = True) -> QuantizedLinear:
        """Move, or convert between the 16-bit floats, for which codes are laid out anew.

        `float()` of a model leaves quantised layers as they are; those with scales of 8 bits stay so with all types.
        """
        weight, before = self.weight, {name: getattr(self, name) for name in ("scale", "zero", "bias")}
        super()._apply(fn, recurse)
        changed = {n: x for n, x in before.items() if x is not None and x.dtype != getattr(self, n).dtype}
        keeps = self.scale_type is not None or self.scale.dtype not in SCALE_DTYPES
        if not keeps and "scale" in changed and not (self.packed.is_meta or weight.packed.is_meta):
            try:
                made = weight.astype(self.scale.dtype).to(self.packed.device)
            except TilusError:
                self._keep(changed)
                raise
            self.packed, self.scale, self.zero, self.order = made.packed, made.scale, made.zero, made.order
            self.alpha, self.activations = made.alpha, made.activations
        elif keeps:
            self._keep(changed)
        return self

    def _keep(self, tensors: Mapping[str, torch.Tensor]) -> None:
        """Take back tensors as they were, where the layer is now."""
        for name, tensor in tensors.items():
            setattr(self, name, tensor.to(self.packed.device))

    @property
    def config(self) -> torch.Tensor:
        """What the state dict says of the layer's tensors: those who find its keys as attributes find this one too."""
        config = {
            "dtype": self.weight_dtype, "in_features": self.in_features, "out_features": self.out_features,
            "group_size": self.group_size, "alpha": self.alpha,
            "activations": name_of(self.activations), "scale_type": self._scale_name(),
            "out_dtype": name_of(self.out_dtype), "scale_dtype": name_of(self.scale.dtype),
            "tensors": [name for name in TENSORS if getattr(self, name) is not None],
            "order": order_name(find_dtype(self.weight_dtype), self.weight.operand),
        }  # fmt: skip
        return stored_config(config)

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        destination[prefix + CONFIG] = self.config

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
            lacking = [
                prefix + name for name in needed(config) if name != CONFIG and prefix + name not in state_dict
            ]
            if lacking:
                missing_keys += lacking
                return
            found = {name: state_dict.get(prefix + name) for name in TENSORS}
            try:
                weight = stored_weight(prefix, config, found)
            except TilusError as error:
                error_msgs.append(error.message)
                return
            self.weight_dtype, self.group_size = weight.dtype.name, weight.group_size
            self.alpha, self.activations = weight.alpha, weight.activations
            self.scale_type, self.out_dtype = weight.scale_type, weight.out_dtype
            for name, tensor in found.items():
                kept = None if tensor is None else torch.empty_like(tensor, device=self.scale.device)
                setattr(self, name, kept)
        super()._load_from_state_dict(
            state_dict, prefix, local_metadata, strict, missing_keys, unexpected_keys, error_msgs
        )


def needed(config: Mapping[str, Any]) -> list[str]:
    """Return the keys that the state dict of a layer has that says this of itself."""
    return [*config.get("tensors", ("packed", "scale")), CONFIG]


def stored_weight(
    prefix: str, config: Mapping[str, Any], found: Mapping[str, torch.Tensor | None]
) -> QuantizedWeight:
    """Return the weight of a layer's tensors; refuse tensors that are not what the layer says of them."""
    code_type, shape = find_dtype(config["dtype"]), (config["in_features"], config["out_features"])
    packed, scale = found["packed"], found["scale"]
    assert packed is not None and scale is not None
    wrong = misshapen(prefix, found, code_type, shape, config["group_size"])
    if wrong:
        raise ShapeMismatch(wrong)
    wrong = converted(prefix + "scale", scale, config)
    if wrong:
        raise TypeMismatch(wrong)
    weight = QuantizedWeight(
        code_type, shape, config["group_size"], packed, scale, found["zero"], config["alpha"], found["order"],
        type_named(config, "activations"), scale_type=scale_type_named(config),
        out_dtype=type_named(config, "out_dtype"),
    )  # fmt: skip
    wrong = reordered(prefix + "packed", code_type, weight.operand, config)
    if wrong:
        raise InvalidValue(wrong)
    return weight


def misshapen(
    prefix: str,
    found: Mapping[str, torch.Tensor | None],
    dtype: DType,
    shape: tuple[int, int],
    group_size: int,
    experts: tuple[int, ...] = (),
) -> str:
    """Return what is wrong with the shapes of a layer's tensors, nothing if they are what the layer says."""
    rows, columns = padded(*shape)
    expected = {
        "packed": packed_shape(*shape, dtype.bits), "scale": (-(-rows // group_size), columns),
        "zero": (-(-rows // group_size), columns), "order": shape[:1], "bias": shape[1:], "alpha": (),
    }  # fmt: skip
    for name, tensor in found.items():
        whole = (*experts, *expected[name])
        if tensor is None or (
            tuple(tensor.shape) == whole and (name != "packed" or tensor.dtype == torch.uint8)
        ):
            continue
        return (
            f"{prefix}{name} is {tensor.dtype} of shape {tuple(tensor.shape)}, expected "
            f"{'torch.uint8 of ' if name == 'packed' else ''}shape {whole} for groups of {group_size} in {dtype} of "
            f"{shape[0]} x {shape[1]}"
        )
    return ""


def default_scale(weight: torch.Tensor) -> torch.dtype:
    """Return the type of scales that suits the activations of a model with such weights."""
    return torch.bfloat16 if weight.dtype == torch.bfloat16 else torch.float16


def packed_shape(k: int, n: int, bits: int) -> tuple[int, int, int]:
    """Return the shape of a packed weight."""
    rows, columns = padded(k, n)
    return rows // UNIT_K, columns // UNIT_N, unit_bytes(bits)


def stored_config(config: Mapping[str, Any]) -> torch.Tensor:
    """Return what is to be said about a layer's tensors as a tensor."""
    return torch.tensor(list(json.dumps(config).encode()), dtype=torch.uint8)


def read_config(stored: torch.Tensor, keys: Sequence[str] = KEYS) -> dict[str, Any]:
    """Return what a layer's state dict says about its tensors."""
    try:
        config: dict[str, Any] = json.loads(bytes(stored.cpu().tolist()))
        lacking = [name for name in keys if name not in config]
    except (TypeError, ValueError):
        lacking = list(keys)
    if lacking:
        raise InvalidValue(
            f"a quantised layer's {CONFIG!r} does not say {', '.join(lacking)}",
            hint="the state dict of a quantised layer, or of a model that has some",
        )
    return config


def converted(name: str, scale: torch.Tensor | None, config: Mapping[str, Any]) -> str:
    """Return what is wrong with scales that were converted after they were saved, nothing if they were not.

    Codes are laid out for the type of scales, so that the two are converted at once or not at all.
    """
    stored = type_named(config, "scale_dtype")
    if scale is None or stored in (None, scale.dtype):
        return ""
    return f"{name} is {scale.dtype}, but was saved as {stored}: load it as it was saved, and convert the model by to()"


def reordered(name: str, dtype: DType, operand: DType, config: Mapping[str, Any]) -> str:
    """Return what is wrong with codes that do not lie in the order in which kernels read them, nothing otherwise."""
    if config["order"] == order_name(dtype, operand):
        return ""
    return f"{name} was laid out by a version of tilus with another order of codes: quantise or import the weight again"


def name_of(dtype: torch.dtype | None) -> str:
    """Return the name under which a state dict knows a type, nothing for None."""
    return "" if dtype is None else str(dtype).removeprefix("torch.")


def type_named(config: Mapping[str, Any], key: str) -> torch.dtype | None:
    """Return a type that a layer's config names."""
    name = config.get(key, "")
    return getattr(torch, name) if name else None


def scale_type_named(config: Mapping[str, Any]) -> DType | None:
    """Return the type of a layer's scales where they are of 8 bits."""
    name = config.get("scale_type", "")
    return find_dtype(name) if name else None


@checked
def quantize_linears(
    model: nn.Module,
    dtype: DType | str,
    group_size: int = 128,
    *,
    zero_point: bool = False,
    scale_dtype: torch.dtype | DType | str | None = None,
    activations: torch.dtype | None = None,
    out_dtype: torch.dtype | None = None,
    select: Callable[[str, nn.Linear], bool] | None = None,
    progress: Callable[[str], None] = lambda name: None,
) -> list[str]:
    """Replace linear layers of a model by quantised ones, in place.

    A layer that stands at several places of the model is quantised once. The output projection of
    `torch.nn.MultiheadAttention`, which reads the layer's weight itself, stays as it is. Hooks of a layer that is
    replaced are not kept.

    Parameters
    ----------
    model : Module
        Changed in place.
    dtype, group_size, zero_point, scale_dtype, activations, out_dtype
        As for `QuantizedLinear.from_linear`.
    select : callable
        From a layer's name and the layer to whether it is replaced. Unless given all are, but those that share their
        weight with a module of another kind, such as the embedding of a language model: quantising them saves nothing.
    progress : callable
        Called with the name of each layer after it was replaced.

    Returns
    -------
    list of str
        Names of the layers that were replaced.
    """
    if isinstance(model, nn.Linear):
        raise TypeMismatch(
            "the model is itself a linear layer, expected a module that holds linear layers",
            hint="tilus.torch.QuantizedLinear.from_linear(model, dtype)",
        )
    wanted = _own_weight(model) if select is None else select
    chosen = linears(model, wanted)
    # A model of which one layer does not fit stays as it was.
    for linear, names in chosen.items():
        with named_errors(names[0]):
            check_group(linear.in_features, group_size, activations)
    for linear, names in chosen.items():
        with named_errors(names[0]):
            made = QuantizedLinear.from_linear(
                linear,
                dtype,
                group_size,
                zero_point=zero_point,
                scale_dtype=scale_dtype,
                activations=activations,
                out_dtype=out_dtype,
            )
        for name in names:
            replace_module(model, name, made.train(linear.training))
            progress(name)
    return [name for names in chosen.values() for name in names]


@checked
def load_quantized(model: nn.Module, state_dict: Mapping[str, torch.Tensor]) -> list[str]:
    """Load the state dict of a model whose linear layers are quantised into one whose layers are not, in place.

    What of the model is on the meta device becomes the state dict's tensors themselves; the rest is copied into.

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
    chosen = linears(model, lambda name, linear: f"{name}.{CONFIG}" in state_dict)
    replaced: dict[str, QuantizedLinear] = {}
    for linear, names in chosen.items():
        made = QuantizedLinear.from_state_dict(state_dict, f"{names[0]}.")
        if (made.in_features, made.out_features) != (linear.in_features, linear.out_features):
            raise ShapeMismatch(
                f"{names[0]} is {linear.in_features} x {linear.out_features}, but the state dict's weight is "
                f"{made.in_features} x {made.out_features}"
            )
        if not linear.weight.is_meta:
            made = made.to(linear.weight.device)
        replaced |= dict.fromkeys(names, made.train(linear.training))
    # A model of which one layer does not fit stays as it was.
    for name, layer in replaced.items():
        replace_module(model, name, layer)
    load_sharing(model, state_dict)
    return list(replaced)


def load_sharing(model: nn.Module, state_dict: Mapping[str, torch.Tensor]) -> None:
    """Load a whole state dict; what modules share stays shared, and need be there under one of its names only."""
    names: dict[int, list[str]] = {}
    for key, tensor in model.state_dict(keep_vars=True).items():
        names.setdefault(id(tensor), []).append(key)
    shared = [keys for keys in names.values() if len(keys) > 1]
    whole = dict(state_dict)
    for keys in shared:
        known = next((key for key in keys if key in whole), None)
        if known is not None:
            whole = dict.fromkeys(keys, whole[known]) | whole
    on_meta = any(tensor.is_meta for tensor in (*model.parameters(), *model.buffers()))
    model.load_state_dict(whole, assign=on_meta)
    for first, *others in shared:
        for name in others:
            parent, _, leaf = name.rpartition(".")
            setattr(model.get_submodule(parent), leaf, attrgetter(first)(model))


@contextmanager
def named_errors(name: str) -> Iterator[None]:
    """Let errors say which layer they are about."""
    try:
        yield
    except TilusError as error:
        raise type(error)(f"{name}: {error.message}", error.location, hint=error.hint) from error


def linears(
    model: nn.Module, select: Callable[[str, nn.Linear], bool] = lambda name, linear: True
) -> dict[nn.Linear, list[str]]:
    """Return the linear layers that can be replaced and are selected, with all their names."""
    found: dict[nn.Linear, list[str]] = {}
    for name, module in model.named_modules(remove_duplicate=False):
        replaceable = isinstance(module, nn.Linear) and not isinstance(
            module, NonDynamicallyQuantizableLinear
        )
        if replaceable and select(name, module):
            found.setdefault(module, []).append(name)
    return found


def _own_weight(model: nn.Module) -> Callable[[str, nn.Linear], bool]:
    """Return whether no module of another kind has a linear layer's weight, as a function to select by."""
    others = {
        id(parameter)
        for module in model.modules()
        if not isinstance(module, nn.Linear)
        for parameter in module.parameters(recurse=False)
    }
    return lambda name, linear: id(linear._parameters.get("weight")) not in others


def replace_module(model: nn.Module, name: str, made: nn.Module) -> None:
    """Put a module in a model's place of that name."""
    parent, _, leaf = name.rpartition(".")
    setattr(model.get_submodule(parent), leaf, made)
