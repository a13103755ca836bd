"""Snapshots: copies of running sandboxes to make others of, listed and removed like templates.

The row is written before the node is asked, and dropped after it has answered. What a killed api leaves half
done, `finish_snapshots` takes away, on both sides.
"""

import re
from contextlib import suppress

import anyio
import structlog
from starlette.responses import Response

from cloche_server.api import memory_shapes
from cloche_server.api.auth import Caller
from cloche_server.api.control import ControlPlane
from cloche_server.api.leftovers import finish_leftovers
from cloche_server.api.listing import NEXT_PAGE_HEADER, check_limit, decode_cursor, encode_cursor
from cloche_server.api.node_word import missed
from cloche_server.api.origins import find_snapshot
from cloche_server.api.owned import live_sandbox, sandbox_id_of
from cloche_server.api.routing import Call, Route, reply, with_body, with_query
from cloche_server.api.template_registry import split_reference
from cloche_server.api.templates import remove_template
from cloche_server.ids import new_snapshot_id
from cloche_server.node.messages import TakeSnapshot
from cloche_server.store.sandboxes import Cursor, SandboxRecord
from cloche_server.store.snapshots import SnapshotListing, SnapshotRecord
from cloche_wire.errors import (
    AlreadyExists,
    ClocheError,
    Conflict,
    InvalidArgument,
    SandboxNotFound,
    SnapshotNotFound,
    TemplateNotFound,
)

CLEAN_UP_TIMEOUT_S = 10.0
_NAME = re.compile(r"[a-z0-9_-]{1,128}\Z")
_TAG = re.compile(r"[a-z0-9_.-]{1,128}\Z")

log = structlog.get_logger()


class SnapshotEndpoints:
    """Endpoints that take, list and remove snapshots."""

    def __init__(self, control: ControlPlane) -> None:
        """Work with these parts."""
        self._control = control

    def routes(self) -> list[Route]:
        """What is served."""
        take = with_body(memory_shapes.SnapshotBody, self.take)
        return [
            Route("POST", "/sandboxes/{id}/snapshots", take, retry_safe=False, creates=True),
            Route("GET", "/snapshots", with_query(memory_shapes.SnapshotsQuery, self.list)),
            Route("DELETE", "/templates/{id}", self.remove),
        ]

    async def take(self, call: Call, body: memory_shapes.SnapshotBody) -> Response:
        """`POST /sandboxes/{id}/snapshots`: the sandbox stands still for a moment and runs on."""
        name = await self._checked_name(call.caller, body.name) if body.name else None
        record = await live_sandbox(self._control, call)
        async with self._control.pauses.of(record.id):
            record = await live_sandbox(self._control, call)
            if record.is_paused:
                raise Conflict(f"Sandbox {record.id} is paused and cannot be copied; resume it first")
            snapshot = new_snapshot(self._control, record, name=name, has_memory=body.memory)
            with self._control.creations.hold(snapshot.id):
                await take_snapshot(self._control, record, snapshot)
        return reply(201, _shown(call.caller, snapshot))

    async def list(self, call: Call, query: memory_shapes.SnapshotsQuery) -> Response:
        """`GET /snapshots`: newest first, also of sandboxes that have ended."""
        limit = check_limit(query.limit)
        sandbox_id = sandbox_id_of(call._replace(params={"id": query.sandbox_id})) if query.sandbox_id else ""
        after = decode_cursor(query.next_token) if query.next_token else None
        named = split_reference(call.caller, query.name) if query.name else ("", "")
        if named is None:
            return reply(200, [])
        # One more than asked for tells whether there is a next page.
        listing = SnapshotListing(sandbox_id, ":".join(filter(None, named)), after, limit + 1)
        found = await self._control.store.snapshots.list(call.caller.team_id, listing)
        headers: dict[str, str] = {}
        if len(found) > limit:
            last = found[limit - 1]
            headers[NEXT_PAGE_HEADER] = encode_cursor(Cursor(last.created_at, last.id))
        return reply(200, [_shown(call.caller, snapshot) for snapshot in found[:limit]], headers)

    async def remove(self, call: Call) -> Response:
        """`DELETE /templates/{id}` of a template or a snapshot; sandboxes made of a snapshot live on."""
        try:
            await remove_template(self._control, call.caller, call.params["id"])
        except TemplateNotFound:
            snapshot = await find_snapshot(self._control, call.caller, call.params["id"])
        else:
            return Response(status_code=204)
        with self._control.creations.hold(snapshot.id):
            if not await self._control.store.snapshots.mark_removing(snapshot.team_id, snapshot.id):
                raise SnapshotNotFound(f"snapshot '{snapshot.id}' not found")
            with anyio.CancelScope(shield=True):
                await take_away(self._control, snapshot)
        log.info("snapshot.removed", snapshot_id=snapshot.id, team_id=snapshot.team_id)
        return Response(status_code=204)

    async def _checked_name(self, caller: Caller, wished: str) -> str:
        """Return it with its tag and without a namespace; it may not be that of a template."""
        named = split_reference(caller, wished)
        if named is None or not _NAME.match(named[0]) or not _TAG.match(named[1]):
            raise InvalidArgument(
                f"bad name of a snapshot: {wished[:80]!r}", hint="[namespace/]name[:tag] of [a-z0-9_-]"
            )
        with suppress(TemplateNotFound):
            await self._control.templates.known(caller, named[0])
            raise AlreadyExists(f"there is a template of that name: {named[0]}")
        return ":".join(named)


