"""The search: bad candidates are listed with their reasons, time is kept to, and results outlive the process."""

from __future__ import annotations

import io
import json
import re
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import tilus
from tests.runtime import kernels
from tilus import Tensor, constexpr, float32
from tilus.codegen import target as find_target
from tilus.codegen.figures import figures
from tilus.errors import LaunchError, TilusError
from tilus.runtime import driver
from tilus.runtime.kernel import Kernel
from tilus.runtime.tuning import Result, Space, autotune, store, tune
from tilus.runtime.tuning.measure import Bench, DeviceLost, GpuTimer, TimedOut, copy_of, difference
from tilus.runtime.tuning.search import spread

SPACE = Space(block=[32, 64, 128, 256])
ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TILUS_CACHE_DIR", str(tmp_path / "cache"))
    return tmp_path / "cache"


def vectors(n: int = 1000) -> list[np.ndarray]:
    return [np.ones(n, np.float32), np.ones(n, np.float32), np.zeros(n, np.float32)]


class FakeMeasure:
    """Seconds by block; an exception is raised; a function is called."""

    def __init__(self, **seconds: Any) -> None:
        self.seconds, self.seen = seconds, []

    def __call__(self, kernel: Kernel, args: Sequence[Any]) -> float:
        block = kernel.bound["block"]
        self.seen.append(block)
        value = self.seconds.get(f"b{block}", 1.0)
        if isinstance(value, Exception):
            raise value
        return float(value() if callable(value) else value)


def statuses(result: Result) -> dict[int, str]:
    return {trial.values["block"]: trial.status for trial in result.trials}


# Spaces.


def test_a_space_is_all_combinations_that_its_constraints_allow() -> None:
    space = Space(a=[1, 2, 3], b=["x", "y"]).where(lambda a, b: a > 1 or b == "x").where(lambda a, m: a <= m)
    found = list(space.candidates({"m": 2}))
    assert found == [{"a": 1, "b": "x"}, {"a": 2, "b": "x"}, {"a": 2, "b": "y"}]
    assert space.names == ("a", "b")


def test_candidates_may_be_listed() -> None:
    space = Space.of([{"a": 1, "b": 2}, {"b": 3, "a": 4}]).where(lambda a: a > 1)
    assert space.names == ("a", "b")
    assert list(space.candidates()) == [{"a": 4, "b": 3}]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Space(a=3), "the values of a are 3, expected a list"),
        (lambda: Space(a="fast"), "the values of a are 'fast', expected a list"),
        (lambda: Space(a=[]), "a has no value to choose"),
        (lambda: Space.of([]), "at least one candidate"),
        (lambda: Space.of([{"a": 1}, {"b": 1}]), "a candidate gives b, expected values of a"),
        (lambda: Space(a=[1]).where(lambda **all: True), r"\*\*all has no name"),
        (
            lambda: list(Space(a=[1]).where(lambda c: True).candidates()),
            "reads c, which is neither chosen nor a size",
        ),
    ],
)
def test_a_space_that_makes_no_sense_is_an_error(make: Any, message: str) -> None:
    with pytest.raises(TilusError, match=message):
        make()


def test_the_order_of_estimates_visits_all_of_the_space_early() -> None:
    order = spread([{"i": i} for i in range(20)])
    assert sorted(c["i"] for c in order) == list(range(20))
    assert [c["i"] for c in order[:4]] == [0, 8, 16, 1]


# The search.


def test_the_fastest_candidate_is_found_and_the_arguments_are_not_changed() -> None:
    args = vectors()
    fake = FakeMeasure(b32=4e-6, b64=2e-6, b128=3e-6, b256=5e-6)
    result = tune(kernels.scale_add, args, space=SPACE, measure=fake)
    assert result.best == {"block": 64}
    assert result.seconds == 2e-6
    assert result.best_kernel.bound == {"block": 64}
    assert [trial.values["block"] for trial in result.trials] == [64, 128, 32, 256]
    assert not args[2].any()
    result.best_kernel(*args)
    assert (args[2] == 3).all()


