"""Frozen sandboxes go on for whatever needs them; idle ones are told of once nothing is open."""

import asyncio

import anyio
import pytest
from tests.unit.edge.test_waking import ask, body, status
from tests.unit.edge.world import DAEMON, World

from cloche_server.edge import idleness
from cloche_server.edge.idleness import IdleWatch
from cloche_server.node.messages import IdleSandbox

pytestmark = pytest.mark.anyio


@pytest.fixture
def watch(world: World, monkeypatch: pytest.MonkeyPatch) -> IdleWatch:
    """The edge's own, which looks when a test says so."""
    monkeypatch.setattr(idleness, "LOOK_EVERY_S", 3600.0)
    return world.edge._idle_watch


async def until_known(world: World, *, sleeps: bool) -> None:
    table = world.edge._gateway.table

    def knows() -> bool:
        route = table.get("ione")
        return route is not None and route.sleeps == sleeps

    assert await table.wait_for(knows, 5)


@pytest.mark.parametrize("port", [DAEMON, 8080])
async def test_request_for_a_frozen_one_is_held_and_arrives_whole(world: World, port: int) -> None:
    world.ports["ione", 8080] = world.echo
    world.wake_gate = asyncio.Event()
    async with world.running():
        await world.add_sandbox("ione", is_frozen=True)
        async with asyncio.TaskGroup() as tasks:
            asked = [tasks.create_task(ask(world, port=port, path=f"/{number}")) for number in range(5)]
            await world.wake_asked.wait()
            assert not world.seen
            world.wake_gate.set()
    assert [status(one.result()) for one in asked] == [200] * 5
    assert world.wakes == ["ione"]


async def test_who_may_not_reach_it_does_not_have_it_go_on(world: World) -> None:
    async with world.running():
        await world.add_sandbox("ione", is_frozen=True, traffic_token="secret")
        assert status(await ask(world, port=8080)) == 403
        assert status(await ask(world, path="/init")) == 404
    assert not world.wakes


