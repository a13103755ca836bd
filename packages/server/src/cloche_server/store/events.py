"""What has happened to sandboxes, written in the very transactions that make it so."""

import uuid
from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any, Literal, NamedTuple

import msgspec
from sqlalchemy import Connection, Integer, delete, insert, literal_column, select, update

from cloche_server.ids import TeamId
from cloche_server.store.schema import events
from cloche_server.store.session import Database

Kind = Literal["created", "updated", "killed", "paused", "resumed", "snapshotted"]
UPDATES_STEP = timedelta(minutes=1)
"""Moves of one sandbox's end that follow each other faster are one event: a terminal moves it every 5 s."""

_INSERT = insert(events)


class Subject(NamedTuple):
    """The sandbox something happens to, in one of its runs."""

    team_id: str
    sandbox_id: str
    template_id: str
    build_id: str
    run: int


class Event(msgspec.Struct, frozen=True):
    """One thing that has happened."""

    id: str
    team_id: TeamId
    sandbox_id: str
    template_id: str
    build_id: str
    kind: Kind
    details: dict[str, Any]
    happened_at: datetime
    run: int
    """Counted from 1: each resume begins another."""


class EventQuery(msgspec.Struct, frozen=True):
    """Which events a caller wants to see."""

    sandbox_id: str | None = None
    kinds: tuple[str, ...] = ()
    """None at all: every kind."""
    oldest_first: bool = False
    offset: int = 0
    limit: int = 10


class Events:
    """Queries, each for one team."""

    def __init__(self, database: Database) -> None:
        """Use this database."""
        self._database = database

    async def list(self, team: TeamId, query: EventQuery) -> Sequence[Event]:
        """The team's events, a page of them."""

        def work(connection: Connection) -> Sequence[Event]:
            conditions = [events.c.team_id == team]
            if query.sandbox_id is not None:
                conditions.append(events.c.sandbox_id == query.sandbox_id)
            if query.kinds:
                conditions.append(events.c.kind.in_(query.kinds))
            # Of two within the same moment, the one written first was first.
            time, place = events.c.happened_at, literal_column("events.rowid", Integer)
            order = (time, place) if query.oldest_first else (time.desc(), place.desc())
            rows = connection.execute(
                select(events).where(*conditions).order_by(*order).offset(query.offset).limit(query.limit)
            ).mappings()
            return [Event(**row) for row in rows]

        return await self._database.read(work)


def note_event(
    connection: Connection, subject: Subject, kind: Kind, details: Mapping[str, Any], at: datetime
) -> None:
    """Write down, inside a transaction, that something has happened."""
    event = {"id": str(uuid.uuid4()), "kind": kind, "details": dict(details), "happened_at": at}
    connection.execute(_INSERT, subject._asdict() | event)


def note_update(connection: Connection, subject: Subject, details: Mapping[str, Any], at: datetime) -> None:
    """Write down an update; one that follows another within a minute takes its place."""
    recent = (
        select(events.c.id)
        .where(events.c.sandbox_id == subject.sandbox_id, events.c.team_id == subject.team_id)
        .where(events.c.kind == "updated", events.c.happened_at > at - UPDATES_STEP)
        .limit(1)
    )
    changed = connection.execute(
        update(events).where(events.c.id.in_(recent)).values(details=dict(details))
    ).rowcount
    if not changed:
        note_event(connection, subject, "updated", details, at)


def forget_events(connection: Connection, before: datetime) -> None:
    """Drop, inside a transaction, what happened long ago."""
    connection.execute(delete(events).where(events.c.happened_at < before))
