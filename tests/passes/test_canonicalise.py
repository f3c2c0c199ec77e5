"""Canonicalisation, text in and text out."""

from __future__ import annotations

import dataclasses

import pytest

from tests.ir.kernels import everything, make
from tilus.dtypes import int32
from tilus.ir import Builder, Kernel, Region, Value, ops, walk
from tilus.ir.printer import print_kernel
from tilus.ir.verifier import verify
from tilus.passes.canonicalise import canonicalise
from tilus.passes.dead_code import eliminate_dead_code

PARAMS = "%x: i32, %y: i32, %f: f32, %flag: bool, %p: ptr<i32, align=16>, %g: global<i32, [m:1, 8], [k:4, 1]>"


def body_of(kernel: Kernel) -> list[str]:
    """Return the lines of the body without its frame and without types."""
    lines = [line.strip() for line in print_kernel(kernel, types=False).splitlines()]
    start = lines.index("body () {")
    return lines[start + 1 : -3]


def check(before: str, after: str, params: str = PARAMS, warps: int = 1) -> None:
    """Check what a body becomes; both texts leave out types."""
    simpler = canonicalise(make(before, params, warps))
    verify(simpler)
    assert body_of(simpler) == [line.strip() for line in after.strip().splitlines() if line.strip()]
    assert canonicalise(simpler) is simpler


def scalar(before: str, after: str) -> None:
    """Check what the value %v becomes, which is printed."""
    check(before + '\nprint [%v] {format = ""}', after)


def constant(name: str, value: int, dtype: str = "i32") -> str:
    return f"%{name} = constant {{value = {value}, dtype = {dtype}}}"


@pytest.mark.parametrize(
    ("before", "result"),
    [
        (
            constant("a", 2147483647) + "\n" + constant("b", 1) + '\n%v = binary %a, %b {kind = "add"}',
            -(2**31),
        ),
        (constant("a", -7) + "\n" + constant("b", 2) + '\n%v = binary %a, %b {kind = "floordiv"}', -4),
        (constant("a", -7) + '\n%v = unary %a {kind = "abs"}', 7),
        (constant("a", 300) + "\n%b = cast %a {dtype = i8}\n%v = cast %b {dtype = i32}", 44),
        ('%v = binary %x, %x {kind = "sub"}', 0),
        ('%v = binary %x, %x {kind = "xor"}', 0),
        (constant("z", 0) + '\n%v = binary %z, %x {kind = "mul"}', 0),
        (constant("o", 1) + '\n%v = binary %x, %o {kind = "mod"}', 0),
        ("%v = dim %g {axis = 1}", 8),
        (constant("m", -1) + '\n%v = binary %x, %m {kind = "or"}', -1),
    ],
)
def test_constants_fold(before: str, result: int):
    simpler = canonicalise(make(before + '\nprint [%v] {format = ""}', PARAMS))
    folded, printed, _ = simpler.body.ops
    assert isinstance(folded, ops.Constant)
    assert (folded.value, folded.dtype) == (result, int32)
    assert list(printed.inputs()) == [folded.result]


@pytest.mark.parametrize(
    "expression",
    [
        'constant 0|binary %x, %c {kind = "add"}', 'constant 0|binary %c, %x {kind = "add"}',
        'constant 0|binary %x, %c {kind = "sub"}', 'constant 1|binary %x, %c {kind = "mul"}',
        'constant 1|binary %c, %x {kind = "mul"}', 'constant 1|binary %x, %c {kind = "floordiv"}',
        'constant 0|binary %x, %c {kind = "shl"}', 'constant 0|binary %x, %c {kind = "shr"}',
        'constant 0|binary %x, %c {kind = "or"}', 'constant 0|binary %x, %c {kind = "xor"}',
        'constant -1|binary %x, %c {kind = "and"}', 'constant 0|binary %x, %x {kind = "min"}',
        'constant 0|binary %x, %x {kind = "and"}', "constant 0|cast %x {dtype = i32}",
        "constant 0|select %flag, %x, %x", "constant 0|assume %x {divisor = 1}",
    ],
)  # fmt: skip
def test_operations_that_change_nothing_disappear(expression: str):
    value, operation = expression.split("|")
    scalar(
        f"%c = constant {{value = {value.split()[1]}, dtype = i32}}\n%v = {operation}",
        'print [%x] {format = ""}',
    )


