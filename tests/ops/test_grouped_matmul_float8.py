"""Grouped products of 8-bit types, scaled by row, column or block, against float64 of each expert's own product."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.ops.support import check_product
from tests.ops.test_generated_code import ASSEMBLES, check_resources
from tests.ops.test_hopper_matmul import changed_module
from tilus import dtypes, ops
from tilus.codegen import target
from tilus.codegen.assemble import ptxas_path
from tilus.errors import ShapeMismatch, TypeMismatch
from tilus.ops import Routing, quantize_blocks
from tilus.ops.grouped_block_scaled import grouped_block_scaled_schedule, scale_columns
from tilus.ops.grouped_block_scaled_kernel import (
    grouped_block_scaled_kernel,
    hopper_grouped_block_scaled_kernel,
)
from tilus.ops.grouped_kernel import grouped_matmul_kernel
from tilus.ops.schedules import FEWEST_PROMOTED, MOST_ACCUMULATORS

EXPERTS = 4
E4M3, E5M2, INT8 = torch.float8_e4m3fn, torch.float8_e5m2, torch.int8


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed + sum(shape)))


def codes(dtype: torch.dtype, *shape: int) -> torch.Tensor:
    return (normal(*shape) * 40).clamp(-127, 127).to(dtype) if dtype == INT8 else normal(*shape).to(dtype)


def factors(*shape: int) -> torch.Tensor:
    """Return scales that differ so much that a wrong one shows."""
    return 2.0 ** normal(*shape, seed=7)


def routed(block: int, tokens: int = 23) -> Routing:
    """Return a routing of random experts, of which expert 2 has no rows."""
    ids = torch.randint(EXPERTS, (tokens, 2), generator=torch.Generator().manual_seed(5), dtype=torch.int32)
    ids[ids == 2] = 3
    return ops.sort_by_expert(ids, EXPERTS, block)


def used_rows(routing: Routing) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the places that rows have, and their experts."""
    places = (routing.rows >= 0).nonzero()[:, 0]
    return places, routing.block_expert.long()[places // routing.block]


def products(a: torch.Tensor, b: torch.Tensor, owner: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Return each row's product with the matrix of its expert."""
    return torch.stack([row.to(dtype) @ b[expert].to(dtype) for row, expert in zip(a, owner)])


def by_block(x: torch.Tensor, scale: torch.Tensor, rows: int, dtype: torch.dtype) -> torch.Tensor:
    """Return codes times the scales of blocks of so many rows and 128 columns."""
    wide = scale.to(dtype).repeat_interleave(rows, -2)[..., : x.shape[-2], :]
    return x.to(dtype) * wide.repeat_interleave(128, -1)[..., : x.shape[-1]]


@pytest.mark.parametrize("block", [16, 64, 128])
@pytest.mark.parametrize(
    ("dtype", "b_dtype", "by_row", "by_column"),
    [
        (E4M3, E4M3, True, True),
        (E5M2, E4M3, False, True),
        (E4M3, E5M2, True, False),
        (INT8, INT8, True, True),
    ],
    ids=["e4m3", "e5m2 x e4m3", "e4m3 x e5m2", "int8"],
)
def test_rows_of_a_routing(
    dtype: torch.dtype, b_dtype: torch.dtype, by_row: bool, by_column: bool, block: int
) -> None:
    k, n = 272, 136
    routing = routed(block)
    places, owner = used_rows(routing)
    a, b = codes(dtype, routing.rows.shape[0], k), codes(b_dtype, EXPERTS, n, k).transpose(1, 2)
    a_scale = factors(a.shape[0]) if by_row else torch.tensor(0.375)
    b_scale = factors(EXPERTS, n) if by_column else factors(EXPERTS)
    bias = normal(EXPERTS, n).bfloat16()
    found = ops.grouped_matmul(a, b, routing, bias=bias, a_scale=a_scale, b_scale=b_scale, activation="relu")
    assert found.dtype == torch.bfloat16

    def expected(dtype: torch.dtype) -> torch.Tensor:
        plain = products(a[places], b, owner, dtype)
        rows = a_scale[places, None] if by_row else a_scale
        columns = b_scale[owner] if by_column else b_scale[owner, None]
        return torch.relu(plain * rows.to(dtype) * columns.to(dtype) + bias[owner].to(dtype))

    check_product(found[places], expected(torch.float64), expected(torch.float32).bfloat16())


@pytest.mark.parametrize("name", ["sm_80", "sm_89", "sm_90a"])
@pytest.mark.parametrize("dtype", [E4M3, INT8], ids=["e4m3", "int8"])
def test_rows_that_fit_no_copy_on_every_target(
    dtype: torch.dtype, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rows of 131 bytes, row-major matrices of 65 columns, and no scales: exact in int8."""
    monkeypatch.setenv("TILUS_SIMULATOR_TARGET", name)
    routing = routed(16, tokens=11)
    places, owner = used_rows(routing)
    a, b = codes(dtype, routing.rows.shape[0], 131), codes(dtype, EXPERTS, 131, 65)
    found = ops.grouped_matmul(a, b, routing, out_dtype=torch.float32)
    exact = products(a[places], b, owner, torch.float64)
    if dtype == INT8:
        assert torch.equal(found[places].double(), exact)
    else:
        check_product(found[places], exact, products(a[places], b, owner, torch.float32))


@pytest.mark.parametrize("capacity", [7, 72])
def test_rows_of_experts_with_counts(capacity: int) -> None:
    """Each row and each expert has a scale; experts without rows are left alone."""
    a, b = codes(INT8, EXPERTS, capacity, 144), codes(INT8, EXPERTS, 96, 144).transpose(1, 2)
    counts = torch.tensor([capacity, 0, 1, capacity // 2], dtype=torch.int32)
    a_scale, b_scale = (
        2.0 ** torch.arange(capacity * EXPERTS).view(EXPERTS, -1).remainder(5),
        factors(EXPERTS),
    )
    found = ops.grouped_matmul(a, b, counts, a_scale=a_scale, b_scale=b_scale, out_dtype=torch.float32)
    exact = a.double() @ b.double() * a_scale[:, :, None] * b_scale[:, None, None]
    for expert, count in enumerate(counts.tolist()):
        torch.testing.assert_close(
            found[expert, :count].double(), exact[expert, :count], rtol=2.0**-23, atol=0
        )
    shifted = exact.roll(1, 0)[0], exact.roll(1, 1)[0]
    assert not any(torch.allclose(found[0].double(), wrong, rtol=2.0**-23) for wrong in shifted)


def check_routing(block: int, n: int, k: int, *, out: torch.dtype = torch.bfloat16, tokens: int = 23) -> None:
    routing = routed(block, tokens)
    places, owner = used_rows(routing)
    a, b = codes(E4M3, routing.rows.shape[0], k), codes(E4M3, EXPERTS, n, k)
    steps = -(-k // 128)
    a_scale, b_scale = factors(a.shape[0], steps), factors(EXPERTS, -(-n // 128), steps)
    found = ops.grouped_matmul_block_scaled(a, b, a_scale, b_scale, routing, out_dtype=out)

    def expected(dtype: torch.dtype, b_scale: torch.Tensor = b_scale) -> torch.Tensor:
        left = by_block(a, a_scale, 1, dtype)[places]
        return products(left, by_block(b, b_scale, 128, dtype).transpose(1, 2), owner, dtype)

    exact, by_torch = expected(torch.float64), expected(torch.float32).to(out)
    check_product(found[places], exact, by_torch)
    # The scales of another expert, or of another step, would be noticed.
    for dim in (0, 2):
        wrong = expected(torch.float64, b_scale.roll(1, dim))
        assert (wrong - exact).abs().max() > 2 * (by_torch.double() - exact).abs().max()


@pytest.mark.parametrize("block", [16, 32, 64, 128, 256])
def test_blocks_of_a_routing(block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """On warpgroups all: the tensor cores of mma.sync convert float8 to float16 on sm_90."""
    monkeypatch.setattr(sys.modules["tilus.ops.grouped_block_scaled"], "grouped_block_scaled_kernel", None)
    check_routing(block, 200, 272)


@pytest.mark.parametrize("name", ["sm_80", "sm_89", "sm_90a"])
@pytest.mark.parametrize(("block", "n", "k"), [(64, 136, 272), (16, 65, 131)], ids=str)
def test_blocks_on_every_target(
    name: str, block: int, n: int, k: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TILUS_SIMULATOR_TARGET", name)
    check_routing(block, n, k, tokens=11)


@pytest.mark.parametrize("out", [torch.float16, torch.float32], ids=str)
def test_output_dtypes_of_blocks(out: torch.dtype) -> None:
    check_routing(64, 72, 256, out=out, tokens=7)


@pytest.mark.parametrize("name", ["sm_80", "sm_90a"])
@pytest.mark.parametrize("capacity", [7, 136])
def test_blocks_of_experts_with_counts(capacity: int, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TILUS_SIMULATOR_TARGET", name)
    n, k = 136, 272
    a, b = codes(E4M3, EXPERTS, capacity, k), codes(E5M2, EXPERTS, n, k)
    a_scale, b_scale = factors(EXPERTS, capacity, 3), factors(EXPERTS, 2, 3)
    counts = torch.tensor([capacity, 0, 1, capacity // 2], dtype=torch.int32)
    found = ops.grouped_matmul_block_scaled(a, b, a_scale, b_scale, counts)

    def expected(dtype: torch.dtype) -> torch.Tensor:
        return by_block(a, a_scale, 1, dtype) @ by_block(b, b_scale, 128, dtype).transpose(1, 2)

    exact, by_torch = expected(torch.float64), expected(torch.float32).bfloat16()
    for expert, count in enumerate(counts.tolist()):
        if count > 1:
            check_product(found[expert, :count], exact[expert, :count], by_torch[expert, :count])
    assert (found[2, 0].double() - exact[2, 0]).abs().max() <= 2 * (by_torch - exact).abs().max()


def test_scales_of_quantised_rows_need_no_copy() -> None:
    """Rows are quantised after they were gathered; as (experts, capacity) the same scales do too."""
    routing = routed(64)
    places, owner = used_rows(routing)
    x, w = normal(23, 256).bfloat16(), normal(EXPERTS * 128, 256).bfloat16()
    gathered = ops.gather_rows(x, routing, 2)
    a, a_scale = quantize_blocks(gathered)
    b, b_scale = quantize_blocks(w, rows=128)
    assert scale_columns(a_scale[None]).data_ptr() == a_scale.data_ptr()
    parts = a_scale.unflatten(0, (2, -1))
    assert scale_columns(parts).data_ptr() == a_scale.data_ptr()
    assert scale_columns(parts[:, 1:30]).shape == (2, 2, 32)
    found = ops.grouped_matmul_block_scaled(
        a, b.view(EXPERTS, 128, 256), a_scale, b_scale.view(EXPERTS, 1, 2), routing
    )
    exact = products(gathered[places], w.view(EXPERTS, 128, 256).transpose(1, 2), owner, torch.float64)
    assert (found[places].double() - exact).norm() < 0.04 * exact.norm()


TYPES: dict[str, Any] = dict(
    dtype=dtypes.float8_e4m3, b_dtype=dtypes.float8_e4m3, out_dtype=dtypes.bfloat16, block=128
)


def block_scaled_arguments(owner: int, steps: int = 2, n: int = 128) -> list[torch.Tensor]:
    """Return arguments for a block of 128 rows and n columns."""
    a, b = codes(E4M3, 1, 128, 128 * steps), codes(E4M3, 2, n, 128 * steps)
    out, owners = torch.zeros(1, 128, n).bfloat16(), torch.tensor([owner], dtype=torch.int32)
    return [a, b, out, factors(1, steps, 128), factors(2, -(-n // 128), steps), owners, 1]


def test_a_block_that_nothing_uses_leaves_at_once() -> None:
    """It reads who owns it and nothing else, stores nothing, and is done in few instructions."""
    a, b, out, a_scale, b_scale, *_ = block_scaled_arguments(0)
    none = torch.empty(1, 1)
    for name in ("sm_89", "sm_90a"):
        found = {}
        for owner in (-1, 1):
            owners = torch.tensor([owner], dtype=torch.int32)
            plain = grouped_matmul_kernel.simulate(
                a, b, out[0], none, none, owners, out, target=name, b_turned=True, block_m=64,
                block_k=128, stages=2, **TYPES,
            )  # fmt: skip
            arguments: list[Any] = [a, b, out, a_scale, b_scale, owners]
            if name == "sm_90a":
                scaled = hopper_grouped_block_scaled_kernel.simulate(*arguments, 1, target=name, **TYPES)
            else:
                scaled = grouped_block_scaled_kernel.simulate(*arguments, target=name, **TYPES)
            for report in (plain, scaled):
                report.raise_if_hazards()
            found[owner] = plain.counters, scaled.counters
        for unused, used in zip(found[-1], found[1]):
            assert unused["global_distinct_bytes_read"] == 32
            assert unused["global_store_requests"] == unused["async_bytes"] == 0
            assert unused["tensor_core_flops"] == unused["shared_bytes"] == 0
            # Even of the short way along k that a used block has here.
            assert unused["warp_instructions"] < 0.4 * used["warp_instructions"]
            assert used["tensor_core_flops"] == 2 * 128 * 128 * 256


MISTAKES = {
    "bytes of scales are not waited for": ("BLOCK + 4 * lanes * scales", "BLOCK"),
    "a stage too few": ("tilus.shared(b_dtype, (stages, ", "tilus.shared(b_dtype, (stages - 1, "),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_planted_mistake_is_reported(tmp_path: Path, mistake: str) -> None:
    module = changed_module(hopper_grouped_block_scaled_kernel, tmp_path, *MISTAKES[mistake])
    report = module.hopper_grouped_block_scaled_kernel.simulate(
        *block_scaled_arguments(1, steps=5), target="sm_90a", stages=3, **TYPES
    )
    assert report.hazards


def test_a_planted_wrong_scale_is_noticed(tmp_path: Path) -> None:
    right, wrong = "column_scales(b_scale, expert,", "column_scales(b_scale, 0,"
    module = changed_module(hopper_grouped_block_scaled_kernel, tmp_path, right, wrong)
    results = []
    for kernel in (hopper_grouped_block_scaled_kernel, module.hopper_grouped_block_scaled_kernel):
        arguments = block_scaled_arguments(1)
        report = kernel.simulate(*arguments, target="sm_90a", stages=3, **TYPES)
        report.raise_if_hazards()
        results.append(arguments[2][0])
    a, b, _, a_scale, b_scale, *_ = block_scaled_arguments(1)

    def product(dtype: torch.dtype) -> torch.Tensor:
        left = by_block(a[0], a_scale[0].t(), 1, dtype)
        return left @ by_block(b[1], b_scale[1], 128, dtype).t()

    exact, by_torch = product(torch.float64), product(torch.float32).bfloat16()
    check_product(results[0], exact, by_torch)
    with pytest.raises(AssertionError, match="the largest error"):
        check_product(results[1], exact, by_torch)


@pytest.mark.parametrize("block_n", [192, 256])
def test_tiles_that_lie_in_two_blocks_of_columns(block_n: int) -> None:
    arguments = block_scaled_arguments(1, steps=3, n=block_n + 136)
    report = hopper_grouped_block_scaled_kernel.simulate(
        *arguments, target="sm_90a", stages=2, block_n=block_n, **TYPES
    )
    report.raise_if_hazards()
    a, b, found, a_scale, b_scale, *_ = arguments

    def product(dtype: torch.dtype) -> torch.Tensor:
        left = by_block(a[0], a_scale[0].t(), 1, dtype)
        return left @ by_block(b[1], b_scale[1], 128, dtype).t()

    check_product(found[0], product(torch.float64), product(torch.float32).bfloat16())


@ASSEMBLES
@pytest.mark.parametrize("most", [FEWEST_PROMOTED, MOST_ACCUMULATORS])
@pytest.mark.parametrize(
    ("block", "n"), [(16, 256), (32, 64), (64, 4096), (128, 256), (128, 4096), (128, 7168)]
)
def test_hopper_tiles_use_warpgroups_and_do_not_spill(block: int, n: int, most: int) -> None:
    if most > FEWEST_PROMOTED and ptxas_path() is None:
        pytest.skip("larger tiles are chosen only where ptxas is installed: pip install nvidia-cuda-nvcc")
    chosen = grouped_block_scaled_schedule(block, 1 << 15, n, 2048, 16, target("sm_90a"), 132, most)
    assert chosen.block_m == block
    made = hopper_grouped_block_scaled_kernel.compile(
        target="sm_90a", **{**TYPES, "block": block}, swap=chosen.swap, block_m=chosen.block_m,
        block_n=chosen.block_n, stages=chosen.stages, consumers=chosen.consumers, cluster_n=chosen.cluster_n,
    )  # fmt: skip
    check_resources(made)
    # Four steps of 32 along k; consumers have loops of their own where each has rows of its own.
    products = 8 if chosen.block_n == 256 else 4
    assert made.ptx.count("wgmma.mma_async") == products * (1 if chosen.swap else chosen.consumers)
    assert "mma.sync" not in made.ptx


@ASSEMBLES
@pytest.mark.parametrize(
    ("name", "instruction"), [("sm_89", "e4m3.e4m3"), ("sm_80", "f16.f16"), ("sm_90a", "wgmma")]
)
def test_each_target_uses_its_tensor_cores(name: str, instruction: str) -> None:
    made = grouped_matmul_kernel.compile(
        target=name, native=name != "sm_80", b_turned=True, a_scales="rows", b_scales="columns", block_m=64,
        block_k=128, stages=3, **TYPES,
    )  # fmt: skip
    check_resources(made)
    assert instruction in made.ptx
    blocks = grouped_block_scaled_kernel.compile(
        target=name, native=name != "sm_80", block_m=16, stages=4, **TYPES
    )
    check_resources(blocks)
    assert "mma.sync" in blocks.ptx


def test_the_ops_are_well_formed() -> None:
    routing = routed(16, tokens=5)
    rows = routing.rows.shape[0]
    a, b = codes(E4M3, rows, 256), codes(E4M3, EXPERTS, 128, 256)
    # Rows of unused blocks hold whatever was there, and torch multiplies no float8 numbers as other checks do.
    checks = ("test_faketensor", "test_autograd_registration")
    arguments = (
        a,
        b.transpose(1, 2),
        routing.block_expert,
        16,
        None,
        "",
        factors(rows),
        factors(EXPERTS),
        None,
    )
    torch.library.opcheck(torch.ops.tilus.grouped_matmul.default, arguments, test_utils=checks)
    arguments = (a, b, factors(rows, 2), factors(EXPERTS, 1, 2), routing.block_expert, 16, torch.bfloat16)
    torch.library.opcheck(torch.ops.tilus.grouped_matmul_block_scaled.default, arguments, test_utils=checks)


def test_nothing_to_multiply() -> None:
    counts = torch.ones(2, dtype=torch.int32)
    a, b = torch.empty(2, 3, 0).to(E4M3), torch.empty(2, 5, 0).to(E4M3)
    found = ops.grouped_matmul_block_scaled(a, b, torch.empty(2, 3, 0), torch.empty(2, 1, 0), counts)
    assert torch.equal(found, torch.zeros(2, 3, 5).bfloat16())
    empty = ops.grouped_matmul(torch.empty(2, 0, 8).to(E4M3), torch.empty(2, 8, 5).to(E4M3), counts)
    assert empty.shape == (2, 0, 5)


def test_errors() -> None:
    routing, small = routed(16, tokens=3), routed(8, tokens=3)
    rows = routing.rows.shape[0]
    a, b = codes(E4M3, rows, 256), codes(E4M3, EXPERTS, 128, 256)
    s, t = factors(rows, 2), factors(EXPERTS, 1, 2)
    scaled = ops.grouped_matmul_block_scaled
    with pytest.raises(TypeMismatch, match=r"two float8 tensors, not torch\.float16"):
        scaled(a.half(), b, s, t, routing)
    with pytest.raises(ShapeMismatch, match=r"b has shape \(128, 256\), expected \(experts, n, k\)"):
        scaled(a, b[0], s, t, routing)
    with pytest.raises(TypeMismatch, match=r"bfloat16, float16 or float32, not torch\.int8"):
        scaled(a, b, s, t, routing, out_dtype=INT8)
    with pytest.raises(ShapeMismatch, match=r"a_scale is .* expected torch.float32 of shape \(\d+, 2\)"):
        scaled(a, b, s[:, :1], t, routing)
    with pytest.raises(ShapeMismatch, match=r"b_scale is torch.float16 .* of shape \(4, 1, 2\)"):
        scaled(a, b, s, t.half(), routing)
    with pytest.raises(ShapeMismatch, match="fewer than the tensor core's 16"):
        scaled(codes(E4M3, small.rows.shape[0], 256), b, s, t, small)
    plain = b.transpose(1, 2)
    with pytest.raises(ShapeMismatch, match=r"a_scale is .* of shape \(\) or \(\d+,\)"):
        ops.grouped_matmul(a, plain, routing, a_scale=s)
    with pytest.raises(ShapeMismatch, match=r"b_scale is .* of shape \(4,\) or \(4, 128\)"):
        ops.grouped_matmul(a, plain, routing, b_scale=torch.ones(3))
    with pytest.raises(ShapeMismatch, match=r"b is torch.int8 .* expected torch.float8_e4m3fn"):
        ops.grouped_matmul(a, plain.to(INT8), routing)
    with pytest.raises(TypeMismatch, match=r"float16, bfloat16 or float32, not torch\.int32"):
        ops.grouped_matmul(a, plain, routing, out_dtype=torch.int32)
    with pytest.raises(ShapeMismatch, match=r"bias is torch.float16 .* expected torch.bfloat16"):
        ops.grouped_matmul(a, plain, routing, bias=torch.zeros(EXPERTS, 128).half())
