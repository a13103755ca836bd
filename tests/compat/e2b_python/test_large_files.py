"""Large files through the official client take no memory of ours, and a full disk is told as one."""

import subprocess
from pathlib import Path

import pytest
from tests.support import inside, official
from tests.support.fixtures import NEEDS_A_SERVER, MakeSandbox
from tests.support.server import PARTS, Server

from cloche import Sandbox

PROGRAM = Path(__file__).parent / "large_file.py"
MIB = 1 << 20
LARGEST_GROWTH_MIB = 16
pytestmark = NEEDS_A_SERVER


@pytest.mark.timeout(900)
@pytest.mark.parametrize("size_mib", [200, pytest.param(1024, marks=pytest.mark.nightly)])
def test_large_files_pass_in_constant_memory(server: Server, sandboxes: MakeSandbox, size_mib: int) -> None:
    """Plain, in a form and packed, up and down: no process of ours ever grows by more than 16 MiB."""
    sandbox = sandboxes(timeout=900)
    pids = {name: server.part(name) for name in PARTS} | {"agent": inside.init_pid(sandbox)}
    for step in ("up", "down", "up_form", "up_packed", "down_packed"):
        before = {name: _mib(pid, "VmRSS") for name, pid in pids.items()}
        for pid in pids.values():
            Path(f"/proc/{pid}/clear_refs").write_text("5")  # the peak counts from here: proc(5)
        _move(server, sandbox, step, size_mib * MIB)
        grown = {name: _mib(pid, "VmHWM") - before[name] for name, pid in pids.items()}
        assert max(grown.values()) <= LARGEST_GROWTH_MIB, f"{step}: MiB by process: {grown}"
    assert inside.run(sandbox, "stat -c %s /home/user/large").out.strip() == str(size_mib * MIB)


def test_full_disk_is_told_as_one_and_leaves_no_half_file(server: Server, sandboxes: MakeSandbox) -> None:
    """/dev/shm is small: 507 becomes the client's own exception, and the space is free again."""
    sandbox = sandboxes()
    room = int(inside.run(sandbox, "df --output=size -B1 /dev/shm | tail -1").out)
    assert room < 1024 * MIB, "too large for this test"
    _move(server, sandbox, "too_large", room + MIB)
    assert inside.run(sandbox, "ls /dev/shm").out.split() == ["small"]


def _move(server: Server, sandbox: Sandbox, step: str, size_bytes: int) -> None:
    argv = [str(official.interpreter()), str(PROGRAM), sandbox.sandbox_id, step, str(size_bytes)]
    done = subprocess.run(
        argv, env=official.client_env(server), capture_output=True, text=True, timeout=600, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


def _mib(pid: int, field: str) -> float:
    return int(inside.status(pid, field).removesuffix("kB")) / 1024
