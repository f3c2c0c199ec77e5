"""A pytest plugin for a GPU: a test that loses the CUDA context fails alone, and not all that come after it.

    python -m pytest -m gpu -p tests.gpu.lost_context -n 8 --max-worker-restart 20

After a kernel's illegal access every call of the driver fails, until a new process begins: pytest-xdist starts one in
the place of a worker that ends.
"""

from __future__ import annotations

import os
import sys

import pytest

LOST = 3
_failed = pytest.StashKey[bool]()


def context_works() -> bool:
    """Tell whether the GPU still answers this process; one that has not used it counts as one that may."""
    torch = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_available() or not torch.cuda.is_initialized():
        return True
    try:
        torch.cuda.synchronize()
    except RuntimeError:
        return False
    return True


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> object:
    report = yield
    if call.excinfo is not None and item.get_closest_marker("gpu"):
        item.stash[_failed] = True
    return report


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> object:
    done = yield
    # The reports of the test have been sent by now.
    if item.stash.get(_failed, False) and not context_works():
        print(f"the CUDA context is lost in {item.nodeid}: this process ends", file=sys.stderr, flush=True)
        os._exit(LOST)
    return done
