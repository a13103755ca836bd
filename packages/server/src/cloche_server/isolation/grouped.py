"""What drivers have in common whose sandboxes are found by their control groups."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path

from cloche_server.isolation import cgroups, identity, mount_points
from cloche_server.isolation.base import ProcessIdentity, Usage
from cloche_server.isolation.launching.client import Launcher
from cloche_wire.errors import Internal, Unavailable


class GroupedDriver:
    """The groups of one server's sandboxes, and the launcher that starts what goes into them."""

    def __init__(self, block: int) -> None:
        """Take the number of this server's block, which names the groups."""
        self._groups = cgroups.SandboxGroups(
            cgroups.detect(Path("/proc/self/mountinfo").read_text()), f"cloche-{block}"
        )
        self._started: Launcher | None = None

    def _prepare(self, module: str, *arguments: str) -> None:
        """Make the mount points and the parent group, and start the launcher."""
        mount_points.prepare()
        try:
            self._groups.prepare()
        except OSError as error:
            raise Unavailable(f"cannot make control groups: {error.filename}: {error.strerror}") from error
        self._started = Launcher(module, *arguments)

    async def _end_group(self, sandbox_id: str) -> None:
        """End every process in a sandbox's groups, and remove them. Idempotent."""
        while self._groups.pids(sandbox_id):
            for one in self._kill_group(sandbox_id):
                await identity.wait_for_exit(one)
            await asyncio.sleep(0)
        await self._groups.remove(sandbox_id)

    def _kill_group(self, sandbox_id: str) -> list[ProcessIdentity]:
        """Kill every process in a sandbox's groups, and return them.

        What stands still dies when it would go on, before its next instruction: so nothing of it changes a
        file that is kept by now.
        """
        known = list(filter(None, map(identity.identify, self._groups.pids(sandbox_id))))
        for one in known:
            identity.kill(one)
        self._groups.thaw(sandbox_id)
        return known

    def goes_on_over(self, layers: Sequence[Path]) -> bool:
        """See `Driver.goes_on_over`; over none, unless a driver knows better."""
        return False

    def is_alive(self, init: ProcessIdentity) -> bool:
        """See `Driver.is_alive`."""
        return identity.is_same(init)

    async def wait(self, init: ProcessIdentity) -> None:
        """See `Driver.wait`."""
        await identity.wait_for_exit(init)

    def usage(self, sandbox_id: str) -> Usage:
        """See `Driver.usage`."""
        return self._groups.usage(sandbox_id)

    def reclaim(self, sandbox_id: str) -> None:
        """See `Driver.reclaim`."""
        self._groups.reclaim(sandbox_id)

    def leftovers(self) -> set[str]:
        """See `Driver.leftovers`."""
        return self._groups.names()

    def close(self) -> None:
        """End the launcher, and remove the parent group when no sandbox is left."""
        if self._started is not None:
            self._started.close()
        self._groups.remove_parent()

    @property
    def _launcher(self) -> Launcher:
        if self._started is None:
            raise Internal("the driver is not prepared")
        return self._started
