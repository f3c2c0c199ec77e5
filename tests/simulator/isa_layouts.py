"""The fragment formulas of the PTX ISA, copied element by element: an independent reference for tests.

Each formula takes the group (lane // 4), the thread in the group (lane % 4) and the element i, and gives
row and column. Nothing here is shared with the simulator.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

Place = Callable[[int, int, int], tuple[int, int]]

# (shape, width of an element in bits) -> formula. Section names: "Matrix Fragments for mma.<shape>".
A_PLACES: dict[tuple[str, int], Place] = {
    ("m8n8k4", 64): lambda g, t, i: (g, t),
    ("m8n8k16", 8): lambda g, t, i: (g, t * 4 + i),
    ("m8n8k32", 4): lambda g, t, i: (g, t * 8 + i),
    ("m8n8k128", 1): lambda g, t, i: (g, t * 32 + i),
    ("m16n8k4", 32): lambda g, t, i: (g if i == 0 else g + 8, t),
    ("m16n8k4", 64): lambda g, t, i: (g if i == 0 else g + 8, t),
    ("m16n8k8", 16): lambda g, t, i: (g if i in (0, 1) else g + 8, t * 2 + (i & 1)),
    ("m16n8k8", 32): lambda g, t, i: (g if i in (0, 2) else g + 8, t if i in (0, 1) else t + 4),
    ("m16n8k8", 64): lambda g, t, i: (g if i in (0, 2) else g + 8, t if i in (0, 1) else t + 4),
    ("m16n8k16", 16): lambda g, t, i: (
        g if 0 <= i < 2 or 4 <= i < 6 else g + 8,
        t * 2 + (i & 1) if i < 4 else t * 2 + (i & 1) + 8,
    ),
    ("m16n8k16", 64): lambda g, t, i: (
        g if i % 2 == 0 else g + 8,
        i * 2 + t if i % 2 == 0 else i * 2 - 2 + t,
    ),
    ("m16n8k16", 8): lambda g, t, i: (g if i < 4 else g + 8, t * 4 + (i & 3)),
    ("m16n8k32", 4): lambda g, t, i: (g if i < 8 else g + 8, t * 8 + (i & 7)),
    ("m16n8k32", 8): lambda g, t, i: (
        g if 0 <= i < 4 or 8 <= i < 12 else g + 8,
        t * 4 + (i & 3) if i < 8 else t * 4 + (i & 3) + 16,
    ),
    ("m16n8k64", 4): lambda g, t, i: (
        g if 0 <= i < 8 or 16 <= i < 24 else g + 8,
        t * 8 + (i & 7) if i < 16 else t * 8 + (i & 7) + 32,
    ),
    ("m16n8k128", 1): lambda g, t, i: (g if i < 32 else g + 8, t * 32 + (i & 0x1F)),
    # The ISA prints "+ i" for i < 64; with i >= 32 that is the row g + 8 of its figure, columns i & 0x1F.
    ("m16n8k256", 1): lambda g, t, i: (
        g if 0 <= i < 32 or 64 <= i < 96 else g + 8,
        t * 32 + (i & 0x1F) if i < 64 else t * 32 + (i & 0x1F) + 128,
    ),
}

B_PLACES: dict[tuple[str, int], Place] = {
    ("m8n8k4", 64): lambda g, t, i: (t, g),
    ("m8n8k16", 8): lambda g, t, i: (t * 4 + i, g),
    ("m8n8k32", 4): lambda g, t, i: (t * 8 + i, g),
    ("m8n8k128", 1): lambda g, t, i: (t * 32 + i, g),
    ("m16n8k4", 32): lambda g, t, i: (t, g),
    ("m16n8k4", 64): lambda g, t, i: (t, g),
    ("m16n8k8", 16): lambda g, t, i: (t * 2 + i, g),
    ("m16n8k8", 32): lambda g, t, i: (t if i == 0 else t + 4, g),
    ("m16n8k8", 64): lambda g, t, i: (t if i == 0 else t + 4, g),
    ("m16n8k16", 16): lambda g, t, i: (t * 2 + (i & 1) if i < 2 else t * 2 + (i & 1) + 8, g),
    ("m16n8k16", 64): lambda g, t, i: (t + i * 4, g),
    ("m16n8k16", 8): lambda g, t, i: (t * 4 + i, g),
    ("m16n8k32", 4): lambda g, t, i: (t * 8 + (i & 7), g),
    ("m16n8k32", 8): lambda g, t, i: (t * 4 + (i & 3) if i < 4 else t * 4 + (i & 3) + 16, g),
    ("m16n8k64", 4): lambda g, t, i: (t * 8 + (i & 7) if i < 8 else t * 8 + (i & 7) + 32, g),
    ("m16n8k128", 1): lambda g, t, i: (t * 32 + i, g),
    ("m16n8k256", 1): lambda g, t, i: (t * 32 + (i & 0x1F) if i < 32 else t * 32 + (i & 0x1F) + 128, g),
    # Sparse shapes whose B no dense shape has: one register per block of rows (figures 121, 124, 132-135 and
    # 142-145 of the ISA: "rows 0-15", "rows 16-31", ...).
    ("m16n8k32", 16): lambda g, t, i: (t * 2 + i % 2 + 8 * (i // 2), g),
    ("m16n8k16", 32): lambda g, t, i: (t + 4 * i, g),
    ("m16n8k64", 8): lambda g, t, i: (t * 4 + i % 4 + 16 * (i // 4), g),
    ("m16n8k128", 4): lambda g, t, i: (t * 8 + i % 8 + 32 * (i // 8), g),
}


def c_place(m: int, g: int, t: int, i: int) -> tuple[int, int]:
    """Accumulators of every shape: c0, c1 in row g, c2, c3 in row g + 8."""
    return (g if i < 2 else g + 8), t * 2 + (i & 1)


def distribute(matrix: np.ndarray, place: Place, per_lane: int, bits: int) -> np.ndarray:
    """Codes of a matrix -> the registers of one warp, ``[registers, 32]``, packed low to high."""
    per_register = max(1, 32 // bits)
    width = 64 if bits == 64 else 32
    registers = [[0] * 32 for _ in range(per_lane // per_register)]
    for lane in range(32):
        for i in range(per_lane):
            row, col = place(lane // 4, lane % 4, i)
            code = int(matrix[row, col]) & ((1 << bits) - 1)
            registers[i // per_register][lane] |= code << (i % per_register * bits)
    return np.array(registers, dtype=np.uint64 if width == 64 else np.uint32)


def collect(
    registers: np.ndarray, place: Place, per_lane: int, bits: int, shape: tuple[int, int]
) -> np.ndarray:
    """The inverse of `distribute`; every element of the matrix must be held exactly once."""
    per_register = max(1, 32 // bits)
    matrix = np.zeros(shape, dtype=np.uint64)
    seen = np.zeros(shape, dtype=int)
    for lane in range(32):
        for i in range(per_lane):
            row, col = place(lane // 4, lane % 4, i)
            word = int(registers[i // per_register, lane])
            matrix[row, col] = (word >> (i % per_register * bits)) & ((1 << bits) - 1)
            seen[row, col] += 1
    assert (seen == 1).all()
    return matrix
