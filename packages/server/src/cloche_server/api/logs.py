"""What has happened in a sandbox: processes, cells, warnings; while it lives and for about an hour after."""

import msgspec
from starlette.responses import Response

from cloche_server.api import shapes
from cloche_server.api.control import ControlPlane
from cloche_server.api.metrics import time_of
from cloche_server.api.owned import known_sandbox, not_found
from cloche_server.api.routing import Call, Route, reply, with_query
from cloche_server.node.messages import LogEntry, LogsQuery
from cloche_wire.errors import InvalidArgument, SandboxNotFound

MAX_ENTRIES = 1000
LONGEST_SEARCH = 256
LATEST_MS = 253_402_300_799_000
"""Last millisecond of the year 9999: later ones cannot be written as a time."""
_RANKS = {"debug": 0, "info": 1, "warn": 2, "error": 3}


class LogEndpoints:
    """Endpoints named `logs`."""

    def __init__(self, control: ControlPlane) -> None:
        """Work with these parts."""
        self._control = control

    def routes(self) -> list[Route]:
        """What is served."""
        return [
            Route("GET", "/sandboxes/{id}/logs", with_query(shapes.LogsQueryV1, self.logs_v1)),
            Route("GET", "/v2/sandboxes/{id}/logs", with_query(shapes.LogsQueryV2, self.logs_v2)),
        ]

    async def logs_v1(self, call: Call, query: shapes.LogsQueryV1) -> Response:
        """`GET /sandboxes/{id}/logs`: each entry once as a line of JSON and once as an object."""
        limit = _check(query.start, query.limit)
        found = (await self._entries(call, query.start or 0))[:limit]
        lines = [shapes.LogLine(time_of(entry.at_ms / 1000), _line(entry)) for entry in found]
        return reply(200, shapes.LogsV1(lines, [_shown(entry) for entry in found]))

    async def logs_v2(self, call: Call, query: shapes.LogsQueryV2) -> Response:
        """`GET /v2/sandboxes/{id}/logs`: forward from a moment, or back from it with the newest first."""
        limit = _check(query.cursor, query.limit)
        if len(query.search) > LONGEST_SEARCH:
            raise InvalidArgument(f"search is longer than {LONGEST_SEARCH} characters")
        is_back = query.direction == "backward"
        found = await self._entries(call, 0 if is_back else query.cursor or 0)
        if is_back:
            until_ms = LATEST_MS if query.cursor is None else query.cursor
            found = [entry for entry in reversed(found) if entry.at_ms <= until_ms]
        least = _RANKS[query.level or "debug"]
        found = [entry for entry in found if _RANKS[entry.level] >= least and _mentions(entry, query.search)]
        return reply(200, shapes.LogsV2([_shown(entry) for entry in found[:limit]]))

    async def _entries(self, call: Call, since_ms: int) -> list[LogEntry]:
        record = await known_sandbox(self._control, call)
        try:
            return [*await self._control.placement.logs(LogsQuery(record.id, since_ms))]
        except SandboxNotFound as error:
            if record.is_paused:
                return []  # what has happened in it is told by its agent, once it runs again
            raise not_found(record.id) from error


def _check(moment_ms: int | None, limit: int) -> int:
    if moment_ms is not None and not 0 <= moment_ms <= LATEST_MS:
        raise InvalidArgument("start and cursor are Unix times in milliseconds")
    if not 1 <= limit <= MAX_ENTRIES:
        raise InvalidArgument(f"limit is not between 1 and {MAX_ENTRIES}")
    return limit


def _mentions(entry: LogEntry, text: str) -> bool:
    return not text or any(text in part for part in (entry.message, *entry.fields.values()))


def _line(entry: LogEntry) -> str:
    # The fields first: an entry from inside cannot take the place of what says who spoke and how loud.
    own = {"logger": entry.logger, "level": entry.level, "message": entry.message}
    return msgspec.json.encode(entry.fields | own).decode()


def _shown(entry: LogEntry) -> shapes.LogEntry:
    fields = entry.fields | {"logger": entry.logger}
    return shapes.LogEntry(time_of(entry.at_ms / 1000), entry.message, entry.level, fields)
