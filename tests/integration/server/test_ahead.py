"""Sandboxes made ahead: nobody's until they are claimed, then exactly what a fresh one is."""

import http.client
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.support import outside
from tests.support.fixtures import NEEDS_A_SERVER, connect_options, running
from tests.support.inside import run
from tests.support.server import Server
from tests.support.waiting import until

from cloche import Sandbox

pytestmark = [NEEDS_A_SERVER, pytest.mark.timeout(120)]
AHEAD = 2


@pytest.fixture
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server that keeps two ready, and has them."""
    with running(tmp_path_factory.mktemp("ahead") / "state", ahead=AHEAD) as made:
        with connect_options(made, Sandbox.create):
            pass
        until(lambda: len(made.ready()) == AHEAD, within_s=30, what="sandboxes made ahead")
        yield made


def claim(server: Server, **options: object) -> Sandbox:
    """Create one, and make sure that it is one of those that were ready."""
    ids = server.ready()
    sandbox = connect_options(server, Sandbox.create, **options)
    assert sandbox.sandbox_id in ids
    return sandbox


def test_a_claimed_one_is_its_creator_s_in_every_way(server: Server) -> None:
    """Id, name, variables, metadata, limits and end are those of the request; another takes its place."""
    sandbox = claim(server, envs={"OWN": "1"}, metadata={"who": "me"}, timeout=77)
    name = sandbox.sandbox_id
    shown = run(
        sandbox, "hostname; cat /etc/hostname; echo $OWN $E2B_SANDBOX_ID; cat /run/e2b/.E2B_SANDBOX_ID"
    )
    assert shown.out.split() == [name, name, "1", name, name]
    code = "import os, sys; print('pandas' in sys.modules, os.environ['OWN'], os.environ['E2B_SANDBOX_ID'])"
    assert sandbox.run_code(code).logs.stdout == [f"True 1 {name}\n"]
    detail = server.request("GET", f"/sandboxes/{name}").json()
    assert detail["metadata"] == {"who": "me"}
    assert server.request("GET", f"/sandboxes/{name}/metrics").status_code == 200
    listed = [item["sandboxID"] for item in server.request("GET", "/v2/sandboxes").json()]
    assert listed == [name], (name, listed)  # those that are ready are nobody's
    until(lambda: len(server.ready()) == AHEAD, within_s=30, what="another one")
    sandbox.kill()


def test_before_the_claim_nothing_answers_and_nothing_goes_out(server: Server, tmp_path: Path) -> None:
    """The agent refuses whoever reaches it, the edge knows no way to it, and no packet leaves."""
    with outside.played(tmp_path) as world:
        pids = server.ready()
        for name, pid in pids.items():
            for token in ("", "a" * 40):
                for target in ("/files?path=/etc/passwd", "/envs", "/metrics", "/logs"):
                    assert _ask(server, name, "GET", target, token) == 401
            assert server.request("GET", f"/sandboxes/{name}").status_code == 404
            assert server.request("DELETE", f"/sandboxes/{name}").status_code == 404
            by_edge = server.request("GET", "/health", headers={"Host": f"49983-{name}.{server.url[7:]}"})
            assert by_edge.status_code == 502
            assert not _reaches_outside(pid, within_s=1)
        sandbox = claim(server)
        name = sandbox.sandbox_id
        # Twin: the same process's network, now that it is somebody's.
        assert _reaches_outside(pids[name], within_s=10)
        assert world.reached() == [outside.PUBLIC]
        assert _ask(server, name, "POST", "/prepare", "") == 404
        sandbox.kill()


def test_a_claim_without_internet_has_none(server: Server, tmp_path: Path) -> None:
    """The policy of the request holds before it is answered."""
    with outside.played(tmp_path) as world:
        pids = server.ready()
        sandbox = claim(server, allow_internet_access=False)
        assert not _reaches_outside(pids[sandbox.sandbox_id], within_s=1)
        assert world.reached() == []
        sandbox.kill()


def test_two_that_were_ready_share_no_randomness(server: Server) -> None:
    """Numbers that a program may take for its own differ between any two."""
    code = "import random, uuid, numpy; print(random.random(), numpy.random.rand(), uuid.uuid4())"
    made = [claim(server) for _ in range(AHEAD)]
    first, second = [sandbox.run_code(code).logs.stdout[0].split() for sandbox in made]
    assert not set(first) & set(second)
    for sandbox in made:
        sandbox.kill()


def test_a_node_that_is_killed_ends_those_that_were_ready_and_makes_others(server: Server) -> None:
    """Nothing of them is left, and a create right after the crash works."""
    before = server.ready()
    server.kill_part("node")
    sandbox = connect_options(server, Sandbox.create)
    assert sandbox.run_code("1 + 1").text == "2"
    until(lambda: len(server.ready()) == AHEAD, within_s=30, what="new ones")
    assert not before.keys() & server.ready().keys()
    sandbox.kill()


def test_an_api_that_is_killed_learns_of_them_again(server: Server) -> None:
    """None stays unused because whoever knew of it has gone."""
    server.kill_part("api")
    until(lambda: _claims(server), within_s=10, what="a claim")


def test_a_burst_larger_than_what_is_ready_succeeds(server: Server) -> None:
    """A miss is a create like any other."""
    made = [connect_options(server, Sandbox.create) for _ in range(AHEAD + 3)]
    assert len({sandbox.sandbox_id for sandbox in made}) == AHEAD + 3
    for sandbox in made:
        assert run(sandbox, "echo ok").out == "ok\n"
        sandbox.kill()


def _claims(server: Server) -> bool:
    ids = server.ready()
    with connect_options(server, Sandbox.create) as sandbox:
        return sandbox.sandbox_id in ids


def _ask(server: Server, name: str, method: str, target: str, token: str) -> int:
    """Ask an agent over its own socket, as only the server's processes can."""
    connection = http.client.HTTPConnection("agent", timeout=10)
    connection.sock = socket.socket(socket.AF_UNIX)
    connection.sock.connect(str(server.state / "run" / "agents" / name / "envd.sock"))
    connection.request(method, target, headers={"X-Access-Token": token} if token else {})
    status = connection.getresponse().status
    connection.close()
    return status


def _reaches_outside(pid: int, *, within_s: int) -> bool:
    """Whether a process in the network of another gets through to the played world."""
    program = f"import socket; socket.create_connection(('{outside.PUBLIC}', {outside.PORT}), {within_s})"
    argv = ["nsenter", f"--net=/proc/{pid}/ns/net", sys.executable, "-c", program]
    return subprocess.run(argv, capture_output=True, timeout=30, check=False).returncode == 0
