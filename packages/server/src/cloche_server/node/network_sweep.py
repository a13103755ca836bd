"""Take away the networks that outlived their sandboxes, off the path of requests and many at once.

Most have gone by then: a pair goes with its namespace, and that with the sandbox's last process. What stays
is held by a connection that the edge dialled.
"""

from __future__ import annotations

import asyncio

import structlog

from cloche_server.node import threads
from cloche_server.node.machine import Machine
from cloche_wire.errors import Unavailable

PATIENCE_S = 1.0
"""What is removed within this time is swept together; the kernel needs some 0.05 s to let a network go."""

log = structlog.get_logger()


async def run(machine: Machine) -> None:
    """Sweep a moment after networks were removed, until cancelled."""
    while True:
        await machine.network_removed.wait()
        await asyncio.sleep(PATIENCE_S)
        machine.network_removed.clear()
        try:
            await threads.in_thread(machine.network.sweep)
        except Unavailable as error:
            log.warning("network.not_swept", error=str(error))
            machine.network_removed.set()
