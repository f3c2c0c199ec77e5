"""The cluster's barrier where threads end or order nothing, and the shared memory of blocks that have ended."""

from __future__ import annotations

import pytest

from tests.simulator.test_async import BEGIN, CLUSTER, MEET, POINTERS, STORE, kinds, load, run

RELAXED = "{fence} barrier.cluster.arrive.relaxed.aligned; barrier.cluster.wait.acquire.aligned;"


def test_threads_that_end_do_not_hold_up_the_cluster() -> None:
    # A warp of the second block ends late, when all others wait: what stands further down runs later.
    body = f"""{BEGIN}
    mov.u32 %rank, %cluster_ctarank; setp.eq.u32 %q, %rank, 1; setp.ge.u32 %p, %t, 32; and.pred %q, %q, %p;
    @%q bra leave;
    {MEET}
    mov.u32 %v, 7; mad.lo.u32 %w, %rank, 128, %t; mul.wide.u32 %x, %w, 4; {STORE}
    leave: ret;
    """
    report, out = run(body, block=64, grid=2, cluster=2)
    assert kinds(report) == []
    assert out[:160].tolist() == [7] * 64 + [0] * 64 + [7] * 32


@pytest.mark.parametrize(
    ("fence", "found"),
    [("", {"shared-race"}), ("fence.acq_rel.cluster;", set()), ("membar.cta;", {"shared-race"})],
)
def test_a_relaxed_arrival_hands_on_what_a_fence_released(fence: str, found: set[str]) -> None:
    report, _ = run(CLUSTER.format(sync=RELAXED.format(fence=fence), end=MEET), block=32, grid=4, cluster=4)
    assert set(kinds(report)) == found


ENDED = f"""{BEGIN}
mov.u32 %rank, %cluster_ctarank; mov.u32 %v, 1; st.shared.u32 [%u], %v;
{MEET}
setp.eq.u32 %q, %rank, 1; @%q {{leave}};
mov.u32 %w, 1; mapa.shared::cluster.u32 %w, %u, %w; {{access}}
end: {{end}}
"""


@pytest.mark.parametrize(
    "access", ["ld.shared::cluster.u32 %v, [%w];", "red.relaxed.cluster.shared::cluster.add.u32 [%w], 1;"]
)
def test_a_block_that_has_ended_has_no_shared_memory(access: str) -> None:
    body = ENDED.format(leave="ret", access=access, end="")
    report = load(body, POINTERS).launch(2, 32, [0, 0], cluster=2)
    assert kinds(report) == ["out-of-bounds"]
    assert "block (1, 0, 0) of the cluster, which has ended" in report.hazards[0].message
    waiting = ENDED.format(leave="bra end", access=access, end=MEET)
    assert kinds(load(waiting, POINTERS).launch(2, 32, [0, 0], cluster=2)) == []
