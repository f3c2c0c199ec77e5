"""Runs of equal elements: against the elements themselves, for random integer tiles."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.ir.kernels import make
from tilus.ir import RegisterType, walk
from tilus.ir.interpreter import Schedule, bind
from tilus.ir.semantics import Block
from tilus.passes.constancy import constancy
from tilus.passes.divisibility import facts

PARAMS = "%n: i32, %a: global<i32, [m:1, 48], [k:16, 1]>"


def runs(body: str) -> dict[str, tuple[int, ...]]:
    kernel = make(body, PARAMS)
    found = constancy(kernel, facts(kernel).divisors)
    return {v.name: tuple(a.constant for a in r.along) for v, r in found.items() if v.name}


def test_a_bound_that_is_a_multiple_leaves_whole_vectors():
    found = runs("""
        %n8 = assume %n {divisor = 8}
        %i = iota {shape = [64], axis = 0}
        %end = splat %n8 {shape = [64]}
        %any = splat %n {shape = [64]}
        %below = compare %i, %end {kind = "lt"}
        %above = compare %end, %i {kind = "le"}
        %upto = compare %i, %end {kind = "le"}
        %same = compare %i, %end {kind = "eq"}
        %loose = compare %i, %any {kind = "lt"}
        %moved = binary %i, %end {kind = "add"}
        %both = compare %moved, %end {kind = "ge"}""")
    assert found["below"] == found["above"] == found["both"] == (8,)
    assert found["upto"] == found["same"] == found["loose"] == (1,)


def test_a_mask_of_rows_is_equal_along_them():
    found = runs("""
        %i = iota {shape = [16], axis = 0}
        %end = splat %n {shape = [16]}
        %inside = compare %i, %end {kind = "lt"}
        %column = expand_dims %inside {axis = 1}
        %mask = broadcast %column {shape = [16, 64]}
        %turned = transpose %mask {perm = [1, 0]}
        %other = iota {shape = [16, 64], axis = 1}
        %limit = splat %n {shape = [16, 64]}
        %inner = compare %other, %limit {kind = "lt"}
        %both = binary %mask, %inner {kind = "and"}""")
    assert found["mask"] == (1, 64)
    assert found["turned"] == (64, 1)
    assert found["inner"] == (16, 1)
    assert found["both"] == (1, 1)


def test_what_may_wrap_rises_no_more():
    found = runs("""
        %c12 = constant {value = 12, dtype = i32}
        %last = constant {value = 4294967292, dtype = u32}
        %limit = splat %last {shape = [24]}
        %twelve = splat %c12 {shape = [24]}
        %i = iota {shape = [24], axis = 0}
        %signed = binary %i, %twelve {kind = "sub"}
        %cast = cast %signed {dtype = u32}
        %below = compare %cast, %limit {kind = "lt"}
        %u12 = constant {value = 12, dtype = u32}
        %other = splat %u12 {shape = [24]}
        %u = iota {shape = [24], axis = 0, dtype = u32}
        %moved = binary %u, %other {kind = "sub"}
        %beside = compare %moved, %limit {kind = "lt"}""")
    assert found["below"] == found["beside"] == (1,)


def test_what_a_loop_hands_on_is_unknown():
    found = runs("""
        %c0 = constant {value = 0, dtype = i32}
        %c1 = constant {value = 1, dtype = i32}
        %zero = splat %c0 {shape = [16]}
        %i = iota {shape = [16], axis = 0}
        %r = for %c0, %n, %c1, [%zero] (%t: i32, %x: tile<i32, [16]>) {
          %y = binary %x, %i {kind = "add"}
          yield [%y]
        }""")
    assert found["zero"] == (16,)
    assert found["x"] == found["r"] == found["y"] == (1,)


@st.composite
def programs(draw: st.DrawFn) -> tuple[str, list[int]]:
    """Draw a chain of integer operations on tiles of shape (4, 24), and the scalars that it takes."""
    lines, tiles, masks = [], [], []
    scalars = [draw(st.sampled_from([1, 2, 3, 4, 8, 12])) for _ in range(2)]
    for place, divisor in enumerate(scalars):
        lines.append(f"%s{place} = assume %n {{divisor = {divisor}}}")
        lines.append(f"%t{place} = splat %s{place} {{shape = [4, 24]}}")
        lines.append(f"%i{place} = iota {{shape = [4, 24], axis = {place}}}")
        tiles += [f"t{place}", f"i{place}"]
    for number in range(draw(st.integers(2, 8))):
        a, b = draw(st.sampled_from(tiles)), draw(st.sampled_from(tiles))
        form = draw(st.sampled_from(["binary", "compare", "logic"]))
        if form == "binary":
            kind = draw(st.sampled_from(["add", "sub", "mul", "min"]))
            lines.append(f'%x{number} = binary %{a}, %{b} {{kind = "{kind}"}}')
            tiles.append(f"x{number}")
        elif form == "compare" or not masks:
            kind = draw(st.sampled_from(["lt", "le", "gt", "ge", "eq"]))
            lines.append(f'%m{number} = compare %{a}, %{b} {{kind = "{kind}"}}')
            masks.append(f"m{number}")
        else:
            one, two = draw(st.sampled_from(masks)), draw(st.sampled_from(masks))
            lines.append(f'%m{number} = binary %{one}, %{two} {{kind = "and"}}')
            masks.append(f"m{number}")
    return "\n".join(lines), scalars


@settings(max_examples=100, deadline=None)
@given(programs(), st.integers(-3, 3))
def test_runs_are_equal_in_every_run(program: tuple[str, list[int]], factor: int):
    body, divisors = program
    kernel = make(body, PARAMS)
    found = constancy(kernel, facts(kernel).divisors)
    block = Block(
        kernel,
        bind(kernel, [factor * int(np.lcm.reduce(divisors)), np.zeros((2, 48), np.int32)]),
        (0, 0, 0),
        (1, 1, 1),
        print,
    )
    Schedule(block).finish(kernel.body)
    checked = 0
    for op in walk(kernel.body):
        for value in op.results:
            if isinstance(value.type, RegisterType):
                array = np.asarray(block.values[value])
                for axis, along in enumerate(found[value].along):
                    assert array.shape[axis] % along.constant == 0 == array.shape[axis] % along.rising
                    parts = np.moveaxis(array, axis, -1).reshape(-1, along.constant)
                    assert (parts == parts[:, :1]).all()
                    rising = np.moveaxis(array, axis, -1).reshape(-1, along.rising)
                    if along.rising > 1:
                        assert (rising == rising[:, :1] + np.arange(along.rising)).all()
                        assert (rising[:, 0] % along.rising == 0).all()
                    checked += along.constant > 1
    assert checked
