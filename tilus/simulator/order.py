"""What happens before what: a vector clock per warp, moved by barriers, fences, atomics and mbarriers.

Time counts memory instructions. ``known[layer, warp, agent]`` is the time up to which an agent's accesses happen
before whatever the warp does next. Agents are the warps of the cluster, then its warpgroups, whose ``wgmma`` read
shared memory, then a few *channels*, through which asynchronous copies complete (an mbarrier each). Layer 0 is the
generic proxy; the others are kept only for kernels with asynchronous-proxy instructions. Layers 1 and 2 are what proxy
fences have made visible to that proxy of shared and of global memory, layer 3 is of initialisations of mbarriers alone.
Knowledge about warps of other clusters, needed for global memory only, is a dict from block to a vector.
"""

from __future__ import annotations

from functools import reduce
from typing import Any

import numpy as np

from .selection import Selection

SHARED, GLOBAL, INITIALISATIONS = 1, 2, 3
CHANNELS = 16  # To begin with, and by how many there are more at a time.
Knowledge = dict[int, Any]


def join(a: Knowledge, b: Knowledge) -> Knowledge:
    """The union of what two know of other blocks."""
    if not a or a is b:
        return b
    if not b:
        return a
    result = dict(a)
    for block, times in b.items():
        mine = result.get(block)
        result[block] = times if mine is None else np.maximum(mine, times)
    return result


def latest(first: Any, second: Any) -> Any:
    """The union of two joined vectors; the older one may know fewer channels."""
    missing = second.shape[-1] - first.shape[-1]
    if missing:
        shorter = first if missing > 0 else second
        padded = np.zeros((*shorter.shape[:-1], shorter.shape[-1] + abs(missing)), np.int64)
        padded[..., : shorter.shape[-1]] = shorter
        first, second = (padded, second) if missing > 0 else (first, padded)
    return np.maximum(first, second)


def _behind(known: Any, last: Any) -> Any:
    """What is known of agents, where these have done more since; without end where they have not."""
    return np.where(known < last, known, np.iinfo(np.int64).max)


class Payload:
    """What a release by a thread of ``block`` hands on: knowledge about the own cluster, and about other blocks."""

    __slots__ = ("as_remote", "block", "cluster", "local", "remote")

    def __init__(self, block: int, cluster: int, local: Any, remote: Knowledge, as_remote: Knowledge) -> None:
        self.block, self.cluster = block, cluster
        self.local, self.remote, self.as_remote = local, remote, as_remote


# A payload, and whether its release has a scope beyond the block.
Gift = tuple[Payload, bool]


