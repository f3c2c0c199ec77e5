"""The layout algebra: how tiles lie in registers, in shared memory and in global memory.

It knows integers only: no types' meaning, no intermediate representation, no GPU.
"""

from __future__ import annotations

from tilus.layout.analysis import (
    AccessCost,
    AffineOffsets,
    Contiguity,
    affine_offsets,
    bank_conflicts,
    coalescing,
    contiguity,
    vector_width,
    wavefronts,
)
from tilus.layout.conversion import (
    NoConversion,
    Plan,
    RegisterConversion,
    SharedConversion,
    ShuffleConversion,
    ShuffleStep,
    plan_conversion,
    plan_shared,
)
from tilus.layout.draw import draw_svg, draw_text
from tilus.layout.errors import LayoutError
from tilus.layout.global_ import GlobalLayout, Monomial
from tilus.layout.hopper import BoxSplit, MatrixLayout, canonical, describe_matrix, run_stride, tma_boxes
from tilus.layout.memory import Decomposition, Memory, Piece, decompose, offsets
from tilus.layout.parse import parse
from tilus.layout.register import (
    Digit,
    RegisterLayout,
    coalesced,
    column_local,
    column_spatial,
    local,
    replicated,
    spatial,
)
from tilus.layout.shared import SharedLayout, column_major, padded, row_major, strided, swizzled_row_major
from tilus.layout.swizzle import Swizzle
from tilus.layout.tiling import Tiling, explain_tile_by, tile_by

__all__ = [
    "AccessCost",
    "AffineOffsets",
    "BoxSplit",
    "Contiguity",
    "Decomposition",
    "Digit",
    "GlobalLayout",
    "LayoutError",
    "MatrixLayout",
    "Memory",
    "Monomial",
    "NoConversion",
    "Piece",
    "Plan",
    "RegisterConversion",
    "RegisterLayout",
    "SharedConversion",
    "SharedLayout",
    "ShuffleConversion",
    "ShuffleStep",
    "Swizzle",
    "Tiling",
    "affine_offsets",
    "bank_conflicts",
    "canonical",
    "coalesced",
    "coalescing",
    "column_local",
    "column_major",
    "column_spatial",
    "contiguity",
    "decompose",
    "describe_matrix",
    "draw_svg",
    "draw_text",
    "explain_tile_by",
    "local",
    "offsets",
    "padded",
    "parse",
    "plan_conversion",
    "plan_shared",
    "replicated",
    "row_major",
    "run_stride",
    "spatial",
    "strided",
    "swizzled_row_major",
    "tile_by",
    "tma_boxes",
    "vector_width",
    "wavefronts",
]
