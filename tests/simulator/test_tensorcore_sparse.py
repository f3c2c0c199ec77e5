"""``mma.sp`` and block-scaled ``mma`` against dense matrices that the tests build from metadata and scales."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest

from tests.simulator.isa_layouts import A_PLACES, B_PLACES, Place, c_place, collect, distribute
from tests.simulator.test_tensorcore_mma import accumulator, fragment, numbers, random_codes
from tilus.simulator.tensorcore import mma_instruction

WARPS = 2
PAIRS = [0b0100, 0b1000, 0b1001, 0b1100, 0b1101, 0b1110]  # the meaningful values for two of four
UNORDERED = [0b0001, 0b0010, 0b0110, 0b0011, 0b0111, 0b1011]  # legal for mma.sp without ordered_metadata

# "Matrix fragments for multiply-accumulate operation with sparse matrix A": (shape, bits) -> row and first
# column of the dense chunk range of element i. The stored elements of a range follow in order.
SPARSE_A: dict[tuple[str, int], Place] = {
    ("m16n8k16", 16): lambda g, t, i: (g if i < 2 else g + 8, t * 4),
    ("m16n8k32", 16): lambda g, t, i: (g if i < 2 or 4 <= i < 6 else g + 8, t * 4 if i < 4 else t * 4 + 16),
    ("m16n8k8", 32): lambda g, t, i: (g if i == 0 else g + 8, t * 2),
    ("m16n8k16", 32): lambda g, t, i: (g if i in (0, 2) else g + 8, t * 2 if i < 2 else t * 2 + 8),
    ("m16n8k32", 8): lambda g, t, i: (g if i < 4 else g + 8, t * 8),
    ("m16n8k64", 8): lambda g, t, i: (g if i < 4 or 8 <= i < 12 else g + 8, t * 8 if i < 8 else t * 8 + 32),
    ("m16n8k64", 4): lambda g, t, i: (g if i < 8 else g + 8, t * 16),
    ("m16n8k128", 4): lambda g, t, i: (
        g if i < 8 or 16 <= i < 24 else g + 8,
        t * 16 if i < 16 else t * 16 + 64,
    ),
}


def stored_place(shape: str, bits: int) -> Place:
    """Column among the stored elements of a row: half the first column, plus the place in the register."""
    per_range = {16: 2, 32: 1, 8: 4, 4: 8}[bits]

    def place(g: int, t: int, i: int) -> tuple[int, int]:
        row, first = SPARSE_A[shape, bits](g, t, i)
        return row, first // 2 + i % per_range

    return place


def metadata_place(bits: int, chunks: int, selector: int, row: int, at: int) -> tuple[int, int]:
    """Lane and bit of the four metadata bits of a chunk (figures 119, 122, 125, 127, 129, 136, 137, 139, 146).

    For 16 and 32-bit elements, T<selector> (one lane of a quad) or T<2 * selector> and the next hold four chunks
    of row g in bits 0-15 and of row g + 8 in bits 16-31. For narrower ones a lane holds eight chunks of one row:
    row g in the first lane of a pair, row g + 8 in the second; the second pair has the upper half of k.
    """
    group, high = row % 8, row // 8
    if bits >= 16:
        first = selector if chunks == 4 else 2 * selector
        return 4 * group + first + at // 4, 16 * high + 4 * (at % 4)
    return 4 * group + 2 * selector + 2 * (at // 8) + high, 4 * (at % 8)


def place_c(g: int, t: int, i: int) -> tuple[int, int]:
    """The accumulators of the shapes with 16 rows."""
    return c_place(16, g, t, i)


def expand(stored: np.ndarray, choice: np.ndarray, chunk: int, k: int) -> np.ndarray:
    """Dense A from stored values ``[W, 16, k / 2]`` and four bits per chunk ``[W, 16, k / chunk]``."""
    full = np.zeros((*stored.shape[:2], k))
    for w, row, at in np.ndindex(*choice.shape):
        code = int(choice[w, row, at])
        if chunk == 2:
            full[w, row, 2 * at + {0b0100: 0, 0b1110: 1}[code]] = stored[w, row, at]
        elif chunk == 4:
            full[w, row, 4 * at + (code & 3)] = stored[w, row, 2 * at]
            full[w, row, 4 * at + (code >> 2)] = stored[w, row, 2 * at + 1]
        else:
            for unit, pair in enumerate((code & 3, code >> 2)):
                for half in range(2):
                    full[w, row, 8 * at + 2 * pair + half] = stored[w, row, 4 * at + 2 * unit + half]
    return full


CASES = [
    ("m16n8k16", "f16", "f16", "f32", ""),
    ("m16n8k32", "f16", "f16", "f16", ""),
    ("m16n8k32", "bf16", "bf16", "f32", ""),
    ("m16n8k8", "tf32", "tf32", "f32", ""),
    ("m16n8k16", "tf32", "tf32", "f32", ""),
    ("m16n8k32", "s8", "u8", "s32", ""),
    ("m16n8k64", "u8", "s8", "s32", ""),
    ("m16n8k64", "s4", "u4", "s32", ""),
    ("m16n8k128", "u4", "s4", "s32", ""),
    ("m16n8k64", "e4m3", "e5m2", "f32", ""),
    ("m16n8k64", "e3m2", "e2m1", "f16", "kind::f8f6f4."),
    ("m16n8k64", "e2m1", "e2m3", "f32", "kind::f8f6f4."),
]
BITS = {"f16": 16, "bf16": 16, "tf32": 32, "s4": 4, "u4": 4}


@pytest.mark.parametrize(("shape", "a_type", "b_type", "acc", "kind"), CASES)
@pytest.mark.parametrize("variant", ["sp", "sp::ordered_metadata"])
def test_sparse_a_is_expanded_by_its_metadata(
    shape: str, a_type: str, b_type: str, acc: str, kind: str, variant: str
) -> None:
    random = np.random.default_rng(12)
    _, n, k = numbers(shape)
    bits = BITS.get(a_type, 8)
    chunk = {32: 2, 4: 8}.get(bits, 4)
    a, a_values = random_codes(random, a_type, (WARPS, 16, k // 2))
    b, b_values = random_codes(random, b_type, (WARPS, k, n))
    if kind:
        a = a << 2 if a_type == "e2m1" else a
        b = b << 2 if b_type == "e2m1" else b
    legal = [0b0100, 0b1110] if bits == 32 else PAIRS + (UNORDERED if variant == "sp" else [])
    choice = np.array(legal)[random.integers(0, len(legal), (WARPS, 16, k // chunk))]
    c = random.integers(-100, 100, (WARPS, 16, n)).astype(np.float64)
    expected = accumulator(expand(a_values, choice, chunk, k) @ b_values + c, acc)

    c_bits = 16 if acc == "f16" else 32
    a_fragment = fragment(a, stored_place(shape, bits), k // 4, bits)
    b_fragment = fragment(b, B_PLACES[shape, bits], n * k // 32, bits)
    c_fragment = fragment(accumulator(c, acc), place_c, 4, c_bits)
    op = mma_instruction(f"mma.{variant}.sync.aligned.{shape}.row.col.{kind}{acc}.{a_type}.{b_type}.{acc}")
    assert op.sparse
    assert (op.a_registers, op.b_registers) == (a_fragment.shape[1], b_fragment.shape[1])
    chunks = k // chunk
    words = 16 * chunks * 4 // 32 // 8  # lanes per quad that hold metadata
    for selector in range(4 // words):
        metadata = random.integers(0, 2**32, (WARPS, 32)).astype(np.uint32)  # other lanes' is not looked at
        for w, row, at in np.ndindex(*choice.shape):
            lane, shift = metadata_place(bits, chunks, selector, row, at)
            metadata[w, lane] = int(metadata[w, lane]) & ~(15 << shift) | int(choice[w, row, at]) << shift
        d = op(a_fragment, b_fragment, c_fragment, metadata=metadata, selector=selector)
        found = np.stack([collect(x, place_c, 4, c_bits, (16, n)) for x in d])
        if acc == "s32":
            assert (found == expected).all()
        else:
            assert np.abs(found.astype(np.int64) - expected.astype(np.int64)).max() <= 1
    with pytest.raises(ValueError, match=f"the sparsity selector of this mma.sp is 0 to {4 // words - 1}"):
        op(a_fragment, b_fragment, c_fragment, metadata=metadata, selector=4 // words)


def test_metadata_is_needed() -> None:
    op = mma_instruction("mma.sp.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32")
    a, b, c = (np.zeros((1, r, 32), dtype=np.uint32) for r in (2, 2, 4))
    with pytest.raises(ValueError, match=r"mma\.sp needs its metadata operand"):
        op(a, b, c)


SCALED = [
    ("m16n8k32", "mxf8f6f4", 1, "ue8m0", "e4m3", "e5m2"),
    ("m16n8k32", "mxf8f6f4", 1, "ue8m0", "e2m1", "e3m2"),
    ("m16n8k64", "mxf4", 2, "ue8m0", "e2m1", "e2m1"),
    ("m16n8k64", "mxf4nvf4", 2, "ue8m0", "e2m1", "e2m1"),
    ("m16n8k64", "mxf4nvf4", 4, "ue4m3", "e2m1", "e2m1"),
    ("m16n8k64", "mxf4nvf4", 4, "ue8m0", "e2m1", "e2m1"),
]
SCALE_TYPES = {"ue8m0": ml_dtypes.float8_e8m0fnu, "ue4m3": ml_dtypes.float8_e4m3fn}


@pytest.mark.parametrize(("shape", "kind", "vector", "scale_type", "a_type", "b_type"), SCALED)
@pytest.mark.parametrize("sparse", [False, True])
def test_blocks_are_scaled(
    shape: str, kind: str, vector: int, scale_type: str, a_type: str, b_type: str, sparse: bool
) -> None:
    random = np.random.default_rng(13)
    _, n, k = numbers(shape)
    if sparse:
        k, shape = 2 * k, f"m16n8k{2 * k}"
    bits = 8 if kind == "mxf8f6f4" else 4
    a, a_values = random_codes(random, a_type, (WARPS, 16, k // 2 if sparse else k))
    b, b_values = random_codes(random, b_type, (WARPS, k, n))
    if bits == 8:
        a = a << 2 if a_type == "e2m1" else a
        b = b << 2 if b_type == "e2m1" else b
    chunk = 4 if bits == 8 else 8
    choice = np.array(PAIRS)[random.integers(0, 6, (WARPS, 16, k // chunk))]
    if sparse:
        a_values = expand(a_values, choice, chunk, k)
    c = random.standard_normal((WARPS, 16, n))

    a_place = stored_place(shape, bits) if sparse else None
    a_fragment = fragment(a, a_place or A_PLACES[shape, bits], 16 * a.shape[2] // 32, bits)
    b_fragment = fragment(b, B_PLACES[shape, bits], n * k // 32, bits)
    c_fragment = fragment(accumulator(c, "f32"), place_c, 4, 32)
    variant = "sp::ordered_metadata." if sparse else ""
    op = mma_instruction(
        f"mma.{variant}sync.aligned.{shape}.row.col.kind::{kind}.block_scale.scale_vec::{vector}X"
        f".f32.{a_type}.{b_type}.f32.{scale_type}"
    )
    operands = {}
    if sparse:
        metadata = np.zeros((WARPS, 32), dtype=np.uint32)
        for w, row, at in np.ndindex(*choice.shape):
            lane, shift = metadata_place(bits, k // chunk, 0, row, at)
            metadata[w, lane] |= int(choice[w, row, at]) << shift
        operands["metadata"] = metadata

    low, high = (120, 134) if scale_type == "ue8m0" else (40, 80)
    data = random.integers(low, high, (2, WARPS, 32, 4)).astype(np.uint8)
    as_values = data.view(SCALE_TYPES[scale_type]).astype(np.float64)
    bytes_of = {1: range(4), 2: (0, 2), 4: (0,)}[vector]
    for byte_a, byte_b, thread_a, thread_b in zip(
        [*bytes_of] * 4, [*bytes_of][::-1] * 4, (0, 1, 1, 0), (0, 3, 1, 2), strict=False
    ):
        scale_a = np.zeros((WARPS, 16, k))
        scale_b = np.zeros((WARPS, k, n))
        for w in range(WARPS):
            for block in range(vector):
                part = slice(block * k // vector, (block + 1) * k // vector)
                for row in range(16):
                    # Of the pair, the lower thread scales row groupID, the upper one row groupID + 8.
                    lane = 4 * (row % 8) + 2 * thread_a + row // 8
                    scale_a[w, row, part] = as_values[0, w, lane, byte_a + block]
                for col in range(n):
                    scale_b[w, part, col] = as_values[1, w, 4 * col + thread_b, byte_b + block]
        d = op(
            a_fragment, b_fragment, c_fragment,
            scale_a=data[0].view(np.uint32)[..., 0], byte_id_a=byte_a, thread_id_a=thread_a,
            scale_b=data[1].view(np.uint32)[..., 0], byte_id_b=byte_b, thread_id_b=np.full(WARPS, thread_b),
            **operands,
        )  # fmt: skip
        found = np.stack([collect(x, place_c, 4, 32, (16, n)) for x in d]).astype(np.uint32).view(np.float32)
        exact = (a_values * scale_a) @ (b_values * scale_b) + c.astype(np.float32)
        assert np.allclose(found, exact, rtol=1e-6, atol=1e-6)


def test_the_scale_vector_has_the_defaults_of_the_isa() -> None:
    tail = "block_scale.f32.e2m1.e2m1.f32"
    assert mma_instruction(f"mma.sync.aligned.m16n8k64.row.col.kind::mxf4.{tail}.ue8m0").scale_vec == 2
    assert mma_instruction(f"mma.sync.aligned.m16n8k32.row.col.kind::mxf8f6f4.{tail}.ue8m0").scale_vec == 1
    with pytest.raises(ValueError, match="kind::mxf4nvf4 with ue4m3 needs scale_vec::4X, found 0X"):
        mma_instruction(f"mma.sync.aligned.m16n8k64.row.col.kind::mxf4nvf4.{tail}.ue4m3")


def test_scales_are_needed() -> None:
    op = mma_instruction("mma.sync.aligned.m16n8k64.row.col.kind::mxf4.block_scale.f32.e2m1.e2m1.f32.ue8m0")
    a, b, c = (np.zeros((1, r, 32), dtype=np.uint32) for r in (4, 2, 4))
    with pytest.raises(ValueError, match="mma with block_scale needs scale-a-data and scale-b-data"):
        op(a, b, c)


@pytest.mark.parametrize(
    ("operand", "value", "message"),
    [
        ("byte_id_a", 1, "byte-id-a with scale_vec::2X is one of 0, 2, found 1"),
        ("byte_id_b", 3, "byte-id-b with scale_vec::2X is one of 0, 2, found 3"),
        ("thread_id_a", 2, "thread-id-a with scale_vec::2X is one of 0, 1, found 2"),
        ("thread_id_b", 4, "thread-id-b with scale_vec::2X is one of 0, 1, 2, 3, found 4"),
    ],
)
def test_illegal_selectors_are_refused(operand: str, value: int, message: str) -> None:
    op = mma_instruction("mma.sync.aligned.m16n8k64.row.col.kind::mxf4.block_scale.f32.e2m1.e2m1.f32.ue8m0")
    a, b, c = (np.zeros((2, r, 32), dtype=np.uint32) for r in (4, 2, 4))
    scale = np.zeros((2, 32), dtype=np.uint32)
    with pytest.raises(ValueError, match=message):
        op(a, b, c, scale_a=scale, scale_b=scale, **{operand: np.array([0, value])})


def test_distribute_and_collect_are_inverse() -> None:
    random = np.random.default_rng(14)
    codes = random.integers(0, 2**32, (16, 8)).astype(np.uint64)
    assert (collect(distribute(codes, place_c, 4, 32), place_c, 4, 32, (16, 8)) == codes).all()
