"""HTTP/1.1 server of the agent: h11 for the protocol, one asyncio protocol object per connection.

One task serves one connection, request after request. When the peer goes away, that task is cancelled, so a
handler or a body iterator sees CancelledError at its await and cleans up. Nothing here buffers without bound:
reading from the socket stops while a handler lags behind, and a body iterator is not asked for more while the
peer does not read.
"""

from __future__ import annotations

import asyncio
import json
import logging
import socket
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol, cast
from urllib.parse import parse_qsl, unquote

import h11

from cloche_wire.errors import ClocheError, Internal, InvalidArgument, ResourceExhausted, TooLarge

if TYPE_CHECKING:
    from cloche_agent.lasting import Answer, Answers

log = logging.getLogger(__name__)

_READ_AHEAD_BYTES = 256 * 1024
_WRITE_AHEAD_BYTES = 64 * 1024
_SEND_BUFFER_BYTES = 256 * 1024
"""The kernel doubles it: a piece of a file leaves at once then, with no rest that waits for another turn."""
_LARGEST_HEAD_BYTES = 64 * 1024
_BACKLOG = 1024
"""Connections that may come in one moment; further ones try again after 20 ms."""
_MOST_CONNECTIONS = 4096
"""At once, by one listener. A stream takes four descriptors with its process, and `__main__` has 20,000."""
_LOOPBACK = "127."
_DISCARD_S = 10.0
"""How long the rest of a request body is read and dropped after an early answer, so that the peer sees the
answer."""


class AbortConnection(Exception):  # noqa: N818 - an order to the server, not an error
    """Raised by a handler or a body iterator: cut the connection at once, with no end of the answer."""


class Headers:
    """Header fields of a request; names are matched without regard to case."""

    __slots__ = ("_fields",)

    def __init__(self, fields: Iterable[tuple[str, str]]) -> None:
        """Keep the fields in the order of arrival, names in lower case."""
        self._fields = [(name.lower(), value) for name, value in fields]

    def get(self, name: str) -> str | None:
        """First value of the field, or None."""
        wanted = name.lower()
        for known, value in self._fields:
            if known == wanted:
                return value
        return None

    def get_all(self, name: str) -> list[str]:
        """Every value of the field, in order."""
        wanted = name.lower()
        return [value for known, value in self._fields if known == wanted]

    def items(self) -> list[tuple[str, str]]:
        """Every field as (lower-case name, value)."""
        return list(self._fields)


@dataclass(slots=True)
class Request:
    """One request, its body not read yet."""

    method: str
    path: str
    """Percent-decoded, without the query."""
    query: list[tuple[str, str]]
    """Form-decoded: `+` is a space."""
    headers: Headers
    receive: Callable[[], Awaitable[bytes]]
    """Next piece of the body; empty at its end."""
    was_cut: Callable[[], bool] = bool
    """Whether its connection has been taken away by a checkpoint: no client of it has gone."""

    def parameter(self, name: str) -> str | None:
        """First query parameter of that name, or None."""
        for known, value in self.query:
            if known == name:
                return value
        return None

    async def read(self, limit_bytes: int) -> bytes:
        """Whole body.

        Raises:
            TooLarge: The body is longer than `limit_bytes`.
        """
        pieces: list[bytes] = []
        total = 0
        while piece := await self.receive():
            total += len(piece)
            if total > limit_bytes:
                raise TooLarge(f"request body is larger than {limit_bytes} bytes")
            pieces.append(piece)
        return b"".join(pieces)

    async def stream(self) -> AsyncIterator[bytes]:
        """Pieces of the body as they arrive; none is empty."""
        while piece := await self.receive():
            yield piece


class Successor(Protocol):
    """What a connection is handed to that has switched protocols."""

    async def join(self, client: asyncio.Transport, early: bytes) -> None:
        """Serve it to its end; reading is paused, and `early` has come already."""
        ...

    def close(self) -> None:
        """Give up what it holds, also where it was never joined."""
        ...


@dataclass(slots=True)
class Response:
    """One answer. A body that is an iterator is sent chunked, unless the headers give its length."""

    status: int = 200
    headers: list[tuple[str, str]] = field(default_factory=list[tuple[str, str]])
    body: bytes | AsyncIterator[bytes] = b""
    tunnel: Successor | None = None
    """With status 101 and without a body: what the connection is joined to."""


Handler = Callable[[Request], Awaitable[Response]]