async def test_request_under_way_when_it_is_frozen_has_it_go_on(world: World) -> None:
    reached, gate = asyncio.Event(), asyncio.Event()

    async def slow(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        reached.set()
        await gate.wait()
        await world.echo(reader, writer)

    world.ports["ione", DAEMON] = slow
    async with world.running():
        await world.add_sandbox("ione")
        async with asyncio.TaskGroup() as tasks:
            asked = tasks.create_task(ask(world))
            await reached.wait()
            world.turn("ione", is_frozen=True)
            await world.wake_asked.wait()
            gate.set()
    assert status(asked.result()) == 200
    assert world.wakes == ["ione"]


@pytest.mark.parametrize("is_idle", [True, False])
async def test_stream_under_way_has_an_idle_one_go_on_and_stands_still_with_one_that_was_told_to(
    world: World, is_idle: bool
) -> None:
    reached, gate = asyncio.Event(), asyncio.Event()

    async def stream(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await world.read_request(reader)
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n1")
        await writer.drain()
        reached.set()
        await gate.wait()
        writer.write(b"2")

    world.ports["ione", DAEMON] = stream
    async with world.running():
        await world.add_sandbox("ione")
        async with asyncio.TaskGroup() as tasks:
            asked = tasks.create_task(ask(world))
            await reached.wait()
            await until_answered(world)
            world.turn("ione", is_frozen=True, is_idle=is_idle)
            if is_idle:
                await world.wake_asked.wait()
            else:
                await until_known(world, sleeps=True)
                await anyio.wait_all_tasks_blocked()
            gate.set()
    assert body(asked.result()) == b"12"
    assert world.wakes == (["ione"] if is_idle else [])


async def until_answered(world: World) -> None:
    """Return when the edge has begun to pass the one open answer on."""
    table = world.edge._gateway.table
    (attachment,) = table._streams["ione"]
    exchange = attachment.on_freeze.args[1]  # type: ignore[union-attr]
    async with asyncio.timeout(5):
        while not exchange.is_answered:  # noqa: ASYNC110 - nothing tells
            await asyncio.sleep(0)


async def test_what_a_client_sends_on_an_open_connection_has_it_go_on(world: World) -> None:
    async def switch(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n")
        writer.write(await reader.readexactly(4))

    world.ports["ione", 8080] = switch
    async with world.running():
        await world.add_sandbox("ione")
        reader, writer = await asyncio.open_connection(*world.address)
        head = "GET / HTTP/1.1\r\nHost: 8080-ione.cloche.localhost:3000\r\nConnection: Upgrade\r\n"
        writer.write(f"{head}Upgrade: websocket\r\n\r\n".encode())
        await reader.readuntil(b"\r\n\r\n")
        world.turn("ione", is_frozen=True)
        await until_known(world, sleeps=True)
        await anyio.wait_all_tasks_blocked()
        assert not world.wakes
        writer.write(b"ping")
        assert await reader.readexactly(4) == b"ping"
        await until_known(world, sleeps=False)
        writer.close()
    assert world.wakes == ["ione"]


# --- idle


async def test_one_that_nothing_is_open_to_is_told_of_once(world: World, watch: IdleWatch) -> None:
    async with world.running():
        await world.add_sandbox("ione", idle_after_s=1)
        await world.add_sandbox("itwo")
        assert status(await ask(world)) == 200
        await watch.look()
        assert not world.idle_words
        quiet(world, 2)
        await watch.look()
        await watch.look()
        assert world.idle_words == [IdleSandbox("ione")]
        world.turn("ione", is_frozen=True, is_idle=True)
        await until_known(world, sleeps=True)
        await watch.look()
        assert world.idle_words[1:] == [IdleSandbox("ione", is_frozen=True)]


async def test_one_with_something_open_is_not(world: World, watch: IdleWatch) -> None:
    reached, gate = asyncio.Event(), asyncio.Event()

    async def slow(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        reached.set()
        await gate.wait()
        await world.echo(reader, writer)

    world.ports["ione", DAEMON] = slow
    async with world.running():
        await world.add_sandbox("ione", idle_after_s=1)
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(ask(world))
            await reached.wait()
            quiet(world, 2)
            await watch.look()
            gate.set()
        await watch.look()
    assert not world.idle_words


async def test_time_counts_anew_when_it_goes_on(world: World, watch: IdleWatch) -> None:
    async with world.running():
        await world.add_sandbox("ione", idle_after_s=1)
        assert status(await ask(world)) == 200
        world.turn("ione", is_frozen=True, is_idle=True)
        await until_known(world, sleeps=True)
        quiet(world, 2)
        world.turn("ione")
        await until_known(world, sleeps=False)
        await watch.look()
    assert not world.idle_words


async def test_paused_and_ended_ones_are_not_told_of(world: World, watch: IdleWatch) -> None:
    async with world.running():
        await world.add_sandbox("ione", idle_after_s=1)
        assert status(await ask(world)) == 200
        quiet(world, 2)
        world.turn("ione", is_paused=True)
        await until_known(world, sleeps=True)
        await watch.look()
        world.end_sandbox("ione")
        table = world.edge._gateway.table
        assert await table.wait_for(lambda: table.get("ione") is None, 5)
        await watch.look()
        assert "ione" not in table._quiet_since
    assert not world.idle_words


async def test_node_that_is_away_is_told_later(world: World, watch: IdleWatch) -> None:
    async with world.running(node=False):
        route = await world.add_sandbox("ione", idle_after_s=1)
        world.edge._gateway.table.replace([route])
        quiet(world, 2)
        await watch.look()
        await watch.look()
    assert not world.idle_words


def quiet(world: World, for_s: float) -> None:
    """Have nothing been open for so long."""
    world.edge._gateway.table._quiet_since["ione"] -= for_s
