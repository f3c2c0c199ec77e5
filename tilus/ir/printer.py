"""Prints kernels and operations as text that the parser reads back; the schema of an operation says how."""

from __future__ import annotations

import json
import re
from typing import Any

from tilus.errors import Location
from tilus.ir.core import Operation, Region, Value, schema
from tilus.ir.kernel import Kernel
from tilus.ir.literals import format_list, format_literal

_FORBIDDEN = re.compile(r"[^A-Za-z0-9_.]")


def print_kernel(kernel: Kernel, locations: bool = False, types: bool = True) -> str:
    """Return a kernel as text.

    Parameters
    ----------
    kernel : Kernel
        What to print.
    locations : bool
        Print where in the user's source each operation comes from.
    types : bool
        Print the types of results; without them the parser infers what `infer` says.

    Returns
    -------
    str
        Text that `parse_kernel` reads. Values are called by their names, made unique, or numbered in order.
    """
    return _Printer(locations, types).kernel(kernel)


def print_op(operation: Operation, locations: bool = False, types: bool = True) -> str:
    """Return one operation, with its regions, as text; values defined outside are named as they come."""
    printer = _Printer(locations, types)
    printer.operation(operation, "")
    return "\n".join(printer.lines)


def format_location(location: Location) -> str:
    """Return a location with its chain of callers: `"file":line:column..end from ...`."""
    end = "" if location.end_column is None else f"..{location.end_column}"
    text = f"{json.dumps(location.file)}:{location.line}:{location.column}{end}"
    return text if location.caller is None else f"{text} from {format_location(location.caller)}"


def same_literal(a: Any, b: Any) -> bool:
    """Tell whether two attribute values have the same text; 1, 1.0 and True differ, as do 0.0 and -0.0."""
    return a is b or (type(a) is type(b) and a == b and (type(a) is not float or repr(a) == repr(b)))


class _Printer:
    def __init__(self, locations: bool, types: bool) -> None:
        self.locations = locations
        self.types = types
        self.lines: list[str] = []
        self.names: dict[Value, str] = {}
        self.taken: set[str] = set()
        self.count = 0

    def name(self, value: Value) -> str:
        """Return the value's name; a new one the first time."""
        found = self.names.get(value)
        if found is None:
            found = self.names[value] = "%" + self.unique(value.name)
        return found

    def unique(self, wanted: str) -> str:
        if not wanted:
            name, self.count = str(self.count), self.count + 1
            return name
        wanted = _FORBIDDEN.sub("_", wanted)
        # Numbers are for values without a name.
        if wanted[0].isdigit():
            wanted = f"_{wanted}"
        name, number = wanted, 0
        while name in self.taken:
            number += 1
            name = f"{wanted}_{number}"
        self.taken.add(name)
        return name

    def declare(self, values: tuple[Value, ...]) -> str:
        return ", ".join(f"{self.name(v)}: {v.type}" for v in values)

    def location(self, location: Location | None) -> str:
        return f" @ {format_location(location)}" if self.locations and location is not None else ""

    def kernel(self, kernel: Kernel) -> str:
        head = f"kernel @{kernel.name}({self.declare(kernel.params)}) warps={kernel.warps}"
        head += f" cluster={format_list(kernel.cluster)} shared={kernel.shared_bytes}"
        if kernel.notes:
            head += f" notes={format_literal(kernel.notes)}"
        self.lines.append(f"{head}{self.location(kernel.loc)} {{")
        for title, region in (("grid", kernel.grid), ("body", kernel.body)):
            self.region(f"  {title} ", region, "  ")
        self.lines.append("}")
        return "\n".join(self.lines) + "\n"

    def region(self, head: str, region: Region, indent: str) -> None:
        """Print a region whose first line starts with `head`; the last line is its closing brace."""
        self.lines.append(f"{head}({self.declare(region.args)}) {{" if region.args else f"{head}() {{")
        for operation in region.ops:
            self.operation(operation, indent + "  ")
        self.lines.append(indent + "}")

    def operation(self, operation: Operation, indent: str) -> None:
        operands: list[str] = []
        attributes: list[str] = []
        regions: list[Region] = []
        for name, role in schema(type(operation)):
            value = getattr(operation, name)
            if role == "operand":
                operands.append(self.name(value))
            elif role == "optional":
                operands.append("_" if value is None else self.name(value))
            elif role == "operands":
                operands.append(format_list(self.name(v) for v in value))
            elif role == "region":
                regions.append(value)
            elif not same_literal(value, type(operation).__dataclass_fields__[name].default):
                attributes.append(f"{name} = {format_literal(value)}")
        text = operation.opcode
        if operands:
            text += " " + ", ".join(operands)
        if attributes:
            text += " {" + ", ".join(attributes) + "}"
        # Results are named before the regions, so that numbers grow down the page.
        results = [self.name(v) for v in operation.results]
        if results:
            text = f"{', '.join(results)} = {text}"
        first = len(self.lines)
        for region in regions:
            if len(self.lines) == first:
                self.region(f"{indent}{text} ", region, indent)
            else:
                self.region(f"{self.lines.pop()} ", region, indent)
        last = self.lines.pop() if regions else indent + text
        if results and self.types:
            last += " : " + ", ".join(str(v.type) for v in operation.results)
        self.lines.append(last + self.location(operation.loc))
