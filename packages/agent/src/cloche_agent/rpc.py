"""Connect calls: from an HTTP request to a method of a service and back."""

from __future__ import annotations

import asyncio
import base64
import binascii
import logging
import zlib
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Iterable
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any, TypeVar

from cloche_agent.http import AbortConnection, Headers, Request, Response
from cloche_wire import connect, proto_json
from cloche_wire.errors import (
    ClocheError,
    DeadlineExceeded,
    Internal,
    InvalidArgument,
    TooLarge,
    Unauthenticated,
    Unimplemented,
)
from cloche_wire.messages.schema import Message, Rpc

log = logging.getLogger(__name__)

Q = TypeVar("Q", bound=Message)
R = TypeVar("R", bound=Message)

_LARGEST_MESSAGE_BYTES = 16 << 20
_DEFAULT_KEEPALIVE_S = 90.0


@dataclass(frozen=True, slots=True)
class Call:
    """What comes with a call besides its message."""

    user: str | None
    """Name from Basic authorization; None for the sandbox's default user."""
    deadline: float | None
    """Time of the event loop after which the answer is not wanted any more."""
    keepalive_s: float
    """Silence on a stream after which the client wants to hear something."""
    headers: Headers
    """Of the request."""
    answer_headers: list[tuple[str, str]]
    """Further headers of the answer. A streaming method adds to them before it returns its frames."""


Frames = AsyncGenerator[bytes, None]
"""Enveloped messages; one item may hold several."""

Unary = Callable[[Q, Call], Awaitable[R]]
ServerStream = Callable[[Q, Call], Frames]
ClientStream = Callable[[AsyncIterator[Q], Call], Awaitable[R]]


def frame(message: Message) -> bytes:
    """One message of a stream, enveloped."""
    return connect.encode_envelope(0, proto_json.encode(message))


class Router:
    """The methods that are served, by path."""

    def __init__(self) -> None:
        """Serve nothing yet."""
        self._routes: dict[str, Callable[[Request, Call], Awaitable[Response]]] = {}

    def unary(self, rpc: Rpc, request_type: type[Q], method: Unary[Q, Any]) -> None:
        """Serve a method that takes one message and gives one."""

        async def serve(request: Request, call: Call) -> Response:
            _require(request, connect.UNARY_JSON)
            try:
                message = proto_json.decode(request_type, await _unary_body(request))
                async with asyncio.timeout_at(call.deadline):
                    answer = await method(message, call)
            except TimeoutError:
                return _unary_error(_deadline_exceeded())
            except ClocheError as error:
                return _unary_error(error)
            return Response(200, [("content-type", connect.UNARY_JSON)], proto_json.encode(answer))

        self._routes[rpc.path] = serve

    def server_stream(self, rpc: Rpc, request_type: type[Q], method: ServerStream[Q]) -> None:
        """Serve a method that takes one message and gives many. The method keeps the deadline itself."""

        async def serve(request: Request, call: Call) -> Response:
            _require(request, connect.STREAM_JSON)

            # Nothing is answered before the request is complete: the Python client (connectrpc 0.12 over
            # pyqwest) stops sending its message when the head of an answer overtakes it.
            try:
                messages = [message async for message in _messages(request, request_type)]
                if len(messages) != 1:
                    raise InvalidArgument(f"expected one message, got {len(messages)}")
                frames = method(messages[0], call)
            except ClocheError as error:
                return _stream(_failed(error))
            return _stream(frames, call.answer_headers)

        self._routes[rpc.path] = serve

    def client_stream(self, rpc: Rpc, request_type: type[Q], method: ClientStream[Q, Any]) -> None:
        """Serve a method that takes many messages and gives one when the client has ended its side."""

        async def serve(request: Request, call: Call) -> Response:
            _require(request, connect.STREAM_JSON)

            try:
                async with asyncio.timeout_at(call.deadline):
                    answer = await method(_messages(request, request_type), call)
            except TimeoutError:
                return _stream(_failed(_deadline_exceeded()))
            except ClocheError as error:
                return _stream(_failed(error))
            return _stream(_single(frame(answer)))

        self._routes[rpc.path] = serve

    async def handle(self, request: Request) -> Response:
        """Answer one call; authorization is the caller's duty."""
        route = self._routes.get(request.path)
        if route is None:
            return _unary_error(Unimplemented(f"no such method: {request.path}"), status=404)
        if request.method != "POST":
            return Response(405, [("allow", "POST")])
        try:
            call = _call(request)
        except ClocheError as error:
            is_stream = _content_type(request) == connect.STREAM_JSON
            return _stream(_failed(error)) if is_stream else _unary_error(error)
        return await route(request, call)


