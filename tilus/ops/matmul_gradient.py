"""The gradient of `matmul`: two products of the same kind, with what the activation takes computed again."""

from __future__ import annotations

from typing import Any

import torch

from tilus.ops.gradients import define_recorded, no_gradient
from tilus.ops.matmul import DTYPES, matmul

DIFFERENTIABLE = (*DTYPES, torch.float32)


def _setup(ctx: Any, inputs: tuple[Any, ...], output: torch.Tensor) -> None:
    a, b, bias, _, a_scale, b_scale, activation, alpha, beta, _ = inputs
    ctx.save_for_backward(a, b, bias)
    ctx.activation, ctx.alpha, ctx.beta = activation, alpha, beta
    ctx.scaled = a_scale is not None or b_scale is not None
    ctx.forms = [None if x is None else (x.shape, x.dtype) for x in inputs[:6]]


def _backward(ctx: Any, grad: torch.Tensor) -> tuple[Any, ...]:
    a, b, bias = ctx.saved_tensors
    # Arguments at the end that have their default are not counted.
    forms, needed = ctx.forms, (*ctx.needs_input_grad, *[False] * 6)
    given = [None] * 4
    if ctx.scaled or a.dtype not in DIFFERENTIABLE:
        name = "matmul with scales" if ctx.scaled else f"matmul of {a.dtype}"
        refused = [
            no_gradient(grad, form[0], form[1], name) if need else None for form, need in zip(forms, needed)
        ]
        return (*refused, *given)
    inner = grad
    if ctx.activation:
        inner = _through(ctx.activation, grad, _before_activation(a, b, bias, ctx.alpha))
    found: list[torch.Tensor | None] = [None] * 6
    rows = inner.to(a.dtype)
    if needed[0]:
        found[0] = matmul(rows, b.mT, alpha=ctx.alpha)
    if needed[1]:
        # Of a matrix that all batches share the gradient is a sum over them.
        left, right = (a, rows) if b.ndim > 2 else (a.reshape(-1, a.shape[-1]), rows.reshape(-1, b.shape[-1]))
        found[1] = matmul(left.mT, right, alpha=ctx.alpha)
    if needed[2]:
        found[2] = inner.reshape(-1, b.shape[-1]).sum(0, dtype=torch.float32).to(bias.dtype)
    if needed[3]:
        found[3] = grad * ctx.beta
    return (*found, *given)


def _before_activation(
    a: torch.Tensor, b: torch.Tensor, bias: torch.Tensor | None, alpha: float
) -> torch.Tensor:
    """Return what the activation was applied to, in float32 as there."""
    product = matmul(a, b, alpha=alpha, out_dtype=torch.float32)
    return product if bias is None else product + bias.float()


def _through(activation: str, grad: torch.Tensor, inner: torch.Tensor) -> torch.Tensor:
    """Return the gradient with respect to what an activation was applied to."""
    grad = grad.float()
    if activation == "relu":
        return torch.where(inner > 0, grad, 0.0)
    if activation == "gelu":
        return torch.ops.aten.gelu_backward(grad, inner)
    return torch.ops.aten.silu_backward(grad, inner)


def define_matmul_gradient() -> None:
    """Give `matmul` its gradient."""
    define_recorded("matmul", _setup, _backward)
