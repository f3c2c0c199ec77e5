"""`quantized_matmul` of every weight type and shape against float64 products of the dequantised weight."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tests.ops.support import FLOATS, WEIGHT_TYPES, check_product, finite_codes, in_activations_type
from tilus.dtypes import DType, decode, float8_e5m2
from tilus.errors import ShapeMismatch, TypeMismatch
from tilus.ops import QuantizedWeight, from_codes, quantize, quantized_matmul

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]


def random_weight(
    dtype: str,
    k: int,
    n: int,
    group: int,
    *,
    zero_point: bool = False,
    activations: torch.dtype = torch.float16,
) -> QuantizedWeight:
    torch.manual_seed(0)
    return quantize(torch.randn(k, n), dtype, group, zero_point=zero_point, scale_dtype=activations)


def check(weight: QuantizedWeight, a: torch.Tensor, device: str = "cpu") -> None:
    """Multiply and compare with float64 of the dequantised weight."""
    found = quantized_matmul(a.to(device), weight.to(device))
    assert (found.dtype, found.device.type) == (a.dtype, device)
    flat = a.reshape(-1, a.shape[-1])
    exact = flat.double() @ weight.dequantize()
    by_torch = flat @ in_activations_type(weight)
    check_product(found.reshape(exact.shape), exact, by_torch)
    assert found.shape == (*a.shape[:-1], weight.shape[1])


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("activations", FLOATS, ids=str)
@pytest.mark.parametrize(
    ("dtype", "zero_point"),
    [(t, False) for t in WEIGHT_TYPES] + [(t, True) for t in WEIGHT_TYPES if t.kind == "uint"],
    ids=str,
)
def test_every_code_of_every_type(
    dtype: DType, zero_point: bool, activations: torch.dtype, device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The rows of the identity pick single weights, so the result is exact; three random rows are sums of all."""
    if activations == torch.float16 or dtype.is_integer:
        # On sm_90a so many rows are for wgmma, whose own tests have these types.
        monkeypatch.setenv("TILUS_SIMULATOR_TARGET", "sm_80")
    rng = np.random.default_rng(0)
    k, n, group = 128, 40, 32
    codes = rng.choice(finite_codes(dtype, activations), (k, n))
    scale = torch.from_numpy(rng.uniform(0.25, 1.0, (k // group, n))).to(activations)
    zero = None
    if zero_point:
        zero = torch.from_numpy(rng.integers(0, 1 << dtype.bits, (k // group, n))).to(activations)
    weight = from_codes(codes, dtype, scale, zero, group)
    random_rows = torch.from_numpy(rng.standard_normal((3, k))).to(activations)
    a = torch.cat([torch.eye(k, dtype=activations), random_rows])
    found = quantized_matmul(a.to(device), weight.to(device)).cpu()
    kernel_weight = in_activations_type(weight)
    # Of two zeros the sign may differ: -0 + 0 is +0 in a sum.
    assert torch.equal(found[:k], kernel_weight)
    exact = random_rows.double() @ weight.dequantize()
    if exact.isfinite().all() and exact.abs().max() < torch.finfo(activations).max:
        check_product(found[k:], exact, random_rows @ kernel_weight)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("m", [1, 3, 16, 17, 64, 129])
@pytest.mark.parametrize(
    ("dtype", "zero_point", "activations"),
    [("uint4", True, torch.float16), ("float6_e3m2", False, torch.bfloat16)],
)
def test_numbers_of_rows(m: int, dtype: str, zero_point: bool, activations: torch.dtype, device: str) -> None:
    weight = random_weight(dtype, 160, 100, 32, zero_point=zero_point, activations=activations)
    check(weight, torch.randn(m, 160).to(activations), device)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(
    ("dtype", "k", "n", "group", "zero_point", "activations"),
    [
        ("uint3", 48, 33, 16, True, torch.float16),
        ("int5", 144, 1, 16, False, torch.bfloat16),
        ("uint8", 32, 130, 32, True, torch.float16),
        ("int2", 416, 31, 32, False, torch.float16),
        ("uint1", 192, 65, 64, True, torch.bfloat16),
        ("float4_e2m1", 320, 160, 64, False, torch.float16),
        ("uint6", 384, 257, 128, True, torch.bfloat16),
        ("float8_e4m3", 128, 8, 128, False, torch.float16),
        ("uint7", 512, 24, 256, True, torch.float16),
        ("int4", 80, 32, -1, False, torch.float16),
        ("float3_e1m1", 200, 72, -1, False, torch.bfloat16),
        ("uint2", 17, 9, -1, True, torch.float16),
        ("ternary", 272, 40, 16, False, torch.bfloat16),
        ("nf4", 128, 129, 64, False, torch.float16),
    ],
)
def test_ragged_shapes_and_groups(
    dtype: str, k: int, n: int, group: int, zero_point: bool, activations: torch.dtype, device: str
) -> None:
    weight = random_weight(dtype, k, n, group, zero_point=zero_point, activations=activations)
    check(weight, torch.randn(5, k).to(activations), device)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(
    "a",
    [
        torch.randn(160, 6, generator=torch.Generator().manual_seed(1)).half().t(),
        torch.randn(6, 320, generator=torch.Generator().manual_seed(2)).half()[:, ::2],
        torch.randn(12, 160, generator=torch.Generator().manual_seed(3)).half()[::2],
        torch.randn(6, 168, generator=torch.Generator().manual_seed(4)).half()[:, 5:165],
        torch.randn(1, 160, generator=torch.Generator().manual_seed(5)).half().expand(6, 160),
        torch.randn(3, 2, 160, generator=torch.Generator().manual_seed(6)).half().transpose(0, 1),
        torch.randn(160, generator=torch.Generator().manual_seed(7)).half(),
        torch.randn(2, 1, 3, 160, generator=torch.Generator().manual_seed(8)).half(),
    ],
    ids=["transposed", "steps", "rows", "unaligned", "expanded", "batch transposed", "vector", "batches"],
)
def test_activations_of_any_strides_and_dimensions(a: torch.Tensor, device: str) -> None:
    check(random_weight("uint4", 160, 100, 32, zero_point=True), a, device)


@pytest.mark.parametrize("shape", [(0, 160), (2, 0, 160), (0, 3, 160)])
def test_no_rows(shape: tuple[int, ...]) -> None:
    weight = random_weight("uint4", 160, 100, 32)
    found = quantized_matmul(torch.empty(shape, dtype=torch.float16), weight)
    assert found.shape == (*shape[:-1], 100)
    assert found.dtype == torch.float16


@pytest.mark.parametrize("target", ["sm_75", "sm_80", "sm_89", "sm_90a"])
def test_every_target(target: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TILUS_SIMULATOR_TARGET", target)
    check(random_weight("float6_e3m2", 160, 100, 32), torch.randn(7, 160).half())
    check(random_weight("uint8", 160, 100, 32, zero_point=True), torch.randn(40, 160).half())


def test_two_runs_give_the_same_bits() -> None:
    weight = random_weight("uint3", 256, 64, 64, zero_point=True)
    a = torch.randn(20, 256).half()
    assert torch.equal(quantized_matmul(a, weight), quantized_matmul(a, weight))


def test_activations_are_left_alone() -> None:
    weight = random_weight("uint3", 256, 64, 64, zero_point=True)
    a = torch.randn(20, 256).half()
    before = a.clone()
    quantized_matmul(a, weight)
    assert torch.equal(a, before)


def test_nan_and_infinity_of_activations_reach_their_row_only() -> None:
    weight = random_weight("uint4", 128, 64, 32)
    a = torch.randn(4, 128).half()
    clean = quantized_matmul(a, weight)
    a[1, 7], a[2, 9] = float("nan"), float("inf")
    found = quantized_matmul(a, weight)
    assert torch.equal(found[[0, 3]], clean[[0, 3]])
    assert found[1].isnan().all()
    assert not found[2].isfinite().any()


@pytest.mark.parametrize("target", ["sm_80", "sm_90a"])
@pytest.mark.parametrize("dtype", ["float8_e5m2", "float7_e5m1", "float8_e6m1", "float6_e5m0"])
def test_values_times_scales_stay_in_range(dtype: str, target: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The largest values of these types have less than a factor of two to the end of float16."""
    monkeypatch.setenv("TILUS_SIMULATOR_TARGET", target)
    torch.manual_seed(0)
    weight = quantize(torch.randn(64, 40), dtype, 32)
    check(weight, torch.randn(5, 64).half())
    check(weight, torch.randn(17, 64).half())


def test_large_values_times_scales_that_are_given_stay_in_range() -> None:
    codes = np.random.default_rng(0).choice(finite_codes(float8_e5m2, torch.float16), (64, 40))
    scale = torch.linspace(0.5, 1.9, 80).reshape(2, 40).half()
    weight = from_codes(codes, float8_e5m2, scale, None, 32, alpha=2.0**-12)
    assert torch.equal(weight.dequantize(), given_values(codes, scale) * 2.0**-12)
    check(weight, torch.randn(5, 64).half())


def given_values(codes: np.ndarray, scale: torch.Tensor) -> torch.Tensor:
    values = torch.from_numpy(decode(codes, float8_e5m2).astype(np.float64))
    return values * scale.double().repeat_interleave(32, dim=0)


def test_checks_notice_wrong_kernels() -> None:
    """What the comparison is for: zeros, a shift, a lost group, and a forgotten zero point are all found."""
    weight = random_weight("uint4", 160, 100, 32, zero_point=True)
    a = torch.randn(6, 160).half()
    exact, by_torch = a.double() @ weight.dequantize(), a @ in_activations_type(weight)
    found = quantized_matmul(a, weight)
    check_product(found, exact, by_torch)
    no_zero = QuantizedWeight(weight.dtype, weight.shape, 32, weight.packed, weight.scale, None)
    lost = a.clone()
    lost[:, 64:96] = 0
    wrong = [
        torch.zeros_like(found),
        found.roll(1, 1),
        quantized_matmul(lost, weight),
        quantized_matmul(a, no_zero),
    ]
    for result in wrong:
        with pytest.raises(AssertionError, match="the largest error"):
            check_product(result, exact, by_torch)


def refusals() -> dict[str, tuple[torch.Tensor, QuantizedWeight]]:
    weight = random_weight("uint4", 160, 100, 32)
    return {
        "dtype": (torch.randn(2, 160), weight),
        "other_float": (torch.randn(2, 160).bfloat16(), weight),
        "depth": (torch.randn(2, 128).half(), weight),
        "scalar": (torch.tensor(1.0).half(), weight),
    }


@pytest.mark.parametrize("name", ["dtype", "other_float", "depth", "scalar"])
def test_refusals(name: str, golden) -> None:
    a, weight = refusals()[name]
    with pytest.raises((ShapeMismatch, TypeMismatch)) as error:
        quantized_matmul(a, weight)
    golden(str(error.value), f"{name}.txt")


def test_arguments_of_other_kinds() -> None:
    weight = quantize(torch.randn(64, 32), "uint4", 32)
    a = torch.zeros(4, 64).half()
    with pytest.raises(TypeMismatch, match=r"a is a QuantizedWeight.*\n.*a and weight the other way round"):
        quantized_matmul(weight, a)  # type: ignore[arg-type]
    with pytest.raises(TypeMismatch, match="a is a list, expected a tensor or a QuantizedTokens"):
        quantized_matmul([0.0], weight)  # type: ignore[arg-type]
    with pytest.raises(TypeMismatch, match="a is on meta, but weight on cpu"):
        quantized_matmul(a.to("meta"), weight)
