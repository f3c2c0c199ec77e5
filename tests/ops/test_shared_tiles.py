"""Tiles that blocks share along k: the last block to arrive adds up the parts in their order, in the same kernel."""

from __future__ import annotations

import importlib.util
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch

from tests.ops.test_generated_code import ASSEMBLES, check_resources
from tilus.codegen import target
from tilus.dtypes import int4
from tilus.ops import QuantizedWeight, from_codes, quantize, quantize_tokens, quantized_kernel, shared_tiles
from tilus.ops.arrivals import LINE, Counters, arrivals
from tilus.ops.call import Call
from tilus.ops.quantized_matmul import call_of
from tilus.ops.quantized_schedule import Schedule
from tilus.simulator import Report

FEW = Schedule(block_m=8, swap=True, late=True)
CASES = {
    "weights first": (FEW, "uint4", None, True),
    "weights first, shared": (Schedule(block_m=8, block_n=32, deep=4, stages=2, swap=True, late=True), "uint4", None, True),
    "weights second, scaled": (Schedule(), "float4_e2m1", None, False),
    "many rows": (Schedule(block_m=64, stages=2), "uint4", None, True),
    "bytes": (Schedule(late=True), "int4", torch.int8, False),
}  # fmt: skip
MACHINES = ["sm_80", "sm_90a"]


def named(call: Call) -> dict[str, torch.Tensor]:
    """Return a call's tensors by the names of the kernel's parameters."""
    names = [declared.name for declared in call.kernel.source.runtime_params]
    return dict(zip(names, call.arguments))


def run(call: Call, machine: str) -> Report:
    report = call.kernel.simulate(*call.arguments, target=machine, **call.options)
    report.raise_if_hazards()
    return report


