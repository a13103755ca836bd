"""Creates that take a sandbox made ahead, and those that must not."""

from typing import Any

import httpx
import pytest
from tests.fakes.placement import FakePlacement

from cloche_server.api.control import ControlPlane
from cloche_server.node.messages import SandboxReady
from cloche_wire.errors import Unavailable

pytestmark = pytest.mark.anyio
BODY: dict[str, Any] = {"templateID": "base"}


@pytest.fixture
async def offer(control: ControlPlane, placement: FakePlacement, client: httpx.AsyncClient) -> SandboxReady:
    await client.post("/v2/sandboxes", json=BODY)
    order = placement.created.pop()
    made = SandboxReady("iready", order.team_id, order.build_id, order.cpu_count, order.memory_mib)
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
    second = SandboxReady("isecond", offer.team_id, offer.build_id, offer.cpu_count, offer.memory_mib)
    placement.ready.add(second)
    assert (await client.post("/v2/sandboxes", json=BODY, headers=key)).json()["sandboxID"] == taken
    refused = await client.post("/v2/sandboxes", json=BODY | {"timeout": 5}, headers=key)
    assert refused.status_code == 409
    assert (
        placement.ready.take(second.team_id, second.build_id, second.cpu_count, second.memory_mib) == second
    )


async def test_one_that_failed_is_not_offered_again(
    client: httpx.AsyncClient, placement: FakePlacement, offer: SandboxReady
) -> None:
    placement.fails = Unavailable("the node is away")
    assert (await client.post("/v2/sandboxes", json=BODY)).status_code == 503
    assert placement.ready.take(offer.team_id, offer.build_id, offer.cpu_count, offer.memory_mib) is None
