"""Products that are too small for all multiprocessors are cut along k, with the same result each time."""

from __future__ import annotations

import sys

import pytest
import torch

from tilus.ops import quantize, quantized_matmul

MODULE = sys.modules["tilus.ops.quantized_matmul"]


@pytest.mark.parametrize(("m", "k", "n"), [(1, 1664, 96), (5, 1600, 320), (17, 3072, 64)])
def test_parts_add_up_to_the_whole(monkeypatch, m, k, n):
    generator = torch.Generator().manual_seed(k)
    weight = quantize(torch.randn(k, n, generator=generator), "uint4", 64, zero_point=True)
    a = torch.randn(m, k, generator=generator).half()
    whole = quantized_matmul(a, weight)
    monkeypatch.setattr(MODULE, "processors", lambda x: 132)
    assert MODULE.split_count(m, n, k, MODULE.schedule(m), 132) > 1
    parts = quantized_matmul(a, weight)
    exact = a.double() @ weight.dequantize()
    plain = (a.float() @ weight.dequantize().half().float()).half().double()
    allowed = 2 * (plain - exact).abs().max()
    assert (parts.double() - exact).abs().max() <= allowed
    assert (whole.double() - exact).abs().max() <= allowed
    assert torch.equal(parts, quantized_matmul(a, weight))


def test_no_part_is_empty_and_none_is_shorter_than_its_pipeline():
    for k in range(128, 20_000, 128):
        for n in (64, 1024, 8192, 57344):
            for m in (1, 16, 64, 4096):
                chosen = MODULE.schedule(m)
                splits = MODULE.split_count(m, n, k, chosen, 132)
                steps = -(-k // MODULE.BLOCK_K)
                length = -(-steps // splits)
                assert 1 <= splits <= MODULE.MOST_SPLITS
                assert (splits - 1) * length < steps
                assert splits == 1 or length >= chosen["stages"]
