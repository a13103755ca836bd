"""A connection to an agent that goes on over another one where a checkpoint has reset it.

The agent's answer is fetched from where it broke off; a request that it has never seen is sent again. Whoever
reads from the stream notices a pause, and nothing else. See: docs/adr/0021-answers-outlast-a-checkpoint.md.
"""

from __future__ import annotations

import asyncio
import secrets
from http import HTTPStatus
from typing import TYPE_CHECKING

from cloche_server.edge.heads import AnswerError, read_answer, write_head
from cloche_server.edge.streams import Stream

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from cloche_server.edge.relay import Exchange

_HEADER = b"Cloche-Answer"
_LARGEST_REQUEST_BYTES = 256 * 1024
"""What is kept of a request until the first byte of its answer."""
_PATIENCE_S = 45.0
"""For all attempts: a checkpoint may take 40 s, in which nothing answers."""
_RETRY_S = 0.02


class LastingStream(Stream):
    """See above. Until `last_with` it is like any other."""

    def __init__(self, connect: Callable[[], Awaitable[Stream]], token: str) -> None:
        """Take a way to connect anew, and the sandbox's access token."""
        super().__init__()
        self._connect = connect
        self._token = token
        self._name = secrets.token_hex(16)
        self._exchange: Exchange | None = None
        self._request: list[bytes] | None = []
        """What has been sent, as long as the agent may not have seen it; None: no longer known."""
        self._received_bytes = 0
        self._mending: asyncio.Task[None] | None = None

    def last_with(self, exchange: Exchange) -> tuple[bytes, bytes]:
        """Outlast a checkpoint as long as this exchange may; the field that names it to the agent."""
        self._exchange = exchange
        return (_HEADER, self._name.encode())

    def write(self, *pieces: bytes | memoryview) -> None:
        """See `Stream.write`."""
        super().write(*pieces)
        if self._request is not None and pieces:
            self._request.append(b"".join(pieces))
            if sum(map(len, self._request)) > _LARGEST_REQUEST_BYTES:
                self._request = None

    def data_received(self, data: bytes) -> None:
        """See `asyncio.Protocol`."""
        self._request = None
        self._received_bytes += len(data)
        super().data_received(data)

    def connection_lost(self, exc: Exception | None) -> None:
        """See `asyncio.BaseProtocol`."""
        if isinstance(exc, ConnectionResetError) and self._may_last():
            self._mending = asyncio.get_running_loop().create_task(self._mend(exc))
        else:
            super().connection_lost(exc)

    def abort(self) -> None:
        """See `Stream.abort`."""
        super().abort()
        if self._mending is not None:
            self._mending.cancel()

    def _may_last(self) -> bool:
        exchange = self._exchange
        if exchange is None or exchange.is_cut or exchange.client.is_lost:
            return False
        # A body of which more is to come has no place to go to meanwhile.
        return exchange.body_is_read and (self._received_bytes > 0 or self._request is not None)

    async def _mend(self, lost: ConnectionResetError) -> None:
        try:
            async with asyncio.timeout(_PATIENCE_S):
                while True:
                    successor = await self._successor()
                    if successor is not None:
                        break
                    await asyncio.sleep(_RETRY_S)  # reset once more, or not there yet
        except (TimeoutError, _CannotLastError, asyncio.CancelledError):
            super().connection_lost(lost)
        else:
            successor.hand_over(self)
        finally:
            self._mending = None

    async def _successor(self) -> Stream | None:
        """A connection that what is missing comes from; None: not yet.

        Raises:
            _CannotLastError: There can be none.
        """
        try:
            fresh = await self._connect()
        except OSError:
            return None
        try:
            fields = [(b"Host", b"agent"), (b"X-Access-Token", self._token.encode())]
            fields += [(b"Connection", b"Upgrade"), (b"Upgrade", _HEADER.lower())]
            target = b"/answers/%b?from=%d" % (self._name.encode(), self._received_bytes)
            fresh.write(write_head(b"GET %b HTTP/1.1" % target, fields))
            answer = await read_answer(fresh)
            if answer is not None and answer.status == HTTPStatus.SWITCHING_PROTOCOLS:
                return fresh
        except AnswerError as error:
            fresh.abort()
            raise _CannotLastError from error
        except BaseException:
            fresh.abort()
            raise
        fresh.abort()
        if answer is None or answer.status == HTTPStatus.CONFLICT:
            return None
        if answer.values.get(_HEADER.lower()) != [b"unknown"] or self._request is None:
            raise _CannotLastError
        return await self._sent_again(b"".join(self._request))

    async def _sent_again(self, request: bytes) -> Stream | None:
        """A connection with the request that the agent has not seen, and from now on refuses to see.

        Under another name, since the first is taken by that refusal.
        """
        name = secrets.token_hex(16)
        request = request.replace(self._name.encode(), name.encode(), 1)
        try:
            fresh = await self._connect()
        except OSError:
            return None
        self._name = name
        self._request = [request]
        fresh.write(request)
        return fresh


class _CannotLastError(Exception):
    """The agent says that there is nothing to go on with."""
