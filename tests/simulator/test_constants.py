"""Constant expressions: the ISA's rules for 64-bit integers and doubles, and all places that take an expression."""

from __future__ import annotations

import struct
from typing import Any

import numpy as np
import pytest

from tests.simulator.support import HEADER, load
from tilus import simulator
from tilus.simulator.constants import evaluate
from tilus.simulator.syntax import Float, Integer

TOP = 1 << 63
MOST = (1 << 64) - 1

# Worked out by hand from the ISA; the assembler agrees in all but the cases marked so.
INTEGERS = [
    # Precedence and associativity.
    ("(1<<4)|3", 19),
    ("1 + 2 * 3 - 4", 3),
    ("10 - 3 - 2", 5),
    ("100 / 10 / 2", 5),
    ("2 * 3 % 4", 2),
    ("1 << 2 << 3", 32),
    ("256 >> 2 >> 1", 32),
    ("1 << 2 + 1", 8),
    ("1 | 2 ^ 3 & 4", 3),
    ("1 | 3 ^ 1", 3),
    ("6 & 3 == 3", 0),
    ("1 == 1 < 2", 1),
    ("5 > 3 > 1", 0),
    ("1 || 0 && 0", 1),
    ("1 ? 0 ? 5 : 6 : 7", 6),
    ("0 ? 1 : 0 ? 2 : 3", 3),
    ("3-5", -2),
    ("- - 3", 3),
    ("-(-42)", 42),
    ("+-+5", -5),
    # Literals.
    ("010 + 0b11 + 0x1F", 42),
    ("WARP_SZ * 2", 64),
    ("1 + /* one */ 1", 2),
    # Signed division truncates, and wraps where the quotient has no room.
    ("-7/2", -3),
    ("7/-2", -3),
    ("(.s64)0x8000000000000000 / -1", -TOP),
    ("0x7fffffffffffffff + 1", -TOP),
    ("1 << 63", -TOP),
    # An unsigned operand makes both unsigned.
    ("-1 < 0", 1),
    ("-1 < 0U", 0),
    ("-1 == 0xffffffffffffffff", 1),
    ("9223372036854775808 / 2", 1 << 62),
    ("-9223372036854775808 / -1", 0),
    ("-1 / 2U", TOP - 1),
    ("(-1 | 0) / 2", 0),
    ("(-1 & -1) < 0", 1),
    ("(-1 & 0xffffffffffffffff) < 0", 0),
    ("(-1 ^ 0) < 0", 1),
    # The remainder reads its operands as unsigned: 2**64 - 7 is 3 * 6148914691236517203 + 0.
    ("-7 % 3", 0),
    ("7 - 8 % 3", 5),
    ("0xffffffffffffffff % 10", 5),
    ("(-1 % 0xffffffffffffffff) + 1", 1),
    ("(0xfabc123400000000 % 0xffffffffffffffff) >> 4", 0x0FABC12340000000),
    # A right shift is that of the first operand's type; the count is unsigned.
    ("-8 >> 1", -4),
    ("-8U >> 1", (1 << 63) - 4),
    ("(.u64)-8 >> 1", (1 << 63) - 4),
    ("(.s64)0xfffffffffffffff8 >> 1", -4),
    ("( .s64 ) -8U >> 1", -4),
    ("-8 >> 1U", -4),
    ("1 << 64", 1),
    ("-1 >> 64", -1),
    ("-1U >> 64", MOST),
    ("1 << -1", -TOP),
    # Logic.
    ("~5", MOST - 5),
    ("~0 > 0", 1),
    ("~0 / 3", 0x5555555555555555),
    ("!5", 0),
    ("!0", 1),
    ("!~0 - 1", -1),
    ("2 && 4", 1),
    ("0 || 0", 0),
    ("2 && 0", 0),
    ("(1 && 1) - 2 < 0", 1),
    ("(1 < 2) - 2 < 0", 1),
    ("1 != 2", 1),
    ("3 >= 3", 1),
    ("2 <= 1", 0),
    # The type of a choice is that of both branches; the assembler keeps that of the branch taken.
    ("(0 ? 1U : -2) < 0", 0),
    ("(0 ? 1 : -2) < 0", 1),
    # Comparisons of doubles are integers.
    ("1.5 < 2.5", 1),
    ("(1.5 == 2.5) ? 4 : 5", 5),
]


