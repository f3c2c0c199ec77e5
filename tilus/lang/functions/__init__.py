"""The functions that a kernel may call: typed stubs that the editor, the documentation and the front end share."""

from __future__ import annotations

from tilus.lang.functions.atomics import (
    atomic_add,
    atomic_and,
    atomic_cas,
    atomic_exch,
    atomic_max,
    atomic_min,
    atomic_or,
    atomic_xor,
)  # fmt: skip
from tilus.lang.functions.create import arange, barrier, full, iota, registers, shared, view, zeros
from tilus.lang.functions.debug import assume, device_assert, device_print, inline_ptx, static_assert
from tilus.lang.functions.elementwise import (
    abs,
    brev,
    cast,
    cdiv,
    ceil,
    clz,
    cos,
    ctz,
    erf,
    exp,
    exp2,
    floor,
    isinf,
    isnan,
    log,
    log2,
    lookup,
    maximum,
    minimum,
    mulhi,
    next_power_of_2,
    popcount,
    rcp,
    round,
    rsqrt,
    sin,
    sqrt,
    tanh,
    trunc,
    where,
)  # fmt: skip
from tilus.lang.functions.hopper import bulk_commit, bulk_wait, dot_async, dot_wait, store_bulk
from tilus.lang.functions.launch import (
    block_id,
    cluster_rank,
    fence,
    grid,
    grid_dim,
    pipeline,
    static_range,
    sync,
    unroll,
    warps,
)  # fmt: skip
from tilus.lang.functions.memory import (
    arrive,
    copy_async,
    copy_async_commit,
    copy_async_wait,
    copy_bulk,
    load,
    store,
    wait,
)  # fmt: skip
from tilus.lang.functions.random import rand, randint, randn, random_bits
from tilus.lang.functions.tiles import (
    all,
    annotate_layout,
    any,
    argmax,
    argmin,
    broadcast_to,
    concat,
    cumprod,
    cumsum,
    dot,
    expand_dims,
    item,
    max,
    min,
    reshape,
    scan,
    squeeze,
    sum,
    transpose,
)  # fmt: skip

__all__ = [
    "abs", "all", "annotate_layout", "any", "arange", "argmax", "argmin", "arrive", "assume", "atomic_add",
    "atomic_and", "atomic_cas", "atomic_exch", "atomic_max", "atomic_min", "atomic_or", "atomic_xor",
    "barrier", "block_id", "brev", "broadcast_to", "cast", "cdiv", "ceil", "cluster_rank", "clz", "concat",
    "copy_async", "copy_async_commit", "copy_async_wait", "copy_bulk", "cos", "ctz", "cumprod", "cumsum",
    "device_assert", "device_print", "dot", "erf", "exp", "exp2", "expand_dims", "fence", "floor", "full",
    "grid", "grid_dim", "inline_ptx", "iota", "isinf", "isnan", "item", "load", "log", "log2", "lookup",
    "max", "maximum", "min", "minimum", "mulhi", "next_power_of_2", "pipeline", "popcount", "rand",
    "randint", "randn", "random_bits", "rcp", "registers", "reshape", "round", "rsqrt", "scan", "shared",
    "sin", "sqrt", "squeeze", "static_assert", "static_range", "store", "sum", "sync", "tanh", "transpose",
    "trunc", "unroll", "view", "wait", "warps", "where", "zeros",
]  # fmt: skip
