"""Loops that wait for others: all get their turn, and what nobody will ever end is reported; many mbarriers at once."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tests.simulator.support import load

BEGIN = """
.reg .b64 %p; .reg .b32 %t, %v, %b, %i, %n; .reg .pred %q, %r; .shared .align 16 .b8 sh[256];
.local .align 4 .b8 stack[16];
ld.param.u64 %p, [data]; mov.u32 %t, %tid.x; mov.u32 %b, %ctaid.x;
"""


def run(body: str, grid: int = 2, block: int = 64) -> tuple[Any, Any]:
    data = np.zeros(1024, np.uint32)
    return load(BEGIN + body, ".param .u64 data").launch(grid, block, [data]), data


def kinds(report: Any) -> list[str]:
    return [hazard.kind for hazard in report.hazards]


NEVER = {
    "a plain load": "L: ld.global.u32 %v, [%p]; setp.eq.u32 %q, %v, 0; @%q bra L;",
    "a volatile load": "L: ld.volatile.global.u32 %v, [%p]; setp.eq.u32 %q, %v, 0; @%q bra L;",
    "a load of shared memory": "st.shared.u32 [sh], 0; bar.sync 0; L: ld.shared.u32 %v, [sh];"
    "setp.eq.u32 %q, %v, 0; @%q bra L;",
    "nothing": "L: bra L;",
    "an atomic": "L: atom.global.or.b32 %v, [%p], 0; setp.eq.u32 %q, %v, 0; @%q bra L;",
    "an acquire between naps": "L: nanosleep.u32 100; ld.acquire.gpu.global.u32 %v, [%p]; setp.eq.u32 %q, %v, 0;"
    "@%q bra L;",
    "a barrier at each turn": "L: bar.sync 0; ld.global.u32 %v, [%p]; setp.eq.u32 %q, %v, 0; @%q bra L;",
    # Most turns are the inner loop's, whose registers change.
    "an inner loop of 16 turns": "mov.u32 %i, 0; K: add.u32 %i, %i, 1; setp.lt.u32 %q, %i, 4; @%q bra K;"
    "L: mov.u32 %i, 0; M: add.u32 %i, %i, 1; setp.lt.u32 %q, %i, 16; @%q bra M;"
    "ld.global.u32 %v, [%p]; setp.eq.u32 %q, %v, 0; @%q bra L;",
    "one lane of a warp": "setp.ne.u32 %r, %t, 0; @%r bra W; L: ld.volatile.global.u32 %v, [%p];"
    "setp.eq.u32 %q, %v, 0; @%q bra L; W: bar.warp.sync -1;",
    "a branch by table": "T: .branchtargets E, L; L: ld.global.u32 %v, [%p]; setp.eq.u32 %q, %v, 0;"
    "selp.u32 %i, 1, 0, %q; brx.idx %i, T; E: ret;",
}


@pytest.mark.parametrize("how", NEVER)
def test_waiting_for_what_never_comes_ends(how: str) -> None:
    report, _ = run(NEVER[how])
    assert kinds(report) == ["deadlock"]
    assert "poll memory that nobody changes any more" in report.hazards[0].message
    assert report.hazards[0].ptx_line is not None


SIGNAL = """
setp.ge.u32 %r, {who}; @%r bra S;
L: {read} %v, [{place}]; setp.eq.u32 %q, %v, 0; @%q bra L; bra E;
S: mov.u32 %i, 0; W: add.u32 %i, %i, 1; ld.global.u32 %n, [%p+512]; setp.lt.u32 %q, %i, 3000; @%q bra W;
{write} [{place}], 1; E: st.global.u32 [%p+1024], 7;
"""


@pytest.mark.parametrize(
    ("who", "place", "read", "write", "race"),
    [
        ("%b, 1", "%p", "ld.volatile.global.u32", "st.volatile.global.u32", []),
        ("%b, 1", "%p", "ld.global.u32", "st.global.u32", ["global-race"]),
        ("%t, 32", "sh", "ld.volatile.shared.u32", "st.volatile.shared.u32", []),
        ("%t, 32", "sh", "ld.shared.u32", "st.shared.u32", ["shared-race"]),
    ],
)
def test_those_who_are_waited_for_get_their_turn(
    who: str, place: str, read: str, write: str, race: list[str]
) -> None:
    before = "st.shared.u32 [sh], 0; bar.sync 0;" if place == "sh" else ""
    report, data = run(before + SIGNAL.format(who=who, place=place, read=read, write=write))
    assert sorted(set(kinds(report))) == race
    assert data[256] == 7


def test_a_wait_that_gives_up_is_no_deadlock() -> None:
    report, data = run(
        """mov.u32 %i, 0;
        L: add.u32 %i, %i, 1; ld.volatile.global.u32 %v, [%p]; setp.ne.u32 %q, %v, 0; @%q bra E;
        setp.lt.u32 %q, %i, 20000; @%q bra L;
        E: st.global.u32 [%p+1024], %i;"""
    )
    assert kinds(report) == []
    assert data[256] == 20000


def test_a_wait_that_counts_without_end_is_a_deadlock() -> None:
    report, _ = run(
        "mov.u32 %i, 0; L: add.u32 %i, %i, 1; ld.volatile.global.u32 %v, [%p]; setp.eq.u32 %q, %v, 0; @%q bra L;",
        grid=1,
        block=32,
    )
    assert kinds(report) == ["deadlock"]


def test_loops_over_local_memory_alone_end() -> None:
    # As unoptimised code counts: at each turn all registers are what they were.
    report, data = run(
        """st.local.u32 [stack], 0;
        L: ld.local.u32 %i, [stack]; add.u32 %i, %i, 1; st.local.u32 [stack], %i; setp.eq.u32 %r, %i, 5000;
        mov.u32 %i, 0; @%r bra E; setp.eq.u32 %r, %i, 1; bra L;
        E: st.global.u32 [%p+1024], 7;"""
    )
    assert kinds(report) == []
    assert data[256] == 7


BULK = """
.reg .b64 %in, %out, %x, %a, %tok; .reg .b32 %t, %v, %bar, %buf, %u; .reg .pred %p, %q, %first, %second;
.shared .align 8 .b8 bars[512]; .shared .align 128 .b8 buf[8192];
ld.param.u64 %in, [in]; ld.param.u64 %out, [out];
mov.u32 %t, %tid.x; mov.u32 %bar, bars; mov.u32 %buf, buf;
setp.eq.u32 %first, %t, 0; setp.ge.u32 %second, %t, 32;
@!%first bra ready;
"""


def bulk(count: int, waits: str) -> Any:
    """Copies by ``count`` mbarriers; one warp waits for all, the last first, another for ``waits`` before it reads the last."""
    lines = []
    for i in range(count):
        lines.append(f"mbarrier.init.shared::cta.b64 [%bar+{8 * i}], 1;")
    lines.append("ready: bar.sync 0; @!%first bra copied;")
    for i in range(count):
        lines.append(f"mbarrier.arrive.expect_tx.shared::cta.b64 %tok, [%bar+{8 * i}], 128;")
        lines.append(
            "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes "
            f"[%buf+{128 * i}], [%in+{128 * i}], 128, [%bar+{8 * i}];"
        )
    lines.append("copied: @%second bra other;")
    for i in reversed(range(count)):
        lines.append(f"w{i}: mbarrier.try_wait.parity.shared::cta.b64 %p, [%bar+{8 * i}], 0; @!%p bra w{i};")
    lines.append("st.volatile.global.u32 [%out+4096], 1; bra end;")
    # A plain poll orders nothing: it only makes sure that all copies have come.
    lines.append("other: ld.volatile.global.u32 %v, [%out+4096]; setp.eq.u32 %q, %v, 0; @%q bra other;")
    for i in waits.split():
        lines.append(
            f"x{i}: mbarrier.try_wait.parity.shared::cta.b64 %p, [%bar+{8 * int(i)}], 0; @!%p bra x{i};"
        )
    lines.append(
        f"shl.b32 %u, %t, 2; add.u32 %u, %u, %buf; ld.shared.u32 %v, [%u+{128 * (count - 1) - 128}];"
    )
    lines.append("mul.wide.u32 %x, %t, 4; add.u64 %a, %out, %x; st.global.u32 [%a], %v; end: ret;")
    out = np.zeros(2048, np.uint32)
    data = np.arange(4096, dtype=np.uint32)
    report = load(BULK + "\n".join(lines), ".param .u64 in, .param .u64 out").launch(1, 64, [data, out])
    return report, out


@pytest.mark.parametrize("count", [2, 17, 40])
def test_each_of_many_mbarriers_counts_for_itself(count: int) -> None:
    report, out = bulk(count, f"0 {count - 1}")
    assert kinds(report) == []
    assert out[32:64].tolist() == list(range(32 * (count - 1), 32 * count))
    for others in ("0", "0 " + str((count - 1) % 16)):
        if str(count - 1) not in others.split():
            assert kinds(bulk(count, others)[0]) == ["shared-race"], others
