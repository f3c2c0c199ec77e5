"""mbarriers, bulk copies, tensor maps, wgmma, clusters: right numbers, and a report of each planted bug."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest

from tests.simulator.support import line_of, load
from tilus import simulator

BEGIN = """
.reg .b64 %in, %out, %x, %a, %tok; .reg .b32 %t, %u, %v, %w, %bar, %buf, %rank; .reg .pred %p, %q, %first;
.shared .align 8 .b8 bars[64]; .shared .align 1024 .b8 buf[16384];
ld.param.u64 %in, [in]; ld.param.u64 %out, [out];
mov.u32 %t, %tid.x; mov.u32 %bar, bars; mov.u32 %buf, buf; mul.wide.u32 %x, %t, 4; shl.b32 %u, %t, 2;
add.u32 %u, %u, %buf;
setp.eq.u32 %first, %t, 0;
"""
POINTERS = ".param .u64 in, .param .u64 out"
WAIT = "wait{n}: mbarrier.try_wait.parity.shared::cta.b64 %p, [%bar], {parity}; @!%p bra wait{n};"
STORE = "add.u64 %a, %out, %x;\nst.global.u32 [%a], %v;"


def run(body: str, block: int = 128, grid: int = 1, before: Any = None, **keywords: Any) -> tuple[Any, Any]:
    data = np.arange(4096, dtype=np.uint32) if before is None else before
    out = np.zeros(4096, np.uint32)
    return load(body, POINTERS).launch(grid, block, [data, out], **keywords), out


def kinds(report: Any) -> list[str]:
    return [h.kind for h in report.hazards]


# -- mbarrier --------------------------------------------------------------------------------------------------------

EXCHANGE = f"""{BEGIN}
@%first mbarrier.init.shared::cta.b64 [%bar], 128;
bar.sync 0;
st.shared.u32 [%u], %t;
{{arrive}}
{WAIT.format(n=0, parity=0)}
xor.b32 %w, %u, 256;
ld.shared.u32 %v, [%w];
{STORE}
"""


def test_an_mbarrier_orders_like_a_barrier() -> None:
    report, out = run(EXCHANGE.format(arrive="mbarrier.arrive.shared::cta.b64 %tok, [%bar];"))
    assert kinds(report) == []
    assert out[:128].tolist() == [t ^ 64 for t in range(128)]


def test_a_relaxed_arrival_orders_nothing() -> None:
    body = EXCHANGE.format(arrive="mbarrier.arrive.relaxed.cta.shared::cta.b64 %tok, [%bar];")
    report, _ = run(body)
    assert kinds(report) == ["shared-race"]
    assert report.hazards[0].ptx_line == line_of("ld.shared.u32 %v", body)


@pytest.mark.parametrize(
    ("before", "arrives", "waits", "after", "ordered"),
    [
        (
            "fence.release.sync_restrict::shared::cta.cluster;",
            "relaxed",
            "relaxed",
            "fence.acquire.sync_restrict::shared::cluster.cluster;",
            True,
        ),
        ("fence.acq_rel.cluster;", "relaxed", "acquire", "", True),
        ("", "release", "relaxed", "fence.acq_rel.cluster;", True),
        ("fence.acq_rel.cluster;", "relaxed", "relaxed", "", False),
        ("", "relaxed", "relaxed", "fence.acq_rel.cluster;", False),
        ("", "release", "relaxed", "", False),
    ],
)
def test_fences_around_relaxed_arrivals_and_waits(
    before: str, arrives: str, waits: str, after: str, ordered: bool
) -> None:
    body = EXCHANGE.format(arrive=f"{before} mbarrier.arrive.{arrives}.cluster.shared::cta.b64 %tok, [%bar];")
    body = body.replace("try_wait.parity", f"try_wait.parity.{waits}.cluster")
    body = body.replace("xor.b32", f"{after}\nxor.b32")
    report, out = run(body)
    assert kinds(report) == ([] if ordered else ["shared-race"])
    assert out[:128].tolist() == [t ^ 64 for t in range(128)]


def test_tokens_phases_and_pending_counts() -> None:
    body = f"""{BEGIN} .reg .b64 %old; .reg .b32 %n<6>;
    mbarrier.init.shared::cta.b64 [%bar], 3;
    mbarrier.arrive.shared::cta.b64 %old, [%bar]; mbarrier.pending_count.b64 %n0, %old;
    mbarrier.test_wait.shared::cta.b64 %p, [%bar], %old; selp.u32 %n1, 1, 0, %p;
    mbarrier.arrive.shared::cta.b64 %tok, [%bar], 2; mbarrier.pending_count.b64 %n2, %tok;
    mbarrier.test_wait.shared::cta.b64 %p, [%bar], %old; selp.u32 %n3, 1, 0, %p;
    mbarrier.test_wait.parity.shared::cta.b64 %p, [%bar], 0; selp.u32 %n4, 1, 0, %p;
    mbarrier.test_wait.parity.shared::cta.b64 %p, [%bar], 1; selp.u32 %n5, 1, 0, %p;
    st.global.v4.u32 [%out], {{%n0, %n1, %n2, %n3}}; st.global.v2.u32 [%out+16], {{%n4, %n5}};
    """
    report, out = run(body, block=1)
    assert kinds(report) == []
    assert out[:6].tolist() == [3, 0, 2, 1, 1, 0]


def test_arrive_drop_lowers_the_next_phases_count() -> None:
    body = f"""{BEGIN}
    @%first mbarrier.init.shared::cta.b64 [%bar], 64; bar.sync 0;
    setp.lt.u32 %q, %t, 32; @%q mbarrier.arrive_drop.shared::cta.b64 %tok, [%bar];
    @!%q mbarrier.arrive.shared::cta.b64 %tok, [%bar];
    {WAIT.format(n=0, parity=0)}
    @!%q mbarrier.arrive.shared::cta.b64 %tok, [%bar];
    {WAIT.format(n=1, parity=1)}
    mov.u32 %v, 1; {STORE}
    """
    report, out = run(body, block=64)
    assert kinds(report) == []
    assert out[:64].tolist() == [1] * 64


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("mbarrier.arrive.shared::cta.b64 %tok, [%bar+8];", "no mbarrier has been initialised"),
        ("mbarrier.arrive.shared::cta.b64 %tok, [%bar], 3;", "3 arrivals where the phase expects 2"),
        (
            "mbarrier.inval.shared::cta.b64 [%bar]; mbarrier.arrive.shared::cta.b64 %tok, [%bar];",
            "no mbarrier",
        ),
        ("mbarrier.arrive.noComplete.shared::cta.b64 %tok, [%bar], 2;", "noComplete"),
        ("mbarrier.init.shared::cta.b64 [%bar+16], 0;", "outside 1 to"),
    ],
)
def test_misuse(text: str, message: str) -> None:
    body = f"{BEGIN}mbarrier.init.shared::cta.b64 [%bar], 2;\n{text}"
    report, _ = run(body, block=1)
    assert kinds(report) == ["mbarrier-misuse"]
    assert message in report.hazards[0].message
    assert report.hazards[0].ptx_line == line_of(text, body)


def test_waiting_for_arrivals_that_never_come() -> None:
    body = f"{BEGIN}mbarrier.init.shared::cta.b64 [%bar], 2;\n{WAIT.format(n=0, parity=0)}"
    report, _ = run(body, block=1)
    assert kinds(report) == ["deadlock"]


def test_cp_async_arrives_at_an_mbarrier() -> None:
    body = f"""{BEGIN}
    @%first mbarrier.init.shared::cta.b64 [%bar], 128; bar.sync 0;
    add.u64 %a, %in, %x; cp.async.ca.shared.global [%u], [%a], 4;
    cp.async.mbarrier.arrive.noinc.shared::cta.b64 [%bar];
    {{wait}}
    xor.b32 %w, %u, 256;
    ld.shared.u32 %v, [%w];
    {STORE}"""
    report, out = run(body.format(wait=WAIT.format(n=0, parity=0)))
    assert kinds(report) == []
    assert out[:128].tolist() == [t ^ 64 for t in range(128)]
    assert kinds(run(body.format(wait=""))[0]) == ["async-read"]


# -- bulk copies -----------------------------------------------------------------------------------------------------

BULK = f"""{BEGIN}
@%first mbarrier.init.shared::cta.b64 [%bar], 1;
bar.sync 0;
@!%first bra ready;
mbarrier.arrive.expect_tx.shared::cta.b64 %tok, [%bar], {{bytes}};
cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%buf], [%in], 512, [%bar];
ready:
{{wait}}
ld.shared.u32 %v, [%u];
{STORE}
"""


def test_a_bulk_load_arrives_at_its_barrier() -> None:
    report, out = run(BULK.format(bytes=512, wait=WAIT.format(n=0, parity=0)), grid=2)
    assert kinds(report) == []
    assert out[:128].tolist() == list(range(128))
    assert report.counters["global_bytes_read"] == 1024


def test_reading_before_the_barrier() -> None:
    body = BULK.format(bytes=512, wait="bar.sync 0;")
    report, out = run(body)
    assert kinds(report)[0] == "async-read"
    assert report.hazards[0].ptx_line == line_of("ld.shared.u32 %v", body)
    assert out[:128].tolist() == [0] * 128


@pytest.mark.parametrize(
    ("fence", "hazards"),
    [
        ("", ["missing-proxy-fence"]),
        ("fence.proxy.async;", []),
        ("fence.proxy.async.global;", []),
        ("fence.proxy.async.shared::cta;", ["missing-proxy-fence"]),
    ],
)
@pytest.mark.parametrize("writer", ["0", "96"])
def test_a_bulk_load_of_what_threads_wrote_needs_a_proxy_fence(
    writer: str, fence: str, hazards: list[str]
) -> None:
    write = f"setp.eq.u32 %q, %t, {writer}; @%q st.global.u32 [%in+4], 77; {fence} bar.sync 0;"
    body = BULK.replace("bar.sync 0;", write).format(bytes=512, wait=WAIT.format(n=0, parity=0))
    report, out = run(body)
    assert kinds(report) == hazards
    assert out[:3].tolist() == [0, 77, 2]


def test_wrong_transaction_counts_never_complete() -> None:
    for count in (496, 1024):
        assert kinds(run(BULK.format(bytes=count, wait=WAIT.format(n=0, parity=0)))[0]) == ["deadlock"]


def test_bulk_operands_must_be_multiples_of_16() -> None:
    body = BULK.format(bytes=512, wait="").replace("[%in], 512", "[%in+4], 512")
    assert kinds(run(body)[0]) == ["misaligned"]


STORE_BULK = f"""{BEGIN}
st.shared.u32 [%u], %t;
{{fence}}
bar.sync 0;
@!%first bra done;
{{operation}}.global.shared::cta.bulk_group{{suffix}} [%out], [%buf], 512;
cp.async.bulk.commit_group;
{{wait}}
{{after}}
done: ret;
"""


def store_bulk(**parts: str) -> str:
    given = {
        "fence": "fence.proxy.async.shared::cta;",
        "operation": "cp.async.bulk",
        "suffix": "",
        "wait": "cp.async.bulk.wait_group 0;",
        "after": "",
    }
    return STORE_BULK.format(**{**given, **parts})


def test_a_bulk_store_needs_a_proxy_fence() -> None:
    report, out = run(store_bulk())
    assert kinds(report) == []
    assert out[:128].tolist() == list(range(128))
    body = store_bulk(fence="")
    report, _ = run(body)
    assert kinds(report) == ["missing-proxy-fence"]
    assert report.hazards[0].ptx_line == line_of("cp.async.bulk.global", body)


def test_the_source_of_a_bulk_store_belongs_to_it_until_the_wait() -> None:
    write = "st.shared.u32 [%u], 9;"
    assert kinds(run(store_bulk(wait="cp.async.bulk.wait_group.read 0;", after=write))[0]) == []
    body = store_bulk(wait="", after=write)
    report, _ = run(body)
    assert kinds(report)[0] == "async-overwrite"
    assert report.hazards[0].ptx_line == line_of(write, body)
    assert kinds(run(store_bulk(wait=""))[0]) == ["async-pending"]


def test_bulk_reductions() -> None:
    body = store_bulk(operation="cp.reduce.async.bulk", suffix=".add.u32")
    report, out = run(body, grid=3)
    assert kinds(report) == []
    assert out[:128].tolist() == [3 * t for t in range(128)]


TENSOR = """
.reg .b64 %m, %out, %x, %a, %tok; .reg .b32 %t, %u, %v, %bar, %buf; .reg .pred %p, %first;
.shared .align 8 .b8 bars[64]; .shared .align 1024 .b8 buf[4096];
mov.b64 %m, map; cvta.param.u64 %m, %m; ld.param.u64 %out, [out];
mov.u32 %t, %tid.x; mov.u32 %bar, bars; mov.u32 %buf, buf; mul.wide.u32 %x, %t, 4; shl.b32 %u, %t, 2;
add.u32 %u, %u, %buf;
setp.eq.u32 %first, %t, 0;
@%first mbarrier.init.shared::cta.b64 [%bar], 1; bar.sync 0; @!%first bra ready;
mbarrier.arrive.expect_tx.shared::cta.b64 %tok, [%bar], 1024;
cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes [%buf], [%m, {{{x}, {y}}}], [%bar];
ready: wait: mbarrier.try_wait.parity.shared::cta.b64 %p, [%bar], 0; @!%p bra wait;
ld.shared.u32 %v, [%u]; add.u64 %a, %out, %x; st.global.u32 [%a], %v;
"""


@pytest.mark.parametrize(("x", "y"), [(0, 0), (32, 8), (-4, -3), (40, 30)])
@pytest.mark.parametrize("swizzle", [0, 128])
def test_tensor_copies_fill_out_of_range_elements(x: int, y: int, swizzle: int) -> None:
    data = np.arange(1, 33 * 48 + 1, dtype=np.float32).reshape(33, 48)
    out = np.zeros((8, 32), np.float32)
    box = simulator.TensorMap.of(data, (8, 32), swizzle=swizzle)
    kernel = load(TENSOR.format(x=x, y=y), ".param .align 64 .b8 map[128], .param .u64 out")
    assert kernel.launch(1, 256, [box, out]).hazards == []
    want = np.zeros((8, 32), np.float32)
    for i in range(8):
        for j in range(32):
            if 0 <= y + i < 33 and 0 <= x + j < 48:
                # The 128-byte swizzle exchanges 16-byte units of a row by the row's number.
                column = (j // 4 ^ (i % 8)) * 4 + j % 4 if swizzle else j
                want[i, column] = data[y + i, x + j]
    assert out.tolist() == want.tolist()


def test_an_illegal_tensor_map_is_reported() -> None:
    kernel = load(TENSOR.format(x=0, y=0), ".param .align 64 .b8 map[128], .param .u64 out")
    assert kinds(kernel.launch(1, 256, [bytes(128), np.zeros(256, np.float32)])) == ["illegal-descriptor"]


# -- wgmma -----------------------------------------------------------------------------------------------------------

ACCUMULATORS = ", ".join(f"%f{i}" for i in range(4))
WGMMA = f"""{BEGIN} .reg .b32 %f<4>; .reg .b64 %da, %db;
// A is 64 x 16, B 8 x 16 halves without swizzle: 8 x 8 blocks of 128 bytes.
shl.b32 %u, %t, 4; add.u32 %u, %u, %buf;
mul.wide.u32 %x, %t, 16; add.u64 %a, %in, %x; .reg .b32 %c<4>;
ld.global.v4.u32 {{{{%c0, %c1, %c2, %c3}}}}, [%a]; st.shared.v4.u32 [%u], {{{{%c0, %c1, %c2, %c3}}}};
setp.lt.u32 %q, %t, 16; @%q ld.global.v4.u32 {{{{%c0, %c1, %c2, %c3}}}}, [%a+2048];
@%q st.shared.v4.u32 [%u+2048], {{{{%c0, %c1, %c2, %c3}}}};
{{proxy}}
bar.sync 0;
shr.u32 %w, %buf, 4; cvt.u64.u32 %da, %w; or.b64 %da, %da, {1 << 16 | 16 << 32 | 8 << 16}; add.u64 %db, %da, 128;
mov.b32 %f0, 0; mov.b32 %f1, 0; mov.b32 %f2, 0; mov.b32 %f3, 0;
{{fence}}
wgmma.mma_async.sync.aligned.m64n8k16.f32.f16.f16 {{{{{ACCUMULATORS}}}}}, %da, %db, 1, 1, 1, 0, 0;
wgmma.commit_group.sync.aligned;
{{early}}
{{wait}}
mul.wide.u32 %x, %t, 16; add.u64 %a, %out, %x;
st.global.v4.b32 [%a], {{{{{ACCUMULATORS}}}}};
"""


def wgmma(**parts: str) -> str:
    given = {
        "proxy": "fence.proxy.async.shared::cta;",
        "fence": "wgmma.fence.sync.aligned;",
        "early": "",
        "wait": "wgmma.wait_group.sync.aligned 0;",
    }
    return WGMMA.format(**{**given, **parts}).replace(
        str(1 << 16 | 16 << 32 | 8 << 16), str(8 << 16 | 16 << 32)
    )


def operands() -> tuple[Any, Any, Any]:
    rng = np.random.default_rng(0)
    a, b = rng.standard_normal((64, 16)).astype(np.float16), rng.standard_normal((8, 16)).astype(np.float16)
    # Core matrices: rows of 8 halves, 8 rows together; along k 128 bytes apart, along m 256.
    packed = [m.reshape(-1, 8, 2, 8).transpose(0, 2, 1, 3).reshape(-1) for m in (a, b)]
    return a, b, np.concatenate(packed).view(np.uint32)


def test_wgmma_gives_the_product() -> None:
    a, b, data = operands()
    report, out = run(wgmma(), before=data)
    assert kinds(report) == []
    values = out[:512].view(np.float32).reshape(4, 32, 4)
    got = np.zeros((64, 8))
    for w in range(4):
        for lane in range(32):
            for i in range(4):
                got[16 * w + lane // 4 + 8 * (i // 2), 2 * (lane % 4) + i % 2] = values[w, lane, i]
    np.testing.assert_allclose(got, a.astype(np.float64) @ b.astype(np.float64).T, rtol=1e-5, atol=1e-5)
    assert report.counters["tensor_core_flops"] == 2 * 64 * 8 * 16


@pytest.mark.parametrize(
    ("parts", "kind", "line"),
    [
        ({"proxy": ""}, "missing-proxy-fence", "wgmma.mma_async"),
        ({"fence": ""}, "missing-wgmma-fence", "wgmma.mma_async"),
        ({"wait": ""}, "missing-wgmma-fence", "st.global.v4.b32"),
        ({"early": "add.f32 %f1, %f1, %f0;"}, "missing-wgmma-fence", "add.f32 %f1"),
        ({"early": "mov.b32 %f2, 0;"}, "missing-wgmma-fence", "mov.b32 %f2, 0;"),
        ({"early": "st.shared.u32 [%u], 0;"}, "async-overwrite", "st.shared.u32 [%u], 0;"),
    ],
)
def test_planted_wgmma_bugs(parts: dict[str, str], kind: str, line: str) -> None:
    _, _, data = operands()
    body = wgmma(**parts)
    report, _ = run(body, before=data)
    assert kinds(report)[0] == kind
    last = max(i for i, text in enumerate(body.splitlines()) if line in text)
    assert report.hazards[0].ptx_line == last + 7


@pytest.mark.parametrize(
    ("behind", "adds", "hazards"),
    [
        # Constants, and copies of what was there before the fence, as nvcc and CuTe DSL write them.
        ("mov.b32 %f0, 0; mov.b32 %f1, 0;", "1", []),
        ("mov.b32 %f0, %c0; mov.b32 %f1, %f0;", "1", []),
        ("mov.b32 %c0, 0; mov.b32 %f0, %c0;", "1", []),
        ("add.f32 %f1, %f1, %f1;", "1", ["missing-wgmma-fence"]),
        ("add.f32 %c0, %f1, %f1; mov.b32 %f1, %c0;", "1", ["missing-wgmma-fence"]),
        # The product does not read what it overwrites.
        ("add.f32 %f1, %f1, %f1;", "%q", []),
    ],
)
def test_what_may_stand_behind_the_fence(behind: str, adds: str, hazards: list[str]) -> None:
    _, _, data = operands()
    before = "mov.b32 %c0, 0; add.f32 %c0, %c0, %c0; setp.lt.u32 %q, %t, 0;"
    body = wgmma(fence=f"{before} wgmma.fence.sync.aligned; {behind}")
    changed = body.replace("%da, %db, 1,", f"%da, %db, {adds},")
    assert adds == "1" or changed != body
    report, _ = run(changed, before=data)
    assert kinds(report) == hazards


@pytest.mark.parametrize(
    ("before", "after", "hazards"),
    [
        ("", "add.f16 %lo, %lo, %hi;", []),
        ("", "mov.b32 %f1, {%lo, %hi};", []),
        ("add.f16 %lo, %lo, %hi;", "", ["missing-wgmma-fence"]),
        ("mov.b32 %f1, {%lo, %hi};", "", ["missing-wgmma-fence"]),
        ("mov.b16 %other, %hi; cvt.u32.u16 %w, %other;", "", ["missing-wgmma-fence"]),
    ],
)
def test_parts_of_an_accumulator_wait_as_it_does(before: str, after: str, hazards: list[str]) -> None:
    # As compilers do with accumulators of halves; these are split between the commit and the wait.
    _, _, data = operands()
    split = ".reg .b16 %lo, %hi, %other; mov.b32 {%lo, %hi}, %f1;"
    body = wgmma(early=f"{split}\n{before}", wait=f"wgmma.wait_group.sync.aligned 0;\n{after}")
    report, _ = run(body, before=data)
    assert kinds(report) == hazards
    for hazard in report.hazards:
        assert hazard.ptx_line == body.splitlines().index(before) + 7


@pytest.mark.parametrize(
    ("between", "hazards"),
    [
        ("", []),
        ("wgmma.fence.sync.aligned; mov.b32 %f0, 0;", []),
        ("mov.b32 %f0, 0; wgmma.fence.sync.aligned;", []),
        # A fence from before the wait orders nothing behind it.
        ("mov.b32 %f0, 0;", ["missing-wgmma-fence"]),
    ],
)
def test_a_wait_asks_for_another_fence(between: str, hazards: list[str]) -> None:
    _, _, data = operands()
    body = wgmma()
    multiply = body[body.index("wgmma.mma_async") : body.index("mul.wide.u32 %x, %t, 16; add.u64 %a, %out")]
    report, _ = run(body.replace(multiply, f"{multiply}\n{between}\n{multiply}"), before=data)
    assert kinds(report) == hazards


def test_wgmma_may_read_what_cp_async_copied_and_a_bulk_copy_may_not() -> None:
    _, _, data = operands()
    body = wgmma(proxy="cp.async.wait_all;")
    for offset, guard in (("", ""), ("2048", "@%q ")):
        more = "+" + offset if offset else ""
        load_store = (
            f"{guard}ld.global.v4.u32 {{%c0, %c1, %c2, %c3}}, [%a{more}];",
            f"{guard}st.shared.v4.u32 [%u{more}], {{%c0, %c1, %c2, %c3}};",
        )
        assert all(text in body for text in load_store)
        body = body.replace(load_store[0], "").replace(
            load_store[1], f"{guard}cp.async.cg.shared.global [%u{more}], [%a{more}], 16;"
        )
    report, _ = run(body, before=data)
    assert kinds(report) == []
    assert kinds(run(body.replace("cp.async.wait_all;", ""), before=data)[0]) == ["async-read"]
    copy = "cp.async.wait_all; bar.sync 0; @%first cp.async.bulk.global.shared::cta.bulk_group [%out], [%buf], 128;"
    report, _ = run(
        body.replace("cp.async.wait_all;", f"{copy} cp.async.bulk.commit_group; cp.async.bulk.wait_group 0;"),
        before=data,
    )
    assert kinds(report)[0] == "missing-proxy-fence"
    assert report.hazards[0].instruction.startswith("@%first cp.async.bulk.global")


@pytest.mark.parametrize("warp", [0, 2])
@pytest.mark.parametrize("waits", [True, False])
def test_any_warp_may_say_that_its_warpgroup_has_read(warp: int, waits: bool) -> None:
    _, _, data = operands()
    wait = "wgmma.wait_group.sync.aligned 0;"
    steps = [wait, "setp.eq.u32 %q, %t, {first}; @%q mbarrier.arrive.shared::cta.b64 _, [%bar];"]
    body = wgmma(
        proxy="@%first mbarrier.init.shared::cta.b64 [%bar], 1; fence.proxy.async.shared::cta;",
        fence="setp.ge.u32 %p, %t, 128; @%p bra other; wgmma.fence.sync.aligned;",
        # The other warps of the warpgroup have a wait of their own.
        early="shr.u32 %v, %t, 5; setp.ne.u32 %q, %v, {warp}; @%q bra others; {steps}\nbra.uni joined; others: {wait} joined:",
        wait=f"bra.uni last; other: {WAIT.format(n=0, parity=0)} st.shared.u32 [%buf], 0; ret; last:",
    )
    ordered = " ".join(steps if waits else steps[::-1]).format(first=32 * warp)
    body = body.replace("{steps}", ordered).replace("{warp}", str(warp)).replace("{wait}", wait)
    report, _ = run(body, block=160, before=np.resize(data, 4096))
    if waits:
        assert kinds(report) == []
    else:
        assert kinds(report)[0] in ("shared-race", "async-overwrite")
        assert "st.shared.u32 [%buf], 0" in report.hazards[0].instruction


@pytest.mark.parametrize("barrier", ["bar.sync 0;", ""])
@pytest.mark.parametrize("shift", [0, 32])
def test_a_warp_multiplies_rows_that_it_wrote_itself_without_a_barrier(shift: int, barrier: str) -> None:
    _, _, data = operands()
    # Thread t writes 16 bytes of row t // 16 * 8 + t % 8, so that a warp has the 16 rows that it multiplies.
    body = wgmma().replace("bar.sync 0;", barrier)
    place = f"xor.b32 %v, %t, {shift}; shl.b32 %u, %v, 4;"
    assert "shl.b32 %u, %t, 4;" in body
    body = body.replace("shl.b32 %u, %t, 4;", place)
    body = body.replace(
        "mul.wide.u32 %x, %t, 16; add.u64 %a, %in", "mul.wide.u32 %x, %v, 16; add.u64 %a, %in"
    )
    body = body.replace("setp.lt.u32 %q, %t, 16;", "setp.lt.u32 %q, %v, 16;")
    found = kinds(run(body, before=data)[0])
    assert (found == []) == bool(barrier or not shift)
    assert set(found) <= {"shared-race", "missing-proxy-fence"}


def test_a_warpgroup_must_come_as_a_whole() -> None:
    _, _, data = operands()
    body = wgmma().replace(
        "wgmma.fence.sync.aligned;", "setp.ge.u32 %p, %t, 96; @%p ret; wgmma.fence.sync.aligned;", 1
    )
    assert set(kinds(run(body, before=data)[0])) & {"barrier-divergence", "deadlock"}


@pytest.mark.parametrize(
    ("body", "kind"),
    [
        ("setmaxnreg.inc.sync.aligned.u32 240; setmaxnreg.inc.sync.aligned.u32 24;", "setmaxnreg"),
        ("setmaxnreg.dec.sync.aligned.u32 24; setmaxnreg.dec.sync.aligned.u32 40;", "setmaxnreg"),
        ("setp.gt.u32 %p, %t, 63; @%p ret; setmaxnreg.dec.sync.aligned.u32 24;", "setmaxnreg"),
    ],
)
def test_setmaxnreg_misuse(body: str, kind: str) -> None:
    report, _ = run(f"{BEGIN}{body}")
    assert kinds(report) == [kind]
    assert (
        kinds(
            run(
                f"{BEGIN}setmaxnreg.dec.sync.aligned.u32 40; bar.sync 0; setmaxnreg.inc.sync.aligned.u32 80;"
            )[0]
        )
        == []
    )


def test_an_increase_that_the_block_cannot_give_is_a_deadlock() -> None:
    report, _ = run(f"{BEGIN}setmaxnreg.inc.sync.aligned.u32 256;", block=512)
    assert kinds(report) == ["deadlock"]
    assert "registers" in report.hazards[0].message


def test_illegal_register_counts_are_refused_at_load() -> None:
    with pytest.raises(simulator.PtxError, match="multiple of 8"):
        load("setmaxnreg.inc.sync.aligned.u32 100;")


# -- clusters --------------------------------------------------------------------------------------------------------

CLUSTER = f"""{BEGIN} .reg .b32 %r, %n, %bx;
mov.u32 %rank, %cluster_ctarank; mov.u32 %n, %cluster_nctarank; mov.u32 %bx, %ctaid.x;
mad.lo.u32 %v, %rank, 1000, %t; st.shared.u32 [%u], %v;
{{sync}}
add.u32 %r, %rank, 1; rem.u32 %r, %r, %n; mapa.shared::cluster.u32 %w, %u, %r;
ld.shared::cluster.u32 %v, [%w];
mad.lo.u32 %bx, %bx, 32, %t; mul.wide.u32 %x, %bx, 4; {STORE}
{{end}}
"""
MEET = "barrier.cluster.arrive.release.aligned; barrier.cluster.wait.acquire.aligned;"


def test_distributed_shared_memory() -> None:
    report, out = run(CLUSTER.format(sync=MEET, end=MEET), block=32, grid=8, cluster=4)
    assert kinds(report) == []
    assert out[: 8 * 32].tolist() == [(b % 4 + 1) % 4 * 1000 + t for b in range(8) for t in range(32)]


def test_a_block_barrier_does_not_order_the_cluster() -> None:
    body = CLUSTER.format(sync="bar.sync 0;", end=MEET)
    report, _ = run(body, block=32, grid=4, cluster=4)
    assert set(kinds(report)) == {"shared-race"}
    assert report.hazards[0].ptx_line == line_of("ld.shared::cluster", body)
    assert "cluster block" in report.hazards[0].message


def test_waiting_without_arriving() -> None:
    assert kinds(run(f"{BEGIN}barrier.cluster.wait.aligned;", block=32, grid=2, cluster=2)[0]) == [
        "barrier-count"
    ]
    body = f"{BEGIN}barrier.cluster.arrive.aligned; barrier.cluster.arrive.aligned;"
    assert kinds(run(body, block=32, grid=2, cluster=2)[0]) == ["barrier-count"]


def test_multicast_reaches_every_block_of_the_mask() -> None:
    body = f"""{BEGIN} .reg .b16 %mask; .reg .b32 %bx;
    mov.u32 %rank, %cluster_ctarank; mov.u16 %mask, 3;
    @%first mbarrier.init.shared::cta.b64 [%bar], 1;
    @%first mbarrier.arrive.expect_tx.shared::cta.b64 %tok, [%bar], 512;
    {MEET}
    setp.eq.u32 %q, %rank, 0; and.pred %q, %q, %first;
    @%q cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes.multicast::cluster
        [%buf], [%in], 512, [%bar], %mask;
    {WAIT.format(n=0, parity=0)}
    ld.shared.u32 %v, [%u]; mov.u32 %bx, %ctaid.x; mad.lo.u32 %bx, %bx, 128, %t; mul.wide.u32 %x, %bx, 4; {STORE}
    """
    report, out = run(body, grid=2, cluster=2)
    assert kinds(report) == []
    assert out[:256].tolist() == list(range(128)) * 2
    wrong = re.sub(r"mov.u16 %mask, 3", "mov.u16 %mask, 7", body)
    assert kinds(run(wrong, grid=2, cluster=2)[0]) == ["illegal-descriptor"]


def test_remote_stores_complete_at_the_remote_barrier() -> None:
    body = f"""{BEGIN} .reg .b32 %r, %rb, %bx;
    mov.u32 %rank, %cluster_ctarank; xor.b32 %r, %rank, 1;
    @%first mbarrier.init.shared::cta.b64 [%bar], 1;
    @%first mbarrier.arrive.expect_tx.shared::cta.b64 %tok, [%bar], 128;
    {MEET}
    mapa.shared::cluster.u32 %w, %u, %r; mapa.shared::cluster.u32 %rb, %bar, %r; mad.lo.u32 %v, %rank, 100, %t;
    st.async.weak.shared::cluster.mbarrier::complete_tx::bytes.u32 [%w], %v, [%rb];
    {{wait}}
    ld.shared.u32 %v, [%u]; mov.u32 %bx, %ctaid.x; mad.lo.u32 %bx, %bx, 32, %t; mul.wide.u32 %x, %bx, 4; {STORE} {MEET}
    """
    report, out = run(body.format(wait=WAIT.format(n=0, parity=0)), block=32, grid=2, cluster=2)
    assert kinds(report) == []
    assert out[:64].tolist() == [100 + t for t in range(32)] + list(range(32))
    assert "async-read" in kinds(run(body.format(wait=""), block=32, grid=2, cluster=2)[0])
