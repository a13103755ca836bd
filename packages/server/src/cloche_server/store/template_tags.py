"""Tags of templates: names of single builds, which move from one to the next."""

from collections.abc import Iterable, Sequence
from datetime import datetime

import msgspec
from sqlalchemy import Connection, and_, delete, select

from cloche_server.ids import BuildId, TemplateId
from cloche_server.store.builds import BuildRecord, assign
from cloche_server.store.schema import builds, template_tags
from cloche_server.store.session import Database


class Tag(msgspec.Struct, frozen=True):
    """What one tag leads to."""

    tag: str
    build_id: BuildId
    assigned_at: datetime


class TemplateTags:
    """Queries and changes of a template that the caller has found."""

    def __init__(self, database: Database) -> None:
        """Use this database."""
        self._database = database

    async def build_of(self, template: TemplateId, tag: str) -> BuildRecord | None:
        """Return the build that a tag leads to."""

        def work(connection: Connection) -> BuildRecord | None:
            query = (
                select(builds)
                .join(template_tags, template_tags.c.build_id == builds.c.id)
                .where(template_tags.c.template_id == template, template_tags.c.tag == tag)
            )
            row = connection.execute(query).mappings().one_or_none()
            return None if row is None else BuildRecord(**row)

        return await self._database.read(work)

    async def assign(self, build: BuildRecord, tags: Iterable[str], at: datetime) -> None:
        """Have these tags lead to a build that is ready; they leave the builds that had them."""
        await self._database.write(lambda connection: assign(connection, build, tags, at))

    async def remove(self, template: TemplateId, tags: Iterable[str]) -> None:
        """Drop these tags; the builds stay. Idempotent."""
        named = and_(template_tags.c.template_id == template, template_tags.c.tag.in_(list(tags)))
        await self._database.write(lambda connection: connection.execute(delete(template_tags).where(named)))

    async def list(self, template: TemplateId) -> Sequence[Tag]:
        """Return a template's tags, the one assigned last first."""

        def work(connection: Connection) -> Sequence[Tag]:
            columns = (template_tags.c.tag, template_tags.c.build_id, template_tags.c.assigned_at)
            query = select(*columns).where(template_tags.c.template_id == template)
            newest = query.order_by(template_tags.c.assigned_at.desc(), template_tags.c.tag)
            return [Tag(**row) for row in connection.execute(newest).mappings()]

        return await self._database.read(work)
