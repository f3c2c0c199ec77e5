"""Register tiles as LLVM values: 32-bit containers that hold each thread's elements bit-compactly.

Elements of 32 and 64 bits have a value each, of their own LLVM type; booleans an i1 each; narrower elements lie
packed, little end first, in i32 values, so that reinterpreting their bits costs nothing.
"""

from __future__ import annotations

from dataclasses import dataclass

from tilus import dtypes
from tilus.codegen.llvm_text import V, Writer, integer
from tilus.dtypes import DType
from tilus.layout import RegisterLayout

_NATIVE = {
    dtypes.float64: "double", dtypes.float32: "float", dtypes.tfloat32: "float", dtypes.float16: "half",
    dtypes.bfloat16: "bfloat", dtypes.boolean: "i1",
}  # fmt: skip

_HALVES = (dtypes.float16, dtypes.bfloat16)


def llvm_type(dtype: DType) -> str:
    """Return the LLVM type in which one element is computed."""
    native = _NATIVE.get(dtype)
    if native is not None:
        return native
    return "i64" if dtype.bits == 64 else "i32"


@dataclass(frozen=True)
class Tile:
    """A register tile of one thread: `regs` are its containers."""

    dtype: DType
    layout: RegisterLayout
    regs: tuple[V, ...]

    @property
    def count(self) -> int:
        """Elements of one thread."""
        return self.layout.elements


def container_type(dtype: DType) -> str:
    """Return the LLVM type of a tile's containers."""
    return "i32" if dtype.bits < 32 and dtype is not dtypes.boolean else llvm_type(dtype)


