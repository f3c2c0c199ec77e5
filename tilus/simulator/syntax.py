"""The syntax tree of a PTX module: plain immutable records that the parser makes and the decoder reads."""

from __future__ import annotations

from typing import NamedTuple


class Name(NamedTuple):
    """A register, special register, symbol or label, with an optional byte offset (``symbol+4``)."""

    text: str
    offset: int = 0


class Integer(NamedTuple):
    """An integer literal."""

    value: int


class Float(NamedTuple):
    """A floating literal; ``bits`` is 32 for ``0f...``, 64 for ``0d...`` and for decimal literals."""

    value: float
    bits: int
    raw: int


class Vector(NamedTuple):
    """``{a, b, ...}``."""

    items: tuple[Operand, ...]


class Address(NamedTuple):
    """``[base + offset]``, or ``[base, {c0, c1}, ...]`` of the tensor copies, whose rest is in ``extra``."""

    base: Name | Integer
    offset: int
    extra: tuple[Operand, ...] = ()


class Pair(NamedTuple):
    """``p|q``."""

    first: Operand
    second: Operand


class Negated(NamedTuple):
    """``!p``, or ``-x`` of a register."""

    item: Operand


class Group(NamedTuple):
    """``(a, b, ...)`` of a call."""

    items: tuple[Operand, ...]


Operand = Name | Integer | Float | Vector | Address | Pair | Negated | Group


class Guard(NamedTuple):
    """``@p`` or ``@!p``."""

    register: str
    negated: bool


class Statement(NamedTuple):
    """One instruction as written."""

    opcode: str
    operands: tuple[Operand, ...]
    guard: Guard | None
    line: int


class Label(NamedTuple):
    """``name:``."""

    name: str
    line: int


class Location(NamedTuple):
    """A ``.loc`` directive."""

    file: int
    line: int
    column: int


class SourceFile(NamedTuple):
    """A ``.file`` directive."""

    number: int
    name: str


class Registers(NamedTuple):
    """``.reg .type names``; a count makes ``name0 .. name(count-1)``, ``.v2`` and ``.v4`` vectors of ``length``."""

    type: str
    names: tuple[tuple[str, int | None], ...]
    length: int = 0


class Variable(NamedTuple):
    """A variable or parameter in a state space."""

    space: str
    type: str
    name: str
    shape: tuple[int, ...]
    alignment: int
    initial: tuple[object, ...] | None
    external: bool
    vector: int
    line: int


class Targets(NamedTuple):
    """``name: .branchtargets a, b`` (or call targets, or a call prototype)."""

    kind: str
    name: str
    names: tuple[str, ...]
    line: int


class Scope(NamedTuple):
    """``{ ... }`` inside a body."""

    body: tuple[object, ...]


class Function(NamedTuple):
    """An ``.entry`` or ``.func``; ``body`` is None for a declaration."""

    name: str
    entry: bool
    returns: tuple[Variable, ...]
    parameters: tuple[Variable, ...]
    directives: tuple[tuple[str, tuple[int, ...]], ...]
    body: tuple[object, ...] | None
    line: int


class SyntaxTree(NamedTuple):
    """A whole module."""

    version: str
    target: str
    files: dict[int, str]
    variables: tuple[Variable, ...]
    functions: tuple[Function, ...]
    aliases: dict[str, str]
