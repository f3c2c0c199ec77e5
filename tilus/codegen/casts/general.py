"""Casts of one element between any two dtypes: the path that is always there, exact for every code."""

from __future__ import annotations

import math
import struct

from tilus import dtypes
from tilus.codegen.casts.decode import decode, lookup
from tilus.codegen.casts.encode import encode, round_to_odd
from tilus.codegen.llvm_text import V, Writer, floating, integer
from tilus.codegen.registers import llvm_type
from tilus.codegen.target import Target
from tilus.dtypes import DType, TableType

_STANDARD = (dtypes.float64, dtypes.float32, dtypes.float16, dtypes.bfloat16, dtypes.tfloat32)


def cast_element(w: Writer, target: Target, source: DType, dest: DType, x: V) -> V:
    """Cast one element, in the LLVM types in which elements are computed.

    Integers keep their low bits as integers. Floats become integers by truncation, saturating at the ends of the
    range, and NaN becomes 0. All else is rounded once, to nearest even, as `tilus.dtypes.encode` rounds it; a
    NaN of a 16-bit or wider float may be any NaN.
    """
    if source == dest:
        return x
    if source.is_boolean:
        return cast_element(w, target, dtypes.int32, dest, w.convert("zext", x, "i32"))
    if dest.is_boolean:
        if source.is_integer:
            return w.icmp("ne", x, integer(0, int(x.type[1:])))
        wide = decode(w, source, x)
        return w.value("i1", f"fcmp une {wide}, {floating(0.0, wide.type).name}")
    if source.is_integer:
        return _from_integer(w, source, dest, x)
    if isinstance(source, TableType):
        return lookup(w, tuple(_constant(value, dest) for value in source.values), x)
    if source == dtypes.tfloat32:
        bits = w.binary("and", w.convert("bitcast", x, "i32"), integer(~0x1FFF))
        x = w.convert("bitcast", bits, "float")
    if source in _STANDARD and dest in _STANDARD:
        return _between_floats(w, source, dest, x)
    wide = decode(w, source, x)
    if dest.is_integer:
        return _to_integer(w, dest, wide)
    if dest in _STANDARD:
        return _between_floats(w, dtypes.float64 if wide.type == "double" else dtypes.float32, dest, wide)
    return encode(w, dest, wide)


def cast_at_random(w: Writer, dest: DType, x: V, random: V) -> V:
    """Cast a float32 to an integer or a float of at most 8 bits with 32 random bits (an i32).

    A value a fraction f of the way from one number to the next becomes that one with probability f: away from zero for
    floats, up for integers.
    """
    if not dest.is_integer:
        return encode(w, dest, x, random)
    below = w.call("float", "llvm.floor.f32", x)
    rest = w.value("float", f"fsub {x}, {below.name}")
    # As many bits as a float32 holds exactly.
    chance = w.convert("uitofp", w.binary("lshr", random, integer(8)), "float")
    chance = w.value("float", f"fmul {chance}, {floating(2.0**-24, 'float').name}")
    up = w.value("i1", f"fcmp olt {chance}, {rest.name}")
    step = w.select(up, floating(1.0, "float"), floating(0.0, "float"))
    return _to_integer(w, dest, w.value("float", f"fadd {below}, {step.name}"))


def _constant(value: float, dest: DType) -> V:
    """Return a table's entry as an element of another type."""
    if dest.is_integer:
        clipped = min(max(math.trunc(value), int(dest.min)), int(dest.max))
        return integer(clipped, 64 if dest.bits == 64 else 32)
    if dest == dtypes.float64:
        return floating(value, "double")
    code = int(dtypes.encode(value, dest))
    if dest == dtypes.float16:
        return V("half", f"0xH{code:04X}")
    if dest == dtypes.bfloat16:
        return V("bfloat", f"0xR{code:04X}")
    if dest in _STANDARD:
        return floating(struct.unpack("<f", struct.pack("<I", code))[0], "float")
    return integer(code)


