"""Every scalar type that tilus knows by name, apart from the table-coded ones."""

from __future__ import annotations

from .scalar import DType, Specials


def _int(bits: int) -> DType:
    return DType(f"int{bits}", bits, "int", f"i{bits}")


def _uint(bits: int) -> DType:
    return DType(f"uint{bits}", bits, "uint", f"u{bits}")


def _small_float(exponent_bits: int, mantissa_bits: int, specials: Specials = "none") -> DType:
    bits = 1 + exponent_bits + mantissa_bits
    fields = f"e{exponent_bits}m{mantissa_bits}"
    # The bias of IEEE 754, which OCP's FP8 and MX types share.
    bias = (1 << (exponent_bits - 1)) - 1
    return DType(f"float{bits}_{fields}", bits, "float", fields, exponent_bits, mantissa_bits, bias, specials)


# int1 is two's complement like its siblings: its values are 0 and -1.
int1, int2, int3, int4 = _int(1), _int(2), _int(3), _int(4)
int5, int6, int7, int8 = _int(5), _int(6), _int(7), _int(8)
int16, int32, int64 = _int(16), _int(32), _int(64)

uint1, uint2, uint3, uint4 = _uint(1), _uint(2), _uint(3), _uint(4)
uint5, uint6, uint7, uint8 = _uint(5), _uint(6), _uint(7), _uint(8)
uint16, uint32, uint64 = _uint(16), _uint(32), _uint(64)

# A byte in memory, as in NumPy and torch; uint1 is the packed bit.
boolean = DType("boolean", 8, "bool", "bool")

float64 = DType("float64", 64, "float", "f64", 11, 52, 1023, "ieee")
float32 = DType("float32", 32, "float", "f32", 8, 23, 127, "ieee")
float16 = DType("float16", 16, "float", "f16", 5, 10, 15, "ieee")
bfloat16 = DType("bfloat16", 16, "float", "bf16", 8, 7, 127, "ieee")
tfloat32 = DType("tfloat32", 32, "float", "tf32", 8, 10, 127, "ieee")

# OCP 8-bit Floating Point Specification: E4M3 has a NaN for each sign and no infinity, E5M2 is like IEEE 754.
float8_e4m3 = _small_float(4, 3, "all_ones")
float8_e5m2 = _small_float(5, 2, "ieee")
# Like IEEE 754, as LLVM's Float8E3M4 and ml_dtypes have it.
float8_e3m4 = _small_float(3, 4, "ieee")
# The other widths and splits follow the rule of OCP MX's FP6 and FP4: subnormals, and every code is finite.
float8_e1m6, float8_e2m5 = _small_float(1, 6), _small_float(2, 5)
float8_e6m1, float8_e7m0 = _small_float(6, 1), _small_float(7, 0)
float7_e1m5, float7_e2m4, float7_e3m3 = _small_float(1, 5), _small_float(2, 4), _small_float(3, 3)
float7_e4m2, float7_e5m1, float7_e6m0 = _small_float(4, 2), _small_float(5, 1), _small_float(6, 0)
float6_e1m4, float6_e2m3, float6_e3m2 = _small_float(1, 4), _small_float(2, 3), _small_float(3, 2)
float6_e4m1, float6_e5m0 = _small_float(4, 1), _small_float(5, 0)
float5_e1m3, float5_e2m2 = _small_float(1, 3), _small_float(2, 2)
float5_e3m1, float5_e4m0 = _small_float(3, 1), _small_float(4, 0)
float4_e1m2, float4_e2m1, float4_e3m0 = _small_float(1, 2), _small_float(2, 1), _small_float(3, 0)
float3_e1m1, float3_e2m0 = _small_float(1, 1), _small_float(2, 0)

# OCP MX's scale: an unsigned power of two, all ones is NaN, and there is no zero.
float8_e8m0 = DType("float8_e8m0", 8, "scale", "e8m0", 8, 0, 127, "all_ones")

SCALARS: tuple[DType, ...] = tuple(value for value in tuple(globals().values()) if isinstance(value, DType))
"""All of them, in the order above."""
