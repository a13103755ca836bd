"""Get, kill, timeout, refreshes, connect and what is refused."""

from datetime import datetime, timedelta

import httpx
import pytest
from tests.fakes.clock import FakeClock
from tests.fakes.control_plane import TEMPLATE_ID, assert_problem, create
from tests.fakes.placement import FakePlacement

from cloche_server.api.control import ControlPlane
from cloche_server.ids import SandboxId
from cloche_wire.errors import Unavailable

pytestmark = pytest.mark.anyio

CALLS: list[tuple[str, str, dict[str, object] | None]] = [
    ("GET", "/sandboxes/{id}", None),
    ("DELETE", "/sandboxes/{id}", None),
    ("POST", "/sandboxes/{id}/timeout", {"timeout": 5}),
    ("POST", "/sandboxes/{id}/refreshes", {"duration": 5}),
    ("POST", "/v2/sandboxes/{id}/connect", {"timeout": 5}),
    ("POST", "/sandboxes/{id}/connect", {"timeout": 5}),
    ("POST", "/sandboxes/{id}/resume", {}),
    ("POST", "/sandboxes/{id}/pause", {}),
    ("POST", "/sandboxes/{id}/fork", {}),
    ("POST", "/sandboxes/{id}/snapshots", {}),
]


async def end_of(client: httpx.AsyncClient, sandbox: str) -> datetime:
    return datetime.fromisoformat((await client.get(f"/sandboxes/{sandbox}")).json()["endAt"])


async def test_the_detail_tells_all_there_is(client: httpx.AsyncClient, placement: FakePlacement) -> None:
    made = await create(client, metadata={"a": "b"}, network={"allowPublicTraffic": False})
    body = (await client.get(f"/sandboxes/{made}")).json()
    assert body == {
        "templateID": TEMPLATE_ID,
        "sandboxID": made,
        "clientID": "cloche",
        "alias": "base",
        "startedAt": "2026-01-01T00:00:00Z",
        "endAt": "2026-01-01T00:05:00Z",
        "cpuCount": 2,
        "memoryMB": 2048,
        "diskSizeMB": 0,
        "state": "running",
        "metadata": {"a": "b"},
        "volumeMounts": [],
        "isolation": "fake",
        "frozen": False,
        "envdVersion": "0.6.13",
        "envdAccessToken": placement.created[0].access_token,
        "domain": "cloche.localhost:3000",
        "allowInternetAccess": True,
        "network": {"allowPublicTraffic": False},
        "lifecycle": {"autoResume": False, "onTimeout": "kill"},
    }


async def test_what_was_asked_of_the_end_of_its_time_is_shown(client: httpx.AsyncClient) -> None:
    made = await create(client, autoPause=False, autoResume={"enabled": True})
    body = (await client.get(f"/sandboxes/{made}")).json()
    assert body["lifecycle"] == {"autoResume": True, "onTimeout": "kill"}


async def test_an_mcp_configuration_is_for_the_client_to_start(client: httpx.AsyncClient) -> None:
    await create(client, mcp={"exa": {"apiKey": "k"}}, iam={"tokens": {}})


@pytest.mark.parametrize(("method", "path", "body"), CALLS)
async def test_a_foreign_sandbox_answers_like_an_unknown_one(
    client: httpx.AsyncClient,
    stranger: httpx.AsyncClient,
    placement: FakePlacement,
    method: str,
    path: str,
    body: dict[str, object] | None,
) -> None:
    made = await create(client)
    before = (await client.get(f"/sandboxes/{made}")).json()
    for asked in (made, "i" + "0" * 20):
        answer = await stranger.request(method, path.replace("{id}", asked), json=body)
        assert answer.status_code == 404
        message = f"Sandbox \"{asked}\" doesn't exist or you don't have access to it"
        assert answer.json() == {"code": 404, "message": message}
    assert (await client.get(f"/sandboxes/{made}")).json() == before
    assert made in placement.alive


@pytest.mark.parametrize(("method", "path", "body"), CALLS)
async def test_an_id_that_is_none_is_400(
    client: httpx.AsyncClient, method: str, path: str, body: dict[str, object] | None
) -> None:
    for bad in ("ABC", "a_b", "%00", "%2e%2e", "x" * 50, "%ff", "-x", "a%2Fb"):
        assert_problem(await client.request(method, path.replace("{id}", bad), json=body), 400)


async def test_a_killed_sandbox_is_gone_from_node_and_lists(
    client: httpx.AsyncClient, placement: FakePlacement
) -> None:
    made = await create(client)
    answer = await client.delete(f"/sandboxes/{made}")
    assert (answer.status_code, answer.content) == (204, b"")
    assert placement.killed == [(made, "killed")]
    assert_problem(await client.delete(f"/sandboxes/{made}"), 404)
    assert (await client.get("/v2/sandboxes")).json() == []


