"""Fences around relaxed accesses: in which scope they order, and what ``fence.mbarrier_init`` leaves alone."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tests.simulator.support import load
from tests.simulator.test_async import BEGIN, EXCHANGE, MEET, STORE, kinds, run

BLOCK, GPU = "fence.acq_rel.cta;", "fence.acq_rel.gpu;"

# Thread 0 hands a word of shared memory to thread 32.
HAND_OVER = f"""{BEGIN} .shared .align 4 .b32 flag;
@%first st.shared.u32 [flag], 0; bar.sync 0;
setp.eq.u32 %q, %t, 0; setp.eq.u32 %p, %t, 32; @%p bra other; @!%q ret;
st.shared.u32 [%buf], 5;
{{before}} st.{{write}}.shared.u32 [flag], 1; ret;
other: ld.{{read}}.shared.u32 %v, [flag]; setp.eq.u32 %p, %v, 1; @!%p bra other;
{{after}} ld.shared.u32 %v, [%buf]; {STORE}
"""


@pytest.mark.parametrize("access", ["relaxed.cta", "relaxed.gpu", "volatile"])
@pytest.mark.parametrize("fence", [BLOCK, "membar.cta;", GPU, "fence.sc.cta;"])
def test_a_fence_of_the_block_orders_within_the_block(fence: str, access: str) -> None:
    def hazards(before: str, after: str) -> list[str]:
        body = HAND_OVER.format(before=before, after=after, write=access, read=access)
        return kinds(run(body, block=64)[0])

    assert hazards(fence, fence) == []
    assert hazards(fence, "") == ["shared-race"]
    assert hazards("", fence) == ["shared-race"]


def test_scopes_of_the_two_sides_may_differ_within_the_block() -> None:
    body = HAND_OVER.format(before=GPU, after=BLOCK, write="relaxed.gpu", read="relaxed.cta")
    assert kinds(run(body, block=64)[0]) == []
    body = HAND_OVER.format(before="", after=BLOCK, write="release.cta", read="relaxed.sys")
    assert kinds(run(body, block=64)[0]) == []


# The same from block 0 to block 1, through global memory.
ACROSS = """
.reg .b64 %x; .reg .b32 %v, %r; .reg .pred %p;
ld.param.u64 %x, [out]; mov.u32 %r, %ctaid.x; setp.eq.u32 %p, %r, 1; @%p bra other;
st.global.u32 [%x], 5;
{before} st.{write}.global.u32 [%x+64], 1; ret;
other: ld.{read}.global.u32 %v, [%x+64]; setp.eq.u32 %p, %v, 1; @!%p bra other;
{after} ld.global.u32 %v, [%x]; st.global.u32 [%x+128], %v;
"""


@pytest.mark.parametrize(
    ("before", "write", "read", "after", "ordered"),
    [
        (GPU, "relaxed.gpu", "relaxed.gpu", GPU, True),
        (BLOCK, "relaxed.gpu", "relaxed.gpu", GPU, False),
        ("membar.cta;", "volatile", "volatile", "membar.gl;", False),
        (GPU, "relaxed.cta", "relaxed.gpu", GPU, False),
        (GPU, "relaxed.gpu", "relaxed.cta", GPU, False),
        (f"{GPU} {BLOCK}", "relaxed.gpu", "relaxed.gpu", GPU, True),
        ("", "release.cta", "acquire.gpu", "", False),
        ("", "release.gpu", "acquire.gpu", "", True),
    ],
)
def test_a_fence_of_the_block_orders_no_other_block(
    before: str, write: str, read: str, after: str, ordered: bool
) -> None:
    body = ACROSS.format(before=before, write=write, read=read, after=after)
    report = load(body, ".param .u64 out").launch(2, 1, [np.zeros(64, np.uint32)])
    found = set(kinds(report))
    # A flag whose accesses do not have each other in their scopes may itself be in a race.
    assert found == set() if ordered else "global-race" in found


def test_relaxed_arrivals_at_an_mbarrier_of_the_own_block() -> None:
    def hazards(before: str, after: str) -> list[str]:
        body = EXCHANGE.format(arrive=f"{before} mbarrier.arrive.relaxed.cta.shared::cta.b64 %tok, [%bar];")
        body = body.replace("try_wait.parity", "try_wait.parity.relaxed.cta")
        return kinds(run(body.replace("xor.b32", f"{after} xor.b32"))[0])

    assert hazards(BLOCK, BLOCK) == []
    assert hazards("", BLOCK) == hazards(BLOCK, "") == ["shared-race"]


# Block 0 writes to block 1's memory, and arrives at block 1's mbarrier.
REMOTE = f"""{BEGIN} .reg .b32 %far, %there;
mov.u32 %rank, %cluster_ctarank; @%first mbarrier.init.shared::cta.b64 [%bar], 1; {MEET}
mapa.shared::cluster.u32 %far, %bar, 1; mapa.shared::cluster.u32 %there, %buf, 1;
setp.eq.u32 %q, %rank, 1; @%q bra other;
st.shared::cluster.u32 [%there], 7;
{{fence}} mbarrier.arrive.relaxed.cluster.shared::cluster.b64 _, [%far];
bra.uni done;
other: mbarrier.try_wait.parity.acquire.cluster.shared::cta.b64 %p, [%bar], 0; @!%p bra other;
ld.shared.u32 %v, [%buf]; {STORE}
done: {MEET}
"""


@pytest.mark.parametrize(
    ("fence", "ordered"), [("fence.acq_rel.cluster;", True), (BLOCK, False), ("", False)]
)
def test_relaxed_arrivals_at_an_mbarrier_of_another_block(fence: str, ordered: bool) -> None:
    report, _ = run(REMOTE.format(fence=fence), block=1, grid=2, cluster=2)
    assert kinds(report) == ([] if ordered else ["shared-race"])


# -- fence.mbarrier_init ---------------------------------------------------------------------------------------------

INIT = "fence.mbarrier_init.release.cluster;"
RELAXED = "barrier.cluster.arrive.relaxed.aligned; barrier.cluster.wait.acquire.aligned;"


@pytest.mark.parametrize(
    ("fences", "ordered"),
    [
        (INIT, False),
        ("fence.acq_rel.cluster;", True),
        (f"fence.acq_rel.cluster; {INIT}", True),
        (f"{INIT} fence.acq_rel.cluster;", True),
        ("", False),
    ],
)
def test_a_fence_for_initialisations_releases_nothing_else(fences: str, ordered: bool) -> None:
    body = f"""{BEGIN} .reg .b32 %far;
    @%first mbarrier.init.shared::cta.b64 [%bar], 1; st.shared.u32 [%buf], 3;
    {fences} {RELAXED}
    mov.u32 %rank, %cluster_ctarank; xor.b32 %rank, %rank, 1; mapa.shared::cluster.u32 %far, %buf, %rank;
    ld.shared::cluster.u32 %v, [%far]; mapa.shared::cluster.u32 %far, %bar, %rank;
    {{use}} {STORE} {MEET}
    """
    arrive = "mbarrier.arrive.release.cluster.shared::cluster.b64 _, [%far];"
    report, _ = run(body.format(use=""), block=1, grid=2, cluster=2)
    assert kinds(report) == ([] if ordered else ["shared-race"])
    report, _ = run(body.format(use=arrive), block=1, grid=2, cluster=2)
    assert ("mbarrier-misuse" in kinds(report)) == (fences == "")


# -- the last block of a grid ----------------------------------------------------------------------------------------

# Each block leaves a number; the block that counts as the last adds them up.
LAST = """
.reg .b64 %x, %a; .reg .b32 %v, %r, %n, %t, %s; .reg .pred %p; .shared .b32 ticket;
ld.param.u64 %x, [out]; mov.u32 %r, %ctaid.x; mov.u32 %n, %nctaid.x; mov.u32 %t, %tid.x;
setp.ne.u32 %p, %t, 0; @%p bra meet;
mad.wide.u32 %a, %r, 4, %x; add.u32 %v, %r, 10; st.global.u32 [%a+128], %v;
{fence} {count} st.shared.u32 [ticket], %v;
meet: {meet}
ld.shared.u32 %v, [ticket]; add.u32 %v, %v, 1; setp.ne.u32 %p, %v, %n; @%p ret;
mov.u32 %s, 0; mov.u32 %r, 0;
sum: mad.wide.u32 %a, %r, 4, %x; ld.global.u32 %v, [%a+128]; add.u32 %s, %s, %v; add.u32 %r, %r, 1;
setp.lt.u32 %p, %r, %n; @%p bra sum;
setp.eq.u32 %p, %t, 0; @%p st.global.u32 [%x], %s;
"""
COUNT = "atom.global.inc.u32 %v, [%x+64], 100;"


@pytest.mark.parametrize(
    ("fence", "meet", "ordered"),
    [
        (GPU, "bar.sync 0;", True),
        (GPU, "bar.sync 3, 64;", True),
        (GPU, f"bar.sync 0; {GPU}", True),
        ("", "bar.sync 0;", False),
        (BLOCK, "bar.sync 0;", False),
        ("", f"bar.sync 0; {GPU}", False),
    ],
)
def test_the_last_block_is_found_by_an_atomic_and_a_barrier(fence: str, meet: str, ordered: bool) -> None:
    out: Any = np.zeros(64, np.uint32)
    report = load(LAST.format(fence=fence, count=COUNT, meet=meet), ".param .u64 out").launch(7, 64, [out])
    assert set(kinds(report)) == (set() if ordered else {"global-race"})
    assert out[0] == sum(range(10, 17))


def test_a_load_needs_its_fence_where_an_atomic_does_not() -> None:
    """Thread 0 of block 1 sees the flag with a relaxed load; a barrier alone does not order its block after that."""
    body = """
    .reg .b64 %x; .reg .b32 %v, %r, %t; .reg .pred %p;
    ld.param.u64 %x, [out]; mov.u32 %r, %ctaid.x; mov.u32 %t, %tid.x; setp.ne.u32 %p, %t, 0; @%p bra meet;
    setp.eq.u32 %p, %r, 1; @%p bra other;
    st.global.u32 [%x], 5; fence.acq_rel.gpu; st.relaxed.gpu.global.u32 [%x+64], 1; bra.uni meet;
    other: ld.relaxed.gpu.global.u32 %v, [%x+64]; setp.eq.u32 %p, %v, 1; @!%p bra other; {after}
    meet: bar.sync 0;
    setp.eq.u32 %p, %r, 0; @%p ret; ld.global.u32 %v, [%x]; mad.wide.u32 %x, %t, 4, %x; st.global.u32 [%x+128], %v;
    """
    for after, expected in ((GPU, set()), ("", {"global-race"})):
        text = body.format(after=after)
        report = load(text, ".param .u64 out").launch(2, 64, [np.zeros(128, np.uint32)])
        assert set(kinds(report)) == expected


# A lock that block 1 counts up and block 0 puts back.
LOCK = """
.reg .b64 %x; .reg .b32 %v, %r; .reg .pred %p;
ld.param.u64 %x, [out]; mov.u32 %r, %ctaid.x; setp.eq.u32 %p, %r, 1; @%p bra other;
wait: {look} setp.eq.u32 %p, %v, 1; @!%p bra wait;
ld.global.u32 %v, [%x]; st.global.u32 [%x+64], 0; st.global.u32 [%x+128], %v; ret;
other: st.global.u32 [%x], 5; fence.acq_rel.gpu; red.relaxed.gpu.global.add.u32 [%x+64], 1;
"""


def test_a_lock_is_put_back_by_who_has_seen_it() -> None:
    def hazards(look: str) -> set[str]:
        body = LOCK.format(look=look)
        report = load(body, ".param .u64 out").launch(2, 1, [np.zeros(64, np.uint32)])
        return set(kinds(report))

    assert hazards("ld.acquire.gpu.global.u32 %v, [%x+64];") == set()
    assert hazards("ld.relaxed.gpu.global.u32 %v, [%x+64]; fence.acq_rel.gpu;") == set()
    # What has been seen is another flag than the one that is put back.
    body = LOCK.replace(
        "fence.acq_rel.gpu; red", "fence.acq_rel.gpu; st.relaxed.gpu.global.u32 [%x+72], 1; red"
    )
    report = load(body.format(look="ld.acquire.gpu.global.u32 %v, [%x+72];"), ".param .u64 out").launch(
        2, 1, [np.zeros(64, np.uint32)]
    )
    assert set(kinds(report)) == {"global-race"}
