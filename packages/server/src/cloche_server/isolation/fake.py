"""A driver without isolation, for tests of everything above it: the init is a plain process of this machine.

It passes the same conformance suite as the real drivers, but for what only isolation can show. No configuration
selects it.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

from cloche_server.isolation import identity
from cloche_server.isolation.base import Capabilities, ProcessIdentity, SandboxSpec, Usage
from cloche_wire.errors import Internal

_MOUNT_POINT = "/.cloche"
_TRAMPOLINE = """
import os, sys
kept = [int(number) for number in sys.argv[1].split(",")]
lifted = [os.dup(os.dup2(number, 64 + index)) for index, number in enumerate(kept)]
for target, number in enumerate(lifted, start=3):
    os.dup2(number, target, inheritable=True)
os.closerange(3 + len(kept), 256)
os.execv(sys.argv[2], sys.argv[2:])
"""


class FakeDriver:
    """Processes of this machine in the place of sandboxes."""

    def __init__(self) -> None:
        """Start with none."""
        self._processes: dict[str, subprocess.Popen[bytes]] = {}

    def capabilities(self) -> Capabilities:
        """See `Driver.capabilities`."""
        return Capabilities(name="fake", shares_host_kernel=True)

    def prepare(self) -> None:
        """See `Driver.prepare`; nothing is needed."""

    async def start(self, spec: SandboxSpec) -> ProcessIdentity:
        """See `Driver.start`. The runtime tree is not mounted: its mount point in `argv` is replaced by its place."""
        argv = [word.replace(_MOUNT_POINT, str(spec.runtime_tree)) for word in spec.argv]
        kept = ",".join(str(number) for number in spec.listeners)
        process = subprocess.Popen(
            [sys.executable, "-I", "-S", "-c", _TRAMPOLINE, kept, *argv],
            pass_fds=spec.listeners,
            env=spec.env,
            cwd=spec.folder,
            stdin=subprocess.DEVNULL,
            start_new_session=True,
        )
        self._processes[spec.sandbox_id] = process
        init = identity.identify(process.pid)
        if init is None:
            raise Internal("cannot start the sandbox: its init ended at once")
        return init

    async def destroy(self, sandbox_id: str, folder: Path, init: ProcessIdentity | None) -> None:
        """See `Driver.destroy`. Ends the init's whole session, as the end of a pid namespace would."""
        process = self._processes.pop(sandbox_id, None)
        if process is None:
            return
        try:
            # SAFETY: the group is that of a child not yet waited for, so its number cannot have been given away.
            os.killpg(process.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
        process.wait()

    def is_alive(self, init: ProcessIdentity) -> bool:
        """See `Driver.is_alive`."""
        return identity.is_same(init)

    async def wait(self, init: ProcessIdentity) -> None:
        """See `Driver.wait`."""
        await identity.wait_for_exit(init)

    def usage(self, sandbox_id: str) -> Usage:
        """See `Driver.usage`; only the number of processes is known: one."""
        return Usage(0, 0.0, 1 if sandbox_id in self._processes else 0)

    def leftovers(self) -> set[str]:
        """See `Driver.leftovers`."""
        return set(self._processes)

    def close(self) -> None:
        """See `Driver.close`; nothing is held."""
