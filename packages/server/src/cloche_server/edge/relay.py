"""One request and its answer, passed between two connections piece by piece."""

from __future__ import annotations

import asyncio
from enum import Enum, auto
from http import HTTPStatus
from typing import TYPE_CHECKING

from cloche_server.edge.bodies import (
    BodyError,
    ChunkedDecoder,
    Decoder,
    LengthDecoder,
    Pieces,
    answer_decoder,
    encode_chunk,
    encode_end,
    request_decoder,
)
from cloche_server.edge.heads import AnswerError, AnswerHead, Fields, RequestHead, read_answer, write_head
from cloche_server.edge.refusal import Refusal
from cloche_server.edge.splice import splice

if TYPE_CHECKING:
    from collections.abc import Callable

    from cloche_server.edge.streams import Stream

_CHUNKED = (b"Transfer-Encoding", b"chunked")


class Outcome(Enum):
    """How a relay ended."""

    REUSE = auto()
    """Answered in full; the client's connection may carry the next request."""
    CLOSE = auto()
    """Nothing more can be said on the client's connection."""
    UNANSWERED = auto()
    """Nothing was sent to the client: the upstream ended before it answered, or `Exchange.refusal` says what
    is wrong."""


class Exchange:
    """One request on its way. It holds no more of it than the two connections' buffers."""

    def __init__(self, client: Stream, request: RequestHead, *, is_probe: bool = False) -> None:
        """Nothing is sent yet.

        Args:
            client: The client's connection, its reading position behind the head.
            request: The head.
            is_probe: Whether the request only asks if the sandbox lives: when it goes meanwhile, that is
                answered instead of cutting the connection.
        """
        self.client = client
        self.request = request
        self.is_probe = is_probe
        self.is_cut = False
        self.refusal: Refusal | None = None
        self.body_is_read = not request.has_body
        """Whether the client's next bytes belong to its next request."""
        self._upstream: Stream | None = None
        self._answer_has_begun = False

    @property
    def is_answered(self) -> bool:
        """Whether the client has got the beginning of an answer."""
        return self._answer_has_begun

    def watch_client(self, on_data: Callable[[], None]) -> None:
        """Have it called whenever the client sends something, until this request is over."""
        self.client.on_data = on_data

    def cut(self) -> None:
        """End both connections in the middle of whatever passes, so that no client takes it for an end."""
        self.is_cut = True
        if self._answer_has_begun or not self.is_probe:
            self.client.reset()
        if self._upstream is not None:
            self._upstream.abort()

    async def relay(
        self, upstream: Stream, fields: Fields, edit: Callable[[AnswerHead], Fields], upgrade: bytes | None
    ) -> Outcome:
        """Send the request, pass its body on, pass the answer back.

        Args:
            upstream: A fresh connection; it is closed when this returns.
            fields: The request's fields for the upstream, without framing.
            edit: Returns the fields of an answer for the client, without framing.
            upgrade: The protocol to which the upstream may switch, if any.
        """
        self._upstream = upstream
        self.client.on_eof = upstream.abort  # a client that leaves ends the work that is done for it
        try:
            if self.is_cut or self.client.at_eof:
                return Outcome.UNANSWERED
            decoder = request_decoder(self.request)
            if not self._send_request(upstream, fields, upgrade, decoder):
                return Outcome.UNANSWERED
            if self.body_is_read:
                return await self._relay_answer(upstream, edit, upgrade)
            async with asyncio.TaskGroup() as tasks:
                body = tasks.create_task(self._relay_body(upstream, decoder))
                outcome = await self._relay_answer(upstream, edit, upgrade)
                body.cancel()
            return outcome
        finally:
            self.client.on_eof = self.client.on_data = None
            upstream.abort()

    # --- request --------------------------------------------------------------------------------------------

    def _send_request(
        self, upstream: Stream, fields: Fields, upgrade: bytes | None, decoder: Decoder
    ) -> bool:
        """Send the head, and with it what has come of the body; a small request is one packet and no task."""
        request = self.request
        fields = list(fields)
        if b"transfer-encoding" in request.values:
            fields.append(_CHUNKED)
        elif b"content-length" in request.values:
            fields.append((b"Content-Length", request.values[b"content-length"][0]))
        if upgrade is None:
            # One request per connection: nothing to mix up between tenants.
            fields.append((b"Connection", b"close"))
        else:
            fields += [(b"Connection", b"Upgrade"), (b"Upgrade", upgrade)]
        head = write_head(b"%b %b HTTP/1.1" % (request.method, request.target), fields)
        try:
            upstream.write(head, *self._next_of_body(decoder, self.client.take()))
        except BodyError as error:
            self._refuse_body(error, upstream)
            return False
        expects = b"100-continue" in request.tokens(b"expect") and not request.is_http10
        if expects and not self.body_is_read:
            self.client.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        return True

    async def _relay_body(self, upstream: Stream, decoder: Decoder) -> None:
        def take(data: bytes) -> bool:
            upstream.write(*self._next_of_body(decoder, data))
            return not self.body_is_read

        try:
            if not await self.client.deliver(take, upstream):
                upstream.abort()  # the client left in the middle: the upstream must not see an end
        except BodyError as error:
            self._refuse_body(error, upstream)
        except ConnectionResetError:
            return  # the upstream takes no more; it may have answered before, which the other half finds

    def _next_of_body(self, decoder: Decoder, data: bytes) -> Pieces:
        """Return what the upstream gets for `data`; what lies behind the end of the body goes back."""
        if self.body_is_read:
            self.client.unread(data)
            return ()
        pieces = decoder.feed(data)
        if isinstance(decoder, ChunkedDecoder):
            pieces = encode_chunk(pieces)
            if decoder.is_done:
                pieces = [*pieces, encode_end([])]
        if decoder.is_done:
            self.client.unread(decoder.rest)
            self.body_is_read = True
        return pieces

    def _refuse_body(self, error: BodyError, upstream: Stream) -> None:
        self.refusal = Refusal(400, f"malformed request body: {error}", closes=True)
        upstream.abort()

    # --- answer ---------------------------------------------------------------------------------------------

    async def _relay_answer(
        self, upstream: Stream, edit: Callable[[AnswerHead], Fields], upgrade: bytes | None
    ) -> Outcome:
        try:
            answer = await self._final_head(upstream, upgrade)
            if answer is None:
                return Outcome.UNANSWERED
            self._answer_has_begun = True
            if answer.status == HTTPStatus.SWITCHING_PROTOCOLS:
                return await self._switch(upstream, edit(answer), upgrade)
            return await self._pass_answer(upstream, answer, edit(answer))
        except AnswerError as error:
            self.refusal = Refusal(502, f"The service did not answer in HTTP: {error}")
            return Outcome.UNANSWERED
        except BodyError:
            return self._break_off()
        except ConnectionResetError:
            upstream.abort()  # the client left
            return Outcome.CLOSE

    async def _final_head(self, upstream: Stream, upgrade: bytes | None) -> AnswerHead | None:
        while True:
            answer = await read_answer(upstream)
            if answer is None or answer.status >= HTTPStatus.OK:
                return answer
            if answer.status == HTTPStatus.SWITCHING_PROTOCOLS:
                if upgrade is None:
                    raise AnswerError("it switches protocols without being asked")
                return answer

    async def _switch(self, upstream: Stream, fields: Fields, upgrade: bytes | None) -> Outcome:
        fields = [*fields, (b"Connection", b"Upgrade"), (b"Upgrade", upgrade or b"")]
        self.client.on_eof = None  # a half-closed side is passed on as such
        self.client.write(write_head(b"HTTP/1.1 101 Switching Protocols", fields))
        await splice(self.client, upstream)
        return Outcome.CLOSE

    async def _pass_answer(self, upstream: Stream, answer: AnswerHead, fields: Fields) -> Outcome:
        decoder = answer_decoder(self.request.method, answer)
        framing = self._framing(answer, decoder)
        is_chunked = framing == _CHUNKED
        reuse = self.body_is_read and not self.request.closes
        fields = [*fields, *([framing] if framing else []), *([] if reuse else [(b"Connection", b"close")])]
        out: list[bytes | memoryview] = [
            write_head(b"HTTP/1.1 %d %b" % (answer.status, answer.reason), fields)
        ]

        def take(data: bytes) -> bool:
            pieces = decoder.feed(data)
            out.extend(encode_chunk(pieces) if is_chunked else pieces)
            if not decoder.is_done:  # else the last piece and the end of the body leave together
                self.client.write(*out)
                out.clear()
            return not decoder.is_done

        data = upstream.take()  # what came along with the head leaves with the head
        if not decoder.is_done and (not data or take(data)):
            self.client.write(*out)
            out.clear()
            ended = not await upstream.deliver(take, self.client)
            if ended and (self.is_cut or upstream.is_broken or not decoder.ends_with_connection):
                return self._break_off()
        if is_chunked and self._has_body(answer):
            out.append(encode_end(decoder.trailers if isinstance(decoder, ChunkedDecoder) else []))
        self.client.write(*out)
        await self.client.drain()
        return Outcome.REUSE if reuse else Outcome.CLOSE

    def _has_body(self, answer: AnswerHead) -> bool:
        return self.request.method != b"HEAD" and answer.status not in {204, 304}

    def _framing(self, answer: AnswerHead, decoder: Decoder) -> tuple[bytes, bytes] | None:
        """Return the field that tells the client where the body ends; None where no field is needed."""
        length = answer.values.get(b"content-length")
        if length is not None and answer.status != HTTPStatus.NO_CONTENT:
            return (b"Content-Length", length[0])
        if self.request.is_http10 or (
            isinstance(decoder, LengthDecoder) and b"transfer-encoding" not in answer.values
        ):
            return None
        return None if answer.status == HTTPStatus.NO_CONTENT else _CHUNKED

    def _break_off(self) -> Outcome:
        """Send what is queued and end the connection where the client still expects more of the body."""
        if self.request.is_http10:
            self.client.reset()  # here the end of the connection would be the end of the body
        else:
            self.client.close()
        return Outcome.CLOSE
