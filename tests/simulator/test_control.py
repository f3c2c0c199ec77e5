"""Branches, loops, calls and built-in functions."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tests.simulator.support import HEADER, load
from tilus import simulator

BEGIN = """
.reg .b64 %out, %x; .reg .b32 %t, %v, %i, %n; .reg .pred %p, %q;
ld.param.u64 %out, [out]; mov.u32 %t, %tid.x; mul.wide.u32 %x, %t, 4; add.u64 %out, %out, %x;
"""


def run(body: str, threads: int = 64, before: str = "") -> tuple[Any, Any]:
    out = np.zeros(threads, np.uint32)
    report = load(BEGIN + body, ".param .u64 out", before).launch(1, threads, [out])
    return report, out


def collatz(n: int) -> int:
    steps = 0
    while n > 1:
        n = n // 2 if n % 2 == 0 else 3 * n + 1
        steps += 1
    return steps


def test_divergent_loops_take_each_threads_own_count() -> None:
    report, out = run("""
    mov.u32 %i, 0; mov.u32 %n, %t;
    head: setp.le.u32 %p, %n, 1; @%p bra done;
    and.b32 %v, %n, 1; setp.eq.u32 %q, %v, 0; @%q shr.u32 %n, %n, 1; @%q bra next;
    mad.lo.u32 %n, %n, 3, 1;
    next: add.u32 %i, %i, 1; bra.uni head;
    done: st.global.u32 [%out], %i;
    """)
    assert report.hazards == []
    assert out.tolist() == [collatz(t) for t in range(64)]
    assert report.counters["divergent_branches"] > 0


def test_an_indexed_branch() -> None:
    report, out = run("""
    rem.u32 %i, %t, 3;
    targets: .branchtargets a, b, c;
    brx.idx %i, targets;
    a: mov.u32 %v, 10; bra done;
    b: mov.u32 %v, 20; bra done;
    c: mov.u32 %v, 30;
    done: st.global.u32 [%out], %v;
    """)
    assert report.hazards == []
    assert out.tolist() == [(10, 20, 30)[t % 3] for t in range(64)]


def test_labels_and_registers_belong_to_their_braces() -> None:
    piece = (
        "{ .reg .u32 %z; mov.u32 %z, %v; again: add.u32 %z, %z, 1; rem.u32 %i, %z, 5; setp.ne.u32 %p, %i, 0; "
    )
    piece += "@%p bra again; mov.u32 %v, %z; }"
    report, out = run(f"mov.u32 %v, %t; {piece} {piece} st.global.u32 [%out], %v;")
    assert report.hazards == []
    assert out.tolist() == [t // 5 * 5 + 10 for t in range(64)]


FUNCTIONS = """
.func (.param .b32 r) twice(.param .b32 a) {
.reg .b32 %v; ld.param.b32 %v, [a]; shl.b32 %v, %v, 1; st.param.b32 [r], %v; ret; }
.func (.reg .b32 %r) early(.reg .b32 %a) {
.reg .pred %p; mov.b32 %r, 7; setp.gt.u32 %p, %a, 10; @%p ret; add.u32 %r, %a, 100; ret; }
.func (.param .b32 r) fib(.param .b32 a) {
.reg .b32 %v, %x, %y; .reg .pred %p; ld.param.b32 %v, [a]; setp.lt.u32 %p, %v, 2; @%p bra base;
{ .param .b32 in; .param .b32 back; sub.u32 %x, %v, 1; st.param.b32 [in], %x; call (back), fib, (in);
ld.param.b32 %x, [back]; }
{ .param .b32 in; .param .b32 back; sub.u32 %y, %v, 2; st.param.b32 [in], %y; call (back), fib, (in);
ld.param.b32 %y, [back]; }
add.u32 %v, %x, %y;
base: st.param.b32 [r], %v; ret; }
"""
CALL = (
    "{{ .param .b32 in; .param .b32 back; st.param.b32 [in], {0}; call (back), {1}, "
    "(in); ld.param.b32 {0}, [back]; }}"
)


def test_device_functions() -> None:
    body = (
        f"mov.u32 %v, %t; {CALL.format('%v', 'twice')} {CALL.format('%v', 'twice')} st.global.u32 [%out], %v;"
    )
    report, out = run(body, before=FUNCTIONS)
    assert report.hazards == []
    assert out.tolist() == [4 * t for t in range(64)]
    report, out = run("call (%v), early, (%t); st.global.u32 [%out], %v;", before=FUNCTIONS)
    assert out.tolist() == [7 if t > 10 else t + 100 for t in range(64)]


def test_recursion() -> None:
    body = f"rem.u32 %v, %t, 10; {CALL.format('%v', 'fib')} st.global.u32 [%out], %v;"
    report, out = run(body, 32, FUNCTIONS)
    assert report.hazards == []
    sequence = [0, 1, 1, 2, 3, 5, 8, 13, 21, 34]
    assert out.tolist() == [sequence[t % 10] for t in range(32)]


def test_calls_through_pointers() -> None:
    before = (
        FUNCTIONS
        + """
    .func (.param .b32 r) thrice(.param .b32 a) {
    .reg .b32 %v; ld.param.b32 %v, [a]; mul.lo.u32 %v, %v, 3; st.param.b32 [r], %v; ret; }
    .global .u64 table[2] = {twice, thrice};"""
    )
    body = """.reg .b64 %f; and.b32 %i, %t, 1; setp.eq.u32 %p, %i, 0; mov.u64 %f, twice;
    @!%p ld.global.u64 %f, [table+8];
    shape: .callprototype (.param .b32 _) _ (.param .b32 _);
    { .param .b32 in; .param .b32 back; st.param.b32 [in], %t; call (back), %f, (in), shape; ld.param.b32 %v, [back]; }
    st.global.u32 [%out], %v;"""
    report, out = run(body, before=before)
    assert report.hazards == []
    assert out.tolist() == [t * (3 if t & 1 else 2) for t in range(64)]


PRINTF = """
.extern .func (.param .b32 r) vprintf(.param .b64 f, .param .b64 a);
.global .align 1 .b8 text[24] = {37, 100, 32, 37, 46, 50, 102, 32, 37, 115, 32, 37, 120, 10, 0};
.global .align 1 .b8 word[4] = {104, 105, 0, 0};
"""


def test_printf_formats_like_c() -> None:
    body = """.local .align 8 .b8 args[32]; .reg .b64 %a, %f, %w; .reg .f64 %d;
    sub.u32 %v, 0, %t; st.local.u32 [args], %v; cvt.rn.f64.u32 %d, %t; st.local.f64 [args+8], %d;
    mov.u64 %w, word; st.local.u64 [args+16], %w; st.local.u32 [args+24], 255;
    mov.u64 %a, args; cvta.local.u64 %a, %a; mov.u64 %f, text;
    { .param .b64 p; .param .b64 q; .param .b32 r; st.param.b64 [p], %f; st.param.b64 [q], %a;
    call (r), vprintf, (p, q); }"""
    report, _ = run(body, 3, PRINTF)
    assert report.hazards == []
    assert report.printed.splitlines() == ["0 0.00 hi ff", "-1 1.00 hi ff", "-2 2.00 hi ff"]


def test_a_failed_assertion_says_what_and_where() -> None:
    before = """.extern .func __assertfail(.param .b64 a, .param .b64 b, .param .b32 c, .param .b64 d, .param .b64 e);
    .global .align 1 .b8 text[6] = {110, 32, 60, 32, 52, 0}; .global .align 1 .b8 file[5] = {97, 46, 99, 117, 0};"""
    body = """.reg .b64 %a, %f; mov.u64 %a, text; mov.u64 %f, file; setp.ne.u32 %p, %t, 3; @%p ret;
    { .param .b64 m; .param .b64 n; .param .b32 l; .param .b64 o; .param .b64 s; st.param.b64 [m], %a;
    st.param.b64 [n], %f;
    st.param.b32 [l], 12; st.param.b64 [o], %f; st.param.b64 [s], 1; call __assertfail, (m, n, l, o, s); }"""
    report, _ = run(body, 8, before)
    assert [h.kind for h in report.hazards] == ["assert"]
    assert "a.cu:12" in report.hazards[0].message
    assert "'n < 4'" in report.hazards[0].message
    assert report.hazards[0].thread == (3, 0, 0)


def test_clocks_grow() -> None:
    report, out = run("""mov.u32 %v, %clock; mov.u32 %i, 0;
    spin: add.u32 %i, %i, 1; setp.lt.u32 %p, %i, 10; @%p bra spin;
    mov.u32 %n, %clock; setp.gt.u32 %p, %n, %v; selp.u32 %v, 1, 0, %p; st.global.u32 [%out], %v;""")
    assert report.hazards == []
    assert set(out.tolist()) == {1}


def test_special_registers_of_a_grid() -> None:
    names = [
        "tid.x",
        "tid.y",
        "tid.z",
        "ntid.y",
        "ctaid.x",
        "ctaid.y",
        "ctaid.z",
        "nctaid.x",
        "laneid",
        "warpid",
    ]
    reads = "".join(f"mov.u32 %v, %{n}; st.global.u32 [%o+{4 * i}], %v;" for i, n in enumerate(names))
    body = f""".reg .b64 %o; .reg .b32 %v, %a, %b; ld.param.u64 %o, [out];
    mov.u32 %a, %ctaid.z; mov.u32 %b, %nctaid.y; mad.lo.u32 %a, %a, %b, 0; mov.u32 %b, %ctaid.y; add.u32 %a, %a, %b;
    mov.u32 %b, %nctaid.x; mul.lo.u32 %a, %a, %b; mov.u32 %b, %ctaid.x; add.u32 %a, %a, %b; mul.lo.u32 %a, %a, 24;
    mov.u32 %b, %tid.z; mul.lo.u32 %b, %b, 6; add.u32 %a, %a, %b; mov.u32 %b, %tid.y;
    mad.lo.u32 %b, %b, 3, %a; mov.u32 %a, %tid.x;
    add.u32 %b, %b, %a; mul.wide.u32 %x, %b, 40; add.u64 %o, %o, %x; {reads}""".replace(
        ".reg .b64 %o;", ".reg .b64 %o, %x;", 1
    )
    out = np.zeros((2 * 3 * 2 * 24, 10), np.uint32)
    assert load(body, ".param .u64 out").launch((2, 3, 2), (3, 2, 4), [out]).hazards == []
    for row, got in enumerate(out.tolist()):
        block, thread = divmod(row, 24)
        x, y, z = thread % 3, thread // 3 % 2, thread // 6
        assert got == [x, y, z, 2, block % 2, block // 2 % 3, block // 6, 2, thread % 32, thread // 32]


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("frobnicate.u32 %v, %t;", "unsupported instruction 'frobnicate'"),
        ("bra nowhere;", "unknown label 'nowhere'"),
        ("add.u32 %v, %t, %missing;", "unknown name '%missing'"),
        ("add.u32 %v, %t, %x;", "has 64 bits, u32 needs 32"),
        (
            "tcgen05.alloc.cta_group::1.sync.aligned.shared::cta.b32 [%t], 64;",
            "unsupported instruction 'tcgen05'",
        ),
        ("mma.sync.aligned.m3n3k3.row.col.f32.f16.f16.f32 {%v}, {%v}, {%v}, {%v};", "m3n3k3"),
        ("call nobody, ();", "unknown function 'nobody'"),
    ],
)
def test_what_is_missing_is_refused_at_load_with_text_and_line(body: str, message: str) -> None:
    with pytest.raises(simulator.PtxError, match=r"PTX line \d+") as error:
        run(body)
    assert message in str(error.value)


def test_text_that_is_no_ptx_is_refused_with_its_line() -> None:
    with pytest.raises(simulator.PtxError, match=r"PTX line 5: cannot parse '\[broken;'"):
        simulator.load(HEADER + ".visible .entry k() {\n[broken;\n}")
