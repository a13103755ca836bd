"""Pausing sandboxes, and having them run again.

One act on a sandbox after another: who comes second finds what the first one left. The node pauses by
itself at a time-out and resumes on traffic, so a row may be behind; where a node's answer shows that, the row
is made true and the request looks again.
"""

from contextlib import suppress

import anyio
import msgspec
import structlog
from starlette.responses import Response

from cloche_server.api import memory_shapes, shapes, shown
from cloche_server.api.control import ControlPlane
from cloche_server.api.node_word import learn, missed
from cloche_server.api.options import check_timeout
from cloche_server.api.owned import live_sandbox, not_found
from cloche_server.api.routing import Call, Route, reply, with_body
from cloche_server.api.timeouts import move_end
from cloche_server.node.messages import LogsQuery, PauseSandbox, ResumeSandbox
from cloche_server.store.sandboxes import PauseMode, SandboxRecord
from cloche_wire.errors import (
    ClocheError,
    Conflict,
    DeadlineExceeded,
    Internal,
    SandboxNotFound,
    Unavailable,
    UnsupportedOption,
)

BUSY_PATIENCE_S = 10.0
"""How long a connect waits for a pause or a wake that the node has begun by itself."""
BUSY_RETRY_S = 0.05

log = structlog.get_logger()


