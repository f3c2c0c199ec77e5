"""Every kind of mistake in a kernel is refused with a place, one sentence and what to write instead: golden texts."""

from __future__ import annotations

import importlib.util
import sys
import textwrap
from pathlib import Path
from types import ModuleType

import pytest

from tests.lang.support import anonymous, trace
from tilus.errors import TilusError

HEADER = """\
import math, numpy as np
import tilus.lang as tilus
from tilus.lang import Pointer, Tensor, constexpr, float16, float32, int8, int32, int64, uint4, uint8, uint32
"""
START = """

def kernel(
    a: Tensor[float16, "m k"], q: Tensor[uint4, "k n"], out: Tensor[float32, "m n"], p: Pointer[float16],
    i: int32, u: uint32, f: float32, *, bm: constexpr = 16,
):
    tilus.grid(4, warps=4)
    tile = tilus.load(a, (0, 0), (16, 16))
    wide = tilus.zeros((16, 16))
    codes = tilus.load(q, (0, 0), (16, 16))
    s = tilus.shared(float16, (2, 16, 16))
"""

# Statements of a kernel, each of which must be refused.
BODIES = {
    # Python that a kernel may not use.
    "endless_while": "n = 0\nwhile True:\n    n = n + 1",
    "endless_while_around_a_loop": "while True:\n    for j in range(i):\n        break",
    "numpy_array": "y = tile + np.zeros(3)",
    "short_name": "y = tile + d",
    "function_as_method": "y = tile.softmax()",
    "name_of_another_language": "y = tilus.program_id(0)",
    "cast_by_another_name": "y = tile.cast_to(float32)",
    "try": "try:\n    pass\nexcept ValueError:\n    pass",
    "raise": "raise ValueError('no')",
    "assert": "assert i > 0",
    "import": "import numpy",
    "import_from": "from math import pi",
    "global": "global counter",
    "delete": "del tile",
    "class": "class Thing:\n    pass",
    "nested_function": "def helper(x):\n    return x",
    "lambda": "helper = lambda x: x",
    "walrus": "if (n := i + 1) > 0:\n    pass",
    "generator_expression": "total = sum(x for x in (1, 2))",
    "yield_inside_list": "xs = [*i]",
    "with_other": "with open('file'):\n    pass",
    "with_as": "with tilus.warps(0, 2) as group:\n    pass",
    "for_else": "for j in range(4):\n    pass\nelse:\n    pass",
    "while_else": "while i > 0:\n    pass\nelse:\n    pass",
    "print": "print('hello')",
    "return_value": "return tile",
    "star_assignment_too_short": "x, y, *z = (1,)",
    "attribute_assignment": "tile.shape = 3",
    "list_append": "xs = []\nxs.append(tile)",
    "list_item": "xs = [tile, wide]\nxs[0] = wide",
    "list_augmented": "xs = [tile]\nxs += [wide]",
    "match": "match bm:\n    case 16:\n        pass",
    "matmul_of_numbers": "x = 3 @ 4",
    "number_becomes_a_tile": "total = 0\nfor j in range(i):\n    total += wide",
    # Names.
    "unknown_name": "x = tille + 1",
    "name_of_a_dimension": "j = i + m",
    "dtype_as_text": "x = tile.to('float32')",
    "dtype_of_numpy": "x = tile.to(np.float32)",
    "offsets_before_the_tile": "tilus.store(out, (0, 0), wide)",
    "product_before_its_wait": "big = tilus.shared(float16, (64, 64))\nx = tilus.dot_async(big, big.T)\ny = x * 2.0",
    "product_waited_for_in_vain": "big = tilus.shared(float16, (64, 64))\nx = tilus.dot_async(big, big.T)\n"
    "tilus.dot_wait(x)\ntilus.store(out, x, (0, 0))",
    "second_operand_in_registers": "x = tilus.dot_async(tile, tile)",
    "unknown_function": "x = tilus.laod(a, (0, 0), (16, 16))",
    "unknown_attribute": "x = tile.shap",
    "unknown_method": "x = tile.astype(float32)",
    "read_before_assignment": "x = later\nlater = 3",
    "defined_in_one_branch": "if i > 0:\n    x = 1\ny = x + 1",
    "defined_in_else_only": "if i > 0:\n    pass\nelse:\n    x = 1\ny = x + 1",
    "defined_in_loop_only": "for j in range(i):\n    x = j\ny = x + 1",
    "loop_index_afterwards": "for j in range(i):\n    pass\ny = j + 1",
    "lost_in_loop": (
        "x = 0\nfor j in range(i):\n    y = x\n    if j > 2:\n        for l in range(i):\n            x = l\n"
        "            z = l\n        x = z"
    ),
    # Types.
    "storage_arithmetic": "x = codes + 1",
    "storage_comparison": "x = codes == 3",
    "storage_reduction": "x = tilus.sum(codes, 0)",
    "boolean_arithmetic": "x = (tile > 0) + 1",
    "sign_mix": "x = i + u",
    "int_division": "x = i / 2",
    "float_floor_division": "x = f // 2.0",
    "division_by_zero": "x = i // 0",
    "literal_too_large": "x = tile + 100000",
    "literal_negative_for_unsigned": "x = u + -1",
    "float_literal_as_bool": "x = (tile > 0) & 1",
    "shift_too_far": "x = i << 32",
    "shift_of_float": "x = f << 2",
    "bits_of_float": "x = tile & 3",
    "power_of_run_time": "x = f ** i",
    "math_of_int": "x = tilus.exp(i)",
    "none_arithmetic": "x = i + None",
    "text_arithmetic": "x = tile + 'one'",
    "effect_in_comparison": "if 0 < i < tilus.atomic_add(out, 1.0, (0, 0)):\n    pass",
    "tile_condition": "if tile > 0:\n    pass",
    "tile_and": "x = (tile > 0) and (tile < 1)",
    "tile_conditional": "x = 1 if tile > 0 else 2",
    "tile_while": "while tile > 0:\n    pass",
    "where_condition": "x = tilus.where(tile, 1.0, 2.0)",
    "global_arithmetic": "x = a + 1",
    "shared_arithmetic": "x = s[0] * 2.0",
    "dot_of_storage": "x = tilus.dot(codes, codes)",
    "dot_of_float32": "x = tilus.dot(wide, wide)",
    "dot_dtypes": "x = tilus.dot(tile, tile.to(tilus.bfloat16))",
    "dot_accumulator": "x = tilus.dot(tile, tile, tilus.zeros((16, 16), int32))",
    "cast_without_dtype": "x = tile.to(32)",
    "call_of_dtype": "x = float32(3)",
    "call_of_tile": "x = tile(3)",
    "wrong_keyword": "x = tilus.zeros((16, 16), dtyp=float16)",
    "missing_argument": "x = tilus.broadcast_to(tile)",
    "python_function_of_tile": "x = math.sqrt(f)",
    "python_function_raises": "x = int('one')",
    "any_of_numbers": "x = tilus.any(tile)",
    "range_of_float": "for j in range(f):\n    pass",
    "range_run_time_step": "for j in range(0, 10, i):\n    pass",
    "range_zero_step": "for j in range(0, 10, 0):\n    pass",
    "static_range_run_time": "for j in tilus.static_range(i):\n    pass",
    "for_over_tile": "for x in tile:\n    pass",
    "unpack_scalar": "x, y = i",
    "unpack_wrong_number": "x, y, z = a.shape",
    "fstring_outside_print": "text = f'{i}'",
    "device_assert_message": "tilus.device_assert(i > 0, f'{i}')",
    "print_wrong_number": "tilus.device_print('{} {}', i)",
    "print_format": "tilus.device_print('{:d}', i)",
    "print_two_tiles": "tilus.device_print('{} {}', tile, wide)",
    "static_assert_run_time": "tilus.static_assert(i > 0, 'positive')",
    "static_assert_fails": "tilus.static_assert(bm == 32, 'bm is 32')",
    "assume_form": "tilus.assume(i > 0)",
    "annotation_result_unused": "tilus.annotate_layout(tile, tilus.spatial(8, 4).local(2, 4))",
    "inline_ptx_operand": "x = tilus.inline_ptx('mov.b32 $0, $2;', [i], int32)",
    "declared_dtype": "x: int64 = i",
    # Shapes.
    "shapes_differ": "x = tile + tilus.zeros((16, 8), float16)",
    "dot_shapes": "x = tilus.dot(tile, tilus.zeros((8, 16), float16))",
    "dot_rank": "x = tilus.dot(tile, tilus.zeros(16, float16))",
    "reshape_size": "x = tilus.reshape(tile, (16, 8))",
    "broadcast_shape": "x = tilus.broadcast_to(tile, (16, 32))",
    "axis_outside": "x = tilus.sum(tile, 2)",
    "argmax_without_axis": "x = tilus.argmax(tile)",
    "run_time_shape": "x = tilus.zeros((i, 16))",
    "concat_shapes": "x = tilus.concat([tile, wide])",
    "layout_shape": "x = tilus.zeros((16, 16), layout=tilus.spatial(8, 4))",
    "layout_threads": "x = tilus.zeros((16, 16), layout=tilus.spatial(8, 4).local(2, 4))",
    "layout_threads_of_group": "with tilus.warps(0, 2):\n    x = tilus.zeros((8, 4), layout=tilus.spatial(8, 4))",
    "layout_kind": "x = tilus.zeros((16, 16), layout=tilus.row_major(16, 16))",
    "layout_algebra": "x = tilus.spatial(8, 4) / tilus.spatial(3, 1)",
    "view_bits": "x = tilus.view(tilus.zeros((4, 3), uint4), uint8)",
    "slice_step": "x = tile[::2, :]",
    "slice_run_time": "x = tile[i:, :]",
    "slice_empty": "x = tile[8:8]",
    "index_outside": "x = tile[16]",
    "index_run_time": "x = tile[i]",
    "index_mask": "x = tile[tile > 0]",
    "too_many_indices": "x = tile[0, 0, 0]",
    "tuple_index_run_time": "xs = [tile, wide]\nx = xs[i]",
    # Memory.
    "global_slice": "x = a[0:16, :]",
    "global_item_assignment": "out[0, 0] = wide",
    "tile_item_assignment": "wide[0] = 1.0",
    "tile_item_augmented": "wide[0] += 1.0",
    "shared_item_assignment": "s[0] = tile",
    "shared_slice_run_time": "x = s[0][i:]",
    "shared_element": "x = s[0, 1, 2]",
    "load_without_offsets": "x = tilus.load(a)",
    "load_offsets_number": "x = tilus.load(a, (0,), (16, 16))",
    "load_offsets_float": "x = tilus.load(a, (0, 0.5), (16, 16))",
    "load_rank": "x = tilus.load(a, (0, 0), (2, 16, 16))",
    "load_of_tile": "x = tilus.load(tile)",
    "load_of_pointer": "x = tilus.load(p, 0)",
    "load_shared_offsets": "x = tilus.load(s[0], (0, 0), (8, 8))",
    "load_mask": "x = tilus.load(a, (0, 0), (16, 16), mask=tile)",
    "load_cache": "x = tilus.load(a, (0, 0), (16, 16), cache='often')",
    "load_indices_number": "x = tilus.load(a, indices=tilus.arange(16))",
    "store_dtype": "tilus.store(out, tile, (0, 0))",
    "store_without_offsets": "tilus.store(out, wide)",
    "store_shared_shape": "tilus.store(s, tile)",
    "store_shared_offsets": "tilus.store(s[0], tile, (0, 0))",
    "copy_async_dtype": "tilus.copy_async(s[0], out, (0, 0))",
    "copy_async_order": "tilus.copy_async(a, s[0], (0, 0))",
    "atomic_dtype": "tilus.atomic_add(q, codes, (0, 0))",
    "atomic_place": "tilus.atomic_add(out, wide)",
    "pointer_scale": "x = p * 2",
    # Grid, loops and groups of warps.
    "second_grid": "tilus.grid(3)",
    "unrolled_break": "for j in tilus.static_range(4):\n    if i > j:\n        break",
    "warps_break": "for j in range(i):\n    with tilus.warps(0, 2):\n        break",
    "warps_value": "x = 0\nwith tilus.warps(0, 2):\n    x = 1\ny = x + 1",
    "warps_too_many": "with tilus.warps(2, 4):\n    pass",
    "warps_nested": "with tilus.warps(0, 2):\n    with tilus.warps(1, 2):\n        pass",
    "carried_type": "x = 0\nfor j in range(i):\n    x = x + 0.5\ny = x",
    "carried_dtype": "x = tile\nfor j in range(i):\n    x = x * f\ny = x",
    "carried_shape": "x = wide\nwhile i > 0:\n    x = x[0:8]\ny = x",
    "carried_shared": "x = s[0]\nfor j in range(i):\n    x = s[1]\ny = tilus.load(x)",
    "carried_constant": "x = float16\nfor j in range(i):\n    x = float32\ny = tile.to(x)",
    "branch_types": "if i > 0:\n    x = tile\nelse:\n    x = wide\ny = x",
    "branch_tensors": "if i > 0:\n    x = s[0]\nelse:\n    x = s[1]\ny = tilus.load(x)",
    "branch_constants": "x = float16 if i > 0 else float32",
    "branch_number_kinds": "if i > 0:\n    x = 1\nelse:\n    x = True\ny = x",
}

