"""The use of an mbarrier and its initialisation: what orders the two, and a report where nothing does."""

from __future__ import annotations

from typing import Any

import pytest

from tests.simulator.support import line_of
from tests.simulator.test_async import BEGIN, EXCHANGE, MEET, WAIT, kinds, run

INIT = "@%first mbarrier.init.shared::cta.b64 [%bar], "
BETWEEN = "bar.sync 0;"


def found(body: str, use: str, init: str = INIT, **launch: Any) -> Any:
    """The report of a launch that must name the line of a use and that of the initialisation, and no others."""
    report, _ = run(body, **launch)
    lines = {hazard.ptx_line for hazard in report.hazards}
    assert set(kinds(report)) == {"mbarrier-misuse"}
    assert lines == {line_of(use, body)}
    assert f"at PTX line {line_of(init, body)} with nothing ordering the two" in report.hazards[0].message
    return report


def test_a_barrier_belongs_between_init_and_use() -> None:
    body = EXCHANGE.format(arrive="mbarrier.arrive.shared::cta.b64 %tok, [%bar];")
    assert kinds(run(body)[0]) == []
    report = found(body.replace(BETWEEN, ""), "mbarrier.arrive")
    assert "shared offset 0x0 that thread (0, 0, 0) initialised" in report.hazards[0].message
    assert report.hazards[0].thread == (1, 0, 0)
    assert kinds(run(body.replace(BETWEEN, ""), checks={"global"})[0]) == []


@pytest.mark.parametrize(
    ("between", "threads", "hazards"),
    [
        ("bar.warp.sync -1;", 32, False),
        ("bar.warp.sync -1;", 64, True),
        ("", 32, True),
        ("barrier.sync 3, 64;", 64, False),
        ("@%first fence.mbarrier_init.release.cluster;", 64, True),
        ("@%first fence.proxy.async.shared::cta;", 64, True),
        (MEET, 64, False),
    ],
)
def test_what_orders_the_threads_of_a_block(between: str, threads: int, hazards: bool) -> None:
    body = f"{BEGIN}\n{INIT}{threads};\n{between}\nmbarrier.arrive.shared::cta.b64 %tok, [%bar];"
    if hazards:
        found(body, "mbarrier.arrive", block=threads)
    else:
        assert kinds(run(body, block=threads)[0]) == []


@pytest.mark.parametrize(("arrives", "hazards"), [("@%q", False), ("@!%q", True)])
def test_a_warp_that_arrives_tells_one_that_waits(arrives: str, hazards: bool) -> None:
    waits = "@!%q" if arrives == "@%q" else "@%q"
    body = f"""{BEGIN}\n{INIT}32;
    setp.lt.u32 %q, %t, 32; {arrives} bar.arrive 1, 64; {waits} bar.sync 1, 64;
    @!%q mbarrier.arrive.shared::cta.b64 %tok, [%bar];"""
    if hazards:
        found(body, "mbarrier.arrive", block=64)
    else:
        assert kinds(run(body, block=64)[0]) == []


FLAG = f"""{BEGIN} .shared .align 4 .b32 flag;
@%first st.shared.u32 [flag], 0; bar.sync 0;
setp.lt.u32 %q, %t, 32; @!%q bra other;
mbarrier.init.shared::cta.b64 [%bar], 1;
st.{{write}}.shared.u32 [flag], 1; ret;
other: ld.{{read}}.shared.u32 %v, [flag]; setp.eq.u32 %p, %v, 1; @!%p bra other;
mbarrier.arrive.shared::cta.b64 %tok, [%bar];
"""


def test_a_flag_that_is_released_and_acquired_orders_them() -> None:
    one_thread_each = FLAG.replace("lt.u32 %q, %t, 32", "lt.u32 %q, %t, 1")
    body = one_thread_each.format(write="release.cta", read="acquire.cta")
    leave = "setp.gt.u32 %p, %t, 0; setp.ne.u32 %q, %t, 32; and.pred %p, %p, %q; @%p ret;\nsetp.lt.u32 %q"
    assert kinds(run(body.replace("setp.lt.u32 %q", leave), block=64)[0]) == []
    body = one_thread_each.format(write="relaxed.cta", read="relaxed.cta").replace("setp.lt.u32 %q", leave)
    found(body, "mbarrier.arrive", "mbarrier.init", block=64)


@pytest.mark.parametrize(
    "use",
    [
        "mbarrier.arrive.shared::cta.b64 %tok, [%bar];",
        "mbarrier.arrive.relaxed.cta.shared::cta.b64 %tok, [%bar];",
        "mbarrier.arrive_drop.shared::cta.b64 %tok, [%bar];",
        "mbarrier.expect_tx.relaxed.cta.shared::cta.b64 [%bar], 16;",
        "mbarrier.complete_tx.relaxed.cta.shared::cta.b64 [%bar], 16;",
        "mbarrier.test_wait.parity.shared::cta.b64 %p, [%bar], 0;",
        "mbarrier.try_wait.parity.relaxed.cta.shared::cta.b64 %p, [%bar], 0;",
        "mbarrier.inval.shared::cta.b64 [%bar];",
        "cp.async.mbarrier.arrive.shared::cta.b64 [%bar];",
        "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%buf], [%in], 16, [%bar];",
        "st.async.weak.shared::cluster.mbarrier::complete_tx::bytes.u32 [%buf], %t, [%bar];",
    ],
)
def test_every_use_by_another_thread(use: str) -> None:
    body = f"{BEGIN}\n{INIT}1;\n{BETWEEN}\nsetp.eq.u32 %q, %t, 32; @%q {use}"
    ordered = {kind for kind in kinds(run(body, block=64)[0]) if kind != "async-pending"}
    assert ordered == set()
    found(body.replace(BETWEEN, ""), use, block=64)
    own = body.replace(BETWEEN, "").replace("%t, 32", "%t, 0")
    assert set(kinds(run(own, block=64)[0])) <= {"async-pending"}


