"""Which facts about arguments become part of the types of a kernel's parameters."""

from __future__ import annotations

import pytest
import torch

from tilus import bfloat16, float16, float32, int32, uint2, uint3, uint4, uint8
from tilus.dtypes import DType
from tilus.ir import GlobalType, PointerType, ScalarType, Symbol
from tilus.runtime.arguments import Array, Declared, bind
from tilus.runtime.specialize import assumed_types, power_of_two, types_of_arguments, useful_divisor


def types(
    *pairs: tuple[Declared, torch.Tensor | None], pointer: int = 0
) -> list[GlobalType | PointerType | ScalarType]:
    declared = [parameter for parameter, _ in pairs]
    arrays = [
        None
        if t is None
        else Array(pointer, p.dtype if p.dtype.bits >= 8 else uint8, tuple(t.shape), t.stride(), -1, t)
        for p, t in pairs
    ]
    operands, _ = bind(declared, arrays)
    return list(types_of_arguments(declared, operands, arrays))


def tensor(name: str, dims: str, dtype: DType = float16) -> Declared:
    words = [None if word == "_" else int(word) if word.isdecimal() else word for word in dims.split()]
    return Declared(name, "tensor", dtype, tuple(words))


def test_row_major_strides_are_extents_and_are_not_passed() -> None:
    (a,) = types((tensor("a", "m k"), torch.empty(17, 48)))
    assert a == GlobalType(float16, (Symbol("m"), Symbol("k", 16)), (Symbol("k", 16), 1), 16)


def test_extents_that_only_stand_first_have_no_divisor() -> None:
    a, b = types((tensor("a", "m k"), torch.empty(32, 24)), (tensor("b", "k n"), torch.empty(24, 5)))
    assert a.dims == (Symbol("m"), Symbol("k", 8))
    assert b.dims == (Symbol("k", 8), Symbol("n", 1))
    (x,) = types((tensor("x", "n"), torch.empty(20)))
    assert x.dims == (Symbol("n", 4),)


def test_other_strides_are_passed_with_their_divisor() -> None:
    (a,) = types((tensor("a", "m k"), torch.empty(32, 24).t()))
    assert a.strides == (1, Symbol("a_s1", 8))
    (b,) = types((tensor("b", "x m k"), torch.empty(2, 6, 20)))
    assert b.strides == (Symbol("b_s0", 8), Symbol("k", 4), 1)
    (c,) = types((tensor("c", "m k"), torch.empty(4, 100)[:, :32]))
    assert c.strides == (Symbol("c_s0", 4), 1)
    (d,) = types((tensor("d", "m k"), torch.empty(1, 32).expand(4, 32)))
    assert d.strides == (Symbol("d_s0", 16), 1)


def test_fixed_sizes_give_constant_strides() -> None:
    (a,) = types((tensor("a", "b 6 64"), torch.empty(3, 6, 64)))
    assert a == GlobalType(float16, (Symbol("b"), 6, 64), (384, 64, 1), 16)
    (b,) = types((tensor("b", "6 k"), torch.empty(6, 10)))
    assert b.strides == (Symbol("k", 2), 1)


def test_stride_of_a_dimension_of_one_element_means_nothing() -> None:
    odd = torch.empty(100)[:32].as_strided((1, 32), (7, 1))
    (a,) = types((tensor("a", "m k"), odd))
    assert a.strides == (Symbol("k", 16), 1)
    column = torch.empty(100).as_strided((32, 1), (1, 5))
    (b,) = types((tensor("b", "m k"), column))
    assert b.strides == (Symbol("k", 1), 1)


def test_dimensions_without_name_have_names_of_their_own() -> None:
    (a,) = types((tensor("a", "_ _"), torch.empty(4, 16)))
    assert a.dims == (Symbol("a_d0"), Symbol("a_d1", 16))


@pytest.mark.parametrize(("pointer", "align"), [(0, 16), (256, 16), (8, 8), (24, 8), (4, 4), (2, 2), (6, 2)])
def test_alignment_of_pointers(pointer: int, align: int) -> None:
    (a,) = types((tensor("a", "n"), torch.empty(16)), pointer=pointer)
    (p,) = types((Declared("p", "pointer", float16), torch.empty(16)), pointer=pointer)
    assert (a.align, p) == (align, PointerType(float16, align))


def test_packed_types_count_elements() -> None:
    (a,) = types((tensor("a", "m k", uint4), torch.empty(3, 16)))
    assert a == GlobalType(uint4, (Symbol("m"), Symbol("k", 32)), (Symbol("k", 32), 1), 16)
    (b,) = types((tensor("b", "m k", uint3), torch.empty(3, 12)))
    assert b == GlobalType(uint3, (Symbol("m"), Symbol("k", 32)), (Symbol("k", 32), 1), 16)
    # 11 elements of 2 bits in 3 bytes, as another parameter says; rows are 12 elements apart.
    a, b = types(
        (tensor("a", "m k", uint2), torch.empty(2, 3)), (tensor("b", "m k", uint8), torch.empty(2, 11))
    )
    assert a.dims == (Symbol("m"), Symbol("k", 1))
    assert a.strides == (Symbol("a_s0", 4), 1)


def test_scalars_have_no_facts() -> None:
    assert types((Declared("s", "scalar", int32), None)) == [ScalarType(int32)]


@pytest.mark.parametrize("dtype", [uint2, uint3, uint4, uint8, float16, float32])
def test_useful_divisor_is_the_smallest_power_of_two_that_fills_16_bytes(dtype: DType) -> None:
    fitting = [2**i for i in range(12) if 2**i * dtype.bits % 128 == 0]
    assert useful_divisor(dtype) == max(16, fitting[0])


def test_power_of_two() -> None:
    for value in range(200):
        expected = max(p for p in (1, 2, 4, 8, 16) if value % p == 0)
        assert power_of_two(value, 16) == expected


def test_assumed_types_are_aligned_or_not() -> None:
    declared = (
        tensor("a", "m k", bfloat16),
        Declared("p", "pointer", float32),
        Declared("s", "scalar", int32),
    )
    assert assumed_types(declared) == (
        GlobalType(bfloat16, (Symbol("m"), Symbol("k", 16)), (Symbol("a_s0", 16), 1), 16),
        PointerType(float32, 16),
        ScalarType(int32),
    )
    assert assumed_types(declared, aligned=False) == (
        GlobalType(bfloat16, (Symbol("m"), Symbol("k")), (Symbol("a_s0"), 1), 2),
        PointerType(float32, 4),
        ScalarType(int32),
    )