class PausingEndpoints:
    """Endpoints that pause a sandbox, or give one back that runs."""

    def __init__(self, control: ControlPlane) -> None:
        """Work with these parts."""
        self._control = control
        self._limits = control.config.limits

    def routes(self) -> list[Route]:
        """What is served."""
        one = "/sandboxes/{id}"
        return [
            Route("POST", f"{one}/pause", with_body(memory_shapes.PauseBody, self.pause)),
            Route("POST", f"{one}/resume", with_body(memory_shapes.ResumeBody, self.resume)),
            Route("POST", f"/v2{one}/connect", with_body(shapes.ConnectBody, self.connect)),
            Route("POST", f"{one}/connect", with_body(shapes.ConnectBodyV1, self.connect_v1)),
        ]

    async def pause(self, call: Call, body: memory_shapes.PauseBody) -> Response:
        """`POST /sandboxes/{id}/pause`: afterwards no process of it is left, and what was kept is on disk."""
        record = await live_sandbox(self._control, call)
        async with self._control.pauses.of(record.id):
            record = await live_sandbox(self._control, call)
            if record.is_paused:
                raise _already_paused(record)
            if body.require_healthy_guest:
                await self._require_agent(record)
            await self._pause(record, "full" if body.memory else "filesystem")
        log.info("sandbox.paused", sandbox_id=record.id, team_id=record.team_id, memory=body.memory)
        return Response(status_code=204)

    async def resume(self, call: Call, body: memory_shapes.ResumeBody) -> Response:
        """`POST /sandboxes/{id}/resume`, as clients before the v2 interface call it."""
        check_timeout(body.timeout, self._limits)
        record = await live_sandbox(self._control, call)
        pauses = record.lifecycle.get("onTimeout") == "pause"
        if body.auto_pause is not None and body.auto_pause != pauses:
            raise UnsupportedOption(
                "autoPause of a resume is not supported: what a time-out does is settled by the create",
                hint="leave it out",
            )
        async with self._control.pauses.of(record.id):
            record = await live_sandbox(self._control, call)
            if not record.is_paused:
                raise _already_running(record)
            try:
                resumed = await self._resume(record, body.timeout, keep_memory=body.memory is not False)
            except Conflict as error:
                state = await learn(self._control, record)
                if state is not None and state.state == "running":
                    raise _already_running(record) from error
                raise
        return reply(201, shown.sandbox(self._control.config, resumed))

    async def connect(self, call: Call, body: shapes.ConnectBody) -> Response:
        """`POST /v2/sandboxes/{id}/connect`: puts the end off, never forward; what is paused runs again."""
        timeout_s = self._limits.default_timeout_s if body.timeout is msgspec.UNSET else body.timeout
        check_timeout(timeout_s, self._limits)
        record = await live_sandbox(self._control, call)
        async with self._control.pauses.of(record.id):
            return await self._connect(call, timeout_s, keep_memory=body.memory is not False)

    async def connect_v1(self, call: Call, body: shapes.ConnectBodyV1) -> Response:
        """`POST /sandboxes/{id}/connect`: the timeout is required."""
        return await self.connect(call, shapes.ConnectBody(body.timeout, body.memory))

    # --- steps --------------------

    async def _connect(self, call: Call, timeout_s: int, *, keep_memory: bool) -> Response:
        patience = anyio.current_time() + BUSY_PATIENCE_S
        while True:
            record = await live_sandbox(self._control, call)
            try:
                if record.is_paused:
                    record = await self._resume(record, timeout_s, keep_memory=keep_memory)
                    return reply(201, shown.sandbox(self._control.config, record))
                record = await move_end(self._control, record, timeout_s, only_extend=True, is_needed=True)
                return reply(200, shown.sandbox(self._control.config, record))
            except Conflict:
                # The row was behind the node, or the node is in the middle of a pause or a wake.
                await learn(self._control, record)
                if anyio.current_time() > patience:
                    raise
            await anyio.sleep(BUSY_RETRY_S)

    async def _require_agent(self, record: SandboxRecord) -> None:
        """Refuse the pause of a sandbox whose agent hangs: so it would be when it is resumed."""
        now_ms = int(self._control.clock.now().timestamp() * 1000)
        try:
            await self._control.placement.logs(LogsQuery(record.id, now_ms))
        except SandboxNotFound as error:
            raise await missed(self._control, record) from error
        except Internal as error:
            raise Unavailable(
                f"sandbox does not answer, it was not paused: {record.id}",
                hint="pause it without requireHealthyGuest, or kill it",
            ) from error

    async def _pause(self, record: SandboxRecord, mode: PauseMode) -> None:
        """Running → paused; on any error as the node says."""
        order = PauseSandbox(record.id, memory=mode == "full")
        try:
            with self._control.creations.hold(record.id):
                await self._control.placement.pause(order)
                now = self._control.clock.now()
                await self._control.store.pausing.mark_paused(record.team_id, record.id, now, mode=mode)
        except SandboxNotFound as error:
            raise await missed(self._control, record) from error
        except Conflict as error:
            if await self._is(record, "paused"):  # by its time-out
                raise _already_paused(record) from error
            raise
        except (Unavailable, DeadlineExceeded):
            if not await self._is(record, "paused"):
                raise

    async def _resume(self, record: SandboxRecord, timeout_s: int, *, keep_memory: bool) -> SandboxRecord:
        """Paused → running; on any error as the node says.

        Raises:
            ResourceExhausted: As many run as may.
            Conflict: It is not paused, or the node is in the middle of something with it.
            SnapshotUnusable: What was kept is damaged; it stays paused.
        """
        try:
            with self._control.creations.hold(record.id):
                return await self._resume_held(record, ResumeSandbox(record.id, timeout_s, keep_memory))
        except SandboxNotFound as error:
            raise await missed(self._control, record) from error
        except (Unavailable, DeadlineExceeded):
            if not await self._is(record, "running"):
                raise
        resumed = await self._control.store.sandboxes.get(record.team_id, record.id)
        if resumed is None or resumed.state != "running":
            raise not_found(record.id)
        return resumed

    async def _resume_held(self, record: SandboxRecord, order: ResumeSandbox) -> SandboxRecord:
        pausing, most = self._control.store.pausing, self._limits.max_sandboxes
        if not await pausing.begin_resume(record.team_id, record.id, max_running=most):
            raise Conflict(f"Sandbox {record.id} is not paused")
        try:
            state = await self._control.placement.resume(order)
            now = self._control.clock.now()
            resumed = await pausing.mark_running(record.team_id, record.id, state.end_at, now)
        except BaseException:
            # What cannot be undone now stays `resuming`, and is undone by the next comparison.
            with anyio.CancelScope(shield=True), suppress(ClocheError):
                await pausing.abandon_resume(record.team_id, record.id)
            raise
        if resumed is None:
            raise not_found(record.id)
        log.info("sandbox.resumed", sandbox_id=record.id, team_id=record.team_id, memory=order.memory)
        return resumed

    async def _is(self, record: SandboxRecord, wanted: str) -> bool:
        """Whether the node says so, after that was written down. An unknown state is none."""
        with suppress(Unavailable, DeadlineExceeded):
            state = await learn(self._control, record)
            return state is not None and state.state == wanted
        return False


def _already_paused(record: SandboxRecord) -> Conflict:
    return Conflict(f"Error pausing sandbox - sandbox '{record.id}' is already paused")


def _already_running(record: SandboxRecord) -> Conflict:
    return Conflict(f"Sandbox {record.id} is already running")
