"""Expressions that the host computes: in Python, in C, as JSON, and read from text and from the grid of a kernel."""

from __future__ import annotations

import subprocess
from pathlib import Path
from random import Random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import tilus
from tests.runtime import kernels
from tilus import Tensor, constexpr, float32, int32, int64
from tilus.errors import LaunchError, Location, SyntaxNotSupported, TypeMismatch
from tilus.ir import Kernel, Region, ops
from tilus.runtime import aot_text
from tilus.runtime.host_expression import (
    OPERATIONS,
    Expression,
    evaluator,
    from_json,
    grid_of,
    parse,
    simplify,
    to_c,
    to_json,
    to_text,
)

SIZES = {("size", "m"): 37, ("size", "k"): 4096, ("scalar", "s"): -5}
_BINARY = [name for name in OPERATIONS if name not in ("neg", "abs", "not", "select")]

leaf = st.integers(-100, 100) | st.sampled_from(list(SIZES))


def grown(inner: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return (
        st.tuples(st.sampled_from(_BINARY), inner, inner)
        | st.tuples(st.sampled_from(["neg", "abs", "not"]), inner)
        | st.tuples(st.just("select"), inner, inner, inner)
    )


expressions = st.recursive(leaf, grown, max_leaves=8)


def reference(expression: Any) -> int:
    """Compute an expression by Python's own operators, written down once more."""
    if isinstance(expression, int):
        return expression
    if expression in SIZES:
        return SIZES[expression]
    name = expression[0]
    if name == "select":
        return reference(expression[2]) if reference(expression[1]) else reference(expression[3])
    if name == "and":
        return int(bool(reference(expression[1])) and bool(reference(expression[2])))
    if name == "or":
        return int(bool(reference(expression[1])) or bool(reference(expression[2])))
    values = [reference(operand) for operand in expression[1:]]
    text = {
        "add": "{} + {}", "sub": "{} - {}", "mul": "{} * {}", "floordiv": "{} // {}", "mod": "{} % {}",
        "min": "min({}, {})", "max": "max({}, {})", "neg": "-{}", "abs": "abs({})", "eq": "{} == {}",
        "ne": "{} != {}", "lt": "{} < {}", "le": "{} <= {}", "gt": "{} > {}", "ge": "{} >= {}",
        "not": "not {}",
    }[name]  # fmt: skip
    return int(eval(text.format(*(f"({value})" for value in values))))


def attempt(function: Any) -> int | None:
    try:
        return int(function())
    except ZeroDivisionError:
        return None


@given(expressions)
def test_evaluates_as_python_does(expression: Expression) -> None:
    assert attempt(lambda: evaluator(expression)(SIZES)) == attempt(lambda: reference(expression))


@given(expressions)
def test_json_gives_the_expression_back(expression: Expression) -> None:
    assert from_json(to_json(expression)) == expression


@given(expressions)
def test_simplifying_keeps_the_value(expression: Expression) -> None:
    def rebuild(node: Any) -> Expression:
        if isinstance(node, int) or node in SIZES:
            return node
        return simplify(node[0], *(rebuild(operand) for operand in node[1:]))

    expected = attempt(lambda: reference(expression))
    if expected is not None:
        assert attempt(lambda: evaluator(rebuild(expression))(SIZES)) == expected


def random_expression(random: Random, depth: int) -> Expression:
    if depth == 0 or random.random() < 0.2:
        return random.choice([random.randint(-20, 20), *SIZES])
    name = random.choice(list(OPERATIONS))
    count = {"neg": 1, "abs": 1, "not": 1, "select": 3}.get(name, 2)
    return (name, *(random_expression(random, depth - 1) for _ in range(count)))


def test_c_computes_the_same(c_compiler: str, tmp_path: Path) -> None:
    random = Random(7)
    names = {("size", "m"): "m", ("size", "k"): "k", ("scalar", "s"): "s"}
    many = [("floordiv", a, b) for a in (-7, 7, 6, 0) for b in (-3, 3, 0)]
    many += [("mod", *operands) for _, *operands in many]
    many += [random_expression(random, 4) for _ in range(400)]
    # C computes in 64 bits; keep to what fits.
    many = [e for e in many if all(abs(v) < 2**62 for v in parts(e))]
    assert len(many) > 300
    helpers = "\n".join(text.replace("static", "static inline") for text in aot_text.HELPERS.values())
    show = 'if (invalid) printf("-\\n"); else printf("%" PRId64 "\\n", result);'
    lines = "\n".join(f"    invalid = 0; result = {to_c(e, names)}; {show}" for e in many)
    (tmp_path / "main.c").write_text(
        f"#include <inttypes.h>\n#include <stdint.h>\n#include <stdio.h>\n{helpers}\n"
        "int main(void) {\n    int64_t m = 37, k = 4096, s = -5, result; int invalid;\n"
        f"{lines}\n    return 0;\n}}\n"
    )
    subprocess.run([c_compiler, "-std=c99", "-o", tmp_path / "main", tmp_path / "main.c"], check=True)
    printed = subprocess.run([tmp_path / "main"], capture_output=True, text=True, check=True).stdout.split()
    for expression, shown in zip(many, printed, strict=True):
        expected = attempt(lambda e=expression: evaluator(e)(SIZES))
        assert shown == ("-" if expected is None else str(expected)), to_text(expression)
    assert sum(shown != "-" for shown in printed) > 200


def parts(expression: Any) -> list[int]:
    """Return the values of all parts of an expression that have one."""
    value = attempt(lambda: reference(expression))
    own = [] if value is None else [value]
    if isinstance(expression, tuple) and expression not in SIZES:
        return own + [v for operand in expression[1:] for v in parts(operand)]
    return own


def test_grid_of_a_kernel_is_an_expression_of_its_sizes() -> None:
    source = kernels.copy_rows.source
    values = source.complete({"dtype": float32})
    x, y, z = grid_of(source.trace(values, source.default_types(values)))
    environment = {("size", "m"): 9, ("size", "n"): 65}
    assert [evaluator(e)(environment) for e in (x, y, z)] == [3, 3, 1]
    assert to_text(x) == "((n + 31) // 32)"


def test_grid_may_use_scalars_and_strides() -> None:
    @tilus.kernel
    def program(x: Tensor[float32, "m n"], s: int32, *, block: constexpr = 16):
        m, n = x.shape
        tilus.grid(tilus.min(n // block, s * 2), tilus.max(m, 1), x.strides[0] % 7, warps=1)

    source = program.source
    values = source.complete({})
    extents = grid_of(source.trace(values, source.default_types(values)))

    def at(m: int, n: int, s: int) -> list[int]:
        environment = {("size", "m"): m, ("size", "n"): n, ("scalar", "s"): s}
        return [evaluator(e)(environment) for e in extents]

    assert at(0, 2000, 100) == [125, 1, 2000 % 7]
    assert at(3, 20, -2) == [-4, 3, 20 % 7]


def kernel_with_grid(*operations: ops.Constant | ops.Compare | ops.Select | ops.Cast | ops.Unary) -> Kernel:
    extents = tuple(operation.result for operation in operations[-3:])
    grid = Region((), (*operations, ops.Yield(extents)))
    return Kernel("program", (), grid, Region((), (ops.Return(),)), loc=Location("here.py", 3))


def test_grid_takes_selections_and_casts() -> None:
    a, b = ops.Constant(value=5, dtype=int32), ops.Constant(value=3, dtype=int32)
    less = ops.Compare(kind="lt", a=a.result, b=b.result)
    chosen = ops.Select(cond=less.result, a=a.result, b=b.result)
    wide = ops.Cast(x=chosen.result, dtype=int64)
    assert grid_of(kernel_with_grid(a, b, less, chosen, wide, chosen, wide, a)) == (3, 3, 5)


def test_grid_of_floats_and_of_bits_is_refused_at_its_line() -> None:
    here = Location("here.py", 7)
    number = ops.Constant(value=1.5, dtype=float32, loc=here)
    whole = ops.Cast(x=number.result, dtype=int32, loc=here)
    with pytest.raises(TypeMismatch, match=r"computed from integers, not 1\.5") as error:
        grid_of(kernel_with_grid(number, whole, whole, whole))
    assert error.value.location == here
    one = ops.Constant(value=1, dtype=int32)
    count = ops.Unary(kind="popcount", x=one.result, loc=here)
    with pytest.raises(TypeMismatch, match="which does not know popcount"):
        grid_of(kernel_with_grid(one, count, count, count))


NAMES = {"m": ("size", "m"), "k": ("size", "k"), "s": ("scalar", "s")}


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("m <= 16", 0),
        ("m <= 37 and k % 64 == 0", 1),
        ("16 < m < 64", 1),
        ("64 < m < 16 or not s", 0),
        ("min(m, k, 3) + max(s, -6) * 2 - -1", -6),
        ("m // 8 - s // 2", 7),
        ("2 + 3", 5),
    ],
)
def test_text_means_what_python_means(text: str, value: int) -> None:
    assert (
        int(evaluator(parse(text, NAMES))(SIZES)) == value == int(eval(text, {"m": 37, "k": 4096, "s": -5}))
    )


@pytest.mark.parametrize(
    "text", ["m <=", "n > 3", "m / 2", "m ** 2", "f(m)", "m.x", "'m'", "1.5", "[m]", "m if k else s"]
)
def test_text_that_is_no_expression_is_refused(text: str) -> None:
    with pytest.raises(SyntaxNotSupported):
        parse(text, NAMES)


@pytest.mark.parametrize(
    "data",
    [None, 1.5, True, "m", [], ["size"], ["size", 3], ["add", 1], ["neg", 1, 2], ["exec", 1, 2], {"add": 1}],
)
def test_json_that_is_no_expression_is_refused(data: Any) -> None:
    with pytest.raises(LaunchError, match="no expression"):
        from_json(data)
