"""Builds of templates, always of one team but for those of the reconciliation: states, results, logs."""

from collections.abc import Iterable, Sequence
from datetime import datetime
from typing import Literal

import msgspec
from sqlalchemy import ColumnElement, Connection, and_, delete, exists, func, insert, or_, select, update

from cloche_server.ids import BuildId, TeamId, TemplateId
from cloche_server.store.schema import (
    build_logs,
    builds,
    sandboxes,
    snapshots,
    template_names,
    template_tags,
    templates,
)
from cloche_server.store.session import Database

State = Literal["waiting", "building", "ready", "error"]
DEFAULT_TAG = "default"
"""What a name without a tag means."""


class BuildRecord(msgspec.Struct, frozen=True):
    """One build as the control plane knows it."""

    id: BuildId
    template_id: TemplateId
    team_id: TeamId
    tags: list[str]
    """Lead to it once it is ready."""
    cpu_count: int
    memory_mib: int
    created_at: datetime
    updated_at: datetime
    finished_at: datetime | None = None
    state: State = "waiting"
    message: str = ""
    """Why it failed."""
    step: str | None = None
    """Where it failed: `base`, the number of a step, or `finalize`."""
    isolation: str = ""
    """What its sandboxes get at least, known once it is ready; empty: the server's."""


class LogLine(msgspec.Struct, frozen=True):
    """One line of a build's log."""

    number: int
    """From 0 on, without a gap: lines already seen are told apart by it."""
    at: datetime
    level: str
    step: str | None
    message: str


