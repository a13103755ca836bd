"""multipart/form-data (RFC 7578) as a stream: bytes in, parts out, next to nothing kept."""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import Enum, auto
from typing import TypeAlias
from urllib.parse import unquote

from cloche_wire.errors import InvalidArgument

_LARGEST_HEAD_BYTES = 16 * 1024
_BOUNDARY = re.compile(r"[0-9A-Za-z'()+_,\-./:=? ]{0,69}[0-9A-Za-z'()+_,\-./:=?]")
_PARAMETER = re.compile(r";\s*([^=;\s]+)\s*=\s*(\"(?:[^\"\\]|\\.)*\"|[^;\s]*)")


@dataclass(frozen=True, slots=True)
class PartBegin:
    """A part begins: its form name, and its file name if it has one."""

    name: str
    filename: str | None


@dataclass(frozen=True, slots=True)
class PartData:
    """Some bytes of the part."""

    data: bytes | memoryview


@dataclass(frozen=True, slots=True)
class PartEnd:
    """The part is complete."""


PartEvent: TypeAlias = "PartBegin | PartData | PartEnd"


class _State(Enum):
    PREAMBLE = auto()
    AFTER_BOUNDARY = auto()
    HEAD = auto()
    DATA = auto()
    DONE = auto()


class MultipartParser:
    """Cuts a body into parts; feed it until the body ends, then `close` it."""

    def __init__(self, content_type: str) -> None:
        """Take the boundary out of the Content-Type header.

        Raises:
            InvalidArgument: It has none.
        """
        boundary = parameters(content_type).get("boundary", "")
        if not _BOUNDARY.fullmatch(boundary):
            raise InvalidArgument("multipart body without a valid boundary")
        self._delimiter = b"\r\n--" + boundary.encode()
        # The first boundary may stand at the very start, without the line break that is part of the
        # delimiter.
        self._buffer = bytearray(b"\r\n")
        self._state = _State.PREAMBLE

    def feed(self, data: bytes) -> list[PartEvent]:
        """Take the next bytes; what they complete, in order.

        Raises:
            InvalidArgument: The body is malformed.
        """
        if self._state is _State.DATA and not self._buffer and self._delimiter not in data:
            # Most of a large file: passed on as it came, where the buffer would mean two copies.
            end = self._possible_delimiter(data)
            self._buffer += data[end:]
            return [PartData(memoryview(data)[:end])] if end else []
        self._buffer += data
        events: list[PartEvent] = []
        while self._step(events):
            pass
        return events

    def close(self) -> None:
        """Say that no bytes follow.

        Raises:
            InvalidArgument: The last boundary is missing.
        """
        if self._state is not _State.DONE:
            raise InvalidArgument("multipart body ends early")

    def _step(self, events: list[PartEvent]) -> bool:
        """Take one thing out of the buffer; False when more bytes are needed."""
        match self._state:
            case _State.PREAMBLE:
                return self._skip_preamble()
            case _State.AFTER_BOUNDARY:
                return self._after_boundary()
            case _State.HEAD:
                return self._head(events)
            case _State.DATA:
                return self._data(events)
            case _State.DONE:
                self._buffer.clear()
                return False

    def _skip_preamble(self) -> bool:
        at = self._buffer.find(self._delimiter)
        if at < 0:
            del self._buffer[: max(0, len(self._buffer) - len(self._delimiter))]
            return False
        del self._buffer[: at + len(self._delimiter)]
        self._state = _State.AFTER_BOUNDARY
        return True

    def _after_boundary(self) -> bool:
        if len(self._buffer) < 2:
            return False
        if self._buffer.startswith(b"--"):
            self._state = _State.DONE
            return True
        at = self._buffer.find(b"\r\n")
        if at < 0:
            if len(self._buffer) > _LARGEST_HEAD_BYTES:
                raise InvalidArgument("malformed multipart boundary")
            return False
        if self._buffer[:at].strip(b" \t"):
            raise InvalidArgument("malformed multipart boundary")
        del self._buffer[:at]  # the line break stays: it may be the first half of an empty head
        self._state = _State.HEAD
        return True

    def _head(self, events: list[PartEvent]) -> bool:
        at = self._buffer.find(b"\r\n\r\n")
        if at < 0:
            if len(self._buffer) > _LARGEST_HEAD_BYTES:
                raise InvalidArgument("multipart head is too long")
            return False
        head = bytes(self._buffer[:at]).decode("utf-8", "surrogateescape")
        del self._buffer[: at + 4]
        events.append(_part(head))
        self._state = _State.DATA
        return True

    def _data(self, events: list[PartEvent]) -> bool:
        at = self._buffer.find(self._delimiter)
        if at < 0:
            end = self._possible_delimiter(self._buffer)
            if end:
                events.append(PartData(bytes(memoryview(self._buffer)[:end])))
                del self._buffer[:end]
            return False
        if at:
            events.append(PartData(bytes(memoryview(self._buffer)[:at])))
        events.append(PartEnd())
        del self._buffer[: at + len(self._delimiter)]
        self._state = _State.AFTER_BOUNDARY
        return True

    def _possible_delimiter(self, data: bytes | bytearray) -> int:
        """Where, in data without a delimiter, one may begin that goes on in what follows; else its length."""
        at = data.find(b"\r", max(0, len(data) - len(self._delimiter) + 1))
        return len(data) if at < 0 else at


def parameters(header: str) -> dict[str, str]:
    """Parameters of a header value (`; name=value`), names in lower case, quotes taken off."""
    found: dict[str, str] = {}
    for name, value in _PARAMETER.findall(header):
        if value.startswith('"'):
            value = re.sub(r"\\(.)", r"\1", value[1:-1])
        found.setdefault(name.lower(), value)
    return found


def _part(head: str) -> PartBegin:
    for line in head.split("\r\n"):
        name, _, value = line.partition(":")
        if name.strip().lower() == "content-disposition":
            found = parameters(value)
            filename = found.get("filename")
            if extended := found.get("filename*"):
                charset, _, rest = extended.partition("'")
                filename = unquote(rest.partition("'")[2], charset or "utf-8", errors="replace")
            return PartBegin(found.get("name", ""), filename)
    raise InvalidArgument("multipart part without content-disposition")
