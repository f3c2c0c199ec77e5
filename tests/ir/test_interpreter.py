"""Kernels run in NumPy: control flow, tiles, groups of warps, and what goes wrong."""

from __future__ import annotations

import dataclasses

import ml_dtypes
import numpy as np
import pytest

from tests.ir.kernels import execute, kernel_text, make
from tilus.errors import HazardFound, LaunchError
from tilus.ir.core import OPCODES
from tilus.ir.interpreter import CONTROL, SEMANTICS, InterpreterError, run
from tilus.ir.numerics import philox
from tilus.ir.ops import WarpGroup
from tilus.ir.parser import parse_kernel


def value_of(expression: str, params: str = "", *args: object) -> object:
    """Return what a body prints of its value %v."""
    (line,) = execute(expression + '\nprint [%v] {format = "{}"}', params, *args)
    return line


def test_every_operation_has_a_meaning():
    terminators = {cls for cls in OPCODES.values() if cls.terminator}
    assert set(OPCODES.values()) - terminators - {WarpGroup} == set(SEMANTICS) | set(CONTROL)
    assert not set(SEMANTICS) & set(CONTROL)


MATMUL = """
kernel @matmul(%a: global<f16, [m:1, k:8], [k:8, 1]>, %b: global<f16, [k:8, n:1], [n:1, 1]>,
               %c: global<f32, [m:1, n:1], [n:1, 1]>) warps=4 {
  grid () {
    %m = dim %c {axis = 0}
    %n = dim %c {axis = 1}
    %block = constant {value = 16, dtype = i32}
    %less = constant {value = 15, dtype = i32}
    %one = constant {value = 1, dtype = i32}
    %m1 = binary %m, %less {kind = "add"}
    %n1 = binary %n, %less {kind = "add"}
    %x = binary %m1, %block {kind = "floordiv"}
    %y = binary %n1, %block {kind = "floordiv"}
    yield [%x, %y, %one]
  }
  body () {
    %bi = block_id {axis = 0}
    %bj = block_id {axis = 1}
    %block = constant {value = 16, dtype = i32}
    %row = binary %bi, %block {kind = "mul"}
    %column = binary %bj, %block {kind = "mul"}
    %zero = constant {value = 0, dtype = i32}
    %step = constant {value = 8, dtype = i32}
    %k = dim %a {axis = 1}
    %nothing = constant {value = 0.0, dtype = f32}
    %init = splat %nothing {shape = [16, 16]}
    %sum = for %zero, %k, %step, [%init] (%i: i32, %acc: tile<f32, [16, 16]>) {
      %ta = load_global %a, [%row, %i], _, _ {shape = [16, 8], checked = [true, true]}
      %tb = load_global %b, [%i, %column], _, _ {shape = [8, 16], checked = [true, true]}
      %next = dot %ta, %tb, %acc
      yield [%next]
    }
    store_global %c, %sum, [%row, %column], _ {checked = [true, true]}
    return
  }
}
"""


def test_a_matmul_with_ragged_edges_is_right():
    rng = np.random.default_rng(1)
    a = rng.standard_normal((37, 24)).astype(np.float16)
    b = rng.standard_normal((24, 21)).astype(np.float16)
    c = np.full((37, 21), np.nan, np.float32)
    run(parse_kernel(MATMUL), [a, b, c])
    exact = a.astype(np.float64) @ b.astype(np.float64)
    # Three roundings to float32, one for each step of k.
    assert np.abs(c - exact).max() <= 3 * 2.0**-24 * np.abs(exact).max()


def test_the_grid_may_be_given():
    c = np.zeros((40, 16), np.float32)
    ones = np.ones((40, 8), np.float16), np.ones((8, 16), np.float16)
    run(parse_kernel(MATMUL), [*ones, c], grid=(2,))
    assert c[:32].min() == 8.0
    assert c[32:].max() == 0.0


# Scalars and control flow.


def test_scalars_wrap_at_their_width():
    body = '%big = constant {value = 2147483647, dtype = i32}\n%v = binary %big, %x {kind = "add"}'
    assert value_of(body, "%x: i32", 1) == str(-(2**31))


COUNT = """
%zero = constant {value = 0, dtype = i32}
%three = constant {value = 3, dtype = i32}
%seven = constant {value = 7, dtype = i32}
"""


def test_a_for_loop_carries_its_values_and_its_index_steps():
    body = (
        COUNT
        + """
    %v = for %seven, %zero, %step, [%zero] (%i: i32, %s: i32) {
      %n = binary %s, %i {kind = "add"}
      yield [%n]
    }"""
    )
    assert value_of(body, "%step: i32", -3) == str(7 + 4 + 1)


