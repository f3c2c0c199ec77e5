"""Products of a mixture of experts on the GPU, beside torch's grouped products and the bytes; routing beside torch's ops.

    python benchmarks/mixture_of_experts.py [--types bf16 ...] [--seconds 600] [--out FILE] [--dry-run]

`floor` is the time in which the card's measured copy bandwidth moves all bytes once: the matrices of experts that have
rows, activations and results. Matrices are 64 random columns for each expert, repeated: kernels read each column from
memory of its own, and the check against float64 sees all columns of the result.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass

import torch
from _harness import (
    Bench,
    Contender,
    OwnReference,
    Run,
    SkipContender,
    copy_bandwidth,
    needs_gpu,
    options,
    rounding_error,
)
from quantized_matmul import widen, worst_of_equal_columns

from tilus import ops

ROWS = (16, 4096, 64, 1, 256, 1024)


@dataclass(frozen=True)
class Layer:
    """One of the two products of a layer: experts, those of each token, and the matrices' size."""

    name: str
    experts: int
    top_k: int
    n: int
    k: int


LAYERS = (
    Layer("mixtral up", 8, 2, 28672, 4096),
    Layer("mixtral down", 8, 2, 4096, 14336),
    Layer("deepseek-v3 up", 256, 8, 4096, 7168),
    Layer("deepseek-v3 down", 256, 8, 7168, 2048),
    Layer("qwen3-30b up", 128, 8, 1536, 2048),
    Layer("qwen3-30b down", 128, 8, 2048, 768),
    Layer("qwen3-235b up", 128, 8, 3072, 4096),
    Layer("qwen3-235b down", 128, 8, 4096, 1536),
    Layer("gpt-oss-20b up", 32, 4, 5760, 2880),
    Layer("gpt-oss-20b down", 32, 4, 2880, 2880),
    Layer("gpt-oss-120b up", 128, 4, 5760, 2880),
)
DRY_LAYERS = (Layer("dry", 5, 2, 192, 320),)
TYPES = ("bf16", "fp8", "fp8_blocks", "uint4")
COLUMNS = 64
BLOCK = 128
"""Elements along k, and along n, that share a scale of fp8_blocks."""
FLOAT8 = torch.float8_e4m3fn


@dataclass(frozen=True)
class Problem:
    """Rows with their experts, as we want them and as torch does.

    Attributes
    ----------
    x : Tensor of bfloat16, shape (m * top_k, k)
        Each row of each token.
    ids : Tensor of int64, shape (m * top_k,)
        Its expert.
    routing : Routing
        Experts' rows in whole blocks.
    order : Tensor of int64
        The rows sorted by expert, without gaps.
    ends : Tensor of int32, shape (experts,)
        Where each expert's sorted rows end.
    """

    layer: Layer
    x: torch.Tensor
    ids: torch.Tensor
    routing: ops.Routing
    order: torch.Tensor
    ends: torch.Tensor

    @property
    def padded(self) -> torch.Tensor:
        """The rows in the routing's order."""
        return ops.gather_rows(self.x, self.routing)

    def from_padded(self, reference: torch.Tensor) -> Callable[[torch.Tensor], torch.Tensor]:
        """Return what brings results in the routing's order into the reference's shape."""
        view = worst_of_equal_columns(reference)
        places = self.routing.places.flatten().long()
        return lambda out: view(out[places])

    def from_sorted(self, reference: torch.Tensor) -> Callable[[torch.Tensor], torch.Tensor]:
        """Return the same for results of sorted rows."""
        view = worst_of_equal_columns(reference)
        back = self.order.argsort()
        return lambda out: view(out[back])


