"""One kernel of each family on the GPU, compared with torch in float64: the first minute on a new machine.

    python benchmarks/smoke.py [--small] [--out FILE] [--dry-run]

The order is that in which one thing rests on another: loads and stores, shared memory, tensor maps, tensor cores, warp
specialisation, clusters, and the ops that are made of them. Each case is named, right or wrong by the error of a result
that was filled with NaN before, and not timed. One that fails never ends the others: where it takes the CUDA context with
it, `--resume` goes on after it, as `run_gpu.py` does by itself.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import torch
from _harness import Bench, Contender, Run, needs_gpu, options

import tilus
from tilus import Tensor, constexpr, float16, float32, ops

SEED = 3
HALF = 2.0**-9
"""Relative error that a product rounded to bfloat16 has at most."""
TF32 = 2.0**-10


@tilus.kernel
def add(x: Tensor[float32, "n"], y: Tensor[float32, "n"], out: Tensor[float32, "n"]):
    (n,) = x.shape
    tilus.grid(tilus.cdiv(n, 1024), warps=4)
    at = tilus.block_id() * 1024
    tilus.store(out, tilus.load(x, at, 1024) + tilus.load(y, at, 1024), at)


@tilus.kernel
def softmax(x: Tensor[float32, "m n"], out: Tensor[float32, "m n"], *, width: constexpr):
    tilus.grid(x.shape[0], warps=4)
    row = tilus.block_id()
    tile = tilus.load(x, (row, 0), (1, width), other=float("-inf"))
    powers = tilus.exp(tile - tilus.max(tile, axis=1, keepdims=True))
    tilus.store(out, powers / tilus.sum(powers, axis=1, keepdims=True), (row, 0))


@tilus.kernel
def copy_by_tensor_map(x: Tensor[float16, "m n"], out: Tensor[float16, "m n"]):
    m, n = x.shape
    tilus.grid(tilus.cdiv(m, 64), tilus.cdiv(n, 64), warps=4)
    bi, bj = tilus.block_id()
    tile = tilus.shared(float16, [64, 64])
    full = tilus.barrier()
    with tilus.warps(0, 1):
        tilus.copy_bulk(tile, x, [bi * 64, bj * 64], barrier=full)
        full.arrive(bytes=64 * 64 * 2)
    full.wait(0)
    tilus.store(out, tilus.load(tile), [bi * 64, bj * 64])


@tilus.kernel
def cluster_sums(x: Tensor[float32, "m n"], out: Tensor[float32, "m"], *, cluster: constexpr = 4):
    """Sums of rows, of which each block of a cluster finds a part that the others read."""
    tilus.grid(cluster, tilus.cdiv(x.shape[0], 8), warps=2, cluster=cluster)
    row = tilus.block_id(1) * 8
    mine = tilus.shared(float32, 8)
    tilus.store(mine, tilus.load(x, (row, tilus.cluster_rank() * 64), (8, 64)).sum(axis=1))
    tilus.cluster_sync()
    total = tilus.zeros(8)
    for rank in tilus.static_range(cluster):
        total += tilus.load(tilus.remote(mine, rank))
    tilus.store(out, total, row)
    tilus.cluster_sync()


@tilus.kernel
def next_step(x: Tensor[float32, "n"], out: Tensor[float32, "n"]):
    """One more than what the launch before wrote, begun before that has ended."""
    (n,) = x.shape
    tilus.grid(tilus.cdiv(n, 512), warps=4)
    at = tilus.block_id() * 512
    tilus.launch_next()
    tilus.wait_for_previous()
    tilus.store(out, tilus.load(x, n - 512 - at, 512) + 1.0, at)


class Cases:
    """Makes operands, and runs cases one after the other."""

    def __init__(self, bench: Bench, small: bool) -> None:
        self.bench, self.small = bench, small
        self.hopper = not bench.dry_run and torch.cuda.get_device_capability() == (9, 0) or bench.dry_run
        torch.manual_seed(SEED)

    def size(self, large: int, small: int) -> int:
        return small if self.small else large

    def normal(self, *shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
        return torch.randn(shape, device=self.bench.device).to(dtype)

    def nans(self, *shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
        return torch.full(shape, torch.nan, dtype=dtype, device=self.bench.device)

    def case(self, family: str, make: Callable[[], tuple[Run, torch.Tensor]], bound: float = HALF) -> None:
        """Run a case; `make` returns what computes it and, in float64, what it should be."""
        case = {"family": family}
        if self.bench.out_of_time or self.bench.done(case):
            return
        try:
            run, reference = make()
        except Exception as error:
            # The operands themselves come from kernels in some cases.
            message = f"{type(error).__name__}: {str(error).strip()}"

            def run(message: str = message) -> Any:
                raise RuntimeError(message)

            reference = torch.ones(1)
        self.bench.compare(case, [Contender("tilus", lambda: run)], reference, bound, lambda us: {})

    # Foundations.

    def foundations(self) -> None:
        n = self.size(1_000_003, 5003)
        x, y = self.normal(n), self.normal(n)
        self.case(
            "add",
            lambda: (self.into(self.nans(n), lambda out: add(x, y, out)), x.double() + y.double()),
            1e-7,
        )
        rows, width = self.size(1000, 9), self.size(3000, 300)
        s = self.normal(rows, width)
        padded = 1 << (width - 1).bit_length()
        self.case(
            "softmax",
            lambda: (
                self.into(self.nans(rows, width), lambda out: softmax(s, out, width=padded)),
                s.double().softmax(1),
            ),
            1e-5,
        )
        if not self.hopper:
            return
        h = self.normal(self.size(1000, 100), self.size(2040, 136), dtype=torch.float16)
        self.case(
            "tensor map",
            lambda: (
                self.into(torch.full_like(h, torch.nan), lambda out: copy_by_tensor_map(h, out)),
                h.double(),
            ),
            0.0,
        )
        c = self.normal(self.size(3200, 64), 256)
        self.case(
            "cluster",
            lambda: (self.into(self.nans(len(c)), lambda out: cluster_sums(c, out)), c.double().sum(1)),
            1e-6,
        )

        def steps() -> torch.Tensor:
            a, b = torch.zeros_like(long), torch.zeros_like(long)
            for _ in range(self.size(20, 2)):
                next_step(a, b)
                next_step(b, a)
            return a

        long = self.normal(self.size(512 * 1024, 512 * 4))
        expected = torch.full_like(long, 2.0 * self.size(20, 2)).double()
        self.case("launches that overlap", lambda: (steps, expected), 0.0)
        if not self.bench.dry_run:
            self.case("CUDA graph", lambda: self.captured(x, y), 1e-7)

    @staticmethod
    def into(out: torch.Tensor, run: Callable[[torch.Tensor], None]) -> Run:
        def call() -> torch.Tensor:
            run(out)
            return out

        return call

    def captured(self, x: torch.Tensor, y: torch.Tensor) -> tuple[Run, torch.Tensor]:
        inputs, out = (torch.zeros_like(x), torch.zeros_like(y)), torch.zeros_like(x)
        add.prepare(*inputs, out)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            add(*inputs, out)

        def run() -> torch.Tensor:
            for value, place in zip((x, y), inputs, strict=True):
                place.copy_(value)
            graph.replay()
            return out

        return run, x.double() + y.double()

    # Products.

    def product(
        self, family: str, m: int, n: int, k: int, dtype: torch.dtype, bound: float = HALF, order: str = "nt",
        **more: Any,
    ) -> None:  # fmt: skip
        def make() -> tuple[Run, torch.Tensor]:
            if dtype == torch.int8:
                a, b = (
                    torch.randint(-127, 128, shape, dtype=dtype, device=self.bench.device)
                    for shape in ((m, k), (n, k))
                )
            else:
                a, b = self.normal(m, k, dtype=dtype), self.normal(n, k, dtype=dtype)
            right = b.T if order == "nt" else b.T.contiguous()
            exact = a.double() @ b.double().T
            if "residual" in more:
                exact = torch.relu(exact + more["bias"].double()) + more["residual"].double()
            return lambda: ops.matmul(a, right, **more), exact

        self.case(family, make, bound)

    def products(self) -> None:
        m, n, k = (self.size(*pair) for pair in ((512, 136), (768, 264), (1024, 128)))
        bf16, half, fp8 = torch.bfloat16, torch.float16, torch.float8_e4m3fn
        self.product("matmul, mma", self.size(200, 70), 72, self.size(1004, 76), half, order="nn")
        self.product("matmul bf16", m, n, k, bf16)
        self.product("matmul f16, row-major", m, n, k, half, order="nn")
        self.product("matmul of one row", 1, n, k, bf16)
        self.product("matmul of 40 rows", 40, n, k, bf16)
        self.product("matmul tf32", m, n, k, torch.float32, TF32)
        self.product("matmul fp8", m, n, k, fp8)
        self.product("matmul int8", m, n, k, torch.int8, 1e-6, out_dtype=torch.float32)
        bias, residual = self.normal(n, dtype=bf16), self.normal(m, n, dtype=bf16)
        self.product(
            "matmul with an epilogue",
            m,
            n,
            k,
            bf16,
            2 * HALF,
            bias=bias,
            residual=residual,
            activation="relu",
        )
        if not self.hopper:
            return
        self.scheduled()
        self.case("matmul, blocks' scales", self.block_scaled)

    def scheduled(self) -> None:
        """Schedules that the sizes here would not be given."""
        from tilus.ops.schedules import HopperSchedule

        module: Any = sys.modules["tilus.ops.matmul"]
        forced = {
            "cooperative, clusters of 2": HopperSchedule(128, 256, 64, 3, cluster_m=2),
            "cooperative, 2 x 2 clusters": HopperSchedule(128, 128, 64, 3, cluster_m=2, cluster_n=2),
            "ping-pong": HopperSchedule(64, 128, 64, 4, pingpong=True),
            "ping-pong, clusters of 2": HopperSchedule(64, 256, 64, 4, pingpong=True, cluster_n=2),
            "stream-k": HopperSchedule(128, 128, 64, 4, stream=True),
        }
        for name, schedule in forced.items():
            before = module.chosen_schedule
            module.chosen_schedule = lambda *_, schedule=schedule: schedule
            try:
                # Tiles that fill the machine once and a bit: some blocks have two.
                m, n, k = (
                    (128 * 3, 256 * 2, 192)
                    if self.small
                    else (128 * 21, 256 * 8 if "256" in name else 2048, 1024)
                )
                self.product(f"matmul, {name}", m, n, k, torch.bfloat16)
            finally:
                module.chosen_schedule = before

    def block_scaled(self) -> tuple[Run, torch.Tensor]:
        m, n, k = self.size(512, 128), self.size(1024, 128), self.size(1024, 256)
        a, a_scale = ops.quantize_blocks(self.normal(m, k, dtype=torch.bfloat16))
        values, blocks = self.normal(n, k).to(torch.float8_e4m3fn), self.normal(n // 128, k // 128).abs()
        left = a.double().view(m, k // 128, 128) * a_scale.double()[:, :, None]
        right = values.double().view(n // 128, 128, k // 128, 128) * blocks.double()[:, None, :, None]
        exact = left.reshape(m, k) @ right.reshape(n, k).T
        return lambda: ops.matmul_block_scaled(a, values, a_scale, blocks), exact

    # Quantised weights.

    def quantised(self) -> None:
        k, n = self.size(2048, 256), self.size(1024, 128)
        types = ["uint4", "int3", "uint1", "uint8", "float6_e3m2", "float4_e2m1", "float8_e4m3", "nf4"]
        for name in types:
            for m in (1, 16, 200) if name in ("uint4", "int3") else (16,):
                self.case(f"{name} weights, {m} rows", lambda name=name, m=m: self.weights(name, m, k, n))
        for m in (1, 200):
            self.case(
                f"uint4 weights with zero points, {m} rows",
                lambda m=m: self.weights("uint4", m, k, n, zero=True),
            )
        for kind in (torch.int8, torch.float8_e4m3fn):
            for m in (4, 200):
                self.case(
                    f"int4 weights, {kind} activations, {m} rows",
                    lambda m=m, kind=kind: self.bytes(kind, m, k, n),
                )

    def weights(self, name: str, m: int, k: int, n: int, zero: bool = False) -> tuple[Run, torch.Tensor]:
        matrix = self.normal(k, n, dtype=torch.float32) / k**0.5
        weight = ops.quantize(matrix, name, 128, zero_point=zero)
        a = self.normal(m, k, dtype=torch.float16)
        return lambda: ops.quantized_matmul(a, weight), a.double() @ weight.dequantize().double()

    def bytes(self, kind: torch.dtype, m: int, k: int, n: int) -> tuple[Run, torch.Tensor]:
        weight = ops.quantize(
            self.normal(k, n) / k**0.5, "int4", 128, scale_dtype=torch.bfloat16, activations=kind
        )
        tokens = ops.quantize_tokens(self.normal(m, k, dtype=torch.bfloat16), kind)
        exact = tokens.dequantize().double() @ weight.dequantize().double()
        return lambda: ops.quantized_matmul(tokens, weight), exact

    # Mixtures of experts.

    def experts(self) -> None:
        tokens, experts, k, n = self.size(500, 40), 8, self.size(1024, 128), self.size(512, 128)
        block = self.size(64, 16)
        x = self.normal(tokens, k, dtype=torch.bfloat16)
        _, ids = torch.rand(tokens, experts, device=self.bench.device).topk(2)
        ids = ids.int()
        logits = self.normal(tokens, experts)
        self.case(
            "route",
            lambda: (lambda: ops.route(logits, 2)[0], logits.double().topk(2).values.softmax(1)),
            1e-5,
        )

        def grouped(
            make: Callable[[Any, torch.Tensor], tuple[Callable[[], torch.Tensor], torch.Tensor]],
        ) -> Any:
            def build() -> tuple[Run, torch.Tensor]:
                routing = ops.sort_by_expert(ids, experts, block)
                run, matrices = make(routing, ops.gather_rows(x, routing, 2))
                weight = torch.full((tokens, 2), 0.5, device=x.device)
                exact = torch.einsum("tk,tekn->tn", x.double(), matrices.double()[ids.long()]) / 2
                return lambda: ops.combine(run(), weight, routing), exact

            return build

        matrices = self.normal(experts, k, n, dtype=torch.bfloat16)
        self.case(
            "grouped matmul",
            grouped(lambda routing, rows: (lambda: ops.grouped_matmul(rows, matrices, routing), matrices)),
            2 * HALF,
        )

        def quantised(routing: Any, rows: torch.Tensor) -> tuple[Callable[[], torch.Tensor], torch.Tensor]:
            made = [
                ops.quantize(m.float() / k**0.5, "uint4", 128, scale_dtype=torch.bfloat16) for m in matrices
            ]
            stacked = ops.stack_experts(made)
            return lambda: ops.grouped_quantized_matmul(rows, stacked, routing), torch.stack(
                [w.dequantize() for w in made]
            )

        self.case("grouped quantised matmul", grouped(quantised), 2 * HALF)


def main() -> None:
    parser = options(__doc__, seconds=120)
    parser.add_argument("--small", action="store_true", help="the sizes of the dry run, on the GPU")
    parsed = parser.parse_args()
    if needs_gpu(parsed):
        return
    bench = Bench("smoke", parsed, watchdog_seconds=60)
    # Right or wrong is all that is asked.
    bench.timer = None
    cases = Cases(bench, small=parsed.small or parsed.dry_run)
    for part in (cases.foundations, cases.products, cases.quantised, cases.experts):
        part()
    bench.finish()


if __name__ == "__main__":
    main()
