"""The HTTP server by itself, under handlers of the tests."""

from __future__ import annotations

import asyncio
import errno
import socket
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import NamedTuple

import pytest

from cloche_agent.http import AbortConnection, Handler, HttpServer, Request, Response, json_response
from cloche_wire.errors import NotFound

pytestmark = pytest.mark.anyio


class Peer(NamedTuple):
    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter

    async def ask(self, text: str) -> bytes:
        """Send, and read until the server closes or says the last chunk."""
        self.writer.write(text.replace("\n", "\r\n").encode())
        return await self.reader.read(1 << 20)


@asynccontextmanager
async def _served(
    folder: Path, handler: Handler, max_connections: int = 100, listener: socket.socket | None = None
) -> AsyncGenerator[Callable[[], Awaitable[Peer]]]:
    with listener or socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(folder / "s"))
        listener.listen()
        peers: list[Peer] = []

        async def connect() -> Peer:
            peers.append(Peer(*await asyncio.open_unix_connection(str(folder / "s"))))
            return peers[-1]

        async with asyncio.timeout(20), asyncio.TaskGroup() as tasks:
            server = tasks.create_task(HttpServer(max_connections).serve(listener, handler))
            yield connect
            for peer in peers:
                peer.writer.close()
            server.cancel()


async def _echo(request: Request) -> Response:
    body = await request.read(100_000)
    return json_response({"path": request.path, "query": request.query, "body": body.decode()})


async def test_requests_follow_each_other_on_one_connection(tmp_path: Path) -> None:
    async with _served(tmp_path, _echo) as connect:
        peer = await connect()
        first = "POST /a%20b?x=1+2&y=%2F HTTP/1.1\nHost: h\nContent-Length: 2\n\nhi"
        answer = await peer.ask(first + "GET /c HTTP/1.1\nHost: h\n\n")
        assert b'{"path":"/a b","query":[["x","1 2"],["y","/"]],"body":"hi"}' in answer
        if b'"/c"' not in answer:
            answer = await peer.reader.read(1 << 20)
        assert b'{"path":"/c","query":[],"body":""}' in answer


async def test_too_large_body_is_refused_and_the_connection_goes_on(tmp_path: Path) -> None:
    async with _served(tmp_path, _echo) as connect:
        peer = await connect()
        head = "POST / HTTP/1.1\nHost: h\nContent-Length: 200000\n\n"
        assert b" 413 " in await peer.ask(head + "x" * 200_000)
        assert b" 200 " in await peer.ask("GET / HTTP/1.1\nHost: h\n\n")


async def test_errors_have_both_forms_and_never_tell_internals(tmp_path: Path) -> None:
    async def fail(request: Request) -> Response:
        if request.path == "/known":
            raise NotFound("no such thing", hint="look elsewhere")
        raise RuntimeError("secret")

    async with _served(tmp_path, fail) as connect:
        peer = await connect()
        answer = await peer.ask("GET /known HTTP/1.1\nHost: h\n\n")
        assert answer.startswith(b"HTTP/1.1 404")
        assert answer.endswith(b'{"code":404,"message":"no such thing (hint: look elsewhere)"}')
        answer = await peer.ask("GET /unknown HTTP/1.1\nHost: h\n\n")
        assert answer.endswith(b'{"code":500,"message":"internal error"}')


@pytest.mark.parametrize(
    "text",
    [
        "GET / HTTP/1.1\n\n",
        "nonsense\n\n",
        "GET / HTTP/1.1\nHost: h\nContent-Length: x\n\n",
        "GET / HTTP/1.1\nHost: h\nX: " + "y" * 100_000,
        "GET /%ff HTTP/1.1\nHost: h\n\n",
    ],
)
async def test_malformed_request_is_refused(tmp_path: Path, text: str) -> None:
    async with _served(tmp_path, _echo) as connect:
        peer = await connect()
        answer = await peer.ask(text)
        assert answer.startswith((b"HTTP/1.1 400", b"HTTP/1.1 431")), answer


async def test_leaving_cancels_the_handler_and_closes_the_body(tmp_path: Path) -> None:
    happened: asyncio.Queue[str] = asyncio.Queue()

    async def body() -> AsyncIterator[bytes]:
        try:
            yield b"first"
            await asyncio.Event().wait()
        finally:
            happened.put_nowait("body closed")

    async def handler(request: Request) -> Response:
        if request.path == "/stream":
            return Response(body=body())
        try:
            happened.put_nowait("waiting")
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            happened.put_nowait("handler cancelled")
            raise
        return Response()

    async with _served(tmp_path, handler) as connect:
        peer = await connect()
        assert b"first" in await peer.ask("GET /stream HTTP/1.1\nHost: h\n\n")
        peer.writer.close()
        assert await happened.get() == "body closed"
        peer = await connect()
        peer.writer.write(b"GET / HTTP/1.1\r\nHost: h\r\n\r\n")
        assert await happened.get() == "waiting"
        peer.writer.close()
        assert await happened.get() == "handler cancelled"


