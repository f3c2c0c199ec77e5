"""Packing, unpacking and quantising by kernels: what NumPy makes of the same codes, and of the same weights."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tilus.codegen.casts import stored_arrangement
from tilus.dtypes import DType, decode, table_type
from tilus.dtypes import dtype as find
from tilus.errors import TypeMismatch
from tilus.ops import quantize
from tilus.ops.packing import pack_codes, quantize_codes, unpack_codes
from tilus.ops.packing_kernel import moves
from tilus.ops.prepack import pack_weight, unpack_weight

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]
# One of each kind of arrangement: none, whole elements, parts of elements, inverted bits; of 16 and of 8 bits.
PAIRS = [
    ("uint1", "uint8"), ("int2", "float16"), ("uint3", "bfloat16"), ("int4", "bfloat16"), ("uint5", "float16"),
    ("float6_e3m2", "float8_e4m3"), ("int7", "int8"), ("int8", "float16"), ("float8_e4m3", "float16"), ("nf4", "float16"),
]  # fmt: skip


def random_codes(dtype: DType, k: int, n: int) -> np.ndarray:
    return np.random.default_rng(k + n).integers(0, 1 << dtype.bits, (k, n)).astype(np.uint8)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(("name", "operand"), PAIRS)
def test_packing_and_unpacking_are_numpys(name: str, operand: str, device: str) -> None:
    dtype, dest = find(name), find(operand)
    for k, n in ((130, 45), (5, 161)):
        codes = random_codes(dtype, k, n)
        packed = pack_weight(codes, dtype, dest)
        assert np.array_equal(
            pack_codes(torch.from_numpy(codes).to(device), dtype, dest).cpu().numpy(), packed
        )
        found = unpack_codes(torch.from_numpy(packed).to(device), dtype, k, n, dest)
        assert np.array_equal(found.cpu().numpy(), codes)


@pytest.mark.parametrize("bits", range(1, 9))
@pytest.mark.parametrize("kind", ["int", "uint"])
def test_moves_store_what_the_arrangement_stores(kind: str, bits: int) -> None:
    """Of every integer type, and for every operand: words moved as the kernel moves them."""
    dtype = find(f"{kind}{bits}")
    for operand in ("float16", "bfloat16", "int8", "uint8", "float8_e4m3"):
        arrangement = stored_arrangement(dtype, find(operand))
        if arrangement is None:
            assert moves(dtype, find(operand), True) == (((), 0),)
            continue
        natural = np.random.default_rng(bits).integers(0, 2**32, (8, arrangement.words), dtype=np.uint64)
        natural = natural.astype(np.uint32)
        stored = arrangement.store(natural)
        made = apply(moves(dtype, find(operand), True), natural)
        assert np.array_equal(made, stored)
        back = apply(moves(dtype, find(operand), False), stored ^ np.asarray(arrangement.flip, np.uint32))
        assert np.array_equal(back, natural)


def apply(steps: tuple, words: np.ndarray) -> np.ndarray:
    made = np.zeros_like(words)
    for j, (parts, flip) in enumerate(steps):
        for word, shift, mask in parts:
            bits = words[:, word] & np.uint32(mask)
            made[:, j] |= bits >> np.uint32(shift) if shift >= 0 else bits << np.uint32(-shift)
        made[:, j] ^= np.uint32(flip)
    return made


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(
    ("name", "group", "zero", "operand"),
    [("uint4", 32, True, "float16"), ("int3", 128, False, "bfloat16"), ("e3m2", 64, False, "float16"),
     ("nf4", 256, False, "float16"), ("uint8", 16, True, "float16"), ("int5", 256, False, "int8")],
)  # fmt: skip
def test_codes_are_the_nearest_there_are(
    name: str, group: int, zero: bool, operand: str, device: str
) -> None:
    k, n = 256, 45
    dtype = find(name)
    rng = np.random.default_rng(0)
    weight = rng.standard_normal((k, n)).astype(np.float32)
    scale = rng.uniform(0.05, 1.0, (k // group, n)).astype(np.float32)
    shift = rng.integers(0, 1 << dtype.bits, scale.shape).astype(np.float32) if zero else None
    packed = quantize_codes(
        torch.from_numpy(weight).to(device), torch.from_numpy(scale).to(device),
        None if shift is None else torch.from_numpy(shift).to(device), dtype, group, find(operand),
    )  # fmt: skip
    found = decode(unpack_weight(packed.cpu().numpy(), dtype, k, n, find(operand)), dtype).astype(np.float64)
    rows = np.arange(k) // group
    wanted = weight.astype(np.float64) / scale[rows] + (0 if shift is None else shift[rows])
    values = decode(np.arange(1 << dtype.bits), dtype).astype(np.float64)
    best = np.abs(values[:, None, None] - wanted).min(0)
    assert (np.abs(found - wanted) <= best + 1e-5 * np.abs(wanted).clip(1)).all()
    assert np.unique(found).size > min(3, values.size - 1)


@pytest.mark.parametrize("name", ["uint3", "int4", "e2m1"])
def test_quantising_at_random_is_right_on_average(name: str) -> None:
    """The mean of many seeds is nearer to the weight than rounding to nearest, and one seed gives one result."""
    weight = torch.randn(64, 64, generator=torch.Generator().manual_seed(0))
    found = [quantize(weight, name, 32, seed=seed).dequantize() for seed in range(6)]
    again = quantize(weight, name, 32, seed=3).dequantize()
    assert torch.equal(again, found[3])
    assert not torch.equal(found[0], found[1])
    nearest = quantize(weight, name, 32).dequantize()
    steps = torch.stack(found)
    assert (steps.mean(0) - weight).square().mean() < 0.4 * (nearest - weight).square().mean()
    # Each is one of the two neighbours.
    assert ((steps - weight).abs().amax(0) <= 4.1 * (nearest - weight).abs().amax()).all()


@pytest.mark.gpu
def test_quantising_on_the_gpu_is_quantising() -> None:
    weight = torch.randn(256, 80)
    for name, zero_point in (("uint4", True), ("float6_e3m2", False)):
        here = quantize(weight, name, 64, zero_point=zero_point)
        there = quantize(weight.cuda(), name, 64, zero_point=zero_point)
        assert there.packed.is_cuda
        assert torch.equal(here.scale, there.scale.cpu())
        differ = (here.dequantize() - there.dequantize()).abs() > 1e-6
        assert differ.double().mean() < 1e-3


def test_a_table_is_not_rounded_to_at_random() -> None:
    with pytest.raises(TypeMismatch, match="not rounded to at random"):
        quantize(torch.randn(32, 8), table_type([-1.0, 0.0, 0.5, 1.0]), 32, seed=1)
