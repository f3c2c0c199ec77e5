"""Races of reads with later writes, however many other reads lie between and whatever barriers there were before."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tests.simulator.support import line_of, load

BEGIN = """
.reg .b64 %x; .reg .b32 %t, %u, %v, %w, %sum, %warp, %i; .reg .pred %p, %q;
.shared .align 16 .b8 sh[1024];
ld.param.u64 %x, [out]; mov.u32 %t, %tid.x; mad.wide.u32 %x, %t, 4, %x; shr.u32 %warp, %t, 5;
mov.u32 %w, sh; mad.lo.u32 %u, %t, 4, %w; mov.u32 %sum, 0;
st.shared.u32 [%u], %t;
bar.sync 0;
"""
# The next warp's word.
OTHER = "add.u32 %v, %t, 32; and.b32 %v, %v, 127; mad.lo.u32 %v, %v, 4, %w;"


def hazards(body: str) -> list[tuple[str, int | None]]:
    report = load(f"{BEGIN}{body}", ".param .u64 out").launch(2, 128, [np.zeros(128, np.uint32)])
    return [(hazard.kind, hazard.ptx_line) for hazard in report.hazards]


def race(line: str, body: str) -> list[tuple[str, int | None]]:
    return [("shared-race", line_of(line, BEGIN + body))]


@pytest.mark.parametrize("others", [0, 3, 200])
def test_a_write_finds_a_read_however_many_reads_came_after_it(others: int) -> None:
    reads = "ld.shared.u32 %i, [%u]; add.u32 %sum, %sum, %i;\n" * others
    body = (
        f"{OTHER}\nld.shared.u32 %sum, [%v];\n{reads}{{}}\nst.shared.u32 [%u], 7;\nst.global.u32 [%x], %sum;"
    )
    assert hazards(body.format("bar.sync 0;")) == []
    assert hazards(body.format("")) == race("st.shared.u32 [%u], 7", body)


@pytest.mark.parametrize("others", [0, 200])
def test_a_read_after_the_barrier_is_not_hidden_by_one_before_it(others: int) -> None:
    reads = "ld.shared.u32 %i, [%u];\n" * others
    body = (
        f"{OTHER}\nld.shared.u32 %sum, [%v];\nbar.sync 0;\n{reads}st.shared.u32 [%u], 7;\n{{}}\n"
        "st.shared.u32 [%u], 8;"
    )
    assert hazards(body.format("")) == []
    assert hazards(body.format("bar.sync 0; ld.shared.u32 %sum, [%v];")) == race("[%u], 8", body)
    assert hazards(body.format("bar.sync 0; ld.shared.u32 %sum, [%v]; bar.sync 0;")) == []
    body = f"{OTHER}\nld.shared.u32 %sum, [%v];\nbar.sync 0;\n{reads}{{}}\nst.shared.u32 [%u], 7;"
    assert hazards(body.format("")) == []
    assert hazards(body.format("ld.shared.u32 %sum, [%v];")) == race("[%u], 7", body)


def test_a_warp_that_comes_late_to_shared_memory() -> None:
    """Warp 1 first touches shared memory when warp 0's reads have long been ordered."""
    alone = "setp.eq.u32 %p, %warp, 0; setp.eq.u32 %q, %warp, 1; mov.u32 %w, sh;\n"
    body = (
        f"{alone}@%p ld.shared.u32 %sum, [%w];\nbar.sync 0;\n@%p st.shared.u32 [%w+512], 1;\n"
        "@%q ld.shared.u32 %sum, [%w];\n{}\n@%p st.shared.u32 [%w], 2;"
    )
    assert hazards(body.format("bar.sync 0;")) == []
    assert hazards(body.format("")) == race("[%w], 2", body)


def test_only_the_reader_that_no_barrier_covers_is_reported() -> None:
    """Warps 0 and 1 meet at a named barrier; warp 2 has read too."""
    body = (
        "mov.u32 %v, sh; setp.lt.u32 %p, %warp, {readers}; setp.lt.u32 %q, %warp, 2;\n"
        "@%p ld.shared.u32 %sum, [%v];\n@!%q bra done;\nbar.sync 1, 64;\nsetp.eq.u32 %p, %t, 0;\n"
        "@%p st.shared.u32 [%v], 2;\ndone: ret;"
    )
    assert hazards(body.format(readers=2)) == []
    assert hazards(body.format(readers=3)) == race("[%v], 2", body)


def vectors(width: int) -> Any:
    return "{" + ", ".join(f"%r{i}" for i in range(width)) + "}"


@pytest.mark.parametrize("width", [2, 4])
def test_wide_reads_cover_every_word(width: int) -> None:
    """A warp reads vectors of the next warp's words, of which that warp then overwrites one."""
    registers = ".reg .b32 %r<4>;\n"
    read = f"{OTHER} and.b32 %i, %t, {width - 1}; sub.u32 %v, %v, %i; sub.u32 %v, %v, %i;"
    body = (
        f"{registers}{read} sub.u32 %v, %v, %i; sub.u32 %v, %v, %i;\nld.shared.v{width}.u32 {vectors(width)}, [%v];\n"
        f"setp.eq.u32 %p, %i, {width - 1};\nBETWEEN\n@%p st.shared.u32 [%u], 9;"
    )
    assert hazards(body.replace("BETWEEN", "bar.sync 0;")) == []
    assert hazards(body.replace("BETWEEN", "")) == race("[%u], 9", body)


def test_a_read_beside_a_write_is_a_race_though_the_write_changes_nothing() -> None:
    """Whichever of the blocks comes first; two writes of the same bytes are none."""
    load_it, store_it = "@%p ld.global.u32 %v, [%x];", "@!%p st.global.u32 [%x], 0;"
    for first, second in ((load_it, store_it), (store_it, load_it)):
        body = f"mov.u32 %v, %ctaid.x; setp.eq.u32 %p, %v, 0;\n{first}\n{second}"
        assert hazards(body) == [("global-race", line_of(second, BEGIN + body))]
        assert hazards(body.replace(load_it, "@%p st.global.u32 [%x], 0;")) == []