@pytest.mark.parametrize(("text", "value"), INTEGERS)
def test_integers(text: str, value: int) -> None:
    found = evaluate(text)
    assert isinstance(found, Integer)
    assert found.value == value


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1.5 * 2.0", 3.0),
        ("-(1.5)", -1.5),
        ("1e2 / 8.0", 12.5),
        ("0d3FF0000000000000 + .25", 1.25),
        ("1 < 2 ? 0.1 : 0.2", 0.1),
        ("0.1 + 0.2", 0.1 + 0.2),
        ("-0.0 - 0.0", -0.0),
    ],
)
def test_doubles(text: str, value: float) -> None:
    (raw,) = struct.unpack("<Q", struct.pack("<d", value))
    assert evaluate(text) == Float(value, 64, raw)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("1 / 0", "a division by zero"),
        ("1.0 / 0.0", "a division by zero"),
        ("1 % 0", "a remainder of a division by zero"),
        ("1 + 1.5", "an integer and a floating-point operand of +, expected two of a kind"),
        ("1 ? 2 : 1.5", "an integer and a floating-point operand of ?:, expected two of a kind"),
        ("1.5 & 1.5", "a floating-point operand of &, expected an integer"),
        ("1.5 && 1", "a floating-point operand of &&, expected an integer"),
        ("~1.5", "a floating-point operand of ~, expected an integer"),
        ("(.u64)1.5", "a floating-point operand of (u64), expected an integer"),
        ("1.5 ? 1 : 2", "a floating-point operand of ?, expected an integer"),
        ("0f3F800000 + 1.0", "a single-precision literal 0f3F800000, expected 0d and 16 digits"),
        ("0x10000000000000000 + 1", "the literal 0x10000000000000000 of more than 64 bits"),
        ("1 +", "nothing where a number is expected"),
        ("1 ? 2", "a ? without its :"),
        ("1 2", "a stray '2'"),
        ("1 + * 2", "'*' where a number is expected"),
        ("1 + 089", "'089' where a number is expected"),
        ("1 + 2x", "'2x' where a number is expected"),
    ],
)
def test_what_is_wrong_is_said_with_the_line(text: str, message: str) -> None:
    with pytest.raises(simulator.PtxError) as error:
        evaluate(text, 7)
    assert str(error.value) == f"PTX line 7: {message} in the constant expression {text!r}"


def run(body: str, before: str = "") -> Any:
    """What a body leaves in ``%r1``, by one thread."""
    kernel = load(
        f".reg .b32 %r<9>; .reg .b64 %d<9>; .reg .pred %p<3>; ld.param.u64 %d1, [out];\n{body}\n"
        "st.global.u32 [%d1], %r1; ret;",
        ".param .u64 out",
        before,
    )
    out = np.zeros(8, np.uint32)
    out[2:6] = (20, 30, 40, 50)
    kernel.launch(1, 1, [out]).raise_if_hazards()
    return int(out[0])


@pytest.mark.parametrize(
    ("body", "value"),
    [
        ("mov.u32 %r1, (1<<4)|3;", 19),
        ("mov.u32 %r1, 5|3;", 7),
        ("mov.u32 %r1, (5);", 5),
        ("mov.u32 %r1, (((((((9)))))));", 9),
        ("mov.s32 %r1, -(5);", 2**32 - 5),
        ("mov.u32 %r1, 1 +\n /* and */ 1; // (2+2)", 2),
        ("mov.u32 %r1, WARP_SZ;", 32),
        ("mov.u32 %r1, WARP_SZ/2;", 16),
        ("mov.f32 %r1, 1.5*2.0;", 0x40400000),
        ("mov.u32 %r2, 3; add.u32 %r1, %r2, 4*4;", 19),
        ("mov.u32 %r2, 3; mad.lo.u32 %r1, 2+2, %r2, (.u64)1 ? 1 : 0;", 13),
        ("mov.pred %p1, !5; selp.u32 %r1, 1+1, 2+2, %p1;", 4),
        ("setp.lt.u32 %p1, 1+1, 3; @%p1 mov.u32 %r1, 1|2;", 3),
        ("ld.global.u32 %r1, [%d1+4*2];", 20),
        ("ld.global.u32 %r1, [%d1+(1<<4)-4];", 30),
        ("add.u64 %d2, %d1, 1<<5; ld.global.u32 %r1, [%d2-8-8];", 40),
        ("ld.global.v2.u32 {%r2, %r1}, [%d1+(4*4)];", 50),
        ("mov.u64 %d2, table+(2*4); ld.global.u32 %r1, [%d2];", 3),
        ("ld.global.u32 %r1, table[2+1*6];", 3),
        ("mov.b64 %d2, {1+1, 3*3}; mov.b64 {%r2, %r1}, %d2;", 9),
        ("call (%r1), add_one, (20+21);", 42),
        ("call (%r1), add_one, (41);", 42),
        ("mov.u32 %r2, 41; call (%r1), add_one, (%r2);", 42),
    ],
)
def test_operands(body: str, value: int) -> None:
    before = (
        ".global .u32 table[2*2] = {1, 1+1, 4-1, (2)<<1};\n"
        ".func (.reg .u32 %y) add_one (.reg .u32 %x) { add.u32 %y, %x, 2-1; ret; }"
    )
    assert run(body, before) == value


