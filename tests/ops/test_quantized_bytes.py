"""`quantized_matmul` with activations of 8 bits: integer sums are exact, and others within a float32's rounding."""

from __future__ import annotations

import sys

import numpy as np
import pytest
import torch

from tests.ops.support import WEIGHT_TYPES
from tilus.codegen import TARGETS
from tilus.dtypes import DType, decode, int8, uint4
from tilus.dtypes import dtype as find
from tilus.errors import ShapeMismatch, TypeMismatch
from tilus.ops import QuantizedWeight, from_codes, quantize, quantize_tokens, quantized_matmul
from tilus.ops.checkpoints import from_mxfp4
from tilus.ops.quantized_schedule import Choice, Schedule
from tilus.ops.tokens import QuantizedTokens
from tilus.ops.weights import operand_type

MODULE = sys.modules["tilus.ops.quantized_matmul"]
DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]
FP8 = torch.float8_e4m3fn


def takes(dtype: DType, activations: torch.dtype) -> bool:
    try:
        operand_type(dtype, activations)
    except TypeMismatch:
        return False
    return True


INTEGERS = [t for t in WEIGHT_TYPES if takes(t, torch.int8)]
FLOATS = [t for t in WEIGHT_TYPES if takes(t, FP8)]


def tokens(m: int, k: int, activations: torch.dtype, *, by_block: bool = False) -> QuantizedTokens:
    torch.manual_seed(m + k)
    return quantize_tokens(torch.randn(m, k, dtype=torch.bfloat16), activations, by_block=by_block)


