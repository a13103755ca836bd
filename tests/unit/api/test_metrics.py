"""Metrics of sandboxes and teams."""

import httpx
import pytest
from tests.fakes.clock import FakeClock
from tests.fakes.control_plane import assert_problem, create
from tests.fakes.placement import FakePlacement

from cloche_server.api.control import ControlPlane
from cloche_server.node.messages import MetricPoint
from cloche_wire.errors import Unavailable

pytestmark = pytest.mark.anyio

ABSENT = "i" + "0" * 20


@pytest.fixture
def points(clock: FakeClock, placement: FakePlacement) -> list[MetricPoint]:
    now = int(clock.now().timestamp())
    placement.points = [MetricPoint(now + 5 * n, 12.5, 100 << 20, 20 << 20, 4 << 20) for n in range(4)]
    return placement.points


def team_of(control: ControlPlane, name: str) -> str:
    return next(str(key.team_id) for key, team in control.store.keys.list() if team == name)


async def test_points_come_oldest_first_with_limits_in_bytes(
    client: httpx.AsyncClient, points: list[MetricPoint]
) -> None:
    made = await create(client)
    body = (await client.get(f"/sandboxes/{made}/metrics")).json()
    assert body[0] == {
        "timestamp": "2026-01-01T00:00:00Z",
        "timestampUnix": points[0].at_s,
        "cpuCount": 2,
        "cpuUsedPct": 12.5,
        "memUsed": 100 << 20,
        "memTotal": 2 << 30,
        "memCache": 20 << 20,
        "diskUsed": 4 << 20,
        "diskTotal": 10 << 30,
    }
    assert [point["timestampUnix"] for point in body] == [point.at_s for point in points]


async def test_a_range_holds_its_first_and_last_second(
    client: httpx.AsyncClient, points: list[MetricPoint]
) -> None:
    made = await create(client)
    asked = {"start": points[1].at_s, "end": points[2].at_s}
    body = (await client.get(f"/sandboxes/{made}/metrics", params=asked)).json()
    assert [point["timestampUnix"] for point in body] == [points[1].at_s, points[2].at_s]
    assert (await client.get(f"/sandboxes/{made}/metrics", params={"end": 5})).json() == []


@pytest.mark.parametrize("query", ["start=x", "start=-1", "end=99999999999", "start=9&end=5", "start=1.5"])
async def test_a_range_that_is_none_is_400(client: httpx.AsyncClient, query: str) -> None:
    made = await create(client)
    assert_problem(await client.get(f"/sandboxes/{made}/metrics?{query}"), 400)


async def test_a_foreign_or_killed_sandbox_has_no_metrics(
    client: httpx.AsyncClient, stranger: httpx.AsyncClient, points: list[MetricPoint]
) -> None:
    made = await create(client)
    for asked in (made, ABSENT):
        answer = await stranger.get(f"/sandboxes/{asked}/metrics")
        assert_problem(answer, 404, f"Sandbox \"{asked}\" doesn't exist or you don't have access to it")
    await client.delete(f"/sandboxes/{made}")
    assert_problem(await client.get(f"/sandboxes/{made}/metrics"), 404)


async def test_the_newest_points_of_many_leave_out_what_is_not_the_callers(
    client: httpx.AsyncClient, stranger: httpx.AsyncClient, points: list[MetricPoint]
) -> None:
    mine, other = await create(client), await create(stranger)
    asked = {"sandbox_ids": f"{mine},{other},{ABSENT}"}
    body = (await client.get("/sandboxes/metrics", params=asked)).json()
    assert [*body] == ["sandboxes"]
    assert [*body["sandboxes"]] == [mine]
    assert body["sandboxes"][mine]["timestampUnix"] == points[-1].at_s


@pytest.mark.parametrize("ids", [",".join(f"i{n:020}" for n in range(101)), "A", "../x", "%00"])
async def test_ids_that_are_none_or_too_many_are_400(client: httpx.AsyncClient, ids: str) -> None:
    assert_problem(await client.get(f"/sandboxes/metrics?sandbox_ids={ids}"), 400)
    assert_problem(await client.get("/sandboxes/metrics"), 400)


async def test_a_node_that_is_away_is_503(client: httpx.AsyncClient, placement: FakePlacement) -> None:
    made = await create(client)
    placement.fails = Unavailable("down")
    assert_problem(await client.get(f"/sandboxes/{made}/metrics"), 503)


async def test_a_team_sees_how_many_lived_at_once_and_how_fast_they_were_made(
    client: httpx.AsyncClient, stranger: httpx.AsyncClient, control: ControlPlane, clock: FakeClock
) -> None:
    team = team_of(control, "default")
    start = int(clock.now().timestamp())
    first, _ = await create(client), await create(stranger)
    clock.advance(10)
    await create(client)
    await client.delete(f"/sandboxes/{first}")
    clock.advance(10)
    asked = {"start": start, "end": start + 20}
    body = (await client.get(f"/teams/{team}/metrics", params=asked)).json()
    assert [point["concurrentSandboxes"] for point in body] == [1, 1, 2, 1, 1]
    assert [point["sandboxStartRate"] for point in body] == [0.2, 0, 0.2, 0, 0]
    assert [point["timestampUnix"] - start for point in body] == [0, 5, 10, 15, 20]
    highest = await client.get(
        f"/teams/{team}/metrics/max", params=asked | {"metric": "concurrent_sandboxes"}
    )
    assert highest.json() == {
        "timestamp": "2026-01-01T00:00:10Z",
        "timestampUnix": start + 10,
        "value": 2,
    }
    later = await client.get(f"/teams/{team}/metrics", params={"start": start + 15, "end": start + 15})
    assert [point["concurrentSandboxes"] for point in later.json()] == [1]


async def test_a_day_of_a_team_is_289_points(client: httpx.AsyncClient, control: ControlPlane) -> None:
    team = team_of(control, "default")
    assert len((await client.get(f"/teams/{team}/metrics")).json()) == 289
    assert_problem(await client.get(f"/teams/{team}/metrics?start=0"), 400, "31 days")
    assert_problem(await client.get(f"/teams/{team}/metrics/max?metric=x"), 400)


async def test_the_metrics_of_another_team_are_those_of_none(
    client: httpx.AsyncClient, stranger: httpx.AsyncClient, control: ControlPlane
) -> None:
    for path in ("metrics", "metrics/max?metric=sandbox_start_rate"):
        answers = [
            await client.get(f"/teams/{team}/{path}") for team in (team_of(control, "others"), "no-team")
        ]
        assert answers[0].status_code == 404
        assert answers[0].content == answers[1].content
