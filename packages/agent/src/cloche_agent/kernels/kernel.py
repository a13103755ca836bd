"""One kernel process: start it, talk to it, interrupt it, see how it ends. See: docs/kernels.md."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, Self

from cloche_agent.kernels.channel import FrameChannel, KernelProtocolError, Message, OutputPipe, text_of
from cloche_agent.kernels.languages import DEFAULT_PATH, PYTHON
from cloche_agent.kernels.renewal import Renewal
from cloche_agent.kernels.zygote import wait
from cloche_agent.process.spawn import SpawnRequest, spawn
from cloche_agent.users import User, lookup
from cloche_wire.errors import ClocheError, Unauthenticated

if TYPE_CHECKING:
    from collections.abc import Coroutine, Mapping

    from cloche_agent.kernels.languages import Language
    from cloche_agent.kernels.zygote import Zygote
    from cloche_agent.process.spawn import Reaper

START_DEADLINE_S = 60.0
"""IPython starts in 0.3 s; this is for a cold disk and a machine that swaps."""
_END_DEADLINE_S = 2.0
_KERNEL_FD = 3
_RENEWAL_FD = 4


class KernelStartError(Exception):
    """A kernel cannot start; the text is for the user."""


@dataclass(frozen=True, slots=True)
class KernelPlan:
    """What a kernel is started with.

    Attributes:
        language: What it runs.
        kernels: Folder of the kernel programs, as seen from here.
        env: The sandbox's own variables.
        cwd: Working folder; `~` is the account's home.
        imports: Modules that it imports before it is ready; for Python only.
        zygote: What it may be forked from; for Python only.
        is_saved: Whether it may be written to disk and brought back.
    """

    language: Language
    kernels: str
    env: Mapping[str, str]
    cwd: str
    imports: tuple[str, ...] = ()
    zygote: Zygote | None = None
    is_saved: bool = False


class _Process(NamedTuple):
    """A kernel's process, whoever has made it."""

    pid: int
    channel: FrameChannel
    ended: Coroutine[None, None, int]
    """Gives its raw wait status."""
    renewal: Renewal | None = None


class Kernel:
    """A running kernel. Made by `start_kernel`."""

    def __init__(self, process: _Process, sandbox_env: Mapping[str, str]) -> None:
        """Take over a process that has just been started."""
        self.pid = process.pid
        self.channel = process.channel
        self._renewal = process.renewal
        self.sandbox_env = sandbox_env
        """The sandbox's variables as the kernel knows them."""
        self.ended = asyncio.Event()
        self.was_interrupted = False
        """Whether the run posted last has been interrupted: a signal may still be on its way in there."""
        self.end_reason = ""
        """How the process ended, in words; empty before, unless we have killed it."""
        self.is_stale = False
        """It is to renew what siblings of a checkpoint would share, before its next run."""

    @property
    def is_usable(self) -> bool:
        """Whether it can take code: it lives, and its end of the connection is open."""
        return not self.ended.is_set() and not self.channel.is_ended

    async def watch(self, end: Coroutine[None, None, int]) -> None:
        """Wait for the end of the process and note how it came; one caller only. Cancelled, it kills."""
        try:
            status = await end
            self.end_reason = self.end_reason or f"the kernel {describe_end(status)}"
            self.ended.set()
        finally:
            self.kill("the interpreter ends")
            self.channel.end()
            if self._renewal is not None:
                self._renewal.close()

    async def renew(self) -> None:
        """Have it renew what it would share with siblings: at once where it can, else before its next run."""
        self.is_stale = True
        if self._renewal is not None and self.is_usable and await self._renewal.ask():
            self.is_stale = False

    async def wait_for_end(self, otherwise: str) -> str:
        """The reason of an end that its closed connection has announced; kills it where none comes."""
        try:
            async with asyncio.timeout(_END_DEADLINE_S):
                await self.ended.wait()
        except TimeoutError:
            self.kill(otherwise)
        return self.end_reason

    def interrupt(self, *, everything: bool = False) -> None:
        """SIGINT to the kernel; with `everything` also to the programs its cells have started.

        Not to all at once: a server that an earlier cell left running must survive the interrupt of this one.
        Where the kernel waits in system(3), which ignores the signal, only the program can be interrupted.
        """
        everything = everything or self._ignores_interrupts()
        self.was_interrupted = True
        if not self.ended.is_set():
            with contextlib.suppress(ProcessLookupError, PermissionError):
                # SAFETY: the pid is the kernel's until the reaper has collected it, and `ended` is set in the
                # same turn of the event loop; the session that spawn made has the pid as its group.
                (os.killpg if everything else os.kill)(self.pid, signal.SIGINT)

    def _ignores_interrupts(self) -> bool:
        try:
            status = Path(f"/proc/{self.pid}/status").read_text(errors="replace")
        except OSError:
            return False
        ignored = status.partition("SigIgn:")[2].split(maxsplit=1)
        return bool(ignored) and int(ignored[0], 16) >> (signal.SIGINT - 1) & 1 == 1

    def kill(self, because: str) -> None:
        """End the process and what it started in its own group; `because` becomes the reason of its end."""
        if not self.ended.is_set():
            self.end_reason = self.end_reason or because
            with contextlib.suppress(ProcessLookupError, PermissionError):
                # SAFETY: as in `interrupt`.
                os.killpg(self.pid, signal.SIGKILL)


