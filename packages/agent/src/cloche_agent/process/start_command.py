"""The template's own program, which runs in every sandbox from its beginning."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from cloche_agent.process import shells
from cloche_wire.errors import ClocheError, DeadlineExceeded, Unavailable
from cloche_wire.messages.process import ProcessConfig

if TYPE_CHECKING:
    from cloche_agent.init import Sandbox
    from cloche_agent.process.running import RunningProcess
    from cloche_agent.process.service import ProcessService

READY_TIMEOUT_S = 60.0
_READY_AGAIN_S = 0.5
"""Between two tries of the ready command: nobody but it knows when the program is so far."""


class StartCommand:
    """Started once, whoever asks first, by a login shell of the default user; listed as any process is.

    Life: not begun, then begun, then ready. A checkpoint keeps where it is; `/quiesce` leads back to the
        beginning, as a reboot does.
    """

    def __init__(self, sandbox: Sandbox, processes: ProcessService) -> None:
        """Nothing is started yet; what it will be is said by `/prepare` or `/init`."""
        self._sandbox = sandbox
        self._processes = processes
        self._process: RunningProcess | None = None
        self._is_ready = False
        sandbox.on_quiesce.append(self._forget)

    def begin(self) -> None:
        """Start it, unless the template has none or it was started; one that cannot be is noted only."""
        if not self._sandbox.start_cmd or self._process is not None:
            return
        try:
            self._process = self._processes.run(_by_shell(self._sandbox.start_cmd))
        except ClocheError as error:
            self._sandbox.activity.note("error", "sandbox", "start command failed", reason=error.message)

    async def until_ready(self) -> None:
        """Start it where it was not, and wait until its ready command succeeds.

        Raises:
            Unavailable: It cannot be started, or has failed before it was ready.
            DeadlineExceeded: It was not ready in time.
        """
        self.begin()
        if not self._sandbox.start_cmd or self._is_ready:
            return
        try:
            async with asyncio.timeout(READY_TIMEOUT_S):
                while not await self._succeeds():  # noqa: ASYNC110 - see _READY_AGAIN_S
                    await asyncio.sleep(_READY_AGAIN_S)
        except TimeoutError as error:
            raise DeadlineExceeded(f"the start command was not ready in {READY_TIMEOUT_S:g} s") from error
        self._is_ready = True

    async def _succeeds(self) -> bool:
        started = self._process
        if started is None:
            raise Unavailable("the start command cannot be started")
        is_so_far = True
        if self._sandbox.ready_cmd:
            tried = self._processes.run(_by_shell(self._sandbox.ready_cmd))
            try:
                await tried.ended.wait()
            finally:
                tried.kill()
            is_so_far = tried.has_succeeded
        if started.ended.is_set() and not started.has_succeeded:
            raise Unavailable("the start command has failed")
        return is_so_far

    def _forget(self) -> None:
        self._process = None
        self._is_ready = False


def _by_shell(command: str) -> ProcessConfig:
    # As the clients start theirs.
    return ProcessConfig(cmd=shells.shell(), args=["-l", "-c", command])
