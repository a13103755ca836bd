"""Creates that take a sandbox made ahead, and those that must not."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import anyio
import httpx
import pytest
from tests.fakes.placement import FakePlacement

from cloche_server.api.control import ControlPlane
from cloche_server.api.reconcile import follow_node, reconcile
from cloche_server.node.messages import SandboxReady
from cloche_wire.errors import ResourceExhausted, Unavailable

pytestmark = pytest.mark.anyio
BODY: dict[str, Any] = {"templateID": "base"}


def kind_of(offer: SandboxReady) -> tuple[str, str, int, int, str]:
    return offer.team_id, offer.build_id, offer.cpu_count, offer.memory_mib, offer.isolation


@pytest.fixture
async def offer(control: ControlPlane, placement: FakePlacement, client: httpx.AsyncClient) -> SandboxReady:
    await client.post("/v2/sandboxes", json=BODY)
    order = placement.created.pop()
    made = SandboxReady(
        "iready", order.team_id, order.build_id, order.cpu_count, order.memory_mib, order.isolation
    )
    placement.ready.add(made)
    return made


async def test_a_create_takes_the_id_of_one_that_is_ready(
    client: httpx.AsyncClient, placement: FakePlacement, offer: SandboxReady
) -> None:
    first, second = [await client.post("/v2/sandboxes", json=BODY) for _ in "ab"]
    assert first.json()["sandboxID"] == offer.sandbox_id
    assert second.json()["sandboxID"] != offer.sandbox_id
    assert placement.created[0].access_token == first.json()["envdAccessToken"]


async def test_a_create_with_volumes_leaves_it(
    client: httpx.AsyncClient, placement: FakePlacement, offer: SandboxReady
) -> None:
    await client.post("/volumes", json={"name": "data"})
    answer = await client.post(
        "/v2/sandboxes", json=BODY | {"volumeMounts": [{"name": "data", "path": "/data"}]}
    )
    assert answer.status_code == 201, answer.text
    assert answer.json()["sandboxID"] != offer.sandbox_id
    assert (await client.post("/v2/sandboxes", json=BODY)).json()["sandboxID"] == offer.sandbox_id


async def test_a_create_that_is_a_retry_or_is_refused_puts_it_back(
    client: httpx.AsyncClient, placement: FakePlacement, offer: SandboxReady
) -> None:
    key = {"Idempotency-Key": "k"}
    taken = (await client.post("/v2/sandboxes", json=BODY, headers=key)).json()["sandboxID"]
    second = SandboxReady("isecond", *kind_of(offer))
    placement.ready.add(second)
    assert (await client.post("/v2/sandboxes", json=BODY, headers=key)).json()["sandboxID"] == taken
    refused = await client.post("/v2/sandboxes", json=BODY | {"timeout": 5}, headers=key)
    assert refused.status_code == 409
    assert placement.ready.take(*kind_of(second)) == second


async def test_one_that_failed_is_not_offered_again(
    client: httpx.AsyncClient, placement: FakePlacement, offer: SandboxReady
) -> None:
    placement.fails = Unavailable("the node is away")
    assert (await client.post("/v2/sandboxes", json=BODY)).status_code == 503
    assert placement.ready.take(*kind_of(offer)) is None


async def test_one_that_its_node_did_not_give_away_is_offered_again(
    client: httpx.AsyncClient, placement: FakePlacement, offer: SandboxReady
) -> None:
    placement.fails = ResourceExhausted("as many as there may be")
    assert (await client.post("/v2/sandboxes", json=BODY)).status_code == 429
    assert placement.ready.take(*kind_of(offer)) == offer


async def test_one_that_was_given_away_beyond_the_limit_is_ended_and_not_offered_again(
    client: httpx.AsyncClient, control: ControlPlane, placement: FakePlacement, offer: SandboxReady
) -> None:
    placement.ready.remove(offer.sandbox_id)
    while len(await control.store.liveness.alive()) < control.config.limits.max_sandboxes:
        assert (await client.post("/v2/sandboxes", json=BODY)).status_code == 201
    placement.ready.add(offer)
    assert (await client.post("/v2/sandboxes", json=BODY)).status_code == 429
    assert placement.killed == [(offer.sandbox_id, "failed")]
    assert offer.sandbox_id not in await control.store.liveness.alive()
    assert placement.ready.take(*kind_of(offer)) is None


@asynccontextmanager
async def taking_it_without_a_row_yet(
    client: httpx.AsyncClient, control: ControlPlane, placement: FakePlacement
) -> AsyncIterator[list[int]]:
    """Its node has given it away, and the database is busy as long as this block; the answer comes after."""
    free = anyio.Event()
    statuses: list[int] = []

    def hold_the_database(_: object) -> None:
        anyio.from_thread.run(free.wait)

    async def create() -> None:
        statuses.append((await client.post("/v2/sandboxes", json=BODY)).status_code)

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(control.store.database.write, hold_the_database)
        tasks.start_soon(create)
        await placement.asked.wait()
        yield statuses
        free.set()


async def test_one_that_is_taken_is_left_alone_while_it_has_no_row(
    client: httpx.AsyncClient, control: ControlPlane, placement: FakePlacement, offer: SandboxReady
) -> None:
    placement.asked = anyio.Event()
    async with taking_it_without_a_row_yet(client, control, placement) as statuses:
        assert offer.sandbox_id in placement.alive
        await reconcile(control)
        assert offer.sandbox_id not in await control.store.liveness.alive()
    assert statuses == [201]
    assert (await control.store.liveness.alive())[offer.sandbox_id] == "running"
    assert not placement.killed


async def test_one_that_ends_before_it_has_a_row_is_nobody_s(
    client: httpx.AsyncClient, control: ControlPlane, placement: FakePlacement, offer: SandboxReady
) -> None:
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(follow_node, control)
        await placement.idle.wait()
        placement.asked = anyio.Event()
        async with taking_it_without_a_row_yet(client, control, placement) as statuses:
            placement.end(offer.sandbox_id, "exited")
            while not control.creations.has_ended(offer.sandbox_id):
                await anyio.lowlevel.checkpoint()
        assert statuses == [503]
        assert offer.sandbox_id not in await control.store.liveness.alive()
        tasks.cancel_scope.cancel()
    assert not control.creations.has_ended(offer.sandbox_id)
