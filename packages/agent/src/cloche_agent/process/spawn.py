"""Starting programs and learning how they ended: the one place that forks, and the one that reaps.

Not the subprocess module: a child needs other ids, and some a controlling terminal. What a child inherits
anyway is set in the agent for the moment of `posix_spawn`, which copies no memory. A fork of the agent takes
2 to 5 ms more, for its page tables and for the pages that both sides write to afterwards, and under gVisor 40
to 60. A child with a terminal has a system call of its own to make, so it is forked; the agent has one
thread, which makes that safe.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import fcntl
import logging
import os
import resource
import signal
import termios
from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass, field, replace
from typing import NoReturn, TypeVar

from cloche_wire.errors import InvalidArgument, ResourceExhausted

log = logging.getLogger(__name__)
_T = TypeVar("_T")
_Action = tuple[int, int] | tuple[int, int, int]

_OOM_SCORE_ADJ = b"500"
"""Children die of memory shortage before the agent does."""

_OPEN_FILES = 1024
"""What programs may open at first, as everywhere: select(2) cannot use more. The agent raises its own."""

_unreaped: set[int] = set()
"""Pids that `spawn` returned and no `Reaper` has collected. Module state, as the processes of this process
are."""


@dataclass(frozen=True, slots=True)
class SpawnRequest:
    """One program to start.

    Attributes:
        argv: Program and its arguments; a program without a slash is looked for on PATH of `env`.
        cwd: Working folder, entered with the rights of `uid`.
        stdin: Descriptor of ours that becomes 0; None is /dev/null. `stdout` and `stderr` alike.
        pass_fds: Further descriptors: number in the child -> number here.
        controlling_tty: Descriptor 0 is a terminal that the new session gets as its own.
    """

    argv: list[str]
    env: Mapping[str, str]
    cwd: str
    uid: int
    gid: int
    groups: tuple[int, ...]
    stdin: int | None = None
    stdout: int | None = None
    stderr: int | None = None
    pass_fds: Mapping[int, int] = field(default_factory=dict[int, int])
    controlling_tty: bool = False

    def on(
        self, stdin: int | None, stdout: int, stderr: int | None, *, controlling_tty: bool = False
    ) -> SpawnRequest:
        """The same program on these descriptors."""
        return replace(self, stdin=stdin, stdout=stdout, stderr=stderr, controlling_tty=controlling_tty)


def spawn(request: SpawnRequest) -> int:
    """Start a program in a new session and return its pid once it runs.

    Leaves: the pid known to `Reaper.wait` until it is collected; the caller's descriptors open, they are the
        caller's.

    Raises:
        InvalidArgument: No such program or folder, or no right to it.
        ResourceExhausted: The limit of processes or of memory is reached.
    """
    if not request.argv or not request.argv[0]:
        raise InvalidArgument("cmd is empty")
    if any("\0" in text for text in (*request.argv, request.cwd, *request.env, *request.env.values())):
        raise InvalidArgument("null byte in the command, its folder or its environment")
    pid, report = _fork(request) if request.controlling_tty else _spawn(request)
    if report:
        if pid:
            os.waitpid(pid, 0)
        raise _failure(request, report)
    _unreaped.add(pid)
    _make_first_victim(pid)
    return pid


def _spawn(request: SpawnRequest) -> tuple[int, bytes]:
    """As `_fork`, without a copy of our memory; there is no pid where it failed."""
    stages = ["setup"]
    with contextlib.ExitStack() as stack:
        try:
            wanted = {0: request.stdin, 1: request.stdout, 2: request.stderr, **request.pass_fds}
            null = _kept(stack, os.open("/dev/null", os.O_RDWR | os.O_CLOEXEC))
            # Moved out of the way first: a target number may be another one's source.
            lifted = [_kept(stack, fcntl.fcntl(null if source is None else source, fcntl.F_DUPFD_CLOEXEC,
                                               max(wanted) + 1)) for source in wanted.values()]  # fmt: skip
            if max(lifted) >= _OPEN_FILES:  # posix_spawn takes none above the limit that the child gets
                return _fork(request)
            # SAFETY: every descriptor of the agent is close-on-exec already; this is the second lock on the
            # listeners and on the connections of clients, which a child must never hold.
            actions: list[_Action] = [(os.POSIX_SPAWN_CLOSE, number) for number in _inheritable()]
            actions += [(os.POSIX_SPAWN_DUP2, *pair) for pair in zip(lifted, wanted, strict=True)]
            with _as_the_child(request, stages):
                return _spawn_there(request, actions), b""
        except (OSError, ValueError) as error:  # ValueError: text that cannot be an argument or a variable
            number = error.errno if isinstance(error, OSError) else None
            return 0, f"{stages[-1]} {number or errno.EINVAL}".encode()


def _inheritable() -> list[int]:
    """Descriptors that an exec would leave open, without the first three."""
    found: list[int] = []
    for number in map(int, os.listdir("/proc/self/fd")):  # noqa: PTH208 - one call, a path each would be four
        # The folder's own is gone by now.
        with contextlib.suppress(OSError):
            if number > 2 and os.get_inheritable(number):
                found.append(number)
    return found


def _kept(stack: contextlib.ExitStack, descriptor: int) -> int:
    stack.callback(os.close, descriptor)
    return descriptor


@contextlib.contextmanager
def _as_the_child(request: SpawnRequest, stages: list[str]) -> Generator[None]:
    """Have what a child inherits for the block, in which nothing is awaited; names of its stages are added.

    Leaves: the process as it was, also on errors.
    """
    here, groups, is_root = os.open(".", os.O_PATH | os.O_CLOEXEC), os.getgroups(), os.geteuid() == 0
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    # SAFETY: no handler of ours runs with a child's rights.
    blocked = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
    umask = os.umask(0o022)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(_OPEN_FILES, hard), hard))
        stages.append("user")
        # SAFETY: the saved ids stay 0, so the way back is open and nobody may trace us; exec makes them the
        # effective ones, so the program has no way back. Its user may send us signals until then: all that
        # can be are blocked, those left do nothing to pid 1, or under gVisor end this sandbox, as root can.
        # Nor may it trace the child that has our memory until exec: that memory is not dumpable.
        _take_ids(request, saved=0)
        stages.append("cwd")
        os.chdir(request.cwd)
        stages.append("exec")
        yield
    finally:
        # SAFETY: a process that cannot return must not live on.
        try:
            if is_root:
                os.setresuid(0, 0, 0)
                os.setresgid(0, 0, 0)
                os.setgroups(groups)
            os.fchdir(here)
        except OSError:
            os.abort()
        os.close(here)
        os.umask(umask)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        signal.pthread_sigmask(signal.SIG_SETMASK, blocked)


def _spawn_there(request: SpawnRequest, actions: list[_Action]) -> int:
    def start(program: str) -> int:
        return os.posix_spawn(
            program, request.argv, request.env, file_actions=actions, setsid=True, setsigmask=(),
            # Ignored signals stay ignored over exec: Python ignores these two. (glibc leaves two more, 32 and
            # 33, which are its own and of which no program knows.)
            setsigdef=(signal.SIGPIPE, signal.SIGXFSZ),
        )  # fmt: skip

    return _first_found(request, start)


def _fork(request: SpawnRequest) -> tuple[int, bytes]:
    """Fork and exec; the pid, and what the child reported: empty when the program runs."""
    null = os.open("/dev/null", os.O_RDWR | os.O_CLOEXEC)
    report_read, report_write = os.pipe2(os.O_CLOEXEC)
    # SAFETY: signals are blocked over the fork, else one that arrives in the child before exec would run our
    # handlers there and write into the wake-up socket that it shares with us.
    blocked_before = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
    try:
        # SAFETY: one thread, so no lock can be held by someone who does not exist in the child.
        pid = os.fork()
        if pid == 0:
            _become(request, null, report_write)
    except OSError as error:
        os.close(report_read)
        raise ResourceExhausted(f"cannot start a process: {error.strerror}") from error
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, blocked_before)
        os.close(report_write)
        os.close(null)
    try:
        # Ends at the child's exec, which closes the other end, or at its death.
        return pid, os.read(report_read, 256)
    finally:
        os.close(report_read)


def _become(request: SpawnRequest, null: int, report: int) -> NoReturn:
    """In the child: become the program, or report what failed as `stage errno` and die."""
    stage = "setup"
    try:
        os.setsid()
        report = _arrange_descriptors(request, null, report)
        if request.controlling_tty:
            fcntl.ioctl(0, termios.TIOCSCTTY, 0)
        hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(_OPEN_FILES, hard), hard))
        os.umask(0o022)
        stage = "user"
        _take_ids(request)
        stage = "cwd"
        os.chdir(request.cwd)
        stage = "exec"
        _restore_signals()
        _exec(request)
    except (OSError, ValueError) as error:  # ValueError: text that cannot be an argument or a variable
        number = error.errno if isinstance(error, OSError) else None
        os.write(report, f"{stage} {number or errno.EINVAL}".encode())
    finally:
        os._exit(127)


def _arrange_descriptors(request: SpawnRequest, null: int, report: int) -> int:
    """Put every descriptor at its number, close all others; the new number of `report`."""
    wanted = {0: request.stdin, 1: request.stdout, 2: request.stderr, **request.pass_fds}
    above = max(wanted) + 1
    # Moved out of the way first: a target number may be another one's source.
    sources = {target: fcntl.fcntl(null if source is None else source, fcntl.F_DUPFD_CLOEXEC, above + 1)
               for target, source in wanted.items()}  # fmt: skip
    report = fcntl.fcntl(report, fcntl.F_DUPFD_CLOEXEC, above + 1)
    for target, source in sources.items():
        os.dup2(source, target, inheritable=True)
    os.dup2(report, above, inheritable=False)
    for number in range(3, above):
        if number not in wanted:
            os.closerange(number, number + 1)
    # SAFETY: every descriptor of the agent is close-on-exec already; this is the second lock on the listeners
    # and on the connections of clients, which a child must never hold.
    os.closerange(above + 1, _largest_descriptor() + 1)
    return above


def _largest_descriptor() -> int:
    limit = os.sysconf("SC_OPEN_MAX")
    return limit if 0 < limit < 1 << 30 else 1 << 30


def _make_first_victim(pid: int) -> None:
    """Have a child that has become its program die of memory shortage before us.

    Not before: a child that is still a copy of ours is as little to be looked into, and its files in /proc
    are no more ours than ours are.
    """
    # It may have ended, or it is not allowed here: the program runs as well without.
    with contextlib.suppress(OSError):
        descriptor = os.open(f"/proc/{pid}/oom_score_adj", os.O_WRONLY | os.O_CLOEXEC)
        try:
            os.write(descriptor, _OOM_SCORE_ADJ)
        finally:
            os.close(descriptor)


def _take_ids(request: SpawnRequest, *, saved: int | None = None) -> None:
    """Become its user; `saved`: what the saved ids are until exec, else the same."""
    if os.geteuid() != 0:
        if (request.uid, request.gid) != (os.geteuid(), os.getegid()):
            raise PermissionError(errno.EPERM, "agent is not root")
        return
    # SAFETY: groups first, user last: after the user is set there is no right left to change the others. All
    # three ids of each kind are set, so that nothing can be taken back.
    os.setgroups(request.groups)
    os.setresgid(request.gid, request.gid, request.gid if saved is None else saved)
    os.setresuid(request.uid, request.uid, request.uid if saved is None else saved)


def _restore_signals() -> None:
    signal.set_wakeup_fd(-1)
    # Ignored signals stay ignored over exec: Python ignores these two. Handlers of ours end by themselves.
    for number in (signal.SIGPIPE, signal.SIGXFSZ):
        signal.signal(number, signal.SIG_DFL)
    for number in (signal.SIGCHLD, signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())


def _exec(request: SpawnRequest) -> NoReturn:
    def become(program: str) -> NoReturn:
        os.execve(program, request.argv, request.env)  # noqa: S606 - the caller chose a program, not a shell

    raise AssertionError(_first_found(request, become))


def _first_found(request: SpawnRequest, start: Callable[[str], _T]) -> _T:
    """Call `start` with the program's path, or with those where PATH has it until one can be executed."""
    program = request.argv[0]
    if "/" in program:
        return start(program)
    failure = errno.ENOENT
    for folder in (request.env.get("PATH") or os.defpath).split(":"):
        try:
            return start(f"{folder or '.'}/{program}")
        except (FileNotFoundError, NotADirectoryError):
            continue
        except PermissionError as error:
            failure = error.errno or errno.EACCES
    raise OSError(failure, os.strerror(failure))


