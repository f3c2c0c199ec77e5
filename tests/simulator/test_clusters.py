"""The cluster's barrier where threads end or order nothing, and the shared memory of blocks that have ended."""

from __future__ import annotations

import numpy as np
import pytest

from tests.simulator.test_async import BEGIN, CLUSTER, MEET, POINTERS, STORE, WAIT, kinds, load, run
from tilus import simulator

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


@pytest.mark.parametrize(
    "far", ["mapa.shared::cluster.u32 %w, %u, %rank; xor.b32 %w, %w, %c;", "xor.b32 %w, %u, %c;"]
)
def test_a_block_named_by_how_its_rank_differs(far: str) -> None:
    # Block r reads what block r ^ 3 wrote; hardware has the rank in bits 24 and up of an address.
    body = f"""{BEGIN} .reg .b32 %c, %d;
    mov.u32 %rank, %cluster_ctarank; mad.lo.u32 %v, %rank, 100, %t; st.shared.u32 [%u], %v;
    {MEET}
    mov.u32 %c, {3 << 24}; {far} ld.shared::cluster.u32 %v, [%w]; getctarank.shared::cluster.u32 %d, %w;
    mad.lo.u32 %v, %d, 1000, %v; mad.lo.u32 %w, %rank, 32, %t; mul.wide.u32 %x, %w, 4; {STORE}
    {MEET}
    """
    report, out = run(body, block=32, grid=4, cluster=4)
    assert kinds(report) == []
    other = np.arange(4)[:, None] ^ 3
    np.testing.assert_array_equal(out[:128].reshape(4, 32), other * 1100 + np.arange(32))


REMOTE = f"""{BEGIN} .reg .b32 %peer, %far, %fb;
mov.u32 %rank, %cluster_ctarank; xor.b32 %peer, %rank, 1;
@%first mbarrier.init.shared::cta.b64 [%bar], 1;
@%first mbarrier.arrive.expect_tx.shared::cta.b64 %tok, [%bar], {{bytes}};
{{{{setup}}}}
{MEET}
mapa.shared::cluster.u32 %far, %buf, {{{{to}}}}; mapa.shared::cluster.u32 %fb, %bar, {{{{to}}}};
{{copy}}
{WAIT.format(n=0, parity=0)}
{MEET}
"""
BULK = REMOTE.format(
    bytes=512,
    copy="@%first cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%far], [%in], 512, [%fb];",
)
TENSOR = REMOTE.format(
    bytes=128,
    copy="@%first cp.async.bulk.tensor.1d.shared::cluster.global.tile.mbarrier::complete_tx::bytes "
    "[%far], [in, {{0}}], [{barrier}];",
)
STORE_ASYNC = REMOTE.format(
    bytes=4,
    copy="@%first st.async.weak.shared::cluster.mbarrier::complete_tx::bytes.u32 [%far], %t, [%fb];",
)


@pytest.mark.parametrize(
    ("to", "then", "hazards"),
    [
        ("%peer", "", []),
        ("2", "", ["out-of-bounds"]),
        ("%peer", "setp.eq.u32 %q, %rank, 1; @%q ret;", ["out-of-bounds"]),
    ],
)
def test_a_bulk_copy_goes_to_a_running_block_of_the_cluster(to: str, then: str, hazards: list[str]) -> None:
    body = BULK.format(to=to, setup="").replace(MEET, f"{MEET} {then}", 1)
    report, _ = run(body, block=32, grid=2, cluster=2)
    assert kinds(report) == hazards


@pytest.mark.parametrize(("barrier", "hazards"), [("%fb", []), ("%bar", ["mbarrier-misuse"])])
def test_the_mbarrier_of_a_tensor_copy_lies_beside_its_destination(barrier: str, hazards: list[str]) -> None:
    data = np.arange(32, dtype=np.float32)
    body = (
        TENSOR.replace("{barrier}", barrier)
        .format(to="%peer", setup="")
        .replace("ld.param.u64 %in, [in];", "")
    )
    kernel = load(body, ".param .align 64 .b8 in[128], .param .u64 out")
    report = kernel.launch(2, 32, [simulator.TensorMap.of(data, (32,)), np.zeros(4)], cluster=2)
    assert kinds(report) == hazards


@pytest.mark.parametrize(
    ("setup", "hazards"), [("", []), ("@%first mbarrier.inval.shared::cta.b64 [%bar];", ["mbarrier-misuse"])]
)
def test_a_remote_store_needs_an_mbarrier(setup: str, hazards: list[str]) -> None:
    report, _ = run(STORE_ASYNC.format(to="%peer", setup=setup), block=32, grid=2, cluster=2)
    assert kinds(report) == hazards
