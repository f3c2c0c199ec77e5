"""Grouped products, against float64 of each expert's own product."""

from __future__ import annotations

import pytest
import torch

from tests.ops.test_generated_code import ASSEMBLES, check_global_accesses, check_resources
from tilus import ops
from tilus.dtypes import float16
from tilus.errors import ShapeMismatch, TypeMismatch
from tilus.ops import QuantizedWeight, Routing
from tilus.ops.grouped_kernel import grouped_matmul_kernel
from tilus.runtime.kernel import Kernel
from tilus.simulator import Report

EXPERTS = 4


def routed(tokens: int, top_k: int, block: int, *, ids: torch.Tensor | None = None) -> Routing:
    """Return a routing of random experts, of which expert 2 has no rows."""
    generator = torch.Generator().manual_seed(tokens)
    if ids is None:
        ids = torch.randint(EXPERTS, (tokens, top_k), generator=generator, dtype=torch.int32)
        ids[ids == 2] = 3
    return ops.sort_by_expert(ids, EXPERTS, block)


def by_expert(
    x: torch.Tensor, matrices: torch.Tensor, routing: Routing, bias: torch.Tensor | None
) -> torch.Tensor:
    """Return each used row's product with its expert's matrix, in the dtype of x, zeros elsewhere."""
    out = torch.zeros(routing.rows.shape[0], matrices.shape[2], dtype=x.dtype)
    for place, row in enumerate(routing.rows.tolist()):
        expert = int(routing.block_expert[place // routing.block])
        if row >= 0:
            out[place] = x[row] @ matrices[expert]
            if bias is not None:
                out[place] += bias[expert]
    return out


def check_rows(found: torch.Tensor, exact: torch.Tensor, rounded: torch.Tensor, routing: Routing) -> None:
    """Compare the rows that are used, allowing twice the error of a torch run in the same dtype."""
    used = routing.rows >= 0
    found, exact, rounded = (x[used].double() for x in (found, exact, rounded))
    allowed = 2 * (rounded - exact).abs().max()
    error = (found - exact).abs().max()
    assert error <= allowed, f"the largest error is {error:.2e}, allowed is {allowed:.2e}"
    assert (exact.roll(1, 0) - exact).abs().max() > allowed
    assert (exact.roll(1, 1) - exact).abs().max() > allowed


@pytest.mark.parametrize("turned", [False, True], ids=["row-major b", "transposed b"])
@pytest.mark.parametrize("block", [16, 64, 128])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_rows_of_a_routing(dtype: torch.dtype, block: int, turned: bool) -> None:
    k, n = 136, 200
    generator = torch.Generator().manual_seed(block)
    routing = routed(23, 2, block)
    x = torch.randn(46, k, generator=generator).to(dtype)
    b = torch.randn(EXPERTS, *((n, k) if turned else (k, n)), generator=generator).to(dtype)
    b = b.transpose(1, 2) if turned else b
    bias = torch.randn(EXPERTS, n, generator=generator).to(dtype)
    found = ops.grouped_matmul(ops.gather_rows(x, routing), b, routing, bias=bias)
    exact = by_expert(x.double(), b.double(), routing, bias.double())
    check_rows(found, exact, by_expert(x, b, routing, bias), routing)


@pytest.mark.parametrize("capacity", [7, 24, 72])
def test_rows_of_experts_with_counts(capacity: int) -> None:
    k, n = 72, 96
    generator = torch.Generator().manual_seed(capacity)
    a = torch.randn(EXPERTS, capacity, k, generator=generator).half()
    b = torch.randn(EXPERTS, k, n, generator=generator).half()
    counts = torch.tensor([capacity, 0, 1, capacity // 2], dtype=torch.int32)
    found = ops.grouped_matmul(a, b, counts, activation="relu")
    exact = torch.relu(a.double() @ b.double())
    rounded = torch.relu(a @ b)
    for expert, count in enumerate(counts.tolist()):
        error = (found[expert, :count] - exact[expert, :count]).abs()
        allowed = 2 * (rounded[expert, :count] - exact[expert, :count]).abs()
        assert error.numel() == 0 or error.max() <= allowed.max() + 2**-11


def test_one_expert_with_all_rows() -> None:
    routing = routed(40, 1, 16, ids=torch.full((40, 1), 1, dtype=torch.int32))
    x, b = torch.randn(40, 64).half(), torch.randn(EXPERTS, 64, 64).half()
    found = ops.grouped_matmul(ops.gather_rows(x, routing), b, routing)
    exact = by_expert(x.double(), b.double(), routing, None)
    check_rows(found, exact, by_expert(x, b, routing, None), routing)


def test_blocks_that_nothing_uses_are_left_alone() -> None:
    """Neither computed nor stored: rows beyond the last expert's keep what memory held."""
    routing = routed(3, 1, 16, ids=torch.tensor([[1], [1], [3]], dtype=torch.int32))
    assert routing.block_expert.tolist() == [1, 3, -1]
    a, b = torch.ones(48, 32).half(), torch.ones(EXPERTS, 32, 64).half()
    out = torch.full((1, 48, 64), 7.0).half()
    options = {
        "dtype": float16,
        "b_dtype": float16,
        "out_dtype": float16,
        "block": 16,
        "block_m": 16,
        "block_n": 64,
        "block_k": 32,
    }
    none = torch.empty(1, 1)
    grouped_matmul_kernel(a[None], b, out[0], none, none, routing.block_expert, out, **options)
    assert (out[0, :32] == 32.0).all()
    assert (out[0, 32:] == 7.0).all()


def experts_of(
    dtype: str, *, zero_point: bool, gated: bool, scale_dtype: torch.dtype
) -> list[QuantizedWeight]:
    torch.manual_seed(3)

    def one() -> QuantizedWeight:
        return ops.quantize(
            torch.randn(256, 96) / 8, dtype, 64, zero_point=zero_point, scale_dtype=scale_dtype
        )

    return [ops.gated_pair(one(), one()) if gated else one() for _ in range(EXPERTS)]


@pytest.mark.parametrize("block", [8, 16, 64])
@pytest.mark.parametrize(
    ("dtype", "zero_point", "scale_dtype"),
    [
        ("uint4", True, torch.float16),
        ("int3", False, torch.bfloat16),
        ("float6_e3m2", False, torch.float16),
        ("float8_e4m3", False, torch.bfloat16),
    ],
)
@pytest.mark.parametrize("gated", [False, True], ids=["plain", "gated"])
def test_quantized_experts(
    dtype: str, zero_point: bool, scale_dtype: torch.dtype, block: int, gated: bool
) -> None:
    """The same numbers as each expert's own product, which is tested against float64, gives for its rows."""
    weights = experts_of(dtype, zero_point=zero_point, gated=gated, scale_dtype=scale_dtype)
    routing = routed(19, 2, block)
    x = torch.randn(38, 256).to(scale_dtype)
    bias = torch.randn(EXPERTS, weights[0].shape[1]).to(scale_dtype)
    found = ops.grouped_quantized_matmul(
        ops.gather_rows(x, routing), ops.stack_experts(weights), routing, bias=bias, activation="silu"
    )
    rows = routing.rows.long()
    for expert, weight in enumerate(weights):
        mine = (rows >= 0) & (routing.block_expert.repeat_interleave(block) == expert)
        if not mine.any():
            continue
        exact = x[rows[mine]].double() @ weight.dequantize() + bias[expert].double()
        if gated:
            gate, up = exact.chunk(2, dim=1)
            exact = torch.nn.functional.silu(gate) * up
        else:
            exact = torch.nn.functional.silu(exact)
        scale = exact.abs().max()
        # Weights, products' inputs and the result are rounded to 16 bits.
        assert (found[mine].double() - exact).abs().max() <= 4 * torch.finfo(scale_dtype).eps * scale
        assert (exact.roll(1, 1) - exact).abs().max() > 8 * torch.finfo(scale_dtype).eps * scale


def test_quantized_experts_with_counts() -> None:
    weights = experts_of("uint4", zero_point=False, gated=False, scale_dtype=torch.float16)
    a = torch.randn(EXPERTS, 20, 256).half()
    counts = torch.tensor([20, 0, 5, 17], dtype=torch.int32)
    found = ops.grouped_quantized_matmul(a, ops.stack_experts(weights), counts)
    for expert, count in enumerate(counts.tolist()):
        exact = a[expert, :count].double() @ weights[expert].dequantize()
        assert count == 0 or (found[expert, :count] - exact).abs().max() <= 4e-3 * exact.abs().max()


@ASSEMBLES
@pytest.mark.parametrize(
    ("name", "block_m", "warps"), [("sm_80", 64, 4), ("sm_90a", 64, 4), ("sm_90a", 128, 8)]
)
def test_generated_code(name: str, block_m: int, warps: int) -> None:
    """Wide accesses, tensor cores fed from shared memory, no spills; TMA and wgmma where there are any."""
    arguments, options = _call(block_m, warps)
    compiled = grouped_matmul_kernel.compile(*arguments, target=name, **options)
    check_resources(compiled)
    assert ("wgmma.mma_async" in compiled.ptx) == (name == "sm_90a")
    assert ("cp.async.bulk.tensor" in compiled.ptx) == (name == "sm_90a")
    check_global_accesses(compiled.ptx.replace("ld.global.b32", "ld.owner"))


@pytest.mark.parametrize("name", ["sm_80", "sm_90a"])
def test_no_bank_conflicts(name: str) -> None:
    arguments, options = _call(64, 4)
    report = simulated(grouped_matmul_kernel, arguments, options, name)
    assert report.counters["shared_wavefronts"] == report.counters["shared_wavefronts_ideal"]


def simulated(kernel: Kernel, arguments: list[object], options: dict[str, object], name: str) -> Report:
    report = kernel.simulate(*arguments, target=name, **options)
    report.raise_if_hazards()
    return report


def _call(block_m: int, warps: int) -> tuple[list[object], dict[str, object]]:
    a, b = torch.randn(1, 128, 128).half(), torch.randn(2, 128, 128).half()
    owners = torch.tensor([1] * (128 // block_m), dtype=torch.int32)
    out = torch.empty(1, 128, 128).half()
    options: dict[str, object] = {
        "dtype": float16, "b_dtype": float16, "out_dtype": float16, "block": block_m, "block_m": block_m, "block_n": 128,
        "block_k": 64, "stages": 3, "warps": warps,
    }  # fmt: skip
    none = torch.empty(1, 1)
    return [a, b, out[0], none, none, owners, out], options


def test_the_ops_are_well_formed() -> None:
    routing = routed(5, 1, 16)
    a = torch.randn(routing.rows.shape[0], 64).half()
    b = torch.randn(EXPERTS, 64, 32).half()
    # Rows of unused blocks hold whatever was there, so that results are compared by the tests above.
    checks = ["test_schema", "test_faketensor"]
    torch.library.opcheck(
        torch.ops.tilus.grouped_matmul.default, (a, b, routing.block_expert, 16), test_utils=checks
    )


def test_errors() -> None:
    routing = routed(5, 1, 8)
    rows = routing.rows.shape[0]
    a, b = torch.zeros(rows, 64).half(), torch.zeros(EXPERTS, 64, 32).half()
    with pytest.raises(ShapeMismatch, match="fewer than the tensor core's 16"):
        ops.grouped_matmul(a, b, routing)
    with pytest.raises(ShapeMismatch, match="for this routing"):
        ops.grouped_matmul(a[1:], b, routing)
    with pytest.raises(ShapeMismatch, match="for 4 experts, but there are 3"):
        ops.grouped_matmul(a, b[:3], routing)
    with pytest.raises(ShapeMismatch, match=r"expected torch\.float16 of shape \(experts, k, n\)"):
        ops.grouped_matmul(a, b.float(), routing)
    with pytest.raises(TypeMismatch, match="float16, bfloat16, float8 or int8, not"):
        ops.grouped_matmul(a.float(), b.float(), routing)
    with pytest.raises(ShapeMismatch, match="counts are"):
        ops.grouped_matmul(a, b, torch.zeros(3, dtype=torch.int32))
    with pytest.raises(ShapeMismatch, match=r"expected \(experts, capacity, k\)"):
        ops.grouped_matmul(a, b, torch.zeros(EXPERTS, dtype=torch.int32))
    with pytest.raises(TypeMismatch, match="no activation named 'tanh'"):
        ops.grouped_matmul(
            torch.zeros(EXPERTS, 3, 64).half(), b, torch.zeros(EXPERTS, dtype=torch.int32), activation="tanh"
        )
    with pytest.raises(ShapeMismatch, match="bias is"):
        ops.grouped_matmul(
            torch.zeros(EXPERTS, 3, 64).half(),
            b,
            torch.zeros(EXPERTS, dtype=torch.int32),
            bias=torch.zeros(32).half(),
        )
    weights = experts_of("uint4", zero_point=False, gated=False, scale_dtype=torch.float16)
    with pytest.raises(ShapeMismatch, match="differ in shape"):
        ops.stack_experts([weights[0], ops.quantize(torch.randn(256, 96), "uint3", 64)])
    with pytest.raises(ShapeMismatch, match="at least one"):
        ops.stack_experts([])
    with pytest.raises(TypeMismatch, match="quantised for torch"):
        ops.grouped_quantized_matmul(torch.zeros(rows, 256).bfloat16(), ops.stack_experts(weights), routing)
