"""Changes of a sandbox's state between running and paused: each is one run's end, or another's begin."""

from collections.abc import Mapping
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, insert, select, update

from cloche_server.ids import SandboxId, TeamId
from cloche_server.store.events import note_event
from cloche_server.store.sandboxes import (
    PAUSED,
    PauseMode,
    SandboxRecord,
    check_room,
    execution_of,
    is_sandbox,
    subject_of,
)
from cloche_server.store.schema import pauses, sandboxes
from cloche_server.store.session import Database


class Pausing:
    """Changes, each for one sandbox of one team."""

    def __init__(self, database: Database) -> None:
        """Use this database."""
        self._database = database

    async def mark_paused(
        self, team: TeamId, sandbox: SandboxId, at: datetime, *, mode: PauseMode | None = None
    ) -> bool:
        """Running → paused. False when it was not running.

        Args:
            team: Whose.
            sandbox: Which.
            at: When; what is left of its time is over.
            mode: What was kept; None for what its time-out keeps.
        """

        def work(connection: Connection) -> bool:
            row = (
                connection.execute(
                    update(sandboxes)
                    .where(is_sandbox(team, sandbox), sandboxes.c.state == "running")
                    .values(state="paused", end_at=at)
                    .returning(sandboxes)
                )
                .mappings()
                .one_or_none()
            )
            if row is None:
                return False
            kept = mode or SandboxRecord(**row).timeout_pause_mode
            connection.execute(update(sandboxes).where(is_sandbox(team, sandbox)).values(pause_mode=kept))
            began = {"sandbox_id": sandbox, "team_id": team, "run": row["run"], "paused_at": at}
            connection.execute(insert(pauses).values(began))
            details: Mapping[str, Any] = {"execution": execution_of(connection, row, at)}
            note_event(connection, subject_of(row), "paused", details, at)
            return True

        return await self._database.write(work)

    async def begin_resume(self, team: TeamId, sandbox: SandboxId, *, max_running: int) -> bool:
        """Paused → resuming, before any node is asked. False when it is not paused.

        Raises:
            ResourceExhausted: `max_running` sandboxes run already.
        """

        def work(connection: Connection) -> bool:
            paused = select(sandboxes.c.id).where(is_sandbox(team, sandbox), sandboxes.c.state == "paused")
            if connection.execute(paused).first() is None:
                return False
            check_room(connection, max_running)
            connection.execute(update(sandboxes).where(is_sandbox(team, sandbox)).values(state="resuming"))
            return True

        return await self._database.write(work)

    async def abandon_resume(self, team: TeamId, sandbox: SandboxId) -> None:
        """Resuming → paused, as if nobody had tried."""

        def work(connection: Connection) -> None:
            connection.execute(
                update(sandboxes)
                .where(is_sandbox(team, sandbox), sandboxes.c.state == "resuming")
                .values(state="paused")
            )

        await self._database.write(work)

    async def mark_running(
        self, team: TeamId, sandbox: SandboxId, end_at: datetime, at: datetime
    ) -> SandboxRecord | None:
        """Paused or resuming → running. None when it is neither.

        A limit does not count here: the node has it running.
        """

        def work(connection: Connection) -> SandboxRecord | None:
            row = (
                connection.execute(
                    update(sandboxes)
                    .where(is_sandbox(team, sandbox), sandboxes.c.state.in_(PAUSED))
                    .values(state="running", end_at=end_at, run=sandboxes.c.run + 1)
                    .returning(sandboxes)
                )
                .mappings()
                .one_or_none()
            )
            if row is None:
                return None
            connection.execute(
                update(pauses)
                .where(pauses.c.sandbox_id == sandbox, pauses.c.run == row["run"] - 1)
                .values(resumed_at=at)
            )
            note_event(connection, subject_of(row), "resumed", {}, at)
            return SandboxRecord(**row)

        return await self._database.write(work)
