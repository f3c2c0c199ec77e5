"""Forms of instructions and of syntax: what must load, and what is refused with its line."""

from __future__ import annotations

import re

import numpy as np
import pytest

from tests.simulator.support import load
from tilus import simulator

REGISTERS = """.reg .b16 %h<9>; .reg .b32 %r<9>; .reg .b64 %d<9>; .reg .b128 %q<9>; .reg .pred %p<9>;
.shared .align 128 .b8 sh[4096]; .shared .align 8 .b64 bar; .local .align 16 .b8 loc[64];
"""
MODULE = ".const .align 8 .b8 cst[64];\n.global .align 8 .b8 glb[64];\n"

# Each form of the ISA's syntax sections that no other test has; an assembler takes all of them.
FORMS = """
lop3.or.b32 %r1|%p1, %r2, %r3, %r4, 0x3f, %p2;
lop3.and.b32 %r1|%p1, %r2, %r3, %r4, 0x3f, !%p2;
lop3.and.b32 _|%p1, %r2, %r3, %r4, 0x3f, %p2;
fma.rn.oob.f16 %h1, %h2, %h3, %h4;
fma.rn.oob.relu.f16x2 %r1, %r2, %r3, %r4;
fma.rn.oob.bf16x2 %r1, %r2, %r3, %r4;
cp.async.ca.shared.global [sh], [%d1], 8, 4;
cp.async.ca.shared.global [sh], [%d1], 8, %p1;
cp.async.cg.shared.global [sh], [%d1], 16, %r1;
cp.async.cg.shared.global.L2::cache_hint.L2::256B [sh], [%d1], 16, %r1, %d2;
cp.async.cg.shared.global.L2::cache_hint [sh], [%d1], 16, %d2;
cp.async.cg.shared.global.L2::cache_hint [sh], [%d1], 16, %p1, %d2;
cp.async.bulk.shared::cta.global.mbarrier::complete_tx::bytes [sh], [%d1], 64, [bar];
cp.async.bulk.shared::cta.global.mbarrier::complete_tx::bytes.L2::cache_hint [sh], [%d1], %r1, [bar], %d2;
cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes.multicast::cluster [sh], [%d1], %r1, [bar], %h1;
cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes.multicast::cluster.L2::cache_hint [sh], [%d1], %r1, [bar], %h1, %d2;
cp.async.bulk.shared::cluster.shared::cta.mbarrier::complete_tx::bytes [%r1], [sh], %r1, [%r2];
cp.async.bulk.global.shared::cta.bulk_group [%d1], [sh], %r1;
cp.async.bulk.global.shared::cta.bulk_group.L2::cache_hint [%d1], [sh], %r1, %d2;
cp.async.bulk.prefetch.L2.global [%d1], %r1;
cp.async.bulk.prefetch.L2.global.L2::cache_hint [%d1], %r1, %d2;
cp.async.bulk.tensor.1d.shared::cta.global.tile.mbarrier::complete_tx::bytes [sh], [%d1, {%r1}], [bar];
cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes.multicast::cluster [sh], [%d1, {%r1, %r2}], [bar], %h1;
cp.async.bulk.tensor.2d.shared::cluster.global.tile.mbarrier::complete_tx::bytes.multicast::cluster.cta_group::1.L2::cache_hint [sh], [%d1, {%r1, %r2}], [bar], %h1, %d2;
cp.async.bulk.tensor.2d.global.shared::cta.bulk_group.L2::cache_hint [%d1, {%r1,%r2}], [sh], %d2;
cp.reduce.async.bulk.tensor.2d.global.shared::cta.add.tile.bulk_group [%d1, {%r1,%r2}], [sh];
cp.reduce.async.bulk.tensor.2d.global.shared::cta.min.bulk_group.L2::cache_hint [%d1, {%r1,%r2}], [sh], %d2;
cp.async.bulk.prefetch.tensor.2d.L2.global.tile [%d1, {%r1,%r2}];
cp.reduce.async.bulk.shared::cluster.shared::cta.mbarrier::complete_tx::bytes.add.u64 [%r1], [sh], %r2, [%r3];
cp.reduce.async.bulk.global.shared::cta.bulk_group.add.noftz.bf16 [%d1], [sh], %r1;
cp.reduce.async.bulk.global.shared::cta.bulk_group.L2::cache_hint.add.noftz.f16 [%d1], [sh], %r1, %d2;
cp.reduce.async.bulk.global.shared::cta.bulk_group.inc.u32 [%d1], [sh], %r1;
cp.reduce.async.bulk.global.shared::cta.bulk_group.xor.b64 [%d1], [sh], %r1;
mbarrier.test_wait.b64 %p1, [%d1], %d2;
mbarrier.test_wait.shared::cta.b64 %p1, [bar], %d2;
mbarrier.test_wait.acquire.cluster.shared::cta.b64 %p1, [bar], %d2;
mbarrier.test_wait.parity.relaxed.cta.shared.b64 %p1, [bar], %r2;
mbarrier.try_wait.shared::cta.b64 %p1, [bar], %d2, %r3;
mbarrier.try_wait.parity.acquire.cta.shared::cta.b64 %p1, [bar], %r2, 100;
mbarrier.try_wait.parity.b64 %p1, [%d1], 1;
mbarrier.arrive.shared.b64 %d1, [bar];
mbarrier.arrive.b64 %d1, [%d2], %r1;
mbarrier.arrive.release.cluster.shared::cluster.b64 _, [%r1], %r2;
mbarrier.arrive.expect_tx.relaxed.cluster.shared::cluster.b64 _, [%r1], %r2;
mbarrier.arrive.noComplete.release.cta.shared.b64 %d1, [bar], 3;
mbarrier.arrive_drop.shared.b64 %d1, [bar];
mbarrier.arrive_drop.expect_tx.shared::cta.b64 %d1, [bar], 5;
mbarrier.arrive_drop.noComplete.shared.b64 %d1, [bar], 3;
mbarrier.arrive_drop.shared::cluster.b64 _, [%r1];
mbarrier.expect_tx.relaxed.cta.shared::cta.b64 [bar], 32;
mbarrier.expect_tx.relaxed.cluster.shared::cluster.b64 [%r1], %r2;
mbarrier.complete_tx.relaxed.cta.shared.b64 [bar], 32;
mbarrier.pending_count.b64 %r1, %d1;
mbarrier.inval.b64 [%d1];
red.global.add.v2.f32 [%d1], {%r1, %r2};
red.relaxed.gpu.global.add.noftz.v4.f16x2 [%d1], {%r1, %r2, %r3, %r4};
red.global.max.noftz.v8.bf16 [%d1], {%h1, %h2, %h3, %h4, %h5, %h6, %h7, %h8};
red.global.add.L2::cache_hint.f32 [%d1], %r1, %d2;
red.add.noftz.f16 [%d1], %h1;
red.async.relaxed.cluster.shared::cluster.mbarrier::complete_tx::bytes.add.u32 [%r1], %r2, [%r3];
red.async.relaxed.gpu.global.add.u32 [%d1], %r2;
st.async.weak.shared::cluster.mbarrier::complete_tx::bytes.v4.b32 [%r1], {%r1,%r2,%r3,%r4}, [%r3];
st.async.mmio.release.sys.global.u32 [%d1], %r1;
st.async.release.gpu.global.u32 [%d1], %r1;
st.bulk.weak.shared::cta [sh], 64, 0;
st.bulk [%d1], %d2, 0;
atom.global.cas.b128 %q1, [%d1], %q2, %q3;
atom.shared.exch.b128 %q1, [sh], %q2;
atom.global.add.v2.f32 {%r1,%r2}, [%d1], {%r3,%r4};
atom.global.add.noftz.v2.bf16x2 {%r1,%r2}, [%d1], {%r3,%r4};
vote.sync.all.pred %p1, %p2, 0xffffffff;
vote.sync.ballot.b32 %r1, !%p2, %r3;
barrier.red.popc.u32 %r1, 1, 64, !%p1;
barrier.cta.red.or.aligned.pred %p1, 1, !%p2;
bar.red.and.pred %p1, %r1, %r2, %p2;
stmatrix.sync.aligned.m16n8.x2.trans.shared.b8 [sh], {%r1, %r2};
ldmatrix.sync.aligned.m16n16.x1.trans.shared.b8 {%r1, %r2}, [sh];
ldmatrix.sync.aligned.m16n16.x2.trans.shared::cta.b8x16.b6x16_p32 {%r1, %r2, %r3, %r4}, [sh];
ldmatrix.sync.aligned.m8n16.x4.shared.b8x16.b4x16_p64 {%r1, %r2, %r3, %r4}, [sh];
setmaxnreg.dec.sync.aligned.u32 40;
tensormap.replace.tile.global_address.global.b1024.b64 [%d1], %d2;
tensormap.replace.tile.rank.shared::cta.b1024.b32 [sh], 2;
tensormap.replace.tile.box_dim.shared::cta.b1024.b32 [sh], 1, %r1;
tensormap.replace.tile.elemtype.shared::cta.b1024.b32 [sh], 6;
tensormap.replace.tile.swizzle_atomicity.shared::cta.b1024.b32 [sh], 0;
tensormap.cp_fenceproxy.global.shared::cta.tensormap::generic.release.gpu.sync.aligned [%d1], [sh], 128;
fence.proxy.tensormap::generic.acquire.gpu [%d1], 128;
fence.proxy.tensormap::generic.release.sys;
fence.proxy.alias;
fence.proxy.async;
fence.proxy.async.global;
fence.proxy.async.shared::cta;
fence.mbarrier_init.release.cluster;
fence.acq_rel.cluster;
fence.sc.sys;
fence.acquire.sync_restrict::shared::cluster.cluster;
fence.release.sync_restrict::shared::cta.cluster;
fence.proxy.async::generic.acquire.sync_restrict::shared::cluster.cluster;
fence.acquire.gpu;
fence.release.cta;
membar.gl;
membar.sys;
elect.sync %r1|%p1, 0xffffffff;
elect.sync _|%p1, 0xffffffff;
match.any.sync.b32 %r1, %r2, %r3;
match.all.sync.b64 %r1|%p1, %d2, %r3;
redux.sync.min.abs.NaN.f32 %r1, %r2, 0xffffffff;
redux.sync.add.u32 %r1, %r2, %r3;
shfl.sync.up.b32 %r1|%p1, %r2, %r3, 0, -1;
activemask.b32 %r1;
nanosleep.u32 %r1;
griddepcontrol.wait;
griddepcontrol.launch_dependents;
getctarank.shared::cluster.u32 %r1, sh;
mapa.shared::cluster.u32 %r1, sh, %r2;
mapa.u64 %d1, %d2, 1;
isspacep.shared::cluster %p1, %d1;
isspacep.const %p1, %d1;
isspacep.param %p1, %d1;
cvta.param.u64 %d1, prm;
cvta.to.const.u64 %d1, %d2;
cvta.shared::cluster.u64 %d1, %d2;
createpolicy.fractional.L2::evict_last.b64 %d1, 0.5;
createpolicy.fractional.L2::evict_last.L2::evict_first.b64 %d1;
createpolicy.range.global.L2::evict_last.L2::evict_first.b64 %d1, [%d2], 1024, 2048;
createpolicy.cvt.L2.b64 %d1, 3;
applypriority.global.L2::evict_normal [%d1], 128;
discard.global.L2 [%d1], 128;
prefetch.global.L1 [%d1];
prefetch.global.L2::evict_last [%d1];
prefetch.const.tensormap [%d1];
prefetch.tensormap [%d1];
prefetchu.L1 [%d1];
ld.global.L1::evict_last.L2::evict_first.L2::cache_hint.v8.b32 {%r1,%r2,%r3,%r4,%r5,%r6,%r7,%r8}, [%d1], %d2;
ld.global.nc.L1::no_allocate.L2::128B.v4.u32 {%r1,%r2,%r3,%r4}, [%d1];
ld.global.v4.f64 {%d1,%d2,%d3,%d4}, [%d5];
ld.global.b128 %q1, [%d1];
st.global.v8.f32 [%d1], {%r1,%r2,%r3,%r4,%r5,%r6,%r7,%r8};
ld.const.u32 %r1, [cst+4];
ldu.global.v2.u32 {%r1,%r2}, [%d1];
ld.mmio.relaxed.sys.global.u32 %r1, [%d1];
st.mmio.relaxed.sys.global.u32 [%d1], %r1;
ld.volatile.shared.v2.u16 {%h1,%h2}, [sh];
mov.b128 %q1, {%d1, %d2};
mov.b128 {%d1, %d2}, %q1;
mov.b64 {%h1,%h2,%h3,%h4}, %d1;
mov.b32 {%h1,_}, %r1;
mov.u64 %d1, glb;
mov.u32 %r1, %clock_hi;
mov.u64 %d1, %globaltimer;
mov.u32 %r1, %smid;
mov.u32 %r1, %nwarpid;
mov.u32 %r1, %lanemask_gt;
mov.u64 %d1, %gridid;
mov.u32 %r1, %dynamic_smem_size;
mov.u32 %r1, %total_smem_size;
mov.u32 %r1, %aggr_smem_size;
mov.u32 %r1, %pm0;
mov.u32 %r1, %envreg3;
mov.pred %p1, %is_explicit_cluster;
mov.u32 %r1, %cluster_ctarank;
mov.u32 %r1, %clusterid.y;
mov.u32 %r1, %reserved_smem_offset_begin;
mov.u64 %d1, %current_graph_exec;
fns.b32 %r1, %r2, %r3, %r4;
szext.wrap.u32 %r1, %r2, %r3;
szext.clamp.s32 %r1, %r2, %r3;
bmsk.clamp.b32 %r1, %r2, %r3;
dp2a.lo.u32.s32 %r1, %r2, %r3, %r4;
cnot.b16 %h1, %h2;
copysign.f64 %d1, %d2, %d3;
testp.subnormal.f32 %p1, %r1;
sad.u64 %d1, %d2, %d3, %d4;
mul24.hi.s32 %r1, %r2, %r3;
mad24.hi.sat.s32 %r1, %r2, %r3, %r4;
addc.cc.u64 %d1, %d2, %d3;
madc.hi.cc.s64 %d1, %d2, %d3, %d4;
cvt.pack.sat.s8.s32.b32 %r1, %r2, %r3, %r4;
cvt.pack.sat.u4.s32.b32 %r1, %r2, %r3, %r4;
cvt.rs.satfinite.e4m3x4.f32 %r1, {%r2,%r3,%r4,%r5}, %r6;
cvt.rs.relu.f16x2.f32 %r1, %r2, %r3, %r4;
cvt.rs.satfinite.e2m1x4.f32 %h1, {%r2,%r3,%r4,%r5}, %r6;
cvt.rn.satfinite.relu.e2m3x2.f32 %h1, %r2, %r3;
cvt.rp.satfinite.ue8m0x2.bf16x2 %h1, %r2;
cvt.rn.bf16x2.ue8m0x2 %r1, %h1;
tanh.approx.bf16x2 %r1, %r2;
ex2.approx.ftz.bf16x2 %r1, %r2;
ex2.approx.f16x2 %r1, %r2;
min.NaN.xorsign.abs.f16x2 %r1, %r2, %r3;
max.ftz.NaN.abs.f32 %r1, %r2, %r3, %r4;
max.s16x2 %r1, %r2, %r3;
min.relu.s32 %r1, %r2, %r3;
min.u16x2 %r1, %r2, %r3;
add.u16x2 %r1, %r2, %r3;
add.sat.s32 %r1, %r2, %r3;
add.rn.f32x2 %d1, %d2, %d3;
fma.rz.ftz.f32x2 %d1, %d2, %d3, %d4;
add.rn.f32.bf16 %r1, %h2, %r3;
fma.rn.sat.f32.f16 %r1, %h2, %h3, %r4;
mul.wide.u16 %r1, %h1, %h2;
slct.f64.f32 %d1, %d2, %d3, %r1;
set.gt.and.ftz.f32.f32 %r1, %r2, %r3, %p1;
set.num.u32.f16x2 %r1, %r2, %r3;
setp.neu.and.f16x2 %p1|%p2, %r1, %r2, !%p3;
setp.lt.and.s64 %p1|_, %d1, %d2, %p3;
vadd.s32.u32.s32.sat %r1, %r2.b0, %r3.h1;
vadd.u32.u32.u32.add %r1, %r2, %r3, %r4;
vsub.s32.s32.s32 %r1.h0, %r2.b3, %r3.h0, %r4;
vabsdiff.u32.s32.s32.max %r1, %r2.h0, %r3.b1, %r4;
vmin.s32.s32.s32 %r1, %r2.b0, %r3.b1;
vmax.u32.u32.u32.sat.min %r1, %r2, %r3, %r4;
vshl.u32.u32.u32.clamp %r1, %r2, %r3;
vshr.s32.s32.u32.wrap.add %r1, %r2, %r3, %r4;
vmad.s32.s32.u32 %r1, %r2.h0, %r3.h1, -%r4;
vmad.u32.u32.u32.po %r1, %r2.h0, %r3.h1, %r4;
vmad.u32.u32.u32.sat.shr7 %r1, %r2, %r3, %r4;
vset.s32.u32.lt %r1, %r2, %r3;
vset.u32.u32.ne.add %r1, %r2.b0, %r3, %r4;
vadd2.s32.s32.u32.sat %r1, %r2, %r3, %r4;
vadd2.u32.u32.u32.add %r1.h10, %r2.h12, %r3.h02, %r4;
vsub2.s32.s32.s32 %r1, %r2, %r3, %r4;
vavrg2.s32.s32.s32 %r1, %r2, %r3, %r4;
vabsdiff2.u32.s32.s32.add %r1, %r2, %r3, %r4;
vmin2.u32.u32.u32 %r1, %r2, %r3, %r4;
vmax2.s32.s32.s32.add %r1.h0, %r2, %r3, %r4;
vset2.u32.u32.lt %r1, %r2, %r3, %r4;
vset2.s32.s32.ge.add %r1, %r2, %r3, %r4;
vadd4.u32.u32.u32.sat %r1, %r2, %r3, %r4;
vadd4.s32.s32.s32.add %r1, %r2.b7531, %r3, %r4;
vsub4.u32.u32.u32 %r1.b20, %r2, %r3, %r4;
vavrg4.u32.u32.u32 %r1, %r2, %r3, %r4;
vabsdiff4.u32.u32.u32.add %r1, %r2, %r3, %r4;
vmin4.s32.s32.s32 %r1, %r2, %r3, %r4;
vmax4.u32.u32.u32 %r1, %r2, %r3, %r4;
vset4.u32.u32.gt %r1, %r2, %r3, %r4;
vset4.u32.s32.gt.add %r1, %r2, %r3, %r4;
pmevent 7;
pmevent.mask 3;
brkpt;
trap;
exit;
setp.ne.s32 %p1|%p2, %r1, 0;
barrier.cluster.arrive.release.aligned;
barrier.cluster.arrive.relaxed;
barrier.cluster.wait.acquire.aligned;
barrier.cluster.wait;
cp.async.mbarrier.arrive.noinc.shared::cta.b64 [bar];
cp.async.mbarrier.arrive.b64 [%d1];
cp.async.bulk.wait_group.read 0;
cp.async.wait_all;
wgmma.wait_group.sync.aligned 3;
mad.lo.cc.u32 %r1, %r2, %r3, %r4;
mma.sync.aligned.m16n8k32.row.col.kind::f8f6f4.f32.e3m2.e2m1.f32 {%r1,%r2,%r3,%r4}, {%r1,%r2,%r3,%r4}, {%r1,%r2}, {%r1,%r2,%r3,%r4};
mma.sync.aligned.m16n8k256.row.col.s32.b1.b1.s32.and.popc {%r1,%r2,%r3,%r4}, {%r1,%r2,%r3,%r4}, {%r1,%r2}, {%r1,%r2,%r3,%r4};
cp.async.bulk.prefetch.tensor.3d.L2.global.im2col [%d1, {%r1,%r2,%r3}], {%h1};
cp.async.bulk.prefetch.tensor.2d.L2.global.tile::gather4 [%d1, {%r1,%r2,%r3,%r4,%r5}];
""".strip().splitlines()


