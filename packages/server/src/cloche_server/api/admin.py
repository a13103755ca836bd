"""What the operator does across teams."""

import structlog
from starlette.responses import Response

from cloche_server.api import shapes
from cloche_server.api.control import ControlPlane
from cloche_server.api.routing import Call, Route, reply
from cloche_server.ids import SandboxId, TeamId
from cloche_server.store.sandboxes import PAUSED, RUNNING
from cloche_wire.errors import ClocheError, SandboxNotFound

log = structlog.get_logger()


class AdminEndpoints:
    """Endpoints below `/admin`; all of them ask for the operator's token."""

    def __init__(self, control: ControlPlane) -> None:
        """Work with these parts."""
        self._control = control

    def routes(self) -> list[Route]:
        """What is served."""
        return [
            Route("POST", "/admin/teams/{team}/sandboxes/kill", self.kill_all, admin=True),
            Route("GET", "/admin/sandboxes/running-counts", self.counts, admin=True),
        ]

    async def kill_all(self, call: Call) -> Response:
        """`POST /admin/teams/{team}/sandboxes/kill`: end all a team has, one after the other."""
        team = TeamId(call.params["team"])
        there = (await self._control.store.sandboxes.by_team((*RUNNING, *PAUSED))).get(team, ())
        killed = [sandbox for sandbox in there if await self._kill(team, sandbox)]
        return reply(200, shapes.Killed(len(killed), len(there) - len(killed)))

    async def counts(self, _: Call) -> Response:
        """`GET /admin/sandboxes/running-counts`: by team."""
        found = await self._control.store.sandboxes.by_team(RUNNING)
        return reply(200, {team: len(sandboxes) for team, sandboxes in found.items()})

    async def _kill(self, team: TeamId, sandbox: SandboxId) -> bool:
        reason = "killed"
        try:
            await self._control.placement.kill(sandbox, reason)
        except SandboxNotFound:
            reason = "lost"
        except ClocheError as error:
            log.warning("admin.kill_failed", sandbox_id=sandbox, team_id=team, error=str(error))
            return False
        now = self._control.clock.now()
        await self._control.store.sandboxes.mark_ended(team, sandbox, reason, now)
        log.info("sandbox.killed", sandbox_id=sandbox, team_id=team, by="admin")
        return True
