"""Draws calls of what a mixture of experts is made of: routing, rows moved and combined, and grouped products."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch

from tests.fuzz.bounds import Near, exactly, product
from tests.fuzz.operands import Draw
from tests.fuzz.operators import Case, Outputs, compared
from tests.fuzz.products import (
    FLOAT8,
    HALVES,
    OUTPUTS,
    described,
    expected_of_blocks,
    in_words,
    machine,
    pick,
)
from tests.fuzz.weights import made_of, not_finite, of_weight, product_of
from tilus import ops
from tilus.ops import schedules
from tilus.ops.grouped import result_dtype

FLOATS = (*HALVES, torch.float32)
GROUPED = "tilus.ops.grouped"


@dataclass(frozen=True)
class Rows:
    """Rows of activations, and whose they are.

    Attributes
    ----------
    a : Tensor
        As grouped products take them.
    owners : Routing or Tensor
    expert : Tensor of int64
        Of each row, -1 where its result is not said.
    """

    a: torch.Tensor
    owners: ops.Routing | torch.Tensor
    expert: torch.Tensor

    @property
    def tensors(self) -> list[torch.Tensor]:
        """What a product with them may read."""
        found = self.owners
        return [self.a, *([found] if isinstance(found, torch.Tensor) else [found.block_expert, found.rows])]


def ids_of(draw: Draw, shape: tuple[int, ...], experts: int) -> torch.Tensor:
    """Return experts' numbers, some of which name none."""
    low, high = (0, experts) if draw.chance(0.6) else (-2, experts + 2)
    if draw.chance(0.2):
        # All rows are for few.
        high = min(high, low + 1)
    return draw.laid_out(torch.from_numpy(draw.numbers.integers(low, high, shape)).to(torch.int32))


def rows_of(draw: Draw, experts: int, k: int, dtype: torch.dtype, fewest: int = 16) -> Rows:
    """Return random rows, sorted by expert or with a capacity for each."""
    kind = draw.one(("normal", "normal", "whole", "special"))
    if draw.chance(0.5):
        tokens, top_k = draw.size(64), draw.random.randint(1, 3)
        ids = ids_of(draw, (tokens, top_k), experts)
        block = draw.one([b for b in (8, 16, 32, 64, 128, 256) if b >= fewest and b * experts <= 640])
        routing = ops.sort_by_expert(ids, experts, block)
        a = draw.laid_out(ops.gather_rows(draw.tensor((tokens, k), dtype, kind), routing, top_k))
        taken = ids.flatten().long()
        expert = torch.where(routing.rows >= 0, taken[routing.rows.clamp_min(0)] if taken.numel() else -1, -1)
        return Rows(a, routing, expert)
    capacity = draw.size(130)
    counts = torch.from_numpy(draw.numbers.integers(0, capacity + 1, experts)).to(torch.int32)
    if draw.chance(0.2):
        counts[draw.random.randrange(experts)] = draw.one((-1, capacity + 5, 1 << 30))
    a = draw.tensor((experts, capacity, k), dtype, kind)
    used = torch.arange(capacity) < counts[:, None]
    if draw.chance(0.5) and dtype.is_floating_point:
        # What nobody counts is never read, or does no harm.
        a = draw.laid_out(torch.where(used[..., None], a.float(), float("nan")).to(dtype))
    return Rows(a, counts, torch.where(used, torch.arange(experts)[:, None], -1))


def together(found: Rows, n: int, of: Callable[[torch.Tensor, int], Near]) -> Near:
    """Return what products of all rows may be, from those of each expert."""
    shape = (*found.expert.shape, n)
    value, error = (torch.zeros(shape, dtype=torch.float64) for _ in range(2))
    for expert in found.expert.unique().tolist():
        if expert >= 0:
            here = found.expert == expert
            near = of(found.a[here], expert)
            value[here], error[here] = near.value, near.error
    return Near(value, error)


