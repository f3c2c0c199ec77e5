"""Products with quantised weights on the GPU, beside float16 cuBLAS, torch's int4 kernel, Triton, and the bytes.

    python benchmarks/quantized_matmul.py [--types uint4 ...] [--part NAME] [--seconds 600] [--out FILE] [--dry-run]

`floor` is the time in which the card's measured copy bandwidth moves all bytes once: weights, scales, activations and
the result. Weights are random codes of 64 columns, repeated: kernels read each column from memory of its own, and the
check against float64 sees all columns of the result.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import lru_cache

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
from matmul import best_of, triton_kernels

from tilus import dtypes, ops

ROWS = (1, 4, 8, 16, 32, 64, 128, 256, 1024, 4096)
# (n, k): query-key-value, output, gate and up, down.
LAYERS = {
    "wide": ((57344, 8192),),
    "llama-8b": ((6144, 4096), (4096, 4096), (28672, 4096), (4096, 14336)),
    "llama-70b": ((10240, 8192), (8192, 8192), (57344, 8192), (8192, 28672)),
    "qwen-32b": ((7168, 5120), (5120, 5120), (55296, 5120), (5120, 27648)),
}
COLUMNS = 64
GROUP = 128
ALL_TYPES = (
    *(t.name for t in dtypes.NAMED if t.bits <= 8 and t.kind in ("int", "uint", "float", "table")),
    "mxfp4", "nvfp4", "mxfp6",
)  # fmt: skip
# One of each way to decode, at most widths.
SOME_TYPES = (
    "uint4", "uint8", "uint2", "uint1", "uint3", "int4", "float6_e3m2", "float4_e2m1", "float8_e4m3", "nf4", "ternary", "mxfp4",
    "nvfp4",
)  # fmt: skip
DRY_TYPES = ("uint4", "uint3", "int8", "uint1", "float6_e3m2", "nf4", "mxfp4", "nvfp4")
# Formats with scales of 8 bits: the codes, the group, and the scales.
FORMATS = {
    "mxfp4": ("float4_e2m1", 32, "float8_e8m0"), "nvfp4": ("float4_e2m1", 16, "float8_e4m3"),
    "mxfp6": ("float6_e3m2", 32, "float8_e8m0"),
}  # fmt: skip


@dataclass(frozen=True)
class Case:
    layer: str
    dtype: str
    m: int
    n: int
    k: int


def cases(part: str | None, types: list[str] | None, dry_run: bool) -> Iterator[Case]:
    """Yield cases, the most telling first: all widths where the targets are, then rows, layers and types."""
    if dry_run:
        for i, name in enumerate(types or DRY_TYPES):
            yield Case("dry", name, (1, 16, 40)[i % 3], 128, 256)
        return
    seen = set()
    for case in _all_cases(part, types):
        key = replace(case, layer="")
        if key not in seen:
            seen.add(key)
            yield case


def _all_cases(part: str | None, types: list[str] | None) -> Iterator[Case]:
    wide = LAYERS["wide"][0]
    if part in (None, "widths"):
        for name in types or [*SOME_TYPES, *(t for t in ALL_TYPES if t not in SOME_TYPES)]:
            yield Case("wide", name, 16, *wide)
    if part in (None, "rows"):
        for name in types or ("uint4", "uint2", "uint8"):
            for m in ROWS:
                yield Case("wide", name, m, *wide)
    if part in (None, "layers"):
        for m in (1, 16, 4096, 64, 256, 1024, 4, 8, 32, 128):
            for layer in ("llama-8b", "llama-70b", "qwen-32b"):
                for n, k in LAYERS[layer]:
                    for name in types or ("uint4",):
                        yield Case(layer, name, m, n, k)
    if part in (None, "types"):
        for m in (1, 4096):
            for name in types or ALL_TYPES:
                yield Case("wide", name, m, *wide)


def widen(weight: ops.QuantizedWeight, times: int) -> ops.QuantizedWeight:
    """Return the weight with its columns repeated; `tests/benchmarks` sees that this is what `quantize` would make."""
    k, n = weight.shape
    zero = None if weight.zero is None else weight.zero.repeat(1, times)
    return replace(
        weight,
        shape=(k, n * times),
        packed=weight.packed.repeat(1, times, *(1,) * (weight.packed.ndim - 2)),
        scale=weight.scale.repeat(1, times),
        zero=zero,
    )


@lru_cache(maxsize=4)
def narrow_weight(
    dtype: str, k: int, activations: torch.dtype | None = None
) -> tuple[ops.QuantizedWeight, torch.Tensor]:
    """Return a quantised weight of a few columns, and its values."""
    generator = torch.Generator().manual_seed(k)
    values = torch.randn(k, COLUMNS, generator=generator) / k**0.5
    code, group, scales = FORMATS.get(dtype, (dtype, GROUP, torch.float16))
    out_dtype = torch.float16 if dtype in FORMATS else None
    weight = ops.quantize(
        values, code, group, scale_dtype=scales, activations=activations, out_dtype=out_dtype
    )
    return weight, weight.dequantize()


def with_int8(bench: Bench, a: torch.Tensor, case: Case) -> OwnReference:
    """Return the product with activations of 8 bits, which were rounded before."""
    narrow, values = narrow_weight(case.dtype, case.k, torch.int8)
    weight = widen(narrow, case.n // COLUMNS).to(bench.device)
    tokens = ops.quantize_tokens(a, torch.int8)
    reference = tokens.dequantize() @ values.to(bench.device)
    return OwnReference(
        lambda: ops.quantized_matmul(tokens, weight), reference, worst_of_equal_columns(reference)
    )


def worst_of_equal_columns(reference: torch.Tensor) -> Callable[[torch.Tensor], torch.Tensor]:
    """Return a function that brings a result into the reference's shape: the copy that is farthest off, doubted most."""

    def view(out: torch.Tensor) -> torch.Tensor:
        copies = out.reshape(reference.shape[0], -1, reference.shape[1]).double()
        worst = (copies - reference[:, None, :]).abs().amax(1)
        return reference + torch.where(worst.isfinite(), worst, torch.inf)

    return view