class Order:
    """The clocks of one batch."""

    def __init__(self, state: Any) -> None:
        engine = state.engine
        self.state = state
        self.engine = engine
        self.size = engine.cluster_size
        self.warps = state.warps
        self.agents = self.size * state.warps
        self.channels = CHANNELS if engine.kernel.uses_async_proxy else 0
        self.layers = 4 if engine.kernel.uses_async_proxy else 1
        rows = state.warp_count
        self.group_count = -(-self.warps // 4) if engine.kernel.wgmma_registers else 0
        self.readers = self.agents + self.size * self.group_count
        self.known = np.zeros((self.layers, rows, self.readers + self.channels), np.int64)
        # A channel on which nothing completed yet holds nothing to wait for.
        self.agent = (state.block_of_warp % self.size) * state.warps + state.warp_in_block
        self.cluster = state.block_of_warp // self.size
        self.row_number = np.arange(rows)
        self.own = np.zeros(rows, np.int64)
        self.remote: dict[int, Knowledge] = {}
        # What a row's fences released, to all blocks and (later ones) to its own.
        self.released: dict[int, Payload] = {}
        self.released_to_block: dict[int, Payload] = {}
        # What relaxed reads saw, for the next fence to take in, and whether an atomic saw it.
        self.acquired: dict[int, dict[Payload, bool]] = {}
        self.taken: dict[int, set[Payload]] = {}
        # When a row last saw what a location held.
        self.observed: dict[tuple[int, Any], int] = {}
        # What relaxed waits for mbarriers saw, for the next fence to take in.
        self.heard: dict[int, Any] = {}
        self.cluster_pending: dict[int, list[Any]] = {}
        self.cluster_done: dict[int, Any] = {}
        self.version = 0
        self._thresholds: dict[Any, tuple[int, int]] = {}
        self._floor = self._floor_reads = np.zeros(rows, np.int64)
        self._floor_version = -1
        # When each warp last read and wrote shared memory.
        self.last_read, self.last_write = np.zeros(rows, np.int64), np.zeros(rows, np.int64)
        # When warpgroups read last, and when something last completed on each channel.
        self.last = np.zeros(
            (int(self.cluster.max()) + 1, self.readers - self.agents + self.channels), np.int64
        )
        rank = state.block_of_warp % self.size
        self.group_agent = self.agents + rank * self.group_count + state.warp_in_block // 4

    @property
    def fenced(self) -> bool:
        """Whether a fence has released something."""
        return bool(self.released or self.released_to_block)

    # -- time --------------------------------------------------------------------------------------------------

    def threshold(self, sel: Any, reads: bool = False) -> int:
        """Accesses (or only reads) up to this time happen before the next step of every selected warp."""
        if sel.whole:
            found = self._thresholds.get((sel.key, reads))
            if found is not None and found[0] == self.version:
                return found[1]
        if self._floor_version != self.version:
            self._refresh_floor()
        value = int((self._floor_reads if reads else self._floor)[sel.warp_slice].min())
        if sel.whole:
            self._thresholds[sel.key, reads] = (self.version, value)
        return value

    def _refresh_floor(self) -> None:
        layer = self.known[0][:, : self.agents].copy()
        layer[self.row_number, self.agent] = self.own
        self._floor_reads, self._floor = (
            self._floor_of(layer, last) for last in (self.last_read, self.last_write)
        )
        if self.last.shape[1]:
            extra = _behind(self.known[0][:, self.agents :], self.last[self.cluster])
            groups = self.readers - self.agents
            if groups:
                self._floor_reads = np.minimum(self._floor_reads, extra[:, :groups].min(axis=1))
            if self.channels:
                self._floor = np.minimum(self._floor, extra[:, groups:].min(axis=1))
        self._floor_version = self.version

    def _floor_of(self, layer: Any, last: Any) -> Any:
        """The time up to which each row knows of everybody; what happens later has a later time."""
        of_agent = np.zeros((len(self.last), self.agents), np.int64)
        of_agent[self.cluster, self.agent] = last
        return np.minimum(_behind(layer, of_agent[self.cluster]).min(axis=1), self.engine.now - 1)

    def unknown_readers(self, rows: Any) -> Any:
        """The agents of whose reads of shared memory some of the rows do not know all."""
        of_agent = np.zeros((len(self.last), self.readers), np.int64)
        of_agent[self.cluster, self.agent] = self.last_read
        of_agent[:, self.agents :] = self.last[:, : self.readers - self.agents]
        return np.flatnonzero(
            (self.known[0][rows, : self.readers] < of_agent[self.cluster[rows]]).any(axis=0)
        )

    def touched(self, sel: Any, now: int, writes: bool) -> None:
        """Warps read or write shared memory."""
        (self.last_write if writes else self.last_read)[sel.warp_slice] = now

    def knows(self, rows: Any, agents: Any) -> Any:
        """Known time of an agent for each row; for one's own warp the last time its lanes were synchronised."""
        value = self.known[0][rows, agents]
        return np.where(agents == self.agent[rows], self.own[rows], value)

    def knows_initialised(self, rows: Any, agents: Any) -> Any:
        """Known time of an agent's initialisations of mbarriers for each row."""
        known = self.knows(rows, agents)
        return known if self.layers == 1 else np.maximum(known, self.known[INITIALISATIONS, rows, agents])

    def proxied(self, rows: Any, agents: Any, layer: int) -> Any:
        """Time up to which an agent's generic accesses are visible to the rows' asynchronous operations."""
        return self.known[layer, rows, agents]

    # -- synchronisation ---------------------------------------------------------------------------------------

    def snapshot(self, rows: Any) -> Any:
        """What the rows together know now, their own past included: ``[layers, agents]`` joined."""
        now = self.engine.tick()
        part = self.known[:, rows]
        part[0][np.arange(len(rows)), self.agent[rows]] = now
        return part.max(axis=1)

    def learn(self, rows: Any, knowledge: Any) -> None:
        """Rows learn a joined vector."""
        size = knowledge.shape[-1]
        self.known[:, rows, :size] = np.maximum(self.known[:, rows, :size], knowledge[:, None])
        self.version += 1

    def all_blocks(self) -> None:
        """Every warp of every block of the batch passes a barrier of its block."""
        now = self.engine.tick()
        blocks = self.state.block_count
        shaped = self.known.reshape(self.layers, self.warps, blocks, -1)
        if self.size == 1:
            if self.layers > 1 or self.channels:
                shaped[:] = shaped.max(axis=1, keepdims=True)
            self.known[0][:, : self.agents] = now
        else:
            joined = shaped.max(axis=1)
            for warp in range(self.warps):
                column = (np.arange(blocks) % self.size) * self.warps + warp
                joined[0][np.arange(blocks), column] = now
            shaped[:] = joined[:, None]
        self.own[:] = now
        if self.remote or self.fenced or self.acquired:
            for block in range(blocks):
                self._share(np.arange(self.warps) * blocks + block)
        self.version += 1

    def _share(self, rows: Any) -> None:
        """Warps that meet share what they know of other blocks, and their release fences.

        They take in what their atomics have seen: the last block of a grid is found so, with no fence after the atomic.
        """
        merged: Knowledge = {}
        for row in rows:
            merged = join(merged, self.remote.get(int(row), {}))
        seen: dict[Payload, bool] = {}
        for row in rows:
            for payload, updated in self.acquired.get(int(row), {}).items():
                seen[payload] = updated or seen.get(payload, False)
        for row in rows:
            if merged:
                self.remote[int(row)] = merged
            if seen:
                self.acquired[int(row)] = {p: False for p, updated in seen.items() if not updated}
                for payload, updated in seen.items():
                    if updated:
                        self.take(int(row), payload)
        for table in (self.released, self.released_to_block):
            fences = [table[int(row)] for row in rows if int(row) in table]
            if fences:
                gift = fences[0] if len(fences) == 1 else _merge_payloads(fences)
                table.update((int(row), gift) for row in rows)

    def barrier(self, members: list[Any]) -> None:
        """A named barrier completes: ``members`` are (rows, waits, snapshot at arrival)."""
        total = None
        for _, _, snapshot in members:
            total = snapshot if total is None else latest(total, snapshot)
        rows = [m[0] for m in members if m[1]]
        if total is None or not rows:
            return
        waiting = np.concatenate(rows)
        self.learn(waiting, total)
        self.own[waiting] = self.engine.tick()
        if self.remote or self.fenced or self.acquired:
            self._share(np.concatenate([m[0] for m in members]))

    def warp_sync(self, sel: Selection) -> None:
        """Lanes of each warp meet."""
        self.own[sel.warp_slice] = self.engine.tick()
        self.version += 1

    def channel_completed(self, table: Any, slots: Any) -> None:
        """Asynchronous copies complete at mbarriers: whoever waits for these learns it."""
        now = self.engine.tick()
        for slot in np.unique(slots):
            channel = self.channel_of(int(slot))
            vector = np.zeros((self.layers, self.readers + self.channels), np.int64)
            vector[0, channel] = now
            self.last[int(slot >> 16) // self.size, channel - self.agents] = now
            table.collect(int(slot), vector)
        self.version += 1

    def channel_of(self, slot: int) -> int:
        """The agent that stands for an mbarrier."""
        channel = slot & 0xFFFF
        while channel >= self.channels:
            self.channels += CHANNELS
            self.known, self.last = (
                np.concatenate([table, np.zeros((*table.shape[:-1], CHANNELS), np.int64)], axis=-1)
                for table in (self.known, self.last)
            )
        return self.readers + channel

    def group_read(self, rows: Any) -> Any:
        """The warpgroups of some warps have read: the agents and the time that stand for it."""
        now = self.engine.tick()
        agents = self.group_agent[rows]
        self.last[self.cluster[rows], agents - self.agents] = now
        self.version += 1
        return agents, now

    def group_waited(self, rows: Any) -> None:
        """Warps have waited for ``wgmma``: whatever these have read, all warps of the warpgroup, was read before."""
        self.known[0][rows, self.group_agent[rows]] = self.engine.tick()
        self.version += 1

    # -- clusters ----------------------------------------------------------------------------------------------

    def cluster_arrive(self, rows: Any, relaxed: bool) -> None:
        """Rows arrive at the cluster barrier; a relaxed arrival hands on what a fence before it has released."""
        for cluster in np.unique(self.cluster[rows]):
            mine = rows[self.cluster[rows] == cluster]
            parts = self.cluster_pending.setdefault(int(cluster), [])
            if relaxed:
                parts += [self.released[int(row)].local for row in mine if int(row) in self.released]
            else:
                parts.append(self.snapshot(mine))

    def cluster_complete(self, cluster: int) -> None:
        """All arrived."""
        parts = self.cluster_pending.pop(cluster, [])
        nothing = np.zeros((self.layers, self.readers + self.channels), np.int64)
        self.cluster_done[cluster] = reduce(latest, parts, nothing)

    def cluster_wait(self, rows: Any) -> None:
        """Rows pass the cluster barrier."""
        for cluster in np.unique(self.cluster[rows]):
            mine = rows[self.cluster[rows] == cluster]
            self.learn(mine, self.cluster_done[int(cluster)])
            self.own[mine] = self.engine.tick()

    # -- fences and atomics ------------------------------------------------------------------------------------

    def payload(self, row: int, local: Any = None) -> Payload:
        """Everything a row can hand on now, or ``local`` of it."""
        key, block = self._cluster_key(row), int(self.state.blocks[self.state.block_of_warp[row]])
        if local is None:
            local = self.snapshot(np.array([row]))
        as_remote = blocks_of(key, local, self.engine, self.warps, self.size)
        return Payload(block, key, local, self.remote.get(row, {}), as_remote)

    def _cluster_key(self, row: int) -> int:
        """A number for the row's cluster that is unique in the launch: its first block."""
        first = int(self.cluster[row]) * self.size
        return int(self.state.blocks[first])

    def fence(self, sel: Selection, scope: str) -> None:
        """A memory fence: releases what is known, takes in what strong reads have seen."""
        self.take_pending(sel)
        for row in sel.warps.tolist():
            (self.released_to_block if scope == "cta" else self.released)[row] = self.payload(row)
            if scope != "cta":
                self.released_to_block.pop(row, None)

    def initialisation_fence(self, sel: Selection) -> None:
        """``fence.mbarrier_init``: adds the rows' own initialisations to what their fences have released."""
        if self.layers == 1:
            return
        now = self.engine.tick()
        for row in sel.warps.tolist():
            old = self.released.get(row)
            local = np.zeros((self.layers, self.readers + self.channels), np.int64)
            local[INITIALISATIONS, self.agent[row]] = now
            if old is None:
                self.released[row] = self.payload(row, local)
            else:
                local = latest(local, old.local)
                self.released[row] = Payload(old.block, old.cluster, local, old.remote, old.as_remote)

    def gifts(self, row: int, scope: str) -> list[Gift]:
        """What a relaxed write of a scope hands on: what the row's fences have released."""
        tables = ((self.released, scope != "cta"), (self.released_to_block, False))
        return [(table[row], wide) for table, wide in tables if row in table]

    def take_pending(self, sel: Selection) -> None:
        """Take in what strong reads have seen."""
        for row in sel.warps:
            for payload in self.acquired.pop(int(row), ()):
                self.take(int(row), payload)
            clock = self.heard.pop(int(row), None)
            if clock is not None:
                self.learn(np.array([row]), clock)
                self.own[row] = max(self.own[row], clock[0, self.agent[row]])

    def hear(self, rows: Any, clock: Any) -> None:
        """Rows see the end of an mbarrier's phase without acquiring what it hands on."""
        for row in rows.tolist():
            old = self.heard.get(row)
            self.heard[row] = clock if old is None else latest(old, clock)

    def proxy_fence(self, sel: Selection, proxy: str) -> None:
        """Makes what the warp knows visible to the asynchronous proxy."""
        if self.layers < 2 or not proxy.startswith("async"):
            return
        rows = sel.warps
        now = self.engine.tick()
        part = self.known[0][rows].copy()
        part[np.arange(len(rows)), self.agent[rows]] = now
        space = proxy.partition(".")[2]
        for layer in (SHARED,) if space == "shared" else (GLOBAL,) if space == "global" else (SHARED, GLOBAL):
            self.known[layer][rows] = np.maximum(self.known[layer][rows], part)
        self.version += 1

    def take(self, row: int, payload: Payload) -> None:
        """A row learns what another released."""
        done = self.taken.setdefault(row, set())
        if payload in done:
            return
        done.add(payload)
        remote = payload.remote
        if payload.cluster == self._cluster_key(row):
            self.learn(np.array([row]), payload.local)
        else:
            remote = join(remote, payload.as_remote)
        if remote:
            self.remote[row] = join(self.remote.get(row, {}), remote)
        self.version += 1

    def strong(self, sel: Selection, space: Any, offset: Any, access: Any, reads: bool, writes: bool) -> None:
        """A relaxed, acquire, release or atomic access of locations, one ``offset`` in ``space`` per lane."""
        engine = self.engine
        order = access.order
        releases = writes and (order in ("release", "acq_rel") or self.fenced)
        if not releases and not (reads and engine.locations):
            return
        # One step for each warp and location.
        pairs = np.unique((sel.index >> 5) << 44 | offset)
        if not releases:
            known = [o for o in np.unique(offset).tolist() if (*space, o) in engine.locations]
            if not known:
                return
            pairs = pairs[np.isin(pairs & ((1 << 44) - 1), known)]
        for pair in pairs.tolist():
            row, key = pair >> 44, (*space, pair & ((1 << 44) - 1))
            found = engine.locations.get(key)
            if reads and found:
                self._observe(row, found, access, writes)
                self.observed[row, key] = self.engine.now
            if writes:
                if order in ("release", "acq_rel"):
                    gifts = [(self.payload(row), access.scope != "cta")]
                else:
                    gifts = self.gifts(row, access.scope)
                if gifts:
                    # A read-modify-write continues the release sequence, a store begins a new one.
                    engine.locations[key] = self._add(row, found, gifts) if reads and found else gifts

    def _observe(self, row: int, found: list[Gift], access: Any, updates: bool) -> None:
        """A row reads what was written with a release that has the row in its scope, and the reverse."""
        block, done = int(self.state.blocks[self.state.block_of_warp[row]]), self.taken.get(row, ())
        wide = access.scope != "cta"
        fresh = [p for p, w in found if p not in done and (p.block == block or (w and wide))]
        if access.order in ("acquire", "acq_rel"):
            for payload in fresh:
                self.take(row, payload)
        elif fresh:
            self.acquired.setdefault(row, {}).update(dict.fromkeys(fresh, updates))

    def _add(self, row: int, found: list[Gift], gifts: list[Gift]) -> list[Gift]:
        """The payloads of a location after another release; what the releaser knows already is in its own."""
        done = self.taken.get(row, ())
        kept = [gift for gift in found if gift[0] not in done]
        if len(kept) <= 8:
            return kept + gifts
        # Those that reach all blocks become one, of the others those of each block.
        groups: dict[int | None, list[Payload]] = {}
        for payload, wide in kept + gifts:
            groups.setdefault(None if wide else payload.block, []).append(payload)
        return [(_merge_payloads(group), block is None) for block, group in groups.items()]

    def ordered_remote(self, row: int, block: int, warp: int, time: int) -> bool:
        """Whether an access by a warp of another cluster happens before the row's next step."""
        times = self.remote.get(row, {}).get(block)
        return times is not None and bool(times[warp] >= time)


def _merge_payloads(payloads: list[Payload]) -> Payload:
    """One payload for several; those of other clusters are kept as remote knowledge."""
    first = payloads[0]
    local, remote = first.local, first.remote
    for other in payloads[1:]:
        if other.cluster == first.cluster:
            local = latest(local, other.local)
            remote = join(remote, other.remote)
        else:
            remote = join(remote, join(other.remote, other.as_remote))
    as_remote = first.as_remote
    for other in payloads[1:]:
        if other.cluster == first.cluster:
            as_remote = join(as_remote, other.as_remote)
    return Payload(first.block, first.cluster, local, remote, as_remote)


def blocks_of(cluster: int, local: Any, engine: Any, warps: int, size: int) -> Knowledge:
    """Knowledge about the own cluster as knowledge about each of its blocks."""
    blocks = engine.cluster_blocks[cluster] if size > 1 else [cluster]
    return {block: local[0][rank * warps : (rank + 1) * warps] for rank, block in enumerate(blocks)}
