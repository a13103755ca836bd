"""Sandboxes, always of one team: in every WHERE, so that a foreign id is as good as an unknown one."""

from collections.abc import Collection, Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any, Literal, NamedTuple

import msgspec
from sqlalchemy import (
    ColumnElement,
    Connection,
    RowMapping,
    and_,
    bindparam,
    delete,
    func,
    insert,
    or_,
    select,
    tuple_,
    update,
)

from cloche_server.ids import BuildId, SandboxId, TeamId, TemplateId
from cloche_server.store.events import Subject, note_event, note_update
from cloche_server.store.schema import idempotency, pauses, sandboxes
from cloche_server.store.session import Database
from cloche_server.store.templates import count_spawn
from cloche_wire.errors import Conflict, ResourceExhausted

State = Literal["creating", "running", "paused", "resuming", "ended"]
"""Nobody is shown `creating`; `resuming` is shown as `paused`, and whoever died in it left a paused one."""
Order = Literal["asc", "desc"]
PauseMode = Literal["full", "filesystem"]
RUNNING: tuple[State, ...] = ("running",)
PAUSED: tuple[State, ...] = ("paused", "resuming")
COUNTED: tuple[State, ...] = ("creating", "running", "resuming")
"""Those that take a place of the limit."""
ALIVE: tuple[State, ...] = ("creating", *RUNNING, *PAUSED)
IDEMPOTENCY_LIFE = timedelta(hours=24)

# Made once: to put a statement together takes longer than to have it carried out, and one with `in_` is put
# together anew each time.
is_alive = or_(*(sandboxes.c.state == state for state in ALIVE))
_is_counted = or_(*(sandboxes.c.state == state for state in COUNTED))
_is_one = and_(sandboxes.c.team_id == bindparam("team"), sandboxes.c.id == bindparam("sandbox"))
_ONE = select(sandboxes).where(_is_one)
_ONE_ALIVE = _ONE.where(is_alive)
_COUNT = select(func.count()).select_from(sandboxes).where(_is_counted)
_INSERT = insert(sandboxes)
_RUN = (
    update(sandboxes)
    .where(_is_one, sandboxes.c.state == "creating")
    .values(
        state="running",
        started_at=bindparam("started"),
        end_at=bindparam("end"),
        isolation=bindparam("driver"),
    )
)
_END = (
    update(sandboxes)
    .where(_is_one)
    .values(
        state="ended",
        end_reason=bindparam("reason"),
        ended_at=bindparam("at"),
        access_token="",
        traffic_token=None,
    )
)
_FREE_KEY = delete(idempotency).where(idempotency.c.sandbox_id == bindparam("sandbox"))
_PAUSE = select(pauses.c.paused_at, pauses.c.resumed_at).where(
    pauses.c.sandbox_id == bindparam("sandbox"), pauses.c.run == bindparam("number")
)


class SandboxRecord(msgspec.Struct, frozen=True):
    """One sandbox as the control plane knows it. The node rules on whether it lives, this on whose it is."""

    id: SandboxId
    team_id: TeamId
    template_id: TemplateId
    build_id: BuildId
    alias: str
    metadata: dict[str, str]
    access_token: str
    """Opens the sandbox's daemon; empty once it has ended."""
    traffic_token: str | None
    mask_request_host: str | None
    allow_internet: bool
    cpu_count: int
    memory_mib: int
    disk_mib: int
    started_at: datetime
    end_at: datetime
    state: State = "creating"
    end_reason: str | None = None
    ended_at: datetime | None = None
    isolation: str = ""
    network: dict[str, Any] = {}
    """Network options as the creator wrote them, in the spelling of the wire."""
    lifecycle: dict[str, Any] = {}
    """What is to happen at the end of its time, in the spelling of the wire."""
    volume_mounts: list[dict[str, str]] = []
    """`name` and `path` of each."""
    snapshot_id: str | None = None
    """The snapshot it was made of."""
    parent_id: str | None = None
    """The sandbox it is a fork of, or that its snapshot was taken of."""
    pause_mode: PauseMode = "full"
    """How it was paused the last time."""
    run: int = 1
    """Each resume begins another."""

    @property
    def is_paused(self) -> bool:
        """Whether it is there and does not run."""
        return self.state in PAUSED

    @property
    def timeout_pause_mode(self) -> PauseMode:
        """What its time-out keeps when it pauses it."""
        return self.lifecycle.get("pauseMode", "full")


