"""Comparisons of every type against Python's."""

from __future__ import annotations

import math
import operator
from typing import Any

import numpy as np
import pytest

from tests.simulator.support import apply, floats, integers, signed

INTEGER = {
    "eq": operator.eq,
    "ne": operator.ne,
    "lt": operator.lt,
    "le": operator.le,
    "gt": operator.gt,
    "ge": operator.ge,
}
UNSIGNED = {"lo": operator.lt, "ls": operator.le, "hi": operator.gt, "hs": operator.ge}


@pytest.mark.parametrize("type", ["u16", "s16", "u32", "s32", "u64", "s64"])
def test_integers(type: str) -> None:
    bits = int(type[1:])
    a, b = integers(bits, 60, seed=1), integers(bits, 60, seed=2)
    b = np.where(np.arange(60) % 4 == 0, a, b).astype(a.dtype)
    value = (lambda x: signed(int(x), bits)) if type[0] == "s" else int
    table = INTEGER if type[0] == "s" else {**INTEGER, **UNSIGNED}
    for name, function in table.items():
        got = apply(f"setp.{name}.{type} {{d}}, {{a}}, {{b}};", a, b, result="pred")
        assert got.tolist() == [int(function(value(x), value(y))) for x, y in zip(a, b)]


def float_comparison(name: str, x: float, y: float) -> bool:
    nan = math.isnan(x) or math.isnan(y)
    if name == "num":
        return not nan
    if name == "nan":
        return nan
    if name.endswith("u"):
        return nan or INTEGER[name[:-1]](x, y)
    return not nan and INTEGER[name](x, y)


FLOAT_NAMES = ("eq", "ne", "lt", "le", "gt", "ge", "equ", "neu", "ltu", "leu", "gtu", "geu", "num", "nan")


@pytest.mark.parametrize("bits", [16, 32, 64])
def test_floats(bits: int) -> None:
    a, b = floats(bits, 80, seed=1), floats(bits, 80, seed=2)
    b = np.where(np.arange(80) % 4 == 0, a, b).astype(a.dtype)
    for name in FLOAT_NAMES:
        got = apply(f"setp.{name}.f{bits} {{d}}, {{a}}, {{b}};", a, b, result="pred")
        assert got.tolist() == [int(float_comparison(name, float(x), float(y))) for x, y in zip(a, b)]


def test_bfloat_and_packed() -> None:
    a, b = floats(32, 80, seed=1), floats(32, 80, seed=2)
    x, y = ((v.view(np.uint32) >> 16).astype(np.uint16) for v in (a, b))
    values = [[float(np.array(int(c) << 16, np.uint32).view(np.float32)) for c in v] for v in (x, y)]
    got = apply("setp.lt.bf16 {d}, {a}, {b};", x, y, result="pred")
    assert got.tolist() == [int(u < v) for u, v in zip(*values)]
    p, q = floats(16, 80, seed=3), floats(16, 80, seed=4)
    got = apply(
        ".reg .pred %h; setp.gt.f16x2 {d}|%h, {a}, {b};", p.view(np.uint32), q.view(np.uint32), result="pred"
    )
    assert got.tolist() == (p > q)[::2].astype(int).tolist()
    got = apply(
        ".reg .pred %l; setp.gt.f16x2 %l|{d}, {a}, {b};", p.view(np.uint32), q.view(np.uint32), result="pred"
    )
    assert got.tolist() == (p > q)[1::2].astype(int).tolist()


@pytest.mark.parametrize("boolean", ["and", "or", "xor"])
def test_combination_with_a_predicate_and_its_complement(boolean: str) -> None:
    a, b = integers(32, 60, seed=1), integers(32, 60, seed=2)
    c = (np.arange(60) % 3 == 0).astype(int)
    combine: Any = {"and": operator.and_, "or": operator.or_, "xor": operator.xor}[boolean]
    less = [int(x) < int(y) for x, y in zip(a, b)]
    got = apply(f"setp.lt.{boolean}.u32 {{d}}, {{a}}, {{b}}, {{p}};", a, b, predicates=(c,), result="pred")
    assert got.tolist() == [int(combine(x, bool(y))) for x, y in zip(less, c)]
    text = f".reg .pred %o; setp.lt.{boolean}.u32 %o|{{d}}, {{a}}, {{b}}, !{{p}};"
    got = apply(text, a, b, predicates=(c,), result="pred")
    assert got.tolist() == [int(combine(not x, not y)) for x, y in zip(less, c)]


def test_flush_to_zero_compares_subnormals_as_zero() -> None:
    a, b = np.float32([1e-40, 1e-40]), np.float32([0.0, -1e-40])
    assert apply("setp.eq.ftz.f32 {d}, {a}, {b};", a, b, result="pred").tolist() == [1, 1]
    assert apply("setp.eq.f32 {d}, {a}, {b};", a, b, result="pred").tolist() == [0, 0]


def test_set_gives_ones_or_one() -> None:
    a, b = floats(32, 60, seed=1), floats(32, 60, seed=2)
    less = a < b
    assert apply("set.lt.u32.f32 {d}, {a}, {b};", a, b).tolist() == np.where(less, 0xFFFFFFFF, 0).tolist()
    assert (
        apply("set.lt.f32.f32 {d}, {a}, {b};", a, b).view(np.float32).tolist() == less.astype(float).tolist()
    )
    p, q = floats(16, 60, seed=3), floats(16, 60, seed=4)
    got = apply("set.ge.f16x2.f16x2 {d}, {a}, {b};", p.view(np.uint32), q.view(np.uint32)).view(np.float16)
    assert got.tolist() == (p >= q).astype(float).tolist()
    got = apply("set.ge.u32.f16x2 {d}, {a}, {b};", p.view(np.uint32), q.view(np.uint32)).view(np.uint16)
    assert got.tolist() == np.where(p >= q, 0xFFFF, 0).tolist()
