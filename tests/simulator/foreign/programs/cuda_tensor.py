"""How the CUDA C++ kernels about tensor cores, copies and clusters are launched, and what they must give."""

from __future__ import annotations

import ml_dtypes
import numpy as np

from tests.simulator.foreign.corpus import (
    F16,
    F32,
    F64,
    TF32,
    Check,
    Descriptor,
    Launch,
    dot_bound,
    ints,
    normal,
    registry,
    wide,
    zeros,
)

Generator = np.random.Generator
PROGRAMS, program = registry("nvcc_")

bfloat16 = ml_dtypes.bfloat16


# Clusters ----------------------------------------------------------------------------------------------------


@program("cluster", "cluster_histogram")
def _(rng: Generator) -> Launch:
    x, counts = ints(rng, 0, 64, 8 * 100), zeros(64, np.int32)
    want = np.bincount(x, minlength=64).astype(np.int32)
    return Launch(
        [counts, x, 100, 16],
        [Check(counts, want)],
        grid=(8, 1, 1),
        block=(64, 1, 1),
        cluster=(4, 1, 1),
        shared_bytes=64,
    )


@program("cluster", "cluster_rotate")
def _(rng: Generator) -> Launch:
    x, out = normal(rng, (6, 64)), zeros((6, 64))
    order = [b // 3 * 3 + (b + 1) % 3 for b in range(6)]
    want = x[order][:, ::-1] + np.float32(3)
    return Launch([out, x], [Check(out, want)], grid=(6, 1, 1), block=(64, 1, 1), cluster=(3, 1, 1))


@program("cluster", "cluster_mailbox")
def _(rng: Generator) -> Launch:
    x, out = ints(rng, -99, 99, (4, 64)), zeros((4, 64), np.int32)
    return Launch(
        [out, x], [Check(out, x[[1, 0, 3, 2]] * 2)], grid=(4, 1, 1), block=(64, 1, 1), cluster=(2, 1, 1)
    )


# Tensor cores ------------------------------------------------------------------------------------------------


@program("wmma", "wmma_f16")
def _(rng: Generator) -> Launch:
    a, b, c = normal(rng, (32, 48), np.float16), normal(rng, (48, 32), np.float16), zeros((32, 32))
    return Launch(
        [c, a, b, 32, 48], [Check(c, 0.5 * (wide(a) @ wide(b)), dot_bound(a, b, np.float32))], grid=(2, 2, 1)
    )


@program("wmma", "wmma_f16_shared")
def _(rng: Generator) -> Launch:
    a, b, c = normal(rng, (32, 48), np.float16), normal(rng, (8, 48), np.float16), zeros((32, 8), np.float16)
    return Launch(
        [c, a, b, 48], [Check(c, wide(a) @ wide(b).T, dot_bound(a, b.T, np.float16, accumulate=2 * F16 / 16))]
    )  # one rounding for each product of 16


@program("wmma", "wmma_bf16")
def _(rng: Generator) -> Launch:
    a, b, c = normal(rng, (16, 8), bfloat16), normal(rng, (16, 32), bfloat16), zeros((32, 8))
    want = (1 + wide(a).T @ wide(b)).T
    return Launch([c, a, b], [Check(c, want, dot_bound(a.T, b, np.float32).T + 32 * F32)])


@program("wmma", "wmma_tf32")
def _(rng: Generator) -> Launch:
    a, b, c = normal(rng, (16, 8)), normal(rng, (16, 8)), normal(rng, (16, 16))
    want = wide(c) + wide(a) @ wide(b).T
    return Launch(
        [c, a, b], [Check(c, want, dot_bound(a, b.T, np.float32, operands=TF32) + 16 * F32 * np.abs(wide(c)))]
    )


@program("wmma", "wmma_double")
def _(rng: Generator) -> Launch:
    a, b, c = rng.standard_normal((8, 16)), rng.standard_normal((8, 16)), zeros((8, 8), np.float64)
    return Launch([c, a, b], [Check(c, a @ b.T, 32 * F64 * (np.abs(a) @ np.abs(b.T)))])


@program("wmma", "wmma_int8")
def _(rng: Generator) -> Launch:
    a, b, c = (
        ints(rng, -128, 128, (16, 64), np.int8),
        ints(rng, -128, 128, (16, 64), np.int8),
        zeros((16, 16), np.int32),
    )
    blocks = [x.reshape(16, 4, 16).swapaxes(0, 1).copy() for x in (a, b)]
    return Launch([c, *blocks], [Check(c, a.astype(np.int32) @ b.T.astype(np.int32))])


@program("mma", "mma_tiled")
def _(rng: Generator) -> Launch:
    a, b, c = (
        normal(rng, (64, 128), np.float16),
        normal(rng, (32, 128), np.float16),
        zeros((64, 32), np.float16),
    )
    return Launch(
        [c, a, b, 32, 128],
        [Check(c, wide(a) @ wide(b).T, dot_bound(a, b.T, np.float16))],
        grid=(2, 1, 1),
        block=(64, 1, 1),
    )


@program("mma", "mma_sparse")
def _(rng: Generator) -> Launch:
    stored, b, c = normal(rng, (16, 16), np.float16), normal(rng, (8, 32), np.float16), zeros((16, 8))
    kept = np.stack([np.sort(rng.permutation(4)[:2]) for _ in range(16 * 8)]).reshape(16, 8, 2)
    dense = np.zeros((16, 8, 4), np.float16)
    np.put_along_axis(dense, kept, stored.reshape(16, 8, 2), 2)
    # Selector 0: the first two lanes of each four hold the metadata of rows g and g + 8 (PTX ISA, mma.sp).
    codes = (kept[:, :, 0] | kept[:, :, 1] << 2).astype(np.uint64)
    rows = (codes << (4 * np.arange(8, dtype=np.uint64))).sum(1, dtype=np.uint64).astype(np.uint32)
    metadata = zeros(32, np.uint32)
    metadata[0::4], metadata[1::4] = sparse_words(rows)
    want = wide(dense).reshape(16, 32) @ wide(b).T
    return Launch(
        [c, stored, metadata, b], [Check(c, want, dot_bound(dense.reshape(16, 32), b.T, np.float32))]
    )


def sparse_words(rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """m16n8k32 with 16-bit values: the first lane holds columns 0 to 15 of rows g and g + 8, the second 16 to 31."""
    low, high = rows[:8], rows[8:]
    first = (low & np.uint32(0xFFFF)) | (high & np.uint32(0xFFFF)) << np.uint32(16)
    second = low >> np.uint32(16) | (high & np.uint32(0xFFFF0000))
    return first, second


# Asynchronous copies -----------------------------------------------------------------------------------------


@program("async_copy", "pipelined_sum")
def _(rng: Generator) -> Launch:
    x, out = normal(rng, (2, 5, 128)), zeros((2, 128))
    want = wide(x).sum(1)[:, ::-1]
    return Launch(
        [out, x, 5],
        [Check(out, want, 5 * F32 * np.abs(x).sum(1)[:, ::-1])],
        grid=(2, 1, 1),
        block=(128, 1, 1),
    )


@program("async_copy", "barrier_copy")
def _(rng: Generator) -> Launch:
    x, out = ints(rng, -999, 999, (2, 256)), zeros((2, 256), np.int32)
    want = x[:, np.arange(256) ^ 1] + x[:, ::-1]
    return Launch([out, x], [Check(out, want)], grid=(2, 1, 1), block=(64, 1, 1))


@program("async_copy", "group_copy")
def _(rng: Generator) -> Launch:
    x, out = ints(rng, -999, 999, (2, 192)), zeros((2, 64), np.int32)
    want = np.cumsum(x, 1, dtype=np.int32)[:, :64]
    return Launch([out, x], [Check(out, want)], grid=(2, 1, 1), block=(64, 1, 1), shared_bytes=768)


@program("async_copy", "two_roles")
def _(rng: Generator) -> Launch:
    x, out = normal(rng, (4, 32)), zeros(32)
    want = 2 * wide(x).sum(0)[::-1]
    return Launch([out, x, 4], [Check(out, want, 8 * F32 * np.abs(x).sum(0)[::-1])], block=(64, 1, 1))


# Hopper's copies and products --------------------------------------------------------------------------------


@program("bulk", "bulk_scale")
def _(rng: Generator) -> Launch:
    x, out = normal(rng, (5, 256)), zeros((5, 256))
    want = x * np.float32(2) + np.arange(5, dtype=np.float32)[:, None]
    return Launch([out, x, 5], [Check(out, want)], block=(128, 1, 1))


@program("bulk", "bulk_reduce")
def _(rng: Generator) -> Launch:
    x, sums = ints(rng, -99, 99, (3, 64)), zeros(64, np.int32)
    return Launch([sums, x], [Check(sums, (x + 1).sum(0, dtype=np.int32))], grid=(3, 1, 1), block=(64, 1, 1))


@program("bulk", "tensor_tile")
def _(rng: Generator) -> Launch:
    source, target = normal(rng, (40, 72), np.float16), np.full((24, 32), 3, np.float16)
    want = np.full((24, 32), 3, np.float16)
    tile = np.zeros((16, 32), np.float16)
    tile[:10, :16] = source[30:40, 56:72]
    want[8:24] = tile * 2
    args = [Descriptor(source, (16, 32)), Descriptor(target, (16, 32)), 56, 30]
    return Launch(args, [Check(target, want)], block=(64, 1, 1))


@program("bulk", "tensor_volume")
def _(rng: Generator) -> Launch:
    volume, out = normal(rng, (5, 6, 12)), zeros((2, 4, 8))
    want = zeros((2, 4, 8))
    want[:, :, 1:] = volume[2:4, 1:5, :7]
    return Launch([Descriptor(volume, (2, 4, 8)), out, 2], [Check(out, want)], block=(64, 1, 1))


@program("bulk", "multicast")
def _(rng: Generator) -> Launch:
    x, out = ints(rng, 0, 999, (4, 64)), zeros((4, 64), np.int32)
    want = np.stack([x[b // 2 * 2] * 1000 + x[b // 2 * 2 + 1][::-1] for b in range(4)])
    return Launch([out, x], [Check(out, want)], grid=(4, 1, 1), block=(64, 1, 1), cluster=(2, 1, 1))


@program("wgmma", "wgmma_shared")
def _(rng: Generator) -> Launch:
    a, b, c = normal(rng, (64, 48), np.float16), normal(rng, (16, 48), np.float16), zeros((64, 16))
    return Launch(
        [c, a, b, 48], [Check(c, wide(a) @ wide(b).T, dot_bound(a, b.T, np.float32))], block=(128, 1, 1)
    )


@program("wgmma", "wgmma_registers")
def _(rng: Generator) -> Launch:
    a, b, c = normal(rng, (64, 16), np.float16), normal(rng, (16, 16), np.float16), zeros((64, 16))
    want = 1 - wide(a) @ wide(b)
    return Launch([c, a, b], [Check(c, want, dot_bound(a, b, np.float32) + 32 * F32)], block=(128, 1, 1))
