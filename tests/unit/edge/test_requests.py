"""Requests through a running edge, to services that live in the test."""

import asyncio
import json

import pytest
from tests.unit.edge.world import DAEMON, INTERPRETER, World

from cloche_server.edge import connection, listener, tls, upstream
from cloche_wire.signature import sign

pytestmark = pytest.mark.anyio

BROWSER = "User-Agent: Mozilla/5.0 (X11; Linux x86_64) Chrome/130"


def status(answer: bytes) -> int:
    return int(answer.split(b" ", 2)[1])


def body(answer: bytes) -> bytes:
    return answer.partition(b"\r\n\r\n")[2]


def content(answer: bytes) -> dict[str, object]:
    return json.loads(body(answer))


async def test_requests_without_a_sandbox_go_to_the_control_plane(world: World) -> None:
    async with world.running():
        answer = await world.get(
            "127.0.0.1:3000", "/v2/sandboxes?a=b", "X-API-KEY: k", method="POST", body=b"{}"
        )
    assert status(answer) == 200
    assert body(answer).startswith(
        b"POST /v2/sandboxes?a=b HTTP/1.1\r\nHost: 127.0.0.1:3000\r\nX-API-KEY: k\r\n"
    )
    assert body(answer).endswith(b"\r\n\r\n{}")


@pytest.mark.parametrize("port", [DAEMON, INTERPRETER, 8080])
async def test_routing_headers_reach_each_service_of_the_sandbox(world: World, port: int) -> None:
    world.ports["ione", 8080] = world.echo
    async with world.running():
        await world.add_sandbox("ione")
        answer = await world.get("127.0.0.1", "/x", "E2b-Sandbox-Id: ione", f"E2b-Sandbox-Port: {port}")
    assert body(answer).startswith(b"GET /x HTTP/1.1\r\nHost: 127.0.0.1\r\n")
    assert b"E2b-Sandbox" not in body(answer)


async def test_a_connection_may_carry_requests_of_two_sandboxes_and_they_do_not_mix(world: World) -> None:
    async with world.running():
        await world.add_sandbox("ione")
        await world.add_sandbox("itwo")
        requests = [
            f"POST /{name} HTTP/1.1\r\nHost: {DAEMON}-{name}.x.y\r\nContent-Length: 2\r\n\r\nok"
            for name in ("ione", "itwo")
        ]
        last = "GET / HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n"
        answer = await world.ask("".join([*requests, last]).encode())
    assert answer.count(b"HTTP/1.1 200 OK") == 3
    assert [seen.split(b" ")[1] for seen in world.seen] == [b"/ione", b"/itwo", b"/"]


async def test_a_route_that_is_told_after_the_first_request_is_found(world: World) -> None:
    async with world.running():
        await world.get("127.0.0.1")  # the first table has been read
        route = await world.add_sandbox("ione", announce=False)
        asyncio.get_running_loop().call_later(0.05, world.announce, route)
        assert status(await world.get(f"{DAEMON}-ione.cloche.localhost", "/health")) == 200


async def test_a_gone_sandbox_answers_502_in_json(world: World) -> None:
    async with world.running():
        answer = await world.get(f"{DAEMON}-inone.cloche.localhost", "/health")
    assert status(answer) == 502
    assert b"Access-Control-Allow-Origin: *" in answer
    assert content(answer) == {"sandboxId": "inone", "message": "The sandbox was not found", "code": 502}


async def test_a_closed_port_answers_502_with_the_port(world: World) -> None:
    async with world.running():
        await world.add_sandbox("ione")
        answer = await world.get("8080-ione.cloche.localhost")
    message = "The sandbox is running but port is not open"
    assert content(answer) == {"sandboxId": "ione", "message": message, "port": 8080, "code": 502}


async def test_browsers_get_a_page_and_clients_in_browsers_get_json(world: World) -> None:
    async with world.running():
        await world.add_sandbox("ione")
        page = await world.get("8080-ione.cloche.localhost", "/", BROWSER)
        plain = await world.get("8080-ione.cloche.localhost", "/", BROWSER, "X-Access-Token: t")
    assert b"Content-Type: text/html" in page
    assert b"<h1>The sandbox is running but port is not open</h1>" in page
    assert b"Content-Type: application/json" in plain


async def test_a_head_request_gets_the_status_without_a_body(world: World) -> None:
    async with world.running():
        answer = await world.get("8080-inone.cloche.localhost", method="HEAD")
    assert status(answer) == 502
    assert body(answer) == b""


async def test_ports_that_are_none_are_refused_before_any_connection(world: World) -> None:
    async with world.running():
        await world.add_sandbox("ione")
        for port in ("0", "080", "65536", "+80"):
            assert status(await world.get(f"{port}-ione.cloche.localhost")) == 400
    assert not world.dials