class Builds:
    """Queries and changes; a foreign build is as good as an unknown one."""

    def __init__(self, database: Database) -> None:
        """Use this database."""
        self._database = database

    async def request(self, record: BuildRecord, name: str) -> TemplateId:
        """Write the row `waiting`, for the team's template of that name, which is made when there is none.

        Returns the template's id, which is that of the record only where the template is new.
        """

        def work(connection: Connection) -> TemplateId:
            named = select(template_names.c.template_id).where(
                template_names.c.owner == record.team_id, template_names.c.name == name
            )
            known = connection.execute(named).scalar_one_or_none()
            template_id = record.template_id if known is None else TemplateId(known)
            if known is None:
                _add_template(connection, record, name)
            row = msgspec.structs.asdict(record) | {"template_id": template_id}
            connection.execute(insert(builds).values(row))
            return template_id

        return await self._database.write(work)

    async def get(self, team: TeamId, template: str, build: str) -> BuildRecord | None:
        """Return one build of a template of the team."""
        found = await self._select(_is(team, build), builds.c.template_id == template)
        return found[0] if found else None

    async def is_ready(self, build: str) -> bool:
        """Whether a build of any team is one that sandboxes may be made of."""
        return bool(await self._select(builds.c.id == build, builds.c.state == "ready"))

    async def of_template(
        self, template: TemplateId, *, skip: int = 0, limit: int | None = None
    ) -> Sequence[BuildRecord]:
        """Return a template's builds, newest first, without the first `skip`."""
        return await self._select(builds.c.template_id == template, skip=skip, limit=limit)

    async def newest_of(self, ids: Iterable[str]) -> dict[str, tuple[int, BuildRecord]]:
        """Return for each of these templates how many builds it has had, and the newest one.

        One row for each, however many builds there are: clients list templates often.
        """
        template = builds.c.template_id
        newest = (builds.c.created_at.desc(), builds.c.id.desc())
        ranked = (
            select(
                builds,
                func.count().over(partition_by=template).label("of_template"),
                func.row_number().over(partition_by=template, order_by=newest).label("age"),
            )
            .where(template.in_(list(ids)))
            .subquery()
        )

        def work(connection: Connection) -> dict[str, tuple[int, BuildRecord]]:
            rows = connection.execute(select(ranked).where(ranked.c.age == 1)).mappings()
            names = BuildRecord.__struct_fields__
            found = [(row["of_template"], BuildRecord(**{name: row[name] for name in names})) for row in rows]
            return {build.template_id: (count, build) for count, build in found}

        return await self._database.read(work)

    async def unused(self, ids: Iterable[str], before: datetime) -> Sequence[BuildId]:
        """Return those of these builds that nobody can ask for any more, the oldest first.

        No tag leads to them, and none of their template has moved lately; they were finished before that
        time, no sandbox that was made of them is there or was started since, no snapshot stands on them, and
        their template is not pinned.
        """
        tagged = exists().where(template_tags.c.build_id == builds.c.id)
        moved = exists().where(
            template_tags.c.template_id == builds.c.template_id, template_tags.c.assigned_at >= before
        )
        of_build = sandboxes.c.build_id == builds.c.id
        used = exists().where(of_build, or_(sandboxes.c.state != "ended", sandboxes.c.started_at >= before))
        kept = exists().where(snapshots.c.build_id == builds.c.id)
        pinned = exists().where(templates.c.id == builds.c.template_id, templates.c.is_pinned)
        shown = exists().where(templates.c.build_id == builds.c.id)
        old = (builds.c.id.in_(list(ids)), builds.c.state == "ready", builds.c.finished_at < before)
        query = select(builds.c.id).where(*old, ~or_(tagged, moved, used, kept, pinned, shown))

        def work(connection: Connection) -> Sequence[BuildId]:
            rows = connection.execute(query.order_by(builds.c.finished_at)).scalars()
            return [BuildId(found) for found in rows]

        return await self._database.read(work)

    async def begin(self, team: TeamId, build: BuildId, at: datetime) -> bool:
        """Waiting → building. False when it was begun before."""

        def work(connection: Connection) -> bool:
            change = update(builds).where(_is(team, build), builds.c.state == "waiting")
            return connection.execute(change.values(state="building", updated_at=at)).rowcount == 1

        return await self._database.write(work)

    async def fail(self, team: TeamId, build: BuildId, message: str, step: str | None, at: datetime) -> bool:
        """Building → error. False when it was not being built; its tags stay where they are."""

        def work(connection: Connection) -> bool:
            change = update(builds).where(_is(team, build), builds.c.state == "building")
            told = {"message": message, "step": step}
            values = {"state": "error", "updated_at": at, "finished_at": at, **told}
            return connection.execute(change.values(values)).rowcount == 1

        return await self._database.write(work)

    async def finish(self, record: BuildRecord, at: datetime, isolation: str = "") -> bool:
        """Building → ready, and its tags lead to it, all at once. False when it was not being built.

        Its sandboxes get that isolation at least; those of the template's other builds keep theirs.
        """
        made = msgspec.structs.replace(record, isolation=isolation)

        def work(connection: Connection) -> bool:
            change = update(builds).where(_is(record.team_id, record.id), builds.c.state == "building")
            values = {"state": "ready", "updated_at": at, "finished_at": at, "isolation": isolation}
            if connection.execute(change.values(values)).rowcount != 1:
                return False
            assign(connection, made, record.tags, at)
            return True

        return await self._database.write(work)

    async def fail_unfinished(self, message: str, at: datetime) -> int:
        """Fail what an api that is gone was building; say how many there were."""

        def work(connection: Connection) -> int:
            change = update(builds).where(builds.c.state == "building")
            values = {"state": "error", "updated_at": at, "finished_at": at, "message": message}
            return connection.execute(change.values(values)).rowcount

        return await self._database.write(work)

    async def add_log(self, build: BuildId, lines: Sequence[LogLine]) -> None:
        """Append lines, which carry on the numbers of those that are there."""
        rows = [msgspec.structs.asdict(line) | {"build_id": build} for line in lines]
        await self._database.write(lambda connection: connection.execute(insert(build_logs), rows))

    async def log(
        self,
        build: BuildId,
        *,
        offset: int = 0,
        limit: int = 100,
        levels: Iterable[str] = (),
        step: str | None = None,
        since: datetime | None = None,
        until: datetime | None = None,
        is_backward: bool = False,
    ) -> Sequence[LogLine]:
        """Return lines in order, or the last ones first.

        Where they are given, of these levels, that step and that time, both ends included.
        """
        conditions: list[ColumnElement[bool]] = [build_logs.c.build_id == build]
        if wanted := list(levels):
            conditions.append(build_logs.c.level.in_(wanted))
        if step is not None:
            conditions.append(build_logs.c.step == step)
        if since is not None:
            conditions.append(build_logs.c.at >= since)
        if until is not None:
            conditions.append(build_logs.c.at <= until)
        number = build_logs.c.number
        order = number.desc() if is_backward else number

        def work(connection: Connection) -> Sequence[LogLine]:
            columns = [build_logs.c[name] for name in LogLine.__struct_fields__]
            query = select(*columns).where(*conditions).order_by(order)
            rows = connection.execute(query.offset(offset).limit(limit)).mappings()
            return [LogLine(**row) for row in rows]

        return await self._database.read(work)

    async def remove_template(self, team: TeamId, template: TemplateId) -> Sequence[BuildRecord] | None:
        """Drop a template of the team with its names, tags, builds and logs; return the builds it had.

        None when the team has none of that id.
        """

        def work(connection: Connection) -> Sequence[BuildRecord] | None:
            own = and_(templates.c.id == template, templates.c.owner == team)
            if connection.execute(delete(templates).where(own)).rowcount == 0:
                return None
            rows = connection.execute(select(builds).where(builds.c.template_id == template)).mappings()
            had = [BuildRecord(**row) for row in rows]
            connection.execute(delete(template_names).where(template_names.c.template_id == template))
            connection.execute(delete(template_tags).where(template_tags.c.template_id == template))
            ids = [build.id for build in had]
            connection.execute(delete(build_logs).where(build_logs.c.build_id.in_(ids)))
            connection.execute(delete(builds).where(builds.c.template_id == template))
            return had

        return await self._database.write(work)

    async def _select(
        self, *conditions: ColumnElement[bool], skip: int = 0, limit: int | None = None
    ) -> Sequence[BuildRecord]:
        def work(connection: Connection) -> Sequence[BuildRecord]:
            newest = (builds.c.created_at.desc(), builds.c.id.desc())
            query = select(builds).where(*conditions).order_by(*newest).limit(limit).offset(skip)
            return [BuildRecord(**row) for row in connection.execute(query).mappings()]

        return await self._database.read(work)


