"""Kernels for tests: text with a frame around it, and one kernel that has every operation."""

from __future__ import annotations

from tilus.ir.kernel import Kernel
from tilus.ir.parser import parse_kernel
from tilus.ir.verifier import verify

GRID = """
  grid () {
    %one = constant {value = 1, dtype = i32} : i32
    yield [%one, %one, %one]
  }"""


def kernel_text(body: str, params: str = "", warps: int = 1) -> str:
    """Return the text of a kernel with a body, which need not end in a return, and a grid of one block."""
    lines = "\n".join(f"    {line.strip()}" for line in body.strip().splitlines())
    return f"kernel @test({params}) warps={warps} {{{GRID}\n  body () {{\n{lines}\n    return\n  }}\n}}\n"


def make(body: str, params: str = "", warps: int = 1) -> Kernel:
    """Return a kernel that the verifier accepts."""
    kernel = parse_kernel(kernel_text(body, params, warps))
    verify(kernel)
    return kernel


# Layouts of one warp: a row-major [8, 32] tile with 8 elements a thread, and one in which 4 threads hold copies.
LAYOUT = "#reg([8, 32], [8@0:1, 4@1:8], [8@1:1])"
BYTES = "#reg([8, 64], [8@0:1, 4@1:16], [16@1:1])"

EVERYTHING_PARAMS = (
    '%a: global<f16, [m:16, "odd name":8], [n:8, 1], align=16>, %out: global<f32, [m:16, 32], [32, 1]>, '
    "%p: ptr<f32, align=4>, %counts: global<u32, [64], [1], align=128>, %x: i32, %y: f32, %flag: bool"
)

