"""The state of a trace: open regions, the functions being traced and their names, and how a node is dispatched."""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from enum import Enum
from typing import Any, TypeVar

from tilus.dtypes import DType, int32
from tilus.errors import HazardFound, LayoutConflict, Location, NameNotFound, SyntaxNotSupported, TilusError
from tilus.ir import Builder, GlobalType, Operation, Region, ScalarType, Symbol, Value, make_region, ops
from tilus.lang.diagnostics import nearest
from tilus.lang.frontend.function import MISSING, FunctionSource
from tilus.lang.promotion import Number, as_constant, number_dtype
from tilus.layout import LayoutError

INLINE_DEPTH = 64
"""Inline functions that may call one another before a recursion is suspected."""


class Flow(Enum):
    """How a list of statements ended."""

    NEXT = "the next statement follows"
    ENDED = "the region has its terminator"
    BREAK = "an unrolled loop is left"
    CONTINUE = "an unrolled loop goes on"
    RETURN = "an inline function returned"


@dataclass(frozen=True)
class Undefined:
    """What a name holds that has no value on some path; reading it is an error that says why."""

    reason: str
    hint: str = ""


@dataclass
class Scope:
    """Something that a `break` or `continue` may meet: a run-time loop, an unrolled loop or a group of warps.

    `regions` is the number of open regions inside of it.
    """

    kind: str
    regions: int
    terminate: Callable[[type[Operation]], None] | None = None


@dataclass
class Frame:
    """A function being traced."""

    source: FunctionSource
    names: dict[str, object]
    caller: Location | None = None
    inline: bool = False
    scopes: list[Scope] = field(default_factory=list)
    result: object = None


_Node = TypeVar("_Node", bound=ast.AST)
Handler = Callable[["Tracer", Any], Any]
EXPRESSIONS: dict[type[ast.AST], Handler] = {}
STATEMENTS: dict[type[ast.AST], Callable[[Tracer, Any, list[ast.stmt]], Flow]] = {}


def expression(*kinds: type[ast.AST]) -> Callable[[Handler], Handler]:
    """Declare the function that evaluates expressions of some kinds."""

    def declare(handler: Handler) -> Handler:
        for kind in kinds:
            EXPRESSIONS[kind] = handler
        return handler

    return declare


_Statement = TypeVar("_Statement", bound=Callable[..., Flow])


def statement(*kinds: type[ast.AST]) -> Callable[[_Statement], _Statement]:
    """Declare the function that executes statements of some kinds; it also gets the statements that follow."""

    def declare(handler: _Statement) -> _Statement:
        for kind in kinds:
            STATEMENTS[kind] = handler
        return handler

    return declare


# What may have the result of a dot_async that is not waited for.
HANDS_ON = (
    ops.DotAsync,
    ops.DotWait,
    ops.Yield,
    ops.Break,
    ops.Continue,
    ops.For,
    ops.Loop,
    ops.AnnotateLayout,
)