def test_a_loop_that_never_turns_gives_what_it_starts_with():
    body = (
        COUNT
        + """
    %v = for %seven, %zero, %three, [%three] (%i: i32, %s: i32) {
      yield [%i]
    }"""
    )
    assert value_of(body) == "3"


def test_break_and_continue_hand_on_their_values_from_any_depth():
    body = (
        COUNT
        + """
    %v = for %zero, %x, %one, [%zero] (%i: i32, %s: i32) {
      %odd = binary %i, %one {kind = "and"}
      %is_odd = cast %odd {dtype = bool}
      if %is_odd () {
        continue [%s]
      } () {
        %far = compare %i, %seven {kind = "gt"}
        if %far () {
          break [%s]
        } () {
          yield []
        }
        yield []
      }
      %n = binary %s, %i {kind = "add"}
      yield [%n]
    }"""
    )
    body = body.replace("%three = ", "%one = constant {value = 1, dtype = i32}\n%three = ")
    assert value_of(body, "%x: i32", 100) == str(0 + 2 + 4 + 6)


def test_a_loop_turns_until_it_breaks():
    body = (
        COUNT
        + """
    %v = loop [%x] (%s: i32) {
      %n = binary %s, %three {kind = "mul"}
      %done = compare %n, %limit {kind = "ge"}
      %m = if %done () {
        break [%n]
      } () {
        yield [%n]
      }
      yield [%m]
    }"""
    )
    assert value_of(body, "%x: i32, %limit: i32", 2, 100) == str(2 * 3**4)


def test_return_inside_a_loop_ends_the_kernel():
    body = (
        COUNT
        + """
    loop [] () {
      if %flag () {
        return
      } () {
        yield []
      }
      print [] {format = "one turn"}
      return
    }
    print [] {format = "after"}"""
    )
    assert execute(body, "%flag: bool", True) == []
    assert execute(body, "%flag: bool", False) == ["one turn"]


def test_an_if_gives_what_the_branch_that_ran_yields():
    body = (
        COUNT
        + """
    %v = if %flag () {
      yield [%three]
    } () {
      yield [%seven]
    }"""
    )
    assert [value_of(body, "%flag: bool", f) for f in (True, False)] == ["3", "7"]


def test_a_step_of_zero_is_an_error():
    with pytest.raises(HazardFound, match="a loop whose step is 0"):
        execute(COUNT + "for %zero, %seven, %zero, [] (%i: i32) {\nyield []\n}", "")


def test_blocks_know_their_place():
    kernel = make(
        """
        %x = block_id {axis = 0}
        %y = block_id {axis = 1}
        %nx = grid_dim {axis = 0}
        %ny = grid_dim {axis = 1}
        %nz = grid_dim {axis = 2}
        %rank = cluster_rank
        print [%x, %y, %nx, %ny, %nz, %rank] {format = "{} {} of {} {} {}, {}"}"""
    )
    lines: list[str] = []
    run(kernel, [], grid=(2, 2), output=lines.append)
    assert lines == [f"{x} {y} of 2 2 1, 0" for y in (0, 1) for x in (0, 1)]


def test_the_rank_in_a_cluster_counts_x_first():
    text = '%v = cluster_rank\nprint [%v] {format = "{}"}'
    kernel = make(text)
    lines: list[str] = []
    run(dataclasses.replace(kernel, cluster=(2, 2, 1)), [], grid=(4, 2), output=lines.append)
    # The blocks of a cluster run together, cluster after cluster.
    assert lines == ["0", "1", "2", "3", "0", "1", "2", "3"]


# Tiles.


def test_tiles_change_their_shape():
    out = np.zeros((6, 2), np.int32)
    body = """
    %zero = constant {value = 0, dtype = i32}
    %x = load_global %a, [%zero, %zero], _, _ {shape = [2, 3], checked = [false, false]}
    %t = transpose %x {perm = [1, 0]}
    %e = expand_dims %t {axis = 1}
    %q = squeeze %e {axis = 1}
    %low = slice_tile %q {offsets = [1, 0], shape = [2, 2]}
    %flat = reshape %low {shape = [1, 4]}
    %again = broadcast %flat {shape = [2, 4]}
    %four = reshape %again {shape = [4, 2]}
    %two = slice_tile %four {offsets = [2, 0], shape = [2, 2]}
    %top = slice_tile %four {offsets = [0, 0], shape = [2, 2]}
    %all = concat [%two, %top, %low] {axis = 0}
    store_global %out, %all, [%zero, %zero], _ {checked = [false, false]}"""
    a = np.array([[1, 2, 3], [4, 5, 6]], np.int32)
    execute(body, "%a: global<i32, [2, 3], [3, 1]>, %out: global<i32, [6, 2], [2, 1]>", a, out)
    assert out.tolist() == [[2, 5], [3, 6]] * 3


