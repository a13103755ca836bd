"""What sandboxes use, asked of the kernel every 5 s and kept in memory as long as they live.

A restart of the node begins a new history. The cost is bounded by the number of sandboxes, not by what they
do: a few small files each, and the sizes of writable layers from a budget of entries per second.
"""

from __future__ import annotations

import asyncio
import math
import os
from dataclasses import dataclass, field

from cloche_server.isolation.base import Usage
from cloche_server.node import layer_size, threads
from cloche_server.node.history import FINE_EVERY_S, History
from cloche_server.node.machine import Live, Machine
from cloche_server.node.messages import MetricPoint, MetricsQuery, SandboxMetrics

ENTRIES_PER_S = 1000
"""Files and folders looked at per second, over all sandboxes: about half a percent of a core."""
ENTRIES_PER_LAYER = 20_000
REMEASURE_AFTER_S = 30.0
_IDLE_CPU_S = 0.005
"""A sandbox that used less CPU than this since its layer was measured has hardly written."""


@dataclass
class _Watched:
    """One sandbox, between two samples."""

    history: History
    sampled_boot_s: float
    cpu_s: float = 0.0
    disk_bytes: int = 0
    measured_boot_s: float = float("-inf")
    measured_cpu_s: float = 0.0


@dataclass
class Sampler:
    """The histories of one node's sandboxes."""

    machine: Machine
    _watched: dict[str, _Watched] = field(default_factory=dict[str, _Watched])
    _entries_left: float = ENTRIES_PER_LAYER

    async def run(self) -> None:
        """Take a sample every 5 s until cancelled; one that takes long delays the next."""
        loop = asyncio.get_running_loop()
        while True:
            next_s = loop.time() + FINE_EVERY_S
            await self.sample()
            await asyncio.sleep(max(0.0, next_s - loop.time()))

    async def sample(self) -> None:
        """Add one point to the history of every sandbox that runs, and forget those that are gone."""
        machine = self.machine
        running = {name: live for name, live in machine.live.items() if live.record.state == "running"}
        self._watched = {name: self._of(name, live) for name, live in running.items()}
        usages = await threads.in_thread(self._usages, list(running.values()))
        await self._measure_layers(dict(zip(running, usages, strict=True)))
        boot_s, at_s = machine.clock.boot_s(), int(machine.clock.now().timestamp())
        for (name, live), usage in zip(running.items(), usages, strict=True):
            self._add(self._watched[name], live, usage, boot_s, at_s)

    def busiest_pct(self, sandbox_id: str, for_s: float) -> float:
        """The largest part of one CPU that a sandbox used between two samples of the last seconds.

        Infinite where there is none of them: nothing is known of it then.
        """
        watched, live = self._watched.get(sandbox_id), self.machine.live.get(sandbox_id)
        if watched is None or live is None:
            return math.inf
        # The oldest of them may tell of what was before.
        since_s = int(self.machine.clock.now().timestamp() - max(for_s, FINE_EVERY_S))
        points = watched.history.points(since_s)
        shares = [point.cpu_used_pct for point in points[1:] or points]
        return max(shares, default=math.inf) * live.record.request.cpu_count

    def query(self, query: MetricsQuery) -> list[SandboxMetrics]:
        """What is known of the sandboxes asked for; those that do not run are left out."""
        free = self._free_disk_bytes()
        found: list[SandboxMetrics] = []
        for name in query.sandbox_ids:
            live = self.machine.live.get(name)
            if live is None or live.record.state != "running":
                continue
            watched = self._watched.get(name) or self._of(name, live)
            history = watched.history
            request = live.record.request
            points = history.latest() if query.only_latest else history.points(query.start_s, query.end_s)
            total = free + watched.disk_bytes
            found.append(SandboxMetrics(name, request.cpu_count, request.memory_mib << 20, total, points))
        return found

    def _usages(self, lives: list[Live]) -> list[Usage]:
        machine = self.machine
        return [machine.driver(live.record).usage(live.record.request.sandbox_id) for live in lives]

    def _of(self, name: str, live: Live) -> _Watched:
        if (watched := self._watched.get(name)) is not None:
            return watched
        machine = self.machine
        age_s = (machine.clock.now() - live.record.started_at).total_seconds()
        return _Watched(History(), machine.clock.boot_s() - max(age_s, 0.001), live.cpu_before_s)

    def _add(self, watched: _Watched, live: Live, usage: Usage, boot_s: float, at_s: int) -> None:
        took_s = max(boot_s - watched.sampled_boot_s, 0.001)
        share = (usage.cpu_s - watched.cpu_s) / (took_s * live.record.request.cpu_count)
        # A group that is gone reads as zeros: its CPU time seems to have gone back.
        watched.history.add(
            MetricPoint(
                at_s,
                max(0.0, 100 * share),
                usage.held_bytes,
                usage.cache_bytes,
                watched.disk_bytes,
            )
        )
        watched.sampled_boot_s, watched.cpu_s = boot_s, usage.cpu_s

    async def _measure_layers(self, usages: dict[str, Usage]) -> None:
        """Look at the layers that may have grown, longest unseen first, until the budget is used."""
        now = self.machine.clock.boot_s()
        self._entries_left = min(self._entries_left + ENTRIES_PER_S * FINE_EVERY_S, ENTRIES_PER_LAYER)
        due = [
            name
            for name, watched in self._watched.items()
            if now - watched.measured_boot_s >= REMEASURE_AFTER_S
            and (usages[name].cpu_s - watched.measured_cpu_s >= _IDLE_CPU_S or not watched.disk_bytes)
        ]
        for name in sorted(due, key=lambda name: self._watched[name].measured_boot_s):
            if self._entries_left <= 0:
                return
            watched = self._watched[name]
            found = await threads.in_thread(
                layer_size.measure, self.machine.folder(name), max_entries=ENTRIES_PER_LAYER
            )
            # More than is left may be taken: what is owed is waited for.
            self._entries_left -= found.entries
            watched.disk_bytes = found.size_bytes
            watched.measured_boot_s, watched.measured_cpu_s = now, usages[name].cpu_s

    def _free_disk_bytes(self) -> int:
        try:
            disk = os.statvfs(self.machine.config.state_dir)
        except OSError:
            return 0
        return disk.f_bavail * disk.f_frsize
