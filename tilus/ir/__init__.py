"""The tile IR: structured SSA over tiles, with explicit memory."""

from tilus.ir.builder import Builder, make_region
from tilus.ir.core import OPCODES, Effect, Operation, Region, Value, schema, walk
from tilus.ir.kernel import Kernel
from tilus.ir.types import (
    BarrierType,
    Extent,
    GlobalType,
    PointerType,
    RegisterType,
    ScalarType,
    SharedType,
    Symbol,
    Type,
)

__all__ = [
    "OPCODES", "BarrierType", "Builder", "Effect", "Extent", "GlobalType", "Kernel", "Operation", "PointerType",
    "Region", "RegisterType", "ScalarType", "SharedType", "Symbol", "Type", "Value", "make_region", "schema", "walk",
]  # fmt: skip
