"""What reconciliation with the nodes asks and changes: the only queries without a team."""

from collections.abc import Collection, Mapping
from datetime import datetime, timedelta
from typing import Any, NamedTuple

from sqlalchemy import Connection, delete, select, true

from cloche_server.store.events import forget_events
from cloche_server.store.sandboxes import State, end_rows, is_alive
from cloche_server.store.schema import pauses, sandboxes
from cloche_server.store.session import Database

ENDED_ROWS_LIFE = timedelta(days=7)
"""How long the row of an ended sandbox is kept."""


class ShownEgress(NamedTuple):
    """Network options as a row has them."""

    network: Mapping[str, Any]
    allow_internet: bool


class Liveness:
    """Live rows of all teams."""

    def __init__(self, database: Database) -> None:
        """Use this database."""
        self._database = database

    async def alive(self) -> Mapping[str, State]:
        """State of every sandbox that has not ended, by its id."""

        def work(connection: Connection) -> Mapping[str, State]:
            rows = connection.execute(select(sandboxes.c.id, sandboxes.c.state).where(is_alive))
            return {row.id: row.state for row in rows}

        return await self._database.read(work)

    async def egress(self, sandbox: str | None = None) -> Mapping[str, ShownEgress]:
        """What every running sandbox, or this one, is shown to reach."""

        def work(connection: Connection) -> Mapping[str, ShownEgress]:
            columns = select(sandboxes.c.id, sandboxes.c.network, sandboxes.c.allow_internet)
            which = true() if sandbox is None else sandboxes.c.id == sandbox
            rows = connection.execute(columns.where(sandboxes.c.state == "running", which))
            return {row.id: ShownEgress(row.network, row.allow_internet) for row in rows}

        return await self._database.read(work)

    async def end(self, ids: Collection[str], reason: str, at: datetime) -> int:
        """End those of the sandboxes that live; returns how many did."""

        def work(connection: Connection) -> int:
            which = select(sandboxes).where(is_alive, sandboxes.c.id.in_(ids))
            rows = connection.execute(which).mappings().all()
            end_rows(connection, rows, reason, at)
            return len(rows)

        return await self._database.write(work) if ids else 0

    async def forget_ended(self, now: datetime) -> None:
        """Drop rows of sandboxes that ended long ago, and events as old."""

        def work(connection: Connection) -> None:
            old = sandboxes.c.ended_at < now - ENDED_ROWS_LIFE
            connection.execute(delete(sandboxes).where(sandboxes.c.state == "ended", old))
            connection.execute(delete(pauses).where(pauses.c.sandbox_id.not_in(select(sandboxes.c.id))))
            forget_events(connection, now - ENDED_ROWS_LIFE)

        await self._database.write(work)
