"""A float16 matmul for Hopper in six steps, from plain tensor cores to a persistent, warp-specialised kernel.

Each version computes c = a @ b.T for row-major a [m, k] and b [n, k]. Without a GPU they run as PTX for sm_90a on the
simulator, with every hazard check on; the table shows what each step changes.

    python examples/hopper_matmul.py [m n k]
"""

from __future__ import annotations

import sys

import torch

import tilus
from tilus import Tensor, constexpr, float16, float32
from tilus.errors import TilusError

TARGET = "sm_90a"


# 1. Tensor cores of one warp at a time (mma.sync). Each step copies a tile of a and b to shared memory, waits, loads
# fragments with ldmatrix and multiplies. Nothing overlaps.
@tilus.kernel
def v1_mma(a: Tensor[float16, "m k"], b: Tensor[float16, "n k"], c: Tensor[float16, "m n"]):
    m, k = a.shape
    n = b.shape[0]
    tilus.grid(tilus.cdiv(m, 128), tilus.cdiv(n, 128), warps=4)
    i, j = tilus.block_id()[:2]
    sa, sb = tilus.shared(float16, (128, 64)), tilus.shared(float16, (128, 64))
    acc = tilus.zeros((128, 128), float32)
    for k0 in range(0, k, 64):
        tilus.copy_async(sa, a, (i * 128, k0))
        tilus.copy_async(sb, b, (j * 128, k0))
        tilus.copy_async_commit()
        tilus.copy_async_wait(0)
        acc = tilus.dot(tilus.load(sa), tilus.load(sb.transpose()), acc)
    tilus.store(c, acc.to(float16), (i * 128, j * 128))


# 2. The tensor memory accelerator fetches whole tiles on behalf of one thread, and wgmma multiplies straight from
# shared memory: no address arithmetic, no fragments in registers. The barrier `full` says that the bytes are there.
@tilus.kernel
def v2_tma_wgmma(a: Tensor[float16, "m k"], b: Tensor[float16, "n k"], c: Tensor[float16, "m n"]):
    m, k = a.shape
    n = b.shape[0]
    tilus.grid(tilus.cdiv(m, 128), tilus.cdiv(n, 128), warps=4)
    i, j = tilus.block_id()[:2]
    sa, sb = tilus.shared(float16, (128, 64)), tilus.shared(float16, (128, 64))
    full = tilus.barrier()
    acc = tilus.zeros((128, 128), float32)
    for step in range(tilus.cdiv(k, 64)):
        with tilus.warps(0, 1):
            tilus.arrive(full, bytes=2 * 128 * 64 * 2)
            tilus.copy_bulk(sa, a, (i * 128, step * 64), full)
            tilus.copy_bulk(sb, b, (j * 128, step * 64), full)
        # A barrier completes one phase after another; waiters name the parity of theirs.
        tilus.wait(full, step % 2)
        acc = tilus.dot_wait(tilus.dot_async(sa, sb.transpose(), acc))
        tilus.sync()
    tilus.store(c, acc.to(float16), (i * 128, j * 128))


