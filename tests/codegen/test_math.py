"""Math functions keep the error bounds that `tilus.codegen.math` states, against float64."""

from __future__ import annotations

import math

import numpy as np
import pytest

from tests.codegen.harness import compile_module, run_codes
from tilus import dtypes
from tilus.codegen.llvm_text import V, Writer
from tilus.codegen.math import float_function
from tilus.codegen.registers import pack, unpack
from tilus.codegen.target import Target
from tilus.dtypes import DType
from tilus.errors import TypeMismatch

_erf = np.vectorize(math.erf, otypes=[np.float64])
REFERENCE = {
    "exp": np.exp, "exp2": np.exp2, "log": np.log, "log2": np.log2, "sin": np.sin, "cos": np.cos, "tanh": np.tanh,
    "erf": _erf, "sqrt": np.sqrt, "rsqrt": lambda x: 1 / np.sqrt(x), "rcp": lambda x: 1 / x, "floor": np.floor,
    "ceil": np.ceil, "trunc": np.trunc, "round": np.rint, "fast_exp": np.exp, "fast_exp2": np.exp2,
    "fast_rcp": lambda x: 1 / x,
}  # fmt: skip
# Units in the last place on the simulator, whose approximate instructions round once: what is left is our own error.
UNITS = {
    "exp": 1.0, "exp2": 0.51, "log": 1.0, "log2": 1.0, "sin": 1.5, "cos": 1.5, "tanh": 2.0, "erf": 1.5, "sqrt": 0.5,
    "rsqrt": 0.51, "rcp": 0.5, "floor": 0.0, "ceil": 0.0, "trunc": 0.0, "round": 0.0,
}  # fmt: skip
# Numbers below the normal range are zero to these.
FAST = {"fast_exp": 64.0, "fast_exp2": 0.51, "fast_rcp": 0.51}


def applying(kind: str, dtype: DType, count: int):  # type: ignore[no-untyped-def]
    def emit(w: Writer, target: Target, regs: tuple[V, ...]) -> tuple[V, ...]:
        return pack(
            w, dtype, [float_function(w, target, kind, dtype, e) for e in unpack(w, dtype, regs, count)]
        )

    return emit


def run(kind: str, values: np.ndarray, dtype: DType = dtypes.float32, target: str = "sm_80") -> np.ndarray:
    """Return the function of values that the dtype holds, as float64."""
    count = 2 if dtype.bits == 16 else 1
    codes = dtypes.encode(values, dtype)
    made = run_codes(target, dtype, dtype, codes, applying(kind, dtype, count), count)
    return dtypes.decode(made, dtype)


def inputs(kind: str) -> np.ndarray:
    """float32 numbers over the range in which the function's error is bounded."""
    rng = np.random.default_rng(len(kind))
    spread = np.ldexp(rng.uniform(1, 2, 20000), rng.integers(-40, 8, 20000)) * rng.choice([-1, 1], 20000)
    near = {
        "exp": rng.uniform(-87, 88.7, 20000),
        "exp2": rng.uniform(-125, 127, 20000),
        "log": np.concatenate([rng.uniform(0.4, 2.2, 20000), np.ldexp(1.0, np.arange(-149, 128))]),
        "sin": np.concatenate([rng.uniform(-1e5, 1e5, 20000), np.arange(-60000, 60000, 7) * np.pi / 2]),
        "tanh": rng.uniform(-1, 1, 20000),
        "erf": rng.uniform(-4.5, 4.5, 20000),
    }
    near["log2"], near["cos"] = near["log"], near["sin"]
    near["fast_exp"], near["fast_exp2"] = near["exp"], near["exp2"]
    values = np.concatenate([spread, near.get(kind, spread)])
    if kind in ("log", "log2", "sqrt", "rsqrt"):
        values = np.abs(values)
    if kind.endswith(("exp", "exp2")):
        values = values[np.abs(values) < 87]
    return values.astype(np.float32).astype(np.float64)


