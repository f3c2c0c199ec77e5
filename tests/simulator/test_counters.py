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
