"""process.Process: the methods, over `RunningProcess`."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
from typing import TYPE_CHECKING

from cloche_agent import users
from cloche_agent.activity import program_of
from cloche_agent.credentials import acting_as
from cloche_agent.filesystem.paths import resolve
from cloche_agent.process import shells
from cloche_agent.process.history import share
from cloche_agent.process.running import RunningProcess, event_frame
from cloche_agent.process.spawn import SpawnRequest, spawn
from cloche_agent.process.terminal import open_terminal
from cloche_wire.errors import DeadlineExceeded, InvalidArgument, NotFound, ResourceExhausted
from cloche_wire.messages import process as wire

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from cloche_agent.init import Sandbox
    from cloche_agent.process.output import Subscriber
    from cloche_agent.process.spawn import Reaper
    from cloche_agent.rpc import Call, Frames, Router
    from cloche_agent.users import User

log = logging.getLogger(__name__)

_DEFAULT_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_REMEMBER_ENDED_S = 30.0
_LONGEST_OFFSET = 18


class ProcessService:
    """Every process that was started over the wire, and the methods on them."""

    def __init__(self, sandbox: Sandbox, reaper: Reaper, tasks: asyncio.TaskGroup) -> None:
        """Start empty.

        Args:
            sandbox: Whose default user, folder and variables processes get.
            reaper: Tells how they ended.
            tasks: Owner of one task per process, which outlives the call that started it.
        """
        self._sandbox = sandbox
        self._reaper = reaper
        self._tasks = tasks
        self._running: dict[int, RunningProcess] = {}
        self._ended: dict[int, RunningProcess] = {}

    def register(self, router: Router) -> None:
        """Serve all methods of the service on `router`."""
        router.unary(wire.LIST, wire.ListRequest, self.list)
        router.server_stream(wire.START, wire.StartRequest, self.start)
        router.server_stream(wire.CONNECT, wire.ConnectRequest, self.connect)
        router.unary(wire.UPDATE, wire.UpdateRequest, self.update)
        router.client_stream(wire.STREAM_INPUT, wire.StreamInputRequest, self.stream_input)
        router.unary(wire.SEND_INPUT, wire.SendInputRequest, self.send_input)
        router.unary(wire.SEND_SIGNAL, wire.SendSignalRequest, self.send_signal)
        router.unary(wire.CLOSE_STDIN, wire.CloseStdinRequest, self.close_stdin)

    def run(self, config: wire.ProcessConfig) -> RunningProcess:
        """Start a process of the default user without input; nobody listens to it yet.

        Raises:
            Unauthenticated: There is no such user.
            ResourceExhausted: It cannot be started.
        """
        user = users.lookup(self._sandbox.default_user)
        return self._launch(wire.StartRequest(process=config, stdin=False), user)

    async def list(self, _request: wire.ListRequest, _call: Call) -> wire.ListResponse:
        """The processes that run."""
        found = [wire.ProcessInfo(one.config, one.pid, one.tag) for one in self._running.values()]
        return wire.ListResponse(found)

    async def start(self, request: wire.StartRequest, call: Call) -> Frames:
        """Start a process and stream its events; at the call's deadline it is killed.

        A caller that goes away leaves the process running, and the deadline standing.
        """
        process = self._launch(request, users.lookup(call.user or self._sandbox.default_user))
        subscriber = process.output.subscribe()
        if call.deadline is not None:
            process.kill_at(call.deadline)
        async with contextlib.aclosing(_follow(process, subscriber, call)) as frames:
            async for frame in frames:
                yield frame

    def connect(self, request: wire.ConnectRequest, call: Call) -> Frames:
        """Stream the events of a process; one that ended a moment ago still tells its end.

        From now on, or, where the header `Cloche-Replay-From` names an offset in bytes, from what was printed
        there. The header of the answer says which offset comes first: a later one than was asked for where
        older output is not kept any more.
        """
        process = self._find(request.process, also_ended=True)
        history = process.output.history
        asked = _replay_from(call.headers.get(wire.REPLAY_FROM_HEADER))
        begin = history.end if asked is None else history.nearest(asked)
        call.answer_headers.append((wire.REPLAY_FROM_HEADER, str(begin)))
        return self._reattach(process, begin, call)

    async def _reattach(self, process: RunningProcess, begin: int, call: Call) -> Frames:
        if process.end is not None:
            yield event_frame(wire.ProcessEvent(start=wire.StartEvent(process.pid)))
            for frame in process.output.history.frames(begin):
                yield frame
            yield event_frame(wire.ProcessEvent(end=process.end))
            return
        subscriber = process.output.subscribe(begin)
        async with contextlib.aclosing(_follow(process, subscriber, call)) as frames:
            async for frame in frames:
                yield frame

    async def update(self, request: wire.UpdateRequest, _call: Call) -> wire.UpdateResponse:
        """Resize the terminal of a process."""
        process = self._find(request.process)
        if request.pty is not None and request.pty.size is not None:
            process.resize(request.pty.size.cols, request.pty.size.rows)
        return wire.UpdateResponse()

    async def stream_input(
        self, requests: AsyncIterator[wire.StreamInputRequest], _call: Call
    ) -> wire.StreamInputResponse:
        """Feed a process; the first message names it."""
        process: RunningProcess | None = None
        async for request in requests:
            if request.start is not None:
                process = self._find(request.start.process)
            elif request.data is not None:
                if process is None:
                    raise InvalidArgument("input before start")
                await _feed(process, request.data.input)
        return wire.StreamInputResponse()

    async def send_input(self, request: wire.SendInputRequest, _call: Call) -> wire.SendInputResponse:
        """Feed a process once."""
        await _feed(self._find(request.process), request.input)
        return wire.SendInputResponse()

    async def send_signal(self, request: wire.SendSignalRequest, _call: Call) -> wire.SendSignalResponse:
        """Send a signal to a process."""
        await self._find(request.process).send_signal(request.signal)
        return wire.SendSignalResponse()

    async def close_stdin(self, request: wire.CloseStdinRequest, _call: Call) -> wire.CloseStdinResponse:
        """Close the stdin of a process."""
        self._find(request.process).close_stdin()
        return wire.CloseStdinResponse()

    # ---

    def _find(self, selector: wire.ProcessSelector | None, *, also_ended: bool = False) -> RunningProcess:
        known = [*(self._ended.values() if also_ended else ()), *self._running.values()]
        if selector is not None and selector.pid is not None:
            matching = [one for one in known if one.pid == selector.pid]
            missing = f"process with pid {selector.pid} not found"
        elif selector is not None and selector.tag is not None:
            matching = [one for one in known if one.tag == selector.tag]
            missing = f"process with tag {selector.tag} not found"
        else:
            raise InvalidArgument("no process selected")
        if not matching:
            raise NotFound(missing)
        return matching[-1]

    async def _follow_to_end(self, process: RunningProcess) -> None:
        try:
            await process.follow_to_end()
        except Exception:
            # In a task of the agent's own group: let out, it would take the whole sandbox with it.
            log.exception("lost track of process %d", process.pid)
        self._note_end(process)
        if self._running.get(process.pid) is process:  # else its pid is another one's by now
            del self._running[process.pid]
        self._ended[process.pid] = process
        asyncio.get_running_loop().call_later(_REMEMBER_ENDED_S, self._forget, process)

    def _forget(self, process: RunningProcess) -> None:
        if self._ended.get(process.pid) is process:
            del self._ended[process.pid]
        self._share_histories()

    def _share_histories(self) -> None:
        share(one.output.history for one in (*self._running.values(), *self._ended.values()))

    def _launch(self, request: wire.StartRequest, user: User) -> RunningProcess:
        config = request.process
        if config is None or not config.cmd:
            raise InvalidArgument("cmd is missing")
        environment = {
            "PATH": os.environ.get("PATH", _DEFAULT_PATH),
            "HOME": user.home,
            "USER": user.name,
            "LOGNAME": user.name,
            **self._sandbox.env,
            **config.envs,
        }
        argv = shells.settled([config.cmd, *config.args])
        plan = SpawnRequest(argv, environment, self._cwd(config.cwd, user), user.uid, user.gid, user.groups)
        try:
            if request.pty is not None:
                size = request.pty.size or wire.PtySize()
                process = self._launch_on_terminal(plan, config, request.tag, size)
            else:
                process = self._launch_on_pipes(
                    plan, config, request.tag, with_stdin=request.stdin is not False
                )
        except OSError as error:
            raise ResourceExhausted(f"cannot start a process: {(error.strerror or '').lower()}") from error
        self._running[process.pid] = process
        # The task's first step comes after our caller's: who subscribes at once misses nothing.
        self._tasks.create_task(self._follow_to_end(process))
        self._note_start(process, user)
        self._share_histories()
        return process

    def _note_start(self, process: RunningProcess, user: User) -> None:
        self._sandbox.activity.note(
            "info",
            "process",
            "process started",
            pid=process.pid,
            program=program_of(process.config.cmd, process.config.args),
            user=user.name,
        )

    def _note_end(self, process: RunningProcess) -> None:
        end = process.end
        if end is None:
            return
        fields = {"pid": process.pid, "program": program_of(process.config.cmd, process.config.args)}
        if end.exited:
            self._sandbox.activity.note(
                "info", "process", "process ended", **fields, exit_code=end.exit_code or 0
            )
        else:
            self._sandbox.activity.note(
                "warn", "process", "process ended by a signal", **fields, status=end.status
            )

    def _cwd(self, path: str | None, user: User) -> str:
        if path:
            return resolve(path, user, None)
        # Defaults may name a folder that is gone or closed to this user; a process must start all the same.
        with acting_as(user):
            for folder in (self._sandbox.default_workdir, user.home):
                if folder and os.path.isdir(folder + "/."):  # noqa: PTH112 - the dot asks for the right to enter
                    return folder
        return "/"

    def _launch_on_terminal(
        self, plan: SpawnRequest, config: wire.ProcessConfig, tag: str | None, size: wire.PtySize
    ) -> RunningProcess:
        ours, theirs = open_terminal(size.cols, size.rows, plan.uid, plan.gid)
        try:
            pid = spawn(plan.on(theirs, theirs, theirs, controlling_tty=True))
        except BaseException:
            os.close(ours)
            raise
        finally:
            os.close(theirs)
        return RunningProcess(pid, config, tag, reaper=self._reaper, terminal=ours)

    def _launch_on_pipes(
        self, plan: SpawnRequest, config: wire.ProcessConfig, tag: str | None, *, with_stdin: bool
    ) -> RunningProcess:
        with contextlib.ExitStack() as ours, contextlib.ExitStack() as theirs:

            def keep(mine: int, other: int) -> tuple[int, int]:
                ours.callback(os.close, mine)
                theirs.callback(os.close, other)
                os.set_blocking(mine, False)
                return mine, other

            stdin, child_stdin = keep(*reversed(os.pipe2(os.O_CLOEXEC))) if with_stdin else (None, None)
            stdout, child_stdout = keep(*os.pipe2(os.O_CLOEXEC))
            stderr, child_stderr = keep(*os.pipe2(os.O_CLOEXEC))
            pid = spawn(plan.on(child_stdin, child_stdout, child_stderr))
            ours.pop_all()
        process = RunningProcess(pid, config, tag, reaper=self._reaper, stdin=stdin)
        process.read_from(stdout, stderr)
        return process


def _replay_from(header: str | None) -> int | None:
    if header is None:
        return None
    if not (header.isascii() and header.isdecimal() and len(header) <= _LONGEST_OFFSET):
        raise InvalidArgument(f"not an offset in bytes: {header[:32]!r}")
    return int(header)


async def _feed(process: RunningProcess, piece: wire.ProcessInput | None) -> None:
    if piece is None:
        raise InvalidArgument("input is missing")
    if piece.stdin is not None:
        await process.write_stdin(piece.stdin)
    elif piece.pty is not None:
        await process.write_terminal(piece.pty)


async def _follow(process: RunningProcess, subscriber: Subscriber, call: Call) -> Frames:
    """Start event, output as it comes, a sign of life in silence, end event."""
    now = asyncio.get_running_loop().time
    try:
        yield event_frame(wire.ProcessEvent(start=wire.StartEvent(process.pid)))
        while True:
            until = now() + call.keepalive_s
            try:
                frames = await subscriber.take(until if call.deadline is None else min(until, call.deadline))
            except TimeoutError:
                frames = event_frame(wire.ProcessEvent(keepalive=wire.KeepAlive()))
            if call.deadline is not None and now() >= call.deadline:
                raise DeadlineExceeded("deadline exceeded")
            if not frames:
                return
            yield frames
    finally:
        subscriber.close()
