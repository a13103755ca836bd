"""Bytes between a connection that has switched protocols and a service of the sandbox, both ways."""

from __future__ import annotations

import asyncio
import socket
from typing import cast

_WRITE_AHEAD_BYTES = 64 * 1024


class Tunnel:
    """A connection to a service, waiting to be joined to another one."""

    def __init__(self, service: socket.socket) -> None:
        """Take over a connected socket that does not block."""
        self._service = service

    async def join(self, client: asyncio.Transport, early: bytes) -> None:
        """Carry bytes until both ends are done, or one is lost.

        Args:
            client: A transport whose reading is paused; its protocol is replaced before anything is awaited.
            early: What has come from it already.

        Leaves: both ends closed.
        """
        ended = asyncio.Event()
        outer, inner = _End(ended), _End(ended)
        outer.peer, inner.peer = inner, outer
        outer.connection_made(client)
        client.set_protocol(outer)
        try:
            await asyncio.get_running_loop().create_connection(lambda: inner, sock=self._service)
            client.resume_reading()
            if early:
                inner.transport.write(early)
            await ended.wait()
        finally:
            client.abort()
            self.close()

    def close(self) -> None:
        """Give the service up, where that has not happened."""
        self._service.close()


class _End(asyncio.Protocol):
    """One end; what arrives on it is written to its peer, which says when that is too much."""

    peer: _End
    transport: asyncio.Transport

    def __init__(self, ended: asyncio.Event) -> None:
        self._ended = ended
        self.has_ended = False
        """Nothing more comes from it."""
        self.is_lost = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)
        self.transport.set_write_buffer_limits(high=_WRITE_AHEAD_BYTES)

    def data_received(self, data: bytes) -> None:
        self.peer.transport.write(data)

    def eof_received(self) -> bool:
        self.has_ended = True
        self.peer.transport.write_eof()
        if self.peer.has_ended:
            self.transport.close()
            self.peer.transport.close()
        return True

    def pause_writing(self) -> None:
        self.peer.transport.pause_reading()

    def resume_writing(self) -> None:
        self.peer.transport.resume_reading()

    def connection_lost(self, exc: Exception | None) -> None:
        self.is_lost = True
        # Not at once: what it has said before still goes out.
        self.peer.transport.close()
        if self.peer.is_lost:
            self._ended.set()
