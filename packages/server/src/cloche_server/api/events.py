"""Lifecycle events: what has happened to the team's sandboxes within the last seven days."""

import uuid

from starlette.responses import Response

from cloche_server.api import shapes
from cloche_server.api.control import ControlPlane
from cloche_server.api.owned import sandbox_id_of
from cloche_server.api.routing import Call, Route, reply, with_query
from cloche_server.store.events import Event, EventQuery
from cloche_wire.errors import InvalidArgument

MAX_PAGE = 100
MAX_OFFSET = 1 << 31
TYPE_PREFIX = "sandbox.lifecycle."
KINDS = frozenset({"created", "updated", "killed", "paused", "resumed", "snapshotted"})
"""Those that clients know of. Only what has happened is ever found."""
_EXECUTIONS = uuid.UUID("2d0d5b5e-8f0c-4c52-9d6b-5d4c8a1c7a10")
"""Name space of execution ids: each run of a sandbox has its own."""


class EventEndpoints:
    """Endpoints below `/events`."""

    def __init__(self, control: ControlPlane) -> None:
        """Work with these parts."""
        self._events = control.store.events

    def routes(self) -> list[Route]:
        """What is served."""
        return [
            Route("GET", "/events/sandboxes", with_query(shapes.EventsQuery, self.list_all)),
            Route("GET", "/events/sandboxes/{id}", with_query(shapes.EventsQuery, self.list_one)),
        ]

    async def list_all(self, call: Call, query: shapes.EventsQuery) -> Response:
        """`GET /events/sandboxes`: of all sandboxes of the team."""
        return await self._answer(call, query, None)

    async def list_one(self, call: Call, query: shapes.EventsQuery) -> Response:
        """`GET /events/sandboxes/{id}`: of one; none are known of a foreign one."""
        return await self._answer(call, query, sandbox_id_of(call))

    async def _answer(self, call: Call, query: shapes.EventsQuery, sandbox_id: str | None) -> Response:
        if not 1 <= query.limit <= MAX_PAGE:
            raise InvalidArgument(f"limit is not between 1 and {MAX_PAGE}")
        if not 0 <= query.offset <= MAX_OFFSET:
            raise InvalidArgument("offset is below 0 or too large")
        kinds = tuple(map(_kind, filter(None, query.types.split(","))))
        asked = EventQuery(sandbox_id, kinds, query.order_asc, query.offset, query.limit)
        return reply(200, [_shown(event) for event in await self._events.list(call.caller.team_id, asked)])


def _kind(name: str) -> str:
    kind = name.removeprefix(TYPE_PREFIX)
    if kind not in KINDS or kind == name:
        raise InvalidArgument(
            f"unknown event type: {name[:60]!r}", hint=f"{TYPE_PREFIX}{'|'.join(sorted(KINDS))}"
        )
    return kind


def _shown(event: Event) -> shapes.LifecycleEvent:
    return shapes.LifecycleEvent(
        event.id,
        TYPE_PREFIX + event.kind,
        event.details or None,
        event.build_id,
        str(uuid.uuid5(_EXECUTIONS, f"{event.sandbox_id}/{event.run}")),
        event.sandbox_id,
        event.team_id,
        event.template_id,
        event.happened_at,
    )
