"""Tensor-core instructions in machine code: runs of ``mma.sync`` give what one after another gives in NumPy."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tests.simulator.support import load
from tilus.simulator.multiply import MultiplyRun, scheduled
from tilus.simulator.tensorcore import mma_instruction, wgmma_instruction
from tilus.simulator.tensorcore_native import accumulate

KINDS = (
    "m16n8k16.row.col.f32.f16.f16.f32",
    "m16n8k8.row.col.f32.f16.f16.f32",
    "m16n8k16.row.col.f32.bf16.bf16.f32",
    "m16n8k8.row.col.f32.tf32.tf32.f32",
    "m16n8k32.row.col.f32.e4m3.e5m2.f32",
    "m16n8k32.row.col.kind::f8f6f4.f32.e2m1.e3m2.f32",
    "m16n8k32.row.col.s32.s8.u8.s32",
    "m16n8k16.row.col.satfinite.s32.u8.s8.s32",
    "m8n8k16.row.col.s32.s8.s8.s32",
)
WARPS = 3
POOL = 32


def program(kind: str, seed: int) -> list[tuple[str, Any]]:
    """Multiplications of registers that overlap now and then, and other instructions between them."""
    op = mma_instruction(f"mma.sync.aligned.{kind}")
    rng = np.random.default_rng(seed)

    def some(count: int, low: int, high: int) -> list[int]:
        if rng.random() < 0.1:
            low, high = 0, POOL
        return rng.permutation(np.arange(low, high))[:count].tolist()

    steps: list[tuple[str, Any]] = []
    for _ in range(40):
        draw = rng.random()
        if draw < 0.12:
            steps.append(("xor", some(3, 0, 16)))
        elif draw < 0.2:
            steps.append(("xor", some(3, 16, POOL)))
        else:
            d = some(op.d_registers, 16, POOL)
            c = d if rng.random() < 0.6 else some(op.c_registers, 16, POOL)
            steps.append(("mma", (d, some(op.a_registers, 0, 16), some(op.b_registers, 0, 16), c)))
    return steps


def as_ptx(kind: str, steps: list[tuple[str, Any]]) -> str:
    def vector(rows: list[int]) -> str:
        return "{" + ", ".join(f"%r{i}" for i in rows) + "}"

    lines = [f".reg .b32 %r<{POOL}>, %t; .reg .b64 %x, %a;", "ld.param.u64 %x, [p]; mov.u32 %t, %tid.x;"]
    lines.append(f"mul.wide.u32 %a, %t, {4 * POOL}; add.u64 %x, %x, %a;")
    lines += [f"ld.global.b32 %r{i}, [%x+{4 * i}];" for i in range(POOL)]
    for name, registers in steps:
        if name == "xor":
            lines.append("xor.b32 %r{}, %r{}, %r{};".format(*registers))
        else:
            lines.append(f"mma.sync.aligned.{kind} {', '.join(map(vector, registers))};")
    lines += [f"st.global.b32 [%x+{4 * i}], %r{i};" for i in range(POOL)]
    return "\n".join(lines)


def one_by_one(kind: str, steps: list[tuple[str, Any]], registers: Any) -> None:
    """Execute the program on ``[POOL, warps, 32]`` registers."""
    op = mma_instruction(f"mma.sync.aligned.{kind}")
    for name, operands in steps:
        if name == "xor":
            registers[operands[0]] = registers[operands[1]] ^ registers[operands[2]]
        else:
            d, a, b, c = operands
            registers[d] = op(*(registers[part].swapaxes(0, 1) for part in (a, b, c))).swapaxes(0, 1)


def values(kind: str, rng: Any) -> Any:
    """Registers that make numbers of every kind, most of them ordinary."""
    count = WARPS * 32 * POOL
    if ".f16." in kind:
        halves = rng.standard_normal(2 * count) * np.exp2(rng.integers(-12, 3, 2 * count))
        bits = halves.astype(np.float16).view(np.uint32)
    else:
        bits = (
            (rng.standard_normal(count) * np.exp2(rng.integers(-9, 9, count)))
            .astype(np.float32)
            .view(np.uint32)
        )
    anything = rng.integers(0, 1 << 32, count, dtype=np.uint32)
    return np.where(rng.random(count) < 0.002, anything, bits).reshape(WARPS * 32, POOL)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("seed", range(3))
def test_a_run_gives_what_its_instructions_give(kind: str, seed: int) -> None:
    rng = np.random.default_rng(seed)
    memory, steps = values(kind, rng), program(kind, seed)
    expected = memory.T.reshape(POOL, WARPS, 32).copy()
    one_by_one(kind, steps, expected)
    report = load(as_ptx(kind, steps), ".param .u64 p").launch(1, WARPS * 32, [memory])
    report.raise_if_hazards()
    assert np.array_equal(memory, expected.reshape(POOL, -1).T)
    instructions = sum(name == "mma" for name, _ in steps)
    assert report.counters["tensor_core_instructions"] == {f"mma.sync.aligned.{kind}": instructions * WARPS}


def sizes(body: str) -> list[int]:
    """How many multiplications the runs of a body have."""
    registers = ".reg .b32 %r<40>; .reg .b64 %x; mov.u64 %x, 0;\n" + "".join(
        f"mov.b32 %r{i}, 0;\n" for i in range(40)
    )
    code = load(registers + body)._code
    operations = [i.operation for i in code.instructions if not i.operation.control]
    return [len(item.operations) for item in scheduled(operations) if isinstance(item, MultiplyRun)]


def mma(d: int, a: int, b: int, c: int) -> str:
    names = [", ".join(f"%r{first + i}" for i in range(n)) for first, n in ((d, 4), (a, 4), (b, 2), (c, 4))]
    return f"mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {{{'}, {'.join(names)}}};\n"


def test_what_stands_between_ends_a_run_only_where_the_order_matters() -> None:
    first, second = mma(20, 0, 4, 20), mma(24, 0, 6, 24)
    assert sizes(first + second) == [2]
    assert sizes(first + mma(20, 8, 6, 20)) == [2]
    assert sizes(first + "add.u32 %r30, %r0, %r1;" + second) == [2]
    assert sizes(first + "ld.global.b32 %r30, [%x];" + second) == [2]
    assert sizes(first + "add.u32 %r30, %r20, %r1;" + second) == [1, 1], "reads a result"
    assert sizes(first + "mov.b32 %r21, 1;" + second) == [1, 1], "writes a result"
    assert sizes(first + "mov.b32 %r5, 1;" + second) == [1, 1], "writes a multiplicand"
    assert sizes(mma(20, 0, 4, 12) + "mov.b32 %r13, 1;" + second) == [1, 1], "writes an accumulator"
    assert sizes(first + "bar.warp.sync -1;" + second) == [1, 1]
    assert sizes(first + mma(24, 20, 6, 24)) == [1, 1], "multiplies a result"
    assert sizes(first + mma(0, 8, 6, 24)) == [1, 1], "overwrites a multiplicand"
    assert sizes(first + mma(20, 0, 4, 21)) == [1], "moves its accumulator by a register: left to NumPy"


@pytest.mark.parametrize(
    "kind",
    ["m64n8k16.f32.f16.f16", "m64n40k16.f32.bf16.bf16", "m64n256k8.f32.tf32.tf32", "m64n32k32.s32.s8.u8",
     "m64n16k32.satfinite.s32.s8.s8"],
)  # fmt: skip
def test_the_accumulators_of_a_warpgroup(kind: str) -> None:
    """Machine code adds to the registers what NumPy adds, for warps in any order."""
    groups = 3
    for scale_a in (1,) if ".s32." in kind else (1, -1):
        op = wgmma_instruction(f"wgmma.mma_async.sync.aligned.{kind}", scale_a=scale_a)
        _, n, _ = op.shape
        rng = np.random.default_rng(n)
        a, b = (
            rng.integers(0, 256, (groups, chunks(np.zeros(1, np.uint64)).size, 16), np.uint8)
            for chunks in (op.a_chunks, op.b_chunks)
        )
        warps = rng.permutation(np.arange(1, 1 + 4 * groups))
        bank = rng.integers(0, 1 << 32, (n // 2 + 5, 32 * (4 * groups + 2)), np.uint32)
        rows = rng.permutation(np.arange(len(bank)))[: n // 2].astype(np.int64)
        scale_d = np.array([True, False, True])
        lanes = bank.reshape(len(bank), -1, 32)
        expected = lanes.copy()
        old = np.ascontiguousarray(lanes[rows][:, warps].swapaxes(0, 1))
        expected[rows[:, None], warps] = op(a, b, old, scale_d).swapaxes(0, 1)
        product = np.ascontiguousarray(op.product(a, b))
        keep = np.repeat(scale_d, 4).astype(np.int64)
        accumulate(op)(
            product.ctypes.data, warps.ctypes.data, len(warps), bank.ctypes.data, bank.strides[0],
            rows.ctypes.data, keep.ctypes.data,
        )  # fmt: skip
        assert np.array_equal(lanes, expected)
