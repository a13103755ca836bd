"""What a new sandbox is made of: a template, or a snapshot in the place of one."""

from typing import NamedTuple

import msgspec

from cloche_server import isolation_choice
from cloche_server.api import shapes
from cloche_server.api.auth import Caller
from cloche_server.api.control import ControlPlane
from cloche_server.api.template_registry import split_reference
from cloche_server.config import Config
from cloche_server.ids import BuildId, SnapshotId, TemplateId, is_snapshot_id
from cloche_server.store.builds import DEFAULT_TAG
from cloche_server.store.snapshots import SnapshotRecord
from cloche_wire.errors import InvalidArgument, SnapshotNotFound, TemplateNotFound


class Origin(NamedTuple):
    """What of it a sandbox takes over."""

    template_id: TemplateId
    build_id: BuildId
    alias: str
    cpu_count: int
    memory_mib: int
    disk_mib: int
    isolation: str
    """The one it is for; empty: any."""
    snapshot_id: SnapshotId | None = None
    parent_id: str | None = None
    """What the snapshot was taken of."""
    volume_mounts: tuple[shapes.VolumeMount, ...] = ()
    """Those of the sandbox that the snapshot was taken of."""
    has_memory: bool = False
    """Whether the snapshot holds processes, which only the isolation that ran them can have go on."""


async def resolve_origin(control: ControlPlane, caller: Caller, reference: str) -> Origin:
    """Return what an id or a name means, maybe with `namespace/` or `:tag`.

    Raises:
        SnapshotNotFound: It is the id of a snapshot, and the team has none of it.
        TemplateNotFound: The team may use no template and has no snapshot of that name.
    """
    named = split_reference(caller, reference)
    if named is not None and is_snapshot_id(named[0]):
        return _of_snapshot(await find_snapshot(control, caller, reference))
    try:
        template = await control.templates.resolve(caller, reference)
    except TemplateNotFound:
        try:
            return _of_snapshot(await find_snapshot(control, caller, reference))
        except SnapshotNotFound:
            pass  # then what was said of templates is the better answer
        raise
    asked = named[0] if named is not None else ""
    return Origin(
        template.id,
        template.build_id,
        asked if asked in template.aliases else template.name,
        template.cpu_count,
        template.memory_mib,
        template.disk_mib,
        template.isolation,
    )


def settle_isolation(config: Config, origin: Origin, asked: str) -> str:
    """Return how a sandbox made of that is isolated; `asked` is empty where its creator does not mind.

    Raises:
        InvalidArgument: There is no such isolation, or a snapshot holds memory of another.
        PermissionDenied: It is weaker than the operator permits.
    """
    if origin.has_memory and asked not in ("", origin.isolation):
        message = f"a snapshot keeps the isolation it was taken with: {origin.isolation}"
        raise InvalidArgument(message, hint="leave isolation out")
    return isolation_choice.settle(asked, origin.isolation, config.isolation, config.allow_isolation)


async def find_snapshot(control: ControlPlane, caller: Caller, reference: str) -> SnapshotRecord:
    """Return the team's snapshot of that id or name.

    Raises:
        SnapshotNotFound: There is none.
    """
    if (named := split_reference(caller, reference)) is not None:
        name, tag = named
        snapshot_id = name if tag == DEFAULT_TAG else ""
        found = await control.store.snapshots.find(caller.team_id, snapshot_id, f"{name}:{tag}")
        if found is not None:
            return found
    raise SnapshotNotFound(f"snapshot '{reference[:128]}' not found")


def _of_snapshot(snapshot: SnapshotRecord) -> Origin:
    return Origin(
        snapshot.template_id,
        snapshot.build_id,
        snapshot.alias if snapshot.name is None else snapshot.name.partition(":")[0],
        snapshot.cpu_count,
        snapshot.memory_mib,
        snapshot.disk_mib,
        snapshot.isolation,
        snapshot.id,
        snapshot.sandbox_id,
        msgspec.convert(snapshot.volume_mounts, tuple[shapes.VolumeMount, ...]),
        snapshot.has_memory,
    )