def assign(connection: Connection, build: BuildRecord, tags: Iterable[str], at: datetime) -> None:
    """Have tags of its template lead to a build that is ready, inside a transaction."""
    for tag in tags:
        same = and_(template_tags.c.template_id == build.template_id, template_tags.c.tag == tag)
        connection.execute(delete(template_tags).where(same))
        row = {"template_id": build.template_id, "tag": tag, "build_id": build.id, "assigned_at": at}
        connection.execute(insert(template_tags).values(row))
        if tag == DEFAULT_TAG:
            shown = {"build_id": build.id, "isolation": build.isolation}
            shown |= {"cpu_count": build.cpu_count, "memory_mib": build.memory_mib}
            own = and_(templates.c.id == build.template_id, templates.c.owner == build.team_id)
            connection.execute(update(templates).where(own).values(shown))


def _add_template(connection: Connection, record: BuildRecord, name: str) -> None:
    row = {
        "id": record.template_id,
        "owner": record.team_id,
        "build_id": "",
        "name": name,
        "aliases": [name],
        "cpu_count": record.cpu_count,
        "memory_mib": record.memory_mib,
        "disk_mib": 0,
        "created_at": record.created_at,
        "spawn_count": 0,
        "is_public": False,
    }
    connection.execute(insert(templates).values(row))
    connection.execute(
        insert(template_names).values(owner=record.team_id, name=name, template_id=record.template_id)
    )


def _is(team: TeamId, build: str) -> ColumnElement[bool]:
    return and_(builds.c.team_id == team, builds.c.id == build)
