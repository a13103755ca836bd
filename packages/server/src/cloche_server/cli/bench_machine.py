"""The machine that `cloche bench` runs on: what the report says of it, and how much it may be asked for."""

from __future__ import annotations

import os
import platform
from pathlib import Path
from typing import TYPE_CHECKING

from cloche_server.cli.bench_measures import Machine

if TYPE_CHECKING:
    from cloche_server.config import Config

LARGEST_CROWD = 100
_EACH_MIB = 100
"""Memory that an idle sandbox with an interpreter takes at most: 73 were measured."""
_OTHERS = 10
"""Sandboxes that other acts have alive meanwhile."""


def describe() -> Machine:
    """What it is, now; without the versions of Python, which only the workers know."""
    memory_kib = _fields(Path("/proc/meminfo"))
    return Machine(
        cpus=os.cpu_count() or 0,
        cpu_model=_fields(Path("/proc/cpuinfo")).get("model name", platform.machine()),
        kernel=platform.release(),
        memory_mib=int(memory_kib["MemTotal"].split()[0]) >> 10,
        available_mib=int(memory_kib["MemAvailable"].split()[0]) >> 10,
        load=os.getloadavg(),
        pythons={},
    )


def crowd(config: Config, available_mib: int) -> int:
    """How many sandboxes can be kept alive at once: half of the memory that is there, no limit reached."""
    free_slots = config.limits.max_sandboxes - config.ahead.most - _OTHERS
    return max(1, min(LARGEST_CROWD, free_slots, available_mib // 2 // _EACH_MIB))


def _fields(path: Path) -> dict[str, str]:
    lines = (line.partition(":") for line in path.read_text().splitlines())
    return {name.strip(): value.strip() for name, _, value in lines}
