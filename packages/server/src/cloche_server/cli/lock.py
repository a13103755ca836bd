"""One server for each state folder: the lock, and what the lock file tells about the server that holds it.

The kernel releases the lock with its holder's last descriptor, so a server that was killed blocks nobody. The
file's content is for other commands: where the server listens, and who it is (pid and start time), so that
`cloche down` never signals a stranger.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
from pathlib import Path
from typing import TYPE_CHECKING, Self

import msgspec

from cloche_server.isolation.base import ProcessIdentity
from cloche_server.isolation.identity import identify
from cloche_wire.errors import Conflict, NotFound

if TYPE_CHECKING:
    from cloche_server.config import Config

LOCK_NAME = "lock"
_READS = 5
"""Tries to read the file: a read and a write of it at the same moment can mix on ext4."""


class RunningServer(msgspec.Struct, frozen=True):
    """What the holder of the lock says of itself."""

    supervisor: ProcessIdentity
    host: str
    port: int
    domain: str
    isolation: str
    ready: bool = False

    @property
    def url(self) -> str:
        """Where clients on this machine reach it."""
        host = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(self.host, self.host)  # noqa: S104 - compared only
        return f"http://{f'[{host}]' if ':' in host and '[' not in host else host}:{self.port}"


class StateLock:
    """The lock on a state folder, held until `release` or the end of the process."""

    def __init__(self, descriptor: int) -> None:
        """Go on holding the lock behind a descriptor of this process."""
        self._descriptor = descriptor
        self._identity = identify(os.getpid())

    @classmethod
    def take(cls, state_dir: Path) -> Self:
        """Take the lock.

        Raises:
            Conflict: Another server holds it.
        """
        # Not inherited: a child that outlives us must not keep the next server out.
        descriptor = os.open(state_dir / LOCK_NAME, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
            raise already_running(state_dir) from None
        return cls(descriptor)

    def fileno(self) -> int:
        """Return the descriptor that holds the lock."""
        return self._descriptor

    def publish(self, config: Config, *, is_ready: bool) -> None:
        """Write down who holds the lock and where it listens."""
        assert self._identity is not None, "this process runs"
        server = RunningServer(
            self._identity, config.host, config.port, config.public_domain, config.isolation, is_ready
        )
        # One write over the old text, blanks over its rest: whoever reads meanwhile never finds half of it.
        length = os.fstat(self._descriptor).st_size
        os.pwrite(self._descriptor, msgspec.json.encode(server).ljust(length), 0)

    def release(self) -> None:
        """Give the lock back; the file stays, empty."""
        os.ftruncate(self._descriptor, 0)
        os.close(self._descriptor)


def already_running(state_dir: Path) -> Conflict:
    """Return the refusal of a second server."""
    return Conflict(
        f"a server already runs on this state folder: {state_dir}",
        hint="stop it with `cloche down`, or give this one another folder with --state",
    )


def is_held(state_dir: Path) -> bool:
    """Whether some server holds the lock."""
    try:
        descriptor = os.open(state_dir / LOCK_NAME, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)
    return False


def running_server(state_dir: Path) -> RunningServer:
    """Return what the running server says of itself.

    Raises:
        NotFound: None runs on this folder.
    """
    missing = NotFound(
        f"no server runs on this state folder: {state_dir}", hint="start one with `cloche serve`"
    )
    if not is_held(state_dir):
        raise missing
    for _ in range(_READS):
        with contextlib.suppress(msgspec.DecodeError):
            return msgspec.json.decode((state_dir / LOCK_NAME).read_bytes(), type=RunningServer)
    raise missing  # it has just taken the lock
