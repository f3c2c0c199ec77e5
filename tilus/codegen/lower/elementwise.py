"""Lowering of arithmetic, comparison, selection, casts and reinterpretation."""

from __future__ import annotations

import re
from collections.abc import Callable

from tilus import dtypes
from tilus.codegen.casts import cast_at_random, cast_elements, cast_stored
from tilus.codegen.llvm_text import FALSE, TRUE, V, floating, integer
from tilus.codegen.lower.context import Context, lowers, scalar_type_of
from tilus.codegen.math import float_function
from tilus.codegen.registers import Tile, bits_of, elements_of, from_bits, llvm_type, pack, tile_of, unpack
from tilus.dtypes import DType
from tilus.errors import LayoutConflict, TypeMismatch
from tilus.ir import ops
from tilus.ir.core import Value
from tilus.ir.types import RegisterType

_PAIRED = (dtypes.float16, dtypes.bfloat16)


def is_float_type(type: str) -> bool:
    """Tell whether an LLVM type is a float or a vector of floats."""
    return not type.endswith(("i1", "i32", "i64", "i32>"))


def require_arithmetic(dtype: DType, what: str) -> None:
    """Refuse arithmetic on codes that have no arithmetic of their own."""
    if dtype.kind in ("scale", "table") or (dtype.is_float and dtype.bits <= 8):
        raise TypeMismatch(
            f"{what} of {dtype} has no arithmetic of its own", hint="cast it to float16 or float32 first"
        )


def mapped(
    ctx: Context,
    dtype: DType,
    result: Value,
    args: tuple[Value, ...],
    function: Callable[..., V],
    paired: bool = True,
) -> None:
    """Apply a function of LLVM values to scalars or to each element of tiles; 16-bit floats go in pairs."""
    w = ctx.w
    out = scalar_type_of(result)
    if not isinstance(result.type, RegisterType):
        ctx.values[result] = wrap(ctx, out, function(*(ctx.scalar(a) for a in args)))
        return
    layout = ctx.layout(result)
    tiles = [ctx.tile(a) for a in args]
    if paired and dtype in _PAIRED and out is dtype and all(t.dtype is dtype for t in tiles):
        pair = f"<2 x {llvm_type(dtype)}>"
        regs = [
            w.convert("bitcast", function(*(w.convert("bitcast", t.regs[i], pair) for t in tiles)), "i32")
            for i in range(len(tiles[0].regs))
        ]
        ctx.values[result] = Tile(out, layout, tuple(regs))
        return
    columns = [elements_of(w, t) for t in tiles]
    ctx.values[result] = tile_of(w, out, layout, [function(*row) for row in zip(*columns, strict=True)])


def wrap(ctx: Context, dtype: DType, value: V) -> V:
    """Bring a narrow integer scalar, computed in i32, back into its range."""
    if dtype.is_integer and dtype.bits < 32:
        shift = integer(32 - dtype.bits)
        return ctx.w.binary("ashr" if dtype.is_signed else "lshr", ctx.w.binary("shl", value, shift), shift)
    return value


def splat_literal(type: str, value: float) -> V:
    """Return a float constant, or a vector of it."""
    if type.startswith("<"):
        scalar = type[5:-1]
        element = floating(value, scalar)
        return V(type, f"<{element}, {element}>")
    return floating(value, type)


@lowers(ops.Unary)
def lower_unary(ctx: Context, op: ops.Unary) -> None:
    dtype = scalar_type_of(op.x)
    require_arithmetic(dtype, op.kind)
    paired = op.kind in ("neg", "abs")
    mapped(ctx, dtype, op.result, (op.x,), lambda x: unary(ctx, op.kind, dtype, x), paired)


