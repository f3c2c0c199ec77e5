"""Warp matrix instructions as PTX programs: a product through shared memory, stores, transposes."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tests.simulator.support import load

GEMM = """
.reg .b64 %a, %b, %c, %x, %y; .reg .b32 %t, %s, %r, %i, %f<4>, %h<4>, %q<2>; .reg .b16 %z; .reg .pred %p;
.shared .align 16 .b8 sh[1024];
ld.param.u64 %a, [pa]; ld.param.u64 %b, [pb]; ld.param.u64 %c, [pc]; mov.u32 %t, %tid.x; mov.u32 %s, sh;
// A is 16 x 16 halves (512 bytes), B 16 x 8 (256 bytes).
shl.b32 %i, %t, 4; mul.wide.u32 %x, %t, 16; add.u64 %a, %a, %x; add.u32 %r, %s, %i;
ld.global.v4.b32 {%h0, %h1, %h2, %h3}, [%a]; st.shared.v4.b32 [%r], {%h0, %h1, %h2, %h3};
setp.lt.u32 %p, %t, 16; add.u64 %b, %b, %x;
@%p ld.global.v4.b32 {%h0, %h1, %h2, %h3}, [%b]; @%p st.shared.v4.b32 [%r+512], {%h0, %h1, %h2, %h3};
bar.sync 0;
and.b32 %i, %t, 15; shl.b32 %i, %i, 5; add.u32 %r, %s, %i; shr.u32 %i, %t, 4; shl.b32 %i, %i, 4; add.u32 %r, %r, %i;
ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%h0, %h1, %h2, %h3}, [%r];
and.b32 %i, %t, 15; shl.b32 %i, %i, 4; add.u32 %r, %s, %i;
ldmatrix.sync.aligned.m8n8.x2.trans.shared.b16 {%q0, %q1}, [%r+512];
mov.b32 %f0, 0; mov.b32 %f1, 0; mov.b32 %f2, 0; mov.b32 %f3, 0;
mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%f0, %f1, %f2, %f3}, {%h0, %h1, %h2, %h3},
    {%q0, %q1}, {%f0, %f1, %f2, %f3};
shr.u32 %i, %t, 2; mul.wide.u32 %x, %i, 32; and.b32 %i, %t, 3; mul.wide.u32 %y, %i, 8;
add.u64 %c, %c, %x; add.u64 %c, %c, %y;
st.global.v2.b32 [%c], {%f0, %f1}; st.global.v2.b32 [%c+256], {%f2, %f3};
"""
POINTERS = ".param .u64 pa, .param .u64 pb, .param .u64 pc"


def operands() -> tuple[Any, Any]:
    rng = np.random.default_rng(0)
    return rng.standard_normal((16, 16)).astype(np.float16), rng.standard_normal((16, 8)).astype(np.float16)


def test_a_product_through_ldmatrix_and_mma() -> None:
    a, b = operands()
    c = np.zeros((16, 8), np.float32)
    assert load(GEMM, POINTERS).launch(1, 32, [a, b, c]).hazards == []
    np.testing.assert_allclose(c, a.astype(np.float64) @ b.astype(np.float64), rtol=1e-5, atol=1e-5)


def test_matrix_instructions_need_the_whole_warp() -> None:
    a, b = operands()
    body = GEMM.replace(
        "ldmatrix.sync.aligned.m8n8.x4", "setp.gt.u32 %p, %t, 20; @%p ret; ldmatrix.sync.aligned.m8n8.x4"
    )
    report = load(body, POINTERS).launch(1, 32, [a, b, np.zeros((16, 8), np.float32)])
    assert [h.kind for h in report.hazards] == ["barrier-divergence"]


@pytest.mark.parametrize(("text", "kind"), [("[%r+8]", "misaligned"), ("[%r+1024]", "out-of-bounds")])
def test_bad_row_addresses(text: str, kind: str) -> None:
    a, b = operands()
    body = GEMM.replace("{%h0, %h1, %h2, %h3}, [%r];\nand", "{%h0, %h1, %h2, %h3}, " + text + ";\nand")
    report = load(body, POINTERS).launch(1, 32, [a, b, np.zeros((16, 8), np.float32)])
    assert [h.kind for h in report.hazards] == [kind]


def test_reading_rows_before_the_barrier_is_a_race() -> None:
    a, b = operands()
    report = load(GEMM.replace("bar.sync 0;", ""), POINTERS).launch(
        1, 32, [a, b, np.zeros((16, 8), np.float32)]
    )
    assert {h.kind for h in report.hazards} == {"shared-race"}


@pytest.mark.parametrize("transposed", [False, True])
def test_stores_and_loads_are_inverse(transposed: bool) -> None:
    trans = ".trans" if transposed else ""
    body = f"""
    .reg .b64 %a, %c, %x; .reg .b32 %t, %s, %r, %h<4>, %g<4>; .shared .align 16 .b8 sh[512];
    ld.param.u64 %a, [pa]; ld.param.u64 %c, [pc]; mov.u32 %t, %tid.x; mov.u32 %s, sh;
    mul.wide.u32 %x, %t, 16; add.u64 %a, %a, %x; add.u64 %c, %c, %x; shl.b32 %r, %t, 4; add.u32 %r, %r, %s;
    ld.global.v4.b32 {{%h0, %h1, %h2, %h3}}, [%a];
    stmatrix.sync.aligned.m8n8.x4{trans}.shared.b16 [%r], {{%h0, %h1, %h2, %h3}};
    bar.warp.sync -1;
    ldmatrix.sync.aligned.m8n8.x4.shared.b16 {{%g0, %g1, %g2, %g3}}, [%r];
    st.global.v4.b32 [%c], {{%g0, %g1, %g2, %g3}};
    """
    data = np.arange(256, dtype=np.uint16)
    out = np.zeros_like(data)
    assert load(body, POINTERS).launch(1, 32, [data, data, out]).hazards == []
    matrices = data.view(np.uint32).reshape(32, 4).T.copy().view(np.uint16).reshape(4, 8, 8)
    want = matrices.transpose(0, 2, 1) if transposed else matrices
    got = out.view(np.uint32).reshape(32, 4).T.copy().view(np.uint16).reshape(4, 8, 8)
    assert got.tolist() == want.tolist()


def test_movmatrix_transposes() -> None:
    body = """.reg .b64 %a, %c, %x; .reg .b32 %t, %h; ld.param.u64 %a, [pa]; ld.param.u64 %c, [pc]; mov.u32 %t, %tid.x;
    mul.wide.u32 %x, %t, 4; add.u64 %a, %a, %x; add.u64 %c, %c, %x; ld.global.b32 %h, [%a];
    movmatrix.sync.aligned.m8n8.trans.b16 %h, %h; st.global.b32 [%c], %h;"""
    data = np.arange(64, dtype=np.uint16)
    out = np.zeros_like(data)
    assert load(body, POINTERS).launch(1, 32, [data, data, out]).hazards == []
    assert out.reshape(8, 8).tolist() == data.reshape(8, 8).T.tolist()
