"""Snapshots: taken, listed, used in the place of a template, removed; and that nothing half-made stays."""

from urllib.parse import quote

import anyio
import httpx
import pytest
from sqlalchemy import update
from tests.fakes.clock import FakeClock
from tests.fakes.control_plane import TEMPLATE_ID, assert_problem, create
from tests.fakes.placement import FakePlacement

from cloche_server.api.control import ControlPlane
from cloche_server.api.reconcile import reconcile
from cloche_server.node.messages import SandboxReady, TakeSnapshot, VolumeMount
from cloche_server.store.schema import snapshots
from cloche_wire.errors import Conflict, DeadlineExceeded, NotEnoughSpace, Unavailable

pytestmark = pytest.mark.anyio


async def take(client: httpx.AsyncClient, sandbox: str, **body: object) -> str:
    answer = await client.post(f"/sandboxes/{sandbox}/snapshots", json=body)
    assert answer.status_code == 201, answer.text
    return answer.json()["snapshotID"]


async def listed(client: httpx.AsyncClient, query: str = "") -> list[str]:
    answer = await client.get(f"/snapshots{query}")
    assert answer.status_code == 200, answer.text
    return [one["snapshotID"] for one in answer.json()]


async def remove(client: httpx.AsyncClient, snapshot: str) -> httpx.Response:
    return await client.delete(f"/templates/{quote(snapshot, safe='')}")


async def rows(control: ControlPlane) -> int:
    return len(await control.store.snapshots.unfinished())


async def test_a_snapshot_is_of_a_sandbox_that_runs_on(
    client: httpx.AsyncClient, placement: FakePlacement
) -> None:
    made = await create(client)
    snapshot = await take(client, made)
    bare, _, tag = snapshot.partition(":")
    assert tag == "default"
    assert [*placement.snapshots.values()] == [TakeSnapshot(made, bare)]
    assert placement.alive[made].state == "running"
    assert (await client.get("/snapshots")).json() == [{"snapshotID": snapshot, "names": []}]
    kinds = [event["type"] for event in (await client.get(f"/events/sandboxes/{made}")).json()]
    assert kinds[0] == "sandbox.lifecycle.snapshotted"


async def test_it_may_keep_files_only(client: httpx.AsyncClient, placement: FakePlacement) -> None:
    await take(client, await create(client), memory=False)
    assert [one.memory for one in placement.snapshots.values()] == [False]


async def test_a_sandbox_made_of_it_has_its_size_its_own_token_and_says_what_it_is_of(
    client: httpx.AsyncClient, placement: FakePlacement
) -> None:
    made = await create(client)
    snapshot = await take(client, made)
    await client.delete(f"/sandboxes/{made}")
    for reference in (snapshot, snapshot.partition(":")[0], snapshot.upper()):
        copy = await create(client, templateID=reference, envVars={"A": "b"}, timeout=60)
        order = placement.created[-1]
        assert order.snapshot_id == snapshot.partition(":")[0]
        assert (order.env, order.timeout_s, order.template_id) == ({"A": "b"}, 60, TEMPLATE_ID)
        assert order.access_token != placement.created[0].access_token
        shown = (await client.get(f"/sandboxes/{copy}")).json()
        assert (shown["snapshotID"], shown["parentSandboxID"]) == (order.snapshot_id, made)
        assert (shown["templateID"], shown["alias"]) == (TEMPLATE_ID, "base")
    found = (await client.get("/v2/sandboxes", params={"template": snapshot})).json()
    assert len(found) == 3
    assert {one["snapshotID"] for one in found} == {snapshot.partition(":")[0]}


async def test_sandboxes_of_it_have_its_volumes_unless_others_are_named(
    client: httpx.AsyncClient, placement: FakePlacement
) -> None:
    ids = {
        name: (await client.post("/volumes", json={"name": name})).json()["volumeID"]
        for name in ("data", "b")
    }
    mounts = [{"name": "data", "path": "/d"}]
    snapshot = await take(client, await create(client, volumeMounts=mounts))
    for asked, expected in ((None, mounts), ([], []), ([{"name": "b", "path": "/d"}],) * 2):
        body = {} if asked is None else {"volumeMounts": asked}
        made = await create(client, templateID=snapshot, **body)
        shown = (await client.get(f"/sandboxes/{made}")).json()
        assert shown.get("volumeMounts", []) == expected
        order = placement.created[-1]
        assert order.volume_mounts == tuple(VolumeMount(ids[one["name"]], one["path"]) for one in expected)
    assert (await client.delete(f"/volumes/{ids['data']}")).status_code == 204
    refused = await client.post("/v2/sandboxes", json={"templateID": snapshot})
    assert_problem(refused, 404, "data")


