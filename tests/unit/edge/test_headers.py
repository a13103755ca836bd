"""Which headers cross the edge for whom."""

import base64

import pytest

from cloche_server.edge import headers
from cloche_server.edge.headers import Sender
from cloche_server.edge.heads import Fields, parse_answer, parse_request

AWAY = Sender("198.51.100.7", b"https", is_front=False)
HERE = Sender("127.0.0.1", b"http", is_front=True)
PLATFORM = (
    b"X-API-KEY: e2b_1\r\nX-Access-Token: t\r\nE2B-Traffic-Access-Token: u\r\nE2b-Sandbox-Id: i1\r\n"
    b"E2b-Sandbox-Port: 80\r\n"
)


def request(more: bytes = b"") -> bytes:
    return b"GET / HTTP/1.1\r\nHost: 80-i1.x.example\r\nCookie: a=b\r\nX-Mine: 1\r\n" + (
        PLATFORM + more
    ).removesuffix(b"\r\n")


def names(fields: Fields) -> set[bytes]:
    return {name.lower() for name, _ in fields}


def value(fields: Fields, name: bytes) -> bytes:
    (found,) = [value for key, value in fields if key.lower() == name]
    return found


def test_user_ports_see_no_key_and_no_token() -> None:
    fields = headers.to_user_port(parse_request(request()), AWAY, None)
    assert names(fields) == {
        b"host",
        b"cookie",
        b"x-mine",
        b"x-forwarded-for",
        b"x-forwarded-proto",
        b"x-forwarded-host",
    }


def test_agents_see_the_access_token_and_no_key() -> None:
    found = names(headers.to_agent(parse_request(request()), AWAY))
    assert b"x-access-token" in found
    assert not found & {b"x-api-key", b"e2b-traffic-access-token", b"e2b-sandbox-id", b"e2b-sandbox-port"}


def test_the_control_plane_sees_the_key() -> None:
    assert b"x-api-key" in names(headers.to_service(parse_request(request()), AWAY))


@pytest.mark.parametrize(
    ("plain", "stays"), [(b"root:", False), (b"user:secret", True), (b"Some One:", True)]
)
def test_the_daemon_form_of_basic_authorization_stays_away_from_user_ports(plain: bytes, stays: bool) -> None:
    parsed = parse_request(request(b"Authorization: Basic " + base64.b64encode(plain)))
    assert (b"authorization" in names(headers.to_user_port(parsed, AWAY, None))) is stays
    assert b"authorization" in names(headers.to_agent(parsed, AWAY))


def test_hop_by_hop_headers_end_at_the_edge() -> None:
    more = b"Connection: close, X-Mine, Host, Cookie\r\nKeep-Alive: 5\r\nTE: trailers, gzip\r\n"
    more += b"Proxy-Authorization: x\r\nUpgrade: h2c"
    fields = headers.to_user_port(parse_request(request(more)), AWAY, None)
    assert not names(fields) & {b"connection", b"keep-alive", b"proxy-authorization", b"upgrade", b"x-mine"}
    assert value(fields, b"te") == b"trailers"
    assert value(fields, b"host") == b"80-i1.x.example"
    assert value(fields, b"cookie") == b"a=b"


def test_only_a_front_on_this_machine_speaks_for_the_sender() -> None:
    more = b"X-Forwarded-For: 203.0.113.9\r\nX-Forwarded-Proto: https\r\nForwarded: for=1\r\n"
    more += b"X-Forwarded-Host: pub.example"
    away = headers.to_user_port(parse_request(request(more)), AWAY._replace(scheme=b"http"), None)
    assert (value(away, b"x-forwarded-for"), value(away, b"x-forwarded-proto")) == (b"198.51.100.7", b"http")
    assert value(away, b"x-forwarded-host") == b"80-i1.x.example"
    here = headers.to_user_port(parse_request(request(more)), HERE, None)
    assert value(here, b"x-forwarded-for") == b"203.0.113.9, 127.0.0.1"
    assert (value(here, b"x-forwarded-proto"), value(here, b"x-forwarded-host")) == (b"https", b"pub.example")


def test_a_mask_replaces_the_host() -> None:
    assert (
        value(headers.to_user_port(parse_request(request()), AWAY, b"localhost:80"), b"host")
        == b"localhost:80"
    )


def test_a_sandbox_neither_speaks_for_the_platform_nor_sets_cookies_for_others() -> None:
    answer = parse_answer(
        b"HTTP/1.1 503 x\r\nShould-Retry: true\r\nRetry-After: 1\r\nConnection: X-Hop\r\nX-Hop: 1\r\n"
        b"Set-Cookie: a=1; Domain=.cloche.localhost; Path=/\r\nX-Mine: 2"
    )
    assert headers.from_sandbox(answer) == [
        (b"Retry-After", b"1"),
        (b"Set-Cookie", b"a=1; Path=/"),
        (b"X-Mine", b"2"),
    ]
    assert b"should-retry" in names(headers.from_service(answer))
