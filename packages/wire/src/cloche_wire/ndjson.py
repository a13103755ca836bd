"""Newline-delimited JSON: one object per line, each line bounded."""

from __future__ import annotations

import json

from cloche_wire.errors import TooLarge


def encode_line(value: object) -> bytes:
    """Return the value as one line of JSON."""
    return json.dumps(value, separators=(",", ":"), ensure_ascii=True).encode() + b"\n"


class LineDecoder:
    """Cuts a byte stream into lines; holds at most one line of `max_bytes`."""

    def __init__(self, max_bytes: int) -> None:
        """Take lines of at most `max_bytes` bytes, without their newline."""
        self._max_bytes = max_bytes
        self._pending = bytearray()
        self._searched = 0

    def feed(self, data: bytes) -> list[bytes]:
        """Take the next bytes and return the lines that are complete now; empty lines are dropped.

        Raises:
            TooLarge: A line is longer than `max_bytes`.
        """
        self._pending += data
        lines: list[bytes] = []
        start = 0
        while (end := self._pending.find(b"\n", max(start, self._searched))) >= 0:
            self._check(end - start)
            if line := bytes(self._pending[start:end]).rstrip(b"\r"):
                lines.append(line)
            start = self._searched = end + 1
        del self._pending[:start]
        self._searched = len(self._pending)
        self._check(len(self._pending))
        return lines

    def close(self) -> bytes | None:
        """Return the last line if the stream ended without a newline."""
        rest = bytes(self._pending).rstrip(b"\r")
        self._pending.clear()
        self._searched = 0
        return rest or None

    def _check(self, size: int) -> None:
        if size > self._max_bytes:
            raise TooLarge(f"line longer than {self._max_bytes} bytes")