# Whole modules, for what is outside of a kernel's body or needs more than one function.
MODULES = {
    "tensor_or_none": """
def kernel(a: Tensor[float16, "n"], bias: Tensor[float16, "n"] | None):
    tilus.grid(1)
""",
    "none_or_pointer": """
def kernel(a: Tensor[float16, "n"], bias: None | Pointer[float16] = None):
    tilus.grid(1)
""",
    "tensor_with_default_none": """
def kernel(a: Tensor[float16, "n"], bias: Tensor[float16, "n"] = None):
    tilus.grid(1)
""",
    "dtype_or_none": """
def kernel(a: Tensor[float16, "n"], bias: int | None):
    tilus.grid(1)
""",
    "no_grid": """
def kernel(a: Tensor[float16, 'm']):
    tilus.store(a, 0.0, 0)
""",
    "grid_of_loaded": """
def kernel(a: Tensor[int32, 'm']):
    tilus.grid(tilus.load(a, 0))
""",
    "grid_in_branch": """
def kernel(i: int32):
    if i > 0:
        tilus.grid(1)
""",
    "grid_rank": """
def kernel(i: int32):
    tilus.grid(1, 2, 3, 4)
""",
    "grid_warps": """
def kernel(i: int32):
    tilus.grid(1, warps=64)
""",
    "block_id_before_grid": """
def kernel(i: int32):
    b = tilus.block_id()
    tilus.grid(1)
""",
    "no_annotation": """
def kernel(a):
    tilus.grid(1)
""",
    "unknown_annotation": """
def kernel(a: list):
    tilus.grid(1)
""",
    "scalar_parameter_dtype": """
def kernel(a: uint4):
    tilus.grid(1)
""",
    "star_parameter": """
def kernel(*tensors: Tensor[float16, 'm']):
    tilus.grid(1)
""",
    "dimension_text": """
def kernel(a: Tensor[float16, 'm 2*n']):
    tilus.grid(1)
""",
    "dtype_of_no_constexpr": """
def kernel(a: Tensor['a_dtyp', 'm'], *, a_dtype: constexpr = float16):
    tilus.grid(1)
""",
    "constexpr_missing": """
def kernel(a: Tensor[float16, 'm'], *, block: constexpr):
    tilus.grid(1)
""",
    "generator": """
def kernel(i: int32):
    tilus.grid(1)
    yield i
""",
    "inline_chain": """
@tilus.inline
def inner(x):
    return x + unknown


@tilus.inline
def outer(x):
    return inner(x * 2)


def kernel(f: float32):
    tilus.grid(1)
    y = outer(f)
""",
    "inline_recursion": """
@tilus.inline
def again(x):
    return again(x)


def kernel(f: float32):
    tilus.grid(1)
    y = again(f)
""",
    "inline_return_in_loop": """
@tilus.inline
def find(n):
    for i in range(n):
        if i > 3:
            return i
    return 0


def kernel(i: int32):
    tilus.grid(1)
    y = find(i)
""",
    "inline_results_differ": """
@tilus.inline
def pick(n):
    if n > 0:
        return n
    return 0.5


def kernel(i: int32):
    tilus.grid(1)
    y = pick(i)
""",
    "inline_arguments": """
@tilus.inline
def pick(n, m):
    return n


def kernel(i: int32):
    tilus.grid(1)
    y = pick(i)
""",
    "inline_constexpr": """
@tilus.inline
def pick(n: constexpr):
    return n


def kernel(i: int32):
    tilus.grid(1)
    y = pick(i)
""",
    "not_inline": """
def helper(x):
    return x + 1


def kernel(i: int32):
    tilus.grid(1)
    y = helper(i)
""",
    "unicode_column": """
def kernel(i: int32):
    tilus.grid(1)
    ä = 'größer'; y = i + 'größer'
""",
}


