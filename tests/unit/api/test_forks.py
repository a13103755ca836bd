"""Forks: each child is a sandbox of its own and fails for itself; the copy between them does not stay."""

import anyio
import httpx
import pytest
from tests.fakes.control_plane import TEMPLATE_ID, assert_problem, create
from tests.fakes.placement import FakePlacement

from cloche_server.api import forks
from cloche_server.api.control import ControlPlane
from cloche_server.api.reconcile import reconcile
from cloche_server.node.messages import CreateSandbox, SandboxState, TakeSnapshot
from cloche_wire.errors import Internal, NotEnoughSpace, Unavailable

pytestmark = pytest.mark.anyio


async def fork(client: httpx.AsyncClient, sandbox: str, **body: object) -> list[dict[str, dict[str, object]]]:
    answer = await client.post(f"/sandboxes/{sandbox}/fork", json=body)
    assert answer.status_code == 201, answer.text
    return answer.json()


async def nothing_is_left(control: ControlPlane, placement: FakePlacement) -> bool:
    unfinished = await control.store.snapshots.unfinished()
    states = {*(await control.store.liveness.alive()).values()}
    return not placement.snapshots and not unfinished and "creating" not in states


async def test_a_child_is_like_its_parent_with_an_id_and_tokens_of_its_own(
    client: httpx.AsyncClient, placement: FakePlacement, control: ControlPlane
) -> None:
    wishes = {
        "metadata": {"a": "b"},
        "network": {"allowPublicTraffic": False, "denyOut": ["8.8.8.8"], "httpsPorts": [8443]},
        "allow_internet_access": False,
        "autoPause": True,
    }
    parent = await create(client, **wishes)
    (result,) = await fork(client, parent)
    child = result["sandbox"]
    first, order = placement.created
    assert order.snapshot_id is not None
    assert order.sandbox_id == child["sandboxID"] != parent
    assert order.timeout_s == 15
    assert order.access_token == child["envdAccessToken"] != first.access_token
    assert order.traffic_token == child["trafficAccessToken"] != first.traffic_token
    same = ("template_id", "build_id", "metadata", "egress", "allow_internet", "https_ports", "on_timeout")
    assert {name: getattr(order, name) for name in same} == {name: getattr(first, name) for name in same}
    shown = (await client.get(f"/sandboxes/{order.sandbox_id}")).json()
    assert (shown["parentSandboxID"], shown["templateID"]) == (parent, TEMPLATE_ID)
    assert "snapshotID" not in shown
    assert (shown["metadata"], shown["isolation"]) == ({"a": "b"}, "fake")
    assert shown["network"]["denyOut"] == ["8.8.8.8"]
    assert placement.alive[parent].state == "running"
    assert await nothing_is_left(control, placement)


async def test_there_are_as_many_as_were_asked_for_all_of_one_copy(
    client: httpx.AsyncClient, placement: FakePlacement, control: ControlPlane
) -> None:
    parent = await create(client)
    results = await fork(client, parent, count=4, timeout=60)
    ids = {result["sandbox"]["sandboxID"] for result in results}
    assert ids == placement.alive.keys() - {parent}
    assert len({result["sandbox"]["envdAccessToken"] for result in results}) == 4
    (snapshot_id,) = {order.snapshot_id for order in placement.created[1:]}
    assert placement.taken == [TakeSnapshot(parent, snapshot_id or "", for_now=True)]
    assert {order.timeout_s for order in placement.created[1:]} == {60}
    found = (await client.get("/v2/sandboxes")).json()
    assert {one["sandboxID"] for one in found if one.get("parentSandboxID") == parent} == ids
    assert (await client.get("/snapshots")).json() == []
    assert await nothing_is_left(control, placement)


@pytest.mark.parametrize(
    ("count", "message"), [(0, "Count must be at least 1"), (-1, "at least 1"), (101, "greater than 100")]
)
async def test_a_count_that_is_none_is_400(
    client: httpx.AsyncClient, placement: FakePlacement, count: int, message: str
) -> None:
    parent = await create(client)
    answer = await client.post(f"/sandboxes/{parent}/fork", json={"count": count})
    assert_problem(answer, 400, message)
    assert len(placement.created) == 1


