"""One end of a connection, with back-pressure both ways and no copy between what arrives and what leaves.

`asyncio.StreamReader` collects bytes in one growing buffer and cuts pieces out of it again; a proxy only
passes on what it got, so here every piece stays as the kernel delivered it. It also has to notice at once
that a client has left while nobody reads from it, which `StreamReader` cannot tell.
"""

from __future__ import annotations

import asyncio
import os
import socket
import struct
from collections import deque
from typing import TYPE_CHECKING, NamedTuple, cast

if TYPE_CHECKING:
    from collections.abc import Callable

READ_HIGH_BYTES = 256 * 1024
"""Unread bytes at which the peer is no longer read from. One more receive (256 KiB in asyncio) may come on
top."""
WRITE_HIGH_BYTES = 256 * 1024
"""Unsent bytes at which `drain` begins to wait."""
_LAST_READ_BYTES = 1024 * 1024


class _Delivery(NamedTuple):
    """Who gets what arrives, and the future of the task that waits for the end of that."""

    take: Callable[[bytes], bool]
    sink: Stream
    has_enough: asyncio.Future[bool]


class Stream(asyncio.Protocol):
    """Bytes in, bytes out, for TCP, TLS and Unix sockets alike. One reader and one writer at a time."""

    def __init__(self) -> None:
        self._pieces: deque[bytes] = deque()
        self._unread_bytes = 0
        self._is_paused = False
        self._at_eof = False
        self._is_lost = False
        self._lost: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.is_broken = False
        """Whether the peer broke the connection instead of ending it."""
        self._reader: asyncio.Future[None] | None = None
        self._writer: asyncio.Future[None] | None = None
        self._delivery: _Delivery | None = None
        self._is_clogged = False
        self.on_eof: Callable[[], None] | None = None
        """Called once when the peer has ended its side or the connection broke, whoever reads at that
        moment."""
        self.on_data: Callable[[], None] | None = None
        """Called whenever the peer has sent something."""

    # --- what the transport calls ---------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """See `asyncio.BaseProtocol`."""
        self._transport = cast("asyncio.Transport", transport)  # every transport of a stream protocol is one
        self._transport.set_write_buffer_limits(high=WRITE_HIGH_BYTES)
        self._is_tls = transport.get_extra_info("sslcontext") is not None

    def data_received(self, data: bytes) -> None:
        """See `asyncio.Protocol`."""
        if self.on_data is not None:
            self.on_data()
        if self._delivery is not None and not self._delivery.has_enough.done():
            self._hand_over(self._delivery, data)
            return
        self._pieces.append(data)
        self._unread_bytes += len(data)
        if self._unread_bytes > READ_HIGH_BYTES and not self._is_paused:
            self._is_paused = True
            self._transport.pause_reading()
        self._wake_reader()

    def eof_received(self) -> bool:
        """See `asyncio.Protocol`. Our own side stays open, except over TLS, which knows no half."""
        self._end_of_input()
        return not self._is_tls

    def connection_lost(self, exc: Exception | None) -> None:
        """See `asyncio.BaseProtocol`."""
        if exc is not None:
            self._read_what_is_left()
        self.is_broken = isinstance(exc, ConnectionResetError)
        self._is_lost = True
        if not self._lost.done():
            self._lost.set_result(None)
        self._end_of_input()
        self.resume_writing()

    def pause_writing(self) -> None:
        """See `asyncio.BaseProtocol`."""
        self._is_clogged = True

    def resume_writing(self) -> None:
        """See `asyncio.BaseProtocol`."""
        self._is_clogged = False
        if self._writer is not None and not self._writer.done():
            self._writer.set_result(None)

    # --- what the edge calls --------------------------------------------------------------------------------

    @property
    def is_lost(self) -> bool:
        """Whether the connection is closed or broken: nothing written now would arrive."""
        return self._is_lost or self._transport.is_closing()

    @property
    def is_tls(self) -> bool:
        """Whether the peer speaks TLS."""
        return self._is_tls

    @property
    def at_eof(self) -> bool:
        """Whether the peer has ended its side; pieces may still be unread."""
        return self._at_eof

    @property
    def is_clogged(self) -> bool:
        """Whether `drain` would wait, or raise."""
        return self._is_clogged or self.is_lost

    async def read(self) -> bytes:
        """Return the next piece, or `b""` when the peer has ended its side or the connection broke."""
        await self.wait_readable()
        return self.take()

    def take(self) -> bytes:
        """Return the next piece if one is there already, else `b""`."""
        if not self._pieces:
            return b""
        piece = self._pieces.popleft()
        self._unread_bytes -= len(piece)
        if self._is_paused and self._unread_bytes <= READ_HIGH_BYTES // 2:
            self._is_paused = False
            if not self.is_lost:
                self._transport.resume_reading()
        return piece

    def unread(self, piece: bytes) -> None:
        """Put back the tail of a piece, so that the next `read` returns it."""
        if piece:
            self._pieces.appendleft(piece)
            self._unread_bytes += len(piece)

    async def wait_readable(self) -> None:
        """Return as soon as `read` would not wait."""
        while not self._pieces and not self._at_eof:
            self._reader = asyncio.get_running_loop().create_future()
            try:
                await self._reader
            finally:
                self._reader = None

    async def deliver(self, take: Callable[[bytes], bool], sink: Stream) -> bool:
        """Pass on what arrives in the very moment, with no task woken in between.

        Args:
            take: Gets each piece and writes it to `sink`; tells whether it wants more. What it raises is
                raised here.
            sink: Nothing is handed over while it is clogged.

        Returns:
            Whether `take` had enough; False when the input ended before.

        Raises:
            ConnectionResetError: The sink is lost.
        """
        while True:
            await sink.drain()
            while self._pieces:
                if not take(self.take()):
                    return True
                await sink.drain()
            if self._at_eof:
                return False
            self._delivery = _Delivery(take, sink, asyncio.get_running_loop().create_future())
            try:
                if await self._delivery.has_enough:
                    return True
            finally:
                self._delivery = None

    def write(self, *pieces: bytes | memoryview) -> None:
        """Send or queue; call `drain` afterwards. On a lost connection it is dropped."""
        if pieces and not self.is_lost:
            self._transport.write(pieces[0] if len(pieces) == 1 else b"".join(pieces))

    async def drain(self) -> None:
        """Wait until little enough is queued.

        Raises:
            ConnectionResetError: The connection is lost.
        """
        while self._is_clogged and not self._is_lost:
            self._writer = asyncio.get_running_loop().create_future()
            try:
                await self._writer
            finally:
                self._writer = None
        if self.is_lost:
            raise ConnectionResetError("the peer is gone")

    def write_eof(self) -> None:
        """End our side and keep reading; over TLS, which has no such thing, end the connection."""
        if self.is_lost:
            return
        if self._transport.can_write_eof():
            self._transport.write_eof()
        else:
            self._transport.close()

    def close(self) -> None:
        """Send what is queued, then close."""
        # Closed twice, a TLS transport of Python 3.11 forgets its protocol, and `abort` then raises.
        if not self._transport.is_closing():
            self._transport.close()

    async def wait_lost(self) -> None:
        """Return when the connection is closed, by either side, and nothing is queued any more."""
        await asyncio.shield(self._lost)

    def abort(self) -> None:
        """Close at once and drop what is queued."""
        self._transport.abort()

    def reset(self) -> None:
        """Close so that the peer sees an error, also where an end of the connection would be a good end."""
        raw = cast("socket.socket | None", self._transport.get_extra_info("socket"))
        if raw is not None and raw.family != socket.AF_UNIX and not self.is_lost:
            raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self._transport.abort()

    def hand_over(self, heir: Stream) -> None:
        """Have another stream, which has lost its own connection, go on with this one's; this one is over."""
        transport = heir._transport = self._transport
        transport.set_protocol(heir)
        if self._is_paused:
            transport.resume_reading()
        heir._is_paused = heir._unread_bytes > READ_HIGH_BYTES
        if heir._is_paused:
            transport.pause_reading()
        heir.resume_writing()
        for piece in self._pieces:
            heir.data_received(piece)
        if self._is_lost:
            heir.connection_lost(ConnectionResetError("the peer is gone") if self.is_broken else None)
        elif self._at_eof:
            heir.eof_received()

    # --- inside ---------------------------------------------------------------------------------------------

    def _end_of_input(self) -> None:
        if self._at_eof:
            return
        self._at_eof = True
        self._wake_reader()
        if self._delivery is not None and not self._delivery.has_enough.done():
            self._delivery.has_enough.set_result(False)
        if self.on_eof is not None:
            self.on_eof()

    def _hand_over(self, delivery: _Delivery, data: bytes) -> None:
        try:
            wants_more = delivery.take(data)
        except Exception as error:  # noqa: BLE001 - it is for who waits, and not for the event loop
            delivery.has_enough.set_exception(error)
            return
        if not wants_more or delivery.sink.is_clogged:
            delivery.has_enough.set_result(not wants_more)

    def _wake_reader(self) -> None:
        if self._reader is not None and not self._reader.done():
            self._reader.set_result(None)

    def _read_what_is_left(self) -> None:
        """Fetch what the peer said before it stopped listening.

        A server that refuses an upload answers and closes while we still send. asyncio drops the connection
        at the first failed send and never looks at the answer; at this point the socket is still open (it is
        closed after `connection_lost`), so the answer can be had.
        """
        raw = cast("socket.socket | None", self._transport.get_extra_info("socket"))
        if raw is None or self._is_tls:
            return
        wanted = _LAST_READ_BYTES
        try:
            while wanted > 0 and (data := os.read(raw.fileno(), wanted)):
                self._pieces.append(data)
                self._unread_bytes += len(data)
                wanted -= len(data)
        except OSError:
            return  # nothing more, or the peer reset the connection
