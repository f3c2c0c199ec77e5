"""`torch.compile(model, backend="tilus")`: matrix products go to tilus, the rest to torch's default backend."""

from __future__ import annotations

import logging
import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx

from tilus.errors import InvalidValue
from tilus.ops.matmul import DTYPES

log = logging.getLogger("tilus.torch")

MODES = ("default", "reduce-overhead", "max-autotune", "max-autotune-no-cudagraphs")
OPTIONS = ("fallback", "report")
FUNCTIONS: dict[Any, str] = {
    torch.nn.functional.linear: "linear",
    torch._C._nn.linear: "linear",
    torch.matmul: "matmul",
    torch.mm: "matmul",
    torch.bmm: "matmul",
    torch.addmm: "addmm",
    operator.matmul: "matmul",
    torch.Tensor.matmul: "matmul",
    torch.Tensor.mm: "matmul",
    torch.Tensor.bmm: "matmul",
}
METHODS = {"matmul": "matmul", "mm": "matmul", "bmm": "matmul", "__matmul__": "matmul", "addmm": "addmm"}
# Products that are left, and told of.
OTHERS = (torch.baddbmm, torch.addbmm, torch.einsum, torch.mv)
OTHER_METHODS = ("baddbmm", "addbmm", "mv")
# Parameters of each kind of product, in order, by the names that they may be given by.
PARAMETERS: dict[str, tuple[tuple[str, ...], ...]] = {
    "linear": (("input",), ("weight",), ("bias",)),
    "matmul": (("input",), ("other", "mat2")),
    "addmm": (("input",), ("mat1",), ("mat2",)),
}


@dataclass(frozen=True)
class Replaced:
    """A matrix product of a graph, which the backend gave to tilus, or left with a reason.

    Attributes
    ----------
    node : str
        Its name in the graph.
    operation : str
        What it called.
    reason : str
        Why it was left to torch; empty if it was replaced.
    """

    node: str
    operation: str
    reason: str = ""


def backend(
    module: fx.GraphModule,
    inputs: Sequence[Any],
    *,
    mode: str | None = None,
    options: dict[str, Any] | None = None,
) -> Callable[..., Any]:
    """Compile a graph: the entry point that `torch.compile` calls.

    Products of float16 and of bfloat16 matrices become `tilus.ops.matmul`, where no gradients are wanted. What was
    replaced, and what was left and why, goes to the logger ``tilus.torch`` and to the option ``report``.

    Parameters
    ----------
    module : GraphModule
        Of torch operations.
    inputs : sequence
        Fake tensors and sizes.
    mode : str, optional
        Handed to inductor: default, reduce-overhead, max-autotune, max-autotune-no-cudagraphs.
    options : dict, optional
        ``fallback``, the name of the backend for the rest of the graph, "inductor" unless given; ``report``, a
        function that is called for each graph with a list of `Replaced`.

    Returns
    -------
    callable
    """
    chosen = dict(options or {})
    unknown = sorted(set(chosen) - set(OPTIONS))
    if unknown:
        raise InvalidValue(
            f"the tilus backend has no option {unknown[0]!r}; it takes {' and '.join(OPTIONS)}"
        )
    if mode is not None and mode not in MODES:
        raise InvalidValue(f"the tilus backend has no mode {mode!r}; it takes {', '.join(MODES)}")
    fallback = chosen.get("fallback", "inductor")
    if fallback != "inductor" and mode not in (None, "default"):
        raise InvalidValue(f"mode {mode!r} is one of inductor, but the option fallback is {fallback!r}")
    found = replace(module)
    log.info(
        "tilus took %d of %d matrix products%s",
        sum(not r.reason for r in found),
        len(found),
        "".join(f"; {r.node} ({r.operation}): {r.reason or 'replaced'}" for r in found),
    )
    report = chosen.get("report")
    if report is not None:
        report(found)
    return _compile_rest(module, inputs, fallback, mode)


def _compile_rest(
    module: fx.GraphModule, inputs: Sequence[Any], fallback: str, mode: str | None
) -> Callable[..., Any]:
    from torch._dynamo.backends.registry import lookup_backend

    compile_with = lookup_backend(fallback)
    if mode not in (None, "default"):
        from torch._inductor import list_mode_options

        return compile_with(module, inputs, config_patches=list_mode_options(mode))
    return compile_with(module, inputs)


