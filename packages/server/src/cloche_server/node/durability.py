"""What has to survive a crash of the machine."""

from __future__ import annotations

import os
from pathlib import Path

from cloche_server.isolation import syscalls


def sync(path: Path) -> None:
    """Have a file's content, or the names in a folder, on disk (fsync(2)).

    Raises:
        OSError: The disk is full or broken.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_all_below(folder: Path) -> None:
    """Have everything in a folder on disk, in the one call that takes no longer for many small files.

    What others have written to the same file system goes with it.

    Raises:
        OSError: The disk is full or broken.
    """
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        syscalls.syncfs(descriptor)
    finally:
        os.close(descriptor)