def json_response(value: object, status: int = 200) -> Response:
    """`value` as a JSON answer."""
    body = json.dumps(value, separators=(",", ":"), ensure_ascii=False).encode("utf-8", "replace")
    return Response(status, [("content-type", "application/json")], body)


def error_response(error: ClocheError) -> Response:
    """The JSON form of an error that E2B clients read: `code` repeats the status."""
    return json_response({"code": error.http_status, "message": str(error)}, error.http_status)


def open_to_browsers(handler: Handler) -> Handler:
    """Wrap `handler` so that pages of any origin may call it: answers pre-flights, marks every answer."""

    async def handle(request: Request) -> Response:
        if request.method == "OPTIONS" and request.headers.get("access-control-request-method"):
            asked = request.headers.get("access-control-request-headers") or "*"
            allowed = "GET, HEAD, POST, PUT, PATCH, DELETE"
            fields = [("allow-methods", allowed), ("allow-headers", asked), ("max-age", "7200")]
            answer = Response(204, [(f"access-control-{name}", value) for name, value in fields])
        else:
            try:
                answer = await handler(request)
            except ClocheError as error:
                answer = error_response(error)
        answer.headers.append(("access-control-allow-origin", "*"))
        answer.headers.append(("access-control-expose-headers", "*"))
        return answer

    return handle


def listen_on(port: int) -> socket.socket:
    """A socket for `HttpServer.serve` on a TCP port of every IPv4 address of this network, close-on-exec.

    Raises:
        OSError: The port is taken.
    """
    # The protocol is named: by it asyncio knows TCP, and has the connections send a small answer at once.
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(("", port))
    except OSError:
        listener.close()
        raise
    return listener


class HttpServer:
    """Serves one handler on listening sockets."""

    def __init__(self, max_connections: int = _MOST_CONNECTIONS, answers: Answers | None = None) -> None:
        """Serve nothing yet.

        Args:
            max_connections: Further ones are answered with 429 and closed.
            answers: Has those that are to outlast a checkpoint.
        """
        self._max_connections = max_connections
        self._answers = answers
        self._connections = 0

    async def serve(
        self, listener: socket.socket, handler: Handler, *, inside: Handler | None = None
    ) -> None:
        """Accept connections until cancelled; then every connection is cut.

        Args:
            listener: Taken over.
            handler: Of every request.
            inside: Instead of it, of those that programs of this very network send.
        """
        loop = asyncio.get_running_loop()
        listener.setblocking(False)
        async with asyncio.TaskGroup() as connections:

            def accept() -> asyncio.Protocol:
                if self._connections >= self._max_connections:
                    return _Surplus()
                self._connections += 1
                connection = _Connection(connections, handler, inside or handler, self._answers)
                connection.on_lost = self._forget_one
                return connection

            server = await loop.create_server(accept, sock=listener, backlog=_BACKLOG)
            try:
                await server.serve_forever()
            finally:
                server.close()

    def _forget_one(self) -> None:
        self._connections -= 1


def _is_from_here(transport: asyncio.BaseTransport) -> bool:
    """Whether both ends of a connection are of this network; also when that cannot be told any more.

    A loopback address at either end is enough: who is here may choose each of the two by itself.
    """
    ends = transport.get_extra_info("peername"), transport.get_extra_info("sockname")
    if None in ends:
        return True
    peer, own = (address[0] for address in ends)
    return peer == own or peer.startswith(_LOOPBACK) or own.startswith(_LOOPBACK)


