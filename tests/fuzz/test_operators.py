"""Random calls of the library's ops give what float64 gives, or refuse in a sentence; mistakes in kernels are found."""

from __future__ import annotations

import pytest
import torch

from tests.fuzz.bounds import Near, exactly, product
from tests.fuzz.cases import OPS, finding
from tests.fuzz.operands import Draw

SEEDS = {"matmul": 3, "quantized_matmul": 6}
"""How many calls of an op there are here; of others there are two. `python -m tests.fuzz --ops` draws more."""


CALLS = [(name, seed) for name in OPS for seed in range(SEEDS.get(name, 2))]
# Tiles that are cut along k, where a cluster has pieces of two.
CALLS += [("matmul", 298)]


@pytest.mark.parametrize(("name", "seed"), CALLS)
def test_a_random_call_is_right(name: str, seed: int) -> None:
    found = finding(name, seed)
    assert not found, found


def test_a_seed_gives_one_call() -> None:
    for make in OPS.values():
        first, second = make(Draw(3)), make(Draw(3))
        assert str(first) == str(second)
        for x, y in zip(first.inputs, second.inputs, strict=True):
            assert (x.stride(), x.storage_offset()) == (y.stride(), y.storage_offset())
            assert torch.equal(x.contiguous().view(torch.uint8), y.contiguous().view(torch.uint8))


def test_gaps_between_numbers_are_poisoned() -> None:
    draw = Draw(1)
    tensors = [draw.tensor((5, 7), torch.float16, "normal") for _ in range(50)]
    assert not any(x.isnan().any() for x in tensors)
    assert any(torch.tensor([]).half().set_(x.untyped_storage()).isnan().any() for x in tensors)


def test_bounds_are_no_wider_than_what_they_allow_for() -> None:
    torch.manual_seed(0)
    a, b = torch.randn(20, 64), torch.randn(64, 30)
    near = product(a, b)
    exact = a.double() @ b.double()
    assert not near.wrong(exact.half()).any()
    for bad in (
        torch.zeros(20, 30).half(),
        exact.roll(1, 0).half(),
        (exact * 1.01).half(),
        exact.half() * float("nan"),
    ):
        assert near.wrong(bad).double().mean() > 0.9
    # Infinity is right where it is exact, and where numbers leave the type's range.
    odd = exactly(torch.tensor([float("inf"), float("nan"), 1e6, 2.0]))
    assert (
        odd.wrong(torch.tensor([float("inf"), float("nan"), float("inf"), 2.0]).half()).tolist()
        == [False] * 4
    )
    assert odd.wrong(torch.tensor([float("nan"), 1.0, 1.0, float("nan")]).half()).all()
    unknown = Near(torch.tensor([1.0]).double(), torch.tensor([float("inf")]).double())
    assert not unknown.wrong(torch.tensor([float("nan")]).half()).any()
