"""Parses the textual IR; the grammar is in `grammar.lark`, the schema of an operation says what its text means."""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Callable
from functools import cache
from importlib.resources import files
from typing import TYPE_CHECKING, Any

from tilus.dtypes import DType, dtype
from tilus.errors import Location, TilusError
from tilus.ir.core import OPCODES, Operation, Region, Value, is_required, schema
from tilus.ir.kernel import Kernel
from tilus.ir.types import (
    BarrierType,
    Extent,
    GlobalType,
    PointerType,
    RegisterType,
    ScalarType,
    SharedType,
    Symbol,
    Type,
)
from tilus.layout import Digit, LayoutError, RegisterLayout, SharedLayout, Swizzle

if TYPE_CHECKING:
    from lark import Lark, Token, Tree


class ParseError(TilusError):
    """Text that is not IR."""


@cache
def grammar() -> Lark:
    """Return the parser of the grammar; lark is imported and the tables are made on first use."""
    from lark import Lark

    text = files("tilus.ir").joinpath("grammar.lark").read_text(encoding="utf-8")
    return Lark(text, parser="lalr", maybe_placeholders=True)


def parse_kernel(text: str, file: str = "<ir>") -> Kernel:
    """Return the kernel that a text describes.

    Parameters
    ----------
    text : str
        What `print_kernel` writes. Types of results may be left out where `infer` gives them.
    file : str
        What errors call the text.

    Raises
    ------
    ParseError
        With the line, if the text is not IR or an operation refuses its operands.
    """
    from lark import UnexpectedInput

    try:
        tree = grammar().parse(text)
    except UnexpectedInput as error:
        raise _unexpected(error, text, file) from None
    return _Reader(text, file).kernel(tree.children[0])


def _unexpected(error: Any, text: str, file: str) -> ParseError:
    token = getattr(error, "token", None)
    if token is not None and token.type == "$END":
        return ParseError("the text ends too early", Location(file, text.count("\n") + 1))
    found = str(token) if token is not None else text[error.pos_in_stream]
    return _error_at(text, file, error.line, error.column, f"did not expect {found!r} here")


def _error_at(text: str, file: str, line: int, column: int, message: str) -> ParseError:
    """Return an error that shows the line of the text with a caret."""
    shown = text.splitlines()[line - 1].expandtabs(1)
    indent = len(shown) - len(shown.lstrip())
    caret = " " * (column - 1 - indent) + "^"
    return ParseError(f"{message}\n    {shown.strip()}\n    {caret}", Location(file, line, column - 1))


