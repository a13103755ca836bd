"""Volumes, always of one team: in every WHERE, so that a foreign id is as good as an unknown one."""

from collections.abc import Iterable, Sequence
from datetime import datetime
from typing import Literal

import msgspec
from sqlalchemy import ColumnElement, Connection, and_, delete, func, insert, select, update

from cloche_server.ids import TeamId, VolumeId
from cloche_server.store.schema import volumes
from cloche_server.store.session import Database
from cloche_wire.errors import AlreadyExists, ResourceExhausted

State = Literal["creating", "ready", "removing"]
"""`creating` and `removing` are shown to nobody; whoever died in them left work to `api.reconcile`."""


class VolumeRecord(msgspec.Struct, frozen=True):
    """One volume as the control plane knows it."""

    id: VolumeId
    team_id: TeamId
    name: str
    token: str
    """Opens its content."""
    created_at: datetime
    state: State = "creating"


class Volumes:
    """Queries and changes, each for one team but for those of the reconciliation."""

    def __init__(self, database: Database) -> None:
        """Use this database."""
        self._database = database

    async def reserve(self, record: VolumeRecord, *, max_of_team: int) -> None:
        """Write the row `creating` before any node is asked.

        Raises:
            AlreadyExists: The team has a volume of that name.
            ResourceExhausted: The team has `max_of_team` volumes already.
        """

        def work(connection: Connection) -> None:
            of_team = volumes.c.team_id == record.team_id
            named = select(volumes.c.id).where(of_team, volumes.c.name == record.name)
            if connection.execute(named).first() is not None:
                raise AlreadyExists(
                    f"Volume with name '{record.name}' already exists", hint="choose another name"
                )
            count = connection.execute(select(func.count()).select_from(volumes).where(of_team)).scalar_one()
            if count >= max_of_team:
                raise ResourceExhausted(
                    f"limit of volumes reached: current {count}, maximum {max_of_team}",
                    hint="delete one, or raise volumes.per_team",
                )
            connection.execute(insert(volumes).values(msgspec.structs.asdict(record)))

        await self._database.write(work)

    async def move(self, team: TeamId, volume: VolumeId, before: Sequence[State], after: State) -> bool:
        """Change the state. False when it is in none of the states `before`."""

        def work(connection: Connection) -> bool:
            result = connection.execute(
                update(volumes).where(_is(team, volume), volumes.c.state.in_(before)).values(state=after)
            )
            return result.rowcount == 1

        return await self._database.write(work)

    async def forget(self, team: TeamId, volume: VolumeId) -> None:
        """Drop the row of a volume that is gone. Idempotent."""

        def work(connection: Connection) -> None:
            connection.execute(delete(volumes).where(_is(team, volume)))

        await self._database.write(work)

    async def get(self, team: TeamId, volume: str) -> VolumeRecord | None:
        """The team's volume of that id."""
        found = await self._select(_is(team, volume), volumes.c.state == "ready")
        return found[0] if found else None

    async def list(self, team: TeamId) -> Sequence[VolumeRecord]:
        """The team's volumes, oldest first."""
        return await self._select(volumes.c.team_id == team, volumes.c.state == "ready")

    async def named(self, team: TeamId, names: Iterable[str]) -> dict[str, VolumeRecord]:
        """Those of the names that are volumes of the team."""
        found = await self._select(
            volumes.c.team_id == team, volumes.c.state == "ready", volumes.c.name.in_(list(names))
        )
        return {record.name: record for record in found}

    async def unfinished(self) -> Sequence[VolumeRecord]:
        """Volumes of all teams that are being made or removed, or were when somebody died."""
        return await self._select(volumes.c.state != "ready")

    async def _select(self, *conditions: ColumnElement[bool]) -> Sequence[VolumeRecord]:
        def work(connection: Connection) -> Sequence[VolumeRecord]:
            query = select(volumes).where(*conditions).order_by(volumes.c.created_at, volumes.c.id)
            return [VolumeRecord(**row) for row in connection.execute(query).mappings()]

        return await self._database.read(work)


def _is(team: TeamId, volume: str) -> ColumnElement[bool]:
    return and_(volumes.c.team_id == team, volumes.c.id == volume)
