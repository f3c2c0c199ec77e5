"""Planted bugs: the broken kernel is reported at the right line and thread, the right one is silent."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tests.simulator.support import line_of, load
from tilus import simulator

BEGIN = """
.reg .b64 %in, %out, %x, %a; .reg .b32 %t, %u, %v, %w, %b; .reg .pred %p, %q;
.shared .align 16 .b8 sh[1024];
ld.param.u64 %in, [in]; ld.param.u64 %out, [out];
mov.u32 %t, %tid.x; mov.u32 %b, %ctaid.x; mul.lo.u32 %u, %t, 4; cvt.u64.u32 %x, %u;
mov.u32 %w, sh; add.u32 %u, %u, %w;
"""
POINTERS = ".param .u64 in, .param .u64 out"
FINISH = "add.u64 %out, %out, %x;\nst.global.u32 [%out], %v;"
# Each thread reads what its mirror image wrote.
MIRROR = "sub.u32 %w, 127, %t; mul.lo.u32 %w, %w, 4; mov.u32 %v, sh; add.u32 %w, %w, %v;"


def run(body: str, grid: int = 1, block: int = 128, in_size: int = 1024, **keywords: Any) -> Any:
    arrays = [np.arange(in_size, dtype=np.uint32), np.zeros(1024, np.uint32)]
    return load(body, POINTERS).launch(grid, block, arrays, **keywords)


def expect(report: Any, kind: str, line: int | None, **where: Any) -> Any:
    """Exactly one hazard of a kind, at a line."""
    assert [h.kind for h in report.hazards] == [kind], [str(h) for h in report.hazards]
    hazard = report.hazards[0]
    if line is not None:
        assert hazard.ptx_line == line
    for name, value in where.items():
        assert getattr(hazard, name) == value
    assert hazard.kind in simulator.KINDS
    assert hazard.kernel == "k"
    assert hazard.message in str(hazard)
    return hazard


def shared_exchange(barrier: str) -> str:
    return f"{BEGIN}st.shared.u32 [%u], %t;\n{barrier}\n{MIRROR}\nld.shared.u32 %v, [%w];\n{FINISH}"


@pytest.mark.parametrize(
    "barrier", ["bar.sync 0;", "barrier.sync 0;", "bar.sync 3, 128;", "barrier.cta.sync.aligned 1;"]
)
def test_a_barrier_orders_shared_memory(barrier: str) -> None:
    assert run(shared_exchange(barrier)).hazards == []


@pytest.mark.parametrize("barrier", ["", "bar.warp.sync -1;", "membar.cta;", "fence.acq_rel.gpu;"])
def test_reading_another_threads_write_without_a_barrier(barrier: str) -> None:
    body = shared_exchange(barrier)
    hazard = expect(
        run(body), "shared-race", line_of("ld.shared.u32 %v", body), thread=(0, 0, 0), address=127 * 4
    )
    assert "thread (127, 0, 0) wrote" in hazard.message
    assert f"PTX line {line_of('st.shared.u32 [%u]', body)}" in hazard.message


def test_overwriting_what_another_thread_still_reads() -> None:
    body = (
        f"{BEGIN}st.shared.u32 [%u], %t;\nbar.sync 0;\n{MIRROR}\nld.shared.u32 %v, [%w];\n"
        f"{{}}\nst.shared.u32 [%u], 1;\n{FINISH}"
    )
    assert run(body.format("bar.sync 0;")).hazards == []
    expect(run(body.format("")), "shared-race", line_of("st.shared.u32 [%u], 1", body))


def test_two_threads_writing_one_cell() -> None:
    body = f"{BEGIN}mov.u32 %w, sh;\nst.shared.u32 [%w], {{}};\nmov.u32 %v, 0;\n{FINISH}"
    assert run(body.format("7")).hazards == []
    expect(run(body.format("%t")), "shared-race", line_of("st.shared", body))


@pytest.mark.parametrize(
    ("store", "second", "kind"),
    [
        ("st.shared.b32 [%u], %v;", "0x3f800001", []),
        ("st.shared.b32 [%u], %v;", "0x3fc00000", ["shared-race"]),
        ("st.shared.b32 [%u], %v;", "5", ["shared-race"]),
        ("mov.b64 %a, {%v, %v}; st.shared.b64 [%u], %a;", "0x3f800001", []),
        ("mov.b64 %a, {%v, %v}; st.shared.v2.b64 [%u], {%a, %a};", "0x3f800001", []),
        ("mov.b64 %a, {%w, %v}; st.shared.b64 [%u], %a;", "0x3fc00000", ["shared-race"]),
        ("cvt.f64.f32 %a, %v; st.shared.f64 [%u], %a;", "0x3f800001", []),
        # The upper half of the word as bfloat16 or float16, alone and twice in a word.
        (".reg .b16 %h; mov.b32 {_, %h}, %v; st.shared.b16 [%u], %h;", "0x3f820000", []),
        (".reg .b16 %h; mov.b32 {_, %h}, %v; st.shared.b16 [%u], %h;", "0x3f900000", ["shared-race"]),
        (
            ".reg .b16 %h; mov.b32 {_, %h}, %v; mov.b32 %v, {%h, %h}; st.shared.b32 [%u], %v;",
            "0x3f820000",
            [],
        ),
        ("shr.u32 %v, %v, 16; and.b32 %v, %v, 255; st.shared.b16 [%u], %v;", "0x3f810000", ["shared-race"]),
    ],
)
def test_lanes_of_one_store_may_differ_by_the_rounding_of_floats(
    store: str, second: str, kind: list[str]
) -> None:
    # Lanes t and t + 16 keep copies of one sum, that may differ in the last bit, and both store it.
    body = f"""{BEGIN}
    and.b32 %u, %t, 15; shl.b32 %u, %u, 4; mov.u32 %w, sh; add.u32 %u, %u, %w; mov.b32 %w, 0x40000000;
    and.b32 %v, %t, 16; setp.eq.u32 %p, %v, 0; mov.b32 %v, {second}; @%p mov.b32 %v, 0x3f800000;
    {store}
    mov.u32 %v, 1; {FINISH}"""
    assert [hazard.kind for hazard in run(body, block=32).hazards] == kind


@pytest.mark.parametrize(("rest", "found"), [("0x33800000", False), ("0x3a800000", True)])
def test_sums_that_cancel_differ_by_the_rounding_of_what_was_summed(rest: str, found: bool) -> None:
    # Of the copies of one sum half are plus and half are minus the rest; the other sums are one.
    body = f"""{BEGIN}
    and.b32 %u, %t, 15; setp.eq.u32 %p, %u, 0; shl.b32 %u, %u, 2; mov.u32 %w, sh; add.u32 %u, %u, %w;
    and.b32 %v, %t, 16; shl.b32 %v, %v, 27; or.b32 %v, %v, {rest}; @!%p mov.b32 %v, 0x3f800000;
    st.shared.b32 [%u], %v;
    mov.u32 %v, 1; {FINISH}"""
    assert [h.kind for h in run(body, block=32).hazards] == ["shared-race"] * found


@pytest.mark.parametrize("turns", [1, 2])
def test_warps_that_hold_the_same_elements_may_differ_by_rounding(turns: int) -> None:
    # Warps t / 32 and t / 32 + 2 sum the same, lane by lane in another order, and store it at once or one after another.
    body = f"""{BEGIN} .reg .b32 %i, %mine;
    and.b32 %u, %t, 32; shr.u32 %u, %u, 3; mov.u32 %w, sh; add.u32 %u, %u, %w;
    shr.u32 %mine, %t, 6; rem.u32 %mine, %mine, {turns}; mov.u32 %i, 0;
    and.b32 %v, %t, 1; mul.lo.u32 %v, %v, {{}}; shr.u32 %w, %t, 6; add.u32 %v, %v, %w; add.u32 %v, %v, 0x3f800000;
    again: setp.eq.u32 %p, %i, %mine;
    @%p st.shared.b32 [%u], %v;
    add.u32 %i, %i, 1; setp.lt.u32 %p, %i, {turns}; @%p bra again;
    mov.u32 %v, 1; {FINISH}"""
    assert run(body.format(1)).hazards == []
    expect(run(body.format(0x10000)), "shared-race", line_of("st.shared", body))


def test_lanes_of_one_warp_need_a_warp_barrier() -> None:
    body = f"{BEGIN}st.shared.u32 [%u], %t;\n{{}}\nxor.b32 %w, %u, 4;\nld.shared.u32 %v, [%w];\n{FINISH}"
    assert run(body.format("bar.warp.sync -1;")).hazards == []
    expect(run(body.format("")), "shared-race", line_of("ld.shared", body), thread=(0, 0, 0))


def test_a_named_barrier_of_some_warps_orders_their_lanes_too() -> None:
    body = (
        f"{BEGIN}setp.ge.u32 %p, %t, 64; @%p ret;\nst.shared.u32 [%u], %t;\n{{}}\n"
        f"xor.b32 %w, %u, 4;\nld.shared.u32 %v, [%w];\n{FINISH}"
    )
    assert run(body.format("bar.sync 1, 64;")).hazards == []
    expect(run(body.format("")), "shared-race", line_of("ld.shared", body))


PRODUCER = f"""{BEGIN}
setp.ge.u32 %p, %t, 64; @%p bra consumer;
{{0}}
{{1}}
bra.uni done;
consumer: bar.sync 1, 128;
sub.u32 %w, %u, 256;
ld.shared.u32 %v, [%w];
{FINISH}
done: ret;
"""


def test_named_barriers_order_producers_and_consumers() -> None:
    right = PRODUCER.format("st.shared.u32 [%u], %t;", "bar.arrive 1, 128;")
    assert run(right).hazards == []
    wrong = PRODUCER.format("bar.arrive 1, 128;", "st.shared.u32 [%u], %t;")
    assert {h.kind for h in run(wrong).hazards} & {"shared-race", "uninitialized-shared"}


def test_uninitialised_shared_memory() -> None:
    body = f"{BEGIN}{{}}ld.shared.u32 %v, [%u];\n{FINISH}"
    assert run(body.format("st.shared.u32 [%u], 0;")).hazards == []
    guard = "setp.lt.u32 %p, %t, 100; @%p st.shared.u32 [%u], 0; bar.sync 0;\n"
    expect(
        run(body.format(guard)),
        "uninitialized-shared",
        line_of("ld.shared", body.format(guard)),
        thread=(100, 0, 0),
        address=400,
    )


def test_uninitialised_registers_that_decide_something() -> None:
    body = f"{BEGIN}setp.lt.u32 %p, %t, 100;\n@%p mov.u32 %v, 1;\nadd.u32 %v, %v, 1;\n{{}}\n{FINISH}"
    hazard = expect(
        run(body.format("")), "uninitialized-register", line_of("st.global", body), thread=(100, 0, 0)
    )
    assert "%v" in hazard.message
    # A lane without a value may compute, as long as nobody uses the result.
    assert run(body.format("setp.ge.u32 %q, %t, 100; @%q mov.u32 %v, 0;")).hazards == []
    assert run(body.format("selp.u32 %v, %v, 0, %p;")).hazards == []


def test_uninitialised_registers_may_be_kept_in_local_memory() -> None:
    # Unoptimised code copies structures whole, with the padding between their members.
    body = f"""{BEGIN}.local .align 8 .b8 frame[16]; .reg .b64 %f; .reg .b32 %never;
    {{}}
    mov.u32 %v, 1;
    {FINISH}"""
    generic = "mov.u64 %f, frame; cvta.local.u64 %f, %f;"
    for kept in ("st.local.u32 [frame], %never;", f"{generic} st.u32 [%f+8], %never;"):
        assert run(body.format(kept)).hazards == []
    for used in ("st.global.u32 [%out+2048], %never;", "st.local.u32 [%never], %v;"):
        expect(run(body.format(used)), "uninitialized-register", line_of(used, body.format(used)))


def test_an_uninitialised_predicate_at_a_branch() -> None:
    body = f"{BEGIN}\n@%q bra done;\nmov.u32 %v, 1;\n{FINISH}\ndone: ret;"
    expect(run(body), "uninitialized-register", line_of("bra done", body))


@pytest.mark.parametrize(
    ("offset", "gap"),
    [(4096, "0 bytes past the end"), (4196, "100 bytes past the end"), (-8, "8 bytes before")],
)
def test_out_of_bounds_names_the_nearest_allocation(offset: int, gap: str) -> None:
    body = f"{BEGIN}\nld.global.u32 %v, [%in+{offset}];\n{FINISH}"
    hazard = expect(run(body, block=1), "out-of-bounds", line_of("ld.global", body), thread=(0, 0, 0))
    assert gap in hazard.message
    assert "argument 0 (in), uint32[1024]" in hazard.message


def test_out_of_bounds_of_a_vector_whose_start_is_inside() -> None:
    body = (
        f"{BEGIN} .reg .b32 %c<4>;\nst.global.v4.u32 [%out+4080], {{%t, %t, %t, %t}};\n"
        f"st.global.v4.u32 [%out+4096], {{%t, %t, %t, %t}};"
    )
    expect(run(body, block=1), "out-of-bounds", line_of("4096", body))


def test_shared_and_local_bounds() -> None:
    body = f"{BEGIN}\nst.shared.u32 [%u+1024], %t;"
    hazard = expect(run(body, block=1), "out-of-bounds", line_of("st.shared", body))
    assert "nearest variable sh (offset 0, 1024 bytes)" in hazard.message
    assert run(body, block=1, shared_bytes=4).hazards == []
    body = f"{BEGIN} .local .align 4 .b8 lo[16]; mov.u64 %a, lo;\nst.local.u32 [%a+16], %t;"
    expect(run(body, block=1), "out-of-bounds", line_of("st.local", body))


def test_misaligned_accesses() -> None:
    for text in (
        "ld.global.u32 %v, [%in+2];",
        "ld.global.v2.u32 {%v, %w}, [%in+4];",
        "st.shared.u16 [%u+1], 3;",
    ):
        body = f"{BEGIN}\n{text}"
        expect(run(body, block=1), "misaligned", line_of(text, body))


def test_writing_constant_memory_or_a_read_only_array() -> None:
    frozen = np.zeros(4, np.uint32)
    frozen.setflags(write=False)
    body = f"{BEGIN}\nst.global.u32 [%in], 1;"
    report = load(body, POINTERS).launch(1, 1, [frozen, np.zeros(4, np.uint32)])
    assert "constant" in expect(report, "out-of-bounds", line_of("st.global", body)).message


# -- between blocks ------------------------------------------------------------------------------------------------


def test_blocks_that_write_one_place() -> None:
    body = f"{BEGIN}\nst.global.u32 [%out], {{}};"
    assert run(body.format("1"), grid=3, block=1).hazards == []
    hazard = expect(
        run(body.format("%b"), grid=3, block=1), "global-race", line_of("st.global", body), block=(1, 0, 0)
    )
    assert "block (0, 0, 0)" in hazard.message


FLAG = f"""{BEGIN}
setp.ne.u32 %p, %b, 0; @%p bra reader;
st.global.u32 [%out+64], 42;
{{0}}
{{1}}
ret;
reader: {{2}}
setp.eq.u32 %p, %v, 0; @%p bra reader;
{{3}}
ld.global.u32 %v, [%out+64];
st.global.u32 [%out+128], %v;
"""
ACQUIRE, RELAXED = "ld.acquire.gpu.global.u32 %v, [%out];", "ld.relaxed.gpu.global.u32 %v, [%out];"


@pytest.mark.parametrize(
    ("release", "store", "read", "fence", "right"),
    [
        ("", "st.release.gpu.global.u32 [%out], 1;", ACQUIRE, "", True),
        ("fence.acq_rel.gpu;", "st.relaxed.gpu.global.u32 [%out], 1;", ACQUIRE, "", True),
        (
            "membar.gl;",
            "st.volatile.global.u32 [%out], 1;",
            "ld.volatile.global.u32 %v, [%out];",
            "membar.gl;",
            True,
        ),
        ("", "atom.release.gpu.global.add.u32 %w, [%out], 1;", RELAXED, "fence.acq_rel.gpu;", True),
        ("", "st.relaxed.gpu.global.u32 [%out], 1;", ACQUIRE, "", False),
        ("", "st.release.gpu.global.u32 [%out], 1;", RELAXED, "", False),
        ("", "st.release.cta.global.u32 [%out], 1;", ACQUIRE, "", False),
    ],
)
def test_a_flag_between_blocks(release: str, store: str, read: str, fence: str, right: bool) -> None:
    body = FLAG.format(release, store, read, fence)
    report = run(body, grid=2, block=1)
    if right:
        assert report.hazards == []
    else:
        expect(report, "global-race", line_of("ld.global.u32 %v, [%out+64]", body), block=(1, 0, 0))


@pytest.mark.parametrize("grid", [1, 2])
@pytest.mark.parametrize("order", ["ld.global.u32 %w, [%a]; {}", "{} ld.global.u32 %w, [%a];"])
def test_what_another_reads_is_overwritten_by_one_who_reads_it_too(order: str, grid: int) -> None:
    body = (
        f"{BEGIN}\nmad.lo.u32 %b, %b, 64, %t; mad.wide.u32 %a, %b, 4, %out;\n"
        + order.format("ld.global.u32 %v, [%a+{next}];")
        + "\nadd.u32 %w, %w, %v; bar.sync 0;\nst.global.u32 [%a], %w;"
    )
    assert run(body.format(next=0), grid, 64).hazards == []
    report = run(body.format(next=4), grid, 64)
    # The barrier keeps the threads of a block apart, and nothing the blocks.
    assert [h.kind for h in report.hazards] == ["global-race"] * (grid - 1)
    unordered = body.format(next=4).replace("bar.sync 0;", "")
    assert [h.kind for h in run(unordered, grid, 64).hazards] == ["global-race"]


def test_threads_of_a_block_through_global_memory() -> None:
    body = (
        f"{BEGIN}add.u64 %a, %out, %x;\nst.global.u32 [%a], %t;\n{{}}\n"
        f"xor.b32 %w, %t, 64; mul.wide.u32 %a, %w, 4; add.u64 %a, %out, %a;\nld.global.u32 %v, [%a];"
    )
    assert run(body.format("bar.sync 0;")).hazards == []
    expect(run(body.format("")), "global-race", line_of("ld.global", body))


# -- asynchronous copies ---------------------------------------------------------------------------------------------

COPY = (
    f"{BEGIN}add.u64 %a, %in, %x;\ncp.async.ca.shared.global [%u], [%a], 4;\n{{0}}\n"
    f"{{1}}\nld.shared.u32 %v, [%u];\n{FINISH}"
)
WAIT = "cp.async.wait_all;"


def test_cp_async_arrives_at_the_wait() -> None:
    out = np.zeros(1024, np.uint32)
    data = np.arange(1024, dtype=np.uint32)
    body = COPY.format("cp.async.commit_group;", "cp.async.wait_group 0;")
    assert load(body, POINTERS).launch(1, 128, [data, out]).hazards == []
    assert out[:128].tolist() == list(range(128))
    out[:] = 5
    report = load(COPY.format("", ""), POINTERS).launch(1, 128, [data, out])
    expect(report, "async-read", line_of("ld.shared", COPY.format("", "")))
    assert out[:128].tolist() == [0] * 128


def test_the_wait_must_cover_the_group() -> None:
    body = COPY.format("cp.async.commit_group;", "cp.async.wait_group 1;")
    expect(run(body), "async-read", line_of("ld.shared", body))
    older = COPY.format(
        "cp.async.commit_group;\ncp.async.ca.shared.global [%u+512], [%a], 4;\ncp.async.commit_group;",
        "cp.async.wait_group 1;",
    )
    assert run(older).hazards == []
    assert run(COPY.format("", "cp.async.wait_group 0;")).hazards[0].kind == "async-read"


def test_other_threads_need_a_barrier_after_the_wait() -> None:
    body = (
        f"{BEGIN}add.u64 %a, %in, %x;\ncp.async.ca.shared.global [%u], [%a], 4;\n{WAIT}\n"
        f"{{}}\n{MIRROR}\nld.shared.u32 %v, [%w];\n{FINISH}"
    )
    assert run(body.format("bar.sync 0;")).hazards == []
    expect(run(body.format("")), "shared-race", line_of("ld.shared", body))


def test_writing_the_target_of_a_copy_in_flight() -> None:
    body = COPY.format("st.shared.u32 [%u], 3;", WAIT)
    expect(run(body), "async-overwrite", line_of("st.shared", body))
    body = COPY.format(WAIT, "st.shared.u32 [%u], 3;")
    assert run(body).hazards == []


def test_zero_fill_and_ignored_sources() -> None:
    body = f"""{BEGIN}add.u64 %a, %in, %x; mul.lo.u32 %w, %t, 16; mov.u32 %v, sh; add.u32 %w, %w, %v;
    mul.wide.u32 %a, %t, 16; add.u64 %a, %in, %a;
    cp.async.cg.shared.global [%w], [%a], 16, %t; {WAIT} ld.shared.u32 %v, [%w+8];
    {FINISH}"""
    out, data = np.zeros(64, np.uint32), np.arange(1, 65, dtype=np.uint32)
    assert load(body, POINTERS).launch(1, 16, [data, out]).hazards == []
    whole = data.view(np.uint8).reshape(16, 16)
    for t in range(16):
        row = np.zeros(16, np.uint8)
        row[:t] = whole[t, :t]
        assert out[t] == row.view(np.uint32)[2]
    body = (
        COPY.replace("[%a], 4;", "[%a], 4, %p;")
        .replace("add.u64 %a", "setp.gt.u32 %p, %t, 5; add.u64 %a")
        .format("", WAIT)
    )
    assert load(body, POINTERS).launch(1, 16, [data, out]).hazards == []
    assert out[:16].tolist() == [1, 2, 3, 4, 5, 6] + [0] * 10


# -- barriers and deadlock -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("leave", ["ret", "bra gone"])
def test_a_barrier_counts_over_the_threads_that_have_not_ended(leave: str) -> None:
    """Which the ISA says of those without a count; that threads ended before is reported all the same."""
    body = (
        f"{BEGIN}setp.ge.u32 %p, %t, 64;\n@%p {leave};\nsetp.lt.u32 %q, %t, 40;\n"
        f"bar.red.popc.u32 %v, 0, %q;\n{FINISH}\nret;\ngone: add.u32 %t, %t, 1; ret;"
    )
    out = np.zeros(128, np.uint32)
    report = load(body, POINTERS).launch(1, 128, [np.zeros(4, np.uint32), out])
    assert {h.kind for h in report.hazards} == {"barrier-divergence"}
    assert out.tolist() == [40] * 64 + [0] * 64


def test_a_barrier_that_some_threads_never_reach() -> None:
    body = f"{BEGIN}setp.ge.u32 %p, %t, 64;\n@%p ret;\nbar.sync 0;"
    hazard = expect(run(body), "barrier-divergence", line_of("bar.sync", body))
    assert "(64, 0, 0) ended" in hazard.message
    body = f"{BEGIN}setp.ge.u32 %p, %t, 64;\n@%p bra other;\nbar.sync 0;\nret;\nother: bar.sync 1;"
    hazard = expect(run(body), "deadlock", None)
    assert "barrier 0 has 64 of 128 threads" in hazard.message
    assert "barrier 1 has 64 of 128" in hazard.message


def test_half_a_warp_at_an_aligned_barrier() -> None:
    body = f"{BEGIN}setp.ge.u32 %p, %t, 16;\n@%p bra other;\nbar.sync 0;\nret;\nother: bar.sync 1;"
    report = run(body, block=32)
    assert {h.kind for h in report.hazards} == {"barrier-divergence"}


def test_lanes_of_a_warp_may_meet_at_different_unaligned_barriers() -> None:
    body = (
        f"{BEGIN}st.shared.u32 [%u], %t;\nand.b32 %w, %t, 1; setp.eq.u32 %p, %w, 0;\n@%p bra even;\n"
        f"{{0}}.sync 0;\nbra.uni done;\neven: {{0}}.sync 0;\ndone:\n{MIRROR}\nld.shared.u32 %v, [%w];\n{FINISH}"
    )
    assert run(body.format("barrier")).hazards == []
    assert {h.kind for h in run(body.format("bar")).hazards} == {"barrier-divergence"}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("bar.sync 0, 100;", "no positive multiple of 32"),
        ("bar.sync 17;", "does not exist"),
        ("bar.arrive 1, 64;", "expects 64"),
    ],
)
def test_wrong_barrier_operands(text: str, message: str) -> None:
    body = f"{BEGIN}{text}"
    hazard = expect(run(body), "barrier-count", line_of(text, body))
    assert message in hazard.message


def test_polling_for_what_never_comes_is_a_deadlock() -> None:
    body = f"{BEGIN}\nspin: ld.volatile.global.u32 %v, [%out]; setp.eq.u32 %p, %v, 0; @%p bra spin;"
    expect(run(body, block=32), "deadlock", line_of("spin:", body))


def test_blocks_may_wait_for_later_blocks() -> None:
    # Block b waits for block b + 1: far more blocks than are in flight at a time.
    body = f"""{BEGIN} .reg .b32 %n; mov.u32 %n, %nctaid.x; sub.u32 %n, %n, 1;
    mul.wide.u32 %a, %b, 4; add.u64 %a, %out, %a;
    setp.eq.u32 %p, %b, %n; @%p bra ready;
    spin: ld.acquire.gpu.global.u32 %v, [%a+4]; setp.eq.u32 %p, %v, 0; @%p bra spin;
    ready: st.release.gpu.global.u32 [%a], 1;"""
    out = np.zeros(300, np.uint32)
    assert load(body, POINTERS).launch(300, 64, [out, out]).hazards == []
    assert out.tolist() == [1] * 300


def test_trap_and_assertion_end_the_launch() -> None:
    body = f"{BEGIN}setp.eq.u32 %p, %t, 5;\n@%p trap;\nst.global.u32 [%out], 1;"
    expect(run(body), "trap", line_of("trap", body), thread=(5, 0, 0))


def test_checks_can_be_chosen() -> None:
    body = shared_exchange("")
    assert run(body, checks=False).hazards == []
    assert run(body, checks={"global", "registers"}).hazards == []
    assert [h.kind for h in run(body, checks={"shared"}).hazards] == ["shared-race"]


def test_a_hazard_names_its_source_line_and_is_raised() -> None:
    text = f""".version 8.0
.target sm_80
.address_size 64
.visible .entry k({POINTERS}) {{
.file 1 "kernels.py"
{BEGIN}
.loc 1 42 3
st.shared.u32 [%u], %t;
.loc 1 43 3
xor.b32 %w, %u, 256;
ld.shared.u32 %v, [%w];
{FINISH}
}}"""
    report = simulator.load(text)["k"].launch(1, 128, [np.zeros(1, np.uint32), np.zeros(128, np.uint32)])
    assert report.hazards[0].source == ("kernels.py", 43)
    assert "kernels.py:42" in report.hazards[0].message
    with pytest.raises(simulator.HazardError, match=r"kernels\.py:43, PTX line"):
        report.raise_if_hazards()