class Tracer:
    """Traces one kernel."""

    def __init__(self, kernel_name: str, params: tuple[Value, ...]) -> None:
        self.kernel_name = kernel_name
        self.params = params
        self.builder = Builder()
        self.frames: list[Frame] = []
        self.defined: dict[Value, Operation] = {}
        self.grid: Region | None = None
        self.grid_rank = 0
        self.warps = 4
        self.cluster: tuple[int, int, int] | None = None
        self.warp_groups: list[tuple[int, int]] = []
        self.in_flight: set[Value] = set()

    # Functions, places and names.

    @property
    def frame(self) -> Frame:
        """The innermost function."""
        return self.frames[-1]

    @property
    def loc(self) -> Location | None:
        """Where the trace is."""
        return self.builder.loc

    @contextmanager
    def at(self, node: ast.AST) -> Iterator[None]:
        """Be at a node; an error that has no place gets this one."""
        before = self.builder.loc
        self.builder.loc = self.frame.source.location(node, self.frame.caller)
        try:
            yield
        except LayoutError as error:
            raise LayoutConflict(str(error), self.builder.loc) from None
        except TilusError as error:
            raise error.at(self.builder.loc) from None
        finally:
            self.builder.loc = before

    def lookup(self, name: str) -> object:
        """Return what a name means here."""
        frame = self.frame
        if name in frame.names:
            value = frame.names[name]
            if isinstance(value, Undefined):
                hint = value.hint or f"a value for {name} on every path"
                raise NameNotFound(f"{name} has no value here: {value.reason}", hint=hint)
            return value
        if name in frame.source.local_names:
            raise NameNotFound(
                f"{name} is read before it is assigned",
                hint=f"a first value for {name} further up in {frame.source.name}",
            )
        value = frame.source.outer(name)
        if value is MISSING:
            near = nearest(name, {*frame.names, *frame.source.outer_names()})
            hint = self.extent(name) or near or f"{name} = ... further up, or a constexpr parameter {name}"
            raise NameNotFound(f"there is no name {name!r} here", hint=hint)
        return value

    def extent(self, name: str) -> str | None:
        """Return what to write for the name of a dimension."""
        for param in self.params:
            dims = param.type.dims if isinstance(param.type, GlobalType) else ()
            for axis, dim in enumerate(dims):
                if isinstance(dim, Symbol) and dim.name == name:
                    return f"{name} = {param.name}.shape[{axis}] further up"
        return None

    def bind(self, name: str, value: object) -> None:
        """Give a name a value."""
        if isinstance(value, Value) and not value.name:
            value.name = name
        self.frame.names[name] = value

    # Operations.

    def emit(self, cls: type[Operation], *args: object, **fields: object) -> Operation:
        """Emit an operation at this place."""
        made = self.builder.emit(cls, *args, **fields)
        for result in made.results:
            self.defined[result] = made
        if isinstance(made, ops.DotAsync):
            self.in_flight.add(made.result)
        elif self.in_flight and not isinstance(made, HANDS_ON):
            for value in self.in_flight.intersection(made.inputs()):
                name = value.name or "acc"
                raise HazardFound(
                    f"{name} is what dot_async gave, which is not there before dot_wait",
                    hint=f"{name} = tilus.dot_wait({name}) before, of which the result is used",
                )
        return made

    def value(self, cls: type[Operation], *args: object, **fields: object) -> Value:
        """Emit an operation and return its only result."""
        return self.emit(cls, *args, **fields).result

    def constant(self, value: Number, dtype: DType | None = None) -> Value:
        """Emit a scalar constant; a Python number decides its dtype unless one is given."""
        chosen = number_dtype(value) if dtype is None else dtype
        return self.value(ops.Constant, as_constant(value, chosen), chosen)

    def known(self, value: Value) -> Number | None:
        """Return the number that a scalar is known to be, if it is a constant."""
        made = self.defined.get(value)
        return made.value if isinstance(made, ops.Constant) else None

    def integer(self, value: object) -> Value | None:
        """Return an integer as a scalar, or None if it is none."""
        if isinstance(value, int) and not isinstance(value, bool):
            return self.constant(value)
        if isinstance(value, Value) and isinstance(value.type, ScalarType) and value.type.dtype.is_integer:
            return value if value.type.dtype.bits >= 32 else self.value(ops.Cast, value, int32)
        return None

    # Regions.

    @property
    def open_regions(self) -> int:
        """How many regions are open."""
        return len(self.builder.blocks)

    @contextmanager
    def region(self, block: list[Operation] | None = None) -> Iterator[list[Operation]]:
        """Open a region, or one again that was closed."""
        opened: list[Operation] = [] if block is None else block
        self.builder.blocks.append(opened)
        try:
            yield opened
        finally:
            self.builder.blocks.pop()

    @staticmethod
    def close(block: list[Operation], args: tuple[Value, ...] = ()) -> Region:
        """Make a region of a block that has its terminator."""
        return make_region(args, block)

    # Syntax.

    def evaluate(self, node: ast.expr) -> Any:
        """Return the value of an expression."""
        with self.at(node):
            handler = EXPRESSIONS.get(type(node))
            if handler is None:
                raise SyntaxNotSupported(f"a kernel has no {type(node).__name__} expressions")
            return handler(self, node)

    def execute(self, statements: list[ast.stmt]) -> Flow:
        """Execute statements up to the first that does not lead to the next."""
        for position, node in enumerate(statements):
            with self.at(node):
                handler = STATEMENTS.get(type(node))
                if handler is None:
                    raise SyntaxNotSupported(f"a kernel has no {type(node).__name__} statements")
                flow = handler(self, node, statements[position + 1 :])
            if flow is not Flow.NEXT:
                return flow
        return Flow.NEXT

    @contextmanager
    def entered(self, frame: Frame) -> Iterator[Frame]:
        """Trace inside of a function."""
        if len(self.frames) > INLINE_DEPTH:
            place = self.loc
            raise SyntaxNotSupported(
                f"inline functions call one another more than {INLINE_DEPTH} deep",
                # The chain of calls is as long as that, and says nothing.
                None if place is None else replace(place, caller=None),
                hint="a recursion that a compile-time condition ends, or a loop",
            )
        self.frames.append(frame)
        try:
            yield frame
        finally:
            self.frames.pop()


def is_runtime(value: object) -> bool:
    """Tell whether a value, or a part of it, is known at run time only."""
    if isinstance(value, Value):
        return True
    if isinstance(value, (tuple, list)):
        return any(is_runtime(part) for part in value)
    if isinstance(value, dict):
        return any(is_runtime(part) for part in value.values())
    return False