# 3. Several stages: the copies of later steps are under way while this one is multiplied.
@tilus.kernel
def v3_stages(
    a: Tensor[float16, "m k"], b: Tensor[float16, "n k"], c: Tensor[float16, "m n"], *, stages: constexpr = 4
):
    m, k = a.shape
    n = b.shape[0]
    tilus.grid(tilus.cdiv(m, 128), tilus.cdiv(n, 128), warps=4)
    i, j = tilus.block_id()[:2]
    sa, sb = tilus.shared(float16, (stages, 128, 64)), tilus.shared(float16, (stages, 128, 64))
    full = tilus.barrier(stages)
    steps = tilus.cdiv(k, 64)
    with tilus.warps(0, 1):
        for step in range(tilus.min(stages - 1, steps)):
            tilus.arrive(full, index=step, bytes=2 * 128 * 64 * 2)
            tilus.copy_bulk(sa[step], a, (i * 128, step * 64), full, index=step)
            tilus.copy_bulk(sb[step], b, (j * 128, step * 64), full, index=step)
    acc = tilus.zeros((128, 128), float32)
    for step in range(steps):
        stage = step % stages
        tilus.wait(full, step // stages % 2, index=stage)
        acc = tilus.dot_wait(tilus.dot_async(sa[stage], sb[stage].transpose(), acc))
        # All warps have read the stage of the step before: it may be filled again.
        tilus.sync()
        later = step + stages - 1
        if later < steps:
            with tilus.warps(0, 1):
                tilus.arrive(full, index=later % stages, bytes=2 * 128 * 64 * 2)
                tilus.copy_bulk(sa[later % stages], a, (i * 128, later * 64), full, index=later % stages)
                tilus.copy_bulk(sb[later % stages], b, (j * 128, later * 64), full, index=later % stages)
    tilus.store(c, acc.to(float16), (i * 128, j * 128))


# 4. Warp specialisation: one warp only copies, others only multiply, and `empty` barriers say which stages are free.
# Two warpgroups multiply, 64 rows each, and registers move from the producer to them.
@tilus.kernel
def v4_specialised(
    a: Tensor[float16, "m k"], b: Tensor[float16, "n k"], c: Tensor[float16, "m n"], *, stages: constexpr = 4
):
    m, k = a.shape
    n = b.shape[0]
    tilus.grid(tilus.cdiv(m, 128), tilus.cdiv(n, 128), warps=12)
    i, j = tilus.block_id()[:2]
    sa, sb = tilus.shared(float16, (stages, 128, 64)), tilus.shared(float16, (stages, 128, 64))
    full, empty = tilus.barrier(stages), tilus.barrier(stages, arrivals=8)
    steps = tilus.cdiv(k, 64)
    with tilus.warps(8, 4, registers=40):
        with tilus.warps(8, 1):
            for step in range(steps):
                stage = step % stages
                tilus.wait(empty, step // stages + 1, index=stage)
                tilus.arrive(full, index=stage, bytes=2 * 128 * 64 * 2)
                tilus.copy_bulk(sa[stage], a, (i * 128, step * 64), full, index=stage)
                tilus.copy_bulk(sb[stage], b, (j * 128, step * 64), full, index=stage)
    with tilus.warps(0, 8, registers=232):
        acc = tilus.zeros((128, 128), float32)
        for step in range(steps):
            stage = step % stages
            tilus.wait(full, step // stages, index=stage)
            acc = tilus.dot_wait(tilus.dot_async(sa[stage], sb[stage].transpose(), acc))
            tilus.arrive(empty, index=stage)
        tilus.store(c, acc.to(float16), (i * 128, j * 128))


# 5. The same, written by nobody: `tilus.pipeline` over an ordinary loop becomes producer, consumers and barriers, and
# one product stays in flight while the next stage is waited for. On older GPUs the same source is version 1 with
# stages.
@tilus.kernel
def v5_pipeline(
    a: Tensor[float16, "m k"], b: Tensor[float16, "n k"], c: Tensor[float16, "m n"], *, stages: constexpr = 4
):
    m, k = a.shape
    n = b.shape[0]
    tilus.grid(tilus.cdiv(m, 128), tilus.cdiv(n, 128), warps=8)
    i, j = tilus.block_id()[:2]
    acc = tilus.zeros((128, 128), float32)
    for k0 in tilus.pipeline(range(0, k, 64), stages=stages):
        sa, sb = tilus.shared(float16, (128, 64)), tilus.shared(float16, (128, 64))
        tilus.copy_async(sa, a, (i * 128, k0))
        tilus.copy_async(sb, b, (j * 128, k0))
        acc = tilus.dot(tilus.load(sa), tilus.load(sb.transpose()), acc)
    tilus.store(c, acc.to(float16), (i * 128, j * 128))


# 6. Persistent: as many blocks as multiprocessors, each of which takes one tile after another. The producer runs on
# into the next tile while the consumers still store this one, and tiles go out through shared memory by TMA.
@tilus.kernel
def v6_persistent(
    a: Tensor[float16, "m k"],
    b: Tensor[float16, "n k"],
    c: Tensor[float16, "m n"],
    *,
    stages: constexpr = 4,
    blocks: constexpr = 132,
):
    m, k = a.shape
    n = b.shape[0]
    tiles_n = tilus.cdiv(n, 128)
    tilus.grid(tilus.min(tilus.cdiv(m, 128) * tilus.cdiv(n, 128), blocks), warps=12)
    tiles = tilus.cdiv(m, 128) * tiles_n
    first, count = tilus.block_id(0), tilus.grid_dim(0)
    sa, sb = tilus.shared(float16, (stages, 128, 64)), tilus.shared(float16, (stages, 128, 64))
    sc = tilus.shared(float16, (128, 128))
    full, empty = tilus.barrier(stages), tilus.barrier(stages, arrivals=8)
    steps = tilus.cdiv(k, 64)
    with tilus.warps(8, 4, registers=40):
        with tilus.warps(8, 1):
            turn = 0
            for tile in range(first, tiles, count):
                for step in range(steps):
                    stage = turn % stages
                    tilus.wait(empty, turn // stages + 1, index=stage)
                    tilus.arrive(full, index=stage, bytes=2 * 128 * 64 * 2)
                    tilus.copy_bulk(sa[stage], a, (tile // tiles_n * 128, step * 64), full, index=stage)
                    tilus.copy_bulk(sb[stage], b, (tile % tiles_n * 128, step * 64), full, index=stage)
                    turn += 1
    with tilus.warps(0, 8, registers=232):
        turn = 0
        for tile in range(first, tiles, count):
            acc = tilus.zeros((128, 128), float32)
            for _ in range(steps):
                stage = turn % stages
                tilus.wait(full, turn // stages, index=stage)
                acc = tilus.dot_wait(tilus.dot_async(sa[stage], sb[stage].transpose(), acc))
                tilus.arrive(empty, index=stage)
                turn += 1
            # The store of the tile before must have left shared memory.
            tilus.bulk_wait(0)
            tilus.sync()
            tilus.store(sc, acc.to(float16))
            tilus.fence("async")
            tilus.sync()
            tilus.store_bulk(c, sc, (tile // tiles_n * 128, tile % tiles_n * 128))
            tilus.bulk_commit()
        tilus.bulk_wait(0, read=False)


VERSIONS = {
    "1 mma.sync": (v1_mma, {}),
    "2 TMA, wgmma": (v2_tma_wgmma, {}),
    "3 four stages": (v3_stages, {}),
    "4 specialised": (v4_specialised, {}),
    "5 tilus.pipeline": (v5_pipeline, {}),
    "6 persistent": (v6_persistent, {"blocks": 3}),
}


def run(m: int, n: int, k: int) -> None:
    """Run all versions on the simulator, check them, and print their counters."""
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.randn(rows, k, generator=generator).half() for rows in (m, n))
    exact = a.double() @ b.double().t()
    allowed = 2 * ((a.float() @ b.float().t()).half().double() - exact).abs().max()
    print(f"{m} x {n} x {k}, PTX for {TARGET} on the simulator, all checks on")
    heads = f"{'instructions':>14}{'barrier waits':>15}{'wavefronts':>12}{'ideal':>8}{'sectors':>9}{'max error':>11}"
    print(f"{'version':18}{heads}")
    for name, (kernel, options) in VERSIONS.items():
        c = torch.zeros(m, n, dtype=torch.float16)
        report = kernel.simulate(a, b, c, target=TARGET, **options)
        report.raise_if_hazards()
        error = (c.double() - exact).abs().max()
        counted = report.counters
        print(
            f"{name:18}{counted['warp_instructions']:14}{counted['barrier_waits']:15}{counted['shared_wavefronts']:12}"
            f"{counted['shared_wavefronts_ideal']:8}{counted['global_load_sectors']:9}{error:11.1e}"
        )
        if not error <= allowed:
            sys.exit(f"{name}: wrong result, {error:.1e} where rounding explains {allowed:.1e}")


if __name__ == "__main__":
    try:
        m, n, k = [int(x) for x in sys.argv[1:]] or (256, 256, 512)
        assert min(m, n, k) > 0
    except (AssertionError, ValueError):
        sys.exit("usage: python examples/hopper_matmul.py [m n k], three positive integers")
    try:
        run(m, n, k)
    except TilusError as error:
        sys.exit(str(error))