def test_one_bad_candidate_never_ends_the_search() -> None:
    fake = FakeMeasure(
        b32=RuntimeError("the sky fell\nand more"), b64=TimedOut("it did not end within 5 s"), b128=2e-6, b256=0.0
    )  # fmt: skip
    result = tune(kernels.scale_add, vectors(), space=SPACE, measure=fake)
    assert statuses(result) == {128: "ok", 32: "failed", 64: "timeout", 256: "failed"}
    notes = {trial.values["block"]: trial.note for trial in result.trials}
    assert notes[32] == "RuntimeError: the sky fell"
    assert notes[64] == "it did not end within 5 s"
    assert notes[256] == "the function that measures returned 0.0, expected seconds above 0"
    table = result.table()
    assert "the sky fell" in table
    assert table.splitlines()[1].split()[:2] == ["128", "2.0"]


def test_what_does_not_compile_is_listed_with_the_compilers_words() -> None:
    space = Space(block=[64, 100, 128])
    result = tune(kernels.scale_add, vectors(), space=space, measure="model")
    bad = [trial for trial in result.trials if trial.status == "failed"]
    # 100 elements over 128 threads: some compilers of layouts refuse it, and nothing else may be refused.
    assert {trial.values["block"] for trial in bad} <= {100}
    result = tune(with_assert, vectors()[:2], space=Space(block=[32, 64]), measure="model")
    assert statuses(result) == {64: "ok", 32: "failed"}
    assert "32 is too small" in result.trials[1].note


@tilus.kernel
def with_assert(x: Tensor[float32, "n"], out: Tensor[float32, "n"], *, block: constexpr):
    (n,) = x.shape
    tilus.static_assert(block > 32, f"{block} is too small")
    tilus.grid(tilus.cdiv(n, block), warps=1)
    i = tilus.block_id() * block
    tilus.store(out, tilus.load(x, [i], shape=[block]), [i])


def test_nothing_that_works_is_an_error_with_the_reasons() -> None:
    with pytest.raises(TilusError, match=r"none of 1 candidates of with_assert works: .*32 is too small"):
        tune(with_assert, vectors()[:2], space=Space(block=[32]), measure="model")
    with pytest.raises(TilusError, match="leave no candidate"):
        tune(kernels.scale_add, vectors(), space=SPACE.where(lambda n: n > 5000))


def test_time_that_is_up_leaves_the_rest_out() -> None:
    def slow() -> float:
        time.sleep(0.4)
        return 1e-6

    fake = FakeMeasure(b32=slow, b64=slow, b128=slow, b256=slow)
    result = tune(kernels.scale_add, vectors(), space=SPACE, measure=fake, budget_seconds=0.6)
    assert result.count("ok") >= 1
    assert result.count("ok") + result.count("skipped") == 4
    assert 1 <= len(fake.seen) <= 2
    assert "skipped" in result.table()


def test_the_model_decides_what_is_measured() -> None:
    fake = FakeMeasure()
    result = tune(kernels.scale_add, vectors(1 << 20), space=SPACE, measure=fake, keep=2)
    assert result.count("pruned") == 2
    estimates = {t.values["block"]: t.estimate.seconds for t in result.trials if t.estimate is not None}
    assert set(fake.seen) == set(sorted(estimates, key=lambda block: estimates[block])[:2])