class IdempotencyClaim(NamedTuple):
    """A client's wish that this request be carried out once."""

    key: str
    body_hash: str


class Reservation(NamedTuple):
    """The row a create stands on: its own, or that of an earlier request with the same idempotency key."""

    record: SandboxRecord
    is_new: bool


class Cursor(NamedTuple):
    """Where a page of a listing ends."""

    at: datetime
    id: str


class Listing(msgspec.Struct, frozen=True):
    """Which sandboxes a caller wants to see."""

    states: tuple[State, ...] = RUNNING
    metadata: Mapping[str, str] = {}
    order: Order = "desc"
    started_after: datetime | None = None
    template_id: str | None = None
    snapshot_id: str | None = None
    after: Cursor | None = None
    limit: int | None = None


class Sandboxes:
    """Queries and changes, each for one team."""

    def __init__(self, database: Database) -> None:
        """Use this database."""
        self._database = database

    async def reserve(
        self, record: SandboxRecord, claim: IdempotencyClaim | None, *, max_running: int
    ) -> Reservation:
        """Write the row `creating` before any node is asked.

        Raises:
            Conflict: The idempotency key was used with another request.
            ResourceExhausted: `max_running` sandboxes run already.
        """

        def work(connection: Connection) -> Reservation:
            if claim is not None and (earlier := _claimed(connection, record, claim)) is not None:
                return Reservation(earlier, is_new=False)
            check_room(connection, max_running)
            connection.execute(_INSERT, msgspec.structs.asdict(record))
            if claim is not None:
                connection.execute(
                    insert(idempotency).values(
                        team_id=record.team_id,
                        key=claim.key,
                        body_hash=claim.body_hash,
                        sandbox_id=record.id,
                        created_at=record.started_at,
                    )
                )
            return Reservation(record, is_new=True)

        return await self._database.write(work)

    async def add_running(self, running: SandboxRecord, *, max_running: int) -> None:
        """Write the row of a sandbox that runs by now, in place of `reserve` and `mark_running`.

        Raises:
            ResourceExhausted: `max_running` sandboxes run already; there is no row.
        """

        def work(connection: Connection) -> None:
            check_room(connection, max_running)
            connection.execute(_INSERT, msgspec.structs.asdict(running))
            _note_start(connection, running)

        await self._database.write(work)

    async def mark_running(self, running: SandboxRecord) -> bool:
        """Creating → running, with the times and the isolation of `running`.

        Returns:
            False when it has ended in the meantime.
        """

        def work(connection: Connection) -> bool:
            started = {"started": running.started_at, "end": running.end_at, "driver": running.isolation}
            one = {"team": running.team_id, "sandbox": running.id}
            if connection.execute(_RUN, one | started).rowcount == 0:
                return False
            _note_start(connection, running)
            return True

        return await self._database.write(work)

    async def get(self, team: TeamId, sandbox: SandboxId) -> SandboxRecord | None:
        """The team's sandbox in whatever state."""

        def work(connection: Connection) -> SandboxRecord | None:
            row = connection.execute(_ONE, {"team": team, "sandbox": sandbox}).mappings().one_or_none()
            return None if row is None else SandboxRecord(**row)

        return await self._database.read(work)

    async def list(self, team: TeamId, listing: Listing) -> Sequence[SandboxRecord]:
        """The team's sandboxes that the listing asks for."""

        def work(connection: Connection) -> Sequence[SandboxRecord]:
            time, key = sandboxes.c.started_at, sandboxes.c.id
            order = (time.desc(), key.desc()) if listing.order == "desc" else (time, key)
            conditions = [
                sandboxes.c.team_id == team,
                sandboxes.c.state.in_(listing.states),
                *_conditions(listing),
            ]
            rows = connection.execute(
                select(sandboxes).where(and_(*conditions)).order_by(*order).limit(listing.limit)
            ).mappings()
            return [SandboxRecord(**row) for row in rows]

        return await self._database.read(work)

    async def running_of(self, ids: Collection[SandboxId], team: TeamId) -> Sequence[SandboxId]:
        """Those of the sandboxes that are the team's and run."""

        def work(connection: Connection) -> Sequence[SandboxId]:
            mine = and_(sandboxes.c.team_id == team, sandboxes.c.state == "running")
            rows = connection.execute(select(sandboxes.c.id).where(mine, sandboxes.c.id.in_(ids)))
            return [SandboxId(row.id) for row in rows]

        return await self._database.read(work)

    async def by_team(self, states: tuple[State, ...]) -> dict[TeamId, Sequence[SandboxId]]:
        """What is in these states, by team; teams that have none are left out."""

        def work(connection: Connection) -> dict[TeamId, Sequence[SandboxId]]:
            found: dict[TeamId, list[SandboxId]] = {}
            wanted = select(sandboxes.c.team_id, sandboxes.c.id).where(sandboxes.c.state.in_(states))
            for row in connection.execute(wanted):
                found.setdefault(TeamId(row.team_id), []).append(SandboxId(row.id))
            return {**found}

        return await self._database.read(work)

    async def count_running(self, team: TeamId) -> int:
        """How many sandboxes of the team run."""

        def work(connection: Connection) -> int:
            mine = and_(sandboxes.c.team_id == team, sandboxes.c.state == "running")
            return connection.execute(select(func.count()).select_from(sandboxes).where(mine)).scalar_one()

        return await self._database.read(work)

    async def set_end(
        self, team: TeamId, sandbox: SandboxId, end_at: datetime, *, now: datetime
    ) -> SandboxRecord | None:
        """Note the end time the node has set. None when it does not run any more."""

        def work(connection: Connection) -> SandboxRecord | None:
            before = connection.execute(
                select(sandboxes.c.end_at).where(is_sandbox(team, sandbox))
            ).scalar_one_or_none()
            row = (
                connection.execute(
                    update(sandboxes)
                    .where(is_sandbox(team, sandbox), sandboxes.c.state == "running")
                    .values(end_at=end_at)
                    .returning(sandboxes)
                )
                .mappings()
                .one_or_none()
            )
            if row is not None and before != end_at:
                note_update(connection, subject_of(row), {"set_timeout": end_at.isoformat()}, now)
            return None if row is None else SandboxRecord(**row)

        return await self._database.write(work)

    async def set_network(
        self, team: TeamId, sandbox: SandboxId, network: Mapping[str, Any], allow_internet: bool
    ) -> None:
        """Note network options that the node enforces by now."""

        def work(connection: Connection) -> None:
            connection.execute(
                update(sandboxes)
                .where(is_sandbox(team, sandbox))
                .values(network=network, allow_internet=allow_internet)
            )

        await self._database.write(work)

    async def mark_ended(self, team: TeamId, sandbox: SandboxId, reason: str, at: datetime) -> bool:
        """Alive → ended. False when it had ended before."""

        def work(connection: Connection) -> bool:
            rows = connection.execute(_ONE_ALIVE, {"team": team, "sandbox": sandbox}).mappings().all()
            end_rows(connection, rows, reason, at)
            return len(rows) == 1

        return await self._database.write(work)


