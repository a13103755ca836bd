"""Pause, resume, snapshots and forks of the official client, on a server with isolation gvisor."""

import os
import threading
import time
import urllib.request
import uuid
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest

from e2b import SandboxState
from e2b.exceptions import NotFoundException, SandboxException
from e2b_code_interpreter import Sandbox

COUNTER = "while true; do n=$((n + 1)); echo $n > /tmp/counter; sleep 0.02; done"


LATER = """
import threading, time
done = []
threading.Thread(target=lambda: (time.sleep(1), done.append(1))).start()
"""


def until(claim: Callable[[], bool], within_s: float = 30) -> None:
    over_at = time.monotonic() + within_s
    while not claim():
        assert time.monotonic() < over_at, "not in time"


def counted(sandbox: Sandbox) -> int:
    return int(sandbox.commands.run("cat /tmp/counter").stdout or 0)


def value(sandbox: Sandbox, code: str) -> str | None:
    execution = sandbox.run_code(code)
    assert execution.error is None, execution.error
    return execution.text


def test_processes_and_variables_go_on_after_a_pause(sandbox: Sandbox) -> None:
    sandbox.run_code("import pandas as pd; frame = pd.DataFrame({'a': [1, 2]})")
    sandbox.commands.run("printenv > /tmp/before; cd /tmp")
    counter = sandbox.commands.run(COUNTER, background=True)
    until(lambda: sandbox.files.exists("/tmp/counter") and counted(sandbox) > 0)
    assert sandbox.pause() is True
    assert sandbox.pause() is False
    assert Sandbox.get_info(sandbox.sandbox_id).state == SandboxState.PAUSED
    assert [found.sandbox_id for found in Sandbox.list().next_items()] == [sandbox.sandbox_id]
    resumed = Sandbox.connect(sandbox.sandbox_id, timeout=60)
    assert resumed.sandbox_id == sandbox.sandbox_id
    assert value(resumed, "int(frame.a.sum())") == "3"
    first = counted(resumed)
    until(lambda: counted(resumed) > first)
    assert counter.pid in {process.pid for process in resumed.commands.list()}
    # Who held the sandbox before goes on with it.
    assert sandbox.commands.run("echo hi").stdout == "hi\n"


def test_code_that_runs_while_it_is_paused_goes_on(sandbox: Sandbox) -> None:
    sandbox.run_code(LATER)
    sandbox.pause()
    sandbox.connect()
    until(lambda: value(sandbox, "len(done)") == "1")


def test_twenty_pauses_lose_nothing(sandbox: Sandbox) -> None:
    """With a stream open each time, whose connection a checkpoint cuts."""
    sandbox.run_code("x = 0")
    for number in range(20):
        sandbox.commands.run("while true; do echo; sleep 0.02; done", background=True)
        sandbox.pause()
        sandbox.connect()
        assert value(sandbox, "x += 1\nx") == str(number + 1)


def test_of_two_pauses_at_once_one_is_told_that_it_is_paused_already(sandbox: Sandbox) -> None:
    sandbox.run_code("x = 41")
    with ThreadPoolExecutor() as threads:
        outcomes = [threads.submit(sandbox.pause) for _ in range(2)]
    assert sorted(outcome.result() for outcome in outcomes) == [False, True]
    sandbox.connect()
    assert value(sandbox, "x") == "41"


def test_a_time_out_of_nothing_pauses_at_once() -> None:
    sandbox = Sandbox.create(timeout=60, lifecycle={"on_timeout": "pause"})
    try:
        sandbox.run_code("x = 41")
        sandbox.set_timeout(0)
        until(lambda: not sandbox.is_running())
        sandbox.connect()
        assert value(sandbox, "x") == "41"
    finally:
        sandbox.kill()


def boot_id(sandbox: Sandbox) -> str:
    text: str = sandbox.files.read("/proc/sys/kernel/random/boot_id")
    assert str(uuid.UUID(text.strip())) == text.strip()
    return text


def test_a_boot_outlasts_a_pause_with_memory_and_is_no_copys(sandbox: Sandbox) -> None:
    """Whoever goes on from one image would have the same, and so be seen to stand on one machine."""
    before = boot_id(sandbox)
    (fork,) = sandbox.fork(count=1, timeout=60)
    sandbox.pause()
    sandbox.connect()
    other = Sandbox.create(timeout=60)
    try:
        assert boot_id(sandbox) == before
        assert len({before, boot_id(fork), boot_id(other)}) == 3
        denied = other.commands.run("echo x > /proc/sys/kernel/random/boot_id || true", user="root")
        assert denied.stderr != ""
    finally:
        fork.kill()
        other.kill()