def test_sizes_and_other_constexprs_reach_constraints_and_candidates() -> None:
    fake = FakeMeasure()
    space = SPACE.where(lambda block, n: block * 10 <= n)
    result = tune(
        kernels.scale_add, {"out": vectors()[2], "x": vectors()[0], "y": vectors()[1]}, space=space,
        constexprs={"factor": 3.0}, measure=fake,
    )  # fmt: skip
    assert sorted(fake.seen) == [32, 64]
    assert result.best_kernel.bound["factor"] == 3.0


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"space": Space(tile=[1])}, "scale_add has no constexpr parameter 'tile' to choose"),
        ({"measure": "guess"}, "no way to measure named 'guess'"),
        ({"measure": "time"}, "times are measured on a GPU, and the tensors are on the CPU"),
        ({"args": {"x": 1, "z": 2}}, "scale_add has no run-time parameter 'z'"),
    ],
)
def test_wrong_use_is_said_in_one_sentence(more: dict[str, Any], message: str) -> None:
    args = more.pop("args", vectors())
    with pytest.raises(TilusError, match=message):
        tune(kernels.scale_add, args, **{"space": SPACE, **more})


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_progress_is_a_bar_on_a_terminal_and_silence_elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("rich", reason="the bar is rich's: pip install 'tilus[tune]'")
    monkeypatch.setenv("COLUMNS", "120")
    monkeypatch.setenv("TERM", "xterm")
    for stream, wanted in ((Terminal(), True), (io.StringIO(), True), (Terminal(), False)):
        monkeypatch.setattr(sys, "stderr", stream)
        fake = FakeMeasure(b32=4e-6, b64=2e-6)
        tune(
            kernels.scale_add,
            vectors(),
            space=Space(block=[32, 64]),
            measure=fake,
            progress=wanted,
            use_cache=False,
        )
        shown = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", stream.getvalue())
        if not (wanted and isinstance(stream, Terminal)):
            assert shown == ""
            continue
        assert "tuning scale_add: measuring" in shown
        assert "2/2" in shown
        assert "best 2.0 us" in shown


# The simulator as the measure.


@tilus.kernel
def sometimes_wrong(
    x: Tensor[float32, "n"], out: Tensor[float32, "n"], *, block: constexpr, offset: constexpr = 0.0, place: constexpr = 1
):  # fmt: skip
    (n,) = x.shape
    tilus.grid(tilus.cdiv(n, block), warps=1)
    i = tilus.block_id() * block
    tilus.store(out, tilus.load(x, [i], shape=[block]) + offset, [i * place])


def test_the_simulator_finds_wrong_results_and_hazards() -> None:
    x, out = np.arange(1, 257, dtype=np.float32), np.zeros(256, np.float32)
    space = Space.of(
        [
            {"block": 256, "offset": 0.0, "place": 1},
            {"block": 64, "offset": 1e-3, "place": 1},
            {"block": 64, "offset": 500.0, "place": 1},
            # All blocks write to the same elements.
            {"block": 64, "offset": 0.0, "place": 0},
        ]
    )
    result = tune(sometimes_wrong, [x, out], space=space, measure="simulate", reference=[x])
    found = {(t.values["block"], t.values["offset"], t.values["place"]): t for t in result.trials}
    assert found[256, 0.0, 1].status == found[64, 1e-3, 1].status == "ok"
    assert found[64, 500.0, 1].status == "wrong"
    assert "its result differs by 3.4e+00, allowed is 2.0e-02" in found[64, 500.0, 1].note
    assert found[64, 0.0, 0].status == "failed"
    assert "race" in found[64, 0.0, 0].note
    assert not out.any()


def test_without_a_reference_the_first_result_is_compared_with() -> None:
    x, out = np.ones(256, np.float32), np.zeros(256, np.float32)
    space = Space.of([{"block": 256, "offset": o} for o in (0.0, 0.5)])
    result = tune(sometimes_wrong, [x, out], space=space, measure="simulate")
    assert sorted(t.status for t in result.trials) == ["ok", "wrong"]


@tilus.kernel
def accumulate(x: Tensor[float32, "n"], out: Tensor[float32, "n"], *, block: constexpr):
    (n,) = x.shape
    tilus.grid(tilus.cdiv(n, block), warps=1)
    i = tilus.block_id() * block
    tilus.store(out, tilus.load(x, [i], shape=[block]) + tilus.load(out, [i], shape=[block]), [i])


def test_a_kernel_that_adds_to_its_output_starts_from_the_same_values_each_time() -> None:
    x, out = np.ones(256, np.float32), np.full(256, 5, np.float32)
    result = tune(
        accumulate, [x, out], space=Space(block=[32, 64, 128]), measure="simulate", reference=[x + 5]
    )
    assert result.count("ok") == 3
    assert (out == 5).all()


