"""What only the container driver can show: each wall, looked at from both sides."""

import contextlib
import os
import re
from pathlib import Path
from typing import Any

import pytest
from tests.integration.isolation.conftest import NEEDS_CONTAINERS, Workshop, own_mounts, plain_rootfs
from tests.support.waiting import until

from cloche_server.isolation import identity, posture
from cloche_server.isolation.base import ID_RANGE, ResourceLimits, first_id
from cloche_wire.errors import Internal

pytestmark = [pytest.mark.anyio, NEEDS_CONTAINERS]

_CAPABILITY_NUMBERS = {
    "CHOWN": 0, "DAC_OVERRIDE": 1, "FOWNER": 3, "FSETID": 4, "KILL": 5, "SETGID": 6, "SETUID": 7,
    "SETPCAP": 8, "NET_BIND_SERVICE": 10, "SYS_CHROOT": 18, "SETFCAP": 31,
}  # fmt: skip

_SYSCALL = """
import ctypes
libc = ctypes.CDLL(None, use_errno=True)
def call(number, *arguments):
    return errno.errorcode[ctypes.get_errno()] if libc.syscall(number, *arguments) < 0 else "done"
"""

_EAT = """
child = os.fork()
if child == 0:
    connection.close()
    eaten = []
    while True:
        eaten.append(bytearray(1 << 20))
        eaten[-1][::4096] = b"x" * 256
result = os.waitpid(child, 0)[1]
"""

_FORK = """
children = []
result = None
while result is None and len(children) < 500:
    try:
        child = os.fork()
    except OSError as error:
        result = [len(children), errno.errorcode[error.errno]]
        break
    if child == 0:
        connection.close()
        signal.pause()
    children.append(child)
for child in children:
    os.kill(child, 9)
    os.waitpid(child, 0)
"""


def status(pid: int) -> dict[str, str]:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return {name: value.strip() for name, _, value in (line.partition(":") for line in lines)}


def namespace(pid: int, kind: str) -> str:
    return str(Path(f"/proc/{pid}/ns/{kind}").readlink())


def id_map(pid: int, name: str) -> list[int]:
    return [int(word) for word in Path(f"/proc/{pid}/{name}").read_text().split()]


async def test_memory_limit_ends_the_eater_and_not_the_sandbox(container: Workshop) -> None:
    """Memory beyond the limit costs the process that took it its life, and the init goes on."""
    sandbox = await container.start(limits=ResourceLimits(1, 64, 64))
    assert sandbox.run(_EAT) == 9
    assert sandbox.run("result = 1") == 1
    assert 0 < container.driver.usage(sandbox.spec.sandbox_id).memory_bytes <= 64 << 20


async def test_number_of_processes_is_limited(container: Workshop) -> None:
    """A fork bomb meets EAGAIN at its own limit."""
    sandbox = await container.start(limits=ResourceLimits(1, 256, 20))
    # What started it is in the group too, for the moment between its answer and its end.
    usage = container.driver.usage
    until(lambda: usage(sandbox.spec.sandbox_id).pids == 1, within_s=5, what="the init alone")
    assert sandbox.run(_FORK) == [19, "EAGAIN"]


async def test_every_namespace_is_its_own(container: Workshop) -> None:
    """No namespace is shared with the host or with a neighbour."""
    kinds = ("user", "mnt", "pid", "net", "ipc", "uts", "cgroup")
    one, other = await container.start(), await container.start()
    seen = {namespace(pid, kind) for pid in (one.init.pid, other.init.pid, os.getpid()) for kind in kinds}
    assert len(seen) == 3 * len(kinds)


async def test_root_inside_is_nobody_outside(container: Workshop) -> None:
    """Every id of a sandbox is a host id of its slot's range, and no two sandboxes share one."""
    one, other = await container.start(), await container.start()
    for sandbox in (one, other):
        first = first_id(sandbox.spec.slot)
        assert status(sandbox.init.pid)["Uid"].split() == [str(first)] * 4
        assert status(sandbox.init.pid)["Gid"].split() == [str(first)] * 4
        assert status(sandbox.init.pid)["Groups"] == ""
        expected = [0, first, ID_RANGE]
        for name in ("uid_map", "gid_map"):
            assert id_map(sandbox.init.pid, name) == expected
        assert sandbox.run("result = [os.getuid(), os.getgid(), os.getgroups()]") == [0, 0, []]


