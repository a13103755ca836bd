"""Pythons that are forked into this sandbox instead of being started in it.

A process outside, which has imported the template's packages, forks on request; the fork enters the
sandbox's namespaces, which we hand over, and is then a process like any other, though no child of ours. We
put it into the sandbox's groups before it gets anything to run. What it is has to be checked no more than
what a program of the template would be: it comes from the template.

Where there is none, or it cannot, whoever asks starts an interpreter.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket
import struct
from typing import TYPE_CHECKING, NamedTuple

from cloche_agent.readable import until_readable

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

log = logging.getLogger(__name__)

_NAMESPACES = ("net", "ipc", "uts", "cgroup", "pid", "mnt", "user")
"""As the zygote enters them."""
_FORK_DEADLINE_S = 10.0
_STATUS_DEADLINE_S = 1.0
_CREDENTIALS = struct.Struct("3i")  # struct ucred of unix(7): pid, uid, gid as we see them
_STATUS = struct.Struct("i")
_READ_AT_START = ("PYTHON", "OPENBLAS_", "OMP_", "MKL_", "NUMEXPR_", "MPL", "LD_", "LC_", "LANG")
_LARGEST_HELLO = 4096
_ORDINARY = {"LANG": "C.UTF-8"}


def read_at_start(env: Mapping[str, str]) -> dict[str, str]:
    """Variables that Python and its libraries read once, as far as they are not what they always are."""
    return {
        name: value
        for name, value in env.items()
        if name.startswith(_READ_AT_START) and _ORDINARY.get(name) != value
    }


class Fork(NamedTuple):
    """A process that waits at the other end of its socket for what to do."""

    pid: int
    process: int
    """A pidfd of it."""
    status: int
    """A pipe that its exit status comes through, if the zygote lives to tell it."""


class Zygote:
    """The connection with the process that forks."""

    def __init__(self, connection: socket.socket, groups: Sequence[int]) -> None:
        """Take the connection, and descriptors of the files that a pid is written to, to be in a group."""
        connection.setblocking(False)
        self._connection: socket.socket | None = connection
        self._groups = tuple(groups)

    def serves(self, env: Mapping[str, str]) -> bool:
        """Whether a fork does as well as an interpreter that starts with these variables.

        It has read some at its own start, before they were known.
        """
        return self._connection is not None and not read_at_start(env)

    async def fork(self, sock: socket.socket, theirs: socket.socket, out: int, err: int) -> Fork | None:
        """Have a fork made that speaks over `theirs`; None where none can be.

        Args:
            sock: Our end of its socket.
            theirs: Its own end; stays the caller's.
            out: Becomes its standard output; stays the caller's.
            err: Becomes its standard error; stays the caller's.
        """
        sock.setblocking(False)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
        with contextlib.ExitStack() as opened:
            status, reporting = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
            opened.callback(os.close, status)
            try:
                with os.fdopen(reporting, "wb", 0):
                    self._ask([theirs.fileno(), out, err, reporting])
                theirs.close()  # so that its end is seen here
                async with asyncio.timeout(_FORK_DEADLINE_S):
                    pid = await _hear(sock)
                process = os.pidfd_open(pid)
            except (OSError, TimeoutError, _NoFork) as error:
                log.info("no fork of a warm Python: %s", str(error) or type(error).__name__)
                return None
            opened.callback(os.close, process)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 0)
            for group in self._groups:
                # SAFETY: the limits hold before it gets its first instruction of the tenant's.
                os.pwrite(group, str(pid).encode(), 0)
            opened.pop_all()
        return Fork(pid, process, status)

    def _ask(self, descriptors: list[int]) -> None:
        if self._connection is None:
            raise _NoFork("there is no zygote any more")
        namespaces = [os.open(f"/proc/self/ns/{kind}", os.O_RDONLY | os.O_CLOEXEC) for kind in _NAMESPACES]
        try:
            socket.send_fds(self._connection, [b"fork"], [*descriptors, *namespaces])
        except OSError:
            self._connection.close()
            self._connection = None
            raise
        finally:
            for namespace in namespaces:
                os.close(namespace)


class _NoFork(Exception):  # noqa: N818 - not an error: an interpreter is started instead
    """Why there is none."""


async def _hear(sock: socket.socket) -> int:
    """The pid of the fork that greets us, as this sandbox counts them."""
    await until_readable(sock.fileno())
    data, ancillary, _, _ = sock.recvmsg(_LARGEST_HELLO, socket.CMSG_SPACE(_CREDENTIALS.size))
    if data != b"+":
        raise _NoFork(data.decode(errors="replace").strip() or "it ended at once")
    for level, kind, content in ancillary:
        if (level, kind) == (socket.SOL_SOCKET, socket.SCM_CREDENTIALS):
            pid: int = _CREDENTIALS.unpack_from(content)[0]
            # SAFETY: 0 is a process outside of this sandbox, 1 are we. A zygote that lies can name another
            # one of this sandbox only, which its template could end anyway.
            if pid > 1:
                return pid
    raise _NoFork("nobody of this sandbox has answered")


async def wait(fork: Fork) -> int:
    """The raw wait status of a fork that has ended; that of a SIGKILL where nobody can tell.

    Leaves: its descriptors closed.
    """
    try:
        await until_readable(fork.process)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_STATUS_DEADLINE_S):
                await until_readable(fork.status)
        with contextlib.suppress(BlockingIOError):
            told = os.read(fork.status, _STATUS.size)
            if len(told) == _STATUS.size:
                return int(_STATUS.unpack(told)[0])
        return 9
    finally:
        os.close(fork.process)
        os.close(fork.status)
