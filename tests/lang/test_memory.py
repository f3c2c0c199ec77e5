"""Moving tiles between registers, shared and global memory: by value on the interpreter, and by the operations made."""

import numpy as np
import pytest

import tilus.lang as tilus
from tests.lang.support import execute as interpret
from tests.lang.support import opcodes, operations, trace
from tilus.ir import GlobalType, ops
from tilus.ir.interpreter import run
from tilus.lang import KernelSource, Pointer, Tensor, constexpr, float16, float32, int32, int64, uint4


def scaled(a: Tensor[float32, "m n"], out: Tensor[float32, "m n"], factor: float32, *, block: constexpr = 8):
    m, n = a.shape
    tilus.grid(tilus.cdiv(n, block), tilus.cdiv(m, block))
    column, row = tilus.block_id()
    tile = tilus.load(a, (row * block, column * block), (block, block))
    tilus.store(out, tile * factor, (row * block, column * block))


def test_a_ragged_tensor_is_covered_by_its_own_grid(execute):
    a = np.random.default_rng(0).standard_normal((13, 21)).astype(np.float32)
    out = np.full_like(a, np.nan)
    kernel = execute(scaled, a, out, 3.0)
    assert np.array_equal(out, a * np.float32(3))
    assert [made.checked for made in operations(kernel, ops.LoadGlobal)] == [(True, True)]


def masked(a: Tensor[int32, "n"], out: Tensor[int32, "n"]):
    tilus.grid(1)
    i = tilus.arange(16)
    tile = tilus.load(a, 8, 16, mask=i % 2 == 0, other=-1)
    tilus.store(out, tile, 0, mask=i < 10)
    tilus.store(out, 7, 15)
    tilus.store(out, tilus.load(a, 3), 14)


def test_masks_and_single_elements(execute):
    out = np.zeros(16, np.int32)
    execute(masked, np.arange(100, 116, dtype=np.int32), out)
    assert out.tolist() == [108, -1, 110, -1, 112, -1, 114, -1, -1, -1, 0, 0, 0, 0, 103, 7]


def gathers(a: Tensor[int32, "m n"], out: Tensor[int32, "p q"], *, other: constexpr = 0):
    tilus.grid(1)
    rows, columns = tilus.arange(4) * 2 - 1, tilus.arange(8)
    tile = tilus.load(a, indices=(rows[:, None], columns[None, :]), mask=columns[None, :] < 6, other=other)
    tilus.store(out, tile, (0, 0))
    tilus.store(out, tile + 1000, indices=(tilus.arange(4)[:, None] + 4, 7 - columns), mask=tile > 0)
    tilus.store(out, tilus.load(a, indices=(1, 2)), (8, 0))


@pytest.mark.parametrize("other", [0, -5])
def test_index_tiles_gather_and_scatter(execute, other):
    a = np.arange(1, 31, dtype=np.int32).reshape(5, 6)
    out = np.zeros((9, 8), np.int32)
    execute(gathers, a, out, other=other)
    expected = np.full((4, 8), other)
    for i, row in enumerate((-1, 1, 3, 5)):
        if 0 <= row < 5:
            expected[i, :6] = a[row]
    assert out[:4].tolist() == expected.tolist()
    scattered = np.where(expected > 0, expected + 1000, 0)[:, ::-1]
    assert out[4:8].tolist() == scattered.tolist()
    assert out[8, 0] == a[1, 2]


def staged(a: Tensor[float32, "m n"], out: Tensor[float32, "m n"]):
    m, _ = a.shape
    tilus.grid(1)
    s = tilus.shared(float32, (2, 4, 8))
    steps = tilus.cdiv(m, 4)
    tilus.copy_async(s[0], a, (0, 0))
    tilus.copy_async_commit()
    for i in range(steps):
        tilus.copy_async(s[(i + 1) % 2], a, ((i + 1) * 4, 0))
        tilus.copy_async_commit()
        tilus.copy_async_wait(1)
        tilus.sync()
        tilus.store(out, tilus.load(s[i % 2]) + 1.0, (i * 4, 0))
        tilus.sync()


def test_stages_of_a_shared_tensor_are_copied_ahead(execute):
    a = np.random.default_rng(1).standard_normal((11, 8)).astype(np.float32)
    out = np.zeros_like(a)
    kernel = execute(staged, a, out)
    assert np.array_equal(out, a + 1)
    assert opcodes(kernel).count("copy_async") == 2
    assert [made.pending for made in operations(kernel, ops.CopyAsyncWait)] == [1]


