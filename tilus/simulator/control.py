"""Control flow: branches, exits, calls of built-in functions, traps."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from .decoder import Decoder
from .operands import Not, Register
from .operations import Control, Map, Nothing, Operation
from .spinning import turn_back
from .syntax import Name
from .types import TYPES


class Branch(Control):
    """``bra``: lanes whose guard holds go to the target."""

    def __init__(self, target: int) -> None:
        super().__init__()
        self.target = target

    def step(self, engine: Any, group: Any) -> Any:
        here = self.instruction.index
        if self.guard is None:
            return _go(engine, group, here, self.target)
        state, sel = group.state, group.sel
        taken = self.guard.get(state, sel)
        if taken.all():
            return _go(engine, group, here, self.target)
        if not taken.any():
            group.pc = here + 1
            return group
        engine.count_divergence(group, self.instruction, taken)
        group.state.add(group.fork(sel.subset(taken), self.target, self.target <= here))
        group.state.add(group.fork(sel.subset(~taken), here + 1, False))
        return None


def _go(engine: Any, group: Any, here: int, target: int) -> Any:
    group.pc = target
    if target <= here:
        turn_back(group, target)
    return group


class IndexedBranch(Control):
    """``brx.idx``: each lane goes to the label that its index picks."""

    def __init__(self, index: Any, targets: list[int]) -> None:
        super().__init__()
        self.reads = (index,)
        self.targets = targets

    def step(self, engine: Any, group: Any) -> Any:
        state, sel = group.state, group.sel
        index = np.broadcast_to(self.reads[0].get(state, sel), (sel.n,))
        if self.guard is not None:
            guard = self.guard.get(state, sel)
        else:
            guard = np.ones(sel.n, bool)
        if (index[guard] >= len(self.targets)).any():
            lane = int(sel.index[np.flatnonzero(guard & (index >= len(self.targets)))[0]])
            state.hazard(
                "illegal-instruction",
                f"branch index beyond the {len(self.targets)} targets",
                self.instruction,
                lane,
            )
            state.stop()
        for value in np.unique(index[guard]):
            target = self.targets[int(value)]
            backward = target <= self.instruction.index
            state.add(group.fork(sel.subset(guard & (index == value)), target, backward))
        if not guard.all():
            state.add(group.fork(sel.subset(~guard), self.instruction.index + 1, False))
        return None


class Exit(Control):
    """``exit``, and ``ret`` of a kernel."""

    def step(self, engine: Any, group: Any) -> Any:
        state, sel = group.state, group.sel
        leaving = sel
        if self.guard is not None:
            taken = self.guard.get(state, sel)
            if not taken.all():
                if not taken.any():
                    group.pc = self.instruction.index + 1
                    return group
                leaving = sel.subset(taken)
                state.add(group.fork(sel.subset(~taken), self.instruction.index + 1, False))
        engine.progress += 1
        state.exit_lanes(leaving, self.instruction)
        return None


class Trap(Control):
    """``trap``: the launch ends."""

    def step(self, engine: Any, group: Any) -> Any:
        state, sel = group.state, group.sel
        if self.guard is not None:
            taken = self.guard.get(state, sel)
            if not taken.any():
                group.pc = self.instruction.index + 1
                return group
            sel = sel.subset(taken)
        state.hazard("trap", "the kernel executed trap", self.instruction, int(sel.index[0]))
        state.stop()


class SkipUnless(Control):
    """Before an inlined candidate of an indirect call: lanes whose pointer is another function skip it."""

    def __init__(self, pointer: Any, address: int, target: int) -> None:
        super().__init__()
        self.reads = (pointer,)
        self.address = address
        self.target = target

    def step(self, engine: Any, group: Any) -> Any:
        state, sel = group.state, group.sel
        hit = np.broadcast_to(self.reads[0].get(state, sel) == np.uint64(self.address), (sel.n,))
        if self.guard is not None:
            hit = hit & self.guard.get(state, sel)
        if hit.any():
            state.add(group.fork(sel.subset(hit), self.instruction.index + 1, False))
        if not hit.all():
            state.add(group.fork(sel.subset(~hit), self.target, False))
        return None


class BadCall(Control):
    """Reached when an indirect call's pointer is no known function."""

    def step(self, engine: Any, group: Any) -> Any:
        group.state.hazard(
            "illegal-instruction",
            "the called pointer is no function that fits the call",
            self.instruction,
            int(group.sel.index[0]),
        )
        group.state.stop()


