"""What has happened in the sandbox, kept in memory for the node to fetch: bounded, and without secrets.

Of a command only the program's name is kept: its arguments, its variables and its output may be secrets.
"""

from __future__ import annotations

import json
import logging
import re
import time
from collections import deque
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from collections.abc import Sequence

Level = Literal["debug", "info", "warn", "error"]

MAX_ENTRIES = 2000
MAX_BYTES = 256 * 1024
LARGEST_MESSAGE = 1000
LARGEST_FIELD = 200

_PROGRAM = re.compile(r"[A-Za-z0-9_./+-]{1,64}")
_SHELLS = frozenset({"bash", "sh", "dash", "zsh"})


class Activity:
    """The newest entries. One per agent."""

    def __init__(self) -> None:
        """Nothing has happened yet."""
        self._lines: deque[tuple[int, bytes]] = deque()
        self._size = 0
        self._last_ms = 0

    def note(self, level: Level, logger: str, message: str, **fields: str | float) -> None:
        """Write down one thing; the oldest ones make room for it.

        Times grow by at least a millisecond, so that whoever asks from a time on misses nothing.
        """
        self._last_ms = max(int(time.time() * 1000), self._last_ms + 1)
        entry = {
            "at_ms": self._last_ms,
            "level": level,
            "logger": logger,
            "message": message[:LARGEST_MESSAGE],
            "fields": {name: str(value)[:LARGEST_FIELD] for name, value in fields.items()},
        }
        line = json.dumps(entry, separators=(",", ":")).encode()
        self._lines.append((self._last_ms, line))
        self._size += len(line)
        while self._size > MAX_BYTES or len(self._lines) > MAX_ENTRIES:
            self._size -= len(self._lines.popleft()[1])

    def since(self, at_ms: int) -> bytes:
        """Entries from that Unix time in milliseconds on, as a JSON list, oldest first."""
        return b"[" + b",".join(line for moment, line in self._lines if moment >= at_ms) + b"]"


class ActivityHandler(logging.Handler):
    """Takes over what the agent itself warns of: the message alone, without a trace."""

    def __init__(self, activity: Activity) -> None:
        """Write into `activity` from the level WARNING on."""
        super().__init__(logging.WARNING)
        self._activity = activity

    def emit(self, record: logging.LogRecord) -> None:
        """See `logging.Handler.emit`."""
        level: Level = "error" if record.levelno >= logging.ERROR else "warn"
        self._activity.note(level, "agent", record.getMessage())


def program_of(cmd: str, args: Sequence[str]) -> str:
    """Name of the program that a command line starts; of a shell's script the first word, if it is a name."""
    name = cmd.rpartition("/")[2]
    if name in _SHELLS and args:
        words = args[-1].split(maxsplit=1)
        if words and _PROGRAM.fullmatch(words[0]):
            return words[0]
    return name if _PROGRAM.fullmatch(name) else "?"
