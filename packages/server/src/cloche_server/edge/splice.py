"""Bytes both ways after an upgrade: the edge no longer knows what they mean."""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from cloche_server.edge.streams import Stream


async def splice(one: Stream, other: Stream) -> None:
    """Pass bytes both ways until both sides have ended theirs, or either connection breaks."""
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(_pump(one, other))
        tasks.create_task(_pump(other, one))


async def _pump(source: Stream, sink: Stream) -> None:
    """Pass bytes one way. A broken sink ends the source too, an ended source only our side of the sink."""
    with contextlib.suppress(ConnectionResetError):
        while data := await source.read():
            sink.write(data)
            await sink.drain()
        if source.is_lost:
            sink.close()
        else:
            sink.write_eof()
        return
    source.abort()
