"""The manifest of a package that was compiled ahead of time, read back as something to call."""

from __future__ import annotations

import hashlib
import json
import struct
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tilus import dtypes
from tilus.errors import LaunchError
from tilus.ir import GlobalType, PointerType, ScalarType, Symbol
from tilus.runtime import dynamo, host_expression
from tilus.runtime.aot import ABI_VERSION, capabilities
from tilus.runtime.arguments import Array, Declared, Operand, bind, check_scalar, read_array
from tilus.runtime.binary import Binary
from tilus.runtime.cache import resources_from_json
from tilus.runtime.host_expression import Expression, evaluator, leaves
from tilus.runtime.plans import PlanTable
from tilus.runtime.signature import ParameterType, Signature


@dataclass(frozen=True)
class LoadedVariant:
    """A variant of a package: when it is taken, and its code by target."""

    condition: Expression
    comment: str
    binaries: Mapping[str, Binary]

    @property
    def types(self) -> tuple[ParameterType, ...]:
        """What its code relies on."""
        return next(iter(self.binaries.values())).signature.types


class LoadedKernel:
    """A kernel that was compiled ahead of time: call it with tensors and numbers, in order or by name.

    Attributes
    ----------
    name : str
        Its name.
    parameters : tuple of Declared
        What it takes.
    variants : tuple of LoadedVariant
        What was compiled; a launch takes the first that fits.
    """

    def __init__(
        self, name: str, parameters: tuple[Declared, ...], variants: tuple[LoadedVariant, ...]
    ) -> None:
        self.name = name
        self.parameters = parameters
        self.variants = variants
        memory = [i for i, parameter in enumerate(parameters) if parameter.kind != "scalar"]
        scalars = [i for i, parameter in enumerate(parameters) if parameter.kind == "scalar"]
        self._plans = PlanTable(memory, scalars)
        # Plans are recognised by tensors alone.
        self._keeps_plans = not any(
            kind == "scalar" for variant in variants for kind, _ in leaves(variant.condition)
        )
        self._functions: dict[tuple[int, int], Any] = {}
        self._lock = threading.Lock()
        dynamo.calls(LoadedKernel.__call__)

    def __repr__(self) -> str:
        return f"<kernel {self.name} with {len(self.variants)} variants, compiled ahead of time>"

    def __copy__(self) -> LoadedKernel:
        return self

    def __deepcopy__(self, memo: object) -> LoadedKernel:
        # A kernel is a value: a module that holds one is copied with the same kernel.
        return self

    def __call__(self, *args: Any, **named: Any) -> None:
        """Launch, on the GPU or, with CPU tensors, on the simulator."""
        if not named:
            try:
                if self._plans.launch(args, named):
                    return
            except (struct.error, OverflowError, TypeError, ValueError, AttributeError):
                # What is wrong with an argument is found and said below.
                pass
        self._launch(args, named, run=True)

    def prepare(self, *args: Any, **named: Any) -> None:
        """Load the code that a call with these arguments needs, without launching."""
        self._launch(args, named, run=False)

    def _launch(self, args: tuple[Any, ...], named: Mapping[str, Any], run: bool) -> None:
        try:
            values = self._sorted(args, named)
            arrays = [
                None if parameter.kind == "scalar" else read_array(parameter.name, value)
                for parameter, value in zip(self.parameters, values, strict=True)
            ]
            operands, sizes = bind(self.parameters, arrays)
            values = [
                check_scalar(parameter, value) if parameter.kind == "scalar" else value
                for parameter, value in zip(self.parameters, values, strict=True)
            ]
            number = self._choose(arrays, operands, sizes, values)
        except LaunchError as error:
            raise LaunchError(f"{self.name}: {error.message}", error.location, error.hint) from None
        device = next((array.device for array in arrays if array is not None), -1)
        if device < 0:
            self._simulate(number, operands, values, run)
        else:
            self._launch_on_gpu(number, device, args, arrays, operands, values, run)

    def _sorted(self, args: tuple[Any, ...], named: Mapping[str, Any]) -> list[Any]:
        names = [parameter.name for parameter in self.parameters]
        if len(args) > len(names):
            raise LaunchError(f"{len(args)} arguments were given, expected {len(names)}: {', '.join(names)}")
        for name in named:
            if name not in names:
                raise LaunchError(f"there is no parameter {name!r}", hint="one of " + ", ".join(names))
            if name in names[: len(args)]:
                raise LaunchError(f"{name} is given twice, by position and by name")
        values = list(args)
        for parameter in self.parameters[len(args) :]:
            if parameter.name not in named:
                raise LaunchError(f"there is no argument for {parameter.name}, expected {parameter}")
            values.append(named[parameter.name])
        return values

    def _choose(
        self,
        arrays: list[Array | None],
        operands: list[Operand | None],
        sizes: Mapping[str, int],
        values: list[Any],
    ) -> int:
        """Return the number of the first variant that fits."""
        environment = {("size", name): value for name, value in sizes.items()}
        for parameter, operand, value in zip(self.parameters, operands, values, strict=True):
            if parameter.kind == "scalar" and not parameter.dtype.is_float:
                environment["scalar", parameter.name] = value
            if operand is not None:
                for axis, (extent, stride) in enumerate(zip(operand.shape, operand.strides, strict=True)):
                    environment.setdefault(("size", f"{parameter.name}_d{axis}"), extent)
                    environment.setdefault(("size", f"{parameter.name}_s{axis}"), stride)
        for number, variant in enumerate(self.variants):
            if _fits(variant.types, arrays, operands, environment) and _holds(variant.condition, environment):
                return number
        raise LaunchError(
            "no variant was compiled for such strides, alignments, sizes or scalars",
            hint="one of these: " + "; ".join(variant.comment for variant in self.variants),
        )

    def _simulate(self, number: int, operands: list[Operand | None], values: list[Any], run: bool) -> None:
        from tilus.runtime import simulate

        binaries = self.variants[number].binaries
        binary = binaries.get(simulate.default_target()) or next(iter(binaries.values()))
        if not run:
            simulate.load(binary.ptx)
            return
        report = simulate.launch(binary, operands, values, checks=simulate.checks_wanted())
        if report is not None:
            simulate.finish(report)

    def _launch_on_gpu(
        self,
        number: int,
        device: int,
        args: tuple[Any, ...],
        arrays: list[Array | None],
        operands: list[Operand | None],
        values: list[Any],
        run: bool,
    ) -> None:
        import torch

        from tilus.runtime.cuda import is_capturing, load_binary, make_plan

        with self._lock:
            found = self._functions.get((number, device))
            if found is None:
                if run and is_capturing():
                    raise LaunchError(
                        f"{self.name} is not loaded for these arguments, and a CUDA graph is being captured",
                        hint=f"{self.name}.prepare(...) with the same arguments before the capture",
                    )
                binary, image = self._image(number, device)
                found = self._functions[number, device] = (load_binary(binary, device, image), binary)
        loaded, binary = found
        plan = make_plan(binary, operands, loaded, torch)
        if self._keeps_plans:
            self._plans.keep(plan, args, {})
        if run:
            pointers = [array.pointer for array in arrays if array is not None]
            plan.run(pointers, [value for value, array in zip(values, arrays, strict=True) if array is None])

    def _image(self, number: int, device: int) -> tuple[Binary, bytes]:
        """Return the code for a device: a cubin, or PTX that the driver assembles."""
        from tilus.runtime import driver

        major, minor = driver.capability(device)
        binaries = sorted(
            self.variants[number].binaries.values(), key=lambda b: capabilities(b.target, False), reverse=True
        )
        for is_ptx in (False, True):
            for binary in binaries:
                first, last = capabilities(binary.target, is_ptx)
                image = binary.ptx.encode() + b"\0" if is_ptx else binary.cubin
                if image is not None and first <= 10 * major + minor <= last:
                    return binary, image
        targets = ", ".join(binary.target for binary in binaries)
        raise LaunchError(
            f"{self.name} is compiled for {targets}, and the device has capability {major}.{minor}"
        )