async def test_what_was_made_ahead_is_not_taken_for_it(
    client: httpx.AsyncClient, placement: FakePlacement
) -> None:
    made = await create(client)
    snapshot = await take(client, made)
    first = placement.created[0]
    placement.ready.add(SandboxReady("iready", first.team_id, first.build_id, 2, 2048, first.isolation))
    assert await create(client, templateID=snapshot) != "iready"
    assert await create(client) == "iready"


async def test_a_name_stands_for_the_newest_that_got_it(
    client: httpx.AsyncClient, placement: FakePlacement, clock: FakeClock
) -> None:
    made = await create(client)
    assert await take(client, made, name="Mine") == "default/mine:default"
    clock.advance(1)
    assert await take(client, made, name="default/mine") == "default/mine:default"
    clock.advance(1)
    assert await take(client, made, name="mine:v2") == "default/mine:v2"
    old, new, tagged = placement.snapshots
    assert (await client.get("/snapshots")).json() == [
        {"snapshotID": "default/mine:v2", "names": ["default/mine:v2"]},
        {"snapshotID": "default/mine:default", "names": ["default/mine:default"]},
        {"snapshotID": f"{old}:default", "names": []},
    ]
    for reference, meant in [("mine", new), ("default/mine", new), ("mine:v2", tagged), (old, old)]:
        await create(client, templateID=reference)
        assert placement.created[-1].snapshot_id == meant
    assert await listed(client, "?name=mine") == ["default/mine:default"]
    assert await listed(client, "?name=default/mine:v2") == ["default/mine:v2"]
    assert await listed(client, "?name=other/mine") == []


@pytest.mark.parametrize("name", ["a b", "a/b", "default/", ":v1", "mine:", "x" * 129, "mine:a b", "ü"])
async def test_a_bad_name_is_400(client: httpx.AsyncClient, placement: FakePlacement, name: str) -> None:
    made = await create(client)
    answer = await client.post(f"/sandboxes/{made}/snapshots", json={"name": name})
    if name == "mine:":
        assert answer.status_code == 201  # no tag is the default one
    else:
        assert_problem(answer, 400, "bad name of a snapshot")
        assert not placement.snapshots


async def test_the_name_of_a_template_is_taken(client: httpx.AsyncClient, placement: FakePlacement) -> None:
    made = await create(client)
    answer = await client.post(f"/sandboxes/{made}/snapshots", json={"name": "base"})
    assert_problem(answer, 409, "template of that name")
    assert not placement.snapshots


async def test_pages_lead_to_each_other_and_a_sandbox_has_its_own(
    client: httpx.AsyncClient, clock: FakeClock
) -> None:
    one, two = await create(client), await create(client)
    taken: list[str] = []
    for sandbox in (one, two, one, one, one):
        taken.append(await take(client, sandbox))
        clock.advance(1)
    assert await listed(client) == taken[::-1]
    assert await listed(client, f"?sandboxID={two}") == [taken[1]]
    seen: list[str] = []
    sizes: list[int] = []
    token = ""
    while True:
        answer = await client.get("/snapshots", params={"limit": "2", "nextToken": token})
        sizes.append(len(answer.json()))
        seen += [snapshot["snapshotID"] for snapshot in answer.json()]
        if not (token := answer.headers.get("x-next-token", "")):
            break
    assert (sizes, seen) == ([2, 2, 1], taken[::-1])


@pytest.mark.parametrize("query", ["limit=0", "limit=101", "nextToken=x", "sandboxID=A_B"])
async def test_a_bad_query_is_400(client: httpx.AsyncClient, query: str) -> None:
    assert_problem(await client.get(f"/snapshots?{query}"), 400)


async def test_a_removed_snapshot_makes_no_more_and_what_was_made_lives_on(
    client: httpx.AsyncClient, placement: FakePlacement
) -> None:
    snapshot = await take(client, await create(client), name="mine")
    copy = await create(client, templateID=snapshot)
    assert (await remove(client, snapshot)).status_code == 204
    assert not placement.snapshots
    assert await listed(client) == []
    assert copy in placement.alive
    for reference in (snapshot, placement.created[-1].snapshot_id):
        assert_problem(await client.post("/v2/sandboxes", json={"templateID": reference}), 404, "not found")
    assert_problem(await remove(client, snapshot), 404, "not found")


async def test_templates_of_everyone_are_not_removed_and_unknown_ones_are_404(
    client: httpx.AsyncClient,
) -> None:
    assert_problem(await remove(client, "base"), 403)
    assert_problem(await remove(client, "nope"), 404)


