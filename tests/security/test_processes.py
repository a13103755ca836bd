"""Boundary: processes. A sandbox sees and signals its own, and holds no descriptor that leads out."""

import re
import shlex

from tests.support.fixtures import NEEDS_A_SERVER, MakeSandbox, Pair
from tests.support.inside import init_pid, python, root, run

pytestmark = NEEDS_A_SERVER


def test_only_own_processes_are_seen(pair: Pair) -> None:
    """Battery 19: the list begins with pid 1, which is ours, and holds none of B's."""
    marked = pair.b.commands.run("sleep 4242", background=True)
    listed = run(pair.a, "ps -eo pid,args").out
    assert "sleep 4242" not in listed
    assert "sleep 4242" in run(pair.b, "ps -eo pid,args").out  # twin
    assert re.search(r"^\s*1 .*(cloche|agent)", listed, re.MULTILINE)
    assert not re.search(r"uvicorn|cloche_server|crun", listed)
    marked.kill()


def test_killing_init_as_root_harms_nobody_else(sandboxes: MakeSandbox) -> None:
    """Battery 19: `kill -9 1` is ignored or ends that sandbox alone."""
    a, b = sandboxes(), sandboxes()
    a.commands.run("kill -9 1; sleep 1", user="root", background=True)
    assert run(b, "echo alive").out == "alive\n"
    assert b.run_code("1 + 1").text == "2"


def test_no_descriptor_leads_outside(pair: Pair) -> None:
    """Battery 20: a cell, a command and root's look at pid 1 find pipes, terminals and own files."""
    program = (
        "import os; p = '/proc/self/fd/'; "
        "print({f: os.readlink(p + f) for f in os.listdir(p) if os.path.lexists(p + f)})"
    )
    own = r"pipe:|/dev/(null|pts|tty|shm|urandom)|/proc/|anon_inode:|/tmp/|/home/user|/root|/memfd:"
    for output in (
        "".join(pair.a.run_code(program).logs.stdout),
        run(pair.a, f"python3 -c {shlex.quote(program)}").out,
    ):
        links = eval(output)
        assert links  # twin
        strange = {number: link for number, link in links.items() if not re.match(own, link)}
        # The interpreter is spoken to over one socket pair with the agent.
        assert all(link.startswith("socket:") for link in strange.values()), strange
        assert len(strange) <= 3
    listed = root(pair.a, "ls -l /proc/1/fd").out
    assert not re.search(r"-> /(?!dev|proc|\.cloche|tmp|run)", listed), listed


def test_other_sandboxes_cannot_be_signalled(pair: Pair) -> None:
    """Battery 26: the host's number of a process of B means nothing in A."""
    refused = root(pair.a, f"kill -0 {init_pid(pair.b)}")
    assert refused.code != 0
    assert "No such process" in refused.err
    assert root(pair.a, "kill -0 $$").code == 0  # twin


_MAKE = """
import ctypes, mmap, os, socket, subprocess, time
libc = ctypes.CDLL(None, use_errno=True)
assert libc.shmget(0x0C10C4E, 4096, 0o1666) >= 0  # IPC_CREAT
open('/dev/shm/cloche-mark', 'w').write('here')
listener = socket.socket(socket.AF_UNIX); listener.bind('\\0cloche-mark'); listener.listen()
print('made', flush=True)
time.sleep(120)
"""
_LOOK = """
import ctypes, os, socket
libc = ctypes.CDLL(None, use_errno=True)
print(libc.shmget(0x0C10C4E, 4096, 0) >= 0, os.path.exists('/dev/shm/cloche-mark'))
try:
    socket.socket(socket.AF_UNIX).connect('\\0cloche-mark')
    print('connected')
except ConnectionRefusedError:
    print('refused')
"""


def test_memory_and_sockets_of_another_sandbox_are_not_there(pair: Pair) -> None:
    """Battery 26: shared memory of both kinds and abstract sockets of B are not in A, and are in B."""
    pair.b.files.write("/tmp/make.py", _MAKE)
    maker = pair.b.commands.run("python3 /tmp/make.py", background=True)
    run(pair.b, "timeout 10 sh -c 'until [ -e /dev/shm/cloche-mark ]; do sleep 0.1; done; sleep 0.2'")
    assert python(pair.a, _LOOK).out == "False False\nrefused\n"
    assert python(pair.b, _LOOK).out == "True True\nconnected\n"  # twin
    maker.kill()
