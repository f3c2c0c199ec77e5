"""Casts between any two dtypes: the general path, exact for every code of every type."""

from __future__ import annotations

from tilus import dtypes
from tilus.codegen.llvm_text import V, Writer, floating, integer
from tilus.codegen.registers import llvm_type, pack, unpack
from tilus.codegen.target import Target
from tilus.dtypes import DType, TableType
from tilus.errors import TypeMismatch

_STANDARD = (dtypes.float64, dtypes.float32, dtypes.float16, dtypes.bfloat16, dtypes.tfloat32)


def cast_elements(
    w: Writer, target: Target, source: DType, dest: DType, regs: tuple[V, ...], count: int
) -> tuple[V, ...]:
    """Return containers of `dest` for `count` elements in containers of `source`."""
    elements = unpack(w, source, regs, count)
    return pack(w, dest, [cast_element(w, target, source, dest, e) for e in elements])


def cast_element(w: Writer, target: Target, source: DType, dest: DType, x: V) -> V:
    """Cast one element, in the LLVM types in which elements are computed."""
    if source is dest or (source.is_integer and dest.is_integer and x.type == llvm_type(dest) == "i32"):
        return x
    if source is dtypes.boolean:
        as_int = w.convert("zext", x, "i32")
        return cast_element(w, target, dtypes.int32, dest, as_int)
    if dest is dtypes.boolean:
        if source.is_integer:
            return w.icmp("ne", x, integer(0, int(x.type[1:])))
        wide = decode(w, source, x)
        return w.value("i1", f"fcmp une {wide}, {floating(0.0, wide.type).name}")
    if source.is_integer:
        return _from_integer(w, target, source, dest, x)
    if source in _STANDARD and dest in _STANDARD:
        return _between_floats(w, source, dest, x)
    wide = x if source is dtypes.float64 else decode(w, source, x)
    if dest.is_integer:
        return _to_integer(w, dest, wide)
    if dest in _STANDARD:
        return _between_floats(w, dtypes.float64 if wide.type == "double" else dtypes.float32, dest, wide)
    if wide.type == "double":
        raise TypeMismatch(f"no cast from float64 to {dest}", hint="cast to float32 first")
    return encode(w, dest, wide)


def _from_integer(w: Writer, target: Target, source: DType, dest: DType, x: V) -> V:
    if dest.is_integer:
        if dest.bits == 64:
            return w.convert("sext" if source.is_signed else "zext", x, "i64")
        return w.convert("trunc", x, "i32")
    opcode = "sitofp" if source.is_signed else "uitofp"
    if dest in _STANDARD:
        if source.bits <= 16 and dest in (dtypes.float16, dtypes.bfloat16):
            return w.convert("fptrunc", w.convert(opcode, x, "float"), llvm_type(dest))
        made = w.convert(opcode, x, llvm_type(dest))
        return _round_tf32(w, made) if dest is dtypes.tfloat32 else made
    if source.bits > 24:
        raise TypeMismatch(f"no cast from {source} to {dest}", hint="cast to float32 first")
    return encode(w, dest, w.convert(opcode, x, "float"))


def _between_floats(w: Writer, source: DType, dest: DType, x: V) -> V:
    if dest is dtypes.tfloat32:
        wide = x if x.type == "float" else w.convert("fptrunc" if x.type == "double" else "fpext", x, "float")
        return wide if source in (dtypes.float16, dtypes.bfloat16, dtypes.tfloat32) else _round_tf32(w, wide)
    to = llvm_type(dest)
    widths = {"half": 16, "bfloat": 16, "float": 32, "double": 64}
    if widths[x.type] == widths[to] and x.type != to:
        return w.convert("fptrunc", w.convert("fpext", x, "float"), to)
    return w.convert("fpext" if widths[to] > widths[x.type] else "fptrunc", x, to)


