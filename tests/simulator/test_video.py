"""The video instructions against the ISA's pseudocode, in Python integers, one value at a time."""

from __future__ import annotations

import random
import re
from typing import Any

import numpy as np
import pytest

from tests.simulator.support import apply, integers, load
from tilus import simulator

A, B, C = (integers(32, 120, seed) for seed in (1, 2, 3))
# Distances and small values too.
B[:40] %= 40


def part(word: int, type: str, selector: str) -> int:
    """``partSelectSignExtend``."""
    if not selector:
        bits, at = 32, 0
    else:
        bits = 8 if selector[0] == "b" else 16
        at = int(selector[1]) * bits
    value = (word >> at) % (1 << bits)
    return value - (1 << bits) if type == "s32" and value >> (bits - 1) else value


def clamp(value: int, bits: int, type: str) -> int:
    low, high = (-(1 << (bits - 1)), (1 << (bits - 1)) - 1) if type == "s32" else (0, (1 << bits) - 1)
    return max(low, min(high, value))


def primary(name: str, how: str, a: int, b: int) -> int:
    if name in ("vshl", "vshr"):
        b = b % 32 if how == "wrap" else min(b, 32)
        return a << b if name == "vshl" else a >> b
    if name == "vset":
        return int({"eq": a == b, "ne": a != b, "lt": a < b, "le": a <= b, "gt": a > b, "ge": a >= b}[how])
    if name == "vavrg":
        return (a + b + 1) >> 1 if a + b >= 0 else (a + b) >> 1
    return {"vadd": a + b, "vsub": a - b, "vabsdiff": abs(a - b), "vmin": min(a, b), "vmax": max(a, b)}[name]


def scalar(text: str, a: int, b: int, c: int) -> int:
    opcode, d_sel, a_sel, b_sel = re.match(
        r"(\S+) \{d\}\.?(\w*), \{a\}\.?(\w*), \{b\}\.?(\w*)", text
    ).groups()  # type: ignore[union-attr]
    name, *mods = opcode.split(".")
    types = [m for m in mods if m in ("u32", "s32")]
    how = next((m for m in mods if m in ("wrap", "clamp", "eq", "ne", "lt", "le", "gt", "ge")), "")
    dtype = "u32" if name == "vset" else types[0]
    value = primary(name, how, part(a, types[-2], a_sel), part(b, types[-1], b_sel))
    if "sat" in mods:
        value = clamp(value, 32 if not d_sel else 8 if d_sel[0] == "b" else 16, dtype)
    third = part(c, dtype, "")
    if "add" in mods:
        value += third
    elif "min" in mods:
        value = min(value, third)
    elif "max" in mods:
        value = max(value, third)
    elif d_sel:
        bits = 8 if d_sel[0] == "b" else 16
        mask, shift = (1 << bits) - 1, bits * int(d_sel[1])
        value = (value & mask) << shift | c & ~(mask << shift)
    return value % (1 << 32)


def random_scalars() -> list[str]:
    rng = random.Random(0)
    texts = []
    for name in ("vadd", "vsub", "vabsdiff", "vmin", "vmax", "vshl", "vshr", "vset"):
        for number in range(9):
            dtype, atype, btype = (rng.choice(("u32", "s32")) for _ in range(3))
            selectors = ["", ".b0", ".b1", ".b2", ".b3", ".h0", ".h1"]
            a, b, d = (rng.choice(selectors) for _ in range(3))
            kind = ("plain", "merge", "second")[number % 3]
            opcode = f"{name}.{atype}.{btype}" if name == "vset" else f"{name}.{dtype}.{atype}.{btype}"
            if name in ("vshl", "vshr"):
                opcode = f"{name}.{dtype}.{atype}.u32"
            if name != "vset" and rng.random() < 0.5:
                opcode += ".sat"
            if name == "vset":
                opcode += "." + rng.choice(("eq", "ne", "lt", "le", "gt", "ge"))
            if name in ("vshl", "vshr"):
                opcode += "." + rng.choice(("clamp", "wrap"))
            if kind == "second":
                opcode += "." + rng.choice(("add", "min", "max"))
            merge = (d or ".h1") if kind == "merge" else ""
            texts.append(f"{opcode} {{d}}{merge}, {{a}}{a}, {{b}}{b}{'' if kind == 'plain' else ', {c}'};")
    return texts


@pytest.mark.parametrize("text", random_scalars())
def test_a_part_of_each_operand(text: str) -> None:
    got = apply(text, A, B, C)
    expected = [scalar(text, int(a), int(b), int(c)) for a, b, c in zip(A, B, C)]
    assert got.tolist() == expected


@pytest.mark.parametrize("scale", ["", ".shr7", ".shr15"])
@pytest.mark.parametrize("sat", ["", ".sat"])
@pytest.mark.parametrize(
    ("types", "signs"),
    [("u32.u32.u32", "+++"), ("s32.u32.u32", "-++"), ("s32.u32.s32", "++-"), ("s32.s32.s32", "+-+"),
     ("s32.s32.u32", "--+"), ("u32.u32.u32", "po")],
)  # fmt: skip
def test_multiplication_and_addition(types: str, signs: str, sat: str, scale: str) -> None:
    po = ".po" if signs == "po" else ""
    minus = ["-" if sign == "-" else "" for sign in (signs if not po else "+++")]
    text = f"vmad.{types}{po}{sat}{scale} {{d}}, {minus[0]}{{a}}.h1, {minus[1]}{{b}}, {minus[2]}{{c}};"
    got = apply(text, A, B, C)
    _, atype, btype = types.split(".")
    negative, subtracts = minus[0] != minus[1], bool(minus[2])
    signed = "s32" if "s32" in (atype, btype) or negative or subtracts else "u32"
    for a, b, c, d in zip(A, B, C, got):
        total = part(int(a), atype, "h1") * part(int(b), btype, "")
        total = -total if negative else total
        third = int(c) ^ 0xFFFFFFFF if subtracts else int(c)
        total += part(third, signed, "") + int(bool(po) or subtracts)
        total >>= int(scale[4:] or 0)
        assert int(d) == (clamp(total, 32, signed) if sat else total) % (1 << 32)


