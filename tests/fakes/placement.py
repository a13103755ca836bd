"""A placement without a node: sandboxes are entries of a dict, failures are switched on by the test."""

from collections.abc import AsyncGenerator, Sequence
from datetime import timedelta

import anyio
import msgspec

from cloche_server.clock import Clock
from cloche_server.node.messages import (
    CreateSandbox,
    CreateVolume,
    EndReason,
    LogEntry,
    LogsQuery,
    MetricPoint,
    MetricsQuery,
    SandboxEnded,
    SandboxMetrics,
    SandboxState,
    SetEgress,
    SetTimeout,
)
from cloche_server.placement.base import LinkUp
from cloche_server.placement.ready import ReadyBoard
from cloche_wire.errors import ClocheError, Conflict, SandboxNotFound, Unavailable


class FakePlacement:
    """See `cloche_server.placement.base.Placement`."""

    def __init__(self, clock: Clock) -> None:
        self.clock = clock
        self.ready = ReadyBoard()
        self.alive: dict[str, SandboxState] = {}
        self.created: list[CreateSandbox] = []
        self.egress: list[SetEgress] = []
        self.killed: list[tuple[str, EndReason]] = []
        self.fails: ClocheError | None = None
        """Raised by every verb while set."""
        self.fails_after_create: ClocheError | None = None
        """Raised by `create` once the sandbox is there: the link broke before the answer."""
        self.volumes: dict[str, CreateVolume] = {}
        self.mounted: set[str] = set()
        """Volumes that a sandbox has."""
        self.fails_volume: ClocheError | None = None
        """Raised by `create_volume` while set."""
        self.unkillable: set[str] = set()
        self.gate: anyio.Event | None = None
        """`create` waits for it."""
        self.asked = anyio.Event()
        """Set when `create` is called."""
        self.points: list[MetricPoint] = []
        """What every sandbox has used."""
        self.logged: dict[str, list[LogEntry]] = {}
        """What has happened in each sandbox."""
        self._events: list[SandboxEnded] = []
        self._wake = anyio.Event()
        self.idle = anyio.Event()
        """Set when a watcher has taken every event and waits for more."""

    async def create(self, sandbox: CreateSandbox, *, timeout_s: float) -> SandboxState:
        self._fail()
        self.created.append(sandbox)
        self.asked.set()
        if self.gate is not None:
            await self.gate.wait()
        now = self.clock.now()
        state = SandboxState(
            sandbox.sandbox_id,
            sandbox.team_id,
            now,
            now + timedelta(seconds=sandbox.timeout_s),
            "fake",
            SetEgress(sandbox.sandbox_id, sandbox.allow_internet, sandbox.egress).digest,
        )
        self.alive[sandbox.sandbox_id] = state
        if self.fails_after_create is not None:
            raise self.fails_after_create
        return state

    async def kill(self, sandbox_id: str, reason: EndReason) -> None:
        self._fail()
        if sandbox_id in self.unkillable:
            raise Unavailable(f"cannot end: {sandbox_id}")
        if self.alive.pop(sandbox_id, None) is None:
            raise SandboxNotFound(f"no such sandbox: {sandbox_id}")
        self.killed.append((sandbox_id, reason))

    async def set_timeout(self, timeout: SetTimeout) -> SandboxState:
        self._fail()
        if (state := self.alive.get(timeout.sandbox_id)) is None:
            raise SandboxNotFound(f"no such sandbox: {timeout.sandbox_id}")
        end_at = self.clock.now() + timedelta(seconds=timeout.timeout_s)
        if timeout.only_extend:
            end_at = max(end_at, state.end_at)
        moved = msgspec.structs.replace(state, end_at=end_at)
        self.alive[state.sandbox_id] = moved
        return moved

    async def create_volume(self, volume: CreateVolume) -> None:
        self._fail()
        if self.fails_volume is not None:
            raise self.fails_volume
        self.volumes[volume.volume_id] = volume

    async def remove_volume(self, volume_id: str) -> None:
        self._fail()
        if volume_id in self.mounted:
            raise Conflict("volume is mounted in 1 sandboxes", hint="kill them first")
        self.volumes.pop(volume_id, None)

    async def set_egress(self, order: SetEgress) -> None:
        self._fail()
        if (state := self.alive.get(order.sandbox_id)) is None:
            raise SandboxNotFound(f"no such sandbox: {order.sandbox_id}")
        self.egress.append(order)
        self.alive[order.sandbox_id] = msgspec.structs.replace(state, egress_digest=order.digest)

    async def list(self) -> Sequence[SandboxState]:
        self._fail()
        return [*self.alive.values()]

    async def metrics(self, query: MetricsQuery) -> Sequence[SandboxMetrics]:
        self._fail()
        points = [point for point in self.points if query.start_s <= point.at_s <= query.end_s]
        if query.only_latest:
            points = self.points[-1:]
        alive = [name for name in query.sandbox_ids if name in self.alive]
        return [SandboxMetrics(name, 2, 2 << 30, 10 << 30, points) for name in alive]

    async def logs(self, query: LogsQuery) -> Sequence[LogEntry]:
        self._fail()
        if query.sandbox_id not in self.logged:
            raise SandboxNotFound(f"no such sandbox: {query.sandbox_id}")
        return [entry for entry in self.logged[query.sandbox_id] if entry.at_ms >= query.since_ms]

    async def watch(self) -> AsyncGenerator[LinkUp | SandboxEnded, None]:
        self._fail()
        yield LinkUp()
        while True:
            while self._events:
                yield self._events.pop(0)
            self._wake = anyio.Event()
            self.idle.set()
            await self._wake.wait()

    def end(self, sandbox_id: str, reason: EndReason) -> None:
        """Let a sandbox end by itself, and tell the watcher."""
        del self.alive[sandbox_id]
        self._events.append(SandboxEnded(sandbox_id, reason))
        self.idle = anyio.Event()
        self._wake.set()

    def _fail(self) -> None:
        if self.fails is not None:
            raise self.fails
