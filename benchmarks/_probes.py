"""The kernels of `microbench.py`: one PTX text for each thing that is measured, with what is known of it.

A probe is a loop whose body repeats one instruction over eight registers, so that eight of each thread are
independent, each reading a neighbour's register, so that the assembler cannot merge two into one. A block reads the
clock after a barrier before the loop and after the loop; with one block of many warps on each multiprocessor the
clocks are those that the instruction's unit is busy.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

CHAINS = 8
GUIDE = "CUDA C++ Best Practices Guide, throughput of native arithmetic instructions, compute capability 9.0"
WHITEPAPER = "NVIDIA H100 architecture whitepaper, dense rates over 132 multiprocessors at 1830 MHz"
PROGRAMMING_GUIDE = "CUDA C++ Programming Guide, shared memory: 32 banks of 4 bytes in a clock"
PER_CLOCK = "instructions of a thread / clock / multiprocessor"
BYTES = "bytes / clock / multiprocessor"
FLOPS = "operations / clock / multiprocessor"


@dataclass(frozen=True)
class Probe:
    """A kernel that repeats something.

    Attributes
    ----------
    body : callable
        Returns the lines of one pass over the registers.
    work : float
        What one pass of one thread does, in the unit.
    unit : str
        Of the result. `clocks` divides the other way round: clocks for one pass.
    documented : float or None
        What is published for compute capability 9.0, with its source.
    exact : bool
        Whether simulator and GPU agree bit for bit on what the kernel writes.
    """

    name: str
    body: Callable[[], Sequence[str]]
    work: float = CHAINS
    unit: str = PER_CLOCK
    documented: float | None = None
    source: str = ""
    threads: int = 1024
    passes: int = 8
    prologue: Sequence[str] = ()
    epilogue: Sequence[str] = ()
    shared_bytes: int = 0
    feature: int = 80
    exact: bool = True
    note: str = ""


def each(text: str) -> Callable[[], list[str]]:
    """Repeat an instruction over the chains: D is the chain's register, A and B those of its neighbours."""

    def body() -> list[str]:
        lines = []
        for i in range(CHAINS):
            names = {"D": f"%x{i}", "A": f"%x{(i + 1) % CHAINS}", "B": f"%x{(i + 2) % CHAINS}"}
            line = text
            for mark, name in names.items():
                line = line.replace(f"@{mark}", name)
            lines.append("{ " + line + " }" if ";" in line.rstrip().rstrip(";") else line)
        return lines

    return body


def arithmetic(name: str, text: str, documented: float | None = None, **facts: object) -> Probe:
    return Probe(name, each(text), documented=documented, source=GUIDE if documented else "", **facts)  # type: ignore[arg-type]


def unary_float(name: str) -> str:
    return f".reg .f32 a; mov.b32 a, @D; {name}.f32 a, a; mov.b32 @D, a;"


