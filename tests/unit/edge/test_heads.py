"""Heads that two servers might read differently are refused."""

import pytest

from cloche_server.edge.heads import AnswerError, parse_answer, parse_request
from cloche_server.edge.refusal import Refusal

REFUSED = {
    "length and coding": b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\nTransfer-Encoding: chunked",
    "two lengths": b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\nContent-Length: 6",
    "two equal lengths": b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\nContent-Length: 5",
    "listed lengths": b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5, 5",
    "signed length": b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: +5",
    "negative length": b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: -5",
    "hexadecimal length": b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 0x5",
    "endless length": b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 99999999999999999999",
    "empty length": b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length:",
    "other coding": b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: gzip, chunked",
    "quoted coding": b'POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: "chunked"',
    "two codings": b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: chunked",
    "coding and identity": b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked, identity",
    "space before the colon": b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding : chunked",
    "vertical tab": b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: \x0bchunked",
    "coding over http 1.0": b"POST / HTTP/1.0\r\nHost: a\r\nTransfer-Encoding: chunked",
    "folded line": b"POST / HTTP/1.1\r\nHost: a\r\nX: 1\r\n Transfer-Encoding: chunked",
    "bare line feed": b"POST / HTTP/1.1\r\nHost: a\nX: 1",
    "bare carriage return": b"POST / HTTP/1.1\r\nHost: a\rX: 1",
    "nul": b"GET / HTTP/1.1\r\nHost: a\x00b",
    "two hosts": b"GET / HTTP/1.1\r\nHost: a\r\nHost: b",
    "two equal hosts": b"GET / HTTP/1.1\r\nHost: a\r\nHost: a",
    "no host": b"GET / HTTP/1.1\r\nAccept: */*",
    "another host in the target": b"GET http://b/ HTTP/1.1\r\nHost: a",
    "user in the target": b"GET http://x@a/ HTTP/1.1\r\nHost: a",
    "another scheme": b"GET ftp://a/ HTTP/1.1\r\nHost: a",
    "asterisk": b"OPTIONS * HTTP/1.1\r\nHost: a",
    "connect": b"CONNECT a:80 HTTP/1.1\r\nHost: a:80",
    "trace": b"TRACE / HTTP/1.1\r\nHost: a",
    "http 2": b"PRI * HTTP/2.0",
    "http 0.9": b"GET /",
    "double space": b"GET  / HTTP/1.1\r\nHost: a",
    "no colon": b"GET / HTTP/1.1\r\nHost: a\r\nfoo",
    "empty name": b"GET / HTTP/1.1\r\nHost: a\r\n: x",
    "leading space in the line": b" GET / HTTP/1.1\r\nHost: a",
}


@pytest.mark.parametrize("head", REFUSED.values(), ids=REFUSED)
def test_an_ambiguous_head_is_refused(head: bytes) -> None:
    with pytest.raises(Refusal) as refusal:
        parse_request(head)
    assert refusal.value.status in {400, 405, 505}


def test_an_absolute_target_with_the_same_host_becomes_a_path() -> None:
    assert parse_request(b"GET http://A:80/x?y=1 HTTP/1.1\r\nHost: a:80").target == b"/x?y=1"
    assert parse_request(b"GET http://a?y HTTP/1.1\r\nHost: a").target == b"/?y"


def test_a_sound_head_keeps_order_and_case_of_its_fields() -> None:
    request = parse_request(b"POST /a HTTP/1.1\r\nHost: a\r\nX-Two: 2\r\nx-ONE:\t1 \r\nX-Two: 3")
    assert request.fields == [(b"Host", b"a"), (b"X-Two", b"2"), (b"x-ONE", b"1"), (b"X-Two", b"3")]
    assert request.values[b"x-two"] == [b"2", b"3"]


@pytest.mark.parametrize(
    ("field", "has_body"),
    [("Content-Length: 0", False), ("Content-Length: 10", True), ("Transfer-Encoding: Chunked", True)],
)
def test_a_head_tells_whether_a_body_follows(field: str, has_body: bool) -> None:
    assert parse_request(f"POST / HTTP/1.1\r\nHost: a\r\n{field}".encode()).has_body is has_body


def test_an_upgrade_counts_only_when_the_connection_header_names_it() -> None:
    assert (
        parse_request(
            b"GET / HTTP/1.1\r\nHost: a\r\nConnection: keep-alive, Upgrade\r\nUpgrade: WebSocket"
        ).upgrade
        == b"websocket"
    )
    assert parse_request(b"GET / HTTP/1.1\r\nHost: a\r\nUpgrade: websocket").upgrade is None


def test_an_answer_may_end_its_lines_barely() -> None:
    answer = parse_answer(b"HTTP/1.0 200\nContent-Type: text/plain\nSet-Cookie: a=1\nSet-Cookie: b=2")
    assert answer.status == 200
    assert answer.values[b"set-cookie"] == [b"a=1", b"b=2"]


@pytest.mark.parametrize(
    "head",
    [
        b"SSH-2.0-OpenSSH",
        b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nTransfer-Encoding: chunked",
        b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2",
        b"HTTP/1.1 200 OK\r\n folded",
    ],
)
def test_an_ambiguous_answer_is_refused(head: bytes) -> None:
    with pytest.raises(AnswerError):
        parse_answer(head)
