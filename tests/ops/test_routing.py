"""Routing of tokens to experts, against torch."""

from __future__ import annotations

import pytest
import torch

from tilus import ops
from tilus.errors import ShapeMismatch, TypeMismatch
from tilus.ops.routing import capacity


def scores(logits: torch.Tensor, scoring: str) -> torch.Tensor:
    exact = logits.double()
    return torch.softmax(exact, dim=1) if scoring == "softmax" else torch.sigmoid(exact)


def expected_routing(ids: torch.Tensor, experts: int, block: int) -> dict[str, torch.Tensor]:
    """Sort with torch, one expert after the other."""
    flat = ids.flatten()
    room = capacity(len(flat), experts, block)
    rows, owners = torch.full((room,), -1), torch.full((room // block,), -1)
    places = torch.full((len(flat),), -1)
    offsets, counts = [0], []
    for expert in range(experts):
        mine = (flat == expert).nonzero()[:, 0]
        start = offsets[-1]
        end = start + -(-len(mine) // block) * block
        rows[start : start + len(mine)] = mine
        places[mine] = torch.arange(start, start + len(mine))
        owners[start // block : end // block] = expert
        offsets.append(end)
        counts.append(len(mine))
    return {
        "rows": rows,
        "places": places.view(ids.shape),
        "block_expert": owners,
        "counts": torch.tensor(counts),
        "offsets": torch.tensor(offsets),
    }


@pytest.mark.parametrize("scoring", ["softmax", "sigmoid"])
@pytest.mark.parametrize("renormalise", [True, False])
@pytest.mark.parametrize(
    ("tokens", "experts", "top_k", "dtype"),
    [
        (5, 8, 2, torch.float16),
        (33, 60, 6, torch.bfloat16),
        (3, 256, 8, torch.float32),
        (1, 1, 1, torch.float32),
    ],
)
def test_route(
    tokens: int, experts: int, top_k: int, dtype: torch.dtype, renormalise: bool, scoring: str
) -> None:
    generator = torch.Generator().manual_seed(tokens)
    logits = torch.randn(tokens, experts, generator=generator).to(dtype)
    weights, ids = ops.route(logits, top_k, scoring=scoring, renormalise=renormalise)
    order = torch.argsort(logits.double(), dim=1, descending=True, stable=True)[:, :top_k]
    expected = scores(logits, scoring).gather(1, order)
    if renormalise:
        expected = expected / expected.sum(dim=1, keepdim=True)
    assert torch.equal(ids.long(), order)
    # Each score is a handful of float32 operations.
    torch.testing.assert_close(weights.double(), expected, rtol=16 * torch.finfo(torch.float32).eps, atol=0.0)


def test_route_prefers_the_lower_of_equal_experts() -> None:
    logits = torch.tensor([[1.0, 2.0, 2.0, 2.0], [0.0, 0.0, 0.0, 0.0], [-1e30, 5.0, -float("inf"), 5.0]])
    _, ids = ops.route(logits, 3)
    assert ids.tolist() == [[1, 2, 3], [0, 1, 2], [1, 3, 0]]


def test_route_takes_rows_of_a_wider_matrix() -> None:
    wide = torch.randn(9, 40)
    weights, ids = ops.route(wide[:, 4:20], 2)
    again = ops.route(wide[:, 4:20].contiguous(), 2)
    assert torch.equal(weights, again[0])
    assert torch.equal(ids, again[1])


@pytest.mark.parametrize("block", [16, 64])
@pytest.mark.parametrize(
    ("shape", "experts"), [((5, 2), 8), ((300, 3), 60), ((700,), 3), ((1, 1), 1), ((9, 8), 256)]
)
def test_sort_by_expert(shape: tuple[int, ...], experts: int, block: int) -> None:
    generator = torch.Generator().manual_seed(experts)
    ids = torch.randint(experts, shape, generator=generator, dtype=torch.int32)
    found = ops.sort_by_expert(ids, experts, block)
    for name, expected in expected_routing(ids, experts, block).items():
        assert torch.equal(getattr(found, name).long(), expected), name
    assert found.block == block


def test_sort_by_expert_with_one_expert_for_all_rows_and_empty_experts() -> None:
    ids = torch.full((300, 2), 5, dtype=torch.int32)
    found = ops.sort_by_expert(ids, 9, 16)
    for name, expected in expected_routing(ids, 9, 16).items():
        assert torch.equal(getattr(found, name).long(), expected), name


def test_sort_by_expert_leaves_out_rows_of_other_experts() -> None:
    ids = torch.tensor([3, -1, 0, 7, 3, 4, 2**31 - 1], dtype=torch.int32)
    found = ops.sort_by_expert(ids, 4, 8)
    for name, expected in expected_routing(ids, 4, 8).items():
        assert torch.equal(getattr(found, name).long(), expected), name
    assert found.places.tolist() == [8, -1, 0, -1, 9, -1, -1]


def test_sort_by_expert_of_nothing() -> None:
    found = ops.sort_by_expert(torch.empty((0, 2), dtype=torch.int32), 4, 16)
    assert found.rows.shape == (0,)
    assert found.counts.tolist() == [0] * 4
    assert found.offsets.tolist() == [0] * 5


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_gather_and_combine(dtype: torch.dtype) -> None:
    tokens, experts, top_k, n = 37, 6, 3, 1100
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(tokens, n, generator=generator).to(dtype)
    weights, ids = ops.route(torch.randn(tokens, experts, generator=generator), top_k)
    routing = ops.sort_by_expert(ids, experts, 16)
    gathered = ops.gather_rows(x, routing, top_k)
    rows = routing.rows.long()
    expected = torch.where((rows >= 0)[:, None], x[rows.clamp(min=0) // top_k], torch.zeros((), dtype=dtype))
    assert torch.equal(gathered, expected)
    y = torch.randn(gathered.shape, generator=generator).to(dtype)
    combined = ops.combine(y, weights, routing)
    exact = (y.double()[routing.places.long()] * weights.double()[:, :, None]).sum(dim=1)
    rounding = torch.finfo(dtype).eps + 2 * top_k * torch.finfo(torch.float32).eps
    size = (y.double()[routing.places.long()].abs() * weights.double()[:, :, None]).sum(dim=1)
    assert ((combined.double() - exact).abs() <= rounding * size).all()


@pytest.mark.parametrize("dtype", [torch.int8, torch.uint8, torch.float8_e4m3fn, torch.float8_e5m2], ids=str)
@pytest.mark.parametrize("width", [100, 2064])
def test_rows_of_bytes_are_gathered_bit_by_bit(width: int, dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    octets = torch.randint(0, 256, (width, 3), generator=generator, dtype=torch.uint8).t()
    routing = ops.sort_by_expert(torch.tensor([[0, 2], [1, 0], [2, 1]], dtype=torch.int32), 3, 8)
    gathered = ops.gather_rows(octets.view(dtype), routing, 2)
    assert gathered.dtype == dtype
    rows = routing.rows.long()
    expected = torch.where((rows >= 0)[:, None], octets[rows.clamp(min=0) // 2], 0)
    assert torch.equal(gathered.view(torch.uint8), expected)


def test_rows_that_go_nowhere_add_nothing() -> None:
    ids = torch.tensor([[0, 9], [1, 0]], dtype=torch.int32)
    routing = ops.sort_by_expert(ids, 2, 8)
    y = torch.arange(routing.rows.shape[0], dtype=torch.float32)[:, None].expand(-1, 4).contiguous()
    weights = torch.tensor([[1.0, 100.0], [2.0, 3.0]])
    assert ops.combine(y, weights, routing)[:, 0].tolist() == [0.0, 2.0 * 8 + 3.0 * 1]


def test_the_ops_are_well_formed() -> None:
    logits = torch.randn(4, 8)
    weights, ids = ops.route(logits, 2)
    routing = ops.sort_by_expert(ids, 8, 16)
    x = torch.randn(4, 32)
    for op, arguments in (
        (torch.ops.tilus.route, (logits, 2, "softmax", True)),
        (torch.ops.tilus.sort_by_expert, (ids, 8, 16)),
        (torch.ops.tilus.gather_rows, (x, routing.rows, 2)),
        (torch.ops.tilus.combine, (ops.gather_rows(x, routing, 2), weights, routing.places)),
    ):
        # Rows that fill up a block hold whatever was there, so that results are compared by the tests above.
        torch.library.opcheck(op.default, arguments, test_utils=["test_schema", "test_faketensor"])


@pytest.mark.parametrize(
    ("call", "error", "text"),
    [
        (lambda: ops.route(torch.zeros(2, 4, dtype=torch.int32), 1), TypeMismatch, "not torch.int32"),
        (lambda: ops.route(torch.zeros(4), 1), ShapeMismatch, "(tokens, experts)"),
        (lambda: ops.route(torch.zeros(2, 4), 5), ShapeMismatch, "expected 1 to 4"),
        (lambda: ops.route(torch.zeros(2, 2000), 5), ShapeMismatch, "1 to 1024 experts"),
        (lambda: ops.route(torch.zeros(2, 4), 1, scoring="tanh"), TypeMismatch, "'sigmoid'"),
        (lambda: ops.sort_by_expert(torch.zeros(3), 4), TypeMismatch, "ids of int32"),
        (lambda: ops.sort_by_expert(torch.zeros(3, dtype=torch.int32), 0), ShapeMismatch, "1 to 1024"),
        (lambda: ops.sort_by_expert(torch.zeros(3, dtype=torch.int32), 4, 100), ShapeMismatch, "8, 16, 32"),
    ],
)
def test_errors(call: object, error: type[Exception], text: str) -> None:
    with pytest.raises(error) as caught:
        call()  # type: ignore[operator]
    assert text in str(caught.value)


def test_errors_of_gather_and_combine() -> None:
    routing = ops.sort_by_expert(torch.zeros((4, 2), dtype=torch.int32), 4, 8)
    with pytest.raises(ShapeMismatch, match="the routing has 8 rows"):
        ops.gather_rows(torch.zeros(4, 8), routing)
    with pytest.raises(TypeMismatch, match=r"torch\.int32"):
        ops.gather_rows(torch.zeros(4, 8, dtype=torch.int32), routing, 2)
    with pytest.raises(ShapeMismatch, match="rows, not"):
        ops.combine(torch.zeros(4, 8), torch.zeros(4, 2), routing)
    with pytest.raises(ShapeMismatch, match=r"shape \(4, 2\)"):
        ops.combine(torch.zeros(routing.rows.shape[0], 8), torch.zeros(4, 3), routing)
