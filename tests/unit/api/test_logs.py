"""Logs of sandboxes over REST."""

import json
from datetime import datetime

import httpx
import pytest
from tests.fakes.control_plane import assert_problem, create
from tests.fakes.placement import FakePlacement

from cloche_server.node.messages import LogEntry
from cloche_wire.errors import Internal

pytestmark = pytest.mark.anyio

LOG = [
    LogEntry(1_000, "info", "process", "process started", {"program": "curl", "level": "fake"}),
    LogEntry(2_000, "debug", "sandbox", "detail"),
    LogEntry(3_001, "warn", "process", "process ended by a signal", {"program": "node"}),
    LogEntry(4_000, "error", "agent", "broken"),
]


@pytest.fixture
async def made(client: httpx.AsyncClient, placement: FakePlacement) -> str:
    sandbox = await create(client)
    placement.logged[sandbox] = LOG
    return sandbox


async def messages(client: httpx.AsyncClient, sandbox: str, query: str = "") -> list[str]:
    answer = await client.get(f"/v2/sandboxes/{sandbox}/logs{query}")
    return [entry["message"] for entry in answer.json()["logs"]]


async def test_the_first_version_has_lines_that_the_command_line_can_read(
    client: httpx.AsyncClient, made: str
) -> None:
    body = (await client.get(f"/sandboxes/{made}/logs")).json()
    assert [*body] == ["logs", "logEntries"]
    first = body["logs"][0]
    assert first["timestamp"] == "1970-01-01T00:00:01Z"
    assert json.loads(first["line"]) == {
        "program": "curl", "logger": "process", "level": "info", "message": "process started",
    }  # fmt: skip
    assert body["logEntries"][0] == {
        "timestamp": "1970-01-01T00:00:01Z",
        "message": "process started",
        "level": "info",
        "fields": {"program": "curl", "level": "fake", "logger": "process"},
    }


async def test_following_from_the_last_time_on_sees_each_entry_once(
    client: httpx.AsyncClient, made: str
) -> None:
    seen: list[str] = []
    start = 0
    while logs := (await client.get(f"/sandboxes/{made}/logs?start={start}&limit=2")).json()["logs"]:
        seen += [json.loads(log["line"])["message"] for log in logs]
        start = int(datetime.fromisoformat(logs[-1]["timestamp"]).timestamp() * 1000) + 1
    assert seen == [entry.message for entry in LOG]


async def test_the_second_version_filters_and_turns_around(client: httpx.AsyncClient, made: str) -> None:
    assert await messages(client, made) == [entry.message for entry in LOG]
    assert await messages(client, made, "?cursor=3001") == ["process ended by a signal", "broken"]
    assert await messages(client, made, "?direction=backward&cursor=2000") == ["detail", "process started"]
    assert await messages(client, made, "?direction=backward&limit=1") == ["broken"]
    assert await messages(client, made, "?level=warn") == ["process ended by a signal", "broken"]
    assert await messages(client, made, "?search=curl") == ["process started"]
    assert await messages(client, made, "?search=process&limit=1") == ["process started"]


@pytest.mark.parametrize(
    "query",
    [
        "cursor=-1",
        "cursor=x",
        "cursor=999999999999999999",
        "limit=0",
        "limit=1001",
        "direction=up",
        "level=all",
    ],
)
async def test_a_bad_query_is_400(client: httpx.AsyncClient, made: str, query: str) -> None:
    assert_problem(await client.get(f"/v2/sandboxes/{made}/logs?{query}"), 400)
    assert_problem(await client.get(f"/sandboxes/{made}/logs?start=-1"), 400)
    assert_problem(await client.get(f"/v2/sandboxes/{made}/logs?search={'x' * 257}"), 400)


async def test_logs_outlive_their_sandbox_for_its_team_only(
    client: httpx.AsyncClient, stranger: httpx.AsyncClient, placement: FakePlacement, made: str
) -> None:
    await client.delete(f"/sandboxes/{made}")
    assert len(await messages(client, made)) == 4
    for path in ("/sandboxes/{}/logs", "/v2/sandboxes/{}/logs"):
        for asked in (made, "i" + "0" * 20):
            assert_problem(await stranger.get(path.format(asked)), 404, f'Sandbox "{asked}" doesn\'t exist')
    placement.logged.clear()
    assert_problem(await client.get(f"/sandboxes/{made}/logs"), 404, "doesn't exist")


async def test_an_agent_that_does_not_answer_is_an_error_with_a_code(
    client: httpx.AsyncClient, placement: FakePlacement, made: str
) -> None:
    placement.fails = Internal("the agent did not answer in 2 s")
    assert_problem(await client.get(f"/sandboxes/{made}/logs"), 500, "the agent did not answer")
