"""How many sandboxes should be there before they are asked for, of which kind."""

from __future__ import annotations

import asyncio
from collections import deque
from typing import NamedTuple

from cloche_server.config import Ahead
from cloche_server.ids import new_sandbox_id
from cloche_server.node.messages import CreateSandbox

RECENT_S = 60.0
"""As many as were asked for in this time are kept ready, within the limits of the settings."""


class Need(NamedTuple):
    """What decides whether a sandbox made ahead serves a request; the rest is told to it when it is taken."""

    team_id: str
    build_id: str
    cpu_count: int
    memory_mib: int
    isolation: str

    @classmethod
    def of(cls, request: CreateSandbox) -> Need:
        """What that request needs, whose isolation is settled."""
        return cls(
            request.team_id, request.build_id, request.cpu_count, request.memory_mib, request.isolation
        )

    def nobodys(self) -> CreateSandbox:
        """A request for one of that kind that is nobody's: without a token, and without a network."""
        return CreateSandbox(
            new_sandbox_id(), self.team_id, "", self.build_id, 0, "",
            cpu_count=self.cpu_count, memory_mib=self.memory_mib, allow_internet=False,
            isolation=self.isolation,
        )  # fmt: skip


class Demand:
    """What was asked for lately."""

    def __init__(self, settings: Ahead) -> None:
        """Nobody has asked for anything yet."""
        self._settings = settings
        self._asked: dict[Need, deque[float]] = {}
        """Times of the last requests by the boot clock, oldest first; the need asked for last comes last."""
        self.builds: set[str] = set()
        """Isolations of builds that found no image of an agent."""
        self.changed = asyncio.Event()
        """Set when there may be something to do."""

    def note(self, need: Need, boot_s: float) -> None:
        """Somebody asks for that now."""
        times = self._asked.pop(need, deque(maxlen=max(1, self._settings.most)))
        times.append(boot_s)
        self._asked[need] = times
        self.changed.set()

    def note_build(self, isolation: str) -> None:
        """A build of that isolation has to boot its sandboxes, for want of an image of an agent."""
        self.builds.add(isolation)
        self.changed.set()

    def wanted(self, boot_s: float) -> dict[Need, int]:
        """How many of each kind there should be now; kinds that are not named should have none.

        Those asked for last come first when there is not room for all.
        """
        kept = {
            need: times for need, times in self._asked.items() if boot_s - times[-1] < self._settings.keep_s
        }
        self._asked = kept
        left = self._settings.most
        found: dict[Need, int] = {}
        for need, times in reversed(kept.items()):
            recent = sum(boot_s - time < RECENT_S for time in times)
            found[need] = min(left, max(self._settings.least, recent))
            left -= found[need]
        return found
