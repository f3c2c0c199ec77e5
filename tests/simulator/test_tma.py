"""Tensor maps against an element-by-element copy, and swizzles against the tables of the ISA."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.simulator.test_tensorcore_wgmma import SWIZZLE_TABLES, by_table
from tilus.simulator.tma import ELEMENT_TYPES, TensorMap, replace_field, swizzle_address, tile_access

# "128 byte swizzle mode" with other atomicities: 16-byte cells of a line.
ATOM_TABLES = {
    "32B": [
        [0, 1, 2, 3, 4, 5, 6, 7],
        [2, 3, 0, 1, 6, 7, 4, 5],
        [4, 5, 6, 7, 0, 1, 2, 3],
        [6, 7, 4, 5, 2, 3, 0, 1],
    ],
    "64B": [[0, 1, 2, 3, 4, 5, 6, 7], [4, 5, 6, 7, 0, 1, 2, 3]],
}


@pytest.mark.parametrize("swizzle", [0, 32, 64, 128])
def test_the_swizzle_is_the_table_of_the_isa(swizzle: int) -> None:
    addresses = np.arange(4096)
    assert swizzle_address(addresses, swizzle).tolist() == [by_table(int(a), swizzle) for a in addresses]
    assert (swizzle_address(swizzle_address(addresses, swizzle), swizzle) == addresses).all()


def copy_by_hand(tensor_map: TensorMap, memory: bytes, start: tuple[int, ...], shared: int) -> dict[int, int]:
    """Shared byte address -> byte, for a load; -1 for a fill."""
    size = {"u8": 1, "u16": 2, "f16": 2, "bf16": 2, "f32": 4, "u32": 4, "s32": 4, "f64": 8, "u64": 8}[
        tensor_map.element_type
    ]
    strides = (size, *tensor_map.global_strides)
    counts = [-(-b // s) for b, s in zip(tensor_map.box, tensor_map.element_strides, strict=True)]
    out = {}
    for position, index in enumerate(np.ndindex(*reversed(counts))):
        place = [
            c + i * s for c, i, s in zip(start, reversed(index), tensor_map.element_strides, strict=True)
        ]
        inside = all(0 <= p < d for p, d in zip(place, tensor_map.global_dims, strict=True))
        address = tensor_map.address + sum(p * s for p, s in zip(place, strides, strict=True))
        for byte in range(size):
            at = shared + position * size + byte
            if tensor_map.atomicity == "16B":
                at = by_table(at, tensor_map.swizzle)
            else:
                table = ATOM_TABLES[tensor_map.atomicity]
                line = table[at // 128 % len(table)]
                at = at // 128 * 128 + line.index(at % 128 // 16) * 16 + at % 16
            out[at] = memory[address + byte] if inside else -1
    return out


def copy_by_access(
    tensor_map: TensorMap, memory: bytes, start: tuple[int, ...], shared: int
) -> dict[int, int]:
    access = tile_access(tensor_map, np.array([start]), np.array([shared]))
    mask = access.byte_mask()[0].reshape(-1)
    sources = access.global_bytes()[0].reshape(-1)
    targets = access.shared_bytes()[0].reshape(-1)
    assert len(set(targets.tolist())) == tensor_map.tile_bytes == len(targets)
    assert access.whole == mask.all()
    return {int(t): memory[s] if m else -1 for t, s, m in zip(targets, sources, mask, strict=True)}


@st.composite
def copies(draw: Any) -> tuple[TensorMap, bytes, tuple[int, ...], int]:
    rank = draw(st.integers(1, 5))
    dtype, size = draw(st.sampled_from([("u8", 1), ("f16", 2), ("f32", 4), ("f64", 8)]))
    swizzle = draw(st.sampled_from([0, 32, 64, 128]))
    atomicity = draw(st.sampled_from(["16B", "32B", "64B"])) if swizzle == 128 else "16B"
    inner = (
        draw(st.sampled_from([16, 32, 48, 64, 128]))
        if swizzle == 0
        else draw(st.integers(1, swizzle // 16)) * 16
    )
    box = (inner // size, *(draw(st.integers(1, 4)) for _ in range(rank - 1)))
    steps = (1, *(draw(st.integers(1, 3)) for _ in range(rank - 1)))
    dims = tuple(draw(st.integers(1, 9)) if d else draw(st.integers(1, 40)) for d in range(rank))
    strides, pitch = [], -(-dims[0] * size // 16) * 16
    for d in dims[1:]:
        pitch += 16 * draw(st.integers(0, 2))
        strides.append(pitch)
        pitch *= d
    tensor_map = TensorMap(
        dtype, dims, tuple(strides), box, steps, swizzle, atomicity, address=16 * draw(st.integers(0, 4))
    )
    start = tuple(draw(st.integers(-5, d + 2)) for d in dims)
    shared = 128 * draw(st.integers(0, 16))
    memory = np.random.default_rng(0).integers(0, 256, tensor_map.address + pitch + 4096).astype(np.uint8)
    return tensor_map, memory.tobytes(), start, shared


@settings(max_examples=150, deadline=None)
@given(copies())
def test_a_copy_touches_the_bytes_that_the_definition_names(
    case: tuple[TensorMap, bytes, tuple[int, ...], int],
) -> None:
    tensor_map, memory, start, shared = case
    assert copy_by_access(tensor_map, memory, start, shared) == copy_by_hand(
        tensor_map, memory, start, shared
    )


def test_several_copies_at_once_are_the_single_copies() -> None:
    tensor_map = TensorMap("f16", (100, 40), (208,), (32, 8), swizzle=64, address=4096)
    starts = np.array([[0, 0], [96, 36], [-3, 5]])
    targets = np.array([0, 1024, 512])
    together = tile_access(tensor_map, starts, targets)
    assert together.global_address.shape == (3, 32)
    for i in range(3):
        alone = tile_access(tensor_map, starts[i : i + 1], targets[i : i + 1])
        for name in ("global_address", "shared_address", "first", "last"):
            assert (getattr(together, name)[i] == getattr(alone, name)[0]).all()


@settings(max_examples=50, deadline=None)
@given(copies())
def test_the_encoding_is_128_bytes_and_reads_back(
    case: tuple[TensorMap, bytes, tuple[int, ...], int],
) -> None:
    tensor_map = case[0]
    blob = tensor_map.encode()
    assert len(blob) == 128
    assert TensorMap.decode(blob) == tensor_map


def test_a_map_can_be_built_in_zeroed_memory() -> None:
    blob = bytes(128)
    for field, value, ordinal in [
        ("global_address", 0x7F0000001000, 0), ("rank", 2, 0), ("box_dim", 64, 0), ("box_dim", 16, 1),
        ("box_dim", 2, 2), ("global_dim", 512, 0), ("global_dim", 300, 1), ("global_dim", 7, 2),
        ("global_stride", 1024, 0), ("global_stride", 1024 * 300, 1), ("element_stride", 1, 0),
        ("element_stride", 2, 1), ("element_stride", 1, 2), ("elemtype", 10, 0), ("interleave_layout", 0, 0),
        ("swizzle_mode", 3, 0), ("swizzle_atomicity", 1, 0), ("fill_mode", 1, 0),
    ]:  # fmt: skip
        blob = replace_field(blob, field, value, ordinal)
    assert TensorMap.decode(blob) == TensorMap(
        "bf16", (512, 300, 7), (1024, 1024 * 300), (64, 16, 2), (1, 2, 1), 128, "32B", "nan",
        0x7F0000001000,
    )  # fmt: skip


def test_describing_an_array_reverses_the_dimensions() -> None:
    array = np.zeros((6, 20, 64), dtype=np.float16)[:, ::2]
    tensor_map = TensorMap.of(array, (2, 5, 32), swizzle=64)
    assert tensor_map.global_dims == (64, 10, 6)
    assert tensor_map.global_strides == (256, 20 * 128)
    assert tensor_map.box == (32, 5, 2)
    assert tensor_map.element_type == "f16"
    assert tensor_map.array is array
    assert tensor_map.tile_bytes == 2 * 5 * 32 * 2
    assert tensor_map.at(4096).address == 4096


def test_torch_tensors_are_described_too() -> None:
    torch = pytest.importorskip("torch", reason="torch is an optional dependency")
    tensor = torch.zeros(8, 32, dtype=torch.bfloat16)
    tensor_map = TensorMap.of(tensor, (4, 16))
    assert tensor_map.element_type == "bf16"
    assert (tensor_map.global_dims, tensor_map.global_strides, tensor_map.box) == ((32, 8), (64,), (16, 4))


def test_the_traversal_stride_makes_the_tile_smaller() -> None:
    tensor_map = TensorMap("f32", (16, 16), (64,), (4, 7), (1, 2))
    assert tensor_map.tile_shape == (4, 4)
    assert tensor_map.tile_bytes == 4 * 4 * 4


@pytest.mark.parametrize(
    ("element_type", "dtype"), [("f16", np.float16), ("f32", np.float32), ("f64", np.float64)]
)
def test_fills(element_type: str, dtype: type) -> None:
    nan = TensorMap(element_type, (16,), (), (16,), fill="nan").fill_pattern()
    zero = TensorMap(element_type, (16,), (), (16,)).fill_pattern()
    assert len(nan) == len(zero) == 16
    assert np.isnan(np.frombuffer(nan, dtype)).all()
    assert (np.frombuffer(zero, dtype) == 0).all()


def test_tf32_elements_are_rounded_and_ftz_elements_flushed() -> None:
    words = np.array(
        [0x3F801000, 0x3F803000, 0x3F801001, 0x00000001, 0x80000001, 0x7F800000], dtype=np.uint32
    )
    words = np.concatenate([words, np.array([0x7FFFFFFF, 0xFF800001], dtype=np.uint32)])  # NaN

    def loaded(element_type: str) -> list[int]:
        converted = TensorMap(element_type, (16,), (), (16,)).convert_loaded(
            words.view(np.uint8).reshape(-1, 16)
        )
        return [int(x) for x in np.ascontiguousarray(converted).view(np.uint32).reshape(-1)]

    assert loaded("f32") == words.tolist()
    assert loaded("f32.ftz")[3:5] == [0, 0x80000000]
    assert loaded("tf32")[:3] == [0x3F800000, 0x3F804000, 0x3F802000]
    assert loaded("tf32")[5:] == [0x7F800000, 0x7FFFFFFF, 0xFF800001]
    assert loaded("tf32.ftz")[3:5] == [0, 0x80000000]


GOOD: dict[str, Any] = {
    "element_type": "f16",
    "global_dims": (64, 8),
    "global_strides": (128,),
    "box": (32, 8),
}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"element_type": "f8"}, "unknown element type 'f8'"),
        ({"element_type": "b4x16"}, "sub-byte type b4x16 are not simulated"),
        ({"global_strides": ()}, "rank 2 needs 1 global_strides, found 0"),
        ({"global_strides": (120,)}, "multiples of 16 bytes below 2\\*\\*40, found \\(120,\\)"),
        ({"global_dims": ()}, "1 to 5 dimensions, found 0"),
        ({"global_dims": (64, 0)}, "global_dims are 1 to 2\\*\\*32, found \\(64, 0\\)"),
        ({"box": (32, 257)}, "box dimensions are 1 to 256"),
        ({"box": (4, 8)}, "innermost box dimension is a multiple of 16 bytes, found 8 bytes"),
        ({"element_strides": (2, 1)}, "innermost element stride is 1 without interleaving, found 2"),
        ({"element_strides": (1, 9)}, "element_strides are 1 to 8"),
        ({"swizzle": 96}, "swizzle of 0, 32, 64 or 128 bytes is simulated, found 96"),
        ({"swizzle": 32}, "has 64 bytes, more than the 32-byte swizzle"),
        ({"swizzle": 64, "atomicity": "32B"}, "found 32B with 64"),
        ({"fill": "one"}, "fill is 'zero' or 'nan', found 'one'"),
        ({"element_type": "u16", "fill": "nan"}, "fill 'nan' needs a floating-point type, found u16"),
    ],
)
def test_wrong_maps_are_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TensorMap(**{**GOOD, **change})


def test_wrong_uses_are_refused() -> None:
    with pytest.raises(ValueError, match="these 128 bytes are no tensor map"):
        TensorMap.decode(bytes(128))
    with pytest.raises(ValueError, match="interleaved tensor maps are not simulated"):
        TensorMap.decode(replace_field(TensorMap(**GOOD).encode(), "interleave_layout", 1))
    with pytest.raises(ValueError, match=r"tensormap.replace has no field .colour; use one of rank"):
        replace_field(bytes(128), "colour", 1)
    with pytest.raises(ValueError, match=r"the ordinal of .global_stride is 0 to 3, found 4"):
        replace_field(bytes(128), "global_stride", 16, 4)
    with pytest.raises(ValueError, match=r"rank 2 needs coordinates \[copies, 2\], found shape \(1, 3\)"):
        tile_access(TensorMap(**GOOD), np.zeros((1, 3)), np.zeros(1))
    with pytest.raises(ValueError, match="the last dimension of the array must be contiguous"):
        TensorMap.of(np.zeros((8, 64))[:, ::2], (8, 16))
    with pytest.raises(ValueError, match="no tensor-map element type for dtype complex64"):
        TensorMap.of(np.zeros((8, 64), dtype=np.complex64), (8, 16))


def test_the_element_types_have_the_codes_of_the_isa() -> None:
    codes = {
        name: ELEMENT_TYPES.index(name)
        for name in ("u8", "s32", "f16", "f64", "bf16", "tf32.ftz", "b6x16_p32")
    }
    assert codes == {"u8": 0, "s32": 3, "f16": 6, "f64": 9, "bf16": 10, "tf32.ftz": 12, "b6x16_p32": 15}


def test_the_tables_have_the_period_that_the_isa_states() -> None:
    assert {s: 128 * len(t) for s, t in SWIZZLE_TABLES.items() if s} == {32: 256, 64: 512, 128: 1024}
