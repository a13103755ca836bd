"""Has what a sandbox writes into /tmp be on disk, as everywhere else in its root.

runsc mounts a file system in memory over a /tmp that it finds empty: a large file there would count as the
sandbox's memory, which nothing could take back but the end of the sandbox. So it finds one entry, which the
agent removes before anything else happens.

See: gvisor, runsc/boot/vfs.go, `mountTmp`.
"""

from __future__ import annotations

import contextlib
import os

from cloche_server.isolation import overlay, syscalls

ENTRY = ".cloche"
"""`cloche_agent.__main__` removes it."""
_STAY = syscalls.RESOLVE_BENEATH | syscalls.RESOLVE_NO_SYMLINKS | syscalls.RESOLVE_NO_XDEV


def keep_on_disk(root: str, ids: overlay.Ids, *, is_writable: bool) -> None:
    """Put the entry into /tmp of an assembled root, if that is an empty folder.

    Requires: a mount namespace of this process alone, and that no program of the sandbox runs.

    Args:
        root: Where it stands.
        ids: The sandbox's.
        is_writable: Whether it may be made in the root itself; else a file system of its own shows it.
    """
    with contextlib.ExitStack() as opened:
        above = os.open(root, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        opened.callback(os.close, above)
        try:
            folder = syscalls.openat2(above, b"tmp", os.O_RDONLY | os.O_DIRECTORY, _STAY)
        except OSError:
            return  # none, or a link: as runsc has it
        opened.callback(os.close, folder)
        with os.scandir(folder) as entries:
            if any(entries):
                return
        if is_writable:
            with overlay.acting_as(ids):
                os.mkdir(ENTRY, 0o700, dir_fd=folder)
            return
        owner = str(ids.first_id)
        options: dict[str, str | None] = {"size": "4k", "nr_inodes": "2", "mode": "1777"}
        options |= {"uid": owner, "gid": owner}
        attributes = syscalls.MOUNT_ATTR_NODEV | syscalls.MOUNT_ATTR_NOSUID
        mount = syscalls.mount_file_system("tmpfs", "tmpfs", options, attributes)
        opened.callback(os.close, mount)
        os.mkdir(ENTRY, 0o700, dir_fd=mount)
        os.chown(ENTRY, ids.first_id, ids.first_id, dir_fd=mount)
        # SAFETY: onto a descriptor; its folder was reached without a link and without leaving the root.
        syscalls.attach_mount(mount, folder)