def test_operations_that_undo_each_other_disappear():
    scalar('%n = unary %x {kind = "neg"}\n%v = unary %n {kind = "neg"}', 'print [%x] {format = ""}')
    scalar(
        '%n = unary %x {kind = "neg"}\n%v = unary %n {kind = "abs"}',
        '%v = unary %x {kind = "abs"}\nprint [%v] {format = ""}',
    )
    scalar('%n = unary %flag {kind = "not"}\n%v = unary %n {kind = "not"}', 'print [%flag] {format = ""}')
    scalar(
        '%n = unary %x {kind = "abs"}\n%v = unary %n {kind = "abs"}',
        '%n = unary %x {kind = "abs"}\nprint [%n] {format = ""}',
    )


@pytest.mark.parametrize(
    ("value", "operation", "gone"),
    [
        ("1.0", 'binary %f, %c {kind = "mul"}', True),
        ("1.0", 'binary %f, %c {kind = "div"}', True),
        ("0.0", 'binary %f, %c {kind = "sub"}', True),
        ("-0.0", 'binary %f, %c {kind = "add"}', True),
        # These turn -0 into 0, or NaN into a number.
        ("0.0", 'binary %f, %c {kind = "add"}', False),
        ("-0.0", 'binary %f, %c {kind = "sub"}', False),
        ("0.0", 'binary %f, %c {kind = "mul"}', False),
        ("0.0", 'binary %f, %f {kind = "sub"}', False),
        ("0.0", 'compare %f, %f {kind = "eq"}', False),
    ],
)
def test_only_exact_identities_of_floats_hold(value: str, operation: str, gone: bool):
    before = f'%c = constant {{value = {value}, dtype = f32}}\n%v = {operation}\nprint [%v] {{format = ""}}'
    after = body_of(canonicalise(make(before, PARAMS)))
    assert (after == ['print [%f] {format = ""}']) == gone
    assert any(operation.split(" ", 1)[0] in line for line in after) == (not gone)


def test_constants_move_to_the_right_and_group():
    scalar(
        constant("a", 3)
        + "\n"
        + constant("b", 4)
        + """
        %u = binary %a, %x {kind = "add"}
        %v = binary %b, %u {kind = "add"}""",
        """
        %0 = constant {value = 7, dtype = i32}
        %v = binary %x, %0 {kind = "add"}
        print [%v] {format = ""}""",
    )


def test_floats_are_not_regrouped():
    before = """
    %a = constant {value = 0.1, dtype = f32}
    %u = binary %f, %a {kind = "add"}
    %v = binary %u, %a {kind = "add"}
    print [%v] {format = ""}"""
    check(before, before)


def test_equal_operations_become_one_inside_a_region_and_below_it():
    check(
        """
        %u = binary %x, %y {kind = "mul"}
        %v = binary %y, %x {kind = "mul"}
        if %flag () {
          %w = binary %x, %y {kind = "mul"}
          %z = binary %x, %x {kind = "mul"}
          print [%u, %w, %z] {format = ""}
          yield []
        } () {
          %q = binary %x, %x {kind = "mul"}
          print [%q] {format = ""}
          yield []
        }
        print [%v] {format = ""}""",
        """
        %u = binary %x, %y {kind = "mul"}
        %v = binary %y, %x {kind = "mul"}
        if %flag () {
        %z = binary %x, %x {kind = "mul"}
        print [%u, %u, %z] {format = ""}
        yield []
        } () {
        %q = binary %x, %x {kind = "mul"}
        print [%q] {format = ""}
        yield []
        }
        print [%v] {format = ""}""",
    )


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("value = 0.0, dtype = f32", "value = -0.0, dtype = f32"),
        ("value = 1, dtype = i32", "value = 1, dtype = i64"),
    ],
)
def test_constants_that_only_look_equal_stay_apart(first: str, second: str):
    before = f"""
    %a = constant {{{first}}}
    %b = constant {{{second}}}
    print [%a, %b] {{format = ""}}"""
    check(before, before)


def test_tables_that_only_look_equal_stay_apart():
    before = """
    %a = table %x {values = [0.0, 1.0], dtype = f32}
    %b = table %x {values = [-0.0, 1.0], dtype = f32}
    print [%a, %b] {format = ""}"""
    check(before, before)


