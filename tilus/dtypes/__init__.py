"""Scalar types of 1 to 64 bits: what they are, how values become codes, and how codes lie packed in memory.

A *code* is the bit pattern of one element in the low bits of an unsigned integer; `encode` and `decode` go
from values to codes and back, `pack` and `unpack` from codes to bit-compact bytes and back.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from .catalog import (
    SCALARS,
    bfloat16,
    boolean,
    float3_e1m1,
    float3_e2m0,
    float4_e1m2,
    float4_e2m1,
    float4_e3m0,
    float5_e1m3,
    float5_e2m2,
    float5_e3m1,
    float5_e4m0,
    float6_e1m4,
    float6_e2m3,
    float6_e3m2,
    float6_e4m1,
    float6_e5m0,
    float7_e1m5,
    float7_e2m4,
    float7_e3m3,
    float7_e4m2,
    float7_e5m1,
    float7_e6m0,
    float8_e1m6,
    float8_e2m5,
    float8_e3m4,
    float8_e4m3,
    float8_e5m2,
    float8_e6m1,
    float8_e7m0,
    float8_e8m0,
    float16,
    float32,
    float64,
    int1,
    int2,
    int3,
    int4,
    int5,
    int6,
    int7,
    int8,
    int16,
    int32,
    int64,
    tfloat32,
    uint1,
    uint2,
    uint3,
    uint4,
    uint5,
    uint6,
    uint7,
    uint8,
    uint16,
    uint32,
    uint64,
)
from .lookup import NAMED, dtype
from .scalar import DType, Kind, Specials
from .table import TableType, nf4, table_type, ternary

if TYPE_CHECKING:
    from .codec import decode, encode
    from .packing import pack, unpack

__all__ = [
    "NAMED",
    "SCALARS",
    "DType",
    "Kind",
    "Specials",
    "TableType",
    "bfloat16",
    "boolean",
    "decode",
    "dtype",
    "encode",
    "float3_e1m1",
    "float3_e2m0",
    "float4_e1m2",
    "float4_e2m1",
    "float4_e3m0",
    "float5_e1m3",
    "float5_e2m2",
    "float5_e3m1",
    "float5_e4m0",
    "float6_e1m4",
    "float6_e2m3",
    "float6_e3m2",
    "float6_e4m1",
    "float6_e5m0",
    "float7_e1m5",
    "float7_e2m4",
    "float7_e3m3",
    "float7_e4m2",
    "float7_e5m1",
    "float7_e6m0",
    "float8_e1m6",
    "float8_e2m5",
    "float8_e3m4",
    "float8_e4m3",
    "float8_e5m2",
    "float8_e6m1",
    "float8_e7m0",
    "float8_e8m0",
    "float16",
    "float32",
    "float64",
    "int1",
    "int2",
    "int3",
    "int4",
    "int5",
    "int6",
    "int7",
    "int8",
    "int16",
    "int32",
    "int64",
    "nf4",
    "pack",
    "table_type",
    "ternary",
    "tfloat32",
    "uint1",
    "uint2",
    "uint3",
    "uint4",
    "uint5",
    "uint6",
    "uint7",
    "uint8",
    "uint16",
    "uint32",
    "uint64",
    "unpack",
]


def __getattr__(name: str) -> object:
    # These modules import NumPy, which takes longer than all the rest of the compiler's imports.
    if name in ("encode", "decode"):
        from . import codec

        return getattr(codec, name)
    if name in ("pack", "unpack"):
        from . import packing

        return getattr(packing, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
