"""The errors that the simulator raises for wrong use; hazards of a running kernel are in ``hazards``."""

from __future__ import annotations


class SimulatorError(Exception):
    """Base class of the simulator's errors."""


class PtxError(SimulatorError):
    """PTX text that cannot be loaded; the message names the line and the text."""

    def __init__(self, message: str, line: int | None = None) -> None:
        super().__init__(message if line is None else f"PTX line {line}: {message}")
        self.line = line


class LaunchError(SimulatorError, ValueError):
    """A launch with wrong arguments, grid, block or shared memory."""


class HazardError(SimulatorError):
    """Raised by ``Report.raise_if_hazards``."""
