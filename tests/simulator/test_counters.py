"""What a launch did, counted: sectors, bank conflicts, tensor-core work; and reports as text and JSON."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

from tests.simulator.support import load
from tilus import simulator

BEGIN = """
.reg .b64 %p, %x; .reg .b32 %t, %v, %a, %w<4>; .shared .align 128 .b8 sh[16384];
ld.param.u64 %p, [data]; mov.u32 %t, %tid.x;
"""


def run(body: str, **keywords: Any) -> Any:
    report = load(BEGIN + body, ".param .u64 data").launch(1, 32, [np.zeros(1 << 16, np.uint8)], **keywords)
    report.raise_if_hazards()
    return report.counters


@pytest.mark.parametrize(
    ("stride", "offset", "width", "sectors", "ideal"),
    [
        (4, 0, 4, 4, 4),
        (4, 64, 4, 4, 4),
        (4, 16, 4, 5, 4),
        (8, 0, 4, 8, 4),
        (32, 0, 4, 32, 4),
        (128, 0, 4, 32, 4),
        (0, 0, 4, 1, 1),
        (16, 0, 16, 16, 16),
        (2, 0, 2, 2, 2),
    ],
)
def test_global_sectors(stride: int, offset: int, width: int, sectors: int, ideal: int) -> None:
    load_text = {2: "ld.global.u16 %v", 4: "ld.global.u32 %v", 16: "ld.global.v4.u32 {%w0, %w1, %w2, %w3}"}[
        width
    ]
    counters = run(f"mul.wide.u32 %x, %t, {stride}; add.u64 %p, %p, %x; {load_text}, [%p+{offset}];")
    assert counters["global_load_sectors"] == sectors
    assert counters["global_load_sectors_ideal"] == ideal
    assert counters["global_bytes_read"] == 32 * width


@pytest.mark.parametrize(
    ("stride", "width", "wavefronts", "ideal"),
    [
        (4, 4, 1, 1),
        (8, 4, 2, 1),
        (128, 4, 32, 1),
        (132, 4, 1, 1),
        (0, 4, 1, 1),
        (16, 16, 4, 4),
        (32, 16, 8, 4),
        (8, 8, 2, 2),
    ],
)
def test_shared_wavefronts(stride: int, width: int, wavefronts: int, ideal: int) -> None:
    store = {
        4: "st.shared.u32 [%a], %t",
        8: "st.shared.v2.u32 [%a], {%t, %t}",
        16: "st.shared.v4.u32 [%a], {%t, %t, %t, %t}",
    }
    value = "mov.u32 %t, 1;" if stride == 0 else ""
    counters = run(f"mov.u32 %a, sh; mad.lo.u32 %a, %t, {stride}, %a; {value} {store[width]};")
    assert counters["shared_wavefronts"] == wavefronts
    assert counters["shared_wavefronts_ideal"] == ideal


@pytest.mark.parametrize(("stride", "wavefronts"), [(16, 4), (144, 4), (128, 32), (64, 16)])
def test_matrix_loads_take_eight_rows_at_a_time(stride: int, wavefronts: int) -> None:
    counters = run(
        f"""mov.u32 %a, sh; mul.lo.u32 %v, %t, 512; add.u32 %v, %v, %a; .reg .b32 %i; .reg .pred %q; mov.u32 %i, 0;
        fill: st.shared.u32 [%v], 0; add.u32 %v, %v, 4; add.u32 %i, %i, 4; setp.lt.u32 %q, %i, 512;
        @%q bra fill; bar.sync 0;
        mad.lo.u32 %a, %t, {stride}, %a; ldmatrix.sync.aligned.m8n8.x4.shared.b16 {{%w0, %w1, %w2, %w3}}, [%a];"""
    )
    stores = 128 * 32
    assert counters["shared_wavefronts"] - stores == wavefronts
    assert counters["shared_wavefronts_ideal"] - 128 == 4


def test_instructions_and_tensor_core_work() -> None:
    counters = run("""mov.b32 %v, 0;
    mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%w0, %w1, %w2, %w3}, {%v, %v, %v, %v}, {%v, %v},
    {%v, %v, %v, %v};
    mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%w0, %w1, %w2, %w3}, {%v, %v, %v, %v}, {%v, %v},
    {%v, %v, %v, %v};""")
    assert counters["tensor_core_flops"] == 2 * 2 * 16 * 8 * 16
    assert counters["tensor_core_instructions"] == {"mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32": 2}
    assert counters["instructions_by_kind"] == {"mov": 2, "mma": 2, "ld": 1, "ret": 1}
    assert counters["warp_instructions"] == 6
    assert counters["thread_instructions"] == 6 * 32


def test_counts_do_not_depend_on_checks() -> None:
    body = "mul.wide.u32 %x, %t, 12; add.u64 %p, %p, %x; ld.global.u32 %v, [%p]; st.global.u32 [%p], %v; bar.sync 0;"
    assert run(body) == run(body, checks=False)


def test_reports_as_table_and_json() -> None:
    text = f""".version 8.0
