# ruff: noqa: ANN401, UP045 - IPython is untyped, runs on Python 3.9
"""Frames between agent and kernel: four bytes of length, big endian, then that much JSON (an object)."""

from __future__ import annotations

import json
import math
import struct
from typing import TYPE_CHECKING, Any, Optional

if TYPE_CHECKING:
    import socket

LARGEST_FRAME_BYTES = 32 << 20
"""The agent refuses larger ones, and a kernel that sends them with it."""

_LENGTH = struct.Struct(">I")
# Bound here: a cell that replaces json.loads must still be able to say so.
_encode_strictly = json.JSONEncoder(separators=(",", ":"), default=str, allow_nan=False).encode
_encode = json.JSONEncoder(separators=(",", ":"), default=str).encode
_decode = json.JSONDecoder().decode


def encode(message: dict[str, Any]) -> bytes:
    """The frame of `message`.

    NaN and infinity become null, for JSON has neither; what JSON cannot say at all becomes its `str`.

    Raises:
        ValueError: A value contains itself.
    """
    try:
        text = _encode_strictly(message)
    except (TypeError, ValueError):
        text = _encode(_plain(message))
    data = text.encode("ascii")
    return _LENGTH.pack(len(data)) + data


def _plain(value: Any, depth: int = 0) -> Any:
    """`value` without what made the fast way fail: numbers that are none, keys that are no strings."""
    if depth > 200:
        raise ValueError("nested too deeply")
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {str(key): _plain(item, depth + 1) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item, depth + 1) for item in value]
    return value


def receive(sock: socket.socket) -> Optional[dict[str, Any]]:
    """The next message, or None when the agent has closed its end."""
    head = _receive_exactly(sock, _LENGTH.size)
    if head is None:
        return None
    body = _receive_exactly(sock, _LENGTH.unpack(head)[0])
    return None if body is None else _decode(body.decode())


def _receive_exactly(sock: socket.socket, size: int) -> Optional[bytes]:
    data = bytearray()
    while len(data) < size:
        piece = sock.recv(size - len(data))
        if not piece:
            return None
        data += piece
    return bytes(data)
