"""The main loop of the quantised matmul is cut and counted right, and the committed figures are what it has."""

from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

from tilus import dtypes
from tilus.cli.inspect import find_disassembler
from tilus.codegen.assemble import available

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"
ROWS = json.loads((BENCHMARKS / "results" / "quantized_main_loop.json").read_text(encoding="utf-8"))

SASS = """
.text.f:
        /*0000*/                   MOV R1, c[0x0][0x28] ;
.L_x_0:
        /*0010*/                   LOP3.LUT R8, R4, 0xf000f, R9, 0x6a, !PT ;
        /*0020*/                   HGMMA.64x128x16.F32 R24, R8, gdesc[UR8], R24, gsb0 ;
        /*0030*/                   WARPGROUP.DEPBAR.LE gsb0, 0x1 ;
        /*0040*/               @P1 BRA `(.L_x_2) ;
        /*0050*/                   SYNCS.ARRIVE.TRANS64 RZ, [R9+URZ], R10 ;
        /*0060*/                   UTMALDG.2D [UR4], [UR6] ;
.L_x_2:
        /*0070*/                   IADD3 R3, R3, 0x1, RZ ;
        /*0080*/               @P2 BRA `(.L_x_0) ;
        /*0090*/                   EXIT ;
"""


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    """The benchmark as a module."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    yield importlib.import_module("quantized_main_loop")
    for name in ("_sass", "cast_cost", "quantized_main_loop"):
        sys.modules.pop(name, None)


def test_what_starts_copies_is_counted_apart(bench: ModuleType) -> None:
    usual, copies = bench.parts_of_loop(SASS)
    assert [i.base for i in usual] == ["LOP3", "HGMMA", "WARPGROUP", "BRA", "IADD3", "BRA"]
    assert [i.base for i in copies] == ["SYNCS", "UTMALDG"]


def test_the_limit_is_what_takes_longest() -> None:
    for row in ROWS:
        cycles = {name: row[name] for name in ("tensor", "issue", "integer", "cache")}
        assert cycles[row["limit"]] == max(cycles.values())
        assert row["share"] == pytest.approx(row["tensor"] / max(cycles.values()), abs=0.01)


@pytest.mark.skipif(available() is not None, reason="NVIDIA's assembler has no package for this platform")
def test_the_committed_figures_are_what_is_compiled(bench: ModuleType) -> None:
    nvdisasm = find_disassembler()
    if nvdisasm is None:
        pytest.skip("nvdisasm is not installed, so nothing is counted")
    found = bench.measure(nvdisasm, dtypes.uint4, dtypes.float16, 16, 128)
    (row,) = [x for x in ROWS if (x["dtype"], x["activations"], x["tile"]) == ("uint4", "float16", "16x128")]
    assert (found.products, found.spills, found.serialised) == (row["products"], 0, 0)
    # Versions of the assembler differ a little.
    assert found.instructions == pytest.approx(row["instructions"], rel=0.1)
    assert found.decode == pytest.approx(row["decode"], rel=0.1)
