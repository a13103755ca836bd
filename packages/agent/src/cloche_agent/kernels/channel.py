"""Frames between agent and kernel. What comes from the kernel is hostile: bounded, and checked here."""

from __future__ import annotations

import asyncio
import codecs
import contextlib
import fcntl
import json
import os
import struct
from typing import TYPE_CHECKING, Literal, cast

if TYPE_CHECKING:
    import socket
    from collections.abc import Sequence

LARGEST_FRAME_BYTES = 32 << 20
"""The kernel leaves out what does not fit; one that sends more is broken or an attack."""
_READ_BYTES = 256 * 1024
_READ_AHEAD_BYTES = 1 << 20
_PIPE_BYTES = 1 << 20
_GATHERED_CHARACTERS = 64 * 1024
_LARGEST_LAST_WORDS = 4096
_LENGTH = struct.Struct(">I")

Message = dict[str, object]


class KernelProtocolError(Exception):
    """The kernel sent what is no frame; its end of the socket cannot be trusted to be in step any more."""


class OutputPipe:
    """What a kernel and the programs it starts write to their descriptor 1 or 2."""

    def __init__(self, name: str, descriptor: int) -> None:
        """Take the reading end over; `name` is stdout or stderr."""
        os.set_blocking(descriptor, False)
        # Fails when the user's budget of pipe memory is spent: the default size does too.
        with contextlib.suppress(OSError):
            fcntl.fcntl(descriptor, fcntl.F_SETPIPE_SZ, _PIPE_BYTES)
        self.name = name
        self.descriptor = descriptor
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def read(self) -> str | None:
        """What has arrived, perhaps nothing; None when nobody holds the other end any more."""
        try:
            data = os.read(self.descriptor, _READ_BYTES)
        except BlockingIOError:
            return ""
        text = self._decoder.decode(data, final=not data)
        return text if data or text else None


