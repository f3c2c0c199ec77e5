"""Bit-compact packing of every width, against one large integer per row."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.dtypes import reference
from tilus import dtypes
from tilus.dtypes import DType, pack, unpack

WIDTHS = [1, 2, 3, 4, 5, 6, 7, 8, 16, 32, 64]


@given(st.data(), st.sampled_from(WIDTHS))
def test_a_row_is_one_little_endian_number(data: st.DataObject, bits: int) -> None:
    codes = data.draw(st.lists(st.integers(0, 2**bits - 1), max_size=70))
    array = np.array(codes, f"uint{max(8, bits)}")
    packed = pack(array, f"uint{bits}")
    assert packed.dtype == np.uint8
    assert packed.tobytes() == reference.pack_row(codes, bits)
    again = unpack(packed, f"uint{bits}", len(codes))
    assert again.dtype == array.dtype
    np.testing.assert_array_equal(again, array)


@pytest.mark.parametrize("dtype", dtypes.NAMED, ids=str)
def test_every_type_packs_by_its_bits(dtype: DType) -> None:
    random = np.random.default_rng(dtype.bits)
    codes = random.integers(0, dtype.code_mask, (3, 13), dtype=np.uint64, endpoint=True).astype(
        dtype.code_numpy
    )
    packed = pack(codes, dtype)
    assert packed.shape == (3, (13 * dtype.bits + 7) // 8)
    assert packed.shape[-1] == dtype.packed_nbytes(13)
    for row, codes_of_row in zip(packed, codes):
        assert row.tobytes() == reference.pack_row(codes_of_row.tolist(), dtype.bits)
    np.testing.assert_array_equal(unpack(packed, dtype, 13), codes)


@pytest.mark.parametrize("bits", WIDTHS[:8])
def test_long_rows_pack_like_numpys_bits(bits: int) -> None:
    codes = np.random.default_rng(bits).integers(0, 1 << bits, 100_003, dtype=np.uint8)
    planes = np.unpackbits(codes[:, None], axis=1, bitorder="little")[:, :bits]
    expected = np.packbits(planes.reshape(-1), bitorder="little")
    packed = pack(codes, f"u{bits}")
    np.testing.assert_array_equal(packed, expected)
    np.testing.assert_array_equal(unpack(packed, f"u{bits}", len(codes)), codes)


def test_two_4_bit_elements_share_a_byte_with_the_first_in_the_lower_half() -> None:
    np.testing.assert_array_equal(pack([0x1, 0xF, 0xA], "u4"), [0xF1, 0x0A])


def test_a_3_bit_element_may_straddle_bytes() -> None:
    np.testing.assert_array_equal(pack([0, 0, 0b101, 0, 0, 0b011], "e1m1"), [0b01000000, 0b10000001, 0b1])


@given(st.data(), st.sampled_from(WIDTHS), st.lists(st.integers(0, 5), min_size=1, max_size=4))
def test_only_the_last_axis_is_packed(data: st.DataObject, bits: int, shape: list[int]) -> None:
    random = np.random.default_rng(data.draw(st.integers(0, 99)))
    codes = random.integers(0, 2**bits - 1, shape, np.uint64, endpoint=True).astype(f"uint{max(8, bits)}")
    packed = pack(codes, f"uint{bits}")
    assert packed.shape == (*shape[:-1], -(-shape[-1] * bits // 8))
    for index in np.ndindex(*shape[:-1]):
        assert packed[index].tobytes() == reference.pack_row(codes[index].tolist(), bits)
    np.testing.assert_array_equal(unpack(packed, f"uint{bits}", shape[-1]), codes)


@pytest.mark.parametrize("bits", WIDTHS)
def test_strided_and_transposed_arrays_pack_as_their_copies(bits: int) -> None:
    random = np.random.default_rng(bits)
    wide = random.integers(0, 2**bits - 1, (20, 24), np.uint64, endpoint=True).astype(f"uint{max(8, bits)}")
    for view in (wide.T, wide[:, ::3], wide[::-1, ::-1]):
        packed = pack(view, f"uint{bits}")
        np.testing.assert_array_equal(packed, pack(view.copy(), f"uint{bits}"))
        stretched = np.repeat(packed, 2, axis=-1)[:, ::2]
        np.testing.assert_array_equal(unpack(stretched, f"uint{bits}", view.shape[-1]), view)


@pytest.mark.parametrize("bits", WIDTHS)
def test_results_share_no_memory_with_their_source(bits: int) -> None:
    codes = np.ones(16, f"uint{max(8, bits)}")
    packed = pack(codes, f"uint{bits}")
    assert not np.shares_memory(packed, codes)
    assert not np.shares_memory(unpack(packed, f"uint{bits}", 16), packed)


def test_bits_after_the_last_element_are_written_as_zero_and_ignored_when_read() -> None:
    assert pack([7, 7, 7], "u3").tolist() == [0xFF, 0x01]
    assert unpack(np.array([0xFF, 0xFF], np.uint8), "u3", 3).tolist() == [7, 7, 7]


def test_codes_may_come_in_any_integer_type() -> None:
    np.testing.assert_array_equal(pack(np.array([1, 2, 3], np.int64), "u4"), [0x21, 0x03])
    np.testing.assert_array_equal(pack(np.array([0x1234], np.int64), "u16"), [0x34, 0x12])


def test_a_code_that_is_too_wide_is_refused() -> None:
    with pytest.raises(
        ValueError, match="codes of uint4 have 4 bits, but one is 16: encode the values first"
    ):
        pack([16], "u4")
    with pytest.raises(ValueError, match="codes of uint16 have 16 bits, but one is 65536"):
        pack([65536], "u16")


@pytest.mark.parametrize(("count", "nbytes"), [(3, 3), (3, 1), (0, 1), (-1, 0)])
def test_unpack_wants_the_bytes_of_the_count(count: int, nbytes: int) -> None:
    expected = f"{count} elements of uint3 take .* bytes, but the last axis has {nbytes}"
    with pytest.raises(ValueError, match=expected):
        unpack(np.zeros(nbytes, np.uint8), "u3", count)


def test_unpack_wants_bytes() -> None:
    with pytest.raises(TypeError, match=r"packed uint3 must be an array of uint8, not of int64"):
        unpack(np.zeros(3, np.int64), "u3", 8)


def test_a_single_number_is_no_row() -> None:
    with pytest.raises(ValueError, match="must have one axis at least"):
        pack(np.uint8(3), "u3")
    with pytest.raises(ValueError, match="must have one axis at least"):
        unpack(np.uint8(3), "u3", 1)
