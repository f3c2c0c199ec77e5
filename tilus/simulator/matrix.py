"""Warp-wide matrix instructions: ``ldmatrix``, ``stmatrix``, ``movmatrix``, ``mma.sync`` and ``mma.sp``."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from . import tensorcore
from .decoder import AddressSource, Decoder
from .memory_unit import gather
from .operations import Operation, Warp
from .selection import LANES, Selection
from .types import TYPES

B32 = TYPES["b32"]


def stack(state: Any, sel: Selection, sources: Any, dtype: Any) -> Any:
    """Registers of a fragment as ``[warps, registers, 32]``."""
    count = (sel.hi - sel.lo) if sel.whole else len(sel.warps)
    out = np.empty((count, len(sources), LANES), dtype)
    for index, source in enumerate(sources):
        out[:, index] = source.warp(state, sel)
    return out


class MatrixAccess(Warp):
    """What ``ldmatrix`` and ``stmatrix`` share: the rows' addresses."""

    memory = True
    width = 16
    order = "weak"
    strong = False
    type = B32
    count = 4
    touches = ("shared",)

    def __init__(
        self, op: Any, address: AddressSource, registers: list[Any], store: bool, generic: bool
    ) -> None:
        super().__init__(lambda *v: v, [] if store else registers, [])
        self.op = op
        self.address = address
        self.generic = generic
        self.store = store
        self.values = registers if store else []
        self.reads = (address, *self.values)

    def rows(self, state: Any, sel: Selection) -> tuple[Any, Any]:
        """The lanes that give rows, and the byte index of each row ``[warps, rows]`` in shared memory."""
        count = self.op.rows
        address = self.address.get(state, sel)
        if self.generic:
            parts = state.memory.split_generic(address)
            if parts[0][1] is not None or parts[0][0] != "shared":
                state.memory._fail(
                    self,
                    sel,
                    address,
                    np.ones(sel.n, bool),
                    "out-of-bounds",
                    "matrix access outside shared memory",
                )
            address = parts[0][2]
        if not sel.whole:
            raise_incomplete(self, state, sel)
        if count < LANES:
            address = address.reshape(-1, LANES)[:, :count].reshape(-1)
            sel = Selection.of(sel.index.reshape(-1, LANES)[:, :count].reshape(-1))
        index = state.memory.shared_index(self, sel, address, self.op.row_bytes)
        return sel, index.reshape(-1, count)

    def execute(self, state: Any, sel: Selection) -> None:
        givers, rows = self.rows(state, sel)
        memory = state.memory
        state.engine.counters.matrix_rows(self.instruction, rows % memory.stride)
        if self.store:
            values = self.op.arrange(stack(state, sel, self.values, np.uint32))
            words = self.op.word_addresses(rows) >> 2
            if state.races is not None:
                state.races.write(
                    self,
                    givers,
                    rows.reshape(-1),
                    16,
                    memory.shared_view(np.dtype(np.uint32), 4),
                    rows.reshape(-1) >> 4,
                    values.reshape(-1, 4),
                )
            state.engine.progress += 1
            memory.shared_view(np.dtype(np.uint32), 1)[words] = values
            return
        if state.races is not None:
            state.races.read(self, givers, rows.reshape(-1), 16)
        # A row's four words stand in four neighbouring lanes: gathering rows gives the words in order.
        words = gather(memory.shared_view(np.dtype(np.uint32), 4), rows.reshape(-1) >> 4)
        values = self.op.arrange(words.reshape(len(rows), self.op.words, LANES))
        for index, target in enumerate(self.writes):
            target.put_warp(state, sel, values[:, index])


def raise_incomplete(operation: Any, state: Any, sel: Selection) -> None:
    """A warp-wide matrix instruction with lanes missing (ended, or guarded off)."""
    missing = ~sel.mask
    if missing.any():
        row, lane = np.argwhere(missing)[0]
        at = int(sel.warps[row]) * LANES + int(lane)
        thread = at if state.exists[at] else int(sel.index[0])
        state.hazard(
            "barrier-divergence",
            f"lane {lane} of the warp does not take part in {operation.instruction.opcode}",
            operation.instruction,
            thread,
        )
        state.stop()


def _decode_ldmatrix(d: Decoder) -> Operation:
    op = tensorcore.ldmatrix_instruction(d.statement.opcode)
    generic = not any(m.startswith("shared") for m in d.mods)
    d.mods.clear()
    d.count(2)
    targets = d.targets(d.operands[0], B32)
    if len(targets) != op.registers:
        raise d.fail(f"{len(targets)} registers where {op.registers} are expected")
    return MatrixAccess(op, d.address(d.operands[1]), targets, False, generic)


