"""Persistent kernels in which a producer warp runs ahead, from plain loops; and what stays as it is, and why."""

from __future__ import annotations

import pytest
import torch

import tilus
from tilus import Tensor, constexpr, float16, float32, int32
from tilus.errors import SyntaxNotSupported
from tilus.ir import ops, walk
from tilus.passes import warp_specialise
from tilus.runtime.kernel import Kernel

TARGET = "sm_90a"


def operands(m: int, n: int, k: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(m * n + k)
    a, b = torch.randn(m, k, generator=generator), torch.randn(n, k, generator=generator)
    return a.half(), b.half()


def check(kernel, a, b, *more, target=TARGET, expected=None, out=None, **options):
    """Run a kernel on the simulator with all checks; return its report, and what it stored."""
    c = torch.full((a.shape[0], b.shape[0]), 7.0) if out is None else out
    report = kernel.simulate(a, b, c, *more, target=target, **options)
    report.raise_if_hazards()
    exact = a.double() @ b.double().t() if expected is None else expected
    torch.testing.assert_close(c.double(), exact, rtol=0, atol=max(a.shape[1], 1) * 2.0**-17)
    return report


def groups(kernel, *args, **options) -> list[ops.WarpGroup]:
    """Return the warp groups of a compiled kernel, outer before inner."""
    made = kernel.compile(*args, target=TARGET, **options).kernel
    return [op for op in walk(made.body) if isinstance(op, ops.WarpGroup)]


@tilus.kernel
def persistent(
    a: Tensor[float16, "m k"],
    b: Tensor[float16, "n k"],
    c: Tensor[float32, "m n"],
    *,
    blocks: constexpr,
    stages: constexpr = 3,
    warps: constexpr = 4,
    block_m: constexpr = 64,
    block_n: constexpr = 32,
):
    m, k = a.shape
    tiles_n = tilus.cdiv(b.shape[0], block_n)
    tiles = tilus.cdiv(m, block_m) * tiles_n
    tilus.grid(
        tilus.min(tilus.cdiv(a.shape[0], block_m) * tilus.cdiv(b.shape[0], block_n), blocks), warps=warps
    )
    for tile in range(tilus.block_id(0), tiles, tilus.grid_dim(0)):
        i, j = tile // tiles_n * block_m, tile % tiles_n * block_n
        acc = tilus.zeros((block_m, block_n), float32)
        for k0 in tilus.pipeline(range(0, k, 64), stages=stages):
            sa, sb = tilus.shared(float16, (block_m, 64)), tilus.shared(float16, (block_n, 64))
            tilus.copy_async(sa, a, (i, k0))
            tilus.copy_async(sb, b, (j, k0))
            acc = tilus.dot(tilus.load(sa), tilus.load(sb.transpose()), acc)
        tilus.store(c, acc, (i, j))


@pytest.mark.parametrize("stages", [2, 3, 4])
@pytest.mark.parametrize("k", [8, 64, 136, 320])
def test_a_loop_over_tiles_becomes_a_persistent_kernel(stages, k):
    a, b = operands(130, 72, k)
    report = check(persistent, a, b, blocks=2, stages=stages)
    assert report.counters["tensor_core_flops"] > 0
    consumer, idle, producer = groups(persistent, a, b, torch.zeros(130, 72), blocks=2, stages=stages)
    assert (consumer.first, consumer.count) == (0, 4)
    assert (idle.first, idle.count) == (4, 4)
    assert (producer.first, producer.count) == (4, 1)
    inside = list(walk(producer.body))
    assert any(isinstance(op, ops.CopyBulk) for op in inside)
    assert not any(isinstance(op, (ops.StoreGlobal, ops.DotAsync, ops.Splat)) for op in inside)


@pytest.mark.parametrize("target", ["sm_80", "sm_90a"])
@pytest.mark.parametrize(("warps", "block_m"), [(4, 64), (8, 128)])
def test_the_same_source_runs_everywhere(target, warps, block_m):
    a, b = operands(260, 72, 200)
    check(persistent, a, b, target=target, blocks=3, warps=warps, block_m=block_m)


@tilus.kernel
def batched(
    a: Tensor["dtype", "batch k m"],
    b: Tensor["dtype", "batch k n"],
    c: Tensor[float32, "batch m n"],
    *,
    dtype: constexpr,
    warps: constexpr,
    checked: constexpr = True,
):
    """Products of matrices whose rows and columns are both along memory, the tiles of all batches in one loop."""
    batch, k, m = a.shape
    block = 16 * warps
    tiles = tilus.cdiv(m, block)
    tilus.grid(2, warps=warps)
    for tile in range(tilus.block_id(0), tiles * batch, 2):
        which, i = tile // tiles, tile % tiles * block
        acc = tilus.zeros((block, 64), float32)
        for k0 in tilus.pipeline(range(0, k, 64), stages=3):
            sa, sb = tilus.shared(dtype, (64, block)), tilus.shared(dtype, (64, 64))
            tilus.copy_async(sa, a, (which, k0, i), checked=checked)
            tilus.copy_async(sb, b, (which, k0, 0), checked=checked)
            acc = tilus.dot(tilus.load(sa.transpose()), tilus.load(sb), acc)
        tilus.store(c, acc, (which, i, 0))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize(("warps", "checked"), [(4, True), (8, True), (12, True), (4, False)])
def test_batches_turned_operands_and_any_number_of_warpgroups(dtype, warps, checked):
    generator = torch.Generator().manual_seed(warps)
    m = 16 * warps if not checked else 16 * warps + 8
    a, b = (torch.randn(2, 128, extent, generator=generator).to(dtype) for extent in (m, 64))
    c = torch.zeros(2, m, 64)
    options = dict(dtype=tilus.dtype(dtype), warps=warps, checked=checked)
    batched.simulate(a, b, c, target=TARGET, **options).raise_if_hazards()
    exact = a.double().transpose(1, 2) @ b.double()
    torch.testing.assert_close(c.double(), exact, rtol=0, atol=128 * 2.0**-17)
    found = groups(batched, a, b, c, **options)
    assert [(g.first, g.count) for g in found] == [(0, warps), (warps, 4), (warps, 1)]


@tilus.inline
def partial(a, b, i, j, first, last, acc, stages):
    """Return acc and the product of rows i of a and j of b over a part of k."""
    for k0 in tilus.pipeline(range(first, last, 64), stages=stages):
        sa, sb = tilus.shared(float16, (64, 64)), tilus.shared(float16, (32, 64))
        tilus.copy_async(sa, a, (i, k0))
        tilus.copy_async(sb, b, (j, k0))
        acc = tilus.dot(tilus.load(sa), tilus.load(sb.transpose()), acc)
    return acc


@tilus.kernel
def triangular(
    a: Tensor[float16, "m k"], b: Tensor[float16, "n k"], c: Tensor[float32, "m n"], order: Tensor[int32, "tiles"],
    *, form: constexpr, blocks: constexpr = 2,
):  # fmt: skip
    """Rows of tile i of c are the product over the first i * 64 of k; tiles come in some order."""
    n = b.shape[0]
    tiles = order.shape[0]
    tilus.grid(blocks, warps=4)
    at = tilus.block_id(0)
    if at >= tiles and form == "return":
        return
    while True:
        if at >= tiles:
            break
        tile = tilus.load(order, at)
        at += tilus.grid_dim(0)
        acc = tilus.zeros((64, 32), float32)
        if form == "continue":
            if tile == 0:
                tilus.store(c, acc, (0, 0))
                continue
        if form == "two loops":
            half = tile // 2 * 64
            acc = partial(a, b, tile * 64, 0, 0, half, acc, 3)
            acc = partial(a, b, tile * 64, 0, half, tile * 64, acc, 2)
        elif form == "branches":
            if tile % 2 == 0:
                acc = partial(a, b, tile * 64, 0, 0, tile * 64, acc, 2)
            else:
                acc = partial(a, b, tile * 64, 0, 0, tile * 64, acc, 4)
        elif form == "one branch":
            if tile > 0:
                acc = partial(a, b, tile * 64, 0, 0, tile * 64, acc, 3)
        elif form == "inner loop":
            for part in range(tile):
                acc = partial(a, b, tile * 64, 0, part * 64, part * 64 + 64, acc, 3)
        else:
            acc = partial(a, b, tile * 64, 0, 0, tile * 64, acc, 3)
        tilus.store(c, acc, (tile * 64, 0))
        if form == "break" and tile == 1:
            break


FORMS = ["plain", "return", "continue", "two loops", "branches", "one branch", "inner loop", "break"]


def triangle(a: torch.Tensor, b: torch.Tensor, form: str, order: torch.Tensor, blocks: int) -> torch.Tensor:
    """Return what `triangular` stores over sevens."""
    c = torch.full((a.shape[0], b.shape[0]), 7.0, dtype=torch.float64)
    for block in range(blocks):
        for tile in order.tolist()[block::blocks]:
            rows = slice(tile * 64, tile * 64 + 64)
            c[rows] = a[rows, : tile * 64].double() @ b[:, : tile * 64].double().t()
            if form == "break" and tile == 1:
                break
    return c


@pytest.mark.parametrize("target", ["sm_80", "sm_90a"])
@pytest.mark.parametrize("form", FORMS)
def test_control_flow_around_and_between_pipelined_loops(form, target):
    order = torch.tensor([3, 0, 1, 2, 4], dtype=torch.int32)
    a, b = operands(320, 32, 256)
    for blocks in (2, 7) if target == TARGET else (1,):
        wanted = triangle(a, b, form, order, blocks)
        check(triangular, a, b, order, target=target, expected=wanted, form=form, blocks=blocks)
    found = groups(triangular, a, b, torch.zeros(320, 32), order, form=form, blocks=2)
    assert len(found) == 3


@tilus.kernel
def unusual(
    a: Tensor[float16, "m k"], b: Tensor[float16, "n k"], c: Tensor[float32, "m n"], counter: Tensor[int32, "two"],
    *, form: constexpr,
):  # fmt: skip
    tilus.grid(2, warps=4)
    tile = tilus.block_id(0)
    if form == "taken by turns":
        tile = tilus.atomic_add(counter, 1, 0)
    if form == "counted":
        tile = tilus.load(counter, tile)
    if form == "written before":
        tilus.store(a, tilus.zeros((64, 64), float16), (tile * 64, 0))
    acc = tilus.zeros((64, 32), float32)
    at = 0
    for k0 in tilus.pipeline(range(0, a.shape[1], 64), stages=3):
        sa, sb = tilus.shared(float16, (64, 64)), tilus.shared(float16, (32, 64))
        tilus.copy_async(sa, a, (tile * 64, at if form == "carried" else k0))
        tilus.copy_async(sb, b, (0, k0))
        if form == "cut short":
            if k0 >= 128:
                break
        at += 64
        acc = tilus.dot(tilus.load(sa), tilus.load(sb.transpose()), acc)
    tilus.store(c, acc, (tile * 64, 0))
    if form == "counted":
        tilus.store(counter, tile + 2, tilus.block_id(0))


@pytest.mark.parametrize(
    ("form", "reason"),
    [
        ("carried", None),
        ("counted", "depends on load_global"),
        ("cut short", "a turn of the loop may be cut short by break"),
        ("taken by turns", "depends on atomic"),
        ("written before", "also writes to a that it copies"),
    ],
)
def test_what_the_producer_cannot_repeat_stays_with_software_pipelining(form, reason):
    a, b = operands(128, 32, 256)
    wanted = a.double() @ b.double().t()
    if form == "cut short":
        wanted = a[:, :128].double() @ b[:, :128].double().t()
    if form == "written before":
        wanted = a[:, 64:].double() @ b[:, 64:].double().t()
    counter = torch.arange(2, dtype=torch.int32)
    check(unusual, a, b, counter, expected=wanted, form=form)
    made = unusual.compile(a, b, torch.zeros(128, 32), counter, target=TARGET, form=form)
    assert any(isinstance(op, ops.WarpGroup) for op in walk(made.kernel.body)) == (reason is None)
    notes = [note for note in made.kernel.notes if "stay with the same warps" in note]
    assert len(notes) == (reason is not None)
    assert reason is None or reason in notes[0]
    older = unusual.compile(a, b, torch.zeros(128, 32), counter, target="sm_80", form="cut short")
    assert not [note for note in older.kernel.notes if "stay with the same warps" in note]


def test_a_place_that_the_loop_carries_is_refused_where_copies_run_ahead_in_one_program():
    a, b = operands(128, 32, 256)
    with pytest.raises(SyntaxNotSupported, match="depends on at, which the loop carries") as error:
        unusual.compile(
            a, b, torch.zeros(128, 32), torch.zeros(1, dtype=torch.int32), target="sm_80", form="carried"
        )
    assert "loop's index" in str(error.value.hint)


@pytest.mark.parametrize("mistake", ["parity", "stage", "early", "never"])
def test_a_mistake_in_the_counts_is_found_by_the_simulator(mistake, monkeypatch):
    """What the other tests rely on: a wrong stage, parity or release does not pass."""
    if mistake == "parity":
        monkeypatch.setattr(warp_specialise.Producer, "first_parity", 0)
    elif mistake == "stage":
        right = warp_specialise.Program.advanced

        def stuck(self, ring, stage, parity, loc):
            made = right(self, ring, stage, parity, loc)
            return (stage, parity) if isinstance(self, warp_specialise.Consumer) else made

        monkeypatch.setattr(warp_specialise.Program, "advanced", stuck)
    elif mistake == "early":
        # Any stage, instead of the one that has been read.
        monkeypatch.setattr(
            warp_specialise.Consumer, "_free",
            lambda self, ring, stage, loc: self.emit(ops.BarrierArrive(ring.empty, self.constant(0, loc), loc=loc)),
        )  # fmt: skip
    else:
        monkeypatch.setattr(warp_specialise.Consumer, "_free", lambda self, ring, stage, loc: None)
    monkeypatch.setenv("TILUS_CACHE", "0")
    a, b = operands(128, 32, 320)
    fresh = Kernel(persistent.source)
    report = fresh.simulate(a, b, torch.zeros(128, 32), target=TARGET, blocks=1, stages=3)
    assert report.hazards
