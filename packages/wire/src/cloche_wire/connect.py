"""The Connect protocol as far as the daemon speaks it: JSON and binary, no compression, sans-I/O.

Source: connectrpc.com/docs/protocol. A unary call is a plain POST of one message; an error is an HTTP
    status with a JSON body. A stream is a POST whose bodies are envelopes: one flag byte, four bytes of
    length (big endian), one message. The last envelope of an answer carries flag 2 and tells how the
    stream ended; an answer without it was cut off.
"""

from __future__ import annotations

import json
import re
import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, cast

from cloche_wire.errors import (
    AlreadyExists,
    Canceled,
    ClocheError,
    Conflict,
    DeadlineExceeded,
    Internal,
    InvalidArgument,
    NotFound,
    PermissionDenied,
    ResourceExhausted,
    TooLarge,
    Unauthenticated,
    Unavailable,
    Unimplemented,
)

if TYPE_CHECKING:
    from collections.abc import Mapping

UNARY_JSON: Final = "application/json"
STREAM_JSON: Final = "application/connect+json"
UNARY_PROTO: Final = "application/proto"
STREAM_PROTO: Final = "application/connect+proto"
PROTOCOL_VERSION_HEADER: Final = "Connect-Protocol-Version"
TIMEOUT_HEADER: Final = "Connect-Timeout-Ms"

FLAG_COMPRESSED: Final = 0x01
FLAG_END_STREAM: Final = 0x02

HEADER_SIZE: Final = 5
_HEADER = struct.Struct(">BI")
_TIMEOUT = re.compile(r"[0-9]{1,10}\Z")

HTTP_STATUS: Final[dict[str, int]] = {
    "canceled": 499,
    "unknown": 500,
    "invalid_argument": 400,
    "deadline_exceeded": 504,
    "not_found": 404,
    "already_exists": 409,
    "permission_denied": 403,
    "resource_exhausted": 429,
    "failed_precondition": 400,
    "aborted": 409,
    "out_of_range": 400,
    "unimplemented": 501,
    "internal": 500,
    "unavailable": 503,
    "data_loss": 500,
    "unauthenticated": 401,
}
"""The HTTP status of each Connect code in a unary answer."""

_CODE_OF_STATUS: Final[dict[int, str]] = {
    400: "invalid_argument",
    401: "unauthenticated",
    403: "permission_denied",
    404: "not_found",
    409: "aborted",
    413: "resource_exhausted",
    429: "resource_exhausted",
    499: "canceled",
    501: "unimplemented",
    502: "unavailable",
    503: "unavailable",
    504: "deadline_exceeded",
}

_ERROR_OF_CODE: Final[dict[str, type[ClocheError]]] = {
    "canceled": Canceled,
    "invalid_argument": InvalidArgument,
    "deadline_exceeded": DeadlineExceeded,
    "not_found": NotFound,
    "already_exists": AlreadyExists,
    "permission_denied": PermissionDenied,
    "resource_exhausted": ResourceExhausted,
    "failed_precondition": InvalidArgument,
    "aborted": Conflict,
    "out_of_range": InvalidArgument,
    "unimplemented": Unimplemented,
    "internal": Internal,
    "unavailable": Unavailable,
    "data_loss": Internal,
    "unauthenticated": Unauthenticated,
}


@dataclass(frozen=True, slots=True)
class Envelope:
    """One message of a stream as it was framed."""

    flags: int
    data: bytes

    @property
    def is_end(self) -> bool:
        """Whether this is the last envelope of an answer."""
        return bool(self.flags & FLAG_END_STREAM)


def encode_header(flags: int, size: int) -> bytes:
    """Return what stands before a message of `size` bytes."""
    return _HEADER.pack(flags, size)


def encode_envelope(flags: int, data: bytes) -> bytes:
    """Return one framed message."""
    return encode_header(flags, len(data)) + data


