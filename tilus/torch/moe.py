"""A mixture of experts with quantised weights, which never waits for the device."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from tilus.dtypes import DType
from tilus.dtypes import dtype as find_dtype
from tilus.errors import InvalidValue, ShapeMismatch, TypeMismatch
from tilus.ops.checks import checked, checked_values
from tilus.ops.grouped import QuantizedExperts, grouped_quantized_matmul, stack_experts
from tilus.ops.prepack import order_name
from tilus.ops.quantized_matmul import EPILOGUES
from tilus.ops.routing import SCORINGS, combine, gather_rows, route, sort_by_expert
from tilus.ops.weights import PAIR, QuantizedWeight, interleave, operand_type, quantize
from tilus.torch.modules import (
    CONFIG,
    converted,
    default_scale,
    misshapen,
    name_of,
    read_config,
    reordered,
    scale_type_named,
    stored_config,
    type_named,
)

BLOCKS = (8, 16, 32, 64)
PARTS = ("packed", "scale", "zero", "alpha")


def rows_of_block(rows: int, experts: int) -> int:
    """Return the rows of a block that suit how many rows an expert has on average."""
    average = -(-rows // experts)
    return next((block for block in BLOCKS if average <= block), BLOCKS[-1])


class QuantizedMoE(nn.Module):
    """Experts of a gated feed-forward layer: ``down(activation(gate(x)) * up(x))``, summed over a token's experts.

    All sizes depend on shapes alone, so that the layer can be captured in a CUDA graph and compiled. Its state dict
    says of which types the experts are; loading takes them over.

    Parameters
    ----------
    router : Tensor, shape (hidden, experts)
        Its product with the tokens gives their logits.
    gate_up : QuantizedExperts, hidden x 2 * inner
        Gated pairs (`tilus.ops.gated_pair`).
    down : QuantizedExperts, inner x hidden
    top_k : int
        Experts of a token.
    scoring : str
        "softmax" or "sigmoid".
    renormalise : bool
        Whether a token's weights sum up to 1.
    activation : str
        relu, gelu or silu.
    """

    router: torch.Tensor

    @checked
    def __init__(
        self, router: torch.Tensor, gate_up: QuantizedExperts, down: QuantizedExperts, top_k: int, *,
        scoring: str = "softmax", renormalise: bool = True, activation: str = "silu",
    ) -> None:  # fmt: skip
        super().__init__()
        experts, hidden, wide = gate_up.shape
        expected = (experts, wide // 2, hidden)
        if not gate_up.gated or down.shape != expected or tuple(router.shape) != (hidden, experts):
            raise ShapeMismatch(
                f"router {tuple(router.shape)}, gate and up {gate_up.shape}, down {down.shape} do not make a layer",
                hint=f"router {(hidden, experts)}, gated pairs {gate_up.shape}, down {expected}",
            )
        if not 1 <= top_k <= experts:
            raise InvalidValue(f"top_k is {top_k}, expected 1 to {experts}, the number of experts")
        for what, name, names in (("scoring", scoring, SCORINGS), ("activation", activation, EPILOGUES)):
            if name not in names:
                raise InvalidValue(f"no {what} named {name!r}", hint="one of " + ", ".join(map(repr, names)))
        self.top_k, self.scoring, self.renormalise, self.activation = top_k, scoring, renormalise, activation
        self.register_buffer("router", router.detach())
        self._forms = {
            name: (e.dtype, e.shape, e.group_size, e.gated, e.scale_type, e.out_dtype)
            for name, e in (("gate_up", gate_up), ("down", down))
        }
        for name, e in (("gate_up", gate_up), ("down", down)):
            for part in PARTS:
                self.register_buffer(f"{name}_{part}", getattr(e, part))

    @classmethod
    @checked_values
    def from_weights(
        cls, router: torch.Tensor, gates: Sequence[torch.Tensor], ups: Sequence[torch.Tensor],
        downs: Sequence[torch.Tensor], top_k: int, dtype: DType | str, group_size: int = 128, *,
        zero_point: bool = False, scale_dtype: torch.dtype | DType | str | None = None,
        out_dtype: torch.dtype | None = None, scoring: str = "softmax", renormalise: bool = True,
        activation: str = "silu",
    ) -> QuantizedMoE:  # fmt: skip
        """Quantise the matrices of experts, each as in ``x @ matrix``.

        See `tilus.ops.quantize` for the arguments. Unless given, the type of scales is as for a `QuantizedLinear`.
        """
        if not len(gates) == len(ups) == len(downs) == router.shape[-1]:
            raise ShapeMismatch(
                f"{len(gates)} gates, {len(ups)} ups and {len(downs)} downs with a router of shape "
                f"{tuple(router.shape)}, expected one of each for each of the router's columns"
            )

        def paired(gate: torch.Tensor, up: torch.Tensor) -> QuantizedWeight:
            if gate.shape != up.shape or gate.shape[-1] % PAIR:
                raise ShapeMismatch(
                    f"a gate of shape {tuple(gate.shape)} does not go with what it multiplies of {tuple(up.shape)}",
                    hint=f"equal shapes, and a multiple of {PAIR} columns",
                )
            # Quantised at once, both have scales of one factor.
            return replace(made(interleave(gate, up)), gated=True)

        def made(matrix: torch.Tensor) -> QuantizedWeight:
            weight = quantize(
                matrix, dtype, group_size, zero_point=zero_point,
                scale_dtype=scale_dtype or default_scale(downs[0]), out_dtype=out_dtype,
            )  # fmt: skip
            return weight.to(matrix.device)

        gate_up = stack_experts([paired(g, u) for g, u in zip(gates, ups, strict=True)])
        down = stack_experts([made(matrix) for matrix in downs])
        return cls(
            router.to(down.result), gate_up, down, top_k, scoring=scoring, renormalise=renormalise,
            activation=activation,
        )  # fmt: skip

    def experts(self, name: str) -> QuantizedExperts:
        """Return "gate_up" or "down"."""
        dtype, shape, group_size, gated, scale_type, out_dtype = self._forms[name]
        packed, scale, zero, alpha = (getattr(self, f"{name}_{part}") for part in PARTS)
        return QuantizedExperts(
            dtype, shape, group_size, packed, scale, zero, alpha, gated, scale_type, out_dtype
        )

    @checked
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the layer's output, of x's shape (..., hidden) and dtype."""
        gate_up, down = self.experts("gate_up"), self.experts("down")
        if not x.is_floating_point() or x.ndim == 0 or x.shape[-1] != gate_up.shape[1]:
            raise ShapeMismatch(
                f"the layer takes floats of shape (..., {gate_up.shape[1]}), not {x.dtype} of shape {tuple(x.shape)}"
            )
        if x.device != self.router.device:
            raise TypeMismatch(
                f"the layer is on {self.router.device}, but its input on {x.device}",
                hint=f"x.to({str(self.router.device)!r})",
            )
        tokens = x.reshape(-1, x.shape[-1]).to(gate_up.result)
        weights, ids = route(
            tokens @ self.router, self.top_k, scoring=self.scoring, renormalise=self.renormalise
        )
        experts = gate_up.shape[0]
        routing = sort_by_expert(ids, experts, rows_of_block(ids.numel(), experts))
        rows = gather_rows(tokens, routing, self.top_k)
        inner = grouped_quantized_matmul(rows, gate_up, routing, activation=self.activation)
        found = grouped_quantized_matmul(inner, down, routing)
        return combine(found, weights, routing).to(x.dtype).reshape(x.shape)

    def extra_repr(self) -> str:
        """Say what the layer is."""
        dtype, (experts, hidden, wide), group, *_ = self._forms["gate_up"]
        return (
            f"hidden={hidden}, inner={wide // 2}, experts={experts}, top_k={self.top_k}, dtype={dtype.name}, "
            f"group_size={group}"
        )

    def _apply(self, fn: Callable[[torch.Tensor], torch.Tensor], recurse: bool = True) -> QuantizedMoE:
        """Move; dtypes stay, as scales say for which activations the codes are laid out."""
        before = dict(self.named_buffers())
        super()._apply(fn, recurse)
        for name, tensor in before.items():
            moved = getattr(self, name)
            if moved.dtype != tensor.dtype:
                setattr(self, name, tensor.to(moved.device))
        return self

    @property
    def config(self) -> torch.Tensor:
        """What the state dict says of the layer's tensors: those who find its keys as attributes find this one too."""
        config = {
            name: {
                "dtype": dtype.name, "shape": list(shape), "group_size": group_size,
                "scale_type": "" if scale_type is None else scale_type.name, "out_dtype": name_of(out_dtype),
                "scale_dtype": name_of(getattr(self, f"{name}_scale").dtype),
                "tensors": [part for part in PARTS if getattr(self, f"{name}_{part}") is not None],
                "order": order_name(dtype, operand_type(dtype, self.experts(name).result)),
            }
            for name, (dtype, shape, group_size, _, scale_type, out_dtype) in self._forms.items()
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
            config = read_config(stored, tuple(self._forms))
            for name, (_, shape, _, gated, _, _) in self._forms.items():
                said = config[name]
                if tuple(said["shape"]) != shape:
                    error_msgs.append(
                        f"{prefix}{name} is {shape}, but the state dict's experts are {tuple(said['shape'])}"
                    )
                    return
                lacking = [
                    key for part in said["tensors"] if (key := f"{prefix}{name}_{part}") not in state_dict
                ]
                if lacking:
                    missing_keys += lacking
                    return
                stored_parts = {part: state_dict.get(f"{prefix}{name}_{part}") for part in PARTS}
                wrong = misshapen(
                    f"{prefix}{name}_", stored_parts, find_dtype(said["dtype"]), (shape[1], shape[2]),
                    said["group_size"], shape[:1],
                ) or converted(f"{prefix}{name}_scale", stored_parts["scale"], said)  # fmt: skip
                dtype, result = find_dtype(said["dtype"]), type_named(said, "out_dtype")
                operand = operand_type(dtype, result or type_named(said, "scale_dtype") or self.router.dtype)
                wrong = wrong or reordered(f"{prefix}{name}_packed", dtype, operand, said)
                if wrong:
                    error_msgs.append(wrong)
                    return
                self._forms[name] = (
                    find_dtype(said["dtype"]), shape, said["group_size"], gated, scale_type_named(said),
                    type_named(said, "out_dtype"),
                )  # fmt: skip
                for part, found in stored_parts.items():
                    kept = None if found is None else torch.empty_like(found, device=self.router.device)
                    setattr(self, f"{name}_{part}", kept)
        super()._load_from_state_dict(
            state_dict, prefix, local_metadata, strict, missing_keys, unexpected_keys, error_msgs
        )
