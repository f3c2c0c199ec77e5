"""Scans, sorts, histograms, random numbers, gathers, atomics and casts in Triton."""

import triton
import triton.language as tl
import triton.language.extra.cuda as cuda


@triton.jit
def cumulative_sum(
    out, inp, ROWS: tl.constexpr, COLUMNS: tl.constexpr, AXIS: tl.constexpr, REVERSE: tl.constexpr
):
    at = tl.arange(0, ROWS)[:, None] * COLUMNS + tl.arange(0, COLUMNS)[None, :]
    tl.store(out + at, tl.cumsum(tl.load(inp + at), AXIS, reverse=REVERSE))


@triton.jit
def affine(a_first, b_first, a_second, b_second):
    return a_first * a_second, b_first * a_second + b_second


@triton.jit
def recurrence(out, a, b, BLOCK: tl.constexpr):
    """h[i] = a[i] h[i - 1] + b[i], by an associative scan of affine maps."""
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    _, h = tl.associative_scan((tl.load(a + at), tl.load(b + at)), 0, affine)
    tl.store(out + at, h)


@triton.jit
def sort_rows(out, inp, ROWS: tl.constexpr, COLUMNS: tl.constexpr, DESCENDING: tl.constexpr):
    at = tl.arange(0, ROWS)[:, None] * COLUMNS + tl.arange(0, COLUMNS)[None, :]
    tl.store(out + at, tl.sort(tl.load(inp + at), descending=DESCENDING))


@triton.jit
def largest(out, inp, ROWS: tl.constexpr, COLUMNS: tl.constexpr, K: tl.constexpr):
    row = tl.arange(0, ROWS)[:, None]
    x = tl.load(inp + row * COLUMNS + tl.arange(0, COLUMNS)[None, :])
    tl.store(out + row * K + tl.arange(0, K)[None, :], tl.topk(x, K))


@triton.jit
def histogram(counts, inp, n, BLOCK: tl.constexpr, BINS: tl.constexpr):
    """Counts within a tile by tl.histogram, across tiles by atomics."""
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    keep = at < n
    bins = tl.load(inp + at, mask=keep, other=0)
    tl.atomic_add(counts + tl.arange(0, BINS), tl.histogram(bins, BINS, mask=keep))


@triton.jit
def scatter_counts(counts, weights, inp, n, BLOCK: tl.constexpr):
    """Each element is one atomic: many meet at one address."""
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    keep = at < n
    bins = tl.load(inp + at, mask=keep)
    tl.atomic_add(counts + bins, 1, mask=keep)
    tl.atomic_add(weights + bins, at.to(tl.float32), mask=keep)


@triton.jit
def atomic_operations(cells, old, inp, BLOCK: tl.constexpr):
    """Row i of `old` has what operation i found. Threads own cells in rows 0 to 3, then all share a few."""
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    n = tl.num_programs(0) * BLOCK
    x = tl.load(inp + at)
    tl.store(old + at, tl.atomic_max(cells + at, x))
    tl.store(old + n + at, tl.atomic_min(cells + n + at, x, sem="release"))
    tl.store(old + 2 * n + at, tl.atomic_xor(cells + 2 * n + at, x, scope="sys"))
    tl.store(old + 3 * n + at, tl.atomic_cas(cells + 3 * n + at, x, x + 1, sem="acquire"))
    shared_cell = cells + 4 * n + at % 4 * 4
    tl.atomic_or(shared_cell, x)
    tl.atomic_and(shared_cell + 1, x)
    tl.atomic_add(shared_cell + 2, x, sem="relaxed", scope="sys")
    tl.atomic_xchg(shared_cell + 3, at % 4 * 7 + 1)


@triton.jit
def random_numbers(uniform, normal, integers, seed, offset, BLOCK: tl.constexpr):
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(uniform + at, tl.rand(seed, offset + at))
    tl.store(normal + at, tl.randn(seed, offset + at))
    n = tl.num_programs(0) * BLOCK
    r0, r1, r2, r3 = tl.randint4x(seed, offset + at)
    tl.store(integers + at, r0)
    tl.store(integers + n + at, r1)
    tl.store(integers + 2 * n + at, r2)
    tl.store(integers + 3 * n + at, r3)


