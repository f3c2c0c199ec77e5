"""`torch.compile(..., backend="tilus")`: what it replaces, what it leaves and why, and what it refuses."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from importlib.metadata import entry_points
from typing import Any

import pytest
import torch
from torch import nn
from torch._dynamo.testing import CompileCounterWithBackend

from tests.ops.support import check_product
from tilus.torch import Replaced, backend


@pytest.fixture(autouse=True)
def fresh_dynamo() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def half(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape))).half()


def run(function: Callable[..., Any], *inputs: torch.Tensor, **options: Any) -> tuple[Any, list[Replaced]]:
    """Compile and call without gradients; return the result and what became of each matrix product."""
    found: list[Replaced] = []
    options = {"fallback": "eager", "report": found.extend, **options}
    with torch.no_grad():
        result = torch.compile(function, backend=backend, options=options, fullgraph=True)(*inputs)
    return result, found


PRODUCTS: dict[str, tuple[Callable[..., Any], tuple[torch.Tensor, ...]]] = {
    "linear": (nn.functional.linear, (half(5, 64), half(24, 64))),
    "linear with bias": (nn.functional.linear, (half(5, 64), half(24, 64), half(24))),
    "linear of batches": (nn.functional.linear, (half(2, 5, 64), half(24, 64), half(24))),
    "linear of a vector": (nn.functional.linear, (half(64), half(24, 64))),
    "linear by name": (
        lambda x, w, b: nn.functional.linear(x, weight=w, bias=b),
        (half(5, 64), half(24, 64), half(24)),
    ),
    "matmul": (torch.matmul, (half(5, 64), half(64, 24))),
    "mm": (torch.mm, (half(5, 64), half(64, 24))),
    "bmm": (torch.bmm, (half(3, 5, 64), half(3, 64, 24))),
    "operator": (lambda a, b: a @ b, (half(5, 64), half(64, 24))),
    "method": (lambda a, b: a.matmul(b), (half(2, 5, 64), half(64, 24))),
    "bfloat16": (lambda a, b: a @ b, (half(5, 64).bfloat16(), half(64, 24).bfloat16())),
    "addmm": (torch.addmm, (half(24), half(5, 64), half(64, 24))),
    "several": (lambda a, b: (a @ b).relu() @ b.t(), (half(5, 64), half(64, 24))),
}


@pytest.mark.parametrize("name", PRODUCTS)
def test_replaces(name: str) -> None:
    function, inputs = PRODUCTS[name]
    found, report = run(function, *inputs)
    assert report
    assert not [r for r in report if r.reason]
    by_torch = function(*inputs)
    assert (found.shape, found.dtype) == (by_torch.shape, by_torch.dtype)
    if name != "several":
        check_product(found, function(*(x.double() for x in inputs)), by_torch)
    else:
        assert torch.allclose(found, by_torch, rtol=1e-2, atol=1e-1)


LEFT: dict[str, tuple[Callable[..., Any], tuple[torch.Tensor, ...], str]] = {
    "float32": (torch.matmul, (torch.randn(5, 8), torch.randn(8, 3)), "takes float16 and bfloat16"),
    "vector on the right": (torch.matmul, (half(5, 8), half(8)), "shapes (5, 8) and (8)"),
    "broadcast batches": (torch.matmul, (half(2, 5, 8), half(1, 8, 3)), "shapes (2, 5, 8) and (1, 8, 3)"),
    "result given": (
        lambda a, b, c: torch.mm(a, b, out=c),
        (half(5, 8), half(8, 3), half(5, 3)),
        "the argument out",
    ),
    "matrix added": (torch.addmm, (half(5, 3), half(5, 8), half(8, 3)), "of shape (5, 3) is added"),
    "factor": (
        lambda c, a, b: torch.addmm(c, a, b, alpha=2),
        (half(3), half(5, 8), half(8, 3)),
        "the argument alpha",
    ),
    "batches added": (torch.baddbmm, (half(2, 5, 3), half(2, 5, 8), half(2, 8, 3)), "no operator for it"),
    "batches added by the method": (
        lambda c, a, b: c.baddbmm(a, b),
        (half(2, 5, 3), half(2, 5, 8), half(2, 8, 3)),
        "no operator for it",
    ),
    "by indices": (
        lambda a, b: torch.einsum("ik,kj->ij", a, b),
        (half(5, 8), half(8, 3)),
        "no operator for it",
    ),
    "vector": (torch.mv, (half(5, 8), half(8)), "no operator for it"),
    "bias is broadcast": (torch.addmm, (half(1), half(5, 8), half(8, 3)), "(1) is added"),
}


@pytest.mark.parametrize("name", LEFT)
def test_leaves_with_a_reason(name: str) -> None:
    function, inputs, reason = LEFT[name]
    found, report = run(function, *inputs)
    assert len(report) == 1
    assert reason in report[0].reason
    assert torch.equal(found, function(*inputs))


def test_leaves_what_autocast_converts() -> None:
    def function(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            return a @ b

    a, b = half(5, 8), half(8, 3)
    found, report = run(function, a, b)
    assert found.dtype == function(a, b).dtype == torch.bfloat16
    assert [r.reason for r in report] == ["the result is torch.bfloat16, as autocast has it"]


def test_leaves_training_to_torch() -> None:
    layer = nn.Linear(64, 24).half()
    report: list[Replaced] = []
    compiled = torch.compile(
        layer, backend=backend, options={"fallback": "aot_eager", "report": report.extend}
    )
    compiled(half(5, 64)).sum().backward()
    assert "gradients are wanted" in report[0].reason
    assert layer.weight.grad is not None
    expected = torch.ones(5, 24).half().t() @ half(5, 64)
    assert torch.allclose(layer.weight.grad, expected, atol=1e-2)


def test_a_model() -> None:
    made = nn.Sequential(nn.Linear(64, 96), nn.GELU(), nn.Linear(96, 24)).half()
    found, report = run(made, half(5, 64))
    assert [(r.operation, r.reason) for r in report] == [("linear", "")] * 2
    exact = made.double()(half(5, 64).double())
    check_product(found, exact, made.half()(half(5, 64)))


def test_by_name_through_the_entry_point() -> None:
    (point,) = entry_points(group="torch_dynamo_backends", name="tilus") or [None]
    if point is None:
        pytest.skip("tilus is on the path, but not installed, so there are no entry points")
    assert "tilus" in torch._dynamo.list_backends()
    report: list[Replaced] = []
    compiled = torch.compile(
        lambda a, b: a @ b, backend="tilus", options={"fallback": "eager", "report": report.extend}
    )
    with torch.no_grad():
        found = compiled(half(5, 64), half(64, 24))
    assert not report[0].reason
    assert torch.allclose(found, half(5, 64) @ half(64, 24), atol=1e-2)


@pytest.mark.slow
def test_the_rest_goes_to_inductor(capfd: pytest.CaptureFixture[str]) -> None:
    from tests.torch.test_modules import has_cpp_compiler

    if not has_cpp_compiler():
        pytest.skip("inductor needs a C++ compiler for CPU tensors")
    a, b = half(5, 64), half(64, 24)
    with torch.no_grad():
        found = torch.compile(lambda a, b: (a @ b).sin() + 1, backend=backend)(a, b)
    assert torch.allclose(found, (a @ b).sin() + 1, atol=2e-2)


def test_what_was_replaced_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "tilus.torch")
    run(lambda a, b, c: (a @ b) @ c, half(5, 64), half(64, 24), half(24))
    assert "tilus took 1 of 2 matrix products" in caplog.text
    assert "shapes (5, 24) and (24)" in caplog.text


def test_unknown_options_and_modes_are_refused() -> None:
    module = torch.fx.symbolic_trace(lambda x: x)
    with pytest.raises(ValueError, match="no option 'speed'; it takes fallback and report"):
        backend(module, [], options={"speed": 11})
    with pytest.raises(ValueError, match="no mode 'fast'; it takes default"):
        backend(module, [], mode="fast")
    with pytest.raises(
        ValueError, match="mode 'max-autotune' is one of inductor, but the option fallback is 'eager'"
    ):
        backend(module, [], mode="max-autotune", options={"fallback": "eager"})


def test_errors_of_the_backend_reach_the_caller() -> None:
    with pytest.raises(Exception, match="no option 'speed'"):
        torch.compile(lambda x: x + 1, backend=backend, options={"speed": 11})(torch.zeros(1))


def test_dynamic_batches_compile_once() -> None:
    counter = CompileCounterWithBackend("eager")

    def counted(module: torch.fx.GraphModule, inputs: list[Any]) -> Callable[..., Any]:
        counter.frame_count += 1
        return backend(module, inputs, options={"fallback": "eager"})

    layer = nn.Linear(64, 24).half()
    compiled = torch.compile(layer, backend=counted, fullgraph=True)
    with torch.no_grad():
        for batch in (5, 3, 17, 64, 2):
            x = half(batch, 64)
            torch._dynamo.mark_dynamic(x, 0)
            found = compiled(x)
            check_product(found, layer.double()(x.double()), layer.half()(x))
    assert counter.frame_count == 1


def test_sizes_become_dynamic_by_themselves() -> None:
    calls: list[int] = []

    def counted(module: torch.fx.GraphModule, inputs: list[Any]) -> Callable[..., Any]:
        calls.append(1)
        return backend(module, inputs, options={"fallback": "eager"})

    compiled = torch.compile(lambda a, b: a @ b, backend=counted)
    with torch.no_grad():
        for batch in (5, 3, 17, 64, 2, 33):
            compiled(half(batch, 64), half(64, 24))
    assert len(calls) <= 2
