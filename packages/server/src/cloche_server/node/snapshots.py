"""Copies of running sandboxes, to make others of."""

from __future__ import annotations

import re

import structlog

from cloche_server.node import kept_files, pause
from cloche_server.node.machine import Machine
from cloche_server.node.messages import RemoveSnapshot, SnapshotTaken, TakeSnapshot
from cloche_wire.errors import Conflict, InvalidArgument

PREFIX = "snapshot-"
_ID = re.compile(r"[a-z0-9]{1,40}\Z")

log = structlog.get_logger()


def name_of(snapshot_id: str) -> str:
    """The name of its image.

    Raises:
        InvalidArgument: No such id can be.
    """
    if not _ID.match(snapshot_id):
        raise InvalidArgument(f"not a snapshot id: {snapshot_id[:80]!r}")
    return f"{PREFIX}{snapshot_id}"


async def take(machine: Machine, request: TakeSnapshot) -> SnapshotTaken:
    """Keep a copy of a running sandbox, which stands still for it and then runs on.

    Leaves: on an error no snapshot, and the sandbox as it was.

    Raises:
        SandboxNotFound: It does not run.
        Conflict: Something else is being done with it, or there is a snapshot of that id.
        UnsupportedOption: Its isolation cannot.
        TooLarge: Its files are more than are kept.
        NotEnoughSpace: The disk is full.
        Internal: It cannot be saved; the message says why.
    """
    name = name_of(request.snapshot_id)
    async with machine.turns.of(name), machine.turns.of(request.sandbox_id):
        if name in machine.images:
            raise Conflict(f"snapshot exists: {request.snapshot_id}")
        live = machine.find(request.sandbox_id)
        pause.check_ability(machine, live.record.request, live.record.isolation, with_memory=request.memory)
        began_s = machine.clock.boot_s()
        try:
            saved = await pause.save(
                machine, live, name, with_memory=request.memory, thaws=True, for_now=request.for_now
            )
        except OSError as error:
            raise pause.told(error) from error
        took_ms = round(1000 * (machine.clock.boot_s() - began_s))
    log.info("sandbox.copied", sandbox_id=request.sandbox_id, snapshot_id=request.snapshot_id, ms=took_ms)
    stall_ms = round(1000 * saved.stood_still_s)
    return SnapshotTaken(request.snapshot_id, saved.manifest.size_bytes, stall_ms)


async def remove(machine: Machine, request: RemoveSnapshot) -> None:
    """Forget a snapshot, after it was made. Idempotent; sandboxes that were made of it live on.

    Raises:
        InvalidArgument: No such id can be.
    """
    name = name_of(request.snapshot_id)
    async with machine.turns.of(name):
        kept_files.forget(machine, name)
