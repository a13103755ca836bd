"""`sudo` where the setuid bit means nothing, as in gVisor sandboxes before its release of 2025-08.

A client takes the place of the program (`sudo_client.py`) and asks this agent, which is root, over a socket.
The kernel says who asks. The real program says whether they may: what it lists as the caller's rights must
end with every command, as everybody, without a password. Then it is run for them, as root. Whoever has less
gets nothing, also where they would have had some: run by root it asks for no password and keeps to no
exception. So all of a request comes from somebody who is as good as root.

What differs: `-l` lists root's rights, logs name root, and outside of a terminal an interrupt reaches the
program only, not all of its group. A `sudo` that is a link (sudo-rs) stays as it is.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import logging
import os
import re
import shlex
import signal
import socket
import struct
import sys
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from cloche_agent import sudo_client, users
from cloche_agent.process.spawn import SpawnRequest, spawn
from cloche_agent.readable import until_readable
from cloche_wire.errors import ClocheError, InvalidArgument, PermissionDenied, ResourceExhausted, TooLarge

if TYPE_CHECKING:
    from collections.abc import Generator, Sequence

    from cloche_agent.process.spawn import Reaper
    from cloche_agent.users import User

log = logging.getLogger(__name__)

_PR_GET_NO_NEW_PRIVS = 39
_CREDENTIALS = struct.Struct("3I")  # struct ucred of unix(7): pid, uid, gid
_DESCRIPTOR = struct.Struct("i")
_STREAMS = 3
_CONTROL_BYTES = socket.CMSG_SPACE(_CREDENTIALS.size) + socket.CMSG_SPACE(_STREAMS * _DESCRIPTOR.size)
_MOST_CONNECTIONS = 512
_MOST_OF_ONE_USER = 64
_BACKLOG = 64
_LARGEST_REQUEST_BYTES = 1 << 20
_LARGEST_LIST_BYTES = 64 * 1024
_READ_BYTES = 64 * 1024
_REQUEST_DEADLINE_S = 5.0
_LIST_DEADLINE_S = 20.0
_PATH = "/usr/sbin:/usr/bin:/sbin:/bin"
_EVERYTHING = re.compile(r" +\(ALL(?: : ALL)?\) NOPASSWD: ALL")
_FEW_FILES = 'ulimit -n 256 && exec "$@"'
"""For the list only. PAM closes every descriptor that could be, which are 65536: 0.7 s in gVisor."""
_MARK = "#!/bin/sh\n# Of Cloche, which has moved the real one:"
_DIVERSIONS = Path("/var/lib/dpkg/diversions")


class Places(NamedTuple):
    """Where what lies, and how the client is started."""

    python: Sequence[str]
    """Command of an interpreter, without a script."""
    archive: str
    """What it imports the client from."""
    program: Path = Path("/usr/bin/sudo")
    folder: Path = Path(sudo_client.FOLDER)
    """For the real one."""
    socket: Path = Path(sudo_client.SOCKET)


class Sudo:
    """The service, where it is needed.

    What fails is logged: it is a sandbox without `sudo`.
    """

    def __init__(self, reaper: Reaper) -> None:
        """Look for nothing yet."""
        self._reaper = reaper
        self._places: Places | None = None
        self._is_installed = asyncio.Event()

    async def serve(self) -> None:
        """Serve from when there is such a program, until cancelled; return where it is not needed."""
        if not is_needed():
            return
        try:
            self._places = own_places()
            await self.look()
            await self._is_installed.wait()
            await SudoService(self._reaper, self._places).run()
        except Exception:
            log.exception("there is no sudo")

    async def look(self) -> None:
        """Install it where there was no such program before: after a restore the root may be another one."""
        if self._places is None or self._is_installed.is_set():
            return
        try:
            if install(self._places):
                self._is_installed.set()
        except Exception:
            log.exception("there is no sudo")


def is_needed() -> bool:
    """Whether this is PID 1, and no process gains rights by a file."""
    # SAFETY: asks for a flag of this process; changes nothing.
    return os.getpid() == 1 and ctypes.CDLL(None).prctl(_PR_GET_NO_NEW_PRIVS, 0, 0, 0, 0) == 1


def own_places() -> Places:
    """Those of this process's own sandbox."""
    return Places(_own_python(), sys.argv[0])


def _own_python() -> list[str]:
    """The command that this process was started by, up to its script; `sys.orig_argv` lacks the loader."""
    words = [os.fsdecode(word) for word in Path("/proc/self/cmdline").read_bytes().split(b"\0")]
    return words[: words.index(sys.argv[0])]


def install(places: Places) -> bool:
    """Put the client in the place of the program, which is moved; again is no error.

    Leaves: nothing changed and False, where there is no such program, or it is a link.
    """
    program, real = places.program, places.folder / "sudo"
    if program.is_symlink() or not program.is_file():
        return False
    places.folder.mkdir(mode=0o755, parents=True, exist_ok=True)
    if not program.read_bytes().startswith(_MARK.encode()):
        program.rename(real)
    code = (
        f"import sys; sys.path.insert(0, {places.archive!r}); import cloche_agent.sudo_client as c; c.main()"
    )
    client = places.folder / "client"
    client.write_text(f'{_MARK} {real}\nexec {shlex.join([*places.python, "-c", code])} "$0" "$@"\n')
    client.chmod(0o755)
    client.rename(program)
    for name in sudo_client.NAMES:
        if name != real.name and not (link := places.folder / name).exists():
            link.symlink_to(real.name)
    _divert(program, real)
    return True


