"""Volumes: folders of a team that outlive its sandboxes, and what of them a new sandbox gets.

The row is written before the node is asked, and dropped after it has answered. What a killed api leaves half
done, `finish_volumes` ends.
"""

import re
from collections.abc import Sequence
from contextlib import suppress

import anyio
import structlog
from starlette.responses import Response

from cloche_server import mount_paths
from cloche_server.api import shapes
from cloche_server.api.control import ControlPlane
from cloche_server.api.leftovers import finish_leftovers
from cloche_server.api.routing import Call, Route, reply, with_body
from cloche_server.ids import TeamId, new_volume_id, new_volume_token
from cloche_server.node.messages import CreateVolume, VolumeMount
from cloche_server.store.volumes import VolumeRecord
from cloche_wire.errors import ClocheError, Conflict, InvalidArgument, VolumeNotFound

CLEAN_UP_TIMEOUT_S = 10.0
_NAME = re.compile(r"[a-zA-Z0-9_-]{1,128}\Z")

log = structlog.get_logger()


class VolumeEndpoints:
    """Endpoints below `/volumes`."""

    def __init__(self, control: ControlPlane) -> None:
        """Work with these parts."""
        self._control = control

    def routes(self) -> list[Route]:
        """What is served."""
        return [
            Route("GET", "/volumes", self.list),
            Route("POST", "/volumes", with_body(shapes.NewVolume, self.create), retry_safe=False),
            Route("GET", "/volumes/{id}", self.detail),
            Route("DELETE", "/volumes/{id}", self.remove),
        ]

    async def list(self, call: Call) -> Response:
        """`GET /volumes`: oldest first, without tokens."""
        found = await self._control.store.volumes.list(call.caller.team_id)
        return reply(200, [shapes.Volume(record.id, record.name) for record in found])

    async def create(self, call: Call, body: shapes.NewVolume) -> Response:
        """`POST /volumes`: it is there when this answers."""
        if _NAME.match(body.name) is None:
            raise InvalidArgument(
                f"bad name of a volume: {body.name[:80]!r}", hint="1 to 128 of [a-zA-Z0-9_-]"
            )
        now = self._control.clock.now()
        record = VolumeRecord(new_volume_id(), call.caller.team_id, body.name, new_volume_token(), now)
        with self._control.creations.hold(record.id):
            await self._control.store.volumes.reserve(
                record, max_of_team=self._control.config.volumes.per_team
            )
            await self._make(record)
        log.info("volume.created", volume_id=record.id, team_id=record.team_id)
        return reply(201, shapes.VolumeAndToken(record.id, record.name, record.token))

    async def _make(self, record: VolumeRecord) -> None:
        try:
            await self._control.placement.create_volume(CreateVolume(record.id, record.team_id, record.token))
            await self._control.store.volumes.move(record.team_id, record.id, ["creating"], "ready")
        except BaseException:
            # What cannot be undone now stays `creating`, and is undone by the next comparison.
            with anyio.move_on_after(CLEAN_UP_TIMEOUT_S, shield=True), suppress(ClocheError):
                await _take_away(self._control, record)
            raise

    async def detail(self, call: Call) -> Response:
        """`GET /volumes/{id}`."""
        record = await self._find(call)
        return reply(200, shapes.VolumeAndToken(record.id, record.name, record.token))

    async def remove(self, call: Call) -> Response:
        """`DELETE /volumes/{id}`: with all it holds, unless a sandbox has it."""
        record = await self._find(call)
        with self._control.creations.hold(record.id):
            if not await self._control.store.volumes.move(record.team_id, record.id, ["ready"], "removing"):
                raise _not_found(record.id)
            with anyio.CancelScope(shield=True):
                await _finish_removal(self._control, record)
        return Response(status_code=204)

    async def _find(self, call: Call) -> VolumeRecord:
        volume_id = call.params["id"]
        record = await self._control.store.volumes.get(call.caller.team_id, volume_id)
        if record is None:
            raise _not_found(volume_id)
        return record


async def resolve_mounts(
    control: ControlPlane, team: TeamId, mounts: Sequence[shapes.VolumeMount]
) -> tuple[VolumeMount, ...]:
    """Return the wished mounts with the volumes' ids in place of their names.

    Raises:
        InvalidArgument: A path is none for a volume.
        VolumeNotFound: The team has no volume of that name.
    """
    if not mounts:
        return ()
    mount_paths.check([mount.path for mount in mounts])
    found = await control.store.volumes.named(team, [mount.name for mount in mounts])
    missing = [mount.name for mount in mounts if mount.name not in found]
    if missing:
        raise _not_found(missing[0])
    return tuple(VolumeMount(found[mount.name].id, mount.path) for mount in mounts)


async def finish_volumes(control: ControlPlane) -> None:
    """End what a killed api had begun with volumes: half-made ones go, removals go on.

    Raises:
        Unavailable: The database does not answer.
    """

    async def finish(record: VolumeRecord) -> None:
        await (_finish_removal if record.state == "removing" else _take_away)(control, record)

    await finish_leftovers(control, control.store.volumes.unfinished, finish)


async def _finish_removal(control: ControlPlane, record: VolumeRecord) -> None:
    try:
        await _take_away(control, record)
    except Conflict:
        await control.store.volumes.move(record.team_id, record.id, ["removing"], "ready")
        raise
    log.info("volume.removed", volume_id=record.id, team_id=record.team_id)


async def _take_away(control: ControlPlane, record: VolumeRecord) -> None:
    await control.placement.remove_volume(record.id)
    await control.store.volumes.forget(record.team_id, record.id)


def _not_found(name: str) -> VolumeNotFound:
    return VolumeNotFound(f"Volume \"{name[:80]}\" doesn't exist or you don't have access to it")