def test_each_has_its_own_host_name_and_its_address(sandbox: Sandbox) -> None:
    """The kernel's name of the machine is in the image; whoever goes on from it gets another."""
    look = "import socket; name = socket.gethostname(); print(name, socket.gethostbyname(name))"
    (fork,) = sandbox.fork(count=1, timeout=60)
    sandbox.pause()
    sandbox.connect()
    other = Sandbox.create(timeout=60)
    try:
        for one in (sandbox, fork, other):
            assert one.commands.run(f"python3 -c '{look}'").stdout == f"{one.sandbox_id} 127.0.1.1\n"
    finally:
        fork.kill()
        other.kill()


def test_a_pause_that_keeps_files_ends_processes(sandbox: Sandbox) -> None:
    sandbox.run_code("x = 1")
    sandbox.files.write("/home/user/kept", "abc")
    sandbox.commands.run("sleep 1000", background=True)
    before = boot_id(sandbox)
    sandbox.pause(mode="filesystem")
    sandbox.connect()
    assert boot_id(sandbox) != before
    assert sandbox.files.read("/home/user/kept") == "abc"
    assert sandbox.commands.list() == []
    assert sandbox.run_code("x").error.name == "NameError"


def test_traffic_wakes_a_sandbox_that_its_time_out_has_paused() -> None:
    lifecycle = {"on_timeout": "pause", "auto_resume": True}
    sandbox = Sandbox.create(timeout=3, lifecycle=lifecycle)
    try:
        sandbox.run_code("x = 41")
        sandbox.commands.run("python3 -m http.server 8000 >/dev/null 2>&1", background=True)
        until(lambda: Sandbox.get_info(sandbox.sandbox_id).state == SandboxState.PAUSED)
        assert value(sandbox, "x + 1") == "42"
        # The control plane is told by the node, and may learn of it after whoever has woken it.
        until(lambda: Sandbox.get_info(sandbox.sandbox_id).state == SandboxState.RUNNING)
        assert sandbox.commands.run("curl -s -o /dev/null -w '%{http_code}' localhost:8000").stdout == "200"
    finally:
        sandbox.kill()


def test_a_snapshot_makes_sandboxes_until_it_is_deleted(sandbox: Sandbox) -> None:
    sandbox.run_code("x = 41")
    sandbox.files.write("/home/user/kept", "abc")
    snapshot = sandbox.create_snapshot()
    assert value(sandbox, "x") == "41"
    others = [Sandbox.create(snapshot.snapshot_id, timeout=60) for _ in range(2)]
    for other in others:
        assert value(other, "x") == "41"
        assert other.files.read("/home/user/kept") == "abc"
        assert other.commands.run("echo $E2B_SANDBOX_ID").stdout.strip() == other.sandbox_id
        other.kill()
    assert Sandbox.delete_snapshot(snapshot.snapshot_id) is True
    with pytest.raises((NotFoundException, SandboxException)):
        Sandbox.create(snapshot.snapshot_id)


def test_forks_go_on_from_one_moment_and_share_nothing_after_it(sandbox: Sandbox) -> None:
    sandbox.run_code("import random, uuid, os, numpy; random.random(); numpy.random.rand(); x = 0")
    forks = sandbox.fork(count=20, timeout=120)
    code = "x += 1\nprint(os.urandom(8).hex(), random.random(), numpy.random.rand(), uuid.uuid4())"
    seen = [fork.run_code(code).logs.stdout[0].split() for fork in (*forks, sandbox)]
    for column in zip(*seen, strict=True):
        assert len(set(column)) == len(seen), seen
    assert len({fork.sandbox_id for fork in forks}) == 20
    assert [value(fork, "x") for fork in (*forks, sandbox)] == ["1"] * 21
    for fork in forks:
        fork.kill()


