"""The life of a sandbox, as the client asks for it."""

from __future__ import annotations

import urllib.parse
from datetime import UTC, datetime

import httpx
import pytest
from tests.fakes.sandbox_server import DETAIL, GONE, RECORD, SandboxServer, body_of, process, stream

from cloche import SandboxQuery, SandboxState
from cloche._async.sandbox import AsyncSandbox
from cloche.errors import (
    InvalidArgument,
    ResourceExhausted,
    SandboxNotFound,
    TemplateNotFound,
    Unauthenticated,
    Unavailable,
    UnsupportedOption,
)
from cloche_wire.messages.process import DataEvent

pytestmark = pytest.mark.anyio


async def test_create_sends_the_key_and_what_was_asked_for(server: SandboxServer) -> None:
    server.on("POST /v2/sandboxes", httpx.Response(201, json=RECORD))
    sandbox = await AsyncSandbox.create(
        "base", 30, {"m": "1"}, {"E": "2"}, allow_internet_access=False, isolation="gvisor"
    )
    (request,) = server.requests
    assert request.headers["x-api-key"] == "e2b_key"
    assert request.headers["idempotency-key"]
    assert body_of(request) == {
        "templateID": "base",
        "timeout": 30,
        "metadata": {"m": "1"},
        "envVars": {"E": "2"},
        "allow_internet_access": False,
        "isolation": "gvisor",
    }
    assert sandbox.sandbox_id == "iabc"
    assert sandbox.get_host(8000) == "8000-iabc.cloche.localhost:3000"


async def test_a_busy_create_is_retried_with_the_same_idempotency_key(server: SandboxServer) -> None:
    busy = httpx.Response(429, json={"code": 429, "message": "busy"}, headers={"Retry-After": "0"})
    server.on("POST /v2/sandboxes", busy, httpx.Response(201, json=RECORD))
    await AsyncSandbox.create()
    keys = [request.headers["idempotency-key"] for request in server.requests]
    assert len(keys) == 2
    assert keys[0] == keys[1]


@pytest.mark.parametrize(
    ("status", "headers", "kind", "attempts"),
    [
        (400, {}, InvalidArgument, 1),
        (401, {}, Unauthenticated, 1),
        (404, {}, TemplateNotFound, 1),
        (503, {"Should-Retry": "false"}, Unavailable, 1),
        (429, {"Retry-After": "0"}, ResourceExhausted, 4),
    ],
)
async def test_a_refused_create_is_a_typed_error(
    server: SandboxServer, status: int, headers: dict[str, str], kind: type[Exception], attempts: int
) -> None:
    answer = httpx.Response(status, json={"code": status, "message": "no luck"}, headers=headers)
    server.on("POST /v2/sandboxes", answer)
    with pytest.raises(kind, match="no luck"):
        await AsyncSandbox.create()
    assert len(server.requests) == attempts


