"""Sandboxes come and go, and leave nothing."""

import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from tests.support import census
from tests.support.fixtures import NEEDS_A_SERVER, MakeSandbox
from tests.support.inside import run
from tests.support.server import Server
from tests.support.waiting import until

pytestmark = NEEDS_A_SERVER


@pytest.mark.timeout(300)
def test_200_create_run_kill_cycles_leave_nothing_behind(server: Server, sandboxes: MakeSandbox) -> None:
    """Three at a time; everything of every one of them is gone afterwards, and the server knows of none."""

    def cycle(number: int) -> None:
        sandbox = sandboxes()
        assert sandbox.commands.run(f"echo {number}").stdout == f"{number}\n"
        assert sandbox.kill()

    with census.nothing_left([server.state]), ThreadPoolExecutor(3) as pool:
        list(pool.map(cycle, range(200)))
    assert server.request("GET", "/v2/sandboxes").json() == []


@pytest.mark.timeout(300)
@pytest.mark.parametrize("cycles", [20, pytest.param(200, marks=pytest.mark.nightly)])
def test_create_run_code_kill_cycles_leave_nothing_behind(
    server: Server, sandboxes: MakeSandbox, cycles: int
) -> None:
    """Process, mount, cgroup, interface, rule, folder and slot of every one of them are gone afterwards."""
    with census.nothing_left([server.state]):
        for number in range(cycles):
            sandbox = sandboxes()
            assert sandbox.run_code(f"{number} + 1").text == str(number + 1)
            assert sandbox.kill()
    assert server.request("GET", "/v2/sandboxes").json() == []


def test_a_time_out_ends_a_sandbox_with_everything_in_it(server: Server, sandboxes: MakeSandbox) -> None:
    """2 s of life are over after 2 s, no sooner, and a process that ignores signals is no excuse."""
    with census.nothing_left([server.state]):
        began = time.monotonic()
        sandbox = sandboxes(timeout=2)
        sandbox.commands.run("trap '' TERM INT HUP; sleep 600", background=True, timeout=0)
        path = f"/sandboxes/{sandbox.sandbox_id}"
        until(lambda: server.request("GET", path).status_code == 404, within_s=10, what="the end")
        assert time.monotonic() - began >= 2


def test_kill_ends_daemons_and_stubborn_processes_within_5_s(server: Server, sandboxes: MakeSandbox) -> None:
    """Processes that ignore SIGTERM, forked twice, or left their session: none outlives the sandbox."""
    sandbox = sandboxes()
    sandbox.commands.run("trap '' TERM; while true; do sleep 1; done", background=True, timeout=0)
    run(sandbox, "setsid nohup sh -c 'sleep 600 & disown; sleep 600' > /dev/null 2>&1 < /dev/null & disown")
    with census.nothing_left([server.state], within_s=5):
        began = time.monotonic()
        sandbox.kill()
        assert time.monotonic() - began < 5


def test_many_sandboxes_at_once_have_ids_and_files_of_their_own(sandboxes: MakeSandbox) -> None:
    """Eight alive together: what one writes no other sees."""
    made = [sandboxes() for _ in range(8)]
    for number, sandbox in enumerate(made):
        sandbox.files.write("/home/user/mine", str(number))
    assert [sandbox.files.read("/home/user/mine") for sandbox in made] == [str(number) for number in range(8)]
    assert len({sandbox.sandbox_id for sandbox in made}) == 8


def test_a_sandbox_without_internet_has_none(sandboxes: MakeSandbox) -> None:
    """`allow_internet_access=False`: names and addresses do not answer, its own loopback does."""
    sandbox = sandboxes(allow_internet_access=False)
    assert run(sandbox, "curl -sS -m 5 http://1.1.1.1").code != 0
    assert run(sandbox, "timeout 10 getent hosts example.org").code != 0
    serve = "python3 -m http.server 8000 --bind 127.0.0.1 > /dev/null 2>&1"
    fetch = "curl -sS --retry 20 --retry-connrefused --retry-delay 1 -m 20 http://127.0.0.1:8000 > /dev/null"
    assert run(sandbox, f"{serve} & {fetch}").code == 0


def test_one_idempotency_key_makes_one_sandbox(server: Server) -> None:
    """A create that is sent again, as clients do after a broken connection, gives the same sandbox."""
    send = {"json": {"templateID": "base", "timeout": 60}, "headers": {"Idempotency-Key": "one-and-the-same"}}
    first, second = (server.request("POST", "/v2/sandboxes", **send) for _ in range(2))
    assert first.status_code == 201
    assert first.json()["sandboxID"] == second.json()["sandboxID"]
    assert server.request("DELETE", f"/sandboxes/{first.json()['sandboxID']}").status_code == 204


def test_a_login_shell_of_the_default_template_starts_no_program(sandboxes: MakeSandbox) -> None:
    """Every command runs in one, so each that it starts would cost every command a millisecond."""
    sandbox = sandboxes()

    def ids_between() -> int:
        """Process ids that were given to others while four shells came and went, one after the other."""
        shells = run(sandbox, "exec bash -c 'for i in 1 2 3 4; do bash -l -c \"echo \\$\\$\"; done'").out
        first, *_, last = map(int, shells.split())
        return last - first - 3

    # The least of several: the sandbox's own threads take ids too, but not each time.
    assert min(ids_between() for _ in range(5)) == 0
