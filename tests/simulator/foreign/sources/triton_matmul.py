"""Matrix products in Triton: pointers, descriptors, persistent, warp specialised, every type of tensor core."""

import triton
import triton.language as tl


@triton.jit
def matmul(
    a,
    b,
    c,
    m,
    n,
    k,
    a_stride,
    b_stride,
    c_stride,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    ACC: tl.constexpr = tl.float32,
):
    rows = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    cols = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    depth = tl.arange(0, BLOCK_K)
    a_at = a + rows[:, None] * a_stride + depth[None, :]
    b_at = b + depth[:, None] * b_stride + cols[None, :]
    acc = tl.zeros((BLOCK_M, BLOCK_N), dtype=ACC)
    for start in range(0, k, BLOCK_K):
        left = k - start
        x = tl.load(a_at, mask=(rows[:, None] < m) & (depth[None, :] < left), other=0.0)
        y = tl.load(b_at, mask=(depth[:, None] < left) & (cols[None, :] < n), other=0.0)
        acc = tl.dot(x, y, acc)
        a_at += BLOCK_K
        b_at += BLOCK_K * b_stride
    keep = (rows[:, None] < m) & (cols[None, :] < n)
    tl.store(c + rows[:, None] * c_stride + cols[None, :], acc.to(c.dtype.element_ty), mask=keep)


@triton.jit
def matmul_nt(
    a,
    b,
    c,
    k,
    a_stride,
    b_stride,
    c_stride,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    ACC: tl.constexpr = tl.float32,
    PRECISION: tl.constexpr = "tf32",
):
    """`b` is stored (n, k): its tile is read transposed. All sizes are whole tiles."""
    rows = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    cols = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    depth = tl.arange(0, BLOCK_K)
    acc = tl.zeros((BLOCK_M, BLOCK_N), dtype=ACC)
    for start in range(0, k, BLOCK_K):
        x = tl.load(a + rows[:, None] * a_stride + start + depth[None, :])
        y = tl.load(b + cols[None, :] * b_stride + start + depth[:, None])
        acc = tl.dot(x, y, acc, input_precision=PRECISION, out_dtype=ACC)
    tl.store(c + rows[:, None] * c_stride + cols[None, :], acc.to(c.dtype.element_ty))


