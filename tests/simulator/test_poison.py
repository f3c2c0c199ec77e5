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
        ("cvt.rn.f16x2.f32 %s, %u, %z;", CLEAN, BAD),
        ("cvt.rn.bf16x2.f32 %s, %z, %u;", BAD, CLEAN),
        ("cvt.rn.satfinite.e4m3x2.f32 %w, %u, %z; cvt.rn.f16x2.e4m3x2 %s, %w;", CLEAN, BAD),
        ("cvt.rn.satfinite.e4m3x2.f32 %w, %z, %u; cvt.rn.f16x2.e4m3x2 %s, %w;", BAD, CLEAN),
        ("cvt.rn.satfinite.e5m2x2.f16x2 %w, %r; cvt.rn.f16x2.e5m2x2 %s, %w;", CLEAN, BAD),
        ("cvt.rn.satfinite.e2m1x2.f32 %b, %u, %z; cvt.rn.f16x2.e2m1x2 %s, %b;", CLEAN, BAD),
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


# -- shared memory ---------------------------------------------------------------------------------------------------

# Threads below 40 have a value in %r; each has 16 bytes of shared memory, at %a.
PARTLY = """.reg .b32 %a, %i, %j, %k, %n; .reg .b64 %g; .reg .f32 %f; .shared .align 16 .b8 buf[1024];
mov.u32 %a, buf; mad.lo.u32 %a, %t, 16, %a; setp.lt.u32 %q, %t, 40; @%q mov.b32 %r, 7; mov.b32 %f, %r;
"""
PUT, GET = "st.shared.b32 [%a], %r;", "ld.shared.b32 %s, [%a];"
GENERIC = "cvta.shared.u64 %g, buf; mad.wide.u32 %g, %t, 16, %g;"
VALID = f"@%q {WHOLE}"


@pytest.mark.parametrize(
    ("body", "use", "expected"),
    [
        (f"{PUT} {GET}", WHOLE, BAD),
        (f"{PUT} {GET}", VALID, CLEAN),
        (f"{PUT} {GET} add.u32 %s, %s, 1; selp.b32 %s, %s, 0, %q;", WHOLE, CLEAN),
        (f"{PUT} st.shared.b32 [%a], %t; {GET}", WHOLE, CLEAN),
        (f"{PUT} @%q st.shared.b32 [%a], %t; {GET}", WHOLE, BAD),
        (f"{PUT} @!%q st.shared.b32 [%a], %t; {GET}", WHOLE, CLEAN),
        (f"st.shared.b32 [%a], %t; @%q {PUT} {GET}", WHOLE, CLEAN),
        (f"{GENERIC} st.b32 [%g], %r; ld.b32 %s, [%g];", WHOLE, BAD),
        (f"{GENERIC} st.b32 [%g], %r; ld.b32 %s, [%g];", VALID, CLEAN),
        ("st.shared.f32 [%a], %f; ld.shared.f32 %f, [%a]; mov.b32 %s, %f;", WHOLE, BAD),
        ("st.shared.f32 [%a], %f; ld.shared.f32 %f, [%a]; mov.b32 %s, %f;", VALID, CLEAN),
        ("st.shared.v4.b32 [%a], {%t, %r, %t, %t}; ld.shared.v4.b32 {%i, %j, %s, %k}, [%a];", WHOLE, CLEAN),
        ("st.shared.v4.b32 [%a], {%t, %r, %t, %t}; ld.shared.v4.b32 {%i, %s, %j, %k}, [%a];", WHOLE, BAD),
        (f"{HALF} {PUT} {GET} {UNPACK}", LOW, CLEAN),
        (f"{HALF} {PUT} {GET} {UNPACK}", HIGH, BAD),
        (f"{HALF} {PUT} ld.shared.b16 %l, [%a];", LOW, CLEAN),
        (f"{HALF} {PUT} ld.shared.b16 %w, [%a+2];", HIGH, BAD),
        (f"{HALF} {PUT} ld.shared.s16 %s, [%a];", WHOLE, CLEAN),
        (f"{HALF} {PUT} ld.shared.u16 %s, [%a+2]; shr.u32 %s, %s, 16;", WHOLE, CLEAN),
        (f"{HALF} {PUT} ld.shared.s16 %s, [%a+2]; shr.u32 %s, %s, 16;", WHOLE, BAD),
    ],
)
def test_shared_memory_without_a_value(body: str, use: str, expected: list[str]) -> None:
    assert kinds(f"{PARTLY}\n{body}", use) == expected