def block_of(layer: Layer, m: int, least: int, most: int) -> int:
    """Return the smallest block of rows that an expert's share fits in."""
    share = -(-m * layer.top_k // layer.experts)
    return next((block for block in (8, 16, 32, 64, 128) if least <= block and share <= block <= most), most)


def problem(bench: Bench, layer: Layer, m: int, block: int) -> Problem:
    """Return rows with random experts, all of a token different."""
    generator = torch.Generator().manual_seed(m)
    ids = torch.rand(m, layer.experts, generator=generator).topk(layer.top_k).indices.to(bench.device)
    x = torch.randn(m * layer.top_k, layer.k, device=bench.device).bfloat16()
    flat = ids.flatten()
    ends = flat.bincount(minlength=layer.experts).cumsum(0).int()
    routing = ops.sort_by_expert(ids.int(), layer.experts, block)
    return Problem(layer, x, flat, routing, flat.argsort(stable=True), ends)


def narrow(bench: Bench, layer: Layer) -> torch.Tensor:
    """Return some columns for each expert, shape (experts, COLUMNS, k)."""
    values = torch.randn(layer.experts, COLUMNS, layer.k, device=bench.device)
    return values / layer.k**0.5


def product(rows: torch.Tensor, ids: torch.Tensor, matrices: torch.Tensor) -> torch.Tensor:
    """Return each row's product with its expert's matrix of shape (n, k), in float64."""
    out = torch.zeros(rows.shape[0], matrices.shape[1], dtype=torch.float64, device=rows.device)
    for expert in ids.unique().tolist():
        mine = ids == expert
        out[mine] = rows[mine].double() @ matrices[expert].double().t()
    return out


def grouped_bf16(found: Problem, matrices: torch.Tensor) -> OwnReference:
    """Return torch's grouped product in bfloat16 with some columns of each expert, repeated."""
    if not hasattr(torch.nn.functional, "grouped_mm"):
        raise SkipContender("this torch has no grouped_mm")
    some = matrices.bfloat16()
    reference = product(found.x, found.ids, some)
    b = some.repeat(1, found.layer.n // COLUMNS, 1).transpose(1, 2)
    a = found.x[found.order]
    return OwnReference(
        lambda: torch.nn.functional.grouped_mm(a, b, offs=found.ends), reference, found.from_sorted(reference)
    )


def scaled_grouped(
    a: torch.Tensor, b: torch.Tensor, a_scale: torch.Tensor, b_scale: torch.Tensor, ends: torch.Tensor
) -> torch.Tensor:
    """Return torch's grouped product of float8 with a scale for each row and each column of each expert."""
    return torch._scaled_grouped_mm(a, b, a_scale, b_scale, offs=ends, out_dtype=torch.bfloat16)


def rounded(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return x in float8 and a scale for each row."""
    scale = x.float().abs().amax(-1).clamp(min=1e-4) / 448
    return (x.float() / scale[..., None]).to(FLOAT8), scale


def grouped_fp8(bench: Bench, found: Problem, matrices: torch.Tensor) -> OwnReference:
    """Return torch's grouped product in float8, scaled by rows and columns."""
    if bench.device.type != "cuda":
        raise SkipContender("torch multiplies groups of float8 on a GPU only")
    if not hasattr(torch, "_scaled_grouped_mm"):
        raise SkipContender("this torch has no _scaled_grouped_mm")
    some, columns = rounded(matrices)
    times = found.layer.n // COLUMNS
    a, scale = rounded(found.x[found.order])
    b, b_scale = some.repeat(1, times, 1).transpose(1, 2), columns.repeat(1, times)
    sorted_ids = found.ids[found.order]
    plain = product(a, sorted_ids, some) * scale[:, None] * columns[sorted_ids]
    return OwnReference(
        lambda: scaled_grouped(a, b, scale, b_scale, found.ends), plain, worst_of_equal_columns(plain)
    )


def tilus_bf16(found: Problem, matrices: torch.Tensor) -> OwnReference:
    some = matrices.bfloat16()
    reference = product(found.x, found.ids, some)
    b = some.repeat(1, found.layer.n // COLUMNS, 1).transpose(1, 2)
    a, routing = found.padded, found.routing
    return OwnReference(
        lambda: ops.grouped_matmul(a, b, routing), reference, found.from_padded(reference)
    )


def tilus_fp8(found: Problem, matrices: torch.Tensor) -> OwnReference:
    some, columns = rounded(matrices)
    times, routing = found.layer.n // COLUMNS, found.routing
    codes, scale = rounded(found.x)
    reference = product(codes, found.ids, some) * scale[:, None] * columns[found.ids]
    a, a_scale = rounded(found.padded)
    b, b_scale = some.repeat(1, times, 1).transpose(1, 2), columns.repeat(1, times)
    return OwnReference(
        lambda: ops.grouped_matmul(a, b, routing, a_scale=a_scale, b_scale=b_scale),
        reference,
        found.from_padded(reference),
    )


def tilus_fp8_blocks(found: Problem, matrices: torch.Tensor) -> OwnReference:
    layer, routing = found.layer, found.routing
    flat, scale = ops.quantize_blocks(matrices.transpose(0, 1).reshape(COLUMNS, -1), rows=BLOCK)
    some, by_block = _experts_of(flat, scale, layer)
    codes, rows_scale = ops.quantize_blocks(found.x)
    dense = some.double() * by_block.double().repeat_interleave(BLOCK, 2)[:, :, : layer.k]
    rows = codes.double() * rows_scale.double().repeat_interleave(BLOCK, 1)[:, : layer.k]
    reference = product(rows, found.ids, dense)
    a, a_scale = ops.quantize_blocks(found.padded)
    b = some.repeat(1, layer.n // COLUMNS, 1)
    b_scale = by_block.repeat(1, -(-layer.n // BLOCK), 1)
    return OwnReference(
        lambda: ops.grouped_matmul_block_scaled(a, b, a_scale, b_scale, routing),
        reference,
        found.from_padded(reference),
    )


def _experts_of(codes: torch.Tensor, scale: torch.Tensor, layer: Layer) -> tuple[torch.Tensor, torch.Tensor]:
    raise AssertionError


def tilus_uint4(bench: Bench, found: Problem) -> OwnReference:
    """Return our product with weights of 4 bits; experts have the same codes, and factors of their own."""
    layer, routing = found.layer, found.routing
    group = BLOCK if layer.k % BLOCK == 0 else BLOCK // 2
    generator = torch.Generator().manual_seed(layer.k)
    values = torch.randn(layer.k, COLUMNS, generator=generator) / layer.k**0.5
    one = ops.quantize(values, "uint4", group, scale_dtype=torch.bfloat16)
    alpha = 1 + torch.arange(layer.experts).float() % 7
    reference = found.x.double() @ one.dequantize().to(bench.device)
    reference *= alpha.to(bench.device)[found.ids, None]
    wide = widen(one, layer.n // COLUMNS).to(bench.device)

    def of_all(x: torch.Tensor) -> torch.Tensor:
        return x.unsqueeze(0).repeat(layer.experts, *(1,) * x.ndim)

    zero = None if wide.zero is None else of_all(wide.zero)
    shape = (layer.experts, layer.k, layer.n)
    experts = ops.QuantizedExperts(
        wide.dtype, shape, group, of_all(wide.packed), of_all(wide.scale), zero, alpha.to(bench.device)
    )
    a = found.padded
    return OwnReference(
        lambda: ops.grouped_quantized_matmul(a, experts, routing), reference, found.from_padded(reference)
    )