def test_tiles_are_not_shared_between_groups_of_warps():
    group = """
    warps {{first = {}, count = 1}} () {{
    %{} = iota {{shape = [32]}}
    print [%{}] {{format = ""}}
    yield []
    }}"""
    before = (
        '%t = iota {shape = [32]}\nprint [%t] {format = ""}'
        + group.format(0, "u", "u")
        + group.format(1, "w", "w")
    )
    check(before, before, warps=2)


def test_effects_stay_in_order_and_are_not_merged():
    before = """
    %zero = constant {value = 0, dtype = i32}
    %t = load_global %g, [%zero, %zero], _, _ {shape = [1, 8], checked = [true, true]}
    store_global %g, %t, [%x, %zero], _ {checked = [true, true]}
    %u = load_global %g, [%zero, %zero], _, _ {shape = [1, 8], checked = [true, true]}
    store_global %g, %u, [%y, %zero], _ {checked = [true, true]}
    sync
    fence
    assert %flag {message = ""}
    %s = inline_ptx [] {template = "nanosleep.u32 8;", dtypes = [i32], volatile = true}"""
    check(before, before)


def test_what_nothing_needs_disappears():
    check(
        """
        %zero = constant {value = 0, dtype = i32}
        %t = load_global %g, [%zero, %zero], _, _ {shape = [1, 8], checked = [true, true]}
        %u = binary %t, %t {kind = "add"}
        %s = alloc_shared {dtype = f32, shape = [8]}
        %b = barrier_alloc
        %w = assume %x {divisor = 8}
        %i = inline_ptx [%x] {template = "mov.b32 $0, $1;", dtypes = [i32]}
        for %zero, %x, %y, [%x] (%k: i32, %c: i32) {
          %n = binary %c, %k {kind = "add"}
          yield [%n]
        }
        if %flag () {
          %m = unary %x {kind = "neg"}
          yield []
        } () {
          yield []
        }
        warps {first = 0, count = 1} () {
          yield []
        }""".replace("for %zero", "%gone = for %zero"),
        "",
    )


def test_carried_values_that_nothing_needs_disappear():
    check(
        """
        %r, %q = for %x, %y, %x, [%x, %y] (%k: i32, %c: i32, %d: i32) {
          %n = binary %c, %k {kind = "add"}
          %m = binary %d, %n {kind = "mul"}
          if %flag () {
            break [%m, %n]
          } () {
            yield []
          }
          %o = unary %n {kind = "neg"}
          yield [%o, %m]
        }
        print [%r] {format = ""}""",
        """
        %r, %q = for %x, %y, %x, [%x, %y] (%k: i32, %c: i32, %d: i32) {
        %n = binary %c, %k {kind = "add"}
        %m = binary %d, %n {kind = "mul"}
        if %flag () {
        break [%m, %n]
        } () {
        yield []
        }
        %o = unary %n {kind = "neg"}
        yield [%o, %m]
        }
        print [%r] {format = ""}""",
    )
    check(
        """
        %r, %q = for %x, %y, %x, [%x, %y] (%k: i32, %c: i32, %d: i32) {
          %n = binary %c, %k {kind = "add"}
          %m = binary %d, %k {kind = "mul"}
          if %flag () {
            continue [%n, %d]
          } () {
            yield []
          }
          %o = unary %n {kind = "neg"}
          yield [%o, %m]
        }
        print [%r] {format = ""}""",
        """
        %r = for %x, %y, %x, [%x] (%k: i32, %c: i32) {
        %n = binary %c, %k {kind = "add"}
        if %flag () {
        continue [%n]
        } () {
        yield []
        }
        %o = unary %n {kind = "neg"}
        yield [%o]
        }
        print [%r] {format = ""}""",
    )


def test_a_value_that_a_loop_does_not_change_is_not_carried():
    check(
        """
        %r, %q = for %x, %y, %x, [%x, %y] (%k: i32, %c: i32, %d: i32) {
          if %flag () {
            break [%c, %k]
          } () {
            if %flag () {
              continue [%x, %c]
            } () {
              yield []
            }
            yield []
          }
          yield [%c, %k]
        }
        print [%r, %q] {format = ""}""",
        """
        %q = for %x, %y, %x, [%y] (%k: i32, %d: i32) {
        if %flag () {
        break [%k]
        } () {
        if %flag () {
        continue [%x]
        } () {
        yield []
        }
        yield []
        }
        yield [%k]
        }
        print [%x, %q] {format = ""}""",
    )


