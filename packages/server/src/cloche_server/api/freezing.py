"""Having a sandbox stand still: an endpoint of our own, which E2B has none of."""

import structlog
from starlette.responses import Response

from cloche_server.api.control import ControlPlane
from cloche_server.api.node_word import missed
from cloche_server.api.owned import live_sandbox
from cloche_server.api.routing import Call, Route
from cloche_server.node.messages import FreezeSandbox
from cloche_wire.errors import Conflict, SandboxNotFound

log = structlog.get_logger()


class FreezeEndpoints:
    """`POST /sandboxes/{id}/freeze`."""

    def __init__(self, control: ControlPlane) -> None:
        """Work with these parts."""
        self._control = control

    def routes(self) -> list[Route]:
        """What is served."""
        return [Route("POST", "/sandboxes/{id}/freeze", self.freeze)]

    async def freeze(self, call: Call) -> Response:
        """Have it use no CPU until something needs it; it runs on for its time, and for everybody."""
        record = await live_sandbox(self._control, call)
        if record.is_paused:
            raise Conflict(f"Sandbox {record.id} is paused and cannot be frozen; resume it first")
        try:
            await self._control.placement.freeze(FreezeSandbox(record.id))
        except SandboxNotFound as error:
            raise await missed(self._control, record) from error
        log.info("sandbox.frozen", sandbox_id=record.id, team_id=record.team_id)
        return Response(status_code=204)
