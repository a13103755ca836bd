"""A node of its own process, with the real driver, spoken to over its two sockets."""

import asyncio
import contextlib
import json
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import msgspec
import pytest
from tests.integration.node import node_program
from tests.support import block, capabilities
from tests.support.waiting import until

from cloche_server import link
from cloche_server.config import Ahead, Config, Egress
from cloche_server.ids import new_access_token, new_sandbox_id
from cloche_server.isolation import syscalls
from cloche_server.node import messages, runtime_tree
from cloche_server.node.runtime_tree import RuntimeTree
from cloche_wire.errors import Unavailable

NEEDS_A_NODE = pytest.mark.needs("root", "userns", "overlay", "idmap", "cgroup", "nft", "template")
NEEDS_GVISOR = pytest.mark.needs("runsc")
RESOLVER = "127.0.0.99"


class NodeProcess:
    """One node that may be killed and started again on the same state."""

    def __init__(self, state: Path, tree: RuntimeTree, isolation: Literal["container", "gvisor"]) -> None:
        self.state = state
        self.tree = tree
        (state / "tools").symlink_to(capabilities.tools_folder())
        self.config = Config(
            state=str(state),
            isolation=isolation,
            templates=str(capabilities.templates_folder()),
            egress=Egress(resolvers=(RESOLVER,)),
            ahead=Ahead(most=0),  # tests count what is there
        )
        self.log = state / "node.log"
        self._armed = state / "armed"
        self._process: subprocess.Popen[bytes] | None = None

    def arm(self) -> None:
        """From now on, the steps to the crash point are counted."""
        self._armed.touch()

    def start(self, *crash: str) -> None:
        """Start it and return when it answers; a crash point makes it die there, once it is armed."""
        self._armed.unlink(missing_ok=True)
        argv = [sys.executable, node_program.__file__, msgspec.json.encode(self.config).decode()]
        for path in self._sockets():
            path.unlink(missing_ok=True)
        with self.log.open("ab") as log:
            self._process = subprocess.Popen([*argv, str(self.tree.path), *crash], stdout=log, stderr=log)
        until(self._answers, within_s=20, what=f"a node: {self.log.read_text()[-2000:]}")

    def _answers(self) -> bool:
        assert self._process is not None
        if self._process.poll() is not None:
            return True
        with contextlib.suppress(OSError):
            for path in self._sockets():
                with socket.socket(socket.AF_UNIX) as probe:
                    probe.connect(str(path))
            return True
        return False

    def _sockets(self) -> tuple[Path, Path]:
        return self.config.node_socket, self.config.edge_socket

    def kill(self) -> None:
        """As a crash."""
        self._end(signal.SIGKILL)

    def stop(self) -> int:
        """In order; sandboxes stay."""
        return self._end(signal.SIGTERM)

    def wait(self) -> int:
        """Return its status when it has ended by itself."""
        assert self._process is not None
        return self._process.wait(timeout=20)

    def _end(self, number: signal.Signals) -> int:
        assert self._process is not None
        self._process.send_signal(number)
        return self._process.wait(timeout=20)

    @property
    def is_running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    async def call(self, method: str, params: object, kind: Any = dict) -> Any:
        """One request to the control socket."""
        return await link.call(self.config.node_socket, method, params, kind, timeout_s=60)

    async def create(self, **changes: Any) -> str:
        """Create a sandbox and return its id."""
        fields: dict[str, Any] = {
            "sandbox_id": new_sandbox_id(),
            "team_id": "team",
            "template_id": "base",
            "build_id": newest_build(),
            "timeout_s": 600,
            "access_token": new_access_token(),
            "memory_mib": 256,
        }
        request = messages.CreateSandbox(**(fields | changes))
        await self.call("create", request, messages.SandboxState)
        return request.sandbox_id

    async def end(self, sandbox_id: str) -> None:
        await self.call("kill", messages.KillSandbox(sandbox_id))

    async def alive(self) -> set[str]:
        return {state.sandbox_id for state in await self.call("list", {}, list[messages.SandboxState])}

    async def drain(self) -> None:
        await self.call("drain", {})

    async def dial(self, sandbox_id: str, port: int) -> socket.socket:
        """A connection to a port of a sandbox, as the edge gets it."""
        _, (descriptor,) = await link.call_for_descriptors(
            self.config.edge_socket, "dial", messages.Dial(sandbox_id, port), timeout_s=20
        )
        connection = socket.socket(fileno=descriptor)
        connection.settimeout(5)
        return connection

    def init(self, sandbox_id: str) -> int:
        """Process id of a sandbox's init, from the journal."""
        (path,) = self.records(sandbox_id)
        return json.loads(path.read_text())["init"]["pid"]

    def records(self, sandbox_id: str) -> list[Path]:
        """A sandbox's files in the journal: one where it is there and nothing is being done with it."""
        return [*self.state.glob(f"node/journal/{sandbox_id}.*")]

    def inside(self, sandbox_id: str, kind: socket.SocketKind = socket.SOCK_STREAM) -> socket.socket:
        """A socket in the sandbox's network, as a program of the tenant would have it."""
        with (
            Path(f"/proc/{self.init(sandbox_id)}/ns/net").open() as namespace,
            syscalls.network_namespace(namespace.fileno()),
        ):
            made = socket.socket(socket.AF_INET, kind)
        made.settimeout(5)
        return made


