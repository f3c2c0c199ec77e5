"""Random arguments for a kernel, from the shapes and types that it declares."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from tilus.cli import UsageError, kernels
from tilus.dtypes import DType

if TYPE_CHECKING:
    from tilus.runtime.arguments import Declared
    from tilus.runtime.kernel import Kernel

_LARGEST_INTEGER = 127


def random_arguments(
    kernel: Kernel, constexprs: list[str], given: list[str], sizes: list[str], seed: int
) -> tuple[list[Any], dict[str, object]]:
    """Return run-time arguments with random contents, and constexpr values.

    Parameters
    ----------
    kernel : Kernel
        The kernel.
    constexprs, given, sizes : list of str
        What the command line says as NAME=VALUE: constexpr values; dtypes of tensors and values of scalars; and
        named dimensions.
    seed : int
        Of the random numbers.

    Returns
    -------
    list, dict
        Tensors hold numbers of the normal distribution; those of integers hold numbers from 0 to less than each
        of their kernel's dimensions, so that they can serve as indices.
    """
    from tilus.runtime.aot import parameters_for

    texts = kernels.read_pairs(given, "--arg")
    scalars = {param.name for param in kernel.source.runtime_params if param.kind == "scalar"}
    types = {name: text for name, text in texts.items() if name not in scalars}
    chosen = kernels.read_constexprs(constexprs)
    kernels.check_constexprs(kernel, chosen, types)
    values, declared = parameters_for(kernel, chosen, types, {})
    extents = kernels.read_sizes(sizes)
    _check_sizes(kernel, declared, extents)
    shapes = {p.name: _shape(p, extents) for p in declared if p.kind != "scalar"}
    bound = min([extent for shape in shapes.values() for extent in shape], default=1)
    generator = np.random.default_rng(seed)
    arguments: list[Any] = []
    defaults = {param.name: param.default for param in kernel.source.runtime_params if not param.required}
    for parameter in declared:
        if parameter.kind != "scalar":
            arguments.append(random_array(parameter.dtype, shapes[parameter.name], bound, generator))
        elif parameter.name in texts:
            arguments.append(kernels.read_value(texts[parameter.name], f"--arg {parameter.name}"))
        elif parameter.name in defaults:
            arguments.append(defaults[parameter.name])
        else:
            raise UsageError(
                f"the scalar {parameter.name} has no value, expected --arg {parameter.name}=NUMBER"
            )
    return arguments, {name: value for name, value in values.items() if name not in kernel.bound}


def _dimension(parameter: Declared, axis: int) -> str | int:
    from tilus.runtime.specialize import extent_name

    dim = parameter.dims[axis]
    return extent_name(parameter.name, axis) if dim is None else dim


def _names(parameter: Declared) -> list[str]:
    """The sizes that a parameter needs: of each dimension without one, or of what a pointer points to."""
    if parameter.kind == "pointer":
        return [parameter.name]
    dims = [_dimension(parameter, axis) for axis in range(len(parameter.dims))]
    return [dim for dim in dims if isinstance(dim, str)]


def _check_sizes(kernel: Kernel, declared: tuple[Declared, ...], extents: Mapping[str, int]) -> None:
    known = dict.fromkeys(name for p in declared if p.kind != "scalar" for name in _names(p))
    for name in extents:
        if name not in known:
            expected = ", ".join(known) or "none"
            raise UsageError(
                f"{kernel.source.name} has no dimension {name!r}; its dimensions are: {expected}"
            )
    missing = [name for name in known if name not in extents]
    if missing:
        options = " ".join(f"--size {name}=..." for name in missing)
        raise UsageError(f"{kernel.source.name} needs the size of {', '.join(missing)}, expected {options}")


def _shape(parameter: Declared, extents: Mapping[str, int]) -> tuple[int, ...]:
    if parameter.kind == "pointer":
        return (extents[parameter.name],)
    dims = [_dimension(parameter, axis) for axis in range(len(parameter.dims))]
    return tuple(extents[dim] if isinstance(dim, str) else dim for dim in dims)


def random_array(dtype: DType, shape: tuple[int, ...], bound: int, generator: np.random.Generator) -> Any:
    """Return random numbers of a type as a kernel takes them: an array, or a torch tensor where NumPy has no such type.

    Parameters
    ----------
    dtype : DType
        The type.
    shape : tuple of int
        Extents in elements; the last dimension of a type that no array has is packed into bytes.
    bound : int
        Integers are less than it.
    generator : numpy.random.Generator
        Where the numbers come from.
    """
    from tilus import dtypes
    from tilus.runtime.arguments import is_packed

    if dtype.name == "tfloat32":
        return generator.standard_normal(shape, np.float32)
    if dtype.is_boolean:
        return generator.integers(0, 2, shape).astype(bool)
    if dtype.is_integer:
        numbers: Any = generator.integers(0, min(bound, _LARGEST_INTEGER + 1, int(dtype.max) + 1), shape)
    else:
        numbers = generator.standard_normal(shape, np.float32)
    codes = dtypes.encode(numbers, dtype)
    if is_packed(dtype):
        return dtypes.pack(codes, dtype)
    plain = getattr(np, dtype.name, None)
    if plain is not None:
        return codes.view(plain)
    import torch

    signed = codes.view(f"i{codes.dtype.itemsize}")
    name = {"float8_e4m3": "float8_e4m3fn"}.get(dtype.name, dtype.name)
    return torch.from_numpy(signed).view(getattr(torch, name))
