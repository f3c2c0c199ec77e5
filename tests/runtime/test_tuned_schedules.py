"""Schedules of ops: where they are looked up, what ships, and how it is made."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from tilus import dtypes  # noqa: E402
from tilus.codegen import target  # noqa: E402
from tilus.codegen.assemble import available  # noqa: E402
from tilus.codegen.figures import figures  # noqa: E402
from tilus.errors import TilusError  # noqa: E402
from tilus.ops import tuned  # noqa: E402
from tilus.ops.defaults.generate import CARDS, generate, read_entries, to_text  # noqa: E402
from tilus.ops.defaults.problems import PROBLEMS, Problem  # noqa: E402
from tilus.ops.defaults.tuning import Ranked, Workshop, best_of, measure  # noqa: E402
from tilus.ops.matmul import Schedule as Tiles  # noqa: E402
from tilus.ops.matmul import known_plain_schedule, known_schedule  # noqa: E402
from tilus.ops.quantized_matmul import known_schedule as known_quantized  # noqa: E402
from tilus.ops.quantized_schedule import WeightForm  # noqa: E402
from tilus.ops.schedules import MOST_ACCUMULATORS, hopper_schedule  # noqa: E402
from tilus.runtime.kernel import Kernel  # noqa: E402
from tilus.runtime.tuning import store  # noqa: E402
from tilus.runtime.tuning.measure import GpuTimer  # noqa: E402

SHIPPED = [(op, name) for op in sorted(PROBLEMS) for name in sorted(CARDS)]
KEYS: dict[str, dict[str, Any]] = {
    "matmul": {"bits": 16, "m": 64, "n": 256, "k": 512},
    "quantized_matmul": {
        "code": "int4",
        "activations": 16,
        "group": 128,
        "zero": False,
        "m": 16,
        "n": 256,
        "k": 512,
    },
}


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.setenv("TILUS_CACHE_DIR", str(tmp_path / "cache"))
    tuned.forget()
    yield tmp_path / "cache"
    tuned.forget()


@pytest.fixture
def shipped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Let one file of schedules be all that ships."""
    data = {
        "op": "matmul", "target": "sm_80", "card": "A100", "source": "cost model", "fields": ["bits"],
        "schedules": [{"block_m": 16}, {"block_m": 64}, {"block_m": 128}],
        "entries": [[16, [16, 4096, 4096], 0], [16, [128, 4096, 4096], 1], [16, [128, 16384, 4096], 2]],
    }  # fmt: skip
    (tmp_path / "matmul-sm_80.json").write_text(to_text(data))
    monkeypatch.setattr(tuned, "DEFAULTS", tmp_path)
    return tmp_path


def problem(m: int, n: int, k: int, bits: int = 16) -> dict[str, int]:
    return {"bits": bits, "m": m, "n": n, "k": k}


# Looking up.


def test_what_ships_serves_the_nearest_class(shipped: Path) -> None:
    def block_m(*key: int) -> int | None:
        found = tuned.lookup("matmul", "sm_80", problem(*key))
        return None if found is None else found["block_m"]

    assert block_m(1, 4096, 4096) == block_m(16, 4096, 4096) == 16
    assert block_m(128, 4096, 4096) == block_m(100, 3000, 5000) == 64
    assert block_m(128, 10000, 4096) == 128
    # Rows matter more than columns: 64 rows lie between both classes of rows, and are nearer to 128.
    assert block_m(64, 4096, 4096) == 64
    assert block_m(1024, 4096, 4096) is None
    assert block_m(16, 512, 4096) is None
    assert block_m(16, 4096, 4096, 8) is None
    assert tuned.lookup("matmul", "sm_89", problem(16, 4096, 4096)) is None
    assert tuned.lookup("conv", target("sm_80"), problem(16, 4096, 4096)) is None


def test_what_was_tuned_here_precedes_what_ships(shipped: Path) -> None:
    key = problem(128, 4096, 4096)
    tuned.keep("matmul", "sm_80", key, {"block_m": 32}, 1e-6, "NVIDIA A100")
    assert tuned.lookup("matmul", "sm_80", key, "NVIDIA A100") == {"block_m": 32}
    assert tuned.lookup("matmul", "sm_80", problem(120, 4000, 4096), "NVIDIA A100") == {"block_m": 32}
    # Another device, and another class of sizes, are not meant.
    assert tuned.lookup("matmul", "sm_80", key) == {"block_m": 64}
    assert tuned.lookup("matmul", "sm_80", problem(16, 4096, 4096), "NVIDIA A100") == {"block_m": 16}
    tuned.keep("matmul", "sm_80", key, {"block_m": 96}, 1e-6, "NVIDIA A100")
    assert tuned.lookup("matmul", "sm_80", key, "NVIDIA A100") == {"block_m": 96}


