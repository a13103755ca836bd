"""What a step of a build may take of the disk, counted while it runs and again of what it has left.

A step may write as fast as the disk does, so between two looks more can come together than it may have: a
second's worth, or ten times what a look takes where there are many files. Files that are open and have no
name any more are not seen; the free disk that always has to be left bounds those.
"""

from __future__ import annotations

import asyncio

from cloche_server import disk_space
from cloche_server.isolation import overlay
from cloche_server.node.layer_size import LayerSize, measure
from cloche_server.node.machine import Live, Machine
from cloche_wire.errors import TooLarge

_LEAST_PAUSE_S = 1.0
_PAUSES = 10
"""Between two looks, so many times what one takes: at most a tenth of a processor."""


def require_space(machine: Machine, purpose: str = "a build") -> None:
    """Refuse what leaves less free disk than the server wants: a full one would take every sandbox with it.

    Raises:
        NotEnoughSpace: There is less already.
    """
    disk_space.require(machine.config.state_dir, machine.config.builds.min_free_mib << 20, purpose)


def check(machine: Machine, found: LayerSize, what: str) -> None:
    """Refuse what is larger than one layer may be.

    Raises:
        TooLarge: It is.
    """
    limits = machine.config.builds
    if found.size_bytes > limits.max_layer_mib << 20 or not found.is_whole:
        most = f"{limits.max_layer_mib} MiB and {limits.max_layer_files} files"
        raise TooLarge(
            f"{what} {found.size_bytes >> 20} MiB in {found.entries} files and folders, more than a step may",
            hint=f"at most {most}, no folder deeper than 64",
        )


def size_of(machine: Machine, live: Live) -> LayerSize:
    """What a sandbox has written to its root, found at a bounded cost."""
    upper = machine.folder(live.record.request.sandbox_id) / overlay.UPPER
    return measure(upper, max_entries=machine.config.builds.max_layer_files)


class Watch:
    """Looks at what a sandbox writes while a program runs in it."""

    def __init__(self, machine: Machine, live: Live) -> None:
        """Nothing was looked at yet."""
        self._machine = machine
        self._live = live
        self._look: asyncio.Future[tuple[LayerSize, float]] | None = None
        self._next_s = machine.clock.boot_s() + _LEAST_PAUSE_S

    def check(self) -> None:
        """Tell what the last look has found, and begin the next one when it is time; waits for nothing.

        Raises:
            TooLarge: It has written more than it may.
            NotEnoughSpace: The disk is nearly full.
        """
        require_space(self._machine)
        now_s = self._machine.clock.boot_s()
        if self._look is not None and self._look.done():
            found, took_s = self._look.result()
            self._look, self._next_s = None, now_s + max(_LEAST_PAUSE_S, _PAUSES * took_s)
            check(self._machine, found, "it has written")
        elif self._look is None and now_s >= self._next_s:
            self._look = asyncio.get_running_loop().run_in_executor(None, self._measure)

    def _measure(self) -> tuple[LayerSize, float]:
        began_s = self._machine.clock.boot_s()
        found = size_of(self._machine, self._live)
        return found, self._machine.clock.boot_s() - began_s
