"""Bits: logic, shifts, fields, counts, permutations, moves and selections."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from .decoder import Decoder, operand_text
from .operands import Constant, Register
from .operations import Map, Operation
from .syntax import Vector
from .types import BITS_OF_WIDTH, TYPES, ScalarType

_BITS = ("b16", "b32", "b64", "pred")
U32 = TYPES["u32"]


def popcount(value: Any) -> Any:
    """The number of ones in each 32- or 64-bit word."""
    counts = np.zeros(np.shape(value), np.uint32)
    value = np.asarray(value)
    for shift in range(0, value.dtype.itemsize * 8, 8):
        counts = (
            counts + _POPCOUNT8[((value >> value.dtype.type(shift)) & value.dtype.type(0xFF)).astype(np.intp)]
        )
    return counts


_POPCOUNT8 = np.array([bin(i).count("1") for i in range(256)], np.uint32)
_REVERSE8 = np.array([int(f"{i:08b}"[::-1], 2) for i in range(256)], np.uint64)


def highest_bit(value: Any) -> Any:
    """The index of the most significant one of each unsigned word, -1 for zero."""
    value = np.asarray(value).astype(np.uint64)
    result = np.full(value.shape, -1, np.int64)
    for step in (32, 16, 8, 4, 2, 1):
        big = value >= np.uint64(1 << step)
        value = np.where(big, value >> np.uint64(step), value)
        result = np.where(big, result + step, result)
    return np.where(value > 0, result + 1, result)


def _binary(function: Any) -> Callable[[Decoder], Operation]:
    def decode(d: Decoder) -> Operation:
        type = d.type(*_BITS)
        d.count(3)
        return _bitwise(function, d.target(d.operands[0], type), [d.source(o, type) for o in d.operands[1:]])

    return decode


def _bitwise(function: Any, target: Any, sources: list[Any]) -> Operation:
    operation = Map(function, [target], sources)
    operation.bitwise = True
    return operation


def _moving(function: Any, targets: list[Any], sources: list[Any], moved: int) -> Operation:
    """An operation that moves the bits of its first sources."""
    operation = Map(function, targets, sources)
    operation.moves = moved
    return operation


def _known(moved: int, places: list[Any]) -> int:
    """Return how many sources have their bits moved: none where the places are not known before the launch."""
    return moved if all(isinstance(place, Constant) for place in places) else 0


def _decode_not(d: Decoder) -> Operation:
    type = d.type(*_BITS)
    d.count(2)
    return _bitwise(np.invert, d.target(d.operands[0], type), [d.source(d.operands[1], type)])


def _decode_cnot(d: Decoder) -> Operation:
    type = d.type("b16", "b32", "b64")
    d.count(2)
    return Map(lambda a: np.equal(a, 0), [d.target(d.operands[0], type)], [d.source(d.operands[1], type)])


def _decode_lop3(d: Decoder) -> Operation:
    bool_op = d.take("or", "and")
    d.type("b32")
    d.finish()
    type = TYPES["b32"]
    table = d.immediate(d.operands[4])
    if not 0 <= table <= 255:
        raise d.fail(f"the table of lop3 is {table}, expected 0 to 255")
    sources = [d.source(o, type) for o in d.operands[1:4]]
    function = lop3(table)
    first, second = d.pair(d.operands[0])
    if bool_op is None:
        return _bitwise(function, d.target(first, type), sources)
    sources.append(d.predicate(d.operands[5]))

    def with_predicate(a: Any, b: Any, c: Any, q: Any) -> Any:
        value = function(a, b, c)
        set_bits = np.not_equal(value, 0)
        return value, (set_bits | q) if bool_op == "or" else (set_bits & q)

    return Map(with_predicate, [d.target(first, type), d.target(second, TYPES["pred"])], sources)


def lop3(table: int) -> Callable[[Any, Any, Any], Any]:
    """The function of three words whose truth table is ``table`` (bit ``4a+2b+c``), in few steps where known."""
    known: dict[int, Callable[[Any, Any, Any], Any]] = {
        0xC0: lambda a, b, c: a & b,
        0xFC: lambda a, b, c: a | b,
        0x3C: lambda a, b, c: a ^ b,
        0x80: lambda a, b, c: a & b & c,
        0xFE: lambda a, b, c: a | b | c,
        0x96: lambda a, b, c: a ^ b ^ c,
        0xEA: lambda a, b, c: (a & b) | c,
        0xF8: lambda a, b, c: a | (b & c),
        0xE2: lambda a, b, c: (a & b) | (c & ~b),
        0xCA: lambda a, b, c: (a & b) | (c & ~a),
        0x6A: lambda a, b, c: (a & b) ^ c,
        0x78: lambda a, b, c: a ^ (b & c),
        0xA8: lambda a, b, c: (a | b) & c,
        0xE8: lambda a, b, c: (a & b) | (a & c) | (b & c),
    }
    if table in known:
        return known[table]

    def general(a: Any, b: Any, c: Any) -> Any:
        result = (a ^ a) | (b ^ b) | (c ^ c)
        for index in range(8):
            if table >> index & 1:
                term = a if index & 4 else ~a
                term = term & (b if index & 2 else ~b)
                result = result | (term & (c if index & 1 else ~c))
        return result

    return general


def _shift_left(a: Any, b: Any) -> Any:
    bits = np.asarray(a).dtype.itemsize * 8
    amount = np.minimum(b, bits - 1).astype(np.asarray(a).dtype)
    return np.where(np.greater_equal(b, bits), np.asarray(a).dtype.type(0), np.left_shift(a, amount))


def _shift_right(a: Any, b: Any) -> Any:
    dtype = np.asarray(a).dtype
    bits = dtype.itemsize * 8
    shifted = np.right_shift(a, np.minimum(b, bits - 1).astype(dtype))
    if dtype.kind == "i":
        return shifted
    return np.where(np.greater_equal(b, bits), dtype.type(0), shifted)


def _decode_shift(d: Decoder) -> Operation:
    left = d.name == "shl"
    type = d.type("b16", "b32", "b64", *(() if left else ("u16", "u32", "u64", "s16", "s32", "s64")))
    d.count(3)
    a, b = d.source(d.operands[1], type), d.source(d.operands[2], U32)
    target = d.target(d.operands[0], type)
    if isinstance(b, Constant) and int(b.value) < type.bits:
        b = Constant(type.dtype.type(int(b.value)))
        return _moving(np.left_shift if left else np.right_shift, [target], [a, b], 1)
    return Map(_shift_left if left else _shift_right, [target], [a, b])


def _decode_shf(d: Decoder) -> Operation:
    direction = d.take("l", "r")
    mode = d.take("wrap", "clamp")
    d.type("b32")
    if direction is None or mode is None:
        raise d.fail("shf needs .l or .r and .wrap or .clamp")
    d.count(4)

    def apply(a: Any, b: Any, c: Any) -> Any:
        n = np.minimum(c, 32).astype(np.uint64) if mode == "clamp" else (np.asarray(c) & 31).astype(np.uint64)
        both = (np.asarray(b).astype(np.uint64) << np.uint64(32)) | np.asarray(a).astype(np.uint64)
        if direction == "l":
            # The upper word of the pair shifted left.
            return ((both << n) >> np.uint64(32)).astype(np.uint32)
        return ((both >> n) & np.uint64(0xFFFFFFFF)).astype(np.uint32)

    return Map(apply, [d.target(d.operands[0], U32)], [d.source(o, U32) for o in d.operands[1:]])


def _decode_popc(d: Decoder) -> Operation:
    type = d.type("b32", "b64")
    d.count(2)
    return Map(popcount, [d.target(d.operands[0], U32)], [d.source(d.operands[1], type)])


def _decode_clz(d: Decoder) -> Operation:
    type = d.type("b32", "b64")
    d.count(2)
    return Map(
        lambda a: (type.bits - 1 - highest_bit(a)).astype(np.uint32),
        [d.target(d.operands[0], U32)],
        [d.source(d.operands[1], type)],
    )


def _decode_bfind(d: Decoder) -> Operation:
    type = d.type("u32", "s32", "u64", "s64")
    amount = d.flag("shiftamt")
    d.count(2)

    def apply(a: Any) -> Any:
        if type.kind == "s":
            a = np.where(np.less(a, 0), ~a, a)
        found = highest_bit(np.asarray(a).astype(np.uint64))
        if amount:
            found = np.where(found < 0, -1, type.bits - 1 - found)
        return found.astype(np.int32).view(np.uint32)

    return Map(apply, [d.target(d.operands[0], U32)], [d.source(d.operands[1], type)])


def _reverse(a: Any) -> Any:
    a = np.asarray(a)
    bits = a.dtype.itemsize * 8
    wide, result = a.astype(np.uint64), np.zeros(a.shape, np.uint64)
    for shift in range(0, bits, 8):
        byte = _REVERSE8[((wide >> np.uint64(shift)) & np.uint64(0xFF)).astype(np.intp)]
        result = result | (byte << np.uint64(bits - 8 - shift))
    return result.astype(a.dtype)


def _decode_brev(d: Decoder) -> Operation:
    type = d.type("b32", "b64")
    d.count(2)
    return _moving(_reverse, [d.target(d.operands[0], type)], [d.source(d.operands[1], type)], 1)


def _decode_bfe(d: Decoder) -> Operation:
    type = d.type("u32", "s32", "u64", "s64")
    d.count(4)
    bits = type.bits

    def apply(a: Any, b: Any, c: Any) -> Any:
        position = (np.asarray(b) & 0xFF).astype(np.int64)
        length = (np.asarray(c) & 0xFF).astype(np.int64)
        word = np.asarray(a).astype(np.uint64)
        if bits == 32:
            word = word & np.uint64(0xFFFFFFFF)
        shifted = np.where(position < bits, word >> np.minimum(position, 63).astype(np.uint64), np.uint64(0))
        mask = np.where(
            length >= 64,
            np.uint64(2**64 - 1),
            (np.uint64(1) << np.minimum(length, 63).astype(np.uint64)) - np.uint64(1),
        )
        field = shifted & mask
        if type.kind == "s":
            sign_at = np.minimum(position + length - 1, bits - 1)
            sign = (word >> np.maximum(sign_at, 0).astype(np.uint64)) & np.uint64(1)
            # Everything above the field (or above the word) is filled with the sign.
            valid = np.minimum(length, np.maximum(bits - position, 0))
            low = np.where(
                valid >= 64,
                np.uint64(2**64 - 1),
                (np.uint64(1) << np.minimum(valid, 63).astype(np.uint64)) - np.uint64(1),
            )
            field = np.where((sign == 1) & (length > 0), field | ~low, field & low)
        return field.astype(type.dtype)

    sources = [d.source(d.operands[1], type), d.source(d.operands[2], U32), d.source(d.operands[3], U32)]
    return _moving(apply, [d.target(d.operands[0], type)], sources, _known(1, sources[1:]))


def _decode_bfi(d: Decoder) -> Operation:
    type = d.type("b32", "b64")
    d.count(5)
    bits = type.bits

    def apply(a: Any, b: Any, c: Any, e: Any) -> Any:
        position = (np.asarray(c) & 0xFF).astype(np.int64)
        length = (np.asarray(e) & 0xFF).astype(np.int64)
        mask = np.where(
            length >= 64,
            np.uint64(2**64 - 1),
            (np.uint64(1) << np.minimum(length, 63).astype(np.uint64)) - np.uint64(1),
        )
        at = np.minimum(position, 63).astype(np.uint64)
        outside = position >= bits
        placed = np.where(outside, np.uint64(0), mask << at)
        field = np.where(outside, np.uint64(0), (np.asarray(a).astype(np.uint64) & mask) << at)
        return ((np.asarray(b).astype(np.uint64) & ~placed) | field).astype(type.dtype)

    sources = [d.source(o, type) for o in d.operands[1:3]] + [d.source(o, U32) for o in d.operands[3:5]]
    return _moving(apply, [d.target(d.operands[0], type)], sources, _known(2, sources[2:]))


def _decode_bmsk(d: Decoder) -> Operation:
    mode = d.take("clamp", "wrap")
    d.type("b32")
    d.count(3)

    def apply(a: Any, b: Any) -> Any:
        position, length = np.asarray(a).astype(np.int64), np.asarray(b).astype(np.int64)
        if mode == "wrap":
            position, length = position & 31, length & 31
        length = np.minimum(length, 32)
        mask = (np.int64(1) << length) - 1
        value = np.where(position > 31, 0, mask << np.minimum(position, 31))
        return (value & 0xFFFFFFFF).astype(np.uint32)

    return Map(apply, [d.target(d.operands[0], U32)], [d.source(o, U32) for o in d.operands[1:]])


def _decode_szext(d: Decoder) -> Operation:
    mode = d.take("clamp", "wrap")
    type = d.type("u32", "s32")
    d.count(3)

    def apply(a: Any, b: Any) -> Any:
        n = np.asarray(b).astype(np.int64)
        if mode == "wrap":
            n = n & 31
        value = np.asarray(a).astype(np.int64) & 0xFFFFFFFF
        low = value & ((np.int64(1) << np.minimum(n, 32)) - 1)
        if type.kind == "s":
            sign = (value >> np.clip(n - 1, 0, 31)) & 1
            low = np.where((sign == 1) & (n > 0), low - (np.int64(1) << np.minimum(n, 32)), low)
        return np.where(n >= 32, value, low).astype(np.int64).astype(np.uint32)

    return Map(
        apply, [d.target(d.operands[0], U32)], [d.source(d.operands[1], U32), d.source(d.operands[2], U32)]
    )


def prmt(a: Any, b: Any, selector: Any, mode: str | None = None) -> Any:
    """Byte permutation of the pair ``b:a``; the default mode replicates a sign where selector bit 3 is set."""
    both = (np.asarray(b).astype(np.uint64) << np.uint64(32)) | np.asarray(a).astype(np.uint64)
    selector = np.asarray(selector).astype(np.uint64)
    result = np.zeros(np.broadcast(both, selector).shape, np.uint32)
    for byte in range(4):
        control = (
            (selector >> np.uint64(4 * byte)) & np.uint64(0xF)
            if mode is None
            else _prmt_mode(selector, byte, mode)
        )
        value = (both >> ((control & np.uint64(7)) * np.uint64(8))) & np.uint64(0xFF)
        sign = np.where(value & np.uint64(0x80), np.uint64(0xFF), np.uint64(0))
        value = np.where(control & np.uint64(8), sign, value)
        result = result | (value.astype(np.uint32) << np.uint32(8 * byte))
    return result


_PRMT_MODES = {
    "f4e": lambda s, i: s + i,
    "b4e": lambda s, i: s - i,
    "rc8": lambda s, i: s,
    "ecl": lambda s, i: max(s, i),
    "ecr": lambda s, i: min(s, i),
    "rc16": lambda s, i: 2 * (s & 1) + (i & 1),
}


def _prmt_mode(selector: Any, byte: int, mode: str) -> Any:
    table = np.array([_PRMT_MODES[mode](s, byte) & 7 for s in range(4)], np.uint64)
    return table[(selector & np.uint64(3)).astype(np.intp)]


def prmt_constant(selector: int) -> Callable[[Any, Any], Any]:
    """``prmt`` with a known selector: gathers bytes by position, or shifts where signs are wanted."""
    picks = [(selector >> (4 * i)) & 0xF for i in range(4)]
    if any(p & 8 for p in picks):
        return lambda a, b: prmt(a, b, np.uint32(selector))

    def apply(a: Any, b: Any) -> Any:
        shape = np.broadcast(a, b).shape
        if not shape:
            return prmt(a, b, np.uint32(selector))
        out = np.empty(shape, np.uint32)
        target = out.view(np.uint8).reshape((*shape, 4))
        for position, pick in enumerate(picks):
            word = a if pick < 4 else b
            if np.ndim(word):
                target[..., position] = word.view(np.uint8).reshape((*shape, 4))[..., pick & 3]
            else:
                target[..., position] = (int(word) >> (8 * (pick & 3))) & 0xFF
        return out

    return apply


def _decode_prmt(d: Decoder) -> Operation:
    d.take("b32")
    mode = d.take(*_PRMT_MODES)
    d.count(4)
    a, b, c = (d.source(o, U32) for o in d.operands[1:])
    target = d.target(d.operands[0], U32)
    if mode is None and isinstance(c, Constant):
        return _moving(prmt_constant(int(c.value) & 0xFFFF), [target], [a, b], 2)
    return Map(lambda x, y, z: prmt(x, y, z, mode), [target], [a, b, c])


def _decode_mov(d: Decoder) -> Operation:
    width = d.take("v2", "v4")
    type = d.type()
    d.count(2)
    target, source = d.operands
    if width is not None:
        return _move_vector(d, type, int(width[1]), target, source)
    if isinstance(source, Vector) or isinstance(target, Vector):
        return _pack_or_unpack(d, type, target, source)
    operation = _moving(_same, [d.target(target, type)], [d.source(source, type)], 1)
    operation.copies = isinstance(operation.reads[0], Register) and d.statement.guard is None
    return operation


def _move_vector(d: Decoder, type: ScalarType, count: int, target: object, source: object) -> Operation:
    """A vector, such as that of a special register, into another."""
    for operand in (target, source):
        found = len(d.components(operand))
        if found != count:
            raise d.fail(f"{operand_text(operand)} has {found} components, expected {count}")
    return _moving(lambda *values: values, d.targets(target, type), d.sources(source, type), count)


def _same(value: Any) -> Any:
    return value


def _pack_or_unpack(d: Decoder, type: ScalarType, target: object, source: object) -> Operation:
    vector = target if isinstance(target, Vector) else source
    assert isinstance(vector, Vector)
    count = len(vector.items)
    if type.bits % count or type.bits // count not in (8, 16, 32, 64):
        raise d.fail(f"{count} parts of {type.bits} bits")
    part = BITS_OF_WIDTH[type.bits // count]
    whole = BITS_OF_WIDTH[type.bits]
    if isinstance(target, Vector) and isinstance(source, Vector):
        return _moving(
            lambda *v: v if len(v) > 1 else v[0], d.targets(target, part), d.sources(source, part), count
        )
    if isinstance(target, Vector):

        def unpack(value: Any) -> Any:
            value = np.ascontiguousarray(value)
            words = (
                value.view(part.dtype).reshape((-1, count))
                if value.dtype != part.dtype
                else value.reshape(-1, count)
            )
            if len(words) == 1 and np.ndim(value) == 0:
                return tuple(words[0])
            parts = tuple(words[:, i] for i in range(count))
            return parts if count > 1 else parts[0]

        operation = _moving(unpack, d.targets(target, part), [d.source(source, whole)], 1)
        operation.copies = isinstance(operation.reads[0], Register) and d.statement.guard is None
        return operation

    def pack(*parts: Any) -> Any:
        parts = np.broadcast_arrays(*parts)
        out = np.empty((*parts[0].shape, count), part.dtype)
        for index, value in enumerate(parts):
            out[..., index] = value
        if whole.bits == 128:
            return out.view(np.uint64).reshape((*parts[0].shape, 2))
        return out.view(whole.dtype)[..., 0]

    return _moving(pack, [d.target(target, whole)], d.sources(source, part), count)


def _decode_selp(d: Decoder) -> Operation:
    type = d.type()
    d.count(4)
    a, b = d.source(d.operands[1], type), d.source(d.operands[2], type)
    sources = [a, b, d.predicate(d.operands[3])]
    operation = Map(lambda x, y, p: np.where(p, x, y), [d.target(d.operands[0], type)], sources)
    operation.selects = True
    return operation


def _decode_slct(d: Decoder) -> Operation:
    selector = d.type("s32", "f32")
    type = d.type()
    ftz = d.flag("ftz")
    d.count(4)

    def apply(a: Any, b: Any, c: Any) -> Any:
        chosen = np.greater_equal(c, 0)
        if ftz:
            chosen = chosen | (np.abs(c) < np.float32(2**-126))
        return np.where(chosen, a, b)

    sources = [
        d.source(d.operands[1], type),
        d.source(d.operands[2], type),
        d.source(d.operands[3], selector),
    ]
    return Map(apply, [d.target(d.operands[0], type)], sources)


def _decode_fns(d: Decoder) -> Operation:
    d.type("b32")
    d.count(4)

    def apply(mask: Any, base: Any, offset: Any) -> Any:
        mask, base, offset = np.broadcast_arrays(mask, base, np.asarray(offset).astype(np.int32))
        out = np.full(mask.shape, 0xFFFFFFFF, np.uint32)
        for i in np.ndindex(mask.shape):
            out[i] = _find_nth_set(int(mask[i]), int(base[i]), int(offset[i]))
        return out

    return Map(apply, [d.target(d.operands[0], U32)], [d.source(o, U32) for o in d.operands[1:]])


def _find_nth_set(mask: int, base: int, offset: int) -> int:
    if offset == 0:
        return base if base < 32 and mask >> base & 1 else 0xFFFFFFFF
    position, left, step = base, abs(offset), 1 if offset > 0 else -1
    while 0 <= position < 32:
        if mask >> position & 1:
            left -= 1
            if left == 0:
                return position
        position += step
    return 0xFFFFFFFF


INSTRUCTIONS: dict[str, Callable[[Decoder], Operation]] = {
    "and": _binary(np.bitwise_and),
    "or": _binary(np.bitwise_or),
    "xor": _binary(np.bitwise_xor),
    "not": _decode_not,
    "cnot": _decode_cnot,
    "lop3": _decode_lop3,
    "shl": _decode_shift,
    "shr": _decode_shift,
    "shf": _decode_shf,
    "popc": _decode_popc,
    "clz": _decode_clz,
    "bfind": _decode_bfind,
    "brev": _decode_brev,
    "bfe": _decode_bfe,
    "bfi": _decode_bfi,
    "bmsk": _decode_bmsk,
    "szext": _decode_szext,
    "prmt": _decode_prmt,
    "mov": _decode_mov,
    "selp": _decode_selp,
    "slct": _decode_slct,
    "fns": _decode_fns,
}
