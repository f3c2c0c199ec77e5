"""Where variables lie, and the module's global and constant variables with their initial values."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Any

import numpy as np

from .errors import PtxError
from .spaces import AddressSpace, Allocation
from .syntax import Float, Integer, Name, SyntaxTree, Variable
from .types import TYPES, ScalarType


@dataclass
class SymbolPlace:
    """Where a variable lies: space and offset (or device address)."""

    space: str
    address: int
    size: int
    name: str
    dynamic: bool = False


def align(value: int, alignment: int) -> int:
    """The next multiple of ``alignment``."""
    return (value + alignment - 1) // alignment * alignment


def type_bytes(variable: Variable) -> int:
    """Bytes of one element of a variable."""
    if variable.type in TYPES:
        return TYPES[variable.type].bytes * variable.vector
    if variable.type in ("texref", "samplerref", "surfref"):
        return 8
    raise PtxError(f"variable {variable.name} has unsupported type .{variable.type}", variable.line)


def variable_bytes(variable: Variable) -> int:
    """Bytes of a variable."""
    size = type_bytes(variable)
    for extent in variable.shape:
        size *= extent
    return size


def natural_alignment(variable: Variable) -> int:
    """The stated alignment, else that of the type."""
    return variable.alignment or type_bytes(variable)


class ModuleMemory:
    """The global and constant variables of a module, which keep their values between launches."""

    def __init__(self, tree: SyntaxTree, addresses: AddressSpace, functions: dict[str, int]) -> None:
        self.places: dict[str, SymbolPlace] = {}
        self.allocations: list[Allocation] = []
        pending = []
        for variable in tree.variables:
            if variable.space.split("::")[0] not in ("global", "const"):
                continue
            size = max(variable_bytes(variable), 1)
            if variable.external and not variable.shape:
                size = type_bytes(variable)
            if variable.shape and 0 in variable.shape and variable.initial:
                size = type_bytes(variable) * len(variable.initial)
            base = addresses.reserve(size)
            data = np.zeros(align(size, 16), np.uint8)[:size]
            kind = "constant" if variable.space == "const" else "variable"
            self.allocations.append(
                Allocation(base, data, f"{kind} {variable.name}", readonly=variable.space == "const")
            )
            self.places[variable.name] = SymbolPlace("global", base, size, variable.name)
            pending.append((variable, data))
        for variable, data in pending:
            if variable.initial is not None:
                self._fill(variable, data, functions)

    def _fill(self, variable: Variable, data: Any, functions: dict[str, int]) -> None:
        if variable.type not in TYPES:
            return
        element = TYPES[variable.type]
        items = list(_flat(variable.initial))
        if element.kind in "bsu" and element.bits <= 64 and all(type(item) is Integer for item in items):
            mask = (1 << element.bits) - 1
            raw = np.array([item.value & mask for item in items], f"u{element.bytes}").tobytes()
        else:
            raw = b"".join(self._encode(item, element, variable, functions) for item in items)
        if len(raw) > len(data):
            raise PtxError(
                f"initial value of {variable.name} has {len(raw)} bytes, the variable {len(data)}",
                variable.line,
            )
        data[: len(raw)] = np.frombuffer(raw, np.uint8)

    def _encode(self, item: Any, element: ScalarType, variable: Variable, functions: dict[str, int]) -> bytes:
        mask = (1 << element.bits) - 1
        if isinstance(item, Integer):
            if element.kind == "f":
                return np.array(item.value, element.dtype).tobytes()
            return (item.value & mask).to_bytes(element.bytes, "little")
        if isinstance(item, Float):
            if element.bits == item.bits:
                return (item.raw & mask).to_bytes(element.bytes, "little")
            if element.bits == 32:
                return struct.pack("<f", item.value)
            if element.bits == 16:
                return np.array(item.value, np.float16).tobytes()
            return struct.pack("<d", item.value)
        if isinstance(item, tuple) and item and item[0] == "mask":
            value = (
                item[2].value
                if isinstance(item[2], Integer)
                else self._symbolic(item[2], variable, functions)
            )
            shift = (item[1] & -item[1]).bit_length() - 1
            return ((value & item[1]) >> shift & mask).to_bytes(element.bytes, "little")
        if isinstance(item, Name):
            return (self._symbolic(item, variable, functions) & mask).to_bytes(element.bytes, "little")
        raise PtxError(f"initial value of {variable.name} is not a constant", variable.line)

    def _symbolic(self, item: Name, variable: Variable, functions: dict[str, int]) -> int:
        if item.text in self.places:
            return self.places[item.text].address + item.offset
        if item.text in functions:
            return functions[item.text] + item.offset
        raise PtxError(f"initial value of {variable.name} names unknown {item.text!r}", variable.line)


def _flat(items: Any) -> Any:
    for item in items:
        if isinstance(item, list):
            yield from _flat(item)
        else:
            yield item
