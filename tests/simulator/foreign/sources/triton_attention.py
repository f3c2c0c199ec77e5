"""Flash attention in Triton: forward with pointers and with descriptors, causal or not, and a decoding step."""

import triton
import triton.language as tl


@triton.jit
def attention(
    q,
    k,
    v,
    out,
    lse,
    scale,
    length,
    HEAD: tl.constexpr,
    BLOCK_Q: tl.constexpr,
    BLOCK_K: tl.constexpr,
    CAUSAL: tl.constexpr,
):
    """One head for each index of the second grid axis; tensors are (heads, length, HEAD)."""
    first = tl.program_id(0) * BLOCK_Q
    head = tl.program_id(1) * length * HEAD
    rows = first + tl.arange(0, BLOCK_Q)
    feature = tl.arange(0, HEAD)
    queries = tl.load(q + head + rows[:, None] * HEAD + feature[None, :])
    top = tl.full((BLOCK_Q,), -float("inf"), tl.float32)
    norm = tl.zeros((BLOCK_Q,), tl.float32)
    acc = tl.zeros((BLOCK_Q, HEAD), tl.float32)
    to_log2 = scale * 1.4426950408889634
    end = first + BLOCK_Q if CAUSAL else length
    for start in range(0, end, BLOCK_K):
        columns = start + tl.arange(0, BLOCK_K)
        keys = tl.load(k + head + columns[None, :] * HEAD + feature[:, None])
        score = tl.dot(queries, keys) * to_log2
        if CAUSAL:
            score = tl.where(rows[:, None] >= columns[None, :], score, -1.0e6)
        higher = tl.maximum(top, tl.max(score, 1))
        weight = tl.exp2(score - higher[:, None])
        shrink = tl.exp2(top - higher)
        norm = norm * shrink + tl.sum(weight, 1)
        values = tl.load(v + head + columns[:, None] * HEAD + feature[None, :])
        acc = tl.dot(weight.to(values.dtype), values, acc * shrink[:, None])
        top = higher
    tl.store(
        out + head + rows[:, None] * HEAD + feature[None, :], (acc / norm[:, None]).to(out.dtype.element_ty)
    )
    tl.store(lse + tl.program_id(1) * length + rows, top + tl.log2(norm))


@triton.jit
def attention_descriptor(
    q,
    k,
    v,
    out,
    scale,
    length,
    HEAD: tl.constexpr,
    BLOCK_Q: tl.constexpr,
    BLOCK_K: tl.constexpr,
    WARP_SPECIALIZE: tl.constexpr = False,
):
    """Not causal; tensors are (heads * length, HEAD) behind tensor descriptors."""
    first = tl.program_id(1) * length + tl.program_id(0) * BLOCK_Q
    queries = q.load([first, 0])
    top = tl.full((BLOCK_Q,), -float("inf"), tl.float32)
    norm = tl.zeros((BLOCK_Q,), tl.float32)
    acc = tl.zeros((BLOCK_Q, HEAD), tl.float32)
    to_log2 = scale * 1.4426950408889634
    for start in tl.range(0, length, BLOCK_K, warp_specialize=WARP_SPECIALIZE):
        row = tl.program_id(1) * length + start
        score = tl.dot(queries, k.load([row, 0]).T) * to_log2
        higher = tl.maximum(top, tl.max(score, 1))
        weight = tl.exp2(score - higher[:, None])
        shrink = tl.exp2(top - higher)
        norm = norm * shrink + tl.sum(weight, 1)
        acc = tl.dot(weight.to(tl.float16), v.load([row, 0]), acc * shrink[:, None])
        top = higher
    out.store([first, 0], (acc / norm[:, None]).to(tl.float16))


@triton.jit
def attention_decode(
    q, k, v, out, table, lengths, scale, HEAD: tl.constexpr, PAGE: tl.constexpr, MAX_PAGES: tl.constexpr
):
    """One query for each sequence; keys and values lie in pages that a table names."""
    sequence = tl.program_id(0)
    length = tl.load(lengths + sequence)
    feature = tl.arange(0, HEAD)
    query = tl.load(q + sequence * HEAD + feature).to(tl.float32)
    top = -float("inf")
    norm = 0.0
    acc = tl.zeros((HEAD,), tl.float32)
    for page in range(tl.cdiv(length, PAGE)):
        where = tl.load(table + sequence * MAX_PAGES + page)
        slot = tl.arange(0, PAGE)
        keep = page * PAGE + slot < length
        at = where * PAGE * HEAD + slot[:, None] * HEAD + feature[None, :]
        keys = tl.load(k + at, mask=keep[:, None], other=0.0).to(tl.float32)
        score = tl.where(keep, tl.sum(keys * query[None, :], 1) * scale, -float("inf"))
        higher = tl.maximum(top, tl.max(score, 0))
        weight = tl.exp(score - higher)
        shrink = tl.exp(top - higher)
        norm = norm * shrink + tl.sum(weight, 0)
        values = tl.load(v + at, mask=keep[:, None], other=0.0).to(tl.float32)
        acc = acc * shrink + tl.sum(weight[:, None] * values, 0)
        top = higher
    tl.store(out + sequence * HEAD + feature, (acc / norm).to(tl.float16))


def tensors(dtype: str) -> dict:
    return dict.fromkeys(("q", "k", "v", "out"), f"*{dtype}:16") | dict(
        lse="*fp32:16", scale="fp32", length="i32:16"
    )


def described(q: int, k: int, head: int) -> dict:
    large, small = f"tensordesc<fp16[{q}, {head}]>", f"tensordesc<fp16[{k}, {head}]>"
    return dict(
        q=large, k=small, v=small, out=large, scale="fp32", length="i32:16", HEAD=head, BLOCK_Q=q, BLOCK_K=k
    )


VARIANTS = {
    "triton_attention_sm80": dict(
        kernel=attention, arch=80, args=tensors("fp16") | dict(HEAD=32, BLOCK_Q=64, BLOCK_K=32, CAUSAL=False)
    ),
    "triton_attention_causal_sm80": dict(
        kernel=attention,
        arch=80,
        args=tensors("bf16") | dict(HEAD=64, BLOCK_Q=32, BLOCK_K=32, CAUSAL=True),
        num_stages=2,
    ),
    "triton_attention_causal_sm90": dict(
        kernel=attention, arch=90, args=tensors("fp16") | dict(HEAD=64, BLOCK_Q=64, BLOCK_K=64, CAUSAL=True)
    ),
    "triton_attention_descriptor_sm90": dict(
        kernel=attention_descriptor, arch=90, args=described(64, 32, 64)
    ),
    "triton_attention_warp_specialized_sm90": dict(
        kernel=attention_descriptor, arch=90, args=described(64, 64, 64) | dict(WARP_SPECIALIZE=True)
    ),
    "triton_attention_decode_sm80": dict(
        kernel=attention_decode,
        arch=80,
        args=dict.fromkeys(("q", "k", "v", "out"), "*fp16:16")
        | dict(table="*i32:16", lengths="*i32:16", scale="fp32", HEAD=64, PAGE=16, MAX_PAGES=4),
    ),
}
