"""`@tilus.kernel`: a function that is called with tensors, compiled for what they are, and kept."""

from __future__ import annotations

import struct
import threading
from collections.abc import Callable, Mapping, Sequence
from functools import update_wrapper
from importlib import import_module
from typing import TYPE_CHECKING, Any

from tilus import dtypes
from tilus.dtypes import DType
from tilus.errors import LaunchError, SyntaxNotSupported, TilusError
from tilus.ir import GlobalType, PointerType, ScalarType
from tilus.lang import KernelSource, ParamSpec
from tilus.lang.reads import Watched, changed
from tilus.runtime import cache, driver, dynamo
from tilus.runtime.arguments import (
    Array,
    Declared,
    Operand,
    bind,
    check_scalar,
    is_numpy_array,
    is_packed,
    is_torch_tensor,
    read_array,
)
from tilus.runtime.binary import Binary
from tilus.runtime.cuda import is_capturing, load_binary, make_plan
from tilus.runtime.launch import Plan
from tilus.runtime.plans import PlanTable, is_plain
from tilus.runtime.signature import ParameterType
from tilus.runtime.specialize import assumed_types, types_of_arguments

if TYPE_CHECKING:
    from tilus.codegen import Compiled
    from tilus.simulator import Report

RESERVED = ("target", "checks")
"""Keywords of `compile`, `prepare` and `simulate`; a tensor that is called so is given to them by position."""
_Key = tuple[Any, ...]


class Prepared:
    """A call that is checked: constexpr values, arguments as the kernel sees them, and the types for them."""

    __slots__ = ("arrays", "constexprs", "declared", "device", "operands", "types", "values")

    def __init__(
        self,
        constexprs: dict[str, object],
        declared: tuple[Declared, ...],
        values: tuple[Any, ...],
        arrays: list[Array | None],
        operands: list[Operand | None],
        types: tuple[ParameterType, ...],
    ) -> None:
        self.constexprs = constexprs
        self.declared = declared
        self.values = values
        self.arrays = arrays
        self.operands = operands
        self.types = types
        self.device = next((array.device for array in arrays if array is not None), -1)


