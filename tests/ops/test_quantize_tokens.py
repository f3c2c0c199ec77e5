"""`quantize_tokens`: the nearest number of 8 bits to each activation over its row's, or block's, scale."""

from __future__ import annotations

import pytest
import torch

from tilus.errors import ShapeMismatch, TypeMismatch
from tilus.ops import QuantizedTokens, quantize_tokens
from tilus.ops.tokens import ALIGN, BLOCK

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]
FP8 = torch.float8_e4m3fn
LIMIT = {torch.int8: 127.0, FP8: 448.0}


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("by_block", [False, True], ids=["rows", "blocks"])
@pytest.mark.parametrize("dtype", [torch.int8, FP8], ids=str)
@pytest.mark.parametrize(
    ("source", "m", "k"),
    [(torch.float16, 5, 96), (torch.bfloat16, 17, 1280), (torch.float32, 2, 333)],
    ids=str,
)
def test_values_are_the_nearest_and_the_largest_is_the_types(
    source: torch.dtype, m: int, k: int, dtype: torch.dtype, by_block: bool, device: str
) -> None:
    torch.manual_seed(m)
    x = torch.randn(m, k).to(source)
    x[1] = 0
    made = quantize_tokens(x.to(device), dtype, by_block=by_block)
    values, scale = made.values.cpu(), made.scale.cpu()
    blocks = -(-k // BLOCK) if by_block else 1
    assert scale.shape == (blocks, -(-m // ALIGN) * ALIGN)
    padded = torch.nn.functional.pad(x.double(), (0, blocks * BLOCK - k if by_block else 0))
    largest = padded.reshape(m, blocks, -1).abs().amax(2)
    expected = torch.where(largest > 0, largest / LIMIT[dtype], 1.0)
    torch.testing.assert_close(scale[:, :m].t().double(), expected, rtol=1e-6, atol=0)
    wide = scale[:, :m].t().double().repeat_interleave(BLOCK if by_block else k, dim=1)[:, :k]
    ratio = x.double() / wide
    if dtype == torch.int8:
        assert ((ratio - values.double()).abs() <= 0.5 + 1e-4).all()
    else:
        nearest = ratio.float().to(FP8).double()
        # A ratio that is rounded differently may fall on the other side of a tie.
        assert (values.double() != nearest).double().mean() < 0.01
        assert ((ratio - values.double()).abs() <= (ratio.abs() / 16).clamp_min(2.0**-10) * (1 + 1e-4)).all()
    assert (values[1].double() == 0).all()
    assert values.double().abs().max() == LIMIT[dtype]
    assert torch.equal(made.dequantize().cpu(), values.double() * wide)


def test_any_strides_and_dimensions() -> None:
    torch.manual_seed(0)
    x = torch.randn(3, 40, 4).half().transpose(1, 2)
    made = quantize_tokens(x)
    assert made.values.shape == (12, 40)
    assert torch.equal(made.values, quantize_tokens(x.contiguous()).values)
    assert (made.dequantize().reshape(3, 4, 40) - x.double()).abs().max() < 0.02


def test_no_rows() -> None:
    made = quantize_tokens(torch.empty(0, 64).half())
    assert made.values.shape == (0, 64)
    assert made.scale.shape == (1, 0)


def test_in_a_compiled_function() -> None:
    """The op has a fake of the same shapes and types."""
    from torch._subclasses.fake_tensor import FakeTensorMode

    for by_block in (False, True):
        real = torch.ops.tilus.quantize_tokens(torch.randn(3, 200).half(), FP8, by_block)
        with FakeTensorMode():
            fake = torch.ops.tilus.quantize_tokens(torch.empty(3, 200, dtype=torch.float16), FP8, by_block)
        assert [(x.shape, x.dtype) for x in real] == [(x.shape, x.dtype) for x in fake]


@pytest.mark.parametrize("by_block", [False, True], ids=["rows", "blocks"])
@pytest.mark.parametrize("dtype", [torch.int8, FP8], ids=str)
def test_the_smallest_numbers_become_zeros(dtype: torch.dtype, by_block: bool) -> None:
    """Over a limit they have a scale of zero, and other zeros over that would not be numbers."""
    x = torch.zeros(2, 128)
    x[0, 0] = 1e-44
    made = quantize_tokens(x, dtype, by_block=by_block)
    assert (made.values.double() == 0).all()
    assert (made.scale[0, :2] == 1).all()


@pytest.mark.parametrize("by_block", [False, True], ids=["rows", "blocks"])
@pytest.mark.parametrize("dtype", [torch.int8, FP8], ids=str)
def test_what_has_a_nan_has_a_scale_that_says_so(dtype: torch.dtype, by_block: bool) -> None:
    x = torch.ones(3, 256)
    x[1, 5] = torch.nan
    known = quantize_tokens(x, dtype, by_block=by_block).dequantize().isnan()
    assert known[1, :128].all()
    assert known[1, 128:].all() == (not by_block)
    assert not known[[0, 2]].any()


VALUES, SCALES = torch.zeros(20, 300, dtype=torch.int8), torch.ones(3, 32)


@pytest.mark.parametrize(
    ("values", "scale", "message"),
    [
        (VALUES.half(), SCALES, "values of torch.float16"),
        (VALUES, SCALES.half(), "scales of torch.float16"),
        (VALUES.reshape(4, 5, 300), SCALES, r"shape \(4, 5, 300\), expected \(m, k\)"),
        (VALUES, SCALES[:2], r"\(2, 32\) .* expected \(1, 32\) or \(3, 32\)"),
        (VALUES, SCALES[:, :20], r"\(3, 20\)"),
        (VALUES, torch.ones(32, 3).t(), r"strides \(1, 3\)"),
    ],
    ids=["values", "scales", "dimensions", "blocks", "not filled up", "order"],
)
def test_tokens_are_of_their_types_and_shapes(
    values: torch.Tensor, scale: torch.Tensor, message: str
) -> None:
    QuantizedTokens(VALUES, SCALES)
    QuantizedTokens(VALUES, SCALES[:1])
    with pytest.raises((ShapeMismatch, TypeMismatch), match=message):
        QuantizedTokens(values, scale)


def test_rows_without_elements() -> None:
    assert quantize_tokens(torch.zeros(3, 0)).values.shape == (3, 0)
