"""Rows and node are made to agree, whoever was killed in the middle of what."""

from typing import Literal

import anyio
import httpx
import pytest
from sqlalchemy import update
from tests.fakes.control_plane import create
from tests.fakes.placement import FakePlacement

from cloche_server.api.control import ControlPlane
from cloche_server.api.reconcile import follow_node, reconcile
from cloche_server.ids import SandboxId, TeamId
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


async def test_a_pause_and_a_wake_the_node_tells_of_are_written_down_at_once(
    client: httpx.AsyncClient, control: ControlPlane, placement: FakePlacement
) -> None:
    made = await create(client)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(follow_node, control)
        for state in ("paused", "running"):
            await placement.idle.wait()
            placement.turn(made, state)
            await placement.idle.wait()
            assert dict(await control.store.liveness.alive()) == {made: state}
        tasks.cancel_scope.cancel()


async def test_the_nodes_word_on_what_runs_is_written_where_the_row_says_otherwise(
    client: httpx.AsyncClient, control: ControlPlane, placement: FakePlacement
) -> None:
    timed_out, woken = await create(client), await create(client)
    placement.turn(timed_out, "paused")
    await control.store.pausing.mark_paused(
        TeamId(placement.alive[woken].team_id), SandboxId(woken), control.clock.now()
    )
    await reconcile(control)
    assert dict(await control.store.liveness.alive()) == {timed_out: "paused", woken: "running"}


@pytest.mark.parametrize("to", ["paused", "running"])
async def test_a_resume_that_a_dead_api_began_ends_as_the_node_says(
    client: httpx.AsyncClient,
    control: ControlPlane,
    placement: FakePlacement,
    to: Literal["paused", "running"],
) -> None:
    made = await create(client)
    team = TeamId(placement.alive[made].team_id)
    await control.store.pausing.mark_paused(team, SandboxId(made), control.clock.now())
    await control.store.pausing.begin_resume(team, SandboxId(made), max_running=9)
    placement.turn(made, to)
    await reconcile(control)
    assert dict(await control.store.liveness.alive()) == {made: to}
    kinds = [event["type"] for event in (await client.get("/events/sandboxes")).json()]
    assert kinds.count("sandbox.lifecycle.resumed") == (to == "running")


async def test_what_is_being_resumed_is_left_alone(
    client: httpx.AsyncClient, control: ControlPlane, placement: FakePlacement
) -> None:
    made = await create(client)
    team = TeamId(placement.alive[made].team_id)
    await control.store.pausing.mark_paused(team, SandboxId(made), control.clock.now())
    await control.store.pausing.begin_resume(team, SandboxId(made), max_running=9)
    placement.turn(made, "paused")
    with control.creations.hold(made):
        await reconcile(control)
    assert dict(await control.store.liveness.alive()) == {made: "resuming"}


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