@pytest.mark.parametrize("family", sorted({re.match(r"\w+", form)[0] for form in FORMS}))  # type: ignore[index]
def test_forms_of_the_isa_load(family: str) -> None:
    for form in FORMS:
        if re.match(r"\w+", form)[0] == family:  # type: ignore[index]
            load(REGISTERS + form, ".param .u64 prm", before=MODULE)


REFUSED = """
cp.async.bulk.global.shared::cta.bulk_group.cp_mask [%d1], [sh], %r1, %h1;
cp.async.bulk.global.shared::cta.bulk_group.L2::cache_hint.cp_mask [%d1], [sh], %r1, %d2, %h1;
cp.async.bulk.tensor.3d.shared::cta.global.im2col.mbarrier::complete_tx::bytes [sh], [%d1, {%r1,%r2,%r3}], [bar], {%h1};
cp.async.bulk.tensor.4d.shared::cta.global.im2col.mbarrier::complete_tx::bytes [sh], [%d1, {%r1,%r2,%r3,%r4}], [bar], {%h1, %h2};
cp.async.bulk.tensor.4d.shared::cta.global.im2col::w.mbarrier::complete_tx::bytes [sh], [%d1, {%r1,%r2,%r3,%r4}], [bar], {%h1, %h2};
cp.async.bulk.tensor.2d.shared::cta.global.tile::gather4.mbarrier::complete_tx::bytes [sh], [%d1, {%r1,%r2,%r3,%r4,%r5}], [bar];
cp.async.bulk.tensor.2d.global.shared::cta.tile::scatter4.bulk_group [%d1, {%r1,%r2,%r3,%r4,%r5}], [sh];
cp.async.bulk.tensor.3d.global.shared::cta.im2col_no_offs.bulk_group [%d1, {%r1,%r2,%r3}], [sh];
cp.reduce.async.bulk.tensor.3d.global.shared::cta.add.im2col_no_offs.bulk_group [%d1, {%r1,%r2,%r3}], [sh];
multimem.ld_reduce.relaxed.gpu.global.add.f32 %r1, [%d1];
multimem.st.weak.global.f32 [%d1], %r1;
multimem.red.relaxed.sys.global.add.f32 [%d1], %r1;
clusterlaunchcontrol.try_cancel.async.shared::cta.mbarrier::complete_tx::bytes.b128 [sh], [bar];
alloca.u64 %d1, %d2, 16;
stacksave.u64 %d1;
tcgen05.wait::ld.sync.aligned;
add.u32.sat.x %r1, %r2, %r3;
""".strip().splitlines()