def container_count(dtype: DType, elements: int) -> int:
    """Return how many containers a thread's elements take."""
    if dtype.bits >= 32 or dtype is dtypes.boolean:
        return elements
    return -(-elements * dtype.bits // 32)


def unpack(w: Writer, dtype: DType, regs: tuple[V, ...], count: int) -> list[V]:
    """Return the elements one by one in their LLVM type (narrow integers extended to i32, other codes as i32)."""
    if dtype.bits >= 32 or dtype is dtypes.boolean:
        return list(regs)
    if dtype in _HALVES:
        scalar = llvm_type(dtype)
        out = []
        for index, reg in enumerate(regs):
            pair = w.convert("bitcast", reg, f"<2 x {scalar}>")
            for lane in range(min(2, count - 2 * index)):
                out.append(w.extract(pair, lane, scalar))
        return out
    return [
        extract_bits(w, regs, i * dtype.bits, dtype.bits, dtype.is_signed and dtype.is_integer)
        for i in range(count)
    ]


def extract_bits(w: Writer, regs: tuple[V, ...] | list[V], start: int, bits: int, signed: bool) -> V:
    """Return `bits` bits (at most 32) from bit `start` of the containers as an i32."""
    index, low = divmod(start, 32)
    if low + bits <= 32:
        word = regs[index]
    else:
        word = w.call("i32", "llvm.fshr.i32", regs[index + 1], regs[index], integer(low))
        low = 0
    if signed:
        word = w.binary("shl", word, integer(32 - low - bits)) if low + bits < 32 else word
        return w.binary("ashr", word, integer(32 - bits))
    if low:
        word = w.binary("lshr", word, integer(low))
    return word if low + bits == 32 else w.binary("and", word, integer((1 << bits) - 1))


def pack(w: Writer, dtype: DType, elements: list[V]) -> tuple[V, ...]:
    """Return containers that hold the elements; upper bits of narrow codes are dropped."""
    if dtype.bits >= 32 or dtype is dtypes.boolean:
        return tuple(elements)
    if dtype in _HALVES:
        out = []
        for i in range(0, len(elements) - 1, 2):
            out.append(w.convert("bitcast", w.vector(elements[i : i + 2]), "i32"))
        if len(elements) % 2:
            # As an integer: LLVM leaves the other half of a vector that nobody reads undefined.
            out.append(w.convert("zext", w.convert("bitcast", elements[-1], "i16"), "i32"))
        return tuple(out)
    mask = integer((1 << dtype.bits) - 1)
    return join_bits(w, [w.binary("and", element, mask) for element in elements], dtype.bits)


def join_bits(w: Writer, codes: list[V], bits: int) -> tuple[V, ...]:
    """Return i32 containers of codes of `bits` bits, which are 0 above, one after the other."""
    if bits == 32:
        return tuple(codes)
    words = [integer(0)] * -(-len(codes) * bits // 32)
    for i, code in enumerate(codes):
        index, low = divmod(i * bits, 32)
        words[index] = w.binary("or", words[index], w.binary("shl", code, integer(low)))
        if low + bits > 32:
            words[index + 1] = w.binary("or", words[index + 1], w.binary("lshr", code, integer(32 - low)))
    return tuple(words)


def elements_of(w: Writer, tile: Tile) -> list[V]:
    """Return the elements of a tile one by one."""
    return unpack(w, tile.dtype, tile.regs, tile.count)


def tile_of(w: Writer, dtype: DType, layout: RegisterLayout, elements: list[V]) -> Tile:
    """Return the tile that holds the elements."""
    return Tile(dtype, layout, pack(w, dtype, elements))


def codes_of(w: Writer, tile: Tile) -> list[V]:
    """Return the elements of a tile to be moved: narrow ones as i32 codes that are 0 above, others as they are."""
    if tile.dtype.bits >= 32 or tile.dtype is dtypes.boolean:
        return list(tile.regs)
    bits = tile.dtype.bits
    if tile.dtype in _HALVES:
        # As halves of vectors, which LLVM follows better than shifts.
        return [w.convert("zext", w.convert("bitcast", e, "i16"), "i32") for e in elements_of(w, tile)]
    return [extract_bits(w, tile.regs, i * bits, bits, False) for i in range(tile.count)]


def tile_of_codes(w: Writer, dtype: DType, layout: RegisterLayout, codes: list[V]) -> Tile:
    """Return the tile that holds elements as `codes_of` gives them."""
    if dtype.bits >= 32 or dtype is dtypes.boolean:
        return Tile(dtype, layout, tuple(codes))
    if dtype in _HALVES:
        halves = [w.convert("bitcast", w.convert("trunc", code, "i16"), llvm_type(dtype)) for code in codes]
        return tile_of(w, dtype, layout, halves)
    return Tile(dtype, layout, join_bits(w, codes, dtype.bits))


def bits_of(w: Writer, tile: Tile) -> tuple[V, ...]:
    """Return a tile's bits as i32 containers; 64-bit elements give two each, low word first."""
    if tile.dtype is dtypes.boolean:
        raise AssertionError("booleans have no bits in memory order")
    if tile.dtype.bits < 32:
        return tile.regs
    if tile.dtype.bits == 32:
        return tuple(w.convert("bitcast", reg, "i32") for reg in tile.regs)
    out = []
    for reg in tile.regs:
        pair = w.convert("bitcast", reg, "<2 x i32>")
        out += [w.extract(pair, 0, "i32"), w.extract(pair, 1, "i32")]
    return tuple(out)


def from_bits(w: Writer, dtype: DType, words: list[V] | tuple[V, ...]) -> tuple[V, ...]:
    """Return containers of a dtype made of i32 words."""
    if dtype.bits < 32:
        return tuple(words)
    if dtype.bits == 32:
        return tuple(w.convert("bitcast", word, llvm_type(dtype)) for word in words)
    return tuple(
        w.convert("bitcast", w.vector([words[i], words[i + 1]]), llvm_type(dtype))
        for i in range(0, len(words), 2)
    )


def permute(w: Writer, tile: Tile, layout: RegisterLayout, order: list[int]) -> Tile:
    """Return the tile whose element i is element `order[i]` of the old one; whole containers move as they are."""
    dtype = tile.dtype
    if order == list(range(tile.count)) and layout.elements == tile.count:
        return Tile(dtype, layout, tile.regs)
    if dtype.bits < 32 and dtype is not dtypes.boolean and 32 % dtype.bits == 0:
        per = 32 // dtype.bits
        whole = len(order) % per == 0 and all(
            order[i] % per == 0 and order[i : i + per] == list(range(order[i], order[i] + per))
            for i in range(0, len(order), per)
        )
        if whole:
            return Tile(dtype, layout, tuple(tile.regs[order[i] // per] for i in range(0, len(order), per)))
    codes = codes_of(w, tile)
    return tile_of_codes(w, dtype, layout, [codes[i] for i in order])
