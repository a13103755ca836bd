"""kill -9 of any part of the server: sandboxes run on, and answer again within 5 s."""

import itertools
import time
from collections.abc import Iterator

import pytest
from tests.support.fixtures import NEEDS_A_SERVER, connect_options
from tests.support.server import Server
from tests.support.waiting import until

from cloche import Sandbox
from cloche_wire.errors import ClocheError

pytestmark = [NEEDS_A_SERVER, pytest.mark.timeout(240)]

COUNTER = """
import time
while True:
    with open('/home/user/beats', 'a') as beats:
        beats.write(f'{time.monotonic()}\\n')
    time.sleep(0.1)
"""
LONGEST_GAP_S = 1.0
BACK_WITHIN_S = 5.0


@pytest.fixture
def beating(own_server: Server) -> Iterator[Sandbox]:
    """A sandbox in which a counter beats ten times a second, and whose interpreter remembers something."""
    sandbox = connect_options(own_server, Sandbox.create, timeout=600)
    sandbox.files.write("/home/user/counter.py", COUNTER)
    sandbox.commands.run("python3 counter.py", background=True, timeout=0)
    sandbox.run_code("remembered = 'before the crash'")
    until(lambda: sandbox.files.exists("/home/user/beats"), within_s=20, what="the first beat")
    yield sandbox
    sandbox.kill()


def assert_lived_on(server: Server, sandbox: Sandbox, since: float) -> None:
    """It answers within 5 s of `since`, with its state and its processes, and its counter never paused."""
    until(lambda: _answers(server, sandbox), within_s=BACK_WITHIN_S, what="an answer")
    assert time.monotonic() - since < BACK_WITHIN_S + 1
    assert sandbox.run_code("remembered").text == "before the crash"
    beats = [float(line) for line in sandbox.files.read("/home/user/beats").split()]
    gaps = [later - earlier for earlier, later in itertools.pairwise(beats)]
    assert max(gaps) < LONGEST_GAP_S


def _answers(server: Server, sandbox: Sandbox) -> bool:
    """Whether the control plane knows it and its agent runs a command."""
    try:
        connect_options(server, Sandbox.connect, sandbox.sandbox_id).close()
        sandbox.commands.run("true")
    except ClocheError:
        return False
    return True


@pytest.mark.parametrize("part", ["api", "edge", "node"])
def test_a_killed_part_comes_back_and_sandboxes_never_noticed(
    own_server: Server, beating: Sandbox, part: str
) -> None:
    """SIGKILL of one part: the supervisor starts another, the running sandbox is found again as it was."""
    own_server.kill_part(part)
    assert_lived_on(own_server, beating, time.monotonic())


def test_a_killed_supervisor_leaves_sandboxes_to_be_adopted_by_the_next(
    own_server: Server, beating: Sandbox
) -> None:
    """SIGKILL of the whole server: the next start on the same state adopts what runs."""
    own_server.kill_supervisor()
    own_server.start()
    assert_lived_on(own_server, beating, time.monotonic())


def test_a_sandbox_can_be_killed_after_its_node_was(own_server: Server) -> None:
    """What an earlier node started, the present one can end, with everything it had."""
    sandbox = connect_options(own_server, Sandbox.create, timeout=600)
    own_server.kill_part("node")
    assert own_server.request("DELETE", f"/sandboxes/{sandbox.sandbox_id}").status_code == 204
    assert own_server.request("GET", f"/sandboxes/{sandbox.sandbox_id}").status_code == 404
    sandbox.close()


def test_a_time_out_that_passed_during_an_outage_still_ends_the_sandbox(own_server: Server) -> None:
    """Time-outs are kept by the journal and the boot clock, not by the process that took them."""
    sandbox = connect_options(own_server, Sandbox.create, timeout=3)
    own_server.kill_supervisor()
    time.sleep(3)
    own_server.start()
    gone = f"/sandboxes/{sandbox.sandbox_id}"
    until(
        lambda: own_server.request("GET", gone).status_code == 404, within_s=5, what="the end of the sandbox"
    )
    sandbox.close()


def test_a_second_server_on_the_same_state_is_refused(own_server: Server) -> None:
    """One state folder has one server: the second says who holds it and ends with 1."""
    second = Server(own_server.state)
    with pytest.raises(AssertionError, match="not running"):
        second.start()
