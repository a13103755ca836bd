"""Heads of requests and answers: read strictly, checked by h11's grammar, written by us.

Nothing of a client's head is copied as bytes to a server behind the edge: it is taken apart here and written
anew from its parts, so there is one reading of it, and two servers cannot disagree about where a message
ends.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

import h11

from cloche_server.edge.refusal import Refusal

if TYPE_CHECKING:
    from cloche_server.edge.streams import Stream

MAX_REQUEST_HEAD_BYTES = 32 * 1024
MAX_ANSWER_HEAD_BYTES = 64 * 1024

Fields = list[tuple[bytes, bytes]]
"""Header fields in their order, names as they were written."""

_REQUEST_LINE = re.compile(rb"([!-~]+) ([!-~]+) HTTP/(\d\.\d)\Z")
_STATUS_LINE = re.compile(rb"HTTP/1\.([01]) (\d{3})(?: (.*))?\Z")
_BARE_LINE_FEED = re.compile(rb"(?<!\r)\n")
_MALFORMED = re.compile(rb"(?<!\r)\n|\r(?!\n)|\n[ \t]|\x00")
_ANSWER_END = re.compile(rb"\r?\n\r?\n")


class AnswerError(Exception):
    """A server behind the edge did not answer in HTTP."""


@dataclass(slots=True)
class RequestHead:
    """One request, without its body."""

    method: bytes
    target: bytes
    """Origin form: path and query, as sent."""
    is_http10: bool
    fields: Fields
    values: dict[bytes, list[bytes]]
    """Values by lower-case name."""

    def get(self, name: bytes) -> bytes | None:
        """Return the only value of a header, None where it is absent.

        Raises:
            Refusal: 400, the header is there more than once.
        """
        found = self.values.get(name)
        if found is None:
            return None
        if len(found) > 1:
            raise Refusal(400, f"repeated header: {name.decode('ascii', 'replace')}")
        return found[0]

    def tokens(self, name: bytes) -> set[bytes]:
        """Return the comma-separated elements of a header, in lower case."""
        return split_tokens(self.values.get(name, []))

    @property
    def path(self) -> bytes:
        """The target without its query."""
        return self.target.partition(b"?")[0]

    @property
    def has_body(self) -> bool:
        """Whether a body follows the head (an announced length of 0 is none)."""
        return (
            b"transfer-encoding" in self.values
            or self.values.get(b"content-length", [b"0"])[0].strip(b"0") != b""
        )

    @property
    def closes(self) -> bool:
        """Whether the client wants the connection closed after the answer, or cannot keep it."""
        return self.is_http10 or b"close" in self.tokens(b"connection")

    @property
    def upgrade(self) -> bytes | None:
        """The protocol asked for by a sound `Upgrade` request, in lower case."""
        if self.is_http10 or self.has_body or b"upgrade" not in self.tokens(b"connection"):
            return None
        protocol = self.get(b"upgrade")
        return None if protocol is None else protocol.lower()


@dataclass(slots=True)
class AnswerHead:
    """One answer of a server behind the edge, without its body."""

    status: int
    reason: bytes
    fields: Fields
    values: dict[bytes, list[bytes]]


async def read_request(stream: Stream) -> RequestHead | None:
    """Read the next head of a client; None when the client closed the connection between two requests.

    Raises:
        Refusal: 400, 405, 431 or 505; the connection is to be closed after the answer, since its framing is
            in doubt.
    """
    head = await _read_request_bytes(stream)
    return None if head is None else parse_request(head)


def parse_request(head: bytes) -> RequestHead:
    """Take a head apart; `head` ends before the empty line.

    Raises:
        Refusal: See `read_request`.
    """
    if _MALFORMED.search(head):
        raise Refusal(400, "malformed request head")
    line, *rest = head.split(b"\r\n")
    match = _REQUEST_LINE.match(line)
    if match is None:
        raise Refusal(400, "malformed request line")
    method, target, version = match.groups()
    if version not in {b"1.0", b"1.1"}:
        raise Refusal(505, "only HTTP/1.0 and HTTP/1.1 are served")
    if method in {b"CONNECT", b"TRACE"}:
        raise Refusal(405, f"method is not served: {method.decode()}")
    fields = _split_fields(rest)
    try:
        h11.Request(method=method, target=target, headers=list(fields), http_version=version)
    except h11.ProtocolError as error:
        raise Refusal(400, "malformed request head") from error
    request = RequestHead(method, target, version == b"1.0", fields, _by_name(fields))
    _check_framing(request)
    request.target = _origin_form(request)
    return request


async def read_answer(stream: Stream) -> AnswerHead | None:
    """Read the head of an answer; None when the connection ended before it was whole.

    Line ends may be bare, since servers written in an afternoon do so and nothing else reads these bytes.

    Raises:
        AnswerError: It is not HTTP/1, or larger than 64 KiB.
    """
    buffer = b""
    while True:
        data = await stream.read()
        if not data:
            return None
        buffer = buffer + data if buffer else data
        match = _ANSWER_END.search(buffer)
        if match is not None:
            stream.unread(buffer[match.end() :])
            return parse_answer(buffer[: match.start()])
        if len(buffer) > MAX_ANSWER_HEAD_BYTES:
            raise AnswerError("head is too large")


def parse_answer(head: bytes) -> AnswerHead:
    """Take the head of an answer apart; `head` ends before the empty line.

    Raises:
        AnswerError: It is not HTTP/1, or its framing is ambiguous.
    """
    line, *rest = [line.removesuffix(b"\r") for line in head.split(b"\n")]
    match = _STATUS_LINE.match(line)
    if match is None:
        raise AnswerError("malformed status line")
    version, status, reason = int(match[1]), int(match[2]), match[3] or b""
    try:
        fields = _split_fields(rest)
        kind = h11.InformationalResponse if status < 200 else h11.Response
        checked = kind(
            status_code=status, headers=list(fields), reason=reason, http_version=b"1.%d" % version
        )
    except (Refusal, h11.ProtocolError) as error:
        raise AnswerError(str(error)) from error
    values = _by_name(list(checked.headers))  # h11 has merged equal lengths
    if b"transfer-encoding" in values and b"content-length" in values:
        raise AnswerError("both a length and a transfer coding")
    return AnswerHead(status, reason, fields, values)


def write_head(first_line: bytes, fields: Fields) -> bytes:
    """Serialize a head. Names and values have passed h11's grammar, so none holds a line end."""
    return b"".join([first_line, b"\r\n", *[b"%b: %b\r\n" % field for field in fields], b"\r\n"])


