"""The passes, in their order."""

from __future__ import annotations

from tilus.passes import Pass
from tilus.passes.barriers import place_barriers
from tilus.passes.canonicalise import canonicalise
from tilus.passes.clusters import synchronise_clusters
from tilus.passes.layouts import infer_layouts
from tilus.passes.pipelining import pipeline_loops
from tilus.passes.select import Selector
from tilus.passes.shared_memory import plan_shared_memory
from tilus.passes.unrolling import unroll_loops
from tilus.passes.warp_specialise import specialise_warps


def pipeline_passes(selector: Selector) -> list[Pass]:
    """Return the passes that bring a traced kernel to the form that code generation takes."""
    return [
        Pass("canonicalise", canonicalise),
        Pass("specialise-warps", lambda kernel: specialise_warps(kernel, selector)),
        Pass("pipeline-loops", pipeline_loops),
        Pass("unroll-loops", unroll_loops),
        Pass("canonicalise-again", canonicalise),
        Pass("infer-layouts", lambda kernel: infer_layouts(kernel, selector), layouts=True),
        Pass("plan-shared-memory", lambda kernel: plan_shared_memory(kernel, selector)),
        Pass("synchronise-clusters", synchronise_clusters),
        Pass("place-barriers", place_barriers),
    ]
