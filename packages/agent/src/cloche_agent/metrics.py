"""GET /metrics: what the sandbox uses, as seen from inside."""

from __future__ import annotations

import os
import time
from pathlib import Path

_CGROUP_V2 = Path("/sys/fs/cgroup")
_MIB = 1 << 20


class Metrics:
    """Reads the counters; CPU use is that of the time since the last reading."""

    def __init__(self) -> None:
        """Take the first reading of the CPU counters."""
        self._last = _cpu_ticks()

    def read(self) -> dict[str, int | float]:
        """One reading, with the names that the clients know."""
        memory = _memory()
        disk = os.statvfs("/")
        return {
            "ts": int(time.time()),
            "cpu_count": _cpu_count(),
            "cpu_used_pct": self._cpu_used_pct(),
            "mem_total": memory["total"],
            "mem_used": memory["used"],
            "mem_cache": memory["cache"],
            "mem_total_mib": memory["total"] // _MIB,
            "mem_used_mib": memory["used"] // _MIB,
            "disk_used": (disk.f_blocks - disk.f_bfree) * disk.f_frsize,
            "disk_total": disk.f_blocks * disk.f_frsize,
        }

    def _cpu_used_pct(self) -> float:
        busy_before, all_before = self._last
        self._last = busy, every = _cpu_ticks()
        if every <= all_before:
            return 0.0
        return round(100 * max(0, busy - busy_before) / (every - all_before), 2)


def _cpu_count() -> int:
    return len(os.sched_getaffinity(0))


def _cpu_ticks() -> tuple[int, int]:
    """Busy and all clock ticks since boot."""
    fields = [int(text) for text in _text(Path("/proc/stat")).partition("\n")[0].split()[1:9]]
    if len(fields) < 5:
        return (0, 0)
    return (sum(fields) - fields[3] - fields[4], sum(fields))


def _memory() -> dict[str, int]:
    """Bytes: those of the sandbox's own control group where it is shown one, else those of the machine."""
    machine: dict[str, int] = {}
    for line in _text(Path("/proc/meminfo")).splitlines():
        name, _, rest = line.partition(":")
        machine[name] = int(rest.split()[0]) * 1024 if rest.split() else 0
    total = machine.get("MemTotal", 0)
    limit, used = _text(_CGROUP_V2 / "memory.max").strip(), _text(_CGROUP_V2 / "memory.current").strip()
    if not used.isdecimal():
        cache = machine.get("Cached", 0) + machine.get("Buffers", 0)
        return {"total": total, "used": total - machine.get("MemAvailable", 0), "cache": cache}
    cache = 0
    for line in _text(_CGROUP_V2 / "memory.stat").splitlines():
        if line.startswith("file "):
            cache = int(line.split()[1])
    return {
        "total": int(limit) if limit.isdecimal() else total,
        "used": max(0, int(used) - cache),
        "cache": cache,
    }


def _text(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""
