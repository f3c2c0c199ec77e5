"""Casts to narrow types that round at random: as NumPy does with the same bits, and right on average."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import tilus
from tilus import Tensor, constexpr, float32, int32, uint32
from tilus.dtypes import DType, decode, encode, unpack
from tilus.dtypes import dtype as find
from tilus.errors import TilusError
from tilus.ir.numerics import cast_at_random
from tilus.layout import RegisterLayout, local, spatial

NAMES = (
    "uint1",
    "int2",
    "uint3",
    "int4",
    "uint5",
    "int8",
    "uint8",
    "e2m1",
    "e3m2",
    "e4m3",
    "e5m2",
    "e1m1",
    "e5m0",
)


@tilus.kernel
def cast_kernel(
    x: Tensor["source", "n"],
    bits: Tensor[uint32, "n"],
    codes: Tensor[tilus.uint8, "bytes"],
    *,
    source: constexpr,
    dtype: constexpr,
    size: constexpr,
):
    tilus.grid(1, warps=1)
    made = tilus.cast(tilus.load(x, 0, size), dtype, random=tilus.load(bits, 0, size))
    made = tilus.annotate_layout(made, in_runs(size))
    count = size * dtype.bits // 8
    tilus.store(codes, tilus.view(made, tilus.uint8, (count,), layout=in_runs(count)), 0)


def in_runs(size: int) -> RegisterLayout:
    """Return the layout in which each thread of a warp has neighbouring elements."""
    return spatial(32) * local(size // 32)


def run(
    values: np.ndarray, bits: np.ndarray, dtype: DType, source: torch.dtype = torch.float32
) -> np.ndarray:
    size = values.size
    codes = torch.empty(size * dtype.bits // 8, dtype=torch.uint8)
    cast_kernel(
        torch.from_numpy(values).to(source), torch.from_numpy(bits.view(np.int32)).view(torch.uint32), codes,
        source=find(source), dtype=dtype, size=size,
    )  # fmt: skip
    return unpack(codes.numpy(), dtype, size)


def samples(dtype: DType, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Return values within and beyond the type's range, some of them its own, and random bits with both ends."""
    rng = np.random.default_rng(dtype.bits)
    top = float(dtype.max)
    values = (rng.standard_normal(size) * top / 2).astype(np.float32)
    values[: size // 4] *= np.float32(0.01)
    own = decode(rng.integers(0, 1 << dtype.bits, size // 8), dtype).astype(np.float32)
    values[-own.size :] = np.nan_to_num(own, nan=0, posinf=0, neginf=0)
    values[:4] = np.nan, np.inf, -np.inf, -0.0
    bits = rng.integers(0, 2**32, size, dtype=np.uint64).astype(np.uint32)
    bits[4:8] = 0, 2**32 - 1, 0, 2**32 - 1
    return values, bits


@pytest.mark.parametrize("name", NAMES)
def test_the_code_is_the_one_that_the_random_bits_ask_for(name: str) -> None:
    dtype = find(name)
    values, bits = samples(dtype, 512)
    expected = np.asarray(cast_at_random(values, find("float32"), dtype, bits))
    assert np.array_equal(run(values, bits, dtype), expected.view(np.uint8) & dtype.code_mask)


@pytest.mark.parametrize("name", ["int4", "uint3", "e3m2"])
def test_a_number_of_the_type_stays_what_it_is(name: str) -> None:
    dtype = find(name)
    codes = np.arange(512) % (1 << dtype.bits)
    values = decode(codes, dtype).astype(np.float32)
    bits = np.random.default_rng(0).integers(0, 2**32, 512, dtype=np.uint64).astype(np.uint32)
    found = decode(run(values, bits, dtype), dtype)
    assert np.array_equal(found, values)


@pytest.mark.parametrize("source", [torch.float16, torch.bfloat16])
def test_sixteen_bits_are_a_source_too(source: torch.dtype) -> None:
    dtype = find("int4")
    values, bits = samples(dtype, 512)
    values = torch.from_numpy(values).to(source).float().numpy()
    expected = np.asarray(cast_at_random(values, find("float32"), dtype, bits))
    assert np.array_equal(run(values, bits, dtype, source), expected.view(np.uint8) & dtype.code_mask)


@pytest.mark.parametrize(
    ("name", "value"), [("int4", 2.3), ("int8", -7.75), ("e2m1", 2.3), ("e4m3", -0.0183), ("uint2", 0.1)]
)
def test_rounding_is_right_on_average(name: str, value: float) -> None:
    """The mean of 2**14 casts is off by at most 5 standard deviations; rounding to nearest would be off by far more."""
    dtype = find(name)
    count = 1 << 14
    bits = np.random.default_rng(1).integers(0, 2**32, count, dtype=np.uint64).astype(np.uint32)
    values = np.full(count, value, np.float32)
    found = decode(run(values, bits, dtype), dtype).astype(np.float64)
    ends = np.unique(found)
    assert ends.size == 2
    assert ends[0] < value < ends[1]
    spread = (ends[1] - ends[0]) / 2 / count**0.5
    assert abs(found.mean() - value) <= 5 * spread
    nearest = float(decode(encode(np.array([value]), dtype), dtype)[0])
    assert abs(nearest - value) > 5 * spread


@tilus.kernel
def seeded(x: Tensor[float32, "n"], out: Tensor[tilus.int8, "n"], seed: int32):
    tilus.grid(tilus.cdiv(x.shape[0], 256), warps=2)
    start = tilus.block_id() * 256
    bits = tilus.randint(seed, start + tilus.arange(256))
    tilus.store(out, tilus.cast(tilus.load(x, start, 256), tilus.int8, random=bits), start)


def test_random_bits_of_a_seed() -> None:
    x = torch.full((1024,), 0.25)
    made = [torch.empty(1024, dtype=torch.int8) for _ in range(3)]
    for out, seed in zip(made, (1, 1, 2), strict=True):
        seeded(x, out, seed)
    assert torch.equal(made[0], made[1])
    assert not torch.equal(made[0], made[2])
    assert 180 < int(made[0].sum()) < 332


@tilus.kernel
def refused(
    x: Tensor["source", "n"],
    out: Tensor["dtype", "n"],
    *,
    source: constexpr,
    dtype: constexpr,
    wide: constexpr,
):
    tilus.grid(1, warps=1)
    bits = tilus.arange(64 if wide else 32, dtype=uint32)
    tilus.store(out, tilus.cast(tilus.load(x, 0, 32), dtype, random=bits), 0)


@pytest.mark.parametrize(
    ("source", "dtype", "wide"),
    [
        (torch.int32, torch.int8, False),
        (torch.float32, torch.float16, False),
        (torch.float32, torch.int8, True),
    ],
)
def test_refusals(source: torch.dtype, dtype: torch.dtype, wide: bool) -> None:
    with pytest.raises(TilusError, match=r"random (bits of its shape|is from)"):
        refused(
            torch.zeros(32, dtype=source),
            torch.zeros(32, dtype=dtype),
            source=find(source),
            dtype=find(dtype),
            wide=wide,
        )
