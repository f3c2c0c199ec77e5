"""The packed casts: how each takes a group of stored words to words of the destination."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from tilus import dtypes
from tilus.codegen.casts.packed import (
    BIAS,
    EXPONENT,
    MANTISSA,
    both,
    choose_bits,
    code_of,
    lookup_bytes,
    lop3,
    mask_and_flip,
    multiply,
    multiply_add,
    permute_bytes,
    shift_right,
    spread,
)
from tilus.codegen.casts.plan import Plan
from tilus.codegen.llvm_text import V, Writer, integer
from tilus.dtypes import DType

Emit = Callable[[Writer, Sequence[V]], list[V]]


class _Views:
    """The words of a group, those gathered from them, and their shifted copies, each made once."""

    def __init__(self, w: Writer, plan: Plan, words: Sequence[V]) -> None:
        self.w = w
        self.rotated = plan.rotated
        self.words = list(words)
        self.made: dict[tuple[int, int], V] = {}
        for parts in plan.gathers:
            gathered = self.get(parts[0].word, parts[0].shift)
            for part in parts[1:]:
                mask = spread(part.mask, plan.lane)
                gathered = choose_bits(w, mask, self.get(part.word, part.shift), gathered)
            self.words.append(gathered)

    def get(self, word: int, shift: int) -> V:
        """Return a word shifted right, or rotated."""
        if (word, shift) not in self.made:
            whole = self.words[word]
            if (word, shift) in self.rotated:
                made = self.w.call("i32", "llvm.fshr.i32", whole, whole, integer(shift))
            else:
                made = shift_right(self.w, whole, shift)
            self.made[word, shift] = made
        return self.made[word, shift]


def integers(plan: Plan, source: DType, dest: DType) -> Emit:
    """Integers as mantissa bits of a float with a known exponent, from which a constant is subtracted.

    The sign bit is inverted by the instruction that sets the exponent, so that signed integers become an unsigned
    number with an offset, which the same constant takes off.
    """
    mantissa = MANTISSA[dest]
    magic = (BIAS[dest] + mantissa) << mantissa
    offset = 1 << (source.bits - 1) if source.is_signed else 0

    def emit(w: Writer, words: Sequence[V]) -> list[V]:
        views = _Views(w, plan, words)
        made = []
        for slot in plan.slots:
            low = slot.places[0]
            view = views.get(slot.word, slot.shift)
            number = mask_and_flip(w, view, both(slot.mask), both(magic | offset << low))
            factor, addend = 2.0**-low, -(2.0 ** (mantissa - low)) - offset
            made.append(multiply_add(w, dest, number, (factor, factor), (addend, addend)))
        return made

    return emit


def biased_integers(plan: Plan, source: DType, dest: DType) -> Emit:
    """Integers plus the power of two that the lowest bit of the mantissa, at the place of the code, belongs to.

    `integers` without the subtraction; and each place has an exponent with which the code counts in ones.
    """
    mantissa = MANTISSA[dest]
    offset = 1 << (source.bits - 1) if source.is_signed else 0

    def emit(w: Writer, words: Sequence[V]) -> list[V]:
        views = _Views(w, plan, words)
        made = []
        for slot in plan.slots:
            low = slot.places[0]
            magic = (BIAS[dest] + mantissa - low) << mantissa
            view = views.get(slot.word, slot.shift)
            made.append(mask_and_flip(w, view, both(slot.mask), both(magic | offset << low)))
        return made

    return emit


def single_bits(plan: Plan, source: DType, dest: DType) -> Emit:
    """Integers of one bit: the bit times the code of 1 or -1, for which its own place counts as a factor."""
    code = code_of(dest, -1.0 if source.is_signed else 1.0)

    def emit(w: Writer, words: Sequence[V]) -> list[V]:
        views = _Views(w, plan, words)
        made = []
        for slot in plan.slots:
            bits = w.binary("and", views.get(slot.word, slot.shift), integer(both(slot.mask)))
            made.append(w.mul(bits, integer(code >> slot.places[0])))
        return made

    return emit


def scaled_integers(plan: Plan, source: DType) -> Emit:
    """Integers as bfloat16 divided by 2**6: the low eight bits count in units of the smallest subnormal number.

    (The first two binades have the same spacing.) The largest power of two falls short of that number's inverse by
    2**6.
    """
    offset = (1 << (source.bits - 1)) / 64 if source.is_signed else -0.0

    def emit(w: Writer, words: Sequence[V]) -> list[V]:
        views = _Views(w, plan, words)
        made = []
        for slot in plan.slots:
            low = slot.places[0]
            flip = 1 << slot.places[-1] if source.is_signed else 0
            view, factor = views.get(slot.word, slot.shift), 2.0 ** (127 - low)
            number = mask_and_flip(w, view, both(slot.mask), both(flip))
            made.append(multiply_add(w, dtypes.bfloat16, number, (factor, factor), (-offset, -offset)))
        return made

    return emit


def floats(plan: Plan, dest: DType, factor: float) -> Emit:
    """Floats whose bits already stand where the destination has them, but for a power of two.

    The exponent's upper bits are zero and its bias is another: multiplying by a power of two mends that, for
    subnormal numbers too.
    """

    def emit(w: Writer, words: Sequence[V]) -> list[V]:
        views = _Views(w, plan, words)
        masked = [
            w.binary("and", views.get(slot.word, slot.shift), integer(both(slot.mask))) for slot in plan.slots
        ]
        return [multiply(w, dest, word, factor) for word in masked]

    return emit


def floats_to_bytes(plan: Plan, exponent: int) -> Emit:
    """Floats whose bits already stand where float16 has them, times 2**exponent, as integers of a byte.

    A sum with one and a half times the power of two whose unit in the last place is the integers' own has them in its
    low byte, in two's complement.
    """
    # Beyond 2**15 there is no factor: the sum is as much smaller instead.
    power = min(exponent, 15)
    magic = 1.5 * 2.0 ** (10 - (exponent - power))

    def emit(w: Writer, words: Sequence[V]) -> list[V]:
        views = _Views(w, plan, words)
        sums = []
        for slot in plan.slots:
            number = w.binary("and", views.get(slot.word, slot.shift), integer(both(slot.mask)))
            sums.append(multiply_add(w, dtypes.float16, number, (2.0**power,) * 2, (magic,) * 2))
        pairs = zip(sums[::2], sums[1::2], strict=True)
        return [permute_bytes(w, low, high, (0, 2, 4, 6)) for low, high in pairs]

    return emit


def masks(plan: Plan) -> Emit:
    """Elements whose bits already stand where the destination has them, but for a power of two."""

    def emit(w: Writer, words: Sequence[V]) -> list[V]:
        views = _Views(w, plan, words)
        return [
            w.binary("and", views.get(slot.word, slot.shift), integer(spread(slot.mask, plan.lane)))
            for slot in plan.slots
        ]

    return emit


def byte_pattern(source: DType, dest: DType) -> tuple[tuple[int, ...], int] | None:
    """Return where a byte has the bits of a narrower number, and the exponent that is left; None where it has not.

    A signed integer stands on top, so that its sign is the byte's. A float8_e4m3 is a float of fewer bits with another
    bias, or an unsigned integer of up to 4 bits: the first two binades have the spacing of the smallest number.
    """
    bits = source.bits
    if dest in (dtypes.int8, dtypes.uint8) and source.is_integer and bits < 8:
        if source.is_signed:
            return (tuple(range(8 - bits, 8)), bits - 8) if dest == dtypes.int8 else None
        return tuple(range(bits)), 0
    if dest == dtypes.float8_e4m3:
        if source.kind == "uint" and bits <= 4:
            return tuple(range(bits)), 9
        narrow = (
            source.kind == "float" and source.mantissa_bits <= 3 and source.exponent_bits <= 4 and bits < 8
        )
        if narrow and not source.has_nan and not source.has_inf:
            low = 3 - source.mantissa_bits
            return (*range(low, low + bits - 1), 7), 7 - source.bias
    return None


def signed_to_float8(plan: Plan, source: DType) -> Emit:
    """Signed integers of up to 5 bits as float8_e4m3 over 2**9, whose first two binades count in ones.

    The sign bit stands on top of each byte, the others at its bottom. Of a negative number the magnitude is the others
    inverted, plus one.
    """
    low = spread((1 << source.bits - 1) - 1, plan.lane)

    def emit(w: Writer, words: Sequence[V]) -> list[V]:
        views = _Views(w, plan, words)
        made = []
        for slot in plan.slots:
            view = views.get(slot.word, slot.shift)
            negative = permute_bytes(w, view, view, (8, 9, 10, 11))
            number = w.binary("and", negative, integer(0x81818181))
            if low:
                number = w.add(lop3(w, (0xF0 ^ 0xCC) & 0xAA, view, negative, low), number)
            made.append(number)
        return made

    return emit


def nibble_table(plan: Plan, codes: Sequence[int]) -> Emit:
    """What each code becomes, from tables of eight bytes that the low three bits of a nibble index.

    Where a code is narrower, the others of these bits are another element's: the table is the same for all of them.
    """
    table = [
        [codes[index >> slot.places[0] & (1 << plan.bits) - 1] for index in range(8)] for slot in plan.slots
    ]
    halves = [[sum(b << 8 * i for i, b in enumerate(half)) for half in (t[:4], t[4:])] for t in table]

    def emit(w: Writer, words: Sequence[V]) -> list[V]:
        views = _Views(w, plan, words)
        indices: dict[tuple[int, int], tuple[V, V]] = {}
        made = []
        for slot, (low, high) in zip(plan.slots, halves, strict=True):
            at = slot.word, slot.shift
            if at not in indices:
                masked = w.binary("and", views.get(*at), integer(0x77777777))
                indices[at] = masked, shift_right(w, masked, 16)
            made += [lookup_bytes(w, low, high, index) for index in indices[at]]
        return made

    return emit


def float_pattern(source: DType, dest: DType) -> tuple[int, ...]:
    """Return where a 16-bit float has the bits of a narrower one."""
    low = MANTISSA[dest] - source.mantissa_bits
    return (*range(low, low + source.bits - 1), 15)


def bytes_to_float16(source: DType, flipped: bool, biased: bool = False) -> Emit:
    """Bytes as the low mantissa bits of a float16 between 1024 and 2048, of which a constant is subtracted.

    With `biased` it is not.
    """
    signed = source.is_signed

    def emit(w: Writer, words: Sequence[V]) -> list[V]:
        (word,) = words
        if signed and not flipped:
            word = w.binary("xor", word, integer(0x80808080))
        addend = -1024.0 - (128 if signed else 0)
        made = []
        for low in (0, 2):
            number = permute_bytes(w, word, integer(0x64646464), (low, 4, low + 1, 4))
            if not biased:
                number = multiply_add(w, dtypes.float16, number, (1.0, 1.0), (addend, addend))
            made.append(number)
        return made

    return emit


def bytes_to_bfloat16(source: DType, flipped: bool, scaled: bool = False) -> Emit:
    """Bytes as a bfloat16's mantissa and lowest exponent bit: the value in units of the smallest subnormal number.

    Its first two binades have the same spacing. The factor of 2**133 takes two multiplications; `scaled` leaves
    out the one by 2**6.
    """
    offset = 128.0 if source.is_signed else 0.0

    def emit(w: Writer, words: Sequence[V]) -> list[V]:
        (word,) = words
        if source.is_signed and not flipped:
            word = w.binary("xor", word, integer(0x80808080))
        made = []
        for low in (0, 2):
            number = permute_bytes(w, word, integer(0), (low, 4, low + 1, 4))
            if scaled:
                addends = (-offset / 64, -offset / 64)
                made.append(multiply_add(w, dtypes.bfloat16, number, (2.0**127, 2.0**127), addends))
            else:
                number = multiply(w, dtypes.bfloat16, number, 2.0**127)
                made.append(multiply_add(w, dtypes.bfloat16, number, (64.0, 64.0), (-offset, -offset)))
        return made

    return emit


def float_bytes(source: DType, dest: DType, factor: float) -> Emit:
    """Floats of a byte: the byte beside eight copies of its sign, shifted to where the exponent begins."""
    low = MANTISSA[dest] - source.mantissa_bits
    mask = both(0x8000 | 0x7F << low)

    def emit(w: Writer, words: Sequence[V]) -> list[V]:
        (word,) = words
        made = []
        for pair in (0, 2):
            lanes = permute_bytes(w, word, word, (pair, pair + 8, pair + 1, pair + 9))
            made.append(
                multiply(w, dest, w.binary("and", shift_right(w, lanes, -low), integer(mask)), factor)
            )
        return made

    return emit


def e4m3_to_float16(factor: float) -> Emit:
    """`float_bytes`, with NaN: only its bits carry when one is added, and the carry becomes the exponent's top."""

    def emit(w: Writer, words: Sequence[V]) -> list[V]:
        (word,) = words
        carried = w.add(w.binary("and", word, integer(0x7F7F7F7F)), integer(0x01010101))
        marked = choose_bits(w, 0x80808080, carried, word)
        made = []
        for pair in (0, 2):
            lanes = permute_bytes(w, marked, word, (pair, pair + 12, pair + 1, pair + 13))
            # Bits 7 to 13 are the code, 14 the mark: with it the exponent is 31 and the mantissa is not zero.
            bits = w.binary("and", shift_right(w, lanes, -7), integer(both(0xFF80)))
            made.append(multiply(w, dtypes.float16, bits, factor))
        return made

    return emit


