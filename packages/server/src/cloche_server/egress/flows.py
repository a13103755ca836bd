"""The connections open through the egress: counted for each sandbox, and cut when a policy changes."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Awaitable, Callable
from dataclasses import dataclass, field

import structlog

from cloche_server import domain_names
from cloche_server.node.messages import NamePolicy
from cloche_wire.errors import SandboxNotFound

MAX_OF_ONE_SANDBOX = 512
MAX_IN_ALL = 4096

log = structlog.get_logger()
AskNode = Callable[[str], Awaitable[NamePolicy]]
"""From an address to the policy of the sandbox there; raises SandboxNotFound, or Unavailable."""


@dataclass(eq=False)
class Flow:
    """One connection of a sandbox, from its acceptance to its end."""

    address: str
    name: str = ""
    """Normalised; empty until it has been read."""
    transports: list[asyncio.WriteTransport] = field(default_factory=list[asyncio.WriteTransport])

    def cut(self) -> None:
        """End both sides at once."""
        for transport in self.transports:
            transport.abort()


class Flows:
    """All of them."""

    def __init__(self, ask_node: AskNode) -> None:
        """Take the question that says what an address may reach."""
        self._ask_node = ask_node
        self._open: dict[str, set[Flow]] = {}
        self._count = 0

    @contextlib.asynccontextmanager
    async def counted(self, address: str) -> AsyncGenerator[Flow | None]:
        """Yield a new flow of the address, or None where there are too many."""
        flows = self._open.setdefault(address, set())
        if len(flows) >= MAX_OF_ONE_SANDBOX or self._count >= MAX_IN_ALL:
            yield None
            return
        flow = Flow(address)
        flows.add(flow)
        self._count += 1
        try:
            yield flow
        finally:
            self._count -= 1
            flows.discard(flow)
            if not flows and self._open.get(address) is flows:
                del self._open[address]

    async def is_allowed(self, flow: Flow) -> bool:
        """Whether its sandbox may reach its name, by the node's word of this moment.

        Raises:
            Unavailable: The node does not answer.
        """
        try:
            policy = await self._ask_node(flow.address)
        except SandboxNotFound:
            return False
        if domain_names.is_listed(flow.name, policy.domains):
            return True
        log.info("egress.denied", sandbox_id=policy.sandbox_id, name=flow.name, reason="not in allowOut")
        return False

    async def look_again(self, address: str | None = None) -> None:
        """Cut what may not be open any more, of one address or of all.

        Raises:
            Unavailable: The node does not answer.
        """
        for one in [address] if address else list(self._open):
            for flow in list(self._open.get(one, ())):
                if flow.name and not await self.is_allowed(flow):
                    flow.cut()