def load_module(folder: Path, text: str) -> ModuleType:
    path = folder / "kernel.py"
    path.write_text(text, encoding="utf-8")
    spec = importlib.util.spec_from_file_location(f"kernel_{folder.name}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def message(folder: Path, text: str) -> str:
    """Return the error of a module's kernel."""
    module = load_module(folder, text)
    with pytest.raises(TilusError) as caught:
        trace(module.kernel)
    error = caught.value
    assert error.location is not None, str(error)
    assert Path(error.location.file).name == "kernel.py"
    return anonymous(error)


@pytest.mark.parametrize("name", BODIES)
def test_a_kernel_that_must_be_refused(name, tmp_path, golden):
    body = textwrap.indent(BODIES[name], "    ")
    golden(message(tmp_path, HEADER + START + body + "\n"), f"{name}.txt")


@pytest.mark.parametrize("name", MODULES)
def test_a_module_that_must_be_refused(name, tmp_path, golden):
    golden(message(tmp_path, HEADER + "\n" + MODULES[name]), f"{name}.txt")


@pytest.mark.skipif(sys.version_info < (3, 11), reason="Python 3.10 has no except*")
def test_a_try_star_is_refused(tmp_path):
    text = HEADER + START + "    try:\n        pass\n    except* ValueError:\n        pass\n"
    assert "a kernel may not contain try" in message(tmp_path, text)


def test_every_refusal_says_what_to_write_instead():
    folder = Path(__file__).parent / "goldens" / "errors"
    silent = [
        path.stem
        for path in sorted(folder.glob("*.txt"))
        if "write instead" not in path.read_text(encoding="utf-8")
    ]
    # What is left has one sentence that leaves only one thing to do.
    assert silent == SELF_EXPLAINING


SELF_EXPLAINING = ["layout_algebra", "matmul_of_numbers", "python_function_raises", "static_assert_fails"]