def of_grouped(draw: Draw) -> Case:
    """Draw a call of `grouped_matmul`."""
    experts, n, k = draw.random.randint(1, 7), draw.size(200), draw.size(300)
    dtype = draw.one((*HALVES, *HALVES, torch.int8, *FLOAT8))
    if draw.chance(0.7):
        n, k = (-(-x // 16) * 16 for x in (n, k))
    rows = rows_of(draw, experts, k, dtype)
    b = draw.tensor((experts, k, n), draw.one(FLOAT8) if dtype in FLOAT8 else dtype, "normal")
    if draw.chance(0.5):
        b = draw.laid_out(b.mT.contiguous()).mT
    options: dict[str, Any] = {"out_dtype": draw.one((None, None, *OUTPUTS))}
    out = options["out_dtype"] or result_dtype(rows.a)
    if draw.chance(0.4):
        options["bias"] = draw.tensor((experts, n), out)
    if draw.chance(0.3):
        options["a_scale"] = draw.tensor(draw.one(((), tuple(rows.a.shape[:-1]))), torch.float32, "normal")
    if draw.chance(0.3):
        options["b_scale"] = draw.tensor(draw.one(((experts,), (experts, n))), torch.float32, "normal")
    options["activation"] = draw.one(("", "", "relu", "gelu", "silu"))

    def one(a: torch.Tensor, expert: int) -> Near:
        found = product(a, b[expert])
        return exactly(found.value) if dtype == torch.int8 else found

    near = together(rows, n, one)
    own = rows.expert.clamp_min(0)
    if "a_scale" in options:
        near = near.times(options["a_scale"].double()[..., None])
    if "b_scale" in options:
        scale = options["b_scale"].double()[own]
        near = near.times(scale if scale.ndim > own.ndim else scale[..., None])
    if "bias" in options:
        near = near.plus(options["bias"][own])
    near = near.through(options["activation"])
    where, processors = machine(draw)
    return Case(
        f"grouped_matmul of {described(rows.a)} and {described(b)}, {type(rows.owners).__name__} "
        f"{block_of(rows)}, {in_words(options)}",
        lambda: (ops.grouped_matmul(rows.a, b, rows.owners, **options),),
        [*rows.tensors, b, *(x for x in options.values() if isinstance(x, torch.Tensor))],
        compared(near, rows=rows.expert >= 0), where, processors, grouped_choices(draw) if draw.chance(0.6) else (),
    )  # fmt: skip


def block_of(rows: Rows) -> int:
    """Return the rows of a block of a routing, 0 without one."""
    return rows.owners.block if isinstance(rows.owners, ops.Routing) else 0


def grouped_choices(draw: Draw) -> tuple[tuple[str, str, Callable[..., Any]], ...]:
    """Return what changes the schedules of `grouped_matmul` within what fits."""
    own, fewer, pair = schedules.grouped_schedule, draw.random.randrange(4), draw.chance(0.5)

    def chosen(*args: Any) -> schedules.GroupedSchedule:
        found = own(*args)
        cluster = 2 if pair and not found.swap else 1
        return replace(found, stages=max(2, found.stages - fewer), cluster_n=cluster)

    return ((GROUPED, "hopper_grouped_schedule", chosen),)


def of_grouped_quantized(draw: Draw) -> Case:
    """Draw a call of `grouped_quantized_matmul`."""
    experts, half = draw.random.randint(1, 5), draw.one(HALVES)
    k, n = draw.size(300, draw.one((1, 16, 32))) or 1, draw.size(150, draw.one((1, 8))) or 1
    form = of_weight(draw, k, n, half, None) | {"order": False, "alpha": draw.one((1.0, 0.5))}
    gated = draw.chance(0.2)
    if gated:
        n = form["n"] = -(-n // 8) * 8
    weights = [made_of(draw, form, None) for _ in range(experts)]
    if gated:
        weights = [ops.gated_pair(w, made_of(draw, form, None)) for w in weights]
    stacked = ops.stack_experts(weights)
    rows = rows_of(draw, experts, k, half, fewest=8)
    bias = draw.tensor((experts, 2 * n if gated else n), half) if draw.chance(0.3) else None
    activation = draw.one(("", "", "relu", "gelu", "silu"))

    def one(a: torch.Tensor, expert: int) -> Near:
        near = product_of(a, weights[expert])
        if activation:
            near = Near(near.value, torch.where(near.value.isnan(), float("inf"), near.error))
        if bias is not None:
            near = near.plus(bias[expert])
        if not gated:
            return near.through(activation)
        gate, up = (Near(near.value[:, s], near.error[:, s]) for s in (slice(0, n), slice(n, None)))
        return gate.through(activation).both(up)

    where, processors = machine(draw)
    return Case(
        f"grouped_quantized_matmul of {described(rows.a)} with {experts} of {form} {'gated ' if gated else ''}"
        f"{type(rows.owners).__name__} {block_of(rows)} bias={bias is not None} {activation}",
        lambda: (ops.grouped_quantized_matmul(rows.a, stacked, rows.owners, bias=bias, activation=activation),),
        [*rows.tensors, stacked.packed, stacked.scale, *([] if bias is None else [bias])],
        not_finite(together(rows, n, one), rows=rows.expert >= 0), where, processors,
    )  # fmt: skip


def of_grouped_block_scaled(draw: Draw) -> Case:
    """Draw a call of `grouped_matmul_block_scaled`."""
    experts, n, k = draw.random.randint(1, 5), draw.size(260), draw.size(400)
    if draw.chance(0.7):
        k = -(-k // 16) * 16
    rows = rows_of(draw, experts, k, draw.one(FLOAT8))
    b = draw.tensor((experts, n, k), draw.one(FLOAT8), "normal")
    blocks = -(-k // 128)
    a_scale = draw.laid_out(draw.values((*rows.a.shape[:-1], blocks), torch.float32, "normal").abs() + 0.1)
    if draw.chance(0.5):
        a_scale = draw.laid_out(a_scale.mT.contiguous()).mT
    b_scale = draw.laid_out(draw.values((experts, -(-n // 128), blocks), torch.float32, "normal").abs() + 0.1)
    out = draw.one(OUTPUTS)

    def one(a: torch.Tensor, expert: int) -> Near:
        return expected_of_blocks(a, b[expert], a_scale[rows.expert == expert], b_scale[expert])

    where, processors = machine(draw)
    take = pick(draw)

    def chosen(
        block_m: int, rows: int, n: int, k: int, out_bits: int, target: Any, processors: int, most: int
    ) -> schedules.GroupedSchedule:
        if block_m <= schedules.MOST_SWAPPED:
            return schedules.grouped_schedule(block_m, rows, n, 8, out_bits, target, processors, 128, 4)
        found = take(
            [
                s
                for s in schedules.block_scaled_candidates(out_bits, target, most)
                if s.block_m == block_m and s.cluster_m == 1 and not s.stream
            ]
        )
        return schedules.GroupedSchedule(
            block_m, found.block_n, 128, found.stages, found.consumers, False, found.cluster_n
        )

    choices = (("tilus.ops.grouped_block_scaled", "grouped_block_scaled_schedule", chosen),)
    return Case(
        f"grouped_matmul_block_scaled of {described(rows.a)} and {described(b)} with {described(a_scale)}, "
        f"{type(rows.owners).__name__} {block_of(rows)}, to {out}",
        lambda: (ops.grouped_matmul_block_scaled(rows.a, b, a_scale, b_scale, rows.owners, out_dtype=out),),
        [*rows.tensors, b, a_scale, b_scale], compared(together(rows, n, one), rows=rows.expert >= 0), where,
        processors, choices if draw.chance(0.6) else (),
    )  # fmt: skip


def of_routing(draw: Draw) -> Case:
    """Draw calls of `route`, `sort_by_expert`, `gather_rows` and `combine`, one after the other."""
    tokens, experts = draw.size(200), draw.one((1, 2, 5, 8, 31, 32, 33, 64, 100, 256, 384))
    top_k = draw.random.randint(1, min(experts, 9))
    logits = draw.tensor((tokens, experts), draw.one(FLOATS), draw.one(("normal", "whole", "wide")))
    scoring, renormalise = draw.one(("softmax", "sigmoid")), draw.chance(0.5)
    # Each expert that has a row has a block.
    block, n = (
        draw.one([b for b in (8, 16, 32, 64, 128, 256) if b * experts <= 1024 or b == 8]),
        draw.size(100),
    )
    x = draw.tensor((tokens, n), draw.one((*FLOATS, *FLOAT8, torch.int8)), "normal")
    where, processors = machine(draw)
    drop = draw.chance(0.3)

    def run() -> Outputs:
        weights, ids = ops.route(logits, top_k, scoring=scoring, renormalise=renormalise)
        if drop:
            ids = torch.where(ids % 3 == 1, -1, ids)
        routing = ops.sort_by_expert(ids, experts, block)
        rows = ops.gather_rows(x, routing, top_k)
        y = rows.float()
        return (weights, ids, routing.rows, routing.places, routing.block_expert, routing.counts, routing.offsets, rows,
                ops.combine(y, weights, routing))  # fmt: skip

    def wrong(found: Outputs) -> str:
        weights, ids, rows, places, block_expert, counts, offsets, moved, combined = found
        scores, order = exact_routing(logits, top_k, scoring, renormalise)
        if drop:
            order = torch.where(order % 3 == 1, -1, order)
        if not torch.equal(ids, order):
            return "other experts were chosen"
        said = compared(Near(scores, 64 * 2.0**-23 * scores + 1e-30))((weights,))
        exact = exact_sort(ids, experts, block, rows.numel())
        for name, got, wanted in zip(
            ("rows", "places", "block_expert", "counts", "offsets"),
            (rows, places, block_expert, counts, offsets), exact, strict=True,
        ):  # fmt: skip
            if not torch.equal(got, wanted.to(torch.int32).reshape(got.shape)):
                said = said or f"{name} are wrong"
        source = torch.where(rows >= 0, rows // top_k, 0).long()
        wanted = x[source] if tokens else x.new_empty(moved.shape)
        wanted = torch.where(rows[:, None] >= 0, wanted.float(), 0.0)
        if not torch.equal(moved.float(), wanted):
            said = said or "rows were moved wrongly"
        terms = torch.where(places[..., None] >= 0, x.double()[:, None, :] * weights.double()[..., None], 0.0)
        size = terms.abs().sum(1)
        return said or compared(Near(terms.sum(1), (top_k + 2) * 2.0**-23 * size + 1e-38))((combined,))

    return Case(
        f"routing of {described(logits)}, top {top_k}, {scoring}, renormalise={renormalise}, blocks of {block}, rows of "
        f"{described(x)}", run, (logits, x), wrong, where, processors,
    )  # fmt: skip


def exact_routing(
    logits: torch.Tensor, top_k: int, scoring: str, renormalise: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the scores and experts of each token in float64; of equal logits the lower expert comes first."""
    wide = logits.double()
    order = torch.sort(wide, dim=1, descending=True, stable=True).indices[:, :top_k]
    scores = torch.softmax(wide, 1) if scoring == "softmax" else torch.sigmoid(wide)
    chosen = scores.gather(1, order)
    if renormalise:
        chosen = chosen / chosen.sum(1, keepdim=True)
    return chosen, order.to(torch.int32)


def exact_sort(ids: torch.Tensor, experts: int, block: int, capacity: int) -> tuple[torch.Tensor, ...]:
    """Return what `sort_by_expert` makes of ids, one row after another."""
    flat = ids.flatten().tolist()
    counts = [flat.count(expert) for expert in range(experts)]
    offsets = [0]
    for count in counts:
        offsets.append(offsets[-1] + -(-count // block) * block)
    rows, places, seen = [-1] * capacity, [-1] * len(flat), list(offsets)
    for number, expert in enumerate(flat):
        if 0 <= expert < experts:
            rows[seen[expert]] = number
            places[number] = seen[expert]
            seen[expert] += 1
    owners = [-1] * (capacity // block)
    for expert in range(experts):
        for at in range(offsets[expert] // block, offsets[expert + 1] // block):
            owners[at] = expert
    return tuple(torch.tensor(x) for x in (rows, places, owners, counts, offsets))