def test_iota_splat_select_table_reduce_and_scan():
    body = """
    %five = constant {value = 5, dtype = i32}
    %i = iota {shape = [2, 4], axis = 1}
    %s = splat %five {shape = [2, 4]}
    %r = iota {shape = [2, 4], axis = 0}
    %c = compare %i, %r {kind = "gt"}
    %p = select %c, %i, %s
    %k = table %i {values = [10, 20, 30, 40], dtype = i32}
    %sum = reduce %p {axis = 1, kind = "sum"}
    %best = reduce %p {axis = 1, kind = "argmax"}
    %run = scan %i {axis = 1, kind = "sum"}
    %one = slice_tile %k {offsets = [1, 2], shape = [1, 1]}
    %v = extract %one
    print [%p] {format = "{}"}
    print [%sum] {format = "{}"}
    print [%best] {format = "{}"}
    print [%run] {format = "{}"}
    print [%v] {format = "{}"}"""
    printed = [line.replace("\n", "") for line in execute(body, "")]
    assert printed == ["[[5 1 2 3] [5 5 2 3]]", "[[11] [15]]", "[[0] [0]]", "[[0 1 3 6] [0 1 3 6]]", "30"]


def test_random_numbers_take_counters_as_bits():
    body = """
    %one = constant {value = 1, dtype = i32}
    %i = iota {shape = [2]}
    %o = splat %one {shape = [2]}
    %c = binary %i, %o {kind = "sub"}
    %a, %b, %d, %e = random %seed, %c
    print [%a] {format = "{}"}"""
    (line,) = execute(body, "%seed: i64", 12345)
    expected = philox(12345, np.array([0xFFFFFFFF, 0], np.uint64))[0]
    assert line == str(expected.astype(np.uint64))


def test_view_needs_layouts_only_where_bits_leave_their_row():
    x = np.array([1.0, -2.0] * 16, np.float32)
    out = np.zeros(32, np.int32)
    params = "%a: global<f32, [32], [1]>, %out: global<i32, [32], [1]>"
    body = """
    %zero = constant {value = 0, dtype = i32}
    %x = load_global %a, [%zero], _, _ {shape = [32], checked = [true]}
    %v = view %x {dtype = i32, shape = [32]}
    store_global %out, %v, [%zero], _ {checked = [true]}"""
    execute(body, params, x, out)
    assert out.tolist() == x.view(np.int32).tolist()
    halves = body.replace("dtype = i32, shape = [32]", "dtype = i16, shape = [64]")
    short = np.zeros(64, np.int16)
    execute(halves, params.replace("i32, [32]", "i16, [64]"), x, short)
    assert short.tolist() == x.view(np.int16).tolist()
    moved = body.replace("dtype = i32, shape = [32]", "dtype = i16, shape = [2, 32]").replace(
        "store_global", "//"
    )
    with pytest.raises(InterpreterError, match="needs the layouts of both"):
        execute(moved, params, x, out)


def test_view_of_packed_bytes_as_four_bits_gives_their_values():
    low, high = "#reg([32, 2], [32@0:1], [2@1:1])", "#reg([32, 4], [32@0:1], [4@1:1])"
    body = f"""
    %zero = constant {{value = 0, dtype = i32}}
    %x = load_global %a, [%zero, %zero], _, _ {{shape = [32, 2], checked = [true, true], layout = {low}}}
    %v = view %x {{dtype = e2m1, shape = [32, 4], layout = {high}}}
    %w = cast %v {{dtype = f32}}
    store_global %out, %w, [%zero, %zero], _ {{checked = [true, true]}}"""
    data = np.random.default_rng(2).integers(0, 256, (32, 2)).astype(np.uint8)
    out = np.zeros((32, 4), np.float32)
    execute(body, "%a: global<u8, [32, 2], [2, 1]>, %out: global<f32, [32, 4], [4, 1]>", data, out)
    codes = np.stack([data & 15, data >> 4], axis=-1).reshape(32, 4)
    assert np.array_equal(out, codes.view(ml_dtypes.float4_e2m1fn).astype(np.float32))


