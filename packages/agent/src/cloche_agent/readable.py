"""Waiting for a descriptor that no stream or protocol object stands for."""

from __future__ import annotations

import asyncio


async def until_readable(descriptor: int) -> None:
    """Return when reading from it would not block. Nobody else may wait for the same one."""
    loop = asyncio.get_running_loop()
    arrived = asyncio.Event()
    loop.add_reader(descriptor, arrived.set)
    try:
        await arrived.wait()
    finally:
        loop.remove_reader(descriptor)
