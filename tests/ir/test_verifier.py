"""The verifier refuses a kernel that breaks a rule, one by one, and says where."""

from __future__ import annotations

import dataclasses

import pytest

from tests.ir.kernels import everything, make
from tilus.dtypes import float32, int32
from tilus.errors import Location
from tilus.ir import GlobalType, Kernel, Operation, PointerType, Region, RegisterType, ScalarType, Value, ops
from tilus.ir.parser import ParseError
from tilus.ir.verifier import InvalidIR, agree, flows, verify
from tilus.layout import RegisterLayout, local, row_major, spatial

I32 = ScalarType(int32)
HERE = Location("user.py", 5, 2)


def with_body(*operations: Operation, args: tuple[Value, ...] = (), **fields: object) -> Kernel:
    """Return a kernel with a body that ends in a return."""
    base = make("", "%x: i32, %flag: bool, %y: f32")
    body = Region(args, (*operations, ops.Return()))
    return dataclasses.replace(base, body=body, **fields)


def refused(kernel: Kernel, message: str, layouts: bool = False) -> InvalidIR:
    with pytest.raises(InvalidIR) as caught:
        verify(kernel, layouts)
    assert message in caught.value.message
    return caught.value


def constant(value: int = 1) -> ops.Constant:
    return ops.Constant(value, int32)


def tile(layout: RegisterLayout | None = None, shape: tuple[int, ...] = (32,)) -> ops.Iota:
    return ops.Iota(shape, 0, int32, layout)


def test_a_kernel_with_every_operation_is_accepted():
    verify(everything())


def test_a_value_is_defined_before_it_is_used():
    a = constant()
    add = ops.Binary("add", a.result, a.result, loc=HERE)
    error = refused(with_body(add, a), "is used undefined")
    assert error.location == HERE


def test_a_value_is_not_used_outside_its_region():
    a = constant()
    base = make("", "%flag: bool")
    inner = Region((), (a, ops.Yield()))
    made = ops.If(base.params[0], inner, Region((), (ops.Yield(),)))
    use = ops.Unary("neg", a.result, loc=HERE)
    error = refused(
        dataclasses.replace(base, body=Region((), (made, use, ops.Return()))),
        "is used outside the region that defines it",
    )
    assert error.location == HERE


def test_an_argument_is_not_used_outside_its_region():
    index = Value(I32, "i")
    use = ops.Unary("neg", index, loc=HERE)
    refused(
        with_body(*for_loop((), (index,), ops.Yield()), use), "is used outside the region that defines it"
    )


def test_a_value_is_defined_once():
    a = constant()
    refused(with_body(a, a), "is defined twice")


def test_a_region_ends_in_a_terminator():
    base = make("")
    refused(
        dataclasses.replace(base, body=Region((), (constant(),))),
        "the body of a kernel ends in return, not constant",
    )
    refused(
        dataclasses.replace(base, body=Region((), ())), "the body of a kernel ends in return, not nothing"
    )
    refused(
        dataclasses.replace(base, grid=Region((), (ops.Return(),))),
        "the body of the grid ends in yield, not return",
    )


def test_nothing_follows_a_terminator():
    refused(with_body(ops.Return(loc=HERE), constant()), "return stands before the end of a region")


def test_the_grid_yields_three_extents():
    base = make("")
    one = constant()
    refused(
        dataclasses.replace(base, grid=Region((), (one, ops.Yield((one.result,))))),
        "yield hands on 1 values, not 3",
    )
    wrong = ops.Constant(1.0, float32)
    last = ops.Yield((wrong.result, wrong.result, wrong.result))
    refused(
        dataclasses.replace(base, grid=Region((), (wrong, last))), "yield hands on f32 where i32 is carried"
    )


def test_the_grid_is_computed_on_the_host():
    base = make("")
    block = ops.BlockId(0, loc=HERE)
    last = ops.Yield((block.result,) * 3)
    refused(
        dataclasses.replace(base, grid=Region((), (block, last))),
        "the host cannot compute block_id in the grid",
    )