def test_results_are_compared_by_their_norm() -> None:
    torch = pytest.importorskip("torch")
    a = np.array([3.0, 4.0])
    assert difference(a, a) == 0
    assert difference(a + [0.5, 0], a) == pytest.approx(0.1)
    assert (
        difference(a, a[:1]) == difference(np.array([np.nan, 4.0]), a) == difference(a, 0 * a) == float("inf")
    )
    assert difference(np.array([np.inf, 4.0]), np.array([np.inf, 4.0])) == 0
    assert difference(torch.ones(2, dtype=torch.bfloat16), torch.ones(2, dtype=torch.bfloat16)) == 0
    assert difference(torch.ones(2).to(torch.float8_e4m3fn), torch.zeros(2)) == float("inf")


def test_copies_keep_strides() -> None:
    torch = pytest.importorskip("torch")
    turned = torch.arange(6.0).reshape(2, 3).T
    assert copy_of(turned).stride() == turned.stride()
    assert torch.equal(copy_of(turned), turned)
    bench = Bench.of([turned, turned], [1])
    assert bench.args[0] is turned
    bench.args[1].zero_()
    bench.restore()
    assert torch.equal(bench.args[1], turned)


# What is kept.


def test_a_second_search_measures_only_what_is_new() -> None:
    first = FakeMeasure(b32=4e-6, b64=2e-6)
    tune(kernels.scale_add, vectors(), space=Space(block=[32, 64]), measure=first)
    result = tune(kernels.scale_add, vectors(), space=SPACE, measure=first)
    assert sorted(first.seen) == [32, 64, 128, 256]
    assert {t.values["block"]: t.kept for t in result.trials} == {32: True, 64: True, 128: False, 256: False}
    tune(kernels.scale_add, vectors(), space=SPACE, measure=first, use_cache=False)
    assert len(first.seen) == 8


def test_what_failed_is_not_tried_again() -> None:
    fake = FakeMeasure(b32=RuntimeError("no"), b64=1e-6)
    for _ in range(2):
        result = tune(kernels.scale_add, vectors(), space=Space(block=[32, 64]), measure=fake)
        assert statuses(result) == {64: "ok", 32: "failed"}
    assert sorted(fake.seen) == [32, 64]


def test_shape_class_dtype_and_source_make_other_entries() -> None:
    space, fake = Space(block=[32]), FakeMeasure()
    for args, constexprs in (
        (vectors(1000), {}), (vectors(1001), {}), (vectors(1000), {"factor": 3.0}), (vectors(1000), {}),
    ):  # fmt: skip
        tune(kernels.scale_add, args, space=space, constexprs=constexprs, measure=fake)
    assert len(fake.seen) == 3
    # As many as the next power of two count as the same.
    for n in (600, 1000, 1024, 1025):
        tune(kernels.scale_add, vectors(n), space=space, measure=fake, bucket=["n"])
    assert len(fake.seen) == 5


def entry_files(folder: Path) -> list[Path]:
    return list((folder / "tuning").rglob("*.json"))


def test_what_the_model_says_is_not_kept(own_cache: Path) -> None:
    tune(kernels.scale_add, vectors(), space=Space(block=[32]), measure="model")
    tune(kernels.scale_add, vectors(), space=Space(block=[32]), measure="simulate")
    assert not entry_files(own_cache)


@pytest.mark.parametrize("damage", ["", "{}", "x\n{}", "half"])
def test_a_damaged_entry_counts_as_none(own_cache: Path, damage: str) -> None:
    fake = FakeMeasure()
    tune(kernels.scale_add, vectors(), space=Space(block=[32]), measure=fake)
    (file,) = entry_files(own_cache)
    file.write_text(file.read_text()[:-20] if damage == "half" else damage)
    tune(kernels.scale_add, vectors(), space=Space(block=[32]), measure=fake)
    assert fake.seen == [32, 32]
    tune(kernels.scale_add, vectors(), space=Space(block=[32]), measure=fake)
    assert fake.seen == [32, 32]


def test_an_entry_says_what_it_is_about_and_holds_no_code(own_cache: Path) -> None:
    tune(kernels.scale_add, vectors(), space=Space(block=[32]), measure=FakeMeasure(b32=2e-6))
    (file,) = entry_files(own_cache)
    body = json.loads(file.read_text().partition("\n")[2])
    assert body["about"]["kernel"] == "scale_add"
    assert body["about"]["sizes"] == {"n": 1000}
    entry = {
        "values": {"block": 32},
        "status": "ok",
        "seconds": 2e-6,
        "note": "",
        "compiler": store.compiler(),
    }
    assert body["entries"] == [entry]
    assert file.parent.name == "h100"


