"""What is behind a checkpoint: an agent by TCP whose connections are reset, and which goes on."""

import asyncio
import re
import socket
import struct
from collections.abc import Awaitable, Callable

import pytest
from tests.unit.edge.world import DAEMON, World

pytestmark = pytest.mark.anyio
HEAD = b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\n"
CONTINUED = b"HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: cloche-answer\r\n\r\n"
UNKNOWN = b"HTTP/1.1 404 Not Found\r\ncloche-answer: unknown\r\nContent-Length: 0\r\n\r\n"
GONE = b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n"
BUSY = b"HTTP/1.1 409 Conflict\r\nContent-Length: 0\r\n\r\n"

Step = Callable[[bytes, asyncio.StreamWriter], Awaitable[None]]


def says(data: bytes, *, resets: bool = False) -> Step:
    """Say this and end the connection, or have it reset as by a checkpoint."""

    async def step(_request: bytes, writer: asyncio.StreamWriter) -> None:
        writer.write(data)
        await writer.drain()
        if resets:
            reset(writer)

    return step


def reset(writer: asyncio.StreamWriter) -> None:
    connection: socket.socket = writer.get_extra_info("socket")
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()


class Agent:
    """Does one step for each connection, in order, and keeps what it was asked."""

    def __init__(self, world: World, *steps: Step) -> None:
        self.asked: list[bytes] = []
        self._world = world
        self._steps = iter(steps)

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        request = await self._world.read_request(reader)
        self.asked.append(request)
        await next(self._steps)(request, writer)

    async def answer(self, method: str = "GET", body: bytes = b"") -> bytes:
        """What a client gets of it by way of the edge."""
        self._world.ports["ione", DAEMON] = self.serve
        async with asyncio.timeout(20), self._world.running():
            await self._world.add_sandbox("ione", by_tcp=True)
            fields = ("Cloche-Answer: of-the-client",)
            try:
                return await self._world.get(f"{DAEMON}-ione.x.y", "/p", *fields, method=method, body=body)
            except ConnectionResetError:
                return b"reset"


def name(request: bytes) -> bytes:
    found = re.findall(rb"\r\nCloche-Answer: (\w{32})\r\n", request)
    assert len(found) == 1, request
    return found[0]


async def test_an_answer_goes_on_from_where_it_broke_off(world: World) -> None:
    agent = Agent(world, says(HEAD + b"01234", resets=True), says(CONTINUED + b"56789"))
    assert (await agent.answer()).endswith(b"\r\n\r\n0123456789")
    first, second = agent.asked
    assert second.startswith(b"GET /answers/%b?from=%d HTTP/1.1\r\n" % (name(first), len(HEAD) + 5))
    assert b"\r\nX-Access-Token: token-of-ione\r\n" in second
    assert b"of-the-client" not in first


async def test_it_may_be_reset_more_than_once_and_while_it_asks(world: World) -> None:
    steps = [says(b"", resets=True), says(BUSY), says(CONTINUED + HEAD + b"01", resets=True)]
    agent = Agent(world, *steps, says(CONTINUED + b"23456789"))
    assert (await agent.answer()).endswith(b"0123456789")
    assert b"?from=%d " % (len(HEAD) + 2) in agent.asked[-1]


@pytest.mark.parametrize(("method", "body"), [("GET", b""), ("POST", b"once")])
async def test_a_request_that_the_agent_has_never_seen_is_sent_again(
    world: World, method: str, body: bytes
) -> None:
    agent = Agent(world, says(b"", resets=True), says(UNKNOWN), says(HEAD + b"0123456789"))
    assert (await agent.answer(method, body)).endswith(b"0123456789")
    first, _, again = agent.asked
    assert name(first) != name(again)
    assert first.replace(name(first), name(again)) == again


@pytest.mark.parametrize("told", [GONE, b"nonsense\r\n\r\n"])
async def test_what_cannot_go_on_breaks_off_and_is_not_sent_again(world: World, told: bytes) -> None:
    agent = Agent(world, says(HEAD + b"01234", resets=True), says(told))
    assert (await agent.answer()).endswith(b"01234")
    assert len(agent.asked) == 2


async def test_a_request_whose_answer_has_begun_is_never_sent_again(world: World) -> None:
    agent = Agent(world, says(HEAD, resets=True), says(UNKNOWN))
    assert (await agent.answer()).endswith(b"Content-Length: 10\r\nConnection: close\r\n\r\n")
    assert len(agent.asked) == 2


async def test_a_sandbox_that_goes_meanwhile_ends_the_wait(world: World) -> None:
    async def goes(_request: bytes, _writer: asyncio.StreamWriter) -> None:
        world.end_sandbox("ione")
        await asyncio.Event().wait()

    agent = Agent(world, says(HEAD + b"01234", resets=True), goes)
    assert await agent.answer() == b"reset"
