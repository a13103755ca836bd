"""Pausing and resuming: what is answered, what is kept, and that nothing is lost when something fails."""

from datetime import timedelta

import anyio
import httpx
import pytest
from tests.fakes.clock import FakeClock
from tests.fakes.control_plane import assert_problem, create
from tests.fakes.placement import FakePlacement

from cloche_server.api import pausing
from cloche_server.api.control import ControlPlane
from cloche_server.node.messages import LogsQuery, PauseSandbox, ResumeSandbox, SetTimeout
from cloche_wire.errors import (
    Conflict,
    DeadlineExceeded,
    Internal,
    NotEnoughSpace,
    ResourceExhausted,
    SandboxNotFound,
    SnapshotUnusable,
    Unavailable,
)

pytestmark = pytest.mark.anyio


async def pause(client: httpx.AsyncClient, **body: object) -> str:
    made = await create(client)
    answer = await client.post(f"/sandboxes/{made}/pause", json=body)
    assert (answer.status_code, answer.content) == (204, b"")
    return made


async def detail(client: httpx.AsyncClient, sandbox: str) -> dict[str, object]:
    answer = await client.get(f"/sandboxes/{sandbox}")
    assert answer.status_code == 200
    return answer.json()


async def state(client: httpx.AsyncClient, sandbox: str) -> object:
    return (await detail(client, sandbox))["state"]


async def test_a_pause_needs_no_body_and_keeps_memory(
    client: httpx.AsyncClient, placement: FakePlacement, clock: FakeClock
) -> None:
    made = await create(client)
    clock.advance(7)
    assert (await client.post(f"/sandboxes/{made}/pause")).status_code == 204
    assert placement.paused == [PauseSandbox(made, memory=True)]
    shown = await detail(client, made)
    assert (shown["state"], shown["pauseMode"], shown["endAt"]) == ("paused", "full", "2026-01-01T00:00:07Z")


async def test_a_pause_may_keep_files_only(client: httpx.AsyncClient, placement: FakePlacement) -> None:
    made = await pause(client, memory=False, requireHealthyGuest=False)
    assert placement.paused == [PauseSandbox(made, memory=False)]
    assert (await detail(client, made))["pauseMode"] == "filesystem"


@pytest.mark.parametrize("version", ["/v2", ""])
async def test_a_connect_resumes_with_the_same_id_and_token(
    client: httpx.AsyncClient, placement: FakePlacement, clock: FakeClock, version: str
) -> None:
    made = (await client.post("/v2/sandboxes", json={"templateID": "base"})).json()
    sandbox = made["sandboxID"]
    await client.post(f"/sandboxes/{sandbox}/pause")
    clock.advance(3600)
    answer = await client.post(f"{version}/sandboxes/{sandbox}/connect", json={"timeout": 60})
    assert (answer.status_code, answer.json()) == (201, made)
    assert placement.resumed == [ResumeSandbox(sandbox, 60)]
    shown = await detail(client, sandbox)
    assert (shown["state"], "pauseMode" in shown) == ("running", False)
    assert shown["startedAt"] == "2026-01-01T00:00:00Z"
    assert shown["endAt"] == "2026-01-01T01:01:00Z"
    again = await client.post(f"{version}/sandboxes/{sandbox}/connect", json={"timeout": 60})
    assert (again.status_code, again.json()) == (200, made)


async def test_a_connect_may_ask_for_a_start_from_the_files(
    client: httpx.AsyncClient, placement: FakePlacement
) -> None:
    made = await pause(client)
    answer = await client.post(f"/v2/sandboxes/{made}/connect", json={"memory": False})
    assert answer.status_code == 201
    assert placement.resumed == [ResumeSandbox(made, 300, memory=False)]


async def test_an_old_resume_answers_like_a_connect_and_409_when_it_runs(
    client: httpx.AsyncClient, placement: FakePlacement
) -> None:
    made = await pause(client)
    answer = await client.post(f"/sandboxes/{made}/resume", json={"autoPause": False})
    assert (answer.status_code, answer.json()["sandboxID"]) == (201, made)
    assert placement.resumed == [ResumeSandbox(made, 15)]
    again = await client.post(f"/sandboxes/{made}/resume")
    assert_problem(again, 409, f"Sandbox {made} is already running")