ARITHMETIC = (
    arithmetic("lop3", "lop3.b32 @D, @D, @A, @B, 0xe8;", 64),
    arithmetic("prmt", "prmt.b32 @D, @D, @A, %s;", None),
    arithmetic("shl", "shl.b32 @D, @D, %s;", 64),
    arithmetic("shr (signed)", "shr.s32 @D, @D, %s;", 64),
    arithmetic("shf", "shf.l.wrap.b32 @D, @D, @A, %s;", 64),
    arithmetic("bfe", "bfe.u32 @D, @D, %s, 4;"),
    arithmetic("add.u32", "add.u32 @D, @D, @A;", 64),
    arithmetic("mul.lo.u32", "mul.lo.u32 @D, @D, @A;", 64),
    arithmetic("mad.lo.u32", "mad.lo.u32 @D, @D, @A, @B;", 64),
    arithmetic("mul.hi.u32", "mul.hi.u32 @D, @D, @A;"),
    arithmetic("min.s32", "min.s32 @D, @D, @A;", 64),
    arithmetic("dp4a", "dp4a.u32.u32 @D, @D, @A, @B;"),
    arithmetic("popc", "popc.b32 @D, @D;", 16),
    arithmetic("clz", "clz.b32 @D, @D;", 16),
    arithmetic("setp and selp", ".reg .pred q; setp.lt.u32 q, @D, @A; selp.b32 @D, @B, @A, q;"),
    arithmetic("fma.f32", ".reg .f32 a, b, c; mov.b32 a, @D; mov.b32 b, @A; mov.b32 c, @B; fma.rn.f32 a, a, b, c; mov.b32 @D, a;", 128, exact=False),
    arithmetic("fma.f16x2", "fma.rn.f16x2 @D, @D, @A, @B;", 128, note="256 results of 16 bits are documented", exact=False),
    arithmetic("mul.f16x2", "mul.rn.f16x2 @D, @D, @A;", 128, note="256 results of 16 bits are documented", exact=False),
    arithmetic("add.f16x2", "add.rn.f16x2 @D, @D, @A;", 128, note="256 results of 16 bits are documented", exact=False),
    arithmetic("fma.bf16x2", "fma.rn.bf16x2 @D, @D, @A, @B;", 128, note="256 results of 16 bits are documented", exact=False),
    arithmetic("max.f16x2", "max.f16x2 @D, @D, @A;", exact=False),
    arithmetic("lop3 and fma.f16x2 by turns", "lop3.b32 @D, @D, @A, @B, 0xe8; fma.rn.f16x2 @D, @D, @A, @B;", note="counts pairs: 64 if logic limits, 64 if issue does", exact=False),
    arithmetic("lop3 and 3 fma.f16x2", "lop3.b32 @D, @D, @A, @B, 0xe8; fma.rn.f16x2 @D, @D, @A, @B; fma.rn.f16x2 @D, @D, @B, @A; fma.rn.f16x2 @D, @A, @B, @D;", note="counts groups of four: 32 if issue limits", exact=False),
    arithmetic("shfl.bfly", "shfl.sync.bfly.b32 @D, @D, 1, 31, 0xffffffff;", 32),
    arithmetic("shfl.idx", "shfl.sync.idx.b32 @D, @D, @A, 31, 0xffffffff;", 32),
    arithmetic("redux.add", "redux.sync.add.s32 @D, @D, 0xffffffff;", 16),
    arithmetic("vote.ballot", ".reg .pred q; setp.lt.u32 q, @D, @A; vote.sync.ballot.b32 @D, q, 0xffffffff;", note="with the comparison"),
    arithmetic("ex2.f32", unary_float("ex2.approx.ftz"), 16, exact=False),
    arithmetic("ex2.f16x2", "ex2.approx.f16x2 @D, @D;", exact=False),
    arithmetic("ex2.bf16x2", "ex2.approx.ftz.bf16x2 @D, @D;", feature=90, exact=False),
    arithmetic("lg2.f32", unary_float("lg2.approx.ftz"), 16, exact=False),
    arithmetic("rcp.f32 and add", ".reg .f32 a, b; mov.b32 a, @D; mov.b32 b, @A; rcp.approx.ftz.f32 a, a; add.f32 a, a, b; mov.b32 @D, a;", 16, exact=False),
    arithmetic("rsqrt.f32", unary_float("rsqrt.approx.ftz"), 16, exact=False),
    arithmetic("sin.f32", unary_float("sin.approx.ftz"), 16, exact=False),
    arithmetic("tanh.f32", unary_float("tanh.approx"), exact=False),
    arithmetic("tanh.f16x2", "tanh.approx.f16x2 @D, @D;", exact=False),
    arithmetic("cvt f16x2 <- f32", ".reg .f32 a, b; mov.b32 a, @D; mov.b32 b, @A; cvt.rn.f16x2.f32 @D, a, b;", exact=False),
    arithmetic("cvt bf16x2 <- f32", ".reg .f32 a, b; mov.b32 a, @D; mov.b32 b, @A; cvt.rn.bf16x2.f32 @D, a, b;", exact=False),
    arithmetic("cvt f32 <- f16", ".reg .b16 l, h; .reg .f32 a; mov.b32 {l, h}, @D; cvt.f32.f16 a, l; mov.b32 @D, a;", exact=False),
    arithmetic("cvt f16x2 <- e4m3x2", ".reg .b16 l, h; mov.b32 {l, h}, @D; cvt.rn.f16x2.e4m3x2 @D, l;", feature=89, exact=False),
    arithmetic("cvt f16x2 <- e5m2x2", ".reg .b16 l, h; mov.b32 {l, h}, @D; cvt.rn.f16x2.e5m2x2 @D, l;", feature=89, exact=False),
    arithmetic("cvt e4m3x2 <- f16x2", ".reg .b16 l; cvt.rn.satfinite.e4m3x2.f16x2 l, @D; mov.b32 @D, {l, l};", feature=89, exact=False),
    arithmetic("cvt e4m3x2 <- f32", ".reg .b16 l; .reg .f32 a, b; mov.b32 a, @D; mov.b32 b, @A; cvt.rn.satfinite.e4m3x2.f32 l, a, b; mov.b32 @D, {l, l};", feature=89, exact=False),
    arithmetic("cvt f32 <- s32", ".reg .f32 a; cvt.rn.f32.s32 a, @D; mov.b32 @D, a;"),
    arithmetic("cvt s32 <- f32", ".reg .f32 a; mov.b32 a, @D; cvt.rni.s32.f32 @D, a;"),
    arithmetic("cvt f32 <- u8", ".reg .b16 l, h; .reg .f32 a; mov.b32 {l, h}, @D; cvt.rn.f32.u8 a, l; mov.b32 @D, a;"),
    arithmetic("cvt f16 <- s16", ".reg .b16 l, h; mov.b32 {l, h}, @D; cvt.rn.f16.s16 l, l; mov.b32 @D, {l, h};"),
)  # fmt: skip