def units_off(made: np.ndarray, exact: np.ndarray) -> np.ndarray:
    """The error in units in the last place of float32 at the exact result."""
    _, exponent = np.frexp(np.abs(exact))
    unit = np.ldexp(1.0, np.maximum(exponent - 24, -149))
    return np.abs(made - exact) / unit


@pytest.mark.parametrize("kind", UNITS | FAST)
def test_float32_keeps_its_error_bound(kind: str) -> None:
    values = inputs(kind)
    errors = units_off(run(kind, values), REFERENCE[kind](values))
    worst = int(np.argmax(errors))
    assert errors[worst] <= (UNITS | FAST)[kind], (
        f"{kind}({values[worst]!r}) is off by {errors[worst]:.2f} units"
    )


def test_exp_of_results_below_the_normal_range_is_near() -> None:
    values = np.linspace(-104, -87.4, 5000).astype(np.float32).astype(np.float64)
    assert units_off(run("exp", values), np.exp(values)).max() <= 1.0


SPECIAL = np.array([0.0, -0.0, np.inf, -np.inf, np.nan, 1.0, -1.0, 3e38, -3e38, 1e-45, -1e-45, 200.0, -200.0])


@pytest.mark.parametrize("kind", [k for k in UNITS if k not in ("sin", "cos")])
def test_special_values_of_float32(kind: str) -> None:
    with np.errstate(all="ignore"):
        exact = REFERENCE[kind](SPECIAL.astype(np.float32).astype(np.float64)).astype(np.float32)
    made = run(kind, SPECIAL).astype(np.float32)
    np.testing.assert_array_equal(np.isnan(made), np.isnan(exact))
    np.testing.assert_allclose(made, exact, rtol=3e-7, atol=1.5e-45)
    zeros = (exact == 0) & (kind not in ("exp", "exp2"))
    np.testing.assert_array_equal(np.signbit(made[zeros]), np.signbit(exact[zeros]))


def test_the_fast_ones_give_zero_for_what_is_below_the_normal_range() -> None:
    np.testing.assert_array_equal(run("fast_exp2", np.array([-126.0, -126.5, -140.0])), [2.0**-126, 0.0, 0.0])
    np.testing.assert_array_equal(run("fast_exp", np.array([-88.0, -np.inf, np.inf, 0.0])), [0, 0, np.inf, 1])
    np.testing.assert_array_equal(run("fast_rcp", np.array([2.0**127, 1e-40, -0.0])), [0.0, np.inf, -np.inf])
    assert np.isnan([run(kind, np.array([np.nan])) for kind in FAST]).all()
    assert np.abs(run("fast_exp", np.linspace(-1, 1, 999)) / np.exp(np.linspace(-1, 1, 999)) - 1).max() < 3e-7


@pytest.mark.parametrize("kind", FAST)
def test_the_fast_ones_are_one_instruction_or_two(kind: str) -> None:
    ptx = compile_module("sm_80", dtypes.float32, dtypes.float32, 1, applying(kind, dtypes.float32, 1))
    name = "rcp" if kind == "fast_rcp" else "ex2"
    assert str(ptx).count(f"{name}.approx.ftz.f32") == 1


@pytest.mark.parametrize("kind", ["sin", "cos"])
def test_sine_and_cosine_beyond_their_range(kind: str) -> None:
    rng = np.random.default_rng(0)
    middle = rng.uniform(1e5, 1e6, 5000).astype(np.float32).astype(np.float64)
    assert np.abs(run(kind, middle) - REFERENCE[kind](middle)).max() < 1e-6
    far = np.array([1e7, -1e9, 1e20, 3e38])
    assert np.abs(run(kind, far)).max() <= 1.0
    assert np.isnan(run(kind, np.array([np.inf, -np.inf, np.nan]))).all()
    small = run(kind, np.array([0.0, -0.0, 1e-45, -1e-30]))
    expected = [0.0, -0.0, 1e-45, -1e-30] if kind == "sin" else [1.0] * 4
    np.testing.assert_allclose(small, expected, rtol=1e-6, atol=5e-46)
    if kind == "sin":
        assert np.signbit(small).tolist() == [False, True, False, True]


