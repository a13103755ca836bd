"""Templates a team may use: its own, and those of everyone."""

from collections.abc import Sequence
from datetime import datetime

import msgspec
from sqlalchemy import Connection, and_, bindparam, delete, exists, func, insert, or_, select, update

from cloche_server.ids import BuildId, TeamId, TemplateId
from cloche_server.store.schema import EVERYONE, sandboxes, snapshots, teams, template_names, templates
from cloche_server.store.session import Database


class Template(msgspec.Struct, frozen=True):
    """One template with the build that new sandboxes get."""

    id: TemplateId
    owner: str
    """A team's id, or `EVERYONE`."""
    build_id: BuildId
    name: str
    aliases: list[str]
    """Every name it goes by, its first name included."""
    cpu_count: int
    memory_mib: int
    disk_mib: int
    created_at: datetime
    isolation: str = ""
    """What the sandboxes of that build get at least; empty: the server's."""
    spawn_count: int = 0
    last_spawned_at: datetime | None = None
    is_public: bool = False
    """Whether every team may use it."""
    is_pinned: bool = False
    """Whether what it is made of, and built from, stays however long nobody uses it."""

    @property
    def is_default(self) -> bool:
        """Whether it came with the server, so that its name needs no namespace in any team."""
        return self.owner == EVERYONE


# Made once: to put a statement together takes longer than to have it carried out.
_near = or_(templates.c.owner == bindparam("team"), templates.c.owner == EVERYONE)
_usable = or_(_near, templates.c.is_public)
_is_named = exists().where(
    template_names.c.template_id == templates.c.id,
    template_names.c.owner == templates.c.owner,
    template_names.c.name == bindparam("reference"),
)
_FIND = (
    select(templates)
    .where(or_(and_(_usable, templates.c.id == bindparam("reference")), and_(_near, _is_named)))
    .order_by(templates.c.owner.desc())
    .limit(1)
)
_FIND_IN_NAMESPACE = (
    select(templates)
    .join(teams, teams.c.id == templates.c.owner)
    .where(templates.c.is_public, func.lower(teams.c.name) == bindparam("namespace"), _is_named)
)
_COUNT_SPAWN = (
    update(templates)
    .where(templates.c.id == bindparam("template"), _usable)
    .values(spawn_count=templates.c.spawn_count + 1, last_spawned_at=bindparam("now"))
)


class Templates:
    """Queries, each for one team; a team's own names come before those of everyone."""

    def __init__(self, database: Database) -> None:
        """Use this database."""
        self._database = database

    async def find(self, team: TeamId, reference: str) -> Template | None:
        """Return the template with that id or name."""

        def work(connection: Connection) -> Template | None:
            row = connection.execute(_FIND, {"team": team, "reference": reference}).mappings().one_or_none()
            return None if row is None else Template(**row)

        return await self._database.read(work)

    async def find_in_namespace(self, namespace: str, name: str) -> Template | None:
        """Return the template of that name which another team, of the name `namespace`, has made public."""

        def work(connection: Connection) -> Template | None:
            asked = {"namespace": namespace, "reference": name}
            row = connection.execute(_FIND_IN_NAMESPACE, asked).mappings().one_or_none()
            return None if row is None else Template(**row)

        return await self._database.read(work)

    async def set_public(self, team: TeamId, template: TemplateId, *, is_public: bool) -> None:
        """Say whether other teams may use a template of the team's own."""
        own = and_(templates.c.id == template, templates.c.owner == team)
        change = update(templates).where(own).values(is_public=is_public)
        await self._database.write(lambda connection: connection.execute(change))

    async def set_pinned(self, team: TeamId, template: TemplateId, *, is_pinned: bool) -> None:
        """Say whether a template of the team's own keeps what nobody uses."""
        own = and_(templates.c.id == template, templates.c.owner == team)
        change = update(templates).where(own).values(is_pinned=is_pinned)
        await self._database.write(lambda connection: connection.execute(change))

    async def is_in_use(self, template: TemplateId) -> bool:
        """Whether a sandbox that is there or a snapshot, of whatever team, stands on a build of it."""
        living = exists().where(sandboxes.c.template_id == template, sandboxes.c.state != "ended")
        kept = exists().where(snapshots.c.template_id == template)

        def work(connection: Connection) -> bool:
            return bool(connection.execute(select(or_(living, kept))).scalar_one())

        return await self._database.read(work)

    async def list(self, team: TeamId, *, after: str = "", limit: int | None = None) -> Sequence[Template]:
        """Templates the team may use, by id, from the first one after the id `after`."""

        def work(connection: Connection) -> Sequence[Template]:
            rows = connection.execute(
                select(templates)
                .where(templates.c.owner.in_([team, EVERYONE]), templates.c.id > after)
                .order_by(templates.c.id)
                .limit(limit)
            ).mappings()
            return [Template(**row) for row in rows]

        return await self._database.read(work)

    async def replace_shared(self, found: Sequence[Template]) -> None:
        """Make `found` all templates of everyone there are; counters of those that stay are kept."""

        def work(connection: Connection) -> None:
            ids = [template.id for template in found]
            shared = templates.c.owner == EVERYONE
            connection.execute(delete(templates).where(shared, templates.c.id.not_in(ids)))
            connection.execute(delete(template_names).where(template_names.c.owner == EVERYONE))
            for template in found:
                _upsert(connection, template)
            for name, template_id in _names(found).items():
                connection.execute(
                    insert(template_names).values(owner=EVERYONE, name=name, template_id=template_id)
                )

        await self._database.write(work)


def count_spawn(connection: Connection, team: TeamId, template_id: str, now: datetime) -> None:
    """Note, inside a transaction, that a sandbox of this template has started."""
    connection.execute(_COUNT_SPAWN, {"template": template_id, "team": team, "now": now})


def _upsert(connection: Connection, template: Template) -> None:
    row = msgspec.structs.asdict(template)
    kept = ("id", "owner", "spawn_count", "last_spawned_at")
    changed = {key: value for key, value in row.items() if key not in kept}
    found = connection.execute(
        update(templates)
        .where(templates.c.id == template.id, templates.c.owner == template.owner)
        .values(changed)
    )
    if found.rowcount == 0:
        connection.execute(insert(templates).values(row))


def _names(found: Sequence[Template]) -> dict[str, TemplateId]:
    """Which template each name leads to: of two with one name the newer has it."""
    names: dict[str, TemplateId] = {}
    for template in sorted(found, key=lambda template: template.created_at):
        names.update(dict.fromkeys(template.aliases, template.id))
    return names
