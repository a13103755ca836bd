"""Sandboxes with kernels of their own and with volumes: paused, resumed and copied, whatever others write."""

from collections.abc import Callable, Iterator
from typing import Any

import httpx
import pytest
from tests.support import census
from tests.support.fixtures import NEEDS_A_SERVER, connect_options, running
from tests.support.inside import root, run
from tests.support.server import Server
from tests.support.volumes import Volume, make, sandbox_with
from tests.support.waiting import until

from cloche import Sandbox

pytestmark = [NEEDS_A_SERVER, pytest.mark.needs("loop", "runsc"), pytest.mark.timeout(240)]

FOLDER, FILE = "/mnt/data/in", "/mnt/data/in/file"
USER = """
import ctypes, mmap, os, socket, sys, time
how, folder, file = sys.argv[1], "/mnt/data/in", "/mnt/data/in/file"
match how:
    case "folder":
        os.chdir(folder)
    case "read":
        kept = open(file)
    case "write":
        kept = os.open(file, os.O_RDWR | os.O_APPEND)
    case "removed":
        kept = open(file, "r+")
        os.unlink(file)
    case "mapped":
        with open(file, "r+") as opened:
            kept = mmap.mmap(opened.fileno(), 0)
    case "root":
        os.chroot(folder)
    case "watched":
        library = ctypes.CDLL(None)
        kept = library.inotify_init()
        assert library.inotify_add_watch(kept, folder.encode(), 0x100) > 0
    case "passed":
        a, b = socket.socketpair()
        with open(file) as opened:
            socket.send_fds(a, [b"x"], [opened.fileno()])
print(os.getpid(), flush=True)
time.sleep(600)
"""


@pytest.fixture(scope="module")
def small_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server of this module alone, with isolation gvisor."""
    state = tmp_path_factory.mktemp("pausing") / "state"
    state.mkdir()
    (state / "config.toml").write_text("[volumes]\nsize_mib = 24\nfiles = 300\n")
    with running(state, isolation="gvisor") as server:
        yield server


@pytest.fixture
def volume(small_server: Server) -> Iterator[Volume]:
    made = make(small_server, "data")
    assert made.content("POST", "dir", "/in").status_code == 201
    assert made.write("/in/file", b"0123456789" * 1000).status_code == 201
    yield made
    made.remove()
    until(lambda: not list(census.loops([small_server.state])), within_s=15, what="the loop device's end")


@pytest.fixture
def sandbox(small_server: Server, volume: Volume) -> Iterator[Sandbox]:
    with sandbox_with(small_server, {"/mnt/data": volume.name}) as made:
        yield made
        made.kill()


def asked(server: Server, sandbox: Sandbox, verb: str, **body: Any) -> httpx.Response:
    return server.request("POST", f"/sandboxes/{sandbox.sandbox_id}/{verb}", json=body)


def paused(server: Server, sandbox: Sandbox, **body: Any) -> None:
    answer = asked(server, sandbox, "pause", **body)
    assert answer.status_code == 204, answer.text


def resumed(server: Server, sandbox: Sandbox) -> None:
    connect_options(server, Sandbox.connect, sandbox.sandbox_id, timeout=600).close()


def use(sandbox: Sandbox, how: str) -> str:
    """Have a program of root's use the volume in one way from here on; its pid."""
    sandbox.files.write("/tmp/user.py", USER)
    started = root(
        sandbox,
        f"(setsid python3 /tmp/user.py {how} > /tmp/said 2>&1 < /dev/null &);"
        " for i in $(seq 100); do [ -s /tmp/said ] && break; sleep 0.1; done; cat /tmp/said",
    )
    assert started.out.strip().isdigit(), started.out
    return started.out.strip()


def end(sandbox: Sandbox, pid: str) -> None:
    assert root(sandbox, f"kill {pid}; while kill -0 {pid} 2> /dev/null; do sleep 0.1; done").code == 0


def lives(sandbox: Sandbox, pid: str) -> bool:
    return root(sandbox, f"kill -0 {pid}").code == 0


def test_a_resumed_sandbox_sees_what_the_volume_holds_by_then(
    small_server: Server, volume: Volume, sandbox: Sandbox
) -> None:
    """Not a copy; a program that stands in the volume's root is no obstacle, nor what was looked at."""
    began = root(
        sandbox, "cd /mnt/data; (setsid sleep 600 > /tmp/out 2>&1 < /dev/null &); ls -R; cat in/file"
    )
    assert began.code == 0
    paused(small_server, sandbox)
    assert volume.write("/in/file", b"of now\n", force="true").status_code == 201
    assert volume.content("POST", "dir", "/other").status_code == 201
    resumed(small_server, sandbox)
    assert run(sandbox, "cat /mnt/data/in/file; ls /mnt/data; pgrep -c sleep").out == "of now\nin\nother\n1\n"
    assert root(sandbox, "echo of inside > /mnt/data/in/file").code == 0
    assert volume.read("/in/file") == b"of inside\n"
    paused(small_server, sandbox)
    assert volume.content("DELETE", "path", "/in").status_code == 204
    resumed(small_server, sandbox)
    assert run(sandbox, "ls /mnt/data").out == "other\n"


