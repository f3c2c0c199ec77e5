"""Runs a kernel twice, as PTX on the simulator with every check and on the interpreter, and compares what it stored."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import dataclass, replace
from math import gcd
from typing import Any

import numpy as np

from tilus import dtypes, simulator
from tilus.codegen import compile_kernel
from tilus.codegen.compiler import Compiled
from tilus.dtypes import DType
from tilus.ir import GlobalType, Kernel, PointerType, ScalarType, Symbol, Type, Value
from tilus.ir.interpreter import bind, launch_grid
from tilus.ir.interpreter import run as interpret
from tilus.ir.verifier import verify
from tilus.lang import KernelSource

BLOCK = 16
"""The largest divisor of an extent or stride that code is specialised on, as at run time."""


@dataclass(frozen=True)
class Outcome:
    """What a kernel stored, and how.

    Attributes
    ----------
    arrays : list
        The arguments after the launch on the simulator.
    expected : list
        The arguments after the interpreter ran the traced kernel.
    compiled : Compiled
        The compiled kernel.
    report : Report
        The simulator's counters and what it printed.
    printed : str
        What the interpreter printed.
    """

    arrays: list[Any]
    expected: list[Any]
    compiled: Compiled
    report: Any
    printed: str

    @property
    def ptx(self) -> str:
        """The PTX."""
        return self.compiled.ptx

    def count(self, text: str) -> int:
        """Return how many lines of the PTX hold a text."""
        return sum(text in line for line in self.ptx.splitlines())


def specialise(source: KernelSource, args: Sequence[Any], constexprs: dict[str, Any]) -> dict[str, Type]:
    """Return the parameters' types for arguments, with what divides their extents and strides."""
    types = source.default_types(constexprs)
    made: dict[str, Type] = {}
    for (name, type), arg in zip(types.items(), args, strict=True):
        if isinstance(type, GlobalType):
            dims = tuple(
                replace(d, divisor=gcd(size, BLOCK)) if isinstance(d, Symbol) else d
                for d, size in zip(type.dims, arg.shape, strict=True)
            )
            strides: list[int | Symbol] = []
            for axis, (step, declared) in enumerate(zip(arg.strides, type.strides, strict=True)):
                elements = step // arg.itemsize
                dense = arg.flags.c_contiguous and arg.size
                if dense and isinstance(declared, int):
                    strides.append(declared)
                elif dense and declared.name in {d.name for d in dims if isinstance(d, Symbol)}:
                    strides.append(next(d for d in dims if isinstance(d, Symbol) and d.name == declared.name))
                elif elements == 1:
                    strides.append(1)
                else:
                    strides.append(Symbol(f"{name}_s{axis}", gcd(elements, BLOCK)))
            made[name] = GlobalType(type.dtype, dims, tuple(strides), _alignment(arg))
        elif isinstance(type, PointerType):
            made[name] = PointerType(type.dtype, _alignment(arg))
        else:
            made[name] = type
    return made


def _alignment(array: Any) -> int:
    """Return the alignment that an array keeps on the device, where allocations start at multiples of 256 bytes."""
    base = array
    while isinstance(base.base, np.ndarray):
        base = base.base
    offset = array.__array_interface__["data"][0] - base.__array_interface__["data"][0]
    return gcd(offset, 16)


def trace(function: Callable[..., Any], *args: Any, **constexprs: Any) -> Kernel:
    """Trace a kernel for arguments."""
    source = KernelSource(function)
    kernel = source.trace(constexprs, specialise(source, args, constexprs))
    verify(kernel, wishes=True)
    return kernel


