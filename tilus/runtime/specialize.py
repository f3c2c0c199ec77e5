"""What code may rely on: from the arguments of a launch to the types of the parameters.

Facts that make better code become part of the types, and each set of facts makes a variant of the kernel:

- the alignment of a pointer, as the largest power of two up to 16 bytes, the widest access there is;
- a stride of 1, and row-major strides that are products of extents, so that they are not passed at all;
- of an extent or stride that addresses depend on, the largest power of two that divides it, up to what 16 bytes of
  elements need. An extent that only stands first in tensors of rank 2 and more, such as a batch or a number of
  tokens, enters no address. It varies from launch to launch, and so makes no variants.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import prod

from tilus.dtypes import DType
from tilus.ir import Extent, GlobalType, PointerType, ScalarType, Symbol
from tilus.runtime.arguments import Array, Declared, Operand
from tilus.runtime.signature import ParameterType

WIDEST_ACCESS = 16
"""Bytes of the widest access."""


def power_of_two(value: int, limit: int) -> int:
    """Return the largest power of two up to `limit` that divides a number; zero is divisible by all."""
    return min(value & -value, limit) if value else limit


def useful_divisor(dtype: DType) -> int:
    """Return the number of elements by which rows must be divisible to begin at multiples of 16 bytes."""
    return max(16, WIDEST_ACCESS * 8 // (dtype.bits & -dtype.bits))


def extent_name(parameter: str, axis: int) -> str:
    """Return the name of a dimension without one."""
    return f"{parameter}_d{axis}"


def stride_name(parameter: str, axis: int) -> str:
    """Return the name of a stride that is passed."""
    return f"{parameter}_s{axis}"


def addressing_limits(declared: Sequence[Declared]) -> dict[str, int]:
    """Return for each extent that addresses depend on the largest divisor worth knowing."""
    limits: dict[str, int] = {}
    for parameter in declared:
        for axis in range(0 if len(parameter.dims) == 1 else 1, len(parameter.dims)):
            dim = parameter.dims[axis]
            name = extent_name(parameter.name, axis) if dim is None else dim
            if isinstance(name, str):
                limits[name] = max(limits.get(name, 1), useful_divisor(parameter.dtype))
    return limits


def types_of_arguments(
    declared: Sequence[Declared], operands: Sequence[Operand | None], arrays: Sequence[Array | None]
) -> tuple[ParameterType, ...]:
    """Return the types of the parameters for the arguments of a launch, which `bind` has checked."""
    limits = addressing_limits(declared)
    types: list[ParameterType] = []
    for parameter, operand, array in zip(declared, operands, arrays, strict=True):
        if parameter.kind == "scalar":
            types.append(ScalarType(parameter.dtype))
        elif operand is None:
            assert array is not None
            types.append(PointerType(parameter.dtype, power_of_two(array.pointer, WIDEST_ACCESS)))
        else:
            types.append(_tensor_type(parameter, operand, limits))
    return tuple(types)


def _tensor_type(parameter: Declared, operand: Operand, limits: Mapping[str, int]) -> GlobalType:
    dims = tuple(
        dim
        if isinstance(dim, int)
        else _symbol(dim or extent_name(parameter.name, axis), operand.shape[axis], limits)
        for axis, dim in enumerate(parameter.dims)
    )
    strides = tuple(_stride(parameter, operand, dims, axis) for axis in range(len(dims)))
    return GlobalType(parameter.dtype, dims, strides, power_of_two(operand.pointer, WIDEST_ACCESS))


def _symbol(name: str, value: int, limits: Mapping[str, int]) -> Symbol:
    return Symbol(name, power_of_two(value, limits.get(name, 1)))


def _stride(parameter: Declared, operand: Operand, dims: tuple[Extent, ...], axis: int) -> Extent:
    """Return a row-major stride as a constant or as the extent that it equals, 1 as it is, any other by its divisor."""
    value = operand.strides[axis]
    if value == prod(operand.shape[axis + 1 :]):
        known = row_major_stride(dims, axis)
        if known is not None:
            return known
    if value == 1 and operand.shape[axis] > 1 and operand.strides[-1] != 1:
        # A transposed tensor: its columns are moved in vectors.
        return 1
    return Symbol(stride_name(parameter.name, axis), power_of_two(value, useful_divisor(parameter.dtype)))


def row_major_stride(dims: tuple[Extent, ...], axis: int) -> Extent | None:
    """Return the stride of a row-major tensor where it is a constant or an extent, else None."""
    constant = 1
    symbols: list[Symbol] = []
    for extent in dims[axis + 1 :]:
        if isinstance(extent, Symbol):
            symbols.append(extent)
        else:
            constant *= extent
    if not symbols:
        return constant
    return symbols[0] if len(symbols) == 1 and constant == 1 else None


def assumed_types(
    declared: Sequence[Declared], *, aligned: bool = True, given: Mapping[str, ParameterType] | None = None
) -> tuple[ParameterType, ...]:
    """Return types for parameters without arguments, with the last dimension contiguous and strides passed.

    Parameters
    ----------
    declared : sequence of Declared
        The parameters.
    aligned : bool
        Whether pointers, and extents and strides that addresses depend on, are multiples of 16 bytes; else only of
        an element.
    given : mapping, optional
        Types that are known, by parameter.
    """
    limits = addressing_limits(declared) if aligned else {}
    types: list[ParameterType] = []
    for parameter in declared:
        align = WIDEST_ACCESS if aligned else max(1, parameter.dtype.bits // 8)
        if given is not None and parameter.name in given:
            types.append(given[parameter.name])
        elif parameter.kind == "scalar":
            types.append(ScalarType(parameter.dtype))
        elif parameter.kind == "pointer":
            types.append(PointerType(parameter.dtype, align))
        else:
            types.append(_assumed_tensor(parameter, align, limits, aligned))
    return tuple(types)


def _assumed_tensor(parameter: Declared, align: int, limits: Mapping[str, int], aligned: bool) -> GlobalType:
    dims: list[Extent] = []
    for axis, dim in enumerate(parameter.dims):
        if isinstance(dim, int):
            dims.append(dim)
        else:
            name = dim or extent_name(parameter.name, axis)
            dims.append(Symbol(name, limits.get(name, 1)))
    divisor = useful_divisor(parameter.dtype) if aligned else 1
    strides = [Symbol(stride_name(parameter.name, axis), divisor) for axis in range(len(dims) - 1)]
    return GlobalType(parameter.dtype, tuple(dims), (*strides, 1), align)
