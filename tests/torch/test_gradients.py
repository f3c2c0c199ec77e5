"""Gradients: those of `matmul` against float64, and the error of every operator that has none."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.nn import functional

from tilus.dtypes import uint3
from tilus.errors import NoGradient
from tilus.ops import (
    QuantizedWeight,
    combine,
    from_codes,
    gather_rows,
    grouped_matmul,
    grouped_quantized_matmul,
    matmul,
    matmul_block_scaled,
    quantize,
    quantize_blocks,
    quantize_tokens,
    quantized_matmul,
    route,
    sort_by_expert,
    stack_experts,
)
from tilus.ops.gradients import operator
from tilus.torch import QuantizedLinear

# Products in float32 are in tfloat32, which has float16's fraction.
EPSILON = {torch.float16: 2**-11, torch.bfloat16: 2**-8, torch.float32: 2**-11}
SHAPES = {
    "rows": ((5, 32), (32, 16)),
    "vector": ((32,), (32, 16)),
    "batches by a matrix": ((2, 3, 32), (32, 16)),
    "batches": ((2, 3, 32), (2, 32, 16)),
}
ACTIVATIONS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "": lambda x: x, "relu": functional.relu, "gelu": functional.gelu, "silu": functional.silu,
}  # fmt: skip


@pytest.fixture(autouse=True)
def no_warnings() -> Any:
    """What torch warns of is an error here: it warns where an operator has no autograd kernel."""
    torch.manual_seed(0)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        yield


def leaf(*shape: int, dtype: torch.dtype) -> torch.Tensor:
    return (torch.randn(shape) / shape[0] ** 0.5).to(dtype).requires_grad_()


def check_gradients(
    found: torch.Tensor, exact: torch.Tensor, leaves: list[torch.Tensor], wide: list[torch.Tensor]
) -> None:
    """Compare all gradients with float64; each is a sum of at most 32 products, of which each operand is rounded."""
    grad = torch.randn_like(found)
    found.backward(grad)
    exact.backward(grad.double())
    for own, other in zip(leaves, wide):
        assert own.grad is not None
        assert own.grad.dtype == own.dtype
        assert other.grad is not None
        allowed = 8 * EPSILON[own.dtype] * other.grad.abs().max()
        assert (own.grad.double() - other.grad).abs().max() <= allowed
        assert other.grad.abs().max() > allowed


CASES = [(name, activation, torch.float16) for name in SHAPES for activation in ACTIVATIONS]
CASES += [
    ("batches by a matrix", activation, dtype)
    for activation in ("", "gelu")
    for dtype in (torch.bfloat16, torch.float32)
]


@pytest.mark.parametrize(("name", "activation", "dtype"), CASES, ids=str)
def test_gradients_of_matmul(name: str, activation: str, dtype: torch.dtype) -> None:
    first, second = SHAPES[name]
    leaves = [leaf(*first, dtype=dtype), leaf(*second, dtype=dtype), leaf(16, dtype=dtype)]
    leaves.append(leaf(*first[:-1], 16, dtype=dtype))
    wide = [x.detach().double().requires_grad_() for x in leaves]
    found = matmul(
        leaves[0], leaves[1], bias=leaves[2], residual=leaves[3], activation=activation, alpha=0.5, beta=2.0
    )
    a, b, bias, residual = wide
    check_gradients(found, ACTIVATIONS[activation](0.5 * (a @ b) + bias) + 2 * residual, leaves, wide)


def test_only_what_is_wanted_gets_a_gradient() -> None:
    a, b = leaf(5, 32, dtype=torch.float16), leaf(32, 16, dtype=torch.float16).detach()
    matmul(a, b).sum().backward()
    assert a.grad is not None
    assert b.grad is None
    assert torch.equal(a.grad[0], matmul(torch.ones(1, 16).half(), b.t())[0])


def test_a_transposed_weight_gets_its_gradient() -> None:
    a, weight = leaf(5, 32, dtype=torch.bfloat16), leaf(16, 32, dtype=torch.bfloat16)
    wide = [x.detach().double().requires_grad_() for x in (a, weight)]
    check_gradients(matmul(a, weight.t()), wide[0] @ wide[1].t(), [a, weight], wide)


def test_the_gradient_has_a_gradient() -> None:
    a, b = leaf(4, 16, dtype=torch.float16), leaf(16, 8, dtype=torch.float16)
    (first,) = torch.autograd.grad(matmul(a, b).float().square().sum(), a, create_graph=True)
    (found,) = torch.autograd.grad(first.float().sum(), b)
    wide = [x.detach().double().requires_grad_() for x in (a, b)]
    (first,) = torch.autograd.grad((wide[0] @ wide[1]).square().sum(), wide[0], create_graph=True)
    (exact,) = torch.autograd.grad(first.sum(), wide[1])
    assert (found.double() - exact).abs().max() <= 16 * 2**-11 * exact.abs().max()


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_a_compiled_product_has_the_same_gradients(backend: str) -> None:
    def run(call: Callable[..., torch.Tensor]) -> list[torch.Tensor | None]:
        torch.manual_seed(0)
        a, b = leaf(4, 32, dtype=torch.float16), leaf(32, 16, dtype=torch.float16)
        call(a, b).float().square().sum().backward()
        return [a.grad, b.grad]

    def product(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        return matmul(a, b, activation="gelu")

    compiled = run(torch.compile(product, backend=backend, fullgraph=True))
    for own, other in zip(compiled, run(product)):
        assert own is not None
        assert other is not None
        assert torch.equal(own, other)


def test_the_recorded_product_is_a_proper_op() -> None:
    a, b, bias = (leaf(*s, dtype=torch.float16) for s in ((3, 64), (64, 8), (8,)))
    torch.library.opcheck(
        torch.ops.tilus.matmul_recorded.default,
        (a, b, bias, None, None, None, "relu"),
        test_utils=(
            "test_schema",
            "test_faketensor",
            "test_autograd_registration",
            "test_aot_dispatch_dynamic",
        ),
    )


def test_without_gradients_the_plain_operators_run() -> None:
    a = torch.zeros(2, 2)
    wanting = torch.zeros(2, 2, requires_grad=True)
    assert operator("matmul", a, None, a) is torch.ops.tilus.matmul
    assert operator("matmul", a, None, wanting) is torch.ops.tilus.matmul_recorded
    with torch.no_grad():
        assert operator("matmul", a, wanting) is torch.ops.tilus.matmul
    with torch.inference_mode():
        assert operator("matmul", a, wanting) is torch.ops.tilus.matmul


def experts() -> Any:
    return stack_experts([quantize(torch.randn(64, 32), "uint4", 32) for _ in range(2)])


def routing() -> Any:
    return sort_by_expert(torch.tensor([[0, 1], [1, 0]], dtype=torch.int32), 2, 16)


def by_routing(call: Callable[[torch.Tensor, Any], torch.Tensor], width: int) -> torch.Tensor:
    places = routing()
    return call(leaf(places.rows.shape[0], width, dtype=torch.float16), places)


REFUSED: dict[str, Callable[[], torch.Tensor]] = {
    "combine": lambda: by_routing(lambda y, where: combine(y, torch.ones(2, 2), where), 32),
    "gather_rows": lambda: gather_rows(leaf(2, 32, dtype=torch.float16), routing(), 2),
    "grouped_matmul": lambda: by_routing(
        lambda a, where: grouped_matmul(a, torch.randn(2, 32, 16).half(), where), 32
    ),
    "grouped_quantized_matmul": lambda: by_routing(
        lambda a, where: grouped_quantized_matmul(a, experts(), where), 64
    ),
    "matmul with scales": lambda: matmul(
        leaf(4, 32, dtype=torch.float16),
        torch.ones(32, 8).half(),
        a_scale=torch.ones(4),
        b_scale=torch.ones(8),
    ),
    "matmul_block_scaled": lambda: matmul_block_scaled(
        torch.ones(16, 128).to(torch.float8_e4m3fn),
        torch.ones(16, 128).to(torch.float8_e4m3fn),
        leaf(16, 1, dtype=torch.float32),
        torch.ones(1, 1),
    ),
    "quantize_blocks": lambda: quantize_blocks(leaf(4, 128, dtype=torch.float32))[1],
    "quantize_tokens": lambda: quantize_tokens(leaf(4, 128, dtype=torch.float16)).scale,
    "quantized_matmul with an activation or a gate": lambda: quantized_matmul(
        leaf(4, 64, dtype=torch.float16), quantize(torch.randn(64, 32), "uint4", 32), activation="relu"
    ),
    "quantized_matmul_bytes": lambda: quantized_matmul(
        torch.zeros(4, 64, dtype=torch.float16),
        quantize(torch.randn(64, 32), "int4", 32, activations=torch.int8),
        leaf(32, dtype=torch.float16),
    ),
    "route": lambda: route(leaf(4, 8, dtype=torch.float32), 2)[0],
}


@pytest.mark.parametrize("name", REFUSED)
def test_an_operator_without_gradient_says_so_in_the_backward_pass(name: str) -> None:
    found = REFUSED[name]()
    assert found.requires_grad
    with pytest.raises(NoGradient, match=f"{name} has no gradient\n  write instead: with torch.no_grad"):
        found.float().sum().backward()


WEIGHTS: dict[str, Callable[[], QuantizedWeight]] = {
    "zero points": lambda: quantize(torch.randn(128, 48), "uint4", 32, zero_point=True),
    "one group": lambda: quantize(torch.randn(80, 17), "int5", -1, scale_dtype=torch.bfloat16),
    "a table": lambda: quantize(torch.randn(128, 48), "nf4", 64),
    "stored scales": lambda: quantize(
        torch.randn(64, 48), "float4_e2m1", 16, scale_dtype="float8_e4m3", out_dtype=torch.float16
    ),
    "a factor and an order": lambda: from_codes(
        torch.randint(0, 8, (64, 8)).numpy().astype("uint8"), uint3, torch.rand(2, 8).half(), None, 32, alpha=0.5,
        order=torch.randperm(64),
    ),
    "an order of 32 bits": lambda: from_codes(
        torch.randint(0, 8, (64, 8)).numpy().astype("uint8"), uint3, torch.rand(2, 8).half(), None, 32,
        order=torch.randperm(64).int(),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", WEIGHTS)
def test_gradients_of_a_product_with_a_frozen_quantised_weight(name: str) -> None:
    weight = WEIGHTS[name]()
    k, n = weight.shape
    leaves = [leaf(2, 3, k, dtype=weight.result), leaf(n, dtype=weight.result)]
    wide = [x.detach().double().requires_grad_() for x in leaves]
    found = quantized_matmul(leaves[0], weight, leaves[1])
    check_gradients(found, wide[0] @ weight.dequantize() + wide[1], leaves, wide)


FORWARD: dict[str, Callable[[torch.Tensor, QuantizedWeight], torch.Tensor]] = {
    "matmul": lambda x, weight: matmul(x, torch.ones(64, 8).half()),
    "quantized_matmul": quantized_matmul,
    "quantize_tokens": lambda x, weight: quantize_tokens(x).scale,
}


@pytest.mark.parametrize("name", FORWARD)
def test_derivatives_in_forward_mode_are_refused(name: str) -> None:
    """Torch would take them for zero."""
    x, weight = torch.randn(3, 64).half(), quantize(torch.randn(64, 8), "uint4", 32)
    with pytest.raises(NoGradient, match=f"{name} has no derivative in forward mode"):
        torch.func.jvp(lambda x: FORWARD[name](x, weight), (x,), (x,))
    with torch.autograd.forward_ad.dual_level():
        assert FORWARD[name](x, weight).isfinite().all()


@pytest.mark.parametrize("compiled", [False, True])
def test_an_adapter_beside_a_quantised_layer_is_trained(compiled: bool) -> None:
    layer = QuantizedLinear(quantize(torch.randn(64, 32), "uint4", 32, scale_dtype=torch.bfloat16))
    down, up = leaf(64, 4, dtype=torch.bfloat16), torch.zeros(4, 64, dtype=torch.bfloat16, requires_grad=True)

    def adapted(x: torch.Tensor) -> torch.Tensor:
        return layer(x + x @ down @ up)

    call = torch.compile(adapted, backend="aot_eager", fullgraph=True) if compiled else adapted
    x = torch.randn(5, 64).bfloat16()
    call(x).float().square().sum().backward()
    wide = [p.detach().double().requires_grad_() for p in (down, up)]
    inner = x.double() + x.double() @ wide[0] @ wide[1]
    (inner @ layer.weight.dequantize()).square().sum().backward()
    for own, other in zip((down, up), wide):
        assert own.grad is not None
        assert other.grad is not None
        assert (own.grad.double() - other.grad).abs().max() <= 16 * 2**-8 * other.grad.abs().max()
    assert up.grad is not None
    assert up.grad.abs().max() > 0


def test_a_quantised_layer_of_8_bit_activations_says_that_it_has_no_gradient() -> None:
    layer = QuantizedLinear(quantize(torch.randn(64, 32), "int4", 32, activations=torch.int8))
    x = leaf(3, 64, dtype=torch.float16)
    found = layer(x)
    assert torch.equal(found.detach(), layer(x.detach()))
    with pytest.raises(NoGradient, match="has no gradient"):
        found.sum().backward()


def test_a_compiled_function_says_so_only_in_the_backward_pass() -> None:
    weight = quantize(torch.randn(64, 32), "uint4", 32)

    def product(x: torch.Tensor) -> torch.Tensor:
        return quantized_matmul(x, weight, activation="silu")

    x = leaf(3, 64, dtype=torch.float16)
    found = torch.compile(product, backend="aot_eager", fullgraph=True)(x)
    assert torch.equal(found.detach(), product(x.detach()))
    with pytest.raises(NoGradient, match="quantized_matmul with an activation or a gate has no gradient"):
        found.sum().backward()