def test_a_candidate_at_which_the_process_ended_is_known(own_cache: Path) -> None:
    fake = FakeMeasure()
    tune(kernels.scale_add, vectors(), space=Space(block=[32]), measure=fake)
    (file,) = entry_files(own_cache)
    store.add_entry(file, store.Entry({"block": 64}, "running", compiler=store.compiler()), {})
    result = tune(kernels.scale_add, vectors(), space=Space(block=[32, 64]), measure=fake)
    assert statuses(result) == {32: "ok", 64: "failed"}
    assert result.trials[1].note == "the process ended while it was measured"
    assert fake.seen == [32]


def test_another_compiler_tries_again_what_failed_and_keeps_times(
    own_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []
    space = Space(block=[32, 64])

    def refuse(kernel: tilus.Kernel, args: Any) -> float:
        seen.append(kernel.bound["block"])
        if kernel.bound["block"] == 64 and not newer:
            raise tilus.errors.CompileError("a bug of this version")
        return 1e-6

    newer = False
    for _ in range(2):
        assert statuses(tune(kernels.scale_add, vectors(), space=space, measure=refuse)) == {
            32: "ok",
            64: "failed",
        }
    newer = True
    monkeypatch.setattr(store, "compiler", lambda: "the next version")
    assert statuses(tune(kernels.scale_add, vectors(), space=space, measure=refuse)) == {32: "ok", 64: "ok"}
    assert seen == [32, 64, 64]


def test_an_interrupted_search_says_nothing_of_the_candidate_that_it_was_at(own_cache: Path) -> None:
    seen = []

    def interrupted(kernel: tilus.Kernel, args: Any) -> float:
        seen.append(kernel.bound["block"])
        if len(seen) == 2:
            (file,) = entry_files(own_cache)
            running = store.Entry({"block": 64}, "running", compiler=store.compiler())
            store.add_entry(file, running, {})
            raise KeyboardInterrupt
        return 1e-6

    space = Space(block=[32, 64])
    with pytest.raises(KeyboardInterrupt):
        tune(kernels.scale_add, vectors(), space=space, measure=interrupted)
    result = tune(kernels.scale_add, vectors(), space=space, measure=interrupted)
    assert statuses(result) == {32: "ok", 64: "ok"}
    assert seen == [32, 64, 64]


def test_a_cache_that_is_turned_off_or_cannot_be_written_to_only_costs_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake = FakeMeasure()
    monkeypatch.setenv("TILUS_CACHE", "0")
    for _ in range(2):
        assert tune(kernels.scale_add, vectors(), space=Space(block=[32]), measure=fake).best == {"block": 32}
    monkeypatch.setenv("TILUS_CACHE", "1")
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("TILUS_CACHE_DIR", str(tmp_path / "file"))
    with pytest.warns(RuntimeWarning, match="cannot be written to"):
        tune(kernels.scale_add, vectors(), space=Space(block=[32]), measure=fake)
    assert len(fake.seen) == 3


TWO = """
import sys
from pathlib import Path
from tilus.runtime.tuning import store
file = Path(sys.argv[1])
for i in range(40):
    store.add_entry(file, store.Entry({"who": sys.argv[2], "i": i}, "ok", 1.0), {})
"""


def test_two_processes_keep_what_both_found(tmp_path: Path) -> None:
    file = tmp_path / "device" / "kernel.json"
    command = [sys.executable, "-c", TWO, str(file)]
    running = [subprocess.Popen([*command, who], cwd=ROOT) for who in ("a", "b")]
    assert [process.wait(timeout=60) for process in running] == [0, 0]
    found = store.read_entries(file)
    assert {(e.values["who"], e.values["i"]) for e in found.values()} == {
        (w, i) for w in "ab" for i in range(40)
    }
    assert not list(tmp_path.rglob("*.tmp"))


# A kernel that tunes itself.


def test_a_kernel_that_tunes_itself_searches_once_for_each_shape_class() -> None:
    fake = FakeMeasure(b32=2e-6, b64=1e-6)
    tuned = autotune(Space(block=[32, 64]), bucket=["n"], measure=fake, keep=4, use_cache=False)(
        kernels.scale_add
    )
    for n in (600, 1000, 1024):
        args = vectors(n)
        tuned(*args)
        assert (args[2] == 3).all()
    assert len(fake.seen) == 2
    assert tuned.best(*vectors(1000)) == {"block": 64}
    args = vectors(2000)
    tuned(*args, factor=4.0)
    assert (args[2] == 5).all()
    assert len(fake.seen) == 4
    assert "block" in repr(tuned)
    assert tuned.__name__ == "scale_add"


def test_on_the_cpu_the_model_chooses() -> None:
    tuned = autotune(SPACE, target="sm_80")(kernels.scale_add)
    result = tuned.tune(*vectors(1 << 16))
    assert result.method == "model"
    assert result.count("ok") == 1
    assert result.device == "A100"


# On the GPU, with a driver that is not there.


class FakeEvents:
    """Events of a driver: what runs takes so many milliseconds, never ends, or breaks the device."""

    def __init__(self) -> None:
        self.takes: float = 0.5
        self.hangs = self.broken = False
        self.destroyed = self.created = self.flushes = 0
        self.recorded = 0

    def cuEventCreate(self, flags: int) -> tuple[int, str]:
        self.created += 1
        return 0, f"event {self.created}"

    def cuEventRecord(self, event: str, stream: int) -> tuple[int]:
        self.recorded += 1
        return (0,)

    def cuEventQuery(self, event: str) -> tuple[int]:
        return (700 if self.broken else 600 if self.hangs else 0,)

    def cuEventElapsedTime(self, start: str, end: str) -> tuple[int, float]:
        return 0, self.takes

    def cuEventDestroy(self, event: str) -> tuple[int]:
        self.destroyed += 1
        return (0,)

    def cuCtxPushCurrent(self, context: Any) -> tuple[int]:
        return (0,)

    def cuCtxPopCurrent(self) -> tuple[int, None]:
        return 0, None

    def cuGetErrorString(self, status: int) -> tuple[int, bytes]:
        return 0, b"an illegal memory access was encountered"


@pytest.fixture
def events(monkeypatch: pytest.MonkeyPatch) -> FakeEvents:
    fake = FakeEvents()
    monkeypatch.setattr(driver, "bindings", lambda: fake)
    monkeypatch.setattr(driver, "primary_context", lambda device: "context")
    return fake


def timer(events: FakeEvents, **more: Any) -> GpuTimer:
    def flush() -> None:
        events.flushes += 1

    return GpuTimer(0, flush, lambda: 0, **more)


def test_a_time_is_the_median_of_several_with_a_cold_cache(events: FakeEvents) -> None:
    durations = iter([9.0, 9.0, 0.5, 0.3, 0.4, *[0.6] * 12])

    def run() -> None:
        events.takes = next(durations)

    assert timer(events).seconds(run) == pytest.approx(0.6e-3)
    # Two calls to warm up, and fifteen samples, each after a flush; no event is left.
    assert events.flushes == 17
    assert events.created == events.destroyed == 34


def test_a_hopeless_candidate_is_measured_three_times_only(events: FakeEvents) -> None:
    assert timer(events).seconds(lambda: None, best=0.2e-3) == pytest.approx(0.5e-3)
    assert events.flushes == 5


def test_a_launch_that_does_not_end_is_given_up(events: FakeEvents) -> None:
    events.hangs = True
    slow = timer(events, seconds_at_most=0.05)
    with pytest.raises(TimedOut, match=r"it did not end within 0.05 s"):
        slow.seconds(lambda: None)
    assert events.created == events.destroyed
    assert not slow.idle(0.05)
    events.hangs = False
    assert slow.idle(0.05)


def test_a_device_that_is_lost_is_told_from_a_slow_one(events: FakeEvents) -> None:
    events.broken = True
    with pytest.raises(DeviceLost, match="running the candidate failed: an illegal memory access"):
        timer(events).seconds(lambda: None)


@pytest.fixture
def fake_gpu(events: FakeEvents, monkeypatch: pytest.MonkeyPatch) -> FakeEvents:
    """Let CPU arrays count as tensors on a GPU whose time stands in `events.takes`; the simulator runs the kernels."""
    torch = pytest.importorskip("torch")
    properties = type("Properties", (), {"multi_processor_count": 99})
    monkeypatch.setattr("tilus.runtime.tuning.search._device_of", lambda args: 0)
    monkeypatch.setattr(driver, "target", lambda device: find_target("sm_90a"))
    monkeypatch.setattr(driver, "device_name", lambda device: "NVIDIA H200")
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: properties)
    monkeypatch.setattr(
        GpuTimer, "of", classmethod(lambda cls, device, seconds: timer(events, seconds_at_most=seconds))
    )
    return events


