"""Keeps `torch.compile` out of launches: it calls a kernel between two graphs, and never traces what a call does."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

REASON = "a kernel of tilus is called, which is no operator; torch.library.custom_op makes one of the call"


def calls(function: Callable[..., Any]) -> None:
    """Have torch call a function and not trace it; without torch nothing happens, so this is done for each kernel."""
    if "torch" not in sys.modules:
        return
    # What `torch.compiler.disable` sets, without its wrapper, which costs each launch a microsecond.
    marked: Any = function
    marked._torchdynamo_disable = True
    marked._torchdynamo_disable_msg = REASON
    try:
        from torch._C._dynamo import eval_frame

        skip = eval_frame._FrameAction.SKIP
        eval_frame.set_code_exec_strategy(marked.__code__, eval_frame._FrameExecStrategy(skip, skip))
    except (ImportError, AttributeError, TypeError):
        # A torch without it tries to compile what the call does, and gives up where it cannot.
        return
