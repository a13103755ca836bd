"""Small file systems over folders of an assembled root, for what runsc looks for there.

All of it happens in a mount namespace of this process alone, before any program of the sandbox runs.
"""

from __future__ import annotations

import os
from collections.abc import Generator
from contextlib import contextmanager

from cloche_server.isolation import syscalls


@contextmanager
def opened(root: str, name: str) -> Generator[int]:
    """A folder of the root, reached without a link and without leaving it.

    Raises:
        OSError: There is none, or it is a link.
    """
    above = os.open(root, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        folder = syscalls.openat2(above, name.encode(), os.O_RDONLY | os.O_DIRECTORY, syscalls.RESOLVE_PLAIN)
    finally:
        os.close(above)
    try:
        yield folder
    finally:
        os.close(folder)


@contextmanager
def covered(folder: int, **options: str) -> Generator[int]:
    """Cover a folder that is `opened`: a new file system in memory is filled in this block, then shown.

    Args:
        folder: Its descriptor.
        options: Of tmpfs(5), beside its size of a page.
    """
    attributes = syscalls.MOUNT_ATTR_NODEV | syscalls.MOUNT_ATTR_NOSUID
    mount = syscalls.mount_file_system("tmpfs", "tmpfs", {"size": "4k", **options}, attributes)
    try:
        yield mount
        # SAFETY: onto a descriptor; its folder was reached without a link and without leaving the root.
        syscalls.attach_mount(mount, folder)
    finally:
        os.close(mount)
