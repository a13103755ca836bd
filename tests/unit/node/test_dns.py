"""The name server stub, against a resolver of our own on the loopback."""

import asyncio
import contextlib
import socket
import struct
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager
from ipaddress import IPv4Address
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloche_server import resolvers
from cloche_server.node import dns

pytestmark = pytest.mark.anyio

RESOLVER, STUB = "127.0.0.2", "127.0.0.3"
QUESTION = struct.pack(">6H", 0x1234, 0x0100, 1, 0, 0, 0) + b"\x07example\x03com\x00\x00\x01\x00\x01"
ANSWER = struct.pack(">6H", 0x1234, 0x8180, 1, 1, 0, 0) + QUESTION[12:] + b"an answer"


def code(answer: bytes) -> int:
    return answer[3] & 0x0F


class Resolver(asyncio.DatagramProtocol):
    """Answers as told and remembers what it was asked."""

    def __init__(self, *answers: bytes) -> None:
        self.answers = answers
        self.asked: list[bytes] = []
        self.fourth = asyncio.Event()
        self.transport: asyncio.DatagramTransport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport  # type: ignore[assignment]

    def datagram_received(self, data: bytes, addr: tuple[str, int]) -> None:
        self.asked.append(data)
        if len(self.asked) == 4:
            self.fourth.set()
        for answer in self.answers:
            self.transport.sendto(answer, addr)

    async def stream(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.asked.append(await reader.readexactly(struct.unpack(">H", await reader.readexactly(2))[0]))
        for answer in self.answers:
            writer.write(struct.pack(">H", len(answer)) + answer)
        writer.close()


@pytest.fixture
def port(monkeypatch: pytest.MonkeyPatch) -> int:
    with socket.socket(type=socket.SOCK_DGRAM) as probe:
        probe.bind((STUB, 0))
        chosen = probe.getsockname()[1]
    monkeypatch.setattr(resolvers, "PORT", chosen)
    return chosen


Serving = Callable[..., AbstractAsyncContextManager[Resolver]]


@pytest.fixture
def serving(port: int) -> Serving:
    @contextlib.asynccontextmanager
    async def serve(
        *answers: bytes, resolvers: tuple[str, ...] = (RESOLVER,), online: bool = True
    ) -> AsyncIterator[Resolver]:
        resolver = Resolver(*answers)
        loop = asyncio.get_running_loop()
        transport, _ = await loop.create_datagram_endpoint(lambda: resolver, (RESOLVER, port))
        server = await asyncio.start_server(resolver.stream, RESOLVER, port)
        stub = dns.Stub(IPv4Address(STUB), list(resolvers), lambda asker, _: online and asker == "127.0.0.1")
        try:
            async with server, asyncio.timeout(5), asyncio.TaskGroup() as tasks:
                task = tasks.create_task(stub.serve())
                await _listening(port)
                yield resolver
                task.cancel()
        finally:
            transport.close()

    return serve


async def _listening(port: int) -> None:
    while True:
        await asyncio.sleep(0)
        with contextlib.suppress(ConnectionRefusedError):
            _, writer = await asyncio.open_connection(STUB, port, local_addr=("127.0.0.8", 0))
            writer.close()
            return


async def ask(port: int, question: bytes = QUESTION, *, own: str = "127.0.0.1") -> bytes:
    loop = asyncio.get_running_loop()
    with socket.socket(type=socket.SOCK_DGRAM) as asking:
        asking.setblocking(False)
        asking.bind((own, 0))
        await loop.sock_sendto(asking, question, (STUB, port))
        return await loop.sock_recv(asking, 65_535)


async def ask_by_stream(port: int, *questions: bytes) -> list[bytes]:
    reader, writer = await asyncio.open_connection(STUB, port, local_addr=("127.0.0.1", 0))
    answers: list[bytes] = []
    with contextlib.suppress(asyncio.IncompleteReadError):
        for question in questions:
            writer.write(struct.pack(">H", len(question)) + question)
            answers.append(await reader.readexactly(struct.unpack(">H", await reader.readexactly(2))[0]))
    writer.close()
    await writer.wait_closed()
    return answers


async def test_question_is_passed_on_as_it_is(serving: Serving, port: int) -> None:
    async with serving(ANSWER) as resolver:
        assert await ask(port) == ANSWER
        assert resolver.asked == [QUESTION]


async def test_streams_are_served_too_and_more_than_once(serving: Serving, port: int) -> None:
    async with serving(ANSWER * 100) as resolver:
        assert await ask_by_stream(port, QUESTION, QUESTION) == [ANSWER * 100] * 2
        assert resolver.asked == [QUESTION] * 2


async def test_offline_sandbox_is_refused_at_once_and_nobody_is_asked(serving: Serving, port: int) -> None:
    async with serving(ANSWER, online=False) as resolver:
        answer = await ask(port)
        assert (answer[:2], code(answer)) == (QUESTION[:2], 5)
        assert code((await ask_by_stream(port, QUESTION))[0]) == 5
        assert resolver.asked == []


async def test_asker_that_is_no_sandbox_is_refused(serving: Serving, port: int) -> None:
    async with serving(ANSWER) as resolver:
        assert code(await ask(port, own="127.0.0.9")) == 5
        assert resolver.asked == []


async def test_answer_to_another_question_is_not_taken(serving: Serving, port: int) -> None:
    async with serving(b"\xff\xff" + ANSWER[2:], ANSWER):
        assert await ask(port) == ANSWER


async def test_resolver_that_is_not_there_is_passed_over(serving: Serving, port: int) -> None:
    async with serving(ANSWER, resolvers=("127.0.0.4", RESOLVER)):
        assert await ask(port) == ANSWER


async def test_no_resolver_at_all_is_a_failure_and_no_silence(serving: Serving, port: int) -> None:
    async with serving(resolvers=()):
        assert code(await ask(port)) == 2


async def test_silent_resolver_is_a_failure_in_bounded_time(
    serving: Serving, port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(resolvers, "TIMEOUT_S", 0.05)
    async with serving() as resolver:
        assert code(await ask(port)) == 2
        assert resolver.asked


@pytest.mark.parametrize("rubbish", [b"", b"x", b"x" * 11, b"x" * 2000])
async def test_rubbish_is_dropped_and_harms_nobody(serving: Serving, port: int, rubbish: bytes) -> None:
    async with serving(ANSWER) as resolver:
        with socket.socket(type=socket.SOCK_DGRAM) as asking:
            asking.sendto(rubbish, (STUB, port))
        assert await ask(port) == ANSWER
        assert await ask_by_stream(port, rubbish) == []
        assert await ask_by_stream(port, QUESTION) == [ANSWER]
        assert resolver.asked == [QUESTION] * 2


async def test_one_sandbox_cannot_use_up_the_stub(
    serving: Serving, port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Questions that hang are bounded for each asker, so that a neighbour's are still answered."""
    monkeypatch.setattr(dns, "_MAX_OF_ONE_ASKER", 4)
    async with serving() as resolver:
        loop = asyncio.get_running_loop()
        with socket.socket(type=socket.SOCK_DGRAM) as greedy:
            greedy.setblocking(False)
            greedy.bind(("127.0.0.1", 0))
            for number in range(20):
                await loop.sock_sendto(greedy, struct.pack(">H", number) + QUESTION[2:], (STUB, port))
            assert code(await ask(port, own="127.0.0.9")) == 5  # comes after them, and is served at once
            await resolver.fourth.wait()
        assert len(resolver.asked) == 4


@given(st.binary(min_size=12, max_size=dns._MAX_QUESTION_BYTES), st.integers(0, 15))
def test_empty_answer_to_anything_is_an_answer(question: bytes, wanted: int) -> None:
    answer = dns._empty_answer(question, wanted)
    identifier, flags, _, answers, authorities, others = struct.unpack(">6H", answer[:12])
    assert identifier == struct.unpack(">H", question[:2])[0]
    assert flags & 0x8000
    assert flags & 0x0F == wanted
    assert (answers, authorities, others) == (0, 0, 0)
    assert len(answer) <= len(question)


def test_empty_answer_repeats_the_question() -> None:
    answer = dns._empty_answer(QUESTION + b"additional", 5)
    assert answer[12:] == QUESTION[12:]
    assert answer[4:6] == b"\0\1"
    assert answer[2] & 0x79 == QUESTION[2] & 0x79


def test_resolvers_are_the_configured_ones_else_the_hosts(tmp_path: Path) -> None:
    path = tmp_path / "resolv.conf"
    path.write_text(
        "# comment\nnameserver 192.0.2.1\nsearch x\nnameserver ::1\nnameserver\nnameserver 192.0.2.2\n"
    )
    assert resolvers.upstream_resolvers(("192.0.2.9",), path) == ["192.0.2.9"]
    assert resolvers.upstream_resolvers((), path) == ["192.0.2.1", "192.0.2.2"]
    assert resolvers.upstream_resolvers((), tmp_path / "none") == []
