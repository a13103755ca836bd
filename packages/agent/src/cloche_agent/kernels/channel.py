"""Frames between agent and kernel. What comes from the kernel is hostile: bounded, and checked here."""

from __future__ import annotations

import asyncio
import json
import struct
from typing import TYPE_CHECKING, Literal, cast

if TYPE_CHECKING:
    import socket

LARGEST_FRAME_BYTES = 32 << 20
"""The kernel leaves out what does not fit; one that sends more is broken or an attack."""
_READ_BYTES = 256 * 1024
_READ_AHEAD_BYTES = 1 << 20
_LENGTH = struct.Struct(">I")

Message = dict[str, object]


class KernelProtocolError(Exception):
    """The kernel sent what is no frame; its end of the socket cannot be trusted to be in step any more."""


class FrameChannel:
    """Our end of the socket pair.

    Bytes are read into a buffer by a callback of the loop, not by an awaited read: a read that is cancelled
    at the moment it succeeds (a keepalive is due, the client goes) would lose what it has read.
    """

    def __init__(self, sock: socket.socket) -> None:
        """Take the socket over, inside a running event loop."""
        sock.setblocking(False)
        self._socket = sock
        self._loop = asyncio.get_running_loop()
        self._buffer = bytearray()
        self._outgoing = bytearray()
        self._arrived = asyncio.Event()
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
            if messages := self._cut():
                return messages
            if self.is_ended:
                return []
            self._arrived.clear()
            self._resume()
            await self._arrived.wait()

    def end(self) -> None:
        """The kernel is dead: read what it left. A child of it may hold its end of the socket open."""
        while not self.is_ended and self._read():
            pass
        self._finish()

    # --- callbacks of the event loop

    def _resume(self) -> None:
        if not self._is_reading and not self.is_ended:
            self._is_reading = True
            self._loop.add_reader(self._socket, self._read)

    def _pause(self) -> None:
        if self._is_reading:
            self._is_reading = False
            self._loop.remove_reader(self._socket)

    def _finish(self) -> None:
        if not self.is_ended:
            self._pause()
            self._loop.remove_writer(self._socket)
            self._socket.close()
            self.is_ended = True
        self._arrived.set()

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
        try:
            data = self._socket.recv(_READ_BYTES)
        except BlockingIOError:
            return False
        except OSError:
            data = b""
        if not data:
            self._finish()
            return False
        self._buffer += data
        if len(self._buffer) > _READ_AHEAD_BYTES:
            self._pause()
        self._arrived.set()
        return True

    def _cut(self) -> list[Message]:
        """Take the complete frames out of the buffer."""
        messages: list[Message] = []
        start = 0
        while len(self._buffer) - start >= _LENGTH.size:
            (size,) = _LENGTH.unpack_from(self._buffer, start)
            if size > LARGEST_FRAME_BYTES:
                raise KernelProtocolError(f"frame of {size} bytes")
            end = start + _LENGTH.size + size
            if len(self._buffer) < end:
                break
            messages.append(_parse(self._buffer[start + _LENGTH.size : end]))
            start = end
        del self._buffer[:start]
        return messages


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
