"""Dense ``mma.sync`` of every shape and type against matrices laid out by the ISA's formulas."""

from __future__ import annotations

from fractions import Fraction
from zlib import crc32

import ml_dtypes
import numpy as np
import pytest

from tests.simulator.isa_layouts import A_PLACES, B_PLACES, Place, c_place, collect, distribute
from tilus.simulator.tensorcore import mma, mma_instruction
from tilus.simulator.tensorcore_fma import fused_multiply_add

FLOATS = {
    "f16": np.float16,
    "bf16": ml_dtypes.bfloat16,
    "e4m3": ml_dtypes.float8_e4m3fn,
    "e5m2": ml_dtypes.float8_e5m2,
    "e3m2": ml_dtypes.float6_e3m2fn,
    "e2m3": ml_dtypes.float6_e2m3fn,
    "e2m1": ml_dtypes.float4_e2m1fn,
}
BITS = {"f64": 64, "tf32": 32, "f16": 16, "bf16": 16, "s4": 4, "u4": 4, "b1": 1}
WARPS = 3


def numbers(shape: str) -> tuple[int, int, int]:
    m, rest = shape[1:].split("n")
    n, k = rest.split("k")
    return int(m), int(n), int(k)


def random_codes(
    random: np.random.Generator, dtype: str, size: tuple[int, ...]
) -> tuple[np.ndarray, np.ndarray]:
    """Random elements of unit scale: codes, and their exact values in float64."""
    if dtype == "f64":
        values = random.standard_normal(size)
        return values.view(np.uint64), values
    if dtype == "tf32":
        # The instruction must drop the low 13 bits.
        words = random.standard_normal(size).astype(np.float32).view(np.uint32)
        return words, (words & np.uint32(0xFFFFE000)).view(np.float32).astype(np.float64)
    if dtype in FLOATS:
        values = random.standard_normal(size).astype(FLOATS[dtype])
        codes = values.view(np.uint16 if values.itemsize == 2 else np.uint8)
        if dtype in ("e3m2", "e2m3", "e2m1"):
            codes = codes & {"e3m2": 0x3F, "e2m3": 0x3F, "e2m1": 0x0F}[dtype]
        return codes, values.astype(np.float64)
    low, high = {"s8": (-128, 128), "u8": (0, 256), "s4": (-8, 8), "u4": (0, 16), "b1": (0, 2)}[dtype]
    values = random.integers(low, high, size)
    return values, values.astype(np.float64)


def fragment(codes: np.ndarray, place: Place, per_lane: int, bits: int) -> np.ndarray:
    """``[W, rows, columns]`` -> ``[W, registers, 32]``."""
    return np.stack([distribute(matrix, place, per_lane, bits) for matrix in codes])


def accumulator(values: np.ndarray, dtype: str) -> np.ndarray:
    """Codes of an accumulator matrix."""
    kinds = {"f16": np.float16, "f32": np.float32, "f64": np.float64, "s32": np.int32}
    codes = np.ascontiguousarray(values.astype(kinds[dtype]))
    return codes.view({2: np.uint16, 4: np.uint32, 8: np.uint64}[codes.itemsize])


def place_c(m: int) -> Place:
    return lambda g, t, i: c_place(m, g, t, i)


