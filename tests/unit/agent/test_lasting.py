"""Answers that go on over another connection after a checkpoint has cut theirs."""

from __future__ import annotations

import asyncio
import errno
import socket
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from cloche_agent.http import HttpServer, Request, Response
from cloche_agent.lasting import Answers, continuing

pytestmark = pytest.mark.anyio
TOKEN = "secret"


class _CutByCheckpoint(socket.socket):
    """A listener whose connections fail as those of gVisor do after a checkpoint."""

    def accept(self) -> tuple[socket.socket, object]:
        accepted, address = super().accept()
        return _Cut(fileno=accepted.detach()), address


class _Cut(socket.socket):
    def recv(self, bufsize: int, flags: int = 0) -> bytes:
        """What has come before is read first, as in gVisor."""
        before = super().recv(bufsize, socket.MSG_PEEK).removesuffix(b"cut")
        data = super().recv(len(before) or bufsize, flags)
        if data == b"cut":
            raise ConnectionAbortedError(errno.ECONNABORTED, "Software caused connection abort")
        return data


class Agent:
    """A server with one handler: pieces of an answer, as the test gives them out."""

    def __init__(self, path: Path, answers: Answers) -> None:
        self.path = path
        self.answers = answers
        self.pieces: asyncio.Queue[bytes] = asyncio.Queue()
        self.requests: list[str] = []
        self.read: list[bytes] = []
        self.may_read = asyncio.Event()
        self.may_read.set()
        self.ended: asyncio.Queue[bool] = asyncio.Queue()
        self.ways: list[Way] = []

    async def handle(self, request: Request) -> Response:
        self.requests.append(request.path)
        await self.may_read.wait()
        self.read.append(await request.read(1000))
        return Response(body=self._body(request))

    async def _body(self, request: Request) -> AsyncIterator[bytes]:
        try:
            while piece := await self.pieces.get():
                yield piece
        finally:
            self.ended.put_nowait(request.was_cut())

    async def ask(self, name: str, path: str = "/work", *fields: str) -> Way:
        way = Way(*await asyncio.open_unix_connection(str(self.path)))
        self.ways.append(way)
        lines = [
            f"GET {path} HTTP/1.1",
            "Host: h",
            "Connection: close",
            f"cloche-answer: {name}",
            *fields,
            "",
            "",
        ]
        way.writer.write("\r\n".join(lines).encode())
        return way

    async def rest(self, name: str, offset: int, token: str = TOKEN) -> Way:
        return await self.ask("", f"/answers/{name}?from={offset}", f"X-Access-Token: {token}", "Upgrade: x")


