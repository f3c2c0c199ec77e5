"""The parser: instructions of the plain form, which are taken whole, and all others give the same records."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import pytest

from tilus import simulator
from tilus.simulator.errors import PtxError
from tilus.simulator.parser import flatten, parse
from tilus.simulator.syntax import Address, Float, Guard, Integer, Label, Name, Scope, Statement, Vector

HEADER = ".version 8.0\n.target sm_80\n.address_size 64\n"
FOREIGN = sorted((Path(__file__).parent / "foreign" / "ptx").rglob("*.ptx"))


def body(text: str) -> list[object]:
    tree = parse(f".version 8.0\n.target sm_80\n.address_size 64\n.visible .entry k()\n{{\n{text}\n}}\n")
    return flatten(tree.functions[0].body or ())


def test_the_parts_of_a_plain_instruction() -> None:
    text = "@!%p1 st.global.L1::evict_last.v2.b32 [%rd1+-16], {%r1,\n %r2};"
    address = Address(Name("%rd1"), -16)
    values = Vector((Name("%r1"), Name("%r2")))
    opcode = "st.global.L1::evict_last.v2.b32"
    assert body(text) == [Statement(opcode, (address, values), Guard("%p1", True), 6)]
    text = "@%p1\nmad.lo.s32 %r1, -0x10, 010, %tid.x;\nret;"
    numbers = (Name("%r1"), Integer(-16), Integer(8), Name("%tid.x"))
    assert body(text) == [
        Statement("mad.lo.s32", numbers, Guard("%p1", False), 7),
        Statement("ret", (), None, 8),
    ]
    assert body("mov.f32 %f1, 0f3F800000;")[0] == Statement(
        "mov.f32", (Name("%f1"), Float(1.0, 32, 0x3F800000)), None, 6
    )


@pytest.mark.parametrize(
    "text",
    [
        "add.s32 %r1, %r2, -5;",
        "@%p2 bra.uni $L__BB0_2;",
        "mov.u64 %rd1, symbol;",
        "ld.param.u64 %rd1, [k_param_0];",
        "ld.shared.v4.u32 {%r1, %r2, %r3, _}, [%r4+ 64];",
        "ld.global.u32 %r1, [%rd1-4];",
        "mma.sync.aligned.m8n8k4.row.col.f64.f64.f64.f64 {%d1,%d2},{%d3},{%d4},{%d1,%d2};",
        "mov.f64 %d1, 0d3FF0000000000000;",
        "bar.sync 0;",
        "exit;",
    ],
)
def test_a_comment_makes_no_difference(text: str) -> None:
    """A comment inside makes an instruction one that the rules take apart."""
    assert body(text) == body(text.replace(";", "/**/;"))


def test_a_label_before_an_instruction_is_no_opcode() -> None:
    assert body("done: exit;") == [Label("done", 6), Statement("exit", (), None, 6)]
    assert body("a:b: add.s32 %r1, %r1, 1;")[:2] == [Label("a", 6), Label("b", 6)]


@pytest.mark.parametrize(
    "text", ["add.s32 %r1, %r2 %r3;", "add.s32 %r1,, %r2;", "st.b32 [%r1, %r2;", "add.s32 %r1"]
)
def test_a_mistake_is_shown_with_its_line(text: str) -> None:
    with pytest.raises(PtxError, match=r"PTX line [67]: cannot parse"):
        body(text)


@pytest.mark.parametrize("path", FOREIGN[::7], ids=lambda path: path.stem)
def test_programs_give_the_same_with_comments_in_every_instruction(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    # Not in a line of a `.file` or `.section`, which are taken whole.
    lines = [
        line.replace(";", "/**/;") if line.startswith(("\t", " ")) and '"' not in line else line
        for line in text.splitlines()
    ]
    # As text, for NaN is not equal to itself.
    assert repr(parse("\n".join(lines)).functions) == repr(parse(text).functions)


def test_most_instructions_of_a_compiler_are_plain() -> None:
    """Scopes, calls and pairs of predicates aside; else loading is slow."""
    from tilus.simulator import parser

    plain = 0
    whole = parser.plain_instruction

    def counted(text: str, line: int) -> Statement:
        nonlocal plain
        plain += 1
        return whole(text, line)

    path = next(p for p in FOREIGN if "attention" in p.stem)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(parser, "plain_instruction", counted)
        tree = parse(path.read_text(encoding="utf-8"))

    def count(items: tuple[object, ...]) -> int:
        return sum(
            count(i.body) if isinstance(i, Scope) else isinstance(i, Statement) for i in flatten(items)
        )

    statements = sum(count(function.body or ()) for function in tree.functions)
    assert plain > 0.9 * statements


def test_long_tables_of_numbers() -> None:
    """Beside short ones, nested ones and those with other than plain decimal numbers, which are read by item."""
    numbers = [(7 * i) % 256 - 100 for i in range(64)]
    plain, spaced = ",".join(map(str, numbers)), " ,\n ".join(map(str, numbers))
    text = f"""{HEADER}
    .global .s32 plain[64] = {{{plain}}};
    .global .u8 spaced[64] = {{ {spaced} }}, short[3] = {{1, 2, 3}};
    .const .s16 nested[2][64] = {{{{{plain}}}, {{{spaced}}}}};
    .global .f32 floats[64] = {{{plain}}};
    .global .u32 mixed[65] = {{{plain}, 0x10}}, octal[20] = {{{", ".join(["010"] * 20)}}};
    .visible .entry k() {{ ret; }}
    """
    module = simulator.load(text)
    wrapped = [n & 255 for n in numbers]
    assert module.variable("plain").view(np.int32).tolist() == numbers
    assert module.variable("spaced").tolist() == wrapped
    assert module.variable("short").tolist() == [1, 2, 3]
    assert module.variable("nested").view(np.int16).tolist() == numbers + numbers
    assert module.variable("floats").view(np.float32).tolist() == numbers
    assert module.variable("mixed").view(np.int32).tolist() == [*numbers, 16]
    assert module.variable("octal").view(np.uint32).tolist() == [8] * 20


def test_tables_of_random_generators_load_at_once() -> None:
    """Item by item this one took seconds."""
    table = ", ".join(str(i % 251) for i in range(60_000))
    start = time.process_time()
    module = simulator.load(f"{HEADER}.global .u8 t[60000] = {{{table}}};\n.visible .entry k() {{ ret; }}")
    assert time.process_time() - start < 1
    assert module.variable("t").tolist() == [i % 251 for i in range(60_000)]
