"""Operations, their schemas, regions and the rewriter."""

from __future__ import annotations

import dataclasses

import pytest

from tests.ir.kernels import everything, make
from tilus.dtypes import float16, float32, int32
from tilus.errors import Location, TypeMismatch
from tilus.ir import (
    OPCODES,
    Builder,
    GlobalType,
    Kernel,
    Operation,
    Region,
    ScalarType,
    Symbol,
    Value,
    ops,
    schema,
    walk,
)
from tilus.ir.core import is_required
from tilus.ir.printer import print_kernel
from tilus.ir.rewrite import Rewriter
from tilus.ir.verifier import verify

X = Value(ScalarType(int32), "x")
Y = Value(ScalarType(float32), "y")


def test_an_operation_is_made_by_place_or_by_name_and_infers_its_results():
    by_place, by_name = ops.Binary("add", X, X), ops.Binary(kind="add", a=X, b=X)
    assert by_place.result.type == by_name.result.type == ScalarType(int32)
    assert list(by_place.inputs()) == [X, X]
    assert by_place.attributes() == {"kind": "add"}


def test_what_must_be_given_may_follow_what_may_be_left_out():
    body = Region((Value(ScalarType(int32)),), (ops.Yield(),))
    assert ops.For(X, X, X, body=body).inits == ()
    assert ops.For(X, X, X, (), 3, 0, body).stages == 3
    with pytest.raises(TypeError, match="for needs body="):
        ops.For(X, X, X)
    with pytest.raises(TypeError):
        ops.Binary("add", X)


def test_what_a_field_needs_is_told():
    assert is_required(ops.For, "body")
    assert is_required(ops.LoadGlobal, "shape")
    assert not is_required(ops.LoadGlobal, "mask")
    assert not is_required(ops.For, "stages")


def test_an_error_carries_the_place_of_the_operation():
    here = Location("k.py", 3)
    with pytest.raises(TypeMismatch) as caught:
        ops.Binary("add", X, Y, loc=here)
    assert caught.value.location == here
    builder = Builder()
    builder.loc = here
    with builder.region(), pytest.raises(TypeMismatch) as caught:
        builder.emit(ops.Unary, "exp", X)
    assert caught.value.location == here


def test_a_copy_keeps_results_or_infers_them_anew():
    made = ops.Binary("add", X, X)
    assert made.replace(kind="mul").result is made.result
    copied = made.with_operands(lambda value: Y)
    assert copied.result is not made.result
    assert copied.result.type == ScalarType(float32)
    kept = made.with_operands(lambda value: X, results=made.results)
    assert kept.result is made.result


@pytest.mark.parametrize("cls", OPCODES.values(), ids=str)
def test_every_operation_is_declared_and_documented(cls: type[Operation]):
    assert cls.__doc__
    assert OPCODES[cls.opcode] is cls
    assert {name for name, _ in schema(cls)} == {f.name for f in dataclasses.fields(cls)} - {"results", "loc"}
    assert not (cls.pure and cls.terminator)


def test_effects_are_declared():
    effects = {
        o.opcode: {(e.kind, e.space, e.proxy) for e in o.effects()}
        for o in walk(everything().body)
        if o.effects()
    }
    assert effects["copy_async"] == {("read", "global", "copy_async"), ("write", "shared", "copy_async")}
    assert effects["copy_bulk"] == {("read", "global", "async"), ("write", "shared", "async")}
    assert effects["load_shared"] == {("read", "shared", "generic")}
    assert effects["atomic"] == {("read", "global", "generic"), ("write", "global", "generic")}
    assert not {opcode for opcode in effects if OPCODES[opcode].pure}


def test_a_gather_reads_the_memory_that_its_tensor_lies_in():
    body = """
    %i = iota {shape = [4]}
    %s = alloc_shared {dtype = i32, shape = [4]}
    %v = gather %s, [%i], _"""
    *_, gather, _ = make(body).body.ops
    assert [(e.space, e.value) for e in gather.effects()] == [("shared", gather.tensor)]


def test_walking_meets_outer_operations_first():
    body = """
    for %x, %x, %x, [] (%i: i32) {
      %a = unary %i {kind = "neg"}
      if %f () {
        break []
      } () {
        yield []
      }
      yield []
    }
    sync"""
    kernel = make(body, "%x: i32, %f: bool")
    assert [o.opcode for o in walk(kernel.body)] == [
        "for",
        "unary",
        "if",
        "break",
        "yield",
        "yield",
        "sync",
        "return",
    ]


def test_a_rewriter_that_changes_nothing_copies_the_kernel():
    kernel = everything()
    copied = Rewriter().run(kernel)
    verify(copied)
    assert print_kernel(copied) == print_kernel(kernel)
    assert not set(walk(kernel.body)) & set(walk(copied.body))


class Doubler(Rewriter):
    """Replace each negation by a product with minus two."""

    def visit(self, operation: Operation) -> None:
        if isinstance(operation, ops.Unary) and operation.kind == "neg":
            two = self.emit(ops.Constant(-2, int32))
            made = self.emit(ops.Binary("mul", self.value(operation.x), two.result))
            self.replace(operation, made.results)
        else:
            self.copy(operation)


def test_a_rewriter_replaces_operations_at_any_depth():
    body = """
    %r = for %x, %x, %x, [%x] (%i: i32, %c: i32) {
      %n = unary %c {kind = "neg"}
      yield [%n]
    }
    %m = unary %r {kind = "neg"}
    print [%m] {format = ""}"""
    made = Doubler().run(make(body, "%x: i32"))
    verify(made)
    text = print_kernel(made)
    assert text.count("value = -2") == text.count('kind = "mul"') == 2
    assert "neg" not in text
    assert "%m = binary %r" in text


def test_sizes_that_a_launch_passes_are_listed_once():
    a = Value(GlobalType(float16, (Symbol("m"), Symbol("k")), (Symbol("k"), 1)), "a")
    b = Value(GlobalType(float16, (4, Symbol("n")), (Symbol("s"), 1)), "b")
    c = Value(GlobalType(float16, (Symbol("s"), 1), (1, 1)), "c")
    base = make("")
    kernel = Kernel("k", (a, b, X, c), base.grid, base.body)
    found = [(s.name, p.name, kind, axis) for s, p, kind, axis in kernel.symbols()]
    assert found == [("m", "a", "dim", 0), ("k", "a", "dim", 1), ("n", "b", "dim", 1), ("s", "c", "dim", 0)]
    assert kernel.threads == 128