def test_view_to_copies_that_differ_is_reported():
    body = """
    %x = iota {shape = [32], dtype = i32, layout = #reg([32], [32@0:1], [])} : tile<i32, [32], #reg([32], [32@0:1], [])>
    %v = view %x {dtype = u32, shape = [16], layout = #reg([16], [2@_, 16@0:1], [])}"""
    with pytest.raises(HazardFound, match="copies of an element differ"):
        execute(body, "")


# Groups of warps and barriers.

PRODUCER_CONSUMER = """
%zero = constant {value = 0, dtype = i32}
%one = constant {value = 1, dtype = i32}
%two = constant {value = 2, dtype = i32}
%n = constant {value = 5, dtype = i32}
%s = alloc_shared {dtype = f32, shape = [2, 4]}
%full = barrier_alloc {count = 2, arrivals = 1}
%empty = barrier_alloc {count = 2, arrivals = 1}
warps {first = 0, count = 1} () {
  for %zero, %n, %one, [] (%i: i32) {
    %slot = binary %i, %two {kind = "mod"}
    %turn = binary %i, %two {kind = "floordiv"}
    %phase = binary %turn, %one {kind = "add"}
    barrier_wait %empty, %phase, %slot
    %stage = shared_index %s, %slot
    barrier_arrive %full, %slot {bytes = 16}
    copy_bulk %stage, %a, [%i, %zero], %full, %slot
    yield []
  }
  yield []
}
warps {first = 1, count = 1} () {
  for %zero, %n, %one, [] (%i: i32) {
    %slot = binary %i, %two {kind = "mod"}
    %phase = binary %i, %two {kind = "floordiv"}
    barrier_wait %full, %phase, %slot
    %stage = shared_index %s, %slot
    %x = load_shared %stage
    store_global %out, %x, [%i, %zero], _ {checked = [true, true]}
    barrier_arrive %empty, %slot
    yield []
  }
  yield []
}
print [] {format = "done"}"""
MATRICES = "%a: global<f32, [5, 4], [4, 1]>, %out: global<f32, [5, 4], [4, 1]>"


def test_a_producer_and_a_consumer_pass_tiles_through_barriers():
    a, out = np.arange(20, dtype=np.float32).reshape(5, 4), np.zeros((5, 4), np.float32)
    assert execute(PRODUCER_CONSUMER, MATRICES, a, out, warps=2) == ["done"]
    assert np.array_equal(out, a)


def test_a_consumer_that_does_not_wait_sees_nothing():
    a, out = np.arange(20, dtype=np.float32).reshape(5, 4), np.zeros((5, 4), np.float32)
    body = PRODUCER_CONSUMER.replace("barrier_wait %full, %phase, %slot", "//")
    with pytest.raises(HazardFound):
        execute(body, MATRICES, a, out, warps=2)
    assert not np.array_equal(out, a)


def test_a_deadlock_says_who_waits_where():
    wait = "barrier_wait %empty, %phase, %slot"
    body = PRODUCER_CONSUMER.replace("barrier_arrive %empty, %slot", "//").replace(
        wait, f'{wait} @ "k.py":12:4'
    )
    kernel = make(body, MATRICES, warps=2)
    with pytest.raises(
        HazardFound, match=r"deadlock: no group of warps of block \(0, 0, 0\) can go on"
    ) as caught:
        run(kernel, [np.zeros((5, 4), np.float32)] * 2)
    assert "they wait at k.py:12" in caught.value.message
    assert str(caught.value.location) == "k.py:12"


def test_each_warp_of_a_group_arrives():
    body = """
    %zero = constant {value = 0, dtype = i32}
    %b = barrier_alloc {count = 1, arrivals = 3}
    warps {first = 1, count = 3} () {
      barrier_arrive %b, _
      yield []
    }
    barrier_wait %b, %zero, _"""
    execute(body, "", warps=4)
    with pytest.raises(HazardFound, match="deadlock"):
        execute(body.replace("count = 3", "count = 2"), "", warps=4)


def test_a_barrier_takes_no_more_arrivals_than_it_waits_for():
    body = """
    %b = barrier_alloc {count = 1, arrivals = 1}
    barrier_arrive %b, _ {bytes = 16}
    barrier_arrive %b, _"""
    with pytest.raises(HazardFound, match="more than 1 arrivals in one phase of a barrier"):
        execute(body, "")


