"""The arguments of a launch: reading tensors and arrays, and checking them against what the kernel declares.

Each failure is a `LaunchError` of one sentence that names the parameter, what was found and what was expected.
"""

from __future__ import annotations

import math
import operator
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from tilus import dtypes
from tilus.dtypes import DType
from tilus.errors import LaunchError

MAX_EXTENT = 2**31 - 1

_STORED_AS_THEMSELVES = frozenset(
    "boolean int8 int16 int32 int64 uint8 uint16 uint32 uint64 float16 float32 float64 bfloat16 "
    "float8_e4m3 float8_e5m2".split()
)
"""Types that torch has; the others are passed as uint8 tensors with the last dimension packed."""


@dataclass(frozen=True)
class Declared:
    """A run-time parameter as a kernel declares it, with constexpr names resolved.

    Attributes
    ----------
    name : str
        The parameter.
    kind : str
        "tensor", "pointer" or "scalar".
    dtype : DType
        Type of the elements, or of the scalar.
    dims : tuple
        For a tensor, each dimension's name, its size, or None.
    """

    name: str
    kind: str
    dtype: DType
    dims: tuple[str | int | None, ...] = ()

    def __str__(self) -> str:
        if self.kind == "tensor":
            dims = " ".join("_" if dim is None else str(dim) for dim in self.dims)
            return f'Tensor[{self.dtype}, "{dims}"]'
        return f"Pointer[{self.dtype}]" if self.kind == "pointer" else str(self.dtype)


@dataclass(frozen=True)
class Array:
    """A tensor or array that was passed: where it lies and how.

    Attributes
    ----------
    pointer : int
        Address of the first element; on the CPU, where the simulator gives memory addresses of its own, the
        offset in that memory.
    dtype : DType
        Type of its elements.
    shape, strides : tuple of int
        Extents, and strides in elements.
    device : int
        Index of the CUDA device, or -1 for the CPU.
    owner : object
        What was passed.
    """

    pointer: int
    dtype: DType
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    device: int
    owner: Any

    @property
    def place(self) -> str:
        """The device's name."""
        return "cpu" if self.device < 0 else f"cuda:{self.device}"


def is_torch_tensor(value: object) -> bool:
    """Tell whether a value is a torch tensor, without importing torch."""
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(value, torch.Tensor)


def is_numpy_array(value: object) -> bool:
    """Tell whether a value is a NumPy array, without importing NumPy."""
    numpy = sys.modules.get("numpy")
    return numpy is not None and isinstance(value, numpy.ndarray)


def read_array(name: str, value: Any, meta: bool = False) -> Array:
    """Return what is known of a torch tensor or NumPy array; with `meta`, of one without data too."""
    if is_torch_tensor(value):
        return _read_torch(name, value, meta)
    if is_numpy_array(value):
        return _read_numpy(name, value)
    raise LaunchError(f"{name} takes a torch tensor or a NumPy array, not a {type(value).__name__}")


def _read_torch(name: str, value: Any, meta: bool) -> Array:
    import torch

    if value.layout is not torch.strided:
        raise LaunchError(
            f"{name} is a tensor of layout {value.layout}, expected a dense one", hint="x.to_dense()"
        )
    try:
        dtype = _torch_dtype(value.dtype)
    except (TypeError, ValueError) as error:
        raise LaunchError(f"{name} has a dtype that no kernel takes: {error}") from None
    if value.is_conj() or value.is_neg():
        raise LaunchError(
            f"{name} is a lazy conjugate or negative view", hint="x.resolve_conj().resolve_neg()"
        )
    if hasattr(value, "fake_mode"):
        raise LaunchError(
            f"{name} is a FakeTensor, which has no memory: torch traces this call",
            hint="a call of an operator that torch.library.custom_op makes of the call of the kernel",
        )
    kind = value.device.type
    if kind == "cpu":
        device = -1
    elif kind == "cuda" and torch.version.hip is None:
        device = value.get_device()
    elif kind == "meta" and meta:
        return Array(0, dtype, tuple(value.shape), tuple(value.stride()), -1, value)
    else:
        raise LaunchError(f"{name} is on {value.device}, expected cpu (the simulator) or an NVIDIA GPU")
    try:
        pointer = value.data_ptr()
        if device < 0:
            pointer -= value.untyped_storage().data_ptr()
    except RuntimeError:
        raise LaunchError(f"{name} is a {type(value).__name__} without memory of its own") from None
    return Array(pointer, dtype, tuple(value.shape), tuple(value.stride()), device, value)


