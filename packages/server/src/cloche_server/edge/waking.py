"""Sandboxes that wake on traffic, paused ones and frozen ones: the first request asks, all wait for that."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import TYPE_CHECKING

import msgspec
import structlog

from cloche_server.edge.refusal import Refusal, sandbox_not_found
from cloche_server.edge.upstream import ask_node
from cloche_server.node.messages import Route, Wake
from cloche_wire.errors import ClocheError, SandboxNotFound

if TYPE_CHECKING:
    from pathlib import Path

    from cloche_server.edge.route_table import RouteTable

WAKE_TIMEOUT_S = 60.0
"""For a node to read a sandbox's memory and files back from a slow disk."""
_SOON = ((b"Retry-After", b"1"),)

log = structlog.get_logger()


class Waker:
    """Has sandboxes resumed, each by one call to the node however many requests wait for it."""

    def __init__(self, socket: Path, table: RouteTable) -> None:
        """Nothing is being woken yet.

        Args:
            socket: The node's edge socket.
            table: Tells what is paused, and is told what no longer is.
        """
        self._socket = socket
        self._table = table
        self._attempts: dict[str, asyncio.Future[Route | Refusal | None]] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    async def wake(self, sandbox_id: str) -> Route:
        """Return the route of a sandbox that runs now.

        Raises:
            Refusal: 502, it is gone; what the node says where it cannot be resumed; 504, it took too long.
        """
        while True:
            route = self._table.get(sandbox_id)
            if route is None:
                raise sandbox_not_found(sandbox_id)
            if not route.sleeps:
                return route
            attempt = self._attempts.get(sandbox_id)
            if attempt is None:
                return await self._lead(sandbox_id)
            outcome = await asyncio.shield(attempt)
            if isinstance(outcome, Refusal):
                raise replace(outcome)

    def wake_soon(self, sandbox_id: str) -> None:
        """Have a sandbox woken that something open needs; costs nothing where it does not sleep."""
        route = self._table.get(sandbox_id)
        if route is None or not route.sleeps or sandbox_id in self._attempts:
            return
        task = asyncio.get_running_loop().create_task(self._wake_quietly(sandbox_id))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _wake_quietly(self, sandbox_id: str) -> None:
        try:
            await self.wake(sandbox_id)
        except Refusal as refusal:  # whoever sends the next piece asks again
            log.warning("edge.not_woken", sandbox_id=sandbox_id, error=refusal.message)

    async def _lead(self, sandbox_id: str) -> Route:
        """Ask the node for all who wait. If this request is cut off, the next of them asks again."""
        attempt = self._attempts[sandbox_id] = asyncio.get_running_loop().create_future()
        outcome: Route | Refusal | None = None
        try:
            outcome = await self._ask(sandbox_id)
            if self._table.get(sandbox_id) is None:
                raise sandbox_not_found(sandbox_id)  # killed meanwhile
            self._table.add(outcome)
            return outcome
        except Refusal as refusal:
            outcome = refusal
            raise
        finally:
            del self._attempts[sandbox_id]
            attempt.set_result(outcome)

    async def _ask(self, sandbox_id: str) -> Route:
        try:
            answer, _ = await ask_node(self._socket, "wake", Wake(sandbox_id), timeout_s=WAKE_TIMEOUT_S)
        except SandboxNotFound as error:
            raise sandbox_not_found(sandbox_id) from error
        except TimeoutError as error:
            raise Refusal(504, "The sandbox could not be resumed in time", sandbox_id) from error
        except ClocheError as error:
            route = self._table.get(sandbox_id)
            state = "frozen" if route is not None and route.is_frozen else "paused"
            message = f"The sandbox is {state} and cannot be resumed: {error.message}"
            fields = _SOON if error.retryable else ()
            raise Refusal(error.http_status, message, sandbox_id, fields=fields) from error
        return msgspec.json.decode(answer, type=Route)