@pytest.mark.parametrize("leave", [ops.Break, ops.Continue])
def test_break_and_continue_stand_inside_a_loop(leave: type[Operation]):
    base = make("", "%flag: bool")
    branch = ops.If(base.params[0], Region((), (leave(loc=HERE),)), Region((), (ops.Yield(),)))
    kernel = dataclasses.replace(base, body=Region((), (branch, ops.Return())))
    error = refused(kernel, f"{leave.opcode} stands outside a loop")
    assert error.location == HERE


def test_a_group_of_warps_does_not_leave_a_loop_around_it():
    base = make("", "%flag: bool")
    branch = ops.If(base.params[0], Region((), (ops.Break(loc=HERE),)), Region((), (ops.Yield(),)))
    group = ops.WarpGroup(0, 1, 0, Region((), (branch, ops.Yield())))
    loop = ops.Loop((), Region((), (group, ops.Yield())))
    refused(dataclasses.replace(base, body=Region((), (loop, ops.Return()))), "break stands outside a loop")


def for_loop(inits: tuple[Value, ...], args: tuple[Value, ...], *body: Operation) -> list[Operation]:
    one = constant()
    return [one, ops.For(one.result, one.result, one.result, inits, body=Region(args, body), loc=HERE)]


def test_a_loop_hands_on_as_many_values_as_it_carries():
    init = constant()
    args = (Value(I32), Value(I32))
    refused(with_body(init, *for_loop((init.result,), args, ops.Yield())), "yield hands on 0 values, not 1")
    refused(with_body(init, *for_loop((init.result,), args, ops.Break())), "break hands on 0 values, not 1")
    refused(
        with_body(init, *for_loop((init.result,), args[:1], ops.Yield())),
        "the body of for has 1 arguments, not 2",
    )


def test_a_loop_carries_one_type():
    init = constant()
    index, carried = Value(I32), Value(I32)
    other = ops.Constant(1.0, float32)
    refused(
        with_body(init, *for_loop((init.result,), (index, carried), other, ops.Yield((other.result,)))),
        "yield hands on f32 where i32 is carried",
    )
    wrong = Value(ScalarType(float32))
    refused(
        with_body(init, *for_loop((init.result,), (index, wrong), ops.Yield((wrong,)))),
        "an argument of for is f32, but takes i32",
    )


def test_a_for_runs_over_one_integer_type():
    start, stop = constant(), ops.Constant(1, make("", "%x: i64").params[0].type.dtype)
    loop = ops.For(
        start.result, stop.result, start.result, body=Region((Value(I32),), (ops.Yield(),)), loc=HERE
    )
    refused(with_body(start, stop, loop), "for runs over one integer type, not i32, i64 and i32")


def test_branches_yield_the_same_types():
    base = make("", "%flag: bool")
    a, b = constant(), constant()
    sides = Region((), (a, ops.Yield((a.result,)))), Region((), (b, ops.Yield((b.result,))))
    made = ops.If(base.params[0], *sides)
    short = dataclasses.replace(made, orelse=Region((), (ops.Yield(),)), results=made.results)
    refused(
        dataclasses.replace(base, body=Region((), (short, ops.Return()))),
        "the branches of if yield 1 and 0 values",
    )


def test_results_have_the_types_that_the_operation_says():
    base = make("", "%x: i32")
    (x,) = base.params
    wrong = ops.Binary("add", x, x, results=(Value(ScalarType(float32)),), loc=HERE)
    error = refused(
        dataclasses.replace(base, body=Region((), (wrong, ops.Return()))),
        "binary gives i32, but its result is f32",
    )
    assert error.location == HERE
    many = ops.Binary("add", x, x, results=(Value(I32), Value(I32)))
    refused(dataclasses.replace(base, body=Region((), (many, ops.Return()))), "binary has 2 results, not 1")


