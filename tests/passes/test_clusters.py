"""Cluster barriers stand where blocks begin and end to use one another's memory, and are missed where they are left out."""

from __future__ import annotations

import numpy as np
import pytest

import tilus.lang as tilus
from tests.codegen import differential as d
from tilus import simulator
from tilus.codegen.compiler import prepare
from tilus.codegen.llvm import to_ptx
from tilus.codegen.lower.module import lower_kernel
from tilus.codegen.selection import Mma
from tilus.codegen.target import target
from tilus.errors import LayoutConflict
from tilus.ir import Kernel, Operation, Region, ops
from tilus.ir.core import walk
from tilus.lang import Tensor, constexpr, float32, int32
from tilus.layout import parse
from tilus.passes import run
from tilus.passes.order import pipeline_passes

HOPPER = target("sm_90a")
SHOWN = {
    ops.BarrierAlloc: "make", ops.BarrierArrive: "arrive", ops.BarrierWait: "wait", ops.Sync: "sync", ops.For: "for",
    ops.If: "if", ops.WarpGroup: "warps", ops.Remote: "remote", ops.LoadShared: "load", ops.StoreShared: "store",
    ops.Return: "end", ops.Atomic: "atomic",
}  # fmt: skip


def outline(region: Region) -> str:
    """Return what a region does, on one line; a barrier of the cluster that a pass placed has an exclamation mark."""
    words = [word for op in region.ops if (word := shown(op))]
    return " ".join(words)


def shown(op: Operation) -> str:
    if isinstance(op, ops.ClusterArrive):
        return "here" + "~" * op.relaxed + "!" * bool(op.reason)
    if isinstance(op, ops.ClusterWait):
        return "all" + "!" * bool(op.reason)
    word = SHOWN.get(type(op), "")
    if isinstance(op, ops.BarrierArrive) and op.rank is not None:
        word = f"far-arrive-{op.scope}"
    if isinstance(op, ops.BarrierWait) and op.scope:
        word = f"wait-{op.scope}"
    inner = [outline(nested) for nested in op.regions()]
    return f"{word}({' | '.join(inner)})" if inner else word


def placed(function, *args, **constexprs) -> str:
    """Return the outline of a kernel after all passes."""
    return outline(prepare(d.trace(function, *args, **constexprs), HOPPER).body)


def hazards_without(kernel: Kernel, args, *names: str) -> set[str]:
    """Run a kernel that misses a pass; return what the simulator finds."""
    passes = [step for step in pipeline_passes(Mma(HOPPER)) if step.name not in names]
    final = run(kernel, passes)
    text, _ = lower_kernel(final, HOPPER)
    report = simulator.load(to_ptx(text, HOPPER))[final.name].launch(
        2, final.threads, [*args, *d.symbols(kernel, args)], shared_bytes=final.shared_bytes
    )
    return {hazard.kind for hazard in report.hazards}


def greet(flag: Tensor[int32, "1"], out: Tensor[int32, "2"], *, late: constexpr = False):
    """Each block arrives at the other's barrier; with `late`, the first block does so after all that the other does."""
    tilus.grid(2, warps=1, cluster=2)
    first = tilus.barrier()
    rank = tilus.cluster_rank()
    if late and rank == 0:
        while tilus.atomic_add(flag, 0, offsets=0) == 0:
            pass
    tilus.arrive(first, rank=1 - rank)
    if rank == 0:
        tilus.wait(first, 0)
    tilus.store(out, rank + 5, rank)
    if late and rank == 1:
        tilus.atomic_add(flag, 1, offsets=0)


def test_barriers_are_made_before_others_use_them():
    # The arrival follows the barriers at once; the wait stands where they are used first.
    flag, out = np.zeros(1, np.int32), np.zeros(2, np.int32)
    assert placed(greet, flag, out) == "make here~! all! far-arrive-block if(wait | ) here! all! end"
    notes = prepare(d.trace(greet, flag, out), HOPPER).notes
    assert [note.partition(": ")[2] for note in notes] == [
        "other blocks use this one's barriers and shared memory",
        "other blocks may still use this one's barriers and shared memory",
    ]
    assert d.run(greet, flag, out, target="sm_90a").arrays[1].tolist() == [5, 6]


def test_without_them_the_simulator_finds_that_a_block_has_ended():
    flag, out = np.zeros(1, np.int32), np.zeros(2, np.int32)
    kernel = d.trace(greet, flag, out, late=True)
    assert hazards_without(kernel, [flag, out], "synchronise-clusters") == {
        "mbarrier-misuse",
        "out-of-bounds",
    }
    flag[:] = 0
    assert hazards_without(kernel, [flag, out]) == set()
    assert out.tolist() == [5, 6]


