"""Who a process is: a pid alone may have been given to somebody else since."""

from __future__ import annotations

import os
import signal
from pathlib import Path

from cloche_server.isolation.base import ProcessIdentity
from cloche_server.readiness import until_readable


def boot_id() -> str:
    """The kernel's id of this boot."""
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


def identify(pid: int) -> ProcessIdentity | None:
    """The identity of a running process; None when there is none, or only its zombie."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return None
    fields = text[
        text.rindex(")") + 2 :
    ].split()  # the name in brackets may hold anything, so count from its end
    if fields[0] in "ZX":
        return None
    return ProcessIdentity(pid, int(fields[19]), boot_id())  # field 22 of proc(5), starttime


def is_same(identity: ProcessIdentity) -> bool:
    """Whether that very process still runs."""
    return identify(identity.pid) == identity


def open_pidfd(identity: ProcessIdentity) -> int | None:
    """A descriptor of that very process; None when it is gone."""
    try:
        descriptor = os.pidfd_open(identity.pid)
    except ProcessLookupError:
        return None
    # SAFETY: checked after the open: if the pid still has the old start time now, the descriptor is of that
    # process.
    if is_same(identity):
        return descriptor
    os.close(descriptor)
    return None


async def wait_for_exit(identity: ProcessIdentity) -> None:
    """Return when that process has ended. It need not be a child of ours."""
    descriptor = open_pidfd(identity)
    if descriptor is None:
        return
    try:
        await until_readable(descriptor)
    finally:
        os.close(descriptor)


def kill(identity: ProcessIdentity) -> None:
    """Send SIGKILL to that very process, if it is there."""
    descriptor = open_pidfd(identity)
    if descriptor is None:
        return
    try:
        # SAFETY: through the descriptor, so a pid reused in between is never hit.
        signal.pidfd_send_signal(descriptor, signal.SIGKILL)
    except ProcessLookupError:
        pass
    finally:
        os.close(descriptor)
