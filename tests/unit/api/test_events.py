"""Lifecycle events."""

from datetime import timedelta

import httpx
import pytest
from tests.fakes.clock import FakeClock
from tests.fakes.control_plane import TEMPLATE_ID, assert_problem, create
from tests.fakes.placement import FakePlacement

from cloche_server.api.control import ControlPlane
from cloche_wire.errors import Unavailable

pytestmark = pytest.mark.anyio

CREATED, UPDATED, KILLED = (f"sandbox.lifecycle.{kind}" for kind in ("created", "updated", "killed"))


async def kinds(client: httpx.AsyncClient, query: str = "") -> list[str]:
    return [event["type"] for event in (await client.get(f"/events/sandboxes{query}")).json()]


async def test_a_life_is_told_newest_first(client: httpx.AsyncClient, clock: FakeClock) -> None:
    made = await create(client, metadata={"a": "b"})
    clock.advance(10)
    await client.post(f"/sandboxes/{made}/timeout", json={"timeout": 60})
    clock.advance(20)
    await client.delete(f"/sandboxes/{made}")
    killed, updated, created = (await client.get(f"/events/sandboxes/{made}")).json()
    assert (created["type"], updated["type"], killed["type"]) == (CREATED, UPDATED, KILLED)
    assert created["eventData"] == {"sandbox_metadata": {"a": "b"}}
    assert updated["eventData"] == {"set_timeout": "2026-01-01T00:01:10+00:00"}
    assert killed == {
        "version": "v1",
        "id": killed["id"],
        "type": KILLED,
        "eventData": {
            "reason": "killed",
            "execution": {
                "started_at": "2026-01-01T00:00:00+00:00",
                "vcpu_count": 2,
                "memory_mb": 2048,
                "execution_time": 30_000,
            },
        },
        "sandboxBuildId": "6f1c0000-0000-4000-8000-000000000001",
        "sandboxExecutionId": created["sandboxExecutionId"],
        "sandboxId": made,
        "sandboxTeamId": created["sandboxTeamId"],
        "sandboxTemplateId": TEMPLATE_ID,
        "timestamp": "2026-01-01T00:00:30Z",
    }
    assert len({created["id"], updated["id"], killed["id"]}) == 3


async def test_the_reason_of_an_end_is_told(client: httpx.AsyncClient, control: ControlPlane) -> None:
    made = await create(client)
    await control.store.liveness.end([made], "timeout", control.clock.now())
    event = (await client.get(f"/events/sandboxes/{made}?limit=1")).json()[0]
    assert (event["type"], event["eventData"]["reason"]) == (KILLED, "timeout")


async def test_a_sandbox_that_never_ran_has_no_events(
    client: httpx.AsyncClient, placement: FakePlacement
) -> None:
    placement.fails = Unavailable("down")
    await client.post("/v2/sandboxes", json={"templateID": "base"})
    assert await kinds(client) == []


async def test_a_terminal_that_moves_the_end_every_few_seconds_is_one_event_a_minute(
    client: httpx.AsyncClient, clock: FakeClock
) -> None:
    made = await create(client)
    for _ in range(13):
        clock.advance(5)
        await client.post(f"/sandboxes/{made}/timeout", json={"timeout": 30})
    events = (await client.get(f"/events/sandboxes/{made}")).json()
    assert [event["type"] for event in events] == [UPDATED, UPDATED, CREATED]
    assert events[1]["eventData"] == {"set_timeout": "2026-01-01T00:01:30+00:00"}


async def test_filters_order_and_pages(client: httpx.AsyncClient, clock: FakeClock) -> None:
    for _ in range(3):
        await client.delete(f"/sandboxes/{await create(client)}")
        clock.advance(1)
    assert await kinds(client, f"?types={CREATED}") == [CREATED] * 3
    assert await kinds(client, f"?types={CREATED}&types={KILLED}&limit=4") == [KILLED, CREATED] * 2
    every = (await client.get("/events/sandboxes?orderAsc=true&limit=100")).json()
    assert [event["timestamp"] for event in every] == sorted(event["timestamp"] for event in every)
    paged = [
        event["id"]
        for offset in range(0, 6, 2)
        for event in (await client.get(f"/events/sandboxes?orderAsc=true&limit=2&offset={offset}")).json()
    ]
    assert paged == [event["id"] for event in every]


@pytest.mark.parametrize(
    "query",
    ["limit=0", "limit=101", "limit=x", "offset=-1", "offset=9999999999", "types=killed", "orderAsc=maybe"],
)
async def test_a_bad_query_is_400(client: httpx.AsyncClient, query: str) -> None:
    assert_problem(await client.get(f"/events/sandboxes?{query}"), 400)


async def test_events_of_others_are_as_absent_as_those_of_no_sandbox(
    client: httpx.AsyncClient, stranger: httpx.AsyncClient
) -> None:
    made = await create(client)
    assert await kinds(stranger) == []
    answers = [await stranger.get(f"/events/sandboxes/{asked}") for asked in (made, "i" + "0" * 20)]
    assert [(answer.status_code, answer.json()) for answer in answers] == [(200, [])] * 2


async def test_events_are_forgotten_after_seven_days(
    client: httpx.AsyncClient, control: ControlPlane, clock: FakeClock
) -> None:
    await client.delete(f"/sandboxes/{await create(client)}")
    await control.store.liveness.forget_ended(clock.now() + timedelta(days=6))
    assert len(await kinds(client)) == 2
    await control.store.liveness.forget_ended(clock.now() + timedelta(days=8))
    assert await kinds(client) == []
