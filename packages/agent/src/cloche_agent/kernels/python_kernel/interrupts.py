# ruff: noqa: ANN401, UP045 - IPython is untyped, runs on Python 3.9
"""SIGINT as the agent means it: end the cell that runs, nothing else."""

from __future__ import annotations

import signal
import time
from typing import TYPE_CHECKING, Any, Optional

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Coroutine
    from types import FrameType

_REPEAT_S = 0.5


class Interrupts:
    """Owner of SIGINT. Between cells the signal is dropped: a late one must not hit the next cell."""

    def __init__(self) -> None:
        """Nothing is interruptible yet, and the handler is installed by `open`."""
        self._is_open = False
        self._last = 0.0
        self._task: Optional[asyncio.Task[Any]] = None
        self.was_cancelled = False
        """An awaiting cell was told to end by cancelling it; its CancelledError means an interrupt."""

    def open(self) -> None:
        """From here on SIGINT raises KeyboardInterrupt, also where user code has changed its handler."""
        self.was_cancelled = False
        self._last = 0.0
        signal.signal(signal.SIGINT, self._handle)
        self._is_open = True

    def close(self) -> None:
        """From here on SIGINT does nothing."""
        self._is_open = False

    def _handle(self, signum: int, frame: Optional[FrameType]) -> None:
        # The agent repeats itself, in case the first came just before a sleep; one is enough for a while.
        if not self._is_open or time.monotonic() - self._last < _REPEAT_S:
            return
        self._last = time.monotonic()
        task = self._task
        if task is None or task.done() or self.was_cancelled:
            raise KeyboardInterrupt
        import asyncio

        loop = task.get_loop()
        if asyncio.current_task(loop) is not None:
            raise KeyboardInterrupt  # code of some task runs right now
        # The loop waits in select, which a handler that returns does not end: wake it.
        self.was_cancelled = True
        loop.call_soon_threadsafe(task.cancel)

    def run_async(self, coroutine: Coroutine[Any, Any, Any]) -> Any:
        """Run a cell that awaits, on the one loop that all such cells share.

        An interrupted cell is cancelled and driven to its end: a task left half-way would go on when a later
        cell awaits.
        """
        import asyncio  # 20 ms that a kernel without awaiting cells never pays

        loop = shared_loop()
        task = loop.create_task(coroutine)
        self._task = task
        try:
            return loop.run_until_complete(task)
        except KeyboardInterrupt:
            if not task.done():
                task.cancel()
                loop.run_until_complete(asyncio.wait([task], timeout=2.0))
            raise
        finally:
            self._task = None


_loop: Optional[asyncio.AbstractEventLoop] = None


def shared_loop() -> asyncio.AbstractEventLoop:
    """The loop of this kernel's cells, made at the first use and again when a cell has closed it."""
    import asyncio

    global _loop
    if _loop is None or _loop.is_closed():
        _loop = asyncio.new_event_loop()
        asyncio.set_event_loop(_loop)
    return _loop