@pytest.mark.parametrize(
    "use",
    [
        "atom.shared.add.u32 %s, [%a], 1;",
        "cp.async.bulk.global.shared::cta.bulk_group [%x], [%a], 16;",
    ],
)
def test_others_than_loads_need_memory_with_values(use: str) -> None:
    fill = "st.shared.v4.b32 [%a], {{{0}, {0}, {0}, {0}}}; fence.proxy.async; bar.sync 0;"
    finish = "cp.async.bulk.commit_group; cp.async.bulk.wait_group 0;"
    for source, expected in (("%t", CLEAN), ("%r", ["uninitialized-shared"])):
        text = f"{BEGIN}{PARTLY}\n{fill.format(source)}\n{use}\n{finish}"
        report = load(text, ".param .u64 out").launch(1, 64, [np.zeros(256, np.uint32)])
        assert [hazard.kind for hazard in report.hazards] == expected
        assert all("without a value was stored" in hazard.message for hazard in report.hazards)
        assert all(hazard.ptx_line == line_of(use, text) for hazard in report.hazards)


READ = "ld.shared.v2.b32 {%i, %s}, [%a];"
DECIDED = "setp.ne.u32 %p, %s, 3;"


@pytest.mark.parametrize(
    ("use", "reported"),
    [
        (WHOLE, True),
        (VALID, False),
        ("@%q st.global.b32 [%x], %i;", True),
        (f"{DECIDED} @%p bra out; @%q st.global.b32 [%x], %t;", True),
        (f"{DECIDED} and.pred %p, %p, %q; @%p bra out; @%q st.global.b32 [%x], %t;", False),
        (f"{DECIDED} or.pred %p, %p, %q; @%p bra out; @%q st.global.b32 [%x], %t;", True),
        ("add.u32 %a, %a, %s; and.b32 %a, %a, 0; ld.shared.b32 %n, [%a];", False),
        ("min.u32 %a, %a, %s; @!%q ld.shared.b32 %n, [%a];", True),
        ("", False),
    ],
)
@pytest.mark.parametrize("apart", ["", "setp.ge.u32 %p, %t, 48; @%p bra out;"])
def test_loads_of_what_nobody_wrote_are_named_where_the_value_decides_something(
    use: str, reported: bool, apart: str
) -> None:
    """Threads below 40 wrote their second word, and nobody the first one; other lanes may have left before."""
    write = "@%q st.shared.b32 [%a+4], %t; st.shared.b32 [%a+8], %t;"
    text = f"{BEGIN}{PARTLY}\n{write} bar.sync 0;\n{apart}\n{READ}\n{use}\nout: ret;"
    report = load(text, ".param .u64 out").launch(1, 64, [np.zeros(256, np.uint32)])
    assert [h.kind for h in report.hazards] == (["uninitialized-shared"] if reported else [])
    for hazard in report.hazards:
        thread = 0 if "%i" in use else 40
        assert (hazard.ptx_line, hazard.thread) == (line_of(READ, text), (thread, 0, 0))
        assert hazard.address == thread * 16
        assert f"the value is used at PTX line {line_of(READ, text) + 1}" in hazard.message


def test_loads_are_reported_at_once_where_registers_are_not_checked() -> None:
    text = f"{BEGIN}{PARTLY}\n{READ}"
    report = load(text, ".param .u64 out").launch(1, 64, [np.zeros(256, np.uint32)], checks={"shared"})
    assert [(h.kind, h.thread) for h in report.hazards] == [("uninitialized-shared", (0, 0, 0))]


def test_a_load_is_followed_in_blocks_that_ran_before_it_and_in_loops() -> None:
    """The second turn of a loop reads what only the first block has written."""
    body = f"""{PARTLY} .reg .pred %first; mov.u32 %n, 0; mov.u32 %k, %ctaid.x; mov.u32 %s, 0;
    again: setp.eq.u32 %p, %k, 0; setp.eq.u32 %first, %n, 0; or.pred %p, %p, %first; @%p st.shared.b32 [%a], %t;
    ld.shared.b32 %i, [%a]; {{}} add.u32 %s, %s, %i; add.u32 %n, %n, 1; add.u32 %a, %a, 4;
    setp.lt.u32 %p, %n, 2; @%p bra again;
    {WHOLE}"""
    for between, expected in (("", ["uninitialized-shared"]), ("@!%p mov.b32 %i, 0;", [])):
        text = BEGIN + body.format(between)
        report = load(text, ".param .u64 out").launch(
            2, 64, [np.zeros(256, np.uint32)], checks={"registers", "shared"}
        )
        assert [(h.kind, h.block[0]) for h in report.hazards] == [(kind, 1) for kind in expected]


