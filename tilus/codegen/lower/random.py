"""Lowering of the Philox 4x32-10 random number generator.

Source: Salmon, Moraes, Dror, Shaw: Parallel random numbers: as easy as 1, 2, 3 (SC 2011).
"""

from __future__ import annotations

from tilus import dtypes
from tilus.codegen.llvm_text import V, Writer, integer
from tilus.codegen.lower.context import Context, lowers
from tilus.codegen.registers import elements_of, tile_of
from tilus.ir import ops

ROUNDS = 10
MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
KEY_STEPS = (0x9E3779B9, 0xBB67AE85)


def wide_product(w: Writer, a: V, b: V) -> tuple[V, V]:
    """Return the high and the low word of a 32 x 32 bit product."""
    product = w.binary("mul", w.convert("zext", a, "i64"), w.convert("zext", b, "i64"))
    return w.convert("trunc", w.binary("lshr", product, integer(32, 64)), "i32"), w.convert(
        "trunc", product, "i32"
    )


def philox(w: Writer, key: list[V], counter: list[V]) -> list[V]:
    """Return four 32-bit words for a key of two words and a counter of four."""
    c, k = list(counter), list(key)
    for number in range(ROUNDS):
        if number:
            k = [w.add(word, integer(step)) for word, step in zip(k, KEY_STEPS, strict=True)]
        high0, low0 = wide_product(w, integer(MULTIPLIERS[0]), c[0])
        high1, low1 = wide_product(w, integer(MULTIPLIERS[1]), c[2])
        c = [
            w.binary("xor", w.binary("xor", high1, c[1]), k[0]), low1,
            w.binary("xor", w.binary("xor", high0, c[3]), k[1]), low0,
        ]  # fmt: skip
    return c


@lowers(ops.Random)
def lower_random(ctx: Context, op: ops.Random) -> None:
    w = ctx.w
    seed = ctx.scalar(op.seed)
    key = [w.convert("trunc", seed, "i32"), integer(0)]
    if seed.type == "i64":
        key[1] = w.convert("trunc", w.binary("lshr", seed, integer(32, 64)), "i32")
    tile = ctx.tile(op.counter)
    columns: list[list[V]] = [[], [], [], []]
    for element in elements_of(w, tile):
        low = w.convert("trunc", element, "i32")
        high = integer(0)
        if element.type == "i64":
            high = w.convert("trunc", w.binary("lshr", element, integer(32, 64)), "i32")
        for column, word in zip(columns, philox(w, key, [low, high, integer(0), integer(0)]), strict=True):
            column.append(word)
    for value, column in zip(op.results, columns, strict=True):
        ctx.values[value] = tile_of(w, dtypes.uint32, tile.layout, column)
