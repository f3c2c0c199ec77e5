"""Registers without a value: bits are followed through instructions, and reported where they decide something."""

from __future__ import annotations

import numpy as np
import pytest

from tests.simulator.support import line_of, load

BEGIN = """
.reg .b64 %x, %d, %dd; .reg .b32 %t, %r, %s, %z, %u; .reg .b16 %h, %l, %w, %o; .reg .b8 %b, %c; .reg .pred %p, %q;
ld.param.u64 %x, [out]; mov.u32 %t, %tid.x; mad.wide.u32 %x, %t, 16, %x;
mov.b16 %h, 0x1234; mov.b16 %o, 0; mov.b32 %z, 0x55667788; setp.eq.u32 %q, %t, 40;
"""
LOW, HIGH, WHOLE = "st.global.b16 [%x], %l;", "st.global.b16 [%x], %w;", "st.global.b32 [%x], %s;"
UNPACK = "mov.b32 {%l, %w}, %s;"
# The upper half of %r has no value: nothing writes %u, of which it is the lower half.
HALF = "cvt.u16.u32 %w, %u; mov.b32 %r, {%h, %w};"


def kinds(body: str, use: str) -> list[str]:
    """The hazards of a use of what a body computes; they must be reported at the use."""
    text = f"{BEGIN}{body}\n{use}"
    report = load(text, ".param .u64 out").launch(1, 64, [np.zeros(256, np.uint32)])
    assert all(hazard.ptx_line == line_of(use, text) for hazard in report.hazards), report.hazards
    return [hazard.kind for hazard in report.hazards]


CLEAN: list[str] = []
BAD = ["uninitialized-register"]


@pytest.mark.parametrize(
    ("body", "low", "high"),
    [
        ("mov.b32 %s, %r;", CLEAN, BAD),
        ("mov.b32 %s, {%w, %h};", BAD, CLEAN),
        ("shl.b32 %s, %r, 16;", CLEAN, CLEAN),
        ("shr.u32 %s, %r, 16;", BAD, CLEAN),
        ("shr.s32 %s, %r, 16;", BAD, BAD),
        ("shr.u32 %s, %r, 1;", BAD, BAD),
        ("prmt.b32 %s, %r, %z, 0x1032;", BAD, CLEAN),
        ("prmt.b32 %s, %r, %z, 0x5410;", CLEAN, CLEAN),
        ("and.b32 %s, %r, 0xffff;", CLEAN, CLEAN),
        ("and.b32 %s, %r, 0x1ffff;", CLEAN, BAD),
        ("or.b32 %s, %r, 0xffff0000;", CLEAN, CLEAN),
        ("xor.b32 %s, %r, 0xffff0000;", CLEAN, BAD),
        ("not.b32 %s, %r;", CLEAN, BAD),
        ("not.b32 %r, %r; xor.b32 %s, %r, %z;", CLEAN, BAD),
        ("lop3.b32 %s, %r, 0xffff, %z, 0xea;", CLEAN, CLEAN),
        ("lop3.b32 %s, %r, %z, %z, 0x96;", CLEAN, BAD),
        ("bfe.u32 %s, %r, 8, 8;", CLEAN, CLEAN),
        ("bfe.s32 %s, %r, 15, 1;", CLEAN, CLEAN),
        ("bfe.s32 %s, %r, 12, 8;", BAD, BAD),
        ("bfe.u32 %s, %r, %z, 8;", BAD, BAD),
        ("bfi.b32 %s, %z, %r, 16, 16;", CLEAN, CLEAN),
        ("bfi.b32 %s, %r, %z, 8, 20;", CLEAN, BAD),
        ("bfi.b32 %s, %r, %z, 8, 8;", CLEAN, CLEAN),
        ("brev.b32 %s, %r;", BAD, CLEAN),
        ("add.f16x2 %s, %r, %z;", CLEAN, BAD),
        ("fma.rn.bf16x2 %s, %z, %r, %z;", CLEAN, BAD),
        ("add.u16x2 %s, %z, %r;", CLEAN, BAD),
        ("add.u32 %s, %z, %r;", BAD, BAD),
        ("cvt.u16.u32 %w, %r; cvt.u32.u16 %s, %w;", CLEAN, CLEAN),
        ("cvt.u16.u32 %w, %r; cvt.s32.s16 %s, %w;", CLEAN, CLEAN),
        ("mov.b64 %d, {%r, %z}; shr.u64 %d, %d, 16; cvt.u32.u64 %s, %d;", BAD, CLEAN),
        ("mov.b64 %d, {%h, %w, %o, %h}; mov.b64 {%s, %r}, %d;", CLEAN, BAD),
        ("shfl.sync.idx.b32 %s, %r, 0, 31, -1;", CLEAN, BAD),
        ("setp.eq.u32 %p, %z, %z; selp.b32 %s, %r, %z, %p;", CLEAN, BAD),
        ("setp.ne.u32 %p, %z, %z; selp.b32 %s, %r, %z, %p;", CLEAN, CLEAN),
        ("mov.b32 %s, %z; @%q mov.b32 %s, %r;", CLEAN, BAD),
        ("mov.b32 %s, %r; @!%q mov.b32 %s, %z;", CLEAN, BAD),
        ("setp.ne.u32 %q, %z, %z; mov.b32 %s, %z; @%q mov.b32 %s, %r;", CLEAN, CLEAN),
    ],
)
def test_halves_of_a_register(body: str, low: list[str], high: list[str]) -> None:
    assert kinds(f"{HALF}\n{body}\n{UNPACK}", LOW) == low
    assert kinds(f"{HALF}\n{body}\n{UNPACK}", HIGH) == high
    assert kinds(f"{HALF}\n{body}", WHOLE) == max(low, high)


