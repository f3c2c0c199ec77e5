"""The main loop of machine code: which blocks a turn goes through, and how often a warp issues what it need not."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from typing import Any

FOLDER = str(Path(__file__).parents[2] / "benchmarks")


def flow() -> Any:
    """Import the benchmarks' module."""
    sys.path.insert(0, FOLDER)
    try:
        return importlib.import_module("_flow")
    finally:
        sys.path.remove(FOLDER)


# An outer loop over pieces; in it a loop in which one warp starts bulk copies, and a wait that stands after the end.
LISTING = """
        /*0000*/                   MOV R1, c[0x0][0x28] ;
.L_x_1:
        /*0010*/                   IADD3 R9, R9, 0x1, RZ ;
.L_x_2:
        /*0020*/                   SYNCS.PHASECHK.TRANS64.TRYWAIT P0, [UR5], R12 ;
        /*0030*/              @!P0 BRA `(.L_x_5) ;
.L_x_6:
        /*0040*/              @P1  BRA `(.L_x_3) ;
        /*0050*/                   UTMALDG.2D [UR4], [UR16] ;
        /*0060*/                   UTMALDG.3D [UR8], [UR26] ;
.L_x_3:
        /*0070*/                   HMMA.16816.F32 R4, R8, R12, R4 ;
        /*0080*/                   HMMA.16816.F32 R4, R8, R14, R4 ;
        /*0090*/              @P2  BRA `(.L_x_2) ;
        /*00a0*/                   STG.E [R2.64], R4 ;
        /*00b0*/              @P3  BRA `(.L_x_1) ;
        /*00c0*/                   EXIT ;
.L_x_5:
        /*00d0*/                   SYNCS.PHASECHK.TRANS64.TRYWAIT P0, [UR5], R12 ;
        /*00e0*/              @!P0 BRA `(.L_x_5) ;
        /*00f0*/                   BRA `(.L_x_6) ;
"""


def test_the_innermost_loop_counts_with_what_stands_elsewhere() -> None:
    made = flow()
    found = made.flow_of(LISTING)
    body, always = made.main_loop(found)
    inside = [x.opcode for number in body for x in found.blocks[number]]
    assert "STG.E" not in inside
    assert inside.count("SYNCS.PHASECHK.TRANS64.TRYWAIT") == 2
    assert sum(len(found.blocks[number]) for number in always) == 6


def test_one_of_the_warps_starts_copies() -> None:
    counts = flow().issued(LISTING, 4)
    assert counts["HMMA.16816.F32"] == 2
    assert counts["UTMALDG.2D"] == counts["UTMALDG.3D"] == 0.25
    assert counts["SYNCS.PHASECHK.TRANS64.TRYWAIT"] == 1.25


def test_without_bulk_copies_all_warps_do_what_may_be_left_out() -> None:
    counts = flow().issued(LISTING.replace("UTMALDG.2D", "LDGSTS").replace("UTMALDG.3D", "LDGSTS"), 4)
    assert counts["LDGSTS"] == 2


def test_without_a_loop_there_is_nothing_to_count() -> None:
    assert not flow().issued("        /*0000*/                   EXIT ;\n", 4)
