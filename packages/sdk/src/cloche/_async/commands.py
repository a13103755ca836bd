"""Commands of a sandbox: run, follow, feed, end."""

from __future__ import annotations

import builtins
import codecs
from collections.abc import AsyncIterator, Mapping
from typing import Literal, NamedTuple, overload

from cloche._async.client import MessageStream, Session
from cloche._callbacks import AsyncCallback, deliver_async
from cloche.errors import CommandExit, DeadlineExceeded, Internal, NotFound
from cloche.models import CommandResult, ProcessInfo
from cloche_wire.messages import process
from cloche_wire.messages.process import (
    CloseStdinResponse,
    ConnectResponse,
    EndEvent,
    ProcessConfig,
    ProcessEvent,
    ProcessInput,
    ProcessSelector,
    SendInputResponse,
    SendSignalResponse,
    Signal,
    StartResponse,
)

SHELL = "/bin/bash"


class Output(NamedTuple):
    """A piece of what a command printed; exactly one of the three is not None."""

    stdout: str | None = None
    stderr: str | None = None
    pty: bytes | None = None


class CommandHandle:
    """A running command. Its output is read while you wait for it or iterate over it, not in between."""

    def __init__(
        self,
        commands: Commands,
        pid: int,
        events: MessageStream[StartResponse] | MessageStream[ConnectResponse],
        on_stdout: AsyncCallback[str] | None = None,
        on_stderr: AsyncCallback[str] | None = None,
    ) -> None:
        """Follow the process `pid` by its events, from after the start event."""
        self._commands = commands
        self._pid = pid
        self._events = events
        self._on_stdout = on_stdout
        self._on_stderr = on_stderr
        self._stdout: builtins.list[str] = []
        self._stderr: builtins.list[str] = []
        self._decoders = {
            name: codecs.getincrementaldecoder("utf-8")(errors="replace") for name in ("stdout", "stderr")
        }
        self._end: EndEvent | None = None
        self._is_killed = False
        begin = events.header(process.REPLAY_FROM_HEADER)
        self._offset = int(begin) if begin and begin.isdecimal() else 0

    @property
    def pid(self) -> int:
        """Process id inside the sandbox."""
        return self._pid

    @property
    def stdout(self) -> str:
        """What was read of stdout so far."""
        return "".join(self._stdout)

    @property
    def stderr(self) -> str:
        """What was read of stderr so far."""
        return "".join(self._stderr)

    @property
    def offset(self) -> int:
        """Bytes of output, of all kinds, that came before what will be read next: where to take it up again.

        Right after `connect` with `replay`, more than was asked for where older output is not kept any more.
        """
        return self._offset

    @property
    def exit_code(self) -> int | None:
        """The exit code, once the end was read; -1 after a signal."""
        return None if self._end is None else self._end.exit_code

    @property
    def error(self) -> str | None:
        """What the sandbox says about a bad end, once the end was read."""
        return None if self._end is None else self._end.error

    async def __aiter__(self) -> AsyncIterator[Output]:
        """Read the output as it comes, until the command ends."""
        if self._end is not None:
            return
        async for message in self._events:
            event = message.event or ProcessEvent()
            if event.data is not None:
                output = self._decode(event.data)
                if output is not None:
                    yield output
            elif event.end is not None:
                self._end = event.end
                break
        await self._events.aclose()
        for name, decoder in self._decoders.items():
            rest = decoder.decode(b"", final=True)
            if rest:
                yield self._keep(name, rest)

    async def wait(
        self,
        on_pty: AsyncCallback[bytes] | None = None,
        on_stdout: AsyncCallback[str] | None = None,
        on_stderr: AsyncCallback[str] | None = None,
    ) -> CommandResult:
        """Wait for the end of the command.

        Args:
            on_pty: Called with each piece of a terminal's output.
            on_stdout: Called with each piece of stdout, else the one given at the start.
            on_stderr: Called with each piece of stderr, else the one given at the start.

        Raises:
            CommandExit: The exit code is not 0.
            DeadlineExceeded: The command's time was over; it was killed.
            SandboxNotRunning: The sandbox ended meanwhile.
        """
        try:
            async for output in self:
                if output.stdout is not None:
                    await deliver_async(on_stdout or self._on_stdout, output.stdout)
                elif output.stderr is not None:
                    await deliver_async(on_stderr or self._on_stderr, output.stderr)
                elif output.pty is not None:
                    await deliver_async(on_pty, output.pty)
        except DeadlineExceeded as error:
            raise _with_hint(error) from error
        if self._end is None:
            raise Internal("the command ended without an end event")
        if self._end.exit_code != 0:
            raise CommandExit(self._end.exit_code, self.stdout, self.stderr, self._end.error)
        return CommandResult(self.stdout, self.stderr, self._end.exit_code, self._end.error)

    async def kill(self) -> bool:
        """End the command with SIGKILL; False if it had ended already."""
        self._is_killed = True
        return await self._commands.kill(self._pid)

    async def is_alive(self) -> bool:
        """Whether the command still runs; after `kill` it does not, even if the sandbox has yet to notice."""
        if self._end is not None or self._is_killed:
            return False
        return any(found.pid == self._pid for found in await self._commands.list())

    async def send_stdin(self, data: str | bytes, request_timeout: float | None = None) -> None:
        """Write to the command's stdin; it must have been started with `stdin=True`."""
        await self._commands.send_stdin(self._pid, data, request_timeout)

    async def close_stdin(self, request_timeout: float | None = None) -> None:
        """Close the command's stdin."""
        await self._commands.close_stdin(self._pid, request_timeout)

    async def disconnect(self) -> None:
        """Stop following the command; it runs on, and `commands.connect` can follow it again."""
        await self._events.aclose()

    def _decode(self, data: process.DataEvent) -> Output | None:
        self._offset += len(data.pty or data.stdout or data.stderr or b"")
        if data.pty is not None:
            return Output(pty=data.pty)
        name = "stdout" if data.stdout is not None else "stderr"
        text = self._decoders[name].decode(data.stdout or data.stderr or b"")
        return self._keep(name, text) if text else None

    def _keep(self, name: str, text: str) -> Output:
        if name == "stdout":
            self._stdout.append(text)
            return Output(stdout=text)
        self._stderr.append(text)
        return Output(stderr=text)


