"""`POST /quiesce`: end everything but this agent, as a reboot would, so that only files are left to keep."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from typing import TYPE_CHECKING

from cloche_agent.http import Response
from cloche_wire.errors import DeadlineExceeded

if TYPE_CHECKING:
    from cloche_agent.init import Sandbox
    from cloche_agent.process.spawn import Reaper

_DEADLINE_S = 10.0
_LOOK_AGAIN_S = 0.05
"""After that, if nothing was collected: what joined the sandbox from outside is another one's child."""


async def handle_quiesce(sandbox: Sandbox, reaper: Reaper) -> Response:
    """End every process, kernel and context; the next request finds the sandbox as after its start.

    Raises:
        DeadlineExceeded: Something cannot be ended, or starts again and again. The rest has ended.
    """
    for forget in sandbox.on_quiesce:
        forget()
    try:
        async with asyncio.timeout(_DEADLINE_S):
            while _kill_all(reaper):
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(_LOOK_AGAIN_S):
                        await reaper.next_death()
    except TimeoutError as error:
        raise DeadlineExceeded(f"processes are left after {_DEADLINE_S:.0f} s") from error
    sandbox.activity.note("info", "sandbox", "processes ended: only files are kept")
    return Response(204)


def _kill_all(reaper: Reaper) -> bool:
    """Kill everything; whether there was anything."""
    if os.getpid() != 1:
        # An ordinary process, in tests: of this machine only what it has started itself is its own.
        for pid in reaper.running():
            with contextlib.suppress(ProcessLookupError):
                # SAFETY: not collected yet, so the pid, which is its group's too, is nobody else's.
                os.killpg(pid, signal.SIGKILL)
        return bool(reaper.running())
    try:
        # SAFETY: as PID 1 this reaches all of this pid namespace but ourselves, and nothing outside of it.
        # Who is dead and not collected counts.
        os.kill(-1, signal.SIGKILL)
    except ProcessLookupError:
        return False
    return True
