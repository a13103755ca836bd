"""Making, asking for and ending sandboxes.

At most once: the row `creating` is there before a node is asked, and whatever a create may have left is
killed before its row ends. What a killed api leaves, `reconcile` clears away.
"""

import hashlib
import re

import anyio
import msgspec
import structlog
from starlette.responses import Response

from cloche_server.api import shapes, shown
from cloche_server.api.control import ControlPlane
from cloche_server.api.network_options import check_update
from cloche_server.api.node_word import missed
from cloche_server.api.options import Options, check_options
from cloche_server.api.owned import live_sandbox
from cloche_server.api.routing import Call, Route, reply, with_body
from cloche_server.api.volumes import resolve_mounts
from cloche_server.ids import SandboxId, new_access_token, new_sandbox_id
from cloche_server.node.messages import CreateSandbox, SandboxReady, SetEgress, VolumeMount
from cloche_server.store.sandboxes import IdempotencyClaim, SandboxRecord
from cloche_server.store.templates import Template
from cloche_wire.errors import (
    ClocheError,
    Conflict,
    InvalidArgument,
    SandboxNotFound,
    Unavailable,
)

CLEAN_UP_TIMEOUT_S = 10.0
_IDEMPOTENCY_KEY = re.compile(r"[A-Za-z0-9_-]{1,255}\Z")

log = structlog.get_logger()


