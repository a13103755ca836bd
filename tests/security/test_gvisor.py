"""Boundary: sandboxes with a kernel of their own, and what that kernel's processes may do on this machine."""

import contextlib
import os
import re
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.support.block import number_of
from tests.support.fixtures import NEEDS_A_SERVER, connect_options
from tests.support.server import Server

from cloche import Sandbox
from cloche_server.isolation.base import ID_RANGE, first_id
from cloche_server.node.slots import SLOTS

pytestmark = [NEEDS_A_SERVER, pytest.mark.needs("runsc"), pytest.mark.timeout(300)]

NOBODY = 65_534
HAS_JUST_ENDED = contextlib.suppress(FileNotFoundError, ProcessLookupError)
"""Around a look at what comes and goes: the processes that a command had, descriptors of its files."""
GOFER_CAPABILITIES = 0x4_001F
"""CHOWN, DAC_OVERRIDE, DAC_READ_SEARCH, FOWNER, FSETID, SYS_CHROOT: in its own user namespace."""


@pytest.fixture(scope="module")
def sandbox(gvisor_server: Server) -> Iterator[Sandbox]:
    made = connect_options(gvisor_server, Sandbox.create, timeout=600)
    yield made
    made.kill()


def processes(server: Server, sandbox: Sandbox) -> dict[int, str]:
    """Host pid and name of every process in the sandbox's groups."""
    name = f"cloche-{number_of(server.state)}/{sandbox.sandbox_id}/cgroup.procs"
    groups = [*Path("/sys/fs/cgroup").glob(name), *Path("/sys/fs/cgroup").glob(f"memory/{name}")]
    pids = {int(line) for group in groups for line in group.read_text().split()}
    found: dict[int, str] = {}
    for pid in pids:
        with HAS_JUST_ENDED:
            found[pid] = Path(f"/proc/{pid}/cmdline").read_text().partition("\0")[0]
    return found


def namespace_of(pid: int | str, kind: str) -> str:
    return str(Path(f"/proc/{pid}/ns/{kind}").readlink())


def status(path: Path) -> dict[str, str]:
    return dict(re.findall(r"^(\w+):\s+(.*)$", (path / "status").read_text(), re.MULTILINE))


def postures(server: Server, sandbox: Sandbox) -> list[tuple[str, str, str, str]]:
    """Of each thread: whose process, users, filter, whether it may gain rights."""
    found: list[tuple[str, str, str, str]] = []
    for pid, name in processes(server, sandbox).items():
        with HAS_JUST_ENDED:
            for thread in Path(f"/proc/{pid}/task").iterdir():
                with HAS_JUST_ENDED:
                    fields = status(thread)
                    found.append((name, fields["Uid"], fields["Seccomp"], fields["NoNewPrivs"]))
    return found


def test_no_thread_is_a_user_of_the_host_or_without_a_filter(gvisor_server: Server, sandbox: Sandbox) -> None:
    """Also after a hundred commands, whose processes the kernel of the sandbox has made here."""
    slots = first_id(number_of(gvisor_server.state) * SLOTS)
    for _ in range(100):
        sandbox.commands.run("true")
    found = postures(gvisor_server, sandbox)
    assert {name for name, *_ in found} >= {"runsc-sandbox", "runsc-gofer"}
    for name, users, seccomp, no_new_privileges in found:
        numbers = {int(number) for number in users.split()}
        if name == "runsc-gofer":
            assert all(number in range(slots, slots + SLOTS * ID_RANGE) for number in numbers), (name, users)
        else:
            assert numbers == {NOBODY}, (name, users)
        assert (seccomp, no_new_privileges) == ("2", "1"), name


def test_its_processes_have_no_capability_over_the_host(gvisor_server: Server, sandbox: Sandbox) -> None:
    """What they have holds in a user namespace that maps their own ids only."""
    host = namespace_of("self", "user")
    looked_at: set[str] = set()
    for pid, name in processes(gvisor_server, sandbox).items():
        with HAS_JUST_ENDED:
            assert namespace_of(pid, "user") != host, name
            if name == "runsc-gofer":
                assert int(status(Path(f"/proc/{pid}"))["CapEff"], 16) & ~GOFER_CAPABILITIES == 0
            looked_at.add(name)
    assert looked_at >= {"runsc-sandbox", "runsc-gofer"}


