"""Telling the node of sandboxes that nothing has been open to for a while; it decides what to do."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, NoReturn

import msgspec
import structlog

from cloche_server import link
from cloche_server.node.messages import IdleSandbox, LookAgain, Route
from cloche_wire.errors import ClocheError

if TYPE_CHECKING:
    from pathlib import Path

    from cloche_server.edge.route_table import RouteTable

LOOK_EVERY_S = 1.0
"""So much later than its creator set a sandbox may come to rest."""
ASK_TIMEOUT_S = 5.0
_AFTER_FAILURE_S = 5.0

log = structlog.get_logger()


class IdleWatch:
    """Looks at the routes that ask for it, and says of each once in a while that it is idle."""

    def __init__(self, socket: Path, table: RouteTable) -> None:
        """Nothing was said yet.

        Args:
            socket: The node's edge socket.
            table: Knows what is open, and since when nothing is.
        """
        self._socket = socket
        self._table = table
        self._not_before: dict[tuple[str, bool], float] = {}
        """By sandbox, and whether it stands still: that it came to, or goes on, is news."""

    async def run(self) -> NoReturn:
        """Look once a second until cancelled."""
        while True:
            await asyncio.sleep(LOOK_EVERY_S)
            await self.look()

    async def look(self) -> None:
        """Say of each that is idle now that it is, unless that was said a moment ago."""
        now = time.monotonic()
        watched = [route for route in self._table.routes() if route.idle_after_s and not route.is_paused]
        keys = {(route.sandbox_id, route.is_frozen) for route in watched}
        self._not_before = {key: at for key, at in self._not_before.items() if key in keys}
        for route in watched:
            key = route.sandbox_id, route.is_frozen
            is_due = self._not_before.get(key, 0.0) <= now
            if is_due and self._table.quiet_s(route.sandbox_id) >= route.idle_after_s:
                self._not_before[key] = time.monotonic() + await self._say(route)

    async def _say(self, route: Route) -> float:
        """Say it; how long not to say it again."""
        # SAFETY: of a sandbox that stands still this promises that whatever comes from here on asks the node
        # first: the table says so by now, and nothing is open. Nothing is awaited between the two.
        word = IdleSandbox(route.sandbox_id, route.is_frozen)
        try:
            answer = await link.call(self._socket, "idle", word, LookAgain, timeout_s=ASK_TIMEOUT_S)
        except (ClocheError, TimeoutError, msgspec.DecodeError) as error:
            log.debug("edge.idle_not_told", sandbox_id=route.sandbox_id, error=str(error))
            return _AFTER_FAILURE_S
        return answer.after_s
