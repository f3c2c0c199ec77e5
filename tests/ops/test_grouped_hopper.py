"""Grouped products in persistent blocks: each used tile is found and multiplied once, however many blocks there are."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.ops.support import check_product
from tests.ops.test_generated_code import ASSEMBLES, check_resources
from tests.ops.test_hopper_matmul import changed_module, main_loop, sass
from tilus import dtypes, ops
from tilus.codegen import target
from tilus.ops import Routing
from tilus.ops.grouped_hopper_kernel import grouped_hopper_kernel
from tilus.ops.schedules import GroupedSchedule, grouped_schedule

HOPPER = target("sm_90a")
EXPERTS = 5
COUNTS = {
    "some": [3, 0, 130, 40, 0],
    "only the last": [0, 0, 0, 0, 64],
    "none": [0, 0, 0, 0, 0],
    "full": [136, 136, 136, 136, 136],
}


def normal(*shape: int, dtype: torch.dtype = torch.float16) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape))).to(dtype)


def blocks(monkeypatch: pytest.MonkeyPatch, count: int) -> None:
    """Let the ops run on a machine of some multiprocessors, and with the kernels for wgmma only."""
    for name in ("grouped", "grouped_block_scaled"):
        module = sys.modules[f"tilus.ops.{name}"]
        monkeypatch.setattr(module, "processors", lambda x: count)
    monkeypatch.setattr(sys.modules["tilus.ops.grouped"], "grouped_matmul_kernel", None)
    monkeypatch.setattr(sys.modules["tilus.ops.grouped_block_scaled"], "grouped_block_scaled_kernel", None)


def routed(counts: list[int], block: int) -> Routing:
    ids = torch.repeat_interleave(torch.arange(len(counts)), torch.tensor(counts))
    order = torch.randperm(len(ids), generator=torch.Generator().manual_seed(1))
    return ops.sort_by_expert(ids[order].int(), len(counts), block)


def check_routing(counts: list[int], block: int, n: int, k: int) -> None:
    routing = routed(counts, block)
    places = (routing.rows >= 0).nonzero()[:, 0]
    owner = routing.block_expert.long()[places // block]
    a, b = normal(routing.rows.shape[0], k), normal(len(counts), n, k).transpose(1, 2)
    found = ops.grouped_matmul(a, b, routing)
    if len(places):
        exact, by_torch = (
            torch.stack([a[i].to(t) @ b[e].to(t) for i, e in zip(places, owner)])
            for t in (torch.float64, torch.float32)
        )
        check_product(found[places], exact, by_torch.half())


def check_counts(counts: list[int], capacity: int, n: int, k: int) -> None:
    a, b = normal(len(counts), capacity, k), normal(len(counts), n, k).transpose(1, 2)
    found = ops.grouped_matmul(a, b, torch.tensor(counts, dtype=torch.int32))
    exact, by_torch = a.double() @ b.double(), (a.float() @ b.float()).half()
    used = torch.arange(capacity) < torch.tensor(counts)[:, None]
    if used.any():
        check_product(found[used], exact[used], by_torch[used])


@pytest.mark.parametrize("count", [1, 3, 50])
@pytest.mark.parametrize("block", [16, 128])
@pytest.mark.parametrize("counts", COUNTS)
def test_tiles_of_a_routing(monkeypatch: pytest.MonkeyPatch, counts: str, block: int, count: int) -> None:
    """More rows of tiles than are worked on together, the last of them unused; with a block for all, and for each."""
    blocks(monkeypatch, count)
    check_routing([min(rows, 40) for rows in COUNTS[counts]], block, 72, 136)


@pytest.mark.parametrize("count", [1, 3, 50])
@pytest.mark.parametrize("counts", COUNTS)
def test_tiles_of_experts_with_counts(monkeypatch: pytest.MonkeyPatch, counts: str, count: int) -> None:
    blocks(monkeypatch, count)
    check_counts(COUNTS[counts], 136, 264, 72)


@pytest.mark.parametrize("name", ["grouped", "grouped_block_scaled"])
@pytest.mark.parametrize("count", [1000, 2**31 - 1, -1000])
def test_a_count_beyond_the_rows_takes_no_tile_from_others(
    monkeypatch: pytest.MonkeyPatch, name: str, count: int
) -> None:
    """A router may count rows that found no room: an expert has as many as there are."""
    blocks(monkeypatch, 2)
    counts = torch.tensor([count, 10, 0, 10], dtype=torch.int32)
    a, b = normal(4, 40, 128), normal(4, 72, 128)
    if name == "grouped":
        found = ops.grouped_matmul(a, b.transpose(1, 2), counts)
    else:
        a, b = a.to(torch.float8_e4m3fn), b.to(torch.float8_e4m3fn)
        found = ops.grouped_matmul_block_scaled(a, b, torch.ones(4, 40, 1), torch.ones(4, 1, 1), counts)
    exact = a.double() @ b.double().transpose(1, 2)
    for expert, used in enumerate(counts.clamp(0, 40).tolist()):
        if used:
            check_product(found[expert, :used], exact[expert, :used], exact[expert, :used].to(found.dtype))


@pytest.mark.parametrize("block", [16, 32, 64, 128, 256])
@pytest.mark.parametrize("n", [40, 200, 520])
def test_every_tile(monkeypatch: pytest.MonkeyPatch, block: int, n: int) -> None:
    """Widths of 64, 128 and 256 columns, the last ones not whole."""
    blocks(monkeypatch, 2)
    check_routing([20, 0, 70], block, n, 200)


@pytest.mark.parametrize("blocks", [2, 4])
def test_clusters_share_rows(blocks: int) -> None:
    """Two blocks read other columns and the same rows: these are copied once for both."""
    read = {}
    for across in (1, 2):
        chosen = GroupedSchedule(128, 64, 64, 3, 2, cluster_n=across)
        call = arguments([129, 0, 200], 128, 200, 200, blocks)
        report = grouped_hopper_kernel.simulate(*call, target="sm_90a", **options(chosen))
        report.raise_if_hazards()
        a, b, out = call[0], call[1], call[6]
        exact, by_torch = (a.to(t) @ b.to(t).transpose(1, 2) for t in (torch.float64, torch.float32))
        for expert, count in ((0, 129), (2, 200)):
            check_product(out[expert, :count], exact[expert, :count], by_torch[expert, :count].half())
        read[across] = report.counters["global_bytes_read"]
    # Of four tiles of columns two read a for both.
    assert read[1] - read[2] > 2 * 4 * 128 * 200 * 0.9


@pytest.mark.parametrize("name", ["grouped", "grouped_block_scaled"])
def test_unused_rows_are_left_as_they_are(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    blocks(monkeypatch, 2)
    module = sys.modules[f"tilus.ops.{name}"]
    made: list[torch.Tensor] = []
    fake = module._fake

    def filled(*arguments: Any) -> torch.Tensor:
        made.append(fake(*arguments).fill_(7))
        return made[-1]

    monkeypatch.setattr(module, "_fake", filled)
    routing = routed([1, 0, 2], 64)
    assert routing.block_expert.tolist()[:3] == [0, 2, -1]
    rows = routing.rows.shape[0]
    if name == "grouped":
        ops.grouped_matmul(torch.ones(rows, 64).half(), torch.ones(3, 64, 72).half(), routing)
    else:
        a, b = torch.ones(rows, 64), torch.ones(3, 72, 64)
        scales = torch.ones(rows, 1), torch.ones(3, 1, 1)
        ops.grouped_matmul_block_scaled(
            a.to(torch.float8_e4m3fn), b.to(torch.float8_e4m3fn), *scales, routing
        )
    assert (made[0][:128] == 64).all()
    assert (made[0][128:] == 7).all()


def arguments(counts: list[int], block_m: int, n: int, k: int, blocks: int) -> list[Any]:
    """Return what the kernel is called with for experts with counts, of two tiles of rows at most."""
    groups = len(counts)
    a, b, c = normal(groups, 2 * block_m, k), normal(groups, n, k), torch.zeros(groups, 2 * block_m, n).half()
    none = torch.empty(1, 1)
    return [a, b, c[0], none, none, torch.tensor(counts, dtype=torch.int32), c, blocks]


def options(chosen: GroupedSchedule, **more: Any) -> dict[str, Any]:
    f16 = {"dtype": dtypes.float16, "b_dtype": dtypes.float16, "out_dtype": dtypes.float16}
    return {**f16, "b_turned": True, "masked": True, "block": chosen.block_m, **vars(chosen), **more}


SWAPPED, WIDE = GroupedSchedule(16, 128, 64, 3, 2, True), GroupedSchedule(128, 64, 64, 3, 2)
PAIRED = GroupedSchedule(128, 64, 64, 3, 2, cluster_n=2)


@pytest.mark.parametrize("chosen", [SWAPPED, GroupedSchedule(64, 256, 64, 2, 2, True), WIDE], ids=str)
def test_shared_memory_has_no_conflicts(chosen: GroupedSchedule) -> None:
    block_m = chosen.block_m
    call = arguments([block_m, 0, block_m + 1], block_m, chosen.block_n + 8, 200, 2)
    report = grouped_hopper_kernel.simulate(*call, target="sm_90a", **options(chosen))
    report.raise_if_hazards()
    counters = report.counters
    assert counters["shared_wavefronts"] == counters["shared_wavefronts_ideal"] > 0
    # No tile is multiplied but those in use: three of rows, each with two of columns.
    assert counters["tensor_core_flops"] == 6 * 2 * block_m * chosen.block_n * 256


MISTAKES = {
    "no wait for free stages": ("tilus.wait(empty, phase, index=stage)", "pass"),
    "a stage is freed while it is read": ("tilus.dot_wait(pending=1)", "pass"),
    "a stage too few": ("tilus.shared(b_dtype, (stages, ", "tilus.shared(b_dtype, (stages - 1, "),
    "too few bytes announced": ("bytes=(block_m + block_n)", "bytes=(block_m + block_n - 8)"),
    "a step that is not copied": ("range(steps if", "range(steps - 1 if"),
}


CLUSTER_MISTAKES = {
    "a tile for one block only": ("(1 << cluster_n) - 1", "1 << rank"),
    "another block's consumers are not waited for": ("arrivals=cluster_n * warps", "arrivals=warps"),
    "another block's producer is not told": ("release(empty, read, cluster_n)", "release(empty, read, 1)"),
}


@pytest.mark.parametrize("mistake", CLUSTER_MISTAKES)
def test_a_planted_mistake_among_blocks_is_reported(tmp_path: Path, mistake: str) -> None:
    module = changed_module(grouped_hopper_kernel, tmp_path, *CLUSTER_MISTAKES[mistake])
    call = arguments([128, 0, 129], 128, 128, 64 * 5, 2)
    assert module.grouped_hopper_kernel.simulate(*call, target="sm_90a", **options(PAIRED)).hazards


@pytest.mark.parametrize("mistake", MISTAKES)
@pytest.mark.parametrize("chosen", [SWAPPED, WIDE], ids=["swapped", "plain"])
def test_a_planted_mistake_is_reported(tmp_path: Path, mistake: str, chosen: GroupedSchedule) -> None:
    module = changed_module(grouped_hopper_kernel, tmp_path, *MISTAKES[mistake])
    call = arguments([chosen.block_m, 0, chosen.block_m + 1], chosen.block_m, chosen.block_n, 64 * 5, 1)
    report = module.grouped_hopper_kernel.simulate(*call, target="sm_90a", **options(chosen))
    assert report.hazards


@pytest.mark.parametrize("bits", [8, 16])
@pytest.mark.parametrize("block_m", [16, 32, 64, 128])
@pytest.mark.parametrize("n", [64, 512, 7168])
def test_schedules_fit_and_keep_memory_busy(block_m: int, n: int, bits: int) -> None:
    chosen = grouped_schedule(block_m, 4096, n, bits, 16, HOPPER, 132)
    stage = (chosen.block_m + chosen.block_n) * 128
    assert (chosen.stages - 1) * stage >= 64 << 10
    assert chosen.block_n <= max(64, 2 * n)


@ASSEMBLES
@pytest.mark.parametrize(
    ("name", "block_m", "n"),
    [
        ("bfloat16", 16, 7168), ("bfloat16", 32, 64), ("bfloat16", 64, 7168), ("bfloat16", 128, 200),
        ("bfloat16", 128, 7168), ("float8_e4m3", 16, 7168), ("float8_e4m3", 64, 7168), ("float8_e4m3", 128, 200),
        ("float8_e4m3", 128, 7168), ("int8", 16, 7168), ("int8", 64, 200), ("int8", 128, 7168),
    ],
    ids=str,
)  # fmt: skip
def test_no_schedule_spills(name: str, block_m: int, n: int) -> None:
    """With every epilogue at once."""
    dtype = dtypes.dtype(name)
    chosen = grouped_schedule(block_m, 1 << 15, n, dtype.bits, 16, HOPPER, 132)
    eight = dtype.bits == 8
    made = grouped_hopper_kernel.compile(
        target="sm_90a", dtype=dtype, b_dtype=dtype, out_dtype=dtypes.bfloat16, b_turned=True, has_bias=True,
        acc_dtype=dtypes.int32 if name == "int8" else dtypes.float32, a_scales="rows" if eight else "",
        b_scales="columns" if eight else "", activation="silu", masked=n == 200, **vars(chosen),
    )  # fmt: skip
    check_resources(made)
    text = sass(made)
    instruction = {"bfloat16": "HGMMA", "float8_e4m3": "QGMMA", "int8": "IGMMA"}[name]
    loop = main_loop(text)
    assert loop.count(instruction) == 4 * max(
        1, chosen.block_n // (64 * chosen.consumers) if chosen.swap else 1
    )
    assert loop.count("WARPGROUP.DEPBAR") == 1
    assert not re.search(r"\b(LDS|STS|LDG|STG|LDL|STL|LDSM|BAR)\b", loop)
    assert "STSM" in text
