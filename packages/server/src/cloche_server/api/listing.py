"""Listings of sandboxes: filters, order, pages."""

import base64
from datetime import UTC, datetime
from urllib.parse import parse_qsl, unquote

import msgspec
from starlette.datastructures import QueryParams
from starlette.responses import Response

from cloche_server.api import shapes
from cloche_server.api.control import ControlPlane
from cloche_server.api.origins import resolve_origin
from cloche_server.api.routing import Call, Route, reply, with_query
from cloche_server.api.shown import listed_sandbox
from cloche_server.store.sandboxes import PAUSED, RUNNING, Cursor, Listing, State
from cloche_wire.errors import InvalidArgument, NotFound

MAX_PAGE = 100
MAX_METADATA_PAIRS = 64
STATES: dict[str, tuple[State, ...]] = {"running": RUNNING, "paused": PAUSED}
NEXT_PAGE_HEADER = "x-next-token"
TOTAL_HEADER = "X-Total-Running"


class ListingEndpoints:
    """`GET /v2/sandboxes` and its older form."""

    def __init__(self, control: ControlPlane) -> None:
        """Work with these parts."""
        self._control = control

    def routes(self) -> list[Route]:
        """What is served."""
        return [
            Route("GET", "/v2/sandboxes", with_query(shapes.ListQuery, self.list_v2)),
            Route("GET", "/sandboxes", self.list_v1),
        ]

    async def list_v2(self, call: Call, query: shapes.ListQuery) -> Response:
        """A page of running and paused sandboxes; `x-next-token` leads to the next one."""
        limit = check_limit(query.limit)
        listing = Listing(
            states=_states(query.state),
            metadata=parse_metadata(query.metadata),
            order=query.order,
            started_after=_parse_time(query.started_after) if query.started_after else None,
            after=decode_cursor(query.next_token) if query.next_token else None,
            # One more than asked for tells whether there is a next page.
            limit=limit + 1,
        )
        running = await self._control.store.sandboxes.count_running(call.caller.team_id)
        nothing = reply(200, [], {TOTAL_HEADER: str(running)})
        if query.template is not None:
            try:
                origin = await resolve_origin(self._control, call.caller, query.template)
            except NotFound:
                return nothing
            template_id = origin.template_id if origin.snapshot_id is None else None
            listing = msgspec.structs.replace(
                listing, template_id=template_id, snapshot_id=origin.snapshot_id
            )
        records = await self._control.store.sandboxes.list(call.caller.team_id, listing)
        page = records[:limit]
        headers = {TOTAL_HEADER: str(running)}
        if len(records) > limit:
            headers[NEXT_PAGE_HEADER] = encode_cursor(Cursor(page[-1].started_at, page[-1].id))
        frozen = self._control.placement.frozen
        return reply(200, [listed_sandbox(record, frozen) for record in page], headers)

    async def list_v1(self, call: Call) -> Response:
        """All running sandboxes at once."""
        query: QueryParams = call.request.query_params
        listing = Listing(metadata=parse_metadata(query.get("metadata", "")))
        records = await self._control.store.sandboxes.list(call.caller.team_id, listing)
        frozen = self._control.placement.frozen
        return reply(200, [listed_sandbox(record, frozen) for record in records])


def check_limit(limit: int) -> int:
    """Return the size of a page.

    Raises:
        InvalidArgument: Not within 1 and 100.
    """
    if not 1 <= limit <= MAX_PAGE:
        raise InvalidArgument(f"limit is not between 1 and {MAX_PAGE}")
    return limit


def parse_metadata(text: str) -> dict[str, str]:
    """Return the pairs of a metadata filter: `k=v&k2=v2`, its keys and values URL-encoded twice.

    Raises:
        InvalidArgument: No such list.
    """
    if not text:
        return {}
    try:
        pairs = parse_qsl(
            text,
            keep_blank_values=True,
            strict_parsing=True,
            errors="strict",
            max_num_fields=MAX_METADATA_PAIRS,
        )
        return {unquote(key, errors="strict"): unquote(value, errors="strict") for key, value in pairs}
    except ValueError as error:
        raise InvalidArgument("metadata is not a list of encoded key=value pairs") from error


def encode_cursor(cursor: Cursor) -> str:
    """Return the opaque token of a place in a listing."""
    return base64.urlsafe_b64encode(f"{cursor.at.isoformat()} {cursor.id}".encode()).decode()


def decode_cursor(token: str) -> Cursor:
    """Return the place a token stands for.

    Raises:
        InvalidArgument: None of ours.
    """
    try:
        at, _, last_id = base64.urlsafe_b64decode(token).decode().partition(" ")
        moment = datetime.fromisoformat(at).astimezone(UTC)
    except (ValueError, OverflowError) as error:
        raise InvalidArgument("nextToken is not one of ours") from error
    return Cursor(moment, last_id)


def _parse_time(text: str) -> datetime:
    """RFC 3339; a plus sign that a client did not encode arrives as a space."""
    try:
        moment = datetime.fromisoformat(text.replace(" ", "+"))
    except ValueError as error:
        raise InvalidArgument("startedAfter is not an RFC 3339 time") from error
    if moment.tzinfo is None:
        raise InvalidArgument("startedAfter has no time zone")
    try:
        return moment.astimezone(UTC)
    except OverflowError as error:
        raise InvalidArgument("startedAfter is out of range") from error


def _states(text: str) -> tuple[State, ...]:
    asked = frozenset(filter(None, text.split(","))) or STATES.keys()
    if strangers := asked - STATES.keys():
        raise InvalidArgument(f"unknown state: {min(strangers)[:40]!r}", hint="running or paused")
    return tuple(state for name in asked for state in STATES[name])