def _divert(program: Path, real: Path) -> None:
    """Have dpkg put a newer release where the real one lies now; see dpkg-divert(1), `--local`."""
    with contextlib.suppress(FileNotFoundError):
        if f"{program}\n" not in _DIVERSIONS.read_text():
            with _DIVERSIONS.open("a") as file:
                file.write(f"{program}\n{real}\n:\n")


class _Asked(NamedTuple):
    name: str
    is_on_terminal: bool
    folder: str
    arguments: list[str]
    variables: dict[str, str]


class SudoService:
    """Runs the program for those who may."""

    def __init__(self, reaper: Reaper, places: Places) -> None:
        """Serve nothing yet."""
        self._reaper = reaper
        self._places = places
        self._connections = 0
        self._of_user: Counter[int] = Counter()

    async def run(self) -> None:
        """Serve until cancelled.

        Raises:
            OSError: The socket cannot be made.
        """
        loop = asyncio.get_running_loop()
        with self._listen() as listener:
            async with asyncio.TaskGroup() as tasks:
                while True:
                    connection, _ = await loop.sock_accept(listener)
                    tasks.create_task(self._serve(connection))

    def _listen(self) -> socket.socket:
        path = self._places.socket
        path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
        path.unlink(missing_ok=True)
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        try:
            # Connections inherit it. gVisor answers SO_PEERCRED with our own ids, whoever the peer is.
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
            listener.bind(str(path))
            # SAFETY: for everybody. Nothing is believed but what the kernel says of the one who asks.
            path.chmod(0o666)
            listener.listen(_BACKLOG)
        except OSError:
            listener.close()
            raise
        return listener

    async def _serve(self, connection: socket.socket) -> None:
        self._connections += 1
        try:
            answer = await self._answer(connection)
        except (ClocheError, OSError) as error:
            answer = f"error {error}"
        except Exception:
            # In a task of the agent's own group: let out, it would end the service.
            log.exception("sudo failed")
            answer = "error internal error"
        finally:
            self._connections -= 1
        with connection, contextlib.suppress(OSError):
            connection.send(answer.encode("utf-8", "replace"))

    async def _answer(self, connection: socket.socket) -> str:
        with contextlib.ExitStack() as received:
            if self._connections > _MOST_CONNECTIONS:
                raise ResourceExhausted("too many at once")
            try:
                async with asyncio.timeout(_REQUEST_DEADLINE_S):
                    uid, streams, asked = await _receive(connection, received)
            except TimeoutError as error:
                raise InvalidArgument("the request is not complete") from error
            with self._counted(uid):
                caller = users.lookup(users.user_name(uid))
                if caller.uid != uid:  # a number without a name is its own
                    raise PermissionDenied(f"no such user: {uid}")
                await self._check(caller)
                pid = self._start(asked, caller, streams)
                received.close()
                status = await self._end(pid, connection)
        if os.WIFSIGNALED(status):
            return f"signal {os.WTERMSIG(status)}"
        return f"exit {os.WEXITSTATUS(status)}"

    @contextlib.contextmanager
    def _counted(self, uid: int) -> Generator[None]:
        if self._of_user[uid] >= _MOST_OF_ONE_USER:
            raise ResourceExhausted("too many at once")
        self._of_user[uid] += 1
        try:
            yield
        finally:
            self._of_user[uid] -= 1
            self._of_user += Counter()  # forgets who has none

    async def _check(self, caller: User) -> None:
        """Have the real program say what a user may.

        Raises:
            PermissionDenied: Not everything without a password.
        """
        listed = await self._list(caller)
        last = (listed.splitlines() or [""])[-1]
        if _EVERYTHING.fullmatch(last):
            return
        if "not allowed" in last:
            raise PermissionDenied(last)
        raise PermissionDenied(f"here only users may who may do everything without a password: {caller.name}")

    async def _list(self, caller: User) -> str:
        real = str(self._places.folder / "sudo")
        argv = ["/bin/sh", "-c", _FEW_FILES, "sh", real, "-n", "-l", "-U", caller.name]
        ours, theirs = os.pipe2(os.O_CLOEXEC)
        os.set_blocking(ours, False)  # not theirs: a list that is cut off could end with what was revoked
        with os.fdopen(ours, "rb", 0) as output:
            # SAFETY: root runs root's program, with nothing of the caller's but the account's name.
            with os.fdopen(theirs, "wb", 0):
                request = SpawnRequest(argv, {"PATH": _PATH, "LC_ALL": "C"}, "/", 0, 0, (0,))
                pid = spawn(request.on(None, theirs, None))
            try:
                async with asyncio.timeout(_LIST_DEADLINE_S):
                    listed = await _read_all(output.fileno())
                    status = await self._reaper.wait(pid)
            except (PermissionDenied, TimeoutError) as error:
                self._signal(-pid, signal.SIGKILL)
                await self._reaper.wait(pid)
                raise PermissionDenied("the rights cannot be listed") from error
        return listed if status == 0 else ""

    def _start(self, asked: _Asked, caller: User, streams: list[int]) -> int:
        told = {"SUDO_USER": caller.name, "SUDO_UID": str(caller.uid), "SUDO_GID": str(caller.gid)}
        # As assignments, which hold: by itself it tells its program that root has called it.
        named = [f"{name}={value}" for name, value in told.items()]
        if asked.name != "sudo" or asked.arguments[:1] in (["-e"], ["--edit"]):
            named = []  # refused where files are edited
        argv = [str(self._places.folder / asked.name), *named, *asked.arguments]
        # SAFETY: the caller may do everything, says the real program. What the loader reads is left out, as
        # it is with a setuid bit: it is meant for other programs.
        variables = {name: value for name, value in asked.variables.items() if not name.startswith("LD_")}
        request = SpawnRequest(argv, variables, asked.folder, 0, 0, (0,))
        return spawn(request.on(*streams, controlling_tty=asked.is_on_terminal))

    async def _end(self, pid: int, connection: socket.socket) -> int:
        """Raw wait status of the program; until then it gets the signals that the client is sent."""
        async with asyncio.TaskGroup() as tasks:
            passing = tasks.create_task(self._pass_on(connection, pid))
            status = await self._reaper.wait(pid)
            passing.cancel()
        return status

    async def _pass_on(self, connection: socket.socket, pid: int) -> None:
        loop = asyncio.get_running_loop()
        with contextlib.suppress(OSError):
            while numbers := await loop.sock_recv(connection, _READ_BYTES):
                for number in set(numbers).intersection(sudo_client.SIGNALS):
                    self._signal(pid, number)
        # The client has been killed, as its group is at a deadline.
        self._signal(-pid, signal.SIGKILL)

    def _signal(self, target: int, number: int) -> None:
        # SAFETY: until the child is collected its pid, which is its group's id too, is nobody else's.
        if self._reaper.is_running(abs(target)):
            os.kill(target, number)