def _deadline_exceeded() -> DeadlineExceeded:
    return DeadlineExceeded("deadline exceeded")


def _call(request: Request) -> Call:
    timeout_ms = connect.parse_timeout_ms(request.headers.get(connect.TIMEOUT_HEADER))
    deadline = None if timeout_ms is None else asyncio.get_running_loop().time() + timeout_ms / 1000
    interval = request.headers.get("keepalive-ping-interval") or ""
    keepalive_s = float(interval) if interval.isdecimal() and 0 < int(interval) < 1 << 31 else None
    return Call(basic_user(request), deadline, keepalive_s or _DEFAULT_KEEPALIVE_S, request.headers, [])


def basic_user(request: Request) -> str | None:
    """User name of a Basic authorization, or None.

    Raises:
        Unauthenticated: There is such a header, and it is malformed.
    """
    header = request.headers.get("authorization")
    if header is None or not header.lower().startswith("basic "):
        return None
    try:
        name, colon, _ = base64.b64decode(header[6:].strip(), validate=True).decode().partition(":")
    except (binascii.Error, ValueError) as error:
        raise Unauthenticated("malformed authorization header") from error
    return name or None if colon else None


def _require(request: Request, content_type: str) -> None:
    found = _content_type(request)
    if found != content_type:
        raise _UnsupportedMediaType(f"content type is not {content_type}: {found}")


def _content_type(request: Request) -> str:
    return (request.headers.get("content-type") or "").partition(";")[0].strip().lower()


class _UnsupportedMediaType(InvalidArgument):
    http_status = 415


async def _unary_body(request: Request) -> bytes:
    body = await request.read(_LARGEST_MESSAGE_BYTES)
    encoding = (request.headers.get("content-encoding") or "identity").lower()
    if encoding == "identity":
        return body
    if encoding != "gzip":
        raise Unimplemented(f"unknown content encoding: {encoding}")
    unpacker = zlib.decompressobj(wbits=31)
    try:
        body = unpacker.decompress(body, _LARGEST_MESSAGE_BYTES)
    except zlib.error as error:
        raise InvalidArgument("malformed gzip") from error
    if unpacker.unconsumed_tail:
        raise TooLarge(f"message larger than {_LARGEST_MESSAGE_BYTES} bytes")
    return body


async def _messages(request: Request, request_type: type[Q]) -> AsyncIterator[Q]:
    decoder = connect.EnvelopeDecoder(_LARGEST_MESSAGE_BYTES)
    async for piece in request.stream():
        for envelope in decoder.feed(piece):
            yield proto_json.decode(request_type, envelope.data)
    decoder.close()


def _unary_error(error: ClocheError, *, status: int | None = None) -> Response:
    body = connect.error_body(error)
    return Response(status or connect.http_status(error), [("content-type", connect.UNARY_JSON)], body)


async def _single(item: bytes) -> Frames:
    yield item


async def _failed(error: ClocheError) -> Frames:
    for item in ():
        yield item
    raise error


def _stream(frames: Frames, headers: Iterable[tuple[str, str]] = ()) -> Response:
    """The answer of a streaming method: always 200, what happened is told by the last envelope."""

    async def body() -> AsyncGenerator[bytes, None]:
        failure: ClocheError | None = None
        async with aclosing(frames):
            try:
                async for item in frames:
                    yield item
            except ClocheError as error:
                failure = error
            except AbortConnection:
                raise
            except Exception:
                log.exception("stream failed")
                failure = Internal("internal error")
        yield connect.end_stream(failure)

    fixed = [("content-type", connect.STREAM_JSON), ("cache-control", "no-store")]
    return Response(200, [*fixed, *headers], body())