async def test_without_a_key_nothing_is_sent(server: SandboxServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CLOCHE_API_KEY")
    monkeypatch.delenv("E2B_API_KEY", raising=False)
    with pytest.raises(Unauthenticated, match="CLOCHE_API_KEY"):
        await AsyncSandbox.create()
    assert server.requests == []


async def test_an_option_that_does_not_exist_is_refused(server: SandboxServer) -> None:
    options: dict[str, object] = {"network": {"deny_out": ["0.0.0.0/0"]}}
    with pytest.raises(UnsupportedOption, match="network"):
        await AsyncSandbox.create(**options)  # pyright: ignore[reportArgumentType]
    assert server.requests == []


async def test_a_server_that_is_not_there_is_named(server: SandboxServer) -> None:
    def nobody(request: httpx.Request) -> httpx.Response:
        raise httpx.ConnectError("refused", request=request)

    server.on("POST /v2/sandboxes", nobody)
    with pytest.raises(Unavailable, match="cloche serve"):
        await AsyncSandbox.create()


async def test_the_end_of_the_block_ends_the_sandbox(server: SandboxServer, sandbox: AsyncSandbox) -> None:
    server.on("DELETE /sandboxes/iabc", httpx.Response(204))
    async with sandbox:
        pass
    assert len(server.asked("DELETE /sandboxes/iabc")) == 1


async def test_kill_says_whether_there_was_something_to_end(
    server: SandboxServer, sandbox: AsyncSandbox
) -> None:
    server.on(
        "DELETE /sandboxes/iabc", httpx.Response(204), httpx.Response(404, json={"code": 404, "message": "x"})
    )
    assert await sandbox.kill()
    assert not await AsyncSandbox.kill("iabc")


async def test_set_timeout_of_an_ended_sandbox_is_not_found(
    server: SandboxServer, sandbox: AsyncSandbox
) -> None:
    server.on(
        "POST /sandboxes/iabc/timeout",
        httpx.Response(204),
        httpx.Response(404, json={"code": 404, "message": "x"}),
    )
    await sandbox.set_timeout(600)
    assert body_of(server.requests[0]) == {"timeout": 600}
    with pytest.raises(SandboxNotFound):
        await AsyncSandbox.set_timeout("iabc", 600)


async def test_info_is_read_by_attribute_and_by_wire_name(
    server: SandboxServer, sandbox: AsyncSandbox
) -> None:
    server.on("GET /sandboxes/iabc", httpx.Response(200, json=DETAIL))
    info = await sandbox.get_info()
    assert info["sandboxId"] == info.sandbox_id == "iabc"
    assert info["startedAt"] == datetime(2026, 1, 2, 3, 4, 5, 678000, tzinfo=UTC)
    assert info["endAt"] == info.end_at
    assert info["isolation"] == info.isolation == "gvisor"
    assert (info.name, info.state, info.metadata) == ("code-interpreter-v1", SandboxState.RUNNING, {"a": "b"})
    with pytest.raises(KeyError):
        _ = info["nothing"]


async def test_connect_gives_a_sandbox_that_can_be_spoken_to(server: SandboxServer) -> None:
    server.on("POST /v2/sandboxes/iabc/connect", httpx.Response(200, json=RECORD))
    server.on("GET /health", httpx.Response(204))
    sandbox = await AsyncSandbox.connect("iabc", timeout=60)
    assert body_of(server.requests[0]) == {"timeout": 60}
    assert await sandbox.is_running()
    headers = server.requests[1].headers
    assert (headers["e2b-sandbox-id"], headers["e2b-sandbox-port"]) == ("iabc", "49983")
    assert headers["x-access-token"] == "token-of-iabc"
    assert "x-api-key" not in headers


async def test_an_ended_sandbox_is_not_running(server: SandboxServer, sandbox: AsyncSandbox) -> None:
    server.on("GET /health", httpx.Response(502, json=GONE))
    assert not await sandbox.is_running()


async def test_the_list_is_fetched_page_by_page(server: SandboxServer) -> None:
    first = httpx.Response(200, json=[DETAIL], headers={"x-next-token": "more"})
    server.on("GET /v2/sandboxes", first, httpx.Response(200, json=[]))
    query = SandboxQuery(metadata={"a b": "c&d"}, state=[SandboxState.RUNNING])
    pages = AsyncSandbox.list(query, limit=1, order="asc")
    assert [info.sandbox_id for info in await pages.next_items()] == ["iabc"]
    assert pages.has_next
    assert await pages.next_items() == []
    assert not pages.has_next
    with pytest.raises(InvalidArgument):
        await pages.next_items()
    params = server.requests[1].url.params
    assert (params["nextToken"], params["limit"], params["order"], params["state"]) == (
        "more",
        "1",
        "asc",
        "running",
    )
    once = urllib.parse.parse_qsl(params["metadata"])
    assert {urllib.parse.unquote(key): urllib.parse.unquote(value) for key, value in once} == {"a b": "c&d"}


async def test_options_of_a_call_win_over_those_of_the_sandbox(
    server: SandboxServer, sandbox: AsyncSandbox
) -> None:
    server.on("GET /sandboxes/iabc", httpx.Response(200, json=DETAIL))
    await sandbox.get_info(api_key="e2b_other", headers={"X-More": "1"})
    assert server.requests[0].headers["x-api-key"] == "e2b_other"
    assert server.requests[0].headers["x-more"] == "1"


async def test_waiting_for_a_port_looks_at_the_sandboxs_sockets(
    server: SandboxServer, sandbox: AsyncSandbox
) -> None:
    row = b"   0: 00000000:1F40 00000000:0000 0A 00000000:00000000 00:00000000 00000000  1000\n"
    server.on("POST /process.Process/Start", stream(*process()), stream(*process(DataEvent(stdout=row))))
    assert await sandbox.wait_for_port(8000)
    assert not await sandbox.wait_for_port(8001, timeout=0)
    assert len(server.requests) == 3
