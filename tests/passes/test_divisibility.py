"""What is known to divide each integer, and that it does in every run."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.ir.kernels import make
from tests.ir.strategies import kernels
from tilus.ir import Kernel, ScalarType, walk
from tilus.ir.interpreter import Schedule, bind
from tilus.ir.numerics import to_values
from tilus.ir.semantics import Block
from tilus.passes.divisibility import facts as facts_of

PARAMS = (
    "%x: i32, %u: u32, %flag: bool, %p: ptr<f16>, %a: global<f16, [m:16, 48], [k:8, 1]>, "
    "%b: global<f16, [?:4, k:8], [s:1, 0]>"
)


def known(body: str) -> dict[str, int]:
    """Return the divisors of the named values of a body."""
    return {v.name: d for v, d in facts_of(make(body, PARAMS)).divisors.items() if v.name}


def divisor_of(expression: str) -> int:
    body = """
    %c0 = constant {value = 0, dtype = i32}
    %c2 = constant {value = 2, dtype = i32}
    %c3 = constant {value = 3, dtype = i32}
    %c8 = constant {value = 8, dtype = i32}
    %c24 = constant {value = 24, dtype = i32}
    %m32 = constant {value = -32, dtype = i32}
    %u24 = constant {value = 24, dtype = u32}
    %m = dim %a {axis = 0}
    %x12 = assume %x {divisor = 12}
    %u12 = assume %u {divisor = 12}
    """
    return known(body + f"%v = {expression}")["v"]


@pytest.mark.parametrize(
    ("expression", "divisor"),
    [
        ("constant {value = 0, dtype = i32}", 0),
        ("constant {value = -48, dtype = i32}", 48),
        ("constant {value = 4294967296, dtype = i32}", 0),
        ("dim %a {axis = 0}", 16),
        ("dim %a {axis = 1}", 48),
        ("stride %a {axis = 0}", 8),
        ("dim %b {axis = 0}", 4),
        ("stride %b {axis = 1}", 0),
        ("block_id {axis = 0}", 1),
        ('binary %x12, %m {kind = "add"}', 4),
        ('binary %x12, %c0 {kind = "sub"}', 12),
        ('binary %x12, %c8 {kind = "mul"}', 96),
        ('binary %x, %c0 {kind = "mul"}', 0),
        ('binary %u12, %u24 {kind = "mul"}', 32),
        ('binary %u12, %u24 {kind = "add"}', 4),
        ('binary %x12, %c8 {kind = "mod"}', 4),
        ('binary %m, %c8 {kind = "mod"}', 8),
        ('binary %x12, %c3 {kind = "floordiv"}', 4),
        ('binary %x12, %m32 {kind = "floordiv"}', 1),
        ('binary %x12, %x {kind = "floordiv"}', 1),
        ('binary %x12, %c3 {kind = "shl"}', 96),
        ('binary %x12, %x {kind = "shl"}', 4),
        ('binary %m, %c3 {kind = "shr"}', 2),
        ('binary %x12, %c3 {kind = "shr"}', 1),
        ('binary %x12, %c24 {kind = "min"}', 12),
        ('binary %m, %c24 {kind = "max"}', 8),
        ('binary %x, %m32 {kind = "and"}', 32),
        ('binary %x12, %c3 {kind = "and"}', 4),
        ('binary %x12, %c0 {kind = "and"}', 0),
        ('binary %x12, %m32 {kind = "or"}', 4),
        ('binary %x12, %c24 {kind = "xor"}', 4),
        ("select %flag, %x12, %c8", 4),
        ("cast %x12 {dtype = i64}", 12),
        ("cast %x12 {dtype = i16}", 4),
        ("cast %x12 {dtype = u32}", 4),
        ("cast %x12 {dtype = u64}", 4),
        ("cast %u12 {dtype = i64}", 12),
        ("cast %u12 {dtype = i32}", 4),
        ("cast %m {dtype = u3}", 0),
        ("cast %c24 {dtype = u4}", 8),
        ("cast %flag {dtype = i32}", 1),
        ('unary %x12 {kind = "neg"}', 12),
        ('unary %x12 {kind = "not"}', 1),
        ("assume %x12 {divisor = 8}", 24),
    ],
)
def test_the_divisor_of(expression: str, divisor: int):
    assert divisor_of(expression) == divisor


def test_parameters_are_unknown_and_only_integers_and_pointers_are_told():
    found = known('%v = unary %flag {kind = "not"}')
    assert (found["x"], found["u"], found["p"]) == (1, 1, 1)
    assert not {"flag", "a", "v"} & set(found)


def test_a_pointer_keeps_what_it_moves_by():
    found = known(
        """
        %q = assume %p {divisor = 64}
        %x12 = assume %x {divisor = 12}
        %far = pointer_add %q, %x12
        %bytes = pointer_cast %far {dtype = u8}
        %odd = pointer_add %bytes, %x
        %start = pointer_of %a"""
    )
    assert found["q"] == 64
    # 12 elements of 2 bytes are 24 bytes.
    assert (found["far"], found["bytes"], found["odd"], found["start"]) == (8, 8, 1, 1)


def test_a_view_has_the_alignment_divisors_and_constants_of_what_it_is_made_of():
    found = facts_of(
        make(
            """
            %q = assume %p {divisor = 16}
            %n = assume %x {divisor = 64}
            %c1 = constant {value = 1, dtype = i32}
            %c40 = constant {value = 40, dtype = i32}
            %moved = pointer_add %q, %c40
            %w = global_view %moved, [%x, %c40], [%n, %c1] {dims = [none, none], steps = [none, none]}""",
            PARAMS,
        )
    )
    (type,) = found.views.values()
    assert (type.dims[0].divisor, type.dims[1], type.strides[0].divisor, type.strides[1]) == (1, 40, 64, 1)
    assert type.align == 16


def test_a_view_knows_what_its_operands_know():
    found = known(
        """
        %n = assume %x {divisor = 64}
        %c1 = constant {value = 1, dtype = i32}
        %w = global_view %p, [%x, %n], [%n, %c1] {dims = [none, none], steps = [none, 1]}
        %rows = dim %w {axis = 0}
        %columns = dim %w {axis = 1}
        %lead = stride %w {axis = 0}
        %last = stride %w {axis = 1}"""
    )
    assert (found["rows"], found["columns"], found["lead"], found["last"]) == (1, 64, 64, 1)


LOOP = """
%c0 = constant {value = 0, dtype = i32}
%c6 = constant {value = 6, dtype = i32}
%c8 = constant {value = 8, dtype = i32}
%c24 = constant {value = 24, dtype = i32}
%c32 = constant {value = 32, dtype = i32}
"""


def test_an_index_has_the_divisor_of_start_and_step():
    found = known(
        LOOP
        + "for %c24, %x, %c32, [] (%i: i32) {\nyield []\n}\nfor %c0, %x, %c6, [] (%j: i32) {\nyield []\n}"
    )
    assert (found["i"], found["j"]) == (8, 6)


def test_carried_values_keep_what_holds_in_every_turn():
    found = known(
        LOOP
        + """
        %r, %s, %t, %o = for %c0, %x, %c8, [%c0, %c24, %c0, %c32] (%i: i32, %a0: i32, %b0: i32, %c: i32, %d: i32) {
          %a1 = binary %a0, %c32 {kind = "add"}
          %b1 = binary %b0, %a0 {kind = "add"}
          %c1 = binary %c, %b0 {kind = "add"}
          if %flag () {
            continue [%a0, %c6, %c, %d]
          } () {
            yield []
          }
          yield [%a1, %b1, %c1, %d]
        }"""
    )
    # b may be 24, 24 + 32 n or 6; c sums them.
    assert (found["a0"], found["b0"], found["c"], found["d"]) == (32, 2, 2, 32)
    assert (found["r"], found["s"], found["t"], found["o"]) == (32, 2, 2, 32)


def test_a_loop_gives_what_its_breaks_hand_on():
    found = known(
        LOOP
        + """
        %r = loop [%x] (%s: i32) {
          if %flag () {
            break [%c24]
          } () {
            if %flag () {
              break [%c32]
            } () {
              yield []
            }
            yield []
          }
          yield [%s]
        }
        %q = for %c0, %x, %c8, [%c0] (%i: i32, %c: i32) {
          if %flag () {
            break [%c6]
          } () {
            yield []
          }
          yield [%c8]
        }"""
    )
    assert (found["s"], found["r"]) == (1, 8)
    assert (found["c"], found["q"]) == (8, 2)


def test_an_if_gives_what_both_branches_share():
    found = known(
        LOOP
        + """
        %r = if %flag () {
          yield [%c24]
        } () {
          yield [%c32]
        }"""
    )
    assert found["r"] == 8


class Recorder(dict):
    """The values of a block; checks each integer against its divisor as it is set."""

    def __init__(self, facts: dict, values: dict) -> None:
        super().__init__()
        self.facts = facts
        self.count = 0
        self.update(values)

    def __setitem__(self, value: object, result: object) -> None:
        self.check(value, result)
        super().__setitem__(value, result)

    def update(self, pairs: object) -> None:
        for value, result in dict(pairs).items():
            self[value] = result

    def check(self, value: object, result: object) -> None:
        if value in self.facts:
            found = int(to_values(result, value.type.dtype))
            divisor = self.facts[value]
            self.count += divisor != 1
            assert found == 0 if divisor == 0 else found % divisor == 0


@settings(max_examples=60, deadline=None)
@given(kernels(), st.integers(-100, 100), st.booleans())
def test_divisors_divide_in_every_run(kernel: Kernel, x: int, flag: bool):
    outputs = [np.zeros((64, 2, 4), v.type.dtype.numpy) for v in kernel.params[3:]]
    facts = facts_of(kernel).divisors
    integers = [v for o in walk(kernel.body) for v in o.results if isinstance(v.type, ScalarType)]
    assert all(v in facts for v in integers if v.type.dtype.is_integer)
    facts = {v: d for v, d in facts.items() if isinstance(v.type, ScalarType)}
    # Signed arithmetic is taken not to overflow, which random constants do.
    exact = {v: math.gcd(d, 2**31) if d else 0 for v, d in facts.items()}
    values = Recorder(exact, bind(kernel, [x, 0.5, flag, *outputs]))
    with np.errstate(all="ignore"):
        Schedule(Block(kernel, values, (0, 0, 0), (1, 1, 1), print)).finish(kernel.body)