def test_a_damaged_file_counts_as_none(shipped: Path, own_cache: Path) -> None:
    key = problem(128, 4096, 4096)
    tuned.keep("matmul", "sm_80", key, {"block_m": 32}, 1e-6)
    (file,) = own_cache.rglob("*.json")
    text = file.read_text()
    for damage in (text[:-9], "", "[]", text.replace("32", "33")):
        file.write_text(damage)
        tuned.forget()
        assert tuned.lookup("matmul", "sm_80", key) == {"block_m": 64}
    store.write(file, {"entries": [3, {"key": 4}, {"schedule": {}}]})
    tuned.forget()
    assert tuned.lookup("matmul", "sm_80", key) == {"block_m": 64}


def test_an_entry_without_a_schedule_leaves_the_choice_to_the_heuristic(shipped: Path) -> None:
    file = shipped / "matmul-sm_80.json"
    data = json.loads(file.read_text())
    data["entries"][1][-1] = None
    file.write_text(to_text(data))
    tuned.forget()
    assert tuned.lookup("matmul", "sm_80", problem(128, 4096, 4096)) is None
    assert tuned.lookup("matmul", "sm_80", problem(16, 4096, 4096)) == {"block_m": 16}


def test_a_schedule_of_another_version_counts_as_none() -> None:
    whole = {"block_m": 64, "block_n": 64, "block_k": 64, "stages": 3, "warps": 4}
    assert tuned.made_of(whole, Tiles) == Tiles(**whole)
    for stale in ({**whole, "depth": 2}, {"block_m": 64}, {**whole, "stages": "3"}, {**whole, "warps": None}):
        assert tuned.made_of(stale, Tiles) is None


@pytest.mark.parametrize("change", [{"colour": 3}, {"stages": None}, {"block_m": "wide"}])
def test_the_ops_keep_their_own_schedule_where_what_is_known_is_of_another_version(
    change: dict[str, Any],
) -> None:
    form = WeightForm(dtypes.uint4, dtypes.float16, 128, False)
    cases = {
        "sm_80": lambda: known_plain_schedule(64, 4096, 4096, 16, target("sm_80"), ""),
        "sm_90a": lambda: chosen_hopper(64, 4096, 4096),
    }
    for name, look in cases.items():
        own = PROBLEMS["matmul"].candidates(problem(64, 4096, 4096), target(name), figures(CARDS[name]))[0]
        with tuned.forced("matmul", own):
            assert look() is not None
        with tuned.forced("matmul", {**own, **change}):
            assert look() is None
    for m in (16, 1024):
        key = {**KEYS["quantized_matmul"], "m": m, "n": 8192, "k": 8192}
        own = PROBLEMS["quantized_matmul"].candidates(key, target("sm_90a"), figures("H200"))[0]
        with tuned.forced("quantized_matmul", own):
            assert known_quantized(m, 8192, 8192, form, target("sm_90a"), "", True) is not None
        with tuned.forced("quantized_matmul", {**own, **change}):
            assert known_quantized(m, 8192, 8192, form, target("sm_90a"), "", True) is None


def chosen_hopper(m: int, n: int, k: int) -> Any:
    machine = target("sm_90a")
    own = hopper_schedule(m, n, k, 1, 16, 16, machine, 132)
    return known_schedule(own, m, n, k, 16, 16, machine, 132, MOST_ACCUMULATORS, "")


def test_a_forced_schedule_precedes_all_and_only_inside(shipped: Path) -> None:
    key = problem(128, 4096, 4096)
    with tuned.forced("matmul", {"block_m": 1}):
        with tuned.forced("other", {"x": 2}):
            assert tuned.lookup("matmul", "sm_80", key) == {"block_m": 1}
            assert tuned.lookup("other", "sm_80", {}) == {"x": 2}
    assert tuned.lookup("matmul", "sm_80", key) == {"block_m": 64}


def test_a_schedule_may_be_changed_by_who_looks_it_up(shipped: Path) -> None:
    key = problem(128, 4096, 4096)
    found = tuned.lookup("matmul", "sm_80", key)
    assert found is not None
    found["block_m"] = 7
    assert tuned.lookup("matmul", "sm_80", key) == {"block_m": 64}


# What ships.


@pytest.mark.parametrize(("op", "name"), SHIPPED)
def test_every_class_of_problems_ships_a_schedule_that_the_op_takes(op: str, name: str) -> None:
    path = tuned.DEFAULTS / f"{op}-{name}.json"
    data = json.loads(path.read_text(encoding="utf-8"))
    assert to_text(data) == path.read_text(encoding="utf-8")
    machine = target(name)
    assert data["source"]
    assert figures(data["card"]).target == name
    for *values, sizes, which in data["entries"]:
        key = dict(zip([*data["fields"], *tuned.SIZES], [*values, *sizes]))
        found = tuned.lookup(op, machine, key)
        assert found == (None if which is None else data["schedules"][which])
    # What has no entry, or a name too many, is refused by the op's own dataclasses.
    for schedule in data["schedules"]:
        with PROBLEMS[op].using(schedule):
            pass


