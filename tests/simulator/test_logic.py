"""Bit instructions against Python's integers."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.simulator.support import apply, integers, signed, unsigned

WORDS = st.lists(st.integers(0, 2**32 - 1), min_size=1, max_size=20)


@pytest.mark.parametrize("bits", [16, 32, 64])
@pytest.mark.parametrize(
    ("name", "function"), [("and", int.__and__), ("or", int.__or__), ("xor", int.__xor__)]
)
def test_binary(name: str, function: object, bits: int) -> None:
    a, b = integers(bits, seed=1), integers(bits, seed=2)
    got = apply(f"{name}.b{bits} {{d}}, {{a}}, {{b}};", a, b, result=bits)
    assert got.tolist() == [function(int(x), int(y)) for x, y in zip(a, b)]  # type: ignore[operator]


@pytest.mark.parametrize("bits", [16, 32, 64])
def test_unary(bits: int) -> None:
    a = integers(bits)
    assert apply(f"not.b{bits} {{d}}, {{a}};", a, result=bits).tolist() == [
        unsigned(~int(x), bits) for x in a
    ]
    assert apply(f"cnot.b{bits} {{d}}, {{a}};", a, result=bits).tolist() == [int(x == 0) for x in a]


def test_logic_of_predicates() -> None:
    p, q = np.array([0, 0, 1, 1]), np.array([0, 1, 0, 1])
    zero = np.zeros(4, np.uint32)
    for name, want in (("and", p & q), ("or", p | q), ("xor", p ^ q)):
        got = apply(f"{name}.pred {{d}}, {{p}}, {{q}};", zero, predicates=(p, q), result="pred")
        assert got.tolist() == want.tolist()
    assert apply("not.pred {d}, {p};", zero, predicates=(p, q), result="pred").tolist() == (1 - p).tolist()


@pytest.mark.parametrize("table", range(0, 256, 5))
def test_lop3_is_its_truth_table(table: int) -> None:
    a, b, c = (integers(32, 40, seed=s) for s in (1, 2, 3))
    got = apply(f"lop3.b32 {{d}}, {{a}}, {{b}}, {{c}}, {table};", a, b, c)
    for x, y, z, value in zip(a, b, c, got):
        want = 0
        for bit in range(32):
            row = (int(x) >> bit & 1) * 4 + (int(y) >> bit & 1) * 2 + (int(z) >> bit & 1)
            want |= (table >> row & 1) << bit
        assert int(value) == want


def test_lop3_tables_that_compilers_use() -> None:
    a, b, c = (integers(32, 40, seed=s) for s in (1, 2, 3))
    for table in (
        0xC0,
        0xFC,
        0x3C,
        0x80,
        0xFE,
        0x96,
        0xEA,
        0xF8,
        0xE2,
        0xCA,
        0x6A,
        0x78,
        0xA8,
        0xE8,
        0xD8,
        0xB8,
        0x1E,
    ):
        test_lop3_is_its_truth_table(table)
    got = apply(
        ".reg .b32 %z; lop3.or.b32 %z|{d}, {a}, {b}, {c}, 0x80, {p};",
        a,
        b,
        c,
        predicates=(np.zeros(40),),
        result="pred",
    )
    assert got.tolist() == [int((int(x) & int(y) & int(z)) != 0) for x, y, z in zip(a, b, c)]


@pytest.mark.parametrize("type", ["u16", "s16", "u32", "s32", "u64", "s64"])
def test_shifts(type: str) -> None:
    bits = int(type[1:])
    a, b = integers(bits, seed=1), integers(32, seed=2)
    got = apply(f"shl.b{bits} {{d}}, {{a}}, {{b}};", a, b, result=bits)
    assert got.tolist() == [unsigned(int(x) << int(y), bits) if y < bits else 0 for x, y in zip(a, b)]
    got = apply(f"shr.{type} {{d}}, {{a}}, {{b}};", a, b, result=bits)
    value = (lambda x: signed(int(x), bits)) if type[0] == "s" else int
    assert got.tolist() == [unsigned(value(x) >> min(int(y), bits), bits) for x, y in zip(a, b)]
    for amount in (0, 5, bits - 1, bits, 200):
        got = apply(f"shr.{type} {{d}}, {{a}}, {amount};", a, result=bits)
        assert got.tolist() == [unsigned(value(x) >> min(amount, bits), bits) for x in a]


@pytest.mark.parametrize("mode", ["wrap", "clamp"])
@pytest.mark.parametrize("direction", ["l", "r"])
def test_funnel_shift(direction: str, mode: str) -> None:
    a, b, c = (integers(32, seed=s) for s in (1, 2, 3))
    got = apply(f"shf.{direction}.{mode}.b32 {{d}}, {{a}}, {{b}}, {{c}};", a, b, c)
    for x, y, z, value in zip(a, b, c, got):
        n = int(z) & 31 if mode == "wrap" else min(int(z), 32)
        both = int(y) << 32 | int(x)
        want = (both << n >> 32) if direction == "l" else both >> n
        assert int(value) == unsigned(want, 32)


@pytest.mark.parametrize("bits", [32, 64])
def test_counts(bits: int) -> None:
    a = integers(bits)
    assert apply(f"popc.b{bits} {{d}}, {{a}};", a).tolist() == [bin(int(x)).count("1") for x in a]
    assert apply(f"clz.b{bits} {{d}}, {{a}};", a).tolist() == [bits - int(x).bit_length() for x in a]
    got = apply(f"brev.b{bits} {{d}}, {{a}};", a, result=bits)
    assert got.tolist() == [int(f"{int(x):0{bits}b}"[::-1], 2) for x in a]


@pytest.mark.parametrize("type", ["u32", "s32", "u64", "s64"])
def test_bfind(type: str) -> None:
    bits = int(type[1:])
    a = integers(bits)

    def find(raw: int) -> int:
        value = int(raw)
        if type[0] == "s" and value >> (bits - 1):
            value = unsigned(~value, bits)
        return value.bit_length() - 1

    assert apply(f"bfind.{type} {{d}}, {{a}};", a).tolist() == [unsigned(find(x), 32) for x in a]
    want = [unsigned(bits - 1 - find(x) if find(x) >= 0 else -1, 32) for x in a]
    assert apply(f"bfind.shiftamt.{type} {{d}}, {{a}};", a).tolist() == want


@pytest.mark.parametrize("type", ["u32", "s32", "u64", "s64"])
def test_bfe(type: str) -> None:
    bits = int(type[1:])
    a, b, c = integers(bits, seed=1), integers(32, seed=2), integers(32, seed=3)
    got = apply(f"bfe.{type} {{d}}, {{a}}, {{b}}, {{c}};", a, b, c, result=bits)
    for x, y, z, value in zip(a, b, c, got):
        # The ISA's own loop.
        position, length, msb = int(y) & 255, int(z) & 255, bits - 1
        sign = 0
        if type[0] == "s" and length:
            sign = int(x) >> min(position + length - 1, msb) & 1
        want = 0
        for i in range(bits):
            bit = int(x) >> (position + i) & 1 if i < length and position + i <= msb else sign
            want |= bit << i
        assert int(value) == want


@pytest.mark.parametrize("bits", [32, 64])
def test_bfi(bits: int) -> None:
    a, b, c, e = integers(bits, seed=1), integers(bits, seed=2), integers(32, seed=3), integers(32, seed=4)
    got = apply(f"bfi.b{bits} {{d}}, {{a}}, {{b}}, {{c}}, {{e}};", a, b, c, e, result=bits)
    for x, y, p, n, value in zip(a, b, c, e, got):
        want = int(y)
        for i in range(min(int(n) & 255, bits)):
            place = (int(p) & 255) + i
            if place < bits:
                want = want & ~(1 << place) | (int(x) >> i & 1) << place
        assert int(value) == want


@settings(max_examples=40, deadline=None)
@given(WORDS, WORDS, WORDS)
def test_prmt_with_any_selector(first: list[int], second: list[int], selectors: list[int]) -> None:
    count = min(len(first), len(second), len(selectors))
    a, b, c = (np.array(v[:count], np.uint32) for v in (first, second, selectors))

    def permuted(x: int, y: int, selector: int) -> int:
        pool = [(y << 32 | x) >> (8 * i) & 255 for i in range(8)]
        out = 0
        for i in range(4):
            pick = selector >> (4 * i) & 15
            byte = pool[pick & 7]
            out |= ((255 if byte & 128 else 0) if pick & 8 else byte) << (8 * i)
        return out

    want = [permuted(int(x), int(y), int(z)) for x, y, z in zip(a, b, c)]
    assert apply("prmt.b32 {d}, {a}, {b}, {c};", a, b, c).tolist() == want
    constant = int(c[0]) & 0xFFFF
    got = apply(f"prmt.b32 {{d}}, {{a}}, {{b}}, {constant};", a, b)
    assert got.tolist() == [permuted(int(x), int(y), constant) for x, y in zip(a, b)]


@pytest.mark.parametrize(
    ("mode", "rows"),
    [
        ("f4e", (0x3210, 0x4321, 0x5432, 0x6543)),
        ("b4e", (0x5670, 0x6701, 0x7012, 0x0123)),
        ("rc8", (0x0000, 0x1111, 0x2222, 0x3333)),
        ("ecl", (0x3210, 0x3211, 0x3222, 0x3333)),
        ("ecr", (0x0000, 0x1110, 0x2210, 0x3210)),
        ("rc16", (0x1010, 0x3232, 0x1010, 0x3232)),
    ],
)
def test_prmt_modes(mode: str, rows: tuple[int, ...]) -> None:
    a, b = np.full(4, 0x33221100, np.uint32), np.full(4, 0x77665544, np.uint32)
    got = apply(f"prmt.b32.{mode} {{d}}, {{a}}, {{b}}, {{c}};", a, b, np.arange(4, dtype=np.uint32))
    assert got.tolist() == [int("".join(f"{digit}{digit}" for digit in f"{row:04x}"), 16) for row in rows]


def test_selection_and_packing() -> None:
    a, b = integers(32, seed=1), integers(32, seed=2)
    p = np.arange(len(a)) % 2
    assert apply("selp.b32 {d}, {a}, {b}, {p};", a, b, predicates=(p,)).tolist() == np.where(p, a, b).tolist()
    assert apply("mov.b64 {d}, {{{a}, {b}}};", a, b, result=64).tolist() == [
        int(y) << 32 | int(x) for x, y in zip(a, b)
    ]
    wide = integers(64)
    assert apply(".reg .b32 %h; mov.b64 {{{d}, %h}}, {a};", wide).tolist() == [
        int(x) & 0xFFFFFFFF for x in wide
    ]
    assert apply(".reg .b32 %l; mov.b64 {{%l, {d}}}, {a};", wide).tolist() == [int(x) >> 32 for x in wide]
    text = ".reg .b16 %l<4>; mov.b64 {{%l0, %l1, %l2, %l3}}, {a}; mov.b32 {d}, {{%l3, %l0}};"
    assert apply(text, wide).tolist() == [(int(x) & 0xFFFF) << 16 | int(x) >> 48 for x in wide]


def test_slct_takes_the_first_unless_negative() -> None:
    a, b, c = (integers(32, seed=s) for s in (1, 2, 3))
    got = apply("slct.b32.s32 {d}, {a}, {b}, {c};", a, b, c)
    assert got.tolist() == [int(x) if signed(int(z), 32) >= 0 else int(y) for x, y, z in zip(a, b, c)]


def test_masks_and_extensions() -> None:
    a, b = integers(32, seed=1) % 40, integers(32, seed=2) % 40
    got = apply("bmsk.clamp.b32 {d}, {a}, {b};", a, b)
    assert got.tolist() == [
        sum(1 << i for i in range(int(x), min(int(x) + int(y), 32))) for x, y in zip(a, b)
    ]
    value = integers(32, seed=3)
    got = apply("szext.clamp.s32 {d}, {a}, {b};", value, b)
    want = [
        unsigned(signed(int(x), int(n)) if 0 < n < 32 else (0 if n == 0 else int(x)), 32)
        for x, n in zip(value, b)
    ]
    assert got.tolist() == want


def test_fns_finds_the_nth_set_bit() -> None:
    mask = np.full(6, 0b1011_0000_1001, np.uint32)
    base = np.array([0, 4, 4, 11, 3, 5], np.uint32)
    offset = np.array([1, 1, 2, -2, 0, 0], np.int32).view(np.uint32)
    assert apply("fns.b32 {d}, {a}, {b}, {c};", mask, base, offset).tolist() == [0, 8, 9, 9, 3, 0xFFFFFFFF]
