"""Translations of random numbers."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from tilus.dtypes import float32, uint32
from tilus.errors import TypeMismatch
from tilus.ir import ScalarType, Value, ops
from tilus.lang import functions
from tilus.lang.diagnostics import describe
from tilus.lang.semantics.arithmetic import binary, convert
from tilus.lang.semantics.registry import implements
from tilus.lang.semantics.shapes import tile_type

if TYPE_CHECKING:
    from tilus.lang.frontend.tracer import Tracer


@implements(functions.random_bits)
def random_bits(t: Tracer, seed: Any, counter: Any) -> tuple[Value, ...]:
    type = tile_type("counter of random numbers", counter)
    if not type.dtype.is_integer or type.dtype.bits < 32:
        raise TypeMismatch(
            f"random numbers take a counter of 32 or 64 bits, not {describe(counter)}", hint="tilus.arange(n)"
        )
    if isinstance(seed, int) and not isinstance(seed, bool):
        seed = t.constant(seed)
    if not isinstance(seed, Value) or not isinstance(seed.type, ScalarType) or not seed.type.dtype.is_integer:
        raise TypeMismatch(
            f"random numbers take an integer scalar as seed, not {describe(seed)}",
            hint="seed: tilus.int32 among the parameters",
        )
    return t.emit(ops.Random, seed, counter).results


@implements(functions.randint)
def randint(t: Tracer, seed: Any, counter: Any) -> Value:
    return random_bits(t, seed, counter)[0]


def uniform(t: Tracer, bits: Value) -> Value:
    """Emit a float32 in [0, 1) of the upper 24 bits, which a float32 holds exactly."""
    upper = t.value(ops.Binary, "shr", bits, _like(t, bits, 8))
    return binary(t, "*", convert(t, upper, float32), 2.0**-24)


def _like(t: Tracer, tile: Value, number: int) -> Value:
    return t.value(ops.Splat, t.constant(number, uint32), tile_type("random numbers", tile).shape)


@implements(functions.rand)
def rand(t: Tracer, seed: Any, counter: Any) -> Value:
    return uniform(t, random_bits(t, seed, counter)[0])


@implements(functions.randn)
def randn(t: Tracer, seed: Any, counter: Any) -> Value:
    first, second, _, _ = random_bits(t, seed, counter)
    # 1 - u lies in (0, 1], whose logarithm is finite.
    radius = t.value(ops.Unary, "log", binary(t, "-", 1.0, uniform(t, first)))
    radius = t.value(ops.Unary, "sqrt", binary(t, "*", radius, -2.0))
    angle = binary(t, "*", uniform(t, second), 2.0 * math.pi)
    return binary(t, "*", radius, t.value(ops.Unary, "cos", angle))
