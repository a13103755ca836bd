"""Boundary: resources. One sandbox that takes all it can get harms neither its neighbour nor the server."""

import time

from tests.support.census import processes
from tests.support.fixtures import NEEDS_A_SERVER, MakeSandbox
from tests.support.inside import host_processes, run
from tests.support.server import Server

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
    assert len(ids) == 1
    sandbox.commands.run("bomb() { bomb | bomb & }; bomb; sleep 20", background=True, timeout=0)
    began = time.monotonic()
    assert server.request("GET", "/health").status_code in (200, 204)
    assert time.monotonic() - began < 1
    assert len(host_processes(sandbox)) <= 1100
    began = time.monotonic()
    sandbox.kill()
    assert time.monotonic() - began < 5
    assert not [pid for pid, uid in processes() if uid - uid % 65_536 in ids]