class EnvelopeDecoder:
    """Cuts a byte stream into envelopes; holds at most one message of `max_bytes`."""

    def __init__(self, max_bytes: int) -> None:
        """Take messages of at most `max_bytes` bytes."""
        self._max_bytes = max_bytes
        self._buffer = bytearray()

    def feed(self, data: bytes) -> list[Envelope]:
        """Take the next bytes and return the envelopes that are complete now.

        Raises:
            TooLarge: A message announces more than `max_bytes`.
            InvalidArgument: A message is compressed, or has flags that do not exist.
        """
        self._buffer += data
        ready: list[Envelope] = []
        while len(self._buffer) >= HEADER_SIZE:
            flags, size = cast("tuple[int, int]", _HEADER.unpack_from(self._buffer))
            if flags & FLAG_COMPRESSED:
                raise InvalidArgument("compressed message without a negotiated compression")
            if flags & ~FLAG_END_STREAM:
                raise InvalidArgument(f"unknown envelope flags: {flags}")
            if size > self._max_bytes:
                raise TooLarge(f"message larger than {self._max_bytes} bytes: {size}")
            if len(self._buffer) < HEADER_SIZE + size:
                break
            ready.append(Envelope(flags, bytes(self._buffer[HEADER_SIZE : HEADER_SIZE + size])))
            del self._buffer[: HEADER_SIZE + size]
        return ready

    def close(self) -> None:
        """Say that no bytes follow.

        Raises:
            InvalidArgument: The stream ends inside an envelope.
        """
        if self._buffer:
            raise InvalidArgument("stream ends inside an envelope")


def end_stream(error: ClocheError | None = None) -> bytes:
    """Return the framed last envelope of an answer: `{}` on success, else the error."""
    body = {} if error is None else {"error": _error_fields(error)}
    return encode_envelope(FLAG_END_STREAM, _dump(body))


def read_end_stream(data: bytes) -> ClocheError | None:
    """Return the error that the last envelope tells, or None on success.

    Raises:
        InvalidArgument: The envelope does not hold a JSON object.
    """
    body = _load_object(data)
    if body is None:
        raise InvalidArgument("malformed end of stream")
    fields = body.get("error")
    if fields is None:
        return None
    if not isinstance(fields, dict):
        raise InvalidArgument("malformed end of stream")
    return _read_error(cast("dict[str, object]", fields), "unknown")


def error_body(error: ClocheError) -> bytes:
    """Return the JSON body of a failed unary call; the status is `http_status(error)`."""
    return _dump(_error_fields(error))


def http_status(error: ClocheError) -> int:
    """Return the HTTP status of a failed unary call: by the Connect code, which alone the clients go by."""
    return HTTP_STATUS[error.connect_code]


def read_error(status: int, body: bytes) -> ClocheError:
    """Return the error of a failed unary call, also when a proxy answered and not the daemon."""
    fallback = _CODE_OF_STATUS.get(status, "unknown" if status < 500 else "internal")
    fields: Mapping[str, object] | None = _load_object(body)
    if fields is None:
        text = body[:500].decode("utf-8", "replace").strip()
        fields = {"message": text or f"http status {status}"}
    return _read_error(fields, fallback)


def parse_timeout_ms(header: str | None) -> int | None:
    """Return the milliseconds that a caller gave, or None for no limit.

    Raises:
        InvalidArgument: Not a whole number of at most ten digits.
    """
    if header is None:
        return None
    if not _TIMEOUT.match(header):
        raise InvalidArgument(f"bad {TIMEOUT_HEADER}: {header[:32]!r}")
    return int(header)


def error_from_code(code: str, message: str) -> ClocheError:
    """Return an error of the tree for a Connect code; an unknown code gives a plain ClocheError."""
    return _ERROR_OF_CODE.get(code, ClocheError)(message)


def _error_fields(error: ClocheError) -> dict[str, str]:
    return {"code": error.connect_code, "message": str(error)}


def _read_error(fields: Mapping[str, object], fallback: str) -> ClocheError:
    code, message = fields.get("code"), fields.get("message")
    return error_from_code(
        code if isinstance(code, str) and code in HTTP_STATUS else fallback,
        message if isinstance(message, str) else "",
    )


def _dump(body: object) -> bytes:
    return json.dumps(body, separators=(",", ":")).encode()


def _load_object(data: bytes) -> dict[str, object] | None:
    try:
        body: object = json.loads(data)
    except (ValueError, RecursionError):
        return None
    return cast("dict[str, object]", body) if isinstance(body, dict) else None
