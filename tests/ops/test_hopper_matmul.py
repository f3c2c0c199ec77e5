"""The Hopper product: every schedule, operand order, type and epilogue on the simulator, with all checks on."""

from __future__ import annotations

import importlib.util
import re
import sys
from dataclasses import replace
from itertools import product
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch.nn import functional

from tests.ops.support import check_product
from tilus import dtypes
from tilus.cli.inspect import disassemble, find_disassembler
from tilus.codegen import Compiled, target
from tilus.codegen.assemble import available
from tilus.errors import TypeMismatch
from tilus.ops import matmul
from tilus.ops.hopper_matmul_kernel import hopper_matmul_kernel
from tilus.ops.schedules import (
    FEWER_ACCUMULATORS,
    MOST_ACCUMULATORS,
    NARROW,
    TILES,
    HopperSchedule,
    Work,
    accumulators,
    deepest,
    with_residual,
    work_of,
)
from tilus.runtime.kernel import Kernel
from tilus.simulator import Report

MODULE = sys.modules["tilus.ops.matmul"]
HOPPER = target("sm_90a")
TYPES = {
    torch.float16: 16, torch.bfloat16: 16, torch.float32: 32, torch.float8_e4m3fn: 8, torch.float8_e5m2: 8,
    torch.int8: 8,
}  # fmt: skip


def normal(*shape: int, dtype: torch.dtype = torch.float16, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed + sum(shape))
    return torch.randn(*shape, generator=generator).to(dtype)


PINGPONG = (64, 128, 2, True)


def force(
    monkeypatch: pytest.MonkeyPatch, block_m: int, block_n: int, consumers: int = 2, *, blocks: int = 3,
    bits: int = 16, stages: int = 3, pingpong: bool = False, stream: bool = False, **more: Any,
) -> HopperSchedule:  # fmt: skip
    """Let `matmul` take a schedule, on a machine of some multiprocessors."""
    chosen = HopperSchedule(
        block_m, block_n, 1024 // bits, stages, consumers, pingpong=pingpong, stream=stream, **more
    )
    monkeypatch.setattr(MODULE, "hopper_schedule", lambda *problem: chosen)
    monkeypatch.setattr(MODULE, "processors", lambda x: blocks)
    monkeypatch.setattr(MODULE, "matmul_kernel", None)
    if stream:
        monkeypatch.setattr(MODULE, "work_of", sharing)
    return chosen


def sharing(*problem: Any) -> Work:
    """Return how work is shared out, in a test of tiles that several blocks share."""
    found = work_of(*problem)
    assert found.shared_tiles
    return found


def check(a: torch.Tensor, b: torch.Tensor, **options: Any) -> torch.Tensor:
    found = matmul(a, b, **options)
    exact = a.double() @ b.double()
    check_product(found, exact, (a.float() @ b.float()).to(found.dtype))
    return found


@pytest.mark.parametrize(("block_m", "block_n", "consumers", "pingpong"), TILES, ids=str)
def test_every_tile(
    monkeypatch: pytest.MonkeyPatch, block_m: int, block_n: int, consumers: int, pingpong: bool
) -> None:
    """More tiles than blocks, none of them whole."""
    force(monkeypatch, block_m, block_n, consumers, pingpong=pingpong, stages=2, blocks=2)
    check(normal(block_m + 24, 136), normal(2 * block_n + 8, 136).t())


