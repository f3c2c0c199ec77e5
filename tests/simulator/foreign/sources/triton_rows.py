"""Row-wise Triton kernels: softmax, layer norm forward and backward, argmax, cross entropy, rotary embedding."""

import triton
import triton.language as tl
from triton.language.extra import libdevice


@triton.jit
def softmax(out, inp, columns, row_stride, BLOCK: tl.constexpr):
    row = tl.program_id(0)
    column = tl.arange(0, BLOCK)
    keep = column < columns
    x = tl.load(inp + row * row_stride + column, mask=keep, other=-float("inf")).to(tl.float32)
    e = tl.exp(x - tl.max(x, 0))
    y = e / tl.sum(e, 0)
    tl.store(out + row * row_stride + column, y.to(out.dtype.element_ty), mask=keep)


@triton.jit
def online_softmax(out, inp, columns, row_stride, BLOCK: tl.constexpr):
    """Two passes over a row that does not fit in one tile: running maximum and running sum first."""
    row = tl.program_id(0)
    top = tl.full((BLOCK,), -float("inf"), tl.float32)
    total = tl.zeros((BLOCK,), tl.float32)
    for start in range(0, columns, BLOCK):
        column = start + tl.arange(0, BLOCK)
        x = tl.load(inp + row * row_stride + column, mask=column < columns, other=-1e30)
        higher = tl.maximum(top, x)
        total = total * tl.exp(top - higher) + tl.exp(x - higher)
        top = higher
    best = tl.max(top, 0)
    norm = tl.sum(total * tl.exp(top - best), 0)
    for start in range(0, columns, BLOCK):
        column = start + tl.arange(0, BLOCK)
        keep = column < columns
        x = tl.load(inp + row * row_stride + column, mask=keep)
        tl.store(out + row * row_stride + column, tl.exp(x - best) / norm, mask=keep)


@triton.jit
def layer_norm(
    out, inp, weight, bias, mean_out, rstd_out, columns, eps, ROWS: tl.constexpr, BLOCK: tl.constexpr
):
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    column = tl.arange(0, BLOCK)
    keep = (column < columns)[None, :]
    at = row[:, None] * columns + column[None, :]
    x = tl.load(inp + at, mask=keep, other=0.0).to(tl.float32)
    mean = tl.sum(x, 1) / columns
    centred = tl.where(keep, x - mean[:, None], 0.0)
    rstd = tl.rsqrt(tl.sum(centred * centred, 1) / columns + eps)
    w = tl.load(weight + column, mask=column < columns).to(tl.float32)
    b = tl.load(bias + column, mask=column < columns).to(tl.float32)
    y = centred * rstd[:, None] * w[None, :] + b[None, :]
    tl.store(out + at, y.to(out.dtype.element_ty), mask=keep)
    tl.store(mean_out + row, mean)
    tl.store(rstd_out + row, rstd)


@triton.jit
def layer_norm_backward(dx, dweight, dy, inp, weight, mean_in, rstd_in, lock, columns, BLOCK: tl.constexpr):
    """The weight's gradient is summed over the grid under a spin lock."""
    row = tl.program_id(0)
    column = tl.arange(0, BLOCK)
    keep = column < columns
    x = tl.load(inp + row * columns + column, mask=keep, other=0.0)
    g = tl.load(dy + row * columns + column, mask=keep, other=0.0)
    w = tl.load(weight + column, mask=keep, other=0.0)
    mean = tl.load(mean_in + row)
    rstd = tl.load(rstd_in + row)
    unit = tl.where(keep, (x - mean) * rstd, 0.0)
    wg = w * g
    c1 = tl.sum(unit * wg, 0) / columns
    c2 = tl.sum(wg, 0) / columns
    tl.store(dx + row * columns + column, (wg - (unit * c1 + c2)) * rstd, mask=keep)
    while tl.atomic_cas(lock, 0, 1) == 1:
        pass
    so_far = tl.load(dweight + column, mask=keep)
    tl.store(dweight + column, so_far + g * unit, mask=keep)
    tl.debug_barrier()
    tl.atomic_xchg(lock, 0)


@triton.jit
def extremes(top, top_at, low, low_at, inp, BLOCK: tl.constexpr):
    row = tl.program_id(0)
    x = tl.load(inp + row * BLOCK + tl.arange(0, BLOCK))
    value, where = tl.max(x, 0, return_indices=True)
    tl.store(top + row, value)
    tl.store(top_at + row, where)
    value, where = tl.min(x, 0, return_indices=True)
    tl.store(low + row, value)
    tl.store(low_at + row, where)


@triton.jit
def cross_entropy(loss, logits, target, classes, BLOCK: tl.constexpr):
    row = tl.program_id(0)
    column = tl.arange(0, BLOCK)
    x = tl.load(logits + row * classes + column, mask=column < classes, other=-float("inf"))
    wanted = tl.load(target + row)
    top = tl.max(x, 0)
    log_sum = tl.log(tl.sum(tl.exp(x - top), 0)) + top
    tl.store(loss + row, log_sum - tl.load(logits + row * classes + wanted))


