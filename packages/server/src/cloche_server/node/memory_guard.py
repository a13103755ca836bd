"""Ends what uses the most memory in a sandbox whose kernel does not do that by itself.

Where a sandbox has a kernel of its own, the machine's sees one program. At the limit of its group it ends
that, with all that the sandbox is, or a thread of it that the sandbox then waits for: of two cells that took
all memory, one ended the sandbox and one had it stand still for minutes. So such a group has a margin, and
here is looked at what the sandbox holds, the more often the nearer it is: beyond its own limit, its agent
ends the largest process, as the kernel would do in a machine of its own. See: docs/adr/0026.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field

import structlog

from cloche_server.isolation.base import Usage
from cloche_server.node import agent_link, threads
from cloche_server.node.machine import Live, Machine
from cloche_wire.errors import Internal

LONGEST_S, SHORTEST_S = 1.0, 0.02
BYTES_PER_S = 2 << 30
"""How fast programs take memory: numpy fills 1.4 GiB in a second, and nothing was seen to be faster."""
RELIEF_S = 0.2
"""What an ended process has to give back its memory."""
_ANSWER_S = 5.0

log = structlog.get_logger()


@dataclass
class MemoryGuard:
    """Looks after one node's sandboxes."""

    machine: Machine
    _due_boot_s: dict[str, float] = field(default_factory=dict[str, float])
    """When each is looked at next, by the boot clock."""
    _relieving: set[str] = field(default_factory=set[str])
    """Those whose agent was asked and has not answered."""

    async def run(self) -> None:
        """Look for ever, until cancelled."""
        while True:
            wait_s = await self.look()
            await asyncio.sleep(wait_s)

    async def look(self) -> float:
        """Look at those that it is time for; in how many seconds it is for the next."""
        guarded = {name: live for name, live in self.machine.live.items() if self._is_guarded(live)}
        now = self.machine.clock.boot_s()
        self._due_boot_s = {name: self._due_boot_s.get(name, now) for name in guarded}
        due = [name for name in guarded if self._due_boot_s[name] <= now]
        usages = await threads.in_thread(self._usages, [guarded[name] for name in due]) if due else []
        for name, usage in zip(due, usages, strict=True):
            self._due_boot_s[name] = now + self._mind(guarded[name], usage)
        return min([LONGEST_S, *(max(SHORTEST_S, at - now) for at in self._due_boot_s.values())])

    def _is_guarded(self, live: Live) -> bool:
        if live.record.state != "running" or live.record.is_frozen:
            return False
        return self.machine.driver(live.record).capabilities().memory_margin_mib > 0

    def _usages(self, lives: list[Live]) -> list[Usage]:
        machine = self.machine
        return [machine.driver(live.record).usage(live.record.request.sandbox_id) for live in lives]

    def _mind(self, live: Live, usage: Usage) -> float:
        """Have what is too much ended; in how many seconds to look again."""
        request = live.record.request
        own_mib = self.machine.driver(live.record).capabilities().own_memory_mib
        left = ((request.memory_mib + own_mib) << 20) - usage.held_bytes
        if left > 0:
            return min(LONGEST_S, max(SHORTEST_S, left / BYTES_PER_S))
        # What is on its way to disk stands still.
        on_its_way = self.machine.turns.of(request.sandbox_id).locked()
        if request.sandbox_id not in self._relieving and not on_its_way:
            self._relieving.add(request.sandbox_id)
            self.machine.tasks.create_task(self._relieve(live, usage))
        return RELIEF_S

    async def _relieve(self, live: Live, usage: Usage) -> None:
        machine, request = self.machine, live.record.request
        try:
            address = machine.agent_address(live.record)
            await agent_link.relieve(address, request.access_token, timeout_s=_ANSWER_S)
        except Internal as error:
            log.warning("sandbox.not_relieved", sandbox_id=request.sandbox_id, error=str(error))
        else:
            log.info("sandbox.relieved", sandbox_id=request.sandbox_id, held_mib=usage.held_bytes >> 20)
        finally:
            self._relieving.discard(request.sandbox_id)