def triton_int4(
    bench: Bench, a: torch.Tensor, weight: ops.QuantizedWeight, times: int, chosen: dict[str, str]
) -> OwnReference:
    """Return the Triton kernel on the weight's codes; its zero is the code 8, ours between two codes."""
    kernels = triton_kernels(bench)
    codes = torch.from_numpy(weight.codes())
    scale = weight.scale[:, :COLUMNS]
    values = (codes.double() - 8) * scale.double().repeat_interleave(GROUP, 0)
    reference = a.double() @ values.to(bench.device)
    packed = kernels.pack_int4(codes).repeat(1, times).to(bench.device)
    variants = kernels.int4_variants(a, packed, scale.repeat(1, times).contiguous().to(bench.device))
    return OwnReference(best_of(bench, variants, chosen), reference, worst_of_equal_columns(reference))


def tinygemm(bench: Bench, m: int, n: int, k: int) -> OwnReference:
    """Return torch's own int4 product, which is in bfloat16 and has float zero points."""
    if bench.dry_run:
        raise SkipContender("the weight's layout for torch's kernel is another one on the CPU")
    generator = torch.Generator().manual_seed(k)
    codes = torch.randint(0, 16, (COLUMNS, k), generator=generator)
    scale = ((torch.rand(k // GROUP, COLUMNS, generator=generator) + 0.5) / 8 / k**0.5).bfloat16()
    zero = (torch.randn(k // GROUP, COLUMNS, generator=generator) / 4 / k**0.5).bfloat16()
    values = (codes.T.double() - 8) * scale.double().repeat_interleave(GROUP, 0)
    values += zero.double().repeat_interleave(GROUP, 0)
    times = n // COLUMNS
    bytes_ = ((codes[:, ::2] << 4) | codes[:, 1::2]).to(torch.uint8).repeat(times, 1).to(bench.device)
    packed = torch._convert_weight_to_int4pack(bytes_, 8)
    both = torch.stack([scale, zero], 2).repeat(1, times, 1).contiguous().to(bench.device)
    a = torch.randn(m, k, device=bench.device).bfloat16()
    reference = a.double() @ values.to(bench.device)
    return OwnReference(
        lambda: torch._weight_int4pack_mm(a, packed, GROUP, both),
        reference,
        worst_of_equal_columns(reference),
    )


def run_case(bench: Bench, case: Case, bandwidth: float) -> None:
    """Compare on one case."""
    named = {"layer": case.layer, "type": case.dtype, "m": case.m, "n": case.n, "k": case.k}
    named["group"] = FORMATS[case.dtype][1] if case.dtype in FORMATS else GROUP
    if bench.done(named):
        return
    times = case.n // COLUMNS
    narrow, values = narrow_weight(case.dtype, case.k)
    weight = widen(narrow, times).to(bench.device)
    a = torch.randn(case.m, case.k, device=bench.device).half()
    reference = a.double() @ values.to(bench.device)
    side = sum(x.numel() * x.element_size() for x in (weight.scale, weight.zero) if x is not None)
    activations = 2 * (a.numel() + case.m * case.n)
    size = weight.packed.numel() + side + activations
    flops = 2 * case.m * case.n * case.k

    def cublas() -> Run:
        dense = values.half().T.contiguous().repeat(times, 1).to(bench.device)
        return lambda: torch.nn.functional.linear(a, dense)

    def tilus() -> Run:
        return lambda: ops.quantized_matmul(a, weight)

    chosen: dict[str, str] = {}
    others = [
        Contender("triton int4", lambda: triton_int4(bench, a, narrow, times, chosen), bound=0.01),
        Contender("torch int4", lambda: tinygemm(bench, case.m, case.n, case.k), bound=0.02),
    ]
    integer = case.dtype not in FORMATS and dtypes.dtype(case.dtype).is_integer
    by_bytes = [Contender("tilus int8", lambda: with_int8(bench, a, case), bound=0.01)]
    rows = bench.compare(
        named,
        [
            Contender("cublas float16", cublas),
            *(others if case.dtype == "uint4" else []),
            Contender("tilus", tilus),
            *(by_bytes if integer else []),
        ],
        reference,
        2 * rounding_error(reference, torch.float16),
        lambda us: {
            "tflops": flops / us / 1e6,
            "gbps": size / us / 1e3,
            "floor_share": size / bandwidth * 1e6 / us,
        },
        view=worst_of_equal_columns(reference),
        raise_bound_by="cublas float16",
    )
    for name, row in rows.items():
        if name == "triton int4":
            row.note = row.note or chosen.get("variant", "")
        if name == "cublas float16" and row.cold is not None:
            moved = 2 * case.n * case.k + activations
            row.figures |= {"gbps": round(moved / row.cold.median / 1e3, 3)}
            row.figures["floor_share"] = round(moved / bandwidth * 1e6 / row.cold.median, 3)
    bench.save()


def main() -> None:
    parser = options(__doc__)
    parser.add_argument(
        "--types", nargs="*", choices=ALL_TYPES, help="weight types; a choice for each part by default"
    )
    parser.add_argument("--part", choices=("widths", "rows", "layers", "types"), help="one part only")
    parsed = parser.parse_args()
    if needs_gpu(parsed):
        return
    bench = Bench("quantized_matmul", parsed)
    bandwidth = 4.0e12 if bench.dry_run else copy_bandwidth()
    bench.facts["copy_bytes_per_second"] = bandwidth
    for case in cases(parsed.part, parsed.types, bench.dry_run):
        if bench.out_of_time:
            break
        with bench.guarded():
            run_case(bench, case, bandwidth)
    bench.finish()


if __name__ == "__main__":
    main()