def symbols(kernel: Kernel, args: Sequence[Any]) -> list[int]:
    """Return the sizes that a launch passes after the arguments."""
    values = []
    by_param = dict(zip(kernel.params, args, strict=True))
    for _, param, kind, axis in kernel.symbols():
        array = by_param[param]
        values.append(array.shape[axis] if kind == "dim" else array.strides[axis] // array.itemsize)
    return values


def copies(args: Sequence[Any]) -> list[Any]:
    """Return copies of arguments that keep strides and offsets; views of one array stay views of one array."""
    memo: dict[int, Any] = {}

    def copy(value: Any) -> Any:
        if not isinstance(value, np.ndarray):
            return value
        base = value
        while isinstance(base.base, np.ndarray):
            base = base.base
        if base is value:
            return memo.setdefault(id(base), deepcopy(base))
        fresh = memo.setdefault(id(base), deepcopy(base))
        offset = value.__array_interface__["data"][0] - base.__array_interface__["data"][0]
        return np.ndarray(value.shape, value.dtype, fresh, offset, value.strides)

    return [copy(a) for a in args]


def passed(param: Value, arg: Any) -> Any:
    """Return what a launch passes for a parameter: arrays, and scalars as the bytes that they have in memory."""
    if not isinstance(param.type, ScalarType):
        return arg
    return array(arg, param.type.dtype).tobytes()


def launch(
    kernel: Kernel, args: Sequence[Any], target: str = "sm_80", grid: Any = None
) -> tuple[Compiled, Any]:
    """Compile a kernel and run its PTX on the simulator with all checks."""
    compiled = compile_kernel(kernel, target, assemble=False)
    if grid is None:
        grid = launch_grid(kernel, bind(kernel, args))
    report = simulator.load(compiled.ptx)[compiled.name].launch(
        grid=grid,
        block=(compiled.threads, 1, 1),
        args=[*map(passed, kernel.params, args), *symbols(kernel, args)],
        shared_bytes=compiled.shared_bytes,
    )
    report.raise_if_hazards()
    return compiled, report


def run(
    function: Callable[..., Any],
    /,
    *args: Any,
    target: str = "sm_80",
    rtol: float = 0.0,
    atol: float = 0.0,
    **constexprs: Any,
) -> Outcome:
    """Run a kernel on the simulator and on the interpreter; what they stored must agree.

    Parameters
    ----------
    function : function
        The kernel.
    *args : object
        Arrays and numbers; the arrays stay as they are.
    target : str
        What to compile for.
    rtol, atol : float
        How far floats may be apart; 0 asks for equal values.
    **constexprs : object
        Values of constexpr parameters.
    """
    return run_kernel(trace(function, *args, **constexprs), *args, target=target, rtol=rtol, atol=atol)


def run_kernel(
    kernel: Kernel, *args: Any, target: str = "sm_80", rtol: float = 0.0, atol: float = 0.0
) -> Outcome:
    """Run a traced kernel on the simulator and on the interpreter; what they stored must agree."""
    expected, arrays = copies(args), copies(args)
    lines: list[str] = []
    interpret(kernel, expected, output=lines.append)
    compiled, report = launch(kernel, arrays, target)
    for param, made, wanted in zip(kernel.params, arrays, expected, strict=True):
        if isinstance(made, np.ndarray):
            assert isinstance(param.type, (GlobalType, PointerType))
            compare(made, wanted, param.type.dtype, rtol, atol, param.name)
    return Outcome(arrays, expected, compiled, report, "\n".join(lines))


def values(array: Any, dtype: DType) -> Any:
    """Return the values of an array of a dtype."""
    if dtype.numpy is None:
        return dtypes.decode(array, dtype)
    return array


def compare(made: Any, wanted: Any, dtype: DType, rtol: float, atol: float, name: str) -> None:
    """Compare two arrays of a dtype; NaN equals NaN."""
    a, b = values(made, dtype), values(wanted, dtype)
    if dtype.is_float and (rtol or atol):
        np.testing.assert_allclose(
            a.astype(np.float64), b.astype(np.float64), rtol=rtol, atol=atol, err_msg=name, equal_nan=True
        )
    else:
        np.testing.assert_array_equal(a, b, err_msg=name)


def random(dtype: DType, *shape: int, seed: int = 0, low: float = -100, high: float = 100) -> Any:
    """Return random values of a dtype: floats of unit scale, integers between bounds that the type holds."""
    rng = np.random.default_rng([seed, *shape])
    if dtype.is_boolean:
        return rng.integers(0, 2, shape).astype(np.bool_)
    if dtype.is_integer:
        made = rng.integers(int(max(low, dtype.min)), int(min(high, dtype.max)) + 1, shape)
    else:
        made = rng.standard_normal(shape)
    return array(made, dtype)


def array(given: Any, dtype: DType) -> Any:
    """Return numbers as an array of a dtype."""
    if dtype.numpy is not None:
        return np.asarray(given).astype(dtype.numpy)
    return dtypes.encode(np.asarray(given, np.float64 if dtype.is_float else np.int64), dtype)
