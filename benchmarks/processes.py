"""What processes of this machine use, read from outside; as root."""

import contextlib
from pathlib import Path

PROC = Path("/proc")


def pss_mib(pid: int) -> float:
    """Memory of a process, in MiB: its own pages and its part of those it shares; 0 when it has ended."""
    with contextlib.suppress(OSError):
        for line in (PROC / str(pid) / "smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                return int(line.split()[1]) / 1024
    return 0.0


def available_mib() -> float:
    """Memory of the machine that is to be had."""
    found = dict(line.split(":") for line in (PROC / "meminfo").read_text().splitlines())
    return int(found["MemAvailable"].split()[0]) / 1024


def cpu_s(pid: int) -> float:
    """Processor time that the threads of a process have used, in seconds; 0 when it has ended."""
    nanoseconds = 0
    for thread in PROC.glob(f"{pid}/task/*/schedstat"):
        with contextlib.suppress(OSError):
            nanoseconds += int(thread.read_text().split()[0])
    return nanoseconds / 1e9


def namespace(pid: int) -> str:
    """Its pid namespace; empty when it has ended."""
    with contextlib.suppress(OSError):
        return str((PROC / str(pid) / "ns" / "pid").readlink())
    return ""


def by_namespace() -> dict[str, list[int]]:
    """All processes, by their pid namespace."""
    found: dict[str, list[int]] = {}
    for entry in PROC.iterdir():
        if entry.name.isdigit():
            found.setdefault(namespace(int(entry.name)), []).append(int(entry.name))
    return found


def descendants(pid: int) -> list[int]:
    """A process and all that came of it and stayed."""
    found = [pid]
    for one in found:
        for children in PROC.glob(f"{one}/task/*/children"):
            with contextlib.suppress(OSError):
                found += map(int, children.read_text().split())
    return found
