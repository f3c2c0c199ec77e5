"""Mistakes that a compiler could have, put in for a while: what the random programs must find."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from tilus.codegen.lower import elementwise as lower_elementwise
from tilus.codegen.lower import scan as lower_scan
from tilus.ir import numerics, ops
from tilus.ir.core import Operation
from tilus.ir.kernel import Kernel
from tilus.ir.rewrite import Rewriter
from tilus.lang.semantics import arithmetic
from tilus.passes import order, rules, shared_memory

Mistake = Callable[[pytest.MonkeyPatch], None]


def without_barriers(patch: pytest.MonkeyPatch) -> None:
    """No barriers stand between accesses to shared memory."""

    def nothing(kernel: Kernel) -> Kernel:
        return kernel

    patch.setattr(order, "place_barriers", nothing)


def wrong_fold(patch: pytest.MonkeyPatch) -> None:
    """`x - x` is `x`."""
    before = rules._same_operands

    def fold(op: ops.Binary, dtype: Any) -> Any:
        return op.a if op.kind == "sub" else before(op, dtype)

    patch.setattr(rules, "_same_operands", fold)


def wrong_comparison(patch: pytest.MonkeyPatch) -> None:
    """The front end takes `<=` for `<`."""
    patch.setitem(arithmetic.COMPARISONS, "<=", "lt")


def wrong_identity(patch: pytest.MonkeyPatch) -> None:
    """An exclusive scan for the minimum starts with 0."""
    before = lower_scan.identity

    def identity(kind: str, dtype: Any) -> Any:
        return 0 if kind == "min" else before(kind, dtype)

    patch.setattr(lower_scan, "identity", identity)


class OneLess(Rewriter):
    """Lets one group of copies more be unfinished at each wait."""

    def visit(self, op: Operation) -> None:
        if isinstance(op, ops.CopyAsyncWait):
            self.emit(op.replace(pending=op.pending + 1))
        else:
            self.copy(op)


def short_wait(patch: pytest.MonkeyPatch) -> None:
    """A pipelined loop waits for one group of copies too few."""
    before = order.pipeline_loops

    def pipeline(kernel: Kernel) -> Kernel:
        made = before(kernel)
        return kernel if made is kernel else OneLess().run(made)

    patch.setattr(order, "pipeline_loops", pipeline)


def truncated_remainder(patch: pytest.MonkeyPatch) -> None:
    """The remainder of negative numbers is C's."""
    before = lower_elementwise.floor_division

    def division(ctx: Any, kind: str, dtype: Any, a: Any, b: Any) -> Any:
        if kind == "mod" and dtype.is_signed and dtype.bits >= 32:
            return ctx.w.binary("srem", a, b)
        return before(ctx, kind, dtype, a, b)

    patch.setattr(lower_elementwise, "floor_division", division)


def inclusive_scan(patch: pytest.MonkeyPatch) -> None:
    """The interpreter takes the exclusive scan for the inclusive one."""
    before = numerics.scan

    def scan(kind: str, array: Any, axis: int, exclusive: bool, dtype: Any) -> Any:
        return before(kind, array, axis, False, dtype)

    patch.setattr(numerics, "scan", scan)


def small_scratch(patch: pytest.MonkeyPatch) -> None:
    """A conversion of layouts gets half of the shared memory that it needs."""
    before = shared_memory.scratch_bytes

    def scratch(op: Any, threads: int) -> int:
        return before(op, threads) // 2

    patch.setattr(shared_memory, "scratch_bytes", scratch)


MISTAKES: dict[Mistake, int] = {
    without_barriers: 1, wrong_fold: 2, wrong_comparison: 16, wrong_identity: 29, short_wait: 13,
    truncated_remainder: 16, inclusive_scan: 29, small_scratch: 0,
}  # fmt: skip
"""Each mistake, and the seed from which a program that finds it is near."""
