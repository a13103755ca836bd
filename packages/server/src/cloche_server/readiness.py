"""Waiting for a descriptor on the event loop, in one place."""

from __future__ import annotations

import asyncio


async def until_readable(descriptor: int) -> None:
    """Return when a read of `descriptor` would not block: data or an end; for a pidfd, the process's exit.

    See: pidfd_open(2).
    Requires: nobody else waits for the same descriptor; it stays open meanwhile.
    """
    loop = asyncio.get_running_loop()
    ready: asyncio.Future[None] = loop.create_future()
    loop.add_reader(descriptor, _resolve, ready)
    try:
        await ready
    finally:
        loop.remove_reader(descriptor)


async def until_writable(descriptor: int) -> None:
    """Return when a write to `descriptor` would not block, or would fail: its other end is closed.

    Requires: nobody else waits for the same descriptor; it stays open meanwhile.
    """
    loop = asyncio.get_running_loop()
    ready: asyncio.Future[None] = loop.create_future()
    loop.add_writer(descriptor, _resolve, ready)
    try:
        await ready
    finally:
        loop.remove_writer(descriptor)


def _resolve(future: asyncio.Future[None]) -> None:
    if not future.done():  # it may have been cancelled in the same turn of the loop
        future.set_result(None)
