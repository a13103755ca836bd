"""Where a body ends, without holding any of it.

A decoder takes what arrives and gives the payload in the same pieces; an encoder frames it anew for the other
side. Chunks are never copied as chunks: sizes are re-written and extensions dropped, so that nothing but
payload passes the edge.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from cloche_server.edge.heads import AnswerHead, Fields, RequestHead

MAX_CHUNK_LINE_BYTES = 1024
MAX_TRAILER_BYTES = 8 * 1024

_CHUNK_LINE = re.compile(rb"([0-9A-Fa-f]{1,15})[ \t]*(?:;[\t -~]*)?\Z")
_TRAILER = re.compile(
    rb"([-!#$%&'*+.^_`|~0-9A-Za-z]+):[ \t]*([!-~\x80-\xff]?(?:[\t -~\x80-\xff]*[!-~\x80-\xff])?)[ \t]*\Z"
)
_NO_TRAILERS = {
    b"transfer-encoding",
    b"content-length",
    b"host",
    b"connection",
    b"set-cookie",
    b"trailer",
    b"content-encoding",
}


Pieces = Sequence[bytes | memoryview]
"""Payload, cut as it came."""


class BodyError(Exception):
    """The body is not framed as its head promised."""


class Decoder(Protocol):
    """Takes the framing off one body."""

    is_done: bool
    """Whether the body is complete; no more may be fed then."""
    rest: bytes
    """What was fed beyond the end of the body."""
    ends_with_connection: bool
    """Whether the end of the connection is the end of the body, rather than a failure."""

    def feed(self, data: bytes) -> Pieces:
        """Return the payload in `data`, which nothing may be done with but send it: it is not copied.

        Raises:
            BodyError: The framing is broken.
        """
        ...


class LengthDecoder:
    """A body of a known length."""

    ends_with_connection = False

    def __init__(self, length: int) -> None:
        self._left = length
        self.is_done = length == 0
        self.rest = b""

    def feed(self, data: bytes) -> Pieces:
        """See `Decoder.feed`."""
        if len(data) > self._left:
            data, self.rest = data[: self._left], data[self._left :]
        self._left -= len(data)
        self.is_done = self._left == 0
        return [data]


class ConnectionDecoder:
    """A body that lasts as long as the connection."""

    ends_with_connection = True

    def __init__(self) -> None:
        self.is_done = False
        self.rest = b""

    def feed(self, data: bytes) -> Pieces:
        """See `Decoder.feed`."""
        return [data]


class ChunkedDecoder:
    """A body in chunks (RFC 9112, 7.1), read without the tolerance that smuggling lives on."""

    ends_with_connection = False

    def __init__(self) -> None:
        self.is_done = False
        self.rest = b""
        self.trailers: Fields = []
        self._left = 0
        self._line = b""
        self._trailer_bytes = 0
        self._read_line = self._size_line

    def feed(self, data: bytes) -> Pieces:
        """See `Decoder.feed`."""
        pieces: list[bytes | memoryview] = []
        payload = memoryview(data)
        at, end = 0, len(data)
        while at < end and not self.is_done:
            if self._left:
                piece = payload[at : at + self._left]
                pieces.append(piece)
                self._left -= len(piece)
                at += len(piece)
                if self._left == 0:
                    self._read_line = self._chunk_end
            else:
                at = self._take_line(data, at)
        self.rest = data[at:]
        return pieces

    def _take_line(self, data: bytes, at: int) -> int:
        """Read a line, or what there is of it; where the next thing begins."""
        end = data.find(b"\n", at)
        self._line += data[at:] if end < 0 else data[at:end]
        if len(self._line) > MAX_CHUNK_LINE_BYTES:
            raise BodyError("chunk line is too long")
        if end < 0:
            if self._read_line == self._chunk_end and self._line != b"\r":
                raise BodyError("a chunk is longer than its size")
            return len(data)
        line, self._line = self._line, b""
        if not line.endswith(b"\r"):
            raise BodyError("a line of the chunked body ends without a carriage return")
        self._read_line(line[:-1])
        return end + 1

    def _size_line(self, line: bytes) -> None:
        match = _CHUNK_LINE.match(line)
        if match is None:
            raise BodyError("malformed chunk size")
        self._left = int(match[1], 16)
        if self._left == 0:
            self._read_line = self._trailer_line

    def _chunk_end(self, line: bytes) -> None:
        if line:
            raise BodyError("a chunk is longer than its size")
        self._read_line = self._size_line

    def _trailer_line(self, line: bytes) -> None:
        if not line:
            self.is_done = True
            return
        self._trailer_bytes += len(line)
        match = _TRAILER.match(line)
        if match is None or self._trailer_bytes > MAX_TRAILER_BYTES:
            raise BodyError("malformed trailer")
        if match[1].lower() not in _NO_TRAILERS:
            self.trailers.append((match[1], match[2]))


def request_decoder(request: RequestHead) -> Decoder:
    """Return what reads the body of a request."""
    if b"transfer-encoding" in request.values:
        return ChunkedDecoder()
    return LengthDecoder(int(request.values.get(b"content-length", [b"0"])[0]))


def answer_decoder(method: bytes, answer: AnswerHead) -> Decoder:
    """Return what reads the body of an answer to a request with this method (RFC 9112, 6.3)."""
    if method == b"HEAD" or answer.status in {204, 304}:
        return LengthDecoder(0)
    if b"transfer-encoding" in answer.values:
        return ChunkedDecoder()
    if b"content-length" in answer.values:
        return LengthDecoder(int(answer.values[b"content-length"][0]))
    return ConnectionDecoder()


def encode_chunk(pieces: Pieces) -> Pieces:
    """Frame pieces as one chunk, whatever chunks they came in."""
    size = sum(map(len, pieces))
    return [b"%x\r\n" % size, *pieces, b"\r\n"] if size else []


def encode_end(trailers: Fields) -> bytes:
    """Frame the end of a chunked body."""
    return b"0\r\n" + b"".join(b"%b: %b\r\n" % field for field in trailers) + b"\r\n"
