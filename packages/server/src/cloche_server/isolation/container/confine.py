"""From a process of the host's root to a sandbox's pid 1, or to a zygote.

That is: namespaces, ids, limits, filter, capabilities.

The order is that of the hardening specification: limits and network before, then the user namespace, the
others owned by it, the root, and last what can never be taken back.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import resource
import signal
import socket
from collections.abc import Callable
from typing import NamedTuple, NoReturn

from cloche_server.isolation import posture, syscalls
from cloche_server.isolation.container import inside

FIRST_DESCRIPTOR = 3
_LIFTED_DESCRIPTOR = 64
_OWN_NAMESPACES = (
    syscalls.CLONE_NEWNS | syscalls.CLONE_NEWIPC | syscalls.CLONE_NEWUTS | syscalls.CLONE_NEWCGROUP
)


class Role(NamedTuple):
    """What kind of process is confined."""

    namespaces: int
    """CLONE_NEW* of those that it gets besides its user namespace, which owns them."""
    capabilities: frozenset[int]

    @property
    def has_processes(self) -> bool:
        """Whether it sees processes, its own."""
        return bool(self.namespaces & syscalls.CLONE_NEWPID)


SANDBOX = Role(_OWN_NAMESPACES | syscalls.CLONE_NEWPID, frozenset(posture.CAPABILITIES.values()))
ZYGOTE = Role(_OWN_NAMESPACES | syscalls.CLONE_NEWNET, frozenset(posture.ZYGOTE_CAPABILITIES.values()))
"""In the host's pid namespace, for only a descendant of one's own can be entered; so it has no /proc."""


class Confinement(NamedTuple):
    """What the first process is put into; descriptors are the caller's."""

    role: Role
    hostname: str
    user_namespace: int
    descriptors: list[int]
    """Become its descriptors 3, 4, ...; it has no others but 0 to 2."""
    filter: bytes


def start_first(confinement: Confinement, run: Callable[[int], NoReturn]) -> int:
    """Fork the first process of what is confined, which calls `run` inside; its pid once that has begun.

    `run` gets a descriptor: that it is closed, by hand or by an exec, says that it has.

    Requires: a single-threaded process with nothing else to do: it is in the sandbox's namespaces after it.
    Its root is assembled (`root.assemble`), its groups and a sandbox's network namespace are entered.

    Raises:
        OSError: A control could not be put in place; nothing of the tenant ran. The message names it.
    """
    reading, writing = os.pipe2(os.O_CLOEXEC)
    os.setgroups([])
    # SAFETY: from here on this process has no capability over anything of the host's, and no id of it either.
    syscalls.setns(confinement.user_namespace, syscalls.CLONE_NEWUSER)
    os.setresgid(0, 0, 0)
    os.setresuid(0, 0, 0)
    syscalls.unshare(confinement.role.namespaces)
    pid = os.fork()
    if pid == 0:
        _be_first(confinement, writing, run)
    os.close(writing)
    with os.fdopen(reading, "rb") as report:
        failure = report.read()
    if failure:
        os.waitpid(pid, 0)
        raise OSError(failure.decode(errors="replace"))
    return pid


def _be_first(confinement: Confinement, report: int, run: Callable[[int], NoReturn]) -> NoReturn:
    """Never returns: what fails before `run` has closed the report is written there."""
    report = fcntl.fcntl(report, fcntl.F_DUPFD_CLOEXEC, _LIFTED_DESCRIPTOR)
    try:
        os.setsid()
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        socket.sethostname(confinement.hostname)
        inside.enter_root(has_processes=confinement.role.has_processes)
        _arrange_descriptors(confinement.descriptors, report)
        _set_limits()
        os.umask(0o022)
        syscalls.load_filter(confinement.filter)
        syscalls.limit_capabilities(confinement.role.capabilities)
        syscalls.prctl(syscalls.PR_SET_DUMPABLE, 0)
        run(report)
    except BaseException as error:  # noqa: BLE001 - whatever it is, it is told, and this process ends
        with contextlib.suppress(OSError):
            os.write(report, str(error).encode() or type(error).__name__.encode())
    os._exit(1)


def _arrange_descriptors(descriptors: list[int], report: int) -> None:
    # SAFETY: lifted above the target numbers first, so that no dup2 below overwrites one that is still to
    # be moved.
    lifted = [fcntl.fcntl(one, fcntl.F_DUPFD_CLOEXEC, _LIFTED_DESCRIPTOR) for one in descriptors]
    null = os.open("/dev/null", os.O_RDWR | os.O_CLOEXEC)
    for number in range(FIRST_DESCRIPTOR):
        os.dup2(null, number, inheritable=True)
    for number, descriptor in enumerate(lifted, start=FIRST_DESCRIPTOR):
        os.dup2(descriptor, number, inheritable=True)
    # SAFETY: no descriptor of the host's goes inside but the ones that were named.
    syscalls.close_all_but({*range(FIRST_DESCRIPTOR + len(lifted)), report})


def _set_limits() -> None:
    # Never above what we inherited: without CAP_SYS_RESOURCE a raise is refused (setrlimit(2)).
    hard = min(posture.HARD_OPEN_FILES, resource.getrlimit(resource.RLIMIT_NOFILE)[1])
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(posture.SOFT_OPEN_FILES, hard), hard))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
