"""Which memory a tensor or a pointer belongs to."""

from __future__ import annotations

from tilus.ir import ops
from tilus.ir.core import Operation, Region, Value, walk
from tilus.ir.kernel import Kernel

VIEWS = (ops.SharedIndex, ops.SharedSlice, ops.SharedPermute, ops.SharedReshape)


def definitions(kernel: Kernel) -> dict[Value, Operation]:
    """Return the operation that makes each value of a kernel's body."""
    return {value: op for op in walk(kernel.body) for value in op.results}


def memory_of(value: Value, made: dict[Value, Operation]) -> Value:
    """Return the parameter that a tensor or pointer comes from; the value itself where that is not known."""
    while True:
        op = made.get(value)
        if isinstance(op, (ops.GlobalView, ops.PointerAdd, ops.PointerCast)):
            value = op.pointer
        elif isinstance(op, ops.PointerOf):
            value = op.tensor
        elif isinstance(op, ops.Assume):
            value = op.value
        else:
            return value


def shared_tile(value: Value, made: dict[Value, Operation]) -> Value:
    """Return the allocated tile of which a tensor in shared memory is a view."""
    while isinstance(op := made.get(value), VIEWS):
        value = op.tensor
    return value


def written_memory(body: Region, made: dict[Value, Operation]) -> set[Value]:
    """Return the memory that a region writes to, as `memory_of` names it."""
    return {
        memory_of(effect.value, made)
        for op in walk(body)
        for effect in op.effects()
        if effect.kind == "write" and effect.space == "global" and effect.value is not None
    }


def never_written(tensor: Value, written: set[Value], kernel: Kernel, made: dict[Value, Operation]) -> bool:
    """Tell whether nothing in `written` can be a tensor's memory: all of it is of parameters, or there is nothing."""
    memory, params = memory_of(tensor, made), set(kernel.params)
    return not written or (memory in params and memory not in written and written <= params)
