"""An event loop for a process that may be frozen, or written to disk and brought back days later.

CLOCK_MONOTONIC goes on meanwhile: gVisor adds the time between checkpoint and restore, and the cgroup freezer
stops no clock. By that clock every deadline that waits is over at the moment of waking up: processes would be
killed by time-outs of which they have used a second.
"""

from __future__ import annotations

import asyncio
import selectors
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from selectors import SelectorKey

_LOOK_S = 1.0
"""As long as anything waits for a time, the clock is read this often; else the loop sleeps on."""
LONGEST_STEP_S = 2.0
"""What the clock goes on by between two looks, at most: what is more, this process has not lived through."""


class PausableLoop(asyncio.SelectorEventLoop):
    """Counts the time in which it could run, in s."""

    def __init__(self) -> None:
        """Start counting."""
        self._seen = time.monotonic()
        self._missed = 0.0
        super().__init__(_AttentiveSelector())

    def time(self) -> float:
        """As `asyncio.AbstractEventLoop.time`, without the time in which this process stood still."""
        now = time.monotonic()
        self._missed += max(0.0, now - self._seen - LONGEST_STEP_S)
        self._seen = now
        return now - self._missed


class _AttentiveSelector(selectors.EpollSelector):
    """Comes back after a while, so that the loop reads its clock."""

    def select(self, timeout: float | None = None) -> list[tuple[SelectorKey, int]]:
        return super().select(None if timeout is None else min(timeout, _LOOK_S))
