"""A node without a kernel: the real verbs over a driver and a network that only remember."""

import asyncio
import contextlib
import os
import shutil
import socket
import tempfile
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Literal

import pytest

from cloche_server.config import Ahead, Config
from cloche_server.config import Volumes as VolumeSettings
from cloche_server.isolation import overlay
from cloche_server.isolation.base import Capabilities, ProcessIdentity, Program, SandboxSpec, Usage
from cloche_server.node import assemble
from cloche_server.node.demand import Demand
from cloche_server.node.drivers import Drivers
from cloche_server.node.families import Families
from cloche_server.node.journal import Journal
from cloche_server.node.machine import Machine, Trash
from cloche_server.node.messages import CreateSandbox, EgressPolicy
from cloche_server.node.runtime_tree import RuntimeTree
from cloche_server.node.slots import Block, Slots
from cloche_server.node.volumes import Volumes
from cloche_wire.errors import Internal, Unavailable

BUILD_ID = "11111111-2222-4333-8444-555555555555"


class TurnedClock:
    """A clock that stands until it is turned."""

    def __init__(self) -> None:
        self.elapsed_s = 1000.0
        self.start = datetime(2026, 1, 1, tzinfo=UTC)

    def boot_s(self) -> float:
        return self.elapsed_s

    def now(self) -> datetime:
        return self.start + timedelta(seconds=self.elapsed_s)


class RememberingNetwork:
    """Remembers which slots have a network; a namespace is any descriptor."""

    def __init__(self) -> None:
        self.slots: dict[int, bool] = {}
        self.policies: dict[int, EgressPolicy] = {}
        self.failures: list[Exception] = []
        self.connected: set[int] = set()

    def has_connections(self, slot: int) -> bool:
        return slot in self.connected

    def new_namespace(self) -> int:
        return os.open("/dev/null", os.O_RDONLY | os.O_CLOEXEC)

    def create(self, slot: int, namespace: int, policy: EgressPolicy, *, online: bool) -> None:
        self.slots[slot] = online
        self.policies[slot] = policy

    def set_policy(self, slot: int, policy: EgressPolicy, *, online: bool) -> None:
        if self.failures:
            raise self.failures.pop(0)
        self.policies[slot] = policy
        self.set_online(slot, online=online)

    def set_online(self, slot: int, *, online: bool) -> None:
        self.slots[slot] = online

    def remove(self, slot: int) -> None:
        self.slots.pop(slot, None)
        self.policies.pop(slot, None)

    def sweep(self) -> None:
        return

    def leftovers(self) -> set[int]:
        return set(self.slots)


class RememberingDriver:
    """Remembers what runs. Its agent answers every request with one status."""

    def __init__(self) -> None:
        self.running: dict[str, ProcessIdentity] = {}
        self.specs: list[SandboxSpec] = []
        self.status = b"204 No Content"
        self.failures: list[Exception] = []
        self.refusals: list[Exception] = []
        self.starting: asyncio.Event = asyncio.Event()
        self.go_on: asyncio.Event = asyncio.Event()
        self.go_on.set()
        self.is_ready: asyncio.Event = asyncio.Event()
        self.is_ready.set()
        self.ended: dict[int, asyncio.Event] = {}
        self.able = Capabilities(name="remembering", shares_host_kernel=True)
        self.frozen: set[str] = set()
        self.lacks = ""
        self.prepared = 0
        self.reclaimed: list[str] = []
        self.save_failures: list[BaseException] = []
        self.other_roots = True
        self.kept_entries: tuple[str, ...] = ()
        self._servers: dict[str, asyncio.Server] = {}

    def capabilities(self) -> Capabilities:
        return self.able

    def goes_on_over(self, layers: Sequence[Path]) -> bool:
        return self.other_roots

    async def freeze(self, sandbox_id: str, folder: Path) -> None:
        self.frozen.add(sandbox_id)

    async def thaw(self, sandbox_id: str, folder: Path) -> None:
        if sandbox_id not in self.frozen:
            raise Internal("not frozen")
        self.frozen.remove(sandbox_id)

    def reclaim(self, sandbox_id: str) -> None:
        self.reclaimed.append(sandbox_id)

    async def save(self, sandbox_id: str, folder: Path, image: Path) -> tuple[str, ...]:
        assert sandbox_id in self.frozen
        (image / "pages.img").write_text(f"memory of {sandbox_id}")
        if self.save_failures:
            raise self.save_failures.pop(0)
        return self.kept_entries

    def prepare(self, program: Program | None = None) -> None:
        if self.lacks:
            raise Unavailable(self.lacks, hint="install it")
        self.prepared += 1

    async def start(self, spec: SandboxSpec) -> ProcessIdentity:
        self.specs.append(spec)
        if self.able.writes_layers:
            overlay.make_writable(spec.folder)
        self.starting.set()
        await self.go_on.wait()
        if self.failures:
            raise self.failures.pop(0)
        init = ProcessIdentity(100_000 + len(self.specs), 1, "boot")
        listener = socket.socket(fileno=os.dup(spec.listeners[0]))
        self._servers[spec.sandbox_id] = await asyncio.start_unix_server(self._answer, sock=listener)
        self.running[spec.sandbox_id] = init
        self.ended[init.pid] = asyncio.Event()
        return init

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        if head.startswith(b"POST /ready "):
            await self.is_ready.wait()
        if self.status:
            writer.write(b"HTTP/1.1 " + self.status + b"\r\n\r\n")
        writer.close()

    async def destroy(self, sandbox_id: str, folder: Path, init: ProcessIdentity | None) -> None:
        if self.refusals:
            raise self.refusals.pop(0)
        self.exit(sandbox_id)

    def exit(self, sandbox_id: str) -> None:
        """End a sandbox's init."""
        self.frozen.discard(sandbox_id)
        init = self.running.pop(sandbox_id, None)
        if init is not None:
            self.ended[init.pid].set()
            self._servers.pop(sandbox_id).close()

    def is_alive(self, init: ProcessIdentity) -> bool:
        return init in self.running.values()

    async def wait(self, init: ProcessIdentity) -> None:
        if init.pid in self.ended:
            await self.ended[init.pid].wait()

    def usage(self, sandbox_id: str) -> Usage:
        return Usage(0, 0.0, 0)

    def leftovers(self) -> set[str]:
        return set(self.running)

    def close(self) -> None:
        return