async def test_an_old_resume_cannot_change_what_the_time_out_does(client: httpx.AsyncClient) -> None:
    made = await pause(client)
    assert_problem(await client.post(f"/sandboxes/{made}/resume", json={"autoPause": True}), 400, "autoPause")
    assert await state(client, made) == "paused"


async def test_what_is_paused_cannot_be_paused_again(
    client: httpx.AsyncClient, placement: FakePlacement
) -> None:
    made = await pause(client)
    answer = await client.post(f"/sandboxes/{made}/pause")
    assert_problem(answer, 409, f"Error pausing sandbox - sandbox '{made}' is already paused")
    assert len(placement.paused) == 1


async def test_of_two_pauses_at_once_one_is_told_that_it_is_paused(
    client: httpx.AsyncClient, placement: FakePlacement
) -> None:
    made = await create(client)
    placement.act_gate = anyio.Event()
    answers: list[int] = []

    async def ask(path: str) -> None:
        answers.append((await client.post(path.format(made), json={})).status_code)

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(ask, "/sandboxes/{}/pause")
        await placement.act_asked.wait()
        tasks.start_soon(ask, "/sandboxes/{}/pause")
        await anyio.wait_all_tasks_blocked()
        tasks.start_soon(ask, "/v2/sandboxes/{}/connect")
        await anyio.wait_all_tasks_blocked()
        placement.act_gate.set()
    assert sorted(answers) == [201, 204, 409]
    assert await state(client, made) == "running"


async def test_a_paused_sandbox_is_listed_with_the_others_in_one_order(
    client: httpx.AsyncClient, clock: FakeClock
) -> None:
    made: list[str] = []
    for _ in range(4):
        made.append(await create(client))
        clock.advance(1)
    for sandbox in made[::2]:
        await client.post(f"/sandboxes/{sandbox}/pause")

    async def listed(query: str) -> list[str]:
        return [one["sandboxID"] for one in (await client.get(f"/v2/sandboxes?{query}")).json()]

    assert await listed("") == made[::-1]
    assert await listed("state=paused") == made[2::-2]
    assert await listed("state=running") == made[3::-2]
    first = await client.get("/v2/sandboxes?state=paused&limit=1")
    assert [(one["sandboxID"], one["state"]) for one in first.json()] == [(made[2], "paused")]
    assert first.headers["X-Total-Running"] == "2"
    rest = await listed(f"state=paused&limit=1&nextToken={first.headers['x-next-token']}")
    assert rest == [made[0]]
    assert [one["sandboxID"] for one in (await client.get("/sandboxes")).json()] == made[3::-2]


async def test_a_paused_sandbox_can_be_killed(client: httpx.AsyncClient, placement: FakePlacement) -> None:
    made = await pause(client)
    assert (await client.delete(f"/sandboxes/{made}")).status_code == 204
    assert not placement.alive
    for call in (client.delete(f"/sandboxes/{made}"), client.post(f"/v2/sandboxes/{made}/connect")):
        assert_problem(await call, 404)


async def test_a_paused_sandbox_has_no_time_out_and_no_network_to_change(client: httpx.AsyncClient) -> None:
    made = await pause(client)
    for path in ("timeout", "refreshes"):
        body = {"timeout": 5, "duration": 5}
        assert_problem(await client.post(f"/sandboxes/{made}/{path}", json=body), 404, "is paused")
    assert_problem(await client.put(f"/sandboxes/{made}/network", json={}), 409, "is paused")
    assert (await client.get(f"/sandboxes/{made}/metrics")).json() == []
    assert (await client.get(f"/v2/sandboxes/{made}/logs")).json() == {"logs": []}


async def test_a_paused_sandbox_takes_no_place_until_it_runs_again(client: httpx.AsyncClient) -> None:
    paused = await pause(client)
    others = [await create(client) for _ in range(5)]
    answer = await client.post(f"/v2/sandboxes/{paused}/connect", json={})
    assert_problem(answer, 429, "current 5, maximum 5")
    assert await state(client, paused) == "paused"
    await client.delete(f"/sandboxes/{others[0]}")
    assert (await client.post(f"/v2/sandboxes/{paused}/connect", json={})).status_code == 201


