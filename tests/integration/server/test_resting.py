"""Sandboxes that stand still until something needs them, by their owner's wish or because nothing happens."""

import itertools
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest
from tests.support.fixtures import NEEDS_A_SERVER, MakeSandbox, connect_options
from tests.support.server import Server
from tests.support.waiting import until

from cloche import Sandbox

pytestmark = NEEDS_A_SERVER

_TICKING = "while true; do date +%s.%N >> /tmp/ticks; sleep 0.01; done"


def freeze(server: Server, sandbox: Sandbox) -> None:
    """Have it stand still, and say so."""
    assert server.request("POST", f"/sandboxes/{sandbox.sandbox_id}/freeze").status_code == 204
    assert detail(server, sandbox)["frozen"] is True


def detail(server: Server, sandbox: Sandbox) -> dict[str, Any]:
    """What the server shows of it."""
    return server.request("GET", f"/sandboxes/{sandbox.sandbox_id}").json()


def longest_gap_s(sandbox: Sandbox) -> float:
    """The longest time that a program, which writes down the time again and again, did not do so."""
    ticks = [float(line) for line in sandbox.files.read("/tmp/ticks").splitlines() if line]
    return max(after - before for before, after in itertools.pairwise(ticks))


def test_what_is_frozen_stands_still_and_goes_on_when_it_is_asked(
    server: Server, sandboxes: MakeSandbox
) -> None:
    """Variables, files and programs are where they were; the request that came waited for them."""
    sandbox = sandboxes(timeout=600)
    sandbox.run_code("x = 41")
    sandbox.commands.run(f"nohup sh -c '{_TICKING}' >/dev/null 2>&1 &")
    sandbox.commands.run("until [ -s /tmp/ticks ]; do sleep 0.05; done", timeout=30)
    freeze(server, sandbox)
    listed = [one for one in server.request("GET", "/v2/sandboxes").json() if one["frozen"]]
    assert [(one["sandboxID"], one["state"]) for one in listed] == [(sandbox.sandbox_id, "running")]
    time.sleep(0.5)
    assert sandbox.run_code("x + 1").text == "42"
    assert detail(server, sandbox)["frozen"] is False
    assert longest_gap_s(sandbox) >= 0.5


@pytest.mark.parametrize("act", ["connect", "files", "logs", "port", "kill", "timeout"])
def test_whatever_needs_it_has_it_go_on(server: Server, sandboxes: MakeSandbox, act: str) -> None:
    """And what does not, such as a new time-out, leaves it as it is."""
    sandbox = sandboxes(timeout=600)
    sandbox.commands.run("nohup python3 -m http.server 8000 >/dev/null 2>&1 &")
    assert sandbox.wait_for_port(8000)
    freeze(server, sandbox)
    began = time.monotonic()
    if act == "connect":
        sandbox.connect(timeout=600)
    elif act == "files":
        assert sandbox.files.read("/etc/hostname").strip() == sandbox.sandbox_id
    elif act == "logs":
        assert server.request("GET", f"/sandboxes/{sandbox.sandbox_id}/logs").status_code == 200
    elif act == "port":
        headers = {"E2b-Sandbox-Id": sandbox.sandbox_id, "E2b-Sandbox-Port": "8000"}
        assert httpx.get(server.url, headers=headers, trust_env=False).status_code == 200
    elif act == "timeout":
        sandbox.set_timeout(500)
        assert detail(server, sandbox)["frozen"] is True
    else:
        assert sandbox.kill()
    assert time.monotonic() - began < 2
    if act not in ("kill", "timeout"):
        assert detail(server, sandbox)["frozen"] is False


def test_cache_of_a_frozen_one_is_given_back(server: Server, sandboxes: MakeSandbox) -> None:
    """What it has written goes to disk, and the memory to whoever needs it."""
    if server.isolation == "gvisor":
        pytest.skip("what is written there is shared memory of the sentry's, for which there is no swap")
    sandbox = sandboxes(timeout=600)
    sandbox.commands.run("head -c 50000000 /dev/urandom > /tmp/written")
    (group,) = Path("/sys/fs/cgroup").glob(f"**/cloche-*/{sandbox.sandbox_id}/memory.stat")
    before = group.read_text()
    freeze(server, sandbox)
    until(lambda: _cached(before) - _cached(group.read_text()) > 40_000_000, within_s=10, what="less cache")
    assert len(sandbox.files.read("/tmp/written", format="bytes")) == 50_000_000