def replace(module: fx.GraphModule) -> list[Replaced]:
    """Replace, in place, the matrix products of a graph that tilus can do; return what became of each."""
    found: list[Replaced] = []
    for node in list(module.graph.nodes):
        kind = FUNCTIONS.get(node.target) if node.op == "call_function" else None
        if node.op == "call_method":
            kind = METHODS.get(node.target)
        if kind is None:
            if (node.op == "call_function" and node.target in OTHERS) or (
                node.op == "call_method" and node.target in OTHER_METHODS
            ):
                name = str(getattr(node.target, "__name__", node.target))
                found.append(Replaced(node.name, name, "tilus has no operator for it, but one for matmul"))
            continue
        operands, reason = _operands(kind, node)
        reason = reason or _reason(kind, node, operands)
        found.append(Replaced(node.name, str(getattr(node.target, "__name__", node.target)), reason))
        if not reason:
            _rewrite(module.graph, kind, node, operands)
    module.graph.lint()
    module.recompile()
    return found


def _operands(kind: str, node: fx.Node) -> tuple[list[Any], str]:
    """Return the operands by position, or why the call is not one that tilus knows."""
    operands = list(node.args)
    given = dict(node.kwargs)
    for names in PARAMETERS[kind][len(operands) :]:
        name = next((name for name in names if name in given), None)
        operands.append(None if name is None else given.pop(name))
    if given or len(operands) > len(PARAMETERS[kind]):
        return operands, f"the argument {next(iter(given), 'after the operands')} is given"
    return operands, ""


def _reason(kind: str, node: fx.Node, operands: list[Any]) -> str:
    """Return why a product is left to torch, or nothing if tilus takes it."""
    bias = None
    if kind == "linear":
        a, b, bias = operands
    elif kind == "addmm":
        bias, a, b = operands
    else:
        a, b = operands
    values = [_value(x) for x in (a, b)]
    if not all(isinstance(value, torch.Tensor) for value in values):
        return "an operand is not a tensor"
    left, right = values
    if left.dtype not in DTYPES or left.dtype != right.dtype:
        return f"{left.dtype} by {right.dtype}, and tilus takes float16 and bfloat16"
    result = _value(node)
    if isinstance(result, torch.Tensor) and result.dtype != left.dtype:
        return f"the result is {result.dtype}, as autocast has it"
    added = None if bias is None else _value(bias)
    if torch.is_grad_enabled() and any(x is not None and x.requires_grad for x in (left, right, added)):
        return "gradients are wanted; use torch.no_grad() or torch.inference_mode()"
    shapes = f"shapes {_shape(left)} and {_shape(right)}"
    if right.ndim < 2 or left.ndim < 1:
        return shapes
    if right.ndim > 2 and (left.ndim != right.ndim or tuple(left.shape[:-2]) != tuple(right.shape[:-2])):
        return shapes
    if added is not None:
        if added.ndim != 1 or added.dtype != left.dtype:
            return f"{added.dtype} of shape {_shape(added)} is added"
        if kind == "addmm" and added.shape[0] != right.shape[1]:
            return f"{shapes}, and {_shape(added)} is added"
    return ""


def _value(x: Any) -> Any:
    return x.meta.get("example_value") if isinstance(x, fx.Node) else None


def _shape(x: torch.Tensor) -> str:
    return "(" + ", ".join(map(str, x.shape)) + ")"


def _rewrite(graph: fx.Graph, kind: str, node: fx.Node, operands: list[Any]) -> None:
    with graph.inserting_before(node):
        bias = None
        if kind == "linear":
            a, weight, bias = operands
            b = graph.call_method("t", (weight,))
            b.meta["example_value"] = _value(weight).t()
        elif kind == "addmm":
            bias, a, b = operands
        else:
            a, b = operands
        made = graph.call_function(torch.ops.tilus.matmul.default, (a, b, bias))
    made.meta = dict(node.meta)
    node.replace_all_uses_with(made)
    graph.erase_node(node)
