"""What sandboxes and volumes have to do with each other on this node."""

from __future__ import annotations

import os
from contextlib import ExitStack

import structlog

from cloche_server import mount_paths
from cloche_server.ids import is_volume_id
from cloche_server.isolation.base import SharedMount
from cloche_server.node.machine import Machine
from cloche_server.node.messages import CreateSandbox, RemoveVolume
from cloche_wire.errors import Conflict, InvalidArgument, UnsupportedOption, VolumeNotFound

_NAMED = 5

log = structlog.get_logger()


def check_mounts(machine: Machine, request: CreateSandbox) -> None:
    """Refuse volumes that the new sandbox cannot have.

    Raises:
        UnsupportedOption: Its driver cannot show volumes.
        InvalidArgument: A path is none for a volume.
        VolumeNotFound: No such volume of that team.
    """
    if not request.volume_mounts:
        return
    capabilities = machine.drivers.of(request.isolation).capabilities()
    if not capabilities.volumes:
        message = f"volumeMounts is not supported: isolation '{capabilities.name}' cannot mount volumes"
        raise UnsupportedOption(message, hint="use isolation 'container'")
    mount_paths.check([wanted.path for wanted in request.volume_mounts])
    for wanted in request.volume_mounts:
        if machine.volumes.find(wanted.volume_id).team_id != request.team_id:
            raise VolumeNotFound(f"no such volume: {wanted.volume_id}")


async def open_mounts(machine: Machine, request: CreateSandbox, stack: ExitStack) -> tuple[SharedMount, ...]:
    """Return the mounts that a new sandbox asks for; they are closed with the stack.

    Requires: `check_mounts` has passed, and the sandbox is in `machine.live` since then, so that none of its
    volumes can have been removed.
    """
    shared: list[SharedMount] = []
    for wanted in request.volume_mounts:
        mount = await machine.volumes.mount(machine.volumes.find(wanted.volume_id))
        stack.callback(os.close, mount)
        shared.append(SharedMount(mount, wanted.path))
    return tuple(shared)


def remove(machine: Machine, request: RemoveVolume) -> None:
    """Remove a volume with all it holds. Idempotent; its space is given back off the path of the request.

    Raises:
        Conflict: A sandbox has it.
        InvalidArgument: Not a volume id.
        Unavailable: It is still being made.
    """
    if not is_volume_id(request.volume_id):
        raise InvalidArgument(f"not a volume id: {request.volume_id[:80]!r}")
    records = [*(live.record for live in machine.live.values()), *machine.paused.values()]
    users = sorted(
        record.request.sandbox_id
        for record in records
        if any(mount.volume_id == request.volume_id for mount in record.request.volume_mounts)
    )
    if users:
        named = ", ".join(users[:_NAMED]) + (", ..." if len(users) > _NAMED else "")
        raise Conflict(f"volume is mounted in {len(users)} sandboxes: {named}", hint="kill them first")
    machine.trash.put(machine.volumes.forget(request.volume_id))
    log.info("volume.removed", volume_id=request.volume_id)
