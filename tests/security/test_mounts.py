"""Boundary: the file system view. Nothing is mounted, no device made, no knob of the host turned."""

from pathlib import Path

import pytest
from tests.support.fixtures import NEEDS_A_SERVER, Pair
from tests.support.inside import root, run

pytestmark = NEEDS_A_SERVER

MASKED = (
    "/proc/kcore", "/proc/keys", "/proc/latency_stats", "/proc/timer_list", "/proc/sched_debug", "/proc/kmsg",
    "/proc/kallsyms", "/proc/sysrq-trigger", "/proc/scsi", "/proc/acpi", "/proc/interrupts",
    "/proc/vmallocinfo",
    "/sys/firmware", "/sys/devices/virtual/powercap", "/sys/kernel/debug", "/sys/kernel/security",
)  # fmt: skip


@pytest.mark.parametrize(
    "command",
    [
        "mount -t tmpfs x /mnt", "umount /proc", "mount -o remount,rw /proc/sys", "mount --bind / /mnt",
        "mount -t proc proc /mnt", "mount -t overlay x -o lowerdir=/bin:/etc /mnt", "umount -l /.cloche",
    ],
)  # fmt: skip
def test_root_can_change_no_mount(pair: Pair, command: str) -> None:
    """Battery 7: mounting, unmounting and remounting are refused, and the table stays as it was."""
    before = root(pair.a, "cat /proc/self/mountinfo").out
    refused = root(pair.a, command)
    assert refused.code != 0
    assert root(pair.a, "cat /proc/self/mountinfo").out == before
    assert root(pair.a, "touch /mnt/file && rm /mnt/file").code == 0  # twin: the folder itself can be used


def test_the_runtime_tree_cannot_be_written(pair: Pair) -> None:
    """Battery 7: what the agent runs from is read-only for root too."""
    assert root(pair.a, "touch /.cloche/x").code != 0
    assert root(pair.a, "chmod 777 /.cloche/agent.pyz").code != 0
    assert root(pair.a, "test -r /.cloche/agent.pyz").code == 0  # twin: it can be read


def test_devices_are_the_harmless_ones(pair: Pair) -> None:
    """Battery 14: /dev holds the usual few; a device node cannot be made."""
    names = set(root(pair.a, "ls /dev").out.split())
    allowed = {
        "null",
        "zero",
        "full",
        "random",
        "urandom",
        "tty",
        "ptmx",
        "pts",
        "shm",
        "mqueue",
        "console",
        "core",
    }
    assert names <= allowed | {"fd", "stdin", "stdout", "stderr"}
    for kind in ("c 1 11", "b 8 0", "c 10 200"):
        assert root(pair.a, f"mknod /tmp/node {kind}").code != 0
    assert root(pair.a, "mknod /tmp/pipe p && rm /tmp/pipe").code == 0  # twin: a FIFO is no device
    assert root(pair.a, "head -c 4 /dev/zero | wc -c").out == "4\n"


@pytest.mark.parametrize("path", MASKED)
def test_masked_paths_show_nothing_of_the_host(pair: Pair, path: str) -> None:
    """Battery 15: reading gives nothing and writing does nothing, for root too."""
    shown = root(pair.a, f"if [ -d {path} ]; then ls -A {path}; else head -c 1 {path}; fi 2>/dev/null")
    assert shown.out == ""
    root(pair.a, f"echo b > {path}")
    assert root(pair.a, "head -c 1 /proc/uptime").out.isdigit()  # twin: what is not masked can be read


@pytest.mark.parametrize("path", ["kernel/core_pattern", "kernel/hostname", "vm/drop_caches", "kernel/panic"])
def test_no_knob_of_the_host_can_be_turned(pair: Pair, path: str) -> None:
    """Battery 16: /proc/sys is read-only; the host's own value is what it was."""
    host = Path("/proc/sys") / path
    before = host.read_text() if path != "vm/drop_caches" else ""
    assert root(pair.a, f"echo changed > /proc/sys/{path}").code != 0
    assert path == "vm/drop_caches" or host.read_text() == before
    assert root(pair.a, "cat /proc/sys/kernel/ostype").out == "Linux\n"  # twin


@pytest.mark.parametrize("path", ["/proc/sysrq-trigger", "/sys/kernel/uevent_helper", "/sys/power/state"])
def test_no_trigger_of_the_host_can_be_pulled(pair: Pair, path: str) -> None:
    """Battery 16: what would act on the machine is masked, read-only or not there."""
    written = root(pair.a, f"echo h > {path}")
    masked = root(pair.a, f"stat -c %t:%T {path}").out == "1:3\n"
    assert written.code != 0 or masked
    assert root(pair.a, "echo h > /dev/null").code == 0  # twin


def test_no_control_group_can_be_reached(pair: Pair) -> None:
    """Battery 17: no release_agent anywhere, no cgroup mount, and the own path is told as the root."""
    assert root(pair.a, "find / -xdev -name release_agent 2>/dev/null").out == ""
    for kind in ("cgroup", "cgroup2"):
        assert root(pair.a, f"mount -t {kind} x /mnt").code != 0
    lines = run(pair.a, "cat /proc/self/cgroup").out.splitlines()
    assert lines
    ours = [line for line in lines if line.split(":")[1] in ("", "memory", "pids", "cpu", "cpu,cpuacct")]
    assert ours
    assert all(line.split(":")[2].startswith("/") and "cloche" not in line for line in lines), lines


def test_mounts_tell_nothing_of_the_host(pair: Pair) -> None:
    """Battery 18 in part: no path of the state folder stands in the mount table's targets."""
    targets = [line.split()[4] for line in run(pair.a, "cat /proc/self/mountinfo").out.splitlines()]
    assert "/" in targets  # twin: there is a table
    assert not [target for target in targets if "sandboxes" in target or "templates" in target]


def test_no_fsync_of_a_tenant_makes_the_disk_of_all_busy(pair: Pair) -> None:
    """One tenant could hold up the others with it, whose layers lie on the same file system."""
    lines = run(pair.a, "cat /proc/self/mountinfo").out.splitlines()
    (layer,) = [line for line in lines if line.split()[4] == "/"]
    assert {"volatile", "fsync=volatile"} & {*layer.rpartition(" ")[2].split(",")}
    synced = root(pair.a, "echo a > /tmp/synced && sync /tmp/synced && sync -f /tmp && cat /tmp/synced")
    assert synced.out == "a\n"  # twin: it is allowed, and nothing is lost