@pytest.mark.parametrize("dtype", [dtypes.float16, dtypes.bfloat16], ids=str)
@pytest.mark.parametrize("kind", [k for k in UNITS if UNITS[k]])
def test_every_16_bit_number_is_within_a_unit(kind: str, dtype: DType) -> None:
    codes = np.arange(1 << 16).astype(np.uint16)
    values = dtypes.decode(codes, dtype)
    with np.errstate(all="ignore"):
        exact = REFERENCE[kind](values)
        if kind in ("sin", "cos"):
            inside = np.abs(values) <= 1e5
            codes, values, exact = codes[inside], values[inside], exact[inside]
    made = run_codes("sm_80", dtype, dtype, codes, applying(kind, dtype, 2), 2)
    got = dtypes.decode(made, dtype)
    rounded = dtypes.decode(dtypes.encode(exact, dtype), dtype)
    np.testing.assert_array_equal(np.isnan(got), np.isnan(rounded))
    np.testing.assert_array_equal(np.isinf(got), np.isinf(rounded))
    # Rounding twice may end at the neighbour, never farther off.
    finite = np.isfinite(rounded)
    steps = np.abs(_steps(made[finite]) - _steps(dtypes.encode(exact, dtype)[finite]))
    assert steps.max() <= 1
    assert (steps == 0).mean() > 0.98


def _steps(codes: np.ndarray) -> np.ndarray:
    """Number codes of 16-bit floats in the order of their values; both zeros are one."""
    wide = codes.astype(np.int64)
    return np.where(wide >= 1 << 15, (1 << 15) - wide, wide)


@pytest.mark.parametrize("dtype", [dtypes.float16, dtypes.bfloat16, dtypes.float32, dtypes.float64], ids=str)
@pytest.mark.parametrize("kind", ["isnan", "isinf"])
def test_classification(kind: str, dtype: DType) -> None:
    def emit(w: Writer, target: Target, regs: tuple[V, ...]) -> tuple[V, ...]:
        (x,) = unpack(w, dtype, regs, 1)
        return (float_function(w, target, kind, dtype, x),)

    values = np.array([0.0, -1.5, np.inf, -np.inf, np.nan])
    made = run_codes("sm_75", dtype, dtypes.boolean, dtypes.encode(values, dtype), emit, 1)
    np.testing.assert_array_equal(made.astype(bool), getattr(np, kind)(values))


@pytest.mark.parametrize("kind", ["sqrt", "rsqrt", "rcp", "floor", "ceil", "trunc", "round"])
def test_float64_functions_are_exact_to_a_unit(kind: str) -> None:
    values = np.array([0.25, 2.0, 3.7, 1e300, 1e-300, 12345.678])
    made = run_codes("sm_80", dtypes.float64, dtypes.float64, dtypes.encode(values, dtypes.float64),
                     applying(kind, dtypes.float64, 1), 1)  # fmt: skip
    np.testing.assert_allclose(dtypes.decode(made, dtypes.float64), REFERENCE[kind](values), rtol=3e-16)


def test_a_function_that_float64_lacks_is_refused() -> None:
    with pytest.raises(TypeMismatch, match="exp does not take float64"):
        compile_module("sm_80", dtypes.float64, dtypes.float64, 1, applying("exp", dtypes.float64, 1))


@pytest.mark.parametrize("target", ["sm_75", "sm_90a", "sm_120a"])
def test_the_assembler_takes_every_function(target: str) -> None:
    def emit(w: Writer, machine: Target, regs: tuple[V, ...]) -> tuple[V, ...]:
        x = regs[0]
        for kind in UNITS | FAST:
            x = float_function(w, machine, kind, dtypes.float32, x)
        return (x,)

    compile_module(target, dtypes.float32, dtypes.float32, 1, emit, check=True)
