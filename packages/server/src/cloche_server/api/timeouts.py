"""Moving the end of a sandbox that runs."""

from starlette.responses import Response

from cloche_server.api import shapes
from cloche_server.api.control import ControlPlane
from cloche_server.api.node_word import missed
from cloche_server.api.options import check_timeout
from cloche_server.api.owned import not_found, running_sandbox
from cloche_server.api.routing import Call, Route, with_body
from cloche_server.node.messages import SetTimeout
from cloche_server.store.sandboxes import SandboxRecord
from cloche_wire.errors import InvalidArgument, SandboxNotFound


class TimeoutEndpoints:
    """Endpoints that set the end of one sandbox."""

    def __init__(self, control: ControlPlane) -> None:
        """Work with these parts."""
        self._control = control
        self._limits = control.config.limits

    def routes(self) -> list[Route]:
        """What is served."""
        one = "/sandboxes/{id}"
        return [
            Route("POST", f"{one}/timeout", with_body(shapes.SetTimeoutBody, self.set_timeout)),
            Route("POST", f"{one}/refreshes", with_body(shapes.RefreshBody, self.refresh)),
        ]

    async def set_timeout(self, call: Call, body: shapes.SetTimeoutBody) -> Response:
        """`POST /sandboxes/{id}/timeout`: counted from now, may shorten."""
        check_timeout(body.timeout, self._limits, may_be_over=True)
        record = await running_sandbox(self._control, call)
        await move_end(self._control, record, body.timeout, only_extend=False)
        return Response(status_code=204)

    async def refresh(self, call: Call, body: shapes.RefreshBody) -> Response:
        """`POST /sandboxes/{id}/refreshes`: extends only."""
        if not 0 <= body.duration <= min(3600, self._limits.max_timeout_s):
            raise InvalidArgument("duration is not between 0 and 3600 seconds")
        record = await running_sandbox(self._control, call)
        await move_end(self._control, record, body.duration, only_extend=True)
        return Response(status_code=204)


async def move_end(
    control: ControlPlane,
    record: SandboxRecord,
    timeout_s: int,
    *,
    only_extend: bool,
    is_needed: bool = False,
) -> SandboxRecord:
    """Have a running sandbox end so many seconds from now, or, if that is later, when it would have.

    With `is_needed` one that stands still goes on.

    Raises:
        SandboxNotFound: It has ended.
        Conflict: It is paused, or about to be.
    """
    try:
        state = await control.placement.set_timeout(SetTimeout(record.id, timeout_s, only_extend, is_needed))
    except SandboxNotFound as error:
        raise await missed(control, record) from error
    now = control.clock.now()
    moved = await control.store.sandboxes.set_end(record.team_id, record.id, state.end_at, now=now)
    if moved is None:
        raise not_found(record.id)
    return moved
