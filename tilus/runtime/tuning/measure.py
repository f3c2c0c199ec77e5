"""Measures a candidate: on the GPU its time, on the simulator what it counts, and whether its result is right.

Tuning never changes the caller's tensors: what a candidate writes goes to copies, which are filled anew before a result
is compared.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from tilus.errors import LaunchError, TilusError
from tilus.runtime import driver
from tilus.runtime.arguments import is_torch_tensor

NOT_READY = 600
"""cudaErrorNotReady: the event has not come yet."""
FLUSH_FACTOR = 4
"""Buffers that are written and read between two calls, in sizes of the L2 cache."""
SMALLEST_FLUSH = 128 << 20
WARM_UP = 2
FIRST_SAMPLES = 3
SAMPLES = 15
HOPELESS = 1.3
"""A candidate whose first samples take so much more than the best is not measured further."""
POLL_SECONDS = 2e-4


class TimedOut(TilusError):
    """A launch that did not end in its time."""


class DeviceLost(TilusError):
    """A launch after which the device answers no more."""


def copy_of(value: Any) -> Any:
    """Return a copy of a tensor or array with the same strides."""
    if is_torch_tensor(value):
        import torch

        twin = torch.empty_strided(value.shape, value.stride(), dtype=value.dtype, device=value.device)
        return twin.copy_(value)
    return np.copy(value, order="K")


def restore(target: Any, source: Any) -> None:
    """Fill a copy anew."""
    if is_torch_tensor(target):
        target.copy_(source)
    else:
        target[...] = source


def to_float64(value: Any) -> Any:
    """Return a tensor's values as a NumPy array to compare with; packed types as their bytes."""
    if is_torch_tensor(value):
        import torch

        host = value.detach().cpu()
        if host.dtype.is_floating_point or host.dtype.is_complex:
            # float8 types have no arithmetic of their own.
            host = host.to(torch.float32) if host.element_size() == 1 else host.to(torch.float64)
        return host.to(torch.float64).numpy()
    array = np.asarray(value)
    return array.astype(np.float64)


def difference(found: Any, expected: Any) -> float:
    """Return |found - expected| / |expected|; infinite where values are missing or not finite on one side only."""
    a, b = to_float64(found), to_float64(expected)
    if a.shape != b.shape:
        return float("inf")
    finite = np.isfinite(b)
    if not np.array_equal(finite, np.isfinite(a)):
        return float("inf")
    size = float(np.linalg.norm(np.where(finite, b, 0.0)))
    distance = float(np.linalg.norm(np.where(finite, a, 0.0) - np.where(finite, b, 0.0)))
    if distance == 0.0:
        return 0.0
    return distance / size if size else float("inf")


@dataclass
class Bench:
    """The arguments on which candidates run: the caller's, with copies of what they write.

    Attributes
    ----------
    args : list
        What is passed.
    originals : dict
        For each argument that is written, what it holds before.
    """

    args: list[Any]
    originals: dict[int, Any]

    @classmethod
    def of(cls, args: Sequence[Any], written: Sequence[int]) -> Bench:
        """Return a bench for arguments of which some are written."""
        return cls(
            [copy_of(value) if i in written else value for i, value in enumerate(args)],
            {i: args[i] for i in written},
        )

    def restore(self) -> None:
        """Fill the copies anew."""
        for i, original in self.originals.items():
            restore(self.args[i], original)

    def outputs(self) -> list[Any]:
        """Return copies of what was written."""
        return [copy_of(self.args[i]) for i in self.originals]


@dataclass
class GpuTimer:
    """Times calls with a cold L2 cache by CUDA events, and gives up on those that do not end.

    Attributes
    ----------
    device : int
        The CUDA device.
    flush : function
        Fills the L2 cache with lines that nobody needs and that need not be written back.
    stream : function
        Returns the stream on which calls run.
    seconds_at_most : float
        Time in which a call has to end.
    """

    device: int
    flush: Callable[[], None]
    stream: Callable[[], int]
    seconds_at_most: float = 5.0
    events: list[Any] = field(default_factory=list)

    @classmethod
    def of(cls, device: int, seconds_at_most: float = 5.0) -> GpuTimer:
        """Return a timer on torch's current stream of a device."""
        import torch

        where = torch.device("cuda", device)
        l2_bytes = int(torch.cuda.get_device_properties(where).L2_cache_size)
        count = max(FLUSH_FACTOR * l2_bytes, SMALLEST_FLUSH) // 4
        written, read = (torch.zeros(count, dtype=torch.int32, device=where) for _ in range(2))

        def flush() -> None:
            written.zero_()
            # The lines that were written go to memory while these are read.
            torch.amax(read)

        return cls(device, flush, lambda: torch.cuda.current_stream(where).cuda_stream, seconds_at_most)

    def event(self) -> Any:
        event = driver.check(driver.bindings().cuEventCreate(0), "making an event")
        self.events.append(event)
        return event

    def wait(self, event: Any) -> None:
        """Wait for an event, but not for ever."""
        end = time.monotonic() + self.seconds_at_most
        while True:
            (status,) = driver.bindings().cuEventQuery(event)
            if not status:
                return
            if int(status) != NOT_READY:
                raise DeviceLost(driver.error_of(status, "running the candidate").message)
            if time.monotonic() > end:
                raise TimedOut(f"it did not end within {self.seconds_at_most:g} s")
            time.sleep(POLL_SECONDS)

    def idle(self, seconds: float) -> bool:
        """Wait until the device has done what it was given; tell whether it answers."""
        before, self.seconds_at_most = self.seconds_at_most, seconds
        try:
            event = self.event()
            driver.check(driver.bindings().cuEventRecord(event, self.stream()), "recording an event")
            self.wait(event)
        except TilusError:
            return False
        finally:
            self.seconds_at_most = before
        return True

    def sample(self, run: Callable[[], Any]) -> float:
        """Return the seconds of one call that finds nothing in the cache."""
        bindings = driver.bindings()
        start, end = self.event(), self.event()
        self.flush()
        driver.check(bindings.cuEventRecord(start, self.stream()), "recording an event")
        run()
        driver.check(bindings.cuEventRecord(end, self.stream()), "recording an event")
        self.wait(end)
        milliseconds: float = driver.check(bindings.cuEventElapsedTime(start, end), "reading the time")
        return milliseconds / 1e3

    def seconds(self, run: Callable[[], Any], best: float = float("inf")) -> float:
        """Return the median time of a call; fewer samples where it is far from the best time so far."""
        try:
            with driver.in_context(self.device):
                for _ in range(WARM_UP):
                    self.sample(run)
                samples = [self.sample(run) for _ in range(FIRST_SAMPLES)]
                if statistics.median(samples) <= HOPELESS * best:
                    samples += [self.sample(run) for _ in range(SAMPLES - FIRST_SAMPLES)]
                return statistics.median(samples)
        finally:
            self.release()

    def release(self) -> None:
        for event in self.events:
            driver.bindings().cuEventDestroy(event)
        self.events.clear()


def run_simulated(kernel: Any, args: Sequence[Any], target: str) -> Mapping[str, Any]:
    """Run a candidate on the simulator with all checks, and return its counters."""
    report = kernel.simulate(*args, target=target)
    if report.hazards:
        raise LaunchError(f"the simulator finds {report.hazards[0].kind}: {report.hazards[0].message}")
    counters: Mapping[str, Any] = report.counters
    return counters