# Operand values whose bits are finite numbers in every 16-bit and 8-bit type.
FINITE = "and.b32 @D, @D, 0x83038303; or.b32 @D, @D, 0x3c3c3c3c;"


def mma_sync(
    name: str, text: str, k: int, a: int, b: int, documented: float, accumulators: int = 4, feature: int = 80
) -> Probe:
    """Return a probe of a warp's matrix instruction, m16n8, over eight accumulators."""
    prologue = each(FINITE)()
    for i in range(CHAINS):
        prologue += [f"mov.b32 %c{i * 4 + j}, 0;" for j in range(accumulators)]

    def body() -> list[str]:
        lines = []
        for i in range(CHAINS):
            acc = ", ".join(f"%c{i * 4 + j}" for j in range(accumulators))
            left, right = (", ".join(f"%x{at + j}" for j in range(count)) for at, count in ((0, a), (4, b)))
            lines.append(f"{text} {{{acc}}}, {{{left}}}, {{{right}}}, {{{acc}}};")
        return lines

    epilogue = [f"xor.b32 %x{i}, %x{i}, %c{i * 4 + j};" for i in range(CHAINS) for j in range(accumulators)]
    return Probe(
        name, body, CHAINS * 2 * 16 * 8 * k / 32, FLOPS, documented, WHITEPAPER, threads=512, passes=4,
        prologue=prologue, epilogue=epilogue, feature=feature, exact=False,
    )  # fmt: skip


# mma.sync has e4m3 too, but for sm_90 the assembler expands it into conversions and HMMA.
MMA = (
    mma_sync("mma.sync f16 -> f32", "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32", 16, 4, 2, 4096),
    mma_sync("mma.sync f16 -> f16", "mma.sync.aligned.m16n8k16.row.col.f16.f16.f16.f16", 16, 4, 2, 4096, 2),
    mma_sync("mma.sync bf16 -> f32", "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32", 16, 4, 2, 4096),
    mma_sync("mma.sync tf32 -> f32", "mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32", 8, 4, 2, 2048),
    mma_sync("mma.sync s8 -> s32", "mma.sync.aligned.m16n8k32.row.col.s32.s8.s8.s32", 32, 4, 2, 8192),
)

TILE_A, TILE_B = 8192, 32768
STEPS = 4
GROUPS = 2