async def start_kernel(plan: KernelPlan, reaper: Reaper, watchers: asyncio.TaskGroup) -> Kernel:
    """Start a kernel and wait until it is ready.

    Leaves: a watcher of the process in `watchers`; on failure no process.

    Raises:
        KernelStartError: The template lacks what it takes, the folder is missing, or it takes too long.
    """
    process = await _fork(plan) or _launch(plan, reaper)
    kernel = Kernel(process, plan.env)
    watchers.create_task(kernel.watch(process.ended))
    is_ready = False
    try:
        async with asyncio.timeout(START_DEADLINE_S):
            settings: Message = {"cwd": plan.cwd, "env": environment(plan.env)}
            settings |= {"imports": list(plan.imports)} if plan.imports else {}
            settings |= {"renewal": _RENEWAL_FD} if process.renewal is not None else {}
            kernel.channel.post(settings)
            greeting = await kernel.channel.receive()
        is_ready = bool(greeting) and greeting[0].get("type") == "ready"
        if is_ready:
            return kernel
        if greeting:
            kind, message = text_of(greeting[0], "kind"), text_of(greeting[0], "message")
            raise KernelStartError(_explain(kind, message[:2000], plan))
        reason = await kernel.wait_for_end("the kernel closed its connection")
        raise KernelStartError(f"{reason} before it was ready: {kernel.channel.last_words()}")
    except TimeoutError as error:
        raise KernelStartError(f"the kernel was not ready within {START_DEADLINE_S:.0f} s") from error
    except KernelProtocolError as error:
        raise KernelStartError(f"the kernel broke the protocol: {error}") from error
    finally:
        if not is_ready:
            kernel.kill("it did not start")


class _Ends:
    """Both ends of a kernel's socket and of its output. What nobody has taken over is closed with it."""

    def __init__(self) -> None:
        self._open = contextlib.ExitStack()
        self._ours = contextlib.ExitStack()
        self.ours, self.theirs = socket.socketpair()
        self._out_read, self.out = self._pipe()
        self._err_read, self.err = self._pipe()
        self._open.enter_context(self.theirs)
        self._ours.enter_context(self.ours)

    def _pipe(self) -> tuple[int, int]:
        reading, writing = os.pipe2(os.O_CLOEXEC)
        self._ours.callback(os.close, reading)
        self._open.callback(os.close, writing)
        return reading, writing

    def take(self) -> FrameChannel:
        """Our ends, from now on the channel's."""
        self._ours.pop_all()
        pipes = OutputPipe("stdout", self._out_read), OutputPipe("stderr", self._err_read)
        return FrameChannel(self.ours, pipes)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._open.close()
        self._ours.close()


async def _fork(plan: KernelPlan) -> _Process | None:
    """Have the process forked where it can be: from one that has imported all that it needs."""
    if plan.zygote is None or not plan.zygote.serves(plan.env):
        return None
    with _Ends() as ends:
        fork = await plan.zygote.fork(ends.ours, ends.theirs, ends.out, ends.err)
        return None if fork is None else _Process(fork.pid, ends.take(), wait(fork))


def _launch(plan: KernelPlan, reaper: Reaper) -> _Process:
    """Start the process in this sandbox."""
    user = account()
    argv = plan.language.argv(plan.kernels, _KERNEL_FD)
    renewal = Renewal() if plan.is_saved and plan.language is PYTHON else None
    with _Ends() as ends, contextlib.ExitStack() as undo:
        further = {_KERNEL_FD: ends.theirs.fileno()}
        if renewal is not None:
            undo.callback(renewal.close)
            further[_RENEWAL_FD] = renewal.theirs.fileno()
        # SAFETY: the kernel gets its own ends of these, and no other descriptor: spawn closes all others.
        request = SpawnRequest(
            argv, environment(plan.env), "/", user.uid, user.gid, user.groups,
            stdout=ends.out, stderr=ends.err, pass_fds=further,
        )  # fmt: skip
        try:
            pid = spawn(request)
        except ClocheError as error:
            raise KernelStartError(f"{error.message}; {plan.language.needs}") from error
        undo.pop_all()
        if renewal is not None:
            renewal.theirs.close()
        return _Process(pid, ends.take(), reaper.wait(pid), renewal)


def _explain(kind: str, message: str, plan: KernelPlan) -> str:
    match kind:
        case "package":
            program = plan.language.command[0]
            return f"the template's {program} has no package {message}; {plan.language.needs}"
        case "program":
            return f"the template has no {message}; {plan.language.needs}"
        case "kernel":
            return message
        case "cwd":
            return f"Failed to set working directory: {message}"
        case _:
            return f"the kernel failed to start: {message}"


def account() -> User:
    """Who runs the kernels: root, as in E2B's cloud; this process's own user where it is not root."""
    if os.geteuid() != 0:
        home = os.environ.get("HOME", "/")
        return User(str(os.geteuid()), os.geteuid(), os.getegid(), home, "/bin/sh", ())
    try:
        return lookup("root")
    except Unauthenticated:
        return User("root", 0, 0, "/root", "/bin/sh", (0,))


def environment(sandbox_env: Mapping[str, str]) -> dict[str, str]:
    """The variables of a kernel: those of a login, then the sandbox's own."""
    user = account()
    return {
        "PATH": os.environ.get("PATH", DEFAULT_PATH),
        "HOME": user.home,
        "USER": user.name,
        "LOGNAME": user.name,
        "SHELL": user.shell,
        "LANG": "C.UTF-8",
        # Nobody can leave a pager here.
        "PAGER": "cat",
        "GIT_PAGER": "cat",
        **sandbox_env,
    }


def describe_end(status: int) -> str:
    """A raw wait status in words."""
    if os.WIFSIGNALED(status):
        number = os.WTERMSIG(status)
        try:
            name = signal.Signals(number).name
        except ValueError:
            name = f"signal {number}"
        return f"was killed by {name}" + (", perhaps for lack of memory" if number == signal.SIGKILL else "")
    return f"ended with exit code {os.waitstatus_to_exitcode(status)}"
