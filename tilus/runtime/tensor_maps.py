"""Tensor maps: what a TMA copy knows of a tensor, made on the host for each launch from the tensor that is passed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from tilus import dtypes
from tilus.codegen.lower.hopper import TensorMap
from tilus.dtypes import DType
from tilus.errors import LaunchError
from tilus.runtime.arguments import Operand

if TYPE_CHECKING:
    from tilus.simulator.tma import TensorMap as SimulatedMap

BYTES = 128
ALIGNMENT = 128
"""What newer headers ask of memory for a tensor map; the driver asks for 64."""
FIRST_CUDA = 12000
"""The version of CUDA that brought tensor maps, as the driver counts."""

# The type in the driver's enumeration and in PTX. A copy moves bits, so all types of a byte are alike.
_TYPES = {
    "int16": ("UINT16", "u16"), "uint16": ("UINT16", "u16"), "int32": ("INT32", "s32"), "uint32": ("UINT32", "u32"),
    "int64": ("INT64", "s64"), "uint64": ("UINT64", "u64"), "float16": ("FLOAT16", "f16"),
    "bfloat16": ("BFLOAT16", "bf16"), "float32": ("FLOAT32", "f32"), "tfloat32": ("FLOAT32", "f32"),
    "float64": ("FLOAT64", "f64"),
}  # fmt: skip


def type_names(dtype: DType) -> tuple[str, str]:
    """Return the element type as the driver and as PTX name it."""
    return ("UINT8", "u8") if dtype.bits == 8 else _TYPES[dtype.name]


def geometry(wanted: TensorMap, operand: Operand) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Return a tensor's extents, and its strides in bytes but the first, the fastest dimension first."""
    size = wanted.dtype.bits // 8
    dims = tuple(operand.shape[axis] for axis in wanted.axes)
    strides = tuple(operand.strides[axis] * size for axis in wanted.axes[1:])
    return dims, strides


@lru_cache(maxsize=1)
def encode_function() -> Callable[..., int]:
    """Return the driver's cuTensorMapEncodeTiled.

    cuda-bindings would have it write to memory that Python aligned to 16 bytes, and it wants 64.
    """
    import ctypes

    from tilus.runtime import driver

    symbol = "cuTensorMapEncodeTiled"
    address = driver.check(
        driver.bindings().cuGetProcAddress(symbol.encode(), FIRST_CUDA, 0), f"finding {symbol}"
    )
    if not address:
        raise LaunchError(
            f"this driver is too old for tensor maps: it has no {symbol}, which came with CUDA 12.0"
        )
    pointer, enumerated, unsigned = ctypes.c_void_p, ctypes.c_int, ctypes.c_uint32
    made: Callable[..., int] = ctypes.CFUNCTYPE(
        enumerated, pointer, enumerated, unsigned, pointer, *[pointer] * 4, *[enumerated] * 4
    )(int(address))
    return made


def driver_encoder(wanted: TensorMap, operand: Operand) -> Callable[[int], bytes]:
    """Return a function from a tensor's address to its tensor map as the hardware takes it."""
    import ctypes

    from tilus.runtime import driver

    cuda = driver.bindings()
    dims, strides = geometry(wanted, operand)
    rank = len(dims)
    kind = getattr(cuda.CUtensorMapDataType, f"CU_TENSOR_MAP_DATA_TYPE_{type_names(wanted.dtype)[0]}")
    swizzle = getattr(cuda.CUtensorMapSwizzle, f"CU_TENSOR_MAP_SWIZZLE_{swizzle_name(wanted)}")
    lists = (
        (ctypes.c_uint64 * rank)(*dims),
        (ctypes.c_uint64 * rank)(*strides),
        (ctypes.c_uint32 * rank)(*wanted.box),
        (ctypes.c_uint32 * rank)(*[1] * rank),
    )
    rest = (
        int(cuda.CUtensorMapInterleave.CU_TENSOR_MAP_INTERLEAVE_NONE),
        int(swizzle),
        int(cuda.CUtensorMapL2promotion.CU_TENSOR_MAP_L2_PROMOTION_L2_128B),
        int(cuda.CUtensorMapFloatOOBfill.CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE),
    )

    @lru_cache(maxsize=256)
    def encode(address: int) -> bytes:
        if 0 in dims:
            # Nothing can be copied from an empty tensor, and the driver makes no map of one.
            return bytes(BYTES)
        room = ctypes.create_string_buffer(2 * BYTES)
        start = -ctypes.addressof(room) % ALIGNMENT
        status = encode_function()(ctypes.addressof(room) + start, int(kind), rank, address, *lists, *rest)
        if status:
            raise driver.error_of(
                cuda.CUresult(status), f"making a tensor map of a tensor of extents {list(reversed(dims))}"
            )
        return room.raw[start : start + BYTES]

    return encode


def swizzle_name(wanted: TensorMap) -> str:
    """Return the end of the driver's name for a swizzle."""
    return f"{wanted.swizzle_bytes}B" if wanted.swizzle_bytes else "NONE"


def simulated(wanted: TensorMap, operand: Operand, array: Any) -> SimulatedMap | bytes:
    """Return a tensor map as the simulator takes it."""
    from tilus.simulator.tma import TensorMap as Simulated

    dims, strides = geometry(wanted, operand)
    if 0 in dims:
        return bytes(BYTES)
    return Simulated(
        type_names(wanted.dtype)[1], dims, strides, wanted.box, swizzle=wanted.swizzle_bytes, array=array
    )


def to_json(wanted: TensorMap) -> dict[str, Any]:
    """Return what a launch must know of a tensor map as JSON values."""
    return {
        "parameter": wanted.param,
        "dtype": wanted.dtype.name,
        "axes": list(wanted.axes),
        "box": list(wanted.box),
        "swizzle_bytes": wanted.swizzle_bytes,
    }


def from_json(data: dict[str, Any], parameters: Sequence[Any]) -> TensorMap:
    """Return what `to_json` wrote."""
    made = TensorMap(
        int(data["parameter"]),
        dtypes.dtype(str(data["dtype"])),
        tuple(int(axis) for axis in data["axes"]),
        tuple(int(extent) for extent in data["box"]),
        int(data["swizzle_bytes"]),
    )
    if not 0 <= made.param < len(parameters) or len(made.axes) != len(made.box) or made.dtype.bits % 8:
        raise LaunchError("this is no description of a tensor map")
    return made