class Way:
    """One connection."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    async def head(self) -> bytes:
        return await self.reader.readuntil(b"\r\n\r\n")

    async def cut(self, agent: Agent) -> None:
        """Have a checkpoint take it."""
        waiting = len(agent.answers.waiting())
        self.writer.write(b"cut")
        while len(agent.answers.waiting()) == waiting:  # noqa: ASYNC110 - it tells nobody
            await asyncio.sleep(0.002)
        self.writer.close()


@pytest.fixture
async def agent(tmp_path: Path) -> AsyncGenerator[Agent]:
    async with serving(tmp_path / "s", Answers()) as made:
        yield made


@asynccontextmanager
async def serving(path: Path, answers: Answers) -> AsyncGenerator[Agent]:
    made = Agent(path, answers)
    with _CutByCheckpoint(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()
        handler = continuing(answers, lambda token: token == TOKEN, made.handle)
        async with asyncio.timeout(20), asyncio.TaskGroup() as tasks:
            server = tasks.create_task(HttpServer(answers=answers).serve(listener, handler))
            yield made
            for way in made.ways:
                way.writer.close()
            server.cancel()


async def test_the_rest_of_an_answer_comes_over_another_connection(agent: Agent) -> None:
    way = await agent.ask("one")
    agent.pieces.put_nowait(b"first")
    received = await way.head() + await way.reader.readexactly(10)
    await way.cut(agent)
    agent.pieces.put_nowait(b"second")
    # The last five bytes have not arrived, and something was said meanwhile.
    rest = await agent.rest("one", len(received) - 5)
    assert (await rest.head()).startswith(b"HTTP/1.1 101")
    assert await rest.reader.readexactly(5) == received[-5:]
    assert await rest.reader.readexactly(11) == b"6\r\nsecond\r\n"
    agent.pieces.put_nowait(b"third")
    agent.pieces.put_nowait(b"")
    assert await rest.reader.read() == b"5\r\nthird\r\n0\r\n\r\n"
    assert agent.requests == ["/work"]
    assert agent.answers.kept_bytes == 0


async def test_an_answer_that_ended_while_it_had_no_connection_is_fetched(agent: Agent) -> None:
    way = await agent.ask("one")
    received = len(await way.head())
    await way.cut(agent)
    agent.pieces.put_nowait(b"")
    assert await agent.ended.get() is False
    rest = await agent.rest("one", received)
    await rest.head()
    assert await rest.reader.read() == b"0\r\n\r\n"


@pytest.mark.parametrize("missing", [0, 1])
async def test_a_request_is_served_that_came_whole_and_was_read_by_nobody_yet(
    agent: Agent, missing: int
) -> None:
    """Twin: one of which a byte is missing is not, and no other one takes its place."""
    agent.may_read.clear()
    way = Way(*await asyncio.open_unix_connection(str(agent.path)))
    agent.ways.append(way)
    head = "POST /work HTTP/1.1\r\nHost: h\r\nConnection: close\r\ncloche-answer: one\r\n"
    way.writer.write(f"{head}Content-Length: 4\r\n\r\n{'body'[missing:]}cut".encode())
    agent.pieces.put_nowait(b"")
    status = b""
    while not status or b" 409 " in status:
        rest = await agent.rest("one", 0)
        status = await rest.head()
    assert (b" 101 " in status) == (not missing), status
    if not missing:
        agent.may_read.set()
        assert (await rest.reader.read()).endswith(b"0\r\n\r\n")
        assert agent.read == [b"body"]


async def test_it_is_cut_again_and_goes_on_again(agent: Agent) -> None:
    way = await agent.ask("one")
    received = len(await way.head())
    for _ in range(3):
        await way.cut(agent)
        way = await agent.rest("one", received)
        await way.head()
    agent.pieces.put_nowait(b"")
    assert await way.reader.read() == b"0\r\n\r\n"


async def test_only_who_has_the_token_gets_it(agent: Agent) -> None:
    way = await agent.ask("one")
    await way.head()
    await way.cut(agent)
    assert (await (await agent.rest("one", 0, token="other")).head()).startswith(b"HTTP/1.1 401")


async def test_a_client_that_goes_for_good_ends_the_work(agent: Agent) -> None:
    way = await agent.ask("one")
    received = len(await way.head())
    await way.cut(agent)
    rest = await agent.rest("one", received)
    await rest.head()
    rest.writer.close()
    assert await agent.ended.get() is False
    assert (await (await agent.rest("one", 0)).head()).startswith(b"HTTP/1.1 404")


async def test_nobody_comes_and_that_is_a_client_that_has_gone(tmp_path: Path) -> None:
    async with serving(tmp_path / "s", Answers(keep_s=0.01)) as agent:
        way = await agent.ask("one")
        await way.head()
        way.writer.write(b"cut")
        assert await agent.ended.get() is False


async def test_in_a_restored_sandbox_what_waits_was_cut_at_once_and_so_is_what_comes_late(
    agent: Agent,
) -> None:
    first, second = await agent.ask("one"), await agent.ask("two")
    for way in (first, second):
        await way.head()
    await first.cut(agent)
    await agent.answers.restored()
    assert await agent.ended.get() is True
    second.writer.write(b"cut")
    assert await agent.ended.get() is True
    assert (await (await agent.rest("two", 0)).head()).startswith(b"HTTP/1.1 404")


async def test_a_request_that_never_came_is_unknown_and_is_not_served_when_it_comes_late(
    agent: Agent,
) -> None:
    head = await (await agent.rest("one", 0)).head()
    assert head.startswith(b"HTTP/1.1 404")
    assert b"cloche-answer: unknown" in head
    late = await agent.ask("one")
    assert await late.reader.read() == b""
    assert agent.requests == []


async def test_one_with_a_connection_is_told_as_a_conflict(agent: Agent) -> None:
    way = await agent.ask("one")
    await way.head()
    assert (await (await agent.rest("one", 0)).head()).startswith(b"HTTP/1.1 409")


async def test_what_is_kept_is_bounded_and_a_gap_is_told(agent: Agent) -> None:
    way = await agent.ask("one")
    head = await way.head()
    for _ in range(40):
        agent.pieces.put_nowait(b"x" * 65536)
    size = 40 * len(b"10000\r\n" + b"x" * 65536 + b"\r\n")
    await way.reader.readexactly(size)
    await way.cut(agent)
    assert agent.answers.kept_bytes < 2 << 20
    assert (await (await agent.rest("one", len(head))).head()).startswith(b"HTTP/1.1 404")
    assert (await (await agent.rest("one", len(head) + size)).head()).startswith(b"HTTP/1.1 101")
