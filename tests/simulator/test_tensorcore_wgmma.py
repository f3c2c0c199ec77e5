"""wgmma against operands that the tests lay out in shared memory by the ISA's canonical layouts and tables."""

from __future__ import annotations

from zlib import crc32

import numpy as np
import pytest

from tests.simulator.isa_layouts import A_PLACES, distribute
from tests.simulator.test_tensorcore_mma import accumulator, random_codes
from tilus.simulator.tensorcore import MatrixDescriptor, decode_descriptor, wgmma_instruction

BITS = {"tf32": 32, "f16": 16, "bf16": 16, "b1": 1}
GROUPS = 2

# "Swizzling Modes": the 16-byte cells of successive lines of 128 bytes, from a 256, 512 or 1024-byte boundary.
SWIZZLE_TABLES = {
    0: [[0, 1, 2, 3, 4, 5, 6, 7]],
    32: [[0, 1, 2, 3, 4, 5, 6, 7], [1, 0, 3, 2, 5, 4, 7, 6]],
    64: [
        [0, 1, 2, 3, 4, 5, 6, 7],
        [1, 0, 3, 2, 5, 4, 7, 6],
        [2, 3, 0, 1, 6, 7, 4, 5],
        [3, 2, 1, 0, 7, 6, 5, 4],
    ],
    128: [
        [0, 1, 2, 3, 4, 5, 6, 7],
        [1, 0, 3, 2, 5, 4, 7, 6],
        [2, 3, 0, 1, 6, 7, 4, 5],
        [3, 2, 1, 0, 7, 6, 5, 4],
        [4, 5, 6, 7, 0, 1, 2, 3],
        [5, 4, 7, 6, 1, 0, 3, 2],
        [6, 7, 4, 5, 2, 3, 0, 1],
        [7, 6, 5, 4, 3, 2, 1, 0],
    ],
}


