"""What the printer writes the parser reads, and says where a text is wrong."""

from __future__ import annotations

import dataclasses

import pytest

from tests.ir.kernels import everything, everything_text, kernel_text
from tilus.dtypes import float16, int32
from tilus.errors import Location
from tilus.ir import (
    OPCODES,
    Builder,
    GlobalType,
    Kernel,
    Region,
    RegisterType,
    ScalarType,
    Symbol,
    Value,
    ops,
    walk,
)
from tilus.ir.parser import ParseError, parse_kernel
from tilus.ir.printer import print_kernel, print_op
from tilus.layout import spatial


def test_the_everything_kernel_has_every_operation():
    kernel = everything()
    found = {o.opcode for region in (kernel.grid, kernel.body) for o in walk(region)}
    assert found == set(OPCODES)


def test_the_printer_writes_what_the_parser_read():
    assert print_kernel(everything()) == everything_text()


def test_every_field_comes_back_equal():
    kernel = everything()
    again = parse_kernel(print_kernel(kernel))
    pairs = list(zip(walk(kernel.body), walk(again.body), strict=True))
    assert all(type(a) is type(b) and a.attributes() == b.attributes() for a, b in pairs)
    assert [[v.type for v in a.results] for a, _ in pairs] == [[v.type for v in b.results] for _, b in pairs]
    assert [repr(a.attributes()) for a, _ in pairs] == [repr(b.attributes()) for _, b in pairs]


def test_types_that_infer_gives_may_be_left_out():
    kernel = everything()
    text = print_kernel(kernel, types=False)
    assert "= dim %a {axis = 0} : i32" in print_kernel(kernel)
    assert "= dim %a {axis = 0}\n" in text
    assert print_kernel(parse_kernel(text)) == print_kernel(kernel)


def test_locations_with_their_callers_come_back():
    builder = Builder()
    outer = Location("user code.py", 40, 2)
    builder.loc = Location(
        'C:\\dir "x"\\a.py', 7, 4, 19, caller=dataclasses.replace(outer, caller=Location("m.py", 1))
    )
    with builder.region() as body:
        builder.constant(3)
        builder.loc = None
        builder.constant(4)
        builder.emit(ops.Return)
    with builder.region() as grid:
        one = builder.constant(1)
        builder.emit(ops.Yield, (one, one, one))
    kernel = Kernel(
        "k", (), Region((), tuple(grid)), Region((), tuple(body)), loc=outer, notes=("a", 'b "c"')
    )
    text = print_kernel(kernel, locations=True)
    again = parse_kernel(text)
    assert print_kernel(again, locations=True) == text
    assert again.body.ops[0].loc == kernel.body.ops[0].loc
    assert again.body.ops[1].loc is None
    assert (again.loc, again.notes) == (outer, kernel.notes)
    assert "@" not in print_kernel(kernel).replace("@k", "")


def test_header_fields_come_back():
    kernel = dataclasses.replace(everything(), name="a.b$c", warps=8, cluster=(2, 1, 4), shared_bytes=4096)
    again = parse_kernel(print_kernel(kernel))
    assert (again.name, again.warps, again.cluster, again.shared_bytes) == ("a.b$c", 8, (2, 1, 4), 4096)


def test_names_are_made_unique_and_unnamed_values_numbered():
    x, y, z = (Value(ScalarType(int32), "x") for _ in range(3))
    forced, number, spaced = (Value(ScalarType(int32), n) for n in ("x_1", "7", "a b"))
    builder = Builder()
    with builder.region() as body:
        builder.constant(5)
        builder.emit(ops.Binary, "add", x, spaced)
        builder.emit(ops.Return)
    with builder.region() as grid:
        one = builder.constant(1)
        builder.emit(ops.Yield, (one, one, one))
    params = (x, y, z, forced, number, spaced)
    text = print_kernel(Kernel("k", params, Region((), tuple(grid)), Region((), tuple(body))))
    assert text.startswith(
        "kernel @k(%x: i32, %x_1: i32, %x_2: i32, %x_1_1: i32, %_7: i32, %a_b: i32) warps=4 "
    )
    assert "%0 = constant {value = 1" in text
    assert "%2 = binary %x, %a_b" in text
    assert print_kernel(parse_kernel(text)) == text