async def test_init_of_the_daemon_is_not_reachable(world: World) -> None:
    async with world.running():
        await world.add_sandbox("ione")
        answer = await world.get(f"{DAEMON}-ione.cloche.localhost", "/init", method="POST", body=b"{}")
        other = await world.get("8080-ione.cloche.localhost", "/init")
    assert status(answer) == 404
    assert content(answer)["code"] == 404
    assert status(other) == 502  # a user's own /init is the user's
    assert not world.seen


async def test_platform_headers_do_not_reach_user_ports(world: World) -> None:
    world.ports["ione", 8000] = world.echo
    async with world.running():
        await world.add_sandbox("ione", traffic_token="open")
        fields = ("X-API-KEY: k", "X-Access-Token: t", "E2B-Traffic-Access-Token: open", "Cookie: c=1")
        echo = body(await world.get("8000-ione.cloche.localhost", "/", *fields)).lower()
    assert b"cookie: c=1" in echo
    assert not [name for name in (b"x-api-key", b"x-access-token", b"traffic") if name in echo]


@pytest.mark.parametrize("method", ["GET", "HEAD", "POST"])
@pytest.mark.parametrize("port", [8000, INTERPRETER])
async def test_private_traffic_needs_its_token(world: World, method: str, port: int) -> None:
    world.ports["ione", 8000] = world.echo
    async with world.running():
        await world.add_sandbox("ione", traffic_token="open")
        host = f"{port}-ione.cloche.localhost"
        without = await world.get(host, method=method)
        wrong = await world.get(host, "/", "E2b-Traffic-Access-Token: other", method=method)
        right = await world.get(host, "/", "E2b-Traffic-Access-Token: open", method=method)
        daemon = await world.get(f"{DAEMON}-ione.cloche.localhost", "/health", method=method)
    assert [status(answer) for answer in (without, wrong, right, daemon)] == [403, 403, 200, 200]
    if method == "GET":
        secured = "Sandbox is secured with traffic access token. "
        header = "oken header 'e2b-traffic-access-token' is missing"
        assert content(without)["message"] == f"{secured}T{header}"
        assert "is invalid" in str(content(wrong)["message"])


async def test_the_host_of_a_user_port_can_be_masked(world: World) -> None:
    world.ports["ione", 8000] = world.echo
    async with world.running():
        await world.add_sandbox("ione", mask_request_host="localhost:${PORT}")
        echo = body(await world.get("8000-ione.cloche.localhost"))
    assert b"\r\nHost: localhost:8000\r\n" in echo


async def test_a_signed_url_finds_its_sandbox_among_many(world: World) -> None:
    async with world.running():
        for name in ("ione", "itwo", "ithree"):
            await world.add_sandbox(name)
        query = f"path=%2Fa%20b&signature={sign('/a b', 'read', '', 'token-of-itwo')}".replace("+", "%2B")
        good = await world.get("127.0.0.1", f"/files?{query}")
        write = await world.get("127.0.0.1", f"/files?{query}", method="POST", body=b"x")
        other_path = await world.get("127.0.0.1", f"/files?{query}".replace("%2Fa", "%2Fc"))
        twice = await world.get("127.0.0.1", f"/files?path=x&{query}")
    assert [status(answer) for answer in (good, write, other_path, twice)] == [200, 401, 401, 400]


async def test_a_flood_of_wrong_signatures_is_limited_per_source(world: World) -> None:
    async with world.running():
        await world.add_sandbox("ione")
        async with asyncio.TaskGroup() as tasks:
            asked = [tasks.create_task(world.get("127.0.0.1", "/files?signature=v1_x")) for _ in range(80)]
    assert {status(task.result()) for task in asked} == {401, 429}


async def test_old_clients_are_routed_by_their_token(world: World) -> None:
    async with world.running():
        await world.add_sandbox("ione")
        good = await world.get(
            "127.0.0.1", "/process.Process/List", "X-Access-Token: token-of-ione", method="POST"
        )
        wrong = await world.get("127.0.0.1", "/health", "X-Access-Token: nobody")
    assert b"POST /process.Process/List" in body(good)
    assert status(wrong) == 502
    assert "was not found" in str(content(wrong)["message"])


async def test_a_preflight_on_the_shared_address_allows_what_is_asked(world: World) -> None:
    fields = (
        "Origin: http://a.example",
        "Access-Control-Request-Method: POST",
        "Access-Control-Request-Headers: x-access-token",
    )
    async with world.running():
        answer = await world.get("127.0.0.1", "/process.Process/Start", *fields, method="OPTIONS")
    assert status(answer) == 204
    assert b"Access-Control-Allow-Headers: x-access-token\r\n" in answer


async def test_known_sandboxes_stay_reachable_while_the_node_is_away(world: World) -> None:
    async with world.running(node=False):
        async with asyncio.TaskGroup() as tasks:
            node = tasks.create_task(world.serve_node())
            await world.add_sandbox("ione")
            assert status(await world.get(f"{DAEMON}-ione.x.y", "/health")) == 200
            node.cancel()
        assert status(await world.get(f"{DAEMON}-ione.x.y", "/health")) == 200
        async with asyncio.TaskGroup() as tasks:
            node = tasks.create_task(world.serve_node())
            await world.add_sandbox("itwo")
            while status(await world.get(f"{DAEMON}-itwo.x.y", "/health")) != 200:
                pass
            node.cancel()