class SandboxEndpoints:
    """Endpoints below `/sandboxes`, but for the listings."""

    def __init__(self, control: ControlPlane) -> None:
        """Work with these parts."""
        self._control = control
        self._limits = control.config.limits

    def routes(self) -> list[Route]:
        """What is served."""
        one = "/sandboxes/{id}"
        create_v2 = with_body(shapes.NewSandbox, self.create_v2)
        create_v1 = with_body(shapes.NewSandbox, self.create_v1)
        return [
            Route("POST", "/v2/sandboxes", create_v2, retry_safe=False, creates=True),
            Route("POST", "/sandboxes", create_v1, retry_safe=False, creates=True),
            Route("GET", one, self.detail),
            Route("DELETE", one, self.kill),
            Route("PUT", f"{one}/network", with_body(shapes.NetworkUpdate, self.set_network)),
        ]

    # --- create --------------------

    async def create_v2(self, call: Call, body: shapes.NewSandbox) -> Response:
        """`POST /v2/sandboxes`."""
        return await self.create_sandbox(call, body, self._limits.default_timeout_s)

    async def create_v1(self, call: Call, body: shapes.NewSandbox) -> Response:
        """`POST /sandboxes`, as clients before the v2 interface call it."""
        return await self.create_sandbox(call, body, self._limits.legacy_timeout_s)

    async def create_sandbox(self, call: Call, body: shapes.NewSandbox, default_timeout_s: int) -> Response:
        """Check the wish, write the row, ask the placement, answer 201."""
        options = check_options(body, self._control.config, default_timeout_s=default_timeout_s)
        template = await self._control.templates.resolve(call.caller, body.template_id)
        mounts = await resolve_mounts(self._control, call.caller.team_id, body.volume_mounts or [])
        claim = _idempotency_claim(call)
        ready = None if mounts else self._take_ready(call, template)
        sandbox_id = new_sandbox_id() if ready is None else SandboxId(ready.sandbox_id)
        record = self._new_record(call, body, options, template, sandbox_id)
        with self._control.creations.hold(record.id):
            try:
                reservation = await self._control.store.sandboxes.reserve(
                    record, claim, max_running=self._limits.max_sandboxes
                )
                if reservation.is_new:
                    ready = None
                    record = await self._start(record, body, options, mounts)
            finally:
                if ready is not None:
                    self._control.placement.ready.add(ready)  # nobody was told of it
        if not reservation.is_new:
            record = await self._await_earlier(reservation.record)
        return reply(201, shown.sandbox(self._control.config, record))

    def _take_ready(self, call: Call, template: Template) -> SandboxReady | None:
        board = self._control.placement.ready
        return board.take(call.caller.team_id, template.build_id, template.cpu_count, template.memory_mib)

    def _new_record(
        self,
        call: Call,
        body: shapes.NewSandbox,
        options: Options,
        template: Template,
        sandbox_id: SandboxId,
    ) -> SandboxRecord:
        asked = body.template_id.lower().partition(":")[0].rpartition("/")[2]
        now = self._control.clock.now()
        return SandboxRecord(
            sandbox_id,
            call.caller.team_id,
            template.id,
            template.build_id,
            alias=asked if asked in template.aliases else template.name,
            metadata=body.metadata,
            access_token=new_access_token(),
            traffic_token=None if options.network.allow_public_traffic else new_access_token(),
            mask_request_host=options.network.mask_request_host,
            allow_internet=options.network.allow_internet,
            cpu_count=template.cpu_count,
            memory_mib=template.memory_mib,
            disk_mib=template.disk_mib,
            started_at=now,
            end_at=now,
            network=options.network.as_given,
            lifecycle=options.stored_lifecycle,
            volume_mounts=msgspec.to_builtins(body.volume_mounts or []),
        )

    async def _start(
        self,
        record: SandboxRecord,
        body: shapes.NewSandbox,
        options: Options,
        mounts: tuple[VolumeMount, ...],
    ) -> SandboxRecord:
        """Creating → running; on any error → ended, with nothing left on a node that can be reached."""
        order = CreateSandbox(
            record.id,
            record.team_id,
            record.template_id,
            record.build_id,
            options.timeout_s,
            record.access_token,
            record.traffic_token,
            body.env_vars,
            record.metadata,
            record.cpu_count,
            record.memory_mib,
            options.network.egress.allow_internet,
            record.mask_request_host,
            mounts,
            options.network.egress.policy,
            options.network.https_ports,
            options.lifecycle.on_timeout,
            options.pause_memory,
            options.lifecycle.auto_resume,
        )
        began_s = self._control.clock.boot_s()
        try:
            state = await self._control.placement.create(order, timeout_s=self._limits.start_timeout_s)
            running = await self._control.store.sandboxes.mark_running(
                record.team_id,
                record.id,
                started_at=state.started_at,
                end_at=state.end_at,
                isolation=state.isolation,
            )
            if running is None:
                raise Unavailable(f"sandbox ended while it was made: {record.id}")
        except BaseException as error:
            with anyio.CancelScope(shield=True):
                await self._abandon(record, error)
            raise
        took_ms = round(1000 * (self._control.clock.boot_s() - began_s))
        log.info("sandbox.created", sandbox_id=record.id, team_id=record.team_id, ms=took_ms)
        return running

    async def _abandon(self, record: SandboxRecord, cause: BaseException) -> None:
        log.warning("sandbox.create_failed", sandbox_id=record.id, error=f"{type(cause).__name__}: {cause}")
        with anyio.move_on_after(CLEAN_UP_TIMEOUT_S):
            try:
                await self._control.placement.kill(record.id, "failed")
            except ClocheError as error:
                # Not there, as it should be; or the node is away, and the next reconciliation kills it.
                log.debug("sandbox.nothing_to_abandon", sandbox_id=record.id, error=str(error))
        try:
            now = self._control.clock.now()
            await self._control.store.sandboxes.mark_ended(record.team_id, record.id, "failed", now)
        except ClocheError as error:
            # The row stays `creating` with nobody making it: the next reconciliation ends it.
            log.warning("sandbox.row_left", sandbox_id=record.id, error=str(error))

    async def _await_earlier(self, record: SandboxRecord) -> SandboxRecord:
        """The sandbox that an earlier request with the same idempotency key made or is making."""
        with anyio.move_on_after(self._limits.start_timeout_s):
            await self._control.creations.wait(record.id)
        found = await self._control.store.sandboxes.get(record.team_id, record.id)
        if found is None or found.state == "creating" or not _ran(found):
            raise Unavailable("the first request with this idempotency key has not made a sandbox")
        if found.state == "ended":
            raise Conflict(f"the sandbox made with this idempotency key has ended: {found.id}")
        return found

    # --- one sandbox --------------------

    async def detail(self, call: Call) -> Response:
        """`GET /sandboxes/{id}`."""
        record = await live_sandbox(self._control, call)
        return reply(200, shown.sandbox_detail(self._control.config, record))

    async def kill(self, call: Call) -> Response:
        """`DELETE /sandboxes/{id}`: afterwards no process of it is left, nor what a pause has kept."""
        record = await live_sandbox(self._control, call)
        try:
            await self._control.placement.kill(record.id, "killed")
        except SandboxNotFound as error:
            raise await missed(self._control, record) from error
        now = self._control.clock.now()
        await self._control.store.sandboxes.mark_ended(record.team_id, record.id, "killed", now)
        log.info("sandbox.killed", sandbox_id=record.id, team_id=record.team_id)
        return Response(status_code=204)

    async def set_network(self, call: Call, body: shapes.NetworkUpdate) -> Response:
        """`PUT /sandboxes/{id}/network`: holds for every packet once it is answered."""
        record = await self._open_to_changes(call)
        async with self._control.network_changes.of(record.id):
            record = await self._open_to_changes(call)
            exceptions = self._control.config.egress.exceptions
            egress, network = check_update(body, record.network, exceptions)
            order = SetEgress(record.id, egress.allow_internet, egress.policy)
            try:
                await self._control.placement.set_egress(order)
            except SandboxNotFound as error:
                raise await missed(self._control, record) from error
            allows = body.allow_internet_access is not False
            # A death right here leaves the old row: `reconcile` then takes the node back to what it shows.
            await self._control.store.sandboxes.set_network(record.team_id, record.id, network, allows)
        return Response(status_code=204)

    async def _open_to_changes(self, call: Call) -> SandboxRecord:
        record = await live_sandbox(self._control, call)
        if record.is_paused:
            raise Conflict(f"Sandbox {record.id} is paused and cannot be changed; resume it first")
        return record


def _ran(record: SandboxRecord) -> bool:
    return bool(record.isolation)


def _idempotency_claim(call: Call) -> IdempotencyClaim | None:
    key = call.request.headers.get("idempotency-key")
    if key is None:
        return None
    if _IDEMPOTENCY_KEY.match(key) is None:
        raise InvalidArgument("Idempotency-Key is not 1 to 255 of [A-Za-z0-9_-]")
    digest = hashlib.sha256(call.request.url.path.encode() + b"\0" + call.body)
    return IdempotencyClaim(key, digest.hexdigest())
