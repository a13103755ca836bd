"""`kill -9` of the node at every step: what runs is adopted, what was half made or half gone is undone."""

import os
import signal

import pytest
from tests.integration.node.conftest import NEEDS_A_NODE, NodeProcess, healthy
from tests.support import block

from cloche_server.isolation import identity
from cloche_wire.errors import Unavailable

pytestmark = [pytest.mark.anyio, NEEDS_A_NODE]

CREATE_POINTS = (
    "journal.write:1", "network.create:1", "listen:1", "layer:1", "start:1", "journal.write:2",
    "initialize:1",
)  # fmt: skip
KILL_POINTS = (
    "journal.write:1", "destroy:1", "network.remove:1", "trash:1", "trash:2", "journal.remove:1",
)  # fmt: skip


async def test_sandboxes_outlive_a_killed_node_and_are_adopted(own_node: NodeProcess) -> None:
    """After a crash and a start, all verbs work on what was running before."""
    kept, ended = await own_node.create(), await own_node.create()
    init = own_node.init(kept)
    own_node.kill()
    assert _lives(init)
    own_node.start()
    assert await own_node.alive() == {kept, ended}
    assert await healthy(own_node, kept)
    with own_node.inside(kept) as listener:
        listener.bind(("127.0.0.1", 8000))
        listener.listen()
        (await own_node.dial(kept, 8000)).close()
    await own_node.end(ended)
    assert await own_node.alive() == {kept}
    another = await own_node.create()
    assert await own_node.alive() == {kept, another}


async def test_sandboxes_outlive_a_stopped_node_and_are_adopted(own_node: NodeProcess) -> None:
    """An update of the server is a stop and a start."""
    kept = await own_node.create()
    assert own_node.stop() == 0
    own_node.start()
    assert await own_node.alive() == {kept}
    assert await healthy(own_node, kept)


async def test_sandbox_that_ended_while_no_node_ran_is_undone(own_node: NodeProcess) -> None:
    """Its init is gone, or its process id is another's by now."""
    init = own_node.init(await own_node.create())
    own_node.kill()
    os.kill(init, signal.SIGKILL)
    await _start_clean(own_node)


async def test_create_that_the_node_did_not_live_to_finish_leaves_nothing(own_node: NodeProcess) -> None:
    """The node is killed after each step of a create in turn; every start undoes what the last one left."""
    own_node.kill()
    for point in CREATE_POINTS:
        await _start_clean(own_node, point)
        own_node.arm()
        with pytest.raises(Unavailable):
            await own_node.create()
        assert own_node.wait() == -signal.SIGKILL, point
    await _start_clean(own_node)
    assert await healthy(own_node, await own_node.create())


async def test_kill_that_the_node_did_not_live_to_finish_is_finished(own_node: NodeProcess) -> None:
    """The node is killed after each step of a kill in turn; the next start goes on with it."""
    own_node.kill()
    for point in KILL_POINTS:
        await _start_clean(own_node, point)
        sandbox_id = await own_node.create()
        own_node.arm()
        with pytest.raises(Unavailable):
            await own_node.end(sandbox_id)
        assert own_node.wait() == -signal.SIGKILL, point
    await _start_clean(own_node)


async def _start_clean(node: NodeProcess, *crash: str) -> None:
    node.start(*crash)
    assert await node.alive() == set()
    block.await_nothing(block.number_of(node.state))
    folders = ("sandboxes", "run/agents", "node/journal")
    assert [path for folder in folders for path in (node.state / folder).iterdir()] == []


def _lives(pid: int) -> bool:
    return identity.identify(pid) is not None