class InstantTrash(Trash):
    """Removes at once, so that no process of a test outlives it."""

    def put(self, path: Path) -> None:
        shutil.rmtree(path, ignore_errors=True)

    async def wait_until_empty(self) -> None:
        return


@dataclass
class Node:
    """A machine and the parts that tests look into."""

    state: Path
    clock: TurnedClock = field(default_factory=TurnedClock)
    network: RememberingNetwork = field(default_factory=RememberingNetwork)
    driver: RememberingDriver = field(default_factory=RememberingDriver)
    others: list[RememberingDriver] = field(default_factory=list[RememberingDriver])
    allow_isolation: tuple[Literal["container", "gvisor"], ...] = ()
    limit: int = 10

    @contextlib.asynccontextmanager
    async def _serving(self, *, dies: bool) -> AsyncIterator[Machine]:
        for name in ("sandboxes", "run/agents"):
            (self.state / name).mkdir(parents=True, exist_ok=True)
        try:
            async with asyncio.timeout(20), asyncio.TaskGroup() as tasks:
                slots = Slots(self.limit)
                trash = InstantTrash(self.state / "trash")
                machine = Machine(
                    config=Config(state=str(self.state), allow_isolation=self.allow_isolation),
                    clock=self.clock,
                    drivers=Drivers(self.driver.able.name, [self.driver, *self.others]),
                    block=Block(0, -1),
                    slots=slots,
                    families=Families(slots),
                    network=self.network,  # type: ignore[arg-type] - the same verbs
                    journal=Journal(self.state / "node" / "journal"),
                    tree=RuntimeTree(self.state / "runtime" / "tree"),
                    tasks=tasks,
                    trash=trash,
                    boot_id="boot",
                    volumes=Volumes(self.state / "volumes", VolumeSettings(quota="none"), None),
                    demand=Demand(Ahead()),
                )
                yield machine
                if dies:
                    raise asyncio.CancelledError
                for driver in (self.driver, *self.others):
                    for sandbox_id in list(driver.running):
                        driver.exit(sandbox_id)
        except asyncio.CancelledError:
            if not dies:
                raise

    def machine(self, *, dies: bool = False) -> AbstractAsyncContextManager[Machine]:
        """A machine over the parts, as after each start of the node.

        What still runs ends with it, unless it dies: then it stops in its tracks and all stays as it is.
        """
        return self._serving(dies=dies)

    def remains(self) -> dict[str, Any]:
        """All that is left of sandboxes, by kind; empty when nothing is."""
        found = {
            "running": {name for driver in (self.driver, *self.others) for name in driver.running},
            "networks": set(self.network.slots),
            "folders": {path.name for path in self.state.glob("sandboxes/*")},
            "sockets": {path.name for path in self.state.glob("run/agents/*")},
            "records": sorted(path.name.partition(".")[0] for path in self.state.glob("node/journal/*")),
            "images": {path.name for path in self.state.glob("images/*")},
            "layers": {path.name for path in self.state.glob("layers/*")},
        }
        return {kind: names for kind, names in found.items() if names}


@pytest.fixture
def node(monkeypatch: pytest.MonkeyPatch) -> Iterator[Node]:
    """A node with one template. Its path is short, since sockets lie in it."""
    monkeypatch.setattr(assemble, "EDGE_UID", os.geteuid())
    state = Path(tempfile.mkdtemp(prefix="n"))
    template = state / "templates" / BUILD_ID
    template.mkdir(parents=True)
    (template / "manifest.json").write_text('{"rootfs": "rootfs", "env": {"LANG": "C", "A": "template"}}')
    yield Node(state)
    shutil.rmtree(state)


def request_for(letter: str = "a", **changes: Any) -> CreateSandbox:
    """A create request; the letter makes its id."""
    fields: dict[str, Any] = {
        "sandbox_id": "i" + letter * 20,
        "team_id": "team",
        "template_id": "base",
        "build_id": BUILD_ID,
        "timeout_s": 60,
        "access_token": "token",
        "isolation": "remembering",
    }
    return CreateSandbox(**(fields | changes))


@pytest.fixture
def able(node: Node) -> None:
    """Its sandboxes can be frozen, and written to disk."""
    let_save(node, freezes=True)


def let_save(node: Node, **more: bool) -> None:
    """Have its driver save memory and files, and what else is said."""
    node.driver.able = Capabilities(
        name="remembering", shares_host_kernel=False, memory_snapshot=True, disk_snapshot=True,
        image_format="r 1", **more,
    )  # fmt: skip
    (node.state / "runtime" / "tree").mkdir(parents=True, exist_ok=True)