def unary(ctx: Context, kind: str, dtype: DType, x: V) -> V:
    """Return a function of one element."""
    w = ctx.w
    if dtype.is_float:
        if kind == "neg":
            return w.value(x.type, f"fneg {x}")
        if kind == "abs":
            suffix = {"half": "f16", "bfloat": "bf16", "float": "f32", "double": "f64"}.get(x.type) or (
                "v2f16" if "half" in x.type else "v2bf16"
            )
            return w.call(x.type, f"llvm.fabs.{suffix}", x)
        return float_function(ctx.w, ctx.target, kind, dtype, x)
    bits = int(x.type[1:])
    if kind == "neg":
        return w.binary("sub", integer(0, bits), x)
    if kind == "abs":
        return w.call(x.type, f"llvm.abs.{x.type}", x, FALSE) if dtype.is_signed else x
    if kind == "not":
        return w.binary("xor", x, TRUE if x.type == "i1" else integer(-1, bits))
    if dtype.bits < 32 and kind in ("popcount", "clz", "ctz", "brev"):
        x = w.binary("and", x, integer((1 << dtype.bits) - 1))
    if kind == "popcount":
        count = w.call(x.type, f"llvm.ctpop.{x.type}", x)
    elif kind == "clz":
        count = w.call(x.type, f"llvm.ctlz.{x.type}", x, FALSE)
        if dtype.bits < 32:
            count = w.binary("sub", count, integer(32 - dtype.bits))
    elif kind == "ctz":
        if dtype.bits < 32:
            x = w.binary("or", x, integer(1 << dtype.bits))
        count = w.call(x.type, f"llvm.cttz.{x.type}", x, FALSE)
    else:
        turned = w.call(x.type, f"llvm.bitreverse.{x.type}", x)
        return w.binary("lshr", turned, integer(32 - dtype.bits)) if dtype.bits < 32 else turned
    return w.convert("trunc", count, "i32")


@lowers(ops.Binary)
def lower_binary(ctx: Context, op: ops.Binary) -> None:
    dtype = scalar_type_of(op.a)
    require_arithmetic(dtype, op.kind)
    paired = op.kind in ("add", "sub", "mul", "min", "max")
    mapped(ctx, dtype, op.result, (op.a, op.b), lambda a, b: binary(ctx, op.kind, dtype, a, b), paired)


_FLOAT = {"add": "fadd contract", "sub": "fsub contract", "mul": "fmul contract", "div": "fdiv"}
_INTEGER = {"add": "add", "sub": "sub", "mul": "mul", "and": "and", "or": "or", "xor": "xor"}


def binary(ctx: Context, kind: str, dtype: DType, a: V, b: V) -> V:
    """Return a function of two elements."""
    w = ctx.w
    if dtype.is_float:
        if kind in _FLOAT:
            return w.value(a.type, f"{_FLOAT[kind]} {a}, {b.name}")
        if kind in ("min", "max"):
            return float_extreme(ctx, kind, a, b)
        if kind == "mod":
            return float_modulo(ctx, dtype, a, b)
        if kind == "pow":
            return float_power(ctx, dtype, a, b)
    elif kind in _INTEGER:
        return w.binary(_INTEGER[kind], a, b)
    elif kind in ("shl", "shr"):
        return shift(ctx, kind, dtype, a, b)
    elif kind in ("min", "max"):
        sign = "s" if dtype.is_signed else "u"
        return w.call(a.type, f"llvm.{sign}{kind}.{a.type}", a, b)
    elif kind in ("floordiv", "mod"):
        return floor_division(ctx, kind, dtype, a, b)
    elif kind == "mulhi":
        return high_product(ctx, dtype, a, b)
    raise TypeMismatch(f"{kind} does not take {dtype}")


def in_float32(ctx: Context, function: Callable[[V, V], V], a: V, b: V) -> V:
    """Compute a function of two 16-bit floats in float32."""
    w = ctx.w
    return w.convert(
        "fptrunc", function(w.convert("fpext", a, "float"), w.convert("fpext", b, "float")), a.type
    )