def test_forks_draw_other_numbers_in_javascript_and_bash(sandbox: Sandbox) -> None:
    """Also by what a cell has taken hold of before, and what Node draws ahead: integers and UUIDs."""
    held = "import crypto, { randomBytes } from 'node:crypto'; const random = Math.random;"
    drawn = "[random(), crypto.randomInt(2 ** 40), crypto.randomUUID(), randomBytes(8).toString('hex'),"
    drawn += " Math.random(), globalThis.crypto.getRandomValues(new Uint32Array(2)).join('-')].join(' ')"
    sandbox.run_code(f"{held} {drawn}", language="js")
    sandbox.run_code("echo $RANDOM", language="bash")
    seen: list[list[str]] = []
    forks = sandbox.fork(count=3, timeout=60)
    for one in (*forks, sandbox):
        text = one.run_code(drawn, language="js").text
        bash = one.run_code("echo $RANDOM$RANDOM$RANDOM", language="bash").logs.stdout[0]
        assert text is not None
        seen.append([*text.split(), bash])
    assert all(len(set(column)) == 4 for column in zip(*seen, strict=True)), seen
    for fork in forks:
        fork.kill()


def test_open_streams_outlast_a_snapshot_and_a_fork_of_their_sandbox(sandbox: Sandbox) -> None:
    """A checkpoint resets every connection; twin: in the fork, which none of these leads to, code runs on."""
    lines = [str(number) for number in range(1, 301)]
    counter = sandbox.commands.run("for n in $(seq 1 300); do echo $n; sleep 0.02; done", background=True)
    seen: list[str] = []
    code = "import time\nfor n in range(1, 301):\n    print(n, flush=True)\n    time.sleep(0.02)\nn"
    with ThreadPoolExecutor() as threads:
        cell = threads.submit(sandbox.run_code, code, on_stdout=lambda message: seen.append(message.line))
        until(lambda: len(seen) > 0)
        sandbox.create_snapshot()
        (fork,) = sandbox.fork(timeout=60)
        assert counter.wait().stdout.split() == lines
        assert "".join(seen).split() == lines[: len("".join(seen).split())]
        assert cell.result().text == "300"
        assert "".join(cell.result().logs.stdout).split() == lines
    assert value(fork, "n") == "300"
    fork.kill()


def test_requests_that_meet_a_snapshot_are_answered_once(sandbox: Sandbox) -> None:
    sandbox.commands.run("rm -f /tmp/log")

    def keep_asking() -> int:
        asked = 0
        while not is_over.is_set():
            asked += 1
            assert sandbox.commands.run(f"echo {asked} >> /tmp/log; echo {asked}").stdout == f"{asked}\n"
        return asked

    is_over = threading.Event()
    with ThreadPoolExecutor() as threads:
        asking = threads.submit(keep_asking)
        for _ in range(3):
            sandbox.create_snapshot()
        is_over.set()
        asked = asking.result()
    assert sandbox.files.read("/tmp/log").split() == [str(number) for number in range(1, asked + 1)]


def test_what_is_paused_or_gone_is_told_by_its_own_error(sandbox: Sandbox) -> None:
    with pytest.raises(SandboxException, match="between 1 and"):
        sandbox.fork(count=0)
    sandbox.pause()
    with pytest.raises(SandboxException, match="paused"):
        sandbox.fork()
    with pytest.raises(NotFoundException):
        Sandbox.connect("i" + "0" * 20)
    assert sandbox.kill() is True
    with pytest.raises(NotFoundException):
        Sandbox.connect(sandbox.sandbox_id)


def test_a_port_answers_and_is_reached_on_loopback_alone(sandbox: Sandbox) -> None:
    """The network stack is the sandbox's own; what listens on 127.0.0.1 is reached by way of its agent."""
    sandbox.commands.run("python3 -m http.server 8000 --bind 127.0.0.1 >/dev/null 2>&1", background=True)
    sandbox.commands.run("python3 -m http.server 8001 --bind 0.0.0.0 >/dev/null 2>&1", background=True)
    for port in (8000, 8001):
        until(lambda port=port: f":{port:04X} " in sandbox.commands.run("cat /proc/net/tcp").stdout)
        request = urllib.request.Request(
            os.environ["E2B_API_URL"],
            headers={"E2b-Sandbox-Id": sandbox.sandbox_id, "E2b-Sandbox-Port": str(port)},
        )
        with urllib.request.urlopen(request, timeout=20) as answer:
            assert b"Directory listing" in answer.read()
