# ruff: noqa: UP045, UP007 - IPython is untyped, runs on Python 3.9
"""Everything a kernel says, in order: one queue, and one thread that sends it.

Only that thread writes to the socket. A signal handler of user code may raise at any point of the main
thread, and an exception in the middle of a write would leave half a frame on the wire.

Text is gathered for 20 ms, until there is 64 KiB of it, or until the cell ends: a loop of small prints
becomes few frames. A line without its end waits for that ten times as long: `print(1)` writes twice, and on a
busy machine whoever prints may be kept from the processor between the two. When the agent does not read, the
queue fills and whoever prints waits: that is the back-pressure, and the memory bound.
"""

from __future__ import annotations

import os
import select
import signal
import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Optional, Union

from .frames import LARGEST_FRAME_BYTES, encode

if TYPE_CHECKING:
    import socket

GATHER_S = 0.02
LINE_S = 0.2
"""How long a line is held back that has no end yet; as long as Jupyter gathers all text."""
FRAME_CHARACTERS = 64 * 1024
QUEUE_CHARACTERS = 1 << 20


class Outbox:
    """Queue of frames for the agent.

    `put` and `put_text` may be called from any thread, also by a finalizer or a signal handler that
    interrupts another call on the same thread: hence the re-entrant lock, and no state that an exception in
    the middle could break.
    """

    def __init__(self, sock: socket.socket) -> None:
        """Take the socket over; nothing is sent before `start`."""
        self._socket: Optional[socket.socket] = sock
        self._sender = 0
        self._lock = threading.RLock()
        self._room = threading.Condition(self._lock)
        self._queue: list[Union[bytes, tuple[str, list[str]]]] = []
        self._queued = 0
        self._is_urgent = False
        self._run_id: Optional[int] = None
        self._wake_read, self._wake_write = os.pipe()
        os.set_blocking(self._wake_read, False)
        os.set_blocking(self._wake_write, False)
        self._sources: dict[int, Callable[[], bool]] = {}
        self._source_poll = select.poll()

    def start(self) -> None:
        """Start the thread that sends."""
        threading.Thread(target=self._run, name="cloche-output", daemon=True).start()

    def add_source(self, descriptor: int, absorb: Callable[[], bool]) -> None:
        """Call `absorb` whenever `descriptor` is readable, until it returns False; before `start` only."""
        self._sources[descriptor] = absorb
        self._source_poll.register(descriptor, select.POLLIN)

    # --- by whoever has something to say

    def begin(self, run_id: int) -> None:
        """Attribute what follows to this run. Outside of runs everything said is dropped, as in Jupyter."""
        self._run_id = run_id

    def end(self, run_id: int) -> None:
        """Say that the run is over, send all of it now, and drop what follows."""
        with self._lock:
            self.absorb_sources()
            self.put({"type": "done", "id": run_id}, urgent=True)
            self._run_id = None

    def abandon(self) -> None:
        """In a forked child: forget the agent, which only the parent talks to."""
        # The parent's threads do not exist here, and one of them may have held the lock.
        self._lock = threading.RLock()
        self._room = threading.Condition(self._lock)
        self._source_poll = select.poll()
        self._run_id = None
        self._queue = []
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def put(self, message: dict[str, Any], *, urgent: bool = False) -> None:
        """Queue a message of the run.

        Raises:
            ValueError: It is larger than a frame may be, or contains itself.
        """
        frame = encode(message)
        if len(frame) > LARGEST_FRAME_BYTES:
            raise ValueError(f"larger than {LARGEST_FRAME_BYTES} bytes")
        with self._lock:
            self._wait_for_room()
            if self._run_id is not None:
                self._queue.append(frame)
                self._added(len(frame), urgent=urgent)

    def put_text(self, stream: str, text: str) -> None:
        """Queue text that the program wrote; waits while the queue is full."""
        for start in range(0, len(text), FRAME_CHARACTERS):
            with self._lock:
                self.absorb_sources()
                self._wait_for_room()
                self.append_text(stream, text[start : start + FRAME_CHARACTERS])

    def append_text(self, stream: str, text: str) -> None:
        """Queue text without waiting: for what is read off the pipes, under the lock."""
        if self._run_id is None or not text:
            return
        last = self._queue[-1] if self._queue else None
        if isinstance(last, tuple) and last[0] == stream:
            last[1].append(text)
        else:
            self._queue.append((stream, [text]))
        self._added(len(text), urgent=self._queued + len(text) >= FRAME_CHARACTERS)

    def flush(self) -> None:
        """Send what is queued now, without waiting for it."""
        with self._lock:
            if self._queue:
                self._added(0, urgent=True)

    def absorb_sources(self) -> None:
        """Queue what child processes and C code have written so far, so that it comes before what follows."""
        with self._lock:
            while ready := self._source_poll.poll(0):
                for descriptor, _ in ready:
                    self._absorb_one(descriptor)
                self._wait_for_room()

    def _absorb_one(self, descriptor: int) -> None:
        if not self._sources[descriptor]():
            del self._sources[descriptor]
            self._source_poll.unregister(descriptor)

    def _wait_for_room(self) -> None:
        # A finalizer that prints may run on the sending thread, which must not wait for itself.
        while self._queued >= QUEUE_CHARACTERS and threading.get_ident() != self._sender:
            self._room.wait()

    def _added(self, size: int, *, urgent: bool) -> None:
        is_first = self._queued == 0
        self._queued += size
        if is_first or (urgent and not self._is_urgent):
            self._is_urgent = self._is_urgent or urgent
            self._wake()

    def _wake(self) -> None:
        try:
            os.write(self._wake_write, b"\0")
        except BlockingIOError:
            return  # 65,536 wake-ups wait already

    # --- by the thread that sends

    def _run(self) -> None:
        try:
            self._send_forever()
        except BaseException:  # noqa: BLE001 - out of memory, in practice
            # Nobody could hear of anything any more: die, so that the agent starts another kernel.
            os._exit(70)

    def _send_forever(self) -> None:
        self._sender = threading.get_ident()
        # Signals belong to the main thread, whose system calls they are meant to end.
        signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
        poll = select.poll()
        for descriptor in (self._wake_read, *self._sources):
            poll.register(descriptor, select.POLLIN)
        due: Optional[float] = None
        latest = 0.0  # for a line that has no end until then
        while True:
            timeout_ms = None if due is None else max(0.0, (due - time.monotonic()) * 1000)
            self._absorb(poll, poll.poll(timeout_ms))
            now = time.monotonic()
            if not self._queue:
                due = None
            elif due is None and not self._is_urgent:
                due, latest = now + GATHER_S, now + LINE_S
            elif self._is_urgent or due is None or now >= due:
                taken = self._take(with_unfinished=self._is_urgent or now >= latest)
                due = now + GATHER_S if self._queue else None
                if taken:
                    latest = now + LINE_S
                    self._send(taken)

    def _absorb(self, poll: select.poll, ready: list[tuple[int, int]]) -> None:
        for descriptor, _ in ready:
            if descriptor == self._wake_read:
                os.read(self._wake_read, 4096)
                continue
            with self._lock:
                if descriptor in self._sources:
                    self._absorb_one(descriptor)
                else:
                    poll.unregister(descriptor)

    def _take(self, *, with_unfinished: bool) -> list[Union[bytes, tuple[str, list[str]]]]:
        """All that is queued; without the last line, where it has no end and is to be left."""
        with self._lock:
            queue, self._queue = self._queue, []
            self._queued = 0
            if queue and not with_unfinished and not self._is_urgent and isinstance(queue[-1], tuple):
                stream, parts = queue.pop()
                whole, end, rest = "".join(parts).rpartition("\n")
                if end:
                    queue.append((stream, [whole + end]))
                if rest:
                    self._queue.append((stream, [rest]))
                    self._queued = len(rest)
            self._is_urgent = False
            self._room.notify_all()
            return queue

    def _send(self, queue: list[Union[bytes, tuple[str, list[str]]]]) -> None:
        data = bytearray()
        for entry in queue:
            for frame in (entry,) if isinstance(entry, bytes) else _text_frames(*entry):
                data += frame
                if len(data) >= QUEUE_CHARACTERS:
                    self._write(data)
                    data = bytearray()
        self._write(data)

    def _write(self, data: bytearray) -> None:
        if self._socket is not None:
            # Fails when the agent is gone, and with it the reason to be.
            self._socket.sendall(data)


def _text_frames(stream: str, parts: list[str]) -> list[bytes]:
    text = "".join(parts)
    return [
        encode({"type": stream, "text": text[start : start + FRAME_CHARACTERS]})
        for start in range(0, len(text), FRAME_CHARACTERS)
    ]
