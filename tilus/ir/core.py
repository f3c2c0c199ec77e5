"""Values, operations and regions of the tile IR, and how an operation is declared.

An operation is one frozen dataclass. Its fields are its schema: `operand()`, `optional()`, `operands()`,
`attribute()` and `region()` say what each field is, and printer, parser, verifier, walkers and rewriter read that.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

from tilus.errors import Location, TilusError
from tilus.ir.types import Type


class Value:
    """An SSA value: identity, a type and a name for people."""

    __slots__ = ("name", "type")

    def __init__(self, type: Type, name: str = "") -> None:
        self.type = type
        self.name = name

    def __repr__(self) -> str:
        return f"%{self.name or hex(id(self))}: {self.type}"


@dataclass(frozen=True, eq=False)
class Region:
    """A list of operations with arguments; the last operation is a terminator."""

    args: tuple[Value, ...]
    ops: tuple[Operation, ...]

    @property
    def terminator(self) -> Operation:
        """The last operation."""
        return self.ops[-1]


@dataclass(frozen=True)
class Effect:
    """What an operation does to memory.

    `kind` is read, write or sync; `space` is shared, global or thread; `proxy` is generic, copy_async
    (completes at a later wait) or async (TMA, wgmma); `value` the tensor, if one is meant.
    """

    kind: str
    space: str
    value: Value | None = None
    proxy: str = "generic"


def operand() -> Any:
    """Declare a field that holds one value."""
    return field(metadata={"role": "operand"})


def optional() -> Any:
    """Declare a field that holds one value or None."""
    return field(default=None, metadata={"role": "optional"})


def operands(default: Any = dataclasses.MISSING) -> Any:
    """Declare a field that holds a tuple of values."""
    return field(default=default, metadata={"role": "operands"})


def attribute(default: Any = dataclasses.MISSING) -> Any:
    """Declare a field that holds a constant (int, float, str, bool, None, dtype, layout or tuple of these)."""
    return field(default=default, metadata={"role": "attribute"})


def region() -> Any:
    """Declare a field that holds a region."""
    return field(metadata={"role": "region"})


_Self = TypeVar("_Self", bound="Operation")


@dataclass(frozen=True, eq=False)
class Operation:
    """Base of all operations.

    A new operation computes its results with `infer` (which raises a TilusError on operands that do not fit);
    a rewriter that knows better types passes `results`.
    """

    opcode: ClassVar[str] = ""
    terminator: ClassVar[bool] = False
    pure: ClassVar[bool] = False

    _: dataclasses.KW_ONLY
    results: tuple[Value, ...] = field(default=(), metadata={"role": "results"})
    loc: Location | None = field(default=None, metadata={"role": "loc"})

    if TYPE_CHECKING:
        # `op` makes each subclass a dataclass at run time, with an initialiser from its own fields.
        def __init__(self, *args: Any, **fields: Any) -> None: ...

    def __post_init__(self) -> None:
        for name, _ in schema(type(self)):
            if getattr(self, name) is _REQUIRED:
                raise TypeError(f"{self.opcode} needs {name}=")
        if not self.results:
            try:
                types = self.infer()
            except TilusError as error:
                raise error.at(self.loc) from None
            object.__setattr__(self, "results", tuple(Value(t) for t in types))

    def infer(self) -> tuple[Type, ...]:
        """Check the operands and attributes and return the types of the results."""
        return ()

    def effects(self) -> tuple[Effect, ...]:
        """Return what the operation does to memory."""
        return ()

    @property
    def result(self) -> Value:
        """The only result."""
        (value,) = self.results
        return value

    def inputs(self) -> Iterator[Value]:
        """Yield all operands, in order."""
        for name, role in schema(type(self)):
            value = getattr(self, name)
            if role == "operand" or (role == "optional" and value is not None):
                yield value
            elif role == "operands":
                yield from value

    def regions(self) -> Iterator[Region]:
        """Yield the regions, in order."""
        for name, role in schema(type(self)):
            if role == "region":
                yield getattr(self, name)

    def attributes(self) -> dict[str, Any]:
        """Return the attributes by name."""
        return {name: getattr(self, name) for name, role in schema(type(self)) if role == "attribute"}

    def replace(self: _Self, **changes: Any) -> _Self:
        """Return a copy with some fields changed; the results stay the same values unless given."""
        return dataclasses.replace(self, **changes)

    def with_operands(
        self,
        mapping: Callable[[Value], Value],
        region_mapping: Callable[[Region], Region] | None = None,
        results: tuple[Value, ...] | None = None,
    ) -> Operation:
        """Return a copy with mapped operands and regions; results are inferred anew unless given."""
        changes: dict[str, Any] = {"results": () if results is None else results}
        for name, role in schema(type(self)):
            value = getattr(self, name)
            if role == "operand" or (role == "optional" and value is not None):
                changes[name] = mapping(value)
            elif role == "operands":
                changes[name] = tuple(mapping(v) for v in value)
            elif role == "region" and region_mapping is not None:
                changes[name] = region_mapping(value)
        return dataclasses.replace(self, **changes)


_schemas: dict[type, tuple[tuple[str, str], ...]] = {}


def schema(cls: type[Operation]) -> tuple[tuple[str, str], ...]:
    """Return (field, role) of an operation class, in text order: operands, attributes, regions."""
    found = _schemas.get(cls)
    if found is None:
        roles = ("operand", "optional", "operands", "attribute", "region")
        found = tuple(
            (f.name, f.metadata["role"]) for f in dataclasses.fields(cls) if f.metadata.get("role") in roles
        )
        _schemas[cls] = found
    return found


_Op = TypeVar("_Op", bound=type[Operation])
_REQUIRED: Any = object()


def is_required(cls: type[Operation], name: str) -> bool:
    """Tell whether a field of an operation has no default."""
    return cls.__dataclass_fields__[name].default in (dataclasses.MISSING, _REQUIRED)


def _with_any_order(cls: type[Operation]) -> None:
    """Let fields that must be given follow fields that have a default, which dataclasses refuse."""
    defaulted = False
    for declared in list(vars(cls).values()):
        if isinstance(declared, dataclasses.Field):
            if defaulted and declared.default is dataclasses.MISSING:
                declared.default = _REQUIRED
            defaulted = defaulted or declared.default is not dataclasses.MISSING


OPCODES: dict[str, type[Operation]] = {}


def op(opcode: str, *, pure: bool = False, terminator: bool = False) -> Callable[[_Op], _Op]:
    """Declare an operation class under `opcode`."""

    def declare(cls: _Op) -> _Op:
        _with_any_order(cls)
        # Without slots, `dataclass` completes the class itself and makes no other.
        dataclass(frozen=True, eq=False)(cls)
        cls.opcode, cls.pure, cls.terminator = opcode, pure, terminator
        OPCODES[opcode] = cls
        return cls

    return declare


def walk(region: Region) -> Iterator[Operation]:
    """Yield all operations of a region, outer before inner, in program order."""
    for operation in region.ops:
        yield operation
        for inner in operation.regions():
            yield from walk(inner)