class Kernel:
    """A kernel: call it with tensors to launch it.

    Tensors on an NVIDIA GPU run there, on torch's current stream; CPU tensors and NumPy arrays run on the simulator.
    A kernel writes to its tensors and returns nothing. The first call for new constexpr values, dtypes, or divisors
    of sizes and addresses compiles; what is compiled is kept on disk.
    """

    __name__: str
    __qualname__: str

    def __init__(self, source: KernelSource, bound: Mapping[str, object] | None = None) -> None:
        self.source = source
        self.bound: dict[str, object] = dict(bound or {})
        runtime = source.runtime_params
        for name in source.constexprs:
            if name in RESERVED:
                raise TilusError(
                    f"a constexpr parameter cannot be called {name}, which is an option of a kernel's methods",
                    source.location,
                    f"{name}_",
                )
        self._runtime = runtime
        self._positions = {param.name: i for i, param in enumerate(runtime)}
        memory = [i for i, param in enumerate(runtime) if param.kind != "scalar"]
        scalars = [i for i, param in enumerate(runtime) if param.kind == "scalar"]
        self._lock = threading.RLock()
        self._variants: dict[_Key, Binary] = {}
        self._functions: dict[_Key, Any] = {}
        self._plans = PlanTable(memory, scalars)
        self._watched: tuple[Watched, ...] | None = None
        update_wrapper(self, source.function)
        dynamo.calls(Kernel.__call__)

    def __repr__(self) -> str:
        bound = "".join(f", {name}={value}" for name, value in self.bound.items())
        return f"<kernel {self.source.name}{bound}>"

    def __copy__(self) -> Kernel:
        return self

    def __deepcopy__(self, memo: object) -> Kernel:
        # A kernel is a value: a module that holds one is copied with the same kernel.
        return self

    def __reduce__(self) -> str | tuple[Any, ...]:
        # By name, as Python pickles functions.
        if self.bound:
            return _bound, (self.__module__, self.__qualname__, self.bound)
        return self.__qualname__

    # Launching.

    def __call__(self, *args: Any, **options: Any) -> None:
        """Launch the kernel.

        Parameters
        ----------
        *args : torch.Tensor, numpy.ndarray or number
            The run-time parameters, in order; they may be given by name too.
        **options : object
            Constexpr parameters, by name.

        Raises
        ------
        LaunchError
            If an argument does not fit the kernel, in one sentence that names the parameter.
        HazardFound
            On the CPU, if the simulator finds a race, a bad address, or another hazard.
        """
        if self._watched and changed(self._watched):
            self._forget()
        try:
            if self._plans.launch(args, options):
                return
        except (struct.error, OverflowError, TypeError, ValueError, AttributeError):
            # Some argument is not what it was; what is wrong with it is found and said below.
            pass
        self._launch_new(args, options)

    def _launch_new(self, args: tuple[Any, ...], options: dict[str, Any]) -> None:
        call = self._check(args, options)
        if call.device < 0:
            from tilus.runtime import simulate

            binary = self._variant(call.constexprs, call.types, simulate.default_target(), assemble=False)
            report = simulate.launch(binary, call.operands, _owners(call), checks=simulate.checks_wanted())
            if report is not None:
                simulate.finish(report)
            return
        plan = self._plan(call, may_compile=not is_capturing())
        self._plans.keep(plan, args, options)
        pointers, scalars = _pointers_and_scalars(call)
        try:
            plan.run(pointers, scalars)
        except (struct.error, OverflowError) as error:
            raise LaunchError(
                f"{self.source.name} was given a number that does not fit its type: {error}"
            ) from None

    def _plan(self, call: Prepared, may_compile: bool = True) -> Plan:
        """Return a launch plan for a checked call on a GPU, compiling and loading if needed and allowed."""
        import torch

        device = call.device
        target = driver.target(device).name
        key = (self._constexpr_key(call.constexprs), call.types, target, device)
        with self._lock:
            function = self._functions.get(key)
            if function is None:
                if not may_compile:
                    raise LaunchError(
                        f"{self.source.name} is not compiled and loaded for these arguments, and a CUDA graph is being "
                        "captured, during which neither can be done",
                        hint=f"{self.source.name}.prepare(...) with the same arguments before the capture",
                    )
                binary = self._variant(call.constexprs, call.types, target)
                function = self._functions[key] = (load_binary(binary, device), binary)
        loaded, binary = function
        return make_plan(binary, call.operands, loaded, torch)

    # Compiling.

    def prepare(self, *args: Any, target: str | None = None, **options: Any) -> None:
        """Compile and load for a call, without launching; do this before a CUDA graph is captured.

        Parameters
        ----------
        *args, **options
            As for the call. Tensors may be on torch's meta device; they then stand for contiguous memory that begins
            at a multiple of 16 bytes, on the current CUDA device or, without one, on the CPU.
        target : str, optional
            Compile for this target only, and load nothing.
        """
        call = self._check(args, options, meta=True)
        device = call.device
        on_meta = any(_is_meta(array.owner) for array in call.arrays if array is not None)
        if target is not None:
            self._variant(call.constexprs, call.types, target)
            return
        if on_meta:
            import torch

            device = torch.cuda.current_device() if torch.cuda.is_available() else -1
        call.device = device
        if device < 0:
            from tilus.runtime import simulate

            binary = self._variant(call.constexprs, call.types, simulate.default_target(), assemble=False)
            simulate.load(binary.ptx)
            return
        plan = self._plan(call)
        if not on_meta:
            self._plans.keep(plan, args, options)

    def compile(self, *args: Any, target: str = "sm_90a", **options: Any) -> Compiled:
        """Compile for a target, with no GPU and no cache.

        Parameters
        ----------
        *args
            The run-time parameters: tensors or arrays, of which dtype, shape, strides and alignment count, or types
            of `tilus.ir`. Without any, tensors are contiguous along the last dimension, and begin, and have rows and
            last extents, at multiples of 16 bytes.
        target : str
            Such as ``"sm_90a"``.
        **options
            Constexpr parameters, and run-time parameters by name.

        Returns
        -------
        Compiled
            With the PTX, the cubin (None where no assembler is installed), what it takes and the final tile IR.
        """
        constexprs, types = self.specialize(*args, **options)
        return compile_variant(self.source, constexprs, types, target)

    def specialize(self, *args: Any, **options: Any) -> tuple[dict[str, object], tuple[ParameterType, ...]]:
        """Return the constexpr values and the parameter types that `compile` would take for the same arguments."""
        given: dict[str, Any] = {}
        for position, value in enumerate(args):
            if position >= len(self._runtime):
                raise self._too_many(args)
            given[self._runtime[position].name] = value
        chosen = dict(self.bound)
        for name, value in options.items():
            (given if name in self._positions else chosen)[name] = value
        tensors = {
            name: value for name, value in given.items() if is_torch_tensor(value) or is_numpy_array(value)
        }
        if tensors and len(tensors) == sum(param.kind != "scalar" for param in self._runtime):
            numbers = {p.name: given.get(p.name, 0) for p in self._runtime if p.kind == "scalar"}
            numbers = {name: 0 if isinstance(value, ScalarType) else value for name, value in numbers.items()}
            call = self._check((), {**chosen, **tensors, **numbers}, meta=True)
            return call.constexprs, call.types
        self._infer(chosen, given)
        constexprs = self.source.complete(chosen)
        declared = self.declared(constexprs)
        types = {
            name: _as_type(self.source.name, name, value)
            for name, value in given.items()
            if name not in tensors
        }
        for parameter in declared:
            self._check_type(parameter, types.get(parameter.name))
        return constexprs, assumed_types(declared, given=types)

    def simulate(
        self, *args: Any, target: str | None = None, checks: bool | Sequence[str] = True, **options: Any
    ) -> Report:
        """Run the kernel on CPU tensors on the simulator and return its report, whatever it finds.

        Parameters
        ----------
        *args, **options
            As for the call.
        target : str, optional
            The target whose PTX runs, by default that of calls with CPU tensors.
        checks : bool or sequence of str
            All checks, none, or some; see `tilus.simulator`.

        Returns
        -------
        Report
            Hazards and counters.
        """
        from tilus.runtime import simulate

        call = self._check(args, options)
        if call.device >= 0:
            raise LaunchError(f"{self.source.name} was to be simulated with tensors on a GPU", hint="x.cpu()")
        name = target or simulate.default_target()
        binary = self._variant(call.constexprs, call.types, name, assemble=False)
        report = simulate.launch(binary, call.operands, _owners(call), checks=checks)
        if report is None:
            raise LaunchError(f"the grid of {self.source.name} is empty, so there is nothing to report")
        return report

    def bind(self, **constexprs: object) -> Kernel:
        """Return the same kernel with values for some of its constexpr parameters."""
        for name in constexprs:
            if name not in self.source.constexprs:
                raise LaunchError(
                    f"{self.source.name} has no constexpr parameter {name!r}",
                    hint="one of " + ", ".join(self.source.constexprs) if self.source.constexprs else None,
                )
        return Kernel(self.source, {**self.bound, **constexprs})

    def declared(self, constexprs: dict[str, object]) -> tuple[Declared, ...]:
        """Return the run-time parameters with all that constexpr values decide."""
        return tuple(
            Declared(
                param.name,
                param.kind,
                self.source.dtype_of(param, constexprs),
                self.source.dims_of(param, constexprs) if param.kind == "tensor" else (),
            )
            for param in self._runtime
        )

    def _variant(
        self,
        constexprs: dict[str, object],
        types: tuple[ParameterType, ...],
        target: str,
        assemble: bool = True,
    ) -> Binary:
        """Return the compiled variant: from memory, from disk, or made now."""
        from tilus.codegen import target as find_target

        target = find_target(target).name
        key = (self._constexpr_key(constexprs), types, target, assemble)
        found = self._variants.get(key)
        if found is not None:
            return found
        with self._lock:
            found = self._variants.get(key)
            if found is None:
                if self._watched is None:
                    self._watched = self.source.watched()
                stored = cache.key(
                    self.source.fingerprint(constexprs),
                    *map(str, types),
                    target,
                    "cubin" if assemble else "ptx",
                )
                found = cache.read(stored)
                if found is None:
                    found = Binary.of(compile_variant(self.source, constexprs, types, target, assemble))
                    cache.write(stored, found)
                self._variants[key] = found
        return found

    def _forget(self) -> None:
        """Drop what was compiled with other values of global names than these have now."""
        with self._lock:
            self._watched = None
            self._variants.clear()
            self._functions.clear()
            self._plans.clear()

    def _constexpr_key(self, constexprs: dict[str, object]) -> _Key:
        if all(map(is_plain, constexprs.values())):
            return tuple((name, type(value), value) for name, value in constexprs.items())
        return (self.source.fingerprint(constexprs),)

    # Checking.

    def _check(self, args: tuple[Any, ...], options: Mapping[str, Any], meta: bool = False) -> Prepared:
        """Sort and check the arguments of a call."""
        if self._watched and changed(self._watched):
            self._forget()
        try:
            return self._checked(args, options, meta)
        except LaunchError as error:
            if error.message.startswith(f"{self.source.name}: "):
                raise
            raise LaunchError(f"{self.source.name}: {error.message}", error.location, error.hint) from None

    def _checked(self, args: tuple[Any, ...], options: Mapping[str, Any], meta: bool) -> Prepared:
        given: list[Any] = list(args)
        if len(args) > len(self._runtime):
            raise self._too_many(args)
        chosen = dict(self.bound)
        named: dict[str, Any] = {}
        for name, value in options.items():
            position = self._positions.get(name)
            if position is None:
                if name not in self.source.constexprs:
                    names = ", ".join(param.name for param in self.source.params)
                    raise LaunchError(f"there is no parameter {name!r}", hint=f"one of {names}")
                chosen[name] = value
            elif position < len(args):
                raise LaunchError(f"{name} is given twice, by position and by name")
            else:
                named[name] = value
        for param in self._runtime[len(args) :]:
            if param.name not in named and param.required:
                raise LaunchError(f"there is no argument for {param.name}, expected {_annotation(param)}")
            given.append(named.get(param.name, param.default))
        arrays = [
            None if param.kind == "scalar" else self._read(param, value, meta)
            for param, value in zip(self._runtime, given, strict=True)
        ]
        self._infer(chosen, {p.name: a for p, a in zip(self._runtime, arrays, strict=True) if a is not None})
        constexprs = self.source.complete(chosen)
        declared = self.declared(constexprs)
        operands, _ = bind(declared, arrays)
        values = tuple(
            check_scalar(parameter, value) if parameter.kind == "scalar" else value
            for parameter, value in zip(declared, given, strict=True)
        )
        types = types_of_arguments(declared, operands, arrays)
        return Prepared(constexprs, declared, values, arrays, operands, types)

    def _read(self, param: ParamSpec, value: Any, meta: bool) -> Array:
        if not (is_torch_tensor(value) or is_numpy_array(value)):
            word = type(value).__name__
            kind = "None" if value is None else f"an {word}" if word[0] in "aeiou" else f"a {word}"
            raise LaunchError(
                f"{param.name} is {kind}, expected a tensor or an array for {_annotation(param)}"
            )
        return read_array(param.name, value, meta)

    def _infer(self, chosen: dict[str, object], found: Mapping[str, Any]) -> None:
        """Take constexpr dtypes and sizes that are neither given nor have a default from the tensors."""
        required = {
            param.name for param in self.source.params if param.kind == "constexpr" and param.required
        }
        for param in self._runtime:
            argument = found.get(param.name)
            name = param.dtype
            own = getattr(argument, "dtype", None)
            if isinstance(name, str) and name in required and name not in chosen and own is not None:
                chosen[name] = dtypes.dtype(own)
            shape = getattr(argument, "shape", None)
            if param.kind == "tensor" and shape is not None and len(shape) == len(param.dims):
                dtype = chosen.get(name) if isinstance(name, str) else name
                # The last dimension of a packed tensor has another size than its array.
                whole = len(shape) - (isinstance(dtype, DType) and is_packed(dtype))
                for dim, size in zip(param.dims[:whole], shape[:whole], strict=True):
                    if isinstance(dim, str) and dim in required and isinstance(size, int):
                        chosen.setdefault(dim, size)

    def _too_many(self, args: tuple[Any, ...]) -> LaunchError:
        constexprs = ", ".join(f"{name}=..." for name in self.source.constexprs[:2])
        return LaunchError(
            f"{self.source.name} takes {len(self._runtime)} arguments by position, but {len(args)} were given",
            hint=f"{self.source.name}(..., {constexprs})" if constexprs else None,
        )

    def _check_type(self, declared: Declared, type: ParameterType | None) -> None:
        if type is None:
            return
        kinds = {"tensor": GlobalType, "pointer": PointerType, "scalar": ScalarType}
        if not isinstance(type, kinds[declared.kind]) or type.dtype != declared.dtype:
            raise LaunchError(
                f"{self.source.name}: {declared.name} is given the type {type}, expected {declared}"
            )
        if isinstance(type, GlobalType) and type.rank != len(declared.dims):
            raise LaunchError(
                f"{self.source.name}: {declared.name} is given the type {type} of {type.rank} dimensions, "
                f"expected {declared}"
            )


