"""What processes of this machine use, read from outside; as root."""

import contextlib
import os
from pathlib import Path

PROC = Path("/proc")
TICKS_PER_S = os.sysconf("SC_CLK_TCK")


def pss_mib(pid: int) -> float:
    """Memory of a process, in MiB: its own pages and its part of those it shares; 0 when it has ended."""
    return _memory_mib(pid, "Pss:")


def anonymous_mib(pid: int) -> float:
    """Memory of a process that is no file's, in MiB, shared or not; 0 when it has ended."""
    return _memory_mib(pid, "Anonymous:")


def _memory_mib(pid: int, field: str) -> float:
    with contextlib.suppress(OSError):
        for line in (PROC / str(pid) / "smaps_rollup").read_text().splitlines():
            if line.startswith(field):
                return int(line.split()[1]) / 1024
    return 0.0


def available_mib() -> float:
    """Memory of the machine that is to be had."""
    found = dict(line.split(":") for line in (PROC / "meminfo").read_text().splitlines())
    return int(found["MemAvailable"].split()[0]) / 1024


def cpu_s(pid: int) -> float:
    """Processor time that a process has used, in seconds, by threads that have ended too; 0 when it has."""
    with contextlib.suppress(OSError):
        of_user, of_kernel = (PROC / str(pid) / "stat").read_text().rpartition(")")[2].split()[11:13]
        return (int(of_user) + int(of_kernel)) / TICKS_PER_S
    return 0.0


def namespace(pid: int) -> str:
    """Its pid namespace; empty when it has ended."""
    with contextlib.suppress(OSError):
        return str((PROC / str(pid) / "ns" / "pid").readlink())
    return ""


def by_group() -> dict[str, list[int]]:
    """All processes, by the name of the control group of their memory."""
    found: dict[str, list[int]] = {}
    for path in PROC.glob("[0-9]*/cgroup"):
        with contextlib.suppress(OSError):
            for line in path.read_text().splitlines():
                _, controllers, group = line.split(":", 2)
                if controllers == "" or "memory" in controllers.split(","):
                    found.setdefault(Path(group).name, []).append(int(path.parent.name))
    return found


def descendants(pid: int) -> list[int]:
    """A process and all that came of it and stayed."""
    found = [pid]
    for one in found:
        for children in PROC.glob(f"{one}/task/*/children"):
            with contextlib.suppress(OSError):
                found += map(int, children.read_text().split())
    return found
