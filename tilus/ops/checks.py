"""Checks of what the library's functions are called with, made from their own annotations."""

from __future__ import annotations

import functools
import inspect
import types
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass
from typing import Any, ParamSpec, TypeVar, Union, get_args, get_origin, get_type_hints

import numpy as np
import torch

from tilus.dtypes import DType
from tilus.errors import ShapeMismatch, TypeMismatch

P = ParamSpec("P")
R = TypeVar("R")

# What an annotation takes beside its own type. Sizes and numbers of a graph that torch compiles are symbols.
ACCEPTED: dict[Any, tuple[type, ...]] = {
    int: (int, np.integer, torch.SymInt),
    tuple: (tuple, list, torch.Size),
    float: (float, int, np.floating, np.integer, torch.SymFloat, torch.SymInt),
    bool: (bool, np.bool_),
    type(None): (type(None),),
}
WORDS: dict[Any, str] = {
    torch.Tensor: "a tensor", int: "an integer", float: "a number", bool: "True or False", str: "a string",
    torch.dtype: "a torch.dtype", type(None): "None", np.ndarray: "a NumPy array", torch.nn.Module: "a module",
    torch.nn.Linear: "a torch.nn.Linear", Sequence: "a list", Mapping: "a dictionary", Callable: "a function",
}  # fmt: skip


@dataclass(frozen=True)
class Parameter:
    """What a parameter takes: the classes of its annotation, all of them if there are none.

    Of sequences the elements are of a class, and as many as `length` says.
    """

    name: str
    annotations: tuple[Any, ...]
    classes: tuple[type, ...]
    element: Any = None
    length: int | None = None


def checked(function: Callable[P, R]) -> Callable[P, R]:
    """Check a function's arguments: of the kinds that are annotated, and all tensors on one device.

    Raises
    ------
    TypeMismatch
        From the function that is returned: one sentence, and what to write instead.
    """
    named, shown = _parameters(function), name_of(function)
    classes_of = {name: parameter.classes for name, parameter in named.items()}
    classes, dense = tuple(classes_of.values()), torch.strided
    holders = _holders(named.values())

    # Each launch of an op passes here: what is right is found out with as few steps as can be.
    @functools.wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        device = None
        for value, kinds in zip(args, classes):
            if kinds and not isinstance(value, kinds):
                break
            if holders and type(value) in holders:
                value = getattr(value, holders[type(value)])
            if isinstance(value, torch.Tensor):
                if device is None:
                    device = value.device
                elif value.device != device:
                    break
                if value.layout is not dense:
                    break
        else:
            for name, value in kwargs.items():
                kinds = classes_of.get(name, ())
                if kinds and not isinstance(value, kinds):
                    break
                if holders and type(value) in holders:
                    value = getattr(value, holders[type(value)])
                if isinstance(value, torch.Tensor) and (value.device != device or value.layout is not dense):
                    break
            else:
                return function(*args, **kwargs)
        given = _given(named, args, kwargs)
        _check_kinds(shown, given)
        tensors = _tensors(given, holders)
        _check_layouts(shown, tensors)
        _check_devices(shown, tensors)
        return function(*args, **kwargs)

    return call


def checked_values(function: Callable[P, R]) -> Callable[P, R]:
    """Check a function's arguments as `checked` does, for one that reads tensors' values, on whatever devices."""
    named, shown = _parameters(function), name_of(function)
    holders = _holders(named.values())

    @functools.wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        given = _given(named, args, kwargs)
        _check_kinds(shown, given)
        tensors = _tensors(given, holders)
        _check_layouts(shown, tensors)
        _check_values(shown, tensors)
        return function(*args, **kwargs)

    return call


def only_number(name: str, value: float | torch.Tensor) -> float:
    """Return a number that may be given as a tensor of one element."""
    if isinstance(value, torch.Tensor) and value.numel() != 1:
        raise ShapeMismatch(
            f"{name} has shape {tuple(value.shape)}, expected a number or a tensor of one element"
        )
    return float(value)


def name_of(function: Callable[..., Any]) -> str:
    """Return a function's name as users call it."""
    return function.__qualname__.removesuffix(".__init__")


def _given(
    named: Mapping[str, Parameter], args: Sequence[Any], kwargs: Mapping[str, Any]
) -> list[tuple[Parameter, Any]]:
    return [*zip(named.values(), args), *((named[n], value) for n, value in kwargs.items() if n in named)]


def _check_kinds(function: str, given: Sequence[tuple[Parameter, Any]]) -> None:
    for parameter, value in given:
        if parameter.classes and not isinstance(value, parameter.classes):
            expected = [WORDS.get(kind) or f"a {kind.__name__}" for kind in parameter.annotations]
            raise TypeMismatch(
                f"{function}: {parameter.name} is {described(value)}, expected {' or '.join(expected)}",
                hint=_other_way_round(parameter, value, given) or _instead(parameter, value),
            )
        if parameter.element is not None and not isinstance(value, (torch.Tensor, type(None))):
            _check_elements(function, parameter, value)


def _other_way_round(
    parameter: Parameter, value: object, given: Sequence[tuple[Parameter, Any]]
) -> str | None:
    """Return a hint where an argument and another one would fit if they were exchanged."""
    for other, second in given:
        if isinstance(value, other.classes) and isinstance(second, parameter.classes):
            if not isinstance(second, other.classes):
                return f"{parameter.name} and {other.name} the other way round"
    return None


