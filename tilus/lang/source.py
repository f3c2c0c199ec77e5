"""A kernel's Python function: its parameters, its fingerprint, and its trace to tile IR."""

from __future__ import annotations

import ast
import inspect
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from types import FunctionType, UnionType
from typing import Any, Union, get_origin

from tilus.dtypes import DType, boolean, float32, int32
from tilus.dtypes import dtype as dtype_named
from tilus.errors import Location, NameNotFound, SyntaxNotSupported, TilusError, TypeMismatch
from tilus.ir import Extent, GlobalType, Kernel, PointerType, ScalarType, Symbol, Type, Value, ops
from tilus.lang.diagnostics import describe, nearest
from tilus.lang.fingerprint import Fingerprint
from tilus.lang.frontend import attributes  # noqa: F401  (declares expressions)
from tilus.lang.frontend.function import FunctionSource
from tilus.lang.frontend.tracer import Flow, Frame, Tracer
from tilus.lang.reads import Watched, watch
from tilus.lang.types import EitherAnnotation, PointerAnnotation, TensorAnnotation, constexpr

MISSING = inspect.Parameter.empty
PYTHON_SCALARS: dict[object, DType] = {int: int32, float: float32, bool: boolean}
POINTER_ALIGN = 16
"""What CUDA's allocators and torch guarantee, and the widest load takes, in bytes."""


@dataclass(frozen=True)
class ParamSpec:
    """A parameter of a kernel.

    Attributes
    ----------
    name : str
        Its name.
    kind : str
        tensor, pointer, scalar or constexpr.
    dtype : DType, str or None
        The dtype, or the name of the constexpr parameter that holds it; None for a constexpr.
    dims : tuple
        For a tensor, for each dimension its name, its size, or None.
    default : object
        The value of a parameter that a call leaves out; `inspect.Parameter.empty` if there is none.
    """

    name: str
    kind: str
    dtype: DType | str | None = None
    dims: tuple[str | int | None, ...] = ()
    default: Any = MISSING

    @property
    def required(self) -> bool:
        """Whether a call must give the parameter."""
        return self.default is MISSING


