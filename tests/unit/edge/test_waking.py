"""Paused sandboxes wake on traffic, whoever asks and for what; agents that are reached by TCP."""

import asyncio
import json
import socket
from pathlib import Path
from typing import cast

import anyio
import msgspec
import pytest
from tests.unit.edge.world import DAEMON, INTERPRETER, World

from cloche_server.edge import forward, upstream, waking
from cloche_server.edge.refusal import Refusal
from cloche_server.edge.route_table import RouteTable
from cloche_server.edge.waking import Waker
from cloche_server.node.messages import Route
from cloche_wire.errors import Internal, ResourceExhausted, SandboxNotFound, SnapshotUnusable

pytestmark = pytest.mark.anyio


def status(answer: bytes) -> int:
    return int(answer.split(b" ", 2)[1])


def body(answer: bytes) -> bytes:
    return answer.partition(b"\r\n\r\n")[2]


async def ask(world: World, sandbox: str = "ione", port: int = DAEMON, path: str = "/x") -> bytes:
    return await world.get("127.0.0.1", path, f"E2b-Sandbox-Id: {sandbox}", f"E2b-Sandbox-Port: {port}")


@pytest.mark.parametrize("port", [DAEMON, INTERPRETER, 8080])
async def test_a_request_for_a_paused_sandbox_is_held_and_arrives_whole(world: World, port: int) -> None:
    world.ports["ione", 8080] = world.echo
    world.wake_gate = asyncio.Event()
    async with world.running():
        await world.add_sandbox("ione", is_paused=True)
        async with asyncio.TaskGroup() as tasks:
            fields = ("E2b-Sandbox-Id: ione", f"E2b-Sandbox-Port: {port}")
            payload = bytes(range(256)) * 1024
            asked = tasks.create_task(world.get("127.0.0.1", "/x", *fields, method="POST", body=payload))
            await world.wake_asked.wait()
            assert not world.seen
            world.wake_gate.set()
    assert status(asked.result()) == 200
    assert body(asked.result()).endswith(payload)
    assert world.wakes == ["ione"]


async def test_many_requests_wake_it_once(world: World) -> None:
    world.wake_gate = asyncio.Event()
    async with world.running():
        await world.add_sandbox("ione", is_paused=True)
        async with asyncio.TaskGroup() as tasks:
            asked = [tasks.create_task(ask(world, path=f"/{number}")) for number in range(20)]
            await world.wake_asked.wait()
            world.wake_gate.set()
        assert [status(one.result()) for one in asked] == [200] * 20
        assert status(await ask(world)) == 200
    assert world.wakes == ["ione"]


async def test_a_probe_of_its_health_wakes_it_like_all_traffic(world: World) -> None:
    async with world.running():
        await world.add_sandbox("ione", is_paused=True)
        assert status(await ask(world, path="/health")) == 200
    assert world.wakes == ["ione"]


async def test_clients_that_give_a_token_only_wake_it_too(world: World) -> None:
    async with world.running():
        await world.add_sandbox("ione", is_paused=True)
        answer = await world.get("127.0.0.1", "/files?path=a", "X-Access-Token: token-of-ione")
        assert status(answer) == 200
    assert world.wakes == ["ione"]


async def test_who_may_not_reach_it_does_not_wake_it(world: World) -> None:
    async with world.running():
        await world.add_sandbox("ione", is_paused=True, traffic_token="secret")
        assert status(await ask(world, port=8080)) == 403
        assert status(await ask(world, path="/init")) == 404
    assert not world.wakes


@pytest.mark.parametrize(
    ("failure", "code", "part"),
    [
        (SandboxNotFound("no such sandbox"), 502, "The sandbox was not found"),
        (ResourceExhausted("no slot is free"), 429, "no slot is free"),
        (SnapshotUnusable("image is truncated"), 409, "image is truncated"),
        (Internal("wake failed"), 500, "cannot be resumed"),
    ],
)
async def test_why_it_does_not_wake_is_told(world: World, failure: Internal, code: int, part: str) -> None:
    world.fails_wake = failure
    async with world.running():
        await world.add_sandbox("ione", is_paused=True)
        answer = await ask(world)
    assert status(answer) == code
    assert part in json.loads(body(answer))["message"]


