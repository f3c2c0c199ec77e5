"""Writes LLVM IR as text: names, types, constants, blocks and debug locations.

Text because building llvmlite's objects costs more than LLVM's own parser.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import NamedTuple

from tilus.errors import Location


class V(NamedTuple):
    """An LLVM value: its type and its name or literal."""

    type: str
    name: str

    def __str__(self) -> str:
        return f"{self.type} {self.name}"

    @property
    def literal(self) -> int | None:
        """The value of an integer constant."""
        if self.type[0] == "i" and (self.name[0] == "-" or self.name.isdigit()):
            return int(self.name)
        return None


POINTER = "ptr"
GLOBAL = "ptr addrspace(1)"
SHARED = "ptr addrspace(3)"


def integer(value: int, bits: int = 32) -> V:
    """Return an integer constant."""
    if bits == 1:
        return V("i1", "true" if value else "false")
    value &= (1 << bits) - 1
    if value >> (bits - 1):
        value -= 1 << bits
    return V(f"i{bits}", str(value))


def floating(value: float, type: str) -> V:
    """Return a floating constant of type half, bfloat, float or double."""
    if type == "half":
        bits = struct.unpack("<H", struct.pack("<e", value))[0]
        return V(type, f"0xH{bits:04X}")
    if type == "bfloat":
        (word,) = struct.unpack("<I", struct.pack("<f", value))
        if value == value:
            word += 0x7FFF + ((word >> 16) & 1)
        return V(type, f"0xR{(word >> 16) & 0xFFFF:04X}")
    if type == "float":
        value = struct.unpack("<f", struct.pack("<f", value))[0]
    return V(type, f"0x{struct.unpack('<Q', struct.pack('<d', value))[0]:016X}")


TRUE, FALSE = integer(1, 1), integer(0, 1)


@dataclass
class Phi:
    """A phi whose incoming values are still being collected."""

    line: int
    value: V
    incoming: list[tuple[V, str]] = field(default_factory=list)


class Writer:
    """Collects the text of one function and of the module around it."""

    def __init__(self, producer: str) -> None:
        self.lines: list[str] = []
        self.prologue: list[str] = []
        self.globals: list[str] = []
        self.declared: dict[str, str] = {}
        self.strings: dict[str, str] = {}
        self.count = 0
        self.block = "entry"
        self.terminated = False
        self.metadata: list[str] = []
        self.debug = ""
        self.entry_debug = ""
        self._files: dict[str, int] = {}
        self._scopes: dict[tuple[str, int], int] = {}
        self._places: dict[tuple[int, int, int], int] = {}
        self._producer = producer
        self._unit: int | None = None

    # Instructions.

    @contextmanager
    def at_entry(self) -> Iterator[None]:
        """Append to the head of the function instead, for values that depend on the thread alone."""
        lines, self.lines, debug, self.debug = self.lines, self.prologue, self.debug, self.entry_debug
        try:
            yield
        finally:
            self.lines, self.debug = lines, debug

    def name(self) -> str:
        """Return a fresh local name."""
        self.count += 1
        return f"%t{self.count}"

    def value(self, type: str, text: str) -> V:
        """Append an instruction with a result."""
        name = self.name()
        self.lines.append(f"  {name} = {text}{self.debug}")
        return V(type, name)

    def run(self, text: str) -> None:
        """Append an instruction without a result."""
        self.lines.append(f"  {text}{self.debug}")

    def declare(self, name: str, text: str) -> None:
        """Declare a function once."""
        self.declared.setdefault(name, text)

    def call(self, result: str, name: str, *args: V, attributes: str = "") -> V:
        """Call an intrinsic or a function, declaring it."""
        self.declare(name, f"declare {result} @{name}({', '.join(a.type for a in args)}){attributes}")
        text = f"call {result} @{name}({', '.join(map(str, args))})"
        if result == "void":
            self.run(text)
            return V("void", "")
        return self.value(result, text)

    def asm(
        self,
        result: str,
        template: str,
        constraints: str,
        *args: V,
        effects: bool = False,
        convergent: bool = False,
    ) -> V:
        """Call inline assembly; without `effects` it touches no memory, with `convergent` a whole warp runs it."""
        side = "sideeffect " if effects else ""
        attributes = (
            ("" if effects else " memory(none)") + (" convergent" if convergent else "") + " nounwind"
        )
        text = (
            f'call {result} asm {side}"{template}", "{constraints}"({", ".join(map(str, args))}){attributes}'
        )
        if result == "void":
            self.run(text)
            return V("void", "")
        return self.value(result, text)

    def binary(self, opcode: str, a: V, b: V) -> V:
        """Append `a opcode b`; integer constants fold."""
        folded = _fold(opcode, a, b)
        return folded if folded is not None else self.value(a.type, f"{opcode} {a}, {b.name}")

    def add(self, a: V, b: V) -> V:
        """Integer addition."""
        return self.binary("add", a, b)

    def mul(self, a: V, b: V) -> V:
        """Integer multiplication."""
        return self.binary("mul", a, b)

    def icmp(self, predicate: str, a: V, b: V) -> V:
        """Integer comparison."""
        return self.value("i1", f"icmp {predicate} {a}, {b.name}")

    def select(self, cond: V, a: V, b: V) -> V:
        """Choose between two values."""
        if cond.name in ("true", "false"):
            return a if cond.name == "true" else b
        return self.value(a.type, f"select {cond}, {a}, {b}")

    def convert(self, opcode: str, a: V, type: str) -> V:
        """A conversion such as zext, trunc, bitcast or sitofp; to the same type it is nothing."""
        if a.type == type:
            return a
        literal = a.literal
        if literal is not None and opcode in ("sext", "trunc", "zext") and type[0] == "i":
            if opcode == "zext":
                literal &= (1 << int(a.type[1:])) - 1
            return integer(literal, int(type[1:]))
        return self.value(type, f"{opcode} {a} to {type}")

    def extract(self, vector: V, index: int, type: str) -> V:
        """Take an element of a vector."""
        return self.value(type, f"extractelement {vector}, i32 {index}")

    def insert(self, vector: V, element: V, index: int) -> V:
        """Put an element into a vector."""
        return self.value(vector.type, f"insertelement {vector}, {element}, i32 {index}")

    def vector(self, elements: list[V]) -> V:
        """Make a vector of elements."""
        made = V(f"<{len(elements)} x {elements[0].type}>", "poison")
        for index, element in enumerate(elements):
            made = self.insert(made, element, index)
        return made

    def member(self, aggregate: V, index: int, type: str) -> V:
        """Take a member of a struct."""
        return self.value(type, f"extractvalue {aggregate}, {index}")

    def gep(self, pointer: V, offset: V, element: str = "i8") -> V:
        """Move a pointer by a number of elements."""
        if offset.literal == 0:
            return pointer
        return self.value(pointer.type, f"getelementptr {element}, {pointer}, {offset}")

    # Blocks.

    def label(self) -> str:
        """Return a fresh block name."""
        self.count += 1
        return f"b{self.count}"

    def begin(self, label: str) -> None:
        """Start a block; the one before falls through into it unless it ended."""
        if not self.terminated:
            self.lines.append(f"  br label %{label}{self.debug}")
        self.lines.append(f"{label}:")
        self.block = label
        self.terminated = False

    def jump(self, label: str) -> None:
        """End the block with a branch."""
        self.lines.append(f"  br label %{label}{self.debug}")
        self.terminated = True

    def branch(self, cond: V, yes: str, no: str) -> None:
        """End the block with a conditional branch."""
        self.lines.append(f"  br {cond}, label %{yes}, label %{no}{self.debug}")
        self.terminated = True

    def leave(self) -> None:
        """End the block with a return."""
        self.lines.append(f"  ret void{self.debug}")
        self.terminated = True

    def phi(self, type: str) -> Phi:
        """Start a phi at the head of the current block; `close` writes it."""
        name = self.name()
        self.lines.append("")
        return Phi(len(self.lines) - 1, V(type, name))

    def close(self, phi: Phi) -> None:
        """Write a phi with the incoming values collected."""
        pairs = ", ".join(f"[ {value.name}, %{block} ]" for value, block in phi.incoming)
        self.lines[phi.line] = f"  {phi.value.name} = phi {phi.value.type} {pairs}"

    # Module.

    def string(self, text: str) -> V:
        """Return a pointer (generic address space) to a constant C string."""
        name = self.strings.get(text)
        if name is None:
            name = f"@.str{len(self.strings)}"
            self.strings[text] = name
            data = text.encode() + b"\0"
            escaped = "".join(chr(c) if 32 <= c < 127 and c not in (34, 92) else f"\\{c:02X}" for c in data)
            self.globals.append(
                f'{name} = private unnamed_addr addrspace(1) constant [{len(data)} x i8] c"{escaped}", align 1'
            )
        return self.value(POINTER, f"addrspacecast {GLOBAL} {name} to ptr")

    # Debug locations (DWARF line tables only).

    def _meta(self, text: str) -> int:
        self.metadata.append(text)
        return len(self.metadata) + 9

    def loop_metadata(self, hint: str) -> str:
        """Return the suffix of a loop's back branch that carries a hint."""
        number = len(self.metadata) + 10
        self._meta(f"distinct !{{!{number}, !{number + 1}}}")
        self._meta(hint)
        return f", !llvm.loop !{number}"

    def _file(self, path: str) -> int:
        if path not in self._files:
            directory, _, name = path.replace("\\", "/").rpartition("/")
            self._files[path] = self._meta(
                f'!DIFile(filename: "{_quote(name)}", directory: "{_quote(directory)}")'
            )
        return self._files[path]

    def subprogram(self, name: str, file: str, line: int) -> int:
        """Return the debug scope of a function of the user's source."""
        key = (file, line)
        if key not in self._scopes:
            where = self._file(file)
            if self._unit is None:
                self._unit = self._meta(
                    f"distinct !DICompileUnit(language: DW_LANG_C99, file: !{where}, producer: "
                    f'"{self._producer}", isOptimized: true, runtimeVersion: 0, emissionKind: DebugDirectivesOnly)'
                )
                self._meta("!DISubroutineType(types: !{null})")
            self._scopes[key] = self._meta(
                f'distinct !DISubprogram(name: "{_quote(name)}", scope: !{where}, file: !{where}, line: {line}, '
                f"type: !{self._unit + 1}, scopeLine: {line}, spFlags: DISPFlagDefinition | DISPFlagOptimized, "
                f"unit: !{self._unit})"
            )
        return self._scopes[key]

    def locate(self, loc: Location | None, scope: int | None) -> None:
        """Set the debug location of what follows. An inlined place counts as the outermost call."""
        if loc is None or scope is None:
            self.debug = ""
            return
        while loc.caller is not None:
            loc = loc.caller
        key = (loc.line, loc.column + 1, scope)
        if key not in self._places:
            self._places[key] = self._meta(
                f"!DILocation(line: {loc.line}, column: {loc.column + 1}, scope: !{scope})"
            )
        self.debug = f", !dbg !{self._places[key]}"

    def module(self, header: str, signature: str) -> str:
        """Return the module's text."""
        parts = [
            'target triple = "nvptx64-nvidia-cuda"',
            header,
            *self.globals,
            *self.declared.values(),
            signature,
        ]
        parts.append("{\nentry:")
        parts.extend(self.prologue)
        parts.extend(self.lines)
        parts.append("}")
        if self._unit is not None:
            parts.append(f"!llvm.dbg.cu = !{{!{self._unit}}}")
            parts.append('!llvm.module.flags = !{!0, !1}\n!0 = !{i32 2, !"Dwarf Version", i32 4}')
            parts.append('!1 = !{i32 2, !"Debug Info Version", i32 3}')
        parts.extend(f"!{number + 10} = {text}" for number, text in enumerate(self.metadata))
        return "\n".join(parts) + "\n"