def exchanged(x: Tensor[float32, "n"], out: Tensor[float32, "n"], *, how: constexpr):
    tilus.grid(2, warps=2, cluster=2)
    i = tilus.block_id() * 64
    mine = tilus.shared(float32, 64)
    tilus.store(mine, tilus.load(x, i, 64))
    if how != "nothing":
        tilus.cluster_sync()
    total = tilus.load(mine) + tilus.load(tilus.remote(mine, 1 - tilus.cluster_rank()))
    if how == "begin and end":
        tilus.cluster_sync()
    tilus.store(out, total, i)
    if how == "after":
        tilus.store(mine, total)


def test_the_users_barriers_count():
    x = np.zeros(128, np.float32)
    begin = "store here all load remote load"
    assert placed(exchanged, x, x, how="begin") == f"{begin} here! all! end"
    assert placed(exchanged, x, x, how="begin and end") == f"{begin} here all end"


def turned(x: Tensor[float32, "m n"], out: Tensor[float32, "m n"], *, relaxed: constexpr):
    tilus.grid(2, warps=2, cluster=2)
    row = tilus.block_id() * 64
    s = tilus.shared(float32, (64, 16))
    tilus.store(s, tilus.load(x, (row, 0), (64, 16), layout=parse("spatial(64, 1).local(1, 16)")))
    tilus.cluster_arrive(relaxed=relaxed)
    tilus.cluster_wait()
    tilus.store(out, tilus.load(s, layout=parse("spatial(4, 16).local(16, 1)")), (row, 0))


@pytest.mark.parametrize("relaxed", [False, True])
def test_a_barrier_of_the_cluster_is_one_of_the_block_unless_it_is_relaxed(relaxed):
    x = np.arange(2048, dtype=np.float32).reshape(128, 16)
    expected = "store here~ all sync load end" if relaxed else "store here all load end"
    assert placed(turned, x, x, relaxed=relaxed) == expected
    d.run(turned, x, np.zeros_like(x), target="sm_90a", relaxed=relaxed)


def overlapped(out: Tensor[int32, "n"]):
    """The user's own barrier is under way while the other block's is used."""
    tilus.grid(2, warps=1, cluster=2)
    there = tilus.barrier()
    tilus.cluster_arrive()
    tilus.arrive(there, rank=1 - tilus.cluster_rank())
    tilus.wait(there, 0)
    tilus.cluster_wait()
    tilus.store(out, tilus.cluster_rank(), tilus.cluster_rank())


def test_barriers_of_pass_and_user_do_not_mix():
    out = np.zeros(2, np.int32)
    assert placed(overlapped, out) == "make here~! all! here far-arrive-block wait all here! all! end"
    assert d.run(overlapped, out, target="sm_90a").arrays[0].tolist() == [0, 1]


def test_data_are_the_users_to_order():
    # The blocks have begun, but what they stored since need not be there; nor may it be overwritten.
    x, out = np.zeros(128, np.float32), np.zeros(128, np.float32)
    nothing = d.trace(exchanged, x, out, how="nothing")
    assert placed(exchanged, x, out, how="nothing").startswith("here~! store sync load all! remote load")
    assert hazards_without(nothing, [x, out]) == {"shared-race"}
    after = d.trace(exchanged, x, out, how="after")
    assert hazards_without(after, [x, out]) == {"shared-race"}


def two_sets(out: Tensor[int32, "n"], *, between: constexpr):
    tilus.grid(2, warps=1, cluster=2)
    other = 1 - tilus.cluster_rank()
    first = tilus.barrier()
    tilus.arrive(first, rank=other)
    second = tilus.barrier()
    if between:
        tilus.cluster_sync()
    for i in range(3):
        tilus.wait(first, 0)
        tilus.arrive(second, rank=other, scope="cluster")
        tilus.wait(second, i % 2)
    tilus.store(out, 1, indices=tilus.arange(1))


def test_barriers_that_are_made_later_are_waited_for_again():
    out = np.zeros(2, np.int32)
    loop = "for(wait far-arrive-cluster wait-cluster)"
    start, end = "make here~! all! far-arrive-block make", "here! all! end"
    assert placed(two_sets, out, between=False) == f"{start} here~! all! {loop} {end}"
    assert placed(two_sets, out, between=True) == f"{start} here all {loop} {end}"


def early(x: Tensor[int32, "n"], out: Tensor[int32, "n"]):
    tilus.grid(2, warps=1, cluster=2)
    other = 1 - tilus.cluster_rank()
    box = tilus.shared(int32, 32)
    tilus.store(tilus.remote(box, other), tilus.load(x, other * 32, 32))
    if tilus.load(x, other * 32) > 5:
        return
    tilus.cluster_sync()
    tilus.store(out, tilus.load(box), other * 32)