async def test_a_node_that_takes_too_long_is_a_504(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(waking, "WAKE_TIMEOUT_S", 0.01)
    world.wake_gate = asyncio.Event()
    async with world.running():
        await world.add_sandbox("ione", is_paused=True)
        assert status(await ask(world)) == 504
        world.wake_gate.set()


async def test_one_that_is_killed_while_it_wakes_is_not_found(world: World) -> None:
    world.wake_gate = asyncio.Event()
    async with world.running():
        await world.add_sandbox("ione", is_paused=True)
        async with asyncio.TaskGroup() as tasks:
            asked = tasks.create_task(ask(world))
            await world.wake_asked.wait()
            world.end_sandbox("ione")
            world.wake_gate.set()
    assert status(asked.result()) == 502
    assert json.loads(body(asked.result()))["message"] == "The sandbox was not found"


async def test_a_request_under_way_is_cut_when_its_sandbox_is_paused(world: World) -> None:
    reached = asyncio.Event()

    async def silent(reader: asyncio.StreamReader, _: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        reached.set()
        await reader.read()

    async def cut_off() -> None:
        with pytest.raises(ConnectionResetError):
            await ask(world)

    world.ports["ione", DAEMON] = silent
    async with world.running():
        await world.add_sandbox("ione", by_tcp=True)
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(cut_off())
            await reached.wait()
            world.turn("ione", is_paused=True)


async def test_a_request_that_cannot_connect_since_it_is_being_paused_waits_too(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun = asyncio.Event()
    connect = upstream._connect_tcp

    async def hang_once(address: str, stream: upstream.Stream | None = None) -> upstream.Stream:
        monkeypatch.setattr(upstream, "_connect_tcp", connect)
        begun.set()
        return await asyncio.get_running_loop().create_future()

    monkeypatch.setattr(upstream, "_connect_tcp", hang_once)
    async with world.running():
        await world.add_sandbox("ione", by_tcp=True)
        async with asyncio.TaskGroup() as tasks:
            asked = tasks.create_task(ask(world))
            await begun.wait()
            world.turn("ione", is_paused=True)
    assert status(asked.result()) == 200
    assert world.wakes == ["ione"]


async def test_one_paused_until_it_is_asked_for_is_not_found(world: World) -> None:
    async with world.running():
        await world.add_sandbox("ione")
        assert status(await ask(world)) == 200
        world.end_sandbox("ione", is_paused=True)
        assert status(await ask(world)) == 502
    assert not world.wakes


async def test_a_request_that_overtakes_the_route_of_a_resumed_one_waits_for_it(world: World) -> None:
    async with world.running():
        await world.add_sandbox("ione")
        assert status(await ask(world)) == 200
        world.end_sandbox("ione", is_paused=True)
        table = world.edge._gateway.table
        await table.wait_for(lambda: not table.is_live("ione"), 5)
        resumed = await world.add_sandbox("ione", announce=False)
        async with asyncio.TaskGroup() as tasks:
            asked = tasks.create_task(ask(world))
            await anyio.wait_all_tasks_blocked()
            world.announce(resumed)
    assert status(asked.result()) == 200


# --- who asks the node --------------------


class Asked:
    """The node's answers to wakes, given when the test says so."""

    def __init__(self) -> None:
        self.calls = 0
        self.answer: asyncio.Future[Route] = asyncio.get_running_loop().create_future()

    async def __call__(self, *_: object, timeout_s: float) -> tuple[bytes, list[int]]:
        self.calls += 1
        return msgspec.json.encode(await asyncio.shield(self.answer)), []


@pytest.fixture
async def asked(monkeypatch: pytest.MonkeyPatch) -> Asked:
    made = Asked()
    monkeypatch.setattr(waking, "ask_node", made)
    return made


@pytest.fixture
def waker() -> Waker:
    table = RouteTable(Path("/nowhere"))
    table.replace([route(is_paused=True)])
    return Waker(Path("/nowhere"), table)


async def test_all_who_wait_share_one_failure(waker: Waker, asked: Asked) -> None:
    async with asyncio.TaskGroup() as tasks:
        waits = [tasks.create_task(outcome(waker)) for _ in range(5)]
        await anyio.wait_all_tasks_blocked()
        asked.answer.set_exception(ResourceExhausted("no slot is free"))
    assert [one.result() for one in waits] == ["429"] * 5
    assert asked.calls == 1


async def test_when_the_request_that_asks_is_cut_off_the_next_asks_again(waker: Waker, asked: Asked) -> None:
    async with asyncio.TaskGroup() as tasks:
        first = tasks.create_task(outcome(waker))
        waits = [tasks.create_task(outcome(waker)) for _ in range(5)]
        await anyio.wait_all_tasks_blocked()
        first.cancel()
        await anyio.wait_all_tasks_blocked()
        asked.answer.set_result(route(is_paused=False))
    assert [one.result() for one in waits] == ["awake"] * 5
    assert asked.calls == 2


async def outcome(waker: Waker) -> str:
    try:
        await waker.wake("ione")
    except Refusal as refusal:
        return str(refusal.status)
    return "awake"


# --- by TCP --------------------


@pytest.mark.parametrize("port", [DAEMON, INTERPRETER])
async def test_an_agent_may_be_reached_by_tcp(world: World, port: int) -> None:
    async with world.running():
        await world.add_sandbox("ione", by_tcp=True)
        answer = await ask(world, port=port)
    assert status(answer) == 200
    assert body(answer).startswith(b"GET /x HTTP/1.1")


async def test_what_is_sent_by_tcp_leaves_at_once(world: World) -> None:
    async with world.running():
        route = await world.add_sandbox("ione", by_tcp=True)
        stream = await upstream.connect_agent(route.agent_address, route, world.edge._gateway.table)
        raw = cast("socket.socket", stream._transport.get_extra_info("socket"))
        assert raw.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
        assert raw.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF) >= upstream.SEND_BUFFER_BYTES
        stream.abort()


async def test_an_agent_that_refuses_by_tcp_is_gone(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(upstream, "ENDING_S", 0.01)
    async with world.running():
        await world.add_sandbox("ione", by_tcp=True)
        world.end_sandbox("ione", announce=False)
        assert status(await ask(world)) == 502


# --- the table --------------------


def route(*, is_paused: bool) -> Route:
    return Route("ione", "/a", "/i", "token", is_paused=is_paused)


async def test_what_is_paused_again_and_again_is_given_up(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def refuse(address: str, stream: upstream.Stream | None = None) -> upstream.Stream:
        world.turn("ione", is_paused=True)
        return await asyncio.get_running_loop().create_future()

    monkeypatch.setattr(upstream, "_connect_tcp", refuse)
    async with world.running():
        await world.add_sandbox("ione", by_tcp=True)
        assert status(await ask(world)) == 503
    assert len(world.wakes) == forward.MAX_WAKES


async def test_a_pause_cuts_what_is_open_once() -> None:
    table = RouteTable(Path("/nowhere"))
    table.replace([route(is_paused=False)])
    cut: list[int] = []
    with table.attached("ione", lambda: cut.append(1)):
        table.add(route(is_paused=True))
        assert not table.is_live("ione")
        table.add(route(is_paused=True))
    assert cut == [1]
    assert (await table.find("ione")).is_paused
