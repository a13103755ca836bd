"""An event loop for a process that may be frozen, or written to disk and brought back days later.

CLOCK_MONOTONIC goes on meanwhile: gVisor adds the time between checkpoint and restore, and the cgroup freezer
stops no clock. By that clock every deadline that waits is over at the moment of waking up: processes would be
killed by time-outs of which they have used a second.

Where the process may be written to disk it waits by poll(2). gVisor (2024-07) brings an epoll instance back
with a broken list of what is ready when anything was on it, and connections that the checkpoint cuts get onto
it: it then tells for ever of a descriptor that is closed, and of no other. One restore in five did, with a
connection open; with poll 0 of 25.
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

    def __init__(self, *, is_saved: bool = False) -> None:
        """Start counting; `is_saved` says whether this process may be written to disk."""
        self._seen = time.monotonic()
        self._missed = 0.0
        super().__init__(_AttentivePoll() if is_saved else _AttentiveEpoll())

    def time(self) -> float:
        """As `asyncio.AbstractEventLoop.time`, without the time in which this process stood still."""
        now = time.monotonic()
        self._missed += max(0.0, now - self._seen - LONGEST_STEP_S)
        self._seen = now
        return now - self._missed


class _AttentiveEpoll(selectors.EpollSelector):
    """Comes back after a while, so that the loop reads its clock."""

    def select(self, timeout: float | None = None) -> list[tuple[SelectorKey, int]]:
        return super().select(_attentive(timeout))


class _AttentivePoll(selectors.PollSelector):
    """The same, with nothing that the kernel keeps between two calls."""

    def select(self, timeout: float | None = None) -> list[tuple[SelectorKey, int]]:
        return super().select(_attentive(timeout))


def _attentive(timeout: float | None) -> float | None:
    return None if timeout is None else min(timeout, _LOOK_S)
