"""Which request goes where, decided from the head alone."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloche_server.edge.headers import Sender, to_user_port
from cloche_server.edge.heads import parse_request
from cloche_server.edge.refusal import Refusal
from cloche_server.edge.targets import Kind, Target, read_target, refuse_control_path

DOMAIN = "cloche.localhost:3000"
ID = "iabcdefghijklmnopqrst"


def target(host: str = "127.0.0.1:3000", path: str = "/", *fields: str, method: str = "GET") -> Target:
    lines = [f"{method} {path} HTTP/1.1", f"Host: {host}", *fields]
    return read_target(parse_request("\r\n".join(lines).encode()), DOMAIN)


def test_routing_headers_name_the_sandbox_and_the_port() -> None:
    found = target("127.0.0.1:3000", "/health", f"E2b-Sandbox-Id: {ID}", "E2b-Sandbox-Port: 49983")
    assert found == Target(Kind.SANDBOX, ID, 49983)


@pytest.mark.parametrize("path", [f"/sandboxes/{ID}/connect", f"/v2/sandboxes/{ID}/connect"])
def test_a_call_of_the_api_that_also_names_the_daemon_is_for_the_api(path: str) -> None:
    # PyPI e2b 2.20 sends both when it connects.
    named = (f"E2b-Sandbox-Id: {ID}", "E2b-Sandbox-Port: 49983")
    assert target("127.0.0.1:3000", path, *named, "X-API-KEY: k", method="POST").kind is Kind.CONTROL_PLANE
    # Without a key, or to a port of the user's, the same path is the sandbox's own.
    assert target("127.0.0.1:3000", path, *named, method="POST").kind is Kind.SANDBOX
    other = (f"E2b-Sandbox-Id: {ID}", "E2b-Sandbox-Port: 8080")
    assert target("127.0.0.1:3000", path, *other, "X-API-KEY: k", method="POST").kind is Kind.SANDBOX
    host = f"49983-{ID}.cloche.localhost:3000"
    assert target(host, path, "X-API-KEY: k", method="POST").kind is Kind.SANDBOX


@pytest.mark.parametrize(
    "host", [f"8080-{ID}.cloche.localhost:3000", f"8080-{ID}.LOCALHOST", f"8080-{ID}.a.example"]
)
def test_a_host_label_names_the_sandbox_and_the_port(host: str) -> None:
    assert target(host) == Target(Kind.SANDBOX, ID, 8080)


def test_headers_and_host_that_agree_pass() -> None:
    fields = (f"E2b-Sandbox-Id: {ID}", "E2b-Sandbox-Port: 8080")
    assert target(f"8080-{ID}.cloche.localhost", "/", *fields).sandbox_id == ID


@pytest.mark.parametrize(("other", "port"), [("iother", "8080"), (ID, "8081")])
def test_headers_and_host_that_differ_are_refused(other: str, port: str) -> None:
    with pytest.raises(Refusal, match="400"):
        target(f"8080-{ID}.cloche.localhost", "/", f"E2b-Sandbox-Id: {other}", f"E2b-Sandbox-Port: {port}")


@pytest.mark.parametrize("port", ["+80", "080", "0", "65536", "-1", "80abc", "", " 8 0", "0x50", "8_0"])
def test_a_port_that_is_no_plain_decimal_is_refused(port: str) -> None:
    with pytest.raises(Refusal, match="400"):
        target("127.0.0.1", "/", f"E2b-Sandbox-Id: {ID}", f"E2b-Sandbox-Port: {port}")
    with pytest.raises(Refusal, match="400"):
        target(f"{port}-{ID}.cloche.localhost:3000")


def test_unicode_digits_are_refused() -> None:
    with pytest.raises(Refusal, match="400"):
        target(f"٨٠-{ID}.cloche.localhost")


@pytest.mark.parametrize(
    "fields",
    [(f"E2b-Sandbox-Id: {ID}",), ("E2b-Sandbox-Port: 80",), ("E2b-Sandbox-Id: I", "E2b-Sandbox-Port: 80")],
)
def test_half_a_name_is_refused(fields: tuple[str, ...]) -> None:
    with pytest.raises(Refusal, match="400"):
        target("127.0.0.1", "/", *fields)


def test_repeated_routing_headers_are_refused() -> None:
    with pytest.raises(Refusal, match="repeated header"):
        target("127.0.0.1", "/", f"E2b-Sandbox-Id: {ID}", f"E2b-Sandbox-Id: {ID}", "E2b-Sandbox-Port: 80")


@pytest.mark.parametrize(
    "host",
    ["127.0.0.1:3000", "cloche.localhost:3000", "api.cloche.localhost", "[::1]:3000", "my-host.example"],
)
def test_other_hosts_are_the_control_plane(host: str) -> None:
    assert target(host, "/v2/sandboxes").kind is Kind.CONTROL_PLANE


@pytest.mark.parametrize("path", ["/health", "/metrics", "/files", "/templates/abc/files/def"])
def test_paths_that_both_have_are_the_control_plane_without_a_name(path: str) -> None:
    assert target("127.0.0.1", path).kind is Kind.CONTROL_PLANE


@pytest.mark.parametrize("method", ["GET", "HEAD", "POST"])
def test_a_signature_alone_asks_for_its_sandbox(method: str) -> None:
    found = target("127.0.0.1", "/files?path=a&signature=v1_x", method=method)
    assert found == Target(Kind.SIGNED_URL, port=49983)


@pytest.mark.parametrize(
    ("path", "port"),
    [
        ("/process.Process/Start", 49983),
        ("/files?path=a", 49983),
        ("/health", 49983),
        ("/execute", 49999),
        ("/contexts/x/restart", 49999),
    ],
)
def test_old_clients_are_known_by_their_token(path: str, port: int) -> None:
    assert target("127.0.0.1", path, "X-Access-Token: t") == Target(Kind.TOKEN_ONLY, port=port)


def test_a_token_does_not_take_other_paths_from_the_control_plane() -> None:
    assert target("127.0.0.1", "/sandboxes", "X-Access-Token: t").kind is Kind.CONTROL_PLANE


def test_a_preflight_on_the_shared_address_is_answered_by_the_edge() -> None:
    asks = "Access-Control-Request-Method: POST"
    assert target("127.0.0.1", "/process.Process/Start", asks, method="OPTIONS").kind is Kind.PREFLIGHT
    assert target(f"8080-{ID}.localhost", "/files", asks, method="OPTIONS").kind is Kind.SANDBOX


@pytest.mark.parametrize(
    "path",
    [
        "/init",
        "/init/",
        "//init",
        "/%69nit",
        "/./init",
        "/x/../init",
        "/INIT",
        "/init?a=b",
        "/freeze",
        "/%2Finit",
    ],
)
def test_control_paths_of_the_daemon_are_out_of_reach(path: str) -> None:
    with pytest.raises(Refusal, match="404"):
        refuse_control_path(parse_request(f"POST {path} HTTP/1.1\r\nHost: a".encode()))


def test_other_paths_of_the_daemon_pass() -> None:
    refuse_control_path(parse_request(b"POST /initialise HTTP/1.1\r\nHost: a"))


PARTS = st.sampled_from(
    [
        b"GET ",
        b"POST ",
        b"/",
        b" HTTP/1.1",
        b"\r\n",
        b"\n",
        b"Host: ",
        b"E2b-Sandbox-Id: ",
        b"E2b-Sandbox-Port: ",
        b"80-i1.x",
        b"Upgrade: ",
        b"Connection: ",
        b"Content-Length: ",
        b"http://",
        b":",
        b",",
        b"1",
        b"%2e",
        b"?signature=",
        b"\xff",
        b"\x00",
    ]
)


@given(st.lists(PARTS | st.binary(max_size=3), max_size=30).map(b"".join), st.booleans())
def test_every_head_is_understood_or_refused(tail: bytes, sound: bool) -> None:
    head = (b"GET / HTTP/1.1\r\nHost: a\r\n" if sound else b"") + tail
    try:
        request = parse_request(head)
        read_target(request, DOMAIN)
        refuse_control_path(request)
        to_user_port(request, Sender("::1", b"http", is_front=True), None)
    except Refusal:
        return
    assert request.upgrade is None or not request.has_body
