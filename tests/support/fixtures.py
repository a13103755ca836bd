"""Fixtures over a real server, for the suites that need one; their conftest.py imports what they use."""

import contextlib
import gc
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from cloche import Sandbox
from tests.support import census
from tests.support.server import Server

NEEDS_A_SERVER = pytest.mark.needs("root", "userns", "overlay", "idmap", "nft", "cgroup", "uv", "template")
STATES: set[Path] = set()
"""State folders of the servers of this session, so that the census looks into them."""

MakeSandbox = Callable[..., Sandbox]


class Pair(NamedTuple):
    """Two sandboxes of one team: what holds between strangers must hold between these."""

    a: Sandbox
    b: Sandbox


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """The server that most tests share; tests that hurt it take `own_server`."""
    with running(tmp_path_factory.mktemp("server") / "state") as made:
        yield made


@pytest.fixture(scope="session")
def gvisor_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """The same with sandboxes that have kernels of their own."""
    with running(tmp_path_factory.mktemp("gvisor") / "state", isolation="gvisor") as made:
        yield made


@pytest.fixture(scope="module")
def own_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server of this module alone, to be maimed."""
    with running(tmp_path_factory.mktemp("own") / "state") as made:
        yield made


@pytest.fixture
def sandboxes(server: Server) -> Iterator[MakeSandbox]:
    """Make sandboxes that are gone at the end of the test."""
    made: list[Sandbox] = []

    def make(**options: Any) -> Sandbox:
        sandbox = connect_options(server, Sandbox.create, **options)
        made.append(sandbox)
        return sandbox

    yield make
    for sandbox in made:
        sandbox.kill()


@pytest.fixture(scope="module")
def pair(server: Server) -> Iterator[Pair]:
    """Two sandboxes that the tests of one module share."""
    a, b = (connect_options(server, Sandbox.create, timeout=600) for _ in "ab")
    yield Pair(a, b)
    a.kill()
    b.kill()


@pytest.fixture(scope="module", autouse=True)
def leaves_nothing_behind() -> Iterator[None]:
    """Every module of a suite leaves no process, mount, cgroup, interface, rule and folder of a sandbox."""
    with census.nothing_left(STATES):
        yield
        gc.collect()  # a connection left open is told here, not in whatever test comes next


def connect_options(server: Server, act: Callable[..., Sandbox], *args: Any, **options: Any) -> Sandbox:
    """Call `Sandbox.create` or `Sandbox.connect` against this server, whatever the environment says."""
    return act(*args, api_url=server.url, sandbox_url=server.url, api_key=server.key, **options)


@contextlib.contextmanager
def running(state: Path, **options: Any) -> Iterator[Server]:
    """A server on this state folder, of which nothing is left behind."""
    STATES.add(state)
    with census.nothing_left([state]):
        server = Server(state, **options)
        try:
            yield server.start()
        finally:
            server.stop()
