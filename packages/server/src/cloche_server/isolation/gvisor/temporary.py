"""Has what a sandbox writes into /tmp be on disk, as everywhere else in its root.

runsc mounts a file system in memory over a /tmp that it finds empty: a large file there would count as the
sandbox's memory, which nothing could take back but the end of the sandbox. So it finds one entry, which the
agent removes before anything else happens.

See: gvisor, runsc/boot/vfs.go, `mountTmp`.
"""

from __future__ import annotations

import os
from contextlib import ExitStack

from cloche_server.isolation import overlay
from cloche_server.isolation.gvisor import covers

ENTRY = ".cloche"
"""`cloche_agent.__main__` removes it."""


def keep_on_disk(root: str, ids: overlay.Ids, *, is_writable: bool) -> None:
    """Put the entry into /tmp of an assembled root, if that is an empty folder.

    Args:
        root: Where it stands.
        ids: The sandbox's.
        is_writable: Whether it may be made in the root itself; else a file system of its own shows it.
    """
    with ExitStack() as stack:
        try:
            folder = stack.enter_context(covers.opened(root, "tmp"))
        except OSError:
            return  # none, or a link: as runsc has it
        with os.scandir(folder) as entries:
            if any(entries):
                return
        if is_writable:
            with overlay.acting_as(ids):
                os.mkdir(ENTRY, 0o700, dir_fd=folder)
            return
        owner = str(ids.first_id)
        with covers.covered(folder, nr_inodes="2", mode="1777", uid=owner, gid=owner) as mount:
            os.mkdir(ENTRY, 0o700, dir_fd=mount)
            os.chown(ENTRY, ids.first_id, ids.first_id, dir_fd=mount)