def _from_integer(w: Writer, source: DType, dest: DType, x: V) -> V:
    if dest.is_integer:
        if dest.bits == 64:
            return w.convert("sext" if source.is_signed else "zext", x, "i64")
        return w.convert("trunc", x, "i32")
    opcode = "sitofp" if source.is_signed else "uitofp"
    if dest in (dtypes.float64, dtypes.float32) or (dest == dtypes.float16 and source.bits >= 32):
        return w.convert(opcode, x, llvm_type(dest))
    if source.bits <= 16:
        wide = w.convert(opcode, x, "float")
    elif source.bits == 32:
        wide = round_to_odd(w, w.convert(opcode, x, "double"))
    else:
        wide = round_to_odd(w, _wide_to_odd(w, source, x))
    if dest in _STANDARD:
        return _between_floats(w, dtypes.float32, dest, wide)
    return encode(w, dest, wide)


def _wide_to_odd(w: Writer, source: DType, x: V) -> V:
    """Return a 64-bit integer as a float64 that was rounded to odd."""
    zero = integer(0, 64)
    negative = w.icmp("slt", x, zero) if source.is_signed else integer(0, 1)
    size = w.select(negative, w.binary("sub", zero, x), x)
    cut = w.convert("zext", w.icmp("ne", w.binary("and", size, integer(0x7FF, 64)), zero), "i64")
    # 53 bits and a marker of what was cut off below them, in place.
    marked = w.binary("or", w.binary("and", size, integer(~0x7FF, 64)), w.binary("shl", cut, integer(11, 64)))
    exact = w.icmp("ult", size, integer(1 << 53, 64))
    made = w.convert("uitofp", w.select(exact, size, marked), "double")
    return w.select(negative, w.value("double", f"fneg {made}"), made)


def _between_floats(w: Writer, source: DType, dest: DType, x: V) -> V:
    if dest == dtypes.tfloat32:
        if x.type == "double":
            return _round_tf32(w, round_to_odd(w, x))
        wide = w.convert("fpext", x, "float")
        return wide if source in (dtypes.float16, dtypes.bfloat16, dtypes.tfloat32) else _round_tf32(w, wide)
    to = llvm_type(dest)
    widths = {"half": 16, "bfloat": 16, "float": 32, "double": 64}
    if widths[x.type] == widths[to] and x.type != to:
        return w.convert("fptrunc", w.convert("fpext", x, "float"), to)
    if x.type == "double" and to == "bfloat":
        x = round_to_odd(w, x)
    return w.convert("fpext" if widths[to] > widths[x.type] else "fptrunc", x, to)


def _round_tf32(w: Writer, x: V) -> V:
    """Round to 10 mantissa bits, to nearest even; infinities and NaN stay."""
    bits = w.convert("bitcast", x, "i32")
    odd = w.binary("and", w.binary("lshr", bits, integer(13)), integer(1))
    rounded = w.binary("and", w.add(bits, w.add(odd, integer(0xFFF))), integer(~0x1FFF))
    magnitude = w.binary("and", bits, integer(0x7FFFFFFF))
    special = w.icmp("uge", magnitude, integer(0x7F800000))
    # A NaN keeps a bit among those that are read.
    nan = w.icmp("ugt", magnitude, integer(0x7F800000))
    kept = w.select(nan, integer(0x7FC00000), bits)
    return w.convert("bitcast", w.select(special, kept, rounded), "float")


def _to_integer(w: Writer, dest: DType, x: V) -> V:
    """Truncate, saturating at the ends of the range; NaN becomes 0."""
    type = llvm_type(dest)
    sign = "s" if dest.is_signed else "u"
    suffix = "f64" if x.type == "double" else "f32"
    if dest.bits < 32:
        made = w.call("i32", f"llvm.fptosi.sat.i32.{suffix}", x)
        made = w.call("i32", "llvm.smax.i32", made, integer(int(dest.min)))
        return w.call("i32", "llvm.smin.i32", made, integer(int(dest.max)))
    return w.call(type, f"llvm.fpto{sign}i.sat.{type}.{suffix}", x)