def _check_elements(function: str, parameter: Parameter, value: Any) -> None:
    kinds = ACCEPTED.get(parameter.element, (parameter.element,))
    word = WORDS.get(parameter.element) or f"a {parameter.element.__name__}"
    if parameter.length not in (None, len(value)):
        raise ShapeMismatch(
            f"{function}: {parameter.name} has {len(value)} elements, expected {parameter.length}, each {word}"
        )
    for element in value:
        if not isinstance(element, kinds):
            raise TypeMismatch(
                f"{function}: {parameter.name} holds {described(element)}, expected {word} at each place"
            )


def _tensors(
    given: Sequence[tuple[Parameter, Any]], holders: Mapping[type, str]
) -> list[tuple[str, torch.Tensor]]:
    found = []
    for parameter, value in given:
        tensor = getattr(value, holders[type(value)]) if type(value) in holders else value
        if isinstance(tensor, torch.Tensor):
            found.append((parameter.name, tensor))
    return found


def _check_devices(function: str, tensors: Sequence[tuple[str, torch.Tensor]]) -> None:
    for name, tensor in tensors[1:]:
        first, other = tensors[0]
        if tensor.device != other.device:
            raise TypeMismatch(
                f"{function}: {first} is on {other.device}, but {name} on {tensor.device}",
                hint=f"{name}.to({str(other.device)!r})",
            )


def _check_layouts(function: str, tensors: Sequence[tuple[str, torch.Tensor]]) -> None:
    for name, tensor in tensors:
        if tensor.layout is not torch.strided:
            raise TypeMismatch(
                f"{function}: {name} has the layout {tensor.layout}, expected a dense tensor",
                hint=f"{name}.to_dense()",
            )


def _check_values(function: str, tensors: Sequence[tuple[str, torch.Tensor]]) -> None:
    for name, tensor in tensors:
        if tensor.device.type == "meta":
            raise TypeMismatch(
                f"{function}: {name} is on the meta device, where tensors have no values",
                hint="a tensor on the CPU or on a GPU",
            )


def _parameters(function: Callable[..., Any]) -> dict[str, Parameter]:
    """Return the parameters that have annotations, in order; `self` and `cls` too, which take anything."""
    code = function.__code__
    # What is returned may be a class that is not whole yet.
    texts = {name: text for name, text in function.__annotations__.items() if name != "return"}
    hints = get_type_hints(types.SimpleNamespace(__annotations__=texts), globalns=function.__globals__)
    found = {}
    for name in code.co_varnames[: code.co_argcount + code.co_kwonlyargcount]:
        annotation = hints.get(name, Any)
        parts = get_args(annotation) if get_origin(annotation) in (Union, types.UnionType) else (annotation,)
        element, length = None, None
        for part in parts:
            if get_origin(part) in (Sequence, tuple):
                inner = get_args(part)
                element, length = inner[0], len(inner) if get_origin(part) is tuple else None
        parts = tuple(get_origin(part) or part for part in parts)
        # A dtype may be said in many ways, which `tilus.dtypes.dtype` knows.
        free = Any in parts or (DType in parts and str in parts)
        classes = () if free else tuple(c for part in parts for c in ACCEPTED.get(part, (part,)))
        found[name] = Parameter(name, parts, classes, element, length)
    return found


def _holders(parameters: Iterable[Parameter]) -> dict[type, str]:
    """Return, of classes whose objects hold tensors, the name of the first one."""
    found = {}
    for parameter in parameters:
        for kind in parameter.annotations:
            if isinstance(kind, type) and is_dataclass(kind):
                tensors = [
                    field.name for field in fields(kind) if field.type in ("torch.Tensor", torch.Tensor)
                ]
                if tensors:
                    found[kind] = tensors[0]
    return found


def described(value: object) -> str:
    """Return what a value is, in the words of an error."""
    if value is None or isinstance(value, (bool, int, float, str, DType, torch.dtype)):
        return repr(value)
    for kind in (torch.Tensor, np.ndarray):
        if isinstance(value, kind):
            return WORDS[kind]
    if inspect.isroutine(value):
        return "a function"
    name = type(value).__name__
    return f"{'an' if name[0] in 'aeiouAEIO' else 'a'} {name}"


def _instead(parameter: Parameter, value: object) -> str | None:
    """Return what to write instead of a value, where that can be told."""
    name, wanted = parameter.name, parameter.annotations
    kinds = {getattr(kind, "__name__", "") for kind in wanted}
    if torch.Tensor in wanted:
        if isinstance(value, np.ndarray):
            return f"torch.from_numpy({name})"
        if isinstance(value, (int, float, list, tuple)):
            return f"torch.tensor({name})"
    if isinstance(value, torch.Tensor):
        if "QuantizedWeight" in kinds:
            return f'tilus.ops.quantize({name}, "uint4")'
        if "QuantizedExperts" in kinds:
            return 'tilus.ops.stack_experts([tilus.ops.quantize(matrix, "uint4") for matrix in ...])'
        if "Routing" in kinds:
            return "tilus.ops.sort_by_expert(ids, experts, block)"
        if int in wanted or float in wanted:
            return f"{name}.item()"
        if np.ndarray in wanted:
            return f"{name}.cpu().numpy()"
    if torch.dtype in wanted and isinstance(value, (str, DType)):
        found = getattr(torch, str(value).removeprefix("torch."), None)
        return str(found) if isinstance(found, torch.dtype) else "a type of torch, such as torch.float16"
    if DType in wanted and isinstance(value, (str, torch.dtype)):
        return f"tilus.dtypes.dtype({name})"
    if "QuantizedExperts" in kinds and type(value).__name__ == "QuantizedWeight":
        return f"tilus.ops.stack_experts([{name}, ...])"
    if (
        int in wanted
        and isinstance(value, (str, float))
        and str(value).replace(".0", "").lstrip("-").isdigit()
    ):
        return f"{name}={int(float(value))}"
    return None