def test_operands_are_checked_again():
    base = make("", "%x: i32, %y: f32")
    x, y = base.params
    wrong = ops.Binary("add", x, y, results=(Value(I32),), loc=HERE)
    error = refused(
        dataclasses.replace(base, body=Region((), (wrong, ops.Return()))), "one dtype, not int32 and float32"
    )
    assert error.location == HERE


def test_a_layout_has_the_shape_of_its_tile():
    wrong = ops.Iota((32,), results=(Value(RegisterType(int32, (32,), spatial(64))),), loc=HERE)
    error = refused(with_body(wrong), "has a layout of shape [64]")
    assert error.location == HERE
    shared = ops.AllocShared(int32, (32,), row_major(16))
    refused(with_body(shared), "has a layout of shape [16]")


def test_a_layout_covers_the_threads_of_the_group():
    made = tile(spatial(32))
    verify(with_body(made, warps=1))
    refused(with_body(made, warps=2), "is spread over 32 threads in a group of 64")
    verify(with_body(tile(spatial(32).with_replication(2)), warps=2))
    inside = ops.WarpGroup(1, 1, 0, Region((), (tile(spatial(32)), ops.Yield())))
    verify(with_body(inside, warps=2))
    refused(with_body(dataclasses.replace(inside, first=0, count=2), warps=2), "in a group of 64")


def test_after_layout_inference_each_tile_has_a_layout():
    verify(with_body(tile()))
    refused(with_body(tile()), "no layout for the tile tile<i32, [32]>", layouts=True)
    verify(with_body(tile(spatial(32))), layouts=True)


def test_the_same_tile_is_not_forgiven_in_a_smaller_group():
    made = tile(spatial(64), (64,))
    again = ops.Iota((64,), results=(Value(made.result.type),), loc=HERE)
    group = ops.WarpGroup(0, 1, 0, Region((), (again, ops.Yield())))
    refused(with_body(made, group, warps=2), "spread over 64 threads in a group of 32")


def test_an_elementwise_operation_takes_one_layout():
    a, b = tile(spatial(32)), tile(spatial(16).with_replication(2) * local(2))
    add = ops.Binary("add", a.result, b.result, loc=HERE)
    error = refused(with_body(a, b, add), "binary takes tiles in one layout")
    assert error.location == HERE
    loose = ops.Binary("add", a.result, tile().result)
    verify(with_body(a, ops.Iota((32,), results=(loose.b,)), loose))


def test_a_group_is_among_the_warps_around():
    def group(first: int, count: int, *body: Operation) -> ops.WarpGroup:
        return ops.WarpGroup(first, count, 0, Region((), (*body, ops.Yield())), loc=HERE)

    verify(with_body(group(1, 3, group(2, 1)), warps=4))
    refused(with_body(group(1, 4), warps=4), "warps 1 to 4 are not among the warps 0 to 3 around")
    refused(
        with_body(group(1, 2, group(0, 1)), warps=4), "warps 0 to 0 are not among the warps 1 to 2 around"
    )
    refused(with_body(group(1, 0), warps=4), "are not among")


def test_a_tile_does_not_pass_between_groups():
    made = tile()
    use = ops.Unary("neg", made.result, loc=HERE)
    group = ops.WarpGroup(0, 1, 0, Region((), (use, ops.Yield())))
    error = refused(with_body(made, group, warps=2), "belongs to other warps than those that use it")
    assert error.location == HERE
    scalar = constant()
    inside = ops.WarpGroup(0, 1, 0, Region((), (ops.Unary("neg", scalar.result), ops.Yield())))
    verify(with_body(scalar, inside, warps=2))


def test_a_block_has_warps_and_a_cluster_blocks():
    refused(with_body(warps=0), "a thread block has 1 to 32 warps, not 0")
    refused(with_body(warps=33), "a thread block has 1 to 32 warps, not 33")
    refused(with_body(cluster=(1, 0, 1)), "a cluster has three positive extents, not (1, 0, 1)")