async def test_pauses_and_resumes_are_events(client: httpx.AsyncClient, clock: FakeClock) -> None:
    made = await create(client)
    clock.advance(10)
    await client.post(f"/sandboxes/{made}/pause")
    await client.post(f"/v2/sandboxes/{made}/connect", json={})
    resumed, paused, created = (await client.get(f"/events/sandboxes/{made}")).json()
    assert [event["type"].rpartition(".")[2] for event in (created, paused, resumed)] == [
        "created",
        "paused",
        "resumed",
    ]
    assert paused["eventData"]["execution"]["execution_time"] == 10_000
    assert created["sandboxExecutionId"] == paused["sandboxExecutionId"] != resumed["sandboxExecutionId"]


# --- what an isolation cannot --------------------


async def test_an_isolation_that_cannot_pause_says_so_and_it_runs_on(
    client: httpx.AsyncClient, placement: FakePlacement
) -> None:
    placement.can_keep = False
    made = await create(client)
    assert_problem(await client.post(f"/sandboxes/{made}/pause"), 400, "'gvisor' can")
    assert await state(client, made) == "running"


async def test_a_create_that_wants_to_be_paused_reaches_the_node(
    client: httpx.AsyncClient, placement: FakePlacement
) -> None:
    made = await create(client, autoPause=True, autoResume={"enabled": True})
    order = placement.created[0]
    assert (order.on_timeout, order.pause_memory, order.auto_resume) == ("pause", True, True)
    assert (await detail(client, made))["lifecycle"] == {"autoResume": True, "onTimeout": "pause"}
    await create(client, autoPause=True, autoPauseMemory=False)
    assert not placement.created[1].pause_memory


async def test_a_create_that_the_isolation_cannot_pause_leaves_nothing(
    client: httpx.AsyncClient, placement: FakePlacement, control: ControlPlane
) -> None:
    placement.can_keep = False
    answer = await client.post("/v2/sandboxes", json={"templateID": "base", "autoPause": True})
    assert_problem(answer, 400, "'gvisor' can")
    assert not await control.store.liveness.alive()
    assert not placement.alive


# --- what fails --------------------


@pytest.mark.parametrize(
    ("failure", "status"),
    [
        (NotEnoughSpace("disk is full"), 507),
        (Internal("agent does not let itself be frozen"), 500),
        (Unavailable("node.sock broke the connection"), 503),
        (DeadlineExceeded("node local did not answer pause within 60 s"), 504),
        (Conflict("sandbox is being resumed"), 409),
    ],
)
async def test_a_pause_that_fails_leaves_it_running(
    client: httpx.AsyncClient, placement: FakePlacement, failure: Unavailable, status: int
) -> None:
    made = await create(client)
    placement.fails_pause = failure
    assert_problem(await client.post(f"/sandboxes/{made}/pause"), status)
    assert await state(client, made) == "running"
    placement.fails_pause = None
    assert (await client.post(f"/sandboxes/{made}/pause")).status_code == 204


@pytest.mark.parametrize(
    ("failure", "status"),
    [
        (SnapshotUnusable("image is truncated: pages.img"), 409),
        (ResourceExhausted("no slot is free"), 429),
        (Unavailable("node.sock broke the connection"), 503),
        (DeadlineExceeded("node local did not answer resume within 60 s"), 504),
    ],
)
@pytest.mark.parametrize("path", ["/v2/sandboxes/{}/connect", "/sandboxes/{}/resume"])
async def test_a_resume_that_fails_leaves_it_paused(
    client: httpx.AsyncClient, placement: FakePlacement, failure: Unavailable, status: int, path: str
) -> None:
    made = await pause(client)
    placement.fails_resume = failure
    assert_problem(await client.post(path.format(made), json={}), status)
    assert await state(client, made) == "paused"
    placement.fails_resume = None
    assert (await client.post(path.format(made), json={})).status_code == 201


async def test_acts_whose_answers_are_lost_count_when_the_node_has_done_them(
    client: httpx.AsyncClient, placement: FakePlacement
) -> None:
    made = await create(client)
    placement.fails_after_act = Unavailable("node.sock closed the connection before it answered")
    assert (await client.post(f"/sandboxes/{made}/pause")).status_code == 204
    assert await state(client, made) == "paused"
    assert (await client.post(f"/v2/sandboxes/{made}/connect", json={})).status_code == 201
    assert await state(client, made) == "running"


