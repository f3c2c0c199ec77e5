"""wmma: matrices in memory, through load, multiply and store, against NumPy."""

from __future__ import annotations

import numpy as np
import pytest

from tests.simulator.test_tensorcore_mma import random_codes
from tilus.simulator.tensorcore import wmma_instruction

WARPS = 2
CODE = {1: np.uint8, 2: np.uint16, 4: np.uint32, 8: np.uint64}
BITS = {"f64": 64, "tf32": 32, "f32": 32, "s32": 32, "f16": 16, "bf16": 16, "s4": 4, "u4": 4, "b1": 1}


def put(memory: np.ndarray, base: int, codes: np.ndarray, layout: str, stride: int, bits: int) -> None:
    """Store a matrix of codes at `base` by rows or columns."""
    for row, col in np.ndindex(*codes.shape):
        at = (row * stride + col if layout == "row" else col * stride + row) * bits
        code = int(codes[row, col]) & ((1 << bits) - 1)
        if bits >= 8:
            memory[base + at // 8 : base + (at + bits) // 8] = np.frombuffer(
                code.to_bytes(bits // 8, "little"), np.uint8
            )
        else:
            byte = base + at // 8
            mask = ((1 << bits) - 1) << at % 8
            memory[byte] = int(memory[byte]) & ~mask | code << at % 8


def get(
    memory: np.ndarray, base: int, shape: tuple[int, int], layout: str, stride: int, octets: int
) -> np.ndarray:
    out = np.zeros(shape, dtype=CODE[octets])
    for row, col in np.ndindex(*shape):
        at = base + (row * stride + col if layout == "row" else col * stride + row) * octets
        out[row, col] = int.from_bytes(memory[at : at + octets].tobytes(), "little")
    return out


WIDE = ("m16n16k16", "m8n32k16", "m32n8k16")
CASES = [
    *[
        (s, "f16", d, c)
        for s in WIDE
        for d, c in (("f32", "f32"), ("f16", "f16"), ("f32", "f16"), ("f16", "f32"))
    ],
    *[(s, "bf16", "f32", "f32") for s in WIDE],
    *[(s, t, "s32", "s32") for s in WIDE for t in ("s8", "u8")],
    ("m16n16k8", "tf32", "f32", "f32"),
    ("m8n8k4", "f64", "f64", "f64"),
    ("m8n8k32", "s4", "s32", "s32"),
    ("m8n8k32", "u4", "s32", "s32"),
    ("m8n8k128", "b1", "s32", "s32"),
]


# Sub-byte matrices exist as A.row and B.col only.
LAYOUT_CASES = [
    (*case, a, b)
    for case in CASES
    for a in ("row", "col")
    for b in ("row", "col")
    if BITS.get(case[1], 8) >= 8 or (a, b) == ("row", "col")
]


@pytest.mark.parametrize(("shape", "element", "d_type", "c_type", "a_layout", "b_layout"), LAYOUT_CASES)
@pytest.mark.parametrize("accumulator_layout", ["row", "col"])
def test_load_multiply_store(
    shape: str, element: str, d_type: str, c_type: str, a_layout: str, b_layout: str, accumulator_layout: str
) -> None:
    random = np.random.default_rng(21)
    m, n, k = (int(x) for x in shape.replace("m", "").replace("n", " ").replace("k", " ").split())
    a, a_values = random_codes(random, element, (WARPS, m, k))
    b, b_values = random_codes(random, element, (WARPS, k, n))
    kinds = {"f16": np.float16, "f32": np.float32, "f64": np.float64, "s32": np.int32}
    c_values = (random.standard_normal((WARPS, m, n)) * 3).astype(kinds[c_type])
    c = c_values.view(CODE[c_values.itemsize])

    memory = random.integers(0, 256, 65536).astype(np.uint8)
    registers = []
    for slot, (role, codes, layout, dtype) in enumerate(
        [("a", a, a_layout, element), ("b", b, b_layout, element), ("c", c, accumulator_layout, c_type)]
    ):
        load = wmma_instruction(f"wmma.load.{role}.sync.aligned.{layout}.{shape}.global.{dtype}")
        width = BITS.get(dtype, 8)
        minimum = codes.shape[2] if layout == "row" else codes.shape[1]
        assert load.default_stride == minimum
        stride = minimum + 128 // width  # a part of a wider matrix
        base = np.array([16384 * slot, 16384 * slot + 8192])
        for w in range(WARPS):
            put(memory, base[w], codes[w], layout, stride, width)
        addresses = load.addresses(base, stride)
        assert addresses.shape == (WARPS, load.units, 32)
        units = memory.view(CODE[load.unit_bytes])[addresses // load.unit_bytes]
        registers.append(load.to_registers(units))
        assert registers[-1].shape == (WARPS, load.registers, 32)
    operation = {"b1": "xor.popc."}.get(element, "")
    types = f"{d_type}.{c_type}" if element == "f16" else f"{d_type}.{element}.{element}.{c_type}"
    multiply = wmma_instruction(f"wmma.mma.{operation}sync.aligned.{a_layout}.{b_layout}.{shape}.{types}")
    assert [r.shape[1] for r in registers] == [
        multiply.a_registers,
        multiply.b_registers,
        multiply.c_registers,
    ]
    d = multiply(*registers)
    store = wmma_instruction(f"wmma.store.d.sync.aligned.{accumulator_layout}.{shape}.global.{d_type}")
    base = np.array([49152, 57344])
    memory.view(CODE[store.unit_bytes])[store.addresses(base) // store.unit_bytes] = store.from_registers(d)
    octets = BITS[d_type] // 8
    found = np.stack(
        [get(memory, base[w], (m, n), accumulator_layout, store.default_stride, octets) for w in range(WARPS)]
    ).view(kinds[d_type])
    if element == "b1":
        expected = (a[:, :, :, None] ^ b[:, None]).sum(axis=2) + c_values
    else:
        expected = a_values @ b_values + c_values.astype(np.float64)
    if d_type in ("s32", "f64"):
        assert np.allclose(found, expected, rtol=1e-14, atol=1e-14)
    else:
        assert np.allclose(
            found, expected.astype(kinds[d_type]), rtol=2e-3 if d_type == "f16" else 1e-6, atol=1e-6
        )


def test_a_fragment_of_half_repeats_the_matrix_as_the_isa_counts_registers() -> None:
    assert wmma_instruction("wmma.load.a.sync.aligned.row.m8n32k16.f16").registers == 8
    assert wmma_instruction("wmma.load.b.sync.aligned.row.m16n16k16.f16").registers == 8
    assert wmma_instruction("wmma.load.a.sync.aligned.row.m8n32k16.bf16").registers == 2
    assert wmma_instruction("wmma.load.b.sync.aligned.row.m8n32k16.bf16").registers == 8
    assert wmma_instruction("wmma.load.c.sync.aligned.row.m32n8k16.f16").registers == 4
    assert wmma_instruction("wmma.load.a.sync.aligned.row.m32n8k16.u8").registers == 4
    assert wmma_instruction("wmma.load.a.sync.aligned.row.m8n8k4.f64").registers == 1


@pytest.mark.parametrize("satfinite", [False, True])
def test_integers_wrap_or_saturate(satfinite: bool) -> None:
    multiply = wmma_instruction(
        f"wmma.mma.sync.aligned.row.col.m16n16k16.s32.u8.u8.s32{'.satfinite' if satfinite else ''}"
    )
    full = np.full((1, 2, 32), 0xFFFFFFFF, dtype=np.uint32)
    c = np.full((1, 8, 32), 2**31 - 1, dtype=np.uint32)
    expected = 2**31 - 1 if satfinite else 2**31 - 1 + 255 * 255 * 16 - 2**32
    assert (multiply(full, full, c).view(np.int32) == expected).all()


@pytest.mark.parametrize(
    ("opcode", "message"),
    [
        (
            "wmma.load.a.sync.aligned.row.m16n16k8.f16",
            "wmma has no load of matrix a with this shape and type",
        ),
        ("wmma.load.d.sync.aligned.row.m16n16k16.f32", "wmma has no load of matrix d"),
        ("wmma.load.a.sync.aligned.col.m8n8k32.s4", "only as A.row and B.col"),
        ("wmma.mma.sync.aligned.row.col.m16n16k16.f32.bf16.f16.f32", "wmma cannot multiply bf16 by f16"),
        (
            "wmma.mma.sync.aligned.row.col.m16n16k16.f16.bf16.bf16.f16",
            "accumulates in f32, found D f16 and C f16",
        ),
        ("wmma.mma.sync.aligned.row.m16n16k16.f32.f32", "expected two layouts"),
        ("wmma.fill", "expected a wmma instruction"),
    ],
)
def test_illegal_forms_are_refused(opcode: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        wmma_instruction(opcode)
