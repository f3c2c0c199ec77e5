"""References and tolerances for matrix products."""

from __future__ import annotations

import numpy as np
import torch

from tilus.dtypes import NAMED, DType, decode
from tilus.ops import QuantizedWeight

WEIGHT_TYPES = [t for t in NAMED if t.bits <= 8 and t.kind not in ("bool", "scale")]
FLOATS = [torch.float16, torch.bfloat16]


def finite_codes(dtype: DType, activations: torch.dtype) -> np.ndarray:
    """Return the codes whose values the activations' type has, if perhaps rounded."""
    codes = np.arange(1 << dtype.bits, dtype=np.uint8)
    values = decode(codes, dtype).astype(np.float64)
    return codes[np.isfinite(values) & (np.abs(values) <= torch.finfo(activations).max)]


def in_activations_type(weight: QuantizedWeight) -> torch.Tensor:
    """Return the weight as a kernel has it: every step rounded to the activations' type."""
    k, n = weight.shape
    values = torch.from_numpy(decode(weight.codes(), weight.dtype).astype(np.float64)).to(weight.scale.dtype)
    rows = torch.arange(k) // weight.group_size
    if weight.zero is not None:
        values = values - weight.zero.cpu()[rows, :n]
    return values * weight.scale.cpu()[rows, :n] * weight.alpha


def check_product(found: torch.Tensor, exact: torch.Tensor, by_torch: torch.Tensor) -> None:
    """Compare a product with float64, allowing twice the error of a torch run of the same formula in the same dtype.

    The tolerance itself is checked too: all zeros, and a result that is shifted by a row or a column, must be
    outside of it.
    """
    found, exact, by_torch = (x.detach().cpu().double() for x in (found, exact, by_torch))
    assert found.shape == exact.shape
    allowed = 2 * (by_torch - exact).abs().max()
    error = (found - exact).abs().max()
    assert error <= allowed, f"the largest error is {error:.2e}, allowed is {allowed:.2e}"
    wrong = [torch.zeros_like(exact)]
    wrong += [exact.roll(1, dim) for dim in (-2, -1) if exact.ndim >= -dim]
    for other in wrong:
        if torch.equal(other, exact):
            # A single row or column, or rows that are equal by design, have no shift that could be seen.
            continue
        assert (other - exact).abs().max() > allowed, "the tolerance would take a wrong result"