async def test_a_row_that_is_behind_the_node_is_no_reason_to_fail(
    client: httpx.AsyncClient, placement: FakePlacement
) -> None:
    made = await create(client)
    placement.turn(made, "paused")  # by its time-out; nobody follows the node here
    assert (await client.post(f"/v2/sandboxes/{made}/connect", json={})).status_code == 201
    placement.turn(made, "paused")
    assert_problem(await client.post(f"/sandboxes/{made}/pause"), 409, "is already paused")
    placement.turn(made, "running")  # by traffic
    assert (await client.post(f"/v2/sandboxes/{made}/connect", json={})).status_code == 200
    await client.post(f"/sandboxes/{made}/pause")
    placement.turn(made, "running")
    assert_problem(await client.post(f"/sandboxes/{made}/resume"), 409, "is already running")


async def test_a_connect_to_one_that_the_node_is_busy_with_gives_up_in_the_end(
    client: httpx.AsyncClient, placement: FakePlacement, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pausing, "BUSY_PATIENCE_S", 0.01)
    made = await pause(client)
    placement.fails_resume = Conflict("sandbox is being paused")
    assert_problem(await client.post(f"/v2/sandboxes/{made}/connect", json={}), 409, "being paused")
    assert await state(client, made) == "paused"


async def test_a_verb_that_does_not_find_a_paused_sandbox_does_not_end_it(
    client: httpx.AsyncClient, placement: FakePlacement, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = await create(client)
    placement.turn(made, "paused")

    async def miss(timeout: SetTimeout) -> None:
        raise SandboxNotFound(f"no such sandbox: {timeout.sandbox_id}")

    monkeypatch.setattr(placement, "set_timeout", miss)
    answer = await client.post(f"/sandboxes/{made}/timeout", json={"timeout": 5})
    assert_problem(answer, 409, f"Sandbox {made} is paused")
    assert await state(client, made) == "paused"


async def test_a_kill_does_not_wait_for_a_pause(
    client: httpx.AsyncClient, placement: FakePlacement, control: ControlPlane
) -> None:
    made = await create(client)
    placement.act_gate = anyio.Event()
    answers: list[httpx.Response] = []

    async def ask() -> None:
        answers.append(await client.post(f"/sandboxes/{made}/pause"))

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(ask)
        await placement.act_asked.wait()
        assert (await client.delete(f"/sandboxes/{made}")).status_code == 204
        placement.act_gate.set()
    assert_problem(answers[0], 404)
    assert not await control.store.liveness.alive()


async def test_a_paused_sandbox_that_the_node_has_lost_is_404_and_ended(
    client: httpx.AsyncClient, placement: FakePlacement
) -> None:
    made = await pause(client)
    placement.alive.clear()
    assert_problem(await client.post(f"/v2/sandboxes/{made}/connect", json={}), 404)
    assert (await client.get("/v2/sandboxes")).json() == []


async def test_a_sandbox_that_hangs_is_not_paused_when_health_is_asked_for(
    client: httpx.AsyncClient, placement: FakePlacement, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = await create(client)

    async def hang(query: LogsQuery) -> None:
        raise Internal("agent does not answer")

    with monkeypatch.context() as patch:
        patch.setattr(placement, "logs", hang)
        answer = await client.post(f"/sandboxes/{made}/pause", json={"requireHealthyGuest": True})
        assert_problem(answer, 503, "it was not paused")
        assert await state(client, made) == "running"
    placement.logged[made] = []
    answer = await client.post(f"/sandboxes/{made}/pause", json={"requireHealthyGuest": True})
    assert answer.status_code == 204


async def test_an_end_by_the_clock_is_that_of_the_resume(
    client: httpx.AsyncClient, placement: FakePlacement, clock: FakeClock
) -> None:
    made = await pause(client)
    clock.advance(5)
    await client.post(f"/v2/sandboxes/{made}/connect", json={"timeout": 30})
    assert placement.alive[made].end_at == clock.now() + timedelta(seconds=30)
