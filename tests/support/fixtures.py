"""Fixtures over a real server, for the suites that need one; their conftest.py imports what they use."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support import census
from tests.support.server import Server

STATES: set[Path] = set()
"""State folders of the servers of this session, so that the census looks into them."""


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """The server that most tests share; tests that hurt it take `own_server`."""
    yield from _running(tmp_path_factory.mktemp("server") / "state")


@pytest.fixture(scope="module")
def own_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server of this module alone, to be maimed."""
    yield from _running(tmp_path_factory.mktemp("own") / "state")


@pytest.fixture(scope="module", autouse=True)
def leaves_nothing_behind() -> Iterator[None]:
    """Every module of a suite leaves no process, mount, cgroup, interface, rule and folder of a sandbox."""
    with census.nothing_left(STATES):
        yield


def _running(state: Path) -> Iterator[Server]:
    STATES.add(state)
    with census.nothing_left([state]):
        server = Server(state)
        try:
            yield server.start()
        finally:
            server.stop()
