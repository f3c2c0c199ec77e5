"""The cost model: what it counts agrees with the simulator, and what it estimates orders the obvious cases."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

import tilus
from tests.runtime import kernels
from tilus import Pointer, Tensor, constexpr, float16, float32, int32
from tilus.codegen import TARGETS
from tilus.codegen.assemble import Resources
from tilus.codegen.figures import FIGURES, TensorRates, calibrated, figures, figures_of_device
from tilus.errors import TargetNotSupported
from tilus.runtime.kernel import Kernel
from tilus.runtime.tuning.count import sampled_iterations
from tilus.runtime.tuning.model import blocks_per_processor, device_bytes, estimate
from tilus.runtime.tuning.search import final_ir, work_for
from tilus.runtime.tuning.work import Traffic, Work

H200, A100 = figures("H200"), figures("A100")


@tilus.kernel
def matmul(
    a: Tensor[float16, "m k"], b: Tensor[float16, "k n"], c: Tensor[float32, "m n"], *, block_m: constexpr = 64,
    block_n: constexpr = 64, block_k: constexpr = 32, stages: constexpr = 3,
):  # fmt: skip
    m, n = c.shape
    tilus.grid(tilus.cdiv(m, block_m), tilus.cdiv(n, block_n), warps=4)
    bi, bj = tilus.block_id()
    acc = tilus.zeros((block_m, block_n), float32)
    for k0 in tilus.pipeline(range(0, a.shape[1], block_k), stages=stages):
        sa = tilus.shared(float16, (block_m, block_k))
        sb = tilus.shared(float16, (block_k, block_n))
        tilus.copy_async(sa, a, (bi * block_m, k0))
        tilus.copy_async(sb, b, (k0, bj * block_n))
        acc = tilus.dot(tilus.load(sa), tilus.load(sb), acc)
    tilus.store(c, acc, (bi * block_m, bj * block_n))


@tilus.kernel
def persistent_rows(
    x: Tensor[float32, "m n"], out: Tensor[float32, "m n"], blocks: int32, *, width: constexpr = 64
):
    """Blocks take every so many rows; even ones are doubled, the others are left out."""
    m, n = x.shape
    tilus.grid(blocks, warps=1)
    for row in range(tilus.block_id(0), m, tilus.grid_dim(0)):
        if row % 2 == 0:
            for column in range(0, n, width):
                tilus.store(out, tilus.load(x, [row, column], shape=[1, width]) * 2.0, [row, column])


def count(
    kernel: Kernel, *args: object, target: str = "sm_80", processors: int = 108, **constexprs: object
) -> Work:
    bound = kernel.bind(**constexprs)
    call = bound._check(args, {}, meta=True)
    return work_for(bound, call, final_ir(bound, call, target), target, processors)


def halves(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).standard_normal(shape).astype(np.float16)


# What is counted.


@pytest.mark.parametrize("target", ["sm_80", "sm_90a"])
@pytest.mark.parametrize("shape", [(128, 128, 96), (100, 72, 80), (1, 64, 64)])
def test_bytes_and_tensor_operations_are_those_of_the_simulator(
    target: str, shape: tuple[int, int, int]
) -> None:
    m, n, k = shape
    args = halves(m, k), halves(k, n), np.zeros((m, n), np.float32)
    work = count(matmul, *args, target=target)
    counters = matmul.simulate(*args, target=target).counters
    # What lies outside of a tensor is not read; the simulator's bytes of a bulk copy are rounded up to its sectors.
    assert work.bytes_read == pytest.approx(counters["global_bytes_read"], rel=0.05)
    assert work.bytes_written == counters["global_bytes_written"] == 4 * m * n
    assert work.flops == counters["tensor_core_flops"] > 0
    assert work.exact


@pytest.mark.parametrize("target", ["sm_80", "sm_90a"])
def test_issue_slots_and_shared_memory_are_near_those_of_the_simulator(target: str) -> None:
    args = halves(128, 256), halves(256, 128), np.zeros((128, 128), np.float32)
    work = count(matmul, *args, target=target)
    counters = matmul.simulate(*args, target=target).counters
    # The tile IR does not say what LLVM makes of it; a factor of two orders candidates well enough.
    assert 0.5 < work.issue * work.blocks / counters["warp_instructions"] < 2
    # wgmma reads shared memory by itself, which the simulator does not count; the rest is exact.
    moved = 128 * counters["shared_wavefronts"] if target == "sm_80" else counters["async_bytes"]
    assert work.shared_bytes_moved * work.blocks == (1 if target == "sm_80" else 2) * moved


def test_persistent_loops_and_branches_count_as_often_as_they_run() -> None:
    x, out = np.ones((37, 128), np.float32), np.zeros((37, 128), np.float32)
    work = count(persistent_rows, x, out, 5, target="sm_90a", processors=4)
    counters = persistent_rows.simulate(x, out, 5).counters
    assert work.exact
    assert work.blocks == 5
    assert work.bytes_read == counters["global_bytes_read"] == 19 * 128 * 4
    assert work.bytes_written == counters["global_bytes_written"]


def test_a_tensor_behind_a_pointer_is_known_by_its_parameter() -> None:
    x, out = np.ones(256, np.float32), np.zeros(256, np.float32)
    work = count(kernels.through_pointer, x, out)
    assert {t.tensor: (t.read, t.written) for t in work.traffic} == {"source": (1024, 0), "target": (0, 1024)}


def test_a_bound_that_comes_from_memory_is_said_to_be_unknown() -> None:
    x, out = np.array([3], np.int32), np.zeros(32, np.float32)
    assert not count(unknown_trips, x, out).exact


@tilus.kernel
def unknown_trips(counts: Pointer[int32], out: Tensor[float32, "n"]):
    tilus.grid(1, warps=1)
    view = tilus.view(counts, int32, [1], [1])
    total = tilus.zeros([32], float32)
    for i in range(tilus.load(view, [0], shape=[1])[0]):
        total = total + 1.0
    tilus.store(out, total, [0])


@tilus.kernel
def by_hand(out: Tensor[float32, "n"], *, lines: constexpr):
    tilus.grid(1, warps=1)
    x = tilus.zeros([64], float32)
    for _ in tilus.static_range(lines):
        x = tilus.inline_ptx("add.f32 $0, $1, $1; neg.f32 $0, $0;", [x], float32)
    tilus.store(out, x, [0])


def test_instructions_that_are_written_by_hand_count_for_each_element() -> None:
    plain, one, two = (count(by_hand, np.zeros(64, np.float32), lines=n).issue for n in range(3))
    # Two lines for each of a thread's two elements.
    assert one - plain == two - one == 4


@tilus.kernel
def turned(
    x: Tensor[float32, "n"],
    out: Tensor[float32, "n"],
    *,
    times: constexpr,
    width: constexpr,
    warps: constexpr,
):
    tilus.grid(1, warps=warps)
    tile = tilus.load(x, 0, width)
    for _ in tilus.static_range(times):
        tile = tilus.flip(tile)
    tilus.store(out, tile, 0)


def test_exchanges_count_as_shuffles_or_as_trips_through_shared_memory() -> None:
    x, out = np.ones(256, np.float32), np.zeros(256, np.float32)
    by_shuffles = [count(turned, x, out, times=n, width=64, warps=1) for n in range(3)]
    # Two elements of each thread.
    assert [work.issue - by_shuffles[0].issue for work in by_shuffles] == [0, 2, 4]
    across_warps = [count(turned, x, out, times=n, width=256, warps=4) for n in range(3)]
    assert [work.shared_bytes_moved for work in across_warps] == [0, 2 * 1024, 4 * 1024]
    assert [work.syncs for work in across_warps] == [0, 2, 4]


def test_blocks_of_a_wave_share_what_they_read_in_common() -> None:
    a, b, c = halves(64 * 8, 64), halves(64, 64 * 4), np.zeros((512, 256), np.float32)
    work = count(matmul, a, b, c, processors=8)
    found = {t.tensor: t for t in work.traffic}
    # The first eight blocks are one column of tiles: all of a, and one tile of b.
    assert found["a"].distinct == 1.0
    assert found["b"].distinct == pytest.approx(1 / 8)
    assert found["a"].footprint == a.nbytes
    assert found["a"].read == 4 * a.nbytes


def test_deeper_pipelines_are_seen() -> None:
    a, b, c = halves(64, 256), halves(256, 64), np.zeros((64, 64), np.float32)
    for target in ("sm_80", "sm_90a"):
        depths = [count(matmul, a, b, c, target=target, stages=stages).depth for stages in (2, 3, 4)]
        assert depths == sorted(depths), target
        assert depths[0] < depths[2], target


# What is estimated.

PLAIN = Work(
    blocks=1320,
    threads=128,
    traffic=(Traffic("a", 1e8, 0.0, 1e8, 1.0), Traffic("c", 0.0, 1e6, 1e6, 1.0)),
    tensor_ops=(("float16", True, 1e7),),
    issue=2000.0,
    lanes=(("fma", 1e4),),
    shared_bytes_moved=1e5,
    trips=64.0,
    depth=3,
    syncs=64.0,
    shared_bytes=40_000,
    tile_registers=64,
    exact=True,
)


@pytest.mark.parametrize(
    "more",
    [
        {"blocks": 13200},
        {"tensor_ops": (("float16", True, 1e9),)},
        {"issue": 1e6},
        {"lanes": (("fma", 1e8),)},
        {"shared_bytes_moved": 1e8},
        {"syncs": 1e5},
        {"shared_bytes": 220_000},
        {"traffic": (Traffic("a", 1e11, 0.0, 1e11, 1.0),)},
    ],
    ids=lambda more: next(iter(more)),
)
def test_more_work_never_takes_less_time(more: dict[str, object]) -> None:
    assert estimate(replace(PLAIN, **more), H200).seconds > estimate(PLAIN, H200).seconds  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "field", ["clock", "global_bandwidth", "l2_bytes_per_clock", "shared_bytes_per_clock", "issue_per_clock", "processors"]
)  # fmt: skip
def test_a_better_card_is_never_slower(field: str) -> None:
    better = replace(H200, **{field: 2 * getattr(H200, field)})
    for work in (
        PLAIN,
        replace(PLAIN, issue=1e6),
        replace(PLAIN, traffic=(Traffic("a", 1e10, 0.0, 1e10, 1.0),)),
    ):
        assert estimate(work, better).seconds <= estimate(work, H200).seconds


def test_the_busiest_resource_is_named() -> None:
    cases: dict[str, dict[str, object]] = {
        "tensor": {"tensor_ops": (("float16", True, 1e9),)},
        "issue": {"issue": 1e6},
        "shared": {"shared_bytes_moved": 1e9},
        "special": {"lanes": (("special", 1e9),)},
        "memory": {"traffic": (Traffic("a", 1e11, 0.0, 1e11, 1.0),)},
        "l2": {"traffic": (Traffic("a", 1e11, 0.0, 1e6, 1.0),)},
    }
    for name, more in cases.items():
        assert estimate(replace(PLAIN, **more), H200).bound == name  # type: ignore[arg-type]


def test_a_block_more_than_a_wave_costs_a_wave() -> None:
    busy = replace(PLAIN, tensor_ops=(("float16", True, 1e9),))
    times = [estimate(replace(busy, blocks=blocks), H200).seconds for blocks in (131, 132, 133, 264)]
    assert times[0] == pytest.approx(times[1], rel=0.01)
    assert times[2] > 1.8 * times[1]
    assert times[3] == pytest.approx(times[2], rel=0.01)


def test_a_shallow_pipeline_and_loads_that_are_waited_for_show_their_latency() -> None:
    one_wave = replace(PLAIN, blocks=132, trips=1000.0)
    waited, shallow, deep = (estimate(replace(one_wave, depth=depth), H200).seconds for depth in (0, 1, 4))
    assert waited > shallow > 2 * deep


def test_few_bytes_on_their_way_do_not_fill_the_memory() -> None:
    stream = replace(
        PLAIN, blocks=16, tensor_ops=(), issue=10.0, traffic=(Traffic("a", 1e8, 0.0, 1e8, 1.0),), trips=1e4
    )
    few, many = estimate(stream, H200), estimate(replace(stream, blocks=1320, trips=12.0), H200)
    assert few.seconds > 4 * many.seconds
    assert dict(few.parts)["memory"] > 4 * dict(many.parts)["memory"]
    assert many.seconds < 2 * 1e8 / (H200.global_bandwidth * H200.global_share)


def test_what_the_cache_keeps_comes_from_memory_once() -> None:
    small = replace(PLAIN, traffic=(Traffic("a", 1e9, 0.0, 1e6, 0.5),))
    large = replace(PLAIN, traffic=(Traffic("a", 1e9, 0.0, 5e8, 0.75),))
    assert device_bytes(small, H200) == 1e6
    assert device_bytes(large, H200) == 0.75e9


def test_blocks_share_registers_shared_memory_and_threads() -> None:
    assert blocks_per_processor(128, 64, 1000, H200) == 8
    assert blocks_per_processor(128, 255, 1000, H200) == 2
    assert blocks_per_processor(128, 32, 100_000, H200) == 2
    assert blocks_per_processor(1024, 32, 0, H200) == 2
    assert blocks_per_processor(32, 16, 0, H200) == 32
    assert blocks_per_processor(1024, 255, 0, H200) == 0
    assert blocks_per_processor(128, 32, 200_000, A100) == 0


def test_a_candidate_that_spills_or_does_not_fit_is_last() -> None:
    fits = Resources(128, 0, 0, 0, 0, 1)
    spills = replace(fits, spill_loads=64)
    busy = replace(PLAIN, tensor_ops=(("float16", True, 1e9),))
    assert estimate(busy, H200, spills).seconds > 1.5 * estimate(busy, H200, fits).seconds
    assert estimate(replace(busy, tile_registers=300), H200).seconds > 1.5 * estimate(busy, H200).seconds
    impossible = estimate(replace(PLAIN, shared_bytes=400_000), H200)
    assert impossible.seconds == float("inf")
    assert impossible.blocks_per_processor == 0


def test_a_matrix_product_prefers_tiles_that_the_card_can_feed() -> None:
    """At 4096 cubed: a tiny tile reads too much, and a shallow pipeline waits."""
    torch = pytest.importorskip("torch")
    a = torch.empty((4096, 4096), dtype=torch.float16, device="meta")
    c = torch.empty((4096, 4096), dtype=torch.float32, device="meta")
    for card, target in ((H200, "sm_90a"), (A100, "sm_80")):

        def seconds(**constexprs: int) -> float:
            work = count(matmul, a, a, c, target=target, processors=card.processors, **constexprs)  # noqa: B023
            return estimate(work, card).seconds  # noqa: B023

        assert seconds(block_m=16, block_n=32) > 1.5 * seconds(block_m=128, block_n=128)
        assert seconds(block_m=64, block_n=64, stages=2) >= 0.99 * seconds(block_m=64, block_n=64, stages=4)
        # No card does better than its tensor cores.
        assert seconds(block_m=128, block_n=128) > 2 * 4096**3 / (
            card.processors * card.clock * card.tensor.f16
        )


# Figures.


def test_peak_rates_are_those_of_the_data_sheets() -> None:
    for name, tera in (
        ("H100", 989.4),
        ("H200", 989.4),
        ("A100", 312),
        ("L40S", 366),
        ("RTX 4090", 165.2),
        ("RTX 3090", 71),
        ("T4", 65),
        ("RTX 5090", 209.5),
        ("B200", 2250),
    ):
        card = FIGURES[name]
        assert card.processors * card.clock * card.tensor.f16 / 1e12 == pytest.approx(tera, rel=0.005)
        named = {field.strip() for fields, _ in card.sources for field in fields.split(",")}
        assert {"clock", "tensor", "global_bandwidth", "l2_bytes", "lanes", "shared_latency"} <= named


def test_mma_sync_does_not_reach_all_of_hopper() -> None:
    assert H200.tensor_ops("bfloat16", asynchronous=True) == 4096
    assert H200.tensor_ops("bf16") < 3000 < 4096 == 2 * A100.tensor_ops("bf16")
    assert A100.tensor_ops("e4m3") == 0


def test_every_target_has_a_card() -> None:
    for name in TARGETS:
        assert figures(name).target == name
        assert estimate(replace(PLAIN, tensor_ops=()), figures(name)).seconds < 1


def test_a_device_is_known_by_its_name_and_else_by_its_target() -> None:
    assert figures_of_device("NVIDIA H200", "sm_90a").name == "H200"
    assert figures_of_device("NVIDIA GeForce RTX 4090", "sm_89").name == "RTX 4090"
    assert figures_of_device("NVIDIA H800", "sm_90a", processors=66).processors == 66
    with pytest.raises(TargetNotSupported, match="there are no figures of 'GTX 1080'"):
        figures("GTX 1080")


def test_measured_figures_take_the_place_of_documented_ones() -> None:
    card = calibrated(H200, {"global_share": 0.8, "tensor": {"f16": 3900}})
    assert card.global_share == 0.8
    assert card.tensor == TensorRates(3900, 2048, 8192, 8192, 256)
    assert card.sources[0] == ("global_share, tensor", "measured by benchmarks/microbench.py")
    with pytest.raises(ValueError, match="there is no figure 'speed'"):
        calibrated(H200, {"speed": 1})


@pytest.mark.parametrize("nested", [False, True])
@pytest.mark.parametrize("most", [0, 1, 5, 8, 9, 30])
def test_sampled_iterations_stand_for_all_and_exist(most: int, nested: bool) -> None:
    trips = np.arange(most + 1)
    rounds = sampled_iterations(trips, nested)
    assert len(rounds) <= 8
    assert np.array_equal(sum((times for _, times in rounds), np.zeros(most + 1)), trips)
    for at, times in rounds:
        assert ((times == 0) | ((0 <= at) & (at < trips))).all()
