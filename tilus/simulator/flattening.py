"""Flattens a kernel: function calls inlined, registers and variables placed, instructions decoded.

A kernel becomes one list of instructions. Device functions are inlined at each call, so that a lane needs no call
stack: formal parameters and return values share the storage of the ``.param`` variables at the call. Recursive
functions are compiled once, and entered with a frame.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from .control import Exit
from .dataflow import maybe_uninitialized
from .decoder import AddressSource, Decoder, render
from .errors import PtxError
from .instructions import decode_statement
from .kernel import Instruction, Kernel, Parameter
from .memory import Load
from .operands import Not, Register
from .operations import Control, registers_of
from .parser import flatten
from .poison import affected
from .syntax import (
    Float,
    Function,
    Group,
    Integer,
    Label,
    Location,
    Name,
    Registers,
    Scope,
    SourceFile,
    Statement,
    Targets,
    Variable,
    Vector,
)
from .types import TYPES
from .variables import SymbolPlace, align, natural_alignment, variable_bytes
from .wgmma import WarpgroupMultiply, wgmma_registers

if TYPE_CHECKING:
    from .program import LoadedModule

_ASYNC_PROXY = (
    "wgmma",
    "cp.async.bulk",
    "cp.reduce.async.bulk",
    "mbarrier",
    "st.async",
    "red.async",
    "cp.async.mbarrier",
    "st.bulk",
    "fence.proxy.async",
)


class _Scope:
    """Names visible at one place of a body; inner scopes hide outer ones."""

    def __init__(self, builder: Builder, parent: _Scope | None, prefix: str) -> None:
        self.builder = builder
        self.parent = parent
        self.prefix = prefix
        self.registers: dict[str, tuple[int, int]] = {}
        self.vectors: dict[str, Vector] = {}
        self.symbols: dict[str, str] = {}
        self.targets: dict[str, Targets] = {}
        self.labels: dict[str, int] = {}

    def register(self, name: str) -> tuple[int, int] | None:
        """Bank and row of a register."""
        scope: _Scope | None = self
        while scope is not None:
            found = scope.registers.get(name)
            if found is not None:
                return found
            scope = scope.parent
        return None

    def vector(self, name: str) -> Vector | None:
        """The components of a vector of registers."""
        scope: _Scope | None = self
        while scope is not None:
            if name in scope.vectors:
                return scope.vectors[name]
            scope = scope.parent
        return None

    def symbol(self, name: str) -> str | None:
        """The unique name of a variable or function."""
        scope: _Scope | None = self
        while scope is not None:
            found = scope.symbols.get(name)
            if found is not None:
                return found
            scope = scope.parent
        return name if name in self.builder.symbols else None

    def target_list(self, name: str) -> Targets | None:
        """A ``.branchtargets`` or ``.callprototype``."""
        scope: _Scope | None = self
        while scope is not None:
            if name in scope.targets:
                return scope.targets[name]
            scope = scope.parent
        return None

    def carry(self) -> int:
        """The row of the condition code's carry flag."""
        return self.builder.carry()

    def place(self, name: str) -> SymbolPlace | None:
        """Where a symbol lies."""
        unique = self.symbol(name)
        return self.builder.symbols.get(unique) if unique is not None else None

    def label(self, name: str) -> int | None:
        """The instruction that a label names; labels are local to their braces."""
        scope: _Scope | None = self
        while scope is not None:
            if name in scope.labels:
                return scope.labels[name]
            scope = scope.parent
        return None

    def function_prefix(self) -> str:
        """The prefix of labels of the function body this scope is in."""
        return self.prefix


