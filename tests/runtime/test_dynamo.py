"""Calls of kernels in functions that `torch.compile` compiles."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import tilus
from tests.runtime import kernels
from tilus import Space, autotune
from tilus.runtime.aot import build


def package(tmp_path: Path) -> Any:
    build(kernels.scale_add, ["sm_90a"]).write(tmp_path)
    return tilus.load_manifest(tmp_path / "scale_add.json")


@pytest.mark.parametrize(
    "make",
    [
        lambda folder: kernels.scale_add,
        lambda folder: autotune(Space(block=[32]), bucket=())(kernels.scale_add),
        package,
    ],
    ids=["kernel", "autotuned", "ahead of time"],
)
def test_a_kernel_is_called_between_two_graphs(make: Callable[[Path], Any], tmp_path: Path) -> None:
    kernel = make(tmp_path)
    graphs = []

    def keep(module: torch.fx.GraphModule, inputs: list[Any]) -> Callable[..., Any]:
        graphs.append(module)
        return module.forward

    def step(x: torch.Tensor) -> torch.Tensor:
        y = x + 1
        out = torch.empty_like(y)
        kernel(y, y, out)
        return out * 2

    torch._dynamo.reset()
    compiled = torch.compile(step, backend=keep)
    for _ in range(2):
        x = torch.arange(40.0)
        assert torch.equal(compiled(x), (x + 1) * 6)
    assert len(graphs) == 2


def test_one_graph_is_refused_in_words() -> None:
    def step(x: torch.Tensor) -> torch.Tensor:
        out = torch.empty_like(x)
        kernels.scale_add(x, x, out)
        return out

    torch._dynamo.reset()
    with pytest.raises(Exception, match=r"a kernel of tilus is called.*\n*.*custom_op"):
        torch.compile(step, backend="eager", fullgraph=True)(torch.zeros(40))
