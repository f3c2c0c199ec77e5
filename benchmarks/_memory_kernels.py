"""PTX of the kernels that measure memory and launches: streams through loads and stores, bulk copies, a chase, nothing."""

from __future__ import annotations

from _probes import version

UNIT = 16
UNROLL = 4
BULK_BYTES, BULK_STAGES = 16384, 6

HEAD = ".version {version}\n.target {target}\n.address_size 64\n"

PREPARE = """.reg .b64 %src, %dst, %at, %to, %step, %i, %end;
.reg .b32 %r<8>, %v<16>, %passes, %sum, %count;
.reg .pred %p, %q;
ld.param.u64 %src, [src];
cvta.to.global.u64 %src, %src;
ld.param.u64 %dst, [dst];
cvta.to.global.u64 %dst, %dst;
ld.param.u32 %count, [count];
ld.param.u32 %passes, [passes];
mov.u32 %r0, %ctaid.x;
mov.u32 %r1, %ntid.x;
mov.u32 %r2, %tid.x;
mov.u32 %r3, %nctaid.x;
"""


def stream(kind: str, target: str) -> str:
    """Return a kernel that reads, writes or copies `count` units of 16 bytes, a multiple of 4 for each thread.

    Parameters: src, dst, count, passes.
    """
    loads = [
        f"ld.global.cg.v4.b32 {{%v{4 * i}, %v{4 * i + 1}, %v{4 * i + 2}, %v{4 * i + 3}}}, [%at];\nadd.u64 %at, %at, %step;"
        for i in range(UNROLL)
    ]
    stores = [
        f"st.global.cg.v4.b32 [%to], {{%v{4 * i}, %v{4 * i + 1}, %v{4 * i + 2}, %v{4 * i + 3}}};\nadd.u64 %to, %to, %step;"
        for i in range(UNROLL)
    ]
    keep = [f"xor.b32 %sum, %sum, %v{i};" for i in range(4 * UNROLL)]
    body = {"read": loads + keep, "write": stores, "copy": loads + stores}[kind]
    lines = [
        "mad.lo.u32 %r4, %r0, %r1, %r2;",
        "mul.lo.u32 %r5, %r3, %r1;",
        f"mul.wide.u32 %step, %r5, {UNIT};",
        *(f"mov.b32 %v{i}, %r4;" for i in range(4 * UNROLL)),
        "mov.u32 %sum, 0;",
        "AGAIN:",
        f"mad.wide.u32 %at, %r4, {UNIT}, %src;",
        f"mad.wide.u32 %to, %r4, {UNIT}, %dst;",
        "mov.u32 %r6, %r4;",
        "LOOP:",
        *body,
        f"mad.lo.u32 %r6, %r5, {UNROLL}, %r6;",
        "setp.lt.u32 %p, %r6, %count;",
        "@%p bra LOOP;",
        "sub.u32 %passes, %passes, 1;",
        "setp.ne.u32 %q, %passes, 0;",
        "@%q bra AGAIN;",
        # What is read must be used: by a store that does not happen.
        "setp.eq.u32 %p, %sum, 0x9e3779b9;",
        "@%p st.global.b32 [%dst], %sum;",
        "ret;",
    ]
    return _kernel(target, "stream", lines)


