"""The number formats agree with ml_dtypes on every code point and round as the ISA says, ties included."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest

from tilus.simulator.formats import FORMATS, decode, decode_table, encode, format_of

REFERENCE = {
    "f16": np.float16,
    "bf16": ml_dtypes.bfloat16,
    "e5m2": ml_dtypes.float8_e5m2,
    "e4m3": ml_dtypes.float8_e4m3fn,
    "e3m2": ml_dtypes.float6_e3m2fn,
    "e2m3": ml_dtypes.float6_e2m3fn,
    "e2m1": ml_dtypes.float4_e2m1fn,
    "ue8m0": ml_dtypes.float8_e8m0fnu,
}
ROUNDED = [name for name in REFERENCE if name != "ue8m0"]


def all_codes(name: str) -> np.ndarray:
    fmt = FORMATS[name]
    return np.arange(1 << fmt.bits).astype(fmt.storage)


def finite_values(name: str) -> np.ndarray:
    """All finite values of a format in increasing order, zero once."""
    values = decode(all_codes(name), name, np.float64)
    return np.unique(values[np.isfinite(values)])


def same(a: np.ndarray, b: np.ndarray) -> bool:
    return bool(((a == b) & (np.signbit(a) == np.signbit(b)) | (np.isnan(a) & np.isnan(b))).all())


@pytest.mark.parametrize("name", REFERENCE)
def test_every_code_decodes_as_ml_dtypes_says(name: str) -> None:
    codes = all_codes(name)
    with np.errstate(invalid="ignore"):  # signalling NaN
        expected = codes.view(REFERENCE[name]).astype(np.float64)
        narrow = expected.astype(np.float32)
    assert same(decode(codes, name, np.float64), expected)
    assert same(decode(codes, name), narrow)


def test_unsigned_e4m3_is_the_positive_half_of_e4m3() -> None:
    codes = np.arange(128).astype(np.uint8)
    assert same(decode(codes, "ue4m3"), decode(codes, "e4m3"))


def test_codes_wider_than_the_format_ignore_the_upper_bits() -> None:
    codes = np.arange(256).astype(np.uint8)
    assert same(decode(codes, "e2m3"), decode(codes & 63, "e2m3"))
    assert same(decode(codes, "e2m1"), decode(codes & 15, "e2m1"))


def test_tf32_ignores_the_low_thirteen_bits() -> None:
    words = np.array([0x3F801FFF, 0x3F802000, 0xBF80FFFF, 0x7F800000], dtype=np.uint32)
    assert decode(words, "tf32").tolist() == [1.0, 1.0009765625, -1.0068359375, np.inf]


@pytest.mark.parametrize("name", ROUNDED)
@pytest.mark.parametrize("rounding", ["rn", "rz", "rm", "rp", "rna"])
def test_every_code_encodes_to_itself(name: str, rounding: str) -> None:
    codes = all_codes(name)
    values = decode(codes, name)
    keep = ~np.isnan(values)
    assert (encode(values[keep], name, rounding) == codes[keep]).all()


@pytest.mark.parametrize("name", ROUNDED)
def test_nearest_even_agrees_with_ml_dtypes(name: str) -> None:
    dtype = np.float32  # ml_dtypes rounds float64 twice
    random = np.random.default_rng(1)
    values = finite_values(name)
    ties = (values[1:] + values[:-1]) / 2
    around = np.concatenate(
        [ties, np.nextafter(ties.astype(dtype), np.inf), np.nextafter(ties.astype(dtype), -np.inf)]
    )
    spread = random.standard_normal(20000) * np.exp2(random.integers(-30, 20, 20000))
    limit = values[-1]
    tested = np.concatenate([values, around, spread]).astype(dtype)
    tested = tested[np.abs(tested) <= limit]
    expected = tested.astype(REFERENCE[name]).view(FORMATS[name].storage)
    if FORMATS[name].bits < 8:
        expected = expected & ((1 << FORMATS[name].bits) - 1)
    assert (encode(tested, name) == expected).all()
    assert (encode(tested, name, satfinite=True) == expected).all()


@pytest.mark.parametrize("name", [*ROUNDED, "tf32"])
def test_directed_roundings_bracket_the_value(name: str) -> None:
    random = np.random.default_rng(2)
    codes = all_codes(name) if name != "tf32" else random.integers(0, 2**19, 4000).astype(np.uint32) << 13
    values = decode(codes, name, np.float64)
    values = np.unique(values[np.isfinite(values)])
    low, high = values[:-1], values[1:]
    low, high = low[high - low > 0], high[high - low > 0]
    if name == "tf32":  # neighbours, not just two numbers of the sample
        low = low[low > 0]
        high = decode(low.astype(np.float32).view(np.uint32) + np.uint32(1 << 13), name, np.float64)
        low, high = low[np.isfinite(high)], high[np.isfinite(high)]
    inside = low + (high - low) * random.uniform(0.01, 0.49, low.shape)
    beyond = low + (high - low) * random.uniform(0.51, 0.99, low.shape)
    middle = (low + high) / 2

    def check(x: np.ndarray, rounding: str, expected: np.ndarray) -> None:
        found = decode(encode(x, name, rounding), name, np.float64)
        assert (found == expected).all(), rounding

    toward_zero = np.where(low >= 0, low, high)
    away = np.where(low >= 0, high, low)
    for x in (inside, beyond, middle):
        check(x, "rm", low)
        check(x, "rp", high)
        check(x, "rz", toward_zero)
    for rounding in ("rn", "rna"):
        check(inside, rounding, low)
        check(beyond, rounding, high)
    check(middle, "rna", away)


@pytest.mark.parametrize("name", [*ROUNDED, "tf32"])
def test_float64_is_rounded_once(name: str) -> None:
    fmt = FORMATS[name]
    one = float(decode(encode(np.ones(1), name), name)[0])
    above_the_tie = one + 2.0 ** -(fmt.mantissa_bits + 1) + 2.0**-40
    assert decode(encode(np.array([above_the_tie]), name), name).tolist() == [1 + 2.0**-fmt.mantissa_bits]


def test_stochastic_rounding_adds_the_random_bits_to_the_discarded_bits() -> None:
    # 1 + 5/8 of the last place of f16, in 13 discarded bits.
    value = np.full(8192, 1 + 0.625 * 2.0**-10, dtype=np.float32)
    random_bits = np.arange(8192).astype(np.uint32)
    codes = encode(value, "f16", "rs", random_bits=random_bits, random_width=13)
    up = codes == 0x3C01
    assert (up == (random_bits + 5120 >= 8192)).all()
    assert (codes[~up] == 0x3C00).all()
    negative = encode(-value, "f16", "rs", random_bits=random_bits, random_width=13)
    assert (negative == codes | 0x8000).all()


OVERFLOW = {"f16": 65520.0, "bf16": 3.4e38, "e5m2": 61440.0, "tf32": 3.4027e38}


@pytest.mark.parametrize("name", OVERFLOW)
@pytest.mark.parametrize("factor", [1.0, 64.0])
def test_overflow_gives_infinity_or_the_largest_number_by_rounding(name: str, factor: float) -> None:
    big = np.array([OVERFLOW[name], -OVERFLOW[name]], dtype=np.float64) * factor
    largest = finite_values(name)[-1] if name != "tf32" else float(np.float32(3.4011621e38))
    found = {
        r: decode(encode(big, name, r), name, np.float64).tolist() for r in ("rn", "rz", "rm", "rp", "rna")
    }
    assert found == {
        "rn": [np.inf, -np.inf],
        "rna": [np.inf, -np.inf],
        "rz": [largest, -largest],
        "rm": [largest, -np.inf],
        "rp": [np.inf, -largest],
    }
    infinite = np.array([np.inf, -np.inf])
    for rounding in found:
        assert decode(encode(infinite, name, rounding), name).tolist() == [np.inf, -np.inf]
        saturated = decode(encode(infinite, name, rounding, satfinite=True), name, np.float64)
        assert saturated.tolist() == [largest, -largest]
    assert decode(encode(big, name, satfinite=True), name, np.float64).tolist() == [largest, -largest]


@pytest.mark.parametrize(
    ("name", "largest"), [("e4m3", 448.0), ("e5m2", 57344.0), ("e3m2", 28.0), ("e2m3", 7.5), ("e2m1", 6.0)]
)
def test_satfinite_keeps_the_sign_of_large_values(name: str, largest: float) -> None:
    values = np.array([1e30, -1e30, np.inf, -np.inf, largest, -largest], dtype=np.float32)
    found = decode(encode(values, name, satfinite=True), name)
    assert found.tolist() == [largest, -largest] * 3


@pytest.mark.parametrize(
    ("name", "code"),
    [
        ("f16", 0x7FFF),
        ("bf16", 0x7FFF),
        ("tf32", 0x7FFFFFFF),
        ("e4m3", 0x7F),
        ("e5m2", 0x7F),
        ("e3m2", 0x1F),  # no NaN: the largest number
        ("e2m3", 0x1F),
        ("e2m1", 0x07),
    ],
)
@pytest.mark.parametrize("satfinite", [False, True])
@pytest.mark.parametrize("relu", [False, True])
def test_nan_becomes_the_canonical_nan(name: str, code: int, satfinite: bool, relu: bool) -> None:
    nans = np.array([0x7FC00000, 0xFFC00001, 0x7F800001], dtype=np.uint32).view(np.float32)
    assert encode(nans, name, satfinite=satfinite, relu=relu).tolist() == [code] * 3


@pytest.mark.parametrize("name", [*ROUNDED, "tf32"])
def test_relu_clamps_negative_results_to_plus_zero(name: str) -> None:
    values = np.array([-1.0, -0.0, -np.inf, 0.0, 1.5], dtype=np.float32)
    clamped = encode(values, name, relu=True, satfinite=True)
    assert clamped.tolist() == [0, 0, 0, 0, int(encode(values[-1:], name)[0])]


def test_ue8m0_rounds_to_powers_of_two() -> None:
    values = np.array([1.0, 1.5, 2.0, 3.999, 0.75, 2.0**-127, 2.0**-130, 0.0], dtype=np.float32)
    assert encode(values, "ue8m0", "rz").tolist() == [127, 127, 128, 128, 126, 0, 0, 0]
    assert encode(values, "ue8m0", "rp").tolist() == [127, 128, 128, 129, 127, 0, 0, 0]
    top = np.array([1.9 * 2.0**127, np.inf, np.nan], dtype=np.float32)
    assert encode(top, "ue8m0", "rp").tolist() == [255, 255, 255]
    assert encode(top, "ue8m0", "rp", satfinite=True).tolist() == [254, 254, 255]
    assert encode(top, "ue8m0", "rz").tolist() == [254, 255, 255]


def test_the_fast_paths_agree_with_the_general_one() -> None:
    random = np.random.default_rng(3)
    words = random.integers(0, 2**32, 100000).astype(np.uint32)
    values = words.view(np.float32)
    values = values[np.isfinite(values)]
    for name in ("f16", "bf16"):
        inside = values[np.abs(values) < float(finite_values(name)[-1])]
        assert (encode(inside, name) == encode(inside, name, satfinite=True)).all()
        general = encode(values.astype(np.float64), name) if name == "bf16" else None
        assert general is None or (encode(values, name) == general).all()


def test_tables_cannot_be_written() -> None:
    with pytest.raises(ValueError, match="read-only"):
        decode_table("f16")[0] = 1.0


def test_wrong_names_are_refused_with_the_names_that_exist() -> None:
    with pytest.raises(ValueError, match="unknown number format 'e4m4'; use one of f16, bf16"):
        format_of("e4m4")
    with pytest.raises(ValueError, match="unknown rounding 'up'; use one of rn, rz"):
        encode(np.ones(1), "f16", "up")
    with pytest.raises(ValueError, match="ue8m0 is rounded with 'rz' or 'rp', not 'rn'"):
        encode(np.ones(1), "ue8m0")
