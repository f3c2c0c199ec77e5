"""Reads that race with writes by other threads count where somebody can use what was read."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tests.simulator.support import line_of, load

# Threads t and t + 64 hold the same element, as compilers lay out tiles of fewer elements than threads.
BEGIN = """
.reg .b64 %x, %y; .reg .b32 %t, %u, %v, %w, %b, %i; .reg .pred %p, %q, %r, %s;
ld.param.u64 %x, [data]; ld.param.u64 %y, [other]; mov.u32 %t, %tid.x; mov.u32 %b, %ctaid.x;
and.b32 %u, %t, 63; mad.lo.u32 %u, %b, 64, %u; mad.wide.u32 %x, %u, 4, %x; mad.lo.u32 %i, %b, 128, %t; mad.wide.u32 %y, %i, 4, %y;
and.b32 %w, %t, 64; setp.eq.u32 %p, %w, 0; setp.ne.u32 %r, %w, 0; setp.lt.u32 %q, %u, 100;
ld.global.u32 %v, [%x];
"""
BIG = "setp.gt.u32 %q, %v, 1000;"
SHUFFLE = "shfl.sync.bfly.b32 %v, %v, 1, 31, -1;"


def run(body: str, blocks: int = 2) -> tuple[Any, np.ndarray]:
    data, other = np.arange(256, dtype=np.uint32), np.zeros(256, np.uint32)
    parameters = ".param .u64 data, .param .u64 other"
    return load(BEGIN + body, parameters).launch(blocks, 128, [data, other]), data


@pytest.mark.parametrize(
    ("middle", "guard", "found"),
    [
        ("add.u32 %v, %v, 1;", "@%p", False),
        ("add.u32 %v, %v, 1;", "@!%r", False),
        ("add.u32 %v, %v, 1; and.pred %s, %q, %p;", "@%s", False),
        # The lanes of a warp stand on one side of the predicate.
        (f"{SHUFFLE} {SHUFFLE} add.u32 %v, %v, 1;", "@%p", False),
        ("add.u32 %v, %v, 1; st.global.u32 [%y], %v;", "@%p", True),
        ("add.u32 %v, %v, 1; @%r st.global.u32 [%y], %v;", "@%p", True),
        ("add.u32 %v, %v, 1; @%p st.global.u32 [%y], %v;", "@%p", False),
        ("setp.gt.u32 %q, %v, 1000; add.u32 %v, %v, 1; @%q trap;", "@%p", True),
        ("setp.gt.u32 %q, %v, 1000; add.u32 %v, %v, 1; @%q st.global.u32 [%y], %t;", "@%p", True),
        ("@%r mov.u32 %t, %v; add.u32 %v, %v, 1; st.global.u32 [%y], %t;", "@%p", True),
        (f"{BIG} @%q mov.u32 %t, 7; add.u32 %v, %v, 1; st.global.u32 [%y], %t;", "@%p", True),
        # Branches that decide what is computed, and what is done.
        (f"{BIG} @%q bra skip; add.u32 %v, %v, 1; skip:", "@%p", False),
        (f"{BIG} @!%q bra more; mov.u32 %v, 0; bra.uni skip; more: add.u32 %v, %v, 1; skip:", "@%p", False),
        (f"{BIG} @%q bra skip; @%p st.global.u32 [%y], %t; skip: add.u32 %v, %v, 1;", "@%p", False),
        (f"{BIG} @%q bra skip; @%r st.global.u32 [%y], %t; skip: add.u32 %v, %v, 1;", "@%p", True),
        (f"{BIG} @%q bra skip; st.global.u32 [%y], %t; skip: add.u32 %v, %v, 1;", "@%p", True),
        (f"{BIG} @%q bra skip; mov.u32 %t, 7; skip: st.global.u32 [%y], %t; add.u32 %v, %v, 1;", "@%p", True),
        ("again: add.u32 %v, %v, 1; setp.lt.u32 %q, %v, 1; @%q bra again;", "@%p", True),
    ],
)
def test_a_value_that_no_store_of_the_thread_depends_on(middle: str, guard: str, found: bool) -> None:
    report, data = run(f"{middle}\n{guard} st.global.u32 [%x], %v;")
    line = line_of("st.global.u32 [%x]", BEGIN + f"{middle}\n{guard} st.global.u32 [%x], %v;")
    assert [(h.kind, h.ptx_line) for h in report.hazards] == ([("global-race", line)] if found else [])
    if not found:
        np.testing.assert_array_equal(data[:100], np.arange(100) + 1)


def test_a_shuffle_across_the_predicate_uses_the_value() -> None:
    # Lanes 16 to 31 hold what lanes 0 to 15 hold, store nothing, and give them their values.
    body = """
    .reg .b64 %x, %y; .reg .b32 %t, %u, %v, %w; .reg .pred %p;
    ld.param.u64 %x, [data]; mov.u32 %t, %tid.x; mul.wide.u32 %y, %t, 0;
    shr.u32 %w, %t, 5; and.b32 %u, %t, 15; mad.wide.u32 %x, %u, 4, %x; setp.lt.u32 %p, %t, 16;
    ld.global.u32 %v, [%x];
    {}
    add.u32 %v, %v, 1; @%p st.global.u32 [%x], %v;"""
    across = "shfl.sync.bfly.b32 %v, %v, 16, 31, -1; bar.warp.sync -1;"
    for middle, block, kinds in (("", 64, []), (across, 32, []), (across, 64, [])):
        report = load(body.format(middle), ".param .u64 data").launch(1, block, [np.zeros(16, np.uint32)])
        assert [h.kind for h in report.hazards] == kinds, middle
    # Lanes 0 to 15 store over what lanes 16 to 31 of the other warp have read for their neighbours.
    body = """
    .reg .b64 %x, %y; .reg .b32 %t, %u, %v, %w; .reg .pred %p;
    ld.param.u64 %x, [data]; mov.u32 %t, %tid.x; xor.b32 %u, %t, 48; and.b32 %w, %t, 16; setp.eq.u32 %p, %w, 0;
    mad.wide.u32 %y, %u, 4, %x; mad.wide.u32 %x, %t, 4, %x;
    ld.global.u32 %v, [%x];
    {}
    add.u32 %v, %v, 1; @%p st.global.u32 [%y], %v;"""
    for middle, kinds in (("", []), (across, ["global-race"])):
        report = load(body.format(middle), ".param .u64 data").launch(1, 64, [np.zeros(64, np.uint32)])
        assert [h.kind for h in report.hazards] == kinds


def test_an_unused_read_hides_no_used_one() -> None:
    """Each block reads the element that the next one writes; threads that store nothing read it last."""
    body = """
    .reg .b64 %x; .reg .b32 %t, %v, %b; .reg .pred %p;
    ld.param.u64 %x, [data]; mov.u32 %t, %tid.x; mov.u32 %b, %ctaid.x; mad.wide.u32 %x, %b, 4, %x;
    setp.eq.u32 %p, %t, 0;
    ld.global.u32 %v, [%x+{}];
    add.u32 %v, %v, 1;
    @%p st.global.u32 [%x], %v;"""
    for offset, kinds in ((0, []), (4, ["global-race"])):
        report = load(body.format(offset), ".param .u64 data").launch(8, 128, [np.zeros(9, np.uint32)])
        assert [h.kind for h in report.hazards] == kinds


def test_a_late_read_of_what_another_thread_has_written() -> None:
    """Warp 1 runs late and reads what warp 0 has written already."""
    body = """
    .reg .b64 %x, %y; .reg .b32 %t, %u, %v, %i; .reg .pred %p, %q;
    ld.param.u64 %x, [data]; mov.u32 %t, %tid.x; and.b32 %u, %t, 31; mad.wide.u32 %x, %u, 4, %x;
    setp.lt.u32 %p, %t, 32; mov.u32 %i, 0;
    @%p bra go;
    again: add.u32 %i, %i, 1; setp.lt.u32 %q, %i, 50; @%q bra again;
    go: ld.global.u32 %v, [%x];
    add.u32 %v, %v, 1;
    {} st.global.u32 [%x], %v;
    {}"""
    used = "mad.wide.u32 %x, %t, 4, %x; st.global.u32 [%x+256], %v;"
    for guard, rest, found in (("@%p", "", False), ("@%p", used, True), ("", "", True)):
        report = load(body.format(guard, rest), ".param .u64 data").launch(1, 64, [np.zeros(200, np.uint32)])
        assert ("global-race" in [h.kind for h in report.hazards]) == found


def test_a_value_that_nobody_uses_counts() -> None:
    report, _ = run("@%p st.global.u32 [%x], 7;")
    assert [h.kind for h in report.hazards] == ["global-race"]