def check_room(connection: Connection, max_running: int) -> None:
    """Refuse, inside a transaction, one more sandbox that runs.

    The limit is the machine's, not a team's: it counts over all teams and shows none of them.

    Raises:
        ResourceExhausted: `max_running` run already, or are about to.
    """
    current = connection.execute(_COUNT).scalar_one()
    if current >= max_running:
        raise ResourceExhausted(
            f"limit of sandboxes that run at once reached: current {current}, maximum {max_running}",
            hint="kill or pause some, wait for one to end, or raise limits.max_sandboxes",
        )


def end_rows(connection: Connection, alive: Sequence[RowMapping], reason: str, at: datetime) -> None:
    """End live rows, inside the transaction that has read them, and forget their tokens.

    A sandbox that never ran frees its idempotency key, so that the client's retry makes one.
    """
    for row in alive:
        if row["state"] == "creating":
            connection.execute(_FREE_KEY, {"sandbox": row["id"]})
        one = {"team": row["team_id"], "sandbox": row["id"]}
        connection.execute(_END, one | {"reason": reason, "at": at})
        if row["isolation"]:  # it ran
            details = {"reason": reason, "execution": execution_of(connection, row, at)}
            note_event(connection, subject_of(row), "killed", details, at)


def _note_start(connection: Connection, started: SandboxRecord) -> None:
    count_spawn(connection, started.team_id, started.template_id, started.started_at)
    asked = {"sandbox_metadata": started.metadata} if started.metadata else {}
    subject = Subject(started.team_id, started.id, started.template_id, started.build_id, started.run)
    note_event(connection, subject, "created", asked, started.started_at)


