"""`POST /relieve`: end the process that uses the most memory, where no kernel does that by itself."""

from __future__ import annotations

import contextlib
import os
import signal
from pathlib import Path
from typing import TYPE_CHECKING

from cloche_agent import procfs
from cloche_agent.http import Response
from cloche_wire.errors import NotFound

if TYPE_CHECKING:
    from cloche_agent.init import Sandbox
    from cloche_agent.process.spawn import Reaper

_NAME_CHARACTERS = 64


def handle_relieve(sandbox: Sandbox, reaper: Reaper) -> Response:
    """End it as the kernel's own way is: at once, whoever waits for it learns of a signal.

    Raises:
        NotFound: There is no process but this agent.
    """
    # An ordinary process, in tests: of this machine only what it has started itself is its own.
    pids = _others() if os.getpid() == 1 else reaper.running()
    largest = max(((_resident_bytes(pid), pid) for pid in pids), default=None)
    if largest is None:
        raise NotFound("nothing runs")
    size, pid = largest
    name = _name(pid)
    # SAFETY: a pid of this namespace, so nothing outside of it; at the worst, another process of the sandbox
    # that has just got the number.
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)
    message = f"out of memory: ended process {pid} ({name}), which had {size >> 20} MiB"
    sandbox.activity.note("error", "sandbox", message)
    return Response(204)


def _others() -> list[int]:
    return [int(folder.name) for folder in procfs.processes() if int(folder.name) != os.getpid()]


def _resident_bytes(pid: int) -> int:
    """What it holds; 0 for one that has ended. See: proc(5), statm."""
    words = procfs.text(Path(f"/proc/{pid}/statm")).split()
    return int(words[1]) * procfs.PAGE_BYTES if words else 0


def _name(pid: int) -> str:
    return procfs.text(Path(f"/proc/{pid}/comm"))[:_NAME_CHARACTERS].strip()
