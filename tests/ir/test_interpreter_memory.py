"""Global and shared memory in the interpreter: bounds, strides, packed elements, and copies that happen late."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest

from tests.ir.kernels import execute
from tilus.dtypes import pack, unpack
from tilus.errors import HazardFound, LaunchError
from tilus.ir.interpreter import PackedRows

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


def test_rows_of_packed_elements_are_read_and_written_in_place():
    body = """
    %zero = constant {value = 0, dtype = i32}
    %x = load_global %a, [%zero, %zero], _, _ {shape = [2, 5], checked = [true, true]}
    %y = unary %x {kind = "not"}
    %k = dim %a {axis = 1}
    %s = stride %a {axis = 0}
    print [%x] {format = "{}"}
    print [%k, %s] {format = "{} {}"}
    store_global %a, %y, [%one, %one], _ {checked = [true, true]}"""
    codes = np.array([[1, 2, 3, 4], [5, 6, 7, 0]], np.uint8)
    memory = np.full((2, 3), 0xFF, np.uint8)
    memory[:, :2] = pack(codes, "u3")
    given = PackedRows(memory, 4)
    printed = execute(body, "%a: global<u3, [m:1, k:4], [s:8, 1]>, %one: i32", given, 1)
    assert printed == [str(np.array([[1, 2, 3, 4, 0], [5, 6, 7, 0, 0]])), "4 8"]
    assert unpack(memory[:, :2], "u3", 4).tolist() == [[1, 2, 3, 4], [5, 6, 5, 4]]
    # What lies between the elements stays.
    assert memory[:, 2].tolist() == [0xFF, 0xFF]
    with pytest.raises(LaunchError, match=r"rows \[2\] bytes apart do not start at whole elements of uint3"):
        execute(
            body, "%a: global<u3, [m:1, k:4], [s:1, 1]>, %one: i32", PackedRows(memory[:, :2].copy(), 4), 1
        )


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


def test_a_pipelined_loop_needs_no_waits():
    body = """
    %zero = constant {value = 0, dtype = i32}
    %one = constant {value = 1, dtype = i32}
    for %zero, %one, %one, [] {stages = 2} (%i: i32) {
      %s = alloc_shared {dtype = f32, shape = [2]}
      copy_async %s, %a, [%i] {checked = [true]}
      %v = load_shared %s
      print [%v] {format = "{}"}
      yield []
    }
    %t = alloc_shared {dtype = f32, shape = [2]}
    copy_async %t, %a, [%zero] {checked = [true]}
    %w = load_shared %t
    print [%w] {format = "{}"}"""
    a = np.array([1, 2, 3], np.float32)
    assert execute(body, "%a: global<f32, [n:1], [1]>", a) == ["[1. 2.]", "[nan nan]"]
    plain = execute(body.replace("{stages = 2}", ""), "%a: global<f32, [n:1], [1]>", a)
    assert plain == ["[nan nan]", "[nan nan]"]


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
