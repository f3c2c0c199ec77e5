"""Casts between any two dtypes: packed fast paths from a table, and the general path, exact for every code."""

from __future__ import annotations

from tilus.codegen.casts.decode import decode, lookup
from tilus.codegen.casts.encode import encode
from tilus.codegen.casts.general import cast_element
from tilus.codegen.llvm_text import V, Writer
from tilus.codegen.registers import pack, unpack
from tilus.codegen.target import Target
from tilus.dtypes import DType


def cast_elements(
    w: Writer, target: Target, source: DType, dest: DType, regs: tuple[V, ...], count: int
) -> tuple[V, ...]:
    """Return containers of `dest` for `count` elements in containers of `source`."""
    elements = unpack(w, source, regs, count)
    return pack(w, dest, [cast_element(w, target, source, dest, e) for e in elements])


__all__ = ["cast_element", "cast_elements", "decode", "encode", "lookup"]