def _failure(request: SpawnRequest, report: bytes) -> InvalidArgument | ResourceExhausted:
    stage, _, number = report.decode().partition(" ")
    code = int(number)
    reason = os.strerror(code).lower()
    if code in (errno.EAGAIN, errno.ENOMEM):
        return ResourceExhausted(f"cannot start a process: {reason}")
    if stage == "cwd":
        missing = code in (errno.ENOENT, errno.ENOTDIR)
        return InvalidArgument(
            f"cwd '{request.cwd}' {'does not exist' if missing else f'cannot be entered: {reason}'}"
        )
    if stage == "exec":
        return InvalidArgument(f"cannot execute '{request.argv[0]}': {reason}")
    return InvalidArgument(f"cannot start '{request.argv[0]}': {stage}: {reason}")


class Reaper:
    """Owner of SIGCHLD: collects every dead child, and tells whoever waits how it ended."""

    def __init__(self, *, everything: bool | None = None) -> None:
        """Bind to nothing yet; `run` starts the duty.

        Args:
            everything: Collect orphans too, which is the duty of PID 1 and the default there. Elsewhere only
                children
                made by `spawn` are collected, so that other code of the same process keeps its own.
        """
        self._everything = os.getpid() == 1 if everything is None else everything
        self._ended: dict[int, int] = {}
        self._waiting: dict[int, asyncio.Event] = {}
        self._death = asyncio.Event()

    def install(self) -> None:
        """Take SIGCHLD of the running event loop, and collect what is dead already."""
        asyncio.get_running_loop().add_signal_handler(signal.SIGCHLD, self._collect)
        self._collect()

    def remove(self) -> None:
        """Give SIGCHLD back."""
        asyncio.get_running_loop().remove_signal_handler(signal.SIGCHLD)

    def is_running(self, pid: int) -> bool:
        """Whether a child made by `spawn` is not collected yet, so that its pid is still its own."""
        return pid in _unreaped

    def running(self) -> tuple[int, ...]:
        """Children made by `spawn` that are not collected yet."""
        return tuple(_unreaped)

    async def next_death(self) -> None:
        """Wait until somebody is collected, whoever it is."""
        self._death.clear()
        await self._death.wait()

    async def wait(self, pid: int) -> int:
        """Raw wait status of a child made by `spawn`; may be called after its end, and by one caller only."""
        while pid not in self._ended:
            if pid not in _unreaped:
                raise ProcessLookupError(pid)
            await self._waiting.setdefault(pid, asyncio.Event()).wait()
        return self._ended.pop(pid)

    def _collect(self) -> None:
        for pid in (-1,) if self._everything else tuple(_unreaped):
            while (ended := _try_wait(pid)) is not None:
                self._note(*ended)
                self._death.set()
                if pid != -1:
                    break

    def _note(self, pid: int, status: int) -> None:
        if pid not in _unreaped:
            return  # an orphan of some program, left to PID 1
        _unreaped.discard(pid)
        self._ended[pid] = status
        if waiting := self._waiting.pop(pid, None):
            waiting.set()


def _try_wait(pid: int) -> tuple[int, int] | None:
    try:
        found, status = os.waitpid(pid, os.WNOHANG)
    except ChildProcessError:
        return None
    return (found, status) if found else None
