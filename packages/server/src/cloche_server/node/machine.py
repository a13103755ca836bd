"""What the node's verbs share: the sandboxes alive now, and the parts that hold what they are made of."""

from __future__ import annotations

import asyncio
import errno
import shutil
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Literal
from weakref import WeakValueDictionary

import msgspec

from cloche_server.clock import Clock
from cloche_server.config import Config
from cloche_server.isolation.base import Driver, Family
from cloche_server.link import Event
from cloche_server.node.broadcast import Broadcast
from cloche_server.node.demand import Demand
from cloche_server.node.drivers import Drivers
from cloche_server.node.families import Families
from cloche_server.node.images import Images
from cloche_server.node.journal import Journal, Record
from cloche_server.node.layers import Layers
from cloche_server.node.lifecycle import Event as LifecycleEvent
from cloche_server.node.lifecycle import next_state
from cloche_server.node.messages import PolicyChanged, Route, RouteGone, SandboxEnded
from cloche_server.node.network import Network
from cloche_server.node.runtime_tree import RuntimeTree
from cloche_server.node.slots import Block, Slots
from cloche_server.node.templates import Templates
from cloche_server.node.volumes import Volumes
from cloche_wire.errors import Conflict, SandboxNotFound

AGENT_PORT, INTERPRETER_PORT = 49983, 49999
"""Of an agent that is reached over its sandbox's network."""
_ON_DISK = ("pausing", "paused", "resuming")
"""States in which nobody reaches a sandbox, and in which it may come back."""


@dataclass
class Live:
    """One sandbox in memory: its record, which the journal has too, and what only this process can hold."""

    record: Record
    cpu_before_s: float = 0.0
    """What was used before it was somebody's."""
    family: Family | None = None
    """What it may have an interpreter forked from; None for one that has to start it."""
    needed_boot_s: float = 0.0
    """When something last needed it that the edge does not know of, by the boot clock."""
    network_namespace: int | None = None
    """Descriptor, for dialling its ports; None while it is being made."""
    builder: asyncio.Task[object] | None = None
    """The task that makes it, as long as a step of that may still leave something behind."""
    policy_turn: asyncio.Lock = field(default_factory=asyncio.Lock)
    """Held while its policy is changed, and when it is taken away."""
    is_waiting: bool = False
    """Whether nothing is done to make it any more but to wait for its start command."""
    built: asyncio.Event = field(default_factory=asyncio.Event)
    """Set when no step of its making is under way any more."""
    gone: asyncio.Event = field(default_factory=asyncio.Event)
    """Set when nothing of it is left."""


