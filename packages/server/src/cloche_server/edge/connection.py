"""One client's connection: request after request, each read, decided and answered for itself."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import structlog

from cloche_server.edge.answers import render
from cloche_server.edge.bodies import BodyError, request_decoder
from cloche_server.edge.forward import Gateway, forward
from cloche_server.edge.heads import read_request
from cloche_server.edge.refusal import Refusal

if TYPE_CHECKING:
    from cloche_server.edge.headers import Sender
    from cloche_server.edge.heads import RequestHead
    from cloche_server.edge.streams import Stream

HEAD_TIMEOUT_S = 10.0
"""From the first byte of a head to its last, and from the start of a connection to its first byte."""
IDLE_TIMEOUT_S = 640.0
"""How long a connection is kept for the next request; clients keep theirs for 300 s."""
LINGER_S = 2.0
"""How long to go on reading an upload that was refused: a close at once would destroy the answer on its
way."""
FLUSH_S = 30.0
"""How long a client may take to fetch what is left of an answer after the connection has ended for us."""
_DISCARD_BYTES = 64 * 1024

log = structlog.get_logger()


class Connection:
    """A client's connection and what is going on on it."""

    def __init__(self, gateway: Gateway, stream: Stream, sender: Sender) -> None:
        """Take over a connection that is just open.

        Args:
            gateway: Where requests go.
            stream: The connection.
            sender: Who is at its other end.
        """
        self._gateway = gateway
        self._stream = stream
        self._sender = sender
        self._is_idle = True
        self._is_stopping = False

    async def run(self) -> None:
        """Serve until either side ends the connection. Leaves it closed."""
        try:
            timeout_s = HEAD_TIMEOUT_S
            while not self._is_stopping and await self._serve_one(timeout_s):
                timeout_s = IDLE_TIMEOUT_S
            self._stream.close()
            async with asyncio.timeout(FLUSH_S):
                await self._stream.wait_lost()
        except TimeoutError:
            return
        except Exception:
            log.exception("edge.connection_failed")
        finally:
            self._stream.abort()

    def stop(self) -> None:
        """Take no further request; an idle connection is closed at once."""
        self._is_stopping = True
        if self._is_idle:
            self._stream.close()

    async def _serve_one(self, timeout_s: float) -> bool:
        """Serve one request; False when it was the last."""
        request: RequestHead | None = None
        try:
            async with asyncio.timeout(timeout_s):
                await self._stream.wait_readable()
            self._is_idle = False
            request = await self._read_head()
            if request is None:
                return False
            reuse = await forward(self._gateway, self._stream, request, self._sender)
            if not reuse and request.has_body:
                await self._linger()
        except Refusal as refusal:
            reuse = await self._refuse(refusal, request)
        self._is_idle = True
        return reuse

    async def _read_head(self) -> RequestHead | None:
        try:
            async with asyncio.timeout(HEAD_TIMEOUT_S):
                return await read_request(self._stream)
        except TimeoutError:
            raise Refusal(408, "the request head took too long", closes=True) from None

    async def _refuse(self, refusal: Refusal, request: RequestHead | None) -> bool:
        keeps = (
            request is not None
            and not refusal.closes
            and not request.closes
            and await self._discard_body(request)
        )
        self._stream.write(render(refusal, request, closes=not keeps))
        if not keeps:
            await self._linger()
        return keeps

    async def _discard_body(self, request: RequestHead) -> bool:
        """Read past a body if that is cheap; False when the connection cannot be used again."""
        if not request.has_body:
            return True
        if b"expect" in request.values:
            return False  # the client may have sent none of it, or be about to
        decoder = request_decoder(request)
        left = _DISCARD_BYTES
        try:
            async with asyncio.timeout(1.0):
                while not decoder.is_done and left > 0:
                    data = await self._stream.read()
                    if not data:
                        return False
                    decoder.feed(data)
                    left -= len(data)
        except (TimeoutError, BodyError):
            return False
        self._stream.unread(decoder.rest)
        return decoder.is_done

    async def _linger(self) -> None:
        """End our side, then read and drop what the client still sends, for a moment (RFC 9112, 9.6)."""
        if self._stream.is_lost:
            return
        if not self._stream.is_tls:
            self._stream.write_eof()
        try:
            async with asyncio.timeout(LINGER_S):
                while await self._stream.read():
                    pass
        except TimeoutError:
            return
