"""Paused sandboxes through the official client, where the server, its disk or a stranger has a part in it."""

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.support import official
from tests.support.fixtures import NEEDS_A_SERVER, running
from tests.support.server import Server

from cloche_server.isolation import syscalls

PROGRAM = Path(__file__).parent / "memory_states.py"
UNKNOWN = "i" + "0" * 20
LIVES = r"1 a,b\n1,x\n2,y\n"
pytestmark = [NEEDS_A_SERVER, pytest.mark.needs("runsc"), pytest.mark.timeout(300)]


@pytest.fixture(scope="module")
def memory_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with running(tmp_path_factory.mktemp("memory") / "state", isolation="gvisor") as made:
        yield made


def act(server: Server, step: str, sandbox_id: str = "", key: str | None = None) -> str:
    """What comes of a step that the official client does."""
    argv = [str(official.interpreter()), str(PROGRAM), step, sandbox_id]
    env = official.client_env(server) | ({} if key is None else {"E2B_API_KEY": key})
    done = subprocess.run(argv, env=env, capture_output=True, text=True, timeout=200, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout.strip()


def told(server: Server, path: str, body: object, key: str | None = None) -> tuple[int, object]:
    """Status and `code` of the answer to what the client sends."""
    answer = server.request("POST", path, json=body, key=key)
    return answer.status_code, answer.json()["code"]


@pytest.fixture
def paused(memory_server: Server) -> Iterator[str]:
    """A paused sandbox, which goes on at the end of the test as if nothing had been."""
    sandbox_id = act(memory_server, "begin")
    assert act(memory_server, "pause", sandbox_id) == "True"
    yield sandbox_id
    assert act(memory_server, "go_on", sandbox_id) == LIVES
    assert memory_server.request("DELETE", f"/sandboxes/{sandbox_id}").status_code == 204


def test_a_counter_and_a_data_frame_go_on_over_a_pause_and_a_restart_of_the_server(
    memory_server: Server, paused: str
) -> None:
    memory_server.stop()
    memory_server.start()
    assert act(memory_server, "go_on", paused) == LIVES


def test_who_cannot_resume_is_told_and_nothing_is_lost(memory_server: Server, paused: str) -> None:
    stranger = memory_server.new_key("others")
    killed = act(memory_server, "begin")
    memory_server.request("DELETE", f"/sandboxes/{killed}")
    for sandbox_id, key in ((UNKNOWN, None), (killed, None), (paused, stranger)):
        assert act(memory_server, "connect", sandbox_id, key).startswith("SandboxNotFoundException")
        assert told(memory_server, f"/v2/sandboxes/{sandbox_id}/connect", {}, key) == (404, 404)
    # One that runs is just connected to; older clients, which resume it, are told.
    assert act(memory_server, "connect", paused) == paused
    assert told(memory_server, f"/sandboxes/{paused}/resume", {"timeout": 60}) == (409, 409)
    assert act(memory_server, "connect", paused) == paused


def test_a_damaged_image_is_refused_and_a_mended_one_resumes(memory_server: Server, paused: str) -> None:
    (image,) = (memory_server.state / "images").glob(f"{paused}-*")
    _flip(image / "pages.img")
    assert act(memory_server, "connect", paused).startswith("SandboxException: 409")
    assert told(memory_server, f"/v2/sandboxes/{paused}/connect", {}) == (409, 409)
    assert memory_server.request("GET", f"/sandboxes/{paused}").json()["state"] == "paused"
    _flip(image / "pages.img")


def test_a_count_of_forks_that_is_none_is_400_and_makes_none(memory_server: Server, paused: str) -> None:
    assert act(memory_server, "connect", paused) == paused
    assert act(memory_server, "fork_101", paused).startswith("InvalidArgumentException: count")
    for count in (0, 101):
        assert told(memory_server, f"/sandboxes/{paused}/fork", {"count": count}) == (400, 400)
    assert [one["sandboxID"] for one in memory_server.request("GET", "/v2/sandboxes").json()] == [paused]


def test_a_disk_that_is_full_leaves_the_sandbox_running(memory_server: Server) -> None:
    sandbox_id = act(memory_server, "begin")
    images = memory_server.state / "images"
    memory_server.kill_supervisor()
    # SAFETY: in the private mount namespace that these tests run in, over a folder of this test's server.
    syscalls.mount("tmpfs", str(images), "tmpfs", syscalls.MS_NODEV, "size=4m")
    try:
        memory_server.start()
        assert act(memory_server, "pause", sandbox_id).startswith("SandboxException: 507")
        assert told(memory_server, f"/sandboxes/{sandbox_id}/pause", {}) == (507, 507)
        assert act(memory_server, "go_on", sandbox_id) == LIVES
    finally:
        memory_server.kill_supervisor()
        syscalls.unmount(str(images))
        memory_server.start()
    assert act(memory_server, "pause", sandbox_id) == "True"
    assert act(memory_server, "go_on", sandbox_id) == LIVES
    memory_server.request("DELETE", f"/sandboxes/{sandbox_id}")


def _flip(path: Path) -> None:
    """Turn one bit in the middle."""
    with path.open("r+b") as file:
        file.seek(path.stat().st_size // 2)
        (byte,) = file.read(1)
        file.seek(-1, 1)
        file.write(bytes([byte ^ 1]))
