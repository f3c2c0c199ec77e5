"""Exchange within a warp against the ISA's own definitions, also in divergent code."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tests.simulator.support import apply, integers, load

LANES = np.arange(32, dtype=np.uint32)


@pytest.mark.parametrize("mode", ["up", "down", "bfly", "idx"])
@pytest.mark.parametrize("width", [32, 16, 8, 4])
def test_shuffles(mode: str, width: int) -> None:
    values = integers(32, 32)
    c = (32 - width) << 8 | (0 if mode == "up" else 31)
    for b in (0, 1, 2, 5, 15, 31):
        moved = apply(f"shfl.sync.{mode}.b32 {{d}}, {{a}}, {b}, {c}, -1;", values)
        valid = apply(
            f".reg .b32 %z; shfl.sync.{mode}.b32 %z|{{d}}, {{a}}, {b}, {c}, -1;", values, result="pred"
        )
        segment, clamp = c >> 8 & 31, c & 31
        for lane in range(32):
            top, bottom = (lane & segment) | (clamp & ~segment), lane & segment
            j = {"up": lane - b, "down": lane + b, "bfly": lane ^ b, "idx": bottom | (b & ~segment)}[mode]
            ok = j >= top if mode == "up" else j <= top
            assert int(moved[lane]) == int(values[j if ok else lane])
            assert int(valid[lane]) == int(ok)


def test_votes() -> None:
    flags = (np.arange(64) % 3 == 0).astype(int)
    zero = np.zeros(64, np.uint32)
    ballot = apply("vote.sync.ballot.b32 {d}, {p}, -1;", zero, predicates=(flags,))
    for warp in range(2):
        want = sum(int(f) << i for i, f in enumerate(flags[warp * 32 : warp * 32 + 32]))
        assert set(ballot[warp * 32 : warp * 32 + 32].tolist()) == {want}
    for name, pattern, want in (
        ("any", [0] * 31 + [1], 1),
        ("all", [0] * 31 + [1], 0),
        ("uni", [0] * 32, 1),
        ("all", [1] * 32, 1),
    ):
        got = apply(
            f"vote.sync.{name}.pred {{d}}, {{p}}, -1;",
            zero[:32],
            predicates=(np.array(pattern),),
            result="pred",
        )
        assert set(got.tolist()) == {want}


def test_match() -> None:
    values = np.array([i % 5 for i in range(32)], np.uint32)
    got = apply("match.any.sync.b32 {d}, {a}, -1;", values)
    assert got.tolist() == [sum(1 << j for j in range(32) if values[j] == v) for v in values]
    text = ".reg .b32 %z; match.all.sync.b64 %z|{d}, {a}, -1;"
    assert set(apply(text, np.full(32, 7, np.uint64), result="pred").tolist()) == {1}
    assert set(apply(text, np.arange(32, dtype=np.uint64), result="pred").tolist()) == {0}


@pytest.mark.parametrize(
    ("name", "type", "function"),
    [
        ("add", "u32", lambda v: int(v.astype(np.uint64).sum() & 0xFFFFFFFF)),
        ("min", "u32", lambda v: int(v.min())),
        ("max", "s32", lambda v: int(v.view(np.int32).max()) & 0xFFFFFFFF),
        ("and", "b32", lambda v: int(np.bitwise_and.reduce(v))),
        ("or", "b32", lambda v: int(np.bitwise_or.reduce(v))),
        ("xor", "b32", lambda v: int(np.bitwise_xor.reduce(v))),
    ],
)
def test_redux(name: str, type: str, function: Any) -> None:
    values = integers(32, 64)
    got = apply(f"redux.sync.{name}.{type} {{d}}, {{a}}, -1;", values)
    for warp in (values[:32], values[32:]):
        assert function(warp) in got.tolist()
    assert got.tolist() == [function(values[:32])] * 32 + [function(values[32:])] * 32


def test_float_redux() -> None:
    values = np.random.default_rng(0).standard_normal(32).astype(np.float32)
    got = apply("redux.sync.max.abs.f32 {d}, {a}, -1;", values).view(np.float32)
    assert set(got.tolist()) == {float(np.abs(values).max())}
    values[3] = np.nan
    assert set(apply("redux.sync.min.f32 {d}, {a}, -1;", values).view(np.float32).tolist()) == {
        float(np.nanmin(values))
    }
    assert set(apply("redux.sync.min.NaN.f32 {d}, {a}, -1;", values).tolist()) == {0x7FFFFFFF}


def test_elect_picks_one_lane() -> None:
    zero = np.zeros(32, np.uint32)
    assert apply(".reg .b32 %z; elect.sync %z|{d}, -1;", zero, result="pred").tolist() == [1] + [0] * 31
    assert set(apply(".reg .pred %z; elect.sync {d}|%z, 0xFFFFFFFF;", zero).tolist()) == {0}


def test_lane_masks() -> None:
    zero = np.zeros(32, np.uint32)
    for name, want in {
        "eq": lambda i: 1 << i,
        "lt": lambda i: (1 << i) - 1,
        "le": lambda i: (2 << i) - 1,
        "gt": lambda i: 0xFFFFFFFF & ~((2 << i) - 1),
        "ge": lambda i: 0xFFFFFFFF & ~((1 << i) - 1),
    }.items():
        assert apply(f"mov.u32 {{d}}, %lanemask_{name};", zero).tolist() == [want(i) for i in range(32)]


DIVERGENT = """
.reg .b64 %o, %x; .reg .b32 %t, %l, %v, %m, %w; .reg .pred %p;
ld.param.u64 %o, [out]; mov.u32 %t, %tid.x; mov.u32 %l, %laneid; mul.wide.u32 %x, %t, 4; add.u64 %o, %o, %x;
and.b32 %w, %l, 1; setp.eq.u32 %p, %w, 0; @%p bra even;
"""


def test_both_sides_of_a_branch_shuffle_among_themselves() -> None:
    body = f"""{DIVERGENT}
    shfl.sync.bfly.b32 %v, %t, 2, 31, 0xAAAAAAAA; add.u32 %v, %v, 1000; activemask.b32 %m; bra.uni done;
    even: shfl.sync.bfly.b32 %v, %t, 4, 31, 0x55555555; activemask.b32 %m;
    done: bar.warp.sync -1; st.global.u32 [%o], %v; activemask.b32 %m; st.global.u32 [%o+256], %m;
    """
    out = np.zeros(128, np.uint32)
    assert load(body, ".param .u64 out").launch(1, 64, [out]).hazards == []
    assert out[:64].tolist() == [(t ^ 2) + 1000 if t & 1 else t ^ 4 for t in range(64)]
    assert set(out[64:].tolist()) == {0xFFFFFFFF}


def test_lanes_wait_for_those_their_mask_names() -> None:
    # The odd lanes loop before they reach the other instruction with the same full mask.
    body = f"""{DIVERGENT}
    mov.u32 %m, 0; again: add.u32 %m, %m, 1; setp.lt.u32 %p, %m, %l; @%p bra again;
    even: shfl.sync.idx.b32 %v, %l, 7, 31, -1; st.global.u32 [%o], %v;
    """
    out = np.zeros(32, np.uint32)
    assert load(body, ".param .u64 out").launch(1, 32, [out]).hazards == []
    assert out.tolist() == [7] * 32


def test_a_mask_without_the_lane_itself_is_reported() -> None:
    report = load(".reg .b32 %v; mov.u32 %v, %laneid; shfl.sync.idx.b32 %v, %v, 0, 31, 1;").launch(1, 32)
    assert [h.kind for h in report.hazards] == ["illegal-instruction"]


def test_lanes_that_never_come_are_reported() -> None:
    body = f"""{DIVERGENT}
    bar.sync 1, 64; bra.uni done;
    even: shfl.sync.idx.b32 %v, %l, 7, 31, -1;
    done: ret;
    """
    report = load(body, ".param .u64 out").launch(1, 32, [np.zeros(32, np.uint32)])
    assert [h.kind for h in report.hazards] == ["barrier-divergence"] * len(report.hazards)
    assert report.hazards


def test_ragged_blocks_run_their_last_warp_with_fewer_lanes() -> None:
    body = """.reg .b64 %o, %x; .reg .b32 %t, %m; .reg .pred %p; ld.param.u64 %o, [out]; mov.u32 %t, %tid.x;
    activemask.b32 %m; mul.wide.u32 %x, %t, 4; add.u64 %o, %o, %x; st.global.u32 [%o], %m; bar.sync 0;"""
    out = np.zeros(48, np.uint32)
    assert load(body, ".param .u64 out").launch(1, 48, [out]).hazards == []
    assert out.tolist() == [0xFFFFFFFF] * 32 + [0xFFFF] * 16