def test_on_a_gpu_results_are_compared_and_times_are_kept(fake_gpu: FakeEvents, own_cache: Path) -> None:
    x, out = np.arange(1, 257, dtype=np.float32), np.zeros(256, np.float32)
    space = Space.of(
        [{"block": 256, "offset": 0.0}, {"block": 64, "offset": 0.0}, {"block": 64, "offset": 500.0}]
    )
    result = tune(sometimes_wrong, [x, out], space=space, reference=[x])
    assert result.method == "time"
    assert sorted(trial.status for trial in result.trials) == ["ok", "ok", "wrong"]
    assert result.seconds == pytest.approx(0.5e-3)
    (file,) = entry_files(own_cache)
    assert file.parent.name == "nvidia-h200"
    assert sorted(entry.status for entry in store.read_entries(file).values()) == ["ok", "ok", "wrong"]
    assert fake_gpu.created == fake_gpu.destroyed
    assert not out.any()


def test_a_candidate_that_hangs_on_a_gpu_ends_the_search_only_while_the_device_is_busy(
    fake_gpu: FakeEvents, own_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tilus.runtime.tuning.search.GRACE_SECONDS", 0.05)
    args = vectors()
    space = Space(block=[64, 128])
    fake_gpu.hangs = True
    with pytest.raises(
        TilusError, match=r"none of 2 candidates of scale_add works: it did not end within 0.05 s"
    ):
        tune(kernels.scale_add, args, space=space, seconds_at_most=0.05)
    fake_gpu.hangs = False
    result = tune(kernels.scale_add, args, space=space, seconds_at_most=0.05)
    assert sorted(trial.status for trial in result.trials) == ["ok", "timeout"]
    assert next(t for t in result.trials if t.status == "timeout").kept


def test_after_a_lost_device_the_search_ends_with_what_it_has() -> None:
    fake = FakeMeasure(b32=1e-6, b64=1e-6, b128=DeviceLost("an illegal memory access"), b256=1e-6)
    result = tune(kernels.scale_add, vectors(), space=SPACE, measure=fake)
    assert "the device does not answer" in result.interrupted
    assert fake.seen[-1] == 128
    assert result.count("skipped") == 4 - len(fake.seen)


def test_a_capture_is_never_tuned_in(monkeypatch: pytest.MonkeyPatch) -> None:
    class OnGpu:
        is_cuda, shape, dtype, device = True, (4,), "float32", "cuda:0"

    monkeypatch.setattr("tilus.runtime.tuning.autotuned.is_torch_tensor", lambda value: True)
    monkeypatch.setattr("tilus.runtime.cuda.is_capturing", lambda: True)
    tuned = autotune(SPACE)(kernels.scale_add)
    with pytest.raises(
        LaunchError, match="is not tuned for these arguments, and a CUDA graph is being captured"
    ):
        tuned(OnGpu(), OnGpu(), OnGpu())


def test_the_roofline_of_the_simulator_takes_the_figures() -> None:
    report = kernels.scale_add.simulate(*vectors())
    seconds = report.roofline(figures("H200").per_second())
    assert next(iter(seconds)) in seconds
    assert all(value >= 0 for value in seconds.values())