def test_sizes_and_initial_values_of_variables() -> None:
    text = (
        HEADER
        + """
    .const .s64 one = (.s64)0xfffffffffffffff8 >> 1;
    .const .f32 half = 1.0/2.0;
    .const .u16 table[1+1][(1<<2)/2] = {{1, -(1)}, {2*2, 3?5:6}};
    .const .u8 bytes[] = {0xFF(1000 + 546), 0xFF00(131187), 0xFF(7)};
    .global .u32 there[2*3];
    .global .u64 pointer = there+(4*2);
    .global .u64 pointers[] = {generic(there)+2*2, generic(there+(1<<3)), there};
    .global .u8 parts[] = {0xff(there+4*1), 0xff00(generic(there)+4)};
    .visible .entry k() { ret; }
    """
    )
    module = simulator.load(text)
    base = int(module.variable("pointers").view(np.uint64)[2])
    assert module.variable("one").view(np.int64)[0] == -4
    assert module.variable("half").view(np.float32)[0] == 0.5
    assert module.variable("table").view(np.uint16).tolist() == [1, 0xFFFF, 4, 5]
    # 1546 is 0x60A, and 131187 is 0x20073.
    assert module.variable("bytes").tolist() == [0x0A, 0x00, 0x07]
    assert module.variable("there").nbytes == 24
    assert module.variable("pointer").view(np.uint64)[0] == base + 8
    assert module.variable("pointers").view(np.uint64).tolist() == [base + 4, base + 8, base]
    assert module.variable("parts").tolist() == [base + 4 & 0xFF, (base + 4) >> 8 & 0xFF]


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("mov.u32 %r1, 1/0;", "PTX line 7: a division by zero in the constant expression '1/0'"),
        ("mov.u32 %r1, 1+;", "PTX line 7: nothing where a number is expected"),
        ("mov.u32 %r1, (1+2;", "PTX line 7: cannot parse"),
        ("mov.u32 %r1, 1+%r2;", "PTX line 7: cannot parse"),
        (".shared .b8 s[1.5*2.0];", "a floating-point expression of value 3.0, expected an integer one"),
    ],
)
def test_wrong_expressions_are_refused(body: str, message: str) -> None:
    with pytest.raises(simulator.PtxError) as error:
        load(f".reg .b32 %r<9>; {body}")
    assert message in str(error.value)


VECTORS = {
    "%tid": lambda block, thread: (thread % 4, thread // 4 % 2, thread // 8),
    "%ntid": lambda block, thread: (4, 2, 3),
    "%ctaid": lambda block, thread: (block % 2, block // 2 % 3, block // 6),
    "%nctaid": lambda block, thread: (2, 3, 2),
    "%clusterid": lambda block, thread: (0, block // 2 % 3, block // 6),
    "%nclusterid": lambda block, thread: (1, 3, 2),
    "%cluster_ctaid": lambda block, thread: (block % 2, 0, 0),
    "%cluster_nctaid": lambda block, thread: (2, 1, 1),
}


@pytest.mark.parametrize("form", ["vector", "braces", "copied", "halves"])
@pytest.mark.parametrize("name", VECTORS)
def test_vectors_of_special_registers(name: str, form: str) -> None:
    moves = {
        "vector": f"mov.v4.u32 %v, {name};",
        "braces": f"mov.v4.b32 {{%a, %b, %c, %e}}, {name}; mov.v4.u32 %v, {{%a, %b, %c, %e}};",
        "copied": f"mov.v4.u32 %w, {name}; mov.v4.u32 %v, %w;",
        "halves": f"mov.v4.u16 %h, {name}; cvt.u32.u16 %v.x, %h.x; cvt.u32.u16 %v.y, %h.y; cvt.u32.u16 %v.z, %h.z;"
        " cvt.u32.u16 %v.w, %h.w;",
    }
    kernel = load(
        ".reg .v4 .u32 %v, %w; .reg .v4 .u16 %h; .reg .u32 %a, %b, %c, %e, %i, %j; .reg .b64 %p, %o;\n"
        "ld.param.u64 %p, [out];\n"
        "mov.u32 %i, %ctaid.z; mad.lo.u32 %i, %i, 3, %ctaid.y; mad.lo.u32 %i, %i, 2, %ctaid.x;\n"
        "mad.lo.u32 %i, %i, 3, %tid.z; mad.lo.u32 %i, %i, 2, %tid.y; mad.lo.u32 %i, %i, 4, %tid.x;\n"
        f"mul.wide.u32 %o, %i, 16; add.u64 %p, %p, %o;\n{moves[form]}\nst.global.v4.u32 [%p], %v; ret;",
        ".param .u64 out",
    )
    out = np.full((12, 24, 4), 9, np.uint32)
    kernel.launch((2, 3, 2), (4, 2, 3), [out], cluster=2).raise_if_hazards()
    expected = [[(*VECTORS[name](block, thread), 0) for thread in range(24)] for block in range(12)]
    assert out.tolist() == [[list(item) for item in items] for items in expected]


def test_vectors_of_the_wrong_length_are_refused() -> None:
    with pytest.raises(
        simulator.PtxError, match=r"%tid has 4 components, expected 2 in 'mov\.v2\.u32 %v, %tid;'"
    ):
        load(".reg .v2 .u32 %v; mov.v2.u32 %v, %tid;")
    with pytest.raises(simulator.PtxError, match=r"%r has 1 components, expected 4"):
        load(".reg .u32 %r; mov.v4.u32 %r, %tid;")
