"""Making, asking for and ending sandboxes."""

import hashlib
import re

import anyio
import msgspec
import structlog
from starlette.responses import Response

from cloche_server.api import shapes, shown
from cloche_server.api.control import ControlPlane
from cloche_server.api.creation import order_of, start, use
from cloche_server.api.network_options import check_update
from cloche_server.api.node_word import missed
from cloche_server.api.options import Options, check_options
from cloche_server.api.origins import Origin, resolve_origin, settle_isolation
from cloche_server.api.owned import live_sandbox
from cloche_server.api.routing import Call, Route, reply, with_body
from cloche_server.api.volumes import resolve_mounts
from cloche_server.ids import SandboxId, new_access_token, new_sandbox_id
from cloche_server.node.messages import SandboxReady, SetEgress
from cloche_server.store.sandboxes import IdempotencyClaim, SandboxRecord
from cloche_wire.errors import (
    Conflict,
    InvalidArgument,
    SandboxNotFound,
    Unavailable,
)

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
        origin = await resolve_origin(self._control, call.caller, body.template_id)
        isolation = settle_isolation(self._control.config, origin, body.isolation or "")
        if body.volume_mounts is None:
            body = msgspec.structs.replace(body, volume_mounts=list(origin.volume_mounts))
        mounts = await resolve_mounts(self._control, call.caller.team_id, body.volume_mounts or [])
        claim = _idempotency_claim(call)
        ready = None if mounts else self._take_ready(call, origin, isolation)
        sandbox_id = new_sandbox_id() if ready is None else SandboxId(ready.sandbox_id)
        record = self._new_record(call, body, options, origin, sandbox_id)
        order = order_of(
            record, options.network.egress, isolation=isolation, timeout_s=options.timeout_s, mounts=mounts
        )
        order = msgspec.structs.replace(order, env=body.env_vars)
        with self._control.creations.hold(record.id):
            if ready is not None and claim is None:
                record = await use(self._control, ready, record, order)
                return reply(201, shown.sandbox(self._control.config, record))
            try:
                reservation = await self._control.store.sandboxes.reserve(
                    record, claim, max_running=self._limits.max_sandboxes
                )
                if reservation.is_new:
                    ready = None
                    record = await start(self._control, record, order)
            finally:
                if ready is not None:
                    self._control.placement.ready.add(ready)  # nobody was told of it
        if not reservation.is_new:
            record = await self._await_earlier(reservation.record)
        return reply(201, shown.sandbox(self._control.config, record))

    def _take_ready(self, call: Call, origin: Origin, isolation: str) -> SandboxReady | None:
        if origin.snapshot_id is not None:
            return None  # what is made ahead is made of templates
        board = self._control.placement.ready
        return board.take(
            call.caller.team_id, origin.build_id, origin.cpu_count, origin.memory_mib, isolation
        )

    def _new_record(
        self,
        call: Call,
        body: shapes.NewSandbox,
        options: Options,
        origin: Origin,
        sandbox_id: SandboxId,
    ) -> SandboxRecord:
        now = self._control.clock.now()
        return SandboxRecord(
            sandbox_id,
            call.caller.team_id,
            origin.template_id,
            origin.build_id,
            alias=origin.alias,
            metadata=body.metadata,
            access_token=new_access_token(),
            traffic_token=None if options.network.allow_public_traffic else new_access_token(),
            mask_request_host=options.network.mask_request_host,
            allow_internet=options.network.allow_internet,
            cpu_count=origin.cpu_count,
            memory_mib=origin.memory_mib,
            disk_mib=origin.disk_mib,
            started_at=now,
            end_at=now,
            network=options.network.as_given,
            lifecycle=options.stored_lifecycle,
            volume_mounts=msgspec.to_builtins(body.volume_mounts or []),
            snapshot_id=origin.snapshot_id,
            parent_id=origin.parent_id,
        )

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
        frozen = self._control.placement.frozen
        return reply(200, shown.sandbox_detail(self._control.config, record, frozen))

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
