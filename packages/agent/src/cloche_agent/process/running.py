"""One process that was started over the wire: its input, its output, its end."""

from __future__ import annotations

import asyncio
import binascii
import os
import signal
from contextlib import suppress
from typing import TYPE_CHECKING

from cloche_agent.process import terminal
from cloche_agent.process.output import PIPE_BYTES, Output
from cloche_agent.rpc import frame
from cloche_wire import connect
from cloche_wire.errors import Internal, InvalidArgument, NotFound
from cloche_wire.messages.process import (
    DataEvent,
    EndEvent,
    ProcessConfig,
    ProcessEvent,
    Signal,
    StartResponse,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from cloche_agent.process.spawn import Reaper

_TERMINAL_PIECE_BYTES = 16 * 1024
_SILENCE_S = 2.0
"""How long the output must be silent, after the process ended, to take it that only something left running
holds it open (`server &`). E2B waits for the end of the output however long that takes, and callers run into
their time-out."""
_KILLED_S = 1.0
"""How long whoever has killed a process waits for its end: a few milliseconds, unless the kernel holds it."""


def event_frame(event: ProcessEvent) -> bytes:
    """An event as the streams of Start and of Connect carry it: the two messages are alike."""
    return frame(StartResponse(event=event))


def _data_framer(kind: str) -> Callable[[bytes], bytes]:
    """Maker of the frames of one kind of output.

    Written out and not through the codec, which is asked only how an empty piece looks: the general way
    spends 110 µs more on a piece of 32 KiB, most of all it does. A test holds the two together.
    """
    mark = event_frame(ProcessEvent(data=DataEvent(**{kind: b""})))[connect.HEADER_SIZE :]
    before, quotes, after = mark.rpartition(b'""')
    assert quotes, mark
    before, after = before + b'"', b'"' + after

    def make(piece: bytes) -> bytes:
        text = binascii.b2a_base64(piece, newline=False)
        header = connect.encode_header(0, len(before) + len(text) + len(after))
        return b"".join((header, before, text, after))

    return make


stdout_frame = _data_framer("stdout")
stderr_frame = _data_framer("stderr")
terminal_frame = _data_framer("pty")


class RunningProcess:
    """A process and our ends of its pipes or of its terminal.

    Life: running, then exited (collected, output may still flow), then ended (the end event is out,
        descriptors closed).
    """

    def __init__(
        self,
        pid: int,
        config: ProcessConfig,
        tag: str | None,
        *,
        reaper: Reaper,
        stdin: int | None = None,
        terminal: int | None = None,
    ) -> None:
        """Take over a process that runs, and the descriptors of its input, which are set not to block."""
        self.pid = pid
        self.config = config
        self.tag = tag
        self.output = Output()
        self.end: EndEvent | None = None
        self.ended = asyncio.Event()
        """Set once `end` is."""
        self._reaper = reaper
        self._stdin = stdin
        self._terminal = terminal
        self._turn = asyncio.Lock()
        self._writable = asyncio.Event()
        self._deadline: asyncio.TimerHandle | None = None
        if terminal is not None:
            self.output.add(terminal, _TERMINAL_PIECE_BYTES, terminal_frame, close=False)

    def read_from(self, stdout: int, stderr: int) -> None:
        """Take over the readable ends of its output pipes, which are set not to block."""
        self.output.add(stdout, PIPE_BYTES, stdout_frame)
        self.output.add(stderr, PIPE_BYTES, stderr_frame)

    def kill_at(self, deadline: float) -> None:
        """Kill it at that time of the event loop, whether or not anybody still listens."""
        self._deadline = asyncio.get_running_loop().call_at(deadline, self._signal, signal.SIGKILL)

    def kill(self) -> None:
        """Kill it and its process group. Idempotent."""
        self._signal(signal.SIGKILL)

    @property
    def has_succeeded(self) -> bool:
        """Whether it has ended by itself, with status 0."""
        return self.end is not None and self.end.exited and self.end.exit_code == 0

    async def follow_to_end(self) -> None:
        """Wait for its exit and for its output, then send the end event to all listeners.

        Leaves: `end` set; input closed. Pipes that something else still holds are emptied as long as that
            takes.
        """
        status = await self._reaper.wait(self.pid)
        if self._deadline:
            self._deadline.cancel()
        self._close_stdin()
        while True:
            seen = self.output.pieces_read
            try:
                async with asyncio.timeout(_SILENCE_S):
                    await self.output.wait_closed()
                break
            except TimeoutError:
                if self.output.pieces_read == seen and not self.output.is_paused:
                    break
        self.end = _end_event(status)
        self.ended.set()
        self.output.broadcast(event_frame(ProcessEvent(end=self.end)))
        self.output.end()
        self._close_terminal()

    async def send_signal(self, number: int) -> None:
        """Send SIGKILL or SIGTERM to the process and to what it runs in its process group.

        The group and not only the process, as E2B does: killing a shell alone would leave the program it
        waits for, which holds the output open. What was killed is gone on return, so that whoever looks next
        finds no such pid; one that the kernel still holds after a second is left to it.

        Raises:
            InvalidArgument: Another signal.
            NotFound: It has exited already.
        """
        if number not in (Signal.SIGNAL_SIGKILL, Signal.SIGNAL_SIGTERM):
            raise InvalidArgument(f"invalid signal: {number}")
        if not self._signal(number):
            raise NotFound(f"process with pid {self.pid} not found")
        if number == Signal.SIGNAL_SIGKILL:
            with suppress(TimeoutError):
                async with asyncio.timeout(_KILLED_S):
                    while self._reaper.is_running(self.pid):
                        await self._reaper.next_death()

    def resize(self, cols: int, rows: int) -> None:
        """Set the size of its terminal.

        Raises:
            InvalidArgument: It has none.
        """
        if self._terminal is None:
            raise InvalidArgument("tty not assigned to process")
        terminal.resize(self._terminal, cols, rows)

    async def write_stdin(self, data: bytes) -> None:
        """Write to its stdin; returns when the pipe has taken everything.

        Raises:
            Internal: It has no stdin, or that is closed.
        """
        if self._terminal is not None:
            raise Internal("tty assigned to process")
        await self._write(lambda: self._stdin, data, "stdin is not open")

    async def write_terminal(self, data: bytes) -> None:
        """Write to its terminal.

        Raises:
            Internal: It has none, or has ended.
        """
        await self._write(lambda: self._terminal, data, "tty not assigned to process")

    def close_stdin(self) -> None:
        """Close its stdin; closing twice is no error.

        Raises:
            InvalidArgument: It runs on a terminal.
        """
        if self._terminal is not None:
            raise InvalidArgument("cannot close stdin of a process on a terminal", hint="send Ctrl+D (0x04)")
        self._close_stdin()

    # ---

    def _signal(self, number: int) -> bool:
        # SAFETY: as long as the child is not collected its pid, which is also its group's id, is nobody
        # else's.
        if not self._reaper.is_running(self.pid):
            return False
        try:
            os.killpg(self.pid, number)
        except ProcessLookupError:
            return False
        return True

    async def _write(self, target: Callable[[], int | None], data: bytes, closed: str) -> None:
        rest = memoryview(data)
        async with self._turn:
            while rest:
                descriptor = target()
                if descriptor is None:
                    raise Internal(closed)
                try:
                    rest = rest[os.write(descriptor, rest) :]
                except BlockingIOError:
                    await self._wait_writable(descriptor)
                except OSError as error:
                    raise Internal(
                        f"cannot write to the process: {(error.strerror or '').lower()}"
                    ) from error

    async def _wait_writable(self, descriptor: int) -> None:
        loop = asyncio.get_running_loop()
        self._writable.clear()
        loop.add_writer(descriptor, self._writable.set)
        try:
            await self._writable.wait()
        finally:
            if descriptor in (self._stdin, self._terminal):
                loop.remove_writer(descriptor)

    def _close_stdin(self) -> None:
        if self._stdin is not None:
            self._release(self._stdin)
            self._stdin = None

    def _close_terminal(self) -> None:
        if self._terminal is not None:
            self.output.forget(self._terminal)
            self._release(self._terminal)
            self._terminal = None

    def _release(self, descriptor: int) -> None:
        asyncio.get_running_loop().remove_writer(descriptor)
        os.close(descriptor)
        self._writable.set()


def _end_event(status: int) -> EndEvent:
    if os.WIFSIGNALED(status):
        name = (signal.strsignal(os.WTERMSIG(status)) or f"signal {os.WTERMSIG(status)}").lower()
        text = f"signal: {name}" + (" (core dumped)" if os.WCOREDUMP(status) else "")
        return EndEvent(exit_code=-1, exited=False, status=text, error=text)
    code = os.WEXITSTATUS(status)
    text = f"exit status {code}"
    return EndEvent(exit_code=code, exited=True, status=text, error=text if code else None)
