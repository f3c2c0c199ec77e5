"""Matrix products on the GPU: `tilus.ops.matmul` beside cuBLAS (torch) and Triton, TFLOP/s with cold and warm L2.

    python benchmarks/matmul.py [--types bf16 fp8 fp8_blocks] [--seconds 600] [--out FILE] [--dry-run]

The weight is the transpose of a row-major n x k matrix, as in a linear layer; `order=nn` cases have it row-major.
`fp8` has a scale for each row and column, or each tensor; `fp8_blocks` one for each 1 x 128 of a and 128 x 128 of b.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from _harness import Bench, Contender, Run, SkipContender, needs_gpu, options, rounding_error
from torch.nn import functional

try:
    import triton
    import triton.language as tl
except ImportError:
    triton = None

TYPES = {
    "bf16": torch.bfloat16, "fp16": torch.float16, "tf32": torch.float32, "int8": torch.int8, "fp8": torch.float8_e4m3fn,
    "fp8_blocks": torch.float8_e4m3fn,
}  # fmt: skip
EIGHT_BIT = ("int8", "fp8")
BLOCK = 128
# (n, k) of the linear layers: query-key-value, output, gate and up, down.
LLAMA_70B = ((10240, 8192), (8192, 8192), (57344, 8192), (8192, 28672))
ROWS = (16, 128, 1024, 4096, 8192)
DRY_CASES = ((16, 64, 64, "nt"), (64, 128, 128, "nn"), (40, 72, 128, "nt"))


def cases(dry_run: bool) -> Iterator[tuple[int, int, int, str]]:
    """Yield m, n, k and the order of the operands, the most telling first."""
    if dry_run:
        yield from DRY_CASES
        return
    yield 8192, 8192, 8192, "nt"
    yield 4096, 4096, 4096, "nt"
    yield 8192, 8192, 8192, "nn"
    for m in sorted(ROWS, key=lambda m: m != 4096):
        for n, k in LLAMA_70B:
            if (m, n, k) != (8192, 8192, 8192):
                yield m, n, k, "nt"


def operands(
    bench: Bench, name: str, m: int, n: int, k: int, order: str
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return random operands of the case's types."""
    dtype = TYPES[name]
    shapes = ((m, k), (n, k) if order == "nt" else (k, n))
    if name == "int8":
        made = [torch.randint(-127, 128, shape, dtype=dtype, device=bench.device) for shape in shapes]
    else:
        made = [torch.randn(shape, device=bench.device).to(dtype) for shape in shapes]
    return made[0], made[1].T if order == "nt" else made[1]


def best_of(bench: Bench, variants: dict[str, Callable[[], torch.Tensor]], chosen: dict[str, str]) -> Run:
    """Return the fastest of several ways; one that fails is left out."""
    times: dict[str, float] = {}
    failure: Exception | None = None
    for name, run in variants.items():
        try:
            times[name] = bench.timer.quick(run) if bench.timer is not None else float(run().numel() * 0)
        except Exception as error:
            failure = error
    if not times:
        raise failure or SkipContender("no variant suits the shape")
    winner = min(times, key=lambda name: times[name])
    chosen["variant"] = winner
    return variants[winner]


def triton_kernels(bench: Bench) -> Any:
    """Return the module of Triton's kernels."""
    try:
        import _triton_kernels
    except ImportError as error:
        raise SkipContender(f"Triton cannot be imported: {error}") from None
    import os

    if bench.dry_run and os.environ.get("TRITON_INTERPRET") != "1":
        raise SkipContender("Triton runs without a GPU only with TRITON_INTERPRET=1")
    return _triton_kernels


