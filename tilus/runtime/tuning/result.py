"""The result of a search: what became of each candidate, and the best."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tilus.runtime.tuning.model import Estimate
from tilus.runtime.tuning.space import Choice

if TYPE_CHECKING:
    from tilus.runtime.kernel import Kernel


@dataclass(frozen=True)
class Trial:
    """What became of one candidate.

    Attributes
    ----------
    values : dict
        Its constexpr values.
    status : str
        "ok"; "failed" (it does not compile or run), "wrong" (its result differs), "timeout"; "pruned" (the model
        expects less of it than of those that were measured), or "skipped" (time was up).
    seconds : float or None
        What was measured.
    note : str
        The reason, where the status is not "ok"; a remark else.
    estimate : Estimate or None
        What the model says.
    registers, spills : int or None
        What the assembler says: registers of a thread, and bytes of spill code.
    kept : bool
        Whether the time is of an earlier search.
    """

    values: Choice
    status: str
    seconds: float | None = None
    note: str = ""
    estimate: Estimate | None = None
    registers: int | None = None
    spills: int | None = None
    kept: bool = False


@dataclass(frozen=True)
class Result:
    """The outcome of a search.

    Attributes
    ----------
    kernel : Kernel
        The kernel, with its other constexpr values.
    device : str
        Where it was measured, or for which card it was estimated.
    method : str
        "time", "model", "simulate", or the name of the function that measured.
    trials : tuple of Trial
        All candidates, the best first.
    interrupted : str
        Why the search ended before its time, if it did.
    """

    kernel: Kernel
    device: str
    method: str
    trials: tuple[Trial, ...]
    interrupted: str = ""

    @property
    def best(self) -> Choice:
        """Values of the fastest candidate."""
        return self.trials[0].values

    @property
    def seconds(self) -> float:
        """Time of the fastest candidate."""
        seconds = self.trials[0].seconds
        assert seconds is not None
        return seconds

    @property
    def best_kernel(self) -> Kernel:
        """The kernel with the values of the fastest candidate."""
        return self.kernel.bind(**self.best)

    def count(self, status: str) -> int:
        """Return how many candidates have a status."""
        return sum(trial.status == status for trial in self.trials)

    def table(self, rows: int = 20) -> str:
        """Return the candidates as text: those that were measured, then those that failed with their reasons."""
        names = list(self.trials[0].values)
        header = [*names, "microseconds", "model", "limited by", "registers", "note"]
        shown = [t for t in self.trials if t.status not in ("pruned", "skipped")]
        lines = [header]
        for trial in shown[:rows]:
            seconds, estimate = trial.seconds, trial.estimate
            lines.append(
                [
                    *(str(trial.values[name]) for name in names),
                    f"{seconds * 1e6:.1f}" if seconds is not None else trial.status,
                    f"{estimate.seconds * 1e6:.1f}" if estimate is not None else "",
                    estimate.bound if estimate is not None else "",
                    "" if trial.registers is None else str(trial.registers),
                    trial.note,
                ]
            )
        widths = [max(len(line[column]) for line in lines) for column in range(len(header))]
        text = ["  ".join(cell.ljust(width) for cell, width in zip(line, widths)).rstrip() for line in lines]
        if len(shown) > rows:
            text.append(f"and {len(shown) - rows} more")
        left = [f"{self.count(s)} {s}" for s in ("pruned", "skipped") if self.count(s)]
        if left:
            text.append(", ".join(left))
        if self.interrupted:
            text.append(self.interrupted)
        return "\n".join(text)

    def to_json(self) -> dict[str, Any]:
        """Return the result as JSON values."""
        from tilus.runtime.tuning.store import as_json

        return {
            "kernel": self.kernel.source.name,
            "device": self.device,
            "method": self.method,
            "interrupted": self.interrupted,
            "trials": [
                {
                    "values": {name: as_json(value) for name, value in trial.values.items()},
                    "status": trial.status,
                    "seconds": trial.seconds,
                    "model_seconds": trial.estimate.seconds if trial.estimate is not None else None,
                    "limited_by": trial.estimate.bound if trial.estimate is not None else None,
                    "registers": trial.registers,
                    "spills": trial.spills,
                    "note": trial.note,
                }
                for trial in self.trials
            ],
        }
