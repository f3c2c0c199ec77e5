"""Clusters of thread blocks, their shared memory, and launches that overlap with the one before."""

from __future__ import annotations

from dataclasses import replace

from tilus.ir.core import Effect, Operation, Value, attribute, op, operand
from tilus.ir.ops.memory import check_integer, own_shared_type
from tilus.ir.types import Type


@op("cluster_arrive", pure=False)
class ClusterArrive(Operation):
    """Arrive at the cluster's barrier, which is complete when all threads of all its blocks have.

    What was done before is seen after the `cluster_wait` that follows, unless `relaxed`. Threads that have ended do
    not count. `reason` is empty where the user wrote it.
    """

    relaxed: bool = attribute(default=False)
    reason: str = attribute(default="")

    def effects(self) -> tuple[Effect, ...]:
        return (Effect("sync", "shared"),)


@op("cluster_wait", pure=False)
class ClusterWait(Operation):
    """Wait until the cluster's barrier is complete; each thread has arrived at it once since its last wait."""

    reason: str = attribute(default="")

    def effects(self) -> tuple[Effect, ...]:
        return (Effect("sync", "shared"),)


@op("remote", pure=True)
class Remote(Operation):
    """The shared tensor that lies in the same place in the block of another rank of the cluster."""

    tensor: Value = operand()
    rank: Value = operand()

    def infer(self) -> tuple[Type, ...]:
        type = own_shared_type("remote", self.tensor)
        check_integer("remote", "rank", self.rank)
        return (replace(type, remote=True),)


@op("wait_for_previous", pure=False)
class WaitForPrevious(Operation):
    """Wait until the launches that this one overlaps with have ended and all that they wrote is there."""

    def effects(self) -> tuple[Effect, ...]:
        return (Effect("sync", "global"),)


@op("launch_next", pure=False)
class LaunchNext(Operation):
    """Allow the launch that waits for this one to begin, once all blocks have said so or ended."""

    def effects(self) -> tuple[Effect, ...]:
        return (Effect("sync", "thread"),)