def bulk_read(target: str) -> str:
    """Return a kernel whose blocks read by cp.async.bulk, several copies of 16 KiB in flight.

    Parameters: src, dst (unused), count of pieces of 16 KiB, passes.
    """
    piece = [
        "mbarrier.arrive.expect_tx.shared.b64 _, [%bar], BYTES;",
        "mad.wide.u32 %at, %r6, BYTES, %src;",
        "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%buffer], [%at], BYTES, [%bar];",
    ]
    piece = [line.replace("BYTES", str(BULK_BYTES)) for line in piece]
    lines = [
        ".reg .b32 %bar, %buffer, %slot, %phase, %last, %memory;",
        "mov.u32 %memory, memory;",
        "setp.ne.u32 %p, %r2, 0;",
        "@%p bra END;",
        *(
            f"mbarrier.init.shared.b64 [%memory + {BULK_BYTES * BULK_STAGES + 8 * i}], 1;"
            for i in range(BULK_STAGES)
        ),
        "fence.proxy.async;",
        # Pieces of this block: ctaid, ctaid + nctaid, ..., all passes one after the other.
        "mov.u32 %r6, %r0;",
        "mov.u32 %slot, 0;",
        "FIRST:",
        f"mad.lo.u32 %buffer, %slot, {BULK_BYTES}, %memory;",
        f"mad.lo.u32 %bar, %slot, 8, %memory;\nadd.u32 %bar, %bar, {BULK_BYTES * BULK_STAGES};",
        *piece,
        "add.u32 %r6, %r6, %r3;",
        "add.u32 %slot, %slot, 1;",
        f"setp.lt.u32 %p, %slot, {BULK_STAGES};",
        "@%p bra FIRST;",
        "mov.u32 %slot, 0;",
        "mov.u32 %phase, 0;",
        # How many pieces are still to wait for, and to issue.
        "div.u32 %last, %count, %r3;",
        "mul.lo.u32 %last, %last, %passes;",
        f"sub.u32 %r7, %last, {BULK_STAGES};",
        "LOOP:",
        f"mad.lo.u32 %buffer, %slot, {BULK_BYTES}, %memory;",
        f"mad.lo.u32 %bar, %slot, 8, %memory;\nadd.u32 %bar, %bar, {BULK_BYTES * BULK_STAGES};",
        "WAIT: mbarrier.try_wait.parity.shared.b64 %q, [%bar], %phase;",
        "@!%q bra WAIT;",
        "setp.eq.u32 %p, %r7, 0;",
        "@%p bra NEXT;",
        "sub.u32 %r7, %r7, 1;",
        "setp.ge.u32 %p, %r6, %count;",
        "@%p sub.u32 %r6, %r6, %count;",
        *piece,
        "add.u32 %r6, %r6, %r3;",
        "NEXT:",
        "add.u32 %slot, %slot, 1;",
        f"setp.eq.u32 %p, %slot, {BULK_STAGES};",
        "@%p mov.u32 %slot, 0;",
        "@%p xor.b32 %phase, %phase, 1;",
        "sub.u32 %last, %last, 1;",
        "setp.ne.u32 %p, %last, 0;",
        "@%p bra LOOP;",
        "END:",
        "ret;",
    ]
    return _kernel(target, "stream", lines, shared=True)


def chase(target: str) -> str:
    """Return a kernel of one thread that follows `count` pointers from src, and writes clocks and the last pointer."""
    lines = [
        ".reg .b64 %start, %stop;",
        "setp.ne.u32 %p, %r2, 0;",
        "@%p bra END;",
        "mov.u64 %start, %clock64;",
        "LOOP:",
        "ld.global.cg.u64 %src, [%src];",
        "sub.u32 %count, %count, 1;",
        "setp.ne.u32 %p, %count, 0;",
        "@%p bra LOOP;",
        "setp.eq.u64 %p, %src, 0;",
        "@%p trap;",
        "mov.u64 %stop, %clock64;",
        "sub.u64 %stop, %stop, %start;",
        "st.global.v2.u64 [%dst], {%stop, %src};",
        "END:",
        "ret;",
    ]
    return _kernel(target, "stream", lines)


def nothing(target: str) -> str:
    """Return a kernel that does nothing, with the same parameters."""
    return _kernel(target, "stream", ["ret;"])


def _kernel(target: str, name: str, lines: list[str], shared: bool = False) -> str:
    declared = ".extern .shared .align 1024 .b8 memory[];\n" if shared else ""
    entry = f".visible .entry {name}(.param .u64 src, .param .u64 dst, .param .u32 count, .param .u32 passes)\n{{\n"
    return (
        HEAD.format(version=version(target), target=target)
        + declared
        + entry
        + PREPARE
        + "\n".join(lines)
        + "\n}\n"
    )
