"""Which sandboxes nodes have made ahead, as far as they have told."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from cloche_server.node.messages import SandboxReady


@dataclass
class ReadyBoard:
    """Sandboxes that nobody has taken yet.

    One that stands here may be gone: a create with its id works all the same.
    """

    _offers: dict[str, SandboxReady] = field(default_factory=dict[str, SandboxReady])

    def replace(self, offers: Iterable[SandboxReady]) -> None:
        """Forget all, and take these, oldest first."""
        self._offers = {offer.sandbox_id: offer for offer in offers}

    def add(self, offer: SandboxReady) -> None:
        """One more, or one that was taken and not used."""
        self._offers[offer.sandbox_id] = offer

    def remove(self, sandbox_id: str) -> None:
        """It is gone. Idempotent."""
        self._offers.pop(sandbox_id, None)

    def take(
        self, team_id: str, build_id: str, cpu_count: int, memory_mib: int, isolation: str
    ) -> SandboxReady | None:
        """The oldest that is all of that, for one taker alone; None where there is none."""
        for offer in self._offers.values():
            if offer == SandboxReady(offer.sandbox_id, team_id, build_id, cpu_count, memory_mib, isolation):
                return self._offers.pop(offer.sandbox_id)
        return None
