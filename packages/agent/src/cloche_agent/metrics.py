"""GET /metrics: what the sandbox uses, as seen from inside, against the limits that the node has told.

The machine's own figures in /proc are no answer: several sandboxes share them. No control group is shown
here, so what is used is added up over the sandbox's processes.
"""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import TYPE_CHECKING

from cloche_agent import procfs

if TYPE_CHECKING:
    from cloche_agent.init import Sandbox

_MIB = 1 << 20
_TICKS_PER_S = os.sysconf("SC_CLK_TCK")


class Metrics:
    """Reads the counters; CPU use is that of the time since the last reading."""

    def __init__(self, sandbox: Sandbox) -> None:
        """Take the first reading of the CPU counters."""
        self._sandbox = sandbox
        self._last = (time.monotonic(), _cpu_s())

    def read(self) -> dict[str, int | float]:
        """One reading, with the names that the clients know."""
        cpu_count = self._sandbox.cpu_count or len(os.sched_getaffinity(0))
        total = self._sandbox.memory_bytes or _machine_memory_bytes()
        used = min(_private_bytes(), total)
        disk = os.statvfs("/")
        return {
            "ts": int(time.time()),
            "cpu_count": cpu_count,
            "cpu_used_pct": self._cpu_used_pct(cpu_count),
            "mem_total": total,
            "mem_used": used,
            # The cache of its files is counted by the kernel outside: the control plane's metrics tell it.
            "mem_cache": 0,
            "mem_total_mib": total // _MIB,
            "mem_used_mib": used // _MIB,
            "disk_used": (disk.f_blocks - disk.f_bfree) * disk.f_frsize,
            "disk_total": disk.f_blocks * disk.f_frsize,
        }

    def _cpu_used_pct(self, cpu_count: int) -> float:
        at_before, used_before = self._last
        self._last = at, used = (time.monotonic(), _cpu_s())
        if at <= at_before:
            return 0.0
        share = max(0.0, used - used_before) / ((at - at_before) * cpu_count)
        return round(min(100.0, 100 * share), 2)


def _cpu_s() -> float:
    """CPU time of every process and of all that they have collected: as PID 1 nobody's is lost."""
    ticks = 0
    for folder in procfs.processes():
        # The name before the last parenthesis may hold anything; utime, stime, cutime, cstime follow.
        fields = procfs.text(folder / "stat").rpartition(")")[2].split()
        ticks += sum(map(int, fields[11:15]))
    return ticks / _TICKS_PER_S


def _private_bytes() -> int:
    """Memory of every process without the pages of files, which are shared."""
    pages = 0
    for folder in procfs.processes():
        fields = procfs.text(folder / "statm").split()
        pages += max(0, int(fields[1]) - int(fields[2])) if len(fields) > 2 else 0
    return pages * procfs.PAGE_BYTES


def _machine_memory_bytes() -> int:
    for line in procfs.text(Path("/proc/meminfo")).splitlines():
        if line.startswith("MemTotal:"):
            return int(line.split()[1]) * 1024
    return 0
