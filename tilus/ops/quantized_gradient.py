"""The gradient of `quantized_matmul` with respect to its activations and bias: weights stay as they are.

Adapters beside frozen quantised layers are trained so. The weight is dequantised for it, in the activations' type.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from tilus import dtypes
from tilus.dtypes import decode
from tilus.ops.gradients import define_recorded, no_gradient
from tilus.ops.library import LIBRARY
from tilus.ops.matmul import matmul
from tilus.ops.packing import unpack_codes
from tilus.ops.weights import operand_type

LIBRARY.define(
    "dequantize(Tensor packed, Tensor scale, Tensor? zero, str dtype, SymInt k, SymInt n, int group, float alpha, "
    "str scale_type, ScalarType out_dtype) -> Tensor",
    tags=(torch.Tag.pt2_compliant_tag,),
)


def _table(dtype: str, device: torch.device) -> torch.Tensor:
    """Return the values of all codes of a type."""
    type = dtypes.dtype(dtype)
    values = decode(np.arange(1 << type.bits, dtype=np.uint8), type)
    return torch.from_numpy(values.astype(np.float32)).to(device)


def _dequantize(
    packed: torch.Tensor, scale: torch.Tensor, zero: torch.Tensor | None, dtype: str, k: int, n: int, group: int,
    alpha: float, scale_type: str, out_dtype: torch.dtype,
) -> torch.Tensor:  # fmt: skip
    type = dtypes.dtype(dtype)
    codes = unpack_codes(packed, type, k, n, operand_type(type, out_dtype))
    values = _table(dtype, packed.device)[codes.int()].view(k // group, group, n)
    groups = k // group
    if zero is not None:
        values -= zero[:groups, None, :n].float()
    factors = (
        _table(scale_type, packed.device)[scale.view(torch.uint8).int()] if scale_type else scale.float()
    )
    values *= factors[:groups, None, :n] * alpha
    return values.view(k, n).to(out_dtype)


def _fake(
    packed: torch.Tensor, scale: torch.Tensor, zero: torch.Tensor | None, dtype: str, k: int, n: int, group: int,
    alpha: float, scale_type: str, out_dtype: torch.dtype,
) -> torch.Tensor:  # fmt: skip
    return packed.new_empty((k, n), dtype=out_dtype)


for _device in ("CPU", "CUDA"):
    LIBRARY.impl("dequantize", _dequantize, _device)
torch.library.register_fake("tilus::dequantize", _fake, lib=LIBRARY)


def _setup(ctx: Any, inputs: tuple[Any, ...], output: torch.Tensor) -> None:
    names = [argument.name for argument in torch.ops.tilus.quantized_matmul.default._schema.arguments]
    given = dict(zip(names, inputs, strict=True))
    ctx.save_for_backward(*(given[name] for name in ("packed", "scale", "zero", "order")))
    ctx.names = names
    ctx.forms = {n: (x.shape, x.dtype) for n, x in given.items() if isinstance(x, torch.Tensor)}
    ctx.weight = tuple(given[name] for name in ("dtype", "k", "n", "group", "alpha", "scale_type"))
    ctx.plain = not given["activation"] and not given["gated"]


def _backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
    packed, scale, zero, order = ctx.saved_tensors
    needed = {name for name, need in zip(ctx.names, ctx.needs_input_grad) if need}
    found: dict[str, torch.Tensor] = {}
    for name in needed - {"a", "bias"} if ctx.plain else needed:
        what = "with respect to its weight" if ctx.plain else "with an activation or a gate"
        shape, dtype = ctx.forms[name]
        found[name] = no_gradient(grad, shape, dtype, f"quantized_matmul {what}")
    if ctx.plain and "a" in needed:
        shape, dtype = ctx.forms["a"]
        weight = torch.ops.tilus.dequantize(packed, scale, zero, *ctx.weight, dtype)
        rows = matmul(grad, weight.t())
        if order is not None:
            # Row i of the weight goes with element order[i] of the activations.
            rows = torch.empty_like(rows).index_copy_(-1, order, rows)
        found["a"] = rows.reshape(shape)
    if ctx.plain and "bias" in needed:
        shape, dtype = ctx.forms["bias"]
        found["bias"] = grad.reshape(-1, grad.shape[-1]).sum(0, dtype=torch.float32).to(dtype)
    return tuple(found.get(name) for name in ctx.names)


def define_quantized_gradient() -> None:
    """Give `quantized_matmul` its gradient."""
    define_recorded("quantized_matmul", _setup, _backward)