def float_modulo(ctx: Context, dtype: DType, a: V, b: V) -> V:
    """The remainder with the sign of the divisor; exact where the quotient has no more bits than the type."""
    if a.type in ("half", "bfloat"):
        return in_float32(ctx, lambda x, y: float_modulo(ctx, dtypes.float32, x, y), a, b)
    w = ctx.w
    suffix = "f32" if a.type == "float" else "f64"
    zero = floating(0.0, a.type)
    quotient = float_function(w, ctx.target, "floor", dtype, w.value(a.type, f"fdiv {a}, {b.name}"))
    rest = w.call(a.type, f"llvm.fma.{suffix}", w.value(a.type, f"fneg {quotient}"), b, a)
    # An infinite divisor times a quotient of zero is no number, but the remainder is.
    rest = w.select(w.value("i1", f"fcmp oeq {quotient}, {zero.name}"), a, rest)
    # The rounded quotient may be one too high or too low.
    size_b = w.call(a.type, f"llvm.fabs.{suffix}", b)
    size = w.call(a.type, f"llvm.fabs.{suffix}", rest)
    beyond = w.value("i1", f"fcmp oge {size}, {size_b.name}")
    less = w.value(a.type, f"fsub {size}, {size_b.name}")
    rest = w.select(beyond, w.call(a.type, f"llvm.copysign.{suffix}", less, rest), rest)
    below = [w.value("i1", f"fcmp olt {x}, {zero.name}") for x in (rest, b)]
    wrong = w.binary("and", w.value("i1", f"fcmp une {rest}, {zero.name}"), w.binary("xor", *below))
    return w.select(wrong, w.value(a.type, f"fadd {rest}, {b.name}"), rest)


def float_power(ctx: Context, dtype: DType, a: V, b: V) -> V:
    """`a ** b` through logarithm and exponential of base 2; a negative base takes integer exponents."""
    if a.type in ("half", "bfloat"):
        return in_float32(ctx, lambda x, y: float_power(ctx, dtypes.float32, x, y), a, b)
    w = ctx.w
    suffix = "f32" if a.type == "float" else "f64"

    def is_integer(x: V) -> V:
        return w.value("i1", f"fcmp oeq {w.call(x.type, f'llvm.rint.{suffix}', x)}, {x.name}")

    size = w.call(a.type, f"llvm.fabs.{suffix}", a)
    log = float_function(w, ctx.target, "log2", dtype, size)
    made = float_function(w, ctx.target, "exp2", dtype, w.value(a.type, f"fmul {log}, {b.name}"))
    half = w.value(a.type, f"fmul {b}, {floating(0.5, a.type).name}")
    negative = w.value("i1", f"fcmp olt {a}, {floating(0.0, a.type).name}")
    odd = w.binary("xor", is_integer(half), TRUE)
    signed = w.select(odd, w.value(a.type, f"fneg {made}"), made)
    signed = w.select(is_integer(b), signed, floating(float("nan"), a.type))
    made = w.select(negative, signed, made)
    one = floating(1.0, a.type)
    return w.select(w.value("i1", f"fcmp oeq {b}, {floating(0.0, a.type).name}"), one, made)


def shift(ctx: Context, kind: str, dtype: DType, a: V, b: V) -> V:
    """A shift; by the width or more (or a negative amount, which is read as unsigned) it leaves 0, or the sign."""
    w = ctx.w
    bits = int(a.type[1:])
    opcode = "shl" if kind == "shl" else "ashr" if dtype.is_signed else "lshr"
    known = b.literal
    if known is not None and 0 <= known < dtype.bits:
        return w.binary(opcode, a, b)
    if opcode == "ashr":
        return w.binary("ashr", a, w.call(a.type, f"llvm.umin.{a.type}", b, integer(dtype.bits - 1, bits)))
    if bits == 64:
        # PTX's shift saturates and takes an amount of 32 bits. LLVM, from a test like the one below, makes one whose
        # amount has lost its upper bits.
        amount = w.convert("trunc", w.call(b.type, "llvm.umin.i64", b, integer(64, 64)), "i32")
        return w.asm("i64", f"{'shl.b64' if kind == 'shl' else 'shr.u64'} $0, $1, $2;", "=l,l,r", a, amount)
    far = w.icmp("uge", b, integer(dtype.bits, bits))
    return w.select(far, integer(0, bits), w.value(a.type, f"{opcode} {a}, {b.name}"))


def high_product(ctx: Context, dtype: DType, a: V, b: V) -> V:
    """The upper half of the product of two integers."""
    w = ctx.w
    extend, opcode = ("sext", "ashr") if dtype.is_signed else ("zext", "lshr")
    type = f"i{max(32, 2 * dtype.bits)}"
    wide = w.binary("mul", w.convert(extend, a, type), w.convert(extend, b, type))
    return w.convert("trunc", w.binary(opcode, wide, integer(dtype.bits, int(type[1:]))), a.type)


