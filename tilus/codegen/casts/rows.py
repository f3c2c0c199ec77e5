"""The table of packed casts: for each pair of types, what there is, what it needs and what it costs."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import lru_cache

from tilus import dtypes
from tilus.codegen.casts import fast
from tilus.codegen.casts.arrangement import Arrangement, element_order
from tilus.codegen.casts.fast import Emit
from tilus.codegen.casts.narrowing import NARROWING
from tilus.codegen.casts.packed import BIAS, EXPONENT, MANTISSA
from tilus.codegen.casts.plan import Plan, float_plan, integer_plan, nibble_plan, signed_plan
from tilus.codegen.target import Target
from tilus.dtypes import DType, TableType

_INVERTED = Arrangement(8, tuple(range(32)), (0x80808080,))
_HEADROOM = 6


@dataclass(frozen=True)
class FastCast:
    """A packed cast.

    Attributes
    ----------
    name : str
        What the method is called in reports.
    source, dest : DType
    feature : str
        What the target must have (`Target.has`).
    elements : int
        Elements of a group, which is the unit of the cast.
    words : int
        32-bit words of a group of the source (a float32 is one).
    cost : float
        Instructions per element, as counted from the method: the real ones are in the benchmark.
    arrangement : Arrangement or None
        How the group must be stored; None is natural order.
    emit : callable
        From a writer and the words of a group to the destination's words, in natural order.
    exponent : int
        The results are the values divided by ``2**exponent``, for a caller that multiplies by a scale anyway.
    finite : bool
        Whether codes of infinity and NaN become something else, for a caller that has none.
    """

    name: str
    source: DType
    dest: DType
    feature: str
    elements: int
    words: int
    cost: float
    arrangement: Arrangement | None
    emit: Emit
    exponent: int = 0
    finite: bool = False


@lru_cache(maxsize=1024)
def fast_casts(source: DType, dest: DType) -> tuple[FastCast, ...]:
    """Return the packed casts of a pair of types, the cheapest first; the same cost in natural order comes first."""
    rows = list(_rows(source, dest))
    return tuple(
        sorted(rows, key=lambda row: (row.cost, row.arrangement is not None, bool(row.feature) is False))
    )


def best_cast(
    target: Target,
    source: DType,
    dest: DType,
    arrangement: Arrangement | None,
    scaled: bool = False,
    finite: bool = False,
) -> FastCast | None:
    """Return the cheapest packed cast for elements in natural order or in an arrangement.

    With `scaled` the results may be off by a power of two; with `finite` there are no infinities and no NaN.
    """
    for row in fast_casts(source, dest):
        fits = row.arrangement == arrangement and target.has(row.feature)
        if fits and (scaled or not row.exponent) and (finite or not row.finite):
            return row
    return None


@lru_cache(maxsize=256)
def biased_cast(source: DType, dest: DType) -> FastCast | None:
    """Return the cast of integers, as they are stored, that leaves an offset in each: None where there is none.

    The offset is what a code of zero becomes; it depends on the code's place in its group, as `integer_plan` says. At
    `_HEADROOM` bits beyond a code's own, single precision keeps sums of such numbers as exact as float16 is.
    """
    if not source.is_integer or source.bits > 8 or dest not in MANTISSA:
        return None
    if source.bits == 8:
        if dest != dtypes.float16:
            return None
        stored = _INVERTED if source.is_signed else None
        emit = fast.bytes_to_float16(source, source.is_signed, biased=True)
        return FastCast("magic number", source, dest, "", 4, 1, 0.5, stored, emit)
    if source.bits == 4 and dest == dtypes.bfloat16:
        # Stored for a cast that uses a bit of the exponent.
        return None
    plan = number_plan(source.bits, dest)
    return _planned("magic number", plan, source, dest, "", 1, fast.biased_integers(plan, source, dest))


def number_plan(bits: int, dest: DType) -> Plan:
    """Return the plan for codes as mantissa bits of numbers that are not too large beside them."""
    return integer_plan(bits, MANTISSA[dest], max(0, MANTISSA[dest] - bits - _HEADROOM))


@lru_cache(maxsize=256)
def integer_exponent(source: DType) -> int | None:
    """Return the least power of two that makes all values of a type int8, of at most 8 bits; None if there is none."""
    import numpy as np

    values = dtypes.decode(np.arange(1 << source.bits), source).astype(np.float64)
    for exponent in range(8):
        scaled = values * 2.0**exponent
        if not (np.abs(scaled + 0.5) <= 127.5).all():
            return None
        if np.array_equal(scaled, np.rint(scaled)):
            return exponent
    return None


@lru_cache(maxsize=256)
def exact_in_float16(source: DType) -> bool:
    """Whether float16 holds every value of a type of at most 8 bits."""
    import numpy as np

    if source.bits > 8:
        return False
    values = dtypes.decode(np.arange(1 << source.bits), source).astype(np.float64)
    halves = dtypes.decode(dtypes.encode(values, dtypes.float16), dtypes.float16)
    return bool(np.array_equal(values, halves, equal_nan=True))


def _rows(source: DType, dest: DType) -> Iterator[FastCast]:
    if source == dtypes.float32:
        for narrow, feature, cost, emit in NARROWING:
            if narrow == dest:
                yield FastCast(
                    "cvt", source, dest, feature, 32 // dest.bits, 32 // dest.bits, cost, None, emit
                )
    if source.bits > 8 or source.kind not in ("int", "uint", "float", "table"):
        return
    if dest in MANTISSA:
        needs = "bf16_arithmetic" if dest == dtypes.bfloat16 else ""
        if source.is_integer:
            yield from _integer_rows(source, dest, needs)
        elif source.kind == "float":
            yield from _float_rows(source, dest, needs)
    if dest == dtypes.int8 and not source.is_integer:
        yield from _int8_rows(source)
    if dest.bits in (8, 16) and not dest.is_boolean:
        yield from _table_rows(source, dest)
    if dest.bits == 8:
        yield from _byte_rows(source, dest)


def _planned(
    name: str, plan: Plan, source: DType, dest: DType, needs: str, work: int, emit: Emit
) -> FastCast:
    """Return the cast of a plan whose slots take so many instructions each."""
    cost = work / 2 + plan.moves / plan.elements
    return FastCast(name, source, dest, needs, plan.elements, plan.words, cost, plan.arrangement(), emit)


def _integer_rows(source: DType, dest: DType, needs: str) -> Iterator[FastCast]:
    brain = dest == dtypes.bfloat16
    if source.bits == 8:
        for flipped in (False, True) if source.is_signed else (False,):
            cost = (1.5 if brain else 1.0) + (0.25 if source.is_signed and not flipped else 0.0)
            stored = _INVERTED if flipped else None
            if not brain:
                emit = fast.bytes_to_float16(source, flipped)
                yield FastCast("magic number", source, dest, "", 4, 1, cost, stored, emit)
            for exponent in (0, 6) if brain else ():
                emit = fast.bytes_to_bfloat16(source, flipped, exponent != 0)
                cost -= 0.5 if exponent else 0.0
                yield FastCast("subnormal number", source, dest, needs, 4, 1, cost, stored, emit, exponent)
        return
    if source.bits == 1:
        plan = number_plan(1, dest)
        yield _planned("bit times one", plan, source, dest, "", 2, fast.single_bits(plan, source, dest))
        return
    plan = number_plan(source.bits, dest)
    yield _planned("magic number", plan, source, dest, needs, 2, fast.integers(plan, source, dest))
    if brain and source.bits == 4:
        wider = integer_plan(source.bits, MANTISSA[dest] + 1)
        emit = fast.scaled_integers(wider, source)
        yield replace(_planned("subnormal number", wider, source, dest, needs, 2, emit), exponent=6)
    if source.bits in (3, 5, 6, 7) or (brain and source.bits == 4):
        # Otherwise moving what comes out is as cheap.
        emit = fast.natural_integers(source, dest)
        yield FastCast("magic number", source, dest, needs, plan.elements, plan.words, 1.75, None, emit)


def _float_rows(source: DType, dest: DType, needs: str) -> Iterator[FastCast]:
    # A narrower exponent, so that every finite value is one of the destination's, and infinities are too
    # (only the infinities of float6_e5m0 have that place in float16).
    if source.mantissa_bits > MANTISSA[dest] or source.exponent_bits > EXPONENT[dest]:
        return
    same = source.exponent_bits == EXPONENT[dest]
    if source == dtypes.float8_e5m2:
        if dest == dtypes.float16:
            yield FastCast("upper byte", source, dest, "", 4, 1, 0.5, None, fast.e5m2_to_float16)
        else:
            emit = fast.through_float16(fast.e5m2_to_float16)
            yield FastCast("upper byte, float32", source, dest, needs, 4, 1, 2.0, None, emit)
            yield from _finite_bytes(source, dest, needs)
        return
    exponent = BIAS[dest] - source.bias
    if source == dtypes.float8_e4m3:
        hardware = fast.convert_pairs("e4m3")
        make = fast.e4m3_to_bfloat16
        cost = 3.0
        if dest == dtypes.float16:
            make, cost = fast.e4m3_to_float16, 2.75
            yield FastCast("cvt", source, dest, "cvt_fp8", 4, 1, 0.5, None, hardware)
        else:
            yield FastCast(
                "cvt, float32", source, dest, "cvt_fp8", 4, 1, 2.0, None, fast.through_float16(hardware)
            )
        yield FastCast("rescale", source, dest, needs, 4, 1, cost, None, make(2.0**exponent))
        yield FastCast("rescale", source, dest, "", 4, 1, cost - 0.5, None, make(1.0), exponent)
        yield from _finite_bytes(source, dest, needs)
        return
    if source.has_nan or (same and source.mantissa_bits):
        return
    if source == dtypes.float4_e2m1 and dest == dtypes.float16:
        yield FastCast("cvt", source, dest, "cvt_fp4", 8, 1, 0.75, None, fast.convert_nibbles)
    plan = float_plan(source.bits, fast.float_pattern(source, dest))
    for factor, left in ((2.0**exponent, 0), (1.0, exponent)) if exponent else ((1.0, 0),):
        work, needed = (1, "") if factor == 1.0 else (2, needs)
        if source.bits == 8:
            emit = fast.float_bytes(source, dest, factor)
            yield FastCast("rescale", source, dest, needed, 4, 1, 1 + work / 2, None, emit, left)
        if source.bits in (3, 5, 6, 7):
            emit = fast.natural_floats(source, dest, factor)
            cost = 2.5 + work / 2 + 3 * source.bits / 32
            yield FastCast("rescale", source, dest, needed, plan.elements, plan.words, cost, None, emit, left)
        row = _planned("rescale", plan, source, dest, needed, work, fast.floats(plan, dest, factor))
        yield replace(row, exponent=left)


def _finite_bytes(source: DType, dest: DType, needs: str) -> Iterator[FastCast]:
    """Floats of a byte as if they had no infinities and no NaN, in natural order as the hardware takes them."""
    exponent = BIAS[dest] - source.bias
    emit = fast.float_bytes(source, dest, 2.0**exponent)
    yield FastCast("rescale finite", source, dest, needs, 4, 1, 2.0, None, emit, finite=True)
    emit = fast.float_bytes(source, dest, 1.0)
    yield FastCast("rescale finite", source, dest, "", 4, 1, 1.5, None, emit, exponent, finite=True)


def _int8_rows(source: DType) -> Iterator[FastCast]:
    """Values that are integers times a power of two, which is left out."""
    power = integer_exponent(source)
    if power is None:
        return
    if power:
        yield from (replace(row, exponent=-power) for row in _table_rows(source, dtypes.int8, power))
    if source.kind == "float" and source.bits not in (2, 4):
        plan = float_plan(source.bits, fast.float_pattern(source, dtypes.float16))
        emit = fast.floats_to_bytes(plan, power + BIAS[dtypes.float16] - source.bias)
        row = _planned("magic number", plan, source, dtypes.int8, "", 2, emit)
        yield replace(row, cost=row.cost + 0.25, exponent=-power)


def _table_rows(source: DType, dest: DType, power: int = 0) -> Iterator[FastCast]:
    """Codes looked up in tables of their values times 2**power."""
    if source.bits not in (2, 4):
        return
    codes = _codes(source, dest, power)
    planes = [{code >> 8 * byte & 255 for code in codes} != {0} for byte in range(dest.bits // 8)]
    if source.bits == 4:
        signs = all(codes[i] ^ codes[i + 8] == 1 << (dest.bits - 1) for i in range(8))
        # For eight elements: indices and two shifts; then twice a lookup of each byte, the fourth bit, and
        # interleaving.
        each = [0 if not used else 1 if signs else 3 for used in planes]
        cost = (3 + 2 * (sum(each) + (2 if signs else 1) + (2 if len(planes) > 1 else 0))) / 8
        yield FastCast("byte table", source, dest, "", 8, 1, cost, None, fast.table(codes, dest))
    elif isinstance(source, TableType) or dest.bits == 8:
        order = element_order(2, tuple(p // 2 + 8 * (p % 2) for p in range(16)))
        cost = (5 + 4 * sum(planes) + (8 if len(planes) > 1 else 0)) / 16
        yield FastCast("byte table", source, dest, "", 16, 1, cost, order, fast.pair_table(codes, dest))


def _codes(source: DType, dest: DType, power: int = 0) -> tuple[int, ...]:
    """Return what each code of the source becomes, its value times 2**power."""
    import numpy as np

    values = dtypes.decode(np.arange(1 << source.bits), source)
    if power:
        values = values * 2.0**power
    if dest.is_integer:
        if source.is_integer:
            return tuple(int(value) & dest.code_mask for value in values)
        values = np.trunc(values)
    return tuple(int(code) for code in dtypes.encode(values, dest))


def _byte_rows(source: DType, dest: DType) -> Iterator[FastCast]:
    found = fast.byte_pattern(source, dest)
    if found is not None:
        pattern, exponent = found
        plan = float_plan(source.bits, pattern, 8)
        cost = (len(plan.slots) + plan.moves) / plan.elements
        arrangement = plan.arrangement()
        yield FastCast(
            "mask", source, dest, "", plan.elements, plan.words, cost, arrangement, fast.masks(plan), exponent
        )
    if dest == dtypes.float8_e4m3 and source.kind == "int" and source.bits <= 5:
        plan = signed_plan(source.bits)
        cost = ((4 if source.bits > 1 else 2) * len(plan.slots) + plan.moves) / plan.elements
        emit = fast.signed_to_float8(plan, source)
        yield FastCast(
            "magnitude", source, dest, "", plan.elements, plan.words, cost, plan.arrangement(), emit, 9
        )
    if dest == dtypes.float8_e4m3 and source.kind == "int" and source.bits in (1, 3):
        plan = nibble_plan(source.bits)
        views = len({(slot.word, slot.shift) for slot in plan.slots})
        cost = (2 * views + 2 * len(plan.slots) + plan.moves) / plan.elements
        emit = fast.nibble_table(plan, _codes(source, dest))
        yield FastCast(
            "nibble table", source, dest, "", plan.elements, plan.words, cost, plan.arrangement(), emit
        )
    if dest == dtypes.int8 and source.kind == "int" and source.bits in (1, 2, 4):
        per = 8 // source.bits
        order = element_order(source.bits, tuple(p // per + 4 * (p % per) for p in range(4 * per)))
        cost = 3 / 4 + (per - 1) / (4 * per)
        yield FastCast("mask, sign", source, dest, "", 4 * per, 1, cost, order, fast.narrow_to_int8(source))