async def _receive(
    connection: socket.socket, received: contextlib.ExitStack
) -> tuple[int, list[int], _Asked]:
    """Who asks, three descriptors that are closed with `received`, and for what.

    Raises:
        InvalidArgument: It is no request.
        TooLarge: It is too long.
    """
    loop = asyncio.get_running_loop()
    await until_readable(connection.fileno())
    # SAFETY: close-on-exec at once. What has no room is closed by the kernel, and so is what comes with later
    # bytes, which are received by a call that takes none.
    body, control, _, _ = connection.recvmsg(_READ_BYTES, _CONTROL_BYTES, socket.MSG_CMSG_CLOEXEC)
    streams: list[int] = []
    pid = uid = 0
    for _level, kind, content in control:
        if kind == socket.SCM_RIGHTS:
            whole = len(content) - len(content) % _DESCRIPTOR.size
            for (descriptor,) in _DESCRIPTOR.iter_unpack(content[:whole]):
                received.callback(os.close, descriptor)
                streams.append(descriptor)
        elif kind == socket.SCM_CREDENTIALS:
            pid, uid, _ = _CREDENTIALS.unpack(content)
    # SAFETY: without a pid it is not the kernel that says who. With the three it was no mere write, which a
    # program with more rights might have been made to do.
    if pid == 0 or len(streams) != _STREAMS:
        raise InvalidArgument("not a request")
    size = sudo_client.LENGTH.size
    while len(body) < size or len(body) - size < sudo_client.LENGTH.unpack_from(body)[0]:
        if len(body) > _LARGEST_REQUEST_BYTES:
            raise TooLarge("arguments and variables are too long")
        piece = await loop.sock_recv(connection, _READ_BYTES)
        if not piece:
            raise InvalidArgument("the request is not complete")
        body += piece
    return uid, streams, _parse(os.fsdecode(body[size:]).split("\0"))


def _parse(texts: list[str]) -> _Asked:
    try:
        name, kind, folder, count = texts[:4]
        last = 4 + int(count)
    except ValueError as error:
        raise InvalidArgument("not a request") from error
    if name not in sudo_client.NAMES or not 4 <= last <= len(texts):
        raise InvalidArgument("not a request")
    variables = (text.partition("=") for text in texts[last:])
    known = {variable: value for variable, _, value in variables if variable}
    return _Asked(name, kind == sudo_client.ON_TERMINAL, folder, texts[4:last], known)


async def _read_all(descriptor: int) -> str:
    """What is written to a pipe until its end, as far as it is no longer than a list may be."""
    text = bytearray()
    while len(text) < _LARGEST_LIST_BYTES:
        await until_readable(descriptor)
        piece = os.read(descriptor, _READ_BYTES)
        if not piece:
            return text.decode("utf-8", "replace")
        text += piece
    raise PermissionDenied("the list of rights is too long")
