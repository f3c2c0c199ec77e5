"""Quantisation by rounding to nearest, prepacking, and what both refuse."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.ops.support import FLOATS, WEIGHT_TYPES, finite_codes
from tilus import dtypes
from tilus.dtypes import DType, decode, dtype, float4_e2m1, float8_e8m0, float16, uint4
from tilus.errors import TilusError
from tilus.ops import from_codes, gated_pair, quantize
from tilus.ops.prepack import CODES, THREADS, UNIT_K, UNIT_N, pack_weight, unit_bytes, unpack_weight

GROUPS = [16, 32, 64, 128, 256, -1]


def weights(k: int, n: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(k, n, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("activations", FLOATS, ids=str)
@pytest.mark.parametrize("weight_type", WEIGHT_TYPES, ids=str)
def test_codes_are_the_nearest_there_are(weight_type: DType, activations: torch.dtype) -> None:
    """No other code of the type is nearer to the weight, for the scale and zero point that were stored."""
    original = weights(64, 9)
    made = quantize(original, weight_type, 32, scale_dtype=activations)
    assert made.scale.dtype == activations
    rows = torch.arange(64) // 32
    scale = made.scale.double()[rows, :9] * made.alpha
    zero = 0.0 if made.zero is None else made.zero.double()[rows, :9]
    reachable = torch.from_numpy(
        decode(finite_codes(weight_type, activations), weight_type).astype(np.float64)
    )
    choices = (reachable[:, None, None] - zero) * scale
    best = (choices - original).abs().amin(0)
    assert ((made.dequantize() - original).abs() <= best * (1 + 1e-12) + 1e-15).all()


@pytest.mark.parametrize("activations", FLOATS, ids=str)
@pytest.mark.parametrize("weight_type", WEIGHT_TYPES, ids=str)
def test_the_whole_range_is_used(weight_type: DType, activations: torch.dtype) -> None:
    """Rounding the scale aside, the largest weight of a group gets the largest value of the type."""
    made = quantize(weights(64, 9), weight_type, 64, scale_dtype=activations)
    found = decode(made.codes(), weight_type).astype(np.float64)
    reachable = decode(finite_codes(weight_type, activations), weight_type).astype(np.float64)
    extremes = [reachable.max(), reachable.min()]
    # The symmetric grid of an unsigned type, and two's complement, reach an end on one side at least.
    steps = np.sort(np.unique(reachable))
    near_top, near_bottom = (steps[-2], steps[1]) if len(steps) > 3 else (extremes[0], extremes[1])
    assert ((found.max(0) >= near_top) | (found.min(0) <= near_bottom)).all()


@pytest.mark.parametrize("weight_type", ["int3", "int8", "float4_e2m1", "float8_e4m3", "ternary", "nf4"])
def test_zero_stays_zero(weight_type: str) -> None:
    original = weights(64, 9)
    original[::3] = 0
    assert (quantize(original, weight_type, 32).dequantize()[::3] == 0).all()


@pytest.mark.parametrize("bits", range(1, 9))
def test_zero_stays_zero_with_a_zero_point(bits: int) -> None:
    original = weights(64, 9) + 0.7
    original[::3] = 0
    made = quantize(original, f"uint{bits}", 32, zero_point=True)
    assert made.zero is not None
    assert (made.dequantize()[::3] == 0).all()
    zero = made.zero.double()
    assert ((zero >= 0) & (zero <= (1 << bits) - 1) & (zero == zero.round())).all()


@pytest.mark.parametrize("sign", [1, -1])
def test_groups_of_one_sign_have_a_zero_point_at_an_end(sign: int) -> None:
    made = quantize(sign * weights(32, 4).abs(), "uint4", 32, zero_point=True)
    assert made.zero is not None
    assert (made.zero[0, :4] == (0 if sign > 0 else 15)).all()


@pytest.mark.parametrize("zero_point", [False, True])
def test_unsigned_types_without_a_zero_point_have_the_middle_for_zero(zero_point: bool) -> None:
    made = quantize(weights(32, 4), "uint4", 32, zero_point=zero_point)
    assert made.zero is not None
    assert (made.zero[0, :4] == 7.5).all() == (not zero_point)


def test_a_group_of_zeros() -> None:
    for name in ("uint4", "int4", "float6_e3m2", "nf4"):
        made = quantize(torch.zeros(32, 4), name, 32, zero_point=name == "uint4")
        assert (made.dequantize() == 0).all()


def test_tiny_and_huge_weights_have_finite_scales() -> None:
    for factor in (1e-30, 1e-9, 1e4):
        for name in ("uint4", "int8", "float4_e2m1", "float8_e5m2"):
            original = weights(32, 4) * factor
            made = quantize(original, name, 32)
            assert made.scale.isfinite().all()
            assert made.dequantize().isfinite().all()
            # The code is as good as that of weights of unit scale.
            relative = (made.dequantize() - original).abs().max() / original.abs().max()
            usual = quantize(weights(32, 4), name, 32)
            assert (
                relative
                <= 1.01 * (usual.dequantize() - weights(32, 4)).abs().max() / weights(32, 4).abs().max()
            )


@pytest.mark.parametrize("activations", FLOATS, ids=str)
def test_codes_are_chosen_for_the_rounded_scale(activations: torch.dtype) -> None:
    """A scale that is rounded after the codes were chosen would cost up to half a step of accuracy at the ends."""
    made = quantize(weights(128, 50), "int8", 128, scale_dtype=activations)
    error = (made.dequantize() - weights(128, 50)).abs()
    inside = made.codes().view(np.int8)
    step = made.scale.double()[:, :50] * made.alpha
    limit = torch.from_numpy((inside > -128) & (inside < 127))
    assert (error[limit] <= (0.5 * step.expand(128, 50))[limit] * (1 + 1e-9)).all()


@pytest.mark.parametrize("group", GROUPS)
def test_one_scale_for_each_group(group: int) -> None:
    k = 512
    made = quantize(weights(k, 40), "int4", group)
    expected = k if group == -1 else group
    assert made.group_size == expected
    assert made.scale.shape[0] == k // expected
    # A large weight changes the values of its own group and column only.
    other = weights(k, 40)
    other[300, 7] = 100
    changed = (quantize(other, "int4", group).dequantize() != made.dequantize()).nonzero()
    assert (changed[:, 1] == 7).all()
    assert (changed[:, 0] // expected == 300 // expected).all()


@pytest.mark.parametrize("weight_type", WEIGHT_TYPES, ids=str)
def test_prepacking_comes_back(weight_type: DType) -> None:
    for k, n in [(128, 32), (16, 1), (130, 33), (384, 96), (1, 40)]:
        codes = np.random.default_rng(k * n).integers(0, 1 << weight_type.bits, (k, n)).astype(np.uint8)
        packed = pack_weight(codes, weight_type)
        assert packed.shape == (-(-k // UNIT_K), -(-n // UNIT_N), unit_bytes(weight_type.bits))
        assert np.array_equal(unpack_weight(packed, weight_type, k, n), codes)


@given(
    k=st.integers(1, 300),
    n=st.integers(1, 70),
    bits=st.integers(1, 8),
    seed=st.integers(0, 1000),
)
@settings(max_examples=25, deadline=None)
def test_prepacking_any_shape(k: int, n: int, bits: int, seed: int) -> None:
    weight_type = dtype(f"uint{bits}")
    codes = np.random.default_rng(seed).integers(0, 1 << bits, (k, n)).astype(np.uint8)
    packed = pack_weight(codes, weight_type)
    assert np.array_equal(unpack_weight(packed, weight_type, k, n), codes)
    # One changed code changes one byte, or two neighbours of one thread's bytes.
    codes[k // 2, n // 2] ^= 1
    assert (pack_weight(codes, weight_type) != packed).sum() == 1


def test_a_thread_reads_the_codes_that_the_tensor_core_wants_of_it() -> None:
    """Against mma.m16n8k16 in the PTX ISA: the second operand's thread t has column t / 4, rows 2 * (t % 4) + ..."""
    codes = np.arange(UNIT_K * UNIT_N).reshape(UNIT_K, UNIT_N) % 251
    packed = pack_weight(codes.astype(np.uint8), dtypes.uint8)[0, 0]
    runs = packed.reshape(CODES // 16, THREADS, 16)
    for thread in range(THREADS):
        found = runs[:, thread].reshape(UNIT_K // 16, UNIT_N // 8, 4)
        for step in range(UNIT_K // 16):
            for column in range(UNIT_N // 8):
                rows = [step * 16 + 2 * (thread % 4) + r for r in (0, 1, 8, 9)]
                expected = codes[rows, column * 8 + thread // 4]
                assert found[step, column].tolist() == expected.tolist()


def test_from_codes_keeps_what_it_is_given() -> None:
    rng = np.random.default_rng(0)
    codes = rng.integers(0, 16, (96, 20)).astype(np.uint8)
    scale = torch.from_numpy(rng.uniform(0.1, 1, (3, 20))).half()
    zero = torch.from_numpy(rng.integers(0, 16, (3, 20))).half()
    made = from_codes(codes, uint4, scale, zero, 32)
    assert np.array_equal(made.codes(), codes)
    rows = np.arange(96) // 32
    expected = (codes - zero.double().numpy()[rows]) * scale.double().numpy()[rows]
    assert np.array_equal(made.dequantize().numpy(), expected)
    assert made.bits_per_weight == pytest.approx(4 + 2 * 16 / 32)


def test_from_codes_takes_names_of_types() -> None:
    codes, scale = np.zeros((32, 8), np.uint8), torch.full((1, 8), 120, dtype=torch.uint8)
    made = from_codes(codes, "e2m1", scale, None, 32, scale_type="float8_e8m0")
    assert made.dtype == float4_e2m1
    assert made.scale_type == float8_e8m0


def test_from_codes_with_a_factor_and_an_order() -> None:
    rng = np.random.default_rng(0)
    codes = rng.integers(0, 16, (64, 5)).astype(np.uint8)
    scale = torch.from_numpy(rng.uniform(0.1, 1, (2, 5))).half()
    order = torch.from_numpy(rng.permutation(64))
    made = from_codes(codes, uint4, scale, None, 32, alpha=0.25, order=order)
    stored = codes * scale.double().numpy()[np.arange(64) // 32] * 0.25
    found = made.dequantize().numpy()
    assert np.array_equal(found[order.numpy()], stored)


def test_bits_per_weight_count_scales_and_zero_points() -> None:
    assert quantize(weights(128, 32), "uint3", 32, zero_point=True).bits_per_weight == 3 + 2 * 16 / 32
    assert quantize(weights(128, 32), "int6", -1).bits_per_weight == 6 + 16 / 128


def test_moving_to_a_device_moves_all_parts() -> None:
    moved = quantize(weights(128, 32), "uint3", 32, zero_point=True).to("meta")
    assert moved.zero is not None
    assert {moved.packed.device.type, moved.scale.device.type, moved.zero.device.type} == {"meta"}


REFUSED = {
    "vector": lambda: quantize(torch.zeros(16), "uint4", 16),
    "group_does_not_divide": lambda: quantize(torch.zeros(48, 8), "uint4", 32),
    "group_not_supported": lambda: quantize(torch.zeros(96, 8), "uint4", 48),
    "group_negative": lambda: quantize(torch.zeros(96, 8), "uint4", -2),
    "too_wide": lambda: quantize(torch.zeros(32, 8), "int16", 32),
    "boolean": lambda: quantize(torch.zeros(32, 8), "boolean", 32),
    "scale_type": lambda: quantize(torch.zeros(32, 8), "float8_e8m0", 32),
    "zero_point_of_signed": lambda: quantize(torch.zeros(32, 8), "int4", 32, zero_point=True),
    "scales_in_float32": lambda: quantize(torch.zeros(32, 8), "int4", 32, scale_dtype=torch.float32),
    "activations_of_another_float": lambda: quantize(
        torch.zeros(32, 8), "float4_e2m1", 32, scale_dtype=torch.bfloat16, activations=torch.float16
    ),
    "not_finite": lambda: quantize(torch.full((32, 8), float("inf")), "int4", 32),
    "no_elements": lambda: quantize(torch.zeros(32, 0), "uint4", 32),
    "complex": lambda: quantize(torch.zeros(32, 8, dtype=torch.complex64), "uint4", 32),
    "codes_of_16_bits": lambda: from_codes(
        np.zeros((32, 8), np.uint8), float16, torch.ones(1, 8).half(), None, 32
    ),
    "codes_vector": lambda: from_codes(np.zeros(32, np.uint8), uint4, torch.ones(1, 8).half(), None, 32),
    "scale_not_finite": lambda: from_codes(
        np.zeros((32, 8), np.uint8), uint4, torch.full((1, 8), float("nan")).half(), None, 32
    ),
    "zero_type": lambda: from_codes(
        np.zeros((32, 8), np.uint8), uint4, torch.ones(1, 8).half(), torch.ones(1, 8), 32
    ),
    "order_too_short": lambda: from_codes(
        np.zeros((32, 8), np.uint8), uint4, torch.ones(1, 8).half(), None, 32, order=torch.arange(31)
    ),
    "order_out_of_range": lambda: from_codes(
        np.zeros((32, 8), np.uint8), uint4, torch.ones(1, 8).half(), None, 32, order=torch.arange(1, 33)
    ),
    "zero_not_finite": lambda: from_codes(
        np.zeros((32, 8), np.uint8),
        uint4,
        torch.ones(1, 8).half(),
        torch.full((1, 8), float("nan")).half(),
        32,
    ),
    "gated_twice": lambda: gated_pair(*[gated_pair(*[quantize(torch.zeros(32, 8), "uint4", 32)] * 2)] * 2),
    "scale_shape": lambda: from_codes(np.zeros((32, 8), np.uint8), uint4, torch.ones(2, 8).half(), None, 32),
    "zero_shape": lambda: from_codes(
        np.zeros((32, 8), np.uint8), uint4, torch.ones(1, 8).half(), torch.ones(1, 7).half(), 32
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refusals(name: str, golden) -> None:
    with pytest.raises(TilusError) as error:
        REFUSED[name]()
    golden(str(error.value), f"{name}.txt")
