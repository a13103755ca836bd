"""Files of sandboxes on isolation container, kept without memory, through the official client."""

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.support import official
from tests.support.fixtures import NEEDS_A_SERVER, running
from tests.support.server import Server

PROGRAM = Path(__file__).parent / "file_states.py"
FILES = "kept mine 750 user gone root 644 root 2771 1"
RUNS, COLD = f"{FILES} 1 True", f"{FILES} 0 False"
pytestmark = [NEEDS_A_SERVER, pytest.mark.timeout(300)]


@pytest.fixture(scope="module")
def file_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with running(tmp_path_factory.mktemp("files") / "state") as made:
        yield made


def act(server: Server, step: str, sandbox_id: str = "") -> str:
    """What comes of a step that the official client does."""
    argv = [str(official.interpreter()), str(PROGRAM), step, sandbox_id]
    done = subprocess.run(
        argv, env=official.client_env(server), capture_output=True, text=True, timeout=200, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout.strip()


@pytest.fixture
def sandbox_id(file_server: Server) -> Iterator[str]:
    """A sandbox that has changed files and runs a process."""
    made = act(file_server, "begin")
    yield made
    assert file_server.request("DELETE", f"/sandboxes/{made}").status_code == 204
    assert not [*(file_server.state / "layers").glob("files-*")]


def test_files_survive_a_pause_and_a_restart_of_the_server(file_server: Server, sandbox_id: str) -> None:
    """Processes and variables are gone, and all says so beforehand: the mode is `filesystem`."""
    assert act(file_server, "look", sandbox_id) == RUNS
    assert act(file_server, "pause", sandbox_id) == "True"
    assert act(file_server, "pause", sandbox_id) == "False"
    shown = file_server.request("GET", f"/sandboxes/{sandbox_id}").json()
    assert (shown["state"], shown["pauseMode"]) == ("paused", "filesystem")
    file_server.stop()
    file_server.start()
    assert act(file_server, "look", sandbox_id) == COLD
    assert act(file_server, "pause", sandbox_id) == "True"
    assert act(file_server, "look", sandbox_id) == COLD


def test_what_would_lose_memory_is_refused_by_name(file_server: Server, sandbox_id: str) -> None:
    for step in ("pause_memory", "snapshot_memory", "fork"):
        told = act(file_server, step, sandbox_id)
        assert told.startswith("SandboxException: 400"), told
        assert "memory" in told
    assert act(file_server, "look", sandbox_id) == RUNS


def test_sandboxes_of_a_snapshot_of_files_go_their_own_ways(file_server: Server, sandbox_id: str) -> None:
    assert act(file_server, "copies", sandbox_id) == ", ".join(f"{COLD} {number}" for number in range(3))
    assert act(file_server, "look", sandbox_id) == RUNS


def test_forks_of_files_are_made_where_they_are_asked_for(file_server: Server, sandbox_id: str) -> None:
    """A field of ours: the clients' own call has none, and means memory."""
    body = {"count": 20, "timeout": 60, "memory": False}
    answer = file_server.request("POST", f"/sandboxes/{sandbox_id}/fork", json=body)
    assert answer.status_code == 201
    made = [one["sandbox"]["sandboxID"] for one in answer.json()]
    assert len({*made, sandbox_id}) == 21
    assert act(file_server, "look", made[7]) == COLD
    for one in made:
        file_server.request("DELETE", f"/sandboxes/{one}")
    assert act(file_server, "look", sandbox_id) == RUNS


def test_a_time_out_keeps_files_where_that_was_asked_for(file_server: Server) -> None:
    made = act(file_server, "begin_with_pause")
    assert act(file_server, "paused_by_time", made) == COLD
    assert file_server.request("DELETE", f"/sandboxes/{made}").status_code == 204
