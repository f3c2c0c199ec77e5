"""Lowering of structured control flow to blocks and phis."""

from __future__ import annotations

from collections.abc import Callable

from tilus.codegen.llvm_text import V, integer
from tilus.codegen.lower.context import (
    Context,
    Group,
    IfFrame,
    LoopFrame,
    Lowered,
    lowers,
)
from tilus.codegen.registers import Tile, container_count, container_type, llvm_type
from tilus.errors import LayoutConflict, ResourceExceeded, TargetNotSupported, TypeMismatch
from tilus.ir import ops
from tilus.ir.core import Value, walk
from tilus.ir.kernel import Kernel
from tilus.ir.types import PointerType, RegisterType, ScalarType


def flatten(ctx: Context, values: tuple[Value, ...]) -> list[V]:
    """Return the LLVM values that carry IR values from block to block."""
    out: list[V] = []
    for value in values:
        lowered = ctx.values[value]
        if isinstance(lowered, Tile):
            out += lowered.regs
        elif isinstance(lowered, V):
            out.append(lowered)
        else:
            raise TypeMismatch(
                "a tensor in memory cannot be carried by a loop or an if", hint="carry its index"
            )
    return out


def types_of(value: Value) -> list[str]:
    """Return the LLVM types of an IR value's containers."""
    type = value.type
    if isinstance(type, RegisterType):
        assert type.layout is not None
        return [container_type(type.dtype)] * container_count(type.dtype, type.layout.elements)
    if isinstance(type, ScalarType):
        return [llvm_type(type.dtype)]
    if isinstance(type, PointerType):
        return ["ptr addrspace(1)"]
    raise TypeMismatch("a tensor in memory cannot be carried by a loop or an if", hint="carry its index")


def bind(ctx: Context, values: tuple[Value, ...], flat: list[V]) -> None:
    """Give IR values their LLVM values, in the order of `flatten`."""
    at = 0
    for value in values:
        count = len(types_of(value))
        lowered: Lowered
        if isinstance(value.type, RegisterType):
            assert value.type.layout is not None
            lowered = Tile(value.type.dtype, value.type.layout, tuple(flat[at : at + count]))
        else:
            lowered = flat[at]
        ctx.values[value] = lowered
        at += count


@lowers(ops.For)
def lower_for(ctx: Context, op: ops.For) -> None:
    """Header tests the index, the latch adds the step; phis carry index and values."""
    w = ctx.w
    start, step = ctx.scalar(op.start), ctx.scalar(op.step)
    head, body, latch, exit_block = w.label(), w.label(), w.label(), w.label()
    inits = flatten(ctx, op.inits)
    index, *carried = op.body.args
    types = [t for value in carried for t in types_of(value)]
    limit = _limit(ctx, op)
    before = w.block
    w.begin(head)
    index_phi = w.phi(start.type)
    index_phi.incoming.append((start, before))
    phis = [w.phi(t) for t in types]
    for phi, init in zip(phis, inits, strict=True):
        phi.incoming.append((init, before))
    going = limit(index_phi.value)
    w.branch(going, body, exit_block)
    frame = LoopFrame(latch, exit_block, [], [([p.value for p in phis], head)])
    ctx.values[index] = index_phi.value
    bind(ctx, tuple(carried), [p.value for p in phis])
    w.begin(body)
    ctx.loops.append(frame)
    ctx.ifs.append(frame)
    ctx.region(op.body)
    ctx.ifs.pop()
    ctx.loops.pop()
    if frame.latch_incoming:
        w.terminated = True
        w.begin(latch)
        nexts = _join(ctx, frame.latch_incoming, types)
        advanced = w.add(index_phi.value, step)
        index_phi.incoming.append((advanced, latch))
        for phi, value in zip(phis, nexts, strict=True):
            phi.incoming.append((value, latch))
        metadata = _unroll_metadata(ctx, op.unroll)
        w.lines.append(f"  br label %{head}{metadata}")
        w.terminated = True
    w.begin(exit_block)
    bind(ctx, op.results, _join(ctx, frame.exit_incoming, types))
    for phi in (index_phi, *phis):
        w.close(phi)


