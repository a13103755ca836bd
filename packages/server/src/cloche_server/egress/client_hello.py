"""The server's name out of the first bytes of TLS, as a sandbox sends them. No input or output.

See: RFC 8446 4.1.2 and 5.1, RFC 6066 3. Everything here is hostile: each length is checked against what is
there, and the whole is bounded by `MAX_BYTES`.
"""

from __future__ import annotations

MAX_BYTES = 32 * 1024
"""A hello with post-quantum key shares has some 2 KiB."""
UNRECOGNIZED_NAME = bytes((21, 3, 3, 0, 2, 2, 112))
"""The alert that tells a client why it is cut off (RFC 6066 3)."""
_HANDSHAKE, _CLIENT_HELLO = 22, 1
_SERVER_NAME, _ENCRYPTED_HELLO = 0, 0xFE0D


class NoName(ValueError):  # noqa: N818 - what is found, not a failure
    """These bytes are no TLS, or name no server that can be checked."""


def read_server_name(data: bytes) -> str | None:
    """Return the name; None as long as more bytes are needed.

    Raises:
        NoName: It will never be there.
    """
    hello = _hello(data)
    if hello is None:
        if len(data) >= MAX_BYTES:
            raise NoName("the hello is too long")
        return None
    extensions = _extensions(hello)
    if _ENCRYPTED_HELLO in extensions:
        raise NoName("the true name is encrypted")
    names = _Reader(extensions.get(_SERVER_NAME, b""))
    entries = _Reader(names.block(2))
    if entries.number(1) != 0:
        raise NoName("no name of a host")
    try:
        return entries.block(2).decode("ascii")
    except UnicodeDecodeError as error:
        raise NoName("the name is no text") from error


def _hello(data: bytes) -> bytes | None:
    """The body of the hello, put together from its records; None while it is incomplete."""
    message = bytearray()
    at = 0
    while True:
        if len(message) >= 4:
            if message[0] != _CLIENT_HELLO:
                raise NoName("no client's hello")
            length = int.from_bytes(message[1:4])
            if length > MAX_BYTES:
                raise NoName("the hello is too long")
            if len(message) >= 4 + length:
                return bytes(message[4 : 4 + length])
        head = data[at : at + 5]
        if (head and head[0] != _HANDSHAKE) or (len(head) > 1 and head[1] != 3):
            raise NoName("no TLS")
        if len(head) < 5:
            return None
        length = int.from_bytes(head[3:5])
        if not 0 < length <= 1 << 14:
            raise NoName("no TLS")
        message += data[at + 5 : at + 5 + length]
        if len(data) < at + 5 + length:
            return None
        at += 5 + length


def _extensions(hello: bytes) -> dict[int, bytes]:
    reader = _Reader(hello)
    reader.take(2 + 32)  # version, random
    for size in (1, 2, 1):  # session, cipher suites, compression
        reader.block(size)
    reader = _Reader(reader.block(2))
    found: dict[int, bytes] = {}
    while not reader.at_end:
        kind = reader.number(2)
        if kind in found:
            raise NoName("an extension stands twice")
        found[kind] = reader.block(2)
    return found


class _Reader:
    """Pieces of known or told length from the front of some bytes."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    @property
    def at_end(self) -> bool:
        return self._at == len(self._data)

    def take(self, length: int) -> bytes:
        piece = self._data[self._at : self._at + length]
        if len(piece) < length:
            raise NoName("a length leads nowhere")
        self._at += length
        return piece

    def number(self, size: int) -> int:
        return int.from_bytes(self.take(size))

    def block(self, size: int) -> bytes:
        return self.take(self.number(size))
