"""What sandboxes and volumes have to do with each other on this node."""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import ExitStack
from stat import S_ISDIR

import structlog

from cloche_server import mount_paths
from cloche_server.ids import is_volume_id
from cloche_server.isolation import syscalls
from cloche_server.isolation.base import SharedMount
from cloche_server.node import threads
from cloche_server.node.machine import Machine
from cloche_server.node.messages import CreateSandbox, RemoveVolume
from cloche_wire.errors import (
    Conflict,
    Internal,
    InvalidArgument,
    SnapshotUnusable,
    UnsupportedOption,
    VolumeNotFound,
)

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


def check_paths(request: CreateSandbox, image_paths: Sequence[str]) -> None:
    """Refuse volumes at other paths than an image has them at: its kernel knows these, and mounts no others.

    Raises:
        InvalidArgument: Some are missing, or too many.
    """
    if sorted(mount.path for mount in request.volume_mounts) != sorted(image_paths):
        raise InvalidArgument(
            f"the snapshot has its volumes at other paths: {', '.join(sorted(image_paths)) or 'it has none'}",
            hint="leave volumeMounts out for the same volumes, or name one for each of these paths",
        )


async def check_entries(
    machine: Machine, request: CreateSandbox, entries: Sequence[str], cause: Internal
) -> None:
    """Say so where an image could not go on since somebody has changed a volume meanwhile.

    Args:
        machine: Has the volumes.
        request: Of the sandbox.
        entries: What the image may need of them (`Driver.save`).
        cause: What the driver has said.

    Raises:
        SnapshotUnusable: Some of it is gone, or a folder by now or none any more; the message names it.
    """
    gone: list[str] = []
    for wanted in request.volume_mounts:
        inside = {entry: entry.removeprefix(f"{wanted.path}/") for entry in entries}
        mine = {entry: name for entry, name in inside.items() if name != entry}
        if mine:
            mount = await machine.volumes.mount(machine.volumes.find(wanted.volume_id))
            try:
                gone += await threads.in_thread(_gone, mount, mine)
            finally:
                os.close(mount)
    if gone:
        named = ", ".join(sorted(gone)[:_NAMED]) + (", ..." if len(gone) > _NAMED else "")
        raise SnapshotUnusable(
            f"what the sandbox had in use of a volume is gone, or of another kind: {named}",
            hint="put it back into the volume and try again; nothing is lost until then",
        ) from cause


def _gone(mount: int, entries: dict[str, str]) -> list[str]:
    """Those of the entries, by their full paths, that are not in a mount as they were: folder, or none."""
    gone: list[str] = []
    for entry, name in entries.items():
        try:
            # SAFETY: looked at by name, without a link, a wait or a way out of the volume, and never opened.
            found = syscalls.openat2(
                mount, os.fsencode(name.rstrip("/")), os.O_PATH | os.O_NOFOLLOW, syscalls.RESOLVE_PLAIN
            )
        except (FileNotFoundError, NotADirectoryError):
            gone.append(entry)
            continue
        except OSError:
            continue  # it says nothing of this one
        if S_ISDIR(os.fstat(found).st_mode) != name.endswith("/"):
            gone.append(entry)
        os.close(found)
    return gone


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