def ones(k: int, n: int) -> QuantizedWeight:
    scale = torch.ones(k // 128, n, dtype=torch.bfloat16)
    return from_codes(np.ones((k, n), np.uint8), int4, scale, None, 128)


def in_parts(values: list[float], step: int = 256) -> torch.Tensor:
    """Return a row of activations of which each part of k sums up to one of the values."""
    a = torch.zeros(1, step * len(values), dtype=torch.bfloat16)
    a[0, ::step] = torch.tensor(values)
    return a


@pytest.mark.parametrize("machine", MACHINES)
@pytest.mark.parametrize("shares", [{"splits": 3}, {"blocks": 3}], ids=["split", "stream"])
@pytest.mark.parametrize(
    ("values", "expected"), [([2.0**25, -(2.0**25), 1.0], 1.0), ([1.0, 2.0**25, -(2.0**25)], 0.0)]
)
def test_parts_are_added_in_the_order_of_k(
    values: list[float], expected: float, shares: dict[str, int], machine: str
) -> None:
    """In float32 the small one is lost beside a large one: only this order gives this sum."""
    call = call_of(in_parts(values), ones(768, 32), replace(FEW, **shares), target(machine))
    run(call, machine)
    assert (named(call)["c"] == expected).all()


@pytest.mark.parametrize("blocks", [1, 2, 3, 5, 7, 8, 11, 12, 24, 30])
def test_any_number_of_blocks_shares_all_work(blocks: int) -> None:
    """Two by three tiles of four steps: with parts of one tile, of several, whole ones, and none."""
    torch.manual_seed(blocks)
    weight = quantize(torch.randn(500, 300), "int4", 500)
    a = torch.randn(13, 500).half()
    call = call_of(a, weight, replace(FEW, blocks=blocks), target("sm_90a"))
    run(call, "sm_90a")
    exact = a.double() @ weight.dequantize()
    assert ((named(call)["c"][0].double() - exact).abs() <= 2.0**-10 * exact.abs().clamp_min(8)).all()
    assert not named(call)["arrivals"].any()


@pytest.mark.parametrize("machine", MACHINES)
@pytest.mark.parametrize("name", CASES)
def test_sums_of_parts(name: str, machine: str) -> None:
    """The same result twice, right within the rounding of the whole one, and counters that are zero again."""
    for shares in ({"splits": 2}, {"blocks": 7}):
        check_sums(name, machine, shares)


def check_sums(name: str, machine: str, shares: dict[str, int]) -> None:
    schedule, dtype, activations, zero_point = CASES[name]
    torch.manual_seed(0)
    k, n = (600, 150) if schedule.block_m > 16 else (1100, 200)
    weight = quantize(torch.randn(k, n), dtype, k, zero_point=zero_point, activations=activations)
    a = torch.randn(schedule.block_m + 3, k).half()
    tokens = quantize_tokens(a) if activations else None
    rows = a if tokens is None else tokens.values
    row_scale = None if tokens is None else tokens.scale
    bias = torch.randn(n).half()

    def call(**shares: int) -> Call:
        chosen = replace(schedule, **shares)
        return call_of(
            rows, weight, chosen, target(machine), row_scale=row_scale, bias=bias, activation="relu"
        )

    whole, parts = call(), call(**shares)
    run(whole, machine)
    run(parts, machine)
    first = named(parts)["c"].clone()
    assert not named(parts)["arrivals"].any()
    named(parts)["c"].zero_()
    run(parts, machine)
    assert torch.equal(named(parts)["c"], first)
    assert not named(parts)["arrivals"].any()
    known = rows.double() if tokens is None else tokens.dequantize()
    exact = torch.relu(known @ weight.dequantize() + bias.double())
    limit = 2 * (named(whole)["c"][0].double() - exact).abs().max()
    assert (first[0].double() - exact).abs().max() <= limit
    assert limit < 0.01 * exact.abs().max()


@ASSEMBLES
@pytest.mark.parametrize("machine", MACHINES)
@pytest.mark.parametrize("name", CASES)
def test_no_spills(name: str, machine: str) -> None:
    schedule, dtype, activations, zero_point = CASES[name]
    weight = quantize(torch.randn(512, 256), dtype, 128, zero_point=zero_point, activations=activations)
    rows = torch.zeros(schedule.block_m, 512, dtype=activations or torch.float16)
    for shares in ({"splits": 2}, {"blocks": 3}):
        call = call_of(rows, weight, replace(schedule, **shares), target(machine))
        compiled = call.kernel.compile(*call.arguments, target=machine, **call.options)
        check_resources(compiled)
        assert compiled.ptx.count("atom.acq_rel.gpu.global.add") == 1


# Mistakes that must be found.


def planted(folder: Path, before: str, after: str) -> ModuleType:
    """Return the module of the kernels, made of a text of `shared_tiles` in which a part is another."""
    text = Path(shared_tiles.__file__).read_text(encoding="utf-8")
    assert text.count(before) == 1
    (folder / "planted_tiles.py").write_text(text.replace(before, after), encoding="utf-8")
    kernels = Path(quantized_kernel.__file__).read_text(encoding="utf-8")
    assert kernels.count("tilus.ops.shared_tiles import") == 1
    path = folder / "planted_kernels.py"
    path.write_text(
        kernels.replace("tilus.ops.shared_tiles import", "planted_tiles import"), encoding="utf-8"
    )
    made = None
    for name in ("planted_tiles", "planted_kernels"):
        spec = importlib.util.spec_from_file_location(name, folder / f"{name}.py")
        assert spec is not None
        assert spec.loader is not None
        sys.modules[name] = made = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(made)
    assert made is not None
    return made


MISTAKES = {
    "no barrier": ("    tilus.sync()\n", ""),
    "no order": ('order="acq_rel"', 'order="relaxed"'),
    "one too early": ("== count - 1", "== count - 2"),
    "from the end": ("part = begin + ahead", "part = count - 1 - begin - ahead"),
    "counters left": ("    tilus.store(arrivals, 0, tile)\n", ""),
}


@pytest.mark.parametrize("shares", [{"splits": 3}, {"blocks": 3}], ids=["split", "stream"])
@pytest.mark.parametrize("mistake", [None, *MISTAKES])
def test_mistakes_are_found(mistake: str | None, shares: dict[str, int], tmp_path: Path) -> None:
    """By a hazard that is reported, or by the result or the counters."""
    values = [1.0, 2.0**25, -(2.0**25)]
    call = call_of(in_parts(values), ones(768, 64), replace(FEW, **shares), target("sm_80"))
    before, after = (
        MISTAKES[mistake] if mistake else ("TOGETHER, MOST_TOGETHER = 2048", "TOGETHER, MOST_TOGETHER = 1024")
    )
    made = getattr(planted(tmp_path, before, after), call.kernel.source.name)
    report = made.simulate(*call.arguments, target="sm_80", **call.options)
    right = bool((named(call)["c"] == 0.0).all())
    zeros = not named(call)["arrivals"].any()
    found = {
        None: not report.hazards and right and zeros,
        "no barrier": bool(report.hazards),
        "no order": bool(report.hazards),
        "one too early": bool(report.hazards),
        "from the end": not report.hazards and not right and zeros,
        "counters left": not report.hazards and right and not zeros,
    }
    assert found[mistake], report


# Counters.


def test_counters_of_the_simulator_are_zeros() -> None:
    made = arrivals(torch.device("cpu"), 7)
    assert made.dtype == torch.int32
    assert made.tolist() == [0] * 7
    assert arrivals(torch.device("cpu"), 7).data_ptr() != made.data_ptr()


class Streams:
    """What `Counters` asks of torch.cuda, with streams by number."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now, self.capturing, self.waits = 1, False, 0
        monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: self.capturing)
        monkeypatch.setattr(torch.cuda, "current_stream", lambda device: self)

    @property
    def cuda_stream(self) -> int:
        return self.now

    def synchronize(self) -> None:
        self.waits += 1


def test_counters_belong_to_a_stream(monkeypatch: pytest.MonkeyPatch) -> None:
    streams, counters = Streams(monkeypatch), Counters(torch.device("cpu"))
    first = counters.take(100)
    assert counters.take(50).data_ptr() == first.data_ptr()
    streams.now = 2
    other = counters.take(100)
    assert other.data_ptr() != first.data_ptr()
    assert counters.take(10**5).numel() == 10**5
    streams.now = 1
    assert counters.take(100).data_ptr() == first.data_ptr()
    assert streams.waits == 1


def test_what_a_graph_captures_has_counters_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    streams, counters = Streams(monkeypatch), Counters(torch.device("cpu"))
    eager = counters.take(100)
    streams.capturing = True
    taken = [counters.take(100) for _ in range(3)]
    places = [t.storage_offset() for t in taken]
    assert places == [0, 128, 256]
    assert all(place % LINE == 0 for place in places)
    assert all(t.data_ptr() != eager.data_ptr() for t in taken)
    # Where there are no more, a graph zeroes its own.
    assert counters.take(2 * 10**6).tolist().count(0) == 2 * 10**6


@pytest.mark.gpu
def test_graphs_and_streams_side_by_side() -> None:
    torch.manual_seed(0)
    weight = quantize(torch.randn(2048, 256), "uint4", 128).to("cuda")
    a = torch.randn(4, 2048, device="cuda").half()

    def product() -> torch.Tensor:
        call = call_of(a, weight, replace(FEW, splits=4), target("sm_80"))
        call()
        return named(call)["c"]

    expected = product()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = product()
    streams = [torch.cuda.Stream() for _ in range(3)]
    found = []
    for _ in range(20):
        graph.replay()
        for stream in streams:
            stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(stream):
                found.append(product())
    torch.cuda.synchronize()
    assert torch.equal(captured, expected)
    assert all(torch.equal(x, expected) for x in found)