def new_snapshot(
    control: ControlPlane,
    record: SandboxRecord,
    *,
    name: str | None = None,
    has_memory: bool = True,
    is_temporary: bool = False,
) -> SnapshotRecord:
    """Return a row for a snapshot of that sandbox."""
    return SnapshotRecord(
        new_snapshot_id(),
        record.team_id,
        name,
        record.id,
        record.template_id,
        record.build_id,
        record.alias,
        record.cpu_count,
        record.memory_mib,
        record.disk_mib,
        record.isolation,
        has_memory,
        control.clock.now(),
        is_temporary,
        volume_mounts=record.volume_mounts,
    )


async def take_snapshot(control: ControlPlane, record: SandboxRecord, snapshot: SnapshotRecord) -> None:
    """Have it taken; on any error nothing of it is left.

    Requires: held in `control.creations`.
    """
    await control.store.snapshots.reserve(snapshot)
    try:
        order = TakeSnapshot(record.id, snapshot.id, snapshot.has_memory, snapshot.is_temporary)
        taken = await control.placement.snapshot(order)
        await control.store.snapshots.mark_ready(snapshot, taken.bytes_on_disk, control.clock.now())
    except BaseException as error:
        # What cannot be undone now stays `creating`, and is undone by the next comparison.
        with anyio.move_on_after(CLEAN_UP_TIMEOUT_S, shield=True), suppress(ClocheError):
            await take_away(control, snapshot)
        if isinstance(error, SandboxNotFound):
            raise await missed(control, record) from error
        raise
    log.info("snapshot.taken", snapshot_id=snapshot.id, sandbox_id=record.id, stall_ms=taken.stall_ms)


async def take_away(control: ControlPlane, snapshot: SnapshotRecord) -> None:
    """Remove it from its node, then its row. Idempotent."""
    await control.placement.remove_snapshot(snapshot.id)
    await control.store.snapshots.forget(snapshot.team_id, snapshot.id)


async def finish_snapshots(control: ControlPlane) -> None:
    """Take away what a killed api had begun: half-taken snapshots, those of its forks, removals.

    Raises:
        Unavailable: The database does not answer.
    """

    async def finish(snapshot: SnapshotRecord) -> None:
        await take_away(control, snapshot)

    await finish_leftovers(control, control.store.snapshots.unfinished, finish)


def _shown(caller: Caller, snapshot: SnapshotRecord) -> memory_shapes.SnapshotInfo:
    if snapshot.name is None:
        return memory_shapes.SnapshotInfo(f"{snapshot.id}:default", [])
    full = f"{caller.team_name}/{snapshot.name}"
    return memory_shapes.SnapshotInfo(full, [full])