async def test_capabilities_are_the_eleven(container: Workshop) -> None:
    """In effect, permitted and in the bounding set; none is inheritable or ambient."""
    sandbox = await container.start()
    assert posture.CAPABILITIES == _CAPABILITY_NUMBERS
    mask = f"{sum(1 << number for number in _CAPABILITY_NUMBERS.values()):016x}"
    found = status(sandbox.init.pid)
    assert {name: found[f"Cap{name}"] for name in ("Bnd", "Eff", "Prm")} == dict.fromkeys(
        ("Bnd", "Eff", "Prm"), mask
    )
    assert found["CapInh"] == found["CapAmb"] == "0" * 16


async def test_filter_is_loaded_and_decides(container: Workshop) -> None:
    """The kernel answers as the profile says: refused, unknown, allowed."""
    sandbox = await container.start()
    assert status(sandbox.init.pid)["Seccomp"] == "2"
    calls = """
result = [call(165, 0, 0, 0, 0, 0), call(272, 0x10000000), call(435, 0, 0), call(250, 0, 0), call(39)]
"""
    mount, unshare_user, clone3, keyctl, getpid = sandbox.run(_SYSCALL + calls)
    assert (mount, unshare_user, clone3, keyctl, getpid) == ("EPERM", "EPERM", "ENOSYS", "ENOSYS", "done")


async def test_mount_table_names_no_folder_of_the_server(container: Workshop) -> None:
    """What /proc/self/mountinfo shows inside tells nothing of where the server keeps its things."""
    sandbox = await container.start()
    table = sandbox.run("result = open('/proc/self/mountinfo').read()")
    for path in (container.folder, container.tree.path):
        assert str(path) not in table
        assert path.name not in table
    sources = {line.split()[3] for line in table.splitlines() if line.split()[4] in ("/", "/.cloche")}
    assert sources == {"/"}


async def test_boot_id_is_its_own(container: Workshop) -> None:
    """By that of the host, two sandboxes could tell that they stand on one machine; root cannot change it."""
    code = """
path = "/proc/sys/kernel/random/boot_id"
try:
    open(path, "w")
except OSError as error:
    result = [open(path).read(), errno.errorcode[error.errno], os.path.exists("/dev/boot_id")]
"""
    (one, refused, has_other_name), (other, *_) = [(await container.start()).run(code) for _ in range(2)]
    assert re.fullmatch(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}\n", one)
    assert len({one, other, f"{identity.boot_id()}\n"}) == 3
    assert refused in ("EROFS", "EACCES")
    assert not has_other_name


async def test_runtime_tree_cannot_be_written(container: Workshop) -> None:
    """Not even by root inside: it is one copy for all sandboxes."""
    sandbox = await container.start()
    code = """
try:
    open("/.cloche/agent.pyz", "ab")
except OSError as error:
    result = errno.errorcode[error.errno]
"""
    assert sandbox.run(code) in ("EROFS", "EACCES")


async def test_template_is_shown_with_its_own_ids_and_never_changed(container: Workshop) -> None:
    """Files of root are root's inside, and whatever a sandbox does to them stays with it."""
    rootfs = plain_rootfs(container.folder / "rootfs")
    (rootfs / "file").write_text("template")
    (rootfs / "gone").write_text("template")
    before = {path: (path.lstat().st_mtime_ns, path.lstat().st_uid) for path in (rootfs, *rootfs.rglob("*"))}
    sandbox = await container.start(rootfs)
    code = """
result = [os.stat("/file").st_uid, os.stat("/").st_uid]
open("/file", "a").write(" and more")
os.unlink("/gone")
os.mkdir("/etc/new")
os.chown("/tmp", 1000, 1000)
result.append(open("/file").read())
"""
    assert sandbox.run(code) == [0, 0, "template and more"]
    after = {path: (path.lstat().st_mtime_ns, path.lstat().st_uid) for path in (rootfs, *rootfs.rglob("*"))}
    assert after == before
    assert (await container.start(rootfs)).run("result = open('/file').read()") == "template"