def _round_tf32(w: Writer, x: V) -> V:
    """Round to 10 mantissa bits, to nearest even; infinities and NaN stay."""
    bits = w.convert("bitcast", x, "i32")
    odd = w.binary("and", w.binary("lshr", bits, integer(13)), integer(1))
    rounded = w.binary("and", w.add(bits, w.add(odd, integer(0xFFF))), integer(~0x1FFF))
    special = w.icmp("uge", w.binary("and", bits, integer(0x7FFFFFFF)), integer(0x7F800000))
    return w.convert("bitcast", w.select(special, bits, rounded), "float")


def _to_integer(w: Writer, dest: DType, x: V) -> V:
    """Truncate, saturating at the ends of the range; NaN becomes 0."""
    type = llvm_type(dest)
    sign = "s" if dest.is_signed else "u"
    suffix = "f64" if x.type == "double" else ("f32" if x.type == "float" else "f16")
    if x.type in ("half", "bfloat"):
        x, suffix = w.convert("fpext", x, "float"), "f32"
    if dest.bits < 32:
        made = w.call("i32", f"llvm.fptosi.sat.i32.{suffix}", x)
        made = w.call("i32", "llvm.smax.i32", made, integer(int(dest.min)))
        return w.call("i32", "llvm.smin.i32", made, integer(int(dest.max)))
    return w.call(type, f"llvm.fpto{sign}i.sat.{type}.{suffix}", x)


def decode(w: Writer, dtype: DType, x: V) -> V:
    """Return the float32 (or float64) value of an element."""
    if dtype in (dtypes.float32, dtypes.tfloat32, dtypes.float64):
        return x
    if dtype in (dtypes.float16, dtypes.bfloat16):
        return w.convert("fpext", x, "float")
    if isinstance(dtype, TableType):
        return lookup(w, tuple(floating(v, "float") for v in dtype.values), x)
    if dtype.kind == "scale":
        shifted = w.binary("shl", x, integer(23))
        zero = w.icmp("eq", x, integer(0))
        nan = w.icmp("eq", x, integer(255))
        bits = w.select(zero, integer(0x00400000), w.select(nan, integer(0x7FC00000), shifted))
        return w.convert("bitcast", bits, "float")
    width = dtype.exponent_bits + dtype.mantissa_bits
    magnitude = w.binary("and", x, integer((1 << width) - 1))
    shifted = w.binary("shl", magnitude, integer(23 - dtype.mantissa_bits))
    scale = floating(2.0 ** (127 - dtype.bias), "float")
    value = w.value("float", f"fmul {w.convert('bitcast', shifted, 'float')}, {scale.name}")
    bits = w.convert("bitcast", value, "i32")
    if dtype.has_inf:
        special = w.icmp("uge", magnitude, integer(dtype.inf_code))
        bits = w.select(special, w.binary("or", bits, integer(0x7F800000)), bits)
    elif dtype.has_nan:
        special = w.icmp("eq", magnitude, integer(dtype.nan_code & ((1 << width) - 1)))
        bits = w.select(special, integer(0x7FC00000), bits)
    sign = w.binary("shl", w.binary("lshr", x, integer(width)), integer(31))
    return w.convert("bitcast", w.binary("or", bits, sign), "float")


def lookup(w: Writer, values: tuple[V, ...], index: V) -> V:
    """Return `values[index]` by a tree of selections."""
    level = list(values)
    bit = 0
    while len(level) > 1:
        odd = w.icmp("ne", w.binary("and", index, integer(1 << bit)), integer(0))
        if len(level) % 2:
            level.append(level[-1])
        level = [w.select(odd, level[i + 1], level[i]) for i in range(0, len(level), 2)]
        bit += 1
    return level[0]


