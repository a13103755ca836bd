"""Bodies end where their framing says, however the bytes are cut on their way."""

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloche_server.edge.bodies import BodyError, ChunkedDecoder, LengthDecoder, encode_chunk, encode_end


def decode(data: bytes, cuts: list[int]) -> tuple[bytes, ChunkedDecoder]:
    decoder = ChunkedDecoder()
    edges = sorted({min(cut, len(data)) for cut in cuts} | {0, len(data)})
    payload = b""
    for start, end in pairwise(edges):
        if decoder.is_done:
            break
        payload += b"".join(decoder.feed(data[start:end]))
    return payload, decoder


@given(st.lists(st.binary(min_size=1, max_size=40), max_size=6), st.lists(st.integers(0, 300), max_size=8))
def test_chunks_come_back_whole_however_they_are_cut(chunks: list[bytes], cuts: list[int]) -> None:
    data = b"".join(b"".join(encode_chunk([chunk])) for chunk in chunks) + encode_end([(b"X-Sum", b"1")])
    payload, decoder = decode(data, cuts)
    assert (payload, decoder.is_done, decoder.trailers) == (b"".join(chunks), True, [(b"X-Sum", b"1")])


@given(st.binary(max_size=80))
def test_no_input_does_anything_but_decode_or_raise(data: bytes) -> None:
    decoder = ChunkedDecoder()
    try:
        decoder.feed(data)
    except BodyError:
        return


def test_extensions_are_dropped_and_what_follows_is_kept() -> None:
    payload, decoder = decode(b"3;a=b;c\r\nabc\r\n0\r\n\r\nGET /", [])
    assert (payload, decoder.rest) == (b"abc", b"GET /")


MALFORMED = {
    "no size": b"\r\nabc",
    "negative size": b"-3\r\nabc",
    "signed size": b"+3\r\nabc",
    "prefixed size": b"0x3\r\nabc",
    "huge size": b"1" * 16 + b"\r\n",
    "bare line feed": b"3\nabc\r\n",
    "bare line feed in an extension": b"3;a\nabc\r\n",
    "chunk too long": b"3\r\nabcd\r\n",
    "end without carriage return": b"3\r\nabc\n0\r\n\r\n",
    "huge extension": b"3;" + b"a" * 2000 + b"\r\nabc\r\n",
    "huge extension without end": b"3;" + b"a" * 2000,
    "trailer without colon": b"0\r\nabc\r\n\r\n",
    "huge trailers": b"0\r\n" + b"X: 123456789\r\n" * 1000 + b"\r\n",
}


@pytest.mark.parametrize("data", MALFORMED.values(), ids=MALFORMED)
@pytest.mark.parametrize("step", [1, 7, 5000])
def test_malformed_chunks_are_refused_however_they_are_cut(data: bytes, step: int) -> None:
    with pytest.raises(BodyError):
        decode(data, list(range(0, len(data), step)))


def test_trailers_cannot_bring_framing_or_cookies() -> None:
    _, decoder = decode(b"0\r\nContent-Length: 5\r\nSet-Cookie: a\r\nX: 1\r\n\r\n", [])
    assert decoder.trailers == [(b"X", b"1")]


def test_a_length_ends_the_body_and_keeps_what_follows() -> None:
    decoder = LengthDecoder(5)
    assert decoder.feed(b"abc") == [b"abc"]
    assert decoder.feed(b"defg") == [b"de"]
    assert (decoder.is_done, decoder.rest) == (True, b"fg")


def test_payload_is_not_copied_and_leaves_as_one_chunk() -> None:
    data = b"".join(b"".join(encode_chunk([bytes([letter]) * 1000])) for letter in b"abc")
    pieces = ChunkedDecoder().feed(data)
    assert [isinstance(piece, memoryview) and piece.obj is data for piece in pieces] == [True] * 3
    assert b"".join(encode_chunk(pieces)) == b"bb8\r\n" + b"a" * 1000 + b"b" * 1000 + b"c" * 1000 + b"\r\n"
