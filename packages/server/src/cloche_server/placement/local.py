"""Placement on this one machine: each verb is one call over the node's Unix socket."""

from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from typing import Any, TypeVar

import anyio
import msgspec

from cloche_server import link
from cloche_server.node.messages import (
    CreateSandbox,
    CreateVolume,
    EndReason,
    FreezeSandbox,
    KillSandbox,
    LogEntry,
    LogsQuery,
    MetricsQuery,
    PauseSandbox,
    RemoveSnapshot,
    RemoveVolume,
    ResumeSandbox,
    SandboxEnded,
    SandboxMetrics,
    SandboxReady,
    SandboxState,
    SandboxUnready,
    SetEgress,
    SetTimeout,
    SnapshotTaken,
    TakeSnapshot,
)
from cloche_server.placement.base import LinkUp
from cloche_server.placement.policy import Node, choose_node
from cloche_server.placement.ready import ReadyBoard
from cloche_wire.errors import DeadlineExceeded

CALL_TIMEOUT_S = 5.0
KILL_TIMEOUT_S = 30.0
VOLUME_TIMEOUT_S = 60.0
"""For a node to make a volume; with preallocation on a slow disk that takes its time."""
MEMORY_TIMEOUT_S = 60.0
"""For a node to write a sandbox's memory and files to a slow disk, or to read them back."""
ABSENCE_S = 5.0
"""How long a call waits for a node that is being started again."""
RETRY_S = 0.05

T = TypeVar("T")


class LocalPlacement:
    """See `base.Placement`."""

    def __init__(self, node: Node) -> None:
        """Speak to this node; it need not be up yet, each call connects anew."""
        self._nodes = [node]
        self.ready = ReadyBoard()
        self.frozen: set[str] = set()

    async def create(self, sandbox: CreateSandbox, *, timeout_s: float) -> SandboxState:
        """See `base.Placement.create`."""
        node = choose_node(self._nodes, sandbox)
        return await _call(node, "create", sandbox, SandboxState, timeout_s=timeout_s)

    async def kill(self, sandbox_id: str, reason: EndReason) -> None:
        """See `base.Placement.kill`."""
        request = KillSandbox(sandbox_id, reason)
        await _call(self._nodes[0], "kill", request, dict[str, Any], timeout_s=KILL_TIMEOUT_S)

    async def set_timeout(self, timeout: SetTimeout) -> SandboxState:
        """See `base.Placement.set_timeout`."""
        return await _call(self._nodes[0], "set_timeout", timeout, SandboxState, timeout_s=CALL_TIMEOUT_S)

    async def create_volume(self, volume: CreateVolume) -> None:
        """See `base.Placement.create_volume`."""
        await _call(self._nodes[0], "create_volume", volume, dict[str, Any], timeout_s=VOLUME_TIMEOUT_S)

    async def remove_volume(self, volume_id: str) -> None:
        """See `base.Placement.remove_volume`."""
        request = RemoveVolume(volume_id)
        await _call(self._nodes[0], "remove_volume", request, dict[str, Any], timeout_s=CALL_TIMEOUT_S)

    async def set_egress(self, order: SetEgress) -> None:
        """See `base.Placement.set_egress`."""
        await _call(self._nodes[0], "set_egress", order, dict[str, Any], timeout_s=CALL_TIMEOUT_S)

    async def pause(self, order: PauseSandbox) -> None:
        """See `base.Placement.pause`."""
        await _call(self._nodes[0], "pause", order, dict[str, Any], timeout_s=MEMORY_TIMEOUT_S)

    async def freeze(self, order: FreezeSandbox) -> None:
        """See `base.Placement.freeze`."""
        await _call(self._nodes[0], "freeze", order, dict[str, Any], timeout_s=CALL_TIMEOUT_S)

    async def resume(self, order: ResumeSandbox) -> SandboxState:
        """See `base.Placement.resume`."""
        return await _call(self._nodes[0], "resume", order, SandboxState, timeout_s=MEMORY_TIMEOUT_S)

    async def snapshot(self, order: TakeSnapshot) -> SnapshotTaken:
        """See `base.Placement.snapshot`."""
        return await _call(self._nodes[0], "snapshot", order, SnapshotTaken, timeout_s=MEMORY_TIMEOUT_S)

    async def remove_snapshot(self, snapshot_id: str) -> None:
        """See `base.Placement.remove_snapshot`."""
        request = RemoveSnapshot(snapshot_id)
        await _call(self._nodes[0], "remove_snapshot", request, dict[str, Any], timeout_s=MEMORY_TIMEOUT_S)

    async def list(self) -> Sequence[SandboxState]:
        """See `base.Placement.list`."""
        answer = tuple[SandboxState, ...]
        states = await _call(self._nodes[0], "list", {}, answer, timeout_s=CALL_TIMEOUT_S)
        self.frozen = {state.sandbox_id for state in states if state.is_frozen}
        return states

    async def metrics(self, query: MetricsQuery) -> Sequence[SandboxMetrics]:
        """See `base.Placement.metrics`."""
        answer = tuple[SandboxMetrics, ...]
        return await _call(self._nodes[0], "metrics", query, answer, timeout_s=CALL_TIMEOUT_S)

    async def logs(self, query: LogsQuery) -> Sequence[LogEntry]:
        """See `base.Placement.logs`."""
        return await _call(self._nodes[0], "logs", query, tuple[LogEntry, ...], timeout_s=CALL_TIMEOUT_S)

    async def watch(self) -> AsyncGenerator[LinkUp | SandboxEnded | SandboxState, None]:
        """See `base.Placement.watch`."""
        feed = link.subscribe(self._nodes[0].control_socket, "watch", list[SandboxReady])
        try:
            async with aclosing(feed) as items:
                async for item in items:
                    if not isinstance(item, tuple):
                        self.ready.replace(item)
                        yield LinkUp()
                        continue
                    match item[0]:
                        case "ended":
                            ended = msgspec.json.decode(item[1], type=SandboxEnded)
                            self.frozen.discard(ended.sandbox_id)
                            yield ended
                        case "paused" | "resumed":
                            state = msgspec.json.decode(item[1], type=SandboxState)
                            self.frozen.discard(state.sandbox_id)
                            yield state
                        case "frozen":
                            self.frozen.add(msgspec.json.decode(item[1], type=SandboxState).sandbox_id)
                        case "thawed":
                            self.frozen.discard(msgspec.json.decode(item[1], type=SandboxState).sandbox_id)
                        case "ready":
                            self.ready.add(msgspec.json.decode(item[1], type=SandboxReady))
                        case "unready":
                            self.ready.remove(msgspec.json.decode(item[1], type=SandboxUnready).sandbox_id)
                        case _:
                            continue  # of a later version
        finally:
            self.ready.replace(())
            self.frozen = set()


async def _call(node: Node, method: str, params: object, answer: type[T], *, timeout_s: float) -> T:
    """Ask the node; wait for one that is not there, since it is started again within seconds."""
    patience = anyio.current_time() + ABSENCE_S
    try:
        while True:
            try:
                return await link.call(node.control_socket, method, params, answer, timeout_s=timeout_s)
            except link.NobodyListens:
                # The call was not made, so it may be made again.
                if anyio.current_time() > patience:
                    raise
                await anyio.sleep(RETRY_S)
    except TimeoutError as error:
        raise DeadlineExceeded(f"node {node.name} did not answer {method} within {timeout_s:g} s") from error
