"""Steps of builds that need not run again, of one team: another team's are as good as unknown."""

from collections.abc import Collection
from datetime import datetime

import msgspec
from sqlalchemy import Connection, and_, delete, insert, or_, select, update

from cloche_server.ids import TeamId, TemplateId
from cloche_server.store.schema import cached_steps, templates
from cloche_server.store.session import Database


class CachedStep(msgspec.Struct, frozen=True):
    """What a step has left."""

    layers: list[str]
    """All that its root is made of, uppermost first."""
    context: dict[str, object]
    """User, working directory and variables after it."""


class CachedSteps:
    """Queries and changes."""

    def __init__(self, database: Database) -> None:
        """Use this database."""
        self._database = database

    async def find(self, team: TeamId, key: str, template: TemplateId, at: datetime) -> CachedStep | None:
        """Return what the step of that key has left, and note when it was asked for, and by whose build."""
        one = and_(cached_steps.c.team_id == team, cached_steps.c.key == key)

        used = {"used_at": at, "template_id": template}

        def work(connection: Connection) -> CachedStep | None:
            if connection.execute(update(cached_steps).where(one).values(used)).rowcount == 0:
                return None
            query = select(cached_steps.c.layers, cached_steps.c.context).where(one)
            return CachedStep(**connection.execute(query).mappings().one())

        return await self._database.write(work)

    async def keep(
        self, team: TeamId, key: str, step: CachedStep, template: TemplateId, at: datetime
    ) -> None:
        """Keep what a step has left, in the place of what it had left before."""
        one = and_(cached_steps.c.team_id == team, cached_steps.c.key == key)
        used = {"used_at": at, "template_id": template}
        row = {"team_id": team, "key": key, **used, **msgspec.structs.asdict(step)}

        def work(connection: Connection) -> None:
            connection.execute(delete(cached_steps).where(one))
            connection.execute(insert(cached_steps).values(row))

        await self._database.write(work)

    async def layers_kept(self, since: datetime) -> set[str]:
        """Return the layers of all teams' steps that were asked for since then, or by a pinned template."""
        pinned = select(templates.c.id).where(templates.c.is_pinned)
        is_kept = or_(cached_steps.c.used_at >= since, cached_steps.c.template_id.in_(pinned))

        def work(connection: Connection) -> set[str]:
            query = select(cached_steps.c.layers).where(is_kept)
            return {layer for layers in connection.execute(query).scalars() for layer in layers}

        return await self._database.read(work)

    async def forget(self, gone: Collection[str], since: datetime) -> int:
        """Drop the steps that need one of these layers and were not used since; say how many there were."""

        def work(connection: Connection) -> int:
            columns = (cached_steps.c.team_id, cached_steps.c.key, cached_steps.c.layers)
            stale = [
                (team, key)
                for team, key, layers in connection.execute(
                    select(*columns).where(cached_steps.c.used_at < since)
                )
                if not set(layers).isdisjoint(gone)
            ]
            for team, key in stale:
                one = and_(cached_steps.c.team_id == team, cached_steps.c.key == key)
                connection.execute(delete(cached_steps).where(one))
            return len(stale)

        return await self._database.write(work)
