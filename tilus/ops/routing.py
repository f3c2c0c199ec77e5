"""Routing of tokens to the experts of a mixture: choose, sort, gather and combine, all on the device."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from tilus import dtypes, next_power_of_2
from tilus.errors import ShapeMismatch, TypeMismatch
from tilus.ops.checks import checked
from tilus.ops.gradients import operator
from tilus.ops.library import LIBRARY
from tilus.ops.routing_kernels import (
    CHUNK,
    combine_kernel,
    count_kernel,
    gather_kernel,
    lay_out_kernel,
    place_kernel,
    route_kernel,
    scan_kernel,
)

FLOATS = {torch.float16: dtypes.float16, torch.bfloat16: dtypes.bfloat16, torch.float32: dtypes.float32}
BYTES = (torch.int8, torch.uint8, torch.float8_e4m3fn, torch.float8_e5m2)
"""Types whose rows are moved as bytes; all of their zeros are the byte 0."""
MOST_EXPERTS = 1024
SCORINGS = ("softmax", "sigmoid")


@dataclass(frozen=True, eq=False)
class Routing:
    """Where the rows of tokens go when they are sorted by expert, each expert's rows in whole blocks.

    Attributes
    ----------
    rows : Tensor of int32, shape (capacity,)
        Which row of ``ids.flatten()`` stands at each place, or -1 where a block is filled up.
    places : Tensor of int32, of the shape of ids
        The place of each, or -1 where an id names no expert.
    block_expert : Tensor of int32, shape (capacity / block,)
        The expert of each block of rows, or -1 for the blocks at the end that nothing uses.
    counts : Tensor of int32, shape (experts,)
        Rows of each expert.
    offsets : Tensor of int32, shape (experts + 1,)
        The first place of each expert, a multiple of `block`, and the end of the last one.
    block : int
        Rows of a block.
    """

    rows: torch.Tensor
    places: torch.Tensor
    block_expert: torch.Tensor
    counts: torch.Tensor
    offsets: torch.Tensor
    block: int


@checked
def route(
    logits: torch.Tensor, top_k: int, *, scoring: str = "softmax", renormalise: bool = True
) -> tuple[torch.Tensor, torch.Tensor]:
    """Choose the experts of each token.

    Parameters
    ----------
    logits : Tensor of float16, bfloat16 or float32, shape (tokens, experts)
        Up to 1024 experts.
    top_k : int
        How many experts a token has.
    scoring : str
        "softmax" over all experts, or "sigmoid" of each.
    renormalise : bool
        Whether the weights of a token are divided by their sum.

    Returns
    -------
    weights : Tensor of float32, shape (tokens, top_k)
        Scores, the largest first.
    ids : Tensor of int32, shape (tokens, top_k)
        The experts that they belong to; of equal logits the lower expert comes first.

    Raises
    ------
    ShapeMismatch, TypeMismatch
        Where the arguments do not fit.
    """
    if logits.dtype not in FLOATS:
        raise TypeMismatch(f"route takes logits of float16, bfloat16 or float32, not {logits.dtype}")
    if logits.ndim != 2:
        raise ShapeMismatch(f"route takes logits of shape (tokens, experts), not shape {tuple(logits.shape)}")
    if not 1 <= logits.shape[1] <= MOST_EXPERTS:
        raise ShapeMismatch(f"route takes 1 to {MOST_EXPERTS} experts, not {logits.shape[1]}")
    if not 1 <= top_k <= logits.shape[1]:
        raise ShapeMismatch(f"top_k is {top_k}, expected 1 to {logits.shape[1]}, the number of experts")
    if scoring not in SCORINGS:
        raise TypeMismatch(f"no scoring named {scoring!r}", hint="one of " + ", ".join(map(repr, SCORINGS)))
    weights, ids = operator("route", logits)(logits, top_k, scoring, renormalise)
    return weights, ids


@checked
def sort_by_expert(ids: torch.Tensor, experts: int, block: int = 64) -> Routing:
    """Sort rows by expert, and fill up each expert's rows to whole blocks.

    Rows of one expert keep their order. Sizes depend on shapes alone, so that nothing waits for the device.

    Parameters
    ----------
    ids : Tensor of int32, any shape
        The expert of each row; rows whose id is not in [0, experts) are left out.
    experts : int
        At most 1024.
    block : int
        Rows of a block, a power of two up to 256.

    Returns
    -------
    Routing

    Raises
    ------
    ShapeMismatch, TypeMismatch
        Where the arguments do not fit.
    """
    if ids.dtype != torch.int32:
        raise TypeMismatch(f"sort_by_expert takes ids of int32, not {ids.dtype}", hint="ids.to(torch.int32)")
    if not 1 <= experts <= MOST_EXPERTS:
        raise ShapeMismatch(f"sort_by_expert takes 1 to {MOST_EXPERTS} experts, not {experts}")
    if block not in (8, 16, 32, 64, 128, 256):
        raise ShapeMismatch(f"a block of {block} rows", hint="8, 16, 32, 64, 128 or 256")
    rows, places, block_expert, counts, offsets = torch.ops.tilus.sort_by_expert(ids, experts, block)
    return Routing(rows, places, block_expert, counts, offsets, block)


def capacity(rows: int, experts: int, block: int) -> int:
    """Return how many rows `sort_by_expert` makes room for: as many as the most uneven choice needs."""
    used = min(rows, experts)
    # Each expert that is used has at least one row, and leaves at most block - 1 of its last block empty.
    return -(-(rows + used * (block - 1)) // block) * block


@checked
def gather_rows(x: torch.Tensor, routing: Routing, top_k: int = 1) -> torch.Tensor:
    """Bring the rows of tokens into the order of a routing.

    Parameters
    ----------
    x : Tensor of float16, bfloat16, float32, float8, int8 or uint8, shape (tokens, n)
        A scale of each row is moved by itself: ``gather_rows(scale[:, None], routing, top_k)``.
    routing : Routing
    top_k : int
        How many rows of the routing each token has.

    Returns
    -------
    Tensor, shape (capacity, n)
        Zeros in rows that fill up a block.
    """
    if x.dtype not in (*FLOATS, *BYTES) or x.ndim != 2:
        raise TypeMismatch(
            f"gather_rows takes a matrix of float16, bfloat16, float32, float8, int8 or uint8, not {x.ndim} dimensions "
            f"of {x.dtype}"
        )
    if x.shape[0] * top_k != routing.places.numel():
        raise ShapeMismatch(
            f"{x.shape[0]} tokens with {top_k} experts each, but the routing has {routing.places.numel()} rows"
        )
    out: torch.Tensor = operator("gather_rows", x)(x, routing.rows, top_k)
    return out


@checked
def combine(y: torch.Tensor, weights: torch.Tensor, routing: Routing) -> torch.Tensor:
    """Sum what the experts of each token found, with its weights.

    Parameters
    ----------
    y : Tensor of float16, bfloat16 or float32, shape (capacity, n)
        In the order of the routing.
    weights : Tensor of float32, shape (tokens, top_k)
    routing : Routing
        Of ids of the same shape as weights.

    Returns
    -------
    Tensor of y's dtype, shape (tokens, n)
        Accumulated in float32, in the order of a token's experts.
    """
    if y.dtype not in FLOATS or y.ndim != 2 or y.shape[0] != routing.rows.shape[0]:
        raise ShapeMismatch(
            f"combine takes a matrix of {routing.rows.shape[0]} rows, not {y.dtype} of shape {tuple(y.shape)}"
        )
    if weights.dtype != torch.float32 or weights.shape != routing.places.shape or weights.ndim != 2:
        raise ShapeMismatch(
            f"weights are {weights.dtype} of shape {tuple(weights.shape)}, expected torch.float32 of shape "
            f"{tuple(routing.places.shape)}"
        )
    out: torch.Tensor = operator("combine", y, weights)(y, weights, routing.places)
    return out


for _schema in (
    "route(Tensor logits, int top_k, str scoring, bool renormalise) -> (Tensor, Tensor)",
    "sort_by_expert(Tensor ids, int experts, int block) -> (Tensor, Tensor, Tensor, Tensor, Tensor)",
    "gather_rows(Tensor x, Tensor rows, int top_k) -> Tensor",
    "combine(Tensor y, Tensor weights, Tensor places) -> Tensor",
):
    LIBRARY.define(_schema, tags=(torch.Tag.pt2_compliant_tag,))


def _route(
    logits: torch.Tensor, top_k: int, scoring: str, renormalise: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    weights, ids = _route_fake(logits, top_k, scoring, renormalise)
    if ids.numel():
        rows = logits if logits.stride(1) == 1 else logits.contiguous()
        width = max(32, next_power_of_2(logits.shape[1]))
        route_kernel(
            rows,
            weights,
            ids,
            dtype=FLOATS[logits.dtype],
            softmax=scoring == "softmax",
            renormalise=renormalise,
            width=width,
        )
    return weights, ids


def _route_fake(
    logits: torch.Tensor, top_k: int, scoring: str, renormalise: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    shape = (logits.shape[0], top_k)
    return logits.new_empty(shape, dtype=torch.float32), logits.new_empty(shape, dtype=torch.int32)


def _sort(
    ids: torch.Tensor, experts: int, block: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    rows, places, block_expert, counts, offsets = _sort_fake(ids, experts, block)
    slots = ids.numel()
    if not slots:
        counts.zero_()
        offsets.zero_()
        return rows, places, block_expert, counts, offsets
    flat = ids.reshape(slots)
    width = max(32, next_power_of_2(experts))
    ranks = torch.empty_like(flat)
    by_chunk = torch.empty((-(-slots // CHUNK), experts), dtype=torch.int32, device=ids.device)
    count_kernel(flat, ranks, by_chunk, width=width)
    scan_kernel(by_chunk, counts)
    lay_out_kernel(counts, offsets, block_expert, rows, block=block, width=width)
    place_kernel(flat, ranks, by_chunk, offsets, rows, places.view(slots))
    return rows, places, block_expert, counts, offsets


def _sort_fake(
    ids: torch.Tensor, experts: int, block: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    room = capacity(ids.numel(), experts, block)
    return (
        ids.new_empty((room,)),
        torch.empty(ids.shape, dtype=torch.int32, device=ids.device),
        ids.new_empty((room // block,)),
        ids.new_empty((experts,)),
        ids.new_empty((experts + 1,)),
    )


def _gather(x: torch.Tensor, rows: torch.Tensor, top_k: int) -> torch.Tensor:
    out = _gather_fake(x, rows, top_k)
    if out.numel():
        source = x if x.stride(1) == 1 else x.contiguous()
        if x.dtype in BYTES:
            gather_kernel(
                source.view(torch.uint8), rows, out.view(torch.uint8), top_k, dtype=dtypes.uint8, wide=2048
            )
        else:
            gather_kernel(source, rows, out, top_k, dtype=FLOATS[x.dtype])
    return out


def _gather_fake(x: torch.Tensor, rows: torch.Tensor, top_k: int) -> torch.Tensor:
    return x.new_empty((rows.shape[0], x.shape[1]))


def _combine(y: torch.Tensor, weights: torch.Tensor, places: torch.Tensor) -> torch.Tensor:
    out = _combine_fake(y, weights, places)
    if out.numel():
        source = y if y.stride(1) == 1 else y.contiguous()
        combine_kernel(source, weights.contiguous(), places.contiguous(), out, dtype=FLOATS[y.dtype])
    return out


def _combine_fake(y: torch.Tensor, weights: torch.Tensor, places: torch.Tensor) -> torch.Tensor:
    return y.new_empty((places.shape[0], y.shape[1]))


for _name, _run, _fake in (
    ("route", _route, _route_fake),
    ("sort_by_expert", _sort, _sort_fake),
    ("gather_rows", _gather, _gather_fake),
    ("combine", _combine, _combine_fake),
):
    LIBRARY.impl(_name, _run, "CPU")
    LIBRARY.impl(_name, _run, "CUDA")
    torch.library.register_fake(f"tilus::{_name}", _fake, lib=LIBRARY)