@triton.jit
def rotary(out, inp, base, HEAD: tl.constexpr, ROWS: tl.constexpr):
    """Rotary position embedding; the angle is computed here, so that sine and cosine get large arguments."""
    position = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    pair = tl.arange(0, HEAD // 2)
    frequency = libdevice.pow(base, -2.0 * pair.to(tl.float32) / HEAD)
    angle = position[:, None].to(tl.float32) * 1000.0 * frequency[None, :]
    c = libdevice.cos(angle)
    s = libdevice.sin(angle)
    at = position[:, None] * HEAD + pair[None, :]
    left = tl.load(inp + at)
    right = tl.load(inp + at + HEAD // 2)
    tl.store(out + at, left * c - right * s)
    tl.store(out + at + HEAD // 2, left * s + right * c)


@triton.jit
def math_functions(out, inp, n, BLOCK: tl.constexpr):
    """One row of the output for each function."""
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    keep = at < n
    x = tl.load(inp + at, mask=keep, other=1.0)
    tl.store(out + 0 * n + at, tl.erf(x), mask=keep)
    tl.store(out + 1 * n + at, tl.sigmoid(x), mask=keep)
    tl.store(out + 2 * n + at, libdevice.tanh(x), mask=keep)
    tl.store(out + 3 * n + at, tl.log2(tl.abs(x)), mask=keep)
    tl.store(out + 4 * n + at, tl.exp2(x), mask=keep)
    tl.store(out + 5 * n + at, tl.sqrt_rn(tl.abs(x)), mask=keep)
    tl.store(out + 6 * n + at, tl.div_rn(1.0, x), mask=keep)
    tl.store(out + 7 * n + at, tl.floor(x * 8.0) + tl.ceil(x), mask=keep)
    tl.store(out + 8 * n + at, libdevice.log1p(tl.abs(x)), mask=keep)
    tl.store(out + 9 * n + at, libdevice.expm1(x), mask=keep)
    tl.store(out + 10 * n + at, libdevice.atan2(x, 0.5), mask=keep)
    tl.store(out + 11 * n + at, tl.fma(x, x, 1.0), mask=keep)
    tl.store(out + 12 * n + at, tl.sin(x) + tl.cos(x), mask=keep)
    tl.store(out + 13 * n + at, tl.rsqrt(tl.abs(x)), mask=keep)
    tl.store(out + 14 * n + at, libdevice.lgamma(tl.abs(x) + 0.5), mask=keep)
    tl.store(out + 15 * n + at, libdevice.fmod(x, 0.3), mask=keep)


ROW = dict(out="*fp32:16", inp="*fp32:16", columns="i32", row_stride="i32")
VARIANTS = {
    "triton_softmax_sm80": dict(kernel=softmax, arch=80, args=ROW | dict(BLOCK=128)),
    "triton_softmax_wide_sm80": dict(
        kernel=softmax, arch=80, args=ROW | dict(row_stride="i32:16", BLOCK=1024), num_warps=8
    ),
    "triton_softmax_f16_sm90": dict(
        kernel=softmax,
        arch=90,
        args=dict(out="*fp16:16", inp="*fp16:16", columns="i32:16", row_stride="i32:16", BLOCK=512),
    ),
    "triton_online_softmax_sm80": dict(kernel=online_softmax, arch=80, args=ROW | dict(BLOCK=128)),
    "triton_layer_norm_sm80": dict(
        kernel=layer_norm,
        arch=80,
        args=dict(
            out="*fp16:16",
            inp="*fp16:16",
            weight="*fp16:16",
            bias="*fp16:16",
            mean_out="*fp32:16",
            rstd_out="*fp32:16",
            columns="i32",
            eps="fp32",
            ROWS=4,
            BLOCK=128,
        ),
    ),
    "triton_layer_norm_bf16_sm90": dict(
        kernel=layer_norm,
        arch=90,
        args=dict(
            out="*bf16:16",
            inp="*bf16:16",
            weight="*bf16:16",
            bias="*bf16:16",
            mean_out="*fp32:16",
            rstd_out="*fp32:16",
            columns="i32:16",
            eps="fp32",
            ROWS=2,
            BLOCK=256,
        ),
    ),
    "triton_layer_norm_backward_sm80": dict(
        kernel=layer_norm_backward,
        arch=80,
        args=dict(
            dx="*fp32:16",
            dweight="*fp32:16",
            dy="*fp32:16",
            inp="*fp32:16",
            weight="*fp32:16",
            mean_in="*fp32:16",
            rstd_in="*fp32:16",
            lock="*i32:16",
            columns="i32",
            BLOCK=128,
        ),
    ),
    "triton_extremes_sm80": dict(
        kernel=extremes,
        arch=80,
        args=dict(
            top="*fp32:16", top_at="*i32:16", low="*fp32:16", low_at="*i32:16", inp="*fp32:16", BLOCK=256
        ),
    ),
    "triton_cross_entropy_sm90": dict(
        kernel=cross_entropy,
        arch=90,
        args=dict(loss="*fp32:16", logits="*fp32:16", target="*i64:16", classes="i32", BLOCK=128),
    ),
    "triton_rotary_sm80": dict(
        kernel=rotary, arch=80, args=dict(out="*fp32:16", inp="*fp32:16", base="fp32", HEAD=32, ROWS=16)
    ),
    "triton_math_sm80": dict(
        kernel=math_functions, arch=80, args=dict(out="*fp32:16", inp="*fp32:16", n="i32", BLOCK=128)
    ),
}
# Blackwell stores what warps exchange as pairs.
VARIANTS["triton_layer_norm_sm120"] = VARIANTS["triton_layer_norm_sm80"] | dict(arch=120)