class _CutByCheckpoint(socket.socket):
    """A listener whose connections fail as those of gVisor do after a checkpoint."""

    def accept(self) -> tuple[socket.socket, object]:
        accepted, address = super().accept()
        return _Cut(fileno=accepted.detach()), address


class _Cut(socket.socket):
    def recv(self, bufsize: int, flags: int = 0) -> bytes:
        if (data := super().recv(bufsize, flags)) == b"cut":
            raise ConnectionAbortedError(errno.ECONNABORTED, "Software caused connection abort")
        return data


@pytest.mark.parametrize("ending", [b"cut", b""])
async def test_a_checkpoint_is_told_from_a_client_that_goes(tmp_path: Path, ending: bytes) -> None:
    told: asyncio.Queue[bool] = asyncio.Queue()

    async def handler(request: Request) -> Response:
        told.put_nowait(request.was_cut())
        try:
            await asyncio.Event().wait()
        finally:
            told.put_nowait(request.was_cut())
        return Response()

    async with _served(tmp_path, handler, listener=_CutByCheckpoint(socket.AF_UNIX)) as connect:
        peer = await connect()
        peer.writer.write(b"GET / HTTP/1.1\r\nHost: h\r\n\r\n")
        assert await told.get() is False
        peer.writer.write(ending) if ending else peer.writer.close()
        assert await told.get() == (ending == b"cut")


async def test_abort_cuts_without_a_last_chunk(tmp_path: Path) -> None:
    async def body() -> AsyncIterator[bytes]:
        yield b"some"
        raise AbortConnection

    async def handler(_request: Request) -> Response:
        return Response(body=body())

    async with _served(tmp_path, handler) as connect:
        peer = await connect()
        peer.writer.write(b"GET / HTTP/1.1\r\nHost: h\r\n\r\n")
        received = b""
        try:
            while piece := await peer.reader.read(1 << 16):
                received += piece
        except ConnectionResetError:
            pass
        assert not received.endswith(b"0\r\n\r\n")


async def test_client_that_waits_for_100_is_told_to_go_on(tmp_path: Path) -> None:
    async with _served(tmp_path, _echo) as connect:
        peer = await connect()
        head = "POST / HTTP/1.1\nHost: h\nExpect: 100-continue\nContent-Length: 2\n\n"
        assert (await peer.ask(head)).startswith(b"HTTP/1.1 100")
        assert b'"body":"hi"' in await peer.ask("hi")


async def test_body_is_not_produced_faster_than_it_is_read(tmp_path: Path) -> None:
    produced = 0

    async def body() -> AsyncIterator[bytes]:
        nonlocal produced
        while True:
            produced += 1 << 16
            yield bytes(1 << 16)

    async def handler(_request: Request) -> Response:
        return Response(body=body())

    async with _served(tmp_path, handler) as connect:
        peer = await connect()
        peer.writer.write(b"GET / HTTP/1.1\r\nHost: h\r\n\r\n")
        await peer.reader.readexactly(1 << 16)
        before = -1
        while before != produced:
            before = produced
            for _ in range(100):
                await asyncio.sleep(0)
        assert produced < 8 << 20


async def test_a_connection_too_many_is_told_to_come_later(
    tmp_path: Path,
) -> None:
    async with _served(tmp_path, _echo, max_connections=2) as connect:
        first, second, third = [await connect() for _ in range(3)]
        refused = await third.ask("GET /a HTTP/1.1\nHost: h\n\n")
        assert refused.startswith(b"HTTP/1.1 429 ")
        assert b"retry-after: 1\r\n" in refused
        assert refused.endswith(b'{"code": 429, "message": "too many connections to this sandbox"}')
        assert await third.reader.read() == b""
        assert b"200" in await second.ask("GET /a HTTP/1.1\nHost: h\nConnection: close\n\n")
        assert await second.reader.read() == b""
        fourth = await connect()
        assert b"200" in await fourth.ask("GET /a HTTP/1.1\nHost: h\n\n")
        assert b"200" in await first.ask("GET /a HTTP/1.1\nHost: h\n\n")
