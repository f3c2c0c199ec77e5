"""Bias, activation and the gated pair at the end of `quantized_matmul`, in one kernel or after a sum of parts."""

from __future__ import annotations

import sys
from dataclasses import replace

import pytest
import torch

from tilus.errors import ShapeMismatch, TypeMismatch
from tilus.ops import QuantizedWeight, from_codes, gated_pair, quantize, quantized_matmul
from tilus.ops.quantized_schedule import Choice, choose
from tilus.ops.weights import interleave

MODULE = sys.modules["tilus.ops.quantized_matmul"]
DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]
FUNCTIONS = {
    "": lambda x: x,
    "relu": torch.relu,
    "gelu": torch.nn.functional.gelu,
    "silu": torch.nn.functional.silu,
}


def weight_of(k: int, n: int, seed: int = 0, **options: object) -> QuantizedWeight:
    generator = torch.Generator().manual_seed(seed)
    values = torch.randn(k, n, generator=generator) / k**0.5
    return quantize(values, "uint4", 64, zero_point=True, **options)  # type: ignore[arg-type]


def expected(
    a: torch.Tensor, weight: QuantizedWeight, bias: torch.Tensor | None, activation: str
) -> torch.Tensor:
    exact = a.double() @ weight.dequantize()
    if bias is not None:
        exact = exact + bias.double()
    if not weight.gated:
        return FUNCTIONS[activation](exact)
    gate, up = exact.chunk(2, dim=1)
    return FUNCTIONS[activation](gate) * up


def check(found: torch.Tensor, exact: torch.Tensor) -> None:
    """Results are of unit size, and rounded to float16 from a float32 with weights of float16."""
    assert found.shape == exact.shape
    error = (found.double().cpu() - exact).abs()
    assert (error <= 2.0**-8 * exact.abs().clamp_min(0.25)).all()
    assert exact.abs().mean() > 0.2


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("gated", [False, True], ids=["plain", "gated"])
@pytest.mark.parametrize("activation", FUNCTIONS)
@pytest.mark.parametrize("m", [3, 12, 20])
def test_bias_and_activation(m: int, activation: str, gated: bool, device: str) -> None:
    torch.manual_seed(m)
    weight = weight_of(192, 40)
    if gated:
        weight = gated_pair(weight, weight_of(192, 40, 1))
    bias = torch.randn(weight.shape[1]).half()
    a = torch.randn(m, 192).half()
    moved = weight.to(device)
    found = quantized_matmul(a.to(device), moved, bias.to(device), activation)
    check(found, expected(a, weight, bias, activation))
    check(quantized_matmul(a.to(device), moved, None, activation), expected(a, weight, None, activation))


@pytest.mark.parametrize("gated", [False, True], ids=["plain", "gated"])
@pytest.mark.parametrize("activations", [None, torch.int8], ids=["16 bits", "8 bits"])
@pytest.mark.parametrize(("share", "schedule"), [("split", {"splits": 4}), ("stream", {"blocks": 5})])
def test_parts_of_k_are_summed_before_the_epilogue(
    monkeypatch: pytest.MonkeyPatch,
    share: str,
    schedule: dict[str, int],
    activations: torch.dtype | None,
    gated: bool,
) -> None:
    def chosen(*arguments: object) -> Choice:
        made = choose(*arguments)  # type: ignore[arg-type]
        return replace(made, schedule=replace(made.schedule, **{"splits": 1, "blocks": 0, **schedule}))

    monkeypatch.setattr(MODULE, "choose", chosen)
    calls = []
    original = MODULE.call_of
    monkeypatch.setattr(
        MODULE, "call_of", lambda *args, **options: calls.append(original(*args, **options)) or calls[-1]
    )
    weight = weight_of(2048, 40, activations=activations)
    if gated:
        weight = gated_pair(weight, weight_of(2048, 40, 1, activations=activations))
    torch.manual_seed(0)
    bias, a = torch.randn(weight.shape[1]).half(), torch.randn(5, 2048).half()
    found = quantized_matmul(a, weight, bias, "silu")
    assert [call.options[share] for call in calls] == [True]
    exact = expected(a, weight, bias, "silu")
    # Activations of 8 bits are off by half of 1 / 127 of the largest one.
    limit = 0.03 if activations else 2.0**-8
    assert (found.double() - exact).abs().max() <= limit * exact.abs().max()


def test_a_gated_pair_holds_both_weights() -> None:
    gate, up = weight_of(64, 24), weight_of(64, 24, 1)
    pair = gated_pair(gate, up)
    assert pair.gated
    assert pair.shape == (64, 48)
    assert torch.equal(pair.dequantize(), torch.cat([gate.dequantize(), up.dequantize()], dim=1))


def test_the_scales_of_a_pair_meet_in_one_power_of_two() -> None:
    gate, up = (quantize(torch.randn(64, 16) * size, "int4", 32) for size in (8.0, 0.01))
    pair = gated_pair(gate, up)
    assert gate.alpha != up.alpha
    assert torch.equal(pair.dequantize(), torch.cat([gate.dequantize(), up.dequantize()], dim=1))


@pytest.mark.parametrize("factors", [(0.37, 0.37), (0.1, 0.2), (0.0, 0.0), (-0.3, -0.3)])
def test_a_pair_keeps_a_factor_that_is_no_power_of_two(factors: tuple[float, float]) -> None:
    gate, up = (replace(weight_of(64, 16, seed), alpha=x) for seed, x in enumerate(factors))
    pair = gated_pair(gate, up)
    assert torch.equal(pair.dequantize(), torch.cat([gate.dequantize(), up.dequantize()], dim=1))


def test_columns_of_a_pair_take_turns_of_eight() -> None:
    gate, up = torch.arange(16.0), torch.arange(16.0) + 100
    order = interleave(gate, up)
    assert order.tolist() == [*range(8), *range(100, 108), *range(8, 16), *range(108, 116)]


REFUSED = {
    "activation": lambda: quantized_matmul(torch.randn(2, 64).half(), weight_of(64, 8), None, "tanh"),
    "bias": lambda: quantized_matmul(torch.randn(2, 64).half(), weight_of(64, 8), torch.randn(7).half()),
    "pair_columns": lambda: gated_pair(weight_of(64, 12), weight_of(64, 12)),
    "pair_types": lambda: gated_pair(weight_of(64, 8), quantize(torch.randn(64, 8), "int4", 64)),
    "pair_scales": lambda: gated_pair(
        *(
            from_codes(weight_of(64, 8).codes(), weight_of(64, 8).dtype, torch.full((1, 8), 1.1).half(), None, 64, alpha=x)
            for x in (1.0, 1e-9)
        )
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_refusals(name: str, golden) -> None:
    with pytest.raises((ShapeMismatch, TypeMismatch)) as error:
        REFUSED[name]()
    golden(str(error.value), f"{name}.txt")
