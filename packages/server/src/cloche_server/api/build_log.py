"""What the author of a template sees of a build: lines with numbers, written down a few at a time."""

from datetime import datetime

import anyio

from cloche_server.clock import Clock
from cloche_server.ids import BuildId
from cloche_server.store.builds import Builds, LogLine

MAX_LINES = 50_000
MAX_LINE_CHARACTERS = 8192
FLUSH_S = 0.1
"""How late a line may be seen: clients ask five times a second."""
_FLUSH_LINES = 200


class BuildLog:
    """The log of one build that runs."""

    def __init__(self, builds: Builds, build: BuildId, clock: Clock) -> None:
        """Nothing is written yet."""
        self._builds = builds
        self._build = build
        self._clock = clock
        self._waiting: list[LogLine] = []
        self._next = 0
        self._last_at: datetime | None = None
        self._lock = anyio.Lock()

    async def write(self, message: str, step: str, level: str = "info") -> None:
        """Add a message, in lines; after `MAX_LINES` of them no more is kept."""
        for text in message.splitlines() or [""]:
            if self._next > MAX_LINES:
                return
            full = self._next == MAX_LINES
            shown = "the log is full: what follows is not kept" if full else _shown(text)
            self._waiting.append(LogLine(self._next, self._now(), level, step, shown))
            self._next += 1
        if len(self._waiting) >= _FLUSH_LINES:
            await self.flush()

    async def flush(self) -> None:
        """Write down what waits."""
        async with self._lock:
            lines, self._waiting = self._waiting, []
            if lines:
                await self._builds.add_log(self._build, lines)

    async def flush_regularly(self) -> None:
        """Write down what waits, again and again, until cancelled."""
        while True:
            await anyio.sleep(FLUSH_S)
            await self.flush()

    def _now(self) -> datetime:
        """The time; never one before that of the line above, also when the clock is set back."""
        now = self._clock.now()
        self._last_at = now if self._last_at is None else max(now, self._last_at)
        return self._last_at


def _shown(text: str) -> str:
    printable = text.replace("\0", "")
    return printable if len(printable) <= MAX_LINE_CHARACTERS else printable[:MAX_LINE_CHARACTERS] + " …"