def run(
    opcode: str, shape: str, a: np.ndarray, b: np.ndarray, c: np.ndarray, bits: int, acc: str
) -> np.ndarray:
    """Execute on code matrices and give the code matrix of D."""
    m, n, k = numbers(shape)
    op = mma_instruction(opcode)
    c_bits = {"f16": 16, "f64": 64}.get(acc, 32)
    a_fragment = fragment(a, A_PLACES[shape, bits], m * k // 32, bits)
    b_fragment = fragment(b, B_PLACES[shape, bits], n * k // 32, bits)
    c_fragment = fragment(c, place_c(m), m * n // 32, c_bits)
    assert (op.a_registers, op.b_registers) == (a_fragment.shape[1], b_fragment.shape[1])
    assert (op.c_registers, op.d_registers) == (c_fragment.shape[1], c_fragment.shape[1])
    d = op(a_fragment, b_fragment, c_fragment)
    assert d.shape == c_fragment.shape
    assert d.dtype == c_fragment.dtype
    return np.stack([collect(x, place_c(m), m * n // 32, c_bits, (m, n)) for x in d])


FLOAT_CASES = [
    *[(s, d, "f16", "f16", "") for s in ("m16n8k8", "m16n8k16") for d in ("f32", "f16")],
    *[(s, "f32", "bf16", "bf16", "") for s in ("m16n8k8", "m16n8k16")],
    *[(s, "f32", "tf32", "tf32", "") for s in ("m16n8k4", "m16n8k8")],
    *[
        (s, d, a, b, "")
        for s in ("m16n8k16", "m16n8k32")
        for d in ("f32", "f16")
        for a in ("e4m3", "e5m2")
        for b in ("e4m3", "e5m2")
    ],
    *[
        ("m16n8k32", d, a, b, "kind::f8f6f4.")
        for d in ("f32", "f16")
        for a, b in (("e4m3", "e2m1"), ("e3m2", "e5m2"), ("e2m3", "e3m2"), ("e2m1", "e2m3"))
    ],
]


@pytest.mark.parametrize(("shape", "acc", "a_type", "b_type", "kind"), FLOAT_CASES)
def test_floating_point(shape: str, acc: str, a_type: str, b_type: str, kind: str) -> None:
    random = np.random.default_rng(crc32(f"{shape}{acc}{a_type}{b_type}".encode()))
    m, n, k = numbers(shape)
    a, a_values = random_codes(random, a_type, (WARPS, m, k))
    b, b_values = random_codes(random, b_type, (WARPS, k, n))
    if kind:  # e2m1 stands in the middle of its byte
        a = a << 2 if a_type == "e2m1" else a
        b = b << 2 if b_type == "e2m1" else b
    c = accumulator(random.standard_normal((WARPS, m, n)), acc)
    c_values = c.view(np.float16 if acc == "f16" else np.float32).astype(np.float64)
    opcode = f"mma.sync.aligned.{shape}.row.col.{kind}{acc}.{a_type}.{b_type}.{acc}"
    bits = BITS.get(a_type, 8)
    found = run(opcode, shape, a, b, c, bits, acc)
    expected = accumulator(a_values @ b_values + c_values, acc)
    # Both sum exact products in float64 and round once; the order of the sum may differ by a last place.
    distance = np.abs(found.astype(np.int64) - expected.astype(np.int64))
    assert distance.max() <= 1
    assert (distance == 0).mean() > 0.99


INTEGER_CASES = [
    *[(s, a, b) for s in ("m8n8k16", "m16n8k16", "m16n8k32") for a in ("s8", "u8") for b in ("s8", "u8")],
    *[(s, a, b) for s in ("m8n8k32", "m16n8k32", "m16n8k64") for a in ("s4", "u4") for b in ("s4", "u4")],
]


@pytest.mark.parametrize(("shape", "a_type", "b_type"), INTEGER_CASES)
@pytest.mark.parametrize("satfinite", [False, True])
def test_integers_wrap_or_saturate(shape: str, a_type: str, b_type: str, satfinite: bool) -> None:
    random = np.random.default_rng(7)
    m, n, k = numbers(shape)
    a, a_values = random_codes(random, a_type, (WARPS, m, k))
    b, b_values = random_codes(random, b_type, (WARPS, k, n))
    c = random.integers(-(2**31), 2**31, (WARPS, m, n))
    c[:, :4] = np.where(random.integers(0, 2, (WARPS, 4, n)), 2**31 - 1, -(2**31))
    suffix = ".satfinite" if satfinite else ""
    opcode = f"mma.sync.aligned.{shape}.row.col{suffix}.s32.{a_type}.{b_type}.s32"
    found = run(opcode, shape, a, b, accumulator(c, "s32"), BITS.get(a_type, 8), "s32")
    total = (a_values @ b_values).astype(np.int64) + c
    assert (np.abs(total) > 2**31).any()
    expected = np.clip(total, -(2**31), 2**31 - 1) if satfinite else total.astype(np.int32)
    assert (found.astype(np.uint32).view(np.int32) == expected).all()


@pytest.mark.parametrize("shape", ["m8n8k128", "m16n8k128", "m16n8k256"])
@pytest.mark.parametrize("bit_op", ["xor", "and"])
def test_single_bits_are_combined_and_counted(shape: str, bit_op: str) -> None:
    random = np.random.default_rng(8)
    m, n, k = numbers(shape)
    a, _ = random_codes(random, "b1", (WARPS, m, k))
    b, _ = random_codes(random, "b1", (WARPS, k, n))
    c = random.integers(-1000, 1000, (WARPS, m, n))
    opcode = f"mma.sync.aligned.{shape}.row.col.s32.b1.b1.s32.{bit_op}.popc"
    found = run(opcode, shape, a, b, accumulator(c, "s32"), 1, "s32")
    left, right = a[:, :, :, None], b[:, None, :, :]
    combined = left ^ right if bit_op == "xor" else left & right
    assert (found.astype(np.uint32).view(np.int32) == combined.sum(axis=2) + c).all()


@pytest.mark.parametrize("shape", ["m8n8k4", "m16n8k4", "m16n8k8", "m16n8k16"])
@pytest.mark.parametrize("rounding", ["", ".rn", ".rz", ".rm", ".rp"])
def test_double_precision_is_a_chain_of_fused_multiply_adds(shape: str, rounding: str) -> None:
    random = np.random.default_rng(9)
    m, n, k = numbers(shape)
    a, a_values = random_codes(random, "f64", (WARPS, m, k))
    b, b_values = random_codes(random, "f64", (WARPS, k, n))
    c_values = random.standard_normal((WARPS, m, n))
    opcode = f"mma.sync.aligned.{shape}.row.col{rounding}.f64.f64.f64.f64"
    found = run(opcode, shape, a, b, accumulator(c_values, "f64"), 64, "f64").view(np.float64)
    assert np.allclose(found, a_values @ b_values + c_values, rtol=1e-13, atol=1e-14)
    mode = rounding[1:] or "rn"
    for w, i, j in ((0, 0, 0), (1, m - 1, n - 1), (2, m // 2, 3)):
        total = float(c_values[w, i, j])
        for step in range(k):
            total = rounded(
                Fraction(float(a_values[w, i, step])) * Fraction(float(b_values[w, step, j]))
                + Fraction(total),
                mode,
            )
        assert found[w, i, j] == total


def rounded(value: Fraction, mode: str) -> float:
    """Round a rational to float64 by looking at its neighbours."""
    nearest = float(value)
    if mode == "rn" or Fraction(nearest) == value:
        return nearest
    other = float(np.nextafter(nearest, np.inf if value > Fraction(nearest) else -np.inf))
    low, high = sorted((nearest, other))
    if mode == "rm":
        return low
    if mode == "rp":
        return high
    return low if value > 0 else high


@pytest.mark.parametrize("mode", ["rn", "rz", "rm", "rp"])
@pytest.mark.parametrize("spread", [0, 2, 30, 100, 700])
def test_fused_multiply_add_rounds_once(mode: str, spread: int) -> None:
    random = np.random.default_rng(spread)
    size = 400

    def draw() -> np.ndarray:
        return random.standard_normal(size) * np.exp2(random.integers(-spread, spread + 1, size) / 2.0)

    a, b, c = draw(), draw(), draw()
    # Heavy cancellation: c is close to -(a * b).
    c[: size // 2] = -(a * b)[: size // 2] * (1 + random.integers(-3, 4, size // 2) * 2.0**-52)
    found = fused_multiply_add(a, b, c, mode)
    expected = [
        rounded(Fraction(x) * Fraction(y) + Fraction(z), mode) for x, y, z in zip(a, b, c, strict=True)
    ]
    assert found.tolist() == expected


@pytest.mark.parametrize("exponent", range(20, 40))
@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_fused_multiply_add_decides_a_tie_by_the_smallest_bit(exponent: int, sign: float) -> None:
    # a * b = 1 - 2**-2e: just less than half a last place of c, which plain double arithmetic takes for a tie.
    a, b = 1 + 2.0**-exponent, 1 - 2.0**-exponent
    c = sign * (2.0**53 + 2)
    found = fused_multiply_add(np.array([sign * a]), np.array([b]), np.array([c]))
    assert found.tolist() == [c]


def test_fused_multiply_add_at_the_ends_of_the_range() -> None:
    tiny, big = 5e-324, 1.7976931348623157e308
    a = np.array([1e-200, big, big, tiny, 1e-320, np.inf, 0.0, -0.0, 1.0, 1.0])
    b = np.array([1e-200, 2.0, 1.0, 0.5, 1.0, 0.0, 1.0, 1.0, 1.0, -1.0])
    c = np.array([tiny, -big, 1.0, 0.0, 1e-320, 1.0, -0.0, -0.0, -1.0, 1.0])
    nearest = fused_multiply_add(a, b, c)
    expected = [tiny, big, big, 0.0, 2e-320, np.nan, 0.0, -0.0, 0.0, 0.0]
    assert np.array_equal(nearest, expected, equal_nan=True)
    assert np.signbit(nearest[6:]).tolist() == [False, True, False, False]
    down = fused_multiply_add(a, b, c, "rm")
    assert np.signbit(down[6:]).tolist() == [True, True, True, True]
    assert fused_multiply_add(a, b, c, "rp")[2] == np.inf
    assert fused_multiply_add(a, b, c, "rp")[3] == tiny
    assert fused_multiply_add(a, b, c, "rz")[2] == big


QUAD_LAYOUTS = [(a, b) for a in ("row", "col") for b in ("row", "col")]


@pytest.mark.parametrize(("a_layout", "b_layout"), QUAD_LAYOUTS)
@pytest.mark.parametrize(("d_type", "c_type"), [("f32", "f32"), ("f16", "f16"), ("f32", "f16")])
def test_half_m8n8k4_multiplies_in_quad_pairs(a_layout: str, b_layout: str, d_type: str, c_type: str) -> None:
    random = np.random.default_rng(10)
    a, a_values = random_codes(random, "f16", (4, 8, 4))
    b, b_values = random_codes(random, "f16", (4, 4, 8))
    c = accumulator(random.standard_normal((4, 8, 8)), c_type)
    c_values = c.view(np.float16 if c_type == "f16" else np.float32).astype(np.float64)

    def a_place(lane: int, i: int) -> tuple[int, int]:
        high = 0 if lane < 16 else 4
        return (lane % 4 + high, i) if a_layout == "row" else (i % 4 + high, lane % 4)

    def b_place(lane: int, i: int) -> tuple[int, int]:
        high = 0 if lane < 16 else 4
        return (lane % 4, i + high) if b_layout == "row" else (i, lane % 4 + high)

    def acc_place(lane: int, i: int, dtype: str) -> tuple[int, int]:
        high = 0 if lane < 16 else 4
        if dtype == "f16":
            return lane % 4 + high, i
        return (lane & 1) + (i & 2) + high, (i & 4) + (lane & 2) + (i & 1)

    a_registers = np.zeros((1, 2, 32), dtype=np.uint32)
    b_registers = np.zeros((1, 2, 32), dtype=np.uint32)
    c_registers = np.zeros((1, 4 if c_type == "f16" else 8, 32), dtype=np.uint32)
    for lane in range(32):
        product = lane % 16 // 4
        for i in range(4):
            a_registers[0, i // 2, lane] |= int(a[(product, *a_place(lane, i))]) << (16 * (i % 2))
            b_registers[0, i // 2, lane] |= int(b[(product, *b_place(lane, i))]) << (16 * (i % 2))
        for i in range(8):
            code = int(c[(product, *acc_place(lane, i, c_type))])
            if c_type == "f16":
                c_registers[0, i // 2, lane] |= code << (16 * (i % 2))
            else:
                c_registers[0, i, lane] = code
    op = mma_instruction(f"mma.sync.aligned.m8n8k4.{a_layout}.{b_layout}.{d_type}.f16.f16.{c_type}")
    d = op(a_registers, b_registers, c_registers)
    assert d.shape == (1, op.d_registers, 32)
    expected = accumulator(a_values @ b_values + c_values, d_type)
    for lane in range(32):
        for i in range(8):
            want = int(expected[(lane % 16 // 4, *acc_place(lane, i, d_type))])
            word = int(d[0, i // 2 if d_type == "f16" else i, lane])
            assert (word >> (16 * (i % 2)) & 0xFFFF if d_type == "f16" else word) == want


def test_the_accumulator_is_rounded_once() -> None:
    # 2048 + 1 is halfway between two f16 numbers; the extra 2**-10 decides, and is lost if rounded twice.
    m, n, k = 16, 8, 8
    a = np.zeros((1, m, k), dtype=np.float16)
    b = np.zeros((1, k, n), dtype=np.float16)
    a[:, :, :3] = [1.0, 2.0**-10, 2048.0]
    b[:, :3] = 1.0
    c = accumulator(np.zeros((1, m, n)), "f16")
    opcode = "mma.sync.aligned.m16n8k8.row.col.f16.f16.f16.f16"
    found = run(opcode, "m16n8k8", a.view(np.uint16), b.view(np.uint16), c, 16, "f16")
    assert (found == int(np.float16(2050).view(np.uint16))).all()


@pytest.mark.parametrize(
    ("acc", "nan", "infinity"), [("f32", 0x7FFFFFFF, 0x7F800000), ("f16", 0x7FFF, 0x7C00)]
)
def test_infinities_and_nans_pass_through(acc: str, nan: int, infinity: int) -> None:
    a = np.zeros((1, 16, 8), dtype=np.float16)
    b = np.ones((1, 8, 8), dtype=np.float16)
    a[0, 0, 0] = np.inf
    a[0, 1, :2] = [np.inf, -np.inf]
    a[0, 2, 3] = np.nan
    c = accumulator(np.zeros((1, 16, 8)), acc)
    opcode = f"mma.sync.aligned.m16n8k8.row.col.{acc}.f16.f16.{acc}"
    found = run(opcode, "m16n8k8", a.view(np.uint16), b.view(np.uint16), c, 16, acc)
    assert (found[0, 0] == infinity).all()
    assert (found[0, 1] == nan).all()
    assert (found[0, 2] == nan).all()
    assert (found[0, 3:] == 0).all()


def test_the_call_by_modifiers_is_the_decoded_instruction() -> None:
    random = np.random.default_rng(11)
    a = random.integers(0, 2**32, (2, 4, 32)).astype(np.uint32)
    b = random.integers(0, 2**32, (2, 2, 32)).astype(np.uint32)
    c = random.integers(0, 2**32, (2, 4, 32)).astype(np.uint32)
    direct = mma(
        a, b, c, shape=(16, 8, 32), d_type="s32", a_type="s8", b_type="u8", c_type="s32", satfinite=True
    )
    op = mma_instruction("mma.sync.aligned.m16n8k32.row.col.satfinite.s32.s8.u8.s32")
    assert (direct == op(a, b, c)).all()
    assert op.flops == 2 * 16 * 8 * 32


@pytest.mark.parametrize("warps", [1, 127, 128, 129, 300])
def test_any_number_of_warps_gives_each_warp_its_own_result(warps: int) -> None:
    random = np.random.default_rng(15)
    op = mma_instruction("mma.sync.aligned.m16n8k32.row.col.s32.s8.s8.s32")
    a, b, c = (
        random.integers(0, 2**32, (warps, r, 32)).astype(np.uint32)
        for r in (op.a_registers, op.b_registers, op.c_registers)
    )
    together = op(a, b, c)
    for w in {0, warps // 2, warps - 1}:
        assert (together[w] == op(a[w : w + 1], b[w : w + 1], c[w : w + 1])[0]).all()


REFUSED = {
    "mma.sync.aligned.m16n8k4.row.col.f32.f16.f16.f32": "mma of f16 x f16 has m8n8k4, m16n8k8, m16n8k16, not m16n8k4",
    "mma.sync.aligned.m16n8k16.row.col.f16.bf16.bf16.f16": "bf16 x bf16 accumulates in f32, found D f16 and C f16",
    "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f16": "same type for C and D, found C f16 and D f32",
    "mma.sync.aligned.m16n8k16.row.col.f32.f16.bf16.f32": "mma cannot multiply f16 by bf16",
    "mma.sync.aligned.m16n8k16.row.row.f32.f16.f16.f32": "takes .row.col, found .row.row",
    "mma.sync.aligned.m16n8k256.row.col.s32.b1.b1.s32": "has .xor.popc or .and.popc exactly for b1, found None",
    "mma.sync.aligned.m16n8k16.row.col.satfinite.f32.f16.f16.f32": "takes .satfinite for integers only",
    "mma.sync.aligned.m16n8k16.row.col.rz.f32.f16.f16.f32": "takes .rz for f64 only",
    "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16": "expected a shape, two layouts and the types",
    "mma.sync.aligned.m16n8k16.row.col.f32.f17.f16.f32": "unknown modifier .f17",
    "mma.sync.aligned.m16n8k32.row.col.kind::f9.f32.e4m3.e4m3.f32": "unknown kind::f9; use f8f6f4",
    "mma.sync.aligned.m16n8k32.row.col.kind::mxf8f6f4.block_scale.f32.e4m3.e4m3.f32.ue4m3": (
        "kind::mxf8f6f4 scales with ue8m0, found ue4m3"
    ),
    "mma.sync.aligned.m16n8k64.row.col.kind::mxf4nvf4.block_scale.scale_vec::2X.f32.e2m1.e2m1.f32.ue4m3": (
        "kind::mxf4nvf4 with ue4m3 needs scale_vec::4X, found 2X"
    ),
    "wgmma.sync": "expected an mma.sync instruction",
}


@pytest.mark.parametrize("opcode", REFUSED)
def test_illegal_modifiers_are_refused_with_what_is_legal(opcode: str) -> None:
    with pytest.raises(ValueError) as caught:
        mma_instruction(opcode)
    assert REFUSED[opcode] in str(caught.value)
