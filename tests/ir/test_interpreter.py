"""Kernels run in NumPy: control flow, memory, late copies, barriers, and what goes wrong."""

from __future__ import annotations

import dataclasses

import ml_dtypes
import numpy as np
import pytest

from tests.ir.kernels import kernel_text, make
from tilus.errors import HazardFound, LaunchError
from tilus.ir.core import OPCODES
from tilus.ir.interpreter import CONTROL, SEMANTICS, InterpreterError, run
from tilus.ir.numerics import philox
from tilus.ir.ops import WarpGroup
from tilus.ir.parser import parse_kernel


def execute(body: str, params: str, *args: object, warps: int = 1) -> list[str]:
    """Run a body as one block; returns what it printed."""
    printed: list[str] = []
    run(make(body, params, warps), args, output=printed.append)
    return printed


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
    assert lines == ["0", "1", "0", "1", "2", "3", "2", "3"]


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


def test_view_needs_layouts_only_where_bits_move():
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
    moved = body.replace("dtype = i32, shape = [32]", "dtype = i16, shape = [64]").replace(
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


# Global memory.

VECTOR = "%a: global<f32, [n:1], [1]>, %out: global<f32, [n:1], [1]>"
COPY = """
%zero = constant {value = 0, dtype = i32}
%other = constant {value = 9.0, dtype = f32}
%x = load_global %a, [%offset], _, %other {shape = [4], checked = [CHECKED]}
store_global %out, %x, [%zero], _ {checked = [true]}"""


def test_elements_outside_are_other_and_are_not_stored():
    a, out = np.arange(5, dtype=np.float32), np.zeros(5, np.float32)
    body = COPY.replace("CHECKED", "true")
    execute(body, VECTOR + ", %offset: i32", a, out, 3)
    assert out.tolist() == [3, 4, 9, 9, 0]
    execute(body, VECTOR + ", %offset: i32", a, out, -2)
    assert out.tolist() == [9, 9, 0, 1, 0]


def test_an_access_outside_that_is_not_checked_is_reported():
    a, out = np.arange(5, dtype=np.float32), np.zeros(5, np.float32)
    body = COPY.replace("CHECKED", "false")
    execute(body, VECTOR + ", %offset: i32", a, out, 1)
    with pytest.raises(HazardFound, match="index 5 of dimension 0, whose extent is 5, is not checked"):
        execute(body, VECTOR + ", %offset: i32", a, out, 2)


def test_masked_elements_are_not_accessed():
    body = """
    %zero = constant {value = 0, dtype = i32}
    %i = iota {shape = [8]}
    %limit = splat %n {shape = [8]}
    %mask = compare %i, %limit {kind = "lt"}
    %x = load_global %a, [%zero], %mask, _ {shape = [8], checked = [false]}
    store_global %out, %x, [%zero], %mask {checked = [false]}"""
    a, out = np.arange(1, 6, dtype=np.float32), np.full(5, -1, np.float32)
    execute(body, VECTOR.replace("n:1", "len:1") + ", %n: i32", a, out, 3)
    assert out.tolist() == [1, 2, 3, -1, -1]
    with pytest.raises(HazardFound, match="is not checked"):
        execute(body, VECTOR.replace("n:1", "len:1") + ", %n: i32", a, out, 6)


def test_a_tile_lies_in_the_last_dimensions():
    body = """
    %zero = constant {value = 0, dtype = i32}
    %x = load_global %a, [%i, %zero], _, _ {shape = [3], checked = [true, true]}
    store_global %out, %x, [%zero], _ {checked = [true]}"""
    a, out = np.arange(12, dtype=np.float32).reshape(4, 3), np.zeros(3, np.float32)
    params = "%a: global<f32, [4, 3], [3, 1]>, %out: global<f32, [3], [1]>, %i: i32"
    execute(body, params, a, out, 2)
    assert out.tolist() == [6, 7, 8]
    execute(body, params, a, out, 4)
    assert out.tolist() == [0, 0, 0]


def test_strides_are_those_of_the_array():
    body = """
    %zero = constant {value = 0, dtype = i32}
    %x = load_global %a, [%zero, %zero], _, _ {shape = [2, 4], checked = [true, true]}
    store_global %a, %x, [%c1, %zero], _ {checked = [true, true]}
    %s = stride %a {axis = 1}
    %d = dim %a {axis = 0}
    print [%s, %d] {format = "{} {}"}"""
    memory = np.arange(12, dtype=np.float32).reshape(4, 3)
    turned = memory.T
    params = "%a: global<f32, [m:1, k:1], [1, s:3]>, %c1: i32"
    assert execute(body, params, turned, 1) == ["3 3"]
    assert turned.tolist() == [[0, 3, 6, 9], [0, 3, 6, 9], [1, 4, 7, 10]]


def test_gather_and_scatter_leave_out_what_is_outside():
    body = """
    %i = iota {shape = [4]}
    %two = constant {value = 2, dtype = i32}
    %t = splat %two {shape = [4]}
    %j = binary %i, %t {kind = "mul"}
    %x = gather %a, [%j], _
    %k = binary %j, %t {kind = "sub"}
    scatter %out, %x, [%k], _"""
    a, out = np.arange(10, 15, dtype=np.float32), np.full(5, -1, np.float32)
    execute(body, VECTOR, a, out)
    assert out.tolist() == [12, -1, 14, -1, 0]
    with pytest.raises(HazardFound, match="index -2 of dimension 0"):
        execute(body.replace("[%k], _", "[%k], _ {checked = false}"), VECTOR, a, out)


@pytest.mark.parametrize(
    ("kind", "after", "old"),
    [
        ("add", [1 + 0 + 2, 2 + 1 + 3, 3], [1, 2, 1, 3]),
        ("max", [2, 3, 3], [1, 2, 1, 2]),
        ("exch", [2, 3, 3], [1, 2, 0, 1]),
    ],
)
def test_atomics_update_element_by_element(kind: str, after: list[int], old: list[int]):
    # Elements 0 and 2 meet at place 0, elements 1 and 3 at place 1.
    body = f"""
    %i = iota {{shape = [4]}}
    %one = constant {{value = 1, dtype = i32}}
    %o = splat %one {{shape = [4]}}
    %j = binary %i, %o {{kind = "and"}}
    %old = atomic %a, %i, [%j], _, _ {{kind = "{kind}"}}
    print [%old] {{format = "{{}}"}}"""
    a = np.array([1, 2, 3], np.int32)
    (line,) = execute(body, "%a: global<i32, [3], [1]>", a)
    assert (a.tolist(), line) == (after, str(np.array(old)))


def test_compare_and_swap_writes_where_the_old_value_is_the_expected_one():
    body = """
    %i = iota {shape = [3]}
    %one = constant {value = 1, dtype = i32}
    %seven = constant {value = 7, dtype = i32}
    %c = splat %one {shape = [3]}
    %s = splat %seven {shape = [3]}
    %old = atomic %a, %s, [%i], %c, _ {kind = "cas"}"""
    a = np.array([1, 2, 1], np.int32)
    execute(body, "%a: global<i32, [3], [1]>", a)
    assert a.tolist() == [7, 2, 7]


def test_pointers_move_and_become_tensors():
    body = """
    %q = pointer_add %p, %two
    %x = global_view %q, [%two, %two], [%three, %c1] {steps = [none, 1]}
    %zero = constant {value = 0, dtype = i32}
    %t = load_global %x, [%zero, %zero], _, _ {shape = [2, 2], checked = [true, true]}
    print [%t] {format = "{}"}
    %r = pointer_of %x
    %u = pointer_add %r, %c1
    %y = global_view %u, [%c1], [%c1]
    %v = load_global %y, [%zero], _, _ {shape = [1], checked = [true]}
    print [%v] {format = "{}"}"""
    params = "%p: ptr<i32>, %c1: i32, %two: i32, %three: i32"
    printed = execute(body, params, np.arange(10, dtype=np.int32), 1, 2, 3)
    assert [line.replace("\n", "") for line in printed] == ["[[2 3] [5 6]]", "[3]"]
    with pytest.raises(HazardFound, match="elements 2 to 6 of a buffer of 6 elements"):
        execute(body, params, np.arange(6, dtype=np.int32), 1, 2, 3)
    with pytest.raises(HazardFound, match="view was said to have stride 1, but it is 2"):
        execute(body, params, np.arange(10, dtype=np.int32), 2, 2, 3)


def test_a_cast_pointer_reads_and_writes_the_same_bytes():
    body = """
    %zero = constant {value = 0, dtype = i32}
    %q = pointer_add %p, %c1
    %c = pointer_cast %q {dtype = u3}
    %x = global_view %c, [%eight], [%c1]
    %t = load_global %x, [%zero], _, _ {shape = [8], checked = [true]}
    print [%t] {format = "{}"}
    %r = unary %t {kind = "not"}
    store_global %x, %r, [%zero], _ {checked = [true]}
    %back = pointer_cast %c {dtype = u16}
    %y = global_view %back, [%c1], [%c1]
    %u = load_global %y, [%zero], _, _ {shape = [1], checked = [true]}
    print [%u] {format = "{}"}"""
    memory = np.array([1, 0b11_010_001, 0b1_101_100_0, 0b111_110_01, 5], np.uint8)
    word = int.from_bytes(bytes(memory[1:4]), "little")
    printed = execute(body, "%p: ptr<u8>, %c1: i32, %eight: i32", memory, 1, 8)
    assert printed[0] == str(np.array([word >> 3 * i & 7 for i in range(8)]))
    assert (memory[0], memory[4]) == (1, 5)
    assert int.from_bytes(bytes(memory[1:4]), "little") == word ^ 0xFFFFFF
    assert printed[1] == f"[{(word ^ 0xFFFFFF) & 0xFFFF}]"


def test_types_without_a_numpy_type_are_given_as_codes():
    body = """
    %zero = constant {value = 0, dtype = i32}
    %x = load_global %a, [%zero], _, _ {shape = [4], checked = [true]}
    %f = cast %x {dtype = f32}
    %y = cast %f {dtype = e2m1}
    store_global %out, %y, [%zero], _ {checked = [true]}"""
    a, out = np.array([0, 3, 9, 15], np.uint8), np.zeros(4, np.uint8)
    execute(body, "%a: global<u4, [4], [1]>, %out: global<e2m1, [4], [1]>", a, out)
    assert out.view(ml_dtypes.float4_e2m1fn).astype(float).tolist() == [0, 3, 6, 6]


def test_arrays_of_ml_dtypes_are_taken():
    body = """
    %zero = constant {value = 0, dtype = i32}
    %x = load_global %a, [%zero], _, _ {shape = [2], checked = [true]}
    %y = binary %x, %x {kind = "add"}
    store_global %a, %y, [%zero], _ {checked = [true]}"""
    a = np.array([1.5, -3.0], ml_dtypes.bfloat16)
    execute(body, "%a: global<bf16, [2], [1]>", a)
    assert a.astype(float).tolist() == [3.0, -6.0]


# Shared memory.


def test_shared_memory_is_sliced_turned_and_kept_between_turns():
    body = """
    %zero = constant {value = 0, dtype = i32}
    %one = constant {value = 1, dtype = i32}
    %two = constant {value = 2, dtype = i32}
    %i = iota {shape = [2, 3], axis = 1}
    for %zero, %two, %one, [] (%t: i32) {
      %s = alloc_shared {dtype = i32, shape = [2, 2, 3]}
      %stage = shared_index %s, %t
      %shift = splat %t {shape = [2, 3]}
      %x = binary %i, %shift {kind = "add"}
      store_shared %stage, %x
      %first = shared_index %s, %zero
      %turned = shared_permute %first {perm = [1, 0]}
      %part = shared_slice %turned {offsets = [1, 0], shape = [2, 1]}
      %v = load_shared %part
      print [%v] {format = "{}"}
      yield []
    }"""
    assert [line.replace("\n", "") for line in execute(body, "")] == ["[[1] [2]]"] * 2


def test_shared_memory_starts_undefined():
    body = '%s = alloc_shared {dtype = f32, shape = [2]}\n%v = load_shared %s\nprint [%v] {format = "{}"}'
    assert execute(body, "") == ["[nan nan]"]
    assert execute(body.replace("f32", "u3"), "") == ["[7 7]"]


def test_a_stage_that_is_not_there_is_reported():
    body = "%s = alloc_shared {dtype = f32, shape = [2, 4]}\n%v = shared_index %s, %i"
    with pytest.raises(HazardFound, match="index 2 of a shared tensor with 2 parts"):
        execute(body, "%i: i32", 2)


def test_shared_memory_is_scattered_to_and_gathered_from():
    body = """
    %zero = constant {value = 0, dtype = i32}
    %s = alloc_shared {dtype = i32, shape = [2, 4]}
    %st = shared_permute %s {perm = [1, 0]}
    %i = iota {shape = [4]}
    %one = constant {value = 1, dtype = i32}
    %r = splat %one {shape = [4]}
    scatter %st, %i, [%i, %r], _
    %old = atomic %s, %r, [%r, %i], _, _ {kind = "add"}
    %v = gather %s, [%r, %i], _
    print [%old] {format = "{}"}
    print [%v] {format = "{}"}"""
    assert execute(body, "") == ["[0 1 2 3]", "[1 2 3 4]"]


ASYNC = """
%zero = constant {value = 0, dtype = i32}
%two = constant {value = 2, dtype = i32}
%s = alloc_shared {dtype = f32, shape = [2, 2]}
%s0 = shared_index %s, %zero
%one = constant {value = 1, dtype = i32}
%s1 = shared_index %s, %one
copy_async %s0, %a, [%zero] {checked = [true]}
copy_async_commit
copy_async %s1, %a, [%two] {checked = [true]}
copy_async_commit
WAIT
%v = load_shared %s
print [%v] {format = "{}"}"""


@pytest.mark.parametrize(
    ("wait", "expected"),
    [
        ("", "[[nan nan] [nan nan]]"),
        ("copy_async_wait {pending = 2}", "[[nan nan] [nan nan]]"),
        ("copy_async_wait {pending = 1}", "[[1. 2.] [nan nan]]"),
        ("copy_async_wait", "[[1. 2.] [3. 0.]]"),
    ],
)
def test_copies_happen_at_the_wait_that_covers_them(wait: str, expected: str):
    a = np.array([1, 2, 3], np.float32)
    (line,) = execute(ASYNC.replace("WAIT", wait), "%a: global<f32, [n:1], [1]>", a)
    assert " ".join(line.replace("[ ", "[").replace("\n", "").split()) == expected


def test_a_copy_without_a_commit_is_not_waited_for():
    body = ASYNC.replace("copy_async_commit", "//").replace("WAIT", "copy_async_wait")
    (line,) = execute(body, "%a: global<f32, [n:1], [1]>", np.ones(3, np.float32))
    assert line.count("nan") == 4


STORE_BULK = """
%zero = constant {value = 0, dtype = i32}
%i = iota {shape = [4]}
%s = alloc_shared {dtype = i32, shape = [4]}
store_shared %s, %i
store_bulk %a, %s, [%two] {reduction = "KIND"}
bulk_commit
WAIT
%v = load_global %a, [%zero], _, _ {shape = [5], checked = [true]}
print [%v] {format = "{}"}"""


@pytest.mark.parametrize(
    ("kind", "wait", "expected"),
    [
        ("", "bulk_wait", "[9 9 0 1 2]"),
        ("add", "bulk_wait {read = false}", "[ 9  9  9 10 11]"),
        ("", "bulk_wait {pending = 1}", "[9 9 9 9 9]"),
    ],
)
def test_bulk_stores_happen_at_their_wait_and_inside_the_tensor(kind: str, wait: str, expected: str):
    body = STORE_BULK.replace("KIND", kind).replace("WAIT", wait)
    a = np.full(5, 9, np.int32)
    assert execute(body, "%a: global<i32, [n:1], [1]>, %two: i32", a, 2) == [expected]


DOT_ASYNC = """
%zero = constant {value = 0, dtype = i32}
%half = constant {value = 0.5, dtype = f32}
%c = splat %half {shape = [2, 2]}
%a = iota {shape = [2, 3], axis = 1, dtype = f16}
%s = alloc_shared {dtype = f16, shape = [3, 2]}
%b = iota {shape = [3, 2], axis = 0, dtype = f16}
store_shared %s, %b
%first = dot_async %a, %s, %c
%second = dot_async %a, %s, %first {fresh = FRESH}
OVERWRITE
%done, %last = dot_wait [%first, %second] {pending = PENDING}
print [%done] {format = "{}"}
print [%last] {format = "{}"}"""


def dot_async(fresh: bool = False, pending: int = 0, overwrite: str = "") -> list[str]:
    body = DOT_ASYNC.replace("FRESH", str(fresh).lower()).replace("PENDING", str(pending))
    lines = execute(body.replace("OVERWRITE", overwrite), "")
    return [" ".join(line.split()) for line in lines]


def test_asynchronous_products_run_in_order():
    assert dot_async() == ["[[5.5 5.5] [5.5 5.5]]", "[[10.5 10.5] [10.5 10.5]]"]
    assert dot_async(fresh=True)[1] == "[[5. 5.] [5. 5.]]"


def test_asynchronous_products_read_shared_memory_at_the_wait():
    assert (
        dot_async(
            overwrite="%z = splat %zero {shape = [3, 2]}\n%f = cast %z {dtype = f16}\nstore_shared %s, %f"
        )
        == ["[[0.5 0.5] [0.5 0.5]]"] * 2
    )


def test_a_product_that_no_wait_covers_is_not_to_be_used():
    with pytest.raises(HazardFound, match="print uses a tile that no dot_wait finished"):
        dot_async(pending=1)
    with pytest.raises(HazardFound, match="unary uses a tile that no dot_wait finished"):
        dot_async(overwrite='%n = unary %first {kind = "neg"}')


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