def encode(w: Writer, dtype: DType, x: V) -> V:
    """Return the code nearest to a float32, ties to even, saturating (see `tilus.dtypes.encode`)."""
    if isinstance(dtype, TableType):
        return _encode_table(w, dtype, x)
    if dtype.kind == "scale":
        return _encode_scale(w, x)
    mantissa, bias, width = dtype.mantissa_bits, dtype.bias, dtype.exponent_bits + dtype.mantissa_bits
    bits = w.convert("bitcast", x, "i32")
    magnitude = w.binary("and", bits, integer(0x7FFFFFFF))
    nan = w.icmp("ugt", magnitude, integer(0x7F800000))
    limit = w.convert("bitcast", floating(float(dtype.max), "float"), "i32")
    clamped = w.call("i32", "llvm.umin.i32", magnitude, limit)
    # Normal values: round the float's own bits at the last kept mantissa bit, then change the bias.
    drop = 23 - mantissa
    odd = w.binary("and", w.binary("lshr", clamped, integer(drop)), integer(1))
    rounded = w.add(clamped, w.add(odd, integer((1 << (drop - 1)) - 1)))
    normal = w.binary("sub", w.binary("lshr", rounded, integer(drop)), integer((127 - bias) << mantissa))
    # Subnormal values: adding a power of two whose last place is theirs rounds them to it.
    anchor = 2.0 ** (23 + 1 - bias - mantissa)
    total = w.value("float", f"fadd {w.convert('bitcast', clamped, 'float')}, {floating(anchor, 'float').name}")
    anchor_bits = w.convert("bitcast", floating(anchor, "float"), "i32")
    subnormal = w.binary("sub", w.convert("bitcast", total, "i32"), anchor_bits)
    smallest = w.convert("bitcast", floating(2.0 ** (1 - bias), "float"), "i32")
    code = w.select(w.icmp("ult", clamped, smallest), subnormal, normal)
    code = w.call("i32", "llvm.umin.i32", code, integer(dtype.max_code))
    sign = w.binary("shl", w.binary("lshr", bits, integer(31)), integer(width))
    code = w.binary("or", code, sign)
    return w.select(nan, integer(dtype.nan_code if dtype.has_nan else dtype.max_code), code)


def _encode_scale(w: Writer, x: V) -> V:
    """float8_e8m0: the nearest power of two (ties to the even exponent code), saturating; negative and NaN give NaN."""
    bits = w.convert("bitcast", x, "i32")
    odd = w.binary("and", w.binary("lshr", bits, integer(23)), integer(1))
    rounded = w.binary("lshr", w.add(bits, w.add(odd, integer((1 << 22) - 1))), integer(23))
    code = w.call("i32", "llvm.umin.i32", rounded, integer(254))
    negative = w.icmp("slt", bits, integer(0))
    zero = w.icmp("eq", w.binary("and", bits, integer(0x7FFFFFFF)), integer(0))
    nan = w.icmp("ugt", w.binary("and", bits, integer(0x7FFFFFFF)), integer(0x7F800000))
    bad = w.binary("or", nan, w.binary("and", negative, w.binary("xor", zero, V("i1", "true"))))
    return w.select(bad, integer(255), w.select(zero, integer(0), code))


def _encode_table(w: Writer, dtype: TableType, x: V) -> V:
    """The nearest entry; the smallest code where entries are equally near."""
    order = sorted(range(len(dtype.values)), key=lambda c: (dtype.values[c], c))
    distinct = [c for i, c in enumerate(order) if i == 0 or dtype.values[c] != dtype.values[order[i - 1]]]
    code = integer(distinct[0])
    for below, above in zip(distinct, distinct[1:], strict=False):
        middle = (dtype.values[below] + dtype.values[above]) / 2
        predicate = "ogt" if below < above else "oge"
        over = w.value("i1", f"fcmp {predicate} {x}, {floating(middle, 'float').name}")
        code = w.select(over, integer(above), code)
    nearest_zero = min(range(len(dtype.values)), key=lambda c: (abs(dtype.values[c]), c))
    return w.select(w.value("i1", f"fcmp uno {x}, {x.name}"), integer(nearest_zero), code)
