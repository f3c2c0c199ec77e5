"""Kernels that bring codes into the order of `tilus.ops.prepack`, take them out of it, and make them of numbers."""

from __future__ import annotations

import tilus
from tilus import Tensor, constexpr, float32, int32, uint8, uint32
from tilus.codegen.casts import stored_arrangement
from tilus.dtypes import DType, dtype
from tilus.layout import RegisterLayout, local, spatial
from tilus.ops.prepack import CODES, THREADS, UNIT_K, UNIT_N, byte_layout, code_layout, unit_bytes

# Of a bit string of so many words: for each word the words whose bits it takes, how far right they move, and which; and
# what is inverted.
Moves = tuple[tuple[tuple[tuple[int, int, int], ...], int], ...]


def moves(code_type: DType, operand: DType, store: bool) -> Moves:
    """Return how the words of a group of codes move to the order in which they are stored, or back."""
    arrangement = stored_arrangement(code_type, operand)
    if arrangement is None:
        return (((), 0),)
    parts: list[dict[tuple[int, int], int]] = [{} for _ in range(arrangement.words)]
    for stored, natural in enumerate(arrangement.places):
        source, target = (natural, stored) if store else (stored, natural)
        key = (source // 32, source % 32 - target % 32)
        parts[target // 32][key] = parts[target // 32].get(key, 0) | 1 << source % 32
    flips = arrangement.flip if store else (0,) * arrangement.words
    return tuple(
        (tuple((word, shift, mask) for (word, shift), mask in part.items()), flip)
        for part, flip in zip(parts, flips, strict=True)
    )


def flips(code_type: DType, operand: DType) -> tuple[int, ...]:
    """Return what is inverted in the words of a stored group."""
    arrangement = stored_arrangement(code_type, operand)
    return (0,) if arrangement is None else arrangement.flip


def word_layout(groups: int, words: int, warps: int) -> RegisterLayout:
    """Return the layout of each thread's codes as groups of words."""
    return spatial(THREADS * warps, 1, 1) * local(1, groups, words)


@tilus.inline
def moved(words, steps):
    """Return words, (threads, groups, words of a group), with their bits moved."""
    made = [moved_word(words, steps, 0)]
    for j in tilus.static_range(1, len(steps)):
        made = [*made, moved_word(words, steps, j)]
    return tilus.concat(made, axis=2)


@tilus.inline
def moved_word(words, steps, j):
    """Return one word of each group."""
    parts, flip = steps[j]
    total = tilus.zeros((words.shape[0], words.shape[1], 1), uint32) if parts else words[:, :, j : j + 1]
    for p in tilus.static_range(len(parts)):
        word, shift, mask = parts[p]
        bits = words[:, :, word : word + 1] & mask
        if shift > 0:
            bits = bits >> shift
        if shift < 0:
            bits = bits << -shift
        total = total | bits
    if flip:
        total = total ^ flip
    return total


@tilus.inline
def units_of(codes, operand, warps):
    """Return the bytes of packed units, (1, units, bytes), of 128 x n codes in `code_layout` and natural order."""
    code_type = codes.dtype
    n = codes.shape[1]
    bits = code_type.bits
    steps = moves(code_type, operand, True)
    groups = n // UNIT_N // warps * CODES * bits // 32 // len(steps)
    layout = word_layout(groups, len(steps), warps)
    words = tilus.view(codes, uint32, (THREADS * warps, groups, len(steps)), layout=layout)
    words = tilus.annotate_layout(moved(words, steps), layout)
    shape = (1, n // UNIT_N, unit_bytes(bits))
    return tilus.view(words, uint8, shape, layout=byte_layout(UNIT_K, n, bits, warps))


@tilus.kernel
def pack_kernel(
    codes: Tensor[uint8, "k n"],
    packed: Tensor[uint8, "k_units n_units unit_bytes"],
    *,
    b_dtype: constexpr,
    operand: constexpr,
    warps: constexpr = 4,
):
    """packed = the codes in the order in which threads hold them."""
    tilus.grid(tilus.cdiv(codes.shape[0], UNIT_K), tilus.cdiv(codes.shape[1], UNIT_N * warps), warps=warps)
    bi, bj = tilus.block_id()[:2]
    n = UNIT_N * warps
    found = tilus.load(codes, (bi * UNIT_K, bj * n), (UNIT_K, n))
    found = tilus.annotate_layout(found, code_layout(UNIT_K, n, warps, operand_bits=operand.bits))
    narrow = tilus.cast(found, dtype(f"uint{b_dtype.bits}"))
    own = tilus.view(narrow, b_dtype, (UNIT_K, n))
    tilus.store(packed, units_of(own, operand, warps), (bi, bj * warps, 0))


@tilus.kernel
def unpack_kernel(
    packed: Tensor[uint8, "k_units n_units unit_bytes"],
    codes: Tensor[uint8, "k n"],
    *,
    b_dtype: constexpr,
    operand: constexpr,
    warps: constexpr = 4,
):
    """The codes of packed units: the inverse of `pack_kernel`."""
    tilus.grid(tilus.cdiv(codes.shape[0], UNIT_K), tilus.cdiv(codes.shape[1], UNIT_N * warps), warps=warps)
    bi, bj = tilus.block_id()[:2]
    n, bits = UNIT_N * warps, b_dtype.bits
    held = tilus.load(
        packed, (bi, bj * warps, 0), (1, warps, unit_bytes(bits)), layout=byte_layout(UNIT_K, n, bits, warps)
    )
    steps = moves(b_dtype, operand, False)
    groups = CODES * bits // 32 // len(steps)
    layout = word_layout(groups, len(steps), warps)
    words = tilus.view(held, uint32, (THREADS * warps, groups, len(steps)), layout=layout)
    inverted = flips(b_dtype, operand)
    if inverted[0]:
        # Only bytes have bits that are stored inverted, and they are one word.
        words = words ^ inverted[0]
    words = tilus.annotate_layout(moved(words, steps), layout)
    own = code_layout(UNIT_K, n, warps, operand_bits=operand.bits)
    low = tilus.view(words, dtype(f"uint{bits}"), (UNIT_K, n), layout=own)
    tilus.store(codes, tilus.cast(low, uint8), (bi * UNIT_K, bj * n))


@tilus.kernel
def quantize_kernel(
    weight: Tensor["dtype_of_weight", "k n"],
    scale: Tensor[float32, "groups n"],
    zero: Tensor[float32, "groups n"],
    packed: Tensor[uint8, "k_units n_units unit_bytes"],
    seed: int32,
    *,
    dtype_of_weight: constexpr,
    b_dtype: constexpr,
    operand: constexpr,
    group: constexpr,
    stochastic: constexpr = False,
    warps: constexpr = 4,
):
    """packed = the codes nearest to weight / scale + zero, or with `stochastic` one of the two that it lies between."""
    k, columns = weight.shape
    tilus.grid(tilus.cdiv(k, UNIT_K), tilus.cdiv(columns, UNIT_N * warps), warps=warps)
    bi, bj = tilus.block_id()[:2]
    n = UNIT_N * warps
    row, column = bi * UNIT_K, bj * n
    size = group if group < UNIT_K else UNIT_K
    found = tilus.cast(tilus.load(weight, (row, column), (UNIT_K, n)), float32)
    scales = tilus.load(scale, (row // group, column), (UNIT_K // size, n))
    zeros = tilus.load(zero, (row // group, column), (UNIT_K // size, n))
    # Beyond the weight there are no scales.
    scales = tilus.where(scales > 0.0, scales, 1.0)
    wide = tilus.broadcast_to(scales[:, None, :], (UNIT_K // size, size, n))
    shift = tilus.broadcast_to(zeros[:, None, :], (UNIT_K // size, size, n))
    grouped = tilus.reshape(found, (UNIT_K // size, size, n)) / wide + shift
    number = tilus.reshape(grouped, (UNIT_K, n))
    number = tilus.annotate_layout(number, code_layout(UNIT_K, n, warps, operand_bits=operand.bits))
    if stochastic:
        at = tilus.iota((UNIT_K, n), 0) + row
        bits = tilus.randint(seed, at * columns + tilus.iota((UNIT_K, n), 1) + column)
        made = tilus.cast(number, b_dtype, random=bits)
    elif b_dtype.is_integer:
        made = tilus.cast(tilus.round(number), b_dtype)
    else:
        made = tilus.cast(number, b_dtype)
    tilus.store(packed, units_of(made, operand, warps), (bi, bj * warps, 0))
