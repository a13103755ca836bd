"""Rows and node are made to agree, whoever was killed in the middle of what."""

import anyio
import httpx
import pytest
from sqlalchemy import update
from tests.fakes.control_plane import create
from tests.fakes.placement import FakePlacement

from cloche_server.api.control import ControlPlane
from cloche_server.api.reconcile import follow_node, reconcile
from cloche_server.node.messages import SandboxState
from cloche_server.store.schema import sandboxes
from cloche_wire.errors import Unavailable

pytestmark = pytest.mark.anyio


async def listed(client: httpx.AsyncClient) -> list[str]:
    return [one["sandboxID"] for one in (await client.get("/v2/sandboxes")).json()]


async def leave_creating(client: httpx.AsyncClient, control: ControlPlane) -> str:
    """A row as an api leaves it that is killed while the node makes the sandbox."""
    made = await create(client)
    back = update(sandboxes).where(sandboxes.c.id == made).values(state="creating")
    await control.store.database.write(lambda connection: connection.execute(back).rowcount)
    return made


async def test_a_row_without_a_sandbox_ends_as_lost(
    client: httpx.AsyncClient, control: ControlPlane, placement: FakePlacement
) -> None:
    dead, living = await create(client), await create(client)
    del placement.alive[dead]
    await reconcile(control)
    assert await listed(client) == [living]


async def test_a_sandbox_without_a_row_is_killed(control: ControlPlane, placement: FakePlacement) -> None:
    now = control.clock.now()
    placement.alive["iorphan"] = SandboxState("iorphan", "t", now, now, "fake")
    await reconcile(control)
    assert placement.killed == [("iorphan", "failed")]


async def test_what_a_dead_api_was_making_is_killed_and_ended(
    client: httpx.AsyncClient, control: ControlPlane, placement: FakePlacement
) -> None:
    made = await leave_creating(client, control)
    await reconcile(control)
    assert placement.killed == [(made, "failed")]
    assert not await control.store.liveness.alive()


async def test_one_that_cannot_be_killed_yet_holds_nothing_else_up(
    client: httpx.AsyncClient, control: ControlPlane, placement: FakePlacement
) -> None:
    stuck, dead = await leave_creating(client, control), await create(client)
    placement.unkillable.add(stuck)
    del placement.alive[dead]
    await reconcile(control)
    assert dict(await control.store.liveness.alive()) == {stuck: "creating"}
    placement.unkillable.clear()
    await reconcile(control)
    assert not await control.store.liveness.alive()


async def test_what_is_being_made_is_left_alone(
    client: httpx.AsyncClient, control: ControlPlane, placement: FakePlacement
) -> None:
    placement.gate = anyio.Event()
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(create, client)
        await placement.asked.wait()
        await reconcile(control)
        placement.gate.set()
    assert len(await listed(client)) == 1


async def test_nothing_is_concluded_from_a_node_that_is_away(
    client: httpx.AsyncClient, control: ControlPlane, placement: FakePlacement
) -> None:
    made = await create(client)
    placement.fails = Unavailable("down")
    with pytest.raises(Unavailable):
        await reconcile(control)
    assert await listed(client) == [made]


async def test_an_end_the_node_tells_of_is_written_down_at_once(
    client: httpx.AsyncClient, control: ControlPlane, placement: FakePlacement
) -> None:
    made = await create(client)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(follow_node, control)
        await placement.idle.wait()
        placement.end(made, "timeout")
        await placement.idle.wait()
        assert await listed(client) == []
        tasks.cancel_scope.cancel()


async def test_the_link_is_made_again_and_what_was_missed_is_caught_up(
    client: httpx.AsyncClient,
    control: ControlPlane,
    placement: FakePlacement,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    made = await create(client)
    placement.fails = Unavailable("down")

    async def heal(_: float) -> None:
        placement.fails = None
        placement.alive.pop(made, None)

    monkeypatch.setattr("cloche_server.api.reconcile.anyio.sleep", heal)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(follow_node, control)
        await placement.idle.wait()
        assert await listed(client) == []
        tasks.cancel_scope.cancel()
