"""Connect framing and errors."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloche_wire import connect
from cloche_wire.errors import (
    ClocheError,
    DeadlineExceeded,
    InvalidArgument,
    NotFound,
    SandboxNotFound,
    TooLarge,
    Unavailable,
    error_types,
)


@given(st.lists(st.tuples(st.sampled_from([0, 2]), st.binary(max_size=60)), max_size=6), st.data())
def test_envelopes_survive_any_cutting(messages: list[tuple[int, bytes]], data: st.DataObject) -> None:
    stream = b"".join(connect.encode_envelope(flags, body) for flags, body in messages)
    decoder = connect.EnvelopeDecoder(max_bytes=60)
    found: list[tuple[int, bytes]] = []
    while stream:
        size = data.draw(st.integers(1, len(stream)))
        found += [(envelope.flags, envelope.data) for envelope in decoder.feed(stream[:size])]
        stream = stream[size:]
    decoder.close()
    assert found == messages


def test_a_message_is_refused_by_its_announced_size_alone() -> None:
    with pytest.raises(TooLarge):
        connect.EnvelopeDecoder(max_bytes=9).feed(b"\x00\x00\x00\x00\x0a")


@pytest.mark.parametrize("flags", [1, 3, 4, 0x80])
def test_compressed_and_unknown_envelopes_are_refused(flags: int) -> None:
    with pytest.raises(InvalidArgument):
        connect.EnvelopeDecoder(10).feed(connect.encode_envelope(flags, b"{}"))


def test_a_stream_that_ends_inside_an_envelope_is_refused() -> None:
    decoder = connect.EnvelopeDecoder(10)
    assert decoder.feed(b"\x00\x00\x00\x00\x02{") == []
    with pytest.raises(InvalidArgument):
        decoder.close()


def test_the_end_of_a_good_stream_is_an_empty_object() -> None:
    assert connect.end_stream() == b"\x02\x00\x00\x00\x02{}"
    assert connect.read_end_stream(b"{}") is None


def test_the_end_of_a_failed_stream_carries_the_error() -> None:
    (envelope,) = connect.EnvelopeDecoder(1000).feed(connect.end_stream(DeadlineExceeded("time is over")))
    assert envelope.is_end
    error = connect.read_end_stream(envelope.data)
    assert isinstance(error, DeadlineExceeded)
    assert error.message == "time is over"


@pytest.mark.parametrize("data", [b"", b"[]", b"nope", b'{"error":1}'])
def test_a_malformed_end_is_an_invalid_argument(data: bytes) -> None:
    with pytest.raises(InvalidArgument):
        connect.read_end_stream(data)


@pytest.mark.parametrize(
    "kind", [kind for kind in error_types().values() if kind.__module__ == ClocheError.__module__]
)
def test_every_error_of_the_tree_crosses_a_unary_call(kind: type[ClocheError]) -> None:
    error = kind("no luck")
    back = connect.read_error(connect.http_status(error), connect.error_body(error))
    assert (back.connect_code, back.message) == (kind.connect_code, "no luck")


def test_the_hint_travels_in_the_message() -> None:
    body = json.loads(connect.error_body(NotFound("no such thing", hint="look elsewhere")))
    assert body == {"code": "not_found", "message": "no such thing (hint: look elsewhere)"}


@pytest.mark.parametrize(
    ("status", "body", "kind", "text"),
    [
        (
            502,
            b'{"sandboxId":"i1","message":"The sandbox was not found","code":502}',
            Unavailable,
            "was not found",
        ),
        (404, b"nothing here", NotFound, "nothing here"),
        (418, b"", ClocheError, "http status 418"),
        (400, b"[]", InvalidArgument, "[]"),
    ],
)
def test_answers_of_a_proxy_become_errors_too(
    status: int, body: bytes, kind: type[ClocheError], text: str
) -> None:
    error = connect.read_error(status, body)
    assert type(error) is kind
    assert text in error.message


def test_a_sandbox_that_is_missing_is_not_found_on_the_wire() -> None:
    assert json.loads(connect.error_body(SandboxNotFound("x")))["code"] == "not_found"


@pytest.mark.parametrize(
    ("header", "value"), [(None, None), ("0", 0), ("1500", 1500), ("9999999999", 9_999_999_999)]
)
def test_timeouts_are_read(header: str | None, value: int | None) -> None:
    assert connect.parse_timeout_ms(header) == value


@pytest.mark.parametrize("header", ["", "-1", "+1", "1.5", "1e3", "12345678901", "٣", " 1", "1\n"])
def test_bad_timeouts_are_refused(header: str) -> None:
    with pytest.raises(InvalidArgument):
        connect.parse_timeout_ms(header)
