"""Snapshots, always of one team: in every WHERE, so that a foreign id is as good as an unknown one."""

from collections.abc import Sequence
from datetime import datetime
from typing import Literal

import msgspec
from sqlalchemy import ColumnElement, Connection, and_, delete, insert, or_, select, tuple_, update

from cloche_server.ids import BuildId, SandboxId, SnapshotId, TeamId, TemplateId
from cloche_server.store.events import note_event
from cloche_server.store.sandboxes import Cursor, is_sandbox, subject_of
from cloche_server.store.schema import sandboxes, snapshots
from cloche_server.store.session import Database

State = Literal["creating", "ready", "removing"]
"""`creating` and `removing` are shown to nobody; whoever died in them left work to `api.reconcile`."""


class SnapshotRecord(msgspec.Struct, frozen=True):
    """One snapshot as the control plane knows it, with all that a sandbox made of it takes over."""

    id: SnapshotId
    team_id: TeamId
    name: str | None
    """With its tag."""
    sandbox_id: SandboxId
    """What it was taken of."""
    template_id: TemplateId
    build_id: BuildId
    alias: str
    cpu_count: int
    memory_mib: int
    disk_mib: int
    isolation: str
    has_memory: bool
    created_at: datetime
    is_temporary: bool = False
    """Of a fork: shown to nobody, and gone with the request that it was taken for."""
    size_bytes: int = 0
    state: State = "creating"
    volume_mounts: list[dict[str, str]] = []
    """What a sandbox made of it has too, unless its creator says otherwise: names and paths, as asked for."""


class SnapshotListing(msgspec.Struct, frozen=True):
    """Which snapshots a caller wants to see, newest first."""

    sandbox_id: str = ""
    name: str = ""
    after: Cursor | None = None
    limit: int | None = None


class Snapshots:
    """Queries and changes, each for one team but for those of the reconciliation."""

    def __init__(self, database: Database) -> None:
        """Use this database."""
        self._database = database

    async def reserve(self, record: SnapshotRecord) -> None:
        """Write the row `creating` before any node is asked."""

        def work(connection: Connection) -> None:
            connection.execute(insert(snapshots).values(msgspec.structs.asdict(record)))

        await self._database.write(work)

    async def mark_ready(self, record: SnapshotRecord, size_bytes: int, at: datetime) -> None:
        """Creating → ready. Its name leaves the snapshot that had it, which stays there by its id."""

        def work(connection: Connection) -> None:
            if record.name is not None:
                named = and_(snapshots.c.team_id == record.team_id, snapshots.c.name == record.name)
                connection.execute(update(snapshots).where(named, _READY).values(name=None))
            connection.execute(
                update(snapshots)
                .where(_is(record.team_id, record.id))
                .values(state="ready", size_bytes=size_bytes)
            )
            source = select(sandboxes).where(is_sandbox(record.team_id, record.sandbox_id))
            row = connection.execute(source).mappings().one_or_none()
            if row is not None and not record.is_temporary:
                note_event(connection, subject_of(row), "snapshotted", {"snapshot_id": record.id}, at)

        await self._database.write(work)

    async def mark_removing(self, team: TeamId, snapshot: SnapshotId) -> bool:
        """Ready → removing. False when it is not ready."""

        def work(connection: Connection) -> bool:
            change = update(snapshots).where(_is(team, snapshot), _READY).values(state="removing", name=None)
            return connection.execute(change).rowcount == 1

        return await self._database.write(work)

    async def forget(self, team: TeamId, snapshot: SnapshotId) -> None:
        """Drop the row of a snapshot that is gone. Idempotent."""

        def work(connection: Connection) -> None:
            connection.execute(delete(snapshots).where(_is(team, snapshot)))

        await self._database.write(work)

    async def find(self, team: TeamId, reference: str, tagged: str) -> SnapshotRecord | None:
        """The team's snapshot with that id, or else with that name and tag."""
        meant = or_(snapshots.c.id == reference, snapshots.c.name == tagged)
        found = await self._select(_shown(team), meant)
        return found[0] if found else None

    async def list(self, team: TeamId, listing: SnapshotListing) -> Sequence[SnapshotRecord]:
        """The team's snapshots that the listing asks for."""
        conditions: list[ColumnElement[bool]] = [_shown(team)]
        if listing.sandbox_id:
            conditions.append(snapshots.c.sandbox_id == listing.sandbox_id)
        if listing.name:
            conditions.append(snapshots.c.name == listing.name)
        if listing.after is not None:
            conditions.append(tuple_(snapshots.c.created_at, snapshots.c.id) < listing.after)
        return await self._select(*conditions, limit=listing.limit)

    async def unfinished(self) -> Sequence[SnapshotRecord]:
        """Those of all teams that are being taken, forked from or removed, or were when somebody died."""
        return await self._select(or_(snapshots.c.state != "ready", snapshots.c.is_temporary))

    async def _select(
        self, *conditions: ColumnElement[bool], limit: int | None = None
    ) -> Sequence[SnapshotRecord]:
        def work(connection: Connection) -> Sequence[SnapshotRecord]:
            newest = (snapshots.c.created_at.desc(), snapshots.c.id.desc())
            query = select(snapshots).where(*conditions).order_by(*newest).limit(limit)
            return [SnapshotRecord(**row) for row in connection.execute(query).mappings()]

        return await self._database.read(work)


_READY = snapshots.c.state == "ready"


def _shown(team: TeamId) -> ColumnElement[bool]:
    return and_(snapshots.c.team_id == team, _READY, snapshots.c.is_temporary.is_(False))


def _is(team: TeamId, snapshot: SnapshotId) -> ColumnElement[bool]:
    return and_(snapshots.c.team_id == team, snapshots.c.id == snapshot)