def contenders(
    bench: Bench, name: str, a: torch.Tensor, b: torch.Tensor, scales: tuple[torch.Tensor, torch.Tensor] | None,
    chosen: dict[str, str],
) -> list[Contender]:  # fmt: skip
    """Return who takes part in a case."""
    from tilus import ops

    def tilus() -> Run:
        if scales is None:
            return lambda: ops.matmul(a, b)
        return lambda: ops.matmul(a, b, a_scale=scales[0], b_scale=scales[1])

    def tilus_by_tensor() -> Run:
        # All rows have one scale, which the caller sees to.
        assert scales is not None
        left, right = scales[0][0], scales[1][0]
        return lambda: ops.matmul(a, b, a_scale=left, b_scale=right)

    def cublas() -> Run:
        if name == "tf32":
            torch.backends.cuda.matmul.allow_tf32 = True
        return lambda: a @ b

    def scaled_mm(per_row: bool, fast: bool) -> Run:
        assert scales is not None
        if b.stride(0) != 1:
            raise SkipContender("torch._scaled_mm wants the transpose of a row-major matrix")
        if per_row and a.device.type == "cpu":
            raise SkipContender("torch scales by row on a GPU only")
        # Both ways compute the same numbers only where all rows have one scale, which the caller sees to.
        left = scales[0][:, None] if per_row else scales[0][:1].reshape(())
        right = scales[1][None, :] if per_row else scales[1][:1].reshape(())
        if per_row:
            left, right = left.contiguous(), right.contiguous()
        return lambda: torch._scaled_mm(
            a, b, scale_a=left, scale_b=right, out_dtype=torch.bfloat16, use_fast_accum=fast
        )

    def int_mm() -> Run:
        assert scales is not None
        return lambda: (torch._int_mm(a, b) * (scales[0][:, None] * scales[1][None, :])).to(torch.bfloat16)

    def triton() -> Run:
        kernels = triton_kernels(bench)
        if name == "int8":
            raise SkipContender("the Triton kernel accumulates in float32")
        if bench.dry_run and name == "bf16":
            raise SkipContender("Triton's interpreter multiplies the bits of bfloat16 as integers")
        out = torch.bfloat16 if scales is not None else a.dtype
        return best_of(bench, kernels.matmul_variants(a, b, out, scales), chosen)

    if name == "fp8":
        theirs = [
            Contender("cublas", lambda: scaled_mm(False, False)),
            Contender("cublas fast accumulation", lambda: scaled_mm(False, True), bound=0.05),
            Contender("cublas scaled by row", lambda: scaled_mm(True, False)),
        ]
    elif name == "int8":
        theirs = [Contender("cublas", int_mm)]
    else:
        theirs = [Contender("cublas", cublas)]
    ours = [Contender("tilus", tilus)]
    if name == "fp8":
        ours.append(Contender("tilus scaled by tensor", tilus_by_tensor))
    return [*theirs, Contender("triton", triton), *ours]


# Tile m, n, warps, stages; a tile along k is one block of scales.
BLOCK_CONFIGS = ((128, 128, 8, 3), (128, 128, 4, 4), (64, 128, 4, 4), (16, 128, 4, 5))