def float_extreme(ctx: Context, kind: str, a: V, b: V) -> V:
    """Minimum or maximum that propagates NaN, as NumPy and torch have it."""
    w = ctx.w
    suffix = {"half": "f16", "bfloat": "bf16", "float": "f32", "double": "f64"}.get(a.type) or (
        "v2f16" if "half" in a.type else "v2bf16"
    )
    return w.call(a.type, f"llvm.{kind}imum.{suffix}", a, b)


def floor_division(ctx: Context, kind: str, dtype: DType, a: V, b: V) -> V:
    """Division and remainder that round to minus infinity, as Python has it."""
    w = ctx.w
    bits = int(a.type[1:])
    known = b.literal
    if known is not None and known > 0 and known & (known - 1) == 0:
        if kind == "mod":
            return w.binary("and", a, integer(known - 1, bits))
        return w.binary("ashr" if dtype.is_signed else "lshr", a, integer(known.bit_length() - 1, bits))
    zero, one, minus_one = integer(0, bits), integer(1, bits), integer(-1, bits)
    # LLVM takes it for granted that a divisor is not zero, nor -1 under the least number, and would drop tests of that.
    if known == 0:
        b = one
    elif known == -1 and dtype.is_signed:
        return zero if kind == "mod" else w.binary("sub", zero, a)
    negated: V | None = None
    if known is None:
        bad = w.icmp("eq", b, zero)
        if dtype.is_signed:
            negated = w.icmp("eq", b, minus_one)
            bad = w.binary("or", bad, negated)
        b = w.select(bad, one, b)
    if not dtype.is_signed:
        return w.binary("udiv" if kind == "floordiv" else "urem", a, b)
    quotient, remainder = w.binary("sdiv", a, b), w.binary("srem", a, b)
    apart = w.icmp("slt", w.binary("xor", remainder, b), zero)
    fix = w.binary("and", w.icmp("ne", remainder, zero), apart)
    if kind == "mod":
        return w.add(remainder, w.select(fix, b, zero))
    rounded = w.add(quotient, w.convert("sext", fix, a.type))
    return rounded if negated is None else w.select(negated, w.binary("sub", zero, a), rounded)


_PREDICATES = {"eq": "eq", "ne": "ne", "lt": "lt", "le": "le", "gt": "gt", "ge": "ge"}


@lowers(ops.Compare)
def lower_compare(ctx: Context, op: ops.Compare) -> None:
    dtype = scalar_type_of(op.a)
    if dtype.kind != "bool":
        require_arithmetic(dtype, "comparison")

    def compare(a: V, b: V) -> V:
        if dtype.is_float:
            order = "u" if op.kind == "ne" else "o"
            return ctx.w.value("i1", f"fcmp {order}{op.kind} {a}, {b.name}")
        if op.kind in ("eq", "ne"):
            return ctx.w.icmp(op.kind, a, b)
        return ctx.w.icmp(("s" if dtype.is_signed else "u") + op.kind, a, b)

    mapped(ctx, dtype, op.result, (op.a, op.b), compare, paired=False)


@lowers(ops.Select)
def lower_select(ctx: Context, op: ops.Select) -> None:
    dtype = scalar_type_of(op.a)
    mapped(ctx, dtype, op.result, (op.cond, op.a, op.b), ctx.w.select, paired=False)


@lowers(ops.Cast)
def lower_cast(ctx: Context, op: ops.Cast) -> None:
    source = scalar_type_of(op.x)
    w = ctx.w
    if not isinstance(op.x.type, RegisterType):
        value = ctx.scalar(op.x)
        if source is op.dtype:
            ctx.values[op.result] = value
            return
        regs = pack(w, source, [value])
        made = cast_elements(w, ctx.target, source, op.dtype, regs, 1)
        ctx.values[op.result] = unpack(w, op.dtype, made, 1)[0]
        return
    tile = ctx.tile(op.x)
    regs = tile.regs
    if op.arranged:
        regs = cast_stored(w, ctx.target, source, op.dtype, regs, tile.count, op.exponent, op.biased)
    elif source != op.dtype:
        regs = cast_elements(w, ctx.target, source, op.dtype, regs, tile.count)
    ctx.values[op.result] = Tile(op.dtype, tile.layout, regs)