def _fits(
    types: tuple[ParameterType, ...],
    arrays: list[Array | None],
    operands: list[Operand | None],
    environment: Mapping[tuple[str, str], int],
) -> bool:
    """Tell whether arguments have what a variant's code relies on."""
    for type, array, operand in zip(types, arrays, operands, strict=True):
        if isinstance(type, PointerType):
            assert array is not None
            if array.pointer % type.align:
                return False
        if isinstance(type, GlobalType):
            assert operand is not None
            if operand.pointer % type.align:
                return False
            extents = (*zip(type.dims, operand.shape), *zip(type.strides, operand.strides))
            for extent, value in extents:
                if isinstance(extent, Symbol):
                    if environment["size", extent.name] != value or value % extent.divisor:
                        return False
                elif extent != value:
                    return False
    return True


def _holds(condition: Expression, environment: Mapping[tuple[str, str], int]) -> bool:
    try:
        return bool(evaluator(condition)(environment))
    except ZeroDivisionError:
        return False


def load_manifest(path: str | Path) -> LoadedKernel:
    """Read a package that `tilus compile` wrote.

    Parameters
    ----------
    path : path
        The `.json` file; the code lies beside it.

    Returns
    -------
    LoadedKernel
        To be called with tensors and numbers. Neither the kernel's source nor the compiler is needed.
    """
    file = Path(path)
    try:
        data = json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise LaunchError(f"the manifest {file} cannot be read: {error.strerror or error}") from None
    except ValueError as error:
        raise LaunchError(f"{file} is no manifest: {error}") from None
    if not isinstance(data, dict) or "abi" not in data:
        raise LaunchError(f"{file} is no manifest of tilus")
    if data["abi"] != ABI_VERSION:
        raise LaunchError(
            f"{file} has ABI version {data['abi']}, expected {ABI_VERSION}",
            hint="compile it again with this version of tilus",
        )
    try:
        parameters = tuple(
            Declared(str(p["name"]), str(p["kind"]), dtypes.dtype(str(p["dtype"])), tuple(p["dims"]))
            for p in data["parameters"]
        )
        variants = tuple(_variant(file, variant, parameters) for variant in data["variants"])
        if not variants:
            raise ValueError("it has no variants")
        return LoadedKernel(str(data["name"]), parameters, variants)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise LaunchError(f"{file} is no manifest of tilus: {error!r}") from None


