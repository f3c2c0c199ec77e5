"""Lowering of device_print and device_assert: vprintf and __assertfail, as CUDA's runtime has them."""

from __future__ import annotations

import re

from tilus import dtypes
from tilus.codegen.casts import cast_element
from tilus.codegen.llvm_text import V, integer
from tilus.codegen.lower.context import Context, lowers, scalar_type_of
from tilus.codegen.registers import Tile, elements_of
from tilus.dtypes import DType
from tilus.errors import TypeMismatch
from tilus.ir import ops
from tilus.ir.types import RegisterType, ScalarType


@lowers(ops.Print)
def lower_print(ctx: Context, op: ops.Print) -> None:
    """Scalars are printed by one thread of the block; a tile by the threads that hold it, an element a line."""
    w = ctx.w
    tiles = [a for a in op.args if isinstance(a.type, RegisterType)]
    if len(tiles) > 1:
        raise TypeMismatch("device_print takes one tile at a time", hint="print tiles one after the other")
    parts = _split(op.format)
    if len(parts) != len(op.args) + 1:
        raise TypeMismatch(f"device_print has {len(parts) - 1} places for {len(op.args)} values")
    if not tiles:
        first = w.icmp("eq", ctx.thread(), integer(0))
        formats = [_format(scalar_type_of(a)) for a in op.args]
        values = [ctx.scalar(a) for a in op.args]
        _guarded(ctx, first, _text(parts, formats) + "\n", values, [scalar_type_of(a) for a in op.args])
        return
    tile = ctx.tile(tiles[0])
    thread = ctx.coordinates(tile.layout)
    once = ctx.is_first_replica(tile.layout) or V("i1", "true")
    rank = tile.layout.rank
    for number, value in enumerate(elements_of(w, tile)):
        own = tile.layout.element_index(number)
        index = [w.add(t, integer(o)) for t, o in zip(thread, own, strict=True)]
        formats, values, kinds = [], [], []
        for a in op.args:
            kind = scalar_type_of(a)
            if a is tiles[0]:
                formats.append("[" + ", ".join(["%d"] * rank) + "] = " + _format(kind))
                values += [*index, value]
                kinds += [*([dtypes.int32] * rank), kind]
            else:
                formats.append(_format(kind))
                values.append(ctx.scalar(a))
                kinds.append(kind)
        _guarded(ctx, once, _text(parts, formats) + "\n", values, kinds)


def _split(format: str) -> list[str]:
    """Return the text between the places `{}` of a format string, in which doubled braces stand for themselves."""
    parts = [""]
    for token in re.findall(r"\{\{|\}\}|\{\}|[^{}]+|[{}]", format):
        if token == "{}":
            parts.append("")
        else:
            parts[-1] += {"{{": "{", "}}": "}"}.get(token, token)
    return parts


def _text(parts: list[str], formats: list[str]) -> str:
    escaped = [p.replace("%", "%%") for p in parts]
    out = escaped[0]
    for specifier, part in zip(formats, escaped[1:], strict=True):
        out += specifier + part
    return out


def _format(dtype: DType) -> str:
    if dtype.is_integer or dtype is dtypes.boolean:
        return {
            ("int", True): "%lld",
            ("int", False): "%d",
            ("uint", True): "%llu",
            ("uint", False): "%u",
        }.get((dtype.kind, dtype.bits == 64), "%d")
    return "%g"


def _guarded(ctx: Context, condition: V, text: str, values: list[V], kinds: list[DType]) -> None:
    w = ctx.w
    inside, after = w.label(), w.label()
    w.branch(condition, inside, after)
    w.begin(inside)
    slots: list[V] = []
    for value, kind in zip(values, kinds, strict=True):
        if kind.is_integer:
            slots.append(value)
        elif kind is dtypes.boolean:
            slots.append(w.convert("zext", value, "i32"))
        else:
            slots.append(cast_element(w, ctx.target, kind, dtypes.float64, value))
    buffer = integer(0)
    if slots:
        types = ", ".join(v.type for v in slots)
        with w.at_entry():
            buffer = w.value("ptr", f"alloca {{ {types} }}, align 8")
        for number, value in enumerate(slots):
            place = w.value("ptr", f"getelementptr {{ {types} }}, {buffer}, i32 0, i32 {number}")
            w.run(f"store {value}, {place}")
    else:
        buffer = V("ptr", "null")
    w.call("i32", "vprintf", w.string(text), buffer)
    w.begin(after)


@lowers(ops.Assert)
def lower_assert(ctx: Context, op: ops.Assert) -> None:
    w = ctx.w
    lowered = ctx.values[op.condition]
    if isinstance(lowered, Tile):
        holds = V("i1", "true")
        for element in elements_of(w, lowered):
            holds = element if holds.name == "true" else w.binary("and", holds, element)
    else:
        assert isinstance(op.condition.type, ScalarType) and isinstance(lowered, V)
        holds = lowered
    failed, after = w.label(), w.label()
    w.branch(holds, after, failed)
    w.begin(failed)
    file = op.loc.file if op.loc is not None else "unknown"
    line = op.loc.line if op.loc is not None else 0
    w.call(
        "void", "__assertfail", w.string(op.message), w.string(file.rpartition("/")[2]), integer(line),
        w.string(ctx.kernel.name), integer(1, 64),
    )  # fmt: skip
    w.jump(after)
    w.begin(after)