EVERYTHING = f"""
%zero = constant {{value = 0, dtype = i32}} : i32
%two = constant {{value = 2, dtype = i32}} : i32
%tiny = constant {{value = -1e-05, dtype = f32}} : f32
%huge = constant {{value = inf, dtype = f64}} : f64
%no = constant {{value = false, dtype = bool}} : bool
%half = constant {{value = 0.5, dtype = f16}} : f16
%bx = block_id {{axis = 0}} : i32
%gx = grid_dim {{axis = 2}} : i32
%rank = cluster_rank : i32
%m = dim %a {{axis = 0}} : i32
%lead = stride %a {{axis = 0}} : i64
%base = pointer_of %out : ptr<f32>
%moved = pointer_add %p, %x : ptr<f32>
%bytes = pointer_cast %p {{dtype = u4}} : ptr<u4, align=4>
%wide = assume %x {{divisor = 16}} : i32
%long = cast %x {{dtype = i64}} : i64
%neg = unary %y {{kind = "neg"}} : f32
%sum = binary %x, %two {{kind = "add"}} : i32
%less = compare %x, %two {{kind = "lt"}} : bool
%pick = select %flag, %x, %two : i32
%rows = iota {{shape = [8, 32]}} : tile<i32, [8, 32]>
%columns = iota {{shape = [8, 32], axis = 1}} : tile<i32, [8, 32]>
%view = global_view %p, [%two, %x], [%x, %two] {{dims = [none, 32], steps = [32, none]}} : global<f32, [?:1, 32], [32, ?:1], align=4>
%bits = iota {{shape = [64], dtype = u32}} : tile<u32, [64]>
%nf = table %rows {{values = [-1.0, 0.0, 1.0, inf, -0.0, 3.5, 1e-08, 2.0], dtype = nf4}} : tile<nf4, [8, 32]>
%own = cast %rows {{dtype = table1(-1.0,1.0)}} : tile<table1(-1.0,1.0), [8, 32]>
%loaded = load_global %a, [%zero, %bx], _, %half {{shape = [8, 32], checked = [true, false], cache = "streaming"}} : tile<f16, [8, 32]>
%mask = compare %rows, %columns {{kind = "le"}} : tile<bool, [8, 32]>
%masked = load_global %out, [%zero, %zero], %mask, _ {{shape = [8, 32], checked = [true, true]}} : tile<f32, [8, 32]>
%tile = splat %y {{shape = [8, 32], layout = {LAYOUT}}} : tile<f32, [8, 32], {LAYOUT}>
%told = annotate_layout %masked {{layout = {LAYOUT}}} : tile<f32, [8, 32], {LAYOUT}>
%turned = convert_layout %told {{layout = #reg([8, 32], [2@_, 16@1:2], [8@0:1, 2@1:1])}} : tile<f32, [8, 32], #reg([8, 32], [2@_, 16@1:2], [8@0:1, 2@1:1])>
%words = view %tile {{dtype = u16, shape = [8, 64], layout = {BYTES}}} : tile<u16, [8, 64], {BYTES}>
%reduced = reduce %masked {{axis = 1, kind = "sum"}} : tile<f32, [8, 1]>
%spread = broadcast %reduced {{shape = [8, 32]}} : tile<f32, [8, 32]>
%line = squeeze %reduced {{axis = 1}} : tile<f32, [8]>
%again = expand_dims %line {{axis = 0}} : tile<f32, [1, 8]>
%across = transpose %masked {{perm = [1, 0]}} : tile<f32, [32, 8]>
%flat = reshape %masked {{shape = [256]}} : tile<f32, [256]>
%part = slice_tile %masked {{offsets = [0, 16], shape = [8, 16]}} : tile<f32, [8, 16]>
%joined = concat [%part, %part] {{axis = 1}} : tile<f32, [8, 32]>
%running = scan %masked {{axis = 1, kind = "sum", exclusive = true}} : tile<f32, [8, 32]>
%best = reduce %masked {{axis = 0, kind = "argmax"}} : tile<i32, [1, 32]>
%r0, %r1, %r2, %r3 = random %x, %bits : tile<u32, [64]>, tile<u32, [64]>, tile<u32, [64]>, tile<u32, [64]>
%one = slice_tile %flat {{offsets = [3], shape = [1]}} : tile<f32, [1]>
%scalar = extract %one : f32
%asm = inline_ptx [%x, %two] {{template = "add.s32 $0, $1, $2; // \\"quoted\\"", dtypes = [i32]}} : i32
inline_ptx [] {{template = "nanosleep.u32 8;", dtypes = [], volatile = true}}
print [%x, %y] {{format = "x {{}} y {{}}\\n"}}
assert %mask {{message = "rows \\"below\\" columns"}}
%pipe = alloc_shared {{dtype = f16, shape = [2, 8, 32]}} : shared<f16, [2, 8, 32]>
%swizzled = alloc_shared {{dtype = f32, shape = [8, 32], layout = #shared([8, 32], [8@0:32, 32@1:1], swizzle(3, 2, 3)), offset = 1024}} : shared<f32, [8, 32], #shared([8, 32], [8@0:32, 32@1:1], swizzle(3, 2, 3))>
%padded = alloc_shared {{dtype = u8, shape = [4, 4], layout = #shared([4, 4], [4@0:5, 4@1:1], size=24)}} : shared<u8, [4, 4], #shared([4, 4], [4@0:5, 4@1:1], size=24)>
%stage = shared_index %pipe, %zero : shared<f16, [8, 32]>
%corner = shared_slice %stage {{offsets = [0, 16], shape = [8, 16]}} : shared<f16, [8, 16]>
%standing = shared_permute %stage {{perm = [1, 0]}} : shared<f16, [32, 8]>
copy_async %stage, %a, [%zero, %zero] {{checked = [true, true]}}
copy_async_commit
copy_async_wait {{pending = 1}}
sync {{reason = "the copy is there"}}
sync
fence {{kind = "async"}}
fence
%back = load_shared %stage : tile<f16, [8, 32]>
store_shared %stage, %back
%barrier = barrier_alloc {{count = 2, arrivals = 1}} : barrier<2>
barrier_arrive %barrier, %zero {{bytes = 512}}
copy_bulk %stage, %a, [%zero, %zero], %barrier, %zero
barrier_wait %barrier, %zero, %zero
%old = atomic %counts, %bits, [%bits], _, _ {{kind = "add", scope = "block"}} : tile<u32, [64]>
%swapped = atomic %counts, %bits, [%bits], %bits, _ {{kind = "cas", order = "acq_rel"}} : tile<u32, [64]>
%gathered = gather %counts, [%bits], _ : tile<u32, [64]>
scatter %counts, %gathered, [%bits], _ {{checked = false}}
store_global %out, %joined, [%zero, %zero], %mask {{checked = [true, false], cache = "persistent"}}
%left = splat %half {{shape = [16, 16]}} : tile<f16, [16, 16]>
%acc = splat %y {{shape = [16, 16]}} : tile<f32, [16, 16]>
%total, %last = for %zero, %x, %two, [%acc, %x] {{stages = 3, unroll = -1}} (%i: i32, %c: tile<f32, [16, 16]>, %w: i32) {{
%next = dot %left, %left, %c {{atom = "mma.m16n8k16"}} : tile<f32, [16, 16]>
if %flag () {{
break [%next, %i]
}} () {{
if %less () {{
continue [%c, %w]
}} () {{
yield []
}}
yield []
}}
yield [%next, %i]
}} : tile<f32, [16, 16]>, i32
%state = loop [%x] (%s: i32) {{
%done = compare %s, %two {{kind = "ge"}} : bool
%after = if %done () {{
break [%s]
}} () {{
%more = binary %s, %two {{kind = "mul"}} : i32
yield [%more]
}} : i32
yield [%after]
}} : i32
warps {{first = 0, count = 1, registers = 40}} () {{
%inside = iota {{shape = [32]}} : tile<i32, [32]>
yield []
}}
"""


def everything() -> Kernel:
    """Return a kernel that has every operation."""
    return make(EVERYTHING, EVERYTHING_PARAMS)