@pytest.mark.parametrize(("op", "name"), SHIPPED)
def test_shipped_schedules_compile_without_spills(op: str, name: str) -> None:
    if available() is not None:
        pytest.skip("NVIDIA has no assembler for this platform")
    machine, card = target(name), figures(CARDS[name])
    data = json.loads((tuned.DEFAULTS / f"{op}-{name}.json").read_text(encoding="utf-8"))
    named = [entry for entry in data["entries"] if entry[-1] is not None]
    for *values, sizes, which in named[len(named) // 5 :: len(named) // 2 + 1]:
        key = dict(zip([*data["fields"], *tuned.SIZES], [*values, *sizes]))
        schedule = data["schedules"][which]
        checked = Workshop(card).checked(PROBLEMS[op], key, Ranked(schedule, 0.0))
        assert not checked.failure
        assert 0 < checked.seconds < 1


# How it is made.


@pytest.mark.parametrize("op", sorted(PROBLEMS))
@pytest.mark.parametrize("name", ["sm_80", "sm_90a"])
def test_an_ops_launches_are_recorded_and_nothing_runs(op: str, name: str) -> None:
    card, call = figures(CARDS[name]), Kernel.__call__
    subject, key = PROBLEMS[op], KEYS[op]
    candidates = subject.candidates(key, target(name), card)
    for schedule in (candidates[0], candidates[-1]):
        launches = subject.launches(key, schedule, card)
        assert launches
        kernel, _, options = launches[0]
        shared = set(schedule) & set(kernel.source.constexprs)
        assert shared >= {"block_m", "block_n", "stages"}
        assert all(options[field] == schedule[field] for field in shared if field != "stream")
    assert Kernel.__call__ is call
    assert len({json.dumps(schedule, sort_keys=True) for schedule in candidates}) == len(candidates)


def test_candidates_give_the_same_result_on_the_simulator() -> None:
    subject, key = PROBLEMS["quantized_matmul"], KEYS["quantized_matmul"]
    torch.manual_seed(0)
    arguments = subject.arguments(key, "cpu")
    candidates = subject.candidates(key, target("sm_90a"), figures("H200"))
    outs = []
    for schedule in (candidates[0], candidates[len(candidates) // 2]):
        with subject.using(schedule):
            outs.append(subject.run(arguments).double())
    assert not torch.equal(outs[0], torch.zeros_like(outs[0]))
    assert (outs[0] - outs[1]).norm() < 0.01 * outs[0].norm()


class OfTwo(Problem):
    """An op with schedules whose times a test says."""

    name = "of_two"

    def candidates(self, key: Any, machine: Any, card: Any) -> list[dict[str, Any]]:
        return [{"own": True, "n": 0}, *({"own": False, "n": n} for n in range(1, 4))]


class FakeWorkshop(Workshop):
    def __init__(self, seconds: list[float], failures: dict[int, str] | None = None) -> None:
        super().__init__(figures("A100"))
        self.seconds, self.failures, self.compiled = seconds, failures or {}, []

    def rank(self, problem: Problem, key: Any, schedules: Any) -> list[Ranked]:
        found = [
            Ranked(s, t, failure="" if t < 100 else "does not trace")
            for s in schedules
            for t in [self.seconds[s["n"]]]
        ]
        return sorted(found, key=lambda r: r.seconds)

    def checked(self, problem: Problem, key: Any, ranked: Ranked) -> Ranked:
        self.compiled.append(ranked.schedule["n"])
        failure = self.failures.get(ranked.schedule["n"], "")
        return Ranked(ranked.schedule, float("inf") if failure else ranked.seconds, failure=failure)


def chosen(workshop: FakeWorkshop, tried: int = 3) -> int:
    best, _ = best_of(workshop, OfTwo(), {}, 1.03, tried)
    n: int = best.schedule["n"]
    return n


def test_the_heuristics_own_schedule_stays_unless_another_is_clearly_faster() -> None:
    assert chosen(FakeWorkshop([1.00, 0.99, 0.98, 2.0])) == 0
    assert chosen(FakeWorkshop([1.00, 0.99, 0.90, 2.0])) == 2


def test_what_spills_does_not_ship() -> None:
    assert chosen(FakeWorkshop([1.0, 0.5, 0.6, 2.0], {1: "spills 8 bytes"})) == 2
    assert chosen(FakeWorkshop([1.0, 3.0, 2.0, 4.0], {0: "spills 8 bytes"})) == 2
    with pytest.raises(TilusError, match=r"no schedule of of_two for \{\} can ship: spills 8 bytes"):
        chosen(FakeWorkshop([1.0] * 4, dict.fromkeys(range(4), "spills 8 bytes")))


def test_a_heuristics_schedule_that_does_not_even_trace_is_replaced() -> None:
    workshop = FakeWorkshop([float("inf"), 3.0, 2.0, float("inf")])
    assert chosen(workshop) == 2
    assert workshop.compiled == [2]


def test_what_is_estimated_to_be_no_faster_is_not_compiled() -> None:
    workshop = FakeWorkshop([1.0, 0.99, 2.0, 3.0])
    assert chosen(workshop) == 0
    assert workshop.compiled == [0]


def test_only_the_best_few_are_compiled() -> None:
    workshop = FakeWorkshop([1.0, 0.5, 0.6, 0.7])
    assert chosen(workshop, tried=1) == 1
    assert workshop.compiled == [0, 1]


def test_measurements_take_the_place_of_the_model(tmp_path: Path) -> None:
    class Few(type(PROBLEMS["matmul"])):  # type: ignore[misc]
        def keys(self, machine: Any) -> Iterator[dict[str, Any]]:
            yield {"bits": 16, "m": 64, "n": 256, "k": 512}
            yield {"bits": 16, "m": 16, "n": 256, "k": 512}

    mine = {"block_m": 32, "block_n": 32, "block_k": 32, "stages": 3, "warps": 4}
    entry = {
        "op": "matmul",
        "target": "sm_80",
        "key": {"bits": 16, "m": 60, "n": 200, "k": 512},
        "schedule": mine,
    }
    data = generate(Few(), figures("A100"), measured=[entry])
    assert data["schedules"][0] == mine
    assert [entry[1] for entry in data["entries"]] == [[64, 256, 512], [16, 256, 512]]
    assert data["entries"][0][2] == 0
    assert data["entries"][1][2] in (None, 1)
    assert data["source"] == "cost model and 1 measurements"
    assert json.loads(to_text(data)) == data
    (tmp_path / "list.json").write_text(json.dumps([entry]))
    (tmp_path / "run.json").write_text(json.dumps({"parts": {"tune": {"facts": {"entries": [entry]}}}}))
    assert read_entries(tmp_path / "list.json") == read_entries(tmp_path / "run.json") == [entry]


def test_the_model_chooses_the_same_schedules_again() -> None:
    class Few(type(PROBLEMS["quantized_matmul"])):  # type: ignore[misc]
        def keys(self, machine: Any) -> Iterator[dict[str, Any]]:
            yield KEYS["quantized_matmul"]
            yield {**KEYS["quantized_matmul"], "m": 64}

    first, second = (to_text(generate(Few(), figures("A100"))) for _ in range(2))
    assert first == second
    assert len(json.loads(first)["entries"]) == 2


# Measuring, with a timer and a device that are not there.


class FakeTimer:
    """Times by the schedule that is in use; the device never hangs."""

    seconds_at_most = 1.0

    def __init__(self, op: OnCpu) -> None:
        self.op = op

    def idle(self, seconds: float) -> bool:
        return True

    def seconds(self, run: Any, best: float) -> float:
        run()
        return [4e-6, 2e-6, 1e-6, 3e-6][self.op.now["n"]]


class OnCpu(OfTwo):
    """Schedule 2 is fast and wrong, 3 fails."""

    now: dict[str, Any]

    def arguments(self, key: Any, device: str) -> tuple[Any, ...]:
        return (torch.ones(4),)

    def using(self, schedule: dict[str, Any]) -> Any:
        from contextlib import nullcontext

        self.now = schedule
        return nullcontext()

    def run(self, arguments: tuple[Any, ...]) -> Any:
        if self.now["n"] == 3:
            raise RuntimeError("out of memory")
        return arguments[0] * (2 if self.now["n"] == 2 else 1)


def test_schedules_are_measured_against_the_result_of_the_heuristics(monkeypatch: pytest.MonkeyPatch) -> None:
    op = OnCpu()
    monkeypatch.setattr(GpuTimer, "of", classmethod(lambda cls, device: FakeTimer(op)))
    found = measure(FakeWorkshop([1.0, 0.9, 0.8, 0.7]), op, {}, 0, 8)
    assert [(r.schedule["n"], r.measured) for r in found[:2]] == [(1, True), (0, True)]
    failures = {r.schedule["n"]: r.failure for r in found[2:]}
    assert failures[2] == "its result differs by 1.0e+00, allowed is 2.0e-02"
    assert failures[3] == "RuntimeError: out of memory"