def _limit(ctx: Context, op: ops.For) -> Callable[[V], V]:
    """Return what tells of an index whether the loop goes on, also where a step beyond the end wraps around.

    What does not change in the loop is computed here, before it.
    """
    w = ctx.w
    start, stop, step = (ctx.scalar(v) for v in (op.start, op.stop, op.step))
    assert isinstance(op.start.type, ScalarType)
    literal = step.literal
    if not op.start.type.dtype.is_signed:
        return lambda index: w.icmp("ult", index, stop)
    if literal is not None and literal <= 1:
        # The end itself is reached. Steps down wrap around at the lowest number, where no loop ends.
        return lambda index: w.icmp("slt" if literal > 0 else "sgt", index, stop)
    if literal is not None and op.start in ctx.natural:
        # An index beyond the largest number is larger still without its sign.
        none = integer(0, int(stop.type[1:]))
        end = stop if op.stop in ctx.natural else w.call(stop.type, f"llvm.smax.{stop.type}", stop, none)
        return lambda index: w.icmp("ult", index, end)
    # How far the loop has come, without sign, against how far it goes.
    span = w.binary("sub", w.call(stop.type, f"llvm.smax.{stop.type}", stop, start), start)
    if literal is not None:
        return lambda index: w.icmp("ult", w.binary("sub", index, start), span)
    up = w.icmp("sgt", step, integer(0, int(step.type[1:])))
    down = w.binary("sub", start, w.call(stop.type, f"llvm.smin.{stop.type}", stop, start))
    span = w.select(up, span, down)

    def limit(index: V) -> V:
        gone = w.select(up, w.binary("sub", index, start), w.binary("sub", start, index))
        return w.icmp("ult", gone, span)

    return limit


def _unroll_metadata(ctx: Context, unroll: int) -> str:
    """Return what tells LLVM to unroll a loop in full, or to leave it; by a factor that was done before."""
    if unroll == 0 or unroll > 1:
        return ""
    return ctx.w.loop_metadata(
        '!{!"llvm.loop.unroll.full"}' if unroll < 0 else '!{!"llvm.loop.unroll.disable"}'
    )


def _join(ctx: Context, incoming: list[tuple[list[V], str]], types: list[str]) -> list[V]:
    """Merge values that reach the current block from several ones."""
    w = ctx.w
    if len(incoming) == 1:
        return incoming[0][0]
    out = []
    for position, type in enumerate(types):
        phi = w.phi(type)
        phi.incoming = [(values[position], block) for values, block in incoming]
        w.close(phi)
        out.append(phi.value)
    return out


@lowers(ops.Loop)
def lower_loop(ctx: Context, op: ops.Loop) -> None:
    """An endless loop that breaks leave."""
    w = ctx.w
    head, latch, exit_block = w.label(), w.label(), w.label()
    inits = flatten(ctx, op.inits)
    types = [t for value in op.body.args for t in types_of(value)]
    before = w.block
    w.begin(head)
    phis = [w.phi(t) for t in types]
    for phi, init in zip(phis, inits, strict=True):
        phi.incoming.append((init, before))
    bind(ctx, op.body.args, [p.value for p in phis])
    frame = LoopFrame(latch, exit_block)
    ctx.loops.append(frame)
    ctx.ifs.append(frame)
    ctx.region(op.body)
    ctx.ifs.pop()
    ctx.loops.pop()
    if frame.latch_incoming:
        w.terminated = True
        w.begin(latch)
        nexts = _join(ctx, frame.latch_incoming, types)
        for phi, value in zip(phis, nexts, strict=True):
            phi.incoming.append((value, latch))
        w.jump(head)
    w.terminated = True
    if frame.exit_incoming:
        w.begin(exit_block)
        bind(ctx, op.results, _join(ctx, frame.exit_incoming, types))
    for phi in phis:
        w.close(phi)


@lowers(ops.If)
def lower_if(ctx: Context, op: ops.If) -> None:
    """Two blocks and a join; a branch that leaves does not reach the join."""
    w = ctx.w
    then, orelse, join = w.label(), w.label(), w.label()
    w.branch(ctx.scalar(op.cond), then, orelse)
    frame = IfFrame(join)
    ctx.ifs.append(frame)
    for label, region in ((then, op.then), (orelse, op.orelse)):
        w.begin(label)
        ctx.region(region)
    ctx.ifs.pop()
    w.terminated = True
    if frame.incoming:
        w.begin(join)
        types = [t for value in op.results for t in types_of(value)]
        bind(ctx, op.results, _join(ctx, frame.incoming, types))


@lowers(ops.Yield)
def lower_yield(ctx: Context, op: ops.Yield) -> None:
    """Hand values to the `if` or the next iteration around."""
    if not ctx.ifs:
        return
    frame = ctx.ifs[-1]
    if isinstance(frame, IfFrame):
        frame.incoming.append((flatten(ctx, op.values), ctx.w.block))
        ctx.w.jump(frame.join)
    else:
        frame.latch_incoming.append((flatten(ctx, op.values), ctx.w.block))
        ctx.w.jump(frame.latch)