# -- products --------------------------------------------------------------------------------------------------------

# Type, shape, and the registers of A, B and D of m16n8 products; of D the first half is of row lane / 4, and all
# registers of A with an even number are of the same row.
PRODUCTS = {
    "m16n8k16.row.col.f32.f16.f16.f32": (4, 2, 4),
    "m16n8k16.row.col.f16.f16.f16.f16": (4, 2, 2),
    "m16n8k8.row.col.f32.bf16.bf16.f32": (2, 1, 4),
    "m16n8k8.row.col.f32.tf32.tf32.f32": (4, 2, 4),
    "m16n8k32.row.col.s32.s8.u8.s32": (4, 2, 4),
    "m16n8k32.row.col.f32.e4m3.e5m2.f32": (4, 2, 4),
}


def product(name: str, lacking: str, lanes: str, stored: int) -> list[tuple[str, int]]:
    """Kind and lane of the hazard where a register of a product lacks a value in some lanes and one is stored."""
    a, b, d = PRODUCTS[name]
    names = [f"%{which}{i}" for which, count in (("a", a), ("b", b), ("c", d)) for i in range(count)]
    values = "".join(f"mov.b32 {n}, 0;\n" for n in names if n != lacking)
    groups = [
        "{" + ", ".join(f"%{w}{i}" for i in range(n)) + "}"
        for w, n in (("d", d), ("a", a), ("b", b), ("c", d))
    ]
    text = f"""{BEGIN}.reg .b32 %a<4>, %b<2>, %c<4>, %d<4>;
    and.b32 %u, %t, 31; {values} {lanes} @!%p mov.b32 {lacking}, 0;
    mma.sync.aligned.{name} {", ".join(groups)};
    st.global.b32 [%x], %d{stored};"""
    report = load(text, ".param .u64 out").launch(1, 64, [np.zeros(256, np.uint32)])
    assert all(hazard.instruction.startswith("st.global") for hazard in report.hazards)
    return [(hazard.kind, hazard.thread[0]) for hazard in report.hazards]


@pytest.mark.parametrize("name", PRODUCTS)
def test_products_lack_the_rows_and_columns_of_what_lacks_a_value(name: str) -> None:
    """Lane 13 has a part of rows 3 and 11 of A, and of column 3 of B, which lanes 1, 5, ... have in D."""
    one, all_ = "setp.eq.u32 %p, %u, 13;", "setp.ge.u32 %p, %u, 0;"
    halves = PRODUCTS[name][2] == 2
    upper, lower = (0, 1) if halves else (1, 3)
    assert product(name, "%a0", one, upper) == [("uninitialized-register", 12)]
    assert product(name, "%a0", one, lower) == []
    assert product(name, "%a1", one, lower) == [("uninitialized-register", 12)]
    assert product(name, "%a1", one, upper) == []
    assert product(name, "%b0", one, lower) == [("uninitialized-register", 1)]
    if not halves:
        assert product(name, "%b0", one, 0) == product(name, "%b0", one, 2) == []
    assert product(name, "%c1", one, lower if halves else 1) == [("uninitialized-register", 13)]
    assert product(name, "%c1", one, 0) == []
    assert product(name, "%b0", all_, 0) == [("uninitialized-register", 0)]


def test_parts_of_a_product_or_matrix_that_nobody_wants() -> None:
    """``_`` among the results, as compilers write where only some rows are used; the others are still followed."""
    text = f"""{BEGIN}.reg .b32 %a<4>, %d<4>, %k; .shared .align 16 .b8 tile[512];
    mov.u32 %k, tile; mad.lo.u32 %k, %t, 16, %k; setp.lt.u32 %p, %t, 3;
    @%p st.shared.v4.b32 [%k], {{{{%z, %z, %z, %z}}}}; bar.sync 0;
    ldmatrix.sync.aligned.m8n8.x4.shared.b16 {{{{%a0, _, %a2, %a3}}}}, [%k];
    mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {{{{%d0, _, %d2, _}}}}, {{{{%a0, %z, %z, %z}}}},
        {{{{%z, %z}}}}, {{{{%z, %z, %z, %z}}}};
    shr.u32 %r, %t, 2; setp.lt.u32 %q, %r, {{bound}}; st.global.b32 [%x], %d2; @%q st.global.b32 [%x+4], %d0;
    """
    for bound, kinds_ in ((3, []), (4, ["uninitialized-shared"])):
        report = load(text.format(bound=bound), ".param .u64 out").launch(1, 32, [np.zeros(256, np.uint32)])
        assert [hazard.kind for hazard in report.hazards] == kinds_


