"""Random programs of nested control flow: plain Python and the traced kernel agree on every value."""

from __future__ import annotations

import importlib.util
import itertools
from pathlib import Path

import numpy as np
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.lang.support import execute

NAMES = ("a", "b", "c", "d")
HEADER = '''"""A random kernel."""
import tilus.lang as tilus


@tilus.inline
def program(a, b):
    c = 0
    d = a - b
'''
KERNEL = """    return a, b, c, d


def kernel(out: tilus.Tensor[tilus.int32, "n"], a: tilus.int32, b: tilus.int32):
    tilus.grid(1)
    for position, value in enumerate(program(a, b)):
        tilus.store(out, value, position)
"""
fresh = itertools.count()
names = st.sampled_from(NAMES)
small = st.integers(-4, 5)
operands = st.one_of(names, small.map(str))
# A result is kept small, so that Python's integers and 32 bits agree.
expressions = st.one_of(
    st.builds("({} {} {}) % 1000 - 500".format, names, st.sampled_from(("+", "-", "*")), operands),
    st.builds("{} {} {}".format, names, st.sampled_from(("//", "%")), st.sampled_from(("2", "3", "-3", "7"))),
    st.builds("{} if {} < {} else {}".format, names, names, operands, names),
    st.builds("min({}, {})".format, names, operands),
    names,
)
comparisons = st.builds("{} {} {}".format, names, st.sampled_from(("<", "<=", "==", "!=", ">")), operands)
conditions = st.one_of(
    comparisons,
    st.builds("{} and {}".format, comparisons, comparisons),
    st.builds("{} or {}".format, comparisons, comparisons),
    st.builds("not {}".format, comparisons),
    st.builds("{} < {} <= {}".format, operands, names, operands),
)


def indent(lines: list[str]) -> list[str]:
    return ["    " + line for line in lines]


@st.composite
def statements(draw, depth: int, in_loop: bool) -> list[str]:
    """Draw a block of one to four statements."""
    lines: list[str] = []
    for _ in range(draw(st.integers(1, 4 if depth else 2))):
        kinds = ["assign", "augment", "swap"]
        if depth:
            kinds += ["if", "for", "while"]
        if in_loop:
            kinds += ["exit"]
        kind = draw(st.sampled_from(kinds))
        if kind == "assign":
            lines.append(f"{draw(names)} = {draw(expressions)}")
        elif kind == "augment":
            lines.append(f"{draw(names)} {draw(st.sampled_from(('+', '-')))}= {draw(small)}")
        elif kind == "swap":
            x, y = draw(names), draw(names)
            lines.append(f"{x}, {y} = {y}, {x}")
        elif kind == "exit":
            lines.append(f"if {draw(conditions)}:")
            before = draw(statements(depth - 1, True)) if depth and draw(st.booleans()) else []
            lines += indent([*before, draw(st.sampled_from(("break", "continue")))])
        elif kind == "if":
            lines.append(f"if {draw(conditions)}:")
            lines += indent(draw(statements(depth - 1, in_loop)))
            if draw(st.booleans()):
                lines.append("else:")
                lines += indent(draw(statements(depth - 1, in_loop)))
        elif kind == "for":
            start, stop, step = (
                draw(operands),
                draw(st.sampled_from(("3", "4", "a % 5", "b % 4"))),
                draw(st.sampled_from((1, 2, -1))),
            )
            index = draw(st.sampled_from((*NAMES, f"i{next(fresh)}")))
            bounds = f"{start} % 4, {stop}, {step}" if step > 0 else f"{stop}, {start} % 4, {step}"
            lines.append(f"for {index} in range({bounds}):")
            lines += indent(draw(statements(depth - 1, True)))
        else:
            fuel = f"fuel{next(fresh)}"
            lines.append(f"{fuel} = 0")
            lines.append(f"while {fuel} < 4 and ({draw(conditions)}):")
            lines += indent([f"{fuel} += 1", *draw(statements(depth - 1, True))])
    return lines


@settings(
    max_examples=60, deadline=None, derandomize=True,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.function_scoped_fixture],
)  # fmt: skip
@given(body=statements(3, False))
def test_a_random_program_means_what_python_means(tmp_path_factory, body):
    text = HEADER + "\n".join(indent(body)) + "\n" + KERNEL
    path = Path(tmp_path_factory.mktemp("random")) / f"program{next(fresh)}.py"
    path.write_text(text)
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    for a, b in ((0, 0), (3, 5), (-7, 2), (11, -4)):
        expected = module.program(a, b)
        out = np.zeros(4, np.int32)
        execute(module.kernel, out, a, b)
        assert tuple(out.tolist()) == expected, text