def test_a_narrow_store_uses_the_low_bits_alone() -> None:
    assert kinds(HALF, "st.global.b16 [%x], %r;") == CLEAN
    assert kinds(HALF, "st.global.b8 [%x], %r;") == CLEAN
    assert kinds(HALF, "st.global.b32 [%x], %r;") == BAD
    assert kinds(f"{HALF} mov.b32 %s, {{%w, %h}};", "st.global.b8 [%x], %s;") == BAD


def test_a_narrow_result_is_extended_as_its_value_is() -> None:
    assert kinds("cvt.u8.u32 %w, %u; shr.u16 %l, %w, 8;", LOW) == CLEAN
    assert kinds("cvt.s8.s32 %w, %u; shr.u16 %l, %w, 8;", LOW) == BAD
    assert kinds("cvt.u8.u32 %w, %u; and.b16 %l, %w, 0x101;", LOW) == BAD


def test_a_predicate_without_a_value() -> None:
    assert kinds("and.pred %p, %p, %q; @%q mov.b32 %z, 1;", "@%p st.global.b32 [%x], %z;") == BAD
    assert kinds("setp.ne.u32 %q, %z, %z; and.pred %p, %p, %q;", "@%p st.global.b32 [%x], %z;") == CLEAN
    assert kinds("setp.eq.u32 %q, %z, %z; or.pred %p, %p, %q;", "@%p st.global.b32 [%x], %z;") == CLEAN
    assert kinds("mov.pred %q, !%p;", "@%q st.global.b32 [%x], %z;") == BAD
    assert kinds("not.pred %p, %p;", "@!%p st.global.b32 [%x], %z;") == BAD


def test_a_result_that_is_written_again_has_a_value() -> None:
    assert kinds(f"{HALF}\nmov.b32 %s, %r;\nmov.b32 %s, %z;", WHOLE) == CLEAN
    assert kinds(f"{HALF}\nmov.b32 %s, %r;\nld.global.b32 %s, [%x];", WHOLE) == CLEAN
