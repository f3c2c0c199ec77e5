"""Clusters: multicast copies, barriers and shared memory of other blocks, with every check on and with planted mistakes."""

from __future__ import annotations

import pytest
import torch

import tilus
from tilus import Tensor, constexpr, float16, float32
from tilus.codegen.assemble import available
from tilus.errors import LaunchError, TargetNotSupported
from tilus.runtime.signature import Signature

TARGET = "sm_90a"


@tilus.kernel
def multicast_matmul(
    a: Tensor[float16, "m k"],
    b: Tensor[float16, "n k"],
    c: Tensor[float16, "m n"],
    *,
    cluster: constexpr = 2,
    block_m: constexpr = 64,
    block_n: constexpr = 32,
    block_k: constexpr = 64,
    stages: constexpr = 2,
    mistake: constexpr = "",
):
    """c = a @ b.T: the blocks of a cluster lie one below the other, and each brings its part of b to all of them."""
    m, k = a.shape
    n = b.shape[0]
    rows = tilus.cdiv(tilus.cdiv(m, block_m), cluster) * cluster
    tilus.grid(rows, tilus.cdiv(n, block_n), warps=5, cluster=(cluster, 1))
    bi, bj = tilus.block_id()
    rank = tilus.cluster_rank()
    part = block_n // cluster
    everyone = (1 << cluster) - 1
    sa = tilus.shared(float16, (stages, block_m, block_k))
    sb = tilus.shared(float16, (stages, block_n, block_k))
    full = tilus.barrier(stages)
    # A stage is free when the consumers of all blocks that are copied to have read it.
    empty = tilus.barrier(stages, arrivals=4 * (1 if mistake == "own consumers only" else cluster))
    steps = tilus.cdiv(k, block_k)
    with tilus.warps(4, 1):
        for i in range(steps):
            s = i % stages
            tilus.wait(empty, (i // stages + 1) % 2, index=s)
            tilus.arrive(full, index=s, bytes=(block_m + block_n) * block_k * 2)
            tilus.copy_bulk(sa[s], a, (bi * block_m, i * block_k), full, index=s)
            for r in tilus.static_range(cluster):
                if rank == r:
                    place = (bj * block_n + r * part, i * block_k)
                    mask = 1 << r if mistake == "wrong mask" else everyone
                    tilus.copy_bulk(sb[s, r * part : (r + 1) * part], b, place, full, index=s, multicast=mask)
    with tilus.warps(0, 4):
        acc = tilus.zeros((block_m, block_n), float32)
        for i in range(steps):
            s = i % stages
            tilus.wait(full, (i // stages) % 2, index=s)
            acc = tilus.dot_wait(tilus.dot_async(sa[s], sb[s].transpose(), acc))
            if mistake == "own consumers only":
                tilus.arrive(empty, index=s)
            elif mistake == "missing remote arrive":
                tilus.arrive(empty, index=s, rank=0)
            else:
                for r in tilus.static_range(cluster):
                    tilus.arrive(empty, index=s, rank=r)
        tilus.store(c, acc.to(float16), (bi * block_m, bj * block_n))


def operands(m: int, n: int, k: int):
    generator = torch.Generator().manual_seed(m * n + k)
    a, b = torch.randn(m, k, generator=generator), torch.randn(n, k, generator=generator)
    return a.half(), b.half(), torch.zeros(m, n, dtype=torch.float16)


def allowed(a: torch.Tensor, b: torch.Tensor) -> float:
    """Twice the error of torch's own product in float32, rounded to float16."""
    exact = a.double() @ b.double().t()
    return 2 * float(((a.float() @ b.float().t()).half().double() - exact).abs().max())


@pytest.mark.parametrize("cluster", [1, 2, 4])
@pytest.mark.parametrize("shape", [(128, 32, 256), (200, 40, 208)])
def test_blocks_of_a_cluster_share_a_tile(shape, cluster):
    a, b, c = operands(*shape)
    multicast_matmul.simulate(a, b, c, target=TARGET, cluster=cluster).raise_if_hazards()
    assert (c.double() - a.double() @ b.double().t()).abs().max() <= allowed(a, b)


@pytest.mark.parametrize(
    ("mistake", "kind"),
    [
        ("wrong mask", "deadlock"),
        ("missing remote arrive", "deadlock"),
        ("own consumers only", "shared-race"),
    ],
)
def test_a_planted_mistake_is_reported(mistake, kind):
    a, b, c = operands(128, 32, 512)
    report = multicast_matmul.simulate(a, b, c, target=TARGET, mistake=mistake)
    assert kind in {hazard.kind for hazard in report.hazards}


# Shared memory of other blocks.


@tilus.kernel
def cluster_sums(
    x: Tensor[float32, "m n"],
    sums: Tensor[float32, "m"],
    *,
    cluster: constexpr = 4,
    how: constexpr = "load",
    mistake: constexpr = "",
):
    """Sums of rows that are spread over the blocks of a cluster, which all store their part of the result."""
    m, n = x.shape
    width = tilus.cdiv(n, cluster)
    tilus.grid(cluster, tilus.cdiv(m, 8), warps=2, cluster=cluster)
    rank, row = tilus.cluster_rank(), tilus.block_id(1) * 8
    tile = tilus.load(x, (row, rank * 64), (8, 64))
    own = tile.sum(axis=1)
    if how == "load":
        mine = tilus.shared(float32, 8)
        tilus.store(mine, own)
        if mistake != "no sync before":
            tilus.cluster_sync()
        total = tilus.zeros(8)
        for r in tilus.static_range(cluster):
            total += tilus.load(tilus.remote(mine, r))
        if mistake == "overwritten":
            tilus.store(mine, total)
    elif how == "store":
        # Everyone's part, in everyone's memory.
        parts = tilus.shared(float32, (cluster, 8))
        for r in tilus.static_range(cluster):
            tilus.store(tilus.remote(parts, r)[rank], own)
        if mistake != "no sync before":
            tilus.cluster_sync()
        total = tilus.load(parts).sum(axis=0)
    else:
        root = tilus.shared(float32, 8)
        tilus.store(root, tilus.zeros(8))
        if mistake != "no sync before":
            tilus.cluster_sync()
        tilus.atomic_add(tilus.remote(root, 0), own, indices=tilus.arange(8), scope="cluster")
        tilus.cluster_sync()
        total = tilus.load(tilus.remote(root, 0), indices=tilus.arange(8))
    if rank == 0:
        tilus.store(sums, total, row)


@pytest.mark.parametrize("cluster", [1, 2, 4])
@pytest.mark.parametrize("how", ["load", "store", "atomic"])
def test_a_reduction_over_a_cluster(how, cluster):
    x = torch.randn(20, 64 * cluster, generator=torch.Generator().manual_seed(0))
    sums = torch.zeros(20)
    cluster_sums.simulate(x, sums, target=TARGET, how=how, cluster=cluster).raise_if_hazards()
    # Three roundings of the order of the largest partial sum for each of log2(256) steps, and one for each block.
    torch.testing.assert_close(sums.double(), x.double().sum(1), rtol=0, atol=16 * 32 * 2.0**-24)


@pytest.mark.parametrize("how", ["load", "store", "atomic"])
def test_other_blocks_are_not_touched_without_a_barrier_before(how):
    x, sums = torch.randn(16, 256), torch.zeros(16)
    report = cluster_sums.simulate(x, sums, target=TARGET, how=how, mistake="no sync before")
    assert report.hazards
    assert {hazard.kind for hazard in report.hazards} <= {"shared-race", "uninitialized-shared"}


def test_memory_that_others_read_is_not_overwritten_without_a_barrier():
    x, sums = torch.randn(16, 256), torch.zeros(16)
    report = cluster_sums.simulate(x, sums, target=TARGET, how="load", mistake="overwritten")
    assert {hazard.kind for hazard in report.hazards} == {"shared-race"}


# Code.


@pytest.mark.parametrize("target", ["sm_90a", "sm_100a", "sm_120a"])
@pytest.mark.skipif(available() is not None, reason="NVIDIA has no assembler for this platform")
def test_every_target_with_clusters_assembles_the_code(target):
    x, sums = torch.zeros(16, 256), torch.zeros(16)
    for how in ("load", "store", "atomic"):
        compiled = cluster_sums.compile(x, sums, target=target, how=how)
        assert compiled.resources is not None
        assert (compiled.resources.spill_stores, compiled.resources.stack) == (0, 0)


def test_stages_are_freed_without_waiting_for_stores():
    """An arrival at another block's barrier that hands on no writes needs no fence, which would stop the loop."""
    a, b, c = operands(128, 32, 512)
    ptx = multicast_matmul.compile(a, b, c, target=TARGET).ptx
    assert ptx.count("mbarrier.arrive.shared::cluster.b64") == 2
    assert ".multicast::cluster" in ptx
    assert "release.cluster.shared::cluster" not in ptx
    assert ptx.count("barrier.cluster.arrive.relaxed.aligned") == 1
    assert ptx.count("barrier.cluster.arrive.release.aligned") == 1


def test_remote_tiles_move_in_wide_pieces():
    ptx = wide.compile(torch.zeros(128, 64).half(), torch.zeros(128, 64).half(), target=TARGET).ptx
    assert "ld.shared::cluster.v4.b32" in ptx
    assert "st.shared::cluster.v4.b32" in ptx
    assert "mapa.shared::cluster.u32" in ptx


@tilus.kernel
def products(
    a: Tensor[float16, "m k"], b: Tensor[float16, "n k"], c: Tensor[float16, "m n"], *, far: constexpr
):
    """Two blocks with one b: the first holds it, and the second's products go out through the first's memory."""
    tilus.grid(2, warps=4, cluster=2)
    rank = tilus.cluster_rank()
    sa, sb, sc = [tilus.shared(float16, (64, 64)) for _ in (0, 1, 2)]
    tilus.store(sa, tilus.load(a, (rank * 64, 0), (64, 64)))
    tilus.store(sb, tilus.load(b, (0, 0), (64, 64)))
    tilus.cluster_sync()
    first = tilus.remote(sb, 0) if far else sb
    acc = tilus.dot(tilus.load(sa), tilus.load(first.transpose())).to(float16)
    other = tilus.remote(sc, 1 - rank) if far else sc
    tilus.store(other, acc)
    tilus.cluster_sync()
    row = 64 - rank * 64 if far else rank * 64
    tilus.store(c, tilus.load(sc), (row, 0))


def test_matrix_moves_stay_in_the_own_block():
    """ldmatrix and stmatrix reach the block's own shared memory alone."""
    a, b, _ = operands(128, 64, 64)
    counts = {}
    for far in (False, True):
        c = torch.zeros(128, 64).half()
        products.simulate(a, b, c, target=TARGET, far=far).raise_if_hazards()
        assert (c.double() - a.double() @ b.double().t()).abs().max() <= allowed(a, b)
        ptx = products.compile(a, b, c, target=TARGET, far=far).ptx
        counts[far] = ptx.count("ldmatrix"), ptx.count("stmatrix")
    # The operand a is near in both.
    assert counts[False][0] > counts[True][0] > 0
    assert counts[False][1] > 0 == counts[True][1]


@tilus.kernel
def wide(x: Tensor[float16, "m n"], out: Tensor[float16, "m n"]):
    """Swap tiles, by a store and by a load."""
    tilus.grid(2, warps=4, cluster=2)
    rank = tilus.cluster_rank()
    a, b = tilus.shared(float16, (64, 64)), tilus.shared(float16, (64, 64))
    tilus.store(tilus.remote(a, 1 - rank), tilus.load(x, (rank * 64, 0), (64, 64)))
    tilus.cluster_sync()
    tilus.store(b, tilus.load(a))
    tilus.cluster_sync()
    tilus.store(out, tilus.load(tilus.remote(b, rank)), (rank * 64, 0))


def test_two_blocks_swap_their_tiles():
    x = torch.randn(128, 64, generator=torch.Generator().manual_seed(0)).half()
    out = torch.zeros_like(x)
    wide.simulate(x, out, target=TARGET).raise_if_hazards()
    assert torch.equal(out, x.roll(64, 0))


@tilus.kernel
def waiting(out: Tensor[float32, "n"], *, next: constexpr = False):
    tilus.grid(1, warps=1)
    if next:
        tilus.launch_next()
    else:
        tilus.wait_for_previous()
    tilus.store(out, tilus.zeros(32), 0)


@pytest.mark.parametrize("target", ["sm_80", "sm_89"])
def test_targets_without_clusters_refuse_them(target):
    x, sums = torch.zeros(16, 256), torch.zeros(16)
    with pytest.raises(TargetNotSupported, match=f"{target} has no thread-block clusters") as error:
        cluster_sums.compile(x, sums, target=target)
    assert error.value.location is not None
    assert error.value.hint == "leave out cluster="


@pytest.mark.parametrize("target", ["sm_80", "sm_89", "sm_90a"])
@pytest.mark.parametrize("next", [False, True])
def test_launches_that_follow_one_another_need_not_wait(target, next):
    out = torch.ones(32)
    waiting.simulate(out, target=target, next=next).raise_if_hazards()
    assert not out.any()
    compiled = waiting.compile(out, target=target, next=next)
    assert ("griddepcontrol" in compiled.ptx) == (target == "sm_90a")
    assert Signature.of(compiled).overlaps == (target == "sm_90a" and not next)


@pytest.mark.parametrize("how", ["load", "store", "atomic"])
def test_with_one_block_in_a_cluster_they_take_the_same_source(how):
    x, sums = torch.randn(8, 64, generator=torch.Generator().manual_seed(0)), torch.zeros(8)
    cluster_sums.simulate(x, sums, target="sm_80", how=how, cluster=1).raise_if_hazards()
    torch.testing.assert_close(sums.double(), x.double().sum(1), rtol=0, atol=8 * 32 * 2.0**-24)


def test_a_grid_that_is_not_made_of_clusters_is_refused():
    x, out = torch.zeros(96), torch.zeros(96)
    with pytest.raises(
        LaunchError, match=r"has the grid \(3, 1, 1\), expected multiples of its cluster \(2, 1, 1\)"
    ):
        pairs.simulate(x, out, target=TARGET)


@tilus.kernel
def pairs(x: Tensor[float32, "n"], out: Tensor[float32, "n"]):
    tilus.grid(tilus.cdiv(x.shape[0], 32), warps=1, cluster=2)
    tilus.store(out, tilus.load(x, tilus.block_id() * 32, 32), tilus.block_id() * 32)