def shared_parts(a: Tensor[float32, "m n"], out: Tensor[float32, "p q"]):
    tilus.grid(1)
    s = tilus.shared(float32, (8, 16))
    tilus.store(s, tilus.load(a, (0, 0), (8, 16)))
    tilus.sync()
    tilus.store(out, tilus.load(s[2:6, 4:8]), (0, 0))
    tilus.store(out, tilus.load(s.T[0:4, 1:5]), (4, 0))
    tilus.store(out, tilus.load(s[:, 3])[None, 0:4], (8, 0))
    tilus.store(out, tilus.load(s[-1])[None, 12:], (9, 0))
    tilus.store(s[0:8, 0:4].permute(1, 0), tilus.iota((4, 8), 1).to(float32))
    tilus.sync()
    tilus.store(out, tilus.load(s, indices=(tilus.arange(4), tilus.arange(4) + 2))[None, :], (10, 0))
    tilus.store(s, tilus.full(4, 9.0), indices=(tilus.arange(4), tilus.arange(4)))
    tilus.sync()
    tilus.store(out, tilus.load(s[0:1, 0:4]), (11, 0))


def test_parts_of_a_shared_tensor_name_its_memory(execute):
    a = np.random.default_rng(2).standard_normal((8, 16)).astype(np.float32)
    out = np.zeros((12, 4), np.float32)
    execute(shared_parts, a, out)
    assert np.array_equal(out[:4], a[2:6, 4:8])
    assert np.array_equal(out[4:8], a.T[0:4, 1:5])
    assert np.array_equal(out[8], a[:4, 3])
    assert np.array_equal(out[9], a[-1, 12:])
    s = a.copy()
    s[:, 0:4] = np.arange(8)[:, None]
    assert out[10].tolist() == [s[i, i + 2] for i in range(4)]
    assert out[11].tolist() == [9.0, 0.0, 0.0, 0.0]


def pointers(p: Pointer[float32], out: Tensor[float32, "n"], n: int32, *, static: constexpr = False):
    tilus.grid(1)
    rows = 4 if static else n
    matrix = tilus.view(p + 2, float32, (rows, 3))
    tilus.store(out, tilus.load(matrix, (1, 0), (2, 4)).reshape(8), 0)
    strided = tilus.view(p, float32, (3, 2), (5, 2))
    tilus.store(out, tilus.sum(tilus.load(strided, (0, 0), (4, 2))), 8)
    for _ in range(n):
        p = p + 1
    tilus.store(out, tilus.load(tilus.view(p - 1, float32, 2), 0), 9)
    cube = tilus.view(p - n, float32, (2, rows - 1, rows - 2))
    tilus.store(out, tilus.load(cube, (1, 1, 1)), 10)


@pytest.mark.parametrize("static", [False, True])
def test_tensors_are_made_of_pointers(execute, static):
    data = np.arange(20, dtype=np.float32)
    out = np.zeros(11, np.float32)
    kernel = execute(pointers, data, out, 4, static=static)
    assert out[:8].tolist() == [5, 6, 7, 0, 8, 9, 10, 0]
    assert out[8] == sum(data[5 * i + 2 * j] for i in range(3) for j in range(2))
    assert out[9] == 3
    assert out[10] == 6 + 2 + 1
    view = operations(kernel, ops.GlobalView)[0]
    assert (view.dims, view.steps) == (((4, 3) if static else (None, 3)), (3, 1))


def more_than_32_bits_count(
    p: Pointer[float32], out: Tensor[float32, "n"], sizes: Tensor[int64, "m"], n: int64, before: int32
):
    tilus.grid(1)
    again = tilus.view(p, float32, (2, n), (1, 0))
    tilus.store(sizes, again.shape[1], 0)
    places = n - 2 + tilus.cast(tilus.arange(4), int64)
    tilus.store(out, tilus.load(again, indices=(1, places), other=9), 0)
    tilus.store(out, tilus.load(again, (0, before), (1, 4)).reshape(4), 4)


def test_an_extent_may_have_64_bits(execute):
    out, sizes = np.zeros(8, np.float32), np.zeros(1, np.int64)
    execute(more_than_32_bits_count, np.array([3.0, 5.0], np.float32), out, sizes, (1 << 32) + 1, -2)
    assert out.tolist() == [5, 5, 9, 9, 0, 0, 3, 3]
    assert sizes.tolist() == [(1 << 32) + 1]


def seen_as_integers(p: Pointer[float32], out: Tensor[int32, "n"]):
    tilus.grid(1)
    bits = tilus.view(p, int32, (2,))
    tilus.store(out, tilus.load(bits, 0, 2), 0)


def test_a_pointer_is_seen_as_one_of_another_dtype():
    out = np.zeros(2, np.int32)
    interpret(seen_as_integers, np.array([1.0, -2.0], np.float32), out)
    assert out.tolist() == [0x3F800000, 0xC0000000 - (1 << 32)]