class _Surplus(asyncio.Protocol):
    """A connection too many: a call on it is refused, in words that every client takes for "later"."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        # Only now: a Unix socket that is closed with something unread on it breaks the peer's connection.
        del data
        error = ResourceExhausted("too many connections to this sandbox")
        body = json.dumps({"code": error.http_status, "message": str(error)})
        head = "HTTP/1.1 429 Too Many Requests\r\ncontent-type: application/json\r\nretry-after: 1\r\n"
        head += f"content-length: {len(body)}\r\nconnection: close\r\n\r\n"
        self._transport.write((head + body).encode())
        self._transport.close()


class _Connection(asyncio.Protocol):
    """One connection: bytes in through the callbacks, requests served by `_serve` in a task of the server."""

    def __init__(
        self, tasks: asyncio.TaskGroup, handler: Handler, inside: Handler, answers: Answers | None
    ) -> None:
        self._tasks = tasks
        self._answers = answers
        self._answer: Answer | None = None
        self._handler = handler
        self._inside = inside
        self._h11 = h11.Connection(h11.SERVER, max_incomplete_event_size=_LARGEST_HEAD_BYTES)
        self._arrived = asyncio.Event()
        self._writable = asyncio.Event()
        self._writable.set()
        self._pulled: deque[h11.Event] = deque()
        """Of a request that came whole before its connection was cut: what nobody has read yet."""
        self._unread_bytes = 0
        self._reading = True
        self._was_cut = False
        self.on_lost: Callable[[], None] | None = None

    # --- callbacks of the event loop

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._connection = cast("asyncio.Transport", transport)  # create_server only makes stream transports
        self._transport: asyncio.Transport | Answer = self._connection
        self._restores = 0 if self._answers is None else self._answers.restores
        self._transport.set_write_buffer_limits(high=_WRITE_AHEAD_BYTES)
        connection: socket.socket = transport.get_extra_info("socket")
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _SEND_BUFFER_BYTES)
        if connection.family == socket.AF_INET and _is_from_here(transport):
            self._handler = self._inside
        self._task = self._tasks.create_task(self._run())

    def data_received(self, data: bytes) -> None:
        self._h11.receive_data(data)
        self._unread_bytes += len(data)
        if self._reading and self._unread_bytes > _READ_AHEAD_BYTES:
            self._reading = False
            self._transport.pause_reading()
        self._arrived.set()

    def eof_received(self) -> bool:
        # A client that closed its side has stopped listening too: no client of ours half-closes TCP.
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        # No peer causes this error. gVisor's network stack has it after a checkpoint, in the sandbox that
        # goes on and in those that are restored.
        was_cut = isinstance(exc, ConnectionAbortedError)
        if was_cut and self._answer is not None and self._can_last(self._answer):
            self._writable.clear()
            self._answer.wait()
        else:
            self.give_up(was_cut=was_cut)

    def _can_last(self, answer: Answer) -> bool:
        """Whether the client was this sandbox's, all of the request is here, and there is more to say."""
        is_same = self._answers is not None and self._answers.restores == self._restores
        return is_same and self._has_whole_request() and not answer.ended.is_set()

    def _has_whole_request(self) -> bool:
        """Whether all of it has come, also where the handler has not read it yet."""
        try:
            while self._h11.their_state is h11.SEND_BODY:
                event = self._h11.next_event()
                if event is h11.NEED_DATA:
                    return False
                self._pulled.append(cast("h11.Event", event))
        except h11.RemoteProtocolError:
            return False
        self._arrived.set()
        return True

    def go_on(self, transport: asyncio.Transport) -> None:
        """See `lasting.Owner`."""
        self._connection = transport
        transport.set_protocol(self)
        transport.resume_reading()
        self._writable.set()

    def give_up(self, *, was_cut: bool) -> None:
        """See `lasting.Owner`."""
        if self.on_lost is not None:
            self.on_lost()
        self._writable.set()
        self._was_cut = was_cut
        self._task.cancel()

    def pause_writing(self) -> None:
        self._writable.clear()

    def resume_writing(self) -> None:
        self._writable.set()

    # --- the connection's task

    async def _run(self) -> None:
        try:
            while await self._serve_one():
                self._h11.start_next_cycle()
        except AbortConnection:
            self._transport.abort()
        except h11.RemoteProtocolError as error:
            await self._refuse(error)
        except h11.LocalProtocolError:
            # Our answer broke its own framing: a body shorter or longer than the length promised.
            log.exception("answer does not fit its own headers")
            self._transport.abort()
        except Exception:
            # Reached when a body iterator fails half-way: the status is out already, so the cut is the only
            # signal left.
            log.exception("answer broken off")
            self._transport.abort()
        finally:
            self._transport.close()

    async def _refuse(self, error: h11.RemoteProtocolError) -> None:
        if self._h11.our_state in (h11.IDLE, h11.SEND_RESPONSE):
            answer = json_response(
                {"code": error.error_status_hint, "message": str(error)}, error.error_status_hint
            )
            answer.headers.append(("connection", "close"))
            await self._send(answer, head_only=False)

    async def _next_event(self) -> h11.Event | type[h11.PAUSED]:
        while True:
            event = self._pulled.popleft() if self._pulled else self._h11.next_event()
            if event is not h11.NEED_DATA:
                return cast("h11.Event | type[h11.PAUSED]", event)
            if self._h11.they_are_waiting_for_100_continue:
                go_on = h11.InformationalResponse(status_code=100, headers=[])
                self._transport.write(self._h11.send(go_on) or b"")
            self._unread_bytes = 0
            self._arrived.clear()
            if not self._reading:
                self._reading = True
                self._transport.resume_reading()
            await self._arrived.wait()

    async def _receive(self) -> bytes:
        """Next piece of the request's body, empty at its end and ever after."""
        if self._h11.their_state is not h11.SEND_BODY and not self._pulled:
            return b""
        event = await self._next_event()
        return bytes(event.data) if isinstance(event, h11.Data) else b""

    async def _serve_one(self) -> bool:
        """Serve one request; True when another may follow on this connection."""
        head = await self._next_event()
        if not isinstance(head, h11.Request):
            return False
        method = head.method.decode("ascii")
        try:
            request = self._request(method, head)
            await self._name(request)
            answer = await self._handler(request)
        except ClocheError as error:
            answer = error_response(error)
        except (AbortConnection, h11.RemoteProtocolError):
            raise
        except Exception:
            log.exception("handler failed")
            answer = error_response(Internal("internal error"))
        if answer.tunnel is not None:
            await self._switch(answer, answer.tunnel)
            return False
        await self._send(answer, head_only=method == "HEAD")
        return await self._discard_rest()

    async def _name(self, request: Request) -> None:
        """Have the answer outlast the connection, where the peer has a name for it."""
        if self._answers is None or self._answer is not None or request.headers.get("upgrade"):
            return
        name = request.headers.get(self._answers.header)
        self._answer = self._answers.begin(name, self, self._connection)
        if self._answer is not None:
            self._transport = self._answer
            if not {"content-length", "transfer-encoding"} & {name for name, _ in request.headers.items()}:
                await self._next_event()  # the end of a request without a body: all of it is here

    def _request(self, method: str, head: h11.Request) -> Request:
        raw_path, _, raw_query = head.target.decode("latin-1").partition("?")
        try:
            path = unquote(raw_path, errors="strict")
            query = parse_qsl(raw_query, keep_blank_values=True, errors="surrogateescape", max_num_fields=256)
        except ValueError as error:
            raise InvalidArgument("malformed request target") from error
        headers = Headers((name.decode("latin-1"), value.decode("latin-1")) for name, value in head.headers)
        return Request(method, path, query, headers, self._receive, lambda: self._was_cut)

    async def _send(self, answer: Response, *, head_only: bool) -> None:
        body = answer.body
        fields = [
            (name.encode("latin-1"), value.encode("latin-1", "replace")) for name, value in answer.headers
        ]
        has_body = answer.status not in (204, 304)
        if isinstance(body, bytes) and has_body and not any(name == b"content-length" for name, _ in fields):
            fields.append((b"content-length", str(len(body)).encode()))
        head = self._h11.send(h11.Response(status_code=answer.status, headers=fields)) or b""
        if isinstance(body, bytes):
            data = (
                b"" if head_only or not has_body or not body else self._h11.send(h11.Data(data=body)) or b""
            )
            self._transport.write(head + data + (self._h11.send(h11.EndOfMessage()) or b""))
            await self._writable.wait()
            return
        try:
            self._transport.write(head)
            if not head_only:
                await self._send_body(body)
        finally:
            if isinstance(body, AsyncGenerator):
                await cast("AsyncGenerator[bytes, None]", body).aclose()
        self._transport.write(self._h11.send(h11.EndOfMessage()) or b"")

    async def _switch(self, answer: Response, tunnel: Successor) -> None:
        """Hand the connection over: from here on it is another protocol's."""
        try:
            while await self._receive():
                pass
            if self._transport.is_closing():
                return  # its end is told to us
            head = h11.InformationalResponse(
                status_code=101, headers=answer.headers, reason=b"Switching Protocols"
            )
            self._transport.write(self._h11.send(head) or b"")
            self._transport.pause_reading()
            early, _ = self._h11.trailing_data
            try:
                await tunnel.join(self._connection, early)
            finally:
                if self.on_lost is not None:
                    self.on_lost()
        finally:
            tunnel.close()

    async def _send_body(self, body: AsyncIterator[bytes]) -> None:
        async for piece in body:
            if not piece:
                continue
            # The pieces of one chunk are written together: one system call in the usual case.
            self._transport.write(b"".join(self._h11.send_with_data_passthrough(h11.Data(data=piece)) or ()))
            await self._writable.wait()

    async def _discard_rest(self) -> bool:
        """Read what is left of the request; True when the connection can take another."""
        if self._h11.our_state is not h11.DONE:
            return False
        try:
            async with asyncio.timeout(_DISCARD_S):
                while self._h11.their_state is h11.SEND_BODY:
                    await self._next_event()
        except TimeoutError:
            return False
        return self._h11.their_state is h11.DONE