def test_a_value_that_only_a_break_changes_is_carried():
    before = """
    %q = for %x, %y, %x, [%x] (%k: i32, %c: i32) {
    print [%c] {format = ""}
    if %flag () {
    yield []
    } () {
    break [%k]
    }
    yield [%c]
    }
    print [%q] {format = ""}"""
    check(before, before)


def test_a_branch_that_is_known_takes_its_place():
    check(
        """
        %yes = compare %x, %x {kind = "eq"}
        %r = if %yes () {
          print [] {format = "then"}
          %n = unary %x {kind = "neg"}
          yield [%n]
        } () {
          print [] {format = "else"}
          yield [%x]
        }
        print [%r] {format = ""}""",
        """
        print [] {format = "then"}
        %n = unary %x {kind = "neg"}
        print [%n] {format = ""}""",
    )


def test_nothing_after_a_known_exit_stays():
    check(
        """
        %no = constant {value = false, dtype = bool}
        for %x, %y, %x, [] (%k: i32) {
          if %no () {
            yield []
          } () {
            print [%k] {format = "last"}
            break []
          }
          print [] {format = "never"}
          yield []
        }""",
        """
        for %x, %y, %x, [] (%k: i32) {
        print [%k] {format = "last"}
        break []
        }""",
    )


def test_what_both_branches_yield_is_no_result():
    check(
        """
        %r, %s = if %flag () {
          print [] {format = ""}
          yield [%x, %y]
        } () {
          yield [%x, %x]
        }
        print [%r, %s] {format = ""}""",
        """
        %s = if %flag () {
        print [] {format = ""}
        yield [%y]
        } () {
        yield [%x]
        }
        print [%x, %s] {format = ""}""",
    )


LOOP = """
%a0 = constant {{value = 3, dtype = i32}}
%a1 = constant {{value = {}, dtype = i32}}
%a2 = constant {{value = 2, dtype = i32}}
%r = for %a0, %a1, %a2, [%x] (%k: i32, %c: i32) {{
%n = binary %c, %k {{kind = "add"}}
print [%n] {{format = ""}}
yield [%n]
}}
print [%r] {{format = ""}}"""


def test_a_loop_that_never_turns_disappears():
    check(LOOP.format(3), 'print [%x] {format = ""}')


def test_a_loop_that_turns_once_is_its_body():
    check(
        LOOP.format(5),
        """
        %a0 = constant {value = 3, dtype = i32}
        %n = binary %x, %a0 {kind = "add"}
        print [%n] {format = ""}
        print [%n] {format = ""}""",
    )


def test_a_pipelined_loop_is_not_its_body():
    pipelined = LOOP.format(5).replace("[%x] (%k", "[%x] {stages = 2} (%k")
    check(pipelined, pipelined)


def test_a_loop_that_turns_twice_stays():
    check(LOOP.format(6), LOOP.format(6))


def test_a_loop_that_may_leave_early_is_not_its_body():
    before = """
    %a0 = constant {value = 0, dtype = i32}
    %a1 = constant {value = 1, dtype = i32}
    for %a0, %a1, %a1, [] (%k: i32) {
    if %flag () {
    break []
    } () {
    yield []
    }
    print [] {format = ""}
    yield []
    }"""
    check(before, before)


def test_a_spinning_loop_stays_and_an_idle_one_goes():
    spinning = """
    %i = iota {shape = [1]}
    loop [] () {
    %t = gather %g, [%i], _
    %v = extract %t
    %done = compare %v, %x {kind = "eq"}
    if %done () {
    break []
    } () {
    yield []
    }
    yield []
    }"""
    params = "%x: i32, %g: global<i32, [8], [1]>"
    check(spinning, spinning, params)
    idle = spinning.replace("%t = gather %g, [%i], _", "%t = iota {shape = [1]}")
    check(idle, "", params)


def test_tiles_that_stay_as_they_are_disappear():
    check(
        """
        %t = iota {shape = [4, 8]}
        %a0 = broadcast %t {shape = [4, 8]}
        %a1 = reshape %a0 {shape = [4, 8]}
        %a2 = transpose %a1 {perm = [0, 1]}
        %a3 = concat [%a2]
        %a4 = slice_tile %a3 {offsets = [0, 0], shape = [4, 8]}
        %a5 = view %a4 {dtype = i32, shape = [4, 8]}
        %one = constant {value = 1, dtype = i32}
        %ones = splat %one {shape = [4, 8]}
        %a6 = binary %ones, %a5 {kind = "mul"}
        print [%a6] {format = ""}""",
        """
        %t = iota {shape = [4, 8]}
        print [%t] {format = ""}""",
    )


