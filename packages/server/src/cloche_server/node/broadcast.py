"""One event to every link that listens."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

from cloche_server.link import Event

_MAX_WAITING = 10_000


class Broadcast:
    """Fan-out of events; a listener that falls too far behind is cut off, and subscribes anew."""

    def __init__(self) -> None:
        """Start with nobody listening."""
        self._queues: set[asyncio.Queue[Event | None]] = set()

    def publish(self, event: Event) -> None:
        """Queue the event for everybody who listens now. Never blocks."""
        for queue in tuple(self._queues):
            if queue.qsize() >= _MAX_WAITING:
                self._queues.discard(queue)
                queue.put_nowait(None)
            else:
                queue.put_nowait(event)

    def listen(self) -> AsyncIterator[Event]:
        """Events from this call on.

        Registered at once, so nothing between the call and the first `anext` is lost.
        """
        queue: asyncio.Queue[Event | None] = asyncio.Queue()
        self._queues.add(queue)
        return self._drain(queue)

    async def _drain(self, queue: asyncio.Queue[Event | None]) -> AsyncIterator[Event]:
        try:
            while (event := await queue.get()) is not None:
                yield event
        finally:
            self._queues.discard(queue)