@pytest.mark.parametrize("rows", [16, 11, 0])
def test_rows_that_nobody_wrote_stay_apart_from_the_others(rows: int) -> None:
    """A tile of 16 x 16 halves of which so many rows are written, multiplied and stored as far as it is."""
    text = f"""{BEGIN}.reg .b32 %a<4>, %d<4>, %k, %row; .shared .align 16 .b8 tile[512]; .reg .pred %in;
    setp.lt.u32 %p, %t, {rows}; mad.lo.u32 %k, %t, 32, 0; mov.u32 %u, tile; add.u32 %k, %k, %u;
    @%p st.shared.v4.b32 [%k], {{{{%z, %z, %z, %z}}}}; @%p st.shared.v4.b32 [%k+16], {{{{%z, %z, %z, %z}}}};
    bar.sync 0;
    and.b32 %k, %t, 15; shl.b32 %k, %k, 5; shr.u32 %row, %t, 4; shl.b32 %row, %row, 4; add.u32 %k, %k, %row;
    add.u32 %k, %k, %u;
    ldmatrix.sync.aligned.m8n8.x4.shared.b16 {{{{%a0, %a1, %a2, %a3}}}}, [%k];
    mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {{{{%d0, %d1, %d2, %d3}}}}, {{{{%a0, %a1, %a2, %a3}}}},
        {{{{%z, %z}}}}, {{{{%z, %z, %z, %z}}}};
    shr.u32 %row, %t, 2; setp.lt.u32 %in, %row, {{bound}}; @%in st.global.b32 [%x], %d0;
    add.u32 %row, %row, 8; setp.lt.u32 %in, %row, {{bound}}; @%in st.global.b32 [%x+4], %d3;
    """
    for bound in (rows, rows + 1):
        body = text.format(bound=bound)
        report = load(body, ".param .u64 out").launch(1, 32, [np.zeros(256, np.uint32)])
        wrong = bound > rows and rows < 16
        assert [h.kind for h in report.hazards] == (["uninitialized-shared"] if wrong else [])
        assert all(h.ptx_line == line_of("ldmatrix", body) for h in report.hazards)


@pytest.mark.parametrize(
    ("between", "use", "reported"),
    [
        ("mov.b32 %n, 5;", "st.global.b32 [%x], %n;", True),
        ("mov.b32 %n, 5;", "@%q st.global.b32 [%x], %n;", False),
        ("mov.b32 %n, 5;", "st.global.b32 [%x], %t;", False),
        ("mov.b32 %n, 5; add.u32 %j, %t, 1;", "st.global.b32 [%x], %j;", True),
        ("mov.b32 %n, 5;", "mov.b32 %n, 6; st.global.b32 [%x], %n;", False),
        ("ld.global.b32 %n, [%x];", "", True),
        ("st.global.b32 [%x], %t;", "", True),
    ],
)
@pytest.mark.parametrize("sense", ["", "!"])
def test_a_branch_around_a_few_assignments_is_a_choice(
    between: str, use: str, reported: bool, sense: str
) -> None:
    """Lanes from 40 on go by what nobody wrote; where only registers differ, these have no value."""
    text = f"""{BEGIN}{PARTLY}\nmov.b32 %n, 1; mov.b32 %j, 2; @%q st.shared.b32 [%a], %t; bar.sync 0;
    {GET} setp.lt.u32 %p, %s, 20; @{sense}%p bra on; {between}
    on: {use} ret;"""
    report = load(text, ".param .u64 out").launch(1, 64, [np.zeros(256, np.uint32)])
    assert [h.kind for h in report.hazards] == (["uninitialized-shared"] if reported else [])
    assert all(h.thread == (40, 0, 0) and h.ptx_line == line_of("ld.shared", text) for h in report.hazards)