@lowers(ops.CastRandom)
def lower_cast_random(ctx: Context, op: ops.CastRandom) -> None:
    w, tile = ctx.w, ctx.tile(op.x)
    regs = cast_elements(w, ctx.target, tile.dtype, dtypes.float32, tile.regs, tile.count)
    wide = elements_of(w, Tile(dtypes.float32, tile.layout, regs))
    random = elements_of(w, ctx.tile(op.random))
    made = [cast_at_random(w, op.dtype, x, bits) for x, bits in zip(wide, random, strict=True)]
    ctx.values[op.result] = tile_of(w, op.dtype, tile.layout, made)


@lowers(ops.View)
def lower_view(ctx: Context, op: ops.View) -> None:
    tile = ctx.tile(op.x)
    layout = ctx.layout(op.result)
    if (
        layout.threads != tile.layout.threads
        or layout.elements * op.dtype.bits != tile.count * tile.dtype.bits
    ):
        raise LayoutConflict(
            f"view from {tile.count} x {tile.dtype} in each of {tile.layout.threads} threads to "
            f"{layout.elements} x {op.dtype} in each of {layout.threads}: the bits of a thread must be as many",
            hint="choose a layout with the same number of threads and of bits in each",
        )
    if dtypes.boolean in (tile.dtype, op.dtype):
        raise TypeMismatch("booleans cannot be reinterpreted", hint="cast to uint8 first")
    ctx.values[op.result] = Tile(op.dtype, layout, from_bits(ctx.w, op.dtype, bits_of(ctx.w, tile)))


def _operand_type(dtype: DType) -> str:
    """Return the LLVM type of an operand of inline PTX: integers of 16 bits have registers of 16 bits."""
    return "i16" if dtype.is_integer and dtype.bits == 16 else llvm_type(dtype)


def _letter(dtype: DType) -> str:
    """Return the constraint of an operand of inline PTX."""
    letters = {
        "i1": "b",
        "i16": "h",
        "i32": "r",
        "i64": "l",
        "float": "f",
        "double": "d",
        "half": "h",
        "bfloat": "h",
    }
    return letters[_operand_type(dtype)]


@lowers(ops.InlinePtx)
def lower_inline_ptx(ctx: Context, op: ops.InlinePtx) -> None:
    w = ctx.w
    outs = list(op.dtypes)
    ins = [scalar_type_of(v) for v in op.args]
    # Results are written before all operands are read where the text is more than one instruction.
    constraints = ",".join([*("=&" + _letter(x) for x in outs), *(_letter(x) for x in ins)])
    template = op.template.replace("\\", "\\5C").replace('"', "\\22").replace("\n", "\\0A")
    types = [_operand_type(x) for x in outs]
    result = "void" if not outs else types[0] if len(outs) == 1 else "{ " + ", ".join(types) + " }"
    # What several threads execute together must not come under a condition, or stand in two branches.
    convergent = re.search(r"\.sync\b|\.aligned\b|\bbar(?:rier)?\.|\bactivemask\b", op.template) is not None

    def once(*args: V) -> list[V]:
        given = [w.convert("trunc", a, _operand_type(x)) for a, x in zip(args, ins, strict=True)]
        made = w.asm(
            result, template, constraints, *given, effects=op.volatile or not outs, convergent=convergent
        )
        parts = [made][: len(outs)] if len(outs) <= 1 else [w.member(made, i, t) for i, t in enumerate(types)]
        return [
            wrap(
                ctx,
                x,
                w.convert("sext" if x.is_signed else "zext", part, llvm_type(x)) if x.is_integer else part,
            )
            for part, x in zip(parts, outs, strict=True)
        ]

    if op.shape is None:
        for value, made in zip(op.results, once(*(ctx.scalar(a) for a in op.args)), strict=True):
            ctx.values[value] = made
        return
    layout = (
        ctx.layout(op.results[0])
        if op.results
        else ctx.tile(next(a for a in op.args if isinstance(a.type, RegisterType))).layout
    )
    columns = [
        elements_of(w, ctx.tile(a)) if isinstance(a.type, RegisterType) else [ctx.scalar(a)] * layout.elements
        for a in op.args
    ]
    rows = [once(*(column[i] for column in columns)) for i in range(layout.elements)]
    for position, value in enumerate(op.results):
        ctx.values[value] = tile_of(w, op.dtypes[position], layout, [row[position] for row in rows])
