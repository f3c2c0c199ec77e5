"""ldmatrix, stmatrix and movmatrix move the elements that the ISA names."""

from __future__ import annotations

import numpy as np
import pytest

from tilus.simulator.tensorcore import ldmatrix_instruction, movmatrix, stmatrix_instruction

WARPS = 3


def memory_and_rows(random: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Random shared memory, and for every lane the address of a row of its own, in no order."""
    memory = random.integers(0, 256, WARPS * 2048).astype(np.uint8)
    rows = np.stack([random.permutation(128)[:32] * 16 + 2048 * w for w in range(WARPS)])
    return memory, rows


def load_words(memory: np.ndarray, addresses: np.ndarray) -> np.ndarray:
    return memory.view(np.uint32)[addresses // 4]


def element(memory: np.ndarray, row: int, index: int, octets: int) -> int:
    return int.from_bytes(memory[row + index * octets : row + (index + 1) * octets].tobytes(), "little")


@pytest.mark.parametrize("count", [1, 2, 4])
@pytest.mark.parametrize("trans", [False, True])
def test_ldmatrix_of_16_bit_elements(count: int, trans: bool) -> None:
    memory, rows = memory_and_rows(np.random.default_rng(count))
    op = ldmatrix_instruction(f"ldmatrix.sync.aligned.m8n8.x{count}{'.trans' if trans else ''}.shared.b16")
    addresses = op.word_addresses(rows)
    assert (op.rows, op.row_bytes, op.registers) == (8 * count, 16, count)
    registers = op.arrange(load_words(memory, addresses))
    assert registers.shape == (WARPS, count, 32)
    for w in range(WARPS):
        for j in range(count):
            for lane in range(32):
                low, high = int(registers[w, j, lane]) & 0xFFFF, int(registers[w, j, lane]) >> 16
                for half, value in enumerate((low, high)):
                    # Thread 4r + c holds elements 2c and 2c + 1 of row r; of column r when transposed.
                    outer, inner = lane // 4, 2 * (lane % 4) + half
                    row, col = (inner, outer) if trans else (outer, inner)
                    assert value == element(memory, rows[w, 8 * j + row], col, 2)


def test_ldmatrix_reads_exactly_the_rows_that_lanes_name() -> None:
    _, rows = memory_and_rows(np.random.default_rng(5))
    op = ldmatrix_instruction("ldmatrix.sync.aligned.m8n8.x2.shared.b16")
    touched = op.word_addresses(rows)[..., None] + np.arange(4)
    for w in range(WARPS):
        expected = {int(row) + i for row in rows[w, :16] for i in range(16)}
        assert set(touched[w].reshape(-1).tolist()) == expected


@pytest.mark.parametrize("count", [1, 2])
@pytest.mark.parametrize("source", ["b8", "b8x16.b6x16_p32", "b8x16.b4x16_p64"])
def test_ldmatrix_transposes_16x16_octets(count: int, source: str) -> None:
    memory, rows = memory_and_rows(np.random.default_rng(count))
    op = ldmatrix_instruction(f"ldmatrix.sync.aligned.m16n16.x{count}.trans.shared.{source}")
    assert (op.rows, op.registers, op.words) == (16 * count, 2 * count, 2 * count)
    registers = op.arrange(load_words(memory, op.word_addresses(rows)))
    for w in range(WARPS):
        for j in range(2 * count):
            for lane in range(32):
                for byte in range(4):
                    # Register 0 holds row lane // 4 of the transposed matrix, register 1 the row 8 below.
                    row, col = lane // 4 + 8 * (j % 2), 4 * (lane % 4) + byte
                    line = memory[rows[w, 16 * (j // 2) + col] :][:16]
                    assert int(registers[w, j, lane]) >> (8 * byte) & 0xFF == unpacked(line, row, source)


def unpacked(line: np.ndarray, index: int, source: str) -> int:
    width = {"b8": 8, "b8x16.b6x16_p32": 6, "b8x16.b4x16_p64": 4}[source]
    return int.from_bytes(line.tobytes(), "little") >> (width * index) & ((1 << width) - 1)


@pytest.mark.parametrize("count", [1, 2, 4])
@pytest.mark.parametrize("source", ["b8x16.b6x16_p32", "b8x16.b4x16_p64"])
def test_ldmatrix_unpacks_8x16_matrices(count: int, source: str) -> None:
    memory, rows = memory_and_rows(np.random.default_rng(count))
    op = ldmatrix_instruction(f"ldmatrix.sync.aligned.m8n16.x{count}.shared::cta.{source}")
    registers = op.arrange(load_words(memory, op.word_addresses(rows)))
    assert registers.shape == (WARPS, count, 32)
    for w in range(WARPS):
        for j in range(count):
            for lane in range(32):
                line = memory[rows[w, 8 * j + lane // 4] :][:16]
                for byte in range(4):
                    value = int(registers[w, j, lane]) >> (8 * byte) & 0xFF
                    assert value == unpacked(line, 4 * (lane % 4) + byte, source)


@pytest.mark.parametrize("count", [1, 2, 4])
@pytest.mark.parametrize("trans", ["", ".trans"])
def test_stmatrix_is_the_inverse_of_ldmatrix(count: int, trans: str) -> None:
    random = np.random.default_rng(count)
    memory, rows = memory_and_rows(random)
    registers = random.integers(0, 2**32, (WARPS, count, 32)).astype(np.uint32)
    store = stmatrix_instruction(f"stmatrix.sync.aligned.m8n8.x{count}{trans}.shared.b16")
    load = ldmatrix_instruction(f"ldmatrix.sync.aligned.m8n8.x{count}{trans}.shared.b16")
    before = memory.copy()
    addresses = store.word_addresses(rows)
    memory.view(np.uint32)[addresses // 4] = store.arrange(registers)
    assert (load.arrange(load_words(memory, load.word_addresses(rows))) == registers).all()
    changed = np.ones(len(memory), dtype=bool)
    changed[(addresses[..., None] + np.arange(4)).reshape(-1)] = False
    assert (memory[changed] == before[changed]).all()


@pytest.mark.parametrize("count", [1, 2, 4])
def test_stmatrix_stores_16x8_octets_by_columns(count: int) -> None:
    random = np.random.default_rng(count)
    memory, rows = memory_and_rows(random)
    registers = random.integers(0, 2**32, (WARPS, count, 32)).astype(np.uint32)
    op = stmatrix_instruction(f"stmatrix.sync.aligned.m16n8.x{count}.trans.shared.b8")
    assert (op.rows, op.registers, op.words) == (8 * count, count, count)
    memory.view(np.uint32)[op.word_addresses(rows) // 4] = op.arrange(registers)
    for w in range(WARPS):
        for j in range(count):
            for lane in range(32):
                for e in range(4):
                    # The fragment is that of an accumulator: e0, e1 in row g, e2, e3 in row g + 8.
                    row, col = lane // 4 + 8 * (e // 2), 2 * (lane % 4) + e % 2
                    assert memory[rows[w, 8 * j + col] + row] == int(registers[w, j, lane]) >> (8 * e) & 0xFF


def test_movmatrix_transposes() -> None:
    random = np.random.default_rng(6)
    matrix = random.integers(0, 2**16, (WARPS, 8, 8)).astype(np.uint16)
    a = np.ascontiguousarray(matrix).reshape(WARPS, 64).view(np.uint32)
    d = movmatrix(a)
    assert (d.view(np.uint16).reshape(WARPS, 8, 8) == matrix.swapaxes(1, 2)).all()
    assert (movmatrix(d) == a).all()


@pytest.mark.parametrize(
    ("opcode", "message"),
    [
        ("ldmatrix.sync.aligned.m8n8.x3.shared.b16", "expected ldmatrix with a shape and .x1, .x2 or .x4"),
        ("ldmatrix.sync.aligned.m16n16.x1.shared.b8", "ldmatrix is m8n8 with b16, m16n16.trans"),
        ("ldmatrix.sync.aligned.m16n16.x4.trans.shared.b8", "ldmatrix is m8n8 with b16, m16n16.trans"),
        ("ldmatrix.sync.aligned.m8n16.x1.shared.b8", "ldmatrix is m8n8 with b16, m16n16.trans"),
        ("stmatrix.sync.aligned.m16n8.x1.shared.b8", "stmatrix is m8n8 with b16 or m16n8.trans with b8"),
    ],
)
def test_illegal_forms_are_refused(opcode: str, message: str) -> None:
    decode = ldmatrix_instruction if opcode.startswith("ld") else stmatrix_instruction
    with pytest.raises(ValueError, match=message):
        decode(opcode)
