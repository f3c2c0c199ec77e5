"""Lowering of a whole kernel to the text of an LLVM module."""

from __future__ import annotations

from tilus.codegen.llvm_text import V, Writer, integer
from tilus.codegen.lower import (  # noqa: F401
    atomics,
    cluster,
    control,
    debug,
    dot,
    elementwise,
    exchange,
    hopper,
    random,
    scalar,
    scan,
    shared_memory,
    sort,
    tile,
)
from tilus.codegen.lower.context import Context, GlobalTensor
from tilus.codegen.lower.hopper import TensorMap
from tilus.codegen.registers import llvm_type
from tilus.codegen.target import Target
from tilus.dtypes import DType
from tilus.errors import ResourceExceeded, TargetNotSupported
from tilus.ir.kernel import Kernel
from tilus.ir.types import Extent, GlobalType, PointerType, ScalarType, Symbol
from tilus.passes.divisibility import facts

MAX_WARPS = 32


def lower_kernel(kernel: Kernel, target: Target) -> tuple[str, tuple[TensorMap, ...]]:
    """Return the LLVM IR of a kernel whose layouts are inferred and whose shared memory is planned.

    With it come the tensor maps that a launch passes by value, 128 bytes each, after all other parameters.
    """
    if not 1 <= kernel.warps <= MAX_WARPS:
        raise ResourceExceeded(
            f"a block has {kernel.warps} warps, but 1 to {MAX_WARPS} are possible", kernel.loc
        )
    if kernel.shared_bytes > target.shared_bytes:
        raise ResourceExceeded(
            f"{kernel.name} needs {kernel.shared_bytes} bytes of shared memory, but {target.name} has "
            f"{target.shared_bytes} for a block",
            kernel.loc,
            hint="use smaller tiles or fewer stages",
        )
    if kernel.cluster != (1, 1, 1) and not target.has("cluster"):
        raise TargetNotSupported(
            f"{target.name} has no thread-block clusters", kernel.loc, hint="leave out cluster="
        )
    control.check_register_budgets(kernel)
    from tilus import __version__

    writer = Writer(f"tilus {__version__}")
    ctx = Context(kernel, target, writer, facts(kernel))
    if kernel.loc is not None:
        ctx.scope = writer.subprogram(kernel.name, kernel.loc.file, kernel.loc.line)
        writer.locate(kernel.loc, ctx.scope)
        writer.entry_debug = writer.debug
    signature = _bind_parameters(ctx)
    ctx.region(kernel.body)
    writer.begin(ctx.exit)
    writer.leave()
    attributes = [f'"nvvm.maxntid"="{kernel.threads}"', '"denormal-fp-math"="ieee,ieee"', "nounwind"]
    if control.budgets(kernel):
        # Without it the assembler does not know the registers at entry, and ignores setmaxnreg.
        attributes.append('"nvvm.minctasm"="1"')
    if kernel.cluster != (1, 1, 1):
        attributes.append('"nvvm.cluster_dim"="{},{},{}"'.format(*kernel.cluster))
    scope = f" !dbg !{ctx.scope}" if ctx.scope is not None else ""
    header = "@tilus_shared = external addrspace(3) global [0 x i8], align 1024"
    # Declared last, when all are known; PTX takes their addresses by name.
    signature += [f"ptr byval([128 x i8]) align 64 %m{i}" for i in range(len(ctx.tensor_maps))]
    text = f"define ptx_kernel void @{kernel.name}({', '.join(signature)}) {' '.join(attributes)}{scope}"
    return writer.module(header, text), tuple(ctx.tensor_maps)


def _parameter_type(dtype: DType) -> str:
    """Return the LLVM type in which a scalar is passed: an integer of its size in memory, or a float."""
    if dtype.is_float and dtype.bits >= 32:
        return llvm_type(dtype)
    return f"i{max(8, dtype.bits)}"


def _from_parameter(w: Writer, dtype: DType, value: V) -> V:
    """Return a passed scalar in the LLVM type in which it is computed."""
    if dtype.kind == "bool":
        return w.icmp("ne", value, integer(0, 8))
    if dtype.is_integer:
        return w.convert("sext" if dtype.is_signed else "zext", value, llvm_type(dtype))
    return w.convert("bitcast", value, llvm_type(dtype))


def _bind_parameters(ctx: Context) -> list[str]:
    """Give parameters and sizes their LLVM values; return the signature."""
    signature: list[str] = []
    sizes: dict[str, V] = {}
    for number, param in enumerate(ctx.kernel.params):
        name = f"%p{number}"
        if isinstance(param.type, ScalarType):
            type = _parameter_type(param.type.dtype)
            signature.append(f"{type} {name}")
            with ctx.w.at_entry():
                ctx.values[param] = _from_parameter(ctx.w, param.type.dtype, V(type, name))
        else:
            assert isinstance(param.type, (GlobalType, PointerType))
            signature.append(f"ptr addrspace(1) align {max(1, param.type.align)} {name}")
            if isinstance(param.type, PointerType):
                ctx.values[param] = V("ptr addrspace(1)", name)
    for number, (symbol, _, kind, _) in enumerate(ctx.kernel.symbols()):
        type = "i32" if kind == "dim" else "i64"
        signature.append(f"{type} %s{number}")
        sizes[symbol.name] = V(type, f"%s{number}")

    def size(extent: Extent, bits: int) -> V:
        if not isinstance(extent, Symbol):
            return integer(extent, bits)
        with ctx.w.at_entry():
            return ctx.w.convert("sext" if bits == 64 else "trunc", sizes[extent.name], f"i{bits}")

    for number, param in enumerate(ctx.kernel.params):
        if isinstance(param.type, GlobalType):
            dims = tuple(size(d, 32) for d in param.type.dims)
            strides = tuple(size(s, 64) for s in param.type.strides)
            ctx.values[param] = GlobalTensor(param.type, V("ptr addrspace(1)", f"%p{number}"), dims, strides)
    return signature
