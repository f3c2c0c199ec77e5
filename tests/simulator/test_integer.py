"""Integer instructions against Python's integers."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from tests.simulator.support import apply, integers, signed, unsigned
from tilus import simulator

TYPES = ("u16", "s16", "u32", "s32", "u64", "s64")


def value(bits: int, kind: str, raw: int) -> int:
    return signed(int(raw), bits) if kind == "s" else int(raw)


def truncated(a: int, b: int) -> int:
    return abs(a) // abs(b) * (-1 if (a < 0) != (b < 0) else 1)


BINARY: dict[str, Callable[[int, int, int], int]] = {
    "add": lambda a, b, n: a + b,
    "sub": lambda a, b, n: a - b,
    "mul.lo": lambda a, b, n: a * b,
    "mul.hi": lambda a, b, n: (a * b) >> n,
    "min": lambda a, b, n: min(a, b),
    "max": lambda a, b, n: max(a, b),
    "div": lambda a, b, n: truncated(a, b),
    "rem": lambda a, b, n: a - truncated(a, b) * b,
}


@pytest.mark.parametrize("type", TYPES)
@pytest.mark.parametrize("name", BINARY)
def test_binary(name: str, type: str) -> None:
    kind, bits = type[0], int(type[1:])
    a, b = integers(bits, seed=1), integers(bits, seed=2)
    if name in ("div", "rem"):
        b = np.where(b == 0, 3, b).astype(b.dtype)
    got = apply(f"{name}.{type} {{d}}, {{a}}, {{b}};", a, b, result=bits)
    want = [
        unsigned(BINARY[name](value(bits, kind, x), value(bits, kind, y), bits), bits) for x, y in zip(a, b)
    ]
    assert got.tolist() == want


@pytest.mark.parametrize("type", ["u16", "s16", "u32", "s32"])
def test_wide_products(type: str) -> None:
    kind, bits = type[0], int(type[1:])
    a, b = integers(bits, seed=1), integers(bits, seed=2)
    c = integers(2 * bits, seed=3)
    got = apply(f"mul.wide.{type} {{d}}, {{a}}, {{b}};", a, b, result=2 * bits)
    product = [value(bits, kind, x) * value(bits, kind, y) for x, y in zip(a, b)]
    assert got.tolist() == [unsigned(p, 2 * bits) for p in product]
    got = apply(f"mad.wide.{type} {{d}}, {{a}}, {{b}}, {{c}};", a, b, c, result=2 * bits)
    assert got.tolist() == [unsigned(p + int(z), 2 * bits) for p, z in zip(product, c)]


@pytest.mark.parametrize("type", TYPES)
@pytest.mark.parametrize("part", ["lo", "hi"])
def test_mad(part: str, type: str) -> None:
    kind, bits = type[0], int(type[1:])
    a, b, c = (integers(bits, seed=s) for s in (1, 2, 3))
    got = apply(f"mad.{part}.{type} {{d}}, {{a}}, {{b}}, {{c}};", a, b, c, result=bits)
    shift = bits if part == "hi" else 0
    want = [
        unsigned((value(bits, kind, x) * value(bits, kind, y) >> shift) + int(z), bits)
        for x, y, z in zip(a, b, c)
    ]
    assert got.tolist() == want


@pytest.mark.parametrize("type", ["u32", "s32"])
@pytest.mark.parametrize("part", ["lo", "hi"])
def test_24_bit_products(part: str, type: str) -> None:
    a, b, c = (integers(32, seed=s) for s in (1, 2, 3))

    def low(x: int) -> int:
        return signed(int(x), 24) if type[0] == "s" else int(x) & 0xFFFFFF

    products = [low(x) * low(y) >> (16 if part == "hi" else 0) for x, y in zip(a, b)]
    assert apply(f"mul24.{part}.{type} {{d}}, {{a}}, {{b}};", a, b).tolist() == [
        unsigned(p, 32) for p in products
    ]
    got = apply(f"mad24.{part}.{type} {{d}}, {{a}}, {{b}}, {{c}};", a, b, c)
    assert got.tolist() == [unsigned(p + int(z), 32) for p, z in zip(products, c)]


@pytest.mark.parametrize(("name", "operation"), [("add", int.__add__), ("sub", int.__sub__)])
def test_saturation(name: str, operation: Callable[[int, int], int]) -> None:
    a, b = integers(32, seed=1), integers(32, seed=2)
    got = apply(f"{name}.sat.s32 {{d}}, {{a}}, {{b}};", a, b)
    want = [
        max(-(2**31), min(2**31 - 1, operation(signed(int(x), 32), signed(int(y), 32)))) for x, y in zip(a, b)
    ]
    assert got.tolist() == [unsigned(w, 32) for w in want]


@pytest.mark.parametrize("type", ["s16", "s32", "s64"])
def test_abs_and_neg(type: str) -> None:
    bits = int(type[1:])
    a = integers(bits)
    assert apply(f"abs.{type} {{d}}, {{a}};", a, result=bits).tolist() == [
        unsigned(abs(signed(int(x), bits)), bits) for x in a
    ]
    assert apply(f"neg.{type} {{d}}, {{a}};", a, result=bits).tolist() == [unsigned(-int(x), bits) for x in a]


@pytest.mark.parametrize("type", TYPES)
def test_sad(type: str) -> None:
    kind, bits = type[0], int(type[1:])
    a, b, c = (integers(bits, seed=s) for s in (1, 2, 3))
    got = apply(f"sad.{type} {{d}}, {{a}}, {{b}}, {{c}};", a, b, c, result=bits)
    want = [
        unsigned(abs(value(bits, kind, x) - value(bits, kind, y)) + int(z), bits) for x, y, z in zip(a, b, c)
    ]
    assert got.tolist() == want


@pytest.mark.parametrize("type", ["u16x2", "s16x2"])
@pytest.mark.parametrize("name", ["add", "min", "max"])
def test_packed_halves(name: str, type: str) -> None:
    a, b = integers(32, seed=1), integers(32, seed=2)
    got = apply(f"{name}.{type} {{d}}, {{a}}, {{b}};", a, b)
    operation = {"add": int.__add__, "min": min, "max": max}[name]
    for x, y, z in zip(a, b, got):
        for shift in (0, 16):
            u, v = (value(16, type[0], (int(w) >> shift) & 0xFFFF) for w in (x, y))
            assert (int(z) >> shift) & 0xFFFF == unsigned(operation(u, v), 16)


@pytest.mark.parametrize("word", [32, 64])
def test_carry_chains_add_and_subtract_wide_numbers(word: int) -> None:
    low_a, low_b = integers(word, seed=1), integers(word, seed=2)
    high_a, high_b = integers(word, seed=3), integers(word, seed=4)
    for name, operation in (("add", int.__add__), ("sub", int.__sub__)):
        text = f".reg .b{word} %l; {name}.cc.u{word} %l, {{a}}, {{b}}; {name}c.u{word} {{d}}, {{c}}, {{e}};"
        got = apply(text, low_a, low_b, high_a, high_b, result=word)
        for la, lb, ha, hb, high in zip(low_a, low_b, high_a, high_b, got):
            full = operation(int(ha) << word | int(la), int(hb) << word | int(lb))
            assert int(high) == unsigned(full >> word, word)


def test_multiply_with_carry() -> None:
    a, b, c = (integers(32, seed=s) for s in (1, 2, 3))
    text = ".reg .b32 %l; mad.lo.cc.u32 %l, {a}, {b}, {c}; madc.hi.u32 {d}, {a}, {b}, 0;"
    got = apply(text, a, b, c)
    assert got.tolist() == [(int(x) * int(y) + int(z)) >> 32 for x, y, z in zip(a, b, c)]


@pytest.mark.parametrize("types", ["u32.u32", "s32.u32", "u32.s32", "s32.s32"])
def test_dot_products(types: str) -> None:
    first, second = types.split(".")
    a, b, c = (integers(32, seed=s) for s in (1, 2, 3))

    def parts(word: int, bits: int, type: str) -> list[int]:
        return [value(bits, type[0], (int(word) >> s) & ((1 << bits) - 1)) for s in range(0, 32, bits)]

    got = apply(f"dp4a.{types} {{d}}, {{a}}, {{b}}, {{c}};", a, b, c)
    want = [
        sum(p * q for p, q in zip(parts(x, 8, first), parts(y, 8, second))) + int(z)
        for x, y, z in zip(a, b, c)
    ]
    assert got.tolist() == [unsigned(w, 32) for w in want]
    for half, at in (("lo", 0), ("hi", 2)):
        got = apply(f"dp2a.{half}.{types} {{d}}, {{a}}, {{b}}, {{c}};", a, b, c)
        want = [
            sum(p * q for p, q in zip(parts(x, 16, first), parts(y, 8, second)[at : at + 2])) + int(z)
            for x, y, z in zip(a, b, c)
        ]
        assert got.tolist() == [unsigned(w, 32) for w in want]


VIDEO = {
    "vadd": lambda a, b: a + b,
    "vsub": lambda a, b: a - b,
    "vavrg": lambda a, b: (a + b + 1) >> 1 if a + b >= 0 else (a + b) >> 1,
    "vabsdiff": lambda a, b: abs(a - b),
    "vmin": min,
    "vmax": max,
}


@pytest.mark.parametrize("count", [2, 4])
@pytest.mark.parametrize("name", VIDEO)
def test_video_instructions(name: str, count: int) -> None:
    bits = 32 // count
    a, b = integers(32, seed=1), integers(32, seed=2)
    zero = np.zeros_like(a)
    got = apply(f"{name}{count}.s32.s32.s32 {{d}}, {{a}}, {{b}}, {{c}};", a, b, zero)
    for x, y, z in zip(a, b, got):
        for shift in range(0, 32, bits):
            u, v = (signed(int(w) >> shift, bits) for w in (x, y))
            assert (int(z) >> shift) & ((1 << bits) - 1) == unsigned(VIDEO[name](u, v), bits)


def test_a_modifier_that_does_not_exist_is_refused_with_text_and_line() -> None:
    with pytest.raises(simulator.PtxError, match=r"PTX line \d+: .*add\.hi\.u32"):
        apply("add.hi.u32 {d}, {a}, {b};", integers(32), integers(32))
