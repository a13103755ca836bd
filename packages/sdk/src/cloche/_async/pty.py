"""Terminals of a sandbox."""

from __future__ import annotations

from collections.abc import Mapping

from cloche._async.client import Session
from cloche._async.commands import SHELL, CommandHandle, Commands, start_pid
from cloche.models import PtySize
from cloche_wire.messages import process
from cloche_wire.messages.process import ProcessConfig, ProcessInput, ProcessSelector

_ENVIRONMENT = {"TERM": "xterm-256color", "LANG": "C.UTF-8", "LC_ALL": "C.UTF-8"}


class Pty:
    """Opens shells in a terminal of a sandbox."""

    def __init__(self, session: Session, commands: Commands) -> None:
        """Use this session; handles act through these commands."""
        self._session = session
        self._commands = commands

    async def create(
        self,
        size: PtySize,
        user: str | None = None,
        cwd: str | None = None,
        envs: Mapping[str, str] | None = None,
        timeout: float | None = 60,
        request_timeout: float | None = None,
    ) -> CommandHandle:
        """Start an interactive login shell; its output comes as `pty` bytes.

        Args:
            size: Size of the terminal.
            user: User of the sandbox; None for its default.
            cwd: Folder to start in; None for the sandbox's default.
            envs: Variables for the shell.
            timeout: Seconds until the shell is killed; 0 or None for no limit.
            request_timeout: Seconds until the server has to take the request.
        """
        config = ProcessConfig(SHELL, ["-i", "-l"], {**_ENVIRONMENT, **(envs or {})}, cwd)
        events = await self._session.stream(
            process.START,
            process.StartRequest(config, pty=_terminal(size)),
            process.StartResponse,
            user=user,
            timeout_s=timeout,
            request_timeout=request_timeout,
        )
        return CommandHandle(self._commands, await start_pid(events), events)

    async def connect(
        self,
        pid: int,
        timeout: float | None = 60,
        request_timeout: float | None = None,
        replay: bool | int = False,
    ) -> CommandHandle:
        """Follow a running terminal; the arguments are those of `commands.connect`.

        Raises:
            NotFound: There is no such process.
        """
        return await self._commands.connect(pid, timeout, request_timeout, replay)

    async def send_stdin(self, pid: int, data: bytes, request_timeout: float | None = None) -> None:
        """Type into a terminal.

        Raises:
            NotFound: There is no such process.
        """
        message = process.SendInputRequest(ProcessSelector(pid=pid), ProcessInput(pty=data))
        await self._session.call(
            process.SEND_INPUT, message, process.SendInputResponse, request_timeout=request_timeout
        )

    async def resize(self, pid: int, size: PtySize, request_timeout: float | None = None) -> None:
        """Change the size of a terminal.

        Raises:
            NotFound: There is no such process.
        """
        message = process.UpdateRequest(ProcessSelector(pid=pid), _terminal(size))
        await self._session.call(
            process.UPDATE, message, process.UpdateResponse, request_timeout=request_timeout
        )

    async def kill(self, pid: int, request_timeout: float | None = None) -> bool:
        """End a terminal with SIGKILL; False if there is no such process."""
        return await self._commands.kill(pid, request_timeout)


def _terminal(size: PtySize) -> process.Pty:
    return process.Pty(process.PtySize(cols=size.cols, rows=size.rows))