async def test_the_tokens_are_forgotten_at_the_end(client: httpx.AsyncClient, control: ControlPlane) -> None:
    made = await create(client, network={"allowPublicTraffic": False})
    await client.delete(f"/sandboxes/{made}")
    team = control.store.keys.list()[0][0].team_id
    record = await control.store.sandboxes.get(team, SandboxId(made))
    assert record is not None
    assert (record.state, record.end_reason) == ("ended", "killed")
    assert (record.access_token, record.traffic_token) == ("", None)


async def test_a_timeout_is_counted_from_now_and_may_shorten(
    client: httpx.AsyncClient, clock: FakeClock
) -> None:
    made = await create(client, timeout=300)
    clock.advance(10)
    assert (await client.post(f"/sandboxes/{made}/timeout", json={"timeout": 60})).status_code == 204
    assert await end_of(client, made) == clock.now() + timedelta(seconds=60)
    # As E2B's: clients have a sandbox paused by its time-out so.
    assert (await client.post(f"/sandboxes/{made}/timeout", json={"timeout": 0})).status_code == 204
    assert await end_of(client, made) == clock.now()


@pytest.mark.parametrize("body", [{"timeout": 86401}, {"timeout": -5}, {"timeout": 1.5}, {}])
async def test_a_timeout_out_of_range_is_400(client: httpx.AsyncClient, body: dict[str, object]) -> None:
    made = await create(client)
    assert_problem(await client.post(f"/sandboxes/{made}/timeout", json=body), 400, "imeout")


@pytest.mark.parametrize(
    "path", ["/sandboxes/{id}/refreshes", "/v2/sandboxes/{id}/connect", "/sandboxes/{id}/connect"]
)
async def test_refreshes_and_connect_only_put_the_end_off(
    client: httpx.AsyncClient, clock: FakeClock, path: str
) -> None:
    made = await create(client, timeout=300)
    started = clock.now()
    clock.advance(10)
    await client.post(path.replace("{id}", made), json={"timeout": 60, "duration": 60})
    assert await end_of(client, made) == started + timedelta(seconds=300)
    await client.post(path.replace("{id}", made), json={"timeout": 600, "duration": 600})
    assert await end_of(client, made) == clock.now() + timedelta(seconds=600)


async def test_connect_answers_like_create(client: httpx.AsyncClient) -> None:
    made = (await client.post("/v2/sandboxes", json={"templateID": "base"})).json()
    answer = await client.post(f"/v2/sandboxes/{made['sandboxID']}/connect", json={})
    assert (answer.status_code, answer.json()) == (200, made)


async def test_the_old_form_of_an_id_is_accepted(client: httpx.AsyncClient) -> None:
    made = await create(client)
    assert (await client.get(f"/sandboxes/{made}-6532622b")).json()["sandboxID"] == made


@pytest.mark.parametrize(
    ("path", "body", "part"),
    [
        ("fork", {"count": 0}, "Count must be at least 1"),
        ("fork", {"count": 101}, "Count"),
        ("fork", {"timeout": 10**6}, "Timeout cannot be greater than 24 hours"),
        ("pause", {"memory": "no"}, "memory"),
        ("snapshots", {"name": 1}, "name"),
        ("resume", {"timeout": 10**6}, "Timeout cannot be greater than 24 hours"),
    ],
)
async def test_a_mistake_is_told_before_a_node_is_asked(
    client: httpx.AsyncClient, path: str, body: dict[str, object], part: str
) -> None:
    made = await create(client)
    assert_problem(await client.post(f"/sandboxes/{made}/{path}", json=body), 400, part)


async def test_a_sandbox_the_node_does_not_know_is_404_and_ended(
    client: httpx.AsyncClient, placement: FakePlacement
) -> None:
    for method, path, body in CALLS[1:6]:
        made = await create(client)
        placement.alive.clear()
        assert_problem(await client.request(method, path.replace("{id}", made), json=body), 404)
        assert (await client.get("/v2/sandboxes")).json() == []


async def test_reads_go_on_while_the_node_is_away(
    client: httpx.AsyncClient, placement: FakePlacement
) -> None:
    made = await create(client)
    placement.fails = Unavailable("down")
    assert (await client.get(f"/sandboxes/{made}")).status_code == 200
    answer = await client.delete(f"/sandboxes/{made}")
    assert_problem(answer, 503)
    assert "should-retry" not in answer.headers
    assert [one["sandboxID"] for one in (await client.get("/sandboxes")).json()] == [made]