@pytest.mark.parametrize("rows", [64, 128])
@pytest.mark.parametrize("width", [80, 112])
def test_widths_that_are_no_power_of_two(monkeypatch: pytest.MonkeyPatch, width: int, rows: int) -> None:
    """Also of a row-major b, whose tiles have rows of that many elements, and copied by two blocks for one another."""
    force(monkeypatch, rows, width, rows // 64, stages=2, blocks=2)
    check(normal(rows + 24, 136), normal(2 * width + 8, 136).t())
    check(normal(rows + 24, 136), normal(136, 2 * width + 8))
    force(monkeypatch, rows, width, rows // 64, stages=2, blocks=4, cluster_m=2)
    check(normal(rows + 24, 136), normal(2 * width + 8, 136).t())


@pytest.mark.parametrize("width", NARROW)
def test_few_columns_for_each_block(monkeypatch: pytest.MonkeyPatch, width: int) -> None:
    """Two blocks beside one another read half of a's tile each; one tile of the last cluster lies outside."""
    for across in (1, 2):
        force(monkeypatch, 64, width, 1, stages=5, blocks=4, cluster_n=across)
        check(normal(40, 392), normal(5 * width - 8, 392).t())


@pytest.mark.parametrize("pingpong", [False, True])
@pytest.mark.parametrize("blocks", [1, 3, 8])
def test_numbers_of_blocks(monkeypatch: pytest.MonkeyPatch, blocks: int, pingpong: bool) -> None:
    """Of eight tiles, a block has all, some, or one; with one stage more than steps, and with fewer."""
    force(monkeypatch, 64 if pingpong else 128, 64, pingpong=pingpong, blocks=blocks)
    check(normal(2 * (64 if pingpong else 128), 72), normal(4 * 64, 72).t())
    check(normal(2 * (64 if pingpong else 128), 328), normal(4 * 64, 328).t())


@pytest.mark.parametrize("pingpong", [False, True], ids=["one consumer", "ping-pong"])
@pytest.mark.parametrize(
    ("shape", "blocks"),
    [
        ((64, 128, 640), 5),
        ((192, 128, 200), 4),
        ((70, 200, 1024), 7),
        ((16, 64, 512), 8),
        ((256, 256, 136), 3),
    ],
    ids=str,
)
def test_tiles_that_all_blocks_share(
    monkeypatch: pytest.MonkeyPatch, shape: tuple[int, int, int], blocks: int, pingpong: bool
) -> None:
    m, n, k = shape
    force(monkeypatch, 64, 64, 2 if pingpong else 1, blocks=blocks, stages=3, stream=True, pingpong=pingpong)
    a, b = normal(m, k), normal(n, k).t()
    first = check(a, b)
    assert torch.equal(first, matmul(a, b)), "the order of the sums must be the same each time"


def test_only_what_is_left_is_shared_where_pieces_are_long(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of four tiles and three blocks, each has one, and a third of the last one."""
    chosen = force(monkeypatch, 64, 64, 1, stages=2, stream=True)
    assert work_of(chosen, 256, 64, 1544, 1, 3) == Work(3, 1)
    check(normal(256, 1544), normal(64, 1544).t())


def test_shared_tiles_of_two_warpgroups(monkeypatch: pytest.MonkeyPatch) -> None:
    force(monkeypatch, 128, 64, blocks=3, stages=2, stream=True)
    check(normal(130, 328), normal(72, 328).t(), out_dtype=torch.float32)


@pytest.mark.parametrize("cluster", [(2, 1), (1, 2), (2, 2)], ids=str)
@pytest.mark.parametrize("pingpong", [False, True], ids=["cooperative", "ping-pong"])
def test_clusters_share_tiles(
    monkeypatch: pytest.MonkeyPatch, pingpong: bool, cluster: tuple[int, int]
) -> None:
    """Also where some tiles of a cluster lie outside of the result, and in both orders of the operands."""
    down, across = cluster
    shape = {"cluster_m": down, "cluster_n": across, "pingpong": pingpong}
    force(monkeypatch, 128, 64 * down, blocks=4, stages=2, **shape)
    m, n, k = 128 * down + 24, 64 * down * across + 72, 136
    if pingpong:
        check(normal(m, k), normal(n, k).t())
    else:
        check(normal(k, m).t(), normal(k, n))


def test_clusters_read_what_they_share_once() -> None:
    """Two blocks below one another: a's tiles are read by one block each, b's by one for both."""
    read = {}
    for down in (1, 2):
        arguments = launch_arguments(256, 128, 128, 2)
        options = {**F16, "block_n": 128, "cluster_m": down, "stages": 2}
        report = hopper_matmul_kernel.simulate(*arguments, target="sm_90a", **options)
        report.raise_if_hazards()
        read[down] = report.counters["global_bytes_read"]
    assert read[1] - read[2] == 128 * 128 * 2


@pytest.mark.parametrize("pingpong", [False, True], ids=["cooperative", "ping-pong"])
@pytest.mark.parametrize("cluster", [(2, 1), (1, 2)], ids=str)
def test_clusters_share_out_the_last_tiles(
    monkeypatch: pytest.MonkeyPatch, cluster: tuple[int, int], pingpong: bool
) -> None:
    down, across = cluster
    shape = {"cluster_m": down, "cluster_n": across, "pingpong": pingpong}
    force(monkeypatch, 128, 128, blocks=6, stages=2, stream=True, **shape)
    check(normal(200, 328), normal(392, 328).t())


ORDERS = [
    (dtype, a, b)
    for dtype, bits in TYPES.items()
    for a, b in product((False, True), repeat=2)
    if bits == 16 or a != b
]


@pytest.mark.parametrize(("dtype", "a_turned", "b_turned"), ORDERS, ids=str)
def test_operand_orders_of_every_type(
    monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype, a_turned: bool, b_turned: bool
) -> None:
    """8-bit and 32-bit operands are copied into the order that the instruction takes."""
    force(monkeypatch, 128, 64, bits=TYPES[dtype])

    def operand(rows: int, columns: int, turned: bool) -> torch.Tensor:
        x = normal(columns, rows) if turned else normal(rows, columns)
        x = (x * 20).to(dtype) if dtype == torch.int8 else x.to(dtype)
        return x.t() if turned else x

    a, b = operand(144, 80, a_turned), operand(80, 80, b_turned)
    found = matmul(a, b)
    exact = a.double() @ b.double()
    if dtype == torch.float32:
        # 10 of 23 mantissa bits, cut off.
        a, b = ((x.view(torch.int32) & ~0x1FFF).view(torch.float32) for x in (a, b))
    check_product(found, exact, (a.float() @ b.float()).to(found.dtype))


def test_float8_types_mix(monkeypatch: pytest.MonkeyPatch) -> None:
    force(monkeypatch, 128, 128, bits=8, pingpong=True)
    check(normal(130, 256).to(torch.float8_e5m2), normal(136, 256).to(torch.float8_e4m3fn).t())


ACTIVATIONS = {"": lambda x: x, "relu": functional.relu, "gelu": functional.gelu, "silu": functional.silu}
KINDS: dict[str, dict[str, Any]] = {
    "cooperative": {"block_m": 128, "block_n": 64},
    "ping-pong": {"block_m": 64, "block_n": 64, "pingpong": True},
    "stream": {"block_m": 64, "block_n": 64, "consumers": 1, "stream": True, "stages": 2, "blocks": 5},
    "ping-pong stream": {"block_m": 64, "block_n": 64, "pingpong": True, "stream": True, "blocks": 5},
}


@pytest.mark.parametrize(
    ("out", "activation"),
    [(torch.float16, "gelu"), (torch.bfloat16, "silu"), (torch.float32, "relu")],
    ids=str,
)
@pytest.mark.parametrize("kind", KINDS)
def test_epilogues(monkeypatch: pytest.MonkeyPatch, kind: str, out: torch.dtype, activation: str) -> None:
    force(monkeypatch, **KINDS[kind])
    m, n, k = 136, 72, 200
    a, b = normal(m, k), normal(n, k).t()
    bias, residual = normal(n, dtype=out), normal(m, n, dtype=out)
    a_scale, b_scale = normal(m, dtype=torch.float32).abs(), normal(n, dtype=torch.float32)
    found = matmul(
        a, b, bias=bias, residual=residual, a_scale=a_scale, b_scale=b_scale, activation=activation, alpha=0.25,
        beta=0.5, out_dtype=out,
    )  # fmt: skip

    def formula(dtype: torch.dtype) -> torch.Tensor:
        product = 0.25 * (a.to(dtype) @ b.to(dtype)) * a_scale.to(dtype)[:, None] * b_scale.to(dtype)
        return ACTIVATIONS[activation](product + bias.to(dtype)) + 0.5 * residual.to(dtype)

    check_product(found, formula(torch.float64), formula(torch.float32).to(out))


@pytest.mark.parametrize("kind", KINDS)
def test_one_scale_for_each_operand(monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    force(monkeypatch, bits=8, **KINDS[kind])
    a, b = normal(136, 200 + 8).to(torch.float8_e4m3fn), normal(72, 200 + 8).to(torch.float8_e4m3fn).t()
    a_scale, b_scale = torch.tensor(0.25), torch.tensor(3.0)
    found = matmul(a, b, a_scale=a_scale, b_scale=b_scale)
    check_product(found, 0.75 * (a.double() @ b.double()), (0.75 * (a.float() @ b.float())).bfloat16())


@pytest.mark.parametrize("kind", KINDS)
def test_int8_into_int32_is_exact(monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    force(monkeypatch, bits=8, **KINDS[kind])
    generator = torch.Generator().manual_seed(0)
    a = torch.randint(-128, 128, (136, 400), generator=generator, dtype=torch.int8)
    b = torch.randint(-128, 128, (72, 400), generator=generator, dtype=torch.int8).t()
    found = matmul(a, b, out_dtype=torch.int32)
    assert found.dtype == torch.int32
    assert torch.equal(found.long(), a.long() @ b.long())


@pytest.mark.parametrize("kind", KINDS)
def test_batches(monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    force(monkeypatch, **KINDS[kind])
    check(normal(3, 72, 136), normal(3, 72, 136).transpose(1, 2))
    check(normal(3, 72, 136).transpose(1, 2), normal(3, 72, 40))


@pytest.mark.parametrize("kind", KINDS)
def test_rows_that_bulk_stores_cannot_write(monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    """Rows of 77 elements do not begin at multiples of 16 bytes."""
    force(monkeypatch, **KINDS[kind])
    check(normal(70, 136), normal(77, 136).t())


def test_int32_wants_int8_and_nothing_after_it() -> None:
    a, b = torch.zeros(8, 16, dtype=torch.int8), torch.zeros(16, 8, dtype=torch.int8)
    with pytest.raises(TypeMismatch, match="int32"):
        matmul(a.half(), b.half(), out_dtype=torch.int32)
    with pytest.raises(TypeMismatch, match="int32"):
        matmul(a, b, out_dtype=torch.int32, alpha=0.5)


# What a wrong kernel would do: the checks see it.

MISTAKES = {
    "no fence before the bulk store": ('tilus.fence("async")', "pass"),
    "no wait for the buffer of a store": ("tilus.bulk_wait(0 if buffers == 1 or (part == 0 and parts % 2) else 1)", "pass"),
    "no wait for free stages": ("tilus.wait(empty, phase, index=stage)", "pass"),
    "the producer's first phase": ("stage, phase = 0, 1", "stage, phase = 0, 0"),
    "the consumer's first phase": ("phase, done, owed = 0, 0", "phase, done, owed = 0, 1"),
    "a stage too few": ("tilus.shared(b_dtype, (stages, ", "tilus.shared(b_dtype, (stages - 1, "),
    "a stage is freed while it is read": ("tilus.dot_wait(pending=1)", "pass"),
    "too few bytes announced": ("bytes=(block_m + block_n)", "bytes=(block_m + block_n - 8)"),
}  # fmt: skip


CLUSTER_MISTAKES = {
    "a tile for one block only": ("multicast=mask)", "multicast=1 << tilus.cluster_rank())"),
    "other blocks' consumers are not waited for": ("arrivals=size * (4", "arrivals=1 * (4"),
    "other blocks' producers are not told": ("rank=rank, scope", "rank=tilus.cluster_rank(), scope"),
}


def changed_module(kernel: Kernel, folder: Path, old: str, new: str) -> ModuleType:
    """Import a copy of a kernel's file with a mistake in it."""
    original = sys.modules[kernel.source.function.__module__].__file__
    assert original is not None
    text = Path(original).read_text(encoding="utf-8")
    assert old in text
    path = folder / "changed.py"
    path.write_text(text.replace(old, new), encoding="utf-8")
    spec = importlib.util.spec_from_file_location("changed", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def launch_arguments(m: int, n: int, k: int, blocks: int) -> tuple[Any, ...]:
    c, none = torch.zeros(1, m, n).half(), torch.zeros(1)
    a, b = normal(1, m, k), normal(1, n, k)
    return a, b, c, c[0, 0], c, none, none, torch.zeros(1, 1, 1), 1.0, 1.0, blocks, 0


F16: dict[str, Any] = dict(
    dtype=dtypes.float16,
    b_dtype=dtypes.float16,
    out_dtype=dtypes.float16,
    b_turned=True,
    block_n=64,
    stages=3,
)


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_planted_mistake_is_reported(tmp_path: Path, mistake: str) -> None:
    module = changed_module(hopper_matmul_kernel, tmp_path, *MISTAKES[mistake])
    arguments = launch_arguments(256, 128, 64 * 7, 2)
    report = module.hopper_matmul_kernel.simulate(*arguments, target="sm_90a", **F16)
    assert report.hazards


@pytest.mark.parametrize("mistake", CLUSTER_MISTAKES)
def test_a_planted_mistake_among_blocks_is_reported(tmp_path: Path, mistake: str) -> None:
    module = changed_module(hopper_matmul_kernel, tmp_path, *CLUSTER_MISTAKES[mistake])
    arguments = launch_arguments(256, 128, 64 * 7, 2)
    options = {**F16, "block_n": 128, "cluster_m": 2}
    assert module.hopper_matmul_kernel.simulate(*arguments, target="sm_90a", **options).hazards


RESIDUAL_MISTAKES = {
    "the residual is not waited for": ("tilus.wait(given, done, index=consumer * buffers + part)", "pass"),
    "the result before has not left": ("tilus.bulk_wait(0)\n                        for part", "for part"),
    "the residual's place is not waited for": ("tilus.wait(taken, done + 1, index=at)", "pass"),
    "the place is not given back": ("tilus.arrive(taken, index=consumer * buffers + part)", "pass"),
}


def residual_launch(kernel: Kernel, pingpong: bool) -> Report:
    """Run a product with a residual on two blocks that have two or three tiles each, of which they share some."""
    c, none = torch.zeros(1, 320, 128).half(), torch.zeros(1)
    a, b, residual = normal(1, 320, 320), normal(1, 128, 320), normal(1, 320, 128)
    partial = torch.zeros(4, 64, 128)
    arguments = (a, b, c, c[0, 0], residual, none, none, partial, 1.0, 1.0, 2, 3)
    return kernel.simulate(
        *arguments, target="sm_90a", dtype=dtypes.float16, b_dtype=dtypes.float16, out_dtype=dtypes.float16,
        b_turned=True, has_residual=True, bulk_residual=True, block_m=64, block_n=128, stages=3,
        consumers=2 if pingpong else 1, pingpong=pingpong, stream=True,
    )  # fmt: skip


@pytest.mark.parametrize("pingpong", [False, True], ids=["one consumer", "ping-pong"])
@pytest.mark.parametrize("mistake", RESIDUAL_MISTAKES)
def test_a_planted_mistake_with_a_residual_is_reported(tmp_path: Path, mistake: str, pingpong: bool) -> None:
    residual_launch(hopper_matmul_kernel, pingpong).raise_if_hazards()
    module = changed_module(hopper_matmul_kernel, tmp_path, *RESIDUAL_MISTAKES[mistake])
    assert residual_launch(module.hopper_matmul_kernel, pingpong).hazards


@pytest.mark.parametrize("pingpong", [False, True], ids=["one consumer", "ping-pong"])
def test_the_banks_of_a_residual_have_no_conflicts(pingpong: bool) -> None:
    counters = residual_launch(hopper_matmul_kernel, pingpong).counters
    assert counters["shared_wavefronts"] == counters["shared_wavefronts_ideal"] > 0


def test_the_unchanged_copy_is_clean(tmp_path: Path) -> None:
    module = changed_module(hopper_matmul_kernel, tmp_path, "import tilus", "import tilus")
    report = module.hopper_matmul_kernel.simulate(
        *launch_arguments(256, 128, 64 * 7, 2), target="sm_90a", **F16
    )
    report.raise_if_hazards()
    counters = report.counters
    assert counters["shared_wavefronts"] == counters["shared_wavefronts_ideal"] > 0


# What the assembler makes of it.

ASSEMBLES = pytest.mark.skipif(
    available() is not None, reason="NVIDIA's assembler has no package for this platform"
)
PRODUCTS = {
    dtypes.float16: "HGMMA", dtypes.bfloat16: "HGMMA", dtypes.tfloat32: "HGMMA", dtypes.float8_e4m3: "QGMMA",
    dtypes.float8_e5m2: "QGMMA", dtypes.int8: "IGMMA",
}  # fmt: skip


def compiled(dtype: Any, shape: tuple[int, int, int, bool], **options: Any) -> Compiled:
    block_m, block_n, consumers, pingpong = shape
    eight = dtype.bits == 8
    plain = HopperSchedule(block_m, block_n, 1024 // dtype.bits, 2, consumers, pingpong)
    stages = deepest(plain, 16, HOPPER)
    chosen: dict[str, Any] = dict(
        dtype=dtype, b_dtype=dtype, b_turned=True,
        acc_dtype=dtypes.int32 if dtype is dtypes.int8 else dtypes.float32,
        **{"out_dtype": dtypes.bfloat16, **vars(plain), "stages": stages, "scales": "rows" if eight else "", **options},
    )  # fmt: skip
    return hopper_matmul_kernel.compile(target="sm_90a", **chosen)


def check_resources(made: Compiled, most: int = 168) -> None:
    assert made.resources is not None
    assert made.resources.spill_stores == made.resources.spill_loads == made.resources.stack == 0
    assert made.resources.warnings == ()
    assert made.resources.registers <= most


@ASSEMBLES
@pytest.mark.parametrize(
    ("shape", "cluster"),
    [*((shape, (1, 1)) for shape in TILES), (TILES[0], (2, 1)), (TILES[0], (1, 2))],
    ids=str,
)
def test_no_tile_spills(shape: tuple[int, int, int, bool], cluster: tuple[int, int]) -> None:
    made = compiled(dtypes.bfloat16, shape, cluster_m=cluster[0], cluster_n=cluster[1])
    # 65536 for 384 threads, or 256.
    check_resources(made, 168 if shape[2] == 2 else 255)
    assert "st.global" not in made.ptx
    assert "ld.global" not in made.ptx
    assert "stmatrix" in made.ptx
    # Which ptxas makes a wait for the whole GPU of.
    assert "fence.proxy.async;" not in made.ptx
    assert "cp.async.bulk.tensor.3d.global.shared" in made.ptx
    assert ("multicast::cluster" in made.ptx) == (cluster != (1, 1))


EPILOGUES: list[tuple[tuple[int, int, int, bool], dict[str, Any]]] = [
    (TILES[0], {"activation": "gelu"}),
    (TILES[0], {"activation": "silu", "has_bias": True, "stream": True}),
    (TILES[0], {"scales": "rows", "stream": True, "cluster_m": 2}),
    (
        TILES[1],
        {"activation": "gelu", "has_bias": True, "has_residual": True, "scales": "rows", "stream": True},
    ),
    (TILES[1], {"activation": "silu", "has_residual": True}),
    (PINGPONG, {"activation": "gelu", "has_bias": True, "has_residual": True, "scales": "rows"}),
    (PINGPONG, {"activation": "silu", "has_bias": True, "scales": "rows", "stream": True}),
    ((128, 128, 2, True), {"stream": True, "cluster_m": 2}),
    ((128, 240, 2, False), {"activation": "silu", "has_bias": True, "cluster_m": 2}),
    ((64, 32, 1, False), {"activation": "silu", "has_bias": True, "cluster_n": 2}),
    ((64, 80, 1, False), {"activation": "silu", "has_bias": True, "has_residual": True, "scales": "rows"}),
]


@ASSEMBLES
@pytest.mark.parametrize(("shape", "options"), EPILOGUES, ids=str)
def test_no_epilogue_spills(shape: tuple[int, int, int, bool], options: dict[str, Any]) -> None:
    """Each with the largest tile that `matmul` takes for it."""
    many = options.get("has_residual", False) or ("scales" in options and "has_bias" in options)
    plain = HopperSchedule(shape[0], shape[1], 64, 2, shape[2], shape[3])
    assert accumulators(plain) <= (FEWER_ACCUMULATORS if many else MOST_ACCUMULATORS)
    check_resources(compiled(dtypes.bfloat16, shape, **options))


@ASSEMBLES
@pytest.mark.parametrize("shape", [TILES[1], PINGPONG, (128, 112, 2, False)], ids=str)
@pytest.mark.parametrize("out", [16, 32])
def test_a_residual_comes_in_bulk(shape: tuple[int, int, int, bool], out: int) -> None:
    """No thread loads it from global memory, and there is room for it, and registers for other epilogues."""
    plain = HopperSchedule(shape[0], shape[1], 64, 2, shape[2], shape[3])
    chosen = with_residual(replace(plain, stages=deepest(plain, out, HOPPER)), out, HOPPER)
    assert chosen is not None
    options: dict[str, Any] = {"has_residual": True, "bulk_residual": True, "stages": chosen.stages}
    dtype = {16: dtypes.bfloat16, 32: dtypes.float32}[out]
    made = compiled(dtypes.bfloat16, shape, out_dtype=dtype, **options)
    check_resources(made)
    assert "ld.global" not in made.ptx
    check_resources(
        compiled(dtypes.bfloat16, shape, activation="gelu", scales="rows", has_bias=True, **options)
    )


@ASSEMBLES
@pytest.mark.parametrize("dtype", PRODUCTS, ids=str)
def test_instructions_of_every_type(dtype: dtypes.DType) -> None:
    """The loop over k: products back to back, one wait for one that is older, and nothing through registers."""
    made = compiled(dtype, TILES[0])
    check_resources(made)
    text = sass(made)
    loop = main_loop(text)
    # One more product stands before the loop, and each of the two consumers has its own code.
    assert len(re.findall(PRODUCTS[dtype], loop)) == 4
    assert len(re.findall(PRODUCTS[dtype], text)) == 16
    assert loop.count("WARPGROUP.DEPBAR") == 1
    assert not re.search(r"\b(LDS|STS|LDG|STG|LDL|STL|LDSM|BAR)\b", loop)
    assert "UTMALDG" in text
    assert "UTMASTG" in text
    assert "STSM" in text


@ASSEMBLES
@pytest.mark.parametrize("stream", [False, True], ids=["whole tiles", "shared tiles"])
def test_nothing_long_stands_between_two_tiles(stream: bool) -> None:
    """Where a tile lies takes divisions: they follow the first product of the tile before, not the epilogue.

    And consumers do not wait for one another around a store: each has barriers of its own 128 threads.
    """
    text = sass(compiled(dtypes.bfloat16, TILES[0], stream=stream, cluster_m=2))
    lines = text.splitlines()
    firsts = [i for i, line in enumerate(lines) if "HGMMA" in line and "RZ, !UPT" in line]
    assert len(firsts) == 2
    for first in firsts:
        # The loop over tiles begins at the last label that a later branch comes back to.
        back = [re.search(r"BRA.*`\((\.L_x_\d+)\)", line) for line in lines[first:]]
        targets = {found[1] for found in back if found}
        head = max(i for i in range(first) if lines[i].strip().rstrip(":") in targets)
        while "PHASECHK" not in "".join(lines[head:first]):
            head = max(i for i in range(head) if lines[i].strip().rstrip(":") in targets)
        assert first - head < 60
        assert not re.search(r"MUFU|F2I|BAR", "\n".join(lines[head:first]))
    assert set(re.findall(r"BAR\.SYNC\.DEFER_BLOCKING (\S+, 0x\w+)", text)) <= {
        f"{kind}, 0x80" for kind in ("0x1", "0x2", "0x3", "0x4", "0x5", "0x6")
    }


def sass(made: Compiled) -> str:
    """Return the kernel's machine code as text."""
    assert made.cubin is not None
    if find_disassembler() is None:
        pytest.skip("nvdisasm is not installed: pip install nvidia-cuda-nvdisasm")
    return disassemble(made.cubin)


def main_loop(text: str) -> str:
    """Return the shortest loop with products in it: from a label to the branch back to it."""
    lines = text.splitlines()
    labels = {line.strip().rstrip(":"): i for i, line in enumerate(lines) if re.match(r"\s*\.L_x_\d+:", line)}
    loops = []
    for end, line in enumerate(lines):
        target = re.search(r"BRA.*`\((\.L_x_\d+)\)", line)
        start = labels.get(target[1], end) if target else end
        if start < end and any("GMMA" in inside for inside in lines[start:end]):
            loops.append((end - start, "\n".join(lines[start : end + 1])))
    return min(loops)[1]