def test_one_operation_prints_alone():
    x = Value(ScalarType(int32), "x")
    made = ops.Binary("add", x, x, loc=Location("a.py", 3, 1))
    assert print_op(made) == '%0 = binary %x, %x {kind = "add"} : i32'
    assert print_op(made, locations=True, types=False) == '%0 = binary %x, %x {kind = "add"} @ "a.py":3:1'


@pytest.mark.parametrize(
    ("type", "text"),
    [
        (RegisterType(float16, (8, 4), spatial(8, 4)), "tile<f16, [8, 4], #reg([8, 4], [8@0:1, 4@1:1], [])>"),
        (RegisterType(float16, ()), "tile<f16, []>"),
        (GlobalType(int32, (Symbol("?"), 4), (Symbol("s", 8), 1)), "global<i32, [?:1, 4], [s:8, 1]>"),
    ],
)
def test_types_read_as_text(type: RegisterType, text: str):
    assert str(type) == text
    parsed = parse_kernel(kernel_text("", f"%x: {text}")).params[0].type
    assert parsed == type


def test_comments_and_blank_lines_are_skipped():
    assert len(parse_kernel(kernel_text("// nothing\n\n// here")).body.ops) == 1


@pytest.mark.parametrize(
    ("body", "line", "message"),
    [
        ("%0 = dimm %a", 7, "no operation 'dimm'; did you mean dim?"),
        ("%0 = dim %b {axis = 0}", 7, "%b is not defined here"),
        ("%0 = dim %aa {axis = 0}", 7, "%aa is not defined here; did you mean %a?"),
        ("%0 = dim %a {axis = 5}", 7, "dim: dim 5 of a tensor of rank 1"),
        ("%0 = dim %a {axes = 0}", 7, "attribute axes of dim is not one of axis"),
        ("%0 = dim %a {axis = 0, axis = 0}", 7, "attribute axis of dim is given twice"),
        ("%0 = dim %a", 7, "dim needs axis"),
        ("%0 = dim [%a] {axis = 0}", 7, "dim takes a value as tensor"),
        ("%0 = dim {axis = 0}", 7, "dim has 1 operands (tensor), not 0"),
        ("%0 = dim %a {axis = 0}\n%0 = dim %a {axis = 0}", 8, "%0 is defined twice"),
        ("%0, %1 = dim %a {axis = 0}", 7, "dim has 1 results, not 2"),
        ("%0, %1 = dim %a {axis = 0} : i32", 7, "2 results have 1 types"),
        ("%0 = constant {value = 1, dtype = f99}", 7, "there is no dtype named 'f99'"),
        ("loop [] () {\n%0 = cluster_rank\nyield []\n}\nprint [%0]", 11, "%0 is not defined here"),
        ("loop []", 7, "loop has 1 regions, not 0"),
        ("%0 = iota {shape = [4], layout = #reg([4], [3@0:1], [])}", 7, "cover"),
        ("%0 = dim %a {axis = }", 7, "did not expect '}' here"),
        ("%0 = dim %a {axis = 0} ~", 7, "did not expect '~' here"),
    ],
)  # fmt: skip
def test_errors_name_the_line_and_what_is_wrong(body: str, line: int, message: str):
    with pytest.raises(ParseError) as caught:
        parse_kernel(kernel_text(body, "%a: global<f16, [m:1], [1]>"))
    assert message in caught.value.message
    assert caught.value.location is not None
    assert (caught.value.location.file, caught.value.location.line) == ("<ir>", line)
    # A caret stands below the text at fault.
    assert caught.value.message.splitlines()[-1].strip() == "^"


def test_a_text_that_ends_too_early_says_so():
    with pytest.raises(ParseError, match="the text ends too early"):
        parse_kernel("kernel @k() warps=4 {")


def test_an_unknown_header_is_refused():
    with pytest.raises(ParseError, match="a kernel has no 'wraps'"):
        parse_kernel(kernel_text("").replace("warps=1", "wraps=1"))