@lowers(ops.Continue)
def lower_continue(ctx: Context, op: ops.Continue) -> None:
    """Go to the next iteration."""
    frame = ctx.loops[-1]
    frame.latch_incoming.append((flatten(ctx, op.values), ctx.w.block))
    ctx.w.jump(frame.latch)


@lowers(ops.Break)
def lower_break(ctx: Context, op: ops.Break) -> None:
    """Leave the loop."""
    frame = ctx.loops[-1]
    frame.exit_incoming.append((flatten(ctx, op.values), ctx.w.block))
    ctx.w.jump(frame.exit)


@lowers(ops.Return)
def lower_return(ctx: Context, op: ops.Return) -> None:
    """End the kernel for this group."""
    ctx.w.jump(ctx.exit)


# A multiprocessor's registers, the unit in which warpgroups exchange them, and what setmaxnreg takes (PTX ISA).
REGISTER_FILE = 65536
WARPGROUP = 4
FEWEST_REGISTERS, MOST_REGISTERS, REGISTER_STEP = 24, 256, 8


def budgets(kernel: Kernel) -> list[ops.WarpGroup]:
    """Return the warp groups that say how many registers they want."""
    return [op for op in walk(kernel.body) if isinstance(op, ops.WarpGroup) and op.registers]


def registers_at_launch(kernel: Kernel) -> int:
    """Return how many registers a thread has at first: its share, or what the greediest group wants if that is less."""
    share = REGISTER_FILE // kernel.threads // REGISTER_STEP * REGISTER_STEP
    return min(share, max((op.registers for op in budgets(kernel)), default=share))


def check_register_budgets(kernel: Kernel) -> None:
    """Refuse budgets that the hardware has not: warps would wait for ever for registers that nobody gives up."""
    share = REGISTER_FILE // kernel.threads // REGISTER_STEP * REGISTER_STEP
    wanted = [share] * kernel.warps
    groups = budgets(kernel)
    for op in groups:
        if op.first % WARPGROUP or op.count % WARPGROUP:
            raise LayoutConflict(
                f"registers are shared out among whole warpgroups of 4 warps, and these are {op.count} from {op.first}",
                op.loc,
                hint="leave out registers=, or put it at the warpgroup around",
            )
        if not FEWEST_REGISTERS <= op.registers <= MOST_REGISTERS or op.registers % REGISTER_STEP:
            raise ResourceExceeded(
                f"{op.registers} registers for each thread of a warp group",
                op.loc,
                hint=f"use a multiple of {REGISTER_STEP} from {FEWEST_REGISTERS} to {MOST_REGISTERS}",
            )
        for warp in range(op.first, op.first + op.count):
            wanted[warp] = op.registers
    if groups and sum(wanted) > share * kernel.warps:
        raise ResourceExceeded(
            f"the warp groups want {32 * sum(wanted)} registers, but a block of {kernel.threads} threads begins with "
            f"{share} for each, {32 * share * kernel.warps} in all",
            groups[-1].loc,
            hint="lower registers= of a group, or give a group that needs few a budget of its own",
        )


@lowers(ops.WarpGroup)
def lower_warps(ctx: Context, op: ops.WarpGroup) -> None:
    """Branch on the warp number; the group gets a hardware barrier of its own."""
    w = ctx.w
    warp = ctx.warp()
    inside, after = w.label(), w.label()
    first = op.first - ctx.group.first
    conditions = []
    if first > 0:
        conditions.append(w.icmp("uge", warp, integer(first)))
    if op.first + op.count < ctx.group.first + ctx.group.count:
        conditions.append(w.icmp("ult", warp, integer(first + op.count)))
    cond = V("i1", "true")
    for c in conditions:
        cond = c if cond.name == "true" else w.binary("and", cond, c)
    w.branch(cond, inside, after)
    w.begin(inside)
    group = Group(op.first, op.count, ctx.barrier_of(op.first, op.count))
    if op.registers:
        if not ctx.target.has("setmaxnreg"):
            raise TargetNotSupported(
                f"{ctx.target.name} has no register budgets", hint="leave out registers="
            )
        action = "inc" if op.registers >= registers_at_launch(ctx.kernel) else "dec"
        text = f"setmaxnreg.{action}.sync.aligned.u32 {op.registers};"
        w.asm("void", text, "", effects=True, convergent=True)
    frame = IfFrame(after)
    ctx.ifs.append(frame)
    with ctx.in_group(group):
        ctx.region(op.body)
    ctx.ifs.pop()
    w.terminated = True
    w.begin(after)
