"""What the supervisor has loaded, and so all processes: their code, and nothing that only the start needs."""

import subprocess
import sys

import pytest

_LOADED = """
import sys
from cloche_server.cli import component, supervise
component.load_late_code()
print(*sys.modules)
"""
_OPEN = """
import os, threading
from cloche_server.cli import component, supervise
component.load_late_code()
found = [number for number in range(64) if os.path.exists(f"/proc/self/fd/{number}")]
print(*found, threading.active_count())
"""
START_ONLY = {
    "alembic",
    "cloche_server.cli.prepare",
    "cloche_server.edge.certificates",
    "cryptography",
    "mako",
}
NEVER = {"IPython", "cloche_agent", "httpx", "numpy", "psutil", "pydantic", "pytest", "unittest"}


def _said(program: str) -> list[str]:
    command = [sys.executable, "-I", "-c", program]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()


@pytest.fixture(scope="module")
def loaded() -> set[str]:
    return set(_said(_LOADED))


def test_what_only_the_start_needs_is_in_no_process(loaded: set[str]) -> None:
    assert not loaded & (START_ONLY | NEVER)


def test_what_a_process_needs_is_loaded_before_it_is_forked(loaded: set[str]) -> None:
    """An import in a child touches, and so copies, many times what it loads."""
    rooms = {"api.app", "edge.listener", "egress.service", "node.service", "volumes.service"}
    assert {f"cloche_server.{room}" for room in rooms} <= loaded
    assert {"anyio._backends._asyncio", "sqlalchemy.dialects.sqlite.pysqlite"} <= loaded
    assert {"concurrent.futures.thread", "uvicorn.protocols.http.h11_impl"} <= loaded


def test_loading_the_code_opens_nothing_and_starts_no_thread() -> None:
    """A module that opened `/proc/self/fd` for its process would have opened the supervisor's."""
    assert _said(_OPEN) == ["0", "1", "2", "1"]