async def test_own_files_of_etc_are_there_over_the_templates(container: Workshop) -> None:
    """The sandbox's hosts take the place of the template's, and the rest of /etc stays."""
    rootfs = plain_rootfs(container.folder / "rootfs")
    (rootfs / "etc" / "hosts").write_text("of the template")
    (rootfs / "etc" / "passwd").write_text("root:x:0:0::/root:/bin/sh\n")
    sandbox = await container.start(rootfs)
    assert sandbox.run("result = open('/etc/hosts').read()") == "127.0.0.1 localhost\n"
    assert sandbox.run("result = open('/etc/passwd').read()").startswith("root:")
    assert sandbox.run("result = [os.stat('/etc').st_uid, os.stat('/etc').st_mode & 0o777]") == [0, 0o755]
    assert sandbox.run("result = socket.gethostname()") == sandbox.spec.hostname


@pytest.mark.parametrize("kind", ["link out", "link in", "file", "missing", "linked file"])
async def test_hostile_etc_of_a_template_redirects_nothing(container: Workshop, kind: str) -> None:
    """Whatever /etc is in a template, our files land in the sandbox and on no path of the host."""
    target = container.folder / "host"
    target.mkdir()
    (target / "hosts").write_text("of the host")
    rootfs = plain_rootfs(container.folder / "rootfs")
    etc = rootfs / "etc"
    if kind == "linked file":
        (etc / "hosts").symlink_to(target / "hosts")
    else:
        etc.rmdir()
        if kind == "link out":
            etc.symlink_to(target)
        elif kind == "link in":
            etc.symlink_to("tmp")
        elif kind == "file":
            etc.write_text("no folder")
    sandbox = await container.start(rootfs)
    assert sandbox.run("result = open('/etc/hosts').read()") == "127.0.0.1 localhost\n"
    assert (target / "hosts").read_text() == "of the host"
    assert [path.name for path in target.iterdir()] == ["hosts"]


@pytest.mark.parametrize("name", ["dev", "proc", ".cloche", "dev/shm"])
async def test_hostile_mount_point_of_a_template_shows_nothing_of_the_host(
    container: Workshop, name: str, tmp_path: Path
) -> None:
    """A mount point that is a link out of the root is followed inside the root, or the start fails."""
    rootfs = plain_rootfs(container.folder / "rootfs")
    target = container.folder / "host"
    target.mkdir()
    if (rootfs / name).is_dir():
        (rootfs / name).rmdir()
    (rootfs / name).symlink_to(target)
    mounts = own_mounts()
    with contextlib.suppress(Internal):  # refusing is as good as holding
        sandbox = await container.start(rootfs)
        assert sandbox.run("result = 1") == 1
    assert list(target.iterdir()) == []
    assert own_mounts() == mounts


async def test_host_state_in_proc_is_covered_and_sysfs_absent(container: Workshop) -> None:
    """Nothing of the host's kernel state is readable, and its settings are read-only."""
    sandbox = await container.start()
    code = """
def first(path):
    try:
        with open(path, "rb") as file:
            return len(file.read(16))
    except OSError as error:
        return errno.errorcode[error.errno]
names = ("kcore", "keys", "kallsyms", "timer_list", "modules")
result = {name: first("/proc/" + name) for name in names}
result["/sys"] = os.path.exists("/sys/kernel")
try:
    open("/proc/sys/kernel/hostname", "w").write("x")
except OSError as error:
    result["write"] = errno.errorcode[error.errno]
"""
    found: dict[str, Any] = sandbox.run(code)
    assert found.pop("write") == "EROFS"
    assert found.pop("/sys") is False
    assert set(found.values()) <= {0, "EACCES", "EPERM", "ENOENT"}


async def test_devices_are_the_harmless_ones_and_none_can_be_made(container: Workshop) -> None:
    """/dev holds no disk and no kernel memory, and mknod of a device is refused."""
    sandbox = await container.start()
    names = set(sandbox.run("result = os.listdir('/dev')"))
    assert names <= {
        "null", "zero", "full", "random", "urandom", "tty", "console", "ptmx", "pts", "shm", "fd", "stdin",
        "stdout", "stderr", "core", "mqueue",
    }  # fmt: skip
    code = """
try:
    os.mknod("/tmp/disk", 0o60600, os.makedev(254, 0))
except OSError as error:
    result = errno.errorcode[error.errno]
"""
    assert sandbox.run(code) == "EPERM"


async def test_sandbox_sees_only_its_own_processes(container: Workshop) -> None:
    """Its init is 1, and no process of the host is in its /proc."""
    sandbox = await container.start()
    assert sandbox.run("result = [os.getpid(), sorted(n for n in os.listdir('/proc') if n.isdigit())]") == [
        1,
        ["1"],
    ]