class Builder:
    """Flattens one kernel."""

    def __init__(self, module: LoadedModule, function: Function) -> None:
        self.module = module
        self.function = function
        self.symbols: dict[str, SymbolPlace] = dict(module.places)
        self.bank_rows: dict[int, int] = {1: 0, 8: 0, 16: 0, 32: 0, 64: 0, 128: 0}
        self.register_names: dict[tuple[int, int], str] = {}
        self.shared_bytes = 0
        self.local_bytes = 0
        self.dynamic: list[tuple[str, int]] = []
        self.items: list[tuple[Any, _Scope, tuple[int, int] | None, Any]] = []
        self.labels: dict[str, int] = {}
        self.leaders: set[int] = {0}
        self.location: tuple[int, int] | None = None
        self.carry_row: int | None = None
        self.calls = 0
        self.stack: list[str] = []
        self.shared_bodies: dict[str, Any] = {}
        self.pending_bodies: list[str] = []

    def carry(self) -> int:
        if self.carry_row is None:
            self.carry_row = self.new_register(1, "CC.CF")
        return self.carry_row

    def new_register(self, bank: int, name: str) -> int:
        row = self.bank_rows[bank]
        self.bank_rows[bank] = row + 1
        self.register_names[bank, row] = name
        return row

    def declare_registers(self, scope: _Scope, item: Registers) -> None:
        if item.type not in TYPES:
            raise PtxError(f"register type .{item.type} is not supported")
        bits = TYPES[item.type].bits
        for name, count in item.names:
            names = [name] if count is None else [f"{name}{i}" for i in range(count)]
            for each in names:
                if item.length:
                    self.declare_vector(scope, each, bits, item.length)
                else:
                    scope.registers[each] = (bits, self.new_register(bits, each))

    def declare_vector(self, scope: _Scope, name: str, bits: int, length: int) -> None:
        """A vector of registers, whose components are called by place or by colour."""
        scope.vectors[name] = Vector(tuple(Name(f"{name}.{letter}") for letter in "xyzw"[:length]))
        for letter, colour in zip("xyzw"[:length], "rgba"):
            register = (bits, self.new_register(bits, f"{name}.{letter}"))
            scope.registers[f"{name}.{letter}"] = scope.registers[f"{name}.{colour}"] = register

    def declare_variable(self, scope: _Scope, variable: Variable) -> None:
        space = variable.space.split("::")[0]
        if space == "reg":
            self.declare_registers(scope, Registers(variable.type, ((variable.name, None),)))
            return
        unique = (
            variable.name if variable.name not in self.symbols else f"{variable.name}@{len(self.symbols)}"
        )
        size, alignment = variable_bytes(variable), natural_alignment(variable)
        if space == "shared":
            if variable.external or (variable.shape and 0 in variable.shape):
                self.symbols[unique] = SymbolPlace("shared", 0, 0, variable.name, dynamic=True)
                self.dynamic.append((unique, alignment))
            else:
                self.shared_bytes = align(self.shared_bytes, alignment)
                self.symbols[unique] = SymbolPlace("shared", self.shared_bytes, size, variable.name)
                self.shared_bytes += size
        elif space in ("local", "param"):
            self.local_bytes = align(self.local_bytes, max(alignment, 8))
            self.symbols[unique] = SymbolPlace("local", self.local_bytes, size, variable.name)
            self.local_bytes += size
        else:
            raise PtxError(f"a .{space} variable inside a function is not supported", variable.line)
        scope.symbols[variable.name] = unique

    def build(self) -> Kernel:
        root = _Scope(self, None, "")
        parameters, offset = [], 0
        for variable in self.function.parameters:
            size, alignment = variable_bytes(variable), natural_alignment(variable)
            offset = align(offset, alignment)
            parameters.append(
                Parameter(
                    variable.name, variable.type if not variable.shape else "struct", size, offset, alignment
                )
            )
            self.symbols[variable.name] = SymbolPlace("param", offset, size, variable.name)
            offset += size
        for variable in self.module.tree.variables:
            if variable.space.split("::")[0] == "shared":
                self.declare_variable(root, variable)
        self.stack.append(self.function.name)
        self.walk(self.function.body or (), _Scope(self, root, ""))
        self.emit_shared_bodies(root)
        dynamic_base = self.shared_bytes
        for _, alignment in self.dynamic:
            dynamic_base = align(dynamic_base, alignment)
        for name, _ in self.dynamic:
            self.symbols[name].address = dynamic_base
        if self.dynamic:
            self.shared_bytes = dynamic_base
        directives = dict(self.function.directives)
        max_threads = int(np.prod(directives["maxntid"])) if "maxntid" in directives else None
        if "reqntid" in directives:
            max_threads = int(np.prod(directives["reqntid"]))
        kernel = Kernel(
            self.function.name,
            tuple(parameters),
            offset,
            self.shared_bytes,
            align(self.local_bytes, 16),
            max_threads,
            directives.get("reqntid"),
            directives.get("reqnctapercluster"),
            [],
            self.symbols,
            self.bank_rows,
            set(),
            self.register_names,
            files=self.module.tree.files,
            max_registers=directives["maxnreg"][0] if "maxnreg" in directives else None,
        )
        self.decode(kernel)
        return kernel

    def walk(self, body: tuple[object, ...], scope: _Scope) -> None:
        for item in flatten(body):
            if type(item) is Statement:
                if item.opcode.split(".", 1)[0] == "call":
                    self.call(item, scope)
                elif item.opcode.split(".", 1)[0] == "ret" and len(self.stack) > 1:
                    self.items.append((item, scope, self.location, f"{scope.function_prefix()}<return>"))
                else:
                    self.items.append((item, scope, self.location, None))
            elif isinstance(item, Location):
                self.location = (item.file, item.line) if item.line else self.location
            elif isinstance(item, Registers):
                self.declare_registers(scope, item)
            elif isinstance(item, Label):
                scope.labels[item.name] = len(self.items)
                self.leaders.add(len(self.items))
            elif isinstance(item, Variable):
                self.declare_variable(scope, item)
            elif isinstance(item, Scope):
                self.walk(item.body, _Scope(self, scope, scope.prefix))
            elif isinstance(item, Targets):
                scope.targets[item.name] = item
            elif isinstance(item, SourceFile) or item == ";":
                continue
            else:
                raise PtxError(f"unsupported directive {str(item)[:60]!r}")

    def call(self, statement: Statement, scope: _Scope) -> None:
        """Inline a device function, or leave a call of a built-in one for the decoder."""
        operands: list[Any] = list(statement.operands)
        returns = operands.pop(0) if operands and isinstance(operands[0], Group) else Group(())
        callee = operands[0] if operands else None
        if not isinstance(callee, Name):
            raise PtxError(f"{render(statement)!r} names no function", statement.line)
        arguments = Group(())
        if len(operands) > 1 and isinstance(operands[1], (Group, Integer, Float)):
            # A constant in parentheses is read as an expression.
            arguments = operands[1] if isinstance(operands[1], Group) else Group((operands[1],))
            operands[1] = arguments
        if scope.register(callee.text) is not None:
            self.indirect_call(statement, scope, callee, returns, arguments, operands)
            return
        name = self.module.tree.aliases.get(callee.text, callee.text)
        function = self.module.functions.get(name)
        if function is None:
            raise PtxError(f"call of unknown function {name!r}", statement.line)
        if function.body is None:
            self.items.append(
                (statement, scope, self.location, ("builtin", name, returns.items, arguments.items))
            )
            return
        self.inline(statement, scope, function, returns, arguments)

    def indirect_call(
        self,
        statement: Statement,
        scope: _Scope,
        callee: Name,
        returns: Group,
        arguments: Group,
        operands: list[Any],
    ) -> None:
        """A call through a pointer: every function of a fitting shape is inlined behind a test of the pointer."""
        listed = (
            scope.target_list(operands[2].text)
            if len(operands) > 2 and isinstance(operands[2], Name)
            else None
        )
        names = listed.names if listed is not None and listed.kind == "calltargets" else None
        candidates = [
            function
            for function in self.module.functions.values()
            if (names is None or function.name in names)
            and function.name not in self.stack
            and self.fits(function, scope, (*returns.items, *arguments.items))
        ]
        done = f"<indirect {self.calls}>"
        self.calls += 1
        for function in candidates:
            skip = f"<indirect {self.calls}>"
            self.calls += 1
            self.items.append((statement, scope, self.location, ("unless", callee.text, function.name, skip)))
            self.inline(statement, scope, function, returns, arguments)
            self.items.append((statement, scope, self.location, ("goto", done)))
            self.labels[skip] = len(self.items)
        self.items.append((statement, scope, self.location, ("bad call",)))
        self.labels[done] = len(self.items)

    def fits(self, function: Function, scope: _Scope, actuals: tuple[Any, ...]) -> bool:
        """Whether a device function takes operands of these kinds and sizes."""
        formals = (*function.returns, *function.parameters)
        if function.entry or function.body is None or len(formals) != len(actuals):
            return False
        for formal, actual in zip(formals, actuals):
            unique = scope.symbol(actual.text) if isinstance(actual, Name) else None
            if (unique is not None) != (formal.space != "reg"):
                return False
            if unique is not None and self.symbols[unique].size != variable_bytes(formal):
                return False
        return True

    def inline(
        self, statement: Statement, scope: _Scope, function: Function, returns: Group, arguments: Group
    ) -> None:
        if function.name in self.module.recursive:
            self.call_shared(statement, scope, function, returns, arguments)
            return
        self.calls += 1
        prefix = f"{function.name}#{self.calls}:"
        root = scope
        while root.parent is not None:
            root = root.parent
        inner = _Scope(self, root, prefix)
        formals = list(function.returns) + list(function.parameters)
        actuals = list(returns.items) + list(arguments.items)
        if len(formals) != len(actuals):
            raise PtxError(
                f"call of {function.name} with {len(actuals)} operands, expected {len(formals)}",
                statement.line,
            )
        after = []
        for position, (formal, actual) in enumerate(zip(formals, actuals)):
            if isinstance(actual, Name) and scope.symbol(actual.text) is not None and formal.space != "reg":
                unique = scope.symbol(actual.text)
                assert unique is not None
                inner.symbols[formal.name] = unique
                continue
            self.declare_variable(inner, formal)
            move = ("bind", formal, actual, position < len(function.returns), inner)
            if position < len(function.returns):
                after.append(move)
            else:
                self.items.append((statement, scope, self.location, move))
        self.stack.append(function.name)
        location = self.location
        self.walk(function.body or (), inner)
        self.location = location
        self.stack.pop()
        self.labels[f"{prefix}<return>"] = len(self.items)
        for move in after:
            self.items.append((statement, scope, self.location, move))

    # -- recursion ---------------------------------------------------------------------------------------------

    def call_shared(
        self, statement: Statement, scope: _Scope, function: Function, returns: Group, arguments: Group
    ) -> None:
        """Call a recursive function, which is compiled once and entered with a frame."""
        if function.name not in self.shared_bodies:
            self.shared_bodies[function.name] = {}
            self.pending_bodies.append(function.name)
        places = []
        for operand in (*returns.items, *arguments.items):
            unique = scope.symbol(operand.text) if isinstance(operand, Name) else None
            if unique is None or self.symbols[unique].space != "local":
                raise PtxError(f"a call of recursive {function.name} takes .param variables", statement.line)
            places.append(self.symbols[unique].address)
        self.items.append(
            (statement, scope, self.location, ("shared", function.name, places, len(returns.items)))
        )
        self.leaders.add(len(self.items))

    def emit_shared_bodies(self, root: _Scope) -> None:
        """The bodies of recursive functions, behind the kernel's own code."""
        if self.pending_bodies:
            end = Statement("exit", (), None, self.function.line)
            self.items.append((end, root, None, None))
        while self.pending_bodies:
            name = self.pending_bodies.pop()
            function = self.module.functions[name]
            body = self.shared_bodies[name]
            body["rows"] = {bank: [count, count] for bank, count in self.bank_rows.items()}
            body["local"] = [self.local_bytes, self.local_bytes]
            body["entry"] = len(self.items)
            self.leaders.add(len(self.items))
            self.calls += 1
            scope = _Scope(self, root, f"{name}#{self.calls}:")
            body["formals"] = []
            for formal in (*function.returns, *function.parameters):
                if formal.space == "reg":
                    raise PtxError(
                        f"recursive {name} with register parameters is not supported", function.line
                    )
                self.declare_variable(scope, formal)
                place = self.symbols[scope.symbols[formal.name]]
                body["formals"].append((place.address, place.size))
            self.stack.append(name)
            self.walk(function.body or (), scope)
            self.stack.pop()
            self.labels[f"{scope.prefix}<return>"] = len(self.items)
            self.items.append(
                (Statement("ret", (), None, function.line), scope, self.location, ("return", name))
            )
            for bank, count in self.bank_rows.items():
                body["rows"][bank][1] = count
            body["local"][1] = self.local_bytes

    def decode(self, kernel: Kernel) -> None:
        files = self.module.tree.files
        end = len(self.items)
        for index, (statement, scope, location, extra) in enumerate(self.items):
            d = Decoder(scope, statement)
            d.extra = extra
            d.labels = self.labels
            d.module = self.module
            d.bodies = self.shared_bodies
            try:
                operation = decode_statement(d)
            except PtxError:
                raise
            except (ValueError, KeyError, IndexError, AttributeError, TypeError) as error:
                raise d.fail(f"unsupported instruction ({error})") from error
            if (statement.guard is not None and extra is None) or (
                extra is not None and isinstance(extra, str) and statement.guard
            ):
                predicate = d.predicate(Name(statement.guard.register))
                operation.guard = Not(predicate) if statement.guard.negated else predicate
            source = None
            if location is not None:
                source = (files.get(location[0], f"file {location[0]}"), location[1])
            instruction = Instruction(
                index, render(statement), statement.opcode, statement.line, source, operation
            )
            operation.instruction = instruction
            kernel.instructions.append(instruction)
        # A body that runs off its end returns.
        last = Exit()
        line = self.items[-1][0].line if self.items else self.function.line
        last.instruction = Instruction(end, "ret;", "ret", line, None, last)
        kernel.instructions.append(last.instruction)
        leaders = self.leaders
        for target in self.labels.values():
            leaders.add(target)
        for instruction in kernel.instructions:
            if isinstance(instruction.operation, Control):
                leaders.add(instruction.index + 1)
        kernel.leaders = leaders
        maybe_uninitialized(kernel)
        kernel.tainted, kernel.touching = affected(kernel, kernel.watched)
        kernel.shared_grain = _grain(kernel, "shared")
        kernel.global_grain = _grain(kernel, "global")
        kernel.wgmma_registers = wgmma_registers(kernel.instructions)
        if kernel.wgmma_registers:
            kernel.tracked = {
                i.index
                for i in kernel.instructions
                if not isinstance(i.operation, WarpgroupMultiply)
                and any(
                    (r.bank, r.row) in kernel.wgmma_registers
                    for r in registers_of((*i.operation.reads, *i.operation.writes))
                )
            }
        kernel.has_cas = any(i.opcode.startswith("atom") and ".cas" in i.opcode for i in kernel.instructions)
        _whole_words(kernel)
        kernel.uses_async_proxy = any(i.opcode.startswith(_ASYNC_PROXY) for i in kernel.instructions)


def _whole_words(kernel: Kernel) -> None:
    """Mark compare-and-swaps of words and the loads before them: they may do atomics of a word's first bytes."""
    words: list[Any] = [i.operation for i in kernel.instructions if getattr(i.operation, "width", 0) == 4]
    swaps = [o for o in words if o.instruction.opcode.startswith("atom") and ".cas" in o.instruction.opcode]
    kernel.swaps_words = bool(swaps)
    places = [_place(o.address) for o in swaps]
    for operation in (*swaps, *(o for o in words if isinstance(o, Load) and o.count == 1)):
        operation.whole_word = _place(operation.address) in places


def _place(address: AddressSource) -> tuple[Any, ...]:
    base = address.base
    return (
        (base.bank, base.row, address.offset)
        if isinstance(base, Register)
        else (address.symbol, address.offset)
    )


def _grain(kernel: Kernel, space: str) -> int:
    """The narrowest access to a space, at most 16 bytes: every access is a whole number of such cells."""
    grain = 16
    for instruction in kernel.instructions:
        operation = instruction.operation
        spaces = getattr(operation, "touches", None)
        if spaces is not None and space in spaces:
            grain = min(grain, int(getattr(operation, "width", 16)))
    return max(grain, 1)
