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
from cloche_wire import connect, proto_binary, proto_json
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
            is_binary = _is_binary(request, connect.UNARY_JSON, connect.UNARY_PROTO)
            try:
                message = _decode(request_type, await _unary_body(request), is_binary=is_binary)
                async with asyncio.timeout_at(call.deadline):
                    answer = await method(message, call)
            except TimeoutError:
                return _unary_error(_deadline_exceeded())
            except ClocheError as error:
                return _unary_error(error)
            kind = connect.UNARY_PROTO if is_binary else connect.UNARY_JSON
            return Response(200, [("content-type", kind)], _encode(answer, is_binary=is_binary))

        self._routes[rpc.path] = serve

    def server_stream(self, rpc: Rpc, request_type: type[Q], method: ServerStream[Q]) -> None:
        """Serve a method that takes one message and gives many. The method keeps the deadline itself."""

        async def serve(request: Request, call: Call) -> Response:
            is_binary = _is_binary(request, connect.STREAM_JSON, connect.STREAM_PROTO)

            # Nothing is answered before the request is complete: the Python client (connectrpc 0.12 over
            # pyqwest) stops sending its message when the head of an answer overtakes it.
            try:
                messages = [
                    message async for message in _messages(request, request_type, is_binary=is_binary)
                ]
                if len(messages) != 1:
                    raise InvalidArgument(f"expected one message, got {len(messages)}")
                frames = method(messages[0], call)
            except ClocheError as error:
                return _stream(_failed(error), is_binary=is_binary)
            if is_binary:
                frames = _in_binary(frames, rpc.response)
            return _stream(frames, is_binary=is_binary, headers=call.answer_headers)

        self._routes[rpc.path] = serve

    def client_stream(self, rpc: Rpc, request_type: type[Q], method: ClientStream[Q, Any]) -> None:
        """Serve a method that takes many messages and gives one when the client has ended its side."""

        async def serve(request: Request, call: Call) -> Response:
            is_binary = _is_binary(request, connect.STREAM_JSON, connect.STREAM_PROTO)
            try:
                async with asyncio.timeout_at(call.deadline):
                    answer = await method(_messages(request, request_type, is_binary=is_binary), call)
            except TimeoutError:
                return _stream(_failed(_deadline_exceeded()), is_binary=is_binary)
            except ClocheError as error:
                return _stream(_failed(error), is_binary=is_binary)
            body = connect.encode_envelope(0, _encode(answer, is_binary=is_binary))
            return _stream(_single(body), is_binary=is_binary)

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
            return _refused(request, error)
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


def _is_binary(request: Request, json: str, binary: str) -> bool:
    """Whether the messages of a call are binary; its answer's are then too."""
    found = _content_type(request)
    if found not in (json, binary):
        raise _UnsupportedMediaType(f"content type is neither {json} nor {binary}: {found}")
    return found == binary


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


def _decode(request_type: type[Q], data: bytes, *, is_binary: bool) -> Q:
    return proto_binary.decode(request_type, data) if is_binary else proto_json.decode(request_type, data)


def _encode(message: Message, *, is_binary: bool) -> bytes:
    return proto_binary.encode(message) if is_binary else proto_json.encode(message)


async def _messages(request: Request, request_type: type[Q], *, is_binary: bool) -> AsyncIterator[Q]:
    decoder = connect.EnvelopeDecoder(_LARGEST_MESSAGE_BYTES)
    async for piece in request.stream():
        for envelope in decoder.feed(piece):
            yield _decode(request_type, envelope.data, is_binary=is_binary)
    decoder.close()


async def _in_binary(frames: Frames, response_type: type[Message]) -> Frames:
    """The same messages in the other codec.

    Over their JSON, since that is how a piece of output is framed once for all who listen: the codec of few
    clients may cost more.
    """
    decoder = connect.EnvelopeDecoder(_LARGEST_MESSAGE_BYTES)
    async with aclosing(frames):
        async for item in frames:
            messages = [proto_json.decode(response_type, one.data) for one in decoder.feed(item)]
            yield b"".join(connect.encode_envelope(0, proto_binary.encode(one)) for one in messages)


def _unary_error(error: ClocheError, *, status: int | None = None) -> Response:
    body = connect.error_body(error)
    return Response(status or connect.http_status(error), [("content-type", connect.UNARY_JSON)], body)


async def _single(item: bytes) -> Frames:
    yield item


async def _failed(error: ClocheError) -> Frames:
    for item in ():
        yield item
    raise error


def _refused(request: Request, error: ClocheError) -> Response:
    """The answer to a call whose headers are wrong, in the form that its kind of call reads errors in."""
    kind = _content_type(request)
    if kind in (connect.STREAM_JSON, connect.STREAM_PROTO):
        return _stream(_failed(error), is_binary=kind == connect.STREAM_PROTO)
    return _unary_error(error)


def _stream(frames: Frames, *, is_binary: bool, headers: Iterable[tuple[str, str]] = ()) -> Response:
    """The answer of a streaming method: always 200, what happened is told by the last envelope, in JSON."""

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

    kind = connect.STREAM_PROTO if is_binary else connect.STREAM_JSON
    fixed = [("content-type", kind), ("cache-control", "no-store")]
    return Response(200, [*fixed, *headers], body())
