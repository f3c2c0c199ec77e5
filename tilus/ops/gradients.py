"""Gradients of the library's operators: those of `matmul`, and an error that says which operator has none.

An autograd kernel would slow each launch down, also where nothing needs a gradient. So an operator has none, and a
twin of it, named `..._recorded`, has one; functions call the twin where an argument wants a gradient.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.autograd import forward_ad

from tilus.errors import NoGradient
from tilus.ops.library import LIBRARY

RECORDED = "_recorded"

LIBRARY.define(
    "no_gradient(Tensor grad, SymInt[] size, ScalarType dtype, str op) -> Tensor",
    tags=(torch.Tag.pt2_compliant_tag,),
)


def operator(name: str, *tensors: torch.Tensor | None) -> Any:
    """Return an operator of the library, or its twin that is recorded if one of the tensors wants a gradient.

    Raises
    ------
    NoGradient
        Where a tensor has a tangent: torch would take the result's for zero.
    """
    if forward_ad._current_level >= 0:
        for tensor in tensors:
            if tensor is not None and forward_ad.unpack_dual(tensor).tangent is not None:
                raise NoGradient(
                    f"{name} has no derivative in forward mode",
                    hint="x.requires_grad_() and backward(), where it has a gradient",
                )
    if torch.is_grad_enabled():
        for tensor in tensors:
            if tensor is not None and tensor.requires_grad:
                return getattr(torch.ops.tilus, name + RECORDED)
    return getattr(torch.ops.tilus, name)


def define_recorded(name: str, setup: Callable[..., None], backward: Callable[..., Any]) -> None:
    """Define the twin of an operator with a backward pass.

    Parameters
    ----------
    name : str
        Of an operator that is defined already.
    setup, backward : callable
        As for `torch.library.register_autograd`.
    """
    plain = getattr(torch.ops.tilus, name)
    schema = str(plain.default._schema).removeprefix(f"tilus::{name}")
    twin = name + RECORDED
    LIBRARY.define(twin + schema, tags=(torch.Tag.pt2_compliant_tag,))

    def run(*args: Any, **kwargs: Any) -> Any:
        return plain(*args, **kwargs)

    for device in ("CPU", "CUDA"):
        LIBRARY.impl(twin, run, device)
    torch.library.register_fake(f"tilus::{twin}", run, lib=LIBRARY)
    torch.library.register_autograd(f"tilus::{twin}", backward, setup_context=setup, lib=LIBRARY)


def refuse_gradient(*names: str) -> None:
    """Define the twins of operators whose backward pass is an error."""
    for name in names:
        define_recorded(name, _keep_forms, _refusal(name))


def _keep_forms(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    ctx.forms = [(x.shape, x.dtype) if isinstance(x, torch.Tensor) else None for x in inputs]


def _refusal(name: str) -> Callable[..., Any]:
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[Any, ...]:
        grad = next(grad for grad in grads if grad is not None)
        return tuple(
            no_gradient(grad, form[0], form[1], name) if needed and form is not None else None
            for form, needed in zip(ctx.forms, ctx.needs_input_grad)
        )

    return backward


def no_gradient(grad: torch.Tensor, size: Sequence[int], dtype: torch.dtype, op: str) -> torch.Tensor:
    """Stand for a gradient that does not exist.

    An operator again, so that a graph that is compiled has the error where it is run, if it ever is.
    """
    refused: torch.Tensor = torch.ops.tilus.no_gradient(grad, size, dtype, op)
    return refused


def _no_gradient(grad: torch.Tensor, size: Sequence[int], dtype: torch.dtype, op: str) -> torch.Tensor:
    raise NoGradient(
        f"{op} has no gradient",
        hint="with torch.no_grad(): around the call, or x.detach() for each argument that requires a gradient",
    )


def _fake(grad: torch.Tensor, size: Sequence[int], dtype: torch.dtype, op: str) -> torch.Tensor:
    return grad.new_empty(size, dtype=dtype)


for _device in ("CPU", "CUDA"):
    LIBRARY.impl("no_gradient", _no_gradient, _device)
torch.library.register_fake("tilus::no_gradient", _fake, lib=LIBRARY)