def test_a_file_in_use_refuses_what_would_break_it_and_nothing_is_lost(
    small_server: Server, volume: Volume, sandbox: Sandbox
) -> None:
    """400 that names file and program, for a pause, one of files alone, a snapshot and a fork; it runs on."""
    requests = ("pause", {}), ("pause", {"memory": False}), ("snapshots", {}), ("fork", {"count": 2})
    ways = {"folder": FOLDER, "root": FOLDER, "read": FILE, "write": FILE, "mapped": FILE, "removed": FILE}
    for how, what in ways.items():
        user = use(sandbox, how)
        for verb, body in requests if how == "folder" else requests[:1]:
            answer = asked(small_server, sandbox, verb, **body)
            assert (answer.status_code, answer.json()["code"]) == (400, 400), answer.text
            assert f"{what} by python3 (pid {user})" in answer.json()["message"]
            assert lives(sandbox, user)
        end(sandbox, user)
    assert small_server.request("GET", "/snapshots").json() == []
    assert volume.content("GET", "path", "/in/file").status_code == 404
    paused(small_server, sandbox)
    resumed(small_server, sandbox)
    assert run(sandbox, "ls -A /mnt/data/in").out == ""


@pytest.mark.parametrize(("how", "what"), [("watched", f"{FOLDER}/"), ("passed", FILE)])
def test_what_no_program_shows_is_missed_at_resume_and_can_be_put_back(
    small_server: Server, volume: Volume, sandbox: Sandbox, how: str, what: str
) -> None:
    """A watched folder, a file on its way through a socket: 409 that names it, and it stays paused."""
    user = use(sandbox, how)
    paused(small_server, sandbox)
    assert volume.content("DELETE", "path", "/in").status_code == 204
    for _ in range(2):
        answer = asked(small_server, sandbox, "resume", timeout=600)
        assert (answer.status_code, answer.json()["code"]) == (409, 409), answer.text
        assert what in answer.json()["message"]
        assert "put it back" in answer.json()["message"]
    assert volume.write("/in", b"a file of the folder's name").status_code == 201
    assert asked(small_server, sandbox, "resume", timeout=600).status_code == 409
    assert volume.content("DELETE", "path", "/in").status_code == 204
    assert volume.content("POST", "dir", "/in").status_code == 201
    assert volume.write("/in/file", b"back").status_code == 201
    resumed(small_server, sandbox)
    assert lives(sandbox, user)
    assert run(sandbox, "cat /mnt/data/in/file").out == "back"


@pytest.mark.parametrize("stop", [Server.stop, Server.kill_supervisor])
def test_a_volume_is_held_by_a_paused_sandbox_over_the_end_of_the_server(
    small_server: Server, volume: Volume, sandbox: Sandbox, stop: Callable[[Server], None]
) -> None:
    """It is not mounted meanwhile, is not deleted, and is the same one afterwards."""
    paused(small_server, sandbox)
    stop(small_server)
    small_server.start()
    until(lambda: not list(census.loops([small_server.state])), within_s=15, what="the loop device's end")
    refused = small_server.request("DELETE", f"/volumes/{volume.id}")
    assert (refused.status_code, sandbox.sandbox_id in refused.json()["message"]) == (409, True)
    assert volume.write("/meanwhile", b"x").status_code == 201
    resumed(small_server, sandbox)
    assert run(sandbox, "cat /mnt/data/meanwhile").out == "x"
    small_server.kill_part("node")
    assert run(sandbox, "cat /mnt/data/meanwhile").out == "x"
    paused(small_server, sandbox)


def test_files_alone_are_kept_and_the_volume_is_there_again(
    small_server: Server, volume: Volume, sandbox: Sandbox
) -> None:
    root(sandbox, "echo own > /root/own; (setsid sleep 600 > /tmp/out 2>&1 < /dev/null &)")
    paused(small_server, sandbox, memory=False)
    assert volume.write("/in/file", b"new", force="true").status_code == 201
    resumed(small_server, sandbox)
    assert root(sandbox, "cat /root/own /mnt/data/in/file; pgrep -c sleep").out == "own\nnew0\n"


