"""``wmma``: the older warp-wide matrix instructions, whose fragments are opaque."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from . import tensorcore
from .decoder import AddressSource, Decoder
from .matrix import MatrixMultiply, raise_incomplete, stack
from .memory import Access, take_space
from .operations import Operation, Warp
from .selection import LANES, Selection
from .types import BITS_OF_WIDTH, TYPES


class FragmentMemory(Warp):
    """``wmma.load`` and ``wmma.store``: each lane moves some units of the matrix."""

    memory = True

    def __init__(
        self, op: Any, address: AddressSource, registers: list[Any], stride: Any, space: str | None, bits: int
    ) -> None:
        super().__init__(lambda *v: v, [] if op.store else registers, [])
        self.op, self.address, self.stride, self.space = op, address, stride, space
        self.values = registers if op.store else []
        self.word = BITS_OF_WIDTH[bits].dtype
        self.width = op.unit_bytes
        self.access = Access(space, BITS_OF_WIDTH[op.unit_bytes * 8], 1, address)
        self.reads = tuple(s for s in (address, stride, *self.values) if s is not None)

    @property
    def touches(self) -> tuple[str, ...]:
        """The state spaces it may reach."""
        return self.access.touches

    def execute(self, state: Any, sel: Selection) -> None:
        if not sel.whole:
            raise_incomplete(self, state, sel)
        self.access.instruction = self.instruction
        base = self.address.get(state, sel).reshape(-1, LANES)[:, 0]
        stride = None
        if self.stride is not None:
            stride = np.asarray(self.stride.warp(state, sel))[:, 0].astype(np.int64)
        at = self.op.addresses(base, stride)
        if self.op.store:
            units = self.op.from_registers(stack(state, sel, self.values, self.word))
            for unit in range(self.op.units):
                state.memory.store(
                    self.access,
                    sel,
                    at[:, unit].reshape(-1),
                    self.space,
                    np.ascontiguousarray(units[:, unit]).reshape(-1),
                )
            return
        loaded = np.stack(
            [
                state.memory.load(self.access, sel, at[:, unit].reshape(-1), self.space).reshape(-1, LANES)
                for unit in range(self.op.units)
            ],
            axis=1,
        )
        values = self.op.to_registers(loaded)
        for position, target in enumerate(self.writes):
            target.put_warp(state, sel, values[:, position])


def _decode_wmma(d: Decoder) -> Operation:
    op: Any = tensorcore.wmma_instruction(d.statement.opcode)
    double = ".f64" in d.statement.opcode
    bits = TYPES["b64"] if double else TYPES["b32"]
    if d.mods[0] == "mma":
        d.mods.clear()
        d.count(4)
        parts: list[Any] = [d.sources(o, bits) for o in d.operands[1:]]
        counts = (op.a_registers, op.b_registers, op.c_registers)
        targets = d.targets(d.operands[0], bits)
        if [len(p) for p in parts] != list(counts) or len(targets) != op.d_registers:
            raise d.fail(
                f"fragments of {[len(p) for p in parts]} registers where {list(counts)} are expected"
            )
        a, b, c = parts
        return MatrixMultiply(op, d.statement.opcode, targets, a, b, c, np.uint64 if double else np.uint32)
    space = take_space(d)
    d.mods.clear()
    where, what = (0, 1) if op.store else (1, 0)
    d.count(2, 3)
    registers = d.sources(d.operands[what], bits) if op.store else d.targets(d.operands[what], bits)
    if len(registers) != op.registers:
        raise d.fail(f"{len(registers)} registers where {op.registers} are expected")
    stride = d.source(d.operands[2], TYPES["u32"]) if len(d.operands) > 2 else None
    return FragmentMemory(op, d.address(d.operands[where]), registers, stride, space, 64 if double else 32)


INSTRUCTIONS: dict[str, Callable[[Decoder], Operation]] = {"wmma": _decode_wmma}