def e4m3_to_bfloat16(factor: float) -> Emit:
    """`float_bytes`, with NaN: the carry of adding one to its seven bits sets all bits of the lane."""

    def emit(w: Writer, words: Sequence[V]) -> list[V]:
        (word,) = words
        carried = w.add(w.binary("and", word, integer(0x7F7F7F7F)), integer(0x01010101))
        made = []
        for pair in (0, 2):
            lanes = permute_bytes(w, word, word, (pair, pair + 8, pair + 1, pair + 9))
            nan = permute_bytes(w, carried, carried, (pair + 8, pair + 8, pair + 9, pair + 9))
            bits = w.binary("or", w.binary("and", shift_right(w, lanes, -4), integer(both(0x87F0))), nan)
            made.append(multiply(w, dtypes.bfloat16, bits, factor))
        return made

    return emit


def e5m2_to_float16(w: Writer, words: Sequence[V]) -> list[V]:
    """A float8_e5m2 is the upper byte of a float16."""
    (word,) = words
    return [permute_bytes(w, word, integer(0), (4, low, 4, low + 1)) for low in (0, 2)]


def convert_pairs(kind: str) -> Emit:
    """The hardware's conversion of two float8 to two float16."""

    def emit(w: Writer, words: Sequence[V]) -> list[V]:
        (word,) = words
        made = []
        for half in (0, 16):
            pair = w.convert("trunc", shift_right(w, word, half), "i16")
            made.append(w.asm("i32", f"cvt.rn.f16x2.{kind}x2 $0, $1;", "=r,h", pair))
        return made

    return emit


