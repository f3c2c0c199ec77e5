"""Functions that the CUDA system provides to device code: ``vprintf``, ``__assertfail``, ``malloc``, ``free``."""

from __future__ import annotations

from typing import Any

import numpy as np

from .decoder import Decoder
from .operations import Lane, Operation
from .selection import Selection
from .spaces import Allocation
from .syntax import Name
from .types import TYPES


class _Call(Lane):
    """A call whose arguments lie in the lane's frame."""

    def __init__(self, arguments: list[tuple[int, int]], results: list[tuple[int, int]]) -> None:
        super().__init__()
        self.arguments = arguments
        self.results = results

    def values(self, state: Any, sel: Selection, position: int) -> Any:
        """An argument of every lane, as unsigned 64-bit."""
        offset, size = self.arguments[position]
        raw = np.zeros((sel.n, 8), np.uint8)
        raw[:, :size] = state.local[sel.lanes, offset : offset + size]
        return raw.view(np.uint64)[:, 0]

    def give(self, state: Any, sel: Selection, values: Any) -> None:
        """Write the return value."""
        if self.results:
            offset, size = self.results[0]
            raw = (
                np.ascontiguousarray(np.broadcast_to(values, (sel.n,)).astype(np.uint64))
                .view(np.uint8)
                .reshape(-1, 8)
            )
            state.local[sel.lanes, offset : offset + size] = raw[:, :size]


class Printf(_Call):
    """``vprintf(format, arguments)``."""

    def execute(self, state: Any, sel: Selection) -> None:
        formats, buffers = self.values(state, sel, 0), self.values(state, sel, 1)
        for position, lane in enumerate(sel.index):
            template = read_string(state, int(lane), int(formats[position]))
            text = render_format(state, int(lane), template, int(buffers[position]))
            state.engine.printed.append(text)
        self.give(state, sel, np.uint64(0))


class AssertFail(_Call):
    """``__assertfail(message, file, line, function, size)``: reports and ends the launch."""

    def execute(self, state: Any, sel: Selection) -> None:
        lane = int(sel.index[0])
        one = sel.subset(np.arange(sel.n) == 0)
        texts = [read_string(state, lane, int(self.values(state, one, i)[0])) for i in (0, 1, 3)]
        line = int(self.values(state, one, 2)[0]) & 0xFFFFFFFF
        message, file, function = (t.decode("utf-8", "replace") for t in texts)
        state.hazard(
            "assert", f"{file}:{line}: {function}: assertion {message!r} failed", self.instruction, lane
        )
        state.stop()


class Malloc(_Call):
    """``malloc(size)``: memory that lives until the end of the process, as device heap."""

    def execute(self, state: Any, sel: Selection) -> None:
        sizes = self.values(state, sel, 0)
        addresses = np.zeros(sel.n, np.uint64)
        for position, size in enumerate(sizes):
            base = state.engine.addresses.reserve(int(size))
            allocation = Allocation(base, np.zeros(int(size), np.uint8), f"malloc({int(size)})")
            state.engine.globals.add(allocation)
            addresses[position] = base
        self.give(state, sel, addresses)


class Free(_Call):
    """``free(pointer)``."""

    def execute(self, state: Any, sel: Selection) -> None:
        """The memory stays; a use after free is not looked for."""


_BUILTINS = {"vprintf": Printf, "__assertfail": AssertFail, "malloc": Malloc, "free": Free}


def decode_builtin(d: Decoder, name: str, returns: tuple[Any, ...], arguments: tuple[Any, ...]) -> Operation:
    """A call of a function that has no body in the module."""
    if name not in _BUILTINS:
        raise d.fail(f"call of external function {name!r}, which has no body here")
    operation = _BUILTINS[name](_places(d, arguments), _places(d, returns))
    if d.statement.guard is not None:
        predicate = d.source(Name(d.statement.guard.register), TYPES["pred"])
        from .operands import Not

        operation.guard = Not(predicate) if d.statement.guard.negated else predicate
    return operation


def _places(d: Decoder, operands: tuple[Any, ...]) -> list[tuple[int, int]]:
    places = []
    for operand in operands:
        place = d.scope.place(operand.text) if isinstance(operand, Name) else None
        if place is None or place.space != "local":
            raise d.fail("arguments of an external function must be .param variables")
        places.append((place.address, place.size))
    return places


def read_bytes(state: Any, lane: int, address: int, size: int) -> bytes:
    """Bytes at a generic address as one lane sees it."""
    sel = Selection.of(np.array([lane]))
    space, _, local = state.memory.split_generic(np.array([address], np.int64))[0]
    at = int(local[0])
    if space == "local":
        return state.local[lane, at : at + size].tobytes()
    if space == "shared":
        start = int(state.shared_base[sel.lanes][0]) + at
        return state.memory.shared[start : start + size].tobytes()
    allocation = state.engine.globals.find(at)
    if allocation is None:
        return b""
    return allocation.data[at - allocation.base : at - allocation.base + size].tobytes()


def read_string(state: Any, lane: int, address: int) -> bytes:
    """A zero-terminated string."""
    out = b""
    while len(out) < 1 << 16:
        chunk = read_bytes(state, lane, address + len(out), 64)
        end = chunk.find(b"\0")
        if end >= 0:
            return out + chunk[:end]
        if not chunk:
            return out
        out += chunk
    return out


def render_format(state: Any, lane: int, template: bytes, buffer: int) -> str:
    """C's printf over an argument buffer in which each value has its natural alignment (at least 4 bytes)."""
    import re
    import struct

    text = template.decode("utf-8", "replace")
    out, position, offset = [], 0, 0
    for match in re.finditer(
        r"%([-+ #0]*)(\*|\d+)?(?:\.(\*|\d+))?(hh|h|ll|l|z|j|t|L)?([diouxXeEfFgGaAcspn%])", text
    ):
        out.append(text[position : match.start()])
        position = match.end()
        flags, width, precision, length, kind = match.groups()
        if kind == "%":
            out.append("%")
            continue

        def take(size: int) -> bytes:
            nonlocal offset
            offset = (offset + size - 1) // size * size
            raw = read_bytes(state, lane, buffer + offset, size)
            offset += size
            return raw

        if width == "*":
            width = str(struct.unpack("<i", take(4))[0])
        if precision == "*":
            precision = str(struct.unpack("<i", take(4))[0])
        spec = "%" + flags + (width or "") + (f".{precision}" if precision is not None else "")
        if kind in "eEfFgGaA":
            value: Any = struct.unpack("<d", take(8))[0]
            out.append(value.hex() if kind in "aA" else (spec + kind) % value)
        elif kind == "s":
            out.append(
                (spec + "s")
                % read_string(state, lane, struct.unpack("<Q", take(8))[0]).decode("utf-8", "replace")
            )
        elif kind == "c":
            out.append((spec + "c") % chr(take(4)[0]))
        elif kind == "p":
            out.append("0x{:x}".format(struct.unpack("<Q", take(8))[0]))
        else:
            size = 8 if length in ("l", "ll", "z", "j", "t") else 4
            signed = kind in "di"
            value = int.from_bytes(take(size), "little", signed=signed)
            out.append((spec + ("d" if kind in "diu" else kind)) % value)
    out.append(text[position:])
    return "".join(out)
