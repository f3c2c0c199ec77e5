"""Lowering of atomics to red and atom."""

from __future__ import annotations

from tilus import dtypes
from tilus.codegen.llvm_text import V
from tilus.codegen.lower.context import Context, lowers
from tilus.codegen.lower.exchange import from_first_copy
from tilus.codegen.lower.global_memory import both, element_inside, element_pointer
from tilus.codegen.lower.shared_memory import shared_element
from tilus.codegen.registers import elements_of, tile_of
from tilus.dtypes import DType
from tilus.errors import TargetNotSupported, TypeMismatch
from tilus.ir import ops
from tilus.ir.types import SharedType

SCOPES = {"block": "cta", "cluster": "cluster", "device": "gpu", "system": "sys"}
ORDERS = ("relaxed", "acquire", "release", "acq_rel")
# PTX ISA, atom: types of each operation.
SUFFIXES: dict[tuple[str, DType], str] = {
    ("add", dtypes.int32): "s32", ("add", dtypes.uint32): "u32", ("add", dtypes.uint64): "u64",
    ("add", dtypes.int64): "u64", ("add", dtypes.float32): "f32", ("add", dtypes.float64): "f64",
    ("add", dtypes.float16): "noftz.f16", ("add", dtypes.bfloat16): "noftz.bf16",
    **{(k, d): s for k in ("min", "max") for d, s in (
        (dtypes.int32, "s32"), (dtypes.uint32, "u32"), (dtypes.int64, "s64"), (dtypes.uint64, "u64"))},
    **{(k, d): s for k in ("and", "or", "xor", "exch", "cas") for d, s in (
        (dtypes.int32, "b32"), (dtypes.uint32, "b32"), (dtypes.int64, "b64"), (dtypes.uint64, "b64"))},
    **{(k, d): s for k in ("exch", "cas") for d, s in ((dtypes.float32, "b32"), (dtypes.float64, "b64"))},
}  # fmt: skip
LETTERS = {"i32": "r", "i64": "l", "float": "f", "double": "d", "half": "h", "bfloat": "h"}

ZEROS = {
    "h": "mov.b16 $0, 0;", "r": "mov.b32 $0, 0;", "l": "mov.b64 $0, 0;", "f": "mov.f32 $0, 0f00000000;",
    "d": "mov.f64 $0, 0d0000000000000000;",
}  # fmt: skip


@lowers(ops.Atomic)
def lower_atomic(ctx: Context, op: ops.Atomic) -> None:
    w = ctx.w
    value = ctx.tile(op.value)
    dtype = value.dtype
    suffix = SUFFIXES.get((op.kind, dtype))
    if suffix is None:
        takes = ", ".join(sorted({d.name for k, d in SUFFIXES if k == op.kind}))
        raise TypeMismatch(f"atomic {op.kind} of {dtype} does not exist", hint=f"use one of {takes}")
    if dtype is dtypes.bfloat16 and not ctx.target.has("bf16_native"):
        raise TargetNotSupported(f"{ctx.target.name} has no atomic add of bfloat16", hint="add in float32")
    if op.scope == "cluster" and not ctx.target.has("cluster"):
        raise TargetNotSupported(f"{ctx.target.name} has no clusters", hint='use scope="device"')
    if op.order not in ORDERS or op.scope not in SCOPES:
        raise TypeMismatch(
            f"atomic with order {op.order!r} and scope {op.scope!r}",
            hint=f"orders are {', '.join(ORDERS)}; scopes are {', '.join(SCOPES)}",
        )
    shared = isinstance(op.tensor.type, SharedType)
    space = ctx.shared(op.tensor).space if shared else "global"
    columns = [elements_of(w, ctx.tile(i)) for i in op.indices]
    values = elements_of(w, value)
    expected = elements_of(w, ctx.tile(op.compare)) if op.compare is not None else None
    mask = elements_of(w, ctx.tile(op.mask)) if op.mask is not None else None
    once = ctx.is_first_replica(value.layout)
    letter = LETTERS[values[0].type]
    out = []
    for number in range(value.count):
        index = [column[number] for column in columns]
        inside: V | None
        if shared:
            pointer, inside = shared_element(ctx, ctx.shared(op.tensor), index, op.checked)
            pointer = w.convert("ptrtoint", pointer, "i32")
        else:
            tensor = ctx.tensor(op.tensor)
            inside = element_inside(ctx, tensor, index) if op.checked else None
            pointer = element_pointer(ctx, tensor, index)
        predicate = both(ctx, once, both(ctx, inside, mask[number] if mask else None))
        args = [pointer, *([expected[number]] if expected else []), values[number]]
        names = ", ".join(f"${i + 2}" for i in range(len(args) - 1))
        guard = f"@${len(args) + 1} " if predicate is not None else ""
        zero = ZEROS[letter]
        text = (
            zero + " " if predicate is not None else ""
        ) + f"{guard}atom.{op.order}.{SCOPES[op.scope]}.{space}.{op.kind}.{suffix} $0, [$1], {names};"
        letters = ["=&" + letter, "r" if shared else "l", *([letter] * (len(args) - 1))]
        if predicate is not None:
            args.append(predicate)
            letters.append("b")
        constraints = ",".join(letters) + ",~{memory}"
        out.append(w.asm(values[0].type, text, constraints, *args, effects=True))
    made = tile_of(w, dtype, value.layout, out)
    ctx.values[op.result] = from_first_copy(ctx, made, op.scratch) if op.spread else made