class Frame:
    """What a call of a recursive function saved: registers and locals of the functions it may reach."""

    def __init__(
        self, index: Any, back: int, registers: dict[tuple[int, int, int], Any], local: Any, previous: Any
    ) -> None:
        self.index, self.back, self.registers, self.local, self.previous = (
            index,
            back,
            registers,
            local,
            previous,
        )
        self.left = len(index)


class CallShared(Control):
    """A call of a recursive function: saves a frame, passes the arguments, goes to the body."""

    def __init__(self, name: str, bodies: dict[str, Any], places: list[int], results: int) -> None:
        super().__init__()
        self.name, self.bodies, self.places, self.results = name, bodies, places, results

    def step(self, engine: Any, group: Any) -> Any:
        state, sel = group.state, group.sel
        here = self.instruction.index
        if self.guard is not None:
            taken = self.guard.get(state, sel)
            if not taken.all():
                state.add(group.fork(sel.subset(~taken), here + 1, False))
                if not taken.any():
                    return None
                sel = sel.subset(taken)
        body = self.bodies[self.name]
        index = sel.index
        passed = [
            state.local[index, place : place + size].copy()
            for place, (_, size) in list(zip(self.places, body["formals"]))[self.results :]
        ]
        saved = {}
        for each in self.bodies.values():
            for bank, (first, last) in each["rows"].items():
                if last > first:
                    saved[bank, first, last] = state.banks[bank][first:last, index]
        local = [
            (first, state.local[index, first:last].copy())
            for first, last in (b["local"] for b in self.bodies.values())
        ]
        if len(state.frames) > 4096:
            state.hazard(
                "illegal-instruction", "recursion is deeper than the stack", self.instruction, int(index[0])
            )
            state.stop()
        frame = Frame(index, here, saved, local, state.frame_of_lane[index].copy())
        state.frames[state.next_frame] = frame
        state.frame_of_lane[index] = state.next_frame
        state.next_frame += 1
        for values, (address, size) in zip(passed, body["formals"][self.results :]):
            state.local[index, address : address + size] = values
        engine.progress += 1
        return group.fork(sel, body["entry"], False)


class ReturnShared(Control):
    """The end of a recursive function's body: each lane goes back to where its frame says."""

    def __init__(self, name: str, bodies: dict[str, Any]) -> None:
        super().__init__()
        self.name, self.bodies = name, bodies

    def step(self, engine: Any, group: Any) -> Any:
        state, sel = group.state, group.sel
        formals = self.bodies[self.name]["formals"]
        for number in np.unique(state.frame_of_lane[sel.lanes]):
            some = sel.subset(state.frame_of_lane[sel.lanes] == number)
            index = some.index
            frame = state.frames[int(number)]
            call = state.kernel.instructions[frame.back].operation
            results = [
                state.local[index, address : address + size].copy()
                for address, size in formals[: call.results]
            ]
            at = np.searchsorted(frame.index, index)
            for (bank, first, last), values in frame.registers.items():
                state.banks[bank][first:last, index] = values[:, at]
            for first, values in frame.local:
                state.local[index, first : first + values.shape[1]] = values[at]
            for place, values in zip(call.places, results):
                state.local[index, place : place + values.shape[1]] = values
            state.frame_of_lane[index] = frame.previous[at]
            frame.left -= len(index)
            if frame.left == 0:
                del state.frames[int(number)]
            state.add(group.fork(some, frame.back + 1, False))
        return None


