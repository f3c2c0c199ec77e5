"""The table of all instructions: name to decode function, from the families' tables."""

from __future__ import annotations

from collections.abc import Callable

from . import (
    async_copy,
    atomics,
    barriers,
    cluster,
    compare,
    control,
    convert,
    fences,
    floating,
    integer,
    logic,
    matrix,
    mbarrier,
    memory,
    video,
    warp,
    wgmma,
    wmma,
)
from .decoder import Decoder
from .operations import Map, Operation

_FLOATING = frozenset(floating.FLOAT_TYPES)
# With packed types these compute each element from the same elements of their operands.
_ELEMENTWISE = frozenset("abs add ex2 fma max min mul neg sub tanh".split())

TABLE: dict[str, Callable[[Decoder], Operation]] = {
    **integer.INSTRUCTIONS,
    **logic.INSTRUCTIONS,
    **compare.INSTRUCTIONS,
    **convert.INSTRUCTIONS,
    **control.INSTRUCTIONS,
    **memory.INSTRUCTIONS,
    **warp.INSTRUCTIONS,
    **barriers.INSTRUCTIONS,
    **atomics.INSTRUCTIONS,
    **async_copy.INSTRUCTIONS,
    **matrix.INSTRUCTIONS,
    **fences.INSTRUCTIONS,
    **mbarrier.INSTRUCTIONS,
    **cluster.INSTRUCTIONS,
    **wgmma.INSTRUCTIONS,
    **wmma.INSTRUCTIONS,
    **video.INSTRUCTIONS,
}


def decode_statement(d: Decoder) -> Operation:
    """Decode one statement, or refuse it with its text and line."""
    if isinstance(d.extra, tuple):
        return control.decode_extra(d)
    decode = TABLE.get(d.name)
    floats = floating.INSTRUCTIONS.get(d.name)
    if floats is not None and (decode is None or (d.mods and d.mods[-1] in _FLOATING)):
        decode = floats
    if decode is None:
        raise d.fail(f"unsupported instruction {d.name!r}")
    operation = decode(d)
    d.finish()
    kind = d.statement.opcode.rsplit(".", 1)[-1]
    if isinstance(operation, Map) and d.name in _ELEMENTWISE and kind.endswith("x2"):
        operation.packed = 32 if kind == "f32x2" else 16
    return operation
