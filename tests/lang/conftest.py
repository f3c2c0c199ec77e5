"""Runs a kernel in two ways that share nothing below the IR: the reference interpreter, and PTX on the simulator."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import tilus
from tests.lang import support
from tilus.ir import Kernel


def on_simulator(function: Callable[..., Any], /, *args: Any, **constexprs: Any) -> Kernel:
    """Trace a kernel, compile it to PTX and run that on the simulator."""
    torch = pytest.importorskip("torch", reason="launches take torch tensors")
    tensors = [torch.from_numpy(arg) if isinstance(arg, np.ndarray) else arg for arg in args]
    tilus.kernel(function)(*tensors, **constexprs)
    return support.trace(function, **constexprs)


@pytest.fixture(params=["interpreter", "simulator"])
def execute(request: pytest.FixtureRequest) -> Callable[..., Kernel]:
    """Trace a kernel and run it on arrays, which hold what it stored afterwards."""
    return support.execute if request.param == "interpreter" else on_simulator
