"""One request over plain HTTP: checked, framed anew, and only one."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloche_server.egress.plain_request import BadRequest, PlainRequest

GET = b"GET /a?b HTTP/1.1\r\nHost: Ok.test:80\r\nAccept: */*\r\nConnection: keep-alive\r\n\r\n"


def test_a_request_is_written_anew_and_closes() -> None:
    request = PlainRequest()
    sent = request.feed(GET)
    assert request.host == "Ok.test"
    assert sent == b"GET /a?b HTTP/1.1\r\nHost: Ok.test:80\r\nAccept: */*\r\nConnection: close\r\n\r\n"
    assert request.is_complete


def test_a_second_request_is_never_passed_on() -> None:
    """Neither behind the first one at once, nor later: it may name another host."""
    request = PlainRequest()
    sent = request.feed(GET + b"GET / HTTP/1.1\r\nHost: bad.test\r\n\r\n")
    sent += request.feed(b"GET / HTTP/1.1\r\nHost: bad.test\r\n\r\n")
    assert b"bad.test" not in sent


def test_a_body_is_passed_on_to_its_end() -> None:
    request = PlainRequest()
    head = b"POST / HTTP/1.1\r\nHost: ok.test\r\nTransfer-Encoding: chunked\r\n\r\n"
    sent = request.feed(head) + request.feed(b"3;name=value\r\nabc\r\n") + request.feed(b"0\r\n\r\n")
    assert sent.endswith(b"\r\n\r\n3\r\nabc\r\n0\r\n\r\n")
    assert request.is_complete


def test_an_upgrade_keeps_what_comes_behind_it_apart() -> None:
    request = PlainRequest()
    sent = request.feed(
        b"GET / HTTP/1.1\r\nHost: ok.test\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\nframes"
    )
    assert (request.wants_upgrade, request.after_upgrade) == (True, b"frames")
    assert sent.endswith(b"Connection: Upgrade\r\n\r\n")


@pytest.mark.parametrize(
    "data",
    [
        b"GET / HTTP/1.1\r\n\r\n",
        b"GET / HTTP/1.0\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: ok.test\r\nHost: bad.test\r\n\r\n",
        b"GET http://bad.test/ HTTP/1.1\r\nHost: ok.test\r\n\r\n",
        b"CONNECT bad.test:443 HTTP/1.1\r\nHost: ok.test\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: ok.test\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: ok.test\r\nContent-Length: 3\r\nContent-Length: 4\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: ok.test\r\nTransfer-Encoding: chunked, identity\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost : ok.test\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01",
        b"GET /" + b"a" * 200_000,
        b"",
    ],
)
def test_what_can_be_read_in_two_ways_is_refused(data: bytes) -> None:
    def read() -> None:
        request = PlainRequest()
        request.feed(data)
        request.feed(b"")

    with pytest.raises(BadRequest):
        read()


@given(st.lists(st.binary(max_size=60), max_size=6))
def test_any_bytes_are_a_request_or_none(pieces: list[bytes]) -> None:
    request = PlainRequest()
    try:
        for piece in pieces:
            request.feed(piece)
    except BadRequest:
        return
