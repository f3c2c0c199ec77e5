"""Schedules of products on wgmma: they fit, they share out all work once, and they grow sensibly with the problem."""

from __future__ import annotations

import importlib.util
import sys
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tilus import dtypes
from tilus.codegen import target
from tilus.codegen.assemble import available
from tilus.ops import schedules
from tilus.ops.hopper_matmul_kernel import hopper_matmul_kernel
from tilus.ops.schedules import (
    BLOCK_SCALED_TILES,
    DEVICE_BYTES_PER_CYCLE,
    MOST_ACCUMULATORS,
    ROW_SPAN,
    SCALE_BYTES,
    WIDE_SPAN,
    HopperSchedule,
    accumulators,
    block_scaled_schedule,
    estimated_cycles,
    hopper_candidates,
    hopper_schedule,
    shared_bytes,
    tile_count,
    work_of,
)

HOPPER = target("sm_90a")
PROCESSORS = 132
SIZES = st.integers(1, 20_000)


def benchmark_shapes() -> list[tuple[int, int, int]]:
    """Return the sizes that benchmarks/matmul.py measures."""
    folder = Path(__file__).resolve().parents[2] / "benchmarks"
    sys.path.insert(0, str(folder))
    try:
        spec = importlib.util.spec_from_file_location("matmul_benchmark", folder / "matmul.py")
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    finally:
        sys.path.remove(str(folder))
    return [(m, n, k) for m, n, k, _ in module.cases(dry_run=False)]


