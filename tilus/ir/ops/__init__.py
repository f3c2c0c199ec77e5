"""All operations of the tile IR, one class each."""

from tilus.ir.ops.cluster import ClusterArrive, ClusterWait, LaunchNext, Remote, WaitForPrevious
from tilus.ir.ops.control import Break, Continue, For, If, Loop, Return, WarpGroup, Yield
from tilus.ir.ops.elementwise import (
    Binary,
    Cast,
    CastRandom,
    Compare,
    InlinePtx,
    PointerOf,
    Select,
    Unary,
    View,
)
from tilus.ir.ops.hopper import BulkCommit, BulkWait, DotAsync, DotWait, StoreBulk
from tilus.ir.ops.memory import (
    AllocShared,
    Atomic,
    BarrierAlloc,
    BarrierArrive,
    BarrierWait,
    CopyAsync,
    CopyAsyncCommit,
    CopyAsyncWait,
    CopyBulk,
    Fence,
    Gather,
    GlobalView,
    LoadGlobal,
    LoadShared,
    Scatter,
    SharedIndex,
    SharedPermute,
    SharedSlice,
    StoreGlobal,
    StoreShared,
    Sync,
)
from tilus.ir.ops.scalar import (
    Assume,
    BlockId,
    ClusterRank,
    Constant,
    Dim,
    Extract,
    GridDim,
    PointerAdd,
    PointerCast,
    Stride,
)
from tilus.ir.ops.tile import (
    AnnotateLayout,
    Assert,
    Broadcast,
    Concat,
    ConvertLayout,
    Dot,
    ExpandDims,
    Iota,
    Print,
    Random,
    Reduce,
    Reshape,
    Scan,
    SliceTile,
    Splat,
    Squeeze,
    Table,
    Transpose,
)

__all__ = [
    "AllocShared", "AnnotateLayout", "Assert", "Assume", "Atomic", "BarrierAlloc", "BarrierArrive",
    "BarrierWait", "Binary", "BlockId", "Break", "Broadcast", "BulkCommit", "BulkWait", "Cast", "CastRandom",
    "ClusterArrive", "ClusterRank", "ClusterWait", "Compare", "Concat", "Constant", "Continue", "ConvertLayout",
    "CopyAsync", "CopyAsyncCommit", "CopyAsyncWait", "CopyBulk", "Dim", "Dot", "DotAsync", "DotWait",
    "ExpandDims", "Extract", "Fence", "For",
    "Gather", "GlobalView", "GridDim", "If", "InlinePtx", "Iota", "LaunchNext", "LoadGlobal", "LoadShared", "Loop",
    "PointerAdd", "PointerCast", "PointerOf", "Print", "Random", "Reduce", "Remote", "Reshape", "Return", "Scan",
    "Scatter", "Select", "SharedIndex", "SharedPermute", "SharedSlice", "SliceTile", "Splat", "Squeeze",
    "StoreBulk", "StoreGlobal", "StoreShared", "Stride", "Sync", "Table", "Transpose", "Unary", "View",
    "WaitForPrevious", "WarpGroup", "Yield",
]  # fmt: skip