def counters(out: Tensor[int32, "n"], floats: Tensor[float32, "m k"]):
    tilus.grid(3)
    old = tilus.atomic_add(out, 1, 0)
    tilus.atomic_max(out, tilus.block_id() * 10, 1)
    tilus.atomic_add(out, tilus.full(4, 2, int32), 2)
    tilus.atomic_or(out, 1 << old, indices=6)
    tilus.atomic_add(floats, tilus.full((2, 4), 0.5), (1, 2))
    if tilus.atomic_cas(out, 0, 5, 7) == 0:
        tilus.atomic_exch(out, 6, 8)
    tilus.atomic_add(out, tilus.arange(8), indices=tilus.arange(8) % 2 + 9, mask=tilus.arange(8) > 1)


def test_atomics_update_tiles_and_elements(execute):
    out, floats = np.zeros(11, np.int32), np.zeros((4, 8), np.float32)
    execute(counters, out, floats)
    assert out.tolist() == [3, 20, 6, 6, 6, 6, 7, 5, 6, 3 * (2 + 4 + 6), 3 * (3 + 5 + 7)]
    expected = np.zeros((4, 8))
    expected[1:3, 2:6] = 1.5
    assert floats.tolist() == expected.tolist()


def extents(a: Tensor[float32, "m 64 d"], out: Tensor[int64, "n"], *, d: constexpr):
    m, rows, columns = a.shape
    tilus.static_assert((rows, columns) == (64, d))
    tilus.static_assert(a.shape[1] == 64 and a.shape[-1] == d and a.ndim == 3 and a.dtype == float32)
    tilus.static_assert(a.strides[1:] == (d, 1))
    tilus.grid(m)
    tilus.store(out, m.to(int64), 0)
    tilus.store(out, tilus.cast(a.strides[0], int64), 1)


def test_extents_that_are_known_are_ints(execute):
    out = np.zeros(2, np.int64)
    kernel = execute(extents, np.zeros((3, 64, 16), np.float32), out, d=16)
    assert out.tolist() == [3, 64 * 16]
    assert [made.axis for made in operations(kernel, ops.Dim)] == [0]


def other_strides(a: Tensor[float32, "m n"], out: Tensor[int64, "k"]):
    tilus.grid(1)
    tilus.store(out, a.strides[0] * 1000 + a.strides[1], 0)


def test_strides_of_a_launch_reach_the_kernel():
    source = KernelSource(other_strides)
    types = source.default_types({})
    types["a"] = GlobalType(float32, types["a"].dims, (tilus_symbol("s0"), tilus_symbol("s1")), 4)
    kernel = source.trace({}, types)
    out = np.zeros(1, np.int64)
    run(kernel, [np.zeros((4, 6), np.float32).T, out])
    assert out[0] == 1000 + 6


def tilus_symbol(name: str):
    from tilus.ir import Symbol

    return Symbol(name)


def cached(a: Tensor[uint4, "m n"]):
    tilus.grid(1)
    tile = tilus.load(a, (0, 0), (8, 16), cache="streaming", checked=False)
    tilus.store(a, tile, (0, 0), cache="persistent", checked=(True, False))


def test_cache_hints_and_promises_reach_the_operations():
    kernel = trace(cached)
    (load,) = operations(kernel, ops.LoadGlobal)
    (store,) = operations(kernel, ops.StoreGlobal)
    assert (load.cache, load.checked) == ("streaming", (False, False))
    assert (store.cache, store.checked) == ("persistent", (True, False))


def promised(a: Tensor[float16, "m n"], k: int32):
    _, n = a.shape
    tilus.grid(1)
    tilus.assume(n % 16 == 0)
    k = tilus.assume(k, 8)
    tilus.store(a, tilus.load(a, (0, n - k), (8, 8)), (0, k))


def test_promises_are_used_where_the_name_is_read():
    kernel = trace(promised)
    first, second = operations(kernel, ops.Assume)
    (difference,) = [made for made in operations(kernel, ops.Binary) if made.kind == "sub"]
    assert (difference.a, difference.b) == (first.result, second.result)
    assert (first.divisor, second.divisor) == (16, 8)


def messages(a: Tensor[int32, "n"], i: int32, *, name: constexpr = "block"):
    tilus.grid(1)
    tilus.device_print("i = {} of {{}}", i)
    tilus.device_print(f"{name} {{{i}}} and {i + 1}, {3:02d}")
    tilus.device_print("{}", tilus.load(a, 0, 4))
    tilus.device_assert(i > 0, f"i is positive in {name}")
    tilus.device_assert(tilus.load(a, 0, 4) >= 0)