def steps_of(chosen: HopperSchedule, m: int, n: int, k: int, batches: int, processors: int) -> list[int]:
    """Return, for each tile, how many of its steps are done, after the rule that the kernel follows."""
    work = work_of(chosen, m, n, k, batches, processors)
    steps, tiles = -(-k // chosen.block_k), tile_count(chosen, m, n, batches)
    teams, whole = work.blocks // chosen.cluster, tiles - work.shared_tiles
    done = [0] * tiles
    for tile in range(whole):
        done[tile] += steps
    total = work.shared_tiles * steps
    for team in range(teams):
        for at in range(team * total // teams, (team + 1) * total // teams):
            done[whole + at // steps] += 1
    return done


@given(
    m=SIZES,
    n=SIZES,
    k=st.integers(1, 4000),
    stream=st.booleans(),
    cluster=st.sampled_from([(1, 1), (2, 1), (1, 2)]),
)
def test_every_step_of_every_tile_is_done_once(
    m: int, n: int, k: int, stream: bool, cluster: tuple[int, int]
) -> None:
    m, n = m % 1500 + 1, n % 1500 + 1
    chosen = HopperSchedule(128, 128, 64, 4, 2, False, stream, *cluster)
    work = work_of(chosen, m, n, k, 1, PROCESSORS)
    assert 0 < work.blocks <= PROCESSORS
    assert work.blocks % chosen.cluster == 0
    assert set(steps_of(chosen, m, n, k, 1, PROCESSORS)) == {-(-k // 64)}
    if work.shared_tiles:
        # The kernel for the second half counts on each cluster having a piece.
        assert work.shared_tiles * -(-k // 64) >= work.blocks // chosen.cluster > 1


@pytest.mark.parametrize("out_bits", [16, 32])
@pytest.mark.parametrize("bits", [8, 16, 32])
def test_candidates_fit(bits: int, out_bits: int) -> None:
    found = list(hopper_candidates(bits, out_bits, HOPPER))
    assert len(found) == len(set(found)) > 10
    for chosen in found:
        assert chosen.block_k * bits == 1024
        assert 2 <= chosen.stages
        assert shared_bytes(chosen, out_bits) <= HOPPER.shared_bytes
        assert accumulators(chosen) <= MOST_ACCUMULATORS
        assert chosen.block_m % (64 if chosen.pingpong else 64 * chosen.consumers) == 0


@given(m=SIZES, n=SIZES, k=SIZES, bits=st.sampled_from([8, 16, 32]), batches=st.integers(1, 64))
def test_the_schedule_is_the_best_of_its_own_estimate(
    m: int, n: int, k: int, bits: int, batches: int
) -> None:
    chosen = hopper_schedule(m, n, k, batches, bits, 16, HOPPER, PROCESSORS)
    assert chosen in list(hopper_candidates(bits, 16, HOPPER))
    assert chosen.block_m <= 64 or chosen.block_m < 2 * m
    assert chosen.block_n <= 64 or chosen.block_n < 2 * n


def test_estimates_grow_with_the_work() -> None:
    for chosen in hopper_candidates(16, 16, HOPPER):
        sizes = (256, 1024, 4096, 8192)
        for fixed in ((1024, 1024), (8192, 8192)):
            by_k = [estimated_cycles(chosen, *fixed, k, 1, 16, PROCESSORS) for k in sizes]
            by_batch = [estimated_cycles(chosen, *fixed, 1024, b, 16, PROCESSORS) for b in (1, 4, 16, 64)]
            for lengths in (by_k, by_batch):
                # How tiles are shared out may change for the better, a little.
                assert all(later > 0.99 * earlier for earlier, later in pairwise(lengths))
                assert lengths[-1] > 1.5 * lengths[0]


def test_large_products_have_the_largest_tile_and_share_it() -> None:
    chosen = hopper_schedule(8192, 8192, 8192, 1, 16, 16, HOPPER, PROCESSORS)
    assert (chosen.block_m, chosen.block_n, chosen.cluster) == (128, 256, 2)
    assert not chosen.pingpong


def test_few_rows_keep_all_multiprocessors_busy() -> None:
    for m in (1, 16, 64):
        for n, k in ((8192, 8192), (8192, 28672), (10240, 8192), (57344, 8192)):
            chosen = hopper_schedule(m, n, k, 1, 16, 16, HOPPER, PROCESSORS)
            assert chosen.block_m == 64
            # As many bytes as device memory gives come in.
            assert work_of(chosen, m, n, k, 1, PROCESSORS).blocks >= 64


@pytest.mark.parametrize("bits", [8, 16])
@pytest.mark.parametrize("m", [1, 16, 64, 128])
def test_few_rows_keep_device_memory_busy(m: int, bits: int) -> None:
    """Each multiprocessor has enough bytes under way, and the products take little longer than their bytes."""
    shapes = [(10240, 8192), (8192, 8192), (57344, 8192), (8192, 28672)] + [(4096, 7168)] * (m <= 64)
    for n, k in shapes:
        plain = hopper_schedule(m, n, k, 1, bits, 16, HOPPER, PROCESSORS, span=ROW_SPAN)
        blocks = block_scaled_schedule(m, n, k, 16, HOPPER, PROCESSORS)
        for chosen, size, promoted in ((plain, bits, False), (blocks, 8, True)):
            lines = min(chosen.block_m, m) / chosen.cluster_n + chosen.block_n / chosen.cluster_m
            # 4.8 TB/s times 700 ns over 132 multiprocessors is 25 KB.
            assert (chosen.stages - 1) * lines * 128 > 60 << 10, (n, k, chosen)
            moved = (m * k + n * k) * size / 8 + m * n * 2
            least = moved / (DEVICE_BYTES_PER_CYCLE * PROCESSORS)
            length = estimated_cycles(chosen, m, n, k, 1, size, PROCESSORS, promoted=promoted)
            # Launch, the first bytes and the last store: 2 microseconds.
            assert length < 1.05 * least + 4000, (n, k, chosen)


def test_operands_along_n_share_whole_swizzles() -> None:
    wide, narrow = (set(hopper_candidates(16, 16, HOPPER, span=span)) for span in (WIDE_SPAN, ROW_SPAN))
    assert wide < narrow
    for chosen in wide:
        assert chosen.block_n // chosen.cluster_m % 64 == 0 or chosen.cluster_m == 1
        assert chosen.block_m // chosen.cluster_n % 64 == 0


def test_a_schedule_that_was_chosen_before_is_found_at_once() -> None:
    """It is looked up, not estimated: nothing but a dictionary stands between an op and its launch."""
    for choose, arguments in (
        (hopper_schedule, (77, 4096, 4096, 1, 16, 16, HOPPER, PROCESSORS)),
        (schedules._block_scaled_schedule, (77, 4096, 4096, 16, HOPPER, PROCESSORS, 96)),
        (schedules.grouped_schedule, (64, 4096, 4096, 16, 16, HOPPER, PROCESSORS)),
    ):
        first = choose(*arguments)
        hits = choose.cache_info().hits
        assert choose(*arguments) is first
        assert choose.cache_info().hits == hits + 1


@pytest.mark.parametrize("bits", [8, 16])
def test_waves_are_nearly_full_for_the_shapes_of_the_benchmark(bits: int) -> None:
    """Where tensor cores are the limit, little of their time is lost at the end."""
    for m, n, k in benchmark_shapes():
        if m < 1024:
            continue
        chosen = hopper_schedule(m, n, k, 1, bits, 16, HOPPER, PROCESSORS)
        work = work_of(chosen, m, n, k, 1, PROCESSORS)
        whole = tile_count(chosen, m, n, 1) - work.shared_tiles
        teams = PROCESSORS // chosen.cluster
        waves = -(-whole // teams) + work.shared_tiles / teams
        assert tile_count(chosen, m, n, 1) / teams / waves > 0.9, (m, n, k, chosen)


def test_block_scaled_schedules_fit() -> None:
    for m, n, k in benchmark_shapes():
        chosen = block_scaled_schedule(m, n, k, 16, HOPPER, PROCESSORS)
        assert (chosen.block_m, chosen.block_n, chosen.consumers) in BLOCK_SCALED_TILES
        assert shared_bytes(chosen, 16, SCALE_BYTES) <= HOPPER.shared_bytes
        assert chosen.stages >= 3


@pytest.mark.skipif(available() is not None, reason="NVIDIA's assembler has no package for this platform")
@pytest.mark.parametrize("name", ["bfloat16", "float8_e4m3"])
def test_schedules_of_the_benchmark_spill_nothing(name: str) -> None:
    """What `matmul` compiles for the sizes that are measured, with scales for each row where it is float8."""
    dtype = dtypes.dtype(name)
    found = {
        hopper_schedule(m, n, k, 1, dtype.bits, 16, HOPPER, PROCESSORS) for m, n, k in benchmark_shapes()
    }
    for chosen in found:
        made = hopper_matmul_kernel.compile(
            target="sm_90a", dtype=dtype, b_dtype=dtype, out_dtype=dtypes.bfloat16, b_turned=True,
            scales="rows" if dtype.bits == 8 else "", **vars(chosen),
        )  # fmt: skip
        assert made.resources is not None
        assert made.resources.spill_stores == made.resources.spill_loads == made.resources.stack == 0, chosen
        assert made.resources.warnings == (), chosen