@dataclass
class Machine:
    """The node's parts. Every verb takes it; none keeps state of its own."""

    config: Config
    clock: Clock
    drivers: Drivers
    block: Block
    slots: Slots
    network: Network
    journal: Journal
    tree: RuntimeTree
    tasks: asyncio.TaskGroup
    trash: Trash
    boot_id: str
    volumes: Volumes
    demand: Demand
    families: Families
    live: dict[str, Live] = field(default_factory=dict[str, Live])
    paused: dict[str, Record] = field(default_factory=dict[str, Record])
    """Sandboxes of which there is nothing but an image and this record."""
    turns: Turns = field(default_factory=lambda: Turns())
    draining: bool = False
    agent_failures: int = 0
    """Images of an agent alone from which a sandbox did not come up (`agent_images`)."""
    routes: Broadcast = field(default_factory=Broadcast)
    policies: Broadcast = field(default_factory=Broadcast)
    ends: Broadcast = field(default_factory=Broadcast)
    before_removal: Callable[[Live], Awaitable[None]] | None = None
    """Called for a sandbox that ran, while its agent still may; never fails, and takes a moment at most."""
    deadlines_changed: asyncio.Event = field(default_factory=asyncio.Event)
    network_removed: asyncio.Event = field(default_factory=asyncio.Event)
    """Set when something of a network may be left for `network_sweep`."""

    @cached_property
    def templates(self) -> Templates:
        """What sandboxes are made of."""
        return Templates(self.config.templates_dir)

    def driver(self, record: Record) -> Driver:
        """That of a sandbox which there is, whatever the server's default is by now."""
        return self.drivers.of(record.isolation)

    @cached_property
    def layers(self) -> Layers:
        """What templates and sandboxes are made of."""
        return Layers(self.config.state_dir / "layers", self.templates, self.trash.put)

    @cached_property
    def images(self) -> Images:
        """What is kept of sandboxes."""
        return Images(self.config.state_dir / "images", self.trash.put, self.layers)

    def find(self, sandbox_id: str) -> Live:
        """The running sandbox of that id.

        Raises:
            SandboxNotFound: There is none, or it is not running yet or any more.
            Conflict: It is paused, or on its way there or back.
        """
        found = self.live.get(sandbox_id)
        if sandbox_id in self.paused or (found is not None and found.record.state in _ON_DISK):
            raise Conflict(f"sandbox is paused: {sandbox_id}", hint="resume it first")
        if found is None or found.record.state != "running":
            raise SandboxNotFound(f"no such sandbox: {sandbox_id}")
        return found

    def at_address(self, address: str) -> Live | None:
        """The sandbox whose packets bear that address."""
        for live in self.live.values():
            if str(self.block.address(live.record.slot)) == address:
                return live
        return None

    def move(self, live: Live, event: LifecycleEvent) -> None:
        """Take one step of the state table: journal first, then memory.

        Raises:
            Conflict: The table has no such step.
            OSError: The journal cannot be written; nothing has changed.
        """
        self.note(live, msgspec.structs.replace(live.record, state=next_state(live.record.state, event)))

    def note(self, live: Live, record: Record) -> None:
        """Journal a change that is no step of the table, then take it over."""
        self.journal.write(record)
        live.record = record

    def folder(self, sandbox_id: str) -> Path:
        """The sandbox's own folder: its writable layer and its bundle."""
        return self.config.state_dir / "sandboxes" / sandbox_id

    def sockets(self, sandbox_id: str) -> Path:
        """The folder of the sandbox's two sockets, which the edge connects to."""
        return self._agents / sandbox_id

    @cached_property
    def _agents(self) -> Path:
        return self.config.run_dir / "agents"

    def agent_address(self, record: Record) -> str:
        """Where that sandbox's agent answers: path of a Unix socket, or `address:port`."""
        return self._service_address(record, "envd.sock", AGENT_PORT)

    def _service_address(self, record: Record, name: str, port: int) -> str:
        if self.driver(record).capabilities().listeners:
            return str(self.sockets(record.request.sandbox_id) / name)
        return f"{self.block.address(record.slot)}:{port}"

    def route(self, record: Record) -> Route:
        """How the edge reaches that sandbox, or has it resumed."""
        return Route(
            sandbox_id=record.request.sandbox_id,
            agent_address=self.agent_address(record),
            interpreter_address=self._service_address(record, "run.sock", INTERPRETER_PORT),
            access_token=record.request.access_token,
            traffic_token=record.request.traffic_token,
            mask_request_host=record.request.mask_request_host,
            https_ports=record.request.https_ports,
            is_paused=record.state in _ON_DISK,
            is_frozen=record.is_frozen,
            is_idle=record.is_idle,
            idle_after_s=self._idle_after_s(record),
        )

    def _idle_after_s(self, record: Record) -> int:
        """After how long without anything open the edge is to say so; 0 where nothing follows from it."""
        goes_on_to_disk = record.request.idle_action == "pause"
        return 0 if record.is_frozen and not goes_on_to_disk else record.request.idle_after_s

    def routes_now(self) -> list[Route]:
        """All that lead to a sandbox, or wake one."""
        # One that is being resumed is among both.
        records = (self.paused | {sandbox_id: live.record for sandbox_id, live in self.live.items()}).values()
        running = [record for record in records if record.state == "running"]
        on_disk = [record for record in records if record.state in _ON_DISK]
        waking = [record for record in on_disk if record.request.wakes_on_traffic]
        return [self.route(record) for record in (*running, *waking)]

    def publish_route(self, record: Record) -> None:
        """Tell the edge how to reach the sandbox."""
        self.routes.publish(Event("route", self.route(record)))

    def publish_gone(self, record: Record) -> None:
        """Have what is open to and from the sandbox cut, before any of its processes ends."""
        is_paused = record.state in _ON_DISK
        if is_paused and record.request.wakes_on_traffic:
            self.publish_route(record)
        else:
            self.routes.publish(Event("gone", RouteGone(record.request.sandbox_id, is_paused)))
        self.publish_policy(record)

    def publish_policy(self, record: Record) -> None:
        """Tell the egress to look again whether the sandbox may have what it has open."""
        self.policies.publish(Event("changed", PolicyChanged(str(self.block.address(record.slot)))))

    def publish_state(self, kind: Literal["paused", "resumed"], record: Record) -> None:
        """Tell the api that a sandbox is on disk, or runs again."""
        self.ends.publish(Event(kind, record.public()))

    def publish_ended(self, record: Record) -> None:
        """Tell the api that the sandbox is gone, if it knew of it."""
        if record.is_build or not record.request.access_token:
            return  # it was nobody's: a create that makes it anew under its id would be told of this end
        self.ends.publish(
            Event("ended", SandboxEnded(record.request.sandbox_id, record.end_reason or "failed"))
        )


class Turns:
    """One act on a sandbox after another."""

    def __init__(self) -> None:
        """Nobody acts yet."""
        self._locks: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()

    def of(self, sandbox_id: str) -> asyncio.Lock:
        """Held while a sandbox is being paused, resumed, copied or ended by somebody's wish."""
        return self._locks.setdefault(sandbox_id, asyncio.Lock())


class Trash:
    """Folders of ended sandboxes, removed off the path of requests.

    A folder is first renamed into the trash, which is atomic: a name that is gone from its place is not
    half there. `rm` does the removal, because it goes down trees of any depth with a tenant's names in them.
    """

    def __init__(self, folder: Path) -> None:
        """Take the trash folder, on the same file system as the sandboxes."""
        self._folder = folder
        self._counter = 0
        self._wake = asyncio.Event()
        self._empty = asyncio.Event()
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)

    def put(self, path: Path) -> None:
        """Move a folder into the trash. Idempotent."""
        self._counter += 1
        try:
            path.rename(self._folder / f"{path.name}.{self._counter}.{id(self)}")
        except FileNotFoundError:
            return
        except OSError as error:
            if error.errno != errno.EXDEV:
                raise
            shutil.rmtree(path, ignore_errors=True)  # somebody has given that folder a disk of its own
            return
        self._empty.clear()
        self._wake.set()

    async def empty_for_ever(self) -> None:
        """Remove what is in the trash, also what an earlier run left there, until cancelled."""
        while True:
            self._wake.clear()
            for path in list(self._folder.iterdir()):
                process = await asyncio.create_subprocess_exec(
                    "rm", "-rf", "--one-file-system", "--", str(path)
                )
                if await process.wait() != 0:
                    await asyncio.to_thread(shutil.rmtree, path, True)
            if not self._wake.is_set():
                self._empty.set()
            await self._wake.wait()

    async def wait_until_empty(self) -> None:
        """Return when everything put so far has been removed."""
        await self._empty.wait()
