"""What sandboxes and teams use."""

from datetime import UTC, datetime

from starlette.responses import Response

from cloche_server.api import shapes
from cloche_server.api.control import ControlPlane
from cloche_server.api.owned import live_sandbox
from cloche_server.api.routing import Call, Route, reply, with_query
from cloche_server.ids import SandboxId, is_sandbox_id
from cloche_server.node.messages import MetricPoint, MetricsQuery, SandboxMetrics
from cloche_server.store.team_load import LoadQuery
from cloche_wire.errors import InvalidArgument, NotFound

MAX_SANDBOXES = 100
LATEST_TIME_S = 0xFFFF_FFFF
DEFAULT_TEAM_RANGE_S = 24 * 3600
LONGEST_TEAM_RANGE_S = 31 * 24 * 3600
SHORTEST_STEP_S = 5
MAX_STEPS = 288
"""Points of a team's answer: 5 minutes each for a day."""


class MetricsEndpoints:
    """Endpoints named `metrics`."""

    def __init__(self, control: ControlPlane) -> None:
        """Work with these parts."""
        self._control = control

    def routes(self) -> list[Route]:
        """What is served."""
        team = "/teams/{team}/metrics"
        return [
            Route("GET", "/sandboxes/metrics", with_query(shapes.ManyMetricsQuery, self.latest)),
            Route("GET", "/sandboxes/{id}/metrics", with_query(shapes.RangeQuery, self.of_one)),
            Route("GET", team, with_query(shapes.RangeQuery, self.of_team)),
            Route("GET", f"{team}/max", with_query(shapes.MaxQuery, self.max_of_team)),
        ]

    async def of_one(self, call: Call, query: shapes.RangeQuery) -> Response:
        """`GET /sandboxes/{id}/metrics`: points within the range, oldest first."""
        _check_range(query)
        record = await live_sandbox(self._control, call)
        end_s = LATEST_TIME_S if query.end is None else query.end
        asked = MetricsQuery([record.id], query.start or 0, end_s)
        found = await self._control.placement.metrics(asked)
        return reply(200, [_shown(one, point) for one in found for point in one.points])

    async def latest(self, call: Call, query: shapes.ManyMetricsQuery) -> Response:
        """`GET /sandboxes/metrics`: the newest point of each of the caller's own."""
        ids = [*dict.fromkeys(filter(None, query.sandbox_ids.split(",")))]
        if len(ids) > MAX_SANDBOXES:
            raise InvalidArgument(f"Too many sandboxes requested, maximum is {MAX_SANDBOXES}")
        if not all(map(is_sandbox_id, ids)):
            raise InvalidArgument("Invalid sandbox ID")
        team = call.caller.team_id
        mine = [*await self._control.store.sandboxes.running_of([SandboxId(one) for one in ids], team)]
        found = await self._control.placement.metrics(MetricsQuery([*mine], only_latest=True))
        shown = {one.sandbox_id: _shown(one, one.points[-1]) for one in found if one.points}
        return reply(200, shapes.LatestMetrics(shown))

    async def of_team(self, call: Call, query: shapes.RangeQuery) -> Response:
        """`GET /teams/{id}/metrics`: how many sandboxes lived at once, and how fast they were made."""
        points = await self._control.store.team_load.points(self._team_query(call, query))
        return reply(
            200,
            [
                shapes.TeamMetric(time_of(one.at_s), one.at_s, one.concurrent, one.starts_per_s)
                for one in points
            ],
        )

    async def max_of_team(self, call: Call, query: shapes.MaxQuery) -> Response:
        """`GET /teams/{id}/metrics/max`: the highest value and when it was reached."""
        points = await self._control.store.team_load.points(
            self._team_query(call, shapes.RangeQuery(query.start, query.end))
        )
        is_rate = query.metric == "sandbox_start_rate"
        values = [(one.starts_per_s if is_rate else float(one.concurrent), one.at_s) for one in points]
        value, at_s = max(values, key=lambda pair: (pair[0], -pair[1]))
        return reply(200, shapes.MaxTeamMetric(time_of(at_s), at_s, value))

    def _team_query(self, call: Call, query: shapes.RangeQuery) -> LoadQuery:
        if call.params["team"] != call.caller.team_id:
            raise NotFound("team not found", hint="a key reads the metrics of its own team only")
        _check_range(query)
        end_s = int(self._control.clock.now().timestamp()) if query.end is None else query.end
        start_s = end_s - DEFAULT_TEAM_RANGE_S if query.start is None else query.start
        if end_s - start_s > LONGEST_TEAM_RANGE_S:
            raise InvalidArgument("the range of a team's metrics is longer than 31 days")
        step_s = max(SHORTEST_STEP_S, -(-(end_s - start_s) // MAX_STEPS))
        return LoadQuery(call.caller.team_id, max(0, start_s), end_s, step_s)


def _check_range(query: shapes.RangeQuery) -> None:
    for value in (query.start, query.end):
        if value is not None and not 0 <= value <= LATEST_TIME_S:
            raise InvalidArgument("start and end are Unix times in seconds")
    if query.start is not None and query.end is not None and query.start > query.end:
        raise InvalidArgument("start is after end")


def _shown(one: SandboxMetrics, point: MetricPoint) -> shapes.SandboxMetric:
    return shapes.SandboxMetric(
        time_of(point.at_s),
        point.at_s,
        one.cpu_count,
        point.cpu_used_pct,
        point.memory_used_bytes,
        one.memory_total_bytes,
        point.memory_cache_bytes,
        point.disk_used_bytes,
        one.disk_total_bytes,
    )


def time_of(at_s: float) -> datetime:
    """Return a Unix time as the wire writes it."""
    return datetime.fromtimestamp(at_s, UTC)
