"""The node with the real driver: create, reach, end, and what is left."""

import asyncio
import os
import signal
import subprocess
from pathlib import Path

import pytest
from tests.integration.node.conftest import NEEDS_A_NODE, NodeProcess, healthy
from tests.support import block
from tests.support.waiting import until

from cloche_server import link
from cloche_server.node import messages
from cloche_wire.errors import PortClosed, SandboxNotFound, TemplateNotFound, Unavailable

pytestmark = [pytest.mark.anyio, NEEDS_A_NODE]


async def test_created_sandbox_answers_and_killed_one_is_gone(node: NodeProcess) -> None:
    """The agent answers as soon as the create does, and a kill leaves an interface at most, for a moment."""
    sandbox_id = await node.create()
    assert await healthy(node, sandbox_id)
    assert await node.alive() == {sandbox_id}
    await node.end(sandbox_id)
    assert await node.alive() == set()
    number = block.number_of(node.state)
    assert [left for left in block.remains(number) if not left.startswith("/sys/class/net/")] == []
    block.await_nothing(number)
    assert not node.records(sandbox_id)


async def test_an_open_connection_does_not_keep_the_network_of_a_killed_sandbox(node: NodeProcess) -> None:
    """A socket holds the namespace that it was made in, and a client may keep one open for ever."""
    sandbox_id = await node.create()
    with node.inside(sandbox_id) as listener:
        listener.bind(("127.0.0.1", 8000))
        listener.listen()
        held = await node.dial(sandbox_id, 8000)
    with held:
        await node.end(sandbox_id)
        block.await_nothing(block.number_of(node.state))


async def test_killing_twice_is_not_found(node: NodeProcess) -> None:
    """The second caller learns that it is gone."""
    sandbox_id = await node.create()
    await node.end(sandbox_id)
    with pytest.raises(SandboxNotFound):
        await node.end(sandbox_id)


async def test_kills_at_the_same_time_end_it_once(node: NodeProcess) -> None:
    """One event goes out, whoever was first."""
    sandbox_id = await node.create()
    events = link.subscribe(node.config.node_socket, "watch", list)
    await anext(events)

    async def kill() -> bool:
        try:
            await node.end(sandbox_id)
        except SandboxNotFound:
            return False
        return True

    async with asyncio.TaskGroup() as tasks:
        kills = [tasks.create_task(kill()) for _ in range(10)]
    assert any(task.result() for task in kills)
    name, data = await anext(events)  # type: ignore[misc]
    assert name == "ended"
    assert sandbox_id.encode() in bytes(data)
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.05):
            await anext(events)


async def test_twenty_creates_at_once_make_twenty(node: NodeProcess) -> None:
    """Creates side by side share nothing that they could trip over."""
    async with asyncio.TaskGroup() as tasks:
        creates = [tasks.create_task(node.create()) for _ in range(20)]
    made = {create.result() for create in creates}
    assert len(made) == 20
    assert made <= await node.alive()
    async with asyncio.TaskGroup() as tasks:
        for sandbox_id in made:
            tasks.create_task(node.end(sandbox_id))
    assert not made & await node.alive()


async def test_time_out_ends_it_and_is_told(node: NodeProcess) -> None:
    """A sandbox ends at its deadline without anybody asking."""
    events = link.subscribe(node.config.node_socket, "watch", list)
    await anext(events)
    sandbox_id = await node.create()
    await node.call("set_timeout", messages.SetTimeout(sandbox_id, 0), messages.SandboxState)
    async with asyncio.timeout(10):
        _, data = await anext(events)  # type: ignore[misc]
    assert b'"timeout"' in bytes(data)
    assert sandbox_id not in await node.alive()


async def test_end_of_the_init_is_the_end_of_the_sandbox(node: NodeProcess) -> None:
    """An agent that dies takes its sandbox with it, and the api is told."""
    events = link.subscribe(node.config.node_socket, "watch", list)
    await anext(events)
    sandbox_id = await node.create()
    os.kill(node.init(sandbox_id), signal.SIGKILL)
    async with asyncio.timeout(10):
        _, data = await anext(events)  # type: ignore[misc]
    assert b'"exited"' in bytes(data)


async def test_unknown_template_is_refused(node: NodeProcess) -> None:
    """And nothing is made for it."""
    with pytest.raises(TemplateNotFound):
        await node.create(build_id="00000000-0000-4000-8000-000000000000")


async def test_dial_reaches_a_service_on_either_address_and_no_closed_port(node: NodeProcess) -> None:
    """A service on the sandbox's loopback is reachable like one on its address."""
    sandbox_id = await node.create()
    with node.inside(sandbox_id) as listener:
        listener.bind(("127.0.0.1", 8000))
        listener.listen()
        with await node.dial(sandbox_id, 8000) as connection:
            accepted, _ = listener.accept()
            accepted.sendall(b"hello")
            assert connection.recv(10) == b"hello"
            accepted.close()
    with pytest.raises(PortClosed):
        await node.dial(sandbox_id, 8000)
    await node.end(sandbox_id)
    with pytest.raises(SandboxNotFound):
        await node.dial(sandbox_id, 8000)


async def test_drained_node_leaves_no_trace_of_itself(own_node: NodeProcess) -> None:
    """No table, control group, interface and folder; and no create is taken any more."""
    number = block.number_of(own_node.state)
    for _ in range(2):
        await own_node.create()
    assert f"cloche_{number}" in _tables()
    await own_node.drain()
    with pytest.raises(Unavailable):
        await own_node.create()
    assert own_node.stop() == 0
    assert f"cloche_{number}" not in _tables()
    assert block.remains(number) == []
    assert _groups(number) == []
    for folder in ("sandboxes", "trash", "run/agents", "node/journal"):
        assert list((own_node.state / folder).iterdir()) == []


async def test_drain_that_meets_creates_leaves_nothing_of_them(own_node: NodeProcess) -> None:
    """Whatever step a create has come to: it fails, and what it made is undone."""

    async def create() -> bool:
        try:
            await own_node.create()
        except Unavailable:
            return False
        return True

    async with asyncio.TaskGroup() as tasks:
        creates = [tasks.create_task(create()) for _ in range(10)]
        await asyncio.to_thread(_await_folder, own_node.state / "sandboxes")
        await own_node.drain()
    assert not all(task.result() for task in creates)
    assert await own_node.alive() == set()
    assert list((own_node.state / "sandboxes").iterdir()) == []


def _await_folder(parent: Path) -> None:
    until(lambda: any(parent.iterdir()), within_s=20, every_s=0.001, what="a create that has begun")


def _groups(number: int) -> list[Path]:
    root = Path("/sys/fs/cgroup")
    return [*root.glob(f"*/cloche-{number}"), *root.glob(f"cloche-{number}")]


def _tables() -> str:
    return subprocess.run(["nft", "list", "tables"], capture_output=True, text=True, check=True).stdout
