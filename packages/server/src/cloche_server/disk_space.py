"""Free space of the disk that a folder lies on, or will lie on."""

from __future__ import annotations

import shutil
from pathlib import Path

from cloche_wire.errors import NotEnoughSpace


def require(folder: Path, needed_bytes: int, purpose: str) -> None:
    """Refuse what would fill the disk half-way through. The folder need not exist yet.

    Raises:
        NotEnoughSpace: Less than `needed_bytes` is free.
    """
    existing = next(path for path in (folder, *folder.parents) if path.exists())
    free = shutil.disk_usage(existing).free
    if free < needed_bytes:
        raise NotEnoughSpace(
            f"not enough disk space for {purpose}: {free >> 20} of {needed_bytes >> 20} MiB at {existing}",
            hint="free some space, or put the state elsewhere with --state",
        )
