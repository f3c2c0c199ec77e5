"""Instructions on packed words that the fast casts are made of."""

from __future__ import annotations

import struct

from tilus import dtypes
from tilus.codegen.llvm_text import V, Writer, integer
from tilus.dtypes import DType

MANTISSA = {dtypes.float16: 10, dtypes.bfloat16: 7}
EXPONENT = {dtypes.float16: 5, dtypes.bfloat16: 8}
BIAS = {dtypes.float16: 15, dtypes.bfloat16: 127}
_VECTOR = {dtypes.float16: ("<2 x half>", "v2f16"), dtypes.bfloat16: ("<2 x bfloat>", "v2bf16")}


def shift_right(w: Writer, x: V, amount: int) -> V:
    """Shift right, or left by a negative amount."""
    return w.binary("lshr", x, integer(amount)) if amount >= 0 else w.binary("shl", x, integer(-amount))


def both(mask: int) -> int:
    """Return a lane's 16 bits in both lanes."""
    return mask | mask << 16


def spread(mask: int, lane: int) -> int:
    """Return a lane's bits in all lanes of a word."""
    return sum(mask << low for low in range(0, 32, lane))


def choose_bits(w: Writer, mask: int, ones: V, zeros: V) -> V:
    """Return bits of `ones` where the mask has ones and of `zeros` elsewhere, as one instruction."""
    if ones.literal is not None or zeros.literal is not None:
        return w.binary("or", w.binary("and", ones, integer(mask)), w.binary("and", zeros, integer(~mask)))
    return lop3(w, 0xF0 & 0xAA | 0xCC & 0x55, ones, zeros, mask)


def lop3(w: Writer, function: int, a: V, b: V, c: int) -> V:
    """Return any function of the bits of a, b and a constant: `function` is it of 0xF0, 0xCC and 0xAA (PTX ISA, lop3).

    The assembler finds such operations by itself, but not where the same constant stands in them twice.
    """
    return w.asm("i32", f"lop3.b32 $0, $1, $2, 0x{c & 0xFFFFFFFF:x}, 0x{function:x};", "=r,r,r", a, b)


def mask_and_flip(w: Writer, x: V, mask: int, flip: int) -> V:
    """Return ``(x & mask) ^ flip`` as one instruction.

    The assembler takes one of a lop3's constants from a register, and splits the operation unless it is told so.
    """
    if x.literal is not None:
        return w.binary("xor", w.binary("and", x, integer(mask)), integer(flip))
    return lop3(w, 0xF0 & 0xAA ^ 0xCC, x, integer(flip), mask)


def permute_bytes(w: Writer, a: V, b: V, selectors: tuple[int, int, int, int]) -> V:
    """Return four bytes of a (0 to 3) and b (4 to 7), the lowest first; 8 more gives the byte's sign in all bits."""
    number = sum(selector << 4 * i for i, selector in enumerate(selectors))
    return w.call("i32", "llvm.nvvm.prmt", a, b, integer(number))


def lookup_bytes(w: Writer, low: int, high: int, indices: V) -> V:
    """Return for each of the low four nibbles of `indices`, all below 8, that byte of a table of two words."""
    return w.call("i32", "llvm.nvvm.prmt", _held(w, low), integer(high), indices)


def _held(w: Writer, value: int) -> V:
    """Return a constant that stays in a register of each thread.

    The assembler keeps constants in uniform registers and copies them anew for every instruction that cannot take
    one there. It does not know that no lane is both itself and below itself.
    """
    text = (
        "{ .reg .b32 same, below; mov.u32 same, %lanemask_eq; mov.u32 below, %lanemask_lt; "
        f"and.b32 same, same, below; xor.b32 $0, same, 0x{value:x}; }}"
    )
    with w.at_entry():
        return w.asm("i32", text, "=r")


def code_of(dest: DType, value: float) -> int:
    """Return the bits of a constant that float16 or bfloat16 holds exactly."""
    if dest == dtypes.float16:
        (bits,) = struct.unpack("<H", struct.pack("<e", value))
        exact = struct.unpack("<e", struct.pack("<e", value))[0] == value
    else:
        (wide,) = struct.unpack("<I", struct.pack("<f", value))
        bits, exact = wide >> 16, not wide & 0xFFFF
    if not exact:
        raise AssertionError(f"{value} is not exact in {dest}")
    return int(bits)


def multiply_add(
    w: Writer, dest: DType, x: V, factors: tuple[float, float], addends: tuple[float, float]
) -> V:
    """Return ``x * factor + addend`` of both lanes of a packed word."""
    type, suffix = _VECTOR[dest]
    constants = [
        w.convert("bitcast", integer(code_of(dest, low) | code_of(dest, high) << 16), type)
        for low, high in (factors, addends)
    ]
    made = w.call(type, f"llvm.fma.{suffix}", w.convert("bitcast", x, type), *constants)
    return w.convert("bitcast", made, "i32")


def multiply(w: Writer, dest: DType, x: V, factor: float) -> V:
    """Return ``x * factor`` of both lanes; the sum with negative zero keeps the sign of zeros."""
    return x if factor == 1.0 else multiply_add(w, dest, x, (factor, factor), (-0.0, -0.0))
