"""`torch.compile(model, backend="tilus")`: matrix products go to tilus, the rest to torch's default backend."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx

from tilus.ops.matmul import DTYPES

log = logging.getLogger("tilus.torch")


@dataclass(frozen=True)
class Replaced:
    """A node that the backend gave to tilus, or left with a reason.

    Attributes
    ----------
    node : str
        Its name in the graph.
    operation : str
        What it called.
    reason : str
        Empty if it was replaced.
    """

    node: str
    operation: str
    reason: str = ""


_latest: list[Replaced] = []


def replacements() -> list[Replaced]:
    """Return what the last compilation replaced and left."""
    return list(_latest)


def backend(
    module: fx.GraphModule,
    inputs: Sequence[Any],
    *,
    mode: str | None = None,
    options: dict[str, Any] | None = None,
) -> Callable[..., Any]:
    """Compile a graph: the entry point that `torch.compile` calls.

    Parameters
    ----------
    module : GraphModule
        Of torch operations.
    inputs : sequence
        Fake tensors and sizes.
    mode : str, optional
        Handed to the default backend: default, reduce-overhead, max-autotune, max-autotune-no-cudagraphs.
    options : dict, optional
        ``fallback``: the backend for the rest, "inductor" unless given.

    Returns
    -------
    callable
    """
    chosen = dict(options or {})
    fallback = chosen.pop("fallback", "inductor")
    if chosen:
        raise ValueError(f"the tilus backend has no option {sorted(chosen)[0]!r}; it takes 'fallback'")
    if mode not in (None, "default", "reduce-overhead", "max-autotune", "max-autotune-no-cudagraphs"):
        raise ValueError(f"the tilus backend has no mode {mode!r}")
    report = replace(module)
    _latest[:] = report
    done = [r for r in report if not r.reason]
    log.info(
        "tilus took %d of %d matrix products: %s",
        len(done), len(report), "; ".join(f"{r.node} ({r.operation}) {r.reason or 'replaced'}" for r in report),
    )  # fmt: skip
    return _compile_rest(module, inputs, fallback, mode)


def _compile_rest(
    module: fx.GraphModule, inputs: Sequence[Any], fallback: str, mode: str | None
) -> Callable[..., Any]:
    from torch._dynamo.backends.registry import lookup_backend

    if fallback == "eager":
        return module.forward
    compile_with = lookup_backend(fallback)
    if fallback == "inductor" and mode not in (None, "default"):
        from torch._inductor import list_mode_options

        return compile_with(module, inputs, config_patches=list_mode_options(mode))
    return compile_with(module, inputs)


_LINEAR = (torch.nn.functional.linear, torch._C._nn.linear)
_MATMUL = (torch.matmul, torch.mm, torch.Tensor.matmul, torch.Tensor.mm)


def replace(module: fx.GraphModule) -> list[Replaced]:
    """Replace the matrix products of a graph that tilus can do; return what became of each."""
    import operator

    report: list[Replaced] = []
    for node in list(module.graph.nodes):
        kind = _kind(node, operator.matmul)
        if kind is None:
            continue
        operation = str(getattr(node.target, "__name__", node.target))
        operands = list(node.args) + [
            node.kwargs[k] for k in ("weight", "other", "mat2", "bias") if k in node.kwargs
        ]
        reason = _reason(kind, operands)
        report.append(Replaced(node.name, operation, reason))
        if reason:
            continue
        with module.graph.inserting_before(node):
            if kind == "linear":
                turned = module.graph.call_method("t", (operands[1],))
                turned.meta["example_value"] = operands[1].meta["example_value"].t()
                made = module.graph.call_function(torch.ops.tilus.matmul.default, (operands[0], turned))
                if len(operands) > 2 and operands[2] is not None:
                    made.meta = dict(node.meta)
                    made = module.graph.call_function(torch.add, (made, operands[2]))
            else:
                made = module.graph.call_function(torch.ops.tilus.matmul.default, (operands[0], operands[1]))
            made.meta = dict(node.meta)
        node.replace_all_uses_with(made)
        module.graph.erase_node(node)
    module.graph.lint()
    module.recompile()
    return report


def _kind(node: fx.Node, matmul: Any) -> str | None:
    if node.op == "call_function":
        if node.target in _LINEAR:
            return "linear"
        if node.target in _MATMUL or node.target is matmul:
            return "matmul"
    if node.op == "call_method" and node.target in ("matmul", "mm", "__matmul__"):
        return "matmul"
    return None


def _reason(kind: str, operands: list[Any]) -> str:
    """Return why a product is left to torch, or nothing if tilus takes it."""
    values = []
    for operand in operands[:2]:
        value = operand.meta.get("example_value") if isinstance(operand, fx.Node) else None
        if not isinstance(value, torch.Tensor):
            return "left: an operand is not a tensor"
        values.append(value)
    a, b = values
    if a.dtype not in DTYPES or a.dtype != b.dtype:
        return f"left: {a.dtype} by {b.dtype}, and tilus takes float16 and bfloat16"
    if a.requires_grad or b.requires_grad:
        if torch.is_grad_enabled():
            return "left: gradients are wanted"
    if b.ndim != 2 or a.ndim < 2:
        return f"left: shapes {tuple(a.shape)} and {tuple(b.shape)}"
    return ""
