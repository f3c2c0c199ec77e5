"""What an op's result may be: a float64 value, and how far from it the roundings that the op documents can lead."""

from __future__ import annotations

from dataclasses import dataclass

import torch

UNIT = 2.0**-23
"""Of float32; tensor cores cut off what others round."""
TINY = 2.0**-126
"""Below, float32 numbers may be taken for zero."""
TF32 = 2.0**-10
MOST = 1e37
"""Where terms are larger their sums may overflow on the way, in any order."""


@dataclass(frozen=True)
class Near:
    """Numbers that are known up to an error.

    Attributes
    ----------
    value : Tensor of float64
    error : Tensor of float64
        Infinite where anything may come out.
    """

    value: torch.Tensor
    error: torch.Tensor

    def times(self, factor: torch.Tensor | float) -> Near:
        """Return the numbers times exact ones, rounded to float32."""
        exact = torch.as_tensor(factor, dtype=torch.float64)
        return rounded(self.value * exact, self.error * exact.nan_to_num(1.0, 1.0, 1.0).abs())

    def both(self, other: Near) -> Near:
        """Return the product of two such numbers."""
        a, b = (x.value.nan_to_num(0.0, 0.0, 0.0).abs() for x in (self, other))
        return rounded(self.value * other.value, self.error * b + other.error * a + self.error * other.error)

    def plus(self, term: torch.Tensor) -> Near:
        """Return the numbers plus exact ones."""
        return rounded(self.value + term.double(), self.error)

    def through(self, activation: str) -> Near:
        """Return what an activation makes of the numbers."""
        if not activation:
            return self
        function = {
            "relu": torch.relu, "silu": torch.nn.functional.silu, "gelu": torch.nn.functional.gelu,
        }[activation]  # fmt: skip
        # None is steeper than 1.13; 1 + erf(x) loses bits where erf(x) is near -1, and functions have errors of their own.
        steep = 1.0 if activation == "relu" else 1.13
        own = 0.0 if activation == "relu" else 8 * UNIT
        value = function(self.value)
        return rounded(value, steep * self.error + own * self.value.nan_to_num(0.0, 0.0, 0.0).abs())

    def wrong(self, found: torch.Tensor) -> torch.Tensor:
        """Tell which results are none that rounding to their type can make of the numbers."""
        got = found.double()
        low, high = ((self.value + x).to(found.dtype).double() for x in (-self.error, self.error))
        inside = (got >= low) & (got <= high)
        same = (got == self.value) | (got.isnan() & self.value.isnan())
        return ~torch.where(self.value.isfinite(), inside, same) & self.error.isfinite()


def rounded(value: torch.Tensor, error: torch.Tensor) -> Near:
    """Return a number after one more rounding to float32."""
    size = value.nan_to_num(0.0, 0.0, 0.0).abs()
    made = error + UNIT * (size + error) + TINY
    # Past the largest number of float32 there is infinity.
    return Near(value, torch.where((size + made) > 3e38, float("inf"), made))


def product(a: torch.Tensor, b: torch.Tensor, relative: float = 0.0) -> Near:
    """Return a product of matrices whose terms are summed in float32, with a relative error of each term."""
    a, b = a.double(), b.double()
    k = a.shape[-1]
    sizes = [x.nan_to_num(0.0, 0.0, 0.0).abs() for x in (a, b)]
    terms = sizes[0] @ sizes[1]
    flushed = TINY * (sizes[0].sum(-1, keepdim=True) + sizes[1].sum(-2, keepdim=True) + k)
    error = ((k + 16) * UNIT + relative) * terms + flushed
    return Near(a @ b, torch.where(terms > MOST, float("inf"), error))


def exactly(value: torch.Tensor) -> Near:
    """Return numbers without an error."""
    return Near(value.double(), torch.zeros_like(value, dtype=torch.float64))
