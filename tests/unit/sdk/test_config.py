"""Where options come from, and what is made of them without a server."""

from __future__ import annotations

from urllib.parse import parse_qs, urlsplit

import pytest

from cloche import _requests
from cloche._config import resolve
from cloche.errors import (
    ClocheError,
    Conflict,
    Internal,
    InvalidArgument,
    SandboxNotRunning,
    SandboxUnreachable,
    Unauthenticated,
)
from cloche_wire.signature import read_query, verify

NAMES = ("API_KEY", "API_URL", "SANDBOX_URL", "DOMAIN")


@pytest.fixture(autouse=True)
def empty_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in NAMES:
        monkeypatch.delenv(f"CLOCHE_{name}", raising=False)
        monkeypatch.delenv(f"E2B_{name}", raising=False)


def test_the_default_server_is_on_this_machine() -> None:
    connection = resolve({"api_key": "k"})
    assert connection.api_url == connection.sandbox_url == "http://127.0.0.1:3000"
    assert connection.is_local


def test_options_win_over_cloches_variables_and_those_over_e2bs(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in NAMES[1:]:
        monkeypatch.setenv(f"E2B_{name}", f"http://e2b.example/{name}")
    monkeypatch.setenv("E2B_API_KEY", "e2b")
    monkeypatch.setenv("CLOCHE_API_KEY", "cloche")
    monkeypatch.setenv("CLOCHE_API_URL", "http://cloche.example/")
    connection = resolve({"sandbox_url": "https://mine.example"})
    assert (connection.api_key, connection.api_url) == ("cloche", "http://cloche.example")
    assert (connection.sandbox_url, connection.domain) == (
        "https://mine.example",
        "http://e2b.example/DOMAIN",
    )
    assert not connection.is_local


def test_the_key_is_not_shown() -> None:
    assert "secret" not in repr(resolve({"api_key": "secret"}))


@pytest.mark.parametrize("url", ["127.0.0.1:3000", "ftp://x", "http://", "/x"])
def test_a_url_that_is_none_is_refused(url: str) -> None:
    with pytest.raises(InvalidArgument, match="http"):
        resolve({"api_key": "k", "api_url": url})


def test_a_timeout_of_zero_means_no_limit() -> None:
    connection = resolve({"api_key": "k", "request_timeout": 7})
    assert (connection.timeout_s(None), connection.timeout_s(3), connection.timeout_s(0)) == (7, 3, None)
    assert resolve({"api_key": "k", "request_timeout": 0}).timeout_s(None) is None


@pytest.mark.parametrize("expires_in_s", [None, 60])
def test_a_signed_url_is_one_that_the_server_accepts(expires_in_s: int | None) -> None:
    connection = resolve({"api_key": "k", "api_url": "http://h:1"})
    record = _requests.SandboxRecord("iabc", "t", "d", "token")
    url = urlsplit(_requests.file_url(connection, record, "/a b/ü", "write", "root", expires_in_s))
    pairs = [(name, values[0]) for name, values in parse_qs(url.query).items()]
    query = read_query(pairs)
    verify(query, "write", "token", now_s=0)
    assert (url.scheme, url.netloc, url.path) == ("http", "h:1", "/files")
    assert (query.path, query.user, query.expires_at is None) == ("/a b/ü", "root", expires_in_s is None)


@pytest.mark.parametrize(
    ("status", "body", "kind", "text"),
    [
        (401, b'{"code":401,"message":"unauthorized"}', Unauthenticated, "CLOCHE_API_KEY"),
        (409, b'{"code":409,"message":"in the way"}', Conflict, "in the way"),
        (502, b'{"message":"The sandbox was not found","code":502}', SandboxNotRunning, "set_timeout"),
        (
            502,
            b'{"message":"The sandbox is running but port is not open"}',
            SandboxUnreachable,
            "port is not open",
        ),
        (500, b"<html>", Internal, "<html>"),
        (418, b"", InvalidArgument, "http status 418"),
        (500, b"[1]", Internal, r"\[1\]"),
    ],
)
def test_a_bad_answer_is_a_typed_error(status: int, body: bytes, kind: type[ClocheError], text: str) -> None:
    error = _requests.api_error(status, body)
    assert type(error) is kind
    with pytest.raises(kind, match=text):
        raise error


@pytest.mark.parametrize(
    ("status", "headers", "attempt", "wait_s"),
    [
        (429, {"Retry-After": "2"}, 0, 2.0),
        (429, {"Retry-After": "3600"}, 0, 10.0),
        (503, {}, 1, 0.2),
        (503, {"Should-Retry": "false"}, 0, None),
        (500, {"Should-Retry": "true"}, 0, 0.1),
        (500, {}, 0, None),
        (429, {}, 3, None),
    ],
)
def test_only_busy_answers_are_retried(
    status: int, headers: dict[str, str], attempt: int, wait_s: float | None
) -> None:
    assert _requests.retry_wait_s(status, headers, attempt) == wait_s


def test_listening_ports_are_read_from_both_tables() -> None:
    table = (
        "  sl  local_address rem_address   st tx_queue\n"
        "   0: 0100007F:1F40 00000000:0000 0A 00000000:00000000\n"
        "   1: 0100007F:1F41 0100007F:9999 01 00000000:00000000\n"
        "   0: 00000000000000000000000000000000:0016 00000000000000000000000000000000:0000 0A 0:0\n"
    )
    assert _requests.listening_ports(table) == {8000, 22}
    assert _requests.listening_ports("") == set()