async def test_a_paused_sandbox_is_not_forked(client: httpx.AsyncClient) -> None:
    parent = await create(client)
    await client.post(f"/sandboxes/{parent}/pause")
    answer = await client.post(f"/sandboxes/{parent}/fork")
    assert_problem(answer, 409, "is paused and cannot be forked; resume it first")


async def test_those_above_the_limit_fail_for_themselves(
    client: httpx.AsyncClient, placement: FakePlacement, control: ControlPlane
) -> None:
    parent = await create(client)
    results = await fork(client, parent, count=7)
    errors = [result["error"] for result in results if "error" in result]
    assert [error["code"] for error in errors] == [429] * 3
    assert sum("sandbox" in result for result in results) == 4
    assert len(placement.alive) == 5
    assert await nothing_is_left(control, placement)


async def test_a_child_that_fails_is_told_and_leaves_nothing(
    client: httpx.AsyncClient,
    placement: FakePlacement,
    control: ControlPlane,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    parent = await create(client)
    create_one = placement.create

    async def fail_second(sandbox: CreateSandbox, *, timeout_s: float) -> SandboxState:
        state = await create_one(sandbox, timeout_s=timeout_s)
        if len(placement.created) == 3:
            raise Internal("agent has not answered")
        return state

    monkeypatch.setattr(placement, "create", fail_second)
    results = await fork(client, parent, count=3)
    assert sum("sandbox" in result for result in results) == 2
    (error,) = [result["error"] for result in results if "error" in result]
    assert error == {"code": 500, "message": "agent has not answered"}
    assert len(placement.alive) == 3
    assert await nothing_is_left(control, placement)


async def test_only_a_few_are_made_at_once(
    client: httpx.AsyncClient, placement: FakePlacement, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(forks, "FORKS_AT_ONCE", 2)
    parent = await create(client)
    create_one = placement.create
    inside: list[int] = [0]
    two = anyio.Event()

    async def count(sandbox: CreateSandbox, *, timeout_s: float) -> SandboxState:
        inside.append(inside[-1] + 1)
        if inside[-1] == 2:
            two.set()
        await two.wait()
        state = await create_one(sandbox, timeout_s=timeout_s)
        inside.append(inside[-1] - 1)
        return state

    monkeypatch.setattr(placement, "create", count)
    assert len(await fork(client, parent, count=4)) == 4
    assert max(inside) == 2


@pytest.mark.parametrize("is_after", [False, True])
async def test_a_copy_that_fails_makes_no_child(
    client: httpx.AsyncClient, placement: FakePlacement, control: ControlPlane, is_after: bool
) -> None:
    parent = await create(client)
    failure = NotEnoughSpace("disk is full")
    placement.fails_pause, placement.fails_after_act = (None, failure) if is_after else (failure, None)
    assert_problem(await client.post(f"/sandboxes/{parent}/fork", json={"count": 3}), 507)
    assert [*placement.alive] == [parent]
    assert await nothing_is_left(control, placement)


async def test_an_isolation_that_cannot_says_so(client: httpx.AsyncClient, placement: FakePlacement) -> None:
    placement.can_keep = False
    parent = await create(client)
    assert_problem(await client.post(f"/sandboxes/{parent}/fork"), 400, "'gvisor' can")


async def test_a_copy_that_could_not_be_taken_away_goes_with_the_next_comparison(
    client: httpx.AsyncClient,
    placement: FakePlacement,
    control: ControlPlane,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    parent = await create(client)

    async def fail(_: str) -> None:
        raise Unavailable("down")

    with monkeypatch.context() as patch:
        patch.setattr(placement, "remove_snapshot", fail)
        assert len(await fork(client, parent, count=2)) == 2
    assert len(placement.snapshots) == 1
    assert (await client.get("/snapshots")).json() == []
    await reconcile(control)
    assert await nothing_is_left(control, placement)
    assert len(placement.alive) == 3


async def test_copies_of_files_alone_are_asked_for_by_a_field_of_ours(
    client: httpx.AsyncClient, placement: FakePlacement
) -> None:
    parent = await create(client)
    await fork(client, parent, memory=False)
    snapshot_id = placement.created[-1].snapshot_id or ""
    assert placement.taken == [TakeSnapshot(parent, snapshot_id, memory=False, for_now=True)]