class KernelSource:
    """A Python function that is a kernel.

    Parameters
    ----------
    function : function
        The function, with annotated parameters.
    """

    def __init__(self, function: Callable[..., Any]) -> None:
        self.function = function
        self.source = FunctionSource.of(function)  # type: ignore[arg-type]
        self.name = self.source.name
        self.file = self.source.file
        self.line = self.source.tree.lineno
        self.params = read_params(self.source)

    def __repr__(self) -> str:
        return f"<kernel source {self.name} at {self.file}:{self.line}>"

    @property
    def location(self) -> Location:
        """Where the kernel's name stands."""
        return self.source.def_location

    @cached_property
    def constexprs(self) -> tuple[str, ...]:
        """The names of the constexpr parameters."""
        return tuple(p.name for p in self.params if p.kind == "constexpr")

    @cached_property
    def runtime_params(self) -> tuple[ParamSpec, ...]:
        """The parameters that a launch passes."""
        return tuple(p for p in self.params if p.kind != "constexpr")

    def fingerprint(self, constexprs: dict[str, object] | None = None) -> str:
        """Return a hash of the source, of the functions and constants that it uses, and of constexpr values.

        Parameters
        ----------
        constexprs : dict, optional
            Values of constexpr parameters.

        Returns
        -------
        str
            64 hexadecimal digits; different if anything that the kernel's meaning depends on is, but the compiler.
        """
        collected = self._collected()
        for name, value in sorted((constexprs or {}).items()):
            collected.add(name, value)
        return collected.digest()

    def _collected(self) -> Fingerprint:
        collected = Fingerprint(self.function.__module__ or "")
        collected.lines.append(collected.function(self.source))
        return collected

    def watched(self) -> tuple[Watched, ...]:
        """Return the names outside that the kernel and the functions it calls read, for `tilus.lang.reads.changed`."""
        return watch(self._collected().reads)

    def complete(self, constexprs: dict[str, object]) -> dict[str, object]:
        """Return the constexpr values with defaults filled in.

        Parameters
        ----------
        constexprs : dict
            Values of some constexpr parameters.

        Returns
        -------
        dict
        """
        for name in constexprs:
            if name not in self.constexprs:
                raise NameNotFound(
                    f"{self.name} has no constexpr parameter {name!r}",
                    self.location,
                    nearest(name, self.constexprs),
                )
        values = {}
        for param in self.params:
            if param.kind != "constexpr":
                continue
            value = constexprs.get(param.name, param.default)
            if value is MISSING:
                raise TypeMismatch(
                    f"{self.name} takes a value for its constexpr parameter {param.name}",
                    self.location,
                    f"{param.name}=...",
                )
            values[param.name] = value
        return values

    def dtype_of(self, param: ParamSpec, constexprs: dict[str, object]) -> DType:
        """Return the dtype of a parameter for constexpr values."""
        if isinstance(param.dtype, DType):
            return param.dtype
        assert param.dtype is not None
        value = constexprs[param.dtype]
        if not isinstance(value, DType):
            raise TypeMismatch(
                f"{param.dtype} is the dtype of {param.name}, but is given {describe(value)}",
                self.location,
                "a dtype such as tilus.float16",
            )
        return value

    def dims_of(self, param: ParamSpec, constexprs: dict[str, object]) -> tuple[str | int | None, ...]:
        """Return the dimensions of a tensor, with the sizes of those that are named after a constexpr."""
        dims: list[str | int | None] = []
        for dim in param.dims:
            value = constexprs.get(dim) if isinstance(dim, str) else None
            if value is not None and (isinstance(value, bool) or not isinstance(value, int)):
                raise TypeMismatch(
                    f"{dim} is a dimension of {param.name}, but is given {describe(value)}",
                    self.location,
                    "an int",
                )
            dims.append(value if isinstance(value, int) else dim)
        return tuple(dims)

    def default_types(self, constexprs: dict[str, object], divisor: int = 1) -> dict[str, Type]:
        """Return the types of the run-time parameters as annotated: dense row-major tensors, aligned pointers.

        Parameters
        ----------
        constexprs : dict
            Values of constexpr parameters.
        divisor : int
            What divides each extent that is known at launch only.

        Returns
        -------
        dict of str to Type
        """
        values = self.complete(constexprs)
        types: dict[str, Type] = {}
        for param in self.runtime_params:
            dtype = self.dtype_of(param, values)
            if param.kind == "scalar":
                types[param.name] = ScalarType(dtype)
            elif param.kind == "pointer":
                types[param.name] = PointerType(dtype, POINTER_ALIGN)
            else:
                dims = tuple(
                    dim if isinstance(dim, int) else Symbol(dim or f"{param.name}_d{axis}", divisor)
                    for axis, dim in enumerate(self.dims_of(param, values))
                )
                types[param.name] = GlobalType(dtype, dims, dense_strides(param.name, dims), POINTER_ALIGN)
        return types

    def trace(self, constexprs: dict[str, object], types: dict[str, Type], name: str | None = None) -> Kernel:
        """Translate the kernel to tile IR for one specialisation.

        Parameters
        ----------
        constexprs : dict
            Values of constexpr parameters; defaults are filled in.
        types : dict
            The type of each run-time parameter.
        name : str, optional
            The name of the entry point; the function's unless given.

        Returns
        -------
        Kernel
        """
        values = self.complete(constexprs)
        params = tuple(Value(types[param.name], param.name) for param in self.runtime_params)
        t = Tracer(name or entry_name(self.name), params)
        names: dict[str, object] = dict(values)
        names.update({param.name: value for param, value in zip(self.runtime_params, params, strict=True)})
        t.builder.loc = self.location
        frame = Frame(self.source, names)
        with t.entered(frame), t.region() as block:
            flow = t.execute(self.source.tree.body)
            if flow is Flow.NEXT:
                t.emit(ops.Return)
            body = t.close(block)
        if t.grid is None:
            raise SyntaxNotSupported(
                f"the kernel {self.name} does not say its grid",
                self.location,
                "tilus.grid(tilus.cdiv(n, block), warps=4) at its start",
            )
        cluster = t.cluster or (1, 1, 1)
        return Kernel(t.kernel_name, params, t.grid, body, t.warps, cluster, loc=self.location)


def dense_strides(name: str, dims: tuple[Extent, ...]) -> tuple[Extent, ...]:
    """Return the strides of a dense row-major tensor; one that is a product of names has a name of its own."""
    strides: list[Extent] = []
    step: Extent | None = 1
    divisor = 1
    for axis in reversed(range(len(dims))):
        strides.append(Symbol(f"{name}_s{axis}", divisor) if step is None else step)
        extent = dims[axis]
        divisor *= extent if isinstance(extent, int) else extent.divisor
        if step == 1:
            step = extent
        elif isinstance(step, int) and isinstance(extent, int):
            step *= extent
        elif extent != 1:
            step = None
    return tuple(reversed(strides))


def entry_name(name: str) -> str:
    """Return a function's name as PTX takes it, which knows ASCII only (PTX ISA, identifiers)."""
    written = "".join(letter if letter.isascii() else f"_{ord(letter):x}" for letter in name)
    return f"{written}_" if written in ("_", "WARP_SZ") else written


