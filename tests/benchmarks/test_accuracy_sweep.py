"""A part of the sweep over all weight types and forms, and that its limits would notice mistakes."""

from __future__ import annotations

import importlib
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from tilus.ops import QuantizedWeight  # noqa: E402

FOLDER = str(Path(__file__).parents[2] / "benchmarks")


def sweep() -> Any:
    """Import the benchmark."""
    sys.path.insert(0, FOLDER)
    try:
        return importlib.import_module("accuracy_sweep")
    finally:
        sys.path.remove(FOLDER)


def test_the_cases_meet_every_type_in_every_form() -> None:
    cases = list(sweep().cases())
    assert len({case.dtype for case in cases}) == 45
    assert {case.activations for case in cases} == {"float16", "bfloat16", "int8", "float8_e4m3"}
    assert {case.scales for case in cases} == {"float16", "float8_e4m3", "float8_e8m0"}
    assert {(case.group, case.m) for case in cases} == {
        (group, m) for group in (16, 32, 64, 128, 256, -1) for m in (1, 7, 16, 33, 131)
    }
    for dtype in ("uint4", "int3", "float6_e3m2", "nf4"):
        mine = [case for case in cases if case.dtype == dtype]
        assert {case.target for case in mine} == {"sm_80", "sm_89", "sm_90a"}
        assert {case.processors for case in mine} == {1, 132}
        assert len({case.n for case in mine}) == 5
    # The quick ones have each form once.
    quick = list(sweep().cases(quick=True))
    assert 5 * len(quick) == len(cases)
    assert {case.m for case in quick} == {1, 7, 16, 33, 131}


@pytest.mark.parametrize("case", list(sweep().cases(quick=True))[7::31], ids=lambda case: case.form)
def test_products_are_within_what_their_roundings_allow(case: Any) -> None:
    row = sweep().run(case)
    assert row.failure == ""
    assert 0 < row.share <= 1


@pytest.mark.parametrize(
    ("dtype", "scales", "group", "m"),
    [("int8", "float16", 32, 7), ("int8", "float16", -1, 1), ("float6_e1m4", "float8_e8m0", 32, 1)],
)
def test_a_depth_that_is_no_multiple_of_a_unit(dtype: str, scales: str, group: int, m: int) -> None:
    """What fills a unit up has the code 0, which is -128 as an int8 is stored, and a scale of 2**-127."""
    wanted = (dtype, "float16", scales, group, m)
    case = next(c for c in sweep().cases() if (c.dtype, c.activations, c.scales, c.group, c.m) == wanted)
    assert case.k % 128
    assert sweep().run(case).failure == ""


def one(**changes: Any) -> Any:
    case = next(
        c for c in sweep().cases() if (c.dtype, c.activations, c.group, c.m) == ("uint4", "float16", 32, 7)
    )
    return replace(case, processors=1, **changes)


@pytest.mark.parametrize("mistake", ["zeros", "shifted", "one code", "one zero point", "nan"])
@pytest.mark.parametrize("activations", ["float16", "bfloat16", "int8", "float8_e4m3"])
def test_a_mistake_is_outside_the_limits(
    mistake: str, activations: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = sweep()

    def wrong(case: Any, a: Any, weight: QuantizedWeight) -> torch.Tensor:
        values = weight.dequantize()
        if mistake == "one code":
            # Of an element that some row holds alone.
            alone = int(module.values_of(a)[2].abs().argmax())
            values[alone, 0] += module.scales_of(weight)[alone // weight.group_size, 0] * weight.alpha
        elif mistake == "one zero point":
            values[: weight.group_size, 1] += module.scales_of(weight)[0, 1] * weight.alpha
        exact = (module.values_of(a) @ values).half()
        if mistake == "nan":
            exact[3, 3] = torch.nan
        return {"zeros": torch.zeros_like(exact), "shifted": exact.roll(1, 1)}.get(mistake, exact)

    monkeypatch.setattr(module, "product", wrong)
    row = module.run(one(activations=activations, zero=True, seed=5))
    assert row.share > 1
    assert "times what is allowed" in row.failure


def test_the_right_product_in_float64_is_inside_the_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    module = sweep()
    monkeypatch.setattr(
        module, "product", lambda case, a, weight: (module.values_of(a) @ weight.dequantize()).half()
    )
    assert 0 < module.run(one()).share <= 1


def test_a_launch_that_fails_is_said_and_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    module = sweep()

    def fails(*arguments: Any) -> torch.Tensor:
        raise RuntimeError("a race\nand more")

    monkeypatch.setattr(module, "product", fails)
    row = module.run(one())
    assert row.failure == "RuntimeError: a race"
    assert module.summary([row])["failed"] == 1


def test_integer_results_are_compared_exactly(monkeypatch: pytest.MonkeyPatch) -> None:
    module = sweep()
    case = one(activations="int8")
    weight = module.weight_of(case)
    assert module.integers(case, weight) == ""
    monkeypatch.setattr(
        module, "product", lambda case, a, weight: (module.values_of(a) @ weight.dequantize() + 1).half()
    )
    assert module.integers(case, weight) == "an integer result is not exact"
