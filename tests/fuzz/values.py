"""What operators and functions of each element mean, on whole NumPy tiles in the widest type of each kind."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from tilus import dtypes
from tilus.dtypes import DType, boolean, float32, int32
from tilus.layout import RegisterLayout

Array = Any


def rounded(data: Array, dtype: DType) -> Array:
    """Return numbers as a type holds them: float64, int64, uint64 or bool."""
    data = np.asarray(data)
    if dtype.is_boolean:
        return data.astype(bool)
    if dtype.is_integer:
        if data.dtype.kind == "f":
            return wide(dtypes.decode(dtypes.encode(np.trunc(data), dtype), dtype), dtype)
        bits = data.astype(np.uint64) if data.dtype.kind == "b" else data.astype(np.int64).view(np.uint64)
        if dtype.bits == 64:
            return bits.view(np.int64) if dtype.is_signed else bits
        low = bits & np.uint64((1 << dtype.bits) - 1)
        if not dtype.is_signed:
            return low
        gap = np.uint64(64 - dtype.bits)
        return (low << gap).view(np.int64) >> np.int64(64 - dtype.bits)
    if dtype.name == "float64":
        return data.astype(np.float64)
    # A cast saturates before; what moves stays as it is.
    codes = (
        dtypes.encode(data, dtype, saturate=False)
        if dtype.is_float and dtype.has_inf
        else dtypes.encode(data, dtype)
    )
    return np.asarray(dtypes.decode(codes, dtype), np.float64)


def wide(data: Array, dtype: DType) -> Array:
    """Return the values of a type in the widest NumPy type of its kind."""
    if dtype.is_boolean:
        return np.asarray(data).astype(bool)
    return np.asarray(data).astype(
        np.float64 if dtype.is_float else np.int64 if dtype.is_signed else np.uint64
    )


class Value:
    """A tile, or with no dimension a scalar."""

    __array_ufunc__ = None

    def __init__(self, data: Array, dtype: DType, layout: RegisterLayout | None = None) -> None:
        self.data = rounded(data, dtype)
        self.dtype = dtype
        self.layout = layout

    @property
    def shape(self) -> tuple[int, ...]:
        return self.data.shape

    @property
    def T(self) -> Value:
        return Value(self.data.T, self.dtype)

    def to(self, dtype: DType) -> Value:
        return cast(self, dtype)

    def item(self) -> Value:
        return Value(self.data.reshape(()), self.dtype)

    def reshape(self, shape: Any) -> Value:
        return Value(self.data.reshape(shape), self.dtype)

    def __bool__(self) -> bool:
        return bool(self.data)

    def __index__(self) -> int:
        return int(self.data)

    __int__ = __index__
    __hash__ = None  # type: ignore[assignment]

    def __getitem__(self, index: Any) -> Value:
        return Value(self.data[index], self.dtype)

    def __neg__(self) -> Value:
        return Value(0 - self.data if self.dtype.is_integer else -self.data, self.dtype)

    def __invert__(self) -> Value:
        return Value(~self.data, self.dtype)


def met(a: Any, b: Any) -> tuple[Array, Array, DType]:
    """Return two operands in their common type."""
    if isinstance(a, Value) and isinstance(b, Value):
        x, y = a.dtype, b.dtype
        if x == y:
            common = x
        elif x.is_float != y.is_float:
            common = x if x.is_float else y
        elif x.bits != y.bits:
            common = x if x.bits > y.bits else y
        else:
            assert x.is_float
            common = float32
        return cast(a, common).data, cast(b, common).data, common
    value, number = (a, b) if isinstance(a, Value) else (b, a)
    common = value.dtype
    if isinstance(number, float) and common.is_integer:
        common = float32
    x, y = cast(value, common).data, Value(number, common).data
    return (x, y, common) if isinstance(a, Value) else (y, x, common)


def operator(function: Callable[[Array, Array, DType], Array]) -> Any:
    def apply(a: Any, b: Any) -> Value:
        x, y, dtype = met(a, b)
        return Value(function(x, y, dtype), dtype)

    return apply


def comparison(function: Any) -> Any:
    def apply(a: Any, b: Any) -> Value:
        x, y, _ = met(a, b)
        return Value(function(x, y), boolean)

    return apply


def _floor_divide(x: Array, y: Array, dtype: DType) -> Array:
    return x // y


def _shifted(left: bool) -> Any:
    def apply(a: Any, b: Any) -> Value:
        amount = cast(b, a.dtype).data if isinstance(b, Value) else np.asarray(b)
        amount = np.asarray(amount).astype(np.int64)
        far = (amount < 0) | (amount >= a.dtype.bits)
        places = np.where(far, 0, amount).astype(a.data.dtype)
        if left:
            return Value(np.where(far, np.zeros_like(a.data), a.data << places), a.dtype)
        sign = (
            np.where(a.data < 0, -1, 0).astype(a.data.dtype) if a.dtype.is_signed else np.zeros_like(a.data)
        )
        return Value(np.where(far, sign, a.data >> places), a.dtype)

    return apply


def _extreme(numpy: Any) -> Any:
    return operator(lambda x, y, dtype: numpy(x, y))


for _name, _function in {
    "add": lambda x, y, d: x + y, "sub": lambda x, y, d: x - y, "mul": lambda x, y, d: x * y,
    "truediv": lambda x, y, d: x / y, "floordiv": _floor_divide, "mod": lambda x, y, d: np.mod(x, y),
    "and": lambda x, y, d: x & y, "or": lambda x, y, d: x | y, "xor": lambda x, y, d: x ^ y,
}.items():  # fmt: skip
    _made = operator(_function)
    setattr(Value, f"__{_name}__", _made)
    setattr(Value, f"__r{_name}__", lambda self, other, _made=_made: _made(other, self))
for _name, _function in {
    "lt": np.less, "le": np.less_equal, "gt": np.greater, "ge": np.greater_equal, "eq": np.equal, "ne": np.not_equal,
}.items():  # fmt: skip
    setattr(Value, f"__{_name}__", comparison(_function))
Value.__lshift__ = _shifted(True)  # type: ignore[attr-defined]
Value.__rshift__ = _shifted(False)  # type: ignore[attr-defined]
maximum = _extreme(np.maximum)
minimum = _extreme(np.minimum)


def cast(x: Any, dtype: DType) -> Value:
    if not isinstance(x, Value):
        return Value(x, dtype)
    if dtype.is_boolean and not x.dtype.is_boolean:
        return Value(x.data != 0, dtype)
    if x.dtype == dtype:
        return x
    if dtype.is_float and dtype.bits <= 8:
        return Value(dtypes.decode(dtypes.encode(x.data, dtype), dtype), dtype)
    return Value(x.data, dtype)


def where(condition: Value, a: Any, b: Any) -> Value:
    if isinstance(a, Value) or isinstance(b, Value):
        x, y, dtype = met(a, b)
    else:
        dtype = float32 if isinstance(a, float) or isinstance(b, float) else int32
        x, y = np.asarray(a), np.asarray(b)
    return Value(np.where(condition.data, x, y), dtype)


def abs(x: Value) -> Value:
    return Value(np.where(x.data < 0, 0 - x.data, x.data) if x.dtype.is_integer else np.abs(x.data), x.dtype)


def _float_function(function: Any) -> Any:
    return lambda x: Value(function(x.data), x.dtype)


floor, ceil, trunc, round = map(_float_function, (np.floor, np.ceil, np.trunc, np.rint))
exp2, sqrt = map(_float_function, (np.exp2, np.sqrt))


def isnan(x: Value) -> Value:
    return Value(np.isnan(x.data), boolean)


def isinf(x: Value) -> Value:
    return Value(np.isinf(x.data), boolean)


def _bits(x: Value) -> list[str]:
    mask = (1 << x.dtype.bits) - 1
    return [format(int(v) & mask, f"0{x.dtype.bits}b") for v in x.data.reshape(-1)]


def _counted(count: Callable[[str], int]) -> Any:
    def apply(x: Value) -> Value:
        return Value(np.array([count(b) for b in _bits(x)], np.int64).reshape(x.shape), int32)

    return apply


popcount = _counted(lambda b: b.count("1"))
clz = _counted(lambda b: len(b) - len(b.lstrip("0")))
ctz = _counted(lambda b: len(b) - len(b.rstrip("0")))


def brev(x: Value) -> Value:
    return Value(np.array([int(b[::-1], 2) for b in _bits(x)], np.uint64).reshape(x.shape), x.dtype)


def mulhi(a: Any, b: Any) -> Value:
    x, y, dtype = met(a, b)
    made = (x.astype(object) * y.astype(object)) >> dtype.bits
    return Value(np.asarray(made).astype(np.int64 if dtype.is_signed else np.uint64), dtype)


def lookup(table: Sequence[float], index: Value, dtype: DType) -> Value:
    return Value(np.asarray(table)[index.data.astype(np.int64)], dtype)
