"""What has happened in sandboxes: fetched from their agents when somebody asks, and a last time at their end.

All of it is hostile input. Entries are typed and bounded here, and control characters are escaped, so that
a log shown on a terminal cannot play with it.
"""

from __future__ import annotations

import re
from collections import OrderedDict
from dataclasses import dataclass, field
from typing import Any, cast

import msgspec
import structlog

from cloche_server.node import agent_link, freezing
from cloche_server.node.journal import Record
from cloche_server.node.machine import Live, Machine
from cloche_server.node.messages import LogEntry, LogsQuery
from cloche_wire.errors import ClocheError, SandboxNotFound

LIVE_TIMEOUT_S = 2.0
LAST_TIMEOUT_S = 0.1
"""An end waits no longer than this for the last words of an agent, which answers within a few ms."""
MAX_ENTRIES = 2000
MAX_FIELDS = 16
LARGEST_MESSAGE = 1000
LARGEST_NAME = 64
LARGEST_FIELD = 200
KEPT_BYTES = 16 << 20
"""Room for the logs of sandboxes that have ended, the latest of them first."""
KEPT_S = 3600.0

# C0, DEL, C1, line separators, and what turns the direction of writing.
_CONTROL = re.compile("[\\x00-\\x1f\\x7f-\\x9f\u2028\u2029\u200e\u200f\u202a-\u202e\u2066-\u2069]")
_LATEST_MS = 253_402_300_799_000
_LEVELS = frozenset({"debug", "info", "warn", "error"})

log = structlog.get_logger()


@dataclass
class _Kept:
    entries: list[LogEntry]
    size_bytes: int
    ended_boot_s: float


@dataclass
class LogKeeper:
    """Logs of one node's sandboxes, alive and lately ended."""

    machine: Machine
    _kept: OrderedDict[str, _Kept] = field(default_factory=OrderedDict[str, _Kept])
    _kept_bytes: int = 0

    async def query(self, query: LogsQuery) -> list[LogEntry]:
        """Entries from a moment on, oldest first.

        Raises:
            SandboxNotFound: It does not run, and nothing is kept of it.
            Internal: Its agent does not answer.
        """
        live = self.machine.live.get(query.sandbox_id)
        if live is not None and live.record.state == "running":
            await freezing.need(self.machine, live)
            return await self._fetch(live.record, query.since_ms, LIVE_TIMEOUT_S)
        self._forget_old()
        if (kept := self._kept.get(query.sandbox_id)) is None:
            raise SandboxNotFound(f"no such sandbox: {query.sandbox_id}")
        return [entry for entry in kept.entries if entry.at_ms >= query.since_ms]

    async def keep_last(self, live: Live) -> None:
        """Take over what a sandbox that is about to go has to tell, and why it goes. Never fails."""
        record = live.record
        reason = record.end_reason or "failed"
        entries: list[LogEntry] = []
        if reason in ("killed", "timeout") and not self.machine.draining:
            try:
                entries = await self._fetch(record, 0, LAST_TIMEOUT_S)
            except ClocheError as error:
                sandbox_id = record.request.sandbox_id
                log.debug("sandbox.last_words_missed", sandbox_id=sandbox_id, error=str(error))
        at_ms = int(self.machine.clock.now().timestamp() * 1000)
        at_ms = max([at_ms, *(entry.at_ms + 1 for entry in entries[-1:])])
        level = "info" if reason in ("killed", "timeout") else "error"
        end = LogEntry(at_ms, level, "node", "sandbox ended", {"reason": reason})
        self._keep(record.request.sandbox_id, [*entries, end])

    async def _fetch(self, record: Record, since_ms: int, timeout_s: float) -> list[LogEntry]:
        address = self.machine.agent_address(record)
        raw = await agent_link.fetch_logs(address, record.request.access_token, since_ms, timeout_s=timeout_s)
        return [entry for entry in checked(raw) if entry.at_ms >= since_ms]

    def _keep(self, sandbox_id: str, entries: list[LogEntry]) -> None:
        size = sum(_size(entry) for entry in entries)
        self._kept[sandbox_id] = _Kept(entries, size, self.machine.clock.boot_s())
        self._kept_bytes += size
        self._forget_old()

    def _forget_old(self) -> None:
        now = self.machine.clock.boot_s()
        while self._kept:
            oldest = next(iter(self._kept.values()))
            if self._kept_bytes <= KEPT_BYTES and now - oldest.ended_boot_s <= KEPT_S:
                return
            self._kept.popitem(last=False)
            self._kept_bytes -= oldest.size_bytes


def checked(raw: bytes) -> list[LogEntry]:
    """Return what of an agent's answer is a log, in order of time; the rest is dropped."""
    try:
        found = msgspec.json.decode(raw)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return []
    items = cast("list[Any]", found) if isinstance(found, list) else []
    entries = [entry for item in items[-MAX_ENTRIES:] if (entry := _entry(item)) is not None]
    return sorted(entries, key=lambda entry: entry.at_ms)


def _entry(item: Any) -> LogEntry | None:  # noqa: ANN401 - whatever JSON can say
    try:
        entry = msgspec.convert(item, LogEntry)
    except (msgspec.ValidationError, RecursionError):
        return None
    if not 0 <= entry.at_ms <= _LATEST_MS:
        return None
    fields = {
        _plain(name, LARGEST_NAME): _plain(value, LARGEST_FIELD)
        for name, value in [*entry.fields.items()][:MAX_FIELDS]
    }
    logger, message = _plain(entry.logger, LARGEST_NAME), _plain(entry.message, LARGEST_MESSAGE)
    return LogEntry(entry.at_ms, entry.level, logger, message, fields)


def _plain(text: str, largest: int) -> str:
    return _CONTROL.sub(lambda found: f"\\u{ord(found[0]):04x}", text[:largest])


def _size(entry: LogEntry) -> int:
    # 400: what Python needs beside the texts.
    texts = sum(len(name) + len(value) for name, value in entry.fields.items())
    return 400 + 2 * (texts + len(entry.message) + len(entry.logger))