@triton.jit
def matmul_int4(
    a,
    b,
    scale,
    c,
    k,
    a_stride,
    b_stride,
    c_stride,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """float16 times int4: two weights share a byte, rows 2i in the low and 2i + 1 in the high half."""
    rows = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    cols = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    acc = tl.zeros((BLOCK_M, BLOCK_N), dtype=tl.float32)
    half = tl.arange(0, BLOCK_K // 2)
    depth = tl.arange(0, BLOCK_K)
    for start in range(0, k, BLOCK_K):
        x = tl.load(a + rows[:, None] * a_stride + start + depth[None, :])
        packed = tl.load(b + (start // 2 + half)[:, None] * b_stride + cols[None, :])
        low = ((packed << 4) >> 4).to(tl.float16)
        high = (packed >> 4).to(tl.float16)
        y = tl.reshape(tl.permute(tl.join(low, high), (0, 2, 1)), (BLOCK_K, BLOCK_N))
        acc = tl.dot(x, y, acc)
    acc *= tl.load(scale + cols)[None, :]
    tl.store(c + rows[:, None] * c_stride + cols[None, :], acc.to(tl.float16))


@triton.jit
def matmul_split_k(
    a,
    b,
    c,
    k,
    a_stride,
    b_stride,
    c_stride,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    SPLIT: tl.constexpr,
):
    """The third grid axis shares k; the parts meet in c by atomic additions."""
    rows = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    cols = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    depth = tl.arange(0, BLOCK_K)
    acc = tl.zeros((BLOCK_M, BLOCK_N), dtype=tl.float32)
    for start in range(tl.program_id(2) * BLOCK_K, k, BLOCK_K * SPLIT):
        x = tl.load(a + rows[:, None] * a_stride + start + depth[None, :])
        y = tl.load(b + (start + depth)[:, None] * b_stride + cols[None, :])
        acc = tl.dot(x, y, acc)
    tl.atomic_add(c + rows[:, None] * c_stride + cols[None, :], acc.to(c.dtype.element_ty), sem="relaxed")


@triton.jit
def matmul_semaphore(
    a,
    b,
    c,
    partial,
    turn,
    k,
    a_stride,
    b_stride,
    c_stride,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    SPLIT: tl.constexpr,
):
    """Split along k with a ticket: the last block to finish adds every part, in order."""
    part = tl.program_id(0)
    rows = tl.arange(0, BLOCK_M)
    cols = tl.arange(0, BLOCK_N)
    depth = tl.arange(0, BLOCK_K)
    acc = tl.zeros((BLOCK_M, BLOCK_N), dtype=tl.float32)
    for start in range(part * BLOCK_K, k, BLOCK_K * SPLIT):
        x = tl.load(a + rows[:, None] * a_stride + start + depth[None, :])
        y = tl.load(b + (start + depth)[:, None] * b_stride + cols[None, :])
        acc = tl.dot(x, y, acc)
    tile = rows[:, None] * BLOCK_N + cols[None, :]
    tl.store(partial + part * BLOCK_M * BLOCK_N + tile, acc)
    tl.debug_barrier()
    ticket = tl.atomic_add(turn, 1, sem="acq_rel")
    if ticket == SPLIT - 1:
        total = tl.zeros((BLOCK_M, BLOCK_N), dtype=tl.float32)
        for i in range(SPLIT):
            total += tl.load(partial + i * BLOCK_M * BLOCK_N + tile, cache_modifier=".cg")
        tl.store(c + rows[:, None] * c_stride + cols[None, :], total.to(tl.float16))


@triton.jit
def matmul_descriptor(
    a,
    b,
    c,
    k,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    WARP_SPECIALIZE: tl.constexpr = False,
):
    """Tensor descriptors made by the host."""
    row = tl.program_id(0) * BLOCK_M
    col = tl.program_id(1) * BLOCK_N
    acc = tl.zeros((BLOCK_M, BLOCK_N), dtype=tl.float32)
    for i in tl.range(0, tl.cdiv(k, BLOCK_K), warp_specialize=WARP_SPECIALIZE):
        x = a.load([row, i * BLOCK_K])
        y = b.load([i * BLOCK_K, col])
        acc = tl.dot(x, y, acc)
    c.store([row, col], acc.to(c.dtype))


@triton.jit
def matmul_device_descriptor(
    a_base, b_base, c_base, m, n, k, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr
):
    """Tensor descriptors made by the kernel, in scratch memory. `b` is stored (n, k)."""
    a = tl.make_tensor_descriptor(a_base, shape=[m, k], strides=[k, 1], block_shape=[BLOCK_M, BLOCK_K])
    b = tl.make_tensor_descriptor(b_base, shape=[n, k], strides=[k, 1], block_shape=[BLOCK_N, BLOCK_K])
    c = tl.make_tensor_descriptor(c_base, shape=[m, n], strides=[n, 1], block_shape=[BLOCK_M, BLOCK_N])
    row = tl.program_id(0) * BLOCK_M
    col = tl.program_id(1) * BLOCK_N
    acc = tl.zeros((BLOCK_M, BLOCK_N), dtype=tl.float32)
    for start in range(0, k, BLOCK_K):
        acc = tl.dot(a.load([row, start]), b.load([col, start]).T, acc)
    c.store([row, col], acc.to(tl.float16))


@triton.jit
def matmul_persistent(
    a,
    b,
    c,
    m,
    n,
    k,
    blocks,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    FLATTEN: tl.constexpr = True,
    WARP_SPECIALIZE: tl.constexpr = False,
):
    """A block walks over many tiles; the tile loop and the k loop are pipelined as one."""
    tiles_n = tl.cdiv(n, BLOCK_N)
    tiles = tl.cdiv(m, BLOCK_M) * tiles_n
    for tile in tl.range(tl.program_id(0), tiles, blocks, flatten=FLATTEN, warp_specialize=WARP_SPECIALIZE):
        row = (tile // tiles_n) * BLOCK_M
        col = (tile % tiles_n) * BLOCK_N
        acc = tl.zeros((BLOCK_M, BLOCK_N), dtype=tl.float32)
        for i in range(tl.cdiv(k, BLOCK_K)):
            acc = tl.dot(a.load([row, i * BLOCK_K]), b.load([col, i * BLOCK_K]).T, acc)
        c.store([row, col], acc.to(c.dtype))


@triton.jit
def matmul_descriptor_reduce(a, b, c, k, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr):
    """One k tile for each block along the third axis; the bulk copy engine adds the parts up."""
    row = tl.program_id(0) * BLOCK_M
    col = tl.program_id(1) * BLOCK_N
    i = tl.program_id(2)
    acc = tl.dot(a.load([row, i * BLOCK_K]), b.load([i * BLOCK_K, col]))
    c.atomic_add([row, col], acc)


@triton.jit
def matmul_mxfp(
    a,
    a_scale,
    b,
    b_scale,
    c,
    k,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    A: tl.constexpr,
    B: tl.constexpr,
):
    """Block-scaled product (32 values of k share a scale), which these targets decompose into bfloat16 products."""
    A_PACK: tl.constexpr = 2 if A == "e2m1" else 1
    B_PACK: tl.constexpr = 2 if B == "e2m1" else 1
    rows = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    cols = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    groups = tl.arange(0, BLOCK_K // 32)
    a_depth = tl.arange(0, BLOCK_K // A_PACK)
    b_depth = tl.arange(0, BLOCK_K // B_PACK)
    acc = tl.zeros((BLOCK_M, BLOCK_N), dtype=tl.float32)
    for start in range(0, k, BLOCK_K):
        x = tl.load(a + rows[:, None] * (k // A_PACK) + start // A_PACK + a_depth[None, :])
        y = tl.load(b + cols[None, :] * (k // B_PACK) + start // B_PACK + b_depth[:, None])
        xs = tl.load(a_scale + rows[:, None] * (k // 32) + start // 32 + groups[None, :])
        ys = tl.load(b_scale + cols[:, None] * (k // 32) + start // 32 + groups[None, :])
        acc = tl.dot_scaled(x, xs, A, y, ys, B, acc)
    stride = tl.num_programs(1) * BLOCK_N
    tl.store(c + rows[:, None] * stride + cols[None, :], acc)


STRIDES = dict(a_stride="i32:16", b_stride="i32:16", c_stride="i32:16")
SIZES = dict(m="i32", n="i32:16", k="i32:16") | STRIDES


def tile(m: int, n: int, k: int) -> dict:
    return dict(BLOCK_M=m, BLOCK_N=n, BLOCK_K=k)


def typed(a: str, b: str, c: str) -> dict:
    return dict(a=f"*{a}:16", b=f"*{b}:16", c=f"*{c}:16")


def described(dtype: str, m: int, n: int, k: int, *, transposed: bool, out: str) -> dict:
    b = f"tensordesc<{dtype}[{n}, {k}]>" if transposed else f"tensordesc<{dtype}[{k}, {n}]>"
    return dict(a=f"tensordesc<{dtype}[{m}, {k}]>", b=b, c=f"tensordesc<{out}[{m}, {n}]>")


WHOLE = dict(k="i32:16") | STRIDES
VARIANTS = {
    "triton_matmul_f16_sm80": dict(
        kernel=matmul, arch=80, args=typed("fp16", "fp16", "fp16") | SIZES | tile(64, 64, 32)
    ),
    "triton_matmul_bf16_sm80": dict(
        kernel=matmul,
        arch=80,
        args=typed("bf16", "bf16", "fp32") | SIZES | tile(32, 64, 32),
        num_warps=2,
        num_stages=4,
    ),
    "triton_matmul_f16_unaligned_sm80": dict(
        kernel=matmul,
        arch=80,
        args=dict(
            a="*fp16",
            b="*fp16",
            c="*fp16",
            m="i32",
            n="i32",
            k="i32",
            a_stride="i32",
            b_stride="i32",
            c_stride="i32",
        )
        | tile(32, 32, 32),
    ),
    "triton_matmul_f16_sm90": dict(
        kernel=matmul, arch=90, args=typed("fp16", "fp16", "fp16") | SIZES | tile(64, 64, 32)
    ),
    "triton_matmul_f16_8warps_sm90": dict(
        kernel=matmul, arch=90, args=typed("fp16", "fp16", "fp16") | SIZES | tile(128, 64, 64), num_warps=8
    ),
    "triton_matmul_bf16_nt_sm90": dict(
        kernel=matmul_nt,
        arch=90,
        args=typed("bf16", "bf16", "bf16") | WHOLE | tile(64, 128, 64),
        num_stages=2,
    ),
    "triton_matmul_f16acc_sm80": dict(
        kernel=matmul_nt,
        arch=80,
        args=typed("fp16", "fp16", "fp16") | WHOLE | tile(32, 32, 32) | dict(ACC=tl.float16),
    ),
    "triton_matmul_tf32_sm80": dict(
        kernel=matmul_nt, arch=80, args=typed("fp32", "fp32", "fp32") | WHOLE | tile(32, 32, 32)
    ),
    "triton_matmul_tf32_sm90": dict(
        kernel=matmul_nt, arch=90, args=typed("fp32", "fp32", "fp32") | WHOLE | tile(64, 32, 32)
    ),
    "triton_matmul_tf32x3_sm80": dict(
        kernel=matmul_nt,
        arch=80,
        args=typed("fp32", "fp32", "fp32") | WHOLE | tile(32, 32, 16) | dict(PRECISION="tf32x3"),
    ),
    "triton_matmul_f32_sm80": dict(
        kernel=matmul_nt,
        arch=80,
        args=typed("fp32", "fp32", "fp32") | WHOLE | tile(16, 16, 16) | dict(PRECISION="ieee"),
    ),
    "triton_matmul_f64_sm80": dict(
        kernel=matmul_nt,
        arch=80,
        args=typed("fp64", "fp64", "fp64")
        | WHOLE
        | tile(16, 16, 16)
        | dict(ACC=tl.float64, PRECISION="ieee"),
    ),
    "triton_matmul_fp8_sm90": dict(
        kernel=matmul_nt, arch=90, args=typed("fp8e4nv", "fp8e4nv", "fp16") | WHOLE | tile(64, 64, 64)
    ),
    "triton_matmul_fp8_e5m2_sm90": dict(
        kernel=matmul_nt, arch=90, args=typed("fp8e5", "fp8e5", "fp32") | WHOLE | tile(64, 32, 64)
    ),
    "triton_matmul_fp8_sm89": dict(
        kernel=matmul_nt, arch=89, args=typed("fp8e4nv", "fp8e4nv", "fp16") | WHOLE | tile(32, 32, 64)
    ),
    "triton_matmul_fp8_e5m2_sm80": dict(
        kernel=matmul_nt, arch=80, args=typed("fp8e5", "fp8e5", "fp16") | WHOLE | tile(32, 32, 32)
    ),
    "triton_matmul_int8_sm80": dict(
        kernel=matmul_nt,
        arch=80,
        args=typed("i8", "i8", "i32") | WHOLE | tile(32, 32, 64) | dict(ACC=tl.int32),
    ),
    "triton_matmul_int8_sm90": dict(
        kernel=matmul_nt,
        arch=90,
        args=typed("i8", "i8", "i32") | WHOLE | tile(64, 64, 64) | dict(ACC=tl.int32),
    ),
    "triton_matmul_int4_sm80": dict(
        kernel=matmul_int4,
        arch=80,
        args=dict(a="*fp16:16", b="*i8:16", scale="*fp32:16", c="*fp16:16") | WHOLE | tile(32, 32, 32),
    ),
    "triton_matmul_int4_sm90": dict(
        kernel=matmul_int4,
        arch=90,
        args=dict(a="*fp16:16", b="*i8:16", scale="*fp32:16", c="*fp16:16") | WHOLE | tile(64, 32, 64),
    ),
    "triton_matmul_split_k_sm80": dict(
        kernel=matmul_split_k,
        arch=80,
        args=typed("fp16", "fp16", "fp16") | WHOLE | tile(32, 32, 32) | dict(SPLIT=2),
    ),
    "triton_matmul_split_k_f32_sm90": dict(
        kernel=matmul_split_k,
        arch=90,
        args=typed("fp16", "fp16", "fp32") | WHOLE | tile(64, 32, 32) | dict(SPLIT=2),
    ),
    "triton_matmul_semaphore_sm80": dict(
        kernel=matmul_semaphore,
        arch=80,
        args=typed("fp16", "fp16", "fp16")
        | dict(partial="*fp32:16", turn="*i32:16")
        | WHOLE
        | tile(32, 32, 32)
        | dict(SPLIT=3),
    ),
    "triton_matmul_descriptor_sm90": dict(
        kernel=matmul_descriptor,
        arch=90,
        args=described("fp16", 64, 64, 64, transposed=False, out="fp16")
        | dict(k="i32:16")
        | tile(64, 64, 64),
    ),
    "triton_matmul_descriptor_narrow_sm90": dict(
        kernel=matmul_descriptor,
        arch=90,
        args=described("fp16", 64, 32, 32, transposed=False, out="fp32") | dict(k="i32") | tile(64, 32, 32),
        num_stages=4,
    ),
    "triton_matmul_warp_specialized_sm90": dict(
        kernel=matmul_descriptor,
        arch=90,
        args=described("fp16", 64, 64, 64, transposed=False, out="fp16")
        | dict(k="i32:16")
        | tile(64, 64, 64)
        | dict(WARP_SPECIALIZE=True),
    ),
    "triton_matmul_device_descriptor_sm90": dict(
        kernel=matmul_device_descriptor,
        arch=90,
        args=dict(a_base="*fp16:16", b_base="*fp16:16", c_base="*fp16:16", m="i32", n="i32:16", k="i32:16")
        | tile(64, 64, 32),
    ),
    "triton_matmul_persistent_sm90": dict(
        kernel=matmul_persistent,
        arch=90,
        args=described("fp16", 64, 64, 64, transposed=True, out="fp16")
        | dict(m="i32", n="i32", k="i32", blocks="i32")
        | tile(64, 64, 64),
    ),
    "triton_matmul_persistent_fp8_sm90": dict(
        kernel=matmul_persistent,
        arch=90,
        args=described("fp8e4nv", 64, 64, 128, transposed=True, out="fp16")
        | dict(m="i32", n="i32", k="i32", blocks="i32")
        | tile(64, 64, 128)
        | dict(FLATTEN=False),
    ),
    "triton_matmul_descriptor_reduce_sm90": dict(
        kernel=matmul_descriptor_reduce,
        arch=90,
        args=described("fp16", 64, 32, 64, transposed=False, out="fp32") | dict(k="i32") | tile(64, 32, 64),
    ),
    "triton_matmul_mxfp8_sm90": dict(
        kernel=matmul_mxfp,
        arch=90,
        args=dict(
            a="*fp8e4nv:16", a_scale="*u8:16", b="*fp8e5:16", b_scale="*u8:16", c="*fp32:16", k="i32:16"
        )
        | tile(64, 32, 64)
        | dict(A="e4m3", B="e5m2"),
    ),
    "triton_matmul_mxfp4_sm90": dict(
        kernel=matmul_mxfp,
        arch=90,
        args=dict(a="*bf16:16", a_scale="*u8:16", b="*u8:16", b_scale="*u8:16", c="*fp32:16", k="i32:16")
        | tile(64, 32, 64)
        | dict(A="bf16", B="e2m1"),
    ),
    "triton_matmul_cluster_sm90": dict(
        kernel=matmul, arch=90, args=typed("fp16", "fp16", "fp16") | SIZES | tile(128, 64, 32), num_ctas=2
    ),
}