def read_params(source: FunctionSource) -> tuple[ParamSpec, ...]:
    """Read the annotations of a kernel's parameters."""
    arguments = source.tree.args
    for starred in (arguments.vararg, arguments.kwarg):
        if starred is not None:
            raise SyntaxNotSupported(
                f"a kernel takes no *{starred.arg}",
                source.location(starred),
                "a parameter for each tensor, or a constexpr list",
            )
    nodes = {a.arg: a for a in (*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs)}
    annotations = read_annotations(source, nodes)
    params = []
    for name, parameter in source.signature.parameters.items():
        place = source.location(nodes[name])
        if name not in annotations:
            if name in ("self", "cls"):
                raise TypeMismatch(
                    f"a kernel is no method, and has no {name}",
                    place,
                    f"the same without {name}, called as {source.function.__qualname__}(...)",
                )
            raise TypeMismatch(
                f"the parameter {name} has no annotation",
                place,
                f'{name}: tilus.Tensor[tilus.float16, "m k"], tilus.int32 or tilus.constexpr',
            )
        try:
            params.append(read_param(name, annotations[name], parameter.default))
        except TilusError as error:
            raise error.at(place) from None
    names = {p.name for p in params if p.kind == "constexpr"}
    for param in params:
        if isinstance(param.dtype, str) and param.dtype not in names:
            missing = f"{param.dtype}: tilus.constexpr among the parameters"
            raise NameNotFound(
                f"{param.name} has the dtype {param.dtype!r}, which is no constexpr parameter",
                source.location(nodes[param.name]),
                dtype_hint(param.dtype) or nearest(param.dtype, names) or missing,
            )
    return tuple(params)


def dtype_hint(name: str) -> str | None:
    """Return what to write for a text that names a dtype."""
    try:
        return f"Tensor[tilus.{dtype_named(name)}, ...], without quotes"
    except ValueError:
        return None


def read_annotations(source: FunctionSource, nodes: dict[str, ast.arg]) -> dict[str, Any]:
    """Return the annotations as objects, also where `from __future__ import annotations` makes them texts."""
    function = source.function
    names = {**enclosing_names(function), **source.closure}
    found = {}
    for name, annotation in function.__annotations__.items():
        if name not in nodes:
            continue
        single = FunctionType(
            function.__code__, function.__globals__, function.__name__, None, function.__closure__
        )
        single.__annotations__ = {name: annotation}
        try:
            found[name] = inspect.get_annotations(single, locals=names, eval_str=True)[name]
        except Exception as error:
            raise TypeMismatch(
                f"the annotation {annotation} raised {type(error).__name__}: {error}",
                source.location(nodes[name]),
                "names that the module, or the function around the kernel, defines",
            ) from None
    return found


def enclosing_names(function: FunctionType) -> dict[str, Any]:
    """Return the local names of the function that is defining a kernel just now; a text may read any of them."""
    path = function.__qualname__.split(".")
    if len(path) < 3 or path[-2] != "<locals>":
        return {}
    frame = inspect.currentframe()
    while frame is not None:
        code = frame.f_code
        if code.co_name == path[-3] and code.co_filename == function.__code__.co_filename:
            return dict(frame.f_locals)
        frame = frame.f_back
    return {}


def instead_of_none(name: str) -> str:
    """Return what to write for a tensor that may be None."""
    return (
        f"has_{name}: tilus.constexpr = True, and `if has_{name}:` around what reads it; where there is none, pass "
        "another that fits"
    )


def read_param(name: str, annotation: Any, default: Any) -> ParamSpec:
    """Read one parameter."""
    if annotation is constexpr:
        return ParamSpec(name, "constexpr", default=default)
    if isinstance(annotation, (TensorAnnotation, PointerAnnotation)):
        if default is not MISSING:
            hint = instead_of_none(name) if default is None else f"{name} without a default"
            raise TypeMismatch(f"{name} is memory, which has no default", hint=hint)
        if isinstance(annotation, PointerAnnotation):
            return ParamSpec(name, "pointer", annotation.read())
        return ParamSpec(name, "tensor", *annotation.read())
    if isinstance(annotation, EitherAnnotation) or get_origin(annotation) in (Union, UnionType):
        raise TypeMismatch(
            f"{name} is of one type or another, but a parameter has one type and is never None",
            hint=instead_of_none(name),
        )
    dtype = annotation if isinstance(annotation, DType) else None
    if isinstance(annotation, type):
        dtype = PYTHON_SCALARS.get(annotation)
    if dtype is None:
        raise TypeMismatch(
            f"{name} is annotated with {describe(annotation)}, which is no type of a parameter",
            hint='tilus.Tensor[tilus.float16, "m k"], tilus.Pointer[...], a dtype such as int32, or tilus.constexpr',
        )
    if not dtype.is_boolean and (
        dtype.bits < 8 or not (dtype.is_integer or dtype.bits >= 16) or dtype.name == "tfloat32"
    ):
        raise TypeMismatch(
            f"{name} is a {dtype}, which is no scalar parameter", hint="float32, int32 or a wider type"
        )
    return ParamSpec(name, "scalar", dtype, default=default)