def _cached(stat: str) -> int:
    fields = dict(line.split() for line in stat.splitlines())
    return sum(int(fields.get(f"total_{name}") or fields[name]) for name in ("inactive_file", "active_file"))


def test_node_that_is_killed_loses_no_frozen_sandbox(own_server: Server) -> None:
    """It goes on with the node's next start, at the latest."""
    sandbox = connect_options(own_server, Sandbox.create, timeout=600)
    sandbox.run_code("x = 41")
    freeze(own_server, sandbox)
    own_server.kill_part("node")
    assert sandbox.run_code("x + 1").text == "42"
    assert detail(own_server, sandbox)["frozen"] is False
    assert sandbox.kill()


def test_one_in_which_nothing_happens_is_frozen_until_the_next_request(
    server: Server, sandboxes: MakeSandbox
) -> None:
    """Programs that wait stand still with it; one that computes, or has a connection of its own, keeps it."""
    asleep, busy = (sandboxes(timeout=600, idle_after=1) for _ in range(2))
    asleep.run_code("x = 41")
    asleep.commands.run("nohup sleep 1000 >/dev/null 2>&1 &")
    busy.commands.run("nohup sh -c 'while true; do :; done' >/dev/null 2>&1 &")
    until(lambda: detail(server, asleep)["frozen"], within_s=30, what="a frozen sandbox")
    assert detail(server, busy)["frozen"] is False
    assert asleep.run_code("x + 1").text == "42"
    # Asked while a command's stream is open, so that it cannot be idle again by then, however busy we are.
    waits = asleep.commands.run("sleep 1000", background=True)
    assert detail(server, asleep)["frozen"] is False
    waits.kill()
    until(lambda: detail(server, asleep)["frozen"], within_s=30, what="a sandbox that is frozen again")


def test_one_with_a_stream_open_is_not_idle(server: Server, sandboxes: MakeSandbox) -> None:
    """Whoever listens to a command that says nothing is not cut off from it."""
    listened, control = (sandboxes(timeout=600, idle_after=1) for _ in range(2))
    handle = listened.commands.run("sleep 1000", background=True)
    until(lambda: detail(server, control)["frozen"], within_s=30, what="a frozen sandbox")
    assert detail(server, listened)["frozen"] is False
    handle.kill()
    until(lambda: detail(server, listened)["frozen"], within_s=30, what="a frozen sandbox")


def test_requests_are_never_lost_however_often_it_comes_to_rest(
    server: Server, sandboxes: MakeSandbox
) -> None:
    """Requests and freezes by the dozen, against each other: every request is answered, and in time."""
    sandbox = sandboxes(timeout=600)
    stopping = threading.Event()

    def freeze_again_and_again() -> None:
        path = f"/sandboxes/{sandbox.sandbox_id}/freeze"
        with httpx.Client(base_url=server.url, headers={"X-API-KEY": server.key}, trust_env=False) as client:
            while not stopping.is_set():
                assert client.post(path).status_code in (204, 409)

    with ThreadPoolExecutor() as threads:
        freezing = threads.submit(freeze_again_and_again)
        try:
            for number in range(100):
                began = time.monotonic()
                sandbox.files.write("/tmp/n", str(number))
                assert sandbox.files.read("/tmp/n") == str(number)
                assert time.monotonic() - began < 5
        finally:
            stopping.set()
        freezing.result()


def test_freezing_and_going_on_take_milliseconds(server: Server, sandboxes: MakeSandbox) -> None:
    """The promise is 10 ms each way on a quiet machine; ten times that would be another mechanism."""
    sandbox = sandboxes(timeout=600)
    there: list[float] = []
    back: list[float] = []
    path = f"/sandboxes/{sandbox.sandbox_id}/freeze"
    with httpx.Client(base_url=server.url, headers={"X-API-KEY": server.key}, trust_env=False) as client:
        for _ in range(20):
            assert sandbox.files.exists("/")
            began = time.perf_counter()
            assert client.post(path).status_code == 204
            frozen = time.perf_counter()
            assert sandbox.files.exists("/")
            there.append(frozen - began)
            back.append(time.perf_counter() - frozen)
    print("ms there and back:", [sorted(round(1e3 * took, 1) for took in way) for way in (there, back)])
    assert min(there) < 0.1
    assert min(back) < 0.1
