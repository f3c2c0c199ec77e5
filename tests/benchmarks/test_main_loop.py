"""The main loops of the shipped GEMM take no more instructions than Triton's, and the count is taken right."""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path

import pytest

from tilus.cli.inspect import find_disassembler
from tilus.codegen.assemble import available

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"
RESULTS = json.loads((BENCHMARKS / "results" / "main_loop.json").read_text(encoding="utf-8"))
TILES = sorted({tuple(row["tile"]) for row in RESULTS})


@pytest.fixture
def load(monkeypatch):
    """Import a module of the benchmarks."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    yield importlib.import_module
    for name in ("_sass", "_gemm_kernel", "main_loop"):
        sys.modules.pop(name, None)


SASS = """
.text.f:
        /*0000*/                   MOV R1, c[0x0][0x28] ;
.L_x_0:
        /*0010*/                   UIADD3 UR4, UR4, 0x1, URZ ;
.L_x_1:
        /*0020*/              @!P1 SYNCS.PHASECHK.TRANS64.TRYWAIT P0, [UR4], R8 ;
        /*0030*/              @!P0 BRA `(.L_x_1) ;
        /*0040*/                   HGMMA.64x128x16.F32 R24, gdesc[UR8], R24 ;
        /*0050*/                   UMOV UR9, 0x40000040 ;
        /*0060*/                   HGMMA.64x128x16.F32 R24, gdesc[UR8], R24, gsb0 ;
        /*0070*/               @P2 BRA `(.L_x_0) ;
        /*0080*/               @P3 BRA `(.L_x_2) ;
        /*0090*/                   BRA `(.L_x_0) ;
.L_x_2:
        /*00a0*/                   EXIT ;
"""


def test_the_loop_is_found_and_counted(load):
    sass = load("_sass")
    loop = sass.main_loop(SASS)
    assert [i.base for i in loop] == ["UIADD3", "SYNCS", "BRA", "HGMMA", "UMOV", "HGMMA", "BRA"]
    assert sass.counts(loop) == {
        "instructions": 7, "tensor_core": 2, "others": 5, "to_uniform": 0, "moves": 1, "barriers": 1,
    }  # fmt: skip
    assert sass.main_loop(SASS.replace("HGMMA", "FFMA")) == []


def test_the_results_hold_both_compilers_for_each_tile():
    for tile in TILES:
        names = [row["contender"].split()[0].rstrip(",") for row in RESULTS if tuple(row["tile"]) == tile]
        assert names.count("tilus") == 2
        assert names.count("Triton") >= 1
        assert not any("error" in row for row in RESULTS)


@pytest.mark.skipif(available() is not None, reason="nvJitLink is not installed, so nothing is assembled")
@pytest.mark.skipif(find_disassembler() is None, reason="no nvdisasm: pip install nvidia-cuda-nvdisasm")
@pytest.mark.parametrize("tile", TILES, ids=str)
def test_the_main_loop_takes_no_more_instructions_than_tritons(load, tile):
    found = load("main_loop").ours(tile, find_disassembler())
    allowed = min(
        row["instructions"]
        for row in RESULTS
        # Several programs' loops in one kernel: a part of the tile each.
        if tuple(row["tile"]) == tile
        and row["contender"].startswith("Triton")
        and "special" not in row["contender"]
    )
    for row in found:
        assert row["instructions"] <= allowed
        # Addresses and counters are in registers that the warp shares.
        assert row["to_uniform"] == 0
        assert row["spill_bytes"] == 0