class Commands:
    """Runs commands in a sandbox."""

    def __init__(self, session: Session) -> None:
        """Use this session."""
        self._session = session

    @overload
    async def run(
        self,
        cmd: str,
        background: Literal[False] | None = None,
        envs: Mapping[str, str] | None = None,
        user: str | None = None,
        cwd: str | None = None,
        on_stdout: AsyncCallback[str] | None = None,
        on_stderr: AsyncCallback[str] | None = None,
        stdin: bool | None = None,
        timeout: float | None = 60,
        request_timeout: float | None = None,
    ) -> CommandResult: ...
    @overload
    async def run(
        self,
        cmd: str,
        background: Literal[True],
        envs: Mapping[str, str] | None = None,
        user: str | None = None,
        cwd: str | None = None,
        on_stdout: AsyncCallback[str] | None = None,
        on_stderr: AsyncCallback[str] | None = None,
        stdin: bool | None = None,
        timeout: float | None = 60,
        request_timeout: float | None = None,
    ) -> CommandHandle: ...
    async def run(
        self,
        cmd: str,
        background: bool | None = None,
        envs: Mapping[str, str] | None = None,
        user: str | None = None,
        cwd: str | None = None,
        on_stdout: AsyncCallback[str] | None = None,
        on_stderr: AsyncCallback[str] | None = None,
        stdin: bool | None = None,
        timeout: float | None = 60,
        request_timeout: float | None = None,
    ) -> CommandResult | CommandHandle:
        """Run a command line in a login shell.

        Args:
            cmd: The command line, for bash.
            background: Return a handle at once instead of waiting for the end.
            envs: Variables for this command alone.
            user: User of the sandbox; None for its default.
            cwd: Folder to run in; None for the sandbox's default.
            on_stdout: Called with each piece of stdout; of a background command while it is waited for.
            on_stderr: The same for stderr.
            stdin: Whether the command gets a stdin to write to.
            timeout: Seconds until the command is killed; 0 or None for no limit.
            request_timeout: Seconds until the server has to take the request.

        Raises:
            CommandExit: The exit code is not 0 (not with `background`).
            DeadlineExceeded: The command's time was over; it was killed.
            InvalidArgument: No such folder.
            Unauthenticated: No such user.
        """
        config = ProcessConfig(SHELL, ["-l", "-c", cmd], dict(envs or {}), cwd)
        events = await self._session.stream(
            process.START,
            process.StartRequest(config, stdin=bool(stdin)),
            StartResponse,
            user=user,
            timeout_s=timeout,
            request_timeout=request_timeout,
        )
        handle = CommandHandle(self, await start_pid(events), events, on_stdout, on_stderr)
        return handle if background else await handle.wait()

    async def connect(
        self,
        pid: int,
        timeout: float | None = 60,
        request_timeout: float | None = None,
        replay: bool | int = False,
    ) -> CommandHandle:
        """Follow a running command, or one that ended less than half a minute ago.

        Args:
            pid: Its process id.
            timeout: Seconds for following it; 0 or None for no limit. The command runs on afterwards.
            request_timeout: Seconds until the server has to take the request.
            replay: What of its earlier output comes first: nothing; with True, all that is kept, the last
                256 KiB or less; with a number, what came from that `CommandHandle.offset` on.

        Raises:
            NotFound: There is no such process.
        """
        replay_from = 0 if replay is True else None if replay is False else replay
        events = await self._session.stream(
            process.CONNECT,
            process.ConnectRequest(ProcessSelector(pid=pid)),
            ConnectResponse,
            timeout_s=timeout,
            request_timeout=request_timeout,
            headers=None if replay_from is None else {process.REPLAY_FROM_HEADER: str(replay_from)},
        )
        return CommandHandle(self, await start_pid(events), events)

    async def list(self, request_timeout: float | None = None) -> list[ProcessInfo]:
        """Return the running commands and terminals."""
        answer = await self._session.call(
            process.LIST, process.ListRequest(), process.ListResponse, request_timeout=request_timeout
        )
        found: list[ProcessInfo] = []
        for item in answer.processes:
            config = item.config or ProcessConfig()
            found.append(ProcessInfo(item.pid, item.tag, config.cmd, config.args, config.envs, config.cwd))
        return found

    async def kill(self, pid: int, request_timeout: float | None = None) -> bool:
        """End a process with SIGKILL; False if there is no such process."""
        message = process.SendSignalRequest(ProcessSelector(pid=pid), Signal.SIGNAL_SIGKILL)
        try:
            await self._session.call(
                process.SEND_SIGNAL, message, SendSignalResponse, request_timeout=request_timeout
            )
        except NotFound:
            return False
        return True

    async def send_stdin(self, pid: int, data: str | bytes, request_timeout: float | None = None) -> None:
        """Write to the stdin of a process.

        Raises:
            NotFound: There is no such process.
        """
        given = data.encode() if isinstance(data, str) else data
        message = process.SendInputRequest(ProcessSelector(pid=pid), ProcessInput(stdin=given))
        await self._session.call(
            process.SEND_INPUT, message, SendInputResponse, request_timeout=request_timeout
        )

    async def close_stdin(self, pid: int, request_timeout: float | None = None) -> None:
        """Close the stdin of a process.

        Raises:
            NotFound: There is no such process.
        """
        message = process.CloseStdinRequest(ProcessSelector(pid=pid))
        await self._session.call(
            process.CLOSE_STDIN, message, CloseStdinResponse, request_timeout=request_timeout
        )


def _with_hint(error: DeadlineExceeded) -> DeadlineExceeded:
    if type(error) is not DeadlineExceeded or error.hint:
        return error
    return DeadlineExceeded(error.message, hint="pass a larger timeout to the command, or 0 for no limit")


async def start_pid(events: MessageStream[StartResponse] | MessageStream[ConnectResponse]) -> int:
    """Read the first event of a process and return its pid.

    Raises:
        Internal: The first event is not the start.
        ClocheError: The process could not be started.
    """
    async for message in events:
        if message.event is not None and message.event.start is not None:
            return message.event.start.pid
        if message.event is None or message.event.keepalive is None:
            break
    await events.aclose()
    raise Internal("the first event of a process is not its start")