def test_its_processes_are_in_namespaces_of_their_own(gvisor_server: Server, sandbox: Sandbox) -> None:
    for pid, name in processes(gvisor_server, sandbox).items():
        if not name.startswith("runsc-"):
            continue
        for kind in ("mnt", "net", "ipc", "uts", "user"):
            own, ours = (namespace_of(one, kind) for one in (pid, "self"))
            assert own != ours, (name, kind)


def test_its_kernel_holds_no_folder_and_no_file_of_the_template_to_write_to(
    gvisor_server: Server, sandbox: Sandbox
) -> None:
    """Files that the sandbox has open are passed to it by the gofer, to read from."""
    (pid,) = (pid for pid, name in processes(gvisor_server, sandbox).items() if name == "runsc-sandbox")
    own = (f"/{sandbox.sandbox_id}/runsc.log", "/exe", " (deleted)")
    looked_at = 0
    for entry in Path(f"/proc/{pid}/fd").iterdir():
        with HAS_JUST_ENDED:
            target, mode = str(entry.readlink()), entry.stat().st_mode
            fields = Path(f"/proc/{pid}/fdinfo/{entry.name}").read_text()
            assert not stat.S_ISDIR(mode), target
            if not stat.S_ISREG(mode) or not target.startswith("/") or target.endswith(own):
                continue
            assert target.startswith("/root/"), target  # as the gofer sees template and runtime
            flags = re.search(r"^flags:\s+(\d+)", fields, re.MULTILINE)
            assert flags is not None
            assert int(flags[1], 8) & os.O_ACCMODE == os.O_RDONLY, target
            looked_at += 1
    assert looked_at


def test_the_machine_s_null_device_stays_root_s(gvisor_server: Server, sandbox: Sandbox) -> None:
    """runsc gives its standard streams to the sandbox's user."""
    assert (os.stat("/dev/null").st_uid, os.stat("/dev/null").st_gid) == (0, 0)  # noqa: PTH116


def test_inside_is_another_kernel(gvisor_server: Server, sandbox: Sandbox) -> None:
    ours = os.uname().release
    assert sandbox.commands.run("uname -r").stdout.strip() != ours
    told = sandbox.commands.run("cat /proc/version /proc/cmdline; dmesg", user="root").stdout
    assert ours not in told


_TAKE_OVER = """
import ctypes, os, socket
PTRACE_SEIZE, libc, refused = 0x4206, ctypes.CDLL(None, use_errno=True), []
for name, act in (
    ("name", lambda: socket.sethostname("other")),
    ("memory", lambda: open("/proc/1/mem", "rb+")),
    ("mount", lambda: libc.mount(b"none", b"/mnt", b"tmpfs", 0, None) and 1 / 0),
    ("trace", lambda: libc.ptrace(PTRACE_SEIZE, 1, 0, 0) and 1 / 0),
):
    try:
        act()
    except (OSError, ZeroDivisionError):
        refused.append(name)
print(*refused)
"""


def test_what_the_first_process_may_no_program_may_nor_take_from_it(
    gvisor_server: Server, sandbox: Sandbox
) -> None:
    """It gives the sandbox its name, which takes a right that root's programs lack: also that to trace it."""
    sandbox.files.write("/tmp/take-over.py", _TAKE_OVER)
    sets = sandbox.commands.run("grep -h ^Cap /proc/1/status /proc/self/status", user="root").stdout.split()
    naming = 1 << 21
    held = [int(value, 16) & naming for value in sets[1::2]]
    assert held == [0, naming, naming, 0, 0, 0, 0, 0]  # inheritable, permitted, effective, bounding; of each
    told = sandbox.commands.run("python3 /tmp/take-over.py", user="root")
    assert told.stdout == "name memory mount trace\n"


def test_root_inside_cannot_write_to_the_template(gvisor_server: Server, sandbox: Sandbox) -> None:
    """Another sandbox of the same template has the file as it was."""
    sandbox.commands.run("echo changed > /etc/issue; rm /etc/debian_version", user="root")
    other = connect_options(gvisor_server, Sandbox.create, timeout=60)
    try:
        assert "changed" not in other.commands.run("cat /etc/issue /etc/debian_version").stdout
    finally:
        other.kill()