def test_copies_have_the_volume_of_their_source(
    small_server: Server, volume: Volume, sandbox: Sandbox
) -> None:
    """Children of a fork and sandboxes of a snapshot: one file system, at the same path."""
    assert root(sandbox, "mkdir /mnt/data/of").code == 0
    children = [
        child["sandbox"]["sandboxID"] for child in asked(small_server, sandbox, "fork", count=2).json()
    ]
    snapshot = asked(small_server, sandbox, "snapshots").json()["snapshotID"]
    made = small_server.request("POST", "/v2/sandboxes", json={"templateID": snapshot, "timeout": 600})
    copies = [*children, made.json()["sandboxID"]]
    for sandbox_id in copies:
        with connect_options(small_server, Sandbox.connect, sandbox_id, timeout=600) as copy:
            assert root(copy, f"echo x > /mnt/data/of/{sandbox_id}").code == 0
            shown = small_server.request("GET", f"/sandboxes/{sandbox_id}").json()
            assert shown["volumeMounts"] == [{"name": "data", "path": "/mnt/data"}]
            copy.kill()
    assert run(sandbox, "ls /mnt/data/of").out.split() == sorted(copies)
    body = {"templateID": snapshot, "volumeMounts": [{"name": "data", "path": "/elsewhere"}]}
    for wrong in (body, body | {"volumeMounts": []}):
        refused = small_server.request("POST", "/v2/sandboxes", json=wrong)
        assert (refused.status_code, "/mnt/data" in refused.json()["message"]) == (400, True)
    assert small_server.request("DELETE", f"/templates/{snapshot}").status_code == 204


def test_a_snapshot_outlives_its_volume_and_then_names_it(small_server: Server) -> None:
    """It does not hold it; another volume at the same path is as good."""
    gone, other = make(small_server, "gone"), make(small_server, "other")
    with sandbox_with(small_server, {"/a/b/c": "gone"}) as source:
        assert run(source, "echo own > /home/user/own").code == 0
        snapshot = asked(small_server, source, "snapshots").json()["snapshotID"]
        source.kill()
    gone.remove()
    refused = small_server.request("POST", "/v2/sandboxes", json={"templateID": snapshot})
    assert (refused.status_code, "gone" in refused.json()["message"]) == (404, True)
    mounts = [{"name": "other", "path": "/a/b/c"}]
    body = {"templateID": snapshot, "timeout": 600, "volumeMounts": mounts}
    made = small_server.request("POST", "/v2/sandboxes", json=body).json()["sandboxID"]
    with connect_options(small_server, Sandbox.connect, made, timeout=600) as copy:
        assert run(copy, "cat /home/user/own; echo there > /a/b/c/file").out == "own\n"
        assert other.read("/file") == b"there\n"
        copy.kill()
    other.remove()
    assert small_server.request("DELETE", f"/templates/{snapshot}").status_code == 204


@pytest.mark.parametrize("memory", [True, False])
def test_a_time_out_pauses_as_soon_as_nothing_of_the_volume_is_in_use(
    small_server: Server, volume: Volume, memory: bool
) -> None:
    """Until then it runs on."""
    listed = [{"name": volume.name, "path": "/mnt/data"}]
    body = {
        "templateID": "base", "timeout": 600, "volumeMounts": listed, "autoPause": True,
        "autoPauseMemory": memory,
    }  # fmt: skip
    made = small_server.request("POST", "/v2/sandboxes", json=body)
    assert made.status_code == 201, made.text
    sandbox_id = made.json()["sandboxID"]

    def state() -> str:
        return small_server.request("GET", f"/sandboxes/{sandbox_id}").json()["state"]

    with connect_options(small_server, Sandbox.connect, sandbox_id, timeout=600) as sandbox:
        user = use(sandbox, "read")
        small_server.request("POST", f"/sandboxes/{sandbox_id}/timeout", json={"timeout": 1})
        until(lambda: "sandbox.pause_failed" in small_server.tail(400), within_s=20, what="a refused pause")
        assert state() == "running"
        end(sandbox, user)
        small_server.request("POST", f"/sandboxes/{sandbox_id}/timeout", json={"timeout": 1})
        until(lambda: state() == "paused", within_s=30, what="the pause")
        resumed(small_server, sandbox)
        assert run(sandbox, f"head -c 10 {FILE}").out == "0123456789"
        sandbox.kill()


def test_sixteen_volumes_are_there_again(small_server: Server) -> None:
    """At nested paths, each at its own."""
    made = [make(small_server, f"v{number}") for number in range(16)]
    mounts = {f"/srv/deep/er/v{number}": f"v{number}" for number in range(15)} | {"/opt": "v15"}
    with sandbox_with(small_server, mounts) as sandbox:
        assert run(sandbox, "for p in /srv/deep/er/* /opt; do echo $p > $p/name || exit 1; done").code == 0
        paused(small_server, sandbox)
        resumed(small_server, sandbox)
        assert run(sandbox, "cat /srv/deep/er/v3/name /opt/name").out == "/srv/deep/er/v3\n/opt\n"
        assert made[15].read("/name") == b"/opt\n"
        sandbox.kill()
    for volume in made:
        volume.remove()