async def test_a_foreign_snapshot_is_as_good_as_none(
    client: httpx.AsyncClient, stranger: httpx.AsyncClient, placement: FakePlacement
) -> None:
    snapshot = await take(client, await create(client))
    named = await take(client, await create(client), name="mine")
    assert await listed(stranger) == []
    for reference in (snapshot, named, "mine"):
        assert_problem(await stranger.post("/v2/sandboxes", json={"templateID": reference}), 404)
        assert_problem(await remove(stranger, reference), 404)
    assert len(placement.snapshots) == 2


@pytest.mark.parametrize(
    ("failure", "status"),
    [
        (NotEnoughSpace("disk is full"), 507),
        (Conflict("sandbox is being paused"), 409),
        (Unavailable("node.sock broke the connection"), 503),
        (DeadlineExceeded("node local did not answer snapshot within 60 s"), 504),
    ],
)
@pytest.mark.parametrize("is_after", [False, True])
async def test_one_that_fails_leaves_nothing_and_its_sandbox_runs_on(
    client: httpx.AsyncClient,
    placement: FakePlacement,
    control: ControlPlane,
    failure: Unavailable,
    status: int,
    is_after: bool,
) -> None:
    made = await create(client)
    placement.fails_pause, placement.fails_after_act = (None, failure) if is_after else (failure, None)
    answer = await client.post(f"/sandboxes/{made}/snapshots", json={"name": "mine"})
    assert_problem(answer, status)
    assert not placement.snapshots
    assert await listed(client) == []
    assert await rows(control) == 0
    assert (await client.get(f"/sandboxes/{made}")).json()["state"] == "running"


async def test_an_isolation_that_cannot_says_so(client: httpx.AsyncClient, placement: FakePlacement) -> None:
    placement.can_keep = False
    made = await create(client)
    assert_problem(await client.post(f"/sandboxes/{made}/snapshots"), 400, "'gvisor' can")


async def test_a_paused_sandbox_cannot_be_copied(client: httpx.AsyncClient) -> None:
    made = await create(client)
    await client.post(f"/sandboxes/{made}/pause")
    assert_problem(await client.post(f"/sandboxes/{made}/snapshots"), 409, "is paused")


async def test_a_sandbox_that_the_node_has_lost_is_404_and_ended(
    client: httpx.AsyncClient, placement: FakePlacement
) -> None:
    made = await create(client)
    placement.alive.clear()
    assert_problem(await client.post(f"/sandboxes/{made}/snapshots"), 404)
    assert (await client.get("/v2/sandboxes")).json() == []


@pytest.mark.parametrize("values", [{"state": "creating"}, {"state": "removing"}, {"is_temporary": True}])
async def test_what_a_dead_api_left_is_taken_away_on_both_sides(
    client: httpx.AsyncClient, placement: FakePlacement, control: ControlPlane, values: dict[str, object]
) -> None:
    made = await create(client)
    kept = await take(client, made)
    left = (await take(client, made)).partition(":")[0]
    change = update(snapshots).where(snapshots.c.id == left).values(values)
    await control.store.database.write(lambda connection: connection.execute(change).rowcount)
    assert await listed(client) == [kept]
    assert_problem(await client.post("/v2/sandboxes", json={"templateID": left}), 404)
    await reconcile(control)
    assert [*placement.snapshots] == [kept.partition(":")[0]]
    assert await rows(control) == 0
    assert await listed(client) == [kept]


async def test_what_is_being_taken_is_left_alone(
    client: httpx.AsyncClient, placement: FakePlacement, control: ControlPlane
) -> None:
    made = await create(client)
    placement.act_gate = anyio.Event()
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(take, client, made)
        await placement.act_asked.wait()
        await reconcile(control)
        placement.act_gate.set()
    assert len(await listed(client)) == 1
    assert len(placement.snapshots) == 1


async def test_only_files_may_be_of_another_isolation_than_they_were_taken_of(
    client: httpx.AsyncClient, placement: FakePlacement
) -> None:
    """Memory goes on where it was; files are there for every kernel that is as strong, or stronger."""
    made = await create(client)
    files, memory = await take(client, made, memory=False), await take(client, made)
    await create(client, templateID=files, isolation="gvisor")
    assert placement.created[-1].isolation == "gvisor"
    answer = await client.post("/v2/sandboxes", json={"templateID": memory, "isolation": "gvisor"})
    assert_problem(answer, 400, "a snapshot keeps the isolation it was taken with")
