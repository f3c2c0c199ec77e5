"""Decoding: one statement to one operation, with its modifiers consumed and its operands resolved."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from .errors import PtxError
from .operands import Constant, Not, Register, Sink, Special, Symbol
from .operations import Operation
from .syntax import Address, Float, Integer, Name, Negated, Pair, Statement, Vector
from .types import TYPES, ScalarType

DecodeFunction = Callable[["Decoder"], Operation]

_64_BIT_SPECIALS = ("%clock64", "%globaltimer", "%gridid", "%pm64")
_DYNAMIC_SPECIALS = (
    "%clock",
    "%clock_hi",
    "%clock64",
    "%globaltimer",
    "%globaltimer_lo",
    "%globaltimer_hi",
    "%activemask",
)
SPECIAL_VECTORS = frozenset(
    "%tid %ntid %ctaid %nctaid %clusterid %nclusterid %cluster_ctaid %cluster_nctaid".split()
)
_SPECIALS = frozenset(
    "%laneid %warpid %nwarpid %smid %nsmid %gridid %clock %clock_hi %clock64 %globaltimer %globaltimer_lo "
    "%globaltimer_hi %lanemask_eq %lanemask_le %lanemask_lt %lanemask_ge %lanemask_gt %dynamic_smem_size "
    "%total_smem_size %aggr_smem_size %is_explicit_cluster %cluster_ctarank %cluster_nctarank "
    "%reserved_smem_offset_begin %reserved_smem_offset_end %reserved_smem_offset_cap %reserved_smem_offset_0 "
    "%reserved_smem_offset_1 %activemask "
    "%current_graph_exec".split()
    + [f"{n}.{c}" for n in SPECIAL_VECTORS for c in "xyz"]
    + [f"%pm{i}" for i in range(8)]
    + [f"%pm{i}_64" for i in range(8)]
    + [f"%envreg{i}" for i in range(32)]
)


class AddressSource:
    """A memory operand: base (register, symbol or number) plus offset, as int64."""

    __slots__ = ("base", "offset", "symbol")
    dynamic = False

    def __init__(self, base: Any, offset: int, symbol: str | None) -> None:
        self.base = base
        self.offset = offset
        self.symbol = symbol

    @property
    def item(self) -> Any:
        """The base, for those who list registers."""
        return self.base

    def get(self, state: Any, sel: Any) -> Any:
        """Addresses of the active lanes, always a fresh int64 array."""
        base = self.base.get(state, sel)
        if isinstance(base, np.ndarray):
            value = base.astype(np.int64)
            if self.offset:
                value += self.offset
            return value
        return np.full(sel.n, int(base) + self.offset, np.int64)

    def constant(self, state: Any) -> int | None:
        """The address where it is the same for all lanes and known now."""
        if isinstance(self.base, Register):
            return None
        return int(self.base.row_array(state)) + self.offset


class Decoder:
    """One statement on its way to an operation.

    A decode function takes modifiers (``take``, ``flag``, ``type``) and operands (``source``, ``target``,
    ``address``); what is left over is refused.
    """

    def __init__(self, scope: Any, statement: Statement) -> None:
        self.scope = scope
        self.statement = statement
        parts = statement.opcode.split(".")
        self.name = parts[0]
        self.mods = parts[1:]
        self.operands = list(statement.operands)
        self.extra: Any = None
        self.labels: dict[str, int] = {}
        self.module: Any = None
        self.bodies: dict[str, Any] = {}

    # -- modifiers ---------------------------------------------------------------------------------------

    def fail(self, message: str) -> PtxError:
        """An error that names the instruction and its line."""
        return PtxError(f"{message} in {render(self.statement)!r}", self.statement.line)

    def take(self, *options: str, default: Any = None) -> Any:
        """Consume and return the first modifier that is one of ``options``."""
        for index, mod in enumerate(self.mods):
            if mod in options:
                return self.mods.pop(index)
        return default

    def flag(self, name: str) -> bool:
        """Consume a modifier if it is there."""
        if name in self.mods:
            self.mods.remove(name)
            return True
        return False

    def type(self, *allowed: str) -> ScalarType:
        """Consume the last modifier as the type."""
        if not self.mods or self.mods[-1] not in TYPES or (allowed and self.mods[-1] not in allowed):
            found = self.mods[-1] if self.mods else "no type"
            wanted = ", ".join(allowed) if allowed else "a scalar type"
            raise self.fail(f"unsupported type {found!r} (expected {wanted})")
        return TYPES[self.mods.pop()]

    def finish(self) -> None:
        """Refuse what no decode function consumed."""
        if self.mods:
            raise self.fail(f"unsupported modifier .{self.mods[0]}")

    # -- operands ----------------------------------------------------------------------------------------

    def count(self, *allowed: int) -> int:
        """The number of operands, which must be one of ``allowed``."""
        if len(self.operands) not in allowed:
            raise self.fail(
                f"{len(self.operands)} operands where {' or '.join(map(str, allowed))} are expected"
            )
        return len(self.operands)

    def source(self, operand: Any, type: ScalarType, relaxed: bool = False) -> Any:
        """The operand as a source of values of ``type``; ``relaxed`` admits wider registers (ld, st, cvt)."""
        if isinstance(operand, Name):
            register = self.scope.register(operand.text) if not operand.offset else None
            if register is not None:
                bank, row = register
                if bank < type.bits or (bank != type.bits and not relaxed):
                    raise self.fail(f"register {operand.text} has {bank} bits, {type.name} needs {type.bits}")
                return Register(bank, row, type.dtype, bank // type.bits if bank > 1 else 1)
            return self._named(operand, type)
        if isinstance(operand, Negated):
            if type.kind == "p":
                return Not(self.source(operand.item, type))
            raise self.fail("a negated register is no operand here")
        if isinstance(operand, Integer):
            return Constant(self._integer(operand.value, type))
        if isinstance(operand, Float):
            return Constant(self._float(operand, type))
        raise self.fail(f"operand {operand_text(operand)!r} is not a value")

    def _named(self, operand: Name, type: ScalarType) -> Any:
        text = operand.text
        if text in ("WARP_SZ",):
            return Constant(type.dtype.type(32))
        if text in _SPECIALS:
            dtype = np.dtype(np.uint64) if text in _64_BIT_SPECIALS else np.dtype(np.uint32)
            if dtype.itemsize * 8 != type.bits:
                return Special(text, np.dtype(f"u{dtype.itemsize}"), text in _DYNAMIC_SPECIALS)
            return Special(text, type.dtype, text in _DYNAMIC_SPECIALS)
        symbol = self.scope.symbol(text)
        if symbol is not None:
            return Symbol(symbol, operand.offset, type.dtype)
        raise self.fail(f"unknown name {text!r}")

    def _integer(self, value: int, type: ScalarType) -> Any:
        if type.kind == "p":
            return np.bool_(value != 0)
        if type.kind == "f":
            if type.bits == 16:
                return np.uint16(value & 0xFFFF).view(np.float16)
            return type.dtype.type(value)
        if type.bits == 128:
            return np.array([value & (2**64 - 1), (value >> 64) & (2**64 - 1)], np.uint64)
        mask = value & ((1 << type.bits) - 1)
        return np.array(mask, f"u{type.bits // 8}").view(type.dtype)[()]

    def _float(self, operand: Float, type: ScalarType) -> Any:
        if type.kind == "f":
            if type.bits == operand.bits:
                return np.array(operand.raw, f"u{type.bits // 8}").view(type.dtype)[()]
            return type.dtype.type(operand.value)
        if type.bits == operand.bits:
            return np.array(operand.raw, f"u{type.bits // 8}").view(type.dtype)[()]
        if type.bits == 32:
            return np.array(operand.value, np.float32).view(np.uint32).view(type.dtype)[()]
        raise self.fail(f"a floating literal is no {type.name}")

    def target(self, operand: Any, type: ScalarType, relaxed: bool = False) -> Any:
        """The operand as a destination of ``type``; ``relaxed`` admits wider registers, which are extended."""
        if isinstance(operand, Name):
            if operand.text == "_":
                return Sink()
            register = self.scope.register(operand.text)
            if register is None:
                raise self.fail(f"{operand.text!r} is not a register")
            bank, row = register
            if bank < type.bits or (bank != type.bits and not relaxed):
                raise self.fail(
                    f"register {operand.text} has {bank} bits, the {type.name} result needs {type.bits}"
                )
            store = type.dtype
            if bank != type.bits:
                store = np.dtype(f"{'i' if type.kind == 's' else 'u'}{bank // 8}")
            return Register(bank, row, type.dtype, bank // type.bits if bank > 1 else 1, store)
        raise self.fail(f"operand {operand_text(operand)!r} is not a register")

    def sources(self, operand: Any, type: ScalarType, relaxed: bool = False) -> list[Any]:
        """A vector (or one value) as a list of sources."""
        return [self.source(item, type, relaxed) for item in self.components(operand)]

    def targets(self, operand: Any, type: ScalarType, relaxed: bool = False) -> list[Any]:
        """A vector (or one register) as a list of destinations."""
        return [self.target(item, type, relaxed) for item in self.components(operand)]

    def components(self, operand: Any) -> tuple[Any, ...]:
        """The components of a vector; anything else is its own only component."""
        if isinstance(operand, Name) and operand.text in SPECIAL_VECTORS:
            # The fourth component is always zero.
            return (*(Name(f"{operand.text}.{c}") for c in "xyz"), Integer(0))
        if isinstance(operand, Name):
            operand = self.scope.vector(operand.text) or operand
        return operand.items if isinstance(operand, Vector) else (operand,)

    def predicate(self, operand: Any) -> Any:
        """A predicate source."""
        return self.source(operand, TYPES["pred"])

    def immediate(self, operand: Any) -> int:
        """An operand that must be an integer literal."""
        if not isinstance(operand, Integer):
            raise self.fail(f"operand {operand_text(operand)!r} must be an integer constant")
        return operand.value

    def address(self, operand: Any) -> AddressSource:
        """A memory operand ``[base+offset]``."""
        if not isinstance(operand, Address):
            raise self.fail(f"operand {operand_text(operand)!r} is not an address in brackets")
        if isinstance(operand.base, Integer):
            return AddressSource(Constant(np.int64(operand.base.value)), operand.offset, None)
        register = self.scope.register(operand.base.text)
        if register is not None:
            bank, row = register
            if bank not in (32, 64):
                raise self.fail(f"address register {operand.base.text} has {bank} bits, expected 32 or 64")
            return AddressSource(
                # With the sign, so that a sum with the offset wraps around as it does in 32 bits.
                Register(bank, row, np.dtype(f"i{bank // 8}")),
                operand.offset,
                None,
            )
        symbol = self.scope.symbol(operand.base.text)
        if symbol is None:
            raise self.fail(f"unknown name {operand.base.text!r}")
        return AddressSource(Symbol(symbol, 0, np.dtype(np.int64)), operand.offset, symbol)

    def pair(self, operand: Any) -> tuple[Any, Any]:
        """``p|q`` as two operands; the second is None where there is one."""
        if isinstance(operand, Pair):
            return operand.first, operand.second
        return operand, None


def operand_text(operand: Any) -> str:
    """An operand as PTX text."""
    if isinstance(operand, Name):
        return operand.text + (f"+{operand.offset}" if operand.offset else "")
    if isinstance(operand, Integer):
        return str(operand.value)
    if isinstance(operand, Float):
        return f"0{'f' if operand.bits == 32 else 'd'}{operand.raw:0{operand.bits // 4}X}"
    if isinstance(operand, Vector):
        return "{" + ", ".join(map(operand_text, operand.items)) + "}"
    if isinstance(operand, Address):
        inner = operand_text(operand.base) + (f"+{operand.offset}" if operand.offset else "")
        return "[" + ", ".join([inner, *map(operand_text, operand.extra)]) + "]"
    if isinstance(operand, Pair):
        return f"{operand_text(operand.first)}|{operand_text(operand.second)}"
    if isinstance(operand, Negated):
        return "!" + operand_text(operand.item)
    return "(" + ", ".join(map(operand_text, operand.items)) + ")"


def render(statement: Statement) -> str:
    """A statement as PTX text."""
    guard = ""
    if statement.guard is not None:
        guard = f"@{'!' if statement.guard.negated else ''}{statement.guard.register} "
    operands = ", ".join(map(operand_text, statement.operands))
    return f"{guard}{statement.opcode}{' ' + operands if operands else ''};"
