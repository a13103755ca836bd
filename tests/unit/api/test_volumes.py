"""Volumes over REST: names, owners, and nothing half done."""

import httpx
import pytest
from tests.fakes.control_plane import create
from tests.fakes.placement import FakePlacement

from cloche_server.api.control import ControlPlane
from cloche_server.api.reconcile import reconcile
from cloche_server.api.volumes import finish_volumes
from cloche_server.node.messages import VolumeMount
from cloche_wire.errors import NotEnoughSpace, Unavailable

pytestmark = pytest.mark.anyio


async def make(client: httpx.AsyncClient, name: str = "data") -> str:
    answer = await client.post("/volumes", json={"name": name})
    assert answer.status_code == 201, answer.text
    return answer.json()["volumeID"]


async def listed(client: httpx.AsyncClient) -> list[str]:
    return [volume["name"] for volume in (await client.get("/volumes")).json()]


async def test_a_volume_is_made_told_listed_and_removed(
    client: httpx.AsyncClient, placement: FakePlacement
) -> None:
    made = (await client.post("/volumes", json={"name": "data"})).json()
    assert (await client.get(f"/volumes/{made['volumeID']}")).json() == made
    assert (await client.get("/volumes")).json() == [{"volumeID": made["volumeID"], "name": "data"}]
    assert placement.volumes[made["volumeID"]].token == made["token"]
    assert (await client.delete(f"/volumes/{made['volumeID']}")).status_code == 204
    assert placement.volumes == {}
    assert (await client.get(f"/volumes/{made['volumeID']}")).status_code == 404
    assert (await client.delete(f"/volumes/{made['volumeID']}")).status_code == 404


@pytest.mark.parametrize("name", ["", "a b", "a/b", "..", "é", "a" * 129, "a\n", None, 1])
async def test_a_bad_name_is_refused(client: httpx.AsyncClient, name: object) -> None:
    assert (await client.post("/volumes", json={"name": name})).status_code == 400


async def test_a_name_is_one_teams_only_once(client: httpx.AsyncClient, stranger: httpx.AsyncClient) -> None:
    first = await make(client)
    again = await client.post("/volumes", json={"name": "data"})
    assert (again.status_code, again.json()["code"]) == (409, 409)
    await make(stranger)
    await client.delete(f"/volumes/{first}")
    assert await make(client) != first


async def test_a_foreign_volume_looks_like_none(
    client: httpx.AsyncClient, stranger: httpx.AsyncClient, placement: FakePlacement
) -> None:
    made = await make(client)
    for method in ("GET", "DELETE"):
        foreign = await stranger.request(method, f"/volumes/{made}")
        unknown = await stranger.request(method, f"/volumes/v{'0' * 20}")
        assert foreign.status_code == unknown.status_code == 404
        assert foreign.json()["message"].replace(made, "") == unknown.json()["message"].replace(
            f"v{'0' * 20}", ""
        )
    assert await listed(stranger) == []
    mounts = [{"name": "data", "path": "/data"}]
    refused = await stranger.post("/v2/sandboxes", json={"templateID": "base", "volumeMounts": mounts})
    assert refused.status_code == 404
    assert made in placement.volumes


async def test_the_number_of_a_teams_volumes_is_limited(
    client: httpx.AsyncClient, stranger: httpx.AsyncClient, control: ControlPlane
) -> None:
    for number in range(control.config.volumes.per_team):
        await make(client, f"v{number}")
    assert (await client.post("/volumes", json={"name": "more"})).status_code == 429
    await make(stranger)


async def test_what_cannot_be_made_leaves_no_row(client: httpx.AsyncClient, placement: FakePlacement) -> None:
    placement.fails_volume = NotEnoughSpace("not enough disk space for a volume")
    assert (await client.post("/volumes", json={"name": "data"})).status_code == 507
    placement.fails_volume = None
    assert await listed(client) == []
    await make(client)


async def test_a_mounted_volume_stays(client: httpx.AsyncClient, placement: FakePlacement) -> None:
    made = await make(client)
    placement.mounted.add(made)
    refused = await client.delete(f"/volumes/{made}")
    assert refused.status_code == 409
    assert "kill them first" in refused.json()["message"]
    assert await listed(client) == ["data"]
    placement.mounted.clear()
    assert (await client.delete(f"/volumes/{made}")).status_code == 204


async def test_a_removal_that_the_node_does_not_answer_goes_on_later(
    client: httpx.AsyncClient, placement: FakePlacement, control: ControlPlane
) -> None:
    made = await make(client)
    placement.fails = Unavailable("the node is away")
    assert (await client.delete(f"/volumes/{made}")).status_code == 503
    placement.fails = None
    assert await listed(client) == []  # it was to go, and is shown to nobody any more
    await reconcile(control)
    assert placement.volumes == {}
    await make(client)


async def test_a_volume_that_a_killed_api_was_making_is_taken_away(
    client: httpx.AsyncClient, placement: FakePlacement, control: ControlPlane
) -> None:
    made = await make(client)
    (record,) = await control.store.volumes.list(placement.volumes[made].team_id)  # type: ignore[arg-type]
    await control.store.volumes.move(record.team_id, record.id, ["ready"], "creating")
    with control.creations.hold(record.id):
        await finish_volumes(control)
        assert made in placement.volumes  # somebody is at it
    await finish_volumes(control)
    assert placement.volumes == {}
    assert await control.store.volumes.unfinished() == []


async def test_a_sandbox_gets_its_teams_volumes_and_shows_them(
    client: httpx.AsyncClient, placement: FakePlacement
) -> None:
    made = await make(client)
    mounts = [{"name": "data", "path": "/mnt/data"}]
    sandbox = await create(client, volumeMounts=mounts)
    assert placement.created[-1].volume_mounts == (VolumeMount(made, "/mnt/data"),)
    assert (await client.get(f"/sandboxes/{sandbox}")).json()["volumeMounts"] == mounts
    assert (await client.get("/v2/sandboxes")).json()[0]["volumeMounts"] == mounts


@pytest.mark.parametrize(
    "mounts",
    [
        [{"name": "data", "path": "relative"}],
        [{"name": "data", "path": "/"}],
        [{"name": "data", "path": "/proc/x"}],
        [{"name": "data", "path": "/a"}, {"name": "data", "path": "/a"}],
        [{"name": "data", "path": "/a"}, {"name": "data", "path": "/a/b"}],
        [{"name": "data"}],
        ["data"],
        {"data": "/a"},
    ],
)
async def test_bad_mounts_are_refused(
    client: httpx.AsyncClient, placement: FakePlacement, mounts: object
) -> None:
    await make(client)
    answer = await client.post("/v2/sandboxes", json={"templateID": "base", "volumeMounts": mounts})
    assert answer.status_code == 400
    assert placement.created == []


async def test_an_unknown_volume_is_named(client: httpx.AsyncClient) -> None:
    mounts = [{"name": "nothing", "path": "/a"}]
    answer = await client.post("/v2/sandboxes", json={"templateID": "base", "volumeMounts": mounts})
    assert answer.status_code == 404
    assert "nothing" in answer.json()["message"]
