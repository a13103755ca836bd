"""The verbs by which the control plane acts on sandboxes and volumes, wherever they are."""

from collections.abc import AsyncGenerator, Collection, Sequence
from typing import NamedTuple, Protocol

from cloche_server.node.messages import (
    CreateSandbox,
    CreateVolume,
    EndReason,
    FreezeSandbox,
    LogEntry,
    LogsQuery,
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
from cloche_server.placement.ready import ReadyBoard


class LinkUp(NamedTuple):
    """First thing a watch yields: events flow from here on; ask `list` for what was before."""


class Placement(Protocol):
    """Where sandboxes are made. Nodes rule on whether one lives, the control plane on whose it is."""

    @property
    def ready(self) -> ReadyBoard:
        """Sandboxes made ahead: a `create` with the id of one, for its build and size, is done at once."""
        ...

    async def create(self, sandbox: CreateSandbox, *, timeout_s: float) -> SandboxState:
        """Make one sandbox; the answer comes when its agent has answered.

        Raises:
            TemplateNotFound: The node has no such build.
            ResourceExhausted: No slot is free.
            Unavailable: No node answers, or the link broke; the sandbox may have been made all the same.
            DeadlineExceeded: No answer within `timeout_s`; the same holds.
        """
        ...

    async def kill(self, sandbox_id: str, reason: EndReason) -> None:
        """End one sandbox; afterwards no process of it is left.

        Raises:
            SandboxNotFound: No node has it.
            Unavailable: No node answers.
            DeadlineExceeded: The node takes too long.
        """
        ...

    async def set_timeout(self, timeout: SetTimeout) -> SandboxState:
        """Move the end of one sandbox.

        Raises:
            SandboxNotFound: No node has it.
            Unavailable: No node answers.
            DeadlineExceeded: The node takes too long.
        """
        ...

    async def set_egress(self, order: SetEgress) -> None:
        """Replace what one sandbox may reach; afterwards that holds for its open connections too.

        Raises:
            SandboxNotFound: No node has it.
            Unavailable: No node answers.
            DeadlineExceeded: The node takes too long.
        """
        ...

    async def pause(self, order: PauseSandbox) -> None:
        """Put one sandbox on disk; afterwards that is safe there, and no process of it is left.

        Raises:
            SandboxNotFound: No node has it.
            Conflict: It is paused, or something else is being done with it.
            UnsupportedOption: Its isolation cannot; the message names one that can.
            NotEnoughSpace: It runs on.
            Unavailable: No node answers; it may be paused all the same.
            DeadlineExceeded: The node takes too long; the same holds.
        """
        ...

    async def freeze(self, order: FreezeSandbox) -> None:
        """Have one sandbox stand still until something needs it.

        Raises:
            SandboxNotFound: No node has it.
            Conflict: It is paused, or something else is being done with it.
            UnsupportedOption: Its isolation cannot.
            NotEnoughSpace: It runs on.
            Internal: It does not stand still, and runs on.
            Unavailable: No node answers.
            DeadlineExceeded: The node takes too long.
        """
        ...

    @property
    def frozen(self) -> Collection[str]:
        """Sandboxes that stand still, as far as nodes have told."""
        ...

    async def resume(self, order: ResumeSandbox) -> SandboxState:
        """Have a paused sandbox run again; on any error but the last two it stays paused.

        Raises:
            SandboxNotFound: No node has it.
            Conflict: It runs, or something else is being done with it.
            ResourceExhausted: No slot is free.
            SnapshotUnusable: What was kept of it is damaged or of other versions.
            Unavailable: No node answers; it may run all the same.
            DeadlineExceeded: The node takes too long; the same holds.
        """
        ...

    async def snapshot(self, order: TakeSnapshot) -> SnapshotTaken:
        """Keep a copy of a running sandbox, which runs on; a `create` with its id makes another of it.

        Raises:
            SandboxNotFound, Conflict, UnsupportedOption, NotEnoughSpace, Unavailable, DeadlineExceeded: As
            `pause`.
        """
        ...

    async def remove_snapshot(self, snapshot_id: str) -> None:
        """Forget a snapshot. One that is not there is a success.

        Raises:
            Unavailable: No node answers.
            DeadlineExceeded: The node takes too long.
        """
        ...

    async def create_volume(self, volume: CreateVolume) -> None:
        """Make an empty volume where every node that takes sandboxes of its team reaches it.

        Raises:
            NotEnoughSpace: The disk is too full.
            Unavailable: The machine cannot hold volumes to a limit, or no node answers.
            DeadlineExceeded: The node takes too long; it may have been made all the same.
        """
        ...

    async def remove_volume(self, volume_id: str) -> None:
        """Remove a volume with all it holds. One that is not there is a success.

        Raises:
            Conflict: A sandbox has it.
            Unavailable: No node answers.
            DeadlineExceeded: The node takes too long.
        """
        ...

    async def list(self) -> Sequence[SandboxState]:
        """Everything alive on all nodes.

        Raises:
            Unavailable: A node does not answer, so that nobody knows what lives there.
            DeadlineExceeded: A node takes too long.
        """
        ...

    async def metrics(self, query: MetricsQuery) -> Sequence[SandboxMetrics]:
        """What those of the sandboxes that run have used.

        Raises:
            Unavailable: A node does not answer.
            DeadlineExceeded: A node takes too long.
        """
        ...

    async def logs(self, query: LogsQuery) -> Sequence[LogEntry]:
        """What has happened in one sandbox, also for a while after its end; oldest first.

        Raises:
            SandboxNotFound: No node knows of it.
            Unavailable: No node answers.
            Internal: Its agent does not answer.
            DeadlineExceeded: A node takes too long.
        """
        ...

    def watch(self) -> AsyncGenerator[LinkUp | SandboxEnded | SandboxState, None]:
        """Yield `LinkUp`, then every end, pause and resumption of a sandbox, until the link is lost.

        Raises:
            Unavailable: No node answers.
        """
        ...
