"""The product for every target: what its grid may be."""

from __future__ import annotations

import pytest
import torch

from tests.ops.support import check_product
from tilus.ops import matmul
from tilus.runtime import launch


def test_there_may_be_more_matrices_than_a_grid_is_deep(monkeypatch: pytest.MonkeyPatch) -> None:
    """A grid has 65535 blocks along its second and third dimension; 3 are enough to see it."""
    monkeypatch.setenv("TILUS_SIMULATOR_TARGET", "sm_80")
    monkeypatch.setattr(launch, "GRID_LIMITS", (2**31 - 1, 3, 3))
    a, b = torch.randn(5, 70, 32).half(), torch.randn(5, 32, 200).half()
    check_product(matmul(a, b), a.double() @ b.double(), a @ b)
