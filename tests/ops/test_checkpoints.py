"""Each checkpoint format is packed here by its own definition, element by element, and must come back exactly."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tilus import dtypes
from tilus.dtypes import decode
from tilus.errors import ShapeMismatch, TypeMismatch
from tilus.ops import quantize_tokens, quantized_matmul, stack_experts
from tilus.ops.checkpoints import (
    from_awq,
    from_bitnet,
    from_compressed_tensors,
    from_fp8,
    from_gptq,
    from_hqq,
    from_int8,
    from_mxfp4,
    from_mxfp8,
    from_nf4,
    from_nvfp4,
)


def bit_string(values, bits: int) -> list[int]:
    """Pack numbers into 32-bit words as one little-endian bit string."""
    total = 0
    for place, value in enumerate(values):
        total |= int(value) << (place * bits)
    return [(total >> (32 * w)) & 0xFFFFFFFF for w in range(len(values) * bits // 32)]


def words(rows) -> torch.Tensor:
    return torch.from_numpy(np.array(rows, np.uint32).view(np.int32))


def made(k: int, n: int, groups: int, bits: int, seed: int = 0):
    rng = np.random.default_rng(seed)
    codes = rng.integers(0, 1 << bits, (k, n))
    zeros = rng.integers(1, 1 << bits, (groups, n))
    scales = torch.from_numpy(rng.uniform(0.01, 0.1, (groups, n))).half()
    return codes, zeros, scales


def values_of(codes, zeros, scales, index) -> torch.Tensor:
    return torch.from_numpy((codes - zeros[index]) * scales.double().numpy()[index])


@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_gptq(bits, version):
    k, n, groups = 128, 64, 4
    codes, zeros, scales = made(k, n, groups, bits)
    qweight = words(np.array([bit_string(codes[:, j], bits) for j in range(n)]).T)
    stored = zeros - 1 if version == 1 else zeros
    qzeros = words([bit_string(row, bits) for row in stored])
    found = from_gptq(qweight, qzeros, scales, bits=bits, version=version)
    index = np.arange(k) // (k // groups)
    assert torch.equal(found.dequantize(), values_of(codes, zeros, scales, index))


def test_gptq_with_act_order_multiplies_as_its_unsorted_weight():
    k, n, groups = 256, 64, 4
    codes, zeros, scales = made(k, n, groups, 4)
    index = np.random.default_rng(5).permutation(np.arange(k) // (k // groups))
    qweight = words(np.array([bit_string(codes[:, j], 4) for j in range(n)]).T)
    qzeros = words([bit_string(row, 4) for row in zeros - 1])
    found = from_gptq(qweight, qzeros, scales, torch.from_numpy(index.astype(np.int32)))
    exact = values_of(codes, zeros, scales, index)
    assert found.order is not None
    assert torch.equal(found.dequantize(), exact)
    a = torch.randn(5, k, generator=torch.Generator().manual_seed(0)).half()
    reference = a.double() @ exact
    # Weights are rounded to float16 once and the output once.
    plain = (a.float() @ exact.half().float()).half().double()
    bound = 2 * (plain - reference).abs().max()
    assert (quantized_matmul(a, found).double() - reference).abs().max() <= bound


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_gptq_version_1_stores_a_zero_point_of_0_as_all_ones(bits):
    codes, zeros, scales = made(32, 32, 1, bits)
    zeros[:, ::8] = 0
    qweight = words(np.array([bit_string(codes[:, j], bits) for j in range(32)]).T)
    if bits == 3:
        stored = [bit_string((row - 1) % 8, bits) for row in zeros]
    else:
        # One is taken from each zero point in the word at once, so that 0 borrows from its neighbour.
        ones = bit_string([1] * (32 // bits), bits)[0]
        stored = [[(word - ones) % (1 << 32) for word in bit_string(row, bits)] for row in zeros]
    found = from_gptq(qweight, words(stored), scales, bits=bits)
    assert torch.equal(found.dequantize(), values_of(codes, zeros, scales, np.zeros(32, int)))


def test_gptq_refuses_groups_of_different_sizes():
    codes, zeros, scales = made(128, 32, 2, 4)
    qweight = words(np.array([bit_string(codes[:, j], 4) for j in range(32)]).T)
    qzeros = words([bit_string(row, 4) for row in zeros])
    with pytest.raises(ShapeMismatch, match="g_idx does not put 64 of 128 rows into each of 2 groups"):
        from_gptq(qweight, qzeros, scales, torch.zeros(128, dtype=torch.int32))


def test_awq():
    k, n, groups = 128, 64, 2
    codes, zeros, scales = made(k, n, groups, 4)
    order = (0, 2, 4, 6, 1, 3, 5, 7)

    def pack(row):
        return [sum(int(row[8 * w + order[p]]) << (4 * p) for p in range(8)) for w in range(n // 8)]

    found = from_awq(words([pack(r) for r in codes]), words([pack(r) for r in zeros]), scales)
    assert torch.equal(found.dequantize(), values_of(codes, zeros, scales, np.arange(k) // 64))


@pytest.mark.parametrize("bits", range(1, 9))
@pytest.mark.parametrize("asymmetric", [False, True])
def test_compressed_tensors(bits, asymmetric):
    k, n, groups = 64, 32, 2
    codes, zeros, scales = made(k, n, groups, bits)
    if not asymmetric:
        zeros = np.full_like(zeros, 1 << (bits - 1))
    packed = words([bit_string(codes[:, j], bits) for j in range(n)])
    points = words(np.array([bit_string(row, bits) for row in zeros]).T) if asymmetric else None
    found = from_compressed_tensors(packed, scales.t().contiguous(), points, bits=bits)
    assert torch.equal(found.dequantize(), values_of(codes, zeros, scales, np.arange(k) // 32))


def test_compressed_tensors_that_do_not_fill_their_words():
    n, k = 20, 48
    codes, zeros, scales = made(k, n, 3, 6)
    filled = np.zeros((64, n), int)
    filled[:k] = codes
    packed = words([bit_string(filled[:, j], 6)[: k * 6 // 32] for j in range(n)])
    points = np.zeros((32, 3), int)
    points[:n] = zeros.T
    stored = words(np.array([bit_string(points[:, g], 6)[:4] for g in range(3)]).T)
    shape = torch.tensor([n, k])
    found = from_compressed_tensors(packed, scales.t().contiguous(), stored, bits=6, shape=shape)
    assert torch.equal(found.dequantize(), values_of(codes, zeros, scales, np.arange(k) // 16))


def test_compressed_tensors_with_an_order():
    k, n, groups = 64, 32, 4
    codes, zeros, scales = made(k, n, groups, 4)
    index = np.random.default_rng(5).permutation(np.arange(k) // 16)
    packed = words([bit_string(codes[:, j], 4) for j in range(n)])
    points = words(np.array([bit_string(row, 4) for row in zeros]).T)
    given = packed, scales.t().contiguous(), points
    found = from_compressed_tensors(*given, torch.from_numpy(index.astype(np.int32)))
    assert torch.equal(found.dequantize(), values_of(codes, zeros, scales, index))
    # So the format stores that there is none.
    found = from_compressed_tensors(*given, torch.full((k,), -1, dtype=torch.int32))
    assert found.order is None
    assert torch.equal(found.dequantize(), values_of(codes, zeros, scales, np.arange(k) // 16))
    with pytest.raises(ShapeMismatch, match="weight_g_idx does not put 16 of 64 rows into each of 4 groups"):
        from_compressed_tensors(*given, torch.zeros(k, dtype=torch.int32))


@pytest.mark.parametrize("activations", [None, torch.int8])
@pytest.mark.parametrize("shape", [(), (1,), (32,), (32, 1), (32, 4)])
def test_integers_of_8_bits(shape, activations):
    rng = np.random.default_rng(0)
    weight = torch.from_numpy(rng.integers(-128, 128, (32, 128)).astype(np.int8))
    scale = torch.from_numpy(np.asarray(2.0 ** rng.integers(-6, 1, shape))).bfloat16()
    found = from_int8(weight, scale, activations=activations)
    wide = scale.double().reshape(-1, scale.shape[-1] if scale.ndim == 2 else 1)
    exact = weight.double() * wide.repeat_interleave(128 // wide.shape[1], 1)
    assert torch.equal(found.dequantize(), exact.t())


@pytest.mark.parametrize("activations", [None, torch.int8])
@pytest.mark.parametrize("shape", [(1,), (32, 1), (32, 4)])
def test_integers_of_8_bits_with_zero_points(shape, activations):
    rng = np.random.default_rng(0)
    weight = torch.from_numpy(rng.integers(-128, 128, (32, 128)).astype(np.int8))
    scale = torch.from_numpy(2.0 ** rng.integers(-6, 1, shape)).bfloat16()
    zero = torch.from_numpy(rng.integers(-128, 128, shape).astype(np.int8))
    found = from_int8(weight, scale, zero, activations=activations)
    wide, points = (x.double().reshape(-1, shape[-1]) for x in (scale, zero))
    wide, points = (x.repeat_interleave(128 // x.shape[1], 1) for x in (wide, points))
    assert torch.equal(found.dequantize(), ((weight.double() - points) * wide).t())
    # One that takes nothing off is as good as none.
    assert from_int8(weight, scale, torch.zeros_like(zero)).zero is None
    with pytest.raises(ShapeMismatch, match=r"expected torch.int8 of the scale's shape"):
        from_int8(weight, scale, zero.short())


@pytest.mark.parametrize("bits", [1, 2, 3, 4, 8])
def test_hqq(bits):
    n, k, group = 12, 64, 32
    rng = np.random.default_rng(0)
    codes = rng.integers(0, 1 << bits, (n * k // group, group))
    scale = torch.from_numpy(2.0 ** rng.integers(-6, 1, (len(codes), 1))).half()
    zero = torch.from_numpy(rng.uniform(0, 1 << bits, (len(codes), 1))).half()
    parts = 10 if bits == 3 else 8 // bits
    rows = -(-len(codes) // parts)
    filled = np.zeros((rows * parts, group), int)
    filled[: len(codes)] = codes
    packed = np.zeros((rows, group), np.int32 if bits == 3 else np.uint8)
    for part in range(parts):
        packed |= (filled[part * rows : (part + 1) * rows] << bits * (parts - 1 - part)).astype(packed.dtype)
    found = from_hqq(torch.from_numpy(packed), scale, zero, (n, k), bits=bits, group_size=group)
    exact = (torch.from_numpy(codes) - zero.double()) * scale.double()
    assert torch.equal(found.dequantize(), exact.reshape(n, k).t())
    a = torch.randn(3, k, generator=torch.Generator().manual_seed(0)).half()
    reference = a.double() @ found.dequantize()
    plain = (a.float() @ found.dequantize().half().float()).half().double()
    # Differences of codes and zero points are rounded too, which have no fewer bits than the weight.
    assert (quantized_matmul(a, found).double() - reference).abs().max() <= 4 * (
        plain - reference
    ).abs().max()


def test_fp8_with_one_scale_is_exact():
    weight = torch.randn(48, 128, generator=torch.Generator().manual_seed(0)).to(torch.float8_e4m3fn)
    found = from_fp8(weight, torch.tensor(0.0371))
    assert torch.equal(found.dequantize(), weight.double().t() * float(torch.tensor(0.0371)))


def test_fp8_with_channel_scales_rounds_them_once():
    weight = torch.randn(48, 128, generator=torch.Generator().manual_seed(0)).to(torch.float8_e5m2)
    scale = torch.rand(48, 1, generator=torch.Generator().manual_seed(1)) * 1e-3
    found = from_fp8(weight, scale, scale_dtype=torch.float16)
    exact = weight.double().t() * scale.double().t()
    assert torch.all((found.dequantize() - exact).abs() <= exact.abs() * 2.0**-11)


def test_fp8_with_blocks_of_128():
    weight = torch.randn(200, 256, generator=torch.Generator().manual_seed(0)).to(torch.float8_e4m3fn)
    scale = torch.tensor([[0.5, 0.25], [2.0, 0.125]])
    found = from_fp8(weight, scale)
    assert found.group_size == 128
    exact = weight.double() * scale.double().repeat_interleave(128, 0)[:200].repeat_interleave(128, 1)
    assert torch.equal(found.dequantize(), exact.t())


def test_mxfp4():
    rng = np.random.default_rng(0)
    n, k = 32, 128
    codes = rng.integers(0, 16, (n, k))
    scales = rng.integers(110, 130, (n, k // 32)).astype(np.uint8)
    packed = torch.from_numpy((codes[:, ::2] | codes[:, 1::2] << 4).astype(np.uint8))
    found = from_mxfp4(packed, torch.from_numpy(scales))
    exact = decode(codes.astype(np.uint8), dtypes.float4_e2m1) * np.repeat(
        2.0 ** (scales.astype(float) - 127), 32, axis=1
    )
    assert torch.equal(found.dequantize(), torch.from_numpy(exact.T))
    assert torch.equal(
        from_mxfp4(packed.reshape(n, k // 32, 16), torch.from_numpy(scales)).packed, found.packed
    )


def test_mxfp4_of_many_experts_is_imported_one_by_one():
    rng = np.random.default_rng(0)
    blocks = torch.from_numpy(rng.integers(0, 256, (3, 32, 2, 16)).astype(np.uint8))
    scales = torch.from_numpy(rng.integers(118, 125, (3, 32, 2)).astype(np.uint8))
    with pytest.raises(ShapeMismatch, match=r"are those of 3 experts, expected one\n.*stack_experts"):
        from_mxfp4(blocks, scales)
    stacked = stack_experts([from_mxfp4(b, s) for b, s in zip(blocks, scales)])
    assert stacked.shape == (3, 64, 32)


def test_mxfp4_scales_that_float16_cannot_hold_are_refused():
    packed = torch.zeros((32, 64), dtype=torch.uint8)
    scales = torch.tensor([[0, 254, 127, 127]] * 32, dtype=torch.uint8)
    with pytest.raises(TypeMismatch, match=r"do not fit torch\.float16"):
        from_mxfp4(packed, scales, scale_dtype=torch.float16)


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float8_e5m2])
def test_mxfp8(dtype):
    rng = np.random.default_rng(0)
    n, k = 32, 128
    values = torch.from_numpy(rng.standard_normal((n, k))).to(dtype)
    scales = rng.integers(100, 150, (n, k // 32)).astype(np.uint8)
    found = from_mxfp8(values, torch.from_numpy(scales))
    exact = values.double() * torch.from_numpy(np.repeat(2.0 ** (scales.astype(float) - 127), 32, axis=1))
    assert torch.equal(found.dequantize(), exact.T)
    with pytest.raises(ShapeMismatch):
        from_mxfp8(values, torch.from_numpy(scales[:, :3]))
    with pytest.raises(TypeMismatch):
        from_mxfp8(values.float(), torch.from_numpy(scales))


def test_deepseek_blocks_multiply_activations_in_blocks():
    """Weights in blocks of 128 x 128 and activations in blocks of 1 x 128, both of float8."""
    rng = np.random.default_rng(0)
    n, k = 160, 256
    values = torch.from_numpy(rng.standard_normal((n, k))).to(torch.float8_e4m3fn)
    scale = torch.from_numpy(rng.uniform(0.01, 0.1, (2, 2))).float()
    weight = from_fp8(values, scale, activations=torch.float8_e4m3fn)
    a = torch.randn(3, k, generator=torch.Generator().manual_seed(0)).bfloat16()
    a[:, 128:] *= 100
    tokens = quantize_tokens(a, torch.float8_e4m3fn, by_block=True)
    exact = tokens.dequantize() @ weight.dequantize()
    found = quantized_matmul(tokens, weight).double()
    assert (found - exact).abs().max() <= 2.0**-8 * exact.abs().max()


def test_bitnet_multiplies_integers():
    rng = np.random.default_rng(0)
    values = rng.integers(-1, 2, (64, 128))
    packed = np.zeros((16, 128), np.uint8)
    for i in range(4):
        packed |= ((values[i * 16 : (i + 1) * 16] + 1) << (2 * i)).astype(np.uint8)
    weight = from_bitnet(torch.from_numpy(packed), 0.5, scale_dtype=torch.float16, activations=torch.int8)
    a = torch.from_numpy(rng.integers(-7, 8, (3, 128))).half()
    a[:, 0] = 127  # so that activations stay what they are
    exact = a.double() @ torch.from_numpy(values.T * 0.5)
    assert torch.equal(quantized_matmul(a, weight).double(), exact)


def test_nvfp4():
    rng = np.random.default_rng(0)
    n, k = 32, 128
    codes = rng.integers(0, 16, (n, k))
    scales = torch.from_numpy(rng.uniform(0.1, 400, (n, k // 16))).to(torch.float8_e4m3fn)
    packed = torch.from_numpy((codes[:, ::2] | codes[:, 1::2] << 4).astype(np.uint8))
    found = from_nvfp4(packed, scales, 0.0123)
    block = np.repeat(scales.double().numpy(), 16, axis=1)
    exact = decode(codes.astype(np.uint8), dtypes.float4_e2m1) * block * 0.0123
    torch.testing.assert_close(found.dequantize(), torch.from_numpy(exact.T), rtol=1e-15, atol=0)


def test_nf4_takes_the_first_element_from_the_high_nibble():
    rng = np.random.default_rng(0)
    n, k = 32, 128
    codes = rng.integers(0, 16, (n, k))
    absmax = torch.from_numpy(2.0 ** rng.integers(-6, 1, (n * k // 64,))).float()
    packed = torch.from_numpy((codes[:, ::2] << 4 | codes[:, 1::2]).astype(np.uint8)).reshape(-1, 1)
    found = from_nf4(packed, absmax, (n, k))
    exact = decode(codes.astype(np.uint8), dtypes.nf4).reshape(-1, 64) * absmax.double().numpy()[:, None]
    assert torch.equal(found.dequantize(), torch.from_numpy(exact.reshape(n, k).T))
    a = torch.randn(3, k, generator=torch.Generator().manual_seed(0)).bfloat16()
    reference = a.double() @ found.dequantize()
    plain = (a.float() @ found.dequantize().bfloat16().float()).bfloat16().double()
    bound = 2 * (plain - reference).abs().max()
    assert (quantized_matmul(a, found).double() - reference).abs().max() <= bound


def test_bitnet():
    rng = np.random.default_rng(0)
    n, k = 64, 128
    values = rng.integers(-1, 2, (n, k))
    packed = np.zeros((n // 4, k), np.uint8)
    for channel in range(n):
        packed[channel % (n // 4)] |= ((values[channel] + 1) << (2 * (channel // (n // 4)))).astype(np.uint8)
    found = from_bitnet(torch.from_numpy(packed), 0.75)
    assert torch.equal(found.dequantize(), torch.from_numpy(values.T * 0.75))
    with pytest.raises(TypeMismatch, match="no value"):
        from_bitnet(torch.from_numpy(packed | 3), 1.0)


def zeros(*shape, dtype=torch.int32) -> torch.Tensor:
    return torch.zeros(shape, dtype=dtype)


HALF, BYTE = torch.float16, torch.uint8
MISREAD = {
    "gptq with words of 64 bits": lambda: from_gptq(
        zeros(4, 8, dtype=torch.int64), zeros(1, 1), zeros(1, 8, dtype=HALF)
    ),
    "gptq without groups": lambda: from_gptq(zeros(4, 8), zeros(0, 1), zeros(0, 8, dtype=HALF)),
    "gptq with half a word of zero points": lambda: from_gptq(
        zeros(3, 8), zeros(1, 0), zeros(1, 8, dtype=HALF), bits=3
    ),
    "gptq with a negative group": lambda: from_gptq(
        zeros(4, 8), zeros(1, 1), zeros(1, 8, dtype=HALF), torch.full((32,), -1)
    ),
    "awq with words of 64 bits": lambda: from_awq(
        zeros(32, 8, dtype=torch.int64), zeros(1, 8), zeros(1, 64, dtype=HALF)
    ),
    "compressed tensors with zero points of other columns": lambda: from_compressed_tensors(
        zeros(8, 4), zeros(8, 1, dtype=HALF), zeros(3, 1)
    ),
    "compressed tensors with too few words": lambda: from_compressed_tensors(
        zeros(8, 4), zeros(8, 1, dtype=HALF), shape=(8, 64)
    ),
    "compressed tensors of other rows": lambda: from_compressed_tensors(
        zeros(8, 4), zeros(8, 1, dtype=HALF), shape=(16, 32)
    ),
    "compressed tensors without groups": lambda: from_compressed_tensors(
        zeros(8, 4), zeros(8, 0, dtype=HALF)
    ),
    "fp8 as a vector": lambda: from_fp8(zeros(8, dtype=torch.float8_e4m3fn), torch.ones(())),
    "fp8 with a scale of NaN": lambda: from_fp8(
        zeros(8, 32, dtype=torch.float8_e4m3fn), torch.full((8,), float("nan"))
    ),
    "fp8 without scales": lambda: from_fp8(zeros(8, 32, dtype=torch.float8_e4m3fn), torch.ones(1, 0)),
    "mxfp4 in words": lambda: from_mxfp4(zeros(8, 32), zeros(8, 2, dtype=BYTE)),
    "nvfp4 with an infinite factor": lambda: from_nvfp4(
        zeros(8, 32, dtype=BYTE), zeros(8, 4, dtype=torch.float8_e4m3fn), float("inf")
    ),
    "nf4 in words": lambda: from_nf4(zeros(256), torch.ones(8), (8, 64)),
    "nf4 in blocks of nothing": lambda: from_nf4(
        zeros(256, dtype=BYTE), torch.ones(8), (8, 64), block_size=0
    ),
    "hqq in words": lambda: from_hqq(zeros(8, 64), torch.ones(8, 1), torch.ones(8, 1), (8, 64)),
    "hqq along the outputs": lambda: from_hqq(
        zeros(32, 8, dtype=BYTE), torch.ones(1, 8), torch.ones(1, 8), (8, 64)
    ),
    "hqq with too few zero points": lambda: from_hqq(
        zeros(4, 64, dtype=BYTE), torch.ones(8, 1), torch.ones(4, 1), (8, 64)
    ),
    "int8 of unsigned": lambda: from_int8(zeros(8, 32, dtype=BYTE), torch.ones(1)),
    "int8 as a vector": lambda: from_int8(zeros(8, dtype=torch.int8), torch.ones(1)),
    "compressed tensors of a shape with three sizes": lambda: from_compressed_tensors(
        zeros(8, 4), zeros(8, 1, dtype=HALF), shape=torch.tensor([1, 8, 32])
    ),
    "bitnet in words": lambda: from_bitnet(zeros(8, 32), 1.0),
}


@pytest.mark.parametrize("name", MISREAD)
def test_tensors_that_would_be_misread_are_refused(name):
    with pytest.raises((ShapeMismatch, TypeMismatch)):
        MISREAD[name]()
