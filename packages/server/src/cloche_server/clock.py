"""The two clocks of the server, behind one seam so that tests can turn them."""

from __future__ import annotations

import time
from datetime import UTC, datetime
from typing import Protocol


class Clock(Protocol):
    """Source of time."""

    def boot_s(self) -> float:
        """Seconds since boot, suspend included.

        Deadlines use it: wall-clock jumps neither kill nor immortalise.
        """
        ...

    def now(self) -> datetime:
        """Aware wall-clock time in UTC, for people and for the wire only."""
        ...


class SystemClock:
    """The machine's own clocks."""

    def boot_s(self) -> float:
        """See `Clock.boot_s`.

        CLOCK_BOOTTIME, so that it goes on over a suspend and over a restart of the process.
        """
        return time.clock_gettime(time.CLOCK_BOOTTIME)

    def now(self) -> datetime:
        """See `Clock.now`."""
        return datetime.now(UTC)