.target sm_80
.address_size 64
.file 1 "kernels.py"
.visible .entry k(.param .u64 data) {{
{BEGIN}
.loc 1 7 0
mul.wide.u32 %x, %t, 32; add.u64 %p, %p, %x;
.loc 1 8 0
ld.global.u32 %v, [%p];
}}"""
    report = simulator.load(text)["k"].launch(1, 32, [np.zeros(1024, np.uint8)])
    table = report.table()
    row = next(line for line in table.splitlines() if line.startswith("kernels.py:8"))
    assert row.split()[1:4] == ["1", "32", "4"]
    data = json.loads(report.to_json())
    assert data["counters"]["global_load_sectors"] == 32
    assert data["hazards"] == []
    line = next(entry for entry in data["lines"] if entry["source"] == ["kernels.py", 8])
    assert line["global_sectors"] == 32
    assert line["global_sectors_ideal"] == 4


def test_wide_accesses_conflict_within_a_quarter_warp() -> None:
    # Each quarter warp hits one group of four banks with eight rows; the quarters hit different groups.
    counters = run(
        """and.b32 %a, %t, 7; shl.b32 %a, %a, 7; shr.u32 %v, %t, 3; shl.b32 %v, %v, 4; add.u32 %a, %a, %v;
        mov.u32 %v, sh; add.u32 %a, %a, %v; st.shared.v4.u32 [%a], {%t, %t, %t, %t};"""
    )
    assert counters["shared_wavefronts"] == 32
    assert counters["shared_wavefronts_ideal"] == 4


def test_the_roofline_names_the_limit() -> None:
    body = "mul.wide.u32 %x, %t, 32; add.u64 %p, %p, %x; ld.global.u32 %v, [%p];"
    report = load(BEGIN + body, ".param .u64 data").launch(1, 32, [np.zeros(1024, np.uint8)])
    seconds = report.roofline({"warp_instructions": 1e3, "global_bytes": 1e3})
    assert list(seconds.items()) == [("global_bytes", 32 * 32 / 1e3), ("warp_instructions", 6 / 1e3)]
    with pytest.raises(ValueError, match="unknown resource 'luck'"):
        report.roofline({"luck": 1.0})


def test_memory_too_large_for_the_race_shadow_is_named() -> None:
    big = np.zeros(300 << 20, np.uint8)
    body = "ld.global.u8 %v, [%p];"
    report = load(BEGIN + body, ".param .u64 data").launch(1, 1, [big])
    assert report.hazards == []
    assert len(report.unchecked) == 1
    assert "uint8[314572800]" in report.unchecked[0]


def test_every_count_by_instruction_and_in_sum() -> None:
    body = """
    .reg .pred %q; .reg .b32 %i; .local .align 4 .b8 stack[8];
    mul.wide.u32 %x, %t, 4; add.u64 %x, %p, %x;
    ld.global.u32 %v, [%x];
    st.local.u32 [stack], %v;
    mov.u32 %a, sh; shl.b32 %i, %t, 3; add.u32 %a, %a, %i;
    st.shared.u32 [%a], %v;
    bar.sync 0;
    setp.lt.u32 %q, %t, 48;
    @%q bra skip;
    red.global.add.u32 [%p+4096], 1;
    skip: st.global.u32 [%x+8192], %v;
    """
    data = np.zeros(1 << 12, np.uint32)
    report = load(BEGIN + body, ".param .u64 data").launch(3, 96, [data], checks=False)
    report.raise_if_hazards()
    counters = report.counters
    # Three blocks of three warps, 16 instructions each; the branch skips one for the first warp and half the second.
    assert counters["warp_instructions"] == 3 * (3 * 16 - 1)
    assert counters["instructions_by_warp"] == {0: 3 * 15, 1: 3 * 16, 2: 3 * 16}
    assert counters["thread_instructions"] == 3 * (96 * 15 + 48)
    assert counters["instructions_by_kind"]["red"] == 3 * 2
    assert counters["bytes_by_space"] == {
        "global": 3 * 4 * (96 + 96 + 48),
        "shared": 3 * 96 * 4,
        "local": 3 * 96 * 4,
    }
    # All blocks read the same 12 sectors.
    assert counters["global_load_sectors"] == 3 * 12
    assert counters["global_distinct_bytes_read"] == 12 * 32
    assert counters["global_distinct_bytes_written"] == (12 + 1) * 32
    # Every other bank: two passes for each request.
    assert counters["shared_wavefronts"] == 3 * 3 * 2
    assert counters["shared_wavefronts_ideal"] == 3 * 3
    assert counters["barrier_waits"] == 9
    assert counters["divergent_branches"] == 3
    assert counters["atomic_requests"] == 3 * 2
    assert counters["atomic_lanes"] == 3 * 48
    assert counters["atomic_conflicts"] == 3 * (15 + 31)
    rows = {row.instruction.split(" ")[0].rstrip(";"): row for row in report.instructions}
    assert rows["ld.global.u32"].global_requests == 9
    assert rows["ld.global.u32"].global_efficiency == 1
    assert rows["st.shared.u32"].shared_efficiency == 0.5
    assert rows["st.shared.u32"].shared_bytes == 3 * 96 * 4
    assert rows["red.global.add.u32"].atomic_conflicts == 3 * (15 + 31)
    assert rows["red.global.add.u32"].lane_efficiency == 48 / 64
    assert rows["bar.sync"].barrier_waits == 9
    assert rows["@%q"].divergent_branches == 3
    assert sum(row.warp_instructions for row in report.instructions) == counters["warp_instructions"]
    assert sum(row.thread_instructions for row in report.lines) == counters["thread_instructions"]


def test_tensor_core_work_by_kind_of_operands() -> None:
    kinds = {
        "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%w0,%w1,%w2,%w3}, {%v,%v,%v,%v}, {%v,%v}, {%v,%v,%v,%v};": (
            "f16", 2 * 16 * 8 * 16),
        "mma.sync.aligned.m16n8k16.row.col.f16.f16.f16.f16 {%w0,%w1}, {%v,%v,%v,%v}, {%v,%v}, {%v,%v};": (
            "f16 in f16", 2 * 16 * 8 * 16),
        "mma.sync.aligned.m16n8k8.row.col.f32.bf16.bf16.f32 {%w0,%w1,%w2,%w3}, {%v,%v}, {%v}, {%v,%v,%v,%v};": (
            "bf16", 2 * 16 * 8 * 8),
        "mma.sync.aligned.m16n8k4.row.col.f32.tf32.tf32.f32 {%w0,%w1,%w2,%w3}, {%v,%v}, {%v}, {%v,%v,%v,%v};": (
            "tf32", 2 * 16 * 8 * 4),
        "mma.sync.aligned.m16n8k32.row.col.s32.u8.s8.s32 {%w0,%w1,%w2,%w3}, {%v,%v,%v,%v}, {%v,%v}, {%v,%v,%v,%v};": (
            "int8", 2 * 16 * 8 * 32),
        "mma.sync.aligned.m16n8k32.row.col.f32.e4m3.e5m2.f32 {%w0,%w1,%w2,%w3}, {%v,%v,%v,%v}, {%v,%v}, {%v,%v,%v,%v};": (
            "f8", 2 * 16 * 8 * 32),
        "mma.sp::ordered_metadata.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%w0,%w1,%w2,%w3}, {%v,%v}, {%v,%v},"
        " {%v,%v,%v,%v}, 0x44444444, 0;": ("f16 sparse", 2 * 16 * 8 * 16),
    }  # fmt: skip
    counters = run("mov.b32 %v, 0;" + "".join(kinds))
    assert counters["tensor_core_flops_by_kind"] == dict(kinds.values())
    assert counters["tensor_core_flops"] == sum(flops for _, flops in kinds.values())


def test_a_wait_is_counted_once_however_often_it_is_tried() -> None:
    body = """
    .reg .pred %q, %leader, %done; .reg .b32 %i; .shared .align 8 .b64 bar;
    mov.u32 %a, bar; setp.ne.u32 %leader, %t, 0;
    @%leader bra ready;
    mbarrier.init.shared.b64 [%a], 1;
    ready: bar.sync 0;
    setp.eq.u32 %q, %t, 63; @%q bra late;
    spin: mbarrier.{wait}.parity.shared.b64 %done, [%a], 0;
    @!%done bra spin;
    bra end;
    late: mov.u32 %i, 0;
    work: add.u32 %i, %i, 1; ld.volatile.global.u32 %v, [%p]; setp.lt.u32 %q, %i, 50; @%q bra work;
    mbarrier.arrive.shared.b64 _, [%a];
    end: ret;
    """
    for wait in ("try_wait", "test_wait"):
        text = BEGIN + body.format(wait=wait)
        report = load(text, ".param .u64 data").launch(1, 64, [np.zeros(16, np.uint8)])
        report.raise_if_hazards()
        waits = {row.instruction.split(" ")[0].rstrip(";"): row.barrier_waits for row in report.instructions}
        assert waits["bar.sync"] == 2
        assert waits[f"mbarrier.{wait}.parity.shared.b64"] == 2


def test_counts_of_lanes_that_go_different_ways_add_up() -> None:
    body = """.reg .pred %q; .reg .b32 %i; and.b32 %a, %t, 7; mov.u32 %i, 0;
    loop: add.u32 %i, %i, 1; setp.le.u32 %q, %i, %a; @%q bra loop;
    and.b32 %v, %t, 1; setp.eq.u32 %q, %v, 0; @%q bra even; add.u32 %v, %v, 1; bra.uni done; even: add.u32 %v, %v, 2;
    done: ret;"""
    report = load(BEGIN + body, ".param .u64 data").launch(2, 96, [np.zeros(16, np.uint8)])
    counters = report.counters
    # 8 turns of 3 instructions; 4 before the loop, 3 behind it, then 2 and 1, and the end.
    assert counters["warp_instructions"] == 6 * (4 + 8 * 3 + 3 + 2 + 1 + 1)
    assert counters["thread_instructions"] == 6 * 4 * sum(
        4 + 3 * (i + 1) + 3 + (2 if i % 2 else 1) + 1 for i in range(8)
    )
    assert counters["instructions_by_warp"] == dict.fromkeys(range(3), 2 * (4 + 8 * 3 + 3 + 2 + 1 + 1))


def test_reports_of_all_launches_are_collected() -> None:
    kernel = load(BEGIN, ".param .u64 data")
    with simulator.collect_reports() as outer:
        first = kernel.launch(1, 32, [np.zeros(4, np.uint8)])
        with simulator.collect_reports() as inner:
            second = kernel.launch(2, 32, [np.zeros(4, np.uint8)])
    kernel.launch(1, 32, [np.zeros(4, np.uint8)])
    assert outer == [first]
    assert inner == [second]


def test_the_roofline_charges_for_the_fullest_multiprocessor() -> None:
    body = "mul.wide.u32 %x, %t, 4; add.u64 %p, %p, %x; ld.global.u32 %v, [%p]; ex2.approx.f32 %v, %v;"
    report = load(BEGIN + body, ".param .u64 data").launch(3, 32, [np.zeros(1024, np.uint8)])
    figures = {
        "sm_count": 2,
        "warp_instructions": 1e3,
        "special_functions": 1e3,
        "dram_bytes": 1e3,
        "global_bytes": 1e3,
    }
    seconds = report.roofline(figures)
    # Three blocks on two multiprocessors take as long as four; memory is shared by all.
    assert seconds["warp_instructions"] == pytest.approx(4 * 7 / 1e3)
    assert seconds["special_functions"] == pytest.approx(4 / 1e3)
    assert seconds["global_bytes"] == pytest.approx(4 * 128 / 1e3)
    assert seconds["dram_bytes"] == pytest.approx(128 / 1e3)
    assert list(seconds.values()) == sorted(seconds.values(), reverse=True)


def test_the_roofline_knows_how_fast_each_kind_of_operands_is() -> None:
    body = """mov.b32 %v, 0;
    mma.sync.aligned.m16n8k16.row.col.f16.f16.f16.f16 {%w0,%w1}, {%v,%v,%v,%v}, {%v,%v}, {%v,%v};
    mma.sp::ordered_metadata.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%w0,%w1,%w2,%w3}, {%v,%v}, {%v,%v},
    {%v,%v,%v,%v}, 0x44444444, 0;"""
    report = load(BEGIN + body, ".param .u64 data").launch(1, 32, [np.zeros(1024, np.uint8)])
    flops = 2 * 16 * 8 * 16
    general = report.roofline({"tensor_core_flops": 1e3})["tensor_core_flops"]
    assert general == pytest.approx(flops / 1e3 + flops / 2e3)
    by_kind = report.roofline({"tensor_core_flops.f16": 1e3, "tensor_core_flops.f16 in f16": 4e3})
    assert by_kind["tensor_core_flops"] == pytest.approx(flops / 4e3 + flops / 2e3)
    with pytest.raises(ValueError, match=r"no figure for tensor-core operations of kind 'f16'"):
        report.roofline({"tensor_core_flops.int8": 1e3})
