"""Where the ops take a schedule that was tuned or ships, and where they rather keep their own."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch

from tests.ops.support import check_product
from tilus import dtypes
from tilus.codegen import target
from tilus.codegen.figures import figures
from tilus.ops import matmul as matmul_op
from tilus.ops import quantize, tuned
from tilus.ops.matmul import Schedule as PlainSchedule
from tilus.ops.matmul import known_plain_schedule, known_schedule
from tilus.ops.quantized_matmul import call_of
from tilus.ops.quantized_matmul import known_schedule as known_quantized
from tilus.ops.quantized_schedule import Schedule, WeightForm
from tilus.ops.quantized_wgmma import WgmmaSchedule
from tilus.ops.schedules import MOST_ACCUMULATORS, hopper_schedule

HOPPER = target("sm_90a")
PROCESSORS = figures("H200").processors


@pytest.fixture(autouse=True)
def nothing_tuned(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TILUS_CACHE_DIR", str(tmp_path))
    tuned.forget()


def heuristic(m: int, n: int, k: int) -> object:
    return hopper_schedule(m, n, k, 1, 16, 16, HOPPER, PROCESSORS)


def known(m: int, n: int, k: int, *, most: int = MOST_ACCUMULATORS, out_bits: int = 16) -> object:
    return known_schedule(
        hopper_schedule(m, n, k, 1, 16, 16, HOPPER, PROCESSORS),
        m,
        n,
        k,
        16,
        out_bits,
        HOPPER,
        PROCESSORS,
        most,
        "",
    )


@pytest.mark.parametrize("name", ["sm_80", "sm_89", "sm_90a"])
def test_matmul_takes_what_ships_for_the_very_sizes(name: str) -> None:
    data = json.loads((tuned.DEFAULTS / f"matmul-{name}.json").read_text(encoding="utf-8"))
    assert data["entries"]
    for bits, (m, n, k), which in data["entries"]:
        wanted = None if which is None else data["schedules"][which]
        shipped = tuned.lookup("matmul", name, {"bits": bits, "m": m, "n": n, "k": k})
        assert shipped == wanted
        if name != "sm_90a":
            found = known_plain_schedule(m, n, k, bits, target(name), "")
            assert found == (None if wanted is None else PlainSchedule(**wanted))


def test_matmul_keeps_its_own_where_the_estimate_is_much_better_or_nothing_fits() -> None:
    slow = {"block_m": 64, "block_n": 64, "block_k": 64, "stages": 2, "consumers": 1}
    with tuned.forced("matmul", slow):
        assert known(8192, 8192, 8192) is None
    with tuned.forced("matmul", vars(heuristic(8192, 8192, 8192))):
        assert known(8192, 8192, 8192) == heuristic(8192, 8192, 8192)
    large = {"block_m": 128, "block_n": 256, "block_k": 64, "stages": 8}
    with tuned.forced("matmul", large):
        assert known(8192, 8192, 8192) is None, "it needs more shared memory than there is"
    with tuned.forced("matmul", {**large, "stages": 3, "cluster_m": 2}):
        assert known(8192, 8192, 8192) is not None
        assert known(8192, 8192, 8192, most=96) is None, "its sums leave no registers for the epilogue"


def test_older_targets_have_schedules_of_their_own() -> None:
    own = {"block_m": 64, "block_n": 64, "block_k": 32, "stages": 3, "warps": 4}
    with tuned.forced("matmul", own):
        assert known_plain_schedule(4096, 4096, 4096, 16, target("sm_80"), "") == PlainSchedule(**own)
        assert known_plain_schedule(4096, 4096, 4096, 16, HOPPER, "") is None


@pytest.mark.parametrize("name", ["sm_80", "sm_89", "sm_90a"])
def test_quantized_matmul_takes_what_ships(name: str) -> None:
    data = json.loads((tuned.DEFAULTS / f"quantized_matmul-{name}.json").read_text(encoding="utf-8"))
    types = {"float8_e4m3": dtypes.float8_e4m3, "int8": dtypes.int8, 16: dtypes.float16}
    for code, activations, group, zero, (m, n, k), which in data["entries"]:
        form = WeightForm(dtypes.dtype(code), types[activations], k if group == -1 else group, zero)
        found = known_quantized(m, n, k, form, target(name), "", True)
        if which is None:
            assert found is None
            continue
        wanted = data["schedules"][which]
        assert isinstance(found, WgmmaSchedule if "resident" in wanted else Schedule)
        assert {**vars(found), "late": None} == {**wanted, "late": None}
        assert known_quantized(m, n, k, form, target(name), "another device", True) == found


def test_signs_share_a_schedule_and_other_forms_do_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tuned, "DEFAULTS", tmp_path)
    own = {"block_m": 16, "block_n": 64, "deep": 2, "stages": 3}
    key = {"code": "int4", "activations": 16, "group": 128, "zero": False, "m": 16, "n": 4096, "k": 4096}
    tuned.keep("quantized_matmul", HOPPER, key, own, 1e-6)
    for dtype, activations, group, zero in (
        (dtypes.uint4, dtypes.bfloat16, 128, False),
        (dtypes.int4, dtypes.float16, 128, False),
    ):
        assert known_quantized(16, 4096, 4096, WeightForm(dtype, activations, group, zero), HOPPER, "", True)
    for other in (
        WeightForm(dtypes.uint4, dtypes.int8, 64, False), WeightForm(dtypes.uint5, dtypes.float16, 128, False),
        WeightForm(dtypes.float4_e2m1, dtypes.float16, 128, False), WeightForm(dtypes.uint4, dtypes.float16, 64, False),
    ):  # fmt: skip
        assert known_quantized(16, 4096, 4096, other, HOPPER, "", True) is None


def test_quantized_matmul_keeps_its_own_where_what_ships_does_not_fit() -> None:
    form = WeightForm(dtypes.uint4, dtypes.float16, 128, False)
    with tuned.forced("quantized_matmul", vars(WgmmaSchedule())):
        assert known_quantized(1024, 8192, 8192, form, HOPPER, "", True) == WgmmaSchedule()
        assert known_quantized(1024, 8192, 8192, form, HOPPER, "", False) is None, (
            "TMA cannot read the activations"
        )
        assert known_quantized(1024, 8192, 8192, form, target("sm_80"), "", True) is None
    with tuned.forced("quantized_matmul", {"stages": 100}):
        assert known_quantized(16, 8192, 8192, form, HOPPER, "", True) is None
    with tuned.forced("quantized_matmul", {"splits": 8}):
        assert known_quantized(16, 8192, 512, form, HOPPER, "", True) is None, "parts of k would be empty"


def test_what_is_known_gives_the_right_numbers() -> None:
    form = WeightForm(dtypes.uint4, dtypes.float16, 128, False)
    with tuned.forced("quantized_matmul", {"block_n": 64, "deep": 2, "stages": 3, "splits": 2}):
        schedule = known_quantized(16, 1024, 1024, form, target("sm_80"), "", True)
    assert isinstance(schedule, Schedule)
    torch.manual_seed(0)
    a = torch.randn(16, 1024).half()
    weight = quantize(torch.randn(1024, 96), "int4", 128)
    found = torch.empty(1, 16, 96).half()
    call = call_of(a, weight, schedule, target("sm_80"), out=found)
    call.kernel.simulate(*call.arguments, target="sm_80", **call.options).raise_if_hazards()
    exact = a.double() @ weight.dequantize()
    check_product(found[0], exact, a @ weight.dequantize().half())


def test_the_ops_do_not_look_where_the_simulator_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    def look(*arguments: object) -> None:
        raise AssertionError("schedules of whole devices are not for the simulator")

    monkeypatch.setattr(sys.modules["tilus.ops.matmul"], "lookup", look)
    matmul_op(torch.ones(16, 32).half(), torch.ones(32, 16).half())