@triton.jit
def dropout(out, inp, n, keep_probability, seed, BLOCK: tl.constexpr):
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    keep = at < n
    x = tl.load(inp + at, mask=keep)
    kept = tl.rand(seed, at) < keep_probability
    tl.store(out + at, tl.where(kept, x / keep_probability, 0.0), mask=keep)


@triton.jit
def transpose(out, inp, rows, columns, BLOCK: tl.constexpr):
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    j = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    x = tl.load(inp + i[:, None] * columns + j[None, :], mask=(i[:, None] < rows) & (j[None, :] < columns))
    tl.store(
        out + j[:, None] * rows + i[None, :], tl.trans(x), mask=(j[:, None] < columns) & (i[None, :] < rows)
    )


@triton.jit
def gather_within(out, inp, index, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    at = tl.arange(0, ROWS)[:, None] * COLUMNS + tl.arange(0, COLUMNS)[None, :]
    tl.store(out + at, tl.gather(tl.load(inp + at), tl.load(index + at), 0))


@triton.jit
def embedding(out, table, tokens, HEAD: tl.constexpr, BLOCK: tl.constexpr):
    rows = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    feature = tl.arange(0, HEAD)
    token = tl.load(tokens + rows)
    x = tl.load(table + token[:, None] * HEAD + feature[None, :])
    tl.store(out + rows[:, None] * HEAD + feature[None, :], x)


@triton.jit
def casts(e4m3, e5m2, bf16, f16, i8, back, inp, BLOCK: tl.constexpr):
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    x = tl.load(inp + at)
    small = x.to(tl.float8e4nv)
    tl.store(e4m3 + at, small)
    tl.store(e5m2 + at, x.to(tl.float8e5))
    tl.store(bf16 + at, x.to(tl.bfloat16))
    tl.store(f16 + at, x.to(tl.float16))
    tl.store(i8 + at, (x * 10.0).to(tl.int8))
    tl.store(back + at, small.to(tl.float32))


@triton.jit
def integers(out, a, b, n, BLOCK: tl.constexpr):
    """64-bit integers; one row of the output for each operation."""
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    x = tl.load(a + at)
    y = tl.load(b + at)
    tl.store(out + at, x * y)
    tl.store(out + n + at, x // y)
    tl.store(out + 2 * n + at, x % y)
    tl.store(out + 3 * n + at, tl.umulhi(x.to(tl.uint64), y.to(tl.uint64)).to(tl.int64))
    tl.store(out + 4 * n + at, (x << 5) ^ (y >> 3))
    tl.store(out + 5 * n + at, tl.where(x > y, x, y))


@triton.jit
def printing(inp, n, BLOCK: tl.constexpr):
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    x = tl.load(inp + at, mask=at < n, other=0.0)
    tl.device_print("value ", x)
    tl.device_assert(x < 100.0, "too large")


@triton.jit
def dependent(out, inp, clock, BLOCK: tl.constexpr):
    """Launched while its predecessor still runs; also reads what a block can ask about itself."""
    cuda.gdc_wait()
    at = tl.program_id(2) * BLOCK + tl.arange(0, BLOCK)
    before = cuda.globaltimer()
    tl.store(out + at, tl.load(inp + at) + tl.num_programs(2))
    cuda.gdc_launch_dependents()
    tl.store(
        clock + tl.program_id(2),
        (cuda.globaltimer() >= before).to(tl.int32) + (cuda.smid() >= 0).to(tl.int32),
    )


@triton.jit
def inline_assembly(out, inp, BLOCK: tl.constexpr):
    """Four bytes to a register: the population count of each 32-bit word, in each of its bytes."""
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    x = tl.load(inp + at)
    y = tl.inline_asm_elementwise(
        "{ .reg .b32 t; popc.b32 t, $1; mul.lo.u32 $0, t, 0x01010101; }",
        "=r,r",
        [x],
        dtype=tl.uint8,
        is_pure=True,
        pack=4,
    )
    tl.store(out + at, y)


GRID = dict(ROWS=4, COLUMNS=128)
VARIANTS = {
    "triton_cumulative_sum_sm80": dict(
        kernel=cumulative_sum,
        arch=80,
        args=dict(out="*fp32:16", inp="*fp32:16", AXIS=1, REVERSE=False) | GRID,
    ),
    "triton_cumulative_sum_columns_sm80": dict(
        kernel=cumulative_sum,
        arch=80,
        args=dict(out="*i32:16", inp="*i32:16", AXIS=0, REVERSE=True, ROWS=64, COLUMNS=16),
    ),
    "triton_recurrence_sm80": dict(
        kernel=recurrence, arch=80, args=dict(out="*fp32:16", a="*fp32:16", b="*fp32:16", BLOCK=256)
    ),
    "triton_sort_sm80": dict(
        kernel=sort_rows,
        arch=80,
        args=dict(out="*fp32:16", inp="*fp32:16", DESCENDING=False, ROWS=2, COLUMNS=128),
        num_warps=2,
    ),
    "triton_sort_descending_sm90": dict(
        kernel=sort_rows,
        arch=90,
        args=dict(out="*i32:16", inp="*i32:16", DESCENDING=True, ROWS=1, COLUMNS=128),
        num_warps=4,
    ),
    "triton_largest_sm80": dict(
        kernel=largest,
        arch=80,
        args=dict(out="*fp32:16", inp="*fp32:16", ROWS=2, COLUMNS=64, K=8),
        num_warps=2,
    ),
    "triton_histogram_sm80": dict(
        kernel=histogram, arch=80, args=dict(counts="*i32:16", inp="*i32:16", n="i32", BLOCK=256, BINS=64)
    ),
    "triton_histogram_sm90": dict(
        kernel=histogram,
        arch=90,
        args=dict(counts="*i32:16", inp="*i32:16", n="i32", BLOCK=512, BINS=32),
        num_warps=8,
    ),
    "triton_scatter_counts_sm80": dict(
        kernel=scatter_counts,
        arch=80,
        args=dict(counts="*i32:16", weights="*fp32:16", inp="*i32:16", n="i32", BLOCK=256),
    ),
    "triton_atomics_sm80": dict(
        kernel=atomic_operations, arch=80, args=dict(cells="*i32:16", old="*i32:16", inp="*i32:16", BLOCK=128)
    ),
    "triton_random_sm80": dict(
        kernel=random_numbers,
        arch=80,
        args=dict(
            uniform="*fp32:16", normal="*fp32:16", integers="*u32:16", seed="i32", offset="i32", BLOCK=128
        ),
    ),
    "triton_dropout_sm90": dict(
        kernel=dropout,
        arch=90,
        args=dict(out="*fp32:16", inp="*fp32:16", n="i32", keep_probability="fp32", seed="i32", BLOCK=256),
    ),
    "triton_transpose_sm80": dict(
        kernel=transpose,
        arch=80,
        args=dict(out="*fp32:16", inp="*fp32:16", rows="i32", columns="i32", BLOCK=32),
    ),
    "triton_transpose_f16_sm90": dict(
        kernel=transpose,
        arch=90,
        args=dict(out="*fp16:16", inp="*fp16:16", rows="i32:16", columns="i32:16", BLOCK=64),
    ),
    "triton_gather_sm80": dict(
        kernel=gather_within,
        arch=80,
        args=dict(out="*fp32:16", inp="*fp32:16", index="*i32:16", ROWS=32, COLUMNS=16),
    ),
    "triton_embedding_sm80": dict(
        kernel=embedding,
        arch=80,
        args=dict(out="*bf16:16", table="*bf16:16", tokens="*i64:16", HEAD=64, BLOCK=8),
    ),
    "triton_casts_sm90": dict(
        kernel=casts,
        arch=90,
        args=dict(
            e4m3="*fp8e4nv:16",
            e5m2="*fp8e5:16",
            bf16="*bf16:16",
            f16="*fp16:16",
            i8="*i8:16",
            back="*fp32:16",
            inp="*fp32:16",
            BLOCK=256,
        ),
    ),
    "triton_integers_sm80": dict(
        kernel=integers,
        arch=80,
        args=dict(out="*i64:16", a="*i64:16", b="*i64:16", n="i32", BLOCK=64),
        num_warps=1,
    ),
    "triton_printing_sm80": dict(
        kernel=printing, arch=80, args=dict(inp="*fp32:16", n="i32", BLOCK=32), num_warps=1, debug=True
    ),
    "triton_dependent_sm90": dict(
        kernel=dependent,
        arch=90,
        args=dict(out="*fp32:16", inp="*fp32:16", clock="*i32:16", BLOCK=64),
        num_warps=2,
        launch_pdl=True,
    ),
    "triton_inline_assembly_sm80": dict(
        kernel=inline_assembly, arch=80, args=dict(out="*u8:16", inp="*i8:16", BLOCK=512)
    ),
}