def test_the_phase_before_the_first_is_complete():
    body = """
    %one = constant {value = 1, dtype = i32}
    %b = barrier_alloc {count = 1, arrivals = 2}
    barrier_wait %b, %one, _
    print [] {format = "before"}
    barrier_arrive %b, _
    barrier_arrive %b, _
    %zero = constant {value = 0, dtype = i32}
    barrier_wait %b, %zero, _
    print [] {format = "after"}"""
    assert execute(body, "") == ["before", "after"]
    with pytest.raises(HazardFound, match="deadlock"):
        execute(body.replace("arrivals = 2", "arrivals = 3"), "")


def test_what_follows_groups_waits_for_them():
    body = """
    %s = alloc_shared {dtype = i32, shape = [4]}
    warps {first = 0, count = 1} () {
      %i = iota {shape = [4]}
      store_shared %s, %i
      yield []
    }
    sync
    %v = load_shared %s
    print [%v] {format = "{}"}"""
    assert execute(body, "", warps=2) == ["[0 1 2 3]"]


def test_return_in_a_group_ends_that_group():
    body = """
    warps {first = 0, count = 1} () {
      return
    }
    warps {first = 1, count = 1} () {
      print [] {format = "the other"}
      yield []
    }"""
    assert execute(body, "", warps=2) == ["the other"]


# What goes wrong.


def test_a_failed_assertion_names_its_block_and_place():
    kernel = parse_kernel(kernel_with_place())
    with pytest.raises(HazardFound, match=r"device_assert failed in block \(0, 0, 0\): x is small") as caught:
        run(kernel, [3])
    assert str(caught.value.location) == "user.py:9"
    run(kernel, [30])


def kernel_with_place() -> str:
    body = """
    %ten = constant {value = 10, dtype = i32}
    %ok = compare %x, %ten {kind = "gt"}
    assert %ok {message = "x is small"} @ "user.py":9:4"""
    return kernel_text(body, "%x: i32")


def test_a_broken_promise_is_reported():
    with pytest.raises(HazardFound, match="17 was said to be a multiple of 8"):
        execute("%v = assume %x {divisor = 8}", "%x: i32", 17)


def test_inline_ptx_is_refused():
    body = '%v = inline_ptx [%x] {template = "mov.b32 $0, $1;", dtypes = [i32]}'
    with pytest.raises(InterpreterError, match="runs no inline PTX: run the kernel on the simulator"):
        execute(body, "%x: i32", 1)


def test_an_index_outside_of_a_table_is_reported():
    with pytest.raises(HazardFound, match="of a table of 2"):
        execute("%v = table %x {values = [1, 2], dtype = i32}", "%x: i32", 2)


@pytest.mark.parametrize(
    ("param", "given", "message"),
    [
        ("%a: global<f32, [n:4], [1]>", np.zeros(6, np.float32), "extent 0 of a is 6, no multiple of 4"),
        ("%a: global<f32, [8], [1]>", np.zeros(6, np.float32), "extent 0 of a is 6, but expected 8"),
        (
            "%a: global<f32, [n:1], [1]>",
            np.zeros(6, np.float16),
            "a holds float16, but expected float32 for float32",
        ),
        ("%a: global<f32, [n:1], [1]>", np.zeros((2, 3), np.float32), "a has rank 2, but expected 1"),
        ("%a: global<f32, [n:1], [1]>", np.zeros(8, np.float32)[::2], "stride 0 of a is 2, but expected 1"),
        (
            "%a: global<f32, [n:1], [s:4]>",
            np.zeros(8, np.float32)[::2],
            "stride 0 of a is 2, no multiple of 4",
        ),
        (
            "%a: global<f32, [n:1, n:1], [n:1, 1]>",
            np.zeros((2, 3), np.float32),
            "n is 2 and, as extent 1 of a, 3",
        ),
        ("%a: ptr<f32>", np.zeros(8, np.float32)[::-1], "strides of (-4,) bytes"),
        ("%a: i8", 200, "a is 200, which int8 does not hold"),
    ],
)
def test_arguments_that_do_not_fit_are_refused(param: str, given: object, message: str):
    with pytest.raises(LaunchError) as caught:
        run(make("", param), [given])
    assert message in caught.value.message


def test_the_number_of_arguments_is_checked():
    with pytest.raises(LaunchError, match="test has 1 parameters, not 0"):
        run(make("", "%x: i32"), [])


def test_the_stride_of_a_single_element_does_not_matter():
    run(make("", "%a: global<f32, [1, 4], [8, 1]>"), [np.zeros((1, 4), np.float32)])