def test_parameters_are_scalars_pointers_and_global_tensors():
    base = make("")
    wrong = Value(RegisterType(int32, (4,)), "t")
    refused(
        dataclasses.replace(base, params=(wrong,)), "a parameter is a scalar, a pointer or a global tensor"
    )


def test_an_extent_is_positive():
    refused(with_body(ops.Iota((4, 0), loc=HERE)), "the extents of a tile are positive, not [4, 0]")


def test_a_pointer_may_lose_alignment_but_not_gain_it():
    aligned, loose = PointerType(float32, 16), PointerType(float32, 4)
    assert flows(aligned, loose)
    assert not flows(loose, aligned)
    assert not flows(aligned, PointerType(int32, 4))
    tensor, loose_tensor = GlobalType(float32, (8, 8), (8, 1), 16), GlobalType(float32, (8, 8), (8, 1), 4)
    assert flows(tensor, loose_tensor)
    assert not flows(loose_tensor, tensor)
    assert not flows(tensor, GlobalType(float32, (8, 8), (16, 1), 16))


def test_types_agree_where_a_layout_is_missing():
    bare, laid = RegisterType(int32, (32,)), RegisterType(int32, (32,), spatial(32))
    assert agree(bare, laid)
    assert agree(laid, bare)
    assert not agree(laid, RegisterType(int32, (32,), spatial(16) * local(2)))
    assert not agree(bare, RegisterType(int32, (16,)))


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("%0 = block_id {axis = 3}", "a grid has axes 0, 1 and 2, not 3"),
        ("%0 = stride %a {axis = 2}", "stride 2 of a tensor of rank 1"),
        ("%0 = compare %x, %x {kind = \"less\"}", "no comparison named less"),
        ("%0 = unary %x {kind = \"exp\"}", "exp does not take int32"),
        ("%0 = binary %y, %y {kind = \"floordiv\"}", "floordiv does not take float32"),
        ("%0 = pointer_add %p, %y", "pointer arithmetic takes an integer offset, not f32"),
        ("%0 = assume %x {divisor = 0}", "assume takes a positive divisor, not 0"),
        ("%0 = load_global %a, [%x], _, _ {shape = [4], checked = []}", "says for 0 of 1 dimensions"),
        ("%0 = load_global %a, [%x, %x], _, _ {shape = [4], checked = [true]}", "takes 1 offsets"),
        ("%0 = load_global %a, [%x], _, %x {shape = [4], checked = [true]}", "a scalar float16 for elements outside"),
        ("%0 = load_global %a, [%x], %x, _ {shape = [4], checked = [true]}", "a boolean tile as mask, not i32"),
        ("%0 = concat []", "concat takes one tile at least"),
        ("barrier_wait %x, %x, _", "wait takes a barrier, not i32"),
        ("barrier_arrive %x, _", "arrive takes a barrier, not i32"),
        ("%0 = random %y, %x", "random takes a register tile, not i32"),
        ("%0 = global_view %p, [%x], [%x] {dims = [1, 2]}", "view of rank 1 with 2 extents known"),
        ("if %x () {\nyield []\n} () {\nyield []\n}", "if takes a scalar boolean, not i32"),
        ("%0 = iota {shape = [4], axis = 1}", "iota along axis 1 of a tile of rank 1"),
    ],
)  # fmt: skip
def test_operations_refuse_what_they_cannot_take(body: str, message: str):
    with pytest.raises(ParseError) as caught:
        make(body, "%a: global<f16, [m:1], [1]>, %x: i32, %y: f32, %p: ptr<f16>")
    assert message in caught.value.message


def test_before_layout_inference_layouts_are_wishes_that_need_not_agree():
    a, b = tile(spatial(32)), tile(spatial(16) * local(2))
    kernel = with_body(a, b, ops.Binary("add", a.result, b.result))
    with pytest.raises(InvalidIR):
        verify(kernel)
    verify(kernel, wishes=True)