def test_printing_has_a_format_and_values():
    kernel = trace(messages)
    assert [made.format for made in operations(kernel, ops.Print)] == [
        "i = {} of {{}}", "block {{{}}} and {}, 03", "{}",
    ]  # fmt: skip
    assert [made.message for made in operations(kernel, ops.Assert)] == ["i is positive in block", ""]
    lines = []
    run(kernel, [np.arange(4, dtype=np.int32), 7], output=lines.append)
    assert "7" in lines[0]
    assert "{7} and 8, 03" in lines[1]


def ptx(a: Tensor[float32, "n"], i: int32):
    tilus.grid(1)
    tile = tilus.load(a, 0, 128)
    doubled = tilus.inline_ptx("add.f32 $0, $1, $2;", [tile, tile], float32)
    both, other = tilus.inline_ptx("mov.b32 $0, $2; mov.b32 $1, $3;", [i, i], [int32, int32], volatile=True)
    tilus.store(a, doubled * (both + other), 0)


def test_inline_ptx_has_typed_operands():
    first, second = operations(trace(ptx), ops.InlinePtx)
    assert (first.shape, first.dtypes, first.volatile) == ((128,), (float32,), False)
    assert (second.shape, second.dtypes, second.volatile) == (None, (int32, int32), True)


def roles(a: Tensor[float32, "n"], out: Tensor[float32, "n"]):
    tilus.grid(1, warps=4)
    s = tilus.shared(float32, 64)
    full = tilus.barrier(arrivals=64)
    with tilus.warps(0, 2):
        tilus.store(s, tilus.load(a, 0, 64))
        full.arrive()
    with tilus.warps(2, 2, registers=40):
        full.wait(0)
        tilus.store(out, tilus.load(s) * 2.0, 0)


def test_groups_of_warps_hand_over_by_a_barrier():
    kernel = trace(roles)
    first, second = operations(kernel, ops.WarpGroup)
    assert (first.first, first.count, first.registers) == (0, 2, 0)
    assert (second.first, second.count, second.registers) == (2, 2, 40)
    assert [made.opcode for made in second.body.ops] == [
        "constant", "barrier_wait", "load_shared", "constant", "splat", "binary", "constant", "store_global", "yield",
    ]  # fmt: skip


def bulk(a: Tensor[float16, "m n"], out: Tensor[float16, "m n"]):
    tilus.grid(1, cluster=(2, 1), warps=4)
    s = tilus.shared(float16, (2, 64, 64))
    full = tilus.barrier(2)
    for i in tilus.static_range(2):
        full.arrive(index=i, bytes=64 * 64 * 2)
        tilus.copy_bulk(s[i], a, (i * 64, 0), full, index=i)
        tilus.wait(full, 0, index=i)
    tilus.fence("async")
    tilus.store(out, tilus.load(s[0]), (tilus.cluster_rank() * 64, 0))


def test_bulk_copies_complete_on_barriers():
    kernel = trace(bulk)
    assert kernel.cluster == (2, 1, 1)
    assert opcodes(kernel).count("copy_bulk") == 2
    assert [made.bytes for made in operations(kernel, ops.BarrierArrive)] == [8192, 8192]
    assert operations(kernel, ops.Fence)[0].kind == "async"


def pipelined(a: Tensor[float16, "m k"], out: Tensor[float32, "m"]):
    tilus.grid(1)
    acc = tilus.zeros(16)
    for k in tilus.pipeline(range(0, a.shape[1], 16), stages=3):
        acc += tilus.sum(tilus.load(a, (0, k), (16, 16)).to(float32), 1)
    for i in tilus.unroll(range(4)):
        acc += i
    for i in tilus.unroll(range(4), 2):
        acc += i
    tilus.store(out, acc, 0)


def test_loops_carry_the_wishes_of_pipeline_and_unroll():
    loops = operations(trace(pipelined), ops.For)
    assert [(loop.stages, loop.unroll) for loop in loops] == [(3, 0), (0, -1), (0, 2)]


def unsigned_places(
    a: Tensor[int32, "n"], u: Tensor["dtype", "k"], out: Tensor[int32, "k"], *, dtype: constexpr
):
    tilus.grid(1)
    tilus.store(out, tilus.load(a, indices=tilus.load(u, 0, 8), other=-1), 0)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.uint32, np.uint64])
def test_places_of_any_unsigned_type_lie_inside_or_outside(dtype, execute):
    places = np.array([0, 4, 5, 9, 1, 2, 255, np.iinfo(dtype).max], dtype)
    out = np.zeros(8, np.int32)
    execute(
        unsigned_places,
        np.arange(10, 15, dtype=np.int32),
        places,
        out,
        dtype=tilus.dtype(np.dtype(dtype).name),
    )
    assert out.tolist() == [10, 14, -1, -1, 11, 12, -1, -1]
