"""Moves groups of elements between 32-bit words, as memory instructions have them, and a tile's containers."""

from __future__ import annotations

from collections.abc import Sequence

from tilus import dtypes
from tilus.codegen.llvm_text import V, Writer, integer
from tilus.codegen.registers import (
    Tile,
    codes_of,
    extract_bits,
    from_bits,
    join_bits,
    llvm_type,
    tile_of_codes,
)
from tilus.dtypes import DType
from tilus.layout import RegisterLayout


def memory_dtype(dtype: DType) -> DType:
    """Return the dtype that an element has in memory: booleans are bytes."""
    return dtypes.uint8 if dtype is dtypes.boolean else dtype


def tile_from_words(
    w: Writer,
    dtype: DType,
    layout: RegisterLayout,
    groups: Sequence[Sequence[int]],
    words: Sequence[Sequence[V]],
) -> Tile:
    """Return the tile whose elements `groups[i]`, in order, lie packed in the i32 words `words[i]`."""
    stored = memory_dtype(dtype)
    bits = stored.bits
    if bits < 32 and 32 % bits == 0 and dtype is stored:
        per = 32 // bits
        regs: list[V | None] = [None] * (-(-layout.elements // per))
        fits = True
        for group, have in zip(groups, words, strict=True):
            for number, word in enumerate(have):
                part = list(group[number * per : (number + 1) * per])
                if part[0] % per or part != list(range(part[0], part[0] + len(part))):
                    fits = False
                    break
                if len(part) < per and part[0] + len(part) != layout.elements:
                    fits = False
                    break
                regs[part[0] // per] = word
        if fits:
            return Tile(dtype, layout, tuple(r for r in regs if r is not None))
    codes: list[V] = [integer(0)] * layout.elements
    for group, have in zip(groups, words, strict=True):
        if bits >= 32:
            made: list[V] = list(from_bits(w, stored, list(have)))
        else:
            made = [extract_bits(w, list(have), i * bits, bits, False) for i in range(len(group))]
        for element, value in zip(group, made, strict=True):
            codes[element] = value
    if dtype is dtypes.boolean:
        codes = [w.icmp("ne", c, integer(0)) for c in codes]
    return tile_of_codes(w, dtype, layout, codes)


def words_from_tile(w: Writer, tile: Tile, groups: Sequence[Sequence[int]]) -> list[list[V]]:
    """Return for each group of elements the i32 words that hold them packed, in order."""
    dtype, stored = tile.dtype, memory_dtype(tile.dtype)
    bits = stored.bits
    per = 32 // bits if bits < 32 and 32 % bits == 0 else 0
    out: list[list[V]] = []
    codes: list[V] | None = None
    for group in groups:
        if per and dtype is stored:
            parts = [list(group[i : i + per]) for i in range(0, len(group), per)]
            if all(p[0] % per == 0 and p == list(range(p[0], p[0] + len(p))) for p in parts):
                out.append([tile.regs[p[0] // per] for p in parts])
                continue
        if codes is None:
            codes = codes_of(w, tile)
            if dtype is dtypes.boolean:
                codes = [w.convert("zext", c, "i32") for c in codes]
        chosen = [codes[e] for e in group]
        if bits < 32:
            out.append(list(join_bits(w, chosen, bits)))
            continue
        words: list[V] = []
        for value in chosen:
            if bits == 32:
                words.append(w.convert("bitcast", value, "i32"))
            else:
                pair = w.convert("bitcast", value, "<2 x i32>")
                words += [w.extract(pair, 0, "i32"), w.extract(pair, 1, "i32")]
        out.append(words)
    return out


def load_words(w: Writer, pointer: V, bits: int, align: int) -> list[V]:
    """Load `bits` bits (8 to 128) as i32 words; the last is zero above."""
    if bits < 32:
        return [w.convert("zext", w.value(f"i{bits}", f"load i{bits}, {pointer}, align {align}"), "i32")]
    count = bits // 32
    if count == 1:
        return [w.value("i32", f"load i32, {pointer}, align {align}")]
    vector = w.value(f"<{count} x i32>", f"load <{count} x i32>, {pointer}, align {align}")
    return [w.extract(vector, i, "i32") for i in range(count)]


def load_words_from(w: Writer, pointer: V, bits: int, space: str) -> list[V]:
    """Load as `load_words` does, from a state space that LLVM has no pointers of."""
    count = max(1, bits // 32)
    kind = {8: "u8", 16: "u16", 32: "b32", 64: "v2.b32", 128: "v4.b32"}[bits]
    target = "$0" if count == 1 else "{" + ", ".join(f"${i}" for i in range(count)) + "}"
    result = "i32" if count == 1 else "{ " + ", ".join(["i32"] * count) + " }"
    constraints = ",".join(["=r"] * count + ["r"]) + ",~{memory}"
    address = w.convert("ptrtoint", pointer, "i32")
    made = w.asm(result, f"ld.{space}.{kind} {target}, [${count}];", constraints, address, effects=True)
    return [made] if count == 1 else [w.member(made, i, "i32") for i in range(count)]


def store_words(w: Writer, pointer: V, words: list[V], bits: int, align: int) -> None:
    """Store `bits` bits (8 to 128) of i32 words."""
    if bits < 32:
        w.run(f"store {w.convert('trunc', words[0], f'i{bits}')}, {pointer}, align {align}")
    elif len(words) == 1:
        w.run(f"store {words[0]}, {pointer}, align {align}")
    else:
        w.run(f"store {w.vector(words)}, {pointer}, align {align}")


def width_of(bits: int) -> int:
    """Return the widest access, in bits, that divides `bits` and that one instruction makes."""
    for width in (128, 64, 32, 16, 8):
        if bits % width == 0:
            return width
    return 0


def predicated_load(
    w: Writer, pointer: V, bits: int, predicate: V, other: Sequence[V], modifier: str, space: str
) -> list[V]:
    """Load where the predicate is true; else the words are those of `other`, over and over."""
    count = max(1, bits // 32)
    outs = [f"${i}" for i in range(count)]
    address, pred = f"${count}", f"${count + 1}"
    moves = " ".join(f"mov.b32 {o}, ${count + 2 + i % len(other)};" for i, o in enumerate(outs))
    kind = {8: "u8", 16: "u16", 32: "b32", 64: "v2.b32", 128: "v4.b32"}[bits]
    target = outs[0] if count == 1 else "{" + ", ".join(outs) + "}"
    template = f"{moves} @{pred} ld.{space}{modifier}.{kind} {target}, [{address}];"
    letter = "l" if space == "global" else "r"
    # Early clobbers: the results are written before the address and the predicate are read.
    constraints = ",".join(["=&r"] * count + [letter, "b"] + ["r"] * len(other))
    result = "i32" if count == 1 else "{ " + ", ".join(["i32"] * count) + " }"
    if space != "global":
        pointer = w.convert("ptrtoint", pointer, "i32")
    made = w.asm(result, template, constraints, pointer, predicate, *other, effects=True)
    return [made] if count == 1 else [w.member(made, i, "i32") for i in range(count)]


def predicated_store(
    w: Writer, pointer: V, words: list[V], bits: int, predicate: V | None, modifier: str, space: str
) -> None:
    """Store where the predicate is true."""
    count = len(words)
    kind = {8: "u8", 16: "u16", 32: "b32", 64: "v2.b32", 128: "v4.b32"}[bits]
    names = [f"${i + 1}" for i in range(count)]
    source = names[0] if count == 1 else "{" + ", ".join(names) + "}"
    guard = f"@${count + 1} " if predicate is not None else ""
    letter = "l" if space == "global" else "r"
    constraints = ",".join([letter] + ["r"] * count + (["b"] if predicate is not None else []))
    if space != "global":
        pointer = w.convert("ptrtoint", pointer, "i32")
    args = [pointer, *words] + ([predicate] if predicate is not None else [])
    # An asm with a memory clobber, so that LLVM keeps it in place among other accesses.
    w.asm(
        "void",
        f"{guard}st.{space}{modifier}.{kind} [$0], {source};",
        constraints + ",~{memory}",
        *args,
        effects=True,
    )


__all__ = [
    "llvm_type", "load_words", "load_words_from", "memory_dtype", "predicated_load", "predicated_store", "store_words",
    "tile_from_words", "width_of", "words_from_tile",
]  # fmt: skip