def simd(text: str, a: int, b: int, c: int) -> int:
    opcode, mask, a_sel, b_sel = re.match(  # type: ignore[union-attr]
        r"(\S+) \{d\}\.?(\w*), \{a\}\.?(\w*), \{b\}\.?(\w*)", text
    ).groups()
    name, count, *_ = opcode.split(".")[0][:-1], int(opcode.split(".")[0][-1])
    mods = opcode.split(".")[1:]
    bits = 32 // count
    types = [m for m in mods if m in ("u32", "s32")]
    how = next((m for m in mods if m in ("eq", "ne", "lt", "le", "gt", "ge")), "")
    letter = "h" if count == 2 else "b"
    a_parts = [int(i) for i in (a_sel[1:] or "3210"[-count:])][::-1]
    b_parts = [int(i) for i in (b_sel[1:] or ("32" if count == 2 else "7654"))][::-1]
    kept = [int(i) for i in (mask[1:] or "3210"[-count:])]
    both = a | b << 32
    result = c if "add" in mods else 0
    for i in range(count):

        def pick(index: int, type: str) -> int:
            return part(both >> (index * bits), type, f"{letter}0")

        value = primary(name, how, pick(a_parts[i], types[-2]), pick(b_parts[i], types[-1]))
        if "sat" in mods:
            value = clamp(value, bits, types[0])
        if "add" in mods:
            result += value if i in kept else 0
        else:
            result |= ((value if i in kept else c >> (i * bits)) % (1 << bits)) << (i * bits)
    return result % (1 << 32)


@pytest.mark.parametrize(
    "text",
    [
        "vadd4.u32.u32.u32 {d}, {a}, {b}, {c};",
        "vadd4.s32.s32.u32.sat {d}, {a}, {b}, {c};",
        "vadd4.s32.s32.s32.add {d}, {a}.b7531, {b}, {c};",
        "vsub4.u32.u32.u32.sat {d}.b20, {a}, {b}.b0011, {c};",
        "vavrg4.s32.s32.s32 {d}, {a}, {b}, {c};",
        "vavrg4.u32.u32.u32 {d}, {a}, {b}, {c};",
        "vabsdiff4.u32.u32.u32.add {d}, {a}, {b}, {c};",
        "vabsdiff4.u32.s32.s32 {d}, {a}, {b}, {c};",
        "vmin4.s32.s32.s32 {d}, {a}, {b}, {c};",
        "vmax4.u32.u32.s32.add {d}.b3, {a}, {b}, {c};",
        "vset4.u32.u32.gt {d}, {a}, {b}, {c};",
        "vset4.s32.u32.le.add {d}, {a}, {b}, {c};",
        "vadd2.u32.u32.u32.add {d}.h10, {a}.h12, {b}.h02, {c};",
        "vadd2.s32.s32.s32.sat {d}, {a}, {b}, {c};",
        "vsub2.s32.u32.s32 {d}.h0, {a}, {b}, {c};",
        "vavrg2.s32.s32.u32 {d}, {a}, {b}, {c};",
        "vabsdiff2.u32.s32.s32.add {d}.h1, {a}, {b}, {c};",
        "vmin2.u32.u32.u32 {d}, {a}.h31, {b}.h20, {c};",
        "vmax2.s32.s32.s32 {d}, {a}, {b}, {c};",
        "vset2.s32.s32.ge.add {d}, {a}, {b}, {c};",
        "vset2.u32.u32.ne {d}.h1, {a}, {b}, {c};",
    ],
)
def test_all_parts_at_once(text: str) -> None:
    got = apply(text, A, B, C)
    assert got.tolist() == [simd(text, int(a), int(b), int(c)) for a, b, c in zip(A, B, C)]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("vadd.u32.u32.u32 %a, %b, %c, %d;", "the third source is for .add, .min or .max"),
        ("vadd.u32.u32.u32.add %a.b0, %b, %c, %d;", "the third source is for .add, .min or .max"),
        ("vadd.u32.u32 %a, %b, %c;", "2 types where 3 are expected"),
        ("vmad.s32.s32.s32.po %a, -%b, %c, %d;", "may be negated, and none with .po"),
        ("vadd4.u32.u32.u32 %a, %b.b31, %c, %d;", "a selector that does not name 4 parts of 8 bits"),
        ("vadd2.u32.u32.u32 %a.h2, %b, %c, %d;", "a selector that does not name 2 parts of 16 bits"),
        ("vadd.u32.u32.u32 %a, %b.q1, %c;", "unknown name '%b.q1'"),
    ],
)
def test_wrong_forms_are_refused(text: str, message: str) -> None:
    with pytest.raises(simulator.PtxError, match=re.escape(message)):
        load(f".reg .b32 %a, %b, %c, %d; mov.b32 %b, 1; mov.b32 %c, %b; mov.b32 %d, %b; {text}")


def test_constants_are_operands_too() -> None:
    values: Any = np.arange(100, dtype=np.uint32)
    assert apply("vadd.u32.u32.u32.add {d}, {a}, 5, 7;", values).tolist() == [v + 12 for v in range(100)]
