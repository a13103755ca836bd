"""Forks: many copies of one running sandbox, each a sandbox of its own from then on.

All are made of one snapshot that lives only as long as the request; what a killed api leaves of it goes with
the next comparison. Each copy fails for itself.
"""

from contextlib import suppress

import anyio
import msgspec
import structlog
from starlette.responses import Response

from cloche_server.api import memory_shapes, shapes, shown
from cloche_server.api.control import ControlPlane
from cloche_server.api.creation import order_of, start
from cloche_server.api.memory_shapes import ForkResult
from cloche_server.api.network_options import egress_of
from cloche_server.api.options import check_timeout
from cloche_server.api.owned import live_sandbox
from cloche_server.api.problems import problem_of
from cloche_server.api.routing import Call, Route, reply, with_body
from cloche_server.api.snapshots import CLEAN_UP_TIMEOUT_S, new_snapshot, take_away, take_snapshot
from cloche_server.api.volumes import resolve_mounts
from cloche_server.ids import new_access_token, new_sandbox_id
from cloche_server.node.messages import CreateSandbox
from cloche_server.store.sandboxes import SandboxRecord
from cloche_wire.errors import ClocheError, Conflict, InvalidArgument

MAX_FORKS = 100
FORKS_AT_ONCE = 6
"""More would only wait for each other on the machine's cores, and keep other creates waiting."""

log = structlog.get_logger()


class ForkEndpoints:
    """`POST /sandboxes/{id}/fork`."""

    def __init__(self, control: ControlPlane) -> None:
        """Work with these parts."""
        self._control = control
        self._limits = control.config.limits

    def routes(self) -> list[Route]:
        """What is served."""
        fork = with_body(memory_shapes.ForkBody, self.fork)
        return [Route("POST", "/sandboxes/{id}/fork", fork, retry_safe=False, creates=True)]

    async def fork(self, call: Call, body: memory_shapes.ForkBody) -> Response:
        """Stop the sandbox for a moment, have it run on, and make copies of what it was then."""
        if body.count < 1:
            raise InvalidArgument("Count must be at least 1")
        if body.count > MAX_FORKS:
            raise InvalidArgument(f"Count cannot be greater than {MAX_FORKS}")
        check_timeout(body.timeout, self._limits)
        parent = await live_sandbox(self._control, call)
        snapshot = new_snapshot(self._control, parent, has_memory=body.memory, is_temporary=True)
        with self._control.creations.hold(snapshot.id):
            async with self._control.pauses.of(parent.id):
                parent = await live_sandbox(self._control, call)
                if parent.is_paused:
                    raise Conflict(f"Sandbox {parent.id} is paused and cannot be forked; resume it first")
                order = await self._order(parent, body.timeout)
                await take_snapshot(self._control, parent, snapshot)
            try:
                order = msgspec.structs.replace(order, snapshot_id=snapshot.id)
                results = await self._make_all(parent, order, body.count)
            finally:
                # What cannot be taken away now is marked as temporary, and goes with the next comparison.
                with anyio.move_on_after(CLEAN_UP_TIMEOUT_S, shield=True), suppress(ClocheError):
                    await take_away(self._control, snapshot)
        made = sum(result.sandbox is not None for result in results)
        log.info("sandbox.forked", sandbox_id=parent.id, team_id=parent.team_id, asked=body.count, made=made)
        return reply(201, results)

    async def _order(self, parent: SandboxRecord, timeout_s: int) -> CreateSandbox:
        """What every child is made by, but for its own id and tokens."""
        exceptions = self._control.config.egress.exceptions
        egress = egress_of(parent.network, exceptions, allow_internet=parent.allow_internet)
        wished = msgspec.convert(parent.volume_mounts, list[shapes.VolumeMount])
        mounts = await resolve_mounts(self._control, parent.team_id, wished)
        return order_of(parent, egress, isolation=parent.isolation, timeout_s=timeout_s, mounts=mounts)

    async def _make_all(self, parent: SandboxRecord, order: CreateSandbox, count: int) -> list[ForkResult]:
        results: list[ForkResult] = []
        slots = anyio.CapacityLimiter(FORKS_AT_ONCE)

        async def make() -> None:
            async with slots:
                results.append(await self._make_one(parent, order))

        async with anyio.create_task_group() as tasks:
            for _ in range(count):
                tasks.start_soon(make)
        return results

    async def _make_one(self, parent: SandboxRecord, order: CreateSandbox) -> ForkResult:
        child = _child_of(parent, self._control)
        order = msgspec.structs.replace(
            order,
            sandbox_id=child.id,
            access_token=child.access_token,
            traffic_token=child.traffic_token,
        )
        try:
            with self._control.creations.hold(child.id):
                reserve = self._control.store.sandboxes.reserve
                await reserve(child, None, max_running=self._limits.max_sandboxes)
                made = await start(self._control, child, order)
        except ClocheError as error:
            return ForkResult(error=problem_of(error))
        return ForkResult(sandbox=shown.sandbox(self._control.config, made))


def _child_of(parent: SandboxRecord, control: ControlPlane) -> SandboxRecord:
    """A row like the parent's, with an id, tokens and a life of its own."""
    now = control.clock.now()
    return msgspec.structs.replace(
        parent,
        id=new_sandbox_id(),
        access_token=new_access_token(),
        traffic_token=None if parent.traffic_token is None else new_access_token(),
        started_at=now,
        end_at=now,
        state="creating",
        isolation="",
        snapshot_id=None,
        parent_id=parent.id,
        pause_mode="full",
        run=1,
    )