def test_a_tile_in_another_layout_is_another_tile():
    first, second = "#reg([32], [32@0:1], [])", "#reg([32], [2@0:16, 16@0:1], [])"
    check(
        f"""
        %t = iota {{shape = [32], layout = {first}}}
        %u = convert_layout %t {{layout = {second}}}
        %v = convert_layout %t {{layout = #reg([32], [16@0:1, 2@0:16], [])}}
        %w = convert_layout %v {{layout = {first}}}
        print [%u, %v, %w] {{format = ""}}""",
        f"""
        %t = iota {{shape = [32], layout = {first}}}
        %v = convert_layout %t {{layout = #reg([32], [16@0:1, 2@0:16], [])}}
        print [%t, %v, %t] {{format = ""}}""",
    )


def test_equal_operations_with_results_in_different_layouts_stay_apart():
    first, second = "#reg([32], [32@0:1], [])", "#reg([32], [2@0:1, 16@0:2], [])"
    kernel = make(
        f"""
        %t = splat %x {{shape = [32]}} : tile<i32, [32], {first}>
        %u = splat %x {{shape = [32]}} : tile<i32, [32], {second}>
        %w = splat %x {{shape = [32]}} : tile<i32, [32], {first}>
        print [%t, %u, %w] {{format = ""}}""",
        PARAMS,
    )
    t, u, printed, _ = canonicalise(kernel).body.ops
    assert list(printed.inputs()) == [t.result, u.result, t.result]


def test_a_splat_is_taken_apart():
    scalar(
        "%t = splat %x {shape = [1]}\n%v = extract %t",
        'print [%x] {format = ""}',
    )


def test_a_view_of_a_pointer_tells_its_sizes():
    check(
        """
        %w = global_view %p, [%x], [%y]
        %m = dim %w {axis = 0}
        %q = pointer_of %w
        %u = pointer_add %q, %m
        %z = global_view %u, [%x], [%y]
        %zero = constant {value = 0, dtype = i32}
        %t = load_global %z, [%zero], _, _ {shape = [4], checked = [true]}
        print [%t] {format = ""}""",
        """
        %u = pointer_add %p, %x
        %z = global_view %u, [%x], [%y]
        %zero = constant {value = 0, dtype = i32}
        %t = load_global %z, [%zero], _, _ {shape = [4], checked = [true]}
        print [%t] {format = ""}""",
    )


def test_names_and_locations_of_what_folds_stay():
    kernel = make(
        constant("a", 2)
        + "\n"
        + '%total = binary %a, %a {kind = "add"} @ "k.py":4:0\nprint [%total] {format = ""}'
    )
    text = print_kernel(canonicalise(kernel), locations=True)
    assert '%total = constant {value = 4, dtype = i32} : i32 @ "k.py":4:0' in text


def test_the_grid_is_simplified_too():
    kernel = make("")
    x = Value(kernel.grid.ops[0].result.type, "x")
    builder = Builder()
    with builder.region() as grid:
        zero = builder.constant(0)
        made = builder.emit(ops.Binary, "add", x, zero).result
        builder.emit(ops.Yield, (made,) * 3)
    kernel = dataclasses.replace(kernel, params=(x,), grid=Region((), tuple(grid)))
    simpler = canonicalise(kernel)
    assert [type(o) for o in simpler.grid.ops] == [ops.Yield]
    assert simpler.grid.ops[0].values == (x, x, x)


def test_a_kernel_with_every_operation_stays_valid():
    kernel = everything()
    simpler = canonicalise(kernel)
    verify(simpler)
    assert canonicalise(simpler) is simpler
    verify(eliminate_dead_code(kernel))
    # What has an effect is still there, in order.
    effects = (ops.StoreGlobal, ops.Print, ops.Assert, ops.Sync, ops.Atomic, ops.Scatter, ops.CopyAsync)
    found = [[type(o) for o in walk(k.body) if isinstance(o, effects)] for k in (kernel, simpler)]
    assert found[0] == found[1]


def test_the_original_kernel_is_left_as_it_is():
    kernel = make(LOOP.format(5), PARAMS)
    before = print_kernel(kernel)
    canonicalise(kernel)
    assert print_kernel(kernel) == before