def _decode_stmatrix(d: Decoder) -> Operation:
    op = tensorcore.stmatrix_instruction(d.statement.opcode)
    generic = not any(m.startswith("shared") for m in d.mods)
    d.mods.clear()
    d.count(2)
    sources = d.sources(d.operands[1], B32)
    if len(sources) != op.registers:
        raise d.fail(f"{len(sources)} registers where {op.registers} are expected")
    return MatrixAccess(op, d.address(d.operands[0]), sources, True, generic)


def _decode_movmatrix(d: Decoder) -> Operation:
    if d.mods != ["sync", "aligned", "m8n8", "trans", "b16"]:
        raise d.fail("movmatrix is .sync.aligned.m8n8.trans.b16")
    d.mods.clear()
    d.count(2)
    source, target = d.source(d.operands[1], B32), d.target(d.operands[0], B32)
    return Warp(lambda mask, a: tensorcore.movmatrix(np.ascontiguousarray(a)), [target], [source])


class MatrixMultiply(Warp):
    """``mma.sync`` and ``mma.sp``."""

    def __init__(
        self, op: Any, name: str, d: list[Any], a: list[Any], b: list[Any], c: list[Any], dtype: Any
    ) -> None:
        super().__init__(lambda *v: v, d, [])
        self.op, self.name = op, name
        self.a, self.b, self.c = a, b, c
        self.metadata: Any = None
        self.selector = 0
        self.scales: list[Any] = []
        self.dtype = dtype
        self.reads = (*a, *b, *c)

    def execute(self, state: Any, sel: Selection) -> None:
        if not sel.whole:
            raise_incomplete(self, state, sel)
        a, b, c = (stack(state, sel, part, self.dtype) for part in (self.a, self.b, self.c))
        extra: dict[str, Any] = {}
        if self.metadata is not None:
            extra = {"metadata": self.metadata.warp(state, sel).astype(np.uint32), "selector": self.selector}
        if self.scales:
            names = ("scale_a", "byte_id_a", "thread_id_a", "scale_b", "byte_id_b", "thread_id_b")
            for name, source in zip(names, self.scales):
                value = np.ascontiguousarray(source.warp(state, sel))
                extra[name] = value if name.startswith("scale") else value[:, 0].astype(np.intp)
        try:
            result = self.op(a, b, c, **extra)
        except ValueError as error:
            # Selectors in registers are known only now.
            state.hazard("illegal-instruction", str(error), self.instruction, int(sel.index[0]))
            state.stop()
        state.engine.counters.tensor_core(self.instruction, self.name, len(a), self.op)
        for index, target in enumerate(self.writes):
            target.put_warp(state, sel, result[:, index])


def _fragment(d: Decoder, operand: Any, bits: Any, count: int, what: str) -> list[Any]:
    sources = d.sources(operand, bits)
    if len(sources) != count:
        raise d.fail(f"{len(sources)} registers of {what} where {count} are expected")
    return sources


def _decode_mma(d: Decoder) -> Operation:
    op = tensorcore.mma_instruction(d.statement.opcode)
    name = d.statement.opcode
    d.mods.clear()
    double = op.a_type == "f64"
    bits = TYPES["b64"] if double else B32
    targets = d.targets(d.operands[0], bits)
    if len(targets) != op.d_registers:
        raise d.fail(f"{len(targets)} registers of D where {op.d_registers} are expected")
    operation = MatrixMultiply(
        op,
        name,
        targets,
        _fragment(d, d.operands[1], bits, op.a_registers, "A"),
        _fragment(d, d.operands[2], bits, op.b_registers, "B"),
        _fragment(d, d.operands[3], bits, op.c_registers, "C"),
        np.uint64 if double else np.uint32,
    )
    rest: list[Any] = list(d.operands[4:])
    if op.sparse:
        operation.metadata = d.source(rest[0], B32)
        operation.selector = d.immediate(rest[1])
        operation.reads = (*operation.reads, operation.metadata)
        rest = rest[2:]
    if op.scale_vec:
        # scale-a-data, {byte-id-a, thread-id-a}, scale-b-data, {byte-id-b, thread-id-b}
        for data, ids in ((rest[0], rest[1]), (rest[2], rest[3])):
            # CUTLASS and others write the one register as a vector.
            operation.scales.extend(_fragment(d, data, B32, 1, "scales"))
            operation.scales.extend(d.source(item, TYPES["u16"]) for item in ids.items)
        operation.reads = (*operation.reads, *operation.scales)
        rest = rest[4:]
    if rest:
        raise d.fail("too many operands")
    return operation


INSTRUCTIONS: dict[str, Callable[[Decoder], Operation]] = {
    "ldmatrix": _decode_ldmatrix,
    "stmatrix": _decode_stmatrix,
    "movmatrix": _decode_movmatrix,
    "mma": _decode_mma,
}