def random_weight(
    dtype: DType, k: int, n: int, group: int, activations: torch.dtype, zero_point: bool = False
) -> QuantizedWeight:
    """Every code, scales of some sizes, and zero points that are not small."""
    rng = np.random.default_rng(k + n)
    codes = np.arange(1 << dtype.bits, dtype=np.uint8)
    codes = rng.choice(codes[np.isfinite(decode(codes, dtype).astype(np.float64))], (k, n))
    size = k if group == -1 else group
    scale = torch.from_numpy(rng.uniform(0.01, 1.5, (k // size, n))).half()
    zero = torch.from_numpy(rng.integers(0, 1 << dtype.bits, (k // size, n))).half() if zero_point else None
    return from_codes(codes, dtype, scale, zero, group, activations=activations)


def check(weight: QuantizedWeight, a: QuantizedTokens, device: str = "cpu", out_bits: int = 11) -> None:
    """Compare with float64: the result is rounded to float16, and sums of few terms to float32 before."""
    moved = QuantizedTokens(a.values.to(device), a.scale.to(device))
    found = quantized_matmul(moved, weight.to(device)).cpu()
    assert found.dtype == weight.result
    exact = a.dequantize() @ weight.dequantize()
    # What terms that cancel may leave of a float32's rounding, in the sums and in the zero points' part of them.
    values, scales = weight.dequantize().abs(), a.dequantize().abs()
    slack = scales @ values * 2.0**-22
    if weight.zero is not None:
        slack = slack * (1 << weight.dtype.bits)
    allowed = exact.abs() * 2.0**-out_bits + slack + 2.0**-24
    assert ((found.double() - exact).abs() <= allowed).all()
    # Nothing of this size would pass by chance.
    assert allowed.mean() < 0.02 * exact.abs().mean()


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(
    ("dtype", "activations", "zero_point"),
    [
        *((t, torch.int8, False) for t in INTEGERS),
        *((t, torch.int8, True) for t in INTEGERS if t.kind == "uint"),
        *((t, FP8, t.kind == "uint") for t in FLOATS),
    ],
    ids=str,
)
def test_every_type(dtype: DType, activations: torch.dtype, zero_point: bool, device: str) -> None:
    weight = random_weight(dtype, 160, 40, 32, activations, zero_point)
    check(weight, tokens(5, 160, activations), device)


@pytest.mark.parametrize("dtype", ["uint1", "uint8", "int3", "int8"])
@pytest.mark.parametrize("m", [3, 12, 40])
def test_integer_sums_are_exact(dtype: str, m: int) -> None:
    """With scales of 1 each result is an integer, that float16 holds here."""
    rng = np.random.default_rng(m)
    k, n = 96, 33
    code_type = find(dtype)
    codes = rng.integers(0, 1 << code_type.bits, (k, n)).astype(np.uint8)
    ones = torch.ones((1, n), dtype=torch.float16)
    weight = from_codes(codes, code_type, ones, None, -1, activations=torch.int8)
    values = torch.from_numpy(rng.integers(-1, 2, (m, k)).astype(np.int8))
    values[:, 8:] = 0
    a = QuantizedTokens(values, torch.ones((1, -(-m // 16) * 16)))
    exact = values.long().numpy() @ decode(codes, code_type).astype(np.int64)
    assert np.abs(exact).max() <= 2048
    assert np.array_equal(quantized_matmul(a, weight).numpy(), exact)


@pytest.mark.parametrize("m", [3, 20])
@pytest.mark.parametrize("dtype", ["float4_e2m1", "float6_e2m3", "float7_e2m4", "float8_e1m6", "float4_e3m0"])
def test_sums_of_small_floats_are_exact(dtype: str, m: int) -> None:
    """Values times a power of two are integers: a sum that cancels but for its least bit has just that bit."""
    code_type = find(dtype)
    values = decode(np.arange(1 << code_type.bits), code_type).astype(np.float64)
    codes = np.resize(np.arange(1 << code_type.bits), (512, 33)).astype(np.uint8)
    codes[1::2] = codes[::2]
    step = np.abs(values[values != 0]).min()
    assert step < 1
    codes[0], codes[1] = np.flatnonzero(values == step)[0], np.flatnonzero(values == 0)[0]
    ones = torch.ones((1, 33), dtype=torch.float16)
    weight = from_codes(codes, code_type, ones, None, -1, activations=torch.int8)
    signs = torch.tensor([127, -127] * 256, dtype=torch.int8).repeat(m, 1)
    a = QuantizedTokens(signs, torch.ones((1, -(-m // 16) * 16)))
    assert (quantized_matmul(a, weight) == 127 * step).all()
    exact = a.dequantize() @ weight.dequantize()
    assert torch.equal(exact, torch.full((m, 33), 127 * step, dtype=torch.float64))


def test_mxfp4_with_activations_of_int8() -> None:
    """Sums over the 32 elements of a block are integers; each is scaled by its power of two."""
    rng = np.random.default_rng(0)
    blocks = torch.from_numpy(rng.integers(0, 256, (40, 96)).astype(np.uint8))
    scales = torch.from_numpy(rng.integers(118, 124, (40, 6)).astype(np.uint8))
    weight = from_mxfp4(blocks, scales, activations=torch.int8)
    check(weight, tokens(7, 192, torch.int8), out_bits=8)


def test_sums_beyond_float32_are_exact_before_they_are_rounded() -> None:
    """127 * 127 * 4096 has 26 bits, of which those of float32 are lost once, not term by term."""
    k = 4096
    codes = np.full((k, 8), 127, np.uint8)
    codes[1::2] = 129  # -127
    weight = from_codes(
        codes, int8, torch.ones((1, 8), dtype=torch.float16), None, -1, activations=torch.int8
    )
    values = torch.full((1, k), 127, dtype=torch.int8)
    values[0, 1] = 126
    a = QuantizedTokens(values, torch.ones((1, 16)))
    assert (quantized_matmul(a, weight) == 127).all()


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("m", [1, 9, 40])
@pytest.mark.parametrize(
    ("dtype", "k", "n", "group", "activations", "zero_point", "by_block"),
    [
        ("uint4", 256, 33, 128, torch.int8, True, False),
        ("int4", 288, 96, -1, torch.int8, False, True),
        ("uint3", 512, 40, 256, torch.int8, True, True),
        ("float4_e2m1", 192, 65, 64, FP8, False, False),
        ("float8_e4m3", 384, 129, 128, FP8, False, True),
    ],
)
def test_rows_groups_and_blocks(
    m: int, dtype: str, k: int, n: int, group: int, activations: torch.dtype, zero_point: bool, by_block: bool,
    device: str,
) -> None:  # fmt: skip
    weight = random_weight(find(dtype), k, n, group, activations, zero_point)
    check(weight, tokens(m, k, activations, by_block=by_block), device)


@pytest.mark.parametrize(
    ("m", "shares"), [(3, {"splits": 3}), (12, {"splits": 2}), (3, {"blocks": 3}), (12, {"blocks": 5})]
)
@pytest.mark.parametrize(
    ("dtype", "group", "activations", "zero_point", "by_block"),
    [
        ("uint4", 64, torch.int8, True, True),
        ("int6", -1, torch.int8, False, False),
        ("uint2", -1, torch.int8, True, False),
        ("float6_e3m2", 512, FP8, False, False),
    ],
)
def test_warps_share_columns_and_blocks_share_k(
    monkeypatch: pytest.MonkeyPatch, m: int, shares: dict[str, int], dtype: str, group: int, activations: torch.dtype,
    zero_point: bool, by_block: bool,
) -> None:  # fmt: skip
    few = m <= 8
    schedule = Schedule(8 if few else 16, 64, deep=2, stages=2, swap=few, late=True, **shares)
    monkeypatch.setattr(MODULE, "choose", lambda *args: Choice("mma", schedule))
    check(
        random_weight(find(dtype), 1536, 72, group, activations, zero_point),
        tokens(m, 1536, activations, by_block=by_block),
    )


@pytest.mark.parametrize("target", TARGETS)
def test_every_target(target: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without instructions for float8, both operands become float16."""
    monkeypatch.setenv("TILUS_SIMULATOR_TARGET", target)
    for m in (5, 20):
        check(random_weight(find("float6_e3m2"), 160, 40, 32, FP8), tokens(m, 160, FP8))
        check(random_weight(find("uint4"), 160, 40, 32, torch.int8, True), tokens(m, 160, torch.int8))


def test_activations_of_16_bits_are_quantised_on_the_way() -> None:
    torch.manual_seed(0)
    weight = quantize(torch.randn(256, 48), "int4", 64, activations=torch.int8)
    a = torch.randn(2, 3, 256).half()
    found = quantized_matmul(a, weight)
    assert found.shape == (2, 3, 48)
    assert torch.equal(found.reshape(6, 48), quantized_matmul(quantize_tokens(a), weight))
    exact = a.double() @ weight.dequantize()
    assert (found.double() - exact).square().mean().sqrt() < 0.02 * exact.square().mean().sqrt()


@pytest.mark.parametrize("k", [1, 3])
def test_few_elements_along_k(k: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Their one group takes no more memory than a unit's: counted as many groups, no schedule would fit."""
    monkeypatch.setenv("TILUS_SIMULATOR_TARGET", "sm_89")
    torch.manual_seed(0)
    weight = quantize(torch.randn(k, 32), "uint4", -1, zero_point=True, activations=torch.float8_e4m3fn)
    a = quantize_tokens(torch.randn(8, k).half(), torch.float8_e4m3fn)
    exact = a.dequantize() @ weight.dequantize()
    assert (quantized_matmul(a, weight).double() - exact).abs().max() <= exact.abs().max() * 2.0**-10


def test_an_order_of_rows_is_applied_before_quantising() -> None:
    rng = np.random.default_rng(0)
    order = torch.from_numpy(rng.permutation(64))
    codes = rng.integers(0, 16, (64, 16)).astype(np.uint8)
    scale = torch.ones((2, 16), dtype=torch.float16)
    weight = from_codes(codes, uint4, scale, None, 32, order=order, activations=torch.int8)
    a = torch.randn(3, 64).half()
    exact = quantize_tokens(a).dequantize() @ weight.dequantize()
    assert (quantized_matmul(a, weight).double() - exact).abs().max() <= exact.abs().max() * 2.0**-10
    with pytest.raises(TypeMismatch, match="order of their own"):
        quantized_matmul(quantize_tokens(a), weight)


@pytest.mark.parametrize("gated", [False, True])
def test_the_op_keeps_torchs_rules(gated: bool) -> None:
    """Its schema, and the shapes and types of its fake."""
    weight = random_weight(uint4, 64, 32, 32, torch.int8, True)
    a = tokens(3, 64, torch.int8)
    torch.library.opcheck(
        torch.ops.tilus.quantized_matmul_bytes.default,
        (
            a.values,
            a.scale,
            weight.packed,
            weight.scale,
            weight.zero,
            "uint4",
            64,
            32,
            32,
            1.0,
            None,
            "relu",
            gated,
        ),
        test_utils=("test_schema", "test_faketensor"),
    )


REFUSED = {
    "value_does_not_fit": lambda: quantize(torch.randn(64, 8), "float6_e3m2", 32, activations=torch.int8),
    "integer_does_not_fit": lambda: quantize(torch.randn(64, 8), "int6", 32, activations=FP8),
    "activations": lambda: quantize(torch.randn(64, 8), "int6", 32, activations=torch.float32),
    "group": lambda: quantize(torch.randn(64, 8), "int4", 16, activations=torch.int8),
    "other_bytes": lambda: quantized_matmul(
        tokens(2, 64, FP8), quantize(torch.randn(64, 8), "int4", 32, activations=torch.int8)
    ),
    "depth": lambda: quantized_matmul(
        tokens(2, 32, torch.int8), quantize(torch.randn(64, 8), "int4", 32, activations=torch.int8)
    ),
    "packed_for_16_bits": lambda: quantized_matmul(
        tokens(2, 64, torch.int8), quantize(torch.randn(64, 8), "int4", 32)
    ),
    "tokens_dtype": lambda: quantize_tokens(torch.randn(2, 8), torch.uint8),
    "tokens_scalar": lambda: quantize_tokens(torch.tensor(1.0)),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refusals(name: str, golden) -> None:
    with pytest.raises((ShapeMismatch, TypeMismatch)) as error:
        REFUSED[name]()
    golden(str(error.value), f"{name}.txt")