def wgmma(
    types: str, k: int, n: int, documented: float, acc: str = "f32", a_in_registers: bool = False
) -> Probe:
    """Return a probe of wgmma m64 by n: two warpgroups, operands with rows of 128 bytes in the 128-byte swizzle.

    A tile's row holds four steps along k. Both warpgroups read the same tiles, so that descriptors are uniform.
    """
    registers = 64 * n // 128 // (2 if acc == "f16" else 1)
    scales = "" if acc == "s32" else ", 1, 1"
    if "e4m3" not in types and acc != "s32":
        scales += ", 0" if a_in_registers else ", 0, 0"
        if "tf32" in types:
            scales = ", 1, 1"
    accumulators = ", ".join(f"%c{i}" for i in range(registers))
    prologue = [
        # A descriptor (PTX ISA, matrix descriptor): start / 16, stride of 1024 bytes / 16, the 128-byte swizzle.
        "mov.u32 %t, memory;",
        "shr.u32 %t3, %t, 4;",
        "cvt.u64.u32 %da, %t3;",
        f"or.b64 %da, %da, {(64 << 32) | (1 << 62) | (1 << 16)};",
        f"add.u32 %t3, %t, {TILE_A};",
        "shr.u32 %t3, %t3, 4;",
        "cvt.u64.u32 %db, %t3;",
        f"or.b64 %db, %db, {(64 << 32) | (1 << 62) | (1 << 16)};",
        *each(FINITE)(),
        # Fill the tiles with numbers.
        "mad.lo.u32 %t3, %id, 16, %t;",
    ]
    for i in range((TILE_A + TILE_B) // (128 * GROUPS * 16)):
        chosen = ", ".join(f"%x{(i + j) % CHAINS}" for j in range(4))
        prologue.append(f"st.shared.v4.b32 [%t3 + {i * 128 * GROUPS * 16}], {{{chosen}}};")
    prologue += [f"mov.b32 %c{i}, 0;" for i in range(registers)]
    prologue += ["fence.proxy.async;", "bar.sync 0;", "wgmma.fence.sync.aligned;"]

    def body() -> list[str]:
        lines = []
        for step in range(STEPS):
            left = "{%x0, %x1, %x2, %x3}" if a_in_registers else f"%a{step}"
            instruction = f"wgmma.mma_async.sync.aligned.m64n{n}k{k}.{acc}.{types}"
            lines.append(f"{instruction} {{{accumulators}}}, {left}, %b{step}, 1{scales};")
        return [*lines, "wgmma.commit_group.sync.aligned;", "wgmma.wait_group.sync.aligned 1;"]

    for step in range(STEPS):
        prologue += [f"add.u64 %a{step}, %da, {2 * step};", f"add.u64 %b{step}, %db, {2 * step};"]
    epilogue = ["wgmma.wait_group.sync.aligned 0;"]
    epilogue += [f"xor.b32 %x{i % CHAINS}, %x{i % CHAINS}, %c{i};" for i in range(registers)]
    name = f"wgmma n{n} {types.split('.')[0]} -> {acc}" + (", a in registers" if a_in_registers else "")
    return Probe(
        name, body, STEPS * 2 * 64 * n * k / 128, FLOPS, documented, WHITEPAPER, threads=128 * GROUPS, passes=1,
        prologue=prologue, epilogue=epilogue, shared_bytes=TILE_A + TILE_B, feature=90, exact=False,
    )  # fmt: skip


WGMMA = (
    *(wgmma("bf16.bf16", 16, n, 4096) for n in (8, 16, 32, 64, 128, 192, 256)),
    wgmma("bf16.bf16", 16, 256, 4096, a_in_registers=True),
    wgmma("bf16.bf16", 16, 64, 4096, a_in_registers=True),
    wgmma("bf16.bf16", 16, 16, 4096, a_in_registers=True),
    wgmma("f16.f16", 16, 256, 4096),
    wgmma("f16.f16", 16, 256, 4096, "f16"),
    wgmma("tf32.tf32", 8, 256, 2048),
    wgmma("e4m3.e4m3", 32, 256, 8192),
    wgmma("e4m3.e4m3", 32, 128, 8192),
    wgmma("s8.s8", 32, 256, 8192, "s32"),
)


def shared_access(name: str, text: str, bytes_: int, width: int, stride: int | None = None) -> Probe:
    """Return a probe of a shared-memory access: `width` registers, thread t at byte t * stride of a moving window."""
    step = width * 4 if stride is None else stride
    prologue = ["mov.u32 %t, memory;", f"mad.lo.u32 %t2, %id, {step}, %t;", "mov.u32 %t3, 0;"]
    if not text.startswith("st"):
        prologue = [
            "mov.u32 %t, memory;", "mad.lo.u32 %t2, %id, 16, %t;",
            *(f"st.shared.v4.b32 [%t2 + {512 * 16 * i}], {{%x0, %x1, %x2, %x3}};" for i in range(4)),
            "bar.sync 0;", *prologue,
        ]  # fmt: skip

    def body() -> list[str]:
        lines = ["add.u32 %t, %t2, %t3;", "xor.b32 %t3, %t3, 8192;"]
        for i in range(4):
            registers = ", ".join(f"%c{i * 4 + j}" for j in range(width))
            if text.startswith("st"):
                registers = ", ".join(f"%x{(i + j) % CHAINS}" for j in range(width))
                lines.append(f"{text} [%t + {i * 512}], {{{registers}}};")
            else:
                lines.append(f"{text} {{{registers}}}, [%t + {i * 512}];")
        if not text.startswith("st"):
            for j in range(width):
                lines.append(f"lop3.b32 %x{j}, %x{j}, %c{j}, %c{4 + j}, 0x96;")
                lines.append(f"lop3.b32 %x{4 + j}, %x{4 + j}, %c{8 + j}, %c{12 + j}, 0x96;")
        return lines

    documented, source = (128, PROGRAMMING_GUIDE) if stride is None else (None, "")
    return Probe(
        name, body, 4 * bytes_, BYTES, documented, source, threads=512, prologue=prologue, shared_bytes=32768,
        exact=not text.startswith("st"),
    )  # fmt: skip


SHARED = (
    shared_access("ld.shared 4 bytes", "ld.volatile.shared.b32", 4, 1),
    shared_access("ld.shared 8 bytes", "ld.volatile.shared.v2.b32", 8, 2),
    shared_access("ld.shared 16 bytes", "ld.volatile.shared.v4.b32", 16, 4),
    shared_access("st.shared 4 bytes", "st.volatile.shared.b32", 4, 1),
    shared_access("st.shared 16 bytes", "st.volatile.shared.v4.b32", 16, 4),
    shared_access("ldmatrix.x4", "ldmatrix.sync.aligned.m8n8.x4.shared.b16", 16, 4),
    shared_access("ldmatrix.x4.trans", "ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16", 16, 4),
    shared_access("ld.shared 4 bytes, 8-way conflict", "ld.volatile.shared.b32", 4, 1, stride=32),
)


def barrier(threads: int) -> Probe:
    return Probe(
        f"bar.sync, {threads} threads", lambda: ["bar.sync 0;"], 1, "clocks", threads=threads, passes=16,
        note="clocks from one barrier to the next",
    )  # fmt: skip


def mbarrier(threads: int) -> Probe:
    """All threads arrive at an mbarrier and wait for its phase."""
    prologue = [
        "mov.u32 %t, memory;", "mov.u32 %t2, 0;", "setp.eq.u32 %p, %id, 0;",
        f"@%p mbarrier.init.shared.b64 [%t], {threads};", "bar.sync 0;",
    ]  # fmt: skip
    body = [
        "{ .reg .b64 s; .reg .pred q;",
        "mbarrier.arrive.shared.b64 s, [%t];",
        "WAIT: mbarrier.try_wait.parity.shared.b64 q, [%t], %t2;",
        "@!q bra WAIT;",
        "xor.b32 %t2, %t2, 1; }",
    ]
    return Probe(
        f"mbarrier arrive and wait, {threads} threads", lambda: body, 1, "clocks", threads=threads, passes=8,
        prologue=prologue, shared_bytes=16, feature=90, note="clocks from one phase to the next",
    )  # fmt: skip


BARRIERS = (*(barrier(n) for n in (32, 128, 256, 512, 1024)), *(mbarrier(n) for n in (32, 128, 256)))

LATENCY = Probe(
    "latency of ld.shared", lambda: ["ld.volatile.shared.b32 %t, [%t];"], 1, "clocks", threads=32, passes=16,
    prologue=("mov.u32 %t, memory;", "mad.lo.u32 %t2, %id, 4, %t;", "st.shared.b32 [%t2], %t2;", "bar.sync 0;", "mov.u32 %t, %t2;"),
    epilogue=("sub.u32 %t, %t, %t2;", "xor.b32 %x0, %x0, %t;"), shared_bytes=128, note="a chain of loads",
)  # fmt: skip

PROBES: tuple[Probe, ...] = (*ARITHMETIC, *MMA, *WGMMA, *SHARED, *BARRIERS, LATENCY)


def version(target: str) -> str:
    """Return the PTX ISA version of a probe: 8.0, or what the target needs."""
    return {"sm_100a": "8.6", "sm_120a": "8.7"}.get(target, "8.0")


def ptx(probe: Probe, target: str, passes: int | None = None) -> str:
    """Return the PTX of a probe; what it computes depends on `seed`, which the assembler does not know."""
    start = ["add.u32 %seed, %seed, %id;"]
    for i in range(CHAINS):
        start += [
            f"mul.lo.u32 %x{i}, %seed, {2654435761 + 2 * i};",
            f"xor.b32 %x{i}, %x{i}, {40503 * (i + 1)};",
        ]
    body = [line for _ in range(probe.passes if passes is None else passes) for line in probe.body()]
    gather = [f"xor.b32 %x0, %x0, %x{i};" for i in range(1, CHAINS)]
    text = "\n".join([*start, *probe.prologue, BEFORE, *body, AFTER, *probe.epilogue, *gather, END])
    head = HEADER.format(version=version(target), target=target, threads=probe.threads)
    return head + text + "\n}\n"


HEADER = """.version {version}
.target {target}
.address_size 64
.extern .shared .align 1024 .b8 memory[];
.visible .entry probe(.param .u64 out, .param .u64 clocks, .param .u32 rounds, .param .u32 seed)
.maxntid {threads}, 1, 1
{{
.reg .b32 %x<8>;
.reg .b32 %c<256>;
.reg .b32 %s, %t, %t2, %t3, %id, %seed, %rounds;
.reg .b64 %out, %clocks, %start, %end, %da, %db;
.reg .b64 %a<4>;
.reg .b64 %b<4>;
.reg .pred %p;
ld.param.u64 %out, [out];
cvta.to.global.u64 %out, %out;
ld.param.u64 %clocks, [clocks];
cvta.to.global.u64 %clocks, %clocks;
ld.param.u32 %rounds, [rounds];
ld.param.u32 %seed, [seed];
mov.u32 %id, %tid.x;
and.b32 %s, %seed, 3;
"""
BEFORE = """bar.sync 0;
mov.u64 %start, %clock64;
LOOP:
.pragma "nounroll";"""
AFTER = """sub.u32 %rounds, %rounds, 1;
setp.ne.u32 %p, %rounds, 0;
@%p bra LOOP;
mov.u64 %end, %clock64;"""
END = """mov.u32 %t, %ctaid.x;
mov.u32 %t2, %ntid.x;
mad.lo.u32 %t, %t, %t2, %id;
mad.wide.u32 %out, %t, 4, %out;
st.global.b32 [%out], %x0;
shr.u32 %t, %t, 5;
mad.wide.u32 %clocks, %t, 16, %clocks;
and.b32 %t, %id, 31;
setp.eq.u32 %p, %t, 0;
@%p st.global.v2.u64 [%clocks], {%start, %end};
ret;"""
