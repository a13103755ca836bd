"""A placement without a node: sandboxes are entries of a dict, failures are switched on by the test."""

from collections.abc import AsyncGenerator, Sequence
from datetime import timedelta
from typing import Literal

import anyio
import msgspec

from cloche_server.clock import Clock
from cloche_server.node.messages import (
    CreateSandbox,
    CreateVolume,
    EndReason,
    FreezeSandbox,
    LogEntry,
    LogsQuery,
    MetricPoint,
    MetricsQuery,
    PauseSandbox,
    ResumeSandbox,
    SandboxEnded,
    SandboxMetrics,
    SandboxState,
    SetEgress,
    SetTimeout,
    SnapshotTaken,
    TakeSnapshot,
)
from cloche_server.placement.base import LinkUp
from cloche_server.placement.ready import ReadyBoard
from cloche_wire.errors import (
    ClocheError,
    Conflict,
    SandboxNotFound,
    SnapshotNotFound,
    Unavailable,
    UnsupportedOption,
)


class FakePlacement:
    """See `cloche_server.placement.base.Placement`."""

    def __init__(self, clock: Clock) -> None:
        self.clock = clock
        self.ready = ReadyBoard()
        self.frozen: set[str] = set()
        self.timeouts: list[SetTimeout] = []
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
        self.can_keep = True
        """Whether its isolation can pause and copy sandboxes."""
        self.fails_pause: ClocheError | None = None
        """Raised by `pause` and `snapshot` while set."""
        self.fails_resume: ClocheError | None = None
        """Raised by `resume` while set."""
        self.fails_after_act: ClocheError | None = None
        """Raised by `pause`, `resume` and `snapshot` when all is done: the link broke before the answer."""
        self.paused: list[PauseSandbox] = []
        self.resumed: list[ResumeSandbox] = []
        self.snapshots: dict[str, TakeSnapshot] = {}
        self.taken: list[TakeSnapshot] = []
        """All that ever were."""
        self.act_gate: anyio.Event | None = None
        """`pause`, `resume` and `snapshot` wait for it before they do anything."""
        self.act_asked = anyio.Event()
        """Set when one of them is called."""
        self.points: list[MetricPoint] = []
        """What every sandbox has used."""
        self.logged: dict[str, list[LogEntry]] = {}
        """What has happened in each sandbox."""
        self._events: list[SandboxEnded | SandboxState] = []
        self._wake = anyio.Event()
        self.idle = anyio.Event()
        """Set when a watcher has taken every event and waits for more."""

    async def create(self, sandbox: CreateSandbox, *, timeout_s: float) -> SandboxState:
        self._fail()
        self.created.append(sandbox)
        self.asked.set()
        if self.gate is not None:
            await self.gate.wait()
        if sandbox.on_timeout == "pause" and not self.can_keep:
            raise _unsupported()
        if sandbox.snapshot_id is not None and sandbox.snapshot_id not in self.snapshots:
            raise SnapshotNotFound(f"no such snapshot: {sandbox.snapshot_id}")
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
        self.timeouts.append(timeout)
        state = self._find(timeout.sandbox_id, "running")
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
        state = self._find(order.sandbox_id, "running")
        self.egress.append(order)
        self.alive[order.sandbox_id] = msgspec.structs.replace(state, egress_digest=order.digest)

    async def pause(self, order: PauseSandbox) -> None:
        await self._enter(self.fails_pause)
        state = self._find(order.sandbox_id, "running")
        self.paused.append(order)
        self.alive[order.sandbox_id] = msgspec.structs.replace(state, state="paused")
        self._leave()

    async def freeze(self, order: FreezeSandbox) -> None:
        await self._enter(self.fails_pause)
        self._find(order.sandbox_id, "running")
        self.frozen.add(order.sandbox_id)
        self._leave()

    async def resume(self, order: ResumeSandbox) -> SandboxState:
        await self._enter(self.fails_resume)
        state = self._find(order.sandbox_id, "paused")
        self.resumed.append(order)
        end_at = self.clock.now() + timedelta(seconds=order.timeout_s)
        resumed = msgspec.structs.replace(state, state="running", end_at=end_at)
        self.alive[order.sandbox_id] = resumed
        self._leave()
        return resumed

    async def snapshot(self, order: TakeSnapshot) -> SnapshotTaken:
        await self._enter(self.fails_pause)
        self._find(order.sandbox_id, "running")
        self.snapshots[order.snapshot_id] = order
        self.taken.append(order)
        self._leave()
        return SnapshotTaken(order.snapshot_id, 4096, 100)

    async def remove_snapshot(self, snapshot_id: str) -> None:
        self._fail()
        self.snapshots.pop(snapshot_id, None)

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

    async def watch(self) -> AsyncGenerator[LinkUp | SandboxEnded | SandboxState, None]:
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
        self._tell(SandboxEnded(sandbox_id, reason))

    def turn(self, sandbox_id: str, to: Literal["running", "paused"]) -> None:
        """Let a sandbox be paused by its time-out, or woken by traffic, and tell the watcher."""
        self.alive[sandbox_id] = msgspec.structs.replace(self.alive[sandbox_id], state=to)
        self._tell(self.alive[sandbox_id])

    def _tell(self, event: SandboxEnded | SandboxState) -> None:
        self._events.append(event)
        self.idle = anyio.Event()
        self._wake.set()

    def _find(self, sandbox_id: str, wanted: Literal["running", "paused"]) -> SandboxState:
        if (state := self.alive.get(sandbox_id)) is None:
            raise SandboxNotFound(f"no such sandbox: {sandbox_id}")
        if state.state != wanted:
            raise Conflict(f"sandbox is {state.state}: {sandbox_id}")
        return state

    async def _enter(self, failure: ClocheError | None) -> None:
        self._fail()
        self.act_asked.set()
        if self.act_gate is not None:
            await self.act_gate.wait()
        if failure is not None:
            raise failure
        if not self.can_keep:
            raise _unsupported()

    def _leave(self) -> None:
        if self.fails_after_act is not None:
            raise self.fails_after_act

    def _fail(self) -> None:
        if self.fails is not None:
            raise self.fails


def _unsupported() -> UnsupportedOption:
    return UnsupportedOption("isolation 'fake' cannot keep the memory of a sandbox", hint="'gvisor' can")
