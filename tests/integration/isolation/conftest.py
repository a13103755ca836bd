"""Drivers on this machine, and a program inside their sandboxes that does what a test asks."""

import contextlib
import json
import os
import shutil
import socket
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import pytest
from tests.support import capabilities
from tests.support.block import await_nothing
from tests.support.waiting import until

from cloche_server.ids import new_sandbox_id
from cloche_server.isolation import syscalls
from cloche_server.isolation.base import Driver, ProcessIdentity, Program, ResourceLimits, SandboxSpec
from cloche_server.isolation.container.driver import ContainerDriver
from cloche_server.isolation.fake import FakeDriver
from cloche_server.isolation.gvisor.driver import GvisorDriver
from cloche_server.node import runtime_tree
from cloche_server.node.network import Network
from cloche_server.node.runtime_tree import RuntimeTree
from cloche_server.node.slots import SLOTS, Block, BlockProbe, claim_block

NEEDS_CONTAINERS = pytest.mark.needs("root", "userns", "overlay", "idmap", "cgroup", "crun")

NEEDS_GVISOR = pytest.mark.needs("root", "userns", "idmap", "cgroup", "runsc")
_PORT = 1000
FIRST_SLOT = 500

PROGRAM = """
import errno, json, os, signal, socket, sys, time
listener = socket.socket(fileno=3)
while True:
    connection, _ = listener.accept()
    code = b""
    while part := connection.recv(65536):
        code += part
    scope = dict(globals(), result=None)
    try:
        exec(code.decode(), scope)
        answer = {"result": scope["result"]}
    except BaseException as error:
        answer = {"error": repr(error)}
    connection.sendall(json.dumps(answer).encode())
    connection.close()
"""
"""Runs what it is sent as root of the sandbox; its connections are served one by one."""


class MakeDriver(Protocol):
    def __call__(self, program: Program | None = None) -> Driver: ...


class Started(NamedTuple):
    """A sandbox that runs."""

    spec: SandboxSpec
    init: ProcessIdentity
    sockets: tuple[Path, ...]
    address: str = ""
    """Where its program listens instead, if it has a network of its own."""

    def run(self, code: str) -> Any:
        """Run statements inside and return what they left in `result`."""
        with self._connect() as connection:
            connection.settimeout(20)
            connection.sendall(code.encode())
            connection.shutdown(socket.SHUT_WR)
            text = b""
            while part := connection.recv(65_536):
                text += part
        answer = json.loads(text)
        assert "error" not in answer, answer
        return answer["result"]

    def _connect(self) -> socket.socket:
        if not self.address:
            connection = socket.socket(socket.AF_UNIX)
            connection.connect(str(self.sockets[0]))
            return connection
        made: list[socket.socket] = []

        def connects() -> bool:
            with contextlib.suppress(ConnectionRefusedError):
                made.append(socket.create_connection((self.address, _PORT), timeout=20))
            return bool(made)

        until(connects, within_s=20, what="a listening program")
        return made[0]


class Workshop:
    """Makes sandboxes with one driver, and at the end of a test claims that none of it is left."""

    program = PROGRAM

    def __init__(
        self, driver: Driver, make_driver: MakeDriver, folder: Path, tree: RuntimeTree, block: int
    ) -> None:
        self.driver = driver
        self.make_driver = make_driver
        self.folder = folder
        self.tree = tree
        self.block = block
        self.made: list[SandboxSpec] = []
        self._open: contextlib.ExitStack = contextlib.ExitStack()

    def spec(self, rootfs: Path | None = None, **changes: Any) -> SandboxSpec:
        """What to start; changes take the place of the usual."""
        sandbox_id = new_sandbox_id()
        folder = self.folder / sandbox_id
        folder.mkdir()
        namespace = (
            syscalls.new_network_namespace()
            if os.geteuid() == 0
            else os.open("/proc/self/ns/net", os.O_RDONLY)
        )
        self._open.callback(os.close, namespace)
        listeners = []
        for name in ("first.sock", "second.sock"):
            listener = self._open.enter_context(socket.socket(socket.AF_UNIX))
            listener.bind(str(folder / name))
            listener.listen()
            listeners.append(listener.fileno())
        fields: dict[str, Any] = {
            "sandbox_id": sandbox_id,
            "slot": self.block * SLOTS + FIRST_SLOT + len(self.made),
            "hostname": sandbox_id,
            "layers": (rootfs or plain_rootfs(self.folder / f"{sandbox_id}.rootfs"),),
            "folder": folder,
            "runtime_tree": self.tree.path,
            "limits": ResourceLimits(cpu_count=1, memory_mib=256, pids=64),
            "network_namespace": namespace,
            "listeners": tuple(listeners),
            "argv": (*self.tree.python(), "-c", self.program),
            "env": {"PATH": "/usr/bin:/bin", "NAME": "value"},
            "etc_files": {"hosts": "127.0.0.1 localhost\n", "hostname": f"{sandbox_id}\n"},
        }
        spec = SandboxSpec(**(fields | changes))
        self.made.append(spec)
        return spec

    async def start(self, rootfs: Path | None = None, **changes: Any) -> Started:
        """Start a sandbox that ends with the test."""
        spec = self.spec(rootfs, **changes)
        init = await self.driver.start(spec)
        return Started(spec, init, (spec.folder / "first.sock", spec.folder / "second.sock"))

    def pids(self, inside: int) -> set[int]:
        """How many a group may count for that many processes inside."""
        return {inside} if self.driver.capabilities().shares_host_kernel else set(range(1, 200))

    async def close(self) -> None:
        for spec in self.made:
            await self.driver.destroy(spec.sandbox_id, spec.folder, None)
        self._open.close()


