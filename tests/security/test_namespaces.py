"""Boundary: namespaces and user ids. Sandboxes share none with each other or with this machine."""

import contextlib
import itertools
from functools import partial
from pathlib import Path

import pytest
from tests.support.census import SANDBOX_UIDS
from tests.support.fixtures import NEEDS_A_SERVER, Pair
from tests.support.inside import host_processes, init_pid, namespaces, python, root, run, status
from tests.support.waiting import until

from cloche import Sandbox

pytestmark = NEEDS_A_SERVER

RANGE = 65_536


def test_every_namespace_differs_between_host_and_sandboxes(pair: Pair) -> None:
    """Battery 1: user, mnt, pid, net, ipc, uts and cgroup of A, B and this process are pairwise different."""
    views = [namespaces("self"), namespaces(init_pid(pair.a)), namespaces(init_pid(pair.b))]
    for one, other in itertools.combinations(views, 2):
        assert not set(one.items()) & set(other.items())
    assert run(pair.a, "hostname").code == 0  # twin: both work
    assert run(pair.b, "hostname").code == 0


def test_every_thread_is_confined_alike(pair: Pair) -> None:
    """Battery 2: the filter, the bounding set and the id map hold for each thread of each process."""
    program = (
        "import threading, time\n[threading.Thread(target=time.sleep, args=(60,)).start() for _ in range(4)]"
    )
    pair.a.files.write("/tmp/threads.py", program)
    handles = [pair.a.commands.run("python3 /tmp/threads.py", background=True) for _ in range(10)]
    until(lambda: _thread_count(pair) > 40, within_s=20, what="ten programs of five threads")
    init = init_pid(pair.a)
    maps, bounds = Path(f"/proc/{init}/uid_map").read_text(), status(init, "CapBnd")
    seen = 0
    for process in host_processes(pair.a):
        # What a login shell runs at its start may end between the listing and the look.
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            assert Path(f"/proc/{process.pid}/uid_map").read_text() == maps
            for thread in _threads(process.pid):
                assert status(process.pid, "Seccomp", thread=thread) == "2"
                assert status(process.pid, "CapBnd", thread=thread) == bounds
                seen += 1
    assert seen > 40
    for handle in handles:
        handle.kill()


def _thread_count(pair: Pair) -> int:
    return sum(len(_threads(process.pid)) for process in host_processes(pair.a))


def _threads(pid: int) -> list[int]:
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        return [int(entry.name) for entry in Path(f"/proc/{pid}/task").iterdir()]
    return []  # it has ended since it was listed


def test_root_inside_is_nobody_outside(pair: Pair) -> None:
    """Battery 3: id 0 inside is one of this sandbox's own 65,536 outside; no two ranges meet."""
    firsts: list[int] = []
    for sandbox in pair:
        assert root(sandbox, "id -u").out == "0\n"
        inside, outside, length = (int(word) for word in root(sandbox, "cat /proc/self/uid_map").out.split())
        # From within, the map is told in the ids of the opener's own namespace.
        assert (inside, length) == (0, RANGE)
        assert outside >= 0
        handle = sandbox.commands.run("sleep 61", user="root", background=True)
        uids = until(partial(_sleepers, sandbox), within_s=5, what="the sleeping process")
        handle.kill()
        assert len(uids) == 1
        firsts += uids
        everybody = {process.uid for process in host_processes(sandbox)}
        assert all(uid in SANDBOX_UIDS and firsts[-1] <= uid < firsts[-1] + RANGE for uid in everybody)
    assert abs(firsts[0] - firsts[1]) >= RANGE


def _sleepers(sandbox: Sandbox) -> set[int]:
    """Ids that the sandbox's `sleep` runs as."""
    return {process.uid for process in host_processes(sandbox) if process.comm == "sleep"}


@pytest.mark.parametrize("flags", ["-U", "-r", "-m", "-n", "-p --fork", "-i", "-u", "-C"])
def test_no_namespace_can_be_made_inside(pair: Pair, flags: str) -> None:
    """Battery 8: unshare fails for root as for `user`."""
    for user in ("root", "user"):
        assert run(pair.a, f"unshare {flags} true", user=user).code != 0


def test_a_user_namespace_cannot_be_made_by_any_call(pair: Pair) -> None:
    """Battery 8: unshare, clone and clone3 refuse CLONE_NEWUSER; threads and processes are still made."""
    program = """
import ctypes, os, multiprocessing, subprocess, threading
libc = ctypes.CDLL(None, use_errno=True)
NEWUSER, SIGCHLD = 0x10000000, 17
assert libc.unshare(NEWUSER) == -1
assert libc.syscall(56, NEWUSER | SIGCHLD, 0, 0, 0, 0) == -1
arguments = (ctypes.c_uint64 * 11)(NEWUSER, 0, 0, 0, SIGCHLD)
assert libc.syscall(435, arguments, 88) == -1
thread = threading.Thread(target=print, args=('thread',)); thread.start(); thread.join()
print(subprocess.run(['echo', 'process'], capture_output=True, text=True).stdout.strip())
worker = multiprocessing.get_context('fork').Process(target=print, args=('worker',))
worker.start(); worker.join()
"""
    for user in ("root", "user"):
        done = python(pair.a, program, user=user)
        assert done.code == 0, done
        assert sorted(done.out.split()) == ["process", "thread", "worker"]


@pytest.mark.parametrize("kind", ["user", "mnt", "pid", "net", "ipc", "uts", "cgroup"])
def test_no_namespace_can_be_entered(pair: Pair, kind: str) -> None:
    """Battery 9: setns is refused, even to the namespaces of the sandbox's own init."""
    program = f"""
import ctypes, os
libc = ctypes.CDLL(None, use_errno=True)
try:
    target = os.open('/proc/1/ns/{kind}', os.O_RDONLY)
except PermissionError:
    print('refused')
else:
    assert libc.setns(target, 0) == -1
    print('refused')
"""
    assert python(pair.a, program, user="root").out == "refused\n"
    assert root(pair.a, "readlink /proc/self/ns/net").code == 0  # twin: one's own can be looked at
