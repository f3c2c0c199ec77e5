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
from tilus.ops.routing import capacity

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
    """Return our product in bfloat16."""
    some = matrices.bfloat16()
    reference = product(found.x, found.ids, some)
    b = some.repeat(1, found.layer.n // COLUMNS, 1).transpose(1, 2)
    a, routing = found.padded, found.routing
    return OwnReference(lambda: ops.grouped_matmul(a, b, routing), reference, found.from_padded(reference))


def tilus_fp8(found: Problem, matrices: torch.Tensor) -> OwnReference:
    """Return our product in float8, scaled by rows and columns."""
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


def rounded_blocks(matrices: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return matrices in float8 and a scale for each BLOCK along k, which all of the few columns share."""
    experts, columns, k = matrices.shape
    steps = -(-k // BLOCK)
    padded = torch.nn.functional.pad(matrices, (0, steps * BLOCK - k)).view(experts, columns, steps, BLOCK)
    scale = padded.abs().amax((1, 3)).clamp(min=1e-4) / 448
    codes = (padded / scale[:, None, :, None]).view(experts, columns, -1)[..., :k]
    return codes.to(FLOAT8), scale[:, None, :]


def tilus_fp8_blocks(found: Problem, matrices: torch.Tensor) -> OwnReference:
    """Return our product in float8, scaled by 1 x 128 and 128 x 128."""
    layer, routing = found.layer, found.routing
    some, scale = rounded_blocks(matrices)
    codes, rows_scale = ops.quantize_blocks(found.x)
    left, right = (
        x.double() * y.double().repeat_interleave(BLOCK, -1)[..., : layer.k]
        for x, y in ((codes, rows_scale), (some, scale))
    )
    reference = product(left, found.ids, right)
    a, a_scale = ops.quantize_blocks(found.padded)
    b = some.repeat(1, layer.n // COLUMNS, 1)
    b_scale = scale.repeat(1, -(-layer.n // BLOCK), 1)
    return OwnReference(
        lambda: ops.grouped_matmul_block_scaled(a, b, a_scale, b_scale, routing),
        reference,
        found.from_padded(reference),
    )


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


BITS = {"bf16": (16, 16), "fp8": (8, 8), "fp8_blocks": (8, 8), "uint4": (16, 4)}
"""Of activations and of matrices."""


def contenders(bench: Bench, name: str, found: Problem) -> list[Contender]:
    """Return who multiplies in a type; bfloat16 is beside all of them."""
    matrices = narrow(bench, found.layer)
    ours: dict[str, Callable[[], OwnReference]] = {
        "bf16": lambda: tilus_bf16(found, matrices),
        "fp8": lambda: tilus_fp8(found, matrices),
        "fp8_blocks": lambda: tilus_fp8_blocks(found, matrices),
        "uint4": lambda: tilus_uint4(bench, found),
    }
    theirs = [Contender("grouped_mm bf16", lambda: grouped_bf16(found, matrices))]
    if name.startswith("fp8"):
        theirs.append(Contender("scaled_grouped_mm", lambda: grouped_fp8(bench, found, matrices)))
    # Weights of 4 bits are rounded to bfloat16 once more before they are multiplied.
    return [*theirs, Contender("tilus", ours[name], bound=0.01 if name == "uint4" else None)]


def run_case(bench: Bench, layer: Layer, m: int, name: str, bandwidth: float) -> None:
    """Compare on one case of products."""
    case = {"layer": layer.name, "type": name, "m": m, **sizes(layer)}
    if bench.done(case):
        return
    block = block_of(layer, m, *((8, 64) if name == "uint4" else (16, 128)))
    found = problem(bench, layer, m, block)
    a_bits, b_bits = BITS[name]
    rows, hit = found.x.shape[0], found.ids.unique().numel()
    flops = 2 * rows * layer.n * layer.k
    size = hit * layer.n * layer.k * b_bits / 8 + rows * (layer.k * a_bits / 8 + 2 * layer.n)
    typical = torch.randn(4096, dtype=torch.float64)
    table = bench.compare(
        case,
        contenders(bench, name, found),
        typical,
        2 * rounding_error(typical, torch.bfloat16),
        lambda us: {
            "tflops": flops / us / 1e6,
            "gbps": size / us / 1e3,
            "floor_share": size / bandwidth * 1e6 / us,
        },
        raise_bound_by="scaled_grouped_mm",
    )
    table["tilus"].note = table["tilus"].note or f"blocks of {block} rows"
    bench.save()


def sizes(layer: Layer) -> dict[str, int]:
    """Return what a case says of a layer besides its name."""
    return {key: value for key, value in asdict(layer).items() if key != "name"}


def torch_route(logits: torch.Tensor, top_k: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return weights and experts as `ops.route` does, in torch's operations."""
    weights, ids = logits.softmax(-1).topk(top_k)
    return weights / weights.sum(-1, keepdim=True), ids.int()


def torch_sort(ids: torch.Tensor, experts: int, block: int) -> torch.Tensor:
    """Return `ops.sort_by_expert(...).rows` in torch's operations, without waiting for the device."""
    flat = ids.flatten().long()
    order = flat.argsort(stable=True)
    counts = torch.zeros(experts, dtype=torch.int64, device=ids.device).scatter_add_(
        0, flat, torch.ones_like(flat)
    )
    filled = (counts + block - 1) // block * block
    starts, firsts = filled.cumsum(0) - filled, counts.cumsum(0) - counts
    mine = flat[order]
    places = starts[mine] + torch.arange(flat.numel(), device=ids.device) - firsts[mine]
    rows = torch.full((capacity(flat.numel(), experts, block),), -1, device=ids.device)
    return rows.scatter_(0, places, order)


def run_routing(bench: Bench, layer: Layer, m: int, step: str, bandwidth: float) -> None:
    """Compare one of the steps around the products with the same in torch's operations."""
    case = {"layer": layer.name, "type": step, "m": m, **sizes(layer)}
    if bench.done(case):
        return
    block = block_of(layer, m, 16, 128)
    found = problem(bench, layer, m, block)
    routing, top_k = found.routing, layer.top_k
    logits = torch.randn(m, layer.experts, device=bench.device)
    weights, ids = torch_route(logits, top_k)
    taken, places = routing.rows.long().clamp(min=0), routing.places.long()
    filled = (routing.rows < 0)[:, None]
    x = torch.randn(m, layer.k, device=bench.device).bfloat16()
    y = torch.randn(routing.rows.shape[0], layer.k, device=bench.device).bfloat16()

    def torch_gather() -> torch.Tensor:
        return x[taken // top_k].masked_fill_(filled, 0)

    def torch_combine() -> torch.Tensor:
        return torch.einsum("mtk,mt->mk", y[places].float(), weights).bfloat16()

    # What torch runs, what we run, what is exact, the error allowed, and the bytes to move.
    doubled = torch_route(logits.double(), top_k)[0]
    gathered = x.double()[taken // top_k].masked_fill_(filled, 0)
    combined = torch.einsum("mtk,mt->mk", y[places].double(), weights.double())
    steps: dict[str, tuple[Run, Run, torch.Tensor, float, int]] = {
        "route": (
            lambda: torch_route(logits, top_k)[0], lambda: ops.route(logits, top_k)[0], doubled, 1e-5,
            4 * logits.numel() + 8 * ids.numel(),
        ),
        "sort": (
            lambda: torch_sort(ids, layer.experts, block),
            lambda: ops.sort_by_expert(ids, layer.experts, block).rows,
            torch_sort(ids, layer.experts, block).double(), 0.0, 4 * (2 * ids.numel() + routing.rows.numel()),
        ),
        "gather": (
            torch_gather, lambda: ops.gather_rows(x, routing, top_k), gathered, 0.0, 2 * (x.numel() + y.numel()),
        ),
        "combine": (
            torch_combine, lambda: ops.combine(y, weights, routing), combined,
            2 * rounding_error(combined, torch.bfloat16), 2 * (x.numel() + ids.numel() * layer.k),
        ),
    }  # fmt: skip
    theirs, ours, exact, bound, size = steps[step]
    bench.compare(
        case,
        [Contender("torch ops", lambda: theirs), Contender("tilus", lambda: ours)],
        exact,
        bound,
        lambda us: {"tflops": 0.0, "gbps": size / us / 1e3, "floor_share": size / bandwidth * 1e6 / us},
    )


STEPS = ("route", "sort", "gather", "combine")


def cases(dry_run: bool, types: list[str]) -> Iterator[tuple[Layer, int, str]]:
    """Yield cases, the most telling rows and layers first, and the steps around products after them."""
    if dry_run:
        for m, name in (
            (3, "bf16"),
            (37, "bf16"),
            (9, "fp8"),
            (3, "fp8_blocks"),
            (200, "fp8_blocks"),
            (3, "uint4"),
        ):
            yield from ((layer, m, name) for layer in DRY_LAYERS if name in types)
        yield from ((DRY_LAYERS[0], 19, step) for step in STEPS)
        return
    for i, m in enumerate(ROWS):
        yield from ((layer, m, name) for layer in LAYERS for name in types)
        if i < 2:
            yield from ((layer, m, step) for layer in LAYERS if layer.name.endswith("up") for step in STEPS)


def main() -> None:
    parser = options(__doc__)
    parser.add_argument("--types", nargs="*", choices=TYPES, default=list(TYPES), help="of the products")
    parsed = parser.parse_args()
    if needs_gpu(parsed):
        return
    bench = Bench("mixture_of_experts", parsed)
    bandwidth = 4.0e12 if bench.dry_run else copy_bandwidth()
    bench.facts["copy_bytes_per_second"] = bandwidth
    for layer, m, name in cases(bench.dry_run, parsed.types):
        if bench.out_of_time:
            break
        with bench.guarded():
            (run_routing if name in STEPS else run_case)(bench, layer, m, name, bandwidth)
    bench.finish()


if __name__ == "__main__":
    main()