def _variant(manifest: Path, data: dict[str, Any], parameters: tuple[Declared, ...]) -> LoadedVariant:
    binaries = {}
    for image in data["images"]:
        signature = Signature.from_json(image["signature"])
        _check_signature(signature, parameters)
        ptx = _read(manifest, image["ptx"])
        cubin = _read(manifest, image["cubin"]) if "cubin" in image else None
        target = str(image["target"])
        resources = resources_from_json(image["resources"])
        binaries[target] = Binary(signature, target, ptx.decode(), cubin, resources)
    if not binaries:
        raise ValueError("a variant has no code")
    condition = host_expression.from_json(data["condition"])
    scalars = {parameter.name for parameter in parameters if parameter.kind == "scalar"}
    if any(kind == "scalar" and name not in scalars for kind, name in leaves(condition)):
        raise ValueError("a condition reads what is no parameter")
    return LoadedVariant(condition, str(data["comment"]), binaries)


def _check_signature(signature: Signature, parameters: tuple[Declared, ...]) -> None:
    kinds = {GlobalType: "tensor", PointerType: "pointer", ScalarType: "scalar"}
    found = [
        (name, kinds[type(kind)], kind.dtype)
        for name, kind in zip(signature.names, signature.types, strict=True)
    ]
    if found != [(parameter.name, parameter.kind, parameter.dtype) for parameter in parameters]:
        raise ValueError("a variant has other parameters than the package")


def _read(manifest: Path, entry: dict[str, Any]) -> bytes:
    """Return a file beside the manifest after comparing its checksum."""
    name = str(entry["file"])
    if Path(name).name != name:
        raise ValueError(f"{name!r} is no file beside the manifest")
    path = manifest.parent / name
    try:
        data = path.read_bytes()
    except OSError as error:
        raise LaunchError(f"{path} cannot be read: {error.strerror or error}") from None
    if hashlib.sha256(data).hexdigest() != entry["sha256"]:
        raise LaunchError(f"{path} is not the file that the manifest was written with: the checksums differ")
    return data
