"""The same programs with one thing broken: the simulator must name the hazard, or the checks would prove little."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace

import pytest

from tests.simulator.foreign.corpus import Launch
from tests.simulator.foreign.test_foreign import PROGRAMS, prepared, run

BY_NAME = {program.name: program for program in PROGRAMS}


@dataclass(frozen=True)
class Break:
    """Replace what `pattern` matches in a program's PTX; one of `kinds` must be reported."""

    program: str
    pattern: str
    replacement: str
    kinds: frozenset[str]

    def __str__(self) -> str:
        return f"{self.program}-without-{re.sub(r'[^a-z0-9]+', '_', self.pattern).strip('_')}"


def without(program: str, pattern: str, *kinds: str) -> Break:
    return Break(program, pattern, "", frozenset(kinds))


BREAKS = [
    without("nvcc_algorithms-scan", r"bar\.sync\s+0;", "shared-race"),
    without("nvcc_algorithms-transpose", r"bar\.sync\s+0;", "shared-race", "uninitialized-shared"),
    without("nvcc_reduce-sum_double", r"bar\.sync\s+0;", "shared-race", "uninitialized-shared"),
    without("nvcc_memory-convolution", r"bar\.sync\s+0;", "shared-race", "uninitialized-shared"),
    without("nvcc_mma-mma_tiled", r"cp\.async\.wait_group\s+\d;", "async-read"),
    without("nvcc_async_copy-pipelined_sum", r"cp\.async\.wait_group\s+\d;", "async-read"),
    without("nvcc_atomics-grid_barrier", r"fence\.sc\.gpu;|membar\.gl;", "global-race"),
    without("nvcc_bulk-bulk_scale", r"fence\.proxy\.async\.shared::cta;", "missing-proxy-fence"),
    without("nvcc_bulk-bulk_scale", r"cp\.async\.bulk\.wait_group\.read 0;", "async-overwrite"),
    without("nvcc_wgmma-wgmma_shared", r"wgmma\.fence\.sync\.aligned;", "missing-wgmma-fence"),
    without("nvcc_wgmma-wgmma_shared", r"wgmma\.wait_group\S* 0;", "missing-wgmma-fence", "async-overwrite"),
    without("nvcc_wgmma-wgmma_shared", r"fence\.proxy\.async\.shared::cta;", "missing-proxy-fence"),
    without("nvcc_cluster-cluster_rotate", r"barrier\.cluster\.\w+[.\w]*;", "shared-race", "uninitialized-shared"),
    without("triton_matmul_f16_sm80", r"cp\.async\.wait_group\s+\d;", "async-read"),
    without("triton_matmul_bf16_sm80", r"bar\.sync\s+0;", "shared-race", "async-read"),
    without("triton_matmul_f16_sm90", r"wgmma\.wait_group\S* \d;", "missing-wgmma-fence", "async-overwrite"),
    without("triton_matmul_int4_sm90", r"fence\.proxy\.async\.shared::cta;", "missing-proxy-fence"),
    without(
        "triton_matmul_device_descriptor_sm90", r"@%p\d+ fence\.proxy\.tensormap::generic\.acquire[^;]*;",
        "missing-proxy-fence",
    ),
    without("triton_softmax_sm80", r"bar\.sync\s+0;", "shared-race", "uninitialized-shared"),
    without("nvcc_bulk-bulk_scale", r"cp\.async\.bulk\.shared::cluster[^;]*;", "deadlock"),
    Break(
        "nvcc_bulk-bulk_scale", r"arrive\.expect_tx(\S* _, \[%r\d+\]), %r\d+;", r"arrive\1;",
        frozenset({"mbarrier-misuse", "async-read", "shared-race"}),
    ),
    Break("nvcc_atomics-chain", r"\.(acquire|release)\.gpu", ".relaxed.gpu", frozenset({"global-race"})),
    without("triton_matmul_warp_specialized_sm90", r"@%p\d+ mbarrier\.arrive\.shared::cta\.b64[^;]*;", "deadlock"),
]  # fmt: skip


@pytest.mark.parametrize("broken", BREAKS, ids=str)
def test_a_broken_program_is_reported(broken: Break) -> None:
    program = BY_NAME[broken.program]
    entry = re.search(rf"\.entry\s+{program.kernel}\b", program.ptx)
    assert entry is not None
    head, body = program.ptx[: entry.start()], program.ptx[entry.start() :]
    changed, count = re.subn(broken.pattern, broken.replacement, body)
    assert count > 0
    report = run(replace(program, text=head + changed), prepared(program))
    assert broken.kinds & {hazard.kind for hazard in report.hazards}


SHORT = [
    ("triton_softmax_sm80", 0),
    ("triton_matmul_f16_sm80", 2),
    ("nvcc_algorithms-product", 0),
    ("nvcc_bulk-bulk_scale", 0),
]


@pytest.mark.parametrize(("name", "argument"), SHORT)
def test_an_array_that_is_too_short_is_reported(name: str, argument: int) -> None:
    launch = prepared(BY_NAME[name])
    args = list(launch.args)
    args[argument] = args[argument].reshape(-1)[:-40].copy()
    report = run(BY_NAME[name], Launch(**{**vars(launch), "args": args}))
    assert "out-of-bounds" in {hazard.kind for hazard in report.hazards}