class FrameChannel:
    """Our end of the socket pair, and the kernel's output, in the order in which they were written.

    Bytes are read into a buffer by callbacks of the loop, not by an awaited read: a read that is cancelled
    at the moment it succeeds (a keepalive is due, the client goes) would lose what it has read.

    What a program has written is in its pipe before the kernel says the next thing, so the pipes are emptied
    before every read of the socket, and once more before the last frame of what was read.
    """

    def __init__(self, sock: socket.socket, pipes: Sequence[OutputPipe] = ()) -> None:
        """Take the socket and the pipes over, inside a running event loop."""
        sock.setblocking(False)
        self._socket = sock
        self._pipes = list(pipes)
        self._loop = asyncio.get_running_loop()
        self._buffer = bytearray()
        self._arrived: list[bytearray | tuple[str, str]] = []
        """Bodies of frames, and texts with the name of their stream."""
        self._arrived_bytes = 0
        self._failure: KernelProtocolError | None = None
        self._outgoing = bytearray()
        self._news = asyncio.Event()
        self._last_words = ""
        self._is_heard = False
        self.is_ended = False
        """Nothing more will arrive than what is buffered."""
        self._is_reading = False
        self._resume()

    def post(self, message: Message) -> None:
        """Send one message, in the background where the kernel does not read at once.

        No await, so that a client that goes away cannot cut a frame in half. One run at a time posts, and a
        request is bounded: so is what waits here.
        """
        body = json.dumps(message, separators=(",", ":")).encode()
        is_idle = not self._outgoing
        self._outgoing += _LENGTH.pack(len(body)) + body
        if is_idle and not self.is_ended and not self._write():
            self._loop.add_writer(self._socket, self._write_on)

    async def receive(self) -> list[Message]:
        """Every message that has arrived, at least one; none at the end. Loses nothing when it is cancelled.

        Raises:
            KernelProtocolError: What arrived is no frame.
        """
        while True:
            if self._arrived:
                arrived, self._arrived, self._arrived_bytes = self._arrived, [], 0
                return [_message(item) for item in arrived]
            if self._failure is not None:
                raise self._failure
            if self.is_ended:
                return []
            self._news.clear()
            self._resume()
            await self._news.wait()

    def open_run(self) -> None:
        """From here on text of the pipes is kept; what a program has written before was for nobody."""
        self._arrived = [item for item in self._arrived if isinstance(item, bytearray)]
        self._is_heard = True

    def close_run(self) -> None:
        """From here on text of the pipes is dropped, as in Jupyter."""
        self._is_heard = False

    def end(self) -> None:
        """The kernel is dead: read what it left. A child of it may hold its ends open."""
        while not self.is_ended and self._read():
            pass
        self._finish()

    def last_words(self) -> str:
        """The last text that nobody has heard: why a kernel did not start."""
        return self._last_words.strip()

    # --- callbacks of the event loop

    def _resume(self) -> None:
        if not self._is_reading and not self.is_ended:
            self._is_reading = True
            self._loop.add_reader(self._socket, self._read)
            for pipe in self._pipes:
                self._loop.add_reader(pipe.descriptor, self._read_pipe, pipe)

    def _pause(self) -> None:
        if self._is_reading:
            self._is_reading = False
            self._loop.remove_reader(self._socket)
            for pipe in self._pipes:
                self._loop.remove_reader(pipe.descriptor)

    def _finish(self) -> None:
        if not self.is_ended:
            self._pause()
            self._loop.remove_writer(self._socket)
            self._socket.close()
            for pipe in self._pipes:
                os.close(pipe.descriptor)
            self._pipes.clear()
            self.is_ended = True
        self._news.set()

    def _write(self) -> bool:
        """Write what the socket takes; True when nothing is left."""
        try:
            del self._outgoing[: self._socket.send(self._outgoing)]
        except BlockingIOError:
            return False
        except OSError:
            self._outgoing.clear()  # the kernel is gone: the reading side notices
        return not self._outgoing

    def _write_on(self) -> None:
        if self._write():
            self._loop.remove_writer(self._socket)

    def _read(self) -> bool:
        """Read once; True when there may be more."""
        self._empty_pipes()
        try:
            data = self._socket.recv(_READ_BYTES)
        except BlockingIOError:
            return False
        except OSError:
            data = b""
        self._buffer += data
        frames = self._cut()
        self._took(frames[:-1])
        # A program may have written, and the kernel said that it is done, since the pipes were emptied.
        self._empty_pipes()
        self._took(frames[-1:])
        if not data:
            self._finish()
            return False
        self._note()
        return True

    def _empty_pipes(self) -> None:
        for pipe in tuple(self._pipes):
            # As often as it takes to empty it once: somebody may write faster than we read.
            for _ in range(_PIPE_BYTES // _READ_BYTES):
                if not self._read_pipe(pipe):
                    break

    def _read_pipe(self, pipe: OutputPipe) -> bool:
        """Read what a program has written; True when there may be more."""
        text = pipe.read()
        if text is None:
            self._loop.remove_reader(pipe.descriptor)
            self._pipes.remove(pipe)
            os.close(pipe.descriptor)
        elif not self._is_heard:
            self._last_words = (self._last_words + text)[-_LARGEST_LAST_WORDS:]
        elif text:
            last = self._arrived[-1] if self._arrived else None
            if isinstance(last, tuple) and last[0] == pipe.name and len(last[1]) < _GATHERED_CHARACTERS:
                self._arrived[-1] = (pipe.name, last[1] + text)
            else:
                self._arrived.append((pipe.name, text))
            self._arrived_bytes += len(text)
            self._note()
        return bool(text)

    def _note(self) -> None:
        # A frame that is not whole yet has to be read on.
        if self._arrived and self._arrived_bytes + len(self._buffer) > _READ_AHEAD_BYTES:
            self._pause()
        if self._arrived or self._failure is not None:
            self._news.set()

    def _cut(self) -> list[bytearray]:
        """Take the complete frames out of the buffer."""
        frames: list[bytearray] = []
        start = 0
        while len(self._buffer) - start >= _LENGTH.size:
            (size,) = _LENGTH.unpack_from(self._buffer, start)
            if size > LARGEST_FRAME_BYTES:
                self._failure = KernelProtocolError(f"frame of {size} bytes")
                self._pause()
                break
            end = start + _LENGTH.size + size
            if len(self._buffer) < end:
                break
            frames.append(self._buffer[start + _LENGTH.size : end])
            start = end
        del self._buffer[:start]
        return frames

    def _took(self, frames: list[bytearray]) -> None:
        self._arrived += frames
        self._arrived_bytes += sum(map(len, frames))


def _message(item: bytearray | tuple[str, str]) -> Message:
    return _parse(item) if isinstance(item, bytearray) else {"type": item[0], "text": item[1]}


def _parse(body: bytearray) -> Message:
    try:
        # JSON has no NaN, though Python's reader takes it.
        message: object = json.loads(body, parse_constant=lambda name: None)
    except (ValueError, RecursionError) as error:
        raise KernelProtocolError("frame is not JSON") from error
    if not isinstance(message, dict):
        raise KernelProtocolError("frame is not an object")
    return cast("Message", message)


def text_of(message: Message, name: str) -> str:
    """A field that must be a string.

    Raises:
        KernelProtocolError: It is missing, or is none.
    """
    value = message.get(name)
    if not isinstance(value, str):
        raise KernelProtocolError(f"no text: {name}")
    return value


def number_of(message: Message, name: Literal["id", "count"]) -> int:
    """A field that must be a whole number.

    Raises:
        KernelProtocolError: It is missing, or is none.
    """
    value = message.get(name)
    if not isinstance(value, int) or isinstance(value, bool):
        raise KernelProtocolError(f"no number: {name}")
    return value
