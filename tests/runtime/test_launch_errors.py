"""What a launch says about an argument that does not fit: one sentence that names the parameter."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

import tilus
from tests.runtime import kernels
from tilus.errors import LaunchError, NameNotFound, TilusError
from tilus.runtime.arguments import Array, Declared, check_scalar, check_tensor


def zeros(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.zeros(*shape, dtype=dtype)


def message(call: Any) -> str:
    """Return the one-sentence message of the LaunchError that a call raises."""
    with pytest.raises(LaunchError) as error:
        call()
    assert "\n" not in error.value.message
    return error.value.message


def test_wrong_dtype() -> None:
    assert message(lambda: kernels.scale_add(zeros(8), zeros(8, dtype=torch.float16), zeros(8))) == (
        "scale_add: y has dtype float16, expected float32"
    )


def test_wrong_rank() -> None:
    assert message(lambda: kernels.scale_add(zeros(8), zeros(8), zeros(2, 4))) == (
        'scale_add: out has 2 dimensions of sizes [2, 4], expected Tensor[float32, "n"]'
    )


def test_sizes_of_one_name_differ() -> None:
    assert message(lambda: kernels.scale_add(zeros(8), zeros(8), zeros(9))) == (
        "scale_add: n is 9 in out and 8 in x, expected one size for one name"
    )


def test_fixed_size_differs() -> None:
    assert message(lambda: kernels.fixed_columns(zeros(2, 32), zeros(2, 64))) == (
        "fixed_columns: x has size 32 along dimension 1, expected 64"
    )
    assert message(lambda: kernels.fixed_columns(zeros(2, 64), zeros(2, 64), width=32)) == (
        "fixed_columns: out has size 64 along dimension 1, expected 32"
    )


def test_no_tensor() -> None:
    assert message(lambda: kernels.scale_add([1.0], zeros(1), zeros(1))) == (
        'scale_add: x is a list, expected a tensor or an array for Tensor[float32, "n"]'
    )
    assert message(lambda: kernels.scale_add(zeros(1), None, zeros(1))) == (
        'scale_add: y is None, expected a tensor or an array for Tensor[float32, "n"]'
    )


def test_missing_and_surplus_arguments() -> None:
    assert message(lambda: kernels.scale_add(zeros(1), zeros(1))) == (
        'scale_add: there is no argument for out, expected Tensor[float32, "n"]'
    )
    with pytest.raises(LaunchError) as error:
        kernels.scale_add(*[zeros(1)] * 4)
    assert error.value.message == "scale_add: scale_add takes 3 arguments by position, but 4 were given"
    assert error.value.hint == "scale_add(..., factor=..., block=...)"
    assert message(lambda: kernels.scale_add(*[zeros(1)] * 3, x=zeros(1))) == (
        "scale_add: x is given twice, by position and by name"
    )


def test_unknown_parameter() -> None:
    with pytest.raises(LaunchError) as error:
        kernels.scale_add(*[zeros(1)] * 3, facter=1.0)
    assert error.value.message == "scale_add: there is no parameter 'facter'"
    assert error.value.hint == "one of x, y, out, factor, block"


def test_missing_constexpr() -> None:
    @tilus.kernel
    def program(x: tilus.Tensor[tilus.float32, "n"], *, block: tilus.constexpr):
        tilus.grid(block, warps=1)

    with pytest.raises(TilusError, match="takes a value for its constexpr parameter block"):
        program(zeros(4))


def test_tensors_on_two_devices() -> None:
    text = message(lambda: kernels.scale_add(zeros(8), zeros(8), torch.zeros(8, device="meta")))
    assert text == "scale_add: out is on meta, expected cpu (the simulator) or an NVIDIA GPU"


def test_layouts_that_are_no_dense_memory() -> None:
    sparse = torch.eye(4).to_sparse()
    assert message(lambda: kernels.copy_rows(sparse, zeros(4, 4))) == (
        "copy_rows: source is a tensor of layout torch.sparse_coo, expected a dense one"
    )
    reversed_rows = np.zeros((4, 4), np.float32)[::-1]
    assert message(lambda: kernels.copy_rows(reversed_rows, np.zeros((4, 4), np.float32))) == (
        "copy_rows: source has the negative stride -4 along dimension 0, expected none"
    )
    packed = np.zeros(4, dtype=[("a", "<f4"), ("b", "<i1")])["a"]
    assert "strides of (5,) bytes, expected multiples of its 4-byte elements" in message(
        lambda: kernels.scale_add(packed, packed, packed)
    )
    frozen = np.zeros(8, np.float32)
    frozen.flags.writeable = False
    assert message(lambda: kernels.scale_add(frozen, zeros(8), zeros(8))) == (
        "scale_add: x is a read-only array, and a kernel may write to it"
    )


def test_address_that_is_no_multiple_of_an_element() -> None:
    declared = Declared("x", "tensor", tilus.float32, ("n",))
    check_tensor(declared, Array(4, tilus.float32, (8,), (1,), 0, None))
    text = message(lambda: check_tensor(declared, Array(2, tilus.float32, (8,), (1,), 0, None)))
    assert text == "x begins at an address that is no multiple of its 4-byte elements"


def test_dtypes_that_no_kernel_takes() -> None:
    assert "x has a dtype that no kernel takes" in message(
        lambda: kernels.scale_add(zeros(8, dtype=torch.complex64), zeros(8), zeros(8))
    )
    swapped = np.zeros(8, np.dtype("float32").newbyteorder())
    assert "x has a dtype that no kernel takes" in message(
        lambda: kernels.scale_add(swapped, zeros(8), zeros(8))
    )


def test_tensors_that_are_traced_have_no_memory() -> None:
    from torch._subclasses import FakeTensorMode

    with FakeTensorMode():
        x = torch.zeros(8)
        assert message(lambda: kernels.scale_add(x, x, x)) == (
            "scale_add: x is a FakeTensor, which has no memory: torch traces this call"
        )


def test_packed_tensors() -> None:
    out = zeros(2, 8, dtype=torch.uint8)
    assert message(lambda: kernels.unpack_codes(zeros(2, 4, dtype=torch.int8), out)) == (
        "unpack_codes: codes has dtype int8, expected uint4, packed along the last dimension into uint8"
    )
    assert message(lambda: kernels.unpack_codes(zeros(2, 8, dtype=torch.uint8), out)) == (
        "unpack_codes: k is 16 in codes and 8 in out, expected one size for one name"
    )
    assert message(lambda: kernels.unpack_codes(zeros(4, 2, dtype=torch.uint8).t(), out)) == (
        "unpack_codes: codes has stride 2 along its packed dimension, expected 1"
    )


@pytest.mark.parametrize(
    ("values", "text"),
    [
        ({"a": 1.5}, "a is 1.5, expected an int32"),
        ({"a": 2**31}, "a is 2147483648, expected an int32 from -2147483648 to 2147483647"),
        ({"b": "1"}, "b is '1', expected a float32"),
        (
            {"b": 1e39},
            "b is 1e+39, expected a float32 from -3.4028234663852886e+38 to 3.4028234663852886e+38",
        ),
        ({"d": 70000}, "d is 70000.0, expected a float16 from -65504.0 to 65504.0"),
        ({"e": 2}, "e is 2, expected True or False"),
        ({"f": None}, "f is None, expected an int64"),
        ({"b": torch.zeros(1)}, "b takes a number, not a tensor"),
    ],
)
def test_scalars_that_do_not_fit(values: dict[str, Any], text: str) -> None:
    arguments = {"a": 1, "b": 1.0, "c": 1.0, "d": 1.0, "e": True, **values}
    assert message(lambda: kernels.scalars(zeros(32), **arguments)) == f"scalars: {text}"


def test_scalars_of_numpy_are_numbers() -> None:
    out = zeros(32)
    kernels.scalars(out, np.int64(1), np.float64(1.5), 0, np.float16(2), np.int8(1))
    assert out.tolist() == [10.5] * 32


def test_grids_that_cannot_be() -> None:
    @tilus.kernel
    def program(x: tilus.Tensor[tilus.float32, "n"], s: tilus.int32, *, tall: tilus.constexpr = False):
        if tall:
            tilus.grid(1, s, warps=1)
        else:
            tilus.grid(x.shape[0] // s, warps=1)

    assert message(lambda: program(zeros(8), -1)) == (
        "program has the grid (-8, 1, 1), expected extents from 0 to (2147483647, 65535, 65535)"
    )
    assert message(lambda: program(zeros(8), 0)) == "the grid of program divides by zero"
    with pytest.raises(LaunchError, match=r"\(1, 65536, 1\)") as error:
        program(zeros(8), 65536, tall=True)
    assert error.value.hint.startswith("the largest extent as the first of tilus.grid")
    program(zeros(8), 9)  # an empty grid is no launch, and fine


def test_bind_knows_its_parameters() -> None:
    with pytest.raises(LaunchError) as error:
        kernels.scale_add.bind(blok=3)
    assert (error.value.message, error.value.hint) == (
        "scale_add has no constexpr parameter 'blok'",
        "one of factor, block",
    )


def test_options_of_methods_are_no_names_of_constexprs() -> None:
    with pytest.raises(TilusError, match="a constexpr parameter cannot be called target"):

        @tilus.kernel
        def program(x: tilus.Tensor[tilus.float32, "n"], *, target: tilus.constexpr):
            tilus.grid(1)


def test_constexpr_that_does_not_exist_is_named_by_compile_too() -> None:
    with pytest.raises(NameNotFound, match="has no constexpr parameter 'facter'"):
        kernels.scale_add.compile(facter=2.0)


def test_the_largest_number_of_a_type_is_a_scalar_of_it() -> None:
    for dtype in (tilus.float16, tilus.float32):
        assert check_scalar(Declared("x", "scalar", dtype, ()), dtype.max) == dtype.max