def split_tokens(values: list[bytes]) -> set[bytes]:
    """Return the comma-separated elements of a header's values, in lower case."""
    return {token.strip().lower() for value in values for token in value.split(b",")}


# --- inside -------------------------------------------------------------------------------------------------


async def _read_request_bytes(stream: Stream) -> bytes | None:
    buffer = b""
    while True:
        data = await stream.read()
        if not data:
            if buffer:
                raise Refusal(400, "the connection ended inside the request head")
            return None
        buffer = (buffer + data).removeprefix(
            b"\r\n"
        )  # RFC 9112 2.2: one empty line before a request is forgiven
        end = buffer.find(b"\r\n\r\n")
        if end > MAX_REQUEST_HEAD_BYTES or (end < 0 and len(buffer) > MAX_REQUEST_HEAD_BYTES):
            raise Refusal(431, "the request head is larger than 32 KiB")
        if end >= 0:
            stream.unread(buffer[end + 4 :])
            return buffer[:end]
        if _BARE_LINE_FEED.search(buffer):
            raise Refusal(
                400, "malformed request head"
            )  # else a client that sends no CR would wait for the time-out


def _split_fields(lines: list[bytes]) -> Fields:
    fields: Fields = []
    for line in lines:
        name, colon, value = line.partition(b":")
        if not colon:
            raise Refusal(400, "malformed header line")
        fields.append((name, value.strip(b" \t")))
    return fields


def _by_name(fields: Fields) -> dict[bytes, list[bytes]]:
    values: dict[bytes, list[bytes]] = {}
    for name, value in fields:
        values.setdefault(name.lower(), []).append(value)
    return values


def _check_framing(request: RequestHead) -> None:
    coding = request.values.get(b"transfer-encoding")
    length = request.values.get(b"content-length")
    if length is not None and (len(length) > 1 or not length[0].isdigit() or len(length[0]) > 18):
        raise Refusal(400, "bad content length")
    if coding is None:
        return
    if length is not None:
        raise Refusal(400, "both a content length and a transfer coding")
    if request.is_http10 or len(coding) > 1 or coding[0].lower() != b"chunked":
        raise Refusal(400, "bad transfer coding")


def _origin_form(request: RequestHead) -> bytes:
    host = request.get(b"host")
    if host is None and not request.is_http10:
        raise Refusal(400, "no host")
    if request.target.startswith(b"/"):
        return request.target
    scheme, separator, rest = request.target.partition(b"://")
    if not separator or scheme.lower() not in {b"http", b"https"}:
        raise Refusal(400, "bad request target")
    authority = re.split(rb"[/?]", rest, maxsplit=1)[0]
    if host is None or authority.lower() != host.lower():
        raise Refusal(400, "the request target names another host")
    tail = rest[len(authority) :]
    return tail if tail.startswith(b"/") else b"/" + tail