class NetworkedWorkshop(Workshop):
    """One whose sandboxes are reached over their network."""

    program = PROGRAM.replace("socket.socket(fileno=3)", f"socket.create_server(('', {_PORT}))")

    def __init__(
        self, driver: Driver, make_driver: MakeDriver, folder: Path, tree: RuntimeTree, block: Block
    ) -> None:
        super().__init__(driver, make_driver, folder, tree, block.number)
        self._addresses = block
        self._network = Network(block, ())

    async def start(self, rootfs: Path | None = None, **changes: Any) -> Started:
        """See `Workshop.start`."""
        spec = self.spec(rootfs, **changes)
        slot = spec.slot - self.block * SLOTS
        self._network.wire(slot, spec.network_namespace)
        self._open.callback(self._network.sweep)
        self._open.callback(self._network.remove, slot)
        init = await self.driver.start(spec)
        return Started(spec, init, (), str(self._addresses.address(slot)))


def own_mounts() -> str:
    """The mount table of this process, which no sandbox may change."""
    return Path("/proc/self/mountinfo").read_text()


def plain_rootfs(folder: Path) -> Path:
    """A root with nothing in it but mount points: the runtime tree brings all that a program needs."""
    for name in (".cloche", "proc", "dev", "etc", "tmp"):
        (folder / name).mkdir(parents=True)
    return folder


@pytest.fixture(scope="session")
def tree(tmp_path_factory: pytest.TempPathFactory) -> RuntimeTree:
    return runtime_tree.ensure(tmp_path_factory.mktemp("runtime"))


@pytest.fixture
def folder() -> Iterator[Path]:
    """A short path, since sockets lie below it, which users of sandboxes can reach."""
    made = Path(tempfile.mkdtemp(prefix="c"))
    made.chmod(0o755)
    yield made
    shutil.rmtree(made)


@pytest.fixture(scope="session")
def block(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Block]:
    claimed = claim_block(Path("/run/cloche/blocks"), tmp_path_factory.mktemp("state"), BlockProbe())
    yield claimed
    claimed.release()


@pytest.fixture
async def fake(folder: Path, tree: RuntimeTree) -> Any:
    workshop = Workshop(FakeDriver(), lambda program=None: FakeDriver(), folder, tree, 0)
    yield workshop
    await workshop.close()
    assert workshop.driver.leftovers() == set()


@pytest.fixture
async def container(folder: Path, tree: RuntimeTree, block: Block) -> Any:
    opened: list[ContainerDriver] = []

    def make(program: Program | None = None) -> ContainerDriver:
        driver = ContainerDriver(block.number)
        driver.prepare(program)
        opened.append(driver)
        return driver

    mounts = own_mounts()
    workshop = Workshop(make(), make, folder, tree, block.number)
    yield workshop
    await workshop.close()
    assert workshop.driver.leftovers() == set()
    for driver in opened:
        driver.close()
    await_nothing(block.number)
    assert own_mounts() == mounts


@pytest.fixture
async def gvisor(folder: Path, tree: RuntimeTree, block: Block) -> Any:
    opened: list[GvisorDriver] = []

    def make(program: Program | None = None) -> GvisorDriver:
        driver = GvisorDriver(block.number, capabilities.tools_folder())
        driver.prepare(program)
        opened.append(driver)
        return driver

    mounts = own_mounts()
    workshop = NetworkedWorkshop(make(), make, folder, tree, block)
    yield workshop
    await workshop.close()
    assert workshop.driver.leftovers() == set()
    for driver in opened:
        driver.close()
    await_nothing(block.number)
    assert own_mounts() == mounts


@pytest.fixture(
    params=[
        "fake",
        pytest.param("container", marks=NEEDS_CONTAINERS),
        pytest.param("gvisor", marks=NEEDS_GVISOR),
    ]
)
def workshop(request: pytest.FixtureRequest) -> Workshop:
    """Every driver in turn."""
    return request.getfixturevalue(request.param)
