"""How many sandboxes of a team ran at once and how fast they were made, worked out from their rows."""

from collections.abc import Sequence
from typing import NamedTuple

from sqlalchemy import Connection, text

from cloche_server.ids import TeamId
from cloche_server.store.session import Database

# One row per start, pause, resume and end, in order of time with what adds first; the running sum is how many
# run. One that ends while paused was taken off at its pause. What lies before the range falls into step -1.
_STEPS = text("""
WITH changes AS (
    SELECT CAST(strftime('%s', started_at) AS INTEGER) AS at_s, 1 AS change, 1 AS is_start FROM sandboxes
    WHERE team_id = :team AND isolation != '' AND started_at < datetime(:end_s + 1, 'unixepoch')
    UNION ALL
    SELECT CAST(strftime('%s', paused_at) AS INTEGER), -1, 0 FROM pauses
    WHERE team_id = :team AND paused_at < datetime(:end_s + 1, 'unixepoch')
    UNION ALL
    SELECT CAST(strftime('%s', resumed_at) AS INTEGER), 1, 0 FROM pauses
    WHERE team_id = :team AND resumed_at < datetime(:end_s + 1, 'unixepoch')
    UNION ALL
    SELECT CAST(strftime('%s', ended_at) AS INTEGER), -1, 0 FROM sandboxes
    WHERE team_id = :team AND isolation != '' AND ended_at < datetime(:end_s + 1, 'unixepoch')
    AND id NOT IN (SELECT sandbox_id FROM pauses WHERE team_id = :team AND resumed_at IS NULL)
), sums AS (
    SELECT
        CASE WHEN at_s < :start_s THEN -1 ELSE (at_s - :start_s) / :step_s END AS step,
        change,
        is_start,
        SUM(change) OVER (ORDER BY at_s, change DESC ROWS UNBOUNDED PRECEDING) AS alive
    FROM changes
)
SELECT step, MAX(alive) AS most, SUM(is_start) AS starts, SUM(change) AS growth
FROM sums GROUP BY step ORDER BY step
""")


class LoadQuery(NamedTuple):
    """Which team, which range of Unix times, and how long a step is."""

    team_id: TeamId
    start_s: int
    end_s: int
    step_s: int


class LoadPoint(NamedTuple):
    """One step."""

    at_s: int
    concurrent: int
    """The most that ran at once within the step."""
    starts_per_s: float


class TeamLoad:
    """Queries over the rows of one team, as far back as rows of ended sandboxes are kept."""

    def __init__(self, database: Database) -> None:
        """Use this database."""
        self._database = database

    async def points(self, query: LoadQuery) -> Sequence[LoadPoint]:
        """Every step of the range, oldest first; at least one."""

        def work(connection: Connection) -> Sequence[LoadPoint]:
            bound = {"team": query.team_id, "start_s": query.start_s, "end_s": query.end_s}
            rows = connection.execute(_STEPS, bound | {"step_s": query.step_s}).mappings()
            changed = {int(row["step"]): row for row in rows}
            alive = int(changed[-1]["growth"]) if -1 in changed else 0
            points: list[LoadPoint] = []
            for step in range((query.end_s - query.start_s) // query.step_s + 1):
                at_s, most, starts = query.start_s + step * query.step_s, alive, 0
                if (row := changed.get(step)) is not None:
                    most, starts = max(alive, int(row["most"])), int(row["starts"])
                    alive += int(row["growth"])
                points.append(LoadPoint(at_s, most, round(starts / query.step_s, 4)))
            return points

        return await self._database.read(work)