def newest_build() -> str:
    manifests = [
        json.loads(path.read_text()) for path in capabilities.templates_folder().glob("*/manifest.json")
    ]
    return max(manifests, key=lambda manifest: manifest["created_at"])["build_id"]


@pytest.fixture(scope="session")
def tree(tmp_path_factory: pytest.TempPathFactory) -> RuntimeTree:
    folder = tmp_path_factory.mktemp("runtime")
    return runtime_tree.ensure(folder)


def _made(
    tree: RuntimeTree, isolation: Literal["container", "gvisor"] = "container"
) -> Iterator[NodeProcess]:
    with contextlib.ExitStack() as cleaning:
        state = Path(tempfile.mkdtemp(prefix="n"))  # short, since sockets lie in it
        cleaning.callback(shutil.rmtree, state)
        state.chmod(0o755)
        node = NodeProcess(state, tree, isolation)
        node.start()
        cleaning.callback(node.kill)
        number = block.number_of(state)
        yield node
        if not node.is_running:
            node.start()
        asyncio.run(node.drain())
        assert node.stop() == 0, node.log.read_text()[-3000:]
        block.await_nothing(number)
        assert "Traceback" not in node.log.read_text()


@pytest.fixture(scope="module")
def node(tree: RuntimeTree) -> Iterator[NodeProcess]:
    """A node that the tests of one module share; all it made is gone at the end."""
    yield from _made(tree)


@pytest.fixture
def own_node(tree: RuntimeTree) -> Iterator[NodeProcess]:
    """A node of one test, to be killed."""
    yield from _made(tree)


@pytest.fixture
def gvisor_node(tree: RuntimeTree) -> Iterator[NodeProcess]:
    """A node of one test whose sandboxes have kernels of their own, to be killed."""
    # The trees of agents lie side by side where an image's is looked for.
    yield from _made(tree, "gvisor")


async def healthy(node: NodeProcess, sandbox_id: str) -> bool:
    """Whether the sandbox's agent answers on the socket that its route names."""
    routes = await anext(link.subscribe(node.config.edge_socket, "routes", list[messages.Route]))
    assert isinstance(routes, list)
    (route,) = [found for found in routes if found.sandbox_id == sandbox_id]
    try:
        if route.agent_address.startswith("/"):
            reader, writer = await asyncio.open_unix_connection(route.agent_address)
        else:
            host, _, port = route.agent_address.rpartition(":")
            reader, writer = await asyncio.open_connection(host, int(port))
    except OSError as error:
        raise Unavailable(str(error)) from error
    writer.write(b"GET /health HTTP/1.1\r\nhost: agent\r\nconnection: close\r\n\r\n")
    answer = await reader.read()
    writer.close()
    await writer.wait_closed()
    return answer.startswith(b"HTTP/1.1 204")
