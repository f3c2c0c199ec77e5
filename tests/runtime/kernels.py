"""Small kernels that the tests of the run time launch and compile."""

import tilus
from tilus import Pointer, Tensor, bfloat16, boolean, constexpr, float16, float32, int32, int64, uint4, uint8


@tilus.kernel
def scale_add(
    x: Tensor[float32, "n"], y: Tensor[float32, "n"], out: Tensor[float32, "n"], *, factor: constexpr = 2.0,
    block: constexpr = 128,
):  # fmt: skip
    (n,) = x.shape
    tilus.grid(tilus.cdiv(n, block), warps=4)
    i = tilus.block_id()
    a = tilus.load(x, [i * block], shape=[block])
    b = tilus.load(y, [i * block], shape=[block])
    tilus.store(out, a * factor + b, [i * block])


@tilus.kernel
def copy_rows(source: Tensor["dtype", "m n"], target: Tensor["dtype", "m n"], *, dtype: constexpr):
    m, n = source.shape
    tilus.grid(tilus.cdiv(n, 32), tilus.cdiv(m, 4), warps=1)
    bx, by = tilus.block_id()
    tilus.store(target, tilus.load(source, [by * 4, bx * 32], shape=[4, 32]), [by * 4, bx * 32])


@tilus.kernel
def scalars(
    out: Tensor[float32, "n"], a: int32, b: float32, c: bfloat16, d: float16, e: boolean, f: int64 = 7, *,
    rows: constexpr = 32,
):  # fmt: skip
    tilus.grid(a, warps=1)
    value = b + c.to(float32) + d.to(float32)
    more = tilus.where(e, f, 0)
    i = tilus.block_id()
    tilus.store(out, tilus.full([rows], 0.0, float32) + value + more.to(float32), [i * rows])


OFFSET = 0


@tilus.kernel
def shifted(out: Tensor[float32, "n"], count: int32, *, shift: constexpr = 0):
    tilus.grid(1, warps=1)
    tilus.store(out, tilus.zeros(32) + (count + shift + OFFSET).to(float32), [0])


@tilus.kernel
def unpack_codes(codes: Tensor[uint4, "m k"], out: Tensor[uint8, "m k"]):
    m, k = codes.shape
    tilus.grid(tilus.cdiv(k, 64), m, warps=1)
    bx, by = tilus.block_id()
    tile = tilus.load(codes, [by, bx * 64], shape=[1, 64])
    tilus.store(out, tile.to(uint8), [by, bx * 64])


@tilus.kernel
def through_pointer(source: Pointer[float32], target: Tensor[float32, "n"]):
    (n,) = target.shape
    tilus.grid(tilus.cdiv(n, 32), warps=1)
    i = tilus.block_id()
    view = tilus.view(source, float32, [n], [1])
    tilus.store(target, tilus.load(view, [i * 32], shape=[32]), [i * 32])


@tilus.kernel
def same_place(out: Tensor[float32, "n"]):
    """All blocks write to the same elements: a race."""
    tilus.grid(4, warps=1)
    i = tilus.block_id()
    tilus.store(out, tilus.full([32], 1.0, float32) * i.to(float32), [0])


@tilus.kernel
def fixed_columns(x: Tensor[float32, "m 64"], out: Tensor[float32, "m width"], *, width: constexpr = 64):
    m = x.shape[0]
    tilus.grid(m, warps=1)
    i = tilus.block_id()
    tilus.store(out, tilus.load(x, [i, 0], shape=[1, width]) + 1.0, [i, 0])


@tilus.kernel
def tma_copy(
    x: Tensor[float16, "m n"], out: Tensor[float16, "m n"], *, rows: constexpr = 64, columns: constexpr = 64
):
    m, n = x.shape
    tilus.grid(tilus.cdiv(m, rows), tilus.cdiv(n, columns), warps=4)
    bi, bj = tilus.block_id()
    tile = tilus.shared(float16, [rows, columns])
    full = tilus.barrier()
    with tilus.warps(0, 1):
        tilus.copy_bulk(tile, x, [bi * rows, bj * columns], barrier=full)
        full.arrive(bytes=rows * columns * 2)
    full.wait(0)
    tilus.store(out, tilus.load(tile), [bi * rows, bj * columns])


@tilus.kernel
def next_copy(x: Tensor[float32, "n"], out: Tensor[float32, "n"]):
    """Starts while the kernel before still runs; in clusters of two blocks."""
    (n,) = x.shape
    tilus.grid(tilus.cdiv(n, 128), warps=4, cluster=2)
    tilus.wait_for_previous()
    i = tilus.block_id()
    tile = tilus.load(x, [i * 128], shape=[128])
    tilus.launch_next()
    tilus.store(out, tile, [i * 128])