async def test_an_api_that_is_away_answers_503(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(upstream, "API_PATIENCE_S", 0.0)
    async with world.running(api=False):
        answer = await world.get("127.0.0.1", "/sandboxes")
    assert status(answer) == 503
    assert content(answer)["code"] == 503


async def test_an_api_that_dies_over_a_create_asks_clients_not_to_repeat_it(world: World) -> None:
    async def die(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await world.read_request(reader)

    async with world.running(api=False):
        server = await asyncio.start_unix_server(world.recorded(die), world.config.api_socket)
        careless = await world.get("127.0.0.1", "/v2/sandboxes", method="POST", body=b"{}")
        keyed = await world.get("127.0.0.1", "/v2/sandboxes", "Idempotency-Key: a", method="POST", body=b"{}")
        server.close()
    assert (status(careless), status(keyed)) == (502, 502)
    assert b"Should-Retry: false" in careless
    assert b"Should-Retry" not in keyed


@pytest.mark.parametrize(
    "request_line", ["GET / HTTP/1.1\r\nHost: a\nX: 1\r\n\r\n", "GET / HTTP/1.1\r\nX: " + "a" * 40_000]
)
async def test_a_malformed_or_oversized_head_is_answered_and_the_connection_closed(
    world: World, request_line: str
) -> None:
    async with world.running():
        assert status(await world.ask(request_line.encode())) in {400, 431}
    assert not world.seen


async def test_a_smuggled_request_never_reaches_a_service(world: World) -> None:
    attack = (
        b"POST / HTTP/1.1\r\nHost: 8000-ione.x.y\r\nContent-Length: 6\r\nTransfer-Encoding: chunked\r\n\r\n"
        b"0\r\n\r\nGET /secret HTTP/1.1\r\nHost: 8000-ione.x.y\r\n\r\n"
    )
    world.ports["ione", 8000] = world.echo
    async with world.running():
        await world.add_sandbox("ione")
        answer = await world.ask(attack)
        head = b"POST / HTTP/1.1\r\nHost: 8000-ione.x.y\r\nTransfer-Encoding: chunked\r\n\r\n"
        bad_chunk = await world.ask(head + b"-1\r\nGET / HTTP/1.1\r\n\r\n")
    assert [answer.count(b"HTTP/1.1 400"), answer.count(b"HTTP/1.1")] == [1, 1]
    assert [bad_chunk.count(b"HTTP/1.1 400"), bad_chunk.count(b"HTTP/1.1")] == [1, 1]
    assert not world.seen


async def test_a_head_that_trickles_is_answered_408_and_a_silent_connection_is_closed(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connection, "HEAD_TIMEOUT_S", 0.05)
    monkeypatch.setattr(connection, "LINGER_S", 0.05)
    monkeypatch.setattr(listener, "HEAD_TIMEOUT_S", 0.05)
    async with world.running():
        assert status(await world.ask(b"GET / HT")) == 408
        assert await world.ask(b"") == b""


async def test_more_clients_than_allowed_are_turned_away_at_once(world: World) -> None:
    world.edge = listener.Edge(
        world.config, tls.ServerCertificate(tls.folder(world.config)), max_connections=1
    )
    async with world.running():
        _, writer = await asyncio.open_connection(*world.address)
        assert status(await world.ask(b"")) == 429
        writer.close()


async def test_two_requests_in_one_packet_are_answered_in_order(world: World) -> None:
    async with world.running():
        await world.add_sandbox("ione")
        head = "POST /{} HTTP/1.1\r\nHost: 49983-ione.x.y\r\nTransfer-Encoding: chunked\r\n{}\r\n"
        head += "2\r\nok\r\n0\r\n\r\n"
        answer = await world.ask((head.format(1, "") + head.format(2, "Connection: close\r\n")).encode())
    assert 0 < answer.index(b"POST /1 ") < answer.index(b"POST /2 ")
    assert len(world.seen) == 2


@pytest.mark.parametrize("port", [80, 81])
async def test_what_follows_a_body_is_never_taken_for_one(world: World, port: int) -> None:
    async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await world.read_request(reader)

    world.ports["ione", 80] = silent  # 81 is closed: the body is not read by anybody
    async with world.running():
        await world.add_sandbox("ione")
        first = f"POST / HTTP/1.1\r\nHost: {port}-ione.x.y\r\nContent-Length: 2\r\n\r\nok"
        second = "GET /second HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n"
        answer = await world.ask((first + second).encode())
    assert answer.startswith(b"HTTP/1.1 502")
    if port == 80:
        assert answer.count(b"HTTP/1.1 ") == 1
        assert b"Connection: close" in answer
    else:
        assert b"GET /second" in answer