def _decode_bra(d: Decoder) -> Operation:
    d.flag("uni")
    d.count(1)
    return Branch(label_index(d, d.operands[0]))


def label_index(d: Decoder, operand: Any) -> int:
    """The instruction that a label names."""
    if not isinstance(operand, Name):
        raise d.fail("a label is expected")
    index = d.scope.label(operand.text)
    if index is None:
        raise d.fail(f"unknown label {operand.text!r}")
    return index


def _decode_brx(d: Decoder) -> Operation:
    if not d.flag("idx"):
        raise d.fail("brx needs .idx")
    d.flag("uni")
    d.count(2)
    operand: Any = d.operands[1]
    table = d.scope.target_list(operand.text)
    if table is None:
        raise d.fail(f"unknown branch targets {operand.text!r}")
    targets = [label_index(d, Name(name)) for name in table.names]
    return IndexedBranch(d.source(d.operands[0], TYPES["u32"]), targets)


def _decode_exit(d: Decoder) -> Operation:
    d.flag("uni")
    d.count(0)
    if isinstance(d.extra, str):
        return Branch(d.labels[d.extra])
    return Exit()


def _decode_trap(d: Decoder) -> Operation:
    d.count(0)
    return Trap()


def decode_extra(d: Decoder) -> Operation:
    """Operations that inlining added: argument moves, jumps, tests of function pointers, built-in calls."""
    kind = d.extra[0]
    d.mods.clear()
    if kind == "goto":
        return Branch(d.labels[d.extra[1]])
    if kind == "unless":
        _, pointer, name, skip = d.extra
        operation: Any = SkipUnless(
            d.source(Name(pointer), TYPES["u64"]), d.module.function_addresses[name], d.labels[skip]
        )
        if d.statement.guard is not None:
            predicate = d.predicate(Name(d.statement.guard.register))
            operation.guard = Not(predicate) if d.statement.guard.negated else predicate
        return operation
    if kind == "shared":
        operation = CallShared(d.extra[1], d.bodies, d.extra[2], d.extra[3])
        if d.statement.guard is not None:
            predicate = d.predicate(Name(d.statement.guard.register))
            operation.guard = Not(predicate) if d.statement.guard.negated else predicate
        return operation
    if kind == "return":
        return ReturnShared(d.extra[1], d.bodies)
    if kind == "bad call":
        return BadCall()
    if kind == "builtin":
        from .builtins import decode_builtin

        return decode_builtin(d, *d.extra[1:])
    _, formal, actual, is_return, inner = d.extra
    return _bind(d, formal, actual, is_return, inner)


def _bind(d: Decoder, formal: Any, actual: Any, is_return: bool, inner: Any) -> Operation:
    """Move between a register or constant operand of a call and the callee's formal parameter."""
    type = TYPES[formal.type]
    raw = TYPES[f"b{type.bits}"] if type.kind != "p" else type
    register = inner.register(formal.name)
    if register is not None:
        own = Register(register[0], register[1], raw.dtype)
        if is_return:
            return Map(lambda v: v, [d.target(actual, raw)], [own])
        return Map(lambda v: v, [own], [d.source(actual, raw)])
    from .memory import frame_load, frame_store

    place = inner.place(formal.name)
    if is_return:
        return frame_load(place.address, raw, d.target(actual, raw, relaxed=True))
    return frame_store(place.address, raw, d.source(actual, raw, relaxed=True))


def _decode_nothing(d: Decoder) -> Operation:
    d.mods.clear()
    return Nothing()


INSTRUCTIONS: dict[str, Callable[[Decoder], Operation]] = {
    "bra": _decode_bra,
    "brx": _decode_brx,
    "ret": _decode_exit,
    "exit": _decode_exit,
    "trap": _decode_trap,
    "brkpt": _decode_trap,
    "pmevent": _decode_nothing,
    "prefetch": _decode_nothing,
    "prefetchu": _decode_nothing,
    "applypriority": _decode_nothing,
    "discard": _decode_nothing,
}