@pytest.mark.parametrize("form", REFUSED)
def test_what_is_not_supported_is_refused_with_its_line(form: str) -> None:
    with pytest.raises(simulator.PtxError) as error:
        load(REGISTERS + form)
    assert form.partition(" ")[0].rstrip(";") in str(error.value)
    assert "PTX line 9" in str(error.value)


def test_the_other_kernels_of_a_module_can_be_launched() -> None:
    text = """.version 8.7
    .target sm_90a
    .address_size 64
    .visible .entry right(.param .u64 out) { .reg .b64 %d; ld.param.u64 %d, [out]; st.global.u32 [%d], 7; ret; }
    .visible .entry wrong() { .reg .b64 %d<2>; stacksave.u64 %d1; ret; }
    """
    module = simulator.load(text)
    assert list(module) == ["right"]
    out = np.zeros(1, np.uint32)
    module["right"].launch(1, 1, [out]).raise_if_hazards()
    assert out[0] == 7
    with pytest.raises(simulator.PtxError, match=r"PTX line 5: unsupported instruction 'stacksave'"):
        module["wrong"]
    with pytest.raises(simulator.LaunchError, match="no kernel 'other' in this module; it has right"):
        module["other"]
    with pytest.raises(simulator.PtxError, match="stacksave"):
        simulator.load("\n".join(line for line in text.splitlines() if "right" not in line))


