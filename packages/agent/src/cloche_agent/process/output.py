"""From the pipes of a process to whoever listens, with back-pressure.

While somebody listens, nothing is dropped: when a listener lags by more than `_HIGH_BYTES`, the pipes are
left alone until it has caught up, and the process waits as it would for a slow terminal. While nobody
listens, output is read and dropped, so that a process that is left running never blocks.
"""

from __future__ import annotations

import asyncio
import fcntl
import os
from collections import deque
from typing import TYPE_CHECKING

from cloche_agent.process.history import History

if TYPE_CHECKING:
    from collections.abc import Callable

PIPE_BYTES = 64 * 1024
"""What a pipe holds."""
_WIDE_PIPE_BYTES = 256 * 1024
_WIDE_PIECE_BYTES = 96 * 1024
_HIGH_BYTES = 384 * 1024
"""Two of the largest frames. Twice as much only means that frames leave the processor's cache before they are
sent."""
_LOW_BYTES = 128 * 1024
_BATCH_BYTES = 256 * 1024


class Subscriber:
    """One listener: frames wait here until its stream takes them."""

    def __init__(self, output: Output) -> None:
        """Made by `Output.subscribe` only."""
        self._output = output
        self._frames: deque[bytes] = deque()
        self._arrived = asyncio.Event()
        self.waiting_bytes = 0
        self.ended = False

    def put(self, frame: bytes) -> None:
        """Add a frame."""
        self._frames.append(frame)
        self.waiting_bytes += len(frame)
        self._arrived.set()

    def end(self) -> None:
        """Say that no frame follows."""
        self.ended = True
        self._arrived.set()

    async def take(self, until: float | None) -> bytes:
        """What has arrived, at most a quarter of a MiB and one frame; empty at the end.

        Raises:
            TimeoutError: Nothing arrived until that time of the event loop.
        """
        if not self._frames and not self.ended:
            async with asyncio.timeout_at(until):
                while not self._frames and not self.ended:
                    await self._arrived.wait()
        taken: list[bytes] = []
        size = 0
        while self._frames and size < _BATCH_BYTES:
            taken.append(self._frames.popleft())
            size += len(taken[-1])
        if not self._frames and not self.ended:
            self._arrived.clear()
        self.waiting_bytes -= size
        self._output.caught_up()
        return b"".join(taken)

    def close(self) -> None:
        """Stop listening."""
        self._output.unsubscribe(self)


class Output:
    """The readable ends of one process's output."""

    def __init__(self) -> None:
        """Nothing to read yet."""
        self._sources: dict[int, Callable[[], None]] = {}
        self._paused = False
        self._subscribers: list[Subscriber] = []
        self._closed = asyncio.Event()
        self._closed.set()
        self.history = History()
        self.pieces_read = 0
        """Grows with every piece: how `process/running.py` sees that output has fallen silent."""

    def subscribe(self, replay_from: int | None = None) -> Subscriber:
        """Listen from now on, or from what was printed at the offset `replay_from`, as far as it is kept."""
        subscriber = Subscriber(self)
        if replay_from is not None:
            for frame in self.history.frames(replay_from):
                subscriber.put(frame)
        self._subscribers.append(subscriber)
        return subscriber

    def unsubscribe(self, subscriber: Subscriber) -> None:
        """Forget a listener; the others, or nobody, set the pace from now on."""
        if subscriber in self._subscribers:
            self._subscribers.remove(subscriber)
        self.caught_up()

    def add(
        self, descriptor: int, piece_bytes: int, frame: Callable[[bytes], bytes], *, close: bool = True
    ) -> None:
        """Read `descriptor`, which is set not to block, in pieces of at most `piece_bytes`.

        Args:
            descriptor: Read until its end.
            piece_bytes: Largest piece. Where this is `PIPE_BYTES` and the pipe is found full, pipe and pieces
                become larger: fewer of them cost less.
            frame: Makes the frame that listeners get out of a piece.
            close: Close the descriptor at its end. Not for a terminal, which is written to as well.
        """

        def read() -> None:
            nonlocal piece_bytes
            try:
                piece = os.read(descriptor, piece_bytes)
            except BlockingIOError:
                return
            except OSError:
                piece = b""  # EIO: the last program on the terminal is gone
            if not piece:
                self._finish(descriptor, close=close)
                return
            if len(piece) == piece_bytes == PIPE_BYTES:
                piece_bytes = _widen(descriptor)
            self.pieces_read += 1
            self.history.add(frame, piece)
            if self._subscribers:
                self._deliver(frame(piece))

        self._closed.clear()
        self._sources[descriptor] = read
        if not self._paused:
            asyncio.get_running_loop().add_reader(descriptor, read)

    def forget(self, descriptor: int) -> None:
        """Read no more from `descriptor`; it stays open. Nothing happens if its end was reached already."""
        if descriptor in self._sources:
            self._finish(descriptor, close=False)

    def broadcast(self, frame: bytes) -> None:
        """Send a frame that is no output, such as the end, to every listener."""
        for subscriber in self._subscribers:
            subscriber.put(frame)

    def end(self) -> None:
        """Tell every listener that nothing follows; what the process left running is read and dropped."""
        for subscriber in self._subscribers:
            subscriber.end()
        self._subscribers.clear()
        self.caught_up()

    @property
    def is_paused(self) -> bool:
        """Whether a listener lags and the process may be waiting for it."""
        return self._paused

    async def wait_closed(self) -> None:
        """Return when every pipe has reached its end."""
        await self._closed.wait()

    def caught_up(self) -> None:
        """Read on, if no listener lags any more."""
        if self._paused and all(one.waiting_bytes < _LOW_BYTES for one in self._subscribers):
            self._paused = False
            loop = asyncio.get_running_loop()
            for descriptor, read in self._sources.items():
                loop.add_reader(descriptor, read)

    def _deliver(self, frame: bytes) -> None:
        for subscriber in self._subscribers:
            subscriber.put(frame)
            if subscriber.waiting_bytes > _HIGH_BYTES and not self._paused:
                self._paused = True
                for descriptor in self._sources:
                    asyncio.get_running_loop().remove_reader(descriptor)

    def _finish(self, descriptor: int, *, close: bool) -> None:
        asyncio.get_running_loop().remove_reader(descriptor)
        del self._sources[descriptor]
        if close:
            os.close(descriptor)
        if not self._sources:
            self._closed.set()


def _widen(descriptor: int) -> int:
    """Make room in a pipe that its program fills faster than we read; the size of pieces from now on.

    Only then, and not for every pipe: the kernel lets one user have 64 MiB of them, then pipes of 8 KiB only.
    """
    try:
        fcntl.fcntl(descriptor, fcntl.F_SETPIPE_SZ, _WIDE_PIPE_BYTES)
    except OSError:
        return PIPE_BYTES
    return _WIDE_PIECE_BYTES
