"""Loads, stores, addresses and variables of every state space."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tests.simulator.support import load
from tilus import simulator

POINTERS = ".param .u64 src, .param .u64 dst"
BEGIN = """
.reg .b64 %s, %d, %o; .reg .b32 %t;
ld.param.u64 %s, [src]; ld.param.u64 %d, [dst];
mov.u32 %t, %tid.x;
"""


@pytest.mark.parametrize(
    ("count", "bits"), [(1, 8), (1, 16), (1, 32), (1, 64), (2, 32), (4, 32), (2, 64), (4, 16), (8, 32)]
)
@pytest.mark.parametrize("modifier", ["", ".nc", ".volatile", ".relaxed.gpu", ".L1::no_allocate", ".cg"])
def test_global_vectors(count: int, bits: int, modifier: str) -> None:
    if (modifier == ".volatile" and count * bits > 128) or (modifier == ".nc" and bits == 8 and count > 1):
        modifier = ""
    size = count * bits // 8
    register = f"%r<{count}>"
    names = "{" + ", ".join(f"%r{i}" for i in range(count)) + "}" if count > 1 else "%r0"
    vector = f".v{count}" if count > 1 else ""
    order = modifier if modifier.startswith((".vol", ".rel")) else ""
    space = "" if order else modifier
    body = f"""{BEGIN}
    .reg .b{max(bits, 16)} {register};
    mul.wide.u32 %o, %t, {size}; add.u64 %s, %s, %o; add.u64 %d, %d, %o;
    ld{order}.global{space}{vector}.b{bits} {names}, [%s];
    st.global{vector}.b{bits} [%d], {names};
    """
    src = np.random.default_rng(0).integers(0, 256, 64 * size, np.uint8)
    dst = np.zeros_like(src)
    report = load(body, POINTERS).launch(1, 64, [src, dst])
    assert report.hazards == []
    np.testing.assert_array_equal(src, dst)
    assert report.counters["global_bytes_read"] == 64 * size


def test_narrow_loads_extend_by_their_sign() -> None:
    body = f"""{BEGIN} .reg .b32 %r<4>; .reg .b64 %w;
    ld.global.s8 %r0, [%s]; ld.global.u8 %r1, [%s+1]; ld.global.s16 %r2, [%s+2]; ld.global.s32 %w, [%s+4];
    st.global.v2.b32 [%d], {{%r0, %r1}}; st.global.b32 [%d+8], %r2; st.global.b64 [%d+16], %w;
    """
    src, dst = np.array([0x8081FFFE, 0x80000001], np.uint32), np.zeros(6, np.uint32)
    load(body, POINTERS).launch(1, 1, [src, dst]).raise_if_hazards()
    assert dst.tolist() == [0xFFFFFFFE, 0xFF, 0xFFFF8081, 0, 0x80000001, 0xFFFFFFFF]


def test_spaces_by_generic_address() -> None:
    body = f"""{BEGIN} .reg .b64 %g<3>; .reg .b32 %v<3>; .reg .pred %p, %q, %z;
    .shared .align 4 .b8 sh[256]; .local .align 4 .b8 lo[8];
    cvta.shared.u64 %g0, sh; mul.wide.u32 %o, %t, 4; add.u64 %g0, %g0, %o; st.u32 [%g0], %t;
    bar.warp.sync -1; ld.shared.u32 %v0, [sh];
    mov.u64 %g1, lo; cvta.local.u64 %g1, %g1; add.u32 %v1, %t, 100; st.u32 [%g1+4], %v1; ld.local.u32 %v1, [lo+4];
    ld.u32 %v2, [%g0];
    isspacep.shared %p, %g0; isspacep.local %q, %g1; isspacep.global %z, %d;
    and.pred %p, %p, %q; and.pred %p, %p, %z; selp.u32 %t, %v1, 0, %p;
    add.u32 %t, %t, %v2; add.u64 %d, %d, %o; st.u32 [%d], %t;
    """
    out = np.zeros(64, np.uint32)
    assert load(body, POINTERS).launch(1, 32, [out, out]).hazards == []
    assert out[:32].tolist() == [2 * i + 100 for i in range(32)]


def test_one_access_may_reach_several_spaces_and_arrays() -> None:
    body = f"""{BEGIN} .reg .b64 %g; .reg .b32 %v; .reg .pred %p, %q; .shared .align 4 .b32 sh;
    setp.eq.u32 %p, %t, 0; @%p st.shared.u32 [sh], 7; bar.warp.sync -1;
    and.b32 %v, %t, 1; setp.eq.u32 %p, %v, 0; setp.gt.u32 %q, %t, 15;
    cvta.shared.u64 %g, sh; selp.b64 %g, %g, %s, %p; @%q add.u64 %g, %d, 256;
    ld.u32 %v, [%g]; mul.wide.u32 %o, %t, 4; add.u64 %d, %d, %o; st.global.u32 [%d], %v;
    """
    src, dst = np.array([5], np.uint32), np.zeros(65, np.uint32)
    dst[64] = 9
    assert load(body, POINTERS).launch(1, 32, [src, dst]).hazards == []
    assert dst[:32].tolist() == [7, 5] * 8 + [9] * 16


def test_module_variables_keep_their_values() -> None:
    before = """
    .global .align 4 .u32 counter = 5;
    .const .align 4 .f32 table[4] = {1.5, 0f40000000, -3, 4e0};
    .global .align 8 .u64 pointer = counter;
    .global .align 8 .u64 generic_pointer = generic(counter);
    """
    body = f"""{BEGIN} .reg .b32 %v, %w; .reg .b64 %p;
    ld.global.u32 %v, [counter]; add.u32 %v, %v, 1; st.global.u32 [counter], %v;
    ld.const.b32 %w, [table+4]; ld.global.u64 %p, [pointer]; ld.global.u32 %v, [%p];
    st.global.v2.u32 [%d], {{%v, %w}};
    """
    kernel = load(body, POINTERS, before)
    out = np.zeros(2, np.uint32)
    for want in (6, 7):
        assert kernel.launch(1, 1, [out, out]).hazards == []
        assert out.tolist() == [want, 0x40000000]


def test_structs_by_value_and_parameter_arrays() -> None:
    body = """
    .reg .b64 %d, %p; .reg .b32 %a, %t; .reg .f64 %f; ld.param.u64 %d, [out]; ld.param.b32 %a, [s];
    ld.param.f64 %f, [s+8];
    mov.b64 %p, s; cvta.param.u64 %p, %p; mov.u32 %t, %tid.x; mul.lo.u32 %t, %t, 8; cvt.u64.u32 %p, %t;
    st.global.u32 [%d], %a; st.global.f64 [%d+8], %f;
    """
    import struct

    out = np.zeros(2, np.float64)
    kernel = load(body, ".param .align 8 .b8 s[16], .param .u64 out")
    assert [(p.name, p.size, p.offset) for p in kernel.params] == [("s", 16, 0), ("out", 8, 16)]
    assert kernel.launch(1, 1, [struct.pack("<i4xd", 3, 2.5), out]).hazards == []
    assert out.view(np.int32)[0] == 3
    assert out[1] == 2.5


def test_numbers_are_packed_by_the_parameters_type() -> None:
    parameters = (
        ".param .f32 a, .param .f64 b, .param .u8 c, .param .s16 e, .param .b32 f, "
        ".param .b64 g, .param .u64 out"
    )
    body = """.reg .b32 %a, %c, %e, %f; .reg .b64 %b, %g, %d; ld.param.b32 %a, [a]; ld.param.b64 %b, [b];
    ld.param.u8 %c, [c]; ld.param.s16 %e, [e]; ld.param.b32 %f, [f]; ld.param.b64 %g, [g]; ld.param.u64 %d, [out];
    st.global.b32 [%d], %a; st.global.b64 [%d+8], %b; st.global.b32 [%d+16], %c; st.global.b32 [%d+20], %e;
    st.global.b32 [%d+24], %f; st.global.b64 [%d+32], %g;"""
    out = np.zeros(5, np.uint64)
    load(body, parameters).launch(1, 1, [1.5, 2.5, 200, -2, 0.5, -1, out]).raise_if_hazards()
    assert out.view(np.float32)[0] == 1.5
    assert out.view(np.float64)[1] == 2.5
    assert out.view(np.int32)[4:7].tolist() == [200, -2, 0x3F000000]
    assert out.view(np.int64)[4] == -1


def test_local_memory_is_each_threads_own() -> None:
    body = f"""{BEGIN} .local .align 16 .b8 lo[64]; .reg .b32 %i, %v; .reg .b64 %a; .reg .pred %p;
    mov.u32 %i, 0;
    loop: mul.lo.u32 %v, %i, %t; mul.wide.u32 %o, %i, 4; mov.u64 %a, lo; add.u64 %a, %a, %o; st.local.u32 [%a], %v;
    add.u32 %i, %i, 1; setp.lt.u32 %p, %i, 16; @%p bra loop;
    and.b32 %i, %t, 15; mul.wide.u32 %o, %i, 4; mov.u64 %a, lo; add.u64 %a, %a, %o; ld.local.u32 %v, [%a];
    mul.wide.u32 %o, %t, 4; add.u64 %d, %d, %o; st.global.u32 [%d], %v;
    """
    out = np.zeros(96, np.uint32)
    assert load(body, POINTERS).launch(1, 96, [out, out]).hazards == []
    assert out.tolist() == [(i & 15) * i for i in range(96)]


def test_a_pointer_into_the_middle_of_an_array() -> None:
    body = f"{BEGIN} .reg .b32 %v; ld.global.u32 %v, [%s+-4]; st.global.u32 [%d], %v;"
    data, out = np.arange(10, dtype=np.uint32), np.zeros(1, np.uint32)
    assert load(body, POINTERS).launch(1, 1, [data[5:], out]).hazards == []
    assert out[0] == 4


def test_device_arrays_keep_their_address() -> None:
    array = simulator.device_array(np.arange(4, dtype=np.uint32))
    table = np.array([array.address + 8], np.uint64)
    body = f"{BEGIN} .reg .b32 %v; ld.global.u64 %s, [%s]; ld.global.u32 %v, [%s]; st.global.u32 [%d], %v;"
    out = np.zeros(1, np.uint32)
    assert load(body, POINTERS).launch(1, 1, [table, out]).hazards == []
    assert out[0] == 2
    assert load(body, POINTERS).launch(1, 1, [table, array[1:]]).hazards == []
    assert array.tolist() == [0, 2, 2, 3]


def test_torch_tensors_are_written_in_place() -> None:
    torch: Any = pytest.importorskip("torch", reason="torch is an optional companion of the simulator")
    body = f"{BEGIN} .reg .b16 %v; ld.global.b16 %v, [%s]; st.global.b16 [%d+2], %v;"
    src, dst = torch.tensor([1.5], dtype=torch.bfloat16), torch.zeros(4, dtype=torch.bfloat16)
    assert load(body, POINTERS).launch(1, 1, [src, dst[1:]]).hazards == []
    assert dst.tolist() == [0.0, 0.0, 1.5, 0.0]


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ([np.zeros(1)], "takes 2 arguments"),
        ([np.zeros(1), "text"], "str"),
        ([np.zeros(1), 1 << 70], "beyond 64 bits"),
        ([b"123", np.zeros(1)], "3 bytes, the parameter 8"),
    ],
)
def test_wrong_arguments_are_refused(args: list[Any], message: str) -> None:
    with pytest.raises(simulator.LaunchError, match=message):
        load(BEGIN, POINTERS).launch(1, 1, args)


@pytest.mark.parametrize(
    ("keywords", "message"),
    [
        ({"grid": 0, "block": 1}, "grid"),
        ({"grid": 1, "block": (1024, 2)}, "at most 1024"),
        ({"grid": 3, "block": 1, "cluster": 2}, "no multiple of cluster"),
        ({"grid": 1, "block": 1, "shared_bytes": 1 << 20}, "shared memory"),
        ({"grid": 1, "block": 1, "checks": {"everything"}}, "unknown check 'everything'"),
        ({"grid": 1, "block": 1, "checks": "everything"}, "unknown check 'everything'"),
        ({"grid": 1, "block": 1, "checks": [1]}, "unknown check 1"),
        ({"grid": 1, "block": 1, "checks": None}, "checks is None, expected True, False, or some of async"),
    ],
)
def test_wrong_launches_are_refused(keywords: dict[str, Any], message: str) -> None:
    with pytest.raises(simulator.LaunchError, match=message):
        load("ret;").launch(args=[], **keywords)


def test_one_check_may_be_named_alone() -> None:
    assert not load("ret;").launch(1, 1, [], checks="async").hazards


def test_addresses_of_32_bits_wrap_around() -> None:
    # Compilers fold `base - 4 * t` and a constant offset so that the register alone lies below zero.
    out = np.zeros(32, np.uint32)
    kernel = load(
        """.reg .b32 %t, %a, %v; .reg .b64 %o, %x; .shared .align 4 .b8 sh[128];
        ld.param.u64 %o, [out]; mov.u32 %t, %tid.x; shl.b32 %a, %t, 2; st.shared.u32 [%a], %t; bar.sync 0;
        neg.s32 %a, %a; ld.shared.u32 %v, [%a+124];
        mul.wide.u32 %x, %t, 4; add.u64 %o, %o, %x; st.global.u32 [%o], %v;""",
        ".param .u64 out",
    )
    kernel.launch(1, 32, [out]).raise_if_hazards()
    assert out.tolist() == list(range(31, -1, -1))


def test_reserved_shared_memory_lies_behind_the_kernels_own() -> None:
    out = np.zeros(6, np.uint32)
    names = ("begin", "end", "cap", "0", "1")
    body = "".join(
        f"mov.u32 %v, %reserved_smem_offset_{name}; st.global.u32 [%o+{4 * i}], %v;"
        for i, name in enumerate(names)
    )
    kernel = load(
        f""".reg .b32 %v, %a; .reg .b64 %o; .shared .align 4 .b8 sh[100]; ld.param.u64 %o, [out]; {body}
        mov.u32 %a, %reserved_smem_offset_1; ld.shared.u32 %v, [%a]; mov.u32 %v, %total_smem_size;
        st.global.u32 [%o+20], %v;""",
        ".param .u64 out",
    )
    kernel.launch(1, 1, [out], shared_bytes=60).raise_if_hazards()
    assert out.tolist() == [256, 256 + 1024, 1024, 256, 256, 256]


def test_an_unknown_kernel_names_those_there_are() -> None:
    with pytest.raises(simulator.LaunchError, match="no kernel 'x' in this module; it has k"):
        simulator.load(".version 8.0\n.target sm_80\n.address_size 64\n.visible .entry k() { ret; }")["x"]
