"""What a launch of one compiled kernel passes and what it needs: plain data, kept beside the machine code.

It is taken from the tile IR once, and is all that launching, the disk cache, the manifest and the C output read.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from tilus import dtypes
from tilus.codegen.compiler import Compiled
from tilus.codegen.lower.hopper import TensorMap
from tilus.codegen.target import target
from tilus.dtypes import DType
from tilus.errors import LaunchError
from tilus.ir import Extent, GlobalType, PointerType, ScalarType, Symbol, ops, walk
from tilus.runtime import host_expression, tensor_maps
from tilus.runtime.host_expression import Expression

ParameterType = GlobalType | PointerType | ScalarType


@dataclass(frozen=True)
class Size:
    """An extent (int32) or stride (int64, in elements) that a launch passes after the parameters.

    Attributes
    ----------
    name : str
        Its name in the types of the parameters.
    parameter : int
        The parameter from which a launch reads it.
    kind : str
        "dim" or "stride".
    axis : int
        Dimension of the parameter.
    """

    name: str
    parameter: int
    kind: str
    axis: int


@dataclass(frozen=True)
class Signature:
    """What a launch passes and needs.

    Attributes
    ----------
    name : str
        Entry point.
    names : tuple of str
        Names of the parameters.
    types : tuple of ParameterType
        Their types, which say what the code relies on: fixed extents and strides, divisors, alignment.
    sizes : tuple of Size
        What is passed after them.
    grid : tuple of Expression
        The three grid extents.
    threads : int
        Threads of a block.
    cluster : tuple of int
        Blocks of a cluster, along x, y and z.
    shared_bytes : int
        Dynamic shared memory of a block.
    tensor_maps : tuple of TensorMap
        What is passed last, 128 bytes each.
    overlaps : bool
        Whether the launch may begin before the one before it in the stream has ended, for which the kernel waits.
    """

    name: str
    names: tuple[str, ...]
    types: tuple[ParameterType, ...]
    sizes: tuple[Size, ...]
    grid: tuple[Expression, Expression, Expression]
    threads: int
    cluster: tuple[int, int, int]
    shared_bytes: int
    tensor_maps: tuple[TensorMap, ...] = ()
    overlaps: bool = False

    @classmethod
    def of(cls, compiled: Compiled) -> Signature:
        """Return the signature of a compiled kernel."""
        kernel = compiled.kernel
        types: list[ParameterType] = []
        for param in kernel.params:
            assert isinstance(param.type, (GlobalType, PointerType, ScalarType))
            types.append(param.type)
        sizes = tuple(
            Size(symbol.name, kernel.params.index(param), kind, axis)
            for symbol, param, kind, axis in kernel.symbols()
        )
        return cls(
            kernel.name,
            tuple(param.name for param in kernel.params),
            tuple(types),
            sizes,
            host_expression.grid_of(kernel),
            kernel.threads,
            kernel.cluster,
            kernel.shared_bytes,
            compiled.tensor_maps,
            target(compiled.target).has("dependent_launch")
            and any(isinstance(op, ops.WaitForPrevious) for op in walk(kernel.body)),
        )

    def to_json(self) -> dict[str, Any]:
        """Return the signature as JSON values."""
        return {
            "name": self.name,
            "parameters": [
                {"name": name, **type_to_json(type)}
                for name, type in zip(self.names, self.types, strict=True)
            ],
            "sizes": [[size.name, size.parameter, size.kind, size.axis] for size in self.sizes],
            "grid": [host_expression.to_json(extent) for extent in self.grid],
            "threads": self.threads,
            "cluster": list(self.cluster),
            "shared_bytes": self.shared_bytes,
            "tensor_maps": [tensor_maps.to_json(wanted) for wanted in self.tensor_maps],
            "overlaps": self.overlaps,
        }

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Signature:
        """Return the signature that `to_json` wrote; anything else is a LaunchError."""
        try:
            x, y, z = (host_expression.from_json(extent) for extent in data["grid"])
            cluster = tuple(int(extent) for extent in data["cluster"])
            if len(cluster) != 3:
                raise ValueError("a cluster has three extents")
            return cls(
                str(data["name"]),
                tuple(str(parameter["name"]) for parameter in data["parameters"]),
                tuple(type_from_json(parameter) for parameter in data["parameters"]),
                tuple(Size(str(n), int(p), str(k), int(a)) for n, p, k, a in data["sizes"]),
                (x, y, z),
                int(data["threads"]),
                (cluster[0], cluster[1], cluster[2]),
                int(data["shared_bytes"]),
                tuple(tensor_maps.from_json(wanted, data["parameters"]) for wanted in data["tensor_maps"]),
                # A package from before has no kernel that overlaps.
                bool(data.get("overlaps", False)),
            )
        except (KeyError, TypeError, ValueError) as error:
            raise LaunchError(f"this is no description of a kernel: {error!r}") from None


def type_to_json(type: ParameterType) -> dict[str, Any]:
    """Return the type of a parameter as JSON values."""
    if isinstance(type, ScalarType):
        return {"kind": "scalar", "dtype": type.dtype.name}
    if isinstance(type, PointerType):
        return {"kind": "pointer", "dtype": type.dtype.name, "align": type.align}
    return {
        "kind": "tensor",
        "dtype": type.dtype.name,
        "dims": [_extent_to_json(extent) for extent in type.dims],
        "strides": [_extent_to_json(extent) for extent in type.strides],
        "align": type.align,
    }


def type_from_json(data: dict[str, Any]) -> ParameterType:
    """Return the type that `type_to_json` wrote."""
    dtype = dtypes.dtype(str(data["dtype"]))
    if data["kind"] == "scalar":
        return ScalarType(dtype)
    if data["kind"] == "pointer":
        return PointerType(dtype, int(data["align"]))
    if data["kind"] != "tensor":
        raise ValueError(f"no kind of parameter named {data['kind']!r}")
    dims = tuple(_extent_from_json(extent) for extent in data["dims"])
    strides = tuple(_extent_from_json(extent) for extent in data["strides"])
    if len(dims) != len(strides):
        raise ValueError("a tensor has as many strides as dimensions")
    return GlobalType(dtype, dims, strides, int(data["align"]))


def _extent_to_json(extent: Extent) -> Any:
    return [extent.name, extent.divisor] if isinstance(extent, Symbol) else extent


def _extent_from_json(data: Any) -> Extent:
    if isinstance(data, list):
        name, divisor = data
        return Symbol(str(name), int(divisor))
    return int(data)


def scalar_format(dtype: DType) -> str:
    """Return how a scalar parameter lies in memory, as a `struct` format; bfloat16 is passed as its bits."""
    if dtype.is_boolean:
        return "B"
    if dtype.name == "bfloat16":
        return "H"
    if dtype.is_float:
        formats = {16: "e", 32: "f", 64: "d"}
    else:
        formats = {8: "b", 16: "h", 32: "i", 64: "q"}
    code = formats.get(dtype.bits)
    if code is None or dtype.is_table:
        raise LaunchError(
            f"{dtype} cannot be the type of a scalar parameter",
            hint="boolean, or an integer or float of 16 to 64 bits",
        )
    return code if dtype.is_float or dtype.is_signed else code.upper()
