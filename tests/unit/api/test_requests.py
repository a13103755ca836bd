"""What holds for every route: keys, paths, methods, bodies, origins."""

import sqlite3
from collections.abc import AsyncIterator
from contextlib import closing

import httpx
import pytest
from tests.fakes.clock import FakeClock
from tests.fakes.control_plane import assert_problem, client_of, create

from cloche_server.api.control import ControlPlane
from cloche_server.config import Config

pytestmark = pytest.mark.anyio


async def test_health_needs_no_key(nobody: httpx.AsyncClient) -> None:
    assert (await nobody.get("/health")).status_code == 204
    assert (await nobody.head("/health")).status_code == 204


async def test_no_key_and_wrong_keys_are_401(nobody: httpx.AsyncClient) -> None:
    assert_problem(await nobody.get("/v2/sandboxes"), 401, "X-API-KEY")
    for key in ("e2b_" + "0" * 40, "x", "x" * 10_000, "'; --"):
        assert_problem(await nobody.get("/v2/sandboxes", headers={"X-API-KEY": key}), 401, "invalid API key")


async def test_a_bearer_token_may_carry_the_key(nobody: httpx.AsyncClient, control: ControlPlane) -> None:
    _, key = control.store.keys.create("k", "default", control.clock.now())
    bearer = {"Authorization": f"Bearer {key}"}
    assert (await nobody.get("/v2/sandboxes", headers=bearer)).status_code == 200
    both = {"Authorization": "Bearer sk_e2b_0", "X-API-KEY": key}
    assert (await nobody.get("/v2/sandboxes", headers=both)).status_code == 200


async def test_a_revoked_key_stops_working_at_once(control: ControlPlane) -> None:
    made, key = control.store.keys.create("k", "default", control.clock.now())
    async with client_of(control, key) as client:
        assert (await client.get("/v2/sandboxes")).status_code == 200
        assert control.store.keys.revoke(made.id, control.clock.now())
        assert_problem(await client.get("/v2/sandboxes"), 401)


async def test_the_last_use_is_noted_once_a_minute(
    client: httpx.AsyncClient, control: ControlPlane, clock: FakeClock
) -> None:
    def last_used() -> object:
        return control.store.keys.list()[0][0].last_used

    start = clock.now()
    await client.get("/v2/sandboxes")
    clock.advance(59)
    await client.get("/v2/sandboxes")
    assert last_used() == start
    clock.advance(1)
    await client.get("/v2/sandboxes")
    assert last_used() == clock.now()


@pytest.mark.parametrize("path", ["/", "/nope", "/sandboxes/", "/v2/sandboxes/x/y/z", "//", "/%00", "/%ff"])
async def test_an_unknown_path_is_404_as_json(client: httpx.AsyncClient, path: str) -> None:
    assert_problem(await client.get(path), 404)


async def test_an_unknown_method_is_405_as_json(client: httpx.AsyncClient) -> None:
    answer = await client.patch("/v2/sandboxes")
    assert_problem(answer, 405, "GET, POST")
    assert answer.headers["allow"] == "GET, POST"


async def test_a_path_of_later_versions_is_501(client: httpx.AsyncClient) -> None:
    assert_problem(await client.get("/secrets"), 501)
    assert_problem(await client.post("/v2/templates", json={}), 501)


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b'"x"',
        b"{}",
        b"\xff\xfe",
        b'{"templateID": "\xff"}',
        b'{"templateID": "base", "metadata": {"a": "\\ud800"}}',
        b'{"templateID": "base", "timeout": 1e309}',
        b'{"templateID": "base", "timeout": NaN}',
        b'{"templateID": ' + b"[" * 100_000,
        b'{"templateID": "base", "unknown": ' + b"[" * 100_000 + b"]" * 100_000 + b"}",
        b'{"templateID": "base", "mcp": ' + b'{"a":' * 100_000 + b"1" + b"}" * 100_000 + b"}",
    ],
)
async def test_a_malformed_body_is_400(client: httpx.AsyncClient, body: bytes) -> None:
    assert_problem(await client.post("/v2/sandboxes", content=body), 400, "bad request body")


async def test_a_huge_body_is_413(client: httpx.AsyncClient) -> None:
    pieces = 0

    async def endless() -> AsyncIterator[bytes]:
        nonlocal pieces
        while pieces < 100:
            pieces += 1
            yield b" " * 65536

    assert_problem(await client.post("/v2/sandboxes", content=endless()), 413)
    assert pieces <= 20


async def test_what_should_not_happen_is_500_without_its_reason(
    client: httpx.AsyncClient, control: ControlPlane, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def broken(*_: object) -> None:
        raise RuntimeError("secret")

    monkeypatch.setattr(control.store.sandboxes, "get", broken)
    answer = await client.get("/sandboxes/iabc")
    assert answer.json() == {"code": 500, "message": "internal error"}


async def test_any_origin_may_ask_without_credentials(client: httpx.AsyncClient) -> None:
    asked = {
        "Origin": "https://page.test",
        "Access-Control-Request-Method": "POST",
        "Access-Control-Request-Headers": "x-api-key,content-type",
    }
    preflight = await client.options("/v2/sandboxes", headers=asked)
    assert preflight.status_code == 200
    assert preflight.headers["access-control-allow-origin"] == "*"
    answer = await client.get("/v2/sandboxes", headers={"Origin": "https://page.test"})
    assert answer.headers["access-control-allow-origin"] == "*"
    assert "x-next-token" in answer.headers["access-control-expose-headers"]
    assert "access-control-allow-credentials" not in answer.headers


async def test_a_locked_database_is_503_for_writes_and_serves_reads(
    client: httpx.AsyncClient, config: Config
) -> None:
    made = await create(client)
    with closing(sqlite3.connect(config.database)) as other:
        other.execute("BEGIN IMMEDIATE")
        assert (await client.get(f"/sandboxes/{made}")).status_code == 200
        answer = await client.post("/v2/sandboxes", json={"templateID": "base"})
        assert_problem(answer, 503, "locked")
    await create(client)