def test_an_early_end_waits_too():
    x, out = np.arange(64, dtype=np.int32), np.zeros(64, np.int32)
    assert placed(early, x, out) == "here~! all! remote store if(here! all! end | ) here all load end"
    d.run(early, x, out, target="sm_90a")


def in_place(
    x: Tensor[float32, "n"], out: Tensor[float32, "n"], *, scope: constexpr = "", same: constexpr = False
):
    tilus.grid(2, warps=1, cluster=2)
    there = tilus.barrier()
    other, i = 1 - tilus.cluster_rank(), tilus.block_id() * 32
    to = x if same else out
    tilus.store(to, tilus.load(x, i, 32) + 1.0, i)
    tilus.arrive(there, rank=other, scope=scope)
    tilus.wait(there, 0)


@pytest.mark.parametrize(
    ("options", "far", "wait"),
    [
        ({}, "block", "wait"),
        ({"same": True}, "cluster", "wait-cluster"),
        ({"scope": "cluster"}, "cluster", "wait-cluster"),
        ({"same": True, "scope": "block"}, "block", "wait"),
    ],
)
def test_arrivals_hand_on_what_was_written_where_others_may_read_it(options, far, wait):
    x, out = np.zeros(64, np.float32), np.zeros(64, np.float32)
    assert placed(in_place, x, out, **options) == f"make here~! all! far-arrive-{far} {wait} here! all! end"
    ptx = d.run(in_place, x, out, target="sm_90a", **options).ptx
    assert ("mbarrier.arrive.release.cluster.shared::cluster.b64" in ptx) == (far == "cluster")
    assert ("mbarrier.try_wait.parity.acquire.cluster" in ptx) == (far == "cluster")


def made_in_a_loop(out: Tensor[int32, "n"]):
    tilus.grid(2, warps=1, cluster=2)
    for i in range(3):
        b = tilus.barrier()
        tilus.arrive(b, rank=1 - tilus.cluster_rank())
        tilus.wait(b, 0)
    tilus.store(out, 1, indices=tilus.arange(1))


def test_barriers_that_others_use_are_made_at_the_top():
    with pytest.raises(LayoutConflict, match="a barrier is made in a branch or loop") as error:
        placed(made_in_a_loop, np.zeros(2, np.int32))
    assert error.value.location is not None
    assert error.value.hint == "call tilus.barrier at the top level of the kernel"


def local(x: Tensor[float32, "n"], out: Tensor[float32, "n"]):
    tilus.grid(2, warps=1, cluster=2)
    b = tilus.barrier()
    tilus.arrive(b)
    tilus.wait(b, 0)
    tilus.store(out, tilus.load(x, tilus.block_id() * 32, 32), tilus.block_id() * 32)


def test_blocks_that_keep_to_themselves_have_none():
    x = np.zeros(64, np.float32)
    assert placed(local, x, x) == "make arrive wait end"


def kept(x: Tensor[float32, "n"], out: Tensor[float32, "n"]):
    """A tile that others read is not used again for another one, though the block itself is done with it."""
    tilus.grid(2, warps=1, cluster=2)
    i = tilus.block_id() * 128
    mine = tilus.shared(float32, 128)
    tilus.store(mine, tilus.load(x, i, 128))
    tilus.cluster_sync()
    other = tilus.load(tilus.remote(mine, 1 - tilus.cluster_rank()))
    later = tilus.shared(float32, 128)
    tilus.store(later, other)
    tilus.sync()
    tilus.store(out, tilus.load(later), i)


def test_memory_that_others_use_is_not_shared_with_other_tiles():
    x = np.arange(256, dtype=np.float32)
    final = prepare(d.trace(kept, x, x), HOPPER)
    offsets = [op.offset for op in walk(final.body) if isinstance(op, ops.AllocShared)]
    assert len(set(offsets)) == 2
    d.run(kept, x, np.zeros_like(x), target="sm_90a")


def shown_to_both(a: Tensor[float32, "m n"], out: Tensor[float32, "p n"]):
    """One block copies to both, and neither arrives at a barrier of the other."""
    tilus.grid(2, warps=1, cluster=2)
    s = tilus.shared(float32, (8, 32))
    full = tilus.barrier()
    tilus.arrive(full, bytes=8 * 32 * 4)
    if tilus.cluster_rank() == 0:
        tilus.copy_bulk(s, a, (0, 0), full, multicast=3)
    tilus.wait(full, 0)
    tilus.store(out, tilus.load(s), (8 * tilus.cluster_rank(), 0))


def test_a_copy_to_all_blocks_waits_until_they_are_ready():
    a, out = d.random(float32, 8, 32), np.zeros((16, 32), np.float32)
    assert placed(shown_to_both, a, out) == "make here~! arrive all! if( | ) wait load here! all! end"
