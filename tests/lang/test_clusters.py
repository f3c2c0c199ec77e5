"""Clusters in the language: places, the memory and barriers of other blocks, by both executors; and what is refused."""

from __future__ import annotations

import textwrap

import numpy as np
import pytest

import tilus.lang as tilus
from tests.lang.support import opcodes, operations, trace
from tests.lang.test_errors import message
from tilus.ir import ops
from tilus.ir.core import walk
from tilus.lang import Tensor, constexpr, float16, float32, int32


def places(out: Tensor[int32, "rows 8"], *, cluster: constexpr):
    tilus.grid(4, 4, 2, warps=1, cluster=cluster)
    x, y, z = tilus.block_id()
    (cx, cy, _), (bx, by, bz) = tilus.cluster_id(), tilus.block_id_in_cluster()
    row = (z * 4 + y) * 4 + x
    found = [cx, cy, tilus.cluster_id(2), bx, by, bz, tilus.cluster_rank(), tilus.cluster_dim(1)]
    for column in tilus.static_range(8):
        tilus.store(out, tilus.full((1, 1), 0, int32) + found[column], (row, column))


@pytest.mark.parametrize("cluster", [(2, 2, 1), (1, 2, 2), 4, 1])
def test_blocks_and_clusters_know_their_places(execute, cluster):
    out = np.full((32, 8), -1, np.int32)
    execute(places, out, cluster=cluster)
    a, b, c = (*cluster, 1, 1)[:3] if isinstance(cluster, tuple) else (cluster, 1, 1)
    expected = [
        [x // a, y // b, z // c, x % a, y % b, z % c, x % a + a * (y % b + b * (z % c)), b]
        for z in range(2)
        for y in range(4)
        for x in range(4)
    ]
    assert out.tolist() == expected


def line(out: Tensor[int32, "n"]):
    tilus.grid(out.shape[0], warps=1, cluster=2)
    i, width = tilus.block_id(), tilus.cluster_dim()
    tilus.store(
        out, tilus.full(1, 0, int32) + tilus.cluster_id() * 10 + tilus.block_id_in_cluster() + width, i
    )


def test_a_grid_of_one_extent_has_scalars_for_places(execute):
    out = np.zeros(4, np.int32)
    execute(line, out)
    assert out.tolist() == [2, 3, 12, 13]


def turn(a: Tensor["dtype", "m n"], out: Tensor["dtype", "n m"], *, dtype: constexpr, cluster: constexpr = 2):
    """Each block stores transposed quarters into a stage of its right neighbour, which passes them on."""
    tilus.grid(cluster, warps=4, cluster=cluster)
    rank = tilus.cluster_rank()
    right = (rank + 1) % cluster
    stages = tilus.shared(dtype, (2, 32, 32))
    tile = tilus.load(a, (rank * 32, 0), (32, 32))
    there = tilus.remote(stages[1], right)
    tilus.store(there.transpose()[0:16, :], tile[0:16, :])
    tilus.store(tilus.remote(stages, right)[1].transpose()[16:32, :], tile[16:32, :])
    tilus.cluster_sync()
    # What the right neighbour got is what this block sent.
    tilus.store(out, tilus.load(there), (0, rank * 32))
    tilus.store(stages[0], tilus.load(stages[1]))


@pytest.mark.parametrize("cluster", [1, 2])
@pytest.mark.parametrize("dtype", [float16, float32, tilus.uint8, tilus.int64])
def test_parts_of_the_shared_memory_of_another_block(execute, dtype, cluster):
    a = np.arange(32 * 32 * cluster).reshape(32 * cluster, 32).astype(dtype.numpy)
    out = np.zeros((32, 32 * cluster), dtype.numpy)
    execute(turn, a, out, dtype=dtype, cluster=cluster)
    assert np.array_equal(out, a.T)


def counted(x: Tensor[int32, "blocks n"], out: Tensor[int32, "blocks bins"], *, cluster: constexpr = 2):
    """A histogram whose bins are spread over the blocks of the cluster."""
    tilus.grid(x.shape[0], warps=1, cluster=cluster)
    rank = tilus.cluster_rank()
    own = tilus.shared(int32, 8)
    tilus.store(own, tilus.zeros(8, int32))
    tilus.cluster_sync()
    value = tilus.load(x, (tilus.block_id(), 0), (1, 32)).reshape(32)
    for r in tilus.static_range(cluster):
        tilus.atomic_add(tilus.remote(own, r), 1, indices=value % 8, mask=value // 8 == r, scope="cluster")
    tilus.cluster_sync()
    peer = tilus.remote(own, cluster - 1 - rank)
    tilus.store(out, tilus.load(peer, indices=tilus.arange(8)).reshape((1, 8)), (tilus.block_id(), 0))


@pytest.mark.parametrize("cluster", [1, 2, 4])
def test_atomic_updates_of_the_shared_memory_of_another_block(execute, cluster):
    x = np.random.default_rng(0).integers(0, 8 * cluster, (8, 32)).astype(np.int32)
    out = np.zeros((8, 8), np.int32)
    execute(counted, x, out, cluster=cluster)
    for first in range(0, 8, cluster):
        bins = np.bincount(x[first : first + cluster].reshape(-1), minlength=8 * cluster)
        assert out[first : first + cluster].tolist() == bins.reshape(cluster, 8)[::-1].tolist()


def relay(x: Tensor[float32, "n"], out: Tensor[float32, "n"], *, rounds: constexpr = 3):
    """Two blocks send each other tiles in turn: one barrier says that a tile is there, one that it was read."""
    tilus.grid(2, warps=1, cluster=2)
    other = 1 - tilus.cluster_rank()
    box = tilus.shared(float32, 32)
    there, free = tilus.barrier(), tilus.barrier()
    tile = tilus.load(x, tilus.block_id() * 32, 32)
    for i in range(rounds):
        if i > 0:
            tilus.wait(free, (i - 1) % 2)
        tilus.store(tilus.remote(box, other), tile + 1.0)
        tilus.arrive(there, rank=other)
        tilus.wait(there, i % 2)
        tile = tilus.load(box)
        free.arrive(rank=other)
    tilus.store(out, tile, tilus.block_id() * 32)


def test_barriers_of_another_block_order_what_was_stored_there(execute):
    x, out = np.arange(64, dtype=np.float32), np.zeros(64, np.float32)
    execute(relay, x, out)
    assert np.array_equal(out, np.roll(x, 32) + 3)


def spread(x: Tensor[float16, "m n"], out: Tensor[float16, "blocks rows n"], *, cluster: constexpr = 4):
    """Two blocks of each cluster bring a tile, which goes to the blocks of a mask that is known at run time only."""
    tilus.grid(cluster, warps=2, cluster=cluster)
    rank = tilus.cluster_rank()
    tile = tilus.shared(float16, (8, 64))
    full = tilus.barrier()
    with tilus.warps(0, 1):
        tilus.arrive(full, bytes=8 * 64 * 2)
        if rank % 2 == 0:
            tilus.copy_bulk(tile, x, (rank * 4, 0), full, multicast=3 << rank)
    tilus.wait(full, 0)
    tilus.store(out, tilus.load(tile).reshape((1, 8, 64)), (rank, 0, 0))


def test_a_copy_to_several_blocks(execute):
    x = np.random.default_rng(0).standard_normal((16, 64)).astype(np.float16)
    out = np.zeros((4, 8, 64), np.float16)
    execute(spread, x, out)
    assert np.array_equal(out, np.stack([x[:8], x[:8], x[8:], x[8:]]))


def lines(out: Tensor[int32, "n 4"]):
    tilus.grid(4, 2, 2, warps=1, cluster=(2, 2, 2))
    x, y, z = tilus.block_id()
    found = [tilus.cluster_mask(0), tilus.cluster_mask(1), tilus.cluster_mask(2), tilus.cluster_mask()]
    for column in tilus.static_range(4):
        tilus.store(out, tilus.full((1, 1), 0, int32) + found[column], ((z * 2 + y) * 4 + x, column))


def test_masks_of_the_blocks_along_an_axis(execute):
    out = np.zeros((16, 4), np.int32)
    execute(lines, out)

    def rank(x, y, z):
        return 1 << (x % 2 + 2 * y + 4 * z)

    expected = [
        [
            rank(0, y, z) | rank(1, y, z),
            rank(x, 0, z) | rank(x, 1, z),
            rank(x, y, 0) | rank(x, y, 1),
            0xFF,
        ]
        for z in range(2)
        for y in range(2)
        for x in range(4)
    ]
    assert out.tolist() == expected


def announced(x: Tensor[float16, "m n"], out: Tensor[float16, "m n"]):
    """One block brings tiles for both, and announces their bytes at the other's barrier too."""
    tilus.grid(2, warps=2, cluster=2)
    rank = tilus.cluster_rank()
    tile = tilus.shared(float16, (8, 64))
    full = tilus.barrier()
    if rank == 1:
        with tilus.warps(0, 1):
            for r in tilus.static_range(2):
                full.arrive(bytes=8 * 64 * 2, rank=r)
            tilus.copy_bulk(tile, x, (0, 0), full, multicast=tilus.cluster_mask(0))
    tilus.wait(full, 0)
    tilus.store(out, tilus.load(tile), (rank * 8, 0))


def test_bytes_are_announced_at_the_barrier_of_another_block(execute):
    x = np.random.default_rng(0).standard_normal((16, 64)).astype(np.float16)
    out = np.zeros((16, 64), np.float16)
    execute(announced, x, out)
    assert np.array_equal(out, np.tile(x[:8], (2, 1)))


def split(x: Tensor[float32, "n"], out: Tensor[float32, "n"]):
    """Work stands between arrival and wait."""
    tilus.grid(4, warps=2, cluster=4)
    mine = tilus.shared(float32, 64)
    i = tilus.block_id()
    tilus.store(mine, tilus.load(x, i * 64, 64))
    tilus.cluster_arrive()
    tile = tilus.load(x, i * 64, 64) * 2.0
    tilus.cluster_wait()
    tile += tilus.load(tilus.remote(mine, (i + 1) % 4))
    tilus.cluster_arrive(relaxed=True)
    tilus.store(out, tile, i * 64)
    tilus.cluster_wait()


def test_arrival_and_wait_apart(execute):
    x, out = np.arange(256, dtype=np.float32), np.zeros(256, np.float32)
    kernel = execute(split, x, out)
    assert np.array_equal(out, 2 * x + np.roll(x, -64))
    assert [made.relaxed for made in operations(kernel, ops.ClusterArrive)] == [False, True]


def followed(x: Tensor[float32, "n"], out: Tensor[float32, "n"]):
    tilus.grid(x.shape[0] // 32, warps=1)
    tilus.wait_for_previous()
    tile = tilus.load(x, tilus.block_id() * 32, 32)
    tilus.launch_next()
    tilus.store(out, tile, tilus.block_id() * 32)


def test_a_launch_that_overlaps_gives_the_same(execute):
    x, out = np.arange(128, dtype=np.float32), np.zeros(128, np.float32)
    kernel = execute(followed, x, out)
    assert np.array_equal(x, out)
    order = [code for code in opcodes(kernel) if code in ("wait_for_previous", "load_global", "launch_next")]
    assert order == ["wait_for_previous", "load_global", "launch_next"]


@pytest.mark.parametrize(("function", "options"), [(spread, {}), (counted, {}), (turn, {"dtype": float16})])
def test_one_block_is_a_cluster_without_clusters(function, options):
    """With clusters of one block nothing is left of them, so that targets without clusters take the kernel."""
    kernel = trace(function, cluster=1, **options)
    reaching = (ops.ClusterArrive, ops.ClusterWait, ops.ClusterRank, ops.Remote)
    assert not any(isinstance(made, reaching) for made in walk(kernel.body))
    assert all(made.multicast is None for made in operations(kernel, ops.CopyBulk))


START = """\
import tilus.lang as tilus
from tilus.lang import Tensor, float16, float32, int32


def kernel(a: Tensor[float16, "m n"], i: int32, f: float32):
"""
GRID = "    tilus.grid(4, 4, warps=4, cluster=(2, 2))\n"
SHARED = "    s, full = tilus.shared(float16, (64, 64)), tilus.barrier()\n"

BODIES = {
    "no_cluster": "tilus.grid(4)\nr = tilus.cluster_rank()",
    "sync_without_cluster": "tilus.grid(4)\ntilus.cluster_sync()",
    "before_grid": "tilus.cluster_sync()\ntilus.grid(4, cluster=2)",
    "too_large": "tilus.grid(64, 64, cluster=(8, 4))",
    "beyond_the_grid": "tilus.grid(64, cluster=(2, 2))",
    "no_extent": "tilus.grid(64, cluster=(2, 2, 1, 1))",
    "float_extent": "tilus.grid(64, cluster=2.0)",
    "axis": f"{GRID}x = tilus.cluster_id(3)",
    "mask_axis": f"{GRID}x = tilus.cluster_mask('x')",
    "rank_outside": f"{GRID}{SHARED}t = tilus.load(tilus.remote(s, 4))",
    "rank_of_float": f"{GRID}{SHARED}t = tilus.load(tilus.remote(s, f))",
    "remote_of_global": f"{GRID}{SHARED}t = tilus.remote(a, 1)",
    "remote_twice": f"{GRID}{SHARED}t = tilus.remote(tilus.remote(s, 1), 0)",
    "copy_to_remote": f"{GRID}{SHARED}tilus.copy_async(tilus.remote(s, 1), a, (0, 0))",
    "bulk_copy_to_remote": f"{GRID}{SHARED}tilus.copy_bulk(tilus.remote(s, 1), a, (0, 0), full)",
    "dot_of_remote": f"{GRID}{SHARED}x = tilus.dot_async(s, tilus.remote(s, 1))",
    "mask_outside": f"{GRID}{SHARED}tilus.copy_bulk(s, a, (0, 0), full, multicast=16)",
    "mask_of_none": f"{GRID}{SHARED}tilus.copy_bulk(s, a, (0, 0), full, multicast=0)",
    "mask_of_ranks": f"{GRID}{SHARED}tilus.copy_bulk(s, a, (0, 0), full, multicast=[0, 1])",
    "arrive_rank": f"{GRID}{SHARED}tilus.arrive(full, rank=-1)",
    "arrive_scope": f'{GRID}{SHARED}tilus.arrive(full, rank=0, scope="gpu")',
    "arrive_without_cluster": f"tilus.grid(4)\n{SHARED}tilus.arrive(full, rank=0)",
}  # fmt: skip


@pytest.mark.parametrize("name", BODIES)
def test_what_clusters_cannot_do_is_refused(name, tmp_path, golden):
    body = textwrap.indent(textwrap.dedent(BODIES[name].replace("    ", "")), "    ")
    golden(message(tmp_path, START + body + "\n"), f"{name}.txt")