class _Reader:
    """Builds the kernel from the tree; a method for each rule that stands for something."""

    def __init__(self, text: str, file: str) -> None:
        self.text = text
        self.file = file
        self.scope: dict[str, Value] = {}
        self.types: dict[str, Callable[[list[Any]], Type]] = {
            "scalar_type": lambda c: ScalarType(self.dtype(c[0])),
            "pointer_type": lambda c: PointerType(self.dtype(c[0]), _align(c[1])),
            "register_type": lambda c: RegisterType(
                self.dtype(c[0]), _ints(c[1]), c[2] and self.layout(c[2])
            ),
            "shared_type": lambda c: SharedType(self.dtype(c[0]), _ints(c[1]), c[2] and self.layout(c[2])),
            "remote_type": lambda c: SharedType(
                self.dtype(c[0]), _ints(c[1]), c[2] and self.layout(c[2]), remote=True
            ),
            "global_type": lambda c: GlobalType(
                self.dtype(c[0]), _extents(c[1]), _extents(c[2]), _align(c[3])
            ),
            "barrier_type": lambda c: BarrierType(int(c[0])),
        }

    def error(self, token: Token, message: str) -> ParseError:
        return _error_at(self.text, self.file, token.line or 1, token.column or 1, message)

    def kernel(self, tree: Any) -> Kernel:
        name, params, *headers, loc, grid, body = tree.children
        arguments = self.params(params)
        fields: dict[str, Any] = {}
        for header in headers:
            key, value = header.children
            target = {"warps": "warps", "cluster": "cluster", "shared": "shared_bytes", "notes": "notes"}.get(
                key
            )
            if target is None:
                raise self.error(
                    key, f"a kernel has no {str(key)!r}; it has warps, cluster, shared and notes"
                )
            fields[target] = self.literal(value)
        regions = self.region(grid), self.region(body)
        return Kernel(name[1:], arguments, *regions, loc=_location(loc), **fields)

    def params(self, tree: Tree[Any]) -> tuple[Value, ...]:
        return tuple(
            self.define(param.children[0], self.type(param.children[1])) for param in _present(tree.children)
        )

    def define(self, name: Token, type: Type) -> Value:
        value = Value(type)
        self.bind(name, value)
        return value

    def bind(self, name: Token, value: Value) -> None:
        """Call a value by a name; numbers are for values without one."""
        if name in self.scope:
            raise self.error(name, f"{name} is defined twice")
        self.scope[str(name)] = value
        value.name = "" if name[1:].isdigit() else name[1:]

    def use(self, name: Token) -> Value:
        value = self.scope.get(str(name))
        if value is None:
            near = difflib.get_close_matches(name, self.scope, n=1)
            raise self.error(
                name, f"{name} is not defined here" + (f"; did you mean {near[0]}?" if near else "")
            )
        return value

    def region(self, tree: Tree[Any]) -> Region:
        outer = self.scope
        self.scope = dict(outer)
        params, *operations = tree.children
        args = self.params(params)
        made = tuple(self.operation(o) for o in operations)
        self.scope = outer
        return Region(args, made)

    def operation(self, tree: Any) -> Operation:
        names, opcode, operands, attributes, *regions, types, loc = tree.children
        cls = OPCODES.get(str(opcode))
        if cls is None:
            near = difflib.get_close_matches(opcode, OPCODES, n=1)
            raise self.error(
                opcode, f"no operation {str(opcode)!r}" + (f"; did you mean {near[0]}?" if near else "")
            )
        fields = self.operands(opcode, cls, operands.children if operands is not None else [])
        fields |= self.attributes(opcode, cls, attributes.children if attributes is not None else [])
        expected = [name for name, role in schema(cls) if role == "region"]
        if len(expected) != len(regions):
            raise self.error(opcode, f"{opcode} has {len(expected)} regions, not {len(regions)}")
        fields |= {name: self.region(region) for name, region in zip(expected, regions, strict=True)}
        results = _names(names)
        if types is not None:
            given = [self.type(t) for t in types.children]
            if len(given) != len(results):
                raise self.error(opcode, f"{len(results)} results have {len(given)} types")
            fields["results"] = tuple(Value(t) for t in given)
        try:
            made = cls(**fields, loc=_location(loc))
        except TilusError as error:
            raise self.error(opcode, f"{opcode}: {error.message}") from error
        except (LayoutError, TypeError) as error:
            raise self.error(opcode, f"{opcode}: {error}") from error
        if len(made.results) != len(results):
            raise self.error(opcode, f"{opcode} has {len(made.results)} results, not {len(results)}")
        for name, value in zip(results, made.results, strict=True):
            self.bind(name, value)
        return made

    def operands(self, opcode: Token, cls: type[Operation], trees: list[Any]) -> dict[str, Any]:
        expected = [(n, r) for n, r in schema(cls) if r in ("operand", "optional", "operands")]
        while len(expected) > len(trees) and expected[-1][1] == "optional":
            # Optional operands at the end may be left out.
            expected.pop()
        if len(expected) != len(trees):
            names = ", ".join(name for name, _ in expected) or "none"
            raise self.error(opcode, f"{opcode} has {len(expected)} operands ({names}), not {len(trees)}")
        fields: dict[str, Any] = {}
        for (name, role), tree in zip(expected, trees, strict=True):
            kinds = {"operand": ("value",), "optional": ("value", "absent"), "operands": ("several",)}[role]
            if tree.data not in kinds:
                wanted = {"operand": "a value", "optional": "a value or _", "operands": "values in brackets"}[
                    role
                ]
                raise self.error(opcode, f"{opcode} takes {wanted} as {name}")
            values = tuple(self.use(token) for token in _present(tree.children))
            fields[name] = values if role == "operands" else values[0] if values else None
        return fields

    def attributes(self, opcode: Token, cls: type[Operation], trees: list[Any]) -> dict[str, Any]:
        allowed = [name for name, role in schema(cls) if role == "attribute"]
        fields: dict[str, Any] = {}
        for tree in trees:
            name, value = tree.children
            if name not in allowed or name in fields:
                why = "given twice" if name in fields else f"not one of {', '.join(allowed) or 'none'}"
                raise self.error(name, f"attribute {name} of {opcode} is {why}")
            fields[str(name)] = self.literal(value)
        missing = [name for name in allowed if name not in fields and is_required(cls, name)]
        if missing:
            raise self.error(opcode, f"{opcode} needs {' and '.join(missing)}")
        return fields

    def literal(self, tree: Any) -> Any:
        kind, children = tree.data, tree.children
        if kind == "int":
            return int(children[0])
        if kind == "float":
            return float(children[0])
        if kind == "string":
            return json.loads(children[0])
        if kind == "dtype":
            return self.dtype(tree)
        if kind == "tuple":
            return tuple(self.literal(c) for c in _present(children))
        if kind in ("register_layout", "shared_layout"):
            return self.layout(tree)
        return {"true": True, "false": False, "none": None}[str(kind)]

    def type(self, tree: Any) -> Type:
        return self.types[tree.data](tree.children)

    def dtype(self, tree: Any) -> DType:
        try:
            return dtype(str(tree.children[0]))
        except ValueError as error:
            raise self.error(tree.children[0], str(error)) from error

    def layout(self, tree: Any) -> Any:
        children = tree.children
        try:
            if tree.data == "register_layout":
                return RegisterLayout(_ints(children[0]), _digits(children[1]), _digits(children[2]))
            swizzle = Swizzle(*_ints(children[2])) if children[2] is not None else None
            size = _ints(children[3])[0] if children[3] is not None else 0
            return SharedLayout(_ints(children[0]), _digits(children[1]), swizzle, size)
        except LayoutError as error:
            raise self.error(next(tree.scan_values(lambda _: True)), str(error)) from error