def subject_of(row: RowMapping) -> Subject:
    """Return whom an event about this row is about."""
    return Subject(row["team_id"], row["id"], row["template_id"], row["build_id"], row["run"])


def execution_of(connection: Connection, row: RowMapping, until: datetime) -> dict[str, Any]:
    """Return what events tell of a sandbox's run, which has lasted until then or until its pause."""
    run = {"sandbox": row["id"], "number": row["run"]}
    before = connection.execute(_PAUSE, run | {"number": row["run"] - 1}).one_or_none()
    own = connection.execute(_PAUSE, run).one_or_none()
    began = row["started_at"] if before is None else before.resumed_at
    ended = until if own is None else own.paused_at
    return {
        "started_at": began.isoformat(),
        "vcpu_count": row["cpu_count"],
        "memory_mb": row["memory_mib"],
        "execution_time": round(1000 * max((ended - began).total_seconds(), 0.0)),
    }


def is_sandbox(team: TeamId, sandbox: SandboxId) -> ColumnElement[bool]:
    """Return the condition for one sandbox of one team."""
    return and_(sandboxes.c.team_id == team, sandboxes.c.id == sandbox)


def _claimed(connection: Connection, record: SandboxRecord, claim: IdempotencyClaim) -> SandboxRecord | None:
    mine = and_(idempotency.c.team_id == record.team_id, idempotency.c.key == claim.key)
    # Keys that have grown old, of this team or of any other, are of no use to anybody.
    old = idempotency.c.created_at < record.started_at - IDEMPOTENCY_LIFE
    connection.execute(delete(idempotency).where(or_(old, and_(mine, old))))
    row = connection.execute(select(idempotency).where(mine)).mappings().one_or_none()
    if row is None:
        return None
    if row["body_hash"] != claim.body_hash:
        raise Conflict(
            "idempotency key was used with another request", hint="use a new key for a new request"
        )
    earlier = connection.execute(
        select(sandboxes).where(is_sandbox(record.team_id, SandboxId(str(row["sandbox_id"]))))
    ).mappings()
    return SandboxRecord(**earlier.one())


def _conditions(listing: Listing) -> list[ColumnElement[bool]]:
    found: list[ColumnElement[bool]] = []
    if listing.started_after is not None:
        found.append(sandboxes.c.started_at >= listing.started_after)
    if listing.template_id is not None:
        found.append(sandboxes.c.template_id == listing.template_id)
    if listing.snapshot_id is not None:
        found.append(sandboxes.c.snapshot_id == listing.snapshot_id)
    for key, value in listing.metadata.items():
        # Key and value are bound, not part of a JSON path: any character may stand in them.
        pairs = func.json_each(sandboxes.c.metadata).table_valued("key", "value")
        found.append(select(pairs.c.key).where(pairs.c.key == key, pairs.c.value == value).exists())
    if listing.after is not None:
        place = tuple_(sandboxes.c.started_at, sandboxes.c.id)
        found.append(place < listing.after if listing.order == "desc" else place > listing.after)
    return found