def kernel(function: Callable[..., Any] | None = None, **options: Any) -> Kernel:
    """Make a kernel of a function that is written in the language.

    Parameters
    ----------
    function : function
        With annotated parameters: `tilus.Tensor[...]`, `tilus.Pointer[...]`, a dtype for a scalar, or
        `tilus.constexpr`.

    Returns
    -------
    Kernel
    """
    if function is None or options:
        given = ", ".join(f"{name}=..." for name in options)
        raise SyntaxNotSupported(
            f"tilus.kernel takes a function and no options, but is written kernel({given})",
            hint="@tilus.kernel, and in the kernel tilus.grid(..., warps=4)",
        )
    return Kernel(KernelSource(function))


def _bound(module: str, name: str, constexprs: dict[str, object]) -> Kernel:
    """Return a kernel with values for constexpr parameters, for pickle."""
    found: Any = import_module(module)
    for part in name.split("."):
        found = getattr(found, part)
    bound: Kernel = found.bind(**constexprs)
    return bound


def compile_variant(
    source: KernelSource,
    constexprs: dict[str, object],
    types: tuple[ParameterType, ...],
    target: str,
    assemble: bool | None = None,
) -> Compiled:
    """Trace and compile one variant; by default with machine code where the assembler is installed."""
    from tilus.codegen import compile_kernel
    from tilus.codegen.assemble import available

    if assemble is None or assemble:
        assemble = available() is None
    named = {param.name: type for param, type in zip(source.runtime_params, types, strict=True)}
    return compile_kernel(source.trace(constexprs, dict(named)), target, assemble=assemble)


def _owners(call: Prepared) -> list[Any]:
    """Return the tensors, and the checked numbers, of a call."""
    return list(call.values)


def _pointers_and_scalars(call: Prepared) -> tuple[list[int], list[int | float]]:
    pointers = [array.pointer for array in call.arrays if array is not None]
    scalars = [value for value, array in zip(call.values, call.arrays, strict=True) if array is None]
    return pointers, scalars


def _is_meta(value: Any) -> bool:
    return is_torch_tensor(value) and bool(value.is_meta)


def _annotation(param: ParamSpec) -> str:
    dtype = param.dtype if isinstance(param.dtype, DType) else repr(param.dtype)
    if param.kind == "tensor":
        return f'Tensor[{dtype}, "{" ".join("_" if dim is None else str(dim) for dim in param.dims)}"]'
    return f"Pointer[{dtype}]" if param.kind == "pointer" else str(dtype)


def _as_type(kernel_name: str, name: str, value: Any) -> ParameterType:
    if isinstance(value, (GlobalType, PointerType, ScalarType)):
        return value
    raise LaunchError(
        f"{kernel_name}: {name} is given {value!r}, expected a type of tilus.ir, or tensors for all tensor parameters"
    )