def test_a_warp_is_reported_once_for_each_mbarrier() -> None:
    look = "mbarrier.test_wait.parity.shared::cta.b64 %p, [%bar], 0;"
    second, third = "setp.eq.u32 %q, %t, 32;", "setp.eq.u32 %q, %t, 64;"
    body = f"{BEGIN}\n{INIT}1;\n{second}\n@%q {look}\n{third}\n@%q {look}\n{second}\n@%q {look}"
    report, _ = run(body, block=96)
    first = line_of(look, body)
    assert [hazard.ptx_line for hazard in report.hazards] == [first, first + 2]
    assert [hazard.thread for hazard in report.hazards] == [(32, 0, 0), (64, 0, 0)]


AGAIN = f"""{BEGIN}
@%first mbarrier.init.shared::cta.b64 [%bar], 64; bar.sync 0;
mbarrier.arrive.shared::cta.b64 %tok, [%bar];
{WAIT.format(n=0, parity=0)}
bar.sync 0;
{{again}}
mbarrier.arrive.relaxed.cta.shared::cta.b64 %tok, [%bar];
"""


@pytest.mark.parametrize("invalidate", ["", "@%first mbarrier.inval.shared::cta.b64 [%bar];"])
def test_another_initialisation_needs_another_barrier(invalidate: str) -> None:
    second = "@%first mbarrier.init.shared.b64 [%bar], 64;"
    again = f"{invalidate}\n{second}\n{BETWEEN}"
    assert kinds(run(AGAIN.format(again=again), block=64)[0]) == []
    body = AGAIN.format(again=again.replace(BETWEEN, ""))
    found(body, "mbarrier.arrive.relaxed", second, block=64)


# -- clusters --------------------------------------------------------------------------------------------------------

# The first block initialises, and the last one uses its mbarrier.
REMOTE = f"""{BEGIN} .reg .b32 %far; .reg .b16 %mask;
mov.u32 %rank, %cluster_ctarank; mapa.shared::cluster.u32 %far, %bar, 0; mov.u16 %mask, 3;
{INIT}1;
{{between}}
setp.eq.u32 %q, %rank, 1; and.pred %q, %q, %first;
@%q {{use}}
{MEET}
"""
ARRIVE = "mbarrier.arrive.release.cluster.shared::cluster.b64 _, [%far];"
EXPECT = "mbarrier.expect_tx.relaxed.cluster.shared::cluster.b64 [%far], 16;"
STORE_ASYNC = "st.async.weak.shared::cluster.mbarrier::complete_tx::bytes.u32 [%fb], %t, [%far];"
BULK = "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%fb], [%in], 16, [%far];"
MULTICAST = (
    "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes.multicast::cluster "
    "[%buf], [%in], 16, [%bar], %mask;"
)
RELAXED = "barrier.cluster.arrive.relaxed.aligned; barrier.cluster.wait.acquire.aligned;"
FENCE = "fence.mbarrier_init.release.cluster;"


@pytest.mark.parametrize(
    ("between", "hazards"),
    [
        (MEET, False),
        (f"{FENCE} {RELAXED}", False),
        (f"@%first {FENCE} {RELAXED}", False),
        (f"fence.acq_rel.cluster; {RELAXED}", False),
        (f"bar.sync 0; {FENCE} {RELAXED}", False),
        (f"{FENCE} bar.sync 0; {RELAXED}", False),
        (RELAXED, True),
        (f"bar.sync 0; {RELAXED}", True),
        (f"setp.ge.u32 %q, %t, 32; @%q {FENCE} {RELAXED}", True),
        (f"{RELAXED} {FENCE}", True),
        (f"{FENCE} bar.sync 0;", True),
        ("bar.sync 0;", True),
    ],
)
@pytest.mark.parametrize("use", [ARRIVE, EXPECT, STORE_ASYNC, BULK, MULTICAST])
def test_uses_by_another_block_of_the_cluster(use: str, between: str, hazards: bool) -> None:
    if "%fb" in use:
        between = f".reg .b32 %fb; mapa.shared::cluster.u32 %fb, %buf, 0; {between}"
    body = REMOTE.format(between=between, use=use)
    if not hazards:
        assert set(kinds(run(body, block=64, grid=4, cluster=2)[0])) <= {"async-pending"}
        return
    report = found(body, use, block=64, grid=4, cluster=2)
    assert "thread (0, 0, 0) of cluster block 0 initialised" in report.hazards[0].message
    assert report.hazards[0].block == (1, 0, 0)


def test_blocks_are_named_by_their_rank_in_the_cluster() -> None:
    only_the_second = "mov.u32 %w, %clusterid.x; setp.eq.u32 %p, %w, 1; and.pred %first, %first, %p;"
    body = REMOTE.format(between=f"bar.sync 0; {only_the_second}", use=ARRIVE)
    report = found(body, ARRIVE, block=64, grid=4, cluster=2)
    assert "of cluster block 0 initialised" in report.hazards[0].message
    assert report.hazards[0].block == (3, 0, 0)


def test_a_relaxed_cluster_barrier_without_a_fence_orders_the_own_block_neither() -> None:
    use = "mbarrier.test_wait.parity.shared::cta.b64 %p, [%bar], 0;"
    body = f"{BEGIN}\n{INIT}1;\n{{between}}\n{use}"
    assert kinds(run(body.format(between=f"{FENCE} {RELAXED}"), block=64, grid=2, cluster=2)[0]) == []
    found(body.format(between=RELAXED), use, block=64, grid=2, cluster=2)
