"""Waiting for a descriptor on the event loop, in one place."""

from __future__ import annotations

import asyncio
from collections.abc import Callable


async def until_readable(descriptor: int) -> None:
    """Return when a read of `descriptor` would not block: data or an end; for a pidfd, the process's exit.

    See: pidfd_open(2).
    Requires: nobody else waits for the same descriptor; it stays open meanwhile.
    """
    loop = asyncio.get_running_loop()
    await _until_called(descriptor, loop.add_reader, loop.remove_reader)


async def until_writable(descriptor: int) -> None:
    """Return when a write to `descriptor` would not block, or would fail: its other end is closed.

    Requires: nobody else waits for the same descriptor; it stays open meanwhile.
    """
    loop = asyncio.get_running_loop()
    await _until_called(descriptor, loop.add_writer, loop.remove_writer)


async def _until_called(descriptor: int, add: Callable[..., None], remove: Callable[[int], bool]) -> None:
    ready: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    add(descriptor, _resolve, ready)
    try:
        await ready
    finally:
        remove(descriptor)


def _resolve(future: asyncio.Future[None]) -> None:
    if not future.done():  # it may have been cancelled in the same turn of the loop
        future.set_result(None)
