"""Pausing and resuming as rows: the limit, the events, how long each run was, how many ran at once."""

from datetime import timedelta

import msgspec
import pytest
from tests.fakes.clock import FakeClock

from cloche_server.ids import BuildId, SandboxId, TeamId, TemplateId
from cloche_server.store.events import EventQuery
from cloche_server.store.sandboxes import SandboxRecord
from cloche_server.store.store import Store
from cloche_server.store.team_load import LoadQuery
from cloche_wire.errors import ResourceExhausted

pytestmark = pytest.mark.anyio

ID = SandboxId("ione")


async def run_one(store: Store, clock: FakeClock, sandbox: SandboxId = ID, **more: object) -> TeamId:
    team = store.keys.create("key", "team", clock.now())[0].team_id
    now = clock.now()
    record = SandboxRecord(
        sandbox,
        team,
        TemplateId("t"),
        BuildId("b"),
        "base",
        {},
        "token",
        None,
        None,
        allow_internet=True,
        cpu_count=2,
        memory_mib=512,
        disk_mib=0,
        started_at=now,
        end_at=now,
        **more,  # pyright: ignore[reportArgumentType]
    )
    await store.sandboxes.reserve(record, None, max_running=9)
    running = msgspec.structs.replace(
        record, state="running", end_at=now + timedelta(seconds=300), isolation="fake"
    )
    assert await store.sandboxes.mark_running(running)
    return team


async def test_a_pause_ends_its_time_and_happens_once(store: Store, clock: FakeClock) -> None:
    team = await run_one(store, clock)
    clock.advance(10)
    assert await store.pausing.mark_paused(team, ID, clock.now(), mode="filesystem")
    clock.advance(10)
    assert not await store.pausing.mark_paused(team, ID, clock.now())
    record = await store.sandboxes.get(team, ID)
    assert record is not None
    assert (record.state, record.pause_mode) == ("paused", "filesystem")
    assert record.end_at == clock.now() - timedelta(seconds=10)


async def test_a_time_out_keeps_what_was_asked_of_it(store: Store, clock: FakeClock) -> None:
    team = await run_one(store, clock, lifecycle={"pauseMode": "filesystem"})
    await store.pausing.mark_paused(team, ID, clock.now())
    record = await store.sandboxes.get(team, ID)
    assert record is not None
    assert record.pause_mode == "filesystem"


async def test_a_paused_one_takes_no_place_and_needs_one_to_run_again(store: Store, clock: FakeClock) -> None:
    team = await run_one(store, clock)
    await store.pausing.mark_paused(team, ID, clock.now())
    await run_one(store, clock, SandboxId("itwo"))
    with pytest.raises(ResourceExhausted, match="current 1, maximum 1"):
        await store.pausing.begin_resume(team, ID, max_running=1)
    assert dict(await store.liveness.alive()) == {ID: "paused", "itwo": "running"}
    assert await store.pausing.begin_resume(team, ID, max_running=2)
    assert not await store.pausing.begin_resume(team, ID, max_running=9)
    await store.pausing.abandon_resume(team, ID)
    assert dict(await store.liveness.alive()) == {ID: "paused", "itwo": "running"}


async def test_each_run_is_told_by_its_own_length(store: Store, clock: FakeClock) -> None:
    team = await run_one(store, clock)
    clock.advance(10)
    await store.pausing.mark_paused(team, ID, clock.now())
    clock.advance(100)
    await store.pausing.mark_running(team, ID, clock.now() + timedelta(seconds=60), clock.now())
    clock.advance(20)
    await store.pausing.mark_paused(team, ID, clock.now())
    clock.advance(100)
    await store.sandboxes.mark_ended(team, ID, "killed", clock.now())
    events = await store.events.list(team, EventQuery(oldest_first=True))
    assert [(event.kind, event.run) for event in events] == [
        ("created", 1),
        ("paused", 1),
        ("resumed", 2),
        ("paused", 2),
        ("killed", 2),
    ]
    lengths = [
        event.details["execution"]["execution_time"] for event in events if "execution" in event.details
    ]
    assert lengths == [10_000, 20_000, 20_000]


async def test_a_paused_one_does_not_count_as_running_at_the_time(store: Store, clock: FakeClock) -> None:
    start_s = int(clock.now().timestamp())
    team = await run_one(store, clock)
    clock.advance(10)
    await store.pausing.mark_paused(team, ID, clock.now())
    clock.advance(10)
    await store.pausing.mark_running(team, ID, clock.now(), clock.now())
    clock.advance(10)
    await store.pausing.mark_paused(team, ID, clock.now())
    clock.advance(10)
    await store.sandboxes.mark_ended(team, ID, "killed", clock.now())
    points = await store.team_load.points(LoadQuery(team, start_s, start_s + 45, 5))
    assert [point.concurrent for point in points] == [1, 1, 1, 0, 1, 1, 1, 0, 0, 0]
    assert sum(point.starts_per_s for point in points) == 1 / 5


async def test_what_is_forgotten_takes_its_pauses_along(store: Store, clock: FakeClock) -> None:
    team = await run_one(store, clock)
    await store.pausing.mark_paused(team, ID, clock.now())
    await store.sandboxes.mark_ended(team, ID, "killed", clock.now())
    await store.liveness.forget_ended(clock.now() + timedelta(days=8))
    await run_one(store, clock)
    assert await store.pausing.mark_paused(team, ID, clock.now())
