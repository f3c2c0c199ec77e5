"""Products that are too small for all multiprocessors are cut along k, with the same result each time."""

from __future__ import annotations

import sys

import pytest
import torch

from tilus.codegen import target
from tilus.dtypes import float16, uint4
from tilus.ops import quantize, quantized_matmul
from tilus.ops.prepack import UNIT_K, UNIT_N
from tilus.ops.quantized_schedule import FEWEST_STAGES, MOST_SPLITS, WeightForm, choose, fits_deep

MODULE = sys.modules["tilus.ops.quantized_matmul"]


@pytest.mark.parametrize(("m", "k", "n"), [(1, 1664, 96), (5, 1600, 320), (17, 3072, 64)])
def test_parts_add_up_to_the_whole(monkeypatch, m, k, n):
    generator = torch.Generator().manual_seed(k)
    weight = quantize(torch.randn(k, n, generator=generator), "uint4", 64, zero_point=True)
    a = torch.randn(m, k, generator=generator).half()
    whole = quantized_matmul(a, weight)
    monkeypatch.setattr(MODULE, "processors", lambda x: 132)
    form = WeightForm(weight.dtype, float16, 64, True)
    chosen = choose(m, n, k, form, target("sm_80"), 132).schedule
    assert chosen.splits > 1 or chosen.blocks
    parts = quantized_matmul(a, weight)
    exact = a.double() @ weight.dequantize()
    plain = (a.float() @ weight.dequantize().half().float()).half().double()
    allowed = 2 * (plain - exact).abs().max()
    assert (parts.double() - exact).abs().max() <= allowed
    assert (whole.double() - exact).abs().max() <= allowed
    assert torch.equal(parts, quantized_matmul(a, weight))


@pytest.mark.parametrize("group", [32, 128, 384, 8192])
def test_no_part_is_empty_and_none_is_a_single_step(group):
    form = WeightForm(uint4, float16, group, True)
    for k in range(128, 20_000, 384):
        for n in (64, 1024, 8192, 57344):
            for m in (1, 16, 64, 4096):
                chosen = choose(m, n, k, form, target("sm_90a"), 132).schedule
                steps = -(-k // (UNIT_K * chosen.deep))
                length = -(-steps // chosen.splits)
                assert 1 <= chosen.splits <= MOST_SPLITS
                assert (chosen.splits - 1) * length < steps
                assert chosen.splits == 1 or length >= FEWEST_STAGES
                assert chosen.deep == 1 or fits_deep(group, k, chosen.deep)
                assert chosen.block_n % (UNIT_N * chosen.warps // chosen.deep) == 0


def test_a_small_weight_keeps_all_multiprocessors_busy():
    """Of 4096 x 4096 each of 132 multiprocessors has a block at least."""
    form = WeightForm(uint4, float16, 128, True)
    for m in (1, 8, 16):
        chosen = choose(m, 4096, 4096, form, target("sm_90a"), 132).schedule
        blocks = chosen.blocks or -(-4096 // chosen.block_n) * chosen.splits
        assert blocks >= 0.9 * 132