def convert_nibbles(w: Writer, words: Sequence[V]) -> list[V]:
    """The hardware's conversion of the two float4_e2m1 of a byte to two float16."""
    (word,) = words
    made = []
    template = "{{ .reg .b8 low, high; mov.b16 {{low, high}}, $1; cvt.rn.f16x2.e2m1x2 $0, {0}; }}"
    for half in (0, 16):
        pair = w.convert("trunc", shift_right(w, word, half), "i16")
        for name in ("low", "high"):
            made.append(w.asm("i32", template.format(name), "=r,h", pair))
    return made


def through_float16(emit: Emit) -> Emit:
    """To bfloat16 by way of float16, which holds the values exactly, and float32."""

    def wider(w: Writer, words: Sequence[V]) -> list[V]:
        made = []
        for word in emit(w, words):
            pair = w.convert("bitcast", word, "<2 x half>")
            wide = [w.convert("fpext", w.extract(pair, lane, "half"), "float") for lane in range(2)]
            halves = [w.convert("fptrunc", value, "bfloat") for value in wide]
            made.append(w.convert("bitcast", w.vector(halves), "i32"))
        return made

    return wider


def table(codes: Sequence[int], dest: DType) -> Emit:
    """Four-bit codes through tables of bytes, in natural order.

    A byte permutation looks up four codes of three bits in eight bytes; the fourth bit chooses between two results, or
    is the sign.
    """
    shift = dest.bits - 1
    signs = all(codes[i] ^ codes[i + 8] == 1 << shift for i in range(8))
    planes = []
    for byte in range(dest.bits // 8):
        entries = [code >> 8 * byte & 255 for code in codes]
        planes.append([int.from_bytes(bytes(entries[i : i + 4]), "little") for i in (0, 4, 8, 12)])

    def emit(w: Writer, words: Sequence[V]) -> list[V]:
        (word,) = words
        indices = w.binary("and", word, integer(0x77777777))
        left = w.binary("shl", word, integer(4))
        made = []
        for half in (0, 2):
            index = shift_right(w, indices, 8 * half)
            found = []
            for number, plane in enumerate(planes):
                top = number == len(planes) - 1
                if not any(plane):
                    found.append(integer(0))
                    continue
                low = lookup_bytes(w, plane[0], plane[1], index)
                if signs:
                    if top:
                        sign = permute_bytes(w, left, word, (half, half + 4, half + 1, half + 5))
                        low = choose_bits(w, 0x80808080, sign, low)
                else:
                    high = lookup_bytes(w, plane[2], plane[3], index)
                    mask = permute_bytes(w, left, word, (half + 8, half + 12, half + 9, half + 13))
                    differ = w.binary("and", w.binary("xor", low, high), mask)
                    low = w.binary("xor", low, differ)
                found.append(low)
            if len(planes) == 1:
                made += found
            else:
                made += [permute_bytes(w, found[0], found[1], (i, i + 4, i + 1, i + 5)) for i in (0, 2)]
        return made

    return emit


def pair_table(codes: Sequence[int], dest: DType) -> Emit:
    """Two-bit codes through tables of bytes: first the even elements, then the odd ones."""
    each = [bytes(code >> 8 * byte & 255 for code in codes) for byte in range(dest.bits // 8)]
    planes = [int.from_bytes(entries, "little") for entries in each]

    def emit(w: Writer, words: Sequence[V]) -> list[V]:
        (word,) = words
        made = []
        for odd in (0, 2):
            indices = w.binary("and", shift_right(w, word, odd), integer(0x33333333))
            for half in (0, 16):
                index = shift_right(w, indices, half)
                found = [lookup_bytes(w, plane, 0, index) if plane else integer(0) for plane in planes]
                if len(planes) == 1:
                    made += found
                else:
                    made += [permute_bytes(w, found[0], found[1], (i, i + 4, i + 1, i + 5)) for i in (0, 2)]
        return made

    return emit


def narrow_to_int8(source: DType) -> Emit:
    """Integers of 1, 2 or 4 bits to bytes: element by element of each byte; a multiplication extends the sign."""
    bits = source.bits
    mask = int.from_bytes(bytes([(1 << bits) - 1]) * 4, "little")
    sign = int.from_bytes(bytes([1 << (bits - 1)]) * 4, "little")

    def emit(w: Writer, words: Sequence[V]) -> list[V]:
        (word,) = words
        made = []
        for shift in range(0, 8, bits):
            view = shift_right(w, word, shift)
            value = w.binary("and", view, integer(mask))
            if source.is_signed:
                # The sign bit times this is all the bits above it in its byte.
                above = w.mul(w.binary("and", view, integer(sign)), integer((1 << (9 - bits)) - 2))
                value = w.add(above, value)
            made.append(value)
        return made

    return emit


class _Windows:
    """32 bits from any bit of a row of words on, each made once."""

    def __init__(self, w: Writer, words: Sequence[V]) -> None:
        self.w, self.words = w, words
        self.made: dict[tuple[int, int], V] = {}

    def get(self, word: int, shift: int) -> V:
        """Return 32 bits from a bit of a word on."""
        if not shift:
            return self.words[word]
        if (word, shift) not in self.made:
            upper = self.words[word + 1] if word + 1 < len(self.words) else integer(0)
            self.made[word, shift] = self.w.call(
                "i32", "llvm.fshr.i32", upper, self.words[word], integer(shift)
            )
        return self.made[word, shift]


def natural_floats(source: DType, dest: DType, factor: float) -> Emit:
    """`floats` for elements in natural order: a byte permutation puts two neighbours at the same bit of two lanes."""
    bits = source.bits
    low = MANTISSA[dest] - source.mantissa_bits
    mask = both(((1 << bits - 1) - 1) << low)

    def emit(w: Writer, words: Sequence[V]) -> list[V]:
        windows = _Windows(w, words)
        made = []
        for first in range(0, 32 * len(words) // bits - 1, 2):
            word, start = divmod(first * bits, 32)
            base = 16 if start >= 16 else 0
            byte, inside = divmod(start - base, 8)
            # The neighbour stands where the element does in words that are shifted by its bits.
            pair = windows.get(word, base), windows.get(word, base + bits)
            lanes = permute_bytes(w, *pair, (byte, byte + 1, byte + 4, byte + 5))
            signs = w.binary("and", shift_right(w, lanes, inside + bits - 16), integer(0x80008000))
            field = w.binary("and", shift_right(w, lanes, inside - low), integer(mask))
            made.append(multiply(w, dest, w.binary("or", signs, field), factor))
        return made

    return emit


def natural_integers(source: DType, dest: DType) -> Emit:
    """`integers` for elements in natural order: a byte permutation puts two neighbours into two lanes."""
    bits, mantissa = source.bits, MANTISSA[dest]
    magic = (BIAS[dest] + mantissa) << mantissa
    offset = 1 << (bits - 1) if source.is_signed else 0

    def emit(w: Writer, words: Sequence[V]) -> list[V]:
        windows = _Windows(w, words)

        def lane(start: int) -> tuple[V, int, int]:
            """Return a word, the byte in it and the bit in that byte at which an element begins within the window."""
            word, bit = divmod(start, 32)
            for shift in (0, *(s for number, s in windows.made if number == word), bit):
                byte, inside = divmod(bit - shift, 8)
                whole = inside + bits <= 8 or byte < 3
                if 0 <= bit - shift <= 32 - bits and inside + bits <= mantissa and whole:
                    return windows.get(word, shift), byte, inside
            raise AssertionError("the element's own bit is a shift that fits")

        made = []
        for first in range(0, 32 * len(words) // bits - 1, 2):
            (a, a_byte, low), (b, b_byte, high) = lane(first * bits), lane((first + 1) * bits)
            selectors = (a_byte, min(a_byte + 1, 3), b_byte + 4, min(b_byte + 1, 3) + 4)
            lanes = permute_bytes(w, a, b, selectors)
            mask = ((1 << bits) - 1) << low | ((1 << bits) - 1) << (16 + high)
            fixed = both(magic) | offset << low | offset << (16 + high)
            number = mask_and_flip(w, lanes, mask, fixed)
            addends = (-(2.0 ** (mantissa - low)) - offset, -(2.0 ** (mantissa - high)) - offset)
            made.append(multiply_add(w, dest, number, (2.0**-low, 2.0**-high), addends))
        return made

    return emit


__all__ = [
    "EXPONENT", "Emit", "biased_integers", "byte_pattern", "bytes_to_bfloat16", "bytes_to_float16", "convert_nibbles",
    "convert_pairs", "e4m3_to_bfloat16", "e4m3_to_float16", "e5m2_to_float16", "float_bytes", "float_pattern",
    "floats", "floats_to_bytes", "integers", "masks", "narrow_to_int8", "natural_floats", "natural_integers",
    "pair_table", "scaled_integers", "signed_to_float8", "single_bits", "table", "through_float16",
]  # fmt: skip
