"""Boundary: resources. One sandbox that takes all it can get harms neither its neighbour nor the server."""

import time
from pathlib import Path

from tests.support.census import processes
from tests.support.fixtures import NEEDS_A_SERVER, MakeSandbox
from tests.support.inside import host_processes, process_count, python, run
from tests.support.server import Server
from tests.support.waiting import until

pytestmark = NEEDS_A_SERVER


def test_memory_beyond_the_limit_ends_the_program_and_not_the_sandbox(sandboxes: MakeSandbox) -> None:
    """Battery 30: the hoarder is ended, the next command works within 5 s, a neighbour has its own."""
    a, b = sandboxes(), sandboxes()
    ended = run(a, "python3 -c \"hoard = [b'x' * (64 << 20) + bytes([n]) for n in range(200)]\"", timeout=60)
    assert ended.code != 0
    began = time.monotonic()
    assert run(a, "echo ok").out == "ok\n"
    assert time.monotonic() - began < 5
    assert (
        run(b, "python3 -c 'print(len(bytes(64 << 20)))'").out == f"{64 << 20}\n"
    )  # twin: within it, memory is there


def test_cell_that_takes_all_memory_ends_its_interpreter_and_nothing_else(sandboxes: MakeSandbox) -> None:
    """Battery 30, by a cell: it is told so within 30 s, other processes go on, and so does the next cell."""
    sandbox = sandboxes()
    waits = sandbox.commands.run("sleep 600", background=True, timeout=0)
    execution = sandbox.run_code("hoard = [b'x' * (64 << 20) + bytes([n]) for n in range(200)]", timeout=30)
    assert execution.error is not None
    assert execution.error.name in {"ContextRestarting", "MemoryError"}
    assert sandbox.run_code("1 + 1", timeout=10).text == "2"
    assert waits.pid in [process.pid for process in sandbox.commands.list()]


def test_large_file_in_tmp_is_on_disk(sandboxes: MakeSandbox) -> None:
    """More than the sandbox has memory: it is written, and nothing ends."""
    sandbox = sandboxes()
    assert run(sandbox, "dd if=/dev/zero of=/tmp/large bs=1M count=3000", timeout=120).code == 0
    assert run(sandbox, "stat -c %s /tmp/large && ls -A /tmp").out.splitlines() == [str(3000 << 20), "large"]


def test_shared_memory_files_count_against_the_sandbox(sandboxes: MakeSandbox) -> None:
    """Battery 31 in part: /dev/shm is bounded."""
    sandbox = sandboxes()
    assert run(sandbox, "dd if=/dev/zero of=/dev/shm/big bs=1M count=3000").code != 0
    assert (
        run(sandbox, "rm -f /dev/shm/big; dd if=/dev/zero of=/dev/shm/small bs=1M count=10").code == 0
    )  # twin


def test_a_fork_bomb_is_stopped_by_the_limit_and_can_be_killed(
    server: Server, sandboxes: MakeSandbox
) -> None:
    """Battery 32: the server answers within 1 s, kill returns within 5 s, nobody is left."""
    sandbox = sandboxes()
    ids = {process.uid - process.uid % 65_536 for process in host_processes(sandbox)}
    if server.isolation == "gvisor":
        ids.discard(0)  # its kernel is `nobody`
    assert len(ids) == 1
    sandbox.commands.run("bomb() { bomb | bomb & }; bomb; sleep 20", background=True, timeout=0)
    began = time.monotonic()
    assert server.request("GET", "/health").status_code in (200, 204)
    assert time.monotonic() - began < 1
    if server.isolation != "gvisor":  # which counts its own processes, and starts some fifty in a second
        until(lambda: process_count(sandbox).refused, within_s=30, what="a process that could not be started")
    count = process_count(sandbox)
    assert count.current <= count.limit <= 4096
    began = time.monotonic()
    sandbox.kill()
    assert time.monotonic() - began < 5
    assert not [pid for pid, uid in processes() if uid - uid % 65_536 in ids]


_THREADS = """
import threading
until, started = threading.Event(), 0
try:
    while started < 5000:
        threading.Thread(target=until.wait, daemon=True).start()
        started += 1
except RuntimeError as refused:
    print(started, refused)
until.set()
"""


def test_threads_beyond_the_limit_are_refused_and_nothing_ends(sandboxes: MakeSandbox) -> None:
    """Battery 32 in part: EAGAIN for the program, and the sandbox goes on as it was."""
    sandbox = sandboxes()
    waits = sandbox.commands.run("sleep 600", background=True, timeout=0)
    for _ in range(2):  # twin: they are given back
        started, refused = python(sandbox, _THREADS).out.split(maxsplit=1)
        assert 900 < int(started) <= 1024
        assert refused == "can't start new thread\n"
    assert waits.pid in [process.pid for process in sandbox.commands.list()]


_TURMOIL = """
import os, subprocess, threading, time
def spawn():
    while True:
        subprocess.run(["true"])
for _ in range(8):
    threading.Thread(target=spawn).start()
for _ in range(100):
    if os.fork() == 0:
        while True:
            time.sleep(0.001)
open("/tmp/begun", "w").close()
time.sleep(600)
"""


def test_sandbox_that_is_frozen_in_turmoil_stands_still_and_keeps_nobody_waiting(
    server: Server, sandboxes: MakeSandbox
) -> None:
    """However many processes it starts and ends just then; its neighbour answers, and it can be ended."""
    wild, neighbour = sandboxes(timeout=600), sandboxes(timeout=600)
    wild.files.write("/tmp/turmoil.py", _TURMOIL)
    wild.commands.run("nohup python3 /tmp/turmoil.py >/dev/null 2>&1 &")
    until(lambda: wild.files.exists("/tmp/begun"), within_s=30, what="turmoil")
    wild.freeze()
    (usage,) = Path("/sys/fs/cgroup").glob(f"**/cloche-*/{wild.sandbox_id}/pids.current")
    before = usage.read_text()
    for number in range(20):
        began = time.monotonic()
        assert neighbour.commands.run(f"echo {number}").stdout == f"{number}\n"
        assert time.monotonic() - began < 1
    assert usage.read_text() == before
    began = time.monotonic()
    assert wild.kill()
    assert time.monotonic() - began < 10
