"""Weights with scales of 8 bits, as MXFP4, MXFP8 and NVFP4 have them: kept as they are stored, and exact."""

from __future__ import annotations

import io
import pickle
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from tests.ops.support import check_product, finite_codes
from tilus import ops
from tilus.codegen import target
from tilus.dtypes import DType, decode, float4_e2m1, float8_e4m3, float8_e8m0, float16, int4
from tilus.dtypes import dtype as find
from tilus.errors import ShapeMismatch, TilusError, TypeMismatch
from tilus.ops import QuantizedWeight, from_codes, gated_pair, quantize, quantize_tokens, quantized_matmul
from tilus.ops.checkpoints import from_mxfp4, from_mxfp8, from_nvfp4
from tilus.ops.quantized_matmul import call_of, form_of
from tilus.ops.quantized_schedule import choose
from tilus.ops.scales import scale_values
from tilus.ops.weights import interleave
from tilus.torch import QuantizedLinear, QuantizedMoE

HALF, BRAIN = torch.float16, torch.bfloat16
E8M0, E4M3 = float8_e8m0, float8_e4m3
FINITE_E4M3 = np.array([c for c in range(256) if c & 127 != 127], np.uint8)


def every_pair(dtype: DType, scales: np.ndarray, scale_type: DType, made: torch.dtype) -> QuantizedWeight:
    """Return a weight of 16 or more rows, which hold every code, times a column for each scale."""
    codes = finite_codes(dtype, made)
    rows = -(-len(codes) // 32) * 32
    column = np.resize(codes, rows)
    stored = np.repeat(scales[None, :], rows // 32, axis=0)
    tensor = torch.from_numpy(np.ascontiguousarray(stored))
    whole = np.repeat(column[:, None], len(scales), axis=1)
    return from_codes(whole, dtype, tensor, None, 32, scale_type=scale_type, out_dtype=made)


def by_definition(weight: QuantizedWeight, scales: np.ndarray, scale_type: DType) -> torch.Tensor:
    values = decode(weight.codes(), weight.dtype).astype(np.float64)
    return torch.from_numpy(values * decode(scales, scale_type).astype(np.float64))


def check_every_pair(weight: QuantizedWeight, exact: torch.Tensor, rows: int) -> None:
    """Rows of the identity pick single weights, so results are exact; more rows than `rows` go one by one."""
    assert torch.equal(weight.dequantize(), exact)
    whole = torch.eye(weight.shape[0], dtype=weight.result)
    found = torch.cat([quantized_matmul(part, weight) for part in whole.split(rows)])
    assert torch.equal(found, exact.to(weight.result))


@pytest.mark.parametrize(
    ("made", "rows", "machine"),
    [
        (HALF, 8, "sm_80"),
        (HALF, 16, "sm_90a"),
        (HALF, 32, "sm_90a"),
        (BRAIN, 8, "sm_90a"),
        (BRAIN, 32, "sm_80"),
    ],
    ids=str,
)
def test_every_scale_of_nvfp4(
    made: torch.dtype, rows: int, machine: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TILUS_SIMULATOR_TARGET", machine)
    weight = every_pair(float4_e2m1, FINITE_E4M3, E4M3, made)
    assert torch.equal(weight.scale[0, : len(FINITE_E4M3)], torch.from_numpy(FINITE_E4M3))
    check_every_pair(weight, by_definition(weight, FINITE_E4M3, E4M3), rows)


@pytest.mark.parametrize(
    ("low", "high", "machine"),
    [(1, 127, "sm_80"), (0, 126, "sm_90a"), (128, 254, "sm_80"), (60, 180, "sm_90a")],
)
def test_every_scale_of_mxfp4(low: int, high: int, machine: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """With activations of bfloat16, more than 120 powers of two at once, wherever they lie."""
    monkeypatch.setenv("TILUS_SIMULATOR_TARGET", machine)
    scales = np.arange(low, high + 1, dtype=np.uint8)
    weight = every_pair(float4_e2m1, scales, E8M0, BRAIN)
    assert torch.equal(weight.scale[0, : len(scales)], torch.from_numpy(scales)) == (low == 1)
    check_every_pair(weight, by_definition(weight, scales, E8M0), 16)


@pytest.mark.parametrize(
    ("low", "high", "machine"), [(104, 127, "sm_80"), (110, 133, "sm_90a"), (120, 143, "sm_80")]
)
def test_scales_of_mxfp4_with_float16(
    low: int, high: int, machine: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TILUS_SIMULATOR_TARGET", machine)
    scales = np.arange(low, high + 1, dtype=np.uint8)
    weight = every_pair(float4_e2m1, scales, E8M0, HALF)
    check_every_pair(weight, by_definition(weight, scales, E8M0), 8)


@pytest.mark.parametrize(
    ("dtype", "scale_type", "made", "machine"),
    [
        ("float6_e3m2", E8M0, HALF, "sm_80"), ("float6_e2m3", E8M0, BRAIN, "sm_90a"),
        ("float4_e1m2", E8M0, HALF, "sm_90a"), ("float8_e4m3", E8M0, HALF, "sm_80"),
        ("float8_e4m3", E8M0, BRAIN, "sm_90a"), ("float8_e5m2", E8M0, HALF, "sm_80"), ("int4", E8M0, HALF, "sm_80"),
        ("int4", E8M0, BRAIN, "sm_90a"), ("uint3", E8M0, BRAIN, "sm_80"), ("nf4", E8M0, HALF, "sm_90a"),
        ("float8_e4m3", E4M3, HALF, "sm_90a"), ("float8_e5m2", E4M3, BRAIN, "sm_80"), ("int4", E4M3, HALF, "sm_90a"),
        ("nf4", E4M3, BRAIN, "sm_80"),
    ],
    ids=str,
)  # fmt: skip
def test_other_types(
    dtype: str, scale_type: DType, made: torch.dtype, machine: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Values that are not rounded by their scales; of integers few rows are scaled as sums."""
    monkeypatch.setenv("TILUS_SIMULATOR_TARGET", machine)
    scales = np.array([120, 124, 127, 126] if scale_type == E8M0 else [0x38, 0x30, 0x48, 0x7E], np.uint8)
    weight = every_pair(find(dtype), scales, scale_type, made)
    exact = by_definition(weight, scales, scale_type)
    assert torch.equal(weight.dequantize(), exact)
    for rows in (7, 12, 40):
        a = torch.zeros(rows, weight.shape[0], dtype=made)
        picked = torch.arange(rows) * 2 % 32
        a[torch.arange(rows), picked] = 1
        # A step of the kernel rounds the value, and one the product.
        rounded = exact.to(made).double() if dtype != "nf4" else exact
        slack = exact.abs() * (0.0 if dtype != "nf4" else 4 * torch.finfo(made).eps)
        assert ((quantized_matmul(a, weight).double() - rounded[picked]).abs() <= slack[picked]).all()


@pytest.mark.parametrize("m", [3, 12, 40])
@pytest.mark.parametrize(
    ("dtype", "scale_type", "group", "activations", "zero_point"),
    [
        ("int4", E8M0, 32, torch.int8, False),
        ("uint4", E4M3, 64, torch.int8, True),
        ("float4_e2m1", E8M0, 32, torch.float8_e4m3fn, False),
        ("float8_e4m3", E8M0, 32, torch.float8_e4m3fn, False),
    ],
)
def test_activations_of_8_bits(
    dtype: str, scale_type: DType, group: int, activations: torch.dtype, zero_point: bool, m: int
) -> None:
    torch.manual_seed(m)
    weight = quantize(
        torch.randn(192, 40),
        dtype,
        group,
        zero_point=zero_point,
        scale_dtype=scale_type,
        activations=activations,
    )
    assert weight.scale_type == scale_type
    tokens = quantize_tokens(torch.randn(m, 192).bfloat16(), activations)
    found = quantized_matmul(tokens, weight)
    assert found.dtype == BRAIN
    exact = tokens.dequantize() @ weight.dequantize()
    slack = tokens.dequantize().abs() @ weight.dequantize().abs() * 2.0**-20
    assert ((found.double() - exact).abs() <= exact.abs() * 2.0**-8 + slack).all()
    other = quantize(
        torch.randn(192, 40), dtype, group, scale_dtype=scale_type, activations=activations, out_dtype=HALF
    )
    assert quantized_matmul(tokens, other).dtype == HALF


# What it takes in memory.


def mxfp4(n: int, k: int) -> tuple[torch.Tensor, torch.Tensor]:
    rng = np.random.default_rng(n)
    blocks = torch.from_numpy(rng.integers(0, 256, (n, k // 2)).astype(np.uint8))
    return blocks, torch.from_numpy(rng.integers(110, 130, (n, k // 32)).astype(np.uint8))


def nvfp4(n: int, k: int) -> tuple[torch.Tensor, torch.Tensor]:
    blocks, _ = mxfp4(n, k)
    scales = np.random.default_rng(k).uniform(0.1, 400, (n, k // 16))
    return blocks, torch.from_numpy(scales).to(torch.float8_e4m3fn)


def nibbles(blocks: torch.Tensor) -> np.ndarray:
    codes = np.stack([blocks.numpy() & 15, blocks.numpy() >> 4], axis=-1)
    return decode(codes.reshape(blocks.shape[0], -1), float4_e2m1).astype(np.float64)


@pytest.mark.parametrize("m", [1, 16])
@pytest.mark.parametrize("form", ["mxfp4", "nvfp4"])
def test_a_kernel_reads_what_the_checkpoint_holds(form: str, m: int) -> None:
    """Within 3 percent of its bytes and those of the activations, by the simulator's count."""
    n, k = 896, 512
    blocks, scales = mxfp4(n, k) if form == "mxfp4" else nvfp4(n, k)
    weight = from_mxfp4(blocks, scales) if form == "mxfp4" else from_nvfp4(blocks, scales, 0.5)
    held = blocks.nbytes + scales.nbytes
    assert weight.packed.nbytes + weight.scale.nbytes == held
    assert weight.bits_per_weight * n * k / 8 == held
    rows = torch.randn(m, k).to(weight.result)
    schedule = choose(m, n, k, form_of(weight, rows), target("sm_90a"), 1).schedule
    made = call_of(rows, weight, schedule, target("sm_90a"))
    report = made.kernel.simulate(*made.arguments, target="sm_90a", **made.options)
    report.raise_if_hazards()
    assert held <= report.counters["global_distinct_bytes_read"] <= 1.03 * (held + rows.nbytes)
    assert report.counters["global_bytes_read"] <= 1.03 * (held + -(-n // schedule.block_n) * rows.nbytes)
    assert report.counters["shared_wavefronts"] == report.counters["shared_wavefronts_ideal"]


def test_checkpoints_multiply_by_their_definition() -> None:
    n, k = 72, 256
    blocks, scales = mxfp4(n, k)
    exact = torch.from_numpy(nibbles(blocks) * np.repeat(np.exp2(scales.numpy() - 127.0), 32, axis=1)).t()
    weight = from_mxfp4(blocks, scales)
    assert torch.equal(weight.dequantize(), exact)
    a = torch.randn(5, k).bfloat16()
    check_product(quantized_matmul(a, weight), a.double() @ exact, a @ exact.bfloat16())
    blocks, coarse = nvfp4(n, k)
    exact = torch.from_numpy(nibbles(blocks)) * coarse.double().repeat_interleave(16, 1) * 0.25
    weight = from_nvfp4(blocks, coarse, 0.25)
    assert torch.equal(weight.dequantize(), exact.t())
    a = torch.randn(5, k).half()
    check_product(quantized_matmul(a, weight), a.double() @ exact.t(), a @ exact.t().half())


def test_a_checkpoints_scales_are_widened_on_demand() -> None:
    blocks, scales = mxfp4(32, 64)
    stored = from_mxfp4(blocks, scales, activations=HALF)
    assert (stored.scale.dtype, stored.scale_type, stored.result) == (torch.uint8, E8M0, HALF)
    wide = from_mxfp4(blocks, scales, scale_dtype=HALF)
    assert (wide.scale.dtype, wide.scale_type, wide.result) == (HALF, None, HALF)
    assert torch.equal(stored.dequantize(), wide.dequantize())
    assert wide.bits_per_weight - stored.bits_per_weight == 8 / 32


# Quantising one's own weights.


@pytest.mark.parametrize("scale_dtype", ["float8_e8m0", float8_e4m3], ids=str)
@pytest.mark.parametrize("dtype", ["float4_e2m1", "float6_e2m3", "float8_e4m3", "int5", "uint4", "ternary"])
def test_codes_are_the_nearest_for_the_scales(dtype: str, scale_dtype: object) -> None:
    torch.manual_seed(0)
    original = torch.randn(128, 24) * torch.logspace(-3, 3, 24)
    made = quantize(original, dtype, 32, scale_dtype=scale_dtype, activations=HALF)  # type: ignore[arg-type]
    rows = torch.arange(128) // 32
    scale = torch.from_numpy(made.scales * made.alpha)[rows]
    zero = 0.0 if made.zero is None else made.zero.double()[rows, :24]
    choices = torch.from_numpy(decode(finite_codes(made.dtype, HALF), made.dtype).astype(np.float64))
    best = ((choices[:, None, None] - zero) * scale - original).abs().amin(0)
    assert ((made.dequantize() - original).abs() <= best * (1 + 1e-12)).all()


def test_powers_of_two_cut_nothing_off() -> None:
    torch.manual_seed(0)
    original = torch.randn(256, 40)
    made = quantize(original, "float4_e2m1", 32, scale_dtype=E8M0, activations=HALF)
    largest = original.double().reshape(8, 32, 40).abs().amax(1)
    reached = torch.from_numpy(made.scales * made.alpha) * 6.0
    assert (largest <= reached).all()
    assert (largest > reached / 2).all()


def test_float8_scales_use_their_whole_range() -> None:
    """As NVFP4 is made: a factor in float32 brings the largest scale to 448."""
    torch.manual_seed(0)
    made = quantize(torch.randn(256, 40) * 1e-4, "float4_e2m1", 16, scale_dtype=E4M3, activations=BRAIN)
    assert made.scales.max() == 448.0
    assert made.alpha == float(np.float32(made.alpha))
    exact = quantize(torch.randn(256, 40), "float4_e2m1", 16)
    original = torch.randn(256, 40)
    errors = [
        (quantize(original, "float4_e2m1", 16, scale_dtype=s, activations=HALF).dequantize() - original)
        .square()
        .mean()
        for s in (HALF, E4M3)
    ]
    assert errors[1] < 1.1 * errors[0]
    assert exact.scale.dtype == HALF


def test_far_apart_groups_keep_finite_scales() -> None:
    original = torch.randn(64, 8) * torch.tensor([1e-20] * 32 + [1.0] * 32)[:, None]
    for scale in (E8M0, E4M3):
        made = quantize(original, "float4_e2m1", 32, scale_dtype=scale, activations=HALF)
        assert made.dequantize().isfinite().all()
        assert ((made.dequantize()[32:] - original[32:]).abs() <= 0.5 * original[32:].abs().amax(0)).all()
    zeros = quantize(torch.zeros(32, 8), "float4_e2m1", 32, scale_dtype=E8M0)
    assert (zeros.dequantize() == 0).all()


# Everything that carries a weight carries its scales.


@pytest.mark.parametrize(("scale", "group"), [(E8M0, 32), (E4M3, 16)], ids=str)
@pytest.mark.parametrize("m", [5, 20])
def test_gated_pairs_with_bias(m: int, scale: DType, group: int) -> None:
    torch.manual_seed(m)
    both = torch.randn(192, 80) / 14
    gate, up = (
        quantize(half, "float4_e2m1", group, scale_dtype=scale, activations=HALF)
        for half in both.chunk(2, dim=1)
    )
    if scale == E4M3:
        up = replace(up, alpha=gate.alpha)
    pair = gated_pair(gate, up)
    assert pair.scale_type == scale
    assert torch.equal(pair.dequantize(), torch.cat([gate.dequantize(), up.dequantize()], dim=1))
    a, bias = torch.randn(m, 192).half(), torch.randn(80).half()
    exact = a.double() @ pair.dequantize() + bias.double()
    expected = torch.nn.functional.silu(exact[:, :40]) * exact[:, 40:]
    error = (quantized_matmul(a, pair, bias, "silu").double() - expected).abs()
    assert (error <= 2.0**-8 * expected.abs().clamp_min(0.25)).all()


def test_pairs_with_factors_that_differ_are_refused() -> None:
    gate, up = (quantize(torch.randn(64, 8) * s, "float4_e2m1", 16, scale_dtype=E4M3) for s in (1.0, 1.3))
    with pytest.raises(TypeMismatch, match="do not fit one tensor of float8_e4m3"):
        gated_pair(gate, up)


@pytest.mark.parametrize(("scale", "group"), [(E8M0, 32), (E4M3, 16)], ids=str)
@pytest.mark.parametrize("block", [8, 16])
def test_grouped_products(block: int, scale: DType, group: int) -> None:
    torch.manual_seed(0)
    weights = [
        quantize(torch.randn(160, 72) * s, "float4_e2m1", group, scale_dtype=scale, activations=HALF)
        for s in (1.0, 0.03, 7.0)
    ]
    experts = ops.stack_experts(weights)
    assert (experts.scale.dtype, experts.scale_type, experts.result) == (torch.uint8, scale, HALF)
    ids = torch.tensor([[0], [2], [2], [1], [0], [2]], dtype=torch.int32)
    routing = ops.sort_by_expert(ids, 3, block)
    x = torch.randn(6, 160).half()
    found = ops.grouped_quantized_matmul(ops.gather_rows(x, routing), experts, routing)
    for place, row in enumerate(routing.rows.tolist()):
        if row >= 0:
            weight = weights[int(routing.block_expert[place // block])]
            exact = x[row].double() @ weight.dequantize()
            check_product(found[place], exact, x[row] @ weight.dequantize().half())
    moved = experts.to("meta")
    assert (moved.scale.device.type, moved.scale_type) == ("meta", scale)


def layer() -> QuantizedLinear:
    torch.manual_seed(0)
    linear = torch.nn.Linear(96, 40)
    return QuantizedLinear.from_linear(linear, "float4_e2m1", 32, scale_dtype=E8M0, activations=HALF)


def pickled(x: Any) -> Any:
    """Return what comes back of a pickle."""
    return pickle.loads(pickle.dumps(x))  # noqa: S301  its own bytes


def test_layers_are_saved_and_loaded() -> None:
    made, x = layer(), torch.randn(3, 96).half()
    expected = made(x)
    assert expected.dtype == HALF
    buffer = io.BytesIO()
    torch.save(made.state_dict(), buffer)
    buffer.seek(0)
    state = torch.load(buffer, weights_only=True)
    loaded = QuantizedLinear.from_state_dict(state)
    assert (loaded.scale_type, loaded.out_dtype) == (E8M0, HALF)
    assert torch.equal(loaded(x), expected)
    other = QuantizedLinear(quantize(torch.randn(96, 40), "int8", 96), torch.zeros(40))
    other.load_state_dict(state)
    assert torch.equal(other(x), expected)
    assert torch.equal(pickled(made)(x), expected)
    weight = pickled(made.weight)
    assert torch.equal(weight.dequantize(), made.weight.dequantize())


def test_a_mixture_of_experts() -> None:
    """As NVFP4: each expert's gate and what it multiplies share a factor."""
    generator = torch.Generator().manual_seed(0)
    shapes = ((64, 48), (64, 48), (48, 64))
    kinds = [[torch.randn(s, generator=generator) / s[0] ** 0.5 for _ in range(3)] for s in shapes]
    router = torch.randn(64, 3, generator=generator)
    moe = QuantizedMoE.from_weights(router, *kinds, 1, "float4_e2m1", 16, scale_dtype=E4M3, out_dtype=HALF)
    assert (moe.experts("gate_up").scale_type, moe.router.dtype) == (E4M3, HALF)
    x = torch.randn(5, 64, generator=generator).half()
    found, chosen = moe(x), (x @ moe.router).argmax(1)
    for token, expert in enumerate(chosen.tolist()):
        both = quantize(interleave(kinds[0][expert], kinds[1][expert]), "float4_e2m1", 16, scale_dtype=E4M3)
        gate, up = replace(both, gated=True).dequantize().chunk(2, dim=1)
        inner = torch.nn.functional.silu(x[token].double() @ gate) * (x[token].double() @ up)
        exact = inner @ quantize(kinds[2][expert], "float4_e2m1", 16, scale_dtype=E4M3).dequantize()
        assert (found[token].double() - exact).abs().max() <= 4 * torch.finfo(HALF).eps * exact.abs().max()
    with pytest.raises(ShapeMismatch, match="a multiple of 8 columns"):
        QuantizedMoE.from_weights(router, *[[torch.zeros(64, 12)] * 3] * 3, 1, "float4_e2m1", 16)


def test_layers_keep_their_types_when_a_model_is_converted() -> None:
    made, x = layer(), torch.randn(3, 96)
    expected = made(x.half())
    for convert in (torch.nn.Module.bfloat16, torch.nn.Module.float, torch.nn.Module.half):
        convert(made)
        assert (made.scale.dtype, made.weight.result) == (torch.uint8, HALF)
        assert torch.equal(made(x.half()), expected)


def test_compiled_layers() -> None:
    made, x = layer(), torch.randn(3, 96).half()
    compiled = torch.compile(made, backend="aot_eager", fullgraph=True)
    assert torch.equal(compiled(x), made(x))
    bytes_ = QuantizedLinear(
        quantize(torch.randn(96, 40), "int4", 32, scale_dtype=E8M0, activations=torch.int8, out_dtype=HALF)
    )
    assert torch.equal(torch.compile(bytes_, backend="aot_eager", fullgraph=True)(x), bytes_(x))


def test_the_ops_keep_torchs_rules() -> None:
    weight = quantize(torch.randn(64, 32), "float4_e2m1", 32, scale_dtype=E8M0, activations=HALF)
    arguments = (torch.randn(3, 64).half(), weight.packed, weight.scale, None, "float4_e2m1", 64, 32, 32)
    torch.library.opcheck(
        torch.ops.tilus.quantized_matmul.default, arguments, {"scale_type": "float8_e8m0"},
        test_utils=("test_schema", "test_faketensor"),
    )  # fmt: skip
    weight = quantize(torch.randn(64, 32), "int4", 32, scale_dtype=E8M0, activations=torch.int8)
    tokens = quantize_tokens(torch.randn(3, 64).half())
    torch.library.opcheck(
        torch.ops.tilus.quantized_matmul_bytes.default,
        (tokens.values, tokens.scale, weight.packed, weight.scale, None, "int4", 64, 32, 32),
        {"scale_type": "float8_e8m0", "out_dtype": BRAIN}, test_utils=("test_schema", "test_faketensor"),
    )  # fmt: skip


def test_moving_and_reading_values() -> None:
    weight = quantize(torch.randn(64, 40), "uint4", 32, zero_point=True, scale_dtype=E4M3, activations=BRAIN)
    assert weight.zero is not None
    assert weight.zero.dtype == BRAIN
    assert weight.bits_per_weight == 4 + (8 + 16) / 32
    assert np.array_equal(weight.scales, scale_values(weight.scale[:2, :40], E4M3))
    assert weight.to("meta").scale_type == E4M3
    assert weight.operand == find(BRAIN)
    assert quantize(torch.randn(64, 8), "int4", 32, scale_dtype=E8M0).result == BRAIN


CODES = np.zeros((64, 8), np.uint8)


def far_apart() -> QuantizedWeight:
    scales = torch.tensor([[100] * 8, [127] * 8], dtype=torch.uint8)
    return from_codes(CODES, float4_e2m1, scales, None, 32, scale_type=E8M0, activations=HALF)


def no_room() -> QuantizedWeight:
    scales = torch.full((2, 8), 127, dtype=torch.uint8)
    return from_codes(CODES, find("float8_e6m1"), scales, None, 32, scale_type=E8M0, activations=HALF)


REFUSED = {
    "float16_lacks_the_range": far_apart,
    "float16_has_no_room": no_room,
    "bytes_of_no_type": lambda: from_codes(CODES, int4, torch.ones(2, 8, dtype=torch.uint8), None, 32),
    "bytes_of_another_type": lambda: from_codes(
        CODES, int4, torch.ones(2, 8, dtype=torch.uint8), None, 32, scale_type=float16
    ),
    "scale_of_nan": lambda: from_codes(
        CODES, int4, torch.full((2, 8), 255, dtype=torch.uint8), None, 32, scale_type=E8M0
    ),
    "zero_points_of_another_type": lambda: from_codes(
        CODES, int4, torch.ones(2, 8, dtype=torch.uint8), torch.ones(2, 8).half(), 32, scale_type=E8M0
    ),
    "results_beside_scales_of_16_bits": lambda: quantize(torch.randn(64, 8), "int4", 32, out_dtype=BRAIN),
    "results_of_32_bits": lambda: quantize(
        torch.randn(64, 8), "int4", 32, scale_dtype=E8M0, out_dtype=torch.float32
    ),
    "results_of_other_activations": lambda: quantize(
        torch.randn(64, 8), "int4", 32, scale_dtype=E8M0, activations=HALF, out_dtype=BRAIN
    ),
    "scales_of_another_float8": lambda: quantize(
        torch.randn(64, 8), "int4", 32, scale_dtype=torch.float8_e5m2
    ),
    "activations": lambda: quantized_matmul(
        torch.randn(2, 64).half(), quantize(torch.randn(64, 8), "int4", 32, scale_dtype=E8M0)
    ),
    "block_scales_of_float32": lambda: from_mxfp8(
        torch.zeros(8, 32, dtype=torch.float8_e4m3fn), torch.ones(8, 1)
    ),
    "experts_of_two_kinds": lambda: ops.stack_experts(
        [quantize(torch.randn(64, 8), "int4", 32, scale_dtype=s, activations=HALF) for s in (E8M0, E4M3)]
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refusals(name: str, golden) -> None:
    with pytest.raises(TilusError) as error:
        REFUSED[name]()
    golden(str(error.value), f"{name}.txt")
