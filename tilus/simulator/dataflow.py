"""Which registers may be read before they are written: a forward analysis over the control-flow graph."""

from __future__ import annotations

from typing import Any

from .operations import registers_of


def successors(instruction: Any, count: int) -> list[int]:
    """The instructions that may follow."""
    operation = instruction.operation
    name = type(operation).__name__
    following = instruction.index + 1
    if name == "Branch":
        return [operation.target] if operation.guard is None else [operation.target, following]
    if name == "IndexedBranch":
        return list(dict.fromkeys(operation.targets)) + ([following] if operation.guard is not None else [])
    if name == "SkipUnless":
        return [following, operation.target]
    if name == "CallShared":
        return [operation.bodies[operation.name]["entry"], following]
    if name == "ReturnShared":
        return []
    if name in ("Exit", "Trap", "BadCall") and operation.guard is None:
        return []
    return [following] if following < count else []


def _checked(operation: Any) -> list[Any]:
    """The registers whose values an operation really uses."""
    return registers_of(operation.reads) + operation.guard_registers


def maybe_uninitialized(kernel: Any) -> None:
    """Set ``kernel.watched``: the (bank, row) of registers that some path reads before it writes them."""
    instructions = kernel.instructions
    count = len(instructions)
    numbers: dict[tuple[int, int], int] = {}

    def bits(registers: list[Any]) -> int:
        value = 0
        for register in registers:
            key = (register.bank, register.row)
            value |= 1 << numbers.setdefault(key, len(numbers))
        return value

    reads, writes = [0] * count, [0] * count
    for i, instruction in enumerate(instructions):
        operation = instruction.operation
        reads[i] = bits(_checked(operation))
        if operation.guard is None:
            writes[i] = bits(registers_of(operation.writes))
    everything = (1 << len(numbers)) - 1
    leaders = sorted(kernel.leaders)
    leaders = [leader for leader in leaders if leader < count]
    ends = {leader: (leaders[n + 1] if n + 1 < len(leaders) else count) for n, leader in enumerate(leaders)}
    entry = dict.fromkeys(leaders, everything)
    entry[0] = 0
    block_writes = {}
    for leader in leaders:
        total = 0
        for i in range(leader, ends[leader]):
            total |= writes[i]
        block_writes[leader] = total
    pending = [0]
    visited = set()
    while pending:
        leader = pending.pop()
        visited.add(leader)
        out = entry[leader] | block_writes[leader]
        for target in successors(instructions[ends[leader] - 1], count):
            merged = entry[target] & out
            if merged != entry[target] or target not in visited:
                entry[target] = merged
                pending.append(target)
                visited.add(target)
    watched: set[tuple[int, int]] = set()
    for leader in visited:
        known = entry[leader]
        for i in range(leader, ends[leader]):
            missing = reads[i] & ~known
            if missing:
                watched.update(
                    (r.bank, r.row)
                    for r in _checked(instructions[i].operation)
                    if missing >> numbers[r.bank, r.row] & 1
                )
            known |= writes[i]
    kernel.watched = watched
