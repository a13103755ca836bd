"""Sandboxes of two isolations on one node: side by side, and after a start with the other default."""

import msgspec
import pytest
from tests.integration.node.conftest import NEEDS_A_NODE, NEEDS_GVISOR, NodeProcess, healthy
from tests.support import block

from cloche_server.node import messages
from cloche_wire.errors import PermissionDenied

pytestmark = [pytest.mark.anyio, NEEDS_A_NODE, NEEDS_GVISOR]


async def isolations(node: NodeProcess) -> dict[str, str]:
    return {
        state.sandbox_id: state.isolation
        for state in await node.call("list", {}, list[messages.SandboxState])
    }


async def test_both_run_side_by_side_and_outlive_a_change_of_the_default(own_node: NodeProcess) -> None:
    node = own_node
    weak = await node.create()
    strong, put_away = [await node.create(isolation="gvisor") for _ in range(2)]
    await node.call("pause", messages.PauseSandbox(put_away))
    found = {weak: "container", strong: "gvisor", put_away: "gvisor"}
    assert await isolations(node) == found
    assert await healthy(node, weak)
    assert await healthy(node, strong)
    node.kill()
    node.config = msgspec.structs.replace(node.config, isolation="gvisor")
    node.start()
    assert await isolations(node) == found
    assert await healthy(node, weak)
    assert await healthy(node, strong)
    with pytest.raises(PermissionDenied):
        await node.create(isolation="container")
    assert node.stop() == 0
    node.config = msgspec.structs.replace(node.config, isolation="container")
    node.start()
    # Its driver is prepared by this alone: nothing else has asked for it since the start.
    await node.call("resume", messages.ResumeSandbox(put_away, 60), messages.SandboxState)
    assert await healthy(node, put_away)
    for sandbox_id in found:
        await node.end(sandbox_id)
    assert await isolations(node) == {}


async def test_what_a_killed_node_leaves_of_either_goes_with_its_next_start(own_node: NodeProcess) -> None:
    node = own_node
    made = [await node.create(), await node.create(isolation="gvisor")]
    number = block.number_of(node.state)
    node.kill()
    for sandbox_id in made:
        for record in node.records(sandbox_id):
            record.unlink()
    node.start()
    assert await isolations(node) == {}
    assert not list(node.state.glob("sandboxes/*"))
    assert node.stop() == 0
    block.await_nothing(number)
    node.start()
