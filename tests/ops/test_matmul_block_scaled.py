"""Float8 products with a scale for each block, on every target, and the quantisation that makes their operands."""

from __future__ import annotations

import re
import sys
from math import gcd
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.benchmarks.test_dry_run import dry_run
from tests.ops.support import check_product
from tests.ops.test_hopper_matmul import changed_module, main_loop, sass
from tilus import dtypes
from tilus.codegen import target
from tilus.codegen.assemble import available, ptxas_path
from tilus.errors import ShapeMismatch, TypeMismatch
from tilus.lang.semantics.debug import StaticAssertionFailed
from tilus.ops import matmul_block_scaled, quantize_blocks
from tilus.ops.block_scaled_kernel import BLOCK, block_scaled_kernel, hopper_block_scaled_kernel
from tilus.ops.schedules import (
    BLOCK_SCALED_TILES,
    FEWEST_PROMOTED,
    PRODUCTS_PER_CYCLE,
    SCALE_BYTES,
    HopperSchedule,
    Work,
    accumulators,
    deepest,
    work_of,
)

MODULE = sys.modules["tilus.ops.block_scaled"]
DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed + sum(shape)))


def operands(m: int, n: int, k: int) -> tuple[torch.Tensor, ...]:
    """Return random codes and scales; the scales differ enough that a wrong one shows."""
    a, b = normal(m, k).to(torch.float8_e4m3fn), normal(n, k).to(torch.float8_e4m3fn)
    steps = -(-k // 128)
    return a, b, 2.0 ** normal(m, steps), 2.0 ** normal(-(-n // 128), steps, seed=1)


def scaled(codes: torch.Tensor, scale: torch.Tensor, rows: int, dtype: torch.dtype) -> torch.Tensor:
    """Return codes times the scales of their blocks."""
    wide = scale.to(dtype).repeat_interleave(rows, 0)[: codes.shape[0]]
    return codes.to(dtype) * wide.repeat_interleave(128, 1)[:, : codes.shape[1]]


def check(m: int, n: int, k: int, device: str = "cpu", out: torch.dtype = torch.bfloat16) -> torch.Tensor:
    a, b, a_scale, b_scale = operands(m, n, k)
    found = matmul_block_scaled(*(x.to(device) for x in (a, b, a_scale, b_scale)), out_dtype=out)
    assert (found.dtype, found.device.type) == (out, device)

    def product(dtype: torch.dtype) -> torch.Tensor:
        return scaled(a, a_scale, 1, dtype) @ scaled(b, b_scale, 128, dtype).t()

    check_product(found, product(torch.float64), product(torch.float32).to(out))
    return found


def force(
    monkeypatch: pytest.MonkeyPatch, block_m: int, block_n: int, consumers: int, blocks: int = 3, **more: Any
) -> None:
    """Let the op take a schedule, on a machine of some multiprocessors."""
    chosen = HopperSchedule(block_m, block_n, 128, more.pop("stages", 3), consumers, **more)
    monkeypatch.setattr(MODULE, "block_scaled_schedule", lambda *problem: chosen)
    monkeypatch.setattr(MODULE, "processors", lambda x: blocks)
    monkeypatch.setattr(MODULE, "block_scaled_kernel", None)
    if chosen.stream:
        monkeypatch.setattr(MODULE, "work_of", sharing)


def sharing(*problem: Any) -> Work:
    """Return how work is shared out, in a test of tiles that several blocks share."""
    found = work_of(*problem)
    assert found.shared_tiles
    return found


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("shape", [(1, 128, 128), (16, 256, 272), (65, 136, 512), (130, 72, 400)], ids=str)
def test_shapes(shape: tuple[int, int, int], device: str) -> None:
    check(*shape, device)


@pytest.mark.parametrize("name", ["sm_80", "sm_89", "sm_90a"])
@pytest.mark.parametrize("shape", [(70, 136, 264), (33, 65, 131)], ids=str)
def test_every_target(name: str, shape: tuple[int, int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows of 131 bytes are nothing for bulk copies, also where there are some."""
    monkeypatch.setenv("TILUS_SIMULATOR_TARGET", name)
    check(*shape)


@pytest.mark.parametrize(("block_m", "block_n", "consumers"), BLOCK_SCALED_TILES, ids=str)
def test_every_tile(monkeypatch: pytest.MonkeyPatch, block_m: int, block_n: int, consumers: int) -> None:
    """Six tiles of which some lie in two blocks of columns, and none but the first are whole."""
    force(monkeypatch, block_m, block_n, consumers, blocks=2, stages=2)
    check(block_m + 24, 2 * block_n + 40, 272)


@pytest.mark.parametrize("tile", [(128, 192, 2), (128, 144, 2), (128, 112, 2)], ids=str)
def test_tiles_that_begin_anywhere_in_a_block(
    monkeypatch: pytest.MonkeyPatch, tile: tuple[int, int, int]
) -> None:
    """So many tiles that one of them begins at each place in a block of columns where any does."""
    force(monkeypatch, *tile, blocks=2, stages=2)
    check(24, 128 // gcd(tile[1], 128) * tile[1], 128)


@pytest.mark.parametrize("block_n", [176, 208, 240])
def test_tiles_that_may_lie_in_three_blocks_are_refused(block_n: int) -> None:
    assert block_n not in {columns for _, columns, _ in BLOCK_SCALED_TILES}
    with pytest.raises(StaticAssertionFailed):
        hopper_block_scaled_kernel.compile(target="sm_90a", block_n=block_n, **E4M3)


@pytest.mark.parametrize("tile", [(128, 256, 2), (128, 192, 2), (128, 112, 2), (64, 80, 1)], ids=str)
def test_tiles_that_all_blocks_share(monkeypatch: pytest.MonkeyPatch, tile: tuple[int, int, int]) -> None:
    force(monkeypatch, *tile, blocks=3, stages=2, stream=True)
    check(tile[0] + 24, tile[1] + 40, 528)


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("cluster", [(2, 1), (1, 2)], ids=str)
def test_clusters_share_tiles(
    monkeypatch: pytest.MonkeyPatch, cluster: tuple[int, int], stream: bool
) -> None:
    """Each block brings the scales of its own rows; some tiles of a cluster lie outside of the result."""
    down, across = cluster
    force(monkeypatch, 128, 128, 2, blocks=6, stages=2, stream=stream, cluster_m=down, cluster_n=across)
    check(136, 400, 528)


@pytest.mark.parametrize("out", [torch.float16, torch.float32], ids=str)
def test_output_dtypes(out: torch.dtype) -> None:
    check(70, 136, 264, out=out)


def test_rows_that_bulk_stores_cannot_write() -> None:
    check(40, 77, 256)


def test_scales_that_are_large_and_small_by_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sums are scaled before they are added up: a scale of the wrong step would be seen a million times over."""
    force(monkeypatch, 64, 64, 1, blocks=1)
    a, b, a_scale, b_scale = operands(64, 64, 384)
    a_scale[:, 1], b_scale[:, 1] = 2.0**10, 2.0**-20
    a_scale[:, 2], b_scale[:, 2] = 2.0**-30, 2.0**10
    found = matmul_block_scaled(a, b, a_scale, b_scale, out_dtype=torch.float32)
    exact = scaled(a, a_scale, 1, torch.float64) @ scaled(b, b_scale, 128, torch.float64).t()
    by_torch = scaled(a, a_scale, 1, torch.float32) @ scaled(b, b_scale, 128, torch.float32).t()
    check_product(found, exact, by_torch)


def test_nothing_to_multiply() -> None:
    empty = torch.empty(0, 128).to(torch.float8_e4m3fn)
    assert matmul_block_scaled(empty, empty, torch.empty(0, 1), torch.empty(0, 1)).shape == (0, 0)
    thin = torch.empty(4, 0).to(torch.float8_e4m3fn)
    found = matmul_block_scaled(thin, thin, torch.empty(4, 0), torch.empty(1, 0))
    assert torch.equal(found, torch.zeros(4, 4).bfloat16())


def quantized_by_torch(x: torch.Tensor, rows: int) -> tuple[torch.Tensor, torch.Tensor]:
    m, k = x.shape
    padded = torch.zeros(-(-m // rows) * rows, -(-k // 128) * 128)
    padded[:m, :k] = x.float()
    blocks = padded.reshape(-(-m // rows), rows, -1, 128)
    scale = blocks.abs().amax((1, 3)).clamp(min=1e-4) / 448
    codes = (blocks / scale[:, None, :, None]).reshape(padded.shape)[:m, :k]
    return codes.to(torch.float8_e4m3fn), scale


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("rows", [1, 128])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_quantisation_is_that_of_torch(dtype: torch.dtype, rows: int, device: str) -> None:
    x = normal(150, 328)
    x[3, :200], x[130:, 256:] = 0, 1e-6
    x = x.to(dtype)
    codes, scale = quantize_blocks(x.to(device), rows=rows)
    expected, steps = quantized_by_torch(x, rows)
    torch.testing.assert_close(scale.cpu(), steps, rtol=2.0**-22, atol=0)
    # A quotient that lies between two codes may be rounded to either: division is not exact in either run.
    difference = codes.cpu().double() - expected.double()
    assert (difference.abs() <= 2.0**-3 * expected.double().abs() + 2.0**-9).all()
    assert (difference != 0).double().mean() < 1e-3


@pytest.mark.parametrize("device", DEVICES)
def test_quantised_operands_multiply(device: str) -> None:
    """From bfloat16 and back: the product is as near as 8 bits are, and the scales need no copy."""
    x, w = normal(70, 256).bfloat16(), normal(136, 256).bfloat16()
    a, a_scale = quantize_blocks(x.to(device))
    b, b_scale = quantize_blocks(w.to(device), rows=128)
    assert MODULE._scale_columns(a_scale).data_ptr() == a_scale.data_ptr()
    found = matmul_block_scaled(a, b, a_scale, b_scale).cpu().double()
    exact = x.double() @ w.double().t()
    assert (found - exact).norm() < 0.04 * exact.norm()


REFUSED = {
    "dtypes": lambda a, b, s, t: matmul_block_scaled(a.half(), b, s, t),
    "depths": lambda a, b, s, t: matmul_block_scaled(a, b[:, :64], s, t),
    "ranks": lambda a, b, s, t: matmul_block_scaled(a[0], b, s, t),
    "a_scale": lambda a, b, s, t: matmul_block_scaled(a, b, s[:, :1], t),
    "b_scale": lambda a, b, s, t: matmul_block_scaled(a, b, s, t.half()),
    "out_dtype": lambda a, b, s, t: matmul_block_scaled(a, b, s, t, out_dtype=torch.int8),
    "quantize_dtype": lambda a, b, s, t: quantize_blocks(a),
    "quantize_rows": lambda a, b, s, t: quantize_blocks(s, rows=64),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refusals(name: str, golden: Any) -> None:
    with pytest.raises((ShapeMismatch, TypeMismatch)) as error:
        REFUSED[name](*operands(4, 8, 256))
    golden(str(error.value), f"{name}.txt")


def test_the_ops_are_torch_ops() -> None:
    a, b, a_scale, b_scale = operands(16, 128, 256)
    arguments = (a, b, a_scale, b_scale, torch.bfloat16)
    # What else opcheck does, it does by multiplying float8 numbers, which torch cannot.
    checks = ("test_faketensor", "test_autograd_registration")
    torch.library.opcheck(torch.ops.tilus.matmul_block_scaled.default, arguments, test_utils=checks)
    torch.library.opcheck(torch.ops.tilus.quantize_blocks.default, (normal(16, 256), 1), test_utils=checks)


E4M3: dict[str, Any] = dict(dtype=dtypes.float8_e4m3, b_dtype=dtypes.float8_e4m3, out_dtype=dtypes.bfloat16)
MISTAKES = {
    "scales are freed before they are read": (
        "factors = tilus.load(ss[stage][lane][:block_m])\n",
        "release(empty, stage, size)\n                factors = tilus.load(ss[stage][lane][:block_m])\n",
    ),
    "scales of columns are freed before they are read": (
        "product = tilus.dot_wait(product)\n",
        "product = tilus.dot_wait(product)\n            scale = tilus.load(sw[(stage + 1) % stages][0:1])\n",
    ),
    "bytes of scales are not waited for": ("BLOCK + 4 * block_m", "BLOCK"),
    "a stage too few": ("tilus.shared(dtype, (stages, ", "tilus.shared(dtype, (stages - 1, "),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_planted_mistake_is_reported(tmp_path: Path, mistake: str) -> None:
    module = changed_module(hopper_block_scaled_kernel, tmp_path, *MISTAKES[mistake])
    a, b, _, b_scale = operands(64, 64, 128 * 5)
    arguments = [
        a[None],
        b[None],
        torch.zeros(1, 64, 64).bfloat16(),
        torch.ones(5, 64),
        b_scale[None],
        torch.zeros(1, 1, 1),
    ]
    options = {"block_m": 64, "block_n": 64, "consumers": 1, "stages": 3, **E4M3}
    report = module.hopper_block_scaled_kernel.simulate(*arguments, 1, 0, target="sm_90a", **options)
    assert report.hazards


ASSEMBLES = pytest.mark.skipif(
    available() is not None, reason="NVIDIA's assembler has no package for this platform"
)


def without_the_next_tiles_place(loop: str) -> str:
    """Return a loop without what is skipped in all steps but one of a tile: its divisions, behind the products."""
    lines = loop.splitlines()
    last = next(i for i, line in enumerate(lines) if "QGMMA" in line and "gsb0" in line)
    assert not any("MUFU" in line for line in lines[:last])
    branch = next(i for i in range(last, len(lines)) if "BRA" in lines[i])
    skipped = re.search(r"`\((\.L_x_\d+)\)", lines[branch])
    assert skipped
    end = next(i for i, line in enumerate(lines) if line.strip() == f"{skipped[1]}:")
    assert sum("MUFU" in line for line in lines[branch:end]) == 3
    return "\n".join(lines[: branch + 1] + lines[end:])


@ASSEMBLES
@pytest.mark.parametrize(
    ("block_m", "block_n", "consumers", "clusters"),
    [*((*tile, 1) for tile in BLOCK_SCALED_TILES), (128, 256, 2, 2), (128, 192, 2, 2)],
    ids=str,
)
def test_no_tile_spills(block_m: int, block_n: int, consumers: int, clusters: int) -> None:
    hopper = target("sm_90a")
    plain = HopperSchedule(block_m, block_n, 128, 2, consumers, cluster_m=clusters)
    if consumers > 1 and accumulators(plain) > FEWEST_PROMOTED and ptxas_path() is None:
        pytest.skip("such tiles are chosen only where ptxas is installed: pip install nvidia-cuda-nvcc")
    made = hopper_block_scaled_kernel.compile(
        target="sm_90a", block_m=block_m, block_n=block_n, consumers=consumers, cluster_m=clusters,
        stages=deepest(plain, 16, hopper, SCALE_BYTES), stream=True, **E4M3,
    )  # fmt: skip
    assert made.resources is not None
    assert made.resources.spill_stores == made.resources.spill_loads == made.resources.stack == 0
    assert made.resources.warnings == ()
    # Four steps of 32 along k from zero, then the scales; each consumer has a loop of its own.
    products = 4 * (2 if block_n == 256 else 1)
    # Of a small tile the compiler takes the first step out of the loop.
    assert made.ptx.count("wgmma.mma_async") in (products * consumers, 2 * products * consumers)
    loop = without_the_next_tiles_place(main_loop(sass(made)))
    assert loop.count("QGMMA") == products
    # Both consumers' descriptors and stages are in uniform registers, but for what there are too few of for wide tiles.
    assert loop.count("R2UR") <= 2
    additions = len(re.findall(r"\bFFMA\b", loop))
    assert additions == block_m * block_n // (128 * consumers), "one for each sum of a thread"
    # The tensor cores of a multiprocessor's quarter take one consumer's step in so many cycles, in which a warp of
    # each consumer adds up the step before.
    cycles = block_m * block_n * 128 // PRODUCTS_PER_CYCLE
    issued = len(re.findall(r"^\s+/\*[0-9a-f]{4,}\*/", loop, re.MULTILINE))
    assert consumers == 1 or consumers * issued < cycles
    # Waits, arrivals, descriptors, loads of scales, and which scale each part of a tile has that lies in two blocks.
    parts = block_n // gcd(block_n, BLOCK)
    assert issued - additions - products <= 56 + 4 * parts


@ASSEMBLES
@pytest.mark.parametrize(("name", "instruction"), [("sm_89", "e4m3.e4m3"), ("sm_80", "f16.f16")])
def test_older_targets_use_tensor_cores(name: str, instruction: str) -> None:
    made = block_scaled_kernel.compile(target=name, native=name == "sm_89", **E4M3)
    assert f"{instruction}.f32" in made.ptx
    assert "mma.sync" in made.ptx
    assert made.resources is not None
    assert made.resources.spill_stores == made.resources.stack == 0


def test_the_benchmark_is_right_without_a_gpu(tmp_path: Path) -> None:
    rows = dry_run("matmul", tmp_path / "out.json", "--types", "fp8_blocks")
    ours = [row for row in rows if row["contender"] == "tilus"]
    assert ours
    assert {row["status"] for row in ours} == {"checked"}
    assert all(0 < row["error"] < 0.01 for row in ours)