def _torch_dtype(named: Any) -> DType:
    # Two elements of four bits in a byte: as any packed type, bytes with the last dimension packed.
    return dtypes.uint8 if str(named) == "torch.float4_e2m1fn_x2" else dtypes.dtype(named)


def _read_numpy(name: str, value: Any) -> Array:
    try:
        dtype = dtypes.dtype(value.dtype)
    except (TypeError, ValueError) as error:
        raise LaunchError(f"{name} has a dtype that no kernel takes: {error}") from None
    size = value.dtype.itemsize
    if any(stride % size for stride in value.strides):
        raise LaunchError(
            f"{name} has strides of {value.strides} bytes, expected multiples of its {size}-byte elements",
            hint=f"numpy.ascontiguousarray({name})",
        )
    if not value.flags.writeable:
        raise LaunchError(f"{name} is a read-only array, and a kernel may write to it", hint=f"{name}.copy()")
    root = value
    while is_numpy_array(root.base):
        root = root.base
    address, start = (array.__array_interface__["data"][0] for array in (value, root))
    # The memory of a reversed root begins before its first element.
    start += sum(
        min(0, (extent - 1) * stride) for extent, stride in zip(root.shape, root.strides) if root.size
    )
    return Array(
        address - start, dtype, value.shape, tuple(stride // size for stride in value.strides), -1, value
    )


def is_packed(dtype: DType) -> bool:
    """Tell whether tensors of a type are passed as uint8, with the last dimension bit-compact."""
    return dtype.name not in _STORED_AS_THEMSELVES and dtype.name != "tfloat32"


def accepts(declared: DType, found: DType) -> bool:
    """Tell whether a tensor of type `found` can be passed where `declared` is declared."""
    if declared == found:
        return True
    if declared.name == "tfloat32":
        return found.name == "float32"
    return is_packed(declared) and found.name == "uint8"


@dataclass(frozen=True)
class Operand:
    """A tensor argument as the kernel sees it: extents and strides in elements of the declared type."""

    shape: tuple[int, ...]
    strides: tuple[int, ...]
    pointer: int


def check_tensor(declared: Declared, array: Array) -> None:
    """Check an argument's dtype, rank and memory on its own."""
    name = declared.name
    if not accepts(declared.dtype, array.dtype):
        expected = str(declared.dtype)
        if is_packed(declared.dtype):
            expected += ", packed along the last dimension into uint8"
        elif declared.dtype.name == "tfloat32":
            expected = "float32 (read as tfloat32)"
        raise LaunchError(f"{name} has dtype {array.dtype}, expected {expected}")
    if declared.kind == "tensor" and len(array.shape) != len(declared.dims):
        raise LaunchError(
            f"{name} has {len(array.shape)} dimensions of sizes {list(array.shape)}, expected {declared}"
        )
    for axis, (extent, stride) in enumerate(zip(array.shape, array.strides, strict=True)):
        if stride < 0:
            raise LaunchError(
                f"{name} has the negative stride {stride} along dimension {axis}, expected none",
                hint=f"{name}.copy()",
            )
        if extent > MAX_EXTENT:
            raise LaunchError(
                f"{name} has {extent} elements along dimension {axis}, expected {MAX_EXTENT} at most"
            )
    element = max(1, array.dtype.bits // 8)
    if array.pointer % element:
        raise LaunchError(
            f"{name} begins at an address that is no multiple of its {element}-byte elements",
            hint=f"{name}.clone()",
        )


def bind(
    declared: Sequence[Declared], arrays: Sequence[Array | None]
) -> tuple[list[Operand | None], dict[str, int]]:
    """Check all tensor arguments together.

    Parameters
    ----------
    declared : sequence of Declared
        The parameters.
    arrays : sequence of Array or None
        The arguments of tensors and pointers; None for scalars.

    Returns
    -------
    list of Operand or None
        For each parameter, how the kernel sees the tensor.
    dict
        The named dimensions' sizes.
    """
    first: tuple[str, Array] | None = None
    for parameter, array in zip(declared, arrays, strict=True):
        if array is None:
            continue
        check_tensor(parameter, array)
        if first is not None and first[1].device != array.device:
            raise LaunchError(
                f"{parameter.name} is on {array.place} and {first[0]} on {first[1].place}, "
                "expected all tensors of a launch on one device"
            )
        first = first or (parameter.name, array)
    sizes: dict[str, int] = {}
    owners: dict[str, str] = {}
    operands: list[Operand | None] = [None] * len(declared)
    # The size of a packed dimension may depend on where else its name stands.
    order = sorted(range(len(declared)), key=lambda i: is_packed(declared[i].dtype))
    for i in order:
        parameter, array = declared[i], arrays[i]
        if array is None or parameter.kind != "tensor":
            continue
        operand = _packed(parameter, array, sizes) if is_packed(parameter.dtype) else _plain(array)
        for axis, (dim, extent) in enumerate(zip(parameter.dims, operand.shape, strict=True)):
            if isinstance(dim, int) and dim != extent:
                raise LaunchError(
                    f"{parameter.name} has size {extent} along dimension {axis}, expected {dim}"
                )
            if isinstance(dim, str) and sizes.setdefault(dim, extent) != extent:
                raise LaunchError(
                    f"{dim} is {extent} in {parameter.name} and {sizes[dim]} in {owners[dim]}, "
                    "expected one size for one name"
                )
            if isinstance(dim, str):
                owners.setdefault(dim, parameter.name)
        operands[i] = operand
    return operands, sizes


def _plain(array: Array) -> Operand:
    return Operand(array.shape, normal_strides(array.shape, array.strides), array.pointer)


def normal_strides(shape: tuple[int, ...], strides: tuple[int, ...]) -> tuple[int, ...]:
    """Return strides in which a dimension of one element, whose stride means nothing, has the row-major one."""
    if all(extent > 1 for extent in shape):
        return strides
    normal = list(strides)
    product = 1
    for axis in reversed(range(len(shape))):
        if shape[axis] <= 1:
            normal[axis] = product
        product *= shape[axis]
    return tuple(normal)


def _packed(declared: Declared, array: Array, sizes: dict[str, int]) -> Operand:
    """Return the elements that lie packed in rows of bytes."""
    bits, name = declared.dtype.bits, declared.name
    nbytes, dim = array.shape[-1], declared.dims[-1]
    known = sizes.get(dim) if isinstance(dim, str) else dim
    if known is not None and declared.dtype.packed_nbytes(known) == nbytes:
        count = known
    elif nbytes * 8 % bits == 0:
        count = nbytes * 8 // bits
    else:
        raise LaunchError(
            f"{name} has {nbytes} bytes along its last dimension, expected whole elements of {bits} bits"
        )
    if array.strides[-1] != 1 and nbytes > 1:
        raise LaunchError(
            f"{name} has stride {array.strides[-1]} along its packed dimension, expected 1",
            hint=f"{name}.contiguous()",
        )
    strides = []
    for axis, (extent, stride) in enumerate(zip(array.shape[:-1], array.strides[:-1], strict=True)):
        if stride * 8 % bits and extent > 1:
            raise LaunchError(
                f"{name} has a stride of {stride} bytes along dimension {axis}, "
                f"expected a multiple of {bits} bits, the width of {declared.dtype}"
            )
        strides.append(stride * 8 // bits)
    shape = (*array.shape[:-1], count)
    return Operand(shape, normal_strides(shape, (*strides, 1)), array.pointer)


def check_scalar(declared: Declared, value: Any) -> int | float:
    """Return a scalar argument as a Python number that fits the parameter's type."""
    name, dtype = declared.name, declared.dtype
    if is_torch_tensor(value) or is_numpy_array(value):
        raise LaunchError(f"{name} takes a number, not a tensor", hint=f"{name}.item()")
    if dtype.is_boolean:
        numpy = sys.modules.get("numpy")
        whole = isinstance(value, int) or (
            numpy is not None and isinstance(value, (numpy.bool_, numpy.integer))
        )
        if not whole or value not in (0, 1):
            raise LaunchError(f"{name} is {value!r}, expected True or False")
        return int(value)
    if dtype.is_float:
        try:
            number = float(value)
        except (TypeError, ValueError, OverflowError):
            raise LaunchError(f"{name} is {value!r}, expected a {dtype}") from None
        if isinstance(value, str):
            raise LaunchError(f"{name} is {value!r}, expected a {dtype}")
        if math.isfinite(number) and not dtype.min <= number <= dtype.max:
            raise LaunchError(f"{name} is {number}, expected a {dtype} from {dtype.min} to {dtype.max}")
        return number
    try:
        integer = operator.index(value)
    except TypeError:
        raise LaunchError(f"{name} is {value!r}, expected an {dtype}") from None
    if not dtype.min <= integer <= dtype.max:
        raise LaunchError(f"{name} is {integer}, expected an {dtype} from {dtype.min} to {dtype.max}")
    return integer


def scalar_bits(dtype: DType, value: int | float) -> int | float:
    """Return a checked number as `scalar_format` packs it."""
    if dtype.name == "bfloat16":
        return int(dtypes.encode(value, dtype))
    return value