def _names(results: Token | None) -> list[Token]:
    """Return the names in `%a, %b =`, each with its own place."""
    if results is None:
        return []
    found = []
    for match in re.finditer(r"%[A-Za-z0-9_.]+", results):
        before = results[: match.start()]
        token = results.update(value=match.group())
        token.line = (results.line or 1) + before.count("\n")
        start = match.start() - before.rfind("\n")
        token.column = start if "\n" in before else (results.column or 1) + match.start()
        found.append(token)
    return found


def _present(children: list[Any]) -> list[Any]:
    """Return the children without the placeholders of absent parts."""
    return [child for child in children if child is not None]


def _ints(tree: Any) -> tuple[int, ...]:
    return tuple(int(token) for token in _present(tree.children))


def _align(tree: Any) -> int:
    return 1 if tree is None else int(tree.children[0])


def _extents(tree: Any) -> tuple[Extent, ...]:
    return tuple(_extent(extent) for extent in _present(tree.children))


def _extent(tree: Any) -> Extent:
    if tree.data == "int":
        return int(tree.children[0])
    name, divisor = tree.children
    if name.data == "unknown":
        return Symbol("?", int(divisor))
    text = str(name.children[0])
    return Symbol(json.loads(text) if name.data == "string" else text, int(divisor))


def _digits(tree: Any) -> tuple[Digit, ...]:
    return tuple(_digit(digit) for digit in _present(tree.children))


def _digit(tree: Any) -> Digit:
    size, *rest = tree.children
    if not rest:
        return Digit(int(size), None, 0)
    return Digit(int(size), int(rest[0]), int(rest[1]))


def _location(tree: Any) -> Location | None:
    if tree is None:
        return None
    location = None
    for place in reversed(tree.children):
        file, line, column, end = place.children
        location = Location(
            json.loads(file), int(line), int(column), None if end is None else int(end), location
        )
    return location