if triton is not None:

    @triton.jit
    def matmul_blocks(
        a, b, c, a_scale, b_scale, m, n, k, stride_scale_m, stride_scale_k, stride_scale_n,
        BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, GROUP: tl.constexpr,
    ):  # fmt: skip
        """c = (a a_scale) (b b_scale)^T for k of whole blocks: each block's product is scaled, then added up."""
        pid = tl.program_id(0)
        rows_of_tiles, columns_of_tiles = tl.cdiv(m, BLOCK_M), tl.cdiv(n, BLOCK_N)
        first = pid // (GROUP * columns_of_tiles) * GROUP
        height = min(rows_of_tiles - first, GROUP)
        within = pid % (GROUP * columns_of_tiles)
        i, j = first + within % height, within // height
        rows, columns = i * BLOCK_M + tl.arange(0, BLOCK_M), j * BLOCK_N + tl.arange(0, BLOCK_N)
        depth = tl.arange(0, BLOCK_K)
        a_at = a + (rows % m)[:, None].to(tl.int64) * k + depth[None, :]
        b_at = b + (columns % n)[None, :].to(tl.int64) * k + depth[:, None]
        by_row = a_scale + (rows % m) * stride_scale_m
        by_block = b_scale + j * BLOCK_N // 128 * stride_scale_n
        acc = tl.zeros((BLOCK_M, BLOCK_N), dtype=tl.float32)
        for step in range(k // BLOCK_K):
            factor = tl.load(by_row + step * stride_scale_k) * tl.load(by_block + step)
            acc += tl.dot(tl.load(a_at), tl.load(b_at)) * factor[:, None]
            a_at += BLOCK_K
            b_at += BLOCK_K
        keep = (rows[:, None] < m) & (columns[None, :] < n)
        tl.store(c + rows[:, None].to(tl.int64) * n + columns[None, :], acc.to(c.dtype.element_ty), mask=keep)


def triton_block_variants(
    bench: Bench, a: torch.Tensor, b: torch.Tensor, a_scale: torch.Tensor, b_scale: torch.Tensor
) -> dict[str, Callable[[], torch.Tensor]]:
    """Return the ways to compute the product that are worth trying, by name; none where k has a part of a block."""
    (m, k), n = a.shape, b.shape[0]
    triton_kernels(bench)
    variants: dict[str, Callable[[], torch.Tensor]] = {}
    if k % 128:
        return variants
    by_block = b_scale.contiguous()
    for block_m, block_n, warps, stages in BLOCK_CONFIGS:
        if block_m > max(2 * m, 16):
            continue

        def run(bm: int = block_m, bn: int = block_n, w: int = warps, s: int = stages) -> torch.Tensor:
            c = torch.empty((m, n), dtype=torch.bfloat16, device=a.device)
            matmul_blocks[(triton.cdiv(m, bm) * triton.cdiv(n, bn),)](
                a, b, c, a_scale, by_block, m, n, k, a_scale.stride(0), a_scale.stride(1), by_block.stride(0),
                BLOCK_M=bm, BLOCK_N=bn, BLOCK_K=128, GROUP=8, num_warps=w, num_stages=s,
            )  # fmt: skip
            return c

        variants[f"{block_m}x{block_n} {warps} warps {stages} stages"] = run
    return variants


def block_contenders(
    bench: Bench, a: torch.Tensor, b: torch.Tensor, a_scale: torch.Tensor, b_scale: torch.Tensor, chosen: dict[str, str],
) -> list[Contender]:  # fmt: skip
    """Return who multiplies float8 matrices a and b with a scale for each block."""
    from tilus import ops

    def tilus() -> Run:
        return lambda: ops.matmul_block_scaled(a, b, a_scale, b_scale)

    def cublas() -> Run:
        if a.device.type != "cuda":
            raise SkipContender("torch scales by blocks on a GPU only")
        if not hasattr(functional, "scaled_mm"):
            raise SkipContender("this torch has no scaled_mm")
        row, square = functional.ScalingType.BlockWise1x128, functional.ScalingType.BlockWise128x128
        left, right = a_scale.t().contiguous().t(), b_scale.contiguous().t()
        return lambda: functional.scaled_mm(a, b.t(), left, row, right, square, output_dtype=torch.bfloat16)

    def dequantised() -> Run:
        left, right = (x.bfloat16() for x in scaled_operands(a, b, a_scale, b_scale, torch.float32))
        return lambda: left @ right.t()

    def triton() -> Run:
        variants = triton_block_variants(bench, a, b, a_scale, b_scale)
        return best_of(bench, variants, chosen)

    return [
        Contender("cublas", cublas),
        # Its operands are rounded once more before they are multiplied.
        Contender("cublas bf16", dequantised, bound=2.0**-8),
        Contender("triton", triton),
        Contender("tilus", tilus),
    ]


def scaled_operands(
    a: torch.Tensor, b: torch.Tensor, a_scale: torch.Tensor, b_scale: torch.Tensor, dtype: torch.dtype
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return a and b times the scales of their blocks."""
    by_row = a_scale.to(dtype).repeat_interleave(BLOCK, 1)[:, : a.shape[1]]
    by_block = b_scale.to(dtype).repeat_interleave(BLOCK, 0)[: b.shape[0]].repeat_interleave(BLOCK, 1)
    return a.to(dtype) * by_row, b.to(dtype) * by_block[:, : b.shape[1]]


def run_blocks(bench: Bench, m: int, n: int, k: int) -> None:
    """Compare on one case of operands with a scale for each block."""
    case = {"type": "fp8_blocks", "m": m, "n": n, "k": k, "order": "nt"}
    if bench.done(case):
        return
    from tilus import ops

    a, a_scale = ops.quantize_blocks(torch.randn(m, k, device=bench.device, dtype=torch.bfloat16))
    b, b_scale = ops.quantize_blocks(torch.randn(n, k, device=bench.device, dtype=torch.bfloat16), rows=BLOCK)
    left, right = scaled_operands(a, b, a_scale, b_scale, torch.float64)
    reference = left @ right.t()
    del left, right
    flops, size = 2 * m * n * k, a.numel() + b.numel() + 2 * m * n
    chosen: dict[str, str] = {}
    rows = bench.compare(
        case,
        block_contenders(bench, a, b, a_scale, b_scale, chosen),
        reference,
        2 * rounding_error(reference, torch.bfloat16),
        lambda us: {"tflops": flops / us / 1e6, "gbps": size / us / 1e3},
    )
    rows["triton"].note = rows["triton"].note or chosen.get("variant", "")
    bench.save()


def run_case(bench: Bench, name: str, m: int, n: int, k: int, order: str) -> None:
    """Compare on one case."""
    case = {"type": name, "m": m, "n": n, "k": k, "order": order}
    if bench.done(case):
        return
    a, b = operands(bench, name, m, n, k, order)
    reference = a.double() @ b.double()
    scales = None
    if name in EIGHT_BIT:
        scales = torch.full((m,), 0.5, device=bench.device), torch.full((n,), 0.03125, device=bench.device)
        reference *= 0.5 * 0.03125
    out_dtype = torch.bfloat16 if scales is not None else TYPES[name]
    # What rounding the exact result once costs, doubled; operands in tf32 lose bits before they are multiplied.
    bound = 2 * rounding_error(reference, out_dtype) if name != "tf32" else 2.0**-10
    flops = 2 * m * n * k
    size = a.numel() * a.itemsize + b.numel() * b.itemsize + m * n * out_dtype.itemsize
    chosen: dict[str, str] = {}
    rows = bench.compare(
        case,
        contenders(bench, name, a, b, scales, chosen),
        reference,
        bound,
        lambda us: {"tflops": flops / us / 1e6, "gbps": size / us / 1e3},
        raise_bound_by="cublas",
    )
    if "triton" in rows:
        rows["triton"].note = rows["triton"].note or chosen.get("variant", "")
    bench.save()


def main() -> None:
    parser = options(__doc__)
    parser.add_argument("--types", nargs="*", choices=TYPES, default=["bf16", "fp8", "fp8_blocks"])
    parsed = parser.parse_args()
    if needs_gpu(parsed):
        return
    bench = Bench("matmul", parsed)
    if not bench.dry_run:
        from _harness import copy_bandwidth

        bench.facts["copy_bytes_per_second"] = copy_bandwidth()
    for m, n, k, order in cases(bench.dry_run):
        for name in parsed.types:
            if bench.out_of_time:
                break
            if TYPES[name].itemsize == 1 and order != "nt":
                continue
            with bench.guarded():
                if name == "fp8_blocks":
                    run_blocks(bench, m, n, k)
                else:
                    run_case(bench, name, m, n, k, order)
    bench.finish()


if __name__ == "__main__":
    main()