def test_vectors_of_registers() -> None:
    out = np.zeros(8, np.float32)
    kernel = load(
        """.reg .v4 .f32 v, w; .reg .v2 .u32 p; .reg .b64 %d; .reg .f32 %f;
        ld.param.u64 %d, [out]; mov.f32 v.x, .5; mov.f32 v.y, 0f40000000; add.f32 v.z, v.r, v.g; mov.f32 v.a, -.25;
        st.global.v4.f32 [%d], v; ld.global.v4.f32 w, [%d];
        add.f32 %f, w.w, w.b; st.global.f32 [%d+16], %f; mov.b32 p.x, 5; mov.b32 p.y, 6; st.global.v2.u32 [%d+24], p;""",
        ".param .u64 out",
    )
    kernel.launch(1, 1, [out]).raise_if_hazards()
    assert out[:5].tolist() == [0.5, 2.0, 2.5, -0.25, 2.25]
    assert out[6:].view(np.uint32).tolist() == [5, 6]


def test_addresses_in_initial_values() -> None:
    out = np.zeros(3, np.uint32)
    kernel = load(
        """.reg .b64 %d, %e; .reg .b32 %v; ld.param.u64 %d, [out];
        ld.global.u64 %e, [b]; ld.u32 %v, [%e]; st.global.u32 [%d], %v;
        ld.global.u64 %e, [b+8]; ld.u32 %v, [%e]; st.global.u32 [%d+4], %v;
        ld.global.u64 %e, [c]; ld.global.u32 %v, [%e]; st.global.u32 [%d+8], %v;""",
        ".param .u64 out",
        before=".global .u32 a[4] = {11, 22, 33};\n.global .u64 b[2] = {generic(a), generic(a)+8};\n.global .u64 c = a+4;",
    )
    kernel.launch(1, 1, [out]).raise_if_hazards()
    assert out.tolist() == [11, 33, 22]
