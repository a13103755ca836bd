"""What the kernel tells of the sandbox's processes. See: proc(5)."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")


def processes() -> Iterator[Path]:
    """The folder of each process, whose name is its pid."""
    with os.scandir("/proc") as entries:
        yield from (Path(entry.path) for entry in entries if entry.name.isdecimal())


def text(path: Path) -> str:
    """Content of a file; empty where the process has ended."""
    with contextlib.suppress(OSError):
        return path.read_text(errors="replace")
    return ""