def _quote(text: str) -> str:
    return "".join(c if 32 <= ord(c) < 127 and c not in '"\\' else f"\\{ord(c) & 255:02X}" for c in text)


def _fold(opcode: str, a: V, b: V) -> V | None:
    x, y = a.literal, b.literal
    if opcode in ("add", "or", "xor", "shl", "lshr", "ashr", "sub") and y == 0:
        return a
    if opcode in ("add", "or", "xor") and x == 0:
        return b
    if opcode == "mul" and (x == 1 or y == 1):
        return b if x == 1 else a
    if opcode in ("mul", "and") and (x == 0 or y == 0):
        return integer(0, int(a.type[1:]))
    if x is None or y is None:
        return None
    bits = int(a.type[1:])
    mask = (1 << bits) - 1
    if opcode == "add":
        return integer(x + y, bits)
    if opcode == "sub":
        return integer(x - y, bits)
    if opcode == "mul":
        return integer(x * y, bits)
    if opcode == "and":
        return integer(x & y, bits)
    if opcode == "or":
        return integer(x | y, bits)
    if opcode == "xor":
        return integer(x ^ y, bits)
    if opcode == "shl" and 0 <= y < bits:
        return integer(x << y, bits)
    if opcode == "lshr" and 0 <= y < bits:
        return integer((x & mask) >> y, bits)
    return None