def by_table(address: int, swizzle: int) -> int:
    """Address of a byte after swizzling, by looking its 16-byte cell up in the ISA's table."""
    table = SWIZZLE_TABLES[swizzle]
    line = table[address // 128 % len(table)]
    return address // 128 * 128 + line.index(address % 128 // 16) * 16 + address % 16


def canonical(mn: int, k: int, major: str, swizzle: int, t: int, leading: int, stride: int) -> int:
    """ "Canonical Layouts", in elements; `t` elements are 128 bits and the offsets are in elements too."""
    if major == "k":
        if swizzle == 0:  # ((8,m),(T,2k)):((1T,SBO),(1,LBO))
            return mn % 8 * t + mn // 8 * stride + k % t + k // t * leading
        w = swizzle // 16  # ((8,m),(T,2k)):((wT,SBO),(1,T))
        return mn % 8 * w * t + mn // 8 * stride + k % t + k // t * t
    if swizzle == 0:  # ((T,1,m),(8,k)):((1,T,SBO),(1T,LBO))
        return mn % t + mn // t * stride + k % 8 * t + k // 8 * leading
    w = swizzle // 16  # ((T,w,m),(8,k)):((1,T,LBO),(wT,SBO))
    return mn % t + mn // t % w * t + mn // t // w * leading + k % 8 * w * t + k // 8 * stride


def offsets(extent: int, k: int, major: str, swizzle: int, octets: int) -> tuple[int, int]:
    """Leading and stride byte offsets of a densely packed tile of ``extent x k`` elements."""
    t = 16 // octets
    if major == "k":
        return (extent * 16, 128) if swizzle == 0 else (0, 8 * swizzle)
    if swizzle == 0:
        return extent // t * 128, 128
    return k * swizzle, 8 * swizzle


def store(
    memory: np.ndarray, codes: np.ndarray, descriptor: MatrixDescriptor, major: str, octets: int
) -> None:
    """Put a matrix ``[extent, k]`` of codes where the descriptor says."""
    t = 16 // octets
    for mn in range(codes.shape[0]):
        for k in range(codes.shape[1]):
            offset = canonical(
                mn, k, major, descriptor.swizzle, t, descriptor.leading // octets, descriptor.stride // octets
            )
            at = by_table(descriptor.start + offset * octets, descriptor.swizzle)
            code = int(codes[mn, k]) & ((1 << 8 * octets) - 1)
            memory[at : at + octets] = np.frombuffer(code.to_bytes(octets, "little"), np.uint8)


def gather(memory: np.ndarray, chunks: np.ndarray) -> np.ndarray:
    assert (chunks % 16 == 0).all()
    return memory.reshape(-1, 16)[chunks // 16]


def d_place(lane: int, i: int, warp: int) -> tuple[int, int]:
    """Figure "WGMMA .m64nNk16 register fragment layout for accumulator matrix D"."""
    row = 16 * warp + lane // 4 + (8 if i % 4 >= 2 else 0)
    return row, 8 * (i // 4) + 2 * (lane % 4) + i % 2


def d_registers(matrices: np.ndarray, half: bool) -> np.ndarray:
    """Codes ``[G, 64, n]`` -> ``[4G, registers, 32]``."""
    groups, _, n = matrices.shape
    out = np.zeros((4 * groups, n // 4 if half else n // 2, 32), dtype=np.uint32)
    for g in range(groups):
        for warp in range(4):
            for lane in range(32):
                for i in range(n // 2):
                    code = int(matrices[(g, *d_place(lane, i, warp))])
                    if half:
                        out[4 * g + warp, i // 2, lane] |= code << (16 * (i % 2))
                    else:
                        out[4 * g + warp, i, lane] = code
    return out


def a_registers(codes: np.ndarray, bits: int) -> np.ndarray:
    """Codes ``[G, 64, k]`` -> A fragments: warp w holds rows 16w to 16w + 15 as an ``mma`` would."""
    k = codes.shape[2]
    shape = {16: "m16n8k16", 32: "m16n8k8", 8: "m16n8k32", 1: "m16n8k256"}[bits]
    return np.stack(
        [
            distribute(matrix[16 * w : 16 * w + 16], A_PLACES[shape, bits], 16 * k // 32, bits)
            for matrix in codes
            for w in range(4)
        ]
    )


def packed_bits(codes: np.ndarray) -> np.ndarray:
    return np.packbits(codes.astype(np.uint8), axis=-1, bitorder="little")


def multiply(
    opcode: str,
    a_type: str,
    b_type: str,
    d_type: str,
    n: int,
    *,
    swizzle_a: int = 128,
    swizzle_b: int = 128,
    trans_a: int = 0,
    trans_b: int = 0,
    registers: bool = False,
    step: int = 0,
    scale: tuple[int, int] = (1, 1),
    scale_d: bool | np.ndarray = True,
    scale_c: float = 1.0,
) -> tuple[np.ndarray, np.ndarray]:
    """Execute one instruction on random operands for two warpgroups: found and exact D, codes and values."""
    random = np.random.default_rng(crc32(f"{opcode}{swizzle_a}{swizzle_b}{trans_a}{trans_b}".encode()))
    bits = BITS.get(a_type, 8)
    octets = max(1, bits // 8)
    k = {32: 8, 16: 16, 8: 32, 1: 256}[bits]
    a, a_values = random_codes(random, a_type, (GROUPS, 64, k))
    b, b_values = random_codes(random, b_type, (GROUPS, n, k))
    a_bytes = packed_bits(a) if bits == 1 else a
    b_bytes = packed_bits(b) if bits == 1 else b
    op = wgmma_instruction(opcode, registers, trans_a, trans_b, *scale)
    memory = random.integers(0, 256, 256 * 1024).astype(np.uint8)
    descriptors: dict[str, list[int]] = {"a": [], "b": []}
    for name, matrix, swizzle, trans in (
        ("a", a_bytes, swizzle_a, trans_a),
        ("b", b_bytes, swizzle_b, trans_b),
    ):
        for g in range(GROUPS):
            extent, depth = matrix.shape[1:]
            major = "mn" if trans else "k"
            leading, stride = offsets(extent, depth, major, swizzle, octets)
            start = (65536 if name == "b" else 0) + g * 32768 + step
            descriptor = MatrixDescriptor(start, leading, stride, 0, swizzle)
            store(memory, matrix[g], descriptor, major, octets)
            descriptors[name].append(descriptor.encode())
    c_codes = accumulator(random.standard_normal((GROUPS, 64, n)) * scale_c, d_type)
    half = d_type == "f16"
    kind = {"f16": np.float16, "f32": np.float32, "s32": np.int32}[d_type]
    c_values = c_codes.view(kind).astype(np.float64)
    a_operand = (
        a_registers(a, bits)
        if registers
        else gather(memory, op.a_chunks(np.array(descriptors["a"], dtype=np.uint64)))
    )
    b_operand = gather(memory, op.b_chunks(np.array(descriptors["b"], dtype=np.uint64)))
    d = op(a_operand, b_operand, d_registers(c_codes, half), scale_d)
    keep = np.broadcast_to(np.asarray(scale_d), (GROUPS,))[:, None, None]
    exact = np.where(keep, c_values, 0.0) + scale[0] * scale[1] * (a_values @ b_values.swapaxes(1, 2))
    if d_type == "s32":
        return d, d_registers(exact.astype(np.int64).astype(np.int32).view(np.uint32), False)
    return d, d_registers(accumulator(exact, d_type), half)


def assert_close(found: np.ndarray, expected: np.ndarray) -> None:
    """Equal but for a last place where the order of a float64 sum shows."""
    assert found.shape == expected.shape
    assert (found != expected).mean() < 0.01
    halves = np.abs(found.view(np.uint16).astype(int) - expected.view(np.uint16).astype(int))
    assert ((halves <= 1) | (halves == 0xFFFF)).all()


SWIZZLES = [0, 32, 64, 128]


@pytest.mark.parametrize("swizzle_a", SWIZZLES)
@pytest.mark.parametrize("swizzle_b", SWIZZLES)
@pytest.mark.parametrize(("trans_a", "trans_b"), [(0, 0), (0, 1), (1, 0), (1, 1)])
def test_every_swizzle_and_majorness(swizzle_a: int, swizzle_b: int, trans_a: int, trans_b: int) -> None:
    found, expected = multiply(
        "wgmma.mma_async.sync.aligned.m64n64k16.f32.bf16.bf16", "bf16", "bf16", "f32", 64,
        swizzle_a=swizzle_a, swizzle_b=swizzle_b, trans_a=trans_a, trans_b=trans_b,
    )  # fmt: skip
    assert_close(found, expected)


@pytest.mark.parametrize("swizzle", [64, 128])
@pytest.mark.parametrize("step", [32, 64, 96])
def test_a_start_inside_the_swizzle_atom_advances_along_k(swizzle: int, step: int) -> None:
    if step >= swizzle:
        step -= swizzle // 2
    found, expected = multiply(
        "wgmma.mma_async.sync.aligned.m64n16k16.f32.f16.f16", "f16", "f16", "f32", 16,
        swizzle_a=swizzle, swizzle_b=swizzle, step=step,
    )  # fmt: skip
    assert_close(found, expected)


TYPES = [
    ("f16", "f16", "f32", 16),
    ("f16", "f16", "f16", 16),
    ("bf16", "bf16", "f32", 16),
    ("tf32", "tf32", "f32", 8),
    ("e4m3", "e5m2", "f32", 32),
    ("e5m2", "e4m3", "f16", 32),
    ("s8", "s8", "s32", 32),
    ("u8", "s8", "s32", 32),
]


@pytest.mark.parametrize(("a_type", "b_type", "d_type", "k"), TYPES)
@pytest.mark.parametrize("registers", [False, True])
@pytest.mark.parametrize("swizzle", [0, 128])
def test_every_type(a_type: str, b_type: str, d_type: str, k: int, registers: bool, swizzle: int) -> None:
    opcode = f"wgmma.mma_async.sync.aligned.m64n24k{k}.{d_type}.{a_type}.{b_type}"
    found, expected = multiply(
        opcode, a_type, b_type, d_type, 24, registers=registers, swizzle_a=swizzle, swizzle_b=swizzle
    )
    assert_close(found, expected)


@pytest.mark.parametrize("registers", [False, True])
def test_single_bits(registers: bool) -> None:
    opcode = "wgmma.mma_async.sync.aligned.m64n16k256.s32.b1.b1.and.popc"
    found, expected = multiply(opcode, "b1", "b1", "s32", 16, registers=registers)
    assert (found == expected).all()


@pytest.mark.parametrize("n", [8, 40, 128, 248, 256])
def test_every_width_has_its_registers(n: int) -> None:
    opcode = f"wgmma.mma_async.sync.aligned.m64n{n}k16.f32.f16.f16"
    assert wgmma_instruction(opcode).d_registers == n // 2
    found, expected = multiply(opcode, "f16", "f16", "f32", n, registers=True)
    assert_close(found, expected)


@pytest.mark.parametrize("scale", [(1, -1), (-1, 1), (-1, -1)])
def test_operands_are_negated(scale: tuple[int, int]) -> None:
    opcode = "wgmma.mma_async.sync.aligned.m64n8k16.f32.f16.f16"
    assert_close(*multiply(opcode, "f16", "f16", "f32", 8, scale=scale))


@pytest.mark.parametrize("d_type", ["f32", "f16", "s32"])
@pytest.mark.parametrize("keep", [[True, False], [False, False]])
def test_scale_d_false_ignores_the_accumulator(d_type: str, keep: list[bool]) -> None:
    element, k = ("s8", 32) if d_type == "s32" else ("f16", 16)
    opcode = f"wgmma.mma_async.sync.aligned.m64n8k{k}.{d_type}.{element}.{element}"
    assert_close(*multiply(opcode, element, element, d_type, 8, scale_d=np.array(keep)))


def test_scale_d_false_ignores_a_nan_in_the_accumulator() -> None:
    op = wgmma_instruction("wgmma.mma_async.sync.aligned.m64n8k16.f32.f16.f16", True)
    a = np.zeros((4, 4, 32), dtype=np.uint32)
    b = np.zeros((1, 16, 16), dtype=np.uint8)
    c = np.full((4, 4, 32), 0x7FC00000, dtype=np.uint32)
    assert (op(a, b, c, False) == 0).all()
    assert (op(a, b, c, True) == 0x7FFFFFFF).all()


@pytest.mark.parametrize("satfinite", [False, True])
def test_integers_wrap_or_saturate(satfinite: bool) -> None:
    op = wgmma_instruction(
        f"wgmma.mma_async.sync.aligned.m64n8k32{'.satfinite' if satfinite else ''}.s32.u8.u8", True
    )
    a = np.full((4, 4, 32), 0xFFFFFFFF, dtype=np.uint32)
    b = np.full((1, 16, 16), 0xFF, dtype=np.uint8)
    c = np.full((4, 4, 32), 2**31 - 1, dtype=np.uint32)
    total = 2**31 - 1 + 255 * 255 * 32
    expected = 2**31 - 1 if satfinite else total - 2**32
    assert (op(a, b, c).view(np.int32) == expected).all()


@pytest.mark.parametrize(
    ("element", "k", "octets", "chunk", "lanes"),
    [
        ("f16", 32, 2, 4, "half"),
        ("tf32", 16, 4, 2, "half"),
        ("s8", 64, 1, 4, "row"),
        ("e4m3", 64, 1, 4, "row"),
    ],
)
@pytest.mark.parametrize("registers", [False, True])
def test_sparse_a(element: str, k: int, octets: int, chunk: int, lanes: str, registers: bool) -> None:
    random = np.random.default_rng(k)
    n = 16
    d_type = "s32" if element == "s8" else "f32"
    stored, stored_values = random_codes(random, element, (GROUPS, 64, k // 2))
    b, b_values = random_codes(random, element, (GROUPS, n, k))
    pairs = [0b0100, 0b1000, 0b1001, 0b1100, 0b1101, 0b1110] if chunk == 4 else [0b0100, 0b1110]
    choice = np.array(pairs)[random.integers(0, len(pairs), (GROUPS, 64, k // chunk))]
    full = np.zeros((GROUPS, 64, k))
    for index in np.ndindex(*choice.shape):
        g, row, at = index
        code = int(choice[index])
        if chunk == 4:
            full[g, row, 4 * at + (code & 3)] = stored_values[g, row, 2 * at]
            full[g, row, 4 * at + (code >> 2)] = stored_values[g, row, 2 * at + 1]
        else:
            full[g, row, 2 * at + (code == 0b1110)] = stored_values[g, row, at]
    op = wgmma_instruction(
        f"wgmma.mma_async.sp.sync.aligned.m64n{n}k{k}.{d_type}.{element}.{element}", registers
    )
    memory = random.integers(0, 256, 262144).astype(np.uint8)
    descriptors: dict[str, list[int]] = {"a": [], "b": []}
    for name, matrix in (("a", stored), ("b", b)):
        for g in range(GROUPS):
            start = (65536 if name == "b" else 0) + g * 32768
            descriptor = MatrixDescriptor(start, 0, 1024, 0, 128)
            store(memory, matrix[g], descriptor, "k", octets)
            descriptors[name].append(descriptor.encode())
    a = (
        a_registers(stored, 8 * octets)
        if registers
        else gather(memory, op.a_chunks(np.array(descriptors["a"], np.uint64)))
    )
    b_operand = gather(memory, op.b_chunks(np.array(descriptors["b"], np.uint64)))
    c = np.zeros((4 * GROUPS, op.d_registers, 32), dtype=np.uint32)
    expected = d_registers(accumulator(full @ b_values.swapaxes(1, 2), d_type), False)
    for selector in (0, 1) if lanes == "half" else (0,):
        metadata = random.integers(0, 2**32, (4 * GROUPS, 32)).astype(np.uint32)
        for g, row in np.ndindex(GROUPS, 64):
            w, group, high = 4 * g + row // 16, row % 8, row % 16 // 8
            for at in range(k // chunk):
                if lanes == "half":  # T0 and T1 (T2 and T3): the halves of k; rows g and g + 8 in half words
                    lane, shift = 4 * group + 2 * selector + at // 4, 16 * high + 4 * (at % 4)
                else:  # T0 and T1: rows g and g + 8 of columns 0-31; T2 and T3: of columns 32-63
                    lane, shift = 4 * group + 2 * (at // 8) + high, 4 * (at % 8)
                word = int(metadata[w, lane]) & ~(15 << shift) | int(choice[g, row, at]) << shift
                metadata[w, lane] = word
        assert_close(op(a, b_operand, c, metadata=metadata, selector=selector), expected)


def test_descriptor_fields() -> None:
    value = 0x1234 | 0x0ABC << 16 | 0x0040 << 32 | 5 << 49 | 2 << 62
    assert decode_descriptor(value) == MatrixDescriptor(0x12340, 0xABC0, 0x400, 5, 64)
    assert decode_descriptor(value).encode() == value
    assert [decode_descriptor(mode << 62).swizzle for mode in range(4)] == [0, 128, 64, 32]
    assert decode_descriptor(1 << 14).reserved == 1 << 14
    assert decode_descriptor(1 << 52).reserved == 1 << 52


@pytest.mark.parametrize("swizzle", [32, 64, 128])
@pytest.mark.parametrize("lines", [1, 3])
def test_a_base_offset_moves_the_pattern(swizzle: int, lines: int) -> None:
    # A tile that begins `lines` rows of 128 bytes after the boundary, and its pattern with it.
    op = wgmma_instruction("wgmma.mma_async.sync.aligned.m64n8k16.f32.f16.f16")
    aligned = MatrixDescriptor(8192, 0, 8 * swizzle, 0, swizzle)
    moved = MatrixDescriptor(8192 + 128 * lines, 0, 8 * swizzle, lines, swizzle)
    chunks = op.a_chunks(np.array([aligned.encode(), moved.encode()], dtype=np.uint64))
    assert (chunks[1] - chunks[0] == 128 * lines).all()


def test_the_instruction_reads_each_byte_of_its_operands_once() -> None:
    for trans in (0, 1):
        op = wgmma_instruction("wgmma.mma_async.sync.aligned.m64n128k16.f32.f16.f16", False, trans, trans)
        for swizzle in SWIZZLES:
            leading, stride = offsets(128, 16, "mn" if trans else "k", swizzle, 2)
            descriptor = np.array(
                [MatrixDescriptor(1024, leading, stride, 0, swizzle).encode()], dtype=np.uint64
            )
            chunks = op.b_chunks(descriptor)[0]
            assert len(set(chunks.tolist())) == 128 * 16 * 2 // 16


REFUSED = {
    "wgmma.mma_async.sync.aligned.m64n12k16.f32.f16.f16": "N a multiple of 8 up to 256, found m64n12k16",
    "wgmma.mma_async.sync.aligned.m64n40k32.s32.s8.s8": "N a multiple of 16 up to 256, found m64n40k32",
    "wgmma.mma_async.sync.aligned.m64n8k16.f16.bf16.bf16": "bf16 x bf16 accumulates in f32, found f16",
    "wgmma.mma_async.sync.aligned.m64n8k16.f32.f16.bf16": "wgmma cannot multiply f16 by bf16",
    "wgmma.mma_async.sync.aligned.m64n8k256.s32.b1.b1.xor.popc": "unknown modifier .xor",
    "wgmma.mma_async.sync.aligned.m64n8k16.satfinite.f32.f16.f16": "takes .satfinite for 8-bit integers only",
    "wgmma.mma_async.sp.sync.aligned.m64n8k16.f32.f16.f16": "has shape m64nNk32",
    "mma.sync.aligned.m64n8k16.f32.f16.f16": "expected wgmma.mma_async",
}


@pytest.mark.parametrize("opcode", REFUSED)
def test_illegal_modifiers_are_refused(opcode: str) -> None:
    with pytest.raises(ValueError) as caught:
        wgmma_instruction(opcode)
    assert REFUSED[opcode] in str(caught.value)


def test_illegal_immediates_are_refused() -> None:
    tf32 = "wgmma.mma_async.sync.aligned.m64n8k8.f32.tf32.tf32"
    f16 = "wgmma.mma_async.sync.aligned.m64n8k16.f32.f16.f16"
    with pytest.raises(ValueError, match="only f16 and bf16 can be transposed by wgmma, found tf32"):
        wgmma_instruction(tf32, False, 0, 1)
    with pytest.raises(ValueError, match="imm-trans-a needs A in shared memory"):
        wgmma_instruction(f16, True, 1, 0)
    with pytest.raises(ValueError, match="imm-scale of wgmma is 1 or -1, found 0"):
        wgmma_instruction(f16, False, 0, 0, 0, 1)


def test_a_swizzle_narrower_than_the_operand_is_refused() -> None:
    op = wgmma_instruction("wgmma.mma_async.sp.sync.aligned.m64n8k32.f32.f16.f16")
    narrow = np.array([MatrixDescriptor(0, 16, 256, 0, 32).encode()], dtype=np.uint64)
    with pytest.raises(ValueError, match="64 bytes along k, wider than its 32-byte swizzle"):
        op.b_chunks(narrow)
