"""Tuning: a cost model that orders candidates, a search that measures them, and results that are kept on disk."""

from tilus.runtime.tuning.autotuned import Autotuned, autotune
from tilus.runtime.tuning.model import Estimate, estimate
from tilus.runtime.tuning.result import Result, Trial
from tilus.runtime.tuning.search import tune
from tilus.runtime.tuning.space import Space
from tilus.runtime.tuning.work import Work

__all__ = ["Autotuned", "Estimate", "Result", "Space", "Trial", "Work", "autotune", "estimate", "tune"]
